"""Peaks of a BED file (also narrowPeak, broadPeak), plain or packed with gzip."""

import gzip
from pathlib import Path

import numpy as np

from expresser.errors import InputError
from expresser.regions import Regions

_RULE = "A line of a BED file is chromosome, start from 0 and a larger end, with tabs between them (more columns may follow)"
_ELSE = ("#", "track", "browser")  # lines that are no peaks


def read_bed(path: Path) -> Regions:
    """Its intervals, each once (peak callers list one for each of its summits), in the order of the file.

    A first line that names the columns is left out. Raises InputError with the number of a line that is no interval.
    """
    chroms: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            for number, line in enumerate(lines, 1):
                parts = line.split("\t") if "\t" in line else line.split()
                if not line.strip() or line.startswith(_ELSE) or (not chroms and "start" in line.lower()):
                    continue
                numbers = [part.strip() for part in parts[1:3]]
                if len(numbers) < 2 or not all(n.isascii() and n.isdecimal() for n in numbers):
                    raise InputError(f"{path}: line {number:,} is no interval: {line[:80].rstrip()!r}. {_RULE}.")
                chroms.append(parts[0])
                starts.append(int(numbers[0]))
                ends.append(int(numbers[1]))
                if starts[-1] >= ends[-1]:
                    raise InputError(f"{path}: line {number:,} has no base: {line[:80].rstrip()!r}. {_RULE}.")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text ({error}). {_RULE}.") from error
    if not chroms:
        raise InputError(f"{path}: holds no interval. {_RULE}.")
    found = Regions.of(chroms, np.array(starts, dtype=np.int64), np.array(ends, dtype=np.int64))
    return found.take(~found.duplicated())
