"""Reading a study: RNA, ATAC and protein from files or objects, paired by cell name, with what only one assay saw."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Int64
from scipy import sparse

from expresser.errors import InputError
from translate.align import align_peaks, match_genes, take_columns
from translate.cellnames import how_to_match
from translate.genenames import GenePlaces
from translate.opening import Data, modalities_in, open_mudata
from translate.pairing import MIN_CELLS, PairingWarning, pairing_evidence
from translate.reading import plain_obs, read_measured, read_obsm
from translate.regions import Regions
from translate.study import MODALITIES, Measured, Modality, Study

__all__ = ["MODALITIES", "Measured", "Modality", "PairingWarning", "Study", "read_study"]

_OBSM = "obsm:"
_SHARED_GENES = 0.2  # of the smaller of two RNA files, in the larger


def read_study(
    *,
    rna: Data | None = None,
    atac: Data | None = None,
    protein: Data | None = None,
    mudata: Any = None,
    rna_only: Data | Sequence[Data] = (),
    atac_only: Data | Sequence[Data] = (),
    layer: str | Mapping[Modality, str] | None = None,
    genes: str | Path | pd.DataFrame | None = None,
    check_pairing: bool = True,
) -> Study:
    """Read what was measured and pair it: cells of one name in `rna`, `atac` and `protein` are one cell.

    Parameters
    ----------
    rna, atac, protein
        AnnData in memory, .h5ad, .zarr, 10x .h5 or a 10x folder. Where `feature_types` tells modalities apart, those of
        a joint object given as `rna` are all read (another argument goes before). protein="obsm:KEY" takes a table of
        the RNA's obsm.
    mudata
        A MuData, an .h5mu file, or a joint object as above, in place of `rna` and `atac`.
    rna_only, atac_only
        More cells of one modality, in files of their own: genes that all RNA files have are kept, peaks become those of
        the first ATAC file.
    layer
        Where the raw counts are if not in X, of all modalities or of each ("raw" for adata.raw).
    genes
        Places of genes where the files have none: a table (path or frame) of Ensembl ids or symbols, chrom and tss, or
        any file that gives a gene vocabulary (genes.tsv, GTF, HGNC).
    check_pairing
        Warn (`PairingWarning`) where RNA and ATAC of one name do not look like one cell.

    Returns
    -------
    Study
        Columns of obs that files disagree on are told apart as "atac:column".

    Raises
    ------
    InputError
        For what is missing, unreadable, empty, not raw counts (ATAC: counts or 0/1), named twice or swapped, and where
        a modality shares no cell with any other.
    """
    places = None if genes is None else GenePlaces.read(genes)
    layers = {m: layer if layer is None or isinstance(layer, str) else layer.get(m) for m in MODALITIES}
    more: dict[Modality, list[Data]] = {"rna": _listed(rna_only), "atac": _listed(atac_only), "protein": []}
    inputs, obs = _inputs(rna, atac, protein, mudata)
    if not inputs and not any(more.values()):
        raise InputError(
            "read_study: nothing to read: give rna=, atac=, protein= or mudata=, or rna_only=, atac_only=."
        )
    parts: dict[Modality, list[Measured]] = {}
    for m in MODALITIES:
        wanted = [*([inputs[m]] if m in inputs else []), *more[m]]
        parts[m] = [_read(data, m, inputs, layers[m], places) for data in wanted]
    main = {m: parts[m][0] for m in MODALITIES if m in inputs}
    _prove_shared(main)
    measured = {m: _together(parts[m], m) for m in MODALITIES if parts[m]}
    study = _paired(measured, obs)
    if check_pairing and {"rna", "atac"} <= set(measured) and (study.has("rna") & study.has("atac")).sum() >= MIN_CELLS:
        evidence = pairing_evidence(study)
        if not evidence.supported:
            warnings.warn(evidence.message(), PairingWarning, stacklevel=2)
    return study


def _listed(data: Data | Sequence[Data]) -> list[Data]:
    return [data] if isinstance(data, str | Path | AnnData) else list(data)


def _inputs(rna: Any, atac: Any, protein: Any, mudata: Any) -> tuple[dict[Modality, Data], pd.DataFrame | None]:
    """What each modality is read from, and the columns of obs that belong to all of them."""
    given: dict[Modality, Any] = {"rna": rna, "atac": atac, "protein": protein}
    inputs: dict[Modality, Any] = {m: data for m, data in given.items() if data is not None}
    obs = None
    if mudata is not None:
        if rna is not None or atac is not None:
            raise InputError("read_study: give mudata= or rna= and atac=, not both.")
        if hasattr(mudata, "mod") or (isinstance(mudata, str | Path) and str(mudata).endswith(".h5mu")):
            held, shared = open_mudata(mudata)
            obs = plain_obs(shared, "MuData")
        else:
            held = dict.fromkeys(modalities_in(mudata), mudata)
            if not held:
                raise InputError(
                    "mudata: neither MuData nor an object whose var['feature_types'] tells modalities apart "
                    "('Gene Expression', 'Peaks', 'Antibody Capture'). Give its modalities as rna= and atac=."
                )
        inputs = {**held, **inputs}
    elif rna is not None:
        inputs = {**dict.fromkeys(modalities_in(rna), rna), **inputs}
    return {m: inputs[m] for m in MODALITIES if m in inputs}, obs


def _read(
    data: Data, m: Modality, inputs: Mapping[Modality, Data], layer: str | None, places: GenePlaces | None
) -> Measured:
    if m == "protein" and isinstance(data, str) and data.startswith(_OBSM):
        if "rna" not in inputs:
            raise InputError(f"protein={data!r} is a table of the RNA's obsm, but there is no RNA. Give rna= too.")
        return read_obsm(inputs["rna"], data.removeprefix(_OBSM))
    return read_measured(data, m, layer=layer, places=places)


def _prove_shared(main: Mapping[Modality, Measured]) -> None:
    """InputError where a modality shares no cell with any other."""
    for m, mine in main.items():
        others = [(other, its) for other, its in main.items() if other != m]
        if others and not any(mine.obs.index.isin(its.obs.index).any() for _, its in others):
            other, its = others[0]
            shown = [", ".join(repr(name) for name in x.obs.index[:2]) for x in (mine, its)]
            hint = how_to_match(mine.obs.index, its.obs.index, m, other)
            raise InputError(
                f"no cell is in both {m} ({mine.name}: {mine.n_cells:,} cells, {shown[0]}, …) and {other} ({its.name}: "
                f"{its.n_cells:,} cells, {shown[1]}, …), and cells are paired by name. {hint}If they are different cells, "
                "pass them as rna_only=[…] and atac_only=[…]."
            )


def _together(parts: Sequence[Measured], m: Modality) -> Measured:
    """Several files of one modality as one: genes that all have, or the peaks of the first."""
    first = parts[0]
    if len(parts) == 1:
        return first
    index = first.obs.index
    for part in parts[1:]:
        again = part.obs.index[part.obs.index.isin(index)]
        if len(again):
            raise InputError(
                f"{m} of {part.name}: {len(again):,} of its {part.n_cells:,} cells have names that another {m} file has "
                f"too ({', '.join(repr(name) for name in again[:3])}). Cells are known by name: add the sample to it, "
                "e.g. adata.obs_names = 's2_' + adata.obs_names."
            )
        index = index.append(part.obs.index)
    if m == "rna":
        var, matrices = _common_genes(parts)
    else:
        var = first.var
        regions = Regions.from_var(var, where=first.name)
        matrices = [first.matrix, *(align_peaks(part, regions) for part in parts[1:])]
    obs = _joined(index, [(m, part.obs) for part in parts])
    name = f"{first.name} and {len(parts) - 1} more"
    return Measured(sparse.vstack(matrices, format="csr", dtype=np.float32), var, obs, name)


def _common_genes(parts: Sequence[Measured]) -> tuple[pd.DataFrame, list[sparse.csr_matrix]]:
    """Genes that every file has, in the first one's order: a gene that a file lacks was not counted there, not zero."""
    first = parts[0]
    columns = [match_genes(first.var, part.var) for part in parts]
    shared = np.logical_and.reduce([found >= 0 for found in columns])
    least = min(part.n_features for part in parts)
    if shared.sum() < _SHARED_GENES * least:
        sizes = ", ".join(f"{part.name}: {part.n_features:,} ({part.var.index[0]!r}, …)" for part in parts)
        raise InputError(
            f"rna: {int(shared.sum()):,} genes are in all {len(parts)} files, at least {_SHARED_GENES:.0%} of the smallest's "
            f"must be ({sizes}). Genes match by Ensembl id (a column ensembl_id or gene_ids), else by symbol."
        )
    return first.var[shared], [take_columns(part.matrix, found[shared]) for part, found in zip(parts, columns)]


def _paired(measured: Mapping[Modality, Measured], own: pd.DataFrame | None) -> Study:
    """The study over all cells: those with everything first, then in order of appearance."""
    names = pd.Index([], dtype=object)
    for part in measured.values():
        names = names.append(part.obs.index[~part.obs.index.isin(names)])
    rows = {m: part.obs.index.get_indexer(names).astype(np.int64) for m, part in measured.items()}
    order = np.argsort(~np.logical_and.reduce([found >= 0 for found in rows.values()]), kind="stable")
    names = names[order]
    frames: list[tuple[str, pd.DataFrame]] = [(m, part.obs) for m, part in measured.items()]
    if own is not None:
        frames = [("mudata", own), *frames]
    ordered: dict[Modality, Int64[np.ndarray, " cells"]] = {m: found[order] for m, found in rows.items()}
    return Study(_joined(names, frames), measured, ordered)


def _joined(names: pd.Index, frames: Sequence[tuple[str, pd.DataFrame]]) -> pd.DataFrame:
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
