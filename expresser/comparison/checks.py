"""Whether numbers that stand side by side can be compared: what differs in data, test cells, baselines, machines."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from expresser.comparison.groups import Configuration, Group
from expresser.comparison.run import Run
from expresser.comparison.tables import Comparison
from expresser.readable import counted, format_number

_SHOWN = 4
_HASH = re.compile("[0-9a-f]{40,}")


def judged_by(group: Group) -> Callable[[Run], tuple[Any, ...]]:
    """What the scores of a run are of, by the facts that all judged runs of the group know."""
    names = _known_to_all(group)
    return lambda run: tuple(run.judged.get(name) for name in names)


def _known_to_all(group: Group) -> list[str]:
    judged = [run.judged for run in group.runs if run.scores]
    names = [name for name in dict.fromkeys(n for of in judged for n in of) if all(name in of for of in judged)]
    # Where the cells are known by name, how they were chosen says nothing more.
    return [name for name in names if name != "split" or "their names" not in names]


def data_warnings(groups: Sequence[Group]) -> list[str]:
    """Runs of one kind on different data, and runs whose data is not known."""
    found = []
    for section in dict.fromkeys(group.section for group in groups):
        parts = [group for group in groups if group.section == section]
        if len(parts) > 1:
            said = "; ".join(f"{_data_of(part)}: {_names(part.configurations)}" for part in parts)
            found.append(
                f"{section}: these runs are on different data, so they stand in {len(parts)} tables, and numbers of one must not be "
                f"compared with numbers of another ({said})."
            )
        unknown = [run.name for part in parts for run in part.runs if not run.data]
        if unknown and sum(len(part.runs) for part in parts) > 1:
            found.append(
                f"{section}: {some(unknown)} {'does' if len(unknown) == 1 else 'do'} not say on which data; whether the data are "
                "the same, only the number of cells and the scores of baselines can tell."
            )
    return found


def _data_of(group: Group) -> str:
    """The data of a group in a few letters."""
    data: dict[str, Any] = {}
    for run in group.runs:
        data |= run.data
    return ", ".join(f"{name} {str(value)[:8]}" for name, value in data.items()) or "data not known"


def judged_warnings(group: Group) -> list[str]:
    """What the configurations' scores are not all of, in one line: test cells, genes, entries, folds."""
    key = judged_by(group)
    judged = [c for c in group.configurations if any(run.scores for run in c.runs)]
    if len({frozenset(key(run) for run in c.runs if run.scores) for c in judged}) < 2:
        return []
    parts = []
    for name in _known_to_all(group):
        values: dict[tuple[str, ...], list[Configuration]] = {}
        for configuration in judged:
            values.setdefault(_values(configuration, name), []).append(configuration)
        if len(values) > 1:
            said = "; ".join(f"{', '.join(value)} ({_names(members)})" for value, members in values.items())
            parts.append(f"{name}: {said}")
    said = ". ".join(parts) or "the same seeds do not go with the same cells"
    return [
        f"{group.title}: scores are not of the same cells, genes or entries, so differences between them are not of the methods "
        f"alone. {said[0].upper()}{said[1:]}."
    ]


def _values(configuration: Configuration, name: str) -> tuple[str, ...]:
    values = {run.judged.get(name) for run in configuration.runs if run.scores}
    shown = (format_number(v) if isinstance(v, int | float) else str(v) for v in values)
    return tuple(sorted(v[:12] if _HASH.fullmatch(v) else v for v in shown))


def baseline_warnings(group: Group, found: Sequence[Comparison]) -> list[str]:
    """Baselines that do not say the same of what, by the files, are the same cells."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for comparison in found:
        if comparison.differing:
            tables.setdefault(comparison.differing, []).append(comparison.title)
    return [
        f"{group.title} ({', '.join(titles)}): not all runs give the same scores to {some(names)}, though the cells that they name "
        "are the same: these baselines stand more than once. The runs read other values or features, or fitted the baselines to "
        "other training cells."
        for names, titles in tables.items()
    ]


def run_remarks(groups: Sequence[Group]) -> list[str]:
    """What is odd about single runs, and about runs that count as seeds of one configuration."""
    lines = [f"{run.name} {remark}" for group in groups for run in group.runs for remark in run.remarks]
    for group in groups:
        for configuration in group.configurations:
            seeds = [seed for seed in configuration.seeds if seed is not None]
            twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
            if twice:
                lines.append(
                    f"{configuration.name}: {counted(len(seeds), 'runs')} have the same settings, but not seeds of their own (seed "
                    f"{', '.join(map(str, twice))} more than once); their range is not that over seeds."
                )
    return lines


def machine_remarks(groups: Sequence[Group]) -> list[str]:
    """Speeds are compared only on one machine, and numbers best within one version."""
    runs = [run for group in groups for run in group.runs]
    lines = []
    for what, read in (("machines", _machine), ("versions of expresser or torch", _versions)):
        values = {value for run in runs if (value := read(run)) is not None}
        if len(values) > 1:
            said = "; ".join(sorted(values)[:_SHOWN])
            effect = "times and speeds are not comparable" if what == "machines" else "scores may differ for that alone"
            lines.append(f"The runs are of {len(values)} {what} ({said}): {effect}.")
    return lines


def _machine(run: Run) -> str | None:
    machine: Mapping[str, Any] = run.provenance.get("machine") or {}
    if not machine:
        return None
    device = machine.get("accelerator") or f"{machine.get('cpus')} CPUs"
    return f"{device}, {counted(int(machine.get('torch_threads') or 0), 'threads')}"


def _versions(run: Run) -> str | None:
    versions: Mapping[str, Any] = run.provenance.get("versions") or {}
    there = [f"{name} {versions[name]}" for name in ("expresser", "torch") if versions.get(name)]
    return ", ".join(there) or None


def _names(configurations: Sequence[Configuration]) -> str:
    return some([configuration.name for configuration in configurations])


def some(names: Sequence[str]) -> str:
    """The first few, and how many more."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
