"""The scores of an evaluation as a small table for the terminal."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from translate.embedding_page import how_judged, ranked
from translate.leaving_out import Interval
from translate.scales import ends
from translate.study import Modality
from translate.verdicts import DECIDING, in_training_sentence, interval_text

_SHOWN: Mapping[Modality, tuple[str, ...]] = {
    "rna": ("pearson_gene", "pearson_flat", "mae"),
    "atac": ("auroc_peak", "auprnorm_peak", "auroc_flat", "mean_ratio"),
    "protein": ("pearson_protein", "pearson_flat", "mae"),
}
_OF_PROFILES: Mapping[Modality, tuple[str, ...]] = {
    "rna": ("pseudobulk_type_pearson", "marker_auroc", "de_auprc"),
    "atac": ("pseudobulk_type_pearson", "pseudobulk_pearson"),
    "protein": ("pseudobulk_type_pearson", "pseudobulk_pearson"),
}
_OF_ALIGNMENT = ("foscttm", "mixing", "ari", "silhouette", "transfer_rna_to_atac", "transfer_atac_to_rna")
_OF_EMBEDDINGS = ("ari", "nmi", "silhouette", "n_clusters", "rarest_f1", "mi_depth", "mi_batch", "mixing")


def score_table(metrics: Mapping[str, Any]) -> str:
    """What decides, and a score over all entries, of every method: a block for each direction, the best method first.

    metrics: what `translate.judging` or `translate.embedding_judging` writes to ``metrics.json``, read back or not.
    """
    if "embeddings" in metrics:
        return _embedding_table(metrics)
    width = 2 + max(16, *map(len, metrics["methods"]))
    lines: list[str] = []
    for direction in metrics["directions"]:
        if not any(direction in scores for scores in metrics["methods"].values()):
            continue
        columns = (_OF_PROFILES if metrics.get("unpaired") else _SHOWN)[ends(direction)[1]]
        lines.append(f"{direction:<{width}}  " + "  ".join(f"{name:>{_wide(name)}}" for name in columns))
        there = {m: scores[direction] for m, scores in metrics["methods"].items() if direction in scores}
        for method in sorted(there, key=lambda m: -_number(there[m].get(columns[0]))):
            values = "  ".join(f"{_text(there[method].get(name)):>{_wide(name)}}" for name in columns)
            lines.append(f"  {method:<{width - 2}}  {values}  {_said(metrics, direction, method)}".rstrip())
        lines.append("")
    if any(metrics.get("differences", {}).values()):
        lines.append("(beats, on a par, behind: the model, by the 95 % interval of the difference in the first column)")
    for method, scores in metrics["methods"].items():
        if "foscttm" in scores:
            lines.append(f"FOSCTTM of {method}: {_text(scores['foscttm'])} (0 perfect, 0.5 chance)")
        if "closest_jaccard" in scores:
            of = metrics["closest"]
            lines.append(
                f"closest {of['n']} cells of {method}, shared: {_text(scores['closest_jaccard'])} (1 perfect, "
                f"{_text(of['chance'])} chance)"
            )
    lines += _alignment_lines(metrics.get("alignment"))
    lines += [f"{method} not run: {why}" for method, why in metrics["skipped"].items()]
    lines.append(f"{metrics['cells']['test']:,} test cells; split: {metrics['split']}")
    if metrics.get("in_training"):
        lines.append(in_training_sentence(metrics))
    return "\n".join(lines)


def _alignment_lines(alignment: Mapping[str, Any] | None) -> list[str]:
    """A line a method and space, under a head."""
    rows = {
        f"{name} ({space})": scores
        for name, spaces in (alignment or {}).get("methods", {}).items()
        for space, scores in spaces.items()
    }
    columns = [c for c in _OF_ALIGNMENT if any(c in scores for scores in rows.values())]
    if not columns:
        return []
    width = 2 + max(16, *map(len, rows))
    lines = [f"{'alignment':<{width}}  " + "  ".join(f"{c:>{_wide(c)}}" for c in columns)]
    for name, scores in rows.items():
        lines.append(f"  {name:<{width - 2}}  " + "  ".join(f"{_text(scores.get(c)):>{_wide(c)}}" for c in columns))
    return [*lines, ""]


def _embedding_table(metrics: Mapping[str, Any]) -> str:
    """Of an embedding: the model, then baselines, the best first."""
    scores, order = metrics["embeddings"], ranked(metrics)
    columns = [c for c in _OF_EMBEDDINGS if any(scores[name].get(c) is not None for name in order)]
    width = max(16, *map(len, order))
    lines = ["  ".join([" " * width, *(f"{name:>{_wide(name)}}" for name in columns)])]
    for name in order:
        cells = (_count(scores[name].get(c)) if c == "n_clusters" else _text(scores[name].get(c)) for c in columns)
        lines.append("  ".join([f"{name:<{width}}", *(f"{text:>{_wide(c)}}" for c, text in zip(columns, cells))]))
    lines.append("")
    if metrics.get("verdict"):
        lines.append(metrics["verdict"]["sentence"])
    if metrics.get("imputation"):
        dice = ", ".join(f"{name} {_text(value)}" for name, value in metrics["imputation"]["dice"].items())
        lines.append(f"Dice of open peaks against bulk: {dice}")
    lines += [f"{name} not run: {why}" for name, why in metrics["skipped"].items()]
    lines.append(how_judged(metrics))
    return "\n".join(lines)


def _count(value: Any) -> str:
    return "—" if value is None or np.isnan(value) else f"{int(value)}"


def _wide(name: str) -> int:
    return max(len(name), 7)


def _said(metrics: Mapping[str, Any], direction: str, method: str) -> str:
    """What the model is to a baseline, and the interval of the difference in the first score: "beats, by +0.01 to +0.02"."""
    said = metrics["verdicts"].get(direction, {}).get(method, "")
    gaps = metrics.get("differences", {}).get(direction, {}).get(method, {})
    gap = gaps.get(DECIDING[ends(direction)[1]][0][0])
    return said if gap is None else f"{said}, {interval_text(Interval(**gap))}"


def _number(value: Any) -> float:
    return -np.inf if value is None or np.isnan(value) else float(value)


def _text(value: Any) -> str:
    return "—" if value is None or np.isnan(value) else f"{round(value, 4) + 0.0:.4f}"  # no -0.0000
