"""Layers the systems share: a first layer that costs what the non-zeros cost, layers of one chromosome each, and norms
that see the whole step."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Float32
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional

from translate.batches import SparseRows, within


class _BagSum(torch.autograd.Function):
    """Sums of weight rows over each bag's entries, weighted by their values.

    The gradient is the transposed product. torch's own for `embedding_bag` sorts the entries first: on two cores 294 ms for
    3.4 million entries of 32 numbers where scipy's product takes 21. values: those of the rows, once more, so that their own
    gradient can be asked for: that of each entry is the product of its weights and its bag's gradient.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, values: Tensor | None, rows: SparseRows) -> Tensor:
        ctx.rows, ctx.n_rows = rows, weight.shape[0]
        ctx.weight = weight.detach() if ctx.needs_input_grad[1] else None
        return functional.embedding_bag(
            rows.indices, weight, rows.offsets, mode="sum", include_last_offset=True, per_sample_weights=rows.values
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        rows, (grad,) = ctx.rows, grads
        own = None
        if ctx.weight is not None:
            bags = torch.repeat_interleave(rows.offsets.diff(), output_size=len(rows.indices))
            step = max(1, (1 << 20) // grad.shape[1])  # what is gathered fits into a cache, not into memory alone
            cuts = zip(bags.split(step), rows.indices.split(step))
            parts = [torch.einsum("ek,ek->e", grad[bag], ctx.weight[index]) for bag, index in cuts]
            own = torch.cat(parts) if parts else grad.new_zeros(0)
        if not ctx.needs_input_grad[0]:
            return None, own, None
        values = torch.ones_like(rows.indices, dtype=grad.dtype) if rows.values is None else rows.values.detach()
        if grad.device.type == "cpu":
            arrays = (values.numpy(), rows.indices.numpy(), rows.offsets.numpy())
            matrix = sparse.csr_matrix(arrays, shape=(len(grad), ctx.n_rows))
            return torch.from_numpy(matrix.T @ grad.contiguous().numpy()), own, None
        bags = torch.repeat_interleave(torch.arange(len(grad), device=grad.device), rows.offsets.long().diff())
        matrix = torch.sparse_coo_tensor(
            torch.stack([rows.indices.long(), bags]), values, (ctx.n_rows, len(grad)), check_invariants=False
        )
        return torch.sparse.mm(matrix, grad), own, None


class SparseLinear(nn.Module):
    r"""A linear layer on sparse input, block by block: :math:`y_{ik} = b_k + \sum_{j \in k} (x_{ij} + r_j) W_j`.

    It equals a dense layer with block-diagonal weight and costs n_out multiplications a non-zero. With `joint` all blocks
    are one, as in a dense layer. rest: the value r that a zero count stands for (standardised expression is never zero); x
    holds what is above it. scaled: each cell's input is brought to the total `typical` (that of a median training cell), so
    that depth does not move what is learnt. Weights start Xavier-uniform in each block, as do those of the dense layers this
    stands for.
    """

    rest: Tensor | None
    typical: Tensor | None

    def __init__(
        self,
        bounds: Sequence[int],
        n_out: int,
        *,
        joint: bool = False,
        rest: Float32[np.ndarray, " features"] | None = None,
        scaled: bool = False,
    ) -> None:
        super().__init__()
        self.bounds = (0, bounds[-1]) if joint else tuple(bounds)
        self.joint = joint
        self.weight = nn.Parameter(torch.empty(self.bounds[-1], n_out))
        sizes = [stop - start for start, stop in pairwise(self.bounds)]
        for start, stop in pairwise(self.bounds):
            _xavier(self.weight.data[start:stop], stop - start, n_out)
        spread = torch.tensor([max(size, 1) for size in sizes]).rsqrt()
        self.bias = nn.Parameter((torch.rand(len(sizes), n_out) * 2 - 1) * spread[:, None])
        self.register_buffer("rest", None if rest is None else torch.from_numpy(rest.copy()))
        self.register_buffer("typical", torch.ones(()) if scaled else None)

    def forward(self, rows: SparseRows) -> Float[Tensor, "cells blocks n_out"]:
        """rows: a batch whose columns are parted where this layer's are, and anywhere else."""
        try:
            parents = within(rows.bounds, self.bounds)
        except ValueError as error:
            raise ValueError(f"the batch's blocks are not this layer's: {error}") from None
        with torch.autocast(rows.indices.device.type, enabled=False):
            bags = _BagSum.apply(self.weight, rows.values, rows).view(rows.n_blocks, rows.n_cells, self.weight.shape[1])
            if rows.n_blocks > len(self.bias):
                sums = bags.new_zeros(len(self.bias), *bags.shape[1:])
                bags = sums.index_add(0, torch.tensor(parents, device=bags.device), bags)
            out = bags.transpose(0, 1)
            if self.typical is not None:
                out = out * (self.typical / rows.totals().clamp_min(1.0))[:, None, None]
            out = out + self.bias
            if self.rest is None:
                return out
            return out + torch.stack([self.rest[a:b] @ self.weight[a:b] for a, b in pairwise(self.bounds)])

    def dense(self, x: Float[Tensor, "cells features"]) -> Float[Tensor, "cells 1 n_out"]:
        """The same for input that is dense already; joint layers only."""
        return (x @ self.weight + self.bias)[:, None]


class ChromosomeLinear(nn.Module):
    """One linear layer for each chromosome, none between them: all in one batched product. PyTorch's bias, Xavier weights."""

    def __init__(self, n_blocks: int, n_in: int, n_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_xavier(torch.empty(n_blocks, n_in, n_out), n_in, n_out))
        self.bias = nn.Parameter((torch.rand(n_blocks, n_out) * 2 - 1) / math.sqrt(n_in))

    def forward(self, x: Float[Tensor, "cells blocks n_in"]) -> Float[Tensor, "cells blocks n_out"]:
        return torch.einsum("cki,kio->cko", x, self.weight) + self.bias


class _SumOverProcesses(torch.autograd.Function):
    """The sum over processes; each contributes to the loss of all, so its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].clone()
        dist.all_reduce(total)
        return total


class BatchNorm(nn.Module):
    """Batch normalisation over cells by the statistics of the whole step, over all processes; float32.

    With one process it is `torch.nn.BatchNorm1d` (ε 1e-5, momentum 0.1); with several, sums are exchanged, so that the
    result does not depend on how many share the step. Takes [cells, features] or [cells, blocks, features], each feature of
    each block by itself.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, *features: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        n = math.prod(features)
        self.weight, self.bias = nn.Parameter(torch.ones(n)), nn.Parameter(torch.zeros(n))
        self.register_buffer("mean", torch.zeros(n))
        self.register_buffer("variance", torch.ones(n))

    def forward(self, x: Float[Tensor, "cells *features"]) -> Float[Tensor, "cells *features"]:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.flatten(1).float()
            if self.training and dist.is_initialized() and dist.get_world_size() > 1:
                return self._across(flat).view(x.shape)
            out = functional.batch_norm(
                flat, self.mean, self.variance, self.weight, self.bias, self.training, self.momentum, self.eps
            )
            return out.view(x.shape)

    def _across(self, x: Float32[Tensor, "cells features"]) -> Float32[Tensor, "cells features"]:
        n = torch.full((1,), float(len(x)), device=x.device)
        dist.all_reduce(n)
        mean = _SumOverProcesses.apply(x.sum(dim=0)) / n
        variance = _SumOverProcesses.apply(((x - mean) ** 2).sum(dim=0)) / n
        with torch.no_grad():
            self.mean.lerp_(mean, self.momentum)
            self.variance.lerp_(variance * n / (n - 1), self.momentum)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class PReLU(nn.Module):
    """One slope below zero (0.25 at the start) for each block."""

    def __init__(self, n_blocks: int = 1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((n_blocks,), 0.25))

    def forward(self, x: Float[Tensor, "cells *features"]) -> Float[Tensor, "cells *features"]:
        return functional.prelu(x, self.weight)


class Dense(nn.Sequential):
    """Linear (Xavier-uniform) → batch norm → activation, for each step of sizes."""

    def __init__(self, *sizes: int, slope: float | None = None) -> None:
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [xavier_linear(n_in, n_out), BatchNorm(n_out), activation(slope)]
        super().__init__(*layers)


def activation(slope: float | None) -> nn.Module:
    """A learned slope below zero (None), or this fixed one."""
    return PReLU() if slope is None else nn.LeakyReLU(slope)


def xavier_linear(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer with Xavier-uniform weight and PyTorch's bias."""
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    return layer


class SparseDense(nn.Module):
    """A dense encoder: a first layer that reads sparse cells, all blocks together, then `Dense` of these sizes."""

    def __init__(self, first: SparseLinear, *sizes: int, slope: float | None = None) -> None:
        super().__init__()
        self.first, wide = first, first.bias.shape[1]
        self.norm, self.activation = BatchNorm(wide), activation(slope)
        self.others = Dense(wide, *sizes, slope=slope)

    def forward(self, cells: Any) -> Float[Tensor, "cells latent"]:
        """cells: what the first layer reads, `SparseRows` or `RnaCells`."""
        first = self.first(cells).flatten(1)
        return self.others(self.activation(self.norm(first)))


def _xavier(weight: Tensor, n_in: int, n_out: int) -> Tensor:
    bound = math.sqrt(6 / (n_in + n_out))
    return nn.init.uniform_(weight, -bound, bound)
