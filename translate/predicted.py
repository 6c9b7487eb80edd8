"""What a translator predicts, block by block when asked: nothing of size cells x features is ever kept unasked."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64

from translate.study import Modality
from translate.system import System

_GAP = 512  # features not asked for that are computed rather than to call the predictor once more
_BLOCK_BYTES = 2**27  # of one block of float32: 149 cells of 224,000 peaks


@runtime_checkable
class Predicted(Protocol):
    """Predicted values of some cells.

    RNA: ln(1 + expression), size-normalised to the median library of the training cells. ATAC: the probability of being
    open (of a baseline: any score that grows with it). Protein: centred log-ratios.
    """

    @property
    def to(self) -> Modality:
        """The predicted modality."""

    @property
    def n_cells(self) -> int:
        """Rows."""

    @property
    def n_features(self) -> int:
        """Columns."""

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """These cells and features, dense."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Predictions held as latents: a block costs the output layer of its features."""

    system: System = field(repr=False)
    latents: Float32[np.ndarray, "cells latent"] = field(repr=False)
    source: Modality
    to: Modality
    n_features: int
    context: Float32[np.ndarray, "cells context"] | None = field(
        default=None, repr=False
    )  # `System.context` of each cell

    @property
    def n_cells(self) -> int:
        """Rows."""
        return len(self.latents)

    @torch.no_grad()
    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """These cells and features, dense, on the scale of `Predicted`."""
        device = next(self.system.parameters()).device
        latent = torch.from_numpy(self.latents[cells]).to(device)
        more: dict[str, Any] = {}  # most systems' decoders know of no context
        if self.context is not None:
            more["context"] = torch.from_numpy(self.context[cells]).to(device)
        return self.system.decode(latent, source=self.source, to=self.to, features=features, **more).cpu().numpy()


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some features of a prediction, in any order: of the others only what lies between two that are near is computed."""

    predicted: Predicted
    columns: Int64[np.ndarray, " chosen"]  # at least one

    @cached_property
    def spans(self) -> list[tuple[slice, np.ndarray, np.ndarray]]:
        """Slices that cover the columns: (features to compute, which of them, where they go)."""
        order = np.argsort(self.columns, kind="stable")
        runs = np.split(order, np.flatnonzero(np.diff(self.columns[order]) > _GAP) + 1)
        spans = []
        for run in runs:
            low, high = int(self.columns[run[0]]), int(self.columns[run[-1]]) + 1
            spans.append((slice(low, high), self.columns[run] - low, run))
        return spans

    @property
    def cells_at_once(self) -> int:
        """As many cells as 128 MiB of float32 hold, of the widest slice and of the columns; at least one."""
        widest = max(computed.stop - computed.start for computed, _, _ in self.spans)
        return int(np.clip(_BLOCK_BYTES // (4 * max(widest, len(self.columns))), 1, 8192))

    def block(self, cells: slice) -> Float32[np.ndarray, "cells chosen"]:
        """These cells at the columns."""
        (features, _, _), *more = self.spans
        if not more and np.array_equal(self.columns, np.arange(features.start, features.stop)):
            return self.predicted.block(cells, features)  # every feature of one slice, in order: no copy
        block = np.empty((cells.stop - cells.start, len(self.columns)), np.float32)
        for features, which, where in self.spans:
            block[:, where] = self.predicted.block(cells, features)[:, which]
        return block

    def values(self) -> Float32[np.ndarray, "cells chosen"]:
        """All cells at the columns, in memory."""
        n = self.predicted.n_cells
        values = np.empty((n, len(self.columns)), np.float32)
        for first in range(0, n, self.cells_at_once):
            cells = slice(first, min(first + self.cells_at_once, n))
            values[cells] = self.block(cells)
        return values
