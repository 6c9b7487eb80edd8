"""The pretext: which genes are masked, and the squared error on them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expresser.errors import InputError
from expresser.model.cells import Cells, Views, all_folds, n_single, single_mask
from pretrain.config import ObjectiveConfig


def squared_error(
    prediction: Float[Tensor, " queries"], *, truth: Float[Tensor, " queries"]
) -> Float[Tensor, " queries"]:
    """Equation 4.5 for each masked gene, on log-normalised values, float32. The caller sums and divides by all masked genes
    of the global batch."""
    return (prediction.float() - truth.float()).square()


@dataclass(frozen=True)
class Objective:
    """Masking with its bookkeeping: ``n_targets`` counts from lengths alone what ``views`` will ask."""

    n_folds: int | None
    share: float

    @classmethod
    def of(cls, config: ObjectiveConfig) -> "Objective":
        """The objective a recipe asks for."""
        if not 0.0 < config.masked_share <= 0.5:
            raise InputError(f"objective.masked_share is {config.masked_share}: it must lie above 0 and not above 0.5.")
        folds = round(1 / config.masked_share) if config.masking == "all_folds" else None
        return cls(n_folds=folds, share=config.masked_share)

    def views(self, cells: Cells) -> Views:
        """The views of a batch, drawn by the cells' keys."""
        return single_mask(cells, self.share) if self.n_folds is None else all_folds(cells, self.n_folds)

    def n_targets(self, lengths: Int[Tensor, " cells"]) -> int:
        """Masked genes of cells that show ``lengths`` genes. A cell of one gene has nothing to predict it from."""
        lengths = lengths[lengths > 1]
        return int(lengths.sum() if self.n_folds is not None else n_single(lengths, self.share).sum())


def targets(cells: Cells, views: Views) -> Float[Tensor, " queries"]:
    """True values of the queries."""
    return torch.index_select(cells.values, 0, views.query)
