"""The page about an annotation run: what the scores say in words, the table, which types are told apart, how it was measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from expresser.plots import bar_axes, heatmap_axes, svg
from expresser.report import Figure, Section, Table, write_report
from finetune.annotation.scores import SCORES

_MOST_TYPES = 30  # of a confusion matrix and of bars: more names than that are not read

NAMES = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}


@dataclass(frozen=True, eq=False)
class Drawings:
    """What the figures need beside the metrics: cells by true and named type, of all folds, for each method."""

    confusion: dict[str, np.ndarray]


def write_page(path: Path, metrics: Mapping[str, Any], drawings: Drawings, provenance: Mapping[str, Any]) -> Path:
    """Write `report.html`."""
    found = metrics["embeddings"]
    order = sorted(found, key=lambda name: -_finite(found[name][SCORES[0]]))
    model = next((name for name in order if found[name]["kind"] in ("model", "trained")), None)
    baseline = next(name for name in order if found[name]["kind"] == "baseline")
    shown = [name for name in (model, baseline) if name is not None]
    sections = [
        Section("Result", "\n\n".join(sentences(metrics)), (_table(metrics, order), *_comparisons(metrics))),
        Section("Types", _types_text(metrics, shown), tuple(_figures(metrics, drawings, shown))),
        Section("How it was measured", "\n\n".join(method(metrics))),
        Section("Methods", "", (_about(metrics, order),)),
    ]
    lead = NAMES[SCORES[0]]
    summary: list[tuple[str, float | int | str | None]] = []
    if model is not None:
        summary.append((f"{model}, {lead}", float(found[model][SCORES[0]])))
    summary.append((f"best baseline, {baseline}, {lead}", float(found[baseline][SCORES[0]])))
    summary += [("cells", metrics["n_cells"]), ("types", metrics["n_types"])]
    held = "random cells" if metrics["split"] == "random" else f"{metrics['group']} ({metrics['groups']})"
    summary.append(("held out", held))
    return write_report(
        path, title=f"Annotation: {metrics['data']}", summary=summary, sections=sections, provenance=provenance
    )


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """The result in words: how far it can be trusted, each model against each baseline, what training its blocks added."""
    said = []
    if metrics["split"] == "random":
        said.append(
            "No donor column was given: folds are random cells of each type, so cells of a donor are on both sides, and "
            "these scores say nothing of cells of a new donor, where all methods usually do worse."
        )
    for name, source in metrics["seen_in_pretraining"].items():
        if source is not None:
            said.append(
                f"{name} was pretrained on a source called {source!r} too: it has probably seen these cells, though "
                "never their labels. Cells of another study would show more."
            )
    found = metrics["embeddings"]
    if not any(entry["kind"] in ("model", "trained") for entry in found.values()):
        best = max(found, key=lambda name: _finite(found[name][SCORES[0]]))
        return [
            *said,
            f"No model was examined. The best method by {NAMES[SCORES[0]]} is {best} ({_with(found[best])}).",
        ]
    ours = dict.fromkeys(entry["model"] for entry in metrics["comparisons"])
    for name in ours:
        against = [entry for entry in metrics["comparisons"] if entry["model"] == name]
        parts = []
        for verdict, verb in (
            ("better", "is better than"),
            ("no difference shown", "is not shown to differ from"),
            ("worse", "is worse than"),
        ):
            names = [entry["baseline"] for entry in against if entry["verdict"] == verdict]
            if names:
                parts.append(f"{verb} {_list(names)}")
        said.append(f"{name} ({NAMES[SCORES[0]]} {_with(found[name])}) {'; it '.join(parts)}.")
    for entry in metrics["trained_against_frozen"]:
        epochs = [fold.get("epochs", 0) for fold in found[entry["model"]]["folds"]]
        verb = {"better": "is better than", "worse": "is worse than"}.get(
            entry["verdict"], "is not shown to differ from"
        )
        said.append(
            f"{entry['model']} {verb} {entry['baseline']} with its weights as they are: {_difference(entry)}. Epochs that the "
            f"cells held out for choosing asked for, by fold: {', '.join(map(str, epochs))}."
        )
    said.append(
        f"By {NAMES[SCORES[0]]}; better and worse mean p < 0.05 in a test on the same folds, adjusted for the number of "
        "comparisons. With few folds only large differences can be shown."
    )
    return said


def method(metrics: Mapping[str, Any]) -> list[str]:
    """How it was measured, in paragraphs."""
    left, n = metrics["left_out"], metrics["n_cells"]
    if metrics["split"] == "random":
        split = f"Cells of each type were dealt at random into {metrics['folds']} folds"
    else:
        split = (
            f"The {metrics['groups']} values of {metrics['group']!r} were dealt whole into {metrics['folds']} folds, as even in "
            "types as whole donors allow; no donor is on both sides"
        )
        if metrics["folds"] < metrics["folds_asked"]:
            split += f" ({metrics['folds_asked']} folds were asked for, which so few donors do not fill)"
    split += f", {metrics['repeats']} time{'s' if metrics['repeats'] > 1 else ''}. All methods had the same folds."
    if metrics["unseen"]:
        total = sum(metrics["unseen"].values())
        split += (
            f" {total} cells were in no test part, as their type was not among the training cells of their fold: "
            f"{_counts(metrics['unseen'])}."
        )
    reasons = {
        "no_label": "without a label",
        "no_group": "without a donor",
        "few_genes": "with too few genes",
        "not_sampled": "beyond the number asked for",
    }
    out = [f"{left[key]:,} cells {words}" for key, words in reasons.items() if left[key]]
    kept = f"{n:,} cells of {metrics['n_types']} types were judged. Left out: {', '.join(out) or 'no cell'}."
    if left["few_cells"]:
        kept += f" Types with too few cells were left out: {_counts(left['few_cells'])}."
    if left["one_group"]:
        kept += (
            f" Types of one donor only cannot be judged with donors held out and were left out: "
            f"{_counts(left['one_group'])}."
        )
    return [
        kept,
        split,
        "The classifier is multinomial logistic regression on features standardised over the training cells, with the L2 "
        "penalty of least log-loss in a cross-validation inside the training cells (by donor where there are donors). "
        "Principal components and the choice of genes are fitted to the training cells alone. Embeddings are a function of "
        "each cell and were computed once. Where blocks were trained, a fifth of the training cells (whole donors) chose the "
        "number of epochs, and the model was then trained that long on all training cells from the logistic solution; zero "
        "epochs is the frozen model.",
        "Accuracy is the share of cells named rightly; balanced accuracy the mean over types of the share of their cells; "
        "macro F1 the mean over types of 2 tp / (2 tp + fp + fn), over types that are in the fold's test part. Intervals are "
        "95 % of the mean over folds, with the variance corrected for training sets that overlap (Nadeau & Bengio, 2003). "
        "F1 by type and the confusion matrices are of all folds together.",
    ]


def _table(metrics: Mapping[str, Any], order: list[str]) -> Table:
    found = metrics["embeddings"]
    frame = pd.DataFrame(index=pd.Index(order, name="method"))
    for score in SCORES:
        frame[NAMES[score]] = [float(_finite(found[name][score], np.nan)) for name in order]
        frame[f"{NAMES[score]}, 95 %"] = [
            f"{_finite(found[name][f'{score}_lo'], np.nan):.3f} to {_finite(found[name][f'{score}_hi'], np.nan):.3f}"
            for name in order
        ]
    frame["features"] = [found[name]["dim"] for name in order]
    frame["seconds"] = [float(found[name]["seconds"]) for name in order]
    caption = "Means over folds. Seconds: embedding, and fitting in all folds."
    return Table("All methods", frame, caption, {NAMES[score]: "max" for score in SCORES})


def _comparisons(metrics: Mapping[str, Any]) -> list[Table]:
    entries = [*metrics["comparisons"], *metrics["trained_against_frozen"]]
    if not entries:
        return []
    lead = SCORES[0]
    frame = pd.DataFrame(
        {
            "model": [e["model"] for e in entries],
            "against": [e["baseline"] for e in entries],
            f"difference in {NAMES[lead]}": [e[f"{lead}_difference"] for e in entries],
            "95 %": [f"{e[f'{lead}_lo']:+.3f} to {e[f'{lead}_hi']:+.3f}" for e in entries],
            "p adjusted": [e["p_adjusted"] for e in entries],
            "verdict": [e["verdict"] for e in entries],
        }
    )
    return [Table("Model against baseline", frame, "On the same folds; positive: the model is better.")]


def _types_text(metrics: Mapping[str, Any], shown: list[str]) -> str:
    many = metrics["n_types"] > _MOST_TYPES
    text = f"{' and '.join(shown)}: " + (
        "the best row of a model and the best baseline." if len(shown) > 1 else "the best."
    )
    return text + (
        f" Figures show the {_MOST_TYPES} types that {shown[0]} names worst; their data hold all." if many else ""
    )


def _figures(metrics: Mapping[str, Any], drawings: Drawings, shown: list[str]) -> list[Figure | Table]:
    types = list(metrics["types"])
    f1 = {name: pd.Series(metrics["per_class_f1"][name], dtype=float) for name in metrics["per_class_f1"]}
    worst = f1[shown[0]].sort_values(kind="stable").index[:_MOST_TYPES].tolist()
    chosen = [name for name in types if name in set(worst)]
    items: list[Figure | Table] = []
    side = 1.6 + 0.24 * len(chosen)
    for name in shown:
        table = pd.DataFrame(drawings.confusion[name], index=types, columns=types)
        table.index.name, table.columns.name = "true type", "named"
        share = table.div(table.sum(axis=1).replace(0, np.nan), axis=0)
        draw = partial(heatmap_axes, frame=share.loc[chosen, chosen], label="share of the true type")
        caption = "Rows sum to 1" + (" over all types." if len(chosen) < len(types) else ".")
        items.append(Figure(f"{name}: what cells are called", svg(draw, (side + 2.0, side)), caption, share))
    for name in shown:
        values = f1[name][worst].rename("F1")

        def bars(ax: Axes, values: pd.Series = values) -> Axes:
            return bar_axes(ax, values, xlabel="F1")

        size = (5.2, 0.8 + 0.26 * len(values))
        items.append(Figure(f"{name}: F1 by type", svg(bars, size), "All folds together.", f1[name].to_frame("F1")))
    items.append(_mistakes(drawings.confusion[shown[0]], types, shown[0]))
    frame = pd.DataFrame(f1)
    frame.insert(0, "cells", pd.Series(metrics["types"]))
    frame.index.name = "type"
    items.append(Table("F1 by type, all methods", frame, "All folds together."))
    return items


def _mistakes(confusion: np.ndarray, types: list[str], name: str) -> Table:
    off = confusion - np.diag(np.diag(confusion))
    order = np.argsort(-off, axis=None, kind="stable")[:15]
    true, named = np.unravel_index(order, off.shape)
    keep = off[true, named] > 0
    frame = pd.DataFrame(
        {
            "true type": [types[i] for i in true[keep]],
            "named": [types[j] for j in named[keep]],
            "cells": off[true, named][keep],
            "share of the type": off[true, named][keep] / confusion.sum(1)[true[keep]],
        }
    )
    return Table(f"{name}: the commonest mistakes", frame)


def _about(metrics: Mapping[str, Any], order: list[str]) -> Table:
    frame = pd.DataFrame({"what": [metrics["embeddings"][name]["about"] for name in order]}, index=order)
    frame.index.name = "method"
    return Table("What each method is", frame)


def _with(entry: Mapping[str, Any]) -> str:
    lead = SCORES[0]
    return f"{entry[lead]:.3f}, 95 % {_finite(entry[f'{lead}_lo'], np.nan):.3f} to {_finite(entry[f'{lead}_hi'], np.nan):.3f}"


def _difference(entry: Mapping[str, Any]) -> str:
    lead = SCORES[0]
    return f"{entry[f'{lead}_difference']:+.3f} ({entry[f'{lead}_lo']:+.3f} to {entry[f'{lead}_hi']:+.3f}) in {NAMES[lead]}"


def _counts(types: Mapping[str, int]) -> str:
    return ", ".join(f"{name} ({n})" for name, n in types.items())


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _finite(value: float | None, otherwise: float = -np.inf) -> float:
    return otherwise if value is None or not np.isfinite(value) else float(value)
