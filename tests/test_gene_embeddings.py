"""Gene embedding tables: what is read is what was written, names are accounted for, baselines are what their formulas say."""

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import local_hub
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from expresser import checkpoint
from expresser.embed import gene_table
from expresser.errors import InputError
from expresser.factors import gene_factors
from expresser.genes import GeneVocab
from expresser.metrics.modules import module_auc
from expresser.simulate import simulate_rna
from expresser.tables import read_gene_table, write_gene_table
from finetune.embeddings import ppmi as embedding_ppmi
from finetune.embeddings.built_in import expression_table, open_tables, ppmi_table, random_table, read_counts, svd_table
from finetune.embeddings.ppmi import leading_axes, ppmi_vectors
from finetune.embeddings.reading import choose_vocab, read_table, split_spec
from finetune.embeddings.table import GeneTable, common_genes, gene_table_of
from finetune.tasks.gene_benchmark import write_embeddings_csv, write_task

hub = local_hub.hub  # a hub on the loopback

A, B, C = "ENSG00000000001", "ENSG00000000002", "ENSG00000000003"


@pytest.fixture
def vocab() -> GeneVocab:
    """Three genes; the second has had another symbol, the third has an alias."""
    rows = {"gene_id": [A, B, C], "symbol": ["ALFA", "BETA", "GAMA"]}
    return GeneVocab(pd.DataFrame(rows | {"previous": ["", "OLDB", ""], "alias": ["", "", "GG"]}))


def frame_of(ids: list[str], d: int, seed: int = 0) -> pd.DataFrame:
    """What `expresser genes export` writes."""
    values = np.random.default_rng(seed).standard_normal((len(ids), d)).astype(np.float32)
    frame = pd.DataFrame(values, index=pd.Index(ids, name="gene_id"), columns=[str(i) for i in range(d)])
    frame.insert(0, "symbol", [f"S{i}" for i in range(len(ids))])
    return frame


def f32(values: Any) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def table_of(name: str, rows: dict[str, Any]) -> GeneTable:
    return gene_table_of(name, list(rows), np.array(list(rows.values()), dtype=np.float32), {"rows": len(rows)})


def toy_counts(cells: int = 60, genes: int = 30, seed: int = 0) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    rate = rng.gamma(0.7, 1.0, genes) * np.exp(rng.standard_normal((cells, 2)) @ rng.standard_normal((2, genes)))
    return sparse.csr_matrix(rng.poisson(rate))


# Files


@pytest.mark.parametrize("suffix", ["parquet", "txt", "vec", "w2v"])
def test_a_written_table_is_read_back_bit_by_bit(tmp_path, suffix):
    frame = frame_of([f"ENSG{i:011d}" for i in range(50)], 7)
    frame.iloc[0, 1:4] = f32([1e-38, 3.4e38, -1e-45])
    table = read_table(str(write_gene_table(frame, tmp_path / f"mine.{suffix}")), None)
    assert table.name == "mine"
    assert table.dim == 7
    pd.testing.assert_frame_equal(table.values, frame.drop(columns="symbol"), check_exact=True)
    assert table.about["kind"] == ("parquet" if suffix == "parquet" else "word2vec")
    assert len(table.about["sha256"]) == 64


