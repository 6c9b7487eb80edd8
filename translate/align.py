"""A file's features brought to a given list of genes or peaks: matched by name or, for other peaks, by overlap."""

import numpy as np
import pandas as pd
from jaxtyping import Int32, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from translate.large import empty
from translate.peaks import binarise, coverage, opens, repool
from translate.study import Measured

_ENTRIES = 1_000_000  # moved at a time
_PANEL = 1_000  # features up to which a file may be a panel of antibodies
MIN_GENES = 0.2  # share of the wanted genes that a file must have


def match_genes(wanted: pd.DataFrame, var: pd.DataFrame) -> Int64[np.ndarray, " wanted"]:
    """Row of `var` for each wanted gene, -1 for none: by Ensembl id, else by name, else by symbol.

    Of what is left at each step, an id, name or symbol that several genes carry matches none; a row is given once.
    """
    found = np.full(len(wanted), -1, dtype=np.int64)
    left = np.ones(len(var), dtype=bool)
    for mine, its in (
        (wanted["ensembl_id"], var["ensembl_id"]),
        (wanted.index, var.index),
        (wanted["symbol"], var["symbol"]),
    ):
        ours, theirs = np.flatnonzero(found < 0), np.flatnonzero(left)
        keys = pd.Series(theirs, index=pd.Index(np.asarray(its, dtype=object)[theirs]))
        keys = keys[~keys.index.duplicated(keep=False) & (keys.index != "")]
        names = pd.Index(np.asarray(mine, dtype=object)[ours])
        hits = np.where(names.duplicated(keep=False), -1, keys.reindex(names).fillna(-1)).astype(np.int64)
        found[ours] = hits
        left[hits[hits >= 0]] = False
    return found


def match_regions(wanted: Regions, given: Regions) -> Int64[np.ndarray, " wanted"]:
    """Number of the same interval in `given` (whose intervals are distinct) for each wanted one, -1 for none."""
    code = {name: i for i, name in enumerate(given.chroms)}
    shared = np.array([code.get(name, -1) for name in wanted.chroms] or [0], dtype=np.int64)[wanted.chrom]
    mine = pd.DataFrame({"chrom": shared, "start": wanted.start, "end": wanted.end})
    its = pd.DataFrame({"chrom": given.chrom.astype(np.int64), "start": given.start, "end": given.end})
    its["at"] = np.arange(len(given))
    return mine.merge(its, how="left", on=["chrom", "start", "end"])["at"].fillna(-1).to_numpy(dtype=np.int64)


