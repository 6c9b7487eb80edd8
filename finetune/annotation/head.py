"""The classifier on top of any cell features: standardised multinomial logistic regression with a chosen penalty."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int, Shaped
from safetensors.numpy import save_file
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from expresser.errors import InputError
from expresser.foreign import prove_types, read_mapping
from expresser.foreign_tensors import read_arrays, tensor_shapes

HEAD_FILES = ("head.json", "head.safetensors")
# C of scikit-learn: the weight of the data's log-likelihood (a sum over cells) against half the squared coefficients.
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)

_ARRAYS = ("coef", "intercept", "mean", "scale")
_GIVE = "Give the `classifier` folder of `expresser finetune annotation`."

Splits = Sequence[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, eq=False)
class LinearHead:
    r"""Class probabilities :math:`\mathrm{softmax}(W (x - m) / s + b)`, float64.

    Attributes
    ----------
    classes
        Names, in the order of the rows of `coef`.
    coef, intercept
        W and b.
    mean, scale
        m and s: of the training cells' features.
    c
        The penalty that was chosen (see `PENALTIES`).
    """

    classes: tuple[str, ...]
    coef: Float64[np.ndarray, "classes d"]
    intercept: Float64[np.ndarray, " classes"]
    mean: Float64[np.ndarray, " d"]
    scale: Float64[np.ndarray, " d"]
    c: float

    def log_probabilities(self, x: Float[np.ndarray, "cells d"]) -> Float64[np.ndarray, "cells classes"]:
        """Natural logarithms of the class probabilities."""
        # Not a matrix product: BLAS sums in an order that depends on how many rows it is given, and a cell's answer must
        # not depend on its company.
        z = (x.astype(np.float64) - self.mean) / self.scale
        return log_softmax(np.einsum("nd,kd->nk", z, self.coef) + self.intercept, axis=1)

    def predict(self, x: Float[np.ndarray, "cells d"]) -> Shaped[np.ndarray, " cells"]:
        """The most probable class of each cell; the first of equals."""
        return np.array(self.classes, dtype=object)[self.log_probabilities(x).argmax(1)]

    def save(self, folder: Path, about: Mapping[str, Any]) -> None:
        """Write `head.json` (classes, penalty and `about`) and `head.safetensors` into a folder."""
        arrays = {"coef": self.coef, "intercept": self.intercept, "mean": self.mean, "scale": self.scale}
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, folder / HEAD_FILES[1])
        said = {"format": 1, "classes": list(self.classes), "c": self.c, **about}
        (folder / HEAD_FILES[0]).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> tuple["LinearHead", dict[str, Any]]:
        """The head and what else `head.json` says.

        Raises
        ------
        InputError
            Where a file is missing, damaged, or does not fit the other.
        """
        said, weights = folder / HEAD_FILES[0], folder / HEAD_FILES[1]
        about = read_mapping(said)
        classes, c = about.pop("classes", None), about.pop("c", None)
        if not isinstance(classes, list) or not all(isinstance(name, str) and name.isprintable() for name in classes):
            raise InputError(f"{said}: classes are no list of names without control characters. {_GIVE}")
        if len(classes) < 1 or len(set(classes)) < len(classes) or type(c) not in (int, float):
            raise InputError(f"{said}: needs classes, each once, and the penalty c. {_GIVE}")
        prove_types(about, {"trained": dict, "scores": dict, "split": str}, str(said))
        k, found = len(classes), tensor_shapes(weights)
        d = found.get("mean", (0,))[0] if found.get("mean") else 0
        if found != {"coef": (k, d), "intercept": (k,), "mean": (d,), "scale": (d,)}:
            coef = found.get("coef", ())
            held = f"{coef[0]} classes x {coef[1]} features" if len(coef) == 2 else "no coef of classes x features"
            raise InputError(
                f"{folder}: head.safetensors holds {held}, head.json names {k} classes, or other arrays than "
                f"{', '.join(_ARRAYS)}. Copy both files from the same folder."
            )
        arrays = read_arrays(weights)
        if any(values.dtype != np.float64 for values in arrays.values()) or not (arrays["scale"] > 0).all():
            raise InputError(f"{weights}: needs float64 numbers, and a scale above 0. {_GIVE}")
        head = cls(classes=tuple(classes), c=float(c), **arrays)
        return head, about


def fit_head(
    x: Float[np.ndarray, "cells d"],
    labels: Shaped[np.ndarray, " cells"],
    *,
    inner: Splits | None = None,
    c: float | None = None,
) -> LinearHead:
    """Fit on all rows, the penalty given (`c`) or chosen inside them: the one with the least log-loss on the `inner` checks.

    Features without spread (an unexpressed gene) get weight zero.
    """
    classes, code = np.unique(labels.astype(str), return_inverse=True)
    mean = x.mean(0, dtype=np.float64)
    spread = x.std(0, dtype=np.float64)
    flat = spread <= 1e-9 * max(float(np.abs(x).max(initial=0.0)), 1e-30)
    scale = np.where(flat, 1.0, spread)
    # Mean and spread of the checks are known to the inner fits: these choose one number and know no label by it.
    z = np.where(flat, 0.0, (x - mean) / scale)
    basis = None
    if z.shape[1] > 1.2 * z.shape[0]:
        # The penalised solution lies in the span of the rows: with z = u v', fitting on u and turning back is the same.
        left, size, right = np.linalg.svd(z, full_matrices=False)
        z, basis = left * size, right
    if c is None:
        c = _choose(z, code, inner) if inner else 1.0
    coef, intercept = _logistic(z, code, len(classes), c, None)
    coef = np.ascontiguousarray(coef if basis is None else coef @ basis)
    coef[:, flat] = 0.0  # not the rounding of it: a new cell may have any value there
    return LinearHead(
        classes=tuple(str(name) for name in classes),
        coef=coef,
        intercept=intercept,
        mean=mean,
        scale=scale,
        c=float(c),
    )


def _choose(z: Float64[np.ndarray, "cells d"], code: Int[np.ndarray, " cells"], inner: Splits) -> float:
    """The penalty of least log-loss over the inner checks; types that an inner fit has not met are not asked of it."""
    n = int(code.max()) + 1
    losses: list[float] = []
    warm: list[np.ndarray | None] = [None] * len(inner)
    for c in PENALTIES:
        total, asked = 0.0, 0
        for i, (learn, check) in enumerate(inner):
            check = check[np.isin(code[check], code[learn])]
            if not len(check) or len(np.unique(code[learn])) < 2:
                continue
            coef, intercept = _logistic(z[learn], code[learn], n, c, warm[i])
            warm[i] = np.column_stack([coef, intercept])
            logp = log_softmax(z[check] @ coef.T + intercept, axis=1)
            total -= float(logp[np.arange(len(check)), code[check]].sum())
            asked += len(check)
        if not asked:
            return 1.0
        losses.append(total / asked)
        if len(losses) > 2 and losses[-1] > losses[-2] > losses[-3]:
            break  # it only gets worse from here, and slower
    return PENALTIES[int(np.argmin(losses))]


def _logistic(
    z: Float64[np.ndarray, "cells d"],
    code: Int[np.ndarray, " cells"],
    n_classes: int,
    c: float,
    start: Float64[np.ndarray, "classes d_and_one"] | None,
) -> tuple[Float64[np.ndarray, "classes d"], Float64[np.ndarray, " classes"]]:
    """Coefficients of all classes; one that is not among the cells has an intercept that rules it out."""
    there = np.unique(code)
    coef, intercept = np.zeros((n_classes, z.shape[1])), np.full(n_classes, -1e9)
    if len(there) == 1:
        intercept[there] = 0.0
        return coef, intercept
    model = LogisticRegression(C=c, tol=1e-4, max_iter=300, warm_start=start is not None)
    if start is not None:
        rows = start[there]
        if len(there) == 2:  # scikit-learn keeps the second class's part against the first
            rows = rows[[1]] - rows[[0]]
        model.coef_, model.intercept_ = rows[:, :-1].copy(), rows[:, -1].copy()
        model.classes_ = there
    with warnings.catch_warnings():
        # 300 steps from a good start are near enough: what is left to gain is below what a fold can show.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(z, code)
    if len(there) == 2:
        coef[there] = np.stack([-model.coef_[0], model.coef_[0]]) / 2
        intercept[there] = np.array([-model.intercept_[0], model.intercept_[0]]) / 2
    else:
        coef[there], intercept[there] = model.coef_, model.intercept_
    return coef, intercept
