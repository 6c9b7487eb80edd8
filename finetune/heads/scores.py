"""Scores of a prediction of one task; what is undefined is NaN."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy import stats
from sklearn import metrics

from finetune.heads.fitting import Kind

NAN = float("nan")


def scores(
    kind: Kind,
    truth: np.ndarray,
    prediction: Float64[np.ndarray, "items *classes"],
    classes: Sequence[str] | None = None,
) -> dict[str, float]:
    """Scores by name.

    binary (truth 0 or 1, prediction the probability of 1): auroc, auprc (average precision), accuracy and
    balanced_accuracy at probability 0.5, brier (mean squared error of the probability; less is better), share (positives
    among the items, which is the auprc of chance).
    regression: pearson, spearman, r2 (against the mean of the truth), mae.
    multiclass (truth names of `classes`, prediction one column a class): accuracy, balanced_accuracy and macro_f1 of the
    most probable class over the classes met, auroc (mean over classes of one against the rest).
    """
    if not len(truth):
        return dict.fromkeys(_NAMES[kind], NAN)
    if kind == "binary":
        return _binary(np.asarray(truth).astype(np.int64), prediction)
    if kind == "regression":
        return _regression(np.asarray(truth, dtype=np.float64), prediction)
    names = [str(name) for name in classes or ()]
    number = {name: at for at, name in enumerate(names)}
    return _multiclass(np.array([number[str(name)] for name in truth], dtype=np.int64), prediction)


_NAMES = {
    "binary": ("auroc", "auprc", "accuracy", "balanced_accuracy", "brier", "share"),
    "regression": ("pearson", "spearman", "r2", "mae"),
    "multiclass": ("accuracy", "balanced_accuracy", "macro_f1", "auroc"),
}


def _binary(truth: Int64[np.ndarray, " items"], probability: Float64[np.ndarray, " items"]) -> dict[str, float]:
    both = 0 < truth.sum() < len(truth)
    said = (probability >= 0.5).astype(np.int64)
    return {
        "auroc": float(metrics.roc_auc_score(truth, probability)) if both else NAN,
        "auprc": float(metrics.average_precision_score(truth, probability)) if truth.any() else NAN,
        "accuracy": float((said == truth).mean()),
        "balanced_accuracy": float(np.mean([(said[truth == one] == one).mean() for one in (0, 1)])) if both else NAN,
        "brier": float(((probability - truth) ** 2).mean()),
        "share": float(truth.mean()),
    }


def _regression(truth: Float64[np.ndarray, " items"], value: Float64[np.ndarray, " items"]) -> dict[str, float]:
    # A constant, up to rounding, has no correlation and no variance to explain.
    varies = len(truth) > 1 and np.ptp(truth) > 1e-12 * np.abs(truth).max()
    answers = varies and np.ptp(value) > 1e-12 * np.abs(value).max()
    return {
        "pearson": float(stats.pearsonr(truth, value).statistic) if answers else NAN,
        "spearman": float(stats.spearmanr(truth, value).statistic) if answers else NAN,
        "r2": float(metrics.r2_score(truth, value)) if varies else NAN,
        "mae": float(np.abs(truth - value).mean()),
    }


def _multiclass(
    truth: Int64[np.ndarray, " items"], probability: Float64[np.ndarray, "items classes"]
) -> dict[str, float]:
    said = probability.argmax(axis=1)
    met = np.unique(truth)
    one_rest = [_binary((truth == one).astype(np.int64), probability[:, one])["auroc"] for one in met]
    defined = [area for area in one_rest if not np.isnan(area)]
    return {
        "accuracy": float((said == truth).mean()),
        "balanced_accuracy": float(np.mean([(said[truth == one] == one).mean() for one in met])),
        "macro_f1": float(metrics.f1_score(truth, said, labels=met, average="macro", zero_division=0)),
        "auroc": float(np.mean(defined)) if defined else NAN,
    }
