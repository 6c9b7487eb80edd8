"""A system fitted, applied and judged from Python: `fit` and `load` give a `Model`; data are a MuData, AnnData or files."""

import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from expresser.atomic import is_empty
from expresser.errors import InputError
from expresser.plots import curve_axes
from expresser.progress import shown
from translate import fitting
from translate.bridge import Bridge
from translate.cli_options import Arguments, choose_split, doubt_labels, prove_modalities, settled
from translate.data import read_study
from translate.embedding_judging import evaluate_embedder, judge_embedding
from translate.held import Held, split_of
from translate.judging import evaluate_model, judge, page_of_fit
from translate.origin import Origin
from translate.registry import SYSTEMS
from translate.scores import Scores
from translate.splits import Split
from translate.study import DataWarning, Study
from translate.terminal import on_fastest
from translate.translator import Translator

Progress = Any  # a function (done, total, what), True for a bar, False or None for none


def fit(
    system: str,
    data: Any = None,
    *,
    rna: Any = None,
    atac: Any = None,
    protein: Any = None,
    rna_only: Any = (),
    atac_only: Any = (),
    layer: Any = None,
    genes: Any = None,
    out: str | Path | None = None,
    split: str | Split | None = None,
    batch: str | None = None,
    labels: str | None = None,
    preset: str | None = None,
    config: Any = None,
    bridge: Bridge | None = None,
    genome: str | None = None,
    seed: int = 0,
    precision: Literal["no", "bf16"] = "no",
    resume: bool = False,
    check_pairing: bool = True,
    progress: Progress = True,
    **options: Any,
) -> "Model":
    """Fit a system to paired (or partly paired) cells.

    ``fit("babel", mdata, split="donor").translate(rna, to="atac")``. The command line's `translate fit` does the same to files,
    and judges what it has fitted; here `Model.evaluate` does.

    Parameters
    ----------
    system
        A name of `translate.registry.SYSTEMS`: babel, scmog, polarbear, scact, sailer, sailerx.
    data
        A MuData, an AnnData whose ``var["feature_types"]`` tell modalities apart, a file of either, or a `Study`.
    rna, atac, protein, rna_only, atac_only, layer, genes, check_pairing
        As in `translate.data.read_study`, in place of `data` or beside it.
    out
        Folder for the model, its log and its page; None: nothing is kept but the model in memory (`Model.save`).
    split
        "random" (70/15/15), "cluster", a column of obs whose groups stay whole, "all", or a `Split`. By default "all" where the
        system embeds, else "random".
    batch, labels
        Columns of obs: batches, for systems that know them; cell types, for systems that learn from them.
    preset, config, options
        A named configuration, or one of the system's `config_class`; fields of it by name, such as ``latent=16``.
    bridge
        What is taken from a pretrained Expresser.
    genome
        Build of the peaks: they are checked against it, in queries too.
    resume
        Go on with an interrupted fit in `out`.
    progress
        A bar, in a terminal or a notebook; or a function called with (done, total, what).

    Raises
    ------
    InputError
        For what `read_study` and `translate.fitting.fit` refuse, and for options that the system does not have.
    """
    kind, chosen = SYSTEMS.get(system), _with_options(system, preset, config, options)
    given = Arguments(
        out=Path(out or ""),
        config=chosen,
        split=split if isinstance(split, str) else None,
        batch=batch,
        labels=labels,
        bridge=bridge or Bridge(),
    )
    asked = settled(given, system, kind)
    files = {"rna": rna, "atac": atac, "protein": protein, "rna_only": rna_only, "atac_only": atac_only}
    with ExitStack() as stack:
        report = stack.enter_context(shown(progress, f"fit {system}"))
        doubts = stack.enter_context(_doubts())
        study = _study(data, files, layer=layer, genes=genes, check_pairing=check_pairing)
        prove_modalities(study, system, kind)
        doubt_labels(study, asked)
        parts = split if isinstance(split, Split) else choose_split(study, asked, kind.needs if kind else ())
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory())) / "fit"
        config = asked.config
        if getattr(config, "alignment", None) == "elbow":
            from translate.elbow import choose_alignment

            elbow = Path(f"{folder}.elbow")
            config, _ = choose_alignment(study, parts, config, elbow, seed, report, genome=genome, precision=precision)
        fitted = fitting.fit(
            system,
            study,
            split=parts,
            out=folder,
            preset=preset,
            config=config,
            genome=genome,
            seed=seed,
            precision=precision,
            resume=resume,
            origin=_origin(data, files, layer, genes) | {"doubts": doubts},
            progress=report,
        )
        assert fitted is not None  # which only a fit that was told to stop is
        if out is not None and fitting.is_main_process():
            page_of_fit(folder, fitted)
        # As `load` finds it: without the cells that the fit's own filter left out.
        own = split_of(folder, study)
        return _model(on_fastest(fitted), folder, kept=out is not None, study=study, split=own)


