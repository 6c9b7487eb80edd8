"""Which peaks drive a gene and which genes drive a peak in the eyes of a translator: integrated gradients, cell by cell."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from translate.attribution_path import (
    Path,
    captum,
    cells_at_once,
    device_of,
    frozen,
    mean_input,
    network_input,
    reads_whole_cells,
)
from translate.perturb_names import cell_groups, places, targets_of, tss_distance
from translate.study import Measured, Modality
from translate.translator import Translator

Baseline = Literal["zero", "mean"]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, eq=False)
class Attribution:
    r"""Integrated gradients of one predicted feature: of each cell and input feature,

    .. math:: (x_j - b_j) \int_0^1 \frac{\partial f(b + \alpha (x - b))}{\partial x_j} d\alpha.

    x are the network's own inputs (peaks: 0/1; RNA: standardised ln(1 + size-normalised counts), or counts where it reads
    these), at the cell's own depth all along the path. f is ln(1 + size-normalised expression) of a gene, or the calibrated
    log-odds of a peak. Values add up to `predicted` - `baseline` of each cell, less `delta`, which is what too few steps leave over.

    Source: Sundararajan, Taly, Yan. Axiomatic attribution for deep networks. ICML 2017.
    """

    source: Modality
    to: Modality
    target: str
    number: int  # of the target among the model's features of `to`
    values: sparse.csr_matrix = field(repr=False)  # cells x features of `source`, float32
    predicted: Float64[np.ndarray, " cells"] = field(repr=False)
    baseline: Float64[np.ndarray, " cells"] = field(repr=False)
    delta: Float64[np.ndarray, " cells"] = field(repr=False)

    @cached_property
    def mean(self) -> Float64[np.ndarray, " features"]:
        """Of each input feature, over all cells."""
        return np.asarray(self.values.mean(axis=0, dtype=np.float64)).ravel()

    def without_cells(self) -> "Attribution":
        """The same of all cells together: `values` is one row, their mean."""
        return replace(self, values=sparse.csr_matrix(self.mean[None].astype(np.float32)))

    @property
    def relative_delta(self) -> float:
        """Mean size of the delta as a share of the mean size of what is explained; NaN where there is nothing to explain."""
        explained = np.abs(self.predicted - self.baseline).mean()
        return float(np.abs(self.delta).mean() / explained) if explained > 0 else float("nan")


def attribute(
    translator: Translator,
    data: Any,
    targets: Sequence[str],
    *,
    to: Modality = "rna",
    source: Modality | None = None,
    layer: str | None = None,
    labels: str | None = None,
    baseline: Baseline = "zero",
    n_steps: int = 50,
    unknown_batch: str | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Mean attribution of every input feature to each target, over all cells and over each cell type.

    Parameters
    ----------
    data
        Raw counts of cells: AnnData, a file, or `Measured`. RNA where peaks are the targets, ATAC where genes are.
    targets
        Genes (symbols, Ensembl ids, names) with to="rna", peaks ("chr1:100-200", or what overlaps it) with to="atac".
    labels
        Column of obs with cell types: each is a group beside "all".
    baseline
        Where paths begin: "zero", no open peak or no count, or "mean" of these cells, where closed peaks count too (slower).
    n_steps
        Points of the path, Gauss-Legendre.

    Returns
    -------
    A row for each target, group and feature that any of its cells attribute something to (`attribution_table`).

    Raises
    ------
    InputError
        Where captum is not installed, for an unknown target, and where no cell has anything to attribute to.
    """
    measured = data if isinstance(data, Measured) else translator.read(data, source=source, layer=layer)
    found = each_attribution(
        translator,
        measured,
        targets,
        to=to,
        source=source,
        baseline=baseline,
        n_steps=n_steps,
        unknown_batch=unknown_batch,
        progress=progress,
    )
    groups = cell_groups(measured.obs, labels)
    return pd.concat((attribution_table(translator, one, groups) for one in found), ignore_index=True)


def integrated_gradients(
    translator: Translator, measured: Measured, targets: Sequence[str], **how: Any
) -> list[Attribution]:
    """`each_attribution`, all in memory: cells x entries of every target."""
    return list(each_attribution(translator, measured, targets, **how))


