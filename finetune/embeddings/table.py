"""A table of gene embeddings under one key, the Ensembl id, and the genes that several tables have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32

from expresser.errors import InputError


@dataclass(frozen=True, eq=False)
class GeneTable:
    """One vector a gene.

    Attributes
    ----------
    name
        What results call it, and their folders: no slashes.
    values
        float32, finite; index ``gene_id``: Ensembl ids where known, each once; columns ``"0"`` to ``"d-1"``.
    about
        Plain values: ``source`` and ``kind`` ("checkpoint", "word2vec", "parquet", "csv", "built-in"), ``sha256`` of the file (of
        the weights) or None, and the account of its rows: ``rows = not_finite + unresolved + duplicates + genes kept``. Of the
        ``duplicates``, further rows of a gene that has one, ``differing`` had other numbers.
    """

    name: str
    values: pd.DataFrame
    about: dict[str, Any]

    def __post_init__(self) -> None:
        check_name(self.name)
        index, d = self.values.index, self.values.shape[1]
        if index.name != "gene_id" or not index.is_unique or list(self.values.columns) != [str(i) for i in range(d)]:
            raise ValueError(
                f"table {self.name!r}: needed are distinct genes in 'gene_id' and columns '0' to '{d - 1}'."
            )
        if d < 1 or any(self.values.dtypes != np.float32) or not np.isfinite(self.values.to_numpy()).all():
            raise ValueError(f"table {self.name!r}: needed are finite float32 numbers in at least one column.")

    @property
    def dim(self) -> int:
        """Numbers a gene."""
        return self.values.shape[1]

    def rows(self, ids: Sequence[str] | np.ndarray | pd.Index | pd.Series) -> Float32[np.ndarray, "genes dim"]:
        """The vectors of these genes, in this order; genes may repeat. Raises InputError for a gene the table lacks."""
        wanted = np.asarray(ids, dtype=object)
        at = self.values.index.get_indexer(wanted)
        if (at < 0).any():
            absent = sorted(set(map(str, wanted[at < 0])))
            raise InputError(
                f"table {self.name!r}: {len(absent)} genes are asked for that it lacks, for example "
                f"{', '.join(absent[:5])}. Keep to the genes that all tables have (common_genes)."
            )
        return self.values.to_numpy(np.float32)[at]


def gene_table_of(
    name: str, genes: Sequence[str], values: Float32[np.ndarray, "genes dim"], about: dict[str, Any]
) -> GeneTable:
    """A table from distinct genes and their vectors, in this order."""
    index = pd.Index(list(genes), dtype=object, name="gene_id")
    frame = pd.DataFrame(values, index=index, columns=[str(i) for i in range(values.shape[1])])
    return GeneTable(name, frame, about)


def check_name(name: str) -> None:
    """Raise InputError for a name that cannot also be the name of a folder."""
    if not name or name != name.strip() or name.startswith(".") or any(c in '/\\:*?"<>|' for c in name):
        raise InputError(
            f"{name!r} cannot name a table: results are kept in folders of that name. Give NAME=PATH with a name of "
            "letters, digits, '-', '_' or '.', not starting with a point."
        )


@dataclass(frozen=True, eq=False)
class Common:
    """The genes that all tables have, rising, and what each lost by it.

    `lost` has a row a table: ``rows`` it came with, ``resolved`` to distinct genes, of these in ``common`` and ``lost``.
    """

    genes: tuple[str, ...]
    lost: pd.DataFrame


def common_genes(tables: Sequence[GeneTable]) -> Common:
    """The genes every table has. Tables are compared on the same genes only, and a gene that one lacks is lost to all.

    Raises InputError where nothing is in common.
    """
    if not tables:
        raise InputError("no tables of gene embeddings were given; give at least one.")
    genes = sorted(set.intersection(*(set(table.values.index) for table in tables)))
    if not genes:
        held = "; ".join(f"{t.name}: {len(t.values)} genes such as {', '.join(t.values.index[:3])}" for t in tables)
        raise InputError(
            f"no gene is in all tables ({held}). Where one has symbols and another Ensembl ids, give a gene vocabulary "
            "(--genes); else leave the table out that has no human genes."
        )
    counts = {
        table.name: {
            "rows": int(table.about.get("rows", len(table.values))),
            "resolved": len(table.values),
            "common": len(genes),
            "lost": len(table.values) - len(genes),
        }
        for table in tables
    }
    return Common(tuple(genes), pd.DataFrame.from_dict(counts, orient="index").rename_axis("table"))
