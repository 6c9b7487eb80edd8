"""Fragments of some stretches of the genome through a tabix index (.tbi), without reading the rest of the file."""

import importlib.util
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa

from expresser.peak_names import ucsc
from expresser.regions import Regions
from translate.fragment_files import fragment_table

_GAP = 5_000  # bases between peaks that are read rather than to seek once more
_BYTES_A_LINE = 40
# Measured on 6 million fragments (85 MB, 40 % of them in 200,000 peaks), one core: 3.5 s to read through the file, which is
# 0.04 s a MB; 0.25 ms for a stretch and about 4 times as long for a fragment that is fetched as for one that is read through.
# So 1,000 scattered peaks take 0.4 s, 10,000 2.7 s, 30,000 7.4 s. Peaks hold 12 times their share of the fragments.
_BYTES_A_STRETCH = 10_000  # of the file, at least: 0.4 ms of reading through it
_SHARE = (
    0.005  # of the genome, at most: then about 6 % of the fragments, a quarter of the time of reading through the file
)
_GENOME = 3.1e9  # bases, of man; a smaller genome makes the share too small, which costs time and nothing else


def index_of(path: Path) -> Path | None:
    """The file's tabix index, where there is one that is not older than the file, and pysam to read it with."""
    index = path.with_name(f"{path.name}.tbi")
    if importlib.util.find_spec("pysam") is None or not (path.is_file() and index.is_file()):
        return None
    return index if index.stat().st_mtime >= path.stat().st_mtime else None


def pays(path: Path, wanted: Regions) -> bool:
    """Whether it is quicker to fetch these stretches than to read the file through."""
    few = len(wanted) * _BYTES_A_STRETCH <= path.stat().st_size
    return few and float((wanted.end - wanted.start).sum()) <= _SHARE * _GENOME


def stretches(regions: Regions) -> Regions:
    """What to read so that nothing that overlaps a region is missed: regions that are near joined, in canonical order.

    A base wider than they are, since an index may have been built for coordinates that begin at 1.
    """
    wide = Regions(regions.chroms, regions.chrom, np.maximum(regions.start - 1, 0), regions.end + 1 + _GAP).merged()
    return Regions(wide.chroms, wide.chrom, wide.start, wide.end - _GAP)


def read_stretches(path: Path, index: Path, wanted: Regions, chunk: int) -> Iterator[pa.Table]:
    """Tables as `fragment_files.read_fragments` gives them, of the fragments that overlap a stretch, each once.

    About `chunk` bytes of text at a time. Raises InputError, OSError or ValueError where the index or what it points at
    cannot be read.
    """
    import pysam

    with pysam.TabixFile(str(path), index=str(index)) as file:
        of_contig = dict(zip(file.contigs, ucsc(list(file.contigs), str(path))))
        for chrom, members in wanted.blocks().items():
            for contig in (name for name, known in of_contig.items() if known == chrom):
                spans = zip(wanted.start[members].tolist(), wanted.end[members].tolist())
                yield from _tables(path, ((end, file.fetch(contig, start, end)) for start, end in spans), chunk)


def _tables(path: Path, found: Iterable[tuple[int, Iterator[str]]], chunk: int) -> Iterator[pa.Table]:
    """Tables of the lines found in the stretches of one contig, in order: (end of the stretch, its lines)."""
    room = max(chunk // _BYTES_A_LINE, 1)
    lines: list[str] = []
    after: list[int] = []  # of each line: where the stretch before its own ends
    before = 0
    for end, given in found:
        while part := list(islice(given, room - len(lines))):
            lines += part
            after += [before] * len(part)
            if len(lines) == room:
                yield from _table(path, lines, after)
                lines, after = [], []
        before = end
    yield from _table(path, lines, after)


def _table(path: Path, lines: list[str], after: list[int]) -> Iterator[pa.Table]:
    """Fragments that do not begin before the end of the stretch before: those were read with that one."""
    if lines:
        text = ("\n".join(lines) + "\n").encode()
        table = fragment_table(path, 1, text, text, lines[0].count("\t") + 1)
        new = table["start"].to_numpy() >= np.array(after)
        if new.any():
            yield table.filter(pa.array(new)).combine_chunks()
