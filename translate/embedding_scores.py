"""What one embedding of cells is worth: cell types in its clusters, depth and batch in its dimensions, batches mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from expresser.metrics.clusters import RESOLUTIONS, cluster_scores, subsampled_scores
from expresser.metrics.mixing import neighbour_mixing
from expresser.metrics.mutual_information import batch_information, depth_information
from translate.embedding_cells import JudgedCells
from translate.maps import sampled

MIXING_NEIGHBOURS = 50
DRAWS = 10
_MOST = 10_000  # cells that subsamples are drawn from: each of them is clustered anew at a dozen resolutions
_PLAIN = (
    "ari",
    "nmi",
    "silhouette",
    "silhouette_clusters",
    "n_clusters",
    "resolution",
    "ari_best",
    "nmi_best",
    "f1",
    "rarest_f1",
)


@dataclass(frozen=True, eq=False)
class Scored:
    """One method; what cannot be computed is not there."""

    scores: dict[str, Any]
    curve: Mapping[str, list[Any]] = field(default_factory=dict)  # ari, nmi, n_clusters at `resolutions`
    types: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    information: Mapping[str, list[float]] = field(default_factory=dict)  # depth, batch: nats of each dimension
    mixing: Float64[np.ndarray, " cells"] | None = None  # how far the batches of a cell's neighbours are from even
    resolutions: Sequence[float] = RESOLUTIONS


def score_embedding(x: Float32[np.ndarray, "cells dimensions"], cells: JudgedCells, *, seed: int = 0) -> Scored:
    """All that can be computed from these cells; cells without a type are left out of what is scored by type."""
    scores: dict[str, Any] = {}
    curve: dict[str, list[Any]] = {}
    types: dict[str, Any] = {}
    if cells.types is not None:
        has = cells.types.notna().to_numpy()
        found = cluster_scores(x[has], cells.types[has].to_numpy(dtype=object), seed=seed)
        scores |= {name: found[name] for name in _PLAIN}
        curve = {name: values for name, values in found["curve"].items() if name != "resolutions"}
        types = found["types"]
    information = {"depth": depth_information(x, cells.log_depth, seed=seed).tolist()}
    mixing = None
    if cells.batch is not None:
        information["batch"] = batch_information(x, cells.batch_codes, seed=seed).tolist()
        mixed = neighbour_mixing(x, cells.batch_codes, min(MIXING_NEIGHBOURS, len(x) - 1), seed=seed)
        mixing = np.abs(mixed.shares - 1 / len(mixed.batches)).mean(axis=1)
        scores |= {"mixing": mixed.deviation, "mixing_by_chance": mixed.by_chance}
    scores |= {f"mi_{what}": float(np.mean(found)) for what, found in information.items()}
    return Scored(scores, curve, types, information, mixing)


def draws_of(
    points: Mapping[str, Float32[np.ndarray, "cells _"]], cells: JudgedCells, *, seed: int = 0
) -> dict[str, dict[str, list[float]]]:
    """Method -> score -> its value in each of `DRAWS` subsamples of 90 % of the labelled cells, the same for every method.

    Of more than 10,000 cells, as many are drawn first.
    """
    if cells.types is None:
        return {}
    rows = np.flatnonzero(cells.types.notna().to_numpy())
    rows = rows[sampled(len(rows), _MOST, seed=seed)]
    labels = cells.types.iloc[rows].to_numpy(dtype=object)
    if len(set(labels)) < 2:
        return {}
    return {
        name: {s: v.tolist() for s, v in subsampled_scores(x[rows], labels, draws=DRAWS, seed=seed).items()}
        for name, x in points.items()
    }
