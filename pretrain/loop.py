"""The loop: read, mask, predict, step, log, evaluate, save."""

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from expresser.corpus.budgets import StaticShapes
from expresser.corpus.stream import most_micro_batches
from expresser.errors import InputError
from expresser.one_writer import one_writer
from expresser.run_folder import Log
from pretrain.agreement import by_main
from pretrain.compiled import compile_forward
from pretrain.config import Recipe
from pretrain.evaluate import Held, evaluate, scores
from pretrain.objective import Objective, squared_error
from pretrain.optim import adamw, learning_rate, set_learning_rate
from pretrain.progress import Progress
from pretrain.rates import Rates, matmul_ceiling
from pretrain.run import draw, newest_checkpoint, summary
from pretrain.start import Start
from pretrain.strategy import Strategy
from pretrain.survival import NOT_SAVED, Signals, not_finite
from pretrain.throughput import cost
from pretrain.tracking import Tracker, check_tracker
from pretrain.zero import begin

_MEASURED = 100  # steps of a run for which the machine's own speed is worth measuring


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
    out = Path(out)
    strategy = begin(recipe, out)
    with ExitStack() as stack:
        by_main(strategy.accelerator, lambda: stack.enter_context(one_writer(out)))
        start = Start.of(recipe, corpus_folder, out, strategy, resume=resume, verify=verify)
        if start is None:  # finished before: nothing is left to do but what may have been left undone
            metrics = json.loads((out / "metrics.json").read_text())
            by_main(strategy.accelerator, lambda: None if (out / "report.html").is_file() else draw(out))
            strategy.end()
            return metrics
        signals = stack.enter_context(Signals())
        return _train(recipe, out, strategy, start, signals, stop_after=stop_after, quiet=quiet)


def _train(
    recipe: Recipe,
    out: Path,
    strategy: Strategy,
    start: Start,
    signals: Signals,
    *,
    stop_after: int | None,
    quiet: bool,
) -> dict[str, Any]:
    """From where a run starts to its end, or to where it is told to leave."""
    run, plan, model, packing, stream = start.run, start.plan, start.model, start.packing, start.stream
    corpus, objective = run.corpus, packing.objective
    # Validation asks every gene once whatever the training objective: runs can be compared, and more targets mean less noise.
    validation = Objective.of(replace(recipe.objective, masking="all_folds"))
    if isinstance(packing.budget, StaticShapes):
        compile_forward(model, packing.budget, mode=recipe.compile_mode)
    strategy.prepare(model, adamw(model, recipe.optim), start.moments, where=str(start.checkpoint))

    held = Held.of(
        corpus,
        start.parts.valid[: recipe.data.valid_cells],
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
            additive=start.additive if with_additive else None,
        )
        both = np.array(strategy.sum(*of_model, *of_additive)).reshape(2, -1)
        found = {"valid": scores(both[0])}
        return found | {"additive": scores(both[1])} if with_additive else found

    log = Log(
        out / "log.jsonl",
        position="cells_seen",
        keep_until=start.cells_seen,
        active=strategy.is_main,
    )
    cells_seen, seconds = start.cells_seen, start.seconds
    step = first_step = cells_seen // plan.global_batch
    tracker = Tracker(strategy.accelerator, recipe, out, step=step)
    product = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    rates = Rates(matmul_ceiling(strategy.device, product) if plan.total_steps >= _MEASURED else None)
    last = False

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
        tracker.log(log.entries[-1], step=0)
    leave = signals.name(*strategy.sum(*signals.flags))
    if leave:  # nothing is lost: what there was to go on from is still there
        strategy.end()
        return {"step": step, "cells_seen": cells_seen, "stopped": leave}

    with Progress(plan.total_steps, step, quiet=quiet or not strategy.is_main) as progress:
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
                # Where others have more micro-batches, the last one again, for nothing.
                own = min(number, len(counts) - 1)
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
                losses.append(total.detach())
            # One exchange a step: the loss, and whether any process was told to leave.
            own_losses = torch.stack(losses).tolist()
            loss, *flags = strategy.sum(sum(own_losses), *signals.flags)
            leave = signals.name(*flags)
            norm = float(strategy.step()) if np.isfinite(loss) else float("nan")
            if not np.isfinite(norm):
                bad = [batch for batch, one in zip(what.micro, own_losses) if not np.isfinite(one)]
                raise not_finite(
                    out,
                    "gradient norm" if np.isfinite(loss) else "loss",
                    norm if np.isfinite(loss) else loss,
                    step=step + 1,
                    # Where the gradients alone are no numbers, it may be any cell of the step.
                    mine=[
                        int(i)
                        for batch in (what.micro if np.isfinite(loss) else bad)
                        for i in corpus.cell_ids[batch.rows]
                    ],
                    is_main=strategy.is_main,
                    newest=newest_checkpoint(out),
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
                entry = {"loss": loss, "lr": rate, "grad_norm": norm}
                entry |= rates.rates(strategy.world)
            if (step % recipe.eval_every == 0 and not leave) or last:
                entry |= validate(with_additive=last)
                leave = signals.name(*strategy.sum(*signals.flags))  # it may have come meanwhile
            if entry:
                entry = {"step": step, "cells_seen": cells_seen, "seconds": seconds} | entry
                say(log.write(entry))
                tracker.log(entry, step=step)
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
    strategy.accelerator.wait_for_everyone()
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
