"""What is asked of a model: cells of another genome build brought to its own, and features asked for by place."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from translate.align import match_genes, take_columns
from translate.large import by_rows
from translate.liftover import LiftReport, lift
from translate.study import Measured, Modality
from translate.translator import Translator
from translate.verdicts import FEATURES


def lifted(measured: Measured, chain: str) -> tuple[Measured, LiftReport]:
    """Peaks of these cells lifted over to another build (`translate.liftover`); peaks that land on one place are added up."""
    regions, kept, report = lift(Regions.from_var(measured.var, where=measured.name), chain)
    matrix = take_columns(measured.matrix, kept)
    if regions.duplicated().any():
        code = pd.factorize(regions.names())[0]
        onto = sparse.csr_matrix((np.ones(len(code), np.float32), (np.arange(len(code)), code)))

        def added_up(rows: sparse.csr_matrix) -> sparse.csr_matrix:
            return sparse.csr_matrix(rows @ onto).sorted_indices()

        matrix = by_rows(matrix, added_up)
        regions = regions.take(np.unique(code, return_index=True)[1])
    return replace(measured, matrix=matrix, var=regions.to_frame()), report


def matched(translator: Translator, measured: Measured, source: Modality) -> str:
    """In one line: how much of what the model reads the file has, and how many of its cells have no count there."""
    wanted = translator.var(source)
    if source == "atac":
        given, own = (Regions.from_var(var, where=measured.name) for var in (measured.var, wanted))
        pairs = given.overlaps(own)
        found, used = int((pairs.getnnz(axis=0) > 0).sum()), pairs.getnnz(axis=1) > 0
    else:
        columns = match_genes(wanted, measured.var) if source == "rna" else measured.var.index.get_indexer(wanted.index)
        found, used = int((columns >= 0).sum()), np.zeros(measured.n_features, bool)
        used[columns[columns >= 0]] = True
    line = f"{measured.name}: has {found:,} of the {len(wanted):,} {FEATURES[source]} that the model reads"
    empty = np.flatnonzero(measured.matrix @ used.astype(np.float32) == 0)
    if len(empty):
        line += (
            f"; {len(empty):,} of {measured.n_cells:,} cells have no count in them (first: "
            f"{str(measured.obs.index[empty[0]])!r}), so nothing is known about what is predicted for those"
        )
    return f"{line}."


def wanted_features(
    translator: Translator, to: Modality, *, names: Sequence[str] = (), regions: Sequence[str] = ()
) -> Int64[np.ndarray, " features"] | None:
    """Numbers of the features named, or of those in the regions ("chr1:1000-2000"); None where neither is given.

    Peaks that share a base with a region, genes whose transcription starts in it; in the order of the model, each once.
    """
    if names and regions:
        raise InputError("features are asked for by name (--features) or by place (--regions), not both.")
    if names:
        return translator.features(to, list(dict.fromkeys(names)))
    if not regions:
        return None
    var = translator.var(to)
    if whole := [name for name in regions if name in set(var.get("chrom", ()))]:
        raise InputError(
            f"--regions: {whole[0]!r} is a chromosome, not an interval: write {whole[0]}:0-1000000000 for all of it."
        )
    asked = Regions.parse(list(regions), where="--regions")
    if to == "atac":
        own = Regions.from_var(var, where="the model")
    elif to == "rna":
        known = np.flatnonzero((var["tss"] >= 0).to_numpy() & (var["chrom"] != "").to_numpy())
        start = var["tss"].to_numpy()[known]
        own = Regions.of(var["chrom"].to_numpy(dtype=object)[known], start, start + 1)
    else:
        raise InputError("proteins have no place in the genome: ask for them by name, with --features.")
    found = np.flatnonzero(own.overlaps(asked).getnnz(axis=1) > 0)
    if not len(found):
        what = "peaks share a base with" if to == "atac" else "known transcription start sites lie in"
        raise InputError(
            f"--regions: none of the model's {len(own):,} {what} {', '.join(asked.names()[:3])}. It has, for example, "
            f"{', '.join(own.names()[:3])}."
        )
    return found.astype(np.int64) if to == "atac" else known[found].astype(np.int64)
