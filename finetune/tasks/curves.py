"""Curves of a gene task from its predictions: the mean over folds, and a band that holds most of them."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float64
from sklearn.metrics import precision_recall_curve, roc_curve

Curve = Float64[np.ndarray, "2 points"]
Band = Float64[np.ndarray, "3 grid"]

_GRID = np.linspace(0.0, 1.0, 201)
_SPREAD = (0.1, 0.9)  # of the folds; their extremes would grow with their number


def roc(predictions: pd.DataFrame, name: str) -> tuple[Curve, Band | None]:
    """True against false positive rate of one column."""
    return _over_folds(predictions, name, _roc_points)


def precision_recall(predictions: pd.DataFrame, name: str) -> tuple[Curve, Band | None]:
    """Precision against recall of one column."""
    return _over_folds(predictions, name, _precision_points)


def _over_folds(
    predictions: pd.DataFrame, name: str, points: Callable[[np.ndarray, np.ndarray], Float64[np.ndarray, " grid"]]
) -> tuple[Curve, Band | None]:
    folds = [
        points(part["label"].to_numpy(), part[name].to_numpy(dtype=float))
        for _, part in predictions.groupby(["repeat", "fold"], sort=True)
        if part["label"].nunique() == 2
    ]
    rates = np.stack(folds)
    curve = np.stack([_GRID, rates.mean(axis=0)])
    if len(folds) < 2:
        return curve, None
    low, high = np.quantile(rates, _SPREAD, axis=0)
    return curve, np.stack([_GRID, low, high])


def _roc_points(label: np.ndarray, score: np.ndarray) -> Float64[np.ndarray, " grid"]:
    false, true, _ = roc_curve(label, score)
    # The last point of each false positive rate: interpolation needs x to rise, and the rate jumps up there.
    rates = np.interp(_GRID, false, true)
    rates[0] = 0.0
    return rates


def _precision_points(label: np.ndarray, score: np.ndarray) -> Float64[np.ndarray, " grid"]:
    precision, recall, _ = precision_recall_curve(label, score)
    # The first threshold that reaches a recall has its precision: between thresholds nothing is reached.
    rising = recall[::-1]
    at = np.minimum(np.searchsorted(rising, _GRID, side="left"), len(rising) - 1)
    return np.asarray(precision[::-1][at], dtype=np.float64)
