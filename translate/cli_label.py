"""``expresser translate label``: cell types of ATAC cells, from labelled RNA of other cells."""

from pathlib import Path
from typing import Any, Literal

from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar


@one_writer_of_out
def label(
    *,
    labels: str,
    out: Path,
    rna: Path | None = None,
    atac: Path | None = None,
    mudata: Path | None = None,
    layer: str | None = None,
    genes: Path | None = None,
    min_confidence: float = 0.5,
    smooth: Literal["none", "neighbours", "clusters"] = "neighbours",
    truth: str | None = None,
    seed: int = 0,
) -> None:
    """Label ATAC cells by labelled RNA of other cells, through the activity of genes (open peaks around each).

    No batch is corrected, and a type that the RNA lacks is not noticed: its cells get the label of the nearest type.

    Example: expresser translate label --rna rna.h5ad --atac atac.h5ad --labels cell_type --out labelled_atac.h5ad

    Args:
        labels: Column of the RNA's obs with cell types.
        out: The ATAC's AnnData with obs[LABELS] (none below --min-confidence) and obs[LABELS_confidence], .h5ad; a column of that
            name that was there is kept as LABELS_before.
        rna: Raw counts of labelled cells: .h5ad, .zarr, 10x .h5 or a 10x folder.
        atac: Counts or 0/1 of peaks of the cells to label, .h5ad, in the genes' genome build.
        mudata: An .h5mu file with both, in place of --rna and --atac.
        layer: Where the raw counts of RNA are: a layer's name or "raw". Without it, X.
        genes: Places of genes where the RNA has none: genes.tsv, a GTF, or a table of ids, chrom and tss.
        min_confidence: Cells below stay without a label.
        smooth: Average probabilities over each cell's nearest, by its peaks, or over its cluster, or not at all.
        truth: Column of the ATAC's obs to compare with. Without it, LABELS, where it is there.
        seed: Of clusters, and of what chance would give.
    """
    import anndata
    import numpy as np

    from expresser.atomic import replaced
    from expresser.record import provenance, storable
    from translate.cli_options import given_pair
    from translate.data import read_one
    from translate.label_scores import label_scores
    from translate.label_transfer import transfer
    from translate.opening import open_mudata
    from translate.terminal import notes, prove_out

    pair = given_pair(rna, atac, mudata, "label")
    for path, kind in ((atac or mudata, ".h5ad" if mudata is None else ".h5mu"), (out, ".h5ad")):
        if path is not None and path.suffix != kind:
            what = "writes the ATAC as" if path is out else "reads the ATAC from"
            raise InputError(f"{path}: label {what} {kind}, and the name ends in {path.suffix!r}.")
    prove_out(out)  # which may be the ATAC: nothing of it is lost
    with progress_bar("label") as report, notes() as doubts:
        report(0, None, "reading")
        adata = anndata.read_h5ad(pair["atac"]) if mudata is None else open_mudata(mudata, only="atac")[0]["atac"]
        if truth is not None and truth not in adata.obs:
            raise InputError(
                f"{pair['atac']}: obs has no column {truth!r} to compare with. It has "
                f"{', '.join(map(str, adata.obs.columns)) or 'none'}."
            )
        report(0, None, "comparing")
        found = transfer(
            read_one(pair["rna"], "rna", layer=layer, genes=genes),
            read_one(pair["atac"], "atac"),
            labels,
            min_confidence=min_confidence,
            smooth=smooth,
            seed=seed,
        )
    compared = truth or (labels if labels in adata.obs else None)
    known = None if compared is None else adata.obs[compared].copy()
    if labels in adata.obs:
        adata.obs[f"{labels}_before"] = adata.obs[labels]
    adata.obs[labels] = found.cells["label"].to_numpy()
    adata.obs[labels] = adata.obs[labels].astype("category")
    adata.obs[f"{labels}_confidence"] = found.cells["confidence"].to_numpy()
    doubt = found.doubt()
    trace = {**found.facts, "types": list(found.types), "genes": found.genes, "agreement": found.agreement}
    trace |= {
        "by_chance": found.by_chance,
        "doubts": [*doubts, *([doubt] if doubt else [])],
        "provenance": storable(provenance(seed=seed)),
    }
    adata.uns["expresser"] = dict(adata.uns.get("expresser", {})) | {f"labels_{labels}": _storable(trace)}
    with replaced(out) as part:
        adata.write_h5ad(part)
    labelled = int(found.cells["label"].notna().sum())
    print(
        f"{labelled:,} of {adata.n_obs:,} cells labelled ({labelled / adata.n_obs:.0%}; the others are below {min_confidence:g}), "
        f"by {found.genes:,} genes; median confidence {np.median(found.cells['confidence']):.2f}"
    )
    for name, count in found.cells["label"].value_counts().items():
        print(f"  {count:>8,}  {name}")
    if doubt:
        print(f"warning: {doubt}")
    if known is not None:
        print(label_scores(found, known).text(str(compared)))
    print(f"labels: {out}: obs['{labels}'], obs['{labels}_confidence']")


def _storable(trace: dict[str, Any]) -> dict[str, Any]:
    """What .h5ad can hold: nothing is absent, lists are of text."""
    return {k: _storable(v) if isinstance(v, dict) else v for k, v in trace.items() if v is not None and v != []}
