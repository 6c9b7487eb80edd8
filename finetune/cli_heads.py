"""``expresser finetune apply | export``: what gene tasks leave, put to use."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import Positional

from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from finetune.cli_genes import TablesOption, open_given, vocab_of


@one_writer_of_out
def apply(
    head: Annotated[Path, Positional],
    *,
    out: Path,
    genes: tuple[str, ...] = (),
    genes_file: Path | None = None,
    pairs: Path | None = None,
    embeddings: str | None = None,
) -> None:
    """Predict genes or pairs that nobody labelled, with a head that a gene task has fitted.

    Example: expresser finetune apply runs/dosage/heads/small --genes TP53 BRCA1 --out predictions.csv

    Args:
        head: A folder OUT/heads/NAME of a gene task.
        out: Table of predictions: .parquet, .csv or .tsv.
        genes: Ids or symbols. Without --genes, --genes-file or --pairs: all genes of the table.
        genes_file: Ids or symbols, one a line.
        pairs: Table whose first two columns are genes, for a head of interactions.
        embeddings: Another version of the table that the head was fitted on, with more genes.
    """
    from expresser.atomic import replaced
    from finetune.labels.delimited import read_delimited
    from finetune.tasks.apply import apply_head

    form = out.suffix.lower()
    if form not in (".parquet", ".csv", ".tsv"):
        raise InputError(f"{out}: predictions are written as .parquet, .csv or .tsv; end the name in one of these.")
    asked: list[str] | None = list(genes) or None
    if genes_file is not None:
        asked = [*(asked or []), *read_delimited(genes_file).text(0).tolist()]
    rows = None
    if pairs is not None and asked is not None:
        raise InputError("finetune apply: --pairs and --genes were both given; a head is of one or the other.")
    if pairs is not None:
        table = read_delimited(pairs)
        if len(table.columns) < 2:
            raise InputError(f"{pairs}: pairs need two columns of genes; there is one, {table.columns[0]!r}.")
        rows = list(zip(table.text(0).tolist(), table.text(1).tolist(), strict=True))
    frame = apply_head(head, genes=asked, pairs=rows, embeddings=embeddings)
    with replaced(out) as part:
        if form == ".parquet":
            frame.to_parquet(part)
        else:
            frame.to_csv(part, sep="," if form == ".csv" else "\t", lineterminator="\n")
    learnt = int(frame["in_training"].sum())
    what = "pairs" if rows is not None else "genes"
    print(f"{len(frame):,} {what} in {out}" + (f"; the head was fitted on {learnt:,} of them" if learnt else ""))
    if unknown := frame.attrs["unknown"]:
        from finetune.tasks.words import listed

        print(f"{len(unknown):,} {'name has' if len(unknown) == 1 else 'names have'} no vector: {listed(unknown, 10)}")


@one_writer_of_out
def export(
    *,
    out: Path,
    tables: TablesOption,
    labels: Path | None = None,
    task: Literal["interactions", "lof", "dosage", "gene"] = "gene",
    seed: int = 0,
) -> None:
    """Write gene vectors and labels in the form that BiomedSciAI's gene-benchmark reads.

    Example: expresser finetune export --embeddings runs/small --labels dosage.csv --task dosage --out benchmark

    Args:
        out: Folder: embeddings/NAME.csv, and tasks/LABELS with entities.csv and outcomes.csv.
        labels: Labels of genes or pairs, as the task reads them.
        task: What the labels are.
        seed: Of built-in tables, and of negatives that are drawn.
    """
    from finetune.labels import read_constraint, read_dosage, read_gene_labels, read_pairs
    from finetune.tasks.gene_benchmark import write_embeddings_csv, write_task

    if not tables.embeddings and labels is None:
        raise InputError("finetune export: nothing to write. Give --embeddings, --labels or both.")
    opened, vocab = (
        ([], vocab_of(tables)) if not tables.embeddings else open_given(tables, list(tables.embeddings), seed)
    )
    found = None
    if labels is not None:
        readers: dict[str, Callable[[], Any]] = {
            "interactions": lambda: read_pairs(labels, vocab=vocab, seed=seed),
            "lof": lambda: read_constraint(labels, vocab=vocab),
            "dosage": lambda: read_dosage(labels, vocab=vocab),
            "gene": lambda: read_gene_labels(labels, vocab=vocab),
        }
        found = readers[task]()
    for table in opened:
        path = out / "embeddings" / f"{table.name}.csv"
        print(f"{path}: {_counts(write_embeddings_csv(table, path, vocab))}")
    if found is not None:
        folder = out / "tasks" / found.name
        print(f"{folder}: {_counts(write_task(found, folder, vocab))}")


def _counts(account: dict[str, int]) -> str:
    return ", ".join(
        f"{value:,} {name.replace('_', ' ')}" for name, value in account.items() if value or name == "written"
    )


COMMANDS: dict[str, Callable[..., None]] = {"apply": apply, "export": export}