def load(model: str | Path) -> "Model":
    """A fitted model: a folder (of a model or of a fit) or a hub id (org/name, org/name@revision)."""
    return Model.load(model)


@dataclass(frozen=True, eq=False, repr=False)
class Model(Translator):
    """A fitted system that can also be judged, and that knows, where it was fitted here, by which cells."""

    folder: Path | None = None  # of its fit, where that was kept
    log: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)  # of training, an entry an epoch
    study: Study | None = field(default=None, repr=False)
    split: Split | None = field(default=None, repr=False)

    @classmethod
    def load(cls, model: str | Path) -> "Model":
        """From a folder (of a model, or of a fit) or a hub id."""
        found = on_fastest(Translator.load(model))
        path = Path(model)
        home = next((p for p in (path, path.absolute().parent) if (p / "split.tsv").is_file()), None)
        return _model(found, home or path, kept=home is not None)

    def evaluate(
        self,
        data: Any = None,
        *,
        rna: Any = None,
        atac: Any = None,
        protein: Any = None,
        rna_only: Any = (),
        atac_only: Any = (),
        layer: Any = None,
        genes: Any = None,
        labels: str | None = None,
        batch: str | None = None,
        baselines: bool = True,
        out: str | Path | None = None,
        seed: int = 0,
        check_pairing: bool = True,
        progress: Progress = True,
    ) -> Scores:
        """Judge it by cells measured in the modalities it translates between (one that embeds: by ATAC), beside baselines.

        Parameters
        ----------
        data, rna, atac, protein, rna_only, atac_only, layer, genes, check_pairing
            Cells to judge by, as in `fit`: all of them. Without any, the test cells of its own fit. Baselines learn from the
            training cells of the fit, where these are at hand: in memory, or in files that are where they were.
        labels
            Column of obs with cell types; by default cell_type, where there is one.
        batch
            Of systems that tell batches apart: the batch that cells are taken for whose own was not trained on; of embeddings:
            the column of obs with batches.
        out
            New folder for metrics.json and report.html.

        Raises
        ------
        InputError
            Where its own test cells are asked for and are not at hand, and for what `read_study` refuses.
        """
        if out is not None and Path(out).exists() and (not Path(out).is_dir() or not is_empty(Path(out))):
            raise InputError(f"{out}: exists. Choose a new folder for out.")
        files = {"rna": rna, "atac": atac, "protein": protein, "rna_only": rna_only, "atac_only": atac_only}
        with shown(progress, "evaluate") as report, _doubts() as doubts:

            def say(words: str) -> None:
                if report is not None:
                    report(0, None, words)

            say("reading")
            own = not any(map(_given, (data, *files.values())))
            if own:
                held = self._own_cells()
            else:
                held = self._other_cells(_study(data, files, layer=layer, genes=genes, check_pairing=check_pairing))
            common: dict[str, Any] = {"label": labels, "seed": seed, "say": say}
            name = str(self.folder or self.name)
            embeds = self.system.embeds
            common["baselines"] = ("usual" if baselines else "none") if embeds else baselines
            common["batch" if embeds else "unknown_batch"] = batch
            if out is not None:
                write: Any = evaluate_embedder if embeds else evaluate_model
                origin = Origin() if own else Origin(**_paths(data, files, layer, genes) or {})
                metrics = write(Path(out), name, self, held, origin, doubts=doubts, **common)
            else:
                score: Any = judge_embedding if embeds else partial(judge, maps=False)
                metrics = score(self, held, **common)[0]
                metrics |= {"system": self.name, "model": name, "doubts": list(dict.fromkeys(doubts))}
        return Scores(metrics, None if out is None else Path(out) / "report.html")

    def curves(self, phase: str | None = None, *, ax: Axes | None = None) -> Axes:
        """The loss of training and validation cells by epoch, of one phase (by default the first).

        Raises
        ------
        InputError
            Where the log of training is not at hand, or there is no such phase.
        """
        phases = list(dict.fromkeys(entry["phase"] for entry in self.log))
        if not phases:
            raise InputError(
                f"curves: the log of this {self.name}'s training is not at hand: load the folder of its fit."
            )
        if phase is not None and phase not in phases:
            raise InputError(f"curves: there is no phase {phase!r}; there are {', '.join(phases)}.")
        entries = [entry for entry in self.log if entry["phase"] == (phase or phases[0])]
        frame = pd.DataFrame(
            {"epoch": [e["epoch"] for e in entries], **{p: [e[p]["loss"] for e in entries] for p in ("train", "valid")}}
        )
        if ax is None:
            from matplotlib import pyplot as plt  # here: only this needs a display

            _, ax = plt.subplots(layout="constrained")
        return curve_axes(ax, frame, "epoch", ["train", "valid"], ylabel=f"loss, {phase or phases[0]}")

    def _own(self) -> tuple[Study, Split]:
        """The cells and the split of its fit."""
        if self.study is not None and self.split is not None:
            return self.study, self.split
        if self.folder is None:
            raise InputError("the folder of its fit, which says which cells were held out, is not at hand.")
        study = Origin.restored(self.run.get("origin", {})).read()
        return study, split_of(self.folder, study)

    def _own_cells(self) -> Held:
        try:
            study, split = self._own()
        except InputError as error:
            raise InputError(
                f"evaluate: no cells were given, and this {self.name}'s own are not at hand: {error}. Give cells: evaluate(mdata)."
            ) from error
        seen, nobody = 0, np.arange(0)
        if not len(split.test):
            if not self.system.embeds:
                raise InputError(f"evaluate: split {split.name!r} has no test cells to judge it by. Give other cells.")
            seen = len(split.train) + len(split.valid)
            split = Split(split.name, nobody, nobody, np.arange(study.n_cells))
        return Held(study, split, seen=seen)

    def _other_cells(self, study: Study) -> Held:
        nobody = np.arange(0)
        split = Split("all cells", nobody, nobody, np.arange(study.n_cells))
        try:
            before = self._own()
        except InputError as error:
            return Held(study, split, without=f"the training cells are not at hand: {error}")
        used = before[0].obs.index[np.concatenate([before[1].train, before[1].valid])]
        return Held(study, split, before, seen=int(study.obs.index.isin(used).sum()))


