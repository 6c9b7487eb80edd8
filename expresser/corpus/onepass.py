"""One pass over one source: its cells aligned and packed, and the account of what was dropped."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from scipy import sparse

from expresser.corpus.align import Alignment
from expresser.corpus.shards import CountBatch
from expresser.corpus.source import Source
from expresser.errors import InputError

CHUNK_ROWS = 4096
UINT32_MAX = 2**32 - 1


class SourcePass:
    """Read a source once: `batches` yields the cells worth keeping, after which `kept` and `entry` give the account.

    `number` is the source's place among the inputs, `first_id` the cell id of its first kept cell.
    """

    def __init__(self, source: Source, number: int, alignment: Alignment, min_genes: int, first_id: int) -> None:
        self.source = source
        self.number = number
        self.alignment = alignment
        self.min_genes = max(min_genes, 1)
        self.next_id = first_id
        self.kept: Bool[np.ndarray, " cells"] = np.zeros(source.n_cells, bool)
        self.empty = 0
        self.nnz = 0
        self.counts_per_name: Float64[np.ndarray, " names"] = np.zeros(len(alignment.resolution.names))

    def batches(self, genes: np.dtype) -> Iterator[tuple[CountBatch, int]]:
        """(kept cells of a chunk, cells of the source read so far)."""
        for first, chunk in self.source.chunks(CHUNK_ROWS):
            # float64 sums are exact below 2^53 counts of one gene.
            self.counts_per_name += np.bincount(chunk.indices, chunk.data, minlength=chunk.shape[1])
            aligned = self.alignment.apply(chunk)
            n_genes = np.diff(aligned.indptr)
            keep = n_genes >= self.min_genes
            self.kept[first : first + len(keep)] = keep
            self.empty += int((n_genes == 0).sum())
            yield self._pack(aligned[keep], genes), first + len(keep)

    def _pack(self, cells: sparse.csr_matrix, genes: np.dtype) -> CountBatch:
        total = np.asarray(cells.sum(axis=1), np.int64).reshape(-1)
        if total.size and total.max() > UINT32_MAX:
            cell = self.source.obs.index[np.flatnonzero(self.kept)[-len(total) :][total.argmax()]]
            raise InputError(
                f"{self.source.label}: the counts of cell {cell!r} sum to {total.max():,}, a corpus holds at most "
                f"{UINT32_MAX:,} a cell. Such a sum is no count of molecules: look for a column or row of totals."
            )
        ids = np.arange(self.next_id, self.next_id + len(total), dtype=np.uint32)
        self.next_id += len(total)
        self.nnz += cells.nnz
        return CountBatch(
            cell_id=ids,
            source=np.full(len(total), self.number, np.uint16),
            total=total.astype(np.uint32),
            lengths=np.diff(cells.indptr).astype(np.int64),
            genes=cells.indices.astype(genes),
            counts=cells.data.astype(np.uint32),
        )

    def entry(self, min_counts_kept: float) -> dict[str, Any]:
        """What the manifest says of this source; InputError where too few of its counts lie in the vocabulary."""
        report = self.alignment.resolution.report(self.counts_per_name)
        if report.counts_kept is not None:
            report.check(self.source.label, min_counts_kept)
        kept = int(self.kept.sum())
        return {
            "file": self.source.path.name if self.source.path is not None else None,
            "kind": self.source.kind,
            "cells_read": self.source.n_cells,
            "cells": kept,
            "nnz": self.nnz,
            "dropped": {"empty": self.empty, "few genes": self.source.n_cells - kept - self.empty},
            "gene_column": self.alignment.column,
            "genes": report.to_dict(),
        }
