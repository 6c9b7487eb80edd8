"""``expresser finetune TASK``."""

from collections.abc import Sequence

import tyro

from expresser.cli import Command
from finetune.cli_annotation import annotate, annotation
from finetune.cli_genes import COMMANDS as GENES
from finetune.cli_heads import COMMANDS as HEADS
from finetune.cli_imputation import imputation


def _run(argv: Sequence[str]) -> None:
    tyro.extras.subcommand_cli_from_dict(
        {**GENES, **HEADS, "annotation": annotation, "annotate": annotate, "imputation": imputation},
        prog="expresser finetune",
        description=COMMAND.help,
        args=list(argv),
    )


COMMAND = Command(
    name="finetune",
    summary="Measure what a pretrained model knows, beside baselines.",
    example="expresser finetune imputation --model runs/small --data cells.h5ad --out runs/imputation",
    run=_run,
)
