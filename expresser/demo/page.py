"""The demo's one page: a section a stage, runtime, and where everything comes from."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from expresser.atomic import replaced_together
from expresser.corpus.manifest import read_manifest, sha256_file
from expresser.demo.page_models import MODEL, embedding, gene_tasks, imputation, read_metrics
from expresser.demo.page_translate import LEAD, NAMES, embedder, translator
from expresser.demo.plan import FULL, Places, Size, Stage
from expresser.demo.running import Record, brief, products
from expresser.pages import pretraining_sections
from expresser.plots import bar_axes, svg
from expresser.record import provenance, write_metrics
from expresser.report import Figure, Section, Table, write_report

_USED = {
    "data/rna/seen_rna.h5ad": "pretraining",
    "data/rna/unseen_rna.h5ad": "imputation, cell embeddings",
    "data/multiome/seen_rna.h5ad": "fitting translators",
    "data/multiome/seen_atac.h5ad": "fitting translators",
    "data/multiome/rna_only.h5ad": "fitting polarbear",
    "data/multiome/atac_only.h5ad": "fitting polarbear",
    "data/multiome/unseen_rna.h5ad": "judging translators",
    "data/multiome/unseen_atac.h5ad": "judging translators",
    "data/atac/atac.h5ad": "the embedder",
}
_LABELS = ("data/rna/pairs.tsv", "data/rna/properties.tsv")


def write_page(out: Path, size: Size, seed: int, plan: Sequence[Stage], record: Record) -> Path:
    """Write ``out/metrics.json`` and ``out/report.html`` from what the stages left; returns the page."""
    at = Places(out)
    hashes = {name: sha256_file(at / name) for name in (*_USED, *_LABELS)}
    seconds = _seconds(plan, record)
    metrics = _metrics(at, seconds)
    origin = provenance(
        seed=seed,
        corpus_id=read_manifest(at / "corpus")["corpus_id"],
        data_sha256=hashes,
        weights_sha256={
            str(path.relative_to(out)): sha256_file(path) for path in sorted(out.glob("runs/*/model/model.safetensors"))
        },
    )
    sections = [
        _data(at, hashes),
        *pretraining_sections(at / "runs/pretrained"),
        imputation(at),
        embedding(at),
        gene_tasks(at),
        translator(at, "babel"),
        translator(at, "polarbear"),
        embedder(at),
        _runtime(out, seconds, plan, record),
    ]
    title = "Expresser demo" if size == FULL else "Expresser demo, smaller than usual"
    with replaced_together(out, last="metrics.json") as part:
        write_report(part / "report.html", title=title, summary=_summary(metrics), sections=sections, provenance=origin)
        write_metrics(part / "metrics.json", metrics)
    return out / "report.html"


def _metrics(at: Places, seconds: pd.DataFrame) -> dict[str, Any]:
    """The scores of all stages, as their own metrics.json have them, and the seconds they took."""
    pretraining = read_metrics(at / "runs/pretrained")
    embedded = read_metrics(at / "runs/sailer")
    return {
        "pretraining": {key: pretraining[key] for key in ("valid", "additive", "step", "cells_seen")},
        "imputation": read_metrics(at / "runs/imputation")["methods"],
        "annotation": read_metrics(at / "runs/annotation")["embeddings"],
        "interactions": read_metrics(at / "runs/interactions")["embeddings"],
        "property": read_metrics(at / "runs/property")["embeddings"],
        "translators": {name: read_metrics(at / f"runs/{name}_unseen")["methods"] for name in ("babel", "polarbear")},
        "embeddings": embedded["embeddings"],
        "seconds": seconds["seconds"].to_dict(),
    }


def _summary(metrics: dict[str, Any]) -> list[tuple[str, Any]]:
    """The answer of each stage; in its name, the best of what needs no model."""
    lines = [_beside("imputation, MAE", metrics["imputation"], MODEL, "mae", least=True)]
    lines.append(_beside("interacting genes, AUROC", metrics["interactions"], MODEL, "auroc"))
    for system, methods in metrics["translators"].items():
        for direction, lead in LEAD.items():
            scores = {
                name: found[direction] for name, found in methods.items() if direction in found and name != "oracle"
            }
            words = {"pearson_gene": "RNA from ATAC, r by gene", "auroc_peak": "ATAC from RNA, AUROC by peak"}[lead]
            lines.append(_beside(f"{NAMES[system]}: {words}", scores, system, lead))
    lines.append(_beside("SAILER: types from ATAC, ARI", metrics["embeddings"], "sailer", "ari"))
    return [*lines, ("minutes", f"{sum(metrics['seconds'].values()) / 60:.1f}")]


def _beside(
    what: str, methods: dict[str, dict[str, Any]], model: str, score: str, *, least: bool = False
) -> tuple[str, Any]:
    known = {name: found[score] for name, found in methods.items() if found.get(score) is not None and name != model}
    best = (min if least else max)(known, key=lambda name: known[name])
    return f"{what} (best baseline: {best}, {known[best]:.3f})", methods[model][score]


def _data(at: Places, hashes: dict[str, str]) -> Section:
    rows = {}
    for name, use in _USED.items():
        cells = ad.read_h5ad(at / name)
        rows[name] = {
            "cells": cells.n_obs,
            "features": cells.n_vars,
            "cell types": int(cells.obs["cell_type"].nunique()),
            "batches": int(cells.obs["batch"].nunique()),
            "for": use,
            "sha256": hashes[name][:12],
        }
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "file"
    manifest = read_manifest(at / "corpus")
    corpus = pd.DataFrame(
        {"corpus": [manifest["cells"], manifest["genes"]["n"], manifest["nnz"], manifest["corpus_id"][:12]]},
        index=pd.Index(["cells", "genes", "non-zero counts", "id"], name="of the corpus"),
    )
    text = (
        "Three simulated samples, whose truth is known: RNA with gene modules, RNA and ATAC of the same cells (and of other cells "
        "alone), and ATAC drawn from bulk profiles. Real cells are harder, and these figures say nothing about them: this page shows "
        "that every stage runs here, and what it leaves.\n\n"
        "Files named unseen are the last cells of a sample, which no model is fitted to."
    )
    return Section("Data and corpus", text, (Table("Cells", table), Table("Corpus", corpus)))


def _seconds(plan: Sequence[Stage], record: Record) -> pd.DataFrame:
    """Seconds of each stage, of a clock and of the processor, in the order of the stages."""
    columns = ("seconds", "cpu_seconds")
    sums = {stage.name: {key: sum(record.of(step)[key] for step in stage.steps) for key in columns} for stage in plan}
    return pd.DataFrame.from_dict(sums, orient="index")


def _made(path: Path) -> Path:
    """The file, or the folder that it completes."""
    return path.parent if path.name in ("report.html", "manifest.json", "properties.tsv") else path


def _runtime(out: Path, seconds: pd.DataFrame, plan: Sequence[Stage], record: Record) -> Section:
    table = seconds.rename(columns={"cpu_seconds": "CPU seconds"}).rename_axis("stage")
    bars = partial(bar_axes, values=table["seconds"])
    rows = [
        {
            "command": brief(record.of(step)["command"]),
            "stage": stage.name,
            "makes": _made(products(step)[-1]).relative_to(out).as_posix(),
            "seconds": record.of(step)["seconds"],
            "CPU seconds": record.of(step)["cpu_seconds"],
            "tries": record.of(step)["attempts"],
        }
        for stage in plan
        for step in stage.steps
    ]
    lines = pd.DataFrame(rows)
    again = int((lines["tries"] > 1).sum())
    text = f"All of it: {seconds['seconds'].sum() / 60:.1f} minutes, {seconds['cpu_seconds'].sum() / 60:.1f} of a processor."
    text += (
        f" {again} of {len(lines)} steps were interrupted and repeated; their seconds are added up." if again else ""
    )
    text += (
        "\n\nThe demo ran these commands, in this order, in one process. Each can be typed by itself; only keeping cells from models "
        "was done by the demo. Each run's folder has a "
        f"page of its own with more about it: {out / 'runs'}."
    )
    figure = Figure("Seconds a stage", svg(bars, (5.2, 0.9 + 0.3 * len(table))), data=table.reset_index())
    return Section("Runtime and commands", text, (figure, Table("Stages", table), Table("Commands", lines)))
