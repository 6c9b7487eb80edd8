"""Simulated RNA and surface proteins (antibody counts) of the same cells, with known states, genes and levels."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import pandas as pd
from anndata import AnnData
from jaxtyping import Float32
from numpy import ndarray
from scipy import sparse

from expresser.atomic import replaced_together
from expresser.simulate.expression import (
    FACTORS,
    LOADINGS,
    OFFSET,
    ExpressionLaw,
    Index,
    check_same_cells,
    check_truth,
    true_proportions,
)
from expresser.simulate.paired import check_paired, draw_paired
from expresser.simulate.proteins import ProteinLaw, true_counts
from expresser.simulate.states import StateLaw


@dataclass(frozen=True, eq=False)
class Cite:
    """RNA and proteins of the same cells, and the truth behind them: see `Multiome`, whose form it has."""

    rna: AnnData
    protein: AnnData

    @classmethod
    def from_anndata(cls, rna: AnnData, protein: AnnData) -> "Cite":
        """InputError where the truth is missing or the cells differ."""
        check_truth(rna, rna=True, where="RNA")
        check_truth(protein, rna=False, where="protein")
        check_same_cells(rna, protein, "CITE")
        return cls(rna, protein)

    @classmethod
    def from_files(cls, rna: Path, protein: Path) -> "Cite":
        """From the two .h5ad files that `write` made."""
        return cls.from_anndata(anndata.read_h5ad(rna), anndata.read_h5ad(protein))

    def write(self, folder: Path) -> None:
        """rna.h5ad and protein.h5ad, which belong together."""
        with replaced_together(folder, last="rna.h5ad") as part:
            for name, adata in (("rna", self.rna), ("protein", self.protein)):
                adata.write_h5ad(part / f"{name}.h5ad")

    def true_rna(self, cells: Index, genes: Index) -> Float32[ndarray, "cells genes"]:
        """Expected share of a cell's counts (of all genes simulated) that each gene has, ambient included."""
        return true_proportions(self.rna, cells, genes)

    def true_protein(
        self, cells: Index, proteins: Index, *, own_depth: bool = False
    ) -> Float32[ndarray, "cells proteins"]:
        """Expected counts, average background included, at median depth; `own_depth`: at the cell's own."""
        return true_counts(self.protein, cells, proteins, own_depth=own_depth)


def simulate_cite(
    *,
    n_cells: int = 2000,
    n_genes: int = 3000,
    n_proteins: int = 25,
    n_types: int = 10,
    n_programs: int = 8,
    n_batches: int = 1,
    donors_per_batch: int = 1,
    rna_depth: float | int | None = None,
    rna_depth_sd: float | int = 0.5,
    protein_depth: float | int = 3000.0,
    protein_depth_sd: float | int = 0.45,
    background: float | int = 0.08,
    type_strength: float | int = 1.0,
    program_strength: float | int = 1.0,
    nonlinearity: float | int = 0.5,
    batch_sd: float | int = 0.1,
    donor_sd: float | int = 0.05,
    batch_depth_sd: float | int = 0.2,
    ambient: float | int = 0.02,
    dispersion: float | int = 1.0,
    dropout: float | int = 0.0,
    seed: int = 0,
) -> Cite:
    """Raw counts of RNA and of antibodies on the same cells with the truth that made them; a seed fixes everything.

    Cell states and RNA are those of `simulate_multiome`: with the same arguments and seed the very same counts, so that
    the two together are cells measured three times. Proteins belong to genes that are seen and tell states apart.

    Parameters
    ----------
    n_cells, n_genes, n_proteins, n_types, n_programs, n_batches, donors_per_batch
        How many.
    protein_depth, protein_depth_sd
        Expected antibody counts of a median cell in an average state; standard deviation of the natural log of depth (both as
        29 antibodies on PBMC have them).
    background
        Share of those counts that is unbound antibody, seen on every cell.
    dispersion
        Multiplies the variance over mean squared that nothing explains, of genes and of proteins.
    rna_depth, rna_depth_sd, type_strength, program_strength, nonlinearity, batch_sd, donor_sd, batch_depth_sd, ambient, dropout, seed
        As in `simulate_multiome`; `ambient` and `dropout` are the RNA's alone.

    Returns
    -------
    Cite
        rna as in `simulate_multiome`, without positions. protein.X: CSR float32 whole counts; var: `gene` (id) and `symbol` of
        the protein's gene, `mean` (bound) and `background` counts at median depth; obs and truth as in `simulate_multiome`.

    Raises
    ------
    InputError
        A number outside its range.
    """
    args: dict[str, Any] = dict(locals())
    args["rna_depth"] = float(max(1.0, n_genes / 3) if rna_depth is None else rna_depth)
    own = {"n_proteins": (1, n_genes), "protein_depth": (1, 1e7), "protein_depth_sd": (0, 3), "background": (0, 0.95)}
    check_paired("simulate_cite", args, own)
    law = StateLaw.draw(args)
    genes = ExpressionLaw.draw(args, law)
    proteins = ProteinLaw.draw(args, law, genes)
    rna, counts, cells, depth = draw_paired(
        args, law, genes, lambda rng, cells, depth: proteins.counts(args, rng, cells, depth), depth_sd=protein_depth_sd
    )
    of_gene = rna.var.iloc[proteins.gene]
    columns = {"gene": of_gene.index.to_numpy(), "symbol": of_gene["symbol"].to_numpy(), "mean": proteins.mean}
    var = pd.DataFrame(
        {**columns, "background": proteins.background, OFFSET: proteins.offset},
        index=[f"antibody{p:03d}" for p in range(n_proteins)],
    )
    protein = AnnData(
        X=sparse.vstack(counts, format="csr")[:n_cells],
        obs=rna.obs[["cell_type", "batch", "donor"]].assign(depth=depth * args["protein_depth"]),
        var=var,
        obsm={FACTORS: cells.factors, "program_activity": cells.activity},
        varm={LOADINGS: proteins.loading},
        uns={"simulation": rna.uns["simulation"]},
    )
    return Cite(rna, protein)
