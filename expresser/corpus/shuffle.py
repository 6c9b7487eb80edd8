"""A seeded random order over more cells than memory holds: cells are scattered into buckets, each bucket is sorted.

A cell's place is its rank by a 64-bit hash of (seed, cell id). Buckets are ranges of that hash, so reading them one
after the other gives the same order whatever their number, the chunks cells came in, or the version of numpy.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, UInt32, UInt64

from expresser.corpus.packing import take_rows
from expresser.corpus.shards import CountBatch, concatenate, from_arrow, schema, to_arrow
from expresser.errors import InputError

# A bucket is sorted in memory: 32,768 cells of 1,000 genes are 0.2 GB. Each bucket is an open file while scattering and
# macOS allows 256, so beyond 4 million cells buckets grow instead of becoming more.
BUCKET_ROWS = 32_768
MAX_BUCKETS = 128
# Non-zeros of a bucket that are in memory at once: 0.5 GB. Cells of ATAC may have thousands: a bucket of such is sorted in parts.
BUCKET_ENTRIES = 64_000_000
# Rows gathered at a time: bounds the index arrays of the gather.
PIECE_ROWS = 8_192
# Non-zeros held before they are dealt: a bucket gets one record batch of each deal, and small ones cost more than their counts.
HELD_ENTRIES = 3_000_000

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def splitmix64(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014), wrapping: a random-looking bijection."""
    x = x + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def order_keys(seed: int, cell_id: UInt32[np.ndarray, " cells"]) -> UInt64[np.ndarray, " cells"]:
    """Sort keys: element `cell_id` of the splitmix64 sequence that starts at the hashed seed. No two are equal."""
    start = splitmix64(np.array([seed], np.uint64))
    return splitmix64(start + cell_id.astype(np.uint64) * _GOLDEN)


def bucket_count(n_cells: int) -> int:
    """Buckets for `n_cells` cells: a power of two."""
    count = 1
    while count * BUCKET_ROWS < n_cells and count < MAX_BUCKETS:
        count *= 2
    return count


