"""Transformer layers on packed tokens: everything but attention itself sees no padding at all."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from expresser.model.ragged import Ragged


def attend(
    q: Float[Tensor, "queries heads dim"],
    k: Float[Tensor, "keys heads dim"],
    v: Float[Tensor, "keys heads dim"],
    *,
    query_rows: Ragged,
    key_rows: Ragged,
    dropout: float = 0.0,
) -> Float[Tensor, "queries heads*dim"]:
    """Scaled dot-product attention of each row's queries over the same row's keys, all heads.

    Rows are padded to the longest of the batch, so a batch of rows of like length wastes nothing; padded keys get weight exactly 0.
    """
    padded_q = query_rows.pad(q).transpose(1, 2)
    padded_k = key_rows.pad(k).transpose(1, 2)
    padded_v = key_rows.pad(v).transpose(1, 2)
    out = F.scaled_dot_product_attention(padded_q, padded_k, padded_v, attn_mask=key_rows.key_mask, dropout_p=dropout)
    return query_rows.unpad(out.transpose(1, 2)).flatten(1)


class SelfAttention(nn.Module):
    """Multi-head self-attention (equations 4.2 and 4.3). Parameter names are those of ``nn.MultiheadAttention``."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}.")
        self.n_heads, self.dropout = n_heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Float[Tensor, "tokens d"], rows: Ragged) -> Float[Tensor, "tokens d"]:
        """Each token attends to the tokens of its own row."""
        q, k, v = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(1, (3, self.n_heads, -1)).unbind(1)
        dropout = self.dropout if self.training else 0.0
        return self.out_proj(attend(q, k, v, query_rows=rows, key_rows=rows, dropout=dropout))


class EncoderLayer(nn.Module):
    """A standard encoder layer, pre- or post-norm, GELU. Parameter names are those of ``nn.TransformerEncoderLayer``."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float, norm_first: bool) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.self_attn = SelfAttention(d_model, n_heads, dropout)
        self.linear1 = nn.Linear(d_model, d_ff)
        self.linear2 = nn.Linear(d_ff, d_model)
        self.norm1 = nn.LayerNorm(d_model)
        self.norm2 = nn.LayerNorm(d_model)
        self.dropout = nn.Dropout(dropout)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.linear2(self.dropout(F.gelu(self.linear1(x)))))

    def forward(self, x: Float[Tensor, "tokens d"], rows: Ragged) -> Float[Tensor, "tokens d"]:
        """Self-attention inside each row, then the feed-forward block."""
        if self.norm_first:
            x = x + self.dropout(self.self_attn(self.norm1(x), rows))
            return x + self._feed_forward(self.norm2(x))
        x = self.norm1(x + self.dropout(self.self_attn(x, rows)))
        return self.norm2(x + self._feed_forward(x))


class Encoder(nn.Module):
    """A stack of encoder layers; pre-norm stacks end with a norm of their own."""

    def __init__(
        self, n_layers: int, d_model: int, n_heads: int, d_ff: int, *, dropout: float, norm_first: bool
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(d_model, n_heads, d_ff, dropout=dropout, norm_first=norm_first) for _ in range(n_layers)
        )
        self.norm = nn.LayerNorm(d_model) if norm_first and n_layers else None

    def forward(self, x: Float[Tensor, "tokens d"], rows: Ragged) -> Float[Tensor, "tokens d"]:
        """Contextual embeddings of packed tokens."""
        for layer in self.layers:
            x = layer(x, rows)
        return x if self.norm is None else self.norm(x)


class CrossAttention(nn.Module):
    """The expression decoder's attention: queries and keys are genes, values are expression (dissertation, section 4.2.2)."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        self.n_heads, self.dropout = n_heads, dropout
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def forward(
        self,
        queries: Float[Tensor, "queries d"],
        keys: Float[Tensor, "entries d"],
        values: Float[Tensor, "seen d"],
        context: Tensor,
        query_rows: Ragged,
        context_rows: Ragged,
    ) -> Float[Tensor, "queries d"]:
        """``context`` names the entry behind each seen value: keys are projected once an entry, however many views see it."""
        heads = (self.n_heads, -1)
        return self.out_proj(
            attend(
                self.query(queries).unflatten(1, heads),
                self.key(keys).index_select(0, context).unflatten(1, heads),
                values.unflatten(1, heads),
                query_rows=query_rows,
                key_rows=context_rows,
                dropout=self.dropout if self.training else 0.0,
            )
        )


class DecoderLayer(nn.Module):
    """Cross-attention; with ``residual`` added to its queries and followed by a feed-forward block, pre-norm."""

    def __init__(self, d_model: int, n_heads: int, d_ff: int, *, dropout: float, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.attention = CrossAttention(d_model, n_heads, dropout)
        if residual:
            self.norm1 = nn.LayerNorm(d_model)
            self.norm2 = nn.LayerNorm(d_model)
            self.linear1 = nn.Linear(d_model, d_ff)
            self.linear2 = nn.Linear(d_ff, d_model)

    def forward(
        self,
        queries: Float[Tensor, "queries d"],
        keys: Float[Tensor, "entries d"],
        values: Float[Tensor, "seen d"],
        context: Tensor,
        query_rows: Ragged,
        context_rows: Ragged,
    ) -> Float[Tensor, "queries d"]:
        """See :class:`CrossAttention`."""
        if not self.residual:
            return self.attention(queries, keys, values, context, query_rows, context_rows)
        h = queries + self.attention(self.norm1(queries), keys, values, context, query_rows, context_rows)
        return h + self.linear2(F.gelu(self.linear1(self.norm2(h))))
