"""``expresser translate predict|embed``: a model applied to the cells of a file."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar

Model = Annotated[str, tyro.conf.Positional]
Modality = Literal["rna", "atac", "protein"]


@one_writer_of_out
def predict(
    model: Model,
    *,
    input: Path,
    to: Modality,
    out: Path,
    source: Modality | None = None,
    layer: str | None = None,
    features: tuple[str, ...] = (),
    regions: tuple[str, ...] = (),
    form: Literal["float32", "float16", "topk", "binary", "scale"] = "float32",
    top_k: int = 10_000,
    threshold: float = 0.5,
    compression: Literal["gzip", "lzf"] | None = None,
    lift: str | None = None,
    depth: float | Literal["median", "predicted"] | None = None,
    batch_of: str | None = None,
    batch: str | None = None,
    sample: int | None = None,
) -> None:
    """Predict a modality that was not measured, for the cells of a file of any length.

    A system that embeds, such as sailer, predicts the modality it reads: peaks are imputed as if all cells had one depth
    (the mean of training cells) and came from one batch (that of the deepest cells), so that neither shows.

    Example: expresser translate predict runs/babel --input atac.h5ad --to rna --out rna.h5ad

    Args:
        model: Folder of a fit or a model, or hub id (org/name, org/name@revision).
        input: Raw counts of cells: .h5ad, .zarr, .h5mu, 10x .h5 or a 10x folder. Genes are matched, peaks re-pooled.
        to: What to predict. rna: ln(1 + size-normalised expression); atac: probability of being open; protein: CLR.
        out: New file, .h5ad or .zarr: the cells of the input x the features predicted.
        source: What the input holds. Without it, what its features look like; of several modalities, the one that leads to --to.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        features: Only these: names, for RNA also symbols or Ensembl ids, for ATAC also chromosomes.
        regions: Only what lies there, such as chr1:1000000-2000000: peaks that overlap, genes whose start is inside.
        form: float16 halves the file; topk and binary keep high values only, sparse; scale calls a peak open where it exceeds
            both the cell's and the peak's mean prediction (the cells of the input decide together; computed twice).
        top_k: Of topk: values kept of each cell.
        threshold: Of binary: what counts as open.
        compression: Of the file.
        lift: Chain file, or a name such as hg19ToHg38 (downloaded), that brings the input's peaks to the model's build.
        depth: Of imputation, and of systems that know depth (polarbear): number of open peaks that every cell is given. median:
            that of training cells, so that cells can be compared; predicted: what a cell's own would have been.
        batch_of: Of imputation: the batch that every cell is given, by its name in training.
        batch: Of systems that tell batches apart (polarbear): the batch whose decoder cells have whose own was not trained on
            ("reference": the largest). Without it, such cells are refused.
        sample: Of peaks: a seed, by which each is drawn 0 or 1 with its probability; written sparse.
    """
    from translate.asking import matched, wanted_features
    from translate.sampled import Sampled
    from translate.terminal import prove_out
    from translate.writing import prove_suffix, write_predictions

    if sample is not None and form != "float32":
        raise InputError(f"--sample writes 0 and 1 as they are drawn: leave --form {form} out.")

    prove_out(out, input)
    prove_suffix(out)
    translator, measured, found = _asked(model, input, source, to, layer, lift)
    columns = wanted_features(translator, to, names=features, regions=regions)
    fixed: dict[str, Any] = {"depth": depth, "batch": batch_of} if depth is not None or batch_of is not None else {}
    imputed = bool(fixed) and not (translator.system.tells_depth and batch_of is None)
    if imputed and (isinstance(depth, str) or batch is not None):
        raise InputError(
            f"this {translator.name} takes neither --depth median or predicted nor --batch: leave them out."
        )
    if not imputed:
        fixed = {k: v for k, v in (("depth", depth), ("unknown_batch", batch)) if v is not None}
    with progress_bar(f"predict {to}") as report:
        report(0, None, "encoding")
        ask = translator.impute if imputed else partial(translator.predict, source=found, to=to)
        predicted = ask(measured, **fixed)
        written = write_predictions(
            predicted if sample is None else Sampled(predicted, list(measured.obs.index), sample),
            out,
            obs=measured.obs,
            var=translator.var(to),
            uns={"expresser": translator.trace(found, to) | {k: v for k, v in fixed.items() if v is not None}},
            features=columns,
            form=form if sample is None else "binary",
            top_k=top_k,
            threshold=threshold if sample is None else 0.5,
            compression=compression,
            progress=lambda done, total: report(done, total, "writing"),
        )
    print(matched(translator, measured, found), file=sys.stderr)
    n = len(translator.var(to)) if columns is None else len(columns)
    cells = "1 cell" if measured.n_cells == 1 else f"{measured.n_cells:,} cells"
    how = f"{to} imputed" if found == to else f"{to} from {found}"
    print(f"{cells} x {n:,} features ({how}) in {written}")


@one_writer_of_out
def embed(
    model: Model,
    *,
    input: Path,
    out: Path,
    source: Modality | None = None,
    layer: str | None = None,
    lift: str | None = None,
    batch: str | None = None,
) -> None:
    """Write the latent of each cell into obsm["X_<system>"].

    Example: expresser translate embed runs/babel --input rna.h5ad --out embedded.h5ad

    Args:
        model: Folder of a fit or a model, or hub id (org/name, org/name@revision).
        input: Raw counts of cells, .h5ad or .h5mu.
        out: The same AnnData with the embedding, .h5ad; of an .h5mu the same MuData, .h5mu, with one in each modality.
        source: What the input holds. Without it, what its features look like; of an .h5mu, all that the model reads.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        lift: Chain file, or a name such as hg19ToHg38 (downloaded), that brings the input's peaks to the model's build.
        batch: Of systems that tell batches apart: the batch that cells are taken for whose own was not trained on ("reference": the
            largest). Without it, such cells are refused.
    """
    import shutil

    import anndata

    from expresser.atomic import replaced
    from translate.asking import matched
    from translate.opening import is_self_contained, put_into_h5ad
    from translate.terminal import prove_out

    if input.suffix not in (".h5ad", ".h5mu") or out.suffix != input.suffix:
        raise InputError(
            f"{input}, {out}: embed reads an .h5ad file and writes one, or reads an .h5mu file and writes one."
        )
    prove_out(out)  # which may be the input: nothing of it is lost
    if input.suffix == ".h5mu":
        _embed_mudata(model, input, out, source, layer, lift, batch)
        return
    translator, measured, found = _asked(model, input, source, None, layer, lift)
    key, latent = f"X_{translator.name}", translator.latents(measured, source=found, unknown_batch=batch)
    trace = {key: translator.trace(found, None)}
    with replaced(out) as part:
        if is_self_contained(input):  # no count is written anew, or held in memory
            shutil.copyfile(input, part)
        else:
            anndata.read_h5ad(input).write_h5ad(part)
        put_into_h5ad(part, key, latent, trace)
    print(matched(translator, measured, found), file=sys.stderr)
    print(f"{len(latent):,} cells x {latent.shape[1]} dimensions (from {found}) in {out}: obsm['{key}']")


def _embed_mudata(
    model: str, path: Path, out: Path, source: Modality | None, layer: str | None, lift: str | None, batch: str | None
) -> None:
    """The file copied, with the latents of each modality that the model reads beside it: no count is written anew."""
    import shutil

    from expresser.atomic import replaced
    from translate.asking import matched
    from translate.opening import modalities_in, put_into_mudata
    from translate.terminal import on_fastest
    from translate.translator import Translator

    translator = on_fastest(Translator.load(model))
    there = modalities_in(path)
    reads = [m for m in dict.fromkeys(s for s, _ in translator.directions) if m in there]
    wanted = [source] if source is not None else reads
    if not wanted or not set(wanted) <= there:
        raise InputError(
            f"{path}: holds {', '.join(sorted(there))}, and what is to be embedded is {source or 'nothing of these'}."
        )
    lines = []
    with replaced(out) as part:
        shutil.copyfile(path, part)
        for found in wanted:
            translator.target(found)
            measured = _measured(translator, path, found, layer, lift if found == "atac" else None)
            latent = translator.latents(measured, source=found, unknown_batch=batch)
            key = f"X_{translator.name}"
            put_into_mudata(part, found, key, latent, {key: translator.trace(found, None)})
            print(matched(translator, measured, found), file=sys.stderr)
            lines.append(
                f"{len(latent):,} cells x {latent.shape[1]} dimensions (from {found}) in {out}: {found}, obsm['{key}']"
            )
    print(*lines, sep="\n")


def _asked(
    model: str, path: Path, source: Modality | None, to: Modality | None, layer: str | None, lift: str | None
) -> tuple[Any, Any, Any]:
    """The model, the cells of a file, and what was measured of them."""
    from translate.terminal import on_fastest
    from translate.translator import Translator

    translator = on_fastest(Translator.load(model))
    found = translator.source_of(path, to) if source is None else source
    translator.target(found, to)  # before what may be large is read
    return translator, _measured(translator, path, found, layer, lift), found


def _measured(translator: Any, path: Path, found: Modality, layer: str | None, lift: str | None) -> Any:
    """What was measured of the cells of a file, brought to the model's genome build."""
    from translate.asking import lifted

    measured = translator.read(path, source=found, layer=layer)
    if lift is not None:
        if found != "atac":
            raise InputError(f"--lift brings peaks to another genome build, but {path} is read as {found}.")
        measured, carried = lifted(measured, lift)
        print(carried, file=sys.stderr)
    return measured
