"""Figures for reports: each function draws on the Axes it is given, and `svg` turns a drawing into text for one page.

No display and no pyplot state: `svg(lambda ax: curve_axes(ax, log, "step", "loss"))`. Ink (text, axes, grid) is written
as `currentColor`, so that one figure reads on a white page, on a dark one and on paper. Data colours are told apart by
every common form of colour vision and stand out from either page; lines and categories also differ in dash or marker.
"""

import io
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from xml.dom import minidom

import matplotlib as mpl
import numpy as np
import pandas as pd
from jaxtyping import Float, Num
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from expresser.errors import InputError
from expresser.readable import Number, format_column

Size = tuple[Number, Number]

# Four of Okabe and Ito's colours ("Color Universal Design", 2008). Their yellow, orange and sky blue fade on white: the other two
# and the grey were searched for among colours of contrast 3 on white and on the dark card, as far as can be from the rest for
# normal, protan, deutan and tritan eyes (CIEDE2000 11.7 at least, 9.9 from the grey; with theirs it was 10.9 and 6.2).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8877FF", "#886644")
GREY = "#767676"  # what is missing, or only there to compare with
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.4)), (0, (6, 1.6, 1.2, 1.6)))
MARKERS = ("o", "^", "s", "D", "P", "X")
# A colour used a second time is also lighter, a third time darker: then it may be faint on a white, or on a dark, page.
TINTS = (0.0, 0.45, -0.4)
# Viridis without its ends, which sink into a dark page and into a white one.
SEQUENTIAL = ListedColormap(mpl.colormaps["viridis"](np.linspace(0.15, 0.88, 256)), name="viridis_inner")
DIVERGING = "PuOr"
_LEGEND_ROWS = 4.7  # lines of 9 pt text, an inch
SIZE = (4.6, 3.3)  # inches: 10 pt text is still 10 px high when a phone shows the figure 340 px wide

_INK = "#010203"  # never a data colour; becomes currentColor in to_svg
_FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_MANY = 400  # marks; above this a cloud is stored as an image inside the SVG
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # wider than what browsers use: what fits here fits there
    "font.size": 10,
    "text.parse_math": False,  # "$" in a gene or cell type name is a dollar
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "axes.formatter.use_mathtext": False,
    "axes.linewidth": 0.8,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",  # text stays text: searchable, selectable, small
    "svg.hashsalt": "expresser",
}


def figure(draw: Callable[[Axes], object], size: Size = SIZE) -> Figure:
    """A matplotlib Figure of `size` inches with one Axes that `draw` has drawn on, in the house style."""
    with mpl.rc_context(_STYLE):
        fig = Figure(figsize=(float(size[0]), float(size[1])), layout="constrained")
        draw(fig.add_subplot())
    return fig


def to_svg(fig: Figure, *, dpi: int = 192) -> str:
    """The figure as an `<svg>` element: no XML header, date or metadata, and equal text for equal figures.

    dpi: resolution, in dots per inch, of what is stored as an image (clouds of many points); 192 is that of a page's PNGs.
    """
    buffer = io.StringIO()
    with mpl.rc_context(_STYLE), warnings.catch_warnings():
        # The browser's fonts draw the text; that matplotlib's own has no such glyph only blurs its width.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")
        fig.savefig(buffer, format="svg", dpi=dpi, metadata={"Date": None})
    # Characters XML cannot hold come through matplotlib untouched, and would make the file unreadable.
    text = re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", buffer.getvalue())
    root = minidom.parseString(text.encode()).documentElement
    assert root is not None  # a document that parsed has a root
    for parent in [root, *root.getElementsByTagName("defs")]:
        for child in list(parent.childNodes):
            if child.nodeName in ("metadata", "style"):
                parent.removeChild(child)
    # What the removed style sheet said, without reaching the rest of the page.
    root.setAttribute("stroke-linejoin", "round")
    root.setAttribute("stroke-linecap", "butt")
    for node in root.getElementsByTagName("*"):
        if style := node.getAttribute("style"):
            style = style.replace(_INK, "currentColor").replace("'DejaVu Sans', sans-serif", _FONTS)
            node.setAttribute("style", style.replace("'DejaVu Sans'", _FONTS))
    return root.toxml()


