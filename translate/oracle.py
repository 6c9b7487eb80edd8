"""The best there is: a simulator's true rates as predictions, on the scale of everyone's, computed block by block."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int64

from expresser.errors import InputError
from expresser.simulate import Cite, Multiome
from translate.feed import Inputs
from translate.preprocess import AtacInput, RnaInput
from translate.study import Measured, Modality

_BLOCK = 1 << 22  # entries that are dense at one time
_Index: TypeAlias = Int64[np.ndarray, "_"]


@dataclass(frozen=True, eq=False)
class TrueValues:
    """A `Predicted` whose blocks are what `values` says of cells and features by number."""

    to: Modality
    values: Callable[[_Index, _Index], Float[np.ndarray, "cells features"]] = field(repr=False)
    n_cells: int
    n_features: int

    def block(self, cells: slice, features: slice) -> Float32[np.ndarray, "cells features"]:
        """Values of these cells and features."""
        chosen = (
            np.arange(n, dtype=np.int64)[part] for n, part in ((self.n_cells, cells), (self.n_features, features))
        )
        return np.asarray(self.values(*chosen), dtype=np.float32)


def oracle(
    truth: Multiome | Cite, inputs: Inputs, *, own_depth: bool = False
) -> Mapping[str, Callable[[Measured], TrueValues]]:
    """Both directions of a simulation, as methods that `evaluate` takes.

    rna: ``ln(1 + median library * p / Σ p over the model's genes)``, p the true shares; atac: the true probability that a
    peak is open; protein: CLR of the expected counts. Cells are found by name. The depth of the measurement is not known
    to it, as it is to nobody who predicts one modality from another; with `own_depth` it is (atac, protein), and what is
    then still missing is chance alone. No mean of measured values, so a method that is fitted to them can come out ahead
    in mae and rmse: log1p of a mean is more than the mean of log1p.
    """
    other: Modality = "atac" if isinstance(truth, Multiome) else "protein"

    def predict_rna(measured: Measured) -> TrueValues:
        model = inputs["rna"]
        if not isinstance(model, RnaInput):
            raise InputError("oracle: the inputs of rna are not RnaInput.")
        rows, genes = _found(measured.obs.index, truth.rna.obs_names), _found(model.var.index, truth.rna.var_names)
        step = max(1, _BLOCK // len(genes))
        starts = range(0, len(rows), step)
        totals = np.concatenate([truth.true_rna(rows[i : i + step], genes).sum(axis=1) for i in starts])

        def values(cells: _Index, features: _Index) -> Float[np.ndarray, "cells features"]:
            share = truth.true_rna(rows[cells], genes[features]) / totals[cells, None]
            return np.log1p(model.median_library * share)

        return TrueValues("rna", values, len(rows), len(genes))

    def predict_atac(measured: Measured) -> TrueValues:
        model = inputs["atac"]
        if not isinstance(model, AtacInput) or not isinstance(truth, Multiome):
            raise InputError("oracle: the inputs of atac are not AtacInput.")
        known, atac = _found(measured.obs.index, truth.atac.obs_names), truth
        peaks = _found(pd.Index(model.regions.names()), truth.atac.var_names)
        return TrueValues(
            "atac", lambda c, f: atac.true_atac(known[c], peaks[f], own_depth=own_depth), len(known), len(peaks)
        )

    def predict_protein(measured: Measured) -> TrueValues:
        if not isinstance(truth, Cite):
            raise InputError("oracle: this simulation has no proteins.")
        cite, rows = truth, _found(measured.obs.index, truth.protein.obs_names)
        proteins = _found(inputs["protein"].var.index, truth.protein.var_names)

        def values(cells: _Index, features: _Index) -> Float[np.ndarray, "cells features"]:
            logs = np.log1p(
                cite.true_protein(rows[cells], proteins, own_depth=own_depth)
            )  # the mean is over all of them
            return (logs - logs.mean(axis=1, keepdims=True))[:, features]

        return TrueValues("protein", values, len(rows), len(proteins))

    return {f"rna_to_{other}": predict_atac if other == "atac" else predict_protein, f"{other}_to_rna": predict_rna}


def _found(wanted: pd.Index, given: pd.Index) -> _Index:
    """Where names stand in the simulation; InputError where one does not."""
    at = given.get_indexer(wanted).astype(np.int64)
    if (at < 0).any():
        raise InputError(
            f"oracle: {int((at < 0).sum()):,} of {len(at):,} names are not in the simulation (first: "
            f"{str(wanted[np.argmin(at)])!r}). Pass the simulation that the study was read from."
        )
    return at
