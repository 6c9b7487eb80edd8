"""One process at a time writes an output: a second one is told which process does, before it has read or computed anything.

The lock is the kernel's (``flock`` on ``.NAME.lock`` beside the output), so it dies with its process however that ends; what the
process forked does not keep it. On network file systems it holds between machines where the server keeps locks (NFS 4, NFS 3 with
lockd, Lustre mounted with ``flock``, most parallel file systems); mounted without (``nolock``, ``local_lock``, Lustre's
``localflock``) it holds within one machine. Where there is an output and no lock can be had, a warning says so and nothing is
locked. A link, or a file that is no lock, under the lock's name is left as it is.
"""

import datetime
import errno
import functools
import hashlib
import inspect
import logging
import os
import shlex
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import ParamSpec, TypeVar

from expresser.errors import InputError

try:
    import fcntl
except ImportError:  # no such locks on this system
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_BEGIN = "process "  # of what a lock's file says
_TRIES = 1000  # where a file has no number that stays, each finds another file
_LONGEST = 200  # bytes of an output's name that stand in its lock's
_held: dict[Path, tuple[int, int | None]] = {}  # by this process: the thread, and the open lock


def _hold_nothing() -> None:
    """In what this process forked: a lock open there would outlive its holder."""
    for _, lock in _held.values():
        if lock is not None:
            os.close(lock)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_hold_nothing)


@contextmanager
def one_writer(out: str | Path) -> Iterator[None]:
    """Hold the file or folder `out`, which need not exist, while the block runs; what the block calls may hold it again.

    Raises InputError, naming the process and the machine, where another process (or another thread) holds it.
    """
    out = Path(os.path.realpath(os.path.expanduser(out)))
    process, thread = os.getpid(), threading.get_ident()
    if out in _held and _held[out][0] == thread:
        yield
        return
    made = _make_parents(out)
    path, lock = _taken(out)
    _held[out] = thread, lock
    try:
        yield
    finally:
        if os.getpid() != process:  # forked, and come out of the block: the lock is its parent's
            lock, made = None, []
        _held.pop(out, None)
        if lock is not None:
            with suppress(OSError):
                path.unlink()  # while it is held: whoever waits for this very file sees that it is gone
            os.close(lock)
        for parent in made:
            with suppress(OSError):  # not empty: the output is in it
                parent.rmdir()


def one_writer_of_out(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Holds what the function's argument `out` names, where it names something, while the function runs."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def holding(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        out = given.arguments["out"]
        if out is None:
            return function(*args, **kwargs)
        with one_writer(out):
            return function(*args, **kwargs)

    return holding


def _make_parents(out: Path) -> list[Path]:
    """Those that were missing, innermost first; none where they cannot be made, which the writer will say in its own words."""
    missing = [parent for parent in out.parents if not parent.exists()]
    with suppress(OSError):
        out.parent.mkdir(parents=True, exist_ok=True)
    return missing


def _taken(out: Path) -> tuple[Path, int | None]:
    """The lock's file, and it opened; None where there is no lock to be had."""
    name = out.name if len(os.fsencode(out.name)) <= _LONGEST else hashlib.sha256(os.fsencode(out.name)).hexdigest()
    refused: Exception | str = "its lock does not stay one file"
    # Inside where nothing can be written beside: the folder is a mount point, say.
    for path in (out.parent / f".{name}.lock", out / ".lock"):
        for _ in range(_TRIES):
            try:
                lock = _opened(path)
            except OSError as error:
                refused = error
                break
            if not _lock(lock, path, out):
                return path, lock
            if _is_still(path, lock):
                with suppress(OSError):
                    os.truncate(lock, 0)
                    os.pwrite(lock, _words().encode(errors="replace"), 0)
                return path, lock
            os.close(lock)  # its holder was done, and removed it, between these steps
    if out.exists():
        log.warning("%s: cannot be locked (%s): see to it that no two processes write it at once", out, refused)
    return out, None


def _opened(path: Path) -> int:
    """The lock's file; OSError for what is none: nothing that is not ours is followed, written or removed."""
    plain = os.O_NOFOLLOW | os.O_NONBLOCK if hasattr(os, "O_NOFOLLOW") else 0
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | plain, 0o644)
    except PermissionError:
        lock = os.open(path, os.O_RDONLY | plain)  # another user's
    try:
        ours = stat.S_ISREG(os.fstat(lock).st_mode) and os.read(lock, len(_BEGIN)) in (b"", _BEGIN.encode())
    except OSError:
        ours = False
    if not ours:
        os.close(lock)
        raise FileExistsError(errno.EEXIST, "is there, and no lock", str(path))
    return lock


def _lock(lock: int, path: Path, out: Path) -> bool:
    """Whether the open file is locked now; InputError where another process has it."""
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 400, 0).decode(errors="replace").strip() or "another process"
        os.close(lock)
        raise InputError(
            f"{out}: {holder} is at work on it (lock: {path}). Wait until it is done, stop it, or name another place."
        ) from error
    except OSError as error:
        log.warning("%s: cannot be locked (%s): see to it that no two processes write it at once", path, error)
        return False
    return True


def _is_still(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(lock))
    except OSError:
        return False


def _words() -> str:
    since = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
    command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:200].replace("\n", " ")
    return f"{_BEGIN}{os.getpid()} on {socket.gethostname()} ({command}, since {since})\n"
