"""Fragments counted on the command line: peaks and cells from any kind of file, and one clear message for bad input."""

import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from expresser.bed import read_bed
from expresser.cli import main
from expresser.errors import InputError
from tests.test_cli import refused
from tests.translate_toys import toy_fit
from translate.counting import cells_to_count, peaks_to_count

LINES = [("1", 12, "AA-1"), ("chr1", 30, "AA-1"), ("chr1", 1010, "CC-1"), ("chr2", 70, "CC-1"), ("chr2", 5000, "GG-1")]
BED = "track name=x\n# a comment\nchr2\t50\t90\tpeak1\t0\nchr1\t10\t40\nchr1\t10\t40\tsummit2\nchr1\t1000\t1100\n"
COUNTS = {"AA-1": [0, 2, 0], "CC-1": [1, 0, 1]}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with f.tsv.gz, p.bed, p.h5ad (the same peaks) and barcodes.tsv.gz."""
    text = "".join(f"{chrom}\t{start}\t{start + 5}\t{barcode}\t1\n" for chrom, start, barcode in LINES)
    (tmp_path / "f.tsv.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "p.bed").write_text(BED)
    peaks = pd.DataFrame(index=["chr2:50-90", "chr1:10-40", "chr1:1000-1100"])
    ad.AnnData(np.ones((2, 3), np.float32), obs=pd.DataFrame(index=["CC-1", "AA-1"]), var=peaks).write_h5ad(
        tmp_path / "p.h5ad"
    )
    (tmp_path / "barcodes.tsv.gz").write_bytes(gzip.compress(b"barcode\nAA-1\nCC-1\nAA-1\n"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*argv: object) -> ad.AnnData:
    main(["translate", "count", "--fragments", "f.tsv.gz", "--out", "out.h5ad", *map(str, argv)])
    return ad.read_h5ad("out.h5ad")


@pytest.mark.parametrize("peaks", ["p.bed", "p.h5ad"])
@pytest.mark.parametrize("cells", ["barcodes.tsv.gz", "p.h5ad"])
@pytest.mark.parametrize("more", [[], ["--no-totals"]])
def test_peaks_and_cells_come_from_any_kind_of_file(
    here: Path, peaks: str, cells: str, more: list[str], capsys
) -> None:
    found = run("--peaks", peaks, "--cells", cells, "--genome", "hg38", *more)
    assert found.obs_names.tolist() == (["AA-1", "CC-1"] if cells != "p.h5ad" else ["CC-1", "AA-1"])
    assert found.var_names.tolist() == ["chr2:50-90", "chr1:10-40", "chr1:1000-1100"]
    assert found.var[["chrom", "start", "end"]].to_numpy().tolist()[0] == ["chr2", 50, 90]
    for name, row in COUNTS.items():
        assert found[name].X.toarray().tolist() == [row]
    assert ("n_fragments" in found.obs) == (not more)
    assert found.uns["expresser"]["counted"] == "fragments"
    assert "2 cells x 3 peaks, " in capsys.readouterr().out
    assert not [path for path in here.iterdir() if path.name.startswith(".")]


def test_all_barcodes_with_enough_fragments_and_ends_of_fragments(here: Path) -> None:
    found = run("--peaks", "p.bed", "--min-fragments", 2, "--insertions")
    assert found.obs["n_fragments"].to_dict() == {"AA-1": 2, "CC-1": 2}
    assert found.X.toarray().tolist() == [[0, 4, 0], [2, 0, 2]]
    assert found.uns["expresser"]["counted"] == "insertions"


def test_counts_in_a_models_peaks_are_read_by_it_as_they_are(here: Path, capsys) -> None:
    model = toy_fit("babel", here / "fit", genome="hg38")
    regions, build = peaks_to_count(str(here / "fit"))
    assert build == "hg38"
    chrom, start = regions.to_frame()["chrom"], regions.start
    lines = "".join(f"{c}\t{s + 3}\t{s + 9}\tT{i % 2}\n" for i, (c, s) in enumerate(zip(chrom, start)))
    (here / "f.tsv.gz").write_bytes(gzip.compress(lines.encode()))
    found = run("--peaks", here / "fit", "--min-fragments", 1)
    assert found.var_names.tolist() == model.var("atac").index.tolist()
    assert found.X.toarray()[0].tolist() == [float(i % 2 == 0) for i in range(len(regions))]
    main(["translate", "predict", "fit", "--input", "out.h5ad", "--to", "rna", "--out", "rna.h5ad"])
    n = len(regions)
    assert f"has {n:,} of the {n:,} peaks that the model reads" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--peaks p.bed --fragments none.tsv.gz", "there is no such fragment file"),
        ("--peaks none.bed", "none.bed: there is no such file of peaks"),
        ("--peaks bad.bed", "bad.bed: line 2 is no interval: 'chr1\\tx\\t9'"),
        ("--peaks none", "none"),
        ("--peaks genes.h5ad", "genes.h5ad: its names ('GATA1', 'CD4') are no peaks"),
        ("--peaks p.bed --cells empty.txt", "empty.txt: holds no barcode"),
        ("--peaks p.bed --cells none.txt", "none.txt: cannot be read as a list of barcodes"),
        ("--peaks p.bed --cells other.txt", "none of the 1 cells asked for"),
        ("--peaks far.bed --genome mm10", "1 of 1 lie beyond the end of their chromosome in mm10"),
        ("--peaks p.bed --genome hg99", "genome 'hg99' is not known"),
        ("--peaks p.bed", "no barcode has 1,000 fragments"),
        ("--peaks p.bed --no-totals", "--no-totals counts given cells"),
        ("--peaks p.h5ad --out p.h5ad", "would be lost"),
        ("--peaks p.bed --out x.tsv", "written as .h5ad"),
    ],
)
def test_bad_input_is_one_message(here: Path, argv: str, words: str, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "bad.bed").write_text("chrom\tstart\tend\nchr1\tx\t9\n")
    (here / "far.bed").write_text("chr1\t247000000\t247000100\n")
    (here / "empty.txt").write_text("\n")
    (here / "other.txt").write_text("TT-1\n")
    ad.AnnData(np.ones((1, 2), np.float32), var=pd.DataFrame(index=["GATA1", "CD4"])).write_h5ad(here / "genes.h5ad")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    given = ["--fragments", "f.tsv.gz", "--out", "x.h5ad"]
    for option in ("--fragments", "--out"):
        if option in argv:
            at = given.index(option)
            del given[at : at + 2]
    assert words in refused(capsys, here, "translate", "count", *given, *argv.split())


def test_a_bed_file_is_read_in_its_order_each_interval_once(tmp_path: Path) -> None:
    path = tmp_path / "p.bed.gz"
    path.write_bytes(gzip.compress(BED.encode()))
    assert read_bed(path).names().tolist() == ["chr2:50-90", "chr1:10-40", "chr1:1000-1100"]
    for text, words in (
        ("chr1\t5\t5\n", "line 1 has no base"),
        ("chr1\t5\n", "line 1 is no interval"),
        ("#\n", "holds no interval"),
    ):
        path.with_suffix("").write_text(text)
        with pytest.raises(InputError, match=words):
            read_bed(path.with_suffix(""))
    path.write_bytes(gzip.compress(BED.encode())[:-9])
    with pytest.raises(InputError, match=r"cannot be read .Compressed file ended"):
        read_bed(path)


def test_barcodes_are_the_first_column_each_once(tmp_path: Path) -> None:
    path = tmp_path / "cells.csv"
    path.write_text("barcode,sample\nAA-1,x\nCC-1,x\nAA-1,y\n")
    assert cells_to_count(path) == ["AA-1", "CC-1"]
