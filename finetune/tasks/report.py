"""The page about a gene task: verdicts in words, all tables with their intervals, curves, what leaks and what was lost."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser.report import Section, Table, write_report
from finetune.heads.fitting import DEFAULTS
from finetune.tasks.figures import task_figures
from finetune.tasks.judging import LEAD
from finetune.tasks.words import joined, name_of, number, ranked, rule, scores_shown, sentences, shown, speakers

TITLES = {
    "interactions": "Gene interactions",
    "lof": "Intolerance of loss of function",
    "dosage": "Dosage sensitivity",
    "gene": "Gene labels",
}

_GENES = """
Each table gives every gene a vector, and a head that sees nothing else predicts the label of genes it was not fitted
on. All tables are compared on the {n_genes:,} labelled genes that all of them hold, in the same folds ({how}), so that
differences are paired. {interval}

The head, preset {preset}: {head}
"""

_PAIRS = """
Each table gives every gene a vector. A pair's features are {form}; a head that sees nothing else predicts whether the
pair interacts. All tables are compared on the {n_pairs:,} pairs ({positives:,} positive, {n_genes:,} genes) of which
they hold both genes, in the same folds ({how}), so that differences are paired. {interval}

The row degree has no vectors: it knows how often each gene is in positive pairs of the training part. Where test genes
are known from training it does well, and so may any table by telling genes apart: only the gene-disjoint split, where
degree has an AUROC of 0.5, asks what the vectors know.

