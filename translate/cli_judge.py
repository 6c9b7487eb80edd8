"""``expresser translate evaluate|openproblems``: a model judged on cells of any files, a system on a benchmark's."""

import sys
from pathlib import Path
from typing import Annotated, Any

import tyro

from expresser.atomic import is_empty
from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar

Model = Annotated[str, tyro.conf.Positional]


@one_writer_of_out
def evaluate(
    model: Model,
    *,
    out: Path,
    rna: str | None = None,
    atac: str | None = None,
    protein: str | None = None,
    mudata: str | None = None,
    rna_only: tuple[str, ...] = (),
    atac_only: tuple[str, ...] = (),
    corpus: str | None = None,
    layer: str | None = None,
    genes: str | None = None,
    split_of: Path | None = None,
    train_rna: str | None = None,
    train_atac: str | None = None,
    train_protein: str | None = None,
    train_mudata: str | None = None,
    labels: str | None = None,
    batch: str | None = None,
    baselines: bool = True,
    baselines_all: bool = False,
    maps: bool = True,
    cells: int = 50_000,
    seed: int = 0,
) -> None:
    """Judge a model on cells measured in both modalities, beside baselines.

    A model that embeds, such as sailer, is judged by how well clusters of its embedding are cell types, and by what the
    embedding still knows of depth and batch; it needs --atac alone.

    All cells are test cells unless --split-of names the fit whose test cells to take. Baselines learn from --train-rna
    and --train-atac, or else from the cells that the model was trained on, while their files are where they were.

    Example: expresser translate evaluate runs/babel --rna rna.h5ad --atac atac.h5ad --out runs/babel_elsewhere

    Args:
        model: Folder of a fit or a model, or hub id (org/name, org/name@revision).
        out: Folder for metrics.json and report.html.
        rna: Raw counts of RNA: .h5ad, .zarr, 10x .h5 or a 10x folder.
        atac: Counts or 0/1 of peaks, of the same cells by name.
        protein: Antibody counts, or obsm:KEY for a table inside the RNA's file.
        mudata: A file with all modalities, in place of --rna and --atac: .h5mu, or .h5ad or 10x .h5 whose feature_types tell
            them apart.
        rna_only: Cells measured in RNA only; where no cell has both modalities, types and alignment are judged.
        atac_only: Cells measured in ATAC only.
        corpus: A folder that expresser corpus build made of ATAC, in place of all files.
        layer: Where the raw counts are: a layer's name or "raw", of all files, or of some: rna=counts. Without it, X.
        genes: Places of genes where the files have none, for the gene activity baseline.
        split_of: Folder of a fit from the same files: its test cells are judged.
        train_rna: RNA of cells for the baselines to learn from.
        train_atac: ATAC of the same.
        train_protein: Proteins of the same.
        train_mudata: A file with all modalities of cells for the baselines to learn from, in place of the three.
        labels: Column of obs with cell types. Without it, cell_type where there is one.
        batch: Of systems that tell batches apart (polarbear): the batch that cells are taken for whose own was not trained on
            ("reference": the largest); without it, such cells are refused. Of embeddings: column of obs with batches; without it,
            that of the model, where these cells have it.
        baselines: Fit baselines too: mean, knn, ridge, gene activity; of embeddings LSI and PCA, fitted to the cells judged.
        baselines_all: Of embeddings: the slow ones as well, where they are installed: PeakVI, spectral.
        maps: Draw UMAPs into the report.
        cells: Test cells that a translation is judged by at most, and training cells that baselines learn from, drawn by name.
        seed: Of the baselines.
    """
    from translate.held import hold
    from translate.judging import evaluate_model
    from translate.origin import Origin
    from translate.score_table import score_table
    from translate.terminal import notes, on_fastest
    from translate.translator import Translator

    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise InputError(f"{out}: exists. Choose a new folder for --out.")
    if cells < 2:
        raise InputError(f"--cells is {cells}; two are needed to judge a model.")
    origin = Origin(
        rna=rna,
        atac=atac,
        protein=protein,
        mudata=mudata,
        rna_only=rna_only,
        atac_only=atac_only,
        layer=layer,
        genes=genes,
        corpus=corpus,
    )
    train = Origin(rna=train_rna, atac=train_atac, protein=train_protein, mudata=train_mudata, layer=layer, genes=genes)
    learning = bool(train.files) or train_mudata is not None
    with progress_bar("evaluate") as report:
        report(0, None, "reading")
        translator = on_fastest(Translator.load(model))
        with notes() as doubts:
            common: dict[str, Any] = {"maps": maps, "seed": seed, "doubts": doubts, "say": lambda w: report(0, None, w)}
            if translator.system.embeds:
                from translate.embedding_judging import evaluate_embedder

                if learning:
                    raise InputError(
                        f"--train-…: {translator.name} embeds, and its baselines learn from the cells judged. Leave it out."
                    )
                held = hold(model, translator.run, origin, fit=split_of, learning=False)
                metrics = evaluate_embedder(
                    out,
                    model,
                    translator,
                    held,
                    origin,
                    label=labels,
                    batch=batch,
                    baselines="all" if baselines_all else "usual" if baselines else "none",
                    **common,
                )
            else:
                if baselines_all:
                    raise InputError(f"--baselines-all is of embeddings, and {translator.name} translates.")
                held = hold(model, translator.run, origin, fit=split_of, train=train if learning else None)
                metrics = evaluate_model(
                    out,
                    model,
                    translator,
                    held,
                    origin,
                    label=labels,
                    baselines=baselines,
                    unknown_batch=batch,
                    most=cells,
                    **common,
                )
    print(score_table(metrics))
    print(f"report: {out / 'report.html'}")


@one_writer_of_out
def openproblems(
    *,
    train_mod1: Path,
    train_mod2: Path,
    test_mod1: Path,
    output: Path,
    system: str = "babel",
    preset: str | None = None,
    modalities: tuple[str, str] | None = None,
    method_id: str | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Run a system on the files of Open Problems' predict-modality task; exit code 99 where it does not go that way.

    Example: expresser translate openproblems --train-mod1 a.h5ad --train-mod2 b.h5ad --test-mod1 c.h5ad --output d.h5ad

    Args:
        train_mod1: Training cells in the modality that is given: layers counts and normalized.
        train_mod2: The same cells in the modality to be predicted.
        test_mod1: Test cells in the modality that is given.
        output: Prediction file, .h5ad: layers["normalized"].
        system: A name of `translate list`.
        preset: A named configuration of it.
        modalities: Of mod1 and mod2 (GEX, ATAC, ADT), where the files do not say it.
        method_id: What the file calls the method. Without it, the system's name.
        seed: Of the split and the fit.
        out: Folder for the fit, kept. Without it, a temporary one.
    """
    from translate.openproblems import UnsupportedPair, run
    from translate.terminal import notes, prove_out

    prove_out(output, train_mod1, train_mod2, test_mod1)
    if out is not None and out.exists() and (not out.is_dir() or not is_empty(out)):
        raise InputError(f"{out}: exists. Choose a new folder for --out.")
    try:
        with progress_bar(f"openproblems {system}") as report, notes():
            run(
                train_mod1,
                train_mod2,
                test_mod1,
                output,
                system=system,
                preset=preset,
                modalities=modalities,
                method_id=method_id,
                seed=seed,
                out=out,
                progress=report,
            )
    except UnsupportedPair as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(99) from None
    print(f"prediction: {output}")
