"""Embeddings that are compared: SAILER, SAILERX, the baselines, and RNA alone or beside ATAC."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _embedder_data import Data, bulk_file
from jaxtyping import Float32
from scipy import sparse

from expresser.metrics.clusters import cluster_scores
from expresser.metrics.mixing import neighbour_mixing
from expresser.metrics.mutual_information import mi_batch, mi_depth
from translate.covariates import BatchColumn
from translate.embedding_baselines import BASELINES
from translate.embedding_cells import JudgedCells
from translate.embedding_imputation import bulk_dice
from translate.fitting import configuration, fit
from translate.preprocess import AtacInput
from translate.reference import reference_embedding
from translate.registry import SYSTEMS
from translate.sailer import SailerConfig
from translate.splits import split_all
from translate.study import Measured
from translate.translator import Translator

Points = Float32[np.ndarray, "cells dimensions"]


@dataclass(frozen=True, eq=False)
class Task:
    """A data set as every method is given it: the cells with ATAC, over the peaks that SAILER's filter leaves."""

    data: Data
    cells: np.ndarray  # numbers in the study, those with ATAC
    input: AtacInput
    judged: JudgedCells
    seed: int
    changes: Mapping[str, Any] = field(default_factory=dict)  # of the configurations of systems

    @classmethod
    def of(cls, data: Data, seed: int) -> "Task":
        """Before any configuration is changed."""
        cells = np.flatnonzero(data.study.has("atac")).astype(np.int64)
        measured = data.study.of("atac", cells)
        found = AtacInput.fit(measured, np.arange(len(cells)), SailerConfig().atac, data.genome)
        opened = found.align(measured)
        kept = np.flatnonzero(np.diff(opened.indptr) > 0)
        return cls(data, cells[kept], found, judged(data, cells[kept], measured.take(kept), opened[kept]), seed)


def judged(data: Data, cells: np.ndarray, measured: Measured, opened: sparse.csr_matrix) -> JudgedCells:
    """Cells as `translate.embedding_judging` has them."""
    obs = data.study.obs.iloc[cells]
    types = obs[data.label].astype(str)
    batch = None if data.batch is None else obs[data.batch].astype(str)
    counts = {"given": len(cells), "judged": len(cells), "labelled": len(cells), "unlabelled": 0}
    depth = np.diff(measured.matrix.indptr).astype(np.int64)
    return JudgedCells(obs, measured, opened, depth, types, batch, data.label, data.batch, counts, {})


def system(task: Task, name: str) -> tuple[Points, dict[str, Any]]:
    """SAILER or SAILERX, "sailer:preset", fitted to all cells; Dice of what it imputes where the profiles are known."""
    kind, _, preset = name.partition(":")
    config = configuration(kind, preset or "default", None)
    config = replace(config, batch=BatchColumn(task.data.batch), **_timed(config, task.changes))
    study = task.data.study
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fit"
        fitted = fit(
            kind,
            study,
            split=split_all(study, SYSTEMS[kind].needs, seed=task.seed),
            out=out,
            config=config,
            genome=task.data.genome,
            seed=task.seed,
        )
        if fitted is None:
            raise RuntimeError("the fit was cut short")
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        points = fitted.latents(task.judged.measured, source="atac")
        more = {"watched": log[-1]["valid"], "epochs": len(log), "config": _said(config), **_dice(task, fitted, folder)}
    return points, more


