"""What a study is read from: files, objects and MuData opened, and told apart by modality."""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import pandas as pd
import zarr
from anndata import AnnData, OldFormatWarning
from anndata.io import read_elem

from expresser.corpus.blocks import Matrix, readable
from expresser.corpus.readers_anndata import read_anndata, read_anndata_file
from expresser.corpus.readers_h5 import read_10x_h5
from expresser.corpus.readers_text import read_10x_mtx
from expresser.errors import InputError
from translate.study import Modality

Data: TypeAlias = str | Path | AnnData

ACCEPTED = "an AnnData, .h5ad, .zarr, .h5 (10x) or a 10x folder; .h5mu and MuData as an argument of their own, mudata"
_KINDS: dict[str, Modality] = {  # feature types of 10x and of the NeurIPS files, modality names of MuData
    **dict.fromkeys(("gene expression", "gex", "rna", "gene", "genes", "expression"), "rna"),
    **dict.fromkeys(("peaks", "peak", "atac", "chromatin accessibility"), "atac"),
    **dict.fromkeys(("antibody capture", "adt", "protein", "proteins", "prot"), "protein"),
}


def name_of(data: Data) -> str:
    """What messages call an input."""
    return "AnnData in memory" if isinstance(data, AnnData) else str(data)


def modalities_in(data: Data) -> set[Modality]:
    """The modalities that `feature_types` says an input holds; none where it says nothing."""
    var = open_matrix(data, None).var
    return {kind for kind in kinds_of(var) if kind is not None} if "feature_types" in var else set()


def open_mudata(mudata: Any) -> tuple[dict[Modality, AnnData], pd.DataFrame]:
    """The modalities of a MuData or an .h5mu file (read whole) by our names, and its own columns of obs."""
    if isinstance(mudata, str | Path):
        path = Path(mudata)
        if not path.is_file():
            raise InputError(f"{path}: there is no such file.")
        with readable(path, "h5mu"), h5py.File(path, "r") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore", OldFormatWarning)
            if "mod" not in file:
                raise InputError(f"{path}: no MuData: it has no group 'mod' but {sorted(file)[:10]}.")
            held = {key: file["mod"][key] for key in file["mod"]}
            found = {m: read_elem(item) for m, item in _by_kind(held, str(path)).items()}
            obs = read_elem(file["obs"]) if "obs" in file else pd.DataFrame()
    else:
        found, obs = _by_kind(dict(mudata.mod), "MuData in memory"), mudata.obs
        held = dict(mudata.mod)
    own = [c for c in obs.columns if not any(str(c).startswith(f"{key}:") for key in held)]  # the rest are copies
    return found, obs[own]


def _by_kind(held: Mapping[str, Any], where: str) -> dict[Modality, Any]:
    found: dict[Modality, Any] = {}
    for key, item in held.items():
        kind = _KINDS.get(key.strip().lower())
        if kind in found:
            raise InputError(f"{where}: two of its modalities {sorted(held)} are {kind}. Keep one of them.")
        if kind is not None:
            found[kind] = item
    if not found:
        raise InputError(
            f"{where}: none of its modalities {sorted(held)} is known. Names are rna (gex), atac (peaks), protein "
            "(prot, adt): rename them, or give RNA and ATAC each by itself."
        )
    return found


def open_matrix(data: Data, layer: str | None) -> Matrix:
    """The matrix of an input with its names; no count is read before its blocks are asked for."""
    if isinstance(data, AnnData):
        return read_anndata(data, layer, name_of(data))
    path = Path(data)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder. Accepted: {ACCEPTED}.")
    name = path.name.lower()
    if name.endswith(".h5ad"):
        return read_anndata_file(path, layer, "h5ad")
    if path.is_dir() and (name.endswith(".zarr") or any((path / key).exists() for key in (".zgroup", "zarr.json"))):
        return read_anndata_file(path, layer, "zarr")
    if not (path.is_dir() or name.endswith(".h5")):
        raise InputError(f"{path}: its name does not say what it is. Accepted: {ACCEPTED}.")
    if layer is not None:
        raise InputError(f"{path}: a 10x file holds one matrix and no layer {layer!r}: leave layer away.")
    return read_10x_mtx(path) if path.is_dir() else read_10x_h5(path)


def read_table(data: Data, key: str, where: str) -> tuple[Any, list[str] | None]:
    """`obsm[key]` of an AnnData in memory or in a file, and the names of its columns where it or `uns` tells them."""
    with ExitStack() as stack:
        root: Any = {"obsm": data.obsm, "uns": data.uns} if isinstance(data, AnnData) else _root(data, where, stack)

        def part(of: str, name: str) -> Any:
            found = root[of].get(name) if of in root else None
            return read_elem(found) if isinstance(found, h5py.Group | h5py.Dataset | zarr.Group | zarr.Array) else found

        table = part("obsm", key)
        if table is None:
            has = sorted(root["obsm"])[:10] if "obsm" in root else []
            raise InputError(f"{where} is not there; obsm has {has or 'nothing'}.")
        if isinstance(table, pd.DataFrame):
            return table.to_numpy(), [str(name) for name in table.columns]
        names = next((n for n in (part("uns", o) for o in (f"{key}_names", "protein_names")) if n is not None), None)
        return table, None if names is None else [str(name) for name in names]


def _root(data: str | Path, where: str, stack: ExitStack) -> Any:
    kind = Path(data).suffix
    if kind not in (".h5ad", ".zarr"):
        raise InputError(f"{where}: only AnnData (.h5ad, .zarr, in memory) has an obsm.")
    stack.enter_context(readable(data, kind))
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", OldFormatWarning)
    return stack.enter_context(h5py.File(data, "r")) if kind == ".h5ad" else zarr.open_group(data, mode="r")


def kinds_of(var: pd.DataFrame) -> list[Modality | None]:
    """The modality of each feature by its feature type; None where that is another or unknown."""
    return [_KINDS.get(str(v).strip().lower()) for v in var["feature_types"]]
