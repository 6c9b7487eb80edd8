"""Whether the model beats each baseline at imputation, with the interval that says so, and the same in words.

Cells are what would be drawn anew, not entries: all entries of a cell share its depth and its type, so an accident of
the cell moves them together. Scores are computed again without each of 20 groups of cells (delete-a-group jackknife),
for both methods of a comparison in the same cells and entries, and averaged over the draws before they are compared.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float64, Int, Num

from expresser.metrics.intervals import Interval, group_jackknife

Direction = Literal["min", "max"]
Said = Literal["beats", "on a par", "behind", "undecided"]  # the model, to the baseline

# Which scores say that a method is better, and in which direction; the first one leads and orders the table.
DECIDING: dict[str, dict[str, Direction]] = {
    "dropout": {"mae": "min", "pearson": "max"},
    "mcv": {"poisson": "min", "mse": "min"},
}
GROUPS = 20
_VERBS = {
    "beats": "beats",
    "on a par": "is on a par with",
    "behind": "is behind",
    "undecided": "cannot be compared with",
}


@dataclass(frozen=True, eq=False)
class GroupSums:
    """Sums over the entries of each group of cells, from which scores without a group follow exactly.

    Rows of `values`: n, |e|, e², t, p, t², p², t·p, and the loss where there is one (else zeros); e = p - t.
    """

    values: Float64[np.ndarray, "9 groups"]

    @classmethod
    def of_cells(cls, by_cell: Float64[np.ndarray, "9 cells"], group: Int[np.ndarray, " cells"]) -> "GroupSums":
        """Of sums by cell (`entry_sums`), each with its group (`deal`)."""
        return cls(np.stack([np.bincount(group, row, int(group.max(initial=0)) + 1) for row in by_cell]))

    def without(self, score: str) -> Float64[np.ndarray, " groups"]:
        """The score of all entries but those of each group; NaN where undefined."""
        return _score(score, self.values.sum(axis=1, keepdims=True) - self.values)


def entry_sums(
    truth: Num[np.ndarray, " entries"],
    prediction: Num[np.ndarray, " entries"],
    loss: Float64[np.ndarray, " entries"] | None,
    cell: Int[np.ndarray, " entries"],
    n_cells: int,
) -> Float64[np.ndarray, "9 cells"]:
    """The rows of `GroupSums`, by cell."""
    t, p = truth.astype(np.float64), prediction.astype(np.float64)
    e = p - t
    rows = (np.ones_like(t), np.abs(e), e * e, t, p, t * t, p * p, t * p, np.zeros_like(t) if loss is None else loss)
    return np.stack([np.bincount(cell, row, n_cells) for row in rows])


def deal(cells: int) -> Int[np.ndarray, " cells"]:
    """Cells dealt at random into `GROUPS` groups, as many as there are cells if fewer; the same for every method and draw."""
    return np.random.default_rng([0, cells]).permutation(cells) % max(1, min(GROUPS, cells))


def interval(mine: Sequence[GroupSums], its: Sequence[GroupSums], score: str) -> Interval | None:
    """95 % interval of the difference (mine - its) in the mean score over draws; None where it is undefined.

    The standard error is the jackknife's, of differences in pairs; the interval is Student's, with one degree of
    freedom less than there are groups, of which there must be three.
    """
    whole = [_score(score, s.values.sum(axis=1, keepdims=True))[0] for s in (*mine, *its)]
    here = [s.without(score) for s in (*mine, *its)]
    if any(len(row) != len(here[0]) for row in here):
        return None
    apart = np.mean(here[: len(mine)], axis=0) - np.mean(here[len(mine) :], axis=0)
    found = group_jackknife(float(np.mean(whole[: len(mine)]) - np.mean(whole[len(mine) :])), apart)
    return None if np.isnan(found.p) else Interval(found.difference, found.low, found.high)


def _score(score: str, sums: Float64[np.ndarray, "9 groups"]) -> Float64[np.ndarray, " groups"]:
    """A score from sums, as `expresser.metrics.expression` and `molecular_cv` define it."""
    n, absolute, squared, t, p, tt, pp, tp, loss = sums
    with np.errstate(invalid="ignore", divide="ignore"):
        if score == "pearson":
            spread_t, spread_p = n * tt - t * t, n * pp - p * p
            # Differences of large sums: below this share of the whole a spread is rounding.
            varies = (spread_t > 1e-10 * n * tt) & (spread_p > 1e-10 * n * pp)
            return np.where(varies, (n * tp - t * p) / np.sqrt(spread_t * spread_p), np.nan)
        return {"mae": absolute, "mse": squared, "poisson": loss}[score] / n


@dataclass(frozen=True)
class Verdict:
    """The model against one baseline."""

    baseline: str
    said: Said
    differences: Mapping[str, Interval | None]  # deciding score -> model - baseline

    def facts(self) -> dict[str, dict[str, float] | None]:
        """The intervals as plain JSON."""
        return {
            score: None if found is None else {"difference": found.value, "low": found.low, "high": found.high}
            for score, found in self.differences.items()
        }


def verdicts(
    sums: Mapping[str, Sequence[GroupSums]], deciding: Mapping[str, Direction], model: str
) -> dict[str, Verdict]:
    """The model against each other method; empty without a model. `sums`: by method, one of each draw.

    beats: the interval of the difference in the first deciding score is on the better side of zero, and that of no other
    score on the worse. behind: the first is on the worse side and no other on the better. on a par: neither, so a
    difference of this size may be an accident of these cells, or the scores contradict each other. undecided: no
    interval (fewer than three cells). A score that the model lacks and the baseline has (a constant has no correlation)
    counts against the model; one that the baseline lacks counts for neither.
    """
    if model not in sums:
        return {}
    found = {}
    for other, its in sums.items():
        if other == model:
            continue
        mine = sums[model]
        differences = {s: interval(mine, its, s) for s in deciding}
        sides = [_side(differences[s], way) for s, way in deciding.items()]
        for number, s in enumerate(deciding):
            if differences[s] is None and not _defined(mine, s) and _defined(its, s):
                sides[number] = -1
        said: Said = "on a par"
        if next(iter(differences.values())) is None:
            said = "undecided"
        elif sides[0] > 0 and min(sides) >= 0:
            said = "beats"
        elif sides[0] < 0 and max(sides) <= 0:
            said = "behind"
        found[other] = Verdict(other, said, differences)
    return found


def _side(found: Interval | None, way: Direction) -> int:
    """1 where the interval says better, -1 worse, 0 neither."""
    if found is None:
        return 0
    above, below = found.low > 0, found.high < 0
    return (int(above) - int(below)) * (1 if way == "max" else -1)


def _defined(sums: Sequence[GroupSums], score: str) -> bool:
    return not any(np.isnan(_score(score, s.values.sum(axis=1, keepdims=True))[0]) for s in sums)


def summary(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each score over the draws, and `..._sd`, the standard deviation (NaN of a single draw)."""
    found: dict[str, float] = {}
    for name in scores[0]:
        values = np.array([s[name] for s in scores], dtype=np.float64)
        found[name] = float(values.mean())
        if name not in ("n", "genes", "cells", "seconds", "genes_undefined", "cells_undefined"):
            found[f"{name}_sd"] = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return found


