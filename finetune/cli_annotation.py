"""``expresser finetune annotation`` and ``expresser finetune annotate``."""

import math
from pathlib import Path
from typing import Annotated, Any

import tyro

from expresser.one_writer import one_writer_of_out


def annotation(
    *,
    data: Path,
    label: str,
    out: Path,
    models: tuple[str, ...] = (),
    group: str | None = None,
    finetune_blocks: int = 0,
    folds: int = 5,
    repeats: int = 1,
    seed: int = 0,
    max_cells: int | None = None,
    min_cells: int = 10,
    layer: str | None = None,
    max_tokens: int = 16384,
) -> None:
    """Learn cell types from cell embeddings, name those of held-out donors, and compare with baselines.

    Example: expresser finetune annotation --data cells.h5ad --label cell_type --group donor --models runs/small --out runs/annotation

    Args:
        data: Raw counts with obs: .h5ad or any other format of `corpus build`.
        label: Column of obs with the cell types.
        out: Folder for metrics.json, report.html, predictions.parquet and classifier/. An interrupted run goes on there.
        models: NAME=SPEC or SPEC, several: folders or hub ids. Without it only the baselines are compared.
        group: Column of obs with the donor: whole donors are held out. Without it, random cells of each type.
        finetune_blocks: Also train this many of each model's last blocks, anew in each fold.
        folds: Of cross-validation.
        repeats: How many times, with other folds each time.
        seed: Of the folds and of training.
        max_cells: Use a random sample of this many cells.
        min_cells: Types with fewer cells are left out.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        max_tokens: Tokens at once: the knob for memory.
    """
    from expresser.progress import progress_bar
    from finetune.annotation.task import run_annotation

    with progress_bar("annotation") as report:
        result = run_annotation(
            data,
            label=label,
            models=models,
            group=group,
            folds=folds,
            repeats=repeats,
            seed=seed,
            layer=layer,
            max_cells=max_cells,
            min_cells=min_cells,
            finetune_blocks=finetune_blocks,
            out=out,
            max_tokens=max_tokens,
            progress=report,
        )
    print(_table(result.metrics))
    print(f"report: {out / 'report.html'}")
    if result.metrics["classifier"] is not None:
        print(f"classifier ({result.metrics['classifier']['row']}): {out / 'classifier'}")


@one_writer_of_out
def annotate(
    classifier: Annotated[str, tyro.conf.Positional],
    input: Annotated[Path, tyro.conf.Positional],
    *,
    out: Path,
    key_added: str = "expresser_cell_type",
    probabilities: bool = False,
    layer: str | None = None,
    max_tokens: int = 16384,
) -> None:
    """Name the type of each cell with a classifier that `annotation` fitted.

    Example: expresser finetune annotate runs/annotation/classifier cells.h5ad --out annotated.h5ad

    Args:
        classifier: The `classifier` folder of an annotation run, or a hub id.
        input: Raw counts, .h5ad.
        out: The same AnnData with obs["expresser_cell_type"] and its probability, .h5ad.
        key_added: The column's name.
        probabilities: Write those of all types too, into obsm.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        max_tokens: Tokens at once: the knob for memory.
    """
    import anndata as ad

    from expresser.atomic import replaced
    from expresser.corpus.source import open_source
    from expresser.errors import InputError
    from expresser.progress import progress_bar
    from finetune.annotation.apply import FittedClassifier
    from finetune.annotation.apply import annotate as run

    if out.suffix != ".h5ad":
        raise InputError(f"{out}: the result is an AnnData file; name it *.h5ad.")
    if open_source(input, layer=layer).kind != "h5ad":  # says clearly what is wrong with a damaged or foreign file
        raise InputError(f"{input}: the result keeps obs and layers of the input: give an .h5ad file.")
    fitted, adata = FittedClassifier.load(classifier), ad.read_h5ad(input)
    with progress_bar("annotate") as report:
        try:
            run(
                adata,
                fitted,
                key_added=key_added,
                probabilities=probabilities,
                layer=layer,
                max_tokens=max_tokens,
                progress=report,
            )
        except InputError as error:
            raise InputError(f"{input}: {error}") from error
    with replaced(out) as part:
        adata.write_h5ad(part)
    found = adata.obs[key_added].value_counts()
    print("\n".join(f"{n:>8,}  {name}" for name, n in found[found > 0].items()))
    print(f"{adata.n_obs:,} cells in {out}: obs[{key_added!r}]")


def _table(metrics: dict[str, Any]) -> str:
    columns = ("macro_f1", "balanced_accuracy", "accuracy")
    found = metrics["embeddings"]
    order = sorted(found, key=lambda name: -found[name][columns[0]] if math.isfinite(found[name][columns[0]]) else 1.0)
    width = max(map(len, found))
    # Of the best model against each baseline; another model has no entry.
    model = next((name for name in order if found[name]["kind"] in ("model", "trained")), None)
    said = {entry["baseline"]: entry["verdict"] for entry in metrics["comparisons"] if entry["model"] == model}
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>24}" for name in columns) + (f"  {model} is" if said else "")]
    for name in order:
        cells = [
            f"{found[name][c]:.3f} ({found[name][f'{c}_lo']:.3f} to {found[name][f'{c}_hi']:.3f})" for c in columns
        ]
        lines.append(f"{name:<{width}}  {'  '.join(f'{cell:>24}' for cell in cells)}  {said.get(name, '')}".rstrip())
    held = "random cells" if metrics["split"] == "random" else f"whole groups of {metrics['group']!r}"
    lines.append(
        f"{metrics['n_cells']:,} cells, {metrics['n_types']} types, {metrics['folds']} folds of {held} held out; 95 % intervals"
    )
    return "\n".join(lines)
