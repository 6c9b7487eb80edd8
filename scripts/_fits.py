"""Jobs of a benchmark: one fit scored on the test cells of a case, and lines that are missing found one by one."""

import json
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from _lines import finished, write
from _unpaired_data import Case

from expresser.record import plain_json, provenance
from translate.alignment_judging import spaces_of
from translate.evaluate import evaluate
from translate.fitting import fit
from translate.oracle import oracle
from translate.study import Modality

Made = TypeVar("Made")
Scores = dict[str, dict[str, Any]]  # of each method


class Skipped(Exception):
    """A job that cannot be done with these cells, and why."""


class Job(Protocol):
    """What is to be found: a dataclass whose fields are told in the line, one of them `method`."""

    @property
    def method(self) -> str: ...

    def key(self) -> str:
        """What a finished line is known by."""
        ...


def scored(
    method: str, config: Any, own: Case, *, seed: int, label: str | None, baselines: bool, best: bool = True
) -> Scores:
    """Fit SYSTEM or SYSTEM:PRESET, of which `config` is, and score it on the test cells; by name, what else is scored beside it.

    baselines: those that learn from the pairs of `own`; best: the oracle, where data were simulated.
    """
    for modality, changes in own.subset.items():
        config = replace(config, **{modality: replace(getattr(config, modality), **changes)})
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "fit"
        began, worked = time.perf_counter(), time.process_time()
        fitted = fit(method.partition(":")[0], own.study, split=own.split, out=out, config=config, seed=seed)
        seconds = {"fit_seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - worked}
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    if fitted is None:
        raise RuntimeError("the fit was cut short")
    ways: list[tuple[Modality, Modality]] = [("rna", "atac"), ("atac", "rna")]
    methods: dict[str, Any] = {method: {f"{s}_to_{t}": partial(fitted.predict, source=s, to=t) for s, t in ways}}
    if best and own.truth is not None:
        methods["oracle"] = oracle(own.truth, fitted.inputs)
    metrics, _ = evaluate(
        methods,
        own.study,
        own.split,
        fitted.inputs,
        latents={method: spaces_of(fitted)},
        directions=list(methods[method]),
        label=label,
        baselines=baselines,
        seed=seed,
    )
    found: Scores = metrics["methods"]
    by_phase: dict[str, float] = {}
    for entry in log:
        by_phase[entry["phase"]] = by_phase.get(entry["phase"], 0.0) + entry["seconds"]
    found[method] |= {**seconds, "phase_seconds": by_phase, "epochs": len(log)}
    for scores in found.values():
        scores["cells"] = metrics["cells"]
    return found


def find(
    wanted: Sequence[Any],
    out: Path | None,
    threads: int,
    case: Callable[[Any], tuple[Any, Callable[[], Made]]],
    run: Callable[[Any, Made], Scores],
) -> list[dict[str, Any]]:
    """Lines of all jobs, those that are missing found now and appended to `out`.

    case: of a job, a name for the cells that it is about, and how they are made; they are kept until a job has others. run: scores
    by method. What goes wrong in one job is its line.
    """
    known = finished(out)
    todo = [job for job in wanted if job.key() not in known]
    if out and todo:
        write(out, {"provenance": provenance()})
    at: Any = None
    made: Any = None
    for job in todo:
        name, make = case(job)
        try:
            if at != name:
                at, made = None, None  # before the next is made
                at, made = name, make()
            found = run(job, made)
        except Skipped as reason:
            found = {job.method: {"skipped": str(reason)}}
        except Exception as error:
            traceback.print_exc()
            found = {job.method: {"failed": f"{type(error).__name__}: {error}"}}
        for method, scores in found.items():
            key = job.key() if method == job.method else f"{job.key()} {method}"
            line = {**vars(job), "method": method, "key": key, "threads": threads, **scores}
            known[key] = line
            print(json.dumps(plain_json({k: v for k, v in line.items() if k != "key"})), flush=True)
            if out:
                write(out, line)
    return [line for key, line in known.items() if any(key.startswith(job.key()) for job in wanted)]


def score(line: dict[str, Any], direction: str | None, name: str) -> float | None:
    """One number of a line."""
    value = line.get(name) if direction is None else line.get(direction, {}).get(name)
    return None if value is None or value != value else float(value)
