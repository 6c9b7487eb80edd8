"""Peaks that go with genes: correlation over cells of accessibility and expression near transcription starts, and whether
attribution ranks the same peaks first."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int64
from scipy import sparse, stats

from expresser.errors import InputError
from expresser.regions import Regions
from translate.attribution import Attribution
from translate.perturb_names import gene_regions, signed_distance
from translate.predicted import Chosen, Predicted

WINDOW = 100_000  # bases to either side of a transcription start
FEWEST = 3  # cells that a correlation needs
_BLOCK = 1 << 22  # values of pairs x cells in memory at once

# Columns of features by number -> values of all cells.
Values = Callable[[Int64[np.ndarray, " features"]], Float[np.ndarray, "cells features"]]


def pairs_near(
    regions: Regions,
    genes: pd.DataFrame,
    *,
    window: int = WINDOW,
    only_genes: Int64[np.ndarray, " genes"] | None = None,
    only_peaks: Int64[np.ndarray, " peaks"] | None = None,
) -> pd.DataFrame:
    """Pairs of a peak and a gene whose transcription starts within `window` bases of the peak, sorted by gene, then peak.

    genes: columns chrom and tss (-1 unknown). only_…: of these alone. Columns: gene and peak (numbers) and distance
    (`signed_distance`, bases).
    """
    if window < 0:
        raise InputError(f"links: a window of {window} bases. Give 0 or more; {WINDOW:,} is usual.")
    chosen_genes = np.arange(len(genes)) if only_genes is None else only_genes
    chosen_peaks = np.arange(len(regions)) if only_peaks is None else only_peaks
    around, known = gene_regions(genes.iloc[chosen_genes], window)
    near = around.overlaps(regions.take(chosen_peaks)).tocoo()
    gene, peak = chosen_genes[known[near.row]], chosen_peaks[near.col]
    order = np.lexsort((peak, gene))
    gene, peak = gene[order], peak[order]
    tss = genes["tss"].to_numpy(np.int64)[gene]
    return pd.DataFrame(
        {"gene": gene, "peak": peak, "distance": signed_distance(tss, regions.start[peak], regions.end[peak])}
    )


def correlate(pairs: pd.DataFrame, accessibility: Values, expression: Values, n_cells: int) -> pd.DataFrame:
    """Pearson's r of each pair over cells, its two-sided p (t distribution, n - 2) and q (Benjamini-Hochberg over the pairs).

    NaN where the peak or the gene is the same in all cells; such pairs do not count in the correction. Memory: `_BLOCK` values
    beside those of the features asked for.
    """
    if n_cells < FEWEST:
        raise InputError(f"links: {n_cells} cells, but a correlation needs {FEWEST}. Give more cells.")
    r, p = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
    step = max(1, _BLOCK // (2 * n_cells))
    for first in range(0, len(pairs), step):
        part = pairs.iloc[first : first + step]
        peaks, at_peak = np.unique(part["peak"].to_numpy(), return_inverse=True)
        genes, at_gene = np.unique(part["gene"].to_numpy(), return_inverse=True)
        x, y = (np.asarray(values, np.float64) for values in (accessibility(peaks), expression(genes)))
        moves = (np.ptp(x, axis=0) > 0)[at_peak] & (np.ptp(y, axis=0) > 0)[at_gene]
        if moves.any():
            found = stats.pearsonr(x[:, at_peak[moves]], y[:, at_gene[moves]], axis=0)
            r[first + np.flatnonzero(moves)], p[first + np.flatnonzero(moves)] = found.statistic, found.pvalue
    return pd.DataFrame({"r": r, "p": p, "q": false_discovery(p)}, index=pairs.index)


def false_discovery(p: Float64[np.ndarray, " tests"]) -> Float64[np.ndarray, " tests"]:
    """Benjamini-Hochberg q of the tests that have a p; NaN of the others."""
    q, there = np.full(len(p), np.nan), np.isfinite(p)
    if there.any():
        q[there] = stats.false_discovery_control(p[there])
    return q


def of_matrix(matrix: sparse.csr_matrix, *, log: bool = False) -> Values:
    """Columns of measured values, ln(1 + x) of them with `log`."""
    columns = sparse.csc_matrix(matrix)

    def values(features: Int64[np.ndarray, " features"]) -> Float[np.ndarray, "cells features"]:
        dense = columns[:, features].toarray()
        return np.log1p(dense) if log else dense

    return values


def of_predicted(predicted: Predicted) -> Values:
    """Columns of what a model predicts."""
    return lambda features: Chosen(predicted, features).values()


def agreement(found: Attribution, pairs: pd.DataFrame, r: Float64[np.ndarray, " pairs"]) -> dict[str, float | int]:
    """Spearman's correlation over the candidates of one target between their mean attribution and their r over cells.

    Signed: a peak whose opening raises the gene should go with it. `n`: candidates that have both; NaN below three.
    """
    own = (pairs["gene"] if found.to == "rna" else pairs["peak"]).to_numpy() == found.number
    features = (pairs["peak"] if found.to == "rna" else pairs["gene"]).to_numpy()[own]
    mean = found.mean[features]
    there = np.isfinite(r[own])
    n = int(there.sum())
    varied = n >= FEWEST and np.ptp(mean[there]) > 0 and np.ptp(r[own][there]) > 0
    value = float(stats.spearmanr(mean[there], r[own][there]).statistic) if varied else float("nan")
    return {"spearman": value, "n": n}
