"""The reference implementation: every cell padded to ``max_genes``, ``nn.TransformerEncoder``, no sharing, no packing.

Same parameters under the same names as :class:`ExpresserModel`, so that weights move between the two; kept so that each factor of
speed can be measured, and each optimisation proven to compute the same function.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from expresser.model.configuration import ExpresserConfig
from expresser.model.modeling import ExpresserModel
from expresser.model.ragged import Ragged


class NaiveExpresser(ExpresserModel):
    """The Expression Transformer on constant-length padded cells."""

    def __init__(self, config: ExpresserConfig) -> None:
        super().__init__(config)
        layer = nn.TransformerEncoderLayer(
            config.d_model,
            config.n_heads,
            config.feed_forward,
            dropout=config.dropout,
            activation="gelu",
            batch_first=True,
            norm_first=config.norm_first,
        )
        norm = nn.LayerNorm(config.d_model) if config.norm_first else None
        packed = self.encoder.state_dict()
        self.encoder = nn.TransformerEncoder(  # type: ignore[assignment]
            layer, config.n_layers, norm=norm, enable_nested_tensor=False
        )
        self.encoder.load_state_dict(packed)

    def encode(self, genes: Int[Tensor, " entries"], rows: Ragged) -> Float[Tensor, "entries d"]:
        """Pad to ``max_genes``, encode, and take the padding off again."""
        length = max(self.config.max_genes, rows.longest)
        slot = rows.row * length + rows.offset
        padded = genes.new_zeros(rows.n_rows * length).index_copy(0, slot, genes).view(rows.n_rows, length)
        is_padding = torch.ones(rows.n_rows * length, dtype=torch.bool, device=genes.device)
        is_padding[slot] = False
        out = self.encoder(self.gene_tokens(padded), src_key_padding_mask=is_padding.view(rows.n_rows, length))
        return out.flatten(0, 1)[slot]
