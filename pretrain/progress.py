"""A progress bar with loss, cells/s, targets/s and time left; plain lines where there is neither terminal nor notebook."""

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from expresser.progress import NotebookBar, in_notebook


class Progress:
    """Shows a run's steps."""

    def __init__(self, total: int, done: int, *, quiet: bool = False) -> None:
        self.total, self.quiet = total, quiet
        self.console = Console(stderr=True)
        self.notebook = NotebookBar("pretrain") if not quiet and in_notebook() else None
        self.bar = Bar(
            TextColumn("pretrain"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            disable=quiet or self.notebook is not None or not self.console.is_terminal,
        )
        self.task = self.bar.add_task("pretrain", total=total, completed=done, note="")

    def __enter__(self) -> "Progress":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()
        if self.notebook is not None:
            self.notebook.close("done" if kind is None else "stopped")

    def advance(self, step: int, entry: dict[str, Any]) -> None:
        """One step done; ``entry`` is its log line, empty where none was written."""
        note = _note(entry)
        if self.notebook is not None:
            self.notebook.report(step, self.total, note or self.notebook.what)
            return
        self.bar.update(self.task, completed=step)
        if note:
            self.bar.update(self.task, note=note)
        if "valid" in entry and not self.quiet and not self.console.is_terminal:
            self.console.print(f"step {step}/{self.total}  {note}", highlight=False, soft_wrap=True)


def _note(entry: dict[str, Any]) -> str:
    parts = []
    if "loss" in entry:
        parts.append(f"loss {entry['loss']:.4f}")
    if "valid" in entry:
        parts.append(
            f"valid MSE {entry['valid']['mse']:.4f}  MAE {entry['valid']['mae']:.4f}  r {entry['valid']['pearson']:.3f}"
        )
    if "cells_per_s" in entry:
        parts.append(f"{entry['cells_per_s']:,.0f} cells/s  {entry['targets_per_s']:,.0f} targets/s")
    return "  ".join(parts)
