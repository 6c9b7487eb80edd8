"""Few numbers a cell, without a network: principal components of expression or protein, latent semantic indexing of peaks."""

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64
from scipy import sparse
from sklearn.decomposition import PCA, TruncatedSVD

from expresser.errors import InputError
from expresser.factors import varies
from translate.study import Modality

Values: TypeAlias = sparse.csr_matrix | Float32[np.ndarray, "cells _"]


@dataclass(frozen=True, eq=False)
class Components:
    """Components fitted on training cells, the strongest first; `of` places other cells among them.

    rna, protein: principal components of the values, centred (without making sparse values dense), not scaled.
    atac: singular vectors of TF-IDF, ``ln(1 + 1e4 * open / opened by the cell * ln(1 + cells / cells open))``, all cells
    scaled to length one. The first, which is little more than a constant, is kept for those who want depth.
    """

    modality: Modality
    model: Any = field(repr=False)  # PCA or TruncatedSVD
    idf: Float64[np.ndarray, " features"] | None = field(repr=False)

    @classmethod
    def fit(cls, values: Values, modality: Modality, *, n: int = 50, seed: int = 0) -> "Components":
        """At most `n` components of training cells: expression as ``ln(1 + x)``, peaks 0/1, protein CLR.

        Raises InputError where there are none: fewer than two cells or features, or all cells alike.
        """
        # Centring costs one dimension; ARPACK cannot find the last one.
        n = min(n, values.shape[0] - 1, values.shape[1] - sparse.issparse(values))
        if n < 1:
            raise InputError(
                f"components of {values.shape[0]} cells x {values.shape[1]} features ({modality}): at least 2 x 2 are needed."
            )
        if not varies(values):
            raise InputError(
                f"components of {values.shape[0]} cells x {values.shape[1]} features ({modality}): all cells have the same values, "
                "and what does not vary has no components. Give cells that differ."
            )
        if modality != "atac":
            solver = "arpack" if sparse.issparse(values) else "full"
            return cls(modality, PCA(n, svd_solver=solver, random_state=seed).fit(values), None)
        values = sparse.csr_matrix(values)
        opened = np.bincount(values.indices, minlength=values.shape[1])
        idf = np.log1p(values.shape[0] / np.maximum(opened, 1))
        return cls(modality, TruncatedSVD(n, algorithm="arpack", random_state=seed).fit(_tf_idf(values, idf)), idf)

    def of(self, values: Values) -> Float32[np.ndarray, "cells components"]:
        """Components of cells over the same features."""
        if self.idf is not None:
            values = _tf_idf(sparse.csr_matrix(values), self.idf)
        return np.asarray(self.model.transform(values), dtype=np.float32)


def _tf_idf(values: sparse.csr_matrix, idf: Float64[np.ndarray, " features"]) -> sparse.csr_matrix:
    opened = np.diff(values.indptr)
    data = np.log1p(1e4 * idf[values.indices] / np.repeat(opened, opened))
    length = np.sqrt(np.bincount(np.repeat(np.arange(len(opened)), opened), data**2, minlength=len(opened)))
    data /= np.repeat(length, opened)
    return sparse.csr_matrix((data, values.indices, values.indptr), shape=values.shape)
