"""Laws about genes: vocabularies and where they come from, places of genes, tables of gene vectors."""

import gzip
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import strategies as some
from fuzzing import refusal, target
from hypothesis import strategies as st

from expresser.gene_names import clean_name, is_ensembl_id
from expresser.genes import COLUMNS, GeneVocab
from expresser.tables import GeneRows, read_gene_table, write_gene_table
from finetune.embeddings.reading import read_table
from translate.genenames import GenePlaces, gene_table


def _put(path: Path, text: str, packed: bool = False) -> Path:
    data = text.encode("utf-8", "surrogatepass")
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return path


def _sound(vocab: GeneVocab, folder: Path) -> None:
    """What holds of every vocabulary: distinct keys, which mean themselves, and which a file gives back."""
    assert len(set(vocab.ids)) == len(vocab) > 0
    assert all(name and name.isprintable() and clean_name(name) == name for name in vocab.ids)
    assert (vocab.resolve(vocab.ids).tokens >= 0).all()
    vocab.save(folder / "saved.tsv")
    again = GeneVocab.load(folder / "saved.tsv")
    assert again == vocab
    pd.testing.assert_frame_equal(again.table, vocab.table)


_ensembl = st.integers(1, 60).map(lambda i: f"ENSG{i:011d}")
_ids = st.one_of(_ensembl, _ensembl, _ensembl, st.just("ENSG00000000003.7"), some.names)


_sound_or_not = st.one_of(
    st.lists(some.plain_names, min_size=6, max_size=6), st.lists(some.names, min_size=6, max_size=6)
)


@target(
    "genes of an input",
    ids=st.one_of(st.lists(_ensembl, min_size=1, max_size=6), st.lists(_ids, min_size=1, max_size=6)),
    symbols=_sound_or_not,
)
def genes_of_an_input(folder: Path, ids: list[str], symbols: list[str]) -> bool:
    with refusal() as refused:
        vocab = GeneVocab.from_names(ids, symbols[: len(ids)])
        _sound(vocab, folder)
        _sound(GeneVocab.union([vocab, GeneVocab.from_names(symbols)]), folder)
    if refused:
        return False
    known = set(vocab.ids)
    assert all(clean_name(name) in known for name in ids if is_ensembl_id(clean_name(name)))
    return True


_place = (st.one_of(st.just(""), st.integers(0, 999).map(str)), some.numbers)
_at = (st.integers(0, 999).map(str), some.numbers)
_symbol = (some.plain_names, some.names)
_tsv = some.lines(
    (_ensembl, _ids), _symbol, (st.sampled_from(["", "OLD"]), some.names), (st.sampled_from(["", "A|B"]), some.names),
    st.sampled_from(["chr1", ""]), _place, _place, st.sampled_from("+-"), least=1,
)  # fmt: skip


@target("genes.tsv", text=_tsv, packed=st.booleans(), head=st.sampled_from(["\t".join(COLUMNS)] * 4 + ["gene_id", ""]))
def genes_tsv(folder: Path, text: str, packed: bool, head: str) -> bool:
    path = _put(folder / "genes.tsv", f"{head}\n{text}", packed)
    with refusal(path) as refused:
        vocab = GeneVocab.read(path)
        _sound(vocab, folder)
    if refused:
        return False
    rows = [line.split("\t") for line in text.replace("\r\n", "\n").removesuffix("\n").split("\n")]
    assert vocab.ids.tolist() == [row[0] for row in rows]
    for column, at in (("start", 5), ("end", 6)):
        values = vocab.table[column]
        assert [None if pd.isna(v) else int(v) for v in values] == [int(row[at]) if row[at] else None for row in rows]
    return True


