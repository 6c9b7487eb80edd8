"""Studies of which few cells, or none, have both modalities: simulated, and real ones with their pairing hidden."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData

from expresser.errors import InputError
from expresser.simulate import Multiome, simulate_multiome
from translate.data import read_study
from translate.splits import Split
from translate.study import Study

TEST = 500  # paired cells that nobody learns from
TIMES = 10  # cells of each modality alone, for a paired one
REAL_TEST = 150
# Subsets of genes and peaks in the small real files: nothing is filtered out of them.
SUBSET = {"rna": {"min_genes": 1, "max_genes": None, "autosomes": False}, "atac": {"max_share": 1.0}}
# Peaks are chosen beforehand, the same for all methods and numbers of pairs.
SIMULATED = {"rna": {"min_genes": 1, "max_genes": None}, "atac": {"min_cells": 0, "max_share": 1.0}}


@dataclass(frozen=True, eq=False)
class Case:
    """A study and its parts; what made it, where it was simulated."""

    study: Study
    split: Split
    truth: Any = None
    subset: dict[str, dict[str, Any]] = field(default_factory=dict)  # changes of the recipes

    def paired_only(self) -> "Case":
        """Without the cells of one modality, for systems and baselines that cannot use them."""
        whole = np.zeros(self.study.n_cells, bool)
        whole[self.study.paired] = True
        train = self.split.train[whole[self.split.train]]
        return replace(self, split=replace(self.split, train=train, name=f"{self.split.name}, pairs alone"))


def simulated(pairs: int, seed: int, *, most: int, genes: int, peaks: int, alone: int | None = None) -> Case:
    """`pairs` paired cells, a fifth of which validates, and ten times as many of each modality alone.

    The first cells of one simulation test; pairs of a smaller case are among those of a larger one up to `most`.
    alone: how many cells of each modality alone, where not ten times.
    """
    n_alone = TIMES * pairs if alone is None else alone
    made = world(TEST + most + 2 * n_alone, genes, peaks, seed)
    at = np.arange(TEST + most + 2 * n_alone)
    tests, paired, singles = at[:TEST], at[TEST : TEST + pairs], at[TEST + most :]
    return parted(made.rna, made.atac, tests, paired, singles[::2], singles[1::2], seed, truth=made, subset=SIMULATED)


def unpaired(seed: int, *, cells: int, genes: int, peaks: int) -> tuple[Case, Case]:
    """No pair to learn from: RNA of half the cells and ATAC of the others; and the same cells, all paired."""
    made = world(TEST + cells, genes, peaks, seed)
    at = np.arange(TEST + cells)
    nobody = at[:0]
    apart = parted(
        made.rna, made.atac, at[:TEST], nobody, at[TEST::2], at[TEST + 1 :: 2], seed, truth=made, subset=SIMULATED
    )
    return apart, parted(made.rna, made.atac, at[:TEST], at[TEST:], nobody, nobody, seed, truth=made, subset=SIMULATED)


def world(cells: int, genes: int, peaks: int, seed: int) -> Multiome:
    """Over the peaks that are open in 5 of the test cells and in at most a tenth of all."""
    made = simulate_multiome(n_cells=cells, n_genes=genes, n_peaks=peaks, seed=seed)
    opened = made.atac.X.getnnz(axis=0)
    kept = (opened <= cells / 10) & (made.atac.X[:TEST].getnnz(axis=0) >= 5)
    return Multiome.from_anndata(made.rna, made.atac[:, kept].copy())


def bmmc(letter: str, share: float, seed: int, *, pbmc: bool = False, granja: bool = False) -> Case:
    """500 bone-marrow cells of two donors: 150 test, and of the others this share stays paired, the rest has one modality.

    pbmc: 2,700 PBMC join with RNA alone; granja: 14,125 haematopoietic cells with ATAC alone, lifted over to hg38.
    """
    folder = real_folder()
    rna, atac = (anndata.read_h5ad(folder / "multiome" / f"bmmc_set{letter}_{m}.h5ad") for m in ("rna", "atac"))
    order = np.random.default_rng(seed).permutation(rna.n_obs)
    tests, others = np.sort(order[:REAL_TEST]), order[REAL_TEST:]
    n = max(round(share * len(others)), 10)
    paired, singles = np.sort(others[:n]), others[n:]
    more: dict[str, AnnData] = {}
    if pbmc:
        more["rna_only"] = _named(anndata.read_h5ad(folder / "rna" / "pbmc3k.h5ad"), "pbmc")
    if granja:
        more["atac_only"] = _granja(folder)
    return parted(
        rna, atac, tests, paired, np.sort(singles[::2]), np.sort(singles[1::2]), seed, subset=SUBSET, more=more
    )


def parted(
    rna: AnnData,
    atac: AnnData,
    tests: np.ndarray,
    paired: np.ndarray,
    rna_alone: np.ndarray,
    atac_alone: np.ndarray,
    seed: int,
    *,
    subset: dict[str, dict[str, Any]],
    truth: Any = None,
    more: dict[str, AnnData] | None = None,
    genes: pd.DataFrame | None = None,
) -> Case:
    """Of two files with the same cells, some of which lose one modality; genes: where they are, where the files do not say."""
    both = np.concatenate([tests, paired])
    study = read_study(
        rna=rna[np.sort(np.concatenate([both, rna_alone]))].copy(),
        atac=atac[np.sort(np.concatenate([both, atac_alone]))].copy(),
        genes=genes,
        check_pairing=False,
        **(more or {}),
    )
    names = study.obs.index
    tested = np.sort(names.get_indexer(rna.obs_names[tests]))
    # Where there are no pairs, cells of each modality validate.
    watched = [paired] if len(paired) else [rna_alone, atac_alone]
    rng = np.random.default_rng(seed)
    valid = np.sort(
        np.concatenate(
            [names.get_indexer(rna.obs_names[rng.permutation(some)[: max(len(some) // 5, 2)]]) for some in watched]
        )
    )
    train = np.setdiff1d(np.arange(study.n_cells), np.concatenate([tested, valid]))
    name = f"{len(paired):,} pairs, {len(rna_alone):,} RNA alone, {len(atac_alone):,} ATAC alone, seed {seed}"
    split = Split(name, train.astype(np.int64), valid.astype(np.int64), tested.astype(np.int64))
    return Case(study, split, truth, subset)


def _granja(folder: Path) -> AnnData:
    from expresser.regions import Regions
    from translate.liftover import lift

    atac = anndata.read_h5ad(folder / "atac" / "granja_hemato_atac.h5ad")
    regions, kept, _ = lift(Regions.parse(list(atac.var_names)), folder / "annotation" / "hg19ToHg38.over.chain.gz")
    moved = atac[:, kept].copy()
    moved.var_names = regions.names()
    moved.var = moved.var[[]]
    return _named(moved, "granja")


def _named(adata: AnnData, prefix: str) -> AnnData:
    adata.obs_names = [f"{prefix}-{name}" for name in adata.obs_names]
    return adata


def real_folder() -> Path:
    folder = os.environ.get("EXPRESSER_DATA")
    if not folder or not Path(folder).is_dir():
        raise InputError(f"EXPRESSER_DATA is {folder!r}; it must name the folder of real data sets. Set it.")
    return Path(folder)
