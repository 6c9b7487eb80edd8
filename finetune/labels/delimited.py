"""Small delimited text files as people have them: comma, tab or blanks, header or none, plain or gzipped."""

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Shaped

from expresser.errors import InputError
from expresser.gene_tables import open_text
from expresser.genes import GeneVocab

_MISSING = ("", "na", "n/a", "nan", "none", "null", ".", "-")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|[-+]?(?:inf|infinity)", re.IGNORECASE)
# What the columns of gene and pair tables are called. ID1 and ID2 are genes, so a bare `id` takes no number.
_HEADER = re.compile(
    r"(?:gene|genes|symbol|symbols|ensembl|protein|node|hgnc|interactor|feature|official)"
    r"(?:[ _.-]*(?:gene|id|ids|name|names|symbol|symbols|ensembl|[12ab]))*"
    r"|\w*(?:sensitive|tolerant)\w*|id|name|names|source|target|from|to|labels?|y|class|classes|value|values|scores?|category|group|interaction",
    re.IGNORECASE,
)


@dataclass(frozen=True, eq=False)
class Delimited:
    """The fields of a file as text without outer blanks; `lines` are line numbers in the file, for messages."""

    path: Path
    header: tuple[str, ...] | None
    fields: Shaped[np.ndarray, "rows columns"]
    lines: Shaped[np.ndarray, " rows"]

    def __len__(self) -> int:
        return len(self.fields)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns; "1", "2" and so on where the file has no header."""
        return self.header or tuple(str(k + 1) for k in range(self.fields.shape[1]))

    def find(self, *names: str) -> int | None:
        """Place of the first of these names that is a column, whatever the case; None where none is."""
        there = [column.lower() for column in self.columns]
        return next((there.index(name.lower()) for name in names if name.lower() in there), None)

    def need(self, name: str, what: str) -> int:
        """Place of a column that was asked for by name."""
        place = self.find(name)
        if place is None:
            raise InputError(
                f"{self.path}: there is no column {name!r} for {what}; the file has {list(self.columns)}"
                f"{'' if self.header else ' (no header was seen: columns are counted from 1)'}. Name one of these."
            )
        return place

    def text(self, place: int) -> Shaped[np.ndarray, " rows"]:
        """One column as text."""
        return self.fields[:, place]


def read_delimited(
    path: str | Path, *, vocab: GeneVocab | None = None, header: bool | None = None, keep: Sequence[str] | None = None
) -> Delimited:
    """The rows of a file; `keep` holds only these columns of a wide file (those that exist) and means it has a header.

    Without `header`, the first row is one where it holds no number, no gene of the vocabulary, and either a word that
    names columns or a text above a column of numbers. What is taken for data wrongly is an unknown gene, and counted.
    """
    path = Path(path)
    rows: list[list[str]] = []
    lines: list[int] = []
    places: list[int] | None = None
    width, comment = 0, None
    with open_text(path, newline="") as text:
        try:
            split, text_lines = _splitter(path, text.read())
            for number, line in text_lines:
                row = split(line)
                if not any(row):
                    continue
                if line.startswith("#") and not rows:
                    comment = [row[0].lstrip("# "), *row[1:]]
                    continue
                if not rows:
                    if comment is not None and len(comment) == len(row) > 1 and header is not False:
                        rows, lines, header = [comment], [number - 1], True
                        width = len(comment)
                    elif keep is not None:
                        header = True
                    width = max(width, len(row))
                    if keep is not None:
                        wanted = {name.lower() for name in keep}
                        first = rows[0] if rows else row
                        places = [k for k, name in enumerate(first) if name.lower() in wanted]
                        rows = [[row[k] for k in places] for row in rows]
                if len(row) > width or (len(row) < width and split is _blanks):
                    raise InputError(
                        f"{path}: line {number} has {len(row)} fields, the first one {width}: {line.strip()[:80]!r}. "
                        "Give one table with a delimiter throughout: tabs, commas or blanks."
                    )
                row += [""] * (width - len(row))
                rows.append(row if places is None else [row[k] for k in places])
                lines.append(number)
        except csv.Error as error:
            raise InputError(f"{path}: cannot be read as a table ({error}). Give plain delimited text.") from error
    if header is None and rows:
        header = _is_header(rows, vocab)
    if len(rows) <= bool(header):
        raise InputError(f"{path}: the file holds no rows{' below its header' if rows else ''}. Give a file that does.")
    fields = np.array(rows[bool(header) :], dtype=object).reshape(len(rows) - bool(header), len(rows[0]))
    return Delimited(path, tuple(rows[0]) if header else None, fields, np.array(lines[bool(header) :]))


def is_missing(text: Shaped[np.ndarray, " rows"]) -> Bool[np.ndarray, " rows"]:
    """Where a field says that there is nothing: empty, NA, nan, None, null, a full stop or a dash."""
    return np.isin(np.array([field.lower() for field in text.tolist()], dtype=object), _MISSING)


def to_numbers(text: Shaped[np.ndarray, " rows"]) -> tuple[Float64[np.ndarray, " rows"], Bool[np.ndarray, " rows"]]:
    """Numbers, NaN where there is none; and where a field is neither a number nor missing."""
    missing = is_missing(text)
    found = [None if gone else _number(field) for field, gone in zip(text.tolist(), missing)]
    strange = np.array([number is None for number in found], dtype=bool) & ~missing
    numbers = np.array([np.nan if number is None else number for number in found], dtype=np.float64)
    return np.where(np.isinf(numbers), np.nan, numbers), strange


def _number(field: str) -> float | None:
    """To the last bit, which pandas' own reading is not; None for a text, also for Python's 1_000 and other scripts' digits."""
    return float(field) if _NUMBER.fullmatch(field) and field.isascii() else None


def _is_header(rows: list[list[str]], vocab: GeneVocab | None) -> bool:
    first, rest = rows[0], rows[1:101]
    if any(_NUMBER.fullmatch(field) for field in first):
        return False
    if vocab is not None and (vocab.resolve(first).tokens >= 0).any():
        return False
    if any(_HEADER.fullmatch(field) for field in first):
        return True
    for place, field in enumerate(first):
        below = [row[place] for row in rest if row[place].lower() not in _MISSING]
        if below and field.lower() not in _MISSING and all(map(_NUMBER.fullmatch, below)):
            return True
    return False


def _blanks(line: str) -> list[str]:
    return line.split()


def _splitter(path: Path, text: str) -> tuple[Callable[[str], list[str]], list[tuple[int, str]]]:
    """How lines fall into fields, by the first line that is no comment, and the numbered lines."""
    lines = list(enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), start=1))
    first = next((line for _, line in lines if line.strip() and not line.startswith("#")), "")
    if not first:
        raise InputError(f"{path}: the file is empty. Give one with a row a gene, or a row a pair of genes.")
    delimiter = next((mark for mark in "\t,;" if mark in first), None)
    if delimiter is None:
        return _blanks, lines

    def split(line: str) -> list[str]:
        if '"' in line:
            return [field.strip() for field in next(csv.reader([line], delimiter=delimiter), [])]
        return [field.strip() for field in line.split(delimiter)]

    return split, lines
