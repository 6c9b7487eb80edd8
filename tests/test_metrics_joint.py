"""Mixing of modalities, cosine distances and label transfer: known answers."""

import itertools

import numpy as np
import pytest
from scipy.spatial.distance import cosine

from expresser.errors import InputError
from expresser.metrics.joint import cosine_distances, label_transfer, modality_mixing


def test_mixing_of_six_cells_by_hand():
    z = np.array([[0.0], [1.0], [3.0], [10.0], [11.0], [13.0]])
    second = np.array([False, True, False, False, False, False])
    # Two nearest others: of 0 {1, 3}: half; of 1 {0, 3}: none; of 3 {1, 0}: half; of 10, 11 and 13 none is of the second.
    found = modality_mixing(z, second, ["a"] * 3 + ["b"] * 3, k=2)
    np.testing.assert_allclose(found.of_cells, [1.0, 0.5, 1.0, 0.5, 0.5, 0.5])
    assert found.groups == pytest.approx({"a": 2.5 / 3, "b": 0.5})
    assert found.score == pytest.approx((2.5 / 3 + 0.5) / 2)


def test_mixing_is_one_where_modalities_are_one_and_half_where_they_are_apart():
    rng = np.random.default_rng(0)
    z, second = rng.normal(size=(2000, 5)), np.arange(2000) % 2 == 1
    mixed = modality_mixing(z, second)
    assert mixed.k == 100  # a twentieth
    assert mixed.score == pytest.approx(1 - np.abs(rng.binomial(100, 0.5, 9999) / 100 - 0.5).mean(), abs=0.005)
    assert mixed.by_chance == pytest.approx(mixed.score, abs=0.005)
    apart = modality_mixing(z + 100 * second[:, None], second)
    assert apart.score == 0.5
    assert apart.by_chance == pytest.approx(mixed.score, abs=0.005)


def test_a_type_with_few_cells_of_one_modality_cannot_mix_evenly():
    rng = np.random.default_rng(1)
    z, second = rng.normal(size=(1000, 4)), np.arange(1000) < 100
    found = modality_mixing(z, second)
    assert found.score == pytest.approx(0.6, abs=0.02)
    assert found.by_chance == pytest.approx(found.score, abs=0.02)


def test_mixing_does_not_depend_on_order_blocks_or_ties():
    rng = np.random.default_rng(2)
    z, second = rng.normal(size=(300, 3)).astype(np.float32), rng.random(300) < 0.4
    labels = rng.choice(["a", "b"], 300)
    whole = modality_mixing(z, second, labels, k=20)
    order = rng.permutation(300)
    np.testing.assert_allclose(
        modality_mixing(z[order], second[order], labels[order], k=20).of_cells, whole.of_cells[order]
    )
    np.testing.assert_allclose(modality_mixing(z, second, labels, k=20, budget_mb=0.01).of_cells, whole.of_cells)
    # All cells at one point: every other cell counts alike.
    heap = modality_mixing(np.full((40, 3), 0.1), np.arange(40) < 10, k=5)
    np.testing.assert_allclose(
        heap.of_cells, np.where(np.arange(40) < 10, 1 - abs(9 / 39 - 0.5), 1 - abs(10 / 39 - 0.5)), rtol=1e-6
    )


def test_cosine_distances_are_those_of_all_pairs():
    rng = np.random.default_rng(3)
    z, labels = rng.normal(size=(40, 6)) + 1, rng.choice(["a", "b", "c"], 40)
    labels[0] = "alone"
    found = cosine_distances(z, labels)
    of_type = [
        np.mean([cosine(*z[list(pair)]) for pair in itertools.combinations(np.flatnonzero(labels == name), 2)])
        for name in "abc"
    ]
    others = [cosine(z[i], z[j]) for i, j in itertools.combinations(range(40), 2) if labels[i] != labels[j]]
    assert found.within == pytest.approx(np.mean(of_type))
    assert found.between == pytest.approx(np.mean(others))


def test_cosine_distances_of_rays_and_of_the_origin():
    z = np.array([[1.0, 0], [5, 0], [0, 2], [0, 3]])
    found = cosine_distances(z, ["a", "a", "b", "b"])
    assert (found.within, found.between) == pytest.approx((0, 1))
    assert cosine_distances(np.array([[1.0, 0], [-1, 0]]), ["a", "a"]).within == pytest.approx(2)
    assert cosine_distances(np.array([[1.0, 0], [0, 0]]), ["a", "a"]).within == pytest.approx(1)
    assert np.isnan(cosine_distances(z, ["a"] * 4).between)
    assert np.isnan(cosine_distances(z[1:3], ["a", "b"]).within)


def test_labels_are_carried_over_by_the_nearest():
    known, labels = np.array([[0.0], [1.0], [2.0], [10.0], [11.0]]), ["a", "a", "b", "b", "b"]
    asked, truth = np.array([[0.4], [10.4], [1.2]]), ["a", "b", "c"]
    found = label_transfer(known, labels, asked, truth, k=3)
    assert found.accuracy == pytest.approx(2 / 3)  # "c" cannot be known
    assert found.balanced == pytest.approx(2 / 3)
    assert found.by_chance == pytest.approx(1 / 3)  # always b
    rng = np.random.default_rng(4)
    types = rng.choice(["a", "b", "c"], 900, p=[0.6, 0.3, 0.1])
    blind = label_transfer(rng.normal(size=(900, 3)), types, rng.normal(size=(900, 3)), types)
    assert blind.balanced == pytest.approx(1 / 3, abs=0.03)
    assert blind.by_chance == pytest.approx((types == "a").mean())


def test_what_cannot_be_scored_is_refused():
    z = np.zeros((4, 2))
    with pytest.raises(InputError, match="0 of them the second"):
        modality_mixing(z, np.zeros(4, bool))
    with pytest.raises(InputError, match="1 to 3"):
        modality_mixing(z, np.arange(4) < 2, k=4)
    with pytest.raises(InputError, match="4 cells and 3 labels"):
        cosine_distances(z, ["a"] * 3)
    with pytest.raises(InputError, match="one space"):
        label_transfer(z, ["a"] * 4, np.zeros((2, 3)), ["a"] * 2)
    with pytest.raises(InputError, match="not finite"):
        label_transfer(z, ["a"] * 4, np.full((2, 2), np.nan), ["a"] * 2)
