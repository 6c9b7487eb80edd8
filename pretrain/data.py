"""From a corpus to what a step needs: the train/validation split, batches on the device, the head's starting levels."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64, UInt32
from torch import Tensor

from expresser.corpus.budgets import Budget, Shape
from expresser.corpus.mixing import Mixture, weigh
from expresser.corpus.store import Corpus, CountBatch
from expresser.corpus.stream import Stream, permutation
from expresser.errors import InputError
from expresser.factors import gene_factors
from expresser.model.cells import Cells, cell_key
from pretrain.config import DataConfig, Recipe

_SPLIT, _LEVELS, _FACTORS = 101, 102, 103  # purposes of the seeded draws
_LEVEL_CELLS = 20_000
_FACTOR_CELLS = 10_000


@dataclass(frozen=True)
class Split:
    """Corpus rows of the training and the validation cells, and the groups held out where the split is by group."""

    train: Int64[np.ndarray, " train"]
    valid: Int64[np.ndarray, " valid"]
    groups: tuple[str, ...] = ()


def gene_corpus(folder: str | Path) -> Corpus:
    """The corpus in a folder; InputError where its features are not genes."""
    corpus = Corpus.open(folder)
    if corpus.features != "genes":
        raise InputError(
            f"{folder}: a corpus of {len(corpus.vocab):,} {corpus.features}, but pretraining predicts the expression of genes. Give "
            "a corpus of RNA counts; `expresser translate fit sailer --corpus` trains on open chromatin."
        )
    return corpus


def split(corpus: Corpus, config: DataConfig, seed: int) -> Split:
    """Hold out ``valid_share`` of the cells, by cell or by whole groups of an obs column: a function of the seed alone.

    Raises
    ------
    InputError
        If the column does not exist, or one side would be empty.
    """
    if not 0.0 < config.valid_share < 1.0:
        raise InputError(f"data.valid_share is {config.valid_share}: it must lie between 0 and 1.")
    n_valid = max(1, round(corpus.n_cells * config.valid_share))
    groups: tuple[str, ...] = ()
    if config.valid_by is None:
        held = np.zeros(corpus.n_cells, dtype=bool)
        held[permutation(corpus.n_cells, seed, _SPLIT)[:n_valid]] = True  # by cell id: rows may be shuffled otherwise
        rows_held = held[corpus.cell_ids]
    else:
        values, labels = corpus.labels(config.valid_by)
        names, sizes = np.array(values), np.bincount(labels, minlength=len(values))
        if names.size < 2:
            raise InputError(f"{corpus.path}: obs column {config.valid_by!r} has one value only: nothing to hold out.")
        chosen, total = [], 0
        for number in permutation(names.size, seed, _SPLIT)[: names.size - 1]:
            if total >= n_valid:
                break
            chosen.append(str(names[number]))
            total += int(sizes[number])
        groups = tuple(sorted(chosen))
        rows_held = np.isin(names, chosen)[labels]
    train, valid = np.flatnonzero(~rows_held), np.flatnonzero(rows_held)
    if not train.size or not valid.size:
        raise InputError(
            f"{corpus.path}: {corpus.n_cells} cells split into {train.size} for training and {valid.size} for validation. "
            "Choose another data.valid_share or data.valid_by."
        )
    return Split(train=train, valid=valid, groups=groups)


@dataclass(frozen=True)
class Groups:
    """What a mixture weighs: the group of each training cell, and each group's name, cells and weight."""

    names: tuple[str, ...]
    of_cell: UInt32[np.ndarray, " train"]
    sizes: Int64[np.ndarray, " groups"]
    weights: Float64[np.ndarray, " groups"]

    @property
    def shares(self) -> Float64[np.ndarray, " groups"]:
        """Of the cells shown."""
        return self.weights / self.weights.sum()


def weighed_groups(corpus: Corpus, rows: Int64[np.ndarray, " train"], config: DataConfig) -> Groups | None:
    """The groups of the training cells that the configuration weighs; None where it weighs none.

    Raises
    ------
    InputError
        If the column does not exist, or a name or weight is wrong.
    """
    if config.source_weights is None:
        return None
    names, labels = corpus.labels(config.weigh_by or "source")
    present, groups = np.unique(labels[rows], return_inverse=True)
    sizes = {names[number]: int(n) for number, n in zip(present, np.bincount(groups))}
    what = "source" if config.weigh_by is None else f"value of obs column {config.weigh_by!r}"
    weights = weigh(config.source_weights, sizes, where=f"{what} among the training cells of {corpus.path}")
    return Groups(tuple(sizes), groups.astype(np.uint32), np.array(list(sizes.values()), np.int64), weights)


