"""What a report shows of a search: all trials, and how the score changes with each value that was varied."""

from collections.abc import Sequence
from functools import partial

import pandas as pd

from expresser.plots import bar_axes, curve_axes, heatmap_axes, svg
from expresser.readable import Number
from expresser.report import Figure, Section, Table


def tuning_opening(
    table: pd.DataFrame, names: Sequence[str], score: str, best: str, notes: Sequence[str]
) -> tuple[list[tuple[str, Number | str | None]], list[Section]]:
    """At a glance, and a section. names: columns of the table that were varied; score: what trials were ranked by."""
    done = table[table["state"] == "finished"]
    failed = int((table["state"] == "failed").sum())
    words = [
        f"{len(done):,} trials, ranked by {score} of validation cells; the best is {best}. Test cells were looked at only "
        "after that, for the best alone: what they say of it is no choice among chances.",
        *notes,
    ]
    words += [f"{failed:,} trials failed; the table says why."] if failed else []
    varied = [name for name in names if done[name].map(str).nunique() > 1]
    figures = [_map(done, varied[0], varied[1], score, more=len(varied) > 2)] if len(varied) > 1 else []
    figures += [_line(done, name, score) for name in varied]
    shown = table.drop(columns=["name"]).sort_values("rank", na_position="last", kind="stable").set_index("rank")
    items: tuple[Figure | Table, ...] = (
        *figures,
        Table("Trials", shown.map(_plain), "Scores are of validation cells."),
    )
    glance: list[tuple[str, Number | str | None]] = [
        ("trials", len(done)),
        ("best", best),
        (f"its {score}, validation cells", float(done.loc[done["name"] == best, score].iloc[0])),
    ]
    return glance, [Section("Search of configurations", "\n\n".join(words), items)]


def _map(done: pd.DataFrame, rows: str, columns: str, score: str, *, more: bool) -> Figure:
    """The best score of each pair of values."""
    keyed = done.assign(**{rows: done[rows].map(_text), columns: done[columns].map(_text)})
    order = [list(dict.fromkeys(_sorted(done[name]).map(_text))) for name in (rows, columns)]
    frame = keyed.pivot_table(index=rows, columns=columns, values=score, aggfunc=_best_of(score))
    frame = frame.reindex(index=order[0], columns=order[1])
    caption = "The best over the other values." if more else ""
    size = (2.2 + 0.8 * frame.shape[1], 1.4 + 0.45 * len(frame))
    return Figure(
        f"{score} by {rows} and {columns}", svg(partial(heatmap_axes, frame=frame, label=score), size), caption, frame
    )


def _line(done: pd.DataFrame, name: str, score: str) -> Figure:
    """The best score at each value, and the mean of all that have it."""
    values = done[name]
    grouped = done.groupby(values.map(_text), sort=False)[score]
    frame = pd.DataFrame({"best": grouped.agg(_best_of(score)), "mean": grouped.mean()})
    frame = frame.loc[list(dict.fromkeys(_sorted(values).map(_text)))]
    caption = "The best over the other values, and their mean."
    if all(isinstance(v, int | float) and not isinstance(v, bool) and v == v for v in values):
        numbers = frame.reset_index(names=name).astype({name: float})
        draw = partial(curve_axes, frame=numbers, x=name, y=["best", "mean"], ylabel=score)
        return Figure(f"{score} by {name}", svg(draw), caption, numbers)
    drawn = partial(bar_axes, values=frame["best"].rename(score), base=float(frame["best"].min()) * 0.9)
    return Figure(f"{score} by {name}", svg(drawn, (5.2, 0.8 + 0.3 * len(frame))), caption, frame)


def _best_of(score: str) -> str:
    return "min" if score == "foscttm" else "max"


def _sorted(values: pd.Series) -> pd.Series:
    """Numbers ascending, then all others as they came."""
    number = pd.to_numeric(values.map(lambda v: None if isinstance(v, bool) else v), errors="coerce")
    return values.iloc[number.argsort(kind="stable").to_numpy()] if number.notna().all() else values


def _text(value: object) -> str:
    if value is None or value != value or isinstance(value, bool):
        return "none" if not isinstance(value, bool) else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _plain(value: object) -> object:
    return None if value is pd.NA or (isinstance(value, float) and value != value) else value
