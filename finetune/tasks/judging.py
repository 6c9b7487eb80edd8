"""From predictions to a result: scores with intervals, and every table against every other on the same test items."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from expresser.metrics.influence import ScoreName, influence
from expresser.metrics.intervals import (
    Interval,
    Paired,
    group_jackknife,
    holm,
    jackknife_interval,
    jackknife_test,
    paired_test,
    resampled_interval,
)
from finetune.heads.fitting import Kind
from finetune.heads.scores import scores
from finetune.splits.rules import Split
from finetune.tasks.runs import Fitted

# The score that orders the tables and decides comparisons.
LEAD: dict[str, str] = {"binary": "auroc", "regression": "pearson", "multiclass": "balanced_accuracy"}

# A difference within this on either side, if the whole interval is, is called none.
PAR = 0.02

GROUPS = 20  # of a single test set of genes

_BOUNDS = {"pearson": (-1.0, 1.0), "spearman": (-1.0, 1.0), "r2": (-np.inf, 1.0), "mae": (0.0, np.inf)}

# A further score: truth, prediction and the row numbers of the items.
Extra = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def judge(
    kind: Kind,
    truth: np.ndarray,
    splits: Sequence[Split],
    fitted: Mapping[str, Sequence[Fitted]],
    *,
    extra: Mapping[str, Extra] | None = None,
    against: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Scores and comparisons of all rows over the same splits.

    With several folds a score is their mean, its interval and the tests are those of the corrected resampled t-test
    (`expresser.metrics.intervals`). With a single test set of pairs they come from leaving out each gene with all its
    pairs, since pairs that share a gene are not independent; of genes, from leaving out groups of them. A fold where a
    score is undefined is left out of its mean.

    against: the rows that each row is compared with; None: every other.

    Returns
    -------
    embeddings
        {row: {score, score_lo, score_hi, …, seconds}}, bounded scores' intervals cut at their bounds.
    comparisons
        {row: {other: {score, difference, low, high, p, p_holm, verdict}}} of the deciding score. Holm's adjustment is
        over the others of one row, since the reader asks of one model whom it beats.
    fits
        How many fits the scores are of.
    """
    more = dict(extra or {})
    classes = [str(name) for name in np.unique(truth.astype(str))] if kind == "multiclass" else None

    def score(rows: np.ndarray, prediction: np.ndarray) -> dict[str, float]:
        of_truth = truth[rows].astype(str) if classes else truth[rows]
        found = scores(kind, of_truth, prediction, classes)
        return found | {name: one(truth[rows], prediction, rows) for name, one in more.items()}

    pairs = splits[0].genes.shape[1] == 2
    measured: dict[str, Any] = {
        name: _Folds(splits, fits, score)
        if len(splits) > 1
        else _Pairs(splits, fits, score, truth)
        if pairs
        else _Genes(splits, fits, score)
        for name, fits in fitted.items()
    }
    names = list(measured)
    entries = {name: _entry(measured[name].intervals()) for name in names}
    for name, fits in fitted.items():
        entries[name]["seconds"] = round(sum(one.seconds for one in fits), 3)
    lead = LEAD[kind]
    others = against or {name: [other for other in names if other != name] for name in names}
    found = {
        name: _compared(lead, {other: measured[name].against(measured[other], lead) for other in others[name]})
        for name in names
    }
    return {"embeddings": entries, "comparisons": found, "fits": len(splits)}


Score = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class _Folds:
    """Scores of one row over the folds of a cross-validation."""

    def __init__(self, splits: Sequence[Split], fits: Sequence[Fitted], score: Score) -> None:
        each = [score(split.test, one.prediction) for split, one in zip(splits, fits, strict=True)]
        self.values = {name: np.array([fold[name] for fold in each]) for name in each[0]}
        self.test_share = float(np.mean([split.test_share for split in splits]))

    def intervals(self) -> dict[str, Interval]:
        return {name: resampled_interval(values, test_share=self.test_share) for name, values in self.values.items()}

    def against(self, other: Any, score: str) -> Paired:
        return paired_test(self.values[score], other.values[score], test_share=self.test_share)


