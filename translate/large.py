"""Matrices larger than memory should hold: their entries lie in temporary files, which the system reads as they are asked for.

They are scipy matrices as any other. A file has no name, so that its room is free again when the matrix is gone or the process
was killed. It lies under the system's temporary folder, TMPDIR: where that is itself in memory, nothing is won.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import psutil
from jaxtyping import Int64, Shaped
from scipy import sparse

from expresser.errors import InputError

VARIABLE = "EXPRESSER_MATRIX_GB"  # of the environment: a matrix that is larger lies in files
_SHARE = 16  # of the memory that there is, what one matrix may have
_ENTRIES = 4_000_000  # moved at a time
_INT32 = 2**31 - 1


def most() -> int:
    """Bytes that a matrix may have in memory: as EXPRESSER_MATRIX_GB says, else a sixteenth of what this process may use."""
    if (said := os.environ.get(VARIABLE)) is None:
        return _memory() // _SHARE
    try:
        found = int(float(said) * 1e9)
    except (ValueError, OverflowError):
        found = -1
    if found < 0:
        raise InputError(f"{VARIABLE} is {said!r}; it is a number of gigabytes, such as 2 or 0.5.")
    return found


def is_large(matrix: sparse.csr_matrix) -> bool:
    """Whether a matrix of as many entries lies in files."""
    return _bytes(matrix.nnz) > most()


class Growing:
    """A float32 CSR matrix that grows by rows: in memory as long as it is small, then in files.

    of: it is one of so many matrices that are all held at once.
    """

    def __init__(self, columns: int, *, of: int = 1) -> None:
        self._columns, self._most = columns, most() // of
        self._held: list[sparse.csr_matrix] = []
        self._ends: list[np.ndarray] = [np.zeros(1, np.int64)]
        self._nnz = 0
        self._files: list[BinaryIO] | None = None

    def add(self, block: sparse.csr_matrix) -> None:
        """More rows, over the same columns."""
        self._ends.append(block.indptr[1:].astype(np.int64) + self._nnz)
        self._nnz += block.nnz
        self._held.append(block)
        if self._files is not None or _bytes(self._nnz) > self._most:
            self._spill()

    def whole(self) -> sparse.csr_matrix:
        """All rows, sorted as they came; call once."""
        indptr = np.concatenate(self._ends)
        if self._files is None:
            done, self._held = self._held, []
            data = np.concatenate([block.data for block in done] or [[]]).astype(np.float32, copy=False)
            indices = np.concatenate([block.indices for block in done] or [[]])
        else:
            for file in self._files:
                file.flush()
            data, indices = (_mapped(file, self._nnz, kind) for file, kind in zip(self._files, (np.float32, np.int32)))
            for file in self._files:
                file.close()
        return _matrix(data, indices, indptr, self._columns)

    def _spill(self) -> None:
        """What is held goes to the files."""
        if self._files is None:
            self._files = [_file(), _file()]
        with _no_room(_bytes(self._nnz)):
            for block in self._held:
                for file, values, kind in zip(self._files, (block.data, block.indices), (np.float32, np.int32)):
                    file.write(np.ascontiguousarray(values, kind).data)
        self._held = []


def empty(indptr: Int64[np.ndarray, " rows_and_one"], columns: int) -> sparse.csr_matrix:
    """A float32 matrix with these row starts whose `data` and `indices` are to be filled."""
    n = int(indptr[-1])
    kind = np.dtype(np.int32 if n <= _INT32 else np.int64)
    if _bytes(n) <= most():
        data, indices = np.empty(n, np.float32), np.empty(n, kind)
    else:
        data, indices = _reserved(n, np.dtype(np.float32)), _reserved(n, kind)
    # scipy looks the numbers over for the type they need, and those of memory that was never written are anything.
    found = sparse.csr_matrix((len(indptr) - 1, columns), dtype=np.float32)
    found.data, found.indices, found.indptr = data, indices, indptr.astype(kind)
    return found


def by_rows(matrix: sparse.csr_matrix, change: Callable[[sparse.csr_matrix], sparse.csr_matrix]) -> sparse.csr_matrix:
    """`change` of the matrix, which works row by row: of a large one some rows at a time, and the result lies in files."""
    if not is_large(matrix):
        return change(matrix)
    found: Growing | None = None
    for rows in steps(matrix):
        part = change(matrix[rows])
        found = found or Growing(part.shape[1])
        found.add(part)
    return found.whole() if found is not None else change(matrix)


def steps(matrix: sparse.csr_matrix) -> Iterator[slice]:
    """All rows, some at a time: one at least, and about four million entries."""
    yield from _cuts(matrix.indptr.astype(np.int64))


def take_rows(matrix: sparse.csr_matrix, rows: Int64[np.ndarray, " rows"]) -> sparse.csr_matrix:
    """``matrix[rows]``; what is large of it lies in files."""
    lengths = np.diff(matrix.indptr).astype(np.int64)[rows]
    if _bytes(int(lengths.sum())) <= most():
        return matrix[rows]
    found = Growing(matrix.shape[1])
    for some in _cuts(np.concatenate([[0], np.cumsum(lengths)])):
        found.add(matrix[rows[some]])
    return found.whole()


def stacked(matrices: Sequence[sparse.csr_matrix]) -> sparse.csr_matrix:
    """The rows of all, one below the other."""
    if _bytes(sum(matrix.nnz for matrix in matrices)) <= most():
        return sparse.vstack(matrices, format="csr", dtype=np.float32)
    found = Growing(matrices[0].shape[1])
    for matrix in matrices:
        for rows in steps(matrix):
            found.add(matrix[rows])
    return found.whole()


def _cuts(ends: Int64[np.ndarray, " rows_and_one"]) -> Iterator[slice]:
    first, n = 0, len(ends) - 1
    while first < n:
        last = int(np.searchsorted(ends, ends[first] + _ENTRIES, side="right")) - 1
        last = max(last, first + 1)
        yield slice(first, last)
        first = last


def _matrix(data: np.ndarray, indices: np.ndarray, indptr: np.ndarray, columns: int) -> sparse.csr_matrix:
    """CSR with column numbers and row starts of one type, int32 where they may: of two, scipy copies one."""
    if len(indices) > _INT32:
        wide = _reserved(len(indices), np.dtype(np.int64))
        for first in range(0, len(indices), _ENTRIES):
            wide[first : first + _ENTRIES] = indices[first : first + _ENTRIES]
        indices = wide
    else:
        indices, indptr = indices.astype(np.int32, copy=False), indptr.astype(np.int32)
    return sparse.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, columns))


def _bytes(entries: int) -> int:
    return entries * (4 + (4 if entries <= _INT32 else 8))


def _memory() -> int:
    """Bytes that this process may use: of the machine, or of the limit that it was given."""
    found = int(psutil.virtual_memory().total)
    try:
        import resource

        limits = [resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_DATA, resource.RLIMIT_AS)]
        found = min([found, *(limit for limit in limits if limit != resource.RLIM_INFINITY)])
    except ImportError:  # no such limits on this system
        pass
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            with open(path) as file:
                found = min(found, int(file.read()))
        except (OSError, ValueError):  # no container, or none with a limit ("max")
            continue
    return found


def _file() -> BinaryIO:
    """A new file without a name."""
    with _no_room(0):
        return tempfile.TemporaryFile(prefix="expresser-")


def _reserved(n: int, kind: np.dtype) -> Shaped[np.ndarray, " n"]:
    """An array in a file whose room is there: a page that finds none when it is written ends the process."""
    size = n * kind.itemsize
    with _file() as file, _no_room(size):
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            for first in range(0, size, 2**24):
                file.write(bytes(min(2**24, size - first)))
            file.flush()
        return _mapped(file, n, kind)


def _mapped(file: BinaryIO, n: int, kind: Any) -> Shaped[np.ndarray, " n"]:
    found = np.frombuffer(mmap.mmap(file.fileno(), n * np.dtype(kind).itemsize), kind)
    return found[:]  # a view of an array, since scipy asks the base of what it prunes for its size


@contextmanager
def _no_room(size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{tempfile.gettempdir()}: cannot hold a matrix of {size / 1e9:,.1f} GB, which is more than is kept in memory "
            f"({most() / 1e9:,.1f} GB): {error.strerror or error}. Set TMPDIR to a folder with room, on a disk, or {VARIABLE} to the "
            "gigabytes that a matrix may have in memory."
        ) from error
