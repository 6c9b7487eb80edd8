"""Histograms over logarithmic bins, in numbers and as lines of text."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

_BLOCKS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True)
class Histogram:
    """Bin i holds `cells[i]` cells of `edges[i]` to `edges[i + 1]`, the last bin with its end."""

    edges: Float64[np.ndarray, " bins_plus_one"]
    cells: Int64[np.ndarray, " bins"]

    def to_dict(self) -> dict[str, list[float] | list[int]]:
        """Plain values."""
        return {"edges": self.edges.tolist(), "cells": self.cells.tolist()}


def log_histogram(values: Shaped[np.ndarray, " cells"], bins: int = 16) -> Histogram:
    """Bins of equal width on a logarithmic axis over whole numbers above zero (zeros count as one).

    Edges are whole numbers, since depth and genes are: a bin narrower than one would be empty or full by its place. So
    there may be fewer bins than asked.
    """
    least, most = max(1, int(values.min())), max(1, int(values.max()))
    edges = np.unique(np.round(np.geomspace(least, most + 1, bins + 1)))
    # Neighbouring bins of small numbers are wider than others on the axis; their cells are still right.
    cells = np.histogram(np.maximum(values, 1), edges)[0]
    return Histogram(edges.astype(np.float64), cells.astype(np.int64))


def histogram_lines(histogram: Histogram, width: int = 40) -> list[str]:
    """One line a bin: its range, a bar, the cells."""
    first = [f"{int(edge):,}" for edge in histogram.edges[:-1]]
    last = [f"{int(edge) - 1:,}" for edge in histogram.edges[1:]]
    left, right = max(map(len, first)), max(map(len, last))
    most = max(1, int(histogram.cells.max()))
    return [
        f"{a:>{left}} – {b:>{right}}  {_bar(int(n), most, width):<{width}} {n:,}".rstrip()
        for a, b, n in zip(first, last, histogram.cells)
    ]


def _bar(cells: int, most: int, width: int) -> str:
    eighths = round(cells / most * width * 8)
    if cells and not eighths:
        eighths = 1  # a few cells are not none
    return "█" * (eighths // 8) + _BLOCKS[eighths % 8].strip()