class _Pairs:
    """Scores of one row on one test set of pairs: a gene that is misjudged spoils all its pairs."""

    def __init__(self, splits: Sequence[Split], fits: Sequence[Fitted], score: Score, truth: np.ndarray) -> None:
        (split,), (one,) = splits, fits
        self.a, self.b = split.genes[split.test].T
        self.scores = score(split.test, one.prediction)
        # The share of positives is given, not estimated: it has no interval.
        names = [name for name in get_args(ScoreName) if name in self.scores]
        self.influence = {name: influence(name, truth[split.test], one.prediction) for name in names}

    def intervals(self) -> dict[str, Interval]:
        nan = float("nan")
        found = {name: Interval(value, nan, nan) for name, value in self.scores.items()}
        return found | {name: jackknife_interval(one, self.a, self.b) for name, one in self.influence.items()}

    def against(self, other: Any, score: str) -> Paired:
        return jackknife_test(self.influence[score], other.influence[score], self.a, self.b)


class _Genes:
    """Scores of one row on one test set of genes, and again without each of `GROUPS` groups of them."""

    def __init__(self, splits: Sequence[Split], fits: Sequence[Fitted], score: Score) -> None:
        (split,), (one,) = splits, fits
        # The same groups for every row: what is left of two rows can be subtracted.
        groups = min(GROUPS, len(split.test))
        group = np.random.default_rng(0).permutation(len(split.test)) % groups
        kept = [np.ones(len(group), dtype=bool), *(group != number for number in range(groups))]
        each = [score(split.test[rows], one.prediction[rows]) for rows in kept]
        self.values = {name: np.array([part[name] for part in each]) for name in each[0]}

    def intervals(self) -> dict[str, Interval]:
        found = {name: group_jackknife(values[0], values[1:]) for name, values in self.values.items()}
        return {name: Interval(one.difference, one.low, one.high) for name, one in found.items()}

    def against(self, other: Any, score: str) -> Paired:
        apart = self.values[score] - other.values[score]
        return group_jackknife(apart[0], apart[1:])


def _entry(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, found in intervals.items():
        low, high = _BOUNDS.get(name, (-1.0, 1.0) if name.startswith("pearson") else (0.0, 1.0))
        entry[name] = found.value
        # max() and min() of Python would take a bound for a NaN, depending on the order.
        entry[f"{name}_lo"] = float(np.maximum(found.low, low))
        entry[f"{name}_hi"] = float(np.minimum(found.high, high))
    return entry


def _compared(score: str, found: Mapping[str, Paired]) -> dict[str, dict[str, Any]]:
    adjusted = holm([pair.p for pair in found.values()])
    return {
        other: {
            "score": score,
            "difference": pair.difference,
            "low": pair.low,
            "high": pair.high,
            "p": pair.p,
            "p_holm": float(p),
            "verdict": verdict(pair, float(p)),
        }
        for (other, pair), p in zip(found.items(), adjusted, strict=True)
    }


def score_frame(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """Tables from best to worst by the deciding score, a column a score."""
    frame = pd.DataFrame.from_dict(metrics["embeddings"], orient="index").rename_axis("table")
    return frame.sort_values(LEAD[metrics["kind"]], ascending=False, kind="stable")


def verdict(pair: Paired, p_holm: float) -> str:
    """ "better" or "worse" at 5 % after adjustment, "on a par" where the interval is within ±PAR, else "undecided"."""
    if np.isnan(pair.difference):
        return "undecided"
    if p_holm < 0.05:
        return "better" if pair.difference > 0 else "worse"
    return "on a par" if pair.low >= -PAR and pair.high <= PAR else "undecided"
