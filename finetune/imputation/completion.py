"""Arithmetic under the imputation baselines: completing a matrix observed in part, and counts known not to be zero.

A matrix "observed in part" is a CSR matrix whose stored entries are the observed ones; what is not stored is unknown,
not zero.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int, Num
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.utils.extmath import randomized_svd

from expresser.factors import varies
from finetune.counts import TARGET_SUM, cells_of, pattern, slices

_THETAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0)


@dataclass(frozen=True)
class Additive:
    """``x[cell, gene] = mean + cell effect + gene effect``, in the units of x."""

    mean: float
    cell: Float64[np.ndarray, " cells"]
    gene: Float64[np.ndarray, " genes"]

    def at(
        self, cell: Int[np.ndarray, " entries"], gene: Int[np.ndarray, " entries"]
    ) -> Float64[np.ndarray, " entries"]:
        """The value at each (cell, gene)."""
        return self.mean + self.cell[cell] + self.gene[gene]

    def residuals(self, x: sparse.csr_matrix) -> sparse.csr_matrix:
        """What is left of the observed entries of x."""
        left = x.data - self.at(cells_of(x), x.indices)
        return sparse.csr_matrix((left, x.indices, x.indptr), shape=x.shape)


def fit_additive(
    x: sparse.csr_matrix, *, ridge: float = 1.0, tolerance: float = 1e-6, max_iterations: int = 100
) -> Additive:
    """Least squares over the observed entries, plus ridge * (squared effects); alternating, until no effect moves.

    The ridge is the weight of one extra observation at the mean: a gene seen once gets half of what that entry says.
    A gene or cell never seen has the effect zero.
    """
    cell, gene, y = cells_of(x), x.indices, x.data
    n_cell = np.bincount(cell, minlength=x.shape[0]) + ridge
    n_gene = np.bincount(gene, minlength=x.shape[1]) + ridge
    seen_cell, seen_gene = n_cell > ridge, n_gene > ridge
    mean = float(y.mean()) if y.size else 0.0
    of_cell, of_gene = np.zeros(x.shape[0]), np.zeros(x.shape[1])
    for _ in range(max_iterations):
        before = of_cell, of_gene
        of_gene = _share(np.bincount(gene, y - mean - of_cell[cell], x.shape[1]), n_gene)
        of_cell = _share(np.bincount(cell, y - mean - of_gene[gene], x.shape[0]), n_cell)
        # All cells up and all genes down changes no sum, only the ridge, so alternation moves along it a thousand
        # times more slowly than elsewhere: take the best step at once.
        shift = (of_gene.sum() - of_cell.sum()) / max(seen_cell.sum() + seen_gene.sum(), 1)
        of_cell, of_gene = of_cell + shift * seen_cell, of_gene - shift * seen_gene
        if max(np.abs(of_cell - before[0]).max(initial=0), np.abs(of_gene - before[1]).max(initial=0)) < tolerance:
            break
    return Additive(mean=mean, cell=of_cell, gene=of_gene)


def _share(total: Float64[np.ndarray, " n"], weight: Num[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)


def low_rank(
    x: sparse.csr_matrix, *, rank: int, ridge: float, iterations: int, seed: int
) -> tuple[Float64[np.ndarray, "cells rank"], Float64[np.ndarray, "genes rank"]]:
    """Factors whose product fits the observed entries of x: soft-impute by alternating least squares.

    Minimises, over observed entries, squared error + ridge * (squared factors), in turn over the cells' and the
    genes' factors (Hastie, Mazumder, Lee & Zadeh, JMLR 2015), from the truncated SVD of x with zeros for what is
    unknown (`seed`: of its randomised algorithm). Memory: 1,024 x entries-per-row vectors of rank² at one time,
    beside x and its transpose.
    """
    left, size, right = randomized_svd(x, rank, n_iter=4, random_state=seed)
    cells, genes = left * np.sqrt(size), right.T * np.sqrt(size)
    transposed = x.T.tocsr()
    for _ in range(iterations):
        cells = _ridge_rows(x, genes, ridge)
        genes = _ridge_rows(transposed, cells, ridge)
    return cells, genes


def _ridge_rows(
    x: sparse.csr_matrix, factors: Float64[np.ndarray, "columns rank"], ridge: float
) -> Float64[np.ndarray, "rows rank"]:
    """For each row, the ridge regression of its observed entries on the factors of their columns."""
    rank = factors.shape[1]
    upper = np.triu_indices(rank)
    products = factors[:, upper[0]] * factors[:, upper[1]]
    solved = np.empty((x.shape[0], rank))
    for rows in slices(x.shape[0], 8192):
        part = x[rows]
        gram = np.zeros((part.shape[0], rank, rank))
        gram[:, upper[0], upper[1]] = gram[:, upper[1], upper[0]] = pattern(part) @ products
        gram[:, range(rank), range(rank)] += ridge
        solved[rows] = np.linalg.solve(gram, (part @ factors)[:, :, None])[:, :, 0]
    return solved


def neighbour_weights(
    x: sparse.csr_matrix, first: int, *, neighbours: int, components: int, seed: int
) -> sparse.csr_matrix:
    """Cells `first`, … against all cells: cosine of principal components, of the nearest, never of the cell itself.

    Components are those of x, centred, with zeros for what is not stored. Negative cosines count as zero. All pairs are
    compared, 1,024 cells at a time. Cells that are all alike have no neighbours.
    """
    n = x.shape[0]
    components, neighbours = min(components, min(x.shape) - 1), min(neighbours, n - 1)
    if components < 1 or neighbours < 1 or not varies(x):
        return sparse.csr_matrix((n - first, n))
    space = PCA(components, svd_solver="arpack", random_state=seed).fit_transform(x)
    length = np.linalg.norm(space, axis=1, keepdims=True)
    space = np.divide(space, length, out=np.zeros_like(space), where=length > 0)
    columns, weights = [], []
    for rows in slices(n - first, 1024):
        own = np.arange(rows.start, rows.stop) + first
        cosine = space[own] @ space.T
        cosine[np.arange(len(own)), own] = -np.inf
        nearest = np.argpartition(cosine, -neighbours, axis=1)[:, -neighbours:]
        columns.append(nearest.ravel())
        weights.append(np.maximum(np.take_along_axis(cosine, nearest, axis=1), 0.0).ravel())
    starts = np.arange(n - first + 1) * neighbours
    return sparse.csr_matrix((np.concatenate(weights), np.concatenate(columns), starts), shape=(n - first, n))


def nonzero_expectation(
    rate: Float64[np.ndarray, " entries"], total: Float64[np.ndarray, " entries"], theta: float
) -> Float64[np.ndarray, " entries"]:
    r"""``E[log1p(1e4 c / total) | c >= 1]`` for a negative binomial count c: mean `rate`, inverse dispersion `theta`.

    .. math:: P(c) \propto \frac{\Gamma(c+\theta)}{\Gamma(\theta)\,c!} \left(\frac{r}{r+\theta}\right)^c, \quad c \ge 1

    Turns what a smoother estimates, the expected count with zeros, into what the dropout protocol asks, the expected
    value of an entry that is known not to be zero: a rate near zero gives the value of a single molecule. Summed over
    c with P(c + 1) / P(c) = (c + theta) / (c + 1) * rate / (rate + theta) until less than 1e-5 of the mass is left,
    which is counted at the last c.
    """
    value = np.empty_like(rate)
    # P(1) over P(c >= 1); expm1 and log1p keep digits where the rate is tiny.
    fail = rate / (rate + theta)
    log_zero = theta * np.log1p(-fail)
    with np.errstate(invalid="ignore", divide="ignore"):
        mass = np.where(rate > 0, theta * fail * np.exp(log_zero) / -np.expm1(log_zero), 1.0)
    # Beyond this the sum is long and the value nearly that of the mean: a delta-method step, exact to second order.
    large = rate > 50
    mean, variance = rate[large], rate[large] + rate[large] ** 2 / theta
    scale = TARGET_SUM / total[large]
    value[large] = np.log1p(scale * mean) - 0.5 * variance * (scale / (1 + scale * mean)) ** 2
    rest = np.flatnonzero(~large)
    sums, left, mass = np.zeros(len(rest)), np.ones(len(rest)), mass[rest]
    count = 1
    while len(rest):
        left -= mass
        sums += mass * np.log1p(TARGET_SUM * count / total[rest])
        done = (left < 1e-5) | (count >= 2000)
        if done.any():
            tail = np.maximum(left[done], 0.0) * np.log1p(TARGET_SUM * count / total[rest[done]])
            value[rest[done]] = sums[done] + tail
            rest, sums, left, mass = rest[~done], sums[~done], left[~done], mass[~done]
        mass = mass * (count + theta) / (count + 1) * fail[rest]
        count += 1
    return value


def fit_theta(
    rate: Float64[np.ndarray, " entries"], total: Float64[np.ndarray, " entries"], count: Num[np.ndarray, " entries"]
) -> float:
    """The inverse dispersion, of a coarse grid, with which `nonzero_expectation` errs least (squared) here."""
    if not rate.size:
        return 1.0
    x = np.log1p(TARGET_SUM * count / total)
    errors = [float(np.square(nonzero_expectation(rate, total, theta) - x).sum()) for theta in _THETAS]
    return _THETAS[int(np.argmin(errors))]
