"""Polarbear at the size of its paper: 17,271 genes x 220,526 peaks, 160,000 cells of RNA alone and 170,000 of ATAC alone.

Cells without structure, in memory as sparse counts. One JSON object a line: memory of the data, of the feed, and, for each phase,
seconds of a step and peak memory, at batches of 256 and 1,024. Takes 12 GB and some minutes.

    python scripts/bench_polarbear_size.py
    python scripts/bench_polarbear_size.py --rna-cells 2000 --atac-cells 2000 --genes 500 --peaks 5000     # does it work?
"""

import argparse
import json
import resource
import time
from dataclasses import replace
from statistics import median
from typing import Any

import _genome_scale as scale
import numpy as np
import pandas as pd
import psutil
import torch

from translate.feed import Feed
from translate.fitting import build, configuration
from translate.phases import Turn, named_parameters, playing
from translate.preprocess import AtacInput, RnaInput
from translate.study import Measured, Study


def study(given: argparse.Namespace) -> Study:
    """Paired cells first, then those of RNA alone, then those of ATAC alone."""
    n = {"rna": given.paired + given.rna_cells, "atac": given.paired + given.atac_cells}
    alone = np.arange(given.paired, given.paired + given.rna_cells + given.atac_cells)
    names = pd.Index([f"cell{i}" for i in range(given.paired + len(alone))], dtype=object)
    rows = {m: np.full(len(names), -1, np.int64) for m in n}
    own = {"rna": np.arange(n["rna"]), "atac": np.r_[np.arange(given.paired), np.arange(n["rna"], len(names))]}
    for modality, cells in own.items():
        rows[modality][cells] = np.arange(len(cells))
    counts = scale.drawn(n["rna"], given.genes, given.rna_open, 0, counts=True)
    opened = scale.drawn(n["atac"], given.peaks, given.atac_open, 1, counts=False)
    obs = {m: pd.DataFrame(index=names[cells]) for m, cells in own.items()}
    measured = {
        "rna": Measured(counts, scale.genes(given.genes), obs["rna"], "RNA"),
        "atac": Measured(opened, scale.peaks(given.peaks), obs["atac"], "ATAC"),
    }
    return Study(pd.DataFrame(index=names), measured, rows)


def say(name: str, **values: Any) -> None:
    """One line, with the memory there is now and the most there was."""
    memory = {"rss_mb": psutil.Process().memory_info().rss // 2**20, "peak_mb": peak_mb()}
    print(json.dumps({"name": name} | values | memory | {"threads": torch.get_num_threads()}), flush=True)


def peak_mb() -> int:
    """The most memory this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--paired", type=int, default=6000)
    parser.add_argument("--rna-cells", type=int, default=160_000)
    parser.add_argument("--atac-cells", type=int, default=170_000)
    parser.add_argument("--genes", type=int, default=17_271)
    parser.add_argument("--peaks", type=int, default=220_526)
    parser.add_argument("--rna-open", type=float, default=1000.0, help="genes expressed in a cell")
    parser.add_argument("--atac-open", type=float, default=2500.0, help="peaks open in a cell")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 1024])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    began = time.perf_counter()
    data = study(given)
    nonzeros = {m: int(data.measured[m].matrix.nnz) for m in data.modalities}
    say("data", cells=data.n_cells, nonzeros=nonzeros, seconds=round(time.perf_counter() - began, 1))
    config = configuration("polarbear", given.preset, None)
    config = replace(
        config,
        rna=replace(config.rna, min_genes=0, max_genes=None),
        atac=replace(config.atac, min_cells=0, min_share=0.0, max_share=1.0),
    )
    cells = np.arange(data.n_cells)
    began = time.perf_counter()
    inputs = {
        "rna": RnaInput.fit(data.measured["rna"], data.rows["rna"][data.has("rna")], config.rna),
        "atac": AtacInput.fit(data.measured["atac"], data.rows["atac"][data.has("atac")], config.atac, None),
    }
    say("inputs", seconds=round(time.perf_counter() - began, 1))
    began = time.perf_counter()
    feed = Feed.of(data, inputs, counts=True)
    network = build("polarbear", config, inputs, seed=0)
    network.prepare(feed, cells)
    parameters = sum(p.numel() for p in network.parameters())
    say("feed and network", seconds=round(time.perf_counter() - began, 1), parameters=parameters)
    for phase in network.phases():
        began = time.perf_counter()
        network.eval()
        with torch.no_grad():
            network.begin(phase, feed, cells, fresh=True)
        say(f"begin {phase.name}", seconds=round(time.perf_counter() - began, 2))
        own = cells[np.logical_and.reduce([data.has(m) for m in (*phase.modalities, *phase.among)])]
        (player,) = phase.players
        optimizer = player.optimizer.build(named_parameters(network, player).values())
        playing(network, player.parts)
        for size in given.batches:
            seconds = []
            for number in range(given.steps):
                some = np.random.default_rng(number).choice(own, min(size, len(own)), replace=False)
                start = time.perf_counter()
                batch = feed.batch(some, phase.modalities, share=len(some))
                terms = network.losses(batch, Turn(phase.name, player.name, 0, number, 1.0))
                torch.stack(list(terms.values())).sum().backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                seconds.append(time.perf_counter() - start)
            step = median(seconds[1:] or seconds)
            epoch = round(step * len(own) / size)
            say(f"step {phase.name}", batch=size, seconds=round(step, 3), epoch_seconds=epoch, cells=len(own))


if __name__ == "__main__":
    main()
