"""A recorded command line made one that may be run here: known words and options alone, its inputs found, its output elsewhere."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from expresser.completion import Option, form_at
from expresser.contents import content_sha256
from expresser.errors import InputError
from expresser.foreign import printable, shortened
from expresser.invocation import OUT, paths_in
from expresser.repeating.recorded import Input, Recorded

# What may be repeated: it reads its inputs and writes one thing, where --out says.
REPEATED: tuple[tuple[str, ...], ...] = (
    ("corpus", "build"),
    ("corpus", "split"),
    ("corpus", "subset"),
    ("embed",),
    ("finetune", "annotate"),
    ("finetune", "annotation"),
    ("finetune", "dosage"),
    ("finetune", "gene"),
    ("finetune", "imputation"),
    ("finetune", "interactions"),
    ("finetune", "lof"),
    ("impute",),
    ("pretrain",),
    ("simulate",),
    ("translate", "count"),
    ("translate", "embed"),
    ("translate", "evaluate"),
    ("translate", "fit"),
    ("translate", "label"),
    ("translate", "perturb"),
    ("translate", "predict"),
    ("translate", "tune"),
)
# Left away: a repetition begins anew, and tells no service on the network.
_DROPPED = ("--resume", "--tracker")

Given = tuple[str | None, tuple[str, ...]]
"""An option as it is spelled and what follows it; None: words that belong to no option."""


@dataclass(frozen=True)
class Line:
    """A command line of this program."""

    words: tuple[str, ...]
    """Command and verbs."""
    given: tuple[Given, ...]

    @classmethod
    def of(cls, recorded: Recorded, where: Path) -> "Line":
        """The line of a record; InputError for a command that is not repeated, or an option that it does not have."""
        line = recorded.arguments
        if not any(line[: len(words)] == words for words in REPEATED):
            listed = ", ".join(" ".join(words) for words in REPEATED)
            raise InputError(
                f"{where}: its command is {shortened(printable(' '.join(line[:2])))}, which is not repeated. What is: {listed}."
            )
        form = form_at(line)
        return cls(form.words, _parsed(line[len(form.words) :], form.options, where))

    @property
    def arguments(self) -> list[str]:
        """The words again."""
        return [*self.words, *(word for flag, values in self.given for word in (*((flag,) if flag else ()), *values))]

    @property
    def out(self) -> str:
        """Where it writes; InputError where it does not say so once."""
        found = [values for flag, values in self.given if flag in OUT]
        if len(found) != 1 or len(found[0]) != 1:
            raise InputError(f"the command says {len(found)} times where it writes: one --out is needed.")
        return found[0][0]

    def writing_to(self, out: Path) -> "Line":
        """The same with another --out, begun anew, telling nobody."""
        kept = [one for one in self.given if one[0] not in _DROPPED]
        return replace(
            self, given=tuple((flag, (str(out),)) if flag in OUT else (flag, values) for flag, values in kept)
        )

    def reading(self, names: Mapping[str, str]) -> "Line":
        """The same with inputs called otherwise: the words themselves, and what follows = in NAME=SPEC."""
        return replace(
            self,
            given=tuple(
                (flag, values if flag in OUT else tuple(_renamed(value, names) for value in values))
                for flag, values in self.given
            ),
        )


def _parsed(words: Sequence[str], options: Sequence[Option], where: Path) -> tuple[Given, ...]:
    known = {flag: option for option in options for flag in option.flags}
    given: list[Given] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not _is_flag(word):
            given.append((None, (word,)))
            continue
        name, equals, joined = word.partition("=")
        flag = f"--{name[2:].replace('_', '-')}"
        if not name.startswith("--") or flag not in known or flag in ("--help",):
            raise InputError(
                f"{where}: its command has the option {shortened(printable(name))}, which this version does not know."
            )
        values = [joined] if equals else []
        most = known[flag].values
        if not equals and most == 0 and waiting and waiting[0] in ("True", "False"):
            most = 1
        while not equals and waiting and not _is_flag(waiting[0]) and (most is None or len(values) < most):
            values.append(waiting.pop(0))
        given.append((flag, tuple(values)))
    return tuple(given)


def _is_flag(word: str) -> bool:
    """Neither a value nor a negative number."""
    return word.startswith("-") and not word[1:2].isdigit() and word[1:2] not in ("", ".")


def _renamed(value: str, names: Mapping[str, str]) -> str:
    before, equals, spec = value.partition("=")
    return names.get(value) or (f"{before}={names[spec]}" if equals and spec in names else value)


def found_inputs(
    recorded: Recorded,
    line: Line,
    elsewhere: Mapping[str, str],
    *,
    anyway: bool = False,
    report: Callable[..., None] = lambda done, total, what: None,
) -> tuple[dict[str, str], list[str]]:
    """Recorded word → what the input is called from here, the content of each proven; and what could not be proven.

    Parameters
    ----------
    elsewhere
        Where inputs are now: word of the record, or the absolute path of then → path. See `--input`.
    anyway
        Say what has changed, and take it.

    Raises
    ------
    InputError
        Naming every input that is gone or has changed.
    """
    held = set(paths_in(line.arguments[len(line.words) :]))
    inputs = [one for one in recorded.inputs if one.word in held]
    if strange := sorted(set(elsewhere) - {name for one in inputs for name in (one.word, one.path)}):
        listed = ", ".join(one.word for one in inputs) or "none"
        raise InputError(f"--input {strange[0]}=…: the run read no such input. Those it read: {printable(listed)}.")
    names: dict[str, str] = {}
    faults: list[str] = []
    for done, one in enumerate(inputs):
        report(done, len(inputs), f"proving {one.word}")
        names[one.word], fault = _found(one, elsewhere)
        faults += [fault] if fault else []
    if faults and not anyway:
        raise InputError(
            "the inputs are not as they were:\n"
            + "\n".join(f"  {printable(fault)}" for fault in faults)
            + "\nBring them back, say "
            "where they are now (--input WORD=PATH), or take them as they are (--anyway)."
        )
    untold = sorted(word for word in held - {one.word for one in inputs} if _is_there(word))
    return names, [*faults, *(f"{word}: the record does not say what it held" for word in untold)]


def _found(one: Input, elsewhere: Mapping[str, str]) -> tuple[str, str | None]:
    """What to call an input, and what is wrong with it."""
    moved = elsewhere.get(one.word) or elsewhere.get(one.path or "")
    if moved is None and one.path is None:
        name = one.word.partition("@")[0]
        return f"{name}@{one.revision}", None  # the hub's revision is its content
    path = Path(moved or one.path or "")
    # As it was written where that leads to the same place: then the results say the same names.
    name = one.word if moved is None and str(Path(one.word).absolute()) == one.path else str(path.absolute())
    if not _is_there(str(path)):
        return name, f"{one.word}: is not at {path}"
    if (now := content_sha256(path)) != one.sha256:
        return name, f"{one.word}: has changed, {path} is {now[:12]}…, was {one.sha256[:12]}…"
    return name, None


def _is_there(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):
        return False
