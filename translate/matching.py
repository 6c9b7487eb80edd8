"""Cells of RNA matched to cells of ATAC by their distance in one latent: nearest, mutual, or each cell at most once."""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from expresser.errors import InputError
from expresser.metrics.alignment import foscttm

Latents = Float[np.ndarray, "_ _"]  # cells x dimensions, of the same number on both sides: `_check`
Say = Callable[[int, int, str], None]

BUDGET_MB = 256.0
OPTIMAL = 2000 * 2000  # pairs of cells up to which one-to-one matches are the best there are; above, greedy ones
_CANDIDATES = 32  # nearest cells that a greedy match looks at before it looks again
_BLOCK_MB = 32.0  # of distances at one time, for larger blocks leave the cache and are slower
_AT_ONCE = 4096  # cells between two words of progress


@dataclass(frozen=True, eq=False, repr=False)
class Matches:
    """Pairs of cells by number, those of the first RNA cell first, the nearest first."""

    rna: Int64[np.ndarray, " matches"]
    atac: Int64[np.ndarray, " matches"]
    distance: Float64[np.ndarray, " matches"]  # squared Euclidean
    rank: Int64[np.ndarray, " matches"]  # 1: the nearest ATAC cell of the RNA cell
    mutual: Bool[np.ndarray, " matches"]  # the RNA cell, too, is among the k nearest of the ATAC cell

    def __repr__(self) -> str:
        return f"Matches({len(self.rna):,} of an RNA with an ATAC cell, {int(self.mutual.sum()):,} mutual)"

    def frame(self, rna: pd.Index, atac: pd.Index) -> pd.DataFrame:
        """With the names of the cells."""
        return pd.DataFrame(
            {
                "rna": rna[self.rna],
                "atac": atac[self.atac],
                "distance": self.distance,
                "rank": self.rank,
                "mutual": self.mutual,
            }
        )


def nearest(
    rna: Latents, atac: Latents, *, k: int = 1, budget_mb: float = BUDGET_MB, say: Say = lambda done, total, what: None
) -> Matches:
    """Of each RNA cell, its `k` nearest ATAC cells by squared Euclidean distance.

    Found by matrix products (scikit-learn, brute force) some cells at a time, of which no more than `budget_mb` is kept
    beside the answer; distances are then worked out anew from differences. Products know distances to about 1e-15 of the
    squared length of the latents: cells nearer to each other than that may change places.
    """
    _check(rna, atac, k)
    there, theirs = _nearest(rna, atac, k, budget_mb, lambda n, of: say(n, of, "nearest ATAC cells"))
    # As many of the ATAC cells' own: whether a pair is mutual is asked of the same number of neighbours.
    back, _ = _nearest(atac, rna, min(k, len(rna)), budget_mb, lambda n, of: say(n, of, "nearest RNA cells"))
    cell = np.repeat(np.arange(len(rna)), k)
    mutual = np.empty(len(cell), bool)
    for first in range(0, len(cell), _AT_ONCE * 16):
        part = slice(first, first + _AT_ONCE * 16)
        mutual[part] = (back[there.ravel()[part]] == cell[part, None]).any(axis=1)
    return Matches(cell, there.ravel(), theirs.ravel(), np.tile(np.arange(1, k + 1), len(rna)), mutual)


def one_to_one(
    rna: Latents, atac: Latents, *, budget_mb: float = BUDGET_MB, say: Say = lambda done, total, what: None
) -> tuple[Matches, bool]:
    """Pairs in which no cell stands twice, as many as the smaller side has cells; and whether they are the best there are.

    Up to 4 million possible pairs the sum of squared distances is the least possible (an assignment problem, solved exactly).
    Of more, greedy, as in the Polarbear paper: of all cells still free the two nearest are matched, and so on (exactly so, but
    never with all distances at hand).
    `rank` is among all ATAC cells, and `mutual` says that both are each other's nearest.
    """
    _check(rna, atac, 1)
    if optimal := len(rna) * len(atac) <= OPTIMAL:
        say(0, 1, "one to one")
        a, b = linear_sum_assignment(cdist(rna.astype(np.float64), atac.astype(np.float64), "sqeuclidean"))
        a, b = a.astype(np.int64), b.astype(np.int64)
    else:
        a, b = _greedy(rna, atac, budget_mb, say)
    distance = _distances(rna[a], atac[b])
    rank, first = (_ranks(x[i], y, distance, budget_mb) for x, i, y in ((rna, a, atac), (atac, b, rna)))
    return Matches(a, b, distance, rank, (rank == 1) & (first == 1)), optimal


