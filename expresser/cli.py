"""The ``expresser`` command: finds its sub-commands, runs one, turns bad input into one message and exit code 2."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint, entry_points
from types import FrameType
from typing import Any

from expresser import __version__
from expresser.errors import InputError
from expresser.foreign import printable
from expresser.invocation import invoked


@dataclass(frozen=True)
class Command:
    """A sub-command, registered as an entry point of the group ``expresser.commands``.

    Its module must be cheap to import: what is heavy is imported when the command runs.
    """

    name: str
    summary: str
    example: str
    run: Callable[[Sequence[str]], None]
    named: Mapping[str, Callable[[], Sequence[str]]] = field(default_factory=dict)
    """Verbs that a name follows which settles the options (`translate fit SYSTEM`), and what the names are."""

    @property
    def help(self) -> str:
        """The text above the options in ``--help``."""
        return f"{self.summary}\n\nExample:\n  {self.example}"


def commands() -> dict[str, EntryPoint]:
    """All registered sub-commands by name, not yet imported."""
    return {entry.name: entry for entry in sorted(entry_points(group="expresser.commands"), key=lambda e: e.name)}


def usage(known: dict[str, EntryPoint]) -> str:
    """What ``expresser --help`` prints."""
    width = max(map(len, known))
    listed = "\n".join(f"  {name:<{width}}  {_summary(entry)}" for name, entry in known.items())
    return (
        f"expresser {__version__}: single-cell foundation models, from raw counts to a report\n\n"
        f"usage: expresser COMMAND …     expresser COMMAND --help for options and an example\n\n{listed}\n\n"
        "Start here:\n"
        "  expresser demo             every stage on simulated cells, and a report\n"
        "  expresser doctor           what this machine has and lacks\n"
        "  expresser completion bash  (or zsh, fish) completion of all this on TAB"
    )


def _summary(entry: EntryPoint) -> str:
    try:
        return str(entry.load().summary)
    except ImportError as error:  # the others, and doctor, can still be used
        return f"(cannot be loaded: {error})"


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of the command line. ``EXPRESSER_DEBUG=1`` shows the traceback of bad input too."""
    argv = list(sys.argv[1:] if argv is None else argv)
    known = commands()
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(known))
        return
    if argv[0] in ("-V", "--version"):
        print(__version__)
        return
    if argv[0] not in known:
        fail(f"no command {argv[0]!r}; there are {', '.join(known)}.")
    try:
        with _unwound_by_sigterm(), invoked(argv):
            known[argv[0]].load().run(argv[1:])
    except (InputError, FloatingPointError) as error:  # a loss that is no number says what to do, too
        if os.environ.get("EXPRESSER_DEBUG"):
            raise
        fail(str(error))
    except ImportError as error:
        if os.environ.get("EXPRESSER_DEBUG"):
            raise
        fail(f"{error}. expresser doctor says what is missing, and how to install it.")
    except BrokenPipeError:  # whoever read the output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(141) from None
    except OSError as error:
        if os.environ.get("EXPRESSER_DEBUG"):
            raise
        fail(f"{_refused(error)}. EXPRESSER_DEBUG=1 shows where.")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(130) from None


@contextmanager
def _unwound_by_sigterm() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does: what is half-written goes, what can be gone on with stays. A second ends it at once."""
    mine = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != mine:  # a worker, which unwinds nothing of its parent's
            os.kill(os.getpid(), signal.SIGTERM)
            return
        print("terminated", file=sys.stderr)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield  # somebody else sees to it
        return
    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _refused(error: OSError) -> str:
    """What the system would not do: no permission, no space, no such folder."""
    if error.filename is None or error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror.lower()}"


def fail(message: str) -> Any:
    """One message on stderr, exit code 2. It may quote a stranger's file, which is not to steer the terminal."""
    print(f"error: {printable(message)}", file=sys.stderr)
    raise SystemExit(2)


if __name__ == "__main__":
    main()
