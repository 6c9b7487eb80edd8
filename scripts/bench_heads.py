"""The head study: held-out imputation and gene-module recovery of each head at equal training time, one JSON line a run.

    python scripts/bench_heads.py --corpus corpus --unseen unseen.h5ad --minutes 5 --out runs/heads

Each head is trained with the `small` recipe on the corpus, then asked for 10 % dropped non-zero counts of the unseen cells; and
on simulated cells, where it is known which genes share a module. Everything but the head stays the same, the clock included: training
time counts, validation and saving stand outside. `--heads` picks some; finished runs are read, not repeated.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import torch

from expresser.checkpoint import load
from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.embed import gene_table
from expresser.factors import gene_factors
from expresser.metrics.modules import module_auc
from expresser.simulate import simulate_rna
from finetune.imputation.task import run_imputation
from pretrain.config import ModelConfig, Recipe
from pretrain.loop import pretrain
from pretrain.recipes import small, with_random_tokens

HEADS: dict[str, dict[str, object]] = {
    "paper": {"head": "paper", "value_input": "bin"},
    "query": {"head": "query", "value_input": "bin"},
    "bias": {"head": "bias", "value_input": "bin"},
    "two_layers": {"head": "query", "value_input": "bin", "decoder_layers": 2, "decoder_residual": True},
    "additive": {"head": "additive", "value_input": "bin"},
    "additive_residual": {"head": "additive", "value_input": "bin_residual"},
    "truncated": {"head": "truncated", "value_input": "bin"},
    "truncated_residual": {"head": "truncated", "value_input": "bin_residual"},
    "without_decoder": {"architecture": "without_decoder", "head": "additive"},
    "default": {},  # the recipe as it is: truncated_residual with the token table started from gene factors
}


def recipe(name: str, minutes: float, seed: int) -> Recipe:
    """The `small` recipe with another head and a clock."""
    base = small()
    model: ModelConfig = replace(base.model, **HEADS[name])  # type: ignore[arg-type]
    data = replace(base.data, minutes=minutes, epochs=1000.0, valid_cells=128)
    return replace(
        base if name == "default" else with_random_tokens(base),
        name=name,
        model=model,
        data=data,
        seed=seed,
        eval_every=100_000,
        save_every=100_000,
    )


def simulated_corpus(folder: Path) -> tuple[Corpus, ad.AnnData]:
    """4,000 simulated cells of 2,000 genes, built once."""
    cells = simulate_rna(n_cells=4000, n_genes=2000, median_depth=1500, seed=0)
    return build_corpus([cells], folder), cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--unseen", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--simulated-minutes", type=float, default=2.0)
    parser.add_argument("--heads", nargs="+", default=list(HEADS), choices=list(HEADS))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    simulated, cells = simulated_corpus(given.out / "simulated")
    modules = cells.var["module"].astype(str).tolist()
    names = cells.var_names.astype(str)
    svd = gene_factors(cells.X, 50).astype(np.float64)
    print(json.dumps({"name": "svd", "module_auc": module_auc(svd, modules)}), flush=True)
    for name in given.heads:
        folder = given.out / f"{name}-seed{given.seed}"
        run = pretrain(
            recipe(name, given.minutes, given.seed), given.corpus, folder / "real", resume=folder.exists(), quiet=True
        )
        scores = run_imputation(model=folder / "real", data=given.unseen, methods=["additive"], checks=(), seeds=1)[
            "methods"
        ]
        toy = recipe(name, given.simulated_minutes, given.seed)
        pretrain(toy, simulated.path, folder / "simulated", resume=(folder / "simulated").exists(), quiet=True)
        table = gene_table(load(folder / "simulated")).loc[names].drop(columns="symbol").to_numpy(np.float64)
        print(
            json.dumps(
                {
                    "name": name,
                    "minutes": run["seconds"] / 60,
                    "cells_seen": run["cells_seen"],
                    "cells_per_s": run["cells_per_s"],
                    "targets_per_s": run["targets_per_s"],
                    "valid_mse": run["valid"]["mse"],
                    "mae": scores["expresser"]["mae"],
                    "pearson": scores["expresser"]["pearson"],
                    "additive_mae": scores["additive"]["mae"],
                    "additive_pearson": scores["additive"]["pearson"],
                    "module_auc": module_auc(table, modules),
                    "seed": given.seed,
                    "threads": torch.get_num_threads(),
                    "torch": torch.__version__,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
