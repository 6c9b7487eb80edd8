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
from translate.predicted import Predicted

Form = Literal["float32", "float16", "topk", "binary"]
Progress = Callable[[int, int], None]

_BLOCK_BYTES = 2**27  # of one block of float32: 149 cells of 224,000 peaks
_GAP = 512  # features not asked for that are computed rather than to call the predictor once more


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
    at most one copy of it; for ``topk`` and ``binary`` also the entries kept of that block. What stood at ``out`` stays until
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
        the first feature wins. ``binary``: 1 where the value exceeds ``threshold``, CSR float32. The sparse forms take absence
        for "low", so they are refused for protein, whose scale has negative values.
    threshold
        One for all features or one per feature of ``predicted`` (the open share in training, say).
    compression
        ``gzip`` (small) or ``lzf`` (fast, .h5ad only); None: none, since predicted floats shrink little.
    progress
        Called as (cells written, cells).

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
    limits = np.broadcast_to(np.asarray(threshold, np.float32), n_features)[columns]
    spans = _spans(columns)
    widest = max(computed.stop - computed.start for computed, _, _ in spans)
    step = cells_per_chunk or _cells_at_once(max(widest, len(columns)))
    with store(out) as root:
        write_around(root, shell)
        if form in ("float32", "float16"):
            matrix = dense_sink(root, (n_cells, len(columns)), np.dtype(form), compression)
        else:
            matrix = sparse_sink(root, len(columns), compression, _top(top_k) if form == "topk" else _above(limits))
        with matrix as sink:
            for first in range(0, n_cells, step):
                cells = slice(first, min(first + step, n_cells))
                sink(cells, _block(predicted, cells, columns, spans, var))
                if progress is not None:
                    progress(cells.stop, n_cells)
    return out


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


def _spans(columns: Int64[np.ndarray, " chosen"]) -> list[tuple[slice, np.ndarray, np.ndarray]]:
    """Slices that cover the columns: (features to compute, which of them, where they go)."""
    order = np.argsort(columns, kind="stable")
    runs = np.split(order, np.flatnonzero(np.diff(columns[order]) > _GAP) + 1)
    spans = []
    for run in runs:
        low, high = int(columns[run[0]]), int(columns[run[-1]]) + 1
        spans.append((slice(low, high), columns[run] - low, run))
    return spans


def _cells_at_once(n_features: int) -> int:
    """As many cells as the block's bytes allow, in whole tiles of the file where there are several."""
    cells = int(np.clip(_BLOCK_BYTES // (4 * n_features), 1, 8192))
    return cells - cells % TILE[0] if cells > TILE[0] else cells


def _block(
    predicted: Predicted,
    cells: slice,
    columns: Int64[np.ndarray, " chosen"],
    spans: list[tuple[slice, np.ndarray, np.ndarray]],
    var: pd.DataFrame,
) -> Float32[np.ndarray, "cells chosen"]:
    """The predicted values of these cells at the columns, all finite."""
    (features, _, where), *more = spans
    whole = not more and features.stop - features.start == len(columns) and bool((np.diff(where) == 1).all())
    if whole:  # every feature of one slice, in order: no copy
        block = predicted.block(cells, features)
    else:
        block = np.empty((cells.stop - cells.start, len(columns)), np.float32)
        for features, which, where in spans:
            block[:, where] = predicted.block(cells, features)[:, which]
    if not np.isfinite(block.sum(dtype=np.float64)):
        cell, feature = np.argwhere(~np.isfinite(block))[0]
        raise InputError(
            f"the prediction of cell {cells.start + int(cell)}, feature {var.index[columns[feature]]!r} is "
            f"{block[cell, feature]}. A model whose training diverged predicts such values: look at its loss, and fit it again."
        )
    return block


def _top(k: int) -> Keep:
    """Each row's k highest entries; of equal ones at the edge the first."""

    def keep(block: np.ndarray) -> sparse.csr_matrix:
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


def _above(limits: Float32[np.ndarray, " chosen"]) -> Keep:
    def keep(block: np.ndarray) -> sparse.csr_matrix:
        kept = _kept(block, block > limits)
        kept.data[:] = 1
        return kept

    return keep


def _kept(block: Float32[np.ndarray, "cells chosen"], chosen: Bool[np.ndarray, "cells chosen"]) -> sparse.csr_matrix:
    """The chosen entries as CSR."""
    indptr = np.concatenate([[0], np.cumsum(chosen.sum(axis=1))])
    return sparse.csr_matrix((block[chosen], np.nonzero(chosen)[1].astype(np.int32), indptr), shape=block.shape)
