"""Time to target: how long `paper_naive` takes to a validation loss, and how long the default takes to the same loss.

    python scripts/bench_naive.py --corpus corpus --minutes 4 --seeds 0 1 --out runs/naive

Same data, same model size, same head on both sides, alternating: the reference pads each cell to 1,100 genes, runs
`nn.TransformerEncoder` in float32 and asks one random mask a cell; the default shows subsets of 512 genes packed by length, asks every
gene, and runs bf16. Both are validated on the same masks of the same held-out cells. One JSON line a pair: minutes each took,
their ratio, and cells/s and targets/s.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pretrain.config import Recipe
from pretrain.loop import pretrain
from pretrain.recipes import paper_naive, small


def naive(head: str, minutes: float, seed: int, every: int, lr: float) -> Recipe:
    """`paper_naive` at the size of `small`."""
    reference, size = paper_naive(), small()
    model = replace(
        reference.model,
        d_model=size.model.d_model,
        n_layers=size.model.n_layers,
        n_heads=size.model.n_heads,
        head=head,  # type: ignore[arg-type]
    )
    data = replace(size.data, max_genes=None, minutes=minutes, epochs=1000.0, valid_cells=96)
    return replace(
        reference,
        model=model,
        data=data,
        optim=replace(reference.optim, lr=lr),
        seed=seed,
        eval_every=every,
        save_every=100_000,
    )


def default(head: str, minutes: float, seed: int, every: int) -> Recipe:
    """`small` with the reference's head and constant rate, so that its curve can be read at any time."""
    base = small()
    model = replace(base.model, head=head, value_input="bin")  # type: ignore[arg-type]
    data = replace(base.data, minutes=minutes, epochs=1000.0, valid_cells=96)
    optim = replace(base.optim, schedule="constant")
    return replace(base, model=model, data=data, optim=optim, seed=seed, eval_every=every, save_every=100_000)


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
    parser.add_argument("--heads", nargs="+", default=["paper", "truncated"])
    parser.add_argument(
        "--naive-lr", type=float, nargs="+", default=[1e-4, 2e-3], help="the paper's rate, and the default's"
    )
    given = parser.parse_args()
    for seed in given.seeds:
        for head in given.heads:
            fast = pretrain(
                default(head, given.minutes, seed, 25), given.corpus, given.out / f"default-{head}-{seed}", quiet=True
            )
            line = curve(given.out / f"default-{head}-{seed}")
            for lr in given.naive_lr:
                folder = given.out / f"naive-{head}-{lr:g}-{seed}"
                slow = pretrain(naive(head, given.minutes, seed, 10, lr), given.corpus, folder, quiet=True)
                target = min(loss for _, loss in curve(folder))
                took = next(minutes for minutes, loss in curve(folder) if loss <= target)
                reached = next((minutes for minutes, loss in line if loss <= target), None)
                print(
                    json.dumps(
                        {
                            "name": f"{head}, naive lr {lr:g}",
                            "seed": seed,
                            "target_mse": target,
                            "start_mse": curve(folder)[0][1],
                            "naive_minutes": took,
                            "default_minutes": reached,
                            "ratio": None if not reached else took / reached,
                            "naive_cells_per_s": slow["cells_per_s"],
                            "naive_targets_per_s": slow["targets_per_s"],
                            "cells_per_s": fast["cells_per_s"],
                            "targets_per_s": fast["targets_per_s"],
                            "default_final_mse": fast["valid"]["mse"],
                            "threads": torch.get_num_threads(),
                            "torch": torch.__version__,
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
