"""The pages about a translator: how it was fitted, and how well it predicts held-out cells, against baselines, in words."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from expresser.plots import curve_axes, svg
from expresser.readable import Number, format_number
from expresser.report import Figure, Section, Table, write_report
from translate.drawings import Drawings
from translate.leaving_out import GROUPS
from translate.page_alignment import alignment_section
from translate.page_figures import value_maps
from translate.page_sections import (
    colour_of,
    direction_section,
    doubts_section,
    pretrained_section,
    profile_section,
    too_few,
)
from translate.verdicts import (
    DECIDING,
    MODALITIES,
    Verdict,
    heading,
    in_training_sentence,
    score_name,
    summary_sentences,
    target,
    value,
    verdicts,
)

Components = Mapping[str, Mapping[str, Float32[np.ndarray, "cells components"]]]
Summary = Sequence[tuple[str, Number | str | None]]


def fit_page(
    path: str | Path,
    *,
    title: str,
    log: Sequence[Mapping[str, Any]],
    facts: Mapping[str, Number | str | None],
    provenance: Mapping[str, Any],
    text: str = "",
    doubts: Sequence[str] = (),
    pretrained: Sequence[str] = (),
    evaluated: tuple[Summary, Sequence[Section]] = ((), ()),
) -> Path:
    """Write the page of a fit: what was trained on what (`facts`, in their order), losses by epoch, where it comes from.

    log: entries as the training engine writes them to `log.jsonl`, one an epoch: phase, epochs (done, over all phases),
    train and valid ({term: mean}), best, seconds, cells_per_s. text: paragraphs, such as how the system differs from its
    paper. doubts: what seemed odd about the data. pretrained: sentences on what was taken from a pretrained model. evaluated:
    what `evaluation_sections` returned, shown before the training.
    """
    sections = [*doubts_section(doubts), *evaluated[1], *([Section("The system", text)] if text else [])]
    sections += pretrained_section(pretrained)
    phases = list(dict.fromkeys(entry["phase"] for entry in log))
    for phase in phases:
        entries = [entry for entry in log if entry["phase"] == phase]
        best = [entry["epochs"] for entry in entries if entry.get("best")]
        words = f"{len(entries)} epochs in {format_number(sum(e['seconds'] for e in entries) / 60)} minutes."
        words += f" The loss that is watched was lowest in epoch {best[-1]}." if best else ""
        sections.append(Section(f"Phase: {phase}", words, tuple(_losses(entries))))
    if not log:
        sections.append(Section("Training", "No epoch was run."))
    speed = [float(entry["cells_per_s"]) for entry in log if entry.get("cells_per_s")]
    more = [("epochs", len(log)), ("minutes of training", sum(float(e["seconds"]) for e in log) / 60)]
    summary: list[tuple[str, Number | str | None]] = [*evaluated[0], *facts.items(), *more]
    summary += [("cells/s", float(np.median(speed)))] if speed else []
    return write_report(path, title=title, summary=summary, sections=sections, provenance=provenance)


def evaluation_page(
    path: str | Path,
    metrics: Mapping[str, Any],
    drawings: Drawings,
    provenance: Mapping[str, Any],
    *,
    components: Components | None = None,
    title: str = "Translation of held-out cells",
    maps: bool = True,
    most_cells: int = 3000,
    seed: int = 0,
) -> Path:
    """Write the page of an evaluation; the arguments are those of `evaluation_sections`. Doubts (of `metrics`) come first."""
    summary, sections = evaluation_sections(
        metrics, drawings, components=components, maps=maps, most_cells=most_cells, seed=seed
    )
    sections = [*doubts_section(metrics.get("doubts", ())), *sections]
    return write_report(path, title=title, summary=summary, sections=sections, provenance=provenance)


def evaluation_sections(
    metrics: Mapping[str, Any],
    drawings: Drawings,
    *,
    components: Components | None = None,
    maps: bool = True,
    most_cells: int = 3000,
    seed: int = 0,
) -> tuple[Summary, list[Section]]:
    """The answer at a glance, and the sections, of what `translate.evaluate` returned.

    components: direction -> {"measured": …, a method: …} -> principal components of the test cells
    (`translate.maps.principal_scores`), each drawn as a UMAP. maps=False draws none. most_cells: of a map, drawn at random.
    Methods that are neither named in metrics["baselines"] nor begin with "oracle" are the models, and come first.
    """
    methods = metrics["methods"]
    oracles = [name for name in methods if name.startswith("oracle")]
    models = [name for name in methods if name not in metrics["baselines"] and name not in oracles]
    if metrics.get("unpaired"):
        scored = [d for d in metrics["directions"] if any(d in of for of in methods.values())]
        left = [heading(d) for d in metrics["directions"] if d not in scored]
        missing = [f"Types' profiles were not compared, {' and '.join(left)}: see Not run."] if left else []
        sections = [Section("Result", "\n\n".join([metrics["unpaired"], *missing]))]
        sections += [profile_section(metrics, direction) for direction in scored]
        sections += [*alignment_section(metrics, drawings, models, maps, most_cells, seed), *_not_run(metrics)]
        return _headline(metrics, {}, models), sections
    found = {
        model: {d: verdicts(metrics, drawings.pictures, d, model) for d in metrics["directions"] if d in methods[model]}
        for model in models
    }
    colour = colour_of(drawings.obs, metrics.get("labels"))
    opening = [line for model in models for line in summary_sentences(found[model], model)] or [
        "No model was examined."
    ]
    if any(said for by_direction in found.values() for said in by_direction.values()):
        opening.append(_rule(metrics["directions"]))
    if metrics.get("in_training"):
        opening.insert(0, in_training_sentence(metrics))
    sections = [Section("Result", "\n\n".join(opening))]
    for direction in metrics["directions"]:
        said = [verdict for model in models for verdict in found[model].get(direction, [])]
        shown = (components or {}).get(direction, {}) if maps else {}
        sections.append(direction_section(metrics, drawings, direction, models, oracles, said))
        figures = value_maps(shown, direction, colour, most=most_cells, seed=seed)
        if shown:
            text = "" if figures else too_few(drawings.obs)
            sections.append(Section(f"{heading(direction)}: maps of cells", text, tuple(figures)))
    sections += [*alignment_section(metrics, drawings, models, maps, most_cells, seed), *_not_run(metrics)]
    return _headline(metrics, found, models), sections


def _not_run(metrics: Mapping[str, Any]) -> list[Section]:
    """What was left out, and why."""
    not_run = dict(metrics.get("skipped") or {}) | dict((metrics.get("alignment") or {}).get("skipped") or {})
    if metrics.get("labels_skipped"):
        not_run["scores of cell types"] = metrics["labels_skipped"]
    if not not_run:
        return []
    frame = pd.DataFrame({"why": not_run})
    frame.index.name = "what"
    return [Section("Not run", "", (Table("What was not run", frame),))]


def _losses(entries: Sequence[Mapping[str, Any]]) -> list[Figure]:
    """Training and validation loss, and the validation terms, by epoch."""
    rows = []
    for entry in entries:
        row = {"epoch": entry["epochs"]}
        row |= {f"train {k}" if k != "loss" else "training": v for k, v in entry["train"].items()}
        row |= {f"valid {k}" if k != "loss" else "validation": v for k, v in entry["valid"].items()}
        rows.append(row)
    frame = pd.DataFrame(rows)
    phase = entries[0]["phase"]
    figures: list[Figure] = []
    for name, columns in (
        ("loss", [c for c in ("training", "validation") if c in frame]),
        ("training terms", [c for c in frame if c.startswith("train ")]),
        ("validation terms", [c for c in frame if c.startswith("valid ")]),
    ):
        if not columns or (name != "loss" and len(columns) < 2 and len(figures) > 0):
            continue
        drawing = svg(partial(curve_axes, frame=frame, x="epoch", y=columns, xlabel="epoch", ylabel="loss"))
        figures.append(Figure(f"{phase}: {name}", drawing, data=frame[["epoch", *columns]]))
    return figures


def _rule(directions: Sequence[str]) -> str:
    """What it means to beat a baseline, for the modalities at hand."""
    parts = []
    for to in dict.fromkeys(map(target, directions)):
        first, *others = (score_name(score) for score, _, _ in DECIDING[to])
        parts.append(f"{MODALITIES[to]}: {first}" + (f", unless {others[0]} says the opposite" if others else ""))
    return (
        "A model beats a baseline, or is behind it, where the 95 % interval of the difference leaves out 0; else they are "
        f"on a par. {'; '.join(parts)}. An interval says how the mean over all features would move with other test cells "
        f"like these (from the scores without each of {GROUPS} groups of cells: a jackknife). It does not speak of another "
        "split, another donor, or another seed of the training."
    )


def _headline(
    metrics: Mapping[str, Any], found: Mapping[str, Mapping[str, Sequence[Verdict]]], models: Sequence[str]
) -> list[tuple[str, Number | str | None]]:
    lines: list[tuple[str, Number | str | None]] = []
    for model, by_direction in found.items():
        for direction, said in by_direction.items():
            lead = DECIDING[target(direction)][0][0]
            name = f"{heading(direction)}, {score_name(lead)}"
            lines.append((f"{name}: {model}", value(metrics["methods"][model][direction], lead)))
            if said:
                best = said[0].baseline
                lines.append((f"{name}: best baseline, {best}", value(metrics["methods"][best][direction], lead)))
    every = [verdict for by_direction in found.values() for said in by_direction.values() for verdict in said]
    if every:
        lines.append(("baselines beaten", f"{sum(v.said == 'beats' for v in every)} of {len(every)}"))
    lines += _headline_of_alignment(metrics, models)
    if "cells" in metrics:
        lines.append(("test cells", metrics["cells"]["test"]))
    return lines


def _headline_of_alignment(metrics: Mapping[str, Any], models: Sequence[str]) -> list[tuple[str, Number | str | None]]:
    """Of unpaired cells, what stands for the whole: types' profiles, and labels carried over."""
    if not metrics.get("unpaired"):
        return []
    lines: list[tuple[str, Number | str | None]] = []
    for model in models:
        for direction, scores in metrics["methods"].get(model, {}).items():
            lines.append(
                (
                    f"{heading(direction)}, {score_name('pseudobulk_type_pearson')}: {model}",
                    scores["pseudobulk_type_pearson"],
                )
            )
        for space, scores in ((metrics.get("alignment") or {}).get("methods", {})).get(model, {}).items():
            for key in ("mixing", "transfer_rna_to_atac", "transfer_atac_to_rna"):
                if key in scores:
                    lines.append((f"latent of {MODALITIES[space]}, {score_name(key)}: {model}", scores[key]))
    return lines
