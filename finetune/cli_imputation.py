"""``expresser finetune imputation``."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


def imputation(
    *,
    data: Path,
    out: Path,
    model: str | None = None,
    genes: Path | None = None,
    protocol: Literal["dropout", "mcv"] = "dropout",
    drop: tuple[float, ...] = (0.1,),
    seeds: int = 3,
    max_cells: int | None = None,
    layer: str | None = None,
    methods: tuple[str, ...] = (),
    reference: Path | None = None,
    label: str | None = None,
    checks: tuple[Literal["clusters", "coexpression", "none"], ...] = (),
    max_tokens: int = 16384,
) -> None:
    """Hide measured counts, predict them, and compare the model with baselines.

    Example: expresser finetune imputation --model runs/small --data cells.h5ad --drop 0.1 0.4 --label cell_type --out imputation

    Interrupted, the same command goes on where it stopped.

    Args:
        data: Raw counts of cells that the model has not seen: .h5ad or any other format of `corpus build`.
        out: Folder for metrics.json and report.html.
        model: Folder or hub id. Without it only the baselines are compared.
        genes: Vocabulary for a run without a model; the file's own genes where it is not given.
        protocol: dropout hides whole entries; mcv splits molecules 90/10 (molecular cross-validation).
        drop: Share of the non-zero counts that is hidden; of several, the first is the headline.
        seeds: How many times, with other entries hidden each time.
        max_cells: Use a random sample of this many cells.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        methods: Baselines to run; without it all (the extra `expresser[impute]` brings MAGIC and scVI).
        reference: A corpus or raw-count file whose cells the baselines may learn from too.
        label: Column of obs with known cell types: does imputing help to find them? (The slowest part for a model.)
        checks: clusters (finding the types of --label), coexpression (ties invented between genes) or none. Without
            it: coexpression, and clusters where there is a label.
        max_tokens: Tokens at once: the knob for memory.
    """
    from expresser.genes import GeneVocab
    from expresser.progress import progress_bar
    from finetune.imputation.task import run_imputation

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
            label=label,
            checks=[check for check in checks if check != "none"] if checks else None,
            out=out,
            max_cells=max_cells,
            layer=layer,
            max_tokens=max_tokens,
            progress=report,
        )
    print("\n".join(_lines(metrics)))
    print(f"report: {out / 'report.html'}")


def _lines(metrics: dict[str, Any]) -> list[str]:
    from finetune.imputation.checks_page import cluster_sentence
    from finetune.imputation.coexpression import sentence

    drops: Mapping[str, Any] = metrics["drops"] if len(metrics["drops"]) > 1 else {"": metrics}
    lines = []
    for share, of in drops.items():
        lines += [f"{float(share):.3g} of the non-zero counts hidden"] if share else []
        lines += [*_table(of["methods"], of["verdict"]), ""]
    lines += [f"{method}: {reason}" for method, reason in metrics["skipped"].items()]
    if metrics["clusters"] is not None:
        lines.append(cluster_sentence(metrics["clusters"]))
    if metrics["coexpression"] is not None:
        lines.append(sentence(metrics["coexpression"]["said"]))
    return lines


def _table(methods: Mapping[str, Mapping[str, float]], verdict: Mapping[str, str]) -> list[str]:
    shown = ("mae", "pearson", "pearson_gene", "pearson_cell", "poisson", "mse")
    columns = [name for name in shown if any(name in scores for scores in methods.values())]
    width = max(map(len, methods), default=0)
    said = "  the model" if verdict else ""
    lines = [f"{'':<{width}}  " + "  ".join(f"{name:>12}" for name in columns) + said]
    for method, scores in methods.items():
        cells = [scores.get(name) for name in columns]
        numbers = "  ".join(f"{'—' if v is None or math.isnan(v) else f'{v:.4f}':>12}" for v in cells)
        lines.append(f"{method:<{width}}  {numbers}  {verdict.get(method, '')}".rstrip())
    return lines
