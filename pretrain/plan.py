"""``--plan``: what a run would cost, before it is begun."""

import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int64

from expresser.corpus.budgets import PackedTokens, StaticShapes
from expresser.corpus.staging import bytes_text
from expresser.corpus.stream import Stream
from expresser.model.configuration import ExpresserConfig
from expresser.model.modeling import ExpresserPreTrainedModel
from pretrain.compiled import compile_forward, compiles
from pretrain.config import Recipe
from pretrain.data import Groups, gene_corpus, split, training_stream, weighed_groups
from pretrain.objective import Objective, squared_error
from pretrain.packing import Packing
from pretrain.start import Plan, build_model
from pretrain.throughput import Cost, cost, memory_bytes, n_parameters

_TIMED_STEPS = 3
_CUT_STEPS = 16
_GROUPS_SHOWN = 12


@dataclass(frozen=True)
class Forecast:
    """What the cells that a run shows amount to.

    Attributes
    ----------
    tokens, targets, flops
        Of the whole run. Expected over the order of cells: a group of a mixture counts as often as it is shown.
    most_tokens
        Padded tokens of the largest micro-batch that a single process can meet: with length windows it does.
    passes
        How often the run passes through each group of the mixture; through all training cells ("") where there is none.
    """

    tokens: float
    targets: float
    flops: float
    most_tokens: int
    passes: dict[str, float]

    @classmethod
    def of(
        cls, recipe: Recipe, config: ExpresserConfig, lengths: Int64[np.ndarray, " train"], groups: Groups | None
    ) -> "Forecast":
        """Of a recipe on training cells that show these numbers of genes."""
        plan = Plan.of(recipe, lengths.size)
        if groups is None:
            parts, passes = [lengths], {"": plan.total_cells / lengths.size}
        else:
            by_group = lengths[np.argsort(groups.of_cell, kind="stable")]
            parts = np.split(by_group, np.cumsum(groups.sizes)[:-1])
            passes = dict(zip(groups.names, (plan.total_cells * groups.shares / groups.sizes).tolist()))
        costs = [(times, _cost(recipe, config, part)) for times, part in zip(passes.values(), parts)]
        longest = int(lengths.max())
        return cls(
            tokens=sum(times * one.tokens for times, one in costs),
            targets=sum(times * one.targets for times, one in costs),
            flops=sum(times * one.flops for times, one in costs),
            most_tokens=min(plan.global_batch * longest, max(recipe.data.max_tokens, longest)),
            passes=passes,
        )


def _cost(recipe: Recipe, config: ExpresserConfig, lengths: Int64[np.ndarray, " cells"]) -> Cost:
    return cost(config, lengths, Objective.of(recipe.objective).n_folds, recipe.objective.masked_share)


