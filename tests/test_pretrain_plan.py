"""What `--plan` foretells is what the run shows: of mixtures and length windows too."""

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.simulate import simulate_rna
from pretrain import packing, plan, start
from pretrain.config import Recipe
from pretrain.data import split, training_stream, weighed_groups
from pretrain.throughput import cost


@pytest.fixture(scope="module")
def two_depths(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """90 shallow cells (source `anndata`) and 15 deep ones (`anndata (2)`)."""
    parts = [
        simulate_rna(n_cells=n, n_genes=80, n_types=2, n_modules=3, median_depth=depth, seed=depth)
        for n, depth in ((90, 25), (15, 2000))
    ]
    parts[1].obs_names = [f"deep{i}" for i in range(15)]
    return build_corpus(parts, tmp_path_factory.mktemp("depths") / "corpus", min_genes=3)


def asked(recipe: Recipe, **data: object) -> Recipe:
    return replace(recipe, data=replace(recipe.data, **data))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"source_weights": "equal"},
        {"source_weights": "anndata=1,anndata (2)=3", "length_window": 5},
        {"length_window": 4, "max_tokens": 300},
    ],
)
def test_a_plan_foretells_the_cells_that_the_run_shows(
    tiny_recipe: Recipe, two_depths: Corpus, data: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = asked(tiny_recipe, epochs=6.0, max_steps=None, **data)
    recipe = replace(recipe, model=replace(recipe.model, max_genes=60))
    parts = split(two_depths, recipe.data, recipe.seed)
    stream = training_stream(two_depths, parts.train, recipe)
    n_steps = start.Plan.of(recipe, parts.train.size).total_steps
    steps = [stream.step(8 * number) for number in range(n_steps)]
    shown = np.concatenate([step.lengths for step in steps]).astype(np.int64)

    lengths = np.minimum(two_depths.lengths[parts.train].astype(np.int64), 60)
    config = start.build_model(recipe, 80).config
    groups = weighed_groups(two_depths, parts.train, recipe.data)
    found = plan.Forecast.of(recipe, config, lengths, groups)
    actual = cost(config, shown, 4, 0.25)
    assert found.tokens == pytest.approx(actual.tokens, rel=0.01)
    assert found.targets == pytest.approx(actual.targets, rel=0.01)
    assert found.flops == pytest.approx(actual.flops, rel=0.01)
    # Not what all cells alike would cost.
    if groups is not None:
        assert found.tokens > 1.3 * lengths.mean() * shown.size
        often = np.bincount(np.concatenate([m.rows for s in steps for m in s.micro]), minlength=two_depths.n_cells)
        for number, name in enumerate(groups.names):
            seen = often[parts.train[groups.of_cell == number]]
            assert abs(seen.mean() - found.passes[name]) < 0.2
    padded = [len(m.rows) * int(np.minimum(two_depths.lengths[m.rows], 60).max()) for s in steps for m in s.micro]
    assert max(padded) <= found.most_tokens <= max(300, 8 * 60)
    if recipe.data.length_window:
        assert max(padded) > 0.85 * found.most_tokens

    # A machine whose seconds go by the FLOPs of what it is given: the hours come out whatever steps were timed.
    clock = [0.0]
    give = packing.to_cells

    def working(batch, *rest, **options):
        shows = np.minimum(batch.lengths, 60).astype(np.int64)
        clock[0] += 1e-3 * cost(config, shows, 4, 0.25).flops
        return give(batch, *rest, **options)

    monkeypatch.setattr(packing, "to_cells", working)
    monkeypatch.setattr(plan, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    text = plan.describe(asked(recipe, minutes=1e-3 * actual.flops / 120), two_depths.path)
    hours = float(re.search(r"time +([\d.]+) hours", text)[1])
    assert hours == pytest.approx(1e-3 * actual.flops / 3600, rel=0.01, abs=0.06)
    assert re.search(r"data\.minutes ends it after [\d.e+]+ minutes, (49|50|51)% of its steps", text)
    assert f"at most {found.most_tokens:,} tokens at once" in text
    if groups is not None:
        assert (
            f"anndata (2): {groups.shares[1]:.1%} of the cells shown, {found.passes['anndata (2)']:.2f} passes" in text
        )
    else:
        assert "mixture" not in text


def test_of_a_window_short_middling_and_long_steps_are_timed(tiny_recipe: Recipe, two_depths: Corpus) -> None:
    recipe = asked(tiny_recipe, length_window=7)
    stream = training_stream(two_depths, split(two_depths, recipe.data, 0).train, recipe)
    tokens = [int(stream.step(start).lengths.sum()) for start in plan.timed_positions(stream, 7)]
    window = sorted(int(stream.step(8 * number).lengths.sum()) for number in range(7))
    assert tokens == [window[1], window[3], window[5]]
    assert plan.timed_positions(stream, 1) == [0, 8, 16]