def svg(draw: Callable[[Axes], object], size: Size = SIZE, *, dpi: int = 192) -> str:
    """`to_svg(figure(draw, size))`: what a report's Figure holds."""
    return to_svg(figure(draw, size), dpi=dpi)


def curve_axes(
    ax: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str | Sequence[str],
    *,
    logx: bool = False,
    logy: bool = False,
    references: Mapping[str, Number] | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
) -> Axes:
    """One line per column of `y` against column `x`.

    references: horizontal lines {label: value}, such as what a baseline reaches; named at the right edge.
    A line skips the rows where its value is missing, so values logged at different steps share one frame.
    """
    names = [y] if isinstance(y, str) else list(y)
    _need(frame, [x, *names], "curve")
    for i, name in enumerate(names):
        line = frame[[x, name]].astype(float).dropna()
        few = "o" if len(line) <= 30 else None
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "marker": few}
        ax.plot(line[x].to_numpy(), line[name].to_numpy(), markersize=3.5, **style)
    lines = list(ax.lines)
    for value in (references or {}).values():
        ax.axhline(float(value), color=_INK, alpha=0.55, linewidth=1.2, linestyle=(0, (4, 3)))
    _scales(ax, logx, logy)
    ax.set_xlabel(x if xlabel is None else xlabel)
    ax.set_ylabel((names[0] if len(names) == 1 else "") if ylabel is None else ylabel)
    ax.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    if len(names) > 1:
        _legend(ax, lines, names, above=True)
    if references:
        _label_references(ax, references)
    return ax


def density_scatter_axes(
    ax: Axes,
    truth: Num[np.ndarray, " entries"],
    prediction: Num[np.ndarray, " entries"],
    *,
    note: str = "",
    xlabel: str = "measured",
    ylabel: str = "predicted",
    bins: int = 60,
) -> Axes:
    """Prediction against truth as a histogram in two dimensions (hexagons, logarithmic colour), with the diagonal.

    Both axes share their limits. Pairs with a missing or infinite member are left out. `note` is printed in a corner.
    """
    if truth.shape != prediction.shape:
        raise InputError(
            f"density scatter: truth and prediction are pairs, but there are {truth.size:,} values against "
            f"{prediction.size:,}. Pass the values of the same entries in the same order."
        )
    a, b = truth.astype(float), prediction.astype(float)
    kept = np.isfinite(a) & np.isfinite(b)
    a, b = a[kept], b[kept]
    low, high = (min(a.min(), b.min()), max(a.max(), b.max())) if a.size else (0.0, 1.0)
    margin = 0.02 * (high - low) or 0.5
    limits = (low - margin, high + margin)
    if a.size:
        cloud = ax.hexbin(
            a, b, gridsize=bins, mincnt=1, extent=limits * 2, cmap=SEQUENTIAL, norm=LogNorm(vmin=1), linewidths=0.1
        )
        cloud.set_rasterized(True)
        _colour_bar(ax, cloud, "entries per hexagon")
    ax.plot(limits, limits, color=_INK, alpha=0.7, linewidth=1.2, linestyle=(0, (4, 3)), scalex=False, scaley=False)
    ax.set(xlim=limits, ylim=limits, xlabel=xlabel, ylabel=ylabel, aspect="equal")
    if note:
        ax.text(0.03, 0.97, note, transform=ax.transAxes, va="top", ha="left", fontsize=9)
    return ax


