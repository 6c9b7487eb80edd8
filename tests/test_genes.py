"""A name means one gene or none, by stated precedence; every name that found none is accounted for."""

import gzip
import hashlib
import os
import random
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expresser.errors import InputError
from expresser.gene_names import clean_name, is_ensembl_id, likely_cause
from expresser.genes import COLUMNS, GeneVocab


def ensg(number: int) -> str:
    return f"ENSG{number:011d}"


def vocab_of(*rows: tuple[str, str, str, str]) -> GeneVocab:
    return GeneVocab(pd.DataFrame(rows, columns=["gene_id", "symbol", "previous", "alias"]))


VOCAB = vocab_of(
    (ensg(1), "TP53", "", "p53|LFS1"),
    (ensg(2), "SEPTIN7", "SEPT7|CDC10", "NBLA02942|P16"),
    (ensg(3), "CDKN2A", "CDKN2|MLM", "P16|INK4|P14"),
    (ensg(4), "CDK2AP2", "DOC", "P14"),
    (ensg(5), "ENSA", "", "MLM"),
    (ensg(6), "P14", "DOC", ""),
    (ensg(7), "C1orf112", "", ""),
    (ensg(8), "FIRRM", "C9orf7", "LFS1|LFS1"),
)


@pytest.mark.parametrize(
    ("name", "token", "how"),
    [
        (ensg(1), 0, "id"),
        (ensg(1) + ".17", 0, "id"),
        (ensg(1) + ".17_5", 0, "id"),
        (ensg(1) + ".17_PAR_Y", 0, "id"),
        ("TP53", 0, "symbol"),
        ("  TP53\t", 0, "symbol"),
        (" hg19_TP53", 0, "symbol"),
        ("GRCh38_TP53", 0, "symbol"),
        ("GRCh38______" + ensg(1) + ".2", 0, "id"),
        ("SEPT7", 1, "previous"),
        ("p53", 0, "alias"),
        ("ENSA", 4, "symbol"),
        ("P14", 5, "symbol"),  # an approved symbol beats the alias of two others
        ("MLM", 2, "previous"),  # a previous symbol beats another gene's alias
        ("P16", -1, "ambiguous"),  # alias of two
        ("DOC", -1, "ambiguous"),  # previous symbol of two
        ("LFS1", -1, "ambiguous"),
        ("C1ORF112", 6, "symbol"),  # the one form that pipelines upper-case
        ("C9ORF7", 7, "previous"),
        ("Tp53", -1, "unknown"),  # mouse
        ("tp53", -1, "unknown"),
        ("mm10_TP53", -1, "unknown"),
        ("ENSMUSG00000000001", -1, "unknown"),
        ("ENST00000000001", -1, "unknown"),
        ("TP53.1", -1, "unknown"),  # only Ensembl ids have versions
        ("X_hg19_TP53", -1, "unknown"),
        ("", -1, "unknown"),
        (None, -1, "unknown"),
        (float("nan"), -1, "unknown"),
        (17, -1, "unknown"),
        (b"TP53", 0, "symbol"),
    ],
)
def test_what_a_name_means(name: object, token: int, how: str) -> None:
    resolution = VOCAB.resolve([name])
    assert (resolution.tokens.tolist(), resolution.how.tolist()) == ([token], [how])


def test_an_id_beats_a_symbol_and_ensembl_ids_are_told_from_lookalikes() -> None:
    vocab = GeneVocab.from_names([ensg(1), ensg(2), "B"], ["A", "B", ""])
    assert vocab.resolve(["B"]).tokens.tolist() == [2]
    assert is_ensembl_id(ensg(1) + ".3")
    assert is_ensembl_id("ENSMUSG00000000001")
    assert not any(map(is_ensembl_id, ["ENSA", "ENST00000000001", "ENSP00000000001", "ENSG1", "xENSG00000000001"]))


