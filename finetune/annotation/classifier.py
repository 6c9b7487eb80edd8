"""Cell types from a pretrained model end to end: its cell embedding, standardised, and a linear layer; its last blocks trained."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from scipy import sparse
from torch import Tensor, nn

from expresser.checkpoint import Checkpoint
from expresser.embed import by_tokens, pool_cells
from expresser.model.cells import Cells
from expresser.model.last_blocks import block_parameters
from expresser.model.modeling import ExpresserPreTrainedModel
from finetune.annotation.head import LinearHead


@dataclass(frozen=True)
class FineTuning:
    """How the last blocks are trained.

    Attributes
    ----------
    blocks
        How many, from the last: decoder layers first, then encoder layers (`block_parameters`).
    epochs, patience
        At most so many passes over the training cells; stopped when the held-out cells have not improved for `patience` of them.
    lr, weight_decay, batch_cells, warmup_steps
        Of AdamW; the linear layer has the same rate, which rises from zero over the first steps.
    train_genes
        Genes of a cell shown at once while training: what the cost goes by. Predictions are made with all that the model takes.
        Fewer than half of a cell's genes make training worse than none (256 of 770 in blood cells did).
    valid_share
        Part of the training cells (whole donors, where there are any) held out to choose the number of epochs.
    balanced
        Weigh cells so that all types count alike.
    max_tokens
        Tokens at once: the knob for memory. It does not change the result beyond rounding.
    """

    blocks: int = 1
    epochs: int = 5
    patience: int = 1
    lr: float = 3e-4
    weight_decay: float = 0.01
    batch_cells: int = 32
    warmup_steps: int = 20
    train_genes: int = 512
    valid_share: float = 0.2
    balanced: bool = False
    max_tokens: int = 16384


class CellClassifier(nn.Module):
    r"""Logits :math:`W (e - m) / s + b` of the pooled cell embedding :math:`e` of `expresser.embed.pool_cells`.

    The normalisation is the head's own, fixed, and not a layer norm: so the start is exactly the logistic regression on frozen
    embeddings, and training can be judged by what it adds to it.
    """

    def __init__(self, backbone: ExpresserPreTrainedModel, head: LinearHead) -> None:
        super().__init__()
        self.backbone = backbone
        # Without the random start, which would draw from the global generator.
        self.linear = nn.utils.skip_init(nn.Linear, head.coef.shape[1], len(head.classes))
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", torch.from_numpy(head.mean).float())
        self.register_buffer("scale", torch.from_numpy(head.scale).float())
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(head.coef))
            # A class without a cell is ruled out by -1e9, which float32 holds well enough.
            self.linear.bias.copy_(torch.from_numpy(head.intercept))

    def forward(self, cells: Cells) -> Float[Tensor, "cells classes"]:
        """Logits of each cell, float32."""
        pooled, _ = pool_cells(self.backbone, cells)
        return self.linear((pooled.float() - self.mean) / self.scale)

    def head(self, before: LinearHead) -> LinearHead:
        """The linear layer as it is now, in the form that is saved."""
        return LinearHead(
            classes=before.classes,
            coef=self.linear.weight.detach().cpu().double().numpy(),
            intercept=self.linear.bias.detach().cpu().double().numpy(),
            mean=before.mean,
            scale=before.scale,
            c=before.c,
        )


@dataclass(frozen=True, eq=False)
class Tuned:
    """A trained model and head, the log-loss on the held-out cells before and after each epoch, and the epoch that was kept."""

    checkpoint: Checkpoint
    head: LinearHead
    valid: tuple[float, ...]
    epoch: int


def fine_tune(
    checkpoint: Checkpoint,
    head: LinearHead,
    counts: sparse.csr_matrix,
    code: Int[np.ndarray, " cells"],
    *,
    train: Int[np.ndarray, " train"],
    valid: Int[np.ndarray, " valid"] | None,
    options: FineTuning,
    epochs: int | None = None,
    generator: torch.Generator,
    device: str | None = None,
) -> Tuned:
    """Train the last blocks and the head from where they are; the checkpoint given is not changed.

    Parameters
    ----------
    counts, code
        All cells over the model's vocabulary, and the number of each one's class in `head.classes`.
    train, valid
        Rows. With `valid`, the epoch of the least log-loss there is kept, be it the start; without, the last one.
    epochs
        Instead of the options'. With 0 the model and the head are returned as they are.
    generator
        All randomness: the order of cells, and dropout where the model has any.
    """
    epochs = options.epochs if epochs is None else epochs
    names = set(block_parameters(checkpoint.model, options.blocks))
    if not epochs or not names:
        return Tuned(checkpoint, head, (), 0)
    place = torch.device(device) if device is not None else next(checkpoint.model.parameters()).device
    network = CellClassifier(copy.deepcopy(checkpoint.model), head).to(place)
    for name, parameter in network.backbone.named_parameters():
        parameter.requires_grad_(name in names)
    learnt = [parameter for parameter in network.parameters() if parameter.requires_grad]
    matrices, rest = [p for p in learnt if p.ndim > 1], [p for p in learnt if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, weight_decay=options.weight_decay)
    weights = _weights(code[train], len(head.classes), options.balanced).to(place)
    seed = int(torch.randint(2**40, (), generator=generator))
    losses = [] if valid is None else [_log_loss(network, counts, code, valid, options)]
    best, best_epoch = _state(network, names), 0
    done = 0
    for epoch in range(1, epochs + 1):
        order = train[torch.randperm(len(train), generator=generator).numpy()]
        with _dropout(network, seed + epoch):
            for start in range(0, len(order), options.batch_cells):
                done += 1
                for of in optimizer.param_groups:
                    of["lr"] = options.lr * min(1.0, done / options.warmup_steps)
                batch = order[start : start + options.batch_cells]
                _step(network, optimizer, counts, code, batch, weights, options)
        if valid is not None:
            losses.append(_log_loss(network, counts, code, valid, options))
            if losses[-1] < min(losses[:-1]):
                best, best_epoch = _state(network, names), epoch
            elif epoch - best_epoch >= options.patience:
                break
        else:
            best, best_epoch = _state(network, names), epoch
    if best_epoch == 0:
        return Tuned(checkpoint, head, tuple(losses), 0)
    with torch.no_grad():
        for name, value in best.items():
            network.get_parameter(name).copy_(value)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    backbone = network.backbone.to(next(checkpoint.model.parameters()).device).eval()
    tuned = Checkpoint(backbone, checkpoint.vocab, checkpoint.run, checkpoint.source)
    return Tuned(tuned, network.head(head), tuple(losses), best_epoch)


def _step(
    network: CellClassifier,
    optimizer: torch.optim.Optimizer,
    counts: sparse.csr_matrix,
    code: Int[np.ndarray, " cells"],
    rows: Int[np.ndarray, " batch"],
    weights: Float[Tensor, " classes"],
    options: FineTuning,
) -> None:
    """One step on these cells, in as many parts as their tokens need."""
    place, total = weights.device, weights[torch.from_numpy(code[rows]).to(weights.device)].sum()
    most = min(options.train_genes, network.backbone.config.max_genes)
    for part in batches(counts, rows, most, options.max_tokens):
        # Key 0, as in use: genes and folds drawn anew in each epoch made a noise that the head was then fitted to, and the
        # loss on cells as they are embedded for use rose from the first step.
        key = torch.zeros(len(part), dtype=torch.long, device=place)
        logits = network(to_cells(counts, part, network.backbone, key, most))
        truth = torch.from_numpy(code[part]).to(place)
        loss = F.cross_entropy(logits, truth, reduction="none") * weights[truth]
        (loss.sum() / total).backward()
    # Early steps of a network that was at its optimum for another task are the wild ones.
    torch.nn.utils.clip_grad_norm_([p for p in network.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def _log_loss(
    network: CellClassifier,
    counts: sparse.csr_matrix,
    code: Int[np.ndarray, " cells"],
    rows: Int[np.ndarray, " asked"],
    options: FineTuning,
) -> float:
    """Mean log-loss (nats a cell) of cells as they are embedded for use: all genes that the model takes, key 0."""
    most, place = network.backbone.config.max_genes, next(network.parameters()).device
    network.eval()
    total = 0.0
    for part in batches(counts, rows, most, options.max_tokens):
        key = torch.zeros(len(part), dtype=torch.long, device=place)
        logits = network(to_cells(counts, part, network.backbone, key, most))
        total += float(F.cross_entropy(logits, torch.from_numpy(code[part]).to(place), reduction="sum"))
    return total / len(rows)


def batches(
    counts: sparse.csr_matrix, rows: Int[np.ndarray, " cells"], max_genes: int, max_tokens: int
) -> Iterator[Int[np.ndarray, " part"]]:
    """The rows in parts of cells of like length, each within the budget of padded tokens."""
    for part in by_tokens(np.diff(counts.indptr)[rows], max_tokens, max_genes, fewest=0):
        yield rows[part]


def to_cells(
    counts: sparse.csr_matrix,
    rows: Int[np.ndarray, " cells"],
    model: ExpresserPreTrainedModel,
    key: Int[Tensor, " cells"],
    max_genes: int,
) -> Cells:
    """Rows of counts over the vocabulary as what the model is fed, on its device."""
    batch, place = counts[rows], next(model.parameters()).device
    return Cells.from_counts(
        torch.from_numpy(batch.indices.astype(np.int64)).to(place),
        torch.from_numpy(batch.data.astype(np.int64)).to(place),
        torch.from_numpy(np.diff(batch.indptr).astype(np.int64)).to(place),
        torch.from_numpy(np.asarray(batch.sum(1)).ravel().astype(np.float32)).to(place),
        key,
        target_sum=model.config.target_sum,
        max_genes=max_genes,
    )


def _weights(code: Int[np.ndarray, " cells"], n_classes: int, balanced: bool) -> Float[Tensor, " classes"]:
    sizes = np.bincount(code, minlength=n_classes)
    return torch.from_numpy(1 / np.maximum(sizes, 1) if balanced else np.ones(n_classes)).float()


def _state(network: CellClassifier, names: Sequence[str] | set[str]) -> dict[str, Tensor]:
    """A copy of what training moves."""
    moved = {f"backbone.{name}" for name in names}
    return {n: p.detach().clone() for n, p in network.named_parameters() if n in moved or n.startswith("linear.")}


@contextmanager
def _dropout(network: nn.Module, seed: int) -> Iterator[None]:
    """Training mode; dropout, where the model has any, draws by the seed and leaves the global generator alone."""
    network.train()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
    network.eval()
