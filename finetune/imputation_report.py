"""The page about an imputation run: who beats whom in words, the table, predictions against truth, r by gene."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64
from matplotlib.axes import Axes

from expresser.plots import bar_axes, density_scatter_axes, hist_axes, svg
from expresser.report import Figure, Section, Table, write_report
from finetune.imputation_baselines import BASELINES

Direction = Literal["min", "max"]

_POINTS = 100_000  # entries kept for the scatter: the density does not change beyond

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


@dataclass
class Drawings:
    """What the figures need, of the first draw alone: a sample of entries, and r by gene, of each method."""

    truth: Float64[np.ndarray, " points"] | None = None
    prediction: dict[str, Float32[np.ndarray, " points"]] = field(default_factory=dict)
    by_gene: dict[str, Float64[np.ndarray, " genes"]] = field(default_factory=dict)

    def keep(
        self,
        name: str,
        truth: np.ndarray | None,
        prediction: np.ndarray | None,
        by_gene: Float64[np.ndarray, " genes"],
    ) -> None:
        """Keep a method's first draw; later ones are ignored."""
        if name in self.by_gene:
            return
        self.by_gene[name] = by_gene
        if truth is not None and prediction is not None:
            step = max(1, -(-len(truth) // _POINTS))
            self.truth = truth[::step]
            self.prediction[name] = prediction[::step].astype(np.float32)


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
        Section("Result", "\n\n".join(sentences(metrics, deciding, model, best)), (_table(metrics, order, deciding),)),
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


def sentences(metrics: Mapping[str, Any], deciding: Mapping[str, Direction], model: str, best: str | None) -> list[str]:
    """In words: whether the model beats the baselines at large, and one sentence for each."""
    methods, verdict = metrics["methods"], metrics["verdict"]
    if model not in methods:
        lead = _name(next(iter(deciding)))
        return ["No model was examined." + (f" The best baseline by {lead} is {best}." if best else "")]
    if not verdict:
        return ["No baseline was run, so nothing can be said of the model."]
    beaten = [name for name, said in verdict.items() if said == "beaten"]
    if len(beaten) == len(verdict):
        first = f"{model} beats every one of the {len(verdict)} baselines, in every draw."
    else:
        others = [name for name in verdict if name not in beaten]
        first = (
            f"{model} does not beat all baselines: it beats {len(beaten)} of {len(verdict)}, "
            f"but not {', '.join(others)}."
        )
    scores = " and ".join(f"{'lower' if way == 'min' else 'higher'} {_name(s)}" for s, way in deciding.items())
    rule = f"Beaten means: {scores}, in every draw; not beaten: neither on average."
    return [f"{first} {rule}", *(_sentence(methods, deciding, model, name, said) for name, said in verdict.items())]


def _sentence(
    methods: Mapping[str, Mapping[str, float]],
    deciding: Mapping[str, Direction],
    model: str,
    other: str,
    said: str,
) -> str:
    verb = {"beaten": "beats", "mixed": "neither clearly beats nor loses to", "not beaten": "does not beat"}[said]
    pairs = [f"{_name(s)} {methods[model][s]:#.3g} against {methods[other][s]:#.3g}" for s in deciding]
    return f"{model} {verb} {other}: {', '.join(pairs)}."


def _headline(
    metrics: Mapping[str, Any], score: str, model: str, best: str | None
) -> list[tuple[str, float | int | str | None]]:
    methods, verdict = metrics["methods"], metrics["verdict"]
    lines: list[tuple[str, float | int | str | None]] = []
    if model in methods:
        lines.append((f"{model}, {_name(score)}", methods[model][score]))
    if best is not None:
        lines.append((f"best baseline, {best}, {_name(score)}", methods[best][score]))
    if verdict:
        lines.append(("baselines beaten", f"{sum(s == 'beaten' for s in verdict.values())} of {len(verdict)}"))
    return [*lines, ("cells", metrics["n_cells"]), ("entries asked", metrics["n_entries"]), ("draws", metrics["seeds"])]


def _table(metrics: Mapping[str, Any], order: list[str], deciding: Mapping[str, Direction]) -> Table:
    dropout = metrics["protocol"] == "dropout"
    columns = [*deciding, "mse_plain", "pearson", "pearson_gene", "weight"]
    if dropout:
        columns = ["mae", "rmse", "pearson", "pearson_gene", "pearson_cell"]
    methods = metrics["methods"]
    frame = pd.DataFrame({_name(c): [float(methods[name][c]) for name in order] for c in columns}, index=order)
    lead = columns[0]
    frame.insert(1, f"{_name(lead)} sd", [float(methods[name][f"{lead}_sd"]) for name in order])
    frame["seconds"] = [float(methods[name]["seconds"]) for name in order]
    for name in metrics["skipped"]:
        frame.loc[name] = np.nan
    notes = dict.fromkeys(metrics["skipped"], "not installed") | metrics["verdict"]
    frame.insert(0, "note", [notes.get(name, "") for name in frame.index])
    frame.index.name = "method"
    best: dict[str, Direction] = {
        _name(c): "max" if c.startswith("pearson") else "min" for c in columns if c != "weight"
    }
    caption = (
        "Means over the draws; sd: standard deviation over the draws. A dash: undefined (a constant has no "
        "correlation) or not run. Note: whether the model beats the method."
    )
    return Table("All methods", frame, caption, best)


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
    values = pd.Series({name: methods[name][score] for name in order}, name=_name(score))
    spread = pd.Series({name: methods[name][f"{score}_sd"] for name in order})
    highlight = model if model in methods else None

    def bars(ax: Axes) -> Axes:
        return bar_axes(ax, values, low=values - spread, high=values + spread, highlight=highlight)

    height = 0.8 + 0.3 * len(order)
    caption = "Lines: one standard deviation over draws to either side."
    items = [Figure(f"{_name(score)} of all methods", svg(bars, (5.2, height)), caption, values.to_frame())]
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
        items.append(Figure(f"{name}: predicted against hidden", svg(cloud), "Each hexagon: number of entries."))
    groups = {name: r[~np.isnan(r)] for name in shown if (r := drawings.by_gene[name]).size}
    groups = {name: r for name, r in groups.items() if r.size}
    if groups:

        def histogram(ax: Axes) -> Axes:
            return hist_axes(ax, groups, bins=40, xlabel="Pearson r inside a gene", ylabel="genes")

        caption = "; ".join(f"{name}: median {np.median(r):.3f} of {len(r):,} genes" for name, r in groups.items())
        caption += ". Genes with fewer than ten entries have no r."
        items.append(Figure("Correlation by gene", svg(histogram), caption))
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


def _name(score: str) -> str:
    """A score as the page calls it."""
    names = {"pearson": "r", "pearson_gene": "r by gene", "pearson_cell": "r by cell", "poisson": "Poisson loss"}
    names |= {"mse_plain": "MSE plain", "weight": "weight"}
    return names.get(score, score.upper())
