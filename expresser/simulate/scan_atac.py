r"""Draws the fragments of single cells from bulk profiles, as SCAN-ATAC-Sim does (Chen et al., Bioinformatics 2021).

A cell has two copies of every chromosome: its fragments come in two rounds, and in a round a region gives one at most.
A round takes its regions one after the other, each with probability proportional to the weights of those still there.
That is a race: with :math:`E_i` standard exponential, the regions of the m smallest :math:`E_i / w_i` are such a draw.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.simulate.draws import stream

_TIMES = 256  # points of the table of times


@dataclass(frozen=True, eq=False)
class Urn:
    """The regions that can be drawn, and their weights (sum 1)."""

    regions: Int64[np.ndarray, " drawable"] = field(repr=False)
    weight: Float32[np.ndarray, " drawable"] = field(repr=False)

    @classmethod
    def of(cls, weight: Float64[np.ndarray, " regions"]) -> "Urn":
        """Of one weight a region, zero where nothing is ever drawn."""
        regions = np.flatnonzero(weight > 0)
        return cls(regions, (weight[regions] / weight.sum()).astype(np.float32))

    def __len__(self) -> int:
        return len(self.regions)

    def draw(self, rng: np.random.Generator, n: int) -> Int64[np.ndarray, " n"]:
        """`n` different regions, in no order."""
        if not 0 <= n <= len(self):
            raise InputError(f"draw: {n:,} of {len(self):,} regions cannot be drawn without replacement.")
        if n == 0:
            return np.empty(0, np.int64)
        waits = rng.standard_exponential(len(self), dtype=np.float32)
        # Who arrives by a time when a few more than n are expected: the rest need not be sorted.
        early = np.flatnonzero(waits < self.weight * np.float32(self._time(n)))
        if len(early) < n:
            early = np.arange(len(self))
        arrival = waits[early] / self.weight[early]
        return self.regions[early[np.argpartition(arrival, n - 1)[:n]]]

    @cached_property
    def _arrived(self) -> tuple[Float64[np.ndarray, " times"], Float64[np.ndarray, " times"]]:
        """Times, and how many regions are expected to have arrived by each."""
        weight = self.weight.astype(np.float64)
        time = np.geomspace(0.1, 30 / weight.min(), _TIMES)
        return time, np.array([-np.expm1(-weight * t).sum() for t in time])

    def _time(self, n: int) -> float:
        """By when five standard deviations more than `n` are expected; infinite where that is everybody."""
        time, arrived = self._arrived
        return float(np.interp(n + 5 * np.sqrt(n) + 5, arrived, time, right=np.inf))


@dataclass(frozen=True, eq=False)
class ScanCells:
    """What is decided about cells before any fragment is drawn."""

    cell_type: Int64[np.ndarray, " cells"]
    fragments: Int64[np.ndarray, " cells"]
    signal: Float64[np.ndarray, " cells"]  # share of the fragments that comes from the type's peaks, rho

    def __len__(self) -> int:
        return len(self.fragments)

    def rounds(self) -> Int64[np.ndarray, "cells 4"]:
        """Regions to draw from the type's peaks, twice, and from the background, twice; they sum to the fragments."""
        peaks = np.rint(self.fragments * self.signal).astype(np.int64)
        background = self.fragments - peaks
        return np.stack([peaks - peaks // 2, peaks // 2, background - background // 2, background // 2], axis=1)


def draw_depths(
    rng: np.random.Generator, n: int, *, median: float | int, sigma: float | int, fewest: float | int, most: float | int
) -> Int64[np.ndarray, " n"]:
    """Fragments of cells: log-normal, `sigma` the standard deviation of the natural log, brought into the limits."""
    drawn = np.exp(rng.normal(np.log(median), sigma, n)) if sigma else np.full(n, float(median))
    return np.rint(np.clip(drawn, fewest, most)).astype(np.int64)


def prove_drawable(cells: ScanCells, peaks: Sequence[Urn], background: Urn) -> None:
    """InputError where a round of some cell would need more regions than there are."""
    rounds = cells.rounds()
    sizes = np.array([len(urn) for urn in peaks])[cells.cell_type]
    for needed, there, what in (
        (rounds[:, 0], sizes, "peaks of its type"),
        (rounds[:, 2], np.full(len(cells), len(background)), "regions"),
    ):
        if (over := needed > there).any():
            i = int(np.argmax(np.where(over, needed, -1)))
            raise InputError(
                f"simulate atac: a cell of {cells.fragments[i]:,} fragments needs {needed[i]:,} different {what} in one round, "
                f"and there are {there[i]:,}. Ask for more regions, for less depth, or for fewer fragments at most."
            )


def draw_fragments(
    args: Mapping[str, Any], cells: ScanCells, peaks: Sequence[Urn], background: Urn, n_regions: int, part: slice
) -> sparse.csr_matrix:
    """Fragments (cells x regions, float32) of a part of the cells; `peaks` has an urn a type.

    Every cell has a generator of its own, keyed by ``args["seed"]`` and its number: how cells are parted does not matter.
    A cell of 5,000 fragments and 30,000 regions takes 1 ms; the work space is a few numbers a region.
    """
    rounds, first = cells.rounds(), range(len(cells))[part].start
    at, counts = [np.empty(0, np.int32)], [np.empty(0, np.float32)]
    here = np.zeros(n_regions, np.uint8)
    for cell, (kind, numbers) in enumerate(zip(cells.cell_type[part].tolist(), rounds[part].tolist()), start=first):
        rng = stream(args, "cells", cell)
        for urn, n in zip((peaks[kind], peaks[kind], background, background), numbers):
            here[urn.draw(rng, n)] += 1  # a region is drawn once a round
        seen = np.flatnonzero(here > 0)
        at.append(seen.astype(np.int32))
        counts.append(here[seen].astype(np.float32))
        here[seen] = 0
    edges = np.cumsum([len(row) for row in at])
    return sparse.csr_matrix((np.concatenate(counts), np.concatenate(at), edges), shape=(len(at) - 1, n_regions))
