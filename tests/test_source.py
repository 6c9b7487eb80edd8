"""Every format of one matrix gives the same counts and names; what is not raw counts is refused by cell and gene."""

import gzip
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import io as scipy_io
from scipy import sparse

from expresser.corpus import blocks
from expresser.corpus.source import Source, open_source
from expresser.errors import InputError


def toy(counts: np.ndarray) -> ad.AnnData:
    """An AnnData with Ensembl ids, symbols and barcodes; counts as float32 CSR."""
    n_cells, n_genes = counts.shape
    return ad.AnnData(
        sparse.csr_matrix(counts.astype(np.float32)),
        obs=pd.DataFrame(index=[f"ACGTACGTACGTACG{'ACGT'[i % 4]}-{i + 1}" for i in range(n_cells)]),
        var=pd.DataFrame(
            {"gene_ids": [f"ENSG{100 + j:011d}" for j in range(n_genes)]}, index=[f"RPL{j + 1}" for j in range(n_genes)]
        ),
    )


COUNTS = np.random.default_rng(0).poisson(0.4, (23, 11))
COUNTS[4], COUNTS[:, 7], COUNTS[3, 2] = 0, 0, 70_000  # an empty cell, an unseen gene, a count beyond uint16


# ---- writers, one a format -------------------------------------------------------------------------------------------


def h5ad(adata: ad.AnnData, path: Path, store: Callable = sparse.csr_matrix, **options: object) -> Path:
    copy = adata.copy()
    copy.X = store(copy.X)
    copy.write_h5ad(path, **options)
    return path


def zarr_folder(adata: ad.AnnData, path: Path) -> Path:
    with warnings.catch_warnings():  # anndata announces a change of its default zarr version
        warnings.filterwarnings("ignore", message="Writing zarr v2", category=UserWarning)
        adata.write_zarr(path)
    return path


def tenx_h5(adata: ad.AnnData, path: Path, version: int = 3) -> Path:
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        matrix = sparse.csr_matrix(adata.X)
        group["data"], group["indices"], group["indptr"] = matrix.data.astype("i4"), matrix.indices, matrix.indptr
        group["shape"] = np.array(matrix.shape[::-1], dtype="i4")
        group["barcodes"] = adata.obs_names.to_numpy().astype("S")
        ids, names = adata.var["gene_ids"].to_numpy().astype("S"), adata.var_names.to_numpy().astype("S")
        if version == 2:
            group["genes"], group["gene_names"] = ids, names
        else:
            group["features/id"], group["features/name"] = ids, names
            types = adata.var.get("feature_types", pd.Series("Gene Expression", adata.var_names))
            group["features/feature_type"] = types.to_numpy().astype("S")
    return path


def tenx_mtx(adata: ad.AnnData, path: Path, version: int = 3, prefix: str = "") -> Path:
    path.mkdir()
    genes = pd.DataFrame({"id": adata.var["gene_ids"], "name": adata.var_names})
    if version == 3:
        genes["type"] = "Gene Expression"
    entries = sparse.coo_matrix(adata.X.T.astype(np.int64))
    order = np.random.default_rng(1).permutation(entries.nnz)  # the format promises no order
    entries = sparse.coo_matrix((entries.data[order], (entries.row[order], entries.col[order])), entries.shape)
    scipy_io.mmwrite(path / f"{prefix}matrix.mtx", entries, field="integer", symmetry="general")
    genes.to_csv(path / f"{prefix}{'features' if version == 3 else 'genes'}.tsv", sep="\t", header=False, index=False)
    (path / f"{prefix}barcodes.tsv").write_text("".join(f"{name}\n" for name in adata.obs_names))
    if version == 3:
        for plain in list(path.iterdir()):
            plain.with_name(plain.name + ".gz").write_bytes(gzip.compress(plain.read_bytes(), mtime=0))
            plain.unlink()
    return path


def table(adata: ad.AnnData, path: Path, transposed: bool, corner: bool = True, **options: object) -> Path:
    frame = pd.DataFrame(adata.X.toarray().astype(int), adata.obs_names, adata.var["gene_ids"].to_numpy())
    frame = frame.T if transposed else frame
    if corner:
        frame.to_csv(path, **options)
    else:  # as R's write.table: the line of names is one shorter
        text = "".join(f'"{name}",{",".join(map(str, row))}\n' for name, row in zip(frame.index, frame.to_numpy()))
        path.write_text(",".join(f'"{c}"' for c in frame.columns) + "\n" + text)
    return path


