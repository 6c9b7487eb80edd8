"""Regions are read from any usual name, keep an explicit order, and overlap as a loop over all pairs says; builds; liftover."""

import gzip
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expresser.errors import InputError
from expresser.peak_names import chrom_name, natural
from expresser.regions import Regions
from translate.genomes import CHROM_SIZES, check_genome, guess_genome
from translate.liftover import lift

CHROMS = ["chr1", "chr2", "chr10", "chrX", "chrM", "GL000194.1", "chr1_KI270706v1_random", "HLA-A*01:01"]


def build(rows: list[tuple[str, int, int]]) -> Regions:
    chrom, start, length = zip(*rows) if rows else ((), (), ())
    starts = np.array(start, dtype=np.int64)
    return Regions.of(list(chrom), starts, starts + np.array(length, dtype=np.int64))


def rows_of(regions: Regions) -> list[tuple[str, int, int]]:
    return [(regions.chroms[c], int(s), int(e)) for c, s, e in zip(regions.chrom, regions.start, regions.end)]


def overlap(a: tuple[str, int, int], b: tuple[str, int, int]) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


row = st.tuples(st.sampled_from(CHROMS), st.integers(0, 60), st.integers(1, 25))
peaks = st.lists(
    row, max_size=25
)  # not mapped to Regions here: beartype draws from `random`, which a strategy must not


# --- names ---


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("chr1:1000-2000", "chr1:1000-2000"),
        ("chr1-1000-2000", "chr1:1000-2000"),
        ("chr1_1000_2000", "chr1:1000-2000"),
        ("chr1:1000..2000", "chr1:1000-2000"),
        ("1:1000-2000", "chr1:1000-2000"),
        ("1-1000-2000", "chr1:1000-2000"),
        (" CHR1:1,000-2,000 ", "chr1:1000-2000"),
        ("GRCh38_chr1:1000-2000", "chr1:1000-2000"),
        ("hg19_1-1000-2000", "chr1:1000-2000"),
        ("mm10___chr19-1000-2000", "chr19:1000-2000"),
        ("GRCh38.p13_X:5-6", "chrX:5-6"),
        ("x:5-6", "chrX:5-6"),
        ("chrMT_5_6", "chrM:5-6"),
        ("MT:5-6", "chrM:5-6"),
        ("chr1_KI270706v1_random:1-2", "chr1_KI270706v1_random:1-2"),
        ("chr1_KI270706v1_random_1_2", "chr1_KI270706v1_random:1-2"),
        ("chr6_GL000250v2_alt-1-2", "chr6_GL000250v2_alt:1-2"),
        ("KI270721.1-2000-3000", "KI270721.1:2000-3000"),
        ("GL000194.1:2000-3000", "GL000194.1:2000-3000"),
        ("HLA-A*01:01:2000-3000", "HLA-A*01:01:2000-3000"),
        ("chr1-1e+05-100500", "chr1:100000-100500"),  # as R writes round numbers
        ("chr1:0-1", "chr1:0-1"),
    ],
)
def test_every_usual_name_is_read(name, meant):
    assert Regions.parse([name]).names().tolist() == [meant]


@given(regions=peaks, join=st.sampled_from([":-", "--", "__", ":_", "-_"]), commas=st.booleans())
def test_parsing_names_gives_the_regions_back(regions, join, commas):
    regions = build(regions)
    assert Regions.parse(regions.names()).equals(regions)
    number = "{:,}" if commas else "{}"
    spelled = [f"{c}{join[0]}{number.format(s)}{join[1]}{number.format(e)}" for c, s, e in rows_of(regions)]
    assert Regions.parse(spelled).equals(regions)
    assert Regions.from_var(regions.to_frame()).equals(regions)
    assert Regions.from_var(regions.to_frame()[[]]).equals(regions)


@given(st.text(max_size=25))
def test_any_text_is_read_or_refused_with_the_rule(text):
    try:
        regions = Regions.parse([text])
    except InputError as error:
        message = str(error)
    else:
        message = "chr1:100-200"
        assert Regions.parse(regions.names()).equals(regions)
    assert "chr1:100-200" in message


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (["chr1:1-2", "gene", "ACTB"], r"2 of 3 cannot be read \(first: 'gene', 'ACTB'\)"),
        (["chr1:5-5", "chr1:1-2", "chr1:9-3"], r"2 of 3 have no range.*'chr1:5-5', 'chr1:9-3'"),
        (["chr1:-5-10"], "1 of 1 have no range"),
        (["chr1-5--10"], "1 of 1 have no range"),
        (["chr1:1.5-2.5"], "not whole"),
        (["chr1:1-9e+99"], "1 of 1 have no range"),
        (["hg19_chr1:1-2", "mm10_chr1:1-2"], "prefixes of 2 genomes"),
        (["chr1-1000"], "cannot be read"),
        ([""], "cannot be read"),
    ],
)
def test_bad_names_are_counted_and_shown(bad, what):
    with pytest.raises(InputError, match=what):
        Regions.parse(bad)


