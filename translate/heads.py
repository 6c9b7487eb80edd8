"""Output layers over all genes or peaks, and their losses, computed block by block: the outputs of the whole genome are
never kept, neither forward nor backward."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from expresser.likelihoods import focal_loss
from translate.batches import Block, SparseRows, within
from translate.blocks import xavier_linear
from translate.factor_linear import OutputLayer, output_layer, part_of, shrink

Outputs = Sequence[Tensor]
# Outputs [cells, features of the block] (may be overwritten), the block's measurements, whether gradients are wanted
# -> the sum of the loss over the block, and its gradient for each output.
BlockLoss = Callable[[Outputs, Block, bool], tuple[Tensor, Sequence[Tensor]]]

MEAN_RANGE = (1e-5, 1e6)
DISPERSION_RANGE = (1e-4, 1e3)
START = 0.1  # what a head's weights are multiplied by where it starts at base rates
# The same for the outputs that they are computed from, by exp and by softplus.
LOG_MEAN_RANGE = (math.log(MEAN_RANGE[0]), math.log(MEAN_RANGE[1]))
RAW_DISPERSION_RANGE = (math.log(math.expm1(DISPERSION_RANGE[0])), DISPERSION_RANGE[1])
LARGEST = 40.0  # log-odds: the product of two 1 + e^z is still a float32


class _Blockwise(torch.autograd.Function):
    """Sum of a loss over outputs ``hidden @ weight.T + bias``, each block's gradient taken while the block is there."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: BlockLoss,
        target: SparseRows,
        parents: Sequence[int] | None,
        wanted: bool,
        moving: bool,
        hidden: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        weights, biases = parameters[0::2], parameters[1::2]
        # One layer before all outputs ([cells, size]) or one for each parent of blocks ([cells, parents, size]).
        layers = [x.to(dtype).contiguous() for x in (hidden.unbind(1) if parents is not None else [hidden])]
        below = [torch.zeros_like(x, dtype=torch.float32) for x in layers] if wanted else []
        grads = [torch.empty_like(p) for p in parameters] if wanted and moving else []
        ctx.n_parameters = len(parameters)
        total = torch.zeros((), dtype=torch.float64, device=hidden.device)
        for number, span in enumerate(slice(a, b) for a, b in pairwise(target.bounds)):
            if span.start == span.stop:
                continue
            which = 0 if parents is None else parents[number]
            h, ws = layers[which], [w[span].to(dtype) for w in weights]
            outputs = [linear(h, w, b[span].to(dtype)).float() for w, b in zip(ws, biases)]
            value, slopes = loss(outputs, target.block(number), wanted)
            total += value
            for i, slope in enumerate(slopes):
                g = slope.to(dtype)
                below[which] += g @ ws[i]
                if not moving:  # a frozen output layer: only what is below it learns
                    continue
                grads[2 * i][span] = g.T @ h
                torch.sum(slope, dim=0, out=grads[2 * i + 1][span])
        if wanted:
            ctx.save_for_backward(torch.stack(below, dim=1) if parents is not None else below[0], *grads)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        below, *grads = (g * scale for g in ctx.saved_tensors)
        return None, None, None, None, None, below, *(grads or [None] * ctx.n_parameters)


def blockwise(
    loss: BlockLoss,
    target: SparseRows,
    hidden: Float[Tensor, "cells *size"],
    *parameters: Tensor,
    parents: Sequence[int] | None = None,
) -> Float32[Tensor, ""]:
    """Sum of a loss over all outputs; parameters: weight and bias of each output layer, in turn.

    parents: which of the layers in `hidden` each block of the target is computed from, where there are several.
    """
    # `ctx.needs_input_grad` does not know of no_grad.
    moving = torch.is_grad_enabled() and any(x.requires_grad for x in parameters)
    wanted = moving or (torch.is_grad_enabled() and hidden.requires_grad)
    return _Blockwise.apply(loss, target, parents, wanted, moving, hidden, *parameters)


