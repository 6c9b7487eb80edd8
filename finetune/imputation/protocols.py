"""How an imputer is examined: non-zero entries are dropped, or molecules are split in two, by keyed draws."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int
from scipy import sparse
from scipy.stats import binom

from expresser.corpus.shuffle import splitmix64
from expresser.errors import InputError
from finetune.counts import TARGET_SUM, cells_of, totals

_DROP, _SPLIT = 1, 2  # purposes of draws; 3 is that of `counts.choose_rows`


@dataclass(frozen=True)
class Dropout:
    """One draw of the dropout protocol; cells and genes as in the matrix it was drawn from.

    Attributes
    ----------
    observed
        Raw counts that are left. All that a method may see, with `queries`.
    queries
        Its stored pattern is the dropped entries; the data are ones and say nothing of the counts.
    truth
        ``log1p(1e4 * count / total)`` of the dropped entries in CSR order, `total` being what is left of the cell. A
        method cannot know the total before dropping, so truth and predictions share the scale that can be known; on
        the scale of the whole cell every method would be off by the same ``log(1 - share dropped)``.
    """

    observed: sparse.csr_matrix
    queries: sparse.csr_matrix
    truth: Float64[np.ndarray, " queries"]


def drop_entries(
    counts: sparse.csr_matrix, *, drop: float, seed: int, rows: Int[np.ndarray, " cells"] | None = None
) -> Dropout:
    """Drop each non-zero entry with probability `drop`; a cell that would lose all keeps one.

    Whether an entry goes depends on (seed, row, gene) alone: not on other cells, their order or number; and what goes
    at one `drop` also goes at every higher one. rows: what each cell is known by, for example its row in the file;
    None numbers them.

    Raises InputError where `drop` is not between 0 and 1.
    """
    if not 0 < drop < 1:
        raise InputError(
            f"drop is {drop}; it is the share of non-zero entries to hide and lies between 0 and 1, say 0.1."
        )
    counts = _canonical(counts)
    draw = _uniform(counts, seed, _DROP, rows)
    lengths = np.diff(counts.indptr)
    full = lengths > 0
    keep = draw >= drop
    # The entry with the greatest draw is the last to go as `drop` rises: keeping it keeps draws nested.
    greatest = np.zeros(counts.shape[0])
    greatest[full] = np.maximum.reduceat(draw, counts.indptr[:-1][full])
    keep |= draw >= np.repeat(greatest, lengths)
    observed, hidden = _select(counts, keep), _select(counts, ~keep)
    truth = np.log1p(TARGET_SUM * hidden.data / totals(observed)[cells_of(hidden)])
    hidden.data = np.ones_like(hidden.data)
    return Dropout(observed=observed, queries=hidden, truth=truth)


@dataclass(frozen=True)
class Split:
    """One draw of molecular cross-validation: the molecules a method sees, and the others, of the same cells."""

    train: sparse.csr_matrix
    test: sparse.csr_matrix


def split_molecules(
    counts: sparse.csr_matrix, *, test_share: float = 0.1, seed: int, rows: Int[np.ndarray, " cells"] | None = None
) -> Split:
    """Each molecule goes to the test half with probability `test_share` (Batson, Royer & Webber, bioRxiv 786269, 2019).

    The halves of an entry are independent given its rate, where counts are Poisson, so the test half judges an
    estimate of the rate without saying which zeros to look at. Keyed as in `drop_entries`.
    """
    if not 0 < test_share < 1:
        raise InputError(f"test_share is {test_share}; it is a share of the molecules, between 0 and 1, say 0.1.")
    counts = _canonical(counts)
    draw = _uniform(counts, seed, _SPLIT, rows)
    test = np.empty(counts.nnz, np.int64)
    distinct, which = np.unique(counts.data, return_inverse=True)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=len(distinct)))
    for count, start, stop in zip(distinct.tolist(), np.r_[0, ends[:-1]].tolist(), ends.tolist()):
        # Most counts are small and few are distinct: one table of the binomial's distribution for each.
        test[order[start:stop]] = np.searchsorted(
            binom.cdf(np.arange(count), count, test_share), draw[order[start:stop]]
        )
    halves = []
    for data in (counts.data - test, test):
        half = sparse.csr_matrix((data, counts.indices.copy(), counts.indptr.copy()), shape=counts.shape)
        half.eliminate_zeros()
        halves.append(half)
    return Split(*halves)


def _canonical(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """A copy with rising genes and no stored zeros, so that its entries are what can be dropped."""
    counts = counts.copy()
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


def _select(counts: sparse.csr_matrix, keep: Bool[np.ndarray, " entries"]) -> sparse.csr_matrix:
    starts = np.r_[0, np.cumsum(keep)][counts.indptr]
    return sparse.csr_matrix((counts.data[keep], counts.indices[keep], starts), shape=counts.shape)


def _uniform(
    counts: sparse.csr_matrix, seed: int, purpose: int, rows: Int[np.ndarray, " cells"] | None
) -> Float64[np.ndarray, " entries"]:
    """A number in [0, 1) for each entry that depends on (seed, purpose, row, gene) alone."""
    names = np.arange(counts.shape[0]) if rows is None else rows
    start = splitmix64(np.array([seed], np.uint64)) + np.uint64(purpose)
    cell = splitmix64(splitmix64(start) + names.astype(np.uint64))
    key = splitmix64(np.repeat(cell, np.diff(counts.indptr)) + counts.indices.astype(np.uint64))
    return (key >> np.uint64(11)) * 2.0**-53
