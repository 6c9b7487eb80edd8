"""What a run leaves for programs and for whoever repeats it: `metrics.json`, and where its numbers come from."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser import __version__
from expresser.atomic import write_text
from expresser.errors import InputError
from expresser.invocation import invocation
from expresser.readable import Number

_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "anndata", "scanpy", "scikit-learn", "scipy", "numpy")
VERSIONED = ("expresser", "python", *_PACKAGES)


def provenance(
    command: str | None = None, seed: int | None = None, *, hashed: bool = True, **more: Any
) -> dict[str, Any]:
    """What a reader, and `expresser repeat`, need to run this again: command, seed, UTC time, machine, versions, and `more`.

    command: None takes this process's own command line. `invocation` holds the same as data, with the content of what it read,
    hashed: see `expresser.invocation`. Packages that are not installed have version None.
    """
    import torch  # here, since reading or writing metrics should not cost its seconds of import

    if command is None:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    versions: dict[str, str | None] = {"expresser": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    machine = {
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    told = {"command": command, "seed": seed, "time_utc": now, **more}
    return told | {"invocation": invocation(hashed=hashed), "machine": machine, "versions": versions}


def leave_record(folder: Path, made: str, *, seed: int | None = None, part: Path | None = None, **more: Any) -> None:
    """``run.json`` in a folder of data that a command made ("corpus build", "simulate rna").

    Where another command has left its own there, as several simulations in one folder do, it is named after this one.
    part: the folder that is filled in the place of `folder` (`expresser.atomic.replaced_together`).
    """
    path = folder / "run.json"
    if path.is_file():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8")).get("made") != made
        except (ValueError, AttributeError):
            theirs = True
        if theirs:
            path = folder / f"run_{made.replace(' ', '_')}.json"
    write_metrics(
        (part or folder) / path.name, {"made": made, "seed": seed, **more, "provenance": provenance(seed=seed)}
    )


def storable(found: Mapping[str, Any]) -> dict[str, Any]:
    """What `provenance` returned as `uns` of an .h5ad file can hold it: nothing is absent, the invocation is JSON text."""
    plain = {key: value for key, value in plain_json(found).items() if key != "invocation"}
    if found.get("invocation") is not None:
        plain["invocation"] = json.dumps(found["invocation"], sort_keys=True)
    return _present(plain)


def _present(value: Any) -> Any:
    return {k: _present(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def write_metrics(path: str | Path, mapping: Mapping[str, Any]) -> Path:
    """Write `metrics.json`: sorted keys, numpy scalars and arrays as JSON numbers and lists, atomically.

    NaN and the infinities, which JSON lacks, become null. Raises InputError naming the key of a value JSON cannot hold.
    """
    return write_text(path, canonical_json(mapping))


def canonical_json(mapping: Mapping[str, Any]) -> str:
    """The mapping as text, the same for equal content: keys sorted, two blanks of indent, a newline at the end."""
    return json.dumps(plain_json(mapping), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def plain_json(value: Any, where: str = "") -> Any:
    """`value` in JSON's own types, keys in their order; `where` is the dotted key that an error names."""
    if isinstance(value, Mapping):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise InputError(
                f"JSON keys are text, but {where or 'the mapping'} has the key {strange[0]!r}. Use str(key)."
            )
        return {str(k): plain_json(v, f"{where}.{k}".lstrip(".")) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, np.ndarray):
        return plain_json(value.tolist(), where)
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str | os.PathLike):
        return str(value)
    if isinstance(value, datetime.date):
        return value.isoformat()
    raise InputError(
        f"JSON holds numbers, text, lists and mappings, but {where or 'the value'} is a {type(value).__name__}. "
        "Turn it into one of those first."
    )


def frame_from_metrics(metrics: Mapping[str, Mapping[str, Number | None]]) -> pd.DataFrame:
    """`{method: {metric: value}}` as a frame: a row per method, a column per metric, both in order of appearance.

    What a method lacks, or has as None, is NaN; a column of whole numbers stays whole where none is missing.
    """
    columns = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    frame = pd.DataFrame(index=pd.Index(list(metrics), name="method", dtype=object))
    for column in columns:
        cells = [scores.get(column) for scores in metrics.values()]
        whole = all(isinstance(v, int | np.integer) for v in cells)
        frame[column] = cells if whole else [math.nan if v is None else float(v) for v in cells]
    return frame
