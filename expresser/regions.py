"""Peaks as intervals: read from any of the usual names, ordered, cut into chromosomes, merged, and overlapped with others."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int, Int32, Int64, Num, Shaped
from scipy import sparse

from expresser.errors import InputError
from expresser.peak_names import RULE, bad_range, natural, parse_names, prove_ranges, refuse, ucsc

_COLUMNS = (
    ("chrom", "chr", "chromosome", "seqnames", "seqname", "seqid", "contig"),
    ("start", "chromstart", "chrom_start", "peak_start"),
    ("end", "chromend", "chrom_end", "peak_end", "stop"),
)


@dataclass(frozen=True, eq=False)
class Regions:
    """Genomic intervals, 0-based half-open, in an explicit order; they may overlap one another and repeat.

    `Regions.parse`, `from_var` and `of` make them; the constructor takes what is numbered already and checks it.
    """

    chroms: tuple[str, ...]  # "chr1", "chrX", "chrM", contigs as given: natural order, only those used
    chrom: Int32[np.ndarray, " regions"]  # index into chroms
    start: Int64[np.ndarray, " regions"]
    end: Int64[np.ndarray, " regions"]

    def __post_init__(self) -> None:
        known = len(self.chroms)
        numbered = not len(self) or (self.chrom.min() >= 0 and self.chrom.max() < known)
        used = numbered and np.bincount(self.chrom, minlength=known).all()
        if not used or list(self.chroms) != sorted(set(self.chroms), key=natural):
            raise InputError(
                f"regions: the {known} chromosomes ({', '.join(self.chroms[:5])} …) must be in natural order and each "
                "have a region. Regions.of(chromosome names, starts, ends) numbers them."
            )
        bad = np.flatnonzero(bad_range(self.start, self.end))
        if len(bad):
            raise InputError(f"regions: number {bad[0]} is {self.start[bad[0]]} to {self.end[bad[0]]}. {RULE}.")

    def __len__(self) -> int:
        return len(self.start)

    @classmethod
    def of(
        cls,
        chrom: Sequence[str] | Shaped[np.ndarray, " regions"] | pd.Series,
        start: Int[np.ndarray, " regions"],
        end: Int[np.ndarray, " regions"],
        *,
        where: str = "regions",
    ) -> "Regions":
        """Regions of chromosome names in any of their spellings (`chrom_name`), starts and ends. `where`: as in `parse`."""
        code, given = pd.factorize(np.asarray(chrom, dtype=object))
        return cls._coded(code, ucsc(given.tolist(), where), start, end)

    @classmethod
    def _coded(
        cls,
        code: Int[np.ndarray, " regions"],
        names: Sequence[str],
        start: Num[np.ndarray, " regions"],
        end: Num[np.ndarray, " regions"],
    ) -> "Regions":
        """Regions whose chromosomes are numbers of `names`, which may repeat, be unused and stand in any order."""
        used = np.unique(code).tolist()
        chroms = tuple(sorted({names[i] for i in used}, key=natural))
        place = np.zeros(len(names), dtype=np.int32)
        place[used] = [chroms.index(names[i]) for i in used]
        return cls(chroms, place[code], start.astype(np.int64), end.astype(np.int64))

    @classmethod
    def parse(
        cls, names: Sequence[str] | Shaped[np.ndarray, " regions"] | pd.Index, *, where: str = "peaks"
    ) -> "Regions":
        """Regions from names: chr1:1-2, chr1-1-2, chr1_1_2, 1:1-2, 1:1,000-2,000, GRCh38_chr1:1-2, GL000194.1:1-2, …

        Raises InputError with the number and the first of the names that cannot be read, are negative, empty or
        reversed, and where names carry the prefixes of two builds. `where` is what the message calls them.
        """
        return cls._coded(*parse_names(names, where))

    @classmethod
    def from_var(cls, var: pd.DataFrame, *, where: str = "peaks") -> "Regions":
        """Regions of the rows of an ATAC `var`: its chromosome, start and end columns where it has all three, else its names."""
        lower = {str(column).lower(): column for column in reversed(var.columns)}
        columns = [next((lower[name] for name in choices if name in lower), None) for choices in _COLUMNS]
        if None in columns:
            return cls.parse(var.index, where=where)
        chrom, start, end = (var[column] for column in columns)
        texts = [f"{name}" for name in var.index]
        absent = chrom.isna().to_numpy(dtype=bool)
        numbers = [pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64) for column in (start, end)]
        if absent.any():
            refuse(where, texts, absent, f"have no {columns[0]}")
        prove_ranges(where, texts, *numbers)
        return cls.of(chrom.astype(str), *(column.astype(np.int64) for column in numbers), where=where)

    @classmethod
    def concat(cls, parts: Sequence["Regions"]) -> "Regions":
        """The regions of several sets, one set after the other."""
        names = [name for part in parts for name in part.chroms]
        first = np.cumsum([0, *(len(part.chroms) for part in parts)])
        code = [part.chrom.astype(np.int64) + at for part, at in zip(parts, first)]
        start, end = ([getattr(part, side) for part in parts] for side in ("start", "end"))
        none = np.zeros(0, dtype=np.int64)
        return cls._coded(
            np.concatenate([none, *code]), names, np.concatenate([none, *start]), np.concatenate([none, *end])
        )

    def names(self) -> Shaped[np.ndarray, " regions"]:
        """Their names, "chr1:100-200", as an object array."""
        chroms, code = self.chroms, self.chrom.tolist()
        texts = [f"{chroms[c]}:{s}-{e}" for c, s, e in zip(code, self.start.tolist(), self.end.tolist())]
        return np.array(texts, dtype=object)

    def to_frame(self) -> pd.DataFrame:
        """A frame with index `names()` and columns chrom, start, end."""
        chrom = np.array(self.chroms, dtype=object)[self.chrom]
        return pd.DataFrame({"chrom": chrom, "start": self.start, "end": self.end}, index=self.names())

    def take(self, index: Int[np.ndarray, " taken"] | Bool[np.ndarray, " regions"]) -> "Regions":
        """These regions, in this order: numbers, or a mask."""
        return self._coded(self.chrom[index], self.chroms, self.start[index], self.end[index])

    def equals(self, other: "Regions") -> bool:
        """Whether both are the same intervals in the same order."""
        return self.chroms == other.chroms and all(
            np.array_equal(getattr(self, side), getattr(other, side)) for side in ("chrom", "start", "end")
        )

    def order(self) -> Int64[np.ndarray, " regions"]:
        """The permutation into canonical order: chromosome (natural order), start, end."""
        return np.lexsort((self.end, self.start, self.chrom))

    def blocks(self) -> dict[str, Int64[np.ndarray, " _"]]:
        """Chromosome -> numbers of its regions, ascending, whatever their order."""
        edges = np.cumsum(np.bincount(self.chrom, minlength=len(self.chroms)))[:-1]
        return dict(zip(self.chroms, np.split(np.argsort(self.chrom, kind="stable"), edges)))

    def is_autosome(self) -> Bool[np.ndarray, " regions"]:
        """Which lie on a chromosome that is "chr" and a number."""
        return np.array([bool(re.fullmatch(r"chr\d+", name)) for name in self.chroms], dtype=bool)[self.chrom]

    def duplicated(self) -> Bool[np.ndarray, " regions"]:
        """Which repeat an interval that stands before them."""
        return pd.DataFrame({"c": self.chrom, "s": self.start, "e": self.end}).duplicated().to_numpy()

    def merged(self) -> "Regions":
        """Their union: regions that share at least one base joined, in canonical order. Touching ones stay apart."""
        (start,), (end,) = on_a_line([self])
        order = np.argsort(start, kind="stable")
        start, reach = start[order], np.maximum.accumulate(end[order])
        first = np.flatnonzero(np.r_[True, start[1:] >= reach[:-1]][: len(start)])
        last = np.r_[first[1:], len(start)][: len(first)] - 1
        joined = self.take(order[first])
        return Regions(joined.chroms, joined.chrom, joined.start, joined.start + (reach[last] - start[first]))

    def overlaps(self, other: "Regions") -> sparse.csr_matrix:
        """Float32 0/1 matrix, self x other: 1 where the two share at least one base. Time and memory follow the ones."""
        starts, ends = on_a_line([self, other])
        mine, its = overlapping_pairs(starts[0], ends[0], starts[1], ends[1])
        ones = np.ones(len(mine), dtype=np.float32)
        return sparse.csr_matrix((ones, (mine, its)), shape=(len(self), len(other)))


def overlapping_pairs(
    a_start: Int64[np.ndarray, " a"],
    a_end: Int64[np.ndarray, " a"],
    b_start: Int64[np.ndarray, " b"],
    b_end: Int64[np.ndarray, " b"],
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Numbers (in a, in b) of the pairs that share at least one base, each once; both may overlap themselves.

    Of an overlapping pair either b starts inside a, or a starts inside b and after b's start. Each is a run in the other
    set sorted by start, so no pair is tried that does not overlap, however long some intervals are.
    """
    by_a, by_b = np.argsort(a_start, kind="stable"), np.argsort(b_start, kind="stable")
    a_sorted, b_sorted = a_start[by_a], b_start[by_b]
    a_first, b_run = _runs(np.searchsorted(b_sorted, a_start), np.searchsorted(b_sorted, a_end))
    b_first, a_run = _runs(np.searchsorted(a_sorted, b_start, side="right"), np.searchsorted(a_sorted, b_end))
    return np.concatenate([a_first, by_a[a_run]]), np.concatenate([by_b[b_run], b_first])


def _runs(
    low: Int64[np.ndarray, " owners"], high: Int64[np.ndarray, " owners"]
) -> tuple[Int64[np.ndarray, " members"], Int64[np.ndarray, " members"]]:
    """Owner and member of each of the runs low … high-1."""
    length = np.maximum(high - low, 0)
    owner = np.repeat(np.arange(len(low)), length)
    return owner, np.arange(len(owner)) + np.repeat(low - (np.cumsum(length) - length), length)


def on_a_line(sets: Sequence[Regions]) -> tuple[list[Int64[np.ndarray, " _"]], list[Int64[np.ndarray, " _"]]]:
    """Starts and ends of each set on one line that holds the chromosomes of all of them one after the other."""
    length: dict[str, int] = {}
    for part in sets:
        for name, members in part.blocks().items():
            length[name] = max(length.get(name, 0), int(part.end[members].max()))
    chroms = sorted(length, key=natural)
    first = dict(zip(chroms, np.cumsum([0, *(length[name] for name in chroms)])))
    shifts = [np.array([first[name] for name in part.chroms], dtype=np.int64)[part.chrom] for part in sets]
    return [p.start + shift for p, shift in zip(sets, shifts)], [p.end + shift for p, shift in zip(sets, shifts)]
