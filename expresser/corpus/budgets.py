"""How many cells a micro-batch holds: a budget of tokens, padded or packed, or the static shapes of a compiled model."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64


@runtime_checkable
class Budget(Protocol):
    """A rule by which a process's cells are cut into micro-batches."""

    def holds(self, lengths: Int64[np.ndarray, " cells"]) -> int:
        """How many of these cells, the first ones, make one micro-batch: one at least. ``lengths`` falls: genes shown of each."""


@dataclass(frozen=True)
class PaddedTokens:
    """As many cells as stay within ``max_tokens`` when each is padded to the longest: what attention over padded rows allocates."""

    max_tokens: int

    def holds(self, lengths: Int64[np.ndarray, " cells"]) -> int:
        """See :class:`Budget`."""
        return max(1, self.max_tokens // max(1, int(lengths[0])))


@dataclass(frozen=True)
class PackedTokens:
    """As many cells as have ``max_tokens`` genes together: for attention that knows where cells begin and pads nothing."""

    max_tokens: int

    def holds(self, lengths: Int64[np.ndarray, " cells"]) -> int:
        """See :class:`Budget`."""
        return max(1, int(np.searchsorted(np.cumsum(lengths), self.max_tokens, side="right")))


@dataclass(frozen=True)
class Shape:
    """A micro-batch of which every number is known beforehand.

    Attributes
    ----------
    tokens
        Packed tokens, those that fill up included.
    rows
        Cells, those that fill up and empty ones included.
    longest
        No row has more tokens.
    """

    tokens: int
    rows: int
    longest: int

    def __post_init__(self) -> None:
        least = 1 + -(-self.tokens // self.longest)
        if self.longest < 4 or self.tokens < self.longest + 2 or self.rows < least:
            raise ValueError(
                f"{self}: longest must be 4 or more, tokens {self.longest + 2} or more, rows {least} or more, "
                "else a cell of the longest kind leaves tokens that no other row could take."
            )

    def holds(self, lengths: Int64[np.ndarray, " cells"]) -> int:
        """How many of these cells, the first ones, fit and leave tokens that the rows left over can take up, two or more a row.

        A cell of one gene has no query. It is left out of a shaped micro-batch, and so takes no place.
        """
        counted = lengths > 1
        tokens, rows = np.cumsum(np.where(counted, lengths, 0)), np.cumsum(counted)
        unused = self.tokens - tokens
        fits = (unused == 0) | ((unused >= 2) & (rows - (-unused // self.longest) <= self.rows))
        return int(lengths.size if fits.all() else np.argmin(fits)) if int(lengths[0]) <= self.longest else 0

    def filler(self, lengths: Int64[np.ndarray, " cells"]) -> Int64[np.ndarray, " rows"]:
        """Lengths of the rows that take up what cells of these lengths (two genes or more each) leave, empty ones last.

        Rows of about 64 tokens where there are as many: attention over what is thrown away should cost little.
        """
        unused, rows = self.tokens - int(lengths.sum()), self.rows - lengths.size
        least, most = -(-unused // self.longest), min(rows, unused // 2)
        used = min(max(least, -(-unused // 64)), most)
        return np.concatenate([dealt(unused, used), np.zeros(rows - used, np.int64)])


def dealt(total: int, parts: int) -> Int64[np.ndarray, " parts"]:
    """A total in parts that differ by one at most, the larger ones first."""
    share, left = divmod(total, max(1, parts))
    return np.full(parts, share, np.int64) + (np.arange(parts) < left)


@dataclass(frozen=True)
class StaticShapes:
    """A few shapes: a micro-batch is cut to the largest one for cells of its length, and filled to the smallest that holds it."""

    shapes: tuple[Shape, ...]

    @classmethod
    def of(cls, max_tokens: int, max_genes: int, *, cells: int, pads: bool) -> "StaticShapes":
        """Shapes of at most ``max_tokens`` tokens (more only where one cell needs it), for steps of ``cells`` cells a process.

        The whole size has its eighths, so that what is left at the end of a step need not be filled to a whole one; what no step
        needs is never compiled. Rows cost nothing, and there are enough for cells of a 16th of ``max_genes``. Where attention
        pads (``pads``), rows cost their longest: then there are four lengths, each 2^(1/2) below the last, in whole, half and
        quarter size, with few rows to spare.
        """
        longest, shapes = max(4, max_genes), []
        lengths = [max(4, int(np.ceil(longest / 2 ** (k / 2)))) for k in range(4)] if pads else [longest]
        for length in dict.fromkeys(lengths):
            # A step needs no more; the longest cell with something to fill must fit.
            whole = max(_up(length + 2, 8), min(max_tokens // 8 * 8, _up(cells * length + 2, 8)))
            eighths = (8, 4, 2) if pads else range(8, 0, -1)
            for tokens in dict.fromkeys(max(_up(length + 2, 8), _up(whole * part // 8, 8)) for part in eighths):
                full = -(-tokens // length)
                shapes.append(Shape(tokens, full + 1 + (full // 4 if pads else 16 * full), length))
        return cls(tuple(shapes))

    def holds(self, lengths: Int64[np.ndarray, " cells"]) -> int:
        """See :class:`Budget`."""
        longest = self._longest(int(lengths[0]))
        return max(shape.holds(lengths) for shape in self.shapes if shape.longest == longest)

    def shape(self, lengths: Int64[np.ndarray, " cells"]) -> Shape:
        """The shape that a micro-batch of these cells is filled to."""
        longest = self._longest(int(lengths.max()))
        fit = [s for s in self.shapes if s.longest == longest and s.holds(lengths) == lengths.size]
        return min(fit, key=lambda shape: shape.tokens)

    def _longest(self, length: int) -> int:
        return min(shape.longest for shape in self.shapes if shape.longest >= length)


def _up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple
