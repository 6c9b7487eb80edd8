"""From measured cells to batches: aligned once, sliced and standardised a batch at a time, sparse throughout."""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from scipy import sparse
from torch import nn

from translate.batches import Batch, BlockedCells, BlockedMatrix, ReferenceCells, RnaCells, SparseRows, sparse_rows
from translate.blocks import SparseLinear
from translate.covariates import BatchColumn, LabelColumn, Reference
from translate.heads import CountHead, LevelHead, OpenHead
from translate.large import is_large
from translate.preprocess import AtacInput, ProteinInput, RnaInput
from translate.stored import LargeMatrix, StoredBlocks, StoredMatrix
from translate.study import Measured, Modality, Study

Input = RnaInput | AtacInput | ProteinInput
Inputs = Mapping[Modality, Input]

# Features are judged in blocks of at most this many: 512 cells of them are 1 MB, which a core's cache holds. A GPU wants more.
BLOCK = 16_384 if torch.accelerator.is_available() else 512


# Batches of cells on disk: this many are on their way to memory, and this many are read before they are asked for.
AHEAD, READ_AHEAD = 8, 2


def rna_input(inputs: Inputs) -> RnaInput:
    """What was fitted for RNA; a ValueError where there is none."""
    found = inputs.get("rna")
    if not isinstance(found, RnaInput):
        raise ValueError(f"there is no RNA among {', '.join(inputs)}.")
    return found


def atac_input(inputs: Inputs) -> AtacInput:
    """What was fitted for ATAC; a ValueError where there is none."""
    found = inputs.get("atac")
    if not isinstance(found, AtacInput):
        raise ValueError(f"there is no ATAC among {', '.join(inputs)}.")
    return found


def gene_bounds(n_genes: int) -> tuple[int, ...]:
    """Where the genes are parted."""
    return finer((0, n_genes))


def peak_bounds(inputs: Inputs) -> tuple[int, ...]:
    """Where the peaks of each chromosome begin, and where the last ends: peaks are in canonical order."""
    regions = atac_input(inputs).regions
    counts = np.bincount(regions.chrom, minlength=len(regions.chroms))
    return (0, *np.cumsum(counts).tolist())


def finer(bounds: Sequence[int]) -> tuple[int, ...]:
    """The same bounds and more, so that no block has more than `BLOCK` features."""
    return (0, *(cut for a, b in pairwise(bounds) for cut in (*range(a + BLOCK, b, BLOCK), b)))


