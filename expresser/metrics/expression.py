"""How well log-normalised expression is predicted, entry by entry: errors and correlations from sums that add."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, Num

from expresser.errors import InputError

# A spread below this share of the largest value is rounding, not signal: a correlation with it would be noise.
_CONSTANT = 1e-6
_STRIP = 1 << 16  # entries of a block that are float64 at one time


@dataclass
class _Groups:
    """Sums over the entries of each gene (or each cell): all that means, errors and correlations need."""

    n: Int64[np.ndarray, " groups"]
    sums: Float64[np.ndarray, "7 groups"]  # |e|, e², t, p, t², p², t·p
    low: Float64[np.ndarray, "2 groups"]  # least truth, least prediction
    high: Float64[np.ndarray, "2 groups"]

    @classmethod
    def empty(cls, groups: int) -> "_Groups":
        return cls(
            n=np.zeros(groups, np.int64),
            sums=np.zeros((7, groups)),
            low=np.full((2, groups), np.inf),
            high=np.full((2, groups), -np.inf),
        )

    def add(self, group: Int64[np.ndarray, " entries"], pair: Float64[np.ndarray, "2 entries"]) -> None:
        size, (t, p) = len(self.n), pair
        error = p - t
        self.n += np.bincount(group, minlength=size)
        for row, values in zip(self.sums, (np.abs(error), error**2, t, p, t * t, p * p, t * p)):
            row += np.bincount(group, values, minlength=size)
        for i in range(2):
            np.minimum.at(self.low[i], group, pair[i])
            np.maximum.at(self.high[i], group, pair[i])

    def add_block(self, where: slice, pair: Float64[np.ndarray, "2 cells genes"], axis: int) -> None:
        """Add all entries of a block whose axis 1 - `axis` is the groups of `where`."""
        t, p = pair
        error = p - t
        self.n[where] += t.shape[axis]
        for row, (a, b) in zip(self.sums[1:], ((error, error), (t, None), (p, None), (t, t), (p, p), (t, p))):
            row[where] += a.sum(axis=axis) if b is None else np.einsum("cg,cg->" + "gc"[axis], a, b)
        self.sums[0, where] += np.abs(error, out=error).sum(axis=axis)
        for i in range(2):
            np.minimum(self.low[i, where], pair[i].min(axis=axis), out=self.low[i, where])
            np.maximum(self.high[i, where], pair[i].max(axis=axis), out=self.high[i, where])

    def merge(self, other: "_Groups") -> None:
        self.n += other.n
        self.sums += other.sums
        np.minimum(self.low, other.low, out=self.low)
        np.maximum(self.high, other.high, out=self.high)

    def total(self) -> "_Groups":
        """All groups as one."""
        return _Groups(
            n=self.n.sum(keepdims=True),
            sums=self.sums.sum(axis=1, keepdims=True),
            low=self.low.min(axis=1, keepdims=True, initial=np.inf),
            high=self.high.max(axis=1, keepdims=True, initial=-np.inf),
        )

    def varies(self) -> Bool[np.ndarray, "2 groups"]:
        """Whether truth and prediction of each group have a spread beyond rounding."""
        with np.errstate(invalid="ignore"):
            return (self.high - self.low) > _CONSTANT * np.maximum(np.abs(self.high), np.abs(self.low))

    def pearson(self, min_obs: int) -> Float64[np.ndarray, " groups"]:
        """Pearson r of each group; NaN where it has fewer than `min_obs` entries or where one side is constant."""
        with np.errstate(invalid="ignore", divide="ignore"):
            _, _, t, p, tt, pp, tp = self.sums
            covariance = self.n * tp - t * p
            r = covariance / np.sqrt((self.n * tt - t * t) * (self.n * pp - p * p))
        defined = (self.n >= max(min_obs, 2)) & self.varies().all(axis=0)
        return np.where(defined, np.clip(r, -1.0, 1.0), np.nan)


@dataclass
class ExpressionScores:
    """MAE, RMSE and Pearson r of predicted expression: over all entries, per gene and per cell.

    Values are ``log1p(1e4 * count / total)``, natural log. Only sums (float64), extremes and counts per gene and per
    cell are kept, so any cutting into batches and any `merge` of processes gives the scores of one go, up to the
    rounding of a float64 sum; memory is 13 numbers a gene and a cell.

    `pearson_gene` is the mean, over genes, of the r inside a gene (does the prediction know in which cells the gene
    is high?), `pearson_cell` the same inside cells; `pearson` over all entries is mostly the easy part, that some
    genes are high everywhere. A gene or cell with fewer than `min_obs` entries, or with a constant side, has no r: it
    is NaN, is left out of the mean, and is counted in `genes_undefined` / `cells_undefined`.

    Relations: for counts use a likelihood; for open chromatin, where most entries are zero, use AUROC and AUPR.
    """

    n_genes: int
    n_cells: int
    min_obs: int = 10
    _gene: _Groups = field(init=False, repr=False)
    _cell: _Groups = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._gene = _Groups.empty(self.n_genes)
        self._cell = _Groups.empty(self.n_cells)

    def update(
        self,
        *,
        truth: Num[np.ndarray, " entries"],
        prediction: Num[np.ndarray, " entries"],
        gene: Int[np.ndarray, " entries"],
        cell: Int[np.ndarray, " entries"],
    ) -> None:
        """Add entries: truth and prediction of gene `gene` (0 … n_genes-1) in cell `cell` (0 … n_cells-1)."""
        pair = np.stack([truth, prediction]).astype(np.float64)
        if not np.isfinite(pair).all():
            side, at = np.argwhere(~np.isfinite(pair))[0]
            raise InputError(
                f"scores: the {('truth', 'prediction')[side]} of entry {at} (gene {gene[at]}, cell {cell[at]}) is "
                f"{pair[side, at]}, but scores need finite values. Find out what produced it: leaving such entries out "
                "would flatter the method."
            )
        for name, index, size in (("gene", gene, self.n_genes), ("cell", cell, self.n_cells)):
            if index.size and (index.min() < 0 or index.max() >= size):
                raise InputError(
                    f"scores: {name} numbers lie between {index.min()} and {index.max()}, these scores were made for "
                    f"0 to {size - 1}. Make ExpressionScores with the number of {name}s of the whole data."
                )
        self._gene.add(gene.astype(np.int64), pair)
        self._cell.add(cell.astype(np.int64), pair)

    def update_block(
        self,
        *,
        truth: Float[np.ndarray, "cells genes"],
        prediction: Float[np.ndarray, "cells genes"],
        first_cell: int = 0,
        first_gene: int = 0,
    ) -> None:
        """Add every entry of a dense block, the genes from `first_gene` of the cells from `first_cell`.

        The sums of `update`, taken along the block's axes and many times faster; no entry may be added twice.
        """
        cells, genes = truth.shape
        for name, first, size, whole in (
            ("cell", first_cell, cells, self.n_cells),
            ("gene", first_gene, genes, self.n_genes),
        ):
            if first < 0 or first + size > whole:
                raise InputError(
                    f"scores: a block of {name}s {first} to {first + size - 1}, these scores were made for 0 to {whole - 1}. "
                    f"Make ExpressionScores with the number of {name}s of the whole data."
                )
        for side, values in (("truth", truth), ("prediction", prediction)):
            if not np.isfinite(values).all():
                cell, gene = np.argwhere(~np.isfinite(values))[0]
                raise InputError(
                    f"scores: the {side} of cell {first_cell + cell}, gene {first_gene + gene} is {values[cell, gene]}, but "
                    "scores need finite values. Find out what produced it: leaving such entries out would flatter the method."
                )
        if not truth.size:
            return
        rows = max(1, _STRIP // genes)
        for row in range(0, cells, rows):
            pair = np.stack([truth[row : row + rows], prediction[row : row + rows]]).astype(np.float64)
            self._gene.add_block(slice(first_gene, first_gene + genes), pair, 0)
            self._cell.add_block(slice(first_cell + row, first_cell + row + pair.shape[1]), pair, 1)

    def merge(self, other: "ExpressionScores") -> None:
        """Add what `other` has seen (another batch, another process): the same genes, cells and `min_obs`."""
        mine, its = (self.n_genes, self.n_cells, self.min_obs), (other.n_genes, other.n_cells, other.min_obs)
        if mine != its:
            raise InputError(
                f"scores: (genes, cells, min_obs) = {mine} cannot be merged with {its}. "
                "Number genes and cells over the whole data in every process."
            )
        self._gene.merge(other._gene)
        self._cell.merge(other._cell)

    def per_gene(self) -> Float64[np.ndarray, " genes"]:
        """Pearson r inside each gene, NaN where undefined."""
        return self._gene.pearson(self.min_obs)

    def per_cell(self) -> Float64[np.ndarray, " cells"]:
        """Pearson r inside each cell, NaN where undefined."""
        return self._cell.pearson(self.min_obs)

    def constant_genes(self) -> Bool[np.ndarray, "2 genes"]:
        """Genes with entries whose truth (row 0) or prediction (row 1) is one value throughout, up to rounding."""
        return ~self._gene.varies() & (self._gene.n > 0)

    def compute(self) -> dict[str, float | int]:
        """All scores by name; NaN where there is nothing to score.

        mae, rmse, pearson over all entries; mae_gene, the mean over genes with an entry of the gene's MAE (each gene
        counts once, however often it is seen); pearson_gene, pearson_cell; n entries, genes and cells with an entry,
        and how many of those have no r.
        """
        # Over genes, not cells, in the same order whatever the batches were.
        whole = self._gene.total()
        n = int(whole.n[0])
        genes, cells = self._gene.n > 0, self._cell.n > 0
        r_gene, r_cell = self.per_gene()[genes], self.per_cell()[cells]
        return {
            "mae": float(whole.sums[0, 0] / n) if n else float("nan"),
            "rmse": float(np.sqrt(whole.sums[1, 0] / n)) if n else float("nan"),
            "pearson": float(whole.pearson(2)[0]),
            "pearson_gene": _mean(r_gene[~np.isnan(r_gene)]),
            "pearson_cell": _mean(r_cell[~np.isnan(r_cell)]),
            "mae_gene": _mean(self._gene.sums[0, genes] / self._gene.n[genes]),
            "n": n,
            "genes": int(genes.sum()),
            "cells": int(cells.sum()),
            "genes_undefined": int(np.isnan(r_gene).sum()),
            "cells_undefined": int(np.isnan(r_cell).sum()),
        }


def _mean(values: Float64[np.ndarray, " values"]) -> float:
    """The mean; NaN, silently, of nothing."""
    return float(values.mean()) if values.size else float("nan")
