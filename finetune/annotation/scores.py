"""Scores of predicted cell types, and whether one row of the table is better than another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped

from expresser.metrics.intervals import holm, paired_test, resampled_interval
from finetune.annotation.folds import Fold

SCORES = ("macro_f1", "balanced_accuracy", "accuracy")  # the first orders the table and decides
_LEAST_P = 0.05


def confusion(
    truth: Shaped[np.ndarray, " cells"], predicted: Shaped[np.ndarray, " cells"], types: Sequence[str]
) -> Int[np.ndarray, "types types"]:
    """Cells by true type (row) and predicted type (column)."""
    place = {name: i for i, name in enumerate(types)}
    table = np.zeros((len(types), len(types)), dtype=np.int64)
    np.add.at(table, ([place[t] for t in truth], [place[p] for p in predicted]), 1)
    return table


def class_f1(table: Int[np.ndarray, "types types"]) -> np.ndarray:
    """F1 of each type, 2 tp / (2 tp + fp + fn); NaN of a type that is neither there nor predicted."""
    hit, cells = np.diag(table), table.sum(0) + table.sum(1)
    return np.divide(2.0 * hit, cells, out=np.full(len(hit), np.nan), where=cells > 0)


def fold_scores(table: Int[np.ndarray, "types types"]) -> dict[str, float]:
    """Accuracy; balanced accuracy and macro F1 as means over the types that are there (not those that are only predicted)."""
    there = table.sum(1) > 0
    if not there.any():
        return dict.fromkeys(SCORES, float("nan"))
    recall = np.diag(table)[there] / table.sum(1)[there]
    return {
        "macro_f1": float(class_f1(table)[there].mean()),
        "balanced_accuracy": float(recall.mean()),
        "accuracy": float(np.diag(table).sum() / table.sum()),
    }


@dataclass(frozen=True, eq=False)
class Judged:
    """A row's predictions of all folds, and its scores in each (a frame: a row a fold, a column a score)."""

    predicted: list[np.ndarray]
    by_fold: pd.DataFrame


def judge(
    folds: Sequence[Fold], predicted: Sequence[np.ndarray], labels: Shaped[np.ndarray, " cells"], types: Sequence[str]
) -> Judged:
    """Score the predictions of each fold's test cells."""
    tables = [confusion(labels[fold.test], said, types) for fold, said in zip(folds, predicted, strict=True)]
    return Judged(list(predicted), pd.DataFrame([fold_scores(table) for table in tables]))


def summary(judged: Judged, test_share: float) -> dict[str, float]:
    """The mean of each score over folds, and its 95 % interval as `..._lo` and `..._hi`."""
    found: dict[str, float] = {}
    for score in SCORES:
        values = judged.by_fold[score].to_numpy(dtype=np.float64)
        interval = resampled_interval(values, test_share=test_share)
        found[score] = interval.value
        # An interval of a mean of shares: what lies outside 0 to 1 is not possible.
        found |= {f"{score}_lo": max(interval.low, 0.0), f"{score}_hi": min(interval.high, 1.0)}
    return found


def pooled(
    folds: Sequence[Fold], judged: Judged, labels: Shaped[np.ndarray, " cells"], types: Sequence[str]
) -> Int[np.ndarray, "types types"]:
    """Confusion of all folds and repeats together: each cell counts once a repeat."""
    test = np.concatenate([fold.test for fold in folds])
    return confusion(labels[test], np.concatenate(judged.predicted), types)


def compare(
    judged: Mapping[str, Judged], ours: Sequence[str], others: Sequence[str], test_share: float
) -> list[dict[str, Any]]:
    """Each of `ours` with each of `others` on the same folds: a paired test of every score, p adjusted over all pairs (Holm).

    `verdict` is by the deciding score: "better", "worse", or "no difference shown".
    """
    found = []
    for mine in ours:
        for other in others:
            if mine == other:
                continue
            entry: dict[str, Any] = {"model": mine, "baseline": other}
            for score in SCORES:
                a, b = (judged[name].by_fold[score].to_numpy(dtype=np.float64) for name in (mine, other))
                test = paired_test(a, b, test_share=test_share)
                entry |= {
                    f"{score}_difference": test.difference,
                    f"{score}_lo": test.low,
                    f"{score}_hi": test.high,
                    f"{score}_p": test.p,
                }
            found.append(entry)
    lead = SCORES[0]
    asked = [entry for entry in found if np.isfinite(entry[f"{lead}_p"])]
    for entry, p in zip(asked, holm(np.array([entry[f"{lead}_p"] for entry in asked]))):
        entry["p_adjusted"] = float(p)
    for entry in found:
        shown = entry.setdefault("p_adjusted", float("nan")) < _LEAST_P
        better = entry[f"{lead}_difference"] > 0
        entry["verdict"] = ("better" if better else "worse") if shown else "no difference shown"
    return found
