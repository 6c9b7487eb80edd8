r"""RNA of cells whose states are known: log rates are a product of two narrow matrices, counts negative binomial.

:math:`p_{ij} = (1 - \alpha)\, r_{ij} / \sum_l r_{il} + \alpha\, s_{dj}` as in `simulate_rna`, with
:math:`\log r = F L^\top + b`: F the factors of the cells (`StateLaw`), L the genes' loadings, b their offsets. All of
it travels inside the AnnData, row by row and column by column, so that p can be worked out from any subset of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float32, Float64, Int
from scipy import sparse

from expresser.errors import InputError
from expresser.simulate.draws import (
    draw_abundance,
    draw_counts,
    draw_dispersion,
    draw_donors,
    gene_ids,
    gene_symbols,
    stream,
)
from expresser.simulate.states import Answers, Cells, StateLaw

Index = slice | Int[np.ndarray, " _"] | Bool[np.ndarray, " _"]  # which cells, which features

FACTORS, LOADINGS, OFFSET = "truth_factors", "truth_loadings", "truth_offset"  # in obsm, varm, var
_LOG_TOTAL, _SOUP = "truth_log_total", "truth_soup"  # in obs, varm

# The rank-abundance curve of whole cells, shares to this power: chosen, with the strengths of effects, for how well
# trivial and perfect predictions of held-out cells score (`simulate_multiome`).
_FLATNESS = 0.8
_REFERENCE_CELLS = 1024


@dataclass(frozen=True, eq=False)
class ExpressionLaw:
    """What is drawn once about genes."""

    answers: Answers
    share: Float64[np.ndarray, " genes"]  # of all counts, mean over cells
    offset: Float32[np.ndarray, " genes"]
    loading: Float32[np.ndarray, "genes factors"]
    soup: Float32[np.ndarray, "genes donors"]
    phi: Float32[np.ndarray, " genes"]

    @classmethod
    def draw(cls, args: Mapping[str, Any], law: StateLaw) -> "ExpressionLaw":
        share = draw_abundance(stream(args, "abundance"), args["n_genes"])[0] ** _FLATNESS
        share /= share.sum()
        answers = Answers.draw(stream(args, "loadings"), args, args["n_genes"])
        donors = draw_donors(stream(args, "donors"), args, args["n_genes"])
        loading = law.loadings(answers, donors)
        # What cell states do to a gene's mean is divided out: the rank-abundance curve stays what it was.
        offset = np.log(share) - log_mean_effect(args, law, loading)
        soup = share * np.exp(donors)
        return cls(
            answers=answers,
            share=share,
            offset=offset.astype(np.float32),
            loading=loading,
            soup=(soup / soup.sum(axis=1, keepdims=True)).T.astype(np.float32),
            phi=draw_dispersion(stream(args, "dispersion"), share, args["dispersion"]).astype(np.float32),
        )

    def counts(
        self, args: Mapping[str, Any], rng: np.random.Generator, cells: Cells, depth: Float64[np.ndarray, " cells"]
    ) -> tuple[sparse.csr_matrix, Float32[np.ndarray, " cells"]]:
        """Counts, and the logarithm of each cell's summed rates."""
        rate = log_rates(cells.factors, self.loading, self.offset)
        highest = rate.max(axis=1, keepdims=True)  # strong effects must not overflow float32
        np.exp(rate - highest, out=rate)
        total = rate.sum(axis=1, keepdims=True)
        rate *= np.float32(1 - args["ambient"]) / total
        rate += np.float32(args["ambient"]) * self.soup.T[cells.donor]
        rate *= depth[:, None].astype(np.float32)
        row, gene, count = draw_counts(rate, self.phi, rng)
        kept = rng.random(len(row)) >= args["dropout"]
        counts = sparse.csr_matrix((count[kept], (row[kept], gene[kept])), shape=rate.shape)
        return counts, (highest + np.log(total))[:, 0]