def loom(adata: ad.AnnData, path: Path) -> Path:
    """By the file format's description (loompy is not asked for)."""
    with h5py.File(path, "w") as file:
        file["matrix"] = adata.X.toarray().T
        file["col_attrs/CellID"], file["row_attrs/Gene"] = list(adata.obs_names), list(adata.var_names)
        file["row_attrs/Accession"] = adata.var["gene_ids"].to_numpy().astype("S")
        file.create_group("layers")
    return path


WRITERS: dict[str, Callable[[ad.AnnData, Path], Path | ad.AnnData]] = {
    "h5ad csr": lambda a, d: h5ad(a, d / "a.h5ad", compression="gzip"),
    "h5ad csc": lambda a, d: h5ad(a, d / "b.h5ad", sparse.csc_matrix),
    "h5ad dense": lambda a, d: h5ad(a, d / "c.h5ad", lambda x: x.toarray()),
    "zarr": lambda a, d: zarr_folder(a, d / "a.zarr"),
    "10x h5 v3": lambda a, d: tenx_h5(a, d / "v3.h5"),
    "10x h5 v2": lambda a, d: tenx_h5(a, d / "v2.h5", version=2),
    "10x mtx v3": lambda a, d: tenx_mtx(a, d / "mtx3"),
    "10x mtx v2": lambda a, d: tenx_mtx(a, d / "mtx2", version=2, prefix="GSM1_"),
    "csv": lambda a, d: table(a, d / "a.csv", transposed=False),
    "csv.gz of R": lambda a, d: table(a, d / "b.csv.gz", transposed=True),
    "tsv of genes": lambda a, d: table(a, d / "c.tsv", transposed=True, sep="\t"),
    "csv without corner": lambda a, d: table(a, d / "d.csv", transposed=True, corner=False),
    "loom": lambda a, d: loom(a, d / "a.loom"),
    "csr in memory": lambda a, d: a,
    "csc in memory": lambda a, d: ad.AnnData(sparse.csc_matrix(a.X), a.obs, a.var),
    "dense in memory": lambda a, d: ad.AnnData(a.X.toarray().astype(np.uint32), a.obs, a.var),
    "backed": lambda a, d: ad.read_h5ad(h5ad(a, d / "d.h5ad"), backed="r"),
}


def total(source: Source, rows: int = 4096) -> np.ndarray:
    """All counts of a source, after checking what is promised of each chunk."""
    found = []
    for first, chunk in source.chunks(rows):
        assert first == sum(map(len, found))
        assert chunk.format == "csr"
        assert chunk.dtype == np.int64
        assert chunk.has_sorted_indices
        assert chunk.has_canonical_format
        assert (chunk.data > 0).all()
        assert chunk.shape == (min(rows, source.n_cells - first), source.n_genes)
        found.append(chunk.toarray())
    return np.concatenate(found)


@pytest.mark.parametrize("how", WRITERS)
def test_every_format_gives_the_same_cells_genes_and_counts(how: str, tmp_path: Path) -> None:
    adata = toy(COUNTS)
    source = open_source(WRITERS[how](adata, tmp_path))
    assert (source.n_cells, source.n_genes) == COUNTS.shape
    assert list(source.obs.index) == list(adata.obs_names)
    ids = next(iter(source.gene_columns.values()))
    assert list(ids) == list(adata.var["gene_ids"])
    assert list(source.guess_vocab().ids) == list(adata.var["gene_ids"])
    if "csv" not in how and "tsv" not in how:
        assert list(source.gene_columns["var_names"]) == list(adata.var_names)
        assert list(source.guess_vocab().symbols) == list(adata.var_names)
    for rows in (1, 5, 23, 4096):
        np.testing.assert_array_equal(total(source, rows), COUNTS)


@settings(max_examples=12, deadline=None)
@given(
    counts=hnp.arrays(
        np.int64,
        st.tuples(st.integers(1, 7), st.integers(1, 6)),
        elements=st.one_of(st.just(0), st.integers(0, 3), st.just(2**24)),  # 2^24 is exact in the toy's float32
    ),
    rows=st.integers(1, 9),
    entries=st.integers(1, 12),
)
def test_formats_chunks_and_buckets_never_matter(
    tmp_path_factory: pytest.TempPathFactory, counts: np.ndarray, rows: int, entries: int
) -> None:
    adata, folder = toy(counts), tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "ENTRIES", entries)  # so small that column orders go through files
        for write in WRITERS.values():
            np.testing.assert_array_equal(total(open_source(write(adata, folder)), rows), counts)


