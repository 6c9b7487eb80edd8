"""What a model that imputes dropped non-zero entries must beat: simple and published predictors, one function each.

Every baseline takes what the model gets, and nothing else:

* `observed`, cells x genes: raw counts after dropping, so an entry is zero where nothing was found or where it was
  dropped;
* `queries`, the same shape: the positions of the dropped entries (stored pattern; the data are not read);
* `reference`, cells x the same genes, or None: raw counts of further cells (say, a sample of the model's training
  corpus), from which gene effects, factors and neighbours are then learnt together with `observed`. A model that saw
  millions of cells and is asked about a few hundred must be compared with these rows too;
* `seed`, for those that draw numbers;

and gives ``log1p(1e4 * count / total)`` at each query in CSR order, `total` being the cell's total in `observed`.

The entries asked for are known to be non-zero, and the predictors differ in how they use that. `gene_mean`,
`additive`, `additive_svd` and `knn` average non-zero entries alone, so they estimate E[x | x > 0], as asked.
Smoothers (`knn_raw`, `magic`, `scvi`) estimate E[x], zeros included, and lose for that reason alone: each has a
second row, `..._corrected`, with the expectation of a non-zero count at the rate that it estimates
(`finetune.imputation.completion.nonzero_expectation`; one dispersion for all entries, fitted to observed ones). That correction
is strong, most dropped entries being single molecules whose value follows from the cell's depth: `gene_rate` shows
what it gives with no model of the cell at all.
"""

import importlib.util
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from jaxtyping import Float64
from scipy import sparse

from expresser.errors import InputError
from finetune.counts import TARGET_SUM, cells_of, log_normalise, pattern, slices, totals
from finetune.imputation.completion import fit_additive, fit_theta, low_rank, neighbour_weights, nonzero_expectation

Counts: TypeAlias = sparse.csr_matrix
Rows = dict[str, Float64[np.ndarray, " queries"]]  # name in the table -> its predictions
Smoothed = tuple[Float64[np.ndarray, " wanted"], Float64[np.ndarray, " wanted"]]  # E[x], E[share of molecules]

_SAMPLE = 50_000  # observed entries that the dispersion is fitted to
_BLOCK = 256  # cells (for MAGIC: genes) that are dense at one time


def gene_mean(observed: Counts, queries: Counts, *, reference: Counts | None = None, seed: int = 0) -> Rows:
    """Mean of the gene's non-zero values, of all non-zero values where it was never seen: knows nothing of the cell."""
    x = log_normalise(_all_cells(observed, reference)[0])
    n = np.bincount(x.indices, minlength=x.shape[1])
    mean = np.full(x.shape[1], x.data.mean())
    np.divide(np.bincount(x.indices, x.data, x.shape[1]), n, out=mean, where=n > 0)
    return {"gene_mean": mean[queries.indices]}


def gene_rate(observed: Counts, queries: Counts, *, reference: Counts | None = None, seed: int = 0) -> Rows:
    """Expectation of a non-zero count at the gene's share of all molecules times the cell's depth.

    One number a gene, as in `gene_mean`, but counting gives the rest: a zero-truncated negative binomial.
    """
    counts, _ = _all_cells(observed, reference)
    depth, wanted = totals(observed), _wanted(observed, queries, seed)
    cell, gene = cells_of(wanted), wanted.indices
    per_gene = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
    # Without the cell itself: a rare gene's own molecules would be most of the evidence for themselves. Half a
    # molecule is added for each gene, so that no share is zero.
    others = counts.sum() - depth[cell] + 0.5 * counts.shape[1]
    share = (per_gene[gene] - wanted.data + 0.5) / others
    return {"gene_rate": _corrected(wanted, share, depth)}


def additive(observed: Counts, queries: Counts, *, reference: Counts | None = None, seed: int = 0) -> Rows:
    """Mean + gene effect + cell effect over the non-zero values, by least squares with a ridge of one observation."""
    counts, first = _all_cells(observed, reference)
    return {"additive": fit_additive(log_normalise(counts)).at(first + cells_of(queries), queries.indices)}


