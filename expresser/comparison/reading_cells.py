"""Fits of translators and embedders read back, and what `translate evaluate` left of a model judged by other cells."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from expresser.comparison.run import Run, Scores, Trace, Values, present
from expresser.comparison.scores import ALIGNMENT, EMBEDDING, TRANSLATION, known
from expresser.run_files import page_provenance, read_log, read_mapping
from expresser.run_folder import flat

MODALITIES = {"rna": "RNA", "atac": "ATAC", "protein": "protein"}
_FEATURES = {"n_genes": "genes", "n_peaks": "peaks", "n_proteins": "proteins"}
_JUDGED_BY = ("rna", "atac", "protein", "mudata", "corpus")  # the files that hold the test cells; others only train
_MORE = ("rna_only", "atac_only")


def read_translator(folder: Path, record: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None) -> Run:
    """A fit, judged or not, or (record None) an evaluation."""
    found = dict(metrics or {})
    methods: Values = found.get("methods") or {}
    system = str(found.get("system") or (record or {}).get("system"))
    scores = [
        scored
        for direction in found.get("directions") or ()
        if (scored := _direction(methods, direction, system)) is not None
    ]
    own = {key: n for of in methods.get(system, {}).values() if isinstance(of, Mapping) for key, n in of.items()}
    features = {name: own.get(key) for key, name in _FEATURES.items()}
    remarks = [] if methods else ["has no scores: it was not judged, or is not finished."]
    if found.get("in_training"):
        remarks.append(
            f"was fitted to {found['in_training']:,} of its {found['cells']['test']:,} test cells: its scores flatter it."
        )
    cells = (found.get("cells") or {}).get("test")
    judged = {"test cells": cells, "their names": _test_cells(folder), "split": found.get("split"), **features}
    return _run(
        folder,
        "Translation",
        system,
        record,
        found,
        judged=judged if methods else {},
        scores=(*scores, *_latents(found, system)),
        remarks=tuple(remarks),
    )


def read_embedder(folder: Path, record: Mapping[str, Any] | None, metrics: Mapping[str, Any] | None) -> Run:
    """A fit of an embedder, judged or not, or (record None) an evaluation."""
    found = dict(metrics or {})
    embeddings: Values = found.get("embeddings") or {}
    system = str(found.get("system") or (record or {}).get("system"))
    own = {name: of for name, of in embeddings.items() if name == system}
    others = {name: of for name, of in embeddings.items() if name != system}
    cells = found.get("cells") or {}
    judged = {
        "judged cells": cells.get("judged"),
        "cells with a type": cells.get("labelled"),
        "column of types": found.get("labels"),
        "neighbours": found.get("neighbours"),
        "split": found.get("split"),
    }
    return _run(
        folder,
        "Embedding",
        system,
        record,
        found,
        judged=judged if embeddings else {},
        scores=(Scores("Cell types and confounders", known(EMBEDDING, embeddings), own, others),) if embeddings else (),
        remarks=() if embeddings else ("has no scores: it was not judged, or is not finished.",),
    )


def _run(
    folder: Path,
    section: str,
    system: str,
    record: Mapping[str, Any] | None,
    metrics: Mapping[str, Any],
    *,
    judged: Mapping[str, Any],
    scores: tuple[Scores, ...],
    remarks: tuple[str, ...],
) -> Run:
    page = page_provenance(folder / "report.html") if record is None else {}
    origin = page.get("data", {}) if record is None else record.get("origin") or {}
    fitted = record if record is not None else _fit_of(folder, metrics, page)
    log = read_log(folder / "log.jsonl") if record is not None else []
    if record is not None:
        settings = _settings(record)
    elif fitted is not None:
        settings = _settings(fitted) | {"judged by": "translate evaluate"}
    else:
        settings = {"model": metrics.get("model"), "judged by": "translate evaluate"}
    if metrics.get("unknown_batch"):
        settings["unknown batch"] = metrics["unknown_batch"]
    seed = (fitted or page.get("trained") or {}).get("seed")
    if trials := metrics.get("trials"):
        remarks = (*remarks, f"is the best of {len(trials)} trials, chosen by its validation cells.")
    return Run(
        path=folder,
        name=folder.name,
        section=section,
        about=system,
        seed=seed,
        settings=settings,
        data=_data(origin),
        judged=present(judged),
        scores=scores,
        traces=_losses(system, log),
        facts=_facts(record, metrics, log),
        provenance=record.get("provenance", {}) if record is not None else page,
        finished=record is None or (folder / "fit.json").is_file(),
        remarks=remarks,
    )


def _direction(methods: Values, direction: str, system: str) -> Scores | None:
    source, _, to = direction.partition("_to_")
    there = {name: of[direction] for name, of in methods.items() if direction in of}
    if not there or to not in TRANSLATION:
        return None
    title = f"{MODALITIES.get(source, source)} to {MODALITIES[to]}"
    own = {name: of for name, of in there.items() if name == system}
    return Scores(title, known(TRANSLATION[to], there), own, {n: of for n, of in there.items() if n != system})


def _latents(metrics: Mapping[str, Any], system: str) -> list[Scores]:
    """One table for each modality that the alignment of the latents was judged in."""
    alignment = metrics.get("alignment") or {}
    spaces: dict[str, dict[str, Any]] = {}
    for name, of in (alignment.get("methods") or {}).items():
        for space, scores in of.items():
            spaces.setdefault(space, {})[name] = scores
    if not spaces:  # paired cells, in versions before the alignment was a part of its own
        there = {n: of for n, of in (metrics.get("methods") or {}).items() if of.get("foscttm") is not None}
        spaces = {"both": there} if there else {}
    return [
        Scores(
            "Alignment of the latents" if space == "both" else f"Alignment, latent of {MODALITIES.get(space, space)}",
            known(ALIGNMENT, there),
            {name: of for name, of in there.items() if name == system},
            {name: of for name, of in there.items() if name != system},
        )
        for space, there in spaces.items()
    ]


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """Of a fit; the split without its seed, further training data by their hashes."""
    read, hashes = ((record.get("origin") or {}).get(key, {}) for key in ("read", "sha256"))
    found: dict[str, Any] = {"system": record["system"], **flat(record.get("config") or {})}
    found |= {key: record.get(key) for key in ("preset", "genome", "precision")}
    found["split"] = re.sub(r",?\s*seed \d+", "", str(record.get("split")))
    found["start"] = (record.get("origin") or {}).get("start")
    for key in _MORE:
        if any(name in read for name in _JUDGED_BY):
            found[key] = [str(hashes.get(path, path))[:12] for path in read.get(key, ())] or None
    if pretrained := record.get("pretrained"):
        found["pretrained model"] = pretrained.get("weights_sha256", pretrained.get("source"))
    return found


def _data(origin: Mapping[str, Any]) -> dict[str, str]:
    """What is read → the sha256 of its content; of several files, of their hashes."""
    read, hashes = origin.get("read", {}), origin.get("sha256", {})
    keys = [key for key in _JUDGED_BY if key in read] or [key for key in _MORE if key in read]
    found = {}
    for key in keys:
        names = read[key] if isinstance(read[key], list) else [read[key]]
        digests = [str(hashes[name]) for name in names if name in hashes]
        if len(digests) == len(names):
            one = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
            found[key.replace("_", " ")] = one
    return found


def _test_cells(folder: Path) -> str | None:
    """A hash of the names of the cells that a fit held out, in no order."""
    path = folder / "split.tsv"
    if not path.is_file():
        return None
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, quoting=3)
    names = sorted(table.loc[table["part"] == "test", "cell"]) if {"cell", "part"} <= set(table.columns) else []
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12] if names else None


def _fit_of(folder: Path, metrics: Mapping[str, Any], page: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The run.json of the fit that an evaluation judged, where it is still to be found and is the one."""
    model, began = metrics.get("model"), (page.get("trained") or {}).get("time_utc")
    if not model or began is None:
        return None
    for base in (Path(), *folder.resolve().parents):
        for path in (base / model / "run.json", base / model / "model" / "run.json"):
            record = read_mapping(path)
            if record and "config" in record and record.get("provenance", {}).get("time_utc") == began:
                return record
    return None


