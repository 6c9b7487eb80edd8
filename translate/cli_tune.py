"""``expresser translate tune SYSTEM``: a grid of configurations, fitted, ranked by validation cells, the best one judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import tyro

from expresser.errors import InputError
from expresser.one_writer import one_writer
from expresser.progress import progress_bar
from translate.cli_bridge import prove_pretrained
from translate.cli_fit import given_option
from translate.cli_options import Arguments, Config, choose_split, doubt_labels, origin_of, prove_modalities, settled
from translate.grids import Score

EXAMPLE = (
    "expresser translate tune babel --rna rna.h5ad --atac atac.h5ad --grid latent=16,32 beta=0.5,1,2 --out runs/grid"
)


@dataclass(frozen=True)
class TuneArguments(Arguments[Config], Generic[Config]):
    """Options of `fit`, which all trials share, and of the search. --out: the trials and, as of a fit, the best of them."""

    grid: tuple[str, ...] = ()
    """What is varied: NAME=VALUE,VALUE of options under config (latent=10,25,50 beta=0,1 rna.min_genes=0,200). Without --random,
    every combination is a trial. Given again with more values, only what is new is fitted."""
    random: int | None = None
    """So many of the combinations only, drawn by --seed."""
    score: Score = "translation"
    """Of validation cells, by which trials are ranked. translation: the mean of pearson_gene and auroc_peak; transfer (needs
    --labels) and mixing: of the latent, for cells measured in one modality each."""


def run(argv: Sequence[str]) -> None:
    """Parse and do."""
    from translate.fitting import configuration
    from translate.registry import SYSTEMS

    argv = list(argv)
    if argv and argv[0] in ("-h", "--help"):
        kinds = {name: kind for name, kind in SYSTEMS.items() if not kind.embeds}
        width = max(map(len, kinds))
        listed = "\n".join(f"  {name:<{width}}  {kind.published.choose}" for name, kind in kinds.items())
        print(
            "usage: expresser translate tune SYSTEM --grid NAME=VALUE,VALUE …     expresser translate tune SYSTEM --help for its "
            f"options\n\n{listed}\n\nExample:\n  {EXAMPLE}"
        )
        raise SystemExit(0)
    if not argv or argv[0] not in SYSTEMS:
        said = f"{argv[0]!r} is no system" if argv else "name a system first"
        raise InputError(f"translate tune: {said}; there are {', '.join(SYSTEMS)}. See expresser translate list.")
    system, kind = argv[0], SYSTEMS[argv[0]]
    arguments: Any = TuneArguments  # of this system's options, which no type checker can know
    given = tyro.cli(
        arguments[kind.config_class],
        default=TuneArguments(out=tyro.MISSING, config=configuration(system, given_option(argv, "--preset"), None)),
        prog=f"expresser translate tune {system}",
        description=f"{kind.published.reference}\n\nExample:\n  {EXAMPLE.replace('babel', system)}",
        args=argv[1:],
    )
    tune(system, given)


def tune(system: str, given: TuneArguments[Any]) -> None:
    """Read once, split once, fit all, judge the best."""
    from translate.tuning import prove_one_process

    if given.start is not None:
        raise InputError(
            "translate tune: --start keeps the weights of one configuration, and a search has many. Leave it out."
        )
    prove_one_process()
    with one_writer(given.out):
        _tune(system, given)


def _tune(system: str, given: TuneArguments[Any]) -> None:
    from translate.grids import parse_grid, shown, trials
    from translate.registry import SYSTEMS
    from translate.score_table import score_table
    from translate.terminal import notes
    from translate.tuning import tune as search

    kind = SYSTEMS[system]
    settings: Any = settled(given, system, kind)
    grid = parse_grid(settings.config, given.grid)  # before anything is read
    made = trials(settings.config, grid, random=given.random, seed=given.seed)
    prove_pretrained([trial.config for trial in made])
    origin = origin_of(given)
    with progress_bar(f"tune {system}") as report, notes() as doubts:
        report(0, None, "reading")
        study = origin.read()
        prove_modalities(study, system, kind)
        doubt_labels(study, given)
        metrics = search(
            system,
            study,
            split=choose_split(study, settings, kind.needs),
            out=given.out,
            config=settings.config,
            grid=grid,
            random=given.random,
            score=given.score,
            label=given.labels,
            preset=given.preset,
            genome=given.genome,
            seed=given.seed,
            precision=given.precision,
            origin=origin.plain() | {"doubts": doubts},
            truth=origin.files,
            test=given.evaluate,
            baselines=given.baselines,
            maps=given.maps,
            progress=report,
        )
    best = metrics["best"]
    if "methods" in metrics:
        print(score_table(metrics))
    if warning := behind(metrics):
        print(warning)
    print(*metrics["notes"], sep="\n", end="\n" if metrics["notes"] else "")
    print(f"{len(made)} trials, in {given.out / 'trials.tsv'}")
    values = " ".join(f"{name}={shown(value)}" for name, value in best["values"].items())
    print(f"best: {values} ({best['score']} of validation cells {best[best['score']]:.4f})")
    print(f"model: {given.out / 'model'}\nreport: {given.out / 'report.html'}")


def behind(metrics: Mapping[str, Any]) -> str | None:
    """That a baseline does better on test cells than the best of all trials; None where none does."""
    better = [
        f"{name} ({direction.replace('_', ' ')})"
        for direction, said in metrics.get("verdicts", {}).items()
        for name in said
        if said[name] == "behind"
    ]
    if not better:
        return None
    return (
        f"warning: even the best of the trials is behind {', '.join(better)} on test cells. Take the baseline, search wider, or give "
        "more cells, paired ones above all."
    )
