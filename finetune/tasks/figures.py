"""The figures of a gene task: scores with intervals, curves over folds, predictions against truth."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.axes import Axes

from expresser.plots import bar_axes, density_scatter_axes, heatmap_axes, svg
from expresser.plots_curves import precision_recall_axes, roc_axes
from expresser.report import Figure
from finetune.tasks.curves import precision_recall, roc
from finetune.tasks.judging import LEAD
from finetune.tasks.words import joined, name_of, number, ranked, speakers

_MOST_CURVES = 5


def task_figures(metrics: Mapping[str, Any], predictions: pd.DataFrame) -> list[Figure]:
    """Figures of the headline split, by kind of label."""
    lead, entries, order = LEAD[metrics["kind"]], metrics["embeddings"], ranked(metrics)
    value = pd.Series({name: number(entries[name].get(lead)) for name in order}, name=name_of(lead))
    low, high = (pd.Series({n: number(entries[n].get(f"{lead}_{end}")) for n in order}) for end in ("lo", "hi"))
    base = 0.5 if metrics["kind"] == "binary" and value.min() > 0.4 else 0.0
    spoken = speakers(metrics)
    bars = partial(bar_axes, values=value, low=low, high=high, highlight=spoken[0] if spoken else None, base=base)
    found = [
        Figure(
            f"{name_of(lead)} of all tables",
            svg(bars, (5.2, 0.8 + 0.3 * len(order))),
            "Lines: 95 % intervals. Whether two tables differ is told by their paired difference, not by these.",
            pd.DataFrame({name_of(lead): value, "from": low, "to": high}),
        )
    ]
    mine = predictions[predictions["split"] == metrics["split"]]
    names = _main(metrics)
    if metrics["kind"] == "binary":
        found += _curves(mine, names, frozenset(n for n in names if n not in spoken))
    elif metrics["kind"] == "regression":
        found += [_cloud(mine, name, metrics) for name in names[:2]]
    else:
        found += [_confusion(mine, name) for name in names[:1]]
    return found


def _curves(predictions: pd.DataFrame, names: Sequence[str], grey: frozenset[str]) -> list[Figure]:
    prevalence = float(predictions["label"].mean())
    note = (
        "Mean over folds; bands hold four folds in five." if predictions.groupby(["repeat", "fold"]).ngroups > 1 else ""
    )
    found = []
    for title, points, axes in (
        ("ROC curves", roc, roc_axes),
        ("Precision and recall", precision_recall, partial(precision_recall_axes, prevalence=prevalence)),
    ):
        drawn = {name: points(predictions, name) for name in names}
        curves = {name: curve for name, (curve, _) in drawn.items()}
        bands = {name: band for name, (_, band) in drawn.items() if band is not None}
        references = grey if len(grey) < len(names) else frozenset()

        def draw(ax: Axes, axes: Any = axes, curves: Any = curves, bands: Any = bands, grey: Any = references) -> Axes:
            return axes(ax, curves, references=grey, bands=bands)

        columns = {f"{name} {axis}": curve[i] for name, curve in curves.items() for i, axis in enumerate("xy")}
        found.append(Figure(title, svg(draw, (4.2, 4.4)), note, pd.DataFrame(columns)))
    return found


def _cloud(predictions: pd.DataFrame, name: str, metrics: Mapping[str, Any]) -> Figure:
    first = predictions[predictions["repeat"] == predictions["repeat"].min()]
    cloud = partial(
        density_scatter_axes,
        truth=first["label"].to_numpy(dtype=float),
        prediction=first[name].to_numpy(dtype=float),
        note=f"r = {number(metrics['embeddings'][name]['pearson']):.3f}",
        xlabel=str(metrics["target"]),
        ylabel="predicted",
    )
    caption = "First repeat: each gene once, predicted by a head that was not fitted on it. r: mean over all folds."
    numbers = first[["label", name]].rename(columns={"label": str(metrics["target"]), name: "predicted"})
    return Figure(f"{name}: predicted against true", svg(cloud), caption, numbers.reset_index(drop=True))


def _confusion(predictions: pd.DataFrame, name: str) -> Figure:
    frame = pd.crosstab(predictions["label"], predictions[name], normalize="index")
    frame.index.name, frame.columns.name = "true", "predicted"
    draw = partial(heatmap_axes, frame=frame, label="share of the true class")
    return Figure(f"{name}: confusion of classes", svg(draw), "All folds; each row adds up to one.", frame)


def _main(metrics: Mapping[str, Any]) -> list[str]:
    """Tables that the curves show: the models, the best other one, random and degree."""
    order, spoken = ranked(metrics), speakers(metrics)
    others = [name for name in order if name not in spoken and not joined(name, metrics)]
    wanted = [*spoken, *others[:1], *(name for name in ("random", "degree") if name in order)]
    return list(dict.fromkeys(wanted))[:_MOST_CURVES]
