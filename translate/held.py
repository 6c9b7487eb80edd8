"""Which cells a model is judged by, and which ones baselines may learn from."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from expresser.errors import InputError
from translate.origin import Origin, content_hash
from translate.splits import Split, thinned_split
from translate.study import DataWarning, Modality, Study

MOST = (
    50_000  # cells that a translator is judged by, and that baselines learn from: they are in memory, some times over
)


@dataclass(frozen=True, eq=False)
class Held:
    """Cells to judge by, ``split.test`` of `study`. Baselines learn from `train`, else from the same study and split."""

    study: Study
    split: Split
    train: tuple[Study, Split] | None = None
    without: str | None = None  # why there are no baselines; None: there are
    seen: int | None = None  # of the test cells, how many the model was fitted to; None: not known
    truth: Mapping[Modality, Path] = field(default_factory=dict)  # files that may carry a simulator's truth

    def thinned(self, most: int = MOST) -> "Held":
        """With at most so many cells in each part of the split, the rest left out; the name of the split says so."""
        train = None
        if self.train is not None:
            theirs, parts = self.train
            train = theirs, thinned_split(parts, theirs, most)
        split = thinned_split(self.split, self.study, most)
        seen = self.seen
        if len(split.test) < len(self.split.test) and seen:  # which of them the model was fitted to is not kept
            seen = len(split.test) if seen == len(self.split.test) else None
        return replace(self, split=split, train=train, seen=seen)


def hold(
    model: str | Path,
    run: Mapping[str, Any],
    origin: Origin,
    *,
    fit: Path | None = None,
    train: Origin | None = None,
    learning: bool = True,
) -> Held:
    """Read the cells of `origin`: all of them test, or those that `fit` (the folder of one) held out.

    Baselines learn from `train`; else from the training cells of `fit`; else from those of the model (`run`: its record),
    where its files are still the same and the folder of its fit is at hand. learning False, for embeddings, whose baselines
    learn from the cells judged: nothing else is read, and where `fit` held out no cell all are judged.
    """
    study = origin.read()
    if fit is not None:
        _same_files(fit, origin)
    nobody, everybody = np.arange(0), np.arange(study.n_cells)
    split = Split("all cells", nobody, nobody, everybody) if fit is None else split_of(fit, study)
    if not learning and not len(split.test):
        split = Split(split.name, nobody, nobody, everybody)
    home = _folder_of_fit(model)
    seen = None if home is None else _fitted_to(home, study, split)
    learn: tuple[Study, Split] | None = None
    without = None
    if not learning:
        pass
    elif train is not None:
        given = train.read()
        lacking = [
            m for m in study.modalities if m in run.get("features", study.modalities) and m not in given.modalities
        ]
        if lacking:
            raise InputError(
                f"baselines: the cells they are to learn from have no {' and no '.join(lacking)}, but translate between "
                f"what the test cells have ({', '.join(study.modalities)}). Give --train-{lacking[0]} too, of the same "
                "cells, or neither."
            )
        learn = given, Split("given", np.arange(given.n_cells), nobody, nobody)
    elif fit is None and home is None:
        without = (
            "the cells that the model was trained on are not known here. Give --train-rna and --train-atac, or the folder of "
            "the fit as the model."
        )
    elif fit is None and home is not None:
        try:
            before = Origin.restored(run.get("origin", {})).read()
            learn = before, split_of(home, before)
        except InputError as error:
            without = f"the training cells cannot be read again: {error}. Give --train-rna and --train-atac."
    return Held(study, split, learn, without, seen, origin.files)


def split_of(folder: Path, study: Study) -> Split:
    """The parts that a fit gave its cells (``split.tsv``), of the cells of a study that it names."""
    parts = _parts(folder)
    here = parts.reindex(study.obs.index).to_numpy(dtype=object)
    found = {part: np.flatnonzero(here == part).astype(np.int64) for part in ("train", "valid", "test")}
    if not any(map(len, found.values())):
        raise InputError(
            f"{folder / 'split.tsv'}: none of its {len(parts):,} cells (first: {str(parts.index[0])!r}) is among the "
            f"study's {study.n_cells:,} (first: {str(study.obs.index[0])!r}). Give the files that the fit was made from."
        )
    run = folder / "run.json"
    name = json.loads(run.read_text()).get("split") if run.is_file() else None
    return Split(str(name or "of the fit"), **found)


def _same_files(fit: Path, origin: Origin) -> None:
    """A doubt, where not one of the files has the content of a file of the fit: cells are matched by name alone."""
    record = fit / "run.json"
    before = json.loads(record.read_text()).get("origin", {}).get("sha256", {}) if record.is_file() else {}
    if before and not set(before.values()) & {content_hash(path) for path in origin.paths}:
        warnings.warn(
            f"{fit}: was made from files of other content ({', '.join(before)}), so its split is applied to cells of the "
            "same names. Are they the same cells?",
            DataWarning,
            stacklevel=2,
        )


def _parts(folder: Path) -> pd.Series:
    path = folder / "split.tsv"
    if not path.is_file():
        raise InputError(f"{folder}: has no split.tsv, so it is no folder of a fit: the --out of translate fit.")
    return pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, index_col="cell")["part"]


def _folder_of_fit(model: str | Path) -> Path | None:
    """The folder of the fit that a model lies in, if it still does."""
    path = Path(model)
    return next((p for p in (path, path.absolute().parent) if (p / "split.tsv").is_file()), None)


def _fitted_to(home: Path, study: Study, split: Split) -> int:
    """How many of the test cells have the names of cells that trained or validated."""
    parts = _parts(home)
    return int(study.obs.index[split.test].isin(parts.index[parts.isin(["train", "valid"])]).sum())