def test_names_of_sources_and_duplicate_barcodes_and_genes_are_kept() -> None:
    adata = toy(COUNTS)
    adata.obs_names = ["same"] * len(adata)
    adata.var_names = ["RPL1"] * adata.n_vars
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(Observation|Variable) names are not unique", category=UserWarning)
        source = open_source(adata, name="twice")
    assert source.name == "twice"
    assert set(source.obs.index) == {"same"}
    np.testing.assert_array_equal(total(source), COUNTS)


# ---- what is read ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["h5ad", "zarr", "memory"])
def test_layer_and_raw_are_read_with_their_own_genes(backend: str, tmp_path: Path) -> None:
    adata = toy(COUNTS)
    adata.raw = adata.copy()
    adata = adata[:, :6].copy()
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    data = {
        "h5ad": lambda: h5ad(adata, tmp_path / "a.h5ad", np.asarray),
        "zarr": lambda: zarr_folder(adata, tmp_path / "a.zarr"),
        "memory": lambda: adata,
    }[backend]()
    np.testing.assert_array_equal(total(open_source(data, layer="raw")), COUNTS)
    np.testing.assert_array_equal(total(open_source(data, layer="counts")), COUNTS[:, :6])
    with pytest.raises(InputError, match=r"layer 'counts' holds whole .*pass --layer counts.*raw holds .*--layer raw"):
        total(open_source(data))
    with pytest.raises(InputError, match=r"no layer 'spliced'\. It has: 'counts', 'raw'"):
        open_source(data, layer="spliced")


def test_layers_of_loom_are_read(tmp_path: Path) -> None:
    path = loom(toy(COUNTS), tmp_path / "a.loom")
    with h5py.File(path, "r+") as file:
        file["layers/spliced"] = COUNTS.T
        file["matrix"][...] = np.log1p(COUNTS.T)
    np.testing.assert_array_equal(total(open_source(path, layer="spliced")), COUNTS)
    with pytest.raises(InputError, match="pass --layer spliced"):
        total(open_source(path))
    with pytest.raises(InputError, match="no layer 'x'"):
        open_source(path, layer="x")


@pytest.mark.parametrize("kind", ["10x_h5", "h5ad"])
def test_features_that_are_not_genes_are_left_out(kind: str, tmp_path: Path) -> None:
    adata = toy(COUNTS)
    adata.var["feature_types"] = ["Gene Expression", "Antibody Capture"] * 5 + ["Gene Expression"]
    source = open_source(
        tenx_h5(adata, tmp_path / "a.h5") if kind == "10x_h5" else h5ad(adata, tmp_path / "a.h5ad", sparse.csc_matrix)
    )
    assert source.n_genes == 6
    assert list(source.gene_columns["gene_ids"]) == list(adata.var["gene_ids"][::2])
    np.testing.assert_array_equal(total(source, 4), COUNTS[:, ::2])
    adata.var["feature_types"] = "Peaks"
    with pytest.raises(InputError, match="no features of type 'Gene Expression', only \\['Peaks'\\]"):
        open_source(adata)


def test_columns_that_may_name_genes_come_ensembl_ids_first() -> None:
    adata = toy(COUNTS)
    adata.var["chrom"] = "chr1"
    adata.var["mean"] = 1.5
    adata.var["feature_name"] = pd.Categorical([f"G{j}" for j in range(11)])
    adata.var["ensembl_id"] = [f"ENSG{j:011d}.{j}" for j in range(11)]
    adata.var["copy"] = adata.var_names
    assert list(open_source(adata).gene_columns) == ["gene_ids", "ensembl_id", "var_names", "feature_name"]
    adata.var_names = adata.var.pop("gene_ids")
    source = open_source(adata)
    assert list(source.gene_columns) == ["var_names", "ensembl_id", "feature_name", "copy"]
    assert source.guess_vocab().symbols[2] == "G2"
    assert open_source(ad.AnnData(COUNTS, var=pd.DataFrame(index=list("ABCDEFGHIJK")))).guess_vocab().ids[1] == "B"


def test_obs_is_plain_text_and_numbers(tmp_path: Path) -> None:
    adata = toy(COUNTS[:4])
    adata.obs["type"] = pd.Categorical(["T", None, "B", "nan"])
    adata.obs["cluster"] = pd.Categorical([1, 2, 1, 2])
    adata.obs["n"] = [1.5, 2, 3, np.nan]
    for source in (open_source(adata), open_source(h5ad(adata, tmp_path / "a.h5ad"))):
        assert source.obs["type"].tolist() == ["T", None, "B", None]
        assert source.obs["cluster"].tolist() == ["1", "2", "1", "2"]
        assert source.obs["n"].dtype == np.float64
        assert source.obs.index.dtype == object


