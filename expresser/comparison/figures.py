"""The figures of a comparison: curves laid over one another, one colour a configuration, and bars beside baselines."""

import textwrap
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from expresser.comparison.groups import Configuration, Group
from expresser.comparison.run import Run, Trace
from expresser.comparison.tables import Comparison, Row
from expresser.plots import COLOURS, DASHES, GREY, bar_axes, curve_axes, svg
from expresser.report import Figure

MOST_CURVES = 12  # configurations: more colours and dashes are not told apart
MOST_BARS = 24
_STRETCHES = 100  # of a noisy trace
_POINTS = 400  # of any other
_X = "\N{ZERO WIDTH SPACE}x"  # no configuration's name


def curve_figures(group: Group) -> list[Figure]:
    """One figure for each quantity that the runs logged and each axis it is drawn against."""
    traces: dict[str, dict[Run, Trace]] = {}
    for run in group.runs:
        for trace in run.traces:
            traces.setdefault(trace.title, {})[run] = trace
    return [
        _overlay(group.configurations, title, x, found)
        for title, found in traces.items()
        for x in next(iter(found.values())).xs
    ]


def _overlay(configurations: Sequence[Configuration], title: str, x: str, traces: dict[Run, Trace]) -> Figure:
    there = {c.name: [run for run in c.runs if run in traces] for c in configurations}
    there = {name: runs for name, runs in there.items() if runs}
    shown = dict(list(there.items())[:MOST_CURVES])
    y = next(iter(traces.values())).y
    captions = []
    if any(len(runs) > 1 for runs in shown.values()):
        captions.append("Lines of one colour are runs of one configuration with other seeds.")
    if any(trace.noisy and len(trace.frame) > _STRETCHES for trace in traces.values()):
        captions.append(f"Lines are medians of {_STRETCHES} stretches of the log.")
    references = [trace.reference for runs in shown.values() for run in runs if (trace := traces[run]).reference]
    reference = {}
    if references:
        values = [value for _, value in references]
        reference[references[0][0]] = float(np.median(values))
        if max(values) - min(values) > 1e-3 * abs(max(values)):
            captions.append("The baseline's line is its median over runs.")
    if len(there) > len(shown):
        captions.append(f"Drawn are the first {MOST_CURVES} of {len(there)} configurations; the data hold all.")
    drawing = svg(partial(_draw, runs=shown, traces=traces, x=x, y=y, references=reference))
    several = len(next(iter(traces.values())).xs) > 1
    data = [
        trace.frame[[x, y]].assign(configuration=name, run=run.name, seed=run.seed)
        for name, runs in there.items()
        for run in runs
        if (trace := traces[run])
    ]
    table = pd.concat(data, ignore_index=True)[["configuration", "run", "seed", x, y]]
    return Figure(f"{title}, by {x}" if several else title, drawing, " ".join(captions), table)


def _draw(
    ax: Axes, runs: dict[str, list[Run]], traces: dict[Run, Trace], x: str, y: str, references: dict[str, float]
) -> None:
    first = [_thinned(traces[of[0]], x).rename(columns={traces[of[0]].y: name, x: _X}) for name, of in runs.items()]
    frame = pd.concat(first, ignore_index=True)
    every = pd.concat([_thinned(traces[run], x)[y] for of in runs.values() for run in of]).dropna()
    logy = len(every) > 0 and bool(every.min() > 0 and every.max() > 10 * every.min())
    reach = [value for value in references.values() if not len(every) or every.min() / 3 < value < 3 * every.max()]
    near = {name: value for name, value in references.items() if value in reach}
    curve_axes(ax, frame, _X, list(runs), xlabel=x, ylabel=y, logy=logy, references=near)
    if all(len(of) == 1 for of in runs.values()):
        return
    legend = ax.get_legend()
    for line in [*ax.lines[: len(runs)], *([] if legend is None else legend.legend_handles)]:
        line.set(linewidth=1.2, alpha=0.85, marker="None")  # type: ignore[union-attr]
    for i, of in enumerate(runs.values()):
        for run in of[1:]:
            more = _thinned(traces[run], x).dropna()
            style: dict[str, Any] = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
            ax.plot(more[x].to_numpy(), more[y].to_numpy(), linewidth=1.2, alpha=0.85, **style)
    if not near:  # names of references stand at heights of the limits that there were
        ax.autoscale_view()


def _thinned(trace: Trace, x: str) -> pd.DataFrame:
    frame = trace.frame[[x, trace.y]].astype(float)
    if trace.noisy and len(frame) > _STRETCHES:
        parts = np.array_split(np.arange(len(frame)), _STRETCHES)
        return pd.DataFrame([frame.iloc[part].median() for part in parts])
    if len(frame) > _POINTS:
        return frame.iloc[np.unique(np.linspace(0, len(frame) - 1, _POINTS).astype(int))]
    return frame


def bar_figure(found: Comparison) -> Figure | None:
    """The leading score of every row, the best on top; bars in colour are the runs', grey ones what they are compared with."""
    if not found.columns or len(found.rows) < 2:
        return None
    lead = found.columns[0]
    rows = [row for row in found.rows if row.values[lead.key] is not None]
    own, others = ([row for row in rows if row.baseline is kind] for kind in (False, True))
    left = max(0, len(rows) - MOST_BARS)
    rows = [*own, *others][:MOST_BARS]
    if len(rows) < 2:
        return None
    sign = 1 if lead.best == "min" else -1
    rows.sort(key=lambda row: sign * row.values[lead.key].median)  # type: ignore[union-attr]
    names = _distinct([_wrapped(row.label) for row in rows])
    spreads = [row.values[lead.key] for row in rows]
    frame = pd.DataFrame(
        {
            "median": [s.median for s in spreads if s],
            "low": [s.low if s.n > 1 else np.nan for s in spreads if s],
            "high": [s.high if s.n > 1 else np.nan for s in spreads if s],
        },
        index=pd.Index(names, name="method"),
    )
    lines = sum(name.count("\n") + 1 for name in names)
    drawing = svg(partial(_bars, frame=frame, rows=rows, name=lead.name, key=lead.key), (4.6, 0.9 + 0.24 * lines))
    captions = ["Grey: what the runs are compared with."] if any(row.baseline for row in rows) else []
    if frame["low"].notna().any():
        captions.append("Lines: least to greatest over the runs of a configuration.")
    captions += [f"{left} rows are in the table alone."] if left else []
    data = frame.rename(index=lambda name: name.replace("\n", " "))
    return Figure(f"{found.title}: {lead.name}", drawing, " ".join(captions), data)


def _bars(ax: Axes, frame: pd.DataFrame, rows: Sequence[Row], name: str, key: str) -> None:
    base = 0.5 if key.startswith("auroc") and float(frame["median"].min()) >= 0.5 else 0
    bar_axes(ax, frame["median"], low=frame["low"], high=frame["high"], base=base, xlabel=name)
    for bar, row in zip(ax.patches, rows, strict=True):
        if row.baseline:
            bar.set_facecolor(GREY)


def _wrapped(label: str) -> str:
    return "\n".join(textwrap.wrap(label, 26)) or label


def _distinct(names: Sequence[str]) -> list[str]:
    """Names of bars, which pandas looks up: a second one of a name gets a blank more."""
    found: list[str] = []
    for name in names:
        while name in found:
            name += " "
        found.append(name)
    return found
