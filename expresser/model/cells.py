"""What the model is fed: packed cells, and the views of them that say which genes are asked and which are seen."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expresser.corpus.budgets import Shape
from expresser.model.fixed import FixedRagged, true_positions
from expresser.model.keyed import keyed_rank, splitmix64
from expresser.model.ragged import Ragged

_SUBSET, _MASK = 1, 2


@dataclass(frozen=True)
class Cells:
    """Packed cells: the non-zero genes of each, one after another.

    Attributes
    ----------
    genes
        Token of each entry.
    values
        ``log1p(target_sum * count / total)``, natural log.
    rows
        How the entries divide into cells.
    key
        One integer a cell: all of the cell's randomness derives from it.
    rest_max
        Largest value among genes of the cell that a subset left out; 0 when nothing was.
    total
        Library size that the values were scaled by: counts over the whole vocabulary.
    """

    genes: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"]
    rows: Ragged
    key: Int[Tensor, " cells"]
    rest_max: Float[Tensor, " cells"]
    total: Float[Tensor, " cells"]

    @classmethod
    def from_counts(
        cls,
        genes: Int[Tensor, " entries"],
        counts: Int[Tensor, " entries"] | Float[Tensor, " entries"],
        lengths: Int[Tensor, " cells"],
        totals: Int[Tensor, " cells"] | Float[Tensor, " cells"],
        key: Int[Tensor, " cells"],
        *,
        target_sum: float = 1e4,
        max_genes: int | None = None,
        shape: Shape | None = None,
    ) -> "Cells":
        """Normalise raw counts and cut each cell with more than ``max_genes`` genes to a random subset drawn by its key.

        The library size and the largest value are those of the whole cell: a subset hides genes from the model, it does not
        change their values. Cells that show exactly the tokens and rows of a ``shape`` get rows of known numbers.
        """
        if shape is not None:
            return cls._of_shape(genes, counts, lengths, totals, key, target_sum, max_genes, shape)
        rows = Ragged(lengths)
        values = torch.log1p(target_sum * counts.float() / totals.float()[rows.row])
        rest_max = values.new_zeros(rows.n_rows)
        if max_genes is not None and rows.longest > max_genes:
            kept = keyed_rank(rows, key, genes, purpose=_SUBSET) < max_genes
            rest_max = rows.max(values.masked_fill(kept, 0.0))
            genes, values, rows = genes[kept], values[kept], Ragged(lengths.clamp(max=max_genes))
        return cls(genes=genes, values=values, rows=rows, key=key, rest_max=rest_max, total=totals.float())

    @classmethod
    def _of_shape(
        cls,
        genes: Tensor,
        counts: Tensor,
        lengths: Tensor,
        totals: Tensor,
        key: Tensor,
        target_sum: float,
        max_genes: int | None,
        shape: Shape,
    ) -> "Cells":
        """:meth:`from_counts` without a question to the device: whether a cell is cut is known from the number of entries."""
        whole = FixedRagged(lengths, total=genes.numel(), bound=genes.numel())
        values = torch.log1p(target_sum * counts.float() / totals.float()[whole.row])
        rest_max = values.new_zeros(whole.n_rows)
        if max_genes is not None and whole.total > shape.tokens:
            kept = keyed_rank(whole, key, genes, purpose=_SUBSET) < max_genes
            rest_max = whole.max(values.masked_fill(kept, 0.0))
            shown = true_positions(kept, shape.tokens)
            genes, values, lengths = genes[shown], values[shown], lengths.clamp(max=max_genes)
        rows = FixedRagged(lengths, total=shape.tokens, bound=shape.longest)
        return cls(genes=genes, values=values, rows=rows, key=key, rest_max=rest_max, total=totals.float())

    def to(self, device: torch.device | str) -> "Cells":
        """The same cells on another device."""
        return Cells(
            genes=self.genes.to(device),
            values=self.values.to(device),
            rows=Ragged(self.rows.lengths.to(device)),
            key=self.key.to(device),
            rest_max=self.rest_max.to(device),
            total=self.total.to(device),
        )


def cell_key(seed: int, epoch: Int[Tensor, " cells"], cell_id: Int[Tensor, " cells"]) -> Int[Tensor, " cells"]:
    """The key of a cell's randomness in one epoch."""
    return splitmix64(splitmix64(epoch.long() + (seed << 20)) + cell_id.long())


