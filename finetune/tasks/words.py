"""The result of a gene task in words and as a small text table, for the page and for the terminal."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from finetune.tasks.judging import LEAD, PAR

NAMES = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "brier": "Brier score",
    "macro_f1": "macro F1",
    "pearson": "r",
    "spearman": "rho",
    "r2": "R²",
    "mae": "MAE",
}

_VERBS = {"better": "is better than", "worse": "is worse than", "on a par": "is on a par with"}

# Above this AUROC of the degree row, what a split measures is mostly which genes it knows.
LEAKS = 0.6


def name_of(score: str) -> str:
    """A score as people call it."""
    if score.startswith("pearson_given_"):
        given = score.removeprefix("pearson_given_")
        return f"r given {'all covariates' if given == 'covariates' else given}"
    return NAMES.get(score, score)


def speakers(metrics: Mapping[str, Any]) -> list[str]:
    """Of whom the page speaks: the models given, or without any the best table."""
    known = [name for name in metrics["models"] if name in metrics["embeddings"]]
    if known:
        return known
    lead = LEAD[metrics["kind"]]
    tables = [name for name in metrics["tables"] if name in metrics["embeddings"]]
    return [max(tables, key=lambda name: _or(metrics["embeddings"][name].get(lead), -math.inf))] if tables else []


def sentences(metrics: Mapping[str, Any]) -> list[str]:
    """What the headline split says: how far the tables can be trusted here, then each model against each other table."""
    lead = LEAD[metrics["kind"]]
    said = [caution] if (caution := _caution(metrics)) else []
    for name in speakers(metrics):
        against = metrics["comparisons"].get(name, {})
        if not against:
            said.append(f"{name} stands alone, so nothing can be said of it but its score.")
            continue
        beaten = [other for other, c in against.items() if c["verdict"] == "better"]
        rest = [other for other in against if other not in beaten]
        value = shown(metrics["embeddings"][name], lead)
        if not rest:
            said.append(f"{name} ({name_of(lead)} {value}) is better than each of the {len(against)} others.")
        else:
            first = f"{name} ({name_of(lead)} {value}) is better than {len(beaten)} of the {len(against)} others"
            said.append(f"{first}; not shown better than {', '.join(rest)}.")
        said += [comparison(name, other, c) for other, c in against.items()]
        for covariate in metrics.get("covariates", []):
            if found := metrics["comparisons"].get(f"{covariate}+{name}", {}).get(covariate):
                said.append(_adds(name, covariate, found))
    return said


def comparison(name: str, other: str, found: Mapping[str, Any]) -> str:
    """One paired comparison: "expresser is on a par with svd: +0.003, -0.010 to +0.016 (adjusted p 0.7)."."""
    gap, low, high = (_signed(found[key]) for key in ("difference", "low", "high"))
    p = found["p_holm"]
    tail = "" if p is None or math.isnan(p) else f" (adjusted p {'< 0.001' if p < 0.001 else f'{p:.2g}'})"
    numbers = f"{gap} {name_of(found['score'])}, {low} to {high}{tail}"
    verb = _VERBS.get(found["verdict"])
    return f"{name} {verb} {other}: {numbers}." if verb else f"{name} and {other} cannot be told apart: {numbers}."


def joined(name: str, metrics: Mapping[str, Any]) -> bool:
    """Whether a row is a table joined to a covariate, which is no table that was given."""
    return name not in metrics["tables"] and name.partition("+")[0] in metrics.get("covariates", []) and "+" in name


def _adds(name: str, base: str, found: Mapping[str, Any]) -> str:
    gap, low, high = (_signed(found[key]) for key in ("difference", "low", "high"))
    verb = {"better": "adds to", "worse": "takes from", "on a par": "adds nothing to"}.get(found["verdict"])
    numbers = f"{gap} {name_of(found['score'])}, {low} to {high}"
    if verb is None:
        return f"Whether {name} adds to {base} cannot be told: {numbers}."
    return f"{name} {verb} what {base} alone tells: {numbers}."


def rule(kind: str) -> str:
    """What the words of `comparison` mean."""
    return (
        f"Better or worse: the paired difference in {name_of(LEAD[kind])} is significant at 5 % after Holm's adjustment over "
        f"all other tables of this result. On a par: it is not, and the 95 % interval lies within ±{PAR}. Cannot be told "
        "apart: neither."
    )


def text_table(metrics: Mapping[str, Any]) -> str:
    """The headline split for a terminal: each table, its scores with intervals, and the verdict on the first model."""
    kind, entries = metrics["kind"], metrics["embeddings"]
    lead = LEAD[kind]
    order = ranked(metrics)
    columns = [score for score in scores_shown(metrics) if any(_is(entries[name].get(score)) for name in order)]
    spoken = speakers(metrics)
    model = spoken[0] if spoken and metrics["comparisons"].get(spoken[0]) else None
    width = max(map(len, order))
    heads = [f"{name_of(c):>22}" if c == lead else f"{name_of(c):>18}" for c in columns]
    lines = [f"{'':<{width}}  " + "  ".join(heads) + (f"  {model} is" if model else "")]
    for name in order:
        cells = [shown(entries[name], c) if c == lead else _plain(entries[name].get(c)) for c in columns]
        padded = [f"{cell:>22}" if c == lead else f"{cell:>18}" for c, cell in zip(columns, cells, strict=True)]
        verdict = metrics["comparisons"][model].get(name, {}).get("verdict", "") if model else ""
        lines.append(f"{name:<{width}}  " + "  ".join(padded) + (f"  {verdict}" if verdict else ""))
    if caution := _caution(metrics):
        lines.append(caution)
    return "\n".join(lines)


def lost_text(metrics: Mapping[str, Any]) -> str:
    """Each table's way from rows to the genes compared, and the labelled items it lacks."""
    lines = []
    what = "pairs" if metrics.get("n_pairs") else "labelled genes"
    for name, row in metrics["lost"].items():
        lacking = row.get("pairs_lacking", row.get("labelled_lacking", 0))
        lines.append(
            f"{name}: {row['resolved']:,} genes of {row['rows']:,} rows, {row['common']:,} shared by all tables; "
            f"{lacking:,} {what} lack a vector"
        )
    return "\n".join(lines)


