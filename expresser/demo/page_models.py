"""The demo's sections on the pretrained model: imputation, cell embeddings, gene tasks; all from files that commands wrote."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from expresser.demo.drawings import cell_maps, cloud, rate_curves
from expresser.demo.plan import Places
from expresser.pages import imputation_section
from expresser.report import Figure, Section, Table

MODEL = "expresser"
_TASKS = {
    "interactions": (
        "Interacting pairs",
        "Pairs of genes: do they interact? Interactions lie inside the simulated modules, and no test gene stands in a training "
        "pair. degree knows no vector, only how often each gene interacts in the training pairs.",
    ),
    "property": (
        "A property of genes",
        "Genes of half of the modules carry the property, and a tenth of all labels is turned over at random. Rows with length know "
        "the length of the coding sequence, alone or beside vectors; here it has nothing to do with the property.",
    ),
}


def read_metrics(run: Path) -> dict[str, Any]:
    """``metrics.json`` of a run."""
    return json.loads((run / "metrics.json").read_text())


def imputation(at: Places) -> Section:
    """Scores of hidden counts beside the baselines, and what was predicted against what was measured."""
    section = imputation_section(read_metrics(at / "runs/imputation"))
    cells = ad.read_h5ad(at / "cells/imputed.h5ad")
    counts = np.asarray(cells.X.toarray(), dtype=np.float64)
    predicted = np.asarray(cells.layers["expresser"], dtype=np.float64)
    measured = np.log1p(1e4 * counts / counts.sum(1, keepdims=True).clip(1))
    there = (counts > 0) & np.isfinite(predicted)
    genes = int(np.isfinite(predicted).any(0).sum())
    figure = cloud(
        "Expression: measured and predicted",
        measured[there],
        predicted[there],
        unit="ln(1 + 10,000 count / total)",
        caption=f"Non-zero counts of {genes:,} genes in {cells.n_obs:,} unseen cells, each predicted while it was hidden. "
        "Single molecules make the stripes.",
    )
    return replace(section, title="Imputation", items=(*section.items, figure))


def embedding(at: Places) -> Section:
    """Unseen cells on a map, and how well their types are told, beside what needs no pretraining."""
    cells = ad.read_h5ad(at / "cells/embedded.h5ad")
    found = read_metrics(at / "runs/annotation")
    colours = {
        "cell type": cells.obs["cell_type"].astype(str).to_numpy(),
        "batch": cells.obs["batch"].astype(str).to_numpy(),
        "depth (log10 counts)": np.log10(np.asarray(cells.X.sum(1)).ravel()),
    }
    names = {"macro_f1": "macro F1", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}
    table = pd.DataFrame.from_dict(
        {
            name: {label: scores.get(key) for key, label in names.items()}
            for name, scores in found["embeddings"].items()
        },
        orient="index",
        dtype=float,
    ).sort_values("macro F1", ascending=False)
    table.index.name = "method"
    text = (
        f"{cells.n_obs:,} cells that the model has never seen, embedded. A good map shows cell types, not batches or depth."
        "\n\nThe table: types of held-out cells, named by classifiers that learn from the others, in three folds."
    )
    figures = cell_maps("Unseen cells", cells.obsm["X_expresser"], colours)
    return Section(
        "Cell embeddings",
        text,
        (*figures, Table("Cell types named", table, best=dict.fromkeys(names.values(), "max"))),
    )


def gene_tasks(at: Places) -> Section:
    """What gene vectors know of interactions and of a property, with intervals, beside vectors that need no pretraining."""
    items: list[Figure | Table] = []
    words = [
        "The simulator knows which genes share a module; labels follow the modules. Linear heads see nothing but gene vectors: those "
        "of the pretrained model, principal axes of the same cells (svd), mean, detection and dispersion of each gene (expression) or "
        "random ones."
    ]
    for task, (title, text) in _TASKS.items():
        metrics = read_metrics(at / f"runs/{task}")
        words.append(f"{title}. {text} {_verdict(metrics)}")
        items.append(_gene_table(title, metrics))
        items += _gene_curves(title, at / f"runs/{task}", metrics)
    return Section("Gene tasks", "\n\n".join(words), tuple(items))


def _verdict(metrics: Mapping[str, Any]) -> str:
    """Whom the model is better than, on a par with, or worse than, as metrics.json says."""
    said: dict[str, list[str]] = {}
    for other, found in metrics["comparisons"].get(MODEL, {}).items():
        said.setdefault(found["verdict"], []).append(other)
    if not said:
        return ""
    verbs = {"better": "better than", "worse": "worse than", "on a par": "on a par with"}
    parts = [f"{verbs.get(verdict, 'not told apart from')} {', '.join(names)}" for verdict, names in said.items()]
    return f"The model's vectors are {'; '.join(parts)}."


def _gene_table(title: str, metrics: Mapping[str, Any]) -> Table:
    rows = {
        name: {
            "AUROC": found.get("auroc"),
            "from": found.get("auroc_lo"),
            "to": found.get("auroc_hi"),
            "AUPRC": found.get("auprc"),
            "accuracy": found.get("accuracy"),
            "dimensions": found.get("dim"),
        }
        for name, found in metrics["embeddings"].items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float).sort_values("AUROC", ascending=False)
    frame.index.name = "vectors"
    said = metrics["comparisons"].get(MODEL, {})
    frame.insert(0, f"{MODEL} is", [said.get(name, {}).get("verdict", "") for name in frame.index])
    asked = f"{metrics['n_pairs']:,} pairs of " if metrics["n_pairs"] else ""
    caption = f"{asked}{metrics['n_genes']:,} genes; split: {metrics['split']}. From, to: 95 % interval of AUROC."
    return Table(title, frame, caption, {"AUROC": "max", "AUPRC": "max"})


def _gene_curves(title: str, run: Path, metrics: Mapping[str, Any]) -> list[Figure]:
    """ROC and precision-recall of the first repeat, in which every item is predicted once, by a head not fitted on it."""
    found = pd.read_parquet(run / "predictions.parquet")
    found = found[(found["split"] == metrics["split"]) & (found["repeat"] == found["repeat"].min())]
    scores = metrics["embeddings"]
    order = sorted((name for name in scores if name in found), key=lambda name: -scores[name]["auroc"])
    others = [name for name in order if name not in (MODEL, "random", "degree") and "+" not in name]
    shown = [name for name in (MODEL, *others[:2], "random", "degree") if name in order]
    caption = "First repeat: every item once, by a head that was not fitted on it."
    return rate_curves(
        title,
        found["label"].to_numpy(dtype=bool),
        {name: found[name].to_numpy(dtype=np.float64) for name in shown},
        references=frozenset({"random", "degree"}),
        caption=caption,
    )
