"""Numbers as people read them: few digits, thousands separators, a true minus, a dash for what is missing."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

Number = float | int | np.number


def format_number(value: Number | None) -> str:
    """One number: 4 significant digits (3 below one), no trailing zeros, integers in full, "—" for None and NaN."""
    if value is None or is_missing(value):
        return "—"
    if isinstance(value, int | np.integer):
        return _signed(f"{int(value):,}")
    v = float(value)
    if math.isinf(v):
        return "∞" if v > 0 else "−∞"
    if v != 0 and not 1e-4 <= abs(v) < 1e7:
        digits, power = f"{v:.2e}".split("e")
        return _signed(f"{digits}e{int(power)}")
    text = f"{v:,.{decimals(v)}f}"
    return _signed(text.rstrip("0").rstrip(".") if "." in text else text)


def format_column(values: Sequence[Number | None]) -> list[str]:
    """Numbers read under one another: one number of decimals, unless that would leave the least under two digits."""
    there = [float(v) for v in values if v is not None and math.isfinite(v)]
    sizes = [abs(v) for v in there if v]
    if all(v.is_integer() and abs(v) < 1e15 for v in there):  # counts, even where a missing one has made floats of them
        return [format_number(v if v is None or not math.isfinite(v) else int(v)) for v in values]
    if max(sizes) >= 1e7 or min(sizes) < 10.0 ** (1 - decimals(max(sizes))):
        return [format_number(v) for v in values]
    places = decimals(max(sizes))
    return [
        format_number(v) if v is None or not math.isfinite(v) else _signed(f"{float(v):,.{places}f}") for v in values
    ]


def counted(n: int, things: str) -> str:
    """A number and what it counts, which is named in the plural: "1 shard", "2,000 shards"."""
    return f"{n:,} {things.removesuffix('s') if n == 1 else things}"


def decimals(v: float) -> int:
    """How many decimals give `v` four significant digits, or three where it is below one."""
    return max(0, (4 if abs(v) >= 1 else 3) - 1 - math.floor(math.log10(abs(v)))) if v else 0


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, NaN, NaT or pandas' NA."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def _signed(text: str) -> str:
    return text.replace("-", "−")
