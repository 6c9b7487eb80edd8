"""What the annotation task reads: raw counts of cells with a cell type, and a donor where one is named."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Int, Shaped
from scipy import sparse

from expresser.corpus.align import Alignment
from expresser.corpus.source import Source, open_source
from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.counts import choose_rows

Data: TypeAlias = str | Path | AnnData

# What pandas, R and str() leave of a label that is not there.
MISSING = frozenset({"", "nan", "NaN", "NA", "N/A", "<NA>", "None"})
_MOST_TYPES = 500


@dataclass(frozen=True, eq=False)
class LabelledCells:
    """Cells to be judged, ordered by name, so that nothing made of them depends on their order in the file.

    Attributes
    ----------
    source
        Where they come from: its gene names say what the columns of `counts` are.
    counts
        Raw counts over all genes of the file.
    names, labels, groups
        Of each cell; `groups` is None where no column was named.
    aligned
        The same counts over the vocabulary of each model.
    left_out
        Cells of the file that are not judged, by reason; "few_cells" and "one_group" by type.
    """

    source: Source
    counts: sparse.csr_matrix
    names: Shaped[np.ndarray, " cells"]
    labels: Shaped[np.ndarray, " cells"]
    groups: Shaped[np.ndarray, " cells"] | None
    aligned: dict[str, sparse.csr_matrix]
    left_out: dict[str, Any]

    @property
    def types(self) -> tuple[str, ...]:
        """Cell types, sorted."""
        return tuple(sorted(set(self.labels)))

    def sha256(self) -> str:
        """Of counts, names, types and donors."""
        parts: list[Sequence[str] | np.ndarray] = [self.names, self.labels, [] if self.groups is None else self.groups]
        digest = hashlib.sha256("\0\0".join("\0".join(part) for part in parts).encode())
        for array in (self.counts.indptr, self.counts.indices, self.counts.data):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()


def read_labelled(
    data: Data,
    *,
    label: str,
    group: str | None,
    vocabs: Mapping[str, GeneVocab] | None = None,
    layer: str | None = None,
    max_cells: int | None = None,
    min_cells: int = 10,
    min_genes: int = 20,
    seed: int = 0,
) -> LabelledCells:
    """Cells whose type can be judged.

    Left out, and counted: cells without a label or (where `group` is given) without a group, all beyond `max_cells` random
    ones, cells with fewer than `min_genes` non-zero genes (of the file, and of each model's vocabulary in `vocabs`), types
    with fewer than `min_cells` cells, and types of a single group: with that group held out, nothing is left to learn them
    from.

    Raises
    ------
    InputError
        For a column that does not exist or holds no types, counts that are not raw or not of a model's genes, and where
        fewer than two types, or two groups, are left.
    """
    source = open_source(data, layer=layer)
    label_of = _texts(source, label, "label")
    group_of = None if group is None else _texts(source, group, "group")
    if group == label:
        raise InputError(f"{_where(source)}: label and group are both {label!r}. Name the donor column as group.")
    names = source.obs.index.to_numpy(dtype=object)
    if len(set(names)) < len(names):
        name, times = Counter(names).most_common(1)[0]
        raise InputError(
            f"{_where(source)}: {times} cells are called {name!r}; predictions are listed by name. "
            "Make names unique (adata.obs_names_make_unique())."
        )
    labelled = np.array([value is not None for value in label_of], dtype=bool)
    grouped = np.ones_like(labelled) if group_of is None else np.array([value is not None for value in group_of])
    _check_types(label_of[labelled], label, source)
    usable = np.flatnonzero(labelled & grouped)
    usable = usable[np.argsort(names[usable].astype(str), kind="stable")]
    chosen = usable[choose_rows(len(usable), max_cells, seed)]
    counts = _counts(source, chosen)
    aligned = {name: _over(source, counts, vocab, name) for name, vocab in (vocabs or {}).items()}
    rich = np.min([np.diff(x.indptr) for x in (counts, *aligned.values())], axis=0) >= max(min_genes, 2)
    left_out: dict[str, Any] = {
        "no_label": int((~labelled).sum()),
        "no_group": int((labelled & ~grouped).sum()),
        "not_sampled": len(usable) - len(chosen),
        "few_genes": int((~rich).sum()),
    }
    kept, few, alone = _judgeable(
        label_of[chosen], None if group_of is None else group_of[chosen], rich, min_cells=max(min_cells, 2)
    )
    left_out |= {"few_cells": few, "one_group": alone}
    types = set(label_of[chosen[kept]])
    if len(types) < 2:
        raise InputError(
            f"{_where(source)}: {len(types)} cell type{'' if len(types) == 1 else 's'} left to tell apart in obs column "
            f"{label!r}: {_account(left_out, min_cells, group)}. Give cells of two types or more, each "
            + ("of two donors or more." if group else f"with {min_cells} cells or more.")
        )
    groups = None if group_of is None else group_of[chosen[kept]]
    if groups is not None and len(set(groups)) < 2:
        raise InputError(
            f"{_where(source)}: obs column {group!r} holds one group ({groups[0]!r}): none can be held out. "
            "Leave the group away, or give cells of two donors or more."
        )
    return LabelledCells(
        source=source,
        counts=sparse.csr_matrix(counts[kept]),
        names=names[chosen[kept]],
        labels=label_of[chosen[kept]],
        groups=groups,
        aligned={name: sparse.csr_matrix(x[kept]) for name, x in aligned.items()},
        left_out=left_out,
    )


def _texts(source: Source, column: str, what: str) -> Shaped[np.ndarray, " cells"]:
    """A column of obs as text, None where it is missing; whole numbers (cluster codes) without a decimal point."""
    if column not in source.obs.columns:
        has = ", ".join(repr(str(name)) for name in source.obs.columns[:30]) or "none"
        raise InputError(f"{_where(source)}: no obs column {column!r} for {what}; there are {has}. Name one of those.")
    values = source.obs[column]
    there = values.notna().to_numpy()
    if pd.api.types.is_float_dtype(values):
        numbers = values[there].to_numpy(dtype=float)
        if not np.array_equal(numbers, np.round(numbers)):
            first = float(numbers[numbers != np.round(numbers)][0])
            raise InputError(
                f"{_where(source)}: obs column {column!r} holds measurements (such as {first:g}), not a {what}. "
                "Name a column of names or whole numbers."
            )
        values = values.astype("Int64")
    texts = [str(value).strip() if here else None for value, here in zip(values, there)]
    return np.array([None if text is None or text in MISSING else text for text in texts], dtype=object)


def _check_types(labels: Shaped[np.ndarray, " labelled"], column: str, source: Source) -> None:
    distinct = sorted(set(labels))
    if not distinct:
        raise InputError(f"{_where(source)}: obs column {column!r} is empty in all cells. Name a column of cell types.")
    if len(distinct) == 1:
        raise InputError(
            f"{_where(source)}: all {len(labels)} labelled cells are {distinct[0]!r} in obs column {column!r}. "
            "There is nothing to tell apart: give cells of two types or more."
        )
    if len(distinct) >= _MOST_TYPES or (len(distinct) > 10 and 2 * len(distinct) > len(labels)):
        raise InputError(
            f"{_where(source)}: obs column {column!r} has {len(distinct):,} distinct values in {len(labels):,} cells "
            f"({', '.join(map(repr, distinct[:3]))}, …): these look like barcodes, not like cell types. "
            f"Name a column with fewer than {_MOST_TYPES} types and two cells or more a type."
        )


def _counts(source: Source, rows: Int[np.ndarray, " chosen"]) -> sparse.csr_matrix:
    """Chosen rows of a source, in their order."""
    order = np.sort(rows)
    parts = [sparse.csr_matrix((0, source.n_genes), dtype=np.int64)]
    for first, chunk in source.chunks():
        here = order[(order >= first) & (order < first + chunk.shape[0])]
        parts.append(chunk[here - first])
    stacked = sparse.csr_matrix(sparse.vstack(parts, format="csr"))
    return sparse.csr_matrix(stacked[np.searchsorted(order, rows)])


def _over(source: Source, counts: sparse.csr_matrix, vocab: GeneVocab, model: str) -> sparse.csr_matrix:
    """Counts over a model's vocabulary; refused where too few of them belong to its genes, as with another species."""
    alignment = Alignment.of(source, vocab)
    per_name = np.asarray(counts.sum(0), dtype=np.float64).ravel()
    alignment.resolution.report(per_name).check(f"{source.label} for model {model!r}")
    return alignment.apply(counts)


def _judgeable(
    labels: Shaped[np.ndarray, " cells"],
    groups: Shaped[np.ndarray, " cells"] | None,
    rich: Bool[np.ndarray, " cells"],
    *,
    min_cells: int,
) -> tuple[Int[np.ndarray, " kept"], dict[str, int], dict[str, int]]:
    """Rows of types that can be judged; the types that have too few cells, and that have one group alone."""
    sizes = Counter(labels[rich])
    few = {name: sizes.get(name, 0) for name in sorted(set(labels)) if sizes.get(name, 0) < min_cells}
    alone: dict[str, int] = {}
    if groups is not None:
        seen_in: dict[str, set[str]] = {}
        for name, of in zip(labels[rich], groups[rich]):
            seen_in.setdefault(name, set()).add(of)
        alone = {name: sizes[name] for name in sorted(seen_in) if len(seen_in[name]) < 2 and name not in few}
    keep = rich & np.array([name not in few and name not in alone for name in labels], dtype=bool)
    return np.flatnonzero(keep), few, alone


def _account(left_out: dict[str, Any], min_cells: int, group: str | None) -> str:
    parts = [
        f"{left_out['no_label']} cells have no label",
        f"{left_out['few_genes']} too few genes",
        f"{_listed(left_out['few_cells'])} fewer than {min_cells} cells",
    ]
    if group is not None:
        parts.insert(1, f"{left_out['no_group']} no group")
        parts.append(f"{_listed(left_out['one_group'])} cells of one group only")
    return ", ".join(parts)


def _listed(types: dict[str, int], most: int = 5) -> str:
    names: Sequence[str] = list(types)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (
        ", ".join(map(repr, names[:most])) + more + " has"
        if len(names) == 1
        else (", ".join(map(repr, names[:most])) + more + " have" if names else "no type has")
    )


def _where(source: Source) -> str:
    return str(source.path) if source.path is not None else f"AnnData {source.name!r}"
