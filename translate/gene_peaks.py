"""How much each peak says of each gene by where they lie: the weights of gene activity."""

import numpy as np
import pandas as pd
from scipy import sparse

from expresser.regions import Regions

REACH = 100_000  # bases from the transcription start site within which a peak counts
DECAY = 5_000.0  # bases over which its weight falls to 1/e
PROMOTER = 1_000  # bases within which it counts one more


def peak_gene_weights(regions: Regions, genes: pd.DataFrame) -> sparse.csc_matrix:
    """Weight of each peak in each gene's activity, peaks x genes, as in `translate.gene_activity.GeneActivity`."""
    chrom, tss = genes["chrom"].to_numpy(object), genes["tss"].to_numpy(np.int64)
    rows, columns = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for name, peaks in regions.blocks().items():
        here = np.flatnonzero((chrom == name) & (tss >= 0))
        peaks = peaks[np.argsort(regions.start[peaks], kind="stable")]
        longest = int((regions.end[peaks] - regions.start[peaks]).max())
        first = np.searchsorted(regions.start[peaks], tss[here] - REACH - longest)
        count = np.searchsorted(regions.start[peaks], tss[here] + REACH, "right") - first
        at = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(first, count)
        rows.append(peaks[at])
        columns.append(np.repeat(here, count))
    row, column = np.concatenate(rows), np.concatenate(columns)
    # The last base of a half-open interval is end - 1.
    away = np.maximum(np.maximum(regions.start[row] - tss[column], tss[column] - (regions.end[row] - 1)), 0)
    near = away <= REACH
    weight = np.exp(-away[near] / DECAY) + (away[near] <= PROMOTER)
    shape = (len(regions), len(genes))
    return sparse.csc_matrix((weight.astype(np.float32), (row[near], column[near])), shape=shape)