def bernoulli_block(outputs: Outputs, block: Block, wanted: bool) -> tuple[Tensor, Sequence[Tensor]]:
    r"""Minus the Bernoulli log-likelihood: :math:`\sum \ln(1 + e^z) - \sum_{open} z`, gradient :math:`\sigma(z) - y`.

    One exponential serves both, and one logarithm two entries: :math:`\ln(1 + e^a) + \ln(1 + e^b) = \ln((1 + e^a)(1 + e^b))`.
    """
    z = outputs[0].view(-1)
    total = -z.index_select(0, block.flat).sum()
    if len(z) and (z.device.type != "cpu" or not z.amax() <= LARGEST):
        total = total + (z - LARGEST).clamp_min_(0).sum()  # beyond it ln(1 + e^z) is z
        z.clamp_max_(LARGEST)
    exp = z.exp_()
    u = exp + 1
    # Not 1 - 1 / u, which rounds away the gradient of peaks that are open in one cell of some thousands.
    slope = exp.div_(u) if wanted else None
    half = len(u) // 2
    pairs = torch.mul(u[:half], u[half : 2 * half], out=u[:half])
    total = total + pairs.log_().sum() + u[2 * half :].log().sum()
    if slope is None:
        return total, ()
    slope.index_add_(0, block.flat, torch.ones_like(block.flat, dtype=slope.dtype), alpha=-1)
    return total, (slope.view_as(outputs[0]),)


def weighted_bernoulli_block(
    outputs: Outputs, block: Block, wanted: bool, *, positive_weight: Float[Tensor, ""] | float
) -> tuple[Tensor, Sequence[Tensor]]:
    r"""`bernoulli_block` with open entries counted `positive_weight` times: :math:`\sum \ln(1 + e^z) - \sum_{open} z +
    (\omega - 1) \sum_{open} \ln(1 + e^{-z})`; only the last sum is new, and it is over open entries.
    """
    opened = outputs[0].view(-1).index_select(0, block.flat)  # before it is overwritten
    total, slopes = bernoulli_block(outputs, block, wanted)
    more = positive_weight - 1
    total = total + more * softplus(-opened).sum()
    for slope in slopes:
        slope.view(-1).index_add_(0, block.flat, opened.neg_().sigmoid_() * -more)
    return total, slopes


RATE_RANGE = (-30.0, 15.0)  # of its log: outside, log-odds of being open are not float32s


def depth_block(
    outputs: Outputs, block: Block, wanted: bool, *, log_depth: Float[Tensor, " cells"]
) -> tuple[Tensor, Sequence[Tensor]]:
    r"""Minus the Bernoulli log-likelihood where depth d of a cell multiplies the rate at which a peak opens.

    .. math:: p = 1 - e^{-\lambda}, \quad \lambda = d\,e^z, \qquad -\ln P = \sum \lambda - \sum_{open} \ln(e^\lambda - 1)

    Outputs: z, the log of the rate (clamped to `RATE_RANGE` with depth in it). The more depth, the likelier, and never above 1;
    only the rate is needed of entries that are closed. log_depth: of each cell, against the depth that z is a rate at.
    """
    eta = outputs[0].add_(log_depth[:, None])
    free = _held(eta, *RATE_RANGE)
    opened = eta.view(-1).index_select(0, block.flat).exp_()
    rate = eta.exp_()
    total = rate.sum() - log_expm1(opened).sum()
    if not wanted:
        return total, ()
    rate.view(-1).index_add_(0, block.flat, opened / torch.expm1(-opened))
    if free is not None:
        rate.mul_(free)
    return total, (rate,)


