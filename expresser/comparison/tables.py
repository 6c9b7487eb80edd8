"""The rows of a comparison: each configuration's own methods, then every baseline, once where it says the same everywhere."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from expresser.comparison.groups import Configuration, Group, Spread
from expresser.comparison.run import Run, Scores, Values
from expresser.comparison.scores import Score
from expresser.report import Best, Table

_NOTHING = 1e-12  # a rounding error of zero
_CLOSE = 1e-3  # relative: what two runs on different machines may differ by, and no table would show


@dataclass(frozen=True)
class Row:
    """A method in one table: its spread over runs, score by score; of baselines, `configurations` are those it was compared with."""

    label: str
    method: str
    baseline: bool
    configurations: tuple[str, ...]
    runs: int  # of baselines: sets of judged cells
    values: Mapping[str, Spread | None]

    @property
    def ceiling(self) -> bool:
        """Whether it is no method, but the simulation's own truth."""
        return self.baseline and self.method.startswith("oracle")


@dataclass(frozen=True)
class Comparison:
    """One table over the runs of a group. differing: baselines that do not say the same in all of them."""

    title: str
    columns: tuple[Score, ...]
    rows: tuple[Row, ...]
    differing: tuple[str, ...]


def comparisons(group: Group, judged: Callable[[Run], tuple[Any, ...]]) -> list[Comparison]:
    """The tables of a group. judged: what the scores of a run are of, equal for equal cells and genes."""
    titles = list(dict.fromkeys(scores.title for run in group.runs for scores in run.scores))
    return [_comparison(group, title, judged) for title in titles]


def _comparison(group: Group, title: str, judged: Callable[[Run], tuple[Any, ...]]) -> Comparison:
    tables = {run: scores for run in group.runs for scores in run.scores if scores.title == title}
    columns = tuple(dict.fromkeys(column for scores in tables.values() for column in scores.columns))
    keys = [column.key for column in columns]
    rows = []
    every = {method for scores in tables.values() for method in scores.own}
    for configuration in group.configurations:
        runs = [run for run in configuration.runs if run in tables]
        methods = list(dict.fromkeys(method for run in runs for method in tables[run].own))
        for method in methods:
            there = [run for run in runs if method in tables[run].own]
            spread = _spread([tables[run].own[method] for run in there], keys)
            named = len(every) > 1 and method.lower() not in configuration.name.lower()
            label = f"{configuration.name}: {method}" if named or len(methods) > 1 else configuration.name
            rows.append(Row(label, method, False, (configuration.name,), len(there), spread))
    differing = []
    for method in dict.fromkeys(method for scores in tables.values() for method in scores.others):
        same = _baseline(group, tables, method, keys, judged)
        if len(same) > 1:
            differing.append(method)
        for configurations, found in same:
            names = tuple(configuration.name for configuration in configurations)
            label = method if len(same) == 1 else f"{method}, of {_listed(names)}"
            distinct = list({judged(run): of for run, of in found.items()}.values())
            rows.append(Row(label, method, True, names, len(distinct), _spread(distinct, keys)))
    return Comparison(title, columns, tuple(rows), tuple(differing))


def _baseline(
    group: Group,
    tables: Mapping[Run, Scores],
    method: str,
    keys: Sequence[str],
    judged: Callable[[Run], tuple[Any, ...]],
) -> list[tuple[list[Configuration], dict[Run, Mapping[str, Any]]]]:
    """A baseline's scores run by run, configurations together for which it says the same of the same cells."""
    parts: list[tuple[list[Configuration], dict[Run, Mapping[str, Any]]]] = []
    for configuration in group.configurations:
        found = {run: tables[run].others[method] for run in configuration.runs if method in _others(tables, run)}
        if not found:
            continue
        for members, before in parts:
            if {judged(run) for run in before} == {judged(run) for run in found} and _agree(
                before, found, keys, judged
            ):
                members.append(configuration)
                before.update(found)
                break
        else:
            parts.append(([configuration], found))
    return parts


def _others(tables: Mapping[Run, Scores], run: Run) -> Values:
    return tables[run].others if run in tables else {}


def _agree(
    a: Mapping[Run, Mapping[str, Any]],
    b: Mapping[Run, Mapping[str, Any]],
    keys: Sequence[str],
    judged: Callable[[Run], tuple[Any, ...]],
) -> bool:
    return all(
        _close(of.get(key), other.get(key))
        for run, of in a.items()
        for second, other in b.items()
        if judged(run) == judged(second)
        for key in keys
    )


def _close(a: Any, b: Any) -> bool:
    """Whether two numbers are the same but for rounding; one that is not known agrees with any."""
    if a is None or b is None:
        return True
    return math.isclose(a, b, rel_tol=_CLOSE, abs_tol=1e-6)


def _spread(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> dict[str, Spread | None]:
    return {key: Spread.of([float(of[key]) for of in rows if of.get(key) is not None]) for key in keys}


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def score_table(found: Comparison) -> Table:
    """Medians; where any row has several runs, how many, and the least and greatest of each score."""
    several = any(row.runs > 1 for row in found.rows)
    names = [f"{row.label} (the simulation's truth)" if row.ceiling else row.label for row in found.rows]
    frame = pd.DataFrame(index=pd.Index(names, name="method"))
    if several:
        frame["runs"] = [row.runs for row in found.rows]
    best: dict[str, Best] = {}
    for column in found.columns:
        values = [row.values[column.key] for row in found.rows]
        frame[column.name] = [math.nan if v is None else v.median * (abs(v.median) > _NOTHING) for v in values]
        if column.best is not None:
            best[column.name] = column.best
        if several:
            frame[f"{column.name}: range"] = [_range(v) for v in values]
    caption = "Medians over runs of one configuration, which differ by their seed; range: least to greatest. " * several
    if any(len(row.configurations) > 1 for row in found.rows):
        caption += "Baselines stand once where all configurations give them the same scores."
    truth = frozenset(name for name, row in zip(names, found.rows, strict=True) if row.ceiling)
    return Table(found.title, frame, caption.strip(), best, truth)


def _range(spread: Spread | None) -> str | None:
    if spread is None or spread.n < 2:
        return None
    size = max(abs(spread.low), abs(spread.high))
    places = 3 if size >= 0.01 else 5
    return f"{spread.low:.{places}f} to {spread.high:.{places}f}".replace("-", "−")
