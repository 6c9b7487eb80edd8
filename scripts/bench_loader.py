"""How fast cells come from disk: this loader beside the limit and beside what others use, in one run.

    python scripts/bench_loader.py --cells 100000 --folder /tmp/loader
    python scripts/bench_loader.py --cells 6000000 --folder /data/loader --engines memmap expresser expresser_stream --cold

One JSON line for each engine, batch size and order: cells/s, cells per CPU second and that over the limit's (`of_limit`, warm only),
tokens/s (non-zero counts), medians over rounds in which the engines alternate; and, from a process of its own, seconds from
nothing imported to the first batch, and anonymous memory at its peak and before the engine was imported (mapped files are not
anonymous: they are the page cache's and cost nothing). --cold drops the files from the page cache before each measurement, which
is then in a process of its own too. scDataset: `pip install scdataset` beside the project; annbatch: Python 3.12.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

STARTED = time.perf_counter()  # before anything of weight is imported

import numpy as np  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from _loader_engines import ENGINES, Batches, Engine  # noqa: E402


def measure(batches: Batches, seconds: float) -> dict[str, float]:
    """Cells and tokens per second, and cells per CPU second of all threads, over `seconds` after a first batch."""
    next(batches)
    cells = tokens = 0
    wall, cpu = time.perf_counter(), time.process_time()
    for n, entries in batches:
        cells, tokens = cells + n, tokens + entries
        if time.perf_counter() - wall > seconds:
            break
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()  # type: ignore[attr-defined]
    return {"cells_per_s": cells / wall, "cells_per_cpu_s": cells / cpu, "tokens_per_s": tokens / wall}


def anonymous_mb() -> float | None:
    """Anonymous memory of this process; None where the system does not tell."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(int(line.split()[1]) / 1e3 for line in status.read_text().splitlines() if line.startswith("RssAnon"))


def alone(engine: type[Engine], folder: Path, size: int, how: str, seconds: float) -> dict[str, Any]:
    """What only a process of its own can tell."""
    before, peak, done = anonymous_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, anonymous_mb() or 0.0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    batches = engine(folder).batches(size, how == "blocks", np.random.default_rng(0))
    next(batches)
    first = time.perf_counter() - began
    rates = measure(batches, seconds)
    done.set()
    watcher.join()
    memory = {} if before is None else {"anonymous_mb": round(peak), "anonymous_mb_before": round(before)}
    return {"seconds_to_first_batch": round(first, 3)} | memory | {name: round(rate) for name, rate in rates.items()}


def drop_from_cache(folder: Path, engine: type[Engine]) -> None:
    """The engine's files leave the page cache, unless a process has them mapped."""
    for path in (path for pattern in engine.files for path in folder.glob(pattern) if path.is_file()):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bring_into_cache(folder: Path, engine: type[Engine]) -> None:
    """The engine's files are read once: "warm" is meant, also after files that were too large for memory."""
    for path in (path for pattern in engine.files for path in folder.glob(pattern) if path.is_file()):
        with open(path, "rb", buffering=0) as file:
            while file.read(1 << 24):
                pass


def in_a_process(name: str, options: argparse.Namespace, size: int, how: str) -> dict[str, Any]:
    command = [
        sys.executable,
        __file__,
        "--cells",
        str(options.cells),
        "--folder",
        str(options.folder),
        "--alone",
        name,
    ]
    command += ["--batch", str(size), "--how", how, "--seconds", str(options.seconds)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        return {"failed": found.stderr.strip().splitlines()[-1]}
    return json.loads(found.stdout.splitlines()[-1])


def prepare(options: argparse.Namespace, engines: list[str]) -> dict[str, Any]:
    from _loader_corpus import make, make_h5ad, make_memmap

    began, new = time.perf_counter(), not (options.folder / "manifest.json").is_file()
    corpus = make(options.folder, options.cells)
    built = {"written_s": round(time.perf_counter() - began, 1)} if new else {}
    if corpus.n_cells != options.cells:
        raise SystemExit(
            f"{options.folder}: holds {corpus.n_cells:,} cells, not {options.cells:,}. Name another --folder."
        )
    if "memmap" in engines:
        make_memmap(options.folder, corpus)
    if {"annloader", "scdataset", "annbatch"} & set(engines):
        make_h5ad(options.folder, corpus)
    size = sum(entry["bytes"] for entry in corpus.manifest["shards"])
    return (
        {"cells": corpus.n_cells, "nnz_per_cell": round(corpus.manifest["nnz"] / corpus.n_cells)}
        | {"bytes_per_cell": round(size / corpus.n_cells)}
        | built
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True, help="where the simulated corpus is, or is to be")
    parser.add_argument("--engines", nargs="+", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--how", nargs="+", default=["random", "blocks"], choices=["random", "blocks"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one measurement")
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        engine = ENGINES[options.alone]
        print(json.dumps(alone(engine, options.folder, options.batch[0], options.how[0], options.seconds)))
        return
    skipped = {name: why for name in options.engines if (why := ENGINES[name].missing())}
    for name, why in skipped.items():
        print(json.dumps({"engine": name, "skipped": why}))
    engines = [name for name in options.engines if name not in skipped]
    facts = prepare(options, engines) | {"python": platform.python_version(), "cold": options.cold}
    for size in options.batch:
        for how in options.how:
            here = [name for name in engines if how in ENGINES[name].how]
            for name, found in (cold if options.cold else warm)(options, here, size, how).items():
                line = {"engine": name, "batch": size, "order": how} | found | facts
                print(json.dumps(line | {"versions": ENGINES[name].versions()}), flush=True)


def warm(options: argparse.Namespace, engines: list[str], size: int, how: str) -> dict[str, dict[str, Any]]:
    """Medians of alternating rounds in this process, and what each does alone."""
    opened = {name: ENGINES[name](options.folder) for name in engines}
    rates: dict[str, dict[str, list[float]]] = {name: defaultdict(list) for name in engines}
    for name in engines:
        bring_into_cache(options.folder, ENGINES[name])
    for turn in range(options.rounds):
        for name, engine in opened.items():
            batches = engine.batches(size, how == "blocks", np.random.default_rng(turn))
            for what, rate in measure(batches, options.seconds).items():
                rates[name][what].append(rate)
    del opened
    gc.collect()
    middle = {name: {what: median(found) for what, found in of.items()} for name, of in rates.items()}
    limit = middle.get("memmap", {}).get("cells_per_cpu_s")
    lines = {}
    for name in engines:
        here = in_a_process(name, options, size, how) | {what: round(rate) for what, rate in middle[name].items()}
        lines[name] = here | ({} if limit is None else {"of_limit": round(middle[name]["cells_per_cpu_s"] / limit, 3)})
    return lines


def cold(options: argparse.Namespace, engines: list[str], size: int, how: str) -> dict[str, dict[str, Any]]:
    """Medians over rounds, each from an empty page cache."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in engines}
    for _ in range(options.rounds):
        for name in engines:
            drop_from_cache(options.folder, ENGINES[name])
            runs[name].append(in_a_process(name, options, size, how))
    return {
        name: next((run for run in found if "failed" in run), None)
        or {k: median(r[k] for r in found) for k in found[0]}
        for name, found in runs.items()
    }


if __name__ == "__main__":
    main()
