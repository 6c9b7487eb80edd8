"""An embedding of cells beside those of baselines: what is scored, and metrics.json and report.html about it.

metrics  {"embeddings": {NAME: {"ari", "nmi", "silhouette", "ari_best", "nmi_best", "n_clusters", "f1", "rarest_f1", "mi_depth",
          "mi_batch", "mixing", "mixing_by_chance", "dimensions", "seconds", "intervals": {SCORE: {"low", "high"}}}},
          "draws": {NAME: {SCORE: [values]}} in subsamples, of the model and the best baseline, "baselines": [names],
          "skipped": {what: why}, "labels": column | None, "batch": column | None, "resolutions": [...],
          "curves": {NAME: {"ari", "nmi", "n_clusters"}} at these resolutions, "types": {NAME: {TYPE: {"cells", "f1", "jaccard"}}},
          "information": {NAME: {"depth", "batch"}} of each dimension (nats), "cells": {"given", "judged", "empty",
          "sampled_out", "labelled", "unlabelled", "trained"}, "verdict": … | None, "imputation": … | None, "split", "system",
          "model", "doubts"}
         A score is absent where there is nothing to compute it from; "skipped" says why.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float32

from expresser.atomic import replaced_together
from expresser.errors import InputError
from expresser.record import write_metrics
from expresser.report import Section
from translate.embedding_baselines import BASELINES, USUAL, missing
from translate.embedding_cells import JudgedCells, batch_of, judged_cells, label_of
from translate.embedding_imputation import bulk_dice, has_bulk
from translate.embedding_page import EmbeddingDrawings, embedding_page, embedding_sections
from translate.embedding_scores import MIXING_NEIGHBOURS, Scored, draws_of, score_embedding
from translate.embedding_verdicts import best_baseline, verdict
from translate.held import Held, split_of
from translate.judging import doubts_of, evaluation_record, page_of_fit
from translate.maps import sampled
from translate.origin import Origin
from translate.splits import Split
from translate.study import Study
from translate.translator import Translator

MAP_CELLS = 3000  # of the judged cells, at most
Which = Literal["none", "usual", "all"]
Say = Callable[[str], None]


def judge_embedding(
    translator: Translator,
    held: Held,
    *,
    label: str | None = None,
    batch: str | None = None,
    baselines: Which = "usual",
    seed: int = 0,
    say: Say = lambda words: None,
) -> tuple[dict[str, Any], EmbeddingDrawings]:
    """Scores of the model's embedding of the test cells, and of baselines fitted to the same cells; what figures need.

    label, batch: columns of obs; by default ``cell_type``, and the model's own, where the cells have them. baselines: usual:
    those of seconds; all: PeakVI and spectral too, where they are installed.
    """
    study, name = held.study, translator.name
    label, batch = label_of(study.obs, label), batch_of(translator.system.config, study.obs, batch)
    say("cells")
    cells = judged_cells(translator, study, held.split.test, label=label, batch=batch, seed=seed)
    say(f"{name}: embedding")
    began = time.perf_counter()
    points = {name: np.ascontiguousarray(translator.latents(cells.measured, source="atac"))}
    seconds = {name: time.perf_counter() - began}
    if not np.isfinite(points[name]).all():
        raise InputError(f"evaluation: the embedding of {name} is not finite. Its training diverged: look at its loss.")
    skipped = dict(cells.why_not)
    if baselines != "none":
        _add_baselines(cells, translator, points, seconds, skipped, baselines, seed, say)
    scored: dict[str, Scored] = {}
    for method, embedded in points.items():
        say(f"{method}: scores")
        scored[method] = score_embedding(embedded, cells, seed=seed)
    metrics: dict[str, Any] = {
        "system": name,
        "embeddings": {
            m: s.scores | {"dimensions": points[m].shape[1], "seconds": seconds[m]} for m, s in scored.items()
        },
        "baselines": [m for m in points if m != name],
        "skipped": skipped,
        "labels": label if cells.types is not None else None,
        "batch": batch if cells.batch is not None else None,
        "resolutions": list(next(iter(scored.values())).resolutions),
        "curves": {m: s.curve for m, s in scored.items() if s.curve},
        "types": {m: s.types for m, s in scored.items() if s.types},
        "information": {m: s.information for m, s in scored.items()},
        "neighbours": min(MIXING_NEIGHBOURS, len(cells) - 1),
        "cells": cells.counts | {"trained": held.seen},
        "split": held.split.name,
        "draws": {},
        "imputation": None,
    }
    rivals = [name, *best_baseline(metrics)]
    if cells.types is not None:
        say(f"subsamples of {' and '.join(rivals)}")
        for method, draws in draws_of({m: points[m] for m in rivals}, cells, seed=seed).items():
            metrics["draws"][method] = draws
            metrics["embeddings"][method]["intervals"] = {
                score: {"low": min(values), "high": max(values)} for score, values in draws.items()
            }
    said = verdict(metrics)
    metrics["verdict"] = None if said is None else said.plain() | {"sentence": said.sentence()}
    if (path := held.truth.get("atac")) is not None and has_bulk(path):
        say("imputation")
        try:
            metrics["imputation"] = bulk_dice(translator, cells, path, seed=seed)
        except InputError as error:
            skipped["imputation"] = str(error)
    return metrics, _drawings(cells, points, scored)


def evaluate_embedding(
    out: Path,
    translator: Translator,
    study: Study,
    *,
    truth: Mapping[Any, Path],
    label: str | None = None,
    baselines: Which = "usual",
    maps: bool = True,
    more: Sequence[Section] = (),
    seed: int = 0,
    say: Say = lambda words: None,
) -> dict[str, Any]:
    """Judge the fit in `out` by the test cells of its split, or by all cells where it held out none.

    more: sections of the report, put after those of the evaluation.
    """
    split = split_of(out, study)
    nobody = np.arange(0)
    seen = 0
    if not len(split.test):
        seen = len(split.train) + len(split.valid)
        split = Split(split.name, nobody, nobody, np.arange(study.n_cells))
    held = Held(study, split, seen=seen, truth=truth)
    metrics, drawings = judge_embedding(translator, held, label=label, baselines=baselines, seed=seed, say=say)
    metrics |= {"model": str(out / "model"), "fit": json.loads((out / "fit.json").read_text())}
    metrics["doubts"] = doubts_of(translator)
    say("report")
    summary, sections = embedding_sections(metrics, drawings, maps=maps)
    with replaced_together(out, last="metrics.json") as part:
        page_of_fit(out, translator, (summary, [*sections, *more]), page=part / "report.html")
        write_metrics(part / "metrics.json", metrics)
    return metrics


def evaluate_embedder(
    out: Path,
    model: str,
    translator: Translator,
    held: Held,
    origin: Origin,
    *,
    label: str | None = None,
    batch: str | None = None,
    baselines: Which = "usual",
    maps: bool = True,
    seed: int = 0,
    doubts: Sequence[str] = (),
    say: Say = lambda words: None,
) -> dict[str, Any]:
    """Judge a model by cells of any file; write ``metrics.json`` and ``report.html`` into `out`."""
    metrics, drawings = judge_embedding(
        translator, held, label=label, batch=batch, baselines=baselines, seed=seed, say=say
    )
    metrics |= {"model": model, "doubts": list(dict.fromkeys(doubts))}
    say("report")
    with replaced_together(out, last="metrics.json") as part:
        embedding_page(
            part / "report.html",
            metrics,
            drawings,
            evaluation_record(part, translator, model, origin, metrics, seed=seed),
            title=f"{translator.system.published.name}: an embedding judged",
            maps=maps,
        )
    return metrics


def _add_baselines(
    cells: JudgedCells,
    translator: Translator,
    points: dict[str, Float32[np.ndarray, "cells dimensions"]],
    seconds: dict[str, float],
    skipped: dict[str, str],
    which: Which,
    seed: int,
    say: Say,
) -> None:
    """Embeddings of the baselines, and why any is missing."""
    wanted = BASELINES if which == "all" else USUAL
    n = points[translator.name].shape[1]
    for name in BASELINES:
        if (why := missing(name)) is not None:
            skipped[name] = why
        elif name not in wanted:
            skipped[name] = "slow, and run with --baselines-all only."
        else:
            say(f"{name}: embedding")
            began = time.perf_counter()
            batch = None if cells.batch is None else cells.batch_codes
            try:
                found = BASELINES[name](cells.opened, depth=cells.depth.astype(np.float64), batch=batch, n=n, seed=seed)
            except InputError as error:
                skipped[name] = str(error)
                continue
            points[name], seconds[name] = np.ascontiguousarray(found), time.perf_counter() - began


def _drawings(
    cells: JudgedCells, points: Mapping[str, Float32[np.ndarray, "cells dimensions"]], scored: Mapping[str, Scored]
) -> EmbeddingDrawings:
    """What is drawn: the same sample of cells for every map."""
    chosen = sampled(len(cells), MAP_CELLS, seed=0)
    colours: dict[str, pd.Series] = {}
    if cells.types is not None:
        colours[str(cells.label)] = cells.types.iloc[chosen]
    if cells.batch is not None:
        colours[str(cells.batch_key)] = cells.batch.iloc[chosen]
    colours["log10 open peaks"] = pd.Series(np.log10(cells.depth[chosen]), index=cells.obs.index[chosen])
    mixing = {m: s.mixing for m, s in scored.items() if s.mixing is not None}
    return EmbeddingDrawings(colours, {m: x[chosen] for m, x in points.items()}, mixing)
