"""Files and folders that appear whole or not at all: to other processes, after a kill, after a loss of power.

What is new is filled in a hidden folder ``.NAME.….part`` beside its place, written through to the disk, and takes its place in one
step of the file system. The hidden folder is locked by its maker as long as that lives; one whose maker was killed is removed by
the next writer of the same name, and by `sweep`.
"""

import ctypes
import errno
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # no such locks on this system: nothing is swept
    fcntl = None  # type: ignore[assignment]

_PART, _OLD, _LOCK = ".part", ".old", ".lock"
_OURS = re.compile(r"\..*\.[a-z0-9_]{8}\.part", re.DOTALL)  # a hidden folder, as `tempfile` names it
_LONGEST = 180  # bytes of a name that stand in the hidden folder's name; a file system takes 255 in all


@contextmanager
def replaced(path: str | Path) -> Iterator[Path]:
    """A file to write to, of the same name elsewhere; it takes its place when the block ends well and is gone when it does not."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(path) as place:
        part = place / path.name
        yield part
        flush(part)
        part.replace(path)
        flush(path.parent)


@contextmanager
def replaced_folder(folder: str | Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well: at each moment there is the old one or the new one.

    Where the file system cannot exchange two folders (other than Linux and macOS, some network file systems) the old one is moved
    away first. A process killed between these two steps leaves neither, and the next writer, or `sweep`, puts the old one back.
    """
    folder = Path(os.path.realpath(folder))  # not the link to it, which would be replaced by a folder
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _workplace(folder) as place:
        new = place / folder.name
        new.mkdir()
        mode = new.stat().st_mode & 0o7777
        yield new
        flush_all(new)
        for path in [*new.rglob("*"), new]:
            # What libraries write may be the owner's alone; what is finished can be read by whoever the umask lets.
            if not path.is_symlink():
                path.chmod(mode if path.is_dir() else mode & 0o666)
        _put(new, folder, aside=place / f"{folder.name}{_OLD}")
        flush(folder.parent)


@contextmanager
def replaced_together(folder: str | Path, *, last: str) -> Iterator[Path]:
    """A folder for files, and folders of files, that belong together; they move into `folder` when all are on the disk.

    No file system moves several of them in one step. So the old file `last` goes first and the new one comes last: where it is, the
    others are those that belong to it. A process killed in the few steps between leaves a folder without it, and the same call
    makes it whole.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _workplace(folder / last) as place:
        new = place / "files"
        new.mkdir()
        yield new
        flush_all(new)
        files = sorted(new.iterdir(), key=lambda path: (path.name == last, path.name))
        if len(files) > 1:
            (folder / last).unlink(missing_ok=True)
            flush(folder)
        for path in files:
            if path.is_dir():
                _put(path, folder / path.name, aside=place / f"{path.name}{_OLD}")
            else:
                path.replace(folder / path.name)
        flush(folder)


def remove_folder(folder: str | Path) -> None:
    """Remove a folder so that none that is half gone is ever seen under its name."""
    folder = Path(folder)
    with _workplace(folder) as place:
        folder.rename(place / folder.name)


def write_text(path: str | Path, text: str) -> Path:
    """A text file, whole or not at all."""
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def sweep(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed writers left in `folder`, of one name or of all; an old folder that was moved away is put back.

    What a living process is filling stays; so does all where the file system knows no locks.
    """
    begin = "." if name is None else _begin(name)
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            if entry.name.startswith(begin) and _is_ours(entry):
                place = Path(entry.path)
                with suppress(OSError):
                    place.rmdir()  # one whose maker had not come to lock it; if it lives, it makes another
                with suppress(OSError):
                    if (lock := _locked(place)) is not None:
                        _clear(place)
                        os.close(lock)


def is_empty(folder: str | Path) -> bool:
    """Whether a folder holds nothing but what killed writers left, which is removed, or what living ones are at."""
    sweep(folder)
    with os.scandir(folder) as entries:
        return all(entry.name == _LOCK or _is_ours(entry) for entry in entries)


def _is_ours(entry: os.DirEntry[str]) -> bool:
    return _OURS.fullmatch(entry.name) is not None and entry.is_dir(follow_symlinks=False)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if not path.is_dir():  # which not every system lets be opened, or flushed
            raise


def flush_all(folder: Path) -> None:
    """Wait until all that is in a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        if not path.is_symlink():
            flush(path)


def _begin(name: str) -> str:
    return f".{os.fsdecode(os.fsencode(name)[:_LONGEST])}."


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A new hidden folder beside `target`, locked while the block runs and gone after it."""
    sweep(target.parent, target.name)
    place, lock = _begun(target)
    try:
        yield place
    finally:
        _clear(place)
        _closed(lock)


def _begun(target: Path) -> tuple[Path, int | None]:
    while True:
        place = Path(tempfile.mkdtemp(prefix=_begin(target.name), suffix=_PART, dir=target.parent))
        with suppress(FileNotFoundError, BlockingIOError):
            lock = _locked(place)
            if (place / _LOCK).exists():
                return place, lock
            _closed(lock)  # swept, before it had its lock, by a writer that took it for a dead one's


def _locked(place: Path) -> int | None:
    """The open lock of a hidden folder; None where there are no locks, BlockingIOError where another process has it.

    A file, as NFS locks no folder.
    """
    handle = os.open(place / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is None:
            raise OSError("no locks")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle


def _closed(lock: int | None) -> None:
    if lock is not None:
        os.close(lock)


def _clear(place: Path) -> None:
    with suppress(OSError):
        for old in place.glob(f"*{_OLD}"):
            target = place.parent / old.name.removesuffix(_OLD)
            if not target.exists():
                old.rename(target)
    shutil.rmtree(place, ignore_errors=True)


def _put(new: Path, folder: Path, *, aside: Path) -> None:
    """`new` becomes `folder`; what was there goes to the place of `new`, or to `aside`."""
    if not folder.exists():
        new.rename(folder)
    elif not _exchanged(new, folder):
        folder.rename(aside)
        new.rename(folder)


def _exchanged(a: Path, b: Path) -> bool:
    """Whether two folders could change places in one step."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if platform.system() == "Darwin":
            failed = libc.renamex_np(os.fsencode(a), os.fsencode(b), 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD
            failed = libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), 2)  # RENAME_EXCHANGE
    except (OSError, AttributeError, TypeError):  # no such library or function on this system
        return False
    if not failed:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(b))
