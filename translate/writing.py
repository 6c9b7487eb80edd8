"""Predictions to a file block by block: nothing of size cells x features is ever in memory.

A genome-wide prediction is large (100,000 cells x 220,000 peaks are 88 GB in float32) while what is needed at once is some
cells x all features. The file is a plain AnnData on disk, whole or not there at all.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float32, Int, Int64, Num
from scipy import sparse

from expresser.errors import InputError
from translate.matrix_files import TILE, Compression, Keep, dense_sink, sparse_sink, store, write_around
from translate.peaks import prediction_means
from translate.predicted import Chosen, Predicted

Form = Literal["float32", "float16", "topk", "binary", "scale"]
Progress = Callable[[int, int], None]

_DIVERGED = "A model whose training diverged predicts such values: look at its loss, and fit it again."


def write_predictions(
    predicted: Predicted,
    out: str | Path,
    *,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    uns: Mapping[str, Any],
    features: Sequence[str] | pd.Index | Int[np.ndarray, " chosen"] | None = None,
    form: Form = "float32",
    top_k: int = 10_000,
    threshold: float | Num[np.ndarray, " features"] = 0.5,
    cells_per_chunk: int | None = None,
    compression: Compression | None = None,
    progress: Progress | None = None,
) -> Path:
    """Write predictions as ``.h5ad`` or ``.zarr`` (the suffix decides), some cells x all features at a time.

    Memory beyond what the predictor itself uses: one float32 block of ``cells_per_chunk`` cells (by default up to 128 MiB) and
    at most one copy of it; for the sparse forms also the entries kept of that block. What stood at ``out`` stays until
    the new file is complete.

    Parameters
    ----------
    predicted
        The values, on the scale that ``Predicted`` states for its modality.
    obs, var
        Of all cells and of all features predicted, in the order of ``predicted``.
    uns
        Written as it is: provenance.
    features
        Names or numbers of the features wanted, in the order wanted; None: all. The others are not computed.
    form
        ``float32``: every value, and everything in scanpy works. ``float16``: half the size, 3 significant digits, values below
        6e-8 become zero. The default is float32 because sums over a float16 matrix stay float16 and overflow at 65,504 (a cell's
        total over 224,000 peaks does), scipy has no sparse float16 and scanpy's Wilcoxon test refuses it; for float16, read
        the cells wanted and cast. ``topk``: each cell's ``top_k`` highest values, CSR float32, the rest zero; of equal values
        the first feature wins. ``binary``: 1 where the value exceeds ``threshold``, CSR float32. ``scale``, of ATAC: 1 where
        the value exceeds both the cell's mean over all peaks and the peak's mean over all cells (Xiong et al., Nat. Commun.
        2019, SCALE; `translate.peaks.binarise_predictions` in memory), CSR float32. No threshold is chosen, but everything is
        predicted twice, and whether a peak of a cell is called open depends on the other cells of the file; of one cell none
        is. The sparse forms take absence for "low", so they are refused for protein, whose scale has negative values.
    threshold
        One for all features or one per feature of ``predicted`` (the open share in training, say).
    compression
        ``gzip`` (small) or ``lzf`` (fast, .h5ad only); None: none, since predicted floats shrink little.
    progress
        Called as (cells written, cells); of ``scale``, whose cells pass twice, as (cells passed, 2 x cells).

    Raises
    ------
    InputError
        Names or shapes that do not fit, an unknown suffix, a value that is not finite: the file is then not written.
    """
    out = Path(out)
    n_cells, n_features = predicted.n_cells, predicted.n_features
    _check(predicted, out, obs, var, form, top_k, threshold, cells_per_chunk, compression)
    columns = _columns(var, features)
    shell = AnnData(obs=obs.copy(), var=var.iloc[columns].copy(), uns=dict(uns))
    shell.strings_to_categoricals()
    chosen = Chosen(predicted, columns)
    step = cells_per_chunk or _whole_tiles(chosen.cells_at_once)
    passes = 2 if form == "scale" else 1
    tell = progress or _say_nothing

    with store(out) as root:
        write_around(root, shell)
        if form in ("float32", "float16"):
            matrix = dense_sink(root, (n_cells, len(columns)), np.dtype(form), compression)
        else:
            if form == "topk":
                keep = _top(top_k)
            elif form == "binary":
                keep = _above(np.broadcast_to(np.asarray(threshold, np.float32), n_features)[columns])
            else:
                of_cells, of_features = _means(
                    predicted, var, cells_per_chunk, lambda done: tell(done, passes * n_cells)
                )
                keep = _above(of_features[columns], of_cells)
            matrix = sparse_sink(root, len(columns), compression, keep)
        with matrix as sink:
            for first in range(0, n_cells, step):
                cells = slice(first, min(first + step, n_cells))
                sink(cells, _finite(chosen.block(cells), cells, columns, var))
                tell((passes - 1) * n_cells + cells.stop, passes * n_cells)
    return out


def _say_nothing(done: int, total: int) -> None:
    """Progress that nobody asked for."""


def prove_suffix(out: Path) -> None:
    """InputError where the name does not say a format that predictions can be written in."""
    if out.suffix not in (".h5ad", ".zarr"):
        raise InputError(f"{out}: predictions are written as .h5ad or .zarr, and the name ends in {out.suffix!r}.")


def _check(
    predicted: Predicted,
    out: Path,
    obs: pd.DataFrame,
    var: pd.DataFrame,
    form: str,
    top_k: int,
    threshold: float | Num[np.ndarray, " thresholds"],
    cells_per_chunk: int | None,
    compression: str | None,
) -> None:
    """What can be known before anything is computed."""
    prove_suffix(out)
    if compression == "lzf" and out.suffix == ".zarr":
        raise InputError(f"{out}: lzf is a compression of HDF5 (.h5ad). For .zarr pass 'gzip' or None.")
    for name, frame, n in (("obs", obs, predicted.n_cells), ("var", var, predicted.n_features)):
        what = "cells" if name == "obs" else "features"
        if len(frame) != n:
            raise InputError(
                f"{out}: {n:,} {what} are predicted, but {name} has {len(frame):,} rows. Pass one row for each."
            )
        if not n:
            raise InputError(f"{out}: a prediction of no {what} has nothing to write. Select some.")
    if form == "scale" and (predicted.to != "atac" or predicted.n_cells == 1):
        what = (
            f"{predicted.to} is predicted"
            if predicted.to != "atac"
            else "there is one cell, and nothing exceeds itself"
        )
        raise InputError(
            f"{out}: form 'scale' calls peaks open that exceed the mean of their cell and their own mean over cells, but {what}. "
            "Use binary with a threshold."
        )
    if form in ("topk", "binary") and predicted.to == "protein":
        raise InputError(
            f"{out}: form {form!r} leaves low values out, to be read as zero, but centred log-ratios of protein lie on both "
            "sides of zero. Use float32 or float16."
        )
    for name, value in (("top_k", top_k), ("cells_per_chunk", cells_per_chunk)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}; it is a number of at least 1.")
    if np.ndim(threshold) and len(np.asarray(threshold)) != predicted.n_features:
        raise InputError(
            f"threshold: {len(np.asarray(threshold)):,} values for {predicted.n_features:,} features. "
            "Pass one number, or one for each feature predicted."
        )


def _columns(var: pd.DataFrame, features: Sequence[str] | pd.Index | np.ndarray | None) -> Int64[np.ndarray, " chosen"]:
    """The numbers of the features wanted."""
    if features is None:
        return np.arange(len(var))
    wanted = np.asarray(features)
    if wanted.dtype.kind in "iu":
        bad = wanted[(wanted < 0) | (wanted >= len(var))]
        if bad.size:
            raise InputError(
                f"features: number {bad[0]} is asked for, but there are {len(var):,} (0 to {len(var) - 1:,})."
            )
        columns = wanted.astype(np.int64)
    else:
        columns = var.index.get_indexer(pd.Index(wanted)).astype(np.int64)
        if (columns < 0).any():
            missing = wanted[columns < 0]
            raise InputError(
                f"features: {len(missing):,} of {len(wanted):,} are not predicted (first: {str(missing[0])!r}); "
                f"names look like {str(var.index[0])!r}. Leave them out, or use a model that has them."
            )
    if not columns.size or len(np.unique(columns)) != len(columns):
        raise InputError(
            f"features: {len(columns):,} are asked for, {len(np.unique(columns)):,} different. "
            "Name each once, and at least one."
        )
    return columns


def _whole_tiles(cells: int) -> int:
    """So many cells, in whole tiles of the file where there are several."""
    return cells - cells % TILE[0] if cells > TILE[0] else cells


def _means(
    predicted: Predicted, var: pd.DataFrame, cells_per_chunk: int | None, progress: Callable[[int], None]
) -> tuple[Float32[np.ndarray, " cells"], Float32[np.ndarray, " features"]]:
    """Mean prediction of each cell and of each feature, over everything predicted, all finite."""
    everything = np.arange(predicted.n_features)
    step = cells_per_chunk or Chosen(predicted, everything).cells_at_once
    of_cells, of_features = prediction_means(predicted, block=(step, len(everything)), progress=progress)
    if len(bad := np.flatnonzero(~np.isfinite(of_features))):
        raise InputError(f"predictions of feature {var.index[bad[0]]!r} are not all finite. {_DIVERGED}")
    return of_cells, of_features


def _finite(
    block: Float32[np.ndarray, "cells chosen"], cells: slice, columns: Int64[np.ndarray, " chosen"], var: pd.DataFrame
) -> Float32[np.ndarray, "cells chosen"]:
    """The block, all of it finite."""
    if not np.isfinite(block.sum(dtype=np.float64)):
        cell, feature = np.argwhere(~np.isfinite(block))[0]
        raise InputError(
            f"the prediction of cell {cells.start + int(cell)}, feature {var.index[columns[feature]]!r} is "
            f"{block[cell, feature]}. {_DIVERGED}"
        )
    return block


def _top(k: int) -> Keep:
    """Each row's k highest entries; of equal ones at the edge the first."""

    def keep(_cells: slice, block: np.ndarray) -> sparse.csr_matrix:
        if k >= block.shape[1]:
            chosen = np.ones(block.shape, bool)
        else:
            edge = np.partition(block, -k, axis=1)[:, -k, None]
            chosen = block > edge
            ties = block == edge
            left = k - chosen.sum(axis=1)
            for row in np.flatnonzero(ties.sum(axis=1) > left):
                ties[row, np.flatnonzero(ties[row])[left[row] :]] = False
            chosen |= ties
        if block.min(initial=0.0, where=chosen) < 0:
            raise InputError(
                f"form 'topk' leaves all but the {k:,} highest values of a cell out, to be read as zero, but among those "
                "highest are values below zero. Lower top_k, or use float32 or float16."
            )
        return _kept(block, chosen & (block != 0))

    return keep


def _above(limits: Float32[np.ndarray, " chosen"], of_cells: Float32[np.ndarray, " all_cells"] | None = None) -> Keep:
    """1 where a value exceeds its feature's limit and, where cells have one, its cell's."""

    def keep(cells: slice, block: np.ndarray) -> sparse.csr_matrix:
        above = block > limits
        if of_cells is not None:
            above &= block > of_cells[cells, None]
        kept = _kept(block, above)
        kept.data[:] = 1
        return kept

    return keep


def _kept(block: Float32[np.ndarray, "cells chosen"], chosen: Bool[np.ndarray, "cells chosen"]) -> sparse.csr_matrix:
    """The chosen entries as CSR."""
    indptr = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))])
    return sparse.csr_matrix((block[chosen], np.nonzero(chosen)[1].astype(np.int32), indptr), shape=block.shape)
