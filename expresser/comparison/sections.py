"""The parts of a comparison's page: can it be compared, scores, what differs, what it cost, which runs."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from expresser.comparison import checks
from expresser.comparison.figures import bar_figure
from expresser.comparison.groups import Group, differing
from expresser.comparison.pairing import paired_table
from expresser.comparison.run import Run
from expresser.comparison.tables import Comparison, Row, score_table
from expresser.readable import Number, counted
from expresser.report import Figure, Section, Table

Found = Sequence[tuple[Group, list[Comparison]]]


def comparable_text(runs: Sequence[Run], warnings: Sequence[str], remarks: Sequence[str]) -> str:
    """Whether the numbers of the page can be compared, and what else is to be known before they are read."""
    if len(runs) == 1:
        page = runs[0].path / "report.html"
        more = [f"What needs the cells themselves, such as maps, is in its own page: {page}."] if page.is_file() else []
        return "\n\n".join([f"Drawn from the files in {runs[0].path}.", *more, *(f"– {line}" for line in remarks)])
    if warnings:
        opening = "Not all numbers on this page can be compared with one another:"
    else:
        opening = (
            "As far as their files tell, these runs can be compared: those in one table are on the same data, are judged by the same "
            "cells, genes or entries, and give their baselines the same scores."
        )
    return "\n\n".join(
        [
            opening,
            *(f"– {line}" for line in warnings),
            *(["Also:"] if remarks else []),
            *(f"– {line}" for line in remarks),
        ]
    )


def score_section(group: Group, tables: Sequence[Comparison], opening: str) -> Section:
    """The tables of a group, the bars of each leading score, and the best configuration against the others; `opening` comes first."""
    items: list[Figure | Table] = []
    judged = checks.judged_by(group)
    for table in tables:
        items.append(score_table(table))
        if (figure := bar_figure(table)) is not None:
            items.append(figure)
        if (paired := paired_table(group, table, judged)) is not None:
            items.append(paired)
    n, m = len(group.runs), len(group.configurations)
    text = f"{counted(n, 'runs')} of {counted(m, 'configurations')}." if n > 1 else ""
    several = [c for c in group.configurations if len(c.runs) > 1]
    if several:
        said = "; ".join(f"{c.name}: {', '.join('—' if s is None else str(s) for s in c.seeds)}" for c in several)
        text += f" Runs that differ by their seed alone are one configuration (seeds of {said})."
    text += "" if tables else " There are no scores."
    return Section(group.title, "\n\n".join(filter(None, (opening, text.strip()))), tuple(items))


def curves_text(group: Group) -> str:
    """What to know of the curves of a group."""
    if group.section == "Pretraining" or len(group.configurations) == 1:
        return ""
    return "A loss can be compared between configurations that share its terms and their weights; see the settings that differ."


def settings_section(group: Group) -> Section:
    """Only the settings that differ, within each system where there are several; and what the runs cost."""
    items: list[Figure | Table] = []
    configurations = group.configurations
    abouts = list(dict.fromkeys(configuration.about for configuration in configurations))
    parts = [(f"all of {group.title}", configurations)] if len(configurations) > 1 else []
    if len(abouts) > 1:
        within = [(about, tuple(c for c in configurations if c.about == about)) for about in abouts]
        parts += [(about, members) for about, members in within if len(members) > 1]
    text = "Only settings that differ are shown; a dash: none, or not known to that version or system."
    same = []
    for name, members in parts:
        frame = differing(members)
        if len(frame):
            wide = len(frame.columns) > len(frame)
            shown = frame.T.rename_axis("configuration") if wide else frame
            items.append(Table(f"Settings that differ: {name}" if len(parts) > 1 else "Settings that differ", shown))
        else:
            same.append(name)
    if same:
        text += f" No setting that is known to all differs in {', '.join(same)}."
    if (cost := _cost_table(group)) is not None:
        items.append(cost)
    return Section(f"{group.title}: settings and cost", text if parts else "", tuple(items))


def _cost_table(group: Group) -> Table | None:
    names = list(dict.fromkeys(name for run in group.runs for name, value in run.facts.items() if value is not None))
    if not names:
        return None
    rows = {}
    for configuration in group.configurations:
        values = {name: [run.facts.get(name) for run in configuration.runs] for name in names}
        rows[configuration.name] = {"runs": len(configuration.runs)} | {
            name: _median([float(v) for v in of if v is not None]) for name, of in values.items()
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("configuration")
    return Table("Cost and size", frame, "Medians over the runs of a configuration.")


def _median(values: Sequence[float]) -> float:
    there = [value for value in values if math.isfinite(value)]
    return float(np.median(there)) if there else math.nan


def runs_table(found: Found) -> Table:
    """Every run: which configuration it is of, its seed, when it began, where it is."""
    rows = []
    for group, _ in found:
        for configuration in group.configurations:
            for run in configuration.runs:
                rows.append(
                    {
                        "run": run.name,
                        "configuration": configuration.name,
                        "what": run.about,
                        "kind": group.title,
                        "seed": run.seed,
                        "finished": run.finished,
                        "began (UTC)": str(run.provenance.get("time_utc", "")).partition("+")[0].replace("T", " ")
                        or None,
                        "folder": str(run.path),
                    }
                )
    return Table("All runs", pd.DataFrame(rows).set_index("run"))


def _best(table: Comparison, *, baseline: bool) -> Row | None:
    if not table.columns or table.columns[0].best is None:
        return None
    lead, sign = table.columns[0], 1 if table.columns[0].best == "min" else -1
    rows = [row for row in table.rows if row.baseline is baseline and not row.ceiling]
    there = [(v.median, row) for row in rows if (v := row.values[lead.key]) is not None]
    return min(there, key=lambda one: sign * one[0])[1] if there else None


def leading_table(found: Found) -> Table:
    """The leading score of every table of the page: the best run beside the best baseline."""
    rows = []
    for group, tables in found:
        for table in tables:
            row: dict[str, Any] = {"of": group.title, "table": table.title}
            row["score"] = table.columns[0].name if table.columns else None
            for kind, word in ((False, "run"), (True, "baseline")):
                best = _best(table, baseline=kind)
                value = None if best is None else best.values[table.columns[0].key]
                row |= {f"best {word}": None if best is None else best.label}
                row |= {f"{word}: median": math.nan if value is None else value.median}
            rows.append(row)
    columns = ["of", "table", "score", "best run", "run: median", "best baseline", "baseline: median"]
    return Table("Leading scores", pd.DataFrame(rows, columns=columns))


def headline(table: Comparison, *, alone: bool) -> list[tuple[str, Number | str | None]]:
    """Of the leading score: the best of the runs, and the best of what they are compared with."""
    lines: list[tuple[str, Number | str | None]] = []
    for kind, word in ((False, "best run"), (True, "best baseline")):
        if (row := _best(table, baseline=kind)) is not None:
            lead = table.columns[0]
            value = row.values[lead.key]
            who = row.label if alone and not kind else f"{word}, {row.label}"
            lines.append((f"{table.title}, {lead.name}: {who}", None if value is None else value.median))
    return lines
