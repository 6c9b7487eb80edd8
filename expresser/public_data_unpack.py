"""Tar archives from elsewhere: looked through as a whole before anything is written, and plain files alone."""

import shutil
import tarfile
import zlib
from collections.abc import Collection
from gzip import BadGzipFile
from pathlib import Path, PurePosixPath

from expresser.atomic import replaced
from expresser.corpus.staging import bytes_text
from expresser.errors import InputError

MEMBERS = 100_000  # more than any archive of samples has


def is_archive(path: str | Path) -> bool:
    """Whether a name is that of an archive that `unpack` reads."""
    return str(path).endswith((".tar", ".tar.gz", ".tgz"))


def unpack(archive: Path, folder: Path, *, reserved: Collection[str] = ()) -> list[Path]:
    """The archive's files beneath `folder`, each whole or not at all; those that are there with their length are kept.

    Raises InputError, and writes nothing, where any member is no plain file or folder, would lie outside `folder`, stands
    twice or has one of the names `reserved` for other things of the folder; where the whole is larger than the free disk;
    or where the archive is damaged.
    """
    try:
        with tarfile.open(archive, "r:*") as tar:
            members = [member for member in _proven(tar, archive, reserved) if member.isfile()]
            paths = {member.name: folder.joinpath(*_parts(member.name)) for member in members}
            missing = [m for m in members if not paths[m.name].is_file() or paths[m.name].stat().st_size != m.size]
            needed, free = sum(member.size for member in missing), shutil.disk_usage(folder).free
            if needed > free:
                raise InputError(f"{archive}: unpacked it takes {bytes_text(needed)}, {bytes_text(free)} are free.")
            for member in missing:
                source = tar.extractfile(member)
                assert source is not None  # of a plain file it never is
                with replaced(paths[member.name]) as part, open(part, "wb") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
    except (tarfile.TarError, EOFError, zlib.error, BadGzipFile) as error:
        raise InputError(f"{archive}: is no whole archive ({error}). Delete it, and get it again.") from error
    return list(paths.values())


def _proven(tar: tarfile.TarFile, archive: Path, reserved: Collection[str]) -> list[tarfile.TarInfo]:
    found: dict[PurePosixPath, tarfile.TarInfo] = {}
    for member in tar:
        if not (member.isfile() or member.isdir()):
            raise InputError(f"{archive}: {member.name!r} in it is a link or a device. Nothing was unpacked.")
        parts = _parts(member.name)
        if (
            member.name.startswith(("/", "\\"))
            or ".." in parts
            or "\\" in member.name
            or ":" in member.name.split("/")[0]
        ):
            raise InputError(f"{archive}: {member.name!r} in it would lie outside the folder. Nothing was unpacked.")
        path = PurePosixPath(*parts)
        if member.isfile() and (not parts or path in found):
            raise InputError(f"{archive}: {member.name!r} stands twice in it, or has no name. Nothing was unpacked.")
        if any(part.startswith(".") for part in parts) and member.isfile():
            raise InputError(f"{archive}: {member.name!r} in it is a hidden file. Nothing was unpacked.")
        if path.as_posix() in reserved:
            raise InputError(
                f"{archive}: {member.name!r} in it would replace a file that is here. Nothing was unpacked."
            )
        found[path] = member
        if len(found) > MEMBERS:
            raise InputError(f"{archive}: has more than {MEMBERS:,} members. Nothing was unpacked.")
    return list(found.values())


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.split("/") if part not in ("", "."))
