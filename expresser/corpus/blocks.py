"""How a matrix in any storage order becomes blocks of rows with bounded memory."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Shaped
from scipy import sparse

from expresser.errors import InputError

ENTRIES = 2_000_000  # non-zeros held at once by readers of column order: 32 MB, about 200 MB while they are sorted
BLOCK_ENTRIES = (
    8_000_000  # of a block of rows: 64 MB as most are stored; 4,096 cells of ATAC may have ten times as many
)
DENSE_BYTES = 32_000_000  # of a dense matrix held at once: about 80 MB while its zeros are dropped
_TOLD = 1000  # letters of what a library says
_TRIPLE = np.dtype([("row", "<i4"), ("column", "<i4"), ("value", "<f8")])


@dataclass(frozen=True, eq=False)
class Matrix:
    """One matrix, cells x features, read only while its blocks are asked for.

    `blocks(rows)` opens the file, yields all rows in order in blocks of any height (`rows` is what suits the caller)
    and closes the file. Values are as stored: nothing is proven. `where` names the matrix inside its file.
    """

    where: str
    obs: pd.DataFrame  # a row a cell, index = barcodes
    var: pd.DataFrame  # a row a feature, index = names
    blocks: Callable[[int], Iterator[sparse.csr_matrix]]
    elsewhere: Callable[[], list[str]] = list  # sentences: which other matrices of the file hold raw counts
    files: tuple[Path, ...] = ()  # where the matrix is several files: those


@contextmanager
def readable(path: Path | str, kind: str) -> Iterator[None]:
    """Turns what libraries raise over a truncated, corrupt or misnamed file into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # h5py, zarr and anndata raise of everything over damaged bytes; the cause stays chained
        text = str(error).strip()[:_TOLD] or type(error).__name__
        hint = " (`import hdf5plugin` first adds more compression filters.)" if "filter" in text else ""
        raise InputError(
            f"{path}: cannot be read as {kind}: {text}{hint} "
            "Is the file complete (an interrupted download?) and of the kind its name says?"
        ) from error


def check_indptr(indptr: Shaped[np.ndarray, " majors_plus_1"], majors: int, entries: int, indices: Any) -> None:
    """Raises ValueError unless `indptr` cuts `entries` values into `majors` rows (or columns), and `indices` are whole numbers."""
    if indices.dtype.kind not in "iu":  # scipy would cut off what follows the point
        raise ValueError(f"indices are {indices.dtype}, not whole numbers.")
    rising = len(indptr) == majors + 1 and indptr.dtype.kind in "iu" and (indptr[1:] >= indptr[:-1]).all()
    if not rising or indptr[0] != 0 or indptr[-1] != entries:
        raise ValueError(
            f"indptr has {len(indptr)} values that end at {indptr[-1] if len(indptr) else None}, "
            f"not {majors + 1} rising ones that end at {entries}."
        )


def csr_blocks(
    data: Any, indices: Any, indptr: Shaped[np.ndarray, " cells_plus_1"], shape: tuple[int, int], rows: int
) -> Iterator[sparse.csr_matrix]:
    """Row slices of arrays on disk (h5py or zarr): only the slice is in memory, fewer rows where these have many entries."""
    check_indptr(indptr, shape[0], data.shape[0], indices)
    last = 0
    while (first := last) < shape[0]:
        full = int(np.searchsorted(indptr, int(indptr[first]) + BLOCK_ENTRIES, side="right")) - 1
        last = min(first + rows, max(full, first + 1), shape[0])
        a, b = int(indptr[first]), int(indptr[last])
        arrays = (_supported(data[a:b]), indices[a:b], indptr[first : last + 1] - a)
        block = sparse.csr_matrix(arrays, shape=(last - first, shape[1]))
        block.check_format(full_check=True)  # a corrupt index would crash scipy's C++
        yield block


