"""Which cells are judged and which are learnt from: donors held out, or random cells of each type."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Shaped

INNER_FOLDS = 3
_OUTER, _INNER = 21, 22


@dataclass(frozen=True, eq=False)
class Fold:
    """One split of the cells.

    Attributes
    ----------
    repeat, number
        Which it is.
    train, test
        Rows, rising.
    unseen
        Rows whose type is not among the training cells: no method could name it, so they are in neither part.
    """

    repeat: int
    number: int
    train: Int[np.ndarray, " train"]
    test: Int[np.ndarray, " test"]
    unseen: Int[np.ndarray, " unseen"]


def outer_folds(
    labels: Shaped[np.ndarray, " cells"],
    groups: Shaped[np.ndarray, " cells"] | None,
    *,
    folds: int,
    repeats: int,
    seed: int,
) -> list[Fold]:
    """Every cell is in the test part of one fold a repeat; with groups, no group is on both sides.

    A function of the cells in the order given, and the seed. Where there are fewer groups than folds, each group is a fold.
    """
    found = []
    for repeat in range(repeats):
        part = deal(labels, groups, folds=folds, key=(seed, _OUTER, repeat))
        for number in range(int(part.max()) + 1):
            test, train = np.flatnonzero(part == number), np.flatnonzero(part != number)
            known = np.isin(labels[test], np.unique(labels[train].astype(str)).astype(object))
            found.append(Fold(repeat, number, train, test[known], test[~known]))
    return found


def inner_folds(
    labels: Shaped[np.ndarray, " cells"],
    groups: Shaped[np.ndarray, " cells"] | None,
    train: Int[np.ndarray, " train"],
    *,
    folds: int,
    key: tuple[int, ...],
) -> list[tuple[Int[np.ndarray, " learn"], Int[np.ndarray, " check"]]]:
    """Splits of the training rows alone, by group where these are two or more; for choosing, never for judging.

    Positions into `train`.
    """
    own = None if groups is None else groups[train]
    if own is not None and len(set(own)) < 2:
        own = None  # one donor is left to learn from: cells of each type are better than no choice at all
    part = deal(labels[train], own, folds=folds, key=(*key, _INNER))
    return [(np.flatnonzero(part != n), np.flatnonzero(part == n)) for n in range(int(part.max()) + 1)]


def deal(
    labels: Shaped[np.ndarray, " cells"],
    groups: Shaped[np.ndarray, " cells"] | None,
    *,
    folds: int,
    key: tuple[int, ...],
) -> Int[np.ndarray, " cells"]:
    """The fold of each cell. Without groups each type is dealt out evenly; with them, as evenly as whole groups allow."""
    rng = np.random.default_rng(key)
    types, label = np.unique(labels.astype(str), return_inverse=True)
    if groups is None:
        order = rng.permutation(len(label))
        order = order[np.argsort(label[order], kind="stable")]
        # Dealt on from type to type, so that folds are of equal size too: a type of three must not always meet fold 0.
        part = np.empty(len(label), dtype=np.int64)
        part[order] = (np.arange(len(order)) + rng.integers(folds)) % folds
        return part
    names, group = np.unique(groups.astype(str), return_inverse=True)
    table = np.zeros((len(names), len(types)))
    np.add.at(table, (group, label), 1)
    return _deal_groups(table, min(folds, len(names)), rng)[group]


def _deal_groups(table: np.ndarray, folds: int, rng: np.random.Generator) -> Int[np.ndarray, " groups"]:
    """The fold of each group, from its cells by type: the largest first, each to where types are then spread best.

    A type whose groups are all in one fold could not be learnt while it is judged, which is the worst that can happen to
    it; a group that would complete such a gathering goes elsewhere if any fold is free of that.
    """
    share = table / table.sum(0)  # of its type's cells: rare types count as much as common ones
    size = table.sum(1) / table.sum()
    order = rng.permutation(len(table))
    order = order[np.argsort(-table[order].sum(1), kind="stable")]
    part = np.full(len(table), -1, dtype=np.int64)
    in_fold = np.zeros((folds, table.shape[1]))
    weight = np.zeros(folds)
    for done, which in enumerate(order):
        taken = in_fold + share[which]
        cost = (np.square(taken) - np.square(in_fold)).sum(1) / table.shape[1]
        cost += 2 * weight * size[which] + size[which] ** 2
        gathered = (taken > 1 - 1e-9).sum(1)
        empty = weight == 0
        # Every fold needs a group: once as many groups are left as folds are empty, only these may take one.
        must = empty.sum() >= len(order) - done
        cost = np.where(must & ~empty, np.inf, cost + 1e3 * gathered)
        best = np.flatnonzero(cost <= cost.min() + 1e-12)
        fold = int(rng.choice(best))
        part[which] = fold
        in_fold[fold] += share[which]
        weight[fold] += size[which]
    return part
