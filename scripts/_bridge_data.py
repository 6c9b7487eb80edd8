"""Cells with RNA and ATAC of which a share is fitted: simulated ones, with more cells of RNA alone to pretrain on, and real ones."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from _fits import Skipped
from _unpaired_data import SIMULATED, SUBSET, TEST, Case, parted, real_folder, world
from anndata import AnnData

from translate.fitting import FEWEST

REAL_TEST = 0.3  # of the cells of a real set, TEST at most


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells of a data set; the first `n_test` of `order` are judged, of the others a share is fitted."""

    name: str
    rna: AnnData
    atac: AnnData
    order: np.ndarray = field(repr=False)
    n_test: int
    subset: dict[str, dict[str, Any]]  # changes of the recipes
    label: str | None  # column of cell types
    truth: Any = None
    genes: pd.DataFrame | None = None  # where they are
    corpus: AnnData | None = None  # RNA of cells that nobody fits or judges

    @property
    def n_fitted(self) -> int:
        """Cells that are there to be fitted."""
        return len(self.order) - self.n_test

    def case(self, share: float, seed: int, *, alone: bool) -> Case:
        """This share of the pairs, `FEWEST` at least, a fifth of them to validate; those of a smaller share are among a larger one's.

        alone: the rest stays with one modality, half with RNA and half with ATAC; else it is not there.
        """
        if self.n_fitted < FEWEST:
            raise Skipped(f"{self.name}: {self.n_fitted} cells beside those that test, and a fit takes {FEWEST}")
        tests, others = self.order[: self.n_test], self.order[self.n_test :]
        n = pairs(share, self.n_fitted)
        rest = others[n:] if alone else others[:0]
        parts = [np.sort(some) for some in (tests, others[:n], rest[::2], rest[1::2])]
        return parted(self.rna, self.atac, *parts, seed, subset=self.subset, truth=self.truth, genes=self.genes)


def pairs(share: float, cells: int) -> int:
    """How many pairs a share is."""
    return min(cells, max(FEWEST, round(share * cells)))


def simulated(seed: int, *, cells: int, genes: int, peaks: int, extra: int) -> Cells:
    """One world: the first cells test, `cells` can be fitted, and `extra` are a corpus of the same kind of tissue."""
    made = world(TEST + cells + extra, genes, peaks, seed)
    corpus = made.rna[TEST + cells :].copy()
    order = np.arange(TEST + cells)
    return Cells("simulated", made.rna, made.atac, order, TEST, SIMULATED, "cell_type", made, corpus=corpus)


def real(name: str, seed: int) -> Cells:
    """A data set of the folder that EXPRESSER_DATA names; another 30 % test with every seed."""
    files, label, here = REAL[name]
    folder = real_folder()
    rna, atac = (anndata.read_h5ad(folder / "multiome" / file) for file in files)
    order = np.random.default_rng(seed).permutation(rna.n_obs)
    n_test = min(TEST, round(REAL_TEST * rna.n_obs))
    return Cells(name, rna, atac, order, n_test, SUBSET, label, genes=here(folder, rna))


def _hg38(folder: Path, rna: AnnData) -> pd.DataFrame | None:
    """Where these genes start, for those that ask what peaks are near."""
    places = pd.read_csv(folder / "annotation" / "gene_tss_hg38.tsv.gz", sep="\t")
    names = set(rna.var_names) | set(rna.var.astype(str).to_numpy().ravel())
    return places[places["ensembl_id"].isin(names) | places["symbol"].isin(names)]


def _unknown(folder: Path, rna: AnnData) -> pd.DataFrame | None:
    """Peaks of another build than the places that are there."""
    return None


# RNA and ATAC of the same cells, the column of cell types, and places of genes.
REAL: dict[str, tuple[tuple[str, str], str | None, Callable[[Path, AnnData], pd.DataFrame | None]]] = {
    "bmmc_A": (("bmmc_setA_rna.h5ad", "bmmc_setA_atac.h5ad"), "cell_type", _hg38),
    "bmmc_B": (("bmmc_setB_rna.h5ad", "bmmc_setB_atac.h5ad"), "cell_type", _hg38),
    "snare_h1": (("snare_h1_rna.h5ad", "snare_h1_atac.h5ad"), None, _hg38),
    "scicar": (("scicar_a549_rna.h5ad", "scicar_a549_atac_binary.h5ad"), None, _unknown),
}
