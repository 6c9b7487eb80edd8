"""A translator on test cells that were measured in one modality each: types' profiles and alignment, since no cell has its truth."""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from translate.alignment_judging import Spaces
from translate.baselines import LowRank
from translate.components import Values
from translate.drawings import Drawings
from translate.evaluate import Method, align_cells
from translate.feed import Inputs
from translate.gene_activity import GeneActivity
from translate.markers import CellTypes, differential_scores, find_markers, rank_sums
from translate.predicted import Predicted
from translate.preprocess import AtacInput, RnaInput
from translate.scales import ends, feature_names, values_of
from translate.scoring import BUDGET_MB, cuts
from translate.splits import Split
from translate.study import Measured, Modality, Study
from translate.truth import correlation, typical_profiles
from translate.verdicts import FEATURES

NO_PAIRS = (
    "No test cell was measured in both modalities, so no prediction can be compared with the same cell's measurement: there are "
    "no scores of genes, peaks and cells. What is scored is whether cells of the two modalities meet in the latent, and "
    "whether the predicted mean of each cell type is that of other cells of the type, which were measured."
)
MIN_CELLS = 10  # of a type, on either side
BEST = "oracle_type_means"  # what knowing a cell's type, and nothing else, would give


def evaluate_unpaired(
    methods: Mapping[str, Method],
    study: Study,
    split: Split,
    inputs: Inputs,
    *,
    latents: Mapping[str, Spaces] | None = None,
    directions: Sequence[str],
    label: str | None = None,
    baselines: bool = True,
    train: tuple[Study, Split] | None = None,
    budget_mb: float = BUDGET_MB,
    seed: int = 0,
    progress: Callable[[str], None] = lambda words: None,
) -> tuple[dict[str, Any], Drawings]:
    """Metrics in the shape of `translate.evaluate.evaluate`, with ``"unpaired": why`` and without scores of single cells.

    Of a direction, where types are known: n_cells (that were translated), n_measured (other cells, measured in the target),
    types (of 10 cells or more on either side), and over these types

    pseudobulk_pearson       r over features of the mean profile, each type counting alike
    pseudobulk_type_pearson  mean over types of r over features of the type's mean less that profile
    marker_auroc, de_auprc, de_auprc_chance   of rna, as `translate.scoring.score_rna` has them, markers and differential
                             genes by the measured cells

    Baselines: mean (of training cells, which knows no type), gene_activity_raw (from ATAC to RNA), and as an upper line
    oracle_type_means: each cell gets the mean of the training cells of its type in the target modality.
    """
    test = {m: split.test[study.has(m)[split.test]] for m in study.modalities}
    possible = [d for d in directions if all(len(test.get(m, ())) for m in ends(d))]
    if not possible:
        counts = ", ".join(f"{len(rows):,} with {m}" for m, rows in test.items())
        raise InputError(
            f"evaluation: of the {len(split.test):,} test cells of split {split.name!r} there are {counts}. A translation is "
            "judged by cells of both modalities, the same or others: choose another split."
        )
    theirs, parts = train or (study, split)
    learnt = {m: parts.train[theirs.has(m)[parts.train]] for m in theirs.modalities}
    scores: dict[str, dict[str, Any]] = {name: {} for name in methods}
    skipped: dict[str, str] = {"scores of single cells": NO_PAIRS}
    for direction in possible:
        source, to = ends(direction)
        try:
            sides = [_types(study, test[m], label) for m in (source, to)]
            shared = sorted(set(sides[0].names) & set(sides[1].names))
            if len(shared) < 2:
                raise InputError(
                    f"{len(shared)} cell types have {MIN_CELLS} test cells of {source} and of {to}; two are needed."
                )
        except InputError as error:
            skipped[f"profiles of types, {source} to {to}"] = str(error)
            continue
        # Cells of a type that the other side lacks are neither translated nor compared.
        of = [rows[_named(study, rows, label).isin(shared).to_numpy()] for rows in (test[source], test[to])]
        types = [_types(study, rows, label) for rows in of]
        measured = values_of(inputs[to], study.of(to, of[1]))
        given = study.of(source, of[0])
        everyone: dict[str, Callable[[], Predicted]] = {
            name: partial(by[direction], given) for name, by in methods.items() if direction in by
        }
        if baselines and len(learnt.get(to, ())):
            rivals, why = _rivals(theirs, learnt, direction, inputs, given, _named(study, of[0], label), label)
            everyone |= rivals
            skipped |= why
        for name, predict in everyone.items():
            progress(f"{name}, {direction.replace('_', ' ')}: types")
            began = time.perf_counter()
            found = profile_scores(predict(), types[0], measured, types[1], budget_mb=budget_mb)
            scores.setdefault(name, {})[direction] = {**found, "seconds": time.perf_counter() - began}
    learn = (theirs, parts.train, inputs) if baselines else None
    aligned = align_cells(study, split.test, latents or {}, label, learn, seed=seed, say=progress)
    known = _labelled(study, split.test, label)
    metrics = {
        "methods": scores,
        "directions": possible,
        "baselines": [name for name in scores if name not in methods and name != BEST],
        "skipped": skipped,
        "labels": label if known else None,
        "labels_skipped": None if known or label is None else f"no test cell has a value in column {label!r}",
        "split": split.name,
        "cells": {"test": len(split.test), "train": len(parts.train), "valid": len(parts.valid)}
        | {f"test_{m}": len(rows) for m, rows in test.items()},
        "closest": None,
        "alignment": aligned.metrics if aligned else None,
        "unpaired": NO_PAIRS,
    }
    names = {direction: feature_names(inputs[ends(direction)[1]]) for direction in possible}
    joint, apart = (aligned.joint, aligned.foscttm) if aligned else ({}, {})
    return metrics, Drawings(study.obs.iloc[split.test], names, {name: {} for name in scores}, joint, apart)