def mixture(corpus: Corpus, rows: Int64[np.ndarray, " train"], config: DataConfig, seed: int) -> Mixture | None:
    """The weighted mixture of the training cells that the configuration asks for; None where it asks for none."""
    groups = weighed_groups(corpus, rows, config)
    return None if groups is None else Mixture(groups.of_cell, groups.weights, seed)


def training_stream(
    corpus: Corpus,
    rows: Int64[np.ndarray, " train"],
    recipe: Recipe,
    *,
    rank: int = 0,
    world: int = 1,
    budget: Budget | None = None,
) -> Stream:
    """The steps of a run as one of its processes sees them: what is trained on, and what a plan looks at.

    Which cells these are is a function of the recipe; the budget (none: padded tokens) only says which go through the model together.
    """
    return Stream(
        corpus,
        rows,
        seed=recipe.seed,
        global_batch=recipe.data.global_batch,
        max_tokens=recipe.data.max_tokens,
        max_genes=recipe.train_genes,
        rank=rank,
        world=world,
        order=mixture(corpus, rows, recipe.data, recipe.seed),
        length_window=recipe.data.length_window or 1,
        budget=budget,
    )


def to_cells(
    batch: CountBatch,
    epoch: Int64[np.ndarray, " cells"],
    *,
    seed: int,
    device: torch.device,
    max_genes: int,
    target_sum: float,
    shape: Shape | None = None,
) -> Cells:
    """Packed counts to packed cells on the device. Small unsigned integers travel; widening and arithmetic happen there.

    ``shape``: what the cells, cut to ``max_genes``, amount to exactly (`pretrain.packing.filled`).
    """

    def move(array: np.ndarray) -> Tensor:
        # torch computes with few unsigned types: the same bits go over as signed ones and are widened without their sign.
        array = np.ascontiguousarray(array)
        signed = array.view(np.dtype(f"i{array.dtype.itemsize}")) if array.dtype.kind == "u" else array
        if not signed.flags.writeable:
            signed = signed.copy()  # a view of a read-only map: torch wants to know that it may write
        tensor = torch.from_numpy(signed).to(device, non_blocking=True).long()
        return tensor & ((1 << (8 * array.dtype.itemsize)) - 1) if array.dtype.kind == "u" else tensor

    cell_id = move(batch.cell_id)
    return Cells.from_counts(
        move(batch.genes),
        move(batch.counts),
        move(batch.lengths),
        move(batch.total),
        cell_key(seed, move(epoch), cell_id),
        target_sum=target_sum,
        max_genes=max_genes,
        shape=shape,
    )


def starting_levels(
    corpus: Corpus, rows: Int64[np.ndarray, " rows"], head: str, seed: int, target_sum: float = 1e4
) -> Float32[np.ndarray, " vocab"]:
    """Where the head's gene term starts, from at most 20,000 training cells.

    ``truncated``: the log of each gene's share of all counts (half a count added to each gene, so that an unseen gene has a
    level). Otherwise: gene effects of the gene + cell additive least-squares fit to non-zero log-normalised values, shrunk
    to their mean by three cells. Gene and cell effects are fitted together: plain means over non-zeros confound a gene's level with
    the depth of the cells that show it.
    """
    n_genes = len(corpus.vocab)
    chosen = rows[permutation(rows.size, seed, _LEVELS)[:_LEVEL_CELLS]]
    batch = corpus.read(np.sort(chosen))
    genes, counts = batch.genes.astype(np.int64), batch.counts.astype(np.float64)
    if head == "truncated":
        per_gene = np.bincount(genes, weights=counts, minlength=n_genes) + 0.5
        return np.log(per_gene / per_gene.sum()).astype(np.float32)
    cell = np.repeat(np.arange(batch.lengths.size), batch.lengths)
    values = np.log1p(target_sum * counts / batch.total.astype(np.float64)[cell])
    in_gene = np.bincount(genes, minlength=n_genes)
    in_cell = np.maximum(np.bincount(cell, minlength=batch.lengths.size), 1)
    mean = values.mean() if values.size else 0.0
    level, shrink = np.full(n_genes, mean), 3.0
    for _ in range(15):
        of_cell = np.bincount(cell, weights=values - level[genes], minlength=in_cell.size) / in_cell
        of_gene = np.bincount(genes, weights=values - of_cell[cell], minlength=n_genes)
        level = (of_gene + shrink * mean) / (in_gene + shrink)
    return level.astype(np.float32)


def starting_factors(
    corpus: Corpus, rows: Int64[np.ndarray, " rows"], d: int, seed: int, target_sum: float = 1e4
) -> Float32[np.ndarray, "vocab d"]:
    """Principal axes of genes over at most 10,000 training cells, for the token table to start from."""
    chosen = rows[permutation(rows.size, seed, _FACTORS)[:_FACTOR_CELLS]]
    counts = corpus.read(np.sort(chosen)).to_csr(len(corpus.vocab))
    return gene_factors(counts, d, target_sum=target_sum, seed=seed)
