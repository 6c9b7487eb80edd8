"""Proof that a corpus is what was built: sha256 of every file, and the laws its rows must obey."""

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from expresser.corpus.history import leftovers
from expresser.corpus.labels import labels_sha256, read_labels
from expresser.corpus.manifest import features_of, read_manifest
from expresser.corpus.shards import ContentDigest, CountBatch, from_arrow, prove_plain
from expresser.corpus.source import Features
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.foreign import file_in
from expresser.genes import GeneVocab
from expresser.region_vocab import RegionVocab

THREADS = min(8, os.cpu_count() or 1)
PIECE_BYTES = 1 << 22

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Fault:
    """What is wrong with one file of a corpus (`file` is "" where it is about the corpus as a whole)."""

    file: str
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" if self.file else self.what


def verify_corpus(
    folder: str | Path, *, deep: bool = True, threads: int = THREADS, progress: Progress | None = None
) -> list[str]:
    """Raises InputError that lists every fault of a corpus, not only the first; see `find_faults`.

    Returns the names of files in its folder that are no part of it: an append that was killed left them, and the next append
    uses or removes them. They are no fault.
    """
    folder = Path(folder)
    faults = find_faults(folder, deep=deep, threads=threads, progress=progress)
    if not faults:
        return leftovers(folder, read_manifest(folder))
    n_files = len(_entries(read_manifest(folder)))
    damaged = len({fault.file for fault in faults if fault.file})
    head = f"{folder}: {damaged} of {n_files} files are not what was written" if damaged else f"{folder}"
    way = "Copy it again from where it is sound, or build the corpus again."
    if len(faults) == 1:
        raise InputError(f"{head}: {faults[0]}. {way}")
    listed = "\n".join(f"  {fault}" for fault in faults)
    raise InputError(f"{head}:\n{listed}\n{way}")


def find_faults(
    folder: Path, *, deep: bool = True, threads: int = THREADS, progress: Progress | None = None
) -> list[Fault]:
    """Everything that is wrong with a corpus; empty where it is whole.

    Always: sizes and sha256 of shards, obs and vocabulary, in `threads` threads (hashing lets go of the interpreter's
    lock). `deep`, where checksums fit: in each cell genes strictly rising and inside the vocabulary, no stored zero,
    total = sum of counts; each cell id once, with the source its obs row names; the digests of all rows, and of the labels of
    a split or subset, that `corpus_id` is made from. The first broken row of each law is named, shard by shard.

    progress: called with ("checksums", bytes, bytes in all) and ("rows", cells, cells in all). Memory: one record batch
    and 12 bytes a cell. InputError where there is no manifest that could be believed.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    entries = _entries(manifest)
    told = _Bytes(sum(entry["bytes"] for entry in entries), progress)
    with ThreadPoolExecutor(max_workers=max(1, threads)) as pool:
        found = list(pool.map(lambda entry: _check_file(folder, entry, told), entries))
    faults = [fault for fault in found if fault is not None]
    if not faults:
        faults = _check_vocabulary(folder, manifest)
    return faults if faults or not deep else list(_check_rows(folder, manifest, progress))


def _entries(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [manifest["genes"], manifest["obs"], *manifest["shards"]]


class _Bytes:
    """Bytes hashed so far by all threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._done, self._total, self._progress = 0, total, progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self._done += count
            if self._progress is not None:
                self._progress("checksums", self._done, self._total)


def _check_file(folder: Path, entry: dict[str, Any], told: _Bytes) -> Fault | None:
    path, name = folder / entry["file"], entry["file"]
    if not path.exists():
        return Fault(name, "missing")
    file_in(folder, name)
    if (size := path.stat().st_size) != entry["bytes"]:
        return Fault(name, f"{size:,} bytes, the manifest says {entry['bytes']:,}: the file was cut short or altered")
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                told.add(len(piece))
    except OSError as error:
        return Fault(name, f"cannot be read ({error.strerror})")
    if digest.hexdigest() != entry["sha256"]:
        return Fault(name, f"sha256 is {digest.hexdigest()[:12]}…, the manifest's is {entry['sha256'][:12]}…")
    return None


def _check_vocabulary(folder: Path, manifest: dict[str, Any]) -> list[Fault]:
    features = features_of(manifest)
    kind = RegionVocab if features == "regions" else GeneVocab
    vocab = kind.load(folder / manifest["genes"]["file"])
    if (vocab.sha256, len(vocab)) != (manifest["genes"]["vocab_sha256"], manifest["genes"]["n"]):
        return [Fault(manifest["genes"]["file"], f"holds other {features} than the manifest says")]
    return []