def test_repeated_entries_are_summed_and_stored_zeros_dropped(tmp_path: Path) -> None:
    adata = toy(np.array([[3, 0, 5]]))
    matrix = sparse.csr_matrix((np.array([5.0, 1, 2, 0]), np.array([2, 0, 0, 1]), np.array([0, 4])), shape=(1, 3))
    np.testing.assert_array_equal(total(open_source(ad.AnnData(matrix, adata.obs, adata.var))), [[3, 0, 5]])
    folder = tenx_mtx(adata, tmp_path / "mtx", version=2)
    head = "%%MatrixMarket matrix coordinate integer general\n% by hand\n"
    (folder / "matrix.mtx").write_text(head + "3 1 4\n3 1 5\n1 1 1\n1 1 2\n2 1 0\n")
    np.testing.assert_array_equal(total(open_source(folder)), [[3, 0, 5]])
    (folder / "matrix.mtx").write_text(head + "3 1 2\n1 1 2\n1 1 -1\n")
    with pytest.raises(InputError, match="must not be negative"):  # although the sum is 1
        total(open_source(folder))


def test_text_tables_of_other_shapes(tmp_path: Path) -> None:
    adata = toy(COUNTS)
    path = tmp_path / "a.txt"
    frame = pd.DataFrame(COUNTS.T, adata.var["gene_ids"], adata.obs_names)
    frame.insert(0, "symbol", [f"{name} ({j}, x)" for j, name in enumerate(adata.var_names)])
    frame.to_csv(path, sep=";")
    source = open_source(path)  # a second column of names, with the other delimiter inside
    assert list(source.gene_columns) == ["var_names", "symbol"]
    np.testing.assert_array_equal(total(source, 3), COUNTS)

    pd.DataFrame(COUNTS, [f"row{i}" for i in range(23)], [f"x{j}" for j in range(11)]).to_csv(path)
    with pytest.raises(InputError, match=r"cannot tell .*\(row0, row1, row2, …\).*orientation='genes_x_cells'"):
        open_source(path)
    np.testing.assert_array_equal(total(open_source(path, orientation="cells_x_genes")), COUNTS)
    np.testing.assert_array_equal(total(open_source(path, orientation="genes_x_cells")), COUNTS.T)

    path.write_text("gene\tA1\tA2\nx\t1\t0\ny\t0\t3\n")  # the corner tells
    np.testing.assert_array_equal(total(open_source(path)), [[1, 0], [0, 3]])
    path.write_text('"A1" "A2"\n"TP53" 1 0\n"MYC" "0" 3\n')  # R's own default
    np.testing.assert_array_equal(total(open_source(path)), [[1, 0], [0, 3]])
    path.write_bytes(b"\xef\xbb\xbfcell,TP53,MYC\r\nA1,1,0\r\nA2,1e3,3\r\n")  # a spreadsheet's
    np.testing.assert_array_equal(total(open_source(path)), [[1, 0], [1000, 3]])


def test_a_folder_of_cells_by_genes_is_told_by_its_sizes(tmp_path: Path) -> None:
    folder = tenx_mtx(toy(COUNTS), tmp_path / "mtx", version=2)
    scipy_io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(COUNTS))
    np.testing.assert_array_equal(total(open_source(folder)), COUNTS)
    np.testing.assert_array_equal(total(open_source(folder / "matrix.mtx")), COUNTS)


# ---- memory, files, identity -----------------------------------------------------------------------------------------