def test_columns_win_over_names_and_may_be_spelled_as_in_other_tools():
    names = pd.Index(["peak1", "peak2"])
    var = pd.DataFrame({"seqnames": pd.Categorical(["2", "X"]), "Start": [5, 7], "End": [9.0, 8.0]}, index=names)
    assert Regions.from_var(var).names().tolist() == ["chr2:5-9", "chrX:7-8"]
    with pytest.raises(InputError, match=r"1 of 2 have no range.*'peak2'"):
        Regions.from_var(var.assign(End=[9.0, np.nan]))
    with pytest.raises(InputError, match=r"1 of 2 have no seqnames \(first: 'peak1'\)"):
        Regions.from_var(var.assign(seqnames=[None, "X"]))
    with pytest.raises(InputError, match="cannot be read"):
        Regions.from_var(var.drop(columns="End"))


def test_the_constructor_takes_only_what_is_numbered_well():
    one = np.ones(1, dtype=np.int64)
    for chroms, code in ((("chr1", "chr2"), 0), (("chr1",), 1), (("chr1",), -1)):
        with pytest.raises(InputError, match="natural order"):
            Regions(chroms, np.array([code], dtype=np.int32), one - 1, one)
    with pytest.raises(InputError, match="natural order"):
        Regions(("chr2", "chr1"), np.array([0, 1], dtype=np.int32), np.zeros(2, dtype=np.int64), np.r_[one, one])
    with pytest.raises(InputError, match="number 0 is 1 to 1"):
        Regions(("chr1",), np.zeros(1, dtype=np.int32), one, one)


def test_natural_order_of_chromosomes():
    names = ["chr1", "chr2", "chr10", "chr22", "chrX", "chrY", "chrM", "GL000194.1", "chrUn_1"]
    backwards = names[::-1]
    assert sorted(backwards, key=natural) == names
    assert [chrom_name(chrom_name(name)) for name in names] == names


def test_a_whole_atlas_is_parsed_at_once():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 200_000_000, 224_000)
    names = [f"chr{c}:{s}-{s + 500}" for c, s in zip(rng.integers(1, 23, start.size).tolist(), start.tolist())]
    begun = time.process_time()
    regions = Regions.parse(names)
    assert time.process_time() - begun < 3  # 0.4 s alone on one thread
    assert np.array_equal(regions.start, start)


# --- order, blocks, merging, overlaps ---


@given(regions=peaks, other=peaks)
def test_overlaps_are_those_of_all_pairs(regions, other):
    regions, other = build(regions), build(other)
    found = regions.overlaps(other)
    expected = [[overlap(a, b) for b in rows_of(other)] for a in rows_of(regions)]
    assert found.dtype == np.float32
    assert found.has_canonical_format
    assert np.array_equal(found.toarray(), np.array(expected, dtype=np.float32).reshape(len(regions), len(other)))
    assert (found != other.overlaps(regions).T).nnz == 0


@given(regions=peaks, data=st.data())
def test_blocks_follow_a_permutation(regions, data):
    regions = build(regions)
    order = np.array(data.draw(st.permutations(range(len(regions)))), dtype=np.int64)
    shuffled = regions.take(order)
    assert shuffled.chroms == regions.chroms
    before, after = regions.blocks(), shuffled.blocks()
    assert list(before) == list(after) == list(regions.chroms)
    for chrom, members in before.items():
        assert sorted(order[after[chrom]].tolist()) == members.tolist()
    assert shuffled.take(shuffled.order()).equals(regions.take(regions.order()))
    assert shuffled.merged().equals(regions.merged())
    canonical = rows_of(regions.take(regions.order()))
    assert canonical == sorted(canonical, key=lambda r: (natural(r[0]), r[1], r[2]))


@given(peaks)
def test_merging_joins_what_overlaps_and_nothing_else(regions):
    regions = build(regions)
    merged = regions.merged()
    covered = {(c, base) for c, s, e in rows_of(regions) for base in range(s, e)}
    assert {(c, base) for c, s, e in rows_of(merged) for base in range(s, e)} == covered
    assert merged.merged().equals(merged)
    assert (merged.overlaps(merged).toarray() == np.eye(len(merged))).all()
    assert regions.overlaps(merged).getnnz(axis=1).tolist() == [1] * len(regions)
    edges = {(c, s) for c, s, _ in rows_of(regions)}, {(c, e) for c, _, e in rows_of(regions)}
    assert all((c, s) in edges[0] and (c, e) in edges[1] for c, s, e in rows_of(merged))