def additive_svd(
    observed: Counts,
    queries: Counts,
    *,
    reference: Counts | None = None,
    seed: int = 0,
    rank: int = 10,
    ridge: float = 8.0,
    iterations: int = 10,
    additive_ridge: float = 1.0,
) -> Rows:
    """`additive` plus a matrix of rank `rank` fitted to its residuals at the non-zero entries (`completion.low_rank`).

    The truncated SVD of the residuals, with zeros where nothing was observed, is only its start: by itself it shrinks
    each prediction by the share of entries observed. On 1,020 gut cells: SVD alone MAE 0.334, r 0.840; after the
    alternating ridge regressions 0.326, 0.843; rank 20 is worse (0.330, 0.835).
    """
    counts, first = _all_cells(observed, reference)
    x = log_normalise(counts)
    effects = fit_additive(x, ridge=additive_ridge)
    cell, gene = first + cells_of(queries), queries.indices
    prediction = effects.at(cell, gene)
    rank = min(rank, min(x.shape) - 1)
    if rank > 0:
        left, right = low_rank(effects.residuals(x), rank=rank, ridge=ridge, iterations=iterations, seed=seed)
        for part in slices(len(cell), 1 << 18):
            prediction[part] += np.einsum("ek,ek->e", left[cell[part]], right[gene[part]])
    return {"additive_svd": prediction}


def knn(
    observed: Counts,
    queries: Counts,
    *,
    reference: Counts | None = None,
    seed: int = 0,
    neighbours: int = 30,
    components: int = 30,
    prior: float = 1.0,
) -> Rows:
    """`additive` plus the mean residual of the nearest cells in which the gene is non-zero.

    Neighbours: greatest cosine of principal components of the log-normalised observed values, weighted by it, the
    cell itself left out. `prior` neighbours of residual zero are added, so where few neighbours show the gene the
    additive prediction stays. On 1,020 gut cells any of 20 to 50 neighbours and components gives MAE 0.315 to 0.317,
    r 0.851.
    """
    counts, first = _all_cells(observed, reference)
    x = log_normalise(counts)
    effects = fit_additive(x)
    residual, seen = effects.residuals(x), pattern(x)
    prediction = effects.at(first + cells_of(queries), queries.indices)
    weight = neighbour_weights(x, first, neighbours=neighbours, components=components, seed=seed)
    for rows, entries in _cell_blocks(queries):
        above, below = (_dense_at(weight[rows] @ matrix, queries[rows]) for matrix in (residual, seen))
        prediction[entries] += above / (below + prior)
    return {"knn": prediction}


def knn_raw(observed: Counts, queries: Counts, *, reference: Counts | None = None, seed: int = 0) -> Rows:
    """Plain smoothing: the mean value of the neighbours, zeros included; corrected, from their pooled molecules."""
    return _raw_and_corrected("knn_raw", smooth_knn, observed, queries, reference, seed)


def magic(observed: Counts, queries: Counts, *, reference: Counts | None = None, seed: int = 0) -> Rows:
    """MAGIC (van Dijk et al., Cell 2018), package magic-impute: values diffused over a graph of cells."""
    return _raw_and_corrected("magic", smooth_magic, observed, queries, reference, seed)


def scvi(observed: Counts, queries: Counts, *, reference: Counts | None = None, seed: int = 0) -> Rows:
    """scVI (Lopez et al., Nature Methods 2018), package scvi-tools: a variational autoencoder trained on `observed`."""
    return _raw_and_corrected("scvi", smooth_scvi, observed, queries, reference, seed)


def smooth_knn(
    observed: Counts,
    wanted: Counts,
    *,
    reference: Counts | None = None,
    seed: int = 0,
    neighbours: int = 30,
    components: int = 30,
) -> Smoothed:
    """Mean value of the neighbours (as in `knn`) at each entry of `wanted`, and their share of pooled molecules.

    The pool holds one neighbour more, of median depth, whose molecules are spread like everyone's.
    """
    counts, first = _all_cells(observed, reference)
    x, depth = log_normalise(counts), totals(counts)
    weight = neighbour_weights(x, first, neighbours=neighbours, components=components, seed=seed)
    everyone = (np.asarray(counts.sum(axis=0)).ravel() + 0.5) / (counts.sum() + 0.5 * counts.shape[1])
    above, molecules = np.empty(wanted.nnz), np.empty(wanted.nnz)
    for rows, entries in _cell_blocks(wanted):
        above[entries], molecules[entries] = (_dense_at(weight[rows] @ matrix, wanted[rows]) for matrix in (x, counts))
    cell, extra = cells_of(wanted), float(np.median(depth))
    value = above / np.maximum(np.asarray(weight.sum(axis=1)).ravel(), 1e-12)[cell]
    share = (molecules + extra * everyone[wanted.indices]) / (weight @ depth + extra)[cell]
    return value, share


