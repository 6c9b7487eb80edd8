"""One draw of either protocol: what each method is given, how its answer is scored, and what intervals and figures need."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Num
from scipy import sparse

from expresser.errors import InputError
from expresser.metrics.expression import ExpressionScores
from finetune.cells import CellCounts
from finetune.counts import cells_of, pattern, totals
from finetune.imputation import molecular_cv
from finetune.imputation.baselines import BASELINES, Counts, Rows
from finetune.imputation.protocols import drop_entries, split_molecules
from finetune.imputation.verdicts import GroupSums, deal, entry_sums
from finetune.state import Result

_POINTS = 100_000  # entries kept for the scatter: the density does not change beyond


class DropoutDraw:
    """Non-zero entries are hidden; a method is told where they are (`protocols.drop_entries`)."""

    def __init__(self, cells: CellCounts, *, seed: int, drop: float) -> None:
        self.seed = seed
        self.draw = drop_entries(cells.counts, drop=drop, seed=seed, rows=cells.rows)
        self.n_entries = self.draw.queries.nnz
        self._group = deal(cells.counts.shape[0])
        if not self.n_entries:
            raise InputError(
                f"{cells.about['name']}: drop {drop} hid none of {cells.counts.nnz} non-zero entries. "
                "Give more cells, or drop more."
            )

    def baseline(self, name: str, reference: Counts | None) -> Rows:
        """The rows that a baseline gives."""
        return BASELINES[name].run(self.draw.observed, self.draw.queries, reference=reference, seed=self.seed)

    def asked(self) -> tuple[Counts, Counts]:
        """Counts and queries for a model."""
        return self.draw.observed, self.draw.queries

    def from_model(self, value: np.ndarray) -> np.ndarray:
        """What a model answered, in the units that are scored."""
        return value.astype(np.float64)

    def score(self, answer: np.ndarray, reference: Counts | None, *, drawn: bool) -> Result:
        """Scores of an answer; with what figures show of it where `drawn`."""
        queries, truth = self.draw.queries, self.draw.truth
        cell, n_cells = cells_of(queries), queries.shape[0]
        scores = ExpressionScores(queries.shape[1], n_cells)
        scores.update(truth=truth, prediction=answer, gene=queries.indices, cell=cell)
        by_cell = entry_sums(truth, answer, None, cell, n_cells)
        arrays = {"sums": GroupSums.of_cells(by_cell, self._group).values}
        if drawn:
            step = max(1, -(-len(truth) // _POINTS))
            arrays |= {"by_gene": scores.per_gene(), "truth": truth[::step], "prediction": answer[::step]}
        return Result(scores.compute(), arrays)


class MolecularDraw:
    """Molecules are split in two; every entry of the most counted genes is judged (`molecular_cv`)."""

    def __init__(self, cells: CellCounts, *, seed: int, n_genes: int) -> None:
        self.seed = seed
        split = split_molecules(cells.counts, seed=seed, rows=cells.rows)
        both = np.flatnonzero((totals(split.train) > 0) & (totals(split.test) > 0))
        if not len(both):
            raise InputError(
                f"{cells.about['name']}: none of {len(cells.rows)} cells has molecules in both parts. "
                "Give deeper cells."
            )
        self.train, self.test = sparse.csr_matrix(split.train[both]), sparse.csr_matrix(split.test[both])
        self.wanted = molecular_cv.wanted_entries(self.train, n_genes)
        self.n_entries = self.wanted.nnz
        self._group = deal(cells.counts.shape[0])[both]

    def baseline(self, name: str, reference: Counts | None) -> Rows:
        """The rate that a baseline gives."""
        return {name: molecular_cv.METHODS[name](self.train, self.wanted, reference=reference, seed=self.seed)}

    def asked(self) -> tuple[Counts, Counts]:
        """Counts and queries for a model."""
        # Ones, not zeros: an entry that is observed and asked is hidden from its own prediction by what is stored here.
        return self.train, pattern(self.wanted)

    def from_model(self, value: np.ndarray) -> np.ndarray:
        """What a model answered, in the units that are scored."""
        return molecular_cv.as_share(value, self.train, self.wanted)

    def score(self, answer: np.ndarray, reference: Counts | None, *, drawn: bool) -> Result:
        """Losses of an answer; with r by gene where `drawn`."""
        losses, scores = molecular_cv.score_share(
            answer, train=self.train, test=self.test, wanted=self.wanted, reference=reference
        )
        arrays = {"sums": GroupSums.of_cells(scores.by_cell, self._group).values}
        if drawn:
            arrays["by_gene"] = scores.expression.per_gene()
        return Result(losses, arrays)


@dataclass(frozen=True, eq=False)
class Drawings:
    """What the figures need, of the first draw at the first share alone: a sample of entries, and r by gene, by method."""

    truth: Float64[np.ndarray, " points"] | None = None
    prediction: Mapping[str, Num[np.ndarray, " points"]] = field(default_factory=dict)
    by_gene: Mapping[str, Float64[np.ndarray, " genes"]] = field(default_factory=dict)
