"""``expresser finetune interactions | lof | dosage | gene``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import arg

from expresser.errors import InputError


@dataclass(frozen=True)
class Tables:
    """The tables that are compared."""

    embeddings: tuple[str, ...] = ()
    """Models (folder or hub id), files of gene vectors (word2vec text, parquet, csv, tsv), or built-ins: random, expression,
    svd, ppmi. NAME=SPEC gives a name."""
    genes: Path | None = None
    """Gene vocabulary that names are resolved with: genes.tsv, HGNC table or GTF. Without it the first model's."""
    corpus: Path | None = None
    """A corpus or file of raw counts, for the built-ins expression, svd and ppmi."""
    baselines: bool = True
    """Where no built-in is named, add random, and with --corpus expression, svd and ppmi."""
    max_cells: int = 20000
    """At most this many random cells of the corpus."""
    dim: int | None = None
    """Width of built-in tables; as wide as the widest file where it is not given."""


@dataclass(frozen=True)
class Protocol:
    """How they are compared."""

    preset: Literal["default", "linear", "boosting", "paper"] = "default"
    """The head. paper: the published protocol, one random fifth held out, scikit-learn's models as they come."""
    folds: int = 5
    """Of cross-validation."""
    repeats: int | None = None
    """Of cross-validation. Without it: genes 20, or 3 from 2,000 genes on; pairs 3, or 1 from 50,000 pairs on."""
    seed: int = 0
    """Of splits, heads and built-in tables."""
    heads: bool = True
    """Fit a head on all labels for each table but random (of pairs: for each model or file), for `finetune apply`."""


TablesOption = Annotated[Tables, arg(name="")]
ProtocolOption = Annotated[Protocol, arg(name="")]


def interactions(
    *,
    labels: Path,
    out: Path,
    tables: TablesOption,
    protocol: ProtocolOption,
    split: Literal["auto", "all", "gene-disjoint", "semi-disjoint", "random", "shipped"] = "auto",
    format: Literal["auto", "gene2vec", "string", "table"] = "auto",
    label_file: Path | None = None,
    aliases: Path | None = None,
    cut: int = 200,
    channel: str = "experimental",
    negatives: Literal["auto", "given", "degree-matched", "uniform", "low-evidence"] = "auto",
) -> None:
    """Tell interacting pairs of genes from others by their vectors, beside what degrees alone tell.

    Example: expresser finetune interactions --embeddings runs/small --labels gene2vec_ggi --corpus corpus --out runs/ggi

    Interrupted, the same command goes on where it stopped.

    Args:
        labels: Gene2vec's folder, STRING's protein.links.detailed, or a table of two columns of genes, with labels or not.
        out: Folder for metrics.json, predictions.parquet, report.html and heads.
        split: auto is the split that the labels ship, else gene-disjoint; all runs every one, the strictest first. With
            random, genes are known from training, and degrees alone do well.
        format: What the file is, where that is not to be guessed.
        label_file: For a text file with two genes a line: its labels, one a line.
        aliases: STRING's protein.aliases or protein.info.
        cut: STRING pairs with a score above this are positive.
        channel: STRING's kind of evidence.
        negatives: Where they come from, for labels without them.
    """
    from finetune.labels import read_pairs
    from finetune.tasks.interactions import run_pair_task

    def read(vocab: Any) -> Any:
        return read_pairs(
            labels,
            vocab=vocab,
            labels=label_file,
            format=format,
            aliases=aliases,
            cut=cut,
            negatives=negatives,
            channel=channel,
            seed=protocol.seed,
        )

    _run("interactions", read, run_pair_task, tables, protocol, out, {"split": split})


def lof(
    *,
    labels: Path,
    out: Path,
    tables: TablesOption,
    protocol: ProtocolOption,
    target: str = "lof_z",
    companions: tuple[str, ...] = ("loeuf",),
) -> None:
    """Predict how intolerant genes are of loss of function, beside what the length of the gene tells.

    Example: expresser finetune lof --embeddings runs/small --labels gnomad.v2.1.1.lof_metrics.by_gene.txt --out runs/lof

    Interrupted, the same command goes on where it stopped.

    Args:
        labels: Constraint by gene: gnomAD v2.1.1 or v4, or ExAC.
        out: Folder for metrics.json, predictions.parquet, report.html and heads.
        target: lof_z, loeuf, pli, mis_z, or a column of numbers.
        companions: Further targets of the table to examine too.
    """
    from finetune.labels import read_constraint
    from finetune.tasks.genes import run_gene_task

    def read(vocab: Any) -> Any:
        return read_constraint(labels, vocab=vocab, target=target)

    _run("lof", read, run_gene_task, tables, protocol, out, {"task": "lof", "companions": companions})


