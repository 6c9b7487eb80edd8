"""What a study is read from: files, objects and MuData opened, and told apart by modality."""

import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData, OldFormatWarning
from anndata.io import read_elem, write_elem

from expresser.corpus.blocks import Matrix, readable
from expresser.corpus.readers_anndata import read_anndata, read_anndata_file
from expresser.corpus.readers_h5 import read_10x_h5
from expresser.corpus.readers_text import read_10x_mtx
from expresser.errors import InputError
from translate.study import Modality


@runtime_checkable
class Joint(Protocol):
    """A MuData in memory, known by its parts: the package mudata need not be installed."""

    @property
    def mod(self) -> Mapping[str, AnnData]:
        """Its modalities."""

    @property
    def obs(self) -> pd.DataFrame:
        """Of the cells of all of them."""


Data: TypeAlias = str | Path | AnnData | Joint

ACCEPTED = "an AnnData, .h5ad, .zarr, .h5 (10x) or a 10x folder; .h5mu and MuData as an argument of their own, mudata"
_KINDS: dict[str, Modality] = {  # feature types of 10x and of the NeurIPS files, modality names of MuData
    **dict.fromkeys(("gene expression", "gex", "rna", "gene", "genes", "expression"), "rna"),
    **dict.fromkeys(("peaks", "peak", "atac", "chromatin accessibility"), "atac"),
    **dict.fromkeys(("antibody capture", "adt", "protein", "proteins", "prot"), "protein"),
}


def name_of(data: Data) -> str:
    """What messages call an input."""
    if isinstance(data, AnnData):
        return "AnnData in memory"
    return str(data) if isinstance(data, str | Path) else "MuData in memory"


def is_mudata(data: Any) -> bool:
    """Whether an input is a MuData: in memory, an .h5mu file, or a .zarr folder of one."""
    if not isinstance(data, str | Path):
        return isinstance(data, Joint) and not isinstance(data, AnnData)
    return str(data).endswith(".h5mu") or (_is_zarr(Path(data)) and (Path(data) / "mod").is_dir())


def modalities_in(data: Data) -> set[Modality]:
    """The modalities of a MuData, or that `feature_types` says an input holds; none where it says nothing."""
    if is_mudata(data):
        with ExitStack() as stack:
            return set(_by_kind(*_held(data, stack)[:2]))
    var = open_matrix(data, None).var
    return {kind for kind in kinds_of(var) if kind is not None} if "feature_types" in var else set()


def open_mudata(
    mudata: str | Path | Joint, only: Modality | None = None
) -> tuple[dict[Modality, AnnData], pd.DataFrame]:
    """The modalities of a MuData (of a file read whole), or one of them, by our names, and its own columns of obs."""
    with ExitStack() as stack:
        held, where, obs = _held(mudata, stack)
        of = _by_kind(held, where)
        if only is not None and only not in of:
            raise InputError(f"{where}: holds {', '.join(of)}, and no {only}.")
        chosen = {m: item for m, item in of.items() if only in (None, m)}
        found = {m: item if isinstance(item, AnnData) else read_elem(item) for m, item in chosen.items()}
        table = obs if isinstance(obs, pd.DataFrame) else pd.DataFrame() if obs is None else read_elem(obs)
    own = [c for c in table.columns if not any(str(c).startswith(f"{key}:") for key in held)]  # the rest are copies
    return found, table[own]


def put_into_mudata(path: Path, modality: Modality, key: str, values: np.ndarray, trace: Mapping[str, Any]) -> None:
    """Write `obsm[key]` of a modality into an .h5mu file, and add `trace` to its ``uns["expresser"]``; nothing else is touched."""
    with h5py.File(path, "r+") as file:
        held = {name: file["mod"][name] for name in file["mod"]}
        _put(_by_kind(held, str(path))[modality], key, values, trace)


def put_into_h5ad(path: Path, key: str, values: np.ndarray, trace: Mapping[str, Any]) -> None:
    """The same of an .h5ad file."""
    with h5py.File(path, "r+") as file:
        _put(file, key, values, trace)


