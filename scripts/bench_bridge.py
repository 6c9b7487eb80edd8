"""What a pretrained encoder adds to translators: each system with and without the bridge, and with a model that learned nothing.

One JSON object a line for each data set, share, seed, system and way, appended to --out as it is found: a run that was cut off
goes on where it stopped. At the end, as Markdown: medians over seeds, and differences, seed by seed, from the same system without
the bridge and with the random model.

    python scripts/bench_bridge.py --data simulated --out bridge.jsonl --table bridge.md
    EXPRESSER_DATA=folder python scripts/bench_bridge.py --data bmmc_A bmmc_B --model MODEL --out bridge.jsonl --table bridge.md
    python scripts/bench_bridge.py --cells 300 --genes 200 --peaks 800 --extra 400 --epochs 2 --seeds 1     # does it work?

Shares of the paired cells are fitted, 20 pairs at least, of which a fifth validates. To BABEL and scMOG the other cells do not
exist; to Polarbear, which is made for that, half of them are RNA alone and half ATAC alone. scACT takes no two measurements to be
of one cell: it gets RNA and ATAC of the same cells as BABEL, and the share is of the cells that it has. 500 simulated cells test,
of real ones 30 %.

simulated: every seed is another world, and its model is pretrained on the RNA of --extra more cells of it, which nobody fits or
judges. Models are kept beside --out (--models). Real cells: --model, pretrained on other cells. The random model has the same
shape and genes; its weights are drawn anew with every seed. SAILER and SAILERX embed and do not translate: they are in
bench_embedders.py.
"""

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _bridge_data import REAL, Cells, pairs, real, simulated
from _bridge_models import Pretraining, digest, pretrained, quality, random_twin
from _bridge_tables import tables
from _fits import Scores, Skipped, find, scored
from _lines import finished

from expresser.checkpoint import locate
from translate.bridge import Bridge
from translate.covariates import LabelColumn
from translate.fitting import configuration

SYSTEMS = ("babel", "scmog", "polarbear", "scact")
# Each by itself: the first layer starts fresh, except where that start is what is asked. Blocks that train are left out of `all`:
# they cost the most by far.
WAYS: dict[str, dict[str, Any]] = {
    "genes": {"rna_start": "genes"},
    "cells": {"rna_start": "fresh", "rna_cells": "join"},
    "cells_only": {"rna_start": "fresh", "rna_cells": "replace"},
    "blocks": {"rna_start": "fresh", "rna_cells": "join", "rna_blocks": 1},
    "table": {"rna_start": "fresh", "rna_output": "table"},
    "peaks": {"rna_start": "fresh", "peak_start": "both"},
    "all": {"rna_start": "genes", "rna_cells": "join", "rna_output": "table", "peak_start": "both"},
}
BESIDE = "babel"  # baselines and the oracle are scored with it, once a case
PARTLY = ("polarbear",)


@dataclass(frozen=True)
class Job:
    """One line to be found."""

    data: str
    method: str  # SYSTEM or SYSTEM:PRESET
    way: str
    share: float
    seed: int
    model: str | None  # "pretrained", "random"; None without a bridge
    made_by: dict[str, Any] | None  # what the model is known by
    sizes: dict[str, int] | None  # of simulated data
    changes: dict[str, Any] = field(default_factory=dict)  # of the system's configuration

    def key(self) -> str:
        """What a finished line is known by."""
        return json.dumps(vars(self), sort_keys=True)


def jobs(given: argparse.Namespace, how: Pretraining) -> Iterator[Job]:
    """In order: all systems and ways on one draw of one data set, so that it and its model are made once."""
    changes = {} if given.epochs is None else {"epochs": given.epochs}
    models = [("pretrained", way) for way in given.ways if way != "none"] + [("random", way) for way in given.controls]
    for data in given.data:
        sizes = {"cells": given.cells, "genes": given.genes, "peaks": given.peaks} if data == "simulated" else None
        made_by = asdict(how) if sizes else {"weights": given.digest}
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            for share in given.shares:
                for system in given.systems:
                    job = Job(data, system, "none", share, seed, None, None, sizes, changes)
                    if "none" in given.ways:
                        yield job
                    for model, way in models:
                        yield replace(job, way=way, model=model, made_by=made_by)


