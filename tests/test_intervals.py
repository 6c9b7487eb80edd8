"""Intervals of scores: what they are by definition, and that they hold what they promise."""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit
from sklearn import metrics

from expresser.errors import InputError
from expresser.metrics.influence import influence
from expresser.metrics.intervals import (
    group_jackknife,
    holm,
    jackknife_interval,
    jackknife_test,
    paired_test,
    resampled_interval,
)

SCORES = {
    "auroc": metrics.roc_auc_score,
    "auprc": metrics.average_precision_score,
    "accuracy": lambda y, p, sample_weight=None: metrics.accuracy_score(y, p >= 0.5, sample_weight=sample_weight),
    "balanced_accuracy": lambda y, p, sample_weight=None: metrics.recall_score(
        y, p >= 0.5, average="macro", sample_weight=sample_weight
    ),
    "brier": metrics.brier_score_loss,
}


def test_of_one_run_of_folds_the_corrected_variance_is_nadeau_and_bengios():
    values = np.array([0.71, 0.64, 0.80, 0.69, 0.75])
    found = resampled_interval(values, test_share=0.2)
    wide = stats.t.ppf(0.975, 4) * np.sqrt((1 / 5 + 1 / 4) * values.var(ddof=1))
    assert (found.value, found.low, found.high) == pytest.approx(
        (values.mean(), values.mean() - wide, values.mean() + wide)
    )


def test_more_repeats_do_not_make_an_interval_as_small_as_one_likes():
    rng = np.random.default_rng(0)
    few, many = (rng.normal(0.7, 0.05, size) for size in (10, 1000))
    for values in (few, many):
        found = resampled_interval(values, test_share=0.2)
        plain = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
        assert found.high - found.low > plain.high - plain.low
    found = resampled_interval(many, test_share=0.2)
    assert found.high - found.low > 2 * 1.9 * 0.5 * 0.045  # test / train stays, however many folds


def test_a_paired_test_is_that_of_the_differences_and_its_p_agrees_with_its_interval():
    rng = np.random.default_rng(1)
    for gap in (0.0, 0.01, 0.03, 0.2):
        a = rng.normal(0.7, 0.05, 20)
        b = a - gap + rng.normal(0, 0.02, 20)
        found, whole = paired_test(a, b, test_share=0.1), resampled_interval(a - b, test_share=0.1)
        assert (found.difference, found.low, found.high) == (whole.value, whole.low, whole.high)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert paired_test(b, a, test_share=0.1).p == pytest.approx(found.p)


def test_what_cannot_be_said_is_nan_and_equal_methods_are_equal():
    assert np.isnan(resampled_interval([], test_share=0.2).value)
    one = resampled_interval([0.5, np.nan], test_share=0.2)
    assert one.value == 0.5
    assert np.isnan(one.low)
    assert paired_test([0.5, 0.7], [0.5, 0.7], test_share=0.2).p == 1.0
    with pytest.raises(InputError, match="test_share"):
        resampled_interval([0.5, 0.6], test_share=1.0)
    with pytest.raises(InputError, match="same folds"):
        paired_test([0.5, 0.6], [0.5], test_share=0.5)


def test_holm_against_its_textbook_example_and_its_laws():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.01, np.nan, 0.9, 0.8]), [0.03, np.nan, 1.0, 1.0])
    p = np.random.default_rng(2).random(12) ** 3
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
    turn = np.random.default_rng(3).permutation(12)
    np.testing.assert_array_equal(holm(p[turn]), adjusted[turn])
    assert holm([]).shape == (0,)


@pytest.mark.parametrize("name", SCORES)
def test_influence_is_the_derivative_of_scikit_learns_weighted_score(name):
    rng = np.random.default_rng(4)
    truth = rng.integers(0, 2, 60)
    prediction = np.round(expit(rng.normal(size=60) + truth), 1)  # with ties
    found = influence(name, truth, prediction)
    assert found.value == pytest.approx(SCORES[name](truth, prediction))
    assert found.of_item.sum() == pytest.approx(0, abs=1e-12)
    for item in range(60):
        more, less = np.ones((2, 60))
        more[item] += 1e-4
        less[item] -= 1e-4
        slope = SCORES[name](truth, prediction, sample_weight=more) - SCORES[name](
            truth, prediction, sample_weight=less
        )
        assert found.of_item[item] == pytest.approx(slope / 2e-4, abs=1e-7)


def test_influence_of_what_is_undefined():
    p = np.array([0.2, 0.7, 0.9])
    assert np.isnan(influence("auroc", np.ones(3, dtype=int), p).value)
    assert np.isnan(influence("auprc", np.zeros(3, dtype=int), p).value)
    assert np.isnan(influence("balanced_accuracy", np.zeros(3, dtype=int), p).value)
    assert influence("accuracy", np.zeros(3, dtype=int), p).value == pytest.approx(1 / 3)
    assert np.isnan(influence("accuracy", np.zeros(0, dtype=int), np.zeros(0)).value)
    undefined = jackknife_interval(
        influence("auroc", np.ones(3, dtype=int), p), np.array([0, 1, 2]), np.array([3, 4, 5])
    )
    assert np.isnan(undefined.low)