def _check_rows(folder: Path, manifest: dict[str, Any], progress: Progress | None) -> Iterator[Fault]:
    digest, done, sound = ContentDigest(), 0, True
    for entry in manifest["shards"]:
        for fault in _check_shard(folder / entry["file"], entry, manifest, digest):
            sound = False
            yield fault
        done += entry["rows"]
        if progress is not None:
            progress("rows", done, manifest["cells"])
    if not sound:
        return
    if digest.hexdigest() != manifest["content"]:
        yield Fault("", "the rows are not those the manifest describes (content digest differs)")
    if done != manifest["cells"] or sum(entry["nnz"] for entry in manifest["shards"]) != manifest["nnz"]:
        yield Fault("", f"shards hold {done:,} cells, the manifest says {manifest['cells']:,} (or non-zeros differ)")
    obs = manifest["obs"]
    if "labels_sha256" in obs and labels_sha256(folder / obs["file"]) != obs["labels_sha256"]:
        yield Fault(obs["file"], "holds other labels than the manifest says")
    yield from _check_ids(Corpus.open(folder))


def _check_shard(path: Path, entry: dict[str, Any], manifest: dict[str, Any], digest: ContentDigest) -> Iterator[Fault]:
    rows, nnz, met = 0, 0, set()
    features = features_of(manifest)
    try:
        with pa.memory_map(str(path)) as file:
            prove_plain(file.read_buffer())
            file.seek(0)
            for record in pa.ipc.open_stream(file):
                record.validate(full=True)  # an offset that leads nowhere would end the process
                table = pa.Table.from_batches([record])
                if any(column.null_count for column in table.columns):
                    yield Fault(path.name, f"rows {rows:,} … hold missing values; a corpus has none")
                    return
                batch = from_arrow(table)
                counts = from_arrow(table.set_column(3, "genes", table.column("counts")))
                if (batch.lengths != counts.lengths).any():
                    yield Fault(path.name, f"a cell in rows {rows:,} … has not as many counts as {features}")
                    return
                for law, broken in _laws(batch, manifest["genes"]["n"], len(manifest["sources"]), features):
                    if broken.any() and law not in met:
                        met.add(law)
                        at = int(np.argmax(broken))
                        yield Fault(path.name, f"row {rows + at:,} (cell id {batch.cell_id[at]}): {law}")
                digest.update(batch)
                rows, nnz = rows + len(batch), nnz + len(batch.genes)
    except (OSError, ValueError, pa.ArrowException) as error:
        yield Fault(path.name, f"not readable as an Arrow stream ({error})")
        return
    if (rows, nnz) != (entry["rows"], entry["nnz"]):
        yield Fault(
            path.name,
            f"{rows:,} rows with {nnz:,} entries, the manifest says {entry['rows']:,} with {entry['nnz']:,}",
        )


def _laws(
    batch: CountBatch, n_genes: int, n_sources: int, features: Features = "genes"
) -> list[tuple[str, Bool[np.ndarray, " cells"]]]:
    """(law, rows that break it)."""
    one = features.removesuffix("s")
    if (empty := batch.lengths == 0).any():
        return [(f"no non-zero {one}: a corpus holds no empty cell", empty)]
    starts = batch.offsets[:-1]
    rising = np.diff(batch.genes.astype(np.int64), prepend=-1) > 0
    rising[starts] = True
    return [
        (f"{features} do not strictly rise", ~np.logical_and.reduceat(rising, starts)),
        (f"a {one} id beyond the vocabulary's {n_genes:,}", np.maximum.reduceat(batch.genes, starts) >= n_genes),
        ("a stored zero", np.minimum.reduceat(batch.counts, starts) == 0),
        ("total is not the sum of counts", np.add.reduceat(batch.counts, starts, dtype=np.int64) != batch.total),
        (f"a source beyond the manifest's {n_sources}", batch.source >= n_sources),
    ]


def _check_ids(corpus: Corpus) -> Iterator[Fault]:
    ids = corpus.cell_ids
    if ids.max() >= corpus.n_cells or (np.bincount(ids, minlength=corpus.n_cells) != 1).any():
        yield Fault("", f"cell ids are not each of 0 … {corpus.n_cells - 1} once")
        return
    labels = read_labels(corpus, "source")
    if len(labels) != corpus.n_cells:
        yield Fault(corpus.manifest["obs"]["file"], f"{len(labels):,} rows for {corpus.n_cells:,} cells")
        return
    numbers = {source["name"]: number for number, source in enumerate(corpus.manifest["sources"])}
    of_label = np.array([numbers.get(name, -1) for name in labels.cat.categories] + [-1], np.int64)
    if (of_label[labels.cat.codes.to_numpy()[ids]] != corpus.source_ids).any():
        yield Fault(corpus.manifest["obs"]["file"], "disagrees with the shards on which source a cell came from")
