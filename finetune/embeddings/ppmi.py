"""Gene vectors from which genes are detected in the same cells: pointwise mutual information and its leading axes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy import sparse

from expresser.errors import InputError

_WIDTH = 1024  # genes a block: 4 MB of float32
_DENSE = (
    0.05  # detected in more cells than this share, a dense product is faster than a sparse one (measured, one core)
)
_ROUNDING = 1e-5  # nats: independence to float32's accuracy, as of a gene that every cell shows, is none
_PASSES = 12
_TOLERANCE = 1e-3


def ppmi_vectors(
    counts: sparse.csr_matrix, d: int, *, seed: int = 0, min_cells: int = 10
) -> Float32[np.ndarray, "genes d"]:
    r"""The ``d`` leading axes of the positive pointwise mutual information of co-detection, each times the root of its size.

    With :math:`C_{ij}` the cells (of N) that show genes i and j, :math:`C_i = C_{ii}` and
    :math:`M_{ij} = \max(0, \log(C_{ij} N / (C_i C_j)))` in nats, the result is :math:`U S^{1/2}` of the truncated singular value
    decomposition :math:`M \approx U S V^T` (Levy & Goldberg, NeurIPS 2014, for words). An axis has no sign of its own: its largest
    entry is made positive. Genes detected in fewer than ``min_cells`` cells (one shared cell would count for much) are zeros, and so
    are axes beyond the rank.

    M is held in half precision (relative error 5e-4), one triangle: a byte for each pair of genes, 0.4 GB for 19,000 genes.

    Relations: `expresser.factors.gene_factors` looks at levels, this at detection alone.
    """
    if d < 1 or min_cells < 1:
        raise InputError(f"d = {d}, min_cells = {min_cells}: both must be at least 1.")
    seen = sparse.csc_matrix(counts.astype(bool), dtype=np.float32)
    seen.eliminate_zeros()
    cells = np.diff(seen.indptr)
    # By falling detection, so that a block is either common genes, for dense products, or rare ones, for sparse.
    order = np.argsort(-cells, kind="stable")
    order = order[cells[order] >= min_cells]
    table = np.zeros((counts.shape[1], d), dtype=np.float32)
    if not len(order):
        return table
    matrix = _Symmetric(len(order), list(_information(sparse.csc_matrix(seen[:, order]))))
    sizes, axes = leading_axes(matrix, min(d, len(order)), seed=seed)
    axes *= np.sign(axes[np.argmax(np.abs(axes), axis=0), np.arange(axes.shape[1])])
    table[order, : len(sizes)] = axes * np.sqrt(np.abs(sizes)).astype(np.float32)
    return table


@dataclass(frozen=True)
class _Symmetric:
    """A symmetric matrix as the blocks (first row, first column, numbers) of its upper triangle."""

    n: int
    blocks: list[tuple[int, int, np.ndarray]]

    def times(self, x: Float32[np.ndarray, "genes k"]) -> Float32[np.ndarray, "genes k"]:
        y = np.zeros_like(x)
        for i, j, half in self.blocks:
            block = half.astype(np.float32)
            y[i : i + block.shape[0]] += block @ x[j : j + block.shape[1]]
            if i != j:
                y[j : j + block.shape[1]] += block.T @ x[i : i + block.shape[0]]
        return y


def _information(seen: sparse.csc_matrix) -> Iterator[tuple[int, int, np.ndarray]]:
    """Blocks of M; `seen` is cells x genes, ones, genes by falling number of cells."""
    n_cells, n = seen.shape
    share = (np.diff(seen.indptr) / np.sqrt(n_cells)).astype(np.float32)  # share_i share_j = C_i C_j / N
    starts = range(0, n, _WIDTH)
    columns = [sparse.csc_matrix(seen[:, j : j + _WIDTH]) for j in starts]
    dense = [c.nnz > _DENSE * c.shape[0] * c.shape[1] for c in columns]
    for a, i in enumerate(starts):
        left = columns[a].toarray()
        for b in range(a, len(columns)):
            j = starts[b]
            # Counts are exact: float32 holds whole numbers up to 16.7 million.
            together = (columns[b].toarray().T if dense[b] else columns[b].T) @ left
            block = together.T / (share[i : i + left.shape[1], None] * share[None, j : j + together.shape[0]])
            np.log(np.maximum(block, 1.0, out=block), out=block)
            block[block < _ROUNDING] = 0.0
            yield i, j, block.astype(np.float16)


def leading_axes(
    matrix: _Symmetric, k: int, *, seed: int, passes: int = _PASSES, tolerance: float = _TOLERANCE
) -> tuple[Float64[np.ndarray, " axes"], Float32[np.ndarray, "genes axes"]]:
    """At most k eigenvalues of largest size, and their vectors, by a randomised block Krylov iteration.

    Blocks ``Q, MQ, MMQ, …`` of a random start Q, each made orthogonal to those before, span a space in which M is solved exactly
    (Rayleigh-Ritz); each pass reads M once, for all columns together. Ends when every residual ``|Mx - λx|`` is below
    ``tolerance`` times the smallest of the k eigenvalues, when the space is exhausted, or after `passes`. Musco & Musco, NeurIPS 2015.
    """
    width = min(k + 10, matrix.n)
    start = np.random.default_rng(seed).standard_normal((matrix.n, width)).astype(np.float32)
    block = np.linalg.qr(start)[0]
    basis = np.zeros((matrix.n, 0), np.float32)
    image = np.zeros((matrix.n, 0), np.float32)
    for _ in range(passes):
        here = matrix.times(block)
        basis, image = np.hstack([basis, block]), np.hstack([image, here])
        inner = (basis.T @ image).astype(np.float64)
        values, vectors = np.linalg.eigh((inner + inner.T) / 2)
        top = np.argsort(-np.abs(values), kind="stable")[:k]
        values, weights = values[top], vectors[:, top].astype(np.float32)
        axes = basis @ weights
        off = np.linalg.norm(image @ weights - axes * values.astype(np.float32), axis=0)
        block = _new_directions(here, basis, scale=float(np.abs(values[0])))
        if not block.shape[1] or (off <= tolerance * np.abs(values[-1])).all():
            break
    real = np.abs(values) > 1e-6 * np.abs(values[0])
    return values[real], axes[:, real]


def _new_directions(
    x: Float32[np.ndarray, "genes k"], basis: Float32[np.ndarray, "genes m"], *, scale: float
) -> Float32[np.ndarray, "genes new"]:
    """Orthonormal directions of x outside the basis; fewer than x has columns where the rest is rounding."""
    for _ in range(2):  # once leaves rounding of the size of what was taken away
        x = x - basis @ (basis.T @ x)
        u, s, _ = np.linalg.svd(x, full_matrices=False)
        room = x.shape[0] - basis.shape[1]
        x = u[:, (s > 1e-5 * scale) & (np.arange(len(s)) < room)]
        scale = 1.0
    return x
