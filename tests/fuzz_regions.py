"""Laws about peaks: names in every convention, columns of var, BED, fragments, chains, and the vocabulary of regions."""

import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import strategies as some
from fuzzing import refusal, target
from hypothesis import strategies as st
from pyliftover import LiftOver

from expresser.bed import read_bed
from expresser.peak_names import chrom_name
from expresser.region_vocab import RegionVocab, nearest_regions
from expresser.regions import Regions
from translate.fragments import peaks_from_fragments
from translate.liftover import lift

Interval = tuple[str, int, int]


def rows_of(regions: Regions) -> list[Interval]:
    return [(regions.chroms[c], int(s), int(e)) for c, s, e in zip(regions.chrom, regions.start, regions.end)]


def by_ucsc(rows: list[Interval]) -> list[Interval]:
    return [(chrom_name(chrom), start, end) for chrom, start, end in rows]


def one_build(chroms: list[str]) -> bool:
    prefixes = {p for chrom in chroms for p in ("grch38_", "hg19_", "mm10_") if chrom.strip().lower().startswith(p)}
    return len(prefixes) < 2


def _sound(regions: Regions) -> None:
    """What holds of all regions: real ranges, and names that mean them."""
    assert all(0 <= start < end for _, start, end in rows_of(regions))
    assert all(name.isprintable() for name in regions.chroms)
    assert Regions.parse(regions.names()).equals(regions)
    assert Regions.from_var(regions.to_frame()).equals(regions)


@target("peak names", drawn=st.lists(some.peak_names(), min_size=1, max_size=4))
def peak_names(folder: Path, drawn: list[Any]) -> bool:
    known = all(meant is not None for _, meant in drawn) and one_build([name for name, _ in drawn])
    with refusal("here") as refused:
        found = Regions.parse([name for name, _ in drawn], where="here")
        _sound(found)
    if refused:
        assert not known, f"refused, but each is a peak: {refused[0]}"
        return False
    if known:
        assert rows_of(found) == by_ucsc([meant for _, meant in drawn])
    for (name, _), (chrom, start, end) in zip(drawn, rows_of(found), strict=True):
        digits = name.replace(",", "")
        exact = "e" not in digits[-40:].lower() and "." not in digits.replace("..", "")
        assert not exact or (str(start) in digits and digits.rstrip().endswith(str(end))), (name, chrom, start, end)
    return True


_COLUMN = st.one_of(
    st.lists(st.integers(0, 500), min_size=3, max_size=3),
    st.lists(
        st.one_of(st.integers(-5, 500), st.floats(), st.none(), some.numbers, st.booleans()), min_size=3, max_size=3
    ),
)


@target(
    "peaks in columns",
    chroms=st.lists(st.one_of(st.sampled_from(some.CONTIGS), some.names, st.none()), min_size=3, max_size=3),
    start=_COLUMN,
    width=st.one_of(st.integers(1, 500), _COLUMN),
    kinds=st.tuples(*[st.sampled_from(["object", "float64", "Int64", "category", "string", "datetime64[ns]"])] * 2),
    spelled=st.sampled_from([("chrom", "start", "end"), ("seqnames", "Start", "END"), ("chr", "start", "start")]),
)
def peaks_in_columns(folder: Path, chroms: list[Any], start: list[Any], width: Any, kinds: Any, spelled: Any) -> bool:
    whole = all(type(v) is int and v >= 0 for v in start) and isinstance(width, int)
    end = [v + width for v in start] if whole else width if isinstance(width, list) else start
    columns = []
    for values, kind in zip((start, end), kinds):
        try:
            columns.append(pd.Series(values, dtype=kind))
        except (ValueError, TypeError, OverflowError, RuntimeWarning):  # no column holds these values so
            columns.append(pd.Series(values, dtype=object))
    var = pd.concat([pd.Series(chroms, dtype=object), *columns], axis=1, keys=list(spelled))
    var.index = pd.Index(["a", "b", "c"])
    with refusal("here") as refused:
        found = Regions.from_var(var, where="here")
        _sound(found)
    contigs = all(chrom in some.CONTIGS for chrom in chroms) and one_build(chroms)
    if refused:
        dated = "datetime64[ns]" in kinds
        assert not (whole and contigs and not dated and spelled[2] != "start"), f"refused: {refused[0]}"
        return False
    if whole and contigs:
        assert rows_of(found) == by_ucsc(list(zip(chroms, start, end)))
    return True


