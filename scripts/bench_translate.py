"""What BABEL costs at the size of a human genome: a step, an epoch, a fit, a prediction; and the same done densely.

    python scripts/bench_translate.py --genes 34861 --peaks 223897 --batch 512 --steps 5 --threads 2 --out /tmp/bench

`ours` is `translate.babel`, preset `paper`, through `Feed`; `dense` is the same network on densified cells (`_dense_babel.py`),
with the three output layers a decoder of the released networks has, or with those alone that the losses use. First both
must give the same loss and gradient from the same weights. Then their steps alternate in one process: feed, forward and
backward, optimiser; medians in wall seconds and in CPU seconds, of which the latter say more on a machine that others use.
Memory is taken in a process of its own for each: the peak of resident memory while steps run, less what was resident
before the model was built, less parameters, gradients and moments. Cells are random; the dense loader runs in this process
(with W idle cores for W workers its feed would take 1/W of the time). One JSON line a row.
"""

import argparse
import contextlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import _genome_scale as scale
import numpy as np
import scipy
import torch
from _dense_babel import DenseCells, like
from torch.utils.data import default_collate

from expresser.regions import Regions
from translate.babel import Babel
from translate.feed import Feed, peak_bounds
from translate.fitting import build, fit
from translate.peaks import repool
from translate.phases import Optimizer, Turn
from translate.preprocess import AtacInput, AtacRecipe, RnaInput, RnaRecipe
from translate.splits import split_random
from translate.translator import Translator
from translate.writing import write_predictions

EPOCH = 33_000  # cells of BABEL's training data
CLIP = 5.0
GIB = 2**30
PARTS = ("feed", "forward_backward", "optimiser")

Step = Callable[[np.ndarray], list[tuple[float, float]]]  # cells -> (wall, CPU) seconds of each part


def say(name: str, **values: Any) -> None:
    """One row."""
    rounded = {key: float(f"{v:.4g}") if isinstance(v, float) else v for key, v in values.items()}
    machine = {
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }
    print(json.dumps({"name": name} | rounded | machine), flush=True)


