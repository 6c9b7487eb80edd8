"""The loop: read, mask, predict, step, log, evaluate, save."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration

from expresser import checkpoint
from expresser.corpus.store import Corpus
from expresser.corpus.together import verify_together
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.modeling import ExpresserModel, ExpresserPreTrainedModel, ExpresserWithoutDecoder
from expresser.run_folder import Log, claim, flat
from pretrain.agreement import agree
from pretrain.config import Recipe
from pretrain.data import gene_corpus, split, starting_factors, starting_levels, to_cells, training_stream
from pretrain.evaluate import Held, evaluate, network, scores
from pretrain.naive import NaiveExpresser
from pretrain.objective import Objective, squared_error, targets
from pretrain.optim import adamw, learning_rate, set_learning_rate
from pretrain.progress import Progress
from pretrain.run import MAY_CHANGE, Run, describe, summary
from pretrain.state import load_state


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

    Parameters
    ----------
    resume
        Go on from the newest checkpoint in ``out``. The losses are those of an uninterrupted run, to the last bit where the number of
        threads and processes is the same.
    stop_after
        Leave after this many steps of the run as if it had been killed (nothing is saved); the schedule stays the whole run's.
    verify
        Compare every file of the corpus with its sha256 first, in one process a node: a flipped byte is a wrong gene or count, which
        no loss would show. Reads all of it once (24 GB for six million cells); sizes and headers are always checked.

    Returns
    -------
    The contents of ``metrics.json``, or the progress made if stopped early.

    Raises
    ------
    InputError
        If ``out`` holds another run, the corpus is damaged, or it is not the one the run began with.
    """
    recipe.check()
    out, corpus = Path(out), gene_corpus(corpus_folder)
    AcceleratorState._reset_state()  # a second run in this process may ask for another precision
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        log_with=None if recipe.tracker == "none" else recipe.tracker,
        project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "tracker")),
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
    stream = training_stream(
        corpus, parts.train, recipe, rank=accelerator.process_index, world=accelerator.num_processes
    )
    # Whatever is wrong with the recipe or the corpus has been said by now: the folder is claimed by runs that can begin.
    run_record = describe(recipe, corpus)
    if accelerator.is_main_process:
        claim(out, run_record, resume=resume, what="a pretraining run", data="corpus_id", may_change=MAY_CHANGE)
    accelerator.wait_for_everyone()
    if resume and (out / "metrics.json").is_file():
        return json.loads((out / "metrics.json").read_text())  # finished before: nothing is left to do
    run = Run(recipe=recipe, out=out, corpus=corpus, record=run_record)
    start = run.newest() if resume else None
    if start is None and recipe.gene_tokens == "factors":
        if recipe.gene_tokens_noise is not None:
            with torch.no_grad():
                model.gene_tokens.weight.mul_(recipe.gene_tokens_noise / model.config.initializer_range)
        factors = starting_factors(corpus, parts.train, recipe.model.d_model, recipe.seed, recipe.model.target_sum)
        model.set_gene_tokens(torch.from_numpy(factors))
    if start is not None:
        model.load_state_dict(checkpoint.load(start).model.state_dict())
    optimizer = adamw(model, recipe.optim)
    counters = {"cells_seen": 0, "seconds": 0.0} if start is None else load_state(start, model, optimizer)
    agree(
        accelerator,
        {
            "corpus_id": corpus.corpus_id,
            "seed": recipe.seed,
            "cells_seen": int(counters["cells_seen"]),
            "global batch": plan.global_batch,
            "steps": plan.total_steps,
            "processes": accelerator.num_processes,
            "data options": asdict(recipe.data),
            "training cells": parts.train.size,
        },
    )
    model, optimizer = accelerator.prepare(model, optimizer)
    model.train()
    if recipe.tracker != "none":
        accelerator.init_trackers("expresser")

    held = Held.of(
        corpus,
        parts.valid[: recipe.data.valid_cells],
        max_tokens=recipe.data.max_tokens,
        max_genes=recipe.model.max_genes,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )

    def validate(*, with_additive: bool = False) -> dict[str, dict[str, float]]:
        of_model, of_additive = evaluate(
            model,
            corpus,
            held,
            validation,
            seed=recipe.seed,
            device=accelerator.device,
            config=network(model).config,
            additive=additive if with_additive else None,
        )
        both = torch.from_numpy(np.stack([of_model, of_additive])).to(accelerator.device)
        both = accelerator.reduce(both, "sum").cpu().numpy()
        found = {"valid": scores(both[0])}
        return found | {"additive": scores(both[1])} if with_additive else found

    log = Log(
        out / "log.jsonl",
        position="cells_seen",
        keep_until=int(counters["cells_seen"]),
        active=accelerator.is_main_process,
    )
    cells_seen, seconds = int(counters["cells_seen"]), float(counters["seconds"])
    step = first_step = cells_seen // plan.global_batch
    since_log = _Since()

    if cells_seen == 0:
        log.write({"step": 0, "cells_seen": 0, "seconds": 0.0, **validate(with_additive=True)})

    with Progress(plan.total_steps, step, quiet=quiet or not accelerator.is_main_process) as progress:
        began = time.perf_counter()
        for what, counts in stream.steps(cells_seen, plan.total_cells):
            done = step / plan.total_steps
            if recipe.data.minutes is not None:
                # All processes go by the mean of their clocks, or one would stop while another waits for its gradients.
                clock = accelerator.reduce(torch.tensor(seconds, device=accelerator.device), "mean")
                done = max(done, float(clock) / (60 * recipe.data.minutes))
            rate = learning_rate(recipe.optim, done)
            set_learning_rate(optimizer, rate)
            # No target where every cell of the step shows a single gene: the loss is then 0, not 0 / 0.
            n_targets = max(1, objective.n_targets(torch.from_numpy(what.lengths)))
            loss = torch.zeros((), device=accelerator.device, dtype=torch.float64)
            for number, batch in enumerate(counts):
                cells = to_cells(
                    batch,
                    what.micro[number].epoch,
                    seed=recipe.seed,
                    device=accelerator.device,
                    max_genes=recipe.train_genes,
                    target_sum=recipe.model.target_sum,
                )
                views = objective.views(cells)
                is_last = number == len(counts) - 1
                with _sync(accelerator, model, now=is_last), _dropout_key(recipe, step, number, accelerator):
                    prediction = model(cells, views).prediction
                    # Summed over this micro-batch, divided by the masked genes of the *global* batch: the step's loss does
                    # not depend on how cells were dealt out. DDP averages gradients over processes, hence the factor.
                    total = squared_error(prediction, truth=targets(cells, views)).sum() / n_targets
                    accelerator.backward(total * accelerator.num_processes)
                loss += total.detach().double()
                since_log.add(cells=batch.lengths.size, targets=views.query.numel())
            if not torch.isfinite(loss):
                raise FloatingPointError(_not_finite(float(loss), step + 1, what, corpus))  # before it reaches a weight
            norm = None
            if recipe.optim.grad_clip > 0:
                norm = accelerator.clip_grad_norm_(model.parameters(), recipe.optim.grad_clip)
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            cells_seen += plan.global_batch

            now = time.perf_counter()
            since_log.seconds += now - began
            seconds += now - began

            last = step == plan.total_steps or done >= 1.0
            entry: dict[str, Any] = {}
            if step % recipe.log_every == 0 or last:
                mean = float(accelerator.reduce(loss, "sum"))
                entry = {"loss": mean, "lr": rate, "grad_norm": None if norm is None else float(norm)}
                entry |= since_log.rates(accelerator.num_processes)
            if step % recipe.eval_every == 0 or last:
                entry |= validate(with_additive=last)
            if entry:
                entry = {
                    "step": step,
                    "cells_seen": cells_seen,
                    "seconds": seconds,
                } | entry
                log.write(entry)
                accelerator.log({k: v for k, v in flat(entry).items() if v is not None}, step=step)
            progress.advance(step, entry)
            if stop_after is not None and step - first_step >= stop_after:
                accelerator.end_training()
                return {"step": step, "cells_seen": cells_seen}
            if (step % recipe.save_every == 0 or last) and accelerator.is_main_process:
                run.save(network(model), optimizer, {"cells_seen": cells_seen, "step": step, "seconds": seconds}, log)
            began = time.perf_counter()
            if last:
                break
    metrics = summary(log)
    if accelerator.is_main_process:
        run.finish(network(model), metrics)
    accelerator.wait_for_everyone()
    accelerator.end_training()  # takes the process group down: nothing can be waited for after it
    return metrics