def bar_axes(
    ax: Axes,
    values: pd.Series,
    *,
    low: pd.Series | None = None,
    high: pd.Series | None = None,
    highlight: str | None = None,
    references: Mapping[str, Number] | None = None,
    base: Number = 0,
    xlabel: str | None = None,
) -> Axes:
    """One horizontal bar per entry of `values` (index: method), first on top, its number beside it.

    low, high: ends of the error bars, in the units of `values` and with its index; where either is missing no error bar
    is drawn. base: where bars begin (0.5 for an AUROC, say). highlight: the one entry in colour; None colours all.
    references: vertical lines {label: value}.
    """
    if (low is None) != (high is None):
        raise InputError(
            "bars: error bars have two ends, but only one of low and high was given. Pass both or neither."
        )
    numbers = values.astype(float).to_numpy()
    where = np.arange(len(numbers))
    shown = np.isfinite(numbers)
    names = [str(name) for name in values.index]
    colours = [COLOURS[0] if highlight in (None, name) else GREY for name in names]
    ax.barh(where, np.where(shown, numbers - float(base), 0.0), left=float(base), height=0.66, color=colours)
    ends = numbers.copy()
    if low is not None and high is not None:
        span = np.stack([s.reindex(values.index).astype(float).to_numpy() for s in (low, high)])
        drawn = shown & np.isfinite(span).all(axis=0)
        # A quantile interval need not contain the mean: draw from end to end, never a negative length.
        ax.hlines(where[drawn], span[0, drawn], span[1, drawn], color=_INK, linewidth=1.4)
        for side in span:
            ax.plot(side[drawn], where[drawn], linestyle="", marker="|", markersize=7, color=_INK)
        ends[drawn] = np.maximum(ends, span[1])[drawn]
    texts = format_column([float(v) for v in numbers])
    for i, (text, end) in enumerate(zip(texts, ends, strict=True)):
        at = max(end, float(base)) if shown[i] else float(base)
        ax.annotate(text, (at, i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=9)
    for i, (label, value) in enumerate((references or {}).items()):
        ax.axvline(float(value), color=_INK, alpha=0.55, linewidth=1.2, linestyle=DASHES[1 + i % 3], label=label)
    if references:
        _legend(ax, list(ax.lines)[-len(references) :], list(references), above=True)
    ax.set_yticks(where, names)
    ax.tick_params(axis="y", length=0)
    ax.invert_yaxis()
    ax.spines["left"].set_visible(False)
    ax.margins(x=0.12)
    ax.grid(axis="x", color=_INK, alpha=0.12, linewidth=0.8)
    ax.set_xlabel(("" if values.name is None else str(values.name)) if xlabel is None else xlabel)
    return ax


def scatter_axes(
    ax: Axes,
    xy: Num[np.ndarray, "cells 2"],
    by: pd.Series | np.ndarray | Sequence[Any],
    *,
    categorical: bool | None = None,
    label: str = "",
    axis_name: str = "UMAP",
    seed: int = 0,
) -> Axes:
    """An embedding in two dimensions, coloured by a category (legend outside) or by a number (colour bar).

    categorical: None lets the type of `by` decide: numbers are continuous, all else is categories (say True for cluster
    numbers). Cells are drawn in random order (from `seed`), since the last category drawn would hide the others;
    missing values are grey and behind. Beyond 36 categories, all that colour and marker tell apart, the rarest share
    one grey.
    """
    values = pd.Series(by).reset_index(drop=True)
    if len(values) != len(xy):
        raise InputError(
            f"scatter: one value per cell, but {len(xy):,} cells have {len(values):,} values. "
            "Take both from the same AnnData."
        )
    if categorical is None:
        categorical = not pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values)
    order = np.random.default_rng(seed).permutation(len(xy))
    mark: dict[str, Any] = {
        "s": float(np.clip(20_000 / max(len(xy), 1), 2.5, 26)),
        "linewidths": 0,
        "rasterized": len(xy) > _MANY,
    }
    missing = values.isna().to_numpy()
    if missing.any():
        ax.scatter(xy[missing, 0], xy[missing, 1], c=GREY, **mark)
    if categorical:
        _scatter_categories(ax, xy, values, order, label, mark)
    else:
        kept = order[~missing[order]]
        numbers = values.astype(float).to_numpy()
        cloud = ax.scatter(xy[kept, 0], xy[kept, 1], c=numbers[kept], cmap=SEQUENTIAL, **mark)
        _colour_bar(ax, cloud, label)
    ax.set(xticks=[], yticks=[], xlabel=f"{axis_name} 1", ylabel=f"{axis_name} 2")
    return ax


