"""FOSCTTM and the overlap of neighbours: known answers."""

import numpy as np
import pytest

from expresser.errors import InputError
from expresser.metrics.alignment import closest_jaccard, closest_jaccard_by_chance, foscttm


def test_foscttm_of_three_cells_by_hand():
    a, b = np.array([[0.0], [1.0], [4.0]]), np.array([[0.9], [0.2], [4.0]])
    # From a: cell 0 is nearer to b1 than to b0 (1 of 2), cell 1 nearer to b0 than to b1, cell 2 is at its own.
    # From b: 0.9 is nearer to a1 than to a0; 0.2 nearer to a0 than to a1; 4 at its own.
    np.testing.assert_allclose(foscttm(a, b), [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])


def test_foscttm_against_the_plain_definition_in_any_chunks():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(83, 5)).astype(np.float32)
    b = (a + rng.normal(size=a.shape)).astype(np.float32)
    squared = ((a[:, None].astype(float) - b[None].astype(float)) ** 2).sum(axis=-1)
    plain = np.stack([(d < np.diag(d)[:, None]).sum(axis=1) / 82 for d in (squared, squared.T)])
    np.testing.assert_array_equal(foscttm(a, b), plain)
    np.testing.assert_array_equal(foscttm(a, b, budget_mb=0.003), plain)


def test_foscttm_of_perfect_random_and_collapsed_embeddings():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 400, 8))
    assert foscttm(a, a).max() == 0
    assert foscttm(a, b).mean() == pytest.approx(0.5, abs=0.02)
    # Strictly closer alone would call this perfect.
    assert (foscttm(np.full((50, 3), 0.1), np.full((50, 3), 0.1)) == 0.5).all()


def test_foscttm_does_not_depend_on_order_or_rigid_motion():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(60, 4))
    b = a + 0.5 * rng.normal(size=a.shape)
    order = rng.permutation(60)
    np.testing.assert_array_equal(foscttm(a[order], b[order]), foscttm(a, b)[:, order])
    turn = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    np.testing.assert_allclose(foscttm(a @ turn + 3, b @ turn + 3), foscttm(a, b))


def test_closest_cells_of_equal_and_of_unrelated_spaces():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(300, 6))
    np.testing.assert_allclose(closest_jaccard(a, 2 * a + 1, n=20), 1.0)
    unrelated = closest_jaccard(a, rng.normal(size=(300, 3)), n=20)
    assert unrelated.mean() == pytest.approx(closest_jaccard_by_chance(300, 20), abs=0.005)
    # Four cells on a line: 0's closest is 1 in both; in b, 3 moves next to 0.
    line, moved = np.array([[0.0], [1.0], [5.0], [6.5]]), np.array([[0.0], [1.0], [5.0], [-0.5]])
    np.testing.assert_allclose(closest_jaccard(line, moved, n=1), [0.0, 1.0, 0.0, 0.0])


def test_closest_cells_of_collapsed_spaces_are_chance():
    one, other = np.full((200, 3), 0.1), np.full((200, 2), 7.0)
    # All cells have the same neighbours there, so this is one draw and not the mean of 200.
    assert closest_jaccard(one, one, n=10).mean() < 0.2
    assert closest_jaccard(one, other, n=10).mean() < 0.2
    # In ten heaps that are the same in both, 19 cells are equally near, of which 5 are taken twice: per cell that varies.
    heap = np.repeat(np.arange(10.0), 20)[:, None]
    assert closest_jaccard(heap, heap, n=5).mean() < 0.5


def test_chance_of_closest_cells():
    rng = np.random.default_rng(4)
    draws = [len(set(rng.choice(39, 6, False)) & set(rng.choice(39, 6, False))) for _ in range(4000)]
    assert closest_jaccard_by_chance(40, 6) == pytest.approx(np.mean([s / (12 - s) for s in draws]), rel=0.05)
    assert closest_jaccard_by_chance(40, 39) == pytest.approx(1)  # all others, in both
    assert closest_jaccard_by_chance(3, 1) == pytest.approx(0.5)
    with pytest.raises(InputError, match="40 neighbours of 40 cells"):
        closest_jaccard_by_chance(40, 40)


def test_bad_embeddings_are_refused():
    a = np.zeros((5, 2))
    with pytest.raises(InputError, match="in one space"):
        foscttm(a, np.zeros((5, 3)))
    with pytest.raises(InputError, match="same cell"):
        closest_jaccard(a, np.zeros((4, 2)), n=1)
    with pytest.raises(InputError, match="not finite"):
        foscttm(a, np.full((5, 2), np.nan))
    with pytest.raises(InputError, match="at least two"):
        foscttm(a[:1], a[:1])
    with pytest.raises(InputError, match="1 to 4"):
        closest_jaccard(a, a, n=5)