class _Since:
    """Counts between two log lines, for rates."""

    def __init__(self) -> None:
        self.cells = self.targets = 0
        self.seconds = 0.0

    def add(self, *, cells: int, targets: int) -> None:
        self.cells += cells
        self.targets += targets

    def rates(self, world: int) -> dict[str, float]:
        seconds = max(self.seconds, 1e-9)
        found = {"cells_per_s": world * self.cells / seconds, "targets_per_s": world * self.targets / seconds}
        self.__init__()  # type: ignore[misc]
        return found


@contextmanager
def _sync(accelerator: Accelerator, model: torch.nn.Module, *, now: bool) -> Iterator[None]:
    """Gradients are exchanged with the last micro-batch of a step only."""
    if now:
        yield
    else:
        with accelerator.no_sync(model):
            yield


@contextmanager
def _dropout_key(recipe: Recipe, step: int, micro: int, accelerator: Accelerator) -> Iterator[None]:
    """Dropout is a function of (seed, step, micro-batch, process), so that a resumed run draws what the whole run would have."""
    if recipe.model.dropout == 0:
        yield
        return
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        seed = hash((recipe.seed, step, micro, accelerator.process_index)) % 2**63
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        yield


def _not_finite(loss: float, step: int, what: Any, corpus: Corpus) -> str:
    cells = [int(i) for batch in what.micro for i in corpus.cell_ids[batch.rows]]
    return (
        f"the loss became {loss} at step {step} on cells {cells[:20]} (rows of the corpus's obs). "
        "Resume from the last checkpoint with a lower --optim.lr, or --precision no."
    )
