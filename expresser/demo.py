"""``expresser demo``: every stage on simulated cells, each through the command that a user would type."""

import json
import shlex
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from rich.console import Console
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

from expresser import cli
from expresser.errors import InputError
from expresser.factors import gene_factors
from expresser.metrics.modules import module_auc
from expresser.pages import imputation_section, pretraining_sections
from expresser.plots import scatter_axes, svg
from expresser.record import provenance, write_metrics
from expresser.report import Figure, Section, Table, write_report
from expresser.simulate import simulate_rna
from expresser.threads import kept_threads

_CELLS, _HELD, _GENES = 3000, 300, 2000


def demo(out: Path, *, seed: int = 0) -> Path:
    """Simulate, build a corpus, pretrain, impute, embed, and write ``out/report.html``; returns its path.

    Raises
    ------
    InputError
        If ``out`` holds anything already.
    """
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: not empty. Choose another --out, or remove the folder.")
    console, began = Console(stderr=True), time.perf_counter()
    seconds: dict[str, float] = {}

    def stage(name: str, *argv: str | Path) -> None:
        words = [str(word) for word in argv]
        console.rule(f"[bold]{name}")
        console.print(f"$ expresser {shlex.join(words)}", style="cyan", highlight=False, soft_wrap=True)
        at = time.perf_counter()
        cli.main(words)
        seconds[name] = time.perf_counter() - at

    out.mkdir(parents=True, exist_ok=True)
    cells = simulate_rna(n_cells=_CELLS, n_genes=_GENES, median_depth=1500, seed=seed)
    cells[:-_HELD].copy().write_h5ad(out / "cells.h5ad")
    cells[-_HELD:].copy().write_h5ad(out / "unseen.h5ad")
    console.print(f"simulated {_CELLS} cells x {_GENES} genes; the last {_HELD} stay unseen", highlight=False)

    run = out / "run"
    stage("corpus", "corpus", "build", out / "cells.h5ad", "--out", out / "corpus", "--obs", "cell_type", "batch")
    stage("pretraining", "pretrain", "demo", "--corpus", out / "corpus", "--out", run, "--seed", str(seed))
    stage("gene embeddings", "genes", "export", run, "--out", out / "genes.parquet")
    stage("cell embeddings", "embed", run, out / "unseen.h5ad", "--out", out / "embedded.h5ad")
    markers = cells.var["symbol"].iloc[:20].tolist()
    stage("imputation", "impute", run, out / "unseen.h5ad", "--genes", *markers, "--out", out / "imputed.h5ad")
    stage(
        "imputation against baselines",
        *("finetune", "imputation", "--model", run, "--data", out / "unseen.h5ad"),
        *("--out", out / "imputation", "--seeds", "2", "--reference", out / "cells.h5ad"),
    )

    modules = _gene_modules(out, cells)
    embedded = ad.read_h5ad(out / "embedded.h5ad")
    types = _cell_types(embedded)
    imputation = json.loads((out / "imputation" / "metrics.json").read_text())
    pretraining = json.loads((run / "metrics.json").read_text())
    total = time.perf_counter() - began
    metrics = {
        "pretraining": pretraining,
        "methods": imputation["methods"],
        "gene_modules": modules,
        "cell_types": types,
        "seconds": seconds | {"total": total},
    }
    write_metrics(out / "metrics.json", metrics)
    model = imputation["methods"]["expresser"]
    path = write_report(
        out / "report.html",
        title="Expresser demo",
        summary=[
            ("imputation MAE, unseen cells", model["mae"]),
            ("gene + cell additive", imputation["methods"]["additive"]["mae"]),
            ("Pearson r", model["pearson"]),
            ("gene modules found (AUC)", modules["expresser"]["auc"]),
            ("minutes", total / 60),
        ],
        sections=[
            *pretraining_sections(run),
            imputation_section(imputation),
            _embedding_section(embedded, types),
            _module_section(modules),
            Section("Runtime", "", (Table("Seconds a stage", pd.Series(seconds, name="seconds").to_frame()),)),
        ],
        provenance=provenance(seed=seed),
    )
    console.rule()
    print(f"report: {path}")
    return path


def _gene_modules(out: Path, cells: ad.AnnData) -> dict[str, dict[str, float]]:
    """How well cosine similarity of gene embeddings tells pairs of one simulated module from others, beside plain SVD."""
    table = pd.read_parquet(out / "genes.parquet").set_index("symbol")
    names = cells.var["symbol"].astype(str).to_numpy()
    modules = cells.var["module"].astype(str).tolist()
    learned = table.loc[names].to_numpy(np.float64)
    svd = gene_factors(cells[:-_HELD].X, 50).astype(np.float64)
    random = np.random.default_rng(0).normal(size=learned.shape)
    rows = {"expresser": learned, "svd": svd, "random": random}
    return {name: {"auc": float(module_auc(values, modules))} for name, values in rows.items()}


def _cell_types(embedded: ad.AnnData) -> dict[str, dict[str, float]]:
    """Five-fold accuracy of 15 nearest neighbours for the cell type of unseen cells, beside PCA of the same cells."""
    plain = embedded.copy()
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.pp.pca(plain, n_comps=30)
    labels = embedded.obs["cell_type"].astype(str).to_numpy()
    spaces = {"expresser": embedded.obsm["X_expresser"], "pca": plain.obsm["X_pca"]}
    return {
        name: {"knn_accuracy": float(cross_val_score(KNeighborsClassifier(15), x, labels, cv=5).mean())}
        for name, x in spaces.items()
    }


def _embedding_section(embedded: ad.AnnData, types: dict[str, dict[str, float]]) -> Section:
    with kept_threads():
        sc.pp.neighbors(embedded, use_rep="X_expresser")
        sc.tl.umap(embedded, random_state=0)
    xy = embedded.obsm["X_umap"]
    depth = np.log10(np.asarray(embedded.X.sum(1)).ravel())
    colours = {
        "cell type": embedded.obs["cell_type"].astype(str).to_numpy(),
        "batch": embedded.obs["batch"].astype(str).to_numpy(),
        "log10 counts": depth,
    }
    figures = tuple(
        Figure(
            f"Unseen cells by {name}",
            svg(lambda ax, values=values, name=name: scatter_axes(ax, xy, values, label=name)),  # type: ignore[misc]
            data=pd.DataFrame({"umap1": xy[:, 0], "umap2": xy[:, 1], name: values}),
        )
        for name, values in colours.items()
    )
    table = pd.DataFrame(types).T.rename(columns={"knn_accuracy": "accuracy"})
    note = "Five-fold accuracy of 15 nearest neighbours. PCA is fitted on the unseen cells themselves; the model never saw them."
    return Section(
        "Cell embeddings", "", (*figures, Table("Cell type of unseen cells", table, note, best={"accuracy": "max"}))
    )


def _module_section(modules: dict[str, dict[str, float]]) -> Section:
    table = pd.DataFrame(modules).T.rename(columns={"auc": "AUC"})
    text = (
        "The simulator knows which genes share a module. The area under the curve says how well cosine similarity of gene embeddings "
        "separates pairs of one module from other pairs: 0.5 is chance."
    )
    return Section("Gene embeddings", text, (Table("Gene modules", table, best={"AUC": "max"}),))
