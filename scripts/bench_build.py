"""How fast a large corpus is built, and in how much memory: `expresser corpus build` on simulated files of one million cells and more.

    python scripts/bench_build.py --cells 1000000 --folder /tmp/build
    python scripts/bench_build.py --cells 6000000 --folder /data/build --keep

One JSON line: cells/s, cells per CPU second of all processes, bytes a cell, and the peak of anonymous memory, of the largest
process and of all together, beside that of an interpreter that has only imported the package. The files are h5ad with names of
their own, but the counts of all of them lie in one pool file that they map (HDF5 virtual datasets): a hundred files need the disk
of one, and they are read from the page cache. With --compressed each file holds its own counts, gzipped, as most files that are
downloaded do.
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

import anndata
import h5py
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))
from _loader_corpus import GENES, POOL, pool
from _memory import anonymous_mb


def write_files(folder: Path, cells: int, per_file: int, compressed: bool) -> list[Path]:
    """Files of `per_file` cells, all with the pool's counts and with barcodes of their own."""
    folder.mkdir(parents=True, exist_ok=True)
    counts, repeats = pool(), per_file // POOL
    indptr = np.concatenate([[0], np.cumsum(np.tile(np.diff(counts.indptr), repeats), dtype=np.int64)])
    shared = folder / "pool.h5"
    with h5py.File(shared, "w") as file:
        for name, values, kind in (("data", counts.data, "f4"), ("indices", counts.indices, "i4")):
            file.create_dataset(name, data=values, dtype=kind, chunks=(1_000_000,))
    paths = []
    for number, first in enumerate(range(0, cells, per_file)):
        path = folder / f"cells_{number:03d}.h5ad"
        obs = pd.DataFrame(index=[f"c{i}" for i in range(first, first + per_file)])
        anndata.AnnData(obs=obs, var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)])).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            if "X" in file:
                del file["X"]
            group = file.create_group("X")
            group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [per_file, GENES]})
            group["indptr"] = indptr
            for name, values, kind in (("data", counts.data, "f4"), ("indices", counts.indices, "i4")):
                if compressed:
                    group.create_dataset(
                        name, data=np.tile(values, repeats), dtype=kind, chunks=(1_000_000,), compression="gzip"
                    )
                    continue
                layout = h5py.VirtualLayout((indptr[-1],), kind)
                for start in range(0, int(indptr[-1]), len(values)):
                    layout[start : start + len(values)] = h5py.VirtualSource(shared, name, values.shape, kind)
                group.create_virtual_dataset(name, layout)
        paths.append(path)
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--per-file", type=int, default=100_000)
    parser.add_argument("--folder", type=Path, required=True, help="for the files and the corpus; it must not exist")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--compressed", action="store_true", help="gzipped files, each with its own counts")
    parser.add_argument("--keep", action="store_true", help="leave the corpus; without it all is deleted")
    options = parser.parse_args()
    if options.cells % options.per_file or options.per_file % POOL:
        raise SystemExit(f"--cells must be a multiple of --per-file, and that of {POOL:,}")
    if options.folder.exists():
        raise SystemExit(f"{options.folder}: exists. Name another --folder.")
    files = write_files(options.folder / "files", options.cells, options.per_file, options.compressed)
    idle = subprocess.Popen([sys.executable, "-c", "import expresser.corpus.build, time; time.sleep(20)"])
    time.sleep(15)
    before = anonymous_mb(idle.pid)[0]
    idle.kill()
    idle.wait()
    command = [sys.executable, "-m", "expresser.cli", "corpus", "build", *map(str, files)]
    command += ["--workers", str(options.workers), "--out", str(options.folder / "corpus")]
    began, used, largest, together = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN), 0.0, 0.0
    build = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while build.poll() is None:
        here = anonymous_mb(build.pid) or [0.0]
        largest, together = max(largest, *here), max(together, sum(here))
        time.sleep(0.05)
    wall = time.perf_counter() - began
    if build.returncode:
        raise SystemExit(build.returncode)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    manifest = json.loads((options.folder / "corpus" / "manifest.json").read_text())
    line = {
        "name": "corpus_build",
        "cells": manifest["cells"],
        "files": len(files),
        "compressed": options.compressed,
        "workers": options.workers,
        "nnz_per_cell": round(manifest["nnz"] / manifest["cells"]),
        "bytes_per_cell": round(sum(shard["bytes"] for shard in manifest["shards"]) / manifest["cells"]),
        "seconds": round(wall, 1),
        "cells_per_s": round(manifest["cells"] / wall),
        "cells_per_cpu_s": round(manifest["cells"] / cpu),
        "peak_mb": round(largest),
        "peak_mb_all_processes": round(together),
        "interpreter_mb": round(before),
        "python": platform.python_version(),
    }
    print(json.dumps(line))
    shutil.rmtree(options.folder / "files")
    if not options.keep:
        shutil.rmtree(options.folder)


if __name__ == "__main__":
    main()