def test_resolve_takes_every_sequence_of_names_and_no_matrix() -> None:
    names = ["TP53", "ENSA", "nothing"]
    for form in (names, tuple(names), np.array(names), np.array(names, dtype=object), pd.Index(names)):
        assert VOCAB.resolve(form).tokens.tolist() == [0, 4, -1]
    assert VOCAB.resolve(pd.Series(names, dtype="category")).tokens.tolist() == [0, 4, -1]
    assert VOCAB.resolve([]).tokens.shape == (0,)
    with pytest.raises(ValueError, match="one axis"):
        VOCAB.resolve(np.array([names, names]))


# --- the vocabulary as a value


def test_a_vocabulary_is_equal_by_its_ids_in_order() -> None:
    assert VOCAB.sha256 == hashlib.sha256("\n".join(ensg(i) for i in range(1, 9)).encode()).hexdigest()
    renamed, turned = VOCAB.table.assign(symbol=[f"S{i}" for i in range(8)]), VOCAB.table[::-1]
    assert GeneVocab(renamed) == VOCAB
    assert hash(GeneVocab(renamed)) == hash(VOCAB)
    assert GeneVocab(turned) != VOCAB
    assert VOCAB != "TP53"
    assert "8 genes" in repr(VOCAB)
    assert "TP53" in repr(VOCAB)


def test_a_vocabulary_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="read-only"):
        VOCAB.ids[0] = "x"
    table = VOCAB.table
    table.loc[0, "symbol"] = "x"
    assert VOCAB.table["symbol"][0] == "TP53"


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "no genes"),
        ([(ensg(1), "A"), (ensg(1), "B")], "more than once"),
        ([(ensg(1) + ".2", "A")], "version"),
        ([(ensg(1), "")], "empty"),
        ([("A\tB", "A")], "control characters"),
        ([(ensg(1), "A\x00")], "control characters"),
        ([(" A", "A")], "outer blanks"),
    ],
)
def test_a_malformed_vocabulary_is_refused(rows: list[tuple[str, str]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        GeneVocab(pd.DataFrame(rows, columns=["gene_id", "symbol"]))
    with pytest.raises(InputError, match="lacks the columns"):
        GeneVocab(pd.DataFrame({"symbol": ["A"]}))


def test_twenty_thousand_names_resolve_in_fifty_milliseconds() -> None:
    rows = [(ensg(i), f"S{i}", f"P{i}|Q{i}", f"A{i}|B{i}|C{i}") for i in range(20_000)]
    vocab, names = vocab_of(*rows), [f"S{i}" for i in range(10_000)] + [f"B{i}" for i in range(10_000)]
    vocab.resolve(names[:1])  # the index is built once
    taken = []
    for _ in range(5):
        start = time.process_time()
        tokens = vocab.resolve(names).tokens
        taken.append(time.process_time() - start)
    assert tokens.tolist() == [*range(10_000), *range(10_000)]
    assert min(taken) < 0.05


# --- files: save and load


def test_a_saved_vocabulary_is_plain_text_and_comes_back(tmp_path: Path) -> None:
    table = VOCAB.table.assign(chrom="chr1", start=pd.array([7] * 7 + [pd.NA], dtype="Int64"), strand="+")
    GeneVocab(table).save(tmp_path / "new" / "genes.tsv")
    text = (tmp_path / "new" / "genes.tsv").read_text()
    assert text.splitlines()[1] == f"{ensg(1)}\tTP53\t\tp53|LFS1\tchr1\t7\t\t+"
    pd.testing.assert_frame_equal(GeneVocab.load(tmp_path / "new" / "genes.tsv").table, GeneVocab(table).table)
    for form in (text.replace("\n", "\r\n").encode(), b"\xef\xbb\xbf" + text.encode(), gzip.compress(text.encode())):
        (tmp_path / "other.tsv").write_bytes(form)
        pd.testing.assert_frame_equal(GeneVocab.load(tmp_path / "other.tsv").table, GeneVocab(table).table)
        assert GeneVocab.read(tmp_path / "other.tsv") == VOCAB


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    VOCAB.save(tmp_path / "genes.tsv")
    before = (tmp_path / "genes.tsv").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        GeneVocab.from_names(["A"]).save(tmp_path / "genes.tsv")
    assert [path.name for path in tmp_path.iterdir()] == ["genes.tsv"]
    assert (tmp_path / "genes.tsv").read_bytes() == before


HEADER = "\t".join(COLUMNS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "begins with"),
        (HEADER + "\n", "no genes"),
        (f"gene_id\tsymbol\n{ensg(1)}\tA\n", "begins with"),
        (f"{HEADER}\n{ensg(1)}\tA\n", "8 tab-separated"),
        (f"{HEADER}\n{ensg(1)}\tA\t\t\t\tten\t\t\n", "whole numbers"),
        (f"{HEADER}\n{ensg(1)}\tA\t\t\t\t\t\t\n\n", "line 3"),
        (f"{HEADER}\n{ensg(1)}\tA\t\t\t\t\t\t\n{ensg(1)}\tB\t\t\t\t\t\t\n", "more than once"),
        (f"{HEADER}\n{ensg(1)}\tA\x07\t\t\t\t\t\t\n", "control characters"),
    ],
)
def test_a_damaged_gene_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "genes.tsv").write_text(text)
    with pytest.raises(InputError, match=says) as error:
        GeneVocab.load(tmp_path / "genes.tsv")
    assert "genes.tsv" in str(error.value)


