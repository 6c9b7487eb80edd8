"""Autoencoders of one modality each: encoders with or without spread, a decoder of logged expression, a balanced loss of peaks."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn.functional import linear

from expresser.likelihoods import focal_loss
from expresser.model.keyed import splitmix64
from translate.batches import Block, RnaCells, SparseRows
from translate.blocks import BatchNorm, PReLU, xavier_linear
from translate.conditional import LOG_VARIANCE
from translate.factor_linear import OutputLayer, output_layer, part_of, shrink
from translate.heads import START, Outputs, blockwise, shrinkage

_BITS = 24  # of a hash that a share is compared with


class Encoder(nn.Module):
    """Hidden layers, then the mean of the latent and, where it is Gaussian, its log variance.

    normalised: a linear layer to the latent and a batch norm come before.
    """

    def __init__(self, hidden: nn.Module, n_in: int, latent: int, *, gaussian: bool, normalised: bool) -> None:
        super().__init__()
        self.hidden, self.gaussian = hidden, gaussian
        before: list[nn.Module] = [xavier_linear(n_in, latent), BatchNorm(latent)] if normalised else []
        n_last = latent if normalised else n_in
        self.latent = nn.Sequential(*before, xavier_linear(n_last, 2 * latent if gaussian else latent))

    def forward(
        self, cells: RnaCells | SparseRows
    ) -> tuple[Float32[Tensor, "cells latent"], Float32[Tensor, "cells latent"] | None]:
        out = self.latent(self.hidden(cells)).float()
        if not self.gaussian:
            return out, None
        mean, log_var = out.chunk(2, dim=1)
        return mean, log_var.clamp(-LOG_VARIANCE, LOG_VARIANCE)


class ExpressionDecoder(nn.Module):
    """Latent and batch → hidden layers, without normalisation → ln(1 + expression) of each gene (`ExpressionHead`)."""

    def __init__(
        self, latent: int, batches: int, hidden: Sequence[int], n_genes: int, *, output: OutputLayer | None = None
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in zip((latent + batches, *hidden), hidden):
            layers += [xavier_linear(n_in, n_out), PReLU()]
        self.hidden, self.head = nn.Sequential(*layers), ExpressionHead(hidden[-1], n_genes, output)

    def forward(
        self, latent: Float[Tensor, "cells latent"], batches: Float[Tensor, "cells batches"]
    ) -> Float[Tensor, "cells size"]:
        """What the output layer reads."""
        return self.hidden(torch.cat([latent, batches], dim=1))


class ExpressionHead(nn.Module):
    """ln(1 + size-normalised expression) of each gene, linear in what comes before.

    output: the layer that does it, where the head is not to have weights of its own (which saved models call `weight` and `bias`).
    """

    def __init__(self, n_in: int, n_genes: int, output: OutputLayer | None = None) -> None:
        super().__init__()
        layer = output_layer(n_in, n_genes, output)
        if output is None:
            self.weight, self.bias = layer.weight, layer.bias
        else:
            self.output = layer

    @property
    def layer(self) -> nn.Module:
        """What has the weights: the layer that was given, or this one."""
        return getattr(self, "output", self)

    def forward(self, hidden: Float[Tensor, "cells size"]) -> Float[Tensor, "cells genes"]:
        return linear(hidden, *part_of(self.layer))

    def loss(self, hidden: Float[Tensor, "cells size"], target: SparseRows) -> Float32[Tensor, ""]:
        """Squared differences from ln(1 + target), summed over cells and genes."""
        return blockwise(squared_block, target, hidden, *part_of(self.layer))

    @torch.no_grad()
    def start_at(self, mean: Float32[Tensor, " genes"]) -> None:
        """Begin at these means, with little else."""
        self.layer.get_parameter("bias").copy_(mean)
        shrink(self.layer, START)

    def prior(self, sd: float) -> Float32[Tensor, ""]:
        """`translate.heads.shrinkage` of the values."""
        return shrinkage(part_of(self.layer)[0], sd)

    def predict(self, hidden: Float[Tensor, "cells size"], genes: slice) -> Float32[Tensor, "cells genes"]:
        """Values of these genes; none is below that of no count."""
        return linear(hidden, *part_of(self.layer, genes)).float().clamp_min(0.0)


def squared_block(outputs: Outputs, block: Block, wanted: bool) -> tuple[Tensor, Sequence[Tensor]]:
    r"""Squared differences of the output and ln(1 + y), y sparse: :math:`\sum o^2 + \sum_{y > 0} (\ln^2(1 + y) - 2 o \ln(1 + y))`."""
    (out,) = outputs
    logged = block.amounts().log1p()
    at = out.view(-1).index_select(0, block.flat)
    total = out.square().sum() + (logged * (logged - 2 * at)).sum()
    if not wanted:
        return total, ()
    slope = out.mul_(2)
    slope.view(-1).index_add_(0, block.flat, logged, alpha=-2)
    return total, (slope,)


def balanced_block(
    outputs: Outputs, block: Block, wanted: bool, *, keys: Int[Tensor, " cells"], share: float
) -> tuple[Tensor, Sequence[Tensor]]:
    r"""Focal cross-entropy (γ = 1) of all open peaks and of a share of the closed ones: :math:`-(1 - p_t) \ln p_t`.

    keys: whether a closed entry counts is a function of its cell's key and of the peak. Divide the sum by the number of open
    entries times two, where `share` is that of open to closed ones: as many of both count then, but for chance.
    """
    leaf = outputs[0].detach().requires_grad_(wanted)
    truth = torch.zeros_like(leaf)
    truth.view(-1)[block.flat] = 1.0
    peaks = torch.arange(block.start, block.stop, device=leaf.device)
    drawn = splitmix64(splitmix64(keys)[:, None] + peaks)
    counts = (truth > 0) | ((drawn & ((1 << _BITS) - 1)) < int(share * (1 << _BITS)))
    with torch.set_grad_enabled(wanted):
        loss = focal_loss(truth, logits=leaf, gamma=1.0, positive_weight=1.0, negative_weight=1.0)
        total = torch.where(counts, loss, 0.0).sum()
    return total.detach(), torch.autograd.grad(total, [leaf]) if wanted else ()
