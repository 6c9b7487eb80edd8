"""Runs put together: those on the same data, in them those of one configuration, which differ by their seed alone."""

import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from expresser.comparison.run import Run, contradicted
from expresser.readable import format_number, is_missing

# Options that change neither what is learnt nor what is measured of it.
_INCIDENTAL = frozenset({"log_every", "eval_every", "save_every", "keep_last", "timeout_minutes", "tracker"})
_SHORTEST = 3  # letters of a name that several runs share


@dataclass(frozen=True, eq=False)
class Configuration:
    """Runs of equal settings on the same data."""

    name: str
    runs: tuple[Run, ...]

    @property
    def about(self) -> str:
        """What was run."""
        return self.runs[0].about

    @property
    def settings(self) -> dict[str, Any]:
        """Those of its first run, which are all runs' but for what is incidental."""
        return dict(self.runs[0].settings)

    @property
    def seeds(self) -> list[int | None]:
        """Of its runs, in their order."""
        return [run.seed for run in self.runs]


@dataclass(frozen=True, eq=False)
class Group:
    """Configurations of one section on the same data: their numbers stand in one table."""

    section: str
    title: str
    configurations: tuple[Configuration, ...]

    @property
    def runs(self) -> list[Run]:
        """Of all its configurations."""
        return [run for configuration in self.configurations for run in configuration.runs]


@dataclass(frozen=True)
class Spread:
    """Numbers of several runs: median, least, greatest, and of how many."""

    median: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread | None":
        """None where there is no finite number."""
        there = np.array([v for v in values if np.isfinite(v)], dtype=float)
        if not there.size:
            return None
        return cls(float(np.median(there)), float(there.min()), float(there.max()), int(there.size))


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups in the order of their first runs; each configuration's name is its runs' own."""
    parts: list[list[Run]] = []
    for run in runs:
        for part in parts:
            if part[0].section == run.section and all(_same_data(run, other) for other in part):
                part.append(run)
                break
        else:
            parts.append([run])
    taken: set[str] = set()
    found: list[Group] = []
    for part in parts:
        by_settings: dict[str, list[Run]] = {}
        for run in part:
            by_settings.setdefault(_key(run), []).append(run)
        configurations = []
        for members in by_settings.values():
            name = _name(members, taken)
            taken.add(name)
            configurations.append(Configuration(name, tuple(members)))
        section = part[0].section
        number = sum(group.section == section for group in found)
        several = sum(other[0].section == section for other in parts) > 1
        title = f"{section} · data {number + 1}" if several else section
        found.append(Group(section, title, tuple(configurations)))
    return found


def _same_data(a: Run, b: Run) -> bool:
    """Whether nothing says otherwise; where one does not know its data, it goes with those that do not either."""
    if bool(a.data) != bool(b.data):
        return False
    return not contradicted(a.data, b.data) and (not a.data or bool(a.data.keys() & b.data.keys()))


def _key(run: Run) -> str:
    settled = {k: v for k, v in run.settings.items() if k.rpartition(".")[2] not in _INCIDENTAL and v is not None}
    alone = (
        None if run.seed is not None else str(run.path.resolve())
    )  # without a seed nothing says that two runs are one
    return json.dumps([run.about, settled, alone], sort_keys=True, default=str)


def _name(runs: Sequence[Run], taken: set[str]) -> str:
    """What the names of the runs begin with; of one run, its name."""
    name = runs[0].name
    if len(runs) > 1:
        letters = zip(*(run.name for run in runs), strict=False)
        common = "".join(first for first, *others in itertools.takewhile(lambda of: len(set(of)) == 1, letters))
        if any(run.name[len(common) : len(common) + 1].isdigit() for run in runs):
            common = common.rstrip("0123456789")  # run-10 and run-11 are not of run-1
        common = common.rstrip(" -_./").removesuffix("seed").rstrip(" -_./")
        own = common[runs[0].name.rfind("/") + 1 :]  # beyond the folders above
        name = common if len(own) >= _SHORTEST else f"{name} and {len(runs) - 1} more"
    names = (name, *(f"{name} ({i})" for i in range(2, len(taken) + 3)))
    return next(one for one in names if one not in taken)


def differing(configurations: Sequence[Configuration]) -> pd.DataFrame:
    """Settings that are not the same in all of these, a row each, a column a configuration; none for a single one.

    A setting that a configuration does not have at all (an older version's, another system's) is missing there; options that only
    some have are left out unless all are about the same.
    """
    settings = [configuration.settings for configuration in configurations]
    names = list(dict.fromkeys(name for of in settings for name in of))
    if len({configuration.about for configuration in configurations}) > 1:
        names = [name for name in names if all(name in of for of in settings)]
    rows = {}
    for name in names:
        values = [of.get(name) for of in settings]
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) > 1:
            rows[name] = [_shown(value) for value in values]
    frame = pd.DataFrame.from_dict(rows, orient="index", columns=[c.name for c in configurations])
    return frame.rename_axis("setting")


def _shown(value: Any) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else format_number(value)
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
