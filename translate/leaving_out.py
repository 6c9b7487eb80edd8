"""How far a mean score over features would move with other test cells: computed again without each of some groups of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float64, Int64
from scipy import sparse, stats

from expresser.metrics.accessibility import peak_scores
from translate.truth import Truth

GROUPS = 20
_FEATURES = 2000  # looked at, at most, and
_ENTRIES = 1 << 23  # entries of cells x features: some seconds for AUROC, however many peaks there are
_CONSTANT = 1e-6  # as in expresser.metrics.expression


@dataclass(frozen=True)
class Interval:
    """A difference, and the 95 % interval in which it would lie with other test cells of the same kind."""

    difference: float
    low: float
    high: float


@dataclass
class LeaveOut:
    """Mean scores over features without each group of cells (delete-a-group jackknife), added up over blocks of features.

    The cells are dealt at random into `GROUPS` groups (as many as there are cells, if fewer); the same for every
    prediction of one truth and seed, so that methods can be compared in pairs. Cells are what is drawn anew, not features:
    all genes are seen in the same cells, so an accident of these cells moves all genes together, and to treat genes as
    independent draws would call it a finding. Of many features a random `_FEATURES` are looked at: their mean moves a
    little more than that of all, so intervals are, if anything, too wide.
    """

    group: Int64[np.ndarray, " cells"]
    features: Int64[np.ndarray, " chosen"]  # rising
    _sums: dict[str, Float64[np.ndarray, " groups"]] = field(default_factory=dict)
    _counts: dict[str, Float64[np.ndarray, " groups"]] = field(default_factory=dict)

    @classmethod
    def of(cls, truth: Truth, *, seed: int) -> "LeaveOut":
        """Groups of the cells of a truth, and the features to look at."""
        rng = np.random.default_rng([seed, 1])
        group = rng.permutation(truth.n_cells) % min(GROUPS, truth.n_cells)
        most = max(1, min(_FEATURES, _ENTRIES // truth.n_cells, truth.n_features))
        return cls(group, np.sort(rng.choice(truth.n_features, most, replace=False)))

    def add_values(
        self,
        features: slice,
        truth: Float[np.ndarray, "cells features"],
        prediction: Float[np.ndarray, "cells features"],
    ) -> None:
        """Add "pearson" of some features, all cells of them."""
        here = self._here(features)
        if len(here):
            self._add("pearson", _pearson_without(self.group, truth[:, here], prediction[:, here]))

    def add_opened(self, features: slice, truth: sparse.csc_matrix, score: Float[np.ndarray, "cells features"]) -> None:
        """Add "auroc" and "auprnorm" of some peaks, all cells of them."""
        here = self._here(features)
        if not len(here):
            return
        opened, guess = truth[:, here].tocsr(), score[:, here]
        kept = [np.flatnonzero(self.group != number) for number in range(self._groups)]
        ranks = [peak_scores(opened[cells].tocsc(), guess[cells]) for cells in kept]
        self._add("auroc", np.stack([of.auroc for of in ranks]))
        self._add("auprnorm", np.stack([of.auprnorm for of in ranks]))

    def means(self) -> dict[str, Float64[np.ndarray, " groups"]]:
        """Mean over features without each group, by score; NaN where no feature had one."""
        with np.errstate(invalid="ignore"):
            return {name: total / self._counts[name] for name, total in self._sums.items()}

    @property
    def _groups(self) -> int:
        return int(self.group.max()) + 1

    def _here(self, features: slice) -> Int64[np.ndarray, " chosen"]:
        """Which columns of a block of these features are looked at."""
        first, last = np.searchsorted(self.features, [features.start, features.stop])
        return self.features[first:last] - features.start

    def _add(self, name: str, values: Float64[np.ndarray, "groups features"]) -> None:
        zeros = np.zeros(self._groups)
        self._sums[name] = self._sums.get(name, zeros) + np.nansum(values, axis=1)
        self._counts[name] = self._counts.get(name, zeros) + (~np.isnan(values)).sum(axis=1)


def interval(
    difference: float, without: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray], score: str
) -> Interval | None:
    """95 % interval of a difference in a mean score between two methods, from what `LeaveOut.means` gave of each.

    The standard error is the jackknife's, of the difference in pairs; the interval is Student's, with one degree of
    freedom less than there are groups. None where anything is undefined, or with fewer than three groups.
    """
    if score not in without or score not in other:
        return None
    apart = without[score] - other[score]
    groups = len(apart)
    if groups < 3 or np.isnan(apart).any() or np.isnan(difference):
        return None
    error = np.sqrt((groups - 1) / groups * ((apart - apart.mean()) ** 2).sum())
    wide = float(stats.t.ppf(0.975, groups - 1) * error)
    return Interval(difference, difference - wide, difference + wide)


def _pearson_without(
    group: Int64[np.ndarray, " cells"],
    truth: Float[np.ndarray, "cells features"],
    prediction: Float[np.ndarray, "cells features"],
) -> Float64[np.ndarray, "groups features"]:
    """Pearson r of each feature without each group; NaN where the truth is constant, 0 where only the prediction is."""
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(group.max() + 1))
    flat = np.ptp(prediction, axis=0) <= _CONSTANT * np.abs(prediction).max(axis=0)
    # From the mean of all cells, so that little is lost in differences of large sums.
    t, p = (values[order].astype(np.float64) - values.mean(axis=0, dtype=np.float64) for values in (truth, prediction))
    sums = (np.add.reduceat(values, starts, axis=0) for values in (t, p, t * t, p * p, t * p))
    st, sp, tt, pp, tp = (part.sum(axis=0) - part for part in sums)
    n = len(group) - np.diff(starts, append=len(group))[:, None]
    spread_t, spread_p = n * tt - st * st, n * pp - sp * sp
    with np.errstate(invalid="ignore", divide="ignore"):
        r = np.clip((n * tp - st * sp) / np.sqrt(spread_t * spread_p), -1.0, 1.0)
    r = np.where(flat | (spread_p <= 1e-9 * n * pp), 0.0, r)
    return np.where(spread_t <= 1e-9 * n * tt, np.nan, r)
