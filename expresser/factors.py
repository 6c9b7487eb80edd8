"""Gene embeddings without a network: principal axes of genes over cells. A baseline, and a place to start training from."""

import numpy as np
from jaxtyping import Float32, Num
from scipy import sparse
from sklearn.decomposition import PCA

from expresser.errors import InputError

_CONSTANT = 1e-6  # a spread below this share of the mean is rounding
_LEAST_SD = 0.1  # a gene seen in a few cells would else be blown up to the weight of a marker


def varies(values: Num[np.ndarray, "rows columns"] | sparse.spmatrix | sparse.sparray) -> bool:
    """Whether any column has two values, beyond rounding: rows that are all alike have no principal components."""
    spread = values.max(axis=0) - values.min(axis=0)
    return bool((spread.toarray() if sparse.issparse(spread) else spread).max(initial=0) > 1e-12)


def gene_factors(
    counts: sparse.csr_matrix, d: int, *, target_sum: float = 1e4, seed: int = 0
) -> Float32[np.ndarray, "genes d"]:
    """Loadings of each gene on the first ``d`` principal components of log-normalised expression.

    Values are ``log1p(target_sum * count / total)``, zeros included, each gene divided by its standard deviation (at least 0.1) and
    centred without making the matrix dense. A loading is the component times its standard deviation over cells, so that genes that
    vary together point the same way. Genes without counts have zeros; where there are fewer than ``d`` components, the rest are zeros.

    Relations: a learned table is worth its training where it beats this one.
    """
    if counts.shape[0] < 3:
        raise InputError(f"principal components of {counts.shape[0]} cells: at least 3 are needed.")
    x = sparse.csr_matrix(counts, dtype=np.float64)
    total = np.asarray(x.sum(1)).ravel()
    x.data = np.log1p(target_sum * x.data / np.repeat(total, np.diff(x.indptr)))
    mean = np.asarray(x.mean(0)).ravel()
    sd = np.sqrt(np.maximum(np.asarray(x.multiply(x).mean(0)).ravel() - mean**2, 0.0))
    seen = np.flatnonzero(sd > _CONSTANT * mean)
    scaled = sparse.csr_matrix(x[:, seen] @ sparse.diags(1 / np.maximum(sd[seen], _LEAST_SD)))
    k = min(d, scaled.shape[0] - 1, scaled.shape[1] - 1)
    table = np.zeros((counts.shape[1], d), dtype=np.float32)
    if k > 0:
        fit = PCA(k, svd_solver="arpack", random_state=seed).fit(scaled)
        table[seen, :k] = (fit.components_ * np.sqrt(fit.explained_variance_)[:, None]).T
    return table
