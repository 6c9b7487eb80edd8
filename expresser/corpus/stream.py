"""Which cells a step shows: global batches of a seeded order in which one integer, ``cells_seen``, is a run's whole state of data."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64, Integer

from expresser.corpus.budgets import Budget, PaddedTokens
from expresser.corpus.mixing import Mixture
from expresser.corpus.order import CellOrder, permutation
from expresser.corpus.store import Corpus, CountBatch
from expresser.corpus.windows import LengthWindows
from expresser.errors import InputError

__all__ = ["MicroBatch", "Step", "Stream", "cut", "most_micro_batches", "permutation"]

ANNOUNCED = 1024  # cells of this process whose pages are on their way from the disk at any time: 16 batches of 64


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
    budget: int | Budget,
) -> list[MicroBatch]:
    """Cells of like length together, as many as the budget holds (a number: padded tokens); one at least."""
    budget = PaddedTokens(budget) if isinstance(budget, int) else budget
    order = np.argsort(-lengths, kind="stable")
    batches, start = [], 0
    while start < order.size:
        chosen = order[start:]
        chosen = chosen[: budget.holds(lengths[chosen])]
        batches.append(MicroBatch(rows=rows[chosen], epoch=epoch[chosen]))
        start += chosen.size
    return batches


def most_micro_batches(lengths: Int64[np.ndarray, " global_batch"], world: int, budget: int | Budget) -> int:
    """Micro-batches of the process that has most of them, in a step that shows these numbers of genes."""
    falling = np.sort(lengths.astype(np.int64))[::-1]
    shares = [falling[rank::world] for rank in range(world)]
    return max(len(cut(np.zeros_like(share), np.zeros_like(share), share, budget)) for share in shares)


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

    The cells of a step depend on (order, cells_seen, global_batch) alone; processes deal them out by length, so that all have
    about the same work. Any number of processes can go on from the ``cells_seen`` of any other, at once: nothing is replayed.

    A map of ``cells_seen`` to what is read there, so that workers can read it as well as the thread of :meth:`steps`:
    ``DataLoader(stream, sampler=range(start, stop, stream.global_batch), batch_size=None, num_workers=2)``. Batches then cross a
    process boundary, which costs more than reading them: for when something slow is done to each.

    Parameters
    ----------
    corpus, rows
        The selection, for example the training cells.
    global_batch
        Cells a step, over all processes.
    max_tokens, max_genes
        A micro-batch holds at most ``max_tokens`` padded tokens; a cell shows at most ``max_genes``.
    budget
        Another rule for how many cells a micro-batch holds. Which cells a step shows does not depend on it.
    rank, world
        This process and how many there are.
    order
        Where not every cell is to be seen equally often: a mixture.
    length_window
        Global batches whose cells are sorted by length together, see :class:`expresser.corpus.windows.LengthWindows`; 1: none.
    """

    def __init__(
        self,
        corpus: Corpus,
        rows: Integer[np.ndarray, " selected"],
        *,
        seed: int,
        global_batch: int,
        max_tokens: int,
        max_genes: int,
        rank: int = 0,
        world: int = 1,
        order: Mixture | None = None,
        length_window: int = 1,
        budget: Budget | None = None,
    ) -> None:
        if global_batch < world:
            raise InputError(
                f"a global batch of {global_batch} cells cannot be shared by {world} processes. "
                "Raise data.global_batch or start fewer processes."
            )
        self.corpus, self.rows = corpus, rows
        self.global_batch, self.max_genes = global_batch, max_genes
        self.budget = PaddedTokens(max_tokens) if budget is None else budget
        self.rank, self.world = rank, world
        self.order: CellOrder | Mixture | LengthWindows = CellOrder(rows.size, seed) if order is None else order
        if length_window > 1:
            self.order = LengthWindows(
                self.order, self._lengths, window=length_window, global_batch=global_batch, seed=seed
            )

    def step(self, cells_seen: int) -> Step:
        """The step that starts at position ``cells_seen``."""
        chosen, epoch = self.order.take(cells_seen, self.global_batch)
        rows, lengths = self.rows[chosen].astype(np.int64, copy=False), self._lengths(chosen)
        by_length = np.argsort(-lengths, kind="stable")
        mine = by_length[self.rank :: self.world]
        return Step(lengths=lengths, micro=cut(rows[mine], epoch[mine], lengths[mine], self.budget))

    def steps(self, start: int, stop: int, *, ahead: int = 2) -> Iterator[tuple[Step, list[CountBatch]]]:
        """Steps from position ``start`` while less than ``stop``, each with its cells read.

        One thread reads `ahead` steps before they are asked for, and still earlier tells the system which pages it will want.
        """
        positions = range(start, stop, self.global_batch)
        announced = ahead + -(-ANNOUNCED * self.world // self.global_batch)
        planned: deque[Future[Step]] = deque()
        ready: deque[Future[tuple[Step, list[CountBatch]]]] = deque()
        reader = ThreadPoolExecutor(max_workers=1)
        try:
            for number in range(-announced, len(positions)):
                if number + announced < len(positions):
                    planned.append(reader.submit(self._plan, positions[number + announced]))
                if -ahead <= number < len(positions) - ahead:
                    ready.append(reader.submit(self._read, planned.popleft()))
                if number >= 0:
                    yield ready.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)

    def __getitem__(self, cells_seen: int) -> tuple[Step, list[CountBatch]]:
        step = self.step(cells_seen)
        return step, self._cells(step)

    def _lengths(self, chosen: Int64[np.ndarray, " cells"]) -> Int64[np.ndarray, " cells"]:
        return np.minimum(self.corpus.lengths_of(self.rows[chosen]), self.max_genes)

    def _plan(self, cells_seen: int) -> Step:
        step = self.step(cells_seen)
        for batch in step.micro:
            self.corpus.announce(batch.rows)
        return step

    def _read(self, planned: "Future[Step]") -> tuple[Step, list[CountBatch]]:
        step = planned.result()  # done: one thread works in order
        return step, self._cells(step)

    def _cells(self, step: Step) -> list[CountBatch]:
        # One look-up for all micro-batches, which are then views of it.
        cells = self.corpus.read(np.concatenate([batch.rows for batch in step.micro]))
        ends = np.cumsum([batch.rows.size for batch in step.micro])
        return [cells.slice(int(end - batch.rows.size), int(end)) for end, batch in zip(ends, step.micro)]
