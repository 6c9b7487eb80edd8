"""Maps between two latents without pairs of cells: affine mixtures there and back, and discriminators of each label."""

import math

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor, nn

from expresser.likelihoods import bernoulli_log_prob
from expresser.model.keyed import splitmix64
from translate.blocks import PReLU

LAYERS, GATE = 3, 64  # affine maps in a row; units that weigh them
SMALL = 0.1  # of the noise that the inner maps of a scaled mixture start with


class AffineMixture(nn.Module):
    r"""Three affine maps in a row, PReLU between them, each a mixture of K by weights that the input decides.

    .. math:: x \leftarrow \left(\sum_k w_k A_k\right) x + \sum_k w_k b_k, \qquad w = softmax(MLP(z))

    scaled: the maps start near the identity and the last one at zero, so that the mixture starts as nothing and can be added
    to a linear map; otherwise all entries are drawn from a standard Gaussian, as released.
    """

    def __init__(self, latent: int, experts: int, *, scaled: bool) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(latent, GATE), nn.ReLU(), nn.Linear(GATE, experts))
        weight, bias = torch.randn(LAYERS, experts, latent, latent), torch.randn(LAYERS, experts, latent)
        if scaled:
            weight = weight * (SMALL / math.sqrt(latent)) + torch.eye(latent)
            bias = torch.zeros_like(bias)
            weight[-1] = 0.0
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)
        self.activation = PReLU()

    def forward(self, latent: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells latent"]:
        share = self.gate(latent).softmax(dim=1)
        x = latent
        for layer in range(LAYERS):
            if layer:
                x = self.activation(x)
            # All experts in one product, then their mean: no cell has a matrix of its own in memory.
            each = torch.einsum("cj,kij->cki", x, self.weight[layer]) + self.bias[layer]
            x = torch.einsum("ck,cki->ci", share, each)
        return x


class LatentMap(nn.Module):
    """One latent to the other. residual: a linear map that starts as the identity, and the mixture beside it."""

    def __init__(self, latent: int, experts: int, *, residual: bool) -> None:
        super().__init__()
        self.mixture = AffineMixture(latent, experts, scaled=residual)
        self.linear = nn.Linear(latent, latent) if residual else None
        if self.linear is not None:
            nn.init.eye_(self.linear.weight)
            nn.init.zeros_(self.linear.bias)

    def forward(self, latent: Float[Tensor, "cells latent"]) -> Float32[Tensor, "cells latent"]:
        mixed = self.mixture(latent)
        return (mixed if self.linear is None else mixed + self.linear(latent)).float()

    @torch.no_grad()
    def start_at(self, weight: Float32[Tensor, "latent latent"], bias: Float32[Tensor, " latent"]) -> None:
        """Begin as ``latent @ weight + bias``; ValueError where there is no linear map."""
        if self.linear is None:
            raise ValueError("a map that is a mixture alone has no linear part to start from.")
        self.linear.weight.copy_(weight.T)
        self.linear.bias.copy_(bias)


class Discriminators(nn.Module):
    """Log-odds, of each label, that a latent is that of a measured cell and not a translated one."""

    def __init__(self, latent: int, labels: int, *, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.first, self.second, self.last = (
            nn.Linear(latent, latent),
            nn.Linear(latent, latent // 2),
            nn.Linear(latent // 2, labels),
        )
        self.act1, self.act2 = PReLU(), PReLU()

    def forward(
        self, latent: Float[Tensor, "cells latent"], keys: Int[Tensor, " cells"]
    ) -> Float32[Tensor, "cells labels"]:
        """keys: of each cell's dropout, which there is in training only."""
        x = self.act1(self.first(latent))
        if self.training and self.dropout:
            x = x * keyed_mask(keys, x.shape[1], self.dropout)
        return self.last(self.act2(self.second(x))).float()


def keyed_mask(keys: Int[Tensor, " cells"], n: int, share: float) -> Float32[Tensor, "cells n"]:
    """0 for a share of n places, 1 / (1 - share) for the others: a function of key and place alone."""
    drawn = splitmix64(splitmix64(keys)[:, None] + torch.arange(n, device=keys.device))
    return ((drawn & 0xFFFFFF) >= int(share * (1 << 24))).float() / (1 - share)


def judged_as(
    odds: Float[Tensor, "cells labels"], label: Int[Tensor, " cells"], known: Bool[Tensor, " labels"], *, real: bool
) -> Float32[Tensor, " cells"]:
    """Cross-entropy (nats) of each cell being called real, or not, by the discriminator of its own label; 0 without one.

    known: labels that both modalities have. Of another, one side has no measured cell to be told from.
    """
    counts = (label >= 0) & known[label.clamp_min(0)]
    own = odds.float().gather(1, label.clamp_min(0)[:, None]).squeeze(1)
    return torch.where(counts, -bernoulli_log_prob(torch.full_like(own, float(real)), logits=own), 0.0)


def apart(
    a: Float[Tensor, "cells latent"], b: Float[Tensor, "cells latent"], *, squared: bool = False
) -> Float32[Tensor, " cells"]:
    """Mean absolute (or squared) difference of two latents of each cell."""
    difference = a.float() - b.float()
    return (difference.square() if squared else difference.abs()).mean(dim=1)
