"""Matrices of raw counts, cells x genes: their cells, depths, normalised values, and random choices of rows."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64, Int
from scipy import sparse

from expresser.corpus.shuffle import splitmix64
from expresser.errors import InputError

TARGET_SUM = 1e4
_CHOOSE = 3  # purpose of the draw; 1 and 2 are those of `imputation.protocols`


def cells_of(matrix: sparse.csr_matrix) -> Int[np.ndarray, " entries"]:
    """The row of each stored entry, in CSR order."""
    return np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))


def totals(counts: sparse.csr_matrix) -> Float64[np.ndarray, " cells"]:
    """Molecules of each cell."""
    return np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()


def log_normalise(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """``log1p(1e4 * count / total)`` of the stored entries, natural log (scanpy's normalize_total, then log1p)."""
    cell = cells_of(counts)
    values = np.log1p(TARGET_SUM * counts.data / totals(counts)[cell])
    return sparse.csr_matrix((values, counts.indices, counts.indptr), shape=counts.shape)


def pattern(x: sparse.csr_matrix) -> sparse.csr_matrix:
    """One where x has an entry."""
    return sparse.csr_matrix((np.ones(x.nnz), x.indices, x.indptr), shape=x.shape)


def slices(n: int, size: int) -> Iterator[slice]:
    """0 … n in slices of at most `size`."""
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def choose_rows(n: int, at_most: int | None, seed: int = 0) -> Int[np.ndarray, " chosen"]:
    """At most `at_most` of n rows, rising, at random by `seed`; a larger choice contains a smaller one."""
    if at_most is not None and at_most < 1:
        raise InputError(f"at most {at_most} cells were asked for; give one or more.")
    if at_most is None or at_most >= n:
        return np.arange(n)
    key = splitmix64(
        splitmix64(np.array([seed], np.uint64)) + np.uint64(_CHOOSE) + splitmix64(np.arange(n).astype(np.uint64))
    )
    return np.sort(np.argsort(key, kind="stable")[:at_most])
