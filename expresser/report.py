"""One self-contained HTML page of figures and tables, with what is needed to repeat them.

The page asks nothing of the network (its own security policy forbids it), is read on a phone, on paper and in the dark,
shows the sections of a long page as tabs, and gives each figure as SVG and PNG and its numbers, as each table's, as CSV.
All text is escaped; figures are checked to hold drawings only.
"""

import base64
import gzip
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal
from xml.dom import Node, minidom
from xml.parsers.expat import ExpatError

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from expresser.atomic import write_text
from expresser.errors import InputError
from expresser.readable import Number, format_column, format_number, is_missing
from expresser.record import (
    canonical_json,
    frame_from_metrics,
    plain_json,
    provenance,
    write_metrics,
)

__all__ = [
    "Figure",
    "Section",
    "Table",
    "format_number",
    "frame_from_metrics",
    "provenance",
    "write_metrics",
    "write_report",
]

Best = Literal["min", "max"]

_EMBED_LIMIT = 1_400_000  # bytes; Chromium refuses to save from an address above 2 MB, and base64 adds a third
_TABS = 3  # sections from which on each is a tab; fewer are read faster in one go
_BRIEF = 20  # letters: a column of words no longer than this keeps each on one line
# Elements that only draw. Not among them: script, foreignObject, links, and animations (which could make a link).
_DRAWING = re.compile(
    "svg|g|defs|symbol|use|path|rect|circle|ellipse|line|polyline|polygon|text|tspan|textPath|image|title|desc|style"
    "|clipPath|mask|pattern|marker|linearGradient|radialGradient|stop|filter|fe[A-Za-z]+"
)


@dataclass(frozen=True)
class Figure:
    """A drawing (an `<svg>` element, as `expresser.plots.svg` returns) with its caption and the numbers behind it."""

    title: str
    svg: str
    caption: str = ""
    data: pd.DataFrame | None = None


@dataclass(frozen=True)
class Table:
    """A frame, all rows shown; its index comes first, unless it only numbers the rows.

    best: columns where the least or the greatest value is marked, e.g. {"mae": "min", "pearson": "max"}.
    unranked: rows, by the first level of the index, that are never the best: what is known to be the truth is no competitor.
    """

    title: str
    frame: pd.DataFrame
    caption: str = ""
    best: Mapping[str, Best] = field(default_factory=dict)
    unranked: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Section:
    """A heading, paragraphs (parted by empty lines in `text`) and the figures and tables under them."""

    title: str
    text: str = ""
    items: tuple[Figure | Table, ...] = ()


def write_report(
    path: str | Path,
    *,
    title: str,
    summary: Sequence[tuple[str, Number | str | None]],
    sections: Sequence[Section],
    provenance: Mapping[str, Any],
) -> Path:
    """Write the page and return its path; equal arguments give equal bytes, and a failure leaves what was there.

    summary: (label, value) pairs, the answer at a glance. provenance: what `provenance()` returned, shown last; values
    that are mappings become groups. Raises InputError where a figure is not a plain drawing, or where `Table.best`
    names a column that is not there.
    """
    figures = tables = 0
    views = []
    for number, section in enumerate(sections, 1):
        items = []
        for item in section.items:
            if isinstance(item, Figure):
                figures += 1
                items.append(_figure_view(item, figures))
            else:
                tables += 1
                items.append(_table_view(item, tables))
        paragraphs = [p.strip() for p in re.split(r"\n\s*\n", section.text) if p.strip()]
        views.append({"anchor": f"section-{number}", "title": section.title, "paragraphs": paragraphs, "items": items})
    origin = plain_json(provenance, "provenance")
    single = {key: value for key, value in origin.items() if not isinstance(value, dict)}
    groups = {key: value for key, value in origin.items() if isinstance(value, dict)}
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["csp_hash"] = lambda s: base64.b64encode(hashlib.sha256(str(s).encode()).digest()).decode()
    source, style, script = (
        resources.files("expresser").joinpath(f"report.{kind}").read_text(encoding="utf-8")
        for kind in ("html.j2", "css", "js")
    )
    page = environment.from_string(source).render(
        style=Markup(style),  # safe, like the script: files of this package
        script=Markup(script),
        tabs=len(views) >= _TABS,
        title=title,
        summary=[(label, _shown(value)) for label, value in summary],
        sections=views,
        provenance=({"": single} if single else {}) | groups,
        provenance_link=_data_uri("application/json", canonical_json(origin).encode()),
    )
    return write_text(path, page)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    """Any cell as text: numbers formatted, truth values in words, missing ones as a dash."""
    if is_missing(value):
        return "—"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value)) or "—"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    return format_number(value) if _is_number(value) else str(value)


