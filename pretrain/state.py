"""The training state beside a checkpoint's weights: optimiser moments as safetensors, counters as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from expresser.errors import InputError
from expresser.foreign import prove_types, read_mapping
from expresser.foreign_tensors import read_tensors


def save_state(folder: Path, moments: Mapping[str, Tensor], counters: Mapping[str, Any]) -> None:
    """Write ``state/optimizer.safetensors`` and ``state/loop.json`` into a checkpoint folder."""
    state = folder / "state"
    state.mkdir()
    save_file(dict(moments), state / "optimizer.safetensors")
    (state / "loop.json").write_text(json.dumps(counters, indent=1, sort_keys=True) + "\n")


def load_state(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The optimiser's tensors by name of weight, and the counters.

    Raises
    ------
    InputError
        If the checkpoint has no training state, or one that is damaged.
    """
    state = folder / "state"
    if not (state / "loop.json").is_file():
        raise InputError(f"{folder}: no training state to resume from (state/loop.json is missing).")
    counters = read_mapping(state / "loop.json")
    prove_types(counters, {"cells_seen": int, "seconds": (int, float), "step": int}, str(state / "loop.json"))
    return read_tensors(state / "optimizer.safetensors", finite=False), counters
