"""``expresser translate fit SYSTEM``: read, split, fit, judge, and one page about all of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import tyro

from expresser.commands import progress_bar
from expresser.errors import InputError

Config = TypeVar("Config")

EXAMPLE = "expresser translate fit babel --rna rna.h5ad --atac atac.h5ad --split donor --out runs/babel"


@dataclass(frozen=True)
class Arguments(Generic[Config]):
    """All options of `fit`; those under config are the system's own."""

    out: Path
    """Folder of the run: model, log, split, metrics.json, report.html."""
    config: Config
    """Options of the system; --preset says where they begin."""
    rna: tuple[str, ...] = ()
    """Raw counts of RNA: .h5ad, .zarr, 10x .h5 or a 10x folder, one or several (--rna a.h5ad b.h5ad), whose shared genes are
    kept; if they hold other modalities too, these are read."""
    atac: tuple[str, ...] = ()
    """Counts or 0/1 of peaks, the same kinds of file; cells are paired by name, peaks of several files merged."""
    protein: tuple[str, ...] = ()
    """Antibody counts, or obsm:KEY for a table inside the RNA's files."""
    mudata: str | None = None
    """An .h5mu file with all modalities, in place of --rna and --atac."""
    rna_only: tuple[str, ...] = ()
    """More cells, measured in RNA only."""
    atac_only: tuple[str, ...] = ()
    """More cells, measured in ATAC only."""
    layer: str | None = None
    """Where the raw counts are: a layer's name or "raw", of all files, or of some: rna=counts. Without it, X."""
    genes: str | None = None
    """Places of genes where the files have none: genes.tsv, a GTF, or a table of ids, chrom and tss."""
    genome: str | None = None
    """Build of the peaks (hg38, hg19, mm10): they are checked against it, in queries too."""
    split: str = "random"
    """random (70/15/15), cluster (whole clusters of RNA held out), or a column of obs whose groups stay whole."""
    valid: tuple[str, ...] = ()
    """Groups of the column that validate, or random: cells of the groups that train. Without it, groups are drawn."""
    test: tuple[str, ...] = ()
    """Groups of the column that are held out to the end. Without it, groups are drawn."""
    rotation: int = 0
    """Of the cluster split: which of the five."""
    split_seed: int = 0
    """Of the split; --seed is of the fit, so that several fits can share one split."""
    preset: str | None = None
    """A named configuration: translate list shows them."""
    start: str | None = None
    """A fitted model of the same system (folder or hub id) whose weights are kept: only what it lacks is fitted, such as
    proteins."""
    seed: int = 0
    """Of first weights and batches."""
    precision: Literal["no", "bf16"] = "no"
    """bf16: mixed precision, for a GPU."""
    resume: bool = False
    """Go on with an interrupted fit in --out."""
    evaluate: bool = True
    """Judge the test cells at the end, beside baselines."""
    baselines: bool = True
    """Fit the baselines too: mean, knn, ridge, gene activity."""
    labels: str | None = None
    """Column of obs with cell types, for scores of types and markers. Without it, cell_type where there is one."""
    maps: bool = True
    """Draw UMAPs into the report."""


def run(argv: Sequence[str]) -> None:
    """Parse and do."""
    from translate.fitting import configuration
    from translate.registry import SYSTEMS

    argv = list(argv)
    if not argv:
        raise InputError(f"translate fit: name a system; there are {', '.join(SYSTEMS)}. See expresser translate list.")
    if argv[0] in ("-h", "--help"):
        print(usage())
        raise SystemExit(0)
    system = argv[0]
    if system.startswith("-") or system not in SYSTEMS:
        said = f"{system!r} is no system" if not system.startswith("-") else f"the system comes first, before {system}"
        raise InputError(f"translate fit: {said}; there are {', '.join(SYSTEMS)}. See expresser translate list.")
    start, preset = _given(argv, "--start"), _given(argv, "--preset")
    begun = None if start is None else _begin(system, start, preset)
    default = begun.system.config if begun is not None else configuration(system, preset, None)
    arguments: Any = Arguments  # of this system's options, which no type checker can know
    given = tyro.cli(
        arguments[SYSTEMS[system].config_class],
        default=Arguments(out=tyro.MISSING, config=default),
        prog=f"expresser translate fit {system}",
        description=f"{SYSTEMS[system].published.reference}\n\nExample:\n  {EXAMPLE}",
        args=argv[1:],
    )
    fit(system, given, begun)


def usage() -> str:
    """What ``fit --help`` prints before a system is named."""
    from translate.registry import SYSTEMS

    width = max(map(len, SYSTEMS))
    listed = "\n".join(f"  {name:<{width}}  {kind.published.choose}" for name, kind in SYSTEMS.items())
    return (
        "usage: expresser translate fit SYSTEM …     expresser translate fit SYSTEM --help for its options\n\n"
        f"{listed}\n\nExample:\n  {EXAMPLE}"
    )