def test_touching_regions_stay_apart():
    assert Regions.parse(["chr1:1-5", "chr1:5-9"]).merged().names().tolist() == ["chr1:1-5", "chr1:5-9"]


@given(regions=peaks, keep=st.data())
def test_taking_concatenating_and_duplicates(regions, keep):
    regions = build(regions)
    mask = np.array(keep.draw(st.lists(st.booleans(), min_size=len(regions), max_size=len(regions))), dtype=bool)
    part = regions.take(mask)
    assert rows_of(part) == [r for r, m in zip(rows_of(regions), mask) if m]
    both = Regions.concat([part, regions])
    assert rows_of(both) == rows_of(part) + rows_of(regions)
    rows = rows_of(both)
    assert both.duplicated().tolist() == [r in rows[:i] for i, r in enumerate(rows)]
    assert both.is_autosome().tolist() == [r[0] in ("chr1", "chr2", "chr10") for r in rows]


# --- genome builds ---


def tss_and_peaks(genome: str, n: int, share: float) -> tuple[pd.DataFrame, Regions]:
    """20,000 TSS, and peaks of which a share is at one of them."""
    rng = np.random.default_rng(3)
    chroms = np.array(list(CHROM_SIZES[genome]))
    size = np.array(list(CHROM_SIZES[genome].values()))
    tss_at, peak_at = (rng.choice(len(chroms), k, p=size / size.sum()) for k in (20_000, n))
    sites = (rng.random(20_000) * (size[tss_at] - 2_000)).astype(np.int64)
    starts = (rng.random(n) * (size[peak_at] - 2_000)).astype(np.int64)
    at = rng.random(n) < share
    which = rng.integers(0, 20_000, n)
    peak_at[at], starts[at] = tss_at[which[at]], sites[which[at]]
    tss = pd.DataFrame({"chrom": np.char.replace(chroms[tss_at].astype(str), "chr", ""), "tss": sites})
    return tss, Regions.of(chroms[peak_at], starts, starts + 500)


def test_sizes_tell_the_build():
    _, regions = tss_and_peaks("mm10", 5_000, 0)
    assert guess_genome(regions) == "mm10"
    report = check_genome(regions, "GRCm38")
    assert (report.genome, report.peaks, report.unknown, report.fits) == ("mm10", 5_000, 0, ("mm10",))
    assert np.isnan(report.near_tss)
    report.check()  # nothing to say without TSS
    with pytest.raises(InputError, match=r"of 5,000 lie beyond the end of their chromosome in hg38 .*fit mm10"):
        check_genome(regions, "hg38")
    with pytest.raises(InputError, match="genome 'rn6' is not known"):
        check_genome(regions, "rn6")
    contigs = Regions.parse(["KI1.1:1-2", "KI2.1:1-2", "chr1:1-2"])
    with pytest.raises(InputError, match="2 of 3 are on contigs"):
        check_genome(contigs, "hg38")
    assert guess_genome(contigs) is None


def test_a_peak_may_hang_over_the_end_of_its_chromosome():
    end = CHROM_SIZES["hg38"]["chr21"]
    assert check_genome(Regions.parse([f"21:{end - 100}-{end + 50}"]), "hg38").fits
    with pytest.raises(InputError, match="1 of 1 lie beyond"):
        check_genome(Regions.parse([f"21:{end}-{end + 50}"]), "hg38")


def test_tss_tell_whether_peaks_and_genes_are_of_one_build():
    tss, regions = tss_and_peaks("hg38", 5_000, 0.3)
    report = check_genome(regions, "hg38", tss)
    # A peak at a TSS is near it; others are by chance: 20,000 TSS x 4.5 kb over 3.1 Gb.
    assert report.near_tss == pytest.approx(0.3 + 0.7 * 0.029, abs=0.02)
    assert report.near_shifted == pytest.approx(0.029, abs=0.01)
    report.check()
    other, _ = tss_and_peaks("hg38", 5_000, 0)
    wrong = check_genome(regions, "hg38", other.assign(tss=(other.tss + 30_000_000) % 200_000_000))
    with pytest.raises(InputError, match=r"of 5,000 lie within 2,000 bases of a TSS .* Give both in one build"):
        wrong.check()
    few = check_genome(regions.take(np.arange(50)), "hg38", other)
    assert np.isnan(few.enrichment)
    few.check()  # too few to tell


