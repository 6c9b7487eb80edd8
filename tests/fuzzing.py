"""How a law about a parser is run over drawn inputs: either refused with InputError, or what was read is what was there."""

import gc
import os
import random
import shutil
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from expresser.errors import InputError

SECONDS = 30  # that one input may take


@dataclass
class Tally:
    """Inputs of one target: how many were tried, and how many of them were read."""

    tried: int = 0
    read: int = 0


@dataclass
class Target:
    """A law about one parser.

    `law(folder, **drawn)` writes the input into the folder, reads it and checks what came out. Returns whether it was
    read (False: refused with InputError, whose message `refusal` checked).
    """

    name: str
    law: Callable[..., bool]
    drawn: dict[str, st.SearchStrategy[Any]]
    quiet: bool = False  # warnings of libraries over damaged files are no fault
    plain: Callable[[random.Random], dict[str, Any]] | None = None  # draws too: no search and no making small, but fast
    tally: Tally = field(default_factory=Tally)
    watch: Any = None  # an array of two shared with the parent process, which reads the tally of a child that crashed

    def run(self, cases: int, seed: int | None = None) -> Tally:
        """The law over so many inputs; the first that breaks it is made small and raised."""
        self.tally = Tally()
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:

            def one(**drawn: Any) -> None:
                self._try(Path(folder) / "work", drawn)

            test = settings(
                max_examples=cases,
                database=None,
                deadline=None,
                phases=(Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
                print_blob=False,
            )(given(**self.drawn)(one))
            (test if seed is None else seeded(seed)(test))()
        return self.tally

    def run_plain(self, cases: int, seed: int) -> Tally:
        """The law over so many inputs of the plain generator; the first that breaks it is raised as it is."""
        self.tally, chance = Tally(), random.Random(seed)
        assert self.plain is not None, f"{self.name} has no plain generator"
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=_memory()) as folder:
            for _ in range(cases):
                drawn = self.plain(chance)
                try:
                    self._try(Path(folder) / "work", drawn)
                except BaseException as error:
                    error.add_note(f"input {self.tally.tried} of seed {seed}: {drawn}")
                    raise
        return self.tally

    def _try(self, work: Path, drawn: dict[str, Any]) -> None:
        self.tally.tried += 1
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        with warnings.catch_warnings(), _in_time(SECONDS):
            warnings.simplefilter("ignore" if self.quiet else "error")
            self.tally.read += self.law(work, **drawn)
        if self.watch is not None:
            self.watch[:] = [self.tally.tried, self.tally.read]
        if self.tally.tried % 2000 == 0:
            gc.collect()


TARGETS: dict[str, Target] = {}


def target(
    name: str,
    *,
    quiet: bool = False,
    plain: Callable[[random.Random], dict[str, Any]] | None = None,
    **drawn: st.SearchStrategy[Any],
) -> Callable[[Callable[..., bool]], Target]:
    """Registers a law under a name."""

    def add(law: Callable[..., bool]) -> Target:
        TARGETS[name] = Target(name, law, drawn, quiet, plain)
        return TARGETS[name]

    return add


@contextmanager
def refusal(*names: str | Path) -> Iterator[list[InputError]]:
    """Catches a refusal into the list, and proves that it is one: it names the file, says something, and hides no fault of ours."""
    found: list[InputError] = []
    try:
        yield found
    except InputError as error:
        text = str(error)
        for name in names:
            assert str(name) in text, f"the message does not name {name}: {text}"
        assert 20 < len(text) < 20_000, f"a message of {len(text)} characters: {text[:200]}"
        cause: BaseException | None = error
        while cause is not None:
            ours = isinstance(cause, Warning) or type(cause).__module__.partition(".")[0] in ("jaxtyping", "beartype")
            assert not ours, f"a fault of ours passed for one of the file: {cause!r}"
            cause = cause.__cause__
        found.append(error)


class TooLong(Exception):
    """An input that keeps a parser busy."""


@contextmanager
def _in_time(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLong(f"more than {seconds} s for one input")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory() -> str | None:
    """A file system in memory, where there is one: thousands of small files are written."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