@dataclass(frozen=True, eq=False)
class Bench:
    """What jobs share: where models are, and the cells at hand."""

    models: Path
    model: Path | None  # of real cells
    how: Pretraining

    def at(self, job: Job) -> tuple[tuple[str, int], Callable[[], Cells]]:
        """A name for the cells of a job, and how they are read or drawn."""
        return (job.data, job.seed), partial(self.cells, job)

    def cells(self, job: Job) -> Cells:
        """The data set of a job."""
        if job.sizes is None:
            return real(job.data, job.seed)
        return simulated(job.seed, **job.sizes, extra=self.how.cells)

    def folder(self, job: Job, cells: Cells) -> Path:
        """The model that the job starts from, made where it is not there yet."""
        if job.sizes is None:
            if self.model is None:
                raise Skipped("real cells, and no pretrained model: name one (--model)")
            model = self.model
        else:
            assert cells.corpus is not None
            model = pretrained(cells.corpus, {**job.sizes, "seed": job.seed}, self.how, job.seed, self.models)
        return random_twin(model, job.seed, self.models) if job.model == "random" else model

    def run(self, job: Job, cells: Cells) -> Scores:
        """Scores of the fit; of baselines and the oracle too where no bridge is asked for."""
        system, _, preset = job.method.partition(":")
        config = configuration(system, preset or "default", None)
        if getattr(config, "matching", None) == "labels":
            if cells.label is None:
                raise Skipped(f"{job.data} has no cell types, which {job.method} needs; ask for scact:label_free")
            config = replace(config, label=LabelColumn(cells.label))
        config = replace(config, **{name: value for name, value in job.changes.items() if hasattr(config, name)})
        facts: dict[str, Any] = {"pairs": pairs(job.share, cells.n_fitted), "of_pairs": cells.n_fitted}
        if job.model is not None:
            folder = self.folder(job, cells)
            config = replace(config, bridge=Bridge(rna_encoder=str(folder), **WAYS[job.way]))
            facts["encoder"] = quality(folder)
        case = cells.case(job.share, job.seed, alone=system in PARTLY)
        beside = job.model is None and job.method == BESIDE
        found = scored(job.method, config, case, seed=job.seed, label=None, baselines=beside, best=beside)
        return {method: facts | scores for method, scores in found.items()}


def found(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Lines of all that is asked for."""
    model = None if given.model is None else locate(given.model)
    given.digest = None if model is None else digest(model)
    how = replace(Pretraining(), cells=given.extra, epochs=given.pretrain_epochs)
    with ExitStack() as stack:
        folder = given.models or (given.out and given.out.with_suffix(".models"))
        bench = Bench(folder or Path(stack.enter_context(tempfile.TemporaryDirectory())), model, how)
        return find(list(jobs(given, how)), given.out, given.threads, bench.at, bench.run)


def main() -> None:
    """Find the lines that are missing, then show all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["simulated"], choices=["simulated", *REAL])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), help="SYSTEM or SYSTEM:PRESET")
    parser.add_argument("--ways", nargs="+", default=["none", *WAYS], choices=["none", *WAYS])
    parser.add_argument(
        "--controls",
        nargs="*",
        default=["genes", "cells", "table", "peaks", "all"],
        choices=list(WAYS),
        help="ways with the random model",
    )
    parser.add_argument("--shares", nargs="+", type=float, default=[1.0, 0.1, 0.02], help="of the pairs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--model", help="pretrained on other cells, for real data: folder or hub id")
    parser.add_argument(
        "--models", type=Path, help="folder of models made here; else beside --out, or for this run alone"
    )
    parser.add_argument("--cells", type=int, default=2000, help="simulated pairs")
    parser.add_argument("--genes", type=int, default=800, help="of simulated data")
    parser.add_argument("--peaks", type=int, default=2000, help="of simulated data")
    parser.add_argument("--extra", type=int, default=Pretraining().cells, help="simulated cells to pretrain on")
    parser.add_argument("--pretrain-epochs", type=float, default=Pretraining().epochs, help="on simulated cells")
    parser.add_argument("--epochs", type=int, help="of systems that have one number of them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="lines are appended to it; those that are there are not found again")
    parser.add_argument("--table", type=Path, help="Markdown")
    parser.add_argument("--show", nargs="+", type=Path, help="show all lines of these files together, and find none")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    lines = [line for path in given.show for line in finished(path).values()] if given.show else found(given)
    text = tables(lines)
    print(text)
    if given.table:
        given.table.write_text(text + "\n")


if __name__ == "__main__":
    main()
