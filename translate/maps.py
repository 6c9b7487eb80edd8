"""Maps of cells in two dimensions: principal components of a prediction, never held whole, and their UMAP."""

import warnings

import numpy as np
from jaxtyping import Float32, Int64
from scipy import linalg

from expresser.errors import InputError
from expresser.threads import kept_threads
from translate.predicted import Predicted

FEWEST = 50  # cells of a map: fewer have too few neighbours to lie anywhere in particular


def principal_scores(
    predicted: Predicted,
    *,
    n: int = 30,
    cells: Int64[np.ndarray, " chosen"] | None = None,
    budget_mb: float = 64.0,
) -> Float32[np.ndarray, "chosen components"]:
    """Principal component scores of cells (all, or the numbers given): features centred, not scaled, strongest first.

    Exact, from the cells x cells matrix of inner products, added up over blocks of features of at most `budget_mb` (float32);
    what is kept is 8 bytes x cells^2. The sign of each component makes its largest score positive. `predicted` may also
    be a measurement that offers blocks (`translate.truth.Truth`). Components without variance are left out.

    Relations: `translate.components.Components` is fitted on some cells and places others among them; this describes one
    set of cells, of a matrix that exists block by block only. For more than about 5,000 cells pass a sample.
    """
    chosen = np.arange(predicted.n_cells) if cells is None else cells
    if len(chosen) < 2:
        raise InputError(f"principal components: {len(chosen)} cells have none. Pass at least two.")
    inner = np.zeros((len(chosen), len(chosen)))
    width = max(1, int(budget_mb * 2**20 / (4 * predicted.n_cells)))
    for first in range(0, predicted.n_features, width):
        features = slice(first, min(first + width, predicted.n_features))
        block = predicted.block(slice(0, predicted.n_cells), features)[chosen]
        block = block - block.mean(axis=0, dtype=np.float64).astype(np.float32)
        inner += block @ block.T
    inner -= inner.mean(axis=0) + inner.mean(axis=1, keepdims=True) - inner.mean()  # what rounding of the means left
    top = min(n, len(chosen) - 1, predicted.n_features)
    values, vectors = linalg.eigh(inner, subset_by_index=[len(chosen) - top, len(chosen) - 1])
    values, vectors = values[::-1], vectors[:, ::-1]
    vectors *= np.where(np.take_along_axis(vectors, np.abs(vectors).argmax(axis=0)[None], axis=0) < 0, -1, 1)
    real = values > 1e-7 * max(float(np.trace(inner)), 1e-30)
    return (vectors[:, real] * np.sqrt(values[real])).astype(np.float32)


def umap(points: Float32[np.ndarray, "cells dimensions"], *, seed: int = 0) -> Float32[np.ndarray, "cells 2"]:
    """UMAP as scanpy makes it (15 neighbours, minimal distance 0.5), the same for the same seed."""
    import scanpy as sc  # here: it costs seconds of import
    from anndata import AnnData

    if len(points) < FEWEST:
        raise InputError(f"UMAP: {len(points)} cells are too few for a map; {FEWEST} are needed. Leave it out.")
    cells = AnnData(obsm={"X": points})
    with kept_threads(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about threads, renamed parameters and graphs in pieces: none changes the map
        sc.pp.neighbors(cells, use_rep="X", random_state=seed)
        sc.tl.umap(cells, random_state=seed)
    return np.asarray(cells.obsm["X_umap"], dtype=np.float32)


def sampled(n_cells: int, most: int, *, seed: int = 0) -> Int64[np.ndarray, " chosen"]:
    """Numbers of at most `most` cells, drawn at random, in order."""
    if n_cells <= most:
        return np.arange(n_cells)
    return np.sort(np.random.default_rng(seed).choice(n_cells, most, replace=False))
