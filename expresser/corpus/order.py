"""The order of cells: an endless, seeded stream of positions, each a cell by a function of (seed, position) alone."""

import numpy as np
from jaxtyping import Int64, UInt32

from expresser.corpus.shuffle import splitmix64


def permutation(n: int, *key: int) -> Int64[np.ndarray, " n"]:
    """A random order of ``0 … n-1`` that is a function of its key alone: the same for every library version and machine."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = splitmix64(state + np.uint64(part % 2**64))
    # No two keys are equal (splitmix64 is a bijection), so any sort gives this order. Six million cells: 0.6 CPU-seconds.
    return np.argsort(splitmix64(state + np.arange(n, dtype=np.uint64)))


class CellOrder:
    """Position ``p`` of an endless stream is cell ``order(p // n)[p mod n]``: each cell exactly once an epoch.

    Parameters
    ----------
    key
        Beside the seed, for several orders in one run.
    """

    def __init__(self, n_cells: int, seed: int, *key: int) -> None:
        self.n_cells, self._key = n_cells, (seed, *key)
        self._orders: dict[int, UInt32[np.ndarray, " n"]] = {}

    def _order(self, epoch: int) -> UInt32[np.ndarray, " n"]:
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self.n_cells, *self._key, epoch).astype(np.uint32)
            # Two are kept, four bytes a cell: a batch may cross from one epoch into the next.
            self._orders = dict([*self._orders.items()][-1:]) | {epoch: order}
        return order

    def at(
        self, positions: Int64[np.ndarray, " positions"]
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        """The cell at each position, and its epoch."""
        epochs, places = np.divmod(positions, self.n_cells)
        cells = np.empty_like(positions)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            cells[here] = self._order(int(epoch))[places[here]]
        return cells, epochs

    def take(self, start: int, count: int) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
        """Cells at positions ``start … start+count-1`` and the epoch of each. Epochs run into each other: no dropped tail."""
        return self.at(np.arange(start, start + count, dtype=np.int64))
