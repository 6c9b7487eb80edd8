"""Rows whose numbers are known beforehand: a compiled model sees one shape, and nobody asks the device for a number."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from expresser.model.ragged import Ragged


@dataclass(frozen=True)
class FixedRagged(Ragged):
    """Rows with ``total`` entries together and none longer than ``bound``, whatever ``lengths`` says of each."""

    total: int
    bound: int

    @cached_property
    def n_entries(self) -> int:
        """Number of packed entries."""
        return self.total

    @cached_property
    def longest(self) -> int:
        """No row is longer."""
        return self.bound


def settle(rows: Ragged) -> None:
    """Work out everything that rows work out when first asked: inside a compiled region it can be asked for, not worked out."""
    for kind in type(rows).__mro__:
        for name, value in vars(kind).items():
            if isinstance(value, cached_property):
                getattr(rows, name)


def true_positions(flags: Bool[Tensor, " entries"], n: int) -> Int[Tensor, " n"]:
    """Positions of the entries that are True. Their number ``n`` being known, nobody waits for the device to count them."""
    place = torch.where(flags, torch.cumsum(flags, 0) - 1, n)
    positions = torch.arange(flags.numel(), device=flags.device)
    return positions.new_zeros(n + 1).scatter_(0, place, positions)[:n]
