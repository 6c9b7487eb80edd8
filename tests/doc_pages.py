"""Runs the code blocks of pages, each page in a new folder, and compares what they print with what the page shows.

`python tests/doc_pages.py PAGE…` runs pages and prints what each block printed; with `--write` new output goes into the
pages' text blocks.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import doc_inputs
import local_hub
from doc_blocks import Block, blocks, commands, matched, missing, wanted, without_colours
from local_server import running
from warm_commands import END, seconds_used, warm_commands


@contextmanager
def runners(folder: Path) -> Iterator["Folders"]:
    """Makes a runner for each page, in a folder of its own with what the page wants provided; all share one process of commands.

    Pages that push and pull reach a hub on this machine and none other.
    """
    served = running(local_hub.HubHandler, local_hub.Hub())
    hub = next(served)
    try:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(folder / "hub"), "HF_HUB_DISABLE_XET": "1"}
        environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
        with warm_commands(environment) as bin:
            yield Folders(folder, bin, environment)
    finally:
        next(served, None)  # stops it: its thread would outlive a test that failed


class Folders:
    """Makes runners, each in a new folder below `folder`."""

    def __init__(self, folder: Path, bin: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.bin, self.environment = folder, bin, environment
        self.ran: dict[Path, tuple[Path, int]] = {}

    def __call__(self, page: Path) -> "Runner":
        place = Path(tempfile.mkdtemp(dir=self.folder, prefix=f"{page.stem}-"))
        if (before := wanted(page, "after")) is not None:
            shutil.copytree(self.run((page.parent / before).resolve())[0], place, dirs_exist_ok=True)
        if (inputs := wanted(page, "with")) is not None:
            getattr(doc_inputs, inputs)(place)
        return Runner(place, self.bin, self.environment)

    def run(self, page: Path) -> tuple[Path, int]:
        """The folder as the page leaves it, and how many blocks ran; a page that others go on from runs once."""
        if page not in self.ran:
            with self(page) as runner:
                self.ran[page] = runner.folder, run_page(page, runner)
        return self.ran[page]


class Failed(AssertionError):
    """A block did something else than the page says."""


class Runner:
    """Runs the blocks of one page in one folder."""

    def __init__(self, folder: Path, bin: Path, environment: Mapping[str, str]) -> None:
        self.folder, self.bin = folder, bin
        search = os.pathsep.join([str(bin), str(Path(sys.executable).parent), environment["PATH"]])
        # A width at which tables are not folded; no terminal, so no progress bars and no colours.
        self.environment = {**environment, "PATH": search, "COLUMNS": "150"}
        self.session: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        if self.session is not None:
            with self.session:  # closes its input, at which it ends, and waits
                pass

    def run(self, block: Block) -> str:
        """What a block prints; `Failed` where it ends otherwise than it should."""
        if block.language == "python":
            return self._python(block)
        wanted = int(block.options.get("exit", "0"))
        script = f"set -euo pipefail\n{block.text}"
        done = subprocess.run(
            ["bash", "-c", script], cwd=self.folder, env=self.environment, text=True, timeout=600,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        # Whoever read the output, such as `head`, may have seen enough before its end: no failure without pipefail.
        if done.returncode != wanted and not (done.returncode == 141 and "| head" in block.text):
            raise Failed(
                f"{block}: exit code {done.returncode}, not {wanted}:\n{block.text}\nIt printed:\n{done.stdout}"
            )
        return done.stdout

    def _python(self, block: Block) -> str:
        if self.session is None:
            self.session = subprocess.Popen(
                [self.bin / "python-session"], cwd=self.folder, env=self.environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )  # fmt: skip
        assert self.session.stdin is not None
        assert self.session.stdout is not None
        print(json.dumps(block.text), file=self.session.stdin, flush=True)
        printed = []
        for line in self.session.stdout:
            if line.rstrip("\n").endswith(END):
                return "".join(printed)
            printed.append(line)
        raise Failed(f"{block}: the cell ended with an error:\n{block.text}\nIt printed:\n{''.join(printed)}")

    def parse(self, block: Block) -> None:
        """Proves that a block that is not run could be: shell and Python syntax, and the options of its commands."""
        if block.language == "python":
            ast.parse(block.text)
            return
        subprocess.run(["bash", "-n", "-c", block.text], check=True, capture_output=True)
        for command in commands(block):
            words_ = ["expresser-parse", *command[1:]]
            done = subprocess.run(words_, cwd=self.folder, env=self.environment, text=True, capture_output=True)
            if done.returncode:
                raise Failed(f"{block}: {shlex.join(command)}\n{done.stdout}{done.stderr}")


def run_page(page: Path, runner: Runner, *, say: bool = False) -> int:
    """Runs and compares all; returns how many blocks ran."""
    before: Block | None = None  # whose output a text is
    printed, ran = "", 0
    for block in blocks(page):
        if block.language in ("bash", "python"):
            before = block
            if block.not_run is not None:
                runner.parse(block)
                continue
            printed, ran = runner.run(block), ran + 1
            if say:
                print(f"──── {block}\n{block.text}──── printed\n{printed}", flush=True)
        elif block.language == "text" and block.not_run is None:
            if before is None:
                raise Failed(f'{block}: text before any block that it could be the output of; say not-run="why".')
            if before.not_run is None and (absent := missing(block.text, printed)):
                lines = "\n".join(absent)
                raise Failed(f"{block}: not printed:\n{lines}\n\nIt printed:\n{printed}")
    return ran


def refresh(page: Path, runner: Runner) -> None:
    """Runs all and writes what was printed into the text blocks.

    A line that is there gets its new numbers; `<<3>>` becomes the last 3 lines, `<<all>>` all of them.
    """
    lines, printed = page.read_text(encoding="utf-8").splitlines(), None
    made: dict[int, tuple[int, list[str]]] = {}
    for block in blocks(page):
        if block.language in ("bash", "python"):
            printed = None if block.not_run is not None else runner.run(block)
        elif block.language == "text" and block.not_run is None and printed is not None:
            new: list[str] = []
            for line, answer in matched(block.text, printed):
                if asked := re.fullmatch(r"<<(\d+|all)>>", line.strip()):
                    whole = [each.rstrip() for each in without_colours(printed).strip("\n").splitlines()]
                    new += whole if asked[1] == "all" else whole[-int(asked[1]) :]
                else:
                    new.append(line if answer is None or "…" in line else answer)
            made[block.line] = (len(block.text.splitlines()), new)
    for start, (count, new) in sorted(made.items(), reverse=True):
        lines[start : start + count] = new
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def main(names: list[str]) -> None:
    """Runs pages, each in a new folder."""
    import time

    write = "--write" in names
    with runners(Path(tempfile.mkdtemp())) as runner_for:
        for page in (Path(name) for name in names if name != "--write"):
            start = time.monotonic()
            with runner_for(page) as runner:
                used = seconds_used(runner.bin)
                if write:
                    refresh(page, runner)
                else:
                    print(f"{page}: {run_page(page, runner, say=True)} blocks ran")
            print(
                f"{page}: {time.monotonic() - start:.0f} s, {seconds_used(runner.bin) - used:.0f} s of CPU", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
