"""Clusters, mutual information and mixing of embeddings, and Dice: known answers and laws."""

import random

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import rankdata

from expresser.errors import InputError
from expresser.metrics.accessibility import dice
from expresser.metrics.clusters import (
    best_matches,
    cluster_scores,
    communities,
    neighbour_graph,
    subsampled_scores,
)
from expresser.metrics.mixing import neighbour_mixing
from expresser.metrics.mutual_information import batch_information, depth_information, mi_batch, mi_depth

SIZES = (150, 120, 90, 12)


def blobs(spread: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c", "rare"], SIZES)
    centres = {"a": (0, 0, 0), "b": (5, 0, 0), "c": (0, 5, 0), "rare": (0, 0, 5)}
    x = np.array([centres[label] for label in labels]) + spread * rng.normal(size=(len(labels), 3))
    order = rng.permutation(len(labels))
    return x[order].astype(np.float32), labels[order]


# --- clusters


def test_neighbour_graph_of_four_cells_by_hand():
    # Nearest two with themselves: 0 {0, 1}, 1 {0, 1}, 2 {1, 2}, 3 {2, 3}.
    graph = neighbour_graph(np.array([[0.0], [1.0], [2.5], [4.5]]), k=2).toarray()
    expected = np.zeros((4, 4))
    expected[0, 1], expected[1, 2], expected[2, 3] = 1.0, 1 / 3, 1 / 3
    np.testing.assert_allclose(graph, expected + expected.T)


@pytest.mark.parametrize("method", ["leiden", "louvain"])
def test_types_that_lie_apart_are_found_and_agreement_is_perfect(method):
    x, labels = blobs()
    found = cluster_scores(x, labels, method=method)
    assert (found["ari"], found["ari_best"], found["n_clusters"]) == (1.0, 1.0, 4)
    assert found["nmi"] == pytest.approx(1.0)
    assert found["f1"] == found["rarest_f1"] == 1.0
    assert found["silhouette"] == found["silhouette_clusters"] > 0.8
    assert list(found["types"]) == ["rare", "c", "b", "a"]
    assert found["types"]["rare"] == {
        "cells": 12, "f1": 1.0, "jaccard": 1.0, "f1_best": 1.0, "found": True, "found_best": True
    }  # fmt: skip


def test_labels_that_mean_nothing_agree_by_chance():
    x, labels = blobs()
    found = cluster_scores(x, np.random.default_rng(1).permutation(labels))
    assert abs(found["ari"]) < 0.03
    assert found["silhouette"] < 0
    assert not found["types"]["rare"]["found"]


def test_a_grid_that_steps_over_the_number_of_types_is_refined():
    x, labels = blobs(spread=1.3)
    coarse, fine = cluster_scores(x, labels, resolutions=(0.01,)), cluster_scores(x, labels, resolutions=(0.01, 20.0))
    assert coarse["n_clusters"] == 1
    assert fine["curve"]["n_clusters"][1] > 20
    assert abs(fine["n_clusters"] - 4) <= 1
    assert 0.01 < fine["resolution"] < 20
    assert fine["curve"]["resolutions"] == [0.01, 20.0]


@pytest.mark.parametrize("method", ["leiden", "louvain"])
def test_clusters_are_the_seeds_and_not_of_what_was_drawn_before(method):
    x, _ = blobs(spread=1.5)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    graph = neighbour_graph(x)
    one = list(communities(graph, (0.5, 2.0), method=method, seed=3))
    random.random()
    other = list(communities(graph, (0.5, 2.0), method=method, seed=3))
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    assert all((a == b).all() for a, b in zip(one, other, strict=True))
    assert one[1].max() > one[0].max()


def test_two_cliques_are_two_communities():
    clique = np.ones((5, 5)) - np.eye(5)
    graph = sparse.csr_matrix(sparse.block_diag([clique, clique]))
    for method in ("leiden", "louvain"):
        (found,) = communities(graph, [1.0], method=method)
        assert len(set(found[:5])) == len(set(found[5:])) == 1
        assert found[0] != found[5]


def test_best_matches_by_hand():
    codes, clusters = np.array([0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 1, 1, 1])
    found = best_matches(codes, clusters)
    np.testing.assert_allclose(found["f1"], [6 / 7, 4 / 5])
    np.testing.assert_allclose(found["jaccard"], [3 / 4, 2 / 3])


def test_subsamples_are_the_same_for_every_embedding_of_the_cells():
    x, labels = blobs()
    one = subsampled_scores(x, labels, draws=3, resolutions=(0.3, 1.0))
    same = subsampled_scores(2 * x + 1, labels, draws=3, resolutions=(0.3, 1.0))
    assert set(one) == {"ari", "nmi", "silhouette"}
    assert one["ari"].min() > 0.85
    np.testing.assert_allclose(one["ari"], same["ari"])
    np.testing.assert_allclose(one["silhouette"], same["silhouette"], rtol=1e-5)
    assert len(set(one["silhouette"])) == 3


def test_clusters_say_what_they_cannot_do():
    x, labels = blobs()
    with pytest.raises(InputError, match="same list of cells"):
        cluster_scores(x, labels[:-1])
    with pytest.raises(InputError, match="two types"):
        cluster_scores(x, np.full(len(x), "a"))
    with pytest.raises(InputError, match="not finite"):
        neighbour_graph(np.full((5, 2), np.nan))


# --- mutual information


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_information_of_a_gaussian_pair_is_the_closed_form(correlation):
    rng = np.random.default_rng(0)
    depth, noise = rng.normal(size=(2, 4000))
    z = (correlation * depth + np.sqrt(1 - correlation**2) * noise)[:, None].astype(np.float32)
    expected = -0.5 * np.log(1 - correlation**2)
    assert mi_depth(z, depth) == pytest.approx(expected, abs=0.04)
    # Any rescaling of the dimension leaves it; a monotone one nearly so.
    assert mi_depth(1e3 * z + 7, depth) == pytest.approx(expected, abs=0.04)
    assert mi_depth(np.exp(z), depth) == pytest.approx(expected, abs=0.06)


def test_information_of_batches_is_their_entropy_or_nothing():
    rng = np.random.default_rng(1)
    batch = np.repeat(["x", "y", "z"], [2000, 1000, 1000])
    apart = rng.normal(size=4000) + 50 * np.unique(batch, return_inverse=True)[1]
    found = batch_information(np.stack([apart, rng.normal(size=4000)], axis=1), batch)
    share = np.array([0.5, 0.25, 0.25])
    np.testing.assert_allclose(found, [-(share * np.log(share)).sum(), 0.0], atol=0.04)
    assert mi_batch(apart[:, None], batch) == pytest.approx(found[0], abs=0.01)


def test_shifted_batches_carry_the_information_of_the_mixture():
    rng = np.random.default_rng(2)
    batch = np.arange(6000) % 2
    z = rng.normal(size=6000) + 2.0 * batch
    # I = h(z) - h(z | batch), the first by integration.
    grid = np.linspace(-8, 10, 20001)
    density = (np.exp(-0.5 * grid**2) + np.exp(-0.5 * (grid - 2) ** 2)) / (2 * np.sqrt(2 * np.pi))
    entropy = -np.trapezoid(density * np.log(density), grid)
    assert mi_batch(z[:, None], batch) == pytest.approx(entropy - 0.5 * np.log(2 * np.pi * np.e), abs=0.04)


def test_dimensions_that_are_switched_off_and_what_does_not_vary_know_nothing():
    rng = np.random.default_rng(3)
    depth = rng.normal(size=500)
    z = np.stack([depth, np.full(500, 3.0), 3 + 1e-7 * depth, np.zeros(500)], axis=1).astype(np.float32)
    found = depth_information(z, depth)
    assert found[0] > 2
    np.testing.assert_array_equal(found[1:], 0)
    assert mi_depth(z, depth) == pytest.approx(found[0] / 4)
    np.testing.assert_array_equal(depth_information(z, np.ones(500)), 0)
    np.testing.assert_array_equal(batch_information(z, np.zeros(500, int)), 0)


def test_information_of_a_part_of_the_cells_is_that_of_all_and_the_seeds():
    rng = np.random.default_rng(4)
    depth = rng.normal(size=4000)
    z = (depth + rng.normal(size=4000))[:, None]
    part = depth_information(z, depth, cells=2000, seed=1)
    np.testing.assert_array_equal(part, depth_information(z, depth, cells=2000, seed=1))
    assert part[0] == pytest.approx(depth_information(z, depth)[0], abs=0.05)
    assert part[0] != depth_information(z, depth, cells=2000, seed=2)[0]


def test_information_of_ranks_is_that_of_values_where_nothing_ties():
    rng = np.random.default_rng(5)
    depth = rng.lognormal(size=3000)
    z = (np.log(depth) + rng.normal(size=3000))[:, None]
    assert mi_depth(rankdata(z)[:, None], np.log(depth)) == pytest.approx(mi_depth(z, np.log(depth)), abs=0.06)
    with pytest.raises(InputError, match="one value each"):
        mi_depth(z, depth[:-1])
    with pytest.raises(InputError, match="not finite"):
        mi_depth(np.where(z > 2, np.nan, z), depth)


# --- mixing


@pytest.mark.parametrize("batches", [2, 3])
def test_batches_apart_are_as_unmixed_as_can_be(batches):
    rng = np.random.default_rng(0)
    batch = np.repeat(np.arange(batches), [200, 150, 100][:batches])
    z = rng.normal(size=(len(batch), 2)) + 100 * batch[:, None]
    found = neighbour_mixing(z, batch, k=20)
    assert found.deviation == pytest.approx(2 * (batches - 1) / batches**2)
    np.testing.assert_allclose(found.of_cells, found.deviation)
    np.testing.assert_allclose(found.shares, np.eye(batches)[batch])


def test_all_cells_as_neighbours_are_exactly_even_whatever_the_sizes():
    z = np.random.default_rng(1).normal(size=(100, 3))
    found = neighbour_mixing(z, np.repeat(["x", "y", "z"], [70, 20, 10]), k=99)
    assert found.batches == ("x", "y", "z")
    np.testing.assert_allclose(found.shares, 1 / 3)
    assert found.deviation == pytest.approx(0)
    assert found.by_chance == pytest.approx(0, abs=0.02)


def test_batches_of_different_size_that_mean_nothing_mix_as_by_chance():
    rng = np.random.default_rng(2)
    batch = rng.permutation(np.repeat([0, 1], [1500, 500]))
    found = neighbour_mixing(rng.normal(size=(2000, 3)), batch)
    np.testing.assert_allclose(found.shares.mean(axis=0), 0.5, atol=0.02)
    assert found.deviation == pytest.approx(found.by_chance, abs=0.01)
    assert found.deviation < 0.1
    # An embedding that has collapsed to a point: neighbours by chance, whatever the order of the file.
    point = neighbour_mixing(np.zeros((400, 2)), np.repeat([0, 1], 200))
    assert point.shares.mean(axis=0)[0] == pytest.approx(0.5, abs=0.15)


def test_mixing_says_what_it_needs():
    z = np.zeros((10, 2))
    for batch, k in ((np.zeros(10, int), 5), (np.arange(10) % 2, 10), (np.arange(9) % 2, 5)):
        with pytest.raises(InputError, match="two batches or more"):
            neighbour_mixing(z, batch, k=k)


# --- Dice


def test_dice_by_hand_and_the_same_for_sparse_and_dense():
    truth = np.array([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    score = np.array([[0.9, 0.2, 0.8, 0.1], [0.9, 0.1, 0.1, 0.1], [0.6, 0.0, 0.0, 0.0], [0.0, 0.1, 0.0, 0.0]])
    expected = [2 * 1 / (2 + 2), 1.0, 0.0, np.nan]
    kept = sparse.csr_matrix(score)
    for predicted in (score, kept):
        for real in (truth, truth.astype(bool), sparse.csr_matrix(truth), sparse.csc_matrix(truth)):
            np.testing.assert_allclose(dice(predicted, real, above=0.5), expected)
    np.testing.assert_array_equal(kept.toarray(), score)  # left as it was
    np.testing.assert_allclose(dice(score > 0.5, truth > 0), expected)
    np.testing.assert_allclose(dice(truth, truth), [1, 1, np.nan, np.nan])
    # Stored zeros are closed.
    stored = sparse.csr_matrix((np.array([1.0, 0.0]), ([0, 0], [0, 1])), shape=(1, 3))
    np.testing.assert_allclose(dice(stored, np.array([[1, 1, 0]])), 2 / 3)


def test_dice_says_what_it_cannot_compare():
    with pytest.raises(InputError, match="same cells and peaks"):
        dice(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(InputError, match="threshold of 0 or more"):
        dice(sparse.csr_matrix(np.ones((2, 3))), np.ones((2, 3)), above=-1.0)
