"""The vocabulary of a corpus of ATAC: genomic regions in place of genes, and which of them each peak of a file goes to."""

import hashlib
from collections.abc import Mapping
from csv import QUOTE_NONE
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64, Num

from expresser.errors import InputError
from expresser.genes import COLUMNS, MOST_GENES, GeneReport, GeneVocab, Names, Resolution
from expresser.regions import Regions

SAME, OVERLAP, OUTSIDE = "id", "alias", "unknown"  # how a peak found its region, in the words of genes


@dataclass(frozen=True)
class PeakReport(GeneReport):
    """What became of a file's peaks: `by_id` are intervals of the vocabulary, `by_alias` went to the one they overlap most."""

    def check(self, where: str, min_counts: float = 0.6) -> None:
        """Raise InputError where less than `min_counts` of the counts (of the peaks, counts unknown) found a region."""
        share = self.counts_kept if self.counts_kept is not None else self.resolved / max(self.n_names, 1)
        if self.resolved > 0 and share >= min_counts:
            return
        examples = ", ".join(repr(name) for name in self.unmatched_examples[:5]) or "none"
        raise InputError(
            f"{where}: {share:.1%} of the {'peaks' if self.counts_kept is None else 'counts'} lie in the regions of the "
            f"corpus, at least {min_counts:.0%} must ({self.by_id:,} of {self.n_names:,} peaks are regions, "
            f"{self.by_alias:,} overlap one, {self.unknown:,} overlap none). Outside, for example: {examples}. "
            "Regions and files must be of one genome build: lift peaks over first, give --regions that cover the files, "
            "or a lower --min-counts-kept where the loss is meant."
        )


@dataclass(frozen=True, repr=False)
class PeakResolution(Resolution):
    """Peaks and the numbers of their regions, -1 where they overlap none."""

    def report(self, counts_per_name: Num[np.ndarray, " names"] | None = None) -> PeakReport:
        """The account of this resolution (`Resolution.report`)."""
        found: Mapping[str, Any] = vars(super().report(counts_per_name))
        return PeakReport(**found)


class RegionVocab(GeneVocab):
    """Genomic regions, each once and in canonical order, as a vocabulary whose keys are their names, "chr1:100-200".

    Names are 0-based and half-open as in BED; the columns start and end of the table count from 1, as they do of genes.
    Relations: a corpus of RNA has a `GeneVocab`, whose names, not places, decide what a column is.
    """

    def __init__(self, regions: Regions) -> None:
        regions = regions.take(regions.order())
        self.regions = regions.take(~regions.duplicated())
        frame = self.regions.to_frame()
        self.ids = self.symbols = frame.index.to_numpy(dtype=object, copy=True)
        self.ids.flags.writeable = False
        self.sha256 = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()
        whole = pd.DataFrame(dict.fromkeys(COLUMNS, ""), index=range(len(frame)), dtype=object)
        start, end = (pd.array(frame[side].to_numpy(), dtype="Int64") for side in ("start", "end"))
        chrom = frame["chrom"].to_numpy()
        self._table = whole.assign(gene_id=self.ids, symbol=self.ids, chrom=chrom, start=start + 1, end=end)

    @classmethod
    def load(cls, path: str | Path, *, most: int = MOST_GENES) -> "RegionVocab":
        """Read what `save` wrote; `most` as in `GeneVocab.load`."""
        try:
            names = pd.read_csv(
                path,
                sep="\t",
                usecols=["gene_id"],
                dtype=str,
                keep_default_na=False,
                quoting=QUOTE_NONE,
                nrows=most + 1,
            )
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: no list of regions ({error}). Build or copy the corpus again.") from error
        if len(names) > most:
            raise InputError(f"{path}: more than {most:,} regions. It is not the list that belongs here.")
        return cls(Regions.parse(names["gene_id"].to_numpy(dtype=object), where=str(path)))

    def take(self, tokens: Int64[np.ndarray, " kept"]) -> "RegionVocab":
        """The regions with these tokens, in canonical order."""
        return RegionVocab(self.regions.take(tokens))

    def resolve(self, names: Names) -> PeakResolution:
        """Region of each peak name: the same interval, else the one it shares most bases with, of equals the first."""
        raw = np.array(names, dtype=object)
        tokens, same = nearest_regions(Regions.parse(raw), self.regions)
        how = np.where(tokens < 0, OUTSIDE, np.where(same, SAME, OVERLAP)).astype(object)
        return PeakResolution(tokens, how, raw)


def nearest_regions(peaks: Regions, regions: Regions) -> tuple[Int64[np.ndarray, " peaks"], Bool[np.ndarray, " peaks"]]:
    """Number of the region that each peak shares most bases with (-1: it overlaps none), and whether it is the same interval."""
    pairs = peaks.overlaps(regions).tocoo()
    peak, region = pairs.row.astype(np.int64), pairs.col.astype(np.int64)
    shared = np.minimum(peaks.end[peak], regions.end[region]) - np.maximum(peaks.start[peak], regions.start[region])
    same = (peaks.start[peak] == regions.start[region]) & (peaks.end[peak] == regions.end[region])
    order = np.lexsort((region, -shared, ~same, peak))  # the first of each peak is its answer
    first = order[np.flatnonzero(np.diff(peak[order], prepend=-1))]
    tokens, is_same = np.full(len(peaks), -1, np.int64), np.zeros(len(peaks), bool)
    tokens[peak[first]] = region[first]
    is_same[peak[first]] = same[first]
    return tokens, is_same
