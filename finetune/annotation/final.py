"""The classifier that an annotation run leaves behind: the model that did best, fitted to all cells."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser.checkpoint import Checkpoint
from finetune.annotation.apply import FittedClassifier
from finetune.annotation.classifier import FineTuning
from finetune.annotation.data import LabelledCells
from finetune.annotation.folds import INNER_FOLDS, inner_folds
from finetune.annotation.head import fit_head
from finetune.annotation.rows import Row
from finetune.annotation.scores import SCORES
from finetune.annotation.training import train_blocks
from finetune.state import model_sha256

_ALL = 2**20  # in the place of a fold's number, in the keys of what is fitted to all cells


def save_classifier(
    folder: Path,
    rows: Sequence[Row],
    cells: LabelledCells,
    checkpoints: Mapping[str, Checkpoint],
    embedded: Mapping[str, tuple[np.ndarray, float]],
    scores: pd.DataFrame,
    options: FineTuning,
    metrics: Mapping[str, Any],
    config: Mapping[str, Any],
    device: str | None,
) -> dict[str, Any] | None:
    """Fit the model's row that scored best to all cells and save it; what `metrics.json` says of it. None without a model."""
    kinds = {row.name: row.kind for row in rows}
    ours = [name for name in scores.index if kinds[name] in ("model", "trained")]
    if not ours:
        return None
    best = ours[0]
    name = next(n for n in checkpoints if best == n or (kinds[best] == "trained" and best.startswith(f"{n}, ")))
    x, everything = embedded[name][0], np.arange(len(cells.labels))
    key = (config["seed"], 0, _ALL)
    inner = inner_folds(cells.labels, cells.groups, everything, folds=INNER_FOLDS, key=key)
    checkpoint, head, epochs = checkpoints[name], fit_head(x, cells.labels, inner=inner), 0
    if kinds[best] == "trained":
        tuned = train_blocks(
            checkpoint,
            head,
            x,
            cells.aligned[name],
            cells.labels,
            cells.groups,
            everything,
            options=options,
            key=key,
            device=device,
        )
        checkpoint, head, epochs = tuned.checkpoint, tuned.head, tuned.epoch
    trained = {
        "data": cells.source.name,
        "cells": len(cells.labels),
        "types": metrics["types"],
        "groups": metrics["groups"],
        "model": checkpoints[name].source,
        "blocks": options.blocks if epochs else 0,
        "epochs": epochs,
        "weights_sha256": model_sha256(checkpoints[name]),
    }
    about = {
        "label": config["label"],
        "row": best,
        "split": metrics["split"],
        "scores": {score: float(scores.loc[best, score]) for score in SCORES},
        "trained": trained,
    }
    FittedClassifier(checkpoint, head, about).save(folder)
    return {"row": best, "epochs": epochs, "folder": folder.name}
