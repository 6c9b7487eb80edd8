"""Linear heads: standardised features, ridge or logistic regression, the penalty chosen inside the training data."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, RidgeCV

Inner = Sequence[tuple[np.ndarray, np.ndarray]]

PENALTIES = tuple(10.0**k for k in range(-6, 2))  # C of scikit-learn: the prior variance of a coefficient
ALPHAS = tuple(10.0 ** (k / 2) for k in range(-2, 15))
_BLOCK = 1 << 14  # rows that are in memory as float64 at one time
_CHOICE_ROWS = 40_000  # training rows a penalty is chosen on, at most: seconds instead of minutes
_SMALL = 1 << 25  # entries up to which features are fitted in float64


@dataclass(frozen=True, eq=False)
class Linear:
    """``((x - mean) / scale) @ coef + intercept``: a value, or logits."""

    coef: Float64[np.ndarray, "features outputs"]
    intercept: Float64[np.ndarray, " outputs"]
    mean: Float64[np.ndarray, " features"]
    scale: Float64[np.ndarray, " features"]

    def values(self, x: Float[np.ndarray, "items features"]) -> Float64[np.ndarray, "items outputs"]:
        """One row an item, in float64."""
        found = np.empty((len(x), len(self.intercept)))
        for start in range(0, len(x), _BLOCK):
            rows = x[start : start + _BLOCK]
            found[start : start + _BLOCK] = ((rows - self.mean) / self.scale) @ self.coef + self.intercept
        return found


def fit_ridge(
    x: Float[np.ndarray, "items features"], y: Float64[np.ndarray, " items"], inner: Inner | None
) -> tuple[Linear, dict[str, Any]]:
    """Ridge regression; the penalty has the least squared error over `inner`, or over each item left out in turn.

    Leaving out one item costs nothing more (its error follows from the hat matrix), so no inner folds need be drawn.
    """
    mean, scale = standard(x)
    scaled = (x - mean) / scale
    fit = RidgeCV(ALPHAS, cv=None if inner is None else list(inner)).fit(scaled, y)
    linear = Linear(fit.coef_.reshape(-1, 1), np.atleast_1d(np.float64(fit.intercept_)), mean, scale)
    return linear, {"alpha": float(fit.alpha_)}


def fit_logistic(
    x: Float[np.ndarray, "items features"], y: np.ndarray, inner: Inner, *, seed: int
) -> tuple[Linear, dict[str, Any]]:
    """Logistic regression (multinomial for more than two classes); the penalty has the least log loss over `inner`.

    y are class numbers from 0. Features are standardised once, with all rows given, which uses no label. From the
    strongest penalty on, each fit starts from the last one. Each penalty is tried on at most `_CHOICE_ROWS` rows of
    an inner training part: as the variance of a prior, it means the same for fewer rows.
    """
    classes = int(y.max()) + 1
    mean, scale = standard(x)
    if x.size <= _SMALL:
        scaled = (x - mean) / scale
    else:
        scaled = np.empty(x.shape, dtype=np.float32)
        for start in range(0, len(x), _BLOCK):
            scaled[start : start + _BLOCK] = (x[start : start + _BLOCK] - mean) / scale
    rng = np.random.default_rng([seed, 2])
    losses = np.zeros(len(PENALTIES))
    for train, valid in inner:
        train = train if len(train) <= _CHOICE_ROWS else np.sort(rng.choice(train, _CHOICE_ROWS, replace=False))
        valid = valid if len(valid) <= _CHOICE_ROWS else np.sort(rng.choice(valid, _CHOICE_ROWS, replace=False))
        # Of many rows float32 holds enough of a gradient, in half the memory and time.
        model = _logistic(PENALTIES[0])
        for number, penalty in enumerate(PENALTIES):
            model.set_params(C=penalty)
            _fit(model, scaled[train], y[train])
            logits = _logits(model, scaled[valid])
            losses[number] -= log_softmax(logits, axis=1)[np.arange(len(valid)), y[valid]].mean() / len(inner)
    best = int(losses.argmin())
    model = _logistic(PENALTIES[best])
    converged = _fit(model, scaled, y)
    coef = np.asarray(model.coef_, dtype=np.float64).T
    linear = Linear(np.ascontiguousarray(coef), np.asarray(model.intercept_, dtype=np.float64), mean, scale)
    about = {"C": PENALTIES[best], "inner_log_loss": float(losses[best]), "converged": converged, "classes": classes}
    return linear, about


def standard(
    x: Float[np.ndarray, "items features"],
) -> tuple[Float64[np.ndarray, " features"], Float64[np.ndarray, " features"]]:
    """Mean and standard deviation of each feature; the deviation is 1 where a feature does not vary."""
    mean = x.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for start in range(0, len(x), _BLOCK):
        squares += ((x[start : start + _BLOCK] - mean) ** 2).sum(axis=0)
    deviation = np.sqrt(squares / len(x))
    return mean, np.where(deviation > 1e-7 * np.abs(mean), deviation, 1.0)


def _logistic(penalty: float) -> LogisticRegression:
    return LogisticRegression(C=penalty, max_iter=300, tol=1e-4, warm_start=True)


def _fit(model: LogisticRegression, x: np.ndarray, y: np.ndarray) -> bool:
    """Fit, and whether it converged; a weak penalty that does not is no worse a candidate, and is not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return bool(np.max(model.n_iter_) < model.max_iter)


def _logits(model: LogisticRegression, x: np.ndarray) -> Float64[np.ndarray, "items classes"]:
    found = np.asarray(model.decision_function(x), dtype=np.float64)
    return found if found.ndim == 2 else np.stack([np.zeros(len(found)), found], axis=1)
