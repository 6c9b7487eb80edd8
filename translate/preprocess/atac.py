"""ATAC as networks take it: 0/1 over the peaks that the training cells left after merging and filtering."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.options import from_plain
from expresser.regions import Regions
from translate.align import align_peaks, peaks_onto
from translate.genomes import check_genome
from translate.peaks import open_cells, peak_filter
from translate.preprocess.proofs import array_of, names_of
from translate.study import DataWarning, Measured

_CELLS = 4096  # looked at at once


@dataclass(frozen=True)
class AtacRecipe:
    """How ATAC is prepared. The defaults follow BABEL's paper (Wu et al., PNAS 2021, "Data preprocessing").

    share_of: what `max_share` is a share of: all training cells (the paper), or the cells of the commonest peak (the
    released code).
    """

    autosomes: bool = True  # peaks of other chromosomes are left out
    min_cells: int = 5  # training cells in which a peak must be open
    max_share: float = 0.1  # of cells in which a peak may be open; commoner ones are left out
    share_of: Literal["cells", "commonest_peak"] = "cells"  # max_share: of training cells, or the commonest peak's
    min_share: float = 0.0  # of all training cells, beside min_cells
    merge: bool = True  # join peaks of a file that overlap
    n_top_peaks: int | None = None  # only so many, those of the greatest sum of TF-IDF over training cells; None: all


class EmptyChromosomeWarning(DataWarning):
    """A chromosome on which nothing is open: likelier lost on the way than closed."""


@dataclass(frozen=True, eq=False)
class AtacInput:
    """The peaks of a model, in canonical order, and how any file's peaks become them."""

    recipe: AtacRecipe
    regions: Regions = field(repr=False)
    genome: str | None  # build, where it was said
    left_out: Mapping[str, int] = field(default_factory=dict)  # peaks, by reason

    @cached_property
    def var(self) -> pd.DataFrame:
        """The peaks as a table: index "chr1:100-200", columns chrom, start, end."""
        return self.regions.to_frame()

    @classmethod
    def fit(
        cls, measured: Measured, cells: Int64[np.ndarray, " training"], recipe: AtacRecipe, genome: str | None = None
    ) -> "AtacInput":
        """Peaks chosen on these cells. `genome` ("hg38", …) makes sure that these peaks, and those of `align`, fit it.

        Memory beside the counts: a million entries' worth, and a few numbers a peak. A corpus is read once, in the order of the
        disk.
        """
        given = Regions.from_var(measured.var, where=measured.name)
        build = None if genome is None else check_genome(given, genome).genome
        merged = given.merged()
        regions = merged if recipe.merge and len(merged) < len(given) else given.take(given.order())
        keep, reasons = peak_filter(
            open_cells(measured.matrix, given, regions, cells),
            regions,
            n_cells=len(cells),
            autosomes=recipe.autosomes,
            min_cells=max(recipe.min_cells, math.ceil(recipe.min_share * len(cells) - 1e-9)),
            max_share=recipe.max_share,
            share_of=recipe.share_of,
        )
        _say_empty(measured.name, regions, keep, recipe)
        left_out = {"merged": len(given) - len(regions)} | {k: v for k, v in reasons.items() if k != "kept"}
        kept = regions.take(np.flatnonzero(keep))
        if recipe.n_top_peaks is not None:
            top = _telling(measured, kept, cells, recipe.n_top_peaks)
            left_out["not_telling"] = len(kept) - len(top)
            kept = kept.take(top)
        return cls(recipe, kept, build, left_out)

    def align(self, measured: Measured) -> sparse.csr_matrix:
        """0/1 (float32) over these peaks: a file's own columns where it has them all, else re-pooled by logical or.

        Raises InputError for another genome build, and where next to none of these peaks are covered.
        """
        self._prove_build(measured)
        opened = align_peaks(measured, self.regions)
        self._say_lost(measured)
        return opened

    def onto(self, measured: Measured) -> sparse.csr_matrix:
        """`align` as a matrix, peaks of the file x these: for cells that are read one by one."""
        self._prove_build(measured)
        onto = peaks_onto(measured, self.regions)
        self._say_lost(measured)
        return onto

    def _prove_build(self, measured: Measured) -> None:
        if self.genome is not None:
            check_genome(Regions.from_var(measured.var, where=measured.name), self.genome)

    def _say_lost(self, measured: Measured) -> None:
        """Warn of chromosomes of these peaks that a file has nothing of."""
        given = set(Regions.from_var(measured.var, where=measured.name).chroms)
        if lost := [name for name in self._peaks_by_chromosome if name not in given]:
            n = sum(self._peaks_by_chromosome[name] for name in lost)
            warnings.warn(
                f"{measured.name}: has no peak on {', '.join(lost)}, where {n:,} of the model's {len(self.regions):,} lie: they "
                "are taken to be closed. Is the file whole?",
                EmptyChromosomeWarning,
                stacklevel=3,
            )

    @cached_property
    def _peaks_by_chromosome(self) -> dict[str, int]:
        counts = np.bincount(self.regions.chrom, minlength=len(self.regions.chroms)).tolist()
        return {name: n for name, n in zip(self.regions.chroms, counts) if n}

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, and settings for JSON; `restored` gives the same input back, bit by bit."""
        arrays = {"chrom": self.regions.chrom, "start": self.regions.start, "end": self.regions.end}
        return arrays, {
            "recipe": asdict(self.recipe),
            "chroms": list(self.regions.chroms),
            "genome": self.genome,
            "left_out": dict(self.left_out),
        }

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> "AtacInput":
        """From what `saved` returned; ValueError, KeyError or TypeError where it cannot have."""
        n = arrays["start"].shape[:1]
        regions = Regions(
            chroms=tuple(names_of(settings["chroms"], "chromosomes")),
            chrom=array_of(arrays, "chrom", n, np.int32),
            start=array_of(arrays, "start", n, np.int64),
            end=array_of(arrays, "end", n, np.int64),
        )
        genome = settings["genome"]
        if genome is not None and not isinstance(genome, str):
            raise TypeError("genome is no text")
        return cls(
            from_plain(AtacRecipe, settings["recipe"], where="recipe"), regions, genome, dict(settings["left_out"])
        )


def _telling(
    measured: Measured, regions: Regions, cells: Int64[np.ndarray, " training"], n: int
) -> Int64[np.ndarray, " peaks"]:
    """The n peaks of the greatest TF-IDF summed over these cells, ascending; of equal ones the first.

    TF: 1 / open peaks of the cell; IDF: ln(1 + cells / cells in which the peak is open).
    """
    if n < 1:
        raise InputError(f"ATAC: n_top_peaks is {n}; a model needs one peak at least (None: all).")
    sums, opened = np.zeros(len(regions)), np.zeros(len(regions))
    for start in range(0, len(cells), _CELLS):
        some = align_peaks(measured.take(cells[start : start + _CELLS]).loaded(), regions)
        sums += some.T @ (1 / np.maximum(np.diff(some.indptr), 1))
        opened += np.bincount(some.indices, minlength=len(regions))
    value = sums * np.log1p(len(cells) / np.maximum(opened, 1))
    return np.sort(np.argsort(-value, kind="stable")[:n]).astype(np.int64)


def _say_empty(where: str, regions: Regions, keep: Bool[np.ndarray, " peaks"], recipe: AtacRecipe) -> None:
    """Warn of chromosomes of which no peak is kept, other than those left out on purpose."""
    placed = regions.is_autosome() if recipe.autosomes else np.ones(len(regions), bool)
    given, kept = (np.bincount(regions.chrom[mask], minlength=len(regions.chroms)) for mask in (placed, keep))
    if lost := [f"{regions.chroms[i]} ({given[i]:,} peaks)" for i in np.flatnonzero((given > 0) & (kept == 0))]:
        warnings.warn(
            f"{where}: no peak is kept of {', '.join(lost)}: none is open in {recipe.min_cells} training cells or more and in "
            "few enough. The model will not know these chromosomes.",
            EmptyChromosomeWarning,
            stacklevel=3,
        )
