"""Whether parts of a split share cells: the same counts, or the same barcode of the same source, on two sides."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from jaxtyping import Int8, UInt64

from expresser.corpus.manifest import OBS
from expresser.corpus.shards import CountBatch
from expresser.corpus.shuffle import splitmix64

PIECE_ROWS = 2_048  # hashed together: 40 bytes a non-zero


@dataclass(frozen=True)
class Shared:
    """`keys` distinct fingerprints lie on more than one side; `cells` cells have one of them."""

    keys: int
    cells: int


def count_fingerprints(batch: CountBatch) -> UInt64[np.ndarray, " cells"]:
    """64 bits of a cell's genes and counts: equal for equal cells; among 6M different cells two agree once in a million tries.

    The hashes of a cell's (gene, count) pairs are added up, which needs no loop over cells.
    """
    parts = [np.empty(0, np.uint64)]
    for start in range(0, len(batch), PIECE_ROWS):
        piece = batch.slice(start, start + PIECE_ROWS)
        entries = splitmix64((piece.genes.astype(np.uint64) << np.uint64(32)) | piece.counts.astype(np.uint64))
        sums = np.add.reduceat(entries, piece.offsets[:-1])
        parts.append(splitmix64(sums + piece.lengths.astype(np.uint64)))
    return np.concatenate(parts)


def name_fingerprints(folder: Path) -> UInt64[np.ndarray, " cells"]:
    """64 bits of (source, barcode) of each cell of the corpus in `folder`, read in pieces."""
    parts = [np.empty(0, np.uint64)]
    for piece in pq.ParquetFile(folder / OBS).iter_batches(columns=["source", "barcode"]):
        frame = piece.to_pandas()
        parts.append(pd.util.hash_array((frame["source"] + "\0" + frame["barcode"]).to_numpy(object)))
    return np.concatenate(parts)


def shared(keys: UInt64[np.ndarray, " cells"], side: Int8[np.ndarray, " cells"]) -> Shared:
    """How many keys, and cells, are on more than one side."""
    if not len(keys):
        return Shared(0, 0)
    order = np.argsort(keys)
    ordered, sides = keys[order], side[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    leaking = np.minimum.reduceat(sides, starts) != np.maximum.reduceat(sides, starts)
    sizes = np.diff(np.append(starts, len(keys)))
    return Shared(int(leaking.sum()), int(sizes[leaking].sum()))
