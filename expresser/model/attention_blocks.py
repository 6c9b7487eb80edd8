"""Attention of packed bfloat16 rows on a CPU: torch's kernel forward, a backward pass made of matrix products in blocks.

torch's own backward kernel for CPUs takes four times its forward. Here every product over pairs of tokens is one ``bmm`` in bfloat16
(AMX), and the two elementwise passes between them, an exponential and a product, run in place in buffers that are used again. What
is subtracted before them, the log-sum-exp of a query and the mean of its gradient, enters the products as columns beside the head's
own. Each of these, and the scaled queries, is split into two bfloat16 numbers; sums inside a product are float32.

A weight is computed as ``2^shift p`` with ``2^shift`` near the number of keys, its exponent rounded to bfloat16. The exponent is 0
where attention is flat and at most ``shift`` where it is on one key: no overflow, and an error of 2^-5 in the exponent at the peak.
"""

import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_PAIRS = 1_500_000  # worked on at once by a thread: bounds memory (two bfloat16 numbers a pair); smaller blocks pay more for packing
_WASTE = 1.25  # rows of different lengths share a block up to this many padded pairs a true one
_TILE = 16  # lengths of a block are multiples of this: matrix products on odd strides take a fifth longer
_SPARE = 3  # columns beside the head's own: two halves of a float32 and the mask of padded keys
_NEVER = -1e4  # exponent of a padded key's weight; 2^-10000 is exactly 0
_LOG2E = 1 / math.log(2)

_local = threading.local()


