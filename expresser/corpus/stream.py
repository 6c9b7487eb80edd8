"""Which cells come when: an endless, seeded order in which one integer, ``cells_seen``, is the whole state of a run's data."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from expresser.corpus.shuffle import splitmix64
from expresser.corpus.store import Corpus, CountBatch
from expresser.errors import InputError


def permutation(n: int, *key: int) -> Int64[np.ndarray, " n"]:
    """A random order of ``0 … n-1`` that is a function of its key alone: the same for every library version and machine."""
    state = np.zeros(1, dtype=np.uint64)
    for part in key:
        state = splitmix64(state + np.uint64(part % 2**64))
    return np.argsort(splitmix64(state + np.arange(n, dtype=np.uint64)), kind="stable")


class CellOrder:
    """Position ``p`` of an endless stream is cell ``order(p // n)[p mod n]``: each cell exactly once an epoch."""

    def __init__(self, n_cells: int, seed: int) -> None:
        self.n_cells, self.seed = n_cells, seed
        self._orders: dict[int, Int64[np.ndarray, " n"]] = {}

    def _order(self, epoch: int) -> Int64[np.ndarray, " n"]:
        if epoch not in self._orders:
            # A global batch touches two epochs at most where it is smaller than the corpus; older orders are never asked again.
            self._orders = {e: o for e, o in self._orders.items() if e >= epoch - 1}
            self._orders[epoch] = permutation(self.n_cells, self.seed, epoch)
        return self._orders[epoch]

    def take(self, start: int, count: int) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
        """Cells at positions ``start … start+count-1`` and the epoch of each. Epochs run into each other: no dropped tail."""
        positions = np.arange(start, start + count, dtype=np.int64)
        epochs = positions // self.n_cells
        cells = np.empty(count, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            cells[here] = self._order(int(epoch))[positions[here] % self.n_cells]
        return cells, epochs


@dataclass(frozen=True)
class MicroBatch:
    """Cells that go through the model together.

    Attributes
    ----------
    rows
        Corpus rows.
    epoch
        Epoch of each: part of the key of the cell's randomness.
    """

    rows: Int64[np.ndarray, " cells"]
    epoch: Int64[np.ndarray, " cells"]


def cut(
    rows: Int64[np.ndarray, " cells"],
    epoch: Int64[np.ndarray, " cells"],
    lengths: Int64[np.ndarray, " cells"],
    max_tokens: int,
) -> list[MicroBatch]:
    """Cells of like length together, as many as fit ``max_tokens`` when padded to the longest; one at least."""
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < order.size:
        fits = max(1, max_tokens // max(1, int(lengths[order[start]])))
        chosen = order[start : start + fits]
        batches.append(MicroBatch(rows=rows[chosen], epoch=epoch[chosen]))
        start += fits
    return batches


@dataclass(frozen=True)
class Step:
    """One optimiser step as one process sees it.

    Attributes
    ----------
    lengths
        Genes shown of each cell of the *global* batch: every process knows the number of targets without asking.
    micro
        This process's share, cut to the token budget.
    """

    lengths: Int64[np.ndarray, " global_batch"]
    micro: list[MicroBatch]


class Stream:
    """Global batches of a selection of corpus rows.

    The cells of a step depend on (seed, cells_seen, global_batch) alone; processes deal them out by length, so that all have
    about the same work. Any number of processes can go on from the ``cells_seen`` of any other.

    Parameters
    ----------
    corpus, rows
        The selection, for example the training cells.
    global_batch
        Cells a step, over all processes.
    max_tokens, max_genes
        A micro-batch holds at most ``max_tokens`` padded tokens; a cell shows at most ``max_genes``.
    rank, world
        This process and how many there are.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Int64[np.ndarray, " selected"],
        *,
        seed: int,
        global_batch: int,
        max_tokens: int,
        max_genes: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if global_batch < world:
            raise InputError(
                f"a global batch of {global_batch} cells cannot be shared by {world} processes. "
                "Raise data.global_batch or start fewer processes."
            )
        self.corpus, self.rows = corpus, rows
        self.global_batch, self.max_tokens = global_batch, max_tokens
        self.rank, self.world = rank, world
        self.order = CellOrder(rows.size, seed)
        self._lengths = np.minimum(corpus.lengths[rows].astype(np.int64), max_genes)

    def step(self, cells_seen: int) -> Step:
        """The step that starts at position ``cells_seen``."""
        chosen, epoch = self.order.take(cells_seen, self.global_batch)
        lengths = self._lengths[chosen]
        by_length = np.argsort(-lengths, kind="stable")
        mine = by_length[self.rank :: self.world]
        return Step(lengths=lengths, micro=cut(self.rows[chosen[mine]], epoch[mine], lengths[mine], self.max_tokens))

    def steps(self, start: int, stop: int, *, ahead: int = 2) -> Iterator[tuple[Step, list[CountBatch]]]:
        """Steps from position ``start`` while less than ``stop``, each with its cells read by a thread that works ahead."""
        positions = range(start, stop, self.global_batch)
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending = [reader.submit(self._read, at) for at in positions[:ahead]]
            for number in range(len(positions)):
                if number + ahead < len(positions):
                    pending.append(reader.submit(self._read, positions[number + ahead]))
                yield pending.pop(0).result()

    def _read(self, cells_seen: int) -> tuple[Step, list[CountBatch]]:
        step = self.step(cells_seen)
        return step, [self.corpus.read(batch.rows) for batch in step.micro]
