"""Where the RNA of cells lies, as a fixed reference that an embedding of their ATAC is guided by (SAILERX)."""

from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Float64, Int64
from sklearn.neighbors import NearestNeighbors

from expresser.errors import InputError
from expresser.threads import kept_threads
from translate.components import Components
from translate.covariates import BatchColumn, Reference
from translate.opening import open_matrix, read_table
from translate.study import Measured, Study

Cleaning: TypeAlias = Literal["matched", "centre", "none"]
Weighting: TypeAlias = Literal["depth", "even"]

GENES = 2000  # highly variable ones, of which components are taken
TARGET_SUM = 1e4
_FEWEST_CELLS = 3  # a gene is seen in
_NEIGHBOURS, _ROUNDS, _MOST = 15, 20, 5000  # of matching batches; cells of each that are looked at


def reference_embedding(
    spec: str,
    study: Study,
    train: Int64[np.ndarray, " train"],
    *,
    dims: int = 50,
    batches: BatchColumn | None = None,
    clean: Cleaning = "matched",
    weights: Weighting = "depth",
    within: str | None = None,
    seed: int = 0,
) -> Reference:
    """Where every cell with RNA lies, how much its place counts, and with which cells it is compared.

    Parameters
    ----------
    spec
        "pca": the first `dims` principal components of ln(1 + counts per ten thousand) of the highly variable genes of the
        training cells, others placed among them. "obsm:KEY": a table that the RNA's AnnData or .h5ad keeps (scVI, …), whole.
        "expresser:MODEL": cell embeddings of a pretrained Expresser (folder or hub id).
    clean
        How what batches differ in is taken out of it first; cells are compared by angle, so "centre" and "matched" also take
        out what all share. "centre": each batch's mean (it equals regressing batch out). "matched": the shift between cells of
        two batches that are mutual nearest neighbours, which does not mix up batches and cell types where the batches'
        composition differs. "none": as it is.
    weights
        "depth": `depth_weights`; "even": 1 for every cell with RNA and ATAC.
    within
        A column of obs: cells are compared inside its groups only (studies; or batches, where nothing is cleaned).

    Notes
    -----
    Cells without RNA or ATAC, of which the embedding says nothing, or of a batch that no training cell has (unless nothing is
    cleaned) have weight 0 and zeros.
    """
    if "rna" not in study.measured:
        raise InputError(f"reference {spec!r}: the study has no RNA; it has {', '.join(study.modalities)}.")
    found = _of_cells(spec, study, train, dims, seed)
    known = np.isfinite(found).all(axis=1)
    codes = np.zeros(study.n_cells, np.int64) if batches is None else batches.codes(study.obs)
    if clean != "none":
        known &= codes >= 0
    learnt = train[known[train]]
    if len(learnt) < 2:
        raise InputError(
            f"reference {spec!r}: {len(learnt)} of {len(train):,} training cells have a place in it; two are needed. Give cells "
            "with RNA and ATAC."
        )
    values = np.where(known[:, None], found, 0).astype(np.float64)
    if clean != "none":
        values -= values[learnt].mean(axis=0)
        shifts = (_means if clean == "centre" else _matched)(values[learnt], codes[learnt], seed)
        values -= shifts[np.clip(codes, 0, len(shifts) - 1)]
        values[~known] = 0
    group = BatchColumn(within)
    return Reference(
        name=spec,
        values=values.astype(np.float32),
        weight=np.where(known, depth_weights(study, train) if weights == "depth" else study.has("atac"), 0).astype(
            np.float32
        ),
        group=group.settled(study.obs, np.arange(study.n_cells)).codes(study.obs),
    )