def _of_gene(genes: st.SearchStrategy[str], symbols: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    kinds = st.sampled_from(["protein_coding"] * 4 + ["lncRNA"])
    return st.builds('gene_id "{}"; gene_name "{}"; gene_type "{}";'.format, genes, symbols, kinds)


_about = (_of_gene(_ensembl, some.plain_names), _of_gene(_ids, some.names))
_gtf = some.lines(
    st.sampled_from(["chr1", "1", "X", "chrY", "MT", "GL1.1"]), st.just("HAVANA"), st.sampled_from(["gene", "gene", "gene", "exon"]),
    _at, _at, st.just("."), st.sampled_from(["+", "-", "?"]), st.just("."), _about, least=1,
)  # fmt: skip


@target("GTF", text=_gtf, packed=st.booleans())
def gtf(folder: Path, text: str, packed: bool) -> bool:
    path = _put(folder / "genes.gtf", text, packed)
    with refusal(path) as refused:
        vocab = GeneVocab.read(path)
        _sound(vocab, folder)
        places = GenePlaces.read(path)
        _, tss = places.find(vocab.ids, vocab.symbols)
        table = vocab.table
        first = np.where(table["strand"] == "+", table["start"], np.where(table["strand"] == "-", table["end"], -1))
        assert tss.tolist() == first.astype(np.int64).tolist()
    return not refused


_HGNC = ("hgnc_id", "symbol", "locus_group", "status", "ensembl_gene_id", "prev_symbol", "alias_symbol", "location")
_hgnc = some.lines(
    st.just("HGNC:1"),
    (st.one_of(st.sampled_from(some.GENES), some.plain_names), some.names),
    st.sampled_from(["protein-coding gene"] * 3 + ["RNA"]),
    st.sampled_from(["Approved"] * 3 + ["Withdrawn"]),
    (_ensembl, _ids),
    st.sampled_from(["", '"OLD1|TP53"', "OLD2"]),
    st.sampled_from(["", '"A|B"', "MYC"]),
    st.sampled_from(["19q13.43", "mitochondria", "Xq2", "", "9"]),
)


@target("HGNC", text=_hgnc, packed=st.booleans())
def hgnc(folder: Path, text: str, packed: bool) -> bool:
    path = _put(folder / "hgnc.txt", "\t".join(_HGNC) + "\n" + text, packed)
    with refusal(path) as refused:
        vocab = GeneVocab.read(path)
        _sound(vocab, folder)
    return not refused


_number = st.one_of(st.integers(-9, 999), st.floats(), st.none(), some.numbers, st.integers())
_columns = st.sampled_from(
    ["gene_ids", "symbol", "chrom", "chromosome", "tss", "start", "end", "strand", "interval", "gene_name"]
)


@st.composite
def frames(draw: Any) -> pd.DataFrame:
    """A var of genes with columns of places, well or badly typed."""
    n = draw(st.integers(1, 4))
    kinds = {
        "tss": _number, "start": _number, "end": _number, "strand": st.sampled_from(["+", "-", "1", -1, None]),
        "chrom": st.one_of(st.sampled_from(some.CONTIGS), some.names, st.none()), "gene_ids": _ids,
        "interval": st.one_of(st.just("chr1:5-9"), some.peak_names().map(lambda p: p[0]), st.just("chr1:" + "9" * 30 + "-2")),
    }  # fmt: skip
    found = {}
    for name in draw(st.lists(_columns, unique=True, max_size=6)):
        values = draw(
            st.lists(kinds.get(name, kinds["chrom"] if name == "chromosome" else some.names), min_size=n, max_size=n)
        )
        found[name] = pd.Series(values, dtype=draw(st.sampled_from([object, object, "category"])))
    frame = pd.DataFrame(found, index=range(n))
    return frame.set_axis(pd.Index(draw(st.lists(some.names, min_size=n, max_size=n)), dtype=object), axis=0)


@target("places of genes in var", var=frames(), table=frames())
def gene_places(folder: Path, var: pd.DataFrame, table: pd.DataFrame) -> bool:
    with refusal() as refused:
        places = GenePlaces.read(table) if "tss" in table else None
        found = gene_table(var, places)
        assert len(found) == len(var)
        assert found["tss"].between(-1, 2**40).all()
        if "tss" in var and places is None and ("chrom" in var or "chromosome" in var):
            for given, tss in zip(var["tss"], found["tss"].tolist()):
                whole = type(given) is int and 0 <= given < 2**40
                assert not whole or given == tss, (given, tss)
    return not refused


_vector = st.one_of(st.floats(width=32), some.numbers.map(str), st.integers(-3, 3))
_rows = st.lists(st.tuples(some.names, st.lists(st.floats(width=32), min_size=2, max_size=2)), min_size=2, max_size=5)


@target("gene vectors, written and read", rows=_rows, suffix=st.sampled_from([".parquet", ".txt"]))
def gene_vectors(folder: Path, rows: list[Any], suffix: str) -> bool:
    """Every name and number comes back to the last bit, or the writer refuses, as text cannot hold all names."""
    frame = pd.DataFrame([numbers for _, numbers in rows], dtype=np.float32).reindex(columns=range(2))
    frame.index, frame.columns = pd.Index([name for name, _ in rows], dtype=object, name="gene_id"), ["0", "1"]
    frame.insert(0, "symbol", [name for name, _ in rows])
    path = folder / f"genes{suffix}"
    with refusal(path) as refused:
        write_gene_table(frame.astype({"0": "float32", "1": "float32"}), path)
    if refused:
        assert suffix == ".txt"
        assert not path.exists()
        return False
    with refusal(path) as refused:
        found = read_gene_table(path)
        assert found.names.tolist() == [name for name, _ in rows]
        assert np.array_equal(found.values, np.array([numbers for _, numbers in rows], np.float32), equal_nan=True)
    assert not refused, refused[0]
    return True


_one = (st.floats(width=32).map(repr), _vector.map(str))
_text = st.sampled_from([" ", ",", "\t", ";"]).flatmap(
    lambda mark: some.lines((some.plain_names, some.names), _one, _one, separator=mark, least=2)
)


@target(
    "gene vectors as text",
    text=_text,
    head=st.sampled_from(["", "", "2 2\n", "gene_id,0,1\n", "symbol\t0\t1\n", "0 1\n", ",a,b\n"]),
    suffix=st.sampled_from([".csv", ".tsv", ".txt", ".txt.gz"]),
)
def gene_vectors_as_text(folder: Path, text: str, head: str, suffix: str) -> bool:
    path = _put(folder / f"genes{suffix}", head + text, suffix.endswith("gz"))
    with refusal(path) as refused:
        found: GeneRows = read_gene_table(path)
        assert found.values.dtype == np.float32
        assert len(found.names) == len(found.values) >= 2
        read_table(str(path), None)
    if refused:
        return False
    kept = [line for line in (head + text).replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()][
        -len(found.names) :
    ]
    for line, values in zip(kept, found.values, strict=True):
        last = line.replace(",", " ").replace(";", " ").split()
        with np.errstate(over="ignore"):
            end = (
                np.float32(last[-1])
                if last and _is_number(last[-1]) and not line.rstrip(" ").endswith((",", ";", "\t"))
                else None
            )
        assert end is None or math.isnan(end) or values[-1] == end, (line, values)
    return True


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@target(
    "gene vectors in parquet",
    columns=st.dictionaries(
        st.one_of(st.sampled_from(["gene_id", "symbol", "0", "1", "index"]), some.names),
        st.sampled_from(
            ["int64", "float64", "float32", "object", "bool", "category", "Int64", "list", "complex", "datetime"]
        ),
        max_size=4,
    ),
    n=st.integers(0, 4),
    index=st.sampled_from([None, "gene_id", "names"]),
)
def gene_vectors_in_parquet(folder: Path, columns: dict[str, str], n: int, index: str | None) -> bool:
    made: dict[str, Any] = {}
    for name, kind in columns.items():
        if kind == "list":
            made[name] = pd.Series([[1.0, 2.0]] * n, dtype=object)
        elif kind == "datetime":
            made[name] = pd.Series(pd.to_datetime(["2020-01-01"] * n))
        elif kind == "complex":
            made[name] = pd.Series([b"x"] * n, dtype=object)
        elif kind in ("object", "category"):
            made[name] = pd.Series([f"GENE{i}" for i in range(n)], dtype=kind)
        else:
            made[name] = pd.Series([i % 2 for i in range(n)], dtype=kind)
    frame = pd.DataFrame(made, index=range(n))
    if index == "names":
        frame.index = pd.Index([f"GENE{i}" for i in range(n)])
    elif index is not None and index in frame:
        frame = frame.set_index(index)
    path = folder / "genes.parquet"
    frame.to_parquet(path)
    with refusal(path) as refused:
        found = read_gene_table(path)
        assert len(found.names) == n
        read_table(str(path), None)
    return not refused
