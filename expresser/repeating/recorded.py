"""The record of a run as somebody's run.json, or .h5ad, holds it: read without believing it, every field of its type."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expresser.errors import InputError
from expresser.foreign import parse_json, prove_types, read_mapping, shortened
from expresser.invocation import THREADS

RECORD = "run.json"
_WORDS = 4096  # of a command line
_LETTERS = 4096  # of one of them
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True)
class Input:
    """What a word of the command named."""

    word: str
    sha256: str
    path: str | None = None
    """Absolute; None of a model of the hub."""
    revision: str | None = None
    """Of a model of the hub: its commit."""


@dataclass(frozen=True)
class Recorded:
    """A command line and the circumstances it ran in."""

    result: Path
    """What it left: a folder, or a file."""
    arguments: tuple[str, ...]
    inputs: tuple[Input, ...]
    environment: Mapping[str, str]
    """Numbers of threads that were set."""
    processes: int
    versions: Mapping[str, str | None]
    machine: Mapping[str, Any]


def read_recorded(run: Path) -> Recorded:
    """The record of a run.

    Parameters
    ----------
    run
        A folder with a run.json, that file, or an .h5ad file that a command of this program wrote.

    Raises
    ------
    InputError
        If there is none, it is damaged, or says no command: a run begun from Python, or by a version that did not keep it.
    """
    if run.suffix == ".h5ad" and run.is_file():
        where, found, result = str(run), _in_anndata(run), run
    else:
        path = run / RECORD if run.is_dir() else run
        if not path.is_file():
            there = "no such file or folder" if not run.exists() else f"no {RECORD} in it"
            raise InputError(
                f"{run}: {there}. Name the folder of a run, its {RECORD}, or an .h5ad file that a command wrote."
            )
        where, found, result = str(path), read_mapping(path), path.parent
    return _recorded(found, where, result)


def _recorded(found: Mapping[str, Any], where: str, result: Path) -> Recorded:
    prove_types(found, {"provenance": dict}, where)
    of = found.get("provenance") or found  # some records are provenance throughout
    prove_types(of, {"invocation": dict, "versions": dict, "machine": dict}, where)
    told = of.get("invocation")
    if told is None:
        raise InputError(
            f"{where}: does not hold the words of its command: the run was begun from Python, or by a version of this program that "
            f"did not keep them{_old_command(of)}."
        )
    kinds = {"arguments": list, "environment": dict, "processes": int, "inputs": dict}
    prove_types(told, kinds, where)
    arguments = tuple(_text(word, "a word of the command", where) for word in told.get("arguments") or ())
    if not 0 < len(arguments) <= _WORDS:
        raise InputError(
            f"{where}: a command of {len(arguments):,} words; 1 to {_WORDS:,} are read. Copy the record again."
        )
    return Recorded(
        result=result,
        arguments=arguments,
        inputs=tuple(_input(word, held, where) for word, held in (told.get("inputs") or {}).items()),
        environment=_environment(told.get("environment") or {}, where),
        processes=1 if told.get("processes") is None else told["processes"],
        versions={str(k): v if isinstance(v, str) else None for k, v in (of.get("versions") or {}).items()},
        machine=of.get("machine") or {},
    )


def _old_command(of: Mapping[str, Any]) -> str:
    command = of.get("command")
    return f". It says: {shortened(command, 400)}; give that again by hand" if isinstance(command, str) else ""


def _input(word: str, held: object, where: str) -> Input:
    if not isinstance(held, dict):
        raise InputError(
            f"{where}: inputs[{shortened(word)}] is {shortened(held)}, not a mapping. Copy the record again."
        )
    fields = {
        key: _text(held[key], f"{key} of an input", where) for key in ("path", "revision") if held.get(key) is not None
    }
    digest = held.get("sha256")
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise InputError(f"{where}: the sha256 of {shortened(word)} is {shortened(digest)}. Copy the record again.")
    if len(fields) != 1:
        raise InputError(f"{where}: of {shortened(word)} either path or revision is needed. Copy the record again.")
    if not re.fullmatch("[0-9a-f]{40}", fields.get("revision", "0" * 40)):
        raise InputError(
            f"{where}: the revision of {shortened(word)} is {shortened(fields['revision'])}, not a commit of the hub (40 digits of "
            "0-9a-f). Copy the record again."
        )
    return Input(_text(word, "an input", where), digest, **fields)


def _environment(told: Mapping[str, Any], where: str) -> dict[str, str]:
    """Numbers of threads, and nothing else: whoever made the record does not choose what is loaded here."""
    for name, value in told.items():
        if (
            name not in THREADS
            or not isinstance(value, str)
            or not re.fullmatch(r"[0-9]{1,4}(,[0-9]{1,4}){0,3}", value)
        ):
            raise InputError(
                f"{where}: the environment {shortened(name)} = {shortened(value)}; a run is repeated with numbers of threads "
                f"alone ({', '.join(THREADS)}). Take it out if it means nothing."
            )
    return dict(told)


def _text(value: object, what: str, where: str) -> str:
    if not isinstance(value, str) or len(value) > _LETTERS or _CONTROL.search(value):
        raise InputError(
            f"{where}: {what} is {shortened(value)}; it is one line of text of at most {_LETTERS:,} letters. Copy the record again."
        )
    return value


def _in_anndata(path: Path) -> dict[str, Any]:
    """The newest provenance under uns["expresser"]: of the command that wrote the file."""
    import h5py

    traces: list[dict[str, Any]] = []
    try:
        with h5py.File(path, "r") as file:
            root = file.get("uns/expresser")
            for group in () if root is None else (root, *(g for g in root.values() if isinstance(g, h5py.Group))):
                if isinstance(held := group.get("provenance"), h5py.Group):
                    traces.append(_plain(held))
    except (OSError, KeyError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(f"{path}: is not an .h5ad file, or damaged ({error}). Copy it again.") from error
    if not traces:
        raise InputError(
            f'{path}: uns["expresser"] says no command that wrote it. Name a file that a command of this program wrote.'
        )

    def age(trace: dict[str, Any]) -> tuple[str, bool]:
        """When it was written; of commands of one second, the one that names this file is the later."""
        return str(trace.get("time_utc")), f'{path.name}"' in str(trace.get("invocation"))

    newest = max(traces, key=age)
    if isinstance(told := newest.get("invocation"), str):
        newest["invocation"] = parse_json(told.encode(), f"{path}: uns")
    return newest


def _plain(group: Any) -> dict[str, Any]:
    """Texts and numbers of a group, and of the groups in it."""
    import h5py

    found: dict[str, Any] = {}
    for name, held in group.items():
        if isinstance(held, h5py.Group):
            found[name] = {key: one.asstr()[()] for key, one in held.items() if _is_text(one)} | {
                key: int(one[()]) for key, one in held.items() if _is_whole(one)
            }
        elif _is_text(held):
            found[name] = held.asstr()[()]
    return found


def _is_text(held: Any) -> bool:
    import h5py

    return isinstance(held, h5py.Dataset) and held.shape == () and h5py.check_string_dtype(held.dtype) is not None


def _is_whole(held: Any) -> bool:
    import h5py

    return isinstance(held, h5py.Dataset) and held.shape == () and held.dtype.kind in "iu"
