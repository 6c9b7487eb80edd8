"""What strangers do to files, for the tests of those who read them: each refusal is one message, in bounded memory and time."""

import contextlib
import json
import os
import pickle
import re
import resource
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from expresser.errors import InputError

SECONDS = 20.0  # of this process's CPU; the refusals take well under one each
MEGABYTES = 768


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._trace),)


@contextlib.contextmanager
def bounded(megabytes: int = MEGABYTES, seconds: float = SECONDS) -> Iterator[None]:
    """In this block the process gets no more memory than `megabytes` beyond what it has, and takes at most `seconds` of CPU."""
    statm = Path("/proc/self/statm")
    before = resource.getrlimit(resource.RLIMIT_AS)
    if statm.exists():  # Linux; elsewhere the time alone is bounded
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), before[1]))
    began = time.process_time()
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - began < seconds


def refused(load: Callable[[], object], *words: str) -> str:
    """`load` raises InputError, in bounded memory and time, in one message with all these words; returns it."""
    with bounded(), pytest.raises(InputError) as caught:
        load()
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 2000
    for word in words:
        assert re.search(word, said), said
    return said


def edit(path: Path, change: Callable[[Any], object]) -> None:
    """Change the value of a JSON file; what `change` returns, if anything, takes its place."""
    value = json.loads(path.read_text())
    made = change(value)
    path.write_text(json.dumps(value if made is None else made))


def set_to(key: str, value: Any) -> Callable[[Any], None]:
    """A change for `edit`: a field by its dotted name."""

    def change(found: Any) -> None:
        *path, last = key.split(".")
        for step in path:
            found = found[int(step) if isinstance(found, list) else step]
        found[int(last) if isinstance(found, list) else last] = value

    return change


def head_of(path: Path) -> tuple[dict[str, Any], bytes]:
    """The head of a safetensors file, and the bytes after it."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_head(path: Path, head: dict[str, Any] | bytes, body: bytes, *, length: int | None = None) -> None:
    """A safetensors file of this head, which claims to be `length` long."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + body)


def _first(head: dict[str, Any]) -> dict[str, Any]:
    return next(entry for name, entry in head.items() if name != "__metadata__")


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Trap(path.parent / "trace")))


def _claims(path: Path, length: int) -> None:
    write_head(path, *head_of(path), length=length)