def log_rates(
    factors: Float32[np.ndarray, "cells factors"],
    loading: Float32[np.ndarray, "features factors"],
    offset: Float32[np.ndarray, " features"],
) -> Float32[np.ndarray, "cells features"]:
    """The product of the two narrow matrices, a block of cells and features at a time."""
    rate = factors @ loading.T
    rate += offset
    return rate


def log_mean_effect(
    args: Mapping[str, Any], law: StateLaw, loading: Float32[np.ndarray, "features factors"]
) -> Float64[np.ndarray, " features"]:
    """log of the mean, over a sample of cells of this law, of what a cell's state multiplies a rate with."""
    factors = law.cells(stream(args, "reference"), _REFERENCE_CELLS).factors
    means = []
    for part in np.array_split(loading, 1 + len(loading) // 4096):
        effect = factors @ part.T
        highest = effect.max(axis=0)  # strong effects must not overflow float32
        means.append(highest + np.log(np.exp(effect - highest).mean(axis=0, dtype=np.float64)))
    return np.concatenate(means)


def rna_table(
    args: Mapping[str, Any],
    law: StateLaw,
    genes: ExpressionLaw,
    counts: sparse.csr_matrix,
    obs: pd.DataFrame,
    cells: Cells,
    log_total: Float32[np.ndarray, " cells"],
) -> AnnData:
    """Counts with the truth that made them."""
    ids = gene_ids(args["n_genes"])
    columns = {"symbol": gene_symbols(args["n_genes"]), "gene_ids": ids, "mean": genes.share * args["rna_depth"]}
    return AnnData(
        X=counts,
        obs=obs.assign(**{_LOG_TOTAL: log_total}),
        var=pd.DataFrame({**columns, OFFSET: genes.offset}, index=ids),
        obsm={FACTORS: cells.factors, "program_activity": cells.activity},
        varm={LOADINGS: genes.loading, _SOUP: genes.soup},
        uns={"simulation": {**args, "factors": law.factors}},
    )


def true_proportions(rna: AnnData, cells: Index, genes: Index) -> Float32[np.ndarray, "cells genes"]:
    """p of these cells and genes: the expected share of a cell's counts. Sums to one over all genes simulated."""
    factors = rna.obsm[FACTORS][cells]
    rate = log_rates(factors, rna.varm[LOADINGS][genes], rna.var[OFFSET].to_numpy()[genes])
    rate -= rna.obs[_LOG_TOTAL].to_numpy()[cells][:, None]
    ambient, soup = np.float32(rna.uns["simulation"]["ambient"]), rna.varm[_SOUP][genes]
    return (1 - ambient) * np.exp(rate) + ambient * (factors[:, -soup.shape[1] :] @ soup.T)


def check_truth(adata: AnnData, *, rna: bool, where: str) -> None:
    """InputError where the truth is not (any longer) inside."""
    wanted = {"obsm": [FACTORS], "varm": [LOADINGS], "var": [OFFSET], "uns": ["simulation"]}
    if rna:
        wanted |= {"obs": [_LOG_TOTAL], "varm": [LOADINGS, _SOUP]}
    missing = [f"{part}[{key!r}]" for part, keys in wanted.items() for key in keys if key not in getattr(adata, part)]
    if missing:
        raise InputError(
            f"{where}: {', '.join(missing)} missing: the truth of a simulation is read from there. Pass what "
            "simulate_multiome or simulate_cite made, cells and features taken out of it if need be, nothing else removed."
        )


def check_same_cells(one: AnnData, other: AnnData, where: str) -> None:
    """InputError where the two do not hold the same cells in the same order."""
    if not one.obs_names.equals(other.obs_names):
        raise InputError(
            f"{where}: the two modalities do not hold the same cells in the same order ({one.n_obs:,} and "
            f"{other.n_obs:,} cells). Take the same cells out of both."
        )
