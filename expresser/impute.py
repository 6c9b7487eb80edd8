"""Values of genes from the other genes of the same cell: the entries of a matrix, or layers of an AnnData."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from anndata import AnnData
from jaxtyping import Bool, Float32, Int64
from scipy import sparse

from expresser.checkpoint import Checkpoint
from expresser.corpus.align import Alignment
from expresser.corpus.source import Source, open_source
from expresser.corpus.stream import permutation
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.model.cells import Cells, Views
from expresser.model.keyed import keyed_rank
from expresser.model.ragged import Ragged
from expresser.progress import shown
from expresser.record import provenance, storable

# In pretraining a quarter of the genes shown are masked. More queries at once would show the encoder a cell it has never met.
_QUERIES_PER_CONTEXT = 1 / 3
_CONTEXT, _QUERY, _FOLD = 11, 12, 13
_FOLDS = 4
_BLOCK = 512

Progress = Callable[[int, int], None]


def predict_entries(
    checkpoint: Checkpoint,
    counts: sparse.csr_matrix,
    queries: sparse.csr_matrix,
    *,
    max_tokens: int = 16384,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> Float32[np.ndarray, " queries"]:
    """Predict chosen entries of a count matrix.

    Parameters
    ----------
    counts
        Cells x vocabulary, observed raw counts.
    queries
        Same shape; its stored pattern says which entries are wanted. The count of an entry that is both observed and wanted is
        hidden from its own prediction (its share of the library size is not).
    max_tokens
        Padded tokens at once: the knob for memory.

    Returns
    -------
    ``log1p(target_sum * count / total)`` expected of each wanted entry given that it is not zero, natural log, in the order
    of ``queries.tocsr()``. NaN where a cell has no observed gene to predict from. A prediction depends on the cell alone: not on other
    cells, batch sizes or order.
    """
    if counts.shape != queries.shape or counts.shape[1] != len(checkpoint.vocab):
        raise ValueError(
            f"counts {counts.shape} and queries {queries.shape} must both be cells x {len(checkpoint.vocab)} genes."
        )
    counts, queries = counts.tocsr(), queries.tocsr()
    # Its pattern, not its values: a stored zero is wanted as well.
    queries = sparse.csr_matrix((np.ones(queries.nnz, bool), queries.indices, queries.indptr), shape=queries.shape)
    out = np.full(queries.nnz, np.nan, dtype=np.float32)
    model = checkpoint.model
    home = next(model.parameters()).device
    place = torch.device(device) if device is not None else home
    model.to(place)
    try:
        for start in range(0, counts.shape[0], _BLOCK):
            stop = min(start + _BLOCK, counts.shape[0])
            _predict_block(
                checkpoint, counts[start:stop], queries[start:stop], out, int(queries.indptr[start]), max_tokens
            )
            if progress is not None:
                progress(stop, counts.shape[0])
    finally:
        model.to(home)
    return out


@torch.no_grad()
def _predict_block(
    checkpoint: Checkpoint,
    counts: sparse.csr_matrix,
    queries: sparse.csr_matrix,
    out: Float32[np.ndarray, " all_queries"],
    first: int,
    max_tokens: int,
) -> None:
    config, device = checkpoint.model.config, next(checkpoint.model.parameters()).device
    total = torch.from_numpy(np.asarray(counts.sum(1)).ravel().astype(np.float32)).to(device)
    wanted = Ragged(torch.from_numpy(np.diff(queries.indptr).astype(np.int64)).to(device))
    query_gene = torch.from_numpy(queries.indices.astype(np.int64)).to(device)

    # What a cell shows: its observed genes less the wanted ones.
    seen = counts - counts.multiply(queries)
    seen = sparse.csr_matrix(seen)
    seen.eliminate_zeros()
    shown = Ragged(torch.from_numpy(np.diff(seen.indptr).astype(np.int64)).to(device))
    gene = torch.from_numpy(seen.indices.astype(np.int64)).to(device)
    value = torch.log1p(
        config.target_sum * torch.from_numpy(seen.data.astype(np.float32)).to(device) / total[shown.row]
    )

    same_key = torch.zeros_like(total, dtype=torch.long)
    most_queries = max(1, round(config.max_genes * _QUERIES_PER_CONTEXT / (1 + _QUERIES_PER_CONTEXT)))
    limit = (shown.lengths * _QUERIES_PER_CONTEXT).floor().long().clamp(1, most_queries)
    query_rank = keyed_rank(wanted, same_key, query_gene, purpose=_QUERY)
    turn = query_rank // limit[wanted.row]  # a cell with many queries is asked in several turns
    context_rank = keyed_rank(shown, same_key, gene, purpose=_CONTEXT)

    n_turns = torch.zeros_like(limit).scatter_reduce(0, wanted.row, turn + 1, "amax")
    n_turns[shown.lengths == 0] = 0
    cell_of = torch.repeat_interleave(torch.arange(shown.n_rows, device=device), n_turns)
    turn_of = Ragged(n_turns).offset
    n_queries = torch.minimum(wanted.lengths[cell_of] - turn_of * limit[cell_of], limit[cell_of])
    n_context = torch.minimum(shown.lengths[cell_of], config.max_genes - n_queries)

    # Entries of a cell in the order of their random rank: what a turn takes of them is a prefix (context) or a run (queries).
    by_context = torch.empty_like(context_rank)
    by_context[shown.starts[shown.row] + context_rank] = torch.arange(shown.n_entries, device=device)
    by_query = torch.empty_like(query_rank)
    by_query[wanted.starts[wanted.row] + query_rank] = torch.arange(wanted.n_entries, device=device)

    order = torch.argsort(n_queries + n_context, descending=True, stable=True)
    start = 0
    while start < order.numel():
        longest = int(n_queries[order[start]] + n_context[order[start]])
        chosen = order[start : start + max(1, max_tokens // longest)]
        start += chosen.numel()
        asked, given = Ragged(n_queries[chosen]), Ragged(n_context[chosen])
        cell = cell_of[chosen]
        of_query = by_query[(wanted.starts[cell] + turn_of[chosen] * limit[cell])[asked.row] + asked.offset]
        of_context = by_context[shown.starts[cell][given.row] + given.offset]
        rows = Ragged(asked.lengths + given.lengths)
        query_slot = rows.starts[asked.row] + asked.offset
        context_slot = (rows.starts + asked.lengths)[given.row] + given.offset
        genes = query_gene.new_zeros(rows.n_entries)
        genes[query_slot], genes[context_slot] = query_gene[of_query], gene[of_context]
        values = value.new_zeros(rows.n_entries)
        values[context_slot] = value[of_context]
        cells = Cells(
            genes=genes,
            values=values,
            rows=rows,
            key=same_key[cell],
            rest_max=_largest_hidden(shown, value, context_rank, n_context[chosen], cell),
            total=total[cell],
        )
        masked = torch.zeros(rows.n_entries, dtype=torch.bool, device=device)
        masked[query_slot] = True
        prediction = checkpoint.model(cells, Views.single(rows, masked)).prediction
        out[first + of_query.cpu().numpy()] = prediction.float().cpu().numpy()


def _largest_hidden(
    shown: Ragged, value: torch.Tensor, rank: torch.Tensor, n_context: torch.Tensor, cell: torch.Tensor
) -> torch.Tensor:
    """Largest observed value that did not fit into the context of each turn; 0 where all fitted."""
    if bool((n_context >= shown.lengths[cell]).all()):
        return value.new_zeros(cell.numel())
    entries = Ragged(shown.lengths[cell])
    source = shown.starts[cell][entries.row] + entries.offset
    hidden = rank[source] >= n_context[entries.row]
    return entries.max(value[source].masked_fill(~hidden, 0.0))


def aligned_chunks(
    adata: AnnData, vocab: GeneVocab, layer: str | None, *, rows: int = 2048
) -> Iterator[tuple[int, sparse.csr_matrix]]:
    """Raw counts of an AnnData over a vocabulary, in chunks of cells: (first cell, cells x vocabulary).

    Raises
    ------
    InputError
        If the matrix does not hold raw counts, or none at all, or less than 60 % of them belong to genes of the vocabulary.
    """
    source = open_source(adata, layer=layer)
    alignment = Alignment.of(source, vocab)
    # Counts by gene name first: a file of another species must be refused before hours are spent on it.
    per_name = np.zeros(alignment.resolution.tokens.size)
    for _, chunk in source.chunks(rows):
        per_name += np.asarray(chunk.sum(0), dtype=np.float64).ravel()
    if not np.any(per_name):
        raise InputError(f"{source.label}: no counts: all {source.n_cells:,} cells are empty. Give cells with counts.")
    alignment.resolution.report(per_name).check(source.label)
    for first, chunk in source.chunks(rows):
        yield first, alignment.apply(chunk)


def impute(
    adata: AnnData,
    checkpoint: Checkpoint,
    *,
    genes: Sequence[str] | None = None,
    layer: str | None = None,
    key_added: str = "expresser",
    overwrite_measured: bool = False,
    copy: bool = False,
    max_tokens: int = 16384,
    device: str | torch.device | None = None,
    progress: Progress | bool | None = None,
) -> AnnData | None:
    """Predict the zeros of chosen genes into ``adata.layers[key_added]``.

    The layer holds ``log1p(1e4 * count / total)``: measured values where a count was measured, predictions in its zeros, both on
    the same scale; NaN in the columns of genes that were not asked for or are unknown to the model. A prediction is the value to
    expect *if* the gene is expressed: the model is trained on non-zero entries and does not say which zeros are real.

    Parameters
    ----------
    adata
        Raw counts in X (or ``layer``).
    genes
        Symbols or Ensembl ids; None for all genes of ``adata`` that the model knows.
    overwrite_measured
        Predict measured entries too, each from the cell's other genes: a quarter of those asked for is hidden at a time.
    copy
        Return a changed copy instead of changing ``adata``.
    progress
        Called with (cells done, cells); True: a bar, in a terminal or a notebook.

    Raises
    ------
    InputError
        If no gene asked for is both in ``adata`` and in the model's vocabulary.
    """
    adata = adata.copy() if copy else adata
    vocab = checkpoint.vocab
    source = open_source(adata, layer=layer)
    column_token = _columns(adata, source, Alignment.of(source, vocab).resolution.tokens, layer)
    asked = _asked(genes, vocab, column_token)
    filled = np.full(adata.shape, np.nan, dtype=np.float32)
    columns = np.flatnonzero(asked)
    tokens = column_token[columns]
    with shown(progress, "impute") as report:
        for first, counts in aligned_chunks(adata, vocab, layer):
            total = np.asarray(counts.sum(1)).ravel()
            measured = counts[:, tokens].toarray()
            with np.errstate(divide="ignore", invalid="ignore"):
                values = np.log1p(checkpoint.model.config.target_sum * measured / total[:, None]).astype(np.float32)
            turns = _turns(measured > 0, tokens, len(vocab))
            for turn in range(_FOLDS + 1 if overwrite_measured else 1):
                wanted = turns == turn
                cell, position = np.nonzero(wanted)
                pattern = sparse.csr_matrix((np.ones(cell.size, np.int8), (cell, tokens[position])), shape=counts.shape)
                found = pattern.astype(np.float32)
                found.data = predict_entries(checkpoint, counts, pattern, max_tokens=max_tokens, device=device)
                values[wanted] = sparse.csr_matrix(found[:, tokens]).toarray()[wanted]
            filled[first : first + counts.shape[0], columns] = values
            if report is not None:
                report(first + counts.shape[0], adata.n_obs)
    adata.layers[key_added] = filled
    adata.uns["expresser"] = {**adata.uns.get("expresser", {}), "impute": trace(checkpoint, n_genes=int(columns.size))}
    return adata if copy else None


def _turns(
    measured: Bool[np.ndarray, "cells asked"], tokens: Int64[np.ndarray, " asked"], n_genes: int
) -> Int64[np.ndarray, "cells asked"]:
    """When an entry is asked: 0 for zeros, from all that was measured; 1 … _FOLDS for measured ones, or nothing would be left."""
    order = np.argsort(permutation(n_genes, _FOLD)[tokens], kind="stable")
    turns = np.zeros(measured.shape, dtype=np.int64)
    turns[:, order] = np.where(measured[:, order], (np.cumsum(measured[:, order], axis=1) - 1) % _FOLDS + 1, 0)
    return turns


def _columns(
    adata: AnnData, source: Source, tokens: Int64[np.ndarray, " names"], layer: str | None
) -> Int64[np.ndarray, " var"]:
    """Token of each column of ``adata``; -1 for features that are not genes or unknown."""
    names = adata.raw.var_names if layer == "raw" else adata.var_names
    of_matrix = np.full(len(names), -1, dtype=np.int64)
    of_matrix[source.columns] = tokens
    if layer != "raw":
        return of_matrix
    # raw holds other columns than X, mostly more: they meet by name, the first where a name repeats.
    first = {name: number for number, name in reversed(list(enumerate(names)))}
    at = np.array([first.get(name, -1) for name in adata.var_names], dtype=np.int64)
    return np.where(at >= 0, of_matrix[at], -1)


def _asked(
    genes: Sequence[str] | None, vocab: GeneVocab, column_token: Int64[np.ndarray, " var"]
) -> Bool[np.ndarray, " var"]:
    known = column_token >= 0
    if genes is None:
        return known
    wanted = vocab.resolve(list(genes))
    found = np.isin(column_token, wanted.tokens[wanted.tokens >= 0]) & known
    if not found.any():
        raise InputError(
            f"none of the genes asked for ({', '.join(list(genes)[:10])}) is both in the data and among the model's "
            f"{len(vocab):,} genes. "
            "Give symbols or Ensembl ids of genes in the file."
        )
    return found


def trace(checkpoint: Checkpoint, **more: object) -> dict[str, object]:
    """Provenance for ``uns``: which model made a result."""
    made = {"model": checkpoint.source, "corpus_id": str(checkpoint.run.get("corpus_id", "")), **more}
    return made | {"provenance": storable(provenance())}
