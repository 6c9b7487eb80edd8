"""A folder that appears whole or not at all: it is filled beside its place and renamed when complete."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expresser.atomic import flush, flush_all, remove_folder
from expresser.errors import InputError
from expresser.one_writer import one_writer

NO_ROOM = {number for name in ("ENOSPC", "EDQUOT", "EFBIG") if (number := getattr(errno, name, None)) is not None}


@dataclass
class Staging:
    """The folder to fill; `needed` is what it takes in bytes when fullest, once the filler can tell."""

    folder: Path
    needed: int | None = None


def bytes_text(count: int) -> str:
    """1_234_567 -> "1.2 MB" (powers of ten, as disks are sold)."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


@contextmanager
def staged(out: Path) -> Iterator[Staging]:
    """Fill the yielded folder; it becomes `out` (absent or an empty folder) when the block ends without an exception.

    After any exception, KeyboardInterrupt included, the folder and the parents made for it are gone and `out` is as it
    was. A full disk, quota or file size limit is raised as InputError with what was written, needed and is free. Only a
    killed process leaves a folder, `.NAME.making` beside `out`, which the next call for `out` removes. A second process that
    makes `out` is refused with InputError.
    """
    with one_writer(out):
        stage = Staging(make_beside(out, "making"))
        try:
            try:
                yield stage
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise InputError(no_room(out, error, stage)) from error
            deliver(stage.folder, out)
        except BaseException:
            shutil.rmtree(stage.folder, ignore_errors=True)
            raise


def make_beside(out: Path, verb: str, *, anew: bool = True) -> Path:
    """The folder `.NAME.VERB` beside `out`, empty where `anew`; to be called by the one writer of `out`."""
    folder = out.parent / f".{out.name}.{verb}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be created ({error.strerror}). Choose another folder.") from error
    try:
        if anew and folder.exists():
            remove_folder(folder)
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot write here ({error.strerror}). Choose another folder.") from error
    return folder


def deliver(folder: Path, out: Path) -> None:
    """The finished folder takes the place `out`, which is absent or an empty folder, when all of it is on the disk."""
    flush_all(folder)
    try:
        folder.rename(out)
    except OSError as error:
        raise InputError(
            f"{out}: the finished folder could not be moved here ({error.strerror}): something else was put there "
            "meanwhile, or it is a mount point. Name a folder that does not exist yet."
        ) from error
    flush(out.parent)


def no_room(out: Path, error: OSError, stage: Staging) -> str:
    """What to tell of a disk, quota or limit that is full."""
    written = sum(entry.stat().st_size for entry in stage.folder.rglob("*") if entry.is_file())
    free = shutil.disk_usage(out.parent).free + written
    want = "how much is needed is not known yet"
    if stage.needed is not None:
        want = f"about {bytes_text(stage.needed)} are needed while building"
    way = (
        "Raise the limit on file sizes (ulimit -f)."
        if error.errno == errno.EFBIG
        else "Make room, or build on another disk."
    )
    return (
        f"{out}: {os.strerror(error.errno or 0)} after {bytes_text(written)} were written; {want}, "
        f"{bytes_text(free)} are free on this disk without them. Nothing was left behind. {way}"
    )