def _model(
    fitted: Translator, folder: Path, *, kept: bool, study: Study | None = None, split: Split | None = None
) -> Model:
    path = folder / "log.jsonl"
    log = tuple(json.loads(line) for line in path.read_text().splitlines()) if path.is_file() else ()
    parts = {each.name: getattr(fitted, each.name) for each in fields(Translator)}
    return Model(**parts, folder=folder if kept else None, log=log, study=study, split=split)


def _with_options(system: str, preset: str | None, config: Any, options: Mapping[str, Any]) -> Any:
    chosen = fitting.configuration(system, preset, config)
    known = {each.name for each in fields(chosen)}
    if unknown := sorted(set(options) - known):
        raise InputError(f"fit: {system} has no option {', '.join(unknown)}; it has {', '.join(sorted(known))}.")
    return replace(chosen, **options)


def _given(value: Any) -> bool:
    """Whether something is there to be read."""
    return value is not None and not (isinstance(value, list | tuple) and not value)


def _study(data: Any, files: Mapping[str, Any], **how: Any) -> Study:
    if not isinstance(data, Study):
        return read_study(data, **files, **how)
    if given := [name for name, value in files.items() if _given(value)]:
        raise InputError(f"a Study holds all that was read: leave {', '.join(given)} out.")
    return data


def _paths(data: Any, files: Mapping[str, Any], layer: Any, genes: Any) -> dict[str, Any] | None:
    """The arguments of an `Origin`, where everything was read from files; else None."""

    def path(value: Any) -> Any:
        several = isinstance(value, list | tuple)
        if not all(isinstance(one, str | Path) for one in (value if several else [value])):
            raise TypeError
        return tuple(map(str, value)) if several else str(value)

    named = {"mudata": data, **files, "genes": genes}
    try:
        found = {key: path(value) for key, value in named.items() if _given(value)}
    except TypeError:
        return None
    how = ",".join(f"{m}={name}" for m, name in layer.items()) if isinstance(layer, Mapping) else layer
    return found | ({"layer": how} if how else {})


def _origin(data: Any, files: Mapping[str, Any], layer: Any, genes: Any) -> dict[str, Any]:
    """For the record of a run: files with their hashes, or that cells were in memory."""
    paths = None if isinstance(data, Study) else _paths(data, files, layer, genes)
    return (
        {"memory": "cells were given in memory; their hash is that of the study"}
        if paths is None
        else Origin(**paths).plain()
    )


@contextmanager
def _doubts() -> Iterator[list[str]]:
    """Doubts about data: warnings as always, and in the list."""
    doubts: list[str] = []
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, DataWarning):
                doubts.append(str(message))
            usual(message, category, *where, **more)

        warnings.showwarning = show
        yield doubts