def hist_axes(
    ax: Axes,
    groups: Mapping[str, Num[np.ndarray, " values"]],
    *,
    bins: int = 50,
    logx: bool = False,
    logy: bool = False,
    density: bool = False,
    xlabel: str = "",
    ylabel: str | None = None,
) -> Axes:
    """Histograms of several groups over the same bins, laid over one another; density: each integrates to one."""
    edges, heights = binned(groups, bins=bins, logx=logx, density=density)
    for i, height in enumerate(heights.values()):
        style = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)]}
        ax.stairs(height, edges, fill=True, color=style["color"], alpha=0.22)
        ax.stairs(height, edges, linewidth=1.6, **style)
    _scales(ax, logx, logy)
    ax.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    ax.set(xlabel=xlabel, ylabel=("density" if density else "count") if ylabel is None else ylabel)
    if len(heights) > 1:
        _legend(ax, ax.patches[1::2], list(heights), above=True)
    return ax


def binned(
    groups: Mapping[str, Num[np.ndarray, " values"]], *, bins: int, logx: bool, density: bool
) -> tuple[Float[np.ndarray, " edges"], dict[str, Num[np.ndarray, " bins"]]]:
    """The edges that all groups of a histogram share, and each group's height in each bin; values that are not finite are left out."""
    finite = {name: np.asarray(v, float)[np.isfinite(np.asarray(v, float))] for name, v in groups.items()}
    pooled = np.concatenate([*finite.values(), np.empty(0)])
    if logx and (pooled <= 0).any():
        raise InputError(
            f"histogram: a logarithmic axis holds values above zero, but {int((pooled <= 0).sum()):,} of "
            f"{pooled.size:,} are not (least: {pooled.min():g}). Leave them out, or use logx=False."
        )
    if logx and pooled.size:
        edges = np.geomspace(pooled.min(), pooled.max() * (1 if np.ptp(pooled) else 1.01), bins + 1)
    else:
        edges = np.histogram_bin_edges(pooled, bins=bins)
    return edges, {n: np.histogram(v, edges, density=density and v.size > 0)[0] for n, v in finite.items()}


