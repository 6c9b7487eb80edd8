"""The scores of an evaluation as a small table for the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from translate.evaluate import ends
from translate.study import Modality

_SHOWN: Mapping[Modality, tuple[str, str, str]] = {
    "rna": ("pearson_gene", "pearson_flat", "mae"),
    "atac": ("auroc_peak", "auprnorm_peak", "auroc_flat"),
    "protein": ("pearson_protein", "pearson_flat", "mae"),
}


def score_table(metrics: Mapping[str, Any]) -> str:
    """What decides, and a score over all entries, of every method: a block for each direction, the best method first.

    metrics: what `translate.evaluation` writes to ``metrics.json``, read back or not.
    """
    width = 2 + max(16, *map(len, metrics["methods"]))
    lines: list[str] = []
    for direction in metrics["directions"]:
        columns = _SHOWN[ends(direction)[1]]
        lines.append(f"{direction:<{width}}  " + "  ".join(f"{name:>15}" for name in columns))
        there = {m: scores[direction] for m, scores in metrics["methods"].items() if direction in scores}
        for method in sorted(there, key=lambda m: -_number(there[m].get(columns[0]))):
            said = metrics["verdicts"].get(direction, {}).get(method, "")
            values = "  ".join(f"{_text(there[method].get(name)):>15}" for name in columns)
            lines.append(f"  {method:<{width - 2}}  {values}  {said}".rstrip())
        lines.append("")
    for method, scores in metrics["methods"].items():
        if "foscttm" in scores:
            lines.append(f"FOSCTTM of {method}: {_text(scores['foscttm'])} (0 perfect, 0.5 chance)")
    lines += [f"{method} not run: {why}" for method, why in metrics["skipped"].items()]
    lines.append(f"{metrics['cells']['test']:,} test cells; split: {metrics['split']}")
    if metrics.get("in_training"):
        lines.append(
            f"{metrics['in_training']:,} of the test cells were used to fit the model: these scores flatter it. Give other "
            "cells, or --split-of with the folder of the fit."
        )
    return "\n".join(lines)


def _number(value: Any) -> float:
    return -np.inf if value is None or np.isnan(value) else float(value)


def _text(value: Any) -> str:
    return "—" if value is None or np.isnan(value) else f"{round(value, 4) + 0.0:.4f}"  # no -0.0000
