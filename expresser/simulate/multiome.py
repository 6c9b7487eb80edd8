"""Simulated RNA and open chromatin of the same cells, with known states, peak-gene links and rates."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Float32
from scipy import sparse

from expresser.atomic import replaced_together
from expresser.errors import InputError
from expresser.simulate.accessibility import CEILING, AccessibilityLaw, true_openness
from expresser.simulate.draws import stream
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
from expresser.simulate.genome import AUTOSOMES, KINDS, MAX_FEATURES, MadeGenome, make_genome
from expresser.simulate.paired import check_paired, draw_paired
from expresser.simulate.states import StateLaw


@dataclass(frozen=True, eq=False)
class Multiome:
    """RNA and ATAC of the same cells, and the truth behind them, worked out a block at a time from what they hold.

    The truth travels in the two AnnData, cell by cell and feature by feature: cells and features may be taken out or
    put in another order, the same cells in both, before `from_anndata`.
    """

    rna: AnnData
    atac: AnnData

    @classmethod
    def from_anndata(cls, rna: AnnData, atac: AnnData) -> "Multiome":
        """InputError where the truth is missing or the cells differ."""
        check_truth(rna, rna=True, where="RNA")
        check_truth(atac, rna=False, where="ATAC")
        check_same_cells(rna, atac, "multiome")
        return cls(rna, atac)

    @classmethod
    def from_files(cls, rna: Path, atac: Path) -> "Multiome":
        """From the two .h5ad files that `write` made."""
        return cls.from_anndata(anndata.read_h5ad(rna), anndata.read_h5ad(atac))

    def write(self, folder: Path) -> None:
        """rna.h5ad and atac.h5ad, which belong together."""
        with replaced_together(folder, last="rna.h5ad") as part:
            for name, adata in (("rna", self.rna), ("atac", self.atac)):
                adata.write_h5ad(part / f"{name}.h5ad")

    @property
    def links(self) -> pd.DataFrame:
        """All links: peak, gene (id), kind, distance (bp from TSS to the peak's middle), effect (see `simulate_multiome`)."""
        return self.atac.uns["links"]

    def true_rna(self, cells: Index, genes: Index) -> Float32[np.ndarray, "cells genes"]:
        """Expected share of a cell's counts (of all genes simulated) that each gene has, ambient included."""
        return true_proportions(self.rna, cells, genes)

    def true_atac(self, cells: Index, peaks: Index, *, own_depth: bool = False) -> Float32[np.ndarray, "cells peaks"]:
        """Probability that a peak is open (counted at all) at median depth; `own_depth`: at the cell's own."""
        return true_openness(self.atac, cells, peaks, own_depth=own_depth)


def simulate_multiome(
    *,
    n_cells: int = 2000,
    n_genes: int = 3000,
    n_peaks: int = 20_000,
    n_types: int = 10,
    n_programs: int = 8,
    n_batches: int = 1,
    donors_per_batch: int = 1,
    rna_depth: float | int | None = None,
    rna_depth_sd: float | int = 0.5,
    atac_depth: float | int | None = None,
    atac_depth_sd: float | int = 0.6,
    links_per_gene: float | int = 3.0,
    type_strength: float | int = 1.0,
    program_strength: float | int = 1.0,
    nonlinearity: float | int = 0.5,
    constant_share: float | int = 0.2,
    batch_sd: float | int = 0.1,
    donor_sd: float | int = 0.05,
    batch_depth_sd: float | int = 0.2,
    ambient: float | int = 0.02,
    dispersion: float | int = 1.0,
    dropout: float | int = 0.0,
    binary: bool = False,
    genome: str = "hg38",
    seed: int = 0,
) -> Multiome:
    r"""Raw counts of RNA and ATAC of the same cells with the truth that made them; a seed fixes everything.

    A cell has a type (unequal frequencies, from 1 to 0.15) and an activity of each continuous program, which varies in
    every type; genes and peaks answer both (`expresser.simulate.states`). A gene has a promoter peak over its TSS and
    enhancers within 100 kb, whose log odds of being open move with the gene's log rate; the other peaks have effects of
    their own, and a part of them none. The first cells do not depend on `n_cells`. Nothing of size cells x features is
    ever dense: 2,000 cells x 34,861 genes x 223,897 peaks take 11 s of one core and 1 GB.

    Strengths and depths are chosen for their difficulty, not fitted to a sample: at the default size, held-out cells,
    the training mean, ridge regression on 15 components and the true rates score 0, 0.23 and 0.33 in per-gene r, and
    0.50, 0.64 and 0.70 in per-peak AUROC (peaks open in at most a tenth of the cells).

    Parameters
    ----------
    n_cells, n_genes, n_peaks, n_types, n_programs, n_batches, donors_per_batch
        How many.
    rna_depth, rna_depth_sd
        Expected counts of a median cell (None: one to every three genes); standard deviation of the natural log of depth (a
        fifth of its variance lies between types).
    atac_depth, atac_depth_sd
        The same of fragments in peaks, in a cell of average state (None: one to every 25 peaks). The logs of a cell's two
        depths correlate at 0.4.
    links_per_gene
        Mean number of enhancers of a gene. Where peaks are too few, a part of the genes has none at all.
    type_strength, program_strength
        Multiply the effects of types and of programs; 0 turns them off.
    nonlinearity
        0 (log rates are linear in types and activities) to 1 (programs work through gates, bumps and switches alone, and rates
        of peaks saturate).
    constant_share
        Share of the peaks without a gene that nothing but depth, batch and donor moves.
    batch_sd, donor_sd
        Standard deviation over features of the log effect of a batch, of a donor within its batch.
    batch_depth_sd
        Standard deviation of the shift of a batch's log depth, of each modality.
    ambient
        Share of a cell's expected counts that comes from the mean profile, of both modalities.
    dispersion
        Multiplies the gene-wise variance over mean squared (0: RNA counts are Poisson).
    dropout
        Share of the RNA's non-zero counts that is lost at random.
    binary
        ATAC holds 1 for an open peak; otherwise cut sites, one or mostly two a fragment.
    genome
        Where positions lie: "hg38", autosomes.
    seed
        Not negative.

    Returns
    -------
    Multiome
        Of both AnnData, X: CSR float32 whole counts; obs: `cell_type`, `batch`, `donor`, `depth` (expected counts; expected
        fragments in a cell of average state); obsm `truth_factors` (`uns["simulation"]["factors"]` names them),
        `program_activity`; varm `truth_loadings`, var `truth_offset`: log rate = factors . loadings + offset; var `mean`: of
        counts or fragments at median depth. uns `simulation`: the arguments. rna.var: `symbol`, `gene_ids`, `chrom`, `tss` in
        order of position, ids of a reserved range. atac.var: "chr1:100-600" with `chrom`, `start`, `end`, `kind` (promoter,
        enhancer, other), `constant`. atac.uns `links`: peak, gene, kind, distance, effect: the log fold of the peak per log
        fold of its gene, before the peak saturates.

    Raises
    ------
    InputError
        A number outside its range, or an unknown genome.
    """
    args: dict[str, Any] = dict(locals())
    if genome not in AUTOSOMES:
        raise InputError(f"simulate_multiome: genome is {genome!r}; there is {', '.join(AUTOSOMES)}. Pass one of them.")
    args["rna_depth"] = float(max(1.0, n_genes / 3) if rna_depth is None else rna_depth)
    args["atac_depth"] = float(n_peaks / 25 if atac_depth is None else atac_depth)
    own = {"n_peaks": (1, MAX_FEATURES - n_genes), "atac_depth": (1e-3, CEILING * n_peaks / 2)}
    shares = {"atac_depth_sd": (0, 3), "links_per_gene": (0, 30), "constant_share": (0, 1)}
    check_paired("simulate_multiome", args, {**own, **shares})

    made = make_genome(
        stream(args, "genome"), genome=genome, n_genes=n_genes, n_peaks=n_peaks, links_per_gene=links_per_gene
    )
    law = StateLaw.draw(args)
    genes = ExpressionLaw.draw(args, law)
    peaks = AccessibilityLaw.draw(args, law, genes.answers, made)
    rna, counts, cells, depth = draw_paired(
        args, law, genes, lambda rng, cells, depth: peaks.counts(args, rng, cells, depth), depth_sd=atac_depth_sd
    )
    rna.var.insert(2, "chrom", np.array(made.chroms, object)[made.gene_chrom])
    rna.var.insert(3, "tss", made.tss)
    var = made.peaks_table().assign(constant=peaks.constant, mean=peaks.base, **{OFFSET: peaks.offset})
    obs = rna.obs[["cell_type", "batch", "donor"]].assign(depth=depth * args["atac_depth"])
    atac = AnnData(
        X=sparse.vstack(counts, format="csr")[:n_cells],
        obs=obs,
        var=var,
        obsm={FACTORS: cells.factors, "program_activity": cells.activity},
        varm={LOADINGS: peaks.loading},
        uns={"simulation": rna.uns["simulation"], "links": _links(made, peaks, rna.var_names, var.index)},
    )
    return Multiome(rna, atac)


def _links(genome: MadeGenome, peaks: AccessibilityLaw, genes: pd.Index, names: pd.Index) -> pd.DataFrame:
    linked = np.flatnonzero(genome.gene_of >= 0)
    return pd.DataFrame(
        {
            "peak": names.to_numpy()[linked],
            "gene": genes.to_numpy()[genome.gene_of[linked]],
            "kind": pd.Categorical.from_codes(genome.kind[linked], categories=list(KINDS)),
            "distance": genome.distance()[linked],
            "effect": peaks.effect[linked],
        },
        index=[f"link{i}" for i in range(len(linked))],
    )
