"""Fragments are counted in peaks as a loop over lines counts them, however the file is cut, packed or ordered."""

import gzip
import os
import re
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expresser.errors import InputError
from expresser.regions import Regions
from translate import fragment_files, fragment_index
from translate.fragments import peaks_from_fragments
from translate.study import DataWarning

PEAKS = Regions.parse(["chr2:50-90", "chr1:10-30", "chr1:20-40", "chr1:5-60", "chrX:1-4"])  # some overlap
line = st.tuples(
    st.sampled_from(["chr1", "chr2", "X", "GL000194.1"]),
    st.integers(0, 95),
    st.integers(1, 60),
    st.sampled_from("ABCD"),
)


def fragments(lines: list[tuple[str, int, int, str]]) -> bytes:
    return "".join(f"{c}\t{s}\t{s + n}\t{b}\t2\n" for c, s, n, b in lines).encode()


def by_loop(lines: list[tuple[str, int, int, str]], cells: list[str], insertions: bool) -> np.ndarray:
    counts = np.zeros((len(cells), len(PEAKS)))
    names = np.array(PEAKS.chroms, dtype=object)[PEAKS.chrom]
    for chrom, start, length, barcode in lines:
        if barcode not in cells:
            continue
        ends = [(start, start + 1), (start + length - 1, start + length)] if insertions else [(start, start + length)]
        for low, high in ends:
            for j, peak in enumerate(zip(names, PEAKS.start, PEAKS.end)):
                if peak[0] == ("chrX" if chrom == "X" else chrom) and low < peak[2] and peak[1] < high:
                    counts[cells.index(barcode), j] += 1
    return counts


def bgzip(text: bytes, size: int = 40) -> bytes:
    """Blocks as bgzip writes them, with the empty one that ends a file."""
    out = b""
    for part in [*(text[i : i + size] for i in range(0, len(text), size)), b""]:
        packer = zlib.compressobj(wbits=-15)
        body = packer.compress(part) + packer.flush()
        head = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0" + struct.pack("<H", len(body) + 25)
        out += head + body + struct.pack("<II", zlib.crc32(part), len(part))
    return out


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(line, min_size=1, max_size=30),
    chunk=st.integers(1, 200),
    insertions=st.booleans(),
    packed=st.sampled_from([bytes, gzip.compress, bgzip]),
)
def test_counts_are_those_of_a_loop(tmp_path, lines, chunk, insertions, packed):
    cells = sorted({barcode for *_, barcode in lines})
    expected = by_loop(lines, cells, insertions)
    path = tmp_path / "fragments.tsv.gz"
    path.write_bytes(packed(b"# id=x\n" + fragments(lines)))
    count = "insertions" if insertions else "fragments"
    if not expected.any():
        with pytest.raises(InputError, match=r"no fragment of the cells overlaps|no chromosome of the fragments"):
            peaks_from_fragments(path, PEAKS, min_fragments=1, count=count, chunk=chunk)
        return
    made = peaks_from_fragments(path, PEAKS, min_fragments=1, count=count, chunk=chunk)
    assert made.matrix.dtype == np.float32
    assert made.matrix.has_canonical_format
    assert np.array_equal(made.matrix.toarray(), expected)
    assert made.obs.index.tolist() == cells
    assert made.obs.n_fragments.tolist() == [sum(b == c for *_, b in lines) for c in cells]
    assert Regions.from_var(made.var).equals(PEAKS)


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "fragments.tsv.gz"
    lines = [("1", 12, 5, "AA-1"), ("1", 25, 5, "AA-1"), ("chr2", 60, 5, "CC-1"), ("chr9", 1, 5, "GG-1")]
    path.write_bytes(gzip.compress(b"# id=x\n# reference=hg38\n" + fragments(lines)))
    return path


def test_cells_fix_rows_and_their_order(sample):
    made = peaks_from_fragments(sample, PEAKS, cells=["CC-1", "AA-1"])
    assert made.obs.index.tolist() == ["CC-1", "AA-1"]
    assert made.matrix.toarray().tolist() == [[1, 0, 0, 0, 0], [0, 2, 1, 2, 0]]
    with pytest.warns(UserWarning, match="1 of 2 cells have fewer than 1 fragments"):
        assert peaks_from_fragments(sample, PEAKS, cells=["TT-1", "CC-1"]).obs.index.tolist() == ["CC-1"]
    made = peaks_from_fragments(sample, PEAKS, min_fragments=1)
    assert made.obs.n_fragments.to_dict() == {"AA-1": 2, "CC-1": 1, "GG-1": 1}  # outside peaks too
    assert peaks_from_fragments(sample, PEAKS, min_fragments=2).obs.index.tolist() == ["AA-1"]


