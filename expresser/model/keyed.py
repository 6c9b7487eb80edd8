"""Randomness that is a function of its key: the same on every device, process count, worker and version."""

import torch
from jaxtyping import Int
from torch import Tensor

from expresser.model.ragged import Ragged

_GAMMA = -0x61C8864680B583EB  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX_1 = -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
_MIX_2 = -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
_HASH_BITS = 40


def splitmix64(x: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The output function of SplitMix64 (Steele, Lea & Flood, OOPSLA 2014) on wrapping signed 64-bit integers."""
    x = x + _GAMMA
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    # Right shift of a signed tensor copies the sign bit; the mask makes it logical.
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def keyed_rank(
    rows: Ragged, key: Int[Tensor, " rows"], item: Int[Tensor, " entries"], *, purpose: int
) -> Int[Tensor, " entries"]:
    """A random order inside each row: the rank (0, 1, …) of each entry, a function of (key of its row, item, purpose) alone.

    Parameters
    ----------
    rows
        How the entries divide into rows.
    key
        One integer a row, for example a hash of (seed, epoch, cell id).
    item
        One integer an entry that is distinct inside its row: the gene token.
    purpose
        Keeps the draws of different uses apart.
    """
    hashed = splitmix64(splitmix64(key + purpose * 0x2545F491)[rows.row] + item)
    composite = (rows.row << _HASH_BITS) | (hashed & ((1 << _HASH_BITS) - 1))
    order = torch.sort(composite, stable=True).indices
    rank = torch.empty_like(order)
    rank[order] = rows.offset  # entry order[i] stands at position i, which is offset[i] of the same row
    return rank
