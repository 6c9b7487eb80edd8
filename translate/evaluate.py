"""Held-out cells → the scores of every method, baselines included, in the shape of metrics.json, and what figures need.

metrics  {"methods": {NAME: {"atac_to_rna": {...}, "rna_to_atac": {...}, "rna_to_protein": {...}, "foscttm": x}},
          "directions": [...], "baselines": [names among the methods], "skipped": {NAME: why}, "labels": column | None,
          "labels_skipped": why | None, "split": name, "cells": {"train", "valid", "test"},
          "closest": {"n", "chance"} | None, "alignment": {…} | None}
         A method has only the directions it predicts, and foscttm and closest_jaccard (of the "closest" n cells) only
         where it has latents of two modalities: means over its spaces; of two there are foscttm_rna and foscttm_atac too,
         named after the modality whose latent it is. alignment: all that is known of each space, baselines of it included
         (`translate.alignment_judging.judge_alignment`), of test cells with one modality too. Scores are
         floats, NaN where undefined (write_metrics makes that null), counts are ints; what each means is said in
         translate/scoring.py. With them: seconds, of predicting and scoring.
  *_to_rna      pearson_flat pearson_gene pearson_gene_median pearson_cell mae rmse pseudobulk_pearson n_cells n_genes
                genes_undefined genes_constant; with labels: pseudobulk_type_pearson marker_auroc marker_auroc_truth markers
                de_auprc de_auprc_chance (these also where all test cells are of one type that was held out: it is compared with
                training cells of other types, `translate.unseen_type`)
  *_to_atac     auroc_flat auprc_flat auroc_peak auprnorm_peak auroc_peak_fifth_1 … _5 auroc_cell ece mean_ratio spread
                pseudobulk_pearson n_cells n_peaks peaks_undefined peaks_constant; with labels: pseudobulk_type_pearson
  *_to_protein  pearson_flat pearson_protein pearson_protein_median pearson_cell mae rmse pseudobulk_pearson n_cells
                n_proteins proteins_undefined proteins_constant; with labels: pseudobulk_type_pearson
drawings `Drawings` (translate/drawings.py): one `Picture` for a method and a direction, cells of both modalities in each space,
         FOSCTTM of each cell.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy import sparse

from expresser.errors import InputError
from translate.alignment_judging import Aligned, JointCells, Spaces, alignment_baselines, judge_alignment
from translate.baselines import Fitted, NearestNeighbours, Pairs, Ridge, TrainingMean
from translate.components import Components, Values
from translate.drawings import Drawings, Picture
from translate.feed import Inputs
from translate.gene_activity import GeneActivity
from translate.markers import CellTypes
from translate.predicted import Predicted
from translate.preprocess import AtacInput, RnaInput
from translate.scales import ends, feature_names, values_of
from translate.scoring import BUDGET_MB, score
from translate.splits import Split
from translate.study import Measured, Modality, Study
from translate.truth import Truth
from translate.unseen_type import MIN_CELLS, AgainstOthers, only_type, others_of

NEED_PAIRS = ("mean", "knn", "ridge", "gene_activity")  # baselines that learn from cells with both modalities

# Direction ("atac_to_rna") -> what predicts it, from the test cells as they were measured in the source modality.
Method: TypeAlias = Mapping[str, Callable[[Measured], Predicted]]


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
    latents: Mapping[str, Spaces] | None = None,
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
        Name → space → modality → a function of the test cells' `Measured` in it that returns their latents in that space.
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

    Returns
    -------
    metrics, drawings
        As the top of this file describes them.
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
    theirs, parts = train or (study, split)
    if baselines:
        learnt, chosen = (Cells.of(theirs, cells, used) for cells in (parts.train, parts.valid))
        sizes |= {"train": len(learnt), "valid": len(chosen)}
        if len(learnt):
            fitted, skipped = fit_baselines(learnt, chosen, wanted, used, seed=seed, progress=say)
        else:
            fitted, skipped = {}, dict.fromkeys(NEED_PAIRS, f"no training cell has {' and '.join(used)}")
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
    if types is None and label is not None and (rest := _others(test, theirs, parts, used, label, seed)) is not None:
        everywhere = dict(methods) | (
            {n: _on(rest, by) for n, by in fitted.items() if n not in methods} if baselines else {}
        )
        _against_others(test, rest, everyone, everywhere, scores, skipped, budget_mb, say)
    aligned = align_cells(
        study,
        split.test,
        latents or {},
        label,
        (theirs, parts.train, inputs) if baselines else None,
        seed=seed,
        say=say,
    )
    for name, spaces in (aligned.metrics["methods"] if aligned else {}).items():
        if name in scores:
            scores[name] |= over_spaces(spaces)
    metrics = {
        "methods": scores,
        "directions": wanted,
        "baselines": [name for name in everyone if name not in methods],
        "skipped": skipped,
        "labels": label if types is not None else None,
        "labels_skipped": labels_skipped,
        "split": split.name,
        "cells": sizes,
        "closest": aligned.metrics["closest"] if aligned else None,
        "alignment": aligned.metrics if aligned else None,
    }
    names = {direction: truths[ends(direction)[1]].features for direction in wanted}
    joint, apart = (aligned.joint, aligned.foscttm) if aligned else ({}, {})
    return metrics, Drawings(test.obs, names, pictures, joint, apart)


def align_cells(
    study: Study,
    cells: Int64[np.ndarray, " cells"],
    latents: Mapping[str, Spaces],
    label: str | None,
    learn: tuple[Study, Int64[np.ndarray, " train"], Inputs] | None,
    *,
    seed: int = 0,
    say: Callable[[str], None] = lambda words: None,
) -> Aligned | None:
    """`judge_alignment` of these cells, with baselines that learn from `learn`; None where no method has a space to judge."""
    if not any(latents.values()) or (joint := JointCells.of(study, cells, label)) is None:
        return None
    begun: dict[str, Spaces] = {}
    skipped: dict[str, str] = {}
    if learn is not None:
        begun, skipped = alignment_baselines(*learn, seed=seed)
    near = closest_n(joint.sizes["paired"])
    return judge_alignment(joint, latents, baselines=begun, skipped=skipped, near=near, seed=seed, say=say)


def over_spaces(spaces: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """foscttm and closest_jaccard of a method, means over its spaces, and foscttm of each where there are two."""
    there = {space: found for space, found in spaces.items() if "foscttm" in found}
    if not there:
        return {}
    mean = {key: float(np.mean([found[key] for found in there.values()])) for key in ("foscttm", "closest_jaccard")}
    return mean | ({f"foscttm_{space}": found["foscttm"] for space, found in there.items()} if len(there) > 1 else {})


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
        fitted["mean"][direction] = TrainingMean.fit(pairs)
        try:
            if source not in components:
                components[source] = Components.fit(pairs.x, source, seed=seed)
            fitted["knn"][direction] = NearestNeighbours.fit(pairs, components[source])
            chosen = valid.pairs(direction) if len(valid) else None
            fitted["ridge"][direction] = Ridge.fit(pairs, components[source], chosen, seed=seed)
        except InputError as error:
            skipped |= dict.fromkeys(("knn", "ridge"), str(error))
        atac, rna = inputs.get("atac"), inputs.get("rna")
        if (source, to) == ("atac", "rna") and isinstance(atac, AtacInput) and isinstance(rna, RnaInput):
            for name, calibrate in (("gene_activity", True), ("gene_activity_raw", False)):
                try:
                    fitted[name] = {direction: GeneActivity.fit(pairs, atac.regions, rna.var, calibrate=calibrate)}
                except InputError as error:
                    skipped[name] = str(error)
    return {name: by_direction for name, by_direction in fitted.items() if by_direction}, skipped


def _others(test: Cells, theirs: Study, parts: Split, used: Inputs, label: str, seed: int) -> Cells | None:
    """Training cells of other types, where all test cells are of one; None where they are not, or nothing is known of those."""
    held = only_type(test.obs[label])
    if held is None or label not in theirs.obs or "rna" not in used:
        return None
    rest = Cells.of(theirs, others_of(theirs.obs[label], parts.train, held, seed=seed), used)
    return rest if len(rest) >= MIN_CELLS else None


def _against_others(
    test: Cells,
    rest: Cells,
    here: Mapping[str, Method],
    there: Mapping[str, Method],
    scores: Mapping[str, dict[str, Any]],
    skipped: dict[str, str],
    budget_mb: float,
    say: Callable[[str], None],
) -> None:
    """Add de_auprc to the scores of expression. there: the methods as they predict cells of `rest`."""
    judge = AgainstOthers(sparse.csr_matrix(test.values["rna"]), sparse.csr_matrix(rest.values["rna"]))
    for name, method in here.items():
        for direction in [d for d in scores[name] if ends(d)[1] == "rna"]:
            say(f"{name}, {direction.replace('_', ' ')}: differential genes")
            source = ends(direction)[0]
            try:
                others = there[name][direction](rest.measured[source])
            except InputError as error:  # an oracle that does not know these cells
                skipped[f"differential genes of {name}"] = str(error)
                continue
            own = method[direction](test.measured[source])
            scores[name][direction] |= judge.scores(own, others, budget_mb=budget_mb)


def closest_n(cells: int) -> int:
    """How many closest cells to compare: a twentieth of the cells, 50 at most, 1 at least.

    With a fixed 50 of some hundred cells, any two embeddings would share many by chance.
    """
    return int(np.clip(cells // 20, 1, 50))


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
