"""The training steps that bench_step.py compares, each in a process of its own that makes one when told to."""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _step_cells import corpus
from _step_references import RankedBert, ValueInput
from torch import Tensor

from expresser.model.cells import Cells
from pretrain.config import Recipe
from pretrain.data import to_cells, training_stream
from pretrain.objective import Objective, squared_error, targets
from pretrain.optim import adamw
from pretrain.rates import matmul_ceiling
from pretrain.recipes import full, paper, paper_naive
from pretrain.start import build_model
from pretrain.throughput import cost

SHARE = 0.25  # genes of a cell that one mask hides, in all cases but the BERT


@dataclass(frozen=True)
class Setting:
    """What all cases of a run share."""

    lengths: str
    folder: Path
    cells: int
    max_tokens: int
    threads: int
    device: str
    small: bool


@dataclass(frozen=True)
class Case:
    """One way to train on a cell: which it is, and what to say of it in the table."""

    recipe: Recipe
    what: str
    reference: Callable[[int, Recipe], RankedBert | ValueInput] | None = None


def _fewer_genes() -> Recipe:
    base = full()
    return replace(base, data=replace(base.data, max_genes=512))


CASES = {
    "paper_naive": Case(paper_naive(), "padded to 1,100, nn.TransformerEncoder, one mask, fp32"),
    "paper": Case(paper(), "packed, one mask, bf16"),
    "full_fp32": Case(replace(full(), precision="no"), "packed, all folds, fp32"),
    "full": Case(full(), "packed, all folds, bf16"),
    "full_512": Case(_fewer_genes(), "packed, all folds, bf16, at most 512 genes shown"),
    "bert": Case(full(), "BERT, 15 % masked, bf16", lambda vocab, recipe: RankedBert(vocab, recipe.model)),
    "value_input": Case(
        full(),
        "values at the input, one mask, bf16",
        lambda vocab, recipe: ValueInput(vocab, recipe.model, passes=1, share=SHARE),
    ),
    "value_input_folds": Case(
        full(),
        "values at the input, all folds, bf16",
        lambda vocab, recipe: ValueInput(vocab, recipe.model, passes=round(1 / SHARE), share=SHARE),
    ),
}


def sized(case: Case, setting: Setting) -> Recipe:
    """The case's recipe at the setting's batch; with `small` two narrow layers, to see whether all works."""
    recipe = replace(
        case.recipe, data=replace(case.recipe.data, global_batch=setting.cells, max_tokens=setting.max_tokens)
    )
    if setting.small:
        recipe = replace(recipe, model=replace(recipe.model, n_layers=2, d_model=32, n_heads=2))
    return recipe


class Worker:
    """A model with its optimiser and its cells, and one training step at a time."""

    def __init__(self, name: str, setting: Setting) -> None:
        self.device, case = torch.device(setting.device), CASES[name]
        self.recipe = recipe = sized(case, setting)
        self.corpus = corpus(setting.lengths, setting.folder)
        self.stream = training_stream(self.corpus, np.arange(self.corpus.n_cells), recipe)
        self.objective = Objective.of(recipe.objective)
        self.reference = None if case.reference is None else case.reference(len(self.corpus.vocab), recipe)
        if self.reference is None:
            self.model: torch.nn.Module = build_model(recipe, len(self.corpus.vocab)).to(self.device)
            self.optimizer = adamw(self.model, recipe.optim)  # type: ignore[arg-type]
        else:
            self.model = self.reference.to(self.device)
            self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.model.train()
        self.dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
        self.ceiling = matmul_ceiling(self.device, self.dtype)

    def step(self, number: int) -> dict[str, Any]:
        """Prepare, forward, backward, clip, update: how long, and what was done. Counts are in memory before it begins."""
        what, counts = self.stream[number * self.recipe.data.global_batch]
        shown = np.minimum(what.lengths.astype(np.int64), self.recipe.train_genes)
        n_targets = max(1, self.objective.n_targets(torch.from_numpy(shown)))
        asked = 0
        self._wait()
        began, cpu = time.perf_counter(), time.process_time()
        for micro, batch in zip(what.micro, counts):
            cells = to_cells(
                batch,
                micro.epoch,
                seed=self.recipe.seed,
                device=self.device,
                max_genes=self.recipe.train_genes,
                target_sum=self.recipe.model.target_sum,
            )
            asked += self._backward(cells, n_targets)
        if self.recipe.optim.grad_clip > 0:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.optim.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
        return {
            "seconds": seconds,
            "cpu_seconds": cpu,
            "cells": int(shown.size),
            "tokens": int(shown.sum()),
            "targets": asked,
            "flops": self._flops(shown),
        }

    def _backward(self, cells: Cells, n_targets: int) -> int:
        asked, losses = 0, self._losses(cells, n_targets)
        while True:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                found = next(losses, None)
            if found is None:
                return asked
            found[0].backward()
            asked += found[1]

    def _losses(self, cells: Cells, n_targets: int) -> Iterator[tuple[Tensor, int]]:
        if self.reference is not None:
            yield from self.reference.losses(cells)
            return
        views = self.objective.views(cells)
        error = squared_error(self.model(cells, views).prediction, truth=targets(cells, views))
        yield error.sum() / n_targets, views.query.numel()

    def _flops(self, shown: np.ndarray) -> float:
        if self.reference is not None:
            return 3 * self.reference.forward_flops(torch.from_numpy(shown))
        config = self.model.config  # type: ignore[union-attr]
        return cost(config, shown, self.objective.n_folds, self.objective.share).flops  # type: ignore[arg-type]

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def facts(self) -> dict[str, Any]:
        """Peak memory so far (MB; of the device, or of this process) and the ceiling that MFU is a share of."""
        on_device = self.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(self.device) / 2**20 if on_device else status_mb("VmHWM")
        return {
            "peak_mb": None if peak is None else round(peak),
            "ceiling": self.ceiling,
            "precision": str(self.dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "model": asdict(self.recipe.model),
        }


def status_mb(field: str) -> float | None:
    """A line of /proc/self/status; None where the system has no such file."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if line.startswith(field))


def serve(name: str, setting: Setting, pipe: Connection) -> None:
    """Answer step numbers with their measurements and None with the facts, until the pipe closes."""
    torch.set_num_threads(setting.threads)
    worker = Worker(name, setting)
    pipe.send("ready")
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        pipe.send(worker.facts() if number is None else worker.step(number))
