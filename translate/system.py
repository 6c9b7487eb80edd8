"""What every translator is: a network with its phases and losses, encoders and decoders, and the paper it comes from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from expresser.errors import InputError
from expresser.notebook import card
from translate.batches import Batch
from translate.covariates import Reference
from translate.feed import Feed, Inputs, start_from_data
from translate.phases import Phase, Terms, Turn
from translate.study import Modality, Study
from translate.verdicts import FEATURES


@dataclass(frozen=True)
class Published:
    """Where a system comes from and how ours departs from it.

    directions: (source, target) pairs; deviations: what differs from the paper, and why; presets say what they restore.
    """

    name: str
    reference: str
    doi: str
    pairing: str
    directions: tuple[tuple[Modality, Modality], ...]
    choose: str  # when to choose it
    deviations: tuple[str, ...]


class System(nn.Module):
    """A network whose children are the parts that the players of its phases move.

    A subclass is one published system and is built from its configuration and the fitted inputs. Configurations have `prior`,
    `base_rates` and `calibrated`; those that know batches, `batch` (a `translate.covariates.BatchColumn`); those that know
    labels of cells, `label` (a `LabelColumn`).
    """

    published: ClassVar[Published]
    reads: ClassVar[tuple[Modality, ...]] = (
        "rna",
        "atac",
        "protein",
    )  # modalities that its network takes, of those given
    needs: ClassVar[tuple[Modality, ...]] = ("rna",)  # without which it cannot be fitted
    judges_counts: ClassVar[bool] = False  # RNA targets are counts, not size-normalised ones
    raw_inputs: bool = False  # its RNA encoder reads counts, not what the recipe makes of them
    embeds: ClassVar[bool] = False  # what is wanted is the latent: fitted to, and judged on, all cells
    tells_depth: ClassVar[bool] = False  # its predictions can be asked for at a depth
    config_class: ClassVar[type[Any]]  # a frozen dataclass; its defaults are the system as it should be used
    presets: ClassVar[Mapping[str, Any]]  # named configurations

    def __init__(self, config: Any, inputs: Inputs) -> None:
        super().__init__()
        self.config, self.inputs, self.n_train = config, inputs, 1
        for source in ("rna", "atac") if "atac" in inputs else ():
            self.register_buffer(f"calibration_{source}", torch.tensor([1.0, 0.0]))  # slope and shift of its log-odds

    def phases(self) -> tuple[Phase, ...]:
        """What training consists of, in order."""
        raise TypeError(f"{type(self).__name__} has no phases.")

    def prepare(self, feed: Feed, cells: Int64[np.ndarray, " train"]) -> None:
        """Called before training, with the training cells: first weights that the data decide."""
        self.n_train = len(cells)
        start_from_data(self, feed, cells, base_rates=self.config.base_rates)

    def begin(self, phase: Phase, feed: Feed, train: Int64[np.ndarray, " train"], *, fresh: bool) -> None:
        """Called before a phase's first epoch of this run, on the device, nothing moving: what only the weights that the phases
        before left can give. fresh: the phase was not begun before, so that weights may be set."""

    def finish(self, feed: Feed, train: Int64[np.ndarray, " train"]) -> None:
        """Called after training and calibration, nothing moving: what only the final weights can give."""

    def reference(self, study: Study, train: Int64[np.ndarray, " train"]) -> Reference | None:
        """The embedding of another modality that training is guided by; None where the system takes none."""
        return None

    def with_prior(self, terms: Terms, heads: Sequence[tuple[Any, float]], batch: Batch, turn: Turn) -> Terms:
        """In training, one term more: the batch's part of the prior of these output layers' weights.

        With each head comes what its loss of a cell is multiplied by.
        """
        if turn.player is None or self.config.prior is None:
            return terms
        prior = torch.stack([head.prior(self.config.prior) * weight for head, weight in heads]).sum()
        return terms | {"prior": prior * (len(batch) / (batch.share * self.n_train))}

    def losses(self, batch: Batch, turn: Turn) -> Terms:
        """Named, weighted terms whose sum is minimised: sums over the batch's cells divided by `batch.share`.

        With no player, the terms that are watched.
        """
        raise TypeError(f"{type(self).__name__} does not say what it minimises.")

    def directions(self) -> tuple[tuple[Modality, Modality], ...]:
        """(source, target) pairs that this network, with these inputs, can decode; reconstructions included."""
        raise TypeError(f"{type(self).__name__} does not say what it translates.")

    def encode(self, batch: Batch, *, source: Modality, to: Modality) -> Float[Tensor, "cells latent"]:
        """Latents of cells measured in `source`, as the path to `to` uses them."""
        raise TypeError(f"{type(self).__name__} has no encoder.")

    def batch_codes(self, obs: pd.DataFrame, unknown: str | None = None) -> Int64[np.ndarray, " cells"] | None:
        """Numbers of the batches that cells of a query are of, where these matter.

        unknown: which batch ("reference": the largest of training) those are taken for whose own no training cell had.
        """
        if unknown is not None:
            raise InputError(
                f"{type(self).__name__} reads queries without regard to their batch: leave --batch (unknown_batch) out."
            )
        return None

    def context(
        self, batch: Batch, *, source: Modality, to: Modality, depth: float | str | None = None
    ) -> Float32[Tensor, "cells context"] | None:
        """What `decode` must know of each cell beside its latent, such as batch and depth; None where that is nothing.

        Where it is something, `decode` and `log_odds` take it as `context`.
        """
        return None

    def decode(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, to: Modality, features: slice
    ) -> Float32[Tensor, "cells features"]:
        """Predicted values of these features, on the scale of `translate.predicted.Predicted`."""
        raise TypeError(f"{type(self).__name__} has no decoder.")

    def log_odds(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, peaks: slice
    ) -> Float32[Tensor, "cells peaks"]:
        """Of these peaks being open, as trained."""
        raise TypeError(f"{type(self).__name__} does not predict peaks.")

    def probability(
        self, latent: Float[Tensor, "cells latent"], *, source: Modality, peaks: slice
    ) -> Float32[Tensor, "cells peaks"]:
        """Of these peaks being open, by what `translate.calibration` found for this source."""
        return self.as_probability(self.log_odds(latent, source=source, peaks=peaks), source=source)

    def as_probability(
        self, log_odds: Float[Tensor, "cells peaks"], *, source: Modality
    ) -> Float32[Tensor, "cells peaks"]:
        """Log-odds as trained, by the slope and shift that were found for this source."""
        slope, shift = self.get_buffer(f"calibration_{source}")
        return torch.sigmoid(slope * log_odds + shift)

    def facts(self) -> dict[str, Any]:
        """What a reader wants to know of the network, by name."""
        ways = [f"{source} → {to}" for source, to in self.directions() if source != to]
        embedded = [f"{source} embedded and imputed" for source, _ in self.directions()]
        genome = getattr(self.inputs.get("atac"), "genome", None)
        return {
            "paper": f"{self.published.reference} doi:{self.published.doi}",
            "directions": ", ".join(dict.fromkeys(embedded if self.embeds else ways)),
            "features": ", ".join(f"{len(found.var):,} {FEATURES[m]}" for m, found in self.inputs.items()),
            "genome": genome,
            "parameters": sum(weight.numel() for weight in self.parameters()),
            "device": str(next(self.parameters()).device),
        }

    def _repr_html_(self) -> str:
        return card(self.published.name, self.facts(), {"configuration": repr(self.config), "modules": repr(self)})

    def spaces(self) -> tuple[Modality, ...]:
        """The modalities `to` in whose latent cells of RNA and of ATAC can be compared: what `encode` gives of one cell from
        either is meant to be the same. Of one latent for both, one of the two names."""
        return ()
