"""Time to target: how long `paper_naive` takes to a validation loss, and how long the default takes to the same loss.

    python scripts/bench_naive.py --corpus corpus --minutes 4 --seeds 0 1 2 --out runs/naive
    python scripts/bench_naive.py --corpus corpus --size paper --minutes 60 --out runs/naive_paper      # a GPU, or patience
    python scripts/bench_naive.py --corpus corpus --minutes 0.1 --seeds 0 --out /tmp/naive              # does it work?

Same data and size, in turn, minutes of training each (validation and start not counted). The reference pads each cell to 1,100 genes,
runs `nn.TransformerEncoder` in float32 and asks one random mask a cell, at the paper's learning rate and at the default's.
`same_model` has its head and random start but is packed, asks every gene, and runs bf16; the other is the default of the size as it
is: `small` (3 layers, d 64, subsets of 512 genes, which `same_model` then shows too) or `full` (the paper's 12 layers, d 200).
All are validated on the same masks of the same held-out cells.

The target is the reference's lowest validation MSE in its minutes. A line for each pair and seed in OUT/lines.jsonl: `naive_minutes`,
and `minutes`, when the other was first seen at or below the target: null, never; 0, before its first step (its start knows the
genes' levels). `ratio` is their quotient, null in both cases. At the end a line for each pair over all seeds: `ratio` as [median,
least, most] of those that are numbers, how many were `never` or `before_first_step`, and the ratios of cells/s and of targets/s.

A run that was cut off goes on with the same command: finished runs and lines are not made again.

A corpus from a folder of real cells (its README says what the files are):
    expresser genes build --hgnc $EXPRESSER_DATA/annotation/hgnc_complete_set.txt.gz --out genes.tsv
    expresser corpus build $EXPRESSER_DATA/rna/{pbmc3k,mudan_pbmcA,scp1884_gut,placenta_blood}.h5ad --genes genes.tsv --out corpus
and without one: `expresser simulate rna --out rna --cells 4000`, then `expresser corpus build rna/rna.h5ad --out corpus`.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from _lines import finished, write

from expresser.record import plain_json, provenance
from pretrain.config import Recipe
from pretrain.loop import pretrain
from pretrain.recipes import full, paper_naive, small, with_random_tokens

DEFAULT = {"small": small, "paper": full}
BATCH = {"small": 8, "paper": 32}
VALID_CELLS = 96


@dataclass(frozen=True)
class Contest:
    """What the runs of a comparison share; `every`: steps between validations of the reference and of the others."""

    size: str
    minutes: float
    seed: int
    batch: int
    every: tuple[int, int]

    @property
    def default(self) -> Recipe:
        """The recipe that the reference is compared with."""
        return DEFAULT[self.size]()

    def _timed(self, recipe: Recipe, lr: float, every: int) -> Recipe:
        # A constant rate: the curve can be read at any time. max_tokens is the same for all: none has more memory than another.
        data = replace(recipe.data, global_batch=self.batch, max_tokens=17_600, epochs=1000.0, minutes=self.minutes)
        return replace(
            recipe,
            data=replace(data, valid_cells=VALID_CELLS),
            optim=replace(recipe.optim, lr=lr, schedule="constant"),
            seed=self.seed,
            log_every=min(recipe.log_every, every),
            eval_every=every,
            save_every=100_000,
        )

    def naive(self, lr: float) -> Recipe:
        """`paper_naive` at the size of the default."""
        reference, size = paper_naive(), self.default.model
        model = replace(reference.model, d_model=size.d_model, n_layers=size.n_layers, n_heads=size.n_heads)
        return self._timed(replace(reference, model=model), lr, self.every[0])

    def packed(self, name: str) -> Recipe:
        """The default; `same_model`: with the reference's head, values and random start."""
        base = self.default
        if name == "same_model":
            base = with_random_tokens(replace(base, model=replace(base.model, head="paper", value_input="bin")))
        return self._timed(base, base.optim.lr, self.every[1])


def curve(run: Path) -> list[tuple[float, float]]:
    """(minutes of training, validation MSE)."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [(line["seconds"] / 60, line["valid"]["mse"]) for line in lines if "valid" in line]


def first_at(line: list[tuple[float, float]], target: float) -> float | None:
    """Minutes to the first validation at or below the target; None: there was none."""
    return next((minutes for minutes, loss in line if loss <= target), None)


def compare(
    slow: dict[str, Any], reference: list[tuple[float, float]], fast: dict[str, Any], line: list[tuple[float, float]]
) -> dict[str, Any]:
    """Minutes of both to the reference's lowest loss, and the rates at which they went."""
    target = min(loss for _, loss in reference)
    took, reached = first_at(reference, target), first_at(line, target)
    assert took is not None
    return {
        "target_mse": target,
        "naive_start_mse": reference[0][1],
        "start_mse": line[0][1],
        "final_mse": fast["valid"]["mse"],
        "naive_minutes": took,
        "minutes": reached,
        "ratio": took / reached if reached else None,
        **{f"naive_{what}_per_s": slow[f"{what}_per_s"] for what in ("cells", "targets")},
        **{f"{what}_per_s": fast[f"{what}_per_s"] for what in ("cells", "targets")},
    }


