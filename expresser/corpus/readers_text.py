"""Readers of text: 10x mtx folders and CSV/TSV tables, plain or gzipped."""

import csv
import gzip
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped
from scipy import sparse

from expresser.corpus.blocks import DENSE_BYTES, Matrix, RowBuckets, dense_blocks, readable
from expresser.errors import InputError

Orientation = Literal["genes_x_cells", "cells_x_genes"]
_LINES = 500_000  # lines of an mtx file parsed at once: 12 MB


@contextmanager
def _text(path: Path, kind: str) -> Iterator[IO[str]]:
    with readable(path, kind):
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:  # -sig: spreadsheets write a byte order mark
            yield file


# ---- 10x mtx folder --------------------------------------------------------------------------------------------------


def read_10x_mtx(path: Path) -> Matrix:
    """A folder with [prefix]matrix.mtx, features.tsv or genes.tsv, and barcodes.tsv (each may end in .gz).

    Matrix Market text lists entries in any order: one pass through `RowBuckets`, each time the blocks are asked for.
    """
    mtx = _find_mtx(path)
    prefix = re.split(r"matrix\.mtx", mtx.name)[0]
    features = _companion(mtx, prefix, ("features.tsv", "genes.tsv"))
    barcodes = _companion(mtx, prefix, ("barcodes.tsv",))
    var, obs = _tsv(features), _tsv(barcodes)
    n_rows, n_columns, n_entries = _mtx_size(mtx)
    transposed = (n_rows, n_columns) == (len(obs), len(var)) != (len(var), len(obs))  # cells x genes: not 10x, but met
    if not transposed and (n_rows, n_columns) != (len(var), len(obs)):
        raise InputError(
            f"{mtx}: the matrix is {n_rows} x {n_columns}, but {features.name} has {len(var)} lines and "
            f"{barcodes.name} {len(obs)}. The three files must come from one run (and have no header line)."
        )

    def blocks(rows: int) -> Iterator[sparse.csr_matrix]:
        with _text(mtx, "Matrix Market"), RowBuckets((len(obs), len(var)), n_entries) as buckets:
            seen = 0
            for lines in _mtx_lines(mtx):
                row, column, value = (lines[name].to_numpy() for name in ("row", "column", "value"))
                cell, gene = (row, column) if transposed else (column, row)
                buckets.add(cell - 1, gene - 1, value)
                seen += len(lines)
            if seen != n_entries:
                raise InputError(f"{mtx}: announces {n_entries} entries and holds {seen}: copy it again, whole.")
            yield from buckets.blocks()

    names = var[1] if 1 in var and not (var[1] == "").all() else var[0]
    columns = {"gene_ids": var[0].to_numpy()} | ({"feature_types": var[2].to_numpy()} if 2 in var else {})
    return Matrix(
        "matrix",
        pd.DataFrame(index=pd.Index(obs[0])),
        pd.DataFrame(columns, index=pd.Index(names)),
        blocks,
        files=(mtx, features, barcodes),
    )


def _find_mtx(path: Path) -> Path:
    if path.is_file():
        return path
    found = sorted(p for p in path.iterdir() if re.search(r"matrix\.mtx(\.gz)?$", p.name))
    if len(found) == 1:
        return found[0]
    raise InputError(
        f"{path}: a 10x folder has one matrix.mtx[.gz] beside features.tsv[.gz] (or genes.tsv) and barcodes.tsv[.gz]; "
        f"this one has {len(found)}: {[p.name for p in found[:5]]}."
        + (" Pass the matrix file itself instead of the folder." if found else "")
    )


def _companion(mtx: Path, prefix: str, names: Sequence[str]) -> Path:
    wanted = [f"{prefix}{name}{gz}" for name in names for gz in (".gz", "")]
    for name in wanted:
        if (mtx.parent / name).exists():
            return mtx.parent / name
    raise InputError(f"{mtx.parent}: there is no {' or '.join(wanted)} beside {mtx.name}.")


def _tsv(path: Path) -> pd.DataFrame:
    with _text(path, "tab-separated names") as file:
        try:
            return pd.read_csv(file, sep="\t", header=None, dtype=str, keep_default_na=False, quoting=csv.QUOTE_NONE)
        except pd.errors.EmptyDataError:
            raise InputError(f"{path}: is empty.") from None


