"""Whole groups dealt to sides so that each side's share of the cells is as near to the one asked as groups allow."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64

from expresser.errors import InputError
from expresser.readable import counted

REPAIRS = 10_000


def parse_shares(words: Sequence[str]) -> dict[str, float]:
    """`["train=0.8", "valid=0.2"]` by side. Shares are above 0 and sum to 1 (to three digits); names suit a folder."""
    shares: dict[str, float] = {}
    for word in words:
        side, _, number = word.partition("=")
        try:
            share = float(number)
        except ValueError:
            share = 0.0
        if not 0.0 < share < 1.0 or not side.isidentifier() or side in shares:
            raise InputError(
                f"--shares {word!r}: say SIDE=SHARE once a side, a name of letters, digits and _ and a number between "
                "0 and 1: --shares train=0.8 valid=0.1 test=0.1."
            )
        shares[side] = share
    if len(shares) < 2 or abs(sum(shares.values()) - 1) > 1e-3:
        raise InputError(
            f"--shares {' '.join(words)}: at least two sides whose shares sum to 1 are needed, these sum to "
            f"{sum(shares.values()):g}."
        )
    return shares


def deal(sizes: Mapping[str, int], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """The side of each group, a function of the groups, their sizes, the shares and the seed alone.

    Groups are taken in classes of size, each at most half as large as the one before, and within a class in the order
    of a keyed hash of (seed, group). A group goes to a side where it still fits, drawn by the same hash with the odds
    of the cells that each side lacks, or, where it fits nowhere, to the side that lacks most. Then a side that got
    nothing is given a group, and single groups change sides while that brings the sum over sides of |cells - wanted|
    down. So the largest groups do not always end up in the same side, and no single move would bring shares nearer.
    InputError where there are fewer groups than sides.
    """
    sides, names = list(shares), sorted(sizes)
    if len(names) < len(sides):
        raise InputError(
            f"{counted(len(names), 'groups')} cannot be dealt to {len(sides)} sides ({', '.join(sides)}) as a whole: "
            f"{', '.join(names) or 'none'}. Split by another column, or ask for fewer sides."
        )
    cells = np.array([sizes[name] for name in names], np.int64)
    wanted = np.array([shares[side] for side in sides]) / sum(shares.values()) * cells.sum()
    draws = np.array([_uniform(seed, name) for name in names])
    have = np.zeros(len(sides))
    side = np.zeros(len(names), np.int64)
    size_class = np.floor(np.log2(np.maximum(cells, 1)))
    for at in np.lexsort((draws, -size_class)):
        lacking = wanted - have
        odds = np.where(lacking >= cells[at] - 1e-9, lacking, 0.0)
        if odds.sum() > 0:
            # The order came from the draw: a second number from its digits, which the order says nothing about.
            ends = np.cumsum(odds) / odds.sum()
            side[at] = min(int(np.searchsorted(ends, draws[at] * 2**20 % 1, side="right")), len(sides) - 1)
        else:
            side[at] = int(lacking.argmax())
        have[side[at]] += cells[at]
    _fill_empty(side, cells, wanted)
    _repair(side, cells, wanted)
    return {name: sides[s] for name, s in zip(names, side)}


def _uniform(seed: int, name: str) -> float:
    digest = hashlib.sha256(f"{seed}\0{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _off(have: Float64[np.ndarray, " sides"], wanted: Float64[np.ndarray, " sides"]) -> float:
    return float(np.abs(have - wanted).sum())


def _moves(
    side: Int64[np.ndarray, " groups"], cells: Int64[np.ndarray, " groups"], wanted: Float64[np.ndarray, " sides"]
) -> Float64[np.ndarray, "groups sides"]:
    """The sum of |cells - wanted| after each group's move to each side; infinite where a side would be left empty."""
    groups = np.bincount(side, minlength=len(wanted))
    have = np.bincount(side, weights=cells, minlength=len(wanted))
    away = np.abs(have - wanted)
    left = np.abs(have[side] - cells - wanted[side])[:, None]
    gained = np.abs(have[None, :] + cells[:, None] - wanted[None, :])
    after = away.sum() - away[side][:, None] - away[None, :] + left + gained
    after[np.arange(len(side)), side] = np.inf
    after[groups[side] == 1] = np.inf
    return after


def _fill_empty(
    side: Int64[np.ndarray, " groups"], cells: Int64[np.ndarray, " groups"], wanted: Float64[np.ndarray, " sides"]
) -> None:
    for empty in np.flatnonzero(np.bincount(side, minlength=len(wanted)) == 0):
        side[int(_moves(side, cells, wanted)[:, empty].argmin())] = empty


def _repair(
    side: Int64[np.ndarray, " groups"], cells: Int64[np.ndarray, " groups"], wanted: Float64[np.ndarray, " sides"]
) -> None:
    for _ in range(REPAIRS):
        after = _moves(side, cells, wanted)
        group, to = np.unravel_index(int(after.argmin()), after.shape)
        now = _off(np.bincount(side, weights=cells, minlength=len(wanted)), wanted)
        if not after[group, to] < now - 1e-6:
            return
        side[group] = to
