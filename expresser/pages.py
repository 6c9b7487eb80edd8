"""Report sections from the files that a run leaves: a run's own page and pages over several runs draw from the same place."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from expresser.plots import curve_axes, svg
from expresser.report import Figure, Section, Table, frame_from_metrics, write_report


def pretraining_page(run: Path) -> Path:
    """Write ``report.html`` into the folder of a pretraining run from its ``run.json``, ``metrics.json`` and ``log.jsonl``."""
    record = json.loads((run / "run.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    return write_report(
        run / "report.html",
        title=f"Pretraining: {record['recipe']}",
        summary=[
            ("validation MAE", metrics["valid"]["mae"]),
            ("gene + cell additive", metrics["additive"]["mae"]),
            ("validation r", metrics["valid"]["pearson"]),
            ("cells seen", metrics["cells_seen"]),
            ("minutes of training", metrics["seconds"] / 60),
            ("cells/s", metrics["cells_per_s"]),
        ],
        sections=pretraining_sections(run),
        provenance=record["provenance"] | {"corpus_id": record["corpus_id"], "config": record["config"]},
    )


def pretraining_sections(run: Path) -> list[Section]:
    """Curves and validation scores of a pretraining run, against the gene + cell additive baseline on the same masks."""
    metrics = json.loads((run / "metrics.json").read_text())
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    train = pd.DataFrame([{"minutes": e["seconds"] / 60, "training loss": e["loss"]} for e in entries if "loss" in e])
    valid = pd.DataFrame([{"minutes": e["seconds"] / 60, **e["valid"]} for e in entries if "valid" in e])
    valid = valid.rename(columns={"mse": "MSE", "mae": "MAE", "pearson": "Pearson r"})
    baseline = metrics["additive"]
    rows = {"model": metrics["valid"], "at the start": metrics["start"], "gene + cell additive": baseline}
    table = frame_from_metrics(rows).rename(
        columns={"mse": "MSE", "mae": "MAE", "pearson": "Pearson r", "n": "entries"}
    )
    text = (
        "Masked genes of held-out cells, predicted from their other genes; log-normalised values. The additive baseline knows "
        "each gene's level in the training cells and each cell's mean residual over its observed genes."
    )
    curves = (
        _curve("Validation MAE", valid, "MAE", {"gene + cell additive": baseline["mae"]}),
        _curve("Validation Pearson r", valid, "Pearson r", {"gene + cell additive": baseline["pearson"]}),
        _curve("Training loss", train, "training loss", {}, logy=True),
    )
    return [
        Section(
            "Pretraining",
            text,
            (*curves, Table("Held-out cells", table, best={"MSE": "min", "MAE": "min", "Pearson r": "max"})),
        )
    ]


def imputation_section(metrics: Mapping[str, Any]) -> Section:
    """The methods table of an imputation run's ``metrics.json``."""
    frame = frame_from_metrics(metrics["methods"])
    names = {
        "mae": "MAE",
        "rmse": "RMSE",
        "pearson": "Pearson r",
        "pearson_gene": "r per gene",
        "pearson_cell": "r per cell",
    }
    frame = frame[[name for name in names if name in frame.columns]].rename(columns=names).sort_values("MAE")
    best: dict[str, Any] = {name: "min" if name in ("MAE", "RMSE") else "max" for name in frame.columns}
    text = (
        f"{metrics['drop']:.0%} of the non-zero counts of {metrics['n_cells']:,} unseen cells are hidden and predicted. "
        "Everything a method gets, library sizes included, is computed from what is left. Rows named _reference may also learn from "
        "the training cells."
    )
    return Section("Imputation of unseen cells", text, (Table("Methods", frame, best=best),))


def _curve(
    title: str, frame: pd.DataFrame, column: str, references: dict[str, float | None], *, logy: bool = False
) -> Figure:
    known = {name: value for name, value in references.items() if value is not None}  # JSON's null: undefined
    drawing = svg(
        lambda ax: curve_axes(
            ax, frame, "minutes", [column], logy=logy, references=known, xlabel="minutes", ylabel=column
        )
    )
    return Figure(title, drawing, data=frame[["minutes", column]])
