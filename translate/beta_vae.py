"""Networks of Polarbear: variational autoencoders of counts and of open chromatin that are told the batch, and maps of latents."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor, nn
from torch.nn import functional

from expresser.model.keyed import splitmix64
from translate.batches import RnaCells, SparseRows
from translate.blocks import ChromosomeLinear, SparseLinear
from translate.factor_linear import OutputLayer
from translate.heads import RATE_RANGE, OpenHead
from translate.zinb_head import ZinbHead

SLOPE = 0.2  # below zero
EPS = 1e-12  # of layer norms
LOG_VARIANCE = 15.0  # at most
MapKind = Literal["linear", "1l", "2l"]
Codes = Float[Tensor, "cells batches"]  # one-hot; no column where there is one batch


@dataclass(frozen=True)
class Dropout:
    """Units lost in training: a function of (key, cell, layer, unit) alone, the same however cells are dealt out."""

    share: float
    cells: Int[Tensor, " cells"]
    key: int

    def of(self, x: Float[Tensor, "cells *units"], layer: int) -> Float[Tensor, "cells *units"]:
        """Some of these units, scaled up."""
        if self.share == 0:
            return x
        units = torch.arange(math.prod(x.shape[1:]), device=x.device)
        drawn = splitmix64(splitmix64(self.cells + self.key + 0x9E37 * (layer + 1))[:, None] + units)
        kept = (drawn & 0xFFFFFF) >= int(self.share * (1 << 24))
        return x * kept.view(x.shape) / (1 - self.share)


def width(features: int, batches: int, latent: int) -> int:
    """Half the geometric mean of what a layer stands between, the batches' inputs counted."""
    return max(int(0.5 * math.sqrt((features + batches) * latent)), 1)


