"""Packed cells as numpy arrays and as Arrow record batches, and the writer of a corpus's shards."""

import hashlib
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int64, Integer, UInt16, UInt32
from scipy import sparse

from expresser.corpus.manifest import shard_name

# Offsets of an Arrow list<> column are int32.
MAX_ENTRIES = 2**31 - 1


@dataclass(frozen=True)
class CountBatch:
    """Cells packed one after the other: row r owns `lengths[r]` consecutive entries of `genes` and `counts`.

    `cell_id` is the row of the corpus's obs, `source` the number of the input, `total` the sum of the cell's raw counts
    over the vocabulary, `genes` the token ids, rising within a cell, `counts` the raw counts, never zero. uint16 where
    the corpus allows it, else uint32. Arrays of a batch that was read may be read-only views of the mapped files.
    """

    cell_id: UInt32[np.ndarray, " cells"]
    source: UInt16[np.ndarray, " cells"]
    total: UInt32[np.ndarray, " cells"]
    lengths: Int64[np.ndarray, " cells"]
    genes: UInt16[np.ndarray, " entries"] | UInt32[np.ndarray, " entries"]
    counts: UInt16[np.ndarray, " entries"] | UInt32[np.ndarray, " entries"]

    def __len__(self) -> int:
        return len(self.cell_id)

    @property
    def offsets(self) -> Int64[np.ndarray, " cells_plus_one"]:
        """Entries of row r lie at offsets[r] : offsets[r + 1]."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths)])

    def take(self, rows: Integer[np.ndarray, " rows"]) -> "CountBatch":
        """The rows named, in that order, copied."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        # Where each entry comes from: its row's start, counted on by its place in the row.
        entries = np.repeat(self.offsets[:-1][rows] - (ends - lengths), lengths)
        entries += np.arange(len(entries))
        return CountBatch(
            cell_id=self.cell_id[rows],
            source=self.source[rows],
            total=self.total[rows],
            lengths=lengths,
            genes=self.genes[entries],
            counts=self.counts[entries],
        )

    def slice(self, start: int, stop: int) -> "CountBatch":
        """Rows start : stop as views."""
        first, last = int(self.lengths[:start].sum()), int(self.lengths[:stop].sum())
        return CountBatch(
            cell_id=self.cell_id[start:stop],
            source=self.source[start:stop],
            total=self.total[start:stop],
            lengths=self.lengths[start:stop],
            genes=self.genes[first:last],
            counts=self.counts[first:last],
        )

    def to_csr(self, n_genes: int) -> sparse.csr_matrix:
        """Raw counts, cells x genes, int64."""
        return sparse.csr_matrix(
            (self.counts.astype(np.int64), self.genes.astype(np.int64), self.offsets), shape=(len(self), n_genes)
        )


def concatenate(batches: list[CountBatch]) -> CountBatch:
    """The rows of all batches in order; a single batch is returned as it is."""
    if len(batches) == 1:
        return batches[0]
    return CountBatch(
        cell_id=np.concatenate([batch.cell_id for batch in batches]),
        source=np.concatenate([batch.source for batch in batches]),
        total=np.concatenate([batch.total for batch in batches]),
        lengths=np.concatenate([batch.lengths for batch in batches]),
        genes=np.concatenate([batch.genes for batch in batches]),
        counts=np.concatenate([batch.counts for batch in batches]),
    )


def schema(genes: str, counts: str) -> pa.Schema:
    """Arrow schema of a shard; `genes` and `counts` are "uint16" or "uint32"."""
    return pa.schema(
        [
            ("cell_id", pa.uint32()),
            ("source", pa.uint16()),
            ("total", pa.uint32()),
            ("genes", pa.list_(pa.type_for_alias(genes))),
            ("counts", pa.list_(pa.type_for_alias(counts))),
        ]
    )


def narrow(batch: CountBatch, columns: pa.Schema) -> CountBatch:
    """The batch with genes and counts in the types of `columns`; refuses a value that does not fit."""
    fields = {}
    for name in ("genes", "counts"):
        values, kind = getattr(batch, name), columns.field(name).type.value_type.to_pandas_dtype()
        if values.size and values.max() > np.iinfo(kind).max:
            raise ValueError(f"{name}: {values.max()} does not fit {np.dtype(kind)}")
        fields[name] = values.astype(kind, copy=False)
    return replace(batch, **fields)


def to_arrow(batch: CountBatch, columns: pa.Schema) -> pa.RecordBatch:
    """A record batch of `columns`, whose types the batch must have."""
    if len(batch.genes) > MAX_ENTRIES:
        raise ValueError(f"{len(batch.genes):,} entries in one record batch, an Arrow list holds {MAX_ENTRIES:,}")
    offsets = pa.array(batch.offsets.astype(np.int32))
    return pa.record_batch(
        [
            pa.array(batch.cell_id),
            pa.array(batch.source),
            pa.array(batch.total),
            pa.ListArray.from_arrays(offsets, pa.array(batch.genes)),
            pa.ListArray.from_arrays(offsets, pa.array(batch.counts)),
        ],
        schema=columns,
    )


