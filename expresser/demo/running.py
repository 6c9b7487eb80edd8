"""Runs the stages of the demo, remembers in demo.json which commands are done, and goes on from there."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import anndata as ad
from rich.console import Console

from expresser import __version__, cli
from expresser.atomic import is_empty, remove_folder, replaced
from expresser.demo.plan import Command, Held, Size, Stage
from expresser.errors import InputError
from expresser.record import write_metrics

RECORD = "demo.json"


class Record:
    """``demo.json``: what demo the folder is of, and of each step that is done its seconds, of a clock and of the processor."""

    def __init__(self, out: Path, size: Size, seed: int) -> None:
        """InputError where the folder holds something else, or a demo of other size, seed or version."""
        self.path = out / RECORD
        about = {"version": __version__, "seed": seed, "size": asdict(size)}
        if self.path.is_file():
            self._known = json.loads(self.path.read_text())
            changed = [key for key in about if self._known["demo"].get(key) != about[key]]
            if changed:
                was, now = (
                    ", ".join(f"{key} {found.get(key)!r}" for key in changed) for found in (self._known["demo"], about)
                )
                raise InputError(f"{out}: holds a demo of {was}, and this one is of {now}. Choose another --out.")
            return
        if out.exists() and (not out.is_dir() or not is_empty(out)):
            raise InputError(
                f"{out}: not empty, and not a demo's folder. Choose another --out, or remove what is there."
            )
        self._known = {"demo": about, "steps": {}}
        out.mkdir(parents=True, exist_ok=True)
        write_metrics(self.path, self._known)

    def of(self, step: Command | Held) -> Mapping[str, Any]:
        """What is known of a step that was begun: command, seconds, cpu_seconds, attempts, done; nothing of one that was not."""
        return self._known["steps"].get(self._key(step), {})

    def done(self, step: Command | Held) -> bool:
        """Whether a step ended well and what it made is still there."""
        return bool(self.of(step).get("done")) and all(path.exists() for path in products(step))

    def add(self, step: Command | Held, seconds: float, cpu_seconds: float, *, done: bool) -> None:
        """An attempt at a step, which may have been interrupted: what it cost is added up."""
        before = self.of(step)
        self._known["steps"][self._key(step)] = {
            "command": step.line,
            "seconds": before.get("seconds", 0.0) + seconds,
            "cpu_seconds": before.get("cpu_seconds", 0.0) + cpu_seconds,
            "attempts": before.get("attempts", 0) + 1,
            "done": done,
        }
        write_metrics(self.path, self._known)

    def _key(self, step: Command | Held) -> str:
        # Not the command, which names the folder: that may be called by another path next time.
        return str(products(step)[-1].relative_to(self.path.parent))


def products(step: Command | Held) -> list[Path]:
    """The files that are there when a step has ended well."""
    if isinstance(step, Command):
        return [step.makes]
    return [path.with_name(f"{part}_{path.name}") for path in step.files for part in ("seen", "unseen")]


def run_stages(plan: Sequence[Stage], record: Record, console: Console) -> None:
    """Every step that is not done yet, through the command line's own entry point.

    SystemExit, as the command that failed or was stopped leaves: what is done is kept, and the same demo goes on from there.
    """
    for stage in plan:
        waiting = [step for step in stage.steps if not record.done(step)]
        console.rule(f"[bold]{stage.name}" + ("" if waiting else ": done before"))
        for step in waiting:
            at, busy = time.perf_counter(), time.process_time()
            done = False
            try:
                _do(step, console)
                done = all(path.exists() for path in products(step))
            except SystemExit as end:
                _say_how_to_go_on(console, stage)
                raise SystemExit(end.code or 1) from None  # a training that was told to stop leaves with 0
            except KeyboardInterrupt:
                _say_how_to_go_on(console, stage)
                raise
            finally:
                record.add(step, time.perf_counter() - at, time.process_time() - busy, done=done)
            if not done:
                missing = [str(path) for path in products(step) if not path.exists()]
                raise InputError(f"{step.line}: ended without {', '.join(missing)}. Repeat the demo to try it again.")


_STYLE: dict[str, Any] = {"style": "cyan", "highlight": False, "soft_wrap": True, "markup": False}


def brief(line: str) -> str:
    """The line, with a long list of genes cut: it is for reading."""
    words = line.split(" ")
    genes = [i for i, word in enumerate(words) if word.startswith("SIM")]
    return " ".join([*words[: genes[2]], "…", *words[genes[-1] :]]) if len(genes) > 4 else line


def _say_how_to_go_on(console: Console, stage: Stage) -> None:
    console.print(f"stopped in stage {stage.name!r}; the same command goes on from there", style="bold")


def _do(step: Command | Held, console: Console) -> None:
    if isinstance(step, Held):
        console.print(step.line, **_STYLE)
        _hold_out(step)
        return
    folder = step.makes.parent
    if step.again == "resume" and (folder / "run.json").is_file():
        step = replace(step, words=(*step.words, "--resume"))
    elif step.again == "anew" and folder.exists():
        remove_folder(folder)
    console.print(f"$ {brief(step.line)}", **_STYLE)
    cli.main(list(step.words))


def _hold_out(step: Held) -> None:
    for path in step.files:
        cells = ad.read_h5ad(path)
        for part, made in (("seen", cells[: -step.cells]), ("unseen", cells[-step.cells :])):
            with replaced(path.with_name(f"{part}_{path.name}")) as file:
                made.copy().write_h5ad(file)