def heatmap_axes(
    ax: Axes,
    frame: pd.DataFrame,
    *,
    label: str = "",
    center: Number | None = None,
    annotate: bool | None = None,
) -> Axes:
    """A matrix of numbers as colours, rows from the top; missing cells stay empty.

    center: the value of the neutral colour of a diverging map with equal reach to both sides; None: one-sided map.
    annotate: write the numbers; None writes them up to 12 x 12.
    """
    grid = np.ma.masked_invalid(frame.to_numpy(dtype=float))
    limits: dict[str, Any] = {"cmap": SEQUENTIAL}
    if center is not None:
        reach = float(np.abs(grid - float(center)).max()) if grid.count() else 1.0
        limits = {"cmap": DIVERGING, "vmin": float(center) - (reach or 1), "vmax": float(center) + (reach or 1)}
    mesh = ax.pcolormesh(grid, rasterized=grid.size > _MANY, **limits)
    _colour_bar(ax, mesh, label)
    rows, columns = grid.shape
    if annotate or (annotate is None and max(rows, columns) <= 12):
        colours = np.asarray(mesh.cmap(mesh.norm(grid)))
        top = float(np.ptp(grid.compressed()) or np.abs(grid).max()) if grid.count() else 0.0
        places = int(np.clip(1 - np.floor(np.log10(top or 1)), 0, 4))  # two digits of how far they differ
        for i, j in np.argwhere(~np.ma.getmaskarray(grid)):
            light = _luminance(colours[i, j, :3]) > 0.179  # where black and white stand out alike
            number = f"{grid[i, j]:,.{places}f}".replace("-", "−")
            ax.text(j + 0.5, i + 0.5, number, ha="center", va="center", color="#000" if light else "#fff", fontsize=8)
    # More names than fit would be a grey smear: then only the axes' own names are left.
    ax.set_xticks(np.arange(columns) + 0.5 if columns <= 40 else [])
    ax.set_yticks(np.arange(rows) + 0.5 if rows <= 40 else [])
    if columns <= 40:
        names = [str(name) for name in frame.columns]
        flat = sum(map(len, names)) <= 40
        ax.set_xticklabels(names, rotation=0 if flat else 40, ha="center" if flat else "right", rotation_mode="anchor")
    if rows <= 40:
        ax.set_yticklabels([str(name) for name in frame.index])
    ax.set(xlabel=frame.columns.name or "", ylabel=frame.index.name or "")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.invert_yaxis()
    return ax


def _scatter_categories(
    ax: Axes, xy: np.ndarray, values: pd.Series, order: np.ndarray, label: str, mark: dict[str, Any]
) -> None:
    if isinstance(values.dtype, pd.CategoricalDtype):
        names = list(values.cat.remove_unused_categories().cat.categories)
    else:
        values = values.astype(str).where(values.notna())
        names = sorted(set(values.dropna()), key=_natural)
    codes = pd.Categorical(values, categories=names).codes.astype(int)
    looks = [
        (_tinted(colour, tint), shape) for shape, tint in zip(MARKERS, TINTS * 2, strict=False) for colour in COLOURS
    ]
    rank = np.arange(len(names))  # which look a category has; -1: the shared grey
    if len(names) > len(looks):
        size = np.bincount(codes[codes >= 0], minlength=len(names))
        common = np.sort(np.argsort(-size, kind="stable")[: len(looks)])
        rank[:] = -1
        rank[common] = np.arange(len(common))
        rest = np.isin(codes, np.flatnonzero(rank < 0))
        ax.scatter(xy[rest, 0], xy[rest, 1], c=GREY, **mark)
    look = np.append(rank, -1)[codes][order]  # code -1, missing, reads the appended -1
    for marker in MARKERS:
        kept = np.isin(look, [i for i, (_, m) in enumerate(looks) if m == marker])
        if kept.any():
            cells = order[kept]
            ax.scatter(xy[cells, 0], xy[cells, 1], c=[looks[i][0] for i in look[kept]], marker=marker, **mark)
    swatch: dict[str, Any] = {"linestyle": "", "markersize": 6, "markeredgewidth": 0}
    shown = [(*looks[r], str(names[k])) for k, r in enumerate(rank) if r >= 0]
    if (rank < 0).any():
        shown.append((GREY, "o", f"{int((rank < 0).sum())} others"))
    if (codes < 0).any():
        shown.append((GREY, "o", "missing"))
    handles = [ax.plot([], [], color=colour, marker=marker, **swatch)[0] for colour, marker, _ in shown]
    if handles:
        _legend(ax, handles, [name for _, _, name in shown], title=label)


