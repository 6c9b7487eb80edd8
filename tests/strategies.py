"""What may be in a file that somebody gives us: names, counts, AnnData, peaks, tables, JSON, and bytes that were damaged."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from hypothesis import strategies as st
from scipy import sparse

LIMIT = 2**32  # counts are below it
TRICKY = (
    *(
        "",
        " ",
        "nan",
        "NA",
        "None",
        "null",
        "True",
        "1",
        "-1",
        "1e5",
        "007",
        "a\tb",
        "a\nb",
        "a\r",
        '"',
        "'",
        'a"b',
        ",",
        ";",
    ),
    *(
        "#",
        "# a",
        "=1+1",
        "<script>",
        "é",
        "e\u0301",
        "\u202eabc",
        "\ufeffx",
        "x" * 300,
        "名前",
        "😀",
        "\x7f",
        "\x85",
        "\x1c",
    ),
    *(
        "a|b",
        "..",
        "a b",
        " a",
        "a ",
        "\u00a0",
        "٣",
        "²",
        "%s",
        "{}",
        "\\",
        "\\n",
        "--",
        "-",
        ".",
        "$(x)",
        "ENSG00000000001",
    ),
    *(
        "ENSG00000000001.5",
        "GRCh38_TP53",
        "hg19_",
        "hg19_hg38_X",
        "chr1:1-2",
        "MT-CO1",
        "ENSMUSG00000000001",
        "C1orf112",
    ),
)
GENES = ("TP53", "GATA1", "CD3E", "XIST", "MS4A1", "LYZ", "ACTB", "GAPDH", "MALAT1", "B2M", "RPL3", "MYC")

names = st.one_of(st.sampled_from(GENES), st.sampled_from(TRICKY), st.text(max_size=6))
# What a file of text or HDF5 can hold: no NUL.
stored_names = names.filter(lambda name: "\0" not in name)
plain_names = st.one_of(st.sampled_from(GENES), st.from_regex(r"[A-Za-z][A-Za-z0-9.-]{0,9}", fullmatch=True))


# ---- matrices --------------------------------------------------------------------------------------------------------

DTYPES = ("bool", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "f4", "f8")
STORAGE: dict[str, Callable[[Any], Any]] = {
    "csr": sparse.csr_matrix,
    "csc": sparse.csc_matrix,
    "csr array": sparse.csr_array,
    "csc array": sparse.csc_array,
    "dense": lambda matrix: matrix.toarray(),
    "dense, by column": lambda matrix: np.asfortranarray(matrix.toarray()),
}
_RAW = (1, 2, 3, 7, 1, 2, 0, 127, 255, 2047, 32767, 65504, 65535, 65536, 70_000, 2**24 + 1, 2**31, LIMIT - 1)
_NOT = (-1, 0.5, 1e-30, math.nan, math.inf, -math.inf, LIMIT, 2**53 + 1, 2**63 - 1, 2**64 - 1, -(2**63), 1e300)


def _fits(value: float, dtype: str) -> bool:
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return value in (0, 1)
    if kind.kind in "iu":
        bounds = np.iinfo(kind)
        return isinstance(value, int) and bounds.min <= value <= bounds.max
    if not math.isfinite(value):
        return True
    with np.errstate(over="ignore"):
        return float(kind.type(value)) == value


RAW = {dtype: [v for v in _RAW if _fits(v, dtype)] for dtype in DTYPES}
NOT_RAW = {dtype: [v for v in _NOT if _fits(v, dtype)] for dtype in DTYPES}


@dataclass
class Counts:
    """A matrix as the entries that are stored, repeats and zeros among them: what any reader must make of it."""

    shape: tuple[int, int]
    dtype: str
    storage: str
    entries: list[tuple[int, int, float]]

    @property
    def raw(self) -> bool:
        """Whether every value that is seen by a reader, and what repeats add up to, is a raw count."""
        if "dense" in self.storage:  # numpy adds repeats up, in its own type
            values: Any = self.made().ravel()
        else:
            values = [np.dtype(self.dtype).type(v) for *_, v in self.entries]
        each = all(0 <= v < LIMIT and v == math.floor(v) for v in map(_plain, values) if v == v) and all(
            v == v for v in values
        )
        return each and all(v < LIMIT for v in self.sums().values())

    def sums(self) -> dict[tuple[int, int], int]:
        """Count of each entry that is above zero."""
        if "dense" in self.storage:
            made = self.made()
            found = {(i, j): _plain(made[i, j]) for i, j in np.argwhere(made != 0).tolist()}
        else:
            found = {}
            for i, j, v in self.entries:
                found[i, j] = found.get((i, j), 0) + v
        return {at: int(v) for at, v in found.items() if v}

    def made(self) -> Any:
        """The matrix: sparse ones unsorted, with their repeats, as they were drawn."""
        rows, columns, values = (list(x) for x in zip(*self.entries)) if self.entries else ([], [], [])
        data = np.array(values, dtype=self.dtype) if values else np.zeros(0, self.dtype)
        if "dense" in self.storage:
            dense = np.zeros(self.shape, self.dtype)
            for i, j, v in zip(rows, columns, data):
                dense[i, j] = v
            return np.asfortranarray(dense) if "column" in self.storage else dense
        major, minor, n = (rows, columns, self.shape[0]) if "csr" in self.storage else (columns, rows, self.shape[1])
        order = np.argsort(np.array(major, dtype=np.int64), kind="stable")
        indptr = np.concatenate([[0], np.cumsum(np.bincount(np.array(major, dtype=np.int64), minlength=n))])
        parts = (data[order], np.array(minor, dtype=np.int32)[order], indptr.astype(np.int32))
        return STORAGE[self.storage](parts, shape=self.shape)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@st.composite
def counts(draw: Any, n_cells: int, n_genes: int, *, repeats: bool = True, dtypes: tuple[str, ...] = DTYPES) -> Counts:
    """A matrix of this shape: most of them raw counts, some with one value that is none."""
    dtype = draw(st.sampled_from(dtypes))
    storage = draw(st.sampled_from([name for name in STORAGE if dtype != "f2" or "dense" in name]))
    entries: list[tuple[int, int, float]] = []
    if n_cells and n_genes:
        value = st.sampled_from(RAW[dtype])
        if NOT_RAW[dtype] and draw(st.integers(0, 4)) == 0:
            value = st.one_of(value, st.sampled_from(NOT_RAW[dtype]))
        at = st.tuples(st.integers(0, n_cells - 1), st.integers(0, n_genes - 1))
        places = draw(st.lists(at, max_size=8, unique=not repeats or "dense" in storage))
        entries = [(i, j, draw(value)) for i, j in places]
    return Counts((n_cells, n_genes), dtype, storage, entries)


# ---- AnnData ---------------------------------------------------------------------------------------------------------


@dataclass
class Cells:
    """An AnnData by its parts, each of which a reader must give back."""

    counts: dict[str | None, Counts]  # layer: matrix; None is X
    barcodes: list[str]
    genes: list[str]
    obs: dict[str, list[Any]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # column of obs: what pandas calls its type

    def made(self) -> ad.AnnData:
        """The AnnData."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that repeat
            obs = pd.DataFrame(index=pd.Index(self.barcodes, dtype=object))
            for name, values in self.obs.items():
                obs[name] = pd.Series(values, dtype=self.kinds[name], index=obs.index)
            var = pd.DataFrame(index=pd.Index(self.genes, dtype=object))
            x = self.counts[None].made() if None in self.counts else None
            layers = {name: item.made() for name, item in self.counts.items() if name is not None}
            return ad.AnnData(x, obs=obs, var=var, layers=layers)


