"""The way of cells from a baseline to what was measured, over sparse input, along which predictions are differentiated."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from scipy import sparse
from torch import Tensor

from expresser.errors import InputError
from translate.batches import Batch, SparseRows
from translate.feed import Feed, Input
from translate.preprocess import RnaInput
from translate.study import Modality
from translate.system import System

ENTRIES = 1_000_000  # input entries x points of the path that are in memory at once: 128 MB a layer of 32
LEAST = 1e-6  # probabilities are kept this far from 0 and 1 before their log-odds are taken


@dataclass(frozen=True)
class HeldRows(SparseRows):
    """Rows whose totals are those of the measured cell at every point of the path.

    A first layer that brings all cells to one depth would otherwise undo the path: half of every open peak, brought back to the
    same total, is the cell itself, and the whole change would fall on the first step, where no sum of steps sees it.
    """

    held: Float32[Tensor, " cells"]

    def totals(self) -> Float32[Tensor, " cells"]:
        """Sum of the values of each cell as it was measured."""
        return self.held


def captum() -> Any:
    """captum's IntegratedGradients; InputError where it is not installed."""
    try:
        from captum.attr import IntegratedGradients
    except ImportError as error:
        raise InputError(
            "attribution needs captum, which is not installed: pip install 'expresser[perturb]'."
        ) from error
    return IntegratedGradients


@contextmanager
def frozen(system: System) -> Iterator[None]:
    """Eval mode, no gradient for weights; afterwards all as it was."""
    modes = {module: module.training for module in system.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in system.parameters()}
    try:
        system.eval().requires_grad_(False)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for parameter, want in wanted.items():
            parameter.requires_grad_(want)


