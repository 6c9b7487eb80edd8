"""``expresser translate fit SYSTEM``: read, split, fit, judge, and one page about all of it."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import tyro

from expresser.errors import InputError
from expresser.one_writer import one_writer
from expresser.progress import progress_bar
from translate.cli_bridge import prove_pretrained
from translate.cli_options import Arguments, choose_split, doubt_labels, origin_of, prove_modalities, settled

EXAMPLE = "expresser translate fit babel --rna rna.h5ad --atac atac.h5ad --split donor --out runs/babel"
EXAMPLES = {
    "polarbear": "expresser translate fit polarbear --rna rna.h5ad --atac atac.h5ad --rna-only more_rna.h5ad --out runs/polarbear",
    "scact": "expresser translate fit scact --rna-only rna.h5ad --atac-only atac.h5ad --labels cell_type --out runs/scact",
}
EXAMPLE_OF_EMBEDDING = "expresser translate fit {system} {files} --batch donor --out runs/{system}"


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
    start, preset = given_option(argv, "--start"), given_option(argv, "--preset")
    begun = None if start is None else _begin(system, start, preset)
    default = begun.system.config if begun is not None else configuration(system, preset, None)
    arguments: Any = Arguments  # of this system's options, which no type checker can know
    given = tyro.cli(
        arguments[SYSTEMS[system].config_class],
        default=Arguments(out=tyro.MISSING, config=default),
        prog=f"expresser translate fit {system}",
        description=f"{SYSTEMS[system].published.reference}\n\nExample:\n  {_example(system)}",
        args=argv[1:],
    )
    fit(system, given, begun)


def _example(system: str) -> str:
    """A command that fits this system."""
    from translate.registry import SYSTEMS

    kind = SYSTEMS[system]
    files = " ".join(f"--{m} {m}.h5ad" for m in kind.needs)
    if kind.embeds:
        return EXAMPLE_OF_EMBEDDING.format(system=system, files=files)
    return EXAMPLES.get(system, EXAMPLE.replace("babel", system))


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
    from translate.fitting import is_main_process

    with one_writer(given.out) if is_main_process() else nullcontext():
        _fit(system, given, start)


def _fit(system: str, given: Arguments[Any], start: Any) -> None:
    from expresser.corpus.together import verify_together
    from translate import fitting
    from translate.embedding_cells import label_of, prove_labels
    from translate.judging import evaluate_fit, page_of_fit
    from translate.registry import SYSTEMS
    from translate.score_table import score_table
    from translate.terminal import notes, on_fastest

    main, kind = fitting.is_main_process(), SYSTEMS[system]
    given = settled(given, system, kind)
    if main and not given.resume and (given.out / "run.json").is_file():
        raise InputError(f"{given.out}: holds a run already. Add --resume to go on with it, or choose another --out.")
    if start is None and not (given.resume and (given.out / "fit.json").is_file()):
        prove_pretrained([given.config])  # what is fitted already does not need it
    origin = origin_of(given)
    with progress_bar(f"fit {system}", active=main) as report, notes() as doubts:
        if given.corpus is not None and given.verify:
            verify_together(given.corpus, progress=lambda stage, done, total: report(done, total, stage))
        report(0, None, "reading")
        study = origin.read()
        prove_modalities(study, system, kind)
        label = None
        if kind.embeds:
            label = label_of(study.obs, given.labels)
            prove_labels(study.obs, label)  # before hours of training, not after
        doubt_labels(study, given)
        split = choose_split(study, given, kind.needs)
        config, more = _with_alignment(study, split, given, report)
        report(0, None, "preparing")
        fitted = fitting.fit(
            system,
            study,
            split=split,
            out=given.out,
            preset=given.preset,
            config=config,
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
            page_of_fit(given.out, fitted, ((), more))
            metrics = None
        elif (done := finished(given.out)) is not None:
            metrics = done
        elif kind.embeds:
            from translate.embedding_judging import evaluate_embedding

            metrics = evaluate_embedding(
                given.out,
                on_fastest(fitted),
                study,
                truth=origin.files,
                label=label,
                baselines="all" if given.baselines_all else "usual" if given.baselines else "none",
                maps=given.maps,
                more=more,
                seed=given.seed,
                say=lambda words: report(0, None, words),
            )
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


def _with_alignment(study: Any, split: Any, given: Arguments[Any], report: Any) -> tuple[Any, tuple[Any, ...]]:
    """The configuration, with --config.alignment elbow made a number by short fits beside --out; and what the report shows of it."""
    if getattr(given.config, "alignment", None) != "elbow":
        return given.config, ()
    from expresser.report import Section
    from translate.elbow import choose_alignment, elbow_figure

    config, table = choose_alignment(
        study,
        split,
        given.config,
        Path(f"{given.out}.elbow"),
        given.seed,
        report,
        genome=given.genome,
        precision=given.precision,
    )
    words = f"The alignment weighs {config.alignment:g}, chosen by short fits, which are in {given.out}.elbow."
    return config, (Section("Scaling factor of the alignment", words, (elbow_figure(table, summed=config.summed),)),)


def _what_was_used(run: Mapping[str, Any]) -> str:
    """Cells and features of a fit, in one line; in more, what it took from a pretrained model."""
    from translate.bridge_words import taken_words
    from translate.verdicts import FEATURES

    cells, left = run["cells"], ""
    if cells["filtered"]:
        left = f"; {cells['filtered']:,} left out, too few or too many genes expressed"
    by = dict(run.get("trained_on", {}))
    paired = by.pop("paired", cells["train"])
    mix = ""
    if paired < cells["train"]:
        mix = " (" + ", ".join([f"{paired:,} paired", *(f"{n - paired:,} more with {m}" for m, n in by.items())]) + ")"
    features = ", ".join(f"{n:,} {FEATURES[m]}" for m, n in run["features"].items())
    used = f"{cells['train']:,} cells train{mix}, {cells['valid']:,} validate, {cells['test']:,} test{left}; {features}"
    taken = " ".join(taken_words(run))
    return f"{used}\n{taken}" if taken else used


def finished(out: Path) -> dict[str, Any] | None:
    """The metrics of a fit that has been judged already."""
    import json

    if (out / "metrics.json").is_file() and (out / "report.html").is_file():
        return dict(json.loads((out / "metrics.json").read_text()))
    return None


def given_option(argv: Sequence[str], option: str) -> str | None:
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
    from translate.fitting import prove_start
    from translate.translator import Translator

    prove_start(system)  # before a model is loaded, and any cell read
    begun = Translator.load(start)
    if begun.name != system or preset is not None:
        raise InputError(
            f"--start {start}: the model is a {begun.name}, and its configuration is taken: fit that system, without --preset."
        )
    return begun
