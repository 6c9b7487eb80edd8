"""Batches of sparse measurements whose features lie in explicit blocks (chromosomes): only non-zeros travel."""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64, Shaped
from scipy import sparse
from torch import Tensor
from torch.nn import functional

from expresser.model.keyed import splitmix64


@dataclass(frozen=True)
class Block:
    """The non-zeros of one block of a batch, the block seen as one row-major vector: entry e is `values[e]` at `flat[e]`."""

    flat: Int[Tensor, " entries"]
    values: Float[Tensor, " entries"] | None  # None: all are 1
    start: int  # number of the block's first feature
    stop: int

    def amounts(self) -> Float[Tensor, " entries"]:
        """The values, written out where they are all 1."""
        return torch.ones_like(self.flat, dtype=torch.float32) if self.values is None else self.values


@dataclass(frozen=True)
class SparseRows:
    """Cells as rows of a sparse matrix whose columns are parted at `bounds`; entries sorted by (block, cell, feature).

    A *bag* is one cell's entries in one block: bag ``block * n_cells + cell`` is ``offsets[bag] : offsets[bag + 1]``.
    """

    n_cells: int
    bounds: tuple[int, ...]  # 0 = bounds[0] <= … <= bounds[-1] = number of features
    indices: Int[Tensor, " entries"]  # feature numbers, int32
    values: Float[Tensor, " entries"] | None  # None: all are 1
    offsets: Int[Tensor, " bags_and_one"]  # int32

    @property
    def device(self) -> torch.device:
        """Where the entries are."""
        return self.indices.device

    @property
    def n_features(self) -> int:
        """Columns of the matrix."""
        return self.bounds[-1]

    @property
    def n_blocks(self) -> int:
        """Parts of the columns."""
        return len(self.bounds) - 1

    def block(self, number: int) -> Block:
        """The entries of one block."""
        span = slice(self._starts[number], self._starts[number + 1])
        values = None if self.values is None else self.values[span]
        return Block(self._flat[span], values, self.bounds[number], self.bounds[number + 1])

    @cached_property
    def _starts(self) -> list[int]:
        """Where the entries of each block begin, and where the last end."""
        return self.offsets[torch.arange(self.n_blocks + 1, device=self.offsets.device) * self.n_cells].tolist()

    @cached_property
    def _flat(self) -> Int[Tensor, " entries"]:
        """Where each entry lies in its block; worked out once for all that read the batch."""
        bounds = torch.tensor(self.bounds, device=self.indices.device)
        cells = torch.arange(self.n_cells, device=self.indices.device)
        first = (cells * bounds.diff()[:, None] - bounds[:-1, None]).flatten()
        if self.n_cells * max(b - a for a, b in pairwise(self.bounds)) < 2**31:
            first = first.int()
        return torch.repeat_interleave(first, self.offsets.diff(), output_size=len(self.indices)).add_(self.indices)

    def totals(self) -> Float32[Tensor, " cells"]:
        """Sum of the values of each cell."""
        lengths = self.offsets.long().diff().view(self.n_blocks, self.n_cells)
        if self.values is None:
            return lengths.sum(dim=0).float()
        cells = torch.arange(self.n_cells, device=self.device).repeat(self.n_blocks)
        of_entry = torch.repeat_interleave(cells, lengths.flatten(), output_size=len(self.indices))
        return torch.zeros(self.n_cells, device=self.device).index_add_(0, of_entry, self.values.float())

    def to(self, device: torch.device) -> "SparseRows":
        """On this device."""
        values = None if self.values is None else self.values.to(device, non_blocking=True)
        indices = self.indices.to(device, non_blocking=True)
        return SparseRows(self.n_cells, self.bounds, indices, values, self.offsets.to(device, non_blocking=True))

    def dense(self) -> Float32[Tensor, "cells features"]:
        """Written out, zeros and all: for tests and for what cannot be sparse."""
        full = torch.zeros(self.n_cells, self.n_features, device=self.indices.device)
        cells = torch.arange(self.n_cells, device=self.indices.device).repeat(self.n_blocks)
        full[torch.repeat_interleave(cells, self.offsets.diff()), self.indices] = (
            torch.ones(()) if self.values is None else self.values
        )
        return full


@runtime_checkable
class BlockedCells(Protocol):
    """Cells that are read by blocks of their features, wherever they lie."""

    bounds: tuple[int, ...]
    shape: tuple[int, int]

    def rows(self, cells: Int64[np.ndarray, " cells"]) -> SparseRows:
        """These cells, in this order."""

    def lengths(self) -> Int64[np.ndarray, " cells"]:
        """Number of non-zeros of each cell."""

    def shares(self, cells: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, " features"]:
        """Mean of each column over these cells."""


