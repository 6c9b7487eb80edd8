"""From folders to runs: which kind each is, told by what its files hold, and what is the matter with those that are none."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Real
from pathlib import Path

from expresser.comparison.reading_cells import read_embedder, read_translator
from expresser.comparison.reading_pretraining import read_pretraining
from expresser.comparison.reading_tasks import read_annotation, read_genes, read_imputation
from expresser.comparison.run import NotComparable, Run
from expresser.comparison.scores import KEYS
from expresser.errors import InputError
from expresser.foreign import shortened
from expresser.run_files import read_mapping

_SHOWN = 5
# What reading and drawing say of text where numbers are meant, lists of other lengths, and the like.
STRANGE = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)


def read_runs(folders: Sequence[str | Path]) -> tuple[list[Run], dict[str, str]]:
    """The runs in these folders, each once, named apart; and why folders were left out.

    Raises
    ------
    InputError
        Where a path does not exist, or none of the folders holds a run that can be compared.
    """
    if not folders:
        raise InputError("report: name the folders of one run or more, such as runs/*.")
    paths = list({Path(folder).resolve(): Path(folder) for folder in reversed(folders)}.values())[::-1]
    for path in paths:
        if not path.exists():
            raise InputError(f"{path}: there is no such folder. Name the folders that runs were told with --out.")
    found: list[Run] = []
    left: dict[str, str] = {}
    for path in paths:
        try:
            found.append(_proven(_read(path)))
        except (NotComparable, InputError) as error:
            left[str(path)] = str(error).removeprefix(f"{path}: ")
        except STRANGE as error:
            left[str(path)] = not_as_left(error)
    if not found:
        said = "; ".join(f"{path}: {why}" for path, why in list(left.items())[:_SHOWN])
        more = f"; and {len(left) - _SHOWN} more" if len(left) > _SHOWN else ""
        raise InputError(f"nothing to report on. {said}{more}")
    names = _told_apart([run.path for run in found])
    return [replace(run, name=name) for run, name in zip(found, names, strict=True)], left


def not_as_left(error: Exception) -> str:
    """What is said of files that can be read but hold other things than a run writes."""
    said = shortened(" ".join(str(error).split()), 200)
    return f"its files are not as a run of this version leaves them ({type(error).__name__}: {said})"


def _read(folder: Path) -> Run:
    if not folder.is_dir():
        raise NotComparable("is a file; name the folder of a run")
    if (folder / "model.safetensors").is_file():
        raise NotComparable(f"is a model by itself; the run that made it may be {folder.parent}")
    record, metrics = read_mapping(folder / "run.json"), read_mapping(folder / "metrics.json")
    known = record or {}
    if "recipe" in known and "corpus_id" in known:
        return read_pretraining(folder, known, metrics)
    if "system" in known and "study" in known:
        embeds = "embeddings" in (metrics or {}) or len(known.get("features", {})) == 1
        return (read_embedder if embeds else read_translator)(folder, known, metrics)
    if "made" in known:
        raise NotComparable(f"is data that expresser {known['made']} made, which has no scores")
    if metrics is None:
        raise NotComparable(_nothing(folder))
    if metrics.get("task") == "annotation" and "embeddings" in metrics:
        return read_annotation(folder, known, metrics)
    if {"task", "tables", "embeddings", "kind"} <= metrics.keys():
        return read_genes(folder, known, metrics)
    if {"protocol", "methods"} <= metrics.keys():
        return read_imputation(folder, metrics)
    if {"methods", "directions"} <= metrics.keys():
        return read_translator(folder, None, metrics)
    if {"embeddings", "system"} <= metrics.keys():
        return read_embedder(folder, None, metrics)
    if {"perturbation", "attribution"} & metrics.keys():
        raise NotComparable("is a perturbation, which has effects but no scores; its own report.html shows them")
    raise NotComparable("its metrics.json is not that of a run known here")


def _nothing(folder: Path) -> str:
    if (folder / "state").is_dir() or (folder / "run.json").is_file():
        return "is not finished and has no scores yet; repeat its command (translate fit: with --resume)"
    for depth in ("*", "*/*"):
        files = [path for name in ("run.json", "metrics.json") for path in folder.glob(f"{depth}/{name}")]
        if inside := sorted({path.parent for path in files}):
            names = ", ".join(str(path.relative_to(folder)) for path in inside[:_SHOWN])
            more = ", …" if len(inside) > _SHOWN else ""
            return f"is no run, but there are runs in it ({names}{more}); name those, such as {inside[0].parent}/*"
    return "is no run: it has neither run.json nor metrics.json"


def _told_apart(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of these paths that differ, as text."""
    whole = [path.resolve() for path in paths]
    depth = 1
    while True:
        names = [str(Path(*path.parts[-depth:])) for path in whole]
        if len(set(names)) == len(names):  # in the end they are, as no path is given twice
            return names
        depth += 1


def _proven(run: Run) -> Run:
    """The run, where its numbers are numbers and its facts can be compared: one damaged file must not stop the page of all others."""
    for scores in run.scores:
        for of in (*scores.own.values(), *scores.others.values()):
            # All that are scores in any table: what one run has as a text, another of its group may have as a number.
            _numbers({key: value for key, value in of.items() if key in KEYS})
    _numbers(run.facts)
    _numbers({"seed": run.seed})
    for name, fact in {**run.data, **run.judged}.items():
        if isinstance(fact, list | dict):
            raise ValueError(f"{name} is a {type(fact).__name__}")
    return run


def _numbers(of: Mapping[str, object]) -> None:
    for name, value in of.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real) or abs(float(value)) > 1e300):
            raise ValueError(f"{name} is {str(value)[:40]!r}, not a number")
