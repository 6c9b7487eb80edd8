"""How well open chromatin is predicted: AUROC, AUPR, calibration over all entries, ranks inside a peak or cell, Dice."""

from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Float64, Int64
from scipy import sparse

from expresser.errors import InputError

Open: TypeAlias = sparse.csr_matrix | sparse.csc_matrix  # what is stored and not zero is open

_SHIFT = (
    14  # bits of a float32 that are dropped: sign, exponent and 9 bits of the fraction stay, steps of 0.2 % or less
)
_HALF = 1 << (31 - _SHIFT)  # bins of positive scores; as many of negative ones
_ONE = 0x3F800000 >> _SHIFT  # the bin of 1.0
_CHUNK = 1 << 20  # scores counted at one time: bincount makes 8-byte integers of them


def _zeros() -> Int64[np.ndarray, " bins"]:
    return np.zeros(2 * _HALF, np.int64)


@dataclass
class ScoreHistogram:
    """AUROC, AUPR and calibration over all entries of cells x peaks, from two histograms of the score: all, and open.

    A bin holds the float32 scores that share their first 18 bits, so bins are in order whatever the scale of the score,
    and fine (0.2 % of the value or less) where probabilities of being open lie, near zero. Everything here is exact for
    the score so rounded, ties counting one half; counts add, so any cutting and any `merge` give the same figures to the
    last bit. Memory: 4 MB, however many entries.

    Relations: a score over all entries is mostly the easy part, that some peaks are open everywhere and some cells are
    deep: a training mean already reaches 0.7. `peak_scores` asks in which cells a peak is open.
    """

    all: Int64[np.ndarray, " bins"] = field(default_factory=_zeros, repr=False)
    open: Int64[np.ndarray, " bins"] = field(default_factory=_zeros, repr=False)

    def update(self, truth: Open, score: Float32[np.ndarray, "cells peaks"]) -> None:
        """Add a block: its open entries, and a score for each of its entries, higher for more open."""
        _check(truth, score)
        flat = score.reshape(-1).view(np.uint32)
        for first in range(0, flat.size, _CHUNK):
            self.all += np.bincount(flat[first : first + _CHUNK] >> _SHIFT, minlength=2 * _HALF)
        cell, peak = _open_entries(truth)
        self.open += np.bincount(score[cell, peak].view(np.uint32) >> _SHIFT, minlength=2 * _HALF)

    def merge(self, other: "ScoreHistogram") -> None:
        """Add what `other` has seen: another block, another process."""
        self.all += other.all
        self.open += other.open

    def auroc(self) -> float:
        """Chance that an open entry scores higher than a closed one, ties 1/2; NaN without entries of both kinds."""
        n, opened = self._ordered()[1:]
        closed = n - opened
        pairs = float(opened.sum()) * float(closed.sum())
        below = np.cumsum(closed) - closed
        return float((opened * (below + closed / 2.0)).sum() / pairs) if pairs else float("nan")

    def auprc(self) -> float:
        """Average precision: the mean, over open entries, of the share of open ones among all that score as high or higher."""
        n, opened = (counts[::-1] for counts in self._ordered()[1:])
        if not opened.any() or opened.sum() == n.sum():
            return float("nan")
        return float((opened * (np.cumsum(opened) / np.maximum(np.cumsum(n), 1))).sum() / opened.sum())

    def roc(self, points: int = 500) -> Float64[np.ndarray, "2 points"]:
        """False positive rate and true positive rate, from (0, 0) to (1, 1), at most `points` of them."""
        n, opened = (np.concatenate([[0], np.cumsum(counts[::-1])]) for counts in self._ordered()[1:])
        curve = np.stack([(n - opened) / max(n[-1] - opened[-1], 1), opened / max(opened[-1], 1)])
        return curve[:, _spread_out(curve.sum(axis=0), points)]

    def precision_recall(self, points: int = 500) -> Float64[np.ndarray, "2 points"]:
        """Recall and precision, from the highest scores down, at most `points` of them."""
        n, opened = (np.cumsum(counts[::-1]) for counts in self._ordered()[1:])
        if not n.size:
            return np.zeros((2, 0))
        recall = opened / max(opened[-1], 1)
        return np.stack([recall, opened / n])[:, _spread_out(recall, points)]

    def calibration(self, bins: int = 20) -> pd.DataFrame:
        """The reliability curve: entries by predicted probability, in `bins` bins of about equal size.

        Columns n, predicted (mean probability, to 0.1 % of its value) and observed (share open). Probabilities of open
        chromatin crowd near zero, so bins of equal width would hold everything in the first. A probability met very often
        is in one bin with all its entries, so there may be fewer bins. InputError where a score is not in [0, 1].
        """
        value, n, opened = self._ordered()
        if not self.is_probability():
            raise InputError(
                f"calibration: scores lie between about {value[0]:.3g} and {value[-1]:.3g}, but only probabilities, from 0 "
                "to 1, can be calibrated. Ask AUROC of any other score."
            )
        total = max(int(n.sum()), 1)
        part = ((np.cumsum(n) - n) * bins) // total
        starts = np.flatnonzero(np.diff(part, prepend=-1))
        size, weight, observed = (np.add.reduceat(v, starts) if n.size else v for v in (n, n * value, opened))
        return pd.DataFrame({"n": size, "predicted": weight / size, "observed": observed / size})

    def ece(self, bins: int = 20) -> float:
        """Expected calibration error: mean |observed - predicted| over the bins of `calibration`, weighted by their size."""
        curve = self.calibration(bins)
        return (
            float(np.average((curve.observed - curve.predicted).abs(), weights=curve.n)) if len(curve) else float("nan")
        )

    def is_probability(self) -> bool:
        """Whether all scores lie in [0, 1], as far as the bins can tell."""
        value = self._ordered()[0]
        return not value.size or bool(value[0] >= 0 and value[-1] <= 1)

    def _ordered(
        self,
    ) -> tuple[Float64[np.ndarray, " used"], Int64[np.ndarray, " used"], Int64[np.ndarray, " used"]]:
        """Mean value, entries and open entries of the bins in use, by rising score."""
        counts = np.stack([np.concatenate([c[_HALF:][::-1], c[:_HALF]]) for c in (self.all, self.open)])
        counts[:, _HALF] += counts[:, _HALF - 1]  # -0.0 is 0.0
        counts[:, _HALF - 1] = 0
        used = np.flatnonzero(counts[0])
        size = np.where(used >= _HALF, used - _HALF, _HALF - 1 - used).astype(np.uint32)
        middle = ((size << _SHIFT) | (1 << (_SHIFT - 1))).view(np.float32).astype(np.float64)
        middle[size == 0], middle[size == _ONE] = 0.0, 1.0  # of a bin of probabilities, nothing else lies in these
        return np.where(used >= _HALF, middle, -middle), counts[0, used], counts[1, used]


