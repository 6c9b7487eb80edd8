"""Laws about the readers of cells: AnnData in memory, h5ad, zarr, 10x, loom, CSV; and the corpus made of them."""

import gzip
import io
import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import strategies as some
from fuzzing import refusal, target
from hypothesis import strategies as st
from scipy import sparse
from strategies import Cells

from expresser.corpus.build import build_corpus
from expresser.corpus.source import open_source
from expresser.corpus.store import Corpus
from translate.reading import read_measured

layers = st.sampled_from([None, None, None, "counts", "absent"])


def _checked(given: Any, cells: Cells, layer: str | None, rows: int, *, name: str | Path) -> bool:
    """The law of all readers of cells: read to the last count, or refused where the drawn cells are no raw counts."""
    wanted = cells.counts.get(layer)
    expected = wanted is not None and wanted.raw and len(cells.barcodes) and len(cells.genes)
    with refusal(name) as refused:
        source = open_source(given, layer=layer)
        assert source.obs.index.tolist() == cells.barcodes
        assert source._names.tolist() == cells.genes
        _same_counts(list(source.chunks(rows)), cells, layer)
    if refused:
        assert not expected, f"refused, but nothing is wrong with it: {refused[0]}"
        return False
    assert expected, "read, but these are no raw counts"
    return True


def _same_counts(chunks: list[tuple[int, sparse.csr_matrix]], cells: Cells, layer: str | None) -> None:
    found = {}
    for first, block in chunks:
        assert block.dtype == np.int64
        assert block.has_canonical_format
        entries = block.tocoo()
        found |= {
            (first + i, j): v for i, j, v in zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist())
        }
    assert found == cells.counts[layer].sums()


@target("AnnData in memory", cells=some.cells(), layer=layers, rows=st.integers(1, 5))
def anndata_in_memory(folder: Path, cells: Cells, layer: str | None, rows: int) -> bool:
    return _checked(cells.made(), cells, layer, rows, name="AnnData")