def test_unreadable_files_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(np.random.default_rng(0).bytes(5000).hex().encode())[:-20])
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x81")
    for name in ("cut.gz", "binary", "absent"):
        for reader in (GeneVocab.load, GeneVocab.from_hgnc, GeneVocab.from_gtf):
            with pytest.raises(InputError, match=f"{name}: cannot be read"):
                reader(tmp_path / name)


# --- files: HGNC and GTF

CODING, NONCODING = ("protein-coding gene", "gene with protein product"), ("non-coding RNA", "RNA, long non-coding")
HGNC_ROWS = [
    (
        "hgnc_id",
        "symbol",
        "locus_group",
        "locus_type",
        "status",
        "location",
        "alias_symbol",
        "prev_symbol",
        "ensembl_gene_id",
    ),
    ("1", "AAA", *CODING, "Approved", "19q13.43", '"A-1|LNC1|shared|both"', '"OLD1|LNCOLD"', ensg(1)),
    ("2", "LNC1", *NONCODING, "Approved", "19q13.43", "shared", "LNCOLD|both", ensg(2)),
    ("3", "GONE", *CODING, "Entry Withdrawn", "1q1", "A-1", "", ensg(3)),
    ("4", "TRA", *CODING, "Approved", "14q11.2", "", "", ""),
    ("5", "TWIN1", *CODING, "Approved", "1q1", "", "", ensg(5)),
    ("6", "TWIN2", *CODING, "Approved", "1q1", "", "", ensg(5)),
    ("7", "MT-ND1", *CODING, "Approved", "mitochondria", "", "shared", ensg(7)),
    ("8", "XY1", *CODING, "Approved", "Xp22.33 and Yp11.2", "OLD1", "", ensg(8)),
    ("9", "PLACELESS", *CODING, "Approved", "not on reference assembly", "", "", ensg(9)),
]
HGNC = "".join("\t".join(row) + "\n" for row in HGNC_ROWS)


def test_hgnc_gives_approved_coding_genes_with_an_id_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "hgnc.txt").write_text(HGNC)
    (tmp_path / "zipped_without_saying_so").write_bytes(gzip.compress(HGNC.encode()))
    vocab = GeneVocab.from_hgnc(tmp_path / "hgnc.txt")
    assert vocab.table[["gene_id", "symbol", "previous", "alias", "chrom"]].to_numpy().tolist() == [
        [ensg(1), "AAA", "OLD1", "A-1", "chr19"],  # LNC1, shared, LNCOLD, both: another gene has as good a right
        [ensg(7), "MT-ND1", "shared", "", "chrM"],  # a previous symbol goes before the non-coding gene's alias
        [ensg(8), "XY1", "", "OLD1", "chrX"],
        [ensg(9), "PLACELESS", "", "", ""],
    ]
    assert vocab.table[["start", "end"]].isna().all(axis=None)
    assert vocab.resolve(["OLD1", "A-1", "LNC1", "GONE", "TWIN1"]).tokens.tolist() == [0, 0, -1, -1, -1]
    for reader in (GeneVocab.from_hgnc, GeneVocab.read):
        pd.testing.assert_frame_equal(reader(tmp_path / "zipped_without_saying_so").table, vocab.table)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "columns"),
        ("chr1\tHAVANA\tgene\t1\t2\n", "from_gtf"),
        (HGNC + "10\tCUT\tprotein-cod", "line 11 has 3 fields, the header 9"),
        (HGNC.replace("Approved", "Entry Withdrawn"), "none of 9 rows"),
    ],
)
def test_what_is_not_an_hgnc_table_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "hgnc.txt").write_text(text)
    with pytest.raises(InputError, match=says):
        GeneVocab.from_hgnc(tmp_path / "hgnc.txt")


