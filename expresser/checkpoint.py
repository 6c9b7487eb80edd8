"""One folder is one model: weights, configuration, genes, the run that made it, a card. No pickle is ever read."""

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from expresser.atomic import replaced_folder
from expresser.errors import InputError
from expresser.foreign import LARGE, file_in, printable, prove_types, read_mapping
from expresser.foreign_tensors import fitting, read_tensors
from expresser.genes import GeneVocab
from expresser.hub_client import is_hub_id, snapshot
from expresser.model.configuration import ExpresserConfig, configuration_of
from expresser.model.modeling import NETWORKS, ExpresserPreTrainedModel
from expresser.model_card import model_card
from expresser.notebook import Part, card, lines

FILES = ("config.json", "model.safetensors", "genes.tsv", "run.json", "README.md")
# What a run record's fields are, where they are there.
_RUN: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("recipe", "corpus_id", "genes_sha256"), str),
    **dict.fromkeys(("step", "cells_seen", "cells", "genes", "seed"), int),
    **dict.fromkeys(("valid", "additive", "best", "provenance", "config"), dict),
    **dict.fromkeys(("sources", "manifest"), list),
    "seconds": (int, float),
}


@dataclass(frozen=True, repr=False)
class Checkpoint:
    """A loaded model, in eval mode, with the genes its tokens stand for and the record of the run that made it."""

    model: ExpresserPreTrainedModel
    vocab: GeneVocab
    run: dict[str, Any]
    source: str

    def facts(self) -> dict[str, Any]:
        """What a reader wants to know of it, by name; None: not known."""
        run = self.run
        valid, of = run.get("valid") or {}, run.get("provenance") or {}
        return {
            "model": type(self.model).__name__,
            **self.model.facts(),
            "recipe": run.get("recipe"),
            "trained": f"{run['step']:,} steps, {run['cells_seen']:,} cells"
            if {"step", "cells_seen"} <= set(run)
            else None,
            "corpus": f"{run['cells']:,} cells, id {run['corpus_id'][:12]}"
            if {"cells", "corpus_id"} <= set(run)
            else None,
            "validation MSE": valid.get("mse"),
            "validation r": valid.get("pearson"),
            "seed": run.get("seed"),
            "made (UTC)": of.get("time_utc"),
        }

    def __repr__(self) -> str:
        return lines(f"Checkpoint {self.source}", self.facts())

    def _repr_html_(self) -> str:
        parts: dict[str, Part] = {"network": repr(self.model)}
        if self.run:
            parts = {"run": json.dumps(self.run, indent=1, sort_keys=True, default=str)} | parts
        return card(f"Checkpoint {self.source}", self.facts(), parts)


def save(
    folder: str | Path,
    model: ExpresserPreTrainedModel,
    vocab: GeneVocab,
    run: Mapping[str, Any],
    *,
    extra: Callable[[Path], None] | None = None,
) -> Path:
    """Write a checkpoint so that the folder is either whole or absent.

    Parameters
    ----------
    extra
        Writes more files (the training state) into the folder before it gets its name.

    Raises
    ------
    ValueError
        If the model and the vocabulary do not have the same number of genes.
    """
    folder = Path(folder)
    if len(vocab) != model.config.vocab_size:
        raise ValueError(f"the model has {model.config.vocab_size} gene tokens, the vocabulary {len(vocab)} genes.")
    with replaced_folder(folder) as part:
        with _no_bars():
            model.save_pretrained(part)
        vocab.save(part / "genes.tsv")
        (part / "run.json").write_text(json.dumps(run, indent=1, sort_keys=True) + "\n")
        parameters = sum(weight.numel() for weight in model.parameters())
        (part / "README.md").write_text(model_card(run, parameters=parameters), encoding="utf-8")
        if extra is not None:
            extra(part)
    return folder


def locate(model: str | Path, files: tuple[str, ...] = FILES) -> Path:
    """The folder of a model: a checkpoint, the folder of a run (its final model, else its newest checkpoint), or a hub id.

    A hub id is ``org/name`` or ``org/name@revision``; only `files` are downloaded, and all but the last (the card) are needed.

    Raises
    ------
    InputError
        If there is no such folder or repository, or it lacks a file.
    """
    path = Path(model)
    if path.is_dir():
        folder = model_folder(path)
    elif path.exists() or not is_hub_id(str(model)):
        raise InputError(f"{model}: no such folder, and not a hub id (org/name or org/name@revision).")
    else:
        folder = snapshot(str(model), files)
    missing = [name for name in files[:-1] if not (folder / name).exists()]
    if missing:
        raise InputError(
            f"{folder if path.is_dir() else model}: not a model folder: {', '.join(missing)} missing. "
            f"A model folder holds {', '.join(files)}."
        )
    for name in files:
        if (folder / name).exists():
            file_in(folder, name)
    return folder


