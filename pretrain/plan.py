"""``--plan``: what a run would cost, before it is begun."""

import time
from pathlib import Path

import numpy as np
import torch

from expresser.corpus.store import Corpus
from expresser.corpus.stream import Stream
from pretrain.config import Recipe
from pretrain.data import split, to_cells
from pretrain.loop import Plan, build_model
from pretrain.objective import Objective, squared_error, targets
from pretrain.throughput import cost, memory_bytes, n_parameters

_TIMED_STEPS = 3


def describe(recipe: Recipe, corpus_folder: str | Path) -> str:
    """Tokens, FLOPs, memory and hours of a run as text. The rate is timed on this machine for three steps; nothing is written."""
    recipe.check()
    corpus = Corpus.open(corpus_folder)
    parts = split(corpus, recipe.data, recipe.seed)
    plan = Plan.of(recipe, parts.train.size)
    objective = Objective.of(recipe.objective)
    model = build_model(recipe, len(corpus.vocab))
    lengths = np.minimum(corpus.lengths[parts.train].astype(np.int64), recipe.train_genes)
    epoch = cost(model.config, lengths, objective.n_folds, recipe.objective.masked_share)
    share = plan.total_cells / parts.train.size
    parameters = n_parameters(model)
    memory = memory_bytes(
        model.config, parameters, recipe.data.max_tokens, objective.n_folds, 2 if recipe.precision == "bf16" else 4
    )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cells_per_s = _rate(recipe, corpus, parts.train, objective, model.to(device), device)
    flops = epoch.flops * share
    hours = plan.total_cells / cells_per_s / 3600
    lines = {
        "corpus": f"{corpus.n_cells:,} cells, {len(corpus.vocab):,} genes; {parts.valid.size:,} cells held out",
        "model": f"{parameters:,} parameters",
        "run": f"{plan.total_steps:,} steps of {plan.global_batch:,} cells = {share:.2f} epochs",
        "tokens": f"{epoch.tokens * share:.3g} ({lengths.mean():.0f} a cell)",
        "targets": f"{epoch.targets * share:.3g}",
        "FLOPs": f"{flops:.3g} (matrix products, forward and backward)",
        "memory": f"about {memory / 1e9:.1f} GB a process ({recipe.data.max_tokens:,} tokens at once)",
        "rate": f"{cells_per_s:,.1f} cells/s on this {device.type} ({_TIMED_STEPS} steps timed), {flops / hours / 3600:.3g} FLOP/s",
        "time": f"{hours:.2f} hours on one such process",
    }
    return "\n".join(f"{name:<8} {text}" for name, text in lines.items())


def _rate(
    recipe: Recipe,
    corpus: Corpus,
    rows: np.ndarray,
    objective: Objective,
    model: torch.nn.Module,
    device: torch.device,
) -> float:
    """Cells per second of forward and backward passes, the first step not counted."""
    stream = Stream(
        corpus,
        rows,
        seed=recipe.seed,
        global_batch=recipe.data.global_batch,
        max_tokens=recipe.data.max_tokens,
        max_genes=recipe.train_genes,
    )
    seconds = []
    for what, counts in stream.steps(0, (_TIMED_STEPS + 1) * recipe.data.global_batch):
        began = time.perf_counter()
        for number, batch in enumerate(counts):
            cells = to_cells(
                batch,
                what.micro[number].epoch,
                seed=recipe.seed,
                device=device,
                max_genes=recipe.train_genes,
                target_sum=recipe.model.target_sum,
            )
            views = objective.views(cells)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                prediction = model(cells, views).prediction
            squared_error(prediction, truth=targets(cells, views)).sum().backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return recipe.data.global_batch / float(np.median(seconds[1:]))
