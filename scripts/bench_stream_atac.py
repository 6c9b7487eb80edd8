"""How fast an atlas of ATAC streams from disk: reading, choosing peaks, training steps of SAILER, and the memory they take.

    python scripts/bench_stream_atac.py --folder /data/atlas --cells 1000000 --bins 200000 --seconds 60 --cold

One JSON line: cells/s of reading batches in random order, of the pass that chooses peaks, of training steps and of embedding;
bytes read from the disk in each; anonymous memory at its peak and before the corpus was opened (mapped files are not anonymous:
they are the page cache's and cost nothing). --cold drops the files from the page cache before each measurement, of which then
only what fits --seconds comes from the disk again.
"""

import argparse
import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from _atac_corpus import make

from expresser.corpus.stream import permutation
from translate.corpora import study_of_corpus
from translate.covariates import BatchColumn
from translate.feed import Feed
from translate.fitting import build
from translate.phases import Turn, named_parameters, noise_key, playing
from translate.preprocess import AtacInput
from translate.sailer import SailerConfig


def anonymous_mb() -> float:
    """Anonymous memory of this process; NaN where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    return next(int(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith("RssAnon"))


def from_disk() -> int:
    """Bytes that this process has had read from the disk."""
    counters = Path("/proc/self/io")
    if not counters.exists():
        return 0
    return next(int(line.split()[1]) for line in counters.read_text().splitlines() if line.startswith("read_bytes"))


class Bench:
    """Measurements under way: rates by name, and the most anonymous memory met."""

    def __init__(self, folder: Path, cold: bool) -> None:
        self.folder, self.cold, self.found, self.peak = folder, cold, dict[str, Any](), 0.0
        self.before = anonymous_mb()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(0.01)

    @contextmanager
    def timed(self, name: str) -> Iterator[Callable[[int], float]]:
        """Seconds of a block, and the rate of the cells it says it has done; what it is handed returns seconds so far."""
        if self.cold:
            for path in self.folder.glob("*.arrow"):
                with open(path, "rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began, cpu, disk, cells = time.perf_counter(), time.process_time(), from_disk(), 0

        def done(more: int) -> float:
            nonlocal cells
            cells += more
            return time.perf_counter() - began

        yield done
        seconds = time.perf_counter() - began
        self.found[name] = {
            "seconds": round(seconds, 2),
            "cells": cells,
            "cells_per_s": round(cells / seconds),
            "cells_per_cpu_s": round(cells / max(time.process_time() - cpu, 1e-9)),
            "mb_from_disk": round((from_disk() - disk) / 1e6),
            "anonymous_mb_peak": round(self.peak),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--bins", type=int, default=200_000)
    parser.add_argument("--open", type=int, default=4_000, help="open bins of a cell, the median")
    parser.add_argument("--seconds", type=float, default=30.0, help="of reading, of training and of embedding, each")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--network", choices=("chromosome", "dense"), default="chromosome")
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    began = time.perf_counter()
    corpus = make(options.folder, options.cells, options.bins, options.open)
    bench = Bench(options.folder, options.cold)
    facts: dict[str, Any] = {
        "written_s": round(time.perf_counter() - began, 1),
        "cells": corpus.n_cells,
        "bins": len(corpus.vocab),
        "open_a_cell": round(corpus.manifest["nnz"] / corpus.n_cells),
        "gigabytes": round(sum(shard["bytes"] for shard in corpus.manifest["shards"]) / 1e9, 1),
    }
    run(bench, options)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    facts |= {"device": torch.cuda.get_device_name() if device.type == "cuda" else device.type}
    if device.type == "cuda":
        facts["gpu_mb_peak"] = round(torch.cuda.max_memory_allocated() / 1e6)
    facts |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "python": platform.python_version()}
    memory = {"anonymous_mb_before": round(bench.before), "anonymous_mb_peak": round(bench.peak)}
    print(json.dumps(facts | {"cold": options.cold, "batch": options.batch} | memory | bench.found))


def run(bench: Bench, options: argparse.Namespace) -> None:
    """Open, choose, read, train, embed."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    with bench.timed("open") as done:
        study = study_of_corpus(options.folder)
        done(study.n_cells)
    cells = np.arange(study.n_cells)
    config = SailerConfig(network=options.network, batch=BatchColumn("donor").settled(study.obs, cells))
    with bench.timed("choose_peaks") as done:
        inputs = {"atac": AtacInput.fit(study.measured["atac"], cells, config.atac)}
        done(len(cells))
    feed = Feed.of(study, inputs, batches=config.batch)
    network = build("sailer", config, inputs, 0)
    bench.found["peaks"] = len(inputs["atac"].var)
    bench.found["parameters"] = sum(p.numel() for p in network.parameters())
    with bench.timed("prepare") as done:
        network.prepare(feed, cells)
        done(len(cells))
    order = cells[permutation(len(cells), 0, 0, 0)]
    cuts = [order[i : i + options.batch] for i in range(0, len(order), options.batch)]
    shares = [len(cut) for cut in cuts]
    with bench.timed("read") as done:
        for batch in feed.batches(cuts, ("atac",), shares=shares):
            if done(len(batch)) > options.seconds:
                break
    network.to(device)
    phase = network.phases()[-1]
    player = phase.players[0]
    optimizer = player.optimizer.build(named_parameters(network, player).values())
    playing(network, player.parts)
    with bench.timed("train") as done:
        for number, batch in enumerate(feed.batches(cuts, ("atac",), shares=shares)):
            turn = Turn(phase.name, player.name, 0, noise_key(0, 0, 0), number / len(cuts))
            loss = torch.stack(list(network.losses(batch.to(device), turn).values())).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if number % 20 == 0:
                loss.item()  # work that was handed to a GPU is waited for
            if done(len(batch)) > options.seconds:
                break
    bench.found["loss"] = round(loss.item(), 4)
    network.eval()
    with bench.timed("embed") as done, torch.no_grad():
        for batch in feed.batches(cuts, ("atac",), shares=shares):
            network.encode(batch.to(device), source="atac", to="atac").cpu()
            if done(len(batch)) > options.seconds:
                break


if __name__ == "__main__":
    main()