class BlockedMatrix:
    """A sparse matrix of which cells are read by blocks of columns: copied bag by bag, not searched.

    Where indices are sorted, a bag is a run of entries: the matrix is kept as it is, and seen as one whose rows are bags.
    """

    def __init__(self, matrix: sparse.csr_matrix, bounds: Sequence[int], *, binary: bool = False) -> None:
        self.bounds = tuple(int(b) for b in bounds)
        self.binary, self.shape = binary, matrix.shape
        if (self.bounds[0], self.bounds[-1]) != (0, matrix.shape[1]) or list(self.bounds) != sorted(self.bounds):
            raise ValueError(f"bounds {self.bounds[:3]}…{self.bounds[-1]} do not part {matrix.shape[1]} columns.")
        if not matrix.has_sorted_indices:
            matrix = matrix.sorted_indices()
        inner = np.array(self.bounds[1:-1], matrix.indices.dtype)
        starts = np.empty((matrix.shape[0], self.n_blocks), matrix.indptr.dtype)
        starts[:, 0] = matrix.indptr[:-1]
        for row, (a, b) in enumerate(pairwise(matrix.indptr.tolist())):
            starts[row, 1:] = np.searchsorted(matrix.indices[a:b], inner)
        starts[:, 1:] += starts[:, :1]
        data = np.ones(matrix.nnz, np.int8) if binary else matrix.data.astype(np.float32, copy=False)
        pointers = np.append(starts.ravel(), matrix.indptr[-1:])
        self._bags = sparse.csr_matrix((data, matrix.indices, pointers), shape=(starts.size, matrix.shape[1]))

    @property
    def n_blocks(self) -> int:
        """Parts of the columns."""
        return len(self.bounds) - 1

    def rows(self, cells: Int64[np.ndarray, " cells"]) -> SparseRows:
        """These cells, in this order."""
        taken = self._bags[(cells * self.n_blocks + np.arange(self.n_blocks)[:, None]).ravel()]
        return SparseRows(
            n_cells=len(cells),
            bounds=self.bounds,
            indices=torch.from_numpy(taken.indices.astype(np.int32, copy=False)),
            values=None if self.binary else torch.from_numpy(taken.data),
            offsets=torch.from_numpy(taken.indptr.astype(np.int32, copy=False)),
        )

    def lengths(self) -> Int64[np.ndarray, " cells"]:
        """Number of non-zeros of each cell."""
        return np.diff(self._bags.indptr[:: self.n_blocks]).astype(np.int64)

    def shares(self, cells: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, " features"]:
        """Mean of each column over these cells."""
        sums = np.zeros(self.shape[1])
        for start in range(0, len(cells), 4096):
            rows = self.rows(cells[start : start + 4096])
            weights = None if rows.values is None else rows.values.numpy()
            sums += np.bincount(rows.indices.numpy(), weights, minlength=len(sums))
        return (sums / max(len(cells), 1)).astype(np.float32)


def sparse_rows(matrix: sparse.csr_matrix, bounds: Sequence[int], *, binary: bool = False) -> SparseRows:
    """A whole matrix as one batch."""
    return BlockedMatrix(matrix, bounds, binary=binary).rows(np.arange(matrix.shape[0]))


def within(fine: Sequence[int], coarse: Sequence[int]) -> list[int]:
    """Number of the coarse block that each fine block lies in; ValueError where one lies in two, or the ends differ."""
    if fine[-1] != coarse[-1] or not set(coarse) <= set(fine):
        raise ValueError(
            f"{len(fine) - 1} blocks up to {fine[-1]} do not part {len(coarse) - 1} blocks up to {coarse[-1]}."
        )
    return [min(bisect_right(coarse, start), len(coarse) - 1) - 1 for start in fine[:-1]]


def thinned(rows: SparseRows, share: float, key: Int[Tensor, " cells"]) -> SparseRows:
    """The entries left after each is dropped with probability `share`, those that stay scaled up by 1 / (1 - share).

    Whether an entry is dropped is a function of the cell's key and the feature alone: the same however cells are dealt out.
    """
    lengths = rows.offsets.long().diff()
    of_bag = key.repeat(rows.n_blocks)
    drawn = splitmix64(torch.repeat_interleave(of_bag, lengths, output_size=len(rows.indices)) + rows.indices)
    keep = (drawn & 0xFFFFFF) >= int(share * (1 << 24))
    bags = torch.arange(len(lengths), device=lengths.device)
    kept = torch.bincount(torch.repeat_interleave(bags, lengths)[keep], minlength=len(lengths))
    offsets = functional.pad(kept.cumsum(0), (1, 0)).to(rows.offsets.dtype)
    indices = rows.indices[keep]
    values = torch.ones_like(indices, dtype=torch.float32) if rows.values is None else rows.values[keep]
    return SparseRows(rows.n_cells, rows.bounds, indices, values / (1 - share), offsets)


