"""The corpus: what is read back is what went in, the same bytes every time, and nothing half-written."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.corpus import build, manifest, onepass, shards, shuffle
from expresser.corpus.align import Alignment
from expresser.corpus.build import build_corpus, distinct_names
from expresser.corpus.info import corpus_info, info_text
from expresser.corpus.source import open_source
from expresser.corpus.store import Corpus, CountBatch
from expresser.corpus.verify import _laws, verify_corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab

N_GENES = 60
IDS = [f"ENSG{i:011d}" for i in range(N_GENES)]
SYMBOLS = [f"GENE{i}" for i in range(N_GENES)]
VOCAB = GeneVocab.from_names(IDS, SYMBOLS)


def random_counts(cells: int, genes: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.poisson(rng.gamma(0.5, 2.0, size=(cells, genes))).astype(np.int64)


def make(counts: np.ndarray, names: list[str], prefix: str, **obs: list) -> anndata.AnnData:
    return anndata.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(obs, index=[f"{prefix}{i}" for i in range(len(counts))]),
        var=pd.DataFrame(index=names),
    )


@dataclasses.dataclass
class Inputs:
    """Two files with different genes in different orders, and what a corpus of them must hold."""

    paths: list[Path]
    expected: np.ndarray  # kept cells x vocabulary, row = cell id
    barcodes: list[str]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """a.h5ad: Ensembl ids with versions, shuffled, three unknown. b.h5ad: symbols, one gene twice under two names."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(7)
    tokens_a = rng.permutation(N_GENES)[:50].tolist()
    names_a = [f"{IDS[t]}.{t % 9}" for t in tokens_a] + ["ENSG99999999999", "7SK-like", "ERCC-00002"]
    tokens_b = [*rng.permutation(N_GENES)[:40].tolist(), 3, 3]
    names_b = [SYMBOLS[t] if i < 40 else "" for i, t in enumerate(tokens_b)]
    names_b[40:] = ["hg19_GENE3", "GRCh38_GENE3"]
    counts_a, counts_b = random_counts(230, 53, 1), random_counts(170, 42, 2)
    counts_a[[0, 17]] = 0  # empty
    counts_a[5] = 0
    counts_a[5, 50:] = 9  # counts, but none in the vocabulary: empty too
    counts_a[9] = 0
    counts_a[9, :2] = 4  # two genes: too few
    donors = [["d1", "d2", "nan"][i % 3] for i in range(230)]
    paths = [folder / "a.h5ad", folder / "b.h5ad"]
    make(counts_a, names_a, "A", donor=donors, age=list(range(230))).write_h5ad(paths[0])
    make(counts_b, names_b, "B", cell_type=["T"] * 100 + ["B"] * 70, age=[0.5] * 170).write_h5ad(paths[1])

    # The plain way, entry by entry.
    dense = np.zeros((400, N_GENES), np.int64)
    for i in range(230):
        for j, token in enumerate(tokens_a):
            dense[i, token] += counts_a[i, j]
    for i in range(170):
        for j, token in enumerate(tokens_b):
            dense[230 + i, token] += counts_b[i, j]
    kept = [i for i in range(400) if (dense[i] > 0).sum() >= 3]
    assert not {0, 5, 9, 17} & set(kept)
    barcodes = [f"A{i}" if i < 230 else f"B{i - 230}" for i in kept]
    return Inputs(paths=paths, expected=dense[kept], barcodes=barcodes)


