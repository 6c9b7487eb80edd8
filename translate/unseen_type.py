"""One cell type held out, so that no test cell is of another: its differential genes, against cells of other types that trained."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy import sparse

from translate.markers import CellTypes, RankSums, differential_scores, rank_sums
from translate.predicted import Predicted
from translate.scoring import BUDGET_MB, cuts

OTHERS = 2000  # cells of other types, drawn at random
MIN_CELLS = 10
_TYPE, _OTHERS = "type", "others"


def only_type(labels: pd.Series) -> str | None:
    """The one label that these cells have, where at least ten have it and none has another."""
    known = labels[labels.notna() & (labels.astype(str) != "")].astype(str)
    return str(known.iloc[0]) if len(known) >= MIN_CELLS and known.nunique() == 1 else None


def others_of(
    labels: pd.Series, cells: Int64[np.ndarray, " cells"], held: str, *, seed: int = 0
) -> Int64[np.ndarray, " others"]:
    """Of `cells`, at most `OTHERS` with a label that is not `held`, in their order."""
    given = labels.iloc[cells]
    other = cells[(given.notna() & (given.astype(str) != "") & (given.astype(str) != held)).to_numpy(dtype=bool)]
    if len(other) <= OTHERS:
        return other
    return np.sort(np.random.default_rng(seed).choice(other, OTHERS, replace=False))


@dataclass(frozen=True, eq=False)
class AgainstOthers:
    """Measured expression of the type's cells, and of others, as ``ln(1 + size-normalised count)``."""

    own: sparse.csr_matrix = field(repr=False)
    others: sparse.csr_matrix = field(repr=False)

    @cached_property
    def types(self) -> CellTypes:
        """The type, and all others as one."""
        return CellTypes.of(np.repeat([_TYPE, _OTHERS], [self.own.shape[0], self.others.shape[0]]), min_cells=MIN_CELLS)

    @cached_property
    def measured(self) -> RankSums:
        """What is higher in the type, by measured values."""
        return self._of_the_type(rank_sums(sparse.vstack([self.own, self.others], format="csc"), self.types))

    def scores(self, own: Predicted, others: Predicted, *, budget_mb: float = BUDGET_MB) -> dict[str, float]:
        """de_auprc and de_auprc_chance, as `translate.markers.differential_scores` has them, of this type alone.

        Predicted values of the type's cells are compared with predicted values of the others, so that what prediction does
        to all cells alike does not count.
        """
        z = np.zeros((1, own.n_features), np.float32)
        for part in cuts(own.n_features, own.n_cells + others.n_cells, budget_mb):
            blocks = [side.block(slice(0, side.n_cells), part) for side in (own, others)]
            z[:, part] = self._of_the_type(rank_sums(np.concatenate(blocks), self.types)).z
        return differential_scores(self.measured, z).scores()

    def _of_the_type(self, found: RankSums) -> RankSums:
        row = [self.types.names.index(_TYPE)]
        return RankSums(found.auroc[row], found.z[row])
