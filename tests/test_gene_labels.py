"""Labels of genes and pairs: every row read is kept or accounted for, and what makes a task impossible is refused."""

import gzip
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.labels import GeneLabels, PairLabels, read_constraint, read_dosage, read_gene_labels, read_pairs
from finetune.labels.negatives import degree_matched, uniform

LETTERS = "ABCDEFGHIJKLMNOPQRST"


def ensg(number: int) -> str:
    return f"ENSG{number:011d}"


# Genes A to T are ENSG…01 to ENSG…20; OLDA was A's symbol before.
VOCAB = GeneVocab(
    pd.DataFrame(
        {
            "gene_id": [ensg(k) for k in range(1, 21)],
            "symbol": [f"GEN{letter}" for letter in LETTERS],
            "previous": ["OLDA"] + [""] * 19,
        }
    )
)


def gen(letters: str) -> str:
    return " ".join(f"GEN{letter}" for letter in letters)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def pairs_adds_up(labels: PairLabels) -> None:
    """The law of the account."""
    a = labels.account
    lost = ("missing", "unknown_genes", "self_pairs", "repeated", "both_strands", "contradictory")
    lost += ("repeated_across_parts", "outside_tables", "set_aside")
    assert a["pairs_read"] == sum(a[key] for key in lost) + a["kept"] - a["drawn"]
    assert a["kept"] == len(labels)
    assert a["positives"] == labels.label.sum()
    assert a["genes"] == len(labels.genes)
    json.dumps(a)


def genes_add_up(labels: GeneLabels) -> None:
    a = labels.account
    lost = ("missing", "unknown_genes", "repeated", "contradictory", "set_aside", "rare")
    assert a["rows_read"] == sum(a[key] for key in lost) + a["kept"]
    assert a["kept"] == len(labels)
    assert labels.values.index.name == "gene_id"
    json.dumps(a)


def as_dict(labels: PairLabels) -> dict[tuple[str, str], int]:
    letter = dict(zip(VOCAB.ids, LETTERS))
    return {(letter[a], letter[b]): int(label) for a, b, label in zip(labels.a, labels.b, labels.label)}


def refuses(*words: str, reader=read_pairs, **arguments) -> None:
    with pytest.raises(InputError) as caught:
        reader(**{"vocab": VOCAB} | arguments)
    for word in words:
        assert word in str(caught.value)


# Pairs in tables


MESSY = """gene1,gene2,label
GENB,GENA,1
GENA,GENB,1
GENB,GENA,1
GENC,GEND,0
GENC,GEND,1
GENE,GENE,1
GENA,OLDA,0
OLDA,GENC,0
GENF,NOPE,1
NOPE,ALSO,0
GENG,,1
GENG,GENH,NA
GENG,ENSG00000000009.4,1
"""


def test_every_fault_of_a_table_is_counted(tmp_path: Path) -> None:
    labels = read_pairs(write(tmp_path / "messy.csv", MESSY), vocab=VOCAB)
    assert as_dict(labels) == {("A", "B"): 1, ("A", "C"): 0, ("G", "I"): 1}
    expected = {
        "pairs_read": 13, "positives_read": 8, "missing": 2, "unknown_genes": 2, "unknown_names": 2, "self_pairs": 2,
        "both_strands": 1, "repeated": 1, "contradictory": 2, "repeated_across_parts": 0, "set_aside": 0, "drawn": 0,
        "kept": 3, "positives": 2, "genes": 5, "negatives": "given", "unmatched_examples": ["NOPE", "ALSO"],
        "cut": None, "label_column": "label",
    }  # fmt: skip
    assert {key: labels.account[key] for key in expected} == expected
    assert labels.part is None
    pairs_adds_up(labels)


@pytest.mark.parametrize("delimiter", ["\t", ",", " ", "   ", ";"])
@pytest.mark.parametrize("header", ["gene1 gene2 label", "Gene_A Gene_B Label", "one two three", None])
@pytest.mark.parametrize("zipped", [False, True])
def test_delimiter_header_and_compression_do_not_matter(tmp_path, delimiter, header, zipped) -> None:
    lines = ([header] if header else []) + ["GENA GENB 1", "GENC GEND 0"]
    text = "\r\n".join(line.replace(" ", delimiter) for line in lines) + "\n\n"
    path = tmp_path / "pairs.txt"
    path.write_bytes(gzip.compress(text.encode()) if zipped else text.encode())
    labels = read_pairs(path, vocab=VOCAB)
    assert as_dict(labels) == {("A", "B"): 1, ("C", "D"): 0}
    assert labels.account["pairs_read"] == 2
    assert (labels.account["header"] is None) == (header is None)


def test_columns_are_found_by_their_names(tmp_path: Path) -> None:
    text = "source_db,Symbol A,Symbol B,score,label\nX,GENA,GENB,0.3,1\nY,GENA,GENC,0.1,0\n"
    labels = read_pairs(write(tmp_path / "t.csv", text), vocab=VOCAB)
    assert as_dict(labels) == {("A", "B"): 1, ("A", "C"): 0}
    assert labels.account["ignored_columns"] == ["source_db", "score"]


def test_genes_called_as_columns_are_are_genes(tmp_path: Path) -> None:
    vocab = GeneVocab.from_names([ensg(1), ensg(2), ensg(3)], ["ID1", "ID2", "GENE1"])
    labels = read_pairs(write(tmp_path / "t.txt", "ID1 ID2 1\nID2 GENE1 0\n"), vocab=vocab)
    assert labels.account["pairs_read"] == 2


