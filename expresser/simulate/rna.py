r"""Simulated single-cell RNA counts whose cell types, gene modules, batches and depth are known, shaped like 10x data.

For cell i of type t and donor d (donors are nested in batches) and gene j, with log abundance b, type effect
:math:`\tau`, program activity a, loading W and donor effect :math:`\delta` (natural logs),

.. math::
    \log r_{ij} &= b_j + \tau_{tj} + \sum_k a_{ik} W_{jk} + \delta_{dj}, \qquad
    p_{ij} = (1 - \alpha) \frac{r_{ij}}{\sum_l r_{il}} + \alpha\, s_{dj}, \\
    x_{ij} &\sim \mathrm{NB}(\text{mean} = n_i p_{ij},\ \text{variance} = \text{mean} + \phi_j\, \text{mean}^2),

where n is the cell's depth (log skew-normal), :math:`\alpha` the ambient share, s the donor's mean profile (the soup)
and :math:`\phi` the variance nothing explains. The rank-abundance curve, the spread of depth, and how effects and
:math:`\phi` shrink with abundance were fitted to two public 10x v1 PBMC samples; `scripts/compare_simulator.py` shows
how near the result is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float32, Float64, Int32, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.simulate.draws import (
    CELLS_PER_BLOCK,
    MAX_GENES,
    cells_table,
    check_ranges,
    draw_abundance,
    draw_counts,
    draw_depth,
    draw_depth_shift,
    draw_dispersion,
    draw_donors,
    draw_types,
    gene_ids,
    gene_symbols,
    stream,
    type_frequencies,
)


@dataclass(frozen=True)
class _Truth:
    """What is drawn once: all that a block of cells needs, and the answer handed back."""

    kinds: list[str]  # "shared" or "types", one a module
    module: Int64[np.ndarray, " genes"]  # -1: in none
    loading: Float32[np.ndarray, "genes modules"]
    effects: Float32[np.ndarray, "rows genes"]  # of types (with the abundance), modules, donors: added up to log r
    activity_mean: Float64[np.ndarray, "types modules"]
    activity_sd: Float64[np.ndarray, "types modules"]
    depth_shift: Float64[np.ndarray, " types"]  # of log depth from the median
    composition: Float64[np.ndarray, "donors types"]  # cumulative frequencies
    soup: Float32[np.ndarray, "donors genes"]
    phi: Float32[np.ndarray, " genes"]
    share: Float64[np.ndarray, " genes"]  # mean proportion over cells


@dataclass(frozen=True)
class _Block:
    """Up to 256 cells: their truth, and their counts as rows of a CSR matrix."""

    cell_type: Int64[np.ndarray, " cells"]
    donor: Int64[np.ndarray, " cells"]
    depth: Float64[np.ndarray, " cells"]
    activity: Float32[np.ndarray, "cells modules"]
    lengths: Int64[np.ndarray, " cells"]
    genes: Int32[np.ndarray, " entries"]
    counts: Float32[np.ndarray, " entries"]


def simulate_rna(
    *,
    n_cells: int = 2000,
    n_genes: int = 4000,
    n_types: int = 8,
    n_modules: int = 20,
    n_batches: int = 2,
    donors_per_batch: int = 2,
    median_depth: float | int = 2200.0,
    depth_sd: float | int = 0.42,
    depth_skew: float | int = -0.25,
    module_share: float | int = 0.4,
    module_strength: float | int = 1.0,
    type_strength: float | int = 1.0,
    batch_sd: float | int = 0.1,
    donor_sd: float | int = 0.05,
    ambient: float | int = 0.02,
    dispersion: float | int = 1.0,
    keep_expected: bool = False,
    seed: int = 0,
) -> AnnData:
    r"""Raw counts of `n_cells` cells with the truth that made them; a seed fixes everything.

    The genes are the `n_genes` most abundant of a real rank-abundance curve, in random order: `n_genes=13_700` looks
    like a whole 10x sample, a small `n_genes` like its well-detected part (few zeros: 7 % at 200 genes; lower
    `median_depth` for a sparse toy). Half of the modules are *shared* (activity varies from cell to cell in every type,
    as the cell cycle's does), the others belong to *types* (on, and varying, in one to a third of the types; off and
    nearly still elsewhere). A gene is in at most one module. The first cells do not depend on `n_cells`.

    Parameters
    ----------
    n_cells, n_genes, n_types, n_modules, n_batches, donors_per_batch
        How many; `n_modules=0` is a model without.
    median_depth, depth_sd, depth_skew
        Expected counts of a median cell over the simulated genes; standard deviation and skewness of the natural log of depth
        (a fifth of its variance lies between types).
    module_share
        Share of the genes that are in a module, spread evenly over the modules.
    module_strength, type_strength
        Multiply the loadings, and the gene-wise type effects; 0 turns them off.
    batch_sd, donor_sd
        Standard deviation over genes of the log effect of a batch, of a donor within its batch.
    ambient
        Share of a cell's expected counts that comes from its donor's mean profile.
    dispersion
        Multiplies the gene-wise phi (0: counts are Poisson given `expected`).
    keep_expected
        Add the **dense** float32 layer "expected", the proportions p (rows sum to 1).
    seed
        Not negative.

    Returns
    -------
    AnnData
        X: CSR float32 whole counts. obs: `cell_type`, `batch`, `donor`, `depth` (expected total counts n). var: indexed by ids
        of a reserved range, ENSG9xxxxxxxxxx, with `symbol`, `gene_ids`, `module` ("none" or a row of `uns["modules"]`), `mean`
        (expected counts in a cell of median depth, averaged over cells). obsm `program_activity` and varm `program_loading`:
        columns as the rows of `uns["modules"]`, whose `kind` is "shared" or "types". uns `simulation`: the arguments.

    Raises
    ------
    InputError
        A number outside its range, or fewer than two genes for a module.
    """
    arguments: dict[str, Any] = dict(locals())
    _check(arguments)
    truth = _draw_truth(arguments)
    expected = np.empty((n_cells, n_genes), np.float32) if keep_expected else None
    blocks: list[_Block] = []
    for start in range(0, n_cells, CELLS_PER_BLOCK):
        rows = min(CELLS_PER_BLOCK, n_cells - start)
        block, proportions = _draw_block(arguments, truth, start // CELLS_PER_BLOCK, rows)
        blocks.append(block)
        if expected is not None:
            expected[start : start + rows] = proportions
    return _assemble(arguments, truth, blocks, expected)


def _check(args: Mapping[str, Any]) -> None:
    """Every number in its range, or an InputError that names it."""
    ranges = {
        "n_cells": (1, 1e8), "n_genes": (2, MAX_GENES), "n_types": (1, 1000), "n_modules": (0, 1000),
        "n_batches": (1, 1000), "donors_per_batch": (1, 1000), "seed": (0, 2**63), "median_depth": (1, 1e7),
        "depth_sd": (0, 3), "depth_skew": (-0.65, 0.65), "module_share": (0, 1), "module_strength": (0, 3),
        "type_strength": (0, 3), "batch_sd": (0, 2), "donor_sd": (0, 2), "ambient": (0, 0.95), "dispersion": (0, 10),
    }  # fmt: skip
    check_ranges("simulate_rna", args, ranges)
    if args["n_modules"] and (size := _module_size(args)) < 2:
        raise InputError(
            f"simulate_rna: a module needs two genes or more; {args['n_genes']} genes x module_share "
            f"{args['module_share']:g} over {args['n_modules']} modules leave {size} each. Pass more genes, a larger "
            "share or fewer modules."
        )


def _module_size(args: Mapping[str, Any]) -> int:
    return int(args["n_genes"] * args["module_share"] / args["n_modules"])


def _draw_truth(args: Mapping[str, Any]) -> _Truth:
    frequency = type_frequencies(args["n_types"])
    share, damping = draw_abundance(stream(args, "abundance"), args["n_genes"])
    kinds, module, loading, activity_mean, activity_sd = _modules(args, damping)
    rng = stream(args, "types")
    type_effect = draw_types(rng, args["n_types"], args["n_genes"])
    depth_shift = draw_depth_shift(rng, frequency, args["depth_sd"])
    type_effect = args["type_strength"] * type_effect * damping
    # What types and programs do to a gene's mean over cells is divided out again, so that the rank-abundance curve
    # stays what it was; for a normal activity E exp(W a) = exp(W mean + W^2 sd^2 / 2).
    mean_shift = activity_mean @ loading.T + activity_sd**2 @ (loading**2).T / 2
    type_effect += np.log(share) - np.log(frequency @ np.exp(type_effect + mean_shift))
    rng = stream(args, "donors")
    donor_effect = draw_donors(rng, args, args["n_genes"])
    composition = rng.dirichlet(50 * frequency, len(donor_effect))
    profile = np.exp(type_effect + mean_shift)
    soup = composition @ (profile / profile.sum(axis=1, keepdims=True)) * np.exp(donor_effect)
    phi = draw_dispersion(stream(args, "dispersion"), share, args["dispersion"])
    return _Truth(
        kinds=kinds,
        module=module,
        loading=loading.astype(np.float32),
        effects=np.concatenate([type_effect, loading.T, donor_effect]).astype(np.float32),
        activity_mean=activity_mean,
        activity_sd=activity_sd,
        depth_shift=depth_shift,
        composition=composition.cumsum(axis=1),
        soup=(soup / soup.sum(axis=1, keepdims=True)).astype(np.float32),
        phi=phi.astype(np.float32),
        share=share,
    )


def _modules(
    args: Mapping[str, Any], damping: Float64[np.ndarray, " genes"]
) -> tuple[
    list[str],
    Int64[np.ndarray, " genes"],
    Float64[np.ndarray, "genes modules"],
    Float64[np.ndarray, "types modules"],
    Float64[np.ndarray, "types modules"],
]:
    """Kinds, members, loadings, and each type's mean and standard deviation of each program's activity."""
    rng = stream(args, "modules")
    n_genes, n_types, n_modules = args["n_genes"], args["n_types"], args["n_modules"]
    module = np.full(n_genes, -1, np.int64)
    loading = np.zeros((n_genes, n_modules))
    if n_modules:
        members = rng.permutation(n_genes)[: _module_size(args) * n_modules]
        module[members] = np.arange(len(members)) % n_modules
        # All of one sign; Gamma(2): a few leaders and many weak members, as marker lists of real programs have.
        loading[members, module[members]] = args["module_strength"] * rng.gamma(2, 0.4, len(members)) * damping[members]
    kinds = ["types" if n_types > 1 and k % 2 else "shared" for k in range(n_modules)]
    mean, sd = np.empty((n_types, n_modules)), np.empty((n_types, n_modules))
    for k, kind in enumerate(kinds):
        if kind == "shared":
            mean[:, k], sd[:, k] = rng.normal(0, 0.4, n_types), 0.8
        else:
            # k // 2 first, so that every type has a program of its own as soon as there are enough programs.
            others = rng.permutation(n_types)[: rng.integers(0, max(1, n_types // 3))]
            on = np.isin(np.arange(n_types), [k // 2 % n_types, *others])
            mean[:, k], sd[:, k] = np.where(on, 1.5, -0.3), np.where(on, 0.7, 0.15)
    return kinds, module, loading, mean, sd


def _draw_block(
    args: Mapping[str, Any], truth: _Truth, block: int, rows: int
) -> tuple[_Block, Float32[np.ndarray, "cells genes"]]:
    """The first `rows` cells of a block, which is always drawn whole, and their expected proportions."""
    rng = stream(args, "cells", block)
    size, n_types = CELLS_PER_BLOCK, args["n_types"]
    donor = rng.integers(len(truth.soup), size=size)
    cell_type = np.minimum((rng.random((size, 1)) > truth.composition[donor]).sum(axis=1), n_types - 1)
    depth = draw_depth(
        rng,
        truth.depth_shift[cell_type],
        median=args["median_depth"],
        sd=args["depth_sd"],
        skew=args["depth_skew"],
        typed=n_types > 1,
    )
    activity = truth.activity_mean[cell_type] + truth.activity_sd[cell_type] * rng.normal(
        size=(size, args["n_modules"])
    )
    activity = activity.astype(np.float32)

    is_type, is_donor = (np.eye(n, dtype=np.float32) for n in (n_types, len(truth.soup)))
    rate = np.concatenate([is_type[cell_type], activity, is_donor[donor]], axis=1) @ truth.effects
    rate -= rate.max(axis=1, keepdims=True)  # strong effects must not overflow float32
    np.exp(rate, out=rate)
    rate *= ((1 - args["ambient"]) / rate.sum(axis=1, keepdims=True)).astype(np.float32)
    if args["ambient"]:
        rate += np.float32(args["ambient"]) * truth.soup[donor]
    mean = rate * depth[:, None].astype(np.float32)
    row, gene, counts = draw_counts(mean, truth.phi, rng)
    kept = np.searchsorted(row, rows)
    drawn = _Block(
        cell_type=cell_type[:rows],
        donor=donor[:rows],
        depth=depth[:rows],
        activity=activity[:rows],
        lengths=np.bincount(row[:kept], minlength=rows),
        genes=gene[:kept].astype(np.int32),
        counts=counts[:kept],
    )
    return drawn, rate[:rows]


def _assemble(
    args: Mapping[str, Any],
    truth: _Truth,
    blocks: list[_Block],
    expected: Float32[np.ndarray, "cells genes"] | None,
) -> AnnData:
    n_cells, n_genes = args["n_cells"], args["n_genes"]
    ends = np.concatenate([[0], np.concatenate([b.lengths for b in blocks]).cumsum()])
    genes, counts = np.concatenate([b.genes for b in blocks]), np.concatenate([b.counts for b in blocks])
    obs = cells_table(
        args,
        np.concatenate([b.cell_type for b in blocks]),
        np.concatenate([b.donor for b in blocks]),
        np.concatenate([b.depth for b in blocks]),
    )
    names = [f"module{k:02d}" for k in range(args["n_modules"])]
    ids = gene_ids(n_genes)
    var = pd.DataFrame(
        {
            "symbol": gene_symbols(n_genes),
            "gene_ids": ids,
            "module": pd.Categorical.from_codes(truth.module + 1, categories=["none", *names]),
            "mean": truth.share * args["median_depth"],
        },
        index=ids,
    )
    adata = AnnData(
        X=sparse.csr_matrix((counts, genes, ends), shape=(n_cells, n_genes)),
        obs=obs,
        var=var,
        obsm={"program_activity": np.concatenate([b.activity for b in blocks])},
        varm={"program_loading": truth.loading},
        uns={"simulation": {"kind": "rna", **args}, "modules": pd.DataFrame({"kind": truth.kinds}, index=names)},
    )
    if expected is not None:
        adata.layers["expected"] = expected
    return adata
