"""Seconds and memory of fitting a head to pairs of genes and of predicting them, at the size of Gene2vec's pairs.

python scripts/bench_pairs.py --preset default        one JSON line; 263,016 pairs of 12,472 genes x 200 dimensions
"""

import argparse
import json
import os
import platform
import resource
import threading
import time

import numpy as np
import psutil
import sklearn

from finetune.heads.fitting import fit_head, form_of
from finetune.heads.pair_features import pair_features
from finetune.splits.making import inner_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=263_016)
    parser.add_argument("--genes", type=int, default=12_472)
    parser.add_argument("--dim", type=int, default=200)
    parser.add_argument("--preset", default="default")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    table = rng.normal(size=(given.genes, given.dim)).astype(np.float32)
    a, b = rng.integers(given.genes, size=(2, given.pairs))
    # A weak signal, as real pairs have: trees that find nothing stop at once, and would look quick.
    signal = (table[a, :20] * table[b, :20]).sum(1) / 4
    label = (rng.random(given.pairs) < 1 / (1 + np.exp(-signal))).astype(np.int8)
    names = np.array([f"gene{i:05d}" for i in range(given.genes)], dtype=object)
    before, form = psutil.Process().memory_info().rss, form_of(given.preset)
    peak = _Peak()
    start = time.perf_counter()
    features = pair_features(table, a, b, form=form)
    inner = inner_pairs(names[a], names[b], np.arange(given.pairs), kind="gene-disjoint", seed=0)
    head = fit_head(features, label, kind="binary", preset=given.preset, inner=inner, seed=0, form=form)
    fitted = time.perf_counter()
    prediction = head.predict(features)
    done = time.perf_counter()
    print(
        json.dumps(
            {
                "name": f"pairs, {given.preset}",
                "pairs": given.pairs,
                "dim": given.dim,
                "features": features.shape[1],
                "fit_s": round(fitted - start, 1),
                "predict_s": round(done - fitted, 1),
                "peak_mb": round(peak.stop() / 1e6),
                "before_mb": round(before / 1e6),
                "cpu_s": round(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]), 1),
                "mean_prediction": round(float(prediction.mean()), 3),
                "threads": os.environ.get("OMP_NUM_THREADS"),
                "cores": os.cpu_count(),
                "scikit-learn": sklearn.__version__,
                "machine": platform.machine(),
            }
        )
    )


class _Peak:
    """The most resident memory seen, every 20 ms."""

    def __init__(self) -> None:
        self.most, self.going = 0, True
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()

    def _watch(self) -> None:
        process = psutil.Process()
        while self.going:
            self.most = max(self.most, process.memory_info().rss)
            time.sleep(0.02)

    def stop(self) -> int:
        self.going = False
        self.thread.join()
        return self.most


if __name__ == "__main__":
    main()