def _timed(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """What is changed in a configuration; fewer epochs shorten its cycle and its warm-up too."""
    out = dict(changes)
    if (epochs := out.get("epochs")) is not None:
        out = {"cycle": min(config.cycle, epochs), "warmup": min(config.warmup, max(epochs // 10, 1)), **out}
    return out


def _said(config: Any) -> dict[str, Any]:
    """The settings that a reader of a line looks for."""
    names = ("network", "hidden", "latent", "lam", "alignment", "warmup", "epochs", "cycle", "batch_size", "lr")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def _dice(task: Task, fitted: Translator, folder: str) -> dict[str, float]:
    """Against the profile of each cell's type: of what is imputed, of what was measured, and of one call for all cells."""
    if task.data.bulk is None:
        return {}
    # The fit leaves out cells to watch, and so a peak or two that all cells together would have kept.
    own = replace(task.judged, opened=fitted.inputs["atac"].align(task.judged.measured))
    found = bulk_dice(fitted, own, bulk_file(task.data, folder), seed=task.seed)["dice"]
    measured, imputed, same = found.values()
    return {"dice": imputed, "dice_measured": measured, "dice_same_for_all": same}


def baseline(task: Task, name: str) -> tuple[Points, dict[str, Any]]:
    """One of `translate.embedding_baselines`, on the same 0/1 matrix."""
    cells, more = task.judged, {}
    if name == "peakvi":
        more = {"accelerator": "gpu" if torch.cuda.is_available() else "cpu"}
        more |= {"epochs": task.changes["epochs"]} if "epochs" in task.changes else {}
    return BASELINES[name](cells.opened, depth=cells.depth, batch=cells.batch_codes, seed=task.seed, **more), more


def rna(task: Task, *, clean: bool) -> tuple[Points, dict[str, Any]]:
    """Fifty components of the RNA, the reference of SAILERX; of no use for cells without RNA."""
    study = task.data.study
    both = np.flatnonzero(study.has("rna")).astype(np.int64)
    batches = BatchColumn(task.data.batch).settled(study.obs, both) if clean else None
    found = reference_embedding(
        "pca", study, both, batches=batches, clean="matched" if clean else "none", weights="even", seed=task.seed
    )
    return found.values[task.cells], {}


def concatenation(task: Task, *, clean: bool) -> tuple[Points, dict[str, Any]]:
    """RNA's components beside LSI's, each brought to a mean square of one a cell."""
    parts = [rna(task, clean=clean)[0], baseline(task, "lsi_regressed" if clean else "lsi_no_depth")[0]]
    return np.concatenate([p / np.sqrt((p**2).sum(axis=1).mean()) for p in parts], axis=1).astype(np.float32), {}


METHODS: dict[str, Callable[[Task], tuple[Points, dict[str, Any]]]] = {
    "rna_pca": lambda task: rna(task, clean=False),
    "rna_pca_clean": lambda task: rna(task, clean=True),
    "concatenation": lambda task: concatenation(task, clean=False),
    "concatenation_clean": lambda task: concatenation(task, clean=True),
}


def run(task: Task, method: str) -> dict[str, Any]:
    """One line: scores of the embedding, by type too, and how long it took."""
    began, cpu = time.perf_counter(), time.process_time()
    if method.partition(":")[0] in SYSTEMS:
        points, more = system(task, method)
    elif method in METHODS:
        points, more = METHODS[method](task)
    else:
        points, more = baseline(task, method)
    line: dict[str, Any] = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu}
    line |= {"cells": len(task.judged), "peaks": task.judged.opened.shape[1], "dimensions": points.shape[1], **more}
    points = np.ascontiguousarray(points, dtype=np.float32)
    if not np.isfinite(points).all():
        return line | {"failed": "the embedding is not finite"}
    line |= _scored(points, task.judged, task.seed)
    if task.data.alone is not None:
        line["alone"] = _of_alone(points, task)
    return line


def _scored(points: Points, cells: JudgedCells, seed: int) -> dict[str, Any]:
    """Clusters against types at equal numbers, I(z, c) in nats, and how far batches among neighbours are from even."""
    found = cluster_scores(points, cells.types.to_numpy(), seed=seed)
    del found["curve"]
    found["types_found"] = sum(of["found"] for of in found["types"].values())
    found["mi_depth"] = mi_depth(points, cells.log_depth, seed=seed)
    if cells.batch is not None:
        codes = cells.batch_codes
        found["mi_batch"] = mi_batch(points, codes, seed=seed)
        mixing = neighbour_mixing(points, codes, min(50, len(codes) - 1), seed=seed)
        found |= {"mixing": mixing.deviation, "mixing_by_chance": mixing.by_chance}
    return found


def _of_alone(points: Points, task: Task) -> dict[str, Any]:
    """Scores of the cells that had no RNA, among themselves."""
    at = np.flatnonzero(np.isin(task.cells, task.data.alone))
    whole = task.judged
    part = judged(task.data, task.cells[at], whole.measured.take(at), whole.opened[at])
    return _scored(points[at], replace(part, batch=None, batch_key=None), task.seed)
