"""How a run begins: its corpus, split, model and stream, its weights (fresh, another model's, or a checkpoint's), and its folder."""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from expresser import checkpoint
from expresser.corpus.store import Corpus
from expresser.corpus.stream import Stream
from expresser.corpus.together import verify_together
from expresser.errors import InputError
from expresser.model.configuration import ExpresserConfig, ExpresserWithoutDecoderConfig
from expresser.model.modeling import ExpresserModel, ExpresserPreTrainedModel, ExpresserWithoutDecoder
from expresser.run_folder import claim, flat
from pretrain.agreement import agree, by_main
from pretrain.compiled import compiles
from pretrain.config import Recipe
from pretrain.data import Split, gene_corpus, split, starting_factors, starting_levels, training_stream
from pretrain.naive import NaiveExpresser
from pretrain.packing import Packing
from pretrain.run import MAY_CHANGE, Run, describe, newest_checkpoint
from pretrain.state import load_state
from pretrain.strategy import Strategy
from pretrain.warm import Source, recalled


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


@dataclass(frozen=True)
class Start:
    """What a run begins with, the same in every process.

    Attributes
    ----------
    model
        With its weights, not yet taken over by a strategy.
    additive
        Gene levels of the gene + cell additive baseline.
    checkpoint, moments
        Where the run goes on from, and the optimiser's state there; None at the beginning.
    cells_seen, seconds
        How far it had got.
    """

    run: Run
    parts: Split
    plan: Plan
    model: ExpresserPreTrainedModel
    packing: Packing
    stream: Stream
    additive: Float32[np.ndarray, " vocab"]
    checkpoint: Path | None
    moments: dict[str, Tensor] | None
    cells_seen: int
    seconds: float

    @classmethod
    def of(
        cls, recipe: Recipe, corpus_folder: str | Path, out: Path, strategy: Strategy, *, resume: bool, verify: bool
    ) -> "Start | None":
        """Make everything ready and claim the folder; None where the run in it is finished. All processes must call this.

        Raises
        ------
        InputError
            In every process, if the recipe, the corpus or the folder is not one that this run can have, or processes differ. The
            folder is then as it was: only runs that can begin claim one.
        """
        static, corpus = compiles(recipe), gene_corpus(corpus_folder)
        if static and strategy.name == "zero3":  # the launcher's wish, where the recipe has none
            raise InputError(
                "the launcher asks for ZeRO-3, whose shares of weights cannot be compiled. Leave --compile out."
            )
        if verify:
            verify_together(corpus.path)
        parts = split(corpus, recipe.data, recipe.seed)
        plan = Plan.of(recipe, parts.train.size)
        levels = _levels(recipe, corpus, parts, recipe.model.head)
        additive = levels if recipe.model.head == "additive" else _levels(recipe, corpus, parts, "additive")
        model = build_model(recipe, len(corpus.vocab))
        model.set_gene_means(torch.from_numpy(levels))
        packing = Packing.of(recipe, strategy.device, static=static, world=strategy.world)
        stream = training_stream(
            corpus, parts.train, recipe, rank=strategy.rank, world=strategy.world, budget=packing.budget
        )
        found = newest_checkpoint(out) if resume else None
        finished = resume and (out / "metrics.json").is_file()
        source, warm = None, recalled(out) if resume else None
        if recipe.start is not None and found is None and not finished:
            source = Source.open(recipe.start, model.config, corpus.vocab)
            warm = source.record.to_dict()
        moments, counters = (None, {}) if found is None else load_state(found)
        cells_seen, seconds = int(counters.get("cells_seen", 0)), float(counters.get("seconds", 0.0))
        agree(
            strategy.accelerator,
            {
                "corpus_id": corpus.corpus_id,
                "cells_seen": cells_seen,
                "steps": plan.total_steps,
                "processes": strategy.world,
                "training cells": parts.train.size,
                "starting weights": None if warm is None else warm["weights_sha256"],
                # A model may lie elsewhere on each machine: its weights are compared.
                **{name: choice for name, choice in flat(asdict(recipe)).items() if name != "start"},
            },
        )
        record = describe(recipe, corpus, warm)
        by_main(
            strategy.accelerator,
            lambda: claim(
                out,
                record,
                resume=resume,
                what="a pretraining run",
                data="corpus_id",
                also=("warm_start",),
                may_change=MAY_CHANGE,
            ),
        )
        if finished:
            return None
        if found is None:
            _first_weights(model, recipe, corpus, parts, source)
        else:
            model.load_state_dict(checkpoint.load(found).model.state_dict())
        run = Run(recipe=recipe, out=out, corpus=corpus, record=record)
        return cls(run, parts, plan, model, packing, stream, additive, found, moments, cells_seen, seconds)


def _levels(recipe: Recipe, corpus: Corpus, parts: Split, head: str) -> Float32[np.ndarray, " vocab"]:
    return starting_levels(corpus, parts.train, head, recipe.seed, recipe.model.target_sum)


def _first_weights(
    model: ExpresserPreTrainedModel, recipe: Recipe, corpus: Corpus, parts: Split, source: Source | None
) -> None:
    """Gene tokens that start from factors, and the weights of the model to start from."""
    factors = None
    if recipe.gene_tokens == "factors":
        if recipe.gene_tokens_noise is not None:
            with torch.no_grad():
                model.gene_tokens.weight.mul_(recipe.gene_tokens_noise / model.config.initializer_range)
        found = starting_factors(corpus, parts.train, recipe.model.d_model, recipe.seed, recipe.model.target_sum)
        factors = torch.from_numpy(found)
    if source is not None:
        source.give(model, factors)
    elif factors is not None:
        model.set_gene_tokens(factors)