def _greedy(
    rna: Latents, atac: Latents, budget_mb: float, say: Say
) -> tuple[Int64[np.ndarray, " matches"], Int64[np.ndarray, " matches"]]:
    """Each RNA cell waits in a heap with its nearest ATAC cell that it does not know to be taken."""
    k = min(_CANDIDATES, len(atac))
    there, away = _nearest(rna, atac, k, budget_mb, lambda n, of: say(n, of, "nearest ATAC cells"))
    heap = [(away[i, 0], i, there[i, 0]) for i in range(len(rna))]
    heapq.heapify(heap)
    free, place = np.ones(len(atac), bool), np.zeros(len(rna), np.int64)
    wanted = min(len(rna), len(atac))
    found: list[tuple[int, int]] = []
    pool, points = np.arange(len(atac)), atac.astype(np.float64)  # free cells, and some that are no more
    square = np.einsum("cd,cd->c", points, points)
    while len(found) < wanted:
        _, i, j = heap[0]
        if free[j]:
            heapq.heappop(heap)
            free[j] = False
            found.append((i, j))
            if not len(found) % _AT_ONCE:
                say(len(found), wanted, "one to one")
            continue
        # The next of those it knows that is free, or the nearest of all that are.
        rest = np.flatnonzero(free[there[i, place[i] :]])
        if not rest.size:
            if free[pool].mean() < 0.8:
                kept = free[pool]
                pool, points, square = pool[kept], points[kept], square[kept]
            guess = np.where(free[pool], square - 2.0 * (points @ rna[i].astype(np.float64)), np.inf)
            n = min(k, int(free[pool].sum()))
            near = np.argpartition(guess, n - 1)[:n]
            distance = _distances(points[near], rna[i][None])
            order = np.lexsort((pool[near], distance))
            place[i] = 0
            there[i, :n], away[i, :n] = pool[near[order]], distance[order]
            there[i, n:], away[i, n:] = there[i, n - 1], np.inf
        else:
            place[i] += rest[0]
        heapq.heapreplace(heap, (away[i, place[i]], i, there[i, place[i]]))
    pairs = np.array(sorted(found), dtype=np.int64)
    return pairs[:, 0], pairs[:, 1]


def _nearest(
    asked: Latents, among: Latents, k: int, budget_mb: float, said: Callable[[int, int], None]
) -> tuple[Int64[np.ndarray, "asked k"], Float64[np.ndarray, "asked k"]]:
    """Numbers and squared distances of the `k` nearest, by distance, then number."""
    centre = among.mean(axis=0, dtype=np.float64)
    here, there = asked.astype(np.float64) - centre, among.astype(np.float64) - centre
    model = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(there)
    number, distance = np.empty((len(asked), k), np.int64), np.empty((len(asked), k))
    # Differences of k cells in every dimension are what takes room.
    rows = int(np.clip(budget_mb * 2**20 / (8 * k * (here.shape[1] + 4)), 1, _AT_ONCE))
    for first in range(0, len(asked), rows):
        said(first, len(asked))
        part = slice(first, first + rows)
        found = model.kneighbors(here[part], return_distance=False)
        difference = there[found] - here[part, None]
        exact = np.einsum("akd,akd->ak", difference, difference)
        order = np.lexsort((found, exact), axis=1)
        number[part] = np.take_along_axis(found, order, axis=1)
        distance[part] = np.take_along_axis(exact, order, axis=1)
    return number, distance


