"""Exactly once, in one order: whatever reads, however many processes and workers there are, wherever a run was stopped."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from torch.utils.data import DataLoader

from expresser.corpus.build import build_corpus
from expresser.corpus.mixing import Mixture
from expresser.corpus.order import CellOrder
from expresser.corpus.store import Corpus, CountBatch
from expresser.corpus.stream import Step, Stream
from expresser.corpus.windows import LengthWindows
from expresser.errors import InputError
from expresser.genes import GeneVocab
from pretrain.agreement import agree, by_main

N_CELLS, N_GENES = 61, 30


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Cells of 2 to 30 genes, two sources, three shards."""
    rng = np.random.default_rng(2)
    counts = np.zeros((N_CELLS, N_GENES), np.float32)
    for i, n in enumerate(rng.integers(2, N_GENES + 1, N_CELLS)):
        counts[i, rng.permutation(N_GENES)[:n]] = rng.integers(1, 9, n)
    ids = [f"ENSG{i:011d}" for i in range(N_GENES)]
    var = pd.DataFrame(index=ids)
    parts = [
        anndata.AnnData(sparse.csr_matrix(x), obs=pd.DataFrame(index=[f"{name}{i}" for i in range(len(x))]), var=var)
        for name, x in (("a", counts[:50]), ("b", counts[50:]))
    ]
    folder = tmp_path_factory.mktemp("processes") / "corpus"
    return build_corpus(
        parts, folder, genes=GeneVocab.from_names(ids), min_genes=1, shard_rows=25, batch_rows=6
    )  # fmt: skip


def stream(corpus: Corpus, n: int = N_CELLS, **changed) -> Stream:
    """Over the first `n` rows; `mixed` by source."""
    if changed.pop("mixed", False):
        changed["order"] = Mixture(corpus.source_ids[:n], np.array([1.0, 2.0]), 4)
    options = {"seed": 4, "global_batch": 8, "max_tokens": 80, "max_genes": 25} | changed
    return Stream(corpus, np.arange(n, dtype=np.uint32), **options)


def shown(step: Step) -> list[tuple[int, int]]:
    """(row, epoch) in the order of the micro-batches."""
    return [pair for m in step.micro for pair in zip(m.rows.tolist(), m.epoch.tolist())]


def alike(a: tuple[Step, Sequence[CountBatch]], b: tuple[Step, Sequence[CountBatch]]) -> None:
    assert shown(a[0]) == shown(b[0])
    np.testing.assert_array_equal(a[0].lengths, b[0].lengths)
    assert len(a[1]) == len(b[1]) == len(a[0].micro)
    for x, y in zip(a[1], b[1], strict=True):
        for name in ("cell_id", "source", "total", "lengths", "genes", "counts"):
            np.testing.assert_array_equal(getattr(x, name), getattr(y, name))


KINDS = [{}, {"mixed": True}, {"length_window": 3}, {"mixed": True, "length_window": 2}]


# Exactly once


@pytest.mark.parametrize("world", [1, 2, 3])
@settings(deadline=None, max_examples=15)
@given(data=st.data())
def test_each_cell_once_an_epoch_and_in_one_order_for_any_reading_depth(
    corpus: Corpus, world: int, data: st.DataObject
) -> None:
    n = data.draw(st.integers(max(1, world), N_CELLS), "cells")
    batch = data.draw(st.integers(world, 40), "global batch")
    ahead = data.draw(st.integers(1, 6), "ahead")
    stop = 2 * n
    parts = [stream(corpus, n, global_batch=batch, rank=rank, world=world) for rank in range(world)]
    read = [list(part.steps(0, stop, ahead=ahead)) for part in parts]
    seen = Counter(pair for part in read for step, _ in part for pair in shown(step))
    assert all(seen[(row, epoch)] == 1 for row in range(n) for epoch in range(2))
    assert max(seen.values()) == 1
    one = stream(corpus, n, global_batch=batch)
    for number, at in enumerate(range(0, stop, batch)):
        together = sorted(pair for part in read for pair in shown(part[number][0]))
        assert together == sorted(shown(one.step(at)))
        for part, steps in zip(parts, read):
            alike(steps[number], part[at])


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_workers_of_a_dataloader_deliver_what_the_thread_reads(corpus: Corpus, world: int, workers: int) -> None:
    for rank in range(world):
        part = stream(corpus, global_batch=9, rank=rank, world=world)
        loader = DataLoader(part, sampler=range(0, 130, 9), batch_size=None, num_workers=workers)
        delivered = list(loader)
        assert len(delivered) == 15
        for a, b in zip(delivered, part.steps(0, 130), strict=True):
            alike(a, b)


