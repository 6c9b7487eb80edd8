"""Baseline embeddings: laws, and types found where depth and batch would hide them."""

import random
from functools import partial

import numpy as np
import pytest
from scipy import sparse
from sklearn.linear_model import LinearRegression
from sklearn.metrics import silhouette_score

from expresser.errors import InputError
from expresser.metrics.mutual_information import mi_depth
from translate import embedding_baselines
from translate.embedding_baselines import BASELINES, USUAL, lsi, lsi_no_depth, lsi_regressed, missing, pca, regressed

INSTALLED = [name for name in BASELINES if missing(name) is None]


def open_peaks(n: int = 300, peaks: int = 400) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """0/1 of three types, each with a third of the peaks of its own, depths that differ tenfold, two batches."""
    rng = np.random.default_rng(0)
    types, batch = rng.integers(0, 3, n), rng.integers(0, 2, n)
    rate = np.where(np.arange(peaks) % 3 == types[:, None], 0.3, 0.06) * rng.uniform(0.2, 2, n)[:, None]
    rate *= np.where(batch[:, None] & (np.arange(peaks) % 5 == 0), 2.0, 1.0)
    matrix = sparse.csr_matrix((rng.random((n, peaks)) < rate).astype(np.float32))
    return matrix, types, batch.astype(np.int64)


def quick(name: str):
    return partial(BASELINES[name], epochs=2) if name == "peakvi" else BASELINES[name]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n == "peakvi" else ()) for n in INSTALLED])
def test_every_baseline_is_finite_and_the_seeds_and_leaves_global_generators_alone(name):
    matrix, _, batch = open_peaks()
    before = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, other = (quick(name)(matrix, depth=None, batch=batch, n=5, seed=1) for _ in range(2))
    assert one.dtype == np.float32
    assert one.shape == (300, 5)
    assert np.isfinite(one).all()
    np.testing.assert_array_equal(one, other)
    assert random.getstate() == before[0]
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    assert (matrix.data == 1).all()


@pytest.mark.parametrize("name", [name for name in INSTALLED if name != "peakvi"])
def test_types_are_told_apart(name):
    matrix, types, batch = open_peaks()
    assert silhouette_score(BASELINES[name](matrix, depth=None, batch=batch, n=4, seed=0), types) > 0.2


def test_what_correlates_with_depth_is_the_component_left_out():
    matrix, _, _ = open_peaks()
    depth = np.diff(matrix.indptr)
    every, kept = lsi(matrix, n=6), lsi_no_depth(matrix, n=5)
    related = [abs(np.corrcoef(np.log(depth), column)[0, 1]) for column in every.T]
    np.testing.assert_array_equal(kept, np.delete(every, np.argmax(related), axis=1))
    assert mi_depth(kept, np.log(depth)) < mi_depth(every, np.log(depth))
    # Another depth, another component: that of the measured fragments counts where it is given.
    given = np.exp(every[:, 3].astype(float))
    np.testing.assert_array_equal(lsi_no_depth(matrix, depth=given, n=5), np.delete(every, 3, axis=1))


def test_nothing_linear_is_left_of_depth_and_batch():
    matrix, _, batch = open_peaks()
    depth = np.diff(matrix.indptr).astype(float)
    for left in (lsi_regressed(matrix, batch=batch, n=5), regressed(pca(matrix, n=5), np.log(depth), batch)):
        design = np.stack([np.log(depth), batch], axis=1)
        assert LinearRegression().fit(design, left).score(design, left) < 1e-6
        np.testing.assert_allclose(left[batch == 1].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(
        lsi_regressed(matrix, batch=None, n=5),
        lsi(matrix, n=5)
        - LinearRegression().fit(np.log(depth)[:, None], lsi(matrix, n=5)).predict(np.log(depth)[:, None]),
        atol=1e-5,
    )
    # Codes need not be 0, 1, …, and what is constant is no second constant.
    np.testing.assert_allclose(
        regressed(pca(matrix, n=5), np.ones(300), 7 - 3 * batch)[batch == 0].mean(axis=0), 0, atol=1e-4
    )


def test_principal_components_are_those_of_the_dense_matrix():
    matrix, _, _ = open_peaks(60, 200)
    centred = matrix.toarray() - matrix.toarray().mean(axis=0)
    left, values, _ = np.linalg.svd(centred.astype(float), full_matrices=False)
    np.testing.assert_allclose(np.abs(pca(matrix, n=3)), np.abs((left * values)[:, :3]), atol=1e-4)


def test_baselines_say_what_they_cannot_take(monkeypatch):
    matrix, _, _ = open_peaks()
    with pytest.raises(InputError, match="values other than 1"):
        lsi(2 * matrix)
    with pytest.raises(InputError, match="no open peak"):
        pca(sparse.csr_matrix(sparse.vstack([matrix, sparse.csr_matrix((1, 400), dtype=np.float32)])))
    with pytest.raises(InputError, match="not their logarithm"):
        lsi_regressed(matrix, depth=np.zeros(300))
    monkeypatch.setattr(embedding_baselines, "find_spec", lambda name: None)
    assert [name for name in BASELINES if missing(name)] == ["spectral", "spectral_regressed", "peakvi"]
    assert all(missing(name) is None for name in USUAL)
    with pytest.raises(InputError, match=r"expresser\[embed\]"):
        BASELINES["peakvi"](matrix)
