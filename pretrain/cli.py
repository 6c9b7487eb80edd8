"""``expresser pretrain RECIPE``. Heavy imports wait until it runs."""

import os
import sys
from collections.abc import Sequence

from expresser.cli import Command


def _run(argv: Sequence[str]) -> None:
    from pretrain.arguments import parse

    given = parse(argv, COMMAND.help)
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
        f"r {_written(valid['pearson'])} ({_written(additive['pearson'])})\n"
        f"model: {given.out / 'model'}\nreport: {given.out / 'report.html'}"
    )


def _written(r: float | None) -> str:
    """A correlation; undefined (null where it was read) where nothing varies."""
    return "undefined" if r is None or r != r else f"{r:.4f}"


COMMAND = Command(
    name="pretrain",
    summary="Pretrain the Expression Transformer on a corpus.",
    example="expresser pretrain small --corpus corpus --out runs/small --optim.lr 1e-3 --data.epochs 8",
    run=_run,
)
