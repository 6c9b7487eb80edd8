"""A smaller corpus: cells chosen by their labels, by size or at random, and fewer genes."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64

from expresser.bed import read_bed
from expresser.corpus.derive import BATCH_ROWS, SHARD_ROWS, FewerGenes, check_free, derive
from expresser.corpus.labels import commonest, read_labels
from expresser.corpus.manifest import sha256_file
from expresser.corpus.shuffle import order_keys
from expresser.corpus.staging import staged
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.gene_tables import open_text
from expresser.genes import GeneVocab
from expresser.one_writer import one_writer_of_out
from expresser.readable import counted
from expresser.region_vocab import RegionVocab

# The seed of a corpus's own order and this one must not give the same keys, though either would be an honest sample.
_SUBSET = 0x5E1EC7


@one_writer_of_out
def subset_corpus(
    corpus: Corpus,
    out: str | Path,
    *,
    where: Sequence[str] = (),
    without: Sequence[str] = (),
    sources: Sequence[str] = (),
    cells: int | None = None,
    genes: Path | None = None,
    min_genes: int = 1,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    also: Callable[[Path], object] | None = None,
    shard_rows: int = SHARD_ROWS,
    batch_rows: int = BATCH_ROWS,
) -> Corpus:
    """Write the chosen cells as a corpus of its own in the folder `out`, and open it.

    Parameters
    ----------
    where, without
        `COLUMN=VALUE` each: cells that have one of the values named, in every column named, and none of those in
        `without`. Values are compared as text, of number columns as numbers; `COLUMN=` is a missing label. Nothing is
        evaluated.
    sources
        The same as `where` with the column `source`.
    cells
        This many of the cells that are left, those with the least keyed hash of (seed, cell id): any subset of fewer
        cells by the same rule and seed is part of that of more.
    genes
        A vocabulary (as `corpus build --genes` takes) or a list of names, one a line: other genes are left out, tokens
        are numbered anew in their old order, and `total` becomes the sum over the genes that are left. Recomputed, not
        kept, since a corpus's `total` is the sum over its vocabulary: so normalisation, `corpus verify` and a model's
        view are those of a corpus that was built with this vocabulary from the start.
    min_genes
        Cells with fewer non-zero genes (of those left) are left out; cells without any always are.
    also
        Writes more files into the folder before it takes its place.
    """
    out = Path(out).expanduser().resolve()
    check_free(out)
    kept = chosen(corpus, [*where, *(f"source={name}" for name in sources)], without)[corpus.cell_ids]
    fewer = None if genes is None else FewerGenes.of(corpus.vocab, read_names(genes, corpus.vocab))
    kept &= (corpus.lengths if fewer is None else fewer.lengths(corpus)) >= max(min_genes, 1)
    if cells is not None:
        kept = _some(corpus, kept, cells, seed)
    rule: dict[str, Any] = {"where": list(where), "not": list(without), "source": list(sources), "min_genes": min_genes}
    if cells is not None:
        rule |= {"cells": cells, "seed": seed}
    if genes is not None:
        rule |= {"genes": sha256_file(genes)}
    with staged(out) as stage:
        derive(
            corpus,
            stage.folder,
            kept,
            rule={"subset": rule},
            genes=fewer,
            progress=progress,
            shard_rows=shard_rows,
            batch_rows=batch_rows,
        )
        if also is not None:
            also(stage.folder)
    return Corpus.open(out)


def chosen(corpus: Corpus, where: Sequence[str], without: Sequence[str]) -> Bool[np.ndarray, " cells"]:
    """By cell id: has a value of `where` in each of its columns, and none of `without`."""
    kept = np.ones(corpus.n_cells, bool)
    for words, wanted in ((where, True), (without, False)):
        for column, values in _by_column(words).items():
            labels = read_labels(corpus, column)
            has = np.zeros(corpus.n_cells, bool)
            for value in values:
                has |= _equal(corpus, labels, value)
            kept &= has if wanted else ~has
    return kept


def _by_column(words: Sequence[str]) -> dict[str, list[str]]:
    columns: dict[str, list[str]] = {}
    for word in words:
        column, equals, value = word.partition("=")
        if not equals or not column:
            raise InputError(
                f"{word!r}: a filter is COLUMN=VALUE, for example 'cell_type=B cell' (quoted where there are blanks)."
            )
        columns.setdefault(column, []).append(value)
    return columns


def _equal(corpus: Corpus, labels: pd.Series, value: str) -> Bool[np.ndarray, " cells"]:
    if value == "":
        found = labels.isna().to_numpy(bool)
    elif pd.api.types.is_bool_dtype(labels.dropna().infer_objects()):
        found = (labels.astype("string").str.lower() == value.lower()).fillna(False).to_numpy(bool)
    elif pd.api.types.is_numeric_dtype(labels):
        try:
            number = float(value)
        except ValueError as error:
            raise InputError(
                f"{corpus.path}: obs column {labels.name!r} holds numbers, {value!r} is none. Say {labels.name}=NUMBER."
            ) from error
        found = (labels == number).to_numpy(bool)
    else:
        found = (labels == value).to_numpy(bool)
    if not found.any():
        there = ", ".join(f"{name!r} ({cells:,})" for name, cells in commonest(labels)) or "nothing"
        raise InputError(
            f"{corpus.path}: no cell has {labels.name}={value}. The commonest values (cells) are {there}; "
            f"{int(labels.isna().sum()):,} cells have none ({labels.name}=)."
        )
    return found


def _some(corpus: Corpus, kept: Bool[np.ndarray, " cells"], cells: int, seed: int) -> Bool[np.ndarray, " cells"]:
    rows = np.flatnonzero(kept)
    if not 0 < cells <= len(rows):
        raise InputError(
            f"{corpus.path}: {cells:,} cells were asked for, {len(rows):,} of {corpus.n_cells:,} fit the rule. "
            "Ask for at least one and at most so many."
        )
    some = np.zeros(corpus.n_cells, bool)
    some[rows[np.argsort(order_keys(seed ^ _SUBSET, corpus.cell_ids[rows]))[:cells]]] = True
    return some


def read_names(path: Path, vocab: GeneVocab) -> Int64[np.ndarray, " genes"]:
    """Tokens of the genes that a file names: a table that `GeneVocab.read` knows, or one name a line; of regions, a BED file too."""
    with open_text(path) as lines:
        first = next(lines, "")
        if "\t" not in first and not first.startswith("#"):
            names = [word for line in [first, *lines] if (word := line.strip())]
            tokens = vocab.resolve(names).tokens if names else np.empty(0, np.int64)
        else:
            names = []
    if not names and isinstance(vocab, RegionVocab):
        names = read_bed(path).names().tolist()
        tokens = vocab.resolve(names).tokens
    elif not names:
        wanted = GeneVocab.read(path)
        names = wanted.ids.tolist()
        tokens = vocab.resolve(names).tokens
        by_symbol = vocab.resolve(wanted.symbols.tolist()).tokens
        tokens = np.where(tokens >= 0, tokens, by_symbol)
    found = np.unique(tokens[tokens >= 0])
    if not len(found):
        things, way = "genes", "Name genes by Ensembl id or symbol."
        if isinstance(vocab, RegionVocab):
            things, way = "regions", "Name regions as chr1:100-200, of the corpus's build."
        raise InputError(
            f"{path}: none of its {counted(len(names), things)} ({', '.join(map(repr, names[:5]))}, …) is in the corpus's "
            f"vocabulary of {len(vocab):,}, which begins with {', '.join(map(repr, vocab.ids[:3]))}. {way}"
        )
    return found
