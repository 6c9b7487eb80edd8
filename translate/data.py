"""Reading a study: RNA, ATAC and protein from files or objects, paired by cell name, with what only one assay saw."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from expresser.errors import InputError
from translate.cellnames import how_to_match
from translate.genenames import GenePlaces
from translate.joining import joined, together
from translate.opening import Data, is_mudata, modalities_in, name_of, open_mudata
from translate.pairing import MIN_CELLS, PairingWarning, pairing_evidence
from translate.reading import plain_obs, read_measured, read_obsm
from translate.study import MODALITIES, Measured, Modality, Study

__all__ = ["MODALITIES", "Measured", "Modality", "PairingWarning", "Study", "read_one", "read_study"]

_OBSM = "obsm:"


def read_study(
    mudata: Any = None,
    *,
    rna: Data | Sequence[Data] | None = None,
    atac: Data | Sequence[Data] | None = None,
    protein: Data | Sequence[Data] | None = None,
    rna_only: Data | Sequence[Data] = (),
    atac_only: Data | Sequence[Data] = (),
    layer: str | Mapping[Modality, str] | None = None,
    genes: str | Path | pd.DataFrame | None = None,
    check_pairing: bool = True,
) -> Study:
    """Read what was measured and pair it: cells of one name in `rna`, `atac` and `protein` are one cell.

    Parameters
    ----------
    mudata
        A MuData, an .h5mu file (or .zarr of one), or an AnnData or file whose `feature_types` tell modalities apart, in place
        of `rna` and `atac`.
    rna, atac, protein
        AnnData in memory, .h5ad, .zarr, 10x .h5 or a 10x folder, or several of them (samples, say, whose cell names must
        differ). Where `feature_types` tells modalities apart, those of joint objects given as `rna` are all read (another
        argument goes before). protein="obsm:KEY" takes a table of the RNA's obsm.
    rna_only, atac_only
        More cells of one modality, in files of their own. Of several RNA files, the genes that all have are kept; peaks of
        several ATAC files are merged, those of `atac_only` re-pooled to these (`translate.joining.together`).
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
        a file shares no cell with any other modality.
    """
    places = None if genes is None else GenePlaces.read(genes)
    layers = {m: layer if layer is None or isinstance(layer, str) else layer.get(m) for m in MODALITIES}
    more: dict[Modality, list[Data]] = {"rna": _listed(rna_only), "atac": _listed(atac_only), "protein": []}
    inputs, obs = _inputs(rna, atac, protein, mudata)
    if not inputs and not any(more.values()):
        raise InputError(
            "there is nothing to read: give RNA, ATAC, protein or a MuData, or cells of RNA or ATAC alone."
        )
    main: dict[Modality, list[Measured]] = {}
    alone: dict[Modality, list[Measured]] = {}
    for m in MODALITIES:
        n = len(inputs.get(m, [])) + len(more[m])
        main[m] = [_read(*of, m, layers[m], places, n) for of in _with_rna(inputs.get(m, []), m, inputs)]
        alone[m] = [_read(data, None, m, layers[m], places, n) for data in more[m]]
    _prove_shared(main)
    measured: dict[Modality, Measured] = {}
    for m in MODALITIES:
        if main[m] or alone[m]:
            measured[m] = together(main[m], alone[m], m)
    study = _paired(measured, obs)
    if check_pairing and {"rna", "atac"} <= set(measured) and (study.has("rna") & study.has("atac")).sum() >= MIN_CELLS:
        try:
            evidence = pairing_evidence(study)
            doubt = None if evidence.supported else evidence.message()
        except InputError as error:
            doubt = f"not proven that cells of one name are the same cells: {error}"
        if doubt is not None:
            warnings.warn(doubt, PairingWarning, stacklevel=2)
    return study


def read_one(
    data: Any, modality: Modality, *, layer: str | None = None, genes: str | Path | pd.DataFrame | None = None
) -> Measured:
    """One modality of a file or AnnData (`translate.reading.read_measured`), or of a MuData, with its own columns of obs.

    genes: places of genes where the file has none, as in `read_study`.
    """
    places = None if genes is None else GenePlaces.read(genes)
    if not is_mudata(data):
        return read_measured(data, modality, layer=layer, places=places)
    found, shared = open_mudata(data, only=modality)
    measured = read_measured(found[modality], modality, layer=layer, places=places)
    own = plain_obs(shared, "MuData").reindex(measured.obs.index)
    frames: list[tuple[str, pd.DataFrame]] = [("mudata", own), (modality, measured.obs)]
    named = f"{modality} of {name_of(data)}"
    return replace(measured, obs=joined(measured.obs.index, frames), name=named)


def _listed(data: Data | Sequence[Data] | None) -> list[Data]:
    if data is None:
        return []
    return list(data) if isinstance(data, list | tuple) else [data]


def _inputs(
    rna: Data | Sequence[Data] | None,
    atac: Data | Sequence[Data] | None,
    protein: Data | Sequence[Data] | None,
    mudata: Any,
) -> tuple[dict[Modality, list[Data]], pd.DataFrame | None]:
    """What each modality is read from, and the columns of obs that belong to all of them."""
    given: dict[Modality, list[Data]] = {"rna": _listed(rna), "atac": _listed(atac), "protein": _listed(protein)}
    inputs = {m: data for m, data in given.items() if data}
    held: dict[Modality, list[Data]] = {}
    obs = None
    if mudata is not None:
        if given["rna"] or given["atac"]:
            raise InputError("a MuData holds RNA and ATAC: give it, or files of RNA and of ATAC, not both.")
        if is_mudata(mudata):
            found, shared = open_mudata(mudata)
            held = {m: [data] for m, data in found.items()}
            obs = plain_obs(shared, "MuData")
        else:
            held = {m: [mudata] for m in modalities_in(mudata)}
            if not held:
                raise InputError(
                    f"{name_of(mudata)}: neither MuData nor an object whose var['feature_types'] tells modalities apart "
                    "('Gene Expression', 'Peaks', 'Antibody Capture'). Give its RNA and its ATAC each by itself."
                )
    else:
        for data in given["rna"]:
            for m in modalities_in(data):
                held.setdefault(m, []).append(data)
        held.pop("rna", None)  # a file may say nothing of what it holds
    inputs = {**held, **inputs}
    return {m: inputs[m] for m in MODALITIES if m in inputs}, obs


def _with_rna(
    given: Sequence[Data], m: Modality, inputs: Mapping[Modality, Sequence[Data]]
) -> list[tuple[Data, str | None]]:
    """(what to read, key of the table in its obsm or None) of each file; "obsm:KEY" is one of every RNA file."""
    found: list[tuple[Data, str | None]] = []
    for data in given:
        if m == "protein" and isinstance(data, str) and data.startswith(_OBSM):
            if "rna" not in inputs:
                raise InputError(f"protein {data!r} is a table of the RNA's obsm, but there is no RNA. Give it too.")
            found += [(of, data.removeprefix(_OBSM)) for of in inputs["rna"]]
        else:
            found.append((data, None))
    return found


def _read(data: Data, key: str | None, m: Modality, layer: str | None, places: GenePlaces | None, of: int) -> Measured:
    return read_measured(data, m, layer=layer, places=places, of=of) if key is None else read_obsm(data, key)


def _prove_shared(main: Mapping[Modality, Sequence[Measured]]) -> None:
    """InputError where a file shares no cell with any other modality."""
    parts = [(m, part) for m, some in main.items() for part in some]

    def shares(m: Modality, mine: Measured) -> bool:
        return any(mine.obs.index.isin(its.obs.index).any() for other, its in parts if other != m)

    strangers = [(m, part) for m, part in parts if len({m for m, _ in parts}) > 1 and not shares(m, part)]
    if not strangers:
        return
    m, mine = strangers[0]
    # If a file of another modality is left over too, the two are likely meant to be one sample.
    other, its = next(found for found in (*strangers, *parts) if found[0] != m)
    shown = [", ".join(repr(name) for name in x.obs.index[:2]) for x in (mine, its)]
    hint = how_to_match(mine.obs.index, its.obs.index, m, other)
    raise InputError(
        f"no cell is in both {m} ({mine.name}: {mine.n_cells:,} cells, {shown[0]}, …) and {other} ({its.name}: "
        f"{its.n_cells:,} cells, {shown[1]}, …), and cells are paired by name. {hint}If they are different cells, "
        "give them as cells of RNA alone and of ATAC alone (rna_only, atac_only)."
    )


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
    return Study(joined(names, frames), measured, ordered)
