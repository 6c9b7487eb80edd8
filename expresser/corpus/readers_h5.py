"""Readers of 10x .h5 (Cell Ranger) and loom: HDF5 layouts that h5py alone reads block by block."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
from jaxtyping import Shaped
from scipy import sparse

from expresser.corpus.blocks import Matrix, csr_blocks, dense_blocks, readable
from expresser.corpus.rawcounts import is_raw
from expresser.errors import InputError


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[h5py.File]:
    with readable(path, kind), h5py.File(path, "r") as file:
        yield file


def read_10x_h5(path: Path) -> Matrix:
    """Cell Ranger's .h5, version 2 (a group a genome) or 3 (`matrix`): genes x cells by column, so cells stream."""

    def blocks(rows: int) -> Iterator[sparse.csr_matrix]:
        with _opened(path, "10x h5") as root:
            group = root[key]
            yield from csr_blocks(group["data"], group["indices"], group["indptr"][:], shape, rows)

    with _opened(path, "10x h5") as root:
        key = _group_of_10x(root, path)
        group = root[key]
        if key == "matrix":
            features = group["features"]
            var = {"gene_ids": _strings(features["id"])}
            index = _strings(features["name"])
            for column, old in (("feature_types", "feature_type"), ("genome", "genome")):
                if old in features:
                    var[column] = _strings(features[old])
        else:
            var, index = {"gene_ids": _strings(group["genes"])}, _strings(group["gene_names"])
        barcodes = _strings(group["barcodes"])
        shape = (len(barcodes), len(index))
        if tuple(group["shape"][:]) != shape[::-1]:
            raise InputError(
                f"{path}: the matrix is {tuple(map(int, group['shape'][:]))} (genes, cells), "
                f"but there are {shape[1]} gene names and {shape[0]} barcodes."
            )
    return Matrix("matrix", pd.DataFrame(index=barcodes), pd.DataFrame(var, index=index), blocks)


def _group_of_10x(root: h5py.File, path: Path) -> str:
    if "matrix" in root:
        return "matrix"
    genomes = [key for key in root if isinstance(root[key], h5py.Group) and "gene_names" in root[key]]
    if len(genomes) == 1:
        return genomes[0]
    if genomes:
        raise InputError(
            f"{path}: holds {len(genomes)} genomes ({', '.join(genomes)}), and one is read. Write the one meant "
            f"by itself: scanpy.read_10x_h5(path, genome={genomes[0]!r}).write_h5ad(new)."
        )
    hint = "It is AnnData: name it .h5ad." if {"obs", "var"} <= set(root) else "Accepted: Cell Ranger 2 to 9."
    raise InputError(f"{path}: no 10x file: has neither a group 'matrix' nor a genome, but {sorted(root)[:10]}. {hint}")


def _strings(dataset: h5py.Dataset) -> Shaped[np.ndarray, " names"]:
    values = dataset[:]
    return np.array([v.decode() if isinstance(v, bytes) else str(v) for v in values], dtype=object)


def read_loom(path: Path, layer: str | None) -> Matrix:
    """Loom: dense genes x cells, read in blocks of cells; anndata's reader needs loompy and the whole in memory."""

    def blocks(rows: int) -> Iterator[sparse.csr_matrix]:
        with _opened(path, "loom") as root:
            yield from dense_blocks(_Transposed(dataset_of(root)), rows)

    def dataset_of(root: h5py.File) -> h5py.Dataset:
        if layer is not None and layer not in root.get("layers", {}):
            has = ", ".join(map(repr, root.get("layers", {}))) or "none"
            raise InputError(f"{path}: there is no layer {layer!r}. It has: {has}; without --layer 'matrix' is read.")
        return root["matrix"] if layer is None else root["layers"][layer]

    def elsewhere() -> list[str]:
        with _opened(path, "loom") as root:
            look = {key: item[:, :100] for key, item in root.get("layers", {}).items() if key != layer}
            return [
                f"layer {key!r} holds whole numbers in its first cells: pass --layer {key}."
                for key, values in look.items()
                if is_raw(values).all() and values.any()
            ]

    with _opened(path, "loom") as root:
        n_genes, n_cells = dataset_of(root).shape
        obs = _loom_frame(root["col_attrs"], n_cells, ("CellID", "obs_names", "cell_names", "Barcode"))
        var = _loom_frame(root["row_attrs"], n_genes, ("Gene", "var_names", "gene_names", "gene", "Accession"))
    return Matrix("matrix" if layer is None else f"layer {layer!r}", obs, var, blocks, elsewhere)


class _Transposed:
    """Columns of a dataset on disk, as rows."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset, self.shape, self.dtype = dataset, dataset.shape[::-1], dataset.dtype

    def __getitem__(self, rows: slice) -> Shaped[np.ndarray, "rows columns"]:
        return self._dataset[:, rows].T


def _loom_frame(attributes: h5py.Group, n: int, index: tuple[str, ...]) -> pd.DataFrame:
    columns = {
        key: _strings(item) if item.dtype.kind in "SO" else item[:]
        for key, item in attributes.items()
        if item is not None and item.shape == (n,)  # a broken link is None
    }
    key = next((key for key in index if key in columns), None)
    names = columns.pop(key) if key is not None else np.arange(n)
    return pd.DataFrame(columns, index=pd.Index(names).astype(str))
