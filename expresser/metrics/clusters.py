"""Whether clusters of an embedding are the known cell types: neighbour graphs, clusters over a grid, ARI, AMI, NMI, silhouette."""

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int64, Shaped
from scipy import sparse
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
    silhouette_score,
)
from sklearn.neighbors import NearestNeighbors

from expresser.errors import InputError

Method: TypeAlias = Literal["leiden", "louvain"]
Clusters: TypeAlias = Int64[np.ndarray, " cells"]

# From a handful of clusters to many tens, each step 1.4 times finer.
RESOLUTIONS = tuple(np.geomspace(0.1, 4.0, 12).round(3).tolist())
NEIGHBOURS = 15
SILHOUETTE_CELLS = 5000  # the distances between them are 100 MB
FOUND = 0.5  # F1 above which a type is said to have a cluster of its own
_HALVINGS = 6  # of the step of the grid in which the number of types lies


def neighbour_graph(x: Float[np.ndarray, "cells dim"], k: int = NEIGHBOURS) -> sparse.csr_matrix:
    """Symmetric graph of cells that are among each other's `k` nearest (exact, Euclidean, itself included), in either direction.

    An edge weighs what the two cells' nearest have in common, shared / all (Jaccard, as PhenoGraph and Seurat have it),
    from the cells alone: nothing is drawn at random. Of fewer than `k` cells all are neighbours.
    """
    _check(x)
    if k < 2:
        raise InputError(f"neighbour graph: k is {k}; the cell itself counts, so give 2 or more.")
    size = min(k, len(x))
    near = sparse.csr_matrix(NearestNeighbors(n_neighbors=size).fit(x).kneighbors_graph(x))
    shared = sparse.csr_matrix((near @ near.T).multiply((near + near.T) > 0))
    shared.setdiag(0)
    shared.eliminate_zeros()
    shared.data = shared.data / (2 * size - shared.data)
    return shared


def communities(
    graph: sparse.csr_matrix, resolutions: Iterable[float], *, method: Method = "leiden", seed: int = 0
) -> Iterator[Clusters]:
    """Cluster of each cell at one resolution after another, by modularity: the same for the same seed.

    leiden: igraph's, two iterations (as scanpy's). louvain: igraph's multilevel, the last level.
    """
    import igraph

    upper = sparse.triu(graph, 1).tocoo()
    edges = np.stack([upper.row, upper.col], axis=1)
    cells = igraph.Graph(n=graph.shape[0], edges=edges, edge_attrs={"weight": upper.data})
    for resolution in resolutions:
        # igraph draws from one generator for all: lent for a moment, so that Python's own, its default, stays untouched.
        igraph.set_random_number_generator(random.Random(seed))
        try:
            if method == "leiden":
                found = cells.community_leiden("modularity", weights="weight", resolution=resolution, n_iterations=2)
            else:
                found = cells.community_multilevel(weights="weight", resolution=resolution)
        finally:
            igraph.set_random_number_generator(random)
        yield np.array(found.membership, dtype=np.int64)


def cluster_scores(
    x: Float[np.ndarray, "cells dim"],
    labels: Sequence[str] | Shaped[np.ndarray, " labels"],
    *,
    k: int = NEIGHBOURS,
    resolutions: Sequence[float] = RESOLUTIONS,
    method: Method = "leiden",
    seed: int = 0,
) -> dict[str, Any]:
    """How well clusters of an embedding agree with known types.

    Returns
    -------
    ari, ami, nmi, n_clusters, resolution
        At equal numbers: of the clustering whose number of clusters is nearest to the number of types (the coarser of two as
        near), among the grid and, where it steps over that number, six resolutions between. Agreement has no say in it.
    ari_best, nmi_best
        The greatest over the grid: what someone who knew the answer could have reached.
    silhouette, silhouette_clusters
        Of the types, and of the clusters at equal numbers, in the embedding: of at most `SILHOUETTE_CELLS` cells drawn by
        `seed`. NaN where there is one group only. They compare embeddings of one scale of dimensions with care: distances
        in 10 and in 50 dimensions differ.
    types
        Of each type, the rarest first: cells, and f1 and jaccard of the cluster that matches it best at equal numbers,
        f1_best (over the grid), found (f1 is at least 0.5), found_best.
    f1, rarest_f1
        Mean f1 over types, each counting alike, and that of the rarest type.
    curve
        resolutions, n_clusters, ari and nmi over the grid.

    Relations: it reads the labels of all cells; leave out those without a known type first.
    """
    types, codes = _codes(x, labels)
    graph = neighbour_graph(x, k)
    grid = dict(zip(resolutions, communities(graph, resolutions, method=method, seed=seed)))
    curve: dict[str, Any] = {
        "resolutions": list(grid),
        "n_clusters": [_count(found) for found in grid.values()],
        "ari": [float(adjusted_rand_score(codes, found)) for found in grid.values()],
        "nmi": [float(normalized_mutual_info_score(codes, found)) for found in grid.values()],
    }
    resolution, equal = _equal_numbers(graph, grid, len(types), method, seed)
    sizes = np.bincount(codes)
    at, over = best_matches(codes, equal), [best_matches(codes, found)["f1"] for found in grid.values()]
    f1_best = np.max([at["f1"], *over], axis=0)
    rising = np.argsort(sizes, kind="stable")
    rows = _some(len(x), SILHOUETTE_CELLS, seed)
    return {
        "ari": float(adjusted_rand_score(codes, equal)),
        "ami": float(adjusted_mutual_info_score(codes, equal)),
        "nmi": float(normalized_mutual_info_score(codes, equal)),
        "n_clusters": _count(equal),
        "resolution": float(resolution),
        "ari_best": max(curve["ari"]),
        "nmi_best": max(curve["nmi"]),
        "silhouette": _silhouette(x[rows], codes[rows]),
        "silhouette_clusters": _silhouette(x[rows], equal[rows]),
        "f1": float(at["f1"].mean()),
        "rarest_f1": float(at["f1"][rising[0]]),
        "types": {
            str(types[i]): {
                "cells": int(sizes[i]),
                "f1": float(at["f1"][i]),
                "jaccard": float(at["jaccard"][i]),
                "f1_best": float(f1_best[i]),
                "found": bool(at["f1"][i] >= FOUND),
                "found_best": bool(f1_best[i] >= FOUND),
            }
            for i in rising
        },
        "curve": curve,
    }


