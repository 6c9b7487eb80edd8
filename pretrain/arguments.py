"""What ``expresser pretrain RECIPE`` can be told: the run's own options, and all of its recipe."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from expresser.errors import InputError
from pretrain.config import Recipe
from pretrain.recipes import RECIPES


@dataclass(frozen=True)
class Arguments:
    """All options of a run."""

    corpus: Path
    """Folder of `expresser corpus build`."""
    out: Path | None = None
    """Folder of the run: checkpoints, model, log, report. Not needed with --plan."""
    resume: bool = False
    """Go on from the newest checkpoint in --out."""
    verify: bool = True
    """Compare every file of the corpus with its checksum before the first step: reads all of it once."""
    plan: bool = False
    """Say what the run would cost (tokens, FLOPs, memory, hours) and stop."""
    recipe: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)


def parse(argv: Sequence[str], description: str) -> Arguments:
    """What the command line says, the recipe's own values where it is silent. InputError where an option is missing."""
    defaults = {
        name: (_help(function), Arguments(corpus=tyro.MISSING, recipe=function())) for name, function in RECIPES.items()
    }
    given: Arguments = tyro.extras.overridable_config_cli(
        defaults, prog="expresser pretrain", description=description, args=list(argv)
    )
    if not given.plan and given.out is None:
        raise InputError("--out is missing: the folder for checkpoints, model, log and report (or ask for --plan).")
    return given


def _help(recipe: Callable[[], Recipe]) -> str:
    """First and last line of a recipe's docstring: what it is and how it is called."""
    lines = inspect.cleandoc(recipe.__doc__ or "").splitlines()
    return f"{lines[0]}\n\nExample: {lines[-1]}"
