"""A grid of configurations: values written as text, parsed by the type of the field they are for; one trial for each combination."""

import dataclasses
import difflib
import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from expresser.errors import InputError

Value: TypeAlias = bool | int | float | str | None
Grid: TypeAlias = Mapping[str, tuple[Value, ...]]
# Of validation cells, by which trials are ranked: the names are those of metrics.json, where translation and transfer are means.
Score: TypeAlias = Literal[
    "translation",
    "pearson_gene",
    "pearson_protein",
    "auroc_peak",
    "auprnorm_peak",
    "pseudobulk_type_pearson",
    "foscttm",
    "closest_jaccard",
    "transfer",
    "mixing",
]
LOWER: tuple[Score, ...] = ("foscttm",)  # is better

_LONGEST = 120  # letters of a trial's name, which is a folder's


@dataclass(frozen=True)
class Trial:
    """One combination: `values` by dotted name, and the configuration they make."""

    name: str
    values: Mapping[str, Value]
    config: Any


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, type) of all that can be set in a configuration: "latent", "rna.min_genes"."""
    hints = get_type_hints(type(config))
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{each.name}.")
        else:
            yield f"{prefix}{each.name}", hints[each.name]


def parse_grid(config: Any, words: Sequence[str]) -> Grid:
    """``["latent=10,25", "beta=0,0.5"]`` as values of the configuration's own types, in the order given, each once.

    InputError for a name that the configuration does not have, or a value that its type cannot be.
    """
    known = dict(fields_of(config))
    grid: dict[str, tuple[Value, ...]] = {}
    for word in words:
        name, equals, given = word.partition("=")
        if not equals or not all(texts := given.split(",")):
            raise InputError(f"--grid {word}: write NAME=VALUE,VALUE, such as latent=10,25,50 or rna.min_genes=0,200.")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or list(known)
            raise InputError(
                f"--grid {word}: there is no option {name!r}; {'near are' if near != list(known) else 'there are'} "
                f"{', '.join(near)}."
            )
        if name in grid:
            raise InputError(f"--grid: {name} is given twice. Give all its values at once: {name}=VALUE,VALUE.")
        grid[name] = tuple(dict.fromkeys(_parsed(text, known[name], f"--grid {name}={text}") for text in texts))
    if not grid:
        raise InputError("--grid: name what is to be varied and its values, such as latent=10,25,50 beta=0,0.5,1,2.")
    return grid


def trials(config: Any, grid: Grid, *, random: int | None = None, seed: int = 0) -> tuple[Trial, ...]:
    """All combinations, the last name varying fastest, or `random` of them, drawn by the seed, in the same order."""
    if random is not None and random < 1:
        raise InputError(f"--random {random}: draw one combination at least.")
    count = math.prod(map(len, grid.values()))
    numbers: Sequence[int] = range(count)
    if random is not None and random < count:
        drawn: set[int] = set()
        generator = Random(seed)  # of its own; the count may exceed what numpy can draw from
        while len(drawn) < random:
            drawn.add(generator.randrange(count))
        numbers = sorted(drawn)
    found = []
    for number in numbers:
        values: dict[str, Value] = {}
        for name in reversed(list(grid)):
            number, at = divmod(number, len(grid[name]))
            values = {name: grid[name][at]} | values
        found.append(Trial(trial_name(values), values, with_values(config, values)))
    return tuple(found)


def with_values(config: Any, values: Mapping[str, Value]) -> Any:
    """The configuration with these options, dotted, set: all at once, since one may be refused without another."""
    inner: dict[str, dict[str, Value]] = {}
    for name, value in values.items():
        first, dot, rest = name.partition(".")
        if dot:
            inner.setdefault(first, {})[rest] = value
    own = {name: value for name, value in values.items() if "." not in name}
    return dataclasses.replace(config, **own, **{n: with_values(getattr(config, n), v) for n, v in inner.items()})


def trial_name(values: Mapping[str, Value]) -> str:
    """A folder's name made of the values, the same whatever the order of their names."""
    said = "_".join(f"{name}={shown(values[name])}" for name in sorted(values))
    name = re.sub(r"[^A-Za-z0-9.=+-]", "_", said)
    if len(name) <= _LONGEST and name == said:
        return name
    return f"{name[:_LONGEST]}-{hashlib.sha256(said.encode()).hexdigest()[:8]}"


def shown(value: Value) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _parsed(text: str, hint: Any, where: str) -> Value:
    """Text as the first of the types that it can be: None, a named choice, truth, whole, decimal, text."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    choices = [choice for option in options if get_origin(option) is Literal for choice in get_args(option)]
    if NoneType in options and text.lower() == "none":
        return None
    if text in choices:
        return text
    if bool in options and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        if kind in options:
            try:
                number = kind(text)
            except ValueError:
                continue
            if math.isfinite(number):
                return number
    if str in options:
        return text
    words = {int: "a whole number", float: "a number", bool: "true or false", NoneType: "none"}
    can_be = [*map(str, choices), *(said for kind, said in words.items() if kind in options)]
    if not can_be:
        raise InputError(f"{where}: this option is not one value, and cannot be in a grid. Set it for all: --config.…")
    raise InputError(f"{where}: {text!r} is not {' or '.join(can_be)}.")
