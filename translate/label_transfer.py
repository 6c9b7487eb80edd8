"""Cell types of ATAC cells, told from labelled RNA of other cells through the activity of genes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Float, Float32, Float64, Int64
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, svds
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

from expresser.errors import InputError
from expresser.metrics.clusters import communities, neighbour_graph
from expresser.notebook import card
from expresser.regions import Regions
from translate.components import Components
from translate.gene_activity import GeneActivity
from translate.genenames import GenePlaces
from translate.reading import read_measured
from translate.study import Measured

GENES = 2000  # the most variable of those that RNA and activity share
CANONICAL = 30  # dimensions in which cells of both are compared
NEIGHBOURS = 50  # cells, by their own peaks, over which activity is averaged; fewer of few cells
VOTERS = 15  # of these, whose probabilities are averaged
RESOLUTION = 3.0  # of clusters: small ones, since rare types vanish in large ones
NULLS = 3
MARGIN = 0.15  # by which clusters have to be surer than with genes in disorder
_FEWEST_CELLS, _FEWEST_GENES = 20, 20
_EXPRESSING = 10  # cells, for a gene to be looked at
_ROWS = 512  # cells whose activity of all genes is dense, or that are in float64, at one time
_COLUMNS = 64  # genes averaged over neighbours at one time
_CLIP = 10.0  # standard deviations
_RIDGE = 0.1  # scikit-learn's C: confidences are too high with the default of 1
_REWEIGHT = (0.1, 10.0)  # least and largest weight of a type's cells

Known: TypeAlias = AnnData | Measured | str | Path
Labels: TypeAlias = Int64[np.ndarray, " rna"]
Weights: TypeAlias = Float64[np.ndarray, " rna"]
Smoothing: TypeAlias = Literal["none", "neighbours", "clusters"]


@dataclass(frozen=True, eq=False)
class Transfer:
    """Labels of ATAC cells, and what speaks for them.

    `cells`, a row a cell: `label` (None below the least confidence), `confidence` (probability of `guess`), `guess`.
    `agreement`: how sure whole clusters of ATAC cells are on average, whose members were told apart without looking at
    genes; `by_chance`: what that is when every gene is given another gene's activity.
    """

    cells: pd.DataFrame = field(repr=False)
    probabilities: Float64[np.ndarray, "cells types"] = field(repr=False)
    types: tuple[str, ...]
    genes: int
    agreement: float
    by_chance: float
    facts: Mapping[str, Any]  # settings

    def _repr_html_(self) -> str:
        facts = {
            "cells": len(self.cells),
            "labelled": int(self.cells["label"].notna().sum()),
            "genes compared": self.genes,
            "agreement": self.agreement,
            "by chance": self.by_chance,
            "doubt": self.doubt(),
        }
        return card(
            "Labels of ATAC cells", facts, {"labels": self.cells["label"].value_counts().to_frame("cells")}, opened=True
        )

    def doubt(self) -> str | None:
        """In words, where labels are little better than chance; None where nothing speaks against them."""
        if self.agreement >= self.by_chance + MARGIN:
            return None
        return (
            "labels: the two modalities do not seem to match. Cells that their peaks put into one cluster get the same label with "
            f"a confidence of {self.agreement:.2f} on average, and of {self.by_chance:.2f} when every gene is given the activity of "
            f"another; {self.genes:,} genes were compared. Do not trust these labels. Likely causes: peaks and genes of "
            "different genome builds, too few peaks near genes, very shallow cells, or other tissues."
        )


def transfer_labels(rna: Known, atac: Known, labels: str, **options: Any) -> pd.DataFrame:
    """`transfer(...).cells`: label, confidence and guess of each ATAC cell."""
    return transfer(rna, atac, labels, **options).cells


def transfer(
    rna: Known,
    atac: Known,
    labels: str,
    *,
    layer: str | None = None,
    genes: str | Path | pd.DataFrame | None = None,
    min_confidence: float = 0.5,
    smooth: Smoothing = "neighbours",
    n_genes: int = GENES,
    seed: int = 0,
) -> Transfer:
    """Cell types of ATAC cells by multinomial regression in a space that they share with labelled RNA of other cells.

    1. Activity of each gene (`GeneActivity`, not calibrated), averaged over the cells nearest by their own peaks (LSI).
    2. Shared variable genes, ln(1 + size-normalised), standardised in each modality by itself.
    3. A first guess, the type whose mean RNA profile correlates best, says how often each type occurs in ATAC. RNA is
       weighted to that composition and standardised anew: otherwise "above average" means another thing in each modality.
    4. Canonical vectors of both (singular vectors of RNA x ATAC over genes, each cell scaled to length one; Stuart et al.
       2019), logistic regression on those of RNA, probabilities for those of ATAC.
    5. Probabilities are averaged over neighbours (by LSI), or clusters.

    Memory: beside the files 4 bytes for each cell and gene compared, 8 kB a cell at 2,000 genes, once for the cells of either
    modality: 1.6 GB for 100,000 of RNA and 100,000 of ATAC.

    The same on genes in disorder says what confidence is worth nothing. A type that RNA lacks is not noticed: its cells get
    the label of the nearest type, often confidently. No batch is corrected.

    Smoothing costs where types grade into each other and cells are deep (simulated: 0 to 2 points of accuracy for neighbours, 1
    to 14 for clusters), and is worth much where cells are shallow (bone marrow with some 250 counts in 10,000 peaks, labelled
    from blood: 0.81 without, 0.94 and 0.92 with).

    Parameters
    ----------
    rna, atac
        Raw counts; counts or 0/1 of peaks. Files, AnnData, or as `read_measured` gives them.
    labels
        Column of RNA's obs; cells without a value are left out.
    layer, genes
        Where RNA's raw counts are if not in X; places of genes where the RNA has none (`read_study`).
    min_confidence
        Cells below have no label (None).
    smooth
        Whose probabilities are averaged: the nearest cells', or all of the cell's cluster's (Leiden).
    n_genes
        Most genes to compare.

    Raises
    ------
    InputError
        Where labels, places of genes, cells or genes in common are missing.
    """
    if not 0 <= min_confidence <= 1:
        raise InputError(f"labels: the least confidence is a probability, from 0 to 1, not {min_confidence:g}.")
    expressed = rna if isinstance(rna, Measured) else _read_rna(rna, layer, genes)
    peaks = (atac if isinstance(atac, Measured) else read_measured(atac, "atac")).loaded()
    expressed, y, types = _labelled(expressed.loaded(), labels)
    _prove_enough(expressed, peaks)
    opened = sparse.csr_matrix(peaks.matrix, copy=True)
    opened.data[:] = 1
    regions = Regions.from_var(peaks.var, where=peaks.name)
    activity = GeneActivity.raw(opened, regions, expressed.var).predict(opened)
    # The first component is depth.
    lsi = normalize(Components.fit(opened, "atac", n=CANONICAL + 1, seed=seed).of(opened)[:, 1:])
    k = int(np.clip(len(lsi) // 30, 5, NEIGHBOURS))
    near, voters = (_near(lsi, size) for size in (k, min(k, VOTERS)))
    near = near.astype(np.float32)
    graph = neighbour_graph(lsi.astype(np.float64))
    cluster = next(communities(graph, [RESOLUTION], seed=seed))
    chosen = _variable(expressed, (opened @ activity.model.weights).getnnz(axis=0).astype(np.int64), n_genes)
    x = sparse.csr_matrix(_log_normalised(expressed.matrix)[:, chosen])
    smoothed = np.empty((peaks.n_cells, len(chosen)), np.float32)
    for cells in _cuts(peaks.n_cells):
        smoothed[cells] = activity.block(cells, slice(0, expressed.n_features))[:, chosen]
    for some in _cuts(len(chosen), _COLUMNS):
        smoothed[:, some] = near @ smoothed[:, some]
    smoothed = _standardised(smoothed)
    profiles = _profiles(x, y, len(types))
    found = _probabilities(x, profiles, smoothed, y)
    rng, sure = np.random.default_rng(seed), []
    for _ in range(NULLS):
        other = rng.permutation(len(chosen))  # of genes: RNA's are exchanged, which are sparse
        chance = _probabilities(sparse.csr_matrix(x[:, other]), profiles[:, other], smoothed, y)
        sure.append(_by_cluster(chance, cluster).max(axis=1).mean())
    by_chance = float(np.mean(sure))
    agreement = float(_by_cluster(found, cluster).max(axis=1).mean())
    if smooth != "none":
        found = voters @ found if smooth == "neighbours" else _by_cluster(found, cluster)
    found[np.diff(opened.indptr) == 0] = 1 / len(types)  # nothing is known of a cell without an open peak
    cells = _named(found, types, peaks.obs.index, min_confidence)
    facts = {
        "labels": labels,
        "rna": expressed.name,
        "rna_cells": expressed.n_cells,
        "min_confidence": min_confidence,
        "smooth": smooth,
        "seed": seed,
    }
    return Transfer(cells, found, types, len(chosen), agreement, by_chance, facts)


def _near(lsi: Float32[np.ndarray, "cells dims"], k: int) -> sparse.csr_matrix:
    """Averages over each cell and its nearest, k in all."""
    return normalize(NearestNeighbors(n_neighbors=k).fit(lsi).kneighbors_graph(lsi), "l1")


def _read_rna(data: Any, layer: str | None, genes: str | Path | pd.DataFrame | None) -> Measured:
    places = None if genes is None else GenePlaces.read(genes)
    return read_measured(data, "rna", layer=layer, places=places)


def _labelled(rna: Measured, labels: str) -> tuple[Measured, Labels, tuple[str, ...]]:
    """Cells that have a label, numbers of their types, and the types."""
    if labels not in rna.obs:
        raise InputError(
            f"{rna.name}: obs has no column {labels!r} to take labels from. It has "
            f"{', '.join(map(str, rna.obs.columns)) or 'none'}."
        )
    known = np.flatnonzero(rna.obs[labels].notna().to_numpy()).astype(np.int64)
    values = rna.obs[labels].iloc[known].astype(str).to_numpy()
    types, code = np.unique(values.astype(str), return_inverse=True)
    if len(types) < 2:
        raise InputError(
            f"{rna.name}: {labels!r} has {len(types)} value(s) among {len(known):,} labelled cells; there must be two types "
            "at least to choose from."
        )
    if 2 * len(types) > len(known):
        raise InputError(
            f"{rna.name}: {labels!r} has {len(types):,} values for {len(known):,} cells (first: {', '.join(types[:3])}): no "
            "types of cells. Name the column of their annotation."
        )
    return rna.take(known), code.astype(np.int64), tuple(map(str, types))


def _prove_enough(rna: Measured, atac: Measured) -> None:
    for part in (rna, atac):
        if part.n_cells < _FEWEST_CELLS:
            raise InputError(
                f"{part.name}: {part.n_cells:,} cells to compare; labels are transferred between {_FEWEST_CELLS} or more."
            )
    if not (rna.var["tss"] >= 0).any():
        raise InputError(
            f"{rna.name}: the places of its genes are not known, and peaks belong to genes by place. Give them: genes, a table "
            "of ids, chrom and tss of the peaks' genome build, or a GTF."
        )


def _variable(rna: Measured, active: Int64[np.ndarray, " genes"], n: int) -> Int64[np.ndarray, " chosen"]:
    """Genes to compare, ascending: seen in enough cells of both, of these the most variable in RNA (scanpy's)."""
    import scanpy as sc  # here, since it costs seconds

    expressing = rna.matrix.getnnz(axis=0)
    shared = np.flatnonzero((expressing >= _EXPRESSING) & (active >= _EXPRESSING)).astype(np.int64)
    if len(shared) < _FEWEST_GENES:
        raise InputError(
            f"labels: {len(shared)} genes are expressed in {_EXPRESSING} cells of {rna.name} and have peaks around them that are "
            f"open in {_EXPRESSING} of the other cells; {_FEWEST_GENES} are needed. Are the peaks of the genes' genome build?"
        )
    if len(shared) <= n:
        return shared
    values = AnnData(_log_normalised(rna.matrix)[:, shared])
    table = sc.pp.highly_variable_genes(values, n_top_genes=n, flavor="seurat", inplace=False)
    return shared[table["highly_variable"].to_numpy()]


def _log_normalised(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    total = np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.median(total[total > 0]) / np.maximum(total, 1)
    return sparse.csr_matrix((sparse.diags_array(scale.astype(np.float32)) @ counts).log1p())


def _standardised(
    values: Float32[np.ndarray, "cells features"], weights: Float64[np.ndarray, " cells"] | None = None
) -> Float32[np.ndarray, "cells features"]:
    """Mean 0 and standard deviation 1 of each feature over (weighted) cells, in place; what does not vary is 0."""
    share = np.full(len(values), 1 / len(values)) if weights is None else weights / weights.sum()
    mean, square = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for cells in _cuts(len(values)):
        mean += share[cells] @ values[cells].astype(np.float64)
    for cells in _cuts(len(values)):
        square += share[cells] @ (values[cells] - mean) ** 2
    sd = np.sqrt(square)
    scale = np.divide(1.0, sd, out=np.zeros(len(sd)), where=sd > 1e-6)
    for cells in _cuts(len(values)):
        values[cells] = np.clip((values[cells] - mean) * scale, -_CLIP, _CLIP)
    return values


def _cuts(n: int, step: int = _ROWS) -> Iterator[slice]:
    return (slice(first, first + step) for first in range(0, n, step))


def _probabilities(
    x: sparse.csr_matrix, profiles: Float32[np.ndarray, "types genes"], atac: Float32[np.ndarray, "_ genes"], y: Labels
) -> Float64[np.ndarray, "cells types"]:
    """Steps 3 and 4 of `transfer`. x: log-normalised RNA, rna x genes; profiles: `_profiles` of it; atac: standardised activity."""
    weights = _to_composition(y, _nearest_profile(profiles, atac), len(profiles))
    rna = _standardised(x.toarray(), weights)
    u, v = _canonical(rna, atac, weights)
    # Weighted cells gave the vectors; where each cell itself lies among them follows from those of ATAC.
    ours, theirs = _standardised(normalize(rna @ (atac.T @ v) / u), weights), _standardised(normalize(v))
    model = LogisticRegression(C=_RIDGE, max_iter=1000).fit(ours, y, sample_weight=weights)
    found = np.zeros((len(atac), len(profiles)))
    found[:, model.classes_] = model.predict_proba(theirs)
    return found


def _profiles(x: sparse.csr_matrix, y: Labels, n_types: int) -> Float32[np.ndarray, "types genes"]:
    """The mean of each type's cells, standardised."""
    rna = _standardised(x.toarray())
    of_type = sparse.csr_matrix((np.ones(len(y), np.float32), (y, np.arange(len(y)))), shape=(n_types, len(y)))
    return normalize(of_type, "l1") @ rna


def _nearest_profile(
    profiles: Float32[np.ndarray, "types genes"], atac: Float32[np.ndarray, "cells genes"]
) -> Int64[np.ndarray, " cells"]:
    """The type whose mean profile correlates best, of each ATAC cell: its own mean and spread are the same for all types."""
    ours = normalize(profiles - profiles.mean(axis=1, keepdims=True))
    return np.argmax(atac @ ours.T, axis=1).astype(np.int64)


def _to_composition(y: Labels, guess: Int64[np.ndarray, " cells"], n_types: int) -> Weights:
    """Weights of RNA cells, mean 1, that make types as frequent as guessed of ATAC; none is silenced."""
    share = np.bincount(guess, minlength=n_types) / len(guess)
    weights = np.clip((share + 1e-3) / (np.bincount(y, minlength=n_types) / len(y)), *_REWEIGHT)[y]
    return np.asarray(weights / weights.mean(), np.float64)


def _canonical(
    rna: Float32[np.ndarray, "rna genes"], atac: Float32[np.ndarray, "cells genes"], weights: Weights | None = None
) -> tuple[Float[np.ndarray, " dims"], Float[np.ndarray, "cells dims"]]:
    """Singular values, and vectors of ATAC, of ``rna @ atac.T``, which is never made; each cell of RNA times √weight."""
    root = np.ones(len(rna), np.float32) if weights is None else np.sqrt(weights).astype(np.float32)

    def times(v: np.ndarray) -> np.ndarray:
        return (root * (rna @ (atac.T @ v)).T).T

    def back(u: np.ndarray) -> np.ndarray:
        return atac @ (rna.T @ (root * u.T).T)

    shape = (len(rna), len(atac))
    product = LinearOperator(shape, matvec=times, rmatvec=back, matmat=times, rmatmat=back, dtype=np.float32)
    n = min(CANONICAL, min(*rna.shape, len(atac)) - 1)
    # A start of its own, so that nothing is drawn from a global generator.
    _, s, vt = svds(product, n, v0=np.random.default_rng(0).normal(size=min(shape)).astype(np.float32))
    kept = s > 1e-4 * s.max()
    return s[kept], vt[kept].T


def _by_cluster(
    probabilities: Float64[np.ndarray, "cells types"], cluster: Int64[np.ndarray, " cells"]
) -> Float64[np.ndarray, "cells types"]:
    """Each cell as the mean of its cluster."""
    return pd.DataFrame(probabilities).groupby(cluster).transform("mean").to_numpy()


def _named(
    probabilities: Float64[np.ndarray, "cells types"], types: tuple[str, ...], cells: pd.Index, least: float
) -> pd.DataFrame:
    confidence = probabilities.max(axis=1)
    guess = np.array(types, dtype=object)[probabilities.argmax(axis=1)]
    unsure: Bool[np.ndarray, " cells"] = confidence < least
    label = np.where(unsure, None, guess)
    return pd.DataFrame({"label": label, "confidence": confidence, "guess": guess}, index=cells)
