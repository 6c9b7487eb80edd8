"""What a task compares: tables over the genes that all of them know, and what each lost on the way there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.embeddings.table import GeneTable, common_genes

# Columns of predictions.parquet; a table of such a name could not have its own.
RESERVED = ("split", "repeat", "fold", "gene_id", "gene_a", "gene_b", "symbol", "symbol_a", "symbol_b", "label")


@dataclass(frozen=True, eq=False)
class Compared:
    """The tables of a run and the genes that all of them hold.

    lost: index table, columns rows (of the file), resolved, common, lost.
    """

    tables: tuple[GeneTable, ...]
    genes: tuple[str, ...]
    lost: pd.DataFrame
    vocab: GeneVocab | None

    def symbols(self, ids: Sequence[str]) -> list[str]:
        """Names for people, of genes given by id; the id itself where no vocabulary knows it."""
        if self.vocab is None:
            return list(ids)
        known = dict(zip(self.vocab.ids.tolist(), self.vocab.symbols.tolist(), strict=True))
        return [known.get(gene, gene) for gene in ids]

    def account(self, lacking: Mapping[str, int], column: str) -> pd.DataFrame:
        """`lost` with a further column: how many labelled items each table lacks a vector for."""
        frame = self.lost.copy()
        frame[column] = [int(lacking[name]) for name in frame.index]
        return frame


def compare(tables: Sequence[GeneTable], vocab: GeneVocab | None, *, taken: Sequence[str] = ()) -> Compared:
    """Tables that can stand in one result.

    taken: names of rows that the task adds itself, such as "degree".

    Raises
    ------
    InputError
        Without tables, for names that repeat or that the result uses itself, and where no gene is in all tables.
    """
    names = [table.name for table in tables]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two embeddings are called {twice[0]!r}. Tell them apart: --embeddings NAME=FILE.")
    if clash := [name for name in names if name in RESERVED or name in taken]:
        raise InputError(
            f"an embedding is called {clash[0]!r}, which the result uses for something else. "
            f"Give it another name: --embeddings NAME={clash[0]}."
        )
    common = common_genes(tables)
    return Compared(tuple(tables), tuple(common.genes), common.lost, vocab)


def lacking_genes(tables: Sequence[GeneTable], genes: Sequence[str]) -> dict[str, int]:
    """How many of these genes each table has no vector for."""
    ids = pd.Index(list(genes))
    return {table.name: int((~ids.isin(table.values.index)).sum()) for table in tables}


def lacking_pairs(tables: Sequence[GeneTable], a: np.ndarray, b: np.ndarray) -> dict[str, int]:
    """How many of these pairs hold a gene that the table has no vector for."""
    first, second = pd.Index(a), pd.Index(b)
    return {
        table.name: int((~(first.isin(table.values.index) & second.isin(table.values.index))).sum()) for table in tables
    }
