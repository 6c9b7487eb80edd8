"""Probabilities from log-odds that training left too high, too low or too sure: one slope and one shift a path (Platt)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, Int64

from translate.feed import Feed
from translate.phases import Phase
from translate.study import Modality
from translate.system import System

LIMIT, BINS = 30.0, 6000  # log-odds beyond the limit count as at it; a bin is a hundredth
CELLS, BATCH = 1000, 256  # looked at; at once
PULL = 1e-3  # nats, where slope or shift is 1 away


def platt(
    opened: Float64[np.ndarray, " bins"], total: Float64[np.ndarray, " bins"], logits: Float64[np.ndarray, " bins"]
) -> tuple[float, float]:
    """Slope and shift of the most likely ``sigmoid(slope * logit + shift)``, by Newton's method on binned counts.

    A weak pull to slope 1 and shift 0 (`PULL`) decides where the counts do not: one log-odds for all, nothing open.
    """
    start = np.array([1.0, 0.0])
    theta = start.copy()
    x = np.stack([logits, np.ones_like(logits)])
    for _ in range(100):
        p = 1 / (1 + np.exp(-np.clip(theta @ x, -LIMIT, LIMIT)))
        gradient = x @ (opened - total * p) - PULL * (theta - start)
        hessian = (x * (total * p * (1 - p))) @ x.T + PULL * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        theta += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-9:
            break
    return float(theta[0]), float(theta[1])


@torch.no_grad()
def calibrate(system: System, feed: Feed, cells: Int64[np.ndarray, " valid"], phases: Sequence[Phase]) -> None:
    """Fit slope and shift of each path to ATAC that these phases trained, on cells not trained on; in place."""
    for source, to in system.directions():
        here: tuple[Modality, ...] = (source, "atac")
        if to != "atac" or not any(set(here) <= {*phase.modalities, *phase.among} for phase in phases):
            continue
        seen = cells[np.logical_and.reduce([feed.rows[m][cells] >= 0 for m in here])]
        some = np.linspace(0, len(seen) - 1, min(len(seen), CELLS)).astype(int)
        opened, total = _histograms(system, feed, seen[some], source)
        centres = (np.arange(BINS) + 0.5) * (2 * LIMIT / BINS) - LIMIT
        system.get_buffer(f"calibration_{source}").copy_(torch.tensor(platt(opened, total, centres)))


def _histograms(
    system: System, feed: Feed, cells: Int64[np.ndarray, " valid"], source: Modality
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    """How many entries have log-odds in each bin, and how many of these are open."""
    opened, total = np.zeros(BINS), np.zeros(BINS)
    device = next(system.parameters()).device
    for some in np.array_split(cells, -(-len(cells) // BATCH)):
        batch = feed.batch(some, tuple(dict.fromkeys((source, "atac"))), share=len(some)).to(device)
        latent = system.encode(batch, source=source, to="atac")
        context = system.context(batch, source=source, to="atac")
        more: dict[str, Any] = {} if context is None else {"context": context}
        for block in (batch.atac.block(number) for number in range(batch.atac.n_blocks)):
            z = system.log_odds(latent, source=source, peaks=slice(block.start, block.stop), **more).flatten()
            bins = ((z + LIMIT) * (BINS / (2 * LIMIT))).long().clamp_(0, BINS - 1)
            total += torch.bincount(bins, minlength=BINS).cpu().numpy()
            opened += torch.bincount(bins[block.flat], minlength=BINS).cpu().numpy()
    return opened, total
