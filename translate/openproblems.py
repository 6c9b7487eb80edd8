"""Open Problems' predict-modality task: three files in, one prediction out, so that the benchmark can run our systems."""

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Int64

from expresser.regions import Regions
from translate.affine import Affine
from translate.data import read_study
from translate.openproblems_files import Task, UnsupportedPair, read_task, write_prediction
from translate.reading import read_measured
from translate.splits import Split, split_by_column, split_random
from translate.study import Measured, Modality, Study

__all__ = ["UnsupportedPair", "run"]

_FEWEST_BATCHES = (
    3  # from here on whole batches are held out to validate, as the benchmark holds out whole batches to test
)
_HELD_OUT = 0.15


def run(
    train_mod1: str | Path,
    train_mod2: str | Path,
    test_mod1: str | Path,
    output: str | Path,
    *,
    system: str = "babel",
    preset: str | None = None,
    config: Any = None,
    method_id: str | None = None,
    modalities: tuple[str, str] | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    fit: Callable[..., Any] | None = None,
    **more: Any,
) -> Path:
    """Fit a system on the training files, predict mod2 of the test cells, and write `output`; returns its path.

    Systems predict ln(1 + expression at the median library), probabilities of being open, or centred log-ratios, while the
    task asks for layers["normalized"], whatever made it. No formula leads from one to the other (an expectation of a
    logarithm is not the logarithm of an expectation; how peaks and proteins were normalised is the data set's affair), so
    a line for each feature is fitted from predictions to layers["normalized"] of training cells: slopes on those held
    out from training, means from all, the result kept inside the range seen in training (`translate.affine.Affine`). It
    adds no information about cells: within a feature, but for the clipping, the ranks of cells are the system's. Features
    that the system does not model are given their training mean.

    Parameters
    ----------
    train_mod1, train_mod2, test_mod1
        See `translate.openproblems_files.read_task`.
    system, preset, config
        What to fit; without `config`, the system's own (or the preset's) less its filters of cells, genes and peaks: the
        task scores every feature of mod2 and every test cell.
    method_id
        What the prediction file calls the method; by default the system's name.
    modalities
        Of mod1 and mod2, for example ("GEX", "ATAC"), where the files do not say it.
    out
        Folder for the fit, kept; None: a temporary one.
    fit
        In place of `translate.fitting.fit`. `more` is passed on to it.

    Raises
    ------
    InputError
        For files that are not the task's.
    UnsupportedPair
        Where the system does not predict mod2 from mod1: a wrapper exits with 99.
    """
    task = read_task(train_mod1, train_mod2, test_mod1, modalities=modalities)
    if fit is None:
        from translate import fitting  # here: torch and all systems

        fitter: Callable[..., Any] = fitting.fit
        config = _whole(system, preset, config, task)
    else:
        fitter = fit
    sources: dict[Modality, AnnData] = {task.source: task.train, task.to: task.train_to}
    study = read_study(**sources, check_pairing=False)
    split = held_out(study, seed)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "fit" if out is None else Path(out)
        fitted = fitter(system, study, split=split, out=folder, config=config, seed=seed, **more)
        columns = matching(study.measured[task.to], fitted.inputs[task.to].var, task.to)
        known = fitted.predict(study.of(task.source, np.arange(study.n_cells)), source=task.source, to=task.to)
        line = Affine.fit(known, task.target, columns, split.valid)
        asked = read_measured(task.test, task.source)
        predicted = line.apply(fitted.predict(asked, source=task.source, to=task.to))
    return write_prediction(output, task, predicted, method_id or system)


def held_out(study: Study, seed: int) -> Split:
    """Training and validation cells: whole batches where there are at least three, else at random; no test cells."""
    shares = (1 - _HELD_OUT, _HELD_OUT, 0.0)
    if "batch" in study.obs and study.obs["batch"].notna().all() and study.obs["batch"].nunique() >= _FEWEST_BATCHES:
        return split_by_column(study, "batch", test=[], shares=shares, seed=seed)
    return split_random(study, shares=shares, seed=seed)


def matching(target: Measured, var: pd.DataFrame, modality: Modality) -> Int64[np.ndarray, " targets"]:
    """For each feature to be predicted, the number of the model's feature that stands for it; -1: none.

    By name; a peak of another name goes with the model's peak that it overlaps (merged peaks), the first of several.
    """
    if modality != "atac":
        return var.index.get_indexer(target.var.index).astype(np.int64)
    wanted, own = Regions.from_var(target.var, where=target.name), Regions.from_var(var, where="the model")
    found = pd.Index(own.names()).get_indexer(pd.Index(wanted.names())).astype(np.int64)
    overlaps = wanted.overlaps(own)
    overlaps.sort_indices()
    lost = np.flatnonzero((found < 0) & (np.diff(overlaps.indptr) > 0))
    found[lost] = overlaps.indices[overlaps.indptr[lost]]
    return found


def _whole(system: str, preset: str | None, config: Any, task: Task) -> Any:
    """The configuration without filters, after a check that the system goes this way."""
    from translate.fitting import configuration
    from translate.registry import SYSTEMS

    chosen = configuration(system, preset, config)
    if (task.source, task.to) not in SYSTEMS[system].published.directions:
        ways = ", ".join(f"{a} to {b}" for a, b in SYSTEMS[system].published.directions)
        raise UnsupportedPair(f"{system} does not predict {task.to} from {task.source}; it goes {ways}.")
    if config is not None:
        return chosen
    rna = replace(chosen.rna, min_genes=0, max_genes=None, autosomes=False)
    atac = replace(chosen.atac, autosomes=False, min_cells=1, max_share=1.0, merge=False)
    return replace(chosen, rna=rna, atac=atac)
