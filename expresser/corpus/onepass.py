"""One pass over one source: its cells aligned and packed, and the account of what was dropped."""

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32, UInt64
from scipy import sparse

from expresser.corpus.align import Alignment
from expresser.corpus.duplicates import cell_keys, name_keys
from expresser.corpus.packing import NO_GENE, UINT32_MAX, NotRaw, Packed, Packer
from expresser.corpus.shards import CountBatch
from expresser.corpus.source import Source
from expresser.errors import InputError

CHUNK_ROWS = 4096


class SourcePass:
    """Read a source once: `batches` yields the cells worth keeping, after which `kept` and `entry` give the account.

    `number` is the source's place among the inputs. Cells are numbered from 0 within the source: what id they get in the corpus
    is not known before the sources in front of it have been read.
    """

    def __init__(
        self,
        source: Source,
        number: int,
        alignment: Alignment,
        min_genes: int,
        *,
        deduplicate: str | None = None,
        source_column: str | None = None,
        name: str = "",
    ) -> None:
        self.source = source
        self.deduplicate = deduplicate
        self._name_keys = None if deduplicate is None else self._names_of_cells(deduplicate, source_column, name)
        self.number = number
        self.alignment = alignment
        self.min_genes = max(min_genes, 1)
        self.kept: Bool[np.ndarray, " cells"] = np.zeros(source.n_cells, bool)
        self.empty = 0
        self.nnz = 0
        self._packer: Packer | None = None

    def batches(self, genes: np.dtype) -> Iterator[tuple[CountBatch, UInt64[np.ndarray, " cells"] | None, int]]:
        """(kept cells of a block, their keys where duplicates are to be found, cells of the source read so far)."""
        done, n_kept = 0, 0
        for block in self.source.stored(CHUNK_ROWS):  # as it is: packing proves it
            packed = self._pack(block, done, genes)
            keep = np.zeros(block.shape[0], bool)
            keep[packed.rows] = True
            n_kept += len(packed.rows)
            self.kept[done : done + len(keep)] = keep
            self.empty += int((packed.n_genes == 0).sum())
            self.nnz += len(packed.genes)
            batch = CountBatch(
                cell_id=np.arange(n_kept - len(packed.rows), n_kept, dtype=np.uint32),
                source=np.full(len(packed.rows), self.number, np.uint16),
                total=packed.total.astype(np.uint32),
                lengths=packed.lengths,
                genes=packed.genes,
                counts=packed.counts,
            )
            keys = None
            if self.deduplicate is not None and self._name_keys is not None:
                keys = cell_keys(self.deduplicate, self._name_keys[done + packed.rows], batch)
            done += block.shape[0]
            yield batch, keys, done
        if done != self.source.n_cells:
            raise InputError(
                f"{self.source.label} has {done} rows, but {self.source.n_cells} cells were named when it was opened."
            )

    def _names_of_cells(self, deduplicate: str, column: str | None, name: str) -> UInt64[np.ndarray, " cells"]:
        obs = self.source.obs
        sources: list[str | None] = [None] * len(obs)
        if column is not None and column in obs.columns:
            values = obs[column]
            sources = [None if absent else str(value) for value, absent in zip(values, values.isna())]
        return name_keys(deduplicate, [str(barcode) for barcode in obs.index], sources, name)

    def _pack(self, block: sparse.csr_matrix, first: int, genes: np.dtype) -> Packed:
        if first + block.shape[0] > self.source.n_cells:
            raise InputError(
                f"{self.source.label} has more rows than the {self.source.n_cells} cells named when it was opened."
            )
        if self._packer is None:
            tokens = self._tokens(block.shape[1])
            self._packer = Packer(tokens, self.alignment.n_tokens, genes, self.min_genes)
        try:
            packed = self._packer.pack(block)
        except NotRaw:
            self.source.prove(block, first)
            raise InputError(
                f"{self.source.label}: a column index lies outside the matrix. Is the file complete?"
            ) from None
        if packed.total.size and packed.total.max() > UINT32_MAX:
            self.source.prove(block, first)
            cell = self.source.obs.index[first + packed.rows[packed.total.argmax()]]
            raise InputError(
                f"{self.source.label}: the counts of cell {cell!r} sum to {packed.total.max():,}, a corpus holds at most "
                f"{UINT32_MAX:,} a cell. Such a sum is no count of molecules: look for a column or row of totals."
            )
        return packed

    def _tokens(self, n_columns: int) -> Int32[np.ndarray, " columns"]:
        tokens = np.full(n_columns, NO_GENE, np.int32)
        tokens[self.source.columns] = self.alignment.resolution.tokens
        return tokens

    def entry(self, min_counts_kept: float) -> dict[str, Any]:
        """What the manifest says of this source; InputError where too few of its counts lie in the vocabulary."""
        counts = np.zeros(self.source.n_genes) if self._packer is None else self._packer.sums[self.source.columns]
        report = self.alignment.resolution.report(counts)
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


class Hashing:
    """The sha256 of a source's file, taken beside the pass that reads it, so that a cold disk is read once."""

    def __init__(self, source: Source, known: str | None) -> None:
        self._found: list[str | BaseException] = [] if known is None else [known]
        self._thread: threading.Thread | None = None
        if known is None:
            # A daemon: a build that fails or is interrupted does not wait for the hash of a large file.
            self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
            self._thread.start()

    def _run(self, source: Source) -> None:
        try:
            self._found.append(source.sha256())
        except BaseException as error:
            self._found.append(error)

    def result(self) -> str:
        """Waits for the digest."""
        if self._thread is not None:
            self._thread.join()
        found = self._found[0]
        if isinstance(found, BaseException):
            raise found
        return found
