"""Files that stand for a reader's own on pages that say so: simulated cells in the forms in which 10x's pipelines write theirs."""

import gzip
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from expresser.simulate import simulate_cite, simulate_multiome

MATRIX, FRAGMENTS = "filtered_feature_bc_matrix.h5", "atac_fragments.tsv.gz"


def multiome(folder: Path) -> None:
    """Cell Ranger ARC's matrix and fragments of 500 cells of four types, a GTF of their genes, and 200 more cells of RNA alone."""
    made = simulate_multiome(n_cells=700, n_genes=800, n_peaks=2500, n_types=4, rna_depth=1500, atac_depth=200, seed=0)
    paired, alone = _dealt(700, 500)
    write_10x(folder / MATRIX, {"Gene Expression": made.rna[paired], "Peaks": made.atac[paired]})
    write_fragments(folder / FRAGMENTS, made.atac[paired])
    write_gtf(folder / "genes.gtf.gz", made.rna.var)
    made.rna[alone].copy().write_h5ad(folder / "new_rna.h5ad")


def cite(folder: Path) -> None:
    """Cell Ranger's matrix of 500 cells with antibodies, and 200 more cells of RNA alone."""
    made = simulate_cite(n_cells=700, n_genes=800, n_types=4, rna_depth=1500, seed=0)
    both, alone = _dealt(700, 500)
    write_10x(folder / MATRIX, {"Gene Expression": made.rna[both], "Antibody Capture": made.protein[both]})
    made.rna[alone].copy().write_h5ad(folder / "new_rna.h5ad")


def _dealt(cells: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """So many cells at random, and the others: simulated cells lie sorted by type."""
    order = np.random.default_rng(0).permutation(cells)
    return order[:first], order[first:]


def write_10x(path: Path, parts: dict[str, AnnData]) -> None:
    """The form of Cell Ranger 3 and later: one matrix, cells x features, whose rows of features say what they are."""
    names = next(iter(parts.values())).obs_names
    barcodes = [f"{'ACGT'[i % 4]}{i:06d}-1" for i in range(len(names))]
    counts = sparse.hstack([sparse.csr_matrix(part.X) for part in parts.values()], format="csr")
    ids = [name for part in parts.values() for name in part.var_names]
    symbols = [s for part in parts.values() for s in part.var.get("symbol", part.var_names)]
    kinds = [kind for kind, part in parts.items() for _ in range(part.n_vars)]
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["barcodes"] = np.array(barcodes, dtype="S")
        group["data"] = counts.data.astype(np.int32)
        group["indices"], group["indptr"] = counts.indices.astype(np.int64), counts.indptr.astype(np.int64)
        group["shape"] = np.array([len(ids), len(names)], dtype=np.int32)
        features = group.create_group("features")
        for key, values in (("id", ids), ("name", symbols), ("feature_type", kinds), ("genome", ["GRCh38"] * len(ids))):
            features[key] = np.array(values, dtype="S")


def write_fragments(path: Path, atac: AnnData) -> None:
    """One fragment inside the peak for each count, sorted by place."""
    entries = sparse.coo_matrix(atac.X)
    draws = np.random.default_rng(0)
    repeated = np.repeat(np.arange(entries.nnz), entries.data.astype(int))
    peaks, cells = entries.col[repeated], entries.row[repeated]
    start = atac.var["start"].to_numpy()[peaks] + draws.integers(0, 100, len(peaks))
    table = pd.DataFrame({"chrom": atac.var["chrom"].astype(str).to_numpy()[peaks], "start": start, "end": start + 150})
    table["barcode"] = [f"{'ACGT'[i % 4]}{i:06d}-1" for i in cells]
    table["reads"] = 1
    with gzip.open(path, "wt", compresslevel=1) as file:
        table.sort_values(["chrom", "start"]).to_csv(file, sep="\t", header=False, index=False)


def write_gtf(path: Path, var: pd.DataFrame) -> None:
    """A gene annotation of a line a gene."""
    with gzip.open(path, "wt") as file:
        for name, gene in var.iterrows():
            about = f'gene_id "{name}"; gene_type "protein_coding"; gene_name "{gene["symbol"]}";'
            start = int(gene["tss"]) + 1
            print(gene["chrom"], "SIM", "gene", start, start + 1000, ".", "+", ".", about, sep="\t", file=file)
