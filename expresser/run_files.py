"""Reading back what a run left in its folder: run.json, metrics.json, log.jsonl, and the provenance inside its page."""

import base64
import binascii
import json
import re
from pathlib import Path
from typing import Any

from expresser.errors import InputError

_PROVENANCE = re.compile(r'href="data:application/json;base64,([A-Za-z0-9+/=]+)"')


def read_mapping(path: Path) -> dict[str, Any] | None:
    """A JSON file that holds a mapping; None where there is no such file. InputError where it is damaged."""
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise InputError(
            f"{path}: cannot be read as JSON ({error}). Run its command again, or copy it again."
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, not a mapping as a run leaves it.")
    return found


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl, none where there is no such file.

    A last line without its newline was cut short by what killed the run, or is being written: it is left out. Any other line
    that is no JSON mapping is an InputError.
    """
    if not path.is_file():
        return []
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
    except (ValueError, OSError) as error:
        raise InputError(f"{path}: a line cannot be read as JSON ({error}). Copy the run again.") from error
    if strange := [line for line in found if not isinstance(line, dict)]:
        raise InputError(f"{path}: a line holds a {type(strange[0]).__name__}, not a mapping as a run logs it.")
    return found


def page_provenance(page: Path) -> dict[str, Any]:
    """The provenance that a page of `expresser.report.write_report` carries for programs; nothing where there is none."""
    try:
        found = _PROVENANCE.findall(page.read_text(encoding="utf-8"))
        plain = json.loads(base64.b64decode(found[-1])) if found else {}
    except (OSError, ValueError, binascii.Error):  # no page, or not one of ours: what it would have told is unknown
        return {}
    return plain if isinstance(plain, dict) else {}
