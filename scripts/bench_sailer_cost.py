"""What a step of SAILER costs: cells a second at several numbers of cells, seconds an epoch, and the share of the pairwise divergence.

Cells without structure in memory, 100,000 bins, batches of 128 and 1,000. One JSON object a line. Takes 4 GB and some minutes.

    python scripts/bench_sailer_cost.py --cells 5000 20000 81000
    python scripts/bench_sailer_cost.py --cells 500 --bins 2000 --opened 60 --steps 3      # does it work?
"""

import argparse
import json
import resource
import time
from statistics import median

import _genome_scale as scale
import numpy as np
import torch

from expresser.record import plain_json
from translate.feed import Feed
from translate.fitting import build, configuration
from translate.losses import mutual_information_bound
from translate.phases import Turn, named_parameters, playing
from translate.preprocess import AtacInput, AtacRecipe
from translate.study import Measured, Study


def cells_of(n: int, bins: int, opened: float) -> Study:
    """ATAC alone."""
    matrix = scale.drawn(n, bins, opened, 0, counts=False)
    return Study(
        scale.cell_names(n),
        {"atac": Measured(matrix, scale.peaks(bins), scale.cell_names(n), "ATAC")},
        {"atac": np.arange(n)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", nargs="+", type=int, default=[5000, 20_000, 81_000])
    parser.add_argument("--bins", type=int, default=100_000)
    parser.add_argument("--opened", type=float, default=3000.0, help="bins open in a cell")
    parser.add_argument("--batches", nargs="+", type=int, default=[128, 1000])
    parser.add_argument("--presets", nargs="+", default=["default", "paper"])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for n in given.cells:
        study, cells = cells_of(n, given.bins, given.opened), np.arange(n)
        inputs = {"atac": AtacInput.fit(study.measured["atac"], cells, AtacRecipe(min_cells=0, max_share=1.0), None)}
        feed = Feed.of(study, inputs)
        for preset in given.presets:
            network = build("sailer", configuration("sailer", preset, None), inputs, seed=0)
            network.prepare(feed, cells)
            phase = network.phases()[-1]
            (player,) = phase.players
            optimizer = player.optimizer.build(named_parameters(network, player).values())
            playing(network, player.parts)
            for size in given.batches:
                whole, pairs = [], []
                for number in range(given.steps):
                    some = np.random.default_rng(number).choice(n, min(size, n), replace=False)
                    began = time.process_time()
                    batch = feed.batch(some, ("atac",), share=len(some))
                    terms = network.losses(batch, Turn(phase.name, player.name, 0, number, 1.0))
                    torch.stack(list(terms.values())).sum().backward()
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    whole.append(time.process_time() - began)
                    mean, log_var = (
                        torch.randn(len(some), network.config.latent, requires_grad=True) for _ in range(2)
                    )
                    began = time.process_time()
                    mutual_information_bound(mean, log_var).sum().backward()
                    pairs.append(time.process_time() - began)
                step = median(whole[1:])
                line = {
                    "name": f"sailer:{preset}",
                    "cells": n,
                    "bins": given.bins,
                    "batch": size,
                    "cpu_seconds_step": step,
                    "cells_per_cpu_s": size / step,
                    "cpu_seconds_epoch": step * n / size,
                    "pairwise_share": median(pairs[1:]) / step,
                    "data_mb": study.measured["atac"].matrix.data.nbytes * 2 // 2**20,
                    "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10,
                    "threads": given.threads,
                }
                print(json.dumps(plain_json(line)), flush=True)


if __name__ == "__main__":
    main()