@dataclass(frozen=True, eq=False)
class Feed:
    """Cells ready to be read in any order. A cell without a modality has row -1 in it."""

    inputs: Inputs
    rows: Mapping[Modality, Int64[np.ndarray, " cells"]]
    rna_counts: sparse.csr_matrix | None = None  # raw, over the model's genes
    whole_counts: sparse.csr_matrix | None = None  # raw, over a pretrained model's genes, where it reads the cells too
    embedding: Float32[np.ndarray, "rows d"] | None = None  # by that model, where it is worked out beforehand
    atac_open: BlockedCells | None = None
    protein_values: Float32[np.ndarray, "rows proteins"] | None = None
    batch_codes: Int64[np.ndarray, " cells"] | None = None
    label_codes: Int64[np.ndarray, " cells"] | None = None
    reference: Reference | None = None
    counts: bool = False  # RNA is judged by its counts, not by size-normalised ones
    raw_inputs: bool = False  # encoders read RNA's counts, not standardised values (`System.raw_inputs`)

    @classmethod
    def of(
        cls,
        study: Study,
        inputs: Inputs,
        *,
        batches: BatchColumn | None = None,
        labels: LabelColumn | None = None,
        reference: Reference | None = None,
        counts: bool = False,
    ) -> "Feed":
        """Every cell of the study, over the genes, peaks and proteins of the model, and what else is known of it."""
        feed = cls(
            inputs=inputs,
            rows=study.rows,
            batch_codes=None if batches is None else batches.codes(study.obs),
            label_codes=None if labels is None else labels.codes(study.obs),
            reference=reference,
            counts=counts,
        )
        for modality, measured in study.measured.items():
            if modality in inputs:
                feed = feed._with(modality, measured)
        return feed

    @classmethod
    def of_one(cls, measured: Measured, modality: Modality, inputs: Inputs) -> "Feed":
        """The cells of one measurement."""
        rows: dict[Modality, Int64[np.ndarray, " cells"]] = {modality: np.arange(measured.n_cells)}
        return cls(inputs=inputs, rows=rows)._with(modality, measured)

    def _with(self, modality: Modality, measured: Measured) -> "Feed":
        found = self.inputs[modality]
        if isinstance(found, RnaInput):
            reads_cells = found.pretrained is not None and found.pretrained.vocab is not None
            whole = found.pretrained.counts(measured) if found.pretrained is not None and reads_cells else None
            return replace(self, rna_counts=found.align(measured), whole_counts=whole)
        if isinstance(found, AtacInput):
            bounds, matrix = finer(peak_bounds(self.inputs)), measured.matrix
            if isinstance(matrix, StoredMatrix) or is_large(matrix):
                there = matrix if isinstance(matrix, StoredMatrix) else LargeMatrix(matrix)
                return replace(self, atac_open=StoredBlocks(there, found.onto(measured), bounds))
            return replace(self, atac_open=BlockedMatrix(found.align(measured), bounds, binary=True))
        return replace(self, protein_values=found.align(measured))

    @property
    def n_cells(self) -> int:
        """Cells, whatever was measured in them."""
        return len(next(iter(self.rows.values())))

    def has(self, modality: Modality) -> Bool[np.ndarray, " cells"]:
        """Which cells were measured in this modality; none where it was not read."""
        return self.rows[modality] >= 0 if modality in self.rows else np.zeros(self.n_cells, bool)

    def mean_expression(self, cells: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, " genes"]:
        """Mean size-normalised count of each gene over the cells that have RNA."""
        at, found = self.rows["rna"][cells], self.inputs["rna"]
        if self.rna_counts is None or not isinstance(found, RnaInput):
            raise ValueError("no RNA was read.")
        at = at[at >= 0]
        sums = np.zeros(self.rna_counts.shape[1])
        for start in range(0, len(at), 4096):
            sums += np.asarray(found.targets(self.rna_counts[at[start : start + 4096]]).sum(axis=0)).ravel()
        return (sums / max(len(at), 1)).astype(np.float32)

    def open_share(self, cells: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, " peaks"]:
        """Share of the cells that have ATAC in which each peak is open."""
        if self.atac_open is None:
            raise ValueError("no ATAC was read.")
        at = self.rows["atac"][cells]
        return self.atac_open.shares(at[at >= 0])

    def mean_protein(self, cells: Int64[np.ndarray, " cells"]) -> Float32[np.ndarray, " proteins"]:
        """Mean centred log-ratio of each protein over the cells that have them."""
        if self.protein_values is None:
            raise ValueError("no protein was read.")
        at = self.rows["protein"][cells]
        return self.protein_values[at[at >= 0]].mean(axis=0)

    def median_open(self, cells: Int64[np.ndarray, " cells"]) -> float:
        """Median number of open peaks of the cells that have any; 1 where none has."""
        if self.atac_open is None:
            raise ValueError("no ATAC was read.")
        at = self.rows["atac"][cells]
        opened = self.atac_open.lengths()[at[at >= 0]]
        return float(np.median(opened[opened > 0])) if opened.any() else 1.0

    def batch(self, cells: Int64[np.ndarray, " cells"], modalities: Sequence[Modality], *, share: int) -> Batch:
        """These cells in these modalities; `share`: cells of the whole step.

        Raises ValueError where one of them was not measured.
        """
        batch = Batch(
            rows=cells,
            share=share,
            batch_codes=None if self.batch_codes is None else torch.from_numpy(self.batch_codes[cells]),
            label_codes=None if self.label_codes is None else torch.from_numpy(self.label_codes[cells]),
            reference_cells=self._reference(cells),
        )
        for modality in modalities:
            at = self.rows[modality][cells]
            if (at < 0).any():
                raise ValueError(f"cell {int(cells[at < 0][0])} was not measured in {modality}.")
            if modality == "rna":
                batch = replace(batch, rna_cells=self._rna(at))
            elif modality == "atac":
                batch = replace(batch, atac_cells=self._atac(at))
            else:
                batch = replace(batch, protein_cells=self._protein(at))
        return batch

    def batches(
        self, cuts: Sequence[Int64[np.ndarray, " _"]], modalities: Sequence[Modality], *, shares: Sequence[int]
    ) -> Iterator[Batch]:
        """`batch` of each of these cuts, in order; those that lie on disk are read by a thread before they are asked for."""
        pairs = list(zip(cuts, shares))
        stored = self.atac_open if "atac" in modalities and isinstance(self.atac_open, StoredBlocks) else None
        if stored is None:
            yield from (self.batch(cells, modalities, share=share) for cells, share in pairs)
            return
        rows, blocks = self.rows["atac"], stored

        def announce(number: int) -> None:
            if number < len(pairs) and ((at := rows[pairs[number][0]]) >= 0).all():
                blocks.announce(at)

        ready: deque[Future[Batch]] = deque()
        reader = ThreadPoolExecutor(max_workers=1)
        try:
            for number in range(-AHEAD, len(pairs)):
                if 0 <= number + AHEAD < len(pairs):
                    reader.submit(announce, number + AHEAD)
                if 0 <= number + READ_AHEAD < len(pairs):
                    cells, share = pairs[number + READ_AHEAD]
                    ready.append(reader.submit(self.batch, cells, modalities, share=share))
                if number >= 0:
                    yield ready.popleft().result()
        finally:
            reader.shutdown(cancel_futures=True)

    def _reference(self, cells: Int64[np.ndarray, " cells"]) -> ReferenceCells | None:
        if self.reference is None:
            return None
        parts = (self.reference.values, self.reference.weight, self.reference.group)
        return ReferenceCells(*(torch.from_numpy(part[cells]) for part in parts))

    def _rna(self, at: Int64[np.ndarray, " cells"]) -> RnaCells:
        if self.rna_counts is None:
            raise ValueError("no RNA was read.")
        found = rna_input(self.inputs)
        counts, genes = self.rna_counts[at], self.rna_counts.shape[1]
        return RnaCells(
            inputs=sparse_rows(counts if self.raw_inputs else found.inputs(counts), (0, genes)),
            targets=sparse_rows(counts if self.counts else found.targets(counts), gene_bounds(genes)),
            library=torch.from_numpy(np.asarray(counts.sum(axis=1), np.float32).ravel()),
            whole=self.whole(at) if self.embedding is None else None,
            embedding=None if self.embedding is None else torch.from_numpy(self.embedding[at]),
        )

    def embedded(self, embedding: Float32[np.ndarray, "rows d"]) -> "Feed":
        """With embeddings of all rows of the RNA, which then need no counts over the pretrained model's genes."""
        return replace(self, embedding=embedding, whole_counts=None)

    def whole(self, at: Int64[np.ndarray, " cells"]) -> SparseRows | None:
        """Raw counts of these rows of the RNA over a pretrained model's genes, where it reads them."""
        return (
            None if self.whole_counts is None else sparse_rows(self.whole_counts[at], (0, self.whole_counts.shape[1]))
        )

    def _atac(self, at: Int64[np.ndarray, " cells"]) -> SparseRows:
        if self.atac_open is None:
            raise ValueError("no ATAC was read.")
        return self.atac_open.rows(at)

    def _protein(self, at: Int64[np.ndarray, " cells"]) -> torch.Tensor:
        if self.protein_values is None:
            raise ValueError("no protein was read.")
        return torch.from_numpy(self.protein_values[at])


def start_from_data(system: nn.Module, feed: Feed, cells: Int64[np.ndarray, " cells"], *, base_rates: bool) -> None:
    """What these training cells decide before the first step, in place.

    The depth that scaled layers bring cells to and, with `base_rates`, output layers that begin at the mean of each gene,
    peak and protein: from Xavier weights a network spends its first epochs learning which peaks are ever open.
    """
    measured = {
        modality: (feed.rows[modality][cells] >= 0).any() if modality in feed.rows else False
        for modality in feed.inputs
    }
    for module in system.modules():
        if isinstance(module, SparseLinear) and module.typical is not None and measured["atac"]:
            module.typical.fill_(feed.median_open(cells))
        elif base_rates and isinstance(module, CountHead) and measured["rna"]:
            module.start_at(torch.from_numpy(feed.mean_expression(cells)))
        elif base_rates and isinstance(module, OpenHead) and measured["atac"]:
            module.start_at(torch.from_numpy(feed.open_share(cells)))
        elif base_rates and isinstance(module, LevelHead) and measured["protein"]:
            module.start_at(torch.from_numpy(feed.mean_protein(cells)))
