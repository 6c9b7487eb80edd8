"""Held-out cells → the scores of every method, baselines included, in the shape of metrics.json, and what figures need.

metrics  {"methods": {NAME: {"atac_to_rna": {...}, "rna_to_atac": {...}, "rna_to_protein": {...}, "foscttm": x}},
          "directions": [...], "baselines": [names among the methods], "skipped": {NAME: why}, "labels": column | None,
          "labels_skipped": why | None, "split": name, "cells": {"train", "valid", "test"},
          "closest": {"n", "chance"} | None}
         A method has only the directions it predicts, and foscttm and closest_jaccard (of the "closest" n cells) only
         where it has latents of two modalities. Scores are
         floats, NaN where undefined (write_metrics makes that null), counts are ints; what each means is said in
         translate/scoring.py. With them: seconds, of predicting and scoring.
  *_to_rna      pearson_flat pearson_gene pearson_gene_median pearson_cell mae rmse pseudobulk_pearson n_cells n_genes
                genes_undefined genes_constant; with labels: pseudobulk_type_pearson marker_auroc marker_auroc_truth markers
  *_to_atac     auroc_flat auprc_flat auroc_peak auprnorm_peak auroc_peak_fifth_1 … _5 auroc_cell ece mean_ratio spread
                pseudobulk_pearson n_cells n_peaks peaks_undefined peaks_constant; with labels: pseudobulk_type_pearson
  *_to_protein  pearson_flat pearson_protein pearson_protein_median pearson_cell mae rmse pseudobulk_pearson n_cells
                n_proteins proteins_undefined proteins_constant; with labels: pseudobulk_type_pearson
drawings `Drawings` (translate/drawings.py): one `Picture` for a method and a direction, latents, FOSCTTM of each cell.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.metrics.alignment import closest_jaccard, closest_jaccard_by_chance, foscttm
from translate.baselines import Fitted, NearestNeighbours, Pairs, Ridge, TrainingMean
from translate.components import Components, Values
from translate.drawings import Drawings, Picture
from translate.feed import Input, Inputs
from translate.gene_activity import GeneActivity
from translate.markers import CellTypes
from translate.predicted import Predicted
from translate.preprocess import AtacInput, RnaInput
from translate.scoring import BUDGET_MB, score
from translate.splits import Split
from translate.study import Measured, Modality, Study
from translate.truth import Truth

# Direction ("atac_to_rna") -> what predicts it, from the test cells as they were measured in the source modality.
Method: TypeAlias = Mapping[str, Callable[[Measured], Predicted]]
# Modality -> latents of the test cells, from what was measured of them in it.
Latents: TypeAlias = Mapping[Modality, Callable[[Measured], Float32[np.ndarray, "cells latent"]]]


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells that have every modality, on the scale predictions are on: what baselines learn from and scores compare with."""

    obs: pd.DataFrame = field(repr=False)
    measured: Mapping[Modality, Measured]
    values: Mapping[Modality, Values] = field(repr=False)

    @classmethod
    def of(cls, study: Study, cells: Int64[np.ndarray, " cells"], inputs: Inputs) -> "Cells":
        """Those of `cells` that were measured in all modalities of `inputs`, in their order."""
        whole = cells[np.all([study.has(modality)[cells] for modality in inputs], axis=0)]
        measured = {m: study.of(m, whole) for m in inputs}
        return cls(study.obs.iloc[whole], measured, {m: values_of(inputs[m], measured[m]) for m in inputs})

    def __len__(self) -> int:
        return len(self.obs)

    def pairs(self, direction: str) -> Pairs:
        """Source and target of a direction."""
        source, to = ends(direction)
        return Pairs(source, to, self.values[source], self.values[to])