def depth_weights(study: Study, train: Int64[np.ndarray, " train"]) -> Float32[np.ndarray, " cells"]:
    r"""How much a cell takes from its RNA: :math:`w = \mathrm{minmax}(\ln(d_{RNA} / d_{ATAC}))`, 0 to 1 (eq. 3.5's γ, unscaled).

    :math:`d`: counts of the RNA and open peaks of the ATAC, each divided by its maximum. Maxima, and the two ends of the
    scale, are those of the training cells; what lies beyond is held at 0 or 1. 0 for cells without RNA or ATAC.
    """
    both = study.has("rna") & study.has("atac")
    cells = train[both[train]]
    depth = np.zeros((2, study.n_cells))
    depth[0, both] = np.asarray(study.measured["rna"].matrix.sum(axis=1)).ravel()[study.rows["rna"][both]]
    depth[1, both] = np.diff(study.measured["atac"].matrix.indptr)[study.rows["atac"][both]]
    if not len(cells) or (depth[:, cells] > 0).sum() == 0:
        raise InputError("weights by depth: no training cell has both RNA and ATAC. Give paired cells.")
    ratio = np.zeros(study.n_cells)
    share = np.maximum(depth[:, both], 1) / depth[:, cells].max(axis=1, keepdims=True)
    ratio[both] = np.log(share[0] / share[1])
    low, high = ratio[cells].min(), ratio[cells].max()
    # All alike: all count alike.
    weight = np.clip((ratio - low) / (high - low), 0, 1) if high > low else np.ones(len(ratio))
    return np.where(both, weight, 0).astype(np.float32)


def _of_cells(
    spec: str, study: Study, train: Int64[np.ndarray, " train"], dims: int, seed: int
) -> Float64[np.ndarray, "cells dim"]:
    """Over all cells of the study, NaN where one has no place."""
    rna = study.measured["rna"]
    kind, _, name = spec.partition(":")
    if kind == "pca" and not name:
        rows = study.rows["rna"][train]
        values = _components(rna, rows[rows >= 0], dims, seed)
    elif kind == "obsm" and name:
        values = _table(rna, name)
    elif kind == "expresser" and name:
        values = _expresser(rna, name)
    else:
        raise InputError(f"reference {spec!r}: it is pca, obsm:KEY or expresser:MODEL.")
    there = study.has("rna")
    found = np.full((study.n_cells, values.shape[1]), np.nan)
    found[there] = values[study.rows["rna"][there]]
    return found


def _components(
    rna: Measured, rows: Int64[np.ndarray, " learnt"], dims: int, seed: int
) -> Float32[np.ndarray, "rows dim"]:
    import scanpy as sc  # here: it costs seconds of import
    from anndata import AnnData

    if len(rows) < 3:
        raise InputError(f"reference 'pca': {len(rows)} training cells have RNA; three are needed.")
    totals = np.asarray(rna.matrix.sum(axis=1)).ravel()
    x = rna.matrix.copy()
    x.data = np.log1p(TARGET_SUM * x.data / np.repeat(np.maximum(totals, 1), np.diff(x.indptr)))
    learnt = x[rows]
    seen = np.flatnonzero(learnt.getnnz(axis=0) >= min(_FEWEST_CELLS, len(rows)))
    if len(seen) > GENES:
        cells = AnnData(learnt[:, seen])
        with kept_threads():
            sc.pp.highly_variable_genes(cells, n_top_genes=GENES, flavor="seurat")
        seen = seen[cells.var["highly_variable"].to_numpy()]
    components = Components.fit(learnt[:, seen], "rna", n=dims, seed=seed)
    return components.of(x[:, seen])


def _table(rna: Measured, key: str) -> Float32[np.ndarray, "rows dim"]:
    """A table of obsm for the cells as they are named; NaN for one that no file has."""
    where = f"reference: obsm[{key!r}] of {rna.name}"
    if not rna.sources:
        raise InputError(f"{where}: it is not known what the RNA was read from. Read the study with read_study.")
    parts: list[tuple[list[str], Any]] = []
    for source in rna.sources:
        table, _ = read_table(source, key, where)
        names = [str(name).strip() for name in open_matrix(source, None).obs.index]
        values = np.asarray(table.toarray() if hasattr(table, "toarray") else table, np.float32)
        if values.ndim != 2 or len(values) != len(names):
            raise InputError(f"{where} is {values.shape} for {len(names):,} cells: one row a cell is needed.")
        parts.append((names, values))
    if len(widths := {values.shape[1] for _, values in parts}) > 1:
        raise InputError(f"{where}: the files' tables have {sorted(widths)} columns. Embed all files together.")
    found = np.full((rna.n_cells, widths.pop()), np.nan, np.float32)
    for names, values in parts:
        at = rna.obs.index.get_indexer(names)
        found[at[at >= 0]] = values[at >= 0]
    return found