_same_build = st.sampled_from([name for name in some.CONTIGS if "_" not in name])
_bed = some.lines(
    (_same_build, st.one_of(st.sampled_from(some.CONTIGS), some.names)),
    (st.integers(0, 99).map(str), some.numbers),
    (st.integers(100, 999).map(str), some.numbers),
    (st.sampled_from(["start_site", "peak_1"]), some.names),
    least=1,
)


def _lines_of(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


@target(
    "BED", text=_bed, packed=st.booleans(), head=st.sampled_from(["", "", "track x\n", "chrom\tstart\tend\n", "# a\n"])
)
def bed(folder: Path, text: str, packed: bool, head: str) -> bool:
    path = folder / ("a.bed" + ".gz" * packed)
    data = (head + text).encode()
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    with refusal(path) as refused:
        found = read_bed(path)
        _sound(found)
    if refused:
        return False
    rows = []
    for line in _lines_of(text):
        parts = line.split("\t") if "\t" in line else line.split()
        names_columns = not rows and "start" in line.lower() and not any(c.isdigit() for c in "".join(parts[1:3]))
        if line.strip() and not line.startswith(("#", "track", "browser")) and not names_columns:
            rows.append((parts[0], int(parts[1]), int(parts[2])))
    assert rows_of(found) == list(dict.fromkeys(by_ucsc(rows)))
    return True


_PEAKS = Regions.parse(["chr1:0-50", "chr1:40-300", "chr2:10-90", "chrX:1-4", "GL000194.1:1-100"])
_fragments = some.lines(
    (st.sampled_from(["chr1", "1", "chr2", "X", "GL000194.1"]), st.one_of(st.sampled_from(some.CONTIGS), some.names)),
    (st.integers(0, 99).map(str), some.numbers),
    (st.integers(100, 250).map(str), some.numbers),
    (st.sampled_from(["A", "B", "C", "AAAC-1", "é", "a b"]), some.names),
    least=1,
    most=8,
)


@target(
    "fragments",
    text=_fragments,
    packed=st.booleans(),
    chunk=st.sampled_from([1, 7, 30, 10_000]),
    insertions=st.booleans(),
)
def fragments(folder: Path, text: str, packed: bool, chunk: int, insertions: bool) -> bool:
    path = folder / "fragments.tsv.gz"
    path.write_bytes(gzip.compress(text.encode(), 1) if packed else text.encode())
    count = "insertions" if insertions else "fragments"
    with refusal(path) as refused:
        found = peaks_from_fragments(path, _PEAKS, min_fragments=1, count=count, chunk=chunk)
    if refused:
        return False
    expected: dict[tuple[str, int], int] = {}
    lines: dict[str, int] = {}
    for line in _lines_of(text):
        if line.strip() and not line.startswith("#"):
            chrom, start, end, barcode = line.split("\t")
            low, high = int(start, 0), int(end, 0)
            lines[barcode] = lines.get(barcode, 0) + 1
            for a, b in [(low, low + 1), (high - 1, high)] if insertions else [(low, high)]:
                for j, peak in enumerate(rows_of(_PEAKS)):
                    if peak[0] == chrom_name(chrom) and a < peak[2] and peak[1] < b:
                        expected[barcode, j] = expected.get((barcode, j), 0) + 1
    assert found.obs["n_fragments"].to_dict() == lines
    entries = found.matrix.tocoo()
    cells = found.obs.index.tolist()
    read = {(cells[i], j): v for i, j, v in zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist())}
    assert read == expected
    return True


@st.composite
def _chains(draw: Any) -> str:
    """One chain of one to three blocks, as UCSC writes it."""
    blocks = draw(st.lists(st.tuples(*[st.integers(1, 60)] * 3), min_size=1, max_size=3))
    blocks = [(size, gap, other) for size, gap, other in blocks]
    sizes = [sum(size for size, *_ in blocks) + sum(b[k] for b in blocks[:-1]) for k in (1, 2)]
    begins = draw(st.integers(0, 50)), draw(st.integers(0, 50))
    strand = draw(st.sampled_from("+-"))
    head = f"chain 1000 chr1 1000 + {begins[0]} {begins[0] + sizes[0]} chr2 2000 {strand} {begins[1]} {begins[1] + sizes[1]} 1"
    body = [f"{size} {gap} {other}" for size, gap, other in blocks[:-1]] + [f"{blocks[-1][0]}"]
    return "\n".join([head, *body, "", ""])


