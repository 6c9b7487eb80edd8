"""Terms of latent-variable models: divergences of diagonal Gaussians, over all pairs of a step where they need pairs, samples,
and how alike two embeddings hold the same cells. One value a cell, in float32; callers reduce."""

import math
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Float32, Int, Int64, Shaped
from torch import Tensor
from torch.nn import functional

from expresser.model.keyed import splitmix64


class _Gathered(torch.autograd.Function):
    """Rows of all processes; a row's gradient is the sum of what each process has for it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = [torch.zeros(1, dtype=torch.int64, device=x.device) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, torch.tensor([len(x)], device=x.device))
        ctx.sizes = [int(size) for size in sizes]
        longest = max(ctx.sizes)  # processes of one step may differ by a cell
        padded = torch.cat([x, x.new_zeros(longest - len(x), *x.shape[1:])])
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded.contiguous())
        return torch.cat([part[:size] for part, size in zip(parts, ctx.sizes)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        total = grads[0].contiguous().clone()
        dist.all_reduce(total)
        return total.split(ctx.sizes)[dist.get_rank()]


def gathered(x: Shaped[Tensor, "cells *rest"]) -> Shaped[Tensor, "step *rest"]:
    """Rows of the whole step, process by process; differentiable. With one process, the same tensor."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _Gathered.apply(x)
    return x


def gaussian_kl(
    mean: Float[Tensor, "cells latent"], log_var: Float[Tensor, "cells latent"]
) -> Float32[Tensor, " cells"]:
    r"""Divergence of each cell's Gaussian from the standard one, nats:
    :math:`\tfrac12 \sum_d (v_d + m_d^2 - 1 - \ln v_d)`."""
    mean, log_var = mean.float(), log_var.float()
    return 0.5 * (log_var.expm1() - log_var + mean.square()).sum(dim=1)


def pairwise_kl(
    mean: Float[Tensor, "cells latent"],
    log_var: Float[Tensor, "cells latent"],
    *,
    others: tuple[Float[Tensor, "others latent"], Float[Tensor, "others latent"]] | None = None,
) -> Float32[Tensor, "cells others"]:
    r"""Divergence of each cell's Gaussian from that of every other (default: of the same cells), nats.

    .. math:: KL_{ij} = \tfrac12 \sum_d \left[ \frac{v_i}{v_j} + \frac{(m_i - m_j)^2}{v_j} + \ln v_j - \ln v_i - 1 \right]

    by matrix products, in float64 since these are large where cells lie far apart: nothing of cells x others x latent is made.
    others: their means and log variances.
    """
    with torch.autocast(mean.device.type, enabled=False):
        m, s = mean.double(), log_var.double()
        n, t = (m, s) if others is None else (others[0].double(), others[1].double())
        # Divergences do not move with the origin, but their rounding does: means lie about zero here.
        centre = n.detach().mean(dim=0)
        m, n, precision = m - centre, n - centre, (-t).exp()
        ratio = (s.exp() + m.square()) @ precision.T
        cross = m @ (n * precision).T
        of_other = (n.square() * precision + t).sum(dim=1)
        return (0.5 * (ratio - 2 * cross + of_other - s.sum(dim=1, keepdim=True) - m.shape[1])).float()


def mutual_information_bound(
    mean: Float[Tensor, "cells latent"], log_var: Float[Tensor, "cells latent"]
) -> Float32[Tensor, " cells"]:
    r"""Each cell's mean divergence from the cells of the whole step, itself included, nats.

    It is above :math:`KL(q(z \mid x) \,\|\, q(z))` with the step's mixture for :math:`q(z)` (the divergence is convex), whose mean
    over cells is the information that latents have about cells, and so about what cells are confounded by.
    """
    return pairwise_kl(mean, log_var, others=(gathered(mean), gathered(log_var))).mean(dim=1)


def similarity_loss(
    latent: Float[Tensor, "cells latent"],
    reference: Float[Tensor, "cells dim"],
    *,
    weight: Float[Tensor, " cells"],
    group: Int[Tensor, " cells"],
) -> Float32[Tensor, " cells"]:
    r"""How differently two embeddings arrange each cell among the cells of the whole step: :math:`\sum_j w_i w_j (s_{ij} - r_{ij})^2`.

    s and r are cosine similarities in the latent and in the reference; j runs over the cells of i's group. Cells of weight 0
    neither count nor get a gradient. Summed over cells it counts each pair twice.
    """
    with torch.autocast(latent.device.type, enabled=False):
        z = functional.normalize(latent.float(), dim=1)
        # What a cell without a reference holds there is not to be looked at: it may be anything.
        r = functional.normalize(reference.float().masked_fill(weight[:, None] == 0, 0.0), dim=1)
        pairs = weight[:, None] * gathered(weight) * (group[:, None] == gathered(group))
        difference = z @ gathered(z).T - r @ gathered(r).T
        return (pairs * difference.square()).sum(dim=1)


def comparable_pairs(weight: Float[Tensor, " cells"], group: Int[Tensor, " cells"]) -> int:
    """How many terms of `similarity_loss` the whole step has: pairs of cells with a weight, inside a group; at least 1."""
    with torch.no_grad():
        groups = gathered(group)[gathered(weight) > 0]
        return max(int(groups.unique(return_counts=True)[1].square().sum()), 1)


def standard_normal(
    rows: Int[Tensor, " cells"] | Int64[np.ndarray, " cells"], n: int, *, key: int
) -> Float32[Tensor, "cells n"]:
    """n draws a cell, a function of (key, row, place) alone: the same however cells are dealt out.

    Box and Muller's transform of two hashed uniforms; one cosine a draw, so that a draw does not depend on n.
    """
    cells = torch.as_tensor(rows).long()
    own = splitmix64(splitmix64(cells + key))[:, None] + torch.arange(n, device=cells.device)
    first = splitmix64(own)
    second = splitmix64(first)
    radius = ((first >> 40 & 0xFFFFFF) + 1).double() / (1 << 24)  # in (0, 1]
    angle = (second >> 40 & 0xFFFFFF).double() / (1 << 24)
    return ((-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()).float()


def sample_latent(
    mean: Float[Tensor, "cells latent"],
    log_var: Float[Tensor, "cells latent"],
    rows: Int[Tensor, " cells"] | Int64[np.ndarray, " cells"],
    key: int,
    *,
    sd_is_variance: bool = False,
) -> Float32[Tensor, "cells latent"]:
    """One draw from each cell's Gaussian, differentiable in both parameters; noise is a function of (key, row) alone.

    sd_is_variance: the variance is taken for the standard deviation, as some released code does.
    """
    noise = standard_normal(rows, mean.shape[1], key=key).to(mean.device)
    return mean.float() + (log_var.float() * (1.0 if sd_is_variance else 0.5)).exp() * noise
