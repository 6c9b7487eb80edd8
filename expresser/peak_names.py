"""What peaks and chromosomes are called: every usual spelling read, one of them (UCSC's) meant."""

import re
from collections.abc import Iterable
from typing import NoReturn

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Num
from pyarrow import compute

from expresser.errors import InputError

# R writes 100000 as 1e+05.
_NUMBER = r"-?(?:\d{1,15}|\d{1,3}(?:,\d{3}){1,4})(?:\.\d{1,15})?(?:[eE]\+?\d{1,2})?"
# Read from the right, since a contig's own name may hold any of the separators. RE2's syntax, for pyarrow.
_NAME = rf"(?s)^\s*(?P<chrom>.*[^\s:_-])\s*[:_-](?P<start>{_NUMBER})(?:[_-]|\.\.)(?P<end>{_NUMBER})\s*$"
# 10x: GRCh38_chr1, mm10___chr1
_BUILD = re.compile(r"^(?:(grc[hm]\d+|hg\d+|mm\d+)(?:\.p\d+)?_+(?=[^\s_]))+", re.IGNORECASE | re.ASCII)
_THIRD = re.compile(r"(?:chr)?(?:\d{1,2}|[XYM]|MT)[:-]\d+", re.IGNORECASE | re.ASCII)
_NUMBERED = re.compile(r"chr(\d{1,9})", re.ASCII)
MOST = 2**40  # bases: no chromosome is as long
RULE = (
    "A peak is a chromosome, a start from 0 and a larger end, 0-based and half-open: chr1:100-200, chr1-100-200, "
    "chr1_100_200 or 1:100-200, or the columns chrom, start and end"
)


def parse_names(
    names: Iterable[str], where: str
) -> tuple[Int[np.ndarray, " regions"], list[str], Num[np.ndarray, " regions"], Num[np.ndarray, " regions"]]:
    """Of each name its chromosome (a number in the list that follows, whose names may repeat), start and end."""
    texts = [str(name).encode(errors="replace").decode() for name in names]  # Arrow takes no half of a UTF-16 pair
    found = compute.extract_regex(pa.array(texts, type=pa.string()), _NAME)
    if found.null_count:
        refuse(where, texts, found.is_null().to_numpy(zero_copy_only=False), "cannot be read")
    chrom = compute.struct_field(found, "chrom").dictionary_encode()
    start, end = (_whole(compute.struct_field(found, side)) for side in ("start", "end"))
    prove_ranges(where, texts, start, end)
    return chrom.indices.to_numpy(zero_copy_only=False), ucsc(chrom.dictionary.to_pylist(), where), start, end


def chrom_name(name: str) -> str:
    """A chromosome by its UCSC name: 1, Chr1, GRCh38_chr1 -> chr1; MT -> chrM; x -> chrX; contigs as they are."""
    name = _BUILD.sub("", name.strip())
    bare = name[3:] if name.lower().startswith("chr") else name
    if bare.upper() in ("X", "Y", "M", "MT"):
        return "chr" + bare.upper()[0]
    return "chr" + bare if bare.isdecimal() or bare != name else name


def natural(chrom: str) -> tuple[int, int, str]:
    """Sort key of chromosomes: chr1, chr2, … chr10, …, chrX, chrY, chrM, then contigs by name."""
    if numbered := _NUMBERED.fullmatch(chrom):
        return 0, int(numbered[1]), chrom
    return (1, "XYM".index(chrom[3]), chrom) if chrom in ("chrX", "chrY", "chrM") else (2, 0, chrom)


def _whole(texts: pa.StringArray) -> Num[np.ndarray, " regions"]:
    """Numbers of texts such as 1000, 1,000 and 1e+05: int64, or float64 where one is not written as digits alone."""
    plain = compute.replace_substring(texts, ",", "")
    kind = pa.float64() if compute.any(compute.match_substring_regex(plain, r"[.eE]")).as_py() else pa.int64()
    return plain.cast(kind).to_numpy(zero_copy_only=False)


def bad_range(start: Num[np.ndarray, " regions"], end: Num[np.ndarray, " regions"]) -> Bool[np.ndarray, " regions"]:
    """Which are no range of at least one base from 0 on; true also where a number is absent (NaN)."""
    whole = (start == np.floor(start)) & (end == np.floor(end))
    return ~(whole & (start >= 0) & (end > start) & (end < MOST))


def prove_ranges(
    where: str, texts: list[str], start: Num[np.ndarray, " regions"], end: Num[np.ndarray, " regions"]
) -> None:
    """InputError, with the names of the first of them, where a range is bad."""
    bad = bad_range(start, end)
    if bad.any():
        refuse(where, texts, bad, "have no range, or one that is negative, empty, reversed or not whole")


def ucsc(given: list[str], where: str) -> list[str]:
    """UCSC names of chromosomes, which may not be of two genomes; each must stay itself in the name of a peak and in a file.

    "chr1:100" is none: chr1:100-200-300 has a number too many, and nobody can say which.
    """
    prefixes = {match[1].lower() for match in map(_BUILD.match, map(str.strip, given)) if match}
    if len(prefixes) > 1:
        raise InputError(
            f"{where}: the chromosomes carry the prefixes of {len(prefixes)} genomes ({', '.join(sorted(prefixes))}), "
            "whose chr1 are not one. Keep the peaks of one genome."
        )
    named = [chrom_name(name) for name in given]
    for text, name in zip(given, named):
        if not name or not name.isprintable() or name[-1] in " :_-" or _THIRD.fullmatch(name):
            raise InputError(
                f"{where}: {text[:80]!r} is no name of a chromosome: it is empty, holds control characters, ends in a blank or "
                f"one of : _ -, or is a chromosome and a number. {RULE}."
            )
    return named


def refuse(where: str, texts: list[str], bad: Bool[np.ndarray, " regions"], what: str) -> NoReturn:
    """The InputError for these names: how many, the first, the rule."""
    first = ", ".join(repr(texts[i]) for i in np.flatnonzero(bad)[:5])
    raise InputError(f"{where}: {bad.sum():,} of {len(texts):,} {what} (first: {first}). {RULE}.")