def one_seed(contest: Contest, corpus: Path, out: Path, rates: list[float]) -> dict[str, dict[str, Any]]:
    """A reference and another in turn, so that drift of the machine hits both; then every pair of them."""
    references, fast = {}, {}
    for lr, name in zip(rates, ("same_model", contest.default.name)):
        for found, key, recipe, folder in (
            (references, lr, contest.naive(lr), out / f"naive-{lr:g}-{contest.seed}"),
            (fast, name, contest.packed(name), out / f"{name}-{contest.seed}"),
        ):
            metrics = pretrain(recipe, corpus, folder, resume=folder.is_dir(), quiet=True)
            if "valid" not in metrics:
                raise SystemExit(f"{folder}: stopped by {metrics.get('stopped')}. The same command goes on.")
            found[key] = (metrics, curve(folder))  # type: ignore[index]
    return {
        f"{name} against naive at lr {lr:g}": compare(*reference, *other)
        for lr, reference in references.items()
        for name, other in fast.items()
    }


def over_seeds(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Median and range over seeds of one pair's ratios."""

    def spread(values: list[float]) -> list[float] | None:
        return [median(values), min(values), max(values)] if values else None

    def of_rates(what: str) -> list[float] | None:
        return spread([line[f"{what}_per_s"] / line[f"naive_{what}_per_s"] for line in lines])

    return {
        "ratio": spread([line["ratio"] for line in lines if line["ratio"] is not None]),
        "never": sum(line["minutes"] is None for line in lines),
        "before_first_step": sum(line["minutes"] == 0 for line in lines),
        "cells_ratio": of_rates("cells"),
        "targets_ratio": of_rates("targets"),
        "target_mse": spread([line["target_mse"] for line in lines]),
        "final_mse": spread([line["final_mse"] for line in lines]),
    }


def table(summaries: dict[str, dict[str, Any]], n_seeds: int) -> str:
    """The summaries as Markdown."""

    def text(values: list[float] | None, digits: int) -> str:
        return "" if values is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*values, d=digits)

    rows = [
        f"| pair, {n_seeds} seeds | times faster to target | never | at the start | cells/s, x | targets/s, x "
        "| target MSE | its last MSE |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, found in summaries.items():
        ratios = " | ".join(text(found[what], 1) for what in ("cells_ratio", "targets_ratio"))
        losses = " | ".join(text(found[what], 3) for what in ("target_mse", "final_mse"))
        counts = f"{found['never']} | {found['before_first_step']}"
        rows.append(f"| {name} | {text(found['ratio'], 1)} | {counts} | {ratios} | {losses} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="a folder for the runs and lines.jsonl")
    parser.add_argument("--size", default="small", choices=list(DEFAULT))
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of each run (default: 4)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, help="cells a step (default: 8; --size paper: 32)")
    parser.add_argument(
        "--naive-lr", type=float, nargs=2, help="default: 1e-4, the paper's, and the rate of the default recipe"
    )
    parser.add_argument(
        "--every", type=int, nargs=2, default=[10, 25], help="steps between validations of naive and others (10 25)"
    )
    given = parser.parse_args()
    file, there = given.out / "lines.jsonl", finished(given.out / "lines.jsonl")
    rates = given.naive_lr or [paper_naive().optim.lr, DEFAULT[given.size]().optim.lr]
    batch = given.batch or BATCH[given.size]
    lines: dict[str, list[dict[str, Any]]] = {}
    for seed in given.seeds:
        contest = Contest(given.size, given.minutes, seed, batch, tuple(given.every))
        names = [f"{name} against naive at lr {lr:g}" for lr in rates for name in ("same_model", contest.default.name)]
        keys = {name: f"{name}, {given.size}, {given.minutes:g} min, batch {batch}, seed {seed}" for name in names}
        if any(key not in there for key in keys.values()):
            for name, found in one_seed(contest, given.corpus, given.out, rates).items():
                facts = {"key": keys[name], "name": name, "size": given.size, "seed": seed, "batch": batch}
                there[keys[name]] = (
                    facts | found | {"budget_minutes": given.minutes, "provenance": provenance(seed=seed)}
                )
                write(file, there[keys[name]])
                shown = {what: value for what, value in there[keys[name]].items() if what != "provenance"}
                print(json.dumps(plain_json(shown)), flush=True)
        for name, key in keys.items():
            lines.setdefault(name, []).append(there[key])
    summaries = {name: over_seeds(found) for name, found in lines.items()}
    for name, found in summaries.items():
        print(json.dumps({"name": name, "size": given.size, "seeds": given.seeds, "summary": True} | found), flush=True)
    print(table(summaries, len(given.seeds)))


if __name__ == "__main__":
    main()
