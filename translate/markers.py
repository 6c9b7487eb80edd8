"""Genes that differ between cell types: rank sums of measured or predicted values, markers, and precision-recall of the second."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float32, Float64, Int64, Shaped
from scipy import sparse, stats

from expresser.errors import InputError
from expresser.metrics.accessibility import peak_scores

MAX_FDR = 0.01  # of genes that are called higher in a type
_BLOCK = 1 << 22  # stored values that are ranked at one time
_DENSE = 1 << 20  # the same of dense values, of which more is at hand at once


@dataclass(frozen=True, eq=False)
class CellTypes:
    """Which cells are of which type; cells without a label are of none, and types of fewer than `min_cells` are left out."""

    names: tuple[str, ...]
    members: Float64[np.ndarray, "types cells"]  # 1 where the cell is of the type
    labelled: Float64[np.ndarray, " cells"]  # 1 where the cell is of any type

    @classmethod
    def of(cls, labels: Shaped[np.ndarray, " cells"] | pd.Series, *, min_cells: int = 10) -> "CellTypes":
        """From one label a cell; missing values and "" are no label. InputError where fewer than two types are left."""
        given = pd.Series(np.asarray(labels, dtype=object))
        text = given.where(given.notna(), "").astype(str)
        size = text[text != ""].value_counts()
        names = tuple(sorted(size.index[size >= min_cells]))
        if len(names) < 2:
            raise InputError(
                f"cell types: {len(names)} of {len(size)} labels have {min_cells} cells or more, but a type needs another "
                f"to be told from (there are {len(text):,} cells). Give more cells, labels of at least two types, or none."
            )
        members = np.stack([(text == name).to_numpy(np.float64) for name in names])
        return cls(names, members, members.sum(axis=0))

    def means(
        self, values: Float32[np.ndarray, "cells features"] | sparse.csc_matrix
    ) -> Float32[np.ndarray, "types features"]:
        """Mean of each type."""
        return (self.members / self.members.sum(axis=1, keepdims=True)).astype(np.float32) @ values


@dataclass(frozen=True, eq=False)
class RankSums:
    """Of each type and gene, the cells of the type against all other labelled cells."""

    auroc: Float64[np.ndarray, "types genes"]
    """Chance that a cell of the type has a higher value than another cell, ties 1/2."""
    z: Float64[np.ndarray, "types genes"]
    """Standard score of the rank sum, normal approximation with the correction for ties; 0 of a constant gene."""

    def differential(self, max_fdr: float = MAX_FDR) -> Bool[np.ndarray, "types genes"]:
        """Genes higher in the type: one-sided p-values, Benjamini-Hochberg over the genes of each type."""
        if not self.z.shape[1]:
            return np.zeros(self.z.shape, dtype=bool)
        return stats.false_discovery_control(stats.norm.sf(self.z), axis=1) <= max_fdr


def rank_sums(values: sparse.csc_matrix | Float[np.ndarray, "cells genes"], types: CellTypes) -> RankSums:
    """Rank sums of all types in every gene. A sparse matrix is of values that are not negative, in float32."""
    kept = np.flatnonzero(types.labelled)
    values, group = values[kept], np.argmax(types.members[:, kept], axis=0)
    size, n, genes = types.members.sum(axis=1)[:, None], len(kept), values.shape[1]
    sums, ties = np.empty((len(types.names), genes)), np.empty(genes)
    for part in _parts(values):
        found = _rank_sums if sparse.issparse(values) else _dense_rank_sums
        sums[:, part], ties[part] = found(values[:, part], group, len(types.names))
    auroc = (sums - size * (size + 1) / 2) / (size * (n - size))
    spread = np.maximum(n + 1 - ties / (n * max(n - 1, 1)), 0.0)
    deviation = np.sqrt(spread / (12.0 * size * (n - size)))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(deviation > 0, (auroc - 0.5) / deviation, 0.0)
    return RankSums(auroc, z)


def find_markers(found: RankSums, types: CellTypes, *, at_most: int = 50, max_fdr: float = MAX_FDR) -> pd.DataFrame:
    """Genes that are higher in a type than in all other labelled cells, by `RankSums.differential` of measured values.

    Returns a row a marker, columns label, gene (column number) and auroc_truth, with which the measured value tells the type;
    at most `at_most` of each type, the highest first.
    """
    tables = []
    for name, differs, area in zip(types.names, found.differential(max_fdr), found.auroc):
        chosen = np.flatnonzero(differs)
        chosen = chosen[np.argsort(-area[chosen], kind="stable")][:at_most]
        tables.append(pd.DataFrame({"label": name, "gene": chosen, "auroc_truth": area[chosen]}))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True, eq=False)
class DifferentialScores:
    """Of each type: are the genes that differ in measured cells those that differ most in predicted ones?"""

    aupr: Float64[np.ndarray, " types"]
    """Average precision; NaN where no gene differs, or all do."""
    chance: Float64[np.ndarray, " types"]
    """Share of the genes that differ, which any order reaches on average; NaN where `aupr` is."""

    def scores(self) -> dict[str, float]:
        """Means over the types that have them."""
        defined = ~np.isnan(self.aupr)
        means = [float(x[defined].mean()) if defined.any() else float("nan") for x in (self.aupr, self.chance)]
        return {"de_auprc": means[0], "de_auprc_chance": means[1]}


def differential_scores(measured: RankSums, z: Float[np.ndarray, "types genes"]) -> DifferentialScores:
    """Precision-recall over genes (Polarbear, section 2.6), each type by itself.

    True are the genes that are higher in the type in measured cells (`RankSums.differential`, FDR 0.01); they are ranked by
    the same statistic of the predicted values, of which a p-value is a falling function.
    """
    differs = measured.differential()
    found = peak_scores(sparse.csc_matrix(differs.T.astype(np.float32)), np.ascontiguousarray(z.T, dtype=np.float32))
    share = differs.mean(axis=1) if differs.shape[1] else np.full(len(differs), np.nan)
    undefined = (share == 0) | (share == 1)
    return DifferentialScores(np.where(undefined, np.nan, found.average_precision), np.where(undefined, np.nan, share))


def _parts(values: sparse.csc_matrix | Float[np.ndarray, "cells genes"]) -> Iterator[slice]:
    """Genes, some million stored values at a time."""
    cells, genes = values.shape
    if not isinstance(values, np.ndarray):
        cuts = np.searchsorted(values.indptr, np.arange(0, max(values.nnz, 1), _BLOCK)).tolist()
    else:
        cuts = list(range(0, genes, max(1, _DENSE // max(cells, 1))))
    return (slice(first, last) for first, last in zip(cuts, [*cuts[1:], genes]))


def _dense_rank_sums(
    values: Float[np.ndarray, "cells genes"], group: Int64[np.ndarray, " cells"], groups: int
) -> tuple[Float64[np.ndarray, "groups genes"], Float64[np.ndarray, " genes"]]:
    """`_rank_sums` of values of any sign, in float32."""
    cells, genes = values.shape
    by_gene = np.ascontiguousarray(values.T, dtype=np.float32)
    order = np.argsort(by_gene, axis=1)
    rank, ties = np.tile(np.arange(1.0, cells + 1), (genes, 1)), np.zeros(genes)
    ordered = np.take_along_axis(by_gene, order, axis=1)
    same = np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1))
    if same.size:
        # Runs of equal values, a run never reaching into the next gene.
        starts = np.flatnonzero(np.diff(ordered[same], axis=1, prepend=np.nan).ravel())
        length = np.diff(starts, append=same.size * cells)
        rank[same] = np.repeat(starts % cells + (length + 1) / 2.0, length).reshape(same.size, cells)
        ties[same] = np.bincount(starts // cells, length.astype(np.float64) ** 3 - length, minlength=same.size)
    at = group[order] + groups * np.arange(genes)[:, None]
    sums = np.bincount(at.ravel(), rank.ravel(), minlength=groups * genes).reshape(genes, groups).T
    return sums, ties


def _rank_sums(
    values: sparse.csc_matrix, group: Int64[np.ndarray, " cells"], groups: int
) -> tuple[Float64[np.ndarray, "groups genes"], Float64[np.ndarray, " genes"]]:
    """Sum of ranks (ties averaged) of each group in each gene, and the sum of t³ - t over its ties of t cells.

    Only what is stored is sorted: zeros share the lowest ranks.
    """
    cells, genes = values.shape
    column = np.repeat(np.arange(genes), np.diff(values.indptr))
    data = np.asarray(values.data, np.float32)
    # Positive floats are in the order of their bits, so one integer sorts by gene, then value.
    key = (column.astype(np.uint64) << np.uint64(32)) | data.view(np.uint32)
    order = np.argsort(key)
    starts = np.flatnonzero(np.diff(key[order], prepend=np.uint64(0), append=np.uint64(0))[:-1]) if len(key) else order
    length = np.diff(starts, append=len(key))
    place = np.repeat(starts + (length + 1) / 2.0, length)
    zeros = cells - np.diff(values.indptr)
    rank = place - values.indptr[column] + zeros[column]  # `column` is sorted already, so it is in the order of `order`
    at = group[values.indices[order]] * genes + column
    # Of no entries, bincount forgets that the weights were floats.
    sums = np.bincount(at, rank, minlength=groups * genes).astype(np.float64).reshape(groups, genes)
    stored = np.bincount(at, minlength=groups * genes).reshape(groups, genes)
    sums += (np.bincount(group, minlength=groups)[:, None] - stored) * (zeros + 1) / 2.0
    ties = np.bincount(column[starts], length.astype(np.float64) ** 3 - length, minlength=genes)
    return sums, ties + zeros.astype(np.float64) ** 3 - zeros