_OBS: dict[str, st.SearchStrategy[Any]] = {
    "int64": st.integers(-(2**63), 2**63 - 1),
    "uint64": st.integers(0, 2**64 - 1),
    "int8": st.integers(-128, 127),
    "float64": st.floats(),
    "float32": st.floats(width=32),
    "bool": st.booleans(),
    "object": st.one_of(st.none(), stored_names),
    "category": st.one_of(st.none(), stored_names),
    "Int64": st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    "boolean": st.one_of(st.none(), st.booleans()),
}


@st.composite
def cells(
    draw: Any,
    *,
    names: st.SearchStrategy[str] = names,
    with_obs: bool = False,
    empty: bool = True,
    repeats: bool = True,
) -> Cells:
    """A few cells and genes with any names; sometimes a layer too, sometimes no X, sometimes an empty axis."""
    least = 0 if empty and draw(st.integers(0, 9)) == 0 else 1
    n_cells, n_genes = draw(st.integers(least, 4)), draw(st.integers(least, 5))
    keys = draw(st.sampled_from([(None,)] * 4 + [(None, "counts"), ("counts",)]))
    held = {key: draw(counts(n_cells, n_genes, repeats=repeats)) for key in keys}
    barcodes = draw(st.lists(names, min_size=n_cells, max_size=n_cells))
    genes = draw(st.lists(names, min_size=n_genes, max_size=n_genes))
    made = Cells(held, barcodes, genes)
    if with_obs:
        for number, kind in enumerate(draw(st.lists(st.sampled_from(sorted(_OBS)), max_size=2))):
            made.obs[f"column{number}"] = draw(st.lists(_OBS[kind], min_size=n_cells, max_size=n_cells))
            made.kinds[f"column{number}"] = kind
    return made


# ---- peaks -----------------------------------------------------------------------------------------------------------

CONTIGS = (
    *("chr1", "1", "CHR1", "Chr2", "chr10", "X", "chrX", "x", "MT", "chrM", "GRCh38_chr1", "hg19_1", "mm10___chr19"),
    *(
        "chr1_KI270706v1_random",
        "GL000194.1",
        "KI270721.1",
        "HLA-A*01:01",
        "chrUn_gl000220",
        "scaffold_12",
        "chr6_GL000250v2_alt",
    ),
)
_places = st.one_of(st.integers(0, 300), st.integers(0, 250_000_000))


