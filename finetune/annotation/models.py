"""The models that an annotation run compares, by name, and what they are like without pretraining."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from expresser.checkpoint import Checkpoint, load
from expresser.errors import InputError
from finetune.annotation.rows import BASELINES
from finetune.embeddings.reading import split_spec

RANDOM = "random"


def load_models(models: Sequence[str]) -> dict[str, Checkpoint]:
    """Models by the name of their row: ``NAME=SPEC`` or ``SPEC``."""
    found: dict[str, Checkpoint] = {}
    for spec in models:
        name, where = split_spec(spec)
        name = name or _name_of(where)
        if name in found or name in BASELINES or name.split(" ")[0] == RANDOM:
            taken = f"two models are called {name!r}" if name in found else f"{name!r} is the name of a baseline"
            raise InputError(f"models: {taken}. Give another: NAME={where}.")
        found[name] = load(where)
    return found


def _name_of(where: str) -> str:
    """The folder's name, or the run's where the folder is its last model or one of its checkpoints; of a hub id the second part."""
    path = Path(where)
    if not path.is_dir():
        return where.rpartition("/")[2].partition("@")[0]
    path = path.resolve()
    if path.parent.name == "checkpoints":
        return path.parent.parent.name
    return path.parent.name if path.name == "model" else path.name


@dataclass(frozen=True, eq=False)
class Control:
    """A model with random weights: its row, and the model that it is shaped like and shares its vocabulary with."""

    name: str
    like: str
    checkpoint: Checkpoint


def random_controls(checkpoints: Mapping[str, Checkpoint], seed: int) -> list[Control]:
    """One for each shape and vocabulary among the models."""
    found: list[Control] = []
    shapes = []
    for name, checkpoint in checkpoints.items():
        config = checkpoint.model.config.to_dict()
        fields = {k: v for k, v in config.items() if not k.startswith("_") and k != "transformers_version"}
        shape = (fields, checkpoint.vocab.sha256)
        if shape not in shapes:
            shapes.append(shape)
            row = RANDOM if not found else f"{RANDOM} ({name})"
            found.append(Control(row, name, random_checkpoint(checkpoint, seed=seed)))
    return found


def random_checkpoint(checkpoint: Checkpoint, *, seed: int) -> Checkpoint:
    """A model of the same shape with random weights: what is left of a score without pretraining."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = type(checkpoint.model)(copy.deepcopy(checkpoint.model.config))
        # Some heads start at zero, and would embed all cells as zeros: here they too are random.
        with torch.no_grad():
            torch.nn.init.normal_(model.head.out.weight, std=model.config.initializer_range)
    return Checkpoint(
        model=model.eval(), vocab=checkpoint.vocab, run={}, source=f"random weights ({checkpoint.source})"
    )
