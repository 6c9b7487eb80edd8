"""Which genome build peaks are of: they must fit its chromosomes, and lie at its transcription start sites."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from expresser.errors import InputError
from expresser.peak_names import chrom_name
from expresser.regions import Regions

_NEAR = 2_000  # bases from a transcription start site (TSS)
_SHIFT = 500_000  # bases, both ways: far enough to leave a promoter, near enough to stay among as many genes
# Near a TSS against shifted TSS, measured: three hg38 sets and two hg19 sets lifted to hg38 3.0 to 4.6, 1.8 for the least
# (2.9 to 8.9 with protein-coding genes alone); the two hg19 sets as they were 1.1 and 1.2 (1.2 and 1.3).
_ENRICHED = 1.5
_ENOUGH = 30  # peaks near a shifted TSS below which the ratio is noise
_MOSTLY = 0.5  # share of peaks on unknown contigs from which the naming, not the contigs, must be wrong
_ALIASES = {"grch38": "hg38", "grch37": "hg19", "b37": "hg19", "grcm38": "mm10"}


def _sizes(lengths: str) -> dict[str, int]:
    """Of chr1, chr2, …, chrX, chrY."""
    numbers = [int(length) for length in lengths.split()]
    names = [*range(1, len(numbers) - 1), "X", "Y"]
    return {f"chr{name}": number for name, number in zip(names, numbers)}


CHROM_SIZES: Mapping[str, Mapping[str, int]] = {
    "hg38": _sizes(
        "248956422 242193529 198295559 190214555 181538259 170805979 159345973 145138636 138394717 133797422 "
        "135086622 133275309 114364328 107043718 101991189 90338345 83257441 80373285 58617616 64444167 "
        "46709983 50818468 156040895 57227415"
    ),
    "hg19": _sizes(
        "249250621 243199373 198022430 191154276 180915260 171115067 159138663 146364022 141213431 135534747 "
        "135006516 133851895 115169878 107349540 102531392 90354753 81195210 78077248 59128983 63025520 "
        "48129895 51304566 155270560 59373566"
    ),
    "mm10": _sizes(
        "195471971 182113224 160039680 156508116 151834684 149736546 145441459 129401213 124595110 130694993 "
        "122082543 120129022 120421639 124902244 104043685 98207768 94987271 90702639 61431566 171031299 "
        "91744698"
    ),
}
"""Bases of chr1 … chrY of each build (UCSC). chrM and the other contigs are not listed."""


@dataclass(frozen=True)
class GenomeReport:
    """How peaks fit a build; the shares are NaN where no TSS were given."""

    genome: str
    peaks: int
    unknown: int  # on contigs whose length is not listed: chrM, scaffolds, alternative loci
    near_tss: float  # share of peaks within 2,000 bases of a TSS
    near_shifted: float  # the same with every TSS moved by 500,000 bases, mean of both ways
    fits: tuple[str, ...]  # builds whose chromosomes hold every peak

    @property
    def enrichment(self) -> float:
        """near_tss / near_shifted: 1 where peaks know nothing of these TSS. NaN where too few peaks can tell."""
        enough = self.near_shifted * self.peaks >= _ENOUGH
        return self.near_tss / self.near_shifted if enough else float("nan")

    def check(self) -> None:
        """InputError where peaks are hardly nearer to TSS than by chance: then peaks and genes are of two builds."""
        if self.enrichment < _ENRICHED:
            other = [build for build in self.fits if build != self.genome]
            raise InputError(
                f"peaks: {self.near_tss:.1%} of {self.peaks:,} lie within {_NEAR:,} bases of a TSS and "
                f"{self.near_shifted:.1%} of a TSS moved by {_SHIFT:,} bases: {self.enrichment:.2f} times as many, where "
                f"peaks and TSS of one build ({self.genome}) have more than {_ENRICHED} times. "
                + (f"The peaks also fit {' and '.join(other)}: are they to be lifted over first? " if other else "")
                + "Give both in one build, or no TSS where peaks near genes were left out on purpose."
            )


def check_genome(regions: Regions, genome: str, tss: pd.DataFrame | None = None) -> GenomeReport:
    """How peaks fit `genome` ("hg38", "hg19", "mm10", or GRC names), and with `tss` (columns chrom, tss) its genes.

    Raises InputError where a peak starts beyond the end of its chromosome, where most peaks are on contigs the build does not have,
    or where the build is not known. The report's own `check` judges the TSS.
    """
    build = _known(genome)
    beyond, unknown = _outside(regions, build)
    fits = tuple(name for name in CHROM_SIZES if _holds(regions, name))
    way_out = (
        f"All of them fit {' and '.join(fits)}: give that build, or lift them over to {build} first."
        if fits
        else f"They fit none of {', '.join(CHROM_SIZES)} either. Give the build the reads were aligned to."
    )
    if beyond.any():
        first = ", ".join(regions.take(np.flatnonzero(beyond)[:3]).names())
        raise InputError(
            f"peaks: {beyond.sum():,} of {len(regions):,} lie beyond the end of their chromosome in {build} "
            f"(first: {first}). {way_out}"
        )
    if unknown.sum() > _MOSTLY * len(regions):
        contigs = ", ".join(regions.take(np.flatnonzero(unknown)).chroms[:5])
        raise InputError(
            f"peaks: {unknown.sum():,} of {len(regions):,} are on contigs that are no chromosome of {build} ({contigs}, "
            f"…), but most must be on chr1 … chrY. Name chromosomes as UCSC or Ensembl do. {way_out if fits else ''}"
        )
    near, shifted = float("nan"), float("nan")
    if tss is not None:
        near = _share_near(regions, tss, 0)
        shifted = (_share_near(regions, tss, _SHIFT) + _share_near(regions, tss, -_SHIFT)) / 2
    return GenomeReport(build, len(regions), int(unknown.sum()), near, shifted, fits)


def guess_genome(regions: Regions) -> str | None:
    """The one build whose chromosomes hold every peak; None where none or several do."""
    fits = [build for build in CHROM_SIZES if _holds(regions, build)]
    return fits[0] if len(fits) == 1 else None


def _known(genome: str) -> str:
    build = _ALIASES.get(genome.lower(), genome.lower())
    if build not in CHROM_SIZES:
        raise InputError(
            f"genome {genome!r} is not known: the builds are {', '.join(CHROM_SIZES)} (or GRCh38, GRCh37, GRCm38). "
            "Leave it out for another species: peaks are then taken as they are."
        )
    return build


def _outside(regions: Regions, build: str) -> tuple[np.ndarray, np.ndarray]:
    """Masks of peaks: beyond the end of their chromosome; on a contig that is not listed."""
    length = np.array([CHROM_SIZES[build].get(name, -1) for name in regions.chroms], dtype=np.int64)[regions.chrom]
    # By the start: callers widen summits, so that even peaks of the right build hang over an end by some bases.
    return (length >= 0) & (regions.start >= length), length < 0


def _holds(regions: Regions, build: str) -> bool:
    beyond, unknown = _outside(regions, build)
    return bool(not beyond.any() and unknown.sum() <= _MOSTLY * len(regions))


def _share_near(regions: Regions, tss: pd.DataFrame, shift: int) -> float:
    """Share of peaks with a TSS, moved by `shift`, within the distance."""
    names = {name: chrom_name(str(name)) for name in tss["chrom"].unique()}
    places = tss["tss"].to_numpy(dtype=np.int64) + shift
    at = {chrom: np.sort(part) for chrom, part in pd.Series(places).groupby(tss["chrom"].map(names).to_numpy())}
    near = 0
    for chrom, members in regions.blocks().items():
        sites = at.get(chrom, np.zeros(0, dtype=np.int64))
        low = np.searchsorted(sites, regions.start[members] - _NEAR)
        near += int((np.searchsorted(sites, regions.end[members] + _NEAR) > low).sum())
    return near / len(regions) if len(regions) else float("nan")
