"""Whether a prediction knows the genes that mark each cell type: markers by the measured values, judged on predicted ones."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Float64, Int64, Shaped
from scipy import sparse, stats

from expresser.errors import InputError

_BLOCK = 1 << 22  # stored values that are ranked at one time


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
                "to be told from. Give labels of at least two types, or none."
            )
        members = np.stack([(text == name).to_numpy(np.float64) for name in names])
        return cls(names, members, members.sum(axis=0))

    def means(
        self, values: Float32[np.ndarray, "cells features"] | sparse.csc_matrix
    ) -> Float32[np.ndarray, "types features"]:
        """Mean of each type."""
        return (self.members / self.members.sum(axis=1, keepdims=True)).astype(np.float32) @ values

    def auroc(self, values: Float[np.ndarray, "cells features"]) -> Float64[np.ndarray, "types features"]:
        """Chance that a cell of the type has a higher value than a labelled cell of another type, ties 1/2."""
        kept = self.labelled > 0
        ranks = stats.rankdata(values[kept], axis=0)
        size = self.members.sum(axis=1)[:, None]
        wins = self.members[:, kept] @ ranks - size * (size + 1) / 2
        return wins / (size * (kept.sum() - size))


def find_markers(
    values: sparse.csc_matrix, types: CellTypes, *, at_most: int = 50, max_fdr: float = 0.01
) -> pd.DataFrame:
    """Genes that are higher in a type than in all other labelled cells: one-sided rank sum, Benjamini-Hochberg over genes.

    values: measured expression, not negative, in any unit that can be compared between cells. Returns a row a marker,
    columns label, gene (column number of `values`) and auroc_truth, with which the measured value tells the type; at most
    `at_most` of each type, the highest first. The normal approximation with the correction for ties is used.
    """
    kept = np.flatnonzero(types.labelled)
    values, members = values[kept], types.members[:, kept].astype(bool)
    size, n = members.sum(axis=1)[:, None], len(kept)
    auroc, spread = np.empty((len(types.names), values.shape[1])), np.empty(values.shape[1])
    cuts = np.searchsorted(values.indptr, np.arange(0, max(values.nnz, 1), _BLOCK)).tolist()
    for first, last in zip(cuts, [*cuts[1:], values.shape[1]]):
        sums, ties = _rank_sums(values[:, first:last], np.argmax(members, axis=0), len(members))
        auroc[:, first:last] = (sums - size * (size + 1) / 2) / (size * (n - size))
        spread[first:last] = np.maximum(n + 1 - ties / (n * max(n - 1, 1)), 0.0)
    deviation = np.sqrt(spread / (12.0 * size * (n - size)))
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(deviation > 0, (auroc - 0.5) / deviation, 0.0)
    tables = []
    for name, score, area in zip(types.names, z, auroc):
        chosen = np.flatnonzero(stats.false_discovery_control(stats.norm.sf(score)) < max_fdr)
        chosen = chosen[np.argsort(-area[chosen], kind="stable")][:at_most]
        tables.append(pd.DataFrame({"label": name, "gene": chosen, "auroc_truth": area[chosen]}))
    return pd.concat(tables, ignore_index=True)


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
