"""Report sections from the files that a run leaves: a run's own page and pages over several runs draw from the same place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser.errors import InputError
from expresser.plots import curve_axes, svg
from expresser.plots_curves import trace_axes
from expresser.report import Figure, Section, Table, frame_from_metrics, write_report
from expresser.run_files import read_log, read_mapping

SCORES = {"mse": "MSE", "mae": "MAE", "pearson": "Pearson r", "n": "entries"}
_SPEEDS = {
    "cells_per_s": "cells/s",
    "tokens_per_s": "tokens/s",
    "targets_per_s": "targets/s",
    "flops_per_s": "TFLOP/s",
    "mfu": "MFU (%)",
    "wait_share": "waiting for data (%)",
}
_UNITS = {"flops_per_s": 1e-12, "mfu": 100.0, "wait_share": 100.0}


@dataclass(frozen=True, eq=False)
class Pretraining:
    """What a pretraining run left: its record, its log, and its metrics, which come from the log while it is not finished."""

    record: Mapping[str, Any]
    metrics: Mapping[str, Any]
    log: list[dict[str, Any]]
    finished: bool

    @classmethod
    def read(cls, folder: Path) -> "Pretraining":
        """Of a run's folder. InputError where it is none, or has not logged a line yet."""
        record, log = read_mapping(folder / "run.json"), read_log(folder / "log.jsonl")
        if record is None or not log:
            lacking = "no run.json" if record is None else "no line in log.jsonl yet"
            raise InputError(f"{folder}: a pretraining run leaves run.json and log.jsonl, but there is {lacking}.")
        metrics = read_mapping(folder / "metrics.json")
        return cls(record, _so_far(log) if metrics is None else metrics, log, metrics is not None)

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the lowest validation MSE."""
        known = [line for line in self.log if "valid" in line and math.isfinite(line["valid"]["mse"])]
        return min(known, key=lambda line: line["valid"]["mse"], default=None)

    @property
    def validation(self) -> pd.DataFrame:
        """Scores of the held-out cells by step and minutes."""
        rows = [{"step": e["step"], "minutes": e["seconds"] / 60, **e["valid"]} for e in self.log if "valid" in e]
        return pd.DataFrame(rows).rename(columns=SCORES)

    @property
    def training(self) -> pd.DataFrame:
        """Loss, gradient norm and learning rate by step and minutes."""
        names = {"loss": "training loss", "grad_norm": "gradient norm", "lr": "learning rate"}
        return _frame([line for line in self.log if "loss" in line], names)

    @property
    def speeds(self) -> pd.DataFrame:
        """Rates that the run logged, in the units of the page, without those it does not know (older logs, no ceiling)."""
        frame = _frame([line for line in self.log if "cells_per_s" in line], _SPEEDS).dropna(axis=1, how="all")
        for key, unit in _UNITS.items():
            if _SPEEDS[key] in frame:
                frame[_SPEEDS[key]] *= unit
        return frame


def _so_far(log: list[dict[str, Any]]) -> dict[str, Any]:
    """What metrics.json would say if the run had ended with this log."""
    newest, validated = log[-1], [line for line in log if "valid" in line]
    if not validated or "additive" not in log[0]:
        raise InputError("a pretraining log begins with the scores before the first step, but this one does not.")
    facts = {key: newest[key] for key in ("step", "cells_seen", "seconds")}
    return facts | {"valid": validated[-1]["valid"], "start": log[0]["valid"], "additive": log[0]["additive"]}


def pretraining_page(run: Path, path: Path | None = None) -> Path:
    """Write the page of a pretraining run from its ``run.json``, ``metrics.json`` and ``log.jsonl``.

    path: where; None for ``report.html`` in its folder. Without metrics.json the page is of the run so far, and says so.
    """
    found = Pretraining.read(run)
    record, metrics, best, speed = found.record, found.metrics, found.best, found.speeds
    medians = speed.drop(columns=["step", "minutes"], errors="ignore").median()
    summary = [
        ("validation MAE", metrics["valid"]["mae"]),
        ("gene + cell additive", metrics["additive"]["mae"]),
        ("validation r", metrics["valid"]["pearson"]),
        ("step of the lowest MSE", None if best is None else best["step"]),
        ("cells seen", metrics["cells_seen"]),
        ("minutes of training", metrics["seconds"] / 60),
        *((name, float(medians[name])) for name in ("cells/s", "targets/s", "MFU (%)") if name in medians),
    ]
    origin = record["provenance"] | {"corpus_id": record["corpus_id"], "config": record["config"]}
    warm = record.get("warm_start")
    return write_report(
        run / "report.html" if path is None else path,
        title=f"Pretraining: {record['recipe']}"
        + ("" if found.finished else f", not finished at step {metrics['step']:,}"),
        summary=summary,
        sections=[
            _held_out_section(found),
            _training_section(found),
            *([] if speed.empty else [_speed_section(speed)]),
            *([] if warm is None else [_warm_section(warm)]),
        ],
        provenance=origin if warm is None else origin | {"warm_start": warm},
    )


def pretraining_sections(run: Path) -> list[Section]:
    """A pretraining run in one section, for a page about more: validation against the gene + cell additive baseline, and the loss."""
    found = Pretraining.read(run)
    held_out, training = _held_out_section(found), _training_section(found)
    _, mae, pearson, scores = held_out.items
    return [Section("Pretraining", held_out.text, (mae, pearson, training.items[0], scores))]


def _held_out_section(run: Pretraining) -> Section:
    metrics, valid = run.metrics, run.validation
    baseline, best = metrics["additive"], run.best
    rows = {"model": metrics["valid"]}
    if best is not None and best["step"] != metrics["step"]:
        rows[f"lowest MSE, at step {best['step']:,}"] = best["valid"]
    rows |= {"at the start": metrics["start"], "gene + cell additive": baseline}
    table = frame_from_metrics(rows)[list(SCORES)].rename(columns=SCORES)
    text = (
        "Masked genes of held-out cells, predicted from their other genes; log-normalised values. The additive baseline knows "
        "each gene's level in the training cells and each cell's mean residual over its observed genes."
    )
    curves = [_validation(valid, name, baseline[key]) for key, name in SCORES.items() if key != "n"]
    return Section(
        "Held-out cells",
        text,
        (*curves, Table("Scores", table, best={"MSE": "min", "MAE": "min", "Pearson r": "max"})),
    )


def _training_section(run: Pretraining) -> Section:
    frame, clip = run.training, run.record["config"]["optim"]["grad_clip"]
    text = (
        "The loss is the mean squared error over all masked genes of a step's cells. Each step has other cells and other masks, "
        "which is what makes it jump. The gradient's norm is before clipping"
        + (f", which begins at {clip:g}." if clip > 0 else ": this run does not clip.")
    )
    norm = frame["gradient norm"]
    figures = [_trace(frame, "training loss", spans=True)]
    if norm.notna().any():  # a run that does not clip may not know it
        near = {"clipped above": clip} if clip > 0 and norm.max() > clip / 2 else {}
        figures.append(_trace(frame, "gradient norm", spans=True, references=near))
    rate = svg(lambda ax: curve_axes(ax, frame, "step", "learning rate"))
    figures.append(Figure("Learning rate", rate, data=frame[["step", "minutes", "learning rate"]]))
    return Section("Training", text, tuple(figures))


def _speed_section(frame: pd.DataFrame) -> Section:
    named = [name for name in frame.columns if name not in ("step", "minutes")]
    quartiles = frame[named].quantile([0.5, 0.05, 0.95]).T.set_axis(["median", "5 %", "95 %"], axis=1)
    text = (
        "Per second of training, over all processes; validation and checkpoints are not counted. A token is a gene shown, a target a "
        "masked gene predicted: with every fold asked, each token is a target too."
    )
    if "TFLOP/s" in named:
        text += (
            "\n\nOperations are those of the model's own matrix products. Forward, for a cell of p genes of which q are asked from c "
            "others, with width d, feed-forward width f, N layers and M decoder layers: N p (8 d² + 4 d f + 4 p d) in the encoder, "
            "M (2 p d² + q (4 d² + 4 c d)) in the decoder, q (4 d² + 2 d) in the head; backward counts twice. Padding, recomputation, "
            "norms, softmax and look-ups count as nothing done."
        )
    if "MFU (%)" in named:
        ceiling = float((frame["TFLOP/s"] / frame["MFU (%)"] * 100).median())
        text += (
            f" MFU, the model's FLOP utilisation, is their share of {ceiling:,.3g} TFLOP/s: what plain matrix products were "
            "measured to reach on this run's devices in its precision."
        )
    if "waiting for data (%)" in named:
        text += " Waiting for data is the share of the time in which a step had no cells yet."
    shown = (name for name in ("cells/s", "targets/s", "MFU (%)", "waiting for data (%)") if name in named)
    return Section(
        "Throughput",
        text,
        (*(_trace(frame, name) for name in shown), Table("Between lines of the log", quartiles.rename_axis("rate"))),
    )


def _warm_section(warm: Mapping[str, Any]) -> Section:
    """Where the first weights came from, back to a model that began at random."""
    text = (
        f"This run began with the weights of {warm['source']}. Of its genes, {warm['genes_kept']:,} were known there and kept their "
        f"rows; {warm['genes_new']:,} are new. {warm['genes_dropped']:,} genes of the source are not in this corpus and were dropped. "
        "The optimiser began without moments, and the learning rate as the recipe says."
    )
    rows, origin = [], warm
    while origin is not None:
        rows.append(
            {
                "source": origin["source"],
                "weights (sha256)": origin["weights_sha256"][:12],
                "its corpus": (origin["corpus_id"] or "unknown")[:12],
                "its step": origin["step"],
                "its cells seen": origin["cells_seen"],
                "genes kept": origin["genes_kept"],
                "new": origin["genes_new"],
                "dropped": origin["genes_dropped"],
            }
        )
        origin = origin["before"]
    caption = "The last row's model began at random." if len(rows) > 1 else ""
    return Section("Warm start", text, (Table("Weights this run began with", pd.DataFrame(rows), caption),))


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


def _frame(entries: list[dict[str, Any]], names: Mapping[str, str]) -> pd.DataFrame:
    """Fields of log lines under their names, beside step and minutes; what a line lacks is missing."""
    rows = [
        {"step": e["step"], "minutes": e["seconds"] / 60} | {name: e.get(key) for key, name in names.items()}
        for e in entries
    ]
    return pd.DataFrame(rows, columns=["step", "minutes", *names.values()], dtype=float)


def _validation(frame: pd.DataFrame, name: str, baseline: float | None) -> Figure:
    known = {} if baseline is None else {"gene + cell additive": baseline}  # JSON's null: undefined
    drawing = svg(lambda ax: curve_axes(ax, frame, "minutes", name, references=known))
    return Figure(f"Validation {name}", drawing, data=frame[["step", "minutes", name]])


def _trace(
    frame: pd.DataFrame, name: str, *, spans: bool = False, references: Mapping[str, float] | None = None
) -> Figure:
    """A logged quantity by step; `spans`: logarithmic where it spans more than a factor of ten."""
    x, y = frame["step"].to_numpy(), frame[name].to_numpy()
    known = y[np.isfinite(y)]
    logy = spans and known.size > 0 and known.min() > 0 and known.max() > 10 * known.min()
    drawing = svg(lambda ax: trace_axes(ax, x, y, logy=bool(logy), references=references, xlabel="step", ylabel=name))
    caption = "Line: medians of stretches of the log; band: their 5th to 95th percentiles." if known.size > 60 else ""
    return Figure(name[0].upper() + name[1:], drawing, caption, frame[["step", "minutes", name]])
