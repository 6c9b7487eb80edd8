"""A fitted translator as one folder: weights, configuration, preprocessing, the run that made it, a card. No pickle."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors

from expresser.atomic import replaced_folder
from expresser.checkpoint import locate
from expresser.errors import InputError
from expresser.record import canonical_json
from translate.bridge_words import taken_words
from translate.feed import Input, Inputs
from translate.preprocess import AtacInput, ProteinInput, RnaInput
from translate.registry import SYSTEMS
from translate.study import Modality
from translate.system import System

FILES = ("config.json", "model.safetensors", "inputs.json", "inputs.safetensors", "run.json", "README.md")
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
    try:
        config = json.loads((folder / "config.json").read_text())
        settings = json.loads((folder / "inputs.json").read_text())
        run = json.loads((folder / "run.json").read_text())
        arrays = load_file(folder / "inputs.safetensors")
        name, options = config["system"], config["config"]
    except (ValueError, OSError, KeyError, TypeError, SafetensorError) as error:
        raise InputError(
            f"{folder}: damaged, or not a translator's folder ({type(error).__name__}: {error}). Copy it again."
        ) from error
    if name not in SYSTEMS:
        raise InputError(f"{folder}: system {name!r}; this version has {', '.join(SYSTEMS)}. Update expresser.")
    kind = SYSTEMS[name]
    inputs: dict[Modality, Input] = {}
    for modality in settings:
        if modality not in _KINDS:
            raise InputError(f"{folder / 'inputs.json'}: modality {modality!r}; known are {', '.join(_KINDS)}.")
        own = {k.removeprefix(f"{modality}."): v for k, v in arrays.items() if k.startswith(f"{modality}.")}
        try:
            inputs[modality] = _KINDS[modality].restored(own, settings[modality])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{folder / 'inputs.json'}: damaged ({type(error).__name__}: {error}).") from error
    chosen = from_plain(kind.config_class, options, where=str(folder / "config.json"))
    try:
        with torch.random.fork_rng(devices=[]):
            system = kind(chosen, inputs)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: config.json and inputs.json make no {name} ({type(error).__name__}: {error}). Copy it again."
        ) from error
    load_weights(system, folder / "model.safetensors")
    return name, system.eval().requires_grad_(False), inputs, run


def load_weights(system: System, path: Path) -> None:
    """Every weight, checked by name and shape before any is read."""
    expected = {key: list(value.shape) for key, value in system.state_dict().items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
        wrong = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if wrong:
            shown = ", ".join(f"{key} {found.get(key, 'absent')} for {expected.get(key, 'none')}" for key in wrong[:3])
            raise InputError(f"{path}: {len(wrong)} of {len(expected)} weights are not this configuration's ({shown}).")
        system.load_state_dict(load_tensors(path))
    except SafetensorError as error:
        raise InputError(f"{path}: cut short or altered ({error}). Copy it again.") from error


def from_plain(kind: type[Any], plain: Mapping[str, Any], *, where: str) -> Any:
    """A dataclass from what JSON made of it: nested dataclasses and tuples are restored, unknown names refused."""
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(plain) - names):
        raise InputError(f"{where}: {kind.__name__} has no {', '.join(unknown)}; it has {', '.join(sorted(names))}.")
    return kind(**{name: _restored(hints[name], value, where) for name, value in plain.items()})


def _restored(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_plain(typing.cast(type[Any], hint), value, where=where)
    origin = typing.get_origin(hint)
    if origin is types.UnionType and value is not None:
        return next((_restored(h, value, where) for h in typing.get_args(hint) if dataclasses.is_dataclass(h)), value)
    return tuple(value) if isinstance(value, list) and origin is tuple else value


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
