"""What the imputation task reads: cells to be examined, and reference cells for the baselines, over one vocabulary."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from anndata import AnnData
from jaxtyping import Int
from scipy import sparse

from expresser.corpus.align import Alignment
from expresser.corpus.source import Source, open_source
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.counts import choose_rows

Data: TypeAlias = str | Path | AnnData


@dataclass(frozen=True)
class CellCounts:
    """Raw counts over a vocabulary, the rows they have in their file, and an account for the report."""

    counts: sparse.csr_matrix
    rows: Int[np.ndarray, " cells"]
    about: dict[str, Any]


def read_cells(
    source: Source, vocab: GeneVocab, *, max_cells: int | None = None, min_genes: int = 20, seed: int = 0
) -> CellCounts:
    """At most `max_cells` random cells of a source, as counts over the vocabulary; those below `min_genes` left out."""
    alignment = Alignment.of(source, vocab)
    chosen = choose_rows(source.n_cells, max_cells, seed)
    per_name = np.zeros(len(alignment.resolution.names))
    parts, rows = [], []
    for first, chunk in source.chunks():
        per_name += np.bincount(chunk.indices, chunk.data, minlength=chunk.shape[1])
        here = chosen[(chosen >= first) & (chosen < first + chunk.shape[0])]
        aligned = alignment.apply(sparse.csr_matrix(chunk[here - first]))
        enough = np.diff(aligned.indptr) >= max(min_genes, 1)
        parts.append(aligned[enough])
        rows.append(here[enough])
    report = alignment.resolution.report(per_name)
    report.check(source.label)
    kept = np.concatenate(rows)
    if not len(kept):
        raise InputError(
            f"{source.label}: none of {len(chosen)} cells has {min_genes} non-zero genes of the vocabulary. "
            "Give deeper cells, or lower min_genes."
        )
    about = {
        "name": source.name,
        "cells": len(kept),
        "cells_left_out": len(chosen) - len(kept),
        "min_genes": min_genes,
        "counts_kept": report.counts_kept,
    }
    return CellCounts(sparse.csr_matrix(sparse.vstack(parts, format="csr")), kept, about)


def read_corpus(
    path: Path, vocab: GeneVocab | None = None, *, max_cells: int | None = None, seed: int = 0
) -> CellCounts:
    """At most `max_cells` random cells of a corpus, as counts over the vocabulary; None: the corpus's own."""
    corpus = Corpus.open(path)
    vocab = vocab or corpus.vocab
    rows = choose_rows(corpus.n_cells, max_cells, seed)
    batch = corpus.read(rows)
    genes, values = batch.genes.astype(np.int64), batch.counts.astype(np.int64)
    resolution = vocab.resolve(corpus.vocab.ids)
    resolution.report(np.bincount(genes, values, minlength=len(corpus.vocab))).check(str(path))
    token = resolution.tokens[genes]
    known = token >= 0
    cell = np.repeat(np.arange(len(rows)), batch.lengths)[known]
    counts = sparse.csr_matrix((values[known], (cell, token[known])), shape=(len(rows), len(vocab)))
    return CellCounts(counts, rows, {"name": path.name, "corpus_id": corpus.corpus_id})


def read_reference(
    reference: Data, vocab: GeneVocab, data: sparse.csr_matrix, *, at_most: int, seed: int = 0
) -> CellCounts:
    """Random cells of a file or a corpus for the baselines to learn from; a cell that `data` holds too is left out.

    Such a cell would hand the baselines the truth. Cells are the same where all counts over the vocabulary are.
    """
    if isinstance(reference, str | Path) and (Path(reference) / "manifest.json").is_file():
        cells = read_corpus(Path(reference), vocab, max_cells=at_most, seed=seed)
    else:
        cells = read_cells(open_source(reference), vocab, max_cells=at_most, min_genes=1, seed=seed)
    known = set(_fingerprints(data))
    empty = np.diff(cells.counts.indptr) == 0
    same = np.array([mark in known for mark in _fingerprints(cells.counts)], dtype=bool)
    keep = np.flatnonzero(~same & ~empty)
    if not len(keep):
        raise InputError(
            f"reference {cells.about['name']}: of {len(same)} cells {int(same.sum())} are cells of the data and "
            f"{int(empty.sum())} are empty over the vocabulary, none is left. Give other cells of the same species."
        )
    about = cells.about | {"cells": len(keep), "same_as_data": int(same.sum())}
    return CellCounts(sparse.csr_matrix(cells.counts[keep]), cells.rows[keep], about)


def _fingerprints(counts: sparse.csr_matrix) -> Iterator[bytes]:
    counts = counts.copy()
    counts.sum_duplicates()
    genes, values = counts.indices.astype(np.int64), counts.data.astype(np.int64)
    for start, stop in zip(counts.indptr[:-1], counts.indptr[1:]):
        yield genes[start:stop].tobytes() + values[start:stop].tobytes()
