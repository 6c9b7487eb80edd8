"""Many configurations of a system fitted to one study; the one that does best on validation cells is judged on test cells, once."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from expresser.atomic import is_empty, replaced, replaced_folder, write_text
from expresser.checkpoint import locate
from expresser.corpus.manifest import sha256_file
from expresser.errors import InputError
from expresser.one_writer import one_writer_of_out
from expresser.processes import this_process
from expresser.record import write_metrics
from expresser.run_folder import flat
from translate import fitting
from translate.fitting import Progress, fingerprint
from translate.grids import LOWER, Grid, Score, Trial, trial_name, trials
from translate.held import Held
from translate.judging import evaluate_fit, judge, page_of_fit
from translate.registry import SYSTEMS
from translate.splits import Split
from translate.study import Modality, Study
from translate.terminal import on_fastest
from translate.translator import Translator
from translate.tuning_page import tuning_opening

_SCORED = "scores.json"
_OF_FIT = ("split.tsv", "log.jsonl", "fit.json", "run.json")
_STEPS = 1000  # of the progress, a trial


@dataclass(frozen=True)
class Tuned:
    """Trials in the order they were made, with their ranks; the best; and what is worth knowing of their comparison."""

    rows: tuple[Mapping[str, Any], ...]  # name, values, state, scores
    best: str
    score: Score
    notes: tuple[str, ...]

    def table(self) -> pd.DataFrame:
        """A row a trial: rank, name, values, the deciding score, state, then all else."""
        table = _flat(self.rows)
        lead = ["rank", "name", *self.rows[0]["values"], self.score, "state"]
        return table[[*lead, *(c for c in table.columns if c not in lead)]]


@one_writer_of_out
def tune(
    system: str,
    study: Study,
    *,
    split: Split,
    out: str | Path,
    config: Any,
    grid: Grid,
    random: int | None = None,
    score: Score = "translation",
    label: str | None = None,
    preset: str | None = None,
    genome: str | None = None,
    seed: int = 0,
    precision: Literal["no", "bf16"] = "no",
    origin: Mapping[str, Any] | None = None,
    truth: Mapping[Modality, Path] | None = None,
    test: bool = True,
    baselines: bool = True,
    maps: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Fit every combination in ``out/trials``, rank them, and make `out` the folder of the best fit.

    A trial that is there already is not made again, one that was interrupted goes on, one that failed is tried again; more
    values may be added later. Trials are compared by scores of validation cells, since their losses are not comparable (their
    weights are among what is varied). Test cells are looked at once, when the best is judged.

    score: of validation cells; "translation" is the mean of pearson_gene and auroc_peak. Where no validation cell has both
    modalities, these are not known, and trials are ranked by alignment: transfer of labels, else mixing.

    Leaves ``trials.tsv``, and what a judged fit leaves: ``model``, ``metrics.json`` (with "trials" and "best") and ``report.html``.
    """
    out, kind = Path(out), SYSTEMS[system]
    if kind.embeds:
        raise InputError(
            f"tune: {system} embeds, and configurations of it cannot be ranked without knowing what is wanted of the embedding: its "
            "loss changes with its weights, and scores by cell type would choose the one that shows the types you have. Fit "
            "some, and compare them with translate evaluate."
        )
    prove_one_process()
    if len(split.valid) < 2:
        raise InputError(f"tune: split {split.name!r} has {len(split.valid)} validation cells to compare trials by.")
    made = trials(config, grid, random=random, seed=seed)
    also = {"seed": seed, "genome": genome, "precision": precision, "label": label} | _pretrained(config)
    began_with = _claim(out, system, study, split, config, grid, also)
    # What the first grid varied is not fixed for the folder, so a trial's name says it even where it is not varied now.
    made = tuple(replace(trial, name=trial_name(began_with | dict(trial.values))) for trial in made)
    label = label or ("cell_type" if "cell_type" in study.obs else None)
    rows = []
    for number, trial in enumerate(made):
        told = partial(_told, progress, number, len(made), trial.name)
        folder = out / "trials" / trial.name
        try:
            found = _scores_of(
                system,
                study,
                split,
                trial,
                folder,
                label=label,
                told=told,
                preset=preset,
                genome=genome,
                seed=seed,
                precision=precision,
                origin=origin,
            )
        except Exception as error:  # one combination that cannot be fitted must not cost the others
            why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
            print(f"tune: {trial.name} failed: {why}", file=sys.stderr)
            found = {"state": "failed", "reason": why}
        rows.append({"name": trial.name, "values": dict(trial.values), **found})
        _write_table(out, _flat(rows))
    tuned = ranked(rows, score)
    _write_table(out, tuned.table())
    return _finish(
        out,
        tuned,
        grid,
        study,
        judged=test and len(split.test) > 0,
        truth=truth or {},
        label=label,
        baselines=baselines,
        maps=maps,
        seed=seed,
        say=lambda words: _told(progress, len(made), len(made), "best", 0, 1, words),
    )


