"""Networks of variational autoencoders of open chromatin: peaks to a Gaussian, and a latent with what confounds it to peaks."""

from typing import Literal

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn

from translate.batches import SparseRows
from translate.blocks import BatchNorm, ChromosomeLinear, Dense, PReLU, SparseDense, SparseLinear, xavier_linear
from translate.heads import OpenHead, shrinkage

Network = Literal["dense", "chromosome"]
SLOPE = 0.2  # below zero, of the dense network
LEAST_SPREAD = 0.01  # of log depth: by less nothing is divided, or cells of another depth than all of training would be a million away
LOG_VARIANCE = 10.0  # at most so far from 0: beyond, divergences of pairs leave what a float32 adds up


class GaussianEncoder(nn.Module):
    """Open peaks → two hidden layers → mean and log variance of the latent.

    dense: all peaks → hidden[0] → hidden[1]; chromosome: the same for each chromosome by itself, then all of them together.
    scaled: every cell's peaks are weighted so that it has the total of a median one.
    """

    def __init__(
        self, bounds: tuple[int, ...], hidden: tuple[int, int], latent: int, *, network: Network, scaled: bool
    ) -> None:
        super().__init__()
        if network == "dense":
            self.hidden: nn.Module = SparseDense(
                SparseLinear(bounds, hidden[0], joint=True, scaled=scaled), hidden[1], slope=SLOPE
            )
            n_in = hidden[1]
        else:
            self.hidden = ByChromosome(bounds, hidden, scaled=scaled)
            n_in = hidden[1] * (len(bounds) - 1)
        self.latent = xavier_linear(n_in, 2 * latent)

    def forward(self, rows: SparseRows) -> tuple[Float32[Tensor, "cells latent"], Float32[Tensor, "cells latent"]]:
        mean, log_var = self.latent(self.hidden(rows)).float().chunk(2, dim=1)
        return mean, log_var.clamp(-LOG_VARIANCE, LOG_VARIANCE)


class ByChromosome(nn.Module):
    """Peaks of each chromosome → two hidden layers of its own; all chromosomes side by side."""

    def __init__(self, bounds: tuple[int, ...], hidden: tuple[int, int], *, scaled: bool) -> None:
        super().__init__()
        n, (wide, narrow) = len(bounds) - 1, hidden
        self.first, self.second = SparseLinear(bounds, wide, scaled=scaled), ChromosomeLinear(n, wide, narrow)
        self.norm1, self.act1 = BatchNorm(n, wide), PReLU()
        self.norm2, self.act2 = BatchNorm(n, narrow), PReLU()

    def forward(self, rows: SparseRows) -> Float[Tensor, "cells size"]:
        x = self.act1(self.norm1(self.first(rows)))
        return self.act2(self.norm2(self.second(x))).flatten(1)


class ConditionalDecoder(nn.Module):
    """Latent and confounders → the encoder's layers the other way round → log-odds of each peak.

    direct: the confounders reach every peak's output too, by weights of its own, so that neither depth nor batch has to be
    carried by the hidden layers, which the latent shares.
    """

    def __init__(
        self,
        bounds: tuple[int, ...],
        hidden: tuple[int, int],
        latent: int,
        confounders: int,
        *,
        network: Network,
        direct: bool,
    ) -> None:
        super().__init__()
        wide, narrow = hidden
        self.network, self.direct, self.wide = network, direct, wide
        self.n_blocks = len(bounds) - 1
        if network == "dense":
            self.hidden: nn.Module = Dense(latent + confounders, narrow, wide, slope=SLOPE)
        else:
            n = self.n_blocks
            self.latent, self.hidden = Dense(latent + confounders, n * narrow), ChromosomeLinear(n, narrow, wide)
            self.norm, self.act = BatchNorm(n, wide), PReLU()
        self.head = OpenHead(bounds, wide + (confounders if direct else 0), per_block=network == "chromosome")

    def forward(
        self, latent: Float[Tensor, "cells latent"], confounders: Float[Tensor, "cells confounders"]
    ) -> Float[Tensor, "cells *size"]:
        """What the output layer reads."""
        x = torch.cat([latent, confounders], dim=1)
        if self.network == "dense":
            x = self.hidden(x)
        else:
            x = self.latent(x).unflatten(1, (self.n_blocks, -1))
            x = self.act(self.norm(self.hidden(x)))
        if not self.direct:
            return x
        beside = confounders if x.ndim == 2 else confounders[:, None].expand(-1, self.n_blocks, -1)
        return torch.cat([x, beside.to(x.dtype)], dim=-1)

    @torch.no_grad()
    def start_at_depth(self, slope: float) -> None:
        """Log-odds begin to rise with the first confounder by this, and to depend on no other; with `direct` only."""
        if self.direct:
            self.head.weight[:, self.wide :] = 0.0
            self.head.weight[:, self.wide] = slope

    def prior(self, sd: float) -> Float32[Tensor, ""]:
        """`shrinkage` of what the log-odds take from the hidden layers; what they take from confounders is free."""
        return shrinkage(self.head.weight[:, : self.wide], sd)