def describe(recipe: Recipe, corpus_folder: str | Path) -> str:
    """Tokens, FLOPs, memory and hours of a run as text. The rate is timed on this machine for three steps; nothing is written."""
    recipe.check()
    corpus = gene_corpus(corpus_folder)
    parts = split(corpus, recipe.data, recipe.seed)
    plan = Plan.of(recipe, parts.train.size)
    objective = Objective.of(recipe.objective)
    model = build_model(recipe, len(corpus.vocab))
    lengths = np.minimum(corpus.lengths[parts.train].astype(np.int64), recipe.train_genes)
    groups = weighed_groups(corpus, parts.train, recipe.data)
    run = Forecast.of(recipe, model.config, lengths, groups)
    parameters = n_parameters(model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    packing = Packing.of(recipe, device, static=compiles(recipe))
    most_tokens = run.most_tokens
    if isinstance(packing.budget, StaticShapes):
        most_tokens = max(shape.tokens for shape in packing.budget.shapes)
    memory = memory_bytes(
        model.config, parameters, most_tokens, objective.n_folds, 2 if recipe.precision == "bf16" else 4
    )
    stream = training_stream(corpus, parts.train, recipe, budget=packing.budget)
    model = model.to(device)
    seconds = run.flops * _seconds_per_flop(recipe, model.config, stream, model, packing)
    epochs = plan.total_cells / parts.train.size
    lines = [
        ("corpus", f"{corpus.n_cells:,} cells, {len(corpus.vocab):,} genes; {parts.valid.size:,} cells held out"),
        ("model", f"{parameters:,} parameters"),
        ("run", f"{plan.total_steps:,} steps of {plan.global_batch:,} cells = {epochs:.2f} epochs"),
        *(("mixture", line) for line in _mixture_lines(run, groups)),
        ("tokens", f"{run.tokens:.3g} ({run.tokens / plan.total_cells:.0f} a cell)"),
        ("targets", f"{run.targets:.3g}"),
        ("FLOPs", f"{run.flops:.3g} (matrix products, forward and backward)"),
        ("cut", _cut_line(packing, stream, min(plan.total_steps, _CUT_STEPS))),
        ("memory", f"about {bytes_text(memory)} a process (at most {most_tokens:,} tokens at once)"),
        (
            "rate",
            f"{plan.total_cells / seconds:,.1f} cells/s on this {device.type} ({_TIMED_STEPS} steps timed), "
            f"{run.flops / seconds:.3g} FLOP/s",
        ),
        ("time", f"{_span(seconds)} on one such process, without validation{_deadline(recipe, seconds)}"),
    ]
    return "\n".join(f"{name:<8} {text}" for name, text in lines)


def _cut_line(packing: Packing, stream: Stream, n_steps: int) -> str:
    """How steps are cut into micro-batches, and what padding and filling up add to the first steps."""
    own = layers = attention = n_micro = 0
    for number in range(n_steps):
        for micro in stream.step(number * stream.global_batch).micro:
            shown = np.minimum(stream.corpus.lengths_of(micro.rows), stream.max_genes).astype(np.int64)
            tokens, slots = packing.computed(shown)
            own, layers, attention, n_micro = own + int(shown.sum()), layers + tokens, attention + slots, n_micro + 1
    a_step = f"{n_micro / n_steps:.1f} micro-batches a step"
    more = f"attention computes {attention / own - 1:.0%} more tokens than cells have"
    if isinstance(packing.budget, StaticShapes):
        n = len(packing.budget.shapes)
        return f"{n} static shapes, {a_step}; {1 - own / layers:.0%} of the tokens fill up, {more}"
    if isinstance(packing.budget, PackedTokens):
        return f"by packed tokens, {a_step}; nothing is padded"
    return f"by padded tokens, {a_step}; {more}"


def _mixture_lines(run: Forecast, groups: Groups | None) -> list[str]:
    if groups is None:
        return []
    shown = [
        f"{name}: {share:.1%} of the cells shown, {run.passes[name]:.2f} passes through its {size:,}"
        for name, share, size in zip(groups.names, groups.shares, groups.sizes)
    ]
    more = len(shown) - _GROUPS_SHOWN
    return shown if more <= 0 else [*shown[:_GROUPS_SHOWN], f"… and {more} more"]


def _span(seconds: float) -> str:
    """In the unit in which one would wait."""
    if seconds < 5400:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 3600:.1f} hours"


def _deadline(recipe: Recipe, seconds: float) -> str:
    limit = recipe.data.minutes
    if limit is None or seconds <= 60 * limit:
        return ""
    return f"; data.minutes ends it after {limit:g} minutes, {60 * limit / seconds:.0%} of its steps"


def timed_positions(stream: Stream, window: int) -> list[int]:
    """Where the steps to be timed begin: the first ones, or of the first length window a short, a middling and a long one."""
    starts = [number * stream.global_batch for number in range(max(window, _TIMED_STEPS))]
    if window > 1:
        starts = sorted(starts[:window], key=lambda start: int(stream.step(start).lengths.sum()))
    return [starts[(2 * number + 1) * len(starts) // (2 * _TIMED_STEPS)] for number in range(_TIMED_STEPS)]


def _seconds_per_flop(
    recipe: Recipe, config: ExpresserConfig, stream: Stream, model: ExpresserPreTrainedModel, packing: Packing
) -> float:
    """Median over steps of forward and backward passes; one before them is not counted, or each once where it compiles.

    By FLOP, not by cell: with length windows a step's cells are no sample of the run's.
    """
    positions = timed_positions(stream, recipe.data.length_window or 1)
    before, device, found = positions[:1], packing.device, []
    if isinstance(packing.budget, StaticShapes):
        compile_forward(model, packing.budget, mode=recipe.compile_mode)
        before = positions
    for start in [*before, *positions]:
        what, counts = stream[start]
        began = time.perf_counter()
        for number, read in enumerate(counts):
            batch = packing.batch(read, what.micro[number].epoch)
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
                prediction = model(batch.cells, batch.views).prediction
            batch.sum(squared_error(prediction, truth=batch.truth)).backward()
        model.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append((time.perf_counter() - began) / _cost(recipe, config, what.lengths.astype(np.int64)).flops)
    return float(np.median(found[len(before) :]))
