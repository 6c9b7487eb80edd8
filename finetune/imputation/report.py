"""The page about an imputation run: who beats whom in words, the table, predictions against truth, r by gene."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from expresser.plots import bar_axes, curve_axes, density_scatter_axes, hist_axes, svg
from expresser.plots_numbers import hexagons, histogram
from expresser.report import Figure, Section, Table, write_report
from finetune.imputation.baselines import BASELINES
from finetune.imputation.checks_page import check_sections
from finetune.imputation.draws import Drawings
from finetune.imputation.verdicts import Direction, at_large, score_name, sentences

_DROPOUT = """
A share of {drop:.0%} of the non-zero entries of the count matrix over {n_genes:,} genes was set to zero at random
({n_entries:,} entries of {n_cells:,} cells; {seeds} draws). Library sizes were computed from what was left, so a
method sees nothing of what was hidden, and values are ln(1 + 10,000 count / total left in the cell) for truth and
predictions alike.

Every method knows that the entries asked for are not zero. Smoothers estimate the expected value with zeros and are
shown twice, as they are and "corrected": the expectation of a non-zero count at their rate. MAE rewards a median and
most hidden entries are single molecules, so a method that predicts their exact value wins there; read it together
with RMSE and Pearson r. Pearson r over all entries is mostly that some genes are high everywhere: r by gene (does the
method know in which cells a gene is high?) and by cell are means over genes and cells with at least ten hidden
entries.
"""

_MCV = """
Molecular cross-validation: each molecule went to the test part with probability 0.1, methods saw the rest ({seeds}
draws), and were judged at {n_entries:,} entries of {n_cells:,} cells, zeros included: the genes with the most
training molecules. Each estimate was mixed with the cell's own molecules at the weight that suits it best, found in
other cells; "weight" is the method's part, and no_denoising is the cell's own molecules alone. The Poisson loss is
the negative log-likelihood of the test molecules in nats an entry, less a constant. MSE is the error of the expected
ln(1 + 10,000 count / total) of the test part given the estimated rate; "MSE plain" takes the logarithm of the rate
itself, as is usual, which a part as shallow as this makes unfair to the truth. The test part is noisy: only
differences mean anything.

Predictors of non-zero values (additive, additive_svd, knn, expresser) do not say which zeros are real. Their values
are multiplied with the chance of a non-zero at the gene's mean share and the cell's depth, and each gene is scaled to
its training total.
"""


def write_page(
    path: Path,
    metrics: Mapping[str, Any],
    drawings: Drawings,
    provenance: Mapping[str, Any],
    deciding: Mapping[str, Direction],
    model: str,
) -> Path:
    """Write `report.html` from the metrics and the first draw's entries."""
    methods = metrics["methods"]
    score, direction = next(iter(deciding.items()))
    order = sorted(methods, key=lambda name: methods[name][score] * (1 if direction == "min" else -1))
    baselines = [name for name in order if name != model]
    best = baselines[0] if baselines else None
    text = (_DROPOUT if metrics["protocol"] == "dropout" else _MCV).format(**metrics)
    shown = [name for name in (model, best) if name is not None and name in methods]
    sections = [
        Section(
            "Result",
            "\n\n".join(sentences(metrics, deciding, model, best)),
            (_table(metrics, order, deciding), *_differences(metrics, deciding)),
        ),
        *_drops(metrics, order, deciding, model),
        *check_sections(metrics, model),
        Section("How it was measured", text),
        Section(
            "Figures", _figure_text(metrics, shown), tuple(_figures(methods, order, shown, drawings, score, model))
        ),
        Section("Methods", "", (_about(order, metrics),)),
    ]
    return write_report(
        path,
        title=f"Imputation: {metrics['data']['name']}",
        summary=_headline(metrics, score, model, best),
        sections=sections,
        provenance=provenance,
    )