def is_self_contained(path: Path) -> bool:
    """Whether a copy of an HDF5 file in another folder holds what this one does, and AnnData of today reads it as it stands.

    Not where counts are those of another file (virtual or external data sets, links), or where it is of an early AnnData.
    """
    found = []

    def look(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            found.append(item.is_virtual or item.external is not None)
        else:
            found.extend(isinstance(item.get(key, getlink=True), h5py.ExternalLink) for key in item)

    with readable(path, "h5ad"), h5py.File(path, "r") as file:
        if file.attrs.get("encoding-type") != "anndata" or not all(
            isinstance(file.get(key, {}), h5py.Group | dict) for key in ("obsm", "uns")
        ):
            return False
        look("/", file)
        file.visititems(look)
    return not any(found)


def _put(group: h5py.Group, key: str, values: np.ndarray, trace: Mapping[str, Any]) -> None:
    for name in ("obsm", "uns"):
        if name not in group:
            write_elem(group, name, {})
    write_elem(group["obsm"], key, values)
    before = read_elem(group["uns/expresser"]) if "expresser" in group["uns"] else {}
    write_elem(group["uns"], "expresser", {**before, **trace})


def _held(mudata: Any, stack: ExitStack) -> tuple[dict[str, Any], str, Any]:
    """Modalities by their own names, what messages call the MuData, and its obs: of files nothing is read yet."""
    if not isinstance(mudata, str | Path):
        return dict(mudata.mod), name_of(mudata), mudata.obs
    path = Path(mudata)
    if not path.exists():
        raise InputError(f"{path}: there is no such file.")
    stack.enter_context(readable(path, "MuData"))
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", OldFormatWarning)
    root: Any = zarr.open_group(path, mode="r") if path.is_dir() else stack.enter_context(h5py.File(path, "r"))
    if "mod" not in root:
        raise InputError(f"{path}: no MuData: it has no group 'mod' but {sorted(root)[:10]}.")
    return {key: root["mod"][key] for key in root["mod"]}, str(path), root.get("obs")


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
    if not isinstance(data, str | Path):
        what = "a MuData, of several modalities: give it as mudata" if is_mudata(data) else f"a {type(data).__name__}"
        raise InputError(f"{what}. Accepted here: {ACCEPTED}.")
    path = Path(data)
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder. Accepted: {ACCEPTED}.")
    name = path.name.lower()
    if name.endswith(".h5ad"):
        return read_anndata_file(path, layer, "h5ad")
    if _is_zarr(path):
        return read_anndata_file(path, layer, "zarr")
    if not (path.is_dir() or name.endswith(".h5")):
        raise InputError(f"{path}: its name does not say what it is. Accepted: {ACCEPTED}.")
    if layer is not None:
        raise InputError(f"{path}: a 10x file holds one matrix and no layer {layer!r}: leave layer away.")
    return read_10x_mtx(path) if path.is_dir() else read_10x_h5(path)


def _is_zarr(path: Path) -> bool:
    return path.is_dir() and (
        path.name.lower().endswith(".zarr") or any((path / key).exists() for key in (".zgroup", "zarr.json"))
    )


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


def _root(data: str | Path | Joint, where: str, stack: ExitStack) -> Any:
    kind = Path(data).suffix if isinstance(data, str | Path) else ""
    if not isinstance(data, str | Path) or kind not in (".h5ad", ".zarr"):
        raise InputError(f"{where}: only AnnData (.h5ad, .zarr, in memory) has an obsm.")
    stack.enter_context(readable(data, kind))
    stack.enter_context(warnings.catch_warnings())
    warnings.simplefilter("ignore", OldFormatWarning)
    return stack.enter_context(h5py.File(data, "r")) if kind == ".h5ad" else zarr.open_group(data, mode="r")


def kinds_of(var: pd.DataFrame) -> list[Modality | None]:
    """The modality of each feature by its feature type; None where that is another or unknown."""
    return [_KINDS.get(str(v).strip().lower()) for v in var["feature_types"]]
