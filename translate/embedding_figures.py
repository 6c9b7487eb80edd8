"""The figures of an embedding: maps of cells, clusters at each resolution, what its dimensions tell, how batches mix."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Shaped

from expresser.plots import bar_axes, curve_axes, hist_axes, scatter_axes, svg
from expresser.report import Figure
from translate.maps import FEWEST, umap
from translate.page_figures import map_size

_LINES = 4  # of a figure: more cannot be told apart


def score_bars(
    scores: Mapping[str, Mapping[str, Any]], order: Sequence[str], score: str, name: str, model: str
) -> Figure:
    """One score of all methods, with the intervals that there are."""
    values = pd.Series({method: _number(scores[method].get(score)) for method in order}, name=name)
    found = {method: (scores[method].get("intervals") or {}).get(score) or {} for method in order}
    low, high = (pd.Series({m: _number(found[m].get(end)) for m in order}) for end in ("low", "high"))
    drawn = partial(bar_axes, values=values, low=low, high=high, highlight=model)
    data = pd.DataFrame({name: values, "low": low, "high": high})
    data.index.name = "method"
    caption = "Lines: least and greatest in ten subsamples of 90 % of the cells." if low.notna().any() else ""
    return Figure(name, svg(drawn, (5.2, 0.9 + 0.3 * len(order))), caption, data)


def by_resolution(
    curves: Mapping[str, Mapping[str, Sequence[Any]]], order: Sequence[str], resolutions: Sequence[float]
) -> list[Figure]:
    """ARI and number of clusters over the grid of resolutions, of the first methods."""
    shown = [name for name in order if name in curves][:_LINES]
    figures = []
    for key, label in (("ari", "ARI"), ("n_clusters", "clusters")):
        columns = {name: curves[name][key] for name in shown if key in curves[name]}
        if not columns:
            continue
        frame = pd.DataFrame({"resolution": list(resolutions), **columns})
        drawn = partial(
            curve_axes, frame=frame, x="resolution", y=list(columns), ylabel=label, logx=True, logy=key != "ari"
        )
        figures.append(Figure(f"{label} at each resolution", svg(drawn), "", frame))
    return figures


def information_bars(information: Mapping[str, Sequence[float]], model: str) -> list[Figure]:
    """What each latent dimension tells of depth and of batch, in nats."""
    figures = []
    for what, found in information.items():
        values = pd.Series(
            found, index=[f"z{i}" for i in range(1, len(found) + 1)], name=f"information about {what}, nats"
        )
        size = (5.2, 0.9 + 0.2 * len(values))
        caption = f"Mean {np.mean(found):.4f} nats a dimension; 0: the dimension does not know it. Estimates from nearest neighbours."
        data = values.to_frame()
        data.index.name = "dimension"
        figures.append(
            Figure(
                f"{model}: {what} in each latent dimension", svg(partial(bar_axes, values=values), size), caption, data
            )
        )
    return figures


def mixing_histogram(mixing: Mapping[str, Shaped[np.ndarray, " cells"]], order: Sequence[str], k: int) -> list[Figure]:
    """How far the batches among a cell's neighbours are from even."""
    groups = {name: mixing[name] for name in order if name in mixing}
    groups = dict(list(groups.items())[:_LINES])
    if not groups:
        return []
    drawn = partial(
        hist_axes, groups=groups, bins=30, xlabel="distance of neighbours' batches from even", ylabel="cells"
    )
    caption = (
        f"Of the {k} nearest neighbours of a cell: the mean distance of each batch's share, normalised by its size, from an even "
        "one. 0: mixed. Cell types of one batch alone are not mixed by a good embedding either."
    )
    edges = np.histogram_bin_edges(np.concatenate([*groups.values()]), bins=30)
    data = pd.DataFrame(
        {"from": edges[:-1], "to": edges[1:], **{n: np.histogram(v, edges)[0] for n, v in groups.items()}}
    )
    return [Figure("Batches among neighbours", svg(drawn), caption, data)]


def cell_maps(
    name: str, points: Float32[np.ndarray, "cells latent"], colours: Mapping[str, pd.Series], *, seed: int
) -> list[Figure]:
    """One UMAP of an embedding in every colouring; none where cells are too few. Numbers are drawn with a colour bar."""
    if len(points) < FEWEST:
        return []
    xy = umap(np.ascontiguousarray(points, dtype=np.float32), seed=seed)
    figures = []
    for label, values in colours.items():
        categorical = not pd.api.types.is_numeric_dtype(values)
        by = values.reset_index(drop=True)
        drawn = partial(scatter_axes, xy=xy, by=by, categorical=categorical, label=label, seed=seed)
        data = pd.DataFrame({"UMAP 1": xy[:, 0], "UMAP 2": xy[:, 1], label: by})
        size = map_size(by.nunique() if categorical else 1)
        figures.append(Figure(f"{name}: cells by {label}", svg(drawn, size), f"{len(by):,} cells.", data))
    return figures


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)
