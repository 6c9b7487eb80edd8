"""Whether cells of RNA and of ATAC meet in a latent: scores that need labels, pairs, or neither, beside two baselines."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.metrics.alignment import closest_jaccard, closest_jaccard_by_chance, foscttm
from expresser.metrics.clusters import cluster_scores
from expresser.metrics.joint import cosine_distances, label_transfer, modality_mixing
from translate.activity_embedding import ActivityPca
from translate.drawings import Joint
from translate.feed import Inputs
from translate.maps import sampled
from translate.preprocess import AtacInput, RnaInput
from translate.scales import values_of
from translate.study import Measured, Modality, Study

Side: TypeAlias = Callable[[Measured], Float32[np.ndarray, "cells latent"]]
# Space (the modality whose latent it is) -> modality of the cells -> their latents there, from what was measured of them.
Spaces: TypeAlias = Mapping[Modality, Mapping[Modality, Side]]

MOST = 5000  # cells of each modality for all scores but FOSCTTM and closest cells, drawn at random
TRAINING = 5000  # cells of each modality that the baseline learns from
SIDES: tuple[Modality, Modality] = ("rna", "atac")


@dataclass(frozen=True, eq=False)
class JointCells:
    """Cells measured in RNA and cells measured in ATAC, some of which may be the same."""

    measured: Mapping[Modality, Measured]
    labels: Mapping[Modality, pd.Series] | None = field(repr=False)  # None: none given, or of fewer than two types
    pairs: Int64[np.ndarray, "2 pairs"] = field(repr=False)  # rows in RNA and in ATAC of the same cells
    why: str | None = None  # there are no labels

    @classmethod
    def of(cls, study: Study, cells: Int64[np.ndarray, " cells"], label: str | None) -> "JointCells | None":
        """Those of `cells` with RNA or ATAC; None where there are fewer than two of either."""
        if not set(SIDES) <= set(study.modalities):
            return None
        here = {m: cells[study.has(m)[cells]] for m in SIDES}
        if min(map(len, here.values())) < 2:
            return None
        _, rna, atac = np.intersect1d(here["rna"], here["atac"], return_indices=True)
        labels, why = None, None
        if label is not None and label in study.obs:
            labels = {m: study.obs[label].iloc[rows] for m, rows in here.items()}
            known = {m: set(s[_known(s)].astype(str)) for m, s in labels.items()}
            if len(known["rna"] | known["atac"]) < 2 or not known["rna"] or not known["atac"]:
                shown = "; ".join(f"{m}: {', '.join(sorted(known[m])[:5]) or 'none'}" for m in SIDES)
                why = f"column {label!r} must name two types or more, and some of either modality ({shown})"
                labels = None
        return cls({m: study.of(m, rows) for m, rows in here.items()}, labels, np.stack([rna, atac]), why)

    @property
    def sizes(self) -> dict[str, int]:
        """rna, atac and paired cells."""
        return {**{m: self.measured[m].n_cells for m in SIDES}, "paired": self.pairs.shape[1]}


@dataclass(frozen=True, eq=False)
class Aligned:
    """What was found: `metrics` as `judge_alignment` says, and what figures need."""

    metrics: dict[str, Any]
    joint: Mapping[str, Mapping[str, Joint]]  # method -> space -> cells of both modalities, at most `MOST` of each
    foscttm: Mapping[str, Mapping[str, Float64[np.ndarray, "2 cells"]]]  # method -> space -> of each paired cell


def judge_alignment(
    cells: JointCells,
    methods: Mapping[str, Spaces],
    *,
    baselines: Mapping[str, Spaces] | None = None,
    skipped: Mapping[str, str] | None = None,
    near: int = 1,
    seed: int = 0,
    say: Callable[[str], None] = lambda words: None,
) -> Aligned:
    """Score every space of every method, and of baselines.

    Returns ``{"cells": {"rna", "atac", "paired"}, "methods": {NAME: {SPACE: {…}}}, "baselines": [names], "skipped": {what: why},
    "closest": {"n", "chance"} | None}``; SPACE is the modality whose latent it is. Of each space:

    foscttm         where cells are paired: mean share of other cells closer than the cell itself, of foscttm_from_rna (RNA asks)
                    and foscttm_from_atac; closest_jaccard: overlap of the `near` closest cells inside either modality
    mixing          are the neighbours of both modalities? 1 best, 1/2 worst; mixing_best is what these cells can reach, and
                    mixing_neighbours how many were looked at (`expresser.metrics.joint.modality_mixing`)
    and, where labels are known:
    ari, ami        agreement of clusters of all cells, both modalities together, with the types (`cluster_scores`, as many
                    clusters as types): 1 best, 0 chance
    silhouette      of the types, both modalities together
    cosine_within, cosine_between   mean cosine distance of two cells of one type, of two types (`cosine_distances`)
    transfer_rna_to_atac, transfer_atac_to_rna   share of cells that get their own label from their 15 nearest of the other
                    modality; transfer_by_chance: with the most frequent label for all
    """
    everyone = dict(methods) | {n: s for n, s in (baselines or {}).items() if n not in methods}
    paired, chance = cells.pairs.shape[1], None
    if paired > 1:
        chance = {"n": near, "chance": closest_jaccard_by_chance(paired, near)}
    scores: dict[str, dict[str, Any]] = {}
    joint: dict[str, dict[str, Joint]] = {}
    apart: dict[str, dict[str, np.ndarray]] = {}
    for name, spaces in everyone.items():
        for space, sides in spaces.items():
            say(f"{name}, alignment in the latent of {space}")
            placed = {m: sides[m](cells.measured[m]) for m in SIDES}
            found: dict[str, Any] = {}
            if paired > 1:
                both = [placed[m][rows] for m, rows in zip(SIDES, cells.pairs)]
                share = foscttm(*both)
                apart.setdefault(name, {})[space] = share
                found = {"foscttm": float(share.mean())}
                found |= {f"foscttm_from_{m}": float(row.mean()) for m, row in zip(SIDES, share)}
                found["closest_jaccard"] = float(closest_jaccard(*both, n=near).mean())
            drawn = _joint(cells, placed, seed)
            joint.setdefault(name, {})[space] = drawn
            scores.setdefault(name, {})[space] = found | joint_scores(drawn, seed=seed)
    why = dict(skipped or {}) | ({} if cells.why is None else {"alignment of types": cells.why})
    metrics = {
        "cells": cells.sizes,
        "methods": scores,
        "baselines": [name for name in everyone if name not in methods],
        "skipped": why,
        "closest": chance,
    }
    return Aligned(metrics, joint, apart)


def joint_scores(drawn: Joint, *, seed: int = 0) -> dict[str, Any]:
    """All that needs no pairs (`judge_alignment`)."""
    z, second = drawn.points, drawn.modality == SIDES[1]
    types = None if drawn.labels is None else drawn.labels.to_numpy(dtype=object).astype(str)
    mixed = modality_mixing(z, second, types, seed=seed)
    found: dict[str, Any] = {"mixing": mixed.score, "mixing_best": mixed.by_chance, "mixing_neighbours": mixed.k}
    if types is None or len(set(types)) < 2:
        return found
    clusters = cluster_scores(z, types, seed=seed)
    found |= {name: clusters[name] for name in ("ari", "ami", "silhouette")}
    distances = cosine_distances(z, types)
    found |= {"cosine_within": distances.within, "cosine_between": distances.between}
    carried = [label_transfer(z[a], types[a], z[b], types[b]) for a, b in ((~second, second), (second, ~second))]
    found |= {"transfer_rna_to_atac": carried[0].accuracy, "transfer_atac_to_rna": carried[1].accuracy}
    return found | {"transfer_by_chance": float(np.mean([of.by_chance for of in carried]))}


def spaces_of(translator: Any, modalities: Collection[Modality] = SIDES, *, unknown_batch: str | None = None) -> Spaces:
    """The latents of a `translate.translator.Translator` in which cells can be compared, if both modalities are there.

    unknown_batch: as in `translate.translator.Translator.latents`.
    """
    if not set(SIDES) <= set(modalities):
        return {}
    more = {} if unknown_batch is None else {"unknown_batch": unknown_batch}
    return {
        space: {m: partial(translator.latents, source=m, to=space, **more) for m in SIDES}
        for space in translator.system.spaces()
    }


def alignment_baselines(
    study: Study, train: Int64[np.ndarray, " train"], inputs: Inputs, *, seed: int = 0
) -> tuple[dict[str, Spaces], dict[str, str]]:
    """gene_activity_pca, fitted to training cells of either modality, and chance (points drawn at random); why one is missing."""

    def at_random(stream: int, measured: Measured) -> Float32[np.ndarray, "cells latent"]:
        return np.random.default_rng([seed, stream]).normal(size=(measured.n_cells, 10)).astype(np.float32)

    found: dict[str, Spaces] = {"chance": {"rna": {m: partial(at_random, i) for i, m in enumerate(SIDES)}}}
    rna, atac = inputs.get("rna"), inputs.get("atac")
    if not isinstance(rna, RnaInput) or not isinstance(atac, AtacInput):
        return found, {}
    some = {m: train[study.has(m)[train]] for m in SIDES}
    some = {m: rows[sampled(len(rows), TRAINING, seed=seed)] for m, rows in some.items()}
    try:
        if min(map(len, some.values())) < 2:
            raise InputError("the training cells lack RNA or ATAC")
        values = {m: sparse.csr_matrix(values_of(inputs[m], study.of(m, rows).loaded())) for m, rows in some.items()}
        model = ActivityPca.fit(values["rna"], values["atac"], atac.regions, rna.var, seed=seed)
    except InputError as error:
        return found, {"gene_activity_pca": str(error)}

    def of_rna(measured: Measured) -> Float32[np.ndarray, "cells latent"]:
        return model.of_rna(sparse.csr_matrix(values_of(rna, measured)))

    def of_atac(measured: Measured) -> Float32[np.ndarray, "cells latent"]:
        return model.of_atac(sparse.csr_matrix(values_of(atac, measured)))

    own: Spaces = {"rna": {"rna": of_rna, "atac": of_atac}}
    return {"gene_activity_pca": own, **found}, {}


def _joint(cells: JointCells, placed: Mapping[Modality, Float32[np.ndarray, "_ latent"]], seed: int) -> Joint:
    """At most `MOST` cells of each modality; where labels are known, of cells that have one."""
    rows, labels = {}, None
    for m in SIDES:
        some = np.arange(len(placed[m])) if cells.labels is None else np.flatnonzero(_known(cells.labels[m]))
        rows[m] = some[sampled(len(some), MOST, seed=seed)]
    if cells.labels is not None:
        labels = pd.concat([cells.labels[m].iloc[rows[m]].astype(str) for m in SIDES], ignore_index=True)
    return Joint(
        points=np.concatenate([placed[m][rows[m]] for m in SIDES]),
        modality=np.repeat(SIDES, [len(rows[m]) for m in SIDES]),
        labels=labels,
    )


def _known(labels: pd.Series) -> Bool[np.ndarray, " cells"]:
    """Which cells have a label: a missing value and "" are none."""
    return (labels.notna() & (labels.astype(str) != "")).to_numpy(dtype=bool)