_MAGIC_CELLS = 10


def smooth_magic(observed: Counts, wanted: Counts, *, reference: Counts | None = None, seed: int = 0) -> Smoothed:
    """MAGIC's diffused value at each entry of `wanted`, and the share of molecules diffused in the same way.

    Its own settings: a graph fitted to the log-normalised values (knn 5, decay 1, 100 components) and three steps.
    This is what the package's `transform` gives with solver="exact", computed some genes at a time so that no matrix
    of all cells and genes is dense.
    """
    counts, first = _all_cells(observed, reference)
    if counts.shape[0] < _MAGIC_CELLS:
        raise InputError(
            f"MAGIC draws a graph of each cell's 5 nearest, and there are {counts.shape[0]} cells; {_MAGIC_CELLS} are needed. Give "
            "more cells, or choose --methods without it."
        )
    x, depth = log_normalise(counts), totals(counts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its dependencies announce renamed functions; none of it is ours to mend
        import magic as package

        settings = {"n_pca": min(100, min(x.shape) - 1), "random_state": seed, "n_jobs": 1, "verbose": 0}
        operator = package.MAGIC(**settings).fit(x)
        step, times = sparse.csr_matrix(operator.diff_op), int(operator.t)

    def diffuse(values: np.ndarray) -> np.ndarray:
        for _ in range(times):
            values = step @ values
        return values[first:]

    cell, gene = cells_of(wanted), wanted.indices
    order = np.argsort(gene, kind="stable")
    value, molecules = np.empty(wanted.nnz), np.empty(wanted.nnz)
    by_gene, counts_by_gene = x.tocsc(), counts.tocsc()
    for part in slices(x.shape[1], _BLOCK):
        entries = order[slice(*np.searchsorted(gene[order], [part.start, part.stop]))]
        if len(entries):
            at = cell[entries], gene[entries] - part.start
            value[entries] = diffuse(by_gene[:, part].toarray())[at]
            molecules[entries] = diffuse(counts_by_gene[:, part].toarray().astype(np.float64))[at]
    return value, molecules / diffuse(depth)[cell]


def smooth_scvi(
    observed: Counts,
    wanted: Counts,
    *,
    reference: Counts | None = None,
    seed: int = 0,
    max_epochs: int | None = None,
    samples: int = 10,
) -> Smoothed:
    """scVI's share of each gene, the decoder's mean over `samples` draws of the latent, at each entry of `wanted`.

    Its own settings, except that no cells are held out for validation. The value is ``log1p(1e4 * share)``. A gene
    that no cell shows is left out of training and gets the share zero. max_epochs: None is the package's rule (400,
    fewer above 20,000 cells).
    """
    import anndata
    import scvi as package

    from expresser.generators import seeded  # which imports torch, as scvi does

    counts, first = _all_cells(observed, reference)
    shown = np.flatnonzero(np.bincount(counts.indices, minlength=counts.shape[1]))
    column = np.full(counts.shape[1], -1)
    column[shown] = np.arange(len(shown))
    share = np.zeros(wanted.nnz)
    talkers = _quiet("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")
    with warnings.catch_warnings(), talkers, seeded(seed):
        warnings.simplefilter("ignore")  # lightning's advice about data-loader workers and log folders
        adata = anndata.AnnData(sparse.csr_matrix(counts[:, shown], dtype=np.float32))
        adata.obs_names = [str(i) for i in range(adata.n_obs)]
        package.model.SCVI.setup_anndata(adata)
        model = package.model.SCVI(adata)
        model.train(
            max_epochs=max_epochs, train_size=1.0, shuffle_set_split=False, enable_progress_bar=False, logger=False
        )
        for rows, entries in _cell_blocks(wanted):
            block = model.get_normalized_expression(
                indices=list(range(first + rows.start, first + rows.stop)),
                library_size=1,
                n_samples=samples,
                return_mean=True,
                return_numpy=True,
            )
            part = wanted[rows]
            at = column[part.indices]
            share[entries] = np.where(at >= 0, block[cells_of(part), at], 0.0)
    return np.log1p(TARGET_SUM * share), share


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Loggers that speak of errors only, for a while."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, before):
            logger.setLevel(level)


@dataclass(frozen=True)
class Baseline:
    """A predictor, a phrase about it for the report, and the package it needs beyond the project's own."""

    run: Callable[..., Rows]
    about: str
    needs: str | None = None
    module: str | None = None

    def missing(self) -> str | None:
        """Why it cannot run here, with the way out; None where it can."""
        if self.module is None or importlib.util.find_spec(self.module) is not None:
            return None
        return f"{self.needs} is not installed: pip install {self.needs}"


BASELINES = {
    "gene_mean": Baseline(gene_mean, "the gene's mean over its non-zeros"),
    "gene_rate": Baseline(
        gene_rate, "the gene's share of molecules and the cell's depth, given that the count is not zero"
    ),
    "additive": Baseline(additive, "gene effect + cell effect over non-zeros"),
    "additive_svd": Baseline(additive_svd, "additive + a matrix of rank 10"),
    "knn": Baseline(knn, "additive + the nearest cells' residuals over non-zeros"),
    "knn_raw": Baseline(knn_raw, "mean of the nearest cells, zeros included"),
    "magic": Baseline(magic, "MAGIC, diffusion over the graph of cells", "magic-impute", "magic"),
    "scvi": Baseline(scvi, "scVI, a variational autoencoder of counts", "scvi-tools", "scvi"),
}


def _all_cells(observed: Counts, reference: Counts | None) -> tuple[Counts, int]:
    """Reference cells, then the observed ones; and the row of the first observed cell."""
    if reference is None:
        return observed, 0
    return sparse.csr_matrix(sparse.vstack([reference, observed], format="csr")), reference.shape[0]


def _wanted(observed: Counts, queries: Counts, seed: int) -> Counts:
    """One pattern of the queries, their data zero, and of a random sample of observed entries with their counts."""
    picked = np.random.default_rng(seed).permutation(observed.nnz)[:_SAMPLE]
    row = np.concatenate([cells_of(queries), cells_of(observed)[picked]])
    column = np.concatenate([queries.indices, observed.indices[picked]])
    data = np.concatenate([np.zeros(queries.nnz), observed.data[picked]])
    order = np.lexsort((column, row))
    starts = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=queries.shape[0]))])
    return sparse.csr_matrix((data[order], column[order], starts), shape=queries.shape)


