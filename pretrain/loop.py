"""The loop: read, mask, predict, step, log, evaluate, save."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from expresser import checkpoint
from expresser.corpus.budgets import StaticShapes
from expresser.corpus.stream import most_micro_batches
from expresser.corpus.together import verify_together
from expresser.errors import InputError
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.modeling import ExpresserModel, ExpresserPreTrainedModel, ExpresserWithoutDecoder
from expresser.run_folder import Log, claim
from pretrain.agreement import agree
from pretrain.compiled import compile_forward, compiles
from pretrain.config import Recipe
from pretrain.data import gene_corpus, split, starting_factors, starting_levels, training_stream
from pretrain.evaluate import Held, evaluate, scores
from pretrain.naive import NaiveExpresser
from pretrain.objective import Objective, squared_error
from pretrain.optim import adamw, learning_rate, set_learning_rate
from pretrain.packing import Packing
from pretrain.progress import Progress
from pretrain.rates import Rates, matmul_ceiling
from pretrain.run import MAY_CHANGE, Run, describe, newest_checkpoint, summary
from pretrain.state import load_state
from pretrain.strategy import begin
from pretrain.survival import NOT_SAVED, Signals, not_finite
from pretrain.throughput import cost
from pretrain.tracking import check_tracker, curves, start_tracker
from pretrain.warm import Source, recalled

_MEASURED = 100  # steps of a run for which the machine's own speed is worth measuring


def build_model(recipe: Recipe, vocab_size: int) -> ExpresserPreTrainedModel:
    """A freshly initialised model of the recipe's shape; its weights are a function of the seed."""
    fields = asdict(recipe.model)
    architecture = fields.pop("architecture")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(recipe.seed)
        if architecture == "without_decoder":
            return ExpresserWithoutDecoder(ExpresserWithoutDecoderConfig(vocab_size=vocab_size, **fields))
        kind = NaiveExpresser if recipe.implementation == "naive" else ExpresserModel
        return kind(ExpresserConfig(vocab_size=vocab_size, **fields))


@dataclass(frozen=True)
class Plan:
    """How long a run is: positions in the stream of training cells."""

    total_steps: int
    global_batch: int

    @property
    def total_cells(self) -> int:
        """Where the stream ends."""
        return self.total_steps * self.global_batch

    @classmethod
    def of(cls, recipe: Recipe, n_train: int) -> "Plan":
        """Steps of the recipe on this many training cells."""
        steps = max(1, int(np.ceil(recipe.data.epochs * n_train / recipe.data.global_batch)))
        if recipe.data.max_steps is not None:
            steps = min(steps, recipe.data.max_steps)
        return cls(total_steps=steps, global_batch=recipe.data.global_batch)


