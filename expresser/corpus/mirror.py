"""Mirror a corpus from elsewhere: files in parallel, each proven by its sha256, the manifest last."""

import hashlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from expresser.atomic import flush, is_empty, replaced
from expresser.corpus.manifest import MANIFEST, read_manifest, sha256_file
from expresser.corpus.places import Interrupted, Place, open_place
from expresser.corpus.staging import bytes_text
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out

PENDING = ".pulling.json"  # the manifest while its files come: a folder without manifest.json is no corpus
TRIES = 5
PAUSE_S = 1.0  # before the second try; doubled before each further one

Progress = Callable[[int, int], None]
_Answer = TypeVar("_Answer")


@one_writer_of_out
def pull_corpus(url: str, out: str | Path, *, threads: int = 8, progress: Progress | None = None) -> Corpus:
    """Download the corpus at `url` (see `open_place`) into the folder `out` and open it.

    A pull that was cut off, by a broken line or a killed process, is taken up by the same call: files whose checksum
    fits are kept and the others go on from their last byte. The manifest gets its name when all files are proven, so
    that a half-pulled folder is never taken for a corpus. Where `out` holds this corpus already nothing is downloaded.

    progress: called with (bytes there, bytes in all). Raises InputError: nothing at `url`, another format version, a
    file altered there or on the way, too little room, `out` taken by something else.
    """
    out = Path(out).expanduser().resolve()
    place = open_place(url)
    text = fetch_manifest(place)
    manifest = parse_manifest(text, place.url)
    if _is_there(out, manifest):
        return Corpus.open(out)
    entries = file_entries(manifest)
    _check_room(out, entries)
    with replaced(out / PENDING) as part:
        part.write_bytes(text)
    counter = Counter(sum(entry["bytes"] for entry in entries), progress)
    with ThreadPoolExecutor(max_workers=threads) as pool:
        # Largest first would end sooner; in order, an interrupted pull leaves whole shards from the start.
        waiting = [pool.submit(fetch_file, place, entry, out, counter) for entry in entries]
        try:
            for future in waiting:
                future.result()
        except BaseException:
            counter.stop()  # the other threads end at their next piece instead of their file's end
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    flush(out)
    os.replace(out / PENDING, out / MANIFEST)
    flush(out)
    return Corpus.open(out)


def fetch_manifest(place: Place) -> bytes:
    """The manifest's bytes as they are there; InputError also where the place cannot be reached."""
    try:
        return retried(lambda: b"".join(place.read(MANIFEST)))
    except Interrupted as error:
        raise InputError(f"{place.url}: cannot be reached ({error}). Try again later, or check the address.") from error


def parse_manifest(text: bytes, url: str) -> dict[str, Any]:
    """A manifest from elsewhere, checked as one on this disk is."""
    with tempfile.TemporaryDirectory(prefix="expresser-") as folder:
        (Path(folder) / MANIFEST).write_bytes(text)
        try:
            return read_manifest(Path(folder))
        except InputError as error:
            raise InputError(str(error).replace(folder, url)) from error


def file_entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """All files but the manifest, small ones first."""
    return [manifest["genes"], manifest["obs"], *manifest["shards"]]


class _Stopped(Exception):
    """Another file failed: this one's download ends too."""


