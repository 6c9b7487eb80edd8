"""What a system was found to be worth, for a notebook: the numbers of metrics.json as a table, a frame and a figure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from expresser.errors import InputError
from expresser.notebook import card
from expresser.plots import bar_axes
from translate.scales import ends
from translate.score_table import score_table
from translate.verdicts import DECIDING, score_name


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """Scores of a model and of the baselines beside it. metrics: as `translate evaluate` writes it to ``metrics.json``."""

    metrics: dict[str, Any]
    report: Path | None = None  # the page, where one was written
    system: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "system", str(self.metrics["system"]))

    @property
    def frame(self) -> pd.DataFrame:
        """A row a method (of translators: a direction and a method), a column a score; the model comes first."""
        rows: dict[Any, Mapping[str, Any]] = dict(self.metrics.get("embeddings", {}))
        for direction in self.metrics.get("directions", ()):
            methods = self.metrics["methods"]
            rows |= {(direction, name): of[direction] for name, of in methods.items() if direction in of}
        numbers = {row: {k: v for k, v in of.items() if isinstance(v, int | float)} for row, of in rows.items()}
        frame = pd.DataFrame.from_dict(numbers, orient="index").dropna(axis=1, how="all").astype(float)
        if isinstance(frame.index, pd.MultiIndex):
            frame.index.names = ["direction", "method"]
        else:
            frame.index.name = "method"
        return frame

    def plot(self, score: str | None = None, direction: str | None = None, *, ax: Axes | None = None) -> Axes:
        """One score of every method as bars, the model in colour.

        Parameters
        ----------
        score
            A column of `frame`; by default what decides (of embeddings the ARI, where there are labels).
        direction
            Of translators: "atac_to_rna" and the like; by default the first.
        ax
            Where to draw; by default a figure of its own.

        Raises
        ------
        InputError
            For a score or a direction that there is not.
        """
        frame = self.frame
        if isinstance(frame.index, pd.MultiIndex):
            ways = list(dict.fromkeys(frame.index.get_level_values(0)))
            direction = direction or ways[0]
            if direction not in ways:
                raise InputError(f"plot: there is no direction {direction!r}; there are {', '.join(ways)}.")
            frame = frame.loc[direction].dropna(axis=1, how="all")
            score = score or DECIDING[ends(direction)[1]][0][0]
        score = score or ("ari" if "ari" in frame else str(frame.columns[0]))
        if score not in frame:
            raise InputError(f"plot: there is no score {score!r}; there are {', '.join(map(str, frame.columns))}.")
        if ax is None:
            from matplotlib import pyplot as plt  # here: only this needs a display

            _, ax = plt.subplots(layout="constrained")
        values = frame[score].dropna().sort_values(ascending=False)
        where = "" if direction is None else f", {direction.replace('_', ' ')}"
        return bar_axes(ax, values, highlight=self.system, xlabel=f"{score_name(score)}{where}")

    def __repr__(self) -> str:
        return score_table(self.metrics)

    def _repr_html_(self) -> str:
        frame = self.frame
        facts = {
            "split": self.metrics.get("split"),
            "test cells": self.metrics["cells"].get("test", self.metrics["cells"].get("judged")),
            "doubts": "; ".join(self.metrics.get("doubts", ())) or None,
            "report": None if self.report is None else str(self.report),
        }
        parts: dict[str, Any] = {}
        if isinstance(frame.index, pd.MultiIndex):
            for direction in dict.fromkeys(frame.index.get_level_values(0)):
                rows = frame.loc[direction].dropna(axis=1, how="all")
                shown = [score for score, _, _ in DECIDING[ends(direction)[1]] if score in rows]
                rows = rows[shown + [c for c in ("pearson_flat", "auroc_flat", "mae") if c in rows]]
                said = self.metrics.get("verdicts", {}).get(direction, {})
                if shown:
                    rows = rows.sort_values(shown[0], ascending=False)
                rows = rows.rename(columns=score_name).round(9) + 0.0  # no -2.6e-17
                parts[direction.replace("_", " ")] = rows.assign(**{"the model": [said.get(m, "") for m in rows.index]})
        else:
            parts["embeddings"] = frame[
                [c for c in frame if not np.all(frame[c] == frame[c].iloc[0]) or len(frame) == 1]
            ]
        return card(f"Scores of {self.system}", facts, parts, opened=True)
