"""What a corpus is built from: one data set of raw counts of genes or peaks, read in row blocks from any of the accepted formats."""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Int, Shaped
from scipy import sparse

from expresser.corpus.blocks import Matrix, readable, regroup
from expresser.corpus.rawcounts import prove_raw
from expresser.corpus.readers_anndata import read_anndata, read_anndata_file
from expresser.corpus.readers_h5 import read_10x_h5, read_loom
from expresser.corpus.readers_text import Orientation, read_10x_mtx, read_table
from expresser.errors import InputError
from expresser.gene_names import clean_name, is_ensembl_id
from expresser.genes import GeneVocab
from expresser.region_vocab import RegionVocab
from expresser.regions import Regions

Features: TypeAlias = Literal["genes", "regions"]

ACCEPTED = (
    ".h5ad, .h5 (10x), a 10x folder or its matrix.mtx[.gz], .csv/.tsv/.txt[.gz], .loom, .zarr, or an AnnData in memory"
)
_ID_COLUMNS = ("gene_ids", "gene_id", "ensembl_id", "ensembl", "feature_id", "id", "accession")
_SYMBOL_COLUMNS = ("gene_symbols", "gene_symbol", "symbol", "gene_name", "gene_names", "feature_name", "name", "gene")
_NEVER_NAMES = ("feature_types", "genome")
# 10x; the NeurIPS 2021 multiome files; muon
_TYPES: dict[str, set[str]] = {
    "genes": {"gene expression", "gex", "rna"},
    "regions": {"peaks", "peak", "atac", "chromatin accessibility"},
}
_PEAK = re.compile(r"\S+[:_-]\d[\d,]*(?:[-_]|\.\.)\d[\d,]*")
_LOOK = 2000  # names looked at to tell peaks from genes


@dataclass(frozen=True, eq=False)
class Source:
    """One data set of raw counts. Names are held; counts are read from the file whenever `chunks` is iterated.

    Memory while reading, beside the chunk itself (measured): nothing for CSR in h5ad or zarr and for 10x h5; 100 MB for
    dense h5ad or zarr and loom; 200 MB for CSC in h5ad or zarr and for 10x mtx; 250 MB for CSV. What is stored gene by
    gene (CSC, mtx, CSV with genes in rows) also takes, above 2 million non-zeros, 16 bytes a non-zero in temporary
    files (TMPDIR), anew for each `chunks`. An AnnData in memory with CSC takes one copy of its matrix.
    """

    name: str
    path: Path | None
    kind: str  # 'h5ad', '10x_h5', '10x_mtx', 'csv', 'loom', 'zarr', 'anndata'
    obs: pd.DataFrame = field(repr=False)  # index = barcodes; text and categorical columns as str, absent = None
    gene_columns: dict[str, np.ndarray] = field(repr=False)  # str arrays by column, the most promising first
    _names: Shaped[np.ndarray, " genes"] = field(repr=False)
    _kept: Int[np.ndarray, " genes"] | None = field(repr=False)  # columns of the matrix that are genes; None: all
    _matrix: Matrix = field(repr=False)
    features: Features = "genes"

    @property
    def n_cells(self) -> int:
        return len(self.obs)

    @property
    def n_genes(self) -> int:
        return len(self._names)

    @property
    def columns(self) -> Int[np.ndarray, " genes"]:
        """Column of the matrix that each name belongs to: features other than genes have none."""
        return np.arange(self.n_genes) if self._kept is None else self._kept

    @property
    def label(self) -> str:
        """What messages call this source: file and matrix."""
        return f"{self.path or f'AnnData {self.name!r}'}: {self._matrix.where}"

    def chunks(self, rows: int = 4096) -> Iterator[tuple[int, sparse.csr_matrix]]:
        """(number of the first row, counts as int64 CSR of `rows` rows): sorted, no stored zeros, repeats summed.

        Every stored value is proven a raw count first; InputError names the first that is not and the way out.
        """
        if rows < 1:
            raise InputError(f"chunks: rows must be at least 1, not {rows}.")
        first = 0
        for chunk in regroup(self._proven(rows), rows):
            yield first, chunk
            first += chunk.shape[0]

    def stored(self, rows: int) -> Iterator[sparse.csr_matrix]:
        """Blocks of about `rows` rows of the matrix as it is stored: nothing proven, with the columns that are no genes."""
        with readable(self.path or self.label, self.kind):
            yield from self._matrix.blocks(rows)

    def prove(self, block: sparse.csr_matrix, first: int) -> sparse.csr_matrix:
        """The genes of a stored block whose first row is cell `first`; InputError names the first value that is no raw count."""
        return prove_raw(
            block if self._kept is None else block[:, self._kept],
            first_row=first,
            cells=self.obs.index.to_numpy(),
            genes=self._names,
            where=self.label,
            elsewhere=self._matrix.elsewhere,
        )

    def _proven(self, rows: int) -> Iterator[sparse.csr_matrix]:
        first = 0
        for block in self.stored(rows):
            yield self.prove(block, first)
            first += block.shape[0]
        if first != self.n_cells:
            raise InputError(f"{self.label} has {first} rows, but {self.n_cells} cells were named when it was opened.")

    @property
    def regions(self) -> Regions:
        """Its peaks, in its order."""
        return Regions.parse(self._names, where=self.label)

    def guess_vocab(self) -> GeneVocab:
        """A vocabulary of this source's own genes: Ensembl ids where a column has them, else its names. Of peaks, these."""
        if self.features == "regions":
            return RegionVocab(self.regions)
        ids_in = next(iter(self.gene_columns))
        symbols_in = next((c for c in self.gene_columns if c != ids_in and c.lower() in _SYMBOL_COLUMNS), "var_names")
        ids = self.gene_columns[ids_in]
        symbols = self.gene_columns.get(symbols_in, ids)
        named = np.array([bool(clean_name(i) or clean_name(s)) for i, s in zip(ids, symbols)], dtype=bool)
        return GeneVocab.from_names(ids[named], symbols[named])

    def sha256(self) -> str:
        """Of the file; of zarr's or mtx's files with their names, sorted; of an AnnData's counts and names."""
        if self.path is None:
            return self._sha256_of_counts()
        digest = hashlib.sha256()
        if self.path.is_file() and not self._matrix.files:
            _add_file(digest, self.path)
            return digest.hexdigest()
        root = self.path if self.path.is_dir() else self.path.parent
        for file in sorted(self._matrix.files or (p for p in root.rglob("*") if p.is_file())):
            digest.update(f"{file.relative_to(root).as_posix()}\0{file.stat().st_size}\0".encode())
            _add_file(digest, file)
        return digest.hexdigest()

    def _sha256_of_counts(self) -> str:
        """Independent of storage (CSR, CSC, dense; dtype) and of the height of chunks."""
        parts = {key: hashlib.sha256() for key in ("lengths", "genes", "counts")}
        for _, chunk in self.chunks():
            parts["lengths"].update(np.diff(chunk.indptr).astype("<i8").tobytes())
            parts["genes"].update(chunk.indices.astype("<i8").tobytes())
            parts["counts"].update(chunk.data.astype("<i8").tobytes())
        names = hashlib.sha256("\0".join([*self.obs.index, "", *self._names]).encode())
        return hashlib.sha256("".join(d.hexdigest() for d in (names, *parts.values())).encode()).hexdigest()