def gtf_line(chrom: str, gene: str, symbol: str, kind: str = "protein_coding", feature: str = "gene") -> str:
    name = f' gene_name "{symbol}";' if symbol else ""
    about = f'gene_id "{gene}"; gene_type "{kind}";{name} level 2; tag "x";'
    return "\t".join((chrom, "HAVANA", feature, "100", "200", ".", "-", ".", about)) + "\n"


def test_gtf_gives_named_coding_genes_once(tmp_path: Path) -> None:
    lines = (
        "##description: with a\tgene\tin a comment\n",
        gtf_line("chr1", ensg(1) + ".4", "AAA"),
        gtf_line("chr1", "ENST00000000001.2", "AAA", feature="transcript"),
        gtf_line("chr1", ensg(2), "LNC1", kind="lncRNA"),
        gtf_line("chr1", ensg(3), ""),
        gtf_line("chr1", ensg(4), ensg(4)),  # GENCODE repeats the id where a gene has no name
        gtf_line("chrX", ensg(5) + ".7", "CD99"),
        gtf_line("chrY", ensg(5) + ".7_PAR_Y", "CD99"),
        gtf_line("chrX", ensg(6), "PLCXD1"),
        gtf_line("chrY", ensg(7), "PLCXD1"),  # pseudo-autosomal copy with an id of its own
        gtf_line("HSCHR6_MHC_COX", ensg(8), "HLA-A"),
        gtf_line("chr6", ensg(9), "HLA-A"),
        gtf_line("chr5", ensg(10), "MATR3"),
        gtf_line("chr5", ensg(11), "MATR3"),  # no uniquely identifiable symbol: neither
        gtf_line("GL000194.1", ensg(12), "SCAFF"),
        gtf_line("chrM", ensg(13), "MT-ND1").replace("gene_type", "gene_biotype"),
    )
    (tmp_path / "a.gtf").write_text("".join(lines))
    ensembl = "".join(lines).replace("chrM", "MT").replace("\nchr", "\n")
    (tmp_path / "b.gtf").write_bytes(gzip.compress(ensembl.encode()))
    vocab = GeneVocab.from_gtf(tmp_path / "a.gtf")
    assert vocab.table[["gene_id", "symbol", "chrom"]].to_numpy().tolist() == [
        [ensg(1), "AAA", "chr1"],
        [ensg(5), "CD99", "chrX"],
        [ensg(6), "PLCXD1", "chrX"],
        [ensg(9), "HLA-A", "chr6"],
        [ensg(12), "SCAFF", "GL000194.1"],
        [ensg(13), "MT-ND1", "chrM"],
    ]
    assert vocab.table.loc[0, ["start", "end", "strand"]].tolist() == [100, 200, "-"]
    pd.testing.assert_frame_equal(GeneVocab.read(tmp_path / "b.gtf").table, vocab.table)
    vocab.save(tmp_path / "genes.tsv")
    pd.testing.assert_frame_equal(GeneVocab.load(tmp_path / "genes.tsv").table, vocab.table)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no `gene` line"),
        ("chr1\tH\tgene\t1\t2\t.\t-\t.\tID=gene1;gene_type=protein_coding\n", "not GFF3"),
        ("chr1\tH\tgene\tone\t2\t.\t-\t.\tx\n", "line 1 is not GTF"),
        ("chr1\tH\tgene\t1\t2\n", "line 1 is not GTF"),
        (gtf_line("chr1", "TP53", "TP53"), "Ensembl gene_id"),
    ],
)
def test_what_is_not_a_gtf_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.gtf").write_text(text)
    with pytest.raises(InputError, match=says):
        GeneVocab.from_gtf(tmp_path / "a.gtf")


