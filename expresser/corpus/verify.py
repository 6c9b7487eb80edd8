"""Proof that a corpus is what was built: sha256 of every file, and the laws its rows must obey."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Bool

from expresser.corpus.manifest import read_manifest, sha256_file
from expresser.corpus.shards import ContentDigest, CountBatch, from_arrow
from expresser.corpus.store import Corpus, check_sizes
from expresser.errors import InputError


def verify_corpus(folder: str | Path) -> None:
    """Read all of a corpus once; raises InputError that names each damaged file, or the first row that breaks a law.

    Checked: sizes and sha256 of shards, obs and vocabulary; in each cell genes strictly rising and inside the
    vocabulary, no stored zero, total = sum of counts; each cell id once, with the source its obs row names; the digest
    of all rows that `corpus_id` is made from. Memory: one record batch.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    check_sizes(folder, manifest)
    entries = (manifest["genes"], manifest["obs"], *manifest["shards"])
    damaged = [entry["file"] for entry in entries if sha256_file(folder / entry["file"]) != entry["sha256"]]
    if damaged:
        raise InputError(
            f"{folder}: {len(damaged)} of {len(entries)} files are not what was written (sha256 differs from the "
            f"manifest's): {', '.join(damaged)}. Copy them again from where they are sound, or build the corpus again."
        )
    corpus = Corpus.open(folder)
    digest = ContentDigest()
    for entry in manifest["shards"]:
        _check_shard(folder / entry["file"], entry, manifest, digest)
    if digest.hexdigest() != manifest["content"]:
        raise InputError(f"{folder}: the rows are not those the manifest describes (content digest differs).")
    _check_ids(corpus)


def _check_shard(path: Path, entry: dict[str, Any], manifest: dict[str, Any], digest: ContentDigest) -> None:
    rows, nnz = 0, 0
    with pa.memory_map(str(path)) as file:
        for record in pa.ipc.open_stream(file):
            table = pa.Table.from_batches([record])
            if any(column.null_count for column in table.columns):
                raise InputError(f"{path}: rows {rows:,} … hold missing values; a corpus has none.")
            batch = from_arrow(table)
            if (batch.lengths != from_arrow(table.set_column(3, "genes", table.column("counts"))).lengths).any():
                raise InputError(f"{path}: a cell in rows {rows:,} … has not as many counts as genes.")
            for law, broken in _laws(batch, manifest["genes"]["n"], len(manifest["sources"])):
                if broken.any():
                    at = int(np.argmax(broken))
                    raise InputError(f"{path}: row {rows + at:,} (cell id {batch.cell_id[at]}): {law}.")
            digest.update(batch)
            rows, nnz = rows + len(batch), nnz + len(batch.genes)
    if (rows, nnz) != (entry["rows"], entry["nnz"]):
        raise InputError(
            f"{path}: {rows:,} rows with {nnz:,} entries, the manifest says {entry['rows']:,} with {entry['nnz']:,}."
        )


def _laws(batch: CountBatch, n_genes: int, n_sources: int) -> list[tuple[str, Bool[np.ndarray, " cells"]]]:
    """(law, rows that break it)."""
    if (empty := batch.lengths == 0).any():
        return [("no non-zero gene: a corpus holds no empty cell", empty)]
    starts = batch.offsets[:-1]
    rising = np.diff(batch.genes.astype(np.int64), prepend=-1) > 0
    rising[starts] = True
    return [
        ("genes do not strictly rise", ~np.logical_and.reduceat(rising, starts)),
        (f"a gene id beyond the vocabulary's {n_genes:,}", np.maximum.reduceat(batch.genes, starts) >= n_genes),
        ("a stored zero", np.minimum.reduceat(batch.counts, starts) == 0),
        ("total is not the sum of counts", np.add.reduceat(batch.counts, starts, dtype=np.int64) != batch.total),
        (f"a source beyond the manifest's {n_sources}", batch.source >= n_sources),
    ]


def _check_ids(corpus: Corpus) -> None:
    ids = corpus.cell_ids
    if ids.max() >= corpus.n_cells or (np.bincount(ids, minlength=corpus.n_cells) != 1).any():
        raise InputError(f"{corpus.path}: cell ids are not each of 0 … {corpus.n_cells - 1} once.")
    names = np.array([source["name"] for source in corpus.manifest["sources"]], object)
    if (names[corpus.source_ids] != corpus.obs["source"].to_numpy(object)[ids]).any():
        raise InputError(f"{corpus.path}: obs and shards disagree on which source a cell came from.")
