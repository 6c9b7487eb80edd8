"""Configurations compared seed by seed: what one gains over another on the same held-out cells, with the luck of the draw left out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from expresser.comparison.groups import Configuration, Group, Spread
from expresser.comparison.run import Run
from expresser.comparison.scores import Score
from expresser.comparison.tables import Comparison
from expresser.report import Table

FEWEST = 2  # pairs of runs
_SCORES = 3  # compared


def paired_table(group: Group, found: Comparison, judged: Callable[[Run], tuple[Any, ...]]) -> Table | None:
    """The best configuration less each other, over pairs of runs with one seed and the same judged cells; None without two pairs.

    The best is that of the leading score. A configuration of several own methods is not paired: which of them would be meant?
    """
    columns = [column for column in found.columns if column.best is not None][:_SCORES]
    values = {c.name: _by_seed(c, found.title, judged) for c in group.configurations}
    medians = (
        {
            name: Spread.of([float(v) for own in of.values() if (v := own.get(columns[0].key)) is not None])
            for name, of in values.items()
        }
        if columns
        else {}
    )
    ranked = {name: spread.median for name, spread in medians.items() if spread is not None}
    if not ranked:
        return None
    best = (min if columns[0].best == "min" else max)(ranked, key=lambda name: ranked[name])
    rows: dict[str, dict[str, Any]] = {}
    for name in (name for name in ranked if name != best):
        pairs = [(own, values[name][key]) for key, own in values[best].items() if key in values[name]]
        if len(pairs) >= FEWEST:
            rows[name] = {"pairs": len(pairs)} | {k: v for c in columns for k, v in _difference(c, pairs).items()}
    if not rows:
        return None
    caption = (
        f"{best}, the best by {columns[0].name}, less each other configuration, run by run with the same seed and the same judged "
        "cells: median, and least to greatest. So few runs show whether a difference is larger than the luck of a seed, not how "
        "sure it is."
    )
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("less")
    return Table(f"{found.title}: {best} against the others, seed by seed", frame, caption)


def _difference(column: Score, pairs: Sequence[tuple[Any, Any]]) -> dict[str, Any]:
    differences = [
        float(a[column.key]) - float(b[column.key])
        for a, b in pairs
        if a.get(column.key) is not None and b.get(column.key) is not None
    ]
    spread, sign = Spread.of(differences), 1 if column.best == "max" else -1
    return {
        f"{column.name}: difference": np.nan if spread is None else spread.median,
        f"{column.name}: range": None
        if spread is None
        else f"{spread.low:+.4f} to {spread.high:+.4f}".replace("-", "−"),
        f"{column.name}: better in": f"{sum(sign * d > 0 for d in differences)} of {len(differences)}",
    }


def _by_seed(configuration: Configuration, title: str, judged: Callable[[Run], tuple[Any, ...]]) -> dict[Any, Any]:
    """The scores of its one own method by seed and what was judged; the first run of a seed counts."""
    found: dict[Any, Any] = {}
    for run in configuration.runs:
        own = [scores.own for scores in run.scores if scores.title == title]
        if own and len(own[0]) == 1:
            found.setdefault((run.seed, judged(run)), next(iter(own[0].values())))
    return found
