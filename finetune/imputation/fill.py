"""A block of cells and genes as a user would have it after imputation: the measured matrix completed, or replaced."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int
from scipy import sparse

from finetune.counts import cells_of, log_normalise
from finetune.imputation.baselines import BASELINES, Counts, smooth_knn, smooth_magic, smooth_scvi

Block = Float32[np.ndarray, "cells genes"]
Asked = Callable[[Counts, Counts], np.ndarray]  # a model: counts, queries -> values at the queries

SMOOTHERS = {"knn_raw": smooth_knn, "magic": smooth_magic, "scvi": smooth_scvi}


def filled(
    method: str | Asked,
    counts: Counts,
    cells: Int[np.ndarray, " cells"],
    genes: Int[np.ndarray, " genes"],
    *,
    seed: int,
) -> Block:
    """``log1p(1e4 * count / total)`` of chosen cells and genes after a method has been used as its users use it.

    Smoothers replace every value. Predictors of non-zero values, a model among them, fill the zeros and leave what was
    measured. A method sees all cells and genes of `counts`, whatever is chosen.
    """
    block = dense(log_normalise(counts), cells, genes)
    smooth = SMOOTHERS.get(method) if isinstance(method, str) else None
    where = np.ones(block.shape, dtype=bool) if smooth is not None else block == 0
    queries = _entries(counts, cells, genes, where)
    if smooth is not None:
        answer = smooth(counts, queries, seed=seed)[0]
    elif isinstance(method, str):
        answer = BASELINES[method].run(counts, queries, seed=seed)[method]
    else:
        answer = method(counts, queries)
    block[where] = np.maximum(answer, 0.0)  # no count is below zero
    return block


def completed(
    observed: Counts,
    queries: Counts,
    answer: np.ndarray,
    cells: Int[np.ndarray, " cells"],
    genes: Int[np.ndarray, " genes"],
) -> Block:
    """The observed matrix with the answers at the queries, each cell brought to 10,000 again, log-normalised.

    Answers stand for molecules, so a cell with them has more of these than was left; with the hidden values themselves
    as answers this is the whole data, log-normalised.
    """
    rates = log_normalise(observed)
    rates.data = np.expm1(rates.data)
    more = np.expm1(np.maximum(answer.astype(np.float64), 0.0))
    total = 1e4 + np.bincount(cells_of(queries), more, queries.shape[0])
    whole = sparse.csr_matrix(rates + sparse.csr_matrix((more, queries.indices, queries.indptr), shape=queries.shape))
    whole.data = np.log1p(whole.data * (1e4 / total)[cells_of(whole)])
    return dense(whole, cells, genes)


def dense(matrix: sparse.csr_matrix, cells: Int[np.ndarray, " cells"], genes: Int[np.ndarray, " genes"]) -> Block:
    """Chosen rows and columns."""
    return sparse.csr_matrix(matrix[cells][:, genes], dtype=np.float32).toarray()


def _entries(
    counts: Counts, cells: Int[np.ndarray, " cells"], genes: Int[np.ndarray, " genes"], where: np.ndarray
) -> Counts:
    """Ones at the entries of a block, in the shape of the whole; cells and genes rise, so the order is that of `where`."""
    at, gene = np.nonzero(where)
    lengths = np.zeros(counts.shape[0] + 1, dtype=np.int64)
    lengths[cells + 1] = np.bincount(at, minlength=len(cells))
    return sparse.csr_matrix((np.ones(len(at)), genes[gene], np.cumsum(lengths)), shape=counts.shape)
