"""Imputed peaks of simulated cells against the bulk profiles that they were drawn from."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem

from expresser.errors import InputError
from expresser.metrics.accessibility import dice
from expresser.regions import Regions
from translate.embedding_cells import JudgedCells, known_labels
from translate.maps import sampled
from translate.translator import Translator

_CELLS = 2000  # judged, drawn at random: the mean of as many moves by less than 0.005
_AT_ONCE = 256


def has_bulk(path: Path) -> bool:
    """Whether a file is a simulation that says which regions each cell type has open."""
    if path.suffix != ".h5ad" or not path.is_file():
        return False
    with h5py.File(path, "r") as file:
        return "uns/simulation" in file and "varm/bulk" in file


def bulk_dice(translator: Translator, cells: JudgedCells, path: Path, *, seed: int = 0) -> dict[str, Any]:
    """Mean Dice over cells of what is called open, over the model's peaks, against the peaks of the cell's type.

    dice: of the measured cells; of the imputed ones, where a peak is called open above the mean probability of its cell (whatever
    the depth at which cells are imputed, the same share is called); and of one answer for all cells, the peaks that are open in
    more cells than the mean peak. Types are those that the cells are judged by; cells without one are left out. InputError where
    there are none, or regions or types of the file are not those of the cells.
    """
    if cells.label is None:
        raise InputError(
            f"{path}: has a bulk profile of each cell type, and the cells no column that says which is theirs: --labels names one."
        )
    truth, types = _truth(translator, path), known_labels(cells.obs[cells.label])
    if unknown := sorted(set(types.dropna()) - set(truth.columns)):
        raise InputError(
            f"{path}: no bulk profile of {unknown[0]!r}, a type of column {cells.label!r}; there are {', '.join(truth.columns)}. "
            "Name the column with these types by --labels."
        )
    labelled = np.flatnonzero(types.notna()).astype(np.int64)
    if not len(labelled):
        raise InputError(
            f"{path}: no cell has a type in column {cells.label!r}, so nobody knows whose bulk profile it has."
        )
    chosen = labelled[sampled(len(labelled), _CELLS, seed=seed)]
    predicted = translator.predict(cells.measured.take(chosen), source="atac", to="atac")
    share = np.asarray(cells.opened.mean(axis=0)).ravel()
    common = share > share.mean()
    raw, imputed, same = [], [], []
    everything = slice(0, predicted.n_features)
    for first in range(0, len(chosen), _AT_ONCE):
        part = slice(first, min(first + _AT_ONCE, len(chosen)))
        rows = chosen[part]
        of_bulk = truth[types.iloc[rows]].to_numpy().T
        raw.append(dice(cells.opened[rows].toarray(), of_bulk))
        likely = predicted.block(part, everything)
        imputed.append(dice(likely > likely.mean(axis=1, keepdims=True), of_bulk))
        same.append(dice(np.broadcast_to(common, of_bulk.shape), of_bulk))
    parts = {"measured": raw, f"imputed by {translator.name}": imputed, "one answer for all cells": same}
    found = {name: np.concatenate(values) for name, values in parts.items()}
    return {
        "dice": {name: float(np.nanmean(values)) for name, values in found.items()},
        "cells": len(chosen),
        "words": "A peak is called open above the mean probability of its cell.",
    }


def _truth(translator: Translator, path: Path) -> pd.DataFrame:
    """The model's peaks x types: whether the type has a peak that shares a base with it."""
    with h5py.File(path, "r") as file:
        bulk, var = read_elem(file["varm/bulk"]), read_elem(file["var"])
    if not isinstance(bulk, pd.DataFrame):
        names = [str(name) for name in np.arange(np.asarray(bulk).shape[1])]
        bulk = pd.DataFrame(np.asarray(bulk), columns=names)
    given = Regions.from_var(var, where=str(path))
    own = Regions.from_var(translator.var("atac"), where="the model")
    over = own.overlaps(given)
    if (over.getnnz(axis=1) == 0).any():
        raise InputError(
            f"{path}: has no bulk profile of {int((over.getnnz(axis=1) == 0).sum()):,} of the model's peaks."
        )
    opened = (over.astype(np.float32) @ (bulk.to_numpy() > 0).astype(np.float32)) > 0
    return pd.DataFrame(np.asarray(opened), columns=bulk.columns.astype(str))
