"""A fitted translator on held-out cells, beside baselines fitted to its own training cells: metrics.json and report.html."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd

from expresser.atomic import replaced_together
from expresser.errors import InputError
from expresser.record import provenance, write_metrics
from expresser.report import Section
from translate.alignment_judging import Spaces, spaces_of
from translate.bridge_words import taken_words
from translate.drawings import Drawings
from translate.evaluate import Method, evaluate
from translate.held import MOST, Held, split_of
from translate.maps import FEWEST, principal_scores, sampled
from translate.origin import Origin
from translate.pages import Components, Summary, evaluation_page, evaluation_sections, fit_page
from translate.predicted import Predicted
from translate.scales import feature_names, values_of
from translate.study import MODALITIES, Modality, Study
from translate.translator import Translator
from translate.truth import Truth
from translate.unpaired import evaluate_unpaired
from translate.verdicts import FEATURES, differences, verdicts
from translate.verdicts import MODALITIES as MODALITY_NAMES

MAP_CELLS = 3000  # of the test cells, at most
_SEED_OF_MAPS = 0

Say = Callable[[str], None]


def judge(
    translator: Translator,
    held: Held,
    *,
    label: str | None = None,
    baselines: bool = True,
    maps: bool = True,
    seed: int = 0,
    unknown_batch: str | None = None,
    most: int = MOST,
    say: Say = lambda words: None,
) -> tuple[dict[str, Any], Drawings, Components]:
    """Scores (`translate.evaluate`; with them what is below), what figures need, and components for maps.

    in_training   of the test cells, how many the model was fitted to; None: not known
    verdicts      direction → baseline → "beats", "on a par", "behind" or "undecided" (`translate.verdicts`)
    differences   direction → baseline → deciding score → difference, low and high: the intervals that verdicts rest on

    The model is scored in every direction between different modalities that the study has, by the test cells measured in all
    of these; where there is none, by types and alignment alone (`translate.unpaired`). Drawings hold the cells of the maps
    alone where there are more than `MAP_CELLS`. Of more than `most` test cells that many are judged, drawn by their names, and
    baselines learn from as many training cells at most; metrics["split"] says so.

    unknown_batch: of a system that tells batches apart, which of them cells are taken for whose own no training cell had
    ("reference": the largest); it stands in the metrics.
    """
    held = held.thinned(most)
    more: dict[str, Any] = {} if unknown_batch is None else {"unknown_batch": unknown_batch}
    asked = partial(translator.predict, **more)
    study, name = held.study, translator.name
    there = [(s, t) for s, t in translator.directions if s != t and {s, t} <= set(study.modalities)]
    if not there:
        shown = ", ".join(f"{s} to {t}" for s, t in translator.directions if s != t)
        raise InputError(
            f"evaluation: the cells were measured in {' and '.join(study.modalities)}, but this {name} goes {shown}. Give "
            "cells measured in both modalities of one of these."
        )
    methods: dict[str, Method] = {name: {f"{s}_to_{t}": partial(asked, source=s, to=t) for s, t in there}}
    known, no_oracle = _oracles(held.truth, translator, list(methods[name]))
    methods |= known
    latents: dict[str, Spaces] = {name: spaces_of(translator, study.modalities, unknown_batch=unknown_batch)}
    paired = np.logical_and.reduce([study.has(m)[held.split.test] for m in {m for way in there for m in way}]).any()
    metrics, drawings = (evaluate if paired else evaluate_unpaired)(
        methods,
        study,
        held.split,
        translator.inputs,
        latents=latents,
        directions=list(methods[name]),
        label=_label(study, label),
        baselines=baselines and held.without is None,
        train=held.train,
        seed=seed,
        progress=say,
    )
    if held.without is not None and baselines:
        metrics["skipped"]["baselines"] = held.without
    if no_oracle is not None:
        metrics["skipped"]["oracle"] = no_oracle
    metrics["in_training"] = held.seen
    if unknown_batch is not None:
        metrics["unknown_batch"] = unknown_batch
    said = {d: verdicts(metrics, drawings.pictures, d, name) for d in metrics["directions"] if paired}
    metrics["verdicts"] = {d: {v.baseline: v.said for v in of} for d, of in said.items()}
    metrics["differences"] = {d: differences(of) for d, of in said.items()}
    if not paired:
        return metrics, drawings, {}
    chosen = sampled(len(drawings.obs), MAP_CELLS, seed=_SEED_OF_MAPS)
    small = replace(drawings, obs=drawings.obs.iloc[chosen])
    return metrics, small, _components(translator, study, small.obs.index, there, asked, say) if maps else {}


def evaluate_fit(
    out: Path,
    translator: Translator,
    study: Study,
    *,
    truth: Mapping[Modality, Path],
    label: str | None = None,
    baselines: bool = True,
    maps: bool = True,
    title: str | None = None,
    opening: tuple[Summary, Sequence[Section]] = ((), ()),
    seed: int = 0,
    say: Say = lambda words: None,
) -> dict[str, Any]:
    """Judge the fit in `out` by the test cells of its split; write its ``metrics.json`` and ``report.html``.

    The doubts about the data that the fit has on record stand in both. title, opening: of the report, in place of the fit's
    own title, and before the evaluation.
    """
    held = Held(study, split_of(out, study), seen=0, truth=truth)
    metrics, drawings, components = judge(
        translator, held, label=label, baselines=baselines, maps=maps, seed=seed, say=say
    )
    metrics |= {"system": translator.name, "model": str(out / "model"), "fit": _json(out / "fit.json")}
    metrics["doubts"] = doubts_of(translator)
    say("report")
    sections = evaluation_sections(metrics, drawings, components=components, maps=maps, seed=_SEED_OF_MAPS)
    evaluated = [*opening[0], *sections[0]], [*opening[1], *sections[1]]
    with replaced_together(out, last="metrics.json") as part:
        page_of_fit(out, translator, evaluated, title=title, page=part / "report.html")
        write_metrics(part / "metrics.json", metrics)
    return metrics


def page_of_fit(
    out: Path,
    translator: Translator,
    evaluated: Any = ((), ()),
    *,
    title: str | None = None,
    page: Path | None = None,
) -> Path:
    """Write ``report.html`` of a fit, or `page`: its evaluation, where there is one, then how it was trained."""
    run, published = translator.run, translator.system.published
    ways = ", ".join(f"{MODALITY_NAMES[s]} to {MODALITY_NAMES[t]}" for s, t in translator.directions if s != t)
    if translator.system.embeds:
        ways = f"an embedding of {MODALITY_NAMES[translator.directions[0][0]]}"
    facts = {
        "training cells": run["cells"]["train"],
        "validation cells": run["cells"]["valid"],
        **{FEATURES[modality]: n for modality, n in run["features"].items()},
        "parameters": sum(p.numel() for p in translator.system.parameters()),
    }
    words = [f"{published.name}. {published.reference} doi:{published.doi}", f"Split: {run['split']}."]
    words += [f"Preset: {run['preset']}."] if run.get("preset") else []
    if "rna" in run["features"]:
        words += [f"{run['cells']['filtered']:,} cells were left out by the filter of expressed genes."]
    if (batch := getattr(translator.system.config, "batch", None)) is not None and batch.key is not None:
        words += [f"Batches, of column {batch.key!r}: {', '.join(batch.names)}."]
    if published.deviations:
        words += ["Where it departs from the paper:", *(f"– {deviation}" for deviation in published.deviations)]
    origin = {k: run[k] for k in ("system", "preset", "seed", "precision", "split", "config") if k in run}
    return fit_page(
        page or out / "report.html",
        title=title or f"{published.name}: {ways}",
        log=[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()],
        facts=facts,
        provenance=run["provenance"] | origin | {"data": run.get("origin", {})},
        text="\n\n".join(words),
        doubts=doubts_of(translator),
        pretrained=taken_words(run),
        evaluated=evaluated,
    )


def evaluate_model(
    out: Path,
    model: str,
    translator: Translator,
    held: Held,
    origin: Origin,
    *,
    label: str | None = None,
    baselines: bool = True,
    maps: bool = True,
    seed: int = 0,
    unknown_batch: str | None = None,
    most: int = MOST,
    doubts: Sequence[str] = (),
    say: Say = lambda words: None,
) -> dict[str, Any]:
    """Judge a model by cells of any files; write ``metrics.json`` and ``report.html`` into `out`.

    doubts: what seemed odd about these cells, shown in both; may still grow while cells are judged. unknown_batch, most: as in
    `judge`.
    """
    metrics, drawings, components = judge(
        translator,
        held,
        label=label,
        baselines=baselines,
        maps=maps,
        seed=seed,
        unknown_batch=unknown_batch,
        most=most,
        say=say,
    )
    metrics |= {"system": translator.name, "model": model, "doubts": list(dict.fromkeys(doubts))}
    say("report")
    with replaced_together(out, last="metrics.json") as part:
        evaluation_page(
            part / "report.html",
            metrics,
            drawings,
            evaluation_record(part, translator, model, origin, metrics, seed=seed),
            components=components,
            title=f"{translator.system.published.name} on held-out cells",
            maps=maps,
            seed=_SEED_OF_MAPS,
        )
    return metrics


def evaluation_record(
    out: Path, translator: Translator, model: str, origin: Origin, metrics: dict[str, Any], *, seed: int
) -> dict[str, Any]:
    """Write ``run.json`` and ``metrics.json`` of a model judged by cells of any files; returns what the page says of its origin."""
    record = provenance(seed=seed, model=model, data=origin.plain(), trained=translator.run.get("provenance", {}))
    out.mkdir(parents=True, exist_ok=True)
    write_metrics(out / "run.json", {"evaluated": model, "seed": seed, "provenance": record})
    write_metrics(out / "metrics.json", metrics)
    return record


def _components(
    translator: Translator,
    study: Study,
    cells: pd.Index,
    there: list[tuple[Modality, Modality]],
    asked: Callable[..., Predicted],
    say: Say,
) -> Components:
    """Principal components of measured and predicted values of these cells, for maps; none where they are too few."""
    if len(cells) < FEWEST:
        return {}
    rows = study.obs.index.get_indexer(cells).astype(np.int64)
    measured: dict[Modality, np.ndarray] = {}
    found: dict[str, dict[str, np.ndarray]] = {}
    for source, to in there:
        say(f"components, {source} to {to}")
        if to not in measured:
            values = values_of(translator.inputs[to], study.of(to, rows))
            measured[to] = principal_scores(Truth(to, values, feature_names(translator.inputs[to])))
        predicted = asked(study.of(source, rows), source=source, to=to)
        found[f"{source}_to_{to}"] = {"measured": measured[to], translator.name: principal_scores(predicted)}
    return found


def _oracles(
    files: Mapping[Modality, Path], translator: Translator, directions: list[str]
) -> tuple[dict[str, Method], str | None]:
    """The simulator's truth as a method, where the files carry it; and why not, where they are of two simulations."""
    made = [m for m in MODALITIES if m in files and _simulated(files[m])]
    if "rna" not in made or len(made) < 2:
        return {}, None
    from expresser.simulate import Cite, Multiome  # only for simulated data
    from translate.oracle import oracle

    known: dict[str, Any] = {}
    try:
        if "protein" in made:
            known |= oracle(Cite.from_files(files["rna"], files["protein"]), translator.inputs)
        if "atac" in made:
            known |= oracle(Multiome.from_files(files["rna"], files["atac"]), translator.inputs)
    except InputError as error:
        return {}, str(error)
    return {"oracle": {d: known[d] for d in directions if d in known}}, None


def _simulated(path: Path) -> bool:
    if path.suffix != ".h5ad" or not path.is_file():
        return False
    with h5py.File(path, "r") as file:
        return "uns/simulation" in file and "obsm/truth_factors" in file


def _label(study: Study, label: str | None) -> str | None:
    return label or ("cell_type" if "cell_type" in study.obs else None)


def doubts_of(translator: Translator) -> list[str]:
    """What was odd about the data that a model was fitted to."""
    return list(dict.fromkeys(translator.run.get("origin", {}).get("doubts", [])))


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
