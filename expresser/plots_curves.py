"""Figures of classifiers, probabilities and runs: ROC, precision-recall, reliability, quartiles along bins, what a run logged."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Num
from matplotlib.axes import Axes

from expresser.errors import InputError
from expresser.plots import _INK, COLOURS, DASHES, GREY, _label_references, _legend, _need, _scales
from expresser.readable import Number

_REFERENCE: dict[str, Any] = {"color": _INK, "alpha": 0.55, "linewidth": 1.2, "linestyle": (0, (4, 3))}


def roc_axes(
    ax: Axes,
    curves: Mapping[str, Num[np.ndarray, "2 points"]],
    *,
    references: frozenset[str] = frozenset(),
    bands: Mapping[str, Num[np.ndarray, "3 grid"]] | None = None,
) -> Axes:
    """True against false positive rate, one line per method, with the diagonal of chance.

    curves: method -> rows false positive rate, true positive rate, from (0, 0) to (1, 1). references: methods in grey.
    bands: method -> rows false positive rate, least and greatest true positive rate, drawn behind the line.
    """
    _rates(ax, curves, references, "ROC", bands or {})
    ax.plot([0, 1], [0, 1], **_REFERENCE)
    ax.set(xlabel="false positive rate", ylabel="true positive rate")
    return ax


def precision_recall_axes(
    ax: Axes,
    curves: Mapping[str, Num[np.ndarray, "2 points"]],
    *,
    prevalence: Number | None = None,
    references: frozenset[str] = frozenset(),
    bands: Mapping[str, Num[np.ndarray, "3 grid"]] | None = None,
) -> Axes:
    """Precision against recall, one line per method; prevalence: share of positives, what chance reaches, as a line.

    curves: method -> rows recall, precision. references: methods in grey. bands: method -> rows recall, least and
    greatest precision, drawn behind the line.
    """
    _rates(ax, curves, references, "precision-recall", bands or {})
    if prevalence is not None:
        ax.axhline(float(prevalence), **_REFERENCE)
    ax.set(xlabel="recall", ylabel="precision")
    return ax


def calibration_axes(
    ax: Axes,
    bins: Mapping[str, pd.DataFrame],
    *,
    log: bool = False,
    xlabel: str = "predicted probability",
    ylabel: str = "observed share",
) -> Axes:
    """Reliability: the share that was true among entries given about the same probability, with the diagonal.

    bins: method -> a row per bin, columns `predicted` (mean probability), `observed` (share true) and `n` (entries); a
    marker's area grows with n. Above the diagonal: called less likely than it is. log: both axes logarithmic, for
    probabilities near zero; bins where either is zero cannot be shown there and are left out.
    """
    for name, frame in bins.items():
        _need(frame, ["predicted", "observed", "n"], f"calibration of {name}")
    most = max((float(frame["n"].max()) for frame in bins.values() if len(frame)), default=1.0) or 1.0
    lines, low, high = [], [], []
    for i, frame in enumerate(bins.values()):
        shown = frame[(frame["n"] > 0) & frame[["predicted", "observed"]].notna().all(axis=1)]
        if log:
            shown = shown[(shown[["predicted", "observed"]] > 0).all(axis=1)]
        x, y = (shown[c].to_numpy(dtype=float) for c in ("predicted", "observed"))
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        lines += ax.plot(x, y, linewidth=1.4, **style)
        ax.scatter(x, y, s=4 + 26 * shown["n"].to_numpy(dtype=float) / most, color=style["color"], linewidths=0)
        low += [x.min(), y.min()] if len(x) else []
        high += [x.max(), y.max()] if len(x) else []
    ends = (min(low) / 1.3 if log else 0.0, max(high) * (1.3 if log else 1.05)) if low else (0.01 if log else 0.0, 1.0)
    ax.plot(ends, ends, **_REFERENCE)
    ax.set(xlim=ends, ylim=ends, xlabel=xlabel, ylabel=ylabel)
    _scales(ax, log, log)
    ax.set_aspect("equal")
    if len(bins) > 1:
        _legend(ax, lines, list(bins), above=True)
    return ax


def band_axes(
    ax: Axes,
    bands: Mapping[str, pd.DataFrame],
    *,
    xlabel: str,
    ylabel: str,
    log: bool = False,
    reference: Number | None = None,
) -> Axes:
    """A line with a band around it, one per method: medians and quartiles along something that was cut into bins.

    bands: method -> a row per bin, columns `x`, `low`, `middle` and `high`. log: x logarithmic. reference: a dashed line
    across, such as chance.
    """
    for name, frame in bands.items():
        _need(frame, ["x", "low", "middle", "high"], f"band of {name}")
    if reference is not None:
        ax.axhline(float(reference), **_REFERENCE)
    lines = []
    for i, frame in enumerate(bands.values()):
        x, low, middle, high = (frame[c].to_numpy(dtype=float) for c in ("x", "low", "middle", "high"))
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        lines += ax.plot(x, middle, marker="o", markersize=3, **style)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.14, linewidth=0)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    _scales(ax, log, False)
    if len(bands) > 1:
        _legend(ax, lines, list(bands), above=True)
    return ax


def trace_axes(
    ax: Axes,
    x: Num[np.ndarray, " lines"],
    y: Num[np.ndarray, " lines"],
    *,
    logy: bool = False,
    references: Mapping[str, Number] | None = None,
    xlabel: str,
    ylabel: str,
) -> Axes:
    """What a run logged at each step, noise and all. Missing values are left out.

    Up to 60 values are a line. More are cut into 30 to 120 stretches, drawn as the line of their medians in a band from their 5th to
    their 95th percentile: a line of a hundred thousand points is megabytes and a smear. references: horizontal lines {label: value}.
    """
    there = np.isfinite(x) & np.isfinite(y)
    at, values = x[there].astype(float), y[there].astype(float)
    if len(at) <= 60:
        ax.plot(at, values, color=COLOURS[0], marker="o" if len(at) <= 30 else None, markersize=3.5)
    else:
        parts = np.array_split(np.arange(len(at)), np.clip(len(at) // 8, 30, 120))
        low, middle, high = np.array([np.quantile(values[part], (0.05, 0.5, 0.95)) for part in parts]).T
        middles = [at[part].mean() for part in parts]
        ax.fill_between(middles, low, high, color=COLOURS[0], alpha=0.16, linewidth=0)
        ax.plot(middles, middle, color=COLOURS[0])
    for value in (references or {}).values():
        ax.axhline(float(value), **_REFERENCE)
    _scales(ax, False, logy)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    if references:
        _label_references(ax, references)
    return ax


def _rates(
    ax: Axes,
    curves: Mapping[str, Num[np.ndarray, "2 points"]],
    references: frozenset[str],
    what: str,
    bands: Mapping[str, Num[np.ndarray, "3 grid"]],
) -> None:
    """Lines between rates, which lie in 0 to 1, their bands and their legend."""
    if strange := [name for name in bands if name not in curves]:
        raise InputError(
            f"{what} curve: a band of {strange[0]!r}, which has no curve; there are {', '.join(curves) or 'none'}. "
            "Pass a curve for each band."
        )
    lines, colour = [], 0
    for i, (name, curve) in enumerate(curves.items()):
        rates = curve[:, np.isfinite(curve).all(axis=0)]
        if rates.size and (rates.min() < -1e-9 or rates.max() > 1 + 1e-9):
            raise InputError(
                f"{what} curve of {name}: rates lie between 0 and 1, but these reach from {rates.min():g} to "
                f"{rates.max():g}. Pass rates, not scores."
            )
        grey = name in references
        shade = GREY if grey else COLOURS[colour % len(COLOURS)]
        lines += ax.plot(*rates, color=shade, linestyle=DASHES[i % len(DASHES)])
        if name in bands:
            ax.fill_between(*bands[name], color=shade, alpha=0.14, linewidth=0)
        colour += not grey
    ax.set(xlim=(0, 1), ylim=(0, 1.02), aspect="equal")
    ax.grid(color=_INK, alpha=0.12, linewidth=0.8)
    if len(curves) > 1:
        _legend(ax, lines, list(curves), above=True)