@dataclass(frozen=True)
class Views:
    """Which entries of a batch are asked from which: view ``v`` predicts its queries from its context, both of one cell.

    Any mask is a set of views over the same encoding: one random mask a cell, or all folds of a cell at once.

    Attributes
    ----------
    query, context
        Positions into the packed entries of the batch.
    query_rows, context_rows
        How these divide into views; same number of rows.
    cell
        Cell of each view.
    """

    query: Int[Tensor, " queries"]
    query_rows: Ragged
    context: Int[Tensor, " seen"]
    context_rows: Ragged
    cell: Int[Tensor, " views"]

    @classmethod
    def single(cls, rows: Ragged, masked: Tensor) -> "Views":
        """One view a cell: the entries where ``masked`` is True are asked from the others.

        Cells without a masked or without an observed entry get no view.
        """
        n_masked = rows.sum(masked.float()).long()
        has_view = (n_masked > 0) & (n_masked < rows.lengths)
        inside = has_view[rows.row]
        entries = torch.arange(rows.n_entries, device=masked.device)
        return cls(
            query=entries[masked & inside],
            query_rows=Ragged(n_masked[has_view]),
            context=entries[~masked & inside],
            context_rows=Ragged((rows.lengths - n_masked)[has_view]),
            cell=torch.nonzero(has_view).squeeze(1),
        )

    @classmethod
    def folds(cls, rows: Ragged, fold: Int[Tensor, " entries"], n_folds: int) -> "Views":
        """Every fold of every cell asked from the cell's other folds: each entry is a query exactly once.

        Views without a query or without context do not exist (cells with fewer genes than folds).
        """
        device = fold.device
        n_views = rows.n_rows * n_folds
        view_of = rows.row * n_folds + fold
        n_query = torch.bincount(view_of, minlength=n_views)
        n_context = rows.lengths.repeat_interleave(n_folds) - n_query
        has_view = (n_query > 0) & (n_context > 0)

        query = torch.sort(view_of, stable=True).indices
        # Entry e stands in the context of the n_folds - 1 other views of its cell. Listing for each cell its folds in turn, each
        # with all the cell's entries, and striking out the queries gives them in view order without a sort.
        all_pairs = Ragged(rows.lengths.repeat_interleave(n_folds))
        entry = rows.starts.repeat_interleave(n_folds)[all_pairs.row] + all_pairs.offset
        view_fold = torch.arange(n_folds, device=device).repeat(rows.n_rows)
        seen = fold[entry] != view_fold[all_pairs.row]
        context, context_view = entry[seen], all_pairs.row[seen]
        return cls(
            query=query[has_view[view_of[query]]],
            query_rows=Ragged(n_query[has_view]),
            context=context[has_view[context_view]],
            context_rows=Ragged(n_context[has_view]),
            cell=torch.nonzero(has_view).squeeze(1) // n_folds,
        )


def mask_rank(cells: Cells) -> Int[Tensor, " entries"]:
    """The order, drawn by the cells' keys, in which a cell's genes are masked."""
    return keyed_rank(cells.rows, cells.key, cells.genes, purpose=_MASK)


def single_mask(cells: Cells, share: float) -> Views:
    """The paper's pretext: one random mask of ``round(share * p)`` of a cell's ``p`` genes (at least one), drawn by the cell's key."""
    return Views.single(cells.rows, mask_rank(cells) < n_single(cells.rows.lengths, share)[cells.rows.row])


def n_single(lengths: Int[Tensor, " cells"], share: float) -> Int[Tensor, " cells"]:
    """Genes that :func:`single_mask` masks in cells of these lengths."""
    return (lengths.double() * share).round().long().clamp(min=1)


def all_folds(cells: Cells, n_folds: int) -> Views:
    """Every gene a target: a cell's genes cut at random into ``n_folds`` folds, each asked from the others."""
    return Views.folds(cells.rows, mask_rank(cells) % n_folds, n_folds)
