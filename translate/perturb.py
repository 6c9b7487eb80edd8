"""Perturb and translate: peaks opened or closed, genes knocked down or raised, and what the model then predicts, against chance."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from translate.align import match_genes
from translate.attribution_path import reads_whole_cells
from translate.feed import Inputs
from translate.peak_links import false_discovery
from translate.perturb_names import cell_groups, genes_named, peaks_listed, places
from translate.predicted import Decoded
from translate.preprocess import AtacInput, RnaInput
from translate.study import Measured, Modality
from translate.translator import Translator

Progress = Callable[[int, int, str], None]

NEIGHBOURS = 200  # features nearest in how often they are open, or in mean expression, that a random one is drawn from
_ENTRIES = 1 << 24  # predicted values in memory at once: 64 MB


@dataclass(frozen=True, eq=False)
class Change:
    """What is done to a cell: features of one modality by number. ATAC: `factor` 0 closes, 1 opens. RNA: expression times it.

    A factor above 1 raises a gene that a cell does not express to that many times the mean of the cells that do.
    """

    source: Modality
    features: Int64[np.ndarray, " changed"]
    factor: Float64[np.ndarray, " changed"]

    def __post_init__(self) -> None:
        bad = ~np.isfinite(self.factor) | (self.factor < 0)
        if bad.any():
            raise InputError(f"perturbation: a factor of {self.factor[np.argmax(bad)]}. Give a number from 0 (off) on.")
        if not len(self.features):
            raise InputError("perturbation: nothing is changed. Name at least one peak or gene.")
        if len(np.unique(self.features)) < len(self.features):
            raise InputError("perturbation: one feature is changed twice, say both opened and closed. Name each once.")

    @classmethod
    def of(
        cls,
        translator: Translator,
        *,
        close: Sequence[str] = (),
        opened: Sequence[str] = (),
        knock_down: Sequence[str] = (),
        over_express: Sequence[str] = (),
    ) -> "Change":
        """From names: peaks and BED files; GENE or GENE=factor (knock-down: 0 where none is given; over-expression: 2)."""
        peaks, genes = bool(close or opened), bool(knock_down or over_express)
        if peaks == genes:
            what = "both peaks and genes are" if peaks else "neither peaks nor genes are"
            raise InputError(
                f"perturbation: {what} to be changed, but a translator reads one of the two at a time. Close or open peaks "
                "(ATAC), or knock down or over-express genes (RNA)."
            )
        if peaks:
            parts = [(peaks_listed(translator, close, "--close"), 0.0)] if close else []
            parts += [(peaks_listed(translator, opened, "--open"), 1.0)] if opened else []
            source: Modality = "atac"
        else:
            named = [(text, 0.0, "--knock-down") for text in knock_down] + [
                (t, 2.0, "--over-express") for t in over_express
            ]
            parts = [_gene(translator, *one) for one in named]
            source = "rna"
        features = np.concatenate([found for found, _ in parts])
        return cls(source, features, np.repeat([factor for _, factor in parts], [len(found) for found, _ in parts]))

    def on(self, matrix: sparse.csr_matrix, median_library: float = 1.0) -> sparse.csr_matrix:
        """The aligned counts (or 0/1) of cells after the change; other features keep their counts."""
        columns = sparse.csc_matrix(matrix[:, self.features]).toarray().astype(np.float64)
        if self.source == "atac":
            new = np.broadcast_to(self.factor, columns.shape)
        else:
            library = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1.0)[:, None] / median_library
            level = columns / library
            expressed = (columns > 0).sum(axis=0)
            usual = np.divide(level.sum(axis=0), expressed, out=np.zeros(len(expressed)), where=expressed > 0)
            level = np.where((self.factor > 1) & (columns == 0), usual, level)
            new = level * self.factor * library
        added = sparse.coo_matrix(new - columns)
        shape = matrix.shape
        delta = sparse.csr_matrix((added.data, (added.row, self.features[added.col])), shape=shape)
        out = sparse.csr_matrix(matrix.astype(np.float64) + delta).astype(np.float32)
        out.data[np.abs(out.data) < 1e-6] = 0  # what was taken away to the last, but for rounding
        out.eliminate_zeros()
        out.sort_indices()
        return out

    def drawn(self, level: Float64[np.ndarray, " features"], rng: np.random.Generator) -> "Change":
        """The same done to as many other features, each drawn from those nearest to it in `level`; none is one of these."""
        free = np.setdiff1d(np.arange(len(level)), self.features)
        if len(free) < len(self.features):
            raise InputError(
                f"perturbation: {len(self.features):,} of {len(level):,} features are changed, which leaves too few to compare "
                "with. Change fewer, or take no null draws (0)."
            )
        taken = np.empty(len(self.features), np.int64)
        left = free[np.argsort(level[free], kind="stable")]
        waiting = np.arange(len(taken))
        # All draw at once; of those that drew the same feature the first has it, and the others draw again from what is left.
        while len(waiting):
            own, theirs = level[self.features[waiting]], level[left]
            # Among features of exactly its level it stands anywhere, so that each of them may be drawn.
            at = rng.integers(
                np.searchsorted(theirs, own, "left"), np.searchsorted(theirs, own, "right"), endpoint=True
            )
            n = min(NEIGHBOURS, len(left))
            pick = np.clip(at - n // 2, 0, len(left) - n) + rng.integers(n, size=len(waiting))
            picked, first = np.unique(pick, return_index=True)
            taken[waiting[first]] = left[picked]
            waiting, left = np.delete(waiting, first), np.delete(left, picked)
        return replace(self, features=taken)


@dataclass(frozen=True, eq=False)
class Effects:
    """What a change does to every predicted feature: `table` (see `perturb`), and of how many cells the input changed."""

    table: pd.DataFrame = field(repr=False)
    change: Change
    to: Modality
    n_cells: int
    n_changed: int  # cells whose input is another after the change
    n_null: int


def perturb(
    translator: Translator,
    data: Any,
    change: Change,
    *,
    to: Modality | None = None,
    layer: str | None = None,
    labels: str | None = None,
    n_null: int = 100,
    seed: int = 0,
    unknown_batch: str | None = None,
    progress: Progress | None = None,
) -> Effects:
    """The change of every predicted feature when cells are changed, beside the same done to random features.

    What a system knows of a cell beside its latent (its batch, the depth it predicts at) stays that of the unchanged cell:
    otherwise a gene knocked down would be seen to close all peaks a little, because the cell seems shallower.

    Parameters
    ----------
    data
        Raw counts of cells of the modality that is changed: AnnData, a file, or `Measured`.
    to
        What is predicted; by default the other of RNA and ATAC.
    labels
        Column of obs with cell types: each is a group beside "all".
    n_null
        Draws of as many random features, each matched to one of the change: peaks on the share of cells where they are open,
        genes on mean expression (the `NEIGHBOURS` nearest). 0: no null.

    Returns
    -------
    Effects
        Its table has a row for each group and predicted feature: group, feature, change (mean over all cells of the group of
        predicted after less before; RNA in ln(1 + size-normalised expression), ATAC in probability), sd (over cells, ddof 1),
        sem (sd / √cells), effect (change / sd), before (mean prediction), cells, and against the null: null_mean, null_sd,
        z ((change - null_mean) / null_sd), p (share of draws, this one among them, whose change is as large: two-sided, never
        below 1 / (n_null + 1)) and q (Benjamini-Hochberg over the features of the group).

    Raises
    ------
    InputError
        Where the model does not go that way, or too few features are left to draw from.
    """
    source = change.source
    to = to or ("rna" if source == "atac" else "atac")
    translator.target(source, to)
    if n_null < 0:
        raise InputError(f"perturbation: {n_null} null draws. Give 0 or more; 100 is usual.")
    measured = data if isinstance(data, Measured) else translator.read(data, source=source, layer=layer)
    ours = on_own_features(translator.inputs, measured, source)
    predict = _Predict.of(translator, ours, source, to, unknown_batch)
    rng = np.random.default_rng(seed)
    level = _level(predict.own, translator.inputs, source)
    changes = [change, *(change.drawn(level, rng) for _ in range(n_null))]
    after: list[tuple[Int64[np.ndarray, " changed"], Decoded | None]] = []
    for number, one in enumerate(changes):
        after.append(predict.after(one))
        if progress is not None:
            progress(number + 1, len(changes), "perturbing")
    groups = cell_groups(ours.obs, labels)
    before = predict.before
    members = np.stack([np.isin(np.arange(ours.n_cells), cells) for cells in groups.values()]).astype(np.float64)
    tables: list[list[pd.DataFrame]] = [[] for _ in groups]
    blocks = list(_blocks(before.n_features, ours.n_cells))
    for done, features in enumerate(blocks, 1):
        start = before.block(slice(0, ours.n_cells), features)
        sums = _sums(start, *after[0], members, features)
        null = np.stack([_sums(start, *one, members, features)[0] for one in after[1:]]) if n_null else None
        for group, table in enumerate(tables):
            table.append(_group(members[group], start, sums, null, group))
        if progress is not None:
            progress(done, len(blocks), "comparing")
    names = translator.var(to)
    where = names[["symbol", "chrom"]] if to == "rna" else places(names, to) if to == "atac" else names.iloc[:, :0]
    found = []
    for name, parts in zip(groups, tables):
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "feature", names.index.to_numpy())
        table.insert(0, "group", name)
        for at, column in enumerate(where, 2):
            table.insert(at, column, where[column].to_numpy())
        if n_null:
            table["q"] = false_discovery(table["p"].to_numpy(np.float64))
        found.append(table)
    return Effects(pd.concat(found, ignore_index=True), change, to, ours.n_cells, len(after[0][0]), n_null)


def on_own_features(inputs: Inputs, measured: Measured, source: Modality) -> Measured:
    """The cells in memory over the model's genes or peaks: what is changed is what the model reads.

    Where a pretrained model inside reads whole cells, over all genes of the file, since an embedding is of all of them.
    """
    found = inputs[source]
    if not isinstance(found, RnaInput | AtacInput):
        raise InputError(f"perturbation: {source} cannot be changed, only rna and atac.")
    if reads_whole_cells(found):
        return measured.loaded()
    return replace(measured, matrix=found.align(measured.loaded()), var=found.var)


def _gene(translator: Translator, text: str, usual: float, option: str) -> tuple[Int64[np.ndarray, " genes"], float]:
    name, equals, factor = text.rpartition("=") if "=" in text else (text, "", "")
    try:
        found = float(factor) if equals else usual
    except ValueError:
        raise InputError(f"{option}: {text!r} is not GENE or GENE=factor, such as SATB2=0.2.") from None
    low = option == "--knock-down"
    if (low and not 0 <= found < 1) or (not low and not 1 < found < np.inf):
        rule = "from 0 (off) to below 1" if low else "above 1"
        raise InputError(f"{option}: {text!r} has a factor of {found:g}, which must be {rule}.")
    return genes_named(translator, name), found


def _level(matrix: Any, inputs: Inputs, source: Modality) -> Float64[np.ndarray, " features"]:
    """What random features are matched on: the share of cells where a peak is open, the mean size-normalised expression."""
    found = inputs[source]
    values = found.targets(matrix) if isinstance(found, RnaInput) else matrix
    return np.asarray(values.mean(axis=0), np.float64).ravel()


@dataclass(frozen=True, eq=False)
class _Predict:
    """Predictions of the cells as they are, and of those that a change reaches.

    own: their counts (or 0/1) over the model's own features, which changes are of; `place` puts these where they are in `measured`.
    """

    translator: Translator
    measured: Measured
    source: Modality
    to: Modality
    own: sparse.csr_matrix
    place: sparse.csr_matrix | None  # own features x features of `measured`; None: they are the same
    median: float
    more: Mapping[str, Any]
    before: Decoded

    @classmethod
    def of(
        cls,
        translator: Translator,
        measured: Measured,
        source: Modality,
        to: Modality,
        unknown_batch: str | None,
    ) -> "_Predict":
        """measured: as `on_own_features` gives it."""
        more = {} if unknown_batch is None else {"unknown_batch": unknown_batch}
        before = translator.predict(measured, source=source, to=to, **more)
        found = translator.inputs[source]
        own, place = measured.matrix, None
        if isinstance(found, RnaInput) and reads_whole_cells(found):
            own, columns = found.align(measured), match_genes(found.var, measured.var)
            there = np.flatnonzero(columns >= 0)  # a gene that the file lacks has no count to change
            ones = np.ones(len(there), np.float32)
            place = sparse.csr_matrix((ones, (there, columns[there])), shape=(len(found.var), measured.n_features))
        median = found.median_library if isinstance(found, RnaInput) else 1.0
        return cls(translator, measured, source, to, own, place, median, more, before)

    def after(self, change: Change) -> tuple[Int64[np.ndarray, " changed"], Decoded | None]:
        """Which cells are others than before, and what is predicted for them."""
        new = change.on(self.own, self.median)
        cells = np.flatnonzero(_differ(self.own, new))
        if not len(cells):
            return cells, None
        changed = replace(self.measured, matrix=self._placed(new)).take(cells)
        found = self.translator.predict(changed, source=self.source, to=self.to, **self.more)
        return cells, found if self.before.context is None else replace(found, context=self.before.context[cells])

    def _placed(self, new: sparse.csr_matrix) -> sparse.csr_matrix:
        """The cells as they are read, with these counts of the model's own features."""
        if self.place is None:
            return new
        given = self.measured.matrix
        others = np.asarray(self.place.sum(axis=0)).ravel() == 0
        whole = sparse.csr_matrix(given @ sparse.diags_array(others.astype(np.float32)) + new @ self.place)
        whole.eliminate_zeros()
        whole.sort_indices()
        return whole.astype(np.float32)


