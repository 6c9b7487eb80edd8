"""``expresser pretrain RECIPE``."""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from expresser.cli import Command
from pretrain.config import Recipe
from pretrain.recipes import RECIPES


@dataclass(frozen=True)
class _Arguments:
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


def _run(argv: Sequence[str]) -> None:
    defaults = {
        name: (_help(function), _Arguments(corpus=tyro.MISSING, recipe=function()))
        for name, function in RECIPES.items()
    }
    given: _Arguments = tyro.extras.overridable_config_cli(
        defaults, prog="expresser pretrain", description=COMMAND.help, args=list(argv)
    )
    _check(given)
    if given.plan:
        from pretrain.plan import describe

        print(describe(given.recipe, given.corpus))
        return
    assert given.out is not None
    from expresser.errors import InputError
    from pretrain.loop import pretrain
    from pretrain.survival import NotFinite

    try:
        metrics = pretrain(given.recipe, given.corpus, given.out, resume=given.resume, verify=given.verify)
    except NotFinite as error:  # one message, no traceback: it is about cells and options
        raise InputError(str(error)) from error
    if int(os.environ.get("RANK", 0)) > 0:
        return  # a launcher's first process speaks for all
    if stopped := metrics.get("stopped"):
        saved = (
            f"step {metrics['step']:,} is saved in {given.out / 'checkpoints'}"
            if metrics["step"]
            else "left before step 1"
        )
        print(f"{stopped}: {saved}. The same command with --resume goes on from there.", file=sys.stderr)
        raise SystemExit(130 if stopped == "SIGINT" else 0)
    valid, additive = metrics["valid"], metrics["additive"]
    print(
        f"validation MAE {valid['mae']:.4f} (gene + cell additive {additive['mae']:.4f}), "
        f"r {valid['pearson']:.4f} ({additive['pearson']:.4f})\n"
        f"model: {given.out / 'model'}\nreport: {given.out / 'report.html'}"
    )


def _help(recipe: Callable[[], Recipe]) -> str:
    """First and last line of a recipe's docstring: what it is and how it is called."""
    lines = inspect.cleandoc(recipe.__doc__ or "").splitlines()
    return f"{lines[0]}\n\nExample: {lines[-1]}"


def _check(given: _Arguments) -> None:
    from expresser.errors import InputError

    if not given.plan and given.out is None:
        raise InputError("--out is missing: the folder for checkpoints, model, log and report (or ask for --plan).")


COMMAND = Command(
    name="pretrain",
    summary="Pretrain the Expression Transformer on a corpus.",
    example="expresser pretrain small --corpus corpus --out runs/small --optim.lr 1e-3 --data.epochs 8",
    run=_run,
)
