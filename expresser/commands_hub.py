"""The ``expresser push`` command. Heavy imports wait until it runs."""

from collections.abc import Sequence
from typing import Annotated

import tyro

from expresser.cli import Command

Positional = tyro.conf.Positional


def push_command(
    model: Annotated[str, Positional],
    repo: Annotated[str, Positional],
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,
) -> None:
    """Put a model on the Hugging Face hub as one commit.

    Args:
        model: Folder of a model, of a run, of a translator or its fit, checked first. run.json (command, machine, sources) goes along.
        repo: org/name; made where it does not exist.
        revision: A branch, made where it does not exist. Without it, main.
        private: Make a new repository private.
        license: Of the weights, as the hub spells it: apache-2.0, cc-by-4.0 … Without it, what the model's README.md says.
    """
    from expresser.hub import push

    where = push(model, repo, revision=revision, private=private, license=license)
    print(f"{model} is at {where}: name it {repo}{f'@{revision}' if revision else ''} wherever a MODEL is asked for")


def _run(argv: Sequence[str]) -> None:
    tyro.cli(push_command, prog="expresser push", description=PUSH.help, args=list(argv))


PUSH: Command = Command(
    name="push",
    summary="Put a pretrained model or a translator on the Hugging Face hub.",
    example="expresser push runs/small lab/small --license cc-by-4.0",
    run=_run,
)