def _mtx_size(path: Path) -> tuple[int, int, int]:
    """Rows, columns and entries from the head of the file."""
    with _text(path, "Matrix Market") as file:
        first = file.readline()
        if not re.match(r"%%MatrixMarket\s+matrix\s+coordinate\s+(integer|real)\s+general", first, re.IGNORECASE):
            raise InputError(
                f"{path}: begins with {first[:80].strip()!r}; counts come as "
                "'%%MatrixMarket matrix coordinate integer general' (or 'real')."
            )
        size = next((line.split() for line in file if line.strip() and not line.startswith("%")), [])
        if len(size) != 3 or not all(n.isdecimal() for n in size):
            raise InputError(f"{path}: its size line is {' '.join(size)!r}, not rows, columns and entries.")
        return int(size[0]), int(size[1]), int(size[2])


def _mtx_lines(path: Path) -> Iterator[pd.DataFrame]:
    with _text(path, "Matrix Market") as file:
        for line in file:
            if line.strip() and not line.startswith("%"):
                break  # the size; entries follow
        # A fourth column takes what a line may not have: pandas would drop it in silence.
        types = {"row": np.int64, "column": np.int64, "value": np.float64, "more": object}
        try:
            with pd.read_csv(
                file, sep=r"\s+", header=None, names=list(types), dtype=types, chunksize=_LINES, index_col=False
            ) as reader:
                for lines in reader:
                    if lines["more"].notna().any():
                        raise InputError(
                            f"{path}: entry {lines['more'].first_valid_index() + 1:,} has more than row, column and value: the "
                            "file is damaged, or of complex numbers. Copy it again, whole."
                        )
                    yield lines
        except pd.errors.EmptyDataError:
            return


# ---- CSV and TSV -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """How a table of text is laid out, from its first two lines."""

    delimiter: str
    header: tuple[str, ...]  # names of the value columns
    lead: tuple[str, ...]  # names of the text columns before them; the first holds the row names
    skip: int  # lines up to and with the line of names

    @classmethod
    def of(cls, path: Path) -> "_Layout":
        with _text(path, "a table") as file:
            numbered = list(islice(((i, line) for i, line in enumerate(file) if line.strip()), 2))
        lines = [line for _, line in numbered]
        if len(lines) < 2:
            raise InputError(f"{path}: is empty: a table has a line of names and at least one line of counts.")
        head: list[str] = []
        first: list[str] = []
        for delimiter in ",\t; ":
            try:
                a, b = (next(csv.reader([line], delimiter=delimiter)) for line in lines)
            except csv.Error:  # a whole line as one field is beyond the module's limit: not this delimiter
                continue
            if len(b) > max(1, len(first)) and len(a) in (len(b), len(b) - 1):
                head, first, best = a, b, delimiter
        if not head:
            raise InputError(
                f"{path}: its first lines do not have equally many fields under any of comma, tab, semicolon, blank: "
                f"{lines[0][:60]!r}, {lines[1][:60]!r}."
            )
        if len(head) == len(first) - 1:  # as R's write.table does: no name above the row names
            head = ["", *head]
        n_lead = 1
        while n_lead < len(first) - 1 and not _is_number(first[n_lead]):
            n_lead += 1
        return cls(best, tuple(head[n_lead:]), tuple(head[:n_lead]), numbered[0][0] + 1)

    def read(self, path: Path, part: Literal["lead", "values", "raw text"], lines: int) -> Iterator[pd.DataFrame]:
        """Blocks of `lines` rows: the text columns, or the counts as float64 (an empty field is NaN) or as written."""
        n_lead, n = len(self.lead), len(self.lead) + len(self.header)
        types = dict.fromkeys(range(n_lead), str) | dict.fromkeys(range(n_lead, n), float if part == "values" else str)
        with (
            _text(path, "a table") as file,
            pd.read_csv(
                file,
                sep=self.delimiter,
                header=None,
                skiprows=self.skip,
                names=range(n),
                index_col=False,
                # Counts are read with all columns: under usecols pandas drops surplus fields of a line in silence.
                usecols=range(n_lead) if part == "lead" else None,
                dtype={i: types[i] for i in range(n_lead if part == "lead" else n)},
                keep_default_na=part == "values",
                chunksize=lines,
            ) as reader,
        ):
            for frame in reader:
                yield frame if part == "lead" else frame.iloc[:, n_lead:]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.strip() in {"", "NA"}
    return True


