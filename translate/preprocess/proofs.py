"""Proofs of what a saved input holds: it may come from a folder of somebody else's making."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Shaped


def names_of(found: Any, what: str, *, n: int | None = None) -> list[str]:
    """A list of text without control characters, of `n` entries; without `n` of names that are given once and not empty.

    Raises ValueError for anything else.
    """
    if not isinstance(found, list) or not all(isinstance(name, str) and name.isprintable() for name in found):
        raise ValueError(f"{what}: a list of names is needed, without control characters")
    if n is None and (not found or "" in found or len(set(found)) < len(found)):
        raise ValueError(f"{what}: at least one name is needed, each once and none of them empty")
    if n is not None and len(found) != n:
        raise ValueError(f"{what}: {len(found):,} entries for {n:,} names")
    return found


def array_of(
    arrays: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...], kind: type[np.generic], *, finite: bool = False
) -> Shaped[np.ndarray, "..."]:
    """The array of this name, of just this shape and type; ValueError where it is none, or not finite where it must be."""
    found = arrays[name]
    if found.shape != shape or found.dtype != kind:
        raise ValueError(f"{name}: {found.dtype} of shape {found.shape}, {np.dtype(kind)} of {shape} is needed")
    if finite and not np.isfinite(found).all():
        raise ValueError(f"{name}: holds numbers that are not finite")
    return found