ONE_TABLE = {
    "sizes.txt": "3 2\nALFA 1 -2\nBETA 3.5 4\nGAMA 1e-1 .5\n",
    "no_sizes.vec": "ALFA 1 -2\nBETA 3.5 4\nGAMA 1e-1 .5",
    "gene2vec.txt": "ALFA\t1 -2 \nBETA\t3.5 4 \nGAMA\t1e-1 .5 \n",
    "tabs.w2v": "ALFA\t1\t-2\nBETA\t3.5\t4\nGAMA\t1e-1\t.5\n\n",
    "bare.csv": "ALFA,1,-2\nBETA,3.5,4\nGAMA,1e-1,.5\n",
    "pandas.csv": ",0,1\nALFA,1,-2\nBETA,3.5,4\nGAMA,1e-1,.5\n",
    "numbered.csv": ",gene,0,1\n0,ALFA,1,-2\n1,BETA,3.5,4\n2,GAMA,1e-1,.5\n",
    "both.tsv": f"symbol\tgene_id\tx\ty\n?\t{A}.7\t1\t-2\n?\t{B}\t3.5\t4\n?\t{C}\t1e-1\t.5\n",
    "r.tsv": '"V1"\t"V2"\n"ALFA"\t1\t-2\n"BETA"\t3.5\t4\n"GAMA"\t1e-1\t.5\n',
    "excel.csv": "\ufeffgene;one;two\r\nALFA;1;-2\r\nBETA;3.5;4\r\nGAMA;1e-1;.5\r\n",
    "word.txt": "gene 0 1\nALFA 1 -2\nBETA 3.5 4\nGAMA 1e-1 .5\n",
    "packed.csv.gz": "ALFA,1,-2\nBETA,3.5,4\nGAMA,1e-1,.5\n",
    "mixed_names.csv": f"GG,1e-1,.5\nOLDB,3.5,4\n{A},1,-2\n",
}


@pytest.mark.parametrize("name", ONE_TABLE)
def test_all_forms_of_text_are_one_table(tmp_path, vocab, name):
    text = ONE_TABLE[name].encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    table = read_table(str(tmp_path / name), vocab)
    assert table.name == name.partition(".")[0]
    assert list(table.values.index) == [A, B, C]
    np.testing.assert_array_equal(table.rows([A, B, C]), f32([[1, -2], [3.5, 4], [0.1, 0.5]]))


def test_a_parquet_file_is_known_by_its_index_or_by_a_column(tmp_path, vocab):
    frame = pd.DataFrame({"a": [1.0, 3.5, 0.5], "b": [1, 2, 3]}, index=["ALFA", "BETA", "GAMA"])
    forms = {
        "index": frame,
        "symbol": frame.rename_axis("symbol").reset_index(),
        "gene_id": frame.assign(gene_id=[A, B, C], symbol="?").reset_index(drop=True),
        "exported": frame.assign(symbol="?").set_index(pd.Index([A, B, C], name="gene_id")),
    }
    for name, form in forms.items():
        form.to_parquet(tmp_path / f"{name}.parquet")
        table = read_table(str(tmp_path / f"{name}.parquet"), vocab)
        np.testing.assert_array_equal(table.rows([C, A]), f32([[0.5, 3], [1, 1]]))


@pytest.mark.parametrize("suffix", ["parquet", "txt"])
def test_the_order_of_genes_in_a_file_changes_nothing(tmp_path, suffix):
    frame = frame_of([f"ENSG{i:011d}" for i in range(40)], 3)
    one = read_table(str(write_gene_table(frame, tmp_path / f"one.{suffix}")), None)
    moved = frame.sample(frac=1, random_state=1)
    other = read_table(str(write_gene_table(moved, tmp_path / f"other.{suffix}")), None)
    pd.testing.assert_frame_equal(one.values, other.values, check_exact=True)


