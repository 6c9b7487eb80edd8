"""What the commands share: the device, and doubts said in one line."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from translate.pairing import PairingWarning
from translate.translator import Translator


def on_fastest(translator: Translator) -> Translator:
    """The translator on a CUDA device where there is one."""
    if torch.cuda.is_available():
        translator.system.to("cuda")
    return translator


@contextmanager
def notes() -> Iterator[None]:
    """Doubts about the pairing of cells as one line on stderr; all other warnings as they are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PairingWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, PairingWarning):
            print(f"warning: {warning.message}", file=sys.stderr)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
