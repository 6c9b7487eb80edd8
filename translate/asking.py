"""What is asked of a model: cells of another genome build brought to its own, and features asked for by place."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy import sparse

from expresser.errors import InputError
from translate.liftover import LiftReport, lift
from translate.regions import Regions
from translate.study import Measured, Modality
from translate.translator import Translator


def lifted(measured: Measured, chain: str) -> tuple[Measured, LiftReport]:
    """Peaks of these cells lifted over to another build (`translate.liftover`); peaks that land on one place are added up."""
    regions, kept, report = lift(Regions.from_var(measured.var, where=measured.name), chain)
    matrix = measured.matrix[:, kept]
    if regions.duplicated().any():
        code = pd.factorize(regions.names())[0]
        onto = sparse.csr_matrix((np.ones(len(code), np.float32), (np.arange(len(code)), code)))
        matrix = sparse.csr_matrix(matrix @ onto)
        regions = regions.take(np.unique(code, return_index=True)[1])
    return replace(measured, matrix=matrix, var=regions.to_frame()), report


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
