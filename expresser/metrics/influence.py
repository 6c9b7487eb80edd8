"""How much each item moves a score: what standard errors over items, or over what items share, are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

ScoreName = Literal["auroc", "auprc", "accuracy", "balanced_accuracy", "brier"]


@dataclass(frozen=True, eq=False)
class Influence:
    """A score and its derivative by the weight of each item; the derivatives add to 0. NaN and zeros where undefined.

    To first order the score without an item is `value - of_item`. Of two methods on the same items they can be subtracted.
    """

    value: float
    of_item: Float64[np.ndarray, " items"]

    def __sub__(self, other: "Influence") -> "Influence":
        """The difference of two scores."""
        return Influence(self.value - other.value, self.of_item - other.of_item)


def influence(score: ScoreName, truth: np.ndarray, prediction: Float64[np.ndarray, " items"]) -> Influence:
    """Influence of each item on a score of a prediction of 0 and 1.

    "auroc" and "auprc" (average precision) ask for any score that rises with the chance of 1, the others for its
    probability (cut at 0.5). auroc's are DeLong's placement values, from their mean.
    """
    positive = np.asarray(truth).astype(bool)
    undefined = not len(positive) or not positive.any() or (positive.all() and score in ("auroc", "balanced_accuracy"))
    if undefined and not (len(positive) and score in ("accuracy", "brier")):
        return Influence(float("nan"), np.zeros(len(positive)))
    return _SCORES[score](positive, prediction)


def _auroc(positive: Bool[np.ndarray, " items"], score: Float64[np.ndarray, " items"]) -> Influence:
    high, low = np.sort(score[positive]), np.sort(score[~positive])
    place = np.empty(len(score))
    place[positive] = _below(low, score[positive])
    place[~positive] = 1 - _below(high, score[~positive])
    area = float(place[positive].mean())
    return Influence(area, (place - area) / np.where(positive, len(high), len(low)))


def _auprc(positive: Bool[np.ndarray, " items"], score: Float64[np.ndarray, " items"]) -> Influence:
    # At each distinct score, from the highest: positives there, and true and false positives so far.
    _, place = np.unique(-score, return_inverse=True)
    here = np.bincount(place, positive)
    true = np.cumsum(here)
    false = np.cumsum(np.bincount(place)) - true
    said, total = true + false, float(true[-1])
    precision = true / said
    area = float((here * precision).sum() / total)
    # An item counts in the precision at its own score and at all lower ones.
    up = np.cumsum((here * false / said**2)[::-1])[::-1]
    down = np.cumsum((here * true / said**2)[::-1])[::-1]
    return Influence(area, np.where(positive, precision[place] - area + up[place], -down[place]) / total)


def _accuracy(positive: Bool[np.ndarray, " items"], probability: Float64[np.ndarray, " items"]) -> Influence:
    return _mean((probability >= 0.5) == positive)


def _brier(positive: Bool[np.ndarray, " items"], probability: Float64[np.ndarray, " items"]) -> Influence:
    return _mean((probability - positive) ** 2)


def _balanced_accuracy(positive: Bool[np.ndarray, " items"], probability: Float64[np.ndarray, " items"]) -> Influence:
    right = ((probability >= 0.5) == positive).astype(np.float64)
    of_class = {one: right[positive == one].mean() for one in (False, True)}
    own = np.where(positive, of_class[True], of_class[False])
    size = np.where(positive, positive.sum(), (~positive).sum())
    return Influence(float(of_class[False] + of_class[True]) / 2, (right - own) / size / 2)


def _mean(values: np.ndarray) -> Influence:
    mean = float(values.mean())
    return Influence(mean, (values - mean) / len(values))


def _below(
    others: Float64[np.ndarray, " others"], score: Float64[np.ndarray, " items"]
) -> Float64[np.ndarray, " items"]:
    """Share of the others, sorted, that lie below; ties count half."""
    return (np.searchsorted(others, score, "left") + np.searchsorted(others, score, "right")) / (2 * len(others))


_SCORES: dict[str, Callable[[np.ndarray, np.ndarray], Influence]] = {
    "auroc": _auroc,
    "auprc": _auprc,
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "brier": _brier,
}
