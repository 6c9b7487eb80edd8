"""Corpora of ATAC: regions as tokens, peaks that go to the region they overlap most, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.cli import main
from expresser.corpus import mirror
from expresser.corpus.append import append_corpus
from expresser.corpus.build import build_corpus
from expresser.corpus.features import read_regions
from expresser.corpus.info import corpus_info, info_text
from expresser.corpus.publish import dataset_card
from expresser.corpus.selection import subset_corpus
from expresser.corpus.splitting import split_corpus
from expresser.corpus.store import Corpus
from expresser.corpus.verify import _laws, verify_corpus
from expresser.errors import InputError
from expresser.region_vocab import RegionVocab, nearest_regions
from expresser.regions import Regions
from pretrain.data import gene_corpus

WIDTH = 500


def bins(n: int, per_chrom: int = 40, first: int = 0) -> list[tuple[str, int, int]]:
    """Tiles of chr1, chr2, … in canonical order."""
    return [
        (f"chr{i // per_chrom + 1}", i % per_chrom * WIDTH, i % per_chrom * WIDTH + WIDTH)
        for i in range(first, first + n)
    ]


def cells(
    peaks: list[tuple[str, int, int]], n: int = 60, *, spelling: str = "{0}:{1}-{2}", prefix: str = "c", seed: int = 0
) -> ad.AnnData:
    """Counts 0 to 3 over these peaks, a third of them open, and a label."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 4, (n, len(peaks))) * (rng.random((n, len(peaks))) < 1 / 3)
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = [spelling.format(*peak) for peak in peaks]
    adata.obs_names = [f"{prefix}{i}" for i in range(n)]
    adata.obs["donor"] = [f"d{i % 4}" for i in range(n)]
    return adata


def build(inputs: list, out: Path, **arguments: Any) -> Corpus:
    """Every cell is kept."""
    return build_corpus(inputs, out, min_genes=0, **arguments)


def counts_of(corpus: Corpus) -> np.ndarray:
    """Cells, by cell id, x regions."""
    rows = np.argsort(corpus.cell_ids)
    return corpus.read(rows).to_csr(len(corpus.vocab)).toarray()


@pytest.mark.parametrize("spelling", ["{0}:{1}-{2}", "{0}_{1}_{2}", "{0}-{1}-{2}", "columns"])
def test_counts_come_back_over_peaks_in_canonical_order(spelling: str, tmp_path: Path) -> None:
    peaks = bins(90)
    order = np.random.default_rng(1).permutation(90)
    shuffled = [peaks[i] for i in order]
    adata = cells(shuffled, spelling="peak{1}of{0}" if spelling == "columns" else spelling)
    if spelling == "columns":
        adata.var["chrom"], adata.var["start"], adata.var["end"] = zip(*shuffled)
        corpus = build([adata], tmp_path / "c", regions=Regions.of(*map(np.array, zip(*peaks))))
    else:
        corpus = build([adata], tmp_path / "c", obs_columns=["donor"])
    assert corpus.features == "regions"
    assert corpus.manifest["features"] == "regions"
    assert f"regions   {len(peaks)}" in info_text(corpus_info(corpus.path))
    with pytest.raises(
        InputError, match=f"a corpus of {len(peaks)} regions, but pretraining predicts the expression of genes"
    ):
        gene_corpus(corpus.path)
    assert corpus.vocab.ids.tolist() == ["{}:{}-{}".format(*peak) for peak in peaks]
    np.testing.assert_array_equal(counts_of(corpus), adata.X.toarray()[:, np.argsort(order)])
    verify_corpus(corpus.path, deep=True)


