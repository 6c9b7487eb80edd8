"""ATAC that is read cell by cell when it is asked for: of a corpus on disk, or of a matrix that lies in files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int32, Int64
from scipy import sparse

from expresser.corpus.packing import compiled
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from translate.batches import SparseRows

_ENTRIES = 4_000_000  # read at a time in passes over all cells


@runtime_checkable
class OpenFeatures(Protocol):
    """Cells whose open features are read when they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, features."""

    def announce(self, cells: Int64[np.ndarray, " cells"]) -> None:
        """These will be asked for soon."""

    def open_in(self, cells: Int64[np.ndarray, " cells"]) -> tuple[Int64[np.ndarray, " cells"], np.ndarray]:
        """How many features are open in each of these cells, and which, ascending in each cell."""

    def pieces(self, cells: Int64[np.ndarray, " cells"]) -> Iterator[Int64[np.ndarray, " piece"]]:
        """Places in `cells`, a piece at a time, in an order that suits the reading."""


@dataclass(frozen=True, eq=False)
class LargeMatrix:
    """A matrix without stored zeros whose entries may lie in files (`translate.large`): seen as what is open.

    Raises ValueError where its indices are not sorted.
    """

    matrix: sparse.csr_matrix

    def __post_init__(self) -> None:
        if not self.matrix.has_sorted_indices:  # what is open would be passed over without a word
            raise ValueError("a matrix without sorted indices")

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, features."""
        return self.matrix.shape

    def announce(self, cells: Int64[np.ndarray, " cells"]) -> None:
        """Nothing: the system reads ahead of its own."""

    def open_in(self, cells: Int64[np.ndarray, " cells"]) -> tuple[Int64[np.ndarray, " cells"], np.ndarray]:
        """How many features are open in each of these cells, and which, ascending in each cell. The counts are not read."""
        indptr, indices = self.matrix.indptr, self.matrix.indices
        lengths = indptr[cells + 1].astype(np.int64) - indptr[cells]
        found = np.empty(int(lengths.sum()), np.int32)
        compiled(_gather)(indptr[cells], lengths, indices, found)
        return lengths, found

    def pieces(self, cells: Int64[np.ndarray, " cells"]) -> Iterator[Int64[np.ndarray, " piece"]]:
        """Places in `cells`, a piece at a time, in the order of the matrix."""
        order = np.argsort(cells, kind="stable")
        step = max(1, _ENTRIES * self.shape[0] // max(self.matrix.nnz, 1))
        yield from (order[start : start + step] for start in range(0, len(order), step))


@dataclass(frozen=True, eq=False)
class StoredMatrix:
    """Cells x features of a corpus: row i is the corpus row `rows[i]`. The matrix is never in memory as a whole."""

    corpus: Corpus
    rows: Int64[np.ndarray, " cells"]

    @property
    def shape(self) -> tuple[int, int]:
        """Cells, features."""
        return len(self.rows), len(self.corpus.vocab)

    @property
    def nnz(self) -> int:
        """Stored entries of a matrix of as many cells of the corpus as these: exact where they are all of them."""
        return int(self.corpus.manifest["nnz"]) * len(self.rows) // max(self.corpus.n_cells, 1)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refusal()

    def __getitem__(self, key: Any) -> Any:
        raise self._refusal()

    def __matmul__(self, other: Any) -> Any:
        raise self._refusal()

    def _refusal(self) -> InputError:
        cells, features = self.shape
        return InputError(
            f"{self.corpus.path}: this needs the matrix in memory, and {cells:,} cells x {features:,} regions of a corpus are "
            "read from disk. Give the cells as files in place of the corpus."
        )

    def take(self, cells: Int64[np.ndarray, " taken"]) -> "StoredMatrix":
        """These cells, in this order; nothing is read."""
        return StoredMatrix(self.corpus, self.rows[cells])

    def lengths(self) -> Int64[np.ndarray, " cells"]:
        """Non-zero features of each cell."""
        return self.corpus.lengths_of(self.rows)

    def loaded(self) -> sparse.csr_matrix:
        """The whole of it in memory: float32 counts."""
        batch = self.corpus.read(self.rows)
        indices, small = batch.genes.astype(np.int64), max(len(batch.genes), self.shape[1]) < 2**31
        matrix = sparse.csr_matrix((batch.counts.astype(np.float32), indices, batch.offsets), shape=self.shape)
        if small:
            matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
        return matrix

    def announce(self, cells: Int64[np.ndarray, " cells"]) -> None:
        """The system begins to fetch what `open_in` will read of these cells."""
        self.corpus.announce(self.rows[cells], counts=False)

    def open_in(self, cells: Int64[np.ndarray, " cells"]) -> tuple[Int64[np.ndarray, " cells"], np.ndarray]:
        """How many features are open in each of these cells, and which, ascending in each cell."""
        return self.corpus.read_genes(self.rows[cells])

    def pieces(self, cells: Int64[np.ndarray, " cells"]) -> Iterator[Int64[np.ndarray, " piece"]]:
        """Places in `cells`, a piece at a time in the order in which cells lie on disk, the piece after it announced."""
        order = np.argsort(self.rows[cells], kind="stable")
        step = max(1, _ENTRIES * self.shape[0] // max(self.nnz, 1))
        for start in range(0, len(order), step):
            if start == 0:
                self.announce(cells[order[:step]])
            self.announce(cells[order[start + step : start + 2 * step]])
            yield order[start : start + step]


class StoredBlocks:
    """Which features of a model are open in cells on disk, read by blocks: `translate.batches.BlockedMatrix` there.

    `onto` (features of the cells x features of the model, 0/1) says what each of theirs opens.
    """

    binary = True

    def __init__(self, matrix: OpenFeatures, onto: sparse.csr_matrix, bounds: Sequence[int]) -> None:
        self.matrix, self.bounds = matrix, tuple(int(b) for b in bounds)
        self.shape = (matrix.shape[0], onto.shape[1])
        if (self.bounds[0], self.bounds[-1]) != (0, onto.shape[1]) or list(self.bounds) != sorted(self.bounds):
            raise ValueError(f"bounds {self.bounds[:3]}…{self.bounds[-1]} do not part {onto.shape[1]} columns.")
        self._first, self._onto = onto.indptr.astype(np.int64), onto.indices.astype(np.int32)
        self._edges = np.array(self.bounds[1:], np.int64)
        self._widest = int(np.diff(self._first).max(initial=0))
        # Where what is opened rises with what opens it, nothing has to be sorted and repeats lie side by side: so of the corpus's
        # own regions, and of merged ones.
        self._place: Int32[np.ndarray, " features"] | None = None
        if self._widest < 2 and (np.diff(self._onto) >= 0).all():
            self._place = np.full(matrix.shape[1], -1, np.int32)
            self._place[np.diff(self._first) > 0] = self._onto
        self._last: tuple[Int64[np.ndarray, " cells"], Int64[np.ndarray, " features"]] | None = None

    @property
    def n_blocks(self) -> int:
        """Parts of the columns."""
        return len(self.bounds) - 1

    def announce(self, cells: Int64[np.ndarray, " cells"]) -> None:
        """The system begins to fetch these cells, which will be asked for soon."""
        self.matrix.announce(cells)

    def rows(self, cells: Int64[np.ndarray, " cells"]) -> SparseRows:
        """These cells, in this order."""
        lengths, given = self.matrix.open_in(cells)
        if len(given) and int(given.max()) >= self.matrix.shape[1]:  # compiled loops below look it up unchecked
            raise InputError(
                f"the corpus is damaged: a cell has region {int(given.max()):,} of {self.matrix.shape[1]:,}. `expresser corpus "
                "verify` names the file: copy it again, or build the corpus again."
            )
        offsets = np.zeros(len(cells) * self.n_blocks + 1, np.int32)
        room = len(given) if self._widest < 2 else int(np.diff(self._first)[given].sum())
        found, ends = np.empty(room, np.int32), np.empty(len(cells), np.int64)
        if self._place is not None:
            compiled(_carry_in_order)(given, lengths, self._place, found, ends)
        else:
            seen = np.full(self.shape[1], -1, np.int32)
            compiled(_carry)(given, lengths, self._first, self._onto, seen, found, ends)
        used = int(ends[-1]) if len(ends) else 0
        indices = np.empty(used, np.int32)
        compiled(_deal)(found, ends, self._edges, offsets, indices)
        return SparseRows(
            n_cells=len(cells),
            bounds=self.bounds,
            indices=torch.from_numpy(indices),
            values=None,
            offsets=torch.from_numpy(offsets),
        )

    def lengths(self) -> Int64[np.ndarray, " cells"]:
        """Number of open features of each cell. The first call reads all cells once."""
        return self._lengths

    @cached_property
    def _lengths(self) -> Int64[np.ndarray, " cells"]:
        found, cells = np.zeros(self.shape[0], np.int64), np.arange(self.shape[0])
        for piece in self.matrix.pieces(cells):
            offsets = self.rows(cells[piece]).offsets.numpy().astype(np.int64)
            found[piece] = np.diff(offsets).reshape(self.n_blocks, len(piece)).sum(axis=0)
        return found

    def opened(self, cells: Int64[np.ndarray, " cells"]) -> Int64[np.ndarray, " features"]:
        """In how many of these cells each feature is open: one pass in the order of the disk, remembered for the same cells."""
        if self._last is None or not np.array_equal(self._last[0], cells):
            sums = np.zeros(self.shape[1], np.int64)
            for piece in self.matrix.pieces(cells):
                sums += np.bincount(self.rows(cells[piece]).indices.numpy(), minlength=len(sums))
            self._last = cells.copy(), sums
        return self._last[1].copy()

    def shares(self, cells: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, " features"]:
        """Share of these cells in which each feature is open."""
        return (self.opened(cells) / max(len(cells), 1)).astype(np.float32)


def _gather(first, lengths, indices, found):
    """The entries of each of some rows, one row behind the other."""
    n = 0
    for row in range(len(lengths)):
        for i in range(first[row], first[row] + lengths[row]):
            found[n] = indices[i]
            n += 1


def _carry_in_order(given, lengths, place, found, ends):
    """What each cell's features open, each once, rising: `place` rises with the feature."""
    at, n = 0, 0
    for cell in range(len(lengths)):
        last = -1
        for i in range(at, at + lengths[cell]):
            to = place[given[i]]
            if to > last:  # neither -1 nor a repeat
                found[n] = to
                n += 1
                last = to
        at += lengths[cell]
        ends[cell] = n


def _carry(given, lengths, first, onto, seen, found, ends):
    """The same where a feature may open several, in any order."""
    at, n = 0, 0
    for cell in range(len(lengths)):
        start = n
        for i in range(at, at + lengths[cell]):
            for k in range(first[given[i]], first[np.int64(given[i]) + 1]):
                to = onto[k]
                if seen[to] != cell:
                    seen[to] = cell
                    found[n] = to
                    n += 1
        at += lengths[cell]
        found[start:n] = np.sort(found[start:n])
        ends[cell] = n


def _deal(found, ends, edges, offsets, indices):
    """Runs of each cell's sorted features to bags, block by block and in it cell by cell."""
    cells = len(ends)
    at = 0
    for cell in range(cells):
        block = 0
        while at < ends[cell]:
            while found[at] >= edges[block]:
                block += 1
            start = at
            while at < ends[cell] and found[at] < edges[block]:
                at += 1
            offsets[block * cells + cell + 1] = at - start
    for bag in range(1, len(offsets)):
        offsets[bag] += offsets[bag - 1]
    at = 0
    for cell in range(cells):
        block = 0
        while at < ends[cell]:
            while found[at] >= edges[block]:
                block += 1
            bag = block * cells + cell
            for to in range(offsets[bag], offsets[bag + 1]):
                indices[to] = found[at]
                at += 1
