"""Gene tasks, annotation and imputation read back: which rows are the run's own, and which it was compared with."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expresser.comparison.run import Run, Scores, Values, present
from expresser.comparison.scores import ANNOTATION, GENES, IMPUTATION, known
from expresser.run_files import page_provenance
from expresser.run_folder import flat

_MODEL = "expresser"  # the model's row in a table of imputation


def read_genes(folder: Path, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> Run:
    """A run of finetune gene, lof, dosage, interactions…: own are tables that were given, not those that are always at hand."""
    tables, embeddings = metrics["tables"], metrics["embeddings"]
    own = [name for name in embeddings if tables.get(name, {}).get("kind", "built-in") != "built-in"]
    own += [name for name in embeddings if name.partition("+")[2] in own and name not in own]
    parts: list[Mapping[str, Any]] = [metrics]
    titles = ["Scores" if metrics["n_pairs"] is None else f"Split: {metrics['split']}"]
    for split, entry in (metrics.get("splits") or {}).items():
        if split != metrics["split"]:
            parts, titles = [*parts, entry], [*titles, f"Split: {split}"]
    for name, entry in (metrics.get("companions") or {}).items():
        parts, titles = [*parts, entry], [*titles, f"Further target: {name}"]
    scores = []
    for title, part in zip(titles, parts, strict=True):
        columns = known(GENES.get(part.get("kind", metrics["kind"]), ()), part["embeddings"])
        scores.append(Scores(title, columns, *_dealt(part["embeddings"], own)))
    hashes = record.get("embeddings") or {}
    names = ("n_genes", "n_pairs", "n_test", "split", "folds", "repeats", "seed")
    return Run(
        path=folder,
        name=folder.name,
        section=f"Gene task {metrics['task']}: {metrics['target']}",
        about=str(metrics["task"]),
        seed=metrics.get("seed"),
        settings=_without_seed(record.get("config") or {})
        | {f"table {name}": hashes[name][:12] for name in own if hashes.get(name)},
        data=present({"labels": record.get("labels_sha256")}),
        judged=present({name.removeprefix("n_"): metrics.get(name) for name in names}),
        scores=tuple(scores),
        facts={"genes": metrics["n_genes"], "pairs": metrics["n_pairs"], "fits": metrics.get("fits")}
        | {"peak MB": metrics.get("peak_mb")},
        provenance=record.get("provenance", {}),
    )


def read_annotation(folder: Path, record: Mapping[str, Any], metrics: Mapping[str, Any]) -> Run:
    """A run of finetune annotation: own are models, as they are and trained."""
    embeddings = metrics["embeddings"]
    own = [name for name, of in embeddings.items() if of.get("kind") in ("model", "trained")]
    config = {k: v for k, v in (record.get("config") or {}).items() if k != "models"}
    weights = record.get("weights_sha256") or {}
    names = ("n_cells", "n_types", "split", "group", "folds", "repeats", "seed")
    return Run(
        path=folder,
        name=folder.name,
        section=f"Annotation: {metrics['label']}",
        about="annotation",
        seed=metrics.get("seed"),
        settings=_without_seed(config) | {f"model {name}": str(sha)[:12] for name, sha in weights.items()},
        data=present({"cells": record.get("cells_sha256")}),
        judged=present({name.removeprefix("n_"): metrics.get(name) for name in names}),
        scores=(Scores("Scores", known(ANNOTATION, embeddings), *_dealt(embeddings, own)),),
        facts={"cells": metrics["n_cells"], "types": metrics["n_types"], "peak MB": metrics.get("peak_mb")},
        provenance={key: record[key] for key in ("command", "machine", "versions", "time_utc") if key in record},
    )


def read_imputation(folder: Path, metrics: Mapping[str, Any]) -> Run:
    """A run of finetune imputation; the hash of its cells stands in its page alone."""
    page, protocol = page_provenance(folder / "report.html"), str(metrics["protocol"])
    parts = {f"{float(share):.0%} of the counts hidden": of for share, of in (metrics.get("drops") or {}).items()}
    parts = parts or {"Scores": metrics}
    scores = []
    for title, part in parts.items():
        methods = part["methods"]
        scores.append(Scores(title, known(IMPUTATION.get(protocol, ()), methods), *_dealt(methods, [_MODEL])))
    names = {"n_cells": "cells", "n_genes": "genes", "n_entries": "entries asked", "seeds": "draws", "drop": "hidden"}
    reference = metrics.get("reference")
    return Run(
        path=folder,
        name=folder.name,
        section=f"Imputation, protocol {protocol}",
        about="imputation",
        seed=None,
        settings={"model": metrics.get("model"), "reference": None if reference is None else reference.get("name")},
        data=present({"cells": page.get("data_sha256")}),
        judged=present({word: metrics.get(key) for key, word in names.items()})
        | present({"vocabulary": metrics.get("vocab_sha256")}),
        scores=tuple(scores),
        facts={"cells": metrics["n_cells"], "entries": metrics["n_entries"]},
        provenance=page,
    )


def _dealt(rows: Values, own: list[str]) -> tuple[Values, Values]:
    """Own rows, and the others."""
    return {n: of for n, of in rows.items() if n in own}, {n: of for n, of in rows.items() if n not in own}


def _without_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flat(config).items() if name != "seed"}
