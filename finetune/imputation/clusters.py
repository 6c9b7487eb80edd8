"""Whether imputation helps to find cell types: Leiden clusters of the imputed cells against known labels."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int
from scipy import sparse
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

from expresser.errors import InputError
from expresser.factors import varies
from expresser.metrics.clusters import communities, neighbour_graph
from finetune.counts import choose_rows, log_normalise
from finetune.imputation.baselines import Counts
from finetune.imputation.fill import Asked, completed, dense, filled
from finetune.imputation.protocols import Dropout

CELLS, GENES = 3000, 2000  # at most: the densest matrix is 24 MB, and a smoother's answers some 200 MB
# From a handful of clusters to one for a few cells, each step 27 % finer: ten types and a hundred are both within reach.
RESOLUTIONS = tuple(np.geomspace(0.1, 25.0, 24).round(3).tolist())
_COMPONENTS, _NEIGHBOURS = 30, 15
_MISSING = {"", "nan", "NaN", "NA", "<NA>", "None"}

Values = Float32[np.ndarray, "cells genes"]


@dataclass(frozen=True, eq=False)
class Labels:
    """Known types of some of the cells: rows of the count matrix, rising, and the type of each."""

    column: str
    rows: Int[np.ndarray, " labelled"]
    types: np.ndarray

    @classmethod
    def read(cls, obs: pd.DataFrame, column: str, rows: Int[np.ndarray, " cells"], *, where: str) -> "Labels":
        """From a column of a file's obs, of the cells that have a label: at most `CELLS` random ones. `rows`: of the file."""
        if column not in obs.columns:
            raise InputError(
                f"{where}: obs has no column {column!r}; it has {', '.join(map(str, obs.columns)) or 'none'}. "
                "Name the column of cell types with --label."
            )
        labels = obs[column].iloc[rows]
        there = np.flatnonzero((labels.notna() & ~labels.astype(str).isin(_MISSING)).to_numpy())
        kept = there[choose_rows(len(there), CELLS)]
        types = labels.iloc[kept].astype(str).to_numpy(dtype=object)
        if len(set(types)) < 2:
            raise InputError(
                f"{where}: obs column {column!r} names {len(set(types))} type of {len(rows):,} cells; clusters are "
                "compared with at least two. Name another column with --label."
            )
        return cls(column, kept, types)


class ClusterCheck:
    """Clusters of one draw of the dropout protocol, before and after each method.

    All see the same cells and genes: those that vary most in what is left after dropping.
    """

    def __init__(self, counts: Counts, draw: Dropout, labels: Labels, *, seed: int, n_genes: int = GENES) -> None:
        self._counts, self._draw, self._labels, self._seed = counts, draw, labels, seed
        self.genes = variable_genes(log_normalise(draw.observed)[labels.rows], n_genes)

    def undropped(self) -> dict[str, float]:
        """Of the counts before anything was dropped."""
        return self._scores(dense(log_normalise(self._counts), self._labels.rows, self.genes))

    def observed(self) -> dict[str, float]:
        """Of the counts that are left."""
        return self._scores(dense(log_normalise(self._draw.observed), self._labels.rows, self.genes))

    def completed(self, answer: np.ndarray) -> dict[str, float]:
        """Of what is left with a method's answers in the places of what was dropped."""
        return self._scores(completed(self._draw.observed, self._draw.queries, answer, self._labels.rows, self.genes))

    def filled(self, method: str | Asked) -> dict[str, float]:
        """Of the matrix that a user has after the method, who does not know which zeros were dropped."""
        return self._scores(filled(method, self._draw.observed, self._labels.rows, self.genes, seed=self._seed))

    def _scores(self, values: Values) -> dict[str, float]:
        return agreement(values, self._labels.types, seed=self._seed)


def variable_genes(x: sparse.csr_matrix, n: int) -> Int[np.ndarray, " genes"]:
    """At most n genes, rising: the greatest variance of log-normalised values beyond that of genes of like mean.

    Genes seen are cut by mean into 20 groups of equal size (fewer, of 50 genes, where there are few); a gene's excess is
    its variance over its group's median.
    """
    mean = np.asarray(x.mean(axis=0)).ravel()
    variance = np.asarray(x.multiply(x).mean(axis=0)).ravel() - mean**2
    seen = np.flatnonzero(mean > 0)
    order = seen[np.argsort(mean[seen], kind="stable")]
    excess = np.zeros(len(mean))
    for part in np.array_split(order, min(20, max(1, len(order) // 50))):
        if len(part):
            excess[part] = variance[part] / max(float(np.median(variance[part])), 1e-12)
    best = seen[np.argsort(-excess[seen], kind="stable")[:n]]
    return np.sort(best)


def agreement(values: Values, types: np.ndarray, *, seed: int) -> dict[str, float]:
    """ARI and NMI of clusters with known types, and how many clusters there were.

    Of the clusterings over `RESOLUTIONS` the one counts whose number of clusters is nearest to the number of types (the
    coarser of two as near); agreement has no say in the choice. Cells are neighbours by 30 principal components.
    """
    wanted, best, nearest = len(set(types)), np.zeros(len(types), dtype=np.int64), np.inf
    components = min(_COMPONENTS, min(values.shape) - 1)
    if components < 1 or not varies(values):  # all alike: one cluster
        return {"ari": float(adjusted_rand_score(types, best)), "nmi": 0.0, "clusters": 1.0}
    space = PCA(components, svd_solver="arpack", random_state=seed).fit_transform(values)
    graph = neighbour_graph(space, _NEIGHBOURS)
    for found in communities(graph, RESOLUTIONS, seed=seed):
        n = int(found.max()) + 1
        if abs(n - wanted) < nearest:
            nearest, best = abs(n - wanted), found
        if n > 2 * wanted:
            break  # finer still is further away
    return {
        "ari": float(adjusted_rand_score(types, best)),
        "nmi": float(normalized_mutual_info_score(types, best)),
        "clusters": float(best.max() + 1),
    }
