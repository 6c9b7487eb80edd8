"""What a file or folder holds, as one hash: of files, of corpora by their id, of models by what decides their answers."""

import hashlib
import json
import os
import time
from pathlib import Path

from expresser.errors import InputError

_SETTLED = 2.0  # seconds after which a file's time of change would show a further change
_ABOUT = ("README.md", "run.json")  # of a model: what is said of it, times included, not what it answers
_known: dict[tuple[str, int, int, int], str] = {}


def content_sha256(path: Path) -> str:
    """sha256 of a file; of a corpus its id; of a folder its files with their names, sorted.

    Of a run that has a finished model, and of a model, only what decides its answers counts: neither log nor report, nor the
    record and the card, which say when it was made. A large file is read once by a process, as long as it does not change.

    Raises
    ------
    InputError
        Where there is neither file nor folder.
    """
    if path.is_file():
        return _of_file(path)
    if not path.is_dir():
        raise InputError(f"{path}: there is no such file or folder.")
    root = path
    about: tuple[str, ...] = ()
    if not (path / "config.json").is_file() and (path / "model" / "config.json").is_file():
        root = path / "model"
    if (root / "config.json").is_file():
        about = _ABOUT
    # A model's files are what it is, whatever a manifest beside them claims.
    elif not (path / "head.json").is_file() and (found := _corpus_id(path)) is not None:
        return found
    digest = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.is_file()):
        name = file.relative_to(root).as_posix()
        if name not in about and not name.startswith("state/"):
            digest.update(f"{name}\0{_of_file(file)}\0".encode())
    return digest.hexdigest()


def note_sha256(path: Path, digest: str) -> None:
    """The sha256 of a file that was just read anyway."""
    stat = path.stat()
    if time.time() - stat.st_mtime > _SETTLED:
        _known[_key(path, stat)] = digest


def _of_file(path: Path) -> str:
    if (found := _known.get(_key(path, path.stat()))) is not None:
        return found
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    note_sha256(path, found)
    return found


def _key(path: Path, stat: os.stat_result) -> tuple[str, int, int, int]:
    return str(path.resolve()), stat.st_ino, stat.st_size, stat.st_mtime_ns


def _corpus_id(folder: Path) -> str | None:
    """What the manifest of a corpus says, which its readers prove; None where the folder is no corpus."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    found = manifest.get("corpus_id") if isinstance(manifest, dict) else None
    return found if isinstance(found, str) else None