def test_pairs_without_common_genes_have_the_interval_of_independent_pairs():
    rng = np.random.default_rng(5)
    truth = rng.integers(0, 2, 400)
    prediction = rng.normal(size=400) + truth
    score = influence("auroc", truth, prediction)
    found = jackknife_interval(score, np.arange(400), np.arange(400, 800))
    places = [stats.rankdata(prediction)[truth == one] - stats.rankdata(prediction[truth == one]) for one in (0, 1)]
    n0, n1 = len(places[0]), len(places[1])
    delong = np.sqrt((places[1] / n0).var(ddof=1) / n1 + (places[0] / n1).var(ddof=1) / n0)
    assert found.high - found.value == pytest.approx(1.96 * delong, rel=0.03)


def test_leaving_a_gene_out_moves_the_score_as_its_pairs_say():
    """The sum of the influences of a gene's pairs is what the score loses without them, to first order."""
    rng = np.random.default_rng(6)
    a, b = np.triu_indices(60, 1)
    truth = rng.integers(0, 2, len(a))
    prediction = rng.normal(size=len(a)) + truth
    score = influence("auroc", truth, prediction)
    touched = [(a == gene) | (b == gene) for gene in range(60)]
    moved = [score.value - influence("auroc", truth[~t], prediction[~t]).value for t in touched]
    said = [score.of_item[t].sum() / (1 - t.mean()) for t in touched]
    np.testing.assert_allclose(moved, said, atol=4e-4)
    assert np.corrcoef(moved, said)[0, 1] > 0.99


def test_no_interval_where_all_pairs_share_a_gene_and_none_between_equal_methods():
    truth, prediction = np.array([0, 1, 0, 1]), np.array([0.1, 0.8, 0.4, 0.3])
    score = influence("auroc", truth, prediction)
    star = jackknife_interval(score, np.zeros(4, dtype=int), np.arange(1, 5))
    assert star.value == 0.75
    assert np.isnan(star.low)
    assert np.isnan(star.high)
    a, b = np.array([0, 1, 2, 3]), np.array([1, 2, 3, 4])
    same = jackknife_test(score, score, a, b)
    assert (same.difference, same.low, same.high, same.p) == (0.0, 0.0, 0.0, 1.0)


def test_order_of_pairs_and_of_genes_in_a_pair_does_not_matter():
    rng = np.random.default_rng(7)
    a, b, truth, prediction = drawn(rng, genes=40, pairs=200, spread=1.0)
    whole = jackknife_interval(influence("auroc", truth, prediction), a, b)
    turn = rng.permutation(len(a))
    other = jackknife_interval(influence("auroc", truth[turn], prediction[turn]), b[turn] + 7, a[turn] + 7)
    assert (other.low, other.high) == pytest.approx((whole.low, whole.high))


def drawn(rng, *, genes, pairs, spread):
    """Distinct pairs of genes of uneven degree; each gene has an effect on labels and another, related, on scores."""
    weight = rng.gamma(spread, size=genes)
    ends = rng.choice(genes, (2, 3 * pairs), p=weight / weight.sum())
    ends = np.unique(np.sort(ends[:, ends[0] != ends[1]], axis=0), axis=1)
    a, b = ends[:, rng.permutation(ends.shape[1])[:pairs]]
    effect = rng.normal(size=genes)
    guess = 0.5 * effect + 0.8 * rng.normal(size=genes)
    truth = (rng.random(len(a)) < expit(effect[a] + effect[b])).astype(np.int64)
    return a, b, truth, guess[a] + guess[b] + rng.normal(size=len(a))


def test_leaving_out_groups_of_one_is_the_t_test_of_a_mean():
    x = np.random.default_rng(3).normal(0.4, size=20)
    found = group_jackknife(float(x.mean()), (x.sum() - x) / 19)
    plain = stats.ttest_1samp(x, 0.0)
    assert (found.low, found.high) == pytest.approx(tuple(plain.confidence_interval(0.95)))
    assert found.p == pytest.approx(plain.pvalue)
    assert group_jackknife(0.0, np.zeros(3)).p == 1.0
    for whole, without in ((0.1, [0.1, 0.2]), (np.nan, [0.1, 0.2, 0.3]), (0.1, [0.1, np.nan, 0.3])):
        assert np.isnan(group_jackknife(whole, np.array(without)).low)


@pytest.mark.slow
@pytest.mark.parametrize(("genes", "pairs", "spread"), [(60, 500, 5.0), (200, 2000, 0.3), (500, 1000, 5.0)])
def test_intervals_over_genes_hold_the_truth_as_often_as_they_say(genes, pairs, spread):
    rng = np.random.default_rng(8)
    found, naive = [], []
    for _ in range(300):
        a, b, truth, prediction = drawn(rng, genes=genes, pairs=pairs, spread=spread)
        score = influence("auroc", truth, prediction)
        found.append(jackknife_interval(score, a, b))
        naive.append(1.96 * np.sqrt((score.of_item**2).sum()))
    true = np.mean([one.value for one in found])
    held = np.mean([one.low <= true <= one.high for one in found])
    assert 0.915 <= held <= 0.985
    if spread < 1:
        assert np.mean([abs(one.value - true) <= wide for one, wide in zip(found, naive)]) < 0.8


@pytest.mark.slow
def test_two_methods_that_are_as_good_differ_as_seldom_as_the_test_says():
    rng = np.random.default_rng(9)
    p = []
    for _ in range(300):
        a, b, truth, prediction = drawn(rng, genes=100, pairs=800, spread=1.0)
        effect = rng.normal(size=(2, 100)) * 0.5
        one, other = (influence("auroc", truth, prediction + shift[a] + shift[b]) for shift in effect)
        p.append(jackknife_test(one, other, a, b).p)
    assert 0.02 <= np.mean(np.array(p) < 0.05) <= 0.085
