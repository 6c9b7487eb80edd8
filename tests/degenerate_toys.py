"""Data at the edge of what there can be: one gene, one type, nothing open, a million counts of one gene."""

from collections.abc import Callable

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from translate.study import Modality

CELLS, GENES, PEAKS = 60, 24, 32
Counts = dict[Modality, np.ndarray]


def ordinary(seed: int = 0) -> Counts:
    """Counts that answer one factor."""
    rng = np.random.default_rng(seed)
    factor = rng.integers(0, 2, (CELLS, 1)) * 2 - 1.0

    def draw(n: int, low: float, high: float) -> np.ndarray:
        return rng.poisson(np.exp(factor * rng.normal(0, 0.7, (1, n)) + rng.uniform(low, high, (1, n)))).astype(
            np.float32
        )

    return {"rna": draw(GENES, 0.0, 1.5), "atac": draw(PEAKS, -1.5, 0.5), "protein": draw(5, 1.0, 3.0)}


def one_gene_a_cell(made: Counts) -> None:
    keep = np.arange(CELLS) % GENES
    made["rna"] = np.where(np.arange(GENES) == keep[:, None], 3.0, 0.0).astype(np.float32)


def genes_in_one_cell(made: Counts) -> None:
    half = GENES // 2
    made["rna"][:, half:] = 0
    made["rna"][np.arange(half), np.arange(half, GENES)] = 2.0


def peaks_in_one_cell(made: Counts) -> None:
    half = PEAKS // 2
    made["atac"][:, half:] = 0
    made["atac"][np.arange(half), np.arange(half, PEAKS)] = 1.0


def closed_peaks(made: Counts) -> None:
    made["atac"][:, ::2] = 0


def nothing_open(made: Counts) -> None:
    made["atac"][:] = 0


def everything_open(made: Counts) -> None:
    made["atac"][:] = 1


def empty_rna_cells(made: Counts) -> None:
    made["rna"][::3] = 0


def empty_atac_cells(made: Counts) -> None:
    made["atac"][np.arange(CELLS) % 3 > 0] = 0


def test_cells_are_empty(made: Counts) -> None:
    made["atac"][-10:] = 0
    made["rna"][-10:] = 0


def depth_of_a_thousand(made: Counts) -> None:
    made["rna"] = np.round(made["rna"] * np.geomspace(1, 1000, CELLS)[:, None]).astype(np.float32)
    made["atac"][::2, 2:] = 0


def a_million_counts(made: Counts) -> None:
    made["rna"][5:10, 0] = 1e6
    made["atac"][5:10, 0] = 1e6
    made["protein"][5:10, 0] = 1e6


def identical_cells(made: Counts) -> None:
    for name in made:
        made[name][:] = made[name][0]
    made["atac"][:, ::2] = 1


def one_depth(made: Counts) -> None:
    """Where training cells are; others are as deep as they were."""
    made["atac"][:40] = (np.arange(PEAKS)[None] + np.arange(40)[:, None]) % 2
    made["rna"][:40] = np.sort(made["rna"][:1], axis=1)


def one_gene(made: Counts) -> None:
    made["rna"] = made["rna"][:, :1] + 1


def one_peak(made: Counts) -> None:
    made["atac"] = (np.arange(CELLS)[:, None] % 2).astype(np.float32)


def one_protein(made: Counts) -> None:
    made["protein"] = made["protein"][:, :1]


def nothing(made: Counts) -> None:
    """As it is: what is odd of it is in the arguments of `measured`."""


SETS: dict[str, Callable[[Counts], None]] = {
    "ordinary": nothing,
    "one gene a cell": one_gene_a_cell,
    "genes in one cell": genes_in_one_cell,
    "peaks in one cell": peaks_in_one_cell,
    "closed peaks": closed_peaks,
    "nothing open": nothing_open,
    "everything open": everything_open,
    "empty RNA cells": empty_rna_cells,
    "empty ATAC cells": empty_atac_cells,
    "test cells are empty": test_cells_are_empty,
    "depths of 1 to 1,000": depth_of_a_thousand,
    "a million counts": a_million_counts,
    "identical cells": identical_cells,
    "one depth": one_depth,
    "one gene": one_gene,
    "one peak": one_peak,
    "one protein": one_protein,
    "one chromosome": nothing,
    "one batch": nothing,
    "one type": nothing,
    "a batch of its own for each cell": nothing,
}


def degenerate(name: str) -> dict[Modality, ad.AnnData]:
    """The set of this name, measured in three modalities; obs has a batch and a kind."""
    made = ordinary()
    SETS[name](made)
    chroms = ["chr1"] if name == "one chromosome" else ["chr1", "chr2", "chr9"]
    cells = [f"cell{i:03}" for i in range(CELLS)]
    kind = np.full(CELLS, "a") if name == "one type" else np.array(["a", "b"])[np.arange(CELLS) % 2]
    batch = np.array(["one", "two"])[np.arange(CELLS) // 3 % 2]
    if name == "one batch":
        batch = np.full(CELLS, "one")
    elif name.startswith("a batch of its own"):
        batch = np.array(cells)
    obs = pd.DataFrame({"kind": kind, "batch": batch}, index=cells)
    n_genes, n_peaks, n_proteins = (made[m].shape[1] for m in ("rna", "atac", "protein"))
    genes = pd.DataFrame(
        {
            "gene_ids": [f"ENSG{i:011}" for i in range(n_genes)],
            "chrom": [chroms[i % len(chroms)] for i in range(n_genes)],
            "tss": np.arange(n_genes) * 1000,
        },
        index=[f"GENE{i:03}" for i in range(n_genes)],
    )
    where = np.sort(np.arange(n_peaks) % len(chroms))
    peaks = pd.DataFrame(index=[f"{chroms[c]}:{1000 * i}-{1000 * i + 500}" for i, c in enumerate(where)])
    var = {"rna": genes, "atac": peaks, "protein": pd.DataFrame(index=[f"CD{i}" for i in range(n_proteins)])}
    return {m: ad.AnnData(sparse.csr_matrix(made[m]), obs=obs.copy(), var=var[m]) for m in ("rna", "atac", "protein")}
