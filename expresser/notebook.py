"""How objects show themselves: the same facts as lines of text, and as a small HTML table where a notebook asks for one.

The HTML has no colour of its own (ink is `currentColor`), no script and no style sheet, so that it reads on light and dark
pages and where a notebook strips what it does not trust; every word of it is escaped.
"""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, TypeAlias

import pandas as pd

from expresser.readable import format_column, format_number

ROWS = 20  # of a table, at most
_BOX = "border:1px solid color-mix(in srgb, currentColor 25%, transparent);border-radius:6px;padding:.5em .9em;"
_CARD = f"{_BOX}display:inline-block;max-width:100%;box-sizing:border-box;overflow-x:auto;text-align:left"
_TABLE = "border-collapse:collapse;margin:.3em 0;background:none"
_CELL = "text-align:left;padding:.1em 1.2em .1em 0;vertical-align:top;background:none;border:0"
_NUMBER = "text-align:right;padding:.1em 1.2em .1em 0;background:none;border:0;font-variant-numeric:tabular-nums"

Part: TypeAlias = str | pd.DataFrame | Sequence[str]


def lines(title: str, facts: Mapping[str, Any]) -> str:
    """Title and facts as text, a fact a line; None is left out."""
    told = {name: _plain(value) for name, value in facts.items() if value is not None}
    width = max(map(len, told), default=0)
    return "\n".join([title, *(f"    {name:<{width}}  {value}" for name, value in told.items())])


def card(title: str, facts: Mapping[str, Any], parts: Mapping[str, Part] | None = None, *, opened: bool = False) -> str:
    """The same as HTML. parts: below the facts, each under its name, folded away or not: a table, a list of lines, a text."""
    rows = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:600;white-space:nowrap">{escape(name)}</th>'
        f'<td style="{_CELL}">{escape(_plain(value))}</td></tr>'
        for name, value in facts.items()
        if value is not None
    )
    folded = "".join(
        f'<details{" open" if opened else ""}><summary style="cursor:pointer">{escape(name)}</summary>{_part(part)}</details>'
        for name, part in (parts or {}).items()
    )
    return f'<div style="{_CARD}"><strong>{escape(title)}</strong><table style="{_TABLE}">{rows}</table>{folded}</div>'


def table(frame: pd.DataFrame, *, most: int = ROWS) -> str:
    """A table as HTML: the index as row heads, numbers to the right, and how many rows are not shown."""
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    head = "".join(
        f'<th scope="col" style="{_NUMBER if right else _CELL};font-weight:600">{escape(str(name))}</th>'
        for name, right in zip(frame.columns, numeric)
    )
    top = frame.head(most)
    columns = [
        format_column(top.iloc[:, i].tolist()) if right else [_plain(value) for value in top.iloc[:, i]]
        for i, right in enumerate(numeric)
    ]
    body = "".join(
        f'<tr><th scope="row" style="{_CELL};font-weight:400">{escape(str(name))}</th>'
        + "".join(
            f'<td style="{_NUMBER if right else _CELL}">{escape(text)}</td>' for text, right in zip(texts, numeric)
        )
        + "</tr>"
        for name, *texts in zip(top.index, *columns)
    )
    more = f'<div style="opacity:.75">and {len(frame) - most:,} more</div>' if len(frame) > most else ""
    return f'<table style="{_TABLE}"><thead><tr><th style="{_CELL}"></th>{head}</tr></thead><tbody>{body}</tbody></table>{more}'


def _part(part: Part) -> str:
    if isinstance(part, pd.DataFrame):
        return table(part)
    if isinstance(part, str):
        return f'<pre style="background:none;color:inherit;margin:.3em 0;white-space:pre-wrap">{escape(part)}</pre>'
    return "".join(f'<div style="margin:.2em 0">{escape(line)}</div>' for line in part)


def _plain(value: Any) -> str:
    """Numbers as people read them, everything else as its text."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "—" if value is None else str(value)
    return format_number(value)