def _differ(one: sparse.csr_matrix, other: sparse.csr_matrix) -> Bool[np.ndarray, " cells"]:
    apart = sparse.csr_matrix(abs(one - other) > 1e-6)
    return np.diff(apart.indptr) > 0


def _blocks(n_features: int, n_cells: int) -> Iterator[slice]:
    step = max(1, _ENTRIES // max(n_cells, 1))
    for first in range(0, n_features, step):
        yield slice(first, min(first + step, n_features))


def _sums(
    start: np.ndarray,
    cells: Int64[np.ndarray, " changed"],
    after: Decoded | None,
    members: Float64[np.ndarray, "groups cells"],
    features: slice,
) -> Float64[np.ndarray, "two groups features"]:
    """Mean over each group's cells of the difference, and of its square; cells that did not change have none."""
    if after is None:
        return np.zeros((2, len(members), features.stop - features.start))
    delta = (after.block(slice(0, len(cells)), features) - start[cells]).astype(np.float64)
    weight = members[:, cells] / members.sum(axis=1, keepdims=True)
    return np.stack([weight @ delta, weight @ delta**2])


def _group(
    member: Float64[np.ndarray, " cells"],
    start: np.ndarray,
    sums: Float64[np.ndarray, "two groups features"],
    null: Float64[np.ndarray, "draws groups features"] | None,
    group: int,
) -> pd.DataFrame:
    n = int(member.sum())
    mean, square = sums[:, group]
    nan = np.full(len(mean), np.nan)
    sd = np.sqrt(np.maximum(square - mean**2, 0) * n / (n - 1)) if n > 1 else nan
    table = {
        "change": mean,
        "sd": sd,
        "sem": sd / np.sqrt(n),
        "effect": np.divide(mean, sd, out=nan.copy(), where=sd > 0),
        "before": (member / n) @ start,
        "cells": n,
    }
    if null is not None:
        drawn = null[:, group]
        spread = drawn.std(axis=0, ddof=1) if len(drawn) > 1 else nan
        # What is as large but for the last bits of a float32 is as large.
        as_large = np.abs(drawn) >= np.abs(mean) * (1 - 1e-6)
        table |= {
            "null_mean": drawn.mean(axis=0),
            "null_sd": spread,
            "z": np.divide(mean - drawn.mean(axis=0), spread, out=nan.copy(), where=spread > 0),
            "p": (1 + as_large.sum(axis=0)) / (len(drawn) + 1),
        }
    return pd.DataFrame(table)
