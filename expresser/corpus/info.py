"""What is in a corpus, in numbers and as text."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from expresser.corpus.staging import bytes_text
from expresser.corpus.store import Corpus

_QUANTILES = {"min": 0.0, "q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95, "max": 1.0}


def corpus_info(folder: str | Path) -> dict[str, Any]:
    """Plain values, fit for JSON: sizes, sources with what was dropped, depth and genes per cell, labels.

    `depth` are quantiles of a cell's total count, `genes_per_cell` of its non-zero genes. Reads the headers and the
    totals, no counts. InputError as `Corpus.open`.
    """
    corpus = Corpus.open(folder)
    manifest = corpus.manifest
    sources = []
    for number, entry in enumerate(manifest["sources"]):
        rows = corpus.source_ids == number
        sources.append(
            {
                "name": entry["name"],
                "kind": entry["kind"],
                "cells": entry["cells"],
                "cells_read": entry["cells_read"],
                "dropped": entry["dropped"],
                "nnz": entry["nnz"],
                "genes": entry["genes"]["genes"],
                "names": entry["genes"]["n_names"],
                "counts_kept": entry["genes"]["counts_kept"],
                "median_depth": float(np.median(corpus.totals[rows])) if rows.any() else None,
                "median_genes": float(np.median(corpus.lengths[rows])) if rows.any() else None,
            }
        )
    return {
        "path": str(corpus.path),
        "corpus_id": corpus.corpus_id,
        "format_version": manifest["format_version"],
        "cells": corpus.n_cells,
        "genes": len(corpus.vocab),
        "nnz": manifest["nnz"],
        "density": manifest["nnz"] / (corpus.n_cells * len(corpus.vocab)),
        "bytes": sum(entry["bytes"] for entry in manifest["shards"]),
        "shards": len(manifest["shards"]),
        "dtypes": manifest["dtypes"],
        "seed": manifest["build"]["seed"],
        "sources": sources,
        "depth": _quantiles(corpus.totals),
        "genes_per_cell": _quantiles(corpus.lengths),
        "obs": {
            column: {"values": int(corpus.obs[column].nunique()), "missing": int(corpus.obs[column].isna().sum())}
            for column in manifest["obs"]["columns"]
        },
    }


def _quantiles(values: Shaped[np.ndarray, " cells"]) -> dict[str, float]:
    return dict(zip(_QUANTILES, np.quantile(values, list(_QUANTILES.values())).tolist()))


def info_text(info: dict[str, Any]) -> str:
    """`corpus_info` for reading: plain text, one source a line."""
    lines = [
        f"corpus    {info['path']}",
        f"id        {info['corpus_id']}",
        f"cells     {info['cells']:,} of {len(info['sources'])} sources, order by seed {info['seed']}",
        f"genes     {info['genes']:,}",
        f"non-zero  {info['nnz']:,} ({info['density']:.1%}), {info['nnz'] / info['cells']:,.0f} a cell",
        f"on disk   {bytes_text(info['bytes'])} in {info['shards']} shards, counts as {info['dtypes']['counts']}",
    ]
    for label, key in (("depth", "depth"), ("genes/cell", "genes_per_cell")):
        lines.append(f"{label:<12}" + "  ".join(f"{name} {value:,.0f}" for name, value in info[key].items()))
    for column, values in info["obs"].items():
        lines.append(f"obs       {column}: {values['values']:,} values, {values['missing']:,} cells without")
    lines.append("")
    head = ("source", "cells", "empty", "few genes", "genes", "counts kept", "median depth", "median genes")
    rows = [head, *(_row(source) for source in info["sources"])]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines += [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    ]
    return "\n".join(lines)


def _row(source: dict[str, Any]) -> tuple[str, ...]:
    def number(value: float | int | None, form: str = ",.0f") -> str:
        return "-" if value is None else format(value, form)

    return (
        source["name"],
        number(source["cells"]),
        number(source["dropped"]["empty"]),
        number(source["dropped"]["few genes"]),
        number(source["genes"]),
        number(source["counts_kept"], ".1%"),
        number(source["median_depth"]),
        number(source["median_genes"]),
    )
