"""The optimiser and the learning rate as a function of progress."""

import math

import torch
from torch import nn

from expresser.model.modeling import ExpresserPreTrainedModel
from pretrain.config import OptimConfig


def adamw(model: ExpresserPreTrainedModel, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW in three groups: matrices of layers decay; embeddings, norms and biases do not; nor does the gene token table.

    A group's ``lr_scale`` is the share of the learning rate that `set_learning_rate` gives it: 1, and for the table its own.
    """
    table = model.gene_tokens.weight
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter is not table:
            (decayed if parameter.ndim > 1 and id(parameter) not in embeddings else kept).append(parameter)
    scale = 1.0 if config.token_lr_scale is None else config.token_lr_scale
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": kept, "weight_decay": 0.0, "lr_scale": 1.0},
        {"params": [table], "weight_decay": 0.0, "lr_scale": scale},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give each group its share of this rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The rate at ``progress`` in [0, 1] of the run. Having no state of its own, it needs none restored on resume."""
    if config.warmup_share > 0 and progress < config.warmup_share:
        return config.lr * max(progress / config.warmup_share, 1e-3)
    if config.schedule == "constant":
        return config.lr
    after = (progress - config.warmup_share) / (1 - config.warmup_share)
    cosine = 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
