"""Are cells of one name one cell? Depths that go together, and RNA that ATAC predicts, against shuffled pairs."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy import sparse
from scipy.stats import norm, rankdata

from expresser.errors import InputError
from translate.components import Components
from translate.peaks import binarise
from translate.study import DataWarning, Study

MIN_CELLS = 50  # fewer pairs say nothing
# Standard deviations above shuffled pairs that are evidence. Measured: structure of true pairs 16 to 23 (bone marrow, two sets of
# 500 cells), 68 (sci-CAR A549, 2,000 cells), 7 (SNARE-seq of one cell line, 385 cells, whose depths give 8); of 48 shuffled
# sets at most 2.5, and depth at most 3.6.
_Z = 4.0
_COMPONENTS = 10
_FOLDS = 5
_RIDGE = 1.0  # in units of the mean variance of the predictors: weak ones must not fit a few cells


class PairingWarning(DataWarning):
    """Cells of one name do not look like the same cells."""


@dataclass(frozen=True)
class PairingEvidence:
    """What speaks for RNA and ATAC of one name being one cell; z is in standard deviations of shuffled pairs.

    `depth` is Spearman's correlation of the two depths over all pairs, `structure` the share of variance of the RNA's
    principal components that a ridge regression on the ATAC's predicts in held-out cells (below 0: worse than the mean),
    both as normal scores, from `n_compared` of the pairs.
    """

    n_cells: int
    n_compared: int
    permutations: int
    depth: float
    depth_z: float
    structure: float
    structure_shuffled: float  # mean over shuffled pairs
    structure_z: float

    @property
    def supported(self) -> bool:
        """Whether either is better than in shuffled pairs. One suffices: both assays can be shallow, or cells alike."""
        return self.depth_z >= _Z or self.structure_z >= _Z

    def message(self) -> str:
        """One sentence with the numbers."""
        verdict = (
            "they look like the same cells"
            if self.supported
            else "neither is better than in shuffled pairs: equal names but different cells? (One uniform cell type, or "
            "very shallow data, look the same.) Models trained on pairs learn nothing from false ones"
        )
        return (
            f"RNA and ATAC of {self.n_cells:,} cells of one name: correlation of depths {self.depth:.3f} "
            f"(z {self.depth_z:.1f}), RNA variance predicted from ATAC {self.structure:.4f} (shuffled "
            f"{self.structure_shuffled:.4f}, z {self.structure_z:.1f}); {verdict}."
        )


def pairing_evidence(study: Study, *, cells: int = 2000, permutations: int = 50, seed: int = 0) -> PairingEvidence:
    """Compare the study's RNA-ATAC pairs, at most `cells` of them, with `permutations` shufflings. Takes seconds.

    Raises InputError where pairs cannot be told from chance: too few have counts of both, or all cells are alike.
    """
    both = np.flatnonzero(study.has("rna") & study.has("atac")).astype(np.int64)
    depths = [_sums(study.measured[m].matrix)[study.rows[m][both]] for m in ("rna", "atac")] if len(both) else [[], []]
    alive = (np.asarray(depths[0]) > 0) & (np.asarray(depths[1]) > 0)
    both, n = both[alive], int(alive.sum())
    if n < MIN_CELLS:
        raise InputError(
            f"pairing: {n} cells have counts of RNA and of ATAC; at least {MIN_CELLS} are needed to tell pairs from chance."
        )
    rng = np.random.default_rng(seed)
    some = np.sort(rng.choice(both, cells, replace=False)) if n > cells else both
    order = np.argsort(rng.random(len(some)))
    shuffles = [rng.permutation(len(some)) for _ in range(permutations)]
    depth_rna, depth_atac = (_normal_scores(np.asarray(depth)[alive, None])[:, 0] for depth in depths)
    ranks = rankdata(depth_rna), rankdata(depth_atac)
    depth = float(np.corrcoef(*ranks)[0, 1]) if all(np.ptp(rank) for rank in ranks) else 0.0
    rna, atac = _logged(study.of("rna", some).matrix), binarise(study.of("atac", some).matrix)
    y = Components.fit(rna, "rna", n=_COMPONENTS, seed=seed).of(rna).astype(np.float64)
    x = Components.fit(atac, "atac", n=_COMPONENTS, seed=seed).of(atac).astype(np.float64)
    weighted = _normal_scores(y) * y.std(axis=0)  # outlying cells would else decide
    structure = _predicted_share(_normal_scores(x), weighted, [np.arange(len(some)), *shuffles], order)
    spread = max(float(np.std(structure[1:], ddof=1)), 1e-12)
    return PairingEvidence(
        n_cells=n,
        n_compared=len(some),
        permutations=permutations,
        depth=depth,
        depth_z=depth * float(np.sqrt(n - 1)),  # exact for shuffled ranks
        structure=float(structure[0]),
        structure_shuffled=float(structure[1:].mean()),
        structure_z=float((structure[0] - structure[1:].mean()) / spread),
    )


def _sums(matrix: sparse.csr_matrix) -> Float64[np.ndarray, " rows"]:
    return np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()


def _normal_scores(values: Float64[np.ndarray, "cells components"]) -> Float64[np.ndarray, "cells components"]:
    """Each column's ranks as quantiles of the normal distribution."""
    return norm.ppf((rankdata(values, axis=0) - 0.5) / len(values))


def _logged(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    """log1p of counts scaled to the median total; no cell may be empty."""
    totals = _sums(counts)
    x = sparse.csr_matrix(sparse.diags_array(np.median(totals) / totals) @ counts)
    x.data = np.log1p(x.data)
    return x


def _predicted_share(
    x: Float64[np.ndarray, "cells predictors"],
    y: Float64[np.ndarray, "cells targets"],
    pairings: list[np.ndarray],
    order: np.ndarray,
) -> Float64[np.ndarray, " pairings"]:
    """1 - squared error / squared deviation over held-out cells of a ridge of y[pairing] on x, for each pairing."""
    error = np.zeros(len(pairings))
    total = np.zeros(len(pairings))
    for fold in range(_FOLDS):
        test = np.zeros(len(x), dtype=bool)
        test[order[fold::_FOLDS]] = True
        centre = x[~test].mean(axis=0)
        train_x, test_x = x[~test] - centre, x[test] - centre
        gram = train_x.T @ train_x
        gram += _RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights = test_x @ np.linalg.solve(gram, train_x.T)
        for i, pairing in enumerate(pairings):
            train_y, test_y = y[pairing][~test], y[pairing][test]
            mean = train_y.mean(axis=0)
            error[i] += ((test_y - mean - weights @ (train_y - mean)) ** 2).sum()
            total[i] += ((test_y - mean) ** 2).sum()
    return 1.0 - error / np.maximum(total, 1e-300)
