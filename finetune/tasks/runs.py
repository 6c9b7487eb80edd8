"""What gene and pair tasks share: fits that outlive an interruption, and their seconds."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser import __version__
from expresser.notebook import card
from expresser.record import canonical_json, provenance
from expresser.run_folder import claim
from finetune.splits.rules import Split
from finetune.state import Result, Store

Progress = Callable[[int, int, str], None]
Predict = Callable[[Split], np.ndarray]


@dataclass(frozen=True, eq=False)
class Row:
    """One line of a result: how the test items of a split are predicted from its training items.

    fingerprint: of all that the prediction depends on beside the split, so that a finished fit is found again.
    added_to: the row that this one extends, and is to be compared with alone.
    """

    name: str
    predict: Predict
    fingerprint: str
    dim: int | None = None
    added_to: str | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """The prediction of a split's test items, and the seconds that the fit took."""

    prediction: np.ndarray
    seconds: float


@dataclass(frozen=True, eq=False, repr=False)
class TaskResult:
    """What a task found.

    scores: of the headline split, index table. predictions: of each test item of each fold; of genes, index gene_id.
    metrics: what metrics.json holds. resumed: how many fits an interrupted run had left in the folder; finished: the
    folder held the whole run already.
    """

    scores: pd.DataFrame
    predictions: pd.DataFrame
    metrics: dict[str, Any]
    resumed: int = 0
    finished: bool = False

    def __repr__(self) -> str:
        return f"TaskResult({len(self.scores)} rows)\n{self.scores}"

    def _repr_html_(self) -> str:
        return card(
            "TaskResult",
            {"predictions": len(self.predictions), "fits found": self.resumed},
            {"scores": self.scores},
            opened=True,
        )


class Steps:
    """Counts the fits of a run for its progress bar."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, what: str) -> None:
        """One more is done."""
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, what)


def run_rows(rows: Sequence[Row], splits: Sequence[Split], store: Store, steps: Steps) -> dict[str, list[Fitted]]:
    """Each row's prediction of each split, in the order of `splits`; those in the store are not made again."""
    marks = [fingerprint(split.kind, split.train, split.rows, split.test) for split in splits]
    found: dict[str, list[Fitted]] = {}
    for row in rows:
        mine = []
        for split, mark in zip(splits, marks, strict=True):
            kept = store.result(fingerprint(row.fingerprint, mark)[:32], partial(_fit, row, split))["fit"]
            mine.append(Fitted(kept.arrays["prediction"], kept.facts["seconds"]))
            steps.add(row.name)
        found[row.name] = mine
    return found


def _fit(row: Row, split: Split) -> dict[str, Result]:
    start = time.perf_counter()
    prediction = np.asarray(row.predict(split), dtype=np.float64)
    return {"fit": Result({"seconds": time.perf_counter() - start}, {"prediction": prediction})}


def fingerprint(*parts: Any) -> str:
    """A hash of arrays, frames, series and plain JSON values, in this order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, pd.DataFrame | pd.Series):
            columns = list(map(str, part.columns)) if isinstance(part, pd.DataFrame) else []
            digest.update(json.dumps(columns).encode())
            digest.update(pd.util.hash_pandas_object(part).to_numpy().tobytes())
        elif isinstance(part, np.ndarray) and part.dtype == object:
            digest.update(json.dumps([str(v) for v in part]).encode())
        elif isinstance(part, np.ndarray):
            digest.update(f"{part.dtype}{part.shape}".encode() + np.ascontiguousarray(part).tobytes())
        else:
            digest.update(canonical_json({"": part}).encode())
        digest.update(b"\0")
    return digest.hexdigest()


def open_run(
    out: Path, *, task: str, labels: str, tables: Mapping[str, str], config: Mapping[str, Any], seed: int
) -> tuple[Store, dict[str, Any] | None]:
    """Make `out` the folder of this run: where its finished fits are kept, and its metrics if it was complete before.

    The same labels, tables and options go on where an interrupted run stopped.

    Raises
    ------
    InputError
        If the folder holds another run, or something else.
    """
    record = {
        "task": task,
        "labels_sha256": labels,
        "embeddings": dict(tables),
        "config": json.loads(canonical_json(config)),
        "version": __version__,
        "provenance": provenance(seed=seed),
    }
    also = ("task", "embeddings", "version")
    claim(out, record, resume=True, what=f"a run of finetune {task}", data="labels_sha256", also=also)
    store, done = Store(out, record["config"]), out / "metrics.json"
    if done.is_file() and (out / "predictions.parquet").is_file() and (out / "report.html").is_file():
        store.clear()  # killed at its very end, a run may have left what it no longer needs
        return Store(None, None), dict(json.loads(done.read_text()))
    return store, None
