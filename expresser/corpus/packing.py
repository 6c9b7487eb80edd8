"""Raw counts of a block of cells packed as a corpus stores them, in one compiled pass, and rows of a batch gathered in another."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from inspect import unwrap
from typing import Any

import numpy as np
from jaxtyping import Int32, Int64, Integer, UInt16, UInt32
from scipy import sparse

from expresser.corpus.shards import CountBatch

UNKNOWN, NO_GENE = -1, -2  # a column whose name is no gene of the vocabulary; a column that is no gene at all (a peak)
UINT32_MAX = 2**32 - 1

# Multiplied by a lone bit, its upper six bits tell which bit it was: compiled Python has no instruction for that.
_DE_BRUIJN = 0x03F79D71B4CB0A89
_BIT = np.zeros(64, np.int64)
for _i in range(64):
    _BIT[((_DE_BRUIJN << _i) & (2**64 - 1)) >> 58] = _i


@dataclass(frozen=True)
class Packed:
    """The kept cells of one block: entry by entry, tokens rising in a cell, no zeros.

    `n_genes` counts the non-zero genes of every cell of the block, kept or not.
    """

    rows: Int64[np.ndarray, " kept"]
    lengths: Int64[np.ndarray, " kept"]
    total: Int64[np.ndarray, " kept"]
    genes: UInt16[np.ndarray, " entries"] | UInt32[np.ndarray, " entries"]
    counts: UInt32[np.ndarray, " entries"]
    n_genes: Int64[np.ndarray, " cells"]


class NotRaw(ValueError):
    """A stored value that can be no count, or a column that is not there."""


class Packer:
    """Packs blocks of one file over a vocabulary of `n_tokens`: what `prove_raw` and `Alignment.apply` do, ten times as fast.

    `tokens` gives each column of the matrix its token, UNKNOWN or NO_GENE. Values of NO_GENE columns are not looked at. Columns that
    share a token are summed exactly. `sums` are the counts of each column so far, of dropped cells too.
    """

    def __init__(self, tokens: Int32[np.ndarray, " columns"], n_tokens: int, genes: np.dtype, min_genes: int) -> None:
        self._tokens = tokens
        self._genes = genes
        self._min_genes = min_genes
        self.sums: Int64[np.ndarray, " columns"] = np.zeros(len(tokens), np.int64)
        self._amount = np.zeros(n_tokens, np.int64)
        self._present = np.zeros(-(-n_tokens // 64), np.uint64)

    def pack(self, block: sparse.csr_matrix) -> Packed:
        """The cells with at least `min_genes` genes. Raises NotRaw; which value it was is for slower code to say."""
        data = block.data
        if data.dtype not in (np.float32, np.float64, np.int64):  # each type more is half a second of compiling
            if data.dtype.kind not in "biuf":
                raise NotRaw
            data = data.astype(np.float64 if data.dtype.kind == "f" or data.dtype == np.uint64 else np.int64)
        cells = block.shape[0]
        genes, counts = np.empty(len(data), self._genes), np.empty(len(data), np.uint32)
        n_genes, total = np.zeros(cells, np.int64), np.zeros(cells, np.int64)
        used = compiled(_pack)(
            data,
            block.indices,
            block.indptr.astype(np.int64),
            self._tokens,
            self._min_genes,
            self.sums,
            self._amount,
            self._present,
            _BIT,
            genes,
            counts,
            n_genes,
            total,
        )
        if used < 0:
            raise NotRaw
        rows = np.flatnonzero(n_genes >= self._min_genes)
        return Packed(rows, n_genes[rows], total[rows], genes[:used], counts[:used], n_genes)


def take_rows(batch: CountBatch, rows: Integer[np.ndarray, " rows"]) -> CountBatch:
    """`batch.take(rows)`, compiled: no index for each entry."""
    lengths = batch.lengths[rows]
    ends = np.cumsum(lengths)
    n = int(ends[-1]) if len(ends) else 0
    genes, counts = np.empty(n, batch.genes.dtype), np.empty(n, batch.counts.dtype)
    starts = batch.offsets[:-1][rows]
    compiled(_gather)(np.asarray(batch.genes), np.asarray(batch.counts), starts, lengths, genes, counts)
    return CountBatch(
        cell_id=batch.cell_id[rows],
        source=batch.source[rows],
        total=batch.total[rows],
        lengths=lengths,
        genes=genes,
        counts=counts,
    )


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as machine code: a second for each new type of its arguments, kept in numba's cache where that can be written."""
    import numba

    try:
        return numba.njit(nogil=True, cache=True)(unwrap(function))
    except RuntimeError:
        return numba.njit(nogil=True)(unwrap(function))


def _pack(
    data, indices, indptr, tokens, min_genes, sums, amount, present, bit_of, genes, counts, n_genes, total
):  # fmt: skip
    de_bruijn, one, shift = np.uint64(0x03F79D71B4CB0A89), np.uint64(1), np.uint64(58)
    to = 0
    for row in range(len(indptr) - 1):
        whole = np.int64(0)
        bad = False
        for at in range(indptr[row], indptr[row + 1]):
            column = np.int64(indices[at])
            if column < 0 or column >= len(tokens):
                bad = True
                break
            token = np.int64(tokens[column])
            if token == -2:
                continue
            value = data[at]
            if not (value >= 0 and value < 4294967296.0):  # NaN too
                bad = True
                break
            count = np.int64(value)
            if count != value:
                bad = True
                break
            sums[column] += count
            if token < 0 or count == 0:
                continue
            amount[token] += count
            present[token >> 6] |= one << np.uint64(token & 63)
            whole += count
        if bad:  # left as clean as it was found
            amount[:] = 0
            present[:] = 0
            return -1
        first = to
        for word in range(len(present)):
            bits = present[word]
            if bits == 0:
                continue
            present[word] = 0
            while bits != 0:
                lowest = bits & (~bits + one)
                bits ^= lowest
                token = (word << 6) + bit_of[np.int64((lowest * de_bruijn) >> shift)]
                genes[to] = token
                counts[to] = amount[token]
                amount[token] = 0
                to += 1
        n_genes[row] = to - first
        total[row] = whole
        if to - first < min_genes:
            to = first
    return to


def _gather(genes_from, counts_from, starts, lengths, genes, counts):
    to = 0
    for row in range(len(lengths)):
        start, n = starts[row], lengths[row]
        g, genes_to = genes_from[start : start + n], genes[to : to + n]
        c, counts_to = counts_from[start : start + n], counts[to : to + n]
        for i in range(n):  # views counted from 0: a loop that the compiler can vectorise
            genes_to[i] = g[i]
        for i in range(n):
            counts_to[i] = c[i]
        to += n
