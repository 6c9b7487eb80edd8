"""The figures of one direction of a translation: densities, curves, calibration, scores by feature; and maps of cells."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64
from matplotlib.axes import Axes

from expresser.metrics.accessibility import auroc_by_prevalence
from expresser.plots import Size, bar_axes, density_scatter_axes, hist_axes, scatter_axes, svg
from expresser.plots_curves import band_axes, calibration_axes, precision_recall_axes, roc_axes
from expresser.plots_numbers import hexagons, histogram
from expresser.report import Figure
from translate.drawings import Joint, Picture
from translate.maps import FEWEST, sampled, umap
from translate.verdicts import DECIDING, FEATURES, heading, score_name, target, value

_RATE_BINS = 12  # of peaks, by how often they are open

Pictures = Mapping[str, Picture]  # method -> its picture in one direction, in the order to be drawn


def bars(methods: Mapping[str, Any], order: Sequence[str], direction: str, models: Sequence[str]) -> Figure:
    """The deciding score of all methods."""
    score, _, chance = DECIDING[target(direction)][0]
    values = pd.Series({name: value(methods[name][direction], score) for name in order}, name=score_name(score))
    highlight = models[0] if len(models) == 1 and models[0] in values.index else None
    drawn = partial(bar_axes, values=values, highlight=highlight, base=chance)
    caption = f"Bars begin at {chance:g}, the value of chance." if chance else "Zero is chance."
    title = f"{heading(direction)}: {score_name(score)}"
    return Figure(title, svg(drawn, (5.2, 0.8 + 0.3 * len(order))), caption, values.to_frame())


def density(pictures: Pictures, scores: Mapping[str, Any], direction: str) -> list[Figure]:
    """Predicted against measured values of each method that kept points."""
    figures = []
    for name, picture in pictures.items():
        if picture.points is None:
            continue
        note = f"r = {value(scores[name], 'pearson_flat'):.3f}\nMAE = {value(scores[name], 'mae'):.3f}"
        truth, prediction = picture.points
        draw = partial(density_scatter_axes, truth=truth, prediction=prediction, note=note)
        what = "CLR" if target(direction) == "protein" else "ln(1 + size-normalised count)"
        caption = (
            f"{truth.size:,} entries drawn at random, {what} on both axes. Most of this r is that some "
            f"{FEATURES[target(direction)]} are high everywhere."
        )
        figures.append(Figure(f"{name}: predicted against measured", svg(draw), caption, hexagons(truth, prediction)))
    return figures


def by_feature(pictures: Pictures, direction: str, features: pd.Index) -> list[Figure]:
    """Histograms, over features, of each deciding score."""
    figures = []
    for score, key, chance in DECIDING[target(direction)]:
        groups = {name: _defined(p.by_feature[key]) for name, p in pictures.items() if key in p.by_feature}
        groups = {name: values for name, values in groups.items() if values.size}
        if not groups:
            continue
        of = FEATURES[target(direction)]
        draw = partial(hist_axes, groups=groups, bins=40, xlabel=score_name(score), ylabel=of)
        caption = "; ".join(f"{name}: median {np.median(v):.3f} of {len(v):,} {of}" for name, v in groups.items())
        caption += f". {chance:g} is chance; undefined values are left out."
        data = pd.DataFrame({name: pictures[name].by_feature[key] for name in groups}, index=features)
        figures.append(Figure(f"{score_name(score)}, each of the {of}", svg(draw), caption, data))
    return figures


def rates(pictures: Pictures, prevalence: float | None) -> list[Figure]:
    """ROC and precision-recall curves of all methods that have them."""
    curves = {name: p.curves for name, p in pictures.items() if p.curves is not None}
    if not curves:
        return []
    roc = {name: c["roc"] for name, c in curves.items() if "roc" in c}
    pr = {name: c["pr"] for name, c in curves.items() if "pr" in c}
    size = (4.4, 3.9 + 0.2 * (len(curves) // 3))
    over = "Over all entries of cells x peaks, where that some peaks are open everywhere is most of it."
    return [
        Figure("ROC", svg(partial(roc_axes, curves=roc), size), f"{over} Dashed diagonal: chance.", _long(roc)),
        Figure(
            "Precision and recall",
            svg(partial(precision_recall_axes, curves=pr, prevalence=prevalence), size),
            over + ("" if prevalence is None else f" Dashed: the share open, {prevalence:.3g}, which chance reaches."),
            _long(pr),
        ),
    ]


def calibration(pictures: Pictures) -> list[Figure]:
    """Reliability of those that predict probabilities."""
    bins = {name: p.calibration for name, p in pictures.items() if p.calibration is not None and len(p.calibration)}
    if not bins:
        return []
    low = min(float(frame["predicted"].median()) for frame in bins.values()) < 0.05
    data = pd.concat([frame.assign(method=name) for name, frame in bins.items()], ignore_index=True)
    entries = max(int(frame["n"].sum()) for frame in bins.values())
    caption = (
        f"Entries sorted by predicted probability and cut into bins; {entries:,} entries of each method, the number in each "
        "bin is in the CSV and in the marker's area. On the diagonal a probability means what it says; above it peaks are "
        "open more often than predicted." + (" Bins with no open entry cannot be shown on these axes." if low else "")
    )
    size = (4.4, 3.9 + 0.2 * (len(bins) // 3))
    return [Figure("Calibration", svg(partial(calibration_axes, bins=bins, log=low), size), caption, data)]


def collapse(pictures: Pictures) -> list[Figure]:
    """How far predictions of a peak differ between cells, against how far open and closed calls do."""
    groups = {name: shares for name, picture in pictures.items() if (shares := spread_share(picture)).size}
    if not groups:
        return []
    draw = partial(hist_axes, groups=groups, bins=40, xlabel="predicted sd / sd of open and closed", ylabel="peaks")
    caption = "; ".join(f"{name}: median {np.median(v):.3f}" for name, v in groups.items())
    caption += (
        ". Near 0: every cell gets the same answer (collapsed). 1 would be certainty, which no honest probability of a "
        "sparse measurement has; compare with the baselines."
    )
    return [Figure("Spread of predictions between cells", svg(draw), caption, histogram(groups, bins=40))]


def by_base_rate(pictures: Pictures) -> list[Figure]:
    """AUROC of a peak against how often it is open: medians and quartiles of peaks in bins of equal number."""
    tables = {
        name: auroc_by_prevalence(picture.by_feature["auroc"], picture.pseudobulk[0], _RATE_BINS)
        for name, picture in pictures.items()
        if "auroc" in picture.by_feature
    }
    tables = {name: table for name, table in tables.items() if len(table)}
    if not tables:
        return []
    data = pd.concat([table.assign(method=name) for name, table in tables.items()], ignore_index=True)
    caption = (
        f"Peaks in order of the share of test cells in which they are open, cut into at most {_RATE_BINS} bins of about "
        "equal number; the line is the median AUROC by peak, the band holds half of the peaks (quartiles). 0.5, dashed, is "
        "chance. A line that leaves chance at common peaks only is a model that has collapsed for the others."
    )
    names = {"prevalence": "x", "q25": "low", "median": "middle", "q75": "high"}
    bands = {name: table.drop(columns=["low", "high"]).rename(columns=names) for name, table in tables.items()}
    draw = partial(
        band_axes,
        bands=bands,
        xlabel="share of cells in which the peak is open",
        ylabel=score_name("auroc_peak"),
        log=True,
        reference=0.5,
    )
    return [Figure("AUROC of rare and of common peaks", svg(draw), caption, data[["method", *data.columns[:-1]]])]


def spread_share(picture: Picture) -> Float64[np.ndarray, " peaks"]:
    """Standard deviation of a peak's predicted probabilities over that of its calls, sqrt(p (1 - p)); none for other scores."""
    if picture.calibration is None or "spread" not in picture.by_feature:
        return np.empty(0)
    share = picture.pseudobulk[0].astype(np.float64)
    varies = (share > 0) & (share < 1)
    return _defined(picture.by_feature["spread"][varies] / np.sqrt(share[varies] * (1 - share[varies])))


