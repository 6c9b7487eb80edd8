"""A fit's state on disk, whole or absent: weights, the best weights, optimisers, and where it stood."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from expresser.atomic import replaced_folder, sweep
from expresser.errors import InputError
from expresser.foreign import prove_types, read_mapping
from expresser.foreign_tensors import read_tensors
from expresser.optimizer_state import optimizer_tensors, restore_optimizer
from translate.phases import Phase

_COUNTERS: dict[str, type] = {"phase": int, "epoch": int, "epochs": int, "watch": dict}


@dataclass(frozen=True)
class Saved:
    """What `save_state` wrote."""

    phase: int  # number of the phase to go on with
    epoch: int  # its next epoch
    epochs: int  # epochs done over all phases
    watch: Mapping[str, int | float]
    system: dict[str, Tensor]
    best: dict[str, Tensor] | None
    mean: dict[str, Tensor] | None  # of the weights, where they are averaged
    optimizers: dict[str, Tensor]
    folder: Path

    def restore_optimizers(
        self, system: nn.Module, optimizers: Mapping[str, torch.optim.Optimizer], phase: Phase
    ) -> None:
        """Put each player's optimiser where it was."""
        named = dict(system.named_parameters())
        for player in phase.players:
            mark = f"{player.name}|"
            own = {key.removeprefix(mark): value for key, value in self.optimizers.items() if key.startswith(mark)}
            moved = {name: p for name, p in named.items() if name.split(".")[0] in player.parts}
            restore_optimizer(optimizers[player.name], moved, own, where=str(self.folder))


def save_state(
    folder: Path,
    *,
    system: Mapping[str, Tensor],
    best: Mapping[str, Tensor] | None,
    mean: Mapping[str, Tensor] | None,
    optimizers: Mapping[str, tuple[torch.optim.Optimizer, Mapping[str, nn.Parameter]]],
    counters: Mapping[str, Any],
) -> None:
    """Write the state folder so that it is either the old one or the new one, whole."""
    with replaced_folder(folder) as part:
        for name, weights in (("system", system), ("best", best), ("mean", mean)):
            if weights is not None:
                save_file({key: value.contiguous() for key, value in weights.items()}, part / f"{name}.safetensors")
        tensors: dict[str, Tensor] = {}
        for player, (optimizer, named) in optimizers.items():
            tensors |= {f"{player}|{key}": value for key, value in optimizer_tensors(optimizer, named).items()}
        save_file(tensors, part / "optimizers.safetensors")
        (part / "counters.json").write_text(json.dumps(dict(counters), indent=1, sort_keys=True) + "\n")


def load_state(folder: Path) -> Saved | None:
    """The state of an interrupted fit, None where there is none; InputError where it is damaged."""
    sweep(folder.parent, folder.name)  # left by a fit that was killed while it saved
    if not (folder / "counters.json").is_file():
        return None
    try:
        return _read(folder)
    except InputError as error:
        raise InputError(f"{folder}: the saved state is damaged ({error}) Remove it to start afresh.") from error


def _read(folder: Path) -> Saved:
    counters = read_mapping(folder / "counters.json")
    if lacking := [key for key in _COUNTERS if counters.get(key) is None]:
        raise InputError(f"{folder / 'counters.json'}: no {lacking[0]}.")
    prove_types(counters, _COUNTERS, str(folder / "counters.json"))
    best, mean = (
        read_tensors(path, finite=False) if path.is_file() else None
        for path in (folder / "best.safetensors", folder / "mean.safetensors")
    )
    return Saved(
        phase=counters["phase"],
        epoch=counters["epoch"],
        epochs=counters["epochs"],
        watch=counters["watch"],
        system=read_tensors(folder / "system.safetensors", finite=False),
        best=best,
        mean=mean,
        optimizers=read_tensors(folder / "optimizers.safetensors", finite=False),
        folder=folder,
    )
