"""Gene embedding tables as files: parquet for programs, word2vec text and CSV for everything else."""

import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from jaxtyping import Float32, Shaped

from expresser.atomic import replaced
from expresser.errors import InputError
from expresser.gene_tables import open_text
from expresser.genes import MOST_GENES

WRITTEN = (".parquet", ".txt", ".vec", ".w2v")
READ = (*WRITTEN, ".csv", ".tsv", ".tab")  # all but parquet with .gz too

_IDS = ("gene_id", "gene_ids", "ensembl_gene_id", "ensembl_id", "ensembl", "feature_id", "id")
_SYMBOLS = ("symbol", "gene_symbol", "gene", "genes", "gene_name", "gene_symbols", "gene_names", "feature_name", "name")
_ROW_NUMBERS = ("", "index", "unnamed: 0", "__index_level_0__", "level_0", "row")
_MISSING = ("", "na", "n/a", "#n/a", "nan", "<na>", "null", "none")  # a blank cell is one missing value, not a fault

_MOST_VALUES = 1 << 29  # 2 GiB of float32; 79,000 genes x 6,000 dimensions


@dataclass(frozen=True, eq=False)
class GeneRows:
    """A table as its file has it: names in the file's order, repeats and missing values (NaN) included."""

    names: Shaped[np.ndarray, " genes"]
    values: Float32[np.ndarray, "genes dim"]
    kind: str  # "parquet", "word2vec" or "csv"


def write_gene_table(frame: pd.DataFrame, path: str | Path) -> Path:
    """Write a table of gene embeddings: rows are genes (index: Ensembl id), a ``symbol`` column, then one column a dimension.

    ``.parquet`` keeps all of it. ``.txt``, ``.vec`` and ``.w2v`` are word2vec text: a line with the two sizes, then a line a gene,
    Ensembl id and numbers, readable by gensim's ``KeyedVectors.load_word2vec_format``.
    """
    path = Path(path)
    if path.suffix not in WRITTEN:
        raise InputError(f"{path}: gene tables are written as .parquet or as word2vec text (.txt, .vec, .w2v).")
    with replaced(path) as part:
        if path.suffix == ".parquet":
            frame.to_parquet(part)
        else:
            numbers = frame.drop(columns="symbol").to_numpy(np.float32)
            if torn := [
                name for name in map(str, frame.index) if not name or any(c.isspace() or c in ',;"\0' for c in name)
            ]:
                raise InputError(
                    f"{path}: {len(torn)} names of genes ({torn[0]!r}) are empty or hold blanks, commas, semicolons or quotes, by "
                    "which fields of text are told apart. Write .parquet."
                )
            with part.open("w", encoding="utf-8") as file:
                file.write(f"{numbers.shape[0]} {numbers.shape[1]}\n")
                for gene, row in zip(frame.index, numbers):
                    file.write(f"{gene} {' '.join(repr(float(v)) for v in row)}\n")
    return path


def table_suffix(path: str | Path) -> str | None:
    """The suffix that makes a path a gene table (``.csv`` of ``a.csv.gz``); None where there is none."""
    path = Path(path)
    suffix = Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix
    known = suffix.lower() in READ and not (path.suffix.lower() == ".gz" and suffix.lower() == ".parquet")
    return suffix.lower() if known else None


def read_gene_table(path: str | Path) -> GeneRows:
    """Read what `write_gene_table` writes, and the tables of others.

    Text is numbers after a name, separated by blanks, tabs, commas or semicolons (told by content), after word2vec's line of
    sizes, a header, or nothing. Genes are named by the column or index with the header of an Ensembl id, else by the first, or,
    where the first only numbers the rows, by the one with the header of a symbol. Other columns of names are passed over.

    Raises InputError that names the line for what is not a number, for rows of unequal length and for a file cut short.
    """
    path = Path(path)
    suffix = table_suffix(path)
    if suffix is None:
        raise InputError(
            f"{path}: its name does not say what it is. Gene tables are read from {', '.join(READ)}, text also as .gz. "
            "Binary word2vec is to be saved as text, arrays of other programs as parquet or CSV."
        )
    rows = _read_parquet(path) if suffix == ".parquet" else _read_text(path)
    genes, dim = rows.values.shape
    if genes < 2 or dim < 1:
        raise InputError(
            f"{path}: holds {genes} genes x {dim} numbers. A table of embeddings has at least two genes, one a row, "
            "and one number for each."
        )
    return rows


