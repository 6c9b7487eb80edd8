"""``expresser translate count``: fragments counted in the peaks of a BED file, an AnnData or a model."""

from pathlib import Path

from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar


@one_writer_of_out
def count(
    *,
    fragments: Path,
    peaks: str,
    out: Path,
    cells: Path | None = None,
    genome: str | None = None,
    insertions: bool = False,
    totals: bool = True,
    min_fragments: int | None = None,
) -> None:
    """Count the fragments of a file in peaks, so that every sample, and every query of a model, has the same ones.

    Example: expresser translate count --fragments fragments.tsv.gz --peaks runs/babel --out atac.h5ad

    Args:
        fragments: Fragment file (10x, sinto, SnapATAC2), .tsv or .tsv.gz.
        peaks: BED file, .h5ad whose var are peaks, or a fitted model (folder or hub id), whose peaks are taken.
        out: New file, .h5ad: cells x peaks, counts.
        cells: Barcodes to count, in this order: text, one a line, or an .h5ad. Without it, those with --min-fragments.
        genome: Build of the peaks (hg38, hg19, mm10): they are checked against it. Without it, the model's, if it has one.
        insertions: Count each end of a fragment that lies in a peak (as 10x does), not the fragment.
        totals: Count all fragments of each cell too (obs: n_fragments). --no-totals, for --cells: then a file with a .tbi index
            beside it is not read through where peaks are few (with pysam: pip install expresser[fragments]).
        min_fragments: Leave out cells with fewer fragments. Without it, 1000, or 1 with --cells.
    """
    import numpy as np
    from anndata import AnnData

    from expresser.atomic import replaced
    from expresser.record import provenance, storable
    from translate.counting import cells_to_count, peaks_to_count
    from translate.fragments import peaks_from_fragments
    from translate.genomes import check_genome
    from translate.terminal import notes, prove_out

    if out.suffix != ".h5ad":
        raise InputError(f"{out}: counts are written as .h5ad, and the name ends in {out.suffix!r}.")
    if not totals and (cells is None or min_fragments is not None):
        raise InputError("--no-totals counts given cells: add --cells, and leave --min-fragments away.")
    prove_out(out, fragments, *(path for path in (Path(peaks), cells) if path is not None))
    if not fragments.is_file():
        raise InputError(f"{fragments}: there is no such fragment file.")
    with progress_bar("count") as report, notes():
        report(0, None, "reading peaks")
        regions, build = peaks_to_count(peaks)
        if genome is not None or build is not None:
            check_genome(regions, genome or build or "")
        measured = peaks_from_fragments(
            fragments,
            regions,
            cells=None if cells is None else cells_to_count(cells),
            count="insertions" if insertions else "fragments",
            min_fragments=min_fragments,
            totals=totals,
            progress=lambda done, total: report(done, total, "reading fragments"),
        )
        report(0, None, "writing")
        trace = {"fragments": str(fragments), "peaks": peaks, "counted": "insertions" if insertions else "fragments"}
        adata = AnnData(
            X=measured.matrix,
            obs=measured.obs,
            var=measured.var,
            uns={"expresser": trace | {"genome": genome or build or "", "provenance": storable(provenance())}},
        )
        with replaced(out) as part:
            adata.write_h5ad(part, compression="gzip")
    opened = int(np.median(np.diff(measured.matrix.indptr)))
    print(f"{measured.n_cells:,} cells x {measured.n_features:,} peaks, {opened:,} open in the median cell, in {out}")
