"""The sections of an evaluation's page: one for each direction, in words, tables and figures."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from expresser.report import Section, Table
from translate import page_figures as draw
from translate.drawings import Drawings, Picture
from translate.maps import FEWEST
from translate.verdicts import (
    DECIDING,
    FEATURES,
    MODALITIES,
    Verdict,
    heading,
    interval_text,
    score_name,
    target,
    value,
)

Direction = Literal["min", "max"]

_PROFILES = ("pseudobulk_pearson", "pseudobulk_type_pearson")
_COLUMNS = {
    "rna": (
        "pearson_gene",
        "pearson_gene_median",
        "pearson_cell",
        "pearson_flat",
        "mae",
        "rmse",
        *_PROFILES,
        "marker_auroc",
        "de_auprc",
        "de_auprc_chance",
    ),
    "atac": (
        "auroc_peak",
        "auprnorm_peak",
        "auroc_cell",
        "auroc_flat",
        "auprc_flat",
        "ece",
        "mean_ratio",
        "spread",
        *_PROFILES,
    ),
    "protein": ("pearson_protein", "pearson_protein_median", "pearson_cell", "pearson_flat", "mae", "rmse", *_PROFILES),
}
_LEAST = ("mae", "rmse", "ece")  # the lower the better
_NEITHER = ("mean_ratio", "spread", "de_auprc_chance")  # best is neither the highest nor the lowest
_LABELS = ("cell_type", "celltype", "cell_types", "annotation", "leiden", "louvain")

_MEASURED = {
    "rna": """
Predicted and measured expression are ln(1 + size-normalised count). r by gene is the mean, over genes, of the correlation
over cells inside a gene: does the method know in which cells a gene is high? A gene that varies and is predicted by one
number counts as 0; genes that do not vary in the test cells have none. r over all entries is mostly that some genes are
high everywhere, which the training mean knows too. Where cell types are known, AUPR of differential genes is the mean, over
types, of how well genes that are higher in the type (in measured cells) come first when genes are ranked by how much higher
they are predicted to be there; the column after it is what any order gets.
""",
    "atac": """
A prediction is compared with whether any fragment was counted. AUROC by peak is the mean, over peaks, of the chance that
an open cell scores higher than a closed one: does the method know in which cells a peak is open? 0.5 is chance. AUPRnorm
by peak is (average precision - share open) / (1 - share open), 0 at chance; where few cells are open, even a guess that
differs between cells is a little above 0. Over all entries the easy part dominates: some
peaks are open everywhere, and the training mean knows it. The calibration error, predicted / observed (the mean
probability over the share open: 1 is right in the large) and the spread are of probabilities; the spread is the standard
deviation over cells, averaged over peaks.
""",
    "protein": """
Predicted and measured values are centred log-ratios of counts + 1. r by protein is the mean, over proteins, of the
correlation over cells inside a protein. r over all entries is mostly that some proteins are high everywhere.
""",
}


def direction_section(
    metrics: Mapping[str, Any],
    drawings: Drawings,
    direction: str,
    models: Sequence[str],
    oracles: Sequence[str],
    said: Sequence[Verdict],
) -> Section:
    """What was found in one direction: in words, the table, the figures."""
    methods, to = metrics["methods"], target(direction)
    lead = DECIDING[to][0][0]
    there = [name for name in methods if direction in methods[name]]
    ranked = sorted(there, key=lambda name: -value(methods[name][direction], lead, missing=-np.inf))
    order = [n for n in ranked if n in models] + [n for n in ranked if n not in models and n not in oracles]
    tables = [_table(metrics, order, direction, f"{heading(direction)}: all methods", said)]
    if ceiling := [name for name in ranked if name in oracles]:
        tables.append(_table(metrics, ceiling, direction, "What the truth itself would score", ()))
    # The model, what it is up against, and what is possible: more lines than that cannot be told apart.
    has = {n: drawings.pictures[n][direction] for n in there if direction in drawings.pictures.get(n, {})}
    first, others = [n for n in order if n in models][:2], [n for n in order if n not in models]
    pictures = {n: has[n] for n in (*first, *others[:1], *ceiling[:1]) if n in has}
    figures = [draw.bars(methods, [*order, *ceiling], direction, models)]
    figures += draw.by_feature(pictures, direction, drawings.features[direction])
    figures += draw.density(pictures, {name: methods[name][direction] for name in pictures}, direction)
    words = [verdict.sentence() for verdict in said]
    if to == "atac":
        share = next((float(picture.pseudobulk[0].mean(dtype=np.float64)) for picture in pictures.values()), None)
        figures += draw.rates(pictures, share)
        likely = [n for n in others if n in has and has[n].calibration is not None]
        pictures = {n: has[n] for n in (*first, *likely[:1], *ceiling[:1]) if n in has}
        figures += [*draw.calibration(pictures), *draw.collapse(pictures)]
        ranked_by_rate = {n: has[n] for n in (*first, *others[:1], *ceiling[:1]) if n in has}
        figures += draw.by_base_rate(ranked_by_rate)
        words += [*_collapse_sentences(pictures), *_base_rate_sentences(methods, [*first, *others[:1]], direction)]
    tables += [_markers(name, has[name].markers) for name in first if name in has and has[name].markers is not None]
    return Section(heading(direction), "\n\n".join([*words, _MEASURED[to]]), (*tables, *figures))


def _table(
    metrics: Mapping[str, Any], order: Sequence[str], direction: str, title: str, said: Sequence[Verdict]
) -> Table:
    """A row a method, the columns that any of them has."""
    rows = {name: metrics["methods"][name][direction] for name in order}
    columns = [c for c in _COLUMNS[target(direction)] if any(c in scores for scores in rows.values())]
    frame = pd.DataFrame({score_name(c): [value(rows[n], c) for n in order] for c in columns}, index=pd.Index(order))
    if len({verdict.model for verdict in said}) == 1:
        notes = {verdict.baseline: verdict for verdict in said}
        frame.insert(0, "model", [notes[name].said if name in notes else "" for name in order])
        gaps = [notes[name].intervals[0] if name in notes else None for name in order]
        frame.insert(1, "model's lead", ["" if gap is None else interval_text(gap) for gap in gaps])
    if any("seconds" in scores for scores in rows.values()):
        frame["seconds"] = [value(rows[name], "seconds") for name in order]
    frame.index.name = "method"
    best: dict[str, Direction] = {score_name(c): "min" if c in _LEAST else "max" for c in columns if c not in _NEITHER}
    first = rows[order[0]] if order else {}
    caption = ""
    if first:
        of = FEATURES[target(direction)]
        number = int(value(first, f"n_{of}", missing=0.0))
        caption = f"{int(value(first, 'n_cells', missing=0.0)):,} test cells, {number:,} {of}"
        undefined = value(first, f"{of}_undefined")
        caption += "" if np.isnan(undefined) else f", {int(undefined):,} of them without a score of their own"
        caption += ". A dash: undefined" + (", or not a probability." if of == "peaks" else ".")
        if "model" in frame:
            caption += (
                " Model: what it is to the method; its lead is the 95 % interval of the difference in "
                f"{score_name(DECIDING[target(direction)][0][0])}."
            )
    return Table(title, frame, caption, best if len(order) > 1 else {})


def _markers(name: str, markers: pd.DataFrame) -> Table:
    """How well predicted and measured values of each cell type's markers tell its cells."""
    groups = markers.groupby("label", observed=True)
    frame = groups[["auroc", "auroc_truth"]].mean()
    frame.insert(0, "markers", groups.size())
    frame = frame.rename(columns={"auroc": "AUROC, predicted", "auroc_truth": "AUROC, measured"})
    frame.index.name = "cell type"
    caption = "Mean over markers of the chance that a cell of the type is higher than another. Markers are by measured values."
    return Table(f"{name}: markers of each cell type", frame, caption)