# --- vocabularies out of the input, and their union


def test_a_vocabulary_from_names_keys_by_id_else_symbol() -> None:
    vocab = GeneVocab.from_names([ensg(1) + ".2", ensg(2), ensg(1), "7157", ""], ["A", "A", "B", "C", "D"])
    assert vocab.ids.tolist() == [ensg(1), ensg(2), "C", "D"]
    assert vocab.symbols.tolist() == ["A", "A", "C", "D"]
    resolution = vocab.resolve(["A", "B", "C", ensg(2) + ".9"])
    assert resolution.tokens.tolist() == [-1, 0, 2, 1]
    assert resolution.how.tolist() == ["ambiguous", "alias", "symbol", "id"]
    with pytest.raises(ValueError, match="2 ids and 1 symbols"):
        GeneVocab.from_names(["A", "B"], ["A"])
    for nameless in ([""], ["A", None]):
        with pytest.raises(InputError, match="may not be empty"):
            GeneVocab.from_names(nameless)
    with pytest.raises(InputError, match="no genes"):
        GeneVocab.from_names([])


def test_a_mouse_vocabulary_does_not_take_human_names() -> None:
    mouse = GeneVocab.from_names(["ENSMUSG00000000001.4", "C1orf112"], ["Actb", ""])
    assert mouse.resolve(["ENSMUSG00000000001", "Actb", "ACTB"]).tokens.tolist() == [0, 0, -1]


def test_union_merges_symbols_into_ids_where_one_gene_has_the_name() -> None:
    symbols = GeneVocab.from_names(["Z", "A", "TWICE", "NEW"])
    with_ids = GeneVocab.from_names([ensg(1), ensg(2), ensg(3), ensg(4)], ["A", "TWICE", "TWICE", "D"])
    bare_ids = GeneVocab.from_names([ensg(5), ensg(4)])
    renamed = GeneVocab.from_names([ensg(5), ensg(1)], ["E", "A2"])
    vocab = GeneVocab.union([symbols, with_ids, bare_ids, renamed])
    assert vocab.ids.tolist() == ["Z", ensg(1), "TWICE", "NEW", ensg(2), ensg(3), ensg(4), ensg(5)]
    assert vocab.symbols.tolist() == ["Z", "A", "TWICE", "NEW", "TWICE", "TWICE", "D", "E"]
    resolution = vocab.resolve(["A", "A2", "TWICE", "E", ensg(5)])
    assert resolution.tokens.tolist() == [1, 1, 2, 7, 7]
    assert GeneVocab.union([vocab]) == vocab
    assert GeneVocab.union([symbols, with_ids, symbols]).ids.tolist()[:4] == ["Z", ensg(1), "TWICE", "NEW"]
    with pytest.raises(InputError, match="no vocabularies"):
        GeneVocab.union([])


def test_union_keeps_what_a_table_knows() -> None:
    table = GeneVocab(VOCAB.table.assign(chrom="chr7", start=3, end=9, strand="+"))
    vocab = GeneVocab.union(
        [GeneVocab.from_names(["SEPT7", "other"]), GeneVocab.from_names([ensg(1)], ["P53X"]), table]
    )
    assert vocab.ids.tolist() == [ensg(2), "other", ensg(1), *(ensg(i) for i in range(3, 9))]
    row = vocab.table.set_index("gene_id").loc[ensg(1)]
    assert row.tolist() == ["P53X", "", "p53|LFS1|TP53", "chr7", 3, 9, "+"]
    assert vocab.symbols[0] == "SEPTIN7"
    assert vocab.resolve(["SEPT7", "TP53"]).tokens.tolist() == [0, 2]
    pd.testing.assert_frame_equal(GeneVocab.union([VOCAB, VOCAB]).table, VOCAB.table)


