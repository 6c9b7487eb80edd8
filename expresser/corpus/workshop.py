"""The folder a corpus is made in: it outlives a killed process, belongs to one at a time, and is gone when the work is done."""

import json
import logging
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expresser.corpus.manifest import canonical_json
from expresser.corpus.staging import NO_ROOM, Staging, make_parents, no_room
from expresser.errors import InputError

log = logging.getLogger(__name__)

_JOURNAL, _LOCK, _PRODUCT = "journal.json", "lock", "corpus"


class Unfinished(InputError):
    """Work that stopped for a reason outside of its input: what is done is kept, and the same command goes on."""


@dataclass
class Workshop(Staging):
    """`folder` holds what is in work and the records of what is done; `product` becomes the corpus, or files of it.

    A record is written when what it describes is complete, by a rename, so that one that can be read can be believed. That holds
    for a killed process, not for a machine that lost power with writes in its cache.
    """

    @property
    def product(self) -> Path:
        return self.folder / _PRODUCT

    def record(self, name: str, values: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
        """Note that `name` is done: plain values, and arrays beside them."""
        record(self.folder, name, values, arrays)

    def recorded(self, name: str) -> dict[str, Any] | None:
        """The values noted under `name`; None where nothing was."""
        return recorded(self.folder, name)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays noted under `name`."""
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as held:
            return {key: held[key] for key in held}

    def begin(self, job: dict[str, Any]) -> None:
        """Make room for `job` (plain values: the inputs and all that decides the result): another one's leavings go."""
        there = self.recorded("journal")
        if there is not None and canonical_json(there) == canonical_json(job):
            log.info("%s: going on with what an earlier process began", self.folder)
        else:
            if there is not None:
                log.warning("%s: left by a build of other inputs or arguments; its work is discarded", self.folder)
            self.begin_anew(job)
        self.product.mkdir(exist_ok=True)

    def begin_anew(self, job: dict[str, Any]) -> None:
        """Forget what was done."""
        _empty(self.folder)
        self.record("journal", job)
        self.product.mkdir()

    def deliver(self, out: Path) -> None:
        """The product takes the place `out`, which is absent or an empty folder."""
        for entry in self.product.glob(".*"):  # what a killed process was still writing
            entry.unlink()
        try:
            self.product.rename(out)
        except OSError as error:
            raise InputError(
                f"{out}: the finished folder could not be moved here ({error.strerror}): something else was put there "
                "meanwhile, or it is a mount point. Name a folder that does not exist yet."
            ) from error


def record(folder: Path, name: str, values: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
    """See `Workshop.record`; workers have the folder alone."""
    if arrays is not None:
        part = folder / f"{name}.{os.getpid()}.npz"
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(folder / f"{name}.npz")
    part = folder / f"{name}.{os.getpid()}.json"
    part.write_bytes(canonical_json(values))
    part.replace(folder / f"{name}.json")


def recorded(folder: Path, name: str) -> dict[str, Any] | None:
    """See `Workshop.recorded`."""
    try:
        return json.loads((folder / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return None


def workshop_of(out: Path, verb: str) -> Path:
    """Where the corpus `out` is in work."""
    return out.parent / f".{out.name}.{verb}"


@contextmanager
def workshop(out: Path, verb: str = "building") -> Iterator[Workshop]:
    """The folder `.NAME.building` beside `out`, made with missing parents or found as an earlier process left it.

    It is gone when the block ends well, and after an exception that says that going on is of no use: bad input, a full disk (raised
    as InputError with what was written, needed and is free), an error in the program; so are the parents made for it. It stays,
    where anything was recorded, after KeyboardInterrupt, SystemExit and `Unfinished`, and of course after SIGKILL.
    A second process that asks for it is refused with InputError while the first lives: the lock is the kernel's and dies with it.
    """
    made = make_parents(out)
    shop = Workshop(workshop_of(out, verb))
    try:
        shop.folder.mkdir(exist_ok=True)
    except OSError as error:
        for parent in made:
            parent.rmdir()
        raise InputError(f"{out.parent}: cannot write here ({error.strerror}). Choose another folder.") from error
    lock = _lock(shop.folder, out)
    try:
        try:
            yield shop
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise InputError(no_room(out, error, shop)) from error
        shutil.rmtree(shop.folder, ignore_errors=True)
    except BaseException as error:
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit | Unfinished)
        if interrupted and any(any(shop.folder.glob(f"{done}-*.json")) for done in ("packed", "source")):
            log.warning("%s: what is done is kept in %s: the same command goes on from there", out, shop.folder)
        else:
            shutil.rmtree(shop.folder, ignore_errors=True)
            for parent in made:
                parent.rmdir()
        raise
    finally:
        os.close(lock)


def sweep(out: Path, verb: str = "building") -> None:
    """Remove the workshop of a corpus that is complete: its maker was killed between the last two steps."""
    folder = workshop_of(out, verb)
    if folder.exists():
        lock = _lock(folder, out)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _lock(folder: Path, out: Path) -> int:
    """An open file with the lock; InputError where a living process has it."""
    path = folder / _LOCK
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(file, 200, 0).decode(errors="replace").strip() or "another process"
        os.close(file)
        raise InputError(
            f"{out}: {holder} is at work on it (lock: {path}). Wait until it is done, stop it, or name another folder."
        ) from error
    except (ImportError, OSError) as error:  # no such lock on this system, or not on this file system
        log.warning("%s: cannot be locked (%s): see to it that no two processes build it at once", path, error)
    os.truncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.name == _LOCK:
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
