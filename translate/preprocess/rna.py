"""RNA as networks take it: size-normalised, logged, standardised and clipped by figures of the training cells, yet sparse."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float32, Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.options import from_plain
from expresser.threads import kept_threads
from translate.align import align_genes, expressed_genes, take_columns
from translate.large import steps, take_rows
from translate.preprocess.proofs import array_of, names_of
from translate.preprocess.quantiles import Values, quantiles
from translate.pretrained_genes import PretrainedGenes
from translate.study import Measured

_CONSTANT = 1e-6  # a spread below this share of the mean is rounding


@dataclass(frozen=True)
class RnaRecipe:
    """How RNA is prepared. The defaults are BABEL's for 10x data (Wu et al., PNAS 2021, "Data preprocessing")."""

    min_genes: int = 200  # expressed genes a cell must have, of all that n_top_genes chooses among; 0: no filter
    max_genes: int | None = 7000  # None or 0: no filter
    autosomes: bool = True  # genes of other chromosomes are left out, where most genes' places are known
    log: bool = True  # natural logarithm of one plus size-normalised counts
    scale: bool = True  # each gene to mean 0 and standard deviation 1 in training cells
    clip: float = 0.005  # share of all entries below the lower and above the upper bound; 0: no clipping
    n_top_genes: int | None = None  # the most variable among training cells (scanpy's seurat), so many; None: all