@target("h5ad", cells=some.cells(names=some.stored_names, with_obs=True), layer=layers, rows=st.integers(1, 5))
def h5ad(folder: Path, cells: Cells, layer: str | None, rows: int) -> bool:
    path = folder / "a.h5ad"
    for name, kind in cells.kinds.items():  # a column of nothing but None is beyond anndata's writer
        cells.obs[name] = ["" if value is None and kind == "object" else value for value in cells.obs[name]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.made().write_h5ad(path)
    return _checked(path, cells, layer, rows, name=path)


@target("zarr", cells=some.cells(names=some.stored_names, repeats=False), layer=layers, rows=st.integers(1, 5))
def zarr_folder(folder: Path, cells: Cells, layer: str | None, rows: int) -> bool:
    path = folder / "a.zarr"
    for (
        held
    ) in cells.counts.values():  # zarr leaves out chunks of zeros, which are taken for lost ones in a sparse matrix
        held.entries = [entry for entry in held.entries if entry[2] != 0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cells.made().write_zarr(path)
    return _checked(path, cells, layer, rows, name=path)


def _of_integers(cells: Cells) -> sparse.csr_matrix:
    rows, columns, values = zip(*cells.counts[None].entries) if cells.counts[None].entries else ((), (), ())
    data = np.array(values, dtype=cells.counts[None].dtype)
    return sparse.csr_matrix((data, (rows, columns)), shape=cells.counts[None].shape)


@st.composite
def flat(draw: Any, **more: Any) -> Cells:
    """Cells with one matrix, sorted and without repeats, of a type that scipy keeps."""
    found = draw(some.cells(names=some.stored_names, repeats=False, **more).filter(lambda c: set(c.counts) == {None}))
    found.counts[None].storage = "csr"
    return found


def _tenx(path: Path, cells: Cells, version: int, index: str, shape: tuple[int, int] | None = None) -> None:
    matrix = _of_integers(cells)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix" if version == 3 else "GRCh38")
        group["data"] = matrix.data
        group["indices"], group["indptr"] = matrix.indices.astype(index), matrix.indptr.astype(index)
        group["shape"] = np.array(shape or matrix.shape[::-1], dtype=index)
        names = {key: [name.encode() for name in of] for key, of in (("cells", cells.barcodes), ("genes", cells.genes))}
        text = h5py.string_dtype()
        group.create_dataset("barcodes", data=np.array(names["cells"], dtype=object), dtype=text)
        for key in ("genes", "gene_names") if version == 2 else ("features/id", "features/name"):
            group.create_dataset(key, data=np.array(names["genes"], dtype=object), dtype=text)


@target(
    "10x h5",
    cells=flat().filter(lambda c: c.counts[None].dtype not in ("f2", "bool")),
    version=st.sampled_from([2, 3]),
    index=st.sampled_from(["i4", "i8", "u4", "u8"]),
    rows=st.integers(1, 5),
)
def tenx_h5(folder: Path, cells: Cells, version: int, index: str, rows: int) -> bool:
    path = folder / "a.h5"
    _tenx(path, cells, version, index)
    return _checked(path, cells, None, rows, name=path)


@target("loom", cells=flat(), rows=st.integers(1, 5))
def loom(folder: Path, cells: Cells, rows: int) -> bool:
    path = folder / "a.loom"
    with h5py.File(path, "w") as file:
        dense = np.zeros(cells.counts[None].shape, cells.counts[None].dtype)
        for i, j, v in cells.counts[None].entries:
            dense[i, j] = v
        file["matrix"] = dense.T
        text = h5py.string_dtype()
        for key, of in (("col_attrs/CellID", cells.barcodes), ("row_attrs/Gene", cells.genes)):
            file.create_dataset(key, data=np.array(of, dtype=object), dtype=text)
        file.create_group("layers")
    return _checked(path, cells, None, rows, name=path)


# A name in a tab-separated file has no tab and no end of line, and is not of blanks alone.
_one_line = some.stored_names.filter(lambda name: name.strip() != "" and not set("\t\n\r\ufeff") & set(name))


@st.composite
def texts(draw: Any, names: st.SearchStrategy[str]) -> Cells:
    n_cells, n_genes = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    held = draw(some.counts(n_cells, n_genes, repeats=False, dtypes=("i8", "f8")))
    held.storage = "csr"
    each = (draw(st.lists(names, min_size=n, max_size=n)) for n in (n_cells, n_genes))
    return Cells({None: held}, *each)


@target(
    "10x mtx folder",
    cells=texts(_one_line),
    packed=st.booleans(),
    transposed=st.booleans(),
    extra=st.sampled_from([None, None, None, None, "1 1", "1 1 1 1", "9 9 1", "1 1 x", "0 1 1", "% a", "1 1 1"]),
    rows=st.integers(1, 5),
)
def mtx(folder: Path, cells: Cells, packed: bool, transposed: bool, extra: str | None, rows: int) -> bool:
    path = folder / "mtx"
    path.mkdir()
    n_cells, n_genes = cells.counts[None].shape
    transposed = transposed and n_cells != n_genes
    entries = [
        f"{i + 1} {j + 1} {v!r}" if transposed else f"{j + 1} {i + 1} {v!r}" for i, j, v in cells.counts[None].entries
    ]
    shape = (n_cells, n_genes) if transposed else (n_genes, n_cells)
    text = "\n".join(
        ["%%MatrixMarket matrix coordinate real general", "%", " ".join(map(str, (*shape, len(entries)))), *entries]
    )
    parts = {
        "matrix.mtx": text + "\n" + (f"{extra}\n" if extra else ""),
        "features.tsv": "".join(f"{name}\t{name}\tGene Expression\n" for name in cells.genes),
        "barcodes.tsv": "".join(f"{name}\n" for name in cells.barcodes),
    }
    for name, part in parts.items():
        data = part.encode()
        (path / (name + ".gz" * packed)).write_bytes(gzip.compress(data, 1) if packed else data)
    if extra is None:
        return _checked(path, cells, None, rows, name=path)
    with refusal(path) as refused:
        list(open_source(path).chunks(rows))
    assert refused, f"read, although a line is {extra!r}"
    return False


_FEATURES = [f"ENSG{i:011d}" for i in range(1, 6)]


@target(
    "CSV table",
    cells=texts(_one_line),
    separator=st.sampled_from([",", "\t", ";"]),
    transposed=st.booleans(),
    corner=st.sampled_from(["", "cell", "gene"]),
    packed=st.booleans(),
    rows=st.integers(1, 5),
)
def csv_table(
    folder: Path, cells: Cells, separator: str, transposed: bool, corner: str, packed: bool, rows: int
) -> bool:
    cells.genes = _FEATURES[: len(cells.genes)]
    dense = np.zeros(cells.counts[None].shape, cells.counts[None].dtype)
    for i, j, v in cells.counts[None].entries:
        dense[i, j] = v
    frame = pd.DataFrame(dense, index=pd.Index(cells.barcodes, dtype=object), columns=cells.genes)
    frame = frame.T if transposed else frame
    buffer = io.StringIO()
    frame.to_csv(buffer, sep=separator, index_label=corner, na_rep="nan")
    path = folder / ("a.csv" + ".gz" * packed)
    data = buffer.getvalue().encode()
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    wanted = cells.counts[None]
    with refusal(path) as refused:
        source = open_source(path, orientation="genes_x_cells" if transposed else "cells_x_genes")
        assert source.obs.index.tolist() == cells.barcodes
        assert source._names.tolist() == cells.genes
        _same_counts(list(source.chunks(rows)), cells, None)
    if refused:
        assert not wanted.raw, f"refused, but nothing is wrong with it: {refused[0]}"
        return False
    assert wanted.raw
    return True


_count = (st.integers(0, 9).map(str), some.numbers)
_rows_of_csv = some.lines((some.plain_names, some.names), _count, _count, separator=",", least=1)
_head_of_csv = st.sampled_from(["", "cell,ENSG00000000001,ENSG00000000002\n", "A,B\n"])


@target("CSV text", text=st.builds(str.__add__, _head_of_csv, _rows_of_csv), transposed=st.booleans())
def csv_text(folder: Path, text: str, transposed: bool) -> bool:
    path = folder / "a.csv"
    path.write_text(text, encoding="utf-8", newline="")
    with refusal(path) as refused:
        source = open_source(path, orientation="genes_x_cells" if transposed else "cells_x_genes")
        assert sum(block.shape[0] for _, block in source.chunks(3)) == source.n_cells
    return not refused


@target(
    "corpus of AnnData",
    cells=some.cells(names=some.names, with_obs=True, empty=False),
    layer=st.just(None),
)
def corpus(folder: Path, cells: Cells, layer: str | None) -> bool:
    """A corpus holds the counts of each gene, names that mean one gene summed, and the labels as they were."""
    given = cells.made()
    with refusal() as refused:
        build_corpus([given], folder / "corpus", obs_columns=list(cells.obs), min_genes=1)
    if refused:
        assert not (folder / "corpus").exists()
        return False
    built = Corpus.open(folder / "corpus")
    source = open_source(given)
    vocab = source.guess_vocab()
    tokens = vocab.resolve(cells.genes).tokens
    expected: dict[int, dict[int, int]] = {}
    for (i, j), v in sorted(cells.counts[None].sums().items()):
        if tokens[j] >= 0:
            row = expected.setdefault(i, {})
            row[int(tokens[j])] = row.get(int(tokens[j]), 0) + v
    batch = built.read(np.arange(built.n_cells))
    found = []
    for row in range(built.n_cells):
        at = slice(int(batch.offsets[row]), int(batch.offsets[row + 1]))
        found.append(dict(zip(batch.genes[at].tolist(), batch.counts[at].tolist())))
    kept = sorted(expected)
    obs = built.obs
    order = batch.cell_id.tolist()
    assert [found[order.index(k)] for k in range(len(kept))] == [expected[i] for i in kept]
    assert obs["barcode"].tolist() == [cells.barcodes[i] for i in kept]
    for name, values in cells.obs.items():
        _same_labels([values[i] for i in kept], obs[name].tolist(), cells.kinds[name])
    return True


_NOTHING = {"", "nan", "NaN", "NA", "<NA>"}


def _same_labels(given: list[Any], found: list[Any], kind: str) -> None:
    for one, two in zip(given, found, strict=True):
        absent = one is None or one != one or (isinstance(one, str) and one.strip() in _NOTHING)
        if absent:
            assert pd.isna(two), (kind, one, two)
        elif isinstance(two, str) and not isinstance(one, str):  # a column that no type holds becomes text
            assert two == str(np.dtype(kind).type(one) if kind in ("float32", "uint64") else one), (kind, one, two)
        elif kind == "float32":
            assert float(np.float32(one)) == two, (kind, one, two)
        else:
            assert one == two, (kind, one, two)


@target("translate: RNA", cells=some.cells(names=some.plain_names))
def translate_rna(folder: Path, cells: Cells) -> bool:
    """A study holds float32: counts that it cannot hold exactly are refused, not rounded."""
    with refusal("AnnData") as refused:
        found = read_measured(cells.made(), "rna")
    if refused:
        return False
    entries = found.matrix.tocoo()
    read = {(i, j): v for i, j, v in zip(entries.row.tolist(), entries.col.tolist(), entries.data.tolist())}
    assert read == cells.counts[None].sums()
    return True