def fit(system: str, given: Arguments[Any], start: Any = None) -> None:
    """Read, split, fit, judge."""
    from translate import fitting
    from translate.judging import evaluate_fit, page_of_fit
    from translate.origin import Origin
    from translate.score_table import score_table
    from translate.terminal import notes, on_fastest

    main = fitting.is_main_process()
    _check_split(given)
    if main and not given.resume and (given.out / "run.json").is_file():
        raise InputError(f"{given.out}: holds a run already. Add --resume to go on with it, or choose another --out.")
    origin = Origin(
        rna=given.rna,
        atac=given.atac,
        protein=given.protein,
        mudata=given.mudata,
        rna_only=given.rna_only,
        atac_only=given.atac_only,
        layer=given.layer,
        genes=given.genes,
    )
    with progress_bar(f"fit {system}", active=main) as report, notes() as doubts:
        report(0, None, "reading")
        study = origin.read()
        if len(study.modalities) < 2:
            raise InputError(
                f"translate fit: only {study.modalities[0]} was given ({study.n_cells:,} cells), and there is nothing to "
                "translate it to. Add another modality of the same cells: --rna, --atac or --protein."
            )
        split = choose_split(study, given)
        report(0, None, "preparing")
        fitted = fitting.fit(
            system,
            study,
            split=split,
            out=given.out,
            preset=given.preset,
            config=given.config,
            genome=given.genome,
            start=start,
            seed=given.seed,
            precision=given.precision,
            resume=given.resume,
            origin=origin.plain() | {"doubts": doubts} | ({"start": given.start} if given.start else {}),
            progress=report,
        )
        if not main or fitted is None:
            return
        if not given.evaluate:
            page_of_fit(given.out, fitted)
            metrics = None
        elif (done := finished(given.out)) is not None:
            metrics = done
        elif not len(split.test):
            raise InputError(f"the fit is in {given.out}, but split {split.name!r} has no test cells to judge it by.")
        else:
            metrics = evaluate_fit(
                given.out,
                on_fastest(fitted),
                study,
                truth=origin.files,
                label=given.labels,
                baselines=given.baselines,
                maps=given.maps,
                seed=given.seed,
                say=lambda words: report(0, None, words),
            )
    print(_what_was_used(fitted.run))
    if metrics is not None:
        print(score_table(metrics))
    print(f"model: {given.out / 'model'}\nreport: {given.out / 'report.html'}")


def _what_was_used(run: Mapping[str, Any]) -> str:
    """Cells and features of a fit, in one line."""
    from translate.verdicts import FEATURES

    cells, left = run["cells"], ""
    if cells["filtered"]:
        left = f"; {cells['filtered']:,} left out, too few or too many genes expressed"
    features = ", ".join(f"{n:,} {FEATURES[m]}" for m, n in run["features"].items())
    return f"{cells['train']:,} cells train, {cells['valid']:,} validate, {cells['test']:,} test{left}; {features}"


def choose_split(study: Any, given: Arguments[Any]) -> Any:
    """The split that the options ask for."""
    from translate.splits import split_by_cluster, split_by_column, split_random, validate_at_random

    if given.split == "random":
        return split_random(study, seed=given.split_seed)
    if given.split == "cluster":
        return split_by_cluster(study, rotation=given.rotation, seed=given.split_seed)
    seed, test = given.split_seed, given.test or None
    if given.valid == ("random",):
        return validate_at_random(study, split_by_column(study, given.split, valid=[], test=test, seed=seed), seed=seed)
    return split_by_column(study, given.split, valid=given.valid or None, test=test, seed=seed)


def finished(out: Path) -> dict[str, Any] | None:
    """The metrics of a fit that has been judged already."""
    import json

    if (out / "metrics.json").is_file() and (out / "report.html").is_file():
        return dict(json.loads((out / "metrics.json").read_text()))
    return None


def _check_split(given: Arguments[Any]) -> None:
    if given.split in ("random", "cluster") and (given.valid or given.test):
        raise InputError(f"--valid and --test name groups of a column: --split is {given.split}, not a column of obs.")
    if given.rotation and given.split != "cluster":
        raise InputError(f"--rotation is of the cluster split: --split is {given.split}.")


def _given(argv: Sequence[str], option: str) -> str | None:
    """The value of an option, looked up before all others since their defaults depend on it."""
    found = None
    for word, following in zip(argv, [*argv[1:], None]):
        if word == option:
            found = following
        elif word.startswith(f"{option}="):
            found = word.removeprefix(f"{option}=")
    return found


def _begin(system: str, start: str, preset: str | None) -> Any:
    """The model to start from."""
    from translate.translator import Translator

    begun = Translator.load(start)
    if begun.name != system or preset is not None:
        raise InputError(
            f"--start {start}: the model is a {begun.name}, and its configuration is taken: fit that system, without --preset."
        )
    return begun
