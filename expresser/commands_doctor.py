"""``expresser doctor``. Heavy imports wait until it runs, and the heaviest happen in processes of their own."""

import json
from collections.abc import Sequence
from typing import Annotated

import tyro

from expresser.cli import Command
from expresser.errors import InputError


def doctor_command(*, as_json: Annotated[bool, tyro.conf.arg(name="json")] = False, timeout: float = 5.0) -> None:
    """Say what this machine has and lacks; exit status 1 where something that is needed does not work.

    Args:
        as_json: Print JSON: {"ok", "findings": [{"group", "name", "state", "found", "advice"}]}.
        timeout: Seconds that the hub is given to answer.
    """
    from dataclasses import asdict

    from expresser.doctor import examine, in_words
    from expresser.progress import progress_bar

    if timeout <= 0:
        raise InputError(f"--timeout is {timeout:g}; a time above 0 s is needed.")
    with progress_bar("doctor") as report:
        found = examine(timeout=timeout, say=lambda what: report(0, None, what))
    whole = all(each.state != "broken" for each in found)
    if as_json:
        print(json.dumps({"ok": whole, "findings": [asdict(each) for each in found]}, indent=1, ensure_ascii=False))
    else:
        print(in_words(found))
    if not whole:
        raise SystemExit(1)


def _run(argv: Sequence[str]) -> None:
    tyro.cli(doctor_command, prog="expresser doctor", description=DOCTOR.help, args=list(argv))


DOCTOR: Command = Command(
    name="doctor",
    summary="Say what this machine has and lacks: versions, accelerator, threads, memory, disk, hub, extras.",
    example="expresser doctor --json",
    run=_run,
)
