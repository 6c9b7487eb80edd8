"""Cells of all sources into the buckets of the shuffle: numbered in input order, without duplicates, source by recorded source."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt64

from expresser.corpus.duplicates import Seen
from expresser.corpus.onepass import Hashing
from expresser.corpus.packing import take_rows
from expresser.corpus.shards import CountBatch
from expresser.corpus.shuffle import Scatter
from expresser.corpus.source import Source
from expresser.corpus.workers import Job, Packing, forget_packed, is_packed, packed_name, packing, read_packed
from expresser.corpus.workshop import Workshop

Progress = Callable[[str, int, int], None]
_Cells = Iterator[tuple[CountBatch, UInt64[np.ndarray, " cells"] | None]]
_Read = tuple[dict[str, Any], Bool[np.ndarray, " cells"]]


@dataclass
class Scattered:
    """What became of the sources that are in the buckets."""

    entries: list[dict[str, Any]] = field(default_factory=list)  # for the manifest
    kept: list[Bool[np.ndarray, " cells"]] = field(default_factory=list)
    cells: int = 0
    nnz: int = 0
    most: int = 0  # the largest count

    def add(self, entry: dict[str, Any], kept: Bool[np.ndarray, " cells"], most: int) -> None:
        """One source more."""
        self.entries.append(entry)
        self.kept.append(kept)
        self.cells += entry["cells"]
        self.nnz += entry["nnz"]
        self.most = max(self.most, most)


class Intake:
    """Fills the buckets of `scatter`, with cell ids from `first_cell` on, in input order whoever reads.

    With several workers each packs one file at a time, and this process scatters packed files as their turn comes; with one, cells go
    straight from the file to the buckets. Keys met in `seen` are duplicates.
    """

    def __init__(
        self, shop: Workshop, scatter: Scatter, sources: Sequence[Source], jobs: Sequence[Job], *, first_cell: int = 0
    ) -> None:
        self._shop, self._scatter, self._sources, self._jobs = shop, scatter, sources, jobs
        self._first_cell = first_cell
        self._n_read = sum(source.n_cells for source in sources)
        self._read = dict.fromkeys((job.number for job in jobs), 0)
        self._seen = Seen()
        self._done = Scattered()
        self._progress: Progress = lambda stage, done, total: None

    def run(self, *, workers: int, seen: Seen, progress: Progress) -> Scattered:
        """Go on behind the last source that is recorded, to the end."""
        self._seen, self._progress = seen, progress
        self._go_back()
        left = list(zip(self._jobs, self._sources))[len(self._done.entries) :]
        todo = []
        for job, source in left:
            if is_packed(self._shop.folder, job.number):
                self._read[job.number] = source.n_cells
            elif job.path is not None:
                todo.append(job)
        with ExitStack() as stack:
            alone = min(workers, len(todo)) < 2
            others = None if alone else stack.enter_context(packing(todo, self._shop.folder, workers))
            for job, source in left:
                self._add(job, source, others)
        return self._done

    def _go_back(self) -> None:
        """To the last record: what it does not speak of is cut off the buckets."""
        mark = None
        for job, source in zip(self._jobs, self._sources):
            if (there := self._shop.recorded(_name(job.number))) is None:
                break
            arrays = self._shop.arrays(_name(job.number))
            kept = np.unpackbits(arrays["kept"], count=source.n_cells).astype(bool)
            self._done.add(there["entry"], kept, there["most"])
            self._read[job.number] = source.n_cells
            if "keys" in arrays:
                self._seen.add(arrays["keys"])
            mark = there["buckets"]
        # Shards are written from the buckets when all sources are in, and buckets deleted behind them.
        gone = self._shop.recorded("shard-00000") is not None
        self._scatter.go_back(mark or self._scatter.mark(), may_be_gone=gone)

    def _add(self, job: Job, source: Source, others: Packing | None) -> None:
        folder = self._shop.folder

        def told() -> None:
            if others is not None:
                for number, cells in others.cells_read().items():
                    self._read[number] = cells
            self._progress("read", sum(self._read.values()), self._n_read)

        if others is not None and job.path is not None and not is_packed(folder, job.number):
            others.wait_for(job.number, told)
        if is_packed(folder, job.number):
            cells, account = self._packed(job, source)
        else:
            cells, account = self._direct(job, source)
        gone, keys_of, gone_nnz, nnz, most = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint64)], 0, 0, 0
        next_id = self._first_cell + self._done.cells
        for batch, keys in cells:
            if keys is not None:
                fresh = self._seen.new(keys)
                gone.append(batch.cell_id[~fresh])
                gone_nnz += int(batch.lengths[~fresh].sum())
                keys_of.append(keys[fresh])
                batch = batch if fresh.all() else take_rows(batch, np.flatnonzero(fresh))
            nnz += len(batch.genes)
            most = max(most, int(batch.counts.max(initial=0)))
            self._estimate(self._done.nnz + nnz)
            self._scatter.add(replace(batch, cell_id=np.arange(next_id, next_id + len(batch), dtype=np.uint32)))
            next_id += len(batch)
            told()
        entry, kept = account()
        arrays: dict[str, np.ndarray] = {}
        if job.deduplicate is not None:
            twice = np.concatenate(gone)
            kept[np.flatnonzero(kept)[twice]] = False
            entry |= {"cells": entry["cells"] - len(twice), "nnz": entry["nnz"] - gone_nnz}
            entry |= {"dropped": entry["dropped"] | {"duplicates": len(twice)}}
            arrays["keys"] = np.concatenate(keys_of)
        arrays["kept"] = np.packbits(kept)
        values = {"entry": entry, "most": most, "buckets": self._scatter.mark()}
        self._shop.record(_name(job.number), values, arrays)
        forget_packed(folder, job.number)
        self._done.add(entry, kept, most)

    def _packed(self, job: Job, source: Source) -> tuple[_Cells, Callable[[], _Read]]:
        """The cells that a worker wrote, and afterwards the account it gave."""
        arrays = self._shop.arrays(packed_name(job.number))

        def account() -> _Read:
            there = self._shop.recorded(packed_name(job.number)) or {}
            return there["entry"], np.unpackbits(arrays["kept"], count=source.n_cells).astype(bool)

        return read_packed(self._shop.folder, job.number, arrays.get("keys")), account

    def _direct(self, job: Job, source: Source) -> tuple[_Cells, Callable[[], _Read]]:
        """The cells as they are read here, and afterwards the account."""
        reading, hashing = job.reading(source), Hashing(source, job.sha256)

        def cells() -> _Cells:
            for batch, keys, done in reading.batches(np.dtype(job.genes)):
                self._read[job.number] = done
                yield batch, keys

        def account() -> _Read:
            entry = reading.entry(job.min_counts_kept)
            return {"name": job.name, "sha256": hashing.result()} | entry, reading.kept

        return cells(), account

    def _estimate(self, nnz: int) -> None:
        # Both copies of one bucket, one copy of all others, in proportion to the cells still to come.
        written = nnz * (self._scatter.entry_bytes + self._scatter.entry_bytes / self._scatter.n_buckets)
        self._shop.needed = int(written * self._n_read / max(1, sum(self._read.values())))


def _name(number: int) -> str:
    return f"source-{number:05d}"
