"""Scores, comparisons and predictions of an annotation run, as its files hold them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from expresser.checkpoint import Checkpoint
from finetune.annotation.data import LabelledCells
from finetune.annotation.folds import Fold
from finetune.annotation.rows import Row
from finetune.annotation.scores import SCORES, Judged, class_f1, compare, pooled, summary
from finetune.memory import peak_mb


def summarise(
    rows: Sequence[Row],
    parts: Sequence[Fold],
    judged: Mapping[str, Judged],
    seconds: Mapping[str, float],
    notes: Mapping[str, list[dict[str, Any]]],
    cells: LabelledCells,
    checkpoints: Mapping[str, Checkpoint],
    config: Mapping[str, Any],
) -> dict[str, Any]:
    """What `metrics.json` holds."""
    test_share = float(np.mean([len(fold.test) / (len(fold.test) + len(fold.train)) for fold in parts]))
    ours = [row.name for row in rows if row.kind in ("model", "trained")]
    others = [row.name for row in rows if row.kind in ("baseline", "control")]
    comparisons = compare(judged, ours, others, test_share)
    frozen = {f: n for n in ours for f in ours if n.startswith(f"{f}, ")}
    trained = compare(judged, list(frozen.values()), list(frozen), test_share) if frozen else []
    trained = [entry for entry in trained if frozen[entry["baseline"]] == entry["model"]]
    confusions = {name: pooled(parts, of, cells.labels, cells.types) for name, of in judged.items()}
    sizes = Counter(cells.labels)
    return {
        "task": "annotation",
        "label": config["label"],
        "group": config["group"],
        "split": "random" if cells.groups is None else "donor",
        "folds": max(fold.number for fold in parts) + 1,
        "folds_asked": config["folds"],
        "repeats": config["repeats"],
        "seed": config["seed"],
        "n_cells": len(cells.labels),
        "n_genes": cells.counts.shape[1],
        "n_types": len(cells.types),
        "groups": None if cells.groups is None else len(set(cells.groups)),
        "types": {name: sizes[name] for name in cells.types},
        "left_out": cells.left_out,
        "unseen": dict(Counter(t for f in parts for t in cells.labels[f.unseen])),
        "embeddings": {
            row.name: {
                **summary(judged[row.name], test_share),
                "seconds": seconds[row.name],
                "dim": row.dim,
                "kind": row.kind,
                "about": row.words,
                "folds": notes[row.name],
            }
            for row in rows
        },
        "per_class_f1": {name: dict(zip(cells.types, class_f1(table).tolist())) for name, table in confusions.items()},
        "comparisons": comparisons,
        "trained_against_frozen": trained,
        "seen_in_pretraining": {
            name: cells.source.name if cells.source.name in (checkpoint.run.get("sources") or []) else None
            for name, checkpoint in checkpoints.items()
        },
        "data": cells.source.name,
        "peak_mb": peak_mb(),
        "classifier": None,
    }


def list_predictions(parts: Sequence[Fold], judged: Mapping[str, Judged], cells: LabelledCells) -> pd.DataFrame:
    """What each method said of each cell held out: index `obs_name`, by repeat and name."""
    frames = []
    for i, fold in enumerate(parts):
        columns: dict[str, Any] = {"label": cells.labels[fold.test]}
        columns["group"] = None if cells.groups is None else cells.groups[fold.test]
        columns |= {"repeat": fold.repeat, "fold": fold.number}
        columns |= {name: of.predicted[i] for name, of in judged.items()}
        index = pd.Index(cells.names[fold.test].astype(str), name="obs_name", dtype=object)
        frames.append(pd.DataFrame(columns, index=index))
    whole = pd.concat(frames)
    return whole.iloc[np.lexsort([whole.index.to_numpy().astype(str), whole["repeat"].to_numpy()])]


def score_frame(metrics: Mapping[str, Any]) -> pd.DataFrame:
    """The scores with their intervals, a row a method, the best first."""
    rows = {
        name: {key: value for key, value in entry.items() if key.startswith(SCORES)}
        for name, entry in metrics["embeddings"].items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index").sort_values(SCORES[0], ascending=False, kind="stable")
    return frame.rename_axis(index="method")
