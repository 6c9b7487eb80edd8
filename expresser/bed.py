"""Peaks of a BED file (also narrowPeak, broadPeak), plain or packed with gzip."""

from pathlib import Path

import numpy as np

from expresser.errors import InputError
from expresser.gene_tables import open_text
from expresser.peak_names import MOST
from expresser.regions import Regions

_RULE = "A line of a BED file is chromosome, start from 0 and a larger end, with tabs between them (more columns may follow)"
_ELSE = ("#", "track", "browser")  # lines that are no peaks


def read_bed(path: Path) -> Regions:
    """Its intervals, each once (peak callers list one for each of its summits), in the order of the file.

    A first line that names the columns (no digit in its second and third) is left out. Raises InputError with the number of a
    line that is no interval.
    """
    chroms: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    with open_text(path) as lines:
        for number, line in enumerate(lines, 1):
            parts = line.split("\t") if "\t" in line else line.split()
            numbers = [part.strip() for part in parts[1:3]]
            names_columns = not chroms and "start" in line.lower() and not any(c.isdigit() for n in numbers for c in n)
            if not line.strip() or line.startswith(_ELSE) or names_columns:
                continue
            if len(numbers) < 2 or not all(n.isascii() and n.isdecimal() for n in numbers):
                raise InputError(f"{path}: line {number:,} is no interval: {line[:80].rstrip()!r}. {_RULE}.")
            if any(len(n.lstrip("0")) > len(str(MOST)) or int(n) >= MOST for n in numbers):
                raise InputError(
                    f"{path}: line {number:,} ends beyond any chromosome: {line[:80].rstrip()!r}. {_RULE}."
                )
            chroms.append(parts[0])
            starts.append(int(numbers[0]))
            ends.append(int(numbers[1]))
            if starts[-1] >= ends[-1]:
                raise InputError(f"{path}: line {number:,} has no base: {line[:80].rstrip()!r}. {_RULE}.")
    if not chroms:
        raise InputError(f"{path}: holds no interval. {_RULE}.")
    found = Regions.of(chroms, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64), where=str(path))
    return found.take(~found.duplicated())
