"""Embeddings of scATAC cells that a network has to beat: LSI, principal components, SnapATAC2's spectral embedding, PeakVI."""

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import TypeAlias

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from translate.components import Components

Baseline: TypeAlias = Callable[..., Float32[np.ndarray, "cells _"]]

_LIBRARIES = {"spectral": "snapatac2", "spectral_regressed": "snapatac2", "peakvi": "scvi"}
_PACKAGES = {"snapatac2": "snapatac2", "scvi": "scvi-tools"}


def lsi(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Float32[np.ndarray, "cells _"]:
    """Latent semantic indexing: truncated SVD (U Σ, not rescaled) of TF-IDF, all `n` components, the first included.

    The TF-IDF is that of `Components`, ln(1 + 10⁴ TF · IDF) with IDF = ln(1 + cells / cells open) and cells scaled to length
    one. Signac's default and ArchR's ("log(TF-IDF)") have IDF = cells / cells open, and do not scale cells.
    """
    _check(matrix)
    return Components.fit(matrix, "atac", n=n, seed=seed).of(matrix)


def lsi_no_depth(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Float32[np.ndarray, "cells _"]:
    """`lsi` of one component more, less the one that correlates most with log depth, in size (mostly the first)."""
    found = lsi(matrix, n=n + 1, seed=seed)
    log_depth = _log_depth(matrix, depth)
    centred = found.astype(np.float64) - found.mean(axis=0, dtype=np.float64)
    length = np.linalg.norm(centred, axis=0)
    related = np.abs((log_depth - log_depth.mean()) @ centred) / np.where(length > 0, length, np.inf)
    return np.delete(found, int(np.argmax(related)), axis=1)


def lsi_regressed(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Float32[np.ndarray, "cells _"]:
    """`lsi`, of which log depth and batch are regressed out (`regressed`)."""
    return regressed(lsi(matrix, n=n, seed=seed), _log_depth(matrix, depth), batch)


def pca(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Float32[np.ndarray, "cells _"]:
    """Principal components of the 0/1 matrix as it is, centred, neither scaled nor normalised for depth."""
    _check(matrix)
    # Those of expression are taken of values as they are given.
    return Components.fit(matrix, "rna", n=n, seed=seed).of(matrix)


def spectral(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Float32[np.ndarray, "cells _"]:
    """SnapATAC2's: eigenvectors of the normalised graph Laplacian of cosine similarities, matrix-free, all peaks.

    Weighted by the root of their eigenvalues, its default; those that come out negative are left out, so there may be fewer
    than `n`.
    """
    _check(matrix)
    _need("spectral")
    import snapatac2
    from anndata import AnnData

    from expresser.generators import seeded

    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells = AnnData(sparse.csr_matrix(matrix, dtype=np.float64))
        n = min(n, matrix.shape[0] - 1, matrix.shape[1] - 1)
        _, found = snapatac2.tl.spectral(cells, n_comps=n, features=None, random_state=seed, inplace=False)
    return np.ascontiguousarray(found, dtype=np.float32)


def spectral_regressed(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
) -> Float32[np.ndarray, "cells _"]:
    """`spectral`, of which log depth and batch are regressed out."""
    return regressed(spectral(matrix, n=n, seed=seed), _log_depth(matrix, depth), batch)


def peakvi(
    matrix: sparse.csr_matrix,
    *,
    depth: Float[np.ndarray, " cells"] | None = None,
    batch: Int64[np.ndarray, " cells"] | None = None,
    n: int = 10,
    seed: int = 0,
    epochs: int = 500,
    accelerator: str = "cpu",
) -> Float32[np.ndarray, "cells _"]:
    """PeakVI's latent means (scvi-tools), `n` of them, the batch as its covariate; its settings, and its early stopping.

    epochs: at most; 500 is its own number. It learns what depth is by itself, so `depth` is not given to it.
    """
    _check(matrix)
    _need("peakvi")
    import scvi
    from anndata import AnnData

    from expresser.generators import seeded

    quiet = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric", "scvi")]
    levels = [logger.level for logger in quiet]
    with seeded(seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Which cells it watches to stop early would be drawn from the operating system: we shuffle, and it takes them in order.
        order = np.random.default_rng(seed).permutation(matrix.shape[0])
        cells = AnnData(sparse.csr_matrix(matrix, dtype=np.float32)[order])
        # scvi-tools keeps what it was told of an AnnData by its categories: strings, so that they are names.
        cells.obs["batch"] = [str(code) for code in (np.zeros(len(order), np.int64) if batch is None else batch[order])]
        try:
            for logger in quiet:
                logger.setLevel(logging.ERROR)
            scvi.model.PEAKVI.setup_anndata(cells, batch_key="batch")
            model = scvi.model.PEAKVI(cells, n_latent=n)
            model.train(
                max_epochs=epochs,
                accelerator=accelerator,
                devices=1,
                shuffle_set_split=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                logger=False,
            )
            found = np.empty((len(order), n), np.float32)
            found[order] = model.get_latent_representation()
        finally:
            for logger, level in zip(quiet, levels):
                logger.setLevel(level)
    return found


BASELINES: dict[str, Baseline] = {
    "lsi": lsi,
    "lsi_no_depth": lsi_no_depth,
    "lsi_regressed": lsi_regressed,
    "pca": pca,
    "spectral": spectral,
    "spectral_regressed": spectral_regressed,
    "peakvi": peakvi,
}
USUAL = ("lsi", "lsi_no_depth", "lsi_regressed", "pca")  # those of seconds that need no other library


def missing(name: str) -> str | None:
    """Why a baseline cannot be run here, with the way out; None where it can."""
    library = _LIBRARIES.get(name)
    if library is None or find_spec(library) is not None:
        return None
    return f"{_PACKAGES[library]} is not installed: pip install 'expresser[embed]'"


def regressed(
    x: Float[np.ndarray, "cells dim"], log_depth: Float[np.ndarray, " cells"], batch: Int64[np.ndarray, " cells"] | None
) -> Float32[np.ndarray, "cells dim"]:
    """What is left of each dimension after least squares on log depth and batch (one-hot): means of batches become 0.

    Types of different depth, or of different frequency in batches, lose part of what sets them apart: that is the price.
    """
    codes = np.zeros(len(x), np.int64) if batch is None else np.unique(batch, return_inverse=True)[1]
    design = np.zeros((len(x), int(codes.max()) + 2))
    design[np.arange(len(x)), codes] = 1.0
    design[:, -1] = log_depth - np.mean(log_depth)
    values = x.astype(np.float64)
    return (values - design @ np.linalg.lstsq(design, values, rcond=None)[0]).astype(np.float32)


def _log_depth(matrix: sparse.csr_matrix, depth: Float[np.ndarray, " cells"] | None) -> Float64[np.ndarray, " cells"]:
    """ln of `depth`, or of the open peaks where none is given."""
    found = np.diff(matrix.indptr) if depth is None else depth
    if len(found) != matrix.shape[0] or not np.all(found > 0):
        raise InputError(
            f"embedding baselines: {matrix.shape[0]:,} cells have {len(found):,} depths, {int(np.sum(found > 0)):,} of them above 0. "
            "Give each cell its depth: open peaks or fragments, not their logarithm."
        )
    return np.log(found.astype(np.float64))


def _check(matrix: sparse.csr_matrix) -> None:
    if empty := int((np.diff(matrix.indptr) == 0).sum()):
        raise InputError(
            f"embedding baselines: {empty:,} of {matrix.shape[0]:,} cells have no open peak. Leave them out."
        )
    if not (matrix.data == 1).all():
        raise InputError(
            f"embedding baselines: the matrix has values other than 1 (greatest {matrix.data.max():g}). Give which peaks are "
            "open: ones, and nothing stored for closed ones."
        )


def _need(name: str) -> None:
    if (why := missing(name)) is not None:
        raise InputError(f"embedding baseline {name!r}: {why}.")
