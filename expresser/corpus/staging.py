"""A folder that appears whole or not at all: it is filled beside its place and renamed when complete."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from expresser.errors import InputError

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
    killed process leaves a folder, `.NAME.building-…` beside `out`, which may be deleted.
    """
    made = make_parents(out)
    stage = Staging(out.parent / f".{out.name}.building-{uuid.uuid4().hex[:8]}")
    try:
        try:
            stage.folder.mkdir()
        except OSError as error:
            raise InputError(f"{out.parent}: cannot write here ({error.strerror}). Choose another folder.") from error
        try:
            yield stage
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            raise InputError(no_room(out, error, stage)) from error
        try:
            stage.folder.rename(out)
        except OSError as error:
            raise InputError(
                f"{out}: the finished folder could not be moved here ({error.strerror}): something else was put there "
                "meanwhile, or it is a mount point. Name a folder that does not exist yet."
            ) from error
    except BaseException:
        shutil.rmtree(stage.folder, ignore_errors=True)
        for parent in made:
            parent.rmdir()
        raise


def make_parents(out: Path) -> list[Path]:
    """Create the missing parents of `out`; returns those made, innermost first."""
    missing = []
    parent = out.parent
    while not parent.exists():
        missing.append(parent)
        parent = parent.parent
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out.parent}: cannot be created ({error.strerror}). Choose another folder.") from error
    return missing


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
