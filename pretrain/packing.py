"""From cells that were read to a micro-batch on the device: as they come, or filled to a static shape for a compiled model."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from expresser.corpus.budgets import Budget, PackedTokens, PaddedTokens, Shape, StaticShapes
from expresser.corpus.store import CountBatch
from expresser.model.attention import why_not_varlen
from expresser.model.cells import Cells, Views
from expresser.model.fixed_views import fixed_folds, fixed_single
from pretrain.config import Recipe
from pretrain.data import to_cells
from pretrain.objective import Objective, targets

_FILLER_TOTAL = 10_000  # counts of a row that fills up: its values are those of single counts in a common cell


@dataclass(frozen=True)
class Batch:
    """What a forward pass takes, and which of its answers count.

    Attributes
    ----------
    truth
        True value of each query.
    weights
        1 for a query of a cell, 0 for one that fills up; None where every query is of a cell.
    n_cells, n_targets
        Cells and queries without those that fill up.
    """

    cells: Cells
    views: Views
    truth: Float[Tensor, " queries"]
    weights: Float[Tensor, " queries"] | None
    n_cells: int
    n_targets: int

    def sum(self, errors: Float[Tensor, " queries"]) -> Float[Tensor, ""]:
        """Sum over the queries that count."""
        return (errors if self.weights is None else errors * self.weights).sum()


def attention_pads(recipe: Recipe, device: torch.device) -> bool:
    """Whether attention may pad rows to the longest: all ways of computing it but ``varlen`` do so, some for short rows only."""
    dtype = torch.bfloat16 if recipe.precision == "bf16" else torch.float32
    return recipe.implementation == "naive" or why_not_varlen(device, dtype, recipe.model.dropout) is not None


@dataclass(frozen=True)
class Packing:
    """How a run's cells are cut into micro-batches and brought to the device. The losses of a step do not depend on it.

    Attributes
    ----------
    budget
        For the stream: padded tokens where attention pads, packed tokens where it does not, static shapes for a compiled model.
    pads
        Whether attention pads.
    """

    recipe: Recipe
    objective: Objective
    device: torch.device
    budget: Budget
    pads: bool

    @classmethod
    def of(
        cls, recipe: Recipe, device: torch.device, *, static: bool = False, world: int = 1, pads: bool | None = None
    ) -> "Packing":
        """For a recipe on a device of one of ``world`` processes.

        ``static`` asks for the shapes of a compiled model. ``pads`` says whether attention pads its rows (None: see `attention_pads`).
        """
        budget: Budget
        pads = attention_pads(recipe, device) if pads is None else pads
        if static:
            share = -(-recipe.data.global_batch // world)
            budget = StaticShapes.of(recipe.data.max_tokens, recipe.train_genes, cells=share, pads=pads)
        else:
            budget = PaddedTokens(recipe.data.max_tokens) if pads else PackedTokens(recipe.data.max_tokens)
        return cls(recipe, Objective.of(recipe.objective), device, budget, pads)

    def batch(self, counts: CountBatch, epoch: Int64[np.ndarray, " cells"]) -> Batch:
        """A micro-batch of the stream with its views."""
        if isinstance(self.budget, StaticShapes):
            return self._static(counts, epoch, self.budget)
        cells = self._cells(counts, epoch, None)
        views = self.objective.views(cells)
        return Batch(cells, views, targets(cells, views), None, len(counts), views.query.numel())

    def _static(self, counts: CountBatch, epoch: Int64[np.ndarray, " cells"], shapes: StaticShapes) -> Batch:
        shown = np.minimum(counts.lengths, self.recipe.train_genes)
        shape = shapes.shape(shown)
        n_targets = self.objective.n_targets(torch.from_numpy(shown))
        full, epochs = filled(counts, epoch, shape, self.recipe.train_genes)
        cells = self._cells(full, epochs, shape)
        if self.objective.n_folds is not None:
            views = fixed_folds(cells, self.objective.n_folds, shape)
        else:
            lengths = np.minimum(full.lengths, self.recipe.train_genes)
            views = fixed_single(cells, self.objective.share, shape, lengths)
        # Rows of cells come first, and queries follow their rows.
        weights = (torch.arange(views.query.numel(), device=self.device) < n_targets).float()
        return Batch(cells, views, targets(cells, views), weights, len(counts), n_targets)

    def computed(self, shown: Int64[np.ndarray, " cells"]) -> tuple[int, int]:
        """Tokens that layers compute for a micro-batch of cells that show these numbers of genes, and slots that attention does."""
        if isinstance(self.budget, StaticShapes):
            shape = self.budget.shape(shown)
            return shape.tokens, shape.rows * shape.longest if self.pads else shape.tokens
        tokens = int(shown.sum())
        return tokens, shown.size * int(shown.max()) if self.pads else tokens

    def _cells(self, counts: CountBatch, epoch: Int64[np.ndarray, " cells"], shape: Shape | None) -> Cells:
        return to_cells(
            counts,
            epoch,
            seed=self.recipe.seed,
            device=self.device,
            max_genes=self.recipe.train_genes,
            target_sum=self.recipe.model.target_sum,
            shape=shape,
        )


def filled(
    counts: CountBatch, epoch: Int64[np.ndarray, " cells"], shape: Shape, max_genes: int
) -> tuple[CountBatch, Int64[np.ndarray, " rows"]]:
    """The cells, without those of one gene, and rows of gene 0 that take up what they leave of the shape; epochs likewise."""
    if (counts.lengths < 2).any():
        kept = np.flatnonzero(counts.lengths > 1)
        counts, epoch = counts.take(kept), epoch[kept]
    lengths = shape.filler(np.minimum(counts.lengths, max_genes))
    n, unused = lengths.size, int(lengths.sum())

    def more(array: np.ndarray, value: int, times: int) -> np.ndarray:
        return np.concatenate([array, np.full(times, value, array.dtype)])

    full = replace(
        counts,
        cell_id=more(counts.cell_id, 0, n),
        source=more(counts.source, 0, n),
        total=more(counts.total, _FILLER_TOTAL, n),
        lengths=np.concatenate([counts.lengths, lengths]),
        genes=more(counts.genes, 0, unused),
        counts=more(counts.counts, 1, unused),
    )
    return full, more(epoch, 0, n)
