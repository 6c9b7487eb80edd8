"""What a run costs: FLOPs from the model's formula, memory from its shapes, hours from a few timed steps."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64
from torch import nn

from expresser.model.configuration import ExpresserConfig


@dataclass(frozen=True)
class Cost:
    """Floating-point operations of one optimiser step's cells, forward and backward (backward counted as twice forward)."""

    tokens: int
    targets: int
    flops: float


def cost(config: ExpresserConfig, lengths: Int64[np.ndarray, " cells"], n_folds: int | None, share: float) -> Cost:
    """Count multiply-adds (two operations each) of matrix products; backward is twice forward.

    Per token and encoder layer: ``8 d^2`` for the four attention projections, ``4 d d_ff`` for the feed-forward block and
    ``4 p d`` for attention over a cell of ``p`` genes. The decoder projects keys once a gene and pays ``4 c d`` a query over a
    context of ``c`` genes, whatever the number of folds. The head's hidden layer pays ``2 d`` for each of its inputs.

    Left out: norms, softmax, activations, look-ups, the loss and the optimiser, the projection of the ``n_bins`` expression tokens
    (once a batch), padding, and what an attention kernel computes a second time in its backward pass.
    """
    p = lengths.astype(np.float64)
    d, d_ff, n, m = config.d_model, config.feed_forward, config.n_layers, config.decoder_layers
    queries = p if n_folds is not None else np.maximum(np.round(p * share), 1)
    context = p * (1 - 1 / n_folds) if n_folds is not None else p - queries
    encoder = n * p * (8 * d**2 + 4 * d * d_ff + 4 * p * d)
    if config.model_type == "expresser":
        block = 4 * d * d_ff if config.decoder_residual else 0
        decoder = m * (2 * p * d**2 + queries * (4 * d**2 + 4 * context * d + block))
    else:
        views = 1 if n_folds is None else n_folds
        decoder = m * views * p * (8 * d**2 + 4 * d * d_ff + 4 * p * d)
    head = queries * (2 * d * _head_inputs(config) + 2 * d)
    return Cost(tokens=int(p.sum()), targets=int(queries.sum()), flops=3.0 * float((encoder + decoder + head).sum()))


def _head_inputs(config: ExpresserConfig) -> int:
    """Inputs of the head's hidden layer: what the decoder gathered, the contextual embedding where it is seen, and scalars."""
    seen = 1 if config.head in ("paper", "bias") else 2
    return seen * config.d_model + (2 if config.head == "truncated" else 1)


def n_parameters(model: nn.Module) -> int:
    """Trainable numbers."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def memory_bytes(config: ExpresserConfig, parameters: int, max_tokens: int, n_folds: int | None, element: int) -> int:
    """An estimate of peak memory: 16 bytes a parameter (weight, gradient, two Adam moments) and what backward keeps of a micro-batch.

    ``element`` is the size of an activation (2 with bf16). A layer keeps its input, two norms, q, k, v, the attention output and
    two copies of the feed-forward hidden layer; the decoder keeps keys and values of each view's context.
    """
    d, d_ff = config.d_model, config.feed_forward
    encoder = config.n_layers * (8 * d + 2 * d_ff)
    views = 1 if n_folds is None else n_folds - 1
    decoder = config.decoder_layers * (4 * views * d + 6 * d + (2 * d_ff if config.decoder_residual else 0))
    return 16 * parameters + max_tokens * element * (encoder + decoder + 4 * d)
