"""Whether cells of different batches lie among each other: the batches of each cell's nearest neighbours."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Float64, Shaped
from sklearn.neighbors import NearestNeighbors

from expresser.errors import InputError


@dataclass(frozen=True, eq=False)
class Mixing:
    """Batches among each cell's neighbours; 1 / batches of each is even."""

    batches: tuple[str, ...]
    shares: Float64[np.ndarray, "cells batches"] = field(repr=False)
    """Share of neighbours that each batch would have if all were of one size; rows sum to one."""
    by_chance: float
    """`deviation` of the same neighbours with the batches shuffled among cells: what k neighbours can reach."""

    @property
    def deviation(self) -> float:
        """Mean absolute deviation of shares from even: 0 mixed, 2 (B - 1) / B² (½ of two batches) where none has another's."""
        return float(self.of_cells.mean())

    @property
    def of_cells(self) -> Float64[np.ndarray, " cells"]:
        """`deviation` of each cell."""
        return np.abs(self.shares - 1 / len(self.batches)).mean(axis=1)


def neighbour_mixing(
    z: Float[np.ndarray, "cells dim"], batch: Shaped[np.ndarray, " values"], k: int = 50, *, seed: int = 0
) -> Mixing:
    """Shares of the batches among each cell's `k` nearest other cells (exact, Euclidean), normalised by batch size.

    A batch's count is divided by the cells it has beside the cell itself, so neighbours drawn blindly have even shares on
    average. `seed`: of the shuffle, and of the order in which cells at equal distance are taken.

    Relations: it asks for even mixing everywhere. Where a cell type is in one batch only, or of different frequency in
    batches, the right answer is not even; compare embeddings of the same cells, or take the cells of one type.
    """
    names, codes = np.unique(batch.astype(str), return_inverse=True)
    if len(codes) != len(z) or len(names) < 2 or not 0 < k < len(z):
        raise InputError(
            f"mixing: {len(z):,} cells, {len(codes):,} batch values of {len(names)} batches, {k} neighbours. Give a value a cell, "
            f"two batches or more, and 1 to {len(z) - 1:,} neighbours."
        )
    if not np.isfinite(z).all():
        raise InputError("mixing: the embedding has values that are not finite. Find out what produced them.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(z))
    near = np.empty((len(z), k), dtype=np.int64)
    near[order] = order[NearestNeighbors(n_neighbors=k).fit(z[order]).kneighbors(return_distance=False)]
    shares = _shares(near, codes, len(names))
    shuffled = _shares(near, rng.permutation(codes), len(names))
    return Mixing(tuple(map(str, names)), shares, float(np.abs(shuffled - 1 / len(names)).mean()))


def _shares(
    near: Shaped[np.ndarray, "cells k"], codes: Shaped[np.ndarray, " cells"], n: int
) -> Float64[np.ndarray, "cells batches"]:
    counts = np.stack([(codes[near] == b).sum(axis=1) for b in range(n)], axis=1)
    others = np.bincount(codes, minlength=n) - (codes[:, None] == np.arange(n))
    rate = counts / np.maximum(others, 1)
    return rate / rate.sum(axis=1, keepdims=True)
