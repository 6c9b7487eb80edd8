"""The numbers behind drawings that count: what a report's Figure offers as CSV where its points are too many to list."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from jaxtyping import Num
from matplotlib.axes import Axes

from expresser import plots


def hexagons(
    truth: Num[np.ndarray, " entries"],
    prediction: Num[np.ndarray, " entries"],
    *,
    xlabel: str = "measured",
    ylabel: str = "predicted",
    bins: int = 60,
) -> pd.DataFrame:
    """The hexagons that `plots.density_scatter_axes` draws of the same arguments: middle, and number of entries inside.

    Columns `xlabel`, `ylabel` and "entries"; hexagons without entries have no row.
    """
    drawn: list[pd.DataFrame] = []

    def draw(ax: Axes) -> None:
        plots.density_scatter_axes(ax, truth, prediction, bins=bins)
        if ax.collections:
            cloud = ax.collections[0]
            middles = np.asarray(cloud.get_offsets())
            entries = np.asarray(cloud.get_array()).astype(int)
            drawn.append(pd.DataFrame({xlabel: middles[:, 0], ylabel: middles[:, 1], "entries": entries}))

    plots.figure(draw)
    return drawn[0] if drawn else pd.DataFrame({xlabel: [], ylabel: [], "entries": []})


def histogram(
    groups: Mapping[str, Num[np.ndarray, " values"]], *, bins: int = 50, logx: bool = False, density: bool = False
) -> pd.DataFrame:
    """What `plots.hist_axes` draws of the same arguments: columns "from" and "to", the ends of a bin, and each group's height."""
    edges, heights = plots.binned(groups, bins=bins, logx=logx, density=density)
    return pd.DataFrame({"from": edges[:-1], "to": edges[1:], **heights})