@target(
    "chain",
    text=_chains(),
    change=st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 200), st.integers(0, 9), some.numbers)),
    packed=st.booleans(),
    rows=st.lists(st.tuples(st.integers(0, 200), st.integers(1, 60)), min_size=1, max_size=4),
)
def chain(folder: Path, text: str, change: Any, packed: bool, rows: list[tuple[int, int]]) -> bool:
    if change is not None:
        at, size, put = change
        text = text[:at] + put + text[at + size :]
    path = folder / "a.chain"
    path.write_bytes(gzip.compress(text.encode(), 1) if packed else text.encode())
    start = np.array([s for s, _ in rows], dtype=np.int64)
    regions = Regions.of(["chr1"] * len(rows), start, start + np.array([n for _, n in rows]))
    with refusal(path) as refused:
        lifted, kept, report = lift(regions, path)
        _sound(lifted)
        lost = report.unmapped + report.split + report.turned + report.resized
        assert report.lifted + lost == report.peaks == len(rows)
        assert len(kept) == len(lifted) == report.lifted
    if refused:
        return False
    with path.open("rb") as raw, gzip.open(raw) if packed else raw as opened:
        reference = LiftOver(opened)
    for number, (chrom, low, high) in zip(kept.tolist(), rows_of(lifted)):
        ends = [
            reference.convert_coordinate("chr1", at)[0] for at in (int(start[number]), int(regions.end[number]) - 1)
        ]
        assert {chrom_name(end[0]) for end in ends} == {chrom}
        assert sorted(end[1] for end in ends) == [low, high - 1]
    return True


@target(
    "regions as a vocabulary",
    rows=st.lists(some.intervals(), min_size=1, max_size=8),
    peaks=st.lists(some.intervals(), max_size=4),
)
def region_vocabulary(folder: Path, rows: list[Interval], peaks: list[Interval]) -> bool:
    def made(of: list[Interval]) -> Regions:
        chrom, start, end = zip(*of) if of else ((), (), ())
        return Regions.of(list(chrom), np.array(start, dtype=np.int64), np.array(end, dtype=np.int64))

    if not (one_build([c for c, *_ in rows]) and one_build([c for c, *_ in peaks])):
        return False
    vocab = RegionVocab(made(rows))
    vocab.save(folder / "genes.tsv")
    again = RegionVocab.load(folder / "genes.tsv")
    assert again == vocab
    assert again.regions.equals(vocab.regions)
    assert sorted(set(by_ucsc(rows))) == sorted(rows_of(vocab.regions))
    found, same = nearest_regions(made(peaks), vocab.regions)
    held = rows_of(vocab.regions)
    for token, is_same, (chrom, start, end) in zip(found.tolist(), same.tolist(), by_ucsc(peaks)):
        shared = [min(end, e) - max(start, s) if c == chrom else 0 for c, s, e in held]
        assert is_same == ((chrom, start, end) in held)
        assert token == (held.index((chrom, start, end)) if is_same else np.argmax(shared) if max(shared) > 0 else -1)
    return True


@target("h5ad of peaks", names=st.lists(some.peak_names(), min_size=1, max_size=4))
def h5ad_of_peaks(folder: Path, names: list[Any]) -> bool:
    """Peaks of an AnnData as a corpus and a translator read them: the same peaks, or a refusal."""
    import anndata as ad

    from expresser.corpus.source import open_source
    from translate.reading import peaks_of

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        var = pd.DataFrame(index=pd.Index([name for name, _ in names], dtype=object))
        data = ad.AnnData(np.ones((1, len(names)), np.float32), var=var)
    with refusal("AnnData") as refused:
        regions = open_source(data, features="regions").regions
        _sound(regions)
    with refusal("AnnData") as refused_too:
        assert rows_of(peaks_of(data)) == rows_of(regions)
    assert refused_too or not refused
    return not refused
