"""What is put on top of gene vectors: a small model of one task, fitted in one call, saved without pickle."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float64
from scipy.special import expit, softmax
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import KFold, StratifiedKFold

from expresser.errors import InputError
from finetune.heads.linear import Linear, fit_logistic, fit_ridge
from finetune.heads.pair_features import Form
from finetune.heads.trees import Trees, fit_boosting, fit_published
from finetune.splits.degree import degree_scores

__all__ = ["DEFAULTS", "Head", "Kind", "Preset", "degree_scores", "fit_head", "form_of"]

Kind = Literal["regression", "binary", "multiclass"]
Preset = Literal["default", "linear", "boosting", "paper"]

INNER_FOLDS = 3

# What "default" is, by measurement with principal axes of 8,379 cells (`expresser.factors`) of width 64 and 200:
# pairs, Gene2vec's shipped split, AUROC: boosting 0.627 and 0.619 (the latter one model, not the mean of three), linear
# 0.604 and 0.593; dosage, 457 genes, 5 folds, AUROC: boosting 0.845 and 0.831, linear 0.825 and 0.729, paper 0.840 and
# 0.822, for 0.4 and 1.2, 0.1 and 0.1, 0.5 and 1.2 s a fit; lof_z, 16,488 genes, r: boosting 0.562, linear 0.533 of width
# 64, for 2.3 and 0.2 s a fit. For regression this is linear all the same: a hundred fits of many tables are the usual case.
# Random vectors had 0.54 (dosage) and 0.01 (lof_z) with linear.
DEFAULTS: dict[str, Preset] = {
    "pairs": "boosting",
    "binary": "boosting",
    "multiclass": "boosting",
    "regression": "linear",
}


def form_of(preset: Preset) -> Form:
    """How the two genes of a pair become features: concatenated as published, else so that their order says nothing."""
    return "concatenated" if preset == "paper" else "symmetric"


@dataclass(frozen=True, eq=False)
class Head:
    """A fitted head.

    kind, preset: as asked for. classes: their names in the order of columns, ("0", "1") for binary, () for regression.
    features: width of x. form: how x was made of pairs (`pair_features`), None for single genes. about: what was chosen,
    plain JSON.
    """

    kind: Kind
    preset: Preset
    classes: tuple[str, ...]
    estimator: Linear | Trees
    features: int
    form: Form | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def predict(self, x: Float[np.ndarray, "items features"]) -> Float64[np.ndarray, "items *classes"]:
        """Probability of class 1 (binary), value (regression), or probabilities [items, classes]."""
        if x.shape[1] != self.features:
            raise InputError(
                f"this head was fitted on {self.features} features, x has {x.shape[1]}. Take the table it was fitted on"
                + ("." if self.form is None else f", and pairs in the form {self.form!r}.")
            )
        if not np.isfinite(x).all():
            raise InputError("x holds values that are not finite. Leave out genes without a vector.")
        if isinstance(self.estimator, Linear):
            values = self.estimator.values(x)
            if self.kind == "regression":
                return values[:, 0]
            return expit(values[:, 0]) if self.kind == "binary" else softmax(values, axis=1)
        values = self.estimator.values(x, classify=self.kind != "regression")
        return values if self.kind == "multiclass" else values[:, -1]

    def save(self, folder: str | Path) -> Path:
        """Write the folder of the head, whole or not at all (`finetune.heads.files`)."""
        from finetune.heads.files import save_head

        return save_head(self, Path(folder))

    @classmethod
    def load(cls, folder: str | Path) -> "Head":
        """Read the folder of a head; it predicts what the saved one did, bit for bit."""
        from finetune.heads.files import load_head

        return load_head(Path(folder))


def fit_head(
    x: Float[np.ndarray, "items features"],
    y: np.ndarray,
    *,
    kind: Kind,
    preset: Preset = "default",
    inner: Sequence[tuple[np.ndarray, np.ndarray]] | None = None,
    seed: int = 0,
    form: Form | None = None,
) -> Head:
    """Fit a head to labelled items.

    Parameters
    ----------
    y
        Values, 0 and 1, or names of classes.
    preset
        "linear": standardised features, ridge or logistic regression with the penalty chosen by `inner`. "boosting": the
        mean of histogram gradient boostings, one for each split of `inner`, which says when it ends. "paper":
        scikit-learn as it comes, linear regression or gradient boosting on features as they are; nothing is chosen
        (4,000 x 400: 36 s of one core; 263,016 x 400 by that some 45 minutes). "default": `DEFAULTS`.
    inner
        (train, valid) row numbers of x. None: `INNER_FOLDS` stratified folds by seed. Pairs need `splits.inner_pairs`:
        random folds of pairs share genes.
    form
        For pairs, how x was made; it is written down, and says what "default" means.
    """
    _check(x, y, kind)
    chosen = preset if preset != "default" else DEFAULTS["pairs" if form is not None else kind]
    if kind == "regression":
        classes: tuple[str, ...] = ()
        target: np.ndarray = np.asarray(y, dtype=np.float64)
    else:
        names, numbers = np.unique(np.asarray(y).astype(str), return_inverse=True)
        target = numbers.astype(np.int64)
        classes = tuple(str(name) for name in names)
    about: dict[str, Any] = {"method": chosen, "items": len(x)}
    estimator: Linear | Trees
    if chosen == "paper":
        estimator = _plain(x, target) if kind == "regression" else fit_published(x, target, seed=seed)
    elif chosen == "linear" and kind == "regression":
        estimator, more = fit_ridge(x, target, inner)
        about |= more
    else:
        folds = _inner(target, inner, classify=kind != "regression", seed=seed)
        about |= {"inner_splits": len(folds)}
        if chosen == "linear":
            estimator, more = fit_logistic(x, target, folds, seed=seed)
        else:
            estimator, more = fit_boosting(x, target, folds, classify=kind != "regression", seed=seed)
        about |= more
    return Head(kind, preset, classes, estimator, x.shape[1], form, about)


def _plain(x: Float[np.ndarray, "items features"], y: Float64[np.ndarray, " items"]) -> Linear:
    """Least squares without a penalty, kept as numbers."""
    fit = LinearRegression().fit(x.astype(np.float64), y)
    return Linear(
        np.asarray(fit.coef_, dtype=np.float64).reshape(-1, 1),
        np.atleast_1d(np.float64(fit.intercept_)),
        np.zeros(x.shape[1]),
        np.ones(x.shape[1]),
    )


def _inner(
    target: np.ndarray, inner: Sequence[tuple[np.ndarray, np.ndarray]] | None, *, classify: bool, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Those of the given inner splits that have all classes on both sides; else stratified folds."""
    if inner is not None:
        kinds = len(np.unique(target)) if classify else 1
        good = [
            (train, valid)
            for train, valid in inner
            if not classify or min(len(np.unique(target[train])), len(np.unique(target[valid]))) == kinds
        ]
        if good:
            return good
    folds = INNER_FOLDS
    if classify:
        fewest = int(np.bincount(target).min())
        if fewest < 2:
            raise InputError(
                "a class has 1 item to train on, and at least 2 are needed to choose a penalty or a number of trees. "
                "Give more items, drop the class, or use preset paper, which chooses nothing."
            )
        folds = min(folds, fewest)
    cut = (StratifiedKFold if classify else KFold)(folds, shuffle=True, random_state=seed)
    return list(cut.split(np.zeros(len(target)), target))


def _check(x: np.ndarray, y: np.ndarray, kind: Kind) -> None:
    if len(x) != len(y):
        raise InputError(f"{len(x)} items have {len(y)} labels; an item has one.")
    if not np.isfinite(x).all():
        raise InputError("x holds values that are not finite. Leave out genes without a vector.")
    if kind == "regression":
        if not np.isfinite(np.asarray(y, dtype=np.float64)).all():
            raise InputError("y holds values that are not finite. Leave out items without a value.")
        return
    names = np.unique(np.asarray(y).astype(str))
    if len(names) < 2 or (kind == "binary" and tuple(names) != ("0", "1")):
        raise InputError(
            f"a {kind} head was given labels {names[:5].tolist()}; "
            + ("binary labels are 0 and 1, and both are needed." if kind == "binary" else "two classes are needed.")
        )