@dataclass(frozen=True, eq=False)
class Path:
    """Some cells on their way from the baseline: entries that differ from it, padded to one width, are what moves."""

    system: System
    batch: Batch
    source: Modality
    to: Modality
    context: Tensor | None
    index: Int64[Tensor, "cells width"]  # feature of each entry, ascending
    there: Bool[Tensor, "cells width"]  # False: padding
    values: Float32[Tensor, "cells width"]
    start: Float32[Tensor, "cells width"]
    held: Float32[Tensor, " cells"]
    layouts: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        system: System,
        batch: Batch,
        matrix: sparse.csr_matrix,
        base: Float64[np.ndarray, " features"] | None,
        source: Modality,
        to: Modality,
    ) -> "Path":
        """matrix: the network's input of these cells. base: None, or the mean input at a total of 1 (ATAC) or as it is (RNA)."""
        rows = batch.atac if source == "atac" else batch.rna.inputs
        held = rows.totals()
        n, n_features = matrix.shape
        if base is None:
            lengths = np.diff(matrix.indptr)
            there = np.arange(max(int(lengths.max(initial=0)), 1)) < lengths[:, None]
            index, values = np.zeros(there.shape, np.int64), np.zeros(there.shape, np.float32)
            index[there], values[there] = matrix.indices, matrix.data
            start = np.zeros_like(values)
        else:
            there = np.ones((n, n_features), bool)
            index, values = np.tile(np.arange(n_features), (n, 1)), matrix.toarray().astype(np.float32)
            scale = held.cpu().numpy()[:, None] if source == "atac" else np.ones((n, 1))
            start = (base * scale).astype(np.float32)
        at, mask, ends, begun = (torch.from_numpy(x).to(rows.device) for x in (index, there, values, start))
        with torch.no_grad():
            context = system.context(batch, source=source, to=to)
        return cls(system, batch, source, to, context, at, mask, ends, begun, held)

    def attribute(
        self, number: int, n_steps: int
    ) -> tuple[
        sparse.csr_matrix,
        Float64[np.ndarray, " cells"],
        Float64[np.ndarray, " cells"],
        Float64[np.ndarray, " cells"],
    ]:
        """Attributions of these cells, predictions at both ends of the path, and the convergence delta."""
        n, width = self.values.shape
        at = torch.arange(n, device=self.values.device)

        def forward(values: Tensor, cells: Tensor) -> Tensor:
            return self.predicted(values, cells, number)

        given, delta = captum()(forward).attribute(
            self.values,
            baselines=self.start,
            additional_forward_args=(at,),
            n_steps=n_steps,
            internal_batch_size=max(n, ENTRIES // width),
            return_convergence_delta=True,
        )
        with torch.no_grad():
            ends = [forward(values, at).double().cpu().numpy() for values in (self.values, self.start)]
        there = self.there.cpu().numpy()
        pointers = np.r_[0, there.sum(axis=1).cumsum()]
        arrays = (given.float().cpu().numpy()[there], self.index.cpu().numpy()[there], pointers)
        features = (self.batch.atac if self.source == "atac" else self.batch.rna.inputs).n_features
        return sparse.csr_matrix(arrays, shape=(n, features)), ends[0], ends[1], delta.double().cpu().numpy()

    def predicted(
        self, values: Float[Tensor, "points width"], cells: Int64[Tensor, " points"], number: int
    ) -> Float[Tensor, " points"]:
        """The target feature of these cells with these values of their entries: what is differentiated."""
        batch = self._at(values, cells)
        latent = self.system.encode(batch, source=self.source, to=self.to)
        more = {} if self.context is None else {"context": self.context[cells]}
        out = self.system.decode(latent, source=self.source, to=self.to, features=slice(number, number + 1), **more)[
            :, 0
        ]
        return torch.logit(out, LEAST) if self.to == "atac" else out

    def _at(self, values: Float[Tensor, "points width"], cells: Int64[Tensor, " points"]) -> Batch:
        """A batch of points of the path, all else that is known of the cells as it is."""
        own = self.batch.atac if self.source == "atac" else self.batch.rna.inputs
        order, indices, offsets = self._layout(cells, own.bounds)
        flat = values[self.there[cells]][order]
        rows = HeldRows(len(cells), own.bounds, indices, flat, offsets, self.held[cells])
        taken: dict[str, Any] = {
            name: part[cells]
            for name in ("batch_codes", "label_codes")
            if (part := getattr(self.batch, name)) is not None
        }
        if self.source == "atac":
            taken["atac_cells"] = rows
        else:
            taken["rna_cells"] = replace(self.batch.rna, inputs=rows, library=self.batch.rna.library[cells])
        return replace(self.batch, rows=self.batch.rows[cells.cpu().numpy()], share=len(cells), **taken)

    def _layout(
        self, cells: Int64[Tensor, " points"], bounds: tuple[int, ...]
    ) -> tuple[Int64[Tensor, " entries"], Int[Tensor, " entries"], Int[Tensor, " bags_and_one"]]:
        """How entries, listed point by point, become those of `SparseRows`; the same for every step, so worked out once."""
        key = (len(cells), int(cells[0]), int(cells[-1]))
        if key not in self.layouts:
            there = self.there[cells]
            index = self.index[cells][there]
            point = torch.arange(len(cells), device=cells.device)[:, None].expand_as(there)[there]
            edges = torch.tensor(bounds[1:], device=cells.device)
            bag = torch.bucketize(index, edges, right=True) * len(cells) + point
            order = torch.argsort(bag, stable=True)
            lengths = torch.bincount(bag, minlength=(len(bounds) - 1) * len(cells))
            offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
            self.layouts[key] = (order, index[order].int(), offsets)
        return self.layouts[key]


def reads_whole_cells(found: Input) -> bool:
    """Whether a pretrained model inside a network reads the cells too, by all genes that it knows (`Bridge.reads_cells`)."""
    return isinstance(found, RnaInput) and found.pretrained is not None and found.pretrained.vocab is not None


def device_of(system: System) -> torch.device:
    """Where its weights are."""
    return next(system.parameters()).device


def network_input(feed: Feed, source: Modality) -> sparse.csr_matrix:
    """What the network reads of all cells: 0/1 of peaks, standardised expression less that of a zero count."""
    cells = np.arange(feed.n_cells)
    if source == "rna":
        rows = feed.batch(cells, ("rna",), share=len(cells)).rna.inputs
    else:
        rows = feed.batch(cells, ("atac",), share=len(cells)).atac
    of_bag = np.tile(cells, rows.n_blocks)
    of_entry = np.repeat(of_bag, np.diff(rows.offsets.numpy()))
    values = np.ones(len(rows.indices), np.float32) if rows.values is None else rows.values.numpy()
    matrix = sparse.csr_matrix((values, (of_entry, rows.indices.numpy())), shape=(len(cells), rows.n_features))
    matrix.sort_indices()
    return matrix


def mean_input(matrix: sparse.csr_matrix, source: Modality) -> Float64[np.ndarray, " features"]:
    """The mean over cells; of peaks that of cells brought to a total of 1, so that depth is no part of what is attributed."""
    if source == "atac":
        totals = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1.0)
        matrix = sparse.diags_array(1 / totals) @ matrix
    return np.asarray(matrix.mean(axis=0)).ravel().astype(np.float64)


def cells_at_once(matrix: sparse.csr_matrix, n_steps: int, *, dense: bool) -> Iterator[Int64[np.ndarray, " cells"]]:
    """Runs of cells whose whole paths are about `ENTRIES` entries, one cell at least."""
    longest = matrix.shape[1] if dense else max(int(np.diff(matrix.indptr).max(initial=1)), 1)
    step = max(1, min(512, ENTRIES // (n_steps * longest)))
    for first in range(0, matrix.shape[0], step):
        yield np.arange(first, min(first + step, matrix.shape[0]))
