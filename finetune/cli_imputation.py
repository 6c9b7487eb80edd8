"""``expresser finetune imputation``."""

import math
from pathlib import Path
from typing import Any, Literal


def imputation(
    *,
    data: Path,
    out: Path,
    model: str | None = None,
    genes: Path | None = None,
    protocol: Literal["dropout", "mcv"] = "dropout",
    drop: float = 0.1,
    seeds: int = 3,
    max_cells: int | None = None,
    layer: str | None = None,
    methods: tuple[str, ...] = (),
    reference: Path | None = None,
    max_tokens: int = 16384,
) -> None:
    """Hide measured counts, predict them, and compare the model with baselines.

    Example: expresser finetune imputation --model runs/small --data cells.h5ad --drop 0.1 --seeds 3 --out runs/imputation

    Args:
        data: Raw counts of cells that the model has not seen: .h5ad or any other format of `corpus build`.
        out: Folder for metrics.json and report.html.
        model: Folder or hub id. Without it only the baselines are compared.
        genes: Vocabulary for a run without a model; the file's own genes where it is not given.
        protocol: dropout hides whole entries; mcv splits molecules 90/10 (molecular cross-validation).
        drop: Share of the non-zero counts that is hidden.
        seeds: How many times, with other entries hidden each time.
        max_cells: Use a random sample of this many cells.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        methods: Baselines to run; without it all (the extra `expresser[impute]` brings MAGIC and scVI).
        reference: A corpus or raw-count file whose cells the baselines may learn from too.
        max_tokens: Tokens at once: the knob for memory.
    """
    from expresser.commands import progress_bar
    from expresser.genes import GeneVocab
    from finetune.imputation import run_imputation

    with progress_bar("imputation") as report:
        metrics = run_imputation(
            model=model,
            data=data,
            vocab=None if genes is None else GeneVocab.read(genes),
            protocol=protocol,
            drop=drop,
            seeds=seeds,
            methods=methods or None,
            reference=reference,
            out=out,
            max_cells=max_cells,
            layer=layer,
            max_tokens=max_tokens,
            progress=report,
        )
    print(_table(metrics))
    print(f"report: {out / 'report.html'}")


def _table(metrics: dict[str, Any]) -> str:
    shown = ("mae", "pearson", "pearson_gene", "pearson_cell", "poisson", "mse")
    columns = [name for name in shown if any(name in scores for scores in metrics["methods"].values())]
    width = max(map(len, [*metrics["methods"], *metrics["skipped"]]))
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>12}" for name in columns)]
    for method, scores in metrics["methods"].items():
        cells = [scores.get(name) for name in columns]
        lines.append(
            f"{method:<{width}}  "
            + "  ".join(f"{'—' if v is None or math.isnan(v) else f'{v:.4f}':>12}" for v in cells)
        )
    lines += [f"{method:<{width}}  {reason}" for method, reason in metrics["skipped"].items()]
    return "\n".join(lines)
