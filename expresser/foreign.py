"""Files of a folder from elsewhere: which may be opened, and JSON read from them within bounds of size, depth and meaning.

A folder that somebody else made (a model, a run, a corpus) may hold anything. Nothing in it chooses what is read beside it, no file
costs more memory than its kind needs, and text means one thing only.
"""

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from expresser.errors import InputError

SMALL = 4 << 20  # bytes of a configuration or a record
LARGE = 256 << 20  # bytes of a list of genes or peaks, or of a log
VALUES = 5_000_000  # in one JSON text: a list of these, each as short as can be, takes some 400 MB
DEPTH = 32  # mappings within mappings; what this program writes has seven
Kinds = type | tuple[type, ...]
_DIGITS = 64  # of one whole number
_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]{1,255}")


def is_plain_name(name: object) -> bool:
    """Whether `name` is that of a file in the folder itself on any system: no path, no `..`, no hidden file, no drive."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and not name.startswith(".")


def file_in(folder: Path, name: str, *, most: int | None = None) -> Path:
    """The file `name` of a folder, which lies in it and has at most `most` bytes.

    A link is followed where it leads to another file of the folder, or from a snapshot of the hub's cache to the blobs of the same
    repository, as that cache is made. One that leads elsewhere would let whoever made the folder choose what of this machine is
    read, and with a push, sent. The folder itself may be a link: that is its owner's choice.

    Raises
    ------
    InputError
        If there is no such file, it is no plain file (a folder, a device, a pipe), lies elsewhere or is larger.
    """
    path = folder / name
    try:
        home, real = folder.resolve(strict=True), path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, in some versions of Python
        raise InputError(
            f"{path}: there is no such file ({type(error).__name__}). Copy the whole folder again."
        ) from error
    if not real.is_file():
        raise InputError(f"{path}: is no plain file. Copy the whole folder again.")
    allowed = [home]
    if home.parent.name == "snapshots":  # …/models--org--name/snapshots/COMMIT/config.json -> ../../blobs/…
        allowed.append(home.parent.parent / "blobs")
    if not any(real.is_relative_to(place) for place in allowed):
        raise InputError(
            f"{path}: is a link to {real}, outside of its folder. A folder that is loaded holds its files itself: put the file "
            "there in place of the link, if you trust both."
        )
    if most is not None and (size := real.stat().st_size) > most:
        raise InputError(f"{path}: {size:,} bytes; a file of this kind has at most {most:,}. It is not read.")
    return path


def read_json(path: Path, *, most: int = SMALL, numbers: bool = True) -> Any:
    """What a JSON file of a folder from elsewhere holds (`file_in`, `parse_json`)."""
    file_in(path.parent, path.name, most=most)
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    return parse_json(text, str(path), numbers=numbers)


def read_mapping(path: Path, *, most: int = SMALL, numbers: bool = True) -> dict[str, Any]:
    """`read_json` of a file that holds a mapping."""
    found = read_json(path, most=most, numbers=numbers)
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds a {type(found).__name__}, not a mapping. Copy it again.")
    return found


def parse_json(text: bytes, where: str, *, numbers: bool = True) -> Any:
    """The value of a JSON text in UTF-8.

    numbers: NaN and the infinities, which Python writes and JSON does not have, are let through.

    Raises
    ------
    InputError
        If it is no JSON, has a key twice (readers differ in which they take), more than `VALUES` values or `DEPTH` levels, or a
        whole number of more than 64 digits.
    """
    if (values := values_in(text)) > VALUES:
        raise InputError(
            f"{where}: holds some {values:,} values, at most {VALUES:,} are read. It is not a file of this program."
        )
    try:
        found = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_int=_whole,
            parse_constant=None if numbers else _no_constant,
        )
    except RecursionError as error:
        raise InputError(
            f"{where}: has more than {DEPTH} levels of lists and mappings. It is not a file of this program."
        ) from error
    except ValueError as error:  # of JSON, of UTF-8, and those raised below
        raise InputError(f"{where}: not readable as JSON ({error}): cut short or altered. Copy it again.") from error
    _prove_depth(found, where)
    return found


def values_in(text: bytes) -> int:
    """At most so many values does a JSON text hold: what can begin one is counted, in words too."""
    return sum(map(text.count, (b",", b"[", b"{")))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} stands twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise ValueError(f"a whole number of {len(digits):,} digits")
    return int(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _prove_depth(found: Any, where: str) -> None:
    level = [found]
    for _ in range(DEPTH):
        level = [
            child
            for held in level
            for child in (held.values() if isinstance(held, dict) else held if isinstance(held, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise InputError(f"{where}: has more than {DEPTH} levels of lists and mappings. It is not a file of this program.")


def prove_types(found: Mapping[str, Any], wanted: Mapping[str, Kinds], where: str) -> None:
    """Each of the fields that is there and not None is of its type (a truth value is no number); else InputError naming it."""
    for key, kind in wanted.items():
        value = found.get(key)
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is None or (isinstance(value, kinds) and not (isinstance(value, bool) and bool not in kinds)):
            continue
        names = " or ".join(one.__name__ for one in kinds)
        raise InputError(f"{where}: {key} is {shortened(value)}, a {names} is needed. Copy it again.")


def prove_fields(found: object, wanted: Mapping[str, Kinds], where: str, *, names: Collection[str] = ()) -> None:
    """`found` is a mapping with all these fields, of these types and whole numbers not negative, and with those of `names`, of any."""
    if not isinstance(found, Mapping):
        raise InputError(f"{where}: is {shortened(found)}, a mapping is needed. Copy it again.")
    if lacking := [key for key in (*wanted, *names) if key not in found or (key in wanted and found[key] is None)]:
        raise InputError(f"{where}: lacks {lacking[0]}. Copy it again.")
    prove_types(found, wanted, where)
    if beyond := [key for key in wanted if isinstance(found[key], int) and not 0 <= found[key] < 2**63]:
        raise InputError(f"{where}: {beyond[0]} is {found[beyond[0]]}, which no count is. Copy it again.")


def shortened(value: object, most: int = 80) -> str:
    """A value as an error names it, on one line and not longer than `most` letters."""
    text = repr(value) if not isinstance(value, list | dict) else f"a {type(value).__name__} of {len(value):,}"
    return text if len(text) <= most else f"{text[: most - 1]}…"


def printable(text: str) -> str:
    """The text for a terminal: characters that would steer it (escape sequences, overprinting, right-to-left marks) are spelled."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}"
        for c in text
    )
