"""The training state beside a checkpoint's weights: optimiser moments as safetensors, counters as JSON."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from expresser.errors import InputError
from expresser.optimizer_state import optimizer_tensors, restore_optimizer


def save_state(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, counters: dict[str, Any]) -> None:
    """Write ``state/optimizer.safetensors`` and ``state/loop.json`` into a checkpoint folder."""
    state = folder / "state"
    state.mkdir()
    save_file(optimizer_tensors(optimizer, dict(model.named_parameters())), state / "optimizer.safetensors")
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
    tensors = load_file(state / "optimizer.safetensors")
    restore_optimizer(optimizer, dict(model.named_parameters()), tensors, where=str(state))
    return json.loads((state / "loop.json").read_text())
