"""Options as JSON has them, back as the frozen dataclasses that they were: each value proven to be of its field's type."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from expresser.errors import InputError
from expresser.foreign import shortened


def from_plain(kind: type[Any], plain: Mapping[str, Any], *, where: str) -> Any:
    """A dataclass from what JSON made of it: nested dataclasses and tuples are restored.

    Raises InputError for unknown names, and for a value that is none of the field's type.
    """
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}
    if unknown := sorted(set(plain) - names):
        raise InputError(
            f"{where}: {kind.__name__} has no {', '.join(map(shortened, unknown[:5]))}; it has {', '.join(sorted(names))}."
        )
    made = {}
    for name, value in plain.items():
        try:
            made[name] = _restored(hints[name], value, where)
        except TypeError as error:
            raise InputError(
                f"{where}: {kind.__name__}: {name} is {shortened(value)}, but it is of type {hints[name]}."
            ) from error
    return kind(**made)


def _restored(hint: Any, value: Any, where: str) -> Any:
    """The value as a hint has it; TypeError where it is none of it."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_plain(typing.cast(type[Any], hint), value, where=where)
    if origin in (types.UnionType, typing.Union):
        for part in parts:
            try:
                return _restored(part, value, where)
            except TypeError:
                continue
    elif origin is typing.Literal and any(value == one and type(value) is type(one) for one in parts):
        return value
    elif origin is tuple and isinstance(value, list):
        if len(parts) == 2 and parts[1] is Ellipsis:
            return tuple(_restored(parts[0], one, where) for one in value)
        if len(parts) == len(value):
            return tuple(_restored(part, one, where) for part, one in zip(parts, value))
    elif hint is float and type(value) in (int, float) and abs(value) < 1e308:
        return float(value)
    elif hint in (bool, int, str, type(None)) and type(value) is hint:
        return value
    raise TypeError
