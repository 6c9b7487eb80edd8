"""Two encoders that others pretrain, at the Expression Transformer's size and on its cells; for bench_step.py alone.

Written from their papers' descriptions with what is installed (transformers, torch.nn): no weights, no code and no data of theirs.
Dropout is 0 in all, as in ours: with attention dropout torch's CPU kernel would fall back to the slow path, so this favours them.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from expresser.model.cells import Cells
from expresser.model.keyed import keyed_rank
from pretrain.config import ModelConfig

_PAD, _MASK, _SPECIAL = 0, 1, 2
_RANK, _WHICH = 91, 92  # purposes of the keyed draws


def padded(cells: Cells, entries: Tensor, fill: float) -> tuple[Tensor, Bool[Tensor, "cells longest"]]:
    """Packed entries as cells x the longest cell of the batch, and where a slot is padding."""
    rows = cells.rows
    out = entries.new_full((rows.n_rows, rows.longest), fill)
    out[rows.row, rows.offset] = entries
    empty = torch.ones(out.shape, dtype=torch.bool, device=out.device)
    empty[rows.row, rows.offset] = False
    return out, empty


class RankedBert(nn.Module):
    """A BERT over genes in the order of their expression; 15 % of them masked and named again (as Geneformer, Theodoris et al. 2023).

    A gene's value is its place: the i-th token of a cell is its i-th most expressed gene. Batches are of cells of like length,
    padded to the longest. Of the chosen genes 80 % are masked, 10 % replaced at random and 10 % left. Logits over the vocabulary
    are computed at every position, as ``BertForMaskedLM`` does.
    """

    share = 0.15

    def __init__(self, vocab: int, size: ModelConfig) -> None:
        super().__init__()
        self.vocab, self.size = vocab, size
        self.bert = BertForMaskedLM(
            BertConfig(
                vocab_size=vocab + _SPECIAL,
                hidden_size=size.d_model,
                num_hidden_layers=size.n_layers,
                num_attention_heads=size.n_heads,
                intermediate_size=size.d_ff or 4 * size.d_model,
                max_position_embeddings=size.max_genes,
                hidden_dropout_prob=0.0,
                attention_probs_dropout_prob=0.0,
                pad_token_id=_PAD,
            )
        )

    def losses(self, cells: Cells) -> Iterator[tuple[Tensor, int]]:
        """The loss of the batch and how many genes it asks."""
        rows = cells.rows
        # One sort orders every cell: values are log1p of 1e4 times a share and never reach 10.
        order = torch.argsort(rows.row.double() * 10 - cells.values.double(), stable=True)
        genes = cells.genes[order] + _SPECIAL
        asked = keyed_rank(rows, cells.key, genes, purpose=_RANK) < (rows.lengths * self.share).round()[rows.row]
        draw = keyed_rank(rows, cells.key, genes, purpose=_WHICH)  # a second random order: its tenths say what is shown
        shown = torch.where(asked & (draw % 10 < 8), _MASK, genes)
        shown = torch.where(asked & (draw % 10 == 8), genes.roll(1), shown)  # another gene of the batch
        tokens, empty = padded(cells, shown, _PAD)
        labels, _ = padded(cells, torch.where(asked, genes, -100), -100)
        yield self.bert(input_ids=tokens, attention_mask=(~empty).long(), labels=labels).loss, int(asked.sum())

    def forward_flops(self, lengths: Tensor) -> float:
        """Matrix products: 8 d^2 + 4 d d_ff + 4 p d a token and layer, then 2 d^2 + 2 d V a token in the head."""
        d, p = self.size.d_model, lengths.double()
        return float((p * (_layers(self.size, p) + 2 * d**2 + 2 * d * (self.vocab + _SPECIAL))).sum())


class ValueInput(nn.Module):
    """Gene token + value at the input of ``nn.TransformerEncoder``, masked values predicted (as scGPT, Cui et al. 2024).

    Since values go in at the bottom, each mask needs an encoding of its own: ``passes`` masks are as many forward and backward
    passes. One pass asks the same share of genes as ours. With passes = 1 / share every gene is asked once, what all folds ask
    of one encoding.
    """

    def __init__(self, vocab: int, size: ModelConfig, *, passes: int, share: float) -> None:
        super().__init__()
        d = size.d_model
        self.size, self.passes, self.folds = size, passes, round(1 / share)
        self.genes = nn.Sequential(nn.Embedding(vocab, d), nn.LayerNorm(d))
        self.values = nn.Sequential(nn.Linear(1, d), nn.ReLU(), nn.Linear(d, d), nn.LayerNorm(d))
        layer = nn.TransformerEncoderLayer(d, size.n_heads, size.d_ff or 4 * d, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, size.n_layers, enable_nested_tensor=False)
        self.out = nn.Sequential(nn.Linear(d, d), nn.LeakyReLU(), nn.Linear(d, d), nn.LeakyReLU(), nn.Linear(d, 1))

    def losses(self, cells: Cells) -> Iterator[tuple[Tensor, int]]:
        """The loss of each mask's pass and how many genes it asks; the caller runs its backward pass before the next begins."""
        genes, empty = padded(cells, cells.genes, 0)
        values, _ = padded(cells, cells.values, 0.0)
        fold, _ = padded(cells, keyed_rank(cells.rows, cells.key, cells.genes, purpose=_RANK) % self.folds, -1)
        for number in range(self.passes):
            yield self._loss(genes, values, fold == number, empty), int((fold == number).sum())

    def _loss(
        self,
        genes: Int[Tensor, "cells longest"],
        values: Float[Tensor, "cells longest"],
        asked: Bool[Tensor, "cells longest"],
        empty: Bool[Tensor, "cells longest"],
    ) -> Tensor:
        shown = values.masked_fill(asked, -1.0)  # no value is negative
        encoded = self.encoder(self.genes(genes) + self.values(shown[..., None]), src_key_padding_mask=empty)
        return F.mse_loss(self.out(encoded).squeeze(2).float()[asked], values[asked])

    def forward_flops(self, lengths: Tensor) -> float:
        """Matrix products of all passes: 8 d^2 + 4 d d_ff + 4 p d a token and layer, 2 d + 2 d^2 for its value, 4 d^2 + 2 d in
        the head."""
        d, p = self.size.d_model, lengths.double()
        return self.passes * float((p * (_layers(self.size, p) + 6 * d**2 + 4 * d)).sum())


def _layers(size: ModelConfig, p: Tensor) -> Tensor:
    d = size.d_model
    return size.n_layers * (8 * d**2 + 4 * d * (size.d_ff or 4 * d) + 4 * p * d)
