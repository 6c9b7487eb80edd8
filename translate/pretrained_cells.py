"""A pretrained Expresser inside a translator: cells in, embeddings out, all of it frozen but for the last blocks."""

from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from expresser.embed import by_tokens, pool_cells
from expresser.model.cells import Cells
from expresser.model.last_blocks import block_parameters
from translate.batches import SparseRows
from translate.pretrained_genes import PretrainedGenes

MAX_TOKENS = 16_384  # of cells that are embedded at once


class PretrainedCells(nn.Module):
    """Cell embeddings as `expresser.embed.embed` gives them (0 in place of NaN).

    Frozen weights are buffers, so that `parameters()` are what trains: the last `blocks` (`block_parameters`). Always in eval mode: an
    embedding is a function of the cell, without dropout. Weights are random until a checkpoint's, or those of a saved translator,
    are loaded.
    """

    def __init__(self, genes: PretrainedGenes, blocks: int = 0) -> None:
        super().__init__()
        self.model: Any = AutoModel.from_config(AutoConfig.for_model(**genes.model))
        moving = {self.model.get_parameter(name) for name in block_parameters(self.model, blocks)}
        for module in self.model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None and parameter not in moving:
                    del module._parameters[name]
                    module.register_buffer(name, parameter.detach())
        self.trains = bool(blocks)
        super().train(False)

    def train(self, mode: bool = True) -> "PretrainedCells":
        """Stays in eval mode."""
        return self

    def forward(self, rows: SparseRows) -> Float32[Tensor, "cells d"]:
        """rows: raw counts over the model's vocabulary, in one block."""
        config = self.model.config
        lengths = rows.offsets.long().diff()
        out = torch.zeros(rows.n_cells, config.d_model, device=rows.device)
        counts = torch.ones_like(rows.indices, dtype=torch.float32) if rows.values is None else rows.values
        starts, totals = rows.offsets.long()[:-1], rows.totals()
        with torch.set_grad_enabled(self.trains and torch.is_grad_enabled()):
            for taken in by_tokens(lengths.cpu().numpy(), MAX_TOKENS, config.max_genes):
                some = torch.from_numpy(taken).to(rows.device)
                own = lengths[some]
                first = torch.repeat_interleave(starts[some] - (own.cumsum(0) - own), own)
                at = first + torch.arange(len(first), device=rows.device)
                cells = Cells.from_counts(
                    rows.indices[at].long(),
                    counts[at],
                    own,
                    totals[some],
                    torch.zeros_like(own),
                    target_sum=config.target_sum,
                    max_genes=config.max_genes,
                )
                out = out.index_copy(0, some, pool_cells(self.model, cells)[0].float())
        if self.trains and torch.is_grad_enabled() and not out.requires_grad:
            # No cell of this process has an embedding. Those of others may have, and gradients are summed weight by weight: here 0.
            out = out + 0.0 * torch.stack([weight.sum() for weight in self.parameters()]).sum()
        return out
