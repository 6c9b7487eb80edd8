"""What is asked of a perturbation by name: genes, peaks, cell types, and how far peaks and genes lie from each other."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64

from expresser.bed import read_bed
from expresser.errors import InputError
from expresser.regions import Regions
from translate.study import Modality
from translate.translator import Translator

ALL = "all"  # the group of all cells


def targets_of(translator: Translator, modality: Modality, names: Sequence[str]) -> Int64[np.ndarray, " features"]:
    """Numbers of genes, or of peaks, asked for by name, each once, in their order; InputError with near names for one unknown."""
    if not names:
        raise InputError(f"{modality}: no gene or peak is named. Name at least one.")
    if modality not in translator.inputs:
        raise InputError(f"this {translator.name} knows {', '.join(translator.inputs)}, not {modality}.")
    one = genes_named if modality == "rna" else peaks_named
    return _in_order([one(translator, name) for name in names])


def _in_order(parts: Sequence[Int64[np.ndarray, " _"]]) -> Int64[np.ndarray, " features"]:
    return np.array(list(dict.fromkeys(np.concatenate(parts).tolist())), dtype=np.int64)


def genes_named(translator: Translator, name: str) -> Int64[np.ndarray, " genes"]:
    """Numbers of the genes of this name, symbol or Ensembl id."""
    var = translator.var("rna")
    columns = [var.index.to_numpy(dtype=object), var["symbol"].to_numpy(object), var["ensembl_id"].to_numpy(object)]
    hits = np.flatnonzero(np.logical_or.reduce([column == name for column in columns]))
    if len(hits):
        return hits.astype(np.int64)
    known = {str(known).casefold(): str(known) for column in columns for known in column if known}
    near = [known[key] for key in get_close_matches(name.casefold(), list(known), n=5, cutoff=0.6)]
    hint = f"Near it: {', '.join(near)}." if near else f"It has, for example, {', '.join(map(str, var.index[:3]))}."
    raise InputError(f"gene {name!r} is not among the {len(var):,} genes of this model. {hint}")


def target_label(var: pd.DataFrame, number: int) -> str:
    """What a feature is called before people: a gene that goes by its Ensembl id as SYMBOL (ENSG…), all others by name."""
    name, symbol = str(var.index[number]), var["symbol"].iloc[number] if "symbol" in var else ""
    return name if pd.isna(symbol) or symbol in ("", name) else f"{symbol} ({name})"


def peaks_named(translator: Translator, name: str) -> Int64[np.ndarray, " peaks"]:
    """Numbers of the peaks that share a base with an interval such as chr1:100-200."""
    return peaks_in(translator, Regions.parse([name], where="peak"), repr(name))


def peaks_in(translator: Translator, asked: Regions, what: str) -> Int64[np.ndarray, " peaks"]:
    """Numbers of the peaks that share a base with any of these intervals."""
    own = Regions.from_var(translator.var("atac"), where="the model")
    hits = np.flatnonzero(own.overlaps(asked).getnnz(axis=1))
    if len(hits):
        return hits.astype(np.int64)
    chrom = asked.chroms[asked.chrom[0]]
    if chrom not in own.chroms:
        hint = f"It has none on {chrom}: its chromosomes are {', '.join(own.chroms[:5])} …"
    else:
        here = np.flatnonzero(own.chrom == own.chroms.index(chrom))
        away = np.maximum(own.start[here] - asked.start[0], asked.start[0] - own.end[here])
        hint = f"Near it: {', '.join(own.names()[here[np.argsort(away, kind='stable')[:3]]])}."
    raise InputError(f"peaks {what}: share no base with the {len(own):,} peaks of this model. {hint}")


def peaks_listed(translator: Translator, given: Sequence[str], option: str) -> Int64[np.ndarray, " peaks"]:
    """Numbers of the peaks that overlap what is listed: intervals, and BED files of them."""
    parts = []
    for name in given:
        path = Path(name)
        if path.is_file():
            parts.append(peaks_in(translator, read_bed(path), f"of {path}"))
        elif ":" not in name and ("/" in name or name.lower().endswith((".bed", ".gz"))):
            raise InputError(f"{option}: {name} is no file, nor a peak such as chr1:100-200.")
        else:
            parts.append(peaks_in(translator, Regions.parse([name], where=option), repr(name)))
    return _in_order(parts)


def cell_groups(obs: pd.DataFrame, labels: str | None) -> dict[str, Int64[np.ndarray, " cells"]]:
    """ "all", then each value of a column of obs that some cell has, with its cells."""
    groups: dict[str, Int64[np.ndarray, " cells"]] = {ALL: np.arange(len(obs))}
    if labels is None:
        return groups
    column = column_of(obs, labels, "--labels")
    for value in sorted(set(column) - {""}):
        groups[value if value != ALL else f"{ALL} ({labels})"] = np.flatnonzero(column == value)
    return groups


def column_of(obs: pd.DataFrame, name: str, option: str) -> np.ndarray:
    """A column of obs as text, "" where it is missing; InputError, which names the option, where there is none."""
    if name not in obs:
        raise InputError(
            f"{option}: obs has no column {name!r}; it has {', '.join(map(str, obs.columns)) or 'none'}. Name one of these."
        )
    column = obs[name]
    return np.where(column.isna(), "", column.astype(str)).astype(object)


def cells_of_type(obs: pd.DataFrame, given: str) -> Int64[np.ndarray, " cells"]:
    """Cells of COLUMN=VALUE; InputError where it is not of that form or none is."""
    column, equals, value = given.partition("=")
    if not equals:
        raise InputError(f"--cell-type: {given!r} is not COLUMN=VALUE, such as cell_type=B.")
    values = column_of(obs, column, "--cell-type")
    found = np.flatnonzero(values == value)
    if not len(found):
        known = sorted(set(values) - {""})
        near = get_close_matches(value, known, n=3, cutoff=0.5) or known[:5]
        raise InputError(f"--cell-type: no cell has {column} {value!r}; {column} is {', '.join(near)} …")
    return found


def places(var: pd.DataFrame, modality: Modality) -> pd.DataFrame:
    """chrom, start and end of features; of a gene its transcription start, missing where it is not known, and its symbol."""
    if modality == "atac":
        return var[["chrom", "start", "end"]]
    known = (var["tss"] >= 0) & (var["chrom"] != "")
    tss = var["tss"].astype("Int64").where(known)
    return pd.DataFrame({"symbol": var["symbol"], "chrom": var["chrom"], "start": tss, "end": tss + 1})


def gene_regions(genes: pd.DataFrame, reach: int = 0) -> tuple[Regions, Int64[np.ndarray, " known"]]:
    """Intervals of `reach` bases to both sides of the transcription starts that are known, and which genes these are of."""
    known = np.flatnonzero((genes["tss"] >= 0).to_numpy() & (genes["chrom"] != "").to_numpy())
    tss = genes["tss"].to_numpy(np.int64)[known]
    chrom = genes["chrom"].to_numpy(object)[known]
    return Regions.of(chrom, np.maximum(tss - reach, 0), tss + reach + 1), known


def signed_distance(
    tss: Int64[np.ndarray, " pairs"], start: Int64[np.ndarray, " pairs"], end: Int64[np.ndarray, " pairs"]
) -> Int64[np.ndarray, " pairs"]:
    """Bases from a transcription start to the nearest base of a peak: 0 inside, positive towards the end of the chromosome."""
    return np.where(start > tss, start - tss, np.where(end <= tss, end - 1 - tss, 0))


def tss_distance(translator: Translator, source: Modality, number: int) -> pd.arrays.IntegerArray:
    """`signed_distance` between a target and every feature of `source`, from the gene to the peak, whichever is the target.

    Missing on other chromosomes, and where a gene's place is not known.
    """
    genes, peaks = translator.var("rna"), translator.var("atac")
    one = (genes if source == "atac" else peaks).iloc[number]
    others = peaks if source == "atac" else genes
    n = len(others)
    if source == "atac":
        tss = np.full(n, int(one["tss"]), np.int64)
        start, end = others["start"].to_numpy(np.int64), others["end"].to_numpy(np.int64)
    else:
        tss = others["tss"].to_numpy(np.int64)
        start, end = np.full(n, int(one["start"]), np.int64), np.full(n, int(one["end"]), np.int64)
    there = (others["chrom"] == one["chrom"]).to_numpy(bool) & (tss >= 0) & (one["chrom"] != "")
    return pd.arrays.IntegerArray(signed_distance(tss, start, end), ~there)
