"""Time to target: how long `paper_naive` takes to a validation loss, and how long the default takes to the same loss.

    python scripts/bench_naive.py --corpus corpus --minutes 4 --seeds 0 1 --out runs/naive

Same data and size, alternating. The reference pads each cell to 1,100 genes, runs `nn.TransformerEncoder` in float32 and
asks one random mask a cell, at the paper's learning rate and at the default's. `same_model` has its head and random start but
shows packed subsets of 512 genes, asks every gene, and runs bf16; `small` is the recipe as it is. All are validated on the same
masks of the same held-out cells. One JSON line a pair: minutes each took to the reference's best loss (null: below it before the
first step), their ratio, and cells/s and targets/s.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.config import Recipe
from pretrain.loop import pretrain
from pretrain.recipes import paper_naive, small, with_random_tokens


def naive(minutes: float, seed: int, every: int, lr: float) -> Recipe:
    """`paper_naive` at the size of `small`."""
    reference, size = paper_naive(), small()
    model = replace(
        reference.model, d_model=size.model.d_model, n_layers=size.model.n_layers, n_heads=size.model.n_heads
    )
    return replace(
        reference,
        model=model,
        data=replace(size.data, max_genes=None, minutes=minutes, epochs=1000.0, valid_cells=96),
        optim=replace(reference.optim, lr=lr),
        seed=seed,
        eval_every=every,
        save_every=100_000,
    )


def packed(name: str, minutes: float, seed: int, every: int) -> Recipe:
    """`small` at a constant rate, so that its curve can be read at any time; `same_model`: the reference's head, random start."""
    base = small()
    if name == "same_model":
        base = with_random_tokens(replace(base, model=replace(base.model, head="paper", value_input="bin")))
    return replace(
        base,
        data=replace(base.data, minutes=minutes, epochs=1000.0, valid_cells=96),
        optim=replace(base.optim, schedule="constant"),
        seed=seed,
        eval_every=every,
        save_every=100_000,
    )


def curve(run: Path) -> list[tuple[float, float]]:
    """(minutes of training, validation MSE)."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["seconds"] / 60, line["valid"]["mse"]) for line in lines if "valid" in line]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--naive-lr", type=float, nargs="+", default=[1e-4, 2e-3], help="the paper's and the default's")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in given.seeds:
        references, fast = {}, {}
        for lr, name in zip(
            given.naive_lr, ("same_model", "small")
        ):  # one of each in turn, so that drift of the machine hits both
            folder = given.out / f"naive-{lr:g}-{seed}"
            references[lr] = (
                pretrain(naive(given.minutes, seed, 10, lr), given.corpus, folder, quiet=True),
                curve(folder),
            )
            folder = given.out / f"{name}-{seed}"
            fast[name] = (
                pretrain(packed(name, given.minutes, seed, 25), given.corpus, folder, quiet=True),
                curve(folder),
            )
        for lr, (slow, reference) in references.items():
            target = min(loss for _, loss in reference)
            took = next(minutes for minutes, loss in reference if loss <= target)
            for name, (run, line) in fast.items():
                reached = next((minutes for minutes, loss in line if loss <= target), None)
                print(
                    json.dumps(
                        {
                            "name": f"{name} against naive at lr {lr:g}",
                            "seed": seed,
                            "target_mse": target,
                            "naive_start_mse": reference[0][1],
                            "start_mse": line[0][1],
                            "naive_minutes": took,
                            "minutes": reached,
                            "ratio": took / reached if reached else None,
                            "naive_cells_per_s": slow["cells_per_s"],
                            "naive_targets_per_s": slow["targets_per_s"],
                            "cells_per_s": run["cells_per_s"],
                            "targets_per_s": run["targets_per_s"],
                            "final_mse": run["valid"]["mse"],
                            "threads": torch.get_num_threads(),
                            "torch": torch.__version__,
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
