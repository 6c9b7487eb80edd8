"""Readers of AnnData: h5ad, zarr, an object in memory or in backed mode."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata import AnnData, OldFormatWarning
from anndata.io import read_elem, sparse_dataset
from jaxtyping import Shaped
from scipy import sparse

from expresser.corpus.blocks import Matrix, csc_blocks, csr_blocks, dense_blocks, readable
from expresser.corpus.rawcounts import is_raw
from expresser.errors import InputError

_LOOK = 10_000  # stored values looked at to say that another matrix holds raw counts


@dataclass(frozen=True, eq=False)
class _Candidate:
    """One matrix of an AnnData object or file: what the user calls it, and where it and its genes are."""

    where: str
    matrix: Any  # group, array, or what AnnData holds in memory
    var: Any  # group or DataFrame
    option: str  # how to ask for it


def _candidates(data: Any) -> dict[str | None, _Candidate]:
    """The matrices by the value of `layer` that names them; `data` is an AnnData or an open group (same key names)."""

    def part(of: Any, key: str) -> Any:
        if not isinstance(of, h5py.Group | zarr.Group):
            return getattr(of, key)
        found = of.get(key)
        return None if found is None or found.attrs.get("encoding-type") == "null" else found  # so None is written

    found: dict[str | None, _Candidate] = {}
    if part(data, "X") is not None:
        found[None] = _Candidate("X", part(data, "X"), part(data, "var"), "leave --layer away")
    layers = part(data, "layers")
    for key in sorted(name for name in layers or [] if name is not None):  # None: X itself, since anndata 0.13
        found[key] = _Candidate(f"layer {key!r}", layers[key], part(data, "var"), f"pass --layer {key}")
    raw = part(data, "raw")
    if raw is not None:
        found["raw"] = _Candidate("raw", part(raw, "X"), part(raw, "var"), "pass --layer raw")
    return found


def _pick(found: Mapping[str | None, _Candidate], layer: str | None, path: Path | str) -> _Candidate:
    if layer in found:
        return found[layer]
    has = ", ".join(repr(key) for key in found if key is not None) or "none"
    if layer is None:
        raise InputError(f"{path}: there is no matrix X. Pass --layer with one of: {has}.")
    raise InputError(f"{path}: there is no layer {layer!r}. It has: {has}; without --layer X is read.")


def _arrays(group: Any) -> tuple[Any, Any, Shaped[np.ndarray, " majors_plus_1"]]:
    """data and indices on disk, indptr in memory."""
    return group["data"], group["indices"], np.asarray(group["indptr"][:])


def _stream(matrix: Any, rows: int) -> Iterator[sparse.csr_matrix]:
    """Blocks of whatever AnnData keeps a matrix in. In memory column order costs one copy in row order."""
    if isinstance(matrix, h5py.Group | zarr.Group):
        dataset = sparse_dataset(matrix)
        shape = (int(dataset.shape[0]), int(dataset.shape[1]))
        data, indices, indptr = _arrays(matrix)
        if dataset.format == "csc":
            yield from csc_blocks(data, indices, indptr, shape)
        else:
            yield from csr_blocks(data, indices, indptr, shape, rows)
    elif hasattr(matrix, "group"):  # AnnData in backed mode
        yield from _stream(matrix.group, rows)
    elif sparse.issparse(matrix):
        matrix = sparse.csr_matrix(matrix)
        for first in range(0, matrix.shape[0], rows):
            yield matrix[first : first + rows]
    else:
        yield from dense_blocks(matrix, rows)


def _first_values(matrix: Any) -> Shaped[np.ndarray, "*any"]:
    if isinstance(matrix, h5py.Group | zarr.Group):
        return np.asarray(_arrays(matrix)[0][:_LOOK])
    if hasattr(matrix, "group"):
        return _first_values(matrix.group)
    if sparse.issparse(matrix):
        return sparse.csr_matrix(matrix[: max(1, _LOOK // 100)]).data
    return np.asarray(matrix[: max(1, _LOOK // max(1, matrix.shape[1]))])


def _raw_elsewhere(found: Mapping[str | None, _Candidate], layer: str | None) -> list[str]:
    others = {key: (item, _first_values(item.matrix)) for key, item in found.items() if key != layer}
    return [
        f"{item.where} holds whole numbers in its first rows: {item.option}."
        for item, values in others.values()
        if is_raw(values).all() and values.any()
    ]


def _matrix_shape(matrix: Any) -> tuple[int, ...]:
    shape = sparse_dataset(matrix).shape if isinstance(matrix, h5py.Group | zarr.Group) else matrix.shape
    return tuple(int(n) for n in shape)


def read_anndata(adata: AnnData, layer: str | None, label: str) -> Matrix:
    """An AnnData in memory or in backed mode. Column order (CSC) in memory costs one copy in row order."""
    found = _candidates(adata)
    item = _pick(found, layer, label)
    return Matrix(
        item.where,
        adata.obs,
        item.var,
        blocks=lambda rows: _stream(item.matrix, rows),
        elsewhere=lambda: _raw_elsewhere(found, layer),
    )


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[Any]:
    """The root group of an HDF5 file or zarr folder, closed afterwards."""
    with readable(path, kind):
        if kind == "zarr":
            yield zarr.open_group(path, mode="r")
        else:
            with h5py.File(path, "r") as file:
                yield file


def _frame(group: Any, path: Path, what: str) -> pd.DataFrame:
    with warnings.catch_warnings():  # files of anndata 0.7, which are many
        warnings.simplefilter("ignore", OldFormatWarning)
        try:
            frame = read_elem(group)
        except Exception as error:  # anndata's error for an encoding it does not know has no public name
            raise InputError(f"{path}: {what} cannot be read: {error}") from error
    if not isinstance(frame, pd.DataFrame):
        raise InputError(
            f"{path}: {what} is not a table of anndata 0.7 or later but {type(frame).__name__}. "
            "Write the file again: anndata.read_h5ad(old).write_h5ad(new)."
        )
    return frame


def read_anndata_file(path: Path, layer: str | None, kind: str) -> Matrix:
    """h5ad or zarr. CSR and dense stream; CSC goes through `RowBuckets`; obs, var and indptr are held whole."""

    def blocks(rows: int) -> Iterator[sparse.csr_matrix]:
        with _opened(path, kind) as root:
            matrix = _pick(_candidates(root), layer, path).matrix
            if kind == "zarr":
                _all_chunks_there(matrix, path)
            yield from _stream(matrix, rows)

    def elsewhere() -> list[str]:
        with _opened(path, kind) as root:
            return _raw_elsewhere(_candidates(root), layer)

    with _opened(path, kind) as root:
        missing = {"obs", "var"} - set(root)
        if missing:
            raise InputError(
                f"{path}: no AnnData file: it has no {' and no '.join(sorted(missing))} but {sorted(root)[:10]}. "
                "A 10x file must end in .h5, a loom file in .loom."
            )
        item = _pick(_candidates(root), layer, path)
        obs, var = _frame(root["obs"], path, "obs"), _frame(item.var, path, "var")
        shape = _matrix_shape(item.matrix)
        if shape != (len(obs), len(var)):
            raise InputError(
                f"{path}: {item.where} is {shape[0]} x {shape[1]}, but obs has {len(obs)} rows and var {len(var)}. "
                "It was not written by anndata in one piece: write it again."
            )
    return Matrix(item.where, obs, var, blocks, elsewhere)


def _all_chunks_there(matrix: Any, path: Path) -> None:
    """Zarr reads a missing chunk file as zeros: a folder copied in part would lose counts in silence.

    Zarr also leaves out chunks that *are* all zeros: never so in the data of a sparse matrix, and in its indices only
    where a chunk has no two entries of one cell. A dense matrix may hold such chunks and cannot be checked.
    """
    if not isinstance(matrix, zarr.Group):
        return
    *arrays, indptr = _arrays(matrix)
    for key, array in zip(("data", "indices"), arrays):
        starts = np.arange(0, array.shape[0], array.chunks[0])
        ends = np.minimum(starts + array.chunks[0], array.shape[0])
        cells = np.searchsorted(indptr, ends, side="left") - np.searchsorted(indptr, starts, side="right") + 1
        may_be_zero = key == "indices" and bool((cells >= ends - starts).any())
        missing = array.nchunks - array.nchunks_initialized
        if missing > 0 and not may_be_zero:
            raise InputError(
                f"{path}: {missing} of {array.nchunks} chunks of {array.name} are missing. "
                "Copy the folder again, whole."
            )
