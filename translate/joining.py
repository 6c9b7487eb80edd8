"""Several files of one modality as one: their cells one below the other, over features that suit all of them."""

import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from translate.align import align_peaks, match_genes, match_regions, take_columns
from translate.large import stacked
from translate.peaks import coverage, merge_sets
from translate.study import DataWarning, Measured, Modality

_SHARED = 0.2  # of the genes, or proteins, of the smallest of several files: in all of them


class JoiningWarning(DataWarning):
    """Files of one modality differ in their features: some are left out, or taken to be closed in cells of some files."""


def together(paired: Sequence[Measured], alone: Sequence[Measured], m: Modality) -> Measured:
    """The files that are paired with other modalities and those of cells measured in this one alone, as one `Measured`.

    RNA, protein: what every file has, in the order of the first; a gene that a file lacks was not counted there, which is not
    zero. ATAC: files that have the same peaks keep their counts; else the peaks of the paired files are merged (their union,
    overlapping ones joined) and all are re-pooled to those by logical or, so that the order of files does not matter. Files
    of `alone` add peaks only where no file is paired: what no paired cell could show open cannot be learnt from RNA.
    Memory: the matrices once more where features agree, else twice; large ones lie in files (`translate.large`).
    Warns (`JoiningWarning`) of what is left out or taken to be closed.
    """
    parts = [*paired, *alone]
    first = parts[0]
    if len(parts) == 1:
        return first
    index = _cells(parts, m)
    if m == "atac":
        var, matrices = _peaks(paired or alone, alone if paired else ())
    else:
        var, matrices = _shared_features(parts, m)
    obs = joined(index, [(m, part.obs) for part in parts])
    name = f"{first.name} and {len(parts) - 1} more"
    sources = tuple(source for part in parts for source in part.sources)
    return Measured(stacked(matrices), var, obs, name, sources)


def _cells(parts: Sequence[Measured], m: Modality) -> pd.Index:
    """The names of all cells; InputError where two files share one."""
    index = parts[0].obs.index
    for part in parts[1:]:
        again = part.obs.index[part.obs.index.isin(index)]
        if len(again):
            raise InputError(
                f"{m} of {part.name}: {len(again):,} of its {part.n_cells:,} cells have names that another {m} file has "
                f"too ({', '.join(repr(name) for name in again[:3])}). Cells are known by name: add the sample to it, "
                "e.g. adata.obs_names = 's2_' + adata.obs_names, in the files of all modalities of that sample "
                "alike; or, where they are the same cells, keep them in one file."
            )
        index = index.append(part.obs.index)
    return index


def _shared_features(parts: Sequence[Measured], m: Modality) -> tuple[pd.DataFrame, list[sparse.csr_matrix]]:
    """Genes or proteins that every file has, in the first one's order, and the counts of each file over them."""
    first, what = parts[0], {"rna": "genes", "protein": "proteins"}[m]
    if m == "rna":
        columns = [match_genes(first.var, part.var) for part in parts]
    else:
        columns = [part.var.index.get_indexer(first.var.index).astype(np.int64) for part in parts]
    shared = np.logical_and.reduce([found >= 0 for found in columns])
    n, least = int(shared.sum()), min(part.n_features for part in parts)
    if n < max(1, _SHARED * least):
        sizes = ", ".join(f"{part.name}: {part.n_features:,} ({part.var.index[0]!r}, …)" for part in parts)
        raise InputError(
            f"{m}: {n:,} {what} are in all {len(parts)} files, at least {_SHARED:.0%} of the smallest's must be ({sizes}). "
            + ("Genes match by Ensembl id (a column ensembl_id or gene_ids), else by symbol." if m == "rna" else "")
        )
    if lost := [
        f"{part.n_features - n:,} of {part.n_features:,} in {part.name}" for part in parts if part.n_features > n
    ]:
        warnings.warn(
            f"{m}: {n:,} {what} are in all {len(parts)} files and are kept; left out are {', '.join(lost)}, which were not "
            "counted in every file.",
            JoiningWarning,
            stacklevel=4,
        )
    return first.var[shared], [_over(part, found[shared]) for part, found in zip(parts, columns)]


def _over(part: Measured, columns: Int64[np.ndarray, " taken"]) -> sparse.csr_matrix:
    same = len(columns) == part.n_features and np.array_equal(columns, np.arange(part.n_features))
    return part.matrix if same else take_columns(part.matrix, columns)


def _peaks(main: Sequence[Measured], more: Sequence[Measured]) -> tuple[pd.DataFrame, list[sparse.csr_matrix]]:
    """Peaks of `main`, merged where files differ, and the matrices of `main` and `more` over them."""
    sets = [Regions.from_var(part.var, where=part.name) for part in main]
    first = sets[0]
    columns = [match_regions(first, regions) for regions in sets]
    if all(len(regions) == len(first) and (found >= 0).all() for regions, found in zip(sets, columns)):
        var, target = main[0].var, first
        matrices = [_over(part, found) for part, found in zip(main, columns)]
    else:
        for part, regions in zip(main[1:], sets[1:]):
            coverage(regions, first, where=part.name, of=main[0].name).check()
        matrices, target = merge_sets([(part.matrix, regions) for part, regions in zip(main, sets)])
        var = target.to_frame()
        _say_merged(main, sets, target)
    return var, [*matrices, *(align_peaks(part, target) for part in more)]


def _say_merged(parts: Sequence[Measured], sets: Sequence[Regions], union: Regions) -> None:
    closed = [
        f"{int((regions.overlaps(union).getnnz(axis=0) == 0).sum()):,} for {part.name} ({len(regions):,} peaks)"
        for part, regions in zip(parts, sets)
    ]
    warnings.warn(
        f"atac: {len(parts)} files with different peaks are merged into {len(union):,}. A merged peak that a file has nothing "
        f"of is closed in all of its cells: {', '.join(closed)}. Counts of one list of peaks (`translate count`, from "
        "fragments) would be better.",
        JoiningWarning,
        stacklevel=4,
    )


def joined(names: pd.Index, frames: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
    """One table of these cells: a column fills up from frame to frame; one that disagrees is "label:column"."""
    columns: dict[str, pd.Series] = {}
    for label, frame in frames:
        for key in frame.columns:
            new = frame[key].reindex(names)
            old = columns.get(key)
            if old is None:
                columns[key] = new
                continue
            both = (old.notna() & new.notna()).to_numpy()
            if (old.to_numpy(dtype=object)[both] == new.to_numpy(dtype=object)[both]).all():
                columns[key] = _filled(old, new)
            else:
                columns[f"{label}:{key}"] = new
    return pd.DataFrame(columns, index=names)


def _filled(old: pd.Series, new: pd.Series) -> pd.Series:
    if not old.isna().any():
        return old
    values = np.where(old.notna(), old.to_numpy(dtype=object), new.to_numpy(dtype=object))
    numeric = pd.api.types.is_numeric_dtype(old) and pd.api.types.is_numeric_dtype(new)
    return pd.Series(pd.to_numeric(values) if numeric else values, index=old.index)