# Going on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("world", [1, 2])
def test_resumed_at_every_step_of_an_epoch(corpus: Corpus, world: int, kind: dict) -> None:
    stop = 88
    whole = list(stream(corpus, rank=world - 1, world=world, **kind).steps(0, stop))
    assert len(whole) == 11
    for at in range(11):
        rest = list(stream(corpus, rank=world - 1, world=world, **kind).steps(8 * at, stop))
        for a, b in zip(whole[at:], rest, strict=True):
            alike(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_four_processes_then_two_then_three(corpus: Corpus, kind: dict) -> None:
    def seen(world: int, start: int, stop: int) -> Counter:
        parts = [stream(corpus, rank=rank, world=world, **kind) for rank in range(world)]
        return Counter(pair for part in parts for step, _ in part.steps(start, stop) for pair in shown(step))

    elastic = seen(4, 0, 40) + seen(2, 40, 72) + seen(3, 72, 3 * 64)
    assert elastic == seen(1, 0, 3 * 64)
    assert max(elastic.values()) == 1
    if "mixed" not in kind:
        assert all(elastic[(row, epoch)] == 1 for row in range(N_CELLS) for epoch in range(3))


def test_a_place_far_in_the_stream_is_reached_at_once(corpus: Corpus) -> None:
    far = 8 * 10**12
    for kind in KINDS:
        step = stream(corpus, **kind).step(far - far % (8 * 6))
        assert len(shown(step)) == 8


def test_an_order_takes_four_bytes_a_cell_and_two_epochs() -> None:
    order = CellOrder(1000, 0)
    for start in range(0, 10_000, 700):
        order.take(start, 700)
    assert sum(kept.nbytes for kept in order._orders.values()) == 2 * 4 * 1000


def test_what_goes_wrong_while_reading_ahead_is_raised_where_it_is_used(corpus: Corpus, monkeypatch) -> None:
    def broken(rows: np.ndarray) -> CountBatch:
        raise InputError("the disk is gone")

    monkeypatch.setattr(corpus, "read", broken)
    with pytest.raises(InputError, match="the disk is gone"):
        next(stream(corpus).steps(0, 800))


# Windows of lengths


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 50), st.integers(1, 12), st.integers(2, 6), st.integers(0, 9))
def test_windows_hold_the_same_cells_sorted_by_length(n: int, batch: int, window: int, seed: int) -> None:
    lengths = np.random.default_rng(seed).integers(1, 20, n)
    order = CellOrder(n, seed)
    windows = LengthWindows(order, lambda cells: lengths[cells], window=window, global_batch=batch, seed=seed)
    for number in (0, 1, 5):
        start = number * window * batch
        dealt = [windows.take(start + place * batch, batch) for place in range(window)]
        pairs = Counter(pair for cells, epochs in dealt for pair in zip(cells.tolist(), epochs.tolist()))
        assert pairs == Counter(zip(*(part.tolist() for part in order.take(start, window * batch))))
        spans = sorted((lengths[cells].min(), lengths[cells].max()) for cells, _ in dealt)
        assert all(a[1] <= b[0] for a, b in pairwise(spans))


def test_windows_pad_less_where_processes_have_few_cells(corpus: Corpus) -> None:
    def padded(window: int) -> float:
        parts = [stream(corpus, rank=r, world=2, max_tokens=10**6, length_window=window) for r in range(2)]
        shown_, slots = 0, 0
        for part in parts:
            for at in range(0, 8 * 40, 8):
                for micro in part.step(at).micro:
                    lengths = np.minimum(corpus.lengths[micro.rows], 25)
                    shown_, slots = shown_ + lengths.sum(), slots + lengths.max() * len(lengths)
        return slots / shown_

    assert padded(8) < 1.15 < 1.3 < padded(1)


def test_a_window_is_not_entered_with_another_global_batch(corpus: Corpus) -> None:
    with pytest.raises(InputError, match=r"position 20 is no start of a global batch of 8: .*data\.length_window"):
        stream(corpus, length_window=3).step(20)


# Agreement


class Gathering(Accelerator):
    """As much of an Accelerator as agreeing takes: `others` are the rows that other processes bring."""

    device, process_index = torch.device("cpu"), 0

    def __init__(self, *others: torch.Tensor) -> None:
        self.others, self.mine = others, torch.empty(0)

    def gather(self, mine: torch.Tensor) -> torch.Tensor:
        self.mine = mine
        return torch.cat([mine, *self.others])


def digests(**facts: object) -> torch.Tensor:
    one = Gathering()
    agree(one, facts)
    return one.mine


def test_processes_that_begin_alike_go_on() -> None:
    facts = {"corpus_id": "c0ffee", "cells_seen": 24}
    agree(Gathering(digests(**facts), digests(**facts)), facts)


def test_processes_that_begin_differently_are_named() -> None:
    facts = {"corpus_id": "c0ffee", "seed": 1, "cells_seen": 24}
    others = (digests(**facts), digests(**facts | {"cells_seen": 16}), digests(**facts | {"corpus_id": "beef"}))
    message = r"the 4 processes do not begin alike: corpus_id, cells_seen of process 2, 3 is not that of process 0 "
    with pytest.raises(
        InputError, match=message + r"\(process 0 has corpus_id c0ffee, cells_seen 24\)\. Give all nodes"
    ):
        agree(Gathering(*others), facts)


def test_what_the_main_process_refuses_is_refused() -> None:
    """Alone; with several processes, in tests/test_strategy.py."""
    by_main(Accelerator(cpu=True), lambda: None)

    def refuse() -> None:
        raise InputError("no")

    with pytest.raises(InputError, match=r"^no$"):
        by_main(Accelerator(cpu=True), refuse)