@pytest.fixture(scope="module")
def corpus(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Small shards and batches, so that every boundary is crossed."""
    return build_corpus(
        inputs.paths,
        tmp_path_factory.mktemp("built") / "corpus",
        genes=VOCAB,
        obs_columns=["donor", "cell_type", "age"],
        min_genes=3,
        min_counts_kept=0.5,
        shard_rows=128,
        batch_rows=50,
    )


def small(inputs: Inputs, out: Path, **changes: object) -> Corpus:
    arguments: dict = {"genes": VOCAB, "min_genes": 3, "min_counts_kept": 0.5, "shard_rows": 128, "batch_rows": 50}
    return build_corpus(inputs.paths, out, **(arguments | changes))


def bytes_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def everything(corpus: Corpus) -> np.ndarray:
    """Dense counts by cell id."""
    batch = corpus.read(np.arange(corpus.n_cells))
    dense = np.zeros((corpus.n_cells, len(corpus.vocab)), np.int64)
    dense[batch.cell_id] = batch.to_csr(len(corpus.vocab)).toarray()
    return dense


# What is read back


def test_read_back_equals_the_inputs(corpus: Corpus, inputs: Inputs) -> None:
    np.testing.assert_array_equal(everything(corpus), inputs.expected)
    assert corpus.obs["barcode"].tolist() == inputs.barcodes
    assert corpus.obs["source"].astype(str).tolist() == [name[0].lower() for name in inputs.barcodes]


def test_columns_by_row_agree_with_the_matrices(corpus: Corpus, inputs: Inputs) -> None:
    ids = corpus.cell_ids
    assert sorted(ids.tolist()) == list(range(len(inputs.expected)))
    np.testing.assert_array_equal(corpus.totals, inputs.expected.sum(1)[ids])
    np.testing.assert_array_equal(corpus.lengths, (inputs.expected > 0).sum(1)[ids])
    np.testing.assert_array_equal(corpus.source_ids, [inputs.barcodes[i][0] == "B" for i in ids])
    assert corpus.lengths.dtype == np.int32


def test_shards_are_plain_datasets_files(corpus: Corpus) -> None:
    parts = [Dataset.from_file(str(corpus.path / entry["file"])) for entry in corpus.manifest["shards"]]
    assert [len(part) for part in parts] == [128, 128, 128, len(corpus) - 384]
    assert parts[0].column_names == ["cell_id", "source", "total", "genes", "counts"]
    cell = parts[1][3]
    batch = corpus.read(np.array([131]))
    assert (cell["cell_id"], cell["total"]) == (batch.cell_id[0], batch.total[0])
    assert (cell["genes"], cell["counts"]) == (batch.genes.tolist(), batch.counts.tolist())
    chunks = parts[0].data.column("genes").chunks
    assert [len(chunk) for chunk in chunks] == [50, 50, 28]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_read_is_row_by_row_slicing(corpus: Corpus, data: st.DataObject) -> None:
    last = corpus.n_cells - 1
    some = st.lists(st.integers(0, last), max_size=40)
    runs = st.tuples(st.integers(0, last), st.integers(0, 90)).map(lambda t: list(range(t[0], min(sum(t), last + 1))))
    rows = np.array(data.draw(some | runs), dtype=data.draw(st.sampled_from([np.int64, np.int32, np.uint32])))
    batch = corpus.read(rows)
    ones = [corpus.read(np.array([row])) for row in rows]
    for name in ("cell_id", "source", "total", "lengths", "genes", "counts"):
        whole = getattr(batch, name)
        assert whole.tolist() == [value for one in ones for value in getattr(one, name).tolist()]
    assert batch.genes.dtype == batch.counts.dtype == np.uint16
    assert batch.lengths.sum() == len(batch.genes) == len(batch.counts)


@given(st.lists(st.integers(0, 6), max_size=12), st.data())
def test_take_and_slice_are_list_indexing(lengths: list[int], data: st.DataObject) -> None:
    n, total = len(lengths), sum(lengths)
    batch = CountBatch(
        cell_id=np.arange(n, dtype=np.uint32),
        source=np.zeros(n, np.uint16),
        total=np.arange(n, dtype=np.uint32),
        lengths=np.array(lengths, np.int64),
        genes=np.arange(total, dtype=np.uint16),
        counts=np.arange(total, dtype=np.uint32) + 70_000,
    )
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=9)) if n else []
    start = data.draw(st.integers(0, n))
    stop = data.draw(st.integers(start, n))
    entries = np.split(batch.genes, batch.offsets[1:-1]) if n else []
    for got, want in (
        (batch.take(np.array(rows, np.int64)), rows),
        (batch.slice(start, stop), list(range(start, stop))),
        (shards.concatenate([batch.slice(0, start), batch.slice(start, n)]), list(range(n))),
    ):
        assert got.cell_id.tolist() == want
        assert got.genes.tolist() == [gene for row in want for gene in entries[row].tolist()]
        assert (got.counts == got.genes + np.uint32(70_000)).all()


@pytest.mark.parametrize("rows", [[-1], [0, 10**6]])
def test_read_refuses_rows_that_are_not_there(corpus: Corpus, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="rows 0 …"):
        corpus.read(np.array(rows))


def test_a_corpus_survives_pickling_for_workers(corpus: Corpus) -> None:
    import pickle

    copy = pickle.loads(pickle.dumps(corpus))  # noqa: S301
    np.testing.assert_array_equal(copy.read(np.array([5, 2])).counts, corpus.read(np.array([5, 2])).counts)


def test_obs_columns_keep_type_and_missing_values(corpus: Corpus) -> None:
    obs = corpus.obs
    assert obs.index.name == "cell_id"
    in_a = (obs["source"] == "a").to_numpy()
    rows_of_a = obs["barcode"][in_a].str[1:].astype(int)
    assert obs["age"].dtype == float
    assert (obs["age"][in_a] == rows_of_a).all()
    assert (obs["age"][~in_a] == 0.5).all()
    assert obs["donor"].cat.categories.tolist() == ["d1", "d2"]  # the text "nan" is a missing label
    assert (obs["donor"][in_a].isna() == (rows_of_a % 3 == 2)).all()
    assert obs["donor"][~in_a].isna().all()
    assert obs["cell_type"][in_a].isna().all()
    assert obs["cell_type"][~in_a].notna().all()


def test_without_a_vocabulary_it_is_the_union_of_the_inputs_genes(tmp_path: Path) -> None:
    counts = random_counts(30, 25, 3) + 1
    one = make(counts, [f"GENE{i}" for i in range(25)], "x")
    two = make(counts, [f"GENE{i}" for i in range(44, 19, -1)], "y")
    corpus = build_corpus([one, two], tmp_path / "c")
    assert sorted(corpus.vocab.symbols) == sorted(f"GENE{i}" for i in range(45))
    dense = pd.DataFrame(everything(corpus), columns=corpus.vocab.symbols)
    np.testing.assert_array_equal(dense.loc[:29, one.var_names], counts)
    np.testing.assert_array_equal(dense.loc[30:, two.var_names], counts)
    assert corpus.obs["source"].astype(str).unique().tolist() == ["anndata", "anndata (2)"]


def test_counts_beyond_uint16_widen_the_whole_corpus_and_are_never_clipped(tmp_path: Path) -> None:
    counts = random_counts(40, N_GENES, 4) + 1
    assert (
        build_corpus([make(counts, IDS, "c")], tmp_path / "narrow", genes=VOCAB).manifest["dtypes"]["counts"]
        == "uint16"
    )
    counts[3, 7] = 65_535
    assert (
        build_corpus([make(counts, IDS, "c")], tmp_path / "limit", genes=VOCAB).manifest["dtypes"]["counts"] == "uint16"
    )
    counts[31, 59] = 65_536
    counts[32, 58] = 16_000_001  # exact in float32, as the file stores it, only up to 2^24
    corpus = build_corpus([make(counts, IDS, "c")], tmp_path / "wide", genes=VOCAB)
    assert corpus.read(np.array([0])).counts.dtype == np.uint32
    np.testing.assert_array_equal(everything(corpus), counts)
    verify_corpus(corpus.path)


def test_sums_of_columns_may_exceed_uint16_too(tmp_path: Path) -> None:
    counts = np.full((30, N_GENES), 40_000)
    names = [*SYMBOLS[:59], "hg19_GENE0"]
    corpus = build_corpus([make(counts, names, "c")], tmp_path / "c", genes=VOCAB)
    assert (everything(corpus)[:, 0] == 80_000).all()


def test_a_cell_total_beyond_uint32_is_refused(tmp_path: Path) -> None:
    counts = np.full((30, N_GENES), 100_000_000)
    with pytest.raises(InputError, match=r"cell 'c0' sum to 6,000,000,000, .* at most 4,294,967,295"):
        build_corpus([make(counts, IDS, "c")], tmp_path / "c", genes=VOCAB)
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_beyond_uint16_has_uint32_genes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 65,536 real genes cost seconds, so the limit comes down to them instead.
    monkeypatch.setattr(build, "UINT16_MAX", N_GENES - 1)
    counts = random_counts(25, N_GENES, 5) + 1
    corpus = build_corpus([make(counts, IDS, "c")], tmp_path / "c", genes=VOCAB)
    assert corpus.read(np.arange(25)).genes.dtype == np.uint32
    assert corpus.manifest["dtypes"]["genes"] == "uint32"
    np.testing.assert_array_equal(everything(corpus), counts)
    verify_corpus(corpus.path)


# Alignment


def test_alignment_takes_the_column_that_resolves_most_and_sums_duplicates() -> None:
    data = make(np.array([[1, 2, 0, 4], [0, 8, 16, 0]]), ["a", "b", "c", "d"], "x")
    data.var["symbol"] = ["GENE5", "GENE1", "nothing", "GENE5"]
    alignment = Alignment.of(open_source(data), VOCAB)
    assert alignment.column == "symbol"
    _, chunk = next(open_source(data).chunks())
    aligned = alignment.apply(chunk)
    assert aligned.shape == (2, N_GENES)
    assert aligned.has_sorted_indices
    assert (aligned.indices.tolist(), aligned.data.tolist()) == ([1, 5, 1], [2, 5, 8])


# Order and identity


def test_splitmix64_gives_the_published_sequence() -> None:
    # First outputs of the public splitmix64 from state 0, and from state 1234567.
    states = np.array([0, 1234567], np.uint64)
    assert [hex(value) for value in shuffle.splitmix64(states)] == ["0xe220a8397b1dcdaf", "0x599ed017fb08fc85"]


def test_order_keys_are_those_of_existing_corpora() -> None:
    # Written down from the first release's shuffle: another value would reorder every corpus that is built anew.
    keys = [int(key) for key in shuffle.order_keys(7, np.array([0, 1, 4_000_000_000], np.uint32))]
    assert keys == [13309476754707697221, 11984929618412882174, 6444663726002084787]


def test_order_keys_look_random_and_never_collide() -> None:
    ids = np.arange(200_000, dtype=np.uint32)
    keys = shuffle.order_keys(0, ids)
    assert len(np.unique(keys)) == len(ids)
    counts = np.bincount((keys >> np.uint64(60)).astype(int), minlength=16)
    assert (abs(counts - 12_500) < 5 * np.sqrt(12_500)).all()
    other = shuffle.order_keys(1, ids)
    floats = np.stack([keys, np.roll(keys, 1), other, ids]).astype(float)
    assert (abs(np.corrcoef(floats) - np.eye(4)) < 0.012).all()  # 5 standard errors


def test_same_seed_same_bytes_other_seed_other_order(inputs: Inputs, corpus: Corpus, tmp_path: Path) -> None:
    first, again = small(inputs, tmp_path / "one"), small(inputs, tmp_path / "two")
    assert bytes_of(first.path) == bytes_of(again.path)
    other = small(inputs, tmp_path / "three", seed=1)
    assert other.corpus_id != first.corpus_id
    assert (other.cell_ids != first.cell_ids).mean() > 0.9
    np.testing.assert_array_equal(everything(other), everything(first))
    assert other.obs.equals(first.obs)
    order = np.argsort(shuffle.order_keys(0, np.arange(first.n_cells, dtype=np.uint32)))
    np.testing.assert_array_equal(first.cell_ids, order)


@pytest.mark.parametrize(("chunk", "bucket", "piece"), [(7, 16, 5), (1000, 64, 1000), (50, 10**6, 33)])
def test_bytes_do_not_depend_on_chunks_and_buckets(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, bucket: int, piece: int
) -> None:
    usual = small(inputs, tmp_path / "usual")
    monkeypatch.setattr(onepass, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", bucket)
    monkeypatch.setattr(shuffle, "PIECE_ROWS", piece)
    assert bytes_of(small(inputs, tmp_path / "other").path) == bytes_of(usual.path)


def test_the_id_is_of_what_training_sees(inputs: Inputs, tmp_path: Path) -> None:
    usual = small(inputs, tmp_path / "usual")
    for number, path in enumerate(inputs.paths):
        (tmp_path / str(number)).mkdir()
        shutil.copy(path, tmp_path / str(number) / "matrix.h5ad")
    moved = [tmp_path / "0" / "matrix.h5ad", tmp_path / "1" / "matrix.h5ad"]
    renamed = small(dataclasses.replace(inputs, paths=moved), tmp_path / "renamed")
    assert renamed.corpus_id == usual.corpus_id
    assert [source["name"] for source in renamed.manifest["sources"]] == ["0/matrix", "1/matrix"]
    assert small(inputs, tmp_path / "cut", shard_rows=90, batch_rows=17).corpus_id == usual.corpus_id
    changes: list[dict] = [{"obs_columns": ["age"]}, {"min_genes": 14}, {"genes": None}]
    for number, change in enumerate(changes):
        assert small(inputs, tmp_path / f"changed{number}", **change).corpus_id != usual.corpus_id
    assert str(tmp_path) not in (renamed.path / "manifest.json").read_text()


def test_names_of_sources_differ(tmp_path: Path) -> None:
    data = make(np.ones((2, 3)), ["a", "b", "c"], "x")
    paths = [tmp_path / a / b / "matrix.h5ad" for a, b in (("s1", "out"), ("s2", "out"), ("s2", "raw"))]
    for path in paths:
        path.parent.mkdir(parents=True)
        data.write_h5ad(path)
    sources = [open_source(path) for path in paths] + [open_source(data, name=name) for name in ("y", "z", "y")]
    assert distinct_names(sources) == ["s1/out/matrix", "s2/out/matrix", "raw/matrix", "y", "z", "y (2)"]


# The account


def test_manifest_accounts_for_every_cell_and_gene_name(corpus: Corpus, inputs: Inputs) -> None:
    a, b = corpus.manifest["sources"]
    assert a["dropped"] == {"empty": 3, "few genes": a["cells_read"] - a["cells"] - 3}
    assert a["dropped"]["few genes"] >= 1
    assert (a["cells_read"], b["cells_read"], a["cells"] + b["cells"]) == (230, 170, corpus.n_cells)
    assert (a["genes"]["by_id"], a["genes"]["unknown"], a["genes"]["genes"]) == (50, 3, 50)
    assert (b["genes"]["by_symbol"], b["genes"]["duplicates"]) == (42, 42 - b["genes"]["genes"])
    assert a["sha256"] == hashlib.sha256(inputs.paths[0].read_bytes()).hexdigest()
    assert corpus.manifest["nnz"] == (inputs.expected > 0).sum() == a["nnz"] + b["nnz"]
    assert sum(shard["nnz"] for shard in corpus.manifest["shards"]) == corpus.manifest["nnz"]
    for entry in (corpus.manifest["genes"], corpus.manifest["obs"], *corpus.manifest["shards"]):
        data = (corpus.path / entry["file"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry["bytes"], entry["sha256"])
    assert sorted(path.name for path in corpus.path.iterdir()) == sorted(
        ["manifest.json", "genes.tsv", "obs.parquet", *(shard["file"] for shard in corpus.manifest["shards"])]
    )


def test_info_is_plain_and_right(corpus: Corpus, inputs: Inputs) -> None:
    info = json.loads(json.dumps(corpus_info(corpus.path), allow_nan=False))
    assert (info["cells"], info["genes"], info["nnz"]) == (*inputs.expected.shape, (inputs.expected > 0).sum())
    assert info["depth"]["median"] == np.median(inputs.expected.sum(1))
    assert info["genes_per_cell"]["max"] == (inputs.expected > 0).sum(1).max()
    in_a = np.array([barcode[0] == "A" for barcode in inputs.barcodes])
    assert info["sources"][0]["median_depth"] == np.median(inputs.expected[in_a].sum(1))
    assert info["obs"]["donor"] == {"values": 2, "missing": int(corpus.obs["donor"].isna().sum())}
    text = info_text(info)
    assert corpus.corpus_id in text
    assert "cell_type: 2 values" in text


# Where there is a corpus already


def test_building_again_finds_it_done(inputs: Inputs, tmp_path: Path) -> None:
    first = small(inputs, tmp_path / "c")
    times = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    calls: list[tuple[str, int, int]] = []
    again = small(inputs, tmp_path / "c", progress=lambda *call: calls.append(call))
    assert again.corpus_id == first.corpus_id
    assert calls == [("already built", first.n_cells, first.n_cells)]
    assert {path: path.stat().st_mtime_ns for path in first.path.iterdir()} == times


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 3}, "seed is 0 there, 3 was asked"),
        ({"genes": None}, "genes is '.*' there, None was asked"),
        ({"obs_columns": ["age"]}, r"obs_columns is \[\] there, \['age'\] was asked"),
    ],
)
def test_another_corpus_in_the_way_is_not_touched(inputs: Inputs, tmp_path: Path, changes: dict, message: str) -> None:
    there = small(inputs, tmp_path / "c")
    before = bytes_of(there.path)
    with pytest.raises(InputError, match=message):
        small(inputs, there.path, **changes)
    one = dataclasses.replace(inputs, paths=inputs.paths[:1])
    with pytest.raises(InputError, match=r"other inputs \(it has 2, 1 of the 1 asked are in it\)"):
        small(one, there.path)
    assert bytes_of(there.path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_labels_in_memory_are_part_of_what_is_the_same(tmp_path: Path) -> None:
    data = make(random_counts(30, N_GENES, 6) + 1, IDS, "c", label=["x"] * 30)
    build_corpus([data], tmp_path / "c", genes=VOCAB, obs_columns=["label"])
    build_corpus([data], tmp_path / "c", genes=VOCAB, obs_columns=["label"])
    data.obs["label"] = ["y"] * 30
    with pytest.raises(InputError, match="other inputs"):
        build_corpus([data], tmp_path / "c", genes=VOCAB, obs_columns=["label"])


@pytest.mark.parametrize("what", ["file", "folder with a file", "foreign manifest"])
def test_anything_else_in_the_way_is_not_touched(inputs: Inputs, tmp_path: Path, what: str) -> None:
    out = tmp_path / "c"
    if what == "file":
        out.write_text("mine")
    else:
        out.mkdir()
        (out / ("manifest.json" if "manifest" in what else "thesis.doc")).write_text("{}")
    with pytest.raises(InputError, match=str(out)):
        small(inputs, out)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert out.read_text() == "mine" if what == "file" else len(list(out.iterdir())) == 1


def test_an_empty_folder_is_filled_and_parents_are_made(inputs: Inputs, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert small(inputs, tmp_path / "empty").n_cells == small(inputs, tmp_path / "x" / "y" / "c").n_cells
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "x"]


# Bad input: one clear error and nothing left behind


@pytest.fixture
def good() -> anndata.AnnData:
    return make(random_counts(30, N_GENES, 8) + 1, IDS, "g", donor=["d"] * 30, site=["s"] * 30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs_columns": ["celltype"]}, r"'celltype' is in none of the inputs: .* has 'donor', 'site'"),
        ({"obs_columns": ["barcode"]}, "'barcode': the corpus has a column of its own"),
        ({"min_genes": 61}, r"no cell is left .* 0 of 30 cells empty, 30 with fewer than 61 genes"),
        ({"min_genes": -1}, "min_genes is -1"),
        ({"min_counts_kept": 60.0}, "min_counts_kept is 60"),
        ({"seed": -1}, "seed is -1"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"layer": "counts"}, "counts"),
        ({"genes": GeneVocab.from_names(["TP53", "EGFR"])}, r"0\.0% of the names .*ENSG00000000000"),
        ({"genes": GeneVocab.from_names(IDS[:6])}, r"10\.\d% of the counts .* at least 60%"),
    ],
)
def test_bad_arguments(good: anndata.AnnData, tmp_path: Path, arguments: dict, message: str) -> None:
    good.X = sparse.csr_matrix(np.ones((30, N_GENES), np.float32)) if "10" in message else good.X
    with pytest.raises(InputError, match=message):
        build_corpus([good], tmp_path / "deep" / "corpus", **({"genes": VOCAB} | arguments))
    assert list(tmp_path.iterdir()) == []


def test_bad_inputs(good: anndata.AnnData, tmp_path: Path) -> None:
    def refused(inputs: list, message: str) -> None:
        before = sorted(tmp_path.iterdir())
        with pytest.raises(InputError, match=message):
            build_corpus(inputs, tmp_path / "corpus", genes=VOCAB)
        assert sorted(tmp_path.iterdir()) == before

    refused([], "no inputs")
    refused([tmp_path / "missing.h5ad"], "missing.h5ad")
    empty = make(np.zeros((4, N_GENES)), IDS, "e")
    refused([empty], r"no cell is left \(anndata: 4 of 4 cells empty")
    refused([good, good.copy()], "are the same data")
    logged = good.copy()
    logged.X = np.log1p(good.X)
    refused([good, logged], "raw counts")  # found while the first input's cells are already scattered
    assert build_corpus([good, empty], tmp_path / "both", genes=VOCAB).n_cells == 30


@pytest.mark.parametrize("stage", ["read", "write"])
@pytest.mark.parametrize("signal", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_build_leaves_nothing_but_finished_work(
    good: anndata.AnnData, tmp_path: Path, stage: str, signal: type[BaseException]
) -> None:
    def stop(now: str, done: int, total: int) -> None:
        if now == stage:
            assert len(list(tmp_path.iterdir())) == 1
            raise signal

    out = tmp_path / "a" / "corpus"
    with pytest.raises(signal):
        build_corpus([good], out, genes=VOCAB, progress=stop)
    if signal is RuntimeError or stage == "read":  # an error in the program, or no input was finished
        assert list(tmp_path.iterdir()) == []
    else:
        assert [path.name for path in out.parent.iterdir()] == [".corpus.building"]
        went_on = build_corpus([good], out, genes=VOCAB)
        assert bytes_of(went_on.path) == bytes_of(build_corpus([good], tmp_path / "calm", genes=VOCAB).path)
        assert [path.name for path in out.parent.iterdir()] == ["corpus"]


def test_a_full_disk_while_writing_shards(
    good: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards._HashedFile, "write", full)
    with pytest.raises(InputError, match=r"No space left .* are needed while building, .* are free"):
        build_corpus([good], tmp_path / "corpus", genes=VOCAB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_while_scattering(good: anndata.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle.Scatter, "_path", lambda self, bucket: Path("/dev/full"))
    with pytest.raises(InputError, match=r"No space left .* Nothing was left behind"):
        build_corpus([good], tmp_path / "corpus", genes=VOCAB)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs resource limits")
def test_a_file_size_limit_is_met_like_a_full_disk(good: anndata.AnnData, tmp_path: Path) -> None:
    good.write_h5ad(tmp_path / "good.h5ad")
    program = (
        "import resource, sys\n"
        "from expresser.corpus.build import build_corpus\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
        "try:\n"
        "    build_corpus([sys.argv[1]], sys.argv[2])\n"
        "except ValueError as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path / "good.h5ad"), str(tmp_path / "corpus")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("InputError")
    assert "File too large" in done.stdout
    assert "ulimit -f" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["good.h5ad"]


# Damage


@pytest.fixture
def copied(corpus: Corpus, tmp_path: Path) -> Path:
    return Path(shutil.copytree(corpus.path, tmp_path / "copy"))


def test_a_sound_copy_verifies(copied: Path) -> None:
    verify_corpus(copied)


@pytest.mark.parametrize("file", ["cells-00000.arrow", "cells-00003.arrow", "genes.tsv", "obs.parquet"])
@pytest.mark.parametrize("where", [0.0, 0.5, 0.999])
def test_a_flipped_byte_is_found_and_its_file_named(copied: Path, file: str, where: float) -> None:
    data = bytearray((copied / file).read_bytes())
    data[int(where * len(data))] ^= 1
    (copied / file).write_bytes(data)
    with pytest.raises(InputError, match=f"1 of 6 files .*: {file}"):
        verify_corpus(copied)


@pytest.mark.parametrize("file", ["cells-00002.arrow", "obs.parquet"])
def test_a_truncated_or_missing_file_is_found_at_open(copied: Path, file: str) -> None:
    with open(copied / file, "r+b") as handle:
        handle.truncate((copied / file).stat().st_size - 1)
    with pytest.raises(InputError, match=f"{file}: .* bytes, the manifest says .* cut short"):
        Corpus.open(copied)
    (copied / file).unlink()
    with pytest.raises(InputError, match=f"{file}: missing"):
        Corpus.open(copied)


def test_a_damaged_header_is_an_input_error_even_unchecked(copied: Path) -> None:
    (copied / "cells-00001.arrow").write_bytes(b"\0\1\2" * 1000)
    with pytest.raises(InputError, match=r"cells-00001.arrow: not readable as an Arrow stream"):
        Corpus.open(copied, check=False)


def test_shards_of_another_corpus_or_swapped_are_found(copied: Path) -> None:
    one, two = copied / "cells-00000.arrow", copied / "cells-00003.arrow"
    swap = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(swap)
    with pytest.raises(InputError, match=r"cells-00000\.arrow"):
        Corpus.open(copied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format_version=2), "format version 2"),
        (lambda m: m.update(format="other"), "not the manifest of a corpus"),
        (lambda m: m.pop("shards"), "lacks shards"),
        (lambda m: m.update(content="0" * 64), "altered after the build"),
        (lambda m: m["genes"].pop("vocab_sha256"), "genes: lacks vocab_sha256"),
    ],
)
def test_a_manifest_that_is_foreign_newer_or_altered(copied: Path, change: object, message: str) -> None:
    text = json.loads((copied / "manifest.json").read_text())
    change(text)  # type: ignore[operator]
    (copied / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=message):
        Corpus.open(copied)


def test_what_is_no_corpus(tmp_path: Path, copied: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        Corpus.open(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds copy"):
        Corpus.open(tmp_path)
    (copied / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="not readable as JSON"):
        verify_corpus(copied)


def test_each_law_of_rows_is_checked(corpus: Corpus) -> None:
    batch = corpus.read(np.arange(40))
    genes, counts, start = batch.genes.copy(), batch.counts.copy(), batch.offsets[7]
    assert not any(broken.any() for _, broken in _laws(batch, N_GENES, 2))
    genes[start + 1] = genes[start]
    counts[start] = 0
    for change, law in (
        ({"genes": genes}, "strictly rise"),
        ({"counts": counts}, "stored zero"),
        ({"total": batch.total + np.uint32(1)}, "sum of counts"),
        ({"genes": batch.genes + np.uint16(N_GENES)}, "beyond the vocabulary"),
        ({"source": batch.source + np.uint16(2)}, "beyond the manifest's 2"),
    ):
        found = dict(_laws(dataclasses.replace(batch, **change), N_GENES, 2))
        broken = next(rows for text, rows in found.items() if law in text)
        assert broken[7]
        assert broken.sum() == (1 if law in ("strictly rise", "stored zero") else 40)


def test_verify_checks_laws_where_checksums_were_made_to_agree(copied: Path) -> None:
    name = "cells-00001.arrow"
    with pa.memory_map(str(copied / name)) as file:
        batches = list(pa.ipc.open_stream(file))
    wrong = batches[1].set_column(2, "total", pa.array(np.full(50, 1, np.uint32)))
    with pa.OSFile(str(copied / "new"), "wb") as sink, pa.ipc.new_stream(sink, wrong.schema) as writer:
        for batch in (batches[0], wrong, batches[2]):
            writer.write_batch(batch)
    os.replace(copied / "new", copied / name)
    text = json.loads((copied / "manifest.json").read_text())
    text["shards"][1] |= manifest.file_entry(copied / name)
    (copied / "manifest.json").write_text(json.dumps(text))
    with pytest.raises(InputError, match=rf"{name}: row 50 \(cell id \d+\): total is not the sum of counts"):
        verify_corpus(copied)


# Real data


@pytest.mark.realdata
def test_real_files_of_three_kinds_become_one_corpus(realdata: Path, tmp_path: Path) -> None:
    vocab = GeneVocab.from_hgnc(realdata / "annotation" / "hgnc_complete_set.txt.gz")
    rna = realdata / "rna"
    paths = [
        rna / "placenta_blood.h5ad",
        rna / "scp1884_gut.h5ad",
        realdata / "multiome" / "snare_h1_rna.h5ad",
    ]
    corpus = build_corpus(paths, tmp_path / "c", genes=vocab, obs_columns=["cell_type"])
    verify_corpus(corpus.path)
    dense_of = corpus.read(np.arange(corpus.n_cells)).to_csr(len(vocab))[np.argsort(corpus.cell_ids)]
    for number, source in enumerate(corpus.manifest["sources"]):
        rows = (corpus.obs["source"] == source["name"]).to_numpy()
        data = anndata.read_h5ad(paths[number])
        cells = data[corpus.obs["barcode"][rows].tolist()]
        # Genes whose symbol names a gene of the vocabulary and is not shared: compared one to one.
        tokens = vocab.resolve(cells.var_names.to_numpy(object)).tokens
        once = np.flatnonzero((tokens >= 0) & (np.bincount(tokens[tokens >= 0], minlength=len(vocab))[tokens] == 1))
        assert len(once) > 10_000
        assert (abs(dense_of[rows][:, tokens[once]] - sparse.csr_matrix(cells.X)[:, once])).sum() == 0
        assert source["genes"]["counts_kept"] > 0.8
    with pytest.raises(InputError, match="mouse"):
        build_corpus([paths[0], rna / "snare_p0_mouse_cortex_rna.h5ad"], tmp_path / "m", genes=vocab)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
