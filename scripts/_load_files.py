"""Paired cells of any number, of some kinds, written as .h5ad a block at a time; for bench_load.py and its test.

Eight kinds of cell differ in a tenth of their features, in RNA and in ATAC; numbers of non-zeros are log-normal. Matrices are
written as they are drawn, so that a million cells x 200,000 peaks need no more memory than a thousand.
"""

from itertools import pairwise
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
from _genome_scale import genes, peaks

KINDS, BLOCK = 8, 2048
_STEPS = 2**20  # of the tables that a uniform number is looked up in


def write_files(folder: Path, cells: int, n_genes: int, n_peaks: int, a_cell: tuple[int, int], parts: int) -> None:
    """rna.h5ad and atac.h5ad of all cells, and atac_0.h5ad … of the same ATAC in parts, whose counts are those of atac.h5ad.

    a_cell: median non-zeros of a cell, of RNA and of ATAC.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    kinds = rng.integers(0, KINDS, cells)
    depth = np.exp(rng.normal(0, 0.4, cells))
    # Nothing says which of them are held out, but a fit of some hundred steps is of a part of a million.
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical([f"kind {k}" for k in kinds])}, index=[f"cell{i}" for i in range(cells)]
    )
    for name, var, median, seed in (("rna", genes(n_genes), a_cell[0], 1), ("atac", peaks(n_peaks), a_cell[1], 2)):
        var = var.drop(columns=["tss"], errors="ignore")
        path = folder / f"{name}.h5ad"
        _shell(path, obs, var)
        indptr = _write(path, kinds, np.maximum(median * depth, 1).astype(int), len(var), seed)
        if name == "atac":
            _write_parts(path, obs, var, indptr, parts)


def _shell(path: Path, obs: pd.DataFrame, var: pd.DataFrame) -> None:
    anndata.AnnData(obs=obs, var=var).write_h5ad(path)


def _matrix(file: h5py.File, indptr: np.ndarray, n_features: int) -> h5py.Group:
    if "X" in file:
        del file["X"]
    group = file.create_group("X")
    shape = [len(indptr) - 1, n_features]
    group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape})
    group["indptr"] = indptr
    return group


def _tables(n_features: int, seed: int) -> np.ndarray:
    """Of each kind, which feature a number from 0 to 1 stands for: what is commoner has more of the numbers."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, 1, n_features))
    tables = np.empty((KINDS, _STEPS), np.int32)
    for kind in range(KINDS):
        rate = base * np.where(rng.random(n_features) < 0.1, np.exp(rng.normal(0, 1.5, n_features)), 1)
        ends = np.cumsum(rate) / rate.sum()
        tables[kind] = np.minimum(np.searchsorted(ends, (np.arange(_STEPS) + 0.5) / _STEPS), n_features - 1)
    return tables


def _write(path: Path, kinds: np.ndarray, depth: np.ndarray, n_features: int, seed: int) -> np.ndarray:
    """X of the file, drawn and appended a block of cells at a time; the row starts."""
    rng, tables = np.random.default_rng(seed), _tables(n_features, seed)
    lengths = np.zeros(len(kinds), np.int64)
    with h5py.File(path, "r+") as file:
        group = _matrix(file, np.zeros(len(kinds) + 1, np.int64), n_features)
        options = {"maxshape": (None,), "chunks": (1_000_000,)}
        data = group.create_dataset("data", (0,), "u2", **options)
        indices = group.create_dataset("indices", (0,), "i4", **options)
        for first in range(0, len(kinds), BLOCK):
            some = slice(first, first + BLOCK)
            n, of = depth[some], kinds[some]
            # Rising numbers from 0 to 1, as many as the cell has: of as many as the deepest has, those below its share.
            at = rng.random((len(n), n.max()), dtype=np.float32) * (n.max() / n)[:, None].astype(np.float32)
            at.sort(axis=1)
            there = at < 1
            found = tables[of[:, None], np.minimum((at * _STEPS).astype(np.int64), _STEPS - 1)]
            there[:, 1:] &= np.diff(found, axis=1) > 0
            lengths[some] = there.sum(axis=1)
            end, more = data.shape[0], int(lengths[some].sum())
            for dataset, values in ((indices, found[there]), (data, rng.geometric(0.6, more).astype(np.uint16))):
                dataset.resize(end + more, axis=0)
                dataset[end:] = values
        indptr = np.concatenate([[0], np.cumsum(lengths)])
        del group["indptr"]
        group["indptr"] = indptr
    return indptr


def _write_parts(path: Path, obs: pd.DataFrame, var: pd.DataFrame, indptr: np.ndarray, parts: int) -> None:
    """Files of some of the cells each, whose counts lie in the whole file (HDF5 virtual datasets): no disk is needed twice."""
    edges = np.linspace(0, len(obs), parts + 1).astype(int)
    for number, (first, last) in enumerate(pairwise(edges.tolist())):
        part = path.with_name(f"{path.stem}_{number}.h5ad")
        _shell(part, obs.iloc[first:last], var)
        a, b = int(indptr[first]), int(indptr[last])
        with h5py.File(part, "r+") as file:
            group = _matrix(file, indptr[first : last + 1] - a, len(var))
            for name, kind in (("data", "u2"), ("indices", "i4")):
                layout = h5py.VirtualLayout((b - a,), kind)
                layout[:] = h5py.VirtualSource(str(path.absolute()), f"X/{name}", (int(indptr[-1]),), kind)[a:b]
                group.create_virtual_dataset(name, layout)
