"""What is done to a cells x peaks matrix: binarise it, carry it over to other peaks, merge and filter peaks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from translate.genomes import guess_genome
from translate.large import by_rows
from translate.stored import StoredBlocks, StoredMatrix

_ENTRIES = 1_000_000  # looked at at a time
_LEAST_COVERED = 0.001  # share of a model's peaks: 600 query peaks may be all there is, 3 of 200,000 are chance
# Share that overlaps, on both sides, below which they have nothing to do with one another, for peaks so few and far between
# that chance makes less than `_ENOUGH` overlaps. Least measured of one build: 0.04, two draws of 600 peaks of one experiment.
_LEAST_SHARED = 0.01
_SHIFT = 500_000  # bases, both ways, that leave nothing but chance to overlaps
# Overlaps against those of shifted peaks, measured on five public sets: 4.0 times as many for the least pair of one build,
# 2.1 for the most alike of two (hg19 against its own lift to hg38). Tiles overlap everything either way, hence `_TILED`.
_BY_CHANCE, _ENOUGH, _TILED = 2.5, 30, 0.5


@runtime_checkable
class Blockwise(Protocol):
    """Values of cells x features that are computed when asked for: what is used here of `Predicted`, which builds on this."""

    @property
    def n_cells(self) -> int: ...
    @property
    def n_features(self) -> int: ...
    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]: ...


def binarise(matrix: sparse.csr_matrix, *, copy: bool = True) -> sparse.csr_matrix:
    """A float32 matrix: 1 where the count is above zero. Indices sorted, no stored zeros.

    copy=False: it takes over the index arrays of a matrix that nobody else needs. Raises InputError where a value is
    negative or not a number: such a matrix holds no counts.
    """
    _prove_counts(matrix)
    matrix = by_rows(matrix, sparse.csr_matrix.copy) if copy else matrix
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return _ones(matrix)


def _prove_counts(matrix: sparse.csr_matrix) -> None:
    if not matrix.data.min(initial=0) >= 0:  # nor where one is not a number
        bad = np.flatnonzero(~(matrix.data >= 0))
        cell = int(np.searchsorted(matrix.indptr, bad[0], side="right")) - 1
        raise InputError(
            f"peaks: {len(bad):,} of {matrix.nnz:,} stored values are negative or NaN (first: {matrix.data[bad[0]]} in "
            f"cell {cell}, peak {matrix.indices[bad[0]]}), but an ATAC matrix holds counts or 0/1. Give the counts as "
            "they were before any normalisation."
        )


def repool(matrix: sparse.csr_matrix, source: Regions, target: Regions) -> sparse.csr_matrix:
    """Cells x target peaks, 0/1: 1 where any source peak that shares a base with the target peak is open (logical or).

    One sparse product (Wu et al., PNAS 2021, "re-pooling"). A source peak without overlap is dropped; one that spans several
    target peaks opens each. Only where target peaks overlap one another does it matter that a source peak identical to a
    target peak fills that one alone: so peaks carried over to themselves, in any order, stay as they are. An interval that
    is listed twice gets the or of both. Memory: the result, which lies in files where it is large (`translate.large`).
    Relations: `coverage` says beforehand whether the two sets of peaks have anything to do with one another.
    """
    _prove_peaks(matrix, source)
    if source.equals(target) and not source.duplicated().any():
        return binarise(matrix)
    _prove_counts(matrix)
    onto = opens(source, target)

    def opened(rows: sparse.csr_matrix) -> sparse.csr_matrix:
        product = rows @ onto  # of counts, not of 0/1: what is above zero is the same, without a copy
        product.eliminate_zeros()
        product.sort_indices()
        return _ones(product)

    return by_rows(matrix, opened)


def opens(source: Regions, target: Regions) -> sparse.csr_matrix:
    """0/1, source x target: which source peaks open a target peak (`repool`)."""
    pairs = source.overlaps(target).tocoo()
    same = (source.start[pairs.row] == target.start[pairs.col]) & (source.end[pairs.row] == target.end[pairs.col])
    has_same = np.zeros(len(source), dtype=bool)
    has_same[pairs.row[same]] = True
    kept = same | ~has_same[pairs.row]
    return sparse.csr_matrix((pairs.data[kept], (pairs.row[kept], pairs.col[kept])), shape=pairs.shape)


def merge_sets(sets: Sequence[tuple[sparse.csr_matrix, Regions]]) -> tuple[list[sparse.csr_matrix], Regions]:
    """Matrices of several files over one set of peaks: the union of all, overlapping ones joined, in canonical order.

    The union does not depend on the order of the files, nor on the order of peaks in them.
    """
    union = Regions.concat([regions for _, regions in sets]).merged()
    return [repool(matrix, regions, union) for matrix, regions in sets], union


def open_cells(
    matrix: sparse.csr_matrix | StoredMatrix,
    source: Regions,
    target: Regions | None = None,
    cells: Int64[np.ndarray, " chosen"] | None = None,
) -> Int64[np.ndarray, " target"]:
    """In how many of these cells (None: all) each target peak (None: each of the source) is open, as `repool` opens them.

    Memory beside the matrix: a million entries' worth, and one number a peak; of a matrix on disk, four million.
    """
    _prove_peaks(matrix, source)
    target = source if target is None else target
    onto = opens(source, target)
    if isinstance(matrix, StoredMatrix):
        chosen = np.arange(matrix.shape[0]) if cells is None else cells
        return StoredBlocks(matrix, onto, (0, len(target))).opened(chosen)
    _prove_counts(matrix)
    joined = np.flatnonzero(onto.getnnz(axis=0) > 1)  # of all others, the cells of their one source peak are the answer
    onto_joined = onto[:, joined]
    of_source, of_joined = (np.zeros(n, dtype=np.int64) for n in (len(source), len(joined)))
    cells = np.arange(matrix.shape[0]) if cells is None else cells
    step = max(1, _ENTRIES * matrix.shape[0] // max(matrix.nnz, 1))
    for first in range(0, len(cells), step):
        block = binarise(matrix[cells[first : first + step]], copy=False)
        of_source += block.getnnz(axis=0)
        if len(joined):
            of_joined += (block @ onto_joined).getnnz(axis=0)
    counts = (onto.T @ of_source).astype(np.int64)
    counts[joined] = of_joined
    return counts


def peak_filter(
    opened: Int64[np.ndarray, " peaks"],
    regions: Regions,
    *,
    n_cells: int,
    autosomes: bool = True,
    min_cells: int = 5,
    max_share: float = 0.1,
    share_of: Literal["cells", "commonest_peak"] = "cells",
) -> tuple[Bool[np.ndarray, " peaks"], dict[str, int]]:
    """Which peaks to keep, and how many of the rest go for which reason (the first that holds, in this order).

    Parameters
    ----------
    opened, n_cells
        Cells in which each peak is open (`open_cells`), of how many.
    autosomes
        Drop peaks of sex chromosomes, of chrM and of contigs ("not_autosomal").
    min_cells
        Drop peaks open in fewer cells ("rare").
    max_share, share_of
        Drop peaks open in more cells than this ("common"): than max_share of all cells (the paper), or, with
        "commonest_peak", than round(max_share x cells of the commonest peak) (the released code of BABEL).

    Raises
    ------
    InputError
        Where no peak would be left.
    """
    placed = regions.is_autosome() if autosomes else np.ones(len(regions), dtype=bool)
    rare = placed & (opened < min_cells)
    most = int(opened[placed].max(initial=0))
    # A hair above, since 0.29 x 100 is 28.999… in floating point and 29 cells are not more than 29 percent.
    limit = int(max_share * n_cells + 1e-9) if share_of == "cells" else round(max_share * most)
    common = placed & ~rare & (opened > limit)
    keep = placed & ~rare & ~common
    counts = {"not_autosomal": ~placed, "rare": rare, "common": common, "kept": keep}
    reasons = {name: int(mask.sum()) for name, mask in counts.items()}
    if not keep.any():
        raise InputError(
            f"peaks: no peak of {len(regions):,} in {n_cells:,} cells passes the filters: {reasons['not_autosomal']:,} "
            f"are on no autosome, {reasons['rare']:,} open in fewer than {min_cells} cells, {reasons['common']:,} in more "
            f"than {limit} cells. Set atac.autosomes, atac.min_cells or atac.max_share (1 keeps the commonest) to suit these data."
        )
    return keep, reasons


@dataclass(frozen=True)
class Coverage:
    """How far given peaks cover those of a model."""

    where: str
    model: int  # peaks of the model
    covered: int  # of them, those that overlap a given peak
    given: int  # peaks given
    used: int  # of them, those that overlap a peak of the model
    by_chance: float  # peaks that would be used with all of them moved by 500,000 bases, mean of both ways
    hint: str  # the likely cause if the figures are bad
    of: str = "the model"  # whose peaks are to be covered

    def check(self) -> None:
        """InputError where next to none of the model's peaks are covered, or no more than chance would do."""
        strangers = self.covered < _LEAST_SHARED * self.model and self.used < _LEAST_SHARED * self.given
        few = strangers or self.covered < max(1, _LEAST_COVERED * self.model)
        many = self.covered >= _TILED * self.model
        if few or (not many and self.by_chance >= _ENOUGH and self.used < _BY_CHANCE * self.by_chance):
            raise InputError(
                f"{self.where}: {self.covered:,} of {self.of}'s {self.model:,} peaks overlap one of the {self.given:,} "
                f"given; {self.used:,} of those given overlap a peak of {self.of}, and about {self.by_chance:,.0f} would "
                f"by chance. Peaks of one genome build overlap far more often. {self.hint}"
            )