def latent_maps(joint: Joint, name: str, *, most: int, seed: int) -> list[Figure]:
    """One UMAP of cells of both modalities: coloured by modality, and by cell type where it is known."""
    parts = [np.flatnonzero(joint.modality == m) for m in ("rna", "atac")]
    parts = [rows[sampled(len(rows), most // 2, seed=seed)] for rows in parts]
    chosen = np.concatenate(parts)
    if len(chosen) < 2 * FEWEST:
        return []
    xy = umap(joint.points[chosen].astype(np.float32), seed=seed)
    source = pd.Series(joint.modality[chosen]).map({"rna": "from rna", "atac": "from atac"})
    caption = f"{len(parts[0]):,} test cells from RNA, {len(parts[1]):,} from ATAC. Where the two mix, they are encoded alike."
    figures = [_map(f"{name}: latents by modality", xy, source, "", caption, seed)]
    if joint.labels is not None:
        types, label = joint.labels.iloc[chosen], str(joint.labels.name)
        figures.append(_map(f"{name}: latents by {label}", xy, types, label, caption, seed))
    return figures


def value_maps(
    components: Mapping[str, Float32[np.ndarray, "cells components"]],
    direction: str,
    colour: pd.Series | None,
    *,
    most: int,
    seed: int,
) -> list[Figure]:
    """A UMAP of each of measured and predicted values (their principal components), coloured by cell type."""
    figures = []
    for name, points in components.items():
        chosen = sampled(len(points), most, seed=seed)
        if len(chosen) < FEWEST:
            continue
        by = pd.Series(name, index=range(len(chosen))) if colour is None else colour.iloc[chosen]
        label = "" if colour is None else str(colour.name)
        caption = f"{len(chosen):,} test cells; from {points.shape[1]} principal components."
        xy = umap(points[chosen], seed=seed)
        figures.append(_map(f"{heading(direction)}: {name}", xy, by, label, caption, seed))
    return figures


def _map(title: str, xy: Float32[np.ndarray, "cells 2"], by: pd.Series, label: str, caption: str, seed: int) -> Figure:
    def draw(ax: Axes) -> Axes:
        return scatter_axes(ax, xy, by.reset_index(drop=True), categorical=True, label=label, seed=seed)

    data = pd.DataFrame({"UMAP 1": xy[:, 0], "UMAP 2": xy[:, 1], label or "group": by.to_numpy()})
    return Figure(title, svg(draw, map_size(by.nunique())), caption, data)


def map_size(n_groups: int) -> Size:
    """Inches of a map: taller, then wider where the legend needs it, so that the cells keep more than half of the width."""
    if n_groups <= 16:
        return 5.4, 3.6
    return (5.4, 5.2) if n_groups <= 24 else (7.8, 5.2)


def _long(curves: Mapping[str, Float64[np.ndarray, "2 points"]]) -> pd.DataFrame:
    return pd.concat([pd.DataFrame({"method": n, "x": c[0], "y": c[1]}) for n, c in curves.items()], ignore_index=True)


def _defined(values: np.ndarray) -> Float64[np.ndarray, " defined"]:
    kept = values.astype(np.float64)
    return kept[~np.isnan(kept)]
