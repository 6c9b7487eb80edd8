"""Imputed peaks: cells decoded from their latent as if all had one depth and came from one batch."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from expresser.errors import InputError
from translate.study import Modality


@dataclass(frozen=True, eq=False)
class Imputed:
    """A `translate.predicted.Predicted` of a system with an invariant latent; probabilities of being open."""

    system: Any = field(repr=False)  # translate.invariant.Invariant
    latents: Float32[np.ndarray, "cells latent"] = field(repr=False)
    n_features: int
    depth: float | None = None  # number of open peaks; None: the mean of training cells
    batch: str | None = None  # None: the best
    to: Modality = "atac"

    def __post_init__(self) -> None:
        if not hasattr(self.system, "imputed"):
            raise InputError(
                f"{type(self.system).__name__} predicts without depth and batch: leave --depth and --batch-of out. They are of "
                "systems that embed, such as sailer."
            )
        if self.depth is not None and not self.depth > 0:
            raise InputError(f"depth {self.depth:g}: a cell has some open peaks; give their number, above 0.")
        self.block(slice(0, 0), slice(0, 1))  # a batch that the model does not know is refused here

    @property
    def n_cells(self) -> int:
        """Rows."""
        return len(self.latents)

    @torch.no_grad()
    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """These cells and peaks, dense."""
        device = next(self.system.parameters()).device
        latent = torch.from_numpy(self.latents[cells]).to(device)
        depth = None if self.depth is None else math.log(self.depth)
        odds = self.system.imputed(latent, features, depth=depth, batch=self.batch)
        return self.system.as_probability(odds, source="atac").cpu().numpy()
