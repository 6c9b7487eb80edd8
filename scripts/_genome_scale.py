"""Cells of the size of a human genome and without structure, for measuring time and memory: sparse from the start."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from translate.genomes import CHROM_SIZES
from translate.study import Measured, Study

_AUTOSOMES = [f"chr{number}" for number in range(1, 23)]
_LENGTH = 500  # bases of a peak
BLOCK = 4096  # cells drawn at once


def random_counts(n_cells: int, n_features: int, density: float, seed: int, *, binary: bool) -> sparse.csr_matrix:
    """Each entry non-zero by itself; values 1, or geometric from 1. 64 cells are drawn at a time."""
    rng = np.random.default_rng(seed)
    parts = []
    for start in range(0, n_cells, 64):
        shape = (min(64, n_cells - start), n_features)
        rows, columns = np.nonzero(rng.random(shape, dtype=np.float32) < density)
        values = np.ones(len(rows)) if binary else rng.geometric(0.6, len(rows))
        parts.append(sparse.csr_matrix((values.astype(np.float32), (rows, columns.astype(np.int32))), shape=shape))
    return sparse.vstack(parts, format="csr")


def drawn(n_cells: int, n_features: int, mean: float, seed: int, *, counts: bool) -> sparse.csr_matrix:
    """Each entry non-zero by itself, `mean` of them a cell, as float32: by the gaps between them, in order, without sorting."""
    rng = np.random.default_rng(seed)
    share, parts = mean / n_features, []
    for start in range(0, n_cells, BLOCK):
        size = min(BLOCK, n_cells - start) * n_features
        gaps = rng.geometric(share, int(size * share + 10 * np.sqrt(size * share) + 10))
        at = np.cumsum(gaps) - 1
        parts.append(at[at < size])
    sizes = [min(BLOCK, n_cells - start) for start in range(0, n_cells, BLOCK)]
    rows = np.concatenate([np.bincount(part // n_features, minlength=n) for part, n in zip(parts, sizes)])
    indices = np.empty(int(rows.sum()), np.int32)
    filled = 0
    for number, part in enumerate(parts):
        indices[filled : filled + len(part)] = part % n_features
        filled += len(part)
        parts[number] = part[:0]  # its memory is needed
    values = np.ones(len(indices), np.float32)
    if counts:
        values += rng.poisson(0.6, len(indices)).astype(np.float32)
    return sparse.csr_matrix((values, indices, np.concatenate([[0], np.cumsum(rows)])), shape=(n_cells, n_features))


def peaks(n: int) -> pd.DataFrame:
    """Peaks of 500 bases spread evenly over the 22 autosomes of hg38, as many on each as its length asks for."""
    lengths = np.array([CHROM_SIZES["hg38"][chrom] for chrom in _AUTOSOMES])
    counts = np.diff(np.round(np.cumsum([0, *lengths]) / lengths.sum() * n).astype(int))
    chrom = np.repeat(_AUTOSOMES, counts)
    start = np.concatenate([np.arange(k) * ((length - 20_000) // k) + 10_000 for k, length in zip(counts, lengths)])
    names = pd.Index([f"{c}:{a}-{a + _LENGTH}" for c, a in zip(chrom, start)], dtype=object)
    return pd.DataFrame({"chrom": chrom, "start": start, "end": start + _LENGTH}, index=names)


def genes(n: int) -> pd.DataFrame:
    """Genes dealt out to the autosomes."""
    names = [f"gene{number}" for number in range(n)]
    chrom = [_AUTOSOMES[number % len(_AUTOSOMES)] for number in range(n)]
    return pd.DataFrame(
        {"ensembl_id": "", "symbol": names, "chrom": chrom, "tss": -1}, index=pd.Index(names, dtype=object)
    )


def cell_names(n: int) -> pd.DataFrame:
    """An obs without columns."""
    return pd.DataFrame(index=pd.Index([f"cell{number}" for number in range(n)], dtype=object))


def rna(n_cells: int, n_genes: int, density: float, *, seed: int = 0) -> Measured:
    """Counts of genes."""
    matrix = random_counts(n_cells, n_genes, density, seed, binary=False)
    return Measured(matrix, genes(n_genes), cell_names(n_cells), "RNA")


def atac(n_cells: int, n_peaks: int, density: float, *, seed: int = 1) -> Measured:
    """Open peaks."""
    matrix = random_counts(n_cells, n_peaks, density, seed, binary=True)
    return Measured(matrix, peaks(n_peaks), cell_names(n_cells), "ATAC")


def study(n_cells: int, n_genes: int, n_peaks: int, rna_density: float, density: float) -> Study:
    """Both of the same cells."""
    measured = {"rna": rna(n_cells, n_genes, rna_density), "atac": atac(n_cells, n_peaks, density)}
    return Study(cell_names(n_cells), measured, {name: np.arange(n_cells) for name in measured})


def write(measured: Measured, path: Path) -> Path:
    """As .h5ad."""
    ad.AnnData(X=measured.matrix, obs=measured.obs, var=measured.var).write_h5ad(path)
    return path
