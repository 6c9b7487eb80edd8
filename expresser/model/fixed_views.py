"""Views of static size over cells of a static shape: the queries of `all_folds` and `single_mask`, then queries that fill up."""

import math

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from expresser.corpus.budgets import Shape, dealt
from expresser.model.cells import Cells, Views, mask_rank, n_single
from expresser.model.fixed import FixedRagged, true_positions


def fixed_folds(cells: Cells, n_folds: int, shape: Shape) -> Views:
    """`all_folds` of rows that are empty or of two genes or more: ``rows * n_folds`` views, empty ones included.

    Every entry is asked once and seen by the ``n_folds - 1`` other views of its row, so that sizes follow from the shape alone.
    """
    device, rows = cells.genes.device, cells.rows
    fold = mask_rank(cells) % n_folds
    view_of = rows.row * n_folds + fold
    in_row = rows.lengths.repeat_interleave(n_folds)
    n_query = torch.zeros_like(in_row).index_add(0, view_of, torch.ones_like(view_of))

    pairs = FixedRagged(in_row, total=shape.tokens * n_folds, bound=shape.longest)
    entry = rows.starts.repeat_interleave(n_folds)[pairs.row] + pairs.offset
    view_fold = torch.arange(n_folds, device=device).repeat(shape.rows)
    seen = true_positions(fold[entry] != view_fold[pairs.row], shape.tokens * (n_folds - 1))
    most = -(-shape.longest // n_folds)
    return Views(
        query=torch.sort(view_of, stable=True).indices,
        query_rows=FixedRagged(n_query, total=shape.tokens, bound=most),
        context=entry[seen],
        context_rows=FixedRagged(
            in_row - n_query, total=shape.tokens * (n_folds - 1), bound=shape.longest - shape.longest // n_folds
        ),
        cell=torch.arange(shape.rows, device=device).repeat_interleave(n_folds),
    )


def fixed_single(cells: Cells, share: float, shape: Shape, lengths: Int64[np.ndarray, " rows"]) -> Views:
    """`single_mask` of rows that are empty or of two genes or more; ``lengths`` are the rows' own, on the host.

    How many genes are masked depends on how the lengths round. The views are one a row, then some that take up what a
    shape's rows can differ by: they ask and see entries of any row, and their answers are to be thrown away.
    """
    device = cells.genes.device
    of_rows = torch.from_numpy(lengths)
    n_masked = torch.minimum(n_single(of_rows, share), of_rows)
    masked = int(n_masked.sum())
    least_masked, most_masked = masked_range(shape, share)
    longest_query = int(n_single(torch.tensor([shape.longest]), share))
    longest_context = shape.longest - longest_query
    n_more = math.ceil((most_masked - least_masked) / min(longest_query, longest_context - 1))
    # Each view that fills up sees one entry at least: attention over nothing is not a number.
    more_query = torch.from_numpy(dealt(most_masked - masked, n_more))
    more_context = torch.from_numpy(dealt(masked - least_masked + n_more, n_more))

    is_masked = mask_rank(cells) < n_masked.to(device)[cells.rows.row]

    def positions(flags: Tensor, n: int, more: Tensor) -> Tensor:
        anywhere = torch.arange(int(more.sum()), device=device) % shape.tokens
        return torch.cat([true_positions(flags, n), anywhere])

    query, context = most_masked, shape.tokens - least_masked + n_more
    return Views(
        query=positions(is_masked, masked, more_query),
        query_rows=FixedRagged(torch.cat([n_masked, more_query]).to(device), total=query, bound=longest_query),
        context=positions(~is_masked, shape.tokens - masked, more_context),
        context_rows=FixedRagged(
            torch.cat([of_rows - n_masked, more_context]).to(device), total=context, bound=longest_context
        ),
        cell=torch.cat([torch.arange(shape.rows, device=device), torch.zeros(n_more, dtype=torch.long, device=device)]),
    )


def masked_range(shape: Shape, share: float) -> tuple[int, int]:
    """Fewest and most genes that `single_mask` masks in rows that fill a shape: a row's share is rounded, and one at least."""
    return (
        max(0, math.ceil(share * shape.tokens - shape.rows / 2)),
        min(shape.tokens, math.floor(share * shape.tokens + shape.rows)),
    )
