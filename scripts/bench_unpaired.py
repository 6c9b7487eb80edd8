"""How well systems translate where few cells are paired, or none, beside those that learn from pairs alone.

One JSON object a line for each case, seed and method, appended to --out as it is found: a run that was cut off goes on where
it stopped. At the end, medians over seeds as a table.

    python scripts/bench_unpaired.py --data curve --pairs 50 200 500 2000 --seeds 3 --out curve.jsonl --plot curve.svg
    python scripts/bench_unpaired.py --data none --seeds 3 --out none.jsonl
    EXPRESSER_DATA=folder python scripts/bench_unpaired.py --data bmmc bmmc_pbmc bmmc_granja --seeds 3 --out real.jsonl
    python scripts/bench_unpaired.py --data curve --pairs 50 --genes 300 --peaks 2000 --seeds 1     # does it work?

curve: so many simulated pairs and ten times as many cells of each modality alone; Polarbear, the same on the pairs alone, BABEL,
and the baselines. none: RNA of 1,000 cells and ATAC of 1,000 others; scACT with cell types and without, and as upper line BABEL
and ridge with the 2,000 cells paired. bmmc: 350 bone-marrow cells of which shares stay paired; bmmc_pbmc, bmmc_granja: with PBMC of
RNA alone, with haematopoietic cells of ATAC alone.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _fits import Scores, find, score, scored
from _unpaired_data import Case, bmmc, simulated, unpaired

from translate.covariates import LabelColumn
from translate.fitting import configuration

PARTLY = ("polarbear", "polarbear:coassay_only", "babel")
SHARES = (1.0, 0.5, 0.2, 0.1)  # of the cells that stay paired
SHOWN = (
    ("atac_to_rna", "pearson_gene"),
    ("atac_to_rna", "de_auprc"),
    ("atac_to_rna", "marker_auroc"),
    ("rna_to_atac", "auroc_peak"),
    ("rna_to_atac", "auprnorm_peak"),
    ("rna_to_atac", "auroc_flat"),
    (None, "foscttm"),
    (None, "foscttm_rna"),
    (None, "foscttm_atac"),
    (None, "fit_seconds"),
)


@dataclass(frozen=True)
class Job:
    """A fit, and what else is scored beside it."""

    data: str
    method: str  # SYSTEM or SYSTEM:PRESET
    seed: int
    pairs: float  # number of them, or the share that stays paired
    genes: int
    peaks: int
    alone: int | None = None  # cells of each modality alone, where not ten times the pairs
    most: int = 0  # pairs of the largest case
    changes: dict[str, Any] = field(default_factory=dict)

    def key(self) -> str:
        """What a finished line is known by."""
        return json.dumps(vars(self), sort_keys=True)


def jobs(given: argparse.Namespace) -> Iterator[Job]:
    """In order: all methods on one case, so that it is made once."""
    size = {"genes": given.genes, "peaks": given.peaks}
    changes = {} if given.epochs is None else {"epochs": given.epochs}
    for data in given.data:
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            for pairs in given.pairs if data == "curve" else (0,) if data == "none" else given.shares:
                usual = ("scact", "scact:label_free", "babel") if data == "none" else PARTLY
                for method in given.methods or usual:
                    more = {"alone": given.alone, "most": max(given.pairs)} if data == "curve" else {}
                    yield Job(data, method, seed, pairs, **size, **more, changes=changes)


def case_of(job: Job) -> tuple[Case, Case | None]:
    """What systems for unpaired cells are given; where nothing is paired, the same cells with their pairs besides."""
    if job.data == "curve":
        return simulated(
            int(job.pairs), job.seed, most=job.most, genes=job.genes, peaks=job.peaks, alone=job.alone
        ), None
    if job.data == "none":
        return unpaired(job.seed, cells=2000, genes=job.genes, peaks=job.peaks)
    return bmmc("A", job.pairs, job.seed, pbmc=job.data == "bmmc_pbmc", granja=job.data == "bmmc_granja"), None


def run(job: Job, made: tuple[Case, Case | None]) -> Scores:
    """Scores of the method, and of the baselines fitted to the pairs, on the test cells."""
    case, whole = made
    system, _, preset = job.method.partition(":")
    partly = system in ("polarbear", "scact")
    own = case if partly else (whole or case).paired_only()
    config = configuration(system, preset or "default", None)
    if hasattr(config, "label"):
        config = replace(config, label=LabelColumn("cell_type"))
    config = replace(config, **{name: value for name, value in job.changes.items() if hasattr(config, name)})
    # Baselines are fitted to pairs.
    return scored(job.method, config, own, seed=job.seed, label="cell_type", baselines=not partly)


def main() -> None:
    """Find the lines that are missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    data = ("curve", "none", "bmmc", "bmmc_pbmc", "bmmc_granja")
    parser.add_argument("--data", nargs="+", default=["curve"], choices=data)
    parser.add_argument("--pairs", nargs="+", type=int, default=[50, 200, 500, 2000], help="of the curve")
    parser.add_argument(
        "--alone", type=int, help="cells of each modality alone, of the curve; else ten times the pairs"
    )
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="that stay paired, of real cells")
    parser.add_argument("--methods", nargs="+", help="SYSTEM or SYSTEM:PRESET, instead of those of each kind of data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--genes", type=int, default=3000, help="of simulated data")
    parser.add_argument("--peaks", type=int, default=20_000, help="of simulated data")
    parser.add_argument("--epochs", type=int, help="of systems that have one number of them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="lines are appended to it; those that are there are not found again")
    parser.add_argument("--plot", type=Path, help="of the curve: .svg or .png")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = find(
        list(jobs(given)),
        given.out,
        given.threads,
        lambda job: ((job.data, job.seed, job.pairs), partial(case_of, job)),
        run,
    )
    print(table(lines))
    if given.plot:
        draw([line for line in lines if line["data"] == "curve"], given.plot)


def table(lines: list[dict[str, Any]]) -> str:
    """Medians over seeds, as Markdown."""
    rows: dict[tuple[str, float, str], list[dict[str, Any]]] = {}
    for line in lines:
        rows.setdefault((line["data"], line["pairs"], line["method"]), []).append(line)
    shown = [at for at in SHOWN if any(score(line, *at) is not None for line in lines)]
    out = [
        f"| data | pairs | method | seeds | {' | '.join(name for _, name in shown)} |",
        "|---" * (4 + len(shown)) + "|",
    ]
    for (data, pairs, method), some in rows.items():
        values = [[v for line in some if (v := score(line, *at)) is not None] for at in shown]
        cells = [f"{median(of):.3g}" if of else "" for of in values]
        out.append(f"| {data} | {pairs:g} | {method} | {len(some)} | {' | '.join(cells)} |")
    return "\n".join(
        [*out, *(f"\n{line['data']}, {line['method']}: {line['failed']}" for line in lines if "failed" in line)]
    )


def draw(lines: list[dict[str, Any]], path: Path) -> None:
    """A panel a score against the number of pairs; a dot a seed, a line through the medians."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    panels = (("atac_to_rna", "pearson_gene"), ("rna_to_atac", "auroc_peak"), (None, "foscttm"))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.5 * len(panels), 3.6), layout="constrained")
    methods = list(dict.fromkeys(line["method"] for line in lines))
    for axis, at in zip(axes, panels):
        for number, method in enumerate(methods):
            points = [
                (line["pairs"], v) for line in lines if line["method"] == method and (v := score(line, *at)) is not None
            ]
            if not points:
                continue
            axis.plot(*zip(*points), ".", color=f"C{number}", alpha=0.5)
            pairs = sorted({p for p, _ in points})
            axis.plot(
                pairs, [median([v for p, v in points if p == n]) for n in pairs], color=f"C{number}", label=method
            )
        axis.set(xscale="log", xlabel="paired cells", title=" ".join(filter(None, at)).replace("_", " "))
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, loc="outside right center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