# --- the report


def test_a_report_counts_every_name_once() -> None:
    names = ["TP53", ensg(1), "p53", "SEPT7", "P16", "u1", "u2", "u1"]
    report = VOCAB.resolve(names).report(np.array([10, 20, 30, 20, 5, 1, 14, 0], dtype=np.uint32))
    assert (report.by_symbol, report.by_id, report.by_alias, report.by_previous) == (1, 1, 1, 1)
    assert (report.n_names, report.resolved, report.ambiguous, report.unknown) == (8, 4, 1, 3)
    assert (report.genes, report.duplicates) == (2, 2)
    assert report.counts_kept == pytest.approx(0.8)
    assert report.unmatched_examples == ("u2", "P16", "u1")  # most counted first
    assert VOCAB.resolve(names).report().unmatched_examples == ("P16", "u1", "u2")
    assert report.to_dict()["unmatched_examples"] == ["u2", "P16", "u1"]
    assert VOCAB.resolve(names).report().counts_kept is None
    assert VOCAB.resolve(names).report(np.zeros(8)).counts_kept is None
    for wrong in (np.ones(7), np.full(8, -1.0), np.full(8, np.nan)):
        with pytest.raises(ValueError, match="counts_per_name"):
            VOCAB.resolve(names).report(wrong)


def test_the_threshold_is_on_counts_where_known_else_on_names() -> None:
    resolution = VOCAB.resolve(["TP53", "ENSA", "x1", "x2"])
    resolution.report(np.array([3, 3, 2, 2])).check("a.h5ad")  # 60 % exactly
    with pytest.raises(InputError, match=r"a\.h5ad: 59\.\d% of the counts"):
        resolution.report(np.array([3, 2.9, 2, 2.1])).check("a.h5ad")
    with pytest.raises(InputError, match=r"50\.0% of the names .* at least 60% must \(2 of 4 names"):
        resolution.report().check("a.h5ad")
    resolution.report().check("a.h5ad", min_counts=0.5)
    for nothing in ([], ["x"]):
        with pytest.raises(InputError, match="0 of"):
            VOCAB.resolve(nothing).report().check("a.h5ad", min_counts=0.0)


def test_a_refusal_shows_ten_names_and_the_cause() -> None:
    names = [f"Gene{letter}" for letter in "abcdefghijklmnop"]
    with pytest.raises(InputError) as error:
        VOCAB.resolve(names).report(np.arange(16)).check("mouse.h5ad")
    message = str(error.value)
    assert "wrong species: mouse" in message
    assert [name for name in names if repr(name) in message] == names[6:]


@pytest.mark.parametrize(
    ("names", "cause"),
    [
        (["Actb", "Gapdh", "Sox2", "mt-Nd1", "H2-K1", "0610005C13Rik", "Gm12345", "B2m"], "mouse"),
        (["ENSMUSG00000000001.4", "ENSMUSG00000000003"], "mouse"),
        (["mm10_Actb", "mm10___Gapdh"], "mouse"),
        (["ENSMMUG00000000001"], "not human"),
        (["ENST00000456328.2", "ENST00000450305"], "transcript"),
        (["ENSP00000334393", "ENSP00000334394.3"], "protein"),
        (["ENSG00000243485.5", "ENSG00000237613"], "outside the vocabulary"),
        (["ENSG00000243485_MIR1302-2HG", "TP53|ENSG00000141510.17"], "joined"),
        (["0", "1", "2"], "row numbers"),
        ([0, 1, 2], "row numbers"),
        (["7157.0", "1e-3"], "numbers"),
        (["AAACCTGAGAAACCAT-1", "s1_AAACCTGAGAAACCGC", "AAACCTGAGAAACCGC-1-b2"], "barcodes"),
        (["CELL_000001", "CELL_000002"], "barcodes"),
        (["chr1:1000-2000", "1_1000_2000"], "peaks"),
        (["tp53", "actb", "hla-a"], "lower-case"),
        (["NM_000546.6", "NR_003051"], "RefSeq"),
        (["1007_s_at", "121_at"], "probe"),
        (["Gene_1", "gene2", "V3"], "placeholder"),
        (["", None, float("nan")], "empty"),
        (["TP53TG5", "AL627309.1", "RP11-206L10.2"], None),
        ([], None),
    ],
)
def test_the_likely_cause_is_told(names: list[object], cause: str | None) -> None:
    told = VOCAB.resolve(names).report().likely_cause
    assert told is None if cause is None else cause in str(told)