def _add_file(digest: "hashlib._Hash", path: Path) -> None:
    with readable(path, "a file"), open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)


def open_source(
    data: str | Path | AnnData,
    *,
    layer: str | None = None,
    name: str | None = None,
    orientation: Orientation | None = None,
    features: Features | None = "genes",
) -> Source:
    """Opens a file, a folder or an AnnData: reads its names, not its counts.

    `layer`: None for X, 'raw' for adata.raw, else a layer (h5ad, zarr, loom, AnnData). `name`: None for the file's own
    without its suffix. `orientation`: of a CSV/TSV whose names do not tell it. `features`: what is read of it, genes or
    peaks ("regions", by their names or the columns chrom, start and end of `var`); rows of `var` whose `feature_types`
    is another are left out. None: genes where it has any, else peaks where its names are intervals.
    Raises InputError for what is missing, unknown, unreadable or empty.
    """
    path = None if isinstance(data, AnnData) else Path(data)
    kind = "anndata" if path is None else _kind(path)
    label = str(path) if path is not None else f"AnnData {name or 'anndata'!r}"
    if layer is not None and kind in ("10x_h5", "10x_mtx", "csv"):
        raise InputError(f"{label}: a {kind} file holds one matrix and no layer {layer!r}: leave --layer away.")
    if orientation is not None and kind != "csv":
        raise InputError(f"{label}: orientation is for CSV and TSV tables only; a {kind} file says its own.")
    if path is None:
        matrix = read_anndata(data, layer, label)
    elif kind in ("h5ad", "zarr"):
        matrix = read_anndata_file(path, layer, kind)
    elif kind == "10x_h5":
        matrix = read_10x_h5(path)
    elif kind == "10x_mtx":
        matrix = read_10x_mtx(path)
    elif kind == "loom":
        matrix = read_loom(path, layer)
    else:
        matrix = read_table(path, orientation)

    features = _guess(matrix.var) if features is None else features
    kept = _kept_features(matrix.var, label, features)
    var = matrix.var if kept is None else matrix.var.iloc[kept]
    if not len(matrix.obs) or not len(var):
        what = "genes" if features == "genes" else "peaks"
        raise InputError(f"{label}: is empty: {len(matrix.obs)} cells x {len(var)} {what}.")
    names = _texts(var.index.to_series()) if features == "genes" else _intervals(var, label)
    return Source(
        name=name or (_stem(path) if path is not None else "anndata"),
        path=path,
        kind=kind,
        obs=_plain(matrix.obs),
        gene_columns=_gene_columns(var) if features == "genes" else {"regions": names},
        _names=names,
        _kept=kept,
        _matrix=matrix,
        features=features,
    )