def from_arrow(table: pa.Table) -> CountBatch:
    """The rows of a table of shard columns, packed. All work is in Arrow's kernels, whatever the number of chunks.

    list_flatten rather than combine_chunks: as fast, and one table may hold more entries than an int32 offset counts.
    """
    genes, counts = table.column("genes"), table.column("counts")
    return CountBatch(
        cell_id=table.column("cell_id").to_numpy(),
        source=table.column("source").to_numpy(),
        total=table.column("total").to_numpy(),
        lengths=pc.list_value_length(genes).to_numpy().astype(np.int64),
        genes=pc.list_flatten(genes).to_numpy(),
        counts=pc.list_flatten(counts).to_numpy(),
    )


def prove_plain(stream: pa.Buffer) -> None:
    """ValueError where a record batch of an Arrow stream is compressed: it may unpack to a thousand times what it weighs.

    Ours are not, since they are mapped, not read. Looks at heads alone (Message.fbs of Arrow: the header is field 2 of a message, the
    compression field 3 of a record batch).
    """
    messages = pa.ipc.MessageReader.open_stream(stream)
    for message in _each(messages):
        head = message.metadata.to_pybytes()
        try:
            (root,) = struct.unpack_from("<I", head)
            header = _field(head, root, 2)
            if message.type == "record batch" and header is not None:
                (offset,) = struct.unpack_from("<I", head, header)
                if _field(head, header + offset, 3) is not None:
                    raise ValueError("a record batch is compressed, and those of a corpus are not")
        except struct.error as error:
            raise ValueError(f"the head of a message is damaged ({error})") from error


def _each(messages: pa.ipc.MessageReader) -> Iterator[pa.Message]:
    while True:
        try:
            yield messages.read_next_message()
        except StopIteration:
            return


def _field(head: bytes, table: int, number: int) -> int | None:
    """Where a field of a table of a flatbuffer lies; None where the table does not have it."""
    vtable = table - struct.unpack_from("<i", head, table)[0]
    slot = 4 + 2 * number
    if vtable < 0 or slot >= struct.unpack_from("<H", head, vtable)[0]:
        return None
    (offset,) = struct.unpack_from("<H", head, vtable + slot)
    return table + offset if offset else None


class ContentDigest:
    """sha256 over the columns of all rows in order: the same however the rows are cut into batches and files."""

    def __init__(self) -> None:
        self._columns = {
            name: hashlib.sha256() for name in ("cell_id", "source", "total", "lengths", "genes", "counts")
        }

    def update(self, batch: CountBatch) -> None:
        """Add the rows of `batch`. Values are hashed as little-endian of their stored width."""
        for name, digest in self._columns.items():
            values = getattr(batch, name)
            digest.update(np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<")).data)

    def hexdigest(self) -> str:
        """One digest of the columns' digests."""
        return hashlib.sha256("".join(digest.hexdigest() for digest in self._columns.values()).encode()).hexdigest()


class _HashedFile:
    """A file opened for writing that knows its sha256 and size without being read again."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")  # noqa: SIM115 - closed by close()
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: Any) -> int:
        written = self._file.write(data)
        self.sha256.update(data)
        self.bytes += written
        return written

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "_HashedFile":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Supply:
    """Rows from an iterator of batches of any size, handed out in the sizes asked for."""

    def __init__(self, batches: Iterator[CountBatch]) -> None:
        self._batches = batches
        self._rest: CountBatch | None = None

    def take(self, rows: int) -> CountBatch:
        """The next `rows` rows."""
        have: list[CountBatch] = []
        missing = rows
        while missing:
            batch = self._rest if self._rest is not None else next(self._batches)
            used = min(missing, len(batch))
            have.append(batch.slice(0, used))
            self._rest = batch.slice(used, len(batch)) if used < len(batch) else None
            missing -= used
        return concatenate(have)


def write_shards(
    folder: Path,
    rows: Iterator[CountBatch],
    *,
    columns: pa.Schema,
    n_cells: int,
    shard_rows: int,
    batch_rows: int,
    written: Callable[[CountBatch], None],
) -> list[dict[str, Any]]:
    """Write `n_cells` rows as Arrow streams of `shard_rows` rows in record batches of `batch_rows`.

    Where a batch ends depends on the row number alone, so the bytes do not depend on how `rows` arrive. `written` is
    called with each record batch's rows in the shards' types. Returns the manifest's entry of each shard.
    """
    supply = _Supply(rows)
    shards = []
    for number, first in enumerate(range(0, n_cells, shard_rows)):
        path = folder / shard_name(number)
        here = min(shard_rows, n_cells - first)
        nnz, first_cell_id = 0, -1
        with _HashedFile(path) as sink, pa.ipc.new_stream(sink, columns) as writer:
            for start in range(0, here, batch_rows):
                batch = narrow(supply.take(min(batch_rows, here - start)), columns)
                writer.write_batch(to_arrow(batch, columns))
                nnz += len(batch.genes)
                if start == 0:
                    first_cell_id = int(batch.cell_id[0])
                written(batch)
        shards.append(
            {
                "file": path.name,
                "rows": here,
                "nnz": nnz,
                "bytes": sink.bytes,
                "sha256": sink.sha256.hexdigest(),
                "first_cell_id": first_cell_id,
            }
        )
    if next(rows, None) is not None:  # asking also lets the iterator end, and clean up after itself
        raise ValueError(f"more rows came than the {n_cells:,} announced")
    return shards