def coverage(source: Regions, target: Regions, *, where: str = "peaks", of: str = "the model") -> Coverage:
    """How far `source`, peaks given, covers `target`, the peaks of a model or of what `of` says; `check` judges it."""
    pairs = source.overlaps(target)
    chance = [int((_moved(source, shift).overlaps(target).getnnz(axis=1) > 0).sum()) for shift in (_SHIFT, -_SHIFT)]
    builds = guess_genome(source), guess_genome(target)
    if not set(source.chroms) & set(target.chroms):
        hint = f"No chromosome is in both: {', '.join(source.chroms[:3])} … against {', '.join(target.chroms[:3])} …."
    elif None not in builds and builds[0] != builds[1]:
        hint = f"The peaks given fit {builds[0]} and {of}'s {builds[1]}: lift them over first."
    else:
        hint = "Are they of another build (lift them over first) or another species?"
    covered, used = (int((pairs.getnnz(axis=axis) > 0).sum()) for axis in (0, 1))
    return Coverage(where, len(target), covered, len(source), used, sum(chance) / 2, hint, of)


def binarise_predictions(
    predicted: Blockwise, *, threshold: float | None = None, block: tuple[int, int] = (256, 16_384)
) -> sparse.csr_matrix:
    """Predicted accessibility as 0/1: 1 above `threshold`, or above both the cell's and the peak's mean prediction.

    Without a threshold everything is predicted twice: once for the means (of the prediction itself), once to compare, so
    that what equals its mean stays 0 (Xiong et al., Nat. Commun. 2019, SCALE). Memory: one block of cells x peaks beside
    the result.
    Relations: `translate.writing.write_predictions` with form "scale" writes the same to a file.
    """
    shape = predicted.n_cells, predicted.n_features
    if 0 in shape:
        return sparse.csr_matrix(shape, dtype=np.float32)
    spans = [[slice(i, min(i + size, n)) for i in range(0, n, size)] for n, size in zip(shape, block)]
    bounds = [np.full(n, -np.inf if threshold is None else threshold, dtype=np.float32) for n in shape]
    if threshold is None:
        bounds = list(prediction_means(predicted, block=block))
    rows = []
    for cells in spans[0]:
        parts = []
        for features in spans[1]:
            bound = np.maximum(bounds[0][cells, None], bounds[1][None, features])
            parts.append(sparse.csr_matrix(predicted.block(cells, features) > bound, dtype=np.float32))
        rows.append(sparse.hstack(parts, format="csr"))
    return sparse.vstack(rows, format="csr")


