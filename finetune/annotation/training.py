"""The last blocks of a model trained on labelled cells, the number of epochs chosen on cells held out of these."""

import numpy as np
import torch
from jaxtyping import Float32, Int, Shaped
from scipy import sparse

from expresser.checkpoint import Checkpoint
from expresser.embed import embed_counts
from finetune.annotation.classifier import FineTuning, Tuned, fine_tune
from finetune.annotation.folds import Fold, inner_folds
from finetune.annotation.head import LinearHead, Splits, fit_head
from finetune.annotation.rows import Answer, Row


def train_blocks(
    checkpoint: Checkpoint,
    head: LinearHead,
    x: Float32[np.ndarray, "cells d"],
    counts: sparse.csr_matrix,
    labels: Shaped[np.ndarray, " cells"],
    groups: Shaped[np.ndarray, " cells"] | None,
    train: Int[np.ndarray, " train"],
    *,
    options: FineTuning,
    key: tuple[int, ...],
    device: str | None = None,
) -> Tuned:
    """Train on the rows `train`, from the head fitted to their frozen embeddings `x`.

    First on a part of them, from a head fitted to that part, to see after how many epochs the rest is predicted best; then so
    many epochs on all. Where training helped nothing on the held-out cells, the model and the head come back as they were.
    """
    n_parts = max(2, round(1 / options.valid_share))
    learn, check = (train[part] for part in inner_folds(labels, groups, train, folds=n_parts, key=key)[0])
    check = check[np.isin(labels[check].astype(str), labels[learn].astype(str))]
    if not len(check) or len(set(labels[learn])) < 2:
        return Tuned(checkpoint, head, (), 0)
    first = fit_head(x[learn], labels[learn], c=head.c)
    seed = int(np.random.default_rng(key).integers(2**62))
    tried = fine_tune(
        checkpoint,
        first,
        counts,
        _codes(labels, first),
        train=learn,
        valid=check,
        options=options,
        generator=torch.Generator().manual_seed(seed),
        device=device,
    )
    if tried.epoch == 0:
        return Tuned(checkpoint, head, tried.valid, 0)
    whole = fine_tune(
        checkpoint,
        head,
        counts,
        _codes(labels, head),
        train=train,
        valid=None,
        epochs=tried.epoch,
        options=options,
        generator=torch.Generator().manual_seed(seed),
        device=device,
    )
    return Tuned(whole.checkpoint, whole.head, tried.valid, whole.epoch)


def trained_row(
    name: str,
    checkpoint: Checkpoint,
    x: Float32[np.ndarray, "cells d"],
    counts: sparse.csr_matrix,
    labels: Shaped[np.ndarray, " cells"],
    groups: Shaped[np.ndarray, " cells"] | None,
    *,
    options: FineTuning,
    seed: int,
    seconds: float,
    device: str | None = None,
) -> Row:
    """A model's last blocks, trained anew in each fold."""

    def answer(fold: Fold, inner: Splits) -> Answer:
        head = fit_head(x[fold.train], labels[fold.train], inner=inner)
        tuned = train_blocks(
            checkpoint,
            head,
            x,
            counts,
            labels,
            groups,
            fold.train,
            options=options,
            key=(seed, fold.repeat, fold.number),
            device=device,
        )
        about = {"c": head.c, "epochs": tuned.epoch, "valid_log_loss": list(tuned.valid)}
        if tuned.epoch == 0:
            return Answer(head.predict(x[fold.test]), about)
        moved = embed_counts(
            tuned.checkpoint, sparse.csr_matrix(counts[fold.test]), max_tokens=options.max_tokens, device=device
        )
        return Answer(tuned.head.predict(moved), about)

    blocks = "last block" if options.blocks == 1 else f"last {options.blocks} blocks"
    words = f"{name}, its {blocks} and the linear layer trained from there on the training cells"
    return Row(f"{name}, {blocks} trained", "trained", words, x.shape[1], answer, seconds)


def _codes(labels: Shaped[np.ndarray, " cells"], head: LinearHead) -> Int[np.ndarray, " cells"]:
    """The number of each cell's type in the head; -1, which no step may meet, where it has none."""
    place = {name: i for i, name in enumerate(head.classes)}
    return np.array([place.get(name, -1) for name in labels], dtype=np.int64)
