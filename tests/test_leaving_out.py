"""Intervals of differences between methods: what they are by definition, and that they hold what they promise."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from expresser.metrics.accessibility import peak_scores
from translate.leaving_out import GROUPS, LeaveOut, interval
from translate.truth import Truth

CELLS, FEATURES = 90, 12


def added(truth: np.ndarray, guess: np.ndarray, to: str, *, cuts: tuple[int, ...] = (), seed: int = 0) -> LeaveOut:
    """All features, block by block."""
    whole = Truth(to, sparse.csr_matrix(truth), pd.RangeIndex(truth.shape[1]))
    found = LeaveOut.of(whole, seed=seed)
    for first, last in zip((0, *cuts), (*cuts, truth.shape[1])):
        part = slice(first, last)
        if to == "atac":
            found.add_opened(part, whole.by_feature[:, part], guess[:, part])
        else:
            found.add_values(part, truth[:, part], guess[:, part])
    return found


def values(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.gamma(1.0, 1.0, (CELLS, FEATURES)).astype(np.float32)
    return truth, (truth + rng.normal(0, 2, truth.shape)).astype(np.float32)


def test_correlations_without_a_group_are_those_of_the_other_cells():
    truth, guess = values()
    truth[:, 0], guess[:, 1] = 0, 0.3  # not seen; predicted by one number
    truth[:, 2] = 0
    truth[5, 2] = 1  # constant without one group
    found = added(truth, guess, "rna")
    for number, mean in enumerate(found.means()["pearson"]):
        kept = found.group != number
        r = [
            np.nan if np.ptp(t) == 0 else 0.0 if np.ptp(p) == 0 else stats.pearsonr(t, p).statistic
            for t, p in zip(truth[kept].T, guess[kept].T)
        ]
        assert mean == pytest.approx(np.nanmean(r), abs=1e-6)
    assert sorted(np.unique(found.group, return_counts=True)[1]) == [4] * 10 + [5] * 10


def test_ranks_without_a_group_are_those_of_the_other_cells():
    rng = np.random.default_rng(1)
    guess = rng.random((CELLS, FEATURES)).astype(np.float32)
    opened = (rng.random(guess.shape) < guess * 0.3).astype(np.float32)
    opened[:, 3] = 0
    found = added(opened, guess, "atac")
    for number in range(GROUPS):
        kept = found.group != number
        plain = peak_scores(sparse.csc_matrix(opened[kept]), guess[kept])
        assert found.means()["auroc"][number] == pytest.approx(np.nanmean(plain.auroc))
        assert found.means()["auprnorm"][number] == pytest.approx(np.nanmean(plain.auprnorm))


@pytest.mark.parametrize("to", ["rna", "atac"])
def test_blocks_do_not_matter_and_groups_are_those_of_the_seed(to):
    truth, guess = values(2)
    truth = (truth > 1.5).astype(np.float32) if to == "atac" else truth
    whole, cut = added(truth, guess, to), added(truth, guess, to, cuts=(1, 7))
    for name, means in whole.means().items():
        np.testing.assert_allclose(cut.means()[name], means, atol=1e-12)
    np.testing.assert_array_equal(whole.group, added(truth, guess, to).group)
    assert (whole.group != added(truth, guess, to, seed=1).group).any()


def test_of_many_features_some_are_looked_at():
    truth = Truth("atac", sparse.csr_matrix((5000, 300_000), dtype=np.float32), pd.RangeIndex(300_000))
    found = LeaveOut.of(truth, seed=0)
    assert 1000 < len(found.features) <= 2000
    assert (np.diff(found.features) > 0).all()
    assert found.features[-1] > 200_000
    few = LeaveOut.of(Truth("rna", sparse.csr_matrix((7, 3), dtype=np.float32), pd.RangeIndex(3)), seed=0)
    assert sorted(few.group) == list(range(7))  # as many groups as cells
    np.testing.assert_array_equal(few.features, [0, 1, 2])


def test_the_interval_of_a_mean_is_students():
    """Of a plain mean over cells, without its groups of one, the jackknife is the textbook interval."""
    x = np.random.default_rng(3).normal(size=GROUPS)
    without = {"s": (x.sum() - x) / (GROUPS - 1)}
    found = interval(float(x.mean()), without, {"s": np.zeros(GROUPS)}, "s")
    assert found is not None
    plain = stats.ttest_1samp(x, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((plain.low, plain.high))


def test_no_interval_where_nothing_can_be_said():
    fine, short, broken = np.arange(5.0), np.arange(2.0), np.array([1.0, np.nan, 2.0])
    assert interval(0.1, {"s": fine}, {}, "s") is None
    assert interval(0.1, {"s": short}, {"s": short}, "s") is None
    assert interval(0.1, {"s": broken}, {"s": np.zeros(3)}, "s") is None
    assert interval(float("nan"), {"s": fine}, {"s": fine}, "s") is None
    same = interval(0.0, {"s": fine}, {"s": fine}, "s")
    assert same is not None
    assert (same.low, same.high) == (0.0, 0.0)


def test_intervals_hold_the_truth_as_often_as_they_say_and_an_accident_shared_by_all_genes_is_none():
    """A useless prediction, one direction over the cells in all 200 genes, which share a factor of the cells.

    The true difference to the mean (r = 0) is 0. Taking genes as independent finds it in nearly every draw of cells.
    """
    rng = np.random.default_rng(4)
    draws, held, fooled = 200, 0, 0
    for _ in range(draws):
        factor, axis = rng.normal(size=(2, 100, 1))
        truth = (factor + rng.normal(size=(100, 200))).astype(np.float32)
        guess = np.broadcast_to(axis.astype(np.float32), truth.shape).copy()
        without = added(truth, guess, "protein").means()
        r = stats.pearsonr(truth, axis).statistic
        found = interval(float(np.mean(r)), without, {"pearson": np.zeros(GROUPS)}, "pearson")
        assert found is not None
        held += found.low <= 0 <= found.high
        fooled += stats.ttest_1samp(r, 0.0).pvalue < 0.05
    assert 0.90 < held / draws < 0.985
    assert fooled / draws > 0.7
