"""Rows of different lengths: packed end to end, padded only inside attention."""

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """How ``entries`` packed values divide into rows: row ``i`` has ``lengths[i]`` of them, rows follow one another."""

    lengths: Int[Tensor, " rows"]

    @cached_property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.lengths.numel()

    @cached_property
    def n_entries(self) -> int:
        """Number of packed entries."""
        return int(self.lengths.sum())

    @cached_property
    def longest(self) -> int:
        """Length of the longest row."""
        return int(self.lengths.max()) if self.n_rows else 0

    @cached_property
    def is_full(self) -> bool:
        """Whether all rows have the same length, so that padding is a reshape."""
        return self.n_entries == self.n_rows * self.longest

    @cached_property
    def starts(self) -> Int[Tensor, " rows"]:
        """Position of each row's first entry."""
        return torch.cumsum(self.lengths, 0) - self.lengths

    @cached_property
    def boundaries(self) -> Int[Tensor, " boundaries"]:
        """Cumulative lengths from 0 on, as kernels for packed rows want them: int32."""
        return F.pad(torch.cumsum(self.lengths, 0), (1, 0)).int()

    @cached_property
    def row(self) -> Int[Tensor, " entries"]:
        """Row of each entry."""
        rows = torch.arange(self.n_rows, device=self.lengths.device)
        return torch.repeat_interleave(rows, self.lengths, output_size=self.n_entries)

    @cached_property
    def offset(self) -> Int[Tensor, " entries"]:
        """Position of each entry inside its row."""
        return torch.arange(self.n_entries, device=self.lengths.device) - self.starts[self.row]

    @cached_property
    def slot(self) -> Int[Tensor, " entries"]:
        """Where each entry lies in the flattened padded matrix (rows x longest)."""
        return self.row * self.longest + self.offset

    @cached_property
    def key_mask(self) -> Bool[Tensor, "rows 1 1 longest"] | None:
        """True where a padded slot holds an entry; None when no slot is empty. Boolean, so that padding scores -inf, never +1."""
        if self.is_full:
            return None
        positions = torch.arange(self.longest, device=self.lengths.device)
        return (positions < self.lengths[:, None])[:, None, None, :]

    def pad(self, packed: Float[Tensor, "entries *rest"]) -> Float[Tensor, "rows longest *rest"]:
        """Packed to padded with zeros."""
        rest = packed.shape[1:]
        if not self.is_full:
            packed = _Scatter.apply(packed, self.slot, self.n_rows * self.longest)
        return packed.reshape(self.n_rows, self.longest, *rest)

    def unpad(self, padded: Float[Tensor, "rows longest *rest"]) -> Float[Tensor, "entries *rest"]:
        """Padded to packed; the inverse of :meth:`pad`."""
        flat = padded.reshape(self.n_rows * self.longest, *padded.shape[2:])
        return flat if self.is_full else _Gather.apply(flat, self.slot)

    def sum(self, values: Float[Tensor, " entries"]) -> Float[Tensor, " rows"]:
        """Sum of each row; 0 for an empty one."""
        return values.new_zeros(self.n_rows).index_add(0, self.row, values)

    def mean(self, values: Float[Tensor, " entries"]) -> Float[Tensor, " rows"]:
        """Mean of each row; 0 for an empty one."""
        return self.sum(values) / self.lengths.clamp(min=1)

    def max(self, values: Float[Tensor, " entries"]) -> Float[Tensor, " rows"]:
        """Largest value of each row; 0 for an empty one (values are not negative)."""
        return values.new_zeros(self.n_rows).scatter_reduce(0, self.row, values, "amax")


class _Scatter(torch.autograd.Function):
    """Rows to distinct slots of a zero matrix. Both directions are plain copies; autograd's own backward would add atomically."""

    @staticmethod
    def forward(ctx, packed, slot, n_slots):
        ctx.save_for_backward(slot)
        return packed.new_zeros(n_slots, *packed.shape[1:]).index_copy_(0, slot, packed)

    @staticmethod
    def backward(ctx, gradient):
        (slot,) = ctx.saved_tensors
        return gradient.index_select(0, slot), None, None


class _Gather(torch.autograd.Function):
    """Rows from distinct slots; the transpose of :class:`_Scatter`."""

    @staticmethod
    def forward(ctx, flat, slot):
        ctx.save_for_backward(slot)
        ctx.n_slots = flat.shape[0]
        return flat.index_select(0, slot)

    @staticmethod
    def backward(ctx, gradient):
        (slot,) = ctx.saved_tensors
        return gradient.new_zeros(ctx.n_slots, *gradient.shape[1:]).index_copy_(0, slot, gradient), None