@dataclass(frozen=True, eq=False)
class RnaInput:
    """x = clip((log1p(count * median_library / library) - mean) / sd, low, high), library = the cell's own total.

    A gene without a count in a cell has x = `rest`, the same in all cells, so x is `rest` and a sparse remainder. The
    total is over the genes of `var`, which are sorted by name: the order of genes in a file does not matter.
    """

    recipe: RnaRecipe
    var: pd.DataFrame = field(repr=False)
    median_library: float
    mean: Float32[np.ndarray, " genes"] = field(repr=False)
    sd: Float32[np.ndarray, " genes"] = field(repr=False)
    low: float
    high: float
    left_out: Mapping[str, int] = field(default_factory=dict)  # genes and training cells, by reason
    counted: pd.DataFrame | None = field(
        default=None, repr=False
    )  # genes that the cell filter counts; None: those of var
    pretrained: PretrainedGenes | None = field(default=None, repr=False)  # the model that the RNA side starts from

    @classmethod
    def fit(cls, measured: Measured, cells: Int64[np.ndarray, " training"], recipe: RnaRecipe) -> "RnaInput":
        """From these cells, less those the recipe's filter drops; the order of cells and genes does not matter.

        Genes: on autosomes where places are known (half the genes or more: one of unknown place is left out; fewer:
        it stays); with n_top_genes, those most variable among cells that pass, and totals are over them. Deviations have ddof 1, and
        where one is 0 it is 1. The bounds are exact percentiles over cells x genes, zeros included; where both are 0 nothing
        is clipped. Memory beside the counts: 4 million entries' worth.
        """
        columns, left_out = _genes(measured.var, recipe)
        cells = cells[np.argsort(measured.obs.index.to_numpy(dtype=object)[cells], kind="stable")]
        counts = take_columns(measured.matrix, columns, cells)
        expressed = np.diff(counts.indptr)
        kept = _kept(expressed, recipe)
        if kept.sum() < 2:
            raise InputError(
                f"{measured.name}: {int(kept.sum())} of {len(cells):,} training cells express {_span(recipe)} of the "
                f"{len(columns):,} genes, and at least two must (median {np.median(expressed) if len(cells) else 0:,.0f} "
                "genes a cell). Set min_genes (0: no filter) and max_genes (None: no filter) to suit these data."
            )
        left_out["cells_by_genes"] = int((~kept).sum())
        counts = take_rows(counts, np.flatnonzero(kept)) if not kept.all() else counts
        counted = None
        if recipe.n_top_genes is not None:
            top = variable_genes(counts, recipe.n_top_genes)
            left_out["genes_not_variable"] = len(columns) - len(top)
            if len(top) < len(columns) and (recipe.min_genes or recipe.max_genes):
                counted = measured.var.iloc[columns]
            columns, counts = columns[top], take_columns(counts, top)
        var = measured.var.iloc[columns]
        median = float(np.median([total for total in _libraries(counts) if total > 0] or [1.0]))
        nought, one = np.zeros(len(var), dtype=np.float32), np.ones(len(var), dtype=np.float32)
        found = cls(recipe, var, median, nought, one, -np.inf, np.inf, left_out, counted)
        if recipe.scale:
            mean, sd = found._moments(counts)
            found = replace(found, mean=mean, sd=sd)
        low, high = found._bounds(counts) if recipe.clip else (0.0, 0.0)
        return found if low == high == 0 else replace(found, low=low, high=high)

    @cached_property
    def rest(self) -> Float32[np.ndarray, " genes"]:
        """x of a gene without a count."""
        return self._clipped(-self.mean / self.sd)

    def align(self, measured: Measured) -> sparse.csr_matrix:
        """Raw counts of these genes in this order; a gene that the file lacks is zero. InputError if most are lacking."""
        return align_genes(measured, self.var)

    @property
    def filter_genes(self) -> pd.DataFrame:
        """The genes that the cell filter counts."""
        return self.var if self.counted is None else self.counted

    def keeps(self, measured: Measured) -> Bool[np.ndarray, " cells"]:
        """Which cells have as many expressed genes as the recipe asks for."""
        return _kept(expressed_genes(measured, self.filter_genes), self.recipe)

    def inputs(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """x - rest for aligned raw counts, float32 with the pattern of the counts: W x = W rest + W (x - rest)."""
        data = self._clipped(self._scaled(self._checked(counts)))
        data -= self.rest[counts.indices]
        return sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)

    def targets(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        """count * median_library / library of aligned raw counts: linear, float32, with the pattern of the counts."""
        data = self._normalised(self._checked(counts))
        return sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, and settings for JSON; `restored` gives the same input back, bit by bit."""
        arrays = {
            "mean": self.mean,
            "sd": self.sd,
            "bounds": np.array([self.low, self.high], dtype=np.float64),  # JSON has no infinity
            "tss": self.var["tss"].to_numpy(dtype=np.int64),
        }
        texts = {key: self.var[key].tolist() for key in ("ensembl_id", "symbol", "chrom")}
        counted = {}
        if self.counted is not None:
            names = {key: self.counted[key].tolist() for key in ("ensembl_id", "symbol")}
            counted = {"counted": {"name": self.counted.index.tolist(), **names}}
        bridged: dict[str, Any] = {}
        if self.pretrained is not None:
            own, bridged["pretrained"] = self.pretrained.saved()
            arrays |= {f"pretrained.{key}": value for key, value in own.items()}
        return arrays, counted | bridged | {
            "recipe": asdict(self.recipe),
            "median_library": self.median_library,
            "var": {"name": self.var.index.tolist(), **texts},
            "left_out": dict(self.left_out),
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> "RnaInput":
        """From what `saved` returned; ValueError, KeyError or TypeError where it cannot have."""
        names = names_of(settings["var"]["name"], "genes")
        texts = {key: names_of(settings["var"][key], key, n=len(names)) for key in ("ensembl_id", "symbol", "chrom")}
        var = pd.DataFrame(texts, index=pd.Index(names, dtype=object), dtype=object)
        counted = None
        if told := settings.get("counted"):
            index = names_of(told["name"], "counted genes")
            known = {key: names_of(told[key], key, n=len(index)) for key in ("ensembl_id", "symbol")}
            counted = pd.DataFrame(known, index=pd.Index(index, dtype=object), dtype=object)
        pretrained = None
        if bridged := settings.get("pretrained"):
            own = {k.removeprefix("pretrained."): v for k, v in arrays.items() if k.startswith("pretrained.")}
            pretrained = PretrainedGenes.restored(own, bridged)
        n = (len(names),)
        low, high = (float(bound) for bound in array_of(arrays, "bounds", (2,), np.float64))
        sd, median = array_of(arrays, "sd", n, np.float32, finite=True), float(settings["median_library"])
        if not (sd > 0).all() or not 0 < median < np.inf or not low <= high:
            raise ValueError("deviations and the median library must be above 0, and bounds in their order")
        return cls(
            recipe=from_plain(RnaRecipe, settings["recipe"], where="recipe"),
            var=var.assign(tss=array_of(arrays, "tss", n, np.int64)),
            median_library=median,
            mean=array_of(arrays, "mean", n, np.float32, finite=True),
            sd=sd,
            low=low,
            high=high,
            left_out=dict(settings["left_out"]),
            counted=counted,
            pretrained=pretrained,
        )

    def _checked(self, counts: sparse.csr_matrix) -> sparse.csr_matrix:
        if counts.shape[1] != len(self.var):
            raise InputError(
                f"RNA: counts of {counts.shape[1]:,} genes, but the model has {len(self.var):,}. `align` brings a file's "
                "genes to the model's."
            )
        return counts

    def _clipped(self, x: Float32[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
        """In place."""
        return x if np.isinf(self.low) else np.clip(x, np.float32(self.low), np.float32(self.high), out=x)

    def _normalised(self, counts: sparse.csr_matrix) -> Float32[np.ndarray, " entries"]:
        libraries = _libraries(counts)
        factors = (self.median_library / np.where(libraries > 0, libraries, 1)).astype(np.float32)
        return counts.data * np.repeat(factors, np.diff(counts.indptr))

    def _values(self, counts: sparse.csr_matrix) -> Float32[np.ndarray, " entries"]:
        x = self._normalised(counts)
        return np.log1p(x, out=x) if self.recipe.log else x

    def _scaled(self, counts: sparse.csr_matrix) -> Float32[np.ndarray, " entries"]:
        """x of the stored entries before clipping."""
        x = self._values(counts)
        if self.recipe.scale:
            x -= self.mean[counts.indices]
            x /= self.sd[counts.indices]
        return x

    def _moments(
        self, counts: sparse.csr_matrix
    ) -> tuple[Float32[np.ndarray, " genes"], Float32[np.ndarray, " genes"]]:
        """Mean and deviation of each gene over all cells, from sums in float64 over the stored entries."""
        n, genes = counts.shape
        sums = np.zeros((2, genes))
        for block in _blocks(counts):
            values = self._values(block).astype(np.float64)
            sums[0] += np.bincount(block.indices, values, minlength=genes)
            sums[1] += np.bincount(block.indices, values * values, minlength=genes)
        mean = sums[0] / n
        variance = (sums[1] - n * mean**2) / (n - 1)
        sd = np.sqrt(np.maximum(variance, 0))
        return mean.astype(np.float32), np.where(sd > _CONSTANT * np.abs(mean), sd, 1.0).astype(np.float32)

    def _bounds(self, counts: sparse.csr_matrix) -> tuple[float, float]:
        """Percentiles over cells x genes, of which gene j has n - nnz_j entries that are its x of no count."""
        stored = sum(np.bincount(block.indices, minlength=counts.shape[1]) for block in _blocks(counts))

        def passes() -> Iterator[Values]:
            yield -self.mean / self.sd, counts.shape[0] - stored
            for block in _blocks(counts):
                yield self._scaled(block), None

        low, high = quantiles(passes, (self.recipe.clip, 1 - self.recipe.clip))
        return float(np.float32(low)), float(np.float32(high))


def _genes(var: pd.DataFrame, recipe: RnaRecipe) -> tuple[Int64[np.ndarray, " genes"], dict[str, int]]:
    """Columns of the genes to use, sorted by name, and how many are left out for which reason."""
    chrom = var["chrom"].astype(str)
    known = (chrom != "").to_numpy()
    autosomal = chrom.str.fullmatch(r"chr\d+").to_numpy(dtype=bool)
    kept = np.ones(len(var), dtype=bool)
    if recipe.autosomes:
        kept = autosomal if 2 * known.sum() >= len(var) else autosomal | ~known
    if not kept.any():
        raise InputError(
            f"RNA: none of {len(var):,} genes lies on an autosome ({int(known.sum()):,} have a known place: "
            f"{', '.join(sorted(set(chrom[known]))[:5]) or 'none'}). Turn rna.autosomes off, or give a table of these genes."
        )
    order = np.argsort(var.index.to_numpy(dtype=object), kind="stable").astype(np.int64)
    left_out = {
        "genes_not_autosomal": int((known & ~kept).sum()),
        "genes_of_unknown_place": int((~known & ~kept).sum()),
    }
    return order[kept[order]], left_out


def variable_genes(counts: sparse.csr_matrix, n: int) -> Int64[np.ndarray, " genes"]:
    """Columns of the n most variable genes, ascending; all where there are no more.

    By dispersion in bins of mean expression (Satija et al. 2015), of ln(1 + counts brought to the median total).
    """
    if n < 1:
        raise InputError(f"RNA: n_top_genes is {n}; a model needs one gene at least (None: all).")
    if n >= counts.shape[1]:
        return np.arange(counts.shape[1], dtype=np.int64)
    import scanpy as sc  # here, since who takes all genes should not wait for its import

    totals = _libraries(counts)
    scale = np.median(totals[totals > 0] if totals.any() else [1.0]) / np.maximum(totals, 1)
    x = sparse.csr_matrix(sparse.diags_array(scale.astype(np.float32)) @ counts).log1p()
    with kept_threads():
        found = sc.pp.highly_variable_genes(AnnData(x), n_top_genes=n, flavor="seurat", inplace=False)
    return np.flatnonzero(found["highly_variable"].to_numpy()).astype(np.int64)


def _kept(expressed: np.ndarray, recipe: RnaRecipe) -> Bool[np.ndarray, " cells"]:
    return (expressed >= recipe.min_genes) & (expressed <= (recipe.max_genes or np.inf))


def _span(recipe: RnaRecipe) -> str:
    return f"{recipe.min_genes} to {recipe.max_genes}" if recipe.max_genes else f"at least {recipe.min_genes}"


def _libraries(counts: sparse.csr_matrix) -> Float64[np.ndarray, " cells"]:
    """Total of each cell, exact."""
    totals = np.zeros(counts.shape[0])
    for rows, block in zip(steps(counts), _blocks(counts)):  # numpy sums a copy in float64
        there = np.diff(block.indptr) > 0
        if there.any():
            totals[rows][there] = np.add.reduceat(block.data, block.indptr[:-1][there], dtype=np.float64)
    return totals


def _blocks(counts: sparse.csr_matrix) -> Iterator[sparse.csr_matrix]:
    """The same rows, some at a time, without copying the counts."""
    for rows in steps(counts):
        a, b = counts.indptr[rows.start], counts.indptr[rows.stop]
        arrays = counts.data[a:b], counts.indices[a:b], counts.indptr[rows.start : rows.stop + 1] - a
        yield sparse.csr_matrix(arrays, shape=(rows.stop - rows.start, counts.shape[1]))
