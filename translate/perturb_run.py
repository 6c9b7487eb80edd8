"""What is asked of a perturbation and what is found: attributions, links and effects over the cells of a file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from expresser.errors import InputError
from expresser.regions import Regions
from translate.attribution import Attribution, Baseline, attribution_table, each_attribution, prove_path
from translate.peak_links import (
    FEWEST,
    WINDOW,
    Values,
    agreement,
    correlate,
    of_matrix,
    of_predicted,
    pairs_near,
)
from translate.perturb import Change, Effects, on_own_features, perturb
from translate.perturb_names import cell_groups, cells_of_type, column_of, target_label
from translate.preprocess import RnaInput
from translate.study import Measured, Modality
from translate.translator import Translator

Progress = Callable[[int, int | None, str], None]


@dataclass(frozen=True)
class Asked:
    """What a run is asked for."""

    targets: tuple[str, ...] = ()  # genes where ATAC is the input, peaks where RNA is
    change: Change | None = None
    cell_type: str | None = None  # COLUMN=VALUE: of these cells alone
    labels: str | None = None
    cells: int = 500  # sampled for attribution and perturbation; 0: all
    top: int = 50
    baseline: Baseline = "zero"
    n_steps: int = 50
    window: int = WINDOW
    n_null: int = 100
    seed: int = 0
    unknown_batch: str | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """What a run found."""

    source: Modality
    to: Modality
    metrics: dict[str, Any]
    attributions: pd.DataFrame | None = field(default=None, repr=False)  # every target, group and feature
    links: pd.DataFrame | None = field(default=None, repr=False)
    effects: Effects | None = field(default=None, repr=False)
    shown: Mapping[str, str] = field(default_factory=dict)  # targets as people call them (`target_label`)


def examine(
    translator: Translator,
    measured: Measured,
    source: Modality,
    asked: Asked,
    *,
    paired: Measured | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Found:
    """Attributions, links and effects for cells measured in `source`.

    paired: the other modality of the same cells (by name), where it was measured. Correlations are over all cells asked for,
    attributions and perturbations over a sample of them.
    """
    to: Modality = "rna" if source == "atac" else "atac"
    _prove(translator, measured, source, to, asked)
    if asked.cell_type is not None:
        measured = measured.take(cells_of_type(measured.obs, asked.cell_type))
    if asked.labels is not None:
        column_of(measured.obs, asked.labels, "--labels")
    own = on_own_features(translator.inputs, measured, source)
    n = own.n_cells
    sample = np.arange(n)
    if asked.cells and n > asked.cells:
        sample = np.sort(np.random.default_rng(asked.seed).choice(n, asked.cells, replace=False))
    some = own.take(sample)
    metrics: dict[str, Any] = {"cells": {"given": n, "examined": len(sample)}, "source": source, "to": to}
    attributions = links = effects = None
    shown: dict[str, str] = {}
    if asked.targets:
        groups = cell_groups(some.obs, asked.labels)
        found, tables = [], []
        for one in each_attribution(
            translator,
            some,
            asked.targets,
            to=to,
            source=source,
            baseline=asked.baseline,
            n_steps=asked.n_steps,
            unknown_batch=asked.unknown_batch,
            progress=progress,
        ):
            tables.append(attribution_table(translator, one, groups))
            found.append(one.without_cells())
            shown[one.target] = target_label(translator.var(to), one.number)
        attributions = pd.concat(tables, ignore_index=True)
        metrics["attribution"] = _convergence(found, asked)
        progress(0, None, "correlating")
        links, agreed = _links(translator, own, source, to, found, asked, paired)
        metrics["links"] = agreed
    if asked.change is not None:
        effects = perturb(
            translator,
            some,
            asked.change,
            to=to,
            labels=asked.labels,
            n_null=asked.n_null,
            seed=asked.seed,
            unknown_batch=asked.unknown_batch,
            progress=progress,
        )
        metrics["perturbation"] = _effect_figures(translator, effects)
    return Found(source, to, metrics, attributions, links, effects, shown)


def top_effects(table: pd.DataFrame, top: int) -> pd.DataFrame:
    """Of each group the features whose change is the largest against the null (or, without one, in itself), largest first."""
    by = "z" if "z" in table and table["z"].notna().any() else "change"
    parts = []
    for _, part in table.groupby("group", sort=False):
        moved = part[part["change"] != 0]
        parts.append(moved.iloc[np.argsort(-moved[by].abs().fillna(-1).to_numpy(), kind="stable")[:top]])
    return pd.concat(parts, ignore_index=True)


def _prove(translator: Translator, measured: Measured, source: Modality, to: Modality, asked: Asked) -> None:
    if not asked.targets and asked.change is None:
        raise InputError("perturb: nothing is asked. Give targets to explain, or a change.")
    if source not in ("rna", "atac"):
        raise InputError(f"perturb: {measured.name} holds {source}; RNA or ATAC is needed.")
    if asked.change is not None and asked.change.source != source:
        what = "peaks are opened and closed in ATAC" if source == "rna" else "genes are knocked down and raised in RNA"
        raise InputError(
            f"perturb: {measured.name} holds {source}, but {what}. Give cells measured in {asked.change.source}."
        )
    counts = (
        ("--cells", asked.cells, 0),
        ("--top", asked.top, 1),
        ("--window", asked.window, 0),
        ("--steps", asked.n_steps, 1),
        ("--null", asked.n_null, 0),
    )
    for name, value, least in counts:
        if value < least:
            raise InputError(f"{name} is {value}; give {least} or more.")
    translator.target(source, to)
    if asked.targets:
        prove_path(translator, source)


def _convergence(found: Sequence[Attribution], asked: Asked) -> dict[str, Any]:
    """How far attributions are from adding up, of each target."""
    return {
        "baseline": asked.baseline,
        "n_steps": asked.n_steps,
        "targets": {
            one.target: {
                "delta_mean_abs": float(np.abs(one.delta).mean()),
                "delta_max_abs": float(np.abs(one.delta).max()),
                "delta_relative": one.relative_delta,
                "predicted_mean": float(one.predicted.mean()),
                "baseline_mean": float(one.baseline.mean()),
            }
            for one in found
        },
    }


def _links(
    translator: Translator,
    own: Measured,
    source: Modality,
    to: Modality,
    found: Sequence[Attribution],
    asked: Asked,
    paired: Measured | None,
) -> tuple[pd.DataFrame | None, dict[str, Any]]:
    """Candidate pairs of the targets with their correlations, and how attributions agree with these."""
    if own.n_cells < FEWEST:
        return None, {"skipped": f"{own.n_cells} cells; a correlation needs {FEWEST}"}
    numbers = np.array([one.number for one in found], dtype=np.int64)
    regions = Regions.from_var(translator.var("atac"), where="the model")
    genes = translator.var("rna")
    only: dict[str, Any] = {"only_genes": numbers} if to == "rna" else {"only_peaks": numbers}
    pairs = pairs_near(regions, genes, window=asked.window, **only)
    if not len(pairs):
        return None, {"skipped": f"no peak and gene of these lie within {asked.window:,} bases of each other"}
    more: dict[str, Any] = {} if asked.unknown_batch is None else {"unknown_batch": asked.unknown_batch}
    if translator.system.tells_depth:
        # Peaks that differ between cells because the depth told from their RNA does would go with every gene.
        at: Mapping[Modality, dict[str, Any]] = {"atac": {"depth": "median"}}
    else:
        at = {}
    mine = _values(translator, own, source)
    ways: dict[str, tuple[Values, Values, int]] = {}  # name: accessibility, expression, cells
    theirs = of_predicted(translator.predict(own, source=source, to=to, **more, **at.get(to, {})))
    ways[f"to_{to}"] = (mine, theirs, own.n_cells) if source == "atac" else (theirs, mine, own.n_cells)
    if paired is not None:
        here, there = _same_cells(own, paired)
        one, other = own.take(here), on_own_features(translator.inputs, paired.take(there), to)
        sides = {source: _values(translator, one, source), to: _values(translator, other, to)}
        ways["measured"] = (sides["atac"], sides["rna"], len(here))
        if (to, source) in translator.directions:
            back = of_predicted(translator.predict(other, source=to, to=source, **more, **at.get(source, {})))
            ways[f"to_{source}"] = (
                (back, sides["rna"], len(here)) if source == "atac" else (sides["atac"], back, len(here))
            )
    means = {one.number: one.mean for one in found}
    target, feature = ("gene", "peak") if to == "rna" else ("peak", "gene")
    table = pd.DataFrame(
        {
            "gene": genes.index.to_numpy()[pairs["gene"]],
            "symbol": genes["symbol"].to_numpy()[pairs["gene"]],
            "peak": translator.var("atac").index.to_numpy()[pairs["peak"]],
            "distance": pairs["distance"],
            "attribution": [means[t][f] for t, f in zip(pairs[target].tolist(), pairs[feature].tolist())],
        }
    )
    agreed: dict[str, Any] = {
        "window": asked.window,
        "pairs": len(pairs),
        "cells": {},
        "significant": {},
        "agreement": {},
    }
    for name, (accessibility, expression, n) in ways.items():
        result = correlate(pairs, accessibility, expression, n)
        for column in ("r", "p", "q"):
            table[f"{column}_{name}"] = result[column]
        each = {one.target: agreement(one, pairs, result["r"].to_numpy()) for one in found}
        spearman = [value["spearman"] for value in each.values() if np.isfinite(value["spearman"])]
        agreed["cells"][name] = n
        agreed["significant"][name] = int((result["q"] < 0.05).sum())
        agreed["agreement"][name] = {
            "mean_spearman": float(np.mean(spearman)) if spearman else float("nan"),
            "targets": len(spearman),
            "by_target": each,
        }
    order = np.lexsort((-table["attribution"].abs().to_numpy(), pd.factorize(table[target])[0]))
    return table.iloc[order].reset_index(drop=True), agreed


def _values(translator: Translator, own: Measured, modality: Modality) -> Values:
    """Measured values on the scale of predictions: 0/1 of peaks, ln(1 + size-normalised counts) of genes."""
    found = translator.inputs[modality]
    if isinstance(found, RnaInput):
        return of_matrix(found.targets(found.align(own)), log=True)
    return of_matrix(own.matrix)


def _same_cells(own: Measured, paired: Measured) -> tuple[Int64[np.ndarray, " cells"], Int64[np.ndarray, " cells"]]:
    at = paired.obs.index.get_indexer(own.obs.index)
    here = np.flatnonzero(at >= 0)
    if len(here) < FEWEST:
        raise InputError(
            f"{paired.name}: {len(here)} of the {own.n_cells:,} cells of {own.name} are in it (they are paired by name; first: "
            f"{', '.join(map(repr, own.obs.index[:2]))} and {', '.join(map(repr, paired.obs.index[:2]))}). Give the same cells."
        )
    return here, at[here].astype(np.int64)


def _effect_figures(translator: Translator, effects: Effects) -> dict[str, Any]:
    groups = {}
    for name, part in effects.table.groupby("group", sort=False):
        groups[str(name)] = {
            "cells": int(part["cells"].iloc[0]),
            "mean_abs_change": float(part["change"].abs().mean()),
            "max_abs_change": float(part["change"].abs().max()),
        }
        if effects.n_null:
            groups[str(name)] |= {
                "null_mean_abs_change": float(part["null_mean"].abs().mean()),
                "p_below_0.05": int((part["p"] < 0.05).sum()),
                "q_below_0.05": int((part["q"] < 0.05).sum()),
            }
    return {
        "changed_features": len(effects.change.features),
        "changed_cells": effects.n_changed,
        "features": len(translator.var(effects.to)),
        "n_null": effects.n_null,
        "smallest_p": 1 / (effects.n_null + 1) if effects.n_null else None,
        "groups": groups,
    }
