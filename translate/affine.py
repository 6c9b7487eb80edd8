"""Predictions on another scale: one line a feature, fitted on cells at hand, its slope drawn towards that of all features."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy import sparse
from scipy.stats import norm

from expresser.errors import InputError
from translate.predicted import Predicted

_BUDGET_MB = 64.0


@dataclass(frozen=True, eq=False)
class Affine:
    """target = clip(offset + slope * prediction, low, high), a row of numbers a target column.

    columns: which predicted feature a target column comes from; -1: none, and the target is its training mean.
    """

    columns: Int64[np.ndarray, " targets"] = field(repr=False)
    slope: Float32[np.ndarray, " targets"] = field(repr=False)
    offset: Float32[np.ndarray, " targets"] = field(repr=False)
    low: Float32[np.ndarray, " targets"] = field(repr=False)
    high: Float32[np.ndarray, " targets"] = field(repr=False)

    @classmethod
    def fit(
        cls,
        predicted: Predicted,
        target: sparse.csc_matrix,
        columns: Int64[np.ndarray, " targets"],
        held_out: Int64[np.ndarray, " cells"],
    ) -> "Affine":
        """Lines from the predictions of cells to their `target` (same cells in the same order, float).

        Slopes come from the cells that the predictor was not trained on (`held_out`), since on its training cells it looks
        surer than it is; they are least squares, then drawn towards the common slope of all features as far as their
        own errors exceed the spread between features (`shrunk_slopes`: empirical Bayes, the spread as in DerSimonian and
        Laird, Controlled Clinical Trials 7, 1986). The line goes through the mean of *all* cells, the better known. low
        and high are the range of the target among all cells.
        """
        n, k = target.shape
        if predicted.n_cells != n or len(columns) != k or len(held_out) < 3:
            raise InputError(
                f"calibration: predictions of {predicted.n_cells:,} cells for a target of {n:,} cells x {k:,} features with "
                f"{len(columns):,} column numbers and {len(held_out)} held-out cells; cells and features must be the same, "
                "and three or more cells held out."
            )
        sums = {name: np.zeros(k) for name in ("x", "y", "sxx", "sxy", "syy")}
        for features, which in _blocks(columns, predicted.n_features, n):
            x = predicted.block(slice(0, n), features)[:, columns[which] - features.start]
            y = target[:, which].toarray()
            sums["x"][which], sums["y"][which] = (v.mean(axis=0, dtype=np.float64) for v in (x, y))
            dx, dy = (v[held_out] - v[held_out].mean(axis=0, dtype=np.float64) for v in (x, y))
            for name, a, b in (("sxx", dx, dx), ("sxy", dx, dy), ("syy", dy, dy)):
                sums[name][which] = np.einsum("ij,ij->j", a, b)
        absent = columns < 0
        sums["y"][absent] = np.asarray(target[:, absent].mean(axis=0)).ravel()
        slope = np.where(absent, 0.0, shrunk_slopes(sums["sxx"], sums["sxy"], sums["syy"], len(held_out)))
        offset = sums["y"] - slope * sums["x"]
        low, high = (found.toarray().ravel() for found in (target.min(axis=0), target.max(axis=0)))
        return cls(columns, *(v.astype(np.float32) for v in (slope, offset, low, high)))

    def apply(self, predicted: Predicted) -> sparse.csc_matrix:
        """The target of all cells of a prediction, float32, stored by column; no more than a block of it is dense."""
        n, k = predicted.n_cells, len(self.columns)
        parts: list[tuple[np.ndarray, sparse.csc_matrix]] = []
        for features, which in _blocks(self.columns, predicted.n_features, n):
            x = predicted.block(slice(0, n), features)[:, self.columns[which] - features.start]
            y = np.clip(self.offset[which] + self.slope[which] * x, self.low[which], self.high[which])
            parts.append((which, sparse.csc_matrix(y)))
        if (absent := np.flatnonzero(self.columns < 0)).size:
            parts.append((absent, sparse.csc_matrix(np.tile(self.offset[absent], (n, 1)))))
        place = np.argsort(np.concatenate([which for which, _ in parts]))
        whole = sparse.hstack([part for _, part in parts], format="csc", dtype=np.float32)
        return sparse.csc_matrix(whole[:, place]) if k else sparse.csc_matrix((n, 0), dtype=np.float32)


def shrunk_slopes(
    sxx: Float64[np.ndarray, " features"],
    sxy: Float64[np.ndarray, " features"],
    syy: Float64[np.ndarray, " features"],
    n: int,
) -> Float64[np.ndarray, " features"]:
    """Slopes from centred sums over `n` cells, each drawn towards the common slope by its own uncertainty, and never negative.

    Posterior means under a normal prior, its mean and variance those of the features at hand, cut off at zero: a predictor
    is taken to know which way is up, so noise does not turn a feature round. A feature whose target does not vary here has
    the common slope; one whose prediction does not has slope 0.
    """
    moves = sxx > 1e-12 * max(float(sxx.max(initial=0.0)), 1e-300)
    told = moves & (syy > 0)
    slope = np.zeros(len(sxx))
    if not told.any():
        return slope
    own = sxy[told] / sxx[told]
    noise = np.maximum(syy[told] - own * sxy[told], 1e-9 * syy[told]) / (n - 2) / sxx[told]
    weight = 1 / noise
    common = (weight * own).sum() / weight.sum()
    excess = (weight * (own - common) ** 2).sum() - (len(own) - 1)
    scale = weight.sum() - (weight**2).sum() / weight.sum()
    between = max(excess / scale, 0.0) if scale > 0 else 0.0
    weight = 1 / (noise + between)
    common = float((weight * own).sum() / weight.sum())
    slope[moves] = max(common, 0.0)
    if between > 0:
        centre = common + (own - common) * between / (between + noise)
        width = np.sqrt(between * noise / (between + noise))
        slope[told] = centre + width * np.exp(norm.logpdf(centre / width) - norm.logcdf(centre / width))
    return slope


def _blocks(columns: Int64[np.ndarray, " targets"], n_features: int, n_cells: int) -> list[tuple[slice, np.ndarray]]:
    """Slices of predicted features that are wanted, and the target columns that come from each."""
    width = max(1, int(_BUDGET_MB * 2**20 / (4 * max(n_cells, 1))))
    found = []
    for first in range(0, n_features, width):
        features = slice(first, min(first + width, n_features))
        which = np.flatnonzero((columns >= features.start) & (columns < features.stop))
        if which.size:
            found.append((features, which))
    return found