def log_expm1(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    r""":math:`\ln(e^x - 1)` for x > 0: the log-odds of being open at this rate."""
    return x + torch.log(-torch.expm1(-x))


def product_block(
    outputs: Outputs, block: Block, wanted: bool, *, depth: Float[Tensor, " cells"]
) -> tuple[Tensor, Sequence[Tensor]]:
    """The same with the probability sigmoid(z) times the cell's `depth`, held inside (0, 1): above 1 / depth nothing is learnt.

    What Polarbear's released code does, with thousands of open peaks for depth; differentiated by autograd.
    """
    leaf = outputs[0].detach().requires_grad_(wanted)
    with torch.set_grad_enabled(wanted):
        p = product_probability(leaf, depth)
        opened = p.view(-1)[block.flat]
        total = (opened.neg().log1p() - opened.log()).sum() - p.neg().log1p().sum()
    return total.detach(), torch.autograd.grad(total, [leaf]) if wanted else ()


def product_probability(
    logits: Float[Tensor, "cells peaks"], depth: Float[Tensor, " cells"]
) -> Float[Tensor, "cells peaks"]:
    """sigmoid(z) times depth, held to [1e-7, 1 - 1e-7]."""
    return (logits.sigmoid() * depth[:, None]).clamp(1e-7, 1 - 1e-7)


def nb_block(outputs: Outputs, block: Block, wanted: bool) -> tuple[Tensor, Sequence[Tensor]]:
    r"""Minus the negative-binomial log-likelihood of `expresser.likelihoods.nb_log_prob`, counts sparse.

    Outputs: log of the mean, and the dispersion before softplus, both clamped as `CountHead` says. A zero costs
    :math:`\theta \ln(1 + \mu / \theta)`; gamma functions are needed at non-zeros only.
    """
    raw_mean, raw_dispersion = outputs
    free_mean, free_dispersion = _held(raw_mean, *LOG_MEAN_RANGE), _held(raw_dispersion, *RAW_DISPERSION_RANGE)
    mu, theta = raw_mean.exp_(), softplus(raw_dispersion)
    ratio = mu / theta
    log1p = ratio.log1p()
    at, y = block.flat, block.amounts()
    # Gamma functions of large counts differ by less than a float32 of either holds.
    y = y.double()
    m, t = mu.view(-1).index_select(0, at).double(), theta.view(-1).index_select(0, at).double()
    nonzero = y * torch.log1p(t / m) + t.lgamma() + (y + 1).lgamma() - (y + t).lgamma()
    total = (theta * log1p).sum() + nonzero.sum()
    if not wanted:
        return total, ()
    share = (ratio + 1).reciprocal_()  # θ / (θ + μ)
    # Not log1p + share - 1, which is 6e-8 of rounding where μ << θ and the difference is smaller than that.
    slope_theta = log1p.sub_(ratio.mul_(share))
    slope_theta.view(-1).index_add_(0, at, (y / (t + m) + t.digamma() - (y + t).digamma()).float())
    slope_mean = share.mul_(mu)  # the chain rule through exp
    slope_mean.view(-1).index_add_(0, at, (y * t / (t + m)).float(), alpha=-1)
    slope_theta.mul_(raw_dispersion.sigmoid_())  # and through softplus
    for slope, free in ((slope_mean, free_mean), (slope_theta, free_dispersion)):
        if free is not None:
            slope.mul_(free)
    return total, (slope_mean, slope_theta)


def _held(x: Tensor, low: float, high: float) -> Tensor | None:
    """Clamp in place; where nothing was held (1), or None if that was nowhere, which only a CPU can tell without waiting."""
    if x.device.type == "cpu" and x.numel():
        least, most = x.aminmax()
        if low <= least and most <= high:
            return None
    free = (x >= low) & (x <= high)
    x.clamp_(low, high)
    return free


def focal_block(
    outputs: Outputs, block: Block, wanted: bool, *, gamma: float, positive_weight: float, negative_weight: float
) -> tuple[Tensor, Sequence[Tensor]]:
    """`expresser.likelihoods.focal_loss` summed over the block; differentiated by autograd."""
    leaf = outputs[0].detach().requires_grad_(wanted)
    truth = torch.zeros_like(leaf)
    truth.view(-1)[block.flat] = 1.0
    with torch.set_grad_enabled(wanted):
        total = focal_loss(
            truth, logits=leaf, gamma=gamma, positive_weight=positive_weight, negative_weight=negative_weight
        ).sum()
    return total.detach(), torch.autograd.grad(total, [leaf]) if wanted else ()


@dataclass(frozen=True)
class Focal:
    """Which focal loss: weights of open and closed entries, and how fast entries that are right lose weight."""

    gamma: float = 2.0  # how fast entries that are right lose weight; 0: they do not
    positive_weight: float = 0.93  # of open entries
    negative_weight: float = 0.07  # of closed ones

    def block(self) -> BlockLoss:
        """The loss of one block."""
        return partial(
            focal_block,
            gamma=self.gamma,
            positive_weight=self.positive_weight,
            negative_weight=self.negative_weight,
        )


def shrinkage(weight: Float[Tensor, "outputs inputs"], sd: float) -> Float32[Tensor, ""]:
    """Minus the log density of an output layer's weights, less a constant, where each output departs from its bias by `sd`.

    Gaussian, with inputs of unit variance: weights have the variance sd² / inputs. Without it a few hundred cells decide the
    many weights of a gene or peak that shows in a few dozen of them.
    """
    return torch.linalg.vector_norm(weight.float()).square() * (weight.shape[1] / (2 * sd**2))


class LevelHead(nn.Linear):
    """A linear output of each protein, Xavier-uniform."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(n_in, n_out)
        nn.init.xavier_uniform_(self.weight)

    @torch.no_grad()
    def start_at(self, mean: Float32[Tensor, " outputs"]) -> None:
        """Begin at these means, with little else."""
        self.bias.copy_(mean)
        self.weight.mul_(START)


class CountHead(nn.Module):
    """Mean = exp(linear), clamped to [1e-5, 1e6], and dispersion = softplus(linear), clamped to [1e-4, 1e3], of each gene.

    mean: the layer of the means, where it is not to be one of its own weights.
    """

    def __init__(self, n_in: int, n_genes: int, mean: OutputLayer | None = None) -> None:
        super().__init__()
        self.mean, self.dispersion = output_layer(n_in, n_genes, mean), xavier_linear(n_in, n_genes)

    def loss(self, hidden: Float[Tensor, "cells size"], target: SparseRows) -> Float32[Tensor, ""]:
        """Minus the NB log-likelihood in nats, summed over cells and genes."""
        parameters = [p for layer in (self.mean, self.dispersion) for p in (layer.weight, layer.bias)]
        return blockwise(nb_block, target, hidden, *parameters)

    @torch.no_grad()
    def start_at(self, mean: Float32[Tensor, " genes"]) -> None:
        """Begin at these means, with little else."""
        self.mean.bias.copy_(mean.clamp_min(1e-4).log())
        for layer in (self.mean, self.dispersion):
            shrink(layer, START)

    def prior(self, sd: float) -> Float32[Tensor, ""]:
        """`shrinkage` of both outputs."""
        return shrinkage(self.mean.weight, sd) + shrinkage(self.dispersion.weight, sd)

    def predict(self, hidden: Float[Tensor, "cells size"], genes: slice) -> Float32[Tensor, "cells genes"]:
        """The mean of these genes, linear."""
        return linear(hidden, *part_of(self.mean, genes)).float().clamp(*LOG_MEAN_RANGE).exp()


class OpenHead(nn.Module):
    """Log-odds that each peak is open. Peaks lie in blocks; with `per_block` each block has a hidden layer of its own."""

    def __init__(
        self,
        bounds: Sequence[int],
        n_in: int,
        *,
        per_block: bool,
        bias: float | None = None,
        loss: BlockLoss | None = None,
    ) -> None:
        super().__init__()
        self.bounds, self.per_block = tuple(bounds), per_block
        self.block_loss = loss or bernoulli_block
        if per_block:
            sizes = [b - a for a, b in pairwise(bounds)]
            parts = [xavier_linear(n_in, max(n, 1)) for n in sizes]
        else:
            sizes = [bounds[-1]]
            parts = [xavier_linear(n_in, bounds[-1])]
        self.weight = nn.Parameter(torch.cat([p.weight.data[:n] for p, n in zip(parts, sizes)]))
        self.bias = nn.Parameter(torch.cat([p.bias.data[:n] for p, n in zip(parts, sizes)]))
        if bias is not None:
            nn.init.constant_(self.bias, bias)

    def loss(
        self,
        hidden: Float[Tensor, "cells *size"],
        target: SparseRows,
        *,
        positive_weight: Float[Tensor, ""] | float | None = None,
        block_loss: BlockLoss | None = None,
    ) -> Float32[Tensor, ""]:
        """The loss (default: minus the Bernoulli log-likelihood, nats), summed over cells and peaks.

        positive_weight: open peaks count so many times in the Bernoulli loss. block_loss: another loss, of these cells.
        """
        parents = within(target.bounds, self.bounds) if self.per_block else None
        block_loss = block_loss or self.block_loss
        if positive_weight is not None:
            block_loss = partial(weighted_bernoulli_block, positive_weight=positive_weight)
        return blockwise(block_loss, target, hidden, self.weight, self.bias, parents=parents)

    @torch.no_grad()
    def start_at(self, share: Float32[Tensor, " peaks"]) -> None:
        """Begin at these shares of open cells, with little else."""
        self.bias.copy_(share.clamp(1e-4, 1 - 1e-4).logit())
        self.weight.mul_(START)

    def prior(self, sd: float) -> Float32[Tensor, ""]:
        """`shrinkage` of the log-odds."""
        return shrinkage(self.weight, sd)

    def logits(self, hidden: Float[Tensor, "cells *size"], peaks: slice) -> Float32[Tensor, "cells peaks"]:
        """Log-odds of these peaks."""
        if not self.per_block:
            return linear(hidden, self.weight[peaks], self.bias[peaks]).float()
        parts = [
            linear(hidden[:, number], self.weight[a:b], self.bias[a:b]).float() for number, a, b in self._spans(peaks)
        ]
        return torch.cat(parts, dim=1) if parts else hidden.new_zeros(len(hidden), 0)

    def _spans(self, peaks: slice) -> Iterable[tuple[int, int, int]]:
        start, stop, step = peaks.indices(self.bounds[-1])
        if step != 1:
            raise ValueError(f"peaks are asked in runs, not in steps of {step}.")
        for number, (a, b) in enumerate(zip(self.bounds, self.bounds[1:])):
            if max(a, start) < min(b, stop):
                yield number, max(a, start), min(b, stop)