def _column_view(
    name: str, values: list[Any], best: Best | None, ranked: Sequence[bool] | None = None
) -> dict[str, Any]:
    """A column's cells as (text, sort key, whether best); cells that show the same number as the best are best too."""
    values = [None if is_missing(v) else v for v in values]
    there = [v for v in values if v is not None]
    numeric = bool(there) and all(map(_is_number, there))
    shown = format_column(values) if numeric else [_shown(v) for v in values]
    keys = ["" if v is None else _sort_key(v) if numeric else text for v, text in zip(values, shown, strict=True)]
    top: set[str] = set()
    ranked = [True] * len(values) if ranked is None else ranked
    finite = [i for i, v in enumerate(values) if numeric and v is not None and math.isfinite(v) and ranked[i]]
    if best and finite:
        choose = min if best == "min" else max
        top = {shown[choose(finite, key=lambda i: float(values[i]))]}
    return {
        "name": name,
        "numeric": numeric,
        "look": "number" if numeric else "brief" if all(len(text) <= _BRIEF for text in shown) else "",
        "best": best,
        "cells": [(text, key, text in top and counts) for text, key, counts in zip(shown, keys, ranked, strict=True)],
    }


def _sort_key(value: Any) -> str:
    """The number as the page's script reads it, which spells infinity in full."""
    return repr(float(value)).replace("inf", "Infinity")


def _table_view(table: Table, number: int) -> dict[str, Any]:
    frame, index = table.frame, table.frame.index
    names = [" · ".join(map(str, c)) if isinstance(c, tuple) else str(c) for c in frame.columns]
    for column, direction in table.best.items():
        if column not in names:
            raise InputError(
                f"table {table.title!r}: the best of column {column!r} is asked for, but its columns are "
                f"{', '.join(names) or 'none'}. Name one of those."
            )
        if direction not in ("min", "max"):
            raise InputError(
                f"table {table.title!r}: the best of column {column!r} is {direction!r}. Say 'min' or 'max'."
            )
    heads = []
    if not _only_numbers_rows(frame):
        heads = [
            _column_view("" if name is None else str(name), index.get_level_values(i).tolist(), None)
            for i, name in enumerate(index.names)
        ]
    ranked = [str(row) not in table.unranked for row in index.get_level_values(0)]
    columns = [
        _column_view(name, frame.iloc[:, i].tolist(), table.best.get(name), ranked) for i, name in enumerate(names)
    ]
    anchor = f"table-{number}"
    return {
        "kind": "table",
        "anchor": anchor,
        "number": number,
        "title": table.title,
        "caption": table.caption,
        "columns": heads + columns,
        "heads": len(heads),
        "rows": list(zip(*(c["cells"] for c in heads + columns), strict=True)),
        "tall": len(frame) > 20,
        "wide": len(heads) + len(names) > 5,
        "broad": len(heads) + len(names) > 10,
        "file": f"{anchor}-{_slug(table.title)}",
        "links": _csv_links(frame, f"{anchor}-{_slug(table.title)}"),
    }


def _figure_view(figure: Figure, number: int) -> dict[str, Any]:
    anchor = f"figure-{number}"
    root = _checked_drawing(figure, anchor)
    width = re.match(r"[\d.]+", root.getAttribute("width"))
    name = f"{anchor}-{_slug(figure.title)}"
    return {
        "kind": "figure",
        "anchor": anchor,
        "number": number,
        "title": figure.title,
        "caption": figure.caption,
        "svg": Markup(root.toxml()),  # safe: _checked_drawing lets nothing pass that could run or fetch
        "wide": width is not None and float(width[0]) > 450,
        "file": name,  # the page's script saves the drawing under this name
        "links": [] if figure.data is None else _csv_links(figure.data, name),
    }


