"""A property of genes: one value a gene, with what may explain it trivially, and an account of the rows read."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from expresser.errors import InputError

Kind: TypeAlias = Literal["regression", "binary", "multiclass"]


@dataclass(frozen=True, eq=False)
class GeneLabels:
    """One value for each gene, sorted by id: float64 (regression), int8 0 or 1 (binary) or text (multiclass).

    `covariates` are what a table must beat, such as the length of the coding sequence; `companions` are further targets
    of the same source. Both have the same index, may have NaN and may have no columns. `account` adds up: rows_read =
    missing + unknown_genes + repeated + contradictory + set_aside + rare + kept.
    """

    name: str
    kind: Kind
    values: pd.Series
    covariates: pd.DataFrame
    companions: pd.DataFrame
    account: dict[str, Any]

    def __post_init__(self) -> None:
        index = self.values.index
        if not index.is_unique or not index.is_monotonic_increasing:
            raise ValueError(f"{self.name}: values need one row a gene, sorted by gene id")
        if not self.covariates.index.equals(index) or not self.companions.index.equals(index):
            raise ValueError(f"{self.name}: covariates and companions need the index of the values")
        if self.kind == "regression" and not np.isfinite(self.values.to_numpy(np.float64)).all():
            raise ValueError(f"{self.name}: values must be finite")
        if self.kind == "binary" and not self.values.isin((0, 1)).all():
            raise ValueError(f"{self.name}: values must be 0 or 1")

    def __len__(self) -> int:
        return len(self.values)

    def of_genes(self, genes: Collection[str]) -> "GeneLabels":
        """Only these genes; how many are lost is account["outside_tables"]."""
        inside = self.values.index.isin(list(genes))
        chosen = replace(
            self,
            values=self.values[inside],
            covariates=self.covariates[inside],
            companions=self.companions[inside],
        )
        require_variety(
            chosen.values, f"{self.name}: {len(chosen)} of {len(self)} genes with a label are in every embedding table"
        )
        more = {"outside_tables": int((~inside).sum())} | counts_of(chosen.kind, chosen.values)
        return replace(chosen, account=self.account | more)


def require_variety(values: pd.Series, what: str) -> None:
    """Raise InputError where there is nothing to tell apart."""
    if values.nunique() < 2:
        only = f", all with the value {str(values.iloc[0])!r}" if len(values) else ""
        raise InputError(f"{what}{only}. A task needs genes of two values or more: give labels that vary.")


def counts_of(kind: Kind, values: pd.Series) -> dict[str, Any]:
    """How many genes there are, and of which class."""
    counts: dict[str, Any] = {"kept": len(values)}
    if kind == "binary":
        counts["positives"] = int(values.sum())
    if kind == "multiclass":
        counts["class_sizes"] = {str(name): int(n) for name, n in values.value_counts().sort_index().items()}
    return counts


def one_a_gene(
    ids: np.ndarray, values: pd.Series, *, rank: np.ndarray | None = None
) -> tuple[np.ndarray, dict[str, int]]:
    """Places of the row kept for each gene, in order of ids, and the rows lost.

    Rows of one gene with one value are one (a missing one differs from none). With several values the row of lowest `rank`
    is kept where one row alone has it; else none is: nothing says which is right.
    """
    frame = pd.DataFrame({"id": ids, "value": values.to_numpy(), "rank": 0 if rank is None else rank})
    best = frame["rank"] == frame.groupby("id")["rank"].transform("min")
    distinct = frame[best].groupby("id")["value"].nunique()
    against = frame["id"].map(distinct > 1)
    kept = frame[best & ~against].sort_values(["id", "value"]).drop_duplicates("id")
    lost = {
        "contradictory": int((best & against).sum()),
        "repeated": int((best & ~against).sum()) - len(kept),
        "set_aside": int((~best).sum()),
    }
    return kept.index.to_numpy(), lost