class Counter:
    """Bytes that are there, counted by several threads, which it can also stop."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock, self._stopped = threading.Lock(), False

    def stop(self) -> None:
        """Make the next `add` of every thread raise."""
        self._stopped = True

    def add(self, count: int) -> None:
        """Count `count` bytes more (or fewer: those of a file that is begun again)."""
        if self._stopped:
            raise _Stopped
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress(self._done, self._total)


def fetch_file(place: Place, entry: dict[str, Any], folder: Path, counter: Counter) -> Path:
    """The file of `entry` in `folder`, downloaded unless it is there, and proven by its sha256.

    Bytes go to `.NAME.part`, which stays when the connection breaks and is gone on with.
    """
    path, part = folder / entry["file"], _part(folder, entry)
    if path.is_file() and path.stat().st_size == entry["bytes"] and sha256_file(path) == entry["sha256"]:
        counter.add(entry["bytes"])
        return path
    for begun in (part.is_file(), False):
        found = _download(place, entry, part, counter)
        if found == entry["sha256"]:
            os.replace(part, path)
            return path
        part.unlink()
        counter.add(-entry["bytes"])
        if not begun:
            break  # what was begun earlier may be at fault: once more from the start
    raise InputError(
        f"{place.url}/{entry['file']}: sha256 is {found[:12]}…, the manifest's is {entry['sha256'][:12]}…: the file was "
        "altered there or on the way, and was not kept. Pull again; if it happens again, push the corpus anew."
    )


def _download(place: Place, entry: dict[str, Any], part: Path, counter: Counter) -> str:
    """Complete the part file; returns its sha256."""
    if part.is_file() and part.stat().st_size > entry["bytes"]:
        part.unlink()
    digest = hashlib.sha256()
    with open(part, "ab") as sink:
        with open(part, "rb") as there:
            while piece := there.read(1 << 22):
                digest.update(piece)
                counter.add(len(piece))
        have = part.stat().st_size

        def more() -> None:
            nonlocal have
            if have < entry["bytes"]:
                for piece in place.read(entry["file"], have):
                    piece = piece[: entry["bytes"] - have]
                    sink.write(piece)
                    digest.update(piece)
                    have += len(piece)
                    counter.add(len(piece))
                    if have == entry["bytes"]:
                        return
                raise Interrupted(f"{have:,} of {entry['bytes']:,} bytes came")

        try:
            retried(more)
        except Interrupted as error:
            raise InputError(
                f"{place.url}/{entry['file']}: the download broke off {TRIES} times ({error}). What came is kept in "
                f"{part.parent}: the same command goes on from there."
            ) from error
        sink.flush()
        os.fsync(sink.fileno())
    return digest.hexdigest()


def retried(call: Callable[[], _Answer]) -> _Answer:
    """`call()`, again after a pause where it was interrupted, TRIES times in all."""
    for number in range(TRIES - 1):
        try:
            return call()
        except Interrupted:
            time.sleep(PAUSE_S * 2**number)
    return call()


def _part(folder: Path, entry: dict[str, Any]) -> Path:
    return folder / f".{entry['file']}.part"


def _is_there(out: Path, manifest: dict[str, Any]) -> bool:
    """Whether `out` holds this corpus, whole; InputError where anything else than a part of it is in the way."""
    if not out.exists() or (out.is_dir() and is_empty(out)):
        return False
    names = {entry.name for entry in out.iterdir()} if out.is_dir() else {out.name}
    if MANIFEST in names and out.is_dir():
        there = read_manifest(out)
        if there["corpus_id"] == manifest["corpus_id"]:
            return True
        raise InputError(
            f"{out}: already holds another corpus (id {there['corpus_id'][:12]}…, {manifest['corpus_id'][:12]}… was "
            "asked for). Nothing was changed: name another folder, or delete this one."
        )
    if PENDING in names and out.is_dir():
        begun = parse_manifest((out / PENDING).read_bytes(), str(out / PENDING))
        if begun["corpus_id"] == manifest["corpus_id"]:
            return False
        raise InputError(
            f"{out}: holds the beginning of another corpus (id {begun['corpus_id'][:12]}…; the one asked for is "
            f"{manifest['corpus_id'][:12]}…; a branch may have moved on). Delete the folder, or name another."
        )
    if names:
        raise InputError(
            f"{out}: is not empty (it holds {', '.join(sorted(names)[:5])}) and no begun pull. "
            "Nothing was changed: name a folder that does not exist yet."
        )
    return False


def _check_room(out: Path, entries: list[dict[str, Any]]) -> None:
    there = 0
    for entry in entries:
        for path in (out / entry["file"], _part(out, entry)):
            there += path.stat().st_size if path.is_file() else 0
    needed = sum(entry["bytes"] for entry in entries) - there
    parent = next(folder for folder in (out, *out.parents) if folder.exists())
    free = shutil.disk_usage(parent).free
    if needed > free:
        raise InputError(
            f"{out}: {bytes_text(needed)} are still to come, {bytes_text(free)} are free on this disk. Make room, pull "
            "to another disk, or read it with a bounded cache (expresser.corpus.remote.open_remote)."
        )