@dataclass(frozen=True)
class RnaCells:
    """A batch's expression: what the encoder reads and what the likelihood judges.

    inputs: standardised values less those of a zero count, or the counts themselves (`System.raw_inputs`); targets: size-normalised
    counts, linear, or the counts themselves where the system asks for them (`System.judges_counts`); library: the cell's
    total count over the model's genes.
    """

    inputs: SparseRows
    targets: SparseRows
    library: Float32[Tensor, " cells"]
    whole: SparseRows | None = None  # raw counts over a pretrained model's genes
    embedding: Float32[Tensor, "cells d"] | None = None  # what that model makes of them, where it is known already

    def to(self, device: torch.device) -> "RnaCells":
        """On this device."""
        parts = {f.name: part.to(device) for f in fields(self) if (part := getattr(self, f.name)) is not None}
        return RnaCells(**parts)


@dataclass(frozen=True)
class ReferenceCells:
    """Where a batch's cells lie in an embedding of another modality (`translate.covariates.Reference`)."""

    values: Float32[Tensor, "cells dim"]
    weight: Float32[Tensor, " cells"]  # 0: not known
    group: Int[Tensor, " cells"]  # cells are compared inside a group only

    def to(self, device: torch.device) -> "ReferenceCells":
        """On this device."""
        return ReferenceCells(self.values.to(device), self.weight.to(device), self.group.to(device))


@dataclass(frozen=True)
class Batch:
    """Some cells, the same in every modality given; what was not measured is None.

    share: number of cells of the whole step, over all processes. Losses are sums over the cells here divided by it, so
    that summing them over processes gives the mean over the step. beside: other cells, as many, of the same step
    (`translate.phases.Beside`).
    """

    rows: Shaped[np.ndarray, " cells"]
    share: int
    rna_cells: RnaCells | None = None
    atac_cells: SparseRows | None = None
    protein_cells: Float32[Tensor, "cells proteins"] | None = None
    batch_codes: Int[Tensor, " cells"] | None = None
    label_codes: Int[Tensor, " cells"] | None = None
    reference_cells: ReferenceCells | None = None
    beside: tuple["Batch", ...] = ()

    def to(self, device: torch.device) -> "Batch":
        """On this device."""
        if device.type == "cpu":
            return self
        parts = ("rna_cells", "atac_cells", "protein_cells", "batch_codes", "label_codes", "reference_cells")
        there = {name: part.to(device) for name in parts if (part := getattr(self, name)) is not None}
        return replace(self, **there, beside=tuple(other.to(device) for other in self.beside))

    @property
    def labels(self) -> Int[Tensor, " cells"]:
        """Number of each cell's label, -1 for none; a ValueError where no labels were read."""
        if self.label_codes is None:
            raise ValueError("this batch does not say what its cells are labelled as.")
        return self.label_codes

    @property
    def sources(self) -> Int[Tensor, " cells"]:
        """Number of the batch (donor, sample, study) that each cell comes from; a ValueError where it is not known."""
        if self.batch_codes is None:
            raise ValueError("this batch does not say where its cells come from.")
        return self.batch_codes

    @property
    def reference(self) -> ReferenceCells:
        """Where the cells lie in another embedding; a ValueError where none was given."""
        if self.reference_cells is None:
            raise ValueError("this batch has no reference embedding.")
        return self.reference_cells

    @property
    def rna(self) -> RnaCells:
        """The expression; a ValueError where it was not measured."""
        if self.rna_cells is None:
            raise ValueError("this batch has no RNA.")
        return self.rna_cells

    @property
    def atac(self) -> SparseRows:
        """The open peaks; a ValueError where they were not measured."""
        if self.atac_cells is None:
            raise ValueError("this batch has no ATAC.")
        return self.atac_cells

    @property
    def protein(self) -> Float32[Tensor, "cells proteins"]:
        """Centred log-ratios of protein counts; a ValueError where they were not measured."""
        if self.protein_cells is None:
            raise ValueError("this batch has no protein.")
        return self.protein_cells

    def __len__(self) -> int:
        return len(self.rows)

    def with_dropout(self, share: float, key: int) -> "Batch":
        """The same cells with a share of the encoders' sparse input dropped (`thinned`); targets are untouched.

        Only what encoders read is meant to come from the result: losses are taken against the batch itself.
        """
        if share == 0:
            return self
        own = splitmix64(torch.from_numpy(self.rows.astype(np.int64)) + key)
        rna, atac = self.rna_cells, self.atac_cells
        device = (rna.inputs if rna is not None else atac if atac is not None else self.protein).device
        own = own.to(device)
        return replace(
            self,
            rna_cells=None if rna is None else replace(rna, inputs=thinned(rna.inputs, share, own)),
            atac_cells=None if atac is None else thinned(atac, share, splitmix64(own)),
        )