def ranked(rows: Sequence[Mapping[str, Any]], score: Score) -> Tuned:
    """The best of finished trials by a score of validation cells, the first of equals."""
    done = [row for row in rows if row["state"] == "finished"]
    if not done:
        reasons = "; ".join(dict.fromkeys(str(row["reason"]) for row in rows))
        raise InputError(f"tune: none of {len(rows)} trials could be fitted: {reasons}")
    notes = []
    wanted = score
    if score == "translation" and not any(_known(row.get("translation")) for row in done):
        possible: tuple[Score, ...] = ("transfer", "mixing", "foscttm")
        wanted = next((s for s in possible if any(_known(row.get(s)) for row in done)), score)
        notes.append(
            "No validation cell was measured in both modalities, so that translations cannot be compared with measurements: "
            f"trials are ranked by {wanted}, which says whether cells of the two modalities meet in the latent."
        )
        if wanted == "mixing":
            notes.append(
                "Mixing alone is best where all cells are the same: give --labels, so that types are looked at as well."
            )
    values = pd.Series([float(row[wanted]) if _known(row.get(wanted)) else np.nan for row in rows])
    if values.isna().all():
        there = [s for s in get_args(Score) if any(_known(row.get(s)) for row in done)]
        raise InputError(
            f"tune: no trial has the score {score}; there is {', '.join(there) or 'none'}. Choose another --score."
        )
    best = int(values.idxmin() if wanted in LOWER else values.idxmax())
    sizes = {key: {row[key] for row in done if key in row} for key in ("genes", "peaks", "proteins", "training_cells")}
    if differ := [key.replace("_", " ") for key, found in sizes.items() if len(found) > 1]:
        notes.append(f"Trials differ in {' and '.join(differ)}: their scores are means over different ones.")
    ranks = values.rank(ascending=wanted in LOWER, method="min")
    with_rank = tuple({**row} | ({} if np.isnan(rank) else {"rank": int(rank)}) for row, rank in zip(rows, ranks))
    return Tuned(with_rank, str(rows[best]["name"]), wanted, tuple(notes))


def scores_for_ranking(metrics: Mapping[str, Any], method: str) -> dict[str, float]:
    """Of what `judge` found: each score, a mean over directions or over spaces where there are several."""
    own = metrics["methods"].get(method, {})
    by_direction = [own[d] for d in metrics["directions"] if d in own]
    spaces = list(((metrics.get("alignment") or {}).get("methods") or {}).get(method, {}).values())
    carried = ("transfer_rna_to_atac", "transfer_atac_to_rna")
    spaces = [
        of | ({"transfer": float(np.mean([of[c] for c in carried]))} if carried[0] in of else {}) for of in spaces
    ]
    found: dict[str, float] = {}
    for name in get_args(Score)[1:]:
        values = [float(of[name]) for of in (*by_direction, *spaces) if _known(of.get(name))]
        if values:
            found[name] = float(np.mean(values))
    parts = [found[name] for name in ("pearson_gene", "auroc_peak") if name in found]
    if not parts and "pearson_protein" in found:
        parts = [found["pearson_protein"]]
    return ({"translation": float(np.mean(parts))} if parts else {}) | found


def _scores_of(
    system: str,
    study: Study,
    split: Split,
    trial: Trial,
    folder: Path,
    *,
    label: str | None,
    told: Any,
    **options: Any,
) -> dict[str, Any]:
    """A row of the table: fit the trial, or go on with it, and score its translation of validation cells."""
    if (folder / _SCORED).is_file():
        return dict(json.loads((folder / _SCORED).read_text()))
    fitted = fitting.fit(
        system, study, split=split, out=folder, config=trial.config, resume=True, progress=told, **options
    )
    if fitted is None:
        raise InputError("the fit left off before it was done; the same command goes on with it")
    told(0, 0, "scores")
    nobody = np.arange(0)
    watched = Split(f"{split.name}: validation cells", split.train, nobody, split.valid)
    metrics, _, _ = judge(
        on_fastest(fitted), Held(study, watched, seen=0), label=label, baselines=False, maps=False, seed=options["seed"]
    )
    summary = json.loads((folder / "fit.json").read_text())
    features = {"rna": "genes", "atac": "peaks", "protein": "proteins"}
    phases = summary["phases"].values()
    row: dict[str, Any] = {"state": "finished", **scores_for_ranking(metrics, fitted.name)}
    row |= {"epochs": sum(p["epochs"] for p in phases), "seconds": round(sum(p["seconds"] for p in phases), 1)}
    row |= {"training_cells": summary["cells"]["train"]}
    row |= {features[m]: n for m, n in summary["features"].items()}
    write_metrics(folder / _SCORED, row)
    return row


