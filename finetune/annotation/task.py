"""The annotation task: cell types from cell embeddings, on donors or cells held out, against features that need no model."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser import __version__
from expresser.atomic import replaced_together
from expresser.checkpoint import Checkpoint
from expresser.embed import embed_counts
from expresser.errors import InputError
from expresser.model.last_blocks import block_parameters
from expresser.notebook import card
from expresser.one_writer import one_writer_of_out
from expresser.record import provenance, write_metrics
from finetune.annotation.classifier import FineTuning
from finetune.annotation.data import Data, LabelledCells, read_labelled
from finetune.annotation.final import save_classifier
from finetune.annotation.folds import INNER_FOLDS, Fold, inner_folds, outer_folds
from finetune.annotation.metrics import list_predictions, score_frame, summarise
from finetune.annotation.models import Control, load_models, random_controls
from finetune.annotation.report import Drawings, write_page
from finetune.annotation.rows import BASELINES, Row, baseline_rows, embedding_row
from finetune.annotation.scores import Judged, judge, pooled
from finetune.annotation.training import trained_row
from finetune.state import Result, Store, check_folder, model_sha256

Progress = Callable[[int, int], None]

_FILES = ("classifier", "metrics.json", "predictions.parquet", "report.html", "run.json", "state")


@dataclass(frozen=True, eq=False, repr=False)
class AnnotationResult:
    """What an annotation run found.

    Attributes
    ----------
    scores
        A row a method, best first; columns `macro_f1`, `balanced_accuracy`, `accuracy`, each with `_lo` and `_hi`.
    predictions
        Index `obs_name`; `label`, `group`, `repeat`, `fold`, and a column a method: what it said of a cell held out.
    metrics
        What `metrics.json` holds.
    """

    scores: pd.DataFrame
    predictions: pd.DataFrame
    metrics: dict[str, Any]

    def __repr__(self) -> str:
        return f"AnnotationResult({len(self.scores)} rows)\n{self.scores}"

    def _repr_html_(self) -> str:
        return card("AnnotationResult", {"predictions": len(self.predictions)}, {"scores": self.scores}, opened=True)


@one_writer_of_out
def run_annotation(
    data: Data,
    *,
    label: str,
    models: Sequence[str] = (),
    group: str | None = None,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    layer: str | None = None,
    max_cells: int | None = None,
    min_cells: int = 10,
    min_genes: int = 20,
    finetune_blocks: int = 0,
    tuning: FineTuning | None = None,
    out: str | Path | None = None,
    max_tokens: int = 16384,
    device: str | None = None,
    progress: Progress | None = None,
) -> AnnotationResult:
    """Learn cell types on a part of the cells, name those of the rest, score all methods on the same folds.

    Rows: each model (logistic regression on its cell embeddings, weights as they are), with `finetune_blocks` also with its last
    blocks trained; `random`, a model of the same shape with random weights; and `pca`, `log_counts`, `knn`, `majority`. Everything
    that is fitted, principal components and choice of genes and penalty included, is fitted to the training cells of a fold.

    Parameters
    ----------
    data
        Raw counts with obs, in any format of `open_source`; `layer` as there.
    label, group
        Columns of obs. With `group` (donor) whole groups are held out; without it random cells of each type, so that cells of a
        donor are on both sides and scores say nothing of new donors.
    models
        ``NAME=SPEC`` or ``SPEC``: a checkpoint folder, a run folder or a hub id. Its row is NAME, else the folder's name.
    folds, repeats
        Where there are fewer groups than folds, each group is a fold.
    max_cells, min_cells, min_genes
        See `read_labelled`.
    tuning
        How blocks are trained; `finetune_blocks` takes the place of its own number.
    out
        Folder for `metrics.json`, `run.json`, `predictions.parquet`, `report.html` and `classifier/` (the best model's head, fitted
        to all cells); None writes nothing. A run that was interrupted goes on where it was, given the same arguments.
    progress
        Called with (steps done, steps in all).

    Raises
    ------
    InputError
        For input that cannot be judged (see `read_labelled`), models that cannot be loaded or have one name.
    """
    if folds < 2 or repeats < 1 or seed < 0:
        raise InputError(
            f"folds is {folds}, repeats {repeats}, seed {seed}; give at least 2 folds and 1 repeat, and no negative seed."
        )
    folder = None if out is None else Path(out)
    if folder is not None:
        check_folder(folder, what="a run of finetune annotation", task="annotation", files=_FILES)
    options = replace(tuning or FineTuning(), blocks=finetune_blocks, max_tokens=max_tokens)
    checkpoints = load_models(models)
    for checkpoint in checkpoints.values():
        block_parameters(checkpoint.model, finetune_blocks)  # says now what would fail after the embedding
    if finetune_blocks and not checkpoints:
        raise InputError(f"finetune_blocks is {finetune_blocks}, but there is no model to train. Give models.")
    cells = read_labelled(
        data,
        label=label,
        group=group,
        vocabs={name: checkpoint.vocab for name, checkpoint in checkpoints.items()},
        layer=layer,
        max_cells=max_cells,
        min_cells=min_cells,
        min_genes=min_genes,
        seed=seed,
    )
    config = {
        "label": label,
        "group": group,
        "folds": folds,
        "repeats": repeats,
        "seed": seed,
        "layer": layer,
        "max_cells": max_cells,
        "min_cells": min_cells,
        "min_genes": min_genes,
        "tuning": asdict(options) if finetune_blocks else None,
        "models": {name: checkpoint.source for name, checkpoint in checkpoints.items()},
    }
    weights = {name: model_sha256(checkpoint) for name, checkpoint in checkpoints.items()}
    store = Store(folder, {"version": __version__, "cells": cells.sha256(), "weights": weights, "config": config})
    clock = _Clock(progress)

    parts = outer_folds(cells.labels, cells.groups, folds=folds, repeats=repeats, seed=seed)
    controls = random_controls(checkpoints, seed)
    clock.total = len(checkpoints) + len(controls)
    clock.total += len(parts) * (len(BASELINES) + len(controls) + len(checkpoints) * (1 + (finetune_blocks > 0)))
    embedded = {
        name: _embedding(store, clock, name, checkpoint, cells.aligned[of], max_tokens, device)
        for name, of, checkpoint in [
            *((name, name, checkpoint) for name, checkpoint in checkpoints.items()),
            *((control.name, control.like, control.checkpoint) for control in controls),
        ]
    }
    rows = _rows(cells, checkpoints, controls, embedded, options, seed, device)
    judged, seconds, notes = _run(rows, parts, cells, store, clock, seed)

    metrics = summarise(rows, parts, judged, seconds, notes, cells, checkpoints, config)
    predictions = list_predictions(parts, judged, cells)
    scores = score_frame(metrics)
    if folder is not None:
        record = provenance(
            seed=seed, cells_sha256=cells.sha256(), weights_sha256=weights, data=cells.source.label, config=config
        )
        drawings = Drawings({name: pooled(parts, judged[name], cells.labels, cells.types) for name in judged})
        with replaced_together(folder, last="metrics.json") as part:
            metrics["classifier"] = save_classifier(
                part / "classifier", rows, cells, checkpoints, embedded, scores, options, metrics, config, device
            )
            write_metrics(part / "run.json", record)
            predictions.to_parquet(part / "predictions.parquet")
            write_page(part / "report.html", metrics, drawings, record)
            write_metrics(part / "metrics.json", metrics)
        store.clear()
    return AnnotationResult(scores, predictions, metrics)


class _Clock:
    """Progress in steps."""

    def __init__(self, report: Progress | None) -> None:
        self._report, self.done, self.total = report, 0, 0

    def step(self) -> None:
        self.done += 1
        if self._report is not None:
            self._report(self.done, self.total)


def _embedding(
    store: Store,
    clock: _Clock,
    name: str,
    checkpoint: Checkpoint,
    counts: Any,
    max_tokens: int,
    device: str | None,
) -> tuple[np.ndarray, float]:
    def compute() -> dict[str, Result]:
        start = time.perf_counter()
        x = embed_counts(checkpoint, counts, max_tokens=max_tokens, device=device)
        return {name: Result({"seconds": time.perf_counter() - start}, {"x": x})}

    result = store.result(f"embedding-{name}", compute)[name]
    clock.step()
    return result.arrays["x"], float(result.facts["seconds"])


def _rows(
    cells: LabelledCells,
    checkpoints: Mapping[str, Checkpoint],
    controls: Sequence[Control],
    embedded: Mapping[str, tuple[np.ndarray, float]],
    options: FineTuning,
    seed: int,
    device: str | None,
) -> list[Row]:
    rows: list[Row] = []
    for name, checkpoint in checkpoints.items():
        x, seconds = embedded[name]
        words = f"the classifier on cell embeddings of {checkpoint.source}, weights as they are"
        rows.append(embedding_row(name, "model", words, x, cells.labels, seconds))
        if options.blocks:
            rows.append(
                trained_row(
                    name,
                    checkpoint,
                    x,
                    cells.aligned[name],
                    cells.labels,
                    cells.groups,
                    options=options,
                    seed=seed,
                    seconds=seconds,
                    device=device,
                )
            )
    for control in controls:
        x, seconds = embedded[control.name]
        words = f"the classifier on cell embeddings of a model shaped like {control.like} with random weights"
        rows.append(embedding_row(control.name, "control", words, x, cells.labels, seconds))
    return rows + baseline_rows(cells.counts, cells.labels, seed=seed)


def _run(
    rows: Sequence[Row], parts: Sequence[Fold], cells: LabelledCells, store: Store, clock: _Clock, seed: int
) -> tuple[dict[str, Judged], dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Every row's answers to every fold, found again where an interrupted run had them; seconds, and what rows told."""
    said: dict[str, list[np.ndarray]] = {row.name: [] for row in rows}
    seconds = {row.name: row.seconds for row in rows}
    notes: dict[str, list[dict[str, Any]]] = {row.name: [] for row in rows}
    types = np.array(cells.types, dtype=object)
    for fold in parts:
        inner = inner_folds(
            cells.labels, cells.groups, fold.train, folds=INNER_FOLDS, key=(seed, fold.repeat, fold.number)
        )
        for row in rows:

            def compute(row: Row = row, fold: Fold = fold, inner: Any = inner) -> dict[str, Result]:
                start = time.perf_counter()
                answer = row.answer(fold, inner)
                code = np.searchsorted(types.astype(str), answer.predicted.astype(str))
                facts = {"about": answer.about, "seconds": time.perf_counter() - start}
                return {row.name: Result(facts, {"predicted": code.astype(np.int32)})}

            result = store.result(f"{row.name}-{fold.repeat}-{fold.number}", compute)[row.name]
            said[row.name].append(types[result.arrays["predicted"]])
            seconds[row.name] += float(result.facts["seconds"])
            notes[row.name].append(result.facts["about"])
            clock.step()
    judged = {row.name: judge(parts, said[row.name], cells.labels, cells.types) for row in rows}
    return judged, seconds, notes
