"""When to stop, when to slow down: what a phase does with its validation loss after each epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plateau:
    """The learning rate times `factor` after `patience` epochs without a loss `threshold` (relative) below the best."""

    factor: float = 0.1  # what the learning rate is multiplied by where the loss no longer falls
    patience: int = 10  # epochs without a better loss before that
    threshold: float = 1e-4  # how much lower, as a share, a loss must be to be better
    floor: float = 1e-6  # the learning rate goes no lower
    watches: Literal["valid", "train"] = "valid"
    """Which loss it goes by."""


@dataclass
class Watch:
    """The best validation loss of a phase, and how long ago it was. NaN is never better."""

    patience: int | None  # None: every epoch is run
    threshold: float
    plateau: Plateau | None
    best: float = math.inf
    best_epoch: int = -1
    bad_epochs: int = 0
    plateau_best: float = math.inf
    plateau_bad: int = 0
    scale: float = 1.0  # of the learning rate

    def see(self, epoch: int, loss: float, trained: float) -> bool:
        """Take an epoch's validation and training loss; whether the first is the best so far by the relative threshold."""
        better = loss < _below(self.best, self.threshold)
        if better:
            self.best, self.best_epoch, self.bad_epochs = loss, epoch, 0
        else:
            self.bad_epochs += 1
        if self.plateau is not None:
            judged = loss if self.plateau.watches == "valid" else trained
            if judged < _below(self.plateau_best, self.plateau.threshold):
                self.plateau_best, self.plateau_bad = judged, 0
            else:
                self.plateau_bad += 1
            if self.plateau_bad > self.plateau.patience:
                self.scale, self.plateau_bad = self.scale * self.plateau.factor, 0
        return better

    @property
    def over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.bad_epochs >= self.patience

    def rate(self, lr: float) -> float:
        """The learning rate now."""
        return max(lr * self.scale, min(lr, self.plateau.floor)) if self.plateau is not None else lr

    def saved(self) -> dict[str, int | float]:
        """What has been seen, for JSON."""
        names = ("best", "best_epoch", "bad_epochs", "plateau_best", "plateau_bad", "scale")
        return {name: getattr(self, name) for name in names}

    def restore(self, saved: Mapping[str, int | float]) -> None:
        """Go on from `saved()`."""
        for name, value in saved.items():
            setattr(self, name, type(getattr(self, name))(value))


def _below(best: float, threshold: float) -> float:
    """What counts as better: lower by a share of the best's size, for losses of either sign."""
    return best if math.isinf(best) else best - threshold * abs(best)
