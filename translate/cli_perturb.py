"""``expresser translate perturb``: what drives a model's predictions, and what it predicts for cells that were changed."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import tyro

from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar

Model = Annotated[str, tyro.conf.Positional]


@one_writer_of_out
def perturb(
    model: Model,
    *,
    out: Path,
    input: Path | None = None,
    mudata: Path | None = None,
    gene: tuple[str, ...] = (),
    peak: tuple[str, ...] = (),
    close: tuple[str, ...] = (),
    open: tuple[str, ...] = (),
    knock_down: tuple[str, ...] = (),
    over_express: tuple[str, ...] = (),
    paired: Path | None = None,
    cell_type: str | None = None,
    labels: str | None = None,
    cells: int = 500,
    top: int = 50,
    baseline: Literal["zero", "mean"] = "zero",
    steps: int = 50,
    window: int = 100_000,
    null: int = 100,
    source: Literal["rna", "atac"] | None = None,
    layer: str | None = None,
    lift: str | None = None,
    batch: str | None = None,
    seed: int = 0,
) -> None:
    """Find what drives a gene or a peak, or change cells and see what a model predicts for them.

    --gene: which open peaks drive the expression predicted from ATAC; --peak: which genes drive the openness predicted from
    RNA (integrated gradients, with correlations of peaks and genes nearby). --close and --open change ATAC, --knock-down and
    --over-express RNA; the change of every predicted feature is set against that of random peaks or genes like these.

    Example: expresser translate perturb runs/babel --input atac.h5ad --gene SATB2 NEUROD1 --labels cell_type --out satb2
    Example: expresser translate perturb runs/babel --input rna.h5ad --knock-down GATA1=0.1 --out gata1

    Args:
        model: Folder of a fit or a model, or hub id (org/name, org/name@revision).
        out: New folder: top.tsv, links.tsv, top_effects.tsv, all rows as .parquet, metrics.json, run.json, report.html.
        input: Raw counts of cells: .h5ad, .zarr, 10x .h5 or a 10x folder. ATAC for --gene, --close, --open; else RNA.
        mudata: A file with both modalities (.h5mu, or .h5ad or 10x .h5 whose feature_types tell them apart), in place of --input
            and --paired.
        gene: Symbols, Ensembl ids or names of genes to explain by peaks.
        peak: Peaks to explain by genes, such as chr1:100-200: those of the model that share a base with it.
        close: Peaks, or BED files of them, that are closed in every cell.
        open: Peaks, or BED files of them, that are opened in every cell.
        knock_down: Genes, or GENE=factor: counts are multiplied by it (0 to below 1; without it 0).
        over_express: Genes, or GENE=factor (above 1; without it 2): cells without a count get so many times the mean of the others.
        paired: The other modality of the same cells, as measured: links are then checked on measured values too.
        cell_type: COLUMN=VALUE: of these cells alone.
        labels: Column of obs with cell types: each is also examined by itself.
        cells: Cells drawn for attribution and perturbation; 0: all. Correlations are over all.
        top: Features of each target and group in top.tsv and top_effects.tsv.
        baseline: Where attribution begins: nothing open or expressed, or the mean cell.
        steps: Points of the path; more of them, and the convergence delta falls.
        window: Bases around a transcription start within which peaks and genes are linked.
        null: Draws of random peaks or genes that a change is set against; the smallest p is 1 / (null + 1). 0: none.
        source: What the input holds. Without it, what its features look like.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        lift: Chain file, or a name such as hg19ToHg38 (downloaded), that brings the input's peaks to the model's build.
        batch: Of systems that tell batches apart (polarbear): the batch that cells are taken for whose own was not trained on
            ("reference": the largest). Without it, such cells are refused.
        seed: Of the cells drawn and the null.
    """
    from expresser.atomic import is_empty
    from translate.asking import lifted, matched
    from translate.perturb import Change
    from translate.perturb_files import write
    from translate.perturb_run import Asked, examine
    from translate.terminal import notes, on_fastest, prove_out
    from translate.translator import Translator

    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise InputError(f"{out}: exists. Choose a new folder for --out.")
    if not any((gene, peak, close, open, knock_down, over_express)):
        raise InputError(
            "perturb: nothing is asked. Name genes (--gene) or peaks (--peak) to explain, peaks to --close or --open, or genes "
            "to --knock-down or --over-express."
        )
    if (input is None) == (mudata is None) or (mudata is not None and paired is not None):
        raise InputError(
            "perturb: give the cells as --input (and --paired), or both modalities in one file as --mudata."
        )
    if mudata is not None:
        source = source or ("atac" if gene or close or open else "rna")
        input = paired = mudata
    assert input is not None  # as was proven
    prove_out(out, input)
    translator = on_fastest(Translator.load(model))
    found = source or translator.source_of(input)
    _prove_targets(input, found, gene, peak)
    change = None
    if close or open or knock_down or over_express:
        change = Change.of(translator, close=close, opened=open, knock_down=knock_down, over_express=over_express)
    asked = Asked(
        targets=gene or peak,
        change=change,
        cell_type=cell_type,
        labels=labels,
        cells=cells,
        top=top,
        baseline=baseline,
        n_steps=steps,
        window=window,
        n_null=null,
        seed=seed,
        unknown_batch=batch,
    )
    with progress_bar("perturb") as report, notes():
        report(0, None, "reading")
        measured = translator.read(input, source=found, layer=layer)
        if lift is not None:
            if found != "atac":
                raise InputError(f"--lift brings peaks to another genome build, but {input} is read as {found}.")
            measured, carried = lifted(measured, lift)
            print(carried, file=sys.stderr)
        print(matched(translator, measured, found), file=sys.stderr)
        other = None
        if paired is not None:
            other = translator.read(paired, source="rna" if found == "atac" else "atac", layer=layer)
        result = examine(translator, measured, found, asked, paired=other, progress=report)
        files = {"input": str(input), "paired": None if paired is None else str(paired)}
        named = ", ".join((*asked.targets, *close, *open, *knock_down, *over_express)[:4])
        write(
            out,
            result,
            asked,
            model=model,
            translator=translator,
            files=files,
            title=f"In-silico perturbation: {named}",
        )
    for line in _lines(result.metrics, result.shown):
        print(line)
    print(f"report: {out / 'report.html'}")


def _prove_targets(path: Path, source: str, gene: tuple[str, ...], peak: tuple[str, ...]) -> None:
    """InputError where what is to be explained is measured in the file, not predicted from it."""
    if gene and peak:
        raise InputError(
            "--gene explains genes by peaks and needs ATAC, --peak peaks by genes and needs RNA: run them apart."
        )
    if gene and source != "atac":
        raise InputError(
            f"--gene explains genes by open peaks, but {path} holds {source}. Give ATAC, or explain a --peak."
        )
    if peak and source != "rna":
        raise InputError(f"--peak explains peaks by genes, but {path} holds {source}. Give RNA, or explain a --gene.")


def _lines(metrics: dict, shown: Mapping[str, str]) -> list[str]:
    """What was found, for the terminal; shown: targets as people call them."""
    lines = []
    for target, figures in metrics.get("attribution", {}).get("targets", {}).items():
        lines.append(f"{shown.get(target, target)}: relative convergence delta {figures['delta_relative']:.2%}")
    for name, value in metrics.get("links", {}).get("agreement", {}).items():
        lines.append(
            f"links ({name}): {metrics['links']['pairs']:,} pairs, {metrics['links']['significant'][name]:,} with q < 0.05; "
            f"Spearman of attribution and r {value['mean_spearman']:.2f}"
        )
    if "perturbation" in metrics:
        figures = metrics["perturbation"]
        line = f"features changed: {figures['changed_features']:,}, in {figures['changed_cells']:,} cells"
        if figures["n_null"]:
            line += f"; {figures['groups']['all']['q_below_0.05']:,} predicted features change more than by chance (q < 0.05)"
        lines.append(line)
    return lines
