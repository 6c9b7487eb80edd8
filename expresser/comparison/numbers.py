"""The numbers of a comparison for programs: what comparison.json holds."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from expresser.comparison.groups import Group, Spread, differing
from expresser.comparison.run import Run
from expresser.comparison.tables import Comparison

WRITTEN_BY = "expresser report"  # stands in the file, so that no other one is overwritten


def origin_of(run: Run) -> dict[str, Any]:
    """What repeats a run, for the page's provenance."""
    known = {key: run.provenance[key] for key in ("command", "time_utc") if key in run.provenance}
    versions = run.provenance.get("versions") or {}
    kept = {name: versions[name] for name in ("expresser", "python", "torch") if name in versions}
    return {
        "folder": str(run.path),
        **known,
        "seed": run.seed,
        "data": dict(run.data),
        "judged by": dict(run.judged),
    } | kept


def plain_numbers(
    found: Sequence[tuple[Group, list[Comparison]]],
    warnings: Sequence[str],
    remarks: Sequence[str],
    left: Mapping[str, str],
    record: Mapping[str, Any],
) -> dict[str, Any]:
    """The numbers of the page for programs."""
    return {
        "written_by": WRITTEN_BY,
        "groups": [_plain_group(group, tables) for group, tables in found],
        "warnings": list(warnings),
        "remarks": list(remarks),
        "left_out": dict(left),
        "provenance": dict(record),
    }


def _plain_group(group: Group, tables: Sequence[Comparison]) -> dict[str, Any]:
    different = differing(group.configurations) if len(group.configurations) > 1 else pd.DataFrame()
    return {
        "title": group.title,
        "section": group.section,
        "configurations": {
            c.name: {"about": c.about, "seeds": c.seeds, "runs": [run.name for run in c.runs], "settings": c.settings}
            for c in group.configurations
        },
        "runs": {run.name: _plain_run(run) for run in group.runs},
        "settings_that_differ": {str(name): dict(row) for name, row in different.iterrows()},
        "tables": {
            table.title: {
                "scores": [column.key for column in table.columns],
                "rows": [
                    {
                        "label": row.label,
                        "method": row.method,
                        "baseline": row.baseline,
                        "configurations": list(row.configurations),
                        "runs": row.runs,
                        "values": {key: _spread(value) for key, value in row.values.items()},
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        },
    }


def _plain_run(run: Run) -> dict[str, Any]:
    return {
        "folder": str(run.path),
        "about": run.about,
        "seed": run.seed,
        "finished": run.finished,
        "data": dict(run.data),
        "judged_by": dict(run.judged),
        "facts": dict(run.facts),
        "scores": {
            scores.title: {
                key: {name: {c.key: of.get(c.key) for c in scores.columns} for name, of in rows.items()}
                for key, rows in (("own", scores.own), ("others", scores.others))
            }
            for scores in run.scores
        },
        "remarks": list(run.remarks),
    }


def _spread(value: Spread | None) -> dict[str, Any] | None:
    return None if value is None else asdict(value)
