"""Labelled unordered pairs of genes, and what became of the rows they were read from."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Int, Int8, Int64, Shaped

from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.labels.naming import name_genes
from finetune.labels.negatives import degree_matched, uniform

PARTS = ("train", "valid", "test")
Negatives: TypeAlias = Literal["auto", "given", "degree-matched", "uniform", "low-evidence"]


@dataclass(frozen=True, eq=False)
class Drawing:
    """How negatives are drawn for given positives: among which genes, and which pairs are closed (keys of places)."""

    how: Negatives
    seed: int
    genes: Shaped[np.ndarray, " genes"]
    closed: Int64[np.ndarray, " closed"]

    def complete(
        self, low: Int64[np.ndarray, " positives"], high: Int64[np.ndarray, " positives"]
    ) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"], Int8[np.ndarray, " pairs"], dict[str, int]]:
        """Places of positives and negatives, sorted, their labels, and what was drawn."""
        n, counts = len(self.genes), {}
        if self.how == "degree-matched":
            x, y, counts["degree_unmatched"] = degree_matched(low, high, n, seed=self.seed, closed=self.closed)
        else:
            x, y = uniform(low, high, n, wanted=len(low), seed=self.seed, closed=self.closed)
        counts["drawn"] = len(x)
        keys = np.concatenate([low * n + high, x * n + y])
        label = np.repeat(np.array([1, 0], np.int8), [len(low), len(x)])
        order = np.argsort(keys)
        return keys[order] // n, keys[order] % n, label[order], counts


@dataclass(frozen=True, eq=False)
class PairLabels:
    """Pairs with `a` before `b` in the order of ids, each once, none of a gene with itself, sorted; label 1 or 0.

    `part` is the part ("train", "valid", "test") a source's own split gives each pair, None where it has none.
    `account` adds up: pairs_read = missing + unknown_genes + self_pairs + repeated + both_strands + contradictory +
    repeated_across_parts + outside_tables + set_aside + kept - drawn (set aside: pairs read that are neither positive nor used).
    """

    name: str
    a: Shaped[np.ndarray, " pairs"]
    b: Shaped[np.ndarray, " pairs"]
    label: Int8[np.ndarray, " pairs"]
    part: Shaped[np.ndarray, " pairs"] | None
    account: dict[str, Any]
    drawing: Drawing | None = None

    def __post_init__(self) -> None:
        rows = list(zip(self.a.tolist(), self.b.tolist()))
        if not all(a < b for a, b in rows) or not all(x < y for x, y in pairwise(rows)):
            raise ValueError(f"{self.name}: pairs must have a < b, be sorted and be distinct")
        if not np.isin(self.label, (0, 1)).all():
            raise ValueError(f"{self.name}: labels must be 0 or 1, got {np.unique(self.label)[:5].tolist()}")

    def __len__(self) -> int:
        return len(self.label)

    @property
    def genes(self) -> tuple[str, ...]:
        """All genes of the pairs, sorted."""
        return tuple(sorted(set(self.a.tolist()) | set(self.b.tolist())))

    def of_genes(self, genes: Collection[str]) -> "PairLabels":
        """Only the pairs of which both genes are in the set; account["outside_tables"] were lost.

        Negatives that were drawn are drawn again among the positives left: thinned out they would match no degree, as
        well studied genes are in more tables, and lose fewer pairs.
        """
        known = set(genes)
        inside = np.array([a in known and b in known for a, b in zip(self.a, self.b)], dtype=bool)
        counts: dict[str, Any] = {}
        if self.drawing is None:
            outside = int((~inside).sum())
            a, b, label = self.a[inside], self.b[inside], self.label[inside]
        else:
            positive = self.label == 1
            outside = int((positive & ~inside).sum())
            low, high = (np.searchsorted(self.drawing.genes, ends[positive & inside]) for ends in (self.a, self.b))
            low, high, label, counts = self.drawing.complete(low, high)
            a, b = self.drawing.genes[low], self.drawing.genes[high]
        require_both(label, f"{self.name}: {len(label)} pairs have both genes in every embedding table")
        counts |= {"outside_tables": self.account.get("outside_tables", 0) + outside} | _sizes(a, b, label)
        part = None if self.part is None else self.part[inside]
        return replace(self, a=a, b=b, label=label, part=part, account=self.account | counts)


def _sizes(
    a: Shaped[np.ndarray, " pairs"], b: Shaped[np.ndarray, " pairs"], label: Int8[np.ndarray, " pairs"]
) -> dict[str, int]:
    return {"kept": len(label), "positives": int(label.sum()), "genes": len({*a.tolist(), *b.tolist()})}


def require_both(label: Int8[np.ndarray, " pairs"], what: str) -> None:
    """Raise InputError unless there are pairs of both classes."""
    positives = int(np.count_nonzero(label == 1))
    if not 0 < positives < len(label):
        raise InputError(
            f"{what}, {positives} of them positive and {len(label) - positives} negative. A task needs both: give "
            "labels of both kinds over genes that are known, or a list of positive pairs alone with negatives "
            "'degree-matched' or 'uniform'."
        )


@dataclass(frozen=True, eq=False)
class PairRows:
    """Rows of a source as read: places of two names in `names`, and a label, -1 where missing.

    `score`, where evidence is listed, decides between rows of one pair: then label 0 says no more than little evidence.
    """

    names: Shaped[np.ndarray, " names"]
    first: Int[np.ndarray, " rows"]
    second: Int[np.ndarray, " rows"]
    label: Int8[np.ndarray, " rows"]
    part: Shaped[np.ndarray, " rows"] | None = None
    score: Int[np.ndarray, " rows"] | None = None


def collect_pairs(
    rows: PairRows,
    *,
    name: str,
    where: Path,
    vocab: GeneVocab | None,
    negatives: Negatives,
    seed: int,
    min_resolved: float,
    account: dict[str, Any],
) -> PairLabels:
    """Resolve, merge and complete the rows of a source.

    Of rows of one unordered pair the first is kept (with scores, the highest), and none where they contradict each
    other. A pair that a source's split has in two parts stays in the earlier of train, valid, test: kept in both, it
    would be examined on what was learnt. Of little evidence (label 0 with scores) no negative is drawn, unless asked.
    """
    named = name_genes(rows.names, vocab, where=str(where), min_resolved=min_resolved)
    genes, codes = np.unique(named.ids[named.known], return_inverse=True)
    code = np.full(len(named.ids), -1, np.int64)
    code[named.known] = codes
    one, two = code[rows.first], code[rows.second]
    missing = named.missing[rows.first] | named.missing[rows.second] | (rows.label < 0)
    known = (one >= 0) & (two >= 0)
    at = np.flatnonzero(~missing & known & (one != two))
    chosen, lost = _merge(rows, at, one, two, len(genes))
    counts: dict[str, Any] = {
        "pairs_read": len(rows.label),
        "positives_read": int(np.count_nonzero(rows.label == 1)),
        "missing": int(missing.sum()),
        "unknown_genes": int((~missing & ~known).sum()),
        **named.account,
        "self_pairs": int((~missing & known & (one == two)).sum()),
        **lost,
    }
    keys = np.minimum(one, two)[chosen] * len(genes) + np.maximum(one, two)[chosen]
    order = np.argsort(keys)
    keys, chosen = keys[order], chosen[order]
    label, part = rows.label[chosen], None if rows.part is None else rows.part[chosen]

    how, drawing = _how(negatives, label, where), None
    low, high = keys // len(genes), keys % len(genes)
    if how != "given":
        if part is not None:
            raise InputError(
                f"{where}: negatives {how!r} would be drawn across the parts of the source's own split, and undo it. "
                "Use negatives 'given', or give the pairs as one table."
            )
        positives, others = keys[label == 1], keys[label == 0]
        if how == "low-evidence":
            drawn = np.random.default_rng(seed).choice(others, min(len(others), len(positives)), replace=False)
            counts["set_aside"] = len(others) - len(drawn)
            keys = np.concatenate([positives, drawn])
            label = np.repeat(np.array([1, 0], np.int8), [len(positives), len(drawn)])
            order = np.argsort(keys)
            low, high, label = keys[order] // len(genes), keys[order] % len(genes), label[order]
        else:
            drawing = Drawing(how, seed, genes, others if rows.score is not None else others[:0])
            low, high, label, more = drawing.complete(positives // len(genes), positives % len(genes))
            counts |= {"set_aside": len(others), **more}
    require_both(label, f"{where}: {len(label)} pairs are left")
    a, b = genes[low], genes[high]
    counts |= _sizes(a, b, label) | {"negatives": how}
    account = {"outside_tables": 0, "set_aside": 0, "drawn": 0, "cut": None} | account | counts
    return PairLabels(name, a, b, label, part, account, drawing)


def _how(negatives: Negatives, label: Int8[np.ndarray, " pairs"], where: Path) -> Negatives:
    if negatives != "auto":
        return negatives
    only = set(label.tolist())
    if only == {0}:
        raise InputError(
            f"{where}: all {len(label)} usable pairs are negative (label 0). Negatives can be drawn for a list of "
            "positive pairs, not positives for negative ones: give the positive pairs, labelled 1."
        )
    return "degree-matched" if only == {1} else "given"


def _merge(
    rows: PairRows,
    at: Int64[np.ndarray, " usable"],
    one: Int64[np.ndarray, " rows"],
    two: Int64[np.ndarray, " rows"],
    n_genes: int,
) -> tuple[Int64[np.ndarray, " chosen"], dict[str, int]]:
    """One row of each unordered pair, in no order, and how many others there were."""
    key = np.minimum(one, two)[at] * n_genes + np.maximum(one, two)[at]
    rank = np.zeros(len(at), np.int64)
    if rows.part is not None:
        rank = np.array([PARTS.index(part) for part in rows.part[at]], dtype=np.int64)
    if rows.score is not None:
        rank = -rows.score[at].astype(np.int64)
    order = np.lexsort((at, rank, key))
    at, key, rank = at[order], key[order], rank[order]
    start = np.flatnonzero(np.r_[True, key[1:] != key[:-1]]) if len(at) else np.empty(0, np.int64)
    group = np.repeat(np.arange(len(start)), np.diff(np.r_[start, len(at)]))
    against = np.zeros(len(start), dtype=bool)
    if rows.score is None:
        against[group[rows.label[at] != rows.label[at[start]][group]]] = True
    first = at[start]
    more = ~against[group]
    more[start] = False
    across = more & (rank != rank[start][group]) if rows.part is not None else np.zeros_like(more)
    turned = more & ~across & (one[at] != one[first][group])
    lost = {
        "repeated": int((more & ~across & ~turned).sum()),
        "both_strands": int(turned.sum()),
        "contradictory": int(against[group].sum()),
        "repeated_across_parts": int(across.sum()),
    }
    return first[~against], lost
