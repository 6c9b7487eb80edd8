"""How strongly SAILERX is pulled towards RNA: the scaling factor beyond which more pull no longer brings cells nearer to it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64
from matplotlib.axes import Axes

from expresser.atomic import write_text
from expresser.errors import InputError
from expresser.plots import curve_axes, svg
from expresser.report import Figure
from translate import fitting
from translate.fitting import Progress
from translate.sailerx import SailerxConfig
from translate.splits import Split
from translate.study import Study

FACTORS = (1e3, 1e4, 3e4, 1e5, 3e5, 1e6, 3e6, 1e7)
EPOCHS = 20  # after the warm-up, of each factor
SHARE = 0.1


def elbow(
    factors: Float64[np.ndarray, " factors"], local: Float64[np.ndarray, " factors"], *, share: float = SHARE
) -> float:
    """The smallest factor beyond which `local` falls by less than `share` of what it is at the smallest factor.

    factors: ascending. Where it still falls at the end, the largest; `local` need not fall steadily.
    """
    if len(factors) == 0 or (np.diff(factors) <= 0).any():
        raise ValueError(f"factors must ascend: {factors.tolist()}.")
    to_come = local - np.minimum.accumulate(local[::-1])[::-1]
    return float(factors[np.argmax(to_come < share * local[0])])


def choose_alignment(
    study: Study,
    split: Split,
    config: SailerxConfig,
    out: str | Path,
    seed: int = 0,
    progress: Progress | None = None,
    *,
    factors: Sequence[float] = FACTORS,
    epochs: int = EPOCHS,
    share: float = SHARE,
    genome: str | None = None,
    precision: Literal["no", "bf16"] = "no",
) -> tuple[SailerxConfig, pd.DataFrame]:
    r"""`config` with the scaling factor that `elbow` chooses, and what it was chosen from.

    One short fit (the warm-up and `epochs`, one cycle of annealing) for each factor, in a folder of its own under `out`; a fit that
    is there already is not made again, one that was interrupted goes on. All have the same seed and so the same batches.

    Returns
    -------
    config, table
        One row a factor: `train` and `valid`, the final :math:`L_{local}` (mean over pairs, or where the configuration is summed
        their sum in a step) of training and of watched cells, by the first of which is chosen, as it is the training cells that
        are looked at; `reconstruction` of watched cells, nats; `chosen`. Also in ``out/elbow.tsv``.
    """
    out = Path(out)
    if not factors or min(factors) <= 0:
        raise InputError(f"elbow: factors must be above 0, and there must be some; given {list(factors)}.")
    ordered = sorted(set(map(float, factors)))
    each = config.warmup + epochs
    rows = []
    for number, factor in enumerate(ordered):
        short = replace(config, alignment=factor, epochs=epochs, cycle=epochs, patience=None)
        folder = out / f"{factor:g}"
        fitting.fit(
            "sailerx",
            study,
            split=split,
            out=folder,
            config=short,
            genome=genome,
            seed=seed,
            precision=precision,
            resume=True,
            progress=partial(_told, progress, number * each, len(ordered) * each, factor),
        )
        last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])
        rows.append(
            {
                "factor": factor,
                "train": last["train"]["alignment"] / factor,
                "valid": last["valid"]["alignment"] / factor,
                "reconstruction": last["valid"]["reconstruction"],
            }
        )
    table = pd.DataFrame(rows)
    chosen = elbow(table["factor"].to_numpy(), table["train"].to_numpy(), share=share)
    table["chosen"] = table["factor"] == chosen
    if fitting.is_main_process():
        write_text(out / "elbow.tsv", table.to_csv(sep="\t", index=False))
    return replace(config, alignment=chosen), table


def elbow_axes(ax: Axes, table: pd.DataFrame, *, summed: bool = False) -> Axes:
    """The final alignment loss (summed: a sum over the pairs of a step, not their mean) against the factor, and where the elbow is."""
    named = table.rename(columns={"train": "training cells", "valid": "watched cells"})
    curve_axes(
        ax,
        named,
        "factor",
        ["training cells", "watched cells"],
        logx=True,
        xlabel="scaling factor",
        ylabel=f"L_local, {'sum over the pairs of a step' if summed else 'mean over pairs'}",
    )
    ax.axvline(float(table.loc[table["chosen"], "factor"].iloc[0]), color="0.6", linewidth=1.2, linestyle=(0, (4, 3)))
    return ax


def elbow_figure(table: pd.DataFrame, *, share: float = SHARE, summed: bool = False) -> Figure:
    """For a report. share: by which `elbow` chose; summed: as the configuration has it."""
    chosen = float(table.loc[table["chosen"], "factor"].iloc[0])
    caption = (
        f"Chosen: {chosen:g} (the vertical line), beyond which the loss of the training cells falls by less than {share:.0%} of its "
        "value at the smallest factor. More pull would cost what the latent says of peaks and would leave confounders in it."
    )
    return Figure(
        "Scaling factor of the alignment", svg(partial(elbow_axes, table=table, summed=summed)), caption, table
    )


def _told(progress: Progress | None, before: int, most: int, factor: float, done: int, own: int, note: str) -> None:
    if progress is not None:
        progress(before + done, most, f"alignment {factor:g}: {note}")