@dataclass(frozen=True, eq=False)
class RankScores:
    """How well scores rank open before closed inside each peak (or cell); NaN where it has only one kind of entry."""

    auroc: Float64[np.ndarray, " peaks"]
    average_precision: Float64[np.ndarray, " peaks"]
    auprnorm: Float64[np.ndarray, " peaks"]  # (average precision - prevalence) / (1 - prevalence): 0 chance, 1 perfect
    opened: Int64[np.ndarray, " peaks"]  # open entries of each

    @property
    def undefined(self) -> int:
        """How many have only open or only closed entries, and so no scores."""
        return int(np.isnan(self.auroc).sum())


def peak_scores(truth: Open, score: Float32[np.ndarray, "cells peaks"]) -> RankScores:
    """AUROC, average precision and AUPRnorm of each peak over cells (Polarbear's measures, Zhang et al. 2022).

    Exact in float32, ties counting one half (AUROC) or as one threshold (average precision), as scikit-learn has them.
    Scores are sorted and only the open entries are looked up, so sparse truth costs 10 to 20 ns an entry; memory is two
    copies of the block. Blocks may cut peaks in any way, but must hold all cells.

    Relations: `cell_scores` asks which peaks are open inside a cell; `ScoreHistogram` is for all entries at once.
    """
    _check(truth, score)
    return _row_scores(truth.tocsc(), np.ascontiguousarray(score.T))


def cell_scores(truth: Open, score: Float32[np.ndarray, "cells peaks"]) -> RankScores:
    """As `peak_scores`, but of each cell over peaks. Blocks may cut cells in any way, but must hold all peaks."""
    _check(truth, score)
    return _row_scores(truth.tocsr(), score)


def dice(
    predicted: Open | np.ndarray, truth: Open | np.ndarray, *, above: float = 0.0
) -> Float64[np.ndarray, " cells"]:
    """Dice of each cell, 2 TP / (2 TP + FP + FN): open is what is greater than `above` in `predicted`, than 0 in `truth`.

    Either may be sparse, where what is not stored is 0. NaN where nothing is open in either. The raw counts against the same
    truth are what an imputation has to beat.
    """
    if predicted.shape != truth.shape or len(truth.shape) != 2:
        raise InputError(
            f"Dice: predicted is {' x '.join(map(str, predicted.shape))}, the truth {' x '.join(map(str, truth.shape))}. "
            "Cut both at the same cells and peaks."
        )
    if sparse.issparse(predicted) and above < 0:
        raise InputError(
            f"Dice: what a sparse prediction does not store is 0, above {above}. Give a threshold of 0 or more."
        )
    called, real = _is_open(predicted, above), _is_open(truth, 0.0)
    if sparse.issparse(called) or sparse.issparse(real):
        called, real = sparse.csr_matrix(called), sparse.csr_matrix(real)
        both = called.multiply(real)
    else:
        both = called & real
    shared, ours, theirs = (np.asarray(x.sum(axis=1), dtype=np.float64).ravel() for x in (both, called, real))
    with np.errstate(invalid="ignore"):
        return 2 * shared / (ours + theirs)


