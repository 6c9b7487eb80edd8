"""Boosted trees as heads: histogram boosting that stops by inner validation, and the papers' gradient boosting."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from sklearn.base import BaseEstimator
from sklearn.ensemble import (
    GradientBoostingClassifier,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)

Inner = Sequence[tuple[np.ndarray, np.ndarray]]

SETTINGS: dict[str, Any] = {"learning_rate": 0.1, "max_leaf_nodes": 15, "l2_regularization": 10.0}
MOST_TREES = 300
PATIENCE = 20  # trees without a gain, after which no more are tried
_ROWS = 100_000  # rows one model is fitted on, at most: pairs of the same genes soon say nothing new
_BLOCK = 1 << 16  # rows answered at one time: they are copied to float64


@dataclass(frozen=True, eq=False)
class Trees:
    """Models whose answers are averaged."""

    models: tuple[BaseEstimator, ...]

    def values(self, x: Float[np.ndarray, "items features"], *, classify: bool) -> Float64[np.ndarray, "items outputs"]:
        """Probability of each class, or one value, a row."""
        parts = []
        for start in range(0, len(x), _BLOCK):
            rows = x[start : start + _BLOCK]
            said = [model.predict_proba(rows) if classify else model.predict(rows)[:, None] for model in self.models]
            parts.append(np.mean(said, axis=0) if len(said) > 1 else said[0])
        if parts:
            return np.concatenate(parts).astype(np.float64)
        return np.empty((0, len(self.models[0].classes_) if classify else 1))


def fit_boosting(
    x: Float[np.ndarray, "items features"], y: np.ndarray, inner: Inner, *, classify: bool, seed: int
) -> tuple[Trees, dict[str, Any]]:
    """Histogram gradient boosting with `SETTINGS`, one model for each inner split, averaged.

    y are class numbers, or values. Each model has the trees up to the least loss on the validation part of its split,
    and is not fitted again: on Gene2vec's shipped split (208,308 training pairs of genes with an SVD vector of 64), one
    model on all rows, with the number of trees found so, had AUROC 0.617 (log loss 0.668), the mean of the three inner
    models 0.627 (0.665), and with 40,000 rows for each 0.624 (0.666): what averages out is which genes were seen.

    The same seed gives the same trees, for one number of threads (`OMP_NUM_THREADS`).
    """
    model = HistGradientBoostingClassifier if classify else HistGradientBoostingRegressor
    rng = np.random.default_rng([seed, 4])
    models = []
    for train, valid in inner:
        train, valid = (
            part if len(part) <= _ROWS else np.sort(rng.choice(part, _ROWS, replace=False)) for part in (train, valid)
        )
        fit = model(
            **SETTINGS,
            # Leaves of a few of very many pairs are single genes.
            min_samples_leaf=int(np.clip(len(train) // 200, 10, 200)),
            max_iter=MOST_TREES,
            early_stopping=True,
            n_iter_no_change=PATIENCE,
            random_state=seed,
        )
        fit.fit(x[train], y[train], X_val=x[valid], y_val=y[valid])
        # scikit-learn keeps the trees after the best one; to fit again without them would take as long.
        fit._predictors = fit._predictors[: max(1, int(np.argmax(fit.validation_score_)))]
        models.append(fit)
    return Trees(tuple(models)), {"trees": [len(fit._predictors) for fit in models]}


def fit_published(x: Float[np.ndarray, "items features"], y: np.ndarray, *, seed: int) -> Trees:
    """scikit-learn's GradientBoostingClassifier as it comes: 100 trees of depth 3, learning rate 0.1, exact splits."""
    return Trees((GradientBoostingClassifier(random_state=seed).fit(x, y),))
