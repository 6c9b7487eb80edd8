"""What a translator predicts, block by block when asked: nothing of size cells x features is ever kept."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32

from translate.study import Modality
from translate.system import System


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

    system: System
    latents: Float32[np.ndarray, "cells latent"]
    source: Modality
    to: Modality
    n_features: int

    @property
    def n_cells(self) -> int:
        """Rows."""
        return len(self.latents)

    @torch.no_grad()
    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """These cells and features, dense, on the scale of `Predicted`."""
        device = next(self.system.parameters()).device
        latent = torch.from_numpy(self.latents[cells]).to(device)
        return self.system.decode(latent, source=self.source, to=self.to, features=features).cpu().numpy()
