"""Transformer layers on packed tokens: everything but attention itself sees no padding at all."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from expresser.model.attention import Implementation, attend, stored_columns
from expresser.model.ragged import Ragged


def _store(projection: Tensor, heads: int, columns: int) -> Tensor:
    """Rows of zeros behind each head's rows of a weight (heads*dim, …) or bias, so that the projection gives ``columns`` a head."""
    by_head = projection.unflatten(0, (heads, -1))
    spare = columns - by_head.shape[1]
    return projection if spare == 0 else F.pad(by_head, (0, 0) * (by_head.dim() - 2) + (0, spare)).flatten(0, 1)


class _Heads(nn.Module):
    """What self- and cross-attention share: heads, their dropout, and how attention is computed.

    ``implementation`` is a property of the running model, not of its configuration: it changes no weight and is not saved.
    """

    implementation: Implementation = "auto"

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__()
        if d_model % n_heads:
            raise ValueError(f"d_model {d_model} is not a multiple of n_heads {n_heads}.")
        self.n_heads, self.dim, self.dropout = n_heads, d_model // n_heads, dropout

    def columns(self, like: Tensor) -> int:
        """Columns that each head is stored in, for an input like this."""
        return stored_columns(self.implementation, like, self.dim, dropout=self._dropout)

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def _project(self, x: Tensor, projection: nn.Linear, columns: int) -> Float[Tensor, "tokens heads columns"]:
        if columns == self.dim:  # the module itself: whoever shards parameters gathers them when a module is called
            return projection(x).unflatten(-1, (self.n_heads, columns))
        weight, bias = (_store(p, self.n_heads, columns) for p in (projection.weight, projection.bias))
        return F.linear(x, weight, bias).unflatten(-1, (self.n_heads, columns))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, query_rows: Ragged, key_rows: Ragged, out: nn.Linear) -> Tensor:
        attended = attend(
            q,
            k,
            v,
            query_rows=query_rows,
            key_rows=key_rows,
            scale=self.dim**-0.5,
            dropout=self._dropout,
            implementation=self.implementation,
        )
        if q.shape[-1] == self.dim:
            return out(attended)
        return F.linear(attended, _store(out.weight.T, self.n_heads, q.shape[-1]).T, out.bias)


class SelfAttention(_Heads):
    """Multi-head self-attention (equations 4.2 and 4.3). Parameter names are those of ``nn.MultiheadAttention``."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__(d_model, n_heads, dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Float[Tensor, "tokens d"], rows: Ragged) -> Float[Tensor, "tokens d"]:
        """Each token attends to the tokens of its own row."""
        columns = self.columns(x)
        weight, bias = (_store(p, 3 * self.n_heads, columns) for p in (self.in_proj_weight, self.in_proj_bias))
        q, k, v = F.linear(x, weight, bias).unflatten(1, (3, self.n_heads, columns)).unbind(1)
        return self._attend(q, k, v, rows, rows, self.out_proj)


def use_attention(model: nn.Module, implementation: Implementation) -> None:
    """Say how a model computes attention from now on: ``auto``, ``sdpa``, ``varlen`` or ``blocks`` (:mod:`expresser.model.attention`).

    It is the same function however computed; weights, configuration and checkpoints do not know of it.
    """
    for module in model.modules():
        if isinstance(module, _Heads):
            module.implementation = implementation


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


class CrossAttention(_Heads):
    """The expression decoder's attention: queries and keys are genes, values are expression (dissertation, section 4.2.2)."""

    def __init__(self, d_model: int, n_heads: int, dropout: float) -> None:
        super().__init__(d_model, n_heads, dropout)
        self.query = nn.Linear(d_model, d_model)
        self.key = nn.Linear(d_model, d_model)
        self.value = nn.Linear(d_model, d_model)
        self.out_proj = nn.Linear(d_model, d_model)

    def values(
        self, embedding: Float[Tensor, "n d"], direction: Float[Tensor, " d"] | None, *, like: Tensor
    ) -> tuple[Float[Tensor, "n width"], Float[Tensor, " width"] | None]:
        """``W^V`` of a table of value embeddings and of a direction in it, in the columns that keys like these are projected to."""
        columns = self.columns(like)
        table = self._project(embedding, self.value, columns).flatten(1)
        if direction is None:
            return table, None
        return table, F.linear(direction, _store(self.value.weight, self.n_heads, columns))

    def forward(
        self,
        queries: Float[Tensor, "queries d"],
        keys: Float[Tensor, "entries d"],
        values: Float[Tensor, "seen width"],
        context: Tensor,
        query_rows: Ragged,
        context_rows: Ragged,
    ) -> Float[Tensor, "queries d"]:
        """``context`` names the entry behind each seen value: keys are projected once an entry, however many views see it."""
        columns = values.shape[1] // self.n_heads
        q = self._project(queries, self.query, columns)
        k = self._project(keys, self.key, columns).index_select(0, context)
        v = values.unflatten(1, (self.n_heads, columns))
        return self._attend(q, k, v, query_rows, context_rows, self.out_proj)


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
        values: Float[Tensor, "seen width"],
        context: Tensor,
        query_rows: Ragged,
        context_rows: Ragged,
    ) -> Float[Tensor, "queries d"]:
        """See :class:`CrossAttention`."""
        if not self.residual:
            return self.attention(queries, keys, values, context, query_rows, context_rows)
        h = queries + self.attention(self.norm1(queries), keys, values, context, query_rows, context_rows)
        return h + self.linear2(F.gelu(self.linear1(self.norm2(h))))
