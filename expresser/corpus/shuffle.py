"""A seeded random order over more cells than memory holds: cells are scattered into buckets, each bucket is sorted.

A cell's place is its rank by a 64-bit hash of (seed, cell id). Buckets are ranges of that hash, so reading them one
after the other gives the same order whatever their number, the chunks cells came in, or the version of numpy.
"""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt32, UInt64

from expresser.corpus.shards import CountBatch, from_arrow, schema, to_arrow

# A bucket is sorted in memory: 32,768 cells of 1,000 genes are 0.2 GB. Each bucket is an open file while scattering and
# macOS allows 256, so beyond 4 million cells buckets grow instead of becoming more.
BUCKET_ROWS = 32_768
MAX_BUCKETS = 128
# Rows gathered at a time: bounds the index arrays of the gather.
PIECE_ROWS = 8_192

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
    """Cells in any order go in, chunk by chunk; all of them come out in the seeded order, piece by piece.

    Buckets are Arrow streams in `folder`, counts as uint32: only the whole pass tells whether uint16 would do.
    A context manager: leaving it closes the files, and `shuffled` deletes each as soon as it has been read.
    """

    def __init__(self, folder: Path, *, seed: int, n_buckets: int, genes: str) -> None:
        self._folder = folder
        self._seed = seed
        self._shift = np.uint64(64 - (n_buckets.bit_length() - 1))
        self.n_buckets = n_buckets
        self._schema = schema(genes, "uint32")
        self.entry_bytes: int = np.dtype(genes).itemsize + 4
        self._files = ExitStack()
        self._writers: dict[int, pa.RecordBatchStreamWriter] = {}

    def __enter__(self) -> "Scatter":
        return self

    def __exit__(self, *error: object) -> None:
        self._files.close()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:03d}.arrow"

    def _writer(self, bucket: int) -> pa.RecordBatchStreamWriter:
        if bucket not in self._writers:
            sink = self._files.enter_context(pa.OSFile(str(self._path(bucket)), "wb"))
            self._writers[bucket] = self._files.enter_context(pa.ipc.new_stream(sink, self._schema))
        return self._writers[bucket]

    def add(self, batch: CountBatch) -> None:
        """Append each cell to its bucket."""
        if not len(batch):
            return
        if self.n_buckets == 1:
            self._writer(0).write_batch(to_arrow(batch, self._schema))
            return
        bucket = (order_keys(self._seed, batch.cell_id) >> self._shift).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        record = to_arrow(batch.take(order), self._schema)
        bounds = np.searchsorted(bucket[order], np.arange(self.n_buckets + 1))
        for number in np.flatnonzero(np.diff(bounds)).tolist():
            first, last = int(bounds[number]), int(bounds[number + 1])
            self._writer(number).write_batch(record.slice(first, last - first))

    def shuffled(self) -> Iterator[CountBatch]:
        """All cells in the seeded order, in pieces of at most PIECE_ROWS; at most one bucket is in memory."""
        self._files.close()
        for number in sorted(self._writers):
            path = self._path(number)
            with pa.memory_map(str(path)) as file:
                bucket = from_arrow(pa.ipc.open_stream(file).read_all())
                order = np.argsort(order_keys(self._seed, bucket.cell_id))
                for start in range(0, len(order), PIECE_ROWS):
                    yield bucket.take(order[start : start + PIECE_ROWS])
                del bucket
            path.unlink()
