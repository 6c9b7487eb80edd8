"""What a translator has to beat: the training mean, averages of nearest neighbours, and ridge regression on components."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from expresser.errors import InputError
from translate.components import Components, Values
from translate.predicted import Predicted
from translate.study import Modality

_ALPHAS = np.logspace(-6, 2, 33)  # times the largest eigenvalue
_RANKS = (5, 15, 30, 50)


@dataclass(frozen=True, eq=False)
class Pairs:
    """The same cells in two modalities: rna ``ln(1 + size-normalised count)`` and atac 0/1, sparse; protein CLR, dense."""

    source: Modality
    to: Modality
    x: Values = field(repr=False)
    y: Values = field(repr=False)

    def __post_init__(self) -> None:
        if self.x.shape[0] != self.y.shape[0] or not self.x.shape[0]:
            raise InputError(
                f"baselines: {self.x.shape[0]:,} cells of {self.source} and {self.y.shape[0]:,} of {self.to}, but row i of "
                "both must be one cell, and there must be some. Take the cells that have both modalities."
            )

    def take(self, cells: np.ndarray) -> "Pairs":
        """These cells."""
        return Pairs(self.source, self.to, self.x[cells], self.y[cells])


@runtime_checkable
class Fitted(Protocol):
    """A baseline after training."""

    def predict(self, x: Values) -> Predicted:
        """Predictions for cells of the source modality, on the scale of the training targets."""
        ...


@dataclass(frozen=True, eq=False)
class LowRank:
    """A `Predicted`: ``offset + scores @ coefficients``."""

    to: Modality
    scores: Float32[np.ndarray, "cells rank"] = field(repr=False)
    coefficients: Float32[np.ndarray, "rank features"] = field(repr=False)
    offset: Float32[np.ndarray, " features"] = field(repr=False)

    @property
    def n_cells(self) -> int:
        return len(self.scores)

    @property
    def n_features(self) -> int:
        return len(self.offset)

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """Values of these cells and features."""
        values = self.scores[cells] @ self.coefficients[:, features]
        values += self.offset[features]
        return values


@dataclass(frozen=True, eq=False)
class Averaged:
    """A `Predicted`: weighted means of training cells, ``weights @ values``."""

    to: Modality
    weights: sparse.csr_matrix = field(repr=False)  # cells x training cells
    values: Values = field(repr=False)

    @property
    def n_cells(self) -> int:
        return int(self.weights.shape[0])

    @property
    def n_features(self) -> int:
        return int(self.values.shape[1])

    @cached_property
    def _turned(self) -> sparse.csr_matrix:
        """Features x training cells: blocks of features are rows."""
        return sparse.csr_matrix(self.values.T)

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """Values of these cells and features."""
        weights = self.weights[cells]
        if isinstance(self.values, np.ndarray):
            return weights @ self.values[:, features]
        if features.indices(self.n_features) == (0, self.n_features, 1):
            return (weights @ self.values).toarray()
        return np.ascontiguousarray((self._turned[features] @ weights.T.tocsr()).toarray().T)


@dataclass(frozen=True, eq=False)
class TrainingMean:
    """Every cell gets the mean of the training cells: what a score is worth that knows nothing of the cell."""

    to: Modality
    mean: Float32[np.ndarray, " features"] = field(repr=False)

    @classmethod
    def fit(cls, train: Pairs) -> "TrainingMean":
        """Means over the training cells, on the scale of the values."""
        return cls(train.to, _mean(train.y).astype(np.float32))

    def predict(self, x: Values) -> LowRank:
        """The mean, once a cell."""
        none = np.zeros((x.shape[0], 0), np.float32)
        return LowRank(self.to, none, np.zeros((0, len(self.mean)), np.float32), self.mean)


@dataclass(frozen=True, eq=False)
class NearestNeighbours:
    """The mean, in the target modality, of the training cells that are nearest in the source modality.

    Nearness is Euclidean in principal components (rna, protein), or in latent semantic indexing without the first
    component, every cell scaled to length one there (atac).
    """

    train: Pairs = field(repr=False)
    components: Components = field(repr=False)
    index: NearestNeighbors = field(repr=False)
    n_components: int

    @classmethod
    def fit(
        cls, train: Pairs, components: Components, *, neighbours: int = 30, n_components: int = 30
    ) -> "NearestNeighbours":
        """An index of the training cells; fewer neighbours where there are fewer cells."""
        index = NearestNeighbors(n_neighbors=min(neighbours, train.x.shape[0]))
        index.fit(_near(components, train.x, n_components))
        return cls(train, components, index, n_components)

    def predict(self, x: Values) -> Averaged:
        """Means of neighbours, computed when asked for."""
        near = self.index.kneighbors(_near(self.components, x, self.n_components), return_distance=False)
        k = near.shape[1]
        weights = sparse.csr_matrix(
            (np.full(near.size, 1 / k, np.float32), near.ravel(), np.arange(0, near.size + 1, k)),
            shape=(len(near), self.train.x.shape[0]),
        )
        weights.sort_indices()
        return Averaged(self.train.to, weights, self.train.y)


@dataclass(frozen=True, eq=False)
class Ridge:
    """Linear regression of every target feature on components of the source, with one penalty for all.

    Solved in closed form. How many components, and the penalty `alpha` (times the largest eigenvalue of their scatter),
    are those with the least squared error over all features of the validation cells.
    """

    to: Modality
    components: Components = field(repr=False)
    centre: Float32[np.ndarray, " rank"] = field(repr=False)
    coefficients: Float32[np.ndarray, "rank features"] = field(repr=False)
    offset: Float32[np.ndarray, " features"] = field(repr=False)
    alpha: float

    @classmethod
    def fit(cls, train: Pairs, components: Components, valid: Pairs | None = None, *, seed: int = 0) -> "Ridge":
        """Without validation cells a random tenth of the training cells chooses, and all are then used to fit."""
        if valid is None:
            shuffled = np.random.default_rng(seed).permutation(train.x.shape[0])
            held = len(shuffled) // 10
            rank, alpha = _choose(
                train.take(shuffled[held:]), train.take(shuffled[:held] if held else shuffled), components
            )
        else:
            rank, alpha = _choose(train, valid, components)
        moments = _Moments.of(train, components)
        return cls(
            train.to,
            components,
            moments.centre[:rank],
            moments.solve(rank, alpha),
            moments.mean,
            alpha,
        )

    def predict(self, x: Values) -> LowRank:
        """Predictions, not confined to any range."""
        scores = self.components.of(x)[:, : len(self.centre)] - self.centre
        return LowRank(self.to, scores, self.coefficients, self.offset)


@dataclass(frozen=True, eq=False)
class _Moments:
    """All that ridge regression on any number of components needs to know of its training cells."""

    centre: Float32[np.ndarray, " components"]
    mean: Float32[np.ndarray, " features"]
    gram: Float64[np.ndarray, "components components"]  # centred scores with themselves
    cross: Float32[np.ndarray, "components features"]  # and with the targets

    @classmethod
    def of(cls, pairs: Pairs, components: Components) -> "_Moments":
        scores = components.of(pairs.x)
        centre = scores.mean(axis=0, dtype=np.float64).astype(np.float32)
        scores -= centre
        gram = scores.T.astype(np.float64) @ scores
        return cls(centre, _mean(pairs.y).astype(np.float32), gram, np.asarray((pairs.y.T @ scores).T))

    def solve(self, rank: int, alpha: float) -> Float32[np.ndarray, "rank features"]:
        gram = self.gram[:rank, :rank]
        inverse = np.linalg.pinv(gram + alpha * np.linalg.norm(gram, 2) * np.eye(rank), hermitian=True)
        return inverse.astype(np.float32) @ self.cross[:rank]


def _choose(train: Pairs, valid: Pairs, components: Components) -> tuple[int, float]:
    """Rank and penalty of least squared error on the validation cells, over all features, without any prediction.

    With coefficients ``A cross``, A symmetric, the error is a constant + tr(A gram_v A cross cross') - 2 tr(A cross_v cross'):
    in the axes of the eigenvectors of `gram`, where A is diagonal, each penalty costs rank² multiplications.
    """
    moments = _Moments.of(train, components)
    scores = components.of(valid.x) - moments.centre
    gram = scores.T.astype(np.float64) @ scores
    # Centred on the training means, as predictions are.
    cross = np.asarray((valid.y.T @ scores).T) - np.outer(scores.sum(axis=0), moments.mean)
    inner = (moments.cross @ moments.cross.T).astype(np.float64), (cross @ moments.cross.T).astype(np.float64)
    best = (np.inf, 1, 1.0)
    for rank in sorted({min(rank, len(gram)) for rank in _RANKS}):
        values, axes = np.linalg.eigh(moments.gram[:rank, :rank])
        turned = [axes.T @ m[:rank, :rank] @ axes for m in (gram, *inner)]
        for alpha in _ALPHAS:
            shrunk = 1 / (np.maximum(values, 0) + alpha * values[-1]) if values[-1] > 0 else np.zeros(rank)
            error = shrunk @ (turned[0] * turned[1]) @ shrunk - 2 * shrunk @ np.diag(turned[2])
            best = min(best, (float(error), rank, float(alpha)))
    return best[1:]


def _mean(values: Values) -> Float[np.ndarray, " features"]:
    return np.asarray(values.mean(axis=0, dtype=np.float64)).ravel()


def _near(components: Components, x: Values, n: int) -> Float32[np.ndarray, "cells components"]:
    """Where cells are compared."""
    scores = components.of(x)
    if components.modality != "atac" or scores.shape[1] < 2:
        return scores[:, :n]
    scores = scores[:, 1 : n + 1]
    return scores / np.maximum(np.linalg.norm(scores, axis=1, keepdims=True), 1e-12)