The head, preset {preset}: {head}
"""

_HEADS = {
    "linear": "a linear model of standardised features; its penalty is chosen inside the training part.",
    "boosting": "boosted trees; their number is chosen inside the training part.",
    "paper": "scikit-learn's models as they come (linear regression; gradient boosting, 100 trees of depth 3).",
}

_FOLDED = (
    "Scores are means over folds; intervals hold 95 % and allow for the overlap of training parts between folds "
    "(Nadeau and Bengio, Machine Learning 2003)."
)
_SINGLE = (
    "There is one test set; 95 % intervals come from leaving out its genes in turn (of pairs: with all pairs of a gene, "
    "since pairs that share a gene are not independent)."
)


def write_task_page(path: Path, metrics: Mapping[str, Any], predictions: pd.DataFrame, *, run: Path) -> Path:
    """Write `report.html` from what the run left: metrics.json, predictions.parquet and run.json."""
    record = json.loads(run.read_text())
    pairs = metrics["n_pairs"] is not None
    sections = [
        Section("Result", "\n\n".join([*sentences(metrics), rule(metrics["kind"])]), tuple(_tables(metrics))),
        Section("Figures", _spoken(metrics), tuple(task_figures(metrics, predictions))),
    ]
    if pairs:
        sections.append(Section("What the split lets through", _LEAK, (_audit(metrics),)))
    if metrics.get("companions"):
        sections.append(Section("Further targets", _COMPANIONS, tuple(_companions(metrics))))
    sections += [
        Section("What was lost", "", (_lost(metrics), _account(metrics))),
        Section("How it was measured", _how(metrics)),
    ]
    lead = LEAD[metrics["kind"]]
    summary: list[tuple[str, Any]] = [
        (f"{name}, {name_of(lead)}", shown(metrics["embeddings"][name], lead)) for name in speakers(metrics)
    ]
    others = [name for name in ranked(metrics) if name not in speakers(metrics) and not joined(name, metrics)]
    if others:
        summary.append((f"best other, {others[0]}, {name_of(lead)}", shown(metrics["embeddings"][others[0]], lead)))
    summary.append(("pairs" if pairs else "genes", metrics["n_pairs" if pairs else "n_genes"]))
    summary.append(("split", metrics["split"]))
    provenance = record["provenance"] | {
        "labels_sha256": record["labels_sha256"],
        "options": record["config"],
        "embeddings_sha256": record["embeddings"],
    }
    title = f"{TITLES.get(metrics['task'], metrics['task'])}: {metrics['target']}"
    return write_report(path, title=title, summary=summary, sections=sections, provenance=provenance)


def _tables(metrics: Mapping[str, Any]) -> list[Table]:
    found = [_scores(metrics, "All tables")]
    splits = metrics.get("splits") or {}
    if len(splits) > 1:
        frame = pd.DataFrame(
            {kind: [entry["embeddings"][name]["auroc"] for name in ranked(metrics)] for kind, entry in splits.items()},
            index=pd.Index(ranked(metrics), name="table"),
        )
        note = "AUROC of each table in each split. Where degree is high, the split is a diagnostic."
        found.append(Table("All splits", frame, note, dict.fromkeys(frame.columns, "max")))
    return found


def _scores(metrics: Mapping[str, Any], title: str) -> Table:
    entries, order, lead = metrics["embeddings"], ranked(metrics), LEAD[metrics["kind"]]
    frame = pd.DataFrame(index=pd.Index(order, name="table"))
    spoken = speakers(metrics)
    against = metrics["comparisons"].get(spoken[0], {}) if spoken else {}
    if against:
        frame[f"{spoken[0]} is"] = [against.get(name, {}).get("verdict", "") for name in order]
    best = {}
    for score in scores_shown(metrics):
        values = [number(entries[name].get(score)) for name in order]
        if np.isnan(values).all():
            continue
        frame[name_of(score)] = values
        best[name_of(score)] = "min" if score in ("mae", "brier") else "max"
        if score == lead:
            frame["from"] = [number(entries[name].get(f"{score}_lo")) for name in order]
            frame["to"] = [number(entries[name].get(f"{score}_hi")) for name in order]
    frame["dim"] = [number(entries[name].get("dim")) for name in order]
    frame["seconds"] = [number(entries[name].get("seconds")) for name in order]
    caption = f"From, to: 95 % interval of {name_of(lead)}. metrics.json has the intervals of all scores."
    return Table(title, frame, caption, best)  # type: ignore[arg-type]


def _spoken(metrics: Mapping[str, Any]) -> str:
    models = speakers(metrics)
    return f"In colour: {', '.join(models)}. Grey: what they are compared with." if models else ""


_LEAK = """
For each split: how many genes of a test pair are known from training pairs, whether a pair stands on both sides, and
what a predictor reaches that knows only how often each gene interacts in training (degree AUROC). Strictest: the
strictest rule that the split keeps, whatever it is called.
"""


def _audit(metrics: Mapping[str, Any]) -> Table:
    rows = {}
    for kind, entry in metrics["splits"].items():
        a = entry["audit"]
        rows[kind] = {
            "strictest": a["strictest"],
            "no gene known": a["share_0_genes_in_training"],
            "one known": a["share_1_genes_in_training"],
            "both known": a["share_2_genes_in_training"],
            "pairs on both sides": a["repeated_across"] + a["reversed_across"],
            "degree AUROC": a["degree_auroc"],
            "training pairs": entry["n_train"],
            "test pairs": entry["n_test"],
            "unused": entry["unused"],
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "split"
    return Table("Audit of the splits", frame, "Means over folds; the columns of genes known are shares of test pairs.")


_COMPANIONS = "The same tables and heads, for another target of the same source, in folds of its own."


def _companions(metrics: Mapping[str, Any]) -> list[Table]:
    return [_scores({**metrics, **entry}, str(name)) for name, entry in metrics["companions"].items()]


def _lost(metrics: Mapping[str, Any]) -> Table:
    frame = pd.DataFrame.from_dict(metrics["lost"], orient="index")
    frame.index.name = "table"
    frame.columns = [str(column).replace("_", " ") for column in frame.columns]
    return Table(
        "Genes of each table",
        frame,
        "Rows of the table, genes they resolve to, of these shared by all tables, and lost because another table lacks "
        "them; last, how many labelled items this table alone would lose.",
    )


def _account(metrics: Mapping[str, Any]) -> Table:
    rows = {
        str(key).replace("_", " "): json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for key, value in metrics["labels"].items()
    }
    frame = pd.DataFrame(
        {"": [("—" if v is None else f"{v:,}" if isinstance(v, int) else str(v)) for v in rows.values()]}
    )
    frame.index = pd.Index(list(rows), name="labels")
    return Table("Account of the labels", frame)


def _how(metrics: Mapping[str, Any]) -> str:
    text = _GENES if metrics["n_pairs"] is None else _PAIRS
    single = metrics["fits"] == 1
    repeats = metrics["repeats"]
    if metrics["split"] == "shipped":
        how = "the split that the labels ship"
    elif single:
        how = "one random fifth held out"
    else:
        how = f"{metrics['folds']}-fold cross-validation" + (f", {repeats} times" if repeats > 1 else "")
    form = (
        "sum, absolute difference and product of the two" if metrics.get("form") == "symmetric" else "both side by side"
    )
    default = DEFAULTS["pairs" if metrics["n_pairs"] is not None else metrics["kind"]]
    return text.format(
        **{key: value for key, value in metrics.items() if key not in ("form", "how")},
        how=how,
        form=form,
        interval=_SINGLE if single else _FOLDED,
        head=_HEADS[metrics["preset"] if metrics["preset"] != "default" else default],
    )