def sentences(metrics: Mapping[str, Any], deciding: Mapping[str, Direction], model: str, best: str | None) -> list[str]:
    """In words: whether the model beats the baselines at large, and one sentence for each."""
    methods, verdict = metrics["methods"], metrics["verdict"]
    if model not in methods:
        lead = score_name(next(iter(deciding)))
        return ["No model was examined." + (f" The best baseline by {lead} is {best}." if best else "")]
    if not verdict:
        return ["No baseline was run, so nothing can be said of the model."]
    lead, *rest = (f"{'lower' if way == 'min' else 'higher'} {score_name(s)}" for s, way in deciding.items())
    rule = (
        f"Beats means: {lead}, with the 95 % interval of the difference (other cells of the same kind) beyond zero, and "
        f"nothing against it in the interval for {' and '.join(rest)}. On a par: neither this nor its opposite."
    )
    lines = [
        _sentence(methods, deciding, model, name, said, metrics["differences"].get(name, {}))
        for name, said in verdict.items()
    ]
    return [f"{at_large(verdict, model)} {rule}", *lines]


def at_large(verdict: Mapping[str, str], model: str) -> str:
    """One sentence about all baselines."""
    by = {said: [name for name, s in verdict.items() if s == said] for said in _VERBS}
    if len(by["beats"]) == len(verdict):
        return f"{model} beats every one of the {len(verdict)} baselines."
    others = [f"{_VERBS[said]} {', '.join(names)}" for said, names in by.items() if names and said != "beats"]
    return f"{model} does not beat all baselines: it beats {len(by['beats'])} of {len(verdict)}; it {'; it '.join(others)}."


def _sentence(
    methods: Mapping[str, Mapping[str, float]],
    deciding: Mapping[str, Direction],
    model: str,
    other: str,
    said: str,
    differences: Mapping[str, Mapping[str, float] | None],
) -> str:
    pairs = []
    for score in deciding:
        found = differences.get(score)
        more = "" if found is None else f" (difference {interval_text(found)})"
        pairs.append(f"{score_name(score)} {methods[model][score]:#.3g} against {methods[other][score]:#.3g}{more}")
    return f"{model} {_VERBS[said]} {other}: {', '.join(pairs)}."


def interval_text(found: Mapping[str, float]) -> str:
    """``+0.012 [+0.008, +0.016]``."""
    value, low, high = (f"{found[key]:+#.2g}".replace("-", "−") for key in ("difference", "low", "high"))
    return f"{value} [{low}, {high}]"


def score_name(score: str) -> str:
    """A score as the pages call it."""
    names = {"pearson": "r", "pearson_gene": "r by gene", "pearson_cell": "r by cell", "poisson": "Poisson loss"}
    names |= {"mse_plain": "MSE plain", "weight": "weight", "ari": "ARI", "nmi": "NMI"}
    return names.get(score, score.upper())
