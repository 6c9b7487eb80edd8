"""The training state beside a checkpoint's weights: optimiser moments as safetensors, counters as JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from expresser.errors import InputError


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]) -> None:
    """Write ``state/optimizer.safetensors`` and ``state/loop.json`` into a checkpoint folder."""
    state = folder / "state"
    state.mkdir()
    tensors = {
        f"{name}.{key}": value.contiguous()
        for name, parameter in model.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
    }
    save_file(tensors, state / "optimizer.safetensors")
    (state / "loop.json").write_text(json.dumps(counters, indent=1, sort_keys=True) + "\n")


def load_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore the optimiser in place and return the counters.

    Raises
    ------
    InputError
        If the checkpoint has no training state, or that of another model.
    """
    state = folder / "state"
    if not (state / "loop.json").is_file():
        raise InputError(f"{folder}: no training state to resume from (state/loop.json is missing).")
    with safe_open(state / "optimizer.safetensors", framework="pt") as file:
        stored: set[str] = set(file.keys())
        for name, parameter in model.named_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{name}.{key}" in stored]
            if len(keys) not in (0, 3):
                raise InputError(f"{state}: the optimiser state of {name} is incomplete.")
            if keys:
                optimizer.state[parameter] = {
                    key: file.get_tensor(f"{name}.{key}").to(parameter.device if key != "step" else "cpu")
                    for key in keys
                }
                if optimizer.state[parameter]["exp_avg"].shape != parameter.shape:
                    raise InputError(f"{state}: the optimiser state of {name} has another shape than the weight.")
            stored -= {f"{name}.{key}" for key in keys}
    if stored:
        raise InputError(f"{state}: state of weights that the model does not have: {sorted(stored)[:5]}.")
    return json.loads((state / "loop.json").read_text())
