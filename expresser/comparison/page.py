"""The comparison as a page and as comparison.json: warnings first, then scores, settings and cost, curves, and the runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expresser.atomic import replaced_together
from expresser.comparison import checks
from expresser.comparison.figures import curve_figures
from expresser.comparison.groups import grouped
from expresser.comparison.numbers import WRITTEN_BY, origin_of, plain_numbers
from expresser.comparison.reading import STRANGE, not_as_left, read_runs
from expresser.comparison.run import Run
from expresser.comparison.sections import (
    Found,
    comparable_text,
    curves_text,
    headline,
    leading_table,
    runs_table,
    score_section,
    settings_section,
)
from expresser.comparison.tables import comparisons, score_table
from expresser.errors import InputError
from expresser.pages import pretraining_page
from expresser.readable import Number, counted
from expresser.record import provenance, write_metrics
from expresser.report import Section, Table, write_report
from expresser.run_files import read_mapping

_TILES = 8
_MADE_HERE = '<meta name="generator" content="expresser">'
_OF_RUNS = ("run.json", "metrics.json")


def compare(folders: Sequence[str | Path], out: Path) -> tuple[dict[str, Any], list[tuple[str, Table]]]:
    """Write the page of these runs to `out` and its numbers to the .json beside it.

    A pretraining run alone gets its own page, as its report.html is; any other alone a comparison with its baselines.

    Returns
    -------
    What the .json holds, and every table of scores with the title of its group.

    Raises
    ------
    InputError
        If a folder does not exist, none holds a run that can be compared, or `out` or the .json is something else's file.
    """
    beside = _check_out(out)
    runs, left = read_runs(folders)
    try:
        return _compared(runs, left, out, beside)
    except InputError:
        raise
    except STRANGE as error:  # a value that no run writes: which run's, the traceback says (EXPRESSER_DEBUG=1)
        named = ", ".join(str(run.path) for run in runs[:_TILES])
        raise InputError(
            f"{named}: of one of these, {not_as_left(error)}. Report on them one by one to find which."
        ) from error


def _compared(
    runs: list[Run], left: dict[str, str], out: Path, beside: Path
) -> tuple[dict[str, Any], list[tuple[str, Table]]]:
    groups = grouped(runs)
    found = [(group, comparisons(group, checks.judged_by(group))) for group in groups]
    warnings, remarks = _warnings(found, left)
    own_page = len(runs) == 1 and runs[0].section == "Pretraining"
    redrawn = own_page and out.resolve().parent == runs[0].path.resolve()
    if out.name == "report.html" and any((out.parent / name).is_file() for name in _OF_RUNS) and not redrawn:
        raise InputError(
            f"{out}: is the page of the run in {out.parent}, which shows more of it. Choose another --out."
        )
    record = provenance(hashed=False, runs={run.name: origin_of(run) for run in runs})
    numbers = plain_numbers(found, warnings, remarks, left, record)
    with replaced_together(out.parent, last=beside.name) as part:
        if own_page:
            pretraining_page(runs[0].path, part / out.name)
        else:
            _write_page(part / out.name, found, warnings, remarks, record)
        write_metrics(part / beside.name, numbers)
    return numbers, [(group.title, score_table(one)) for group, of in found for one in of]


def _check_out(out: Path) -> Path:
    """The .json beside the page; InputError where either would overwrite what this command did not write."""
    if out.suffix != ".html" or out.is_dir():
        raise InputError(f"{out}: the report is one page; name it *.html.")
    beside = out.with_suffix(".json")
    if out.exists() and _MADE_HERE not in out.read_text(encoding="utf-8", errors="replace")[:4000]:
        raise InputError(f"{out}: exists, and is no page of expresser. Choose another --out.")
    if beside.exists():
        try:
            ours = (read_mapping(beside) or {}).get("written_by") == WRITTEN_BY
        except InputError:
            ours = False
        if not ours:
            raise InputError(
                f"{beside}: would hold the numbers beside {out.name}, but is another file. Choose another --out."
            )
    return beside


def _warnings(found: Found, left: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """What speaks against comparing, and what else is to be known."""
    groups = [group for group, _ in found]
    warnings = checks.data_warnings(groups)
    for group, tables in found:
        warnings += checks.judged_warnings(group) or checks.baseline_warnings(group, tables)
    reasons: dict[str, list[str]] = {}
    for path, why in left.items():
        reasons.setdefault(why, []).append(path)
    missing = [f"Left out: {checks.some(paths)}: {why.rstrip('.')}." for why, paths in reasons.items()]
    return warnings, [*missing, *checks.run_remarks(groups), *checks.machine_remarks(groups)]


def _write_page(
    out: Path, found: Found, warnings: Sequence[str], remarks: Sequence[str], record: Mapping[str, Any]
) -> None:
    runs = [run for group, _ in found for run in group.runs]
    configurations = [configuration for group, _ in found for configuration in group.configurations]
    comparable = comparable_text(runs, warnings, remarks)
    sections = []
    if len(found) > 1:
        sections.append(Section("Overview", comparable, (leading_table(found), runs_table(found))))
    for group, tables in found:
        parts = [score_section(group, tables, "" if len(found) > 1 else comparable)]
        settings, curves = settings_section(group), curve_figures(group)
        parts += [settings] if settings.items else []
        parts += [Section(f"{group.title}: curves", curves_text(group), tuple(curves))] if curves else []
        if len(found) > 1:  # a section for each, or there would be too many
            texts, items = [part.text for part in parts if part.text], [item for part in parts for item in part.items]
            parts = [Section(group.title, "\n\n".join(texts), tuple(items))]
        sections += parts
    if len(found) == 1 and len(runs) > 1:
        sections.append(Section("Runs", "", (runs_table(found),)))
    summary: list[tuple[str, Number | str | None]] = []
    if len(runs) > 1:
        summary = [("runs", len(runs)), ("configurations", len(configurations)), ("warnings", len(warnings))]
    if len(found) == 1:  # else the overview has them
        for table in found[0][1]:
            summary += headline(table, alone=len(runs) == 1)
    alone = runs[0].name if runs[0].name == runs[0].about else f"{runs[0].about}: {runs[0].name}"
    title = alone if len(runs) == 1 else f"Comparison of {counted(len(runs), 'runs')}"
    write_report(out, title=title, summary=summary[:_TILES], sections=sections, provenance=record)
