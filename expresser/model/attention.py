r"""Attention of packed rows: one call, three ways to compute it.

For query :math:`i` of a row and head, with the keys :math:`j` of the same row,

.. math:: o_i = \sum_j \mathrm{softmax}_j(s\, q_i \cdot k_j)\, v_j

``varlen``
    ``torch.nn.attention.varlen``: CUDA, float16 or bfloat16, cumulative lengths, no padding anywhere.
``blocks``
    :mod:`expresser.model.attention_blocks`: CPU, bfloat16, no padding, a faster backward pass.
``sdpa``
    ``scaled_dot_product_attention`` on rows padded to the longest: every device and type, dropout, and the reference for the others.

A row's result does not depend on the other rows of the batch, and a row without keys gets zeros.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

from expresser.errors import InputError
from expresser.model.attention_blocks import block_attention
from expresser.model.ragged import Ragged

Implementation = Literal["auto", "sdpa", "varlen", "blocks"]
Path = Literal["sdpa", "varlen", "blocks"]

_HALF = (torch.float16, torch.bfloat16)
_KERNEL_COLUMNS = 32  # CUDA kernels work on heads of 32, 64, 96 … columns
# Without matrix tiles bfloat16 products are slower than torch's own backward kernel for CPUs.
_HAS_TILES = torch.cpu._is_amx_tile_supported()
_WORTH_BLOCKS = 100 * 100  # pairs of a row, on average: below, calls take longer than what they compute


def attend(
    q: Float[Tensor, "queries heads columns"],
    k: Float[Tensor, "keys heads columns"],
    v: Float[Tensor, "keys heads columns"],
    *,
    query_rows: Ragged,
    key_rows: Ragged,
    scale: float | None = None,
    dropout: float = 0.0,
    implementation: Implementation = "auto",
) -> Float[Tensor, "queries heads*columns"]:
    """Scaled dot-product attention of each row's queries over the same row's keys, all heads.

    Parameters
    ----------
    scale
        Factor on the scores; None: one over the square root of the columns. Heads stored in more columns than they have
        (zeros behind, see :func:`stored_columns`) need their own.
    dropout
        On attention weights. Only ``sdpa`` has it.
    implementation
        ``auto``: the fastest that can run.

    Raises
    ------
    InputError
        If the implementation asked for cannot run here.
    """
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    path = choose(implementation, q.device, q.dtype, dropout=dropout)
    if path == "blocks" and implementation == "auto" and not _worth_blocks(q, query_rows, key_rows):
        path = "sdpa"
    if path == "varlen":
        return _varlen(q, k, v, query_rows, key_rows, scale)
    if path == "blocks":
        return block_attention(q, k, v, query_rows.lengths, key_rows.lengths, scale)[0].flatten(1)
    return _sdpa(q, k, v, query_rows, key_rows, scale, dropout)


def choose(implementation: Implementation, device: torch.device, dtype: torch.dtype, *, dropout: float) -> Path:
    """The way attention of such tensors is computed.

    Raises
    ------
    InputError
        If the implementation asked for cannot compute it.
    """
    if implementation == "sdpa":
        return "sdpa"
    if implementation == "auto":
        if why_not_varlen(device, dtype, dropout) is None:
            return "varlen"
        return "blocks" if _HAS_TILES and why_not_blocks(device, dtype, dropout) is None else "sdpa"
    obstacles = {"varlen": why_not_varlen, "blocks": why_not_blocks}
    if implementation not in obstacles:
        raise InputError(f"attention {implementation!r} is not one of auto, sdpa, varlen, blocks.")
    obstacle = obstacles[implementation](device, dtype, dropout)
    if obstacle is not None:
        raise InputError(
            f"attention {implementation!r} cannot run: {obstacle}. Take 'sdpa', or 'auto' for the fastest that can."
        )
    return implementation


def why_not_varlen(device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    """What keeps ``varlen`` from running; None where it runs."""
    if device.type != "cuda":
        return f"it needs a CUDA device, and the tensors are on {device}"
    if dtype not in _HALF:
        return f"it needs float16 or bfloat16 (autocast), and the tensors are {dtype}"
    if dropout > 0:
        return f"it has no dropout, and {dropout} is asked for"
    if torch.cuda.get_device_properties(device).major < 8:
        return f"it needs a GPU of compute capability 8.0 (A100) or later, and {device} is older"
    return None


def why_not_blocks(device: torch.device, dtype: torch.dtype, dropout: float) -> str | None:
    """What keeps ``blocks`` from running; None where it runs (whether it is the faster one is another question)."""
    if device.type != "cpu":
        return f"it is for CPUs, and the tensors are on {device}"
    if dtype != torch.bfloat16:
        return f"it needs bfloat16 (autocast), and the tensors are {dtype}"
    if dropout > 0:
        return f"it has no dropout, and {dropout} is asked for"
    return None


def stored_columns(implementation: Implementation, like: Tensor, columns: int, *, dropout: float) -> int:
    """In how many columns the projections should give each head, for an input like this.

    ``varlen``'s kernels work on multiples of 32 columns: 50 are stored as 64, the last 14 zero, which is the same function. The zeros
    are rows of zeros behind the weights of the projections, put there at each call: that costs a copy of the weights, not of the
    tokens, and neither checkpoints nor optimisers know of it.
    """
    kind = like.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else like.dtype
    if choose(implementation, like.device, dtype, dropout=dropout) != "varlen":
        return columns
    return -(-columns // _KERNEL_COLUMNS) * _KERNEL_COLUMNS


def _worth_blocks(q: Tensor, query_rows: Ragged, key_rows: Ragged) -> bool:
    if not (torch.is_grad_enabled() and q.requires_grad):
        return False  # forward, both call the same kernel
    return query_rows.n_entries * key_rows.n_entries >= _WORTH_BLOCKS * query_rows.n_rows**2


def _varlen(q: Tensor, k: Tensor, v: Tensor, query_rows: Ragged, key_rows: Ragged, scale: float) -> Tensor:
    columns = q.shape[-1]
    if columns % 8:  # not stored for the kernel: padded here, at the cost of a copy
        q, k, v = (F.pad(x, (0, -columns % _KERNEL_COLUMNS)) for x in (q, k, v))
    out = varlen_attn(
        q,
        k,
        v,
        query_rows.boundaries,
        key_rows.boundaries,
        query_rows.longest,
        key_rows.longest,
        scale=scale,
    )
    assert isinstance(out, Tensor)  # a pair only where the log-sum-exp is asked for
    return out[..., :columns].flatten(1)


def _sdpa(
    q: Tensor, k: Tensor, v: Tensor, query_rows: Ragged, key_rows: Ragged, scale: float, dropout: float
) -> Tensor:
    q, k, v = (rows.pad(x).transpose(1, 2) for rows, x in ((query_rows, q), (key_rows, k), (key_rows, v)))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=key_rows.key_mask, dropout_p=dropout, scale=scale)
    return query_rows.unpad(out.transpose(1, 2)).flatten(1)