def prediction_means(
    predicted: Blockwise, *, block: tuple[int, int], progress: Callable[[int], None] | None = None
) -> tuple[Float32[np.ndarray, " cells"], Float32[np.ndarray, " features"]]:
    """Mean prediction of each cell over all features, and of each feature over all cells, summed in float64.

    `block`: cells and features computed at a time. `progress` is told the number of cells done.
    """
    shape = predicted.n_cells, predicted.n_features
    sums = np.zeros(shape[0]), np.zeros(shape[1])
    for row in range(0, shape[0], block[0]):
        cells = slice(row, min(row + block[0], shape[0]))
        for column in range(0, shape[1], block[1]):
            features = slice(column, min(column + block[1], shape[1]))
            values = predicted.block(cells, features)
            sums[0][cells] += values.sum(axis=1, dtype=np.float64)
            sums[1][features] += values.sum(axis=0, dtype=np.float64)
        if progress is not None:
            progress(cells.stop)
    return (sums[0] / shape[1]).astype(np.float32), (sums[1] / shape[0]).astype(np.float32)


def _ones(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """The same entries, all 1. Takes over the arrays."""
    ones = matrix.data if matrix.data.dtype == np.float32 else np.empty(matrix.nnz, dtype=np.float32)
    ones.fill(1)
    return sparse.csr_matrix((ones, matrix.indices, matrix.indptr), shape=matrix.shape)


def _prove_peaks(matrix: sparse.csr_matrix | StoredMatrix, regions: Regions) -> None:
    if matrix.shape[1] != len(regions):
        raise InputError(
            f"peaks: the matrix has {matrix.shape[1]:,} columns and there are {len(regions):,} regions, but a column is a "
            "region. Take both from the same var."
        )


def _moved(regions: Regions, shift: int) -> Regions:
    """Regions moved along their chromosome; what would start before it is left out."""
    there = regions.take(np.flatnonzero(regions.start + shift >= 0))
    return Regions(there.chroms, there.chrom, there.start + shift, there.end + shift)