def _checked_drawing(figure: Figure, prefix: str) -> minidom.Element:
    """The figure's `<svg>` element, ids made its own with `prefix`; what could run or fetch something is refused."""

    def refusal(what: str) -> InputError:
        return InputError(
            f"figure {figure.title!r}: a report's drawings neither run nor fetch anything, but this SVG {what}. "
            "Pass what expresser.plots.svg returns."
        )

    try:
        root = minidom.parseString(figure.svg.encode()).documentElement
    except ExpatError as error:
        raise refusal(f"is not well-formed XML ({error})") from error
    if root is None or root.tagName != "svg":
        raise refusal(f"begins with {figure.svg[:40]!r}")
    for child in [child for child in root.childNodes if child.nodeName == "metadata"]:
        root.removeChild(child)
    for node in [root, *root.getElementsByTagName("*")]:
        if not _DRAWING.fullmatch(node.tagName):
            raise refusal(f"holds a <{node.tagName}> element")
        for child in list(node.childNodes):
            # XML and HTML read comments and CDATA by different rules: harmless in one, they may be markup in the other.
            if child.nodeType in (Node.COMMENT_NODE, Node.PROCESSING_INSTRUCTION_NODE):
                node.removeChild(child)
            elif child.nodeType == Node.CDATA_SECTION_NODE:
                text = minidom.Text()
                text.data, text.ownerDocument = child.data, child.ownerDocument
                node.replaceChild(text, child)
        sheet = "".join(child.data for child in node.childNodes if node.tagName == "style" and hasattr(child, "data"))
        for name, value in [("", sheet), *node.attributes.items()]:
            link = name.rpartition(":")[2].lower() in ("href", "src")
            if name.lower().startswith("on"):
                raise refusal(f"holds the attribute {name}")
            if (link and not value.startswith(("#", "data:image/"))) or _fetches(value):
                raise refusal(f"refers to {value[:60]!r}")
            # Two drawings on one page may use one id for two things.
            if name == "id":
                node.setAttribute(name, f"{prefix}-{value}")
            elif link and value.startswith("#"):
                node.setAttribute(name, f"#{prefix}-{value[1:]}")
            elif name and "url(" in value.lower():
                node.setAttribute(name, re.sub(r"url\(\s*(['\"]?)#", rf"url(\1#{prefix}-", value, flags=re.IGNORECASE))
    root.setAttribute("role", "img")
    root.setAttribute("aria-label", figure.title)
    return root


def _fetches(css: str) -> bool:
    """Whether a style or attribute names anything outside the page; escapes, which could hide that, count as such."""
    return bool(re.search(r"@import|url\(\s*['\"]?\s*[^#'\"\s]|javascript:|\\", css, re.IGNORECASE))


def _csv_links(frame: pd.DataFrame, name: str) -> list[dict[str, str]]:
    """A link that saves the frame as CSV (6 digits), compressed where a browser refused it; beyond that, a remark."""
    csv = frame.to_csv(index=not _only_numbers_rows(frame), float_format="%.6g", lineterminator="\n").encode()
    if len(csv) <= _EMBED_LIMIT:
        return [{"text": "data (CSV)", "file": f"{name}.csv", "href": _data_uri("text/csv;charset=utf-8", csv)}]
    packed = gzip.compress(csv, mtime=0)
    if len(packed) <= _EMBED_LIMIT:
        return [{"text": "data (CSV, gzip)", "file": f"{name}.csv.gz", "href": _data_uri("application/gzip", packed)}]
    return [{"text": f"data too large to embed ({len(csv) / 1e6:.0f} MB)", "file": "", "href": ""}]


def _only_numbers_rows(frame: pd.DataFrame) -> bool:
    return isinstance(frame.index, pd.RangeIndex) and frame.index.name is None


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48] or "data"
