"""Translated peaks as often open as measured ones: what is left of calibration where no cell was measured in both."""

from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64
from scipy.optimize import brentq

from translate.feed import Feed, peak_bounds
from translate.system import System

CELLS, BATCH, PEAKS = 1000, 256, 16_384  # looked at; at once
LIMIT, BINS = 30.0, 6000  # log-odds beyond the limit count as at it; a bin is a hundredth


@torch.no_grad()
def shift_to_base_rate(system: System, feed: Feed, train: Int64[np.ndarray, " train"], slope: float) -> float | None:
    """What to add to ``slope * log-odds`` of peaks from RNA, so that their mean probability is the share open in training cells.

    None where no shift gives it (nothing is open, say).
    """
    rna, atac = train[feed.has("rna")[train]], train[feed.has("atac")[train]]
    some = rna[np.linspace(0, len(rna) - 1, min(len(rna), CELLS)).astype(int)]
    rate, n_peaks = float(feed.open_share(atac).mean()), peak_bounds(feed.inputs)[-1]
    device = next(system.parameters()).device
    counts = np.zeros(BINS)
    for cut in np.array_split(some, -(-len(some) // BATCH)):
        batch = feed.batch(cut, ("rna",), share=len(cut)).to(device)
        latent = system.encode(batch, source="rna", to="atac")
        for a, b in pairwise([*range(0, n_peaks, PEAKS), n_peaks]):
            odds = system.log_odds(latent, source="rna", peaks=slice(a, b)) * slope
            counts += torch.histc(odds.clamp(-LIMIT, LIMIT), BINS, -LIMIT, LIMIT).cpu().numpy()
    centres = (np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT

    def excess(shift: float) -> float:
        return float(counts @ (1 / (1 + np.exp(-(centres + shift)))) / counts.sum()) - rate

    return float(brentq(excess, -LIMIT, LIMIT)) if excess(-LIMIT) < 0 < excess(LIMIT) else None
