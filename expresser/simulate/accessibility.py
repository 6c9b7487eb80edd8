r"""Open chromatin of cells whose states are known: Poisson fragments in peaks, tied to genes by links.

Of peak p in cell i, with log odds :math:`\eta = F L^\top + b` (F the factors of the cells, see `StateLaw`), ceiling c,
background share :math:`\alpha`, mean :math:`\bar m` and relative depth n,

.. math::
    m_{ip} = (1 - \alpha) \frac{e^{\eta_{ip}}}{1 + e^{\eta_{ip}} / c} + \alpha\, \bar m_p, \qquad
    P(\text{open}) = 1 - e^{-n_i m_{ip}}.

The ceiling is what a locus open on both chromosomes gives; c is the higher, the lower the nonlinearity, and infinite
(rates are log-linear) without. A linked peak's loadings are its gene's, times the effect of the link, plus some of its
own.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from anndata import AnnData
from jaxtyping import Bool, Float32, Float64
from scipy import sparse

from expresser.simulate.draws import draw_donors, stream
from expresser.simulate.expression import FACTORS, LOADINGS, OFFSET, Index, log_mean_effect, log_rates
from expresser.simulate.genome import ENHANCER, MadeGenome
from expresser.simulate.states import Answers, Cells, StateLaw

CEILING = 2.0  # fragments of a locus open on both chromosomes, at median depth
_MOST = 0.8 * CEILING  # of the mean over cells: beyond, nothing could move
_MOST_LOG_RATE = 14.0  # a million fragments: the strongest effects must stay numbers that can be drawn
_PEAKS_PER_CHUNK = 16_384  # a chunk of a block takes 16 MB; part of the seed
_BASE_SD = 1.0  # of the log of how often peaks are open
_EFFECT = (0.6, 1.0, 0.0)  # mean size of a link's effect: promoter, enhancer, none
_BASE = (1.0, 0.0, 0.0)  # log of how much more open, by the same kinds
_REPRESSING = 0.1  # share of the enhancers whose opening goes with less expression
_OWN = 0.4  # size of what moves a linked peak and not its gene
_BOTH_CUTS = 0.88  # share of fragments with both ends in the peak (10x bone marrow: 2 is 7.5 times as common as 1)


@dataclass(frozen=True, eq=False)
class AccessibilityLaw:
    """What is drawn once about peaks."""

    effect: Float64[np.ndarray, " peaks"]  # of the link: log fold of the peak per log fold of its gene; 0 without
    constant: Bool[np.ndarray, " peaks"]
    base: Float32[np.ndarray, " peaks"]  # expected fragments at median depth, mean over cells
    offset: Float32[np.ndarray, " peaks"]
    loading: Float32[np.ndarray, "peaks factors"]

    @classmethod
    def draw(cls, args: Mapping[str, Any], law: StateLaw, genes: Answers, genome: MadeGenome) -> "AccessibilityLaw":
        rng = stream(args, "peaks")
        n_peaks = args["n_peaks"]
        linked = genome.gene_of >= 0
        effect = rng.gamma(4, 0.25, n_peaks) * np.array(_EFFECT)[genome.kind]
        effect[(genome.kind == ENHANCER) & (rng.random(n_peaks) < _REPRESSING)] *= -1
        constant = ~linked & (rng.random(n_peaks) < args["constant_share"])
        own = Answers.draw(rng, args, n_peaks).times(np.where(linked, _OWN, np.where(constant, 0.0, 1.0)))
        donors = draw_donors(rng, args, n_peaks)
        loading = law.loadings(own, donors)
        of_gene = genes.take(genome.gene_of[linked]).times(effect[linked])
        loading[linked] += law.loadings(of_gene, np.zeros_like(donors[:, linked]))
        base = _with_sum(
            np.exp(rng.normal(0, _BASE_SD, n_peaks) + np.array(_BASE)[genome.kind]), args["atac_depth"], _MOST
        )
        offset = np.log(base / (1 - base / ceiling(args))) - log_mean_effect(args, law, loading)
        return cls(effect, constant, base.astype(np.float32), offset.astype(np.float32), loading)

    def counts(
        self, args: Mapping[str, Any], rng: np.random.Generator, cells: Cells, depth: Float64[np.ndarray, " cells"]
    ) -> sparse.csr_matrix:
        """Cut sites in peaks, one or two a fragment; ones where `args["binary"]`. `depth` is relative to the median."""
        parts = []
        for first in range(0, len(self.base), _PEAKS_PER_CHUNK):
            part = slice(first, first + _PEAKS_PER_CHUNK)
            mean = fragment_rates(args, cells.factors, self.loading[part], self.offset[part], self.base[part])
            mean *= depth[:, None].astype(np.float32)
            # Events by time 1 of a Poisson process: the first at `wait`, then a Poisson number until 1.
            wait = rng.standard_exponential(mean.shape, dtype=np.float32)
            row, peak = np.nonzero(wait < mean)
            fragments = 1 + rng.poisson(mean[row, peak] - wait[row, peak])
            parts.append(sparse.csr_matrix((fragments.astype(np.float32), (row, peak)), shape=mean.shape))
        counts = sparse.hstack(parts, format="csr")
        if args["binary"]:
            counts.data[:] = 1
        else:
            counts.data += rng.binomial(counts.data.astype(np.int64), _BOTH_CUTS)
        return counts


def ceiling(args: Mapping[str, Any]) -> float:
    """Highest rate of fragments at this nonlinearity."""
    return CEILING / args["nonlinearity"] if args["nonlinearity"] else float("inf")


def fragment_rates(
    args: Mapping[str, Any],
    factors: Float32[np.ndarray, "cells factors"],
    loading: Float32[np.ndarray, "peaks factors"],
    offset: Float32[np.ndarray, " peaks"],
    base: Float32[np.ndarray, " peaks"],
) -> Float32[np.ndarray, "cells peaks"]:
    """Expected fragments at median depth, m."""
    rate = log_rates(factors, loading, offset)
    np.minimum(rate, _MOST_LOG_RATE, out=rate)
    np.exp(rate, out=rate)
    rate /= 1 + rate / np.float32(ceiling(args))
    rate *= np.float32(1 - args["ambient"])
    rate += np.float32(args["ambient"]) * base
    return rate


def true_openness(atac: AnnData, cells: Index, peaks: Index, *, own_depth: bool) -> Float32[np.ndarray, "cells peaks"]:
    """Probability that a fragment of each peak is seen, at median depth or at the depth that each cell has."""
    args, var = atac.uns["simulation"], atac.var
    offset, base = var[OFFSET].to_numpy()[peaks], var["mean"].to_numpy()[peaks]
    rate = fragment_rates(args, atac.obsm[FACTORS][cells], atac.varm[LOADINGS][peaks], offset, base)
    if own_depth:
        relative = atac.obs["depth"].to_numpy()[cells] / args["atac_depth"]
        rate *= relative[:, None].astype(np.float32)
    return -np.expm1(-rate)


def _with_sum(weight: Float64[np.ndarray, " peaks"], total: float, most: float) -> Float64[np.ndarray, " peaks"]:
    """Numbers of this sum in proportion to the weights, but none above `most`."""
    out = weight * (total / weight.sum())
    while (out > most * (1 + 1e-9)).any():
        full = out >= most
        out[full] = most
        out[~full] *= (total - most * full.sum()) / out[~full].sum()
    return out
