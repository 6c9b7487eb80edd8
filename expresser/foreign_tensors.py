"""Weights from elsewhere: the file's head is proven before a number is read, and a network is built only if the file fills it."""

import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from expresser.errors import InputError
from expresser.foreign import file_in, shortened

HEAD = 16 << 20  # bytes of a file's head; a thousand weights take a hundred thousand
_SHOWN = 5

# Kinds of numbers that this program, and those that it takes weights from, write; of floats of 8 bits and fewer not even whether
# they are finite can be asked.
_KINDS = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}

Shapes = dict[str, tuple[int, ...]]
Network = TypeVar("Network", bound=nn.Module)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the library says of a file that lies about itself, in one message.

    It refuses a head that is longer than the file or no JSON, unknown types, and numbers that overlap, leave gaps, do not have the
    length that type and shape say, or end elsewhere than the file.
    """
    try:
        yield
    except InputError:
        raise
    except (SafetensorError, ValueError, TypeError, OSError, LookupError, MemoryError, OverflowError) as error:
        said = f"{type(error).__name__}: {error}"
        raise InputError(f"{path}: cut short or altered ({said}). Copy it again.") from error


def tensor_shapes(path: Path) -> Shapes:
    """Shape of each tensor, from the head alone.

    Raises
    ------
    InputError
        If the file is none of a folder's own (`file_in`), cannot be read, is cut short or altered, its head is larger than 16 MiB,
        or it holds numbers of a kind that is not read (quantised ones).
    """
    file_in(path.parent, path.name)
    with _told(path), open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > HEAD:
        raise InputError(f"{path}: its head claims {length:,} bytes; at most {HEAD:,} are read. Copy it again.")
    with _told(path), safe_open(path, framework="np") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 (no mapping)
        kinds = {key: str(one.get_dtype()) for key, one in slices.items()}
        if strange := next((key for key in sorted(kinds) if kinds[key] not in _KINDS), None):
            raise InputError(
                f"{path}: {shortened(strange)} holds numbers of kind {kinds[strange]}, which are not read. Save the weights as "
                "float32, bfloat16 or float16."
            )
        return {key: tuple(one.get_shape()) for key, one in slices.items()}


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, *, finite: bool = True
) -> dict[str, Tensor]:
    """All tensors of a file, on the CPU, by default proven finite; with `shapes` those names and shapes alone.

    Memory: the size of the file.
    """
    prove_shapes(path, shapes)
    with _told(path):
        found = safetensors.torch.load_file(path)
    for name, values in found.items():
        if finite and values.is_floating_point() and not bool(torch.isfinite(values).all()):
            raise _not_finite(path, name)
    return found


def read_arrays(
    path: Path, shapes: Mapping[str, tuple[int, ...]] | None = None, *, finite: bool = True
) -> dict[str, np.ndarray]:
    """The same as numpy arrays, whose types bfloat16 is none of."""
    prove_shapes(path, shapes)
    with _told(path):
        found = safetensors.numpy.load_file(path)
    for name, values in found.items():
        if finite and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise _not_finite(path, name)
    return found


def _not_finite(path: Path, name: str) -> InputError:
    return InputError(
        f"{path}: {name} holds numbers that are not finite (NaN or infinite), so nothing it predicts would be one. Take a copy or a "
        "checkpoint from before."
    )


def prove_shapes(path: Path, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """InputError that names the first weights in which the file differs from `shapes`, before any is read."""
    found = tensor_shapes(path)
    if shapes is None:
        return
    wrong = sorted(key for key in shapes.keys() | found.keys() if shapes.get(key) != found.get(key))
    if wrong:
        said = "; ".join(f"{key}: {_words(found.get(key))} for {_words(shapes.get(key))}" for key in wrong[:_SHOWN])
        raise InputError(
            f"{path}: the weights do not fit the configuration ({len(wrong)} of {len(shapes)} differ: {said}). "
            "Use the configuration that was saved with these weights."
        )


def _words(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else " x ".join(map(str, shape)) or "one number"


def fitting(path: Path, build: Callable[[], Network]) -> Network:
    """The network of `build`, without memory for its weights (on torch's meta device), where the file has exactly its weights.

    A configuration of absurd sizes takes no memory here, and one of absurdly many layers ends as soon as there are more weights,
    or far more parts, than the file can have.

    Raises
    ------
    InputError
        If names or shapes differ.
    """
    found = tensor_shapes(path)
    try:
        with _at_most(path, len(found)), torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of sizes that are refused below
            network = build()
    except InputError:
        raise
    except (
        ArithmeticError,
        LookupError,
        MemoryError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:  # what a layer says of sizes
        said = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError(
            f"{path.parent}: no network can be built with this configuration ({said}). Copy the folder again."
        ) from error
    prove_shapes(path, {key: tuple(value.shape) for key, value in network.state_dict().items()})
    return network


@contextmanager
def _at_most(path: Path, tensors: int) -> Iterator[None]:
    """In this thread, networks of at most so many weights and some parts for each can be built."""
    here, count = threading.get_ident(), {"weights": 0, "parts": 0}
    most = {"weights": 2 * tensors + 64, "parts": 32 * tensors + 256}

    def counted(kind: str) -> Callable[..., None]:
        def count_one(*of: Any) -> None:
            if threading.get_ident() != here or of[-1] is None:
                return
            count[kind] += 1
            if count[kind] > most[kind]:
                raise InputError(
                    f"{path}: the weights do not fit the configuration, which asks for more than {most[kind]:,} {kind} where the "
                    f"file has {tensors:,} weights. Use the configuration that was saved with these weights."
                )

        return count_one

    hooks = [
        torch_module.register_module_parameter_registration_hook(counted("weights")),
        torch_module.register_module_buffer_registration_hook(counted("parts")),
        torch_module.register_module_module_registration_hook(counted("parts")),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
