"""Cells that come twice, found by one 64-bit key a cell: which key a cell has, and whether it was met before.

Two different cells get one key by chance with probability n^2 / 2^65 over n cells: 1 in a million for six million cells.
"""

from typing import Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Integer, UInt64

from expresser.corpus.packing import compiled
from expresser.corpus.shards import CountBatch
from expresser.errors import InputError

Deduplicate = Literal["barcode", "source", "counts"]


def check_deduplicate(deduplicate: str | None, source_column: str | None) -> None:
    """InputError for a rule that is none, or a source column that no rule would use."""
    if deduplicate is not None and deduplicate not in get_args(Deduplicate):
        raise InputError(
            f"deduplicate is {deduplicate!r}; it must be one of {', '.join(get_args(Deduplicate))}: barcode drops a "
            "cell that has barcode and counts of an earlier one, source one with its source and barcode, counts one with its counts."
        )
    if source_column is not None and deduplicate != "source":
        raise InputError(
            f"source_column {source_column!r} says what a source is, which deduplicate={deduplicate!r} does not ask."
        )


def name_keys(
    deduplicate: str, barcodes: list[str], sources: list[str | None], default: str
) -> UInt64[np.ndarray, " cells"]:
    """The part of each cell's key that its names decide; `default` names the source of cells without one."""
    if deduplicate == "counts":
        return np.zeros(len(barcodes), np.uint64)
    keys = _hash(barcodes)
    if deduplicate == "source":
        keys = _mix(keys + _hash([default if source is None else source for source in sources]))
    return keys


def cell_keys(deduplicate: str, names: UInt64[np.ndarray, " cells"], batch: CountBatch) -> UInt64[np.ndarray, " cells"]:
    """The keys of a batch's cells from those of their names."""
    if deduplicate == "source":
        return names
    keys = np.empty(len(batch), np.uint64)
    compiled(_hash_counts)(np.asarray(batch.genes), np.asarray(batch.counts), batch.lengths, keys)
    return _mix(keys + names)


class Seen:
    """The keys met so far, 8 bytes each: sorted arrays, each at least twice as long as the next."""

    def __init__(self) -> None:
        self._levels: list[UInt64[np.ndarray, " keys"]] = []

    def new(self, keys: UInt64[np.ndarray, " cells"]) -> Bool[np.ndarray, " cells"]:
        """True for each key that was not met before, here or earlier; all of them are met from now on."""
        fresh = np.zeros(len(keys), bool)
        fresh[np.unique(keys, return_index=True)[1]] = True
        for level in self._levels:
            at = np.minimum(np.searchsorted(level, keys), len(level) - 1)
            fresh &= level[at] != keys
        self.add(keys[fresh])
        return fresh

    def add(self, keys: UInt64[np.ndarray, " cells"]) -> None:
        """These keys are met."""
        if not len(keys):
            return
        self._levels.append(np.unique(keys))
        while len(self._levels) > 1 and len(self._levels[-2]) < 2 * len(self._levels[-1]):
            last = self._levels.pop()
            self._levels[-1] = np.union1d(self._levels[-1], last)


def _hash(texts: list[str]) -> UInt64[np.ndarray, " texts"]:
    return pd.util.hash_array(np.array(texts, dtype=object), categorize=False)  # SipHash: the same in every process


def _mix(keys: Integer[np.ndarray, " keys"]) -> UInt64[np.ndarray, " keys"]:
    keys = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    keys = (keys ^ (keys >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return keys ^ (keys >> np.uint64(31))


def _hash_counts(genes, counts, lengths, keys):
    # A sum of hashes of (gene, count): whatever the width of the arrays, and without an order of its own.
    a, b, step = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB), np.uint64(0x9E3779B97F4A7C15)
    at = 0
    for row in range(len(lengths)):
        whole = np.uint64(0)
        for _ in range(lengths[row]):
            x = ((np.uint64(genes[at]) << np.uint64(32)) | np.uint64(counts[at])) + step
            x = (x ^ (x >> np.uint64(30))) * a
            x = (x ^ (x >> np.uint64(27))) * b
            whole += x ^ (x >> np.uint64(31))
            at += 1
        keys[row] = whole
