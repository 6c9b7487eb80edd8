"""What the commands share: the device, and doubts said in one line."""

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import torch

from expresser.errors import InputError
from translate.study import DataWarning
from translate.translator import Translator


def on_fastest(translator: Translator) -> Translator:
    """The translator on a CUDA device where there is one."""
    if torch.cuda.is_available():
        translator.system.to("cuda")
    return translator


def prove_out(out: Path, *inputs: Path) -> None:
    """InputError, before anything is read, where a file cannot be written there, or is one of the inputs."""
    for path in inputs:
        if out.exists() and path.exists() and out.samefile(path):
            raise InputError(
                f"{out}: is to be written, but is also read ({path}) and would be lost. Choose another name."
            )
    there = next(folder for folder in (out.absolute().parent, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        why = "is no folder" if not there.is_dir() else "may not be written to"
        raise InputError(f"{out}: cannot be written, since {there} {why}. Choose another place.")


@contextmanager
def notes() -> Iterator[list[str]]:
    """Doubts about data as one line each on stderr, and in the list; all other warnings as they are."""
    doubts: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("always", DataWarning)
        usual = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, DataWarning):
                doubts.append(str(message))
                print(f"warning: {message}", file=sys.stderr)
            else:
                usual(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        yield doubts
