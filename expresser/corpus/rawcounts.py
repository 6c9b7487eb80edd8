"""What raw counts are (whole, finite, 0 <= count < 2^32), and the message for a matrix that holds something else."""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Shaped
from scipy import sparse

from expresser.errors import InputError

LIMIT = 2**32  # counts are stored as at most uint32


def is_raw(values: Shaped[np.ndarray, "*any"]) -> Bool[np.ndarray, "*any"]:
    """True where a stored value can be a raw count; floats that are whole numbers are."""
    if values.dtype.kind not in "biuf":
        return np.zeros(values.shape, dtype=bool)
    if values.dtype == np.float16:  # cannot hold LIMIT
        values = values.astype(np.float32)
    ok = (values >= 0) & (values < LIMIT)  # False for NaN and inf too
    return ok & (values == np.floor(values)) if values.dtype.kind == "f" else ok


def prove_raw(
    block: sparse.csr_matrix,
    *,
    first_row: int,
    cells: Shaped[np.ndarray, " all_cells"],
    genes: Shaped[np.ndarray, " genes"],
    where: str,
    elsewhere: Callable[[], list[str]] = list,
) -> sparse.csr_matrix:
    """The block as canonical int64 counts: sorted, without explicit zeros, repeated entries summed.

    `first_row` is the block's place in `cells` (all barcodes of the file), `where` names file and matrix, `elsewhere`
    says which other matrices of the same file do hold raw counts (called only if this one does not).
    Raises InputError with the first offending cell, gene and value, in row order.
    """
    ok = is_raw(block.data)
    if not ok.all():
        at = int(np.argmin(ok))
        row = int(np.searchsorted(block.indptr, at, side="right")) - 1
        value = block.data[at]
        ways = elsewhere() or ["Read the file from before normalisation, or ask its authors for the raw counts."]
        raise InputError(
            f"{where} does not hold raw counts: {_rule(value)} "
            f"(first: cell {str(cells[first_row + row])!r}, row {first_row + row}, "
            f"gene {str(genes[block.indices[at]])!r}, value {value}). "
            + " ".join(filter(None, [_likely_cause(block), "Raw counts are needed.", *ways]))
        )
    counts = sparse.csr_matrix((block.data.astype(np.int64), block.indices, block.indptr), shape=block.shape, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    if counts.nnz < block.nnz and counts.nnz and int(counts.data.max()) >= LIMIT:
        return prove_raw(  # entries that repeat one gene of one cell add up to more than a count may be
            counts, first_row=first_row, cells=cells, genes=genes, where=where, elsewhere=elsewhere
        )
    return counts


def _rule(value: Any) -> str:
    if value.dtype.kind not in "biuf":
        return f"{value.dtype} is no type of counts"
    if not np.isfinite(value):
        return "counts must be finite"
    if value < 0:
        return "counts must not be negative"
    if value >= LIMIT:
        return f"counts must be below 2^32 = {LIMIT}"
    return "counts must be whole numbers"


def _likely_cause(block: sparse.csr_matrix) -> str:
    """What was probably done to the counts, from this block alone; empty where nothing can be said."""
    values = block.data.astype(np.float64)
    if np.isnan(values).any():
        return "NaN often comes from joining tables with different genes: fill with 0."
    if np.isinf(values).any() or not (values % 1).any():
        return ""
    if (values < 0).any():
        return "It looks scaled (z-scores)."
    sums = _row_sums(block, values)
    if _constant(sums):
        return f"It looks normalised to {np.median(sums):.6g} per cell."
    if values.max() < 25:  # e^25 = 7e10: no log-count is larger
        sums = _row_sums(block, np.expm1(values))
        return "It looks log-normalised" + (f" (log1p of {np.median(sums):.6g} per cell)." if _constant(sums) else ".")
    return ""


def _row_sums(block: sparse.csr_matrix, values: Shaped[np.ndarray, " entries"]) -> Shaped[np.ndarray, " rows"]:
    """Sums of `values` (laid out like block.data) over the rows that have any."""
    return np.add.reduceat(values, block.indptr[:-1][np.diff(block.indptr) > 0])


def _constant(sums: Shaped[np.ndarray, " rows"]) -> bool:
    return len(sums) > 1 and bool(np.ptp(sums) < 1e-3 * np.median(sums))