def test_more_regions_than_uint16_can_number(tmp_path: Path) -> None:
    n = 70_000
    rng = np.random.default_rng(0)
    x = sparse.random(30, n, density=0.002, format="csr", random_state=0, dtype=np.float32)
    x.data[:] = rng.integers(1, 5, x.nnz)
    adata = ad.AnnData(x, var=pd.DataFrame(index=["{}:{}-{}".format(*p) for p in bins(n, 10_000)]))
    adata.obs["donor"] = [f"d{i % 3}" for i in range(30)]
    corpus = build([adata], tmp_path / "c", obs_columns=["donor"])
    assert corpus.manifest["dtypes"]["genes"] == "uint32"
    batch = corpus.read(np.argsort(corpus.cell_ids))
    assert batch.genes.dtype == np.uint32
    assert batch.counts.dtype == np.uint16
    assert (batch.to_csr(n) != x).nnz == 0
    assert batch.genes.max() > 65_535  # numbers that uint16 would have wrapped
    lengths, genes = corpus.read_genes(np.argsort(corpus.cell_ids))
    np.testing.assert_array_equal(lengths, batch.lengths)
    np.testing.assert_array_equal(genes, batch.genes)
    verify_corpus(corpus.path, deep=True)

    part = subset_corpus(corpus, tmp_path / "part", where=["donor=d1"])
    assert part.features == "regions"
    assert part.n_cells == 10
    np.testing.assert_array_equal(counts_of(part), x.toarray()[1::3])
    split_corpus(corpus, tmp_path / "sides", by="donor", shares={"train": 0.67, "test": 0.33}, seed=0)
    assert Corpus.open(tmp_path / "sides" / "test").features == "regions"


@pytest.mark.parametrize("values", [np.float32, np.uint8, bool])
def test_zeros_and_ones_are_counts(values: type, tmp_path: Path) -> None:
    adata = cells(bins(60))
    adata.X = (adata.X > 0).astype(values)
    corpus = build([adata], tmp_path / "c")
    np.testing.assert_array_equal(counts_of(corpus), adata.X.toarray())


def test_other_values_are_refused(tmp_path: Path) -> None:
    adata = cells(bins(60))
    adata.X = adata.X * 0.5
    with pytest.raises(InputError, match=r"raw|whole"):
        build([adata], tmp_path / "c")


def test_peaks_go_to_the_region_they_overlap_most(tmp_path: Path) -> None:
    regions = Regions.of(["chr1"] * 4, np.array([0, 100, 200, 1000]), np.array([100, 200, 300, 1100]))
    peaks = [
        ("chr1", 0, 100),  # is region 0
        ("chr1", 150, 220),  # 50 bases of region 1, 20 of 2
        ("chr1", 180, 290),  # 20 of 1, 90 of 2
        ("chr1", 50, 150),  # 50 of each: the first
        ("chr1", 90, 91),  # inside region 0
        ("chr1", 300, 400),  # touches region 2, shares no base
        ("chr2", 0, 100),  # another chromosome
    ]
    tokens, same = nearest_regions(Regions.of(*map(np.array, zip(*peaks))), regions)
    assert tokens.tolist() == [0, 1, 2, 0, 0, -1, -1]
    assert same.tolist() == [True, *[False] * 6]
    adata = cells(peaks, n=50)
    corpus = build([adata], tmp_path / "c", regions=regions, min_counts_kept=0.5)
    x = adata.X.toarray()
    kept = x[:, :5].any(axis=1)
    want = np.stack([x[:, [0, 3, 4]].sum(axis=1), x[:, 1], x[:, 2], 0 * x[:, 0]], axis=1)[kept]
    np.testing.assert_array_equal(counts_of(corpus), want)
    entry = corpus.manifest["sources"][0]["genes"]
    assert (entry["by_id"], entry["by_alias"], entry["unknown"], entry["genes"]) == (1, 4, 2, 3)
    assert entry["counts_kept"] == pytest.approx(x[:, :5].sum() / x.sum())


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_nearest_region_is_the_one_of_greatest_overlap(data: st.DataObject) -> None:
    """Against trying every pair."""

    def draw(n: int) -> Regions:
        start = np.array(data.draw(st.lists(st.integers(0, 60), min_size=n, max_size=n)))
        width = np.array(data.draw(st.lists(st.integers(1, 30), min_size=n, max_size=n)))
        chrom = data.draw(st.lists(st.sampled_from(["chr1", "chr2"]), min_size=n, max_size=n))
        return Regions.of(chrom, start, start + width)

    peaks = draw(data.draw(st.integers(1, 8)))
    regions = RegionVocab(draw(data.draw(st.integers(1, 8)))).regions
    tokens, same = nearest_regions(peaks, regions)
    its = regions.to_frame()
    for i, (chrom, start, end) in enumerate(peaks.to_frame().itertuples(index=False)):
        shared = np.minimum(end, its["end"]) - np.maximum(start, its["start"])
        shared = np.where(its["chrom"] == chrom, np.maximum(shared, 0), 0)
        equal = ((its["chrom"] == chrom) & (its["start"] == start) & (its["end"] == end)).to_numpy()
        want = -1 if not shared.any() else int(np.argmax(equal)) if equal.any() else int(np.argmax(shared))
        assert tokens[i] == want
        assert same[i] == equal.any()


