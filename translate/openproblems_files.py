"""The files of Open Problems' predict-modality task: what must be in them, read and checked, and the prediction written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from expresser.atomic import replaced
from expresser.corpus.blocks import readable
from expresser.errors import InputError
from translate.study import Modality

_MODALITIES: Mapping[str, Modality] = {"GEX": "rna", "ATAC": "atac", "ADT": "protein"}


class UnsupportedPair(InputError):
    """The files are sound, but the method does not predict this modality from that. The benchmark's exit code for it is 99."""


@dataclass(frozen=True, eq=False)
class Task:
    """The three input files: counts as AnnData (X raw, var without the task's own columns), targets, and what to pass on."""

    source: Modality
    to: Modality
    train: ad.AnnData = field(repr=False)  # counts of mod1
    train_to: ad.AnnData = field(repr=False)  # counts of mod2, the same cells
    test: ad.AnnData = field(repr=False)  # counts of mod1
    target: sparse.csc_matrix = field(repr=False)  # layers["normalized"] of train_mod2
    var: pd.DataFrame = field(repr=False)  # of train_mod2, as it was
    obs: pd.DataFrame = field(repr=False)  # of test_mod1, as it was
    dataset_id: str
    normalization_id: str


def read_task(
    train_mod1: str | Path,
    train_mod2: str | Path,
    test_mod1: str | Path,
    *,
    modalities: Sequence[str] | None = None,
) -> Task:
    """Read and check the files.

    Each is an .h5ad with raw counts in layers["counts"]; train_mod2 also has layers["normalized"], the scale to predict on;
    uns has dataset_id and modality ("GEX", "ATAC" or "ADT"; older files say it in var["feature_types"]); obs may have
    batch. Both training files hold the same cells in the same order, and test_mod1 the features of train_mod1.
    modalities: ("GEX", "ATAC"), of mod1 and mod2, where the files do not say it.

    Raises InputError for files that are not like that, and UnsupportedPair where neither modality is GEX, or both.
    """
    paths = {"train_mod1": Path(train_mod1), "train_mod2": Path(train_mod2), "test_mod1": Path(test_mod1)}
    files = {name: _open(path, name) for name, path in paths.items()}
    if modalities is not None and len(modalities) != 2:
        raise InputError(f"modalities: of mod1 and of mod2, for example ('GEX', 'ATAC'); got {list(modalities)}.")
    mod1, mod2 = modalities if modalities is not None else (None, None)
    found = {
        name: _modality(files[name], paths[name], mod2 if name == "train_mod2" else mod1)
        for name in ("train_mod1", "train_mod2", "test_mod1")
    }
    if found["test_mod1"] != found["train_mod1"]:
        raise InputError(
            f"{paths['test_mod1']} holds {found['test_mod1']}, {paths['train_mod1']} {found['train_mod1']}: test cells must "
            "be measured as the training cells of mod1 were. Were test_mod1 and train_mod1 of one direction given?"
        )
    if (found["train_mod1"] == "GEX") == (found["train_mod2"] == "GEX"):
        raise UnsupportedPair(
            f"mod1 is {found['train_mod1']} and mod2 {found['train_mod2']}; exactly one of the two must be GEX."
        )
    train, train_to, test = files.values()
    _same(train.obs_names, train_to.obs_names, "cells", paths["train_mod1"], paths["train_mod2"])
    _same(train.var_names, test.var_names, "features", paths["train_mod1"], paths["test_mod1"])
    target = _layer(train_to, "normalized", paths["train_mod2"], "the values to predict")
    if not np.isfinite(target.data).all():
        raise InputError(f"{paths['train_mod2']}: layers['normalized'] holds values that are not finite.")
    return Task(
        source=_MODALITIES[found["train_mod1"]],
        to=_MODALITIES[found["train_mod2"]],
        train=_counts(train, paths["train_mod1"]),
        train_to=_counts(train_to, paths["train_mod2"]),
        test=_counts(test, paths["test_mod1"]),
        target=target,
        var=train_to.var,
        obs=test.obs,
        dataset_id=_dataset_id(files, paths),
        normalization_id=str(train_to.uns.get("normalization_id", "")),
    )


