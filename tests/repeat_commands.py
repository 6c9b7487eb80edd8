"""One small command of each family, in an order in which each finds what it reads; and a process that runs them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

_TRANSLATOR = (
    "--config.rna.min-genes 0 --config.rna.max-genes None --config.atac.min-cells 1 --config.atac.max-share 1.0 "
    "--config.epochs 2 --config.batch-size 32 --config.latent 4"
)
# What it makes → how. Each is repeated, and made by several processes.
MADE: dict[str, str] = {
    "sim": "simulate rna --cells 60 --genes 60 --types 2 --modules 4 --median-depth 300 --seed 3 --out sim",
    "cite": "simulate cite --cells 40 --genes 30 --proteins 5 --types 2 --out cite",
    "scan": "simulate atac --cells 60 --regions 300 --out scan",
    "multi": "simulate multiome --cells 90 --genes 40 --peaks 120 --types 2 --programs 2 --rna-depth 300 --atac-depth 40 --out multi",
    "corpus": "corpus build sim/rna.h5ad --obs cell_type batch --out corpus",
    "part": "corpus subset corpus --cells 40 --seed 2 --out part",
    "split": "corpus split corpus --by cell_type --shares train=0.5 test=0.5 --out split",
    "run": "pretrain small --corpus corpus --out run --model.d-model 16 --model.n-layers 1 --data.max-steps 3 --data.valid-cells 8 "
    "--precision no",
    "embedded.h5ad": "embed run sim/rna.h5ad --out embedded.h5ad",
    "imputed.h5ad": "impute run sim/rna.h5ad --genes SIM0003 SIM0007 --out imputed.h5ad",
    "genes": "finetune gene --embeddings own=run random --labels sim/properties.tsv --target binary --folds 2 --repeats 1 --out genes",
    "pairs": "finetune interactions --embeddings own=run --labels sim/pairs.tsv --split random --folds 2 --repeats 1 --out pairs",
    "types": "finetune annotation --models own=run --data sim/rna.h5ad --label cell_type --folds 2 --min-cells 2 --out types",
    "named.h5ad": "finetune annotate types/classifier sim/rna.h5ad --out named.h5ad",
    "filled": "finetune imputation --model run --data sim/rna.h5ad --seeds 1 --methods gene_mean knn additive_svd --checks none "
    "--out filled",
    "fit": f"translate fit babel --rna multi/rna.h5ad --atac multi/atac.h5ad --no-maps {_TRANSLATOR} --out fit",
    "rna.h5ad": "translate predict fit --input multi/atac.h5ad --to rna --out rna.h5ad",
    "drawn.h5ad": "translate predict fit --input multi/rna.h5ad --to atac --sample 4 --out drawn.h5ad",
    "latent.h5ad": "translate embed fit --input multi/rna.h5ad --out latent.h5ad",
    "judged": "translate evaluate fit --rna multi/rna.h5ad --atac multi/atac.h5ad --no-maps --out judged",
    "effects": "translate perturb fit --input multi/atac.h5ad --gene ENSG90000000003 --cells 20 --steps 4 --null 5 --out effects",
    "labelled.h5ad": "translate label --rna multi/rna.h5ad --atac multi/atac.h5ad --labels cell_type --out labelled.h5ad",
    "tuned": f"translate tune babel --rna multi/rna.h5ad --atac multi/atac.h5ad --no-maps {_TRANSLATOR} --grid latent=2,3 "
    "--no-evaluate --out tuned",
    "cells": "translate fit sailer --atac scan/atac.h5ad --batch batch --no-maps --config.atac.min-share 0 --config.hidden 16 8 "
    "--config.latent 4 --config.warmup 1 --config.epochs 2 --config.batch-size 32 --out cells",
}

# Another seed in every global generator than Python starts with: nothing may depend on them.
_CHILD = """
import random, shlex, sys
import numpy, torch
seed = int(sys.argv[1])
random.seed(seed), numpy.random.seed(seed), torch.manual_seed(seed)
def states():
    # Not Python's: tyro, which parses the command line, and rich draw from that.
    return str(numpy.random.get_state()), torch.get_rng_state().tolist()
from expresser.cli import main
if sys.argv[2] == "here":
    from expresser.repeating import running
    running.run_again = lambda words, environment: main(words) or 0
for line in sys.stdin.read().splitlines():
    before = states()
    try:
        main(shlex.split(line))
        moved = [name for name, old, new in zip(("numpy", "torch"), before, states()) if old != new]
        assert not moved, f"the command has moved the global generator of {moved}"
    except BaseException:
        print("in:", line, file=sys.stderr)
        raise
"""


def run_in_a_process(
    folder: Path, lines: Sequence[str], *, seed: int, here: bool = True, environment: Mapping[str, str] | None = None
) -> None:
    """The commands, one after the other, in a process of their own with hashes and generators seeded by `seed`.

    here: what `repeat` runs, it runs in that process too, sparing the seconds of imports.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, str(seed), "here" if here else ""],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONHASHSEED": str(seed), "OMP_NUM_THREADS": "1"} | dict(environment or {}),
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