def _read_parquet(path: Path) -> GeneRows:
    try:
        about = pq.ParquetFile(path).metadata
        # A column of one value takes no room however many rows it has: what a file claims is looked at before it is read.
        if about.num_rows > MOST_GENES or about.num_rows * about.num_columns > _MOST_VALUES:
            raise InputError(
                f"{path}: claims {about.num_rows:,} rows x {about.num_columns:,} columns; a table of genes has at most {MOST_GENES:,} "
                f"rows and {_MOST_VALUES:,} values. It is not read."
            )
        frame = pd.read_parquet(path)
    except InputError:
        raise
    except Exception as error:  # Arrow, and pandas over the metadata, raise of everything where bytes are damaged
        raise InputError(f"{path}: not readable as parquet ({str(error)[:500]}). Copy or write it again.") from error
    if frame.index.nlevels > 1:
        raise InputError(
            f"{path}: its index has {frame.index.nlevels} levels. One level or column must name the genes."
        )
    header = [str(frame.index.name or ""), *map(str, frame.columns)]
    columns = [frame.index.to_series(), *(frame.iloc[:, i] for i in range(frame.shape[1]))]
    at, use = _columns(header, [str(column.iloc[0]) if len(column) else "" for column in columns])
    for i in use:
        if not pd.api.types.is_numeric_dtype(columns[i]):
            raise InputError(
                f"{path}: column {header[i]!r} is {columns[i].dtype}, not numbers. A table has one name column "
                f"({', '.join(_IDS[:1] + _SYMBOLS[:3])}, or the index) and one column of numbers a dimension."
            )
    if not all(map(pd.api.types.is_scalar, columns[at])):
        raise InputError(f"{path}: column {header[at]!r} holds lists, not names of genes. One name a row is needed.")
    values = np.empty((len(frame), len(use)), dtype=np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite, and the caller counts that
        for k, i in enumerate(use):
            values[:, k] = columns[i].to_numpy(np.float64, na_value=np.nan)
    return GeneRows(np.array([_text(v) for v in columns[at]], dtype=object), values, "parquet")


def _text(value: object) -> str:
    return "" if value is None or value is pd.NA or value != value else str(value)


def _read_text(path: Path) -> GeneRows:
    with open_text(path) as file:
        lines = ((number, line.rstrip("\r\n")) for number, line in enumerate(file, start=1) if line.strip())
        return _parse(path, list(islice(lines, 2)), lines)


def _parse(path: Path, peeked: Sequence[tuple[int, str]], lines: Iterator[tuple[int, str]]) -> GeneRows:
    if not peeked:
        raise InputError(f"{path}: is empty. Give a table with one gene a line.")
    separator = _separator(peeked[-1][1])
    first, second = (line.split(separator) for _, line in (peeked[0], peeked[-1]))
    sizes = re.fullmatch(r"\s*(\d{1,9})\s+(\d{1,9})\s*", peeked[0][1])
    declared: int | None = None
    header: list[str] | None = None
    if sizes and (len(second) != 2 or sizes[2] == "1"):
        declared, width, rule = int(sizes[1]), int(sizes[2]) + 1, f"the first line says {sizes[2]} numbers"
    elif _is_header(first, second):
        # R leaves the name of the names' column out.
        header = [""] * (len(second) - len(first)) + first
        width, rule = len(header), f"the header names {len(header)} fields"
    else:
        width, rule = len(first), f"line {peeked[0][0]} has {len(first)}"
    body = chain(peeked[1:] if declared is not None or header is not None else peeked, lines)
    at, use = _columns(header, second) if header is not None else (0, list(range(1, width)))

    names: list[str] = []
    numbers = array("f")
    for number, line in body:
        cells = line.split(separator)
        if len(cells) != width:
            raise InputError(
                f"{path}: line {number} has {len(cells)} fields, a name included, but {rule}. Every gene has as many "
                "numbers: the file is damaged, or its fields are separated by more than one sign."
            )
        names.append(cells[at].strip(' "'))
        if len(names) > MOST_GENES or len(numbers) > _MOST_VALUES:
            raise InputError(
                f"{path}: more than {MOST_GENES:,} genes or {_MOST_VALUES:,} numbers. It is no table of genes."
            )
        picked = [cells[i] for i in use]
        try:
            row = list(map(float, picked))
        except ValueError:
            row = [_number(cell, path, number, i) for cell, i in zip(picked, use)]
        numbers.extend(row)
    if declared is not None and declared != len(names):
        raise InputError(
            f"{path}: the first line says {declared} genes, the file has {len(names)}. It was cut short or joined: "
            "copy or write it again."
        )
    values = np.array(numbers, dtype=np.float32).reshape(len(names), len(use))
    kind = "word2vec" if separator is None and header is None else "csv"
    return GeneRows(np.array(names, dtype=object), values, kind)


def _separator(line: str) -> str | None:
    """What separates the fields of a line of data; None is blanks, one or more. Gene2vec has a tab, then blanks."""
    if "\t" in line and not any(" " in cell.strip() for cell in line.split("\t")):
        return "\t"
    return next((sign for sign in (",", ";") if sign in line), None)


def _is_header(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether the first line names columns. Dimensions are often called 0, 1, …, which are numbers: the name column tells."""
    words = [cell.strip(' "').lower() for cell in first]
    if len(words) == len(second) - 1:  # R's, with no word over the names
        counted = [[str(start + i) for i in range(len(words))] for start in (0, 1)]
        return words in counted or not any(map(_is_number, words))
    return words[0] in _IDS + _SYMBOLS + _ROW_NUMBERS or (
        len(words) > 1 and not any(_is_number(word) for word in words[1:])
    )


def _columns(header: Sequence[str], first_row: Sequence[str]) -> tuple[int, list[int]]:
    """Place of the gene names, and places of the numbers."""
    words = [cell.strip(' "').lower() for cell in header]
    place = {word: i for i, word in reversed(list(enumerate(words)))}
    by_id = next((place[word] for word in _IDS if word in place), None)
    by_symbol = next((place[word] for word in _SYMBOLS if word in place), None)
    counted = words[0] in _ROW_NUMBERS and first_row[0].strip(' "').isdecimal()
    at = by_id if by_id is not None else by_symbol if counted and by_symbol is not None else 0
    return at, [i for i, word in enumerate(words) if i != at and word not in _IDS + _SYMBOLS + _ROW_NUMBERS]


def _is_number(cell: str) -> bool:
    if cell in _MISSING:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _number(cell: str, path: Path, line: int, field: int) -> float:
    text = cell.strip(' "')
    if not _is_number(text.lower()):
        raise InputError(
            f"{path}: line {line}, field {field + 1}: {cell!r} is not a number. After its name a gene has numbers "
            "alone, with a point for decimals: remove columns of text."
        )
    return float("nan") if text.lower() in _MISSING else float(text)