def _kind(path: Path) -> str:
    if not path.exists():
        raise InputError(f"{path}: there is no such file or folder. Accepted: {ACCEPTED}.")
    lower = path.name.lower().removesuffix(".gz")
    if path.is_dir():
        if lower.endswith(".zarr") or any((path / key).exists() for key in (".zgroup", "zarr.json")):
            return "zarr"
        return "10x_mtx"
    if not path.name.lower().endswith(".gz"):
        for suffix, kind in ((".h5ad", "h5ad"), (".h5", "10x_h5"), (".loom", "loom")):
            if lower.endswith(suffix):
                return kind
    if lower.endswith(".mtx"):
        return "10x_mtx"
    if lower.endswith((".csv", ".tsv", ".txt", ".tab")):
        return "csv"
    raise InputError(f"{path}: its name does not say what it is. Accepted: {ACCEPTED}.")


def _stem(path: Path) -> str:
    return re.sub(r"\.(h5ad|h5|loom|zarr|mtx|csv|tsv|txt|tab)$", "", re.sub(r"\.gz$", "", path.resolve().name))


def _kept_features(var: pd.DataFrame, label: str, features: Features) -> Int[np.ndarray, " genes"] | None:
    """Columns whose feature type is gene expression, or peaks; None where all are or nothing is said."""
    if "feature_types" not in var:
        return None
    types = _texts(var["feature_types"])
    wanted = _of_type(types, features)
    if wanted.all() or not any(types):
        return None
    if not wanted.any():
        said = sorted(set(types))[:5]
        if features == "regions":
            raise InputError(f"{label}: has no features of type 'Peaks', only {said}. Regions are of ATAC.")
        peaks = _of_type(types, "regions").any()
        hint = (
            " A corpus of peaks is built with --regions (BED, or a file with the peaks), and no --genes."
            if peaks
            else ""
        )
        raise InputError(f"{label}: has no features of type 'Gene Expression', only {said}.{hint}")
    return np.flatnonzero(wanted)


def _of_type(types: Shaped[np.ndarray, " features"], features: Features) -> Bool[np.ndarray, " features"]:
    return np.array([t.strip().lower() in _TYPES[features] for t in types], dtype=bool)


def _guess(var: pd.DataFrame) -> Features:
    """Whether features are peaks: as `feature_types` says, else where most names are intervals."""
    if "feature_types" in var and any(types := _texts(var["feature_types"])):
        return "regions" if _of_type(types, "regions").any() and not _of_type(types, "genes").any() else "genes"
    some = [str(name).strip() for name in var.index[:: max(1, len(var) // _LOOK)]]
    return "regions" if some and 2 * sum(bool(_PEAK.fullmatch(name)) for name in some) >= len(some) else "genes"


def _intervals(var: pd.DataFrame, label: str) -> Shaped[np.ndarray, " regions"]:
    """Peaks by one spelling, "chr1:100-200"."""
    try:
        return Regions.from_var(var, where=label).names()
    except InputError as error:
        raise InputError(f"{error} A corpus of regions is built from files of peaks: are these genes?") from error


def _texts(column: pd.Series) -> Shaped[np.ndarray, " rows"]:
    """Values as str; a missing one is ''."""
    return np.array(["" if absent else str(v) for v, absent in zip(column, column.isna())], dtype=object)


def _gene_columns(var: pd.DataFrame) -> dict[str, np.ndarray]:
    """Columns that may name the genes: Ensembl ids, then the index, then known names, then other distinct texts."""
    columns = {"var_names": _texts(var.index.to_series())}
    known = {name: i for i, name in enumerate((*_ID_COLUMNS, *_SYMBOL_COLUMNS))}
    for key in sorted(var.columns, key=lambda c: known.get(str(c).lower(), len(known))):
        column = var[key]
        if not isinstance(column, pd.Series) or pd.api.types.is_numeric_dtype(column) or key in _NEVER_NAMES:
            continue
        texts = _texts(column)
        distinct = str(key).lower() in known or len(set(texts)) >= len(texts) / 2  # not chromosomes or biotypes
        if distinct and not np.array_equal(texts, columns["var_names"]):
            columns.setdefault(str(key), texts)
    likeness = {key: np.mean([is_ensembl_id(clean_name(t)) for t in texts]) for key, texts in columns.items()}
    return dict(sorted(columns.items(), key=lambda item: likeness[item[0]] < 0.5))


def _plain(obs: pd.DataFrame) -> pd.DataFrame:
    """obs with barcodes and text as str, which a table on disk can hold without pandas' own types; absent is None.

    The text 'nan' is absent too: it is what str() left of a missing label, and no cell type.
    """
    plain = {}
    for i, key in enumerate(obs.columns):
        column = obs.iloc[:, i].reset_index(drop=True)
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)):
            texts = [None if absent or str(v) == "nan" else str(v) for v, absent in zip(column, column.isna())]
            column = pd.Series(texts, dtype=object)
        plain[str(key)] = column
    return pd.DataFrame(plain, index=range(len(obs))).set_axis(pd.Index(obs.index.astype(str), dtype=object), axis=0)