@st.composite
def intervals(draw: Any) -> tuple[str, int, int]:
    """Chromosome, start, end: a range of at least one base."""
    start = draw(_places)
    return draw(st.sampled_from(CONTIGS)), start, start + draw(st.integers(1, 3000))


@st.composite
def peak_names(draw: Any) -> tuple[str, tuple[str, int, int] | None]:
    """A peak's name and what it means; None: nobody can say."""
    chrom, start, end = draw(intervals())
    first, second = draw(st.sampled_from([(":", "-"), ("-", "-"), ("_", "_"), (":", ".."), (":", "_"), ("-", "_")]))
    number = draw(st.sampled_from(["{}", "{:,}", "{}", "{}"]))
    name = f"{chrom}{first}{number.format(start)}{second}{number.format(end)}"
    kind = draw(st.integers(0, 9))
    if kind > 2:
        return draw(st.sampled_from(["", "", " "])) + name + draw(st.sampled_from(["", "", " "])), (chrom, start, end)
    if kind == 2:
        return draw(names), None
    if kind == 1:  # reversed, empty, negative, a third number, fractions, no chromosome
        broken = (
            f"{chrom}{first}{end}{second}{start}",
            f"{chrom}{first}{start}{second}{start}",
            f"{chrom}{first}-5{second}{end}",
        )
        more = (
            f"chr1:{start}-{end}-{end + 9}",
            f"{chrom}{first}{start}.5{second}{end}",
            f"{first}{start}{second}{end}",
            f"{name}-1",
        )
        return draw(st.sampled_from([*broken, *more])), None
    at = draw(st.integers(0, len(name)))
    return name[:at] + draw(st.text(max_size=2)) + name[at + draw(st.integers(0, 2)) :], None


# ---- text, JSON, bytes -----------------------------------------------------------------------------------------------

numbers = st.one_of(
    st.integers(-3, 1000).map(str),
    st.floats().map(repr),
    st.sampled_from(
        ["", "NA", "nan", "1e400", "-0", "+5", " 7", "0x1F", "1_000", "1,5", "٣", "9" * 30, "9" * 5000, "inf", "None"]
    ),
)


Field = st.SearchStrategy[str] | tuple[st.SearchStrategy[str], st.SearchStrategy[str]]


@st.composite
def lines(draw: Any, *fields: Field, separator: str = "\t", least: int = 0, most: int = 6) -> str:
    """Lines of these fields, each of one strategy or of what is usual and what is odd.

    Two texts of five are sound; of others one field is odd, or one line is longer, shorter or empty, or any field may be odd.
    """
    usual = [field[0] if isinstance(field, tuple) else field for field in fields]
    odd = [field[1] if isinstance(field, tuple) else field for field in fields]
    how = draw(st.sampled_from(["sound", "sound", "one field", "one line", "any"]))
    each = [st.one_of(a, b) for a, b in zip(usual, odd)] if how == "any" else usual
    rows = [list(row) for row in draw(st.lists(st.tuples(*each), min_size=least, max_size=most))]
    if how == "one field" and rows:
        at, field = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(fields) - 1))
        rows[at][field] = draw(odd[field])
    if how == "one line":
        rows.insert(draw(st.integers(0, len(rows))), draw(st.lists(st.one_of(*usual, names), max_size=len(fields) + 1)))
    end = draw(st.sampled_from(["\n", "\n", "\r\n"]))
    return end.join(map(separator.join, rows)) + end * draw(st.integers(0, 1))


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), names),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)


def _paths(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree)) if isinstance(tree, list) else []
    return [at, *(path for key, value in inner[:40] for path in _paths(value, (*at, key)))]


@st.composite
def changed_json(draw: Any, tree: Any) -> Any:
    """The tree with one or two values replaced by anything, or taken away."""
    import copy

    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 2))):
        path = draw(st.sampled_from(_paths(tree)))
        value = draw(json_values)
        if not path:
            return value
        parent = tree
        for key in path[:-1]:
            parent = parent[key]
        if draw(st.integers(0, 3)) == 0:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
    return tree


def damaged(whole: bytes, number: Callable[[int, int], int]) -> bytes:
    """The bytes cut short, flipped, overwritten, doubled, moved, with others among them; `number(low, high)` decides."""
    data = bytearray(whole)
    for _ in range(number(1, 3)):
        at = number(0, max(len(data) - 1, 0))
        how, size = number(0, 6), number(1, 64)
        if how == 0:
            del data[at:]
        elif how == 1 and data:
            data[at] ^= 1 << number(0, 7)
        elif how == 2:
            data[at : at + 1] = bytes([number(0, 255)])
        elif how == 3:
            data[at : at + size] = (b"\0", b"\xff", b"9", b"\t", b"\n")[number(0, 4)] * min(size, 16)
        elif how == 4:
            del data[at : at + size]
        elif how == 5:
            data[at:at] = data[at : at + size]
        else:
            data[at : at + 8] = bytes(number(0, 255) for _ in range(number(1, 8)))
    return bytes(data)
