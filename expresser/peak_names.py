"""What peaks and chromosomes are called: every usual spelling read, one of them (UCSC's) meant."""

import re
from collections.abc import Iterable
from typing import NoReturn

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Int, Num
from pyarrow import compute

from expresser.errors import InputError

_NUMBER = r"-?\d[\d,]{0,14}(?:\.\d+)?(?:[eE]\+?\d{1,2})?"  # R writes 100000 as 1e+05
# Read from the right, since a contig's own name may hold any of the separators. RE2's syntax, for pyarrow.
_NAME = rf"(?s)^\s*(?P<chrom>.*[^\s:_-])\s*[:_-](?P<start>{_NUMBER})(?:[_-]|\.\.)(?P<end>{_NUMBER})\s*$"
_BUILD = re.compile(r"^(grc[hm]\d+|hg\d+|mm\d+)(?:\.p\d+)?_+(?=\S)", re.IGNORECASE)  # 10x: GRCh38_chr1, mm10___chr1
RULE = (
    "A peak is a chromosome, a start from 0 and a larger end, 0-based and half-open: chr1:100-200, chr1-100-200, "
    "chr1_100_200 or 1:100-200, or the columns chrom, start and end"
)


def parse_names(
    names: Iterable[str], where: str
) -> tuple[Int[np.ndarray, " regions"], list[str], Num[np.ndarray, " regions"], Num[np.ndarray, " regions"]]:
    """Of each name its chromosome (a number in the list that follows, whose names may repeat), start and end."""
    texts = [str(name) for name in names]
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
    bare = chrom.removeprefix("chr")
    if bare.isdecimal() and bare != chrom:
        return 0, int(bare), chrom
    return (1, "XYM".index(bare), chrom) if chrom in ("chrX", "chrY", "chrM") else (2, 0, chrom)


def _whole(texts: pa.StringArray) -> Num[np.ndarray, " regions"]:
    """Numbers of texts such as 1000, 1,000 and 1e+05: int64, or float64 where one is not written as digits alone."""
    plain = compute.replace_substring(texts, ",", "")
    kind = pa.float64() if compute.any(compute.match_substring_regex(plain, r"[.eE]")).as_py() else pa.int64()
    return plain.cast(kind).to_numpy(zero_copy_only=False)


def bad_range(start: Num[np.ndarray, " regions"], end: Num[np.ndarray, " regions"]) -> Bool[np.ndarray, " regions"]:
    """Which are no range of at least one base from 0 on; true also where a number is absent (NaN)."""
    whole = (start == np.floor(start)) & (end == np.floor(end))
    return ~(whole & (start >= 0) & (end > start) & (end < 2**40))


def prove_ranges(
    where: str, texts: list[str], start: Num[np.ndarray, " regions"], end: Num[np.ndarray, " regions"]
) -> None:
    """InputError, with the names of the first of them, where a range is bad."""
    bad = bad_range(start, end)
    if bad.any():
        refuse(where, texts, bad, "have no range, or one that is negative, empty, reversed or not whole")


def ucsc(given: list[str], where: str) -> list[str]:
    """UCSC names of chromosomes, which may not be of two genomes."""
    prefixes = {match[1].lower() for match in map(_BUILD.match, map(str.strip, given)) if match}
    if len(prefixes) > 1:
        raise InputError(
            f"{where}: the chromosomes carry the prefixes of {len(prefixes)} genomes ({', '.join(sorted(prefixes))}), "
            "whose chr1 are not one. Keep the peaks of one genome."
        )
    return [chrom_name(name) for name in given]


def refuse(where: str, texts: list[str], bad: Bool[np.ndarray, " regions"], what: str) -> NoReturn:
    """The InputError for these names: how many, the first, the rule."""
    first = ", ".join(repr(texts[i]) for i in np.flatnonzero(bad)[:5])
    raise InputError(f"{where}: {bad.sum():,} of {len(texts):,} {what} (first: {first}). {RULE}.")
