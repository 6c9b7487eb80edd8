"""Predicted peaks as a measurement would show them: 0/1 draws of each cell and peak, the same for the same seed."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Int64

from expresser.errors import InputError
from expresser.model.keyed import splitmix64
from translate.predicted import Predicted
from translate.study import Modality

_BITS = 53  # of a hash, as a double between 0 and 1


@dataclass(frozen=True, eq=False)
class Sampled:
    """A `translate.predicted.Predicted` of peaks, 1 with the probability predicted (Bernoulli).

    A draw is a function of seed, cell's name and number of the peak alone: the same in any block, order and company. Draws of
    one cell's peaks are independent, so that they have no more of the cell than the probabilities have: for scores, and for
    means of many cells, take the probabilities.
    """

    predicted: Predicted
    cells: Sequence[str]  # names
    seed: int = 0

    def __post_init__(self) -> None:
        if self.predicted.to != "atac":
            raise InputError(
                f"sampling: {self.predicted.to} is predicted as a mean, not as a probability. Only peaks can be drawn."
            )
        if len(self.cells) != self.predicted.n_cells:
            raise InputError(f"sampling: {len(self.cells)} names of {self.predicted.n_cells} cells.")

    @property
    def to(self) -> Modality:
        """The predicted modality."""
        return self.predicted.to

    @property
    def n_cells(self) -> int:
        """Rows."""
        return self.predicted.n_cells

    @property
    def n_features(self) -> int:
        """Columns."""
        return self.predicted.n_features

    @cached_property
    def _keys(self) -> Int64[np.ndarray, " cells"]:
        hashed = (hashlib.blake2b(f"{self.seed}\0{name}".encode(), digest_size=8).digest() for name in self.cells)
        return np.array([int.from_bytes(key, "little", signed=True) for key in hashed], np.int64)

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """These cells and peaks, 0 or 1."""
        probability = self.predicted.block(cells, features)
        peaks = torch.arange(*features.indices(self.n_features))
        drawn = splitmix64(splitmix64(torch.from_numpy(self._keys[cells]))[:, None] + peaks)
        uniform = (drawn >> (64 - _BITS) & ((1 << _BITS) - 1)).numpy() / float(1 << _BITS)
        return (uniform < probability).astype(np.float32)
