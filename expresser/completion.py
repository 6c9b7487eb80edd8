"""Every command with its verbs and options, as a shell needs them to complete a line.

Asked of the commands themselves, so that nothing is written down twice: tyro, which parses them, says what it would complete.
"""

import ast
import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from expresser.cli import Command, commands
from expresser.errors import InputError

_SPEC = (
    "COMPLETION_SPEC = "  # begins the line of tyro's own script for bash that holds what it knows, as a Python literal
)


@dataclass(frozen=True)
class Option:
    """An option and what follows it."""

    flags: tuple[str, ...]
    """Its spellings, such as ("--verify", "--no-verify")."""
    summary: str
    values: int | None = 1
    """How many words follow: none, one, or any number (None)."""
    choices: tuple[str, ...] = ()
    """The words that may follow, where only these may."""
    files: bool = False
    """A file or folder may follow."""


@dataclass(frozen=True)
class Form:
    """What may follow some words of a command line: verbs, or options and files."""

    words: tuple[str, ...]
    """Such as ("corpus", "build"); none: the start of the line."""
    summary: str
    verbs: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()


def forms() -> list[Form]:
    """All forms of the command line, the start of the line first, a command before its verbs.

    Imports what the commands import in order to know their options: torch among others, so seconds.
    """
    known = {name: entry.load() for name, entry in commands().items()}
    first = Form((), "", tuple(known))
    return [first, *(form for command in known.values() for form in _of_command(command))]


def form_at(line: Sequence[str]) -> Form:
    """The form that a command line is in, which has options: its first words are the form's, the others options and files.

    InputError where they name no command and verb of this program.
    """
    known = commands()
    if not line or line[0] not in known:
        raise InputError(f"no command {line[0] if line else ''!r}; there are {', '.join(known)}.")
    command: Command = known[line[0]].load()
    words: tuple[str, ...] = ()
    spec = _asked(command, words)
    while below := _below(command, words, spec):
        verb = line[len(words) + 1] if len(line) > len(words) + 1 else ""
        if verb not in below:
            raise InputError(f"no {' '.join([command.name, *words])} {verb!r}; there are {', '.join(sorted(below))}.")
        words = (*words, verb)
        spec = below[verb]()
    return Form((command.name, *words), _line(command.summary), (), tuple(_option(each) for each in spec["options"]))


def _below(command: Command, words: tuple[str, ...], spec: dict[str, Any]) -> dict[str, Callable[[], dict[str, Any]]]:
    """What may follow these words, and how its specification is had."""
    if words and words[-1] in command.named:  # the next word is a name, and each has options of its own
        return {name: partial(_asked, command, (*words, name)) for name in command.named[words[-1]]()}
    return {verb: partial(dict, of) for verb, of in spec["subcommands"].items()}


def _of_command(command: Command) -> Iterator[Form]:
    yield from _of_spec(command, (), _asked(command, ()), command.summary)


def _of_spec(command: Command, words: tuple[str, ...], spec: dict[str, Any], summary: str) -> Iterator[Form]:
    below = _below(command, words, spec)
    options = () if below else tuple(_option(each) for each in spec["options"])
    yield Form((command.name, *words), _line(summary), tuple(sorted(below)), options)
    listed = printed(command, [*words, "--help"]) if below else ""
    for verb in sorted(below):
        found = re.search(rf"^[│ ]*(?:• )?{re.escape(verb)} {{2,}}(\S.*)", listed, re.M)
        said = found[1].rstrip("│ ") if found else _first(printed(command, [*words, verb, "--help"]))
        yield from _of_spec(command, (*words, verb), below[verb](), said)


def _asked(command: Command, words: tuple[str, ...]) -> dict[str, Any]:
    """tyro's specification of a command, {"options": […], "subcommands": {verb: the same}}."""
    script = printed(command, [*words, "--tyro-write-completion", "bash", "-"])
    lines = [line for line in script.splitlines() if line.startswith(_SPEC)]
    if len(lines) != 1:
        raise InputError(
            f"the options of expresser {' '.join([command.name, *words])} cannot be listed: this version of tyro says them in another "
            "way. Completion was written for tyro 1.0; install that."
        )
    return dict(ast.literal_eval(lines[0].removeprefix(_SPEC)))


def printed(command: Command, argv: Sequence[str]) -> str:
    """What a command prints for arguments that end it before it does anything, such as --help; lines are not wrapped."""
    text = io.StringIO()
    with _wide(), contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        command.run(list(argv))
    return text.getvalue()


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """A terminal of a thousand columns, as far as tyro can tell."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _option(said: dict[str, Any]) -> Option:
    metavar, dot, words = said["description"].partition(" • ")
    metavar, words = (metavar, words) if dot else ("", said["description"])
    choices = said.get("choices") or _braces(metavar)
    alone = said["type"] in ("flag", "boolean")
    nargs = said.get("nargs")
    return Option(
        flags=tuple(said["flags"]),
        summary=_line(words),
        values=0 if alone else 1 if nargs in (1, None) else None,
        choices=tuple(
            sorted(choice for choice in choices if choice != "None")
        ),  # tyro's own order differs between runs
        files=not alone and not choices and re.search(r"PATH|STR", metavar) is not None,
    )


def _braces(metavar: str) -> list[str]:
    """The choices of several values, [{a,b} [{a,b} ...]]; none where other values are possible too."""
    found = re.fullmatch(r"(?:\{None\}\|)?\[?\{([^{}\s]+)\}.*", metavar)
    return found[1].split(",") if found and not re.search(r"PATH|STR|INT|FLOAT", metavar) else []


def _first(text: str) -> str:
    """The first paragraph below the usage."""
    paragraphs = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    return paragraphs[1] if len(paragraphs) > 1 else ""


def _line(text: str) -> str:
    """Its first sentence, on one line of 90 letters at most, without what is said of the default."""
    whole = " ".join(re.sub(r"\((required|default: .*)\)\s*$", "", text.strip(), flags=re.S).split())
    sentence = re.split(r"(?<=[.;])\s", whole, maxsplit=1)[0].rstrip(".;")
    return sentence if len(sentence) <= 90 else f"{sentence[:89].rstrip()}…"
