"""Reading back what a run left in its folder: run.json, metrics.json, log.jsonl, and the provenance inside its page."""

import base64
import binascii
import re
from pathlib import Path
from typing import Any

from expresser import foreign
from expresser.errors import InputError

_LINES = 1_000_000  # of a log
_PROVENANCE = re.compile(r'href="data:application/json;base64,([A-Za-z0-9+/=]+)"')


def read_mapping(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds a mapping; None where there is no such file. InputError where it is damaged (`expresser.foreign`)."""
    return foreign.read_mapping(path, most=foreign.LARGE) if path.exists() else None


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl, none where there is no such file.

    A last line without its newline was cut short by what killed the run, or is being written: it is left out. Any other line
    that is no JSON mapping is an InputError.
    """
    if not path.exists():
        return []
    text = foreign.file_in(path.parent, path.name, most=foreign.LARGE).read_bytes()
    if text.count(b"\n") > _LINES or foreign.values_in(text) > foreign.VALUES:
        raise InputError(
            f"{path}: holds more than {_LINES:,} lines or {foreign.VALUES:,} values. It is no log of a run."
        )
    found: list[dict[str, Any]] = []
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        if not line.strip():
            continue
        entry = foreign.parse_json(line, f"{path}: line {number}")
        if not isinstance(entry, dict):
            raise InputError(f"{path}: line {number} holds a {type(entry).__name__}, not a mapping as a run logs it.")
        found.append(entry)
    return found


def page_provenance(page: Path) -> dict[str, Any]:
    """The provenance that a page of `expresser.report.write_report` carries for programs; nothing where there is none."""
    try:
        text = foreign.file_in(page.parent, page.name, most=foreign.LARGE).read_text(encoding="utf-8")
        found = _PROVENANCE.findall(text)
        plain = foreign.parse_json(base64.b64decode(found[-1]), str(page)) if found else {}
    except (OSError, ValueError, binascii.Error):  # no page, or not one of ours: what it would have told is unknown
        return {}
    return plain if isinstance(plain, dict) else {}
