"""How well embeddings of open chromatin find cell types and forget depth and batch, beside baselines.

One JSON object a line for each data set, method and seed, appended to --out as it is found: a run that was cut off goes on
where it stopped. At the end, medians over seeds as a table. Simulated data are another draw with every seed.

    python scripts/bench_embedders.py --data sim1 sim2 sim3 --seeds 3 --out sims.jsonl --table sims.md
    EXPRESSER_DATA=folder python scripts/bench_embedders.py --data granja bmmc_A bmmc_halves --out real.jsonl
    python scripts/bench_embedders.py --data robustness --seeds 2 --out robust.jsonl --plot robust.svg
    python scripts/bench_embedders.py --data sim3 --cells 600 --regions 3000 --epochs 5 --seeds 1      # does it work?

sim1-3 (types found, Dice against the profiles), granja: SAILER by default and as in the paper, and the baselines. multiome,
bmmc_A, bmmc_B: SAILERX against RNA alone, ATAC alone (SAILER, LSI) and both side by side. multiome_hybrid, bmmc_hybrid (set A
paired, set B with ATAC alone), bmmc_halves (one donor of set A with ATAC alone): SAILERX, scores also of the cells without RNA.
robustness: λ and size of the latent (sim3), weight of the alignment (multiome), as lines and a plot.
"""

import argparse
import json
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _embedder_data import DATA, load
from _embedder_methods import METHODS, Task, run
from _lines import finished, write
from threadpoolctl import threadpool_limits

from expresser.record import plain_json, provenance
from translate.embedding_baselines import BASELINES
from translate.registry import SYSTEMS

EMBEDDERS = tuple(name for name, kind in SYSTEMS.items() if kind.embeds)
ATAC_ONLY = ("sailer", "sailer:paper", *BASELINES)
PAIRED = (
    *("sailerx", "sailerx:paper", "rna_pca", "rna_pca_clean", "sailer", "lsi", "lsi_regressed"),
    *("concatenation", "concatenation_clean"),
)
HYBRID = ("sailerx", "sailerx:as_released", "sailer", "lsi_regressed")
SWEEPS: dict[str, tuple[str, str, tuple[float, ...]]] = {  # option: data, method, values
    "lam": ("sim3", "sailer", (0.0, 0.01, 0.1, 1.0, 2.0, 10.0)),
    "latent": ("sim3", "sailer", (2, 5, 10, 15, 20)),
    "alignment": ("multiome", "sailerx", (0.0, 1e3, 1e4, 1e5, 1e6, 1e7)),
}
NAMES = {"lam": "λ", "latent": "latent dimensions", "alignment": "weight of the alignment"}
SHOWN = (
    *("ari", "nmi", "silhouette", "ari_best", "nmi_best", "n_clusters", "types_found", "rarest_f1"),
    *("mi_depth", "mi_batch", "mixing", "dice", "dice_measured", "dice_same_for_all", "seconds"),
)


@dataclass(frozen=True)
class Job:
    """One line to be found."""

    data: str
    method: str
    seed: int
    cells: int | None
    regions: int | None
    changes: dict[str, Any] = field(default_factory=dict)  # of the system's configuration
    sweep: str | None = None

    def key(self) -> str:
        """What a finished line is known by."""
        return json.dumps(vars(self), sort_keys=True)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    """In order: all methods on one draw of one data set, so that it is made once."""
    size = {"cells": given.cells, "regions": given.regions}
    changes = {} if given.epochs is None else {"epochs": given.epochs}
    for name in given.data:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            if name == "robustness":
                for option, (data, method, values) in SWEEPS.items():
                    for value in values if option in given.sweeps else ():
                        yield Job(data, method, seed, **size, changes={**changes, option: value}, sweep=option)
                continue
            for method in given.methods or methods_of(name):
                yield Job(name, method, seed, **size, changes=changes)


def methods_of(name: str) -> tuple[str, ...]:
    """The methods that are asked of a data set."""
    if name in ("bmmc_hybrid", "bmmc_halves", "multiome_hybrid"):
        return HYBRID
    return PAIRED if name in ("multiome", "bmmc_A", "bmmc_B") else ATAC_ONLY