def each_attribution(
    translator: Translator,
    measured: Measured,
    targets: Sequence[str],
    *,
    to: Modality,
    source: Modality | None = None,
    baseline: Baseline = "zero",
    n_steps: int = 50,
    unknown_batch: str | None = None,
    progress: Progress | None = None,
) -> Iterator[Attribution]:
    """The same cell by cell, one `Attribution` for each target, in their order; made when it is asked for.

    One is as large as the cells' own entries, so what is kept of many targets should be less. Bad input is refused at once.
    """
    numbers = targets_of(translator, to, targets)
    source = source or ("atac" if to == "rna" else "rna")
    translator.target(source, to)
    prove(baseline, n_steps, source)
    prove_path(translator, source)
    ours = measured.loaded()
    feed = translator.feed_of(ours, source, unknown_batch)
    matrix = network_input(feed, source)
    if not matrix.nnz:
        what = "open peak" if source == "atac" else "count"
        raise InputError(
            f"{ours.name}: none of its {ours.n_cells:,} cells has any {what} among the features that this model reads, so "
            "there is nothing to attribute to. Give other cells, or features of the model's own genome build."
        )
    base = mean_input(matrix, source) if baseline == "mean" else None
    cuts = list(cells_at_once(matrix, n_steps, dense=base is not None))
    names = translator.var(to).index

    def one(at: int, number: int) -> Attribution:
        pieces = []
        with frozen(
            translator.system
        ):  # only while gradients are taken: whoever asks for targets may leave off between two
            for done, cells in enumerate(cuts, 1):
                batch = feed.batch(cells, (source,), share=len(cells)).to(device_of(translator.system))
                pieces.append(
                    Path.of(translator.system, batch, matrix[cells], base, source, to).attribute(number, n_steps)
                )
                if progress is not None:
                    progress(at * len(cuts) + done, len(cuts) * len(wanted), "attributing")
        values, *others = zip(*pieces)
        whole = sparse.vstack(values, format="csr")
        return Attribution(source, to, str(names[number]), number, whole, *map(np.concatenate, others))

    wanted = list(dict.fromkeys(map(int, numbers)))
    return (one(at, number) for at, number in enumerate(wanted))


def attribution_table(
    translator: Translator, found: Attribution, groups: dict[str, Int64[np.ndarray, " cells"]]
) -> pd.DataFrame:
    """One target over groups of cells: a row for each feature that is not zero in all cells of the group.

    Columns: target, group, rank (by size, 1 first), feature, attribution (mean over the group's cells, in units of the
    prediction), sd (over cells, ddof 1; NaN of one cell), share (of the group's cells where it is not zero: with a baseline of
    zero, where the peak is open or the gene expressed), cells, chrom, start and end (a gene: its start of transcription), and
    distance (`tss_distance`, bases; missing on another chromosome or where the place is not known).
    """
    where = places(translator.var(found.source), found.source)
    distance = tss_distance(translator, found.source, found.number)
    tables = []
    for group, cells in groups.items():
        part = found.values[cells]
        n = len(cells)
        mean = np.asarray(part.sum(axis=0, dtype=np.float64)).ravel() / n
        square = np.asarray(part.multiply(part).sum(axis=0, dtype=np.float64)).ravel() / n
        share = np.bincount(part.indices[part.data != 0], minlength=part.shape[1]) / n
        there = np.flatnonzero(share)
        there = there[np.argsort(-np.abs(mean[there]), kind="stable")]
        spread = np.sqrt(np.maximum(square - mean**2, 0) * n / (n - 1)) if n > 1 else np.full(len(mean), np.nan)
        tables.append(
            pd.DataFrame(
                {
                    "target": found.target,
                    "group": group,
                    "rank": np.arange(1, len(there) + 1),
                    "feature": where.index.to_numpy()[there],
                    "attribution": mean[there],
                    "sd": spread[there],
                    "share": share[there],
                    "cells": n,
                    **{column: where[column].to_numpy()[there] for column in where},
                    "distance": distance[there],
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def prove(baseline: str, n_steps: int, source: Modality) -> None:
    """InputError where attribution cannot be asked for like this, or captum is not there."""
    if baseline not in ("zero", "mean"):
        raise InputError(f"attribution: baseline is {baseline!r}; there is zero and mean.")
    if n_steps < 1:
        raise InputError(f"attribution: {n_steps} steps. Take at least 1; 50 is usual.")
    if source not in ("rna", "atac"):
        raise InputError(f"attribution: to {source} is not supported; features of rna and atac can be attributed to.")
    captum()


def prove_path(translator: Translator, source: Modality) -> None:
    """InputError where a pretrained model inside reads the cells too: what reaches a prediction through it lies on no path."""
    if reads_whole_cells(translator.inputs[source]):
        bridge = translator.system.config.bridge
        raise InputError(
            f"attribution: this {translator.name} reads embeddings of whole cells by {bridge.rna_encoder} (rna_cells: "
            f"{bridge.rna_cells}), and integrated gradients of expression would miss what genes do through these. Knock genes down "
            "and see what is predicted (--knock-down, translate.perturb), or explain a fit without --rna-cells."
        )