def _expresser(rna: Measured, model: str) -> Float32[np.ndarray, "rows dim"]:
    from anndata import AnnData

    from expresser.checkpoint import load
    from expresser.embed import embed

    cells = AnnData(rna.matrix, obs=rna.obs[[]], var=rna.var[["ensembl_id", "symbol"]])
    embed(cells, load(model), key_added="reference")
    return np.asarray(cells.obsm["reference"], np.float32)


# ---- batches out of it -----------------------------------------------------------------------------------------------

Values: TypeAlias = Float64[np.ndarray, "cells dim"]
Codes: TypeAlias = Int64[np.ndarray, " cells"]


def _means(values: Values, codes: Codes, seed: int) -> Float64[np.ndarray, "batches dim"]:
    """What to subtract from each batch: its mean; 0 for one without cells."""
    shifts = np.zeros((int(codes.max()) + 1, values.shape[1]))
    for code in np.unique(codes):
        shifts[code] = values[codes == code].mean(axis=0)
    return shifts


def _matched(values: Values, codes: Codes, seed: int) -> Float64[np.ndarray, "batches dim"]:
    """What to subtract from each batch so that its cells lie on their mutual nearest neighbours in the larger batches.

    The largest stays; the others join it one by one, each from two starts, where it is and where its mean is the mean of those
    before: the one whose pairs end nearer to each other is right. The mean of what results is 0.
    """
    shifts = _means(values, codes, seed)
    sizes = np.bincount(codes)
    order = [int(code) for code in np.argsort(-sizes, kind="stable") if sizes[code]]
    rng = np.random.default_rng(seed)
    joined = [_some(values[codes == order[0]], rng)]
    shifts[order[0]] = 0
    for code in order[1:]:
        those, mine = np.concatenate(joined), _some(values[codes == code], rng)
        ends = [_moved(mine, those, start) for start in (shifts[code] - those.mean(axis=0), np.zeros(values.shape[1]))]
        shifts[code] = min(ends, key=lambda end: end[0])[1]
        joined.append(mine - shifts[code])
    shifts += (values - shifts[codes]).mean(axis=0)
    return shifts


def _moved(
    mine: Values, those: Float64[np.ndarray, "others dim"], shift: Float64[np.ndarray, " dim"]
) -> tuple[float, Float64[np.ndarray, " dim"]]:
    """The shift of `mine` at which its pairs no longer change (or after `_ROUNDS`), and how far apart they are then."""
    apart, size = np.inf, np.sqrt(np.square(those).sum(axis=1).mean())
    for _ in range(_ROUNDS):
        pairs = _mutual(mine - shift, those)
        gaps = mine[pairs[:, 0]] - shift - those[pairs[:, 1]]
        step = gaps.mean(axis=0)
        apart, shift = float(np.linalg.norm(gaps, axis=1).mean()), shift + step
        if np.linalg.norm(step) < 1e-3 * size:
            break
    return apart, shift


def _some(values: Values, rng: np.random.Generator) -> Float64[np.ndarray, "some dim"]:
    return values if len(values) <= _MOST else values[np.sort(rng.choice(len(values), _MOST, replace=False))]


def _mutual(one: Values, other: Float64[np.ndarray, "others dim"]) -> Int64[np.ndarray, "pairs 2"]:
    """Pairs of cells that are each among the other's nearest."""
    near: list[Any] = []  # sparse cells x others
    for cells, among in ((one, other), (other, one)):
        k = min(_NEIGHBOURS, len(among))
        near.append(NearestNeighbors(n_neighbors=k).fit(among).kneighbors_graph(cells))
    pairs = near[0].multiply(near[1].T).nonzero()
    return np.stack(pairs, axis=1).astype(np.int64)
