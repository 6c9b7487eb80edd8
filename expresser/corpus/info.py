"""What is in a corpus, in numbers and as text."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, Shaped

from expresser.corpus.histograms import Histogram, histogram_lines, log_histogram
from expresser.corpus.history import appended
from expresser.corpus.labels import commonest, read_labels
from expresser.corpus.manifest import canonical_json
from expresser.corpus.staging import bytes_text
from expresser.corpus.store import Corpus
from expresser.readable import counted

_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}
_REASONS = ("empty", "few genes", "duplicates", "not chosen")
_WORDS = (("depth", "depth"), ("genes/cell", "genes_per_cell"))


def corpus_info(folder: str | Path) -> dict[str, Any]:
    """Plain values, fit for JSON: sizes, sources with what was dropped, depth and genes per cell, labels.

    `depth` are quantiles of a cell's total count, `genes_per_cell` of its non-zero genes, `histograms` the same over
    logarithmic bins. `dropped` are the cells that were read and not kept, by reason ("duplicates" only where they were
    looked for); `appended` each later append with its inputs, and a source's `appended` the number of its own. Reads the
    headers, the totals, list offsets and one obs column at a time, no counts: about 60 bytes a cell. InputError as
    `Corpus.open`.
    """
    corpus = Corpus.open(folder)
    manifest = corpus.manifest
    by_source = _rows_by_source(corpus)
    parts = appended(manifest)
    came_with = {name: number for number, part in enumerate(parts, start=1) for name in part["inputs"]}
    sources = []
    for entry, rows in zip(manifest["sources"], by_source):
        sources.append(
            {
                "name": entry["name"],
                "kind": entry["kind"],
                "cells": entry["cells"],
                "cells_read": entry["cells_read"],
                "dropped": entry["dropped"],
                "appended": came_with.get(entry["name"]),
                "nnz": entry["nnz"],
                "genes": entry["genes"]["genes"],
                "names": entry["genes"]["n_names"],
                "counts_kept": entry["genes"]["counts_kept"],
                "median_depth": float(np.median(corpus.totals[rows])) if len(rows) else None,
                "median_genes": float(np.median(corpus.lengths[rows])) if len(rows) else None,
            }
        )
    labels = {column: _obs(corpus, column) for column in manifest["obs"]["columns"]}
    size = sum(entry["bytes"] for entry in manifest["shards"])
    return {
        "path": str(corpus.path),
        "corpus_id": corpus.corpus_id,
        "format_version": manifest["format_version"],
        "cells": corpus.n_cells,
        "features": corpus.features,
        "genes": len(corpus.vocab),
        "nnz": manifest["nnz"],
        "density": manifest["nnz"] / (corpus.n_cells * len(corpus.vocab)),
        "bytes": size,
        "bytes_per_cell": size / corpus.n_cells,
        "shards": len(manifest["shards"]),
        "dtypes": manifest["dtypes"],
        "seed": manifest["build"]["seed"],
        "sources": sources,
        "cells_read": sum(source["cells_read"] for source in sources),
        "dropped": {why: sum(source["dropped"].get(why, 0) for source in sources) for why in _reasons(sources)},
        "appended": parts,
        "depth": _quantiles(corpus.totals),
        "genes_per_cell": _quantiles(corpus.lengths),
        "histograms": {
            "depth": log_histogram(corpus.totals).to_dict(),
            "genes_per_cell": log_histogram(corpus.lengths).to_dict(),
        },
        "obs": {column: {name: about[name] for name in ("values", "missing")} for column, about in labels.items()},
        "commonest": {column: about["commonest"] for column, about in labels.items()},
        "derived_from": manifest.get("derived_from"),
        "versions": manifest.get("versions", {}),
    }


def _reasons(sources: list[dict[str, Any]]) -> list[str]:
    """Why cells were dropped, in the order of the questions that were asked of each."""
    said = dict.fromkeys(why for source in sources for why in source["dropped"])  # a manifest's keys are sorted
    return sorted(said, key=lambda why: _REASONS.index(why) if why in _REASONS else len(_REASONS))


def _rows_by_source(corpus: Corpus) -> list[Int64[np.ndarray, " rows"]]:
    """Rows of each source, by one sort: a comparison for each source would cost cells x sources."""
    order = np.argsort(corpus.source_ids, kind="stable")
    ends = np.searchsorted(corpus.source_ids[order], np.arange(len(corpus.manifest["sources"]) + 1))
    return [order[a:b] for a, b in pairwise(ends)]


def _obs(corpus: Corpus, column: str) -> dict[str, Any]:
    labels = read_labels(corpus, column)
    return {"values": int(labels.nunique()), "missing": int(labels.isna().sum()), "commonest": commonest(labels)}


def _quantiles(values: Shaped[np.ndarray, " cells"]) -> dict[str, float]:
    return dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())).tolist()))


def info_text(info: dict[str, Any]) -> str:
    """`corpus_info` for reading: plain text, one source a line, histograms of depth and of genes (or regions) a cell."""
    word = info["features"]  # genes, or the regions of an ATAC corpus
    lines = [
        f"corpus    {info['path']}",
        f"id        {info['corpus_id']}",
        f"cells     {info['cells']:,} of {counted(len(info['sources']), 'sources')}, order by seed {info['seed']}",
        f"{word:<10}{info['genes']:,}",
        f"non-zero  {info['nnz']:,} ({info['density']:.1%}), {info['nnz'] / info['cells']:,.0f} a cell",
        f"on disk   {bytes_text(info['bytes'])} in {counted(info['shards'], 'shards')}, {info['bytes_per_cell']:,.0f} bytes a cell, "
        f"counts as {info['dtypes']['counts']}",
    ]
    reasons = ", ".join(f"{cells:,} {why.replace('genes', word)}" for why, cells in info["dropped"].items())
    lines.append(
        f"dropped   {sum(info['dropped'].values()):,} of {counted(info['cells_read'], 'cells')} read: {reasons}"
    )
    if origin := info.get("derived_from"):
        lines.append(f"from      {origin_text(origin)}")
    lines += [f"appended  {line}" for line in appended_lines(info)]
    for label, key in _WORDS:
        lines.append(
            f"{label.replace('genes', word):<12}"
            + "  ".join(f"{name} {value:,.0f}" for name, value in info[key].items())
        )
    for column, values in info["obs"].items():
        few = ", ".join(f"{value} {cells:,}" for value, cells in info["commonest"][column][:3])
        without = counted(values["missing"], "cells")
        lines.append(f"obs       {column}: {counted(values['values'], 'values')}, {without} without ({few})")
    lines.append("")
    dropped = [why.replace("genes", word) for why in info["dropped"]]
    head = ("source", "cells", *dropped, word, "counts kept", "median depth", f"median {word}")
    if info["appended"]:
        head += ("appended",)
    rows = [head, *(_row(source, info) for source in info["sources"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines += [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
    for label, key in (("counts a cell", "depth"), ("genes a cell", "genes_per_cell")):
        lines += ["", label.replace("genes", word), *(f"  {line}" for line in histogram_lines(histogram_of(info, key)))]
    return "\n".join(lines)


def origin_text(origin: dict[str, Any]) -> str:
    """Where a derived corpus comes from, in one line: `derived_from` of its manifest."""
    asked = {
        name: {k: v for k, v in said.items() if v != []} if isinstance(said, dict) else said
        for name, said in origin["rule"].items()
    }
    rule = canonical_json(asked).decode()
    return f"corpus {origin['corpus_id'][:12]} of {origin['cells']:,} cells by {rule}"


def appended_lines(info: dict[str, Any]) -> list[str]:
    """Each append in a line; of a split or subset, those of the corpus it comes from."""
    where = " (to the corpus this one comes from)" if info.get("derived_from") else ""
    return [
        f"{number}: {', '.join(part['inputs'])} ({counted(part['cells'], 'cells')}){where}"
        for number, part in enumerate(info["appended"], start=1)
    ]


def histogram_of(info: dict[str, Any], key: str) -> Histogram:
    """A histogram of `corpus_info`."""
    held = info["histograms"][key]
    return Histogram(np.array(held["edges"], np.float64), np.array(held["cells"], np.int64))


def _row(source: dict[str, Any], info: dict[str, Any]) -> tuple[str, ...]:
    def number(value: float | int | None, form: str = ",.0f") -> str:
        return "-" if value is None else format(value, form)

    row = (
        source["name"],
        number(source["cells"]),
        *(number(source["dropped"].get(why)) for why in info["dropped"]),
        number(source["genes"]),
        number(source["counts_kept"], ".1%"),
        number(source["median_depth"]),
        number(source["median_genes"]),
    )
    return (*row, number(source["appended"])) if info["appended"] else row
