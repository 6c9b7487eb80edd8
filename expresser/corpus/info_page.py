"""What is in a corpus as one self-contained page."""

from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from expresser.corpus.histograms import Histogram
from expresser.corpus.info import appended_lines, histogram_of
from expresser.corpus.staging import bytes_text
from expresser.plots import COLOURS, svg
from expresser.readable import counted
from expresser.report import Figure, Section, Table, provenance, write_report


def info_page(info: dict[str, Any], path: Path) -> Path:
    """Write `corpus_info`'s answer as an HTML page: histograms, sources, labels with their commonest values, origin."""
    word = info["features"]
    origin = {"corpus_id": info["corpus_id"], "format_version": info["format_version"], "dtypes": info["dtypes"]}
    if info["derived_from"] is not None:
        origin["derived_from"] = info["derived_from"]
    return write_report(
        path,
        title=f"Corpus: {Path(info['path']).resolve().name}",
        summary=[
            ("cells", info["cells"]),
            (word, info["genes"]),
            ("sources", len(info["sources"])),
            ("cells dropped", sum(info["dropped"].values())),
            ("median counts a cell", info["depth"]["median"]),
            (f"median {word} a cell", info["genes_per_cell"]["median"]),
            ("on disk", bytes_text(info["bytes"])),
        ],
        sections=[_cells(info), _sources(info), *_labels(info)],
        provenance=provenance(seed=info["seed"]) | origin | {"versions_of_the_build": info["versions"]},
    )


def _cells(info: dict[str, Any]) -> Section:
    text = (
        f"{info['nnz']:,} non-zero counts ({info['density']:.1%} of cells x {info['features']}), {info['bytes_per_cell']:,.0f} bytes "
        f"a cell in {counted(info['shards'], 'shards')}. Counts are raw, over the vocabulary; bins are logarithmic."
    )
    quantiles = pd.DataFrame({"counts": info["depth"], info["features"]: info["genes_per_cell"]}).T
    figures = tuple(
        _histogram(title, histogram_of(info, key), label)
        for title, key, label in (
            ("Counts a cell", "depth", "counts in the cell"),
            (f"{info['features'].capitalize()} a cell", "genes_per_cell", f"non-zero {info['features']} in the cell"),
        )
    )
    return Section("Cells", text, (*figures, Table("Quantiles over cells", quantiles)))


def _histogram(title: str, histogram: Histogram, label: str) -> Figure:
    def draw(ax: Axes) -> None:
        ax.stairs(histogram.cells, histogram.edges, fill=True, color=COLOURS[0], alpha=0.22)
        ax.stairs(histogram.cells, histogram.edges, color=COLOURS[0], linewidth=1.6)
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))  # most corpora span little more than a decade
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.set(xlabel=label, ylabel="cells")

    numbers = pd.DataFrame(
        {"from": histogram.edges[:-1].astype(int), "to": histogram.edges[1:].astype(int) - 1, "cells": histogram.cells}
    )
    return Figure(title, svg(draw), data=numbers)


def _sources(info: dict[str, Any]) -> Section:
    word = info["features"]
    frame = pd.DataFrame(
        {
            "source": source["name"],
            "cells": source["cells"],
            **{f"dropped: {why.replace('genes', word)}": source["dropped"].get(why) for why in info["dropped"]},
            word: source["genes"],
            "counts kept": source["counts_kept"],
            "median counts": source["median_depth"],
            f"median {word}": source["median_genes"],
            **({"appended": source["appended"]} if info["appended"] else {}),
        }
        for source in info["sources"]
    )
    text = (
        f"Counts kept is the share of a file's counts that belong to {word} of the vocabulary. Of "
        f"{info['cells_read']:,} cells read, {sum(info['dropped'].values()):,} were dropped: "
        + ", ".join(f"{cells:,} {why.replace('genes', word)}" for why, cells in info["dropped"].items())
        + "."
    )
    if info["appended"]:
        text += " Appended after the build: " + "; ".join(appended_lines(info)) + "."
    return Section("Sources", text, (Table("Inputs", frame),))


def _labels(info: dict[str, Any]) -> list[Section]:
    if not info["obs"]:
        return []
    tables = []
    for column, values in info["obs"].items():
        frame = pd.DataFrame(info["commonest"][column], columns=["value", "cells"])
        frame["share"] = frame["cells"] / info["cells"]
        caption = f"{values['values']:,} values in all; {values['missing']:,} cells have none."
        tables.append(Table(f"{column}: commonest values", frame, caption))
    return [Section("Labels", "Columns of obs that were kept.", tuple(tables))]
