"""Laws of the stream of training cells: every cell once an epoch, whoever reads it, wherever a run was stopped."""

from collections import Counter

import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.corpus.stream import CellOrder, MicroBatch, Step, Stream, cut, permutation
from expresser.errors import InputError
from expresser.genes import GeneVocab

N_CELLS, N_GENES = 83, 40


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Cells of 3 to 40 genes."""
    rng = np.random.default_rng(5)
    counts = np.zeros((N_CELLS, N_GENES), np.float32)
    for i, n in enumerate(rng.integers(3, N_GENES + 1, N_CELLS)):
        counts[i, rng.permutation(N_GENES)[:n]] = rng.integers(1, 9, n)
    ids = [f"ENSG{i:011d}" for i in range(N_GENES)]
    adata = anndata.AnnData(
        sparse.csr_matrix(counts),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(N_CELLS)]),
        var=pd.DataFrame(index=ids),
    )
    folder = tmp_path_factory.mktemp("stream") / "corpus"
    return build_corpus([adata], folder, genes=GeneVocab.from_names(ids), min_genes=1)


def stream(corpus: Corpus, **changed) -> Stream:
    rows = np.arange(corpus.n_cells)[3:]  # a selection, so that rows and positions in it differ
    options = {"seed": 4, "global_batch": 12, "max_tokens": 100, "max_genes": 30} | changed
    return Stream(corpus, rows, **options)


def cells(step: Step) -> Counter:
    """(row, epoch) of a step's micro-batches, how often each."""
    return Counter(pair for m in step.micro for pair in zip(m.rows.tolist(), m.epoch.tolist()))


# Order


@given(st.integers(0, 300), st.lists(st.integers(-(2**70), 2**70), max_size=3))
@settings(deadline=None)
def test_a_permutation_is_one(n, key):
    order = permutation(n, *key)
    assert sorted(order.tolist()) == list(range(n))
    assert np.array_equal(order, permutation(n, *key))


def test_permutations_are_pinned():
    # Made by the first release. Another order would change every run's cells: a resumed run would repeat some and miss others.
    assert permutation(10, 0, 0).tolist() == [4, 8, 0, 1, 7, 6, 2, 5, 3, 9]
    assert permutation(10, 7, 3).tolist() == [9, 6, 2, 3, 8, 4, 7, 0, 5, 1]


def test_permutations_of_other_keys_are_unrelated():
    n = 2000
    orders = [permutation(n, *key) for key in ((0, 0), (0, 1), (1, 0), (1,), ())]
    for i, a in enumerate(orders):
        for b in orders[:i]:
            assert (a == b).sum() < 10  # one is expected
            assert abs(np.corrcoef(a, b)[0, 1]) < 0.1


@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.integers(1, 90))
@settings(deadline=None, max_examples=60)
def test_each_epoch_visits_each_cell_once_for_any_global_batch(n, seed, global_batch):
    order = CellOrder(n, seed)
    seen: Counter = Counter()
    for start in range(0, 3 * n, global_batch):
        taken, epochs = order.take(start, global_batch)
        seen.update(zip(taken.tolist(), epochs.tolist()))
    assert all(seen[(cell, epoch)] == 1 for cell in range(n) for epoch in range(3))
    assert max(seen.values()) == 1


@given(st.integers(1, 30), st.integers(0, 99), st.integers(0, 200), st.integers(1, 70), st.integers(0, 200))
@settings(deadline=None, max_examples=60)
def test_the_order_is_a_function_of_seed_and_position_alone(n, seed, start, count, before):
    used = CellOrder(n, seed)
    used.take(before, 17)  # whatever was asked earlier, behind or ahead
    for a, b in zip(used.take(start, count), CellOrder(n, seed).take(start, count)):
        assert np.array_equal(a, b)
    one_by_one = [int(CellOrder(n, seed).take(start + i, 1)[0][0]) for i in range(min(count, 5))]
    assert used.take(start, count)[0][:5].tolist() == one_by_one


# Steps


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("global_batch", [12, 13, 100])
def test_processes_share_out_the_step_of_one(corpus, world, global_batch):
    one = stream(corpus, global_batch=global_batch)
    several = [stream(corpus, global_batch=global_batch, rank=r, world=world) for r in range(world)]
    for cells_seen in range(0, 5 * global_batch, global_batch):
        whole, parts = one.step(cells_seen), [s.step(cells_seen) for s in several]
        assert sum((cells(p) for p in parts), Counter()) == cells(whole)
        assert cells(whole).total() == global_batch
        assert all(np.array_equal(p.lengths, whole.lengths) for p in parts)
        shares = [cells(p).total() for p in parts]
        assert max(shares) - min(shares) <= 1


