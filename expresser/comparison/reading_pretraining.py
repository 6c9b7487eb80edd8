"""A pretraining run read back; one that is not finished speaks by its log."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expresser.comparison.run import Run, Scores, Trace, present
from expresser.comparison.scores import HELD_OUT
from expresser.pages import SCORES, Pretraining
from expresser.run_folder import flat

BASELINE = "gene + cell additive"


def read_pretraining(folder: Path, record: Mapping[str, Any], metrics: Mapping[str, Any] | None) -> Run:
    """The run whose run.json and metrics.json these are."""
    run = Pretraining.read(folder)
    found, config = run.metrics, record["config"]
    held = config.get("data", {})
    remarks = () if metrics else (f"is not finished: its log ends at step {found['step']:,}.",)
    warm = record.get("warm_start")
    return Run(
        path=folder,
        name=folder.name,
        section="Pretraining",
        about=str(record["recipe"]),
        seed=record.get("seed"),
        settings={k: v for k, v in flat(config).items() if k not in ("seed", "name")}
        | {"recipe": record["recipe"], "warm start": None if warm is None else warm["weights_sha256"][:12]},
        data={"corpus": record["corpus_id"]},
        judged=present(
            {
                "seed that held cells out": record.get("seed"),
                "share held out": held.get("valid_share"),
                "held out by": held.get("valid_by") or "cell",
                "validation cells": held.get("valid_cells"),
                "targets": found["additive"].get("n"),
            }
        ),
        scores=(Scores("Held-out cells", HELD_OUT, {"": found["valid"]}, {BASELINE: found["additive"]}),),
        traces=_traces(run),
        facts={
            "minutes": found["seconds"] / 60,
            "steps": found["step"],
            "cells seen": found["cells_seen"],
            **run.speeds.drop(columns=["step", "minutes"], errors="ignore").median().to_dict(),
            "step of the lowest MSE": None if run.best is None else run.best["step"],
        },
        provenance=record.get("provenance", {}),
        finished=metrics is not None,
        remarks=remarks,
    )


def _traces(run: Pretraining) -> tuple[Trace, ...]:
    valid, training = run.validation, run.training
    traces = []
    for key, name in SCORES.items():
        if key == "n":
            continue
        value = run.metrics["additive"].get(key)
        reference = None if value is None else (BASELINE, float(value))
        traces.append(
            Trace(f"Validation {name}", name, ("minutes", "step"), valid[["step", "minutes", name]], reference)
        )
    loss = training[["step", "minutes", "training loss"]]
    return (*traces, Trace("Training loss", "training loss", ("minutes", "step"), loss, noisy=True))
