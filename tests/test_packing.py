"""Laws of micro-batches: however a step is cut or filled, it shows the same cells, asks the same genes and has the same loss."""

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.corpus.budgets import PackedTokens, PaddedTokens, Shape, StaticShapes, dealt
from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus, CountBatch
from expresser.corpus.stream import Stream, cut, most_micro_batches
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.model.cells import n_single
from expresser.model.fixed import FixedRagged, settle, true_positions
from expresser.model.fixed_views import masked_range
from pretrain.compiled import compiles
from pretrain.config import Recipe
from pretrain.data import training_stream
from pretrain.objective import squared_error
from pretrain.packing import Batch, Packing, filled
from pretrain.start import build_model

N_GENES, MOST = 60, 40
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Cells of 1 to 60 genes, every fifth of a single one."""
    rng = np.random.default_rng(3)
    counts = np.zeros((75, N_GENES), np.float32)
    for i, n in enumerate(rng.integers(2, N_GENES + 1, len(counts))):
        counts[i, rng.permutation(N_GENES)[: 1 if i % 5 == 0 else n]] = rng.integers(1, 9, 1 if i % 5 == 0 else n)
    ids = [f"ENSG{i:011d}" for i in range(N_GENES)]
    data = anndata.AnnData(sparse.csr_matrix(counts), var=pd.DataFrame(index=ids))
    folder = tmp_path_factory.mktemp("packing") / "corpus"
    return build_corpus([data], folder, genes=GeneVocab.from_names(ids), min_genes=1)


def recipe_of(base: Recipe, *, masking: str = "all_folds", share: float = 0.25, **model: object) -> Recipe:
    return replace(
        base,
        model=replace(base.model, **{"max_genes": MOST, "value_input": "bin_residual", **model}),
        objective=replace(base.objective, masking=masking, masked_share=share),
        data=replace(base.data, global_batch=15, max_tokens=150),
    )


PACKINGS = {
    "padded": {"pads": True},
    "packed": {"pads": False},
    "static, padded": {"static": True, "pads": True},
    "static, packed": {"static": True, "pads": False},
}


def random_model(recipe: Recipe) -> torch.nn.Module:
    model, generator = build_model(recipe, N_GENES), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def step_of(corpus: Corpus, recipe: Recipe, at: int, how: str, rank: int = 0, world: int = 1) -> list[Batch]:
    packing = Packing.of(recipe, CPU, world=world, **PACKINGS[how])
    stream = training_stream(corpus, np.arange(corpus.n_cells), recipe, rank=rank, world=world, budget=packing.budget)
    what, counts = stream[at]
    return [packing.batch(read, micro.epoch) for micro, read in zip(what.micro, counts, strict=True)]


# Cutting


BUDGETS = [
    PaddedTokens(90),
    PackedTokens(90),
    PackedTokens(1),
    StaticShapes.of(90, MOST, cells=15, pads=True),
    StaticShapes.of(90, MOST, cells=15, pads=False),
]


@given(st.lists(st.integers(1, MOST), min_size=1, max_size=40), st.sampled_from(BUDGETS))
def test_a_cut_deals_every_cell_once_within_the_budget(lengths: list[int], budget) -> None:
    n = np.array(lengths)
    batches = cut(np.arange(n.size), np.arange(n.size) % 3, n, budget)
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == list(range(n.size))
    for batch in batches:
        np.testing.assert_array_equal(batch.epoch, batch.rows % 3)
        shown = n[batch.rows]
        if isinstance(budget, PaddedTokens):
            assert shown.size * shown.max() <= 90
        elif isinstance(budget, PackedTokens):
            assert shown.sum() <= budget.max_tokens or shown.size == 1
        else:
            assert budget.shape(shown) in budget.shapes
    if isinstance(budget, PackedTokens):  # each takes as many as it can
        for a, b in pairwise(batches):
            assert n[a.rows].sum() + n[b.rows[0]] > budget.max_tokens


def test_a_number_is_a_budget_of_padded_tokens() -> None:
    n = np.array([5, 9, 2, 2, 7])
    rows = [b.rows.tolist() for b in cut(n, n, n, 18)]
    assert rows == [[9, 7], [5, 2, 2]] == [b.rows.tolist() for b in cut(n, n, n, PaddedTokens(18))]
    assert [b.rows.tolist() for b in cut(n, n, n, PackedTokens(16))] == [[9, 7], [5, 2, 2]]
    assert [b.rows.tolist() for b in cut(n, n, n, PackedTokens(15))] == [[9], [7, 5, 2], [2]]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_no_budget_changes_which_cells_a_step_shows(corpus: Corpus, budget, world: int) -> None:
    def stream(rank: int, **more) -> Stream:
        options = {"seed": 4, "global_batch": 15, "max_tokens": 77, "max_genes": MOST} | more
        return Stream(corpus, np.arange(corpus.n_cells, dtype=np.uint32), rank=rank, **options)

    for at in (0, 30, 90):
        whole = stream(0).step(at)
        shares = [stream(rank, world=world, budget=budget).step(at) for rank in range(world)]
        seen = Counter(
            pair for step in shares for m in step.micro for pair in zip(m.rows.tolist(), m.epoch.tolist(), strict=True)
        )
        assert seen == Counter(
            pair for m in whole.micro for pair in zip(m.rows.tolist(), m.epoch.tolist(), strict=True)
        )
        again = stream(0, world=world, budget=budget)  # from anywhere, having read nothing else: resuming
        assert [m.rows.tolist() for m in again.step(at).micro] == [m.rows.tolist() for m in shares[0].micro]
        assert most_micro_batches(whole.lengths, world, budget) == max(len(step.micro) for step in shares)


# Filling


@given(st.integers(4, 50), st.integers(0, 400), st.integers(0, 30), st.lists(st.integers(1, 50), max_size=60))
def test_what_a_shape_holds_it_can_be_filled_to(longest: int, more: int, spare: int, lengths: list[int]) -> None:
    tokens = longest + 2 + more
    shape = Shape(tokens, 1 - (-tokens // longest) + spare, longest)
    n = -np.sort(-np.array([min(length, longest) for length in lengths] or [1]))
    held = shape.holds(n)
    assert 1 <= held <= n.size
    assert all(shape.holds(n[:k]) == k for k in range(1, held))  # fewer fit as well
    kept = n[:held][n[:held] > 1]
    rows = np.concatenate([kept, shape.filler(kept)])
    assert rows.size == shape.rows
    assert rows.sum() == shape.tokens
    assert rows.max() <= longest
    assert (rows != 1).all()
    assert (np.diff((rows == 0).astype(int)) >= 0).all()  # empty rows come last


def test_impossible_shapes_are_refused() -> None:
    for numbers in ((8, 10, 3), (11, 10, 10), (40, 4, 10)):
        with pytest.raises(ValueError, match="must be"):
            Shape(*numbers)


@given(st.integers(1, 3000), st.integers(2, 300), st.integers(1, 300), st.booleans())
def test_shapes_are_few_and_stay_within_the_tokens_asked_for(
    max_tokens: int, max_genes: int, cells: int, pads: bool
) -> None:
    shapes = StaticShapes.of(max_tokens, max_genes, cells=cells, pads=pads)
    assert len(shapes.shapes) <= (12 if pads else 8)
    assert len(set(shapes.shapes)) == len(shapes.shapes)
    longest = max(shape.longest for shape in shapes.shapes)
    assert longest == max(4, max_genes)
    assert max(shape.tokens for shape in shapes.shapes) <= max(max_tokens, longest + 9)


@given(st.integers(0, 200), st.integers(1, 30))
def test_a_deal_is_even_and_whole(total: int, parts: int) -> None:
    shares = dealt(total, parts)
    assert shares.sum() == total
    assert shares.size == parts
    assert shares.max() - shares.min() <= 1


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_positions_are_found_without_counting(flags: list[bool]) -> None:
    tensor = torch.tensor(flags)
    assert true_positions(tensor, sum(flags)).tolist() == torch.nonzero(tensor).squeeze(1).tolist()


def test_settled_rows_have_worked_out_everything() -> None:
    rows = FixedRagged(torch.tensor([3, 0, 2]), total=5, bound=4)
    before = set(vars(rows))
    settle(rows)
    assert set(vars(rows)) - before >= {"n_rows", "n_entries", "longest", "row", "offset", "starts"}
    assert (rows.n_rows, rows.n_entries, rows.longest) == (3, 5, 4)


# Batches


@pytest.mark.parametrize("masking", ["all_folds", "single"])
@pytest.mark.parametrize("share", [0.25, 0.1, 0.5])
@pytest.mark.parametrize("pads", [True, False])
def test_static_batches_of_one_shape_have_one_size(tiny_recipe, corpus, masking, share, pads) -> None:
    recipe = recipe_of(tiny_recipe, masking=masking, share=share)
    how = "static, padded" if pads else "static, packed"
    sizes: dict[tuple[int, ...], set] = {}
    for at in range(0, 150, 15):
        for batch in step_of(corpus, recipe, at, how):
            cells, views = batch.cells, batch.views
            rows = (cells.rows, views.query_rows, views.context_rows)
            for one, entries in zip(rows, (cells.genes, views.query, views.context), strict=True):
                assert isinstance(one, FixedRagged)
                assert int(one.lengths.sum()) == one.total == entries.numel()
                assert int(one.lengths.max()) <= one.bound
                assert int(one.lengths.min()) >= 0
            # A query without anything to see would be no number.
            assert (views.context_rows.lengths[views.query_rows.lengths > 0] > 0).all()
            key = (cells.rows.total, cells.rows.n_rows, cells.rows.bound)
            tensors = (cells.genes, cells.total, views.query, views.context, views.cell, batch.truth, batch.weights)
            shape = tuple(t.numel() for t in tensors) + tuple((r.total, r.bound, r.n_rows) for r in rows)
            sizes.setdefault(key, set()).add(shape)
    assert len(sizes) >= 2
    assert all(len(found) == 1 for found in sizes.values())


def answers(model: torch.nn.Module, batches: list[Batch]) -> dict[tuple[int, int], tuple[float, float]]:
    """(cell key, gene) -> prediction and truth, of the queries that count."""
    found = {}
    for batch in batches:
        cells, views = batch.cells, batch.views
        prediction = model(cells, views).prediction.detach()
        assert torch.isfinite(prediction).all()
        keys, genes = cells.key[cells.rows.row[views.query]].tolist(), cells.genes[views.query].tolist()
        counts = torch.ones_like(prediction) if batch.weights is None else batch.weights
        assert int(counts.sum()) == batch.n_targets
        for i in torch.nonzero(counts).squeeze(1).tolist():
            assert (keys[i], genes[i]) not in found
            found[keys[i], genes[i]] = (float(prediction[i]), float(batch.truth[i]))
    return found


@pytest.mark.parametrize("masking", ["all_folds", "single"])
@pytest.mark.parametrize("head", ["paper", "additive", "truncated"])
def test_alone_is_packed_is_filled(tiny_recipe, corpus, masking, head) -> None:
    value_input = "bin" if head == "paper" else "bin_residual"
    scale = "cell" if head == "paper" else "observed"
    recipe = recipe_of(tiny_recipe, masking=masking, head=head, value_input=value_input, cell_scale=scale)
    model = random_model(recipe).eval()
    one_by_one = replace(recipe, data=replace(recipe.data, max_tokens=1))
    for at in (0, 15, 60):
        alone = answers(model, step_of(corpus, one_by_one, at, "padded"))
        assert len(alone) > 50
        for how in PACKINGS:
            found = answers(model, step_of(corpus, recipe, at, how))
            assert found.keys() == alone.keys()
            for key, (prediction, truth) in found.items():
                assert prediction == pytest.approx(alone[key][0], abs=2e-4, rel=2e-4), how
                assert truth == alone[key][1]


@pytest.mark.parametrize("masking", ["all_folds", "single"])
@pytest.mark.parametrize("architecture", ["expresser", "without_decoder"])
def test_loss_and_gradients_of_a_step_do_not_depend_on_the_cut(tiny_recipe, corpus, masking, architecture) -> None:
    value_input = "bin_residual" if architecture == "expresser" else "bin"
    head = "truncated" if architecture == "expresser" else "query"
    recipe = recipe_of(tiny_recipe, masking=masking, architecture=architecture, head=head, value_input=value_input)
    results = {}
    for how in PACKINGS:
        for world in (1, 2):
            model, loss, n_cells, n_targets = random_model(recipe), 0.0, 0, 0
            for batch in (b for rank in range(world) for b in step_of(corpus, recipe, 15, how, rank, world)):
                total = batch.sum(squared_error(model(batch.cells, batch.views).prediction, truth=batch.truth))
                total.backward()
                loss, n_cells, n_targets = (
                    loss + float(total.detach()),
                    n_cells + batch.n_cells,
                    n_targets + batch.n_targets,
                )
            assert n_cells == 15
            gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
            results[how, world] = (loss, n_targets, gradient)
    loss, n_targets, gradient = results["padded", 1]
    for other_loss, other_targets, other_gradient in results.values():
        assert other_targets == n_targets
        assert other_loss == pytest.approx(loss, rel=1e-5)
        assert float((other_gradient - gradient).norm() / gradient.norm()) < 1e-5


def test_cells_of_one_gene_are_left_out_of_a_filled_batch(tiny_recipe) -> None:
    lengths = np.array([5, 1, 1])
    counts = CountBatch(
        cell_id=np.arange(3, dtype=np.uint32),
        source=np.zeros(3, np.uint16),
        total=np.array([9, 2, 3], np.uint32),
        lengths=lengths,
        genes=np.array([1, 2, 3, 4, 5, 7, 8], np.uint16),
        counts=np.array([1, 2, 3, 2, 1, 2, 3], np.uint16),
    )
    shape = Shape(24, 5, 8)
    full, epoch = filled(counts, np.array([4, 4, 4]), shape, 8)
    assert full.lengths.tolist() == [5, 7, 6, 6, 0]
    assert full.genes[:5].tolist() == [1, 2, 3, 4, 5]
    assert epoch.tolist() == [4, 0, 0, 0, 0]
    for masking in ("all_folds", "single"):
        recipe = recipe_of(tiny_recipe, masking=masking)
        packing = Packing.of(recipe, CPU, static=True)
        only = packing.batch(counts.slice(1, 3), np.array([4, 4]))
        assert (only.n_cells, only.n_targets, float(only.weights.sum())) == (2, 0, 0.0)
        model = random_model(recipe)
        total = only.sum(squared_error(model(only.cells, only.views).prediction, truth=only.truth))
        total.backward()
        assert float(total.detach()) == 0.0
        assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)


def test_the_largest_cells_draw_the_subset_that_they_draw_alone(tiny_recipe, corpus) -> None:
    recipe = recipe_of(tiny_recipe)
    for at in (0, 15):
        shown: dict[str, dict[int, tuple]] = {}
        for how in ("padded", "static, packed"):
            of_cell = shown.setdefault(how, {})
            for batch in step_of(corpus, recipe, at, how):
                cells, asked = batch.cells, batch.views.query[: batch.n_targets]
                for i in cells.rows.row[asked].unique().tolist():
                    inside = cells.rows.row == i
                    of_cell[int(cells.key[i])] = (
                        cells.genes[inside].tolist(),
                        cells.values[inside].tolist(),
                        float(cells.rest_max[i]),
                    )
        assert shown["padded"] == shown["static, packed"]
        assert any(rest > 0 for _, _, rest in shown["padded"].values())


@given(st.lists(st.integers(2, 50), min_size=1, max_size=30), st.floats(0.01, 0.5))
@settings(max_examples=60)
def test_masked_genes_of_a_shape_lie_between_their_bounds(lengths: list[int], share: float) -> None:
    n = np.array(lengths)
    fewest, most = masked_range(Shape(int(n.sum()) + 60, n.size + 9, 52), share)
    rest = Shape(int(n.sum()) + 60, n.size + 9, 52).filler(n)
    rows = torch.from_numpy(np.concatenate([n, rest[rest > 0]]))
    assert fewest <= int(n_single(rows, share).sum()) <= most


# Compiling


def compiled_steps(corpus: Corpus, backend: str, masking: str) -> dict:
    """In a process whose annotations are not checked: the checks do not compile."""
    script = Path(__file__).with_name("compiled_steps.py")
    done = subprocess.run(
        [sys.executable, str(script), str(corpus.path), backend, masking],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("backend", "masking"),
    [
        ("aot_eager", "all_folds"),
        ("aot_eager", "single"),
        pytest.param(
            "inductor",
            "all_folds",
            marks=[pytest.mark.slow, pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++")],
        ),
    ],
)
def test_a_compiled_model_is_the_plain_one_in_one_graph_a_shape(corpus, backend, masking) -> None:
    found = compiled_steps(corpus, backend, masking)
    np.testing.assert_allclose(found["losses"]["compiled"], found["losses"]["plain"], rtol=1e-5)
    assert found["gradient_difference"] < 1e-5 * found["gradient"]
    assert found["shapes"] >= 2
    assert found["graphs"] == found["shapes"]  # six steps, and nothing compiled anew but for a new shape
    assert found["breaks"] == 0
    assert found["dynamic_is_plain"]
    assert found["names"]


def test_what_cannot_be_compiled_is_refused(tiny_recipe) -> None:
    assert not compiles(tiny_recipe)
    asked = replace(tiny_recipe, compile=True)
    assert compiles(asked)
    for changed, words in (
        ({"model": replace(tiny_recipe.model, dropout=0.1)}, r"model\.dropout is 0\.1.*must be 0"),
        ({"implementation": "naive"}, "implementation is naive.*packed"),
        ({"strategy": "zero3"}, "strategy is zero3"),
    ):
        with pytest.raises(InputError, match=words):
            compiles(replace(asked, **changed))
