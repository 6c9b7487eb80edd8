"""Molecular cross-validation: methods as estimates of each gene's share of a cell's molecules, and their losses.

Nothing tells a method which zeros are dropouts: it sees one part of the molecules and is judged, over all cells and
the chosen genes, zeros included, by the molecules of the other part. What is estimated is a rate, so smoothers are at
home here (their shares of molecules are what is asked, so none has a corrected row), and predictors of non-zero values
(`additive`, `additive_svd`, `knn`, the model) are not: those become rates by `as_share`.

The best single evidence about an entry is its own molecules, which most methods ignore. So that this does not decide
the comparison, each estimate is mixed with them at the weight that suits it best (`own_mixed`); `weight` in the
scores is the method's part. `no_denoising` is the cell's own molecules alone.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int64, Num
from scipy import sparse

from expresser.metrics.expression import ExpressionScores
from finetune.counts import TARGET_SUM, cells_of, slices, totals
from finetune.imputation.baselines import BASELINES, Counts, Rows, smooth_knn, smooth_magic, smooth_scvi
from finetune.imputation.completion import nonzero_expectation
from finetune.imputation.verdicts import entry_sums

Share = Float64[np.ndarray, " wanted"]

_POISSON = 1e9  # inverse dispersion at which the negative binomial is Poisson to six digits
_WEIGHTS = np.linspace(0, 1, 21).tolist()


def no_denoising(train: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Share:
    """The cell's own molecules. What does not beat this has only added noise."""
    return _dense(train, wanted) / totals(train)[cells_of(wanted)]


