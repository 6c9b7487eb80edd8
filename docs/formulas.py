"""LaTeX of docstrings (``.. math::``, ``:math:``) and of pages (a paragraph between ``$$``) becomes MathML, which needs no script.

Named twice in mkdocs.yml: as a hook, for pages, and as an extension of mkdocstrings' Python handler, for docstrings.
"""

import re
import textwrap
from typing import Any

import griffe
from latex2mathml.converter import convert

_DISPLAYED = re.compile(r"^( *)\.\. math::(.*\n(?:(?:\1 +\S.*|[ \t]*)\n)*)", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]+)`")
_PARAGRAPH = re.compile(r"^\$\$\n?(.+?)\n?\$\$$", re.MULTILINE | re.DOTALL)


def displayed(latex: str) -> str:
    """A formula on lines of its own."""
    return f'<div class="formula" style="overflow-x: auto; margin: 1em 0">{_mathml(latex, "block")}</div>'


def typeset(docstring: str) -> str:
    """A docstring with its formulas as MathML."""
    text = _DISPLAYED.sub(lambda found: f"{found[1]}{displayed(textwrap.dedent(found[2]))}\n\n", docstring + "\n")
    # In a span: Markdown ends a paragraph at a line that begins with <math>.
    return _INLINE.sub(lambda found: f"<span>{_mathml(found[1], 'inline')}</span>", text).rstrip("\n")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Formulas of a page, each a paragraph that begins and ends with two dollars."""
    return _PARAGRAPH.sub(lambda found: displayed(found[1]), markdown)


class Formulas(griffe.Extension):
    """Typesets each docstring that griffe reads."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for each module, class, function and attribute."""
        if obj.docstring is not None:
            obj.docstring.value = typeset(obj.docstring.value)


def _mathml(latex: str, display: str) -> str:
    found = convert(" ".join(latex.split()), display=display)
    # What Markdown would take for emphasis.
    return found.replace("*", "&#x2A;").replace("_", "&#x5F;")