def evaluate(
    methods: Mapping[str, Method],
    study: Study,
    split: Split,
    inputs: Inputs,
    *,
    latents: Mapping[str, Latents] | None = None,
    directions: Sequence[str] | None = None,
    label: str | None = None,
    baselines: bool = True,
    train: tuple[Study, Split] | None = None,
    budget_mb: float = BUDGET_MB,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> tuple[dict[str, Any], Drawings]:
    """Score methods, and baselines fitted to the training cells, on the test cells that have every modality.

    Parameters
    ----------
    methods
        Name → direction → a function of the test cells' source `Measured` that returns their `Predicted`, such as
        ``partial(translator.predict, source="atac", to="rna")``; of an oracle, the truth of a simulator wrapped as `Truth`.
    inputs
        The fitted inputs of the modalities concerned: they say which features are scored, and on which scale.
    latents
        Name → modality → a function of the test cells' `Measured` that returns their latents, for FOSCTTM and closest
        cells.
    directions
        Which to score; None takes those of the methods.
    label
        Column of `study.obs` with cell types, for the scores of types and markers.
    train
        Where the baselines learn from another study than that of the test cells: that study, and its split.
    budget_mb
        Size of a block of predictions; `translate.scoring`.
    progress
        Is told what comes next, in a few words.

    Returns the metrics and the drawings that the top of this file describes.
    """
    wanted = list(dict.fromkeys(directions if directions is not None else (d for m in methods.values() for d in m)))
    if not wanted or (unknown := [d for d in wanted if not set(ends(d)) <= set(inputs)]):
        raise InputError(
            f"evaluation: directions {unknown if wanted else '(none)'}, but inputs are of {', '.join(inputs)}. "
            "Ask for directions such as atac_to_rna, between modalities that were measured."
        )
    used: Inputs = {m: inputs[m] for m in inputs if any(m in ends(d) for d in wanted)}
    test = Cells.of(study, split.test, used)
    if not len(test):
        raise InputError(
            f"evaluation: none of the {len(split.test):,} test cells of split {split.name!r} has {' and '.join(used)}. "
            "Scores need cells measured in both: choose another split."
        )
    say = progress or (lambda words: None)
    types, labels_skipped = _types(test.obs, label)
    truths = {m: Truth(m, test.values[m], feature_names(used[m]), types) for m in used}
    everyone: dict[str, Method] = dict(methods)
    skipped: dict[str, str] = {}
    sizes = {"test": len(test)}
    if baselines:
        theirs, parts = train or (study, split)
        learnt, chosen = (Cells.of(theirs, cells, used) for cells in (parts.train, parts.valid))
        sizes |= {"train": len(learnt), "valid": len(chosen)}
        fitted, skipped = fit_baselines(learnt, chosen, wanted, used, seed=seed, progress=say)
        everyone |= {name: _on(test, by_direction) for name, by_direction in fitted.items() if name not in methods}
    scores: dict[str, dict[str, Any]] = {name: {} for name in everyone}
    pictures: dict[str, dict[str, Picture]] = {name: {} for name in everyone}
    for name, method in everyone.items():
        for direction in [d for d in wanted if d in method]:
            say(f"{name}, {direction.replace('_', ' ')}")
            source, to = ends(direction)
            began = time.perf_counter()
            found, pictures[name][direction] = score(
                method[direction](test.measured[source]), truths[to], budget_mb=budget_mb, seed=seed
            )
            scores[name][direction] = {**found, "seconds": time.perf_counter() - began}
    placed = {
        name: {str(m): f(test.measured[m]) for m, f in by.items() if m in used} for name, by in (latents or {}).items()
    }
    apart = {name: foscttm(*list(by.values())[:2]) for name, by in placed.items() if len(by) > 1}
    near = closest_n(len(test))
    for name, share in apart.items():
        scores[name]["foscttm"] = float(share.mean())
        scores[name]["closest_jaccard"] = float(closest_jaccard(*list(placed[name].values())[:2], n=near).mean())
    metrics = {
        "methods": scores,
        "directions": wanted,
        "baselines": [name for name in everyone if name not in methods],
        "skipped": skipped,
        "labels": label if types is not None else None,
        "labels_skipped": labels_skipped,
        "split": split.name,
        "cells": sizes,
        "closest": {"n": near, "chance": closest_jaccard_by_chance(len(test), near)} if apart else None,
    }
    names = {direction: truths[ends(direction)[1]].features for direction in wanted}
    return metrics, Drawings(test.obs, names, pictures, placed, apart)


def fit_baselines(
    train: Cells,
    valid: Cells,
    directions: Sequence[str],
    inputs: Inputs,
    *,
    seed: int = 0,
    progress: Callable[[str], None] = lambda words: None,
) -> tuple[dict[str, dict[str, Fitted]], dict[str, str]]:
    """mean, knn, ridge and, from ATAC to RNA, gene_activity (a line a gene) and gene_activity_raw; and why any is missing."""
    fitted: dict[str, dict[str, Fitted]] = {"mean": {}, "knn": {}, "ridge": {}}
    skipped: dict[str, str] = {}
    components: dict[Modality, Components] = {}
    for direction in directions:
        progress(f"baselines, {direction.replace('_', ' ')}")
        pairs, (source, to) = train.pairs(direction), ends(direction)
        if source not in components:
            components[source] = Components.fit(pairs.x, source, seed=seed)
        fitted["mean"][direction] = TrainingMean.fit(pairs)
        fitted["knn"][direction] = NearestNeighbours.fit(pairs, components[source])
        chosen = valid.pairs(direction) if len(valid) else None
        fitted["ridge"][direction] = Ridge.fit(pairs, components[source], chosen, seed=seed)
        atac, rna = inputs.get("atac"), inputs.get("rna")
        if (source, to) == ("atac", "rna") and isinstance(atac, AtacInput) and isinstance(rna, RnaInput):
            for name, calibrate in (("gene_activity", True), ("gene_activity_raw", False)):
                try:
                    fitted[name] = {direction: GeneActivity.fit(pairs, atac.regions, rna.var, calibrate=calibrate)}
                except InputError as error:
                    skipped[name] = str(error)
    return fitted, skipped


def ends(direction: str) -> tuple[Modality, Modality]:
    """Source and target modality of a direction such as "atac_to_rna"."""
    match direction.split("_to_"):
        case ["rna" | "atac" | "protein" as source, "rna" | "atac" | "protein" as to] if source != to:
            return source, to
    raise InputError(f"direction {direction!r}: write source_to_target, of rna, atac and protein, such as atac_to_rna.")


def closest_n(cells: int) -> int:
    """How many closest cells to compare: a twentieth of the cells, 50 at most, 1 at least.

    With a fixed 50 of some hundred cells, any two embeddings would share many by chance.
    """
    return int(np.clip(cells // 20, 1, 50))


def values_of(inputs: Input, measured: Measured) -> Values:
    """Measured cells on the scale predictions are on: rna ``ln(1 + count * median / library)``, atac 0/1, protein CLR."""
    aligned = inputs.align(measured)
    return sparse.csr_matrix(inputs.targets(aligned).log1p()) if isinstance(inputs, RnaInput) else aligned


def feature_names(inputs: Input) -> pd.Index:
    """Names of a model's features, in their order."""
    return pd.Index(inputs.regions.names()) if isinstance(inputs, AtacInput) else inputs.var.index


def _on(test: Cells, fitted: Mapping[str, Fitted]) -> Method:
    """A baseline as a method; it reads the prepared values."""

    def predict(direction: str, measured: Measured) -> Predicted:
        return fitted[direction].predict(test.values[ends(direction)[0]])

    return {direction: partial(predict, direction) for direction in fitted}


def _types(obs: pd.DataFrame, label: str | None) -> tuple[CellTypes | None, str | None]:
    """Cell types of the test cells; None, and why, where they cannot be compared (one type may be held out, say)."""
    if label is None:
        return None, None
    if label not in obs:
        raise InputError(
            f"evaluation: obs has no column {label!r}. It has {', '.join(map(str, obs.columns)) or 'none'}."
        )
    try:
        return CellTypes.of(obs[label]), None
    except InputError as error:
        return None, str(error)