def _raw_and_corrected(
    name: str, smooth: Callable[..., Smoothed], observed: Counts, queries: Counts, reference: Counts | None, seed: int
) -> Rows:
    wanted = _wanted(observed, queries, seed)
    value, share = smooth(observed, wanted, reference=reference, seed=seed)
    return {name: value[wanted.data == 0], f"{name}_corrected": _corrected(wanted, share, totals(observed))}


def _corrected(
    wanted: Counts, share: Float64[np.ndarray, " wanted"], depth: Float64[np.ndarray, " cells"]
) -> Float64[np.ndarray, " queries"]:
    """The expectation of a non-zero count at each query, from the estimated share of molecules at `wanted`."""
    total = depth[cells_of(wanted)]
    rate, asked = share * total, wanted.data == 0
    theta = fit_theta(rate[~asked], total[~asked], wanted.data[~asked])
    return nonzero_expectation(rate[asked], total[asked], theta)


def _cell_blocks(matrix: Counts) -> Iterator[tuple[slice, slice]]:
    """Some rows of a CSR matrix at a time, and where their entries stand."""
    return ((rows, slice(*matrix.indptr[[rows.start, rows.stop]])) for rows in slices(matrix.shape[0], _BLOCK))


def _dense_at(product: sparse.csr_matrix, at: Counts) -> Float64[np.ndarray, " entries"]:
    """Values of a product where `at` stores any; made dense, since a look-up in unsorted rows is a linear search."""
    return product.toarray()[cells_of(at), at.indices]
