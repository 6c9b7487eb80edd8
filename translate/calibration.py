"""Probabilities from log-odds that were trained by something other than a likelihood: one slope, one shift (Platt)."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import nn

from translate.feed import Feed, to_device
from translate.heads import OpenHead, bernoulli_block
from translate.phases import Phase
from translate.study import Modality
from translate.system import System

LIMIT, BINS = 30.0, 6000  # log-odds beyond the limit count as at it; a bin is a hundredth
PEAKS = 16_384  # judged at once


def platt(
    opened: Float64[np.ndarray, " bins"], total: Float64[np.ndarray, " bins"], logits: Float64[np.ndarray, " bins"]
) -> tuple[float, float]:
    """Slope and shift of the most likely ``sigmoid(slope * logit + shift)``, by Newton's method on binned counts."""
    theta = np.array([1.0, 0.0])
    x = np.stack([logits, np.ones_like(logits)])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(theta @ x, -LIMIT, LIMIT)))
        gradient = x @ (opened - total * p)
        hessian = (x * (total * p * (1 - p))) @ x.T + 1e-9 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    return float(theta[0]), float(theta[1])


@torch.no_grad()
def calibrate(system: System, feed: Feed, cells: Int64[np.ndarray, " valid"], phases: Sequence[Phase]) -> None:
    """Fit slope and shift of each ATAC head whose loss is not the Bernoulli likelihood, on cells not trained on; in place."""
    for source, to in system.directions():
        head = next((m for n, m in system.named_modules() if n == f"{to}_decoder.head"), None)
        if to != "atac" or not isinstance(head, OpenHead) or head.block_loss is bernoulli_block:
            continue
        here: tuple[Modality, ...] = (source, "atac")
        seen = cells[np.logical_and.reduce([feed.rows[m][cells] >= 0 for m in here])]
        opened, total = _histograms(system, head, feed, seen, source)
        centres = (np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT
        slope, shift = platt(opened, total, centres)
        head.slope.fill_(slope)
        head.shift.fill_(shift)


def _histograms(
    system: System, head: OpenHead, feed: Feed, cells: Int64[np.ndarray, " valid"], source: Modality
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    opened, total = np.zeros(BINS), np.zeros(BINS)
    decoder: nn.Module = system.get_submodule("atac_decoder")
    device = next(system.parameters()).device
    for start in range(0, len(cells), 256):
        batch = feed.batch(cells[start : start + 256], (source, "atac"), share=256)
        hidden = decoder(system.encode(to_device(batch, device), source=source, to="atac"))
        truth = batch.atac.dense() > 0
        for a in range(0, head.bounds[-1], PEAKS):
            peaks = slice(a, min(a + PEAKS, head.bounds[-1]))
            bins = ((head.logits(hidden, peaks).cpu() + LIMIT) * (BINS / (2 * LIMIT))).long().clamp_(0, BINS - 1)
            total += torch.bincount(bins.flatten(), minlength=BINS).numpy()
            opened += torch.bincount(bins[truth[:, peaks]], minlength=BINS).numpy()
    return opened, total
