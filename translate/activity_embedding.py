"""RNA and ATAC in one space without a network: principal components of expression, ATAC put among them by its gene activity."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64
from scipy import sparse
from sklearn.decomposition import PCA

from expresser.errors import InputError
from expresser.regions import Regions
from translate.gene_activity import GeneActivity

GENES = 2000
COMPONENTS = 20
_LIMIT = 10.0  # standard deviations
_ROWS = 1024  # cells that are dense at one time


@dataclass(frozen=True, eq=False)
class ActivityPca:
    """Expression and gene activity, each standardised by its own training cells, on the components of expression.

    What people did before there were networks for it, and it needs no pairs: of the genes with peaks around them the 2,000 that
    vary most, in units of their standard deviation (within ±10), 20 principal components of the RNA.
    """

    activity: GeneActivity = field(repr=False)
    genes: Int64[np.ndarray, " used"] = field(repr=False)
    mean: Float32[np.ndarray, "2 used"] = field(repr=False)  # of RNA, of ATAC's activity
    sd: Float32[np.ndarray, "2 used"] = field(repr=False)
    loadings: Float32[np.ndarray, "used components"] = field(repr=False)

    @classmethod
    def fit(
        cls, rna: sparse.csr_matrix, atac: sparse.csr_matrix, regions: Regions, genes: pd.DataFrame, *, seed: int = 0
    ) -> "ActivityPca":
        """rna: ``ln(1 + x)`` of training cells. atac: peaks 0/1 of training cells, the same or others."""
        activity = GeneActivity.raw(atac, regions, genes)
        squares = np.asarray(rna.multiply(rna).mean(axis=0)).ravel()
        variance = squares - np.asarray(rna.mean(axis=0)).ravel() ** 2
        variance[activity.weights.getnnz(axis=0) == 0] = 0.0
        used = np.sort(np.argsort(-variance, kind="stable")[:GENES])
        # Below a millionth of the mean square it is rounding.
        used = used[variance[used] > np.maximum(1e-9, 1e-6 * squares[used])].astype(np.int64)
        n = min(COMPONENTS, len(used) - 1, rna.shape[0] - 1)
        if n < 1:
            raise InputError(
                f"components of gene activity: {len(used)} genes with peaks around them vary in {rna.shape[0]:,} training "
                "cells; at least 2 are needed."
            )
        none = np.zeros((2, len(used)), np.float32)
        raw = cls(activity, used, none, none + 1, np.zeros((len(used), 0), np.float32))
        dense = [raw._chosen(rna, 0, slice(None)), raw._chosen(atac, 1, slice(None))]
        mean = np.stack([x.mean(axis=0, dtype=np.float64) for x in dense]).astype(np.float32)
        sd = np.stack([np.maximum(x.std(axis=0, dtype=np.float64), 1e-6) for x in dense]).astype(np.float32)
        scaled = np.clip((dense[0] - mean[0]) / sd[0], -_LIMIT, _LIMIT)
        model = PCA(n, svd_solver="randomized", random_state=seed).fit(scaled)
        return cls(activity, used, mean, sd, np.asarray(model.components_.T, np.float32))

    def of_rna(self, values: sparse.csr_matrix) -> Float32[np.ndarray, "cells components"]:
        """Cells by their expression."""
        return self._placed(values, 0)

    def of_atac(self, values: sparse.csr_matrix) -> Float32[np.ndarray, "cells components"]:
        """Cells by their open peaks."""
        return self._placed(values, 1)

    def _placed(self, values: sparse.csr_matrix, side: int) -> Float32[np.ndarray, "cells components"]:
        n = values.shape[0]
        placed = np.empty((n, self.loadings.shape[1]), np.float32)
        for first in range(0, n, _ROWS):
            rows = slice(first, min(first + _ROWS, n))
            scaled = (self._chosen(values, side, rows) - self.mean[side]) / self.sd[side]
            placed[rows] = np.clip(scaled, -_LIMIT, _LIMIT) @ self.loadings
        return placed

    def _chosen(self, values: sparse.csr_matrix, side: int, rows: slice) -> Float32[np.ndarray, "cells used"]:
        """The used genes of these cells, dense: expression, or activity."""
        if side == 0:
            return values[rows][:, self.genes].toarray().astype(np.float32)
        part = values[rows]
        predicted = self.activity.predict(part)
        near = (part @ self.activity.weights[:, self.genes]).toarray()
        return np.log1p(near * predicted.factor[:, None]).astype(np.float32)