def test_a_cause_needs_half_of_the_names() -> None:
    assert likely_cause(["Actb", "MALAT1"]) is not None
    assert likely_cause(["Actb", "MALAT1", "NEAT1"]) is None


# --- laws

NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z"), exclude_characters="|"), min_size=1, max_size=8
)
IDS = st.integers(0, 10**11 - 1).map(ensg)
TABLES = st.lists(
    st.tuples(IDS, NAMES.map(clean_name), st.lists(NAMES, max_size=3), st.none() | st.integers(1, 10**9)),
    min_size=1,
    max_size=20,
    unique_by=lambda row: row[0],
)


def vocab_from(rows: list[tuple[str, str, list[str], int | None]]) -> GeneVocab:
    table = pd.DataFrame([(i, s, "|".join(p), "", n) for i, s, p, n in rows], columns=[*COLUMNS[:4], "start"])
    return GeneVocab(table.assign(start=pd.array([n for *_, n in rows], dtype="Int64")))


@settings(deadline=None, max_examples=50)
@given(TABLES)
def test_save_then_load_gives_the_same_table(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    path = tmp_path_factory.mktemp("genes") / "genes.tsv"
    vocab = vocab_from(rows)
    vocab.save(path)
    loaded = GeneVocab.load(path)
    assert loaded == vocab
    pd.testing.assert_frame_equal(loaded.table, vocab.table)


@settings(deadline=None, max_examples=50)
@given(TABLES, st.randoms(use_true_random=False), st.lists(NAMES, max_size=5))
def test_permuting_names_permutes_tokens(rows: list, shuffler: random.Random, strangers: list[str]) -> None:
    vocab = vocab_from(rows)
    names = [*vocab.ids, *vocab.symbols, *strangers]
    order = list(range(len(names)))
    shuffler.shuffle(order)
    straight, turned = vocab.resolve(names), vocab.resolve([names[i] for i in order])
    assert turned.tokens.tolist() == straight.tokens[order].tolist()
    assert turned.how.tolist() == straight.how[order].tolist()


@settings(deadline=None, max_examples=50)
@given(TABLES, st.integers(0, 99), st.sampled_from(["", "hg19_", "GRCh38_", " hg38_", "GRCh38______"]))
def test_versions_and_genome_prefixes_do_not_matter(rows: list, version: int, prefix: str) -> None:
    vocab = vocab_from(rows)
    written = [f"{prefix}{name}.{version} " for name in vocab.ids]
    assert vocab.resolve(written).tokens.tolist() == list(range(len(vocab)))
    assert set(vocab.resolve(written).how) == {"id"}


@settings(deadline=None, max_examples=100)
@given(st.text(max_size=20) | st.from_regex(r"( ?(hg19|GRCh38)_{1,3} ?){0,3}(ENSG\d{11}(\.\d)?)?", fullmatch=True))
def test_cleaning_twice_is_cleaning_once(name: str) -> None:
    assert clean_name(clean_name(name)) == clean_name(name)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(IDS | NAMES, NAMES), min_size=1, max_size=15))
def test_a_vocabulary_knows_the_names_it_came_from(pairs: list[tuple[str, str]]) -> None:
    ids, symbols = [i for i, _ in pairs], [s for _, s in pairs]
    alone, both = GeneVocab.from_names(ids), GeneVocab.from_names(ids, symbols)
    assert alone.ids[alone.resolve(ids).tokens].tolist() == [clean_name(name) for name in ids]
    keys = [clean_name(i if is_ensembl_id(i) else s) for i, s in pairs]
    assert both.ids[both.resolve(keys).tokens].tolist() == keys
    union = GeneVocab.union([alone, both])
    assert GeneVocab.union([union, union, union]) == GeneVocab.union([union])
    assert (union.resolve([name for name in ids if is_ensembl_id(name)]).tokens >= 0).all()


