"""BABEL done the straightforward way, to be measured against: every cell dense, every layer dense, everything kept.

It computes what `translate.babel` computes, from the same weights: a map-style data set that writes each cell out as dense
vectors, PyTorch's own collation, one `nn.Linear` a chromosome, losses on written-out means and probabilities, autograd and
`torch.optim.Adam`. With `heads=3` each decoder computes, as the released networks do, three output layers of which the losses
use two (RNA) or one (ATAC); `heads=1` leaves those unused out.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from scipy import sparse
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from translate.babel import CHROMOSOME, HIDDEN, PEAKS_TO, Babel
from translate.preprocess import RnaInput

Cell = tuple[Tensor, list[Tensor], Tensor, Tensor]


class DenseCells(Dataset[Cell]):
    """Cells written out one by one: standardised expression, peaks by chromosome; normalised counts, peaks."""

    def __init__(
        self, counts: sparse.csr_matrix, peaks: sparse.csr_matrix, rna: RnaInput, bounds: Sequence[int]
    ) -> None:
        # Standardised expression has no zeros: it is kept as the sparse matrix of a dense one.
        self.expression = _standardised(counts, rna)
        self.normalised, self.peaks = rna.targets(counts), peaks
        self.columns = [np.arange(a, b) for a, b in pairwise(bounds)]

    def __len__(self) -> int:
        return self.peaks.shape[0]

    def __getitem__(self, cell: int) -> Cell:
        open_peaks = self.peaks[cell].toarray().ravel()
        by_chromosome = [torch.from_numpy(open_peaks[columns]) for columns in self.columns]
        expression = torch.from_numpy(self.expression[cell].toarray().ravel())
        normalised = torch.from_numpy(self.normalised[cell].toarray().ravel())
        return expression, by_chromosome, normalised, torch.from_numpy(self.peaks[cell].toarray().ravel())


class DenseBabel(nn.Module):
    """Two encoders, two decoders, four paths."""

    def __init__(self, n_genes: int, sizes: Sequence[int], latent: int, heads: int) -> None:
        super().__init__()
        n = len(sizes)
        self.rna_encoder = nn.Sequential(*_layer(n_genes, HIDDEN), *_layer(HIDDEN, latent))
        self.chromosomes = nn.ModuleList(
            nn.Sequential(*_layer(size, PEAKS_TO), *_layer(PEAKS_TO, CHROMOSOME)) for size in sizes
        )
        self.atac_latent = nn.Sequential(*_layer(n * CHROMOSOME, latent))
        self.rna_hidden = nn.Sequential(*_layer(latent, HIDDEN))
        self.rna_heads = nn.ModuleList(nn.Linear(HIDDEN, n_genes) for _ in range(3 if heads == 3 else 2))
        self.atac_hidden = nn.Sequential(*_layer(latent, n * CHROMOSOME))
        self.spread = nn.ModuleList(nn.Sequential(*_layer(CHROMOSOME, PEAKS_TO)) for _ in sizes)
        self.atac_heads = nn.ModuleList(
            nn.ModuleList(nn.Linear(PEAKS_TO, size) for size in sizes) for _ in range(heads)
        )

    def loss(self, cells: Sequence[Tensor | list[Tensor]], beta: float) -> Tensor:
        """Of a collated batch: both reconstructions and both translations."""
        expression, by_chromosome, normalised, peaks = cells
        from_peaks = torch.cat([part(x) for part, x in zip(self.chromosomes, by_chromosome)], dim=1)
        total = torch.zeros(())
        for latent in (self.rna_encoder(expression), self.atac_latent(from_peaks)):
            hidden = self.rna_hidden(latent)
            mean, dispersion, *_unused = (head(hidden) for head in self.rna_heads)
            mean = mean.exp().clamp(1e-5, 1e6)
            dispersion = functional.softplus(dispersion).clamp(1e-4, 1e3)
            chunks = self.atac_hidden(latent).chunk(len(self.spread), dim=1)
            hiddens = [part(chunk) for part, chunk in zip(self.spread, chunks)]
            outputs = [torch.cat([layer(x) for layer, x in zip(head, hiddens)], dim=1) for head in self.atac_heads]
            probability = torch.sigmoid(outputs[0])
            total = total + _negative_binomial(normalised, mean, dispersion)
            total = total + beta * functional.binary_cross_entropy(probability, peaks)
        return total


def like(system: Babel, heads: int) -> DenseBabel:
    """The dense network with the weights of ours (three heads: the unused ones are new), in training mode."""
    first, head = system.rna_encoder.first, system.atac_decoder.head
    sizes = [b - a for a, b in pairwise(head.bounds)]
    dense = DenseBabel(first.weight.shape[0], sizes, system.config.latent, heads)
    rna, atac = system.rna_encoder, system.atac_encoder
    # Ours reads what is above the rest and adds W rest itself; the dense layer reads all of it, with the same bias.
    _set(dense.rna_encoder[0], first.weight.T, first.bias[0])
    _copy(dense.rna_encoder[1:], [rna.norm, rna.activation, *rna.others])
    for number, (part, spread) in enumerate(zip(dense.chromosomes, dense.spread)):
        span = slice(head.bounds[number], head.bounds[number + 1])
        _set(part[0], atac.first.weight[span].T, atac.first.bias[number])
        _set(part[3], atac.second.weight[number].T, atac.second.bias[number])
        decoder = system.atac_decoder
        _set(spread[0], decoder.second.weight[number].T, decoder.second.bias[number])
        _set(dense.atac_heads[0][number], head.weight[span], head.bias[span])
    _copy(dense.atac_latent, list(atac.latent))
    _copy(dense.rna_hidden, list(system.rna_decoder.hidden))
    _copy(dense.atac_hidden, list(system.atac_decoder.latent))
    for mine, theirs in zip(dense.rna_heads, (system.rna_decoder.head.mean, system.rna_decoder.head.dispersion)):
        _set(mine, theirs.weight, theirs.bias)
    return dense.train()


def _layer(n_in: int, n_out: int) -> tuple[nn.Module, ...]:
    linear = nn.Linear(n_in, n_out)
    nn.init.xavier_uniform_(linear.weight)
    return linear, nn.BatchNorm1d(n_out), nn.PReLU()


def _negative_binomial(y: Tensor, mean: Tensor, dispersion: Tensor) -> Tensor:
    """As it is written in the paper: minus the log-likelihood, mean over cells and genes."""
    eps = 1e-10
    theta = dispersion.clamp_max(1e6)
    gammas = torch.lgamma(theta + eps) + torch.lgamma(y + 1.0) - torch.lgamma(y + theta + eps)
    rest = (theta + y) * torch.log1p(mean / (theta + eps)) + y * (torch.log(theta + eps) - torch.log(mean + eps))
    return (gammas + rest).mean()


def _standardised(counts: sparse.csr_matrix, rna: RnaInput) -> sparse.csr_matrix:
    blocks = []
    for start in range(0, counts.shape[0], 256):
        above = rna.inputs(counts[start : start + 256])
        blocks.append(sparse.csr_matrix(above.toarray() + rna.rest))
    return sparse.vstack(blocks, format="csr")


@torch.no_grad()
def _set(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    layer.weight.copy_(weight)
    layer.bias.copy_(bias)


def _copy(mine: nn.Module, theirs: Sequence[nn.Module]) -> None:
    """Fresh norms and activations are equal already: only linear layers are copied."""
    for a, b in zip(mine, theirs, strict=True):
        if isinstance(a, nn.Linear):
            _set(a, b.weight, b.bias)
