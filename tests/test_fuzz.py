"""Every parser's law on a few drawn inputs (scripts/fuzz.py: on as many as asked for), and each fault that drawing found."""

import gzip
import json
import math
import warnings
from pathlib import Path

import anndata as ad
import fuzz_cells
import fuzz_damage
import fuzz_genes
import fuzz_labels
import fuzz_regions
import fuzz_settings
import numpy as np
import pandas as pd
import pytest
from fuzzing import TARGETS
from scipy import sparse

from expresser.bed import read_bed
from expresser.comparison.reading import read_runs
from expresser.corpus.build import build_corpus
from expresser.corpus.manifest import read_manifest
from expresser.corpus.source import open_source
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.peak_names import chrom_name
from expresser.regions import Regions
from expresser.tables import read_gene_table, write_gene_table
from finetune.labels import read_gene_labels, read_pairs
from finetune.labels.delimited import to_numbers
from pretrain.recipes import small
from translate.genenames import gene_table
from translate.reading import read_measured

# In the slow run: those of tens of milliseconds an input.
COSTLY = {"zarr", "corpus of AnnData", "damaged corpus", "damaged zarr", "damaged h5mu", "GTF", "genes of an input"}
assert all((fuzz_cells, fuzz_damage, fuzz_genes, fuzz_labels, fuzz_regions, fuzz_settings))


@pytest.mark.parametrize("name", sorted(set(TARGETS) - COSTLY))
def test_an_input_is_refused_or_read_as_it_is(name):
    tally = TARGETS[name].run(12, seed=1)
    assert tally.tried >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_many_inputs_are_refused_or_read_as_they_are(name):
    tally = TARGETS[name].run(25 if name in COSTLY else 50, seed=2)
    assert tally.tried >= 20
    # What is damaged may be refused whenever it is tried, where checksums tell.
    assert tally.read or name.startswith("damaged"), "a law about inputs that are all refused says little"


# ---- peaks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["chr1:100-200-300", "1:5-60-70", "chrX-5-60-70", " \u00a0:1-2", "a\tb:1-2", "chr1:1,0-200", "chr1:1,,2-9"]
)
def test_a_name_that_may_mean_two_peaks_or_none_is_refused(name):
    with pytest.raises(InputError, match="A peak is a chromosome"):
        Regions.parse([name])


def test_names_of_regions_mean_the_same_regions_whatever_their_chromosomes_were_called():
    assert chrom_name("hg19_hg38_chr1") == chrom_name(chrom_name("hg19_hg38_chr1")) == "chr1"
    for chrom in ("", " ", "chr1:", "a_", "b-", "\x1f", "chr1:7"):
        var = pd.DataFrame({"chrom": [chrom], "start": [1], "end": [5]})
        with pytest.raises(InputError, match=r"mine: .* is no name of a chromosome"):
            Regions.from_var(var, where="mine")
    with pytest.raises(InputError, match="cannot be read"):
        Regions.parse(["\ud800"])


def test_bed_of_numbers_that_no_integer_holds_is_refused_by_its_line(tmp_path):
    path = tmp_path / "a.bed"
    for number in ("9" * 13, "9" * 30, "9" * 5000):
        path.write_text(f"chr1\t1\t9\nchr1\t1\t{number}\n")
        with pytest.raises(InputError, match=r"a\.bed: line 2 ends beyond any chromosome"):
            read_bed(path)
    path.write_text(":\t1\t9\n")
    with pytest.raises(InputError, match=r"a\.bed: ':' is no name of a chromosome"):
        read_bed(path)


def test_bed_whose_first_peak_is_called_start_keeps_it(tmp_path):
    path = tmp_path / "a.bed"
    path.write_text("chr1\t1\t9\tstart_site\nchr1\t20\t30\tb\n")
    assert read_bed(path).names().tolist() == ["chr1:1-9", "chr1:20-30"]
    path.write_text("chrom\tstart\tend\nchr1\t20\t30\n")
    assert read_bed(path).names().tolist() == ["chr1:20-30"]


def test_bed_with_damage_inside_gzip_is_refused(tmp_path):
    path = tmp_path / "a.bed.gz"
    data = bytearray(gzip.compress(b"chr1\t1\t9\n" * 50))
    data[14] ^= 0xFF
    path.write_bytes(bytes(data))
    with pytest.raises(InputError, match=r"a\.bed\.gz"):
        read_bed(path)


# ---- cells -----------------------------------------------------------------------------------------------------------


