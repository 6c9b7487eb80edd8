"""Whether imputation invents co-expression: genes whose ties to all others are cut by shuffling must stay without ties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Float64, Int, Int64
from scipy import sparse

from finetune.counts import choose_rows, log_normalise, totals
from finetune.imputation.baselines import Counts
from finetune.imputation.fill import Asked, dense, filled

CELLS, GENES = 500, 100  # at most; half of the genes are shuffled
STRONG = 0.3  # |r| that is commonly drawn as an edge of a gene network
RISE = 0.1  # so much more of the pairs above it than before is invention

Said = Literal["invents", "through depth", "keeps"]

_LEAST_CELLS, _LEAST_GENES = 20, 8
_DETECTED = 0.05  # share of cells: what is rarer has no correlation to speak of
_BINS = 10


@dataclass(frozen=True, eq=False)
class CoexpressionCheck:
    """Cells in which some genes' counts have been exchanged between cells of like depth.

    `counts` holds all genes; of `genes`, rising, those where `shuffled` were exchanged, each for itself. The others are
    random genes too, left as measured. What correlation is left before imputation is chance and depth: a deep cell
    shows more genes, and its single molecules are worth less.
    """

    counts: Counts
    genes: Int[np.ndarray, " genes"]
    shuffled: np.ndarray
    seed: int

    @classmethod
    def of(cls, counts: Counts, *, seed: int, max_cells: int = CELLS, max_genes: int = GENES) -> "CoexpressionCheck":
        """By keyed draws from at most so many cells, and from genes that a twentieth of them show; see `impossible`."""
        some = sparse.csr_matrix(counts[choose_rows(counts.shape[0], max_cells, seed)])
        eligible = _eligible(some)
        rng = np.random.default_rng([seed, 3])
        genes = np.sort(rng.permutation(eligible)[: min(max_genes, len(eligible)) // 2 * 2])
        shuffled = np.zeros(len(genes), dtype=bool)
        shuffled[rng.permutation(len(genes))[: len(genes) // 2]] = True
        order = np.argsort(totals(some), kind="stable")
        bins = np.array_split(order, max(1, min(_BINS, len(order) // 10)))
        columns = some.tocsc()[:, genes[shuffled]].toarray()
        for j in range(columns.shape[1]):
            for cells in bins:
                columns[cells, j] = columns[rng.permutation(cells), j]
        changed = some.tolil()
        changed[:, genes[shuffled]] = columns
        found = sparse.csr_matrix(changed.tocsr(), dtype=counts.dtype)
        found.eliminate_zeros()
        # A cell of few genes may have lost them all to others: it has no total to be scaled by.
        return cls(found[totals(found) > 0], genes, shuffled, seed)

    def about(self) -> Int64[np.ndarray, "4"]:
        """Cells; genes; of these shuffled; pairs of a shuffled gene with any other of the genes."""
        return np.array([self.counts.shape[0], len(self.genes), self.shuffled.sum(), self._pairs().sum()])

    def observed(self) -> dict[str, float]:
        """Before imputation."""
        return self._scores(dense(log_normalise(self.counts), np.arange(self.counts.shape[0]), self.genes))

    def filled(self, method: str | Asked) -> dict[str, float]:
        """After it: smoothers replace every value, predictors of non-zero values fill the zeros."""
        return self._scores(filled(method, self.counts, np.arange(self.counts.shape[0]), self.genes, seed=self.seed))

    def _scores(self, values: Float[np.ndarray, "cells genes"]) -> dict[str, float]:
        depth = np.log(totals(self.counts))
        pairs = self._pairs()
        found: dict[str, float] = {}
        for suffix, x in (("", values.astype(np.float64)), ("_given_depth", _without(values, depth))):
            r = correlations(x)[pairs]
            there = np.abs(r[~np.isnan(r)])
            found[f"r{suffix}"] = float(there.mean()) if there.size else float("nan")
            found[f"strong{suffix}"] = float((there > STRONG).mean()) if there.size else float("nan")
        return found | {"undefined": float(np.isnan(r).sum())}

    def _pairs(self) -> np.ndarray:
        return np.triu(self.shuffled[:, None] | self.shuffled[None, :], 1)


def impossible(counts: Counts) -> str | None:
    """Why there can be no check of these counts; None where there can."""
    if counts.shape[0] < _LEAST_CELLS:
        return f"{counts.shape[0]} cells are too few: it takes {_LEAST_CELLS}"
    found = len(_eligible(counts))
    if found < _LEAST_GENES:
        return f"{found} genes are seen in {_DETECTED:.0%} of the cells: it takes {_LEAST_GENES}"
    return None


def correlations(x: Float64[np.ndarray, "cells genes"]) -> Float64[np.ndarray, "genes genes"]:
    """Pearson r of all pairs; NaN with a gene that is constant up to rounding."""
    centred = x - x.mean(axis=0)
    length = np.linalg.norm(centred, axis=0)
    length[length <= 1e-6 * np.linalg.norm(x, axis=0)] = np.nan
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = centred / length
    return np.clip(unit.T @ unit, -1.0, 1.0)


def said(methods: Mapping[str, Mapping[str, float]], before: str) -> dict[str, Said]:
    """Which methods invent co-expression, by the share of pairs above `STRONG` against that before imputation.

    invents: it rises by more than `RISE`, also with a cubic in log depth taken out of each gene; through depth:
    only without that; keeps: neither.
    """
    found: dict[str, Said] = {}
    base = methods[before]
    for name, of in methods.items():
        if name != before:
            rises = {s: of[s] - base[s] > RISE for s in ("strong", "strong_given_depth")}
            found[name] = "invents" if rises["strong_given_depth"] else "through depth" if rises["strong"] else "keeps"
    return found


def sentence(words: Mapping[str, Said]) -> str:
    """The findings of `said` in one sentence for each kind."""
    by: dict[Said, list[str]] = {"invents": [], "through depth": [], "keeps": []}
    for name, word in words.items():
        by[word].append(name)
    lines = []
    if names := by["invents"]:
        lines.append(
            f"Correlation between genes that have nothing to do with each other is invented by {_list(names)}."
        )
    if names := by["through depth"]:
        verb = "ties" if len(names) == 1 else "tie"
        lines.append(
            f"{_list(names)} {verb} genes to the depth of the cell and so to each other: given the depth, little of it is "
            "left."
        )
    if names := by["keeps"]:
        verb = "invents" if len(names) == 1 else "invent"
        what = "none" if by["invents"] else "no correlation between unrelated genes"
        lines.append(f"{_list(names)} {verb} {what} to speak of.")
    return " ".join(lines)


def _list(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _eligible(counts: Counts) -> Int[np.ndarray, " eligible"]:
    seen = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1])
    return np.flatnonzero((seen >= _DETECTED * counts.shape[0]) & (seen >= 3))


def _without(
    values: Float[np.ndarray, "cells genes"], depth: Float64[np.ndarray, " cells"]
) -> Float64[np.ndarray, "cells genes"]:
    """What a cubic in depth leaves of each gene."""
    x = values.astype(np.float64)
    line = depth - depth.mean()
    line = line / max(float(np.abs(line).max()), 1e-300)
    basis, sizes, _ = np.linalg.svd(np.vander(line, 4), full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]  # one column where all cells are equally deep
    return x - basis @ (basis.T @ x)
