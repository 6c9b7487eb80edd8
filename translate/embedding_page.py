"""The page about an embedding: cell types found, confounders left, batches mixed, and maps, beside baselines, in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64

from expresser.readable import Number
from expresser.report import Figure, Section, Table, write_report
from translate import embedding_figures as draw
from translate.embedding_verdicts import BETTER, NAMES, confounder_sentences
from translate.maps import FEWEST
from translate.page_sections import doubts_section

Summary = Sequence[tuple[str, Number | str | None]]
_COLUMNS = (
    *("ari", "nmi", "silhouette", "n_clusters", "ari_best", "nmi_best", "f1", "rarest_f1"),
    *("mi_depth", "mi_batch", "mixing", "mixing_by_chance", "dimensions", "seconds"),
)

_SCORES = """
Cells are joined to their nearest neighbours and clustered at a grid of resolutions. ARI and NMI compare clusters with cell
types at the resolution that gives about as many clusters as there are types, so that no method gains by the number of its
clusters; best ARI and best NMI are those of the best resolution, which nobody knows without labels. Silhouette: how much nearer
a cell is to its own type than to the next, -1 to 1. I(z, depth) and I(z, batch): what a latent dimension tells of the number of
open peaks of a cell and of its batch, in nats, mean over dimensions: 0 is best. Batches, off even: how far the batches among a
cell's neighbours are from even, normalised by their size: 0 is mixed.
"""


@dataclass(frozen=True, eq=False)
class EmbeddingDrawings:
    """What figures need beside the metrics."""

    colours: Mapping[str, pd.Series]  # of the cells of the maps: cell type, batch, log depth
    points: Mapping[str, Float32[np.ndarray, "cells latent"]]  # method -> the same cells' embedding
    mixing: Mapping[str, Float64[np.ndarray, " all_cells"]] = field(default_factory=dict)


def embedding_sections(
    metrics: Mapping[str, Any], drawings: EmbeddingDrawings, *, maps: bool = True, seed: int = 0
) -> tuple[Summary, list[Section]]:
    """The answer at a glance, and the sections, of what `translate.embedding_judging` found."""
    model, scores = metrics["system"], metrics["embeddings"]
    order = ranked(metrics)
    best = (metrics.get("verdict") or {}).get("baseline")
    pair = [model] + ([best] if best else order[1:2])
    sections = [Section("Result", "\n\n".join(_opening(metrics))), _score_section(metrics, order)]
    if types := metrics.get("types"):
        sections.append(_type_section(metrics, types, [n for n in pair if n in types]))
    sections.append(_confounder_section(metrics, drawings, [*pair, *(n for n in order if n not in pair)]))
    if metrics.get("imputation"):
        sections.append(_imputation_section(metrics))
    if maps:
        items = [
            f
            for n in pair
            if n in drawings.points
            for f in draw.cell_maps(n, drawings.points[n], drawings.colours, seed=seed)
        ]
        few = "" if items else f"No map is drawn: a UMAP needs {FEWEST} cells."
        sections.append(Section("Maps of cells", few, tuple(items)))
    if metrics["skipped"]:
        frame = pd.DataFrame({"why": metrics["skipped"]})
        frame.index.name = "what"
        sections.append(Section("Not run", "", (Table("What was not run", frame),)))
    return _headline(metrics, scores, model, best), sections


def embedding_page(
    path: str | Path,
    metrics: Mapping[str, Any],
    drawings: EmbeddingDrawings,
    provenance: Mapping[str, Any],
    *,
    title: str,
    maps: bool = True,
    seed: int = 0,
) -> Path:
    """Write the page of an evaluation by itself. Doubts (of `metrics`) come first."""
    summary, sections = embedding_sections(metrics, drawings, maps=maps, seed=seed)
    sections = [*doubts_section(metrics.get("doubts", ())), *sections]
    return write_report(path, title=title, summary=summary, sections=sections, provenance=provenance)


def ranked(metrics: Mapping[str, Any]) -> list[str]:
    """The model, then baselines, the best first: by ARI, else by what they tell of depth."""
    scores = metrics["embeddings"]

    def key(name: str) -> tuple[float, float]:
        return -_value(scores[name], "ari", -np.inf), _value(scores[name], "mi_depth", np.inf)

    return [metrics["system"], *sorted(metrics["baselines"], key=key)]


def how_judged(metrics: Mapping[str, Any]) -> str:
    """Which cells the scores are of, in one sentence or two."""
    n = metrics["cells"]
    text = f"{n['judged']:,} cells are judged"
    text += f", drawn at random from {n['given']:,}" if n["sampled_out"] else ""
    if metrics["labels"] is not None:
        text += f"; {n['labelled']:,} of them have a type in column {metrics['labels']!r}"
        text += (
            f", and {n['unlabelled']:,} have none and are left out of what is scored by type" if n["unlabelled"] else ""
        )
    text += "."
    text += f" {n['empty']:,} cells without an open peak that the model knows are left out." if n["empty"] else ""
    if n.get("trained"):
        text += (
            f" {n['trained']:,} of the judged cells trained the model: an embedding is wanted of the very cells it is fitted to, "
            "and labels are never used in training. The baselines, too, see all of these cells and no label."
        )
    return text


def _opening(metrics: Mapping[str, Any]) -> list[str]:
    said = metrics.get("verdict")
    lines = [said["sentence"]] if said else []
    if not said:
        why = "no baseline was run" if not metrics["baselines"] else "there is no score in common"
        lines.append(f"{metrics['system']} is not compared: {why}.")
    elif said["score"] == "ari":
        lines.append(
            "Ahead: its ARI is higher in each of ten subsamples of 90 % of the cells; behind: lower in each; level: neither. This "
            "speaks of these cells and of the clustering, not of other donors or another seed of the training."
        )
    return [*lines, *confounder_sentences(metrics), how_judged(metrics)]


def _score_section(metrics: Mapping[str, Any], order: Sequence[str]) -> Section:
    scores = metrics["embeddings"]
    columns = [c for c in _COLUMNS if any(not np.isnan(_value(scores[n], c)) for n in order)]
    frame = pd.DataFrame(
        {NAMES[c]: [_value(scores[n], c) for n in order] for c in columns}, index=pd.Index(order, name="method")
    )
    best: dict[str, Literal["min", "max"]] = {NAMES[c]: "max" if BETTER[c] else "min" for c in columns if c in BETTER}
    items: list[Table | Figure] = [Table("All methods", frame, best=best if len(order) > 1 else {})]
    for score in ("ari", "mi_depth"):
        if score in columns and len(order) > 1:
            items.append(draw.score_bars(scores, order, score, NAMES[score], order[0]))
    items += draw.by_resolution(metrics.get("curves", {}), order, metrics["resolutions"])
    return Section("Scores", _SCORES, tuple(items))


def _type_section(metrics: Mapping[str, Any], types: Mapping[str, Any], shown: Sequence[str]) -> Section:
    """A row a type: its cells, and how well the cluster that matches it best holds them."""
    first = types[shown[0]]
    frame = pd.DataFrame({"cells": {t: of["cells"] for t, of in first.items()}})
    for name in shown:
        for score, label in (("f1", "F1"), ("jaccard", "Jaccard"), ("f1_best", "best F1")):
            if any(score in of for of in types[name].values()):
                frame[f"{label}, {name}"] = [types[name][t].get(score) for t in frame.index]
    frame.index.name = "cell type"
    text = (
        "Of each type, the cluster that matches it best at the resolution of the scores above: F1 is the harmonic mean of the share "
        "of the cluster that is of the type and the share of the type that is in the cluster. A rare type that no cluster holds "
        "hardly moves ARI, but has an F1 near 0 here. Best F1: at the resolution of the grid that is best for the type."
    )
    return Section(
        "Cell types", text, (Table("Cell types, the rarest first", frame.sort_values("cells", kind="stable")),)
    )


def _confounder_section(metrics: Mapping[str, Any], drawings: EmbeddingDrawings, order: Sequence[str]) -> Section:
    model = metrics["system"]
    figures = draw.information_bars(metrics.get("information", {}).get(model, {}), model)
    figures += draw.mixing_histogram(drawings.mixing, order, metrics.get("neighbours", 50))
    return Section("Depth and batch", "", tuple(figures))


def _imputation_section(metrics: Mapping[str, Any]) -> Section:
    found = metrics["imputation"]
    frame = pd.DataFrame({"Dice": found["dice"]})
    frame.index.name = "calls"
    text = (
        "The simulation knows which regions are open in the bulk profile of each cell type. Dice, 2 TP / (2 TP + FP + FN), of the "
        f"peaks called open in a cell against those of its type, mean over {found['cells']:,} cells. Imputed: decoded at the "
        "same depth and batch for all cells. "
        f"{found['words']}"
    )
    return Section("Imputation", text, (Table("Open peaks called, against bulk", frame, best={"Dice": "max"}),))


def _headline(metrics: Mapping[str, Any], scores: Mapping[str, Any], model: str, best: str | None) -> Summary:
    lines: list[tuple[str, Number | str | None]] = []
    for score in ("ari", "nmi", "mi_depth", "mi_batch"):
        for name in (model, *([best] if best else [])):
            if not np.isnan(found := _value(scores[name], score)):
                lines.append((f"{NAMES[score]}: {name}" + ("" if name == model else " (best baseline)"), found))
    lines.append(("cells judged", metrics["cells"]["judged"]))
    return lines


def _value(scores: Mapping[str, Any], name: str, missing: float = float("nan")) -> float:
    found = scores.get(name)
    return missing if found is None or np.isnan(found) else float(found)