def _luminance(rgb: np.ndarray) -> float:
    """Relative luminance of an sRGB colour (WCAG 2): 0 black, 1 white."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _tinted(colour: str, tint: float) -> str:
    """The colour mixed with white (tint > 0) or black (tint < 0) in that proportion."""
    rgb = np.array(to_rgb(colour))
    return to_hex(rgb + (1 - rgb) * tint if tint > 0 else rgb * (1 + tint))


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key that reads digits as numbers: cluster 2 before cluster 10."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part]


def _legend(ax: Axes, handles: Iterable[Any], labels: Sequence[str], *, above: bool = False, title: str = "") -> None:
    """Outside the axes, where it hides no data: to the right in columns as high as the figure, or above in rows."""
    rows = max(16, int(_LEGEND_ROWS * ax.figure.bbox.height / ax.figure.dpi))
    letters = 24  # of a line of a name
    place: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0), "ncols": -(-len(labels) // rows)}
    if above:
        # In points: a name's line and gaps, and its letters; beside the axes stand about 50 of tick labels.
        room = 72 * ax.figure.bbox.width / ax.figure.dpi - 50
        letters = int(np.clip((room - 34) / 5.5, 12, 44))
        per_row = int(np.clip(room // (34 + 5.5 * min(letters, max(map(len, labels)))), 1, len(labels)))
        place = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "ncols": per_row, "borderaxespad": 0.2}
    # matplotlib drops legend labels that begin with "_": enter stand-ins, then write the names.
    legend = ax.legend(list(handles), ["x"] * len(labels), handletextpad=0.5, columnspacing=1.2, **place)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text("\n".join(textwrap.wrap(label, letters)) or label)
    if title:
        legend.set_title(title)
        legend.set_alignment("left")


def _label_references(ax: Axes, references: Mapping[str, Number]) -> None:
    """Each line's name to the right of the axes, at its height, pushed apart where they would overlap."""
    ax.set_ylim(ax.get_ylim())  # labels are placed for these limits
    to_axes = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    wrapped = [("\n".join(textwrap.wrap(label, 14)) or label, value) for label, value in references.items()]
    spots = sorted((float(to_axes.transform((x, float(value)))[1]), text) for text, value in wrapped)
    floor = -np.inf
    for height, text in spots:
        half = 0.032 * (1 + text.count("\n"))  # a line of 9 pt text is about 0.06 of the axes' height
        middle = max(height, floor + half)
        floor = middle + half
        ax.text(1.015, middle, text, transform=ax.transAxes, va="center", ha="left", fontsize=8.5, linespacing=1.05)


def _colour_bar(ax: Axes, mappable: Any, label: str) -> None:
    bar = ax.figure.colorbar(mappable, ax=ax, label=label, fraction=0.06, pad=0.02, aspect=28)
    bar.outline.set_visible(False)
    if bar.solids is not None:
        bar.solids.set_rasterized(True)  # else 256 little rectangles
    bar.ax.tick_params(length=2, labelsize=8)
    if isinstance(mappable.norm, LogNorm):
        bar.ax.yaxis.set_major_formatter(FuncFormatter(_plain))
        bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _scales(ax: Axes, logx: bool, logy: bool) -> None:
    for log, axis, setter in ((logx, ax.xaxis, ax.set_xscale), (logy, ax.yaxis, ax.set_yscale)):
        if log:
            setter("log")
            low, high = sorted(axis.get_view_interval())
            if high < 30 * low:  # about one decade: powers of ten alone would leave the axis without numbers
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
            axis.set_minor_formatter(NullFormatter())
            axis.set_major_formatter(FuncFormatter(_plain))
        else:
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
            if max(map(abs, axis.get_view_interval())) >= 1000:
                axis.set_major_formatter(FuncFormatter(_plain))


def _plain(value: float, _position: int | None = None) -> str:
    """A tick's number as people write it: 500 and 1.5k and 3M, never 1e3 or TeX."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}".replace("-", "−")
    return f"{value:g}".replace("-", "−")


def _need(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    absent = [name for name in columns if name not in frame.columns]
    if absent:
        raise InputError(
            f"{what}: the frame has no column {absent[0]!r}; it has {', '.join(map(str, frame.columns)) or 'none'}. "
            "Name one of those."
        )