def test_an_mtx_entry_with_a_field_too_many_is_refused(tmp_path):
    (tmp_path / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n1 1 2\n1 1 1\n1 1 2 5\n")
    (tmp_path / "features.tsv").write_text("TP53\n")
    (tmp_path / "barcodes.tsv").write_text("A\n")
    with pytest.raises(InputError, match="entry 2 has more than row, column and value"):
        list(open_source(tmp_path).chunks())


def test_labels_past_int64_are_kept_as_text(tmp_path):
    adata = ad.AnnData(
        np.ones((2, 30), np.float32), obs=pd.DataFrame({"id": np.array([2**64 - 1, 5], dtype="u8")}, index=["a", "b"])
    )
    build_corpus([adata], tmp_path / "corpus", obs_columns=["id"])
    assert Corpus.open(tmp_path / "corpus").obs["id"].tolist() == [str(2**64 - 1), "5"]


def test_a_translator_refuses_a_count_that_float32_would_round():
    values = np.array([[2**24, 1], [2**24 + 1, 1]])
    var = pd.DataFrame(index=["TP53", "GATA1"])
    with pytest.raises(InputError, match=r"a count of 16,777,217 \(cell '1', gene 'TP53'\)"):
        read_measured(ad.AnnData(sparse.csr_matrix(values), var=var), "rna")
    assert read_measured(ad.AnnData(sparse.csr_matrix(values[:1]), var=var), "rna").matrix.toarray().tolist() == [
        [2**24, 1]
    ]


def test_column_numbers_with_fractions_are_refused_not_cut(tmp_path):
    import h5py

    path = tmp_path / "a.h5ad"
    ad.AnnData(sparse.csr_matrix(np.eye(3, dtype=np.float32))).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        columns = file["X/indices"][:]
        del file["X/indices"]
        file["X/indices"] = columns + 0.5
    with pytest.raises(InputError, match="indices are float64, not whole numbers"):
        list(open_source(path).chunks())


# ---- genes and labels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["interval", "tss", "start"])
def test_places_that_no_chromosome_has_room_for_are_unknown(column):
    given = {"interval": "chr1:" + "9" * 30 + "-2", "tss": math.inf, "start": 1e300}[column]
    var = pd.DataFrame({"chrom": ["chr1"], "end": [9], "strand": ["+"], column: [given]}, index=["TP53"])
    found = gene_table(var.drop(columns="chrom") if column == "interval" else var)
    assert found["tss"].tolist() == [-1]


def test_a_table_of_vectors_whose_names_are_lists_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pd.DataFrame({"gene_id": [[1.0, 2.0], [3.0, 4.0]], "0": [1.0, 2.0]}).to_parquet(path)
    with pytest.raises(InputError, match="holds lists, not names of genes"):
        read_gene_table(path)


def test_text_is_refused_for_names_that_it_would_tear(tmp_path):
    frame = pd.DataFrame({"symbol": ["a,b", "c"], "0": [1.0, 2.0]}, index=["a,b", "c"])
    with pytest.raises(InputError, match=r"1 names of genes \('a,b'\).*Write \.parquet"):
        write_gene_table(frame, tmp_path / "a.txt")
    assert not list(tmp_path.iterdir())
    assert read_gene_table(write_gene_table(frame, tmp_path / "a.parquet")).names.tolist() == ["a,b", "c"]


def test_numbers_of_labels_are_read_to_the_last_bit():
    numbers, strange = to_numbers(np.array(["2.2517997598961716e+16", "1_000", "٣", "1e400"], dtype=object))
    assert numbers[0] == 2.2517997598961716e16
    assert strange.tolist() == [False, True, True, False]


def test_an_infinite_field_is_neither_class_of_a_binary_column(tmp_path):
    path = tmp_path / "labels.tsv"
    path.write_text("gene\tlabel\nTP53\t0\nGATA1\t1\nCD3E\tinf\nXIST\t0\n")
    labels = read_gene_labels(path, vocab=None)
    assert labels.account["missing"] == 1
    assert labels.values.to_dict() == {"GATA1": 1, "TP53": 0, "XIST": 0}


def test_a_protein_called_na_takes_no_others_place(tmp_path):
    links, aliases = tmp_path / "links.txt", tmp_path / "aliases.txt"
    links.write_text("protein1 protein2 experimental\nNA P2 900\nP2 P3 900\nP3 P4 0\n")
    aliases.write_text("#string_protein_id\tpreferred_name\nNA\tTP53\nP2\tGATA1\nP3\tCD3E\nP4\n")
    labels = read_pairs(links, vocab=None, aliases=aliases, format="string", negatives="uniform")
    assert set(zip(labels.a[labels.label == 1], labels.b[labels.label == 1])) == {("GATA1", "TP53"), ("CD3E", "GATA1")}


# ---- settings and runs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("optim", "lr", math.nan),
        ("optim", "lr", -1.0),
        ("optim", "beta1", 1.0),
        ("optim", "weight_decay", math.inf),
        ("optim", "grad_clip", math.nan),
        ("model", "d_model", 0),
        ("model", "d_model", 10**12),
        ("model", "target_sum", 0.0),
        ("model", "n_bins", 0),
        ("data", "valid_share", 0.0),
        ("objective", "masked_share", 0.0),
    ],
)
def test_a_recipe_that_no_run_can_have_is_refused_by_its_option(part, name, value):
    from dataclasses import replace

    recipe = small()
    recipe = replace(recipe, **{part: replace(getattr(recipe, part), **{name: value})})
    with pytest.raises(InputError, match=rf"{part}\.{name} is "):
        recipe.check()


@pytest.mark.parametrize("value", ["TP53", [], True, {"a": 1}])
def test_a_run_with_a_score_that_is_no_number_is_left_out_of_the_report_of_others(tmp_path, value):
    for kind, files in (("sound", fuzz_settings.RUNS["imputation"]), ("changed", fuzz_settings.RUNS["imputation"])):
        metrics = json.loads(json.dumps(files["metrics.json"]))
        if kind == "changed":
            metrics["methods"]["expresser"]["mae"] = value
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "metrics.json").write_text(json.dumps(metrics))
    found, left = read_runs([tmp_path / "sound", tmp_path / "changed"])
    assert [run.path.name for run in found] == ["sound"]
    assert "files are not as a run" in left[str(tmp_path / "changed")]


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, '{"format": "expresser-corpus", "versions": []}'])
def test_a_manifest_of_any_json_is_refused(tmp_path: Path, text: str):
    (tmp_path / "manifest.json").write_text(text)
    with warnings.catch_warnings(), pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)