def subsampled_scores(
    x: Float[np.ndarray, "cells dim"],
    labels: Sequence[str] | Shaped[np.ndarray, " labels"],
    *,
    share: float = 0.9,
    draws: int = 10,
    seed: int = 0,
    scores: Sequence[str] = ("ari", "nmi", "silhouette"),
    **options: Any,
) -> dict[str, Float64[np.ndarray, " draws"]]:
    """Scores of `cluster_scores` in random parts of the cells, each clustered anew: the error bars of the papers.

    The parts depend on `seed` and the number of cells alone, so that embeddings of the same cells can be compared draw by
    draw. `options` go to `cluster_scores`. The parts overlap: their spread says how stable a score is, and is no
    confidence interval over new samples of tissue.
    """
    _, codes = _codes(x, labels)
    if not 0 < share < 1 or draws < 1:
        raise InputError(
            f"subsampled scores: share {share} and {draws} draws; give a share between 0 and 1, one draw or more."
        )
    found: dict[str, list[float]] = {score: [] for score in scores}
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        rows = np.sort(rng.choice(len(x), max(2, round(share * len(x))), replace=False))
        once = cluster_scores(x[rows], codes[rows], seed=seed, **options)
        for score in scores:
            found[score].append(once[score])
    return {score: np.array(values) for score, values in found.items()}


def best_matches(codes: Clusters, clusters: Clusters) -> Mapping[str, Float64[np.ndarray, " types"]]:
    """f1 (2 shared / (cells of the type + of the cluster)) and jaccard of each type with the cluster that matches it best."""
    shared = np.zeros((int(codes.max()) + 1, int(clusters.max()) + 1))
    np.add.at(shared, (codes, clusters), 1)
    both = shared.sum(axis=1, keepdims=True) + shared.sum(axis=0)
    f1 = (2 * shared / np.maximum(both, 1)).max(axis=1)
    return {"f1": f1, "jaccard": f1 / (2 - f1)}  # one rises with the other: the same cluster is the best for both


def _equal_numbers(
    graph: sparse.csr_matrix, grid: Mapping[float, Clusters], wanted: int, method: Method, seed: int
) -> tuple[float, Clusters]:
    """The resolution, and its clusters, with the number of clusters nearest to `wanted`."""
    known = dict(grid)
    for _ in range(_HALVINGS):
        rising = sorted(known)
        fewer = [r for r in rising if _count(known[r]) < wanted]
        more = [r for r in rising if _count(known[r]) > wanted]
        if any(_count(found) == wanted for found in known.values()) or not fewer or not more or fewer[-1] > more[0]:
            break
        middle = float(np.sqrt(fewer[-1] * more[0]))
        known[middle] = next(communities(graph, [middle], method=method, seed=seed))
    best = min(known, key=lambda r: (abs(_count(known[r]) - wanted), r))
    return best, known[best]


def _silhouette(x: Float[np.ndarray, "some dim"], groups: Int64[np.ndarray, " some"]) -> float:
    n = len(np.unique(groups))
    return float(silhouette_score(x, groups)) if 1 < n < len(x) else float("nan")


def _some(n: int, at_most: int, seed: int) -> Int64[np.ndarray, " some"]:
    if n <= at_most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, at_most, replace=False)).astype(np.int64)


def _count(clusters: Clusters) -> int:
    return int(clusters.max()) + 1


def _codes(
    x: Float[np.ndarray, "cells dim"], labels: Sequence[str] | Shaped[np.ndarray, " labels"]
) -> tuple[Shaped[np.ndarray, " types"], Clusters]:
    types, codes = np.unique(np.asarray(labels).astype(str), return_inverse=True)
    if len(codes) != len(x):
        raise InputError(
            f"clusters: {len(x):,} cells have {len(codes):,} labels. Take both from the same list of cells."
        )
    if len(types) < 2:
        raise InputError(f"clusters: all cells are {types[0]!r}; clusters are compared with two types or more.")
    return types, codes.astype(np.int64)


def _check(x: Float[np.ndarray, "cells dim"]) -> None:
    if len(x) < 2:
        raise InputError(f"clusters of {len(x)} cells: give two or more.")
    if not np.isfinite(x).all():
        raise InputError("clusters: the embedding has values that are not finite. Find out what produced them.")
