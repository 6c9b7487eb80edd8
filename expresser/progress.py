"""Progress bars: on stderr where it is a terminal, as one output of the cell in a notebook, nothing where nobody looks."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

Report = Callable[..., None]  # (done, total, what=""); total None: not known

_EVERY = 0.2  # seconds between two drawings in a notebook
_STAGE = 0.05  # and where what is done has changed


def in_notebook() -> bool:
    """Whether a Jupyter kernel (JupyterLab, VS Code, Colab, nbclient) runs this process, and can show HTML."""
    ipython = sys.modules.get("IPython")  # a kernel has imported it; a plain process is spared the import
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


@contextmanager
def progress_bar(label: str, *, active: bool = True) -> Iterator[Report]:
    """A bar driven by ``report(done, total, what)``.

    On stderr; silent where that is no terminal, but for notebooks, where it is an output of the cell and leaves one line.
    total None: not known, something moves; what: added to the label.
    """
    if active and in_notebook():
        bar = NotebookBar(label)
        try:
            yield bar.report
        except BaseException:
            bar.close("stopped")
            raise
        bar.close("done")
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, disable=not (active and console.is_terminal), transient=True) as terminal:
        task = terminal.add_task(label, total=None)

        def report(done: int, total: int | None, what: str = "") -> None:
            terminal.update(task, completed=done, total=total, description=f"{label}: {what}" if what else label)

        yield report


@contextmanager
def shown(progress: Report | bool | None, label: str) -> Iterator[Report | None]:
    """What a function's argument `progress` means: True is a bar of its own, None and False are none."""
    if progress is True:
        with progress_bar(label) as report:
            yield report
    else:
        yield progress or None


class NotebookBar:
    """One output of a notebook's cell, redrawn in place at most five times a second.

    What is drawn is replaced (``update_display_data``), so a notebook that is saved holds the last of it alone; no widget, and
    so no extension of Jupyter, is needed.
    """

    def __init__(self, label: str) -> None:
        self.label, self.what, self.end = label, "", ""
        self.done = 0
        self.total: int | None = None
        self._began = self._drawn = time.monotonic()
        self._handle: Any = None

    def report(self, done: int, total: int | None, what: str = "") -> None:
        """So much is done."""
        changed, self.done, self.total, self.what = what != self.what, done, total, what
        if self._handle is None or time.monotonic() - self._drawn >= (_STAGE if changed else _EVERY):
            self._draw()

    def close(self, end: str) -> None:
        """The last drawing: a line that says how it ended ("done") and how long it took."""
        self.end = end
        self._draw()

    def _draw(self) -> None:
        from IPython.display import display

        self._drawn = time.monotonic()
        if self._handle is None:
            self._handle = display(self, display_id=True)
        else:
            self._handle.update(self)

    def __repr__(self) -> str:
        head = f"{self.label}: {self.what}" if self.what and self.end != "done" else self.label
        far = f"{self.done:,} of {self.total:,}" if self.total else ""
        if self.end:
            far = f"{self.end} after {_clock(time.monotonic() - self._began)}" + (
                f", at {far}" if far and self.end != "done" else ""
            )
        return "  ".join(part for part in (head, far) if part)

    def _repr_html_(self) -> str:
        bar = ""
        if not self.end:
            known = f' max="{self.total}" value="{min(self.done, self.total)}"' if self.total else ""
            bar = f'<progress{known} style="width:12em;vertical-align:middle" aria-label="{escape(self.label)}"></progress> '
        return f"<div>{bar}<span>{escape(repr(self))}</span></div>"


def _clock(seconds: float) -> str:
    """Seconds as people read them: 4.2 s, 3:07, 1:02:09."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
