"""The folder of a run: whose it is, and its log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expresser.atomic import flush, is_empty, sweep, write_text
from expresser.errors import InputError
from expresser.record import plain_json, write_metrics
from expresser.run_files import read_log


class Log:
    """``log.jsonl``: one JSON object a line; on resume, lines after the saved state are cut off.

    position: the field that says how far a line is, e.g. "cells_seen"; keep_until: the saved state's.
    """

    def __init__(self, path: Path, *, position: str, keep_until: int, active: bool) -> None:
        self.path, self.active = path, active
        self.entries: list[dict[str, Any]] = []
        if keep_until and path.exists():
            self.entries = [line for line in read_log(path) if line.get(position, 0) <= keep_until]
        self._written = len(self.entries)  # a full disk may leave lines behind, to be written when there is room
        if active:
            write_text(path, "".join(_line(entry) for entry in self.entries))
        self._size = path.stat().st_size if active else 0

    def write(self, entry: dict[str, Any]) -> str | None:
        """Append a line. Returns what the system said where it did not take it: the line then goes with the next one."""
        self.entries.append(entry)
        if not self.active:
            return None
        waiting = "".join(_line(one) for one in self.entries[self._written :]).encode()
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._size)  # part of a line that did not fit
                file.seek(self._size)
                file.write(waiting)
        except OSError as error:
            return f"{self.path}: {error.strerror or error}"
        self._written, self._size = len(self.entries), self._size + len(waiting)
        return None

    def flush(self) -> None:
        """Wait until the lines are on the disk: before a state is saved that they lead to."""
        if self.active:
            flush(self.path)

    def last(self, key: str) -> dict[str, float]:
        """The newest entry that has this key, or nothing."""
        return next((entry[key] for entry in reversed(self.entries) if key in entry), {})


def _line(entry: Mapping[str, Any]) -> str:
    """What is undefined is null: JSON has no NaN."""
    return json.dumps(plain_json(entry), allow_nan=False) + "\n"


def claim(
    out: Path,
    record: Mapping[str, Any],
    *,
    resume: bool,
    what: str,
    data: str,
    also: Sequence[str] = (),
    may_change: frozenset[str] = frozenset(),
) -> None:
    """Make ``out`` the folder of the run that `record` describes (its ``run.json``), or say why it cannot be.

    Parameters
    ----------
    what
        What kind of run, for messages: "a pretraining run".
    data
        The field of the record that identifies the data: a resumed run must have the same.
    also
        Further fields of the record that a resumed run must have as they were, beside ``config``.
    may_change
        Options under ``record["config"]``, dotted, that a resumed run may set anew.

    Raises
    ------
    InputError
        If the folder holds another run, or this one and `resume` was not asked for, or something else.
    """
    path = out / "run.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if not resume:
            raise InputError(f"{out}: holds a run already. Add --resume to go on with it, or choose another --out.")
        if before.get(data) != record[data]:
            raise InputError(
                f"{out}: this run began on {data} {str(before.get(data))[:12]}…, not on {str(record[data])[:12]}…. "
                "Resume with the same data, or choose another --out."
            )
        for folder in (out, out / "checkpoints"):  # left by a run that was killed while it saved
            sweep(folder)
        old, new = ({name: part.get(name) for name in also} | dict(part["config"]) for part in (before, record))
        if changed := _differences(old, new, may_change):
            raise InputError(
                f"{out}: this run began with another configuration ({'; '.join(changed[:5])}). "
                "Resume with the same options, or choose another --out."
            )
        return
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise InputError(f"{out}: exists and is not {what}. Choose a new folder for --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_metrics(path, record)
    except OSError as error:
        raise InputError(f"{out}: cannot be written to ({error.strerror or error}). Choose another --out.") from error


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], may_change: frozenset[str]) -> list[str]:
    # As JSON gives them back: tuples are lists there.
    old, new = flat(before), flat(json.loads(json.dumps(now)))
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in may_change and old.get(name) != new.get(name)
    ]


def flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found
