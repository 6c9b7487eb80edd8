r"""Antibody counts of cells whose states are known: each protein follows its gene's program, over a background.

Of protein p in cell i, with :math:`\eta = F L^\top + b` (F the factors of the cells, see `StateLaw`), ceiling
:math:`c_p`, background :math:`\beta_p` of unbound antibody, the cell's part of it :math:`u` and relative depth n,

.. math::
    x_{ip} \sim \mathrm{NB}\Bigl(\text{mean} = n_i \Bigl(\frac{e^{\eta_{ip}}}{1 + e^{\eta_{ip}} / c_p}
    + u_i\, \beta_p\Bigr),\ \phi_p\Bigr).

The loadings are those of the protein's gene, enlarged, and some of its own: what is not seen in RNA.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Float32, Float64, Int64
from scipy import sparse

from expresser.simulate.draws import draw_counts, draw_donors, stream
from expresser.simulate.expression import FACTORS, LOADINGS, OFFSET, ExpressionLaw, Index, log_mean_effect, log_rates
from expresser.simulate.states import Answers, Cells, StateLaw

_GAIN = 0.9  # log fold of a protein per log fold of its gene, on average
_OWN = 0.6  # size of what moves the protein and not its gene
_LEVEL_SD, _BACKGROUND_SD = 0.9, 0.7  # over proteins, of the logs (29 antibodies on PBMC: 1.9 over both)
_CEILING = 20.0  # times a protein's mean
_CELL_BACKGROUND_SD = 0.3  # over cells, of the log of u
_MOST_LOG_RATE = 14.0  # a million counts: the strongest effects must stay numbers that can be drawn
_PHI = 0.2


@dataclass(frozen=True, eq=False)
class ProteinLaw:
    """What is drawn once about proteins."""

    gene: Int64[np.ndarray, " proteins"]
    mean: Float32[np.ndarray, " proteins"]  # expected counts at median depth without background, mean over cells
    background: Float32[np.ndarray, " proteins"]
    offset: Float32[np.ndarray, " proteins"]
    loading: Float32[np.ndarray, "proteins factors"]
    phi: Float32[np.ndarray, " proteins"]

    @classmethod
    def draw(cls, args: Mapping[str, Any], law: StateLaw, genes: ExpressionLaw) -> "ProteinLaw":
        rng = stream(args, "proteins")
        n = args["n_proteins"]
        gene = _markers(rng, genes, n)
        gain = _GAIN * rng.gamma(16, 1 / 16, n)
        donors = draw_donors(rng, args, n)
        loading = law.loadings(genes.answers.take(gene).times(gain), donors)
        loading += law.loadings(Answers.draw(rng, args, n).times(np.full(n, _OWN)), np.zeros_like(donors))
        mean, background = np.exp(rng.normal(0, _LEVEL_SD, n)), np.exp(rng.normal(0, _BACKGROUND_SD, n))
        mean *= args["protein_depth"] * (1 - args["background"]) / mean.sum()
        background *= args["protein_depth"] * args["background"] / background.sum()
        offset = np.log(mean / (1 - args["nonlinearity"] / _CEILING)) - log_mean_effect(args, law, loading)
        phi = args["dispersion"] * _PHI * np.exp(rng.normal(0, 0.4, n))
        floats = (part.astype(np.float32) for part in (mean, background, offset, loading, phi))
        return cls(gene, *floats)

    def counts(
        self, args: Mapping[str, Any], rng: np.random.Generator, cells: Cells, depth: Float64[np.ndarray, " cells"]
    ) -> sparse.csr_matrix:
        """Antibody counts; `depth` is relative to the median."""
        own = np.exp(rng.normal(0, _CELL_BACKGROUND_SD, (len(depth), 1))).astype(np.float32)
        expected = signal(args, cells.factors, self.loading, self.offset, self.mean) + own * self.background
        expected *= depth[:, None].astype(np.float32)
        row, protein, count = draw_counts(expected, self.phi, rng)
        return sparse.csr_matrix((count, (row, protein)), shape=expected.shape)


def _markers(rng: np.random.Generator, genes: ExpressionLaw, n: int) -> Int64[np.ndarray, " proteins"]:
    """Genes that a panel would choose: seen often enough, and telling cell states apart."""
    spread = np.ptp(genes.answers.types, axis=1) + np.sqrt((genes.answers.weight**2).sum(axis=1))
    abundant = genes.share >= np.median(genes.share)
    best = np.argsort(-(spread + 1e3 * abundant), kind="stable")[: 10 * n]
    return np.sort(rng.choice(best, n, replace=False))


def signal(
    args: Mapping[str, Any],
    factors: Float32[np.ndarray, "cells factors"],
    loading: Float32[np.ndarray, "proteins factors"],
    offset: Float32[np.ndarray, " proteins"],
    mean: Float32[np.ndarray, " proteins"],
) -> Float32[np.ndarray, "cells proteins"]:
    """Expected counts of bound antibody at median depth."""
    rate = np.exp(np.minimum(log_rates(factors, loading, offset), _MOST_LOG_RATE))
    return rate / (1 + rate * np.float32(args["nonlinearity"] / _CEILING) / mean)


def true_counts(
    protein: AnnData, cells: Index, proteins: Index, *, own_depth: bool
) -> Float32[np.ndarray, "cells proteins"]:
    """Expected counts, average background included, at median depth or at the depth that each cell has."""
    args, var = protein.uns["simulation"], protein.var
    offset, mean, background = (var[name].to_numpy()[proteins] for name in (OFFSET, "mean", "background"))
    expected = signal(args, protein.obsm[FACTORS][cells], protein.varm[LOADINGS][proteins], offset, mean) + background
    if own_depth:
        expected *= (protein.obs["depth"].to_numpy()[cells] / args["protein_depth"])[:, None].astype(np.float32)
    return expected
