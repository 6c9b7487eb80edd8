"""Laws about labels of genes and of pairs: the account adds up, and every value that is kept is one of the file's."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import strategies as some
from fuzzing import refusal, target
from hypothesis import strategies as st

from expresser.gene_names import clean_name
from expresser.genes import GeneVocab
from finetune.labels import GeneLabels, PairLabels, read_constraint, read_dosage, read_gene_labels, read_pairs
from finetune.labels.delimited import is_missing, to_numbers

VOCAB = GeneVocab(
    pd.DataFrame(
        {
            "gene_id": [f"ENSG{k:011d}" for k in range(1, 13)],
            "symbol": list(some.GENES),
            "previous": ["OLDA"] + [""] * 11,
        }
    )
)
LOST_GENES = ("missing", "unknown_genes", "repeated", "contradictory", "set_aside", "rare")
LOST_PAIRS = (
    *("missing", "unknown_genes", "self_pairs", "repeated", "both_strands", "contradictory"),
    *("repeated_across_parts", "outside_tables", "set_aside"),
)
vocabs = st.sampled_from([None, VOCAB, VOCAB])
_gene = (st.sampled_from(some.GENES), some.names)
_values = st.sampled_from([("0", "1"), ("yes", "no"), ("0", "1", ""), ("1.5", "2", "1e3"), ("a", "b")])
_odd = st.one_of(st.sampled_from(["0", "yes", "inf", "a"]), some.numbers)
_separators = st.sampled_from(["\t", ",", ";", " "])


def _put(path: Path, text: str, packed: bool = False) -> Path:
    path.write_bytes(gzip.compress(text.encode(), 1) if packed else text.encode())
    return path


def _genes_add_up(labels: GeneLabels) -> None:
    account = labels.account
    assert account["rows_read"] == sum(account[key] for key in LOST_GENES) + account["kept"]
    assert account["kept"] == len(labels)
    json.dumps(account, allow_nan=False)


def _pairs_add_up(labels: PairLabels) -> None:
    account = labels.account
    assert account["pairs_read"] == sum(account[key] for key in LOST_PAIRS) + account["kept"] - account["drawn"]
    assert account["kept"] == len(labels)
    json.dumps(account, allow_nan=False)


@target("numbers of a table", texts=st.lists(st.one_of(some.numbers, some.names, st.floats().map(str)), max_size=5))
def numbers_of_a_table(folder: Path, texts: list[str]) -> bool:
    """A field is missing, a number as Python reads it, or strange; nothing else becomes a number."""
    fields = np.array([text.strip() for text in texts], dtype=object)
    numbers, strange = to_numbers(fields)
    for text, number, odd, gone in zip(
        fields.tolist(), numbers.tolist(), strange.tolist(), is_missing(fields).tolist()
    ):
        try:
            value = float(text)
        except ValueError:
            value = None
        assert not (gone and odd)
        if not odd and not gone:
            assert value is not None, (text, number)
            assert number == value or (math.isnan(number) and not math.isfinite(value)), (text, number)
        if value is not None and value == value and not gone and text.isascii() and "_" not in text:
            assert not odd, text
    return True


@st.composite
def tables(draw: Any, *fields: Any, heads: list[tuple[str, ...]]) -> str:
    separator = draw(_separators)
    head = draw(st.sampled_from([(), *heads]))
    value = (st.sampled_from(draw(_values)), _odd)
    body = draw(some.lines(*(value if f is None else f for f in fields), separator=separator, least=2, most=14))
    return (separator.join(head) + "\n" if head else "") + body


@target(
    "labels of genes",
    text=tables(_gene, None, heads=[("gene", "label"), ("symbol", "class"), ("gene_id", "value")]),
    kind=st.sampled_from(["auto", "auto", "binary", "regression", "multiclass"]),
    vocab=vocabs,
    packed=st.booleans(),
)
def labels_of_genes(folder: Path, text: str, kind: Any, vocab: GeneVocab | None, packed: bool) -> bool:
    path = _put(folder / "labels.tsv", text, packed)
    with refusal(path) as refused:
        labels = read_gene_labels(path, vocab=vocab, kind=kind)
        _genes_add_up(labels)
        assert labels.values.notna().all()
        if labels.kind == "binary":
            # Each class is of words of its own: no field of another value hides in one of them.
            words = {k: set(text.split("/")) for k, text in labels.account["classes"].items()}
            assert not words["0"] & words["1"]
    return not refused


@target(
    "a binary column",
    values=_values.flatmap(
        lambda few: st.lists(st.one_of(st.sampled_from(few), st.sampled_from(few), _odd), min_size=2, max_size=6)
    ),
)
def binary_column(folder: Path, values: list[str]) -> bool:
    """A gene is 1 or 0 only where its field says the one or the other of two values."""
    fields = [value.strip() for value in values]
    if any(not field or field in ("#",) or "," in field for field in fields):
        return False
    path = _put(folder / "labels.tsv", "gene\tlabel\n" + "".join(f"{g}\t{v}\n" for g, v in zip(some.GENES, fields)))
    with refusal(path) as refused:
        labels = read_gene_labels(path, vocab=VOCAB, kind="binary")
    if refused:
        return False
    of = dict(zip(VOCAB.ids, fields))
    seen: dict[int, set[Any]] = {0: set(), 1: set()}
    truth = {"true": 1.0, "yes": 1.0, "y": 1.0, "t": 1.0, "false": 0.0, "no": 0.0, "n": 0.0, "f": 0.0}
    for gene, value in labels.values.items():
        text = of[gene]
        try:
            seen[int(value)].add(float(text))
        except ValueError:
            seen[int(value)].add(truth.get(text.lower(), text))
    assert len(seen[0]) == len(seen[1]) == 1, seen
    return True


@target("dosage", text=tables(_gene, _gene, heads=[("dosage_sensitive", "dosage_insensitive")]), vocab=vocabs)
def dosage(folder: Path, text: str, vocab: GeneVocab | None) -> bool:
    path = _put(folder / "dosage.tsv", text)
    with refusal(path) as refused:
        _genes_add_up(read_dosage(path, vocab=vocab))
    return not refused


_constraint = tables(
    _gene,
    (st.floats(-9, 9).map(str), some.numbers),
    (st.integers(1, 999).map(str), some.numbers),
    st.sampled_from(["NM_1", "ENST1", ""]),
    st.sampled_from(["true", "false"]),
    heads=[
        ("gene", "lof_z", "cds_length", "transcript", "canonical"),
        ("gene_id", "lof.z_score", "lof.exp", "transcript", "mane_select"),
    ],
)


@target("constraint", text=_constraint, vocab=vocabs)
def constraint(folder: Path, text: str, vocab: GeneVocab | None) -> bool:
    path = _put(folder / "constraint.tsv", text)
    with refusal(path) as refused:
        labels = read_constraint(path, vocab=vocab)
        _genes_add_up(labels)
        assert np.isfinite(labels.values).all()
    return not refused


@target(
    "pairs in a table",
    text=tables(
        _gene,
        _gene,
        (st.sampled_from(["1", "0"]), st.sampled_from(["2", "", "x", "1.0"])),
        heads=[("gene1", "gene2", "label"), ("source", "target", "y")],
    ),
    vocab=vocabs,
    negatives=st.sampled_from(["auto", "given", "degree-matched", "uniform"]),
)
def pairs_in_a_table(folder: Path, text: str, vocab: GeneVocab | None, negatives: Any) -> bool:
    path = _put(folder / "pairs.tsv", text)
    with refusal(path) as refused:
        labels = read_pairs(path, vocab=vocab, negatives=negatives)
        _pairs_add_up(labels)
        if labels.account["negatives"] == "given" and vocab is not None:
            rows = [line.replace(",", " ").replace(";", " ").split() for line in text.replace("\r", "\n").split("\n")]
            said = {(*sorted(map(_id, row[:2])), row[2][:1]) for row in rows if len(row) == 3}
            clean = not any(c in text for c in '"#') and text.isascii()
            for a, b, label in zip(labels.a, labels.b, labels.label.tolist()):
                assert not clean or (a, b, str(label)) in said
    return not refused


def _id(name: str) -> str:
    token = int(VOCAB.resolve([name]).tokens[0])
    return str(VOCAB.ids[token]) if token >= 0 else clean_name(name)


@target(
    "Gene2vec's pairs",
    text=some.lines(_gene, _gene, separator=" ", least=4, most=8),
    marks=st.lists(st.sampled_from("10"), min_size=9, max_size=9),
    vocab=vocabs,
)
def gene2vec(folder: Path, text: str, marks: list[str], vocab: GeneVocab | None) -> bool:
    marks = marks[: len(text.splitlines())]
    path, labels = _put(folder / "train_text.txt", text), _put(folder / "train_label.txt", "\n".join(marks))
    with refusal(folder) as refused:
        _pairs_add_up(read_pairs(path, vocab=vocab, labels=labels))
    return not refused


_protein = (
    st.integers(1, 9).map(lambda k: f"9606.ENSP{k:011d}"),
    st.sampled_from(["NA", "nan", "", "9606.", '"a', "10090.ENSMUSP1", "null", 'a"b', "#a"]),
)
_links = some.lines(_protein, _protein, (st.integers(0, 1000).map(str), some.numbers), separator=" ", least=3, most=12)
_all = "".join(f"9606.ENSP{k:011d}\t{gene}\tEnsembl_HGNC_symbol\n" for k, gene in enumerate(some.GENES, 1))
_sources = st.sampled_from(["Ensembl_HGNC_symbol", "Ensembl_gene", "BLAST"])
_aliases = st.one_of(
    st.just(_all),
    some.lines(_protein, _gene, _sources, most=8).map(lambda text: _all + text),
    some.lines(_protein, _gene, most=8),
)


@target(
    "STRING",
    text=_links,
    aliases=_aliases,
    head=st.sampled_from(["#string_protein_id\talias\tsource\n", "#string_protein_id\tpreferred_name\n"]),
    vocab=vocabs,
    negatives=st.sampled_from(["auto", "uniform", "low-evidence"]),
    separator=st.sampled_from([" ", "\t", ","]),
)
def string(folder: Path, text: str, aliases: str, head: str, vocab: Any, negatives: Any, separator: str) -> bool:
    whole = ("protein1 protein2 experimental\n" + text).replace(" ", separator)
    path, names = _put(folder / "links.txt", whole), _put(folder / "aliases.txt", head + aliases)
    with refusal(folder) as refused:
        labels = read_pairs(path, vocab=vocab, aliases=names, format="string", negatives=negatives)
        _pairs_add_up(labels)
        rows = [line.split(separator) for line in whole.replace("\r\n", "\n").split("\n")[1:] if line.strip()]
        assert labels.account["pairs_read"] == len(rows)
        assert labels.account["positives_read"] == sum(float(row[2]) > 200 for row in rows)
    return not refused