def _losses(system: str, log: list[dict[str, Any]]) -> tuple[Trace, ...]:
    """The loss that is watched, a trace for each phase; of a phase without validation, the training loss."""
    found = []
    for phase in dict.fromkeys(entry["phase"] for entry in log):
        entries = [entry for entry in log if entry["phase"] == phase]
        part = "valid" if any("loss" in (entry.get("valid") or {}) for entry in entries) else "train"
        name = "validation loss" if part == "valid" else "training loss"
        frame = pd.DataFrame(
            {
                "epoch": [entry["epoch"] + 1 for entry in entries],
                name: [(entry.get(part) or {}).get("loss") for entry in entries],
            },
            dtype=float,
        )
        found.append(Trace(f"{system}, phase {phase}: {name}", name, ("epoch",), frame))
    return tuple(found)


def _facts(record: Mapping[str, Any] | None, metrics: Mapping[str, Any], log: list[dict[str, Any]]) -> dict[str, Any]:
    if record is None:
        return {}
    cells = record.get("cells") or {}
    facts: dict[str, Any] = {
        "minutes": sum(entry["seconds"] for entry in log) / 60 if log else None,
        "epochs": len(log) or None,
        "training cells": cells.get("train"),
    }
    names = {"rna": "genes", "atac": "peaks", "protein": "proteins"}
    return facts | {names.get(m, m): n for m, n in (record.get("features") or {}).items()}