def _supported(values: Shaped[np.ndarray, " *any"]) -> Shaped[np.ndarray, " *any"]:
    """scipy.sparse has no half precision."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def csc_blocks(
    data: Any, indices: Any, indptr: Shaped[np.ndarray, " features_plus_1"], shape: tuple[int, int]
) -> Iterator[sparse.csr_matrix]:
    """One pass over arrays on disk in column order, through `RowBuckets`."""
    entries = data.shape[0]
    check_indptr(indptr, shape[1], entries, indices)
    with RowBuckets(shape, entries) as buckets:
        step = max(1, ENTRIES // 4)
        for a in range(0, entries, step):
            b = min(a + step, entries)
            columns = np.repeat(np.arange(shape[1]), np.diff(np.clip(indptr, a, b)))
            buckets.add(indices[a:b], columns, data[a:b])
        yield from buckets.blocks()


def dense_blocks(matrix: Any, rows: int) -> Iterator[sparse.csr_matrix]:
    """Row slices of a dense array, in memory or on disk: at most DENSE_BYTES (or one row) of it at once."""
    step = max(1, min(rows, DENSE_BYTES // max(1, matrix.shape[1] * matrix.dtype.itemsize)))
    for first in range(0, matrix.shape[0], step):
        yield sparse.csr_matrix(_supported(np.asarray(matrix[first : first + step])))


def regroup(blocks: Iterator[sparse.csr_matrix], rows: int) -> Iterator[sparse.csr_matrix]:
    """The same rows in blocks of exactly `rows` (the last may be shorter)."""
    held: list[sparse.csr_matrix] = []
    height = 0
    for block in blocks:
        start = 0
        while start < block.shape[0]:
            part = block[start : start + rows - height]
            held.append(part)
            start += part.shape[0]
            height += part.shape[0]
            if height == rows:
                yield held[0] if len(held) == 1 else sparse.vstack(held, format="csr")
                held, height = [], 0
    if held:
        yield held[0] if len(held) == 1 else sparse.vstack(held, format="csr")


class RowBuckets:
    """Brings (row, column, value) triples that come in any order into row order, with bounded memory.

    Fewer than ENTRIES triples stay in memory. More are dealt into temporary files, one for each range of rows
    (16 bytes a triple, under the system's temporary folder, TMPDIR), and each file is then sorted by itself. A range is
    as high as holds ENTRIES triples if all rows were alike: `expected` is the number of triples to come.
    """

    def __init__(self, shape: tuple[int, int], expected: int) -> None:
        self._shape = shape
        self._height = max(1, shape[0] * ENTRIES // max(1, expected))
        self._held: list[np.ndarray] = []
        self._n_held = 0
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> "RowBuckets":
        return self

    def __exit__(self, *_: object) -> None:
        self._held = []
        if self._folder is not None:
            self._folder.cleanup()

    def add(
        self,
        rows: Shaped[np.ndarray, " entries"],
        columns: Shaped[np.ndarray, " entries"],
        values: Shaped[np.ndarray, " entries"],
    ) -> None:
        """Takes triples; raises ValueError for a row or column outside the shape."""
        for what, index, size in (("row", rows, self._shape[0]), ("column", columns, self._shape[1])):
            if len(index) and not (index.min() >= 0 and index.max() < size):
                raise ValueError(f"a {what} index lies outside 0..{size - 1}: {index.min()}..{index.max()}.")
        triples = np.empty(len(rows), dtype=_TRIPLE)
        triples["row"], triples["column"], triples["value"] = rows, columns, values
        self._held.append(triples)
        self._n_held += len(triples)
        if self._n_held >= ENTRIES:
            self._spill()

    def blocks(self) -> Iterator[sparse.csr_matrix]:
        """All rows in order; call once, after the last `add`."""
        if self._folder is None:
            yield self._csr(np.concatenate([np.empty(0, dtype=_TRIPLE), *self._held]), 0, self._shape[0])
            return
        folder = self._spill()
        for first in range(0, self._shape[0], self._height):
            path = folder / str(first // self._height)
            triples = np.fromfile(path, dtype=_TRIPLE) if path.exists() else np.empty(0, dtype=_TRIPLE)
            yield self._csr(triples, first, min(first + self._height, self._shape[0]))

    def _csr(self, triples: Shaped[np.ndarray, " entries"], first: int, last: int) -> sparse.csr_matrix:
        rows = triples["row"] - first
        order = np.argsort(rows, kind="stable")  # scipy's tocsr would add up repeats, and so hide -1 beside 2
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=last - first))])
        arrays = (triples["value"][order], triples["column"][order], indptr)
        return sparse.csr_matrix(arrays, shape=(last - first, self._shape[1]))

    def _spill(self) -> Path:
        """Deals what is held into the files of the buckets, whose folder it returns."""
        triples = np.concatenate([np.empty(0, dtype=_TRIPLE), *self._held])
        self._held, self._n_held = [], 0
        bucket = triples["row"] // self._height
        order = np.argsort(bucket, kind="stable")
        present, starts = np.unique(bucket[order], return_index=True)
        try:
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="expresser-")
            for which, part in zip(present, np.split(triples[order], starts[1:])):
                with open(Path(self._folder.name) / str(which), "ab") as file:
                    file.write(part.data)  # not part.tofile, which does not report a full disk
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: cannot hold the temporary copy that a matrix stored gene by gene needs "
                f"(16 bytes for each non-zero value): {error}. Set TMPDIR to a folder with more room."
            ) from error
        return Path(self._folder.name)