def pretrain(
    recipe: Recipe,
    corpus_folder: str | Path,
    out: str | Path,
    *,
    resume: bool = False,
    stop_after: int | None = None,
    verify: bool = True,
    quiet: bool = False,
) -> dict[str, Any]:
    """Pretrain on a corpus and leave ``out/model``, ``out/log.jsonl``, ``out/metrics.json`` and ``out/report.html``.

    SIGTERM and SIGINT end the step, save a checkpoint and return; a disk that is full costs a checkpoint, not the run.

    Parameters
    ----------
    resume
        Go on from the newest checkpoint in ``out``; begin where there is none. The losses are those of an uninterrupted run, to
        the last bit where the number of threads and processes is the same.
    stop_after
        Leave after this many steps of the run as if it had been killed (nothing is saved); the schedule stays the whole run's.
    verify
        Compare every file of the corpus with its sha256 first, in one process a node: a flipped byte is a wrong gene or count, which
        no loss would show. Reads all of it once (24 GB for six million cells); sizes and headers are always checked.

    Returns
    -------
    The contents of ``metrics.json``, or the progress made if stopped early: ``step``, ``cells_seen`` and, after a signal, its name as
    ``stopped``.

    Raises
    ------
    InputError
        If ``out`` holds another run, the corpus is damaged, or it is not the one the run began with.
    NotFinite
        If the loss or a gradient is no number; ``out/not_finite.json`` names the cells.
    """
    recipe.check()
    check_tracker(recipe.tracker)
    static = compiles(recipe)
    out, corpus = Path(out), gene_corpus(corpus_folder)
    strategy = begin(recipe, out)
    accelerator = strategy.accelerator
    if static and strategy.name == "zero3":  # the launcher's wish, where the recipe has none
        raise InputError(
            "the launcher asks for ZeRO-3, whose shares of weights cannot be compiled. Leave --compile out."
        )
    if verify:
        verify_together(corpus.path)
    parts = split(corpus, recipe.data, recipe.seed)
    plan = Plan.of(recipe, parts.train.size)
    objective = Objective.of(recipe.objective)
    # Validation asks every gene once whatever the training objective: runs can be compared, and more targets mean less noise.
    validation = Objective.of(replace(recipe.objective, masking="all_folds"))
    levels = starting_levels(corpus, parts.train, recipe.model.head, recipe.seed, recipe.model.target_sum)
    additive = (
        levels
        if recipe.model.head == "additive"
        else starting_levels(corpus, parts.train, "additive", recipe.seed, recipe.model.target_sum)
    )

    model = build_model(recipe, len(corpus.vocab))
    model.set_gene_means(torch.from_numpy(levels))
    packing = Packing.of(recipe, strategy.device, static=static, world=strategy.world)
    stream = training_stream(
        corpus, parts.train, recipe, rank=strategy.rank, world=strategy.world, budget=packing.budget
    )
    start = newest_checkpoint(out) if resume else None
    finished = resume and (out / "metrics.json").is_file()
    source = None
    if recipe.start is not None and start is None and not finished:
        source = Source.open(recipe.start, model.config, corpus.vocab)
    # Whatever is wrong with the recipe or the corpus has been said by now: the folder is claimed by runs that can begin.
    warm = source.record.to_dict() if source is not None else recalled(out) if resume else None
    run_record = describe(recipe, corpus, warm)
    if strategy.is_main:
        claim(
            out,
            run_record,
            resume=resume,
            what="a pretraining run",
            data="corpus_id",
            also=("warm_start",),
            may_change=MAY_CHANGE,
        )
    accelerator.wait_for_everyone()
    if finished:
        return json.loads((out / "metrics.json").read_text())  # finished before: nothing is left to do
    run = Run(recipe=recipe, out=out, corpus=corpus, record=run_record)
    factors = None
    if start is None and recipe.gene_tokens == "factors":
        if recipe.gene_tokens_noise is not None:
            with torch.no_grad():
                model.gene_tokens.weight.mul_(recipe.gene_tokens_noise / model.config.initializer_range)
        found = starting_factors(corpus, parts.train, recipe.model.d_model, recipe.seed, recipe.model.target_sum)
        factors = torch.from_numpy(found)
    if source is not None:
        source.give(model, factors)
    elif factors is not None:
        model.set_gene_tokens(factors)
    moments, counters = None, {"cells_seen": 0, "seconds": 0.0}
    if start is not None:
        model.load_state_dict(checkpoint.load(start).model.state_dict())
        moments, counters = load_state(start)
    agree(
        accelerator,
        {
            "corpus_id": corpus.corpus_id,
            "seed": recipe.seed,
            "cells_seen": int(counters["cells_seen"]),
            "global batch": plan.global_batch,
            "steps": plan.total_steps,
            "processes": strategy.world,
            "data options": asdict(recipe.data),
            "training cells": parts.train.size,
            "starting weights": None if warm is None else warm["weights_sha256"],
        },
    )
    if isinstance(packing.budget, StaticShapes):
        compile_forward(model, packing.budget, mode=recipe.compile_mode)
    strategy.prepare(model, adamw(model, recipe.optim), moments, where=str(start))

    held = Held.of(
        corpus,
        parts.valid[: recipe.data.valid_cells],
        max_tokens=recipe.data.max_tokens,
        max_genes=recipe.model.max_genes,
        rank=strategy.rank,
        world=strategy.world,
    )

    def validate(*, with_additive: bool = False) -> dict[str, dict[str, float]]:
        of_model, of_additive = evaluate(
            strategy.model,
            corpus,
            held,
            validation,
            seed=recipe.seed,
            device=strategy.device,
            config=model.config,
            in_step=strategy.shared_forward,
            additive=additive if with_additive else None,
        )
        both = torch.from_numpy(np.stack([of_model, of_additive])).to(strategy.device)
        both = accelerator.reduce(both, "sum").cpu().numpy()
        found = {"valid": scores(both[0])}
        return found | {"additive": scores(both[1])} if with_additive else found

    log = Log(
        out / "log.jsonl",
        position="cells_seen",
        keep_until=int(counters["cells_seen"]),
        active=strategy.is_main,
    )
    cells_seen, seconds = int(counters["cells_seen"]), float(counters["seconds"])
    step = first_step = cells_seen // plan.global_batch
    start_tracker(accelerator, recipe, out, step=step)
    product = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    rates = Rates(matmul_ceiling(strategy.device, product) if plan.total_steps >= _MEASURED else None)
    last, leave = False, None  # leave: the signal that some process got

    def say(trouble: str | None) -> None:
        if trouble:
            print(f"warning: {trouble}", file=sys.stderr, flush=True)

    def save() -> None:
        whole, moments = strategy.whole(), strategy.optimizer_state()  # put together by all processes, written by one
        if not strategy.is_main:
            return
        try:
            run.save(whole, moments, {"cells_seen": cells_seen, "step": step, "seconds": seconds}, log)
        except NOT_SAVED as error:
            kept = newest_checkpoint(out)
            say(
                f"no checkpoint of step {step}: {error}. Training goes on; {f'{kept} is kept' if kept else 'there is none yet'}. "
                "Make room before the next one."
            )

    if cells_seen == 0:
        say(log.write({"step": 0, "cells_seen": 0, "seconds": 0.0, **validate(with_additive=True)}))
        accelerator.log(curves(log.entries[-1]), step=0)

    with Signals() as signals, Progress(plan.total_steps, step, quiet=quiet or not strategy.is_main) as progress:
        began = time.perf_counter()
        for what, counts in _waiting(stream.steps(cells_seen, plan.total_cells), rates.waited):
            done = step / plan.total_steps
            if recipe.data.minutes is not None:
                # All processes go by the mean of their clocks, or one would stop while another waits for its gradients.
                (clocks,) = strategy.sum(seconds)
                done = max(done, clocks / strategy.world / (60 * recipe.data.minutes))
            rate = learning_rate(recipe.optim, done)
            set_learning_rate(strategy.optimizer, rate)
            # No target where every cell of the step shows a single gene: the loss is then 0, not 0 / 0.
            n_targets = max(1, objective.n_targets(torch.from_numpy(what.lengths)))
            losses = []
            rounds = len(counts)
            if strategy.shared_forward:  # a pass of one process is a pass of all
                rounds = most_micro_batches(what.lengths, strategy.world, packing.budget)
            for number in range(rounds):
                own = min(
                    number, len(counts) - 1
                )  # where others have more micro-batches, the last one again, for nothing
                weight = float(own == number) / n_targets
                batch = packing.batch(counts[own], what.micro[own].epoch)
                with (
                    strategy.micro_batch(last=number == rounds - 1),
                    _dropout_key(recipe, step, own, strategy.rank, strategy.device),
                ):
                    prediction = strategy(batch.cells, batch.views)
                    # Summed over this micro-batch, divided by the masked genes of the *global* batch: the step's loss does
                    # not depend on how cells were dealt out.
                    total = batch.sum(squared_error(prediction, truth=batch.truth)) * weight
                    strategy.backward(total)
                losses.append(total.detach().double())
            # One exchange a step: the loss, and whether any process was told to leave.
            own_losses = torch.stack(losses).tolist()
            loss, *flags = strategy.sum(sum(own_losses), *signals.flags)
            leave = signals.name(*flags)
            norm = strategy.step() if np.isfinite(loss) else None
            if not np.isfinite(loss) or (norm is not None and not torch.isfinite(norm)):
                culprits = [batch for batch, one in zip(what.micro, own_losses) if not np.isfinite(one)]
                if np.isfinite(loss):  # the gradients alone: any cell of the step
                    culprits = what.micro
                raise not_finite(
                    out,
                    "gradient norm" if np.isfinite(loss) else "loss",
                    float(loss) if norm is None else float(norm),
                    step=step + 1,
                    mine=[int(cell) for batch in culprits for cell in corpus.cell_ids[batch.rows]],
                    is_main=strategy.is_main,
                    precision=recipe.precision,
                )
            step += 1
            cells_seen += plan.global_batch

            now = time.perf_counter()
            seconds += now - began
            rates.add(
                cells=plan.global_batch,
                tokens=int(what.lengths.sum()),
                targets=n_targets,
                flops=cost(model.config, what.lengths.astype(np.int64), objective.n_folds, objective.share).flops,
                seconds=now - began,
            )

            last = step == plan.total_steps or done >= 1.0
            entry: dict[str, Any] = {}
            if step % recipe.log_every == 0 or last:
                entry = {"loss": loss, "lr": rate, "grad_norm": None if norm is None else float(norm)}
                entry |= rates.rates(strategy.world)
            if (step % recipe.eval_every == 0 and not leave) or last:
                entry |= validate(with_additive=last)
                leave = signals.name(*strategy.sum(*signals.flags))  # it may have come meanwhile
            if entry:
                entry = {"step": step, "cells_seen": cells_seen, "seconds": seconds} | entry
                say(log.write(entry))
                accelerator.log(curves(entry), step=step)
            progress.advance(step, entry)
            if stop_after is not None and step - first_step >= stop_after:
                strategy.end()
                return {"step": step, "cells_seen": cells_seen}
            if step % recipe.save_every == 0 or last or leave:
                save()
            began = time.perf_counter()
            if last or leave:
                break
    if leave and not last:
        strategy.end()
        return {"step": step, "cells_seen": cells_seen, "stopped": leave}
    metrics = summary(log)
    whole = strategy.whole()
    if strategy.is_main:
        try:
            run.finish(whole, metrics)
        except NOT_SAVED as error:
            raise InputError(
                f"{out}: trained to the end, but the model or its report could not be written: {error}. Make room and run the same "
                f"command with --resume: it goes on from {newest_checkpoint(out) or 'the beginning, as there is no checkpoint'}."
            ) from error
    accelerator.wait_for_everyone()
    strategy.end()
    return metrics


_Item = TypeVar("_Item")


def _waiting(items: Iterable[_Item], waited: Callable[[float], None]) -> Iterator[_Item]:
    """The items, telling how long each was waited for."""
    iterator = iter(items)
    while True:
        began = time.perf_counter()
        item = next(iterator, None)
        if item is None:
            return
        waited(time.perf_counter() - began)
        yield item


@contextmanager
def _dropout_key(recipe: Recipe, step: int, micro: int, rank: int, device: torch.device) -> Iterator[None]:
    """Dropout is a function of (seed, step, micro-batch, process), so that a resumed run draws what the whole run would have."""
    if recipe.model.dropout == 0:
        yield
        return
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed = hash((recipe.seed, step, micro, rank)) % 2**63
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield
