"""The page about a perturbation: which features drive a prediction, where they lie, and what changes when cells are changed."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from expresser.plots import COLOURS, GREY, bar_axes, heatmap_axes, hist_axes, svg
from expresser.plots_numbers import histogram
from expresser.readable import Number, format_number
from expresser.report import Figure, Section, Table, write_report
from translate.perturb_names import ALL
from translate.perturb_run import Asked, Found, top_effects

BARS = 15
TARGETS = 12  # of which figures are drawn; tables have all
_UNITS = {"rna": "ln(1 + size-normalised expression)", "atac": "log-odds of being open"}


def perturb_page(path: str | Path, found: Found, asked: Asked, *, title: str, record: dict[str, Any]) -> Path:
    """Write the page of a run; record: what run.json says."""
    sections = [*_attribution_sections(found, asked), *_link_sections(found), *_effect_sections(found, asked)]
    origin = record["provenance"] | {key: value for key, value in record.items() if key != "provenance"}
    return write_report(path, title=title, summary=_summary(found), sections=sections, provenance=origin)


def _summary(found: Found) -> list[tuple[str, Number | str | None]]:
    lines: list[tuple[str, Number | str | None]] = [
        ("direction", f"{found.source} to {found.to}"),
        ("cells examined", found.metrics["cells"]["examined"]),
    ]
    if "attribution" in found.metrics:
        targets = found.metrics["attribution"]["targets"]
        lines += [
            ("targets", len(targets)),
            ("largest relative convergence delta", max((t["delta_relative"] for t in targets.values()), default=None)),
        ]
    for name, value in found.metrics.get("links", {}).get("agreement", {}).items():
        lines.append((f"attribution and correlation ({_way(name)}), mean Spearman", value["mean_spearman"]))
    if "perturbation" in found.metrics:
        figures = found.metrics["perturbation"]
        lines += [("cells that the change reaches", figures["changed_cells"])]
        if figures["n_null"]:
            lines += [("features changed more than by chance (q < 0.05)", figures["groups"][ALL]["q_below_0.05"])]
    return lines


def _attribution_sections(found: Found, asked: Asked) -> list[Section]:
    if found.attributions is None:
        return []
    table = found.attributions
    driver = "peak" if found.source == "atac" else "gene"
    text = (
        f"Integrated gradients (Sundararajan et al. 2017): of each cell, how much of its prediction, in {_UNITS[found.to]}, each "
        f"{driver} brings about on the way from {'nothing open or expressed' if asked.baseline == 'zero' else 'the mean cell'} to "
        "the cell as measured. Bars: means over cells, with standard errors. It says what the model reads, not what acts in the "
        f"nucleus: {driver}s that go together share the credit in whatever way training left it.\n\n"
        "Attributions of a cell add up to its prediction less that at the baseline; the convergence delta is what the "
        f"{asked.n_steps} steps leave over."
    )
    figures: list[Figure | Table] = []
    for target, part in list(table[table["group"] == ALL].groupby("target", sort=False))[:TARGETS]:
        called = found.shown.get(str(target), str(target))
        near = part[part["distance"].notna()]
        near = near[near["distance"].abs().astype(float) <= asked.window] if len(near) else near
        if len(near):
            drawing = svg(partial(_along, near=near, unit=_UNITS[found.to]), (6.4, 2.6))
            figures.append(
                Figure(
                    f"{called}: {driver}s within {asked.window // 1000:,} kb",
                    drawing,
                    "Distance between the transcription start and the nearest base of the peak; 0 inside.",
                    near[["feature", "distance", "attribution", "sd", "share"]],
                )
            )
        best = part.head(BARS)
        index = pd.Index(_labels(best), name=driver)
        values = pd.Series(best["attribution"].to_numpy(float), index=index)
        sem = pd.Series(best["sd"].to_numpy(float) / np.sqrt(best["cells"].to_numpy(float)), index=index).fillna(0)
        drawing = svg(
            partial(bar_axes, values=values, low=values - sem, high=values + sem, xlabel="mean attribution"),
            (6.4, 0.6 + 0.28 * len(best)),
        )
        figures.append(Figure(f"{called}: the strongest {driver}s", drawing, "", best))
        if table["group"].nunique() > 1:
            wide = table[(table["target"] == target) & table["feature"].isin(best["feature"])]
            grid = (
                wide.pivot(index="feature", columns="group", values="attribution").reindex(best["feature"]).fillna(0.0)
            )
            grid = grid.set_axis(index, axis=0)[list(dict.fromkeys(wide["group"]))]
            size = (2.6 + 0.5 * grid.shape[1], 1.0 + 0.28 * len(grid))
            drawing = svg(partial(heatmap_axes, frame=grid, center=0, label="mean attribution"), size)
            figures.append(Figure(f"{called}: by cell type", drawing, "", grid.reset_index()))
    convergence = pd.DataFrame(found.metrics["attribution"]["targets"]).T
    convergence = convergence.rename(index=dict(found.shown))
    convergence.index.name = "target"
    top = (
        table[table["rank"] <= min(asked.top, 20)].drop(columns=["start", "end"]).replace({"target": dict(found.shown)})
    )
    figures += [
        Table("Convergence", convergence),
        Table(f"Strongest {driver}s", top, "All are in attributions.parquet."),
    ]
    return [Section(f"What drives it: {driver}s", text, tuple(figures))]


def _link_sections(found: Found) -> list[Section]:
    if "links" not in found.metrics:
        return []
    about = found.metrics["links"]
    if found.links is None:
        return [Section("Links of peaks and genes", f"Not examined: {about['skipped']}.")]
    rows = pd.DataFrame(
        {
            _way(name): {
                "cells": about["cells"][name],
                "pairs with q < 0.05": about["significant"][name],
                "Spearman of attribution and r, mean over targets": value["mean_spearman"],
                "targets with a Spearman": value["targets"],
            }
            for name, value in about["agreement"].items()
        }
    ).T
    rows.index.name = "correlation of"
    text = (
        f"Pearson's r over cells of each peak and gene within {about['window']:,} bases of the transcription start "
        f"({about['pairs']:,} pairs), p two-sided, q by Benjamini and Hochberg. Predictions are smooth: two features that share a "
        "program correlate over cells however far apart they are, and p of predicted values is far too small. Compare r "
        "between pairs; take p from measured values."
    )
    first = next(iter(about["agreement"]))
    drawing = svg(partial(_agreement, table=found.links, column=f"r_{first}"), (4.6, 3.3))
    points = found.links[["attribution", f"r_{first}"]]
    scatter = Figure(f"Attribution and correlation ({_way(first)})", drawing, "A point a pair.", points)
    return [
        Section(
            "Links of peaks and genes",
            text,
            (Table("Agreement", rows), scatter, Table("Pairs", found.links.head(100), "All are in links.tsv.")),
        )
    ]


def _effect_sections(found: Found, asked: Asked) -> list[Section]:
    if found.effects is None:
        return []
    effects, figures = found.effects, found.metrics["perturbation"]
    unit = "ln(1 + size-normalised expression)" if effects.to == "rna" else "probability of being open"
    what = "gene" if effects.to == "rna" else "peak"
    words = f"{figures['changed_features']:,} {'peaks' if effects.change.source == 'atac' else 'genes'} changed"
    text = (
        f"{words}, which reaches {effects.n_changed:,} of {effects.n_cells:,} cells. Change: prediction after less before, mean "
        f"over all cells, in {unit}. Effect: change over its standard deviation between cells."
    )
    if effects.n_null:
        text += (
            f"\n\nThe null: {effects.n_null:,} draws of as many random "
            f"{'peaks, open as often' if effects.change.source == 'atac' else 'genes, expressed as much'}, changed in the same "
            f"way. p is two-sided and cannot be below {format_number(figures['smallest_p'])}; z is in standard deviations of "
            "the null."
        )
    items: list[Figure | Table] = []
    table = effects.table[effects.table["group"] == ALL]
    best = top_effects(table, BARS)
    if len(best):
        index = pd.Index(_labels(best), name=what)
        values = pd.Series(best["change"].to_numpy(float), index=index)
        sem = pd.Series(best["sem"].to_numpy(float), index=index).fillna(0)
        drawing = svg(
            partial(bar_axes, values=values, low=values - sem, high=values + sem, xlabel="mean change"),
            (6.4, 0.6 + 0.28 * len(best)),
        )
        items.append(
            Figure(f"{what.capitalize()}s that change most", drawing, "With standard errors over cells.", best)
        )
    if effects.n_null:
        null = {"p": table["p"].to_numpy(float)}
        drawing = svg(partial(hist_axes, groups=null, bins=20, xlabel="p", ylabel=f"{what}s"))
        note = "Flat where the change does what random ones do."
        items.append(Figure("Against the null", drawing, note, histogram(null, bins=20)))
    groups = pd.DataFrame(figures["groups"]).T
    groups.index.name = "group"
    items += [
        Table("Groups of cells", groups),
        Table("Largest changes", top_effects(effects.table, min(asked.top, 20))),
    ]
    return [Section("Perturb and translate", text, tuple(items))]


def _along(ax: Axes, near: pd.DataFrame, unit: str) -> None:
    at, height = near["distance"].to_numpy(float) / 1000, near["attribution"].to_numpy(float)
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.axvline(0, color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.vlines(at, 0, height, color=COLOURS[0], linewidth=1.4)
    ax.plot(at, height, "o", color=COLOURS[0], markersize=3.5)
    ax.set_xlabel("distance from transcription start (kb)")
    ax.set_ylabel("mean attribution")
    ax.set_title(unit)


def _agreement(ax: Axes, table: pd.DataFrame, column: str) -> None:
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.plot(
        table["attribution"].to_numpy(float),
        table[column].to_numpy(float),
        "o",
        color=COLOURS[0],
        markersize=3,
        alpha=0.6,
    )
    ax.set_xlabel("mean attribution")
    ax.set_ylabel("Pearson r")


def _labels(part: pd.DataFrame) -> list[str]:
    """Names, symbols of genes where they have one, told apart where two are the same."""
    names = part["feature"].astype(str)
    if "symbol" in part:
        names = part["symbol"].where(part["symbol"].fillna("") != "", part["feature"]).astype(str)
    names = names.where(~names.duplicated(keep=False), names + " " + part["feature"].astype(str))
    return names.tolist()


def _way(name: str) -> str:
    words = {
        "measured": "measured ATAC, measured RNA",
        "to_rna": "measured ATAC, predicted RNA",
        "to_atac": "predicted ATAC, measured RNA",
    }
    return words.get(name, name)