def _headline(
    metrics: Mapping[str, Any], score: str, model: str, best: str | None
) -> list[tuple[str, float | int | str | None]]:
    methods, verdict = metrics["methods"], metrics["verdict"]
    lines: list[tuple[str, float | int | str | None]] = []
    if model in methods:
        lines.append((f"{model}, {score_name(score)}", methods[model][score]))
    if best is not None:
        lines.append((f"best baseline, {best}, {score_name(score)}", methods[best][score]))
    if verdict:
        lines.append(("baselines beaten", f"{sum(s == 'beats' for s in verdict.values())} of {len(verdict)}"))
    return [*lines, ("cells", metrics["n_cells"]), ("entries asked", metrics["n_entries"]), ("draws", metrics["seeds"])]


def _table(metrics: Mapping[str, Any], order: list[str], deciding: Mapping[str, Direction]) -> Table:
    dropout = metrics["protocol"] == "dropout"
    columns = [*deciding, "mse_plain", "pearson", "pearson_gene", "weight"]
    if dropout:
        columns = ["mae", "rmse", "pearson", "pearson_gene", "pearson_cell"]
    methods = metrics["methods"]
    frame = pd.DataFrame({score_name(c): [float(methods[name][c]) for name in order] for c in columns}, index=order)
    lead = columns[0]
    frame.insert(1, f"{score_name(lead)} sd", [float(methods[name][f"{lead}_sd"]) for name in order])
    frame["seconds"] = [float(methods[name]["seconds"]) for name in order]
    for name in metrics["skipped"]:
        frame.loc[name] = np.nan
    notes = dict.fromkeys(metrics["skipped"], "not installed")
    notes |= {name: _NOTES[said] for name, said in metrics["verdict"].items()}
    frame.insert(0, "note", [notes.get(name, "") for name in frame.index])
    frame.index.name = "method"
    best: dict[str, Direction] = {
        score_name(c): "max" if c.startswith("pearson") else "min" for c in columns if c != "weight"
    }
    caption = (
        "Means over the draws; sd: standard deviation over the draws. A dash: undefined (a constant has no "
        "correlation) or not run. Note: how the method stands to the model."
    )
    return Table("All methods", frame, caption, best)


_NOTES = {"beats": "beaten", "on a par": "on a par", "behind": "ahead of the model", "undecided": "undecided"}


def _drops(
    metrics: Mapping[str, Any], order: list[str], deciding: Mapping[str, Direction], model: str
) -> list[Section]:
    """Scores against the share hidden, where there are several shares."""
    drops = metrics["drops"]
    if len(drops) < 2:
        return []
    items: list[Figure | Table] = []
    said = [
        f"With {_percent(share)} hidden: {at_large(of['verdict'], model)}"
        for share, of in drops.items()
        if of["verdict"]
    ]
    for score, way in deciding.items():
        frame = pd.DataFrame(
            {_percent(share): [float(of["methods"][name][score]) for name in order] for share, of in drops.items()},
            index=pd.Index(order, name="method"),
        )
        lines = frame.T.reset_index(drop=True)
        lines.insert(0, "hidden", [100 * float(share) for share in drops])
        lines = lines.sort_values("hidden")
        curves = partial(
            curve_axes,
            frame=lines,
            x="hidden",
            y=order,
            logy=way == "min",  # errors of smoothers as they are would press all others into one line
            xlabel="non-zero entries hidden, %",
            ylabel=score_name(score),
        )
        drawn = svg(curves, (5.2, 3.4 + 0.12 * len(order)))
        name = f"{score_name(score)} by share hidden"
        caption = (
            f"Means over {metrics['seeds']} draws at each share; what is hidden at one is hidden at every greater one."
        )
        items += [Figure(name, drawn, "", lines), Table(name, frame, caption, dict.fromkeys(frame.columns, way))]
    return [Section("More or less hidden", "\n\n".join(said), tuple(items))]


def _percent(share: str) -> str:
    return f"{100 * float(share):.3g} %"


