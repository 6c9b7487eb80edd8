"""The ``expresser report`` command. Heavy imports wait until it runs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from expresser.cli import Command
from expresser.foreign import printable
from expresser.one_writer import one_writer_of_out

Positional = tyro.conf.Positional
_WIDEST = 44  # letters of a row's name on a terminal
_COLUMNS = 4


@one_writer_of_out
def report_command(runs: Annotated[tuple[Path, ...], Positional], *, out: Path = Path("comparison.html")) -> None:
    """Compare runs side by side: scores beside baselines, what differs in their settings, curves, cost.

    Runs of one configuration that differ by their seed are put together (median, range). Numbers that cannot be compared, as data
    or test cells differ, are told. One run alone gets a page of its own from its files.

    Args:
        runs: Folders that runs left: pretraining, translate fit and evaluate, finetune; finished or not, in any mixture.
        out: The page, *.html; its numbers for programs are beside it as .json.
    """
    from expresser.comparison.page import compare

    numbers, tables = compare(runs, out)
    for title, table in tables:
        print(printable(f"{title}: {table.title}" if title != table.title else title))
        print(printable(_text(table)), end="\n\n")
    for line in numbers["warnings"]:
        print(printable(f"warning: {line}"), file=sys.stderr)
    for line in numbers["remarks"]:
        print(printable(f"remark: {line}"), file=sys.stderr)
    print(f"report: {out}\nnumbers: {out.with_suffix('.json')}")


def _text(table: Any) -> str:
    """The first scores of a table for a terminal, without their ranges, which the page has."""
    from expresser.readable import format_column

    frame = table.frame[[c for c in table.frame.columns if c == "runs" or not c.endswith(": range")][: _COLUMNS + 1]]
    names = [name if len(name) <= _WIDEST else f"{name[: _WIDEST - 1]}…" for name in map(str, frame.index)]
    width = max(map(len, names), default=0)
    columns = [(str(c), format_column(frame[c].tolist())) for c in frame.columns if len(frame)]
    widths = [max(len(head), *map(len, cells)) for head, cells in columns]
    lines = [" " * width + "".join(f"  {head:>{w}}" for (head, _), w in zip(columns, widths, strict=True))]
    for i, name in enumerate(names):
        lines.append(
            f"{name:<{width}}" + "".join(f"  {cells[i]:>{w}}" for (_, cells), w in zip(columns, widths, strict=True))
        )
    return "\n".join(line.rstrip() for line in lines)


def _run(argv: Sequence[str]) -> None:
    tyro.cli(report_command, prog="expresser report", description=REPORT.help, args=list(argv))


REPORT: Command = Command(
    name="report",
    summary="Compare runs side by side on one page: scores, settings, curves, cost.",
    example="expresser report runs/* --out comparison.html",
    run=_run,
)