def dosage(
    *,
    labels: Path,
    out: Path,
    tables: TablesOption,
    protocol: ProtocolOption,
    insensitive: Path | None = None,
) -> None:
    """Tell genes that are sensitive to dosage from genes that are not.

    Example: expresser finetune dosage --embeddings runs/small --labels dosage_sens_tf_labels.csv --out runs/dosage

    Interrupted, the same command goes on where it stopped.

    Args:
        labels: Two lists side by side (dosage_sensitive, dosage_insensitive), a table of genes and labels, or the list of
            sensitive genes.
        out: Folder for metrics.json, predictions.parquet, report.html and heads.
        insensitive: The other list, one gene a line.
    """
    from finetune.labels import read_dosage
    from finetune.tasks.genes import run_gene_task

    def read(vocab: Any) -> Any:
        return read_dosage(labels, vocab=vocab, insensitive=insensitive)

    _run("dosage", read, run_gene_task, tables, protocol, out, {"task": "dosage"})


def gene(
    *,
    labels: Path,
    out: Path,
    tables: TablesOption,
    protocol: ProtocolOption,
    column: str | None = None,
    target: str | None = None,
    kind: Literal["auto", "regression", "binary", "multiclass"] = "auto",
) -> None:
    """Predict any label of genes: a number, yes or no, or one of several classes.

    Example: expresser finetune gene --embeddings runs/small --labels localisation.tsv --target compartment --out runs/where

    Interrupted, the same command goes on where it stopped.

    Args:
        labels: A table with a column of genes and a column of labels.
        out: Folder for metrics.json, predictions.parquet, report.html and heads.
        column: The column of genes, where it is not to be guessed.
        target: The column of labels, where there are several others.
        kind: What the labels are.
    """
    from finetune.labels import read_gene_labels
    from finetune.tasks.genes import run_gene_task

    def read(vocab: Any) -> Any:
        return read_gene_labels(labels, vocab=vocab, gene=column, target=target, kind=kind)

    _run("gene", read, run_gene_task, tables, protocol, out, {"task": "gene"})


def _run(
    task: str,
    read: Callable[[Any], Any],
    run: Callable[..., Any],
    given: Tables,
    protocol: Protocol,
    out: Path,
    more: dict[str, Any],
) -> None:
    from expresser.progress import progress_bar
    from finetune.tasks.words import account_text, lost_text, text_table

    specs = specs_of(given)
    with progress_bar(task) as report:
        report(0, None, "reading")
        tables, vocab = open_given(given, specs, protocol.seed)
        labels = read(vocab)
        result = run(
            labels,
            tables,
            preset=protocol.preset,
            folds=protocol.folds,
            repeats=protocol.repeats,
            seed=protocol.seed,
            save_heads=protocol.heads,
            out=out,
            progress=report,
            vocab=vocab,
            **more,
        )
    if result.finished:
        print(f"{out} holds this run already, complete; nothing was computed anew.")
    elif result.resumed:
        print(f"went on with an interrupted run: {result.resumed:,} fits were there already.")
    print(account_text(result.metrics))
    print(lost_text(result.metrics))
    print(text_table(result.metrics))
    print(f"report: {out / 'report.html'}")


def specs_of(given: Tables) -> list[str]:
    """The tables asked for, and the baselines that go with them."""
    from finetune.embeddings.reading import BUILT_IN, split_spec

    specs = list(given.embeddings)
    if given.baselines and not any(split_spec(spec)[1] in BUILT_IN for spec in specs):
        specs += BUILT_IN if given.corpus is not None else ["random"]
    if not specs:
        raise InputError("no embeddings were given. Name at least one: --embeddings MODEL, a file, or a built-in.")
    return specs


def vocab_of(given: Tables) -> Any:
    """What names are resolved with, None where they are taken as they are."""
    from finetune.embeddings.reading import choose_vocab

    return choose_vocab(given.genes, given.embeddings, given.corpus)


def open_given(given: Tables, specs: list[str], seed: int) -> tuple[list[Any], Any]:
    """The tables, and the vocabulary that their genes are of."""
    from finetune.embeddings.built_in import open_tables

    vocab = vocab_of(given)
    tables = open_tables(specs, vocab=vocab, corpus=given.corpus, d=given.dim, seed=seed, max_cells=given.max_cells)
    return tables, vocab


COMMANDS: dict[str, Callable[..., None]] = {
    "interactions": interactions,
    "lof": lof,
    "dosage": dosage,
    "gene": gene,
}