def scores_shown(metrics: Mapping[str, Any]) -> list[str]:
    """Scores that the tables show, the deciding one first."""
    shown = {
        "binary": ["auroc", "auprc", "balanced_accuracy", "accuracy", "brier"],
        "regression": ["pearson", "spearman", "r2", "mae"],
        "multiclass": ["balanced_accuracy", "accuracy", "macro_f1", "auroc"],
    }[metrics["kind"]]
    given = sorted({s for row in metrics["embeddings"].values() for s in row if s.startswith("pearson_given_")})
    given = [score for score in given if not score.endswith(("_lo", "_hi"))]
    return [shown[0], *given, *shown[1:]]


def ranked(metrics: Mapping[str, Any]) -> list[str]:
    """Tables from best to worst by the deciding score."""
    lead, entries = LEAD[metrics["kind"]], metrics["embeddings"]
    return sorted(entries, key=lambda name: -_or(entries[name].get(lead), -math.inf))


def shown(entry: Mapping[str, Any], score: str) -> str:
    """A score with its interval."""
    value, low, high = (entry.get(key) for key in (score, f"{score}_lo", f"{score}_hi"))
    if not _is(value):
        return "—"
    return f"{value:.3f}" + (f" ({low:.3f}–{high:.3f})" if _is(low) and _is(high) else "")


def _caution(metrics: Mapping[str, Any]) -> str:
    degree = metrics["embeddings"].get("degree", {}).get("auroc") if "audit" in metrics else None
    if degree is None or not degree > LEAKS:  # NaN, too, says nothing
        return ""
    return (
        f"On the {metrics['split']} split a predictor that knows only how often each gene interacts in training reaches "
        f"AUROC {degree:.3f}: this split is a diagnostic, and says little of what vectors know. "
        "Use the gene-disjoint split."
    )


def _plain(value: Any) -> str:
    return f"{value:.3f}" if _is(value) else "—"


def _signed(value: Any) -> str:
    return f"{value:+.3f}".replace("-", "−") if _is(value) else "—"


def _is(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _or(value: Any, other: float) -> float:
    return float(value) if _is(value) else other


def listed(names: Sequence[str], at_most: int = 5) -> str:
    """The first names, and that there are more."""
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most:,} more" if len(names) > at_most else "")


def account_text(metrics: Mapping[str, Any]) -> str:
    """How many labels were kept of those read, in one line."""
    account = metrics["labels"]
    read = account.get("rows_read", account.get("pairs_read"))
    what = "pairs" if metrics["n_pairs"] else "genes"
    kept = metrics["n_pairs"] or metrics["n_genes"]
    parts = [f"{kept:,} labelled {what} compared" + (f", of {read:,} rows read" if read else "")]
    parts += [f"{account[key]:,} {words}" for key, words in _ACCOUNT.items() if account.get(key)]
    if without := metrics.get("without_covariates"):
        parts.append(f"{without:,} without {' or '.join(metrics['covariates'])}")
    return "; ".join(parts)


_ACCOUNT = {
    "missing": "without a value",
    "unknown_genes": "with unknown genes",
    "self_pairs": "of a gene with itself",
    "repeated": "repeated",
    "both_strands": "repeated in the other order",
    "repeated_across_parts": "repeated in another part of the shipped split",
    "contradictory": "contradictory",
    "rare": "of classes with few genes",
    "set_aside": "set aside",
    "outside_tables": "lost since a table lacks the gene",
    "drawn": "drawn as negatives",
}


def number(value: Any) -> float:
    """A number of metrics.json, where what is undefined is null."""
    return float("nan") if value is None else float(value)
