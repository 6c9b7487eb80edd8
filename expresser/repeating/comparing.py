"""Whether two results are the same: weights and predictions to the bit, numbers of metrics but for times and memory."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from expresser.errors import InputError
from expresser.foreign import shortened

# What a run says of its circumstances: clock, rates, memory, machine, and where things lay.
_CIRCUMSTANCE = re.compile(
    r"seconds|(^|_)(time|times|mb|gb|rss|mfu|created|mtime)(_|$)|_per_s$|wait_share|provenance|invocation|versions|machine|command"
)
_SAID = {"report.html", "README.md", "run.json"}  # about a run, its times included; what it found stands in other files
_MOST = 20


def differences(before: Path, now: Path, renamed: Mapping[str, str] | None = None) -> list[str]:
    """Where two results differ, a line each, 20 at most; none where they are the same.

    Parameters
    ----------
    before, now
        Two files or two folders of one command. Of folders every file counts but report, card and record, the state of what
        did not finish, and names that begin with a dot.
    renamed
        Text of `before` → what `now` says in its place, such as names of inputs that lie elsewhere.

    Raises
    ------
    InputError
        If one of them is missing.
    """
    for path in (before, now):
        if not path.exists():
            raise InputError(f"{path}: there is nothing to compare with.")
    found: list[str] = []
    for line in (
        _folders(before, now, dict(renamed or {})) if before.is_dir() else _files(before, now, dict(renamed or {}))
    ):
        found.append(line)
        if len(found) == _MOST:
            return [*found, "… and perhaps more"]
    return found


def _folders(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    old, new = _results(before), _results(now)
    for name in sorted(old.keys() | new.keys()):
        if name not in new or name not in old:
            yield f"{name}: only in {before if name in old else now}"
        else:
            yield from (f"{name}: {line}" for line in _files(old[name], new[name], renamed))


def _results(folder: Path) -> dict[str, Path]:
    found = {path.relative_to(folder): path for path in folder.rglob("*") if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if name.name not in _SAID and not any(part.startswith(".") or part == "state" for part in name.parts)
    }


def _files(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    if _same_bytes(before, now):
        return
    compare = _KINDS.get(before.suffix)
    if compare is None:
        yield f"{before.stat().st_size:,} bytes, now {now.stat().st_size:,}, and not the same"
        return
    try:
        yield from compare(before, now, renamed)
    except Exception as error:  # of a damaged file each library raises its own
        yield f"cannot be compared ({type(error).__name__}: {shortened(str(error), 200)})"


def _same_bytes(before: Path, now: Path) -> bool:
    if before.stat().st_size != now.stat().st_size:
        return False
    with before.open("rb") as old, now.open("rb") as new:
        while (a := old.read(1 << 20)) == (b := new.read(1 << 20)):
            if not a and not b:
                return True
    return False


# --- by the kind of file -------------------------------------------------------------------------------------------------------


def _json(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    yield from _values(json.loads(before.read_bytes()), json.loads(now.read_bytes()), "", renamed)


def _lines(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    rows = zip_longest(before.read_text().splitlines(), now.read_text().splitlines(), fillvalue="null")
    for number, (old, new) in enumerate(rows, 1):
        yield from _values(json.loads(old), json.loads(new), f"line {number}", renamed)


def _values(old: Any, new: Any, where: str, renamed: dict[str, str]) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({str(key) for key in (*old, *new)}):
            if not _CIRCUMSTANCE.search(key):
                yield from _values(old.get(key), new.get(key), f"{where}.{key}".lstrip("."), renamed)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, (one, other) in enumerate(zip(old, new)):
            yield from _values(one, other, f"{where}[{number}]", renamed)
    elif isinstance(old, str) and isinstance(new, str):
        if new not in (old, _said(old, renamed)):
            yield f"{where} was {shortened(old)}, is {shortened(new)}"
    elif old != new and not (isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new)):
        yield f"{where} was {shortened(old)}, is {shortened(new)}"


def _said(text: str, renamed: dict[str, str]) -> str:
    """What the text of then would be now; longer names first, as one may be the beginning of another."""
    if not renamed:
        return text
    names = sorted(renamed, key=len, reverse=True)
    whole = rf"(?<![\w.-])(?:{'|'.join(map(re.escape, names))})(?![\w-])"
    return re.sub(whole, lambda hit: renamed[hit[0]], text)


def _tensors(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    from safetensors import safe_open

    with safe_open(before, "pt") as old, safe_open(now, "pt") as new:
        names = set(old.keys()), set(new.keys())
        for name in sorted(names[0] | names[1]):
            if name not in names[0] or name not in names[1]:
                yield f"{name}: only in {before if name in names[0] else now}"
                continue
            one, other = (file.get_tensor(name) for file in (old, new))
            if one.dtype != other.dtype:
                yield f"{name}: {one.dtype}, now {other.dtype}"
            elif str(one.dtype) == "torch.bfloat16":  # which numpy lacks; float32 holds every one of its numbers
                yield from _arrays(name, one.float().numpy(), other.float().numpy())
            else:
                yield from _arrays(name, one.numpy(), other.numpy())


def _arrays(name: str, old: np.ndarray, new: np.ndarray) -> Iterator[str]:
    if old.shape != new.shape or old.dtype != new.dtype:
        yield f"{name}: {old.dtype}{list(old.shape)}, now {new.dtype}{list(new.shape)}"
        return
    numbers = old.dtype.kind in "fiub"
    same = (old == new) | ((old != old) & (new != new)) if numbers else old == new
    if not np.all(same):
        worst = (
            f", by {np.nanmax(np.abs(old.astype(np.float64) - new.astype(np.float64))):.3g} at most" if numbers else ""
        )
        yield f"{name}: {int(np.sum(~np.asarray(same))):,} of {old.size:,} values differ{worst}"


def _parquet(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    import pandas as pd

    yield from _frames("", pd.read_parquet(before), pd.read_parquet(now))


def _table(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    """Text for text, but for columns of times."""
    import pandas as pd

    old, new = (pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3) for path in (before, now))
    kept = [column for column in old.columns if not _CIRCUMSTANCE.search(column)]
    if list(old.columns) != list(new.columns):
        yield f"columns are {shortened(', '.join(new.columns))}, were {shortened(', '.join(old.columns))}"
    elif len(kept) == len(old.columns):
        yield f"{before.stat().st_size:,} bytes, now {now.stat().st_size:,}, and not the same"
    else:
        yield from _frames("", old[kept], new[kept])


def _frames(name: str, old: Any, new: Any) -> Iterator[str]:
    if list(old.columns) != list(new.columns) or not old.index.equals(new.index):
        yield f"{name} rows or columns are others ({old.shape}, now {new.shape})".lstrip()
        return
    for column in old.columns:
        if not old[column].equals(new[column]):
            yield f"{name} column {shortened(column)} differs".lstrip()


def _anndata(before: Path, now: Path, renamed: dict[str, str]) -> Iterator[str]:
    """Everything but `uns`, where the traces are, entry by entry; values as they are stored."""
    import h5py

    with h5py.File(before, "r") as old, h5py.File(now, "r") as new:
        held = _datasets(old), _datasets(new)
        for name in sorted(held[0].keys() | held[1].keys()):
            if name not in held[0] or name not in held[1]:
                yield f"{name}: only in {before if name in held[0] else now}"
            elif held[0][name].shape != held[1][name].shape or held[0][name].dtype != held[1][name].dtype:
                yield f"{name}: {held[0][name].shape}, now {held[1][name].shape}"
            else:
                yield from _arrays(name, *(np.asarray(one[()]) for one in (held[0][name], held[1][name])))


def _datasets(file: Any) -> dict[str, Any]:
    import h5py

    found: dict[str, Any] = {}

    def note(name: str, held: Any) -> None:
        if isinstance(held, h5py.Dataset) and not name.startswith("uns/expresser"):
            found[name] = held

    file.visititems(note)
    return found


_KINDS: dict[str, Callable[[Path, Path, dict[str, str]], Iterator[str]]] = {
    ".json": _json,
    ".jsonl": _lines,
    ".safetensors": _tensors,
    ".parquet": _parquet,
    ".h5ad": _anndata,
    ".tsv": _table,
}
