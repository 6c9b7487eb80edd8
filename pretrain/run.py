"""The folder of a run: who it belongs to, its log, its checkpoints, what it leaves at the end."""

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expresser import checkpoint
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.record import provenance, write_metrics
from pretrain.config import Recipe
from pretrain.state import save_state


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

    def save(self, model: ExpresserPreTrainedModel, optimizer: Any, counters: dict[str, Any], log: "Log") -> None:
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


class Log:
    """``log.jsonl``: one JSON object a line; on resume, lines after the checkpoint are cut off."""

    def __init__(self, path: Path, *, keep_until: int, active: bool) -> None:
        self.path, self.active = path, active
        self.entries: list[dict[str, Any]] = []
        if keep_until and path.exists():
            # A line without its newline was cut short by what killed the run.
            lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            self.entries = [line for line in lines if line["cells_seen"] <= keep_until]
        if active:
            part = path.with_suffix(".part")
            part.write_text("".join(json.dumps(entry) + "\n" for entry in self.entries))
            os.replace(part, path)

    def write(self, entry: dict[str, Any]) -> None:
        """Append a line."""
        self.entries.append(entry)
        if self.active:
            with self.path.open("a") as file:
                file.write(json.dumps(entry) + "\n")

    def last(self, key: str) -> dict[str, float]:
        """The newest entry that has this key, or nothing."""
        return next((entry[key] for entry in reversed(self.entries) if key in entry), {})

    def metrics(self) -> dict[str, Any]:
        """What the run came to."""
        newest = self.entries[-1]
        rates = [entry["cells_per_s"] for entry in self.entries if "cells_per_s" in entry]
        per_target = [entry["targets_per_s"] for entry in self.entries if "targets_per_s" in entry]
        return {
            "step": newest["step"],
            "cells_seen": newest["cells_seen"],
            "seconds": newest["seconds"],
            "loss": newest["loss"],
            "valid": newest["valid"],
            "additive": newest["additive"],
            "start": self.entries[0]["valid"],
            "cells_per_s": float(np.median(rates)),
            "targets_per_s": float(np.median(per_target)),
        }


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


def claim(out: Path, record: dict[str, Any], *, resume: bool) -> None:
    """Make ``out`` this run's, or say why it cannot be."""
    path = out / "run.json"
    if path.is_file():
        before = json.loads(path.read_text())
        if not resume:
            raise InputError(f"{out}: holds a run already. Add --resume to go on with it, or choose another --out.")
        if before["corpus_id"] != record["corpus_id"]:
            raise InputError(
                f"{out}: this run began on corpus {before['corpus_id'][:12]}…, not on {record['corpus_id'][:12]}…. "
                "Resume with that corpus, or choose another --out."
            )
        for part in (out / "checkpoints").glob(".step-*.part"):  # left by a run that was killed while it saved
            shutil.rmtree(part)
        changed = _differences(before["config"], record["config"])
        if changed:
            raise InputError(
                f"{out}: this run began with another configuration ({'; '.join(changed[:5])}). "
                "Resume with the same options, or choose another --out."
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not a pretraining run. Choose a new folder for --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_metrics(path, record)


_MAY_CHANGE = {"log_every", "eval_every", "save_every", "keep_last", "tracker", "data.max_tokens", "data.valid_cells"}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = flat(before), flat(now)
    return [
        f"{name} was {old.get(name)!r}, is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if name not in _MAY_CHANGE and old.get(name) != new.get(name)
    ]


def flat(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    found: dict[str, Any] = {}
    for key, value in nested.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
