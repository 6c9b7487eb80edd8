"""The core's own commands. Heavy imports wait until a command runs."""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import tyro

from expresser.cli import Command
from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.progress import progress_bar

Positional = tyro.conf.Positional


def group(command: Callable[[], Command], verbs: dict[str, Callable[..., None]]) -> Callable[[Sequence[str]], None]:
    """Runs a command of several verbs; `command` is asked late, since it is being defined."""

    def run(argv: Sequence[str]) -> None:
        known = command()
        tyro.extras.subcommand_cli_from_dict(
            verbs, prog=f"expresser {known.name}", description=known.help, args=list(argv), sort_subcommands=True
        )

    return run


def _single(command: Callable[[], Command], function: Callable[..., None]) -> Callable[[Sequence[str]], None]:
    def run(argv: Sequence[str]) -> None:
        known = command()
        tyro.cli(function, prog=f"expresser {known.name}", description=known.help, args=list(argv))

    return run


# --- genes ---------------------------------------------------------------------------------------------------------------------


@one_writer_of_out
def genes_build(*, out: Path, hgnc: Path | None = None, gtf: Path | None = None) -> None:
    """Write a gene vocabulary from an HGNC complete-set table or a GENCODE/Ensembl GTF.

    Example: expresser genes build --hgnc hgnc_complete_set.txt --out genes.tsv

    Args:
        out: The vocabulary, a tab-separated table.
        hgnc: HGNC complete set, plain or gz.
        gtf: GENCODE or Ensembl annotation, plain or gz. With both, the GTF adds positions.
    """
    from expresser.genes import GeneVocab

    found = []
    if hgnc is not None:
        found.append(GeneVocab.from_hgnc(hgnc))
    if gtf is not None:
        found.append(GeneVocab.from_gtf(gtf))
    if not found:
        raise InputError("genes build needs --hgnc FILE or --gtf FILE.")
    vocab = found[0] if len(found) == 1 else GeneVocab.union(found)
    vocab.save(out)
    print(f"{len(vocab):,} protein-coding genes in {out} (sha256 {vocab.sha256[:12]})")


@one_writer_of_out
def genes_export(model: Annotated[str, Positional], *, out: Path) -> None:
    """Write a model's gene embeddings as parquet, or as word2vec text where the name ends in .txt or .vec.

    Example: expresser genes export runs/small --out genes.parquet

    Args:
        model: Folder or hub id (org/name, org/name@revision).
        out: .parquet: index Ensembl id, a symbol column, one column a dimension. .txt/.vec: word2vec text, Ensembl ids.
    """
    from expresser.checkpoint import load
    from expresser.embed import gene_table
    from expresser.tables import write_gene_table

    frame = gene_table(load(model))
    write_gene_table(frame, out)
    print(f"{len(frame):,} genes x {frame.shape[1] - 1} dimensions in {out}")


# --- models on AnnData ---------------------------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    import anndata as ad

    from expresser.corpus.source import open_source

    source = open_source(path)  # says clearly what is wrong with a damaged or foreign file
    if source.kind == "h5ad":
        return ad.read_h5ad(path)
    counts = [chunk for _, chunk in source.chunks()]
    import pandas as pd
    from scipy import sparse

    columns = dict(source.gene_columns)
    first = next(iter(columns))
    var = pd.DataFrame({k: v for k, v in columns.items() if k != first}, index=pd.Index(columns[first].astype(str)))
    return ad.AnnData(X=sparse.vstack(counts, format="csr"), obs=source.obs, var=var)


