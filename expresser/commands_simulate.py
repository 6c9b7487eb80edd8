"""``expresser simulate rna|multiome|cite|atac``. Heavy imports wait until a command runs."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import tyro

from expresser.cli import Command
from expresser.one_writer import one_writer_of_out


@one_writer_of_out
def simulate_rna_command(
    *,
    out: Path,
    cells: int = 2000,
    genes: int = 4000,
    types: int = 8,
    modules: int = 20,
    batches: int = 2,
    median_depth: float = 2200.0,
    seed: int = 0,
) -> None:
    """Simulate scRNA-seq with known cell types, gene modules, batches and depth.

    Beside the cells: pairs.tsv (gene1, gene2, label: interactions inside modules) and properties.tsv (gene, symbol,
    binary, value, cds_length, class), gene labels that follow the modules, as the gene tasks of `finetune` read them.

    Example: expresser simulate rna --cells 5000 --out simulated

    Args:
        out: Folder for rna.h5ad (counts, and the truth in obs, var, obsm and varm), pairs.tsv and properties.tsv.
        cells: Number of cells.
        genes: Number of genes.
        types: Number of cell types.
        modules: Number of gene modules; with fewer than two there are no gene labels.
        batches: Number of batches.
        median_depth: Median counts a cell.
        seed: One seed, one data set.
    """
    from expresser.atomic import replaced_together
    from expresser.record import leave_record
    from expresser.simulate import simulate_gene_labels, simulate_rna

    adata = simulate_rna(
        n_cells=cells,
        n_genes=genes,
        n_types=types,
        n_modules=modules,
        n_batches=batches,
        median_depth=median_depth,
        seed=seed,
    )
    labels = simulate_gene_labels(adata, seed=seed) if modules > 1 else None
    with replaced_together(out, last="rna.h5ad") as part:
        adata.write_h5ad(part / "rna.h5ad")
        if labels is not None:
            labels.write(part)
        leave_record(out, "simulate rna", seed=seed, part=part)
    print(f"{adata.n_obs:,} cells x {adata.n_vars:,} genes in {out / 'rna.h5ad'}")
    if labels is None:
        print(f"no gene labels: they follow the differences between modules, and there are {modules}")
        return
    print(
        f"{len(labels.pairs):,} labelled pairs of genes in {out / 'pairs.tsv'}, properties of {len(labels.properties):,} genes in "
        f"{out / 'properties.tsv'}"
    )


@one_writer_of_out
def simulate_multiome_command(
    *,
    out: Path,
    cells: int = 2000,
    alone: int = 0,
    genes: int = 3000,
    peaks: int = 20_000,
    types: int = 10,
    programs: int = 8,
    batches: int = 1,
    donors_per_batch: int = 1,
    rna_depth: float | None = None,
    atac_depth: float | None = None,
    nonlinearity: float = 0.5,
    binary: bool = False,
    seed: int = 0,
) -> None:
    """Simulate RNA and open chromatin of the same cells, with known states, rates and peak-gene links.

    Example: expresser simulate multiome --cells 5000 --out simulated
    Example: expresser simulate multiome --cells 500 --alone 2000 --out simulated

    Args:
        out: Folder for rna.h5ad and atac.h5ad (counts, and the truth in obs, var, obsm, varm and uns).
        cells: Number of cells that have both.
        alone: Number of cells more that have RNA alone (rna_only.h5ad), and as many others ATAC alone (atac_only.h5ad).
        genes: Number of genes.
        peaks: Number of peaks.
        types: Number of cell types.
        programs: Number of continuous programs.
        batches: Number of batches.
        donors_per_batch: Number of donors in each.
        rna_depth: Median RNA counts a cell. Without it, a third of the number of genes.
        atac_depth: Median fragments a cell. Without it, one to every 25 peaks.
        nonlinearity: 0, log rates are linear in the cells' states, to 1.
        binary: 1 for an open peak, no counts of cut sites.
        seed: One seed, one data set.
    """
    from expresser.atomic import replaced_together
    from expresser.errors import InputError
    from expresser.record import leave_record
    from expresser.simulate import Multiome, simulate_multiome

    if alone < 0:
        raise InputError(f"--alone is {alone}: give a number of cells, 0 for none.")
    made = simulate_multiome(
        n_cells=cells + 2 * alone,
        n_genes=genes,
        n_peaks=peaks,
        n_types=types,
        n_programs=programs,
        n_batches=batches,
        donors_per_batch=donors_per_batch,
        rna_depth=rna_depth,
        atac_depth=atac_depth,
        nonlinearity=nonlinearity,
        binary=binary,
        seed=seed,
    )
    single = (("rna_only", made.rna, cells), ("atac_only", made.atac, cells + alone)) if alone else ()
    with replaced_together(out, last="rna.h5ad") as part:
        Multiome(made.rna[:cells].copy(), made.atac[:cells].copy()).write(part)
        for name, adata, first in single:
            adata[first : first + alone].copy().write_h5ad(part / f"{name}.h5ad")
        leave_record(out, "simulate multiome", seed=seed, part=part)
    print(f"{cells:,} cells x {genes:,} genes in {out / 'rna.h5ad'}, x {peaks:,} peaks in {out / 'atac.h5ad'}")
    for name, _, _ in single:
        print(f"{alone:,} cells more in {out / f'{name}.h5ad'}")


@one_writer_of_out
def simulate_cite_command(
    *,
    out: Path,
    cells: int = 2000,
    genes: int = 3000,
    proteins: int = 25,
    types: int = 10,
    programs: int = 8,
    batches: int = 1,
    donors_per_batch: int = 1,
    rna_depth: float | None = None,
    protein_depth: float = 3000.0,
    nonlinearity: float = 0.5,
    seed: int = 0,
) -> None:
    """Simulate RNA and surface proteins of the same cells, with known states and levels.

    The same seed and numbers as for `multiome` give the same RNA: together, cells measured three times.

    Example: expresser simulate cite --cells 5000 --out simulated

    Args:
        out: Folder for rna.h5ad and protein.h5ad (counts, and the truth in obs, var, obsm and varm).
        cells: Number of cells.
        genes: Number of genes.
        proteins: Number of proteins.
        types: Number of cell types.
        programs: Number of continuous programs.
        batches: Number of batches.
        donors_per_batch: Number of donors in each.
        rna_depth: Median RNA counts a cell. Without it, a third of the number of genes.
        protein_depth: Median antibody counts a cell.
        nonlinearity: 0, log rates are linear in the cells' states, to 1.
        seed: One seed, one data set.
    """
    from expresser.atomic import replaced_together
    from expresser.record import leave_record
    from expresser.simulate import simulate_cite

    made = simulate_cite(
        n_cells=cells,
        n_genes=genes,
        n_proteins=proteins,
        n_types=types,
        n_programs=programs,
        n_batches=batches,
        donors_per_batch=donors_per_batch,
        rna_depth=rna_depth,
        protein_depth=protein_depth,
        nonlinearity=nonlinearity,
        seed=seed,
    )
    with replaced_together(out, last="rna.h5ad") as part:
        made.write(part)
        leave_record(out, "simulate cite", seed=seed, part=part)
    where = f"{out / 'rna.h5ad'}, x {proteins:,} proteins in {out / 'protein.h5ad'}"
    print(f"{cells:,} cells x {genes:,} genes in {where}")


@one_writer_of_out
def simulate_atac_command(
    *,
    out: Path,
    design: Literal["sim1", "sim2", "sim3"] = "sim1",
    cells: int = 10_000,
    regions: int = 30_000,
    sigma: float = 1.5,
    depth: float | None = None,
    min_fragments: float = 1000.0,
    max_fragments: float = 20_000.0,
    flips: float = 0.1,
    twin_flips: float = 0.05,
    bulk: Path | None = None,
    types: tuple[str, ...] = (),
    seed: int = 0,
) -> None:
    """Simulate scATAC from bulk profiles, as SCAN-ATAC-Sim samples it, in the three designs that SAILER was judged on.

    sim1: five types, one of them rare (1 %) and the near-twin of another; sim2: nine types, shallow, two near-twins;
    sim3: two batches of unlike depth and noise, each with a rare type of its own.

    Example: expresser simulate atac --design sim3 --out simulated

    Args:
        out: Folder for atac.h5ad (fragments; cell_type, batch and depth in obs, the bulk profiles in varm).
        design: Types, batches, median fragments and share of them in peaks.
        cells: Number of cells.
        regions: Number of regions, where no bulk file brings its own.
        sigma: Standard deviation of the natural log of a cell's fragments, before the limits.
        depth: Multiplies the design's fragments and both limits. Without it, the share of 30,000 regions that is asked for.
        min_fragments: Fragments that a cell has at least.
        max_fragments: Fragments that a cell has at most.
        flips: Share of the shared peaks that each type replaces by others.
        twin_flips: Share in which the near-twins differ.
        bulk: Table of bulk signal instead of a simulated one: regions (chr1:1000-1500) x types, .tsv, .csv or .parquet.
        types: Columns of that table that are the design's types, in its order. Without them, the first ones.
        seed: One seed, one data set.
    """
    from expresser.atomic import replaced_together
    from expresser.record import leave_record
    from expresser.simulate import simulate_scan_atac

    adata = simulate_scan_atac(
        design,
        n_cells=cells,
        n_regions=regions,
        sigma=sigma,
        depth=depth,
        fewest=min_fragments,
        most=max_fragments,
        flips=flips,
        twin_flips=twin_flips,
        bulk=bulk,
        types=types,
        seed=seed,
    )
    with replaced_together(out, last="atac.h5ad") as part:
        adata.write_h5ad(part / "atac.h5ad")
        leave_record(out, "simulate atac", seed=seed, part=part)
    numbers = ", ".join(f"{name} {n:,}" for name, n in adata.obs["cell_type"].value_counts(sort=False).items())
    print(f"{adata.n_obs:,} cells x {adata.n_vars:,} regions in {out / 'atac.h5ad'}: {numbers}")


def _run(argv: Sequence[str]) -> None:
    verbs: dict[str, Callable[..., None]] = {
        "rna": simulate_rna_command,
        "multiome": simulate_multiome_command,
        "cite": simulate_cite_command,
        "atac": simulate_atac_command,
    }
    tyro.extras.subcommand_cli_from_dict(
        verbs, prog="expresser simulate", description=SIMULATE.help, args=list(argv), sort_subcommands=True
    )


SIMULATE: Command = Command(
    name="simulate",
    summary="Simulate data whose truth is known.",
    example="expresser simulate multiome --cells 5000 --out simulated",
    run=_run,
)