def _buffer(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Memory that is used again, one for each thread: fresh memory costs more page faults than the work done in it."""
    found: dict[str, Tensor] = _local.__dict__.setdefault("buffers", {})
    size = math.prod(shape)
    if name not in found or found[name].numel() < size:
        found[name] = torch.empty(size, dtype=dtype)
    return found[name][:size].view(shape)


@dataclass(frozen=True)
class _Chunk:
    """Consecutive rows that are worked on together: (first entry, length) of each row's queries and keys."""

    queries: list[tuple[int, int]]
    keys: list[tuple[int, int]]

    @property
    def n_queries(self) -> int:
        return max(n for _, n in self.queries)

    @property
    def n_keys(self) -> int:
        return max(n for _, n in self.keys)

    @property
    def is_even(self) -> bool:
        """Whether all rows have the same lengths."""
        return len({(q, k) for (_, q), (_, k) in zip(self.queries, self.keys)}) == 1


def _chunks(query_lengths: Tensor, key_lengths: Tensor, most_pairs: float) -> Iterator[_Chunk]:
    """Rows that have queries and keys, in chunks of not more padded pairs than these (or a single row)."""
    queries: list[tuple[int, int]] = []
    keys: list[tuple[int, int]] = []
    longest_q = longest_k = true = at_q = at_k = 0
    for q, k in zip(query_lengths.tolist(), key_lengths.tolist()):
        if q and k:
            padded = (len(queries) + 1) * max(longest_q, q) * max(longest_k, k)
            apart = queries and (sum(queries[-1]) != at_q or sum(keys[-1]) != at_k)
            if queries and (apart or padded > most_pairs or padded > _WASTE * (true + q * k)):
                yield _Chunk(queries, keys)
                queries, keys, longest_q, longest_k, true = [], [], 0, 0, 0
            queries.append((at_q, q))
            keys.append((at_k, k))
            longest_q, longest_k, true = max(longest_q, q), max(longest_k, k), true + q * k
        at_q, at_k = at_q + q, at_k + k
    if queries:
        yield _Chunk(queries, keys)


def _views(packed: Tensor, rows: list[tuple[int, int]], blocks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs of views on the same entries: of packed (entries, heads, …) and of blocks (rows, heads, longest, …)."""
    (start, n), stop = rows[0], sum(rows[-1])
    if all(length == n for _, length in rows):
        yield packed[start:stop].unflatten(0, (len(rows), n)).transpose(1, 2), blocks[:, :, :n]
    else:
        for i, (first, length) in enumerate(rows):
            yield packed[first : first + length].transpose(0, 1), blocks[i, :, :length]


def _gather(packed: Tensor, rows: list[tuple[int, int]], blocks: Tensor) -> None:
    """Copy packed entries into blocks; what lies behind a row's end becomes 0."""
    shortest = min(n for _, n in rows)
    blocks[:, :, shortest:] = 0
    for of_packed, of_block in _views(packed, rows, blocks):
        of_block.copy_(of_packed)


def _scatter(blocks: Tensor, rows: list[tuple[int, int]], packed: Tensor) -> None:
    """The inverse of :func:`_gather`."""
    for of_packed, of_block in _views(packed, rows, blocks):
        of_packed.copy_(of_block)


def _up(n: int) -> int:
    return -(-n // _TILE) * _TILE


def _split(value: Tensor, columns: Tensor) -> None:
    """A float32 value as the sum of two bfloat16 columns."""
    high = value.to(torch.bfloat16)
    columns[..., 0] = high
    columns[..., 1] = value - high


@torch.library.custom_op("expresser::block_attention", mutates_args=(), device_types="cpu")
def block_attention(
    q: Tensor, k: Tensor, v: Tensor, query_lengths: Tensor, key_lengths: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Attention of packed rows: bfloat16 (queries, heads, dim) over (keys, heads, dim); also the log-sum-exp of each query and head.

    A row without keys gets zeros.
    """
    chunks = list(_chunks(query_lengths, key_lengths, math.inf))
    if len(chunks) == 1 and chunks[0].is_even and sum(chunks[0].queries[-1]) == q.shape[0]:
        return _forward_even(chunks[0].queries, chunks[0].keys, q, k, v, scale)
    out = q.new_zeros(q.shape)
    lse = q.new_zeros(q.shape[:2], dtype=torch.float32)
    for chunk in chunks:
        # Rows of one length are a batch of torch's kernel without a copy; others go one by one, without padding.
        parts = [slice(None)] if chunk.is_even else [slice(i, i + 1) for i in range(len(chunk.queries))]
        for part in parts:
            queries = chunk.queries[part]
            inside = slice(queries[0][0], sum(queries[-1]))
            out[inside], lse[inside] = _forward_even(queries, chunk.keys[part], q, k, v, scale)
    return out, lse


def _forward_even(
    queries: list[tuple[int, int]], keys: list[tuple[int, int]], q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output and log-sum-exp of consecutive rows of one length, packed."""
    q, k, v = (
        x[rows[0][0] : sum(rows[-1])].unflatten(0, (len(rows), rows[0][1])).transpose(1, 2)
        for x, rows in ((q, queries), (k, keys), (v, keys))
    )
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = flash(q, k, v, 0.0, False, scale=scale)
    return out.transpose(1, 2).flatten(0, 1), lse.transpose(1, 2).flatten(0, 1)


@torch.library.custom_op("expresser::block_attention_backward", mutates_args=(), device_types="cpu")
def block_attention_backward(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    query_lengths: Tensor,
    key_lengths: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`block_attention` by q, k and v."""
    heads = q.shape[1]
    whole = bool((query_lengths > 0).all()) and bool((key_lengths > 0).all())
    dq, dk, dv = (x.new_empty(x.shape) if whole else x.new_zeros(x.shape) for x in (q, k, v))
    threads = torch.get_num_threads()
    for chunk in _chunks(query_lengths, key_lengths, threads * _PAIRS / heads):
        _backward_chunk(chunk, gradient, q, k, v, out, lse, scale, dq, dk, dv, threads)
    return dq, dk, dv


def _backward_chunk(
    chunk: _Chunk,
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    threads: int,
) -> None:
    heads, dim = q.shape[1:]
    rows, m, n, width = len(chunk.queries), _up(chunk.n_queries), _up(chunk.n_keys), _up(dim + _SPARE)
    shift = round(math.log2(chunk.n_keys))

    # Scores of keys x queries in units of log 2, less the log-sum-exp:
    # [k, 1, 1, mask | k] · [scale q (first half), shift - lse (two halves), 1 | scale q (second half)].
    # One bfloat16 for scale q is not enough: large scores would miss their log-sum-exp by whole units, and weights overflow.
    wide = width + _up(dim)
    q1, k1 = _buffer("q", (rows, heads, m, wide)), _buffer("k", (rows, heads, n, wide))
    scaled = _buffer("product", (rows, heads, m, dim), torch.float32)
    _gather(q, chunk.queries, scaled)
    first, second = q1[..., :dim], q1[..., width : width + dim]
    first.copy_(scaled.mul_(scale * _LOG2E))
    second.copy_(scaled.sub_(first))
    _gather(k, chunk.keys, k1[..., :dim])
    k1[..., width : width + dim] = k1[..., :dim]
    for x in (q1, k1):
        x[..., dim:width] = 0
        x[..., width + dim :] = 0
    q1[..., dim + 2] = 1
    k1[..., dim : dim + 2] = 1
    for i, (_, length) in enumerate(chunk.keys):
        k1[i, :, length:, dim + 2] = _NEVER
    sums = _buffer("lse", (rows, heads, m), torch.float32)
    _gather(lse, chunk.queries, sums)
    _split(sums.mul_(-_LOG2E).add_(shift), q1[..., dim:])

    # Gradients of the weights less their mean under the weights: [v 1 1] · [g, -g·out (two halves)].
    g1, v1 = _buffer("g", (rows, heads, m, width)), _buffer("v", (rows, heads, n, width))
    _gather(gradient, chunk.queries, g1[..., :dim])
    _gather(v, chunk.keys, v1[..., :dim])
    g1[..., dim + 2 :] = 0
    v1[..., dim:] = 0
    v1[..., dim : dim + 2] = 1
    product = _buffer("product", (rows, heads, m, dim), torch.float32)
    _gather(out, chunk.queries, product)
    _split(product.mul_(g1[..., :dim]).sum(-1).neg_(), g1[..., dim:])

    flat = rows * heads
    q2, k2, g2, v2 = (x.flatten(0, 1) for x in (q1, k1, g1, v1))
    groups = -(-flat // max(threads, threads * _PAIRS // (m * n)))
    at_once = -(-flat // groups)
    step = _up(-(-n // -(-m * n // _PAIRS)))
    starts = range(0, n, step)
    gk, gv = _buffer("dk", (flat, n, width)), _buffer("dv", (flat, n, width))
    gq = _buffer("dq", (len(starts), flat, width, m))
    turned = _buffer("turned", (flat, width, n))  # or each product would turn it anew
    turned.copy_(k2[..., :width].transpose(1, 2))
    for begin in range(0, flat, at_once):
        b = slice(begin, begin + at_once)
        size = min(at_once, flat - begin)
        for number, start in enumerate(starts):
            s = slice(start, start + step)
            shape = (size, min(step, n - start), m)
            weights = torch.bmm(k2[b, s], q2[b].transpose(1, 2), out=_buffer("weights", shape))
            weights.exp2_()
            torch.bmm(weights, g2[b], out=gv[b, s])
            change = torch.bmm(v2[b, s], g2[b].transpose(1, 2), out=_buffer("change", shape))
            change.mul_(weights)
            torch.bmm(change, q2[b, :, :width], out=gk[b, s])
            torch.bmm(turned[b, :, s], change, out=gq[number, b])
    # The columns of q carry scale / log 2 and all weights 2^shift.
    _scatter(gv.mul_(2.0**-shift).view(rows, heads, n, width)[..., :dim], chunk.keys, dv)
    _scatter(gk.mul_(2.0**-shift / _LOG2E).view(rows, heads, n, width)[..., :dim], chunk.keys, dk)
    total = gq[0] if len(starts) == 1 else torch.sum(gq, 0, dtype=torch.float32)
    total = total.mul_(2.0**-shift * scale).view(rows, heads, width, m)
    _scatter(total[:, :, :dim].transpose(2, 3), chunk.queries, dq)


@block_attention.register_fake
def _(q, k, v, query_lengths, key_lengths, scale):
    return q.new_empty(q.shape), q.new_empty(q.shape[:2], dtype=torch.float32)


@block_attention_backward.register_fake
def _(gradient, q, k, v, out, lse, query_lengths, key_lengths, scale):
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _keep(ctx, inputs, output):
    q, k, v, query_lengths, key_lengths, ctx.scale = inputs
    out, lse = output
    ctx.mark_non_differentiable(lse)
    ctx.save_for_backward(q, k, v, out, lse, query_lengths, key_lengths)


def _backward(ctx, gradient, _):
    q, k, v, out, lse, query_lengths, key_lengths = ctx.saved_tensors
    grads = block_attention_backward(gradient, q, k, v, out, lse, query_lengths, key_lengths, ctx.scale)
    return *grads, None, None, None


block_attention.register_autograd(_backward, setup_context=_keep)