def take_columns(
    matrix: sparse.csr_matrix, columns: Int64[np.ndarray, " taken"], rows: Int64[np.ndarray, " rows"] | None = None
) -> sparse.csr_matrix:
    """These columns in this order, -1 for one of zeros, each at most once, of these rows (None: all).

    A new matrix with sorted indices, int32 where they may; a large one lies in files (`translate.large`). Memory beside it: a
    million entries' worth.
    """
    place = np.full(matrix.shape[1], -1, dtype=np.int32)
    place[columns[columns >= 0]] = np.flatnonzero(columns >= 0)
    rows = np.arange(matrix.shape[0]) if rows is None else rows
    step = max(1, _ENTRIES * matrix.shape[0] // max(matrix.nnz, 1))
    indptr = np.zeros(len(rows) + 1, dtype=np.int64)
    indptr[1:] = np.cumsum(_entries_left(matrix, place, step)[rows])
    found = empty(indptr, len(columns))
    for first in range(0, len(rows), step):
        part = matrix[rows[first : first + step]]
        new = place[part.indices]
        kept = new >= 0
        ends = indptr[first : first + part.shape[0] + 1]
        part = sparse.csr_matrix((part.data[kept], new[kept], ends - ends[0]), shape=(part.shape[0], len(columns)))
        if not part.has_sorted_indices:
            part = part.tocsc().tocsr()  # several times faster than sort_indices
        found.data[ends[0] : ends[-1]], found.indices[ends[0] : ends[-1]] = part.data, part.indices
    return found


def _entries_left(
    matrix: sparse.csr_matrix, place: Int32[np.ndarray, " columns"], step: int
) -> Int64[np.ndarray, " rows"]:
    """Stored entries of each row in columns that have a place."""
    if (place >= 0).all():
        return np.diff(matrix.indptr).astype(np.int64)
    left = np.zeros(matrix.shape[0], dtype=np.int64)
    for first in range(0, matrix.shape[0], step):
        ends = matrix.indptr[first : first + step + 1].astype(np.int64)
        kept = place[matrix.indices[ends[0] : ends[-1]]] >= 0
        left[first : first + step] = np.diff(np.concatenate([[0], np.cumsum(kept)])[ends - ends[0]])
    return left


def expressed_genes(measured: Measured, wanted: pd.DataFrame) -> Int64[np.ndarray, " cells"]:
    """How many of the wanted genes each cell has counts of; InputError as in `align_genes`."""
    columns = _columns(measured, wanted)
    place = np.full(measured.n_features, -1, dtype=np.int32)
    place[columns[columns >= 0]] = 0
    step = max(1, _ENTRIES * measured.n_cells // max(measured.matrix.nnz, 1))
    return _entries_left(measured.matrix, place, step)


def align_genes(measured: Measured, wanted: pd.DataFrame) -> sparse.csr_matrix:
    """Counts of the wanted genes in their order; a gene that the file lacks is zero everywhere.

    Raises InputError where it has less than `MIN_GENES` of them.
    """
    return take_columns(measured.matrix, _columns(measured, wanted))


def _columns(measured: Measured, wanted: pd.DataFrame) -> Int64[np.ndarray, " wanted"]:
    """`match_genes`, or an InputError where too few are matched."""
    columns = match_genes(wanted, measured.var)
    n = int((columns >= 0).sum())
    if n < MIN_GENES * len(wanted):
        mine, its = (", ".join(repr(str(name)) for name in names[:2]) for names in (wanted.index, measured.var.index))
        few = measured.n_features <= _PANEL
        raise InputError(
            f"{measured.name}: {n:,} of {len(wanted):,} genes of the model are among its {measured.n_features:,}; at "
            f"least {MIN_GENES:.0%} must be (model: {mine}, …; file: {its}, …). Both must be of one species; Ensembl ids "
            "in a column ensembl_id or gene_ids are matched first, then symbols."
            + (" If it holds antibody counts named by gene, say so: source protein (--source protein)." if few else "")
        )
    return columns


def align_peaks(measured: Measured, wanted: Regions) -> sparse.csr_matrix:
    """0/1 over the wanted peaks: the file's own columns where it has every one of them and no other that overlaps
    one, else re-pooled by logical or.

    Raises InputError where the file's peaks cover next to none of them, or no more than chance would.
    """
    given = Regions.from_var(measured.var, where=measured.name)
    columns = match_regions(wanted, given)
    if _are_its_own(columns, given, wanted):
        return binarise(take_columns(measured.matrix, columns), copy=False)
    coverage(given, wanted, where=measured.name).check()
    return repool(measured.matrix, given, wanted)


def peaks_onto(measured: Measured, wanted: Regions) -> sparse.csr_matrix:
    """What `align_peaks` does to a cell, as a matrix: 0/1, peaks of the file x wanted, which of them each peak opens."""
    given = Regions.from_var(measured.var, where=measured.name)
    if not _are_its_own(match_regions(wanted, given), given, wanted):
        coverage(given, wanted, where=measured.name).check()
    return opens(given, wanted)


def _are_its_own(columns: Int64[np.ndarray, " wanted"], given: Regions, wanted: Regions) -> bool:
    """Whether a file has every wanted peak and no other that overlaps one.

    Such another was merged into the wanted one when the model's peaks were chosen.
    """
    others = given.take(np.setdiff1d(np.arange(len(given)), columns))
    return bool((columns >= 0).all() and not others.overlaps(wanted).nnz)