def model_folder(path: Path) -> Path:
    """The folder itself if it holds a model; of a run its final model, else its newest checkpoint."""
    if not (path / "config.json").exists():
        if (path / "model").is_dir():
            return path / "model"
        if checkpoints := list_checkpoints(path):
            return checkpoints[-1]
    return path


def list_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run folder, oldest first."""
    return sorted((p for p in (run / "checkpoints").glob("step-*") if (p / "run.json").is_file()), key=lambda p: p.name)


def load(model: str | Path) -> Checkpoint:
    """Load a model folder or hub id, every weight checked, in eval mode.

    The folder may be a stranger's: no code and no pickle is read from it, and what its files say of sizes is proven by the length of
    the weights before memory is taken for them.

    Raises
    ------
    InputError
        If a file is missing, no file of the folder's own, damaged, of another model, or holds numbers that are not finite.
    """
    folder = locate(model)
    config = configuration_of(read_mapping(folder / "config.json", numbers=False), str(folder / "config.json"))
    run = read_run(folder / "run.json")
    vocab = GeneVocab.load(file_in(folder, "genes.tsv", most=LARGE), most=config.vocab_size)
    if config.vocab_size != len(vocab):
        raise InputError(
            f"{folder}: genes.tsv has {len(vocab)} genes, config.json says {config.vocab_size}: "
            "the vocabulary belongs to another model. Restore the genes.tsv that was saved with these weights."
        )
    if (recorded := run.get("genes_sha256")) not in (None, vocab.sha256):
        raise InputError(
            f"{folder}: genes.tsv (sha256 {vocab.sha256[:12]}…) is not the vocabulary the model was trained with "
            f"({printable(recorded)[:12]}…). Restore the genes.tsv that was saved with these weights."
        )
    return Checkpoint(model=_network(config, folder / "model.safetensors"), vocab=vocab, run=run, source=str(model))


def read_run(path: Path) -> dict[str, Any]:
    """The run record of a model (run.json), its fields of the kinds that readers take them for."""
    run = read_mapping(path)
    prove_types(run, _RUN, str(path))
    prove_types(
        run.get("provenance") or {}, {"time_utc": str, "versions": dict, "machine": dict}, f"{path}: provenance"
    )
    for part in ("valid", "additive", "best"):
        prove_types(
            run.get(part) or {}, dict.fromkeys(("mse", "mae", "pearson", "n", "step"), (int, float)), f"{path}: {part}"
        )
    return run


def _network(config: ExpresserConfig, weights: Path) -> ExpresserPreTrainedModel:
    """The network that a configuration describes, with the weights of a file that has exactly those."""
    network = fitting(weights, lambda: NETWORKS[config.model_type](config))
    found = read_tensors(weights)
    if strange := sorted(name for name, values in found.items() if not values.is_floating_point()):
        raise InputError(
            f"{weights}: {strange[0]} is {found[strange[0]].dtype}, not numbers with a fraction. Copy it again."
        )
    kind = getattr(torch, str(config.dtype).removeprefix("torch."))
    cast = {name: values.to(kind) for name, values in found.items()}
    if beyond := sorted(name for name, values in cast.items() if not bool(torch.isfinite(values).all())):
        raise InputError(
            f"{weights}: {beyond[0]} holds numbers that are too large for {config.dtype}, the dtype in config.json. Use the "
            "config.json that was saved with these weights."
        )
    network.load_state_dict(cast, assign=True)
    return network.eval()


@contextmanager
def _no_bars() -> Iterator[None]:
    """transformers shows a progress bar for every file it reads or writes; a checkpoint here is one file, and a run saves many."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def random_checkpoint(checkpoint: Checkpoint, *, seed: int) -> Checkpoint:
    """A model of the same shape with random weights: what is left of a score without pretraining."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = type(checkpoint.model)(copy.deepcopy(checkpoint.model.config))
        # Some layers start at zero, the last of the head among them, and would embed all cells as zeros: here they too are random.
        for module in model.modules():
            if getattr(module, "zero_start", False):
                torch.nn.init.normal_(module.get_parameter("weight"), std=model.config.initializer_range)
    return Checkpoint(
        model=model.eval(), vocab=checkpoint.vocab, run={}, source=f"random weights ({checkpoint.source})"
    )
