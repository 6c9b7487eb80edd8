"""What happened to a corpus after its build, by its manifest: inputs appended later, and files that a killed append left."""

import re
from pathlib import Path
from typing import Any

_OURS = re.compile(r"obs(-\d{5,})?\.parquet|cells-\d{5,}\.arrow")


def appended(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """Each append, the earliest first: names of its inputs, cells and shards it brought, `to` which corpus_id.

    Of a split or a subset those of the corpus it was cut from, as they were there: the cut may hold fewer of the inputs.
    """
    if "derived_from" in manifest:
        return manifest["derived_from"].get("appended", [])
    parts = manifest.get("appended", [])
    first, found = len(manifest["sources"]) - sum(part["sources"] for part in parts), []
    for part in parts:
        names = [entry["name"] for entry in manifest["sources"][first : first + part["sources"]]]
        found.append({"inputs": names, "cells": part["cells"], "shards": part["shards"], "to": part["to"]})
        first += part["sources"]
    return found


def leftovers(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files named like a corpus's own that the manifest does not name: of an append killed before or after its last step."""
    named = {entry["file"] for entry in (manifest["obs"], *manifest["shards"])}
    return sorted(path.name for path in folder.iterdir() if _OURS.fullmatch(path.name) and path.name not in named)
