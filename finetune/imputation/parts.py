"""A comparison of imputation cut into parts, one method on one draw each, that are run in order or taken from disk."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from finetune.cells import CellCounts
from finetune.imputation.baselines import Counts
from finetune.imputation.checks import Checks, Found, Part
from finetune.imputation.clusters import ClusterCheck
from finetune.imputation.draws import Drawings, DropoutDraw, MolecularDraw
from finetune.imputation.fill import Asked
from finetune.imputation.verdicts import Direction, GroupSums, summary, verdicts
from finetune.state import Result

MODEL = "expresser"


@dataclass(frozen=True, eq=False)
class Comparison:
    """What is compared on what. `shares`: dropped, the headline first; None stands for a split of molecules."""

    cells: CellCounts
    methods: Sequence[str]
    asked: Asked | None  # the model
    references: Sequence[tuple[Counts | None, str]]
    shares: Sequence[float | None]
    seeds: Sequence[int]
    mcv_genes: int
    checks: Checks

    @property
    def fillers(self) -> dict[str, str | Asked]:
        """The methods of the checks, in order: all that run, without reference cells."""
        model: dict[str, str | Asked] = {} if self.asked is None else {MODEL: self.asked}
        return dict(zip(self.methods, self.methods, strict=True)) | model

    def parts(self) -> Iterator[Part]:
        """Draw by draw. A draw is made when a part of it is run: never where all of its parts are on disk."""
        for share in self.shares:
            for seed in self.seeds:
                turn = _Turn(self, share, seed)
                for name in self.methods:
                    for given, suffix in self.references:
                        yield _part(share, seed, name + suffix), partial(turn.baseline, name, given, suffix)
                if self.asked is not None:
                    yield _part(share, seed, MODEL), partial(turn.model, self.asked)
                if turn.headline:
                    yield from self.checks.cluster_parts(turn.clusters, seed, self.fillers)
        for seed in self.seeds:
            yield from self.checks.coexpression_parts(self.cells.counts, seed, self.fillers)

    def rows(self, found: Found, share: float | None) -> dict[str, list[Result]]:
        """Row of the table -> its result on each draw."""
        rows: dict[str, list[Result]] = {}
        names = [name + suffix for name in self.methods for _, suffix in self.references]
        for name in [*names, *([] if self.asked is None else [MODEL])]:
            for seed in self.seeds:
                for row, result in found[_part(share, seed, name)].items():
                    rows.setdefault(row, []).append(result)
        return rows

    def table(self, found: Found, share: float | None, deciding: Mapping[str, Direction]) -> dict[str, Any]:
        """Scores and verdicts at one share, as `metrics.json` holds them."""
        rows = self.rows(found, share)
        said = verdicts(
            {name: [GroupSums(r.arrays["sums"]) for r in results] for name, results in rows.items()}, deciding, MODEL
        )
        entries = [r.facts["n_entries"] for results in rows.values() for r in results]
        return {
            "methods": {name: summary([r.facts["scores"] for r in results]) for name, results in rows.items()},
            "verdict": {name: v.said for name, v in said.items()},
            "differences": {name: v.facts() for name, v in said.items()},
            "n_entries": round(float(np.mean(entries))) if entries else 0,
        }

    def checked(self, found: Found) -> dict[str, Any]:
        """What `metrics.json` holds of the checks."""
        completed = {
            name: [r.facts["clusters"] for r in results]
            for name, results in self.rows(found, self.shares[0]).items()
            if all("clusters" in r.facts for r in results)
        }
        return self.checks.metrics(found, self.seeds, list(self.fillers), completed)

    def drawings(self, found: Found) -> Drawings:
        """What figures show: the first draw at the first share."""
        first = {name: results[0].arrays for name, results in self.rows(found, self.shares[0]).items()}
        return Drawings(
            truth=next((of["truth"] for of in first.values() if "truth" in of), None),
            prediction={name: of["prediction"] for name, of in first.items() if "prediction" in of},
            by_gene={name: of["by_gene"] for name, of in first.items()},
        )


class _Turn:
    """One draw, and the methods on it."""

    def __init__(self, comparison: Comparison, share: float | None, seed: int) -> None:
        self._of, self._share, self._seed = comparison, share, seed
        self.headline = share == comparison.shares[0]

    @cached_property
    def _draw(self) -> DropoutDraw | MolecularDraw:
        if self._share is None:
            return MolecularDraw(self._of.cells, seed=self._seed, n_genes=self._of.mcv_genes)
        return DropoutDraw(self._of.cells, seed=self._seed, drop=self._share)

    @cached_property
    def _clusters(self) -> ClusterCheck | None:
        if self._of.checks.labels is None or not isinstance(self._draw, DropoutDraw) or not self.headline:
            return None
        return ClusterCheck(self._of.cells.counts, self._draw.draw, self._of.checks.labels, seed=self._seed)

    def clusters(self) -> ClusterCheck:
        """The check of this draw's clusters, where there is one."""
        if self._clusters is None:
            raise ValueError("clusters are compared in the dropout protocol, at the first share, with labels.")
        return self._clusters

    def baseline(self, name: str, given: Counts | None, suffix: str) -> dict[str, Result]:
        """The rows of a baseline, learnt with or without reference cells."""
        draw = self._draw  # made before the clock starts
        start = time.perf_counter()
        rows = draw.baseline(name, given)
        seconds = time.perf_counter() - start
        return {row + suffix: self._result(answer, given, seconds, checked=not suffix) for row, answer in rows.items()}

    def model(self, asked: Asked) -> dict[str, Result]:
        """The model's row."""
        draw = self._draw
        start = time.perf_counter()
        answer = draw.from_model(asked(*draw.asked()))
        return {MODEL: self._result(answer, None, time.perf_counter() - start, checked=True)}

    def _result(self, answer: np.ndarray, given: Counts | None, seconds: float, *, checked: bool) -> Result:
        drawn = self.headline and self._seed == self._of.seeds[0]
        scores = self._draw.score(answer, given, drawn=drawn)
        facts = {"scores": scores.facts | {"seconds": seconds}, "n_entries": self._draw.n_entries}
        if checked and self._clusters is not None:
            facts["clusters"] = self._clusters.completed(answer)
        return Result(facts, scores.arrays)


def _part(share: float | None, seed: int, name: str) -> str:
    return f"{'mcv' if share is None else f'drop-{share:g}'}-seed-{seed}-{name}"
