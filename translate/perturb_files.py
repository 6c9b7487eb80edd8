"""The folder that a perturbation leaves: tables, metrics.json, run.json and report.html."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from expresser.atomic import replaced_folder
from expresser.record import provenance, write_metrics
from translate.perturb import Change
from translate.perturb_page import perturb_page
from translate.perturb_run import Asked, Found, top_effects
from translate.translator import Translator


def write(
    out: Path, found: Found, asked: Asked, *, model: str, translator: Translator, files: Mapping[str, Any], title: str
) -> Path:
    """The folder of a run, whole or absent: tables (all rows as parquet, the top as TSV), metrics.json, run.json, report.html."""
    record = {
        "model": str(model),
        "system": translator.name,
        "files": dict(files),
        "options": {name: value for name, value in vars(asked).items() if name != "change"},
        "change": None if asked.change is None else _change_words(translator, asked.change),
        "provenance": provenance(seed=asked.seed),
    }
    with replaced_folder(out) as part:
        if found.attributions is not None:
            found.attributions.to_parquet(part / "attributions.parquet")
            _tsv(found.attributions[found.attributions["rank"] <= asked.top], part / "top.tsv")
        if found.links is not None:
            _tsv(found.links, part / "links.tsv")
        if found.effects is not None:
            found.effects.table.to_parquet(part / "effects.parquet")
            _tsv(top_effects(found.effects.table, asked.top), part / "top_effects.tsv")
        write_metrics(part / "metrics.json", found.metrics)
        write_metrics(part / "run.json", record)
        perturb_page(part / "report.html", found, asked, title=title, record=record)
    return out


def _change_words(translator: Translator, change: Change) -> dict[str, float]:
    """Feature -> factor."""
    names = translator.var(change.source).index
    return {str(names[int(number)]): float(factor) for number, factor in zip(change.features, change.factor)}


def _tsv(frame: pd.DataFrame, path: Path) -> None:
    frame.to_csv(path, sep="\t", index=False, float_format="%.6g", na_rep="")
