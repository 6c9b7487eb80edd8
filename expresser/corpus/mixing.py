"""Groups of cells mixed by weight: which group each position of the stream draws from, and which of its cells."""

import re
from collections.abc import Mapping

import numpy as np
from jaxtyping import Float64, Int64, Integer

from expresser.corpus.order import CellOrder
from expresser.errors import InputError

_MIXED = 104  # part of the key of each group's order, so that it is not the order of an unmixed run
_ONE = 30  # shares are fractions of 2^30: exact in int64 for positions below 2^62


class Schedule:
    """Deals an endless stream of positions to groups in fixed shares: a function of the position alone, in O(log groups).

    Groups are the leaves of a balanced tree. Of the first ``p`` positions at a node with share ``a`` on its left side,
    ``floor(p a)`` go left: position ``p`` does where that number grows. What a group got of the first ``p`` positions is
    thus known without replaying them, and is off ``p`` times its share by less than the depth of the tree.
    """

    def __init__(self, shares: Float64[np.ndarray, " groups"]) -> None:
        self.depth = max(0, int(len(shares) - 1).bit_length())
        leaves = np.zeros(2**self.depth)
        leaves[: len(shares)] = shares
        # Nodes as in a heap: children of k are 2k + 1 and 2k + 2. Sides that hold a group get a share above zero.
        self._left = np.zeros(2**self.depth - 1, np.int64)
        for level in range(self.depth):
            sides = leaves.reshape(2**level, 2, -1).sum(2)
            ratio = sides[:, 0] / np.maximum(sides.sum(1), 1e-300)
            left = np.clip(np.rint(ratio * 2**_ONE).astype(np.int64), 1, 2**_ONE - 1)
            self._left[2**level - 1 : 2 ** (level + 1) - 1] = np.where(sides[:, 1] == 0, 2**_ONE, left)

    def at(
        self, positions: Int64[np.ndarray, " positions"]
    ) -> tuple[Int64[np.ndarray, " positions"], Int64[np.ndarray, " positions"]]:
        """Group of each position, and how many earlier positions went to that group."""
        node, place = np.zeros_like(positions), positions
        for _ in range(self.depth):
            before = self._to_left(node, place)
            left = self._to_left(node, place + 1) > before
            node, place = 2 * node + np.where(left, 1, 2), np.where(left, before, place - before)
        return node - (2**self.depth - 1), place

    def _to_left(
        self, node: Int64[np.ndarray, " positions"], count: Int64[np.ndarray, " positions"]
    ) -> Int64[np.ndarray, " positions"]:
        # floor(count * left / 2^30), in two parts so that no product overflows.
        high, low = count >> _ONE, count & (2**_ONE - 1)
        return high * self._left[node] + (low * self._left[node] >> _ONE)


class Mixture:
    """The stream of a weighted mixture: each group runs through its own endless order, a position draws the next of one.

    As :class:`expresser.corpus.order.CellOrder` a function of (seed, position): a run goes on from ``cells_seen`` alone,
    with any number of processes. Within a group each cell is seen equally often, up to one. The *epoch* of a cell is how often its
    group was passed through before, which differs between groups.

    Parameters
    ----------
    groups
        Group of each cell of the selection, ``0 … len(weights)-1``, each with one cell at least.
    weights
        Of each group, above zero: its share of the stream is its weight over their sum.
    """

    def __init__(
        self, groups: Integer[np.ndarray, " cells"], weights: Float64[np.ndarray, " groups"], seed: int
    ) -> None:
        sizes = np.bincount(groups, minlength=len(weights))
        self._cells = np.argsort(groups, kind="stable").astype(np.uint32)
        self._first = np.cumsum(sizes) - sizes
        self._orders = [CellOrder(int(n), seed, _MIXED, group) for group, n in enumerate(sizes)]
        self._schedule = Schedule(weights / weights.sum())

    def take(self, start: int, count: int) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
        """Cells at positions ``start … start+count-1`` and the epoch of each in its own group."""
        groups, places = self._schedule.at(np.arange(start, start + count, dtype=np.int64))
        cells, epochs = np.empty_like(places), np.empty_like(places)
        for group in np.unique(groups):
            here = groups == group
            found, epochs[here] = self._orders[group].at(places[here])
            cells[here] = self._cells[self._first[group] + found]
        return cells, epochs


def weigh(rule: str, sizes: Mapping[str, int], *, where: str) -> Float64[np.ndarray, " groups"]:
    """Weights of groups with these sizes, in their order.

    Parameters
    ----------
    rule
        "equal": each group as often as another; "sqrt": by the square root of its cells, between that and plain sampling; or
        "atlas=3,study=1": a number for each group, ``*=1`` for all others.
    where
        What the groups are, for messages: "source of corpus/".

    Raises
    ------
    InputError
        If a group is unknown, named twice or has no weight, or a weight is no number above zero.
    """
    if rule in ("equal", "sqrt"):
        return np.array([1.0 if rule == "equal" else size**0.5 for size in sizes.values()])
    parts = re.findall(r"(.+?)=([^=,]*)(?:,|$)", rule)  # names may hold commas: a part ends after its number
    given: dict[str, float] = {}
    for name, number in parts:
        weight = _number(number)
        if weight is None:
            raise InputError(f"data.source_weights: {name!r} has weight {number!r}. Give a number above zero.")
        if name in given:
            raise InputError(f"data.source_weights: {name!r} is given twice, {given[name]:g} and {weight:g}. Keep one.")
        given[name] = weight
    if ",".join(f"{name}={number}" for name, number in parts) != rule or not parts:
        raise InputError(f"data.source_weights is {rule!r}: it must be equal, sqrt, or NAME=WEIGHT,NAME=WEIGHT,…")
    others = given.pop("*", None)
    if unknown := [name for name in given if name not in sizes]:
        raise InputError(f"data.source_weights: no {where} is called {_some(unknown)}. They are {_some(list(sizes))}.")
    if others is None and (missing := [name for name in sizes if name not in given]):
        raise InputError(
            f"data.source_weights: no weight for {_some(missing)}, each a {where}. "
            "Add NAME=WEIGHT for each, or *=WEIGHT for all others."
        )
    return np.array([given.get(name, others) for name in sizes], np.float64)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if 0 < number < float("inf") else None


def _some(names: list[str], most: int = 12) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")
