"""A corpus made of rows of another: the engine that splits and subsets share, with bounded memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Int64

from expresser.atomic import is_empty
from expresser.corpus.history import appended
from expresser.corpus.labels import LabelsDigest, obs_path
from expresser.corpus.manifest import (
    FORMAT,
    FORMAT_VERSION,
    GENES,
    OBS,
    corpus_id,
    file_entry,
    tool_versions,
    write_manifest,
)
from expresser.corpus.shards import ContentDigest, CountBatch, from_arrow, schema, write_shards
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab

STEP_ROWS = 2_048  # rows handled together: the index arrays of a gather are 8 bytes a non-zero
SHARD_ROWS, BATCH_ROWS = 250_000, 10_000
UINT16_MAX = 2**16 - 1

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FewerGenes:
    """A restriction of the vocabulary: `tokens[old]` is the new token, -1 where the gene is left out.

    New tokens rise with old ones, so that a cell's genes stay sorted.
    """

    vocab: GeneVocab
    tokens: Int64[np.ndarray, " old"]

    @classmethod
    def of(cls, vocab: GeneVocab, kept: Int64[np.ndarray, " new"]) -> "FewerGenes":
        """Keep the genes with these tokens, in the order of `vocab`."""
        kept = np.unique(kept)
        tokens = np.full(len(vocab), -1, np.int64)
        tokens[kept] = np.arange(len(kept))
        return cls(vocab.take(kept), tokens)

    def apply(self, batch: CountBatch) -> CountBatch:
        """The same cells without the entries of other genes; `total` is the sum of what is left."""
        tokens = self.tokens[batch.genes]
        here = tokens >= 0
        cell = np.repeat(np.arange(len(batch)), batch.lengths)[here]
        counts = batch.counts[here]
        # float64 sums are exact: a cell's total is below 2^32.
        total = np.bincount(cell, weights=counts, minlength=len(batch)).astype(np.uint32)
        lengths = np.bincount(cell, minlength=len(batch)).astype(np.int64)
        return replace(batch, total=total, lengths=lengths, genes=tokens[here].astype(np.uint32), counts=counts)

    def lengths(self, corpus: Corpus) -> Int64[np.ndarray, " cells"]:
        """Genes that would be left of the cell in each row: one pass over the genes."""
        parts = []
        for batch in read_rows(corpus, np.ones(corpus.n_cells, bool)):
            cell = np.repeat(np.arange(len(batch)), batch.lengths)[self.tokens[batch.genes] >= 0]
            parts.append(np.bincount(cell, minlength=len(batch)))
        return np.concatenate(parts).astype(np.int64)


def derive(
    corpus: Corpus,
    folder: Path,
    kept: Bool[np.ndarray, " cells"],
    *,
    rule: dict[str, Any],
    genes: FewerGenes | None = None,
    seen: Callable[[CountBatch], None] | None = None,
    progress: Progress | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> None:
    """Write the corpus of the rows that `kept` marks into `folder`, which exists and is empty; the manifest comes last.

    Rows keep their order on disk (a part of a random order is a random order). Cell ids are numbered anew from 0 in the
    order of the old ones, so that obs stays a table by row; a cell's lasting name is its source and barcode. Sources of
    which no cell is left are gone. The counts' type is the source's.

    Parameters
    ----------
    rule
        Plain values that say how rows were chosen: stands in the manifest's `derived_from`, beside the parent's `corpus_id`,
        cells, arguments of the build, what was appended to it, and what it was itself derived from.
    genes
        Restricts the vocabulary. Every kept row must have a gene left.
    seen
        Called with each record batch that was written.

    Notes
    -----
    Memory: a few bytes a cell of the source, one record batch, one step of rows.
    """
    n_cells = int(kept.sum())
    if not n_cells:
        raise InputError(f"{corpus.path}: no cell is left of {corpus.n_cells:,} by the rule {rule}. Ask for less.")
    by_id = np.zeros(corpus.n_cells, bool)
    by_id[corpus.cell_ids[kept]] = True
    new_id = (np.cumsum(by_id) - 1).astype(np.uint32)
    cells_of = np.bincount(corpus.source_ids[kept], minlength=len(corpus.manifest["sources"]))
    present = np.flatnonzero(cells_of)
    new_source = np.zeros(len(cells_of), np.uint16)
    new_source[present] = np.arange(len(present))
    vocab = corpus.vocab if genes is None else genes.vocab
    dtypes = corpus.manifest["dtypes"] | {"genes": "uint16" if len(vocab) <= UINT16_MAX else "uint32"}

    vocab.save(folder / GENES)
    labels = _write_obs(corpus, folder / OBS, by_id)
    content, nnz_of, done = ContentDigest(), np.zeros(len(present), np.int64), 0

    def written(batch: CountBatch) -> None:
        nonlocal done
        content.update(batch)
        nnz_of[:] += np.bincount(batch.source, weights=batch.lengths, minlength=len(present)).astype(np.int64)
        if seen is not None:
            seen(batch)
        done += len(batch)
        if progress is not None:
            progress(done, n_cells)

    def rows() -> Iterator[CountBatch]:
        for batch in read_rows(corpus, kept):
            batch = replace(batch, cell_id=new_id[batch.cell_id], source=new_source[batch.source])
            yield batch if genes is None else genes.apply(batch)

    shards = write_shards(
        folder,
        rows(),
        columns=schema(dtypes["genes"], dtypes["counts"]),
        n_cells=n_cells,
        shard_rows=shard_rows,
        batch_rows=batch_rows,
        written=written,
    )
    old = corpus.manifest
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "values": old["values"],
        **({"features": old["features"]} if "features" in old else {}),
        "cells": n_cells,
        "nnz": int(nnz_of.sum()),
        "dtypes": dtypes,
        "genes": {"n": len(vocab), "vocab_sha256": vocab.sha256} | file_entry(folder / GENES),
        "obs": {"columns": old["obs"]["columns"], "labels_sha256": labels} | file_entry(folder / OBS),
        # Of the arguments of the build only those that describe these rows too. Without the others, the folder is
        # never taken for the finished build of the source's inputs.
        "build": {name: old["build"].get(name) for name in ("layer", "obs_columns", "seed")},
        "derived_from": {name: old[name] for name in ("corpus_id", "cells", "build", "derived_from") if name in old}
        | ({"appended": parts} if (parts := appended(old)) else {})
        | {"rule": rule},
        "sources": [
            _source(old["sources"][at], int(cells_of[at]), int(nnz), genes is not None)
            for at, nnz in zip(present, nnz_of)
        ],
        "content": content.hexdigest(),
        "shards": shards,
        "versions": tool_versions(),
    }
    write_manifest(folder, manifest | {"corpus_id": corpus_id(manifest)})


def read_rows(corpus: Corpus, kept: Bool[np.ndarray, " cells"]) -> Iterator[CountBatch]:
    """The rows marked, in order, in pieces of at most STEP_ROWS.

    Shard after shard, from start to end, not by `Corpus.read`: that maps files for access at random, where the system
    reads nothing ahead.
    """
    first = 0
    for entry in corpus.manifest["shards"]:
        path = corpus.path / entry["file"]
        try:
            with pa.memory_map(str(path)) as file:
                for record in pa.ipc.open_stream(file):
                    record.validate(full=True)  # an offset that leads nowhere would end the process
                    batch = from_arrow(pa.Table.from_batches([record]))
                    for start in range(0, len(batch), STEP_ROWS):
                        piece = batch.slice(start, start + STEP_ROWS)
                        here = kept[first + start : first + start + len(piece)]
                        if here.any():
                            yield piece if here.all() else piece.take(np.flatnonzero(here))
                    first += len(batch)
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{path}: not readable as an Arrow stream ({error}). `expresser corpus verify` says what is damaged."
            ) from error


def check_free(out: Path) -> None:
    """InputError unless `out` is absent or an empty folder: said before hours of work."""
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise InputError(f"{out}: is there already and not an empty folder. Nothing was changed: name a new folder.")


def _source(entry: dict[str, Any], cells: int, nnz: int, fewer_genes: bool) -> dict[str, Any]:
    """A source's entry for a part of its cells: cells_read = cells + all that was dropped still holds."""
    gone = entry["dropped"].get("not chosen", 0) + entry["cells"] - cells
    changed = {"cells": cells, "nnz": nnz, "dropped": entry["dropped"] | {"not chosen": gone}}
    if fewer_genes:  # what was found when the file was read no longer describes what is left
        changed["genes"] = entry["genes"] | {"genes": None, "counts_kept": None}
    return entry | changed


def _write_obs(corpus: Corpus, path: Path, by_id: Bool[np.ndarray, " cells"]) -> str:
    """Returns the digest of the labels."""
    file = pq.ParquetFile(obs_path(corpus))
    first, digest = 0, LabelsDigest(file.schema_arrow)
    with pq.ParquetWriter(str(path), file.schema_arrow, compression="zstd") as writer:
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            chosen = table.filter(pa.array(by_id[first : first + len(table)]))
            writer.write_table(chosen)
            digest.update(chosen)
            first += len(table)
    return digest.hexdigest()
