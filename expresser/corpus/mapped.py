"""Cells gathered from memory-mapped Arrow shards by address: one compiled loop copies the cells asked for and nothing else."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import unwrap
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Int64, Shaped

from expresser.corpus.shards import CountBatch
from expresser.errors import InputError


@dataclass(frozen=True)
class _Buffers:
    """One buffer of each record batch: `memory[starts[b] + i]` is element i of record batch b's."""

    # All memory from the first buffer to the last, other mappings and holes included: only the buffers may be touched.
    memory: Shaped[np.ndarray, " elements"]
    starts: Int64[np.ndarray, " batches"]
    address: int  # of memory[0]

    @classmethod
    def of(cls, buffers: list[pa.Buffer], kind: pa.DataType) -> "_Buffers":
        element = np.dtype(kind.to_pandas_dtype())
        first = min(buffer.address for buffer in buffers)
        count = (max(buffer.address + buffer.size for buffer in buffers) - first) // element.itemsize
        memory = np.ctypeslib.as_array((np.ctypeslib.as_ctypes_type(element) * count).from_address(first))
        memory.flags.writeable = False
        starts = np.array([(buffer.address - first) // element.itemsize for buffer in buffers], np.int64)
        return cls(memory, starts, first)


class AddressView:
    """The buffers of all shards as numpy arrays.

    Arrow answers a random read by slicing and joining one array a cell, which costs more than copying its counts.
    Rows must exist and record batches be valid and not empty: the caller sees to it. Genes and counts share their offsets.
    """

    def __init__(self, batches: Sequence[pa.RecordBatch], where: Path) -> None:
        self._batches, self._where = batches, where  # batches own the mappings; where is for messages
        self._first_row = np.cumsum([0, *(len(batch) for batch in batches)])
        self._n_entries = np.array([len(batch.column("genes").values) for batch in batches], np.int64)
        columns = {name: [batch.column(name) for batch in batches] for name in batches[0].schema.names}
        self._flat = {
            name: _Buffers.of([column.buffers()[1] for column in columns[name]], columns[name][0].type)
            for name in ("cell_id", "source", "total")
        }
        self._offsets = _Buffers.of([column.buffers()[1] for column in columns["genes"]], pa.int32())
        self._genes, self._counts = (
            _Buffers.of([column.buffers()[3] for column in columns[name]], columns[name][0].type.value_type)
            for name in ("genes", "counts")
        )

    def entries(self, rows: Int64[np.ndarray, " rows"]) -> tuple[Int64[np.ndarray, " rows"], ...]:
        """Of each row its record batch, its place in it, its first entry there and the number of its entries."""
        batch = np.searchsorted(self._first_row, rows, side="right") - 1
        place = rows - self._first_row[batch]
        at = self._offsets.starts[batch] + place
        start, stop = self._offsets.memory[at].astype(np.int64), self._offsets.memory[at + 1].astype(np.int64)
        if ((start < 0) | (start > stop) | (stop > self._n_entries[batch])).any():
            raise InputError(
                f"{self._where}: rows {rows.tolist()[:10]} … are damaged: a cell's entries lie outside its record batch. "
                "`expresser corpus verify` names the file: copy it again, or build the corpus again."
            )
        return batch, place, start, stop - start

    def addresses(
        self, rows: Int64[np.ndarray, " rows"], *, counts: bool = True
    ) -> tuple[Int64[np.ndarray, " ranges"], Int64[np.ndarray, " ranges"]]:
        """Where the genes and the counts of the cells lie in this process's memory, and how many bytes they are."""
        batch, _, start, lengths = self.entries(rows)
        lists = (self._genes, self._counts) if counts else (self._genes,)
        return (
            np.concatenate([part.address + (part.starts[batch] + start) * part.memory.itemsize for part in lists]),
            np.concatenate([lengths * part.memory.itemsize for part in lists]),
        )

    def read(self, rows: Int64[np.ndarray, " rows"]) -> CountBatch:
        """The cells in `rows`, in that order; rows may repeat."""
        batch, place, start, lengths = self.entries(rows)
        flat = {name: part.memory[part.starts[batch] + place] for name, part in self._flat.items()}
        genes, counts = (np.empty(lengths.sum(), part.memory.dtype) for part in (self._genes, self._counts))
        genes_at, counts_at = self._genes.starts[batch] + start, self._counts.starts[batch] + start
        _compiled(_copy)(self._genes.memory, genes_at, genes, self._counts.memory, counts_at, counts, lengths)
        return CountBatch(**flat, lengths=lengths, genes=genes, counts=counts)

    def genes(self, rows: Int64[np.ndarray, " rows"]) -> tuple[Int64[np.ndarray, " rows"], np.ndarray]:
        """How many genes each of these cells has, and the genes; counts are not touched."""
        batch, _, start, lengths = self.entries(rows)
        genes = np.empty(lengths.sum(), self._genes.memory.dtype)
        _compiled(_copy_one)(self._genes.memory, self._genes.starts[batch] + start, genes, lengths)
        return lengths, genes


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Half a second to import and compile, once a process and only where cells are read. Unwrapped of the tests' checks.
    import numba

    return numba.njit(nogil=True)(unwrap(function))


def _copy(genes_from, genes_at, genes, counts_from, counts_at, counts, lengths):
    to = 0
    for row in range(len(lengths)):
        n = lengths[row]
        g, genes_to = genes_from[genes_at[row] : genes_at[row] + n], genes[to : to + n]
        c, counts_to = counts_from[counts_at[row] : counts_at[row] + n], counts[to : to + n]
        for i in range(n):  # over views counted from 0, a loop that the compiler can vectorise
            genes_to[i] = g[i]
        for i in range(n):
            counts_to[i] = c[i]
        to += n


def _copy_one(values_from, values_at, values, lengths):
    to = 0
    for row in range(len(lengths)):
        n = lengths[row]
        v, values_to = values_from[values_at[row] : values_at[row] + n], values[to : to + n]
        for i in range(n):
            values_to[i] = v[i]
        to += n
