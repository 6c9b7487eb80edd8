"""``expresser repeat``. Heavy imports wait until it runs."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from expresser.atomic import is_empty
from expresser.cli import Command
from expresser.errors import InputError
from expresser.progress import progress_bar

if TYPE_CHECKING:
    from expresser.repeating import Recorded

Positional = tyro.conf.Positional


def repeat_command(
    run: Annotated[Path, Positional],
    *,
    out: Path | None = None,
    input: tuple[str, ...] = (),
    check: bool = False,
    anyway: bool = False,
    show: bool = False,
) -> None:
    """Run the command of a record again, into a new folder, after proving that its inputs are as they were.

    Example: expresser repeat runs/babel --out runs/babel_again --check
    Example: expresser repeat run.json --input rna.h5ad=/data/rna.h5ad atac.h5ad=/data/atac.h5ad --out runs/babel

    The record may be a stranger's: only commands of this program with options it has are run, no shell, and what they write
    goes to --out. Models of the hub that it names are fetched, at the revision of then.

    Args:
        run: Folder of a run, its run.json, or an .h5ad file that a command wrote.
        out: Where to write. Without it, beside the run, its name with _repeat.
        input: WORD=PATH: where an input of the record, called as the command or its record does, is now.
        check: Compare the result with what lies beside the record: weights, predictions, metrics but for times; exit code 1
            where they differ.
        anyway: Go on although inputs have changed.
        show: Say what would be run and what is other than then, and stop.
    """
    from expresser.foreign import printable
    from expresser.repeating import Line, differences, read_recorded
    from expresser.repeating.circumstances import doubts
    from expresser.repeating.line import found_inputs
    from expresser.repeating.running import run_again

    recorded = read_recorded(run)
    line = Line.of(recorded, run)
    _prove_one_process(recorded, run)
    target = _target(recorded, line.out) if out is None else out
    if Path(line.out).suffix == ".h5ad" and target.suffix != ".h5ad":
        raise InputError(f"{target}: the command writes an .h5ad file; name it so.")
    if target.exists() and (not target.is_dir() or not is_empty(target)):
        raise InputError(f"{target}: exists. Choose a new place for --out.")
    if check and recorded.result.is_dir() and not _has_results(recorded.result):
        raise InputError(f"{run}: --check compares with what the run left, but there is nothing beside its record.")
    with progress_bar("repeat") as report:
        names, faults = found_inputs(recorded, line, _places(input), anyway=anyway, report=report)
    again = line.reading(names).writing_to(target)
    print(f"expresser {printable(shlex.join(again.arguments))}", flush=True)
    for words in (*doubts(recorded), *faults):
        print(f"warning: {words}", file=sys.stderr)
    if show:
        return
    if status := run_again(again.arguments, recorded.environment):
        raise SystemExit(status if status > 0 else 128 - status)
    if check:
        renamed = {old: new for old, new in names.items() if old != new} | {line.out: str(target)}
        found = differences(recorded.result, _counterpart(recorded.result, target), renamed)
        if found:
            print(f"{target}: not what {recorded.result} is:", *found, sep="\n  ")
            raise SystemExit(1)
        print(f"{target}: the same as {recorded.result}")


def _prove_one_process(recorded: "Recorded", run: Path) -> None:
    if recorded.processes != 1:
        raise InputError(
            f"{run}: the run was on {recorded.processes} processes, and a launcher begins those: expresser repeat {run} cannot. Say "
            f"accelerate launch --num_processes {recorded.processes} -m {shlex.join(recorded.arguments)} with another --out."
        )


def _target(recorded: "Recorded", out: str) -> Path:
    """Beside the result, which may have another name than it was given then."""
    result = recorded.result.resolve()
    suffix = Path(out).suffix if result.is_file() else ""
    return result.with_name(f"{result.name.removesuffix(suffix)}_repeat{suffix}")


def _has_results(folder: Path) -> bool:
    return any(path.name != "run.json" and not path.name.startswith(".") for path in folder.iterdir())


def _counterpart(before: Path, now: Path) -> Path:
    """Of a run's model alone the model."""
    is_model = (before / "model.safetensors").is_file() and not (now / "model.safetensors").is_file()
    return now / "model" if is_model else now


def _places(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for each in given:
        word, equals, path = each.partition("=")
        if not (word and equals and path):
            raise InputError(f"--input {each}: give WORD=PATH, such as rna.h5ad=/data/rna.h5ad.")
        found[word] = path
    return found


def _run(argv: Sequence[str]) -> None:
    tyro.cli(repeat_command, prog="expresser repeat", description=REPEAT.help, args=list(argv))


REPEAT: Command = Command(
    name="repeat",
    summary="Run a recorded command again, its inputs proven, and compare the results.",
    example="expresser repeat runs/babel --out runs/babel_again --check",
    run=_run,
)
