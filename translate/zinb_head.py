"""The output layer of counts that share a library: a softmax over genes, dropout, and a dispersion for each gene and batch."""

import math
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn.functional import linear, softplus

from translate.batches import Block, SparseRows
from translate.blocks import xavier_linear
from translate.factor_linear import OutputLayer, output_layer, part_of, shrink
from translate.heads import DISPERSION_RANGE, START, shrinkage

CELLS = 512  # whose genes are looked at all at once
LOG_DISPERSION_RANGE = (math.log(DISPERSION_RANGE[0]), math.log(DISPERSION_RANGE[1]))


class _Zinb(torch.autograd.Function):
    """Minus the log-likelihood summed over all entries; gradients for log mean, dropout log-odds and log dispersion.

    The softmax needs every gene of a cell before the first can be judged, so log means and dropout of the step are kept whole
    (256 cells of 17,000 genes: 17 MB each, and as much for each gradient). Everything else is made block by block.
    """

    @staticmethod
    def forward(
        ctx: Any, target: SparseRows, codes: Tensor, wanted: bool, log_mean: Tensor, dropout: Tensor, table: Tensor
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=log_mean.device)
        grads = [torch.empty_like(x, dtype=torch.float32) for x in (log_mean, dropout, table)] if wanted else []
        of_batch = torch.nn.functional.one_hot(codes, len(table)).float()
        for number, span in enumerate(slice(a, b) for a, b in pairwise(target.bounds)):
            log_theta = table[:, span].float()
            raw = log_theta[codes] if len(table) > 1 else log_theta.expand(len(codes), -1)
            held = raw.clamp(*LOG_DISPERSION_RANGE)
            value, slopes = _judged(
                log_mean[:, span].float(), dropout[:, span].float(), held, target.block(number), wanted
            )
            total += value
            if wanted:
                of_mean, of_dropout, of_theta = slopes
                grads[0][:, span], grads[1][:, span] = of_mean, of_dropout
                grads[2][:, span] = of_batch.T @ of_theta.mul_(raw == held)
        if wanted:
            ctx.save_for_backward(*grads)
        return total.float()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = upstream
        return None, None, None, *(g * scale for g in ctx.saved_tensors)


def _judged(
    log_mean: Float32[Tensor, "cells genes"],
    dropout: Float32[Tensor, "cells genes"],
    log_theta: Float32[Tensor, "cells genes"],
    block: Block,
    wanted: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    r"""One block, as if all its entries were zero, and what its non-zeros change: gamma functions are needed at these only.

    With n the log-probability that the negative binomial gives a zero, a zero costs :math:`\mathrm{softplus}(-\pi) -
    \mathrm{softplus}(n - \pi)`.
    """
    mu, theta = log_mean.exp(), log_theta.exp()
    ratio = mu / theta
    log1p = ratio.log1p()
    n = -theta * log1p
    kept, at_zero = -dropout, n - dropout
    # That difference, of terms that are small where it is.
    total = -(torch.maximum(n, -kept.relu()) + softplus(-at_zero.abs()) - softplus(-kept.abs())).sum()
    # Gamma functions of large counts differ by less than a float32 of either holds.
    at, x = block.flat.long(), block.amounts().double()
    log_m, log_t, some_n, some_kept = (
        y.reshape(-1).index_select(0, at).double() for y in (log_mean, log_theta, n, kept)
    )
    m, t = log_m.exp(), log_t.exp()
    # Not log1p(t / m), since a share may be too small for a number.
    nonzero = some_n - x * softplus(log_t - log_m) + (x + t).lgamma() - t.lgamma() - (x + 1).lgamma()
    total = total + (softplus(some_n + some_kept) - some_kept - nonzero).sum()
    if not wanted:
        return total, ()
    # d/dn and d/dπ of every entry as a zero, then of the non-zeros what they have instead.
    of_n = -at_zero.sigmoid()
    of_dropout = -of_n - kept.sigmoid()
    of_n.view(-1).index_fill_(0, at, -1.0)
    of_dropout.view(-1).index_copy_(0, at, 1 - kept.view(-1).index_select(0, at).sigmoid())
    share = (ratio + 1).reciprocal()  # θ / (θ + μ)
    of_mean = of_n * mu.mul(share).neg_()
    of_mean.view(-1).index_add_(0, at, (x * t / (t + m)).float(), alpha=-1)
    of_theta = of_n.mul_(ratio.mul_(share).sub_(log1p))
    of_theta.view(-1).index_add_(0, at, (x / (t + m) + t.digamma() - (x + t).digamma()).float())
    return total, (of_mean, of_dropout, of_theta.mul_(theta))


class ZinbHead(nn.Module):
    r"""Share :math:`\rho` of each gene in a cell's counts, log-odds :math:`\pi` that one is lost, log dispersion by gene and batch.

    Counts are zero-inflated negative binomial with mean :math:`\rho` times the library
    (`expresser.likelihoods.zinb_log_prob`). scale: the layer of the shares, where it is not to be one of its own weights.
    """

    def __init__(self, n_in: int, n_genes: int, n_batches: int, scale: OutputLayer | None = None) -> None:
        super().__init__()
        self.scale, self.dropout = output_layer(n_in, n_genes, scale), xavier_linear(n_in, n_genes)
        self.dispersion = nn.Parameter(torch.zeros(max(n_batches, 1), n_genes))

    def loss(
        self,
        hidden: Float[Tensor, "cells size"],
        target: SparseRows,
        *,
        library: Float[Tensor, " cells"],
        codes: Int[Tensor, " cells"],
        dispersion: Float[Tensor, "batches genes"] | None = None,
    ) -> Float32[Tensor, ""]:
        """Minus the log-likelihood of counts, nats, summed over cells and genes.

        codes: number of each cell's batch; dispersion: another table than the head's own, logs.
        """
        table = self.dispersion if dispersion is None else dispersion
        log_mean = self.scale(hidden).float().log_softmax(dim=1) + library.clamp_min(1.0).log()[:, None]
        dropout = self.dropout(hidden).float()
        wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (log_mean, dropout, table))
        return _Zinb.apply(target, codes, wanted, log_mean, dropout, table)

    @torch.no_grad()
    def start_at(self, mean: Float32[Tensor, " genes"]) -> None:
        """Begin at these mean counts, a twentieth of them lost, with little else."""
        self.scale.bias.copy_(mean.clamp_min(1e-4).log())
        self.dropout.bias.fill_(-3.0)
        for layer in (self.scale, self.dropout):
            shrink(layer, START)

    def prior(self, sd: float) -> Float32[Tensor, ""]:
        """`shrinkage` of shares and dropout."""
        return shrinkage(self.scale.weight, sd) + shrinkage(self.dropout.weight, sd)

    def predict(
        self, hidden: Float[Tensor, "cells size"], genes: slice, *, library: float, inflated: bool
    ) -> Float32[Tensor, "cells genes"]:
        """Mean counts of these genes in cells of this library; inflated: less those that are lost.

        A share is over all genes of a cell: of these only the logarithm of the sum is kept, some cells at a time.
        """
        total = torch.cat([self.scale(some).float().logsumexp(dim=1) for some in hidden.split(CELLS)])
        own = linear(hidden, *part_of(self.scale, genes)).float()
        mean = (own - total[:, None]).exp() * library
        if not inflated:
            return mean
        lost = linear(hidden, *part_of(self.dropout, genes)).float().sigmoid()
        return mean * (1 - lost)
