"""Gene tables without a network, from raw counts or from nothing: what a learned table has to beat."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from scipy.special import ndtri

from expresser.corpus.shuffle import splitmix64
from expresser.corpus.source import open_source
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.factors import gene_factors
from expresser.genes import GeneVocab
from finetune.cells import read_cells, read_corpus
from finetune.counts import TARGET_SUM, cells_of, totals
from finetune.embeddings.ppmi import ppmi_vectors
from finetune.embeddings.reading import BUILT_IN, read_table, split_spec
from finetune.embeddings.table import GeneTable, gene_table_of

_WIDTH = 64  # dimensions of built-in tables where no file says how many


def read_counts(
    data: str | Path, *, max_cells: int = 20000, layer: str | None = None, seed: int = 0, vocab: GeneVocab | None = None
) -> tuple[sparse.csr_matrix, GeneVocab]:
    """Raw counts of at most `max_cells` random cells (cells without any left out), and the genes of the columns.

    `data` is a corpus folder or any file that a corpus can be built from; `layer` is for the latter. Genes are those of `vocab`,
    counts of names that mean one gene being summed; None: the data's own.
    """
    if max_cells < 3:
        raise InputError(f"max_cells is {max_cells}; tables are computed from at least 3 cells.")
    data = Path(data)
    if not (data / "manifest.json").is_file():
        source = open_source(data, layer=layer)
        vocab = vocab or source.guess_vocab()
        return read_cells(source, vocab, max_cells=max_cells, min_genes=1, seed=seed).counts, vocab
    if layer is not None:
        raise InputError(f"{data}: a corpus holds raw counts alone and has no layer {layer!r}: leave --layer away.")
    vocab = vocab or Corpus.open(data).vocab
    counts = read_corpus(data, vocab, max_cells=max_cells, seed=seed).counts
    return sparse.csr_matrix(counts[np.diff(counts.indptr) > 0]), vocab


def random_table(genes: Sequence[str], d: int, *, seed: int) -> GeneTable:
    """Standard normal numbers that depend on (gene id, seed, dimension) alone: same gene, same vector, in any company.

    What a classifier reaches with these it reaches without knowing anything of the genes.
    """
    _check_width(d)
    # A hash is the same in every process and on every machine; Python's own is not.
    digests = (hashlib.blake2b(f"{seed}\0{gene}".encode(), digest_size=8).digest() for gene in genes)
    keys = np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
    each = keys[:, None] + splitmix64(np.arange(d).astype(np.uint64))[None, :]
    uniform = ((splitmix64(each) >> np.uint64(12)) + 0.5) * 2.0**-52  # never 0 or 1
    about = _about(f"keyed draws, seed {seed}", len(genes), seed=seed)
    return gene_table_of("random", genes, ndtri(uniform).astype(np.float32), about)


def expression_table(counts: sparse.csr_matrix, genes: Sequence[str]) -> GeneTable:
    """Three numbers a gene, of its counts scaled to 1e4 a cell (``x``), zeros included; a gene without counts has zeros.

    Column 0 is ``log(1 + mean x)``, column 1 the share of cells with a count, column 2 ``log(1 + var x / mean x)`` (dispersion).
    """
    _check_genes(counts, genes)
    x = sparse.csr_matrix(counts, dtype=np.float64)
    x.data = TARGET_SUM * x.data / totals(counts)[cells_of(counts)]
    n = max(x.shape[0], 1)
    mean = np.asarray(x.sum(0)).ravel() / n
    variance = np.maximum(np.asarray(x.multiply(x).sum(0)).ravel() / n - mean**2, 0.0)
    detected = np.bincount(counts.indices[counts.data > 0], minlength=counts.shape[1]) / n
    dispersion = np.divide(variance, mean, out=np.zeros_like(mean), where=mean > 0)
    values = np.column_stack([np.log1p(mean), detected, np.log1p(dispersion)]).astype(np.float32)
    return gene_table_of("expression", genes, values, _about("counts", len(genes), cells=counts.shape[0]))


def svd_table(counts: sparse.csr_matrix, genes: Sequence[str], d: int, *, seed: int) -> GeneTable:
    """Loadings of genes on principal components of log-normalised expression (`expresser.factors.gene_factors`)."""
    _check_genes(counts, genes)
    _check_width(d)
    about = _about("counts", len(genes), cells=counts.shape[0], seed=seed)
    return gene_table_of("svd", genes, gene_factors(counts, d, seed=seed), about)


def ppmi_table(counts: sparse.csr_matrix, genes: Sequence[str], d: int, *, seed: int, min_cells: int = 10) -> GeneTable:
    """Leading axes of the pointwise mutual information of co-detection (`finetune.embeddings.ppmi.ppmi_vectors`)."""
    _check_genes(counts, genes)
    _check_width(d)
    values = ppmi_vectors(counts, d, seed=seed, min_cells=min_cells)
    about = _about("counts", len(genes), cells=counts.shape[0], seed=seed, min_cells=min_cells)
    return gene_table_of("ppmi", genes, values, about)


def open_tables(
    specs: Sequence[str],
    *,
    vocab: GeneVocab | None,
    corpus: str | Path | None,
    d: int | None = None,
    genes: Sequence[str] | None = None,
    seed: int = 0,
    max_cells: int = 20000,
) -> list[GeneTable]:
    """Every table of ``--embeddings``, each ``[NAME=]PATH`` or ``[NAME=]BUILT-IN``: models and files first, as given, then built-ins.

    Built-in tables have `genes`, by default all of the files and the corpus, so that no gene is lost to a baseline; one that the
    corpus does not know has zeros, as one that it never saw (``about["unseen"]`` counts both). They are `d` wide, by default as
    wide as the widest file, else 64 (``expression`` has three columns).

    Raises InputError for a repeated name, and for a built-in table of counts without a corpus.
    """
    if not specs:
        raise InputError(
            "no tables of gene embeddings were given; give files, models or some of " + ", ".join(BUILT_IN)
        )
    asked = [split_spec(spec) for spec in specs]
    counted = [where for _, where in asked if where in BUILT_IN[1:]]
    if counted and corpus is None:
        raise InputError(
            f"the table {counted[0]!r} is computed from raw counts: give --corpus, a corpus folder or a file of counts."
        )
    if d is not None:
        _check_width(d)
    if seed < 0:
        raise InputError(f"seed is {seed}; a seed is zero or more.")
    tables = [read_table(spec, vocab) for spec, (_, where) in zip(specs, asked) if where not in BUILT_IN]
    built = [(name or where, where) for name, where in asked if where in BUILT_IN]
    names = [table.name for table in tables] + [name for name, _ in built]
    for name in names:
        if names.count(name) > 1:
            raise InputError(
                f"{names.count(name)} tables are called {name!r}. Give them names of their own: NAME=PATH."
            )
    if not built:
        return tables

    counts, own, seen = None, None, frozenset[str]()
    if corpus is not None and (counted or not tables):
        counts, own = read_counts(corpus, max_cells=max_cells, seed=seed, vocab=vocab)
        # A corpus with few of the vocabulary's genes still has the vocabulary for columns.
        seen = frozenset(own.ids[np.unique(counts.indices)].tolist())
    if genes is None:
        genes = sorted(seen.union(*(table.values.index for table in tables)))
        if not genes and vocab is not None:
            genes = sorted(vocab.ids)
        if not genes:
            raise InputError("random: for which genes? Give a table in a file, a model, --corpus or --genes.")
    width = d or max((table.dim for table in tables), default=_WIDTH)
    for name, kind in built:
        if counts is None or own is None or kind == "random":
            table = random_table(list(genes), width, seed=seed)
        elif kind == "expression":
            table = expression_table(counts, own.ids.tolist())
        elif kind == "svd":
            table = svd_table(counts, own.ids.tolist(), width, seed=seed)
        else:
            table = ppmi_table(counts, own.ids.tolist(), width, seed=seed)
        about = table.about | {"rows": len(genes)}
        if kind != "random":
            about |= {"source": f"{kind} of {corpus}", "unseen": len(set(genes) - seen)}
        tables.append(_for_genes(table, name, list(genes), about))
    return tables


def _for_genes(table: GeneTable, name: str, genes: list[str], about: dict[str, Any]) -> GeneTable:
    """The table under another name, for these genes; zeros where it has none."""
    values = table.values.reindex(genes, fill_value=np.float32(0)).to_numpy(np.float32)
    return gene_table_of(name, genes, values, about)


def _about(source: str, genes: int, **more: int) -> dict[str, Any]:
    counts = {"rows": genes, "unresolved": 0, "duplicates": 0, "not_finite": 0, "unmatched_examples": []}
    return {"source": source, "kind": "built-in", "sha256": None, **counts, **more}


def _check_width(d: int) -> None:
    if d < 1:
        raise InputError(f"d is {d}; a table of embeddings has at least one dimension.")


def _check_genes(counts: sparse.csr_matrix, genes: Sequence[str]) -> None:
    if counts.shape[1] != len(genes):
        raise ValueError(f"{counts.shape[1]} columns of counts for {len(genes)} genes.")