def _collapse_sentences(pictures: Mapping[str, Picture]) -> list[str]:
    parts = {name: draw.spread_share(picture) for name, picture in pictures.items()}
    texts = [f"{np.median(share):.1%} for {name}" for name, share in parts.items() if share.size]
    if not texts:
        return []
    return [
        "Of the median peak, predictions vary between cells by this share of how much open and closed calls vary: "
        f"{', '.join(texts)}. A model that gives every cell the same answer has 0 %."
    ]


def _base_rate_sentences(methods: Mapping[str, Any], names: Sequence[str], direction: str) -> list[str]:
    """Median AUROC of rare and of common peaks, in words."""
    texts = []
    for name in names:
        rare, common = (value(methods[name][direction], f"auroc_peak_fifth_{i}") for i in (1, 5))
        if not np.isnan([rare, common]).any():
            texts.append(f"{rare:.3f} and {common:.3f} for {name}")
    if not texts:
        return []
    return [
        "The median AUROC of the fifth of peaks that is open in the fewest cells, and of that open in the most: "
        f"{', '.join(texts)}. A model that knows only common peaks is at 0.5 in the rest."
    ]


def doubts_section(doubts: Sequence[str]) -> list[Section]:
    """What was found odd about the data while it was read; no section where there was nothing."""
    if not doubts:
        return []
    return [Section("Doubts about the data", "\n\n".join(doubts))]


def pretrained_section(words: Sequence[str]) -> list[Section]:
    """What was taken from a pretrained model (`translate.bridge_words.taken_words`); no section where nothing was."""
    if not words:
        return []
    text = " ".join(
        [*words, "The fitted model holds all that it took: whoever uses it does not need the pretrained one."]
    )
    return [Section("Pretrained model", text)]


def profile_section(metrics: Mapping[str, Any], direction: str) -> Section:
    """Types' profiles in one direction that was scored, where no test cell was measured in both modalities."""
    methods, to = metrics["methods"], target(direction)
    order = [name for name in methods if direction in methods[name]]
    order.sort(key=lambda name: -value(methods[name][direction], "pseudobulk_type_pearson", missing=-np.inf))
    columns = [c for c in _COLUMNS[to] if any(c in methods[name][direction] for name in order)]
    frame = pd.DataFrame(
        {score_name(c): [value(methods[n][direction], c) for n in order] for c in columns}, index=order
    )
    frame.index.name = "method"
    first = methods[order[0]][direction]
    text = (
        f"{first['n_cells']:,} cells were translated, and {first['n_measured']:,} others were measured in {MODALITIES[to]}, of "
        f"{first['types']} types. r of type profiles is the mean, over types, of the correlation over {FEATURES[to]} of the type's "
        "predicted mean less the mean of all types with the same of measured cells: 1 is perfect, 0 is chance. "
        "oracle_type_means is what other cells of the same type give, measured: about the most that can be reached."
    )
    best: dict[str, Direction] = {score_name(c): "max" for c in columns if c != "de_auprc_chance"}
    return Section(heading(direction), text, (Table(f"{heading(direction)}: profiles of types", frame, best=best),))


def too_few(obs: pd.DataFrame) -> str:
    """Why there is no map."""
    return f"No map is drawn: {len(obs)} test cells are fewer than the {FEWEST} that a UMAP needs."


def colour_of(obs: pd.DataFrame, labels: str | None) -> pd.Series | None:
    """What cells are coloured by: the labels of the evaluation, else a column known by name, else nothing."""
    name = labels if labels in obs else next((c for c in _LABELS if c in obs), None)
    return None if name is None else obs[name].rename(str(name))