class Bench:
    """Data, and networks made for it."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given = given
        self.study = scale.study(given.cells, given.genes, given.peaks, given.rna_density, given.density)
        cells = np.arange(given.cells)
        # Every gene and peak stays, however few cells there are.
        self.inputs = {
            "rna": RnaInput.fit(self.study.measured["rna"], cells, RnaRecipe(min_genes=0, max_genes=None)),
            "atac": AtacInput.fit(self.study.measured["atac"], cells, AtacRecipe(min_cells=0, max_share=1.0)),
        }
        self.feed = Feed.of(self.study, self.inputs)

    def system(self, preset: str = "paper") -> Babel:
        """New weights, the same each time."""
        system = build("babel", Babel.presets[preset], self.inputs, seed=0)
        system.prepare(self.feed, np.arange(self.given.cells))
        return system.train()

    def dense_cells(self) -> DenseCells:
        """The same cells for the dense network."""
        opened = self.inputs["atac"].align(self.study.measured["atac"])
        return DenseCells(self.feed.rna_counts, opened, self.inputs["rna"], peak_bounds(self.inputs))

    def ours(self, system: Babel, *, bf16: bool = False) -> Step:
        """A step of ours."""
        parameters = list(system.parameters())
        optimizer = Optimizer(lr=system.config.lr).build(parameters)

        def step(cells: np.ndarray) -> list[tuple[float, float]]:
            times = [_now()]
            batch = self.feed.batch(cells, ("rna", "atac"), share=len(cells))
            times.append(_now())
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                terms = system.losses(batch, Turn("translate", "all", 0, 0))
            torch.stack(list(terms.values())).sum().backward()
            times.append(_now())
            _move(parameters, optimizer)
            return _spans([*times, _now()])

        return step

    def dense(self, system: Babel, data: DenseCells, heads: int) -> Step:
        """A step of the dense network."""
        network = like(system, heads)
        parameters = list(network.parameters())
        optimizer = torch.optim.Adam(parameters, lr=system.config.lr)

        def step(cells: np.ndarray) -> list[tuple[float, float]]:
            times = [_now()]
            batch = default_collate([data[cell] for cell in cells])
            times.append(_now())
            network.loss(batch, system.config.beta).backward()
            times.append(_now())
            _move(parameters, optimizer)
            return _spans([*times, _now()])

        return step

    def batches(self, size: int, n: int) -> list[np.ndarray]:
        """Random batches."""
        rng = np.random.default_rng(0)
        return [rng.permutation(self.given.cells)[:size] for _ in range(n)]


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def _spans(times: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(times)]


def _move(parameters: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def check(given: argparse.Namespace) -> None:
    """Loss and gradient of both from the same weights, at a size where all of it is quick."""
    small = Bench(argparse.Namespace(**vars(given) | {"cells": 96, "genes": 1500, "peaks": 30_000}))
    system = small.system()
    cells = np.arange(96)
    terms = system.losses(small.feed.batch(cells, ("rna", "atac"), share=96), Turn("translate", "all", 0, 0))
    ours = torch.stack(list(terms.values())).sum()
    ours.backward()
    data = small.dense_cells()
    for heads in (3, 1):
        network = like(system, heads)
        dense = network.loss(default_collate([data[cell] for cell in cells]), system.config.beta)
        dense.backward()
        norms = [
            float(torch.nn.utils.get_total_norm([p.grad for p in m.parameters() if p.grad is not None]))
            for m in (system, network)
        ]
        apart = [abs(a / b - 1) for a, b in ((float(ours), float(dense)), norms)]
        say(
            "check",
            heads=heads,
            ours_loss=float(ours),
            dense_loss=float(dense),
            loss_apart=apart[0],
            gradient_apart=apart[1],
        )
        if max(apart) > 1e-4:
            raise SystemExit(f"the two do not compute the same: loss {ours} and {dense}, norms of gradients {norms}.")


def steps(given: argparse.Namespace) -> None:
    """Steps of all variants in turn."""
    bench = Bench(given)
    system = bench.system()
    variants: dict[str, Step] = {"ours": bench.ours(system), "ours bf16": bench.ours(bench.system(), bf16=True)}
    if not given.no_dense:
        data = bench.dense_cells()
        variants |= {f"dense, heads {heads}": bench.dense(system, data, heads) for heads in (3, 1)}
    seconds: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in variants}
    for cells in bench.batches(given.batch, given.steps + 1):
        for name, step in variants.items():
            seconds[name].append(step(cells))
    small = bench.ours(bench.system("default"))
    size = Babel.presets["default"].batch_size
    sizes = dict.fromkeys(variants, given.batch) | {"ours, default preset": size}
    seconds["ours, default preset"] = [small(cells) for cells in bench.batches(size, given.steps + 1)]
    medians = {}
    for name, taken in seconds.items():
        # The first step, which also makes the optimiser's moments, is not counted.
        wall, cpu = ([statistics.median(one[part][kind] for one in taken[1:]) for part in range(3)] for kind in (0, 1))
        medians[name] = (wall, cpu)
        say(
            f"step: {name}",
            cells=sizes[name],
            seconds=sum(wall),
            cpu_seconds=sum(cpu),
            **{f"{part}_cpu_seconds": value for part, value in zip(PARTS, cpu)},
            feed_cpu_ms_per_cell=1e3 * cpu[0] / sizes[name],
            cells_per_s=sizes[name] / sum(wall),
            epoch_minutes_extrapolated=sum(wall) * EPOCH / sizes[name] / 60,
            epoch_cpu_minutes_extrapolated=sum(cpu) * EPOCH / sizes[name] / 60,
            epoch_cells=EPOCH,
            steps=given.steps,
        )
    for name in variants:
        if name != "ours":
            (wall, cpu), (own_wall, own_cpu) = medians[name], medians["ours"]
            say(
                f"ratio: {name} to ours",
                epoch=sum(wall) / sum(own_wall),
                epoch_cpu=sum(cpu) / sum(own_cpu),
                feed_cpu=cpu[0] / own_cpu[0],
                without_feed_cpu=sum(cpu[1:]) / sum(own_cpu[1:]),
            )


class Peak:
    """Resident memory from here on, in GiB."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # not Linux: the peak since the start, an upper bound
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
        self.before = _resident()

    def above(self) -> float:
        """The peak since, less what there was."""
        return _peak() - self.before


def _resident() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss) / GIB


def _peak() -> float:
    status = Path("/proc/self/status")
    if status.is_file():
        return (
            next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            / GIB
        )
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB


def memory(given: argparse.Namespace, which: str) -> None:
    """Two steps in a process of their own."""
    bench = Bench(given)
    data = bench.dense_cells() if which.startswith("dense") else None
    peak = Peak()
    system = bench.system()
    n = sum(p.numel() for p in system.parameters())
    if data is None:
        step, held = bench.ours(system, bf16=which == "bf16"), 4 * n
    else:
        heads = int(which[-1])
        step = bench.dense(system, data, heads)
        dead = sum(p.numel() for p in like(system, heads).parameters()) - n
        held = 5 * n + dead  # the system whose weights were copied is there too; unused layers have no gradient
    for cells in bench.batches(given.batch, 2):
        step(cells)
    above, own = peak.above(), 4 * held / GIB
    say(
        f"memory: {which}",
        before_gib=peak.before,
        parameters_and_moments_gib=own,
        peak_above_gib=above,
        working_gib=above - own,
    )


