"""A pretraining run in its folder: what describes it, its checkpoints, what it leaves at the end."""

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expresser import checkpoint
from expresser.corpus.store import Corpus
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.record import provenance, write_metrics
from expresser.run_folder import Log
from pretrain.config import Recipe
from pretrain.state import save_state

# Options that a resumed run may set anew.
MAY_CHANGE = frozenset(
    {"log_every", "eval_every", "save_every", "keep_last", "tracker", "data.max_tokens", "data.valid_cells"}
)


@dataclass(frozen=True)
class Run:
    """The folder of a run."""

    recipe: Recipe
    out: Path
    corpus: Corpus
    record: dict[str, Any]

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        found = checkpoint.list_checkpoints(self.out)
        return found[-1] if found else None

    def save(self, model: ExpresserPreTrainedModel, optimizer: Any, counters: dict[str, Any], log: Log) -> None:
        """Write a checkpoint and drop those older than the ones to keep."""
        inner = getattr(optimizer, "optimizer", optimizer)
        checkpoint.save(
            self.out / "checkpoints" / f"step-{counters['step']:08d}",
            model,
            self.corpus.vocab,
            self.record | counters | {"valid": log.last("valid")},
            extra=lambda folder: save_state(folder, model, inner, counters),
        )
        for old in checkpoint.list_checkpoints(self.out)[: -self.recipe.keep_last]:  # keep_last is 1 or more
            shutil.rmtree(old)

    def finish(self, model: ExpresserPreTrainedModel, metrics: dict[str, Any]) -> None:
        """Write the final model, the metrics and the report."""
        from expresser.pages import pretraining_page  # drawing is needed once, at the end

        facts = {"valid": metrics["valid"], "step": metrics["step"], "cells_seen": metrics["cells_seen"]}
        checkpoint.save(self.out / "model", model, self.corpus.vocab, self.record | facts)
        write_metrics(self.out / "metrics.json", metrics)
        pretraining_page(self.out)


def describe(recipe: Recipe, corpus: Corpus) -> dict[str, Any]:
    """What ``run.json`` holds."""
    return {
        "recipe": recipe.name,
        "config": asdict(recipe),
        "seed": recipe.seed,
        "corpus_id": corpus.corpus_id,
        "cells": corpus.n_cells,
        "genes": len(corpus.vocab),
        "genes_sha256": corpus.vocab.sha256,
        "sources": [source["name"] for source in corpus.manifest["sources"]],
        "provenance": provenance(seed=recipe.seed),
    }


def summary(log: Log) -> dict[str, Any]:
    """What the run came to."""
    newest = log.entries[-1]
    rates = [entry["cells_per_s"] for entry in log.entries if "cells_per_s" in entry]
    per_target = [entry["targets_per_s"] for entry in log.entries if "targets_per_s" in entry]
    return {
        "step": newest["step"],
        "cells_seen": newest["cells_seen"],
        "seconds": newest["seconds"],
        "loss": newest["loss"],
        "valid": newest["valid"],
        "additive": newest["additive"],
        "start": log.entries[0]["valid"],
        "cells_per_s": float(np.median(rates)),
        "targets_per_s": float(np.median(per_target)),
    }
