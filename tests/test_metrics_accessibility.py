"""Scores of open chromatin: scikit-learn's answers, and the laws of sums that add."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

from expresser.errors import InputError
from expresser.metrics.accessibility import ScoreHistogram, auroc_by_prevalence, cell_scores, peak_scores


def block(cells: int = 60, peaks: int = 40, seed: int = 0, ties: bool = False, opened: float = 0.2):
    """Truth and a score that knows something of it; with ties, only some values occur."""
    rng = np.random.default_rng(seed)
    truth = rng.random((cells, peaks)) < opened * rng.random(peaks) * 2
    score = (rng.random((cells, peaks)) * 0.8 + 0.2 * truth).astype(np.float32)
    return sparse.csr_matrix(truth.astype(np.float32)), np.round(score, 1) if ties else score


def rounded(score: np.ndarray) -> np.ndarray:
    """What a histogram sees of a score: the first 18 bits."""
    return (score.view(np.uint32) >> 14 << 14).view(np.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("shift", [0.0, -0.5])
def test_flat_scores_are_those_of_sklearn_on_the_rounded_score(ties, shift):
    truth, score = block(ties=ties)
    score = score + np.float32(shift)  # negative scores are in order too
    histogram = ScoreHistogram()
    histogram.update(truth, score)
    y, seen = truth.toarray().ravel(), rounded(score).ravel()
    # Rounding is toward zero: away from the order of magnitude of the spacing it changes nothing.
    assert histogram.auroc() == pytest.approx(roc_auc_score(y, seen), abs=1e-12)
    assert histogram.auprc() == pytest.approx(average_precision_score(y, seen), abs=1e-12)
    assert histogram.auroc() == pytest.approx(roc_auc_score(y, score.ravel()), abs=2e-3)


@pytest.mark.parametrize("ties", [False, True])
def test_scores_of_each_peak_and_cell_are_those_of_sklearn(ties):
    truth, score = block(ties=ties, seed=3)
    y = truth.toarray() > 0
    peaks, cells = peak_scores(truth, score), cell_scores(truth, score)
    for i in range(y.shape[1]):
        if not 0 < y[:, i].sum() < len(y):
            assert np.isnan(peaks.auroc[i])
            continue
        area, precision = roc_auc_score(y[:, i], score[:, i]), average_precision_score(y[:, i], score[:, i])
        prevalence = y[:, i].mean()
        assert peaks.auroc[i] == pytest.approx(area, abs=1e-12)
        assert peaks.average_precision[i] == pytest.approx(precision, abs=1e-12)
        assert peaks.auprnorm[i] == pytest.approx((precision - prevalence) / (1 - prevalence), abs=1e-12)
    np.testing.assert_allclose(cells.auroc, [roc_auc_score(y[c], score[c]) for c in range(len(y))], atol=1e-12)
    np.testing.assert_array_equal(peaks.opened, y.sum(axis=0))


def test_four_cells_by_hand():
    # Peak 0: the open cell is on top. Peak 1: open cells first and last. Peak 2: one score for all. Peaks 3, 4: undefined.
    truth = sparse.csc_matrix(
        np.array([[1, 1, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 1], [0, 1, 0, 0, 1]], np.float32)
    )
    score = np.array([[4, 4, 2, 1, 1], [3, 3, 2, 2, 2], [2, 2, 2, 3, 3], [1, 1, 2, 4, 4]], np.float32)
    found = peak_scores(truth, score)
    np.testing.assert_allclose(found.auroc, [1.0, 0.5, 0.5, np.nan, np.nan])
    np.testing.assert_allclose(found.average_precision, [1.0, (1 + 0.5) / 2, 0.25, np.nan, np.nan])
    np.testing.assert_allclose(found.auprnorm, [1.0, 0.5, 0.0, np.nan, np.nan], atol=1e-12)
    assert found.undefined == 2


def test_stored_zeros_are_closed_and_negative_zero_is_zero():
    truth = sparse.csr_matrix(np.array([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]], np.float32))
    truth.data[0] = 0.0
    score = np.array([[-0.0, 0.0], [0.0, 0.0], [0.0, -0.0]], np.float32)
    np.testing.assert_array_equal(peak_scores(truth, score).auroc, [0.5, 0.5])
    histogram = ScoreHistogram()
    histogram.update(truth, score)
    assert histogram.auroc() == 0.5
    assert histogram.calibration().n.tolist() == [6]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 30), max_size=4), st.lists(st.integers(0, 25), max_size=4), st.integers(0, 5), st.booleans()
)
def test_any_cutting_and_merging_gives_the_same_figures(rows, columns, seed, ties):
    truth, score = block(30, 25, seed, ties)
    whole = ScoreHistogram()
    whole.update(truth, score)
    merged, peaks, cells = ScoreHistogram(), [], []
    rows, columns = ([0, *sorted(set(cut)), size] for cut, size in ((rows, 30), (columns, 25)))
    for top, bottom in pairwise(rows):
        cells.append(cell_scores(truth[top:bottom], score[top:bottom]).auroc)
        process = ScoreHistogram()
        for left, right in pairwise(columns):
            process.update(truth[top:bottom, left:right], score[top:bottom, left:right])
        merged.merge(process)
    for left, right in pairwise(columns):
        peaks.append(peak_scores(truth[:, left:right], score[:, left:right]).auprnorm)
    assert merged.auroc() == whole.auroc()
    assert merged.auprc() == whole.auprc()
    assert merged.ece() == whole.ece()
    np.testing.assert_array_equal(np.concatenate(peaks), peak_scores(truth, score).auprnorm)
    np.testing.assert_array_equal(np.concatenate(cells), cell_scores(truth, score).auroc)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 100), st.floats(0.1, 30), st.floats(-3, 3))
def test_ranks_do_not_depend_on_the_scale(seed, slope, shift):
    truth, score = block(20, 10, seed, ties=True)
    other = (score.astype(np.float64) * slope + shift).astype(np.float32)
    np.testing.assert_allclose(peak_scores(truth, other).auroc, peak_scores(truth, score).auroc, atol=1e-12)
    opposite = peak_scores(truth, -score).auroc
    np.testing.assert_allclose(opposite, 1 - peak_scores(truth, score).auroc, atol=1e-12)


def test_curves_run_from_corner_to_corner_and_hold_the_area():
    truth, score = block(300, 200, opened=0.1)
    histogram = ScoreHistogram()
    histogram.update(truth, score)
    fall_out, hit = histogram.roc()
    assert (fall_out[0], hit[0], fall_out[-1], hit[-1]) == (0, 0, 1, 1)
    assert len(hit) <= 500
    assert (np.diff(fall_out) >= 0).all()
    assert (np.diff(hit) >= 0).all()
    assert np.trapezoid(hit, fall_out) == pytest.approx(histogram.auroc(), abs=1e-4)
    recall, precision = histogram.precision_recall()
    assert recall[-1] == 1
    assert precision[-1] == pytest.approx(truth.mean())


def test_calibration_of_true_and_of_distorted_probabilities():
    rng = np.random.default_rng(0)
    chance = (rng.random((2000, 200)) ** 3 * 0.5).astype(np.float32)
    truth = sparse.csr_matrix((rng.random(chance.shape) < chance).astype(np.float32))
    true, doubled = ScoreHistogram(), ScoreHistogram()
    true.update(truth, chance)
    doubled.update(truth, 2 * chance)
    curve = true.calibration(20)
    assert curve.n.sum() == chance.size
    assert curve.n.min() > chance.size / 20 * 0.9  # of about equal size
    assert (curve.n * curve.observed).sum() == pytest.approx(truth.nnz)
    assert np.average(curve.predicted, weights=curve.n) == pytest.approx(chance.mean(), rel=1e-3)
    # Each bin is one of 20,000 entries: observed shares lie within four standard errors of what was predicted.
    error = np.sqrt(curve.predicted * (1 - curve.predicted) / curve.n)
    assert ((curve.observed - curve.predicted).abs() < 4 * error + 1e-3 * curve.predicted).all()
    assert true.ece() < 0.003
    assert doubled.ece() == pytest.approx(chance.mean(), abs=0.003)  # 2 p is off by p


def test_only_probabilities_are_calibrated_and_one_is_a_probability():
    truth = sparse.csr_matrix(np.eye(2, dtype=np.float32))
    certain, other = ScoreHistogram(), ScoreHistogram()
    certain.update(truth, np.eye(2, dtype=np.float32))
    assert certain.ece() == pytest.approx(0, abs=1e-12)
    assert certain.auroc() == 1
    other.update(truth, np.eye(2, dtype=np.float32) * 2)
    assert not other.is_probability()
    with pytest.raises(InputError, match="only probabilities"):
        other.calibration()


def test_auroc_by_prevalence_is_of_equal_bins_that_keep_ties_together():
    rng = np.random.default_rng(5)
    share = rng.permutation(np.linspace(0.01, 0.5, 100))
    auroc = 0.5 + share / 2
    auroc[share < 0.03] = np.nan  # 5 peaks without a score
    found = auroc_by_prevalence(auroc, share, 5)
    assert found["bin"].tolist() == [1, 2, 3, 4, 5]
    assert found["n"].tolist() == [19] * 5
    np.testing.assert_allclose(found["median"], 0.5 + found["prevalence"] / 2)
    assert (found["low"].iloc[1:].to_numpy() > found["high"].iloc[:-1].to_numpy()).all()
    rare = np.sort(auroc[~np.isnan(auroc)])[:19]
    np.testing.assert_allclose(found.loc[0, ["q25", "q75"]].astype(float), np.quantile(rare, [0.25, 0.75]))
    # Half of the peaks are open in one and the same share of cells: they are one bin, and another is empty.
    tied = auroc_by_prevalence(np.linspace(0, 1, 100), np.r_[np.full(50, 0.01), np.linspace(0.1, 0.5, 50)], 5)
    assert tied["bin"].tolist() == [2, 3, 4, 5]
    assert tied["n"].sum() == 100
    assert tied.loc[0, "n"] == 50
    assert len(auroc_by_prevalence(np.full(3, np.nan), np.ones(3), 5)) == 0


def test_nothing_to_score_is_nan():
    empty = ScoreHistogram()
    assert np.isnan(empty.auroc())
    assert np.isnan(empty.auprc())
    assert np.isnan(empty.ece())
    assert len(empty.calibration()) == 0
    closed = sparse.csr_matrix((3, 2), dtype=np.float32)
    empty.update(closed, np.ones((3, 2), np.float32))
    assert np.isnan(empty.auroc())
    assert peak_scores(closed, np.ones((3, 2), np.float32)).undefined == 2


def test_bad_blocks_are_refused_by_name():
    truth, score = block(5, 4)
    with pytest.raises(InputError, match="5 cells x 4 peaks, the scores are 5 x 3"):
        peak_scores(truth, score[:, :3])
    score[2, 1] = np.nan
    with pytest.raises(InputError, match="cell 2, peak 1"):
        ScoreHistogram().update(truth, score)
