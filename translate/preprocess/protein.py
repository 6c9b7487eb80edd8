"""Antibody counts as networks predict them: centred log-ratios of each cell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float32, Int64

from expresser.errors import InputError
from translate.align import take_columns
from translate.preprocess.proofs import names_of
from translate.study import Measured


@dataclass(frozen=True, eq=False)
class ProteinInput:
    """CLR: ln(count + 1) less its mean over the cell's proteins. Nothing is learnt but which proteins there are."""

    var: pd.DataFrame = field(repr=False)  # index: names, sorted

    @classmethod
    def fit(cls, measured: Measured, cells: Int64[np.ndarray, " training"]) -> "ProteinInput":
        """All proteins of the file. `cells` teach nothing; they are asked for as of the other modalities."""
        return cls(measured.var.sort_index(kind="stable"))

    def align(self, measured: Measured) -> Float32[np.ndarray, "cells proteins"]:
        """CLR of these proteins in this order. InputError where a protein is lacking: the mean is over all of them."""
        columns = measured.var.index.get_indexer(self.var.index).astype(np.int64)
        absent = self.var.index[columns < 0]
        if len(absent):
            raise InputError(
                f"{measured.name}: {len(absent)} of the model's {len(self.var)} proteins are not among its "
                f"{measured.n_features} (lacking: {', '.join(map(repr, absent[:3]))}; it has: "
                f"{', '.join(map(repr, measured.var.index[:3]))}). Centred log-ratios need all of them under one name."
            )
        x = np.log1p(take_columns(measured.matrix, columns).toarray().astype(np.float64))
        return (x - x.mean(axis=1, keepdims=True)).astype(np.float32)

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays (none), and settings for JSON."""
        return {}, {"names": self.var.index.tolist()}

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> "ProteinInput":
        """From what `saved` returned."""
        return cls(pd.DataFrame(index=pd.Index(names_of(settings["names"], "proteins"), dtype=object)))