def gene_mean(train: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Share:
    """The gene's share of all molecules, the same in each cell."""
    return everyone(train, reference)[wanted.indices]


def knn_raw(train: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Share:
    """Molecules pooled over the cell's nearest neighbours (`baselines.smooth_knn`)."""
    return smooth_knn(train, wanted, reference=reference, seed=seed)[1]


def magic(train: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Share:
    """MAGIC's diffusion of the molecules (`baselines.smooth_magic`)."""
    return smooth_magic(train, wanted, reference=reference, seed=seed)[1]


def scvi(train: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Share:
    """scVI's decoder (`baselines.smooth_scvi`)."""
    return smooth_scvi(train, wanted, reference=reference, seed=seed)[1]


def of_nonzero(run: Callable[..., Rows], name: str) -> Callable[..., Share]:
    """The rate that a predictor of non-zero values implies (`as_share`)."""

    def share(train: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Share:
        value = run(train, wanted, reference=reference, seed=seed)[name]
        return as_share(value, train, wanted, reference=reference)

    return share


METHODS: dict[str, Callable[..., Share]] = {
    "no_denoising": no_denoising,
    "gene_mean": gene_mean,
    **{name: of_nonzero(BASELINES[name].run, name) for name in ("additive", "additive_svd", "knn")},
    "knn_raw": knn_raw,
    "magic": magic,
    "scvi": scvi,
}


def everyone(train: Counts, reference: Counts | None = None) -> Float64[np.ndarray, " genes"]:
    """Each gene's share of all molecules, half a molecule added to each so that none is zero."""
    known = [c for c in (train, reference) if c is not None]
    per_gene = np.sum([np.asarray(c.sum(axis=0), dtype=np.float64).ravel() for c in known], axis=0) + 0.5
    return per_gene / per_gene.sum()


def as_share(
    value: Num[np.ndarray, " wanted"], train: Counts, wanted: Counts, *, reference: Counts | None = None
) -> Share:
    r"""The share of molecules implied by `value`, an expectation of ``log1p(1e4 c / total)`` given c >= 1.

    .. math:: s_{ij} = a_j \, (1 - e^{-N_i \bar s_j}) \, \max(1, N_i (e^{x_{ij}} - 1) / 10^4) / N_i

    The chance of a non-zero is that of the gene's mean share at the cell's depth, the same for all such methods,
    since they do not estimate it; and each gene is scaled (a_j) to its number of training molecules.
    """
    cell, gene, depth = cells_of(wanted), wanted.indices, totals(train)
    count = np.maximum(np.expm1(value.astype(np.float64)) * depth[cell] / TARGET_SUM, 1.0)
    rate = -np.expm1(-depth[cell] * everyone(train, reference)[gene]) * count
    genes = train.shape[1]
    has = np.asarray(train.sum(axis=0), dtype=np.float64).ravel() + 0.5
    scale = has / np.maximum(np.bincount(gene, rate, genes), 1e-300)
    return rate * scale[gene] / depth[cell]


@dataclass
class RateScores:
    """Losses of estimated shares against held-out molecules, as sums that add; over all entries, zeros included.

    `poisson`: mean of ``mu - count * log(mu)``, mu = share * test total: the negative log-likelihood in nats an
    entry, less a term that no method changes.

    `mse`: squared error against ``log1p(1e4 * count / total)`` of the test part, of that value's expectation under
    the Poisson distribution of mean mu. `mse_plain` takes ``log1p(1e4 * share)`` instead, as is usual; but the test
    part is shallow, and the logarithm of an expected count lies far above the expected logarithm, so the plain error
    is not least at the truth.
    """

    n_genes: int
    n_cells: int
    plain: float = 0.0
    expression: ExpressionScores = field(init=False)
    by_cell: Float64[np.ndarray, "9 cells"] = field(init=False)  # `verdicts.entry_sums`, for intervals

    def __post_init__(self) -> None:
        self.expression = ExpressionScores(self.n_genes, self.n_cells)
        self.by_cell = np.zeros((9, self.n_cells))

    def update(
        self,
        *,
        count: Num[np.ndarray, " entries"],
        total: Num[np.ndarray, " entries"],
        share: Float64[np.ndarray, " entries"],
        gene: Int64[np.ndarray, " entries"],
        cell: Int64[np.ndarray, " entries"],
    ) -> None:
        """Add entries: molecules of the test half, the cell's total there, the share estimated from the other half."""
        mu = share * total
        truth = np.log1p(TARGET_SUM * count / total)
        expected = -np.expm1(-mu) * nonzero_expectation(mu, np.asarray(total, np.float64), _POISSON)
        self.expression.update(truth=truth, prediction=expected, gene=gene, cell=cell)
        self.by_cell += entry_sums(truth, expected, mu - count * np.log(mu), cell, self.n_cells)
        self.plain += float(np.square(np.log1p(TARGET_SUM * share) - truth).sum())

    def compute(self) -> dict[str, float | int]:
        """poisson, mse, mse_plain, and the correlations of `ExpressionScores`."""
        scores = self.expression.compute()
        n = max(int(scores["n"]), 1)
        losses = {
            "poisson": float(self.by_cell[-1].sum()) / n,
            "mse": float(scores["rmse"]) ** 2,
            "mse_plain": self.plain / n,
        }
        kept = ("pearson", "pearson_gene", "pearson_cell", "genes_undefined", "n")
        return losses | {name: scores[name] for name in kept}


def wanted_entries(train: Counts, n_genes: int) -> sparse.csr_matrix:
    """All cells at the `n_genes` genes with the most training molecules, as a pattern."""
    most = np.argsort(-np.asarray(train.sum(axis=0)).ravel(), kind="stable")[:n_genes]
    genes, cells = np.sort(most), train.shape[0]
    starts = np.arange(cells + 1) * len(genes)
    return sparse.csr_matrix((np.zeros(starts[-1]), np.tile(genes, cells), starts), shape=train.shape)


def own_mixed(
    share: Share, *, train: Counts, test: Counts, wanted: Counts, reference: Counts | None
) -> tuple[Share, float]:
    """The share mixed with that of the cell's own molecules, and the weight of the former.

    The weight is that of a grid (steps of 0.05) with the least Poisson loss in the other half of the cells (even and
    odd rows), so no cell's test molecules have a say in its own mixture. One molecule spread like everyone's is added
    to each cell, so that no share is zero.
    """
    cell, depth = cells_of(wanted), totals(train)
    total, count, own = totals(test)[cell], _dense(test, wanted), no_denoising(train, wanted)
    spread = everyone(train, reference)[wanted.indices] / (depth[cell] + 1.0)
    mixed, weights = np.empty_like(share), []
    for parity in range(min(2, train.shape[0])):
        judges = cell % 2 != parity if train.shape[0] > 1 else np.ones(len(cell), bool)
        some = judges & (count > 0)

        def loss(weight: float, judges: np.ndarray = judges, some: np.ndarray = some) -> float:
            expected = (weight * share[judges] + (1 - weight) * own[judges]) @ total[judges]
            at = (weight * share[some] + (1 - weight) * own[some]) * _less_one(depth[cell[some]]) + spread[some]
            return float(expected - count[some] @ np.log(at))

        weight = min(_WEIGHTS, key=loss)
        here = cell % 2 == parity
        mixed[here] = (weight * share + (1 - weight) * own)[here] * _less_one(depth[cell[here]]) + spread[here]
        weights.append(weight)
    return mixed, float(np.mean(weights))


def _less_one(depth: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """What a share comes to when one molecule is added to the cell."""
    return depth / (depth + 1.0)


def score_share(
    share: Share, *, train: Counts, test: Counts, wanted: Counts, reference: Counts | None
) -> tuple[dict[str, float | int], RateScores]:
    """Scores of shares at `wanted`, mixed with the cells' own molecules (`own_mixed`), and the sums they come from."""
    scores = RateScores(train.shape[1], train.shape[0])
    cell = cells_of(wanted)
    mixed, weight = own_mixed(share, train=train, test=test, wanted=wanted, reference=reference)
    scores.update(
        count=_dense(test, wanted),
        total=totals(test)[cell],
        share=mixed,
        gene=wanted.indices.astype(np.int64),
        cell=cell.astype(np.int64),
    )
    return scores.compute() | {"weight": weight}, scores


def _dense(matrix: Counts, wanted: Counts) -> Float64[np.ndarray, " wanted"]:
    """The matrix at the stored positions of `wanted`, zeros included."""
    out = np.empty(wanted.nnz)
    for rows in slices(wanted.shape[0], 256):
        part = wanted[rows]
        out[slice(*wanted.indptr[[rows.start, rows.stop]])] = matrix[rows].toarray()[cells_of(part), part.indices]
    return out
