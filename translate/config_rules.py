"""What no configuration of a system can be told, whichever system it is: the rules of numbers, by what their fields are called."""

import math
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from expresser.errors import InputError

_MOST = 1e12
_WIDEST = 10_000_000  # dimensions, cells of a step
_SIZES = ("latent", "hidden", "batch_size", "layers", "experts", "reference_dims")
_ABOVE_ZERO = ("lr", "eps", "factor", "critic_turns")
_SHARES = ("share", "factor", "average", "decay", "beta1")  # up to 1
_MAY_BE_ZERO = ("rna_blocks_lr",)  # blocks that stay as they are


def prove_config(config: Any) -> None:
    """InputError for the first number that no fit can have; its message says the option as the command line spells it."""
    for name, value in _numbers(config, ""):
        last = name.rpartition(".")[2]
        size = last.endswith(_SIZES)
        if not math.isfinite(value) or not 0 <= value <= _MOST:
            rule = "a finite number from 0"
        elif size and not 1 <= value <= _WIDEST:
            rule = f"from 1 to {_WIDEST:,}"
        elif last.endswith(_ABOVE_ZERO) and value == 0 and last not in _MAY_BE_ZERO:
            rule = "above 0"
        elif "dropout" in last and value >= 1:
            rule = "from 0 to below 1"
        elif last.endswith(_SHARES) and value > 1:
            rule = "from 0 to 1"
        else:
            continue
        raise InputError(f"--config.{name.replace('_', '-')} is {value}: it must be {rule}.")


def _numbers(part: Any, prefix: str) -> Iterator[tuple[str, float]]:
    for each in fields(part):
        value = getattr(part, each.name)
        if is_dataclass(value):
            yield from _numbers(value, f"{prefix}{each.name}.")
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, int | float) and not isinstance(one, bool):
                yield prefix + each.name, one