def test_processes_get_about_the_same_work(corpus):
    for cells_seen in range(0, 240, 24):
        work = [
            sum(int(np.minimum(corpus.lengths[m.rows], 30).sum()) for m in s.step(cells_seen).micro)
            for s in (stream(corpus, global_batch=24, rank=r, world=2) for r in range(2))
        ]
        assert abs(work[0] - work[1]) <= 30  # one cell's worth


def test_a_step_tells_the_lengths_of_its_own_cells(corpus):
    step = stream(corpus).step(36)
    shown = [min(30, int(n)) for m in step.micro for n in corpus.lengths[m.rows]]
    assert sorted(step.lengths.tolist()) == sorted(shown)


@pytest.mark.parametrize("world", [1, 2])
def test_going_on_from_any_step_gives_the_steps_of_the_whole_run(corpus, world):
    def steps(first: int) -> list[tuple[Step, list]]:
        return list(stream(corpus, rank=world - 1, world=world).steps(first, 20 * 12))

    whole = steps(0)
    assert len(whole) == 20
    for at in (0, 1, 6, 7, 13, 19):
        rest = steps(at * 12)
        assert len(rest) == 20 - at
        for (a, read_a), (b, read_b) in zip(whole[at:], rest):
            assert np.array_equal(a.lengths, b.lengths)
            assert len(a.micro) == len(b.micro) == len(read_a) == len(read_b)
            for x, y, cx, cy in zip(a.micro, b.micro, read_a, read_b):
                assert np.array_equal(x.rows, y.rows)
                assert np.array_equal(x.epoch, y.epoch)
                assert np.array_equal(cx.genes, cy.genes)
                assert np.array_equal(cx.counts, cy.counts)


def test_what_is_read_are_the_cells_of_the_step(corpus):
    for step, read in stream(corpus).steps(0, 60):
        for micro, batch in zip(step.micro, read, strict=True):
            assert np.array_equal(batch.cell_id, corpus.cell_ids[micro.rows])
            assert np.array_equal(batch.lengths, corpus.lengths[micro.rows])


@pytest.mark.parametrize("change", [(4, 2, 12, 12), (1, 3, 12, 7), (2, 1, 10, 80)])
def test_no_cell_is_lost_or_repeated_when_the_run_goes_on_with_other_processes_or_batches(corpus, change):
    first_world, then_world, first_batch, then_batch = change
    n = corpus.n_cells - 3
    stop = 3 * first_batch

    def seen(world: int, batch: int, start: int, end: int) -> Counter:
        parts = [stream(corpus, rank=r, world=world, global_batch=batch) for r in range(world)]
        return sum((cells(s.step(at)) for s in parts for at in range(start, end, batch)), Counter())

    all_seen = seen(first_world, first_batch, 0, stop) + seen(then_world, then_batch, stop, 3 * n)
    rows = range(3, corpus.n_cells)
    assert all(all_seen[(row, epoch)] == 1 for row in rows for epoch in range(3))
    assert max(all_seen.values()) == 1


def test_an_epoch_is_shuffled_anew_and_by_the_seed(corpus):
    def rows(s: Stream, at: int) -> list[int]:
        return sorted(r for m in s.step(at).micro for r in m.rows.tolist())

    n = corpus.n_cells - 3
    assert rows(stream(corpus), 0) != rows(stream(corpus), n)
    assert rows(stream(corpus), 0) != rows(stream(corpus, seed=5), 0)


def test_a_batch_smaller_than_the_processes_is_refused(corpus):
    with pytest.raises(InputError, match="3 cells cannot be shared by 4 processes"):
        stream(corpus, global_batch=3, world=4)


def test_steps_left_early_leave_no_thread_waiting(corpus):
    import threading

    before = threading.active_count()
    steps = stream(corpus).steps(0, 12 * 50)
    next(steps)
    steps.close()
    assert threading.active_count() == before


# Micro-batches


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 200))
@settings(deadline=None)
def test_micro_batches_hold_every_cell_once_within_the_token_budget(lengths, max_tokens):
    rows, epoch = np.arange(len(lengths)) + 1000, np.arange(len(lengths)) % 3
    sizes = np.array(lengths)
    batches = cut(rows, epoch, sizes, max_tokens)
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == rows.tolist()
    for batch in batches:
        assert isinstance(batch, MicroBatch)
        here = sizes[batch.rows - 1000]
        assert np.array_equal(batch.epoch, epoch[batch.rows - 1000])
        assert len(here) == 1 or len(here) * here.max() <= max_tokens
    longest = [sizes[b.rows - 1000].max() for b in batches]
    assert longest == sorted(longest, reverse=True)


def test_nothing_cut_is_nothing():
    none = np.array([], dtype=np.int64)
    assert cut(none, none, none, 10) == []


def test_the_corpus_of_these_tests_has_cells_on_both_sides_of_the_limit(corpus):
    assert corpus.lengths.min() < 20
    assert corpus.lengths.max() > 30