def _ranks(
    asked: Latents, among: Latents, distance: Float64[np.ndarray, " asked"], budget_mb: float
) -> Int64[np.ndarray, " asked"]:
    """1 + how many of `among` are closer to each cell than `distance`."""
    rank = np.empty(len(asked), np.int64)
    centre = among.mean(axis=0, dtype=np.float64)
    here, there = asked.astype(np.float64) - centre, among.astype(np.float64) - centre
    length, square = (np.einsum("cd,cd->c", x, x) for x in (here, there))
    rows = max(1, int(min(budget_mb, _BLOCK_MB) * 2**20 / (16 * len(among))))
    for first in range(0, len(asked), rows):
        part = slice(first, first + rows)
        # |a|² - 2ab + |b|² < distance; products are right in all but the last digits, and what is as near is not closer.
        bound = distance[part] - length[part] - 1e-12 * (length[part] + square.max())
        rank[part] = 1 + np.count_nonzero(square - 2.0 * (here[part] @ there.T) < bound[:, None], axis=1)
    return rank


def _distances(
    a: Float[np.ndarray, "cells latent"], b: Float[np.ndarray, "#cells latent"]
) -> Float64[np.ndarray, " cells"]:
    difference = a.astype(np.float64) - b.astype(np.float64)
    return np.einsum("cd,cd->c", difference, difference)


def _check(rna: Latents, atac: Latents, k: int) -> None:
    if not len(rna) or not len(atac) or rna.shape[1] != atac.shape[1]:
        raise InputError(
            f"match: latents of {len(rna):,} x {rna.shape[1]} RNA cells and {len(atac):,} x {atac.shape[1]} ATAC cells. Give "
            "cells of both, in one space."
        )
    if not 0 < k <= len(atac):
        raise InputError(f"match: --k {k} of {len(atac):,} ATAC cells. Ask for 1 to {len(atac):,}.")
    for name, x in (("RNA", rna), ("ATAC", atac)):
        if not np.isfinite(x).all():
            raise InputError(f"match: latents of {name} are not finite. Find out what produced them.")


def match_cells(
    rna: Latents,
    atac: Latents,
    *,
    k: int = 1,
    mutual: bool = False,
    alone: bool = False,
    budget_mb: float = BUDGET_MB,
    say: Say = lambda done, total, what: None,
) -> tuple[Matches, str]:
    """`one_to_one` where alone, else `nearest`, the mutual ones only where asked; and in words which it was."""
    if alone:
        found, optimal = one_to_one(rna, atac, budget_mb=budget_mb, say=say)
        return found, "one to one, the least sum of distances" if optimal else "one to one, the nearest pair first"
    found = nearest(rna, atac, k=k, budget_mb=budget_mb, say=say)
    words = "nearest" if k == 1 else f"{k} nearest"
    if not mutual:
        return found, words
    kept = found.mutual
    return (
        Matches(found.rna[kept], found.atac[kept], found.distance[kept], found.rank[kept], found.mutual[kept]),
        f"mutually {words}",
    )


def paired_by_name(
    rna: Latents, atac: Latents, names: pd.Index, others: pd.Index, found: Matches, *, budget_mb: float = BUDGET_MB
) -> str | None:
    """How well cells that are in both files by name are found again, in one sentence; None where fewer than two are."""
    place = others.get_indexer(names)
    same = np.flatnonzero(place >= 0)
    if len(same) < 2:
        return None
    share = foscttm(rna[same], atac[place[same]], budget_mb=budget_mb).mean(axis=1)
    asked = np.isin(found.rna, same)
    right = int((place[found.rna[asked]] == found.atac[asked]).sum())
    return (
        f"{len(same):,} cells are in both by name. FOSCTTM from RNA {share[0]:.4f}, from ATAC {share[1]:.4f} (0 perfect, 0.5 "
        f"chance); {right:,} of them are matched to themselves."
    )