def test_counts_nobody_can_use_say_why(sample):
    with pytest.raises(InputError, match=r"none of the 2 cells asked for \(first: \['AA'\]\).* \(first: 'AA-1'\)"):
        peaks_from_fragments(sample, PEAKS, cells=["AA", "CC"])
    with pytest.raises(InputError, match="no barcode has 1,000 fragments; the most that one has is 2"):
        peaks_from_fragments(sample, PEAKS)
    with pytest.raises(InputError, match=r"no chromosome of the fragments \(1, chr2, chr9, …\) has a peak.*on GL1.1"):
        peaks_from_fragments(sample, Regions.parse(["GL1.1:1-9"]), min_fragments=1)
    with pytest.raises(InputError, match="no fragment of the cells overlaps one of the 1 peaks"):
        peaks_from_fragments(sample, Regions.parse(["chr1:1000-9000"]), min_fragments=1)
    with pytest.raises(InputError, match=r"1 peaks repeat another \(chr1:1-9\)"):
        peaks_from_fragments(sample, Regions.parse(["chr1:1-9", "1:1-9"]), min_fragments=1)
    with pytest.raises(InputError, match="1 of the cells asked for repeat"):
        peaks_from_fragments(sample, PEAKS, cells=["AA-1", "AA-1"])
    with pytest.raises(InputError, match="no such fragment file"):
        peaks_from_fragments(sample.with_name("nothing"), PEAKS)


