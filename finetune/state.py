"""Finished parts of a long comparison, kept on disk so that a run that was interrupted goes on where it stopped."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from scipy import sparse

from expresser.atomic import is_empty, remove_folder, replaced
from expresser.errors import InputError

_UNSAFE = str.maketrans(dict.fromkeys("/\\ :", "_"))


@dataclass(frozen=True, eq=False)
class Result:
    """What one part of the comparison found: plain JSON facts (numbers may be NaN), and arrays by name."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


class Store:
    """Results by name, under ``FOLDER/state/HASH``, the hash being that of inputs and options.

    A result is read back only by a run of the same inputs and options; one of others begins anew beside it. Without a
    folder nothing is kept.
    """

    def __init__(self, out: Path | None, key: Mapping[str, Any] | None) -> None:
        text = json.dumps(key, sort_keys=True)
        self.found = 0  # results that an interrupted run had left
        self._folder = None if out is None else out / "state" / hashlib.sha256(text.encode()).hexdigest()[:16]

    def result(self, name: str, compute: Callable[[], dict[str, Result]]) -> dict[str, Result]:
        """What an earlier run found under this name, else what `compute` finds now; either way by row of the table."""
        if self._folder is None:
            return compute()
        path = self._folder / f"{name.translate(_UNSAFE)}.safetensors"
        found = _read(path) if path.is_file() else None
        if found is None:
            found = compute()
            _write(path, found)
        else:
            self.found += 1
        return found

    def clear(self) -> None:
        """Remove what is kept: the comparison is finished, and its metrics are written."""
        if self._folder is None or not self._folder.parent.is_dir():
            return
        if self._folder.is_dir():
            remove_folder(self._folder)
        if is_empty(self._folder.parent):
            with suppress(OSError):
                self._folder.parent.rmdir()


def check_folder(out: Path, *, what: str, task: str | None, files: Collection[str]) -> None:
    """Raise InputError for a folder that holds anything but `files` and what `task` (of its metrics.json) left there."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file. Choose a folder for --out.")
    if not out.is_dir():
        return
    strange = sorted(path.name for path in out.iterdir() if not path.name.startswith(".") and path.name not in files)
    metrics = out / "metrics.json"
    if not strange and metrics.is_file() and json.loads(metrics.read_text()).get("task") != task:
        strange = [metrics.name]
    if strange:
        raise InputError(f"{out}: exists and is not {what} (it holds {strange[0]!r}). Choose a new folder for --out.")


def counts_sha256(counts: sparse.csr_matrix) -> str:
    """Of a matrix: its shape, and where which counts are."""
    digest = hashlib.sha256(repr(counts.shape).encode())
    for part, kind in ((counts.indptr, "<i8"), (counts.indices, "<i8"), (counts.data, "<f8")):
        digest.update(part.astype(kind).tobytes())
    return digest.hexdigest()


def model_sha256(model: object) -> str | None:
    """Of a loaded checkpoint's weights: a path may hold another model tomorrow. None where there are no weights."""
    network = getattr(model, "model", None)
    if network is None:
        return None
    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(f"{name}{tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()


def _write(path: Path, found: Mapping[str, Result]) -> None:
    rows = list(found)
    arrays = {
        f"{i}/{name}": np.ascontiguousarray(values)
        for i, row in enumerate(rows)
        for name, values in found[row].arrays.items()
    }
    facts = json.dumps([[row, found[row].facts] for row in rows])
    with replaced(path) as part:
        save_file(arrays, part, metadata={"facts": facts})


def _read(path: Path) -> dict[str, Result] | None:
    try:
        with safe_open(path, "np") as file:
            rows = json.loads(file.metadata()["facts"])
            found = {row: Result(facts) for row, facts in rows}
            for key in file.keys():  # noqa: SIM118 (no mapping)
                number, name = key.split("/", 1)
                found[rows[int(number)][0]].arrays[name] = file.get_tensor(key)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None  # damaged: found anew
    return found