def dense(n_in: int, n_out: int) -> nn.Linear:
    """A linear layer, Xavier-uniform, bias 0."""
    layer = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Hidden(nn.Module):
    """Linear → layer norm → leaky ReLU → dropout, for each step of sizes; the first layer may be given as its output."""

    def __init__(self, *sizes: int, numbered: int = 0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(dense(a, b) for a, b in pairwise(sizes))
        self.norms = nn.ModuleList(nn.LayerNorm(n, eps=EPS) for n in sizes[1:])
        self.numbered = numbered  # of the first layer, for its dropout

    def forward(self, x: Float[Tensor, "cells size"], lost: Dropout | None) -> Float[Tensor, "cells hidden"]:
        for number, (layer, norm) in enumerate(zip(self.layers, self.norms)):
            x = functional.leaky_relu(norm(layer(x)), SLOPE)
            x = x if lost is None else lost.of(x, self.numbered + number)
        return x


class RnaEncoder(nn.Module):
    """[expression, batch] → hidden layers → mean and log variance; the variance is never below 1e-4."""

    def __init__(self, first: SparseLinear, batches: int, layers: int, latent: int) -> None:
        """first: the layer that reads the cells; its bias is set to 0."""
        super().__init__()
        self.first, hidden = first, first.bias.shape[1]
        self.batch = nn.Linear(batches, hidden, bias=False) if batches else None
        self.norm = nn.LayerNorm(hidden, eps=EPS)
        self.hidden = Hidden(*[hidden] * layers, numbered=1)
        self.mean, self.log_var = dense(hidden, latent), dense(hidden, latent)
        nn.init.zeros_(self.first.bias)

    def forward(
        self, cells: RnaCells, codes: Codes, lost: Dropout | None
    ) -> tuple[Float32[Tensor, "cells latent"], Float32[Tensor, "cells latent"]]:
        x = self.first(cells)
        x = x if self.batch is None else x + self.batch(codes)
        x = functional.leaky_relu(self.norm(x), SLOPE)
        x = self.hidden(x if lost is None else lost.of(x, 0), lost)
        log_var = self.log_var(x).float().clamp_max(LOG_VARIANCE)
        return self.mean(x).float(), torch.logaddexp(log_var, torch.full_like(log_var, math.log(1e-4)))


class RnaDecoder(nn.Module):
    """[latent, batch] → hidden layers → one more without norm → `ZinbHead`."""

    def __init__(
        self, n_genes: int, batches: int, hidden: int, layers: int, latent: int, *, scale: OutputLayer | None = None
    ) -> None:
        super().__init__()
        self.hidden, self.last = Hidden(latent + batches, *[hidden] * layers), dense(hidden, hidden)
        self.head = ZinbHead(hidden, n_genes, batches, scale=scale)

    def forward(self, latent: Float[Tensor, "cells latent"], codes: Codes, lost: Dropout | None) -> Tensor:
        return self.last(self.hidden(torch.cat([latent, codes], dim=1), None)).relu()


class ByChromosome(nn.Module):
    """Layer norm → leaky ReLU of each chromosome's units by itself; chromosomes are as wide as the widest, the rest stays 0."""

    units: Tensor

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        most = max(widths)
        self.weight, self.bias = (
            nn.Parameter(torch.ones(len(widths), most)),
            nn.Parameter(torch.zeros(len(widths), most)),
        )
        self.register_buffer("units", (torch.arange(most) < torch.tensor(widths)[:, None]).float(), persistent=False)

    def forward(self, x: Float[Tensor, "cells blocks units"]) -> Float[Tensor, "cells blocks units"]:
        x, n = x.float() * self.units, self.units.sum(dim=1)
        centred = (x - (x.sum(dim=2) / n)[..., None]) * self.units
        spread = (centred.square().sum(dim=2) / n + EPS).rsqrt()[..., None]
        return functional.leaky_relu(centred * spread * self.weight + self.bias, SLOPE) * self.units


class AtacEncoder(nn.Module):
    """Each chromosome: [its peaks, batch] → hidden layers → `latent` units; all of them → mean and log variance."""

    def __init__(
        self, bounds: Sequence[int], batches: int, widths: Sequence[int], layers: int, latent: int, *, scaled: bool
    ) -> None:
        super().__init__()
        n, most = len(widths), max(widths)
        self.first = SparseLinear(bounds, most, scaled=scaled)
        self.batch = nn.Linear(batches, n * most, bias=False) if batches else None
        self.layers = nn.ModuleList(ChromosomeLinear(n, most, most) for _ in range(layers - 1))
        self.norms = nn.ModuleList(ByChromosome(widths) for _ in range(layers))
        self.narrow, self.narrow_norm = ChromosomeLinear(n, most, latent), ByChromosome([latent] * n)
        self.mean, self.log_var = dense(n * latent, latent), dense(n * latent, latent)
        start_padded(widths, bounds=bounds, peaks=self.first.weight, layers=self.layers)
        for bias in (self.first.bias, self.narrow.bias):
            nn.init.zeros_(bias)

    def forward(
        self, rows: SparseRows, codes: Codes, lost: Dropout | None
    ) -> tuple[Float32[Tensor, "cells latent"], Float32[Tensor, "cells latent"]]:
        x = self.first(rows)
        if self.batch is not None:
            x = x + self.batch(codes).view(x.shape)
        for number, norm in enumerate(self.norms):
            x = norm(x if number == 0 else self.layers[number - 1](x))
            x = x if lost is None else lost.of(x, number)
        x = self.narrow_norm(self.narrow(x))
        x = (x if lost is None else lost.of(x, len(self.norms))).flatten(1)
        return self.mean(x).float(), self.log_var(x).float().clamp_max(LOG_VARIANCE)


class AtacDecoder(nn.Module):
    """[latent, batch] → `latent` units a chromosome, normed together → each chromosome, from all of them: hidden layers → peaks."""

    def __init__(self, bounds: Sequence[int], batches: int, widths: Sequence[int], layers: int, latent: int) -> None:
        super().__init__()
        n, most = len(widths), max(widths)
        self.n_blocks = n
        self.latent, self.norm = dense(latent + batches, n * latent), nn.LayerNorm(n * latent, eps=EPS)
        self.first = dense(n * latent, n * most)
        self.layers = nn.ModuleList(ChromosomeLinear(n, most, most) for _ in range(layers - 1))
        self.norms = nn.ModuleList(ByChromosome(widths) for _ in range(layers))
        self.head = RateHead(bounds, most, per_block=True)
        start_padded(widths, bounds=bounds, peaks=self.head.weight, layers=self.layers)
        nn.init.zeros_(self.head.bias)

    def forward(
        self, latent: Float[Tensor, "cells latent"], codes: Codes, lost: Dropout | None
    ) -> Float[Tensor, "cells blocks units"]:
        x = self.first(self.norm(self.latent(torch.cat([latent, codes], dim=1)))).unflatten(1, (self.n_blocks, -1))
        for number, norm in enumerate(self.norms):
            x = norm(x if number == 0 else self.layers[number - 1](x))
            x = x if lost is None else lost.of(x, 64 + number)
        return x


class RateHead(OpenHead):
    """Log rate at which each peak opens, at the depth of a median cell (`translate.heads.depth_block`)."""

    @torch.no_grad()
    def start_at(self, share: Float32[Tensor, " peaks"]) -> None:
        """Begin at the rates that give these shares of open cells, with little else."""
        super().start_at(share)
        self.bias.copy_((-(-share.clamp(1e-4, 1 - 1e-4)).log1p()).log().clamp(*RATE_RANGE))


@torch.no_grad()
def start_padded(
    widths: Sequence[int], *, bounds: Sequence[int] = (), peaks: Tensor | None = None, layers: Iterable[nn.Module] = ()
) -> None:
    """First weights by chromosome, in place: Xavier-uniform in each one's own size, 0 in what only pads.

    peaks: a row a peak, parted at `bounds`; layers: from a chromosome's units to its own units.
    """
    if peaks is not None:
        for (a, b), w in zip(pairwise(bounds), widths):
            _fill(peaks[a:b], b - a, w)
    for layer in layers:
        weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
        bias.zero_()
        for number, w in enumerate(widths):
            _fill(weight[number], w, w)


def _fill(weight: Tensor, rows: int, columns: int) -> None:
    bound = math.sqrt(6 / max(rows + columns, 1))
    weight.zero_()
    weight[:rows, :columns].uniform_(-bound, bound)


class LatentMap(nn.Module):
    """One latent → another: a line, and with 1l or 2l so many hidden layers of the same size beside it that start at nothing."""

    def __init__(self, latent: int, kind: MapKind) -> None:
        super().__init__()
        self.line = dense(latent, latent)
        layers: list[nn.Module] = []
        for _ in range({"linear": 0, "1l": 1, "2l": 2}[kind]):
            layers += [dense(latent, latent), nn.LeakyReLU(SLOPE)]
        last = dense(latent, latent)
        nn.init.zeros_(last.weight)
        self.bent = nn.Sequential(*layers, last) if layers else None

    def forward(self, x: Float[Tensor, "cells latent"]) -> Float[Tensor, "cells latent"]:
        return self.line(x) if self.bent is None else self.line(x) + self.bent(x)

    @torch.no_grad()
    def start_at(self, weight: Float[np.ndarray, "outputs inputs"], bias: Float[np.ndarray, " outputs"]) -> None:
        """Begin at this line."""
        self.line.weight.copy_(torch.from_numpy(weight))
        self.line.bias.copy_(torch.from_numpy(bias))
