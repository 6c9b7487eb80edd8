"""What is known of cells beside their measurements: their batch, their label, and where they lie in another embedding."""

from dataclasses import dataclass, field, replace
from typing import Annotated

import numpy as np
import pandas as pd
import tyro
from jaxtyping import Float32, Int64

from expresser.errors import InputError


@dataclass(frozen=True)
class BatchColumn:
    """Which column of obs says what batch (donor, sample, study) a cell comes from."""

    key: str | None = None
    """Column of obs. Without it, all cells are one batch."""
    names: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The batches of the training cells, sorted: filled in by the fit."""

    def settled(self, obs: pd.DataFrame, train: Int64[np.ndarray, " train"]) -> "BatchColumn":
        """With the names that these cells have; InputError where there is no such column or a cell has no value."""
        if self.key is None:
            return replace(self, names=())
        return replace(self, names=tuple(sorted(set(_values(obs, self.key)[train]))))

    def codes(self, obs: pd.DataFrame) -> Int64[np.ndarray, " cells"]:
        """Number of each cell's batch in `names`, 0 without a column; -1 for a batch that no training cell had."""
        if self.key is None:
            return np.zeros(len(obs), np.int64)
        return pd.Index(self.names).get_indexer(_values(obs, self.key)).astype(np.int64)

    def asked(self, obs: pd.DataFrame, *, unknown: int | None, where: str) -> Int64[np.ndarray, " cells"]:
        """`codes` of cells that a fitted model is asked about; `unknown`: the batch of those whose own it does not know.

        InputError where there are such and none is given: a network says nothing of a batch that it has not seen.
        """
        if self.key is None:
            return np.zeros(len(obs), np.int64)
        there = obs[self.key] if self.key in obs else pd.Series(np.nan, index=obs.index, dtype=object)
        codes = pd.Index(self.names).get_indexer(there.astype(str)).astype(np.int64)
        if unknown is not None:
            return np.where(codes < 0, unknown, codes)
        if (codes < 0).any():
            strange = sorted(set(there[codes < 0].dropna().astype(str)))
            said = (
                f"of {', '.join(map(repr, strange[:5]))}{', …' if len(strange) > 5 else ''}" if strange else "of none"
            )
            if self.key not in obs:
                said = f"of none, since obs has no column {self.key!r}"
            raise InputError(
                f"{where}: {int((codes < 0).sum()):,} of {len(obs):,} cells are of a batch that the model was not trained on "
                f"({said}); it knows {', '.join(map(repr, self.names))}. Name the batch whose decoder they are to have "
                "(--batch NAME, unknown_batch=NAME), or 'reference' for the largest of training."
            )
        return codes

    @property
    def size(self) -> int:
        """Number of batches."""
        return max(len(self.names), 1)


@dataclass(frozen=True)
class LabelColumn:
    """Which column of obs says what a cell is (its type); cells without a value have no label."""

    key: str | None = None
    """Column of obs. Without it, no cell has a label."""
    names: Annotated[tuple[str, ...], tyro.conf.Suppress] = ()
    """The labels of the training cells, sorted: filled in by the fit."""

    def settled(self, obs: pd.DataFrame, train: Int64[np.ndarray, " train"]) -> "LabelColumn":
        """With the names that these cells have; InputError where there is no such column."""
        if self.key is None:
            return replace(self, names=())
        given = _column(obs, self.key, "labels").iloc[train].dropna().astype(str)
        return replace(self, names=tuple(sorted(set(given) - {""})))

    def codes(self, obs: pd.DataFrame) -> Int64[np.ndarray, " cells"]:
        """Number of each cell's label in `names`; -1 for none, and for one that no training cell has."""
        if self.key is None:
            return np.full(len(obs), -1, np.int64)
        given = _column(obs, self.key, "labels")
        codes = pd.Index(self.names).get_indexer(given.astype(str)).astype(np.int64)
        return np.where(given.isna(), -1, codes)


@dataclass(frozen=True, eq=False)
class Reference:
    """Where cells lie in an embedding of another modality, for every cell of a study.

    Cells without that modality have weight 0; their values are never looked at. Cells are compared inside a group only.
    """

    name: str  # "pca", "obsm:X_scvi", …
    values: Float32[np.ndarray, "cells dim"] = field(repr=False)
    weight: Float32[np.ndarray, " cells"] = field(repr=False)
    group: Int64[np.ndarray, " cells"] = field(repr=False)


def _column(obs: pd.DataFrame, key: str, what: str) -> pd.Series:
    if key not in obs:
        raise InputError(
            f"{what}: obs has no column {key!r}; it has {', '.join(map(repr, obs.columns)) or 'none'}. Name one of them, or none."
        )
    return obs[key]


def _values(obs: pd.DataFrame, key: str) -> np.ndarray:
    column = _column(obs, key, "batch")
    if column.isna().any():
        first = obs.index[int(np.argmax(column.isna()))]
        raise InputError(
            f"batch: {int(column.isna().sum()):,} of {len(obs):,} cells have no {key!r} (first: {str(first)!r}). Fill it in, or "
            "leave these cells out."
        )
    return column.astype(str).to_numpy()
