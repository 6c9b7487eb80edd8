"""What a run lives through: signals that ask it to leave, a disk that takes no more, a loss that is no number."""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from accelerate.utils import gather_object
from safetensors import SafetensorError

from expresser.record import write_metrics

NOT_SAVED = (OSError, SafetensorError)
"""What saving raises where the disk is full, a quota is used up or a file system went away."""

SAME_WISH = 5.0  # seconds
NAMED = 20  # cells named in a message; the file names all


class Signals:
    """Turns the first SIGTERM (a scheduler takes the machine back) or SIGINT (Ctrl-C) into a wish to save and leave.

    One that comes more than 5 s later ends the process, as it would have without us; before that it is the same wish, passed on by a
    launcher that was told too. Outside the main thread no signal can be caught, and none is.
    """

    CAUGHT = (signal.SIGTERM, signal.SIGINT)

    def __init__(self) -> None:
        self.came = 0
        """The signal that came, 0 for none."""
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._came) for number in self.CAUGHT}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    @property
    def flags(self) -> tuple[float, float]:
        """One for SIGTERM, one for SIGINT: sums over processes say whether any has been told to leave."""
        return float(self.came == signal.SIGTERM), float(self.came == signal.SIGINT)

    @staticmethod
    def name(term: float, interrupt: float) -> str | None:
        """What summed flags amount to; None for nothing."""
        return "SIGTERM" if term else "SIGINT" if interrupt else None

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _came(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if not self.came:
            self.came, self._when = number, now
        elif now - self._when > SAME_WISH:
            self._restore()
            os.kill(os.getpid(), number)


class NotFinite(FloatingPointError):
    """A loss or a gradient that is no number. Nothing of the step reached the weights of a checkpoint."""


def not_finite(
    out: Path, what: str, value: float, *, step: int, mine: Sequence[int], is_main: bool, newest: Path | None
) -> NotFinite:
    """Write ``not_finite.json`` with the cells of the micro-batches at fault, over all processes, and return what to raise.

    All processes must call this. ``mine``: corpus cell ids (rows of its obs) of this process's micro-batches at fault. ``newest``: the
    newest checkpoint.
    """
    cells = [int(cell) for cell in gather_object(list(mine))]
    path, shown = out / "not_finite.json", cells[:NAMED]
    if is_main:
        try:
            write_metrics(path, {"step": step, "what": what, "value": str(value), "cells": cells, "time": time.time()})
        except OSError:
            shown = cells  # there is no other place for them
    more = f" and {len(cells) - len(shown)} more, all in {path}" if len(cells) > len(shown) else ""
    again = f"--start {newest}" if newest else "there is no checkpoint yet"
    return NotFinite(
        f"the {what} became {value} at step {step} on cells {shown}{more} (rows of the corpus's obs). Look at them; no checkpoint has "
        f"weights of this step. --resume would repeat it: begin a run with other options, such as --optim.lr, from here ({again})."
    )