class Scatter:
    """Cells in any order go in, batch by batch; all of them come out in the seeded order, piece by piece.

    Buckets are Arrow streams in `folder`, counts as uint32: only the whole pass tells whether uint16 would do. Each record batch is a
    message of its own behind the last, so that a file cut after any of them is a stream again: `mark` says where the files end,
    `go_back` cuts them there. A context manager: leaving it closes the files.
    """

    def __init__(self, folder: Path, *, seed: int, n_buckets: int, genes: str) -> None:
        self._folder = folder
        self._seed = seed
        self._shift = np.uint64(64 - (n_buckets.bit_length() - 1))
        self.n_buckets = n_buckets
        self._schema = schema(genes, "uint32")
        self.entry_bytes: int = np.dtype(genes).itemsize + 4
        self._files = ExitStack()
        self._writers: dict[int, BinaryIO] = {}
        self._held: list[CountBatch] = []
        self._held_entries = 0
        self._bytes = [0] * n_buckets
        self._rows = [0] * n_buckets

    def __enter__(self) -> "Scatter":
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:03d}.arrow"

    def add(self, batch: CountBatch) -> None:
        """Append each cell to its bucket."""
        if not len(batch):
            return
        self._held.append(batch)
        self._held_entries += len(batch.genes)
        if self._held_entries >= HELD_ENTRIES:
            self._deal()

    def mark(self) -> dict[str, list[int]]:
        """Everything added is in the files now, which have so many bytes and rows; plain values for `go_back`."""
        self._deal()
        for file in self._writers.values():
            file.flush()
        return {"bytes": list(self._bytes), "rows": list(self._rows)}

    def go_back(self, mark: dict[str, list[int]], *, may_be_gone: bool) -> None:
        """Cut the files of an earlier process to what it marked, before any `add`.

        `may_be_gone`: some have been read and deleted already; nothing has been written behind the mark then. Raises InputError where
        a file is shorter than it was.
        """
        for bucket, size in enumerate(mark["bytes"]):
            path = self._path(bucket)
            there = path.stat().st_size if path.exists() else 0
            if there < size and not (may_be_gone and not there):
                raise InputError(
                    f"{path}: {there:,} bytes, {size:,} were written: it was altered meanwhile. Nothing can be kept: run the same "
                    "command again."
                )
            if there > size:
                os.truncate(path, size)
        self._bytes, self._rows = list(mark["bytes"]), list(mark["rows"])

    def _deal(self) -> None:
        if not self._held:
            return
        batch = concatenate(self._held)
        self._held, self._held_entries = [], 0
        if self.n_buckets == 1:
            self._append(0, to_arrow(batch, self._schema))
            return
        bucket = (order_keys(self._seed, batch.cell_id) >> self._shift).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        record = to_arrow(take_rows(batch, order), self._schema)
        bounds = np.searchsorted(bucket[order], np.arange(self.n_buckets + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            first, last = int(bounds[number]), int(bounds[number + 1])
            self._append(number, record.slice(first, last - first))

    def _append(self, bucket: int, record: pa.RecordBatch) -> None:
        if bucket not in self._writers:
            self._writers[bucket] = self._files.enter_context(open(self._path(bucket), "ab"))  # noqa: SIM115
        messages = [record.serialize()]
        if not self._bytes[bucket]:
            messages.insert(0, self._schema.serialize())
        for message in messages:
            self._writers[bucket].write(message)
            self._bytes[bucket] += message.size
        self._rows[bucket] += len(record)

    def shuffled(self, skip: int = 0) -> Iterator[CountBatch]:
        """All cells but the first `skip` in the seeded order, in pieces of at most PIECE_ROWS; one bucket is in memory, or a part."""
        self.mark()
        self._files.close()
        for bucket, rows in enumerate(self._rows):
            if rows <= skip:
                skip -= rows
                continue
            with pa.memory_map(str(self._path(bucket))) as file:
                table = pa.ipc.open_stream(file).read_all()
                if len(table) != rows:
                    raise ValueError(f"{self._path(bucket)}: {len(table):,} cells, {rows:,} were written")
                yield from self._sorted(table, skip)
                skip = 0
                del table

    def _sorted(self, table: pa.Table, skip: int) -> Iterator[CountBatch]:
        """The rows of a bucket in order but the first `skip`; the table is a view of its file, and may be larger than memory."""
        order = np.argsort(order_keys(self._seed, table.column("cell_id").to_numpy()))
        entries = sum(len(chunk.values) for chunk in table.column("genes").chunks)
        for some in np.array_split(order, max(1, -(-entries // BUCKET_ENTRIES))):
            if len(some) <= skip:
                skip -= len(some)
                continue
            rows = np.sort(some)
            cells = from_arrow(table) if len(rows) == len(table) else _taken(table, rows)
            places = np.searchsorted(rows, some)
            for start in range(skip, len(places), PIECE_ROWS):
                yield take_rows(cells, places[start : start + PIECE_ROWS])
            skip = 0
            del cells

    def forget(self, read: int) -> None:
        """Delete the files of buckets whose cells are all among the first `read` of the order."""
        for bucket, rows in enumerate(self._rows):
            read -= rows
            if read < 0:
                return
            self._path(bucket).unlink(missing_ok=True)


def _taken(table: pa.Table, rows: Int64[np.ndarray, " rows"]) -> CountBatch:
    """These rows, rising, one record batch after the other."""
    taken, first = [], 0
    for batch in table.to_batches():
        here = rows[slice(*np.searchsorted(rows, [first, first + len(batch)]))] - first
        if len(here):
            taken.append(take_rows(from_arrow(pa.Table.from_batches([batch])), here))
        first += len(batch)
    return concatenate(taken)
