"""Laws of a weighted mixture: exact shares, each cell of a group equally often, a function of the position alone."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expresser.corpus.mixing import Mixture, Schedule, weigh
from expresser.corpus.store import Corpus
from expresser.corpus.stream import Stream
from expresser.errors import InputError
from pretrain import start as beginning
from pretrain.config import DataConfig, Recipe
from pretrain.data import mixture, split
from pretrain.loop import pretrain

WEIGHTS = st.lists(st.floats(0.001, 1000), min_size=1, max_size=9)


def shares(weights: list[float]) -> np.ndarray:
    return np.array(weights) / sum(weights)


# Schedule


@settings(deadline=None, max_examples=80)
@given(WEIGHTS, st.integers(1, 3000))
def test_shares_are_exact_up_to_the_depth_of_the_tree(weights: list[float], n: int) -> None:
    schedule = Schedule(shares(weights))
    groups, places = schedule.at(np.arange(n))
    assert groups.max() < len(weights)
    got = np.cumsum(groups[:, None] == np.arange(len(weights)), axis=0)
    exact = np.arange(1, n + 1)[:, None] * shares(weights)
    assert abs(got - exact).max() <= schedule.depth + 1e-3
    # The places of a group are 0, 1, 2 …: none is skipped, none comes twice.
    assert (places == got[np.arange(n), groups] - 1).all()


@settings(deadline=None, max_examples=60)
@given(WEIGHTS, st.integers(0, 2**60), st.integers(1, 200))
def test_any_position_is_known_without_those_before(weights: list[float], start: int, count: int) -> None:
    whole = Schedule(shares(weights)).at(np.arange(start, start + count))
    alone = [Schedule(shares(weights)).at(np.array([p])) for p in range(start, start + min(count, 5))]
    assert whole[0][:5].tolist() == [int(group[0]) for group, _ in alone]
    assert whole[1][:5].tolist() == [int(place[0]) for _, place in alone]
    assert (whole[1] >= 0).all()


def test_an_even_mixture_alternates() -> None:
    assert Schedule(np.array([0.5, 0.5])).at(np.arange(6))[0].tolist() == [1, 0, 1, 0, 1, 0]
    groups = Schedule(np.array([0.25] * 4)).at(np.arange(16))[0].reshape(4, 4)
    assert all(sorted(row) == [0, 1, 2, 3] for row in groups.tolist())


def test_a_rare_group_among_five_hundred_comes_as_often_as_it_should() -> None:
    weights = np.ones(500)
    weights[123] = 1e-3
    n = 2_000_000
    groups, _ = Schedule(weights / weights.sum()).at(np.arange(n))
    got = np.bincount(groups, minlength=500)
    assert abs(got - n * weights / weights.sum()).max() < 9


# Mixture


@st.composite
def mixed(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, int]:
    """Groups of cells in any order, weights, seed."""
    weights = draw(st.lists(st.floats(0.05, 20), min_size=1, max_size=4))
    sizes = [draw(st.integers(1, 25)) for _ in weights]
    groups = np.repeat(np.arange(len(weights)), sizes)
    return (
        np.random.default_rng(draw(st.integers(0, 99))).permutation(groups),
        np.array(weights),
        draw(st.integers(0, 9)),
    )


@settings(deadline=None, max_examples=60)
@given(mixed(), st.integers(1, 400), st.integers(1, 60))
def test_each_cell_of_a_group_is_seen_equally_often(given_, n: int, batch: int) -> None:
    groups, weights, seed = given_
    mixture_ = Mixture(groups, weights, seed)
    seen: Counter = Counter()
    for start in range(0, n, batch):
        cells, epochs = mixture_.take(start, min(batch, n - start))
        seen.update(zip(cells.tolist(), epochs.tolist()))
    assert max(seen.values()) == 1  # never twice in one pass
    times = np.bincount([cell for cell, _ in seen], minlength=len(groups))
    for group in range(len(weights)):
        assert np.ptp(times[groups == group]) <= 1
        assert abs(times[groups == group].sum() - n * weights[group] / weights.sum()) <= 2 + 1e-3


@settings(deadline=None, max_examples=40)
@given(mixed(), st.integers(0, 2000), st.integers(1, 50), st.integers(0, 2000))
def test_a_mixture_is_a_function_of_seed_and_position(given_, start: int, count: int, before: int) -> None:
    groups, weights, seed = given_
    used = Mixture(groups, weights, seed)
    used.take(before, 13)
    for a, b in zip(used.take(start, count), Mixture(groups, weights, seed).take(start, count)):
        np.testing.assert_array_equal(a, b)


def test_passes_through_a_group_differ_and_seeds_do() -> None:
    groups = np.zeros(50, np.int64)
    a = Mixture(groups, np.ones(1), 0)
    first, second = a.take(0, 50)[0], a.take(50, 50)[0]
    assert sorted(first) == sorted(second) == list(range(50))
    assert (first != second).sum() > 40
    assert (first != Mixture(groups, np.ones(1), 1).take(0, 50)[0]).sum() > 40


# Weights


def test_weights_by_rule_and_by_number() -> None:
    sizes = {"atlas": 400, "study": 4, "CD4, naive=x": 1}
    assert weigh("equal", sizes, where="source").tolist() == [1, 1, 1]
    assert weigh("sqrt", sizes, where="source").tolist() == [20, 2, 1]
    assert weigh("atlas=3,study=0.5,*=1", sizes, where="source").tolist() == [3, 0.5, 1]
    assert weigh("*=1,CD4, naive=x=2", sizes, where="source").tolist() == [1, 1, 2]
    assert weigh("atlas=1e-3,*=2", sizes, where="source").tolist() == [1e-3, 2, 2]


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("atlas=1,studi=2,*=1", r"no source is called 'studi'\. They are 'atlas', 'study'"),
        ("atlas=1", r"no weight for 'study', each a source\. Add NAME=WEIGHT for each, or \*=WEIGHT"),
        ("atlas=1,atlas=2,*=1", "'atlas' is given twice, 1 and 2"),
        ("atlas=0,*=1", "'atlas' has weight '0'. Give a number above zero"),
        ("atlas=-1,*=1", "above zero"),
        ("atlas=inf,*=1", "above zero"),
        ("atlas=nan,*=1", "above zero"),
        ("atlas=much,*=1", "'much'"),
        ("even", "must be equal, sqrt, or NAME=WEIGHT"),
        ("", "must be equal, sqrt, or NAME=WEIGHT"),
        ("atlas=1,study", "must be equal, sqrt, or NAME=WEIGHT"),
    ],
)
def test_wrong_weights_are_refused(rule: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        weigh(rule, {"atlas": 400, "study": 4}, where="source")


# In a run


def test_a_run_mixes_by_an_obs_column(tiny_corpus: Path) -> None:
    corpus = Corpus.open(tiny_corpus)
    rows = split(corpus, DataConfig(valid_share=0.1), 0).train
    kinds = corpus.obs["cell_type"].astype(str).to_numpy()[corpus.cell_ids]
    names = sorted(set(kinds))
    config = DataConfig(source_weights=f"{names[0]}=2,*=1", weigh_by="cell_type")
    order = mixture(corpus, rows, config, 0)
    assert order is not None
    stream = Stream(corpus, rows, seed=0, global_batch=16, max_tokens=10**6, max_genes=100, order=order)
    seen = Counter(
        kinds[row] for at in range(0, 400, 16) for micro in stream.step(at).micro for row in micro.rows.tolist()
    )
    assert {name: round(n / 100) for name, n in seen.items()} == {names[0]: 2, names[1]: 1, names[2]: 1}
    assert mixture(corpus, rows, DataConfig(), 0) is None
    for change, message in (
        ({"weigh_by": "tissue", "source_weights": "equal"}, "no obs column 'tissue'; the corpus has source, barcode"),
        (
            {"weigh_by": "cell_type", "source_weights": "T=1,*=1"},
            "no value of obs column 'cell_type' among the training",
        ),
        ({"source_weights": "x=1,*=1"}, "no source among the training cells of .* is called 'x'. They are 'anndata'"),
    ):
        with pytest.raises(InputError, match=message):
            mixture(corpus, rows, DataConfig(**change), 0)


def test_a_column_to_weigh_by_needs_weights() -> None:
    with pytest.raises(InputError, match=r"data\.weigh_by is 'tissue' without weights"):
        Recipe(data=DataConfig(weigh_by="tissue")).check()
    with pytest.raises(InputError, match=r"data\.length_window is 0"):
        Recipe(data=DataConfig(length_window=0)).check()


def test_labels_are_those_of_obs(tiny_corpus: Path) -> None:
    corpus = Corpus.open(tiny_corpus)
    for column in ("source", "cell_type", "donor"):
        names, numbers = corpus.labels(column)
        assert names == sorted(set(corpus.obs[column].astype(str)))
        assert np.array(names)[numbers].tolist() == corpus.obs[column].astype(str).to_numpy()[corpus.cell_ids].tolist()


def test_a_resumed_run_goes_on_with_its_mixture_and_windows(tiny_corpus: Path, tiny_recipe, tmp_path: Path) -> None:
    data = replace(tiny_recipe.data, source_weights="sqrt", weigh_by="cell_type", length_window=3)
    recipe = replace(tiny_recipe, data=replace(data, max_steps=8), save_every=2, eval_every=8)
    whole = pretrain(recipe, tiny_corpus, tmp_path / "whole", quiet=True)
    pretrain(recipe, tiny_corpus, tmp_path / "parts", quiet=True, stop_after=5)
    parts = pretrain(recipe, tiny_corpus, tmp_path / "parts", quiet=True, resume=True)
    assert parts["loss"] == whole["loss"]
    assert parts["valid"] == whole["valid"]
    plain = replace(recipe, data=replace(recipe.data, source_weights=None, weigh_by=None))
    assert pretrain(plain, tiny_corpus, tmp_path / "plain", quiet=True)["loss"] != whole["loss"]


def test_a_run_asks_before_its_first_step(tiny_recipe, tiny_corpus: Path, tmp_path: Path, monkeypatch) -> None:
    told = []
    monkeypatch.setattr(beginning, "agree", lambda accelerator, facts: told.append(facts))
    pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True, stop_after=1)
    assert {"corpus_id", "seed", "cells_seen", "data.global_batch", "optim.lr", "processes"} <= set(told[0])
    assert told[0]["corpus_id"] == Corpus.open(tiny_corpus).corpus_id
