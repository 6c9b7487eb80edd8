"""Embeddings of cells and genes: AnnData in, AnnData out."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from jaxtyping import Float, Float32, Int, Int64
from scipy import sparse

from expresser.checkpoint import Checkpoint
from expresser.errors import InputError
from expresser.impute import Progress, aligned_chunks, trace
from expresser.model.cells import Cells, all_folds
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.progress import shown

_FOLDS = 4


def embed(
    adata: AnnData,
    checkpoint: Checkpoint,
    *,
    layer: str | None = None,
    key_added: str = "X_expresser",
    contextual: Sequence[str] = (),
    copy: bool = False,
    max_tokens: int = 16384,
    device: str | torch.device | None = None,
    progress: Progress | bool | None = None,
) -> AnnData | None:
    """Write cell embeddings into ``adata.obsm[key_added]`` (cells x d, float32).

    Each gene of a cell is predicted from the others. The embedding is the mean, over the cell's genes, of how far the decoder's
    prediction lies above what the head would say without it (where the head has no such null prediction: above the cell's mean
    prediction), times the gene's token. It depends on expression, not only on which genes are there, and is a function of the cell:
    other cells, batch sizes and order do not change it. NaN for a cell with fewer than two known genes.

    Parameters
    ----------
    contextual
        Symbols or Ensembl ids whose contextual embeddings ``T'`` are wanted too: ``obsm["X_expresser_SYMBOL"]``, NaN in cells that
        do not express the gene, or that have more than ``max_genes`` genes and do not show this one.
    copy
        Return a changed copy instead of changing ``adata``.
    progress
        Called with (cells done, cells); True: a bar, in a terminal or a notebook.
    """
    adata = adata.copy() if copy else adata
    vocab, model = checkpoint.vocab, checkpoint.model
    asked = vocab.resolve(list(contextual))
    if (asked.tokens < 0).any():
        unknown = [str(name) for name, token in zip(contextual, asked.tokens) if token < 0]
        raise InputError(f"contextual: not genes of the model: {', '.join(unknown[:10])}. Give symbols or Ensembl ids.")
    d = model.config.d_model
    out = np.full((adata.n_obs, d), np.nan, dtype=np.float32)
    genes = {int(t): np.full((adata.n_obs, d), np.nan, dtype=np.float32) for t in asked.tokens}
    home = next(model.parameters()).device
    model.to(torch.device(device) if device is not None else home)
    try:
        with shown(progress, "embed") as report:
            for first, counts in aligned_chunks(adata, vocab, layer):
                _embed_block(checkpoint, counts, first, out, genes, max_tokens)
                if report is not None:
                    report(first + counts.shape[0], adata.n_obs)
    finally:
        model.to(home)
    adata.obsm[key_added] = out
    for token, values in genes.items():
        adata.obsm[f"{key_added}_{vocab.symbols[token]}"] = values
    adata.uns["expresser"] = {**adata.uns.get("expresser", {}), "embed": trace(checkpoint, dimensions=d)}
    return adata if copy else None


def embed_counts(
    checkpoint: Checkpoint,
    counts: sparse.csr_matrix,
    *,
    max_tokens: int = 16384,
    device: str | torch.device | None = None,
) -> Float32[np.ndarray, "cells d"]:
    """The embeddings of :func:`embed` for raw counts over the model's vocabulary; NaN for a cell with fewer than two genes."""
    model = checkpoint.model
    if counts.shape[1] != len(checkpoint.vocab):
        raise ValueError(f"counts {counts.shape} must be cells x {len(checkpoint.vocab)} genes.")
    out = np.full((counts.shape[0], model.config.d_model), np.nan, dtype=np.float32)
    home = next(model.parameters()).device
    model.to(torch.device(device) if device is not None else home)
    try:
        _embed_block(checkpoint, counts, 0, out, {}, max_tokens)
    finally:
        model.to(home)
    return out


