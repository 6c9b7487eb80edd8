"""Labelled pairs of genes from the files they come in: Gene2vec's text, STRING's evidence, any table of two genes."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Int8, Shaped

from expresser.errors import InputError
from expresser.gene_tables import open_text
from expresser.genes import GeneVocab
from finetune.labels.delimited import Delimited, is_missing, read_delimited
from finetune.labels.naming import MIN_RESOLVED
from finetune.labels.pair_labels import PARTS, Negatives, PairLabels, PairRows, collect_pairs
from finetune.labels.string_db import read_string

__all__ = ["PairLabels", "read_pairs"]

_LABEL = ("label", "labels", "y", "class", "interaction", "interacts")
_STEMS = ("gene", "symbol", "gene_symbol", "gene_id", "ensembl", "protein", "node", "interactor", "official_symbol")
_ENDS = (
    *(
        (stem + mark + one, stem + mark + two)
        for stem in _STEMS
        for mark in ("", "_", ".", " ")
        for one, two in ("12", "ab")
    ),
    ("source", "target"),
    ("from", "to"),
    ("official symbol interactor a", "official symbol interactor b"),
)


def read_pairs(
    path: str | Path,
    *,
    vocab: GeneVocab | None,
    labels: Path | None = None,
    format: Literal["auto", "gene2vec", "string", "table"] = "auto",
    aliases: Path | None = None,
    cut: int = 200,
    negatives: Negatives = "auto",
    channel: str = "experimental",
    seed: int = 0,
    min_resolved: float = MIN_RESOLVED,
) -> PairLabels:
    """Pairs of genes with label 1 or 0, one row an unordered pair; everything that is lost is in `account`.

    Args:
        path: Gene2vec's folder (train_text.txt, train_label.txt, and the same for valid and test) or one such text file
            with `labels`; STRING's protein.links.detailed; or a table with two columns of genes and perhaps labels.
        vocab: the genes names are resolved to; None takes names as they are.
        labels: a file with a label a line, for a text file with a pair a line.
        format: "auto" tells them apart by what is there.
        aliases: STRING's protein.aliases or protein.info.
        cut: of STRING, a score above it is a positive pair.
        negatives: "given" by the file; "degree-matched" or "uniform" non-edges drawn among the genes of the positives;
            "low-evidence" pairs of STRING at or below the cut, as many as positives; "auto": given where they are, else
            degree-matched.
        channel: the kind of evidence, a column of STRING's file.
        seed: of the negatives drawn.
        min_resolved: the share of distinct names that must be genes of the vocabulary.

    Raises:
        InputError: what the file is not, or that no task is left in it.
    """
    path = Path(path)
    if format == "auto":
        format = _format(path, labels)
    if format != "string" and negatives == "low-evidence":
        raise InputError(
            f"{path}: negatives 'low-evidence' are pairs that STRING lists at or below the cut; this file is read as "
            f"{format!r}. Use 'degree-matched' or 'uniform', or give STRING's protein.links.detailed."
        )
    if format == "string":
        return read_string(
            path,
            vocab=vocab,
            aliases=aliases,
            cut=cut,
            negatives=negatives,
            channel=channel,
            seed=seed,
            min_resolved=min_resolved,
        )
    account: dict[str, Any] = {"source": path.name, "format": format}
    if format == "gene2vec":
        rows = _gene2vec(path, labels)
        # A folder of labelled parts has its negatives: positives alone are a damaged copy, not a list to complete.
        negatives = "given" if negatives == "auto" else negatives
    else:
        rows, more = _table(path, vocab)
        account |= more
    return collect_pairs(
        rows,
        name=path.name.split(".")[0],
        where=path,
        vocab=vocab,
        negatives=negatives,
        seed=seed,
        min_resolved=min_resolved,
        account=account,
    )


def _format(path: Path, labels: Path | None) -> Literal["gene2vec", "string", "table"]:
    if path.is_dir() or labels is not None:
        return "gene2vec"
    with open_text(path) as lines:
        header = next(lines, "").replace(",", " ").split()
    return "string" if header[:2] == ["protein1", "protein2"] and len(header) > 2 else "table"


def _gene2vec(path: Path, labels: Path | None) -> PairRows:
    """Two names a line, and labels in a file beside it, line by line."""
    if path.is_dir():
        there = [part for part in PARTS if _beside(path, f"{part}_text.txt")]
        if not {"train", "test"} <= set(there):
            raise InputError(
                f"{path}: {'only the parts ' + str(there) if there else 'no part'} of Gene2vec's pairs found. The "
                "folder needs train_text.txt and train_label.txt, test_text.txt and test_label.txt, and may have "
                "valid_; for pairs without parts give one text file and its labels."
            )
        files = [(_beside(path, f"{part}_text.txt"), _beside(path, f"{part}_label.txt")) for part in there]
        for part, (_, label) in zip(there, files):
            if label is None:
                raise InputError(f"{path}: {part}_text.txt has no {part}_label.txt beside it. Give both files.")
    elif labels is None:
        raise InputError(f"{path}: a text file of pairs needs the file of its labels. Pass it as `labels`.")
    else:
        there, files = [], [(path, labels)]
    read = [_lines_and_labels(text, marks) for text, marks in files if text is not None and marks is not None]
    names, values = (np.concatenate(parts) for parts in zip(*read))
    parts = np.repeat(np.array(there, dtype=object), [len(one) for _, one in read]) if there else None
    return _rows(names, values, parts)


def _beside(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / name, folder / f"{name}.gz") if file.is_file()), None)


def _lines_and_labels(text: Path, label: Path) -> tuple[Shaped[np.ndarray, "rows 2"], Int8[np.ndarray, " rows"]]:
    pairs, marks = _lines(text), _lines(label)
    if len(pairs) != len(marks):
        raise InputError(
            f"{text} has {len(pairs)} lines, its labels {label} have {len(marks)}. Line by line they belong together: "
            "give the labels of this file."
        )
    rows = [line.replace(",", " ").split() or ["", ""] for line in pairs]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2:
            raise InputError(f"{text}: line {number} is {pairs[number - 1][:60]!r}. Needed are two gene names a line.")
    names = np.array(rows, dtype=object).reshape(-1, 2)
    return names, _labels(label, np.array(marks, dtype=object), np.arange(1, len(marks) + 1))


def _lines(path: Path) -> list[str]:
    with open_text(path) as text:
        lines = [line.strip() for line in text]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise InputError(f"{path}: the file is empty. Give one line a pair.")
    return lines


def _table(path: Path, vocab: GeneVocab | None) -> tuple[PairRows, dict[str, Any]]:
    table = read_delimited(path, vocab=vocab)
    if len(table.columns) < 2:
        raise InputError(
            f"{path}: there is one column only, {table.columns[0]!r}. A table of pairs needs two columns of genes, and "
            "may have one of labels."
        )
    one, two = _ends(table)
    place = next((k for name in _LABEL if (k := table.find(name)) is not None), None)
    if place is None:
        place = next((k for k in range(len(table.columns)) if k not in (one, two) and _is_binary(table.text(k))), None)
    label = np.ones(len(table), np.int8)
    if place is not None:
        label = _labels(path, table.text(place), table.lines)
    ignored = [name for k, name in enumerate(table.columns) if k not in (one, two, place)]
    names = np.stack([table.text(one), table.text(two)], axis=1)
    more = {
        "columns": [table.columns[one], table.columns[two]],
        "label_column": None if place is None else table.columns[place],
        "ignored_columns": ignored,
        "header": None if table.header is None else list(table.header),
    }
    return _rows(names, label), more


def _ends(table: Delimited) -> tuple[int, int]:
    """The two columns of genes: by their names, else the first two."""
    if table.header is not None:
        for first, second in _ENDS:
            one, two = table.find(first), table.find(second)
            if one is not None and two is not None:
                return one, two
    return 0, 1


def _is_binary(text: Shaped[np.ndarray, " rows"]) -> bool:
    return set(text[~is_missing(text)].tolist()) in ({"0", "1"}, {"0.0", "1.0"})


def _labels(
    path: Path, text: Shaped[np.ndarray, " rows"], lines: Shaped[np.ndarray, " rows"]
) -> Int8[np.ndarray, " rows"]:
    """0 and 1, and -1 where missing; anything else is refused."""
    values = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
    codes, distinct = pd.factorize(np.array([field.lower() for field in text.tolist()], dtype=object))
    missing = is_missing(distinct)
    strange = [k for k, value in enumerate(distinct) if value not in values and not missing[k]]
    if strange:
        first = int(np.flatnonzero(np.isin(codes, strange))[0])
        shown = ", ".join(repr(distinct[k]) for k in strange[:5])
        raise InputError(
            f"{path}: line {lines[first]}: the label is {text[first]!r}, and must be 0 or 1 (others met: {shown}"
            f"{' and more' if len(strange) > 5 else ''}). Write 1 for a positive pair and 0 for a negative one; a score "
            "needs a cut first."
        )
    return np.array([-1 if missing[k] else values[value] for k, value in enumerate(distinct)], dtype=np.int8)[codes]


def _rows(
    names: Shaped[np.ndarray, "rows 2"],
    label: Int8[np.ndarray, " rows"],
    part: Shaped[np.ndarray, " rows"] | None = None,
) -> PairRows:
    codes, distinct = pd.factorize(names.ravel())
    return PairRows(distinct, codes[0::2], codes[1::2], label, part)