# --- real files


@pytest.fixture(scope="module")
def hgnc(realdata: Path) -> GeneVocab:
    return GeneVocab.from_hgnc(realdata / "annotation" / "hgnc_complete_set.txt.gz")


def names_and_counts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Gene names and column sums, read without AnnData so that only the names are on trial."""
    with h5py.File(path) as file:
        var = file["var"]
        names = var[var.attrs["_index"]].asstr()[:]
        counts = np.bincount(file["X/indices"][:], weights=file["X/data"][:], minlength=len(names))
    return names, counts


@pytest.mark.realdata
def test_the_real_hgnc_table(hgnc: GeneVocab, tmp_path: Path) -> None:
    assert len(hgnc) == 19_171  # 19,225 approved protein-coding; 52 have no Ensembl id, 2 share one
    assert all(map(is_ensembl_id, hgnc.ids))
    known = {"TP53": "ENSG00000141510", "ENSA": "ENSG00000143420", "MLL": "ENSG00000118058", "p53": "ENSG00000141510"}
    resolution = hgnc.resolve(list(known))
    assert hgnc.ids[resolution.tokens].tolist() == list(known.values())
    assert resolution.how.tolist() == ["symbol", "symbol", "previous", "alias"]
    assert hgnc.resolve(hgnc.symbols).tokens.tolist() == list(range(len(hgnc)))
    hgnc.save(tmp_path / "genes.tsv")
    pd.testing.assert_frame_equal(GeneVocab.load(tmp_path / "genes.tsv").table, hgnc.table)
    pd.testing.assert_frame_equal(GeneVocab.union([hgnc, GeneVocab.from_names(hgnc.symbols)]).table, hgnc.table)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("file", "genes", "kept"),
    [
        ("pbmc3k", 11_937, 0.963),
        ("mudan_pbmcA", 12_019, 0.966),
        ("scp1884_gut", 15_292, 0.965),
        ("placenta_blood", 14_919, 0.935),
        ("snare_cellline_rna", 13_820, 0.937),
    ],
)
def test_real_human_files_pass(hgnc: GeneVocab, realdata: Path, file: str, genes: int, kept: float) -> None:
    names, counts = names_and_counts(realdata / "rna" / f"{file}.h5ad")
    report = hgnc.resolve(names).report(counts)
    report.check(file)
    assert report.genes == genes
    assert report.counts_kept == pytest.approx(kept, abs=5e-4)
    hgnc.resolve(names).report().check(file)


@pytest.mark.realdata
def test_real_ensembl_ids_pass_by_counts(hgnc: GeneVocab, realdata: Path) -> None:
    table = pd.read_csv(realdata / "rna" / "sc_mixology" / "sc_celseq2.count.csv.gz", index_col=0)
    report = hgnc.resolve(table.index).report(table.sum(axis=1).to_numpy())
    report.check("sc_celseq2")
    assert (report.by_id, report.by_symbol, report.by_alias) == (14_797, 0, 0)
    assert report.counts_kept == pytest.approx(0.855, abs=5e-4)


@pytest.mark.realdata
def test_the_real_mouse_file_is_refused_as_mouse(hgnc: GeneVocab, realdata: Path) -> None:
    names, counts = names_and_counts(realdata / "rna" / "snare_p0_mouse_cortex_rna.h5ad")
    for report in (hgnc.resolve(names).report(counts), hgnc.resolve(names).report()):
        with pytest.raises(InputError, match="wrong species: mouse"):
            report.check("snare_p0_mouse_cortex_rna.h5ad")


@pytest.mark.realdata
def test_real_barcodes_are_recognised(hgnc: GeneVocab, realdata: Path) -> None:
    with h5py.File(realdata / "rna" / "pbmc3k.h5ad") as file:
        barcodes = file["obs"][file["obs"].attrs["_index"]].asstr()[:]
    with pytest.raises(InputError, match="barcodes"):
        hgnc.resolve(barcodes).report().check("pbmc3k.h5ad")
