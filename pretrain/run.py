"""A pretraining run in its folder: what describes it, its checkpoints, what it leaves at the end."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from expresser import checkpoint
from expresser.atomic import remove_folder
from expresser.corpus.store import Corpus
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.record import provenance, write_metrics
from expresser.run_folder import Log
from pretrain.config import Recipe
from pretrain.state import save_state

RATES = ("cells_per_s", "tokens_per_s", "targets_per_s", "flops_per_s", "mfu", "wait_share")
# Options that a resumed run may set anew.
MAY_CHANGE = frozenset(
    {
        "log_every",
        "eval_every",
        "save_every",
        "keep_last",
        "compile",
        "compile_mode",
        "strategy",
        "timeout_minutes",
        "tracker",
        "data.max_tokens",
        "data.valid_cells",
    }
)


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    recipe: Recipe
    out: Path
    corpus: Corpus
    record: dict[str, Any]

    def save(
        self, model: ExpresserPreTrainedModel, moments: Mapping[str, Tensor], counters: Mapping[str, Any], log: Log
    ) -> None:
        """Write a checkpoint, then drop those that are neither among the newest nor the best.

        Whatever goes wrong, the checkpoints that were there still are.
        """
        step = counters["step"]
        log.flush()
        checkpoint.save(
            _folder(self.out, step),
            model,
            self.corpus.vocab,
            self.record | dict(counters) | {"valid": log.last("valid")},
            extra=lambda folder: save_state(folder, moments, counters),
        )
        found = checkpoint.list_checkpoints(self.out)
        validated = {
            _folder(self.out, entry["step"]): entry["valid"]["mse"] for entry in log.entries if "valid" in entry
        }
        best = min((one for one in found if one in validated), key=lambda one: validated[one], default=None)
        for old in found[: -self.recipe.keep_last]:  # keep_last is 1 or more
            if old != best:
                remove_folder(old)

    def finish(self, model: ExpresserPreTrainedModel, metrics: dict[str, Any]) -> None:
        """Write the final model, the metrics and the report."""
        facts = {
            key: metrics[key] for key in ("valid", "additive", "best", "step", "cells_seen", "seconds", "cells_per_s")
        }
        checkpoint.save(self.out / "model", model, self.corpus.vocab, self.record | facts)
        write_metrics(self.out / "metrics.json", metrics)
        draw(self.out)


def draw(out: Path) -> None:
    """The report of a finished run."""
    from expresser.pages import pretraining_page  # drawing is needed once, at the end

    pretraining_page(out)


def newest_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint of a run's folder."""
    found = checkpoint.list_checkpoints(out)
    return found[-1] if found else None


def _folder(out: Path, step: int) -> Path:
    return out / "checkpoints" / f"step-{step:08d}"


def describe(recipe: Recipe, corpus: Corpus, warm_start: dict[str, Any] | None) -> dict[str, Any]:
    """What ``run.json`` holds; `warm_start`: what the run began with, where that is another's weights."""
    return {
        "recipe": recipe.name,
        "config": asdict(recipe),
        "seed": recipe.seed,
        "corpus_id": corpus.corpus_id,
        "cells": corpus.n_cells,
        "genes": len(corpus.vocab),
        "genes_sha256": corpus.vocab.sha256,
        "sources": [source["name"] for source in corpus.manifest["sources"]],
        "manifest": [
            {key: source[key] for key in ("name", "cells", "sha256")} for source in corpus.manifest["sources"]
        ],
        "warm_start": warm_start,
        "provenance": provenance(seed=recipe.seed),
    }


def summary(log: Log) -> dict[str, Any]:
    """What the run came to."""
    newest = log.entries[-1]

    def usual(name: str) -> float | None:
        found = [entry[name] for entry in log.entries if entry.get(name) is not None]
        return float(np.median(found)) if found else None

    return {
        "step": newest["step"],
        "cells_seen": newest["cells_seen"],
        "seconds": newest["seconds"],
        "loss": newest["loss"],
        "valid": newest["valid"],
        "additive": newest["additive"],
        "start": log.entries[0]["valid"],
        "best": min(
            ({"step": entry["step"], "mse": entry["valid"]["mse"]} for entry in log.entries if "valid" in entry),
            key=lambda one: one["mse"],
        ),
        **{name: usual(name) for name in RATES},
    }
