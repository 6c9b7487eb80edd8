"""One run as a comparison sees it, whatever wrote it: what it is, what it was set to, judged by what, and its numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from expresser.comparison.scores import Score
from expresser.readable import Number

Values = Mapping[str, Mapping[str, Any]]  # method -> score -> number


class NotComparable(Exception):
    """What a folder is instead of a run that can be compared, in words."""


@dataclass(frozen=True)
class Scores:
    """One table of a run: its own methods (often one) and what they were compared with."""

    title: str
    columns: tuple[Score, ...]
    own: Values
    others: Values


@dataclass(frozen=True, eq=False)
class Trace:
    """A quantity that a run logged, to be drawn against each of the columns `xs` of the frame; traces of one title share axes.

    noisy: neighbouring values differ by what was drawn, so that only medians of stretches are worth a line.
    """

    title: str
    y: str
    xs: tuple[str, ...]
    frame: pd.DataFrame
    reference: tuple[str, float] | None = None
    noisy: bool = False


@dataclass(frozen=True, eq=False)
class Run:
    """A run that was read back.

    Parameters
    ----------
    section
        Runs of one section are compared with one another.
    about
        What was run: a recipe, a system, a task.
    settings
        Every option by its dotted name, but for the seed.
    data
        What identifies the data, by what it is of (a hash, an id); what is not known is not there.
    judged
        What identifies the cells, genes or entries that scores are of.
    facts
        What it cost and how large it was.
    """

    path: Path
    name: str
    section: str
    about: str
    seed: int | None
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    judged: Mapping[str, Any]
    scores: tuple[Scores, ...]
    traces: tuple[Trace, ...] = ()
    facts: Mapping[str, Number | None] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    finished: bool = True
    remarks: tuple[str, ...] = ()


def present(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are known."""
    return {name: value for name, value in facts.items() if value is not None}


def contradicted(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Facts that both know and that differ."""
    return [name for name in a if name in b and a[name] != b[name]]
