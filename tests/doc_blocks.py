"""The code blocks of a page, and how the output that a page shows is compared with what was printed.

* `bash` and `python` blocks run. With `not-run="why"` they do not, and the page says so; their commands are still parsed.
  `exit="2"`: the block ends with this exit code.
* `text` shows what the block before it printed: each line is among those printed, numbers aside. `…` stands for anything.
  Where that block is not run, or with `not-run="why"`, it is not compared.
* A line `<!-- tested with: NAME -->` asks for the files that `doc_inputs.NAME` writes, and `<!-- tested after: PAGE -->` for
  the folder as another page leaves it.
"""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_FENCE = re.compile(r"^( *)(`{3,})\s*([\w+-]*)\s*(.*)$")
_OPTION = re.compile(r'([\w-]+)="([^"]*)"')
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
_NUMBER = re.compile(r"(?<![A-Za-z_])[-+−±]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?%?")
_HASH = re.compile(r"\b(?=[a-f]*\d)[0-9a-f]{7,64}\b")
_BAR = re.compile(r"[▏▎▍▌▋▊▉█]+")
# Which of two close scores is better differs from machine to machine; that there is a verdict does not.
_VERDICT = re.compile(r"\b(beats|on a par|behind|better|worse|undecided|ahead of|level with|above|below)\b")


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    page: Path
    line: int  # of its opening fence, from 1
    language: str
    options: dict[str, str] = field(hash=False)
    text: str

    @property
    def not_run(self) -> str | None:
        """Why it is not run."""
        return self.options.get("not-run")

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, also indented ones."""
    found: list[Block] = []
    opened: tuple[int, str, str, str, str] | None = None
    held: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if opened is None:
            if match := _FENCE.match(line):
                opened, held = (number, *match.groups()), []  # type: ignore[assignment]
        elif line.strip() == opened[2]:
            start, _, _, language, info = opened
            left = _OPTION.sub("", info).strip()
            if left:
                raise ValueError(
                    f'{page}:{start}: {left!r} in a block\'s first line; options are written name="value".'
                )
            text = "\n".join(held) + "\n"
            found.append(
                Block(page=page, line=start, language=language, options=dict(_OPTION.findall(info)), text=text)
            )
            opened = None
        else:
            held.append(line.removeprefix(opened[1]))
    if opened is not None:
        raise ValueError(f"{page}:{opened[0]}: this block has no end.")
    return found


def wanted(page: Path, what: str) -> str | None:
    """What the page asks for by a line `<!-- tested with: … -->` or `<!-- tested after: … -->`."""
    match = re.search(rf"^<!-- tested {what}: (\S+) -->$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return match and match[1]


def without_colours(text: str) -> str:
    """Text as a file would hold it."""
    return _ESCAPE.sub("", text)


def words(line: str) -> str:
    """A line of output without what differs from run to run: colours, numbers, hashes, bars, verdicts, spacing."""
    line = _VERDICT.sub("~", _BAR.sub("", _HASH.sub("#", without_colours(line))))
    return " ".join(_NUMBER.sub("#", line).split())


def matched(expected: str, printed: str) -> list[tuple[str, str | None]]:
    """Each line of a text block, and the line printed that answers for it, for it alone; None where there is none."""
    left = [(words(line), without_colours(line).rstrip()) for line in printed.splitlines()]
    pairs: list[tuple[str, str | None]] = []
    for line in expected.splitlines():
        wanted = words(line)
        if wanted in ("", "…"):
            pairs.append((line, line))
            continue
        pattern = re.compile(".*".join(map(re.escape, (part.strip() for part in wanted.split("…")))))
        same = next((i for i, (there, _) in enumerate(left) if pattern.fullmatch(there)), None)
        pairs.append((line, None if same is None else left.pop(same)[1]))
    return pairs


def missing(expected: str, printed: str) -> list[str]:
    """The lines of a text block that were not printed."""
    return [line for line, answer in matched(expected, printed) if answer is None]


def commands(block: Block) -> Iterator[list[str]]:
    """The `expresser …` (and `-m pretrain …`) commands of a bash block, as words."""
    for line in block.text.replace("\\\n", " ").splitlines():
        reader = shlex.shlex(line, posix=True, punctuation_chars=True)
        reader.whitespace_split = True
        command: list[str] = []
        for word in [*reader, ";"]:
            if set(word) <= set("|&;()<>"):
                if "pretrain" in command and command[command.index("pretrain") - 1] == "-m":
                    command = ["expresser", *command[command.index("pretrain") :]]
                elif any(script in command[:-1] for script in ("scripts/launch/slurm.sh",)):
                    command = ["expresser", "pretrain", *command[command.index("scripts/launch/slurm.sh") + 1 :]]
                if command[:1] == ["expresser"]:
                    yield command
                command = []
            else:
                command.append(word)