def _differences(metrics: Mapping[str, Any], deciding: Mapping[str, Direction]) -> list[Table]:
    """The differences that decide, where there is a model."""
    rows = {}
    for name, of in metrics["differences"].items():
        row = {"the model": metrics["verdict"][name]}
        for score in deciding:
            found = of.get(score) or dict.fromkeys(("difference", "low", "high"))
            row |= {score_name(score): found["difference"]}
            row |= {f"{score_name(score)}, {end}": found[end] for end in ("low", "high")}
        rows[name] = row
    if not rows:
        return []
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "baseline"
    caption = (
        "The model's score less the baseline's, and its 95 % interval with other cells of the same kind: the jackknife over "
        "20 groups of cells, both methods in the same cells and entries."
    )
    return [Table("The model less each baseline", frame, caption)]


def _figure_text(metrics: Mapping[str, Any], shown: list[str]) -> str:
    return f"First draw. {' and '.join(shown)}: " + (
        "the model and the best baseline." if len(shown) > 1 else "the best method that was run."
    )


def _figures(
    methods: Mapping[str, Mapping[str, float]],
    order: list[str],
    shown: list[str],
    drawings: Drawings,
    score: str,
    model: str,
) -> list[Figure]:
    values = pd.Series({name: methods[name][score] for name in order}, name=score_name(score))
    spread = pd.Series({name: methods[name][f"{score}_sd"] for name in order})
    highlight = model if model in methods else None

    def bars(ax: Axes) -> Axes:
        return bar_axes(ax, values, low=values - spread, high=values + spread, highlight=highlight)

    height = 0.8 + 0.3 * len(order)
    caption = "Lines: one standard deviation over draws to either side."
    items = [Figure(f"{score_name(score)} of all methods", svg(bars, (5.2, height)), caption, values.to_frame())]
    for name in shown:
        if drawings.truth is None or name not in drawings.prediction:
            continue
        note = f"r = {methods[name]['pearson']:.3f}\nMAE = {methods[name]['mae']:.3f}"
        cloud = partial(
            density_scatter_axes,
            truth=drawings.truth,
            prediction=drawings.prediction[name],
            note=note,
            xlabel="hidden value",
            ylabel="predicted",
        )
        numbers = hexagons(drawings.truth, drawings.prediction[name], xlabel="hidden value")
        items.append(
            Figure(f"{name}: predicted against hidden", svg(cloud), "Each hexagon: number of entries.", numbers)
        )
    groups = {name: r[~np.isnan(r)] for name in shown if (r := drawings.by_gene[name]).size}
    groups = {name: r for name, r in groups.items() if r.size}
    if groups:

        def bars(ax: Axes) -> Axes:
            return hist_axes(ax, groups, bins=40, xlabel="Pearson r inside a gene", ylabel="genes")

        caption = "; ".join(f"{name}: median {np.median(r):.3f} of {len(r):,} genes" for name, r in groups.items())
        caption += ". Genes with fewer than ten entries have no r."
        items.append(Figure("Correlation by gene", svg(bars), caption, histogram(groups, bins=40)))
    return items


def _about(order: list[str], metrics: Mapping[str, Any]) -> Table:
    rows = {}
    for name in [*order, *metrics["skipped"]]:
        plain = name.removesuffix("_reference")
        base = plain.removesuffix("_corrected")
        words = BASELINES[base].about if base in BASELINES else _OTHER.get(base, "")
        if base == "gene_mean" and metrics["protocol"] == "mcv":
            words = "the gene's share of all molecules"
        words += ", as the expectation of a non-zero count" if plain != base else ""
        words += f", learnt with {metrics['reference']['cells']:,} further cells" if plain != name else ""
        words += f"; not run: {metrics['skipped'][name]}" if name in metrics["skipped"] else ""
        rows[name] = {"what": words}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "method"
    return Table("What each method is", frame)


_OTHER = {"expresser": "the model examined", "no_denoising": "the training molecules themselves"}
