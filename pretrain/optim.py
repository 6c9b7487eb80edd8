"""The optimiser and the learning rate as a function of progress."""

import math

import torch
from torch import nn

from pretrain.config import OptimConfig


def adamw(model: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW in two groups: matrices of layers decay, embeddings, norms and biases do not."""
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 and id(parameter) not in embeddings else kept).append(parameter)
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(config: OptimConfig, progress: float) -> float:
    """The rate at ``progress`` in [0, 1] of the run. Having no state of its own, it needs none restored on resume."""
    if config.warmup_share > 0 and progress < config.warmup_share:
        return config.lr * max(progress / config.warmup_share, 1e-3)
    if config.schedule == "constant":
        return config.lr
    after = (progress - config.warmup_share) / (1 - config.warmup_share)
    cosine = 0.5 * (1 + math.cos(math.pi * min(after, 1.0)))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
