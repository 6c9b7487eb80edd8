"""Fragment files (10x, sinto, SnapATAC2) as tables of a few hundred thousand lines, proven line by line."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import NoReturn

import pyarrow as pa
from pyarrow import csv

from expresser.errors import InputError

Progress = Callable[[int, int], None]

_COLUMNS = ["chrom", "start", "end", "barcode"]
_TYPES = [pa.dictionary(pa.int32(), pa.string()), pa.int64(), pa.int64(), pa.dictionary(pa.int32(), pa.string())]
RULE = (
    "A fragment is a line of chromosome, start, larger end and barcode with tabs between them (more columns may follow)"
)
_BGZIP_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")


def read_fragments(path: Path, chunk: int, progress: Progress | None = None) -> Iterator[pa.Table]:
    """Tables of the columns chrom, start, end, barcode (chrom and barcode coded, one arrow chunk each), `chunk` bytes a time.

    `progress` is told (bytes of the file read, bytes of the file). Plain text, gzip and bgzip; comment lines start with #.
    Raises InputError where the file is damaged or cut short, and with the number of the first line that is no fragment.
    """
    width = 0  # columns of the file: those of its first fragment
    for line, given in _texts(path, chunk, progress):
        text = given
        if text.startswith(b"#") or b"\n#" in text:
            text = b"".join(row for row in text.splitlines(keepends=True) if not row.startswith(b"#"))
        if text.strip():
            width = width or text.lstrip(b"\r\n").split(b"\n", 1)[0].count(b"\t") + 1
            yield fragment_table(path, line, given, text, width)


def _texts(path: Path, size: int, progress: Progress | None) -> Iterator[tuple[int, bytes]]:
    """(number of the first line, whole lines) of about `size` bytes at a time."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such fragment file.")
    with path.open("rb") as file:
        head = file.read(18)
        file.seek(max(0, path.stat().st_size - len(_BGZIP_END)))
        if head[:4] == b"\x1f\x8b\x08\x04" and head[12:14] == b"BC" and file.read() != _BGZIP_END:
            raise InputError(f"{path} was cut short: it is bgzip, but its end block is missing. Copy it again.")
    line, rest, packed = 1, b"", path.stat().st_size
    with path.open("rb") as file, gzip.open(file) if head[:2] == b"\x1f\x8b" else nullcontext(file) as lines:
        while True:
            try:
                block = lines.read(max(size, 1))
            except (EOFError, OSError, zlib.error) as error:
                raise InputError(
                    f"{path} is damaged or was cut short, somewhere after line {line - 1:,} ({error}). Copy it again."
                ) from error
            if progress is not None:
                progress(file.tell(), packed)
            if not block:
                break
            cut = block.rfind(b"\n") + 1
            if cut:
                yield line, rest + block[:cut]
                line += block.count(b"\n")
                rest = b""
            rest += block[cut:]
            if len(rest) > (1 << 20):
                raise InputError(f"{path}: line {line:,} has more than a million characters. {RULE}.")
    if rest:
        yield line, rest


def fragment_table(path: Path, line: int, given: bytes, text: bytes, width: int) -> pa.Table:
    """The fragments of `text`, which is `given` (from line `line` of the file) without its comments; `width`: columns."""
    try:
        table = csv.read_csv(
            pa.BufferReader(text),
            read_options=csv.ReadOptions(
                column_names=[*_COLUMNS, *map(str, range(width - 4))], block_size=len(text) + 1, use_threads=False
            ),
            parse_options=csv.ParseOptions(delimiter="\t", quote_char=False),
            convert_options=csv.ConvertOptions(
                column_types=dict(zip(_COLUMNS, _TYPES)), include_columns=_COLUMNS, null_values=[]
            ),
        ).combine_chunks()
    except pa.ArrowInvalid as error:
        _refuse(path, line, given, width, str(error))
    start, end = table["start"].to_numpy(), table["end"].to_numpy()
    if ((start < 0) | (end <= start)).any() or "" in table["barcode"].chunk(0).dictionary.to_pylist():
        _refuse(path, line, given, width, "")
    return table


def _refuse(path: Path, line: int, text: bytes, width: int, reason: str) -> NoReturn:
    """The InputError for the first line that is no fragment, found by reading these lines one by one."""
    for number, row in enumerate(text.replace(b"\r\n", b"\n").split(b"\n"), line):
        parts = row.decode(errors="replace").split("\t")
        if not row.strip() or row.startswith(b"#"):
            continue
        whole = len(parts) >= 4 and all(part.isascii() and part.isdecimal() and len(part) < 20 for part in parts[1:3])
        if not (whole and len(parts) == width and int(parts[1]) < int(parts[2]) < 2**63 and parts[3]):
            raise InputError(f"{path}: line {number:,} is no fragment: {row[:100].decode(errors='replace')!r}. {RULE}.")
    raise InputError(f"{path}: the lines from {line:,} on cannot be read ({reason}). {RULE}.")
