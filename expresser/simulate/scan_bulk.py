"""Bulk profiles that single cells are drawn from: the signal of every cell type in every region, simulated or from a file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float64

from expresser.errors import InputError
from expresser.regions import Regions
from expresser.simulate.genome import MadeGenome

BACKGROUND = "background"  # a column of this name is no type
_STRENGTH_SD = 1.0  # of the log of a peak's signal
_BACKGROUND_SD = 0.5  # of the log of a region's share of the background
_SEPARATORS = {".tsv": "\t", ".tab": "\t", ".txt": "\t", ".csv": ","}


@dataclass(frozen=True, eq=False)
class Bulk:
    """Signal (not negative; 0: no peak of this type) of regions x types, and the background that all types share."""

    signal: pd.DataFrame = field(repr=False)  # index: region names; columns: types
    var: pd.DataFrame = field(repr=False)  # chrom, start, end of the regions
    background: Float64[np.ndarray, " regions"] = field(repr=False)


def simulate_bulk(
    rng: np.random.Generator,
    genome: MadeGenome,
    types: Sequence[str],
    twins: tuple[int, int] | None,
    *,
    open_share: float | int,
    flips: float | int,
    twin_flips: float | int,
) -> Bulk:
    """A shared set of peaks that each type departs from, and one hard pair.

    Of a type, `flips` of the shared peaks are closed and as many other regions are open. The second of the twins departs so
    from the first, by `twin_flips`. A region's strength is its own, the same in every type that has it open.
    """
    var = genome.peaks_table()[["chrom", "start", "end"]]
    strength = np.exp(rng.normal(0, _STRENGTH_SD, len(var)))
    background = np.exp(rng.normal(0, _BACKGROUND_SD, len(var)))
    shared = np.zeros(len(var), bool)
    shared[rng.choice(len(var), max(round(open_share * len(var)), 1), replace=False)] = True
    opened = [_departed(rng, shared, flips) for _ in types]
    if twins is not None:
        opened[twins[1]] = _departed(rng, opened[twins[0]], twin_flips)
    signal = pd.DataFrame(
        np.where(np.stack(opened, axis=1), strength[:, None], 0.0), index=var.index, columns=list(types)
    )
    return Bulk(signal, var, background / background.sum())


def read_bulk(path: str | Path, rng: np.random.Generator, names: Sequence[str] = ()) -> Bulk:
    """A table whose rows are regions (first column or index: names such as chr1:1000-1500) and whose columns are types.

    `names`: only these columns, in this order. A column "background" gives the background that types share; without one it
    is drawn, as in a simulated profile. Read are .parquet, and .tsv, .tab, .txt, .csv with .gz or without.
    """
    path = Path(path)
    table = _read(path)
    var = _regions(path, table.index)
    for column in table.columns:
        _prove_signal(path, table[column])
    if BACKGROUND in table:
        background = table.pop(BACKGROUND).to_numpy(np.float64)
    else:
        background = np.exp(rng.normal(0, _BACKGROUND_SD, len(var)))
    if missing := [name for name in names if name not in table]:
        raise InputError(
            f"{path}: has no column {', '.join(map(repr, missing))}; its types are {', '.join(map(repr, table.columns[:20]))}. "
            "Name types that it has."
        )
    signal = table[list(names)] if names else table
    signal.index = var.index
    return Bulk(signal.astype(np.float64), var, background / background.sum())


def _departed(rng: np.random.Generator, opened: np.ndarray, share: float) -> np.ndarray:
    """The same, but for this share of what is open, and as many regions of what is not."""
    n = min(round(share * opened.sum()), int((~opened).sum()))
    out = opened.copy()
    out[rng.choice(np.flatnonzero(opened), n, replace=False)] = False
    out[rng.choice(np.flatnonzero(~opened), n, replace=False)] = True
    return out


def _read(path: Path) -> pd.DataFrame:
    suffix = (Path(path.stem).suffix if path.suffix.lower() == ".gz" else path.suffix).lower()
    if suffix not in (*_SEPARATORS, ".parquet"):
        raise InputError(
            f"{path}: its name does not say what it is. Bulk profiles are read from .parquet and {', '.join(_SEPARATORS)} "
            "(text also as .gz)."
        )
    try:
        if suffix == ".parquet":
            table = pd.read_parquet(path)
            if isinstance(table.index, pd.RangeIndex) and len(table.columns):
                table = table.set_index(table.columns[0])
        else:
            table = pd.read_csv(path, sep=_SEPARATORS[suffix], index_col=0)
    except (OSError, EOFError, ValueError) as error:  # parsers' and pyarrow's errors are ValueErrors
        raise InputError(f"{path}: cannot be read as a table ({error}). Give regions x types as {suffix}.") from error
    table.columns = [str(column) for column in table.columns]
    if not len(table) or not len(table.columns):
        raise InputError(
            f"{path}: holds {len(table):,} regions x {len(table.columns)} types. There must be some of both."
        )
    if twice := sorted(table.columns[table.columns.duplicated()]):
        raise InputError(f"{path}: the column {twice[0]!r} is there twice. Name every type once.")
    return table


def _regions(path: Path, index: pd.Index) -> pd.DataFrame:
    regions = Regions.parse(index.astype(str), where=str(path))
    if (twice := regions.duplicated()).any():
        raise InputError(f"{path}: the region {regions.names()[twice][0]} is there twice. Name every region once.")
    return regions.to_frame()


def _prove_signal(path: Path, column: pd.Series) -> None:
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    bad = ~np.isfinite(numbers) | (numbers < 0)
    if bad.any():
        first = int(np.argmax(bad))
        raise InputError(
            f"{path}: column {column.name!r} holds {str(column.iloc[first])!r} (region {column.index[first]}; {int(bad.sum()):,} "
            "such). Signals are numbers, 0 or more."
        )
    if not numbers.any():
        raise InputError(f"{path}: column {column.name!r} is 0 everywhere: nothing can be drawn. Leave it out.")