def test_every_row_is_accounted_for(tmp_path, vocab):
    rows = ["OLDB,9,9", "BETA,3,4", "ALFA,1,2", f"{A}.3,1,2", "GAMA,5,6", "GG,nan,1", "GAMA,7,8", "NOPE,1,1", "GAMA,,2"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    table = read_table(str(tmp_path / "t.csv"), vocab)
    np.testing.assert_array_equal(table.rows([A, B, C]), f32([[1, 2], [3, 4], [5, 6]]))  # BETA beats an old name
    about = table.about
    assert (about["rows"], about["not_finite"], about["unresolved"], about["duplicates"]) == (9, 2, 1, 3)
    assert about["rows"] == about["not_finite"] + about["unresolved"] + about["duplicates"] + len(table.values)
    assert about["differing"] == 2
    assert about["duplicate_examples"] == ["OLDB", "GAMA"]
    assert about["unmatched_examples"] == ["NOPE"]


def test_without_a_vocabulary_names_stay_but_for_versions(tmp_path):
    (tmp_path / "t.csv").write_text(f"{A}.4,1\nActb,2\n")
    assert list(read_table(str(tmp_path / "t.csv"), None).values.index) == ["Actb", A]


def test_another_species_is_refused_and_a_larger_table_is_not(tmp_path, vocab):
    many = pd.DataFrame({"gene_id": [f"ENSG{i:011d}" for i in range(300)], "symbol": [f"GEN{i}" for i in range(300)]})
    mouse = "".join(f"Gen{i},{i},1\n" for i in range(100))
    (tmp_path / "mouse.csv").write_text(mouse)
    with pytest.raises(InputError, match=r"mouse\.csv: 0\.0% of the names .*wrong species: mouse or rat"):
        read_table(str(tmp_path / "mouse.csv"), GeneVocab(many))
    (tmp_path / "few.csv").write_text(mouse + "".join(f"GEN{i},{i},2\n" for i in range(10)))
    with pytest.raises(InputError, match="mouse or rat"):
        read_table(str(tmp_path / "few.csv"), GeneVocab(many))
    # A small vocabulary inside a large table is not the table's fault.
    (tmp_path / "large.csv").write_text("".join(f"X{i},{i},1\n" for i in range(100)) + "ALFA,1,2\nBETA,3,4\n")
    assert len(read_table(str(tmp_path / "large.csv"), vocab).values) == 2


BAD = {
    "text.csv": ("ALFA,1,2\nBETA,3,high\n", r"line 2, field 3: 'high' is not a number"),
    "first.csv": ("ALFA,1,x2\nBETA,3,4\n", r"line 1, field 3: 'x2' is not a number"),
    "ragged.csv": ("ALFA,1,2\nBETA,3,4\n\nGAMA,3\n", r"line 4 has 2 fields, a name included, but line 1 has 3"),
    "short_first.txt": ("ALFA 1\nBETA 3 4\nGAMA 3 5\n", r"line 2 has 3 fields, a name included, but line 1 has 2"),
    "ragged_sizes.txt": ("3 2\nALFA 1 2\nBETA 3\nGAMA 1 2", r"line 3 has 2 fields.*the first line says 2 numbers"),
    "cut.txt": ("3 2\nALFA 1 2\nBETA 3 4\n", r"the first line says 3 genes, the file has 2"),
    "single.csv": ("ALFA,1,2\n", r"holds 1 genes x 2 numbers"),
    "header_alone.csv": ("gene,a,b\n", r"holds 0 genes x 2 numbers"),
    "zero.txt": ("ALFA\nBETA\n", r"holds \d genes x 0 numbers"),
    "empty.tsv": ("\n\n", r"is empty"),
    "constant.csv": ("ALFA,1,2\nBETA,1,2\nGAMA,1,2\n", r"the same numbers for all 3 genes"),
    "mostly_nan.csv": ("ALFA,1,2\nBETA,nan,2\nGAMA,1,inf\n", r"2 of 3 rows have missing or infinite.*'BETA'"),
    "all_nan.csv": ("ALFA,nan,2\nBETA,1,NA\n", r"2 of 2 rows"),
    "twice.csv": ("ALFA,1,2\nALFA,1,2\nALFA,3,4\n", r"has 1 genes once names are resolved"),
    "binary.bin": ("3 2\n", r"its name does not say what it is"),
    "not.parquet": ("ALFA,1\n", r"not readable as parquet"),
    "broken.csv.gz": ("\x1f\x8bno", r"cannot be read"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, vocab, name):
    text, match = BAD[name]
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=match) as caught:
        read_table(str(tmp_path / name), vocab)
    assert name in str(caught.value)


def test_text_columns_of_a_parquet_file_are_refused(tmp_path):
    pd.DataFrame({"gene": ["A", "B"], "x": [1.0, 2.0], "biotype": ["p", "q"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="column 'biotype' is object, not numbers"):
        read_table(str(tmp_path / "t.parquet"), None)
    pd.DataFrame({"symbol": ["A", "B"]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="holds 2 genes x 0 numbers"):
        read_table(str(tmp_path / "t.parquet"), None)


# Names, models, vocabularies


def test_a_spec_is_a_name_and_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a=b.csv").write_text("A,1\nB,2\n")
    assert split_spec("a=b.csv") == (None, "a=b.csv")
    assert split_spec("mine=a=b.csv") == ("mine", "a=b.csv")
    assert split_spec("no/where=b.csv") == (None, "no/where=b.csv")
    assert split_spec("pca=svd") == ("pca", "svd")
    assert read_table("mine=a=b.csv", None).name == "mine"
    for bad in ("", "=x.csv", "name=", ".x=y.csv", "a:b=c.csv"):
        with pytest.raises(InputError):
            split_spec(bad)


def test_what_is_not_there_is_refused_with_what_might_be_given(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_table(str(tmp_path / "no.csv"), None)
    with pytest.raises(InputError, match=r"Give the folder of a model .*hub id .*ppmi"):
        read_table("nowhere", None)
    with pytest.raises(InputError, match="open_tables"):
        read_table("svd", None)
    with pytest.raises(InputError, match="not a model folder"):
        read_table(str(tmp_path), None)


def test_a_model_is_a_table(tiny_run, tiny_corpus):
    expected = gene_table(checkpoint.load(tiny_run)).drop(columns="symbol")
    vocab = checkpoint.load(tiny_run).vocab
    for where, name in ((tiny_run, "run"), (tiny_run / "model", "run"), (f"expresser={tiny_run}", "expresser")):
        table = read_table(str(where), vocab)
        assert table.name == name
        assert table.about["kind"] == "checkpoint"
        pd.testing.assert_frame_equal(table.values, expected.sort_index(), check_exact=True)
    few = GeneVocab.from_names(vocab.ids[:30])
    table = read_table(str(tiny_run), few)
    assert table.about["unresolved"] == len(vocab) - 30
    pd.testing.assert_frame_equal(table.values, expected.loc[sorted(few.ids)], check_exact=True)


def test_a_hub_id_is_a_table(hub, tiny_run):
    for revision in ("main", "v1"):
        local_hub.put_folder(hub.model("lab/tiny"), tiny_run / "model", revision)
    table = read_table("lab/tiny@v1", None)
    assert table.name == "tiny"
    assert table.about["source"] == "lab/tiny@v1"
    np.testing.assert_array_equal(table.values, read_table(str(tiny_run), None).values)
    assert choose_vocab(None, ["svd", "x=lab/tiny"], None) == checkpoint.load(tiny_run).vocab
    with pytest.raises(InputError, match="the hub did not give it"):
        read_table("lab/other", None)


def test_the_vocabulary_is_the_one_given_else_the_models_else_the_corpuss(
    tiny_run, tiny_corpus, tiny_data, tmp_path, vocab
):
    vocab.save(tmp_path / "genes.tsv")
    (tmp_path / "t.csv").write_text("A,1\nB,2\n")
    specs = ["svd", str(tmp_path / "t.csv"), f"m={tiny_run}"]
    assert choose_vocab(tmp_path / "genes.tsv", specs, tiny_corpus) == vocab
    assert choose_vocab(None, specs, None) == checkpoint.load(tiny_run).vocab
    assert choose_vocab(None, specs[:2], tiny_corpus) == GeneVocab.load(tiny_corpus / "genes.tsv")
    tiny_data.write_h5ad(tmp_path / "cells.h5ad")
    of_file = choose_vocab(None, specs[:2], tmp_path / "cells.h5ad")
    assert of_file is not None
    assert set(of_file.ids) == set(tiny_data.var_names)
    assert choose_vocab(None, specs[:2], None) is None


def test_rows_come_in_the_order_asked_and_absent_genes_are_named():
    table = table_of("t", {A: [1], B: [2]})
    np.testing.assert_array_equal(table.rows(np.array([B, A, B], dtype=object)), f32([[2], [1], [2]]))
    assert table.rows([]).shape == (0, 1)
    with pytest.raises(InputError, match=f"table 't': 1 genes .* {C}"):
        table.rows([A, C])


@pytest.mark.parametrize(
    "change",
    [
        lambda v: v.astype(np.float64),
        lambda v: v.rename_axis("gene"),
        lambda v: v.set_axis([A, A]).rename_axis("gene_id"),
        lambda v: v * np.float32(np.inf),
        lambda v: v.set_axis(["x"], axis=1),
        lambda v: v.iloc[:, :0],
    ],
)
def test_a_table_that_breaks_its_own_rules_cannot_be_made(change):
    with pytest.raises(ValueError, match="needed are"):
        GeneTable("t", change(table_of("t", {A: [1], B: [2]}).values), {})


def test_common_genes_add_up_whatever_the_order():
    tables = [table_of("one", {A: [1], B: [2]}), table_of("two", {C: [1], B: [2], A: [4]}), table_of("three", {B: [1]})]
    tables[0].about["rows"] = 7
    common = common_genes(tables)
    assert common.genes == (B,)
    assert common.lost.loc["one"].to_dict() == {"rows": 7, "resolved": 2, "common": 1, "lost": 1}
    assert (common.lost["resolved"] == common.lost["common"] + common.lost["lost"]).all()
    assert common_genes(tables[::-1]).genes == common.genes
    assert common_genes(tables[:2]).genes == (A, B)
    with pytest.raises(InputError, match=r"no gene is in all tables \(one: .*--genes"):
        common_genes([tables[0], table_of("symbols", {"ALFA": [1]})])
    with pytest.raises(InputError, match="at least one"):
        common_genes([])


# Built-in tables


def test_a_random_vector_depends_on_gene_and_seed_alone():
    genes = [f"ENSG{i:011d}" for i in range(2000)]
    table = random_table(genes, 8, seed=3)
    few = random_table([genes[7], "another", genes[3]], 5, seed=3)
    np.testing.assert_array_equal(few.rows([genes[3], genes[7]]), table.rows([genes[3], genes[7]])[:, :5])
    assert not np.isclose(table.values, random_table(genes, 8, seed=4).values).any(axis=1).all()
    x = table.values.to_numpy(np.float64)
    assert abs(x.mean()) < 4 / np.sqrt(x.size)
    assert abs(x.var() - 1) < 4 * np.sqrt(2 / x.size)
    off = np.corrcoef(x.T) - np.eye(8)
    assert np.abs(off).max() < 5 / np.sqrt(len(genes))
    # By the standard library's hash and normal distribution: a release cannot change them unnoticed.
    golden = [0.24306149301890856, 0.08490701315430416, 0.05619440650635346]
    np.testing.assert_allclose(random_table(["ENSG00000141510"], 3, seed=0).values.iloc[0], golden, rtol=1e-6)


def test_expression_numbers_by_hand():
    counts = sparse.csr_matrix(np.array([[1, 0, 3, 0], [2, 0, 0, 2], [5, 0, 5, 0], [0, 0, 0, 0]]))
    table = expression_table(counts, ["a", "b", "c", "d"])
    x = 1e4 * np.array([[0.25, 0, 0.75, 0], [0.5, 0, 0, 0.5], [0.5, 0, 0.5, 0], [0, 0, 0, 0]])
    mean, spread = x.mean(0), x.var(0) / np.where(x.mean(0), x.mean(0), 1)
    expected = np.column_stack([np.log1p(mean), [0.75, 0, 0.5, 0.25], np.log1p(spread)])
    np.testing.assert_allclose(table.values, expected, rtol=1e-6)
    assert not table.rows(["b"]).any()


def test_the_svd_table_is_the_gene_factors():
    counts = toy_counts()
    genes = [f"g{i}" for i in range(30)]
    np.testing.assert_array_equal(svd_table(counts, genes, 5, seed=2).values, gene_factors(counts, 5, seed=2))


def dense_ppmi(counts: sparse.csr_matrix, min_cells: int) -> np.ndarray:
    seen = (counts.toarray() > 0).astype(float)
    out = np.zeros((counts.shape[1],) * 2)
    for i in range(len(out)):
        for j in range(len(out)):
            both, one, other = (seen[:, i] * seen[:, j]).sum(), seen[:, i].sum(), seen[:, j].sum()
            if both and min(one, other) >= min_cells:
                out[i, j] = max(0.0, np.log(both * len(seen) / (one * other)))
    return out


@pytest.mark.parametrize("dense", [-1.0, 0.3, 2.0])
def test_ppmi_is_the_brute_force_one_however_it_is_cut(monkeypatch, dense):
    monkeypatch.setattr(embedding_ppmi, "_WIDTH", 7)
    monkeypatch.setattr(embedding_ppmi, "_DENSE", dense)
    counts, min_cells = toy_counts(), 12
    m = dense_ppmi(counts, min_cells)
    cells = np.asarray((counts > 0).sum(0)).ravel()
    assert 0 < (cells < min_cells).sum() < 15
    assert (cells == 60).any()
    table = ppmi_vectors(counts, 30, min_cells=min_cells)
    assert not table[cells < min_cells].any()
    assert np.abs(table[cells == 60]).max() < 1e-6  # seen everywhere, it goes with none
    u, s, _ = np.linalg.svd(m)
    kept = s > 1e-2  # below, rounding to half precision decides
    # An axis has no sign; a gene's similarity to another does not depend on it.
    gram = (u[:, kept] * s[kept]) @ u[:, kept].T
    np.testing.assert_allclose(table @ table.T, gram, atol=0.03)
    six = ppmi_vectors(counts, 6, min_cells=min_cells)
    np.testing.assert_allclose(np.abs(six), np.abs(u[:, :6] * np.sqrt(s[:6])), atol=0.01)
    assert (six[np.abs(six).argmax(axis=0), range(6)] > 0).all()


def test_ppmi_of_moved_genes_or_cells_is_moved():
    counts, genes = toy_counts(), [f"g{i}" for i in range(30)]
    order = np.random.default_rng(1).permutation(30)
    table = ppmi_table(counts, genes, 6, seed=0)
    moved = ppmi_table(sparse.csr_matrix(counts[::-1, order]), [genes[i] for i in order], 6, seed=0)
    np.testing.assert_allclose(moved.rows(genes), table.values, atol=1e-3)
    deeper = ppmi_table(sparse.csr_matrix(counts * 3), genes, 6, seed=0)
    np.testing.assert_array_equal(deeper.values, table.values)  # detection alone counts


def test_genes_seen_everywhere_or_nowhere_say_nothing():
    counts = sparse.csr_matrix(np.tile([3, 0, 1], (20, 1)))
    assert not ppmi_vectors(counts, 4).any()
    assert not ppmi_vectors(sparse.csr_matrix((20, 3), dtype=np.int64), 4).any()
    explicit = sparse.csr_matrix(np.eye(20, 3) + 1)
    explicit.data[:] = 0  # stored zeros are not detections
    assert not ppmi_vectors(explicit, 4).any()


def test_leading_axes_of_a_matrix_larger_than_the_space_searched():
    rng = np.random.default_rng(0)
    q = np.linalg.qr(rng.standard_normal((300, 300)))[0]
    values = 100 * 0.9 ** np.arange(300) * rng.choice([-1, 1], 300)
    m = ((q * values) @ q.T).astype(np.float32)
    blocks = [(i, j, m[i : i + 64, j : j + 64]) for i in range(0, 300, 64) for j in range(i, 300, 64)]
    found, axes = leading_axes(embedding_ppmi._Symmetric(300, blocks), 12, seed=0)
    np.testing.assert_allclose(found, values[:12], rtol=1e-4)
    np.testing.assert_allclose(np.abs((axes * q[:, :12]).sum(0)), 1, atol=1e-3)
    np.testing.assert_allclose(axes.T @ axes, np.eye(12), atol=1e-4)


def test_baselines_find_modules_where_there_are_modules():
    real = simulate_rna(n_cells=800, n_genes=400, median_depth=600, seed=1)
    null = simulate_rna(n_cells=800, n_genes=400, median_depth=600, seed=1, module_strength=0)
    labels = real.var["module"].astype(str).tolist()
    genes = list(real.var_names)
    found, nothing = (
        module_auc(ppmi_table(sparse.csr_matrix(x.X), genes, 20, seed=0).values.to_numpy(np.float64), labels)
        for x in (real, null)
    )
    assert found > 0.65
    assert abs(nothing - 0.5) < 0.05


def test_counts_of_a_corpus_are_those_of_its_file(tiny_corpus, tiny_data, tmp_path):
    tiny_data.write_h5ad(tmp_path / "cells.h5ad")
    one, genes = read_counts(tiny_corpus)
    other, others = read_counts(tmp_path / "cells.h5ad")
    assert one.shape == (120, len(genes))
    expected = pd.Series(np.asarray(tiny_data.X.sum(0)).ravel(), index=tiny_data.var_names)
    for counts, vocab in ((one, genes), (other, others)):
        np.testing.assert_array_equal(np.asarray(counts.sum(0)).ravel(), expected[vocab.ids])
    few, _ = read_counts(tiny_corpus, max_cells=40, seed=5)
    again, _ = read_counts(tiny_corpus, max_cells=40, seed=5)
    assert few.shape[0] == 40
    assert (few != again).nnz == 0
    subset = GeneVocab.from_names(genes.ids[::-1][:70])
    narrow, same = read_counts(tiny_corpus, vocab=subset)
    assert same is subset
    np.testing.assert_array_equal(np.asarray(narrow.sum(0)).ravel(), expected[subset.ids])
    with pytest.raises(InputError, match="no layer"):
        read_counts(tiny_corpus, layer="counts")
    with pytest.raises(InputError, match="at least 3 cells"):
        read_counts(tiny_corpus, max_cells=2)


def test_files_are_opened_first_and_built_ins_have_all_genes(tiny_corpus, tmp_path):
    counts, vocab = read_counts(tiny_corpus)
    file = write_gene_table(frame_of([A, *vocab.ids[:20]], 6), tmp_path / "mine.parquet")
    known = GeneVocab.union([vocab, GeneVocab.from_names([A])])
    specs = ["random", "pca=svd", str(file), "expression", "ppmi"]
    tables = open_tables(specs, vocab=known, corpus=tiny_corpus, seed=1)
    assert [table.name for table in tables] == ["mine", "random", "pca", "expression", "ppmi"]
    assert [table.dim for table in tables] == [6, 6, 6, 3, 6]
    genes = sorted({A, *vocab.ids[np.unique(counts.indices)]})
    for table in tables[1:]:
        assert list(table.values.index) == genes
        assert table.about["rows"] == len(genes)
        assert table.about["kind"] == "built-in"
        assert table.rows([A]).any() == (table.name == "random")
    assert tables[2].about["unseen"] == 1
    seen = sorted(set(genes) - {A})
    order = sparse.csr_matrix(counts[:, vocab.resolve(seen).tokens])
    np.testing.assert_allclose(np.abs(tables[2].rows(seen)), np.abs(gene_factors(order, 6, seed=1)), atol=1e-4)
    np.testing.assert_array_equal(tables[3].rows(seen), expression_table(order, seen).values)
    chosen = open_tables(["random", "svd"], vocab=None, corpus=tiny_corpus, d=4, genes=[C, seen[0]])
    assert [table.values.shape for table in chosen] == [(2, 4), (2, 4)]
    assert open_tables(["random"], vocab=None, corpus=tiny_corpus)[0].values.shape == (len(seen), 64)
    assert open_tables(["random"], vocab=known, corpus=None)[0].values.shape == (len(known), 64)


def test_tables_that_cannot_be_opened(tiny_corpus, tmp_path):
    file = str(write_gene_table(frame_of([A, B], 2), tmp_path / "svd.parquet"))
    for specs, corpus, match in (
        ([], None, "were given"),
        (["svd"], None, "give --corpus"),
        (["p=ppmi"], None, "'ppmi' is computed from raw counts"),
        ([file, "svd"], tiny_corpus, "2 tables are called 'svd'"),
        (["random", "random"], tiny_corpus, "2 tables are called 'random'"),
        (["random"], None, "for which genes"),
    ):
        with pytest.raises(InputError, match=match):
            open_tables(specs, vocab=None, corpus=corpus)
    with pytest.raises(InputError, match="at least one dimension"):
        open_tables(["random"], vocab=None, corpus=tiny_corpus, d=0)
    assert len(open_tables(["random", "other=random"], vocab=None, corpus=tiny_corpus)) == 2


# gene-benchmark


@pytest.fixture
def shared() -> GeneVocab:
    """A and B have symbols, C has none but its id, two genes share TWIN."""
    ids = [A, B, C, "ENSG00000000004", "ENSG00000000005"]
    return GeneVocab(pd.DataFrame({"gene_id": ids, "symbol": ["ALFA", "BETA", C, "TWIN", "TWIN"]}))


def test_embeddings_for_gene_benchmark(tmp_path, shared):
    rows = {B: [0.1, 2], C: [1, 1], A: [3, 1 / 3], "ENSG00000000004": [5, 5], "ENSG99999999999": [7, 7]}
    account = write_embeddings_csv(table_of("t", rows), tmp_path / "t.csv", shared)
    assert account == {"written": 2, "without_symbol": 2, "repeated_symbol": 1}
    back = pd.read_csv(tmp_path / "t.csv", index_col="symbol")
    assert list(back.index) == ["BETA", "ALFA"]
    np.testing.assert_array_equal(back.to_numpy(np.float32), f32([[0.1, 2], [3, 1 / 3]]))
    assert write_embeddings_csv(table_of("t", {"ALFA": [1], A: [2]}), tmp_path / "t.csv", None)["written"] == 1
    with pytest.raises(InputError, match="nothing is left to write"):
        write_embeddings_csv(table_of("t", {C: [1]}), tmp_path / "none.csv", shared)
    with pytest.raises(InputError, match=r"ends in \.csv"):
        write_embeddings_csv(table_of("t", {A: [1]}), tmp_path / "t.txt", shared)


def test_tasks_for_gene_benchmark(tmp_path, shared):
    values = pd.Series([0.5, 0.25, 3.0], index=[B, C, A])
    account = write_task(SimpleNamespace(values=values), tmp_path / "one", shared)
    assert account == {"written": 2, "left_out": 1, "without_symbol": 1, "repeated_symbol": 0}
    assert (tmp_path / "one" / "entities.csv").read_text() == "symbol\nBETA\nALFA\n"
    assert (tmp_path / "one" / "outcomes.csv").read_text() == "Outcomes\n0.5\n3.0\n"
    a, b = (np.array(genes, dtype=object) for genes in ([A, A, B], [B, "ENSG00000000005", C]))
    pairs = SimpleNamespace(a=a, b=b, label=np.array([1, 0, 1], np.int8))
    account = write_task(pairs, tmp_path / "two", shared)
    assert account == {"written": 1, "left_out": 2, "without_symbol": 1, "repeated_symbol": 1}
    assert (tmp_path / "two" / "entities.csv").read_text() == "symbol,symbol\nALFA,BETA\n"
    assert (tmp_path / "two" / "outcomes.csv").read_text() == "Outcomes\n1\n"
    words = SimpleNamespace(values=pd.Series(["x", "y"], index=[A, B]))
    write_task(words, tmp_path / "one", shared)
    assert (tmp_path / "one" / "outcomes.csv").read_text() == "Outcomes\nx\ny\n"


# Real files


@pytest.mark.realdata
def test_a_foreign_table_is_resolved_by_hgnc(realdata):
    path = realdata / "genes" / "l1000_gene_vectors_128d.csv"
    vocab = GeneVocab.read(realdata / "annotation" / "hgnc_complete_set.txt.gz")
    table = read_table(f"l1000={path}", vocab)
    about = table.about
    assert table.dim == 128
    assert about["rows"] == 978
    assert about["rows"] == about["not_finite"] + about["unresolved"] + about["duplicates"] + len(table.values)
    assert len(table.values) > 960
    ddr1 = vocab.ids[vocab.resolve(["DDR1"]).tokens[0]]
    np.testing.assert_allclose(table.rows([ddr1])[0, :3], [-0.13921626, 0.076207764, 0.40053526], rtol=1e-6)
    assert len(read_gene_table(path).names) == 978
