"""What an embedding still knows of depth and batch: nearest-neighbour mutual information, in nats, of each dimension."""

import numpy as np
from jaxtyping import Bool, Float, Float64, Shaped
from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

from expresser.errors import InputError

CELLS = 10_000  # at most; of more, so many are drawn: the estimate's standard error is then some 0.01 nats
NEIGHBOURS = 3


def depth_information(
    z: Float[np.ndarray, "cells dim"],
    log_depth: Float[np.ndarray, " values"],
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
    cells: int = CELLS,
) -> Float64[np.ndarray, " dim"]:
    """Mutual information of each dimension with log depth (Kraskov's first estimator, scikit-learn's), nats, never below 0.

    Of more than `cells` cells, as many are drawn by `seed`. A dimension that is constant knows nothing: 0. It does not
    change with any rescaling of a dimension, and for a Gaussian pair of correlation ρ it is -½ ln(1 - ρ²).

    Relations: dimensions are looked at one by one, so what only several of them know together is not seen, and a rotation
    of the embedding changes the mean: compare embeddings of as many dimensions.
    """
    rows, varies = _prepare(z, log_depth, cells, seed)
    found = np.zeros(z.shape[1])
    depth = log_depth[rows].astype(np.float64)
    if varies.any() and depth.max() > depth.min():
        values = z[rows][:, varies].astype(np.float64)
        found[varies] = mutual_info_regression(values, depth, n_neighbors=k, random_state=seed)
    return found


def batch_information(
    z: Float[np.ndarray, "cells dim"],
    batch: Shaped[np.ndarray, " values"],
    *,
    k: int = NEIGHBOURS,
    seed: int = 0,
    cells: int = CELLS,
) -> Float64[np.ndarray, " dim"]:
    """Mutual information of each dimension with the batch (Ross's estimator, scikit-learn's), nats, never below 0.

    At most the entropy of the batch, ln 2 for two of equal size. Batches of one cell among those drawn are left out; 0 where
    there is one batch of the others, or none. The rest as `depth_information`.
    """
    names, codes = np.unique(batch, return_inverse=True)
    rows, varies = _prepare(z, codes.astype(np.float64), cells, seed)
    rows = rows[np.bincount(codes[rows], minlength=len(names))[codes[rows]] > 1]
    found = np.zeros(z.shape[1])
    if varies.any() and len(np.unique(codes[rows])) > 1:
        values = z[rows][:, varies].astype(np.float64)
        found[varies] = mutual_info_classif(values, codes[rows], n_neighbors=k, random_state=seed)
    return found


def mi_depth(
    z: Float[np.ndarray, "cells dim"], log_depth: Float[np.ndarray, " values"], k: int = NEIGHBOURS, seed: int = 0
) -> float:
    """I(z, depth) as the dissertation has it: the mean over dimensions of `depth_information`."""
    return float(depth_information(z, log_depth, k=k, seed=seed).mean())


def mi_batch(
    z: Float[np.ndarray, "cells dim"], batch: Shaped[np.ndarray, " values"], k: int = NEIGHBOURS, seed: int = 0
) -> float:
    """I(z, batch): the mean over dimensions of `batch_information`."""
    return float(batch_information(z, batch, k=k, seed=seed).mean())


def _prepare(
    z: Float[np.ndarray, "cells dim"], other: Float[np.ndarray, " values"], cells: int, seed: int
) -> tuple[Shaped[np.ndarray, " rows"], Bool[np.ndarray, " dim"]]:
    """Rows that are looked at, and which dimensions vary among them."""
    if len(other) != len(z) or not z.shape[1] or len(z) < 5:
        raise InputError(
            f"mutual information: an embedding of {len(z):,} cells x {z.shape[1]}, and {len(other):,} values. Give five cells "
            "or more, one value each."
        )
    if not (np.isfinite(z).all() and np.isfinite(other).all()):
        raise InputError("mutual information: some values are not finite. Find out what produced them.")
    rows = np.arange(len(z))
    if len(z) > cells:
        rows = np.sort(np.random.default_rng(seed).choice(len(z), cells, replace=False))
    spread = np.ptp(z[rows], axis=0)
    # Rounding alone: a dimension that the network switched off.
    return rows, spread > 1e-6 * np.maximum(np.abs(z[rows]).max(axis=0), np.finfo(np.float32).tiny)
