"""What a command was told, as data: its words, where, with which threads, and the content of all that it was to read."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from expresser.contents import content_sha256
from expresser.errors import InputError

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
OUT = ("--out", "--output")
_words: ContextVar[tuple[str, ...] | None] = ContextVar("words", default=None)
_fetched: dict[str, Path] = {}


@contextmanager
def invoked(words: Sequence[str]) -> Iterator[None]:
    """While this command line runs, the records that it writes hold it."""
    token = _words.set(tuple(words))
    try:
        yield
    finally:
        _words.reset(token)


def note_fetched(name: str, folder: Path) -> None:
    """A model of the hub was found in this folder of its cache, whose name is the revision."""
    _fetched[name] = folder


def invocation(*, hashed: bool = True) -> dict[str, Any] | None:
    """The command line that runs, for its record; None where no command line does, as in a notebook.

    arguments: its words. folder: where relative paths begin. environment: numbers of threads, where they are set. processes:
    of a launcher. inputs: word → path and sha256 of its content (of the hub: revision), without what is to be written.

    hashed: False leaves the inputs out, where what they hold does not decide the result, or other processes say it.
    """
    words = _words.get()
    if words is None:
        return None
    return {
        "arguments": list(words),
        "folder": os.getcwd(),
        "environment": {name: os.environ[name] for name in THREADS if name in os.environ},
        "processes": _number("WORLD_SIZE", 1),
        "inputs": _inputs(words) if hashed and _number("RANK", 0) == 0 else {},
    }


def paths_in(words: Sequence[str]) -> list[str]:
    """Those of the words, and of what follows ``=`` in them, that may name something to read: neither options nor outputs."""
    found: dict[str, None] = {}
    for before, word in zip(["", *words], words):
        flag, equals, value = word.partition("=")
        if before in OUT or flag in OUT:
            continue
        if not word.startswith("-"):
            found[word] = None
        if equals and value:
            found[value] = None
    return list(found)


def _inputs(words: Sequence[str]) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for word in paths_in(words[1:]):
        try:
            path = Path(word)
            if path.exists():
                found[word] = {"path": str(path.absolute()), "sha256": content_sha256(path)}
            elif word in _fetched:
                found[word] = {"revision": _fetched[word].name, "sha256": content_sha256(_fetched[word])}
        except (OSError, ValueError, InputError):  # no path at all, or gone meanwhile: the command itself says so
            continue
    return found


def _number(name: str, otherwise: int) -> int:
    found = os.environ.get(name, "")
    return int(found) if found.isdecimal() else otherwise
