"""Figures that several parts of the demo's page share: maps of cells, clouds of predictions, curves, losses."""

import json
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from jaxtyping import Bool, Float, Num, Shaped
from sklearn.metrics import precision_recall_curve, roc_curve

from expresser.plots import curve_axes, density_scatter_axes, scatter_axes, svg
from expresser.plots_curves import precision_recall_axes, roc_axes
from expresser.report import Figure
from expresser.threads import kept_threads

_FEWEST = 20  # cells of a map
_MOST = 10_000  # entries drawn of a cloud, and given as numbers
_POINTS = 200  # of a curve


def cell_maps(
    name: str, points: Num[np.ndarray, "cells dimensions"], colours: Mapping[str, Shaped[np.ndarray, " cells"]]
) -> list[Figure]:
    """One UMAP of an embedding (15 neighbours), in every colouring; none of fewer than 20 cells."""
    if len(points) < _FEWEST:
        return []
    cells = AnnData(obsm={"X": points.astype(np.float32)})
    with kept_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads and graphs in pieces: neither changes the map
        sc.pp.neighbors(cells, use_rep="X", random_state=0)
        sc.tl.umap(cells, random_state=0)
    xy = np.asarray(cells.obsm["X_umap"])
    figures = []
    for label, values in colours.items():
        drawing = svg(partial(scatter_axes, xy=xy, by=values, label=label))
        data = pd.DataFrame({"UMAP 1": xy[:, 0], "UMAP 2": xy[:, 1], label: values})
        figures.append(Figure(f"{name} by {label}", drawing, f"{len(xy):,} points.", data))
    return figures


def cloud(
    title: str,
    truth: Float[np.ndarray, " entries"],
    prediction: Float[np.ndarray, " entries"],
    *,
    unit: str,
    caption: str,
) -> Figure:
    """Predicted against measured values; r in the corner is over all entries, also where only a sample is drawn."""
    r = float(np.corrcoef(truth, prediction)[0, 1])
    shown = np.arange(len(truth))
    if len(truth) > _MOST:
        shown = np.sort(np.random.default_rng(0).choice(len(truth), _MOST, replace=False))
        caption += f" {_MOST:,} of {len(truth):,} entries are drawn, at random; r is over all."
    x, y = truth[shown].astype(np.float64), prediction[shown].astype(np.float64)
    drawing = svg(
        partial(
            density_scatter_axes,
            truth=x,
            prediction=y,
            note=f"r = {r:.3f}",
            xlabel=f"measured, {unit}",
            ylabel=f"predicted, {unit}",
        )
    )
    return Figure(title, drawing, caption, pd.DataFrame({"measured": x, "predicted": y}))


def rate_curves(
    what: str,
    label: Bool[np.ndarray, " items"],
    scores: Mapping[str, Num[np.ndarray, " items"]],
    *,
    references: frozenset[str] = frozenset(),
    caption: str = "",
) -> list[Figure]:
    """ROC and precision-recall curves of the same items by several methods, each thinned to 200 points. references: in grey."""
    roc, precision = {}, {}
    for name, score in scores.items():
        false, true, _ = roc_curve(label, score)
        roc[name] = _thinned(np.stack([false, true]))
        precise, recall, _ = precision_recall_curve(label, score)
        # Without its last point, precision 1 at recall 0, which is a convention and no threshold's.
        precision[name] = _thinned(np.stack([recall, precise])[:, -2::-1])
    drawn = svg(partial(roc_axes, curves=roc, references=references), (4.2, 4.4))
    share = float(label.mean())
    by_recall = partial(precision_recall_axes, curves=precision, references=references, prevalence=share)
    return [
        Figure(f"{what}: ROC", drawn, caption, _long(roc, "false positive rate", "true positive rate")),
        Figure(
            f"{what}: precision and recall",
            svg(by_recall, (4.2, 4.4)),
            f"Dashed: {share:.1%} are positive, what chance reaches.",
            _long(precision, "recall", "precision"),
        ),
    ]


def loss_curves(name: str, run: Path) -> list[Figure]:
    """Training and validation loss of a fit by epoch, a figure for each phase, from its log.jsonl."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figures = []
    for phase in dict.fromkeys(entry["phase"] for entry in log):
        rows = [
            {"epoch": e["epochs"], "training": e["train"].get("loss"), "validation": e["valid"].get("loss")}
            for e in log
            if e["phase"] == phase
        ]
        frame = pd.DataFrame(rows, dtype=float).dropna(axis=1, how="all")
        lines = [column for column in ("training", "validation") if column in frame]
        if lines:
            drawing = svg(partial(curve_axes, frame=frame, x="epoch", y=lines, ylabel="loss"))
            figures.append(Figure(f"{name}: loss, phase {phase}", drawing, data=frame))
    return figures


def _thinned(curve: Num[np.ndarray, "2 points"]) -> Num[np.ndarray, "2 fewer"]:
    """At most 200 points, spread evenly along x, both ends among them."""
    if curve.shape[1] <= _POINTS:
        return curve
    at = np.searchsorted(curve[0], np.linspace(curve[0, 0], curve[0, -1], _POINTS - 2))
    return curve[:, np.unique([0, *at.clip(0, curve.shape[1] - 1), curve.shape[1] - 1])]


def _long(curves: Mapping[str, Num[np.ndarray, "2 points"]], x: str, y: str) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"method": n, x: c[0], y: c[1]}) for n, c in curves.items()], ignore_index=True)
