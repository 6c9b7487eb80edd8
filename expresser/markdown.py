"""Text of others (names of files, of studies) inside Markdown: shown as it is, whatever it holds."""

import html
import re

# What begins markup inside a line; an HTML tag or entity is escaped as HTML.
_MARKUP = re.compile(r"[\\`*_\[\]|~$]")


def plain(text: object) -> str:
    """`text` on one line, so that Markdown shows its characters: no table cell ends in it, no link or tag begins."""
    words = " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())
    return _MARKUP.sub(r"\\\g<0>", html.escape(words, quote=False))