def auroc_by_prevalence(
    auroc: Float[np.ndarray, " peaks"], prevalence: Float[np.ndarray, " peaks"], bins: int
) -> pd.DataFrame:
    """AUROC of peaks that are open in about as many cells: whether a score is good at common peaks only.

    Peaks with an AUROC are put in order of `prevalence` (share of cells in which the peak is open) and cut into `bins` of
    about equal size; peaks of one prevalence stay together, so some may be empty, and are left out. Columns bin (1 is the
    rarest), n, low and high (prevalence, least and greatest), prevalence (median), q25, median and q75 of the AUROC.
    """
    defined = ~np.isnan(auroc)
    found = pd.DataFrame({"auroc": auroc[defined].astype(float), "prevalence": prevalence[defined].astype(float)})
    place = (found["prevalence"].rank(method="average") - 0.5) / max(len(found), 1)
    groups = found.groupby(np.floor(place * bins).astype(int).to_numpy() + 1)
    table = groups["prevalence"].agg(n="size", low="min", high="max", prevalence="median")
    for name, q in (("q25", 0.25), ("median", 0.5), ("q75", 0.75)):
        table[name] = groups["auroc"].quantile(q)
    return table.rename_axis("bin").reset_index()


def _row_scores(truth: Open, score: Float32[np.ndarray, "rows entries"]) -> RankScores:
    """Scores of each row; `truth` is compressed along the rows, so `truth.indices` are the open entries of row after row."""
    rows, n = score.shape
    kept = truth.data != 0
    row, at = np.repeat(np.arange(rows), np.diff(truth.indptr))[kept], truth.indices[kept]
    opened = np.bincount(row, minlength=rows)
    positive = score[row, at]
    ends = np.cumsum(opened)
    ranked = np.sort(score, axis=1)
    # Of each open entry, how many entries of its row score less, and how many at most as much.
    less, up_to = np.empty((2, len(row)), np.int64)
    for i in np.flatnonzero(opened):
        part = slice(ends[i] - opened[i], ends[i])
        positive[part].sort()
        less[part] = ranked[i].searchsorted(positive[part], "left")
        up_to[part] = ranked[i].searchsorted(positive[part], "right")
    # How many open entries of its row score as much or more: its place from the end, the first of equals.
    first = np.arange(len(row)) - (ends - opened)[row]
    new = (np.diff(row, prepend=-1) != 0) | (np.diff(positive, prepend=0.0) != 0)
    first = first[np.maximum.accumulate(np.where(new, np.arange(len(row)), 0))] if len(row) else first
    precision = (opened[row] - first) / (n - less)
    with np.errstate(invalid="ignore", divide="ignore"):
        wins = np.bincount(row, (less + up_to) / 2.0, minlength=rows) - opened**2 / 2.0
        both = (opened > 0) & (opened < n)
        auroc = np.where(both, wins / (opened * (n - opened)), np.nan)
        average = np.where(both, np.bincount(row, precision, minlength=rows) / opened, np.nan)
        prevalence = opened / max(n, 1)
        return RankScores(auroc, average, np.where(both, (average - prevalence) / (1 - prevalence), np.nan), opened)


def _check(truth: Open, score: Float32[np.ndarray, "cells peaks"]) -> None:
    if truth.shape != score.shape:
        raise InputError(
            f"accessibility scores: the truth is {truth.shape[0]:,} cells x {truth.shape[1]:,} peaks, the scores are "
            f"{score.shape[0]:,} x {score.shape[1]:,}. Cut both at the same cells and peaks."
        )
    if not np.isfinite(score).all():
        cell, peak = np.argwhere(~np.isfinite(score))[0]
        raise InputError(
            f"accessibility scores: the score of cell {cell}, peak {peak} of the block is {score[cell, peak]}, but scores "
            "need finite values. Find out what produced it: leaving such entries out would flatter the method."
        )


def _is_open(x: Open | np.ndarray, above: float) -> Open | np.ndarray:
    if not sparse.issparse(x):
        return x > above  # of bool, what is open: True is 1
    x = sparse.csr_matrix(x)
    opened = sparse.csr_matrix((x.data > above, x.indices, x.indptr), shape=x.shape, copy=True)  # cut below
    opened.eliminate_zeros()
    return opened


def _open_entries(truth: Open) -> tuple[np.ndarray, np.ndarray]:
    entries = truth.tocoo()
    kept = entries.data != 0
    return entries.row[kept], entries.col[kept]


def _spread_out(progress: Float64[np.ndarray, " steps"], points: int) -> Int64[np.ndarray, " kept"]:
    """At most `points` steps of a curve, the first and last among them, evenly far apart in `progress`, which rises."""
    at = np.searchsorted(progress, np.linspace(progress[0], progress[-1], points - 1))
    return np.unique(np.concatenate([[0], np.minimum(at, len(progress) - 1), [len(progress) - 1]]))