def test_without_a_vocabulary_names_are_genes(tmp_path: Path) -> None:
    labels = read_pairs(write(tmp_path / "t.csv", "gene1,gene2,label\nzz,b,1\nb,zz,1\nb,c,0\n"), vocab=None)
    assert list(zip(labels.a, labels.b, labels.label)) == [("b", "c", 0), ("b", "zz", 1)]


NAMES = st.sampled_from([f"GEN{letter}" for letter in "ABCDEF"] + ["OLDA", "NOPE", "", "ENSG00000000002.7"])
ROWS = st.lists(st.tuples(NAMES, NAMES, st.sampled_from(["0", "1", "NA"])), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(rows=ROWS, order=st.randoms(use_true_random=False))
def test_accounts_add_up_and_order_does_not_matter(tmp_path_factory, rows, order) -> None:
    path = tmp_path_factory.mktemp("rows") / "t.csv"
    token = dict(zip([f"GEN{letter}" for letter in "ABCDEF"], LETTERS)) | {"OLDA": "A", "ENSG00000000002.7": "B"}
    said: dict[tuple[str, ...], set[str]] = {}
    for a, b, label in rows:
        if a in token and b in token and token[a] != token[b] and label != "NA":
            said.setdefault(tuple(sorted((token[a], token[b]))), set()).add(label)
    expected = {pair: int(min(labels)) for pair, labels in said.items() if len(labels) == 1}

    def read() -> PairLabels:
        write(path, "gene1,gene2,label\n" + "".join(f"{a},{b},{label}\n" for a, b, label in rows))
        return read_pairs(path, vocab=VOCAB, negatives="given", min_resolved=0.0)

    if set(expected.values()) != {0, 1}:
        with pytest.raises(InputError):
            read()
        return
    one = read()
    assert as_dict(one) == expected
    pairs_adds_up(one)
    order.shuffle(rows)
    two = read()
    assert as_dict(two) == expected
    lost = ("missing", "unknown_genes", "self_pairs", "contradictory")
    assert [one.account[key] for key in lost] == [two.account[key] for key in lost]


def test_a_pair_in_the_tables_has_both_genes(tmp_path: Path) -> None:
    labels = read_pairs(write(tmp_path / "t.txt", "GENA GENB 1\nGENA GENC 0\nGENC GEND 1\n"), vocab=VOCAB)
    some = labels.of_genes({ensg(1), ensg(2), ensg(3)})
    assert as_dict(some) == {("A", "B"): 1, ("A", "C"): 0}
    assert some.account["outside_tables"] == 1
    assert (some.account["kept"], some.account["positives"], some.account["genes"]) == (2, 1, 3)
    assert labels.account["kept"] == 3
    with pytest.raises(InputError, match="1 pairs have both genes"):
        labels.of_genes([ensg(1), ensg(2)])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ("empty",)),
        ("gene1,gene2,label\n", ("no rows below its header",)),
        ("GENA\nGENB\n", ("one column only",)),
        ("gene1,gene2,label\nGENA,GENB,1\nGENA,GENC,2\n", ("line 3", "'2'", "must be 0 or 1")),
        ("gene1,gene2,label\nGENA,GENB,1\nGENA,GENC,-1\n", ("line 3", "'-1'")),
        ("gene1,gene2,label\nGENA,GENB,0\nGENA,GENC,0\n", ("all 2 usable pairs are negative",)),
        ("gene1 gene2\nGENA GENB 1 2\n", ("line 2 has 4 fields",)),
        ("GENA GENB\nGENC\n", ("line 2 has 1 fields",)),
        ("gene1,gene2\nTrp53,Actb\nGapdh,Cd4\nCd8a,GENA\n", ("16.7%", "at least 50%", "mouse")),
        ("gene1,gene2\nGENA,GENB\nGENA,GENC\nGENB,GENC\n", ("3 of them positive and 0 negative",)),  # all pairs
    ],
)
def test_impossible_tables_are_refused(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    path = write(tmp_path / "bad.csv", text)
    refuses("bad.csv", *words, path=path)


def test_one_class_is_refused_where_negatives_are_to_be_given(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "gene1,gene2,label\nGENA,GENB,1\nGENA,GENC,1\n")
    refuses("2 of them positive and 0 negative", "degree-matched", path=path, negatives="given")
    refuses("low-evidence", "STRING", path=path, negatives="low-evidence")


def test_min_resolved_lets_a_small_panel_through(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "gene1,gene2,label\nGENA,GENB,1\nGENA,GENC,0\nX1,X2,1\nX3,X4,1\n")
    refuses("3 of 7 names", path=path)
    assert len(read_pairs(path, vocab=VOCAB, min_resolved=0.2)) == 2


# Gene2vec's files


def gene2vec(folder: Path, **parts: str) -> Path:
    for part, text in parts.items():
        rows = [line.split() for line in text.strip().splitlines()]
        write(folder / f"{part}_text.txt", "".join(f"GEN{a} GEN{b}\n" for a, b, _ in rows))
        write(folder / f"{part}_label.txt", "".join(f"{label}\n" for _, _, label in rows))
    return folder


def test_parts_are_kept_and_never_share_a_pair(tmp_path: Path) -> None:
    folder = gene2vec(
        tmp_path / "ggi",
        train="A B 1\nC D 0\nE F 1",
        valid="B A 1\nG H 0\nI J 1",
        test="D C 0\nI J 1\nK L 0\nF E 0\nM N 1",
    )
    labels = read_pairs(folder, vocab=VOCAB)
    assert labels.name == "ggi"
    got = dict(zip(as_dict(labels), labels.part))
    assert got == {
        ("A", "B"): "train", ("C", "D"): "train", ("G", "H"): "valid", ("I", "J"): "valid", ("K", "L"): "test",
        ("M", "N"): "test",
    }  # fmt: skip
    assert labels.account["repeated_across_parts"] == 3
    assert labels.account["contradictory"] == 2  # E F in train and test
    pairs_adds_up(labels)
    assert list(labels.of_genes(VOCAB.ids[:4]).part) == ["train", "train"]


def test_one_text_file_with_its_labels(tmp_path: Path) -> None:
    folder = gene2vec(tmp_path, train="A B 1\nC D 0")
    labels = read_pairs(folder / "train_text.txt", labels=folder / "train_label.txt", vocab=VOCAB)
    assert as_dict(labels) == {("A", "B"): 1, ("C", "D"): 0}
    assert labels.part is None


def test_faults_of_gene2vec_folders_are_named(tmp_path: Path) -> None:
    folder = gene2vec(tmp_path / "g", train="A B 1\nC D 0", test="E F 1\nG H 0")
    write(folder / "train_label.txt", "1\n")
    refuses("train_text.txt has 2 lines", "have 1", path=folder)
    write(folder / "train_label.txt", "1\nyes\n")
    refuses("train_label.txt", "line 2", "'yes'", path=folder)
    write(folder / "train_label.txt", "")
    refuses("train_label.txt", "empty", path=folder)
    write(folder / "train_label.txt", "1\n0\n")
    write(folder / "train_text.txt", "GENA GENB GENC\nGENC GEND\n")
    refuses("train_text.txt: line 1", "two gene names", path=folder)
    refuses("undo it", path=gene2vec(tmp_path / "h", train="A B 1", test="C D 1"), negatives="uniform")
    refuses("2 of them positive and 0 negative", path=tmp_path / "h")
    (folder / "train_label.txt").unlink()
    refuses("no train_label.txt", path=folder)
    (folder / "train_text.txt").unlink()
    refuses("only the parts ['test']", path=folder)
    refuses("needs the file of its labels", path=folder / "test_text.txt", format="gene2vec")


# Negatives


def hubs(n_genes: int, n_pairs: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs with heavy-tailed degrees."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, n_genes + 1) ** 0.8
    ends = rng.choice(n_genes, (4 * n_pairs, 2), p=weight / weight.sum())
    ends = np.unique(np.sort(ends[ends[:, 0] != ends[:, 1]], axis=1), axis=0)
    return tuple(rng.permutation(ends)[:n_pairs].T)


def rate_auroc(a, b, x, y, n_genes: int) -> float:
    """AUROC of the mean positive rate of a pair's genes."""
    positive = np.bincount(np.concatenate([a, b]), minlength=n_genes)
    negative = np.bincount(np.concatenate([x, y]), minlength=n_genes)
    rate = positive / np.maximum(positive + negative, 1)
    scores = np.concatenate([rate[a] + rate[b], rate[x] + rate[y]])
    return float(roc_auc_score(np.repeat([1, 0], [len(a), len(x)]), scores))


def test_matched_negatives_say_nothing_about_degrees_and_uniform_ones_say_a_lot() -> None:
    a, b = hubs(600, 4000, seed=0)
    x, y, free = degree_matched(a, b, 600, seed=1)
    assert free == 0
    np.testing.assert_array_equal(np.bincount([*a, *b], minlength=600), np.bincount([*x, *y], minlength=600))
    assert rate_auroc(a, b, x, y, 600) == 0.5
    x, y = uniform(a, b, 600, wanted=len(a), seed=1)
    assert len(x) == len(a)
    assert rate_auroc(a, b, x, y, 600) > 0.85


@settings(max_examples=60, deadline=None)
@given(n_genes=st.integers(2, 14), share=st.floats(0, 1), seed=st.integers(0, 1000))
def test_negatives_are_new_pairs_of_no_larger_degree(n_genes: int, share: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    every = np.stack(np.triu_indices(n_genes, 1), axis=1)
    mixed = rng.permutation(every)
    n_edges = max(1, int(share * len(every)))
    edges, closed = mixed[:n_edges], mixed[n_edges : n_edges + 2]
    keys = closed[:, 0] * n_genes + closed[:, 1]
    a, b = edges.T
    x, y, free = degree_matched(a, b, n_genes, seed=seed, closed=keys)
    degree = np.bincount(edges.ravel(), minlength=n_genes)
    drawn = np.bincount(np.concatenate([x, y]), minlength=n_genes)
    assert (drawn <= degree).all()
    assert free == (degree - drawn).sum()
    u, v = uniform(a, b, n_genes, wanted=len(a), seed=seed, closed=keys)
    for one, two in ((x, y), (u, v)):
        got = set(zip(one.tolist(), two.tolist()))
        assert len(got) == len(one)
        assert (one < two).all()
        assert not got & set(map(tuple, edges.tolist())) | got & set(map(tuple, closed.tolist()))


def test_a_hub_without_strangers_stays_free() -> None:
    a, b = np.zeros(8, np.int64), np.arange(1, 9)  # a star: gene 0 with all others
    x, y, free = degree_matched(a, b, 9, seed=0)
    assert sorted([*x, *y]) == list(range(1, 9))
    assert free == 8


def test_seed_alone_decides_on_negatives(tmp_path: Path) -> None:
    a, b = hubs(15, 20, seed=3)
    lines = [f"{VOCAB.symbols[i]} {VOCAB.symbols[j]}\n" for i, j in zip(a, b)]
    turned = [" ".join(reversed(line.split())) + "\n" for line in lines[::-1]]
    for negatives in ("degree-matched", "uniform"):
        one, same, other = (
            read_pairs(write(tmp_path / "t.txt", "".join(rows)), vocab=VOCAB, negatives=negatives, seed=seed)
            for rows, seed in ((lines, 0), (turned, 0), (lines, 1))
        )
        assert as_dict(one) == as_dict(same)
        assert as_dict(one) != as_dict(other)
        assert one.account["negatives"] == negatives
        pairs_adds_up(one)
        assert one.account["positives"] == len(lines)


def test_drawn_negatives_are_drawn_again_among_the_genes_of_the_tables(tmp_path: Path) -> None:
    vocab = GeneVocab.from_names([ensg(k) for k in range(1, 301)])
    a, b = hubs(300, 1500, seed=4)
    path = write(tmp_path / "t.txt", "".join(f"{vocab.ids[i]} {vocab.ids[j]}\n" for i, j in zip(a, b)))
    labels = read_pairs(path, vocab=vocab)
    some = labels.of_genes(vocab.ids[:60])  # the hubs
    pairs_adds_up(some)
    assert some.account["outside_tables"] == 1500 - some.account["positives"]
    code = {gene: k for k, gene in enumerate(vocab.ids)}
    ends = np.array([[code[gene] for gene in side] for side in (some.a, some.b)])
    degree = [np.bincount(ends[:, some.label == k].ravel(), minlength=300) for k in (1, 0)]
    assert (degree[1] <= degree[0]).all()
    assert some.account["degree_unmatched"] == (degree[0] - degree[1]).sum()
    same = labels.of_genes(vocab.ids)
    np.testing.assert_array_equal(np.stack([labels.a, labels.b]), np.stack([same.a, same.b]))
    np.testing.assert_array_equal(labels.label, same.label)


def test_given_negatives_can_be_replaced(tmp_path: Path) -> None:
    text = "GENA GENB 1\nGENC GEND 1\nGENE GENF 0\nGENA GENG 0\n"
    labels = read_pairs(write(tmp_path / "t.txt", text), vocab=VOCAB, negatives="degree-matched")
    got = as_dict(labels)
    assert {pair for pair, label in got.items() if label} == {("A", "B"), ("C", "D")}
    assert Counter("".join(a + b for (a, b), label in got.items() if not label)) == Counter("ABCD")
    assert labels.account["set_aside"] == 2
    pairs_adds_up(labels)


# STRING


LINKS = "protein1 protein2 neighborhood fusion cooccurence coexpression experimental database textmining combined_score"
ALIASES = "#string_protein_id\talias\tsource\n"


def protein(letter: str, taxon: int = 9606) -> str:
    return f"{taxon}.ENSP{LETTERS.index(letter) + 1:011d}"


def links(path: Path, *rows: tuple[str, str, int], taxon: int = 9606) -> Path:
    lines = [f"{protein(a, taxon)} {protein(b, taxon)} 0 0 0 60 {score} 0 700 800" for a, b, score in rows]
    return write(path, "\n".join([LINKS, *lines]) + "\n")


def aliases(path: Path, letters: str) -> Path:
    rows = [f"{protein(x)}\tGEN{x}\tEnsembl_HGNC_symbol\n{protein(x)}\tP0{x}\tUniProt_AC\n" for x in letters]
    return write(path, ALIASES + "".join(rows))


EVIDENCE = [
    ("A", "B", 900), ("B", "A", 900), ("A", "C", 201), ("C", "A", 201), ("A", "D", 200), ("D", "A", 200), ("B", "C", 0),
    ("C", "B", 0), ("E", "F", 500), ("F", "E", 500), ("D", "E", 60), ("E", "D", 60), ("B", "F", 0), ("F", "B", 0),
]  # fmt: skip


@pytest.mark.parametrize("chunk", [3, 500_000])
def test_evidence_above_the_cut_is_positive(tmp_path: Path, monkeypatch, chunk: int) -> None:
    monkeypatch.setattr("finetune.labels.string_db.CHUNK", chunk)
    path = links(tmp_path / "9606.protein.links.detailed.v12.0.txt", *EVIDENCE)
    table = aliases(tmp_path / "aliases.txt", "ABCDEF")
    labels = read_pairs(path, vocab=VOCAB, aliases=table)
    got = as_dict(labels)
    assert {pair for pair, label in got.items() if label} == {("A", "B"), ("A", "C"), ("E", "F")}
    assert not {("A", "D"), ("D", "E")} & {pair for pair, label in got.items() if not label}  # some evidence
    a = labels.account
    assert (a["negatives"], a["cut"], a["channel"], a["both_strands"]) == ("degree-matched", 200, "experimental", 5)
    assert (a["pairs_read"], a["positives_read"], a["set_aside"]) == (14, 6, 6)
    pairs_adds_up(labels)

    paper = read_pairs(path, vocab=VOCAB, aliases=table, negatives="low-evidence")
    assert {pair for pair, label in as_dict(paper).items() if label} == {("A", "B"), ("A", "C"), ("E", "F")}
    low = {pair for pair, label in as_dict(paper).items() if not label}
    assert len(low) == 3
    assert low <= {("A", "D"), ("B", "C"), ("D", "E"), ("B", "F")}
    assert (paper.account["set_aside"], paper.account["drawn"]) == (1, 0)
    pairs_adds_up(paper)

    strict = read_pairs(path, vocab=VOCAB, aliases=table, cut=500, negatives="low-evidence")
    assert {pair for pair, label in as_dict(strict).items() if label} == {("A", "B")}


def test_aliases_are_ranked_and_doubt_is_no_answer(tmp_path: Path) -> None:
    path = links(tmp_path / "links.txt", ("A", "B", 900), ("C", "D", 900), ("E", "F", 900), ("G", "H", 900))
    rows = [
        ("A", ensg(1), "Ensembl_gene"), ("A", "GENB", "Ensembl_HGNC_symbol"),  # an Ensembl id first
        ("B", "GENC", "Ensembl_HGNC_alias_symbol"), ("B", "GENB", "BioMart_HUGO"),  # an alias is none
        ("C", "GENC", "Ensembl_HGNC_symbol"), ("D", "GEND", "Ensembl_HGNC_symbol"),
        ("E", ensg(5), "Ensembl_gene"), ("E", ensg(6), "Ensembl_gene"),  # two genes
        ("F", "GENF", "Ensembl_HGNC_symbol"), ("G", ensg(99), "Ensembl_gene"), ("G", "GENG", "Ensembl_HGNC_symbol"),
        ("H", "GENH", "UniProt_GN_Name"),  # nobody official says so
    ]  # fmt: skip
    table = write(tmp_path / "aliases.txt", ALIASES + "".join(f"{protein(p)}\t{a}\t{s}\n" for p, a, s in rows))
    labels = read_pairs(path, vocab=VOCAB, aliases=table)
    assert {pair for pair, label in as_dict(labels).items() if label} == {("A", "B"), ("C", "D")}
    assert labels.account["unknown_genes"] == 2


def test_preferred_names_and_proteins_of_one_gene(tmp_path: Path) -> None:
    path = links(tmp_path / "links.txt", ("A", "B", 300), ("C", "B", 900), ("A", "C", 950), ("D", "E", 900))
    names = {"A": "GENA", "C": "OLDA", "B": "GENB", "D": "GEND", "E": "GENE"}
    text = "#string_protein_id\tpreferred_name\tprotein_size\tannotation\n"
    info = write(tmp_path / "info.txt", text + "".join(f"{protein(p)}\t{n}\t100\twords\n" for p, n in names.items()))
    labels = read_pairs(path, vocab=VOCAB, aliases=info)
    assert {pair for pair, label in as_dict(labels).items() if label} == {("A", "B"), ("D", "E")}
    assert (labels.account["self_pairs"], labels.account["repeated"]) == (1, 1)
    pairs_adds_up(labels)


def test_faults_of_string_files_are_named(tmp_path: Path) -> None:
    path = links(tmp_path / "links.txt", *EVIDENCE)
    table = aliases(tmp_path / "aliases.txt", "ABCDEF")
    refuses("are not genes", "9606 (human)", "protein.aliases", path=path)
    mouse = links(tmp_path / "mouse.txt", *EVIDENCE, taxon=10090)
    refuses("10090 (mouse)", path=mouse)
    refuses("0.0%", "ENSP", path=mouse, aliases=table)
    refuses("['hearsay'] are missing", path=path, aliases=table, channel="hearsay")
    refuses("highest: 900", path=path, aliases=table, cut=950)
    refuses("cut is 1000", path=path, aliases=table, cut=1000)
    refuses("negatives 'given'", path=path, aliases=table, negatives="given")
    refuses("not string_protein_id", path=path, aliases=path)
    refuses("alias and source", path=path, aliases=write(tmp_path / "x.txt", "#string_protein_id\tcolour\n"))
    plain = write(tmp_path / "plain.txt", "protein1 protein2 combined_score\n9606.ENSP1 9606.ENSP2 300\n")
    refuses("protein.links.detailed", path=plain, aliases=table)
    broken = write(tmp_path / "broken.txt", f"{LINKS}\n{protein('A')} {protein('B')} 0 0 0 0 high 0 0 0\n")
    refuses("not a table of scores", path=broken, aliases=table)
    refuses("from 0 to 5000", path=links(tmp_path / "wide.txt", ("A", "B", 5000), ("A", "C", 0)), aliases=table)
    refuses("no rows below", path=write(tmp_path / "none.txt", LINKS + "\n"), aliases=table)


# One value a gene


def test_a_table_of_numbers(tmp_path: Path) -> None:
    text = "symbol\tscore\nGENA\t1.5\nOLDA\t1.5\nGENB\t2\nGENB\t3\nGENC\t-1e-3\nGEND\tNA\nNOPE\t1\nGENE\tinf\n\t4\n"
    labels = read_gene_labels(write(tmp_path / "t.tsv", text), vocab=VOCAB)
    assert (labels.name, labels.kind) == ("score", "regression")
    assert labels.values.to_dict() == {ensg(1): 1.5, ensg(3): -0.001}
    expected = {
        "rows_read": 9,
        "missing": 3,
        "unknown_genes": 1,
        "repeated": 1,
        "contradictory": 2,
        "unmatched_examples": ["NOPE"],
    }
    assert {key: labels.account[key] for key in expected} == expected
    genes_add_up(labels)


@pytest.mark.parametrize(
    ("words", "classes", "ones"),
    [
        ("0 1", {"0": "0", "1": "1"}, "B"),
        ("1 0", {"0": "0", "1": "1"}, "A"),
        ("False TRUE", {"0": "False", "1": "TRUE"}, "B"),
        ("yes no", {"0": "no", "1": "yes"}, "A"),
        ("tolerant essential", {"0": "essential", "1": "tolerant"}, "A"),
        ("-1 1", {"0": "-1", "1": "1"}, "B"),
    ],
)
def test_two_values_are_a_binary_property(tmp_path: Path, words: str, classes: dict, ones: str) -> None:
    first, second = words.split()
    text = f"gene,what\nGENA,{first}\nGENB,{second}\nGENC,\n"
    labels = read_gene_labels(write(tmp_path / "t.csv", text), vocab=VOCAB)
    assert labels.kind == "binary"
    assert labels.values.dtype == np.int8
    assert labels.account["classes"] == classes
    assert [VOCAB.symbols[VOCAB.resolve([g]).tokens[0]] for g in labels.values.index[labels.values == 1]] == [
        f"GEN{ones}"
    ]
    genes_add_up(labels)


def test_small_classes_are_left_out(tmp_path: Path) -> None:
    vocab = GeneVocab.from_names([ensg(k) for k in range(1, 60)])
    names = ["membrane"] * 20 + ["nucleus"] * 15 + ["rare"] * 9 + ["other"] * 10
    text = "gene,place\n" + "".join(f"{ensg(k + 1)},{name}\n" for k, name in enumerate(names))
    labels = read_gene_labels(write(tmp_path / "t.csv", text), vocab=vocab)
    assert labels.kind == "multiclass"
    assert labels.account["rare_classes"] == {"rare": 9}
    assert labels.account["class_sizes"] == {"membrane": 20, "nucleus": 15, "other": 10}
    assert labels.account["rare"] == 9
    genes_add_up(labels)
    few = write(tmp_path / "few.csv", "gene,place\nGENA,x\nGENB,y\nGENC,z\n")
    refuses("0 of 3 classes", "10 genes or more", "{'x': 1, 'y': 1, 'z': 1}", path=few, reader=read_gene_labels)


def test_columns_of_genes_and_target_are_found_or_asked_for(tmp_path: Path) -> None:
    text = "row,gene_id,symbol,score,cds_length\n7,ENSG00000000001,GENA,3,900\n8,ENSG00000000002,GENB,4,1000\n"
    path = write(tmp_path / "t.csv", text)
    refuses("which column is the target", "'score'", path=path, reader=read_gene_labels)
    refuses("no column 'scores'", path=path, target="scores", reader=read_gene_labels)
    refuses("cannot be both", path=path, gene="symbol", target="symbol", reader=read_gene_labels)
    labels = read_gene_labels(path, vocab=VOCAB, target="score", kind="regression")
    assert labels.account["columns"] == ["gene_id", "score"]
    np.testing.assert_allclose(labels.covariates["log_cds_length"], np.log10([900, 1000]))
    by_symbol = read_gene_labels(path, vocab=VOCAB, gene="symbol", target="score", kind="regression")
    pd.testing.assert_series_equal(by_symbol.values, labels.values)
    called = write(tmp_path / "called.csv", "gene,length,Label\nGENA,7,1\nGENB,8,0\n")
    assert read_gene_labels(called, vocab=VOCAB).name == "Label"
    bare = write(tmp_path / "bare.txt", "GENA 1.0\nGENB 2.5\nGENC 3\n")
    assert read_gene_labels(bare, vocab=VOCAB).values.tolist() == [1, 2.5, 3]


def test_genes_in_the_tables_only(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "gene,value,cds_length\nGENB,2,30\nGENA,1,60\nGENC,3,90\n")
    labels = read_gene_labels(path, vocab=VOCAB, target="value")
    some = labels.of_genes([ensg(3), ensg(2), ensg(9)])
    assert some.values.to_dict() == {ensg(2): 2, ensg(3): 3}
    assert some.covariates["cds_length"].tolist() == [30, 90]
    assert (some.account["outside_tables"], some.account["kept"]) == (1, 2)
    with pytest.raises(InputError, match="1 of 3 genes"):
        labels.of_genes([ensg(1)])


@pytest.mark.parametrize(
    ("text", "words", "arguments"),
    [
        ("gene,value\nGENA,1\nGENB,1\nGENC,1.0\n", ("all with the value '1.0'", "give labels that vary"), {}),
        ("gene,value\nGENA,1\nGENB,2\nGENC,much\n", ("line 4", "'much'", "not a number (1 of 3"), {}),
        ("gene,value\nGENA,a\nGENB,b\nGENC,c\n", ("two values", "['a', 'b', 'c']"), {"kind": "binary"}),
        ("gene,value\nGENA,a\nGENB,b\n", ("'a', not a number",), {"kind": "regression"}),
        ("gene,value\nTrp53,1\nActb,2\nGapdh,3\n", ("0.0%", "mouse"), {}),
        ("gene,value\n", ("no rows below",), {}),
        ("\n\n", ("empty",), {}),
    ],
)
def test_impossible_properties_are_refused(tmp_path: Path, text: str, words: tuple, arguments: dict) -> None:
    refuses(*words, path=write(tmp_path / "t.csv", text), reader=read_gene_labels, **arguments)


def test_what_is_not_a_text_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"gene,value\nGENA,1\n" * 99)[:40])
    (tmp_path / "binary.csv").write_bytes(bytes(range(128, 256)))
    for name in ("cut.gz", "binary.csv", "absent.csv"):
        refuses(name, "cannot be read", path=tmp_path / name, reader=read_gene_labels)
        refuses(name, "cannot be read", path=tmp_path / name)


# Dosage


def test_two_lists_side_by_side_of_unequal_length(tmp_path: Path) -> None:
    text = "dosage_sensitive,dosage_insensitive\nGENA,GENB\nGENC,GEND\n,GENC\n,GENE\n,NOPE\n"
    labels = read_dosage(write(tmp_path / "t.csv", text), vocab=VOCAB)
    assert labels.values.to_dict() == {ensg(1): 1, ensg(2): 0, ensg(4): 0, ensg(5): 0}
    assert labels.account["contradictory"] == 2
    assert (labels.account["sensitive_read"], labels.account["insensitive_read"]) == (2, 5)
    assert labels.account["classes"] == {"0": "insensitive", "1": "sensitive"}
    genes_add_up(labels)


def test_other_forms_of_dosage_give_the_same(tmp_path: Path) -> None:
    side = write(tmp_path / "side.csv", "Insensitive\tSensitive\nGENB\tGENA\nGEND\tGENC\nGENE\t\n")
    yes = write(tmp_path / "yes.txt", "GENA\nGENC\n")
    no = write(tmp_path / "no.txt", "gene\nGENB\nGEND\nGENE\n")
    rows = "GENA,sensitive\nGENB,insensitive\nGENC,sensitive\nGEND,insensitive\nGENE,insensitive\n"
    table = write(tmp_path / "table.csv", "gene,label\n" + rows)
    one = read_dosage(side, vocab=VOCAB)
    for other in (read_dosage(yes, vocab=VOCAB, insensitive=no), read_dosage(table, vocab=VOCAB)):
        pd.testing.assert_series_equal(one.values, other.values)
        genes_add_up(other)
    refuses("the other is missing", path=yes, reader=read_dosage)
    refuses("one column", path=table, insensitive=no, reader=read_dosage)


# Constraint


def test_gnomad_2_by_id_before_symbol(tmp_path: Path) -> None:
    text = (
        "gene\tgene_id\ttranscript\tcds_length\texp_lof\toe_lof_upper\tpLI\tlof_z\tmis_z\n"
        f"GENA\t{ensg(1)}\tENST1\t1000\t9\t0.5\t0.9\t3.5\t1\n"
        f"GENA\t{ensg(2)}\tENST2\t900\t99\t0.4\t0.8\t2.5\t2\n"  # the symbol is another's
        f"GENC\t{ensg(77)}\tENST3\t800\t9\t0.3\t0.7\t1.5\t3\n"  # an id out of use: by symbol
        f"GENB\t{ensg(78)}\tENST4\t3000\t9\t0.3\t0.7\t9.5\t3\n"  # B is there by its id
        f"GEND\t{ensg(4)}\tENST5\t800\t9\t0.3\t0.7\tNA\t3\n"
        f"NOPE\t{ensg(79)}\tENST6\t800\t9\t0.3\t0.7\t1\t3\n"
    )
    path = write(tmp_path / "t.tsv", text)
    labels = read_constraint(path, vocab=VOCAB)
    assert labels.values.to_dict() == {ensg(1): 3.5, ensg(2): 2.5, ensg(3): 1.5}
    assert (labels.name, labels.kind) == ("lof_z", "regression")
    assert labels.covariates.columns.tolist() == ["cds_length", "exp_lof", "log_cds_length", "log_expected_lof"]
    assert labels.covariates.loc[ensg(1)].tolist() == [1000, 9, 3, 1]
    assert labels.companions.columns.tolist() == ["loeuf", "pli", "mis_z"]
    a = labels.account
    assert (a["missing"], a["unknown_genes"], a["set_aside"], a["by_symbol"]) == (1, 1, 1, 2)
    genes_add_up(labels)
    for name in ("loeuf", "oe_lof_upper", "LOEUF"):
        other = read_constraint(path, vocab=VOCAB, target=name)
        assert other.name == "loeuf"
        assert other.values[ensg(1)] == 0.5
        assert other.companions.columns.tolist() == ["lof_z", "pli", "mis_z"]
    refuses("target 'loef'", "'loeuf'", path=path, target="loef", reader=read_constraint)
    refuses("not a number", path=path, target="gene", reader=read_constraint)


def test_gnomad_4_keeps_one_transcript_a_gene(tmp_path: Path) -> None:
    header = "gene gene_id transcript canonical mane_select lof.exp lof.pLI lof.oe_ci.upper lof.z_score mis.z_score cds_length"
    header = "\t".join(header.split()) + "\n"
    rows = [
        ("GENA", ensg(1), "ENST1", "true", "false", 1.0),
        ("GENA", ensg(1), "ENST2", "false", "true", 2.0),  # MANE Select
        ("GENA", "7157", "NM_1", "true", "true", 3.0),  # RefSeq
        ("GENB", ensg(2), "ENST3", "false", "false", 4.0),
        ("GENB", ensg(2), "ENST4", "true", "false", 5.0),  # canonical
        ("GENC", ensg(3), "ENST5", "true", "true", "NA"),  # nothing stands in for it
        ("GENC", ensg(3), "ENST6", "false", "false", 6.0),
    ]
    lines = [f"{g}\t{i}\t{t}\t{c}\t{m}\t10\t0.1\t0.5\t{z}\t0\t900\n" for g, i, t, c, m, z in rows]
    labels = read_constraint(write(tmp_path / "v4.tsv", header + "".join(lines)), vocab=VOCAB)
    assert labels.values.to_dict() == {ensg(1): 2, ensg(2): 5}
    assert (labels.account["refseq"], labels.account["missing"], labels.account["set_aside"]) == (1, 1, 4)
    genes_add_up(labels)


def test_exac_has_symbols_and_bases(tmp_path: Path) -> None:
    text = (
        "transcript\tgene\tchr\tn_exons\tbp\tmu_lof\tn_lof\texp_lof\tlof_z\tmis_z\tpLI\n"
        "ENST00000379370.2\tGENA\t1\t36\t6138\t1e-5\t16\t49\t4.7\t2\t0.17\n"
        "ENST00000327044.6\tOLDA\t1\t9\t2250\t1e-5\t14\t29\t2.8\t1\t0.01\n"
        "ENST00000341065.4\tGENC\t1\t2\t100\t1e-5\t1\t2\t0.8\t1\t0.01\n"
    )
    labels = read_constraint(write(tmp_path / "exac.txt", text), vocab=VOCAB)
    assert labels.values.to_dict() == {ensg(1): 4.7, ensg(3): 0.8}
    assert labels.covariates["cds_length"].tolist() == [6138, 100]
    assert labels.companions.columns.tolist() == ["pli", "mis_z"]
    refuses("'loeuf'", "['lof_z', 'pli', 'mis_z']", path=tmp_path / "exac.txt", target="loeuf", reader=read_constraint)
    path = write(tmp_path / "no.tsv", "lof_z\ttranscript\n1\tENST1\n")
    refuses("neither gene_id nor gene", path=path, reader=read_constraint)
    path = write(tmp_path / "other.csv", "sensitive,insensitive\nGENA,GENC\n")
    refuses("there are ['sensitive', 'insensitive']", path=path, reader=read_constraint)


# Real files: figures measured when they were fetched


@pytest.fixture(scope="module")
def human(realdata: Path) -> GeneVocab:
    return GeneVocab.from_hgnc(realdata / "annotation/hgnc_complete_set.txt.gz")


@pytest.mark.realdata
def test_gene2vec_ships_a_gene_disjoint_split(realdata: Path, human: GeneVocab) -> None:
    folder = realdata / "genes/gene2vec_ggi"
    text = " ".join((folder / f"{part}_text.txt").read_text() for part in ("train", "valid", "test"))
    assert len(set(text.split())) == 12_472
    labels = read_pairs(folder, vocab=human)
    assert labels.account["pairs_read"] == 263_016 + 5_568 + 21_448
    assert labels.account["missing"] == 209  # a gene called NA: a blank that another program wrote down
    assert labels.account["contradictory"] == 807
    assert labels.account["both_strands"] == 320
    pairs_adds_up(labels)
    genes = {}
    for part in ("train", "valid", "test"):
        at = labels.part == part
        genes[part] = {*labels.a[at], *labels.b[at]}
    assert not genes["train"] & genes["test"]
    assert not genes["train"] & genes["valid"]
    assert not genes["valid"] & genes["test"]


@pytest.mark.realdata
def test_string_subset_lists_most_pairs_twice(realdata: Path) -> None:
    labels = read_pairs(realdata / "genes/string_human_pairs.csv", vocab=None)
    expected = {"pairs_read": 198_285, "genes": 8_806, "positives": 81_141, "self_pairs": 6, "both_strands": 36_010}
    assert {key: labels.account[key] for key in expected} == expected
    pairs_adds_up(labels)
    assert labels.account["degree_unmatched"] == 0
    index = {gene: k for k, gene in enumerate(labels.genes)}
    a, b = (np.array([index[gene] for gene in ends]) for ends in (labels.a, labels.b))
    one, none = labels.label == 1, labels.label == 0
    assert rate_auroc(a[one], b[one], a[none], b[none], len(index)) == 0.5
    x, y = uniform(a[one], b[one], len(index), wanted=int(one.sum()), seed=0)
    assert rate_auroc(a[one], b[one], x, y, len(index)) > 0.9


@pytest.mark.realdata
def test_gnomad_and_dosage(realdata: Path, human: GeneVocab) -> None:
    path = realdata / "genes/gnomad_v2.1.1_constraint.tsv.gz"
    table = pd.read_csv(path, sep="\t")
    assert len(table) == 19_704
    assert table["gene"].duplicated().sum() == 46
    labels = read_constraint(path, vocab=human)
    genes_add_up(labels)
    assert labels.account["rows_read"] == 19_704
    by_id = table.set_index("gene_id")["lof_z"].reindex(labels.values.index).dropna()
    assert len(by_id) > 0.98 * len(labels)
    np.testing.assert_array_equal(labels.values[by_id.index], by_id)
    together = pd.concat([labels.values, labels.covariates, labels.companions], axis=1).corr(method="spearman")
    assert together.loc["lof_z", "log_cds_length"] > 0.5  # the trap
    assert together.loc["lof_z", "loeuf"] < -0.6

    labels = read_dosage(realdata / "genes/dosage_sens_tf_labels.csv", vocab=human)
    genes_add_up(labels)
    assert (labels.account["sensitive_read"], labels.account["insensitive_read"]) == (122, 368)
    assert (len(labels), labels.account["positives"]) == (483, 122)
