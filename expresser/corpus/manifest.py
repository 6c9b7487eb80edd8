"""The manifest: what a corpus is made of, how it was built, and the id that checkpoints remember it by."""

import hashlib
import json
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import expresser
from expresser.atomic import write_text
from expresser.errors import InputError
from expresser.foreign import LARGE, Kinds, is_plain_name, prove_fields, read_json, shortened

FORMAT = "expresser-corpus"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GENES = "genes.tsv"
OBS = "obs.parquet"

_AGAIN = "Build or copy the corpus again."
# What the manifest must name before anything else in it is looked at.
_KEYS = ("corpus_id", "cells", "nnz", "dtypes", "genes", "obs", "sources", "build", "content", "shards")


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"cells-{number:05d}.arrow"


def canonical_json(value: Any) -> bytes:
    """One spelling for one value: sorted keys, no blanks, ASCII; NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def file_entry(path: Path) -> dict[str, Any]:
    """What the manifest says about a whole file of the corpus folder: name, bytes and sha256."""
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_file(path)}


def identity(manifest: dict[str, Any]) -> dict[str, Any]:
    """The part of a manifest that `corpus_id` is the sha256 of: all that a training run can see of the corpus.

    In: the vocabulary, each source's sha256 in input order with the obs columns asked for (they fix every label), and
    the digest of the rows in their order; of a split or a subset, which of a source's cells it holds being no longer fixed
    by the build, the digest of its labels too. Out: paths, names, times, versions of tools, where shards and record batches
    end. The same inputs and seed therefore give the same id on any machine, folder and version of Arrow.
    """
    return {
        "format": manifest["format"],
        "format_version": manifest["format_version"],
        "genes": manifest["genes"]["vocab_sha256"],
        "sources": [source["sha256"] for source in manifest["sources"]],
        "layer": manifest["build"]["layer"],
        "obs_columns": manifest["build"]["obs_columns"],
        "content": manifest["content"],
    } | ({"labels": manifest["obs"]["labels_sha256"]} if "labels_sha256" in manifest["obs"] else {})


def corpus_id(manifest: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of `identity`."""
    return hashlib.sha256(canonical_json(identity(manifest))).hexdigest()


def features_of(manifest: dict[str, Any]) -> Literal["genes", "regions"]:
    """What the tokens of a corpus are: genes, where the manifest says nothing, or regions of the genome."""
    return "regions" if manifest.get("features") == "regions" else "genes"


def tool_versions() -> dict[str, str]:
    """Versions of what wrote the bytes."""
    tools = ("numpy", "scipy", "pandas", "pyarrow", "anndata", "datasets")
    return {"expresser": expresser.__version__} | {name: metadata.version(name) for name in tools}


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json: called last, when every file it names is complete."""
    write_text(folder / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus folder; InputError when it is missing, no corpus, altered, or of another version."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder. A corpus is a folder with a {MANIFEST}: build one with `corpus build`."
        )
    if not path.is_file():
        raise InputError(
            f"{folder}: no {MANIFEST} in it, so this is no corpus (it holds {_listing(folder)}). "
            "Name the folder that `expresser corpus build --out` wrote."
        )
    manifest = read_json(path, most=LARGE, numbers=False)
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        found = manifest.get("format") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(
            f"{path}: not the manifest of a corpus ('format' is {shortened(found)}, not {FORMAT!r}). "
            "Name the folder that `expresser corpus build --out` wrote."
        )
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: corpus format version {shortened(manifest.get('format_version'))}; this version of expresser "
            f"reads version {FORMAT_VERSION}. Build the corpus again, or use the version of expresser that wrote it "
            f"({_written_by(manifest)})."
        )
    missing = [key for key in _KEYS if key not in manifest]
    if missing:
        raise InputError(
            f"{path}: lacks {', '.join(missing)}. The manifest is damaged: build or copy the corpus again."
        )
    _prove(manifest, path)
    found = corpus_id(manifest)
    if found != manifest["corpus_id"]:
        raise InputError(
            f"{path}: altered after the build: its contents give corpus_id {found[:12]}…, it says "
            f"{str(manifest['corpus_id'])[:12]}…. Build or copy the corpus again."
        )
    return manifest


# What a manifest's parts must hold: readers take memory, offsets and names from them.
_WHOLE: dict[str, Kinds] = {"corpus_id": str, "cells": int, "nnz": int, "content": str}
_WHOLE |= {"dtypes": dict, "genes": dict, "obs": dict, "build": dict}
_FILE: dict[str, Kinds] = {"file": str, "bytes": int, "sha256": str}
_GENES = _FILE | {"n": int, "vocab_sha256": str}
_SHARD = _FILE | {"rows": int, "nnz": int}
_SOURCE: dict[str, Kinds] = {"name": str, "cells": int, "sha256": str}


def _prove(manifest: dict[str, Any], path: Path) -> None:
    """The manifest has the parts that it needs, each of its kind; its files lie in its folder; its sums are its shards'."""
    prove_fields(manifest, _WHOLE, str(path))
    lists = {name: manifest[name] for name in ("sources", "shards")}
    for name, entries in lists.items():
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path}: {name} is {shortened(entries)}, a list of at least one is needed. {_AGAIN}")
    prove_fields(manifest["genes"], _GENES, f"{path}: genes")
    prove_fields(manifest["obs"], _FILE, f"{path}: obs")
    prove_fields(manifest["build"], {}, f"{path}: build", names=("layer", "obs_columns"))
    columns = manifest["obs"].get("columns", [])
    if not isinstance(columns, list) or not all(isinstance(column, str) for column in columns):
        raise InputError(f"{path}: obs: columns is {shortened(columns)}, a list of names is needed. {_AGAIN}")
    parts = [("sources", _SOURCE), ("shards", _SHARD)]
    for name, wanted in parts:
        for number, entry in enumerate(lists[name]):
            prove_fields(entry, wanted, f"{path}: {name}[{number}]")
    for name in ("genes", "counts"):
        if manifest["dtypes"].get(name) not in ("uint16", "uint32"):
            raise InputError(
                f"{path}: dtypes: {name} is {shortened(manifest['dtypes'].get(name))}, not uint16 or uint32. {_AGAIN}"
            )
    files = [entry["file"] for entry in (manifest["genes"], manifest["obs"], *manifest["shards"])]
    for name in files:
        # A manifest from elsewhere must not choose where files are read or written.
        if not is_plain_name(name) or name == MANIFEST:
            raise InputError(
                f"{path}: names a file {shortened(name)}, which no corpus has: files lie in the corpus's folder. {_AGAIN}"
            )
    if len(set(files)) < len(files):
        raise InputError(f"{path}: names one file for two things. {_AGAIN}")
    for key, each in (("cells", "rows"), ("nnz", "nnz")):
        if manifest[key] != (total := sum(entry[each] for entry in manifest["shards"])) or manifest[key] < 1:
            raise InputError(f"{path}: {key} is {manifest[key]:,}, but its shards have {total:,}. {_AGAIN}")


def _written_by(manifest: dict[str, Any]) -> str:
    versions = manifest.get("versions")
    return shortened(versions.get("expresser", "unknown"), 40) if isinstance(versions, dict) else "unknown"


def _listing(folder: Path, most: int = 5) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    if not names:
        return "nothing"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
