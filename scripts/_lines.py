"""Results as JSON lines that a run which was cut off goes on with."""

import json
from pathlib import Path
from typing import Any

from expresser.record import plain_json


def finished(path: Path | None) -> dict[str, dict[str, Any]]:
    """Lines that are there, by their key; those that failed are tried again."""
    if path is None or not path.is_file():
        return {}
    lines = [json.loads(text) for text in path.read_text().splitlines() if text.strip()]
    return {line["key"]: line for line in lines if "key" in line and "failed" not in line}


def write(path: Path, line: dict[str, Any]) -> None:
    """Append a line, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps(plain_json(line)) + "\n")
