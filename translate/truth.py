"""What was measured of held-out cells, and what is kept of it, beside a prediction, while blocks pass by."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64
from scipy import sparse

from expresser.errors import InputError
from translate.markers import CellTypes, RankSums, find_markers, rank_sums
from translate.study import Modality

Block: TypeAlias = Float32[np.ndarray, "cells features"] | sparse.csc_matrix

_POINTS = 100_000  # entries kept for a scatter: its density does not change beyond
_ALL = slice(None)


@dataclass(frozen=True, eq=False)
class Truth:
    """What was measured of some cells, on the scale predictions are on, and the types of the cells where they are known.

    values: rna ``ln(1 + count * median / library)``, sparse; atac 0/1, sparse; protein CLR, dense. It is a `Predicted`
    itself, so an array at hand (a simulator's true rates, say) is scored by wrapping it as a Truth.
    """

    to: Modality
    values: sparse.csr_matrix | Float32[np.ndarray, "cells features"] = field(repr=False)
    features: pd.Index = field(repr=False)
    types: CellTypes | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.values.shape[1] != len(self.features):
            raise InputError(
                f"truth ({self.to}): {self.values.shape[1]:,} columns but {len(self.features):,} feature names. "
                "Take both from the same model inputs."
            )

    @property
    def n_cells(self) -> int:
        return int(self.values.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.values.shape[1])

    @cached_property
    def by_feature(self) -> sparse.csc_matrix:
        """The values stored feature by feature, so that blocks of features are cheap."""
        return sparse.csc_matrix(self.values)

    @cached_property
    def differences(self) -> RankSums:
        """What is higher in each type than in the others, by rank sums."""
        return rank_sums(self.by_feature, self._known_types())

    @cached_property
    def markers(self) -> pd.DataFrame:
        """Genes that mark each type in these cells: `translate.markers.find_markers`."""
        return find_markers(self.differences, self._known_types())

    def _known_types(self) -> CellTypes:
        if self.types is None:
            raise InputError(f"truth ({self.to}): no labels were given, so no type has markers. Pass types.")
        return self.types

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """Dense values of these cells and features."""
        if isinstance(self.values, np.ndarray):
            return self.values[cells, features]
        if cells == _ALL or cells == slice(0, self.n_cells):
            return self.by_feature[:, features].toarray()
        return self.values[cells, features].toarray()


class Profiles:
    """Means over all cells, and over each type, of truth and prediction of every feature."""

    def __init__(self, truth: Truth) -> None:
        self.types = truth.types
        self.whole = np.zeros((2, truth.n_features), np.float32)
        rows = len(self.types.names) if self.types is not None else 0
        self.by_type = np.zeros((2, rows, truth.n_features), np.float32)

    def add(self, features: slice, truth: Block, prediction: Block) -> None:
        """Add all cells of some features."""
        for side, values in enumerate((truth, prediction)):
            self.whole[side, features] = np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()
            if self.types is not None:
                self.by_type[side, :, features] = self.types.means(values)

    def scores(self) -> dict[str, float]:
        """pseudobulk_pearson and, where types are known, pseudobulk_type_pearson (`translate.scoring.score_rna`)."""
        found = {"pseudobulk_pearson": correlation(*self.whole)}
        if self.types is not None:
            found["pseudobulk_type_pearson"] = typical_profiles(self.by_type, self.whole)
        return found


@dataclass
class Points:
    """Entries drawn at random for a scatter, the same for every prediction of one truth."""

    cell: Int64[np.ndarray, " points"]
    feature: Int64[np.ndarray, " points"]
    pairs: Float32[np.ndarray, "2 points"]

    @classmethod
    def of(cls, truth: Truth, *, seed: int) -> "Points":
        entries = truth.n_cells * truth.n_features
        rng = np.random.default_rng(seed)
        drawn = np.arange(entries) if entries <= _POINTS else np.sort(rng.integers(0, entries, _POINTS))
        feature, cell = np.divmod(drawn, max(truth.n_cells, 1))
        return cls(cell, feature, np.full((2, len(drawn)), np.nan, np.float32))

    def add(
        self,
        features: slice,
        truth: Float32[np.ndarray, "cells features"],
        prediction: Float32[np.ndarray, "cells features"],
    ) -> None:
        """Keep the drawn entries of some features, of all cells."""
        here = slice(*np.searchsorted(self.feature, [features.start, features.stop]))
        at = self.cell[here], self.feature[here] - features.start
        self.pairs[0, here], self.pairs[1, here] = truth[at], prediction[at]


def typical_profiles(
    by_type: Float32[np.ndarray, "2 types features"], whole: Float32[np.ndarray, "2 features"]
) -> float:
    """Mean over types of `correlation` of the type's mean less that of all: truth in row 0, prediction in row 1."""
    own = by_type - whole[:, None]
    own[np.abs(own) <= 1e-6 * np.abs(whole[:, None])] = 0.0  # equal but for rounding
    each = np.array([correlation(*pair) for pair in own.swapaxes(0, 1)])
    return float(np.mean(each[~np.isnan(each)])) if not np.isnan(each).all() else float("nan")


def correlation(truth: Float[np.ndarray, " features"], prediction: Float[np.ndarray, " features"]) -> float:
    """Pearson r; NaN where the truth is constant, 0 where only the prediction is: it knows nothing of what varies."""
    t, p = (values.astype(np.float64) - values.mean(dtype=np.float64) for values in (truth, prediction))
    if not t.any():
        return float("nan")
    size = np.linalg.norm(t) * np.linalg.norm(p)
    return float(np.clip(t @ p / size, -1.0, 1.0)) if size > 0 else 0.0
