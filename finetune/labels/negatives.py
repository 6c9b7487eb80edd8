"""Pairs of genes that are in no list, drawn as counter-examples for lists of positive pairs only.

Hubs make lists of pairs easy: with negatives drawn uniformly, how often a gene occurs among the positives tells most
positives from most negatives, and a method that knows nothing else looks good. Degree-matched negatives take that away:
every gene occurs in as many negatives as positives, so its positive rate is 1/2 for every gene.
"""

import numpy as np
from jaxtyping import Bool, Int64

_ENUMERATED = 4_000_000  # up to this many unordered pairs, uniform negatives are chosen from the list of all


def degree_matched(
    a: Int64[np.ndarray, " edges"],
    b: Int64[np.ndarray, " edges"],
    n_genes: int,
    *,
    seed: int,
    closed: Int64[np.ndarray, " closed"] | None = None,
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], int]:
    """Non-edges (lower, higher gene) in which each gene occurs as often as in the edges, and how many ends found none.

    The configuration model: every edge leaves two free ends; ends are joined at random, and joints that are edges,
    repeats or loops are opened and joined again. Those that never close take a joint (p, q) apart: the ends x and y
    become (x, p) and (y, q), which leaves p and q as they were. A gene paired with most others has too few non-partners
    left: its surplus ends stay free. `closed` are further pairs (keys lower * n_genes + higher) not to be drawn.
    The edges are a set: their order does not matter. 200,000 edges of 9,000 genes take about a second.
    """
    rng = np.random.default_rng(seed)
    edges = _keys(a, b, n_genes)
    shut = np.unique(edges if closed is None else np.concatenate([edges, closed]))
    degree = np.bincount(np.concatenate([a, b]), minlength=n_genes)
    taken = np.bincount(np.concatenate(_ends(shut, n_genes)), minlength=n_genes)
    room = np.minimum(degree, n_genes - 1 - taken)
    free = np.repeat(np.arange(n_genes), room)
    if len(free) % 2:  # a surplus was cut off
        free = np.delete(free, rng.integers(len(free)))
    surplus = int(degree.sum()) - len(free)
    joined = np.empty(0, np.int64)
    while len(free):
        x, y = _couple(rng, free)
        keys = _keys(x, y, n_genes)
        good = (x != y) & ~_among(keys, shut) & ~_among(keys, joined)
        good &= _first_of_each(keys, good)
        joined = np.sort(np.concatenate([joined, keys[good]]))
        free = np.concatenate([x[~good], y[~good]])
        if good.sum() <= 0.02 * len(good):
            break
    joined, free = _reopen(rng, joined, free, shut, n_genes)
    low, high = _ends(joined, n_genes)
    return low, high, surplus + len(free)


def uniform(
    a: Int64[np.ndarray, " edges"],
    b: Int64[np.ndarray, " edges"],
    n_genes: int,
    *,
    wanted: int,
    seed: int,
    closed: Int64[np.ndarray, " closed"] | None = None,
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """At most `wanted` non-edges, every one as likely: what most published tasks draw. Genes that occur in `a`, `b` only."""
    rng = np.random.default_rng(seed)
    edges = _keys(a, b, n_genes)
    shut = np.unique(edges if closed is None else np.concatenate([edges, closed]))
    genes = np.unique(np.concatenate([a, b]))
    if len(genes) * (len(genes) - 1) // 2 <= _ENUMERATED:
        x, y = np.triu_indices(len(genes), 1)
        keys = _keys(genes[x], genes[y], n_genes)
        keys = keys[~_among(keys, shut)]
        drawn = rng.choice(keys, min(wanted, len(keys)), replace=False)
    else:
        drawn = np.empty(0, np.int64)
        for _ in range(100):  # of so many pairs a few are edges; each round leaves little to the next
            x, y = rng.choice(genes, (2, 2 * (wanted - len(drawn)) + 64))
            keys = _keys(x, y, n_genes)
            good = (x != y) & ~_among(keys, shut) & ~_among(keys, np.sort(drawn))
            good &= _first_of_each(keys, good)
            drawn = np.concatenate([drawn, keys[good][: wanted - len(drawn)]])
            if len(drawn) == wanted:
                break
    return _ends(np.sort(drawn), n_genes)


def _reopen(
    rng: np.random.Generator,
    joined: Int64[np.ndarray, " pairs"],
    free: Int64[np.ndarray, " ends"],
    shut: Int64[np.ndarray, " shut"],
    n_genes: int,
) -> tuple[Int64[np.ndarray, " more"], Int64[np.ndarray, " fewer"]]:
    """Joins free ends by taking joints apart; gives up after thirty rounds in a row without one."""
    idle = 0
    while len(free) and len(joined) and idle < 30:
        x, y = _couple(rng, free)
        count = min(len(x), len(joined))
        tries = max(1, min(2000, len(joined)) // count)  # the fewer ends are left, the harder they are
        which = np.tile(np.arange(count), tries)
        place = rng.permutation(len(joined))[: count * tries]
        p, q = _ends(joined[place], n_genes)
        turned = rng.random(len(place)) < 0.5
        p, q = np.where(turned, q, p), np.where(turned, p, q)
        one, other = _keys(x[which], p, n_genes), _keys(y[which], q, n_genes)
        good = (x[which] != p) & (y[which] != q) & (one != other)
        for keys in (one, other):
            good &= ~_among(keys, shut) & ~_among(keys, joined)
        good &= _first_of_each(which, good)
        both = np.concatenate([one, other])
        _, inverse, times = np.unique(both, return_inverse=True, return_counts=True)
        in_good = np.bincount(inverse, weights=np.tile(good, 2), minlength=len(times))[inverse]
        good &= (in_good[: len(one)] == 1) & (in_good[len(one) :] == 1)
        idle = 0 if good.any() else idle + 1
        done = np.zeros(len(x), dtype=bool)
        done[which[good]] = True
        joined = np.sort(np.concatenate([np.delete(joined, place[good]), one[good], other[good]]))
        free = np.concatenate([x[~done], y[~done]])
    return joined, free


def _couple(
    rng: np.random.Generator, free: Int64[np.ndarray, " ends"]
) -> tuple[Int64[np.ndarray, " half"], Int64[np.ndarray, " half"]]:
    mixed = rng.permutation(free)
    return mixed[0::2], mixed[1::2]


def _keys(a: Int64[np.ndarray, " pairs"], b: Int64[np.ndarray, " pairs"], n_genes: int) -> Int64[np.ndarray, " pairs"]:
    return np.minimum(a, b) * n_genes + np.maximum(a, b)


def _ends(
    keys: Int64[np.ndarray, " pairs"], n_genes: int
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    return keys // n_genes, keys % n_genes


def _among(keys: Int64[np.ndarray, " pairs"], ordered: Int64[np.ndarray, " more"]) -> Bool[np.ndarray, " pairs"]:
    if not len(ordered):
        return np.zeros(len(keys), dtype=bool)
    place = np.minimum(np.searchsorted(ordered, keys), len(ordered) - 1)
    return ordered[place] == keys


def _first_of_each(keys: Int64[np.ndarray, " pairs"], among: Bool[np.ndarray, " pairs"]) -> Bool[np.ndarray, " pairs"]:
    """The first of several equal keys, of those that `among` marks."""
    marked = np.flatnonzero(among)
    first = np.zeros(len(keys), dtype=bool)
    first[marked[np.unique(keys[marked], return_index=True)[1]]] = True
    return first