def profile_scores(
    predicted: Predicted, types: CellTypes, measured: Values, their_types: CellTypes, *, budget_mb: float = BUDGET_MB
) -> dict[str, Any]:
    """Predicted cells against other cells that were measured, type by type: both have the same types, in one order."""
    if types.names != their_types.names:
        raise InputError(
            f"profiles: predicted cells are of {types.names}, the measured ones of {their_types.names}. Give both the same."
        )
    n, features = predicted.n_cells, predicted.n_features
    profiles = np.zeros((2, len(types.names), features), np.float32)
    by_feature = sparse.csc_matrix(measured) if sparse.issparse(measured) else measured
    profiles[0] = np.asarray(their_types.means(by_feature))
    z, area = np.zeros(profiles[0].shape, np.float32), np.zeros(profiles[0].shape)
    for part in cuts(features, n, budget_mb):
        block = predicted.block(slice(0, n), part)
        profiles[1, :, part] = types.means(block)
        if predicted.to == "rna":
            sums = rank_sums(block, types)
            z[:, part], area[:, part] = sums.z, sums.auroc
    whole = profiles.mean(axis=1)
    found: dict[str, Any] = {
        "pseudobulk_pearson": correlation(*whole),
        "pseudobulk_type_pearson": typical_profiles(profiles, whole),
        "types": len(types.names),
        "n_cells": n,
        "n_measured": int(measured.shape[0]),
        f"n_{FEATURES[predicted.to]}": features,
    }
    if predicted.to == "rna":
        truth = rank_sums(by_feature, their_types)
        markers = find_markers(truth, their_types)
        row = [types.names.index(name) for name in markers.label]
        by_type = markers.assign(auroc=area[row, markers.gene]).groupby("label")[["auroc", "auroc_truth"]].mean().mean()
        found |= differential_scores(truth, z).scores()
        found |= {"marker_auroc": float(by_type["auroc"]), "marker_auroc_truth": float(by_type["auroc_truth"])}
        found["markers"] = len(markers)
    return found


def _rivals(
    theirs: Study,
    learnt: Mapping[Modality, Int64[np.ndarray, "_"]],
    direction: str,
    inputs: Inputs,
    given: Measured,
    asked: pd.Series,
    label: str | None,
) -> tuple[dict[str, Callable[[], Predicted]], dict[str, str]]:
    """Baselines that no pair is needed for, and why any is missing. asked: types of the cells of `given`."""
    source, to = ends(direction)
    target = values_of(inputs[to], theirs.of(to, learnt[to]))
    found: dict[str, Callable[[], Predicted]] = {"mean": partial(_constant, to, target, given.n_cells)}
    skipped: dict[str, str] = {}
    try:
        found[BEST] = partial(_type_means, to, target, _named(theirs, learnt[to], label), asked)
    except InputError as error:
        skipped[BEST] = str(error)
    atac, rna = inputs.get("atac"), inputs.get("rna")
    if (source, to) == ("atac", "rna") and isinstance(atac, AtacInput) and isinstance(rna, RnaInput):
        try:
            opened = sparse.csr_matrix(values_of(atac, theirs.of("atac", learnt["atac"])))
            activity = GeneActivity.raw(opened, atac.regions, rna.var)
            found["gene_activity_raw"] = partial(activity.predict, sparse.csr_matrix(values_of(atac, given)))
        except InputError as error:
            skipped["gene_activity_raw"] = str(error)
    return found, skipped


def _named(study: Study, cells: Int64[np.ndarray, " cells"], label: str | None) -> pd.Series:
    if label is None:
        raise InputError("there are no labels of cells. Name a column of cell types with --labels.")
    if label not in study.obs:
        raise InputError(f"obs has no column {label!r}. It has {', '.join(map(str, study.obs.columns)) or 'none'}.")
    column = study.obs[label].iloc[cells]
    return column.astype(object).where(column.notna(), "").astype(str)


def _types(study: Study, cells: Int64[np.ndarray, " cells"], label: str | None) -> CellTypes:
    return CellTypes.of(_named(study, cells, label), min_cells=MIN_CELLS)


def _labelled(study: Study, cells: Int64[np.ndarray, " cells"], label: str | None) -> bool:
    return label is not None and label in study.obs and bool(study.obs[label].iloc[cells].notna().any())


def _mean(values: Values) -> Float64[np.ndarray, " features"]:
    return np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()


def _constant(to: Modality, values: Values, cells: int) -> LowRank:
    """The mean of these cells, for each cell."""
    mean = _mean(values).astype(np.float32)
    return LowRank(to, np.zeros((cells, 0), np.float32), np.zeros((0, len(mean)), np.float32), mean)


def _type_means(to: Modality, values: Values, known: pd.Series, asked: pd.Series) -> LowRank:
    """The mean of the cells of the same type, for each cell; that of all where no cell is of its type."""
    names = sorted(set(asked))
    rows = [np.flatnonzero((known == name).to_numpy()) for name in names]
    means = np.stack([_mean(values[r] if len(r) else values) for r in rows]).astype(np.float32)
    one_hot = (asked.to_numpy(dtype=object)[:, None] == np.array(names, dtype=object)).astype(np.float32)
    return LowRank(to, one_hot, means, np.zeros(means.shape[1], np.float32))