@torch.no_grad()
def _embed_block(
    checkpoint: Checkpoint,
    counts: sparse.csr_matrix,
    first: int,
    out: Float32[np.ndarray, "cells d"],
    genes: dict[int, Float32[np.ndarray, "cells d"]],
    max_tokens: int,
) -> None:
    model, config = checkpoint.model, checkpoint.model.config
    device = next(model.parameters()).device
    for chosen in by_tokens(np.diff(counts.indptr), max_tokens, config.max_genes):
        batch = counts[chosen]
        cells = Cells.from_counts(
            torch.from_numpy(batch.indices.astype(np.int64)).to(device),
            torch.from_numpy(batch.data.astype(np.int64)).to(device),
            torch.from_numpy(np.diff(batch.indptr).astype(np.int64)).to(device),
            torch.from_numpy(np.asarray(batch.sum(1)).ravel().astype(np.float32)).to(device),
            torch.zeros(chosen.size, dtype=torch.long, device=device),
            target_sum=config.target_sum,
            max_genes=config.max_genes,
        )
        pooled, contextual = pool_cells(model, cells)
        out[first + chosen] = pooled.cpu().numpy()
        for token, values in genes.items():
            at = torch.nonzero(cells.genes == token).squeeze(1)
            values[first + chosen[cells.rows.row[at].cpu().numpy()]] = contextual[at].float().cpu().numpy()


def by_tokens(
    lengths: Int[np.ndarray, " cells"], max_tokens: int, max_genes: int, *, fewest: int = 2
) -> Iterator[Int64[np.ndarray, " some"]]:
    """Numbers of cells that are read together, long ones first: padded, they have at most `max_tokens` genes, or are one cell.

    Those with less than `fewest` genes are left out: a cell with fewer than two has no embedding.
    """
    lengths = np.minimum(lengths, max_genes)
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] >= fewest]
    start = 0
    while start < order.size:
        fits = max(1, max_tokens // max(int(lengths[order[start]]), 1))
        yield order[start : start + fits]
        start += fits


def pool_cells(
    model: ExpresserPreTrainedModel, cells: Cells
) -> tuple[Float[torch.Tensor, "cells d"], Float[torch.Tensor, "entries d"]]:
    """The embedding of each cell (see :func:`embed`), and the contextual one of each entry; gradients flow where they are enabled.

    A cell with fewer than two genes has no view and gets zeros.
    """
    views = all_folds(cells, _FOLDS)
    result = model(cells, views)
    cell = views.cell[views.query_rows.row]
    # Plain pooling of what the decoder gathered forgets which gene it was gathered for: on 300 unseen PBMC its neighbours had
    # the right cell type in 43 % of cases, pooled contextual embeddings in 69 %, PCA in 77 %, this in 79 %.
    n_genes = cells.rows.lengths.float()
    null = model.null_prediction(cells, views)
    if null is None:
        total = result.prediction.new_zeros(cells.rows.n_rows).index_add(0, cell, result.prediction)
        null = (total / n_genes)[cell]
    weighted = (result.prediction - null)[:, None] * model.gene_tokens(cells.genes[views.query])
    pooled = weighted.new_zeros(cells.rows.n_rows, model.config.d_model).index_add(0, cell, weighted)
    return pooled / n_genes.clamp(min=1)[:, None], result.contextual


def gene_table(checkpoint: Checkpoint) -> pd.DataFrame:
    """The token table ``T`` (the paper's semantic gene embeddings): one row a gene, index Ensembl id, ``symbol``, then ``0 … d-1``."""
    weights = checkpoint.model.gene_tokens.weight.detach().float().cpu().numpy()
    frame = pd.DataFrame(weights, columns=[str(i) for i in range(weights.shape[1])])
    frame.insert(0, "symbol", checkpoint.vocab.symbols.astype(str))
    frame.index = pd.Index(checkpoint.vocab.ids.astype(str), name="gene_id")
    return frame