def read_table(path: Path, orientation: Orientation | None) -> Matrix:
    """A CSV or TSV of counts with names on both axes; text columns after the row names are kept as annotation.

    Opening reads the row names (one pass over the text). Cells x genes streams in blocks of 32 MB; genes x cells
    goes through `RowBuckets`, each time the blocks are asked for.
    """
    layout = _Layout.of(path)
    lead = pd.concat(layout.read(path, "lead", 100_000), ignore_index=True)
    rows = pd.DataFrame({name: lead[i].to_numpy() for i, name in enumerate(layout.lead) if i}, index=pd.Index(lead[0]))
    columns = pd.DataFrame(index=pd.Index(layout.header, dtype=object))
    if orientation is None:
        orientation = _orientation(path, rows.index.to_numpy(), columns.index.to_numpy(), layout.lead[0])
    lines = max(1, DENSE_BYTES // (8 * len(columns)))

    def values(wanted: int) -> Iterator[Float64[np.ndarray, " lines columns"]]:
        try:
            for frame in layout.read(path, "values", wanted):
                yield frame.to_numpy()
        except ValueError as error:
            for frame in layout.read(path, "raw text", wanted):
                numbers = frame.apply(pd.to_numeric, errors="coerce").isna().to_numpy()
                for line, column in np.argwhere(numbers & ~frame.isin(["", "NA", "NaN", "nan"]).to_numpy())[:1]:
                    raise InputError(
                        f"{path}: counts must be numbers (first: row {str(rows.index[frame.index[line]])!r}, column "
                        f"{str(columns.index[column])!r}, value {frame.iat[line, column]!r}). Only the columns before "
                        "the counts may hold text. Is this a table of counts, and not of metadata?"
                    ) from error
            raise

    if orientation == "cells_x_genes":

        def blocks(wanted: int) -> Iterator[sparse.csr_matrix]:
            for part in values(min(wanted, lines)):
                yield from dense_blocks(part, len(part))

        return Matrix("table", rows, columns, blocks)

    def transposed(_: int) -> Iterator[sparse.csr_matrix]:
        shape = (len(columns), len(rows))
        with RowBuckets(shape, shape[0] * shape[1]) as buckets:  # as if dense: then a bucket never exceeds its bound
            first = 0
            for part in values(lines):
                gene, cell = np.nonzero(part)
                buckets.add(cell, gene + first, part[gene, cell])
                first += len(part)
            yield from buckets.blocks()

    return Matrix("table", columns, rows, transposed)


_GENE = re.compile(
    r"^(?:[A-Za-z0-9]+_)?(?:ENS[A-Z]{0,6}G\d{6,}(?:\.\d+)?|RP[LS]\d+[A-Z]*\d*|MT-[A-Z0-9]+|CD\d+[A-Z]*|HLA-[A-Z0-9]+|"
    r"LINC\d{5}|ZNF\d+|ZFP\d+|SLC\d+A\d+|TMEM\d+[A-Z]?|KRT\d+|FAM\d+[A-Z]\d*|A[CLP]\d{6}\.\d+|"
    r"ACTB|GAPDH|B2M|MALAT1|EEF1A1|TP53|MYC|GNB1|STAT\d|EGFR|NOC2L|ISG15|GENE[-_. ]?\d+)$",
    re.IGNORECASE,
)
_CELL = re.compile(r"^(?:.*[^A-Za-z])?(?:[ACGT]{8,}(?:[-.]\d+)?|CELL[-_. ]?\d+|[A-P]\d{1,2})$", re.IGNORECASE)


def _orientation(
    path: Path, rows: Shaped[np.ndarray, " rows"], columns: Shaped[np.ndarray, " columns"], corner: str
) -> Orientation:
    """Which axis holds genes, by their names (Ensembl ids, gene families; barcodes, wells), else by the corner's."""

    def evidence(names: np.ndarray) -> float:
        share = [bool(_GENE.match(name)) - bool(_CELL.match(name)) for name in map(str.strip, map(str, names))]
        return sum(share) / max(1, len(share))

    by_rows, by_columns = evidence(rows), evidence(columns)
    if by_rows == by_columns and corner:
        by_rows = float("gene" in corner.lower() or "symbol" in corner.lower())
        by_columns = float("cell" in corner.lower() or "barcode" in corner.lower())
    if by_rows == by_columns:
        raise InputError(
            f"{path}: cannot tell whether its rows ({', '.join(map(str, rows[:3]))}, …) or its columns "
            f"({', '.join(map(str, columns[:3]))}, …) are genes. Pass orientation='genes_x_cells' or 'cells_x_genes'."
        )
    return "genes_x_cells" if by_rows > by_columns else "cells_x_genes"
