"""An optimiser's state as named tensors, for safetensors: no pickle."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from expresser.errors import InputError


def optimizer_tensors(optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The state of each named parameter as ``NAME.KEY``; parameters that have not moved have none."""
    return {
        f"{name}.{key}": torch.as_tensor(value).contiguous()
        for name, parameter in named.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor], *, where: str
) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises
    ------
    InputError
        If the tensors are of other parameters, or one has another shape than its parameter, or only part of its state.
    """
    found: dict[str, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition(".")
        found.setdefault(name, {})[key] = value
    if strange := sorted(found.keys() - named.keys()):
        raise InputError(f"{where}: state of weights that the model does not have: {_few(strange)}.")
    whole = set().union(*(state.keys() for state in found.values()))
    for name, state in found.items():
        parameter = named[name]
        if state.keys() != whole:
            raise InputError(f"{where}: the optimiser state of {name} is incomplete.")
        if any(value.ndim and value.shape != parameter.shape for value in state.values()):
            raise InputError(f"{where}: the optimiser state of {name} has another shape than the weight.")
        # A fused optimiser looks for the count of steps beside the weight, another one on the CPU.
        counts = parameter.device if optimizer.defaults.get("fused") else "cpu"
        optimizer.state[parameter] = {k: v.to(parameter.device if v.ndim else counts) for k, v in state.items()}


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5])
