"""Exact quantiles of more values than fit in memory: two passes of counting, no sorting."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt32

# Values, and how many times each of them occurs (None: once).
Values = tuple[Float32[np.ndarray, " n"], Int64[np.ndarray, " n"] | None]
_HALF = 16  # bits of a float32 that each pass counts


def quantiles(passes: Callable[[], Iterable[Values]], shares: Sequence[float]) -> list[float]:
    """Quantiles of all values that `passes()` yields (the same, in any order, at each of two calls), linear between two.

    A float32 is ordered as its bits are, sign apart: the first pass counts the upper half of the bits, the second the
    lower half among the values whose upper half was found. Memory: one block and a few tables of 65,536 counts.
    """
    high = np.zeros(2**_HALF, dtype=np.int64)
    for values, times in passes():
        high += _counted(_key(values) >> _HALF, times)
    last = int(high.sum()) - 1
    if last < 0:
        return [float("nan")] * len(shares)
    floors = [int(np.floor(share * last)) for share in shares]
    ranks = sorted({rank for floor in floors for rank in (floor, min(floor + 1, last))})
    ends = np.cumsum(high)
    bins = {rank: int(np.searchsorted(ends, rank, side="right")) for rank in ranks}
    low = {which: np.zeros(2**_HALF, dtype=np.int64) for which in bins.values()}
    for values, times in passes():
        key = _key(values)
        upper = key >> _HALF
        for which, table in low.items():
            here = np.flatnonzero(upper == which)
            table += _counted(key[here] & np.uint32(2**_HALF - 1), None if times is None else times[here])
    found = {}
    for rank, which in bins.items():
        rest = rank - (int(ends[which - 1]) if which else 0)
        found[rank] = _value(which << _HALF | int(np.searchsorted(np.cumsum(low[which]), rest, side="right")))
    between = [share * last - floor for share, floor in zip(shares, floors)]
    return [(1 - part) * found[f] + part * found[min(f + 1, last)] for f, part in zip(floors, between)]


def _counted(bins: UInt32[np.ndarray, " n"], times: Int64[np.ndarray, " n"] | None) -> Int64[np.ndarray, " bins"]:
    counts = np.bincount(bins, times, minlength=2**_HALF)  # float64 where weighted: exact below 2^53
    return counts.astype(np.int64)


def _key(values: Float32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """Bits whose order as whole numbers is the order of the values."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return bits ^ np.where(bits >> 31, np.uint32(0xFFFFFFFF), np.uint32(0x80000000))


def _value(key: int) -> float:
    bits = key ^ (0x80000000 if key >> 31 else 0xFFFFFFFF)
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])