@contextmanager
def _naming(path: Path):  # type: ignore[no-untyped-def]
    """Errors about an AnnData in memory name the file that it was read from."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _check_name(out: Path) -> None:
    if out.suffix != ".h5ad":
        raise InputError(f"{out}: the result is an AnnData file; name it *.h5ad.")


def _write(adata: Any, out: Path) -> None:
    from expresser.atomic import replaced

    with replaced(out) as part:
        adata.write_h5ad(part)


@one_writer_of_out
def embed_command(
    model: Annotated[str, Positional],
    input: Annotated[Path, Positional],
    *,
    out: Path,
    layer: str | None = None,
    contextual: tuple[str, ...] = (),
    max_tokens: int = 16384,
) -> None:
    """Write cell embeddings into obsm["X_expresser"].

    Args:
        model: Folder or hub id (org/name, org/name@revision).
        input: Raw counts: .h5ad or any other format of `corpus build`.
        out: The same AnnData with the embedding, .h5ad.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        contextual: Genes whose contextual embeddings are wanted too, into obsm["X_expresser_SYMBOL"].
        max_tokens: Tokens at once: the knob for memory.
    """
    from expresser.checkpoint import load
    from expresser.embed import embed

    _check_name(out)
    adata, checkpoint = _read(input), load(model)
    with progress_bar("embed") as report, _naming(input):
        embed(adata, checkpoint, layer=layer, contextual=contextual, max_tokens=max_tokens, progress=report)
    _write(adata, out)
    print(f"{adata.n_obs:,} cells x {adata.obsm['X_expresser'].shape[1]} dimensions in {out}: obsm['X_expresser']")


@one_writer_of_out
def impute_command(
    model: Annotated[str, Positional],
    input: Annotated[Path, Positional],
    *,
    out: Path,
    genes: tuple[str, ...] = (),
    layer: str | None = None,
    overwrite_measured: bool = False,
    max_tokens: int = 16384,
) -> None:
    """Predict the zeros of chosen genes into layers["expresser"].

    Args:
        model: Folder or hub id (org/name, org/name@revision).
        input: Raw counts: .h5ad or any other format of `corpus build`.
        out: The same AnnData with the layer, .h5ad.
        genes: Symbols or Ensembl ids. Without it, every gene that the model knows (slow for many cells).
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        overwrite_measured: Predict measured entries too.
        max_tokens: Tokens at once: the knob for memory.
    """
    from expresser.checkpoint import load
    from expresser.impute import impute

    _check_name(out)
    adata, checkpoint = _read(input), load(model)
    with progress_bar("impute") as report, _naming(input):
        impute(
            adata,
            checkpoint,
            genes=genes or None,
            layer=layer,
            overwrite_measured=overwrite_measured,
            max_tokens=max_tokens,
            progress=report,
        )
    _write(adata, out)
    print(f"{adata.n_obs:,} cells in {out}: layers['expresser'], log1p(1e4 * count / total), NaN where not asked")


# --- demo ----------------------------------------------------------------------------------------------------------------------


@one_writer_of_out
def demo_command(*, out: Path = Path("demo"), seed: int = 0, small: bool = False) -> None:
    """Run every stage on simulated data and end with a report; interrupted, the same command goes on.

    Args:
        out: Folder for all that the demo makes.
        seed: Of the simulation and of training.
        small: In about a minute, learning nothing: to see whether everything runs here.
    """
    from expresser.demo import FULL, SMALL, demo

    demo(out, seed=seed, size=SMALL if small else FULL)


GENES: Command = Command(
    name="genes",
    summary="Build a gene vocabulary; export a model's gene embeddings.",
    example="expresser genes export runs/small --out genes.parquet",
    run=group(lambda: GENES, {"build": genes_build, "export": genes_export}),
)
EMBED: Command = Command(
    name="embed",
    summary="Embed cells with a pretrained model.",
    example="expresser embed runs/small cells.h5ad --out embedded.h5ad",
    run=_single(lambda: EMBED, embed_command),
)
IMPUTE: Command = Command(
    name="impute",
    summary="Predict the zeros of chosen genes with a pretrained model.",
    example="expresser impute runs/small cells.h5ad --genes CD3D MS4A1 --out imputed.h5ad",
    run=_single(lambda: IMPUTE, impute_command),
)
DEMO: Command = Command(
    name="demo",
    summary="Every stage on simulated cells, minutes on a laptop, ends with a report.",
    example="expresser demo --out demo",
    run=_single(lambda: DEMO, demo_command),
)