def predict(given: argparse.Namespace) -> None:
    """RNA to ATAC of many cells, into a float16 .h5ad."""
    train = argparse.Namespace(**vars(given) | {"cells": 256})
    bench = Bench(train)
    translator = Translator("babel", bench.system().eval().requires_grad_(False), bench.inputs, {})
    measured = scale.rna(given.predict_cells, given.genes, given.rna_density, seed=2)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        peak = Peak()
        began = _now()
        predicted = translator.predict(measured, source="rna", to="atac")
        encoded = _now()
        out = write_predictions(
            predicted, Path(folder) / "atac.h5ad", obs=measured.obs, var=translator.var("atac"), uns={}, form="float16"
        )
        (encode, _), (write, cpu) = _spans([began, encoded, _now()])
        say(
            "predict",
            cells=given.predict_cells,
            peaks=given.peaks,
            encode_seconds=encode,
            decode_and_write_seconds=write,
            decode_and_write_cpu_seconds=cpu,
            file_gib=out.stat().st_size / GIB,
            before_gib=peak.before,
            peak_above_gib=peak.above(),
        )


def whole_fit(given: argparse.Namespace) -> None:
    """Files on disk to a fitted model, one epoch."""
    from translate.data import read_study

    with tempfile.TemporaryDirectory(dir=given.out) as name:
        folder = Path(name)
        files = {
            "rna": scale.write(scale.rna(given.fit_cells, given.genes, given.rna_density), folder / "rna.h5ad"),
            "atac": scale.write(scale.atac(given.fit_cells, given.peaks, given.density), folder / "atac.h5ad"),
        }
        peak = Peak()
        began = _now()
        study = read_study(**files)
        read = _now()
        fit(
            "babel",
            study,
            split=split_random(study),
            out=folder / "run",
            config=replace(Babel.presets["paper"], epochs=1),
        )
        spans = _spans([began, read, _now()])
        say(
            "fit, one epoch",
            cells=given.fit_cells,
            genes=given.genes,
            peaks=given.peaks,
            read_seconds=spans[0][0],
            fit_seconds=spans[1][0],
            fit_cpu_seconds=spans[1][1],
            before_gib=peak.before,
            peak_above_gib=peak.above(),
            dense_float32_gib=4 * given.fit_cells * (given.genes + given.peaks) / GIB,
        )


def pooling(given: argparse.Namespace) -> None:
    """Peaks carried over to others: one sparse product, and a loop over target peaks."""
    n = min(given.peaks, 20_000)
    measured = scale.atac(2000, n, given.density)
    source = Regions.from_var(measured.var)
    target = Regions(source.chroms, source.chrom, source.start + 200, source.end + 200)
    times = [_now()]
    product = repool(measured.matrix, source, target)
    times.append(_now())
    columns = measured.matrix.tocsc()
    parts = []
    for chrom, start, end in zip(target.chrom, target.start, target.end):
        hits = np.flatnonzero((source.chrom == chrom) & (source.start < end) & (source.end > start))
        parts.append(scipy.sparse.csc_matrix(columns[:, hits].sum(axis=1) > 0))
    loop = scipy.sparse.hstack(parts, format="csr")
    times.append(_now())
    (_, ours), (_, theirs) = _spans(times)
    if (loop != (product > 0)).nnz:
        raise SystemExit("the product and the loop do not agree.")
    say("repool", cells=2000, peaks=n, cpu_seconds=ours, loop_cpu_seconds=theirs, ratio=theirs / ours)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=34_861)
    parser.add_argument("--peaks", type=int, default=223_897)
    parser.add_argument("--cells", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--density", type=float, default=0.03, help="of open peaks")
    parser.add_argument("--rna-density", type=float, default=0.10)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--predict-cells", type=int, default=10_000)
    parser.add_argument("--fit-cells", type=int, default=2000)
    parser.add_argument("--no-dense", action="store_true", help="which needs 8 GiB at full size")
    parser.add_argument(
        "--out", type=Path, default=Path(tempfile.gettempdir()), help="for files of some GiB, removed again"
    )
    parser.add_argument("--only", nargs="+", default=["check", "steps", "memory", "predict", "fit", "repool"])
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    alone = {"predict": predict, "fit": whole_fit, "check": check, "steps": steps, "repool": pooling}
    for name in given.only:
        kinds = ["ours", "bf16", *([] if given.no_dense else ["dense 3", "dense 1"])] if name == "memory" else [name]
        for kind in kinds:
            if kind != name:
                _again(f"memory-{kind}")
            elif name.startswith("memory-"):
                memory(given, name.removeprefix("memory-"))
            elif len(given.only) > 1:
                _again(name)
            else:
                alone[name](given)


def _again(name: str) -> None:
    """This script in a new process, for one row."""
    options = sys.argv[1 : sys.argv.index("--only")] if "--only" in sys.argv else sys.argv[1:]
    subprocess.run([sys.executable, __file__, *options, "--only", name], check=True)


if __name__ == "__main__":
    main()
