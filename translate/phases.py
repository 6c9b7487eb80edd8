"""What training consists of: a phase is players taking turns on the same batches until the watched loss no longer falls."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from expresser.corpus.shuffle import splitmix64
from expresser.corpus.stream import permutation
from translate.schedules import Plateau
from translate.study import Modality

Terms = dict[str, Float[Tensor, ""]]


@dataclass(frozen=True)
class Optimizer:
    """Which optimiser."""

    kind: Literal["adam", "rmsprop"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0  # added to the gradient, times the weight (Adam's own, not AdamW's)
    eps: float = 1e-8  # below which Adam takes a gradient for small

    def build(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Of these parameters; one with an attribute `lr_share` (pretrained) moves at that share of the learning rate."""
        by_share: dict[float, list[nn.Parameter]] = {}
        for parameter in parameters:
            by_share.setdefault(float(getattr(parameter, "lr_share", 1.0)), []).append(parameter)
        groups = [{"params": some, "lr": self.lr * share, "share": share} for share, some in by_share.items()]
        if self.kind == "rmsprop":
            return torch.optim.RMSprop(groups, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.Adam(groups, self.lr, self.betas, self.eps, self.weight_decay, fused=True)


@dataclass(frozen=True)
class Player:
    """Parts of the system that move together. All others are frozen during its turn: eval mode, no gradient.

    every: takes its turn on batches 0, every, 2 every, …; clip_norm: of the gradient; clip_weights: to ± this after a step.
    """

    name: str
    parts: tuple[str, ...]
    optimizer: Optimizer
    every: int = 1
    clip_norm: float | None = None
    clip_weights: float | None = None


@dataclass(frozen=True)
class Beside:
    """Other cells that go along with those of a phase, drawn by themselves: as many a step, going round.

    An epoch is one pass over the phase's own cells; of these it takes as many, and the next goes on where it stopped.
    """

    modalities: tuple[Modality, ...]  # that they have, and that are read
    lacks: tuple[Modality, ...] = ()  # that they have not
    watched: bool = True  # whether the watched loss needs them too
    among: tuple[Modality, ...] = ()  # that they have without being read


@dataclass(frozen=True)
class Phase:
    """Training with the same players and losses until the epochs are over or the watched loss no longer falls.

    monitor: the name of a term of the validation losses, or "loss" for their sum; its best weights are restored at the end.
    patience None: all epochs are run and the last weights are kept. decay: what the learning rate is multiplied by after each
    epoch. average: how much of the running mean of weights stays
    at each step (0.99: the last hundred steps count); then it is the mean that is watched and kept. beside: cells that are not
    those of the step, such as ATAC cells with unpaired RNA cells (`Batch.beside`). among: modalities that its cells have without
    being read.
    """

    name: str
    players: tuple[Player, ...]
    modalities: tuple[Modality, ...]
    epochs: int
    batch_size: int
    monitor: str = "loss"
    patience: int | None = None
    threshold: float = 1e-4
    plateau: Plateau | None = None
    decay: float = 1.0
    average: float | None = None
    beside: tuple[Beside, ...] = ()
    among: tuple[Modality, ...] = ()


@dataclass(frozen=True)
class Turn:
    """Whose turn it is; `player` is None when cells are judged only."""

    phase: str
    player: str | None
    epoch: int
    key: int  # of this epoch's noise: a function of seed, phase and epoch
    passed: float = 0.0  # epochs of the phase gone by at this step, for what is annealed step by step


def noise_key(*parts: int) -> int:
    """One 63-bit integer for a purpose's parts."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        state = splitmix64(state + np.uint64(part % 2**64))
    return int(state[0] >> np.uint64(1))


def playing(system: nn.Module, parts: Sequence[str]) -> None:
    """These parts move; all others are frozen: eval mode, no gradient."""
    for name, part in system.named_children():
        part.train(name in parts).requires_grad_(name in parts)


def named_parameters(system: nn.Module, player: Player) -> dict[str, nn.Parameter]:
    """What a player moves, in a fixed order. ValueError where a part is not a child of the system."""
    children = dict(system.named_children())
    if unknown := set(player.parts) - children.keys():
        raise ValueError(f"player {player.name!r} moves {sorted(unknown)}, but the parts are {sorted(children)}.")
    return {f"{part}.{name}": p for part in player.parts for name, p in children[part].named_parameters()}


def cuts(cells: Int64[np.ndarray, " cells"], size: int) -> Iterator[Int64[np.ndarray, " batch"]]:
    """Runs of `size` cells; a last run of one joins the one before, since one cell has no variance to be normalised by."""
    stops = [*list(range(size, len(cells), size)), len(cells)]
    if len(stops) > 1 and stops[-1] - stops[-2] == 1:
        del stops[-2]
    for start, stop in zip([0, *stops], stops):
        yield cells[start:stop]


def going_round(
    cells: Int64[np.ndarray, " cells"], start: int, sizes: Sequence[int], *key: int
) -> Iterator[Int64[np.ndarray, " _"]]:
    """So many of these cells, and so on, from the `start`-th of an endless list: each round is another permutation of them."""
    number, at = divmod(start, len(cells))
    order = cells[permutation(len(cells), *key, number)]
    for size in sizes:
        taken = [order[at : at + size]]
        at, lacking = at + size, size - len(taken[0])
        while at >= len(cells):
            number += 1
            order = cells[permutation(len(cells), *key, number)]
            taken.append(order[:lacking])
            at, lacking = at - len(cells), lacking - len(taken[-1])
        yield np.concatenate(taken)