@pytest.mark.realdata
def test_real_sets_are_told_apart_by_sizes_and_by_tss(realdata: Path):
    anndata = pytest.importorskip("anndata")
    tss = pd.read_csv(realdata / "annotation/gene_tss_hg38.tsv.gz", sep="\t")
    good = ["multiome/bmmc_setA_atac", "multiome/bmmc_setB_atac", "multiome/snare_h1_atac"]
    bad = ["multiome/scicar_a549_atac_binary", "atac/granja_hemato_atac"]
    for name in good + bad:
        regions = Regions.from_var(anndata.read_h5ad(realdata / f"{name}.h5ad", backed="r").var)
        build = guess_genome(regions)
        assert build == ("hg38" if name in good else "hg19")
        report = check_genome(regions, build, tss)
        if name in good:
            assert report.enrichment > 3.5
            report.check()
            continue
        assert report.enrichment < 1.2
        with pytest.raises(InputError, match="Give both in one build"):
            report.check()
        with pytest.raises(InputError, match="All of them fit hg19"):
            check_genome(regions, "hg38", tss)
        lifted, kept, numbers = lift(regions, realdata / "annotation/hg19ToHg38.over.chain.gz")
        assert len(kept) == numbers.lifted > 0.97 * len(regions)
        assert check_genome(lifted, "hg38", tss).enrichment > 1.8


# --- liftover ---

CHAIN = """chain 1000 chr1 10000 + 100 1100 chr1 20000 + 1100 2150 1
500 100 150
400

chain 900 chr1 10000 + 2000 3000 chr2 5000 - 1000 2000 2
1000

chain 800 chr1 10000 + 3000 3100 chr1 20000 + 500 600 3
100

"""


@pytest.fixture(params=["c.chain", "c.over.chain.gz"])
def chain(request, tmp_path: Path) -> Path:
    path = tmp_path / request.param
    path.write_bytes(gzip.compress(CHAIN.encode()) if path.suffix == ".gz" else CHAIN.encode())
    return path


def test_known_lifts_and_each_reason(chain):
    names = [
        "chr1:200-300",  # first block: + 1000
        "1:599-600",  # its last base
        "chr1:500-800",  # across the gap: 100 shorter in hg19
        "chr1:599-601",  # ends in the gap
        "chr1:2000-2100",  # reversed: 5000 - 1000 - 1 - 0 is the last base
        "chr1:900-2010",  # ends on two chromosomes
        "chr1:1050-3010",  # turned: the last base lies before the first
        "chr1:590-710",  # 170 of 120
        "chr5:1-5",  # no such chromosome
    ]
    lifted, kept, report = lift(Regions.parse(names), chain, factor=1.4)
    assert lifted.names().tolist() == ["chr1:1200-1300", "chr1:1599-1600", "chr1:1500-1850", "chr2:3900-4000"]
    assert kept.tolist() == [0, 1, 2, 4]
    assert (report.unmapped, report.split, report.turned, report.resized) == (2, 1, 1, 1)
    assert (report.peaks, report.lifted, report.reversed) == (9, 4, 1)
    assert str(report).startswith("4 of 9 peaks lifted over (2 unmapped, 1 split, 1 turned, 1 resized)")
    assert lift(Regions.parse(names), chain)[2].resized == 0


@settings(max_examples=20)
@given(data=st.data())
def test_lifting_does_not_depend_on_the_order(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("chain") / "c.chain"
    path.write_text(CHAIN)
    start = np.arange(100, 3000, 130)
    regions = Regions.of(["chr1"] * len(start), start, start + 50)
    order = np.array(data.draw(st.permutations(range(len(start)))), dtype=np.int64)
    lifted, kept, report = lift(regions, path)
    again, kept_again, report_again = lift(regions.take(order), path)
    assert report == report_again
    assert sorted(order[kept_again].tolist()) == kept.tolist()
    assert sorted(again.names()) == sorted(lifted.names())


def test_what_cannot_be_lifted_says_why(chain, tmp_path, monkeypatch):
    regions = Regions.parse(["chr1:200-300"])
    with pytest.raises(InputError, match="no chain file 'nothing'"):
        lift(regions, "nothing")
    broken = tmp_path / "broken.chain"
    broken.write_text("chain 1000 chr1 10000 + 100 1100 chr1 20000 + 1100 2150 1\n7\n\n")
    with pytest.raises(InputError, match="cannot be read or downloaded"):
        lift(regions, broken)
    with pytest.raises(InputError, match=r"0 of 1 peaks lifted over \(1 unmapped"):
        lift(Regions.parse(["chr7:200-300"]), chain)
    with pytest.raises(InputError, match=r"factor is 0\.5"):
        lift(regions, chain, factor=0.5)
    monkeypatch.setitem(__import__("sys").modules, "pyliftover", None)
    with pytest.raises(InputError, match=r"pip install 'expresser\[liftover\]'"):
        lift(regions, chain)
