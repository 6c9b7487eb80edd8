"""A million cells x 200,000 peaks, from files to predictions, with memory bounded: every step through the command line.

    python scripts/bench_load.py --cells 1000000 --peaks 200000 --genes 3000 --memory-gb 4 --folder /data/load --out load.jsonl

Builds a corpus of the ATAC, fits a translator to RNA and ATAC, predicts each from the other for all cells, embeds them and judges
the model, and appends a JSON line for each step: wall and CPU seconds, bytes written, the peak of anonymous memory of the largest
process and of all together (sampled), and the peak resident memory of the largest process, which counts mapped files as far as
the page cache holds them. The bound is enforced: no process is given more memory of its own than --memory-gb (RLIMIT_DATA, Linux),
so that a step which needs more fails, and its line says so. Temporary files lie in --folder, which is a new one, or one that was
kept, as it is deleted at the end. Steps that are done are not repeated.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py

sys.path.insert(0, str(Path(__file__).parent))
from _lines import finished, write
from _load_files import write_files
from _memory import anonymous_mb

MARK = ".bench_load"  # in a folder that this script made, and may delete
LIST = ("files", "build", "fit", "atac_to_rna", "rna_to_atac", "embed", "evaluate")


def step(command: list[str], folder: Path, bound: float) -> dict[str, Any]:
    """Run a command with no more than `bound` GB of its own for each process; what it took."""

    def limit() -> None:
        most = int(bound * 1e9)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))

    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    largest = together = 0.0
    several = 0
    (folder / "tmp").mkdir(exist_ok=True)
    # Arrow's own allocator asks for a gigabyte of which it may use a megabyte, and all of it would count.
    environment = os.environ | {"TMPDIR": str(folder / "tmp"), "ARROW_DEFAULT_MEMORY_POOL": "system"}
    with open(folder / "log.txt", "a") as log:
        log.write(f"\n{' '.join(command)}\n")
        log.flush()
        child = subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=limit, env=environment)
        while child.poll() is None:
            here = anonymous_mb(child.pid) or [0.0]
            largest, together, several = max(largest, *here), max(together, sum(here)), max(several, len(here))
            time.sleep(0.1)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1),
        "anonymous_mb": round(largest),
        "anonymous_mb_all_processes": round(together),
        # Of all children so far, not of this one: the system keeps no other figure of those that have ended.
        "resident_mb_so_far": round(after.ru_maxrss / 1e3),
        "processes": several,
        "memory_gb_bound": bound,
    }
    return found | ({"failed": (folder / "log.txt").read_text()[-2000:]} if child.returncode else {})


def commands(options: argparse.Namespace) -> dict[str, tuple[list[str], Path]]:
    """Each step's arguments, and what it writes."""
    folder = options.folder
    at = {name: str(folder / name) for name in ("rna.h5ad", "atac.h5ad", "corpus", "fit", "judged")}
    parts = [str(folder / f"atac_{number}.h5ad") for number in range(options.files)]
    both = ["--rna", at["rna.h5ad"], "--atac", at["atac.h5ad"]]
    train, valid = options.train / options.cells, min(0.1, 5_000 / options.cells)
    shares = ["--shares", f"{train:.6f}", f"{valid:.6f}", f"{1 - train - valid:.6f}"]
    fit = ["--config.batch-size", "128", "--config.epochs", "1", "--config.rna.min-genes", "20", "--no-evaluate"]
    predict = ["predict", at["fit"], "--form", "topk", "--out"]
    found = {
        "build": ["corpus", "build", *parts, "--obs", "cell_type", "--workers", "2", "--out", at["corpus"]],
        "fit": ["translate", "fit", options.system, *both, *shares, *fit, "--out", at["fit"]],
    }
    for source, to, k in (("atac", "rna", options.genes // 10), ("rna", "atac", 500)):
        out = folder / f"{source}_to_{to}.h5ad"
        asked = ["--input", at[f"{source}.h5ad"], "--to", to, "--top-k", str(k)]
        asked += ["--features", *options.chromosomes] if to == "atac" and options.chromosomes else []
        found[f"{source}_to_{to}"] = ["translate", *predict, str(out), *asked]
    found["embed"] = ["translate", "embed", at["fit"], "--input", at["atac.h5ad"], "--out", str(folder / "embed.h5ad")]
    found["evaluate"] = ["translate", "evaluate", at["fit"], *both, "--split-of", at["fit"], "--no-maps", "--out"]
    found["evaluate"] += [at["judged"], "--cells", str(options.judged)]
    return {name: (of, Path(of[of.index("--out") + 1])) for name, of in found.items()}


def size(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="for the files, the results and temporary files")
    parser.add_argument("--out", type=Path, help="file that lines are appended to, beside printing them")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--peaks", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=3_000)
    parser.add_argument(
        "--a-cell", type=int, nargs=2, default=(300, 700), help="genes and peaks of a cell, the medians"
    )
    parser.add_argument("--files", type=int, default=4, help="that the corpus is built from")
    parser.add_argument("--train", type=int, default=40_000, help="cells that train, for one epoch, 128 a step")
    parser.add_argument(
        "--judged", type=int, default=2_000, help="cells that the model is judged by, drawn from all others"
    )
    parser.add_argument("--chromosomes", nargs="*", default=(), help="whose peaks are predicted; without it, all")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="of its own that each process is given at most")
    parser.add_argument("--system", default="babel")
    parser.add_argument("--steps", nargs="+", choices=LIST, default=LIST)
    parser.add_argument("--keep", action="store_true", help="leave the folder; without it all is deleted at the end")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    options.folder = options.folder.absolute()
    if any(options.folder.iterdir()) and not (options.folder / MARK).exists():
        parser.error(f"--folder {options.folder}: holds other files, and is deleted at the end. Name a new folder.")
    (options.folder / MARK).touch()
    done = finished(options.out)
    failed = False
    of = {"cells": options.cells, "peaks": options.peaks, "genes": options.genes}
    for name in options.steps:
        key = f"load {name} {' '.join(map(str, of.values()))} {options.memory_gb:g}"
        if key in done:
            print(json.dumps(done[key]), flush=True)
            continue
        line: dict[str, Any] = {"key": key, "name": f"load_{name}", **of}
        if name == "files":
            began = time.perf_counter()
            write_files(options.folder, options.cells, options.genes, options.peaks, options.a_cell, options.files)
            line |= {"seconds": round(time.perf_counter() - began, 1)}
            for modality in ("rna", "atac"):
                with h5py.File(options.folder / f"{modality}.h5ad") as file:
                    line[f"nnz_{modality}"] = int(file["X/indptr"][-1])
        else:
            arguments, out = commands(options)[name]
            shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
            line |= step([sys.executable, "-m", "expresser.cli", *arguments], options.folder, options.memory_gb)
            line |= {"bytes": size(out) if out.exists() else 0, "cells_per_s": round(options.cells / line["seconds"])}
        line |= {"threads": os.environ.get("OMP_NUM_THREADS"), "python": platform.python_version()}
        print(json.dumps(line), flush=True)
        if options.out is not None:
            write(options.out, line)
        failed |= "failed" in line
    if not options.keep:
        shutil.rmtree(options.folder)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