def write_prediction(path: str | Path, task: Task, normalized: sparse.csc_matrix, method_id: str) -> Path:
    """The prediction file: layers["normalized"] (sparse by column, as R's readers of the benchmark take it), and two ids."""
    if normalized.shape != (len(task.obs), len(task.var)):
        raise InputError(
            f"{path}: a prediction of {normalized.shape[0]} x {normalized.shape[1]}, but there are {len(task.obs)} test "
            f"cells and {len(task.var)} features to predict."
        )
    out = ad.AnnData(
        obs=task.obs.copy(),
        var=task.var.copy(),
        layers={"normalized": normalized},
        uns={"dataset_id": task.dataset_id, "method_id": method_id},
    )
    with replaced(path) as part:
        out.write_h5ad(part, compression="gzip")
    return Path(path)


def _open(path: Path, name: str) -> ad.AnnData:
    if not path.is_file():
        raise InputError(f"{name}: {path}: there is no such file.")
    with readable(path, ".h5ad"):
        found = ad.read_h5ad(path)
    if not found.n_obs or not found.n_vars:
        raise InputError(f"{name}: {path} is empty: {found.n_obs} cells x {found.n_vars} features.")
    return found


def _modality(adata: ad.AnnData, path: Path, said: str | None) -> str:
    """What a file holds: as told, as uns says, or as var says."""
    if said is None and "modality" in adata.uns:
        said = str(adata.uns["modality"])
    if said is None and "feature_types" in adata.var:
        kinds = sorted({str(kind) for kind in adata.var["feature_types"]})
        if len(kinds) != 1:
            raise InputError(f"{path}: var['feature_types'] has {kinds[:5]}; a file of this task holds one modality.")
        said = kinds[0]
    if said is None:
        raise InputError(
            f"{path}: neither uns['modality'] nor var['feature_types'] says what it holds. Pass "
            "modalities=('GEX', 'ATAC') (those of mod1 and mod2)."
        )
    if said.upper() not in _MODALITIES:
        raise InputError(f"{path}: modality {said!r} is none of {', '.join(_MODALITIES)}.")
    return said.upper()


def _same(a: pd.Index, b: pd.Index, what: str, first: Path, second: Path) -> None:
    if len(a) == len(b) and bool((a == b).all()):
        return
    if len(a) == len(b) and set(a) == set(b):
        raise InputError(
            f"{first} and {second} have the same {what} in different orders; the task has them in one order."
        )
    raise InputError(
        f"{first} and {second} must have the same {what}: {len(a):,} against {len(b):,}, {len(set(a) & set(b)):,} in common "
        f"(first: {str(a[0])!r} and {str(b[0])!r})."
    )


def _layer(adata: ad.AnnData, name: str, path: Path, what: str) -> sparse.csc_matrix:
    if name not in adata.layers:
        raise InputError(
            f"{path}: layers[{name!r}] ({what}) is missing; it has {sorted(adata.layers) or 'no layers'}. Files of this task "
            "have layers 'counts' and 'normalized'."
        )
    return sparse.csc_matrix(adata.layers[name], dtype=np.float32)


def _counts(adata: ad.AnnData, path: Path) -> ad.AnnData:
    """Raw counts and names alone; of obs the batch, of var the gene ids."""
    counts = sparse.csr_matrix(_layer(adata, "counts", path, "raw counts"))
    obs = adata.obs[[c for c in ("batch",) if c in adata.obs]].copy()
    var = adata.var[[c for c in ("gene_ids",) if c in adata.var]].copy()
    return ad.AnnData(counts, obs=obs, var=var)


def _dataset_id(files: Mapping[str, ad.AnnData], paths: Mapping[str, Path]) -> str:
    found: dict[str, Any] = {
        name: str(adata.uns["dataset_id"]) for name, adata in files.items() if "dataset_id" in adata.uns
    }
    if not found:
        raise InputError(
            f"{paths['test_mod1']}: uns['dataset_id'] is missing, and the benchmark scores no file without it."
        )
    if len(set(found.values())) > 1:
        raise InputError(f"the files are of different data sets: {found}. Give three files of one.")
    return next(iter(found.values()))