def main() -> None:
    """Find the lines that are missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["sim1", "sim2", "sim3"], choices=[*DATA, "robustness"])
    parser.add_argument("--methods", nargs="+", help="instead of those of each data set")
    parser.add_argument("--sweeps", nargs="+", default=list(SWEEPS), choices=list(SWEEPS), help="of robustness")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--cells", type=int)
    parser.add_argument("--regions", type=int, help="of simulated data")
    parser.add_argument("--epochs", type=int, help="of SAILER and SAILERX, after the warm-up")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="lines are appended to it; those that are there are not found again")
    parser.add_argument("--table", type=Path, help="medians, as Markdown")
    parser.add_argument("--plot", type=Path, help="of robustness: .svg or .png")
    given = parser.parse_args()
    if unknown := [m for m in given.methods or () if m.partition(":")[0] not in (*EMBEDDERS, *METHODS, *BASELINES)]:
        parser.error(
            f"no method {unknown[0]!r}; there are {', '.join((*EMBEDDERS, *METHODS, *BASELINES))}, and NAME:PRESET."
        )
    torch.set_num_threads(given.threads)
    known, wanted = finished(given.out), list(jobs(given))
    todo = [job for job in wanted if job.key() not in known]
    if given.out and todo:
        write(given.out, {"provenance": provenance()})
    loaded: tuple[tuple[Any, ...], Task] | None = None
    with threadpool_limits(given.threads):
        for job in todo:
            which = (job.data, job.seed, job.cells, job.regions)
            if loaded is None or loaded[0] != which:
                loaded = None  # before the next is made
                data = load(job.data, seed=job.seed, cells=job.cells, regions=job.regions)
                loaded = (which, Task.of(data, job.seed))
            task = replace(loaded[1], changes=job.changes)
            line = {**vars(job), "key": job.key(), "threads": given.threads, **found(job, task)}
            known[job.key()] = line
            print(json.dumps(plain_json({k: v for k, v in line.items() if k not in ("key", "types")})), flush=True)
            if given.out:
                write(given.out, line)
    lines = [known[job.key()] for job in wanted if job.key() in known]
    text = table(lines)
    print(text)
    if given.table:
        given.table.write_text(text + "\n")
    if given.plot and any(line["sweep"] for line in lines):
        draw(lines, given.plot)


def found(job: Job, task: Task) -> dict[str, Any]:
    """Scores, or why there are none: one method that cannot be run does not stop the others."""
    try:
        return run(task, job.method)
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}"}


def table(lines: list[dict[str, Any]]) -> str:
    """Medians over seeds, as Markdown; what was scored on cells without RNA in rows of its own."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    why: dict[tuple[str, str], str] = {}
    for line in lines:
        value = f" {line['sweep']} {line['changes'][line['sweep']]:g}" if line["sweep"] else ""
        at = (line["data"], line["method"] + value)
        if "failed" in line:
            why[at] = line["failed"]
            continue
        rows.setdefault(at, []).append(line)
        if "alone" in line:
            rows.setdefault((f"{line['data']}, cells without RNA", at[1]), []).append(line["alone"])
    shown = [name for name in SHOWN if any(one.get(name) is not None for some in rows.values() for one in some)]
    out = [f"| data | method | seeds | {' | '.join(shown)} |", "|---" * (3 + len(shown)) + "|"]
    for (data, method), some in rows.items():
        values = [[one[name] for one in some if one.get(name) is not None] for name in shown]
        cells = [f"{median(of):.3g}" if of else "" for of in values]
        out.append(f"| {data} | {method} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(out + [f"\n{data}, {method}: {words}" for (data, method), words in why.items()])


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """A panel an option: the scores against its values; a dot a seed, a line through the medians."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    sweeps = [name for name in SWEEPS if any(line["sweep"] == name for line in lines)]
    figure, axes = plt.subplots(1, len(sweeps), figsize=(4.5 * len(sweeps), 3.6), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], sweeps):
        some = [line for line in lines if line["sweep"] == name and "failed" not in line]
        values = sorted({line["changes"][name] for line in some})
        for score, colour in (("ari", "C0"), ("nmi", "C1"), ("mi_depth", "C2"), ("mi_batch", "C3")):
            points = [(line["changes"][name], line[score]) for line in some if line.get(score) is not None]
            if not points:
                continue
            at = {value: place for place, value in enumerate(values)}  # evenly, since 0 has no place on a log scale
            axis.plot([at[v] for v, _ in points], [s for _, s in points], ".", color=colour, alpha=0.5)
            medians = [median([s for v, s in points if v == value]) for value in values]
            axis.plot(range(len(values)), medians, color=colour, label=score)
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        data, method, _ = SWEEPS[name]
        axis.set(xlabel=NAMES[name], ylim=(0, 1), title=f"{method} on {data}")
    axes[0][0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
