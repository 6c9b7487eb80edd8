"""A fitted translator as one folder: weights, configuration, preprocessing, the run that made it, a card. No pickle."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from expresser.atomic import replaced_folder
from expresser.checkpoint import locate
from expresser.errors import InputError
from expresser.foreign import LARGE, prove_types, read_mapping, shortened
from expresser.foreign_tensors import fitting, read_arrays, read_tensors
from expresser.options import from_plain
from expresser.record import canonical_json
from translate.bridge_words import taken_words
from translate.feed import Input, Inputs
from translate.preprocess import AtacInput, ProteinInput, RnaInput
from translate.registry import SYSTEMS
from translate.study import Modality
from translate.system import System

FILES = ("config.json", "model.safetensors", "inputs.json", "inputs.safetensors", "run.json", "README.md")
# What a run record's fields are, where they are there.
_RUN: dict[str, type] = {
    **dict.fromkeys(("cells", "config", "features", "origin", "pretrained", "provenance", "taken", "trained_on"), dict),
    **dict.fromkeys(("preset", "split", "system"), str),
    "seed": int,
}
_KINDS: dict[Modality, Any] = {"rna": RnaInput, "atac": AtacInput, "protein": ProteinInput}


def save(folder: Path, name: str, system: System, inputs: Inputs, run: Mapping[str, Any]) -> Path:
    """Write the folder so that it is whole or absent."""
    arrays: dict[str, np.ndarray] = {}
    settings: dict[str, Any] = {}
    for modality, found in inputs.items():
        own, settings[modality] = found.saved()
        arrays |= {f"{modality}.{key}": np.ascontiguousarray(value) for key, value in own.items()}
    with replaced_folder(folder) as part:
        weights = {key: value.detach().cpu().contiguous() for key, value in system.state_dict().items()}
        save_tensors(weights, part / "model.safetensors")
        save_file(arrays, part / "inputs.safetensors")
        (part / "inputs.json").write_text(json.dumps(settings) + "\n")
        (part / "config.json").write_text(
            canonical_json({"system": name, "config": dataclasses.asdict(system.config), "format": 1})
        )
        (part / "run.json").write_text(canonical_json(run))
        (part / "README.md").write_text(card(name, system, run))
    return folder


def load(model: str | Path) -> tuple[str, System, Inputs, dict[str, Any]]:
    """Name, system in eval mode, preprocessing and run record of a folder or hub id (org/name, org/name@revision).

    Raises
    ------
    InputError
        If it is not a translator's folder, a file is damaged or lacking, or weights do not fit the configuration.
    """
    begun = Path(model)
    if (begun / "split.tsv").is_file() and not (begun / "fit.json").is_file():
        raise InputError(f"{begun}: the fit here is not finished. Run its command again with --resume.")
    folder = locate(model, files=FILES)
    about = read_mapping(folder / "config.json", numbers=False)
    settings = read_mapping(folder / "inputs.json", most=LARGE, numbers=False)
    run = read_mapping(folder / "run.json")
    prove_types(run, _RUN, str(folder / "run.json"))
    name, options = about.get("system"), about.get("config")
    if not isinstance(name, str) or not isinstance(options, dict):
        raise InputError(
            f"{folder}: damaged, or not a translator's folder: config.json names no system and its options."
        )
    if name not in SYSTEMS:
        raise InputError(
            f"{folder}: system {shortened(name)}; this version has {', '.join(SYSTEMS)}. Update expresser."
        )
    kind = SYSTEMS[name]
    inputs = _inputs(folder, settings)
    chosen = from_plain(kind.config_class, options, where=str(folder / "config.json"))
    weights = folder / "model.safetensors"
    fitting(weights, lambda: kind(chosen, inputs))  # without memory: only what the file can fill is built
    with torch.random.fork_rng(devices=[]):
        system = kind(chosen, inputs)
    load_weights(system, weights)
    return name, system.eval().requires_grad_(False), inputs, run


def _inputs(folder: Path, settings: Mapping[str, Any]) -> Inputs:
    """The preprocessing, each modality proven to be what `fit` can have made."""
    arrays = read_arrays(folder / "inputs.safetensors", finite=False)
    inputs: dict[Modality, Input] = {}
    where = folder / "inputs.json"
    for modality, own in settings.items():
        if modality not in _KINDS:
            raise InputError(f"{where}: modality {shortened(modality)}; known are {', '.join(_KINDS)}.")
        if not isinstance(own, dict):
            raise InputError(f"{where}: {modality} is {shortened(own)}, a mapping is needed. Copy the folder again.")
        mine = {k.removeprefix(f"{modality}."): v for k, v in arrays.items() if k.startswith(f"{modality}.")}
        try:
            inputs[modality] = _KINDS[modality].restored(mine, own)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise InputError(
                f"{where}: damaged, or not of a translator ({modality}: {type(error).__name__}: {error}). Copy the folder again."
            ) from error
    return inputs


def load_weights(system: System, path: Path) -> None:
    """Every weight, checked by name and shape before any is read, and by kind."""
    own = system.state_dict()
    found = read_tensors(path, {key: tuple(value.shape) for key, value in own.items()})
    if wrong := sorted(key for key, value in found.items() if value.dtype != own[key].dtype):
        raise InputError(
            f"{path}: {wrong[0]} is {found[wrong[0]].dtype}, the network's is {own[wrong[0]].dtype}. Copy it again."
        )
    system.load_state_dict(found)


def card(name: str, system: System, run: Mapping[str, Any]) -> str:
    """The README.md of a model folder."""
    published = system.published
    sizes = ", ".join(f"{m} {len(i.var):,} features" for m, i in system.inputs.items())
    deviations = "\n".join(f"- {d}" for d in published.deviations) or "Nowhere."
    taken = "".join(f"{sentence} " for sentence in taken_words(run))
    if taken:
        taken = f"\n## Pretrained model\n{taken}All of it is in this folder.\n"
    n = sum(p.numel() for p in system.parameters())
    source, to = system.directions()[-1]
    embed = f"expresser translate embed THIS_FOLDER --input {source}.h5ad --out embedded.h5ad"
    predict = f"expresser translate predict THIS_FOLDER --input {source}.h5ad --to {to} --out"
    if system.embeds:
        title, tag = f"embedding of {source}", "embedding"
        use = f"{embed}\n{predict} imputed.h5ad"
        after = (
            f'The first writes obsm["X_{name}"]: `sc.pp.neighbors(adata, use_rep="X_{name}")`. The second imputes: every cell as if '
            "it had the same depth and came from the same batch. "
        )
    else:
        title, tag = ", ".join(f"{s} to {t}" for s, t in system.directions() if s != t), "translation"
        use, after = f"{predict} predicted.h5ad\n{embed}", ""
    return f"""---
license: unknown
library_name: expresser
tags: [single-cell, {"scatac" if system.embeds else "multiome"}, {tag}]
---
# {published.name}: {title}

{published.reference} doi:{published.doi}

| | |
|---|---|
| inputs | {sizes} |
| parameters | {n:,} |
| training cells | {run.get("cells", {}).get("train", "?")} |
| seed | {run.get("seed", "?")} |

## Use
```
{use}
```
{after}Input is raw counts; what a cell is standardised by is stored here, so one cell gives what it gives among thousands.
{taken}
## Where it departs from the paper
{deviations}
"""