def _finish(
    out: Path, tuned: Tuned, grid: Grid, study: Study, *, judged: bool, say: Any, **options: Any
) -> dict[str, Any]:
    """Make `out` the folder of the best fit, and judge it; nothing is done again that is as it was."""
    best = next(row for row in tuned.rows if row["name"] == tuned.best)
    more = {"trials": list(tuned.rows), "best": {**best, "score": tuned.score}, "notes": list(tuned.notes)}
    before = json.loads((out / "metrics.json").read_text()) if (out / "metrics.json").is_file() else {}
    fresh = json.loads(json.dumps(more))
    if {key: before.get(key) for key in fresh} == fresh and ("methods" in before or not judged):
        return before
    say("best")
    (out / "metrics.json").unlink(missing_ok=True)
    _take_over(out / "trials" / tuned.best, out)
    translator = Translator.load(out / "model")
    opening = tuning_opening(tuned.table(), list(grid), tuned.score, tuned.best, tuned.notes)
    title = f"Search of configurations of {translator.system.published.name}"
    metrics: dict[str, Any] = {"system": translator.name, "model": str(out / "model")}
    if judged:
        metrics = evaluate_fit(out, on_fastest(translator), study, title=title, opening=opening, say=say, **options)
    else:
        page_of_fit(out, translator, opening, title=title)
    write_metrics(out / "metrics.json", metrics | more)
    return metrics | more


def _take_over(trial: Path, out: Path) -> None:
    """Copies of what makes a folder that of a fit."""
    with replaced_folder(out / "model") as part:
        shutil.copytree(trial / "model", part, dirs_exist_ok=True)
    for name in _OF_FIT:
        with replaced(out / name) as part:
            shutil.copyfile(trial / name, part)


def _claim(
    out: Path, system: str, study: Study, split: Split, config: Any, grid: Grid, also: Mapping[str, Any]
) -> dict[str, Any]:
    """Make `out` the folder of this search (``tune.json``); InputError where it is another's. The grid may grow.

    Returns the present values of the options that the first grid varied, the only ones that `out` does not fix.
    """
    path = out / "tune.json"
    everything = flat(asdict(config))
    fixed = {key: value for key, value in everything.items() if key not in grid}
    record = {"system": system, "study": fingerprint(study, split), "split": split.name, **also, "config": fixed}
    record = json.loads(json.dumps(record))
    if path.is_file():
        before = json.loads(path.read_text())
        # What another grid varied is not fixed in one of the two.
        config_before, config_now = before.pop("config"), record.pop("config")
        both = config_before.keys() & config_now.keys()
        differ = [key for key in record if before.get(key) != record[key]]
        differ += [f"config.{key}" for key in sorted(both) if config_before[key] != config_now[key]]
        if differ:
            raise InputError(
                f"{out}: this search began with another {', '.join(differ[:5])}. Go on with the same options (values may be "
                "added to the grid), or choose another --out."
            )
        return {key: value for key, value in everything.items() if key not in config_before}
    if out.exists() and (not out.is_dir() or not is_empty(out)):
        raise InputError(f"{out}: exists and is not a search of configurations. Choose a new folder for --out.")
    out.mkdir(parents=True, exist_ok=True)
    write_metrics(path, record)
    return {key: everything[key] for key in grid if key in everything}


def _pretrained(config: Any) -> dict[str, str]:
    """The content of the pretrained model that all trials take from: its folder may come to hold another."""
    if config.bridge.rna_encoder is None:
        return {}
    return {"pretrained": sha256_file(locate(config.bridge.rna_encoder) / "model.safetensors")}


def prove_one_process() -> None:
    """InputError where the search was started on several processes: each would rank and judge by itself."""
    if (n := this_process().num_processes) > 1:
        raise InputError(
            f"tune: started on {n} processes, and a search runs on one: leave accelerate launch (torchrun) out. One fit runs on "
            "several: translate fit with the configuration that the search found."
        )


def _told(progress: Progress | None, number: int, of: int, name: str, done: int, own: int, note: str = "") -> None:
    if progress is not None:
        share = min(done / own, 1.0) if own else 1.0
        which = f"trial {number + 1} of {of}, " if number < of else ""
        progress(int(_STEPS * (number + share)), _STEPS * (of + 1), f"{which}{name}: {note}")


def _known(value: Any) -> bool:
    return value is not None and not np.isnan(float(value))


def _flat(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Rows with a column for each value that was varied."""
    return pd.DataFrame([{"name": row["name"], **row["values"], **row} for row in rows]).drop(columns="values")


def _write_table(out: Path, table: pd.DataFrame) -> None:
    values = table.astype(object).where(table.notna(), "")
    write_text(out / "trials.tsv", values.to_csv(sep="\t", index=False))