@pytest.fixture
def slices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of everything that is read from the numbers of a matrix in HDF5."""
    sizes: list[int] = []
    read = h5py.Dataset.__getitem__

    def spy(self: h5py.Dataset, key: object, *more: object) -> object:
        value = read(self, key, *more)
        if self.name.split("/")[-1] in {"data", "indices", "X", "matrix"}:
            sizes.append(np.size(value))
        return value

    monkeypatch.setattr(h5py.Dataset, "__getitem__", spy)
    return sizes


def test_memory_is_bounded_by_the_chunk(slices: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.random.default_rng(2).poisson(0.5, (300, 40))
    adata = toy(counts)
    most = max(np.count_nonzero(counts[i : i + 10]) for i in range(0, 300, 10))
    for path in (h5ad(adata, tmp_path / "a.h5ad"), tenx_h5(adata, tmp_path / "a.h5")):
        slices.clear()
        np.testing.assert_array_equal(total(open_source(path), 10), counts)
        assert len(slices) == 60
        assert max(slices) == most

    monkeypatch.setattr(blocks, "DENSE_BYTES", 7 * 40 * 4)
    for path in (h5ad(adata, tmp_path / "d.h5ad", lambda x: x.toarray()), loom(adata, tmp_path / "a.loom")):
        slices.clear()
        np.testing.assert_array_equal(total(open_source(path), 100), counts)
        assert max(slices) == 7 * 40

    monkeypatch.setattr(blocks, "ENTRIES", 500)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = h5ad(adata, tmp_path / "c.h5ad", sparse.csc_matrix)
    slices.clear()
    chunks = open_source(path).chunks(20)
    next(chunks)
    assert max(slices) == 500 // 4
    assert list((tmp_path / "scratch").iterdir())
    chunks.close()
    assert not list((tmp_path / "scratch").iterdir())  # although not read to its end
    np.testing.assert_array_equal(total(open_source(path), 20), counts)
    assert not list((tmp_path / "scratch").iterdir())


def test_a_full_temporary_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ENTRIES", 5)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="Set TMPDIR"):
        total(open_source(h5ad(toy(COUNTS), tmp_path / "a.h5ad", sparse.csc_matrix)))


def test_files_are_closed(tmp_path: Path) -> None:
    path = h5ad(toy(COUNTS), tmp_path / "a.h5ad")
    source = open_source(path)
    with h5py.File(path, "r+"):  # HDF5 refuses this while the file is open for reading
        pass
    chunks = source.chunks(2)
    next(chunks)
    chunks.close()
    with h5py.File(path, "r+"):
        pass
    total(source)
    with h5py.File(path, "r+"):
        pass


def test_sha256_is_of_the_content(tmp_path: Path) -> None:
    adata = toy(COUNTS)
    other = COUNTS.copy()
    other[0, 0] += 1
    storages = ("csr in memory", "csc in memory", "dense in memory")
    memory = {open_source(WRITERS[how](adata, tmp_path)).sha256() for how in storages}
    assert len(memory) == 1
    renamed = adata.copy()
    renamed.obs_names = [f"x{name}" for name in adata.obs_names]
    assert memory.isdisjoint({open_source(toy(other)).sha256(), open_source(renamed).sha256()})

    path = h5ad(adata, tmp_path / "same.h5ad")
    (tmp_path / "copy.h5ad").write_bytes(path.read_bytes())
    assert open_source(path).sha256() == open_source(tmp_path / "copy.h5ad").sha256()
    for write in (tenx_mtx, zarr_folder):
        folders = [write(a, tmp_path / f"{write.__name__}{i}.zarr") for i, a in enumerate((adata, adata, toy(other)))]
        a, b, c = (
            open_source(f if write is zarr_folder else f.rename(f.with_suffix(".mtx_folder"))).sha256() for f in folders
        )
        assert a == b != c


# ---- what is refused -------------------------------------------------------------------------------------------------

OFFENCES = {
    "NaN": (np.nan, "counts must be finite", "NaN often comes from joining"),
    "infinite": (np.inf, "counts must be finite", "Raw counts are needed"),
    "negative": (-2, "counts must not be negative", "Raw counts are needed"),
    "fraction": (1.5, "counts must be whole numbers", "looks log-normalised"),
    "too large": (2.0**32, r"counts must be below 2\^32", "Raw counts are needed"),
}


@pytest.mark.parametrize("what", OFFENCES)
@pytest.mark.parametrize("how", ["h5ad csr", "h5ad csc", "h5ad dense", "csr in memory", "loom"])
def test_the_first_value_that_is_no_raw_count_is_named(what: str, how: str, tmp_path: Path) -> None:
    value, rule, cause = OFFENCES[what]
    adata = toy(np.minimum(COUNTS, 9))
    dense = adata.X.toarray()
    dense[[7, 7, 9], [5, 8, 1]] = value  # in column order the last of these comes first
    adata.X = sparse.csr_matrix(dense)
    source = open_source(WRITERS[how](adata, tmp_path))
    chunks = source.chunks(5)
    if how != "h5ad csc":  # sorted and proven a bucket at a time
        assert next(chunks)[0] == 0  # the rows before the offence are good
    with pytest.raises(
        InputError, match=rf"{rule}.* \(first: cell '{adata.obs_names[7]}', row 7, gene 'RPL6', value"
    ) as e:
        list(chunks)
    assert cause in str(e.value)
    assert str(source.path or "AnnData 'anndata': X") in str(e.value)


def test_values_below_two_to_the_32_are_counts() -> None:
    for dtype in (np.float64, np.int64, np.uint32):
        adata = ad.AnnData(np.array([[2**32 - 1, 0]], dtype=dtype))
        assert total(open_source(adata)).tolist() == [[2**32 - 1, 0]]
    for dtype in (np.int8, np.uint8, np.float16, bool):
        assert total(open_source(ad.AnnData(np.array([[1, 0]], dtype=dtype)))).tolist() == [[1, 0]]
    twice = sparse.csr_matrix((np.array([2**31, 2**31]), np.array([0, 0]), np.array([0, 2])), shape=(1, 2))
    with pytest.raises(InputError, match=f"counts must be below .*value {2**32}"):
        total(open_source(ad.AnnData(twice)))


def test_what_was_done_to_the_counts_is_told() -> None:
    adata = toy(np.random.default_rng(3).poisson(2.0, (20, 15)) + 1)
    counts = adata.X.toarray()
    per_ten_thousand = counts / counts.sum(1, keepdims=True) * 1e4
    scaled = (counts - counts.mean(0)) / counts.std(0)
    for x, says in (
        (np.log1p(per_ten_thousand), r"looks log-normalised \(log1p of 10000 per cell\)"),
        (np.log2(counts + 1), r"looks log-normalised\."),
        (per_ten_thousand, "looks normalised to 10000 per cell"),
        (scaled, "looks scaled"),
    ):
        adata.X = x
        with pytest.raises(InputError, match=f"{says}.* Read the file from before normalisation"):
            total(open_source(adata))


def test_text_where_counts_belong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in ("gene,A1,A2\nTP53,1,0\nMYC,2,n/d\n", "cell,TP53,MYC\nA1,0,1\nMYC,2,n/d\n"):
        path.write_text(text)
        with pytest.raises(
            InputError, match=r"a\.csv: counts must be numbers \(first: row 'MYC', column '(A2|MYC)', value 'n/d'"
        ):
            total(open_source(path))
    path.write_text("gene,A1,A2\nTP53,1,0\nMYC,2,\n")
    with pytest.raises(InputError, match=r"counts must be finite \(first: cell 'A2', row 1, gene 'MYC', value nan\)"):
        total(open_source(path))
    path.write_text("gene,A1,A2\nTP53,1,0\nMYC,2,3,4\n")
    with pytest.raises(InputError, match=r"a\.csv: cannot be read as a table: .*Expected 3 fields in line 3, saw 4"):
        total(open_source(path))
    path.write_text("gene,A1,A2\nTP53,1,0\nMYC,2\n")
    with pytest.raises(InputError, match=r"gene 'MYC', value nan"):
        total(open_source(path))
    path.write_text("gene,A1,A2,\nTP53,1,0,\nMYC,2,3,\n")  # a comma too many, throughout
    with pytest.raises(InputError, match=r"counts must be finite"):
        total(open_source(path))
    path.write_text("a list of things\nof no table\n")
    with pytest.raises(InputError, match="do not have equally many fields"):
        open_source(path)


def cut(path: Path, share: float = 0.7) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("how", ["h5ad csr", "10x h5 v3", "loom", "csv.gz of R"])
def test_a_truncated_file_is_refused(how: str, share: float, tmp_path: Path) -> None:
    path = WRITERS[how](toy(COUNTS), tmp_path)
    cut(path, share)
    with pytest.raises(InputError, match=f"{path.name}: (cannot be read as .*complete|is empty)"):
        total(open_source(path))


@pytest.mark.parametrize("how", ["10x mtx v3", "10x mtx v2"])
@pytest.mark.parametrize("part", ["matrix", "barcodes", "features|genes"])
def test_a_truncated_or_incomplete_10x_folder_is_refused(how: str, part: str, tmp_path: Path) -> None:
    folder = WRITERS[how](toy(COUNTS), tmp_path)
    path = next(p for p in folder.iterdir() if any(word in p.name for word in part.split("|")))
    cut(path, 0.6)
    with pytest.raises(InputError, match=r"cannot be read|copy it again|three files must come from one run"):
        total(open_source(folder))
    path.unlink()
    with pytest.raises(InputError, match=r"there is no .* beside|this one has 0"):
        open_source(folder)


def test_an_incomplete_zarr_folder_is_refused(tmp_path: Path) -> None:
    for i, key in enumerate(("data", "indices", "indptr")):
        folder = zarr_folder(toy(np.tile(COUNTS, (4, 4))), tmp_path / f"{i}.zarr")
        chunks = [file for file in (folder / "X" / key).rglob("*") if file.is_file() and file.name.lstrip("c0") == ""]
        chunks[0].unlink()  # "0", or "c/0" of zarr's format 3
        with pytest.raises(InputError, match=f"1 of 1 chunks of /X/{key} are missing|cannot be read as zarr: indptr"):
            total(open_source(folder))


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path) -> None:
    adata = toy(COUNTS)
    good, tenx = h5ad(adata, tmp_path / "a.h5ad"), tenx_h5(adata, tmp_path / "b.h5")
    for suffix in ("h5ad", "h5", "loom"):
        text = tmp_path / f"text.{suffix}"
        text.write_text("cell,TP53\nA1,1\n")
        with pytest.raises(InputError, match=rf"text\.{suffix}: cannot be read as"):
            open_source(text)
    (tmp_path / "c.h5").write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"no 10x file.*name it \.h5ad"):
        open_source(tmp_path / "c.h5")
    (tmp_path / "d.h5ad").write_bytes(tenx.read_bytes())
    with pytest.raises(
        InputError, match=r"no AnnData file: it has no obs and no var but \['matrix'\].*must end in \.h5"
    ):
        open_source(tmp_path / "d.h5ad")
    (tmp_path / "e.loom").write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"e\.loom: cannot be read as loom"):
        open_source(tmp_path / "e.loom")
    (tmp_path / "f.csv").write_bytes(good.read_bytes())
    with pytest.raises(InputError, match=r"f\.csv: "):
        open_source(tmp_path / "f.csv")
    (tmp_path / "g.csv.gz").write_text("cell,TP53\nA1,1\n")
    with pytest.raises(InputError, match=r"g\.csv\.gz: cannot be read"):
        open_source(tmp_path / "g.csv.gz")


def test_a_corrupt_index_is_refused_before_scipy_sees_it(tmp_path: Path) -> None:
    for store in (sparse.csr_matrix, sparse.csc_matrix):
        for key, value in (("indices", 1_000_000), ("indices", -1), ("indptr", 1_000_000)):
            path = h5ad(toy(COUNTS), tmp_path / "a.h5ad", store)
            with h5py.File(path, "r+") as file:
                file["X"][key][3] = value
            with pytest.raises(InputError, match=r"a\.h5ad: cannot be read as h5ad"):
                total(open_source(path))


def test_matrices_and_names_must_agree(tmp_path: Path) -> None:
    path = h5ad(toy(COUNTS), tmp_path / "a.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs"]
        file.move("var", "obs")
        ad.io.write_elem(file, "var", pd.DataFrame(index=list("abc")))
    with pytest.raises(InputError, match="X is 23 x 11, but obs has 11 rows and var 3"):
        open_source(path)
    path = tenx_h5(toy(COUNTS), tmp_path / "a.h5")
    with h5py.File(path, "r+") as file:
        file["matrix/shape"][...] = [11, 24]
    with pytest.raises(InputError, match=r"\(11, 24\).*11 gene names and 23 barcodes"):
        open_source(path)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_read_is_refused(shape: tuple[int, int], tmp_path: Path) -> None:
    adata = toy(np.zeros(shape, dtype=int))
    for data in (
        adata,
        h5ad(adata, tmp_path / "a.h5ad"),
        tenx_h5(adata, tmp_path / "a.h5"),
        loom(adata, tmp_path / "a.loom"),
    ):
        with pytest.raises(InputError, match=f"is empty: {shape[0]} cells x {shape[1]} genes"):
            open_source(data)
    for how in ("10x mtx v2", "csv", "csv.gz of R"):
        with pytest.raises(InputError, match=r"is empty|equally many fields"):
            open_source(WRITERS[how](adata, tmp_path))


def test_unknown_names_and_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file or folder\. Accepted: \.h5ad, \.h5 \(10x\)"):
        open_source(tmp_path / "nowhere.h5ad")
    (tmp_path / "a.rds").write_text("")
    with pytest.raises(InputError, match=r"does not say what it is\. Accepted: .*\.loom"):
        open_source(tmp_path / "a.rds")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has one matrix\.mtx.*this one has 0"):
        open_source(tmp_path / "empty")
    path = tenx_h5(toy(COUNTS), tmp_path / "a.h5")
    with pytest.raises(InputError, match="no layer 'counts': leave --layer away"):
        open_source(path, layer="counts")
    with pytest.raises(InputError, match="orientation is for CSV"):
        open_source(path, orientation="cells_x_genes")
    with pytest.raises(InputError, match="rows must be at least 1"):
        next(open_source(path).chunks(0))
    with h5py.File(tenx_h5(toy(COUNTS), tmp_path / "two.h5", version=2), "r+") as file:
        file.copy("GRCh38", "mm10")
    with pytest.raises(InputError, match=r"holds 2 genomes \(GRCh38, mm10\)"):
        open_source(tmp_path / "two.h5")
    with pytest.raises(InputError, match="there is no matrix X"):
        open_source(ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["b"])))
    folder = tenx_mtx(toy(COUNTS), tmp_path / "mtx", version=2)
    for line in ("%%MatrixMarket matrix array integer general", "cell,gene,count"):
        (folder / "matrix.mtx").write_text(f"{line}\n1 1 1\n")
        with pytest.raises(InputError, match=r"matrix\.mtx: begins with"):
            open_source(folder)
    (folder / "matrix.mtx").write_text("%%MatrixMarket matrix coordinate integer general\n%\n")
    with pytest.raises(InputError, match=r"matrix\.mtx: its size line is ''"):
        open_source(folder)


# ---- real data -------------------------------------------------------------------------------------------------------

REAL = {
    "rna/pbmc3k.h5ad": (2_700, 13_714),
    "rna/mudan_pbmcA.h5ad": (2_896, 13_939),
    "rna/scp1884_gut.h5ad": (1_020, 18_708),
    "rna/placenta_blood.h5ad": (220, 18_357),
    "rna/sc_mixology/sc_celseq2.count.csv.gz": (274, 28_204),
    "rna/sc_mixology/sc_dropseq.count.csv.gz": (225, 15_127),
    "rna/sc_mixology/sc_celseq2_5cl_p1.count.csv.gz": (297, 15_564),
    "rna/snare_cellline_rna.h5ad": (1_047, 18_666),
    "rna/snare_p0_mouse_cortex_rna.h5ad": (5_081, 19_322),
    "multiome/bmmc_setA_rna.h5ad": (500, 1_134),
    "multiome/bmmc_setB_rna.h5ad": (500, 600),
    "multiome/scicar_a549_rna.h5ad": (2_641, 1_185),
    "multiome/snare_h1_rna.h5ad": (385, 18_666),
    "cite/pbmc_5k_protein_v3.h5ad": (200, 16_581),
}
MEDIAN_UMI = {"pbmc3k": 2_196, "scp1884_gut": 2_536, "placenta_blood": 6_838, "snare_cellline_rna": 508}


@pytest.mark.realdata
@pytest.mark.parametrize("file", REAL)
def test_real_files_are_raw_counts_of_the_size_their_readme_says(file: str, realdata: Path) -> None:
    source = open_source(realdata / file)
    assert (source.n_cells, source.n_genes) == REAL[file]
    totals = np.concatenate([np.asarray(chunk.sum(axis=1)).ravel() for _, chunk in source.chunks()])
    assert len(totals) == source.n_cells
    assert source.guess_vocab().ids[0].startswith("ENSG") == ("mixology" in file or "bmmc" in file)
    assert np.median(totals) == pytest.approx(MEDIAN_UMI.get(source.name, np.median(totals)), abs=1)


@pytest.mark.realdata
def test_real_files_read_as_anndata_reads_them(realdata: Path) -> None:
    path = realdata / "rna" / "scp1884_gut.h5ad"
    adata = ad.read_h5ad(path)
    source = open_source(path)
    ours = sparse.vstack([chunk for _, chunk in source.chunks(300)])
    assert (ours != adata.X).nnz == 0
    assert list(source.obs.index) == list(adata.obs_names)
    assert (
        open_source(adata).sha256()
        == open_source(ad.AnnData(sparse.csc_matrix(adata.X), adata.obs, adata.var)).sha256()
    )
    assert source.obs["Celltype"].nunique() == 68


@pytest.mark.realdata
def test_unlabelled_cells_of_pbmc3k_have_no_label(realdata: Path) -> None:
    assert open_source(realdata / "rna" / "pbmc3k.h5ad").obs["cell_type"].isna().sum() == 62


@pytest.mark.realdata
def test_a_table_of_metadata_is_refused(realdata: Path) -> None:
    with pytest.raises(InputError, match="table of counts, and not of metadata"):
        total(open_source(realdata / "rna" / "sc_mixology" / "sc_celseq2.metadata.csv.gz"))
