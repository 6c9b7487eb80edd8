"""The first layer of every encoder of RNA: expression and, where a pretrained Expresser reads the cells too, what it says of them."""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from expresser.errors import InputError
from translate.batches import RnaCells
from translate.blocks import SparseLinear
from translate.bridge import Bridge
from translate.factor_linear import FactorLinear
from translate.preprocess import RnaInput
from translate.pretrained_cells import PretrainedCells

SPREAD = 1e-6  # of the largest deviation: a dimension with less in training cells says nothing


class RnaLayer(SparseLinear):
    r""":math:`y = W x + U (e - \mu) / \sigma + b`; x: the input of `translate.preprocess.RnaInput`, e: the cell's embedding.

    Without a bridge to cells the second term is missing; where embeddings replace expression, the first. :math:`\mu, \sigma`: of
    training cells. The embedding is of the whole cell, also where part of x is hidden.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, rna: RnaInput, n_out: int, bridge: Bridge, *, standardised: bool = True) -> None:
        """standardised: x is what the recipe makes of counts, of which a zero count is `rna.rest`; else the counts."""
        super().__init__((0, len(rna.var)), n_out, joint=True, rest=rna.rest if standardised else None)
        self.cells: PretrainedCells | None = None
        if not bridge.reads_cells:
            return
        if rna.pretrained is None:
            raise ValueError("the RNA input knows nothing of a pretrained model.")
        if bridge.rna_cells == "replace":
            self.register_parameter("weight", None)
            self.rest = None
        dims = rna.pretrained.dims
        self.cells = PretrainedCells(rna.pretrained, bridge.rna_blocks)
        self.of_cell = nn.Linear(dims, n_out, bias=False)
        nn.init.xavier_uniform_(self.of_cell.weight)
        self.register_buffer("centre", torch.zeros(dims))
        self.register_buffer("spread", torch.ones(dims))
        for parameter in self.cells.parameters():
            parameter.lr_share = bridge.rna_blocks_lr  # type: ignore[attr-defined]

    def forward(self, cells: RnaCells) -> Float[Tensor, "cells n_out"]:  # type: ignore[override]
        """Cells of a batch."""
        out = super().forward(cells.inputs).squeeze(1) if self.weight is not None else self.bias
        if self.cells is None:
            return out
        embedding = self.embedded(cells)
        # A cell with fewer than two known genes has no embedding: it is taken for the mean cell.
        there = (embedding != 0).any(dim=1, keepdim=True)
        return out + self.of_cell(torch.where(there, (embedding - self.centre) / self.spread, 0.0))

    def embedded(self, cells: RnaCells) -> Float32[Tensor, "cells d"]:
        """The pretrained model's embedding of each cell: as it was worked out before, where all of the model is frozen."""
        assert self.cells is not None
        if cells.embedding is not None:
            return cells.embedding
        if cells.whole is None:
            raise ValueError("this batch has no counts over the pretrained model's genes.")
        return self.cells(cells.whole)

    @torch.no_grad()
    def standardise(self, embedding: Float32[Tensor, "cells d"]) -> None:
        """Take mean and deviation of each dimension from these cells."""
        embedding = embedding[(embedding != 0).any(dim=1)]
        if len(embedding) < 2:
            raise InputError(
                f"bridge: {len(embedding)} training cells have a cell embedding, and two are needed: cells must express two genes at "
                "least that the pretrained model knows. Give more genes, or leave rna_cells out."
            )
        spread = embedding.std(dim=0, correction=0)
        self.centre.copy_(embedding.mean(dim=0))
        self.spread.copy_(torch.where(spread > SPREAD * spread.max().clamp_min(1e-30), spread, torch.ones_like(spread)))

    @torch.no_grad()
    def start_at_genes(
        self, table: Float32[Tensor, "known d"], known: Int64[Tensor, " known"], generator: torch.Generator
    ) -> None:
        """Weights of these genes begin as a random projection of their embeddings, at the size that they have; others stay.

        table: standardised. A Gaussian projection keeps how genes lie to one another (Johnson and Lindenstrauss).
        """
        size = self.weight.square().mean().sqrt()
        projected = table @ torch.randn(table.shape[1], self.weight.shape[1], generator=generator)
        self.weight[known] = projected * (size / projected.square().mean().sqrt().clamp_min(1e-30))


def shared_output(rna: RnaInput, n_in: int, bridge: Bridge) -> FactorLinear | None:
    """The output layer of genes that the pretrained gene table is part of; None where they have weights of their own."""
    if bridge.rna_output == "own":
        return None
    if rna.pretrained is None:
        raise ValueError("the RNA input knows nothing of a pretrained model.")
    return FactorLinear(n_in, len(rna.var), rna.pretrained.dims, torch.from_numpy(rna.pretrained.known))
