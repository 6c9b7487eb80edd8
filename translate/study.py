"""What a translator learns from: one or more modalities of one list of cells, each as it was measured."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.notebook import card
from translate.large import take_rows
from translate.stored import StoredMatrix

Modality: TypeAlias = Literal["rna", "atac", "protein"]
MODALITIES: tuple[Modality, ...] = ("rna", "atac", "protein")


class DataWarning(UserWarning):
    """A doubt about data that can be used all the same; commands say it in one line, reports keep it."""


@dataclass(frozen=True, eq=False, repr=False)
class Measured:
    """One modality of some cells as it was measured.

    `matrix` is cells x features, float32 CSR with sorted indices and no stored zeros: raw counts of RNA and protein,
    counts or 0/1 of ATAC; that of a corpus stays on disk (`StoredMatrix`), a large one lies in files
    (`translate.large`). `var` has unique feature names; for RNA the
    columns ensembl_id and symbol ("" unknown), chrom ("" unknown) and tss (bases, -1 unknown), for ATAC chrom, start, end
    (0-based, half-open). `obs` has unique cell names. `name` is what messages call it; `sources` are the files and AnnData
    it was read from, which may hold more of these cells (embeddings in obsm).
    """

    matrix: sparse.csr_matrix | StoredMatrix = field(repr=False)
    var: pd.DataFrame = field(repr=False)
    obs: pd.DataFrame = field(repr=False)
    name: str
    sources: tuple[Any, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        stored = "on disk" if isinstance(self.matrix, StoredMatrix) else f"{self.matrix.nnz:,} non-zero"
        return f"Measured({self.name}: {self.n_cells:,} cells x {self.n_features:,} features, {stored})"

    def __post_init__(self) -> None:
        if self.matrix.shape != (len(self.obs), len(self.var)):
            raise InputError(
                f"{self.name}: the matrix is {self.matrix.shape[0]} x {self.matrix.shape[1]}, but obs has "
                f"{len(self.obs)} rows and var {len(self.var)}: cells are rows, features columns."
            )

    @property
    def n_cells(self) -> int:
        return len(self.obs)

    @property
    def n_features(self) -> int:
        return len(self.var)

    def lengths(self) -> Int64[np.ndarray, " cells"]:
        """Non-zero features of each cell: genes expressed, peaks open."""
        if isinstance(self.matrix, StoredMatrix):
            return self.matrix.lengths()
        return np.diff(self.matrix.indptr).astype(np.int64)

    def take(self, cells: Int64[np.ndarray, " taken"]) -> "Measured":
        """These cells, in this order."""
        stored = isinstance(self.matrix, StoredMatrix)
        matrix = self.matrix.take(cells) if stored else take_rows(self.matrix, cells)
        return replace(self, matrix=matrix, obs=self.obs.iloc[cells])

    def loaded(self) -> "Measured":
        """The same with its matrix in memory, for what cannot be done cell by cell."""
        return replace(self, matrix=self.matrix.loaded()) if isinstance(self.matrix, StoredMatrix) else self


@dataclass(frozen=True, eq=False)
class Study:
    """Modalities over one list of cells. `rows[m][i]` is the row of cell i in `measured[m]`, -1 where it lacks m.

    `obs` names all cells (index) and holds what any file says of them; cells with every modality come first.
    """

    obs: pd.DataFrame = field(repr=False)
    measured: Mapping[Modality, Measured]
    rows: Mapping[Modality, Int64[np.ndarray, " cells"]] = field(repr=False)

    def __post_init__(self) -> None:
        if set(self.rows) != set(self.measured) or any(len(rows) != len(self.obs) for rows in self.rows.values()):
            raise InputError(
                f"study: {len(self.obs)} cells and modalities {sorted(self.measured)}, but rows of "
                f"{ {m: len(rows) for m, rows in self.rows.items()} }: each modality needs one row number a cell."
            )

    def __repr__(self) -> str:
        parts = [f"{m} {self.measured[m].n_cells:,} x {self.measured[m].n_features:,}" for m in self.modalities]
        return f"Study({self.n_cells:,} cells, {len(self.paired):,} with everything; {', '.join(parts)})"

    def _repr_html_(self) -> str:
        rows = {
            m: {"cells": of.n_cells, "features": of.n_features, "from": of.name}
            for m in self.modalities
            for of in (self.measured[m],)
        }
        obs = ", ".join(map(str, self.obs.columns)) or None
        facts = {"cells": self.n_cells, "with every modality": len(self.paired), "obs": obs}
        return card("Study", facts, {"modalities": pd.DataFrame.from_dict(rows, orient="index")}, opened=True)

    @property
    def n_cells(self) -> int:
        return len(self.obs)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """Those that are here, in the order rna, atac, protein."""
        return tuple(m for m in MODALITIES if m in self.measured)

    def has(self, modality: Modality) -> Bool[np.ndarray, " cells"]:
        """Which cells were measured in `modality`; none where no file brought it."""
        return self.rows[modality] >= 0 if modality in self.rows else np.zeros(len(self.obs), dtype=bool)

    @property
    def paired(self) -> Int64[np.ndarray, " paired"]:
        """Numbers of the cells measured in every modality."""
        return np.flatnonzero(np.logical_and.reduce([self.has(m) for m in self.modalities])).astype(np.int64)

    def of(self, modality: Modality, cells: Int64[np.ndarray, " taken"]) -> Measured:
        """One modality of these cells, in this order; InputError where one of them lacks it."""
        if modality not in self.measured:
            raise InputError(f"study: {modality} was not measured; there is {', '.join(self.modalities)}.")
        rows = self.rows[modality][cells]
        if (rows < 0).any():
            raise InputError(
                f"study: {int((rows < 0).sum())} of {len(rows)} cells have no {modality} (first: "
                f"{str(self.obs.index[cells[np.argmin(rows)]])!r}). Choose among np.flatnonzero(study.has({modality!r}))."
            )
        # With what any file says of these cells: a batch may be told by the file of another modality.
        return replace(self.measured[modality].take(rows), obs=self.obs.iloc[cells])

    def select(self, cells: Int64[np.ndarray, " taken"]) -> "Study":
        """These cells, in this order; matrices are cut to them."""
        measured, rows = {}, {}
        for m in self.modalities:
            old = self.rows[m][cells]
            there = old >= 0
            measured[m] = self.measured[m].take(old[there])
            rows[m] = np.where(there, np.cumsum(there) - 1, -1).astype(np.int64)
        return Study(self.obs.iloc[cells], measured, rows)
