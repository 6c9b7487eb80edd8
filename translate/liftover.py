"""Peaks of one genome build carried over to another by a UCSC chain file, and what was lost on the way and why."""

import gzip
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64

from expresser.errors import InputError
from expresser.peak_names import chrom_name
from expresser.regions import Regions

_NAME = re.compile(r"(\w+)To([A-Z]\w*)")  # hg19ToHg38


@dataclass(frozen=True)
class LiftReport:
    """Where the peaks went; `lifted` and the four reasons add up to `peaks`."""

    peaks: int
    lifted: int
    unmapped: int  # an end lies where the builds do not align, or on a contig the chain file lacks
    split: int  # the ends are on two chromosomes
    turned: int  # the ends are on two strands, or in the wrong order
    resized: int  # longer or shorter by more than the factor
    reversed: int  # of the lifted: on the other strand

    def __str__(self) -> str:
        lost = {"unmapped": self.unmapped, "split": self.split, "turned": self.turned, "resized": self.resized}
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in lost.items())
        return f"{self.lifted:,} of {self.peaks:,} peaks lifted over ({reasons})"


def lift(
    regions: Regions, chain: str | Path, *, factor: float = 2.0
) -> tuple[Regions, Int64[np.ndarray, " lifted"], LiftReport]:
    """Lift regions over; returns them, their numbers in `regions` (ascending, so in the same order), and a report.

    Both ends of a region are lifted, its first base and its last (half-open: end - 1), and it is kept where they land on
    one chromosome and strand in their order. A base that several chains cover takes the one of the highest score.

    Parameters
    ----------
    chain
        A chain file (`.chain` or `.chain.gz`), or a name such as "hg19ToHg38", which pyliftover looks for in the
        working directory and in ~/.pyliftover and downloads from UCSC else.
    factor
        A region is kept while its length stays between 1 / factor and factor times what it was.

    Raises
    ------
    InputError
        Where pyliftover is missing, the chain cannot be read, or no region can be lifted.
    """
    if not factor >= 1:
        raise InputError(f"liftover: factor is {factor}, but lengths may change by a factor of 1 or more.")
    chains = _load(chain)
    codes = np.concatenate([regions.chrom, regions.chrom]).astype(np.int64)
    points = np.stack([codes, np.concatenate([regions.start, regions.end - 1])], axis=1)
    unique, back = np.unique(points, axis=0, return_inverse=True)
    lifted, names = _convert(chains, regions.chroms, unique)
    first, last = np.split(lifted[back.reshape(-1)], 2)  # columns: chromosome (-1: unmapped), position, strand

    mapped = (first[:, 0] >= 0) & (last[:, 0] >= 0)
    together = mapped & (first[:, 0] == last[:, 0])
    step = last[:, 1] - first[:, 1]
    straight = together & (first[:, 2] == last[:, 2]) & (step * first[:, 2] >= 0)
    ratio = (np.abs(step) + 1) / (regions.end - regions.start)
    whole = straight & (ratio <= factor) & (ratio >= 1 / factor)
    kept = np.flatnonzero(whole)
    report = LiftReport(
        peaks=len(regions),
        lifted=len(kept),
        unmapped=int((~mapped).sum()),
        split=int((mapped & ~together).sum()),
        turned=int((together & ~straight).sum()),
        resized=int((straight & ~whole).sum()),
        reversed=int((first[kept, 2] < 0).sum()),
    )
    if not len(kept):
        raise InputError(
            f"liftover: {report}. The chain {str(chain)!r} starts from {', '.join(sorted(chains.chain_file.chain_index)[:3])}"
            f" …, the peaks are on {', '.join(regions.chroms[:3])} …. Give the chain that starts from the build of the peaks."
        )
    start = np.minimum(first[kept, 1], last[kept, 1])
    chrom = np.array(names, dtype=object)[first[kept, 0]]
    return Regions.of(chrom, start, start + np.abs(step[kept]) + 1, where=f"liftover by {chain}"), kept, report


def _convert(
    chains: Any, chroms: tuple[str, ...], points: Int64[np.ndarray, "points 2"]
) -> tuple[Int64[np.ndarray, "points 3"], list[str]]:
    """Each point (chromosome, position) lifted: chromosome in the list returned or -1, position, strand (1 or -1)."""
    spelling = {chrom_name(name): name for name in chains.chain_file.chain_index}
    sources = [spelling.get(name) for name in chroms]
    names: dict[str, int] = {}
    lifted = np.full((len(points), 3), -1, dtype=np.int64)
    for i, (code, position) in enumerate(points.tolist()):
        source = sources[code]
        hits = chains.convert_coordinate(source, position) if source is not None else None
        if hits:
            name, place, strand, _score = hits[0]
            lifted[i] = names.setdefault(name, len(names)), place, 1 if strand == "+" else -1
    return lifted, list(names)


def _load(chain: str | Path) -> Any:
    """pyliftover's chains of a file or a name."""
    try:
        from pyliftover import LiftOver  # rare: only for peaks of another build
    except ImportError as error:
        raise InputError("liftover needs pyliftover: pip install 'expresser[liftover]'") from error
    path = Path(chain)
    try:
        if path.is_file():
            with path.open("rb") as file:
                zipped = file.read(2) == b"\x1f\x8b"
            with gzip.open(path) if zipped else path.open("rb") as lines:
                return LiftOver(lines)
        if named := _NAME.fullmatch(str(chain)):
            return LiftOver(named[1], named[2][0].lower() + named[2][1:])
    except Exception as error:  # pyliftover raises bare Exceptions, and AttributeError where a download failed
        raise InputError(
            f"liftover: the chain {str(chain)!r} cannot be read or downloaded ({error}). Fetch it from "
            "https://hgdownload.soe.ucsc.edu (liftOver folder of the build of the peaks) and give its path."
        ) from error
    raise InputError(f"liftover: there is no chain file {str(chain)!r}. Give a path, or a name such as hg19ToHg38.")
