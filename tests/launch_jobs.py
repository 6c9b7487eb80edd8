"""Pretraining jobs of several processes, as a user starts them: options, environment, logs, and an end to waiting."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
LAUNCH = REPOSITORY / "scripts" / "launch"

# Two processes need five seconds for their imports, and a minute where many tests run beside them.
PATIENCE = 300.0

# Accelerate leaves DeepSpeed out, and says nothing, where it is told to use the CPU: DeepSpeed is told instead.
ZERO_ON_CPU = {"ACCELERATE_USE_CPU": "false", "DS_ACCELERATOR": "cpu"}


def job(corpus: Path, out: Path, *more: str, steps: int = 12) -> list[str]:
    """What follows ``-m pretrain``: a run of a few milliseconds a step, of several micro-batches each."""
    options = {
        "model.d_model": 16, "model.n_layers": 1, "model.n_heads": 2, "model.max_genes": 40,
        "data.global_batch": 9, "data.max_tokens": 100, "data.epochs": 1000, "data.max_steps": steps,
        "data.valid_share": 0.1, "data.valid_cells": 8, "precision": "no", "log_every": 1, "eval_every": 50, "save_every": 10,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return ["small", "--corpus", str(corpus), "--out", str(out), *words, *more]


def environment(**more: str) -> dict[str, str]:
    """As many threads as here: another number adds up sums in another order."""
    return os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": str(torch.get_num_threads())} | more


def log_of(run: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, without what depends on the clock."""
    path = run / "log.jsonl"
    text = path.read_text() if path.is_file() else ""
    lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    kept = ("step", "cells_seen", "loss", "lr", "grad_norm", "valid", "additive")
    return [{key: line[key] for key in kept if key in line} for line in lines]


def close(one: Path, other: Path, *, rel: float = 2e-4) -> None:
    """Two runs are the same but for the order in which sums were rounded."""
    for a, b in zip(log_of(one), log_of(other), strict=True):
        assert a.keys() == b.keys()
        assert (a["step"], a["cells_seen"]) == (b["step"], b["cells_seen"])
        for key, looser in (("loss", 1), ("grad_norm", 50), ("valid", 10), ("additive", 10)):
            if a.get(key) is not None:
                assert b[key] == pytest.approx(a[key], rel=looser * rel), f"{key} of step {a['step']}"


def start(words: Sequence[str], log: Path, **more: str) -> subprocess.Popen[bytes]:
    """Begin a command whose output goes to a file."""
    with log.open("wb") as file:
        return subprocess.Popen(
            words, cwd=REPOSITORY, env=environment(**more), stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )  # fmt: skip


def until(
    condition: Callable[[], bool], what: str, running: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path]
) -> None:
    """Wait for what must come; where it does not, end the processes and show what they said."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            for process in running:
                _end(process)
            pytest.fail(f"waited {PATIENCE:.0f} s for {what}\n" + said(logs))
        time.sleep(0.01)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL a launcher and its workers: these are in no process group of the launcher's, and would outlive it."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid)
        for one in [family, *family.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def said(logs: Sequence[Path]) -> str:
    """The ends of processes' outputs."""
    return "\n".join(f"--- {log.name}\n{log.read_text(errors='replace')[-3000:]}" for log in logs)
