"""Expression guessed from the open peaks around each gene: the score that ATAC analyses use where there is no RNA."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float32
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from translate.baselines import Pairs
from translate.gene_peaks import REACH, peak_gene_weights
from translate.study import Modality

_BLOCK = 1 << 22  # entries that are dense at one time


@dataclass(frozen=True, eq=False)
class GeneActivity:
    """``ln(1 + scale * Σ weight * open / Σ over all genes)``, and a line a gene from that to expression.

    weight = exp(-distance / 5 kb), distance in bases from the gene's transcription start site to the nearer end of the peak
    (0 where the peak covers it), within 100 kb, and one more in the promoter, within 1 kb: after ArchR's gene score (Granja
    et al. 2021), without gene bodies and neighbours. `slope` and `offset` are of the least-squares line through the training
    cells, so that a gene is on the scale of its expression; test cells are never asked. Genes without a known start or
    without peaks around it get their training mean. ``calibrate=False`` leaves the activity as it is.
    """

    weights: sparse.csc_matrix = field(repr=False)  # peaks x genes
    scale: float  # the median, over training cells, of the sum over genes
    slope: Float32[np.ndarray, " genes"] = field(repr=False)
    offset: Float32[np.ndarray, " genes"] = field(repr=False)

    @classmethod
    def fit(cls, train: Pairs, regions: Regions, genes: pd.DataFrame, *, calibrate: bool = True) -> "GeneActivity":
        """train: peaks 0/1 to expression ``ln(1 + x)``. genes: columns chrom ("chr1" …) and tss (-1 unknown), a row a gene."""
        if train.source != "atac" or train.to != "rna":
            raise InputError(f"gene activity: predicts rna from atac, not {train.to} from {train.source}.")
        raw = cls.raw(sparse.csr_matrix(train.x), regions, genes)
        return raw._calibrated(train) if calibrate else raw

    @classmethod
    def raw(cls, train: sparse.csr_matrix, regions: Regions, genes: pd.DataFrame) -> "GeneActivity":
        """The activity as it is. train: peaks 0/1 of the cells whose median total is the scale; no expression is needed."""
        weights = peak_gene_weights(regions, genes)
        if not weights.nnz:
            raise InputError(
                f"gene activity: none of {len(regions):,} peaks lies within {REACH:,} bases of a gene's start "
                f"({int((genes['tss'] >= 0).sum()):,} of {len(genes):,} are known). Give genes of the peaks' genome build."
            )
        total = train @ np.asarray(weights.sum(axis=1)).ravel()
        one, none = np.ones(len(genes), np.float32), np.zeros(len(genes), np.float32)
        return cls(weights, max(float(np.median(total)), 1e-6), one, none)

    def predict(self, x: sparse.csr_matrix) -> "Activity":
        """Expression of cells by their open peaks, computed when asked for."""
        total = x @ np.asarray(self.weights.sum(axis=1)).ravel()
        return Activity(self, x, (self.scale / np.maximum(total, 1e-6)).astype(np.float32))

    def _calibrated(self, train: Pairs) -> "GeneActivity":
        n = train.x.shape[0]
        raw, targets = self.predict(sparse.csr_matrix(train.x)), sparse.csc_matrix(train.y)
        mean = np.asarray(targets.mean(axis=0, dtype=np.float64)).ravel()
        slope, offset = np.zeros(len(mean)), mean.copy()
        width = max(1, _BLOCK // n)
        for first in range(0, len(mean), width):
            part = slice(first, min(first + width, len(mean)))
            activity = raw.block(slice(0, n), part).astype(np.float64)
            centre = activity.mean(axis=0)
            activity -= centre
            variance = np.einsum("cg,cg->g", activity, activity)
            # (activity - centre)' targets, which need no centring of their own.
            product = np.asarray(targets[:, part].multiply(activity).sum(axis=0)).ravel()
            slope[part] = np.divide(product, variance, out=np.zeros_like(variance), where=variance > 1e-9 * n)
            offset[part] = mean[part] - slope[part] * centre
        return GeneActivity(self.weights, self.scale, slope.astype(np.float32), offset.astype(np.float32))


@dataclass(frozen=True, eq=False)
class Activity:
    """A `Predicted` of expression: blocks of ``offset + slope * ln(1 + factor * x @ weights)``."""

    model: GeneActivity
    x: sparse.csr_matrix = field(repr=False)
    factor: Float32[np.ndarray, " cells"] = field(repr=False)
    to: Modality = "rna"

    @property
    def n_cells(self) -> int:
        return int(self.x.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.model.weights.shape[1])

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """Values of these cells and genes."""
        near = (self.x[cells] @ self.model.weights[:, features]).toarray()
        activity = np.log1p(near * self.factor[cells, None]).astype(np.float32)
        return self.model.offset[features] + self.model.slope[features] * activity