def _head(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    head, body = head_of(path)
    change(head)
    write_head(path, head, body)


def _eight_bits(head: dict[str, Any]) -> None:
    one = _first(head)
    one.update(dtype="F8_E4M3", shape=[one["data_offsets"][1] - one["data_offsets"][0]])


def _overlap(head: dict[str, Any]) -> None:
    one, two = [entry for name, entry in head.items() if name != "__metadata__"][:2]
    two["data_offsets"] = [
        one["data_offsets"][0],
        one["data_offsets"][0] + two["data_offsets"][1] - two["data_offsets"][0],
    ]


def _twice(path: Path) -> None:
    head, body = head_of(path)
    name = next(name for name in head if name != "__metadata__")
    more = json.dumps({name: head[name] | {"data_offsets": [0, 1 << 60]}})[1:-1]
    write_head(path, (json.dumps(head)[:-1] + "," + more + "}").encode(), body)


def _million(path: Path) -> None:
    head, body = head_of(path)
    empty = {f"x{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(400_000)}
    write_head(path, empty | head, body)


def _replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


# What is done to a safetensors file, and what its readers say.
TENSOR_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (_pickle, "cut short or altered|claims"),
    "nothing": (lambda path: path.write_bytes(b""), "cut short or altered"),
    "eight bytes": (lambda path: path.write_bytes(b"\0" * 8), "cut short or altered"),
    "a head longer than the file": (lambda path: _claims(path, len(path.read_bytes()) + 1), "cut short or altered"),
    "a head of a gigabyte": (lambda path: _claims(path, 1 << 30), r"claims 1,073,741,824 bytes"),
    "a head of 2^63 bytes": (lambda path: _claims(path, 1 << 63), r"claims 9,223,372,036,854,775,808 bytes"),
    "a head one byte short": (
        lambda path: _claims(path, len(json.dumps(head_of(path)[0])) - 1),
        "cut short or altered",
    ),
    "a head that is no JSON": (lambda path: write_head(path, b"{" * 1000, b""), "cut short or altered"),
    "a head of many levels": (lambda path: write_head(path, b'{"a":' * 100_000, b""), "cut short or altered"),
    "a head in no UTF-8": (lambda path: write_head(path, b'{"\xff":1}', b""), "cut short or altered"),
    "a head of lists": (lambda path: write_head(path, b"[1,2]", b""), "cut short or altered"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-4]), "cut short or altered"),
    "more bytes at the end": (lambda path: path.write_bytes(path.read_bytes() + b"more"), "cut short or altered"),
    "numbers beyond the file": (
        lambda path: _head(path, lambda head: _first(head).update(data_offsets=[1 << 40, (1 << 40) + 4])),
        "cut short or altered",
    ),
    "offsets that turn back": (
        lambda path: _head(path, lambda head: _first(head)["data_offsets"].reverse()),
        "cut short or altered",
    ),
    "negative offsets": (
        lambda path: _head(path, lambda head: _first(head).update(data_offsets=[-4, 0])),
        "cut short or altered",
    ),
    "numbers that overlap": (lambda path: _head(path, _overlap), "cut short or altered"),
    "a shape of 10^18": (
        lambda path: _head(path, lambda head: _first(head).update(shape=[10**9, 10**9])),
        "cut short or altered",
    ),
    "a shape that overflows": (
        lambda path: _head(path, lambda head: _first(head).update(shape=[1 << 32, 1 << 32, 1 << 32])),
        "cut short or altered",
    ),
    "a negative shape": (
        lambda path: _head(path, lambda head: _first(head).update(shape=[-1])),
        "cut short or altered",
    ),
    "numbers of eight bits": (lambda path: _head(path, _eight_bits), "of kind F8_E4M3, which are not read"),
    "an unknown type": (
        lambda path: _head(path, lambda head: _first(head).update(dtype="PICKLE")),
        "cut short or altered",
    ),
    "a type of another size": (
        lambda path: _head(path, lambda head: _first(head).update(dtype="F16")),
        "cut short or altered",
    ),
    "a name that stands twice": (_twice, "cut short or altered"),
    "a folder": (lambda path: _replaced(path, Path.mkdir), "no plain file"),
    "a pipe": (lambda path: _replaced(path, os.mkfifo), "no plain file"),
    "a link to a device": (lambda path: _replaced(path, lambda p: p.symlink_to("/dev/zero")), "no plain file"),
    "a link to itself": (lambda path: _replaced(path, lambda p: p.symlink_to(p.name)), "missing|no such file"),
}


def _outside(path: Path) -> None:
    other = path.parent.parent / f"elsewhere-{path.name}"
    path.rename(other)
    path.symlink_to(other)


def _levels(path: Path, opens: bytes, depth: int) -> None:
    path.write_bytes(opens * depth)


def _key_twice(path: Path) -> None:
    text = path.read_text().strip()
    key = next(iter(json.loads(text)))
    path.write_text(f'{{"{key}": null, {text[1:]}')


def _added(path: Path, text: str) -> None:
    path.write_text(f'{{"zzz": {text}, {path.read_text().strip()[1:]}')


# What is done to any JSON file that holds a mapping, and what its readers say.
JSON_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a pickle": (_pickle, "not readable as JSON"),
    "nothing": (lambda path: path.write_bytes(b""), "not readable as JSON"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-10]), "not readable as JSON"),
    "no UTF-8": (lambda path: path.write_bytes(b'{"a": "\xff"}'), "not readable as JSON"),
    "another encoding": (lambda path: path.write_bytes(path.read_text().encode("utf-16")), "not readable as JSON"),
    "a list": (lambda path: path.write_text("[1, 2]"), "not a mapping|a mapping|format None"),
    "a million levels": (lambda path: _levels(path, b"[", 1_000_000), "levels|not readable as JSON"),
    "a hundred levels": (lambda path: _added(path, "[" * 100 + "]" * 100), "more than 32 levels"),
    "a hundred mappings": (lambda path: _added(path, '{"a":' * 100 + "1" + "}" * 100), "more than 32 levels"),
    "a number of a million digits": (lambda path: _added(path, "1" * 1_000_000), "whole number of 1,000,000 digits"),
    "a key twice": (_key_twice, "stands twice"),
    "a file of 300 MB": (lambda path: os.truncate(path, 300 << 20), "has at most"),
    "a link elsewhere": (_outside, "is a link to .*outside"),
    "a pipe": (lambda path: _replaced(path, os.mkfifo), "no plain file|missing"),
    "a link to a device": (lambda path: _replaced(path, lambda p: p.symlink_to("/dev/zero")), "no plain file|missing"),
}
