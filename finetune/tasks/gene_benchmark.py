"""Tables and tasks in the form that the gene-benchmark package of BiomedSciAI reads: CSV files keyed by gene symbol."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import pandas as pd

from expresser.atomic import replaced, replaced_together
from expresser.errors import InputError
from expresser.gene_names import is_ensembl_id
from expresser.genes import GeneVocab
from finetune.embeddings.table import GeneTable


@runtime_checkable
class PairRows(Protocol):
    """Pairs of genes with a label, row for row."""

    @property
    def a(self) -> np.ndarray: ...
    @property
    def b(self) -> np.ndarray: ...
    @property
    def label(self) -> np.ndarray: ...


@runtime_checkable
class GeneRowLabels(Protocol):
    """One value a gene; the index holds gene ids."""

    @property
    def values(self) -> pd.Series: ...


def write_embeddings_csv(table: GeneTable, path: str | Path, vocab: GeneVocab | None) -> dict[str, int]:
    """Write a table for the package's ``PreComputedEncoder``: a CSV whose column ``symbol`` names the gene, then the numbers.

    Symbols are the vocabulary's approved ones; without a vocabulary a gene's id is its symbol, unless it is an Ensembl id. Left
    out, and counted in what is returned, are genes ``without_symbol`` and all genes of a ``repeated_symbol``, which would be
    ambiguous; ``written`` are the others.
    """
    path = Path(path)
    if path.suffix.lower() != ".csv":
        raise InputError(f"{path}: gene-benchmark reads CSV; give a name that ends in .csv.")
    symbols, account = _symbols(table.values.index, vocab)
    kept = [gene for gene in table.values.index if gene in symbols]
    _check_any(len(kept), path, account)
    frame = table.values.loc[kept]
    frame.index = pd.Index([symbols[gene] for gene in kept], name="symbol")
    with replaced(path) as part:
        frame.to_csv(part, lineterminator="\n")
    return {"written": len(kept), **account}


def write_task(labels: GeneRowLabels | PairRows, folder: str | Path, vocab: GeneVocab | None) -> dict[str, int]:
    """Write a task: ``entities.csv`` (one column ``symbol``, two of that name for pairs) and, row for row, ``outcomes.csv``.

    Rows with a gene that has no symbol of its own are left out: ``written`` rows are returned with the ``left_out`` ones, and
    the genes behind these, as in `write_embeddings_csv`. Files of other names in the folder stay.
    """
    folder = Path(folder)
    if isinstance(labels, PairRows):
        columns = [list(labels.a), list(labels.b)]
        outcomes = list(labels.label)
    else:
        columns, outcomes = [list(labels.values.index)], list(labels.values)
    symbols, account = _symbols(dict.fromkeys(gene for column in columns for gene in column), vocab)
    kept = [i for i, genes in enumerate(zip(*columns)) if all(gene in symbols for gene in genes)]
    _check_any(len(kept), folder, account)
    entities = pd.DataFrame({k: [symbols[column[i]] for i in kept] for k, column in enumerate(columns)})
    with replaced_together(folder, last="outcomes.csv") as part:
        entities.to_csv(part / "entities.csv", index=False, header=["symbol"] * len(columns), lineterminator="\n")
        known = pd.DataFrame({"Outcomes": [outcomes[i] for i in kept]})
        known.to_csv(part / "outcomes.csv", index=False, lineterminator="\n")
    return {"written": len(kept), "left_out": len(outcomes) - len(kept), **account}


def _symbols(genes: Iterable[str], vocab: GeneVocab | None) -> tuple[dict[str, str], dict[str, int]]:
    """The symbol of each gene that has one to itself, and how many have not."""
    approved = {} if vocab is None else dict(zip(vocab.ids.tolist(), vocab.symbols.tolist()))
    named = {gene: approved.get(gene, "" if vocab is not None else gene) for gene in genes}
    named = {gene: "" if is_ensembl_id(symbol) else symbol for gene, symbol in named.items()}
    # A symbol that a gene elsewhere in the vocabulary shares would match a table to another file's other gene.
    times = Counter(named.values()) if vocab is None else Counter(vocab.symbols.tolist())
    own = {gene: symbol for gene, symbol in named.items() if symbol and times[symbol] == 1}
    without = sum(not symbol for symbol in named.values())
    return own, {"without_symbol": without, "repeated_symbol": len(named) - without - len(own)}


def _check_any(written: int, where: Path, account: dict[str, int]) -> None:
    if not written:
        raise InputError(
            f"{where}: nothing is left to write: of its genes {account['without_symbol']} have no symbol in the vocabulary "
            f"and {account['repeated_symbol']} share one. Give a vocabulary with symbols (--genes)."
        )
