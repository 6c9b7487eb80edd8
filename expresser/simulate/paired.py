"""Cells measured twice: the arguments, the loop over blocks and the RNA that `simulate_multiome` and `simulate_cite` share.

Each block of cells has streams of its own for states, RNA and the other modality: a cell does not depend on how many
follow it, and with the same arguments and seed its RNA is the same whatever it is measured together with.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from anndata import AnnData
from jaxtyping import Float64
from scipy import sparse

from expresser.simulate.draws import CELLS_PER_BLOCK, MAX_GENES, cells_table, check_ranges, stream
from expresser.simulate.expression import ExpressionLaw, rna_table
from expresser.simulate.states import Cells, StateLaw

Drawn = TypeVar("Drawn")
Draw = Callable[[np.random.Generator, Cells, Float64[np.ndarray, " cells"]], Drawn]

_STATES, _RNA, _OTHER = range(3)  # the streams of a block
_RANGES: dict[str, tuple[float | int, float | int]] = {
    "n_cells": (1, 1e8), "n_genes": (2, MAX_GENES), "n_types": (1, 1000), "n_programs": (0, 1000),
    "n_batches": (1, 1000), "donors_per_batch": (1, 1000), "rna_depth": (1, 1e7), "rna_depth_sd": (0, 3),
    "type_strength": (0, 3), "program_strength": (0, 3), "nonlinearity": (0, 1), "batch_sd": (0, 2),
    "donor_sd": (0, 2), "batch_depth_sd": (0, 2), "ambient": (0, 0.95), "dispersion": (0, 10), "dropout": (0, 0.99),
    "seed": (0, 2**63),
}  # fmt: skip


def check_paired(where: str, args: Mapping[str, Any], own: Mapping[str, tuple[float | int, float | int]]) -> None:
    """Every number in its range, those of the RNA and those of the caller's `own`."""
    check_ranges(where, args, {**_RANGES, **own})


def draw_paired(
    args: Mapping[str, Any], law: StateLaw, genes: ExpressionLaw, draw: Draw[Drawn], *, depth_sd: float | int
) -> tuple[AnnData, list[Drawn], Cells, Float64[np.ndarray, " cells"]]:
    """RNA of all cells, what `draw` makes of each block, the cells' states, and their relative depth in the other modality.

    `draw` is given a generator, the states of a block and that depth, its logarithm of standard deviation `depth_sd`.
    Blocks are drawn whole: cells beyond `n_cells` are in what it made, and nowhere else.
    """
    states, counts, drawn, log_totals, depths = [], [], [], [], []
    for block in range(-(-args["n_cells"] // CELLS_PER_BLOCK)):
        rng = stream(args, "cells", block, _STATES)
        cells = law.cells(rng, CELLS_PER_BLOCK)
        depth = law.depths(rng, cells, median=args["rna_depth"], sd=args["rna_depth_sd"], other_sd=depth_sd)
        matrix, log_total = genes.counts(args, stream(args, "cells", block, _RNA), cells, depth[0])
        drawn.append(draw(stream(args, "cells", block, _OTHER), cells, depth[1]))
        states.append(cells)
        counts.append(matrix)
        log_totals.append(log_total)
        depths.append(np.stack(depth))
    kept = slice(args["n_cells"])
    cells = Cells.joined(states).take(kept)
    depth_rna, depth_other = np.concatenate(depths, axis=1)[:, kept]
    obs = cells_table(args, cells.cell_type, cells.donor, depth_rna)
    matrix = sparse.vstack(counts, format="csr")[kept]
    rna = rna_table(args, law, genes, matrix, obs, cells, np.concatenate(log_totals)[kept])
    return rna, drawn, cells, depth_other