@pytest.mark.parametrize("chunk", [1, 60, 1 << 20])
@pytest.mark.parametrize(
    ("bad", "number"),
    [
        ("chr1\t5\t9", 5),  # no barcode
        ("chr1\t5\t9\tAA\t1\t1", 5),  # another number of columns
        ("chr1\tfive\t9\tAA\t1", 5),
        ("chr1\t5\t\tAA\t1", 5),
        ("chr1\t-5\t9\tAA\t1", 5),
        ("chr1\t9\t9\tAA\t1", 5),
        ("chr1\t9\t5\tAA\t1", 5),
        ("chr1\t5\t9\t\t1", 5),
        ("chr1 5 9 AA 1", 5),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, bad, number, chunk):
    path = tmp_path / "fragments.tsv"
    good = "chr1\t5\t9\tAA\t1\n"
    path.write_text(f"# comment\n{good}{good}# another\n{bad}\n{good}")
    with pytest.raises(InputError, match=re.escape(f"line {number} is no fragment: {bad!r}")):
        peaks_from_fragments(path, PEAKS, min_fragments=1, chunk=chunk)


def test_a_file_cut_short_or_damaged_or_empty_is_refused(tmp_path):
    lines = fragments([("chr1", i % 90, 5, f"B{i}") for i in range(5_000)])
    path = tmp_path / "f.tsv.gz"
    for packed, message in (
        (gzip.compress(lines)[:-3_000], "somewhere after line [1-9]"),
        (gzip.compress(lines)[:200] + b"\0" * 50 + gzip.compress(lines)[250:], "damaged"),
        (bgzip(lines, 10_000)[:-28], "its end block is missing"),
        (gzip.compress(b"# only\n# comments\n"), "holds no fragment"),
        (b"", "holds no fragment"),
        (b"x" * (2 << 20), "line 1 has more than a million characters"),
        (b"chrom\tstart\tend\tbarcode\n" + lines, "line 1 is no fragment: 'chrom"),
    ):
        path.write_bytes(packed)
        with pytest.raises(InputError, match=message):
            peaks_from_fragments(path, PEAKS, min_fragments=1, chunk=1_000)


def test_two_genomes_in_one_file_are_not_mixed(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_bytes(fragments([("GRCh38_chr1", 10, 5, "A"), ("mm10_chr1", 10, 5, "A")]))
    with pytest.raises(InputError, match="prefixes of 2 genomes"):
        peaks_from_fragments(path, PEAKS, min_fragments=1, chunk=1)


def test_windows_line_ends_and_a_missing_last_one(tmp_path):
    path = tmp_path / "f.tsv"
    path.write_bytes(b"chr1\t12\t15\tA\r\nchr1\t13\t15\tA")
    assert peaks_from_fragments(path, PEAKS, min_fragments=1, chunk=20).matrix.toarray().tolist() == [[0, 2, 0, 2, 0]]


# --- through an index ---

long_line = st.tuples(
    st.sampled_from(["chr1", "chr2"]), st.integers(0, 90_000), st.integers(1, 30_000), st.sampled_from("ABC")
)
peak_row = st.tuples(st.sampled_from(["chr1", "chr2", "chr7"]), st.integers(0, 80_000), st.integers(1, 9_000))


def indexed(folder: Path, lines: list[tuple[str, int, int, str]]) -> Path:
    """A file that tabix indexed."""
    pysam = pytest.importorskip("pysam")
    plain, path = folder / "f.tsv", folder / "f.tsv.gz"
    plain.write_bytes(fragments(sorted(lines)))
    pysam.tabix_compress(str(plain), str(path), force=True)
    pysam.tabix_index(str(path), preset="bed", force=True)
    return path


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(long_line, min_size=1, max_size=40),
    rows=st.lists(peak_row, min_size=1, max_size=8, unique=True),
    chunk=st.sampled_from([1, 200, 1 << 20]),
    insertions=st.booleans(),
    gap=st.sampled_from([0, 300, 20_000]),
)
def test_an_index_changes_no_count(tmp_path, monkeypatch, lines, rows, chunk, insertions, gap):
    path = indexed(tmp_path, lines)
    start = np.array([row[1] for row in rows])
    peaks = Regions.of([row[0] for row in rows], start, start + [row[2] for row in rows])
    monkeypatch.setattr(fragment_index, "_GAP", gap)
    monkeypatch.setattr("translate.fragments.pays", lambda *_: True)
    options = {"cells": ["C", "nobody", "A"], "count": "insertions" if insertions else "fragments"}
    try:
        with warnings.catch_warnings(action="ignore"):
            expected = peaks_from_fragments(path, peaks, **options)
    except InputError as error:
        with pytest.raises(InputError, match=re.escape(str(error))):
            peaks_from_fragments(path, peaks, totals=False, chunk=chunk, **options)
        return
    warned = "of 3 cells have no fragment in the peaks"
    with monkeypatch.context() as patch:
        patch.setattr("translate.fragments.read_fragments", None)  # not read through
        with pytest.warns(DataWarning, match=warned):
            found = peaks_from_fragments(path, peaks, totals=False, chunk=chunk, **options)
    monkeypatch.setattr("translate.fragments.pays", lambda *_: False)
    with pytest.warns(DataWarning, match=warned):
        streamed = peaks_from_fragments(path, peaks, totals=False, chunk=chunk, **options)
    assert found.obs.index.tolist() == streamed.obs.index.tolist() == ["C", "nobody", "A"]
    assert found.matrix.has_canonical_format
    assert (found.matrix != streamed.matrix).nnz == 0
    rows_of = [["C", "nobody", "A"].index(name) for name in expected.obs.index]
    assert (found.matrix[rows_of] != expected.matrix).nnz == 0
    assert list(found.obs.columns) == []


def test_an_index_is_used_where_peaks_are_few_and_it_can_be_trusted(tmp_path, monkeypatch):
    many = [("chr1", 100 * i, 50, "AB"[i % 2]) for i in range(20_000)]
    path = indexed(tmp_path, many)
    index = path.with_name("f.tsv.gz.tbi")
    few = Regions.parse(["chr1:500000-500500"])
    options = {"cells": ["A", "B"], "totals": False}
    assert fragment_index.pays(path, fragment_index.stretches(few))
    everywhere = np.arange(0, 2_000_000, 20_000)
    assert not fragment_index.pays(path, Regions.of(["chr1"] * 100, everywhere, everywhere + 500))  # too many seeks
    assert not fragment_index.pays(path, Regions.parse(["chr1:0-100000000"]))  # too much of the genome
    read_through = []
    monkeypatch.setattr(
        "translate.fragments.read_fragments",
        lambda *args: read_through.append(1) or fragment_files.read_fragments(*args),
    )
    assert peaks_from_fragments(path, few, **options).matrix.toarray().tolist() == [[3], [2]]
    assert not read_through
    whole = peaks_from_fragments(path, few, cells=["A", "B"])  # the totals need every line
    assert whole.obs.n_fragments.tolist() == [10_000, 10_000]
    assert len(read_through) == 1
    index.write_bytes(gzip.compress(b"TBI\1 damaged"))
    assert peaks_from_fragments(path, few, **options).matrix.toarray().tolist() == [[3], [2]]
    os.utime(index, (1, 1))  # older than the file: of another one
    assert fragment_index.index_of(path) is None
    assert peaks_from_fragments(path, few, **options).matrix.toarray().tolist() == [[3], [2]]
    assert len(read_through) == 3
    with pytest.raises(InputError, match="cells must be given and min_fragments not"):
        peaks_from_fragments(path, few, totals=False)


def test_progress_is_told_in_bytes_of_the_file(sample):
    told = []
    peaks_from_fragments(sample, PEAKS, min_fragments=1, chunk=10, progress=lambda *at: told.append(at))
    size = sample.stat().st_size
    assert told[-1] == (size, size)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