def test_regions_of_a_bed_file_or_of_another_file(tmp_path: Path) -> None:
    peaks = bins(50)
    bed = tmp_path / "peaks.bed"
    bed.write_text("".join(f"{c}\t{s}\t{e}\n" for c, s, e in reversed(peaks)))
    first, second = cells(peaks, prefix="a"), cells(bins(50, first=5), prefix="b", seed=1)
    for name, adata in (("first", first), ("second", second)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    inputs = [tmp_path / "first.h5ad", tmp_path / "second.h5ad"]
    of_bed = build(inputs, tmp_path / "bed", regions=bed)
    of_file = build(inputs, tmp_path / "file", regions=inputs[0])
    assert of_bed.corpus_id == of_file.corpus_id
    assert read_regions(bed).equals(read_regions(inputs[0]).take(np.arange(50)[::-1]))
    assert len(of_bed.vocab) == 50
    assert of_bed.manifest["sources"][1]["genes"]["unknown"] == 5
    np.testing.assert_array_equal(counts_of(of_bed)[60:, 5:], second.X.toarray()[:, :45])
    with pytest.raises(InputError, match=r"same peaks.*--regions"):
        build(inputs, tmp_path / "none")
    again = build([inputs[0]], tmp_path / "grown", regions=bed)
    assert append_corpus(again.path, [inputs[1]]).n_cells == of_bed.n_cells
    workers = build(inputs, tmp_path / "workers", regions=bed, workers=2)
    assert workers.corpus_id == of_bed.corpus_id


def test_peaks_of_a_file_with_both(tmp_path: Path) -> None:
    adata = ad.concat([cells(bins(40)), cells([(f"GENE{i}", 0, 0) for i in range(30)], spelling="{0}")], axis=1)
    adata.var["feature_types"] = ["Peaks"] * 40 + ["Gene Expression"] * 30
    adata.obs["donor"] = "d"
    genes = build([adata], tmp_path / "genes")
    assert genes.features == "genes"
    assert "features" not in genes.manifest
    assert len(genes.vocab) == 30
    regions = Regions.of(*map(np.array, zip(*bins(40))))
    peaks = build([adata], tmp_path / "peaks", regions=regions)
    np.testing.assert_array_equal(counts_of(peaks), adata.X.toarray()[:, :40])
    adata = adata[:, :40].copy()  # only peaks are left, and it says so
    assert build([adata], tmp_path / "only").features == "regions"


def genes_file() -> ad.AnnData:
    return cells([(f"GENE{i}", 0, 0) for i in range(30)], spelling="{0}", prefix="g")


def test_what_is_no_corpus_of_regions(tmp_path: Path) -> None:
    from expresser.genes import GeneVocab

    atac, rna = cells(bins(40)), genes_file()
    vocab = GeneVocab.from_names([f"GENE{i}" for i in range(30)])
    with pytest.raises(InputError, match="--regions"):  # peaks built as genes
        build([atac], tmp_path / "c", genes=vocab)
    with pytest.raises(InputError, match=r"peaks .*genes .*--regions"):
        build([atac, rna], tmp_path / "c")
    with pytest.raises(InputError, match=r"cannot be read.*are these genes"):
        build([rna], tmp_path / "c", regions=Regions.of(["chr1"], np.array([0]), np.array([9])))
    with pytest.raises(InputError, match=r"one or the other|the one or the other"):
        build([atac], tmp_path / "c", genes=vocab, regions=Regions.of(["chr1"], np.array([0]), np.array([9])))
    with pytest.raises(InputError, match=r"0 overlap one, 40 overlap none.*genome build"):  # empty overlap
        build([atac], tmp_path / "c", regions=Regions.of(["chr9"], np.array([0]), np.array([9])))
    few = Regions.of(*map(np.array, zip(*bins(10))))
    with pytest.raises(InputError, match="at least 60%"):
        build([atac], tmp_path / "c", regions=few)
    assert not (tmp_path / "c").exists()
    typed = atac.copy()
    typed.var["feature_types"] = "Peaks"
    with pytest.raises(InputError, match="--regions"):
        build([typed], tmp_path / "c", genes=vocab)


def test_the_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    bed = tmp_path / "peaks.narrowPeak"
    bed.write_text("".join(f"{c}\t{s}\t{e}\tpeak\n" for c, s, e in bins(50)))
    cells(bins(50)).write_h5ad(tmp_path / "a.h5ad")
    out = tmp_path / "atac"
    main(
        [
            "corpus",
            "build",
            str(tmp_path / "a.h5ad"),
            "--regions",
            str(bed),
            "--min-genes",
            "0",
            "--obs",
            "donor",
            "--out",
            str(out),
        ]
    )
    assert json.loads((out / "manifest.json").read_text())["features"] == "regions"
    main(["corpus", "verify", str(out), "--deep"])
    capsys.readouterr()
    main(["corpus", "info", str(out), "--html", str(tmp_path / "page.html")])
    said = capsys.readouterr().out
    for words in (
        "60 of 1 source,",
        "regions   50\n",
        " in 1 shard, ",
        " 0 few regions",
        "  few regions  ",
        "regions/cell",
    ):
        assert words in said, words
    assert "belong to regions of the vocabulary" in (tmp_path / "page.html").read_text()
    main(["corpus", "subset", str(out), "--where", "donor=d1", "--out", str(tmp_path / "part")])
    assert "part: 15 cells x 50 regions, id" in capsys.readouterr().out
    monkeypatch.setattr(mirror, "pull_corpus", lambda url, to, **_: Corpus.open(out))
    main(["corpus", "pull", "lab/atac", "--out", str(tmp_path / "pulled")])
    assert "pulled: 60 cells x 50 regions, every checksum fits, id" in capsys.readouterr().out
    shares = ["--shares", "a=0.75", "b=0.25"]
    main(["corpus", "split", str(out), "--by", "donor", *shares, "--out", str(tmp_path / "sides")])
    said = capsys.readouterr().out
    assert "45 cells (75.0%) in 3 groups of donor" in said
    assert "15 cells (25.0%) in 1 group of donor" in said
    assert {Corpus.open(tmp_path / "sides" / side).features for side in "ab"} == {"regions"}


def test_a_subset_of_the_regions(tmp_path: Path) -> None:
    """Chosen by name, one a line; what is left is a corpus of regions."""
    adata = cells(bins(60))
    corpus = build([adata], tmp_path / "c")
    (tmp_path / "some.txt").write_text("chr1:500-1000\nchr1:2000-2500\nchr2_0_500\n")
    part = subset_corpus(corpus, tmp_path / "part", genes=tmp_path / "some.txt")
    (tmp_path / "some.bed").write_text("chr1\t500\t1000\nchr1\t2000\t2500\nchr2\t0\t500\n")
    assert subset_corpus(corpus, tmp_path / "bed", genes=tmp_path / "some.bed").corpus_id == part.corpus_id
    assert part.vocab.ids.tolist() == ["chr1:500-1000", "chr1:2000-2500", "chr2:0-500"]
    assert part.features == "regions"
    x = adata.X.toarray()[:, [1, 4, 40]]
    np.testing.assert_array_equal(counts_of(part), x[x.any(axis=1)])
    (tmp_path / "none.txt").write_text("chr9:0-500\n")
    with pytest.raises(InputError, match=r"none of its 1 region \('chr9:0-500', …\).*Name regions as chr1:100-200"):
        subset_corpus(corpus, tmp_path / "none", genes=tmp_path / "none.txt")


def test_what_is_said_of_regions_does_not_say_genes(tmp_path: Path) -> None:
    corpus = build([cells(bins(60))], tmp_path / "c")
    assert "60 regions" in repr(corpus)
    assert " cells x 60 regions" in (card := dataset_card(corpus.manifest, "lab/atac"))
    assert "tags: [single-cell, scatac-seq," in card
    with pytest.raises(InputError, match=r"60 with fewer than 61 regions of the vocabulary.*counts in regions"):
        build_corpus([cells(bins(60))], tmp_path / "none", min_genes=61)
    batch = corpus.read(np.arange(corpus.n_cells))
    falling = replace(batch, genes=batch.genes[::-1].copy())
    laws = [law for law, broken in _laws(falling, 30, 1, corpus.features) if broken.any()]
    assert laws == ["regions do not strictly rise", "a region id beyond the vocabulary's 30"]
    other = RegionVocab(corpus.vocab.regions.take(np.arange(59)))
    other.save(tmp_path / "c" / "genes.tsv")
    with pytest.raises(InputError, match="Token ids would name other regions"):
        Corpus.open(tmp_path / "c", check=False)
