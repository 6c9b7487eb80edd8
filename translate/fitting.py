"""Fitting a system to a study: preprocessing from the training cells, phases, the best weights, one folder."""

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Int64

from expresser.atomic import is_empty, remove_folder, write_text
from expresser.checkpoint import Checkpoint
from expresser.errors import InputError
from expresser.one_writer import one_writer
from expresser.processes import this_process
from expresser.record import provenance, write_metrics
from expresser.regions import Regions
from expresser.run_folder import claim
from translate.bridging import embed_cells, pretrained, share_cells, start_from_pretrained, with_pretrained
from translate.calibration import calibrate
from translate.config_rules import prove_config
from translate.feed import Feed, Input
from translate.genomes import check_genome, guess_genome
from translate.preprocess import AtacInput, ProteinInput, RnaInput
from translate.registry import SYSTEMS
from translate.splits import Split
from translate.stored import StoredMatrix
from translate.study import MODALITIES, DataWarning, Modality, Study
from translate.system import System
from translate.trainer import Trainer
from translate.translator import Translator

FEWEST = 20  # training cells

Progress = Callable[[int, int, str], None]


def fit(
    system: str,
    study: Study,
    *,
    split: Split,
    out: str | Path,
    preset: str | None = None,
    config: Any = None,
    genome: str | None = None,
    start: Translator | None = None,
    seed: int = 0,
    precision: Literal["no", "bf16"] = "no",
    resume: bool = False,
    stop_after: int | None = None,
    origin: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Translator | None:
    """Fit a system and leave ``out/model``, ``out/log.jsonl``, ``out/split.tsv`` and ``out/fit.json``.

    Parameters
    ----------
    system
        A name of `translate.registry.SYSTEMS`.
    split
        Cells to learn from, to stop by and to judge by; nothing is learnt from the last two, medians included.
    preset, config
        A named configuration of the system, or one of its `config_class`; with both, `preset` is where `config` began.
    genome
        Build of the peaks ("hg38", …): then they are checked against it, in queries too.
    start
        A fitted translator of the same system whose weights and preprocessing are taken: only phases of modalities that it
        does not know are run (a protein decoder on its frozen latent), and its configuration is the default.
    resume
        Go on with an interrupted fit in ``out``.
    stop_after
        Epochs after which to leave as if killed, for tests; None is returned then.
    origin
        Where the study came from (files and their hashes, say), for ``run.json``.

    Raises
    ------
    InputError
        For an unknown system or preset, a study without what the system needs, too few cells, or a folder that holds
        something else.
    """
    out, main = Path(out), is_main_process()
    with one_writer(out) if main else nullcontext():
        return _fit(
            system,
            study,
            split=split,
            out=out,
            main=main,
            preset=preset,
            config=config,
            genome=genome,
            start=start,
            seed=seed,
            precision=precision,
            resume=resume,
            stop_after=stop_after,
            origin=origin,
            progress=progress,
        )


def _fit(
    system: str,
    study: Study,
    *,
    split: Split,
    out: Path,
    main: bool,
    preset: str | None,
    config: Any,
    genome: str | None,
    start: Translator | None,
    seed: int,
    precision: Literal["no", "bf16"],
    resume: bool,
    stop_after: int | None,
    origin: Mapping[str, Any] | None,
    progress: Progress | None,
) -> Translator | None:
    if start is not None:
        prove_start(system)
    chosen = configuration(system, preset, config if config is not None or start is None else start.system.config)
    for name in ("batch", "label"):
        if (column := getattr(chosen, name, None)) is not None:
            chosen = replace(chosen, **{name: column.settled(study.obs, split.train)})
    record: dict[str, Any] = {
        "system": system,
        "preset": preset,
        "config": asdict(chosen),
        "seed": seed,
        "genome": genome,
        "study": fingerprint(study, split),
        "split": split.name,
        "precision": precision,
        "origin": dict(origin or {}),
        "provenance": provenance(seed=seed),
    }
    checkpoint = None
    if start is not None:
        if chosen.bridge != start.system.config.bridge:
            raise InputError(
                "fit: config.bridge is not that of the model to start from, whose weights are taken. Leave it as "
                "start.system.config.bridge has it, or fit anew without a start."
            )
        record |= _taken_before(start)
    elif resume and (out / "fit.json").is_file():  # what is fitted needs no pretrained model any more
        record |= {k: v for k, v in json.loads((out / "run.json").read_text()).items() if k == "pretrained"}
    elif chosen.bridge.rna_encoder is not None:
        checkpoint, record["pretrained"] = pretrained(chosen.bridge.rna_encoder)

    def claimed() -> None:
        same = ("system", "seed", "genome", "precision", "pretrained")
        claim(out, record, resume=resume, what=f"a fit of {system}", data="study", also=same)

    if main and out.exists() and not (out.is_dir() and is_empty(out)):
        claimed()  # or not, before anything is worked out
    if resume and (out / "fit.json").is_file():
        if main:
            _forget(out / "state")
        return Translator.load(out / "model")
    kind = SYSTEMS[system]
    if lacking := [modality for modality in kind.needs if modality not in study.modalities]:
        raise InputError(f"fit: {system} needs {' and '.join(lacking)}; the study has {', '.join(study.modalities)}.")
    inputs = _inputs(study, split, chosen, genome, start, kind.reads, checkpoint)
    feed = Feed.of(
        study,
        inputs,
        batches=getattr(chosen, "batch", None),
        labels=getattr(chosen, "label", None),
        counts=kind.judges_counts,
    )
    passes = _passing(inputs.get("rna"), study, np.arange(study.n_cells))
    train, valid, test = (cells[passes[cells]] for cells in (split.train, split.valid, split.test))
    if len(valid) < 2 or len(train) < 2:
        raise InputError(
            f"fit: {len(train)} training and {len(valid)} validation cells are left of {len(split.train)} and "
            f"{len(split.valid)} after the cell filter; two of each are needed. Loosen rna.min_genes/rna.max_genes."
        )
    network = build(system, chosen, inputs, seed)
    if checkpoint is not None:
        record["taken"] = start_from_pretrained(network, checkpoint, inputs, chosen.bridge, study, seed)
    feed = replace(feed, reference=network.reference(study, train), raw_inputs=network.raw_inputs)
    network.prepare(feed, train)
    phases = network.phases()
    if start is not None:
        _take_weights(network, start)
        known = set(start.inputs)
        phases = tuple(phase for phase in phases if not set(phase.modalities) <= known)
    if not phases:
        had = "" if start is None else f" that the model to start from does not have ({', '.join(start.inputs)})"
        raise InputError(
            f"fit: {system} has nothing to train on {', '.join(study.modalities)}{had}. Give more modalities."
        )
    feed = embed_cells(network, feed, train, standardise=start is None, say=progress if main else None)
    record |= {
        "cells": {"train": len(train), "valid": len(valid), "test": len(test), "filtered": int((~passes).sum())},
        "trained_on": _mix(feed, train),
        "features": {modality: len(found.var) for modality, found in inputs.items()},
        "left_out": {m: dict(found.left_out) for m, found in inputs.items() if hasattr(found, "left_out")},
    }
    trainer = Trainer(
        network,
        feed,
        train,
        valid,
        seed=seed,
        folder=out,
        precision=precision,
        report=progress if main else None,
        stop_after=stop_after,
    )
    trainer.prove(phases)  # before anything is written
    if main:
        claimed()
        _write_split(out / "split.tsv", study, split, passes)
    log = trainer.run(phases)
    if not trainer.finished:
        return None
    if chosen.calibrated:
        calibrate(network, feed, valid, phases)
    with torch.no_grad():
        network.finish(feed, train)
    fitted = Translator(system, network.cpu(), inputs, record)
    if main:
        fitted.save(out / "model")
        write_metrics(out / "fit.json", _summary(log, record))
        _forget(out / "state")
    trainer.accelerator.wait_for_everyone()
    return fitted


def _forget(state: Path) -> None:
    """The state of a fit that is finished is of no more use."""
    if state.is_dir():
        remove_folder(state)


def configuration(system: str, preset: str | None, config: Any) -> Any:
    """The configuration asked for; InputError for an unknown system or preset, one of another system, or a number none can have."""
    if system not in SYSTEMS:
        raise InputError(f"no system {system!r}; there are {', '.join(SYSTEMS)}.")
    kind = SYSTEMS[system]
    if preset is not None and preset not in kind.presets:
        raise InputError(f"{system} has no preset {preset!r}; there are {', '.join(kind.presets)}.")
    chosen = config or (kind.presets[preset] if preset is not None else kind.config_class())
    if not isinstance(chosen, kind.config_class):
        raise InputError(f"{system} takes a {kind.config_class.__name__}, not a {type(chosen).__name__}.")
    prove_config(chosen)
    return chosen


def prove_start(system: str) -> None:
    """InputError where a fitted model of the system has nothing left to be fitted."""
    if system in SYSTEMS and SYSTEMS[system].embeds:
        raise InputError(
            f"fit: {system} embeds, and takes no model to start from (--start). What is fitted to a model that one starts from are "
            f"phases of modalities that it does not know, and all phases of {system} are of modalities that each of its models "
            "knows. Leave --start out; --resume goes on with an interrupted fit."
        )


def build(system: str, config: Any, inputs: Mapping[Modality, Input], seed: int) -> System:
    """The network, its first weights a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return SYSTEMS[system](config, inputs)


def _inputs(
    study: Study,
    split: Split,
    config: Any,
    genome: str | None,
    start: Translator | None,
    reads: tuple[Modality, ...] = MODALITIES,
    checkpoint: Checkpoint | None = None,
) -> dict[Modality, Input]:
    found: dict[Modality, Input] = {} if start is None else dict(start.inputs)
    train = split.train
    for modality in (m for m in study.modalities if m in reads):  # RNA first
        measured = study.measured[modality]
        if modality not in found:
            rows = study.rows[modality][train]
            cells = rows[rows >= 0]
            if modality == "rna":
                rna = RnaInput.fit(measured, cells, config.rna)
                found["rna"] = (
                    rna if checkpoint is None else with_pretrained(rna, checkpoint, config.bridge, measured.var)
                )
            elif modality == "atac":
                found["atac"] = AtacInput.fit(measured, cells, config.atac, genome)
                _prove_one_build(study, genome)
            else:
                found["protein"] = ProteinInput.fit(measured, cells)
        if modality == "rna":
            # The other modalities are fitted to the cells that will be trained on: shallow RNA drops a cell in all.
            passing = _passing(found["rna"], study, train)
            _prove_cells_left(int(passing.sum()), len(train), found["rna"], config)
            train = train[passing]
    return found


def _prove_cells_left(n: int, given: int, rna: Input, config: Any) -> None:
    """InputError, or a warning, where the filter of cells leaves few."""
    genes = rna.filter_genes if isinstance(rna, RnaInput) else rna.var
    said = (
        f"fit: of {given:,} training cells {n:,} express between {config.rna.min_genes:,} and {config.rna.max_genes or 'all'} of "
        f"the {len(genes):,} genes; the others teach nothing. Set rna.min_genes and rna.max_genes to suit these data (0: no "
        "limit)."
    )
    if n < min(FEWEST, given):
        raise InputError(said)
    if n < given / 2:
        warnings.warn(said, DataWarning, stacklevel=3)


def _prove_one_build(study: Study, genome: str | None) -> None:
    """InputError where the places of genes are known and the peaks are no nearer to them than by chance."""
    genes = study.measured["rna"].var if "rna" in study.measured else None
    if genes is None or (genes["tss"] >= 0).mean() < 0.5:
        return
    regions = Regions.from_var(study.measured["atac"].var, where=study.measured["atac"].name)
    build = genome or guess_genome(regions)
    if build is not None:
        check_genome(regions, build, genes.loc[genes["tss"] >= 0, ["chrom", "tss"]]).check()


def _passing(rna: Input | None, study: Study, cells: Int64[np.ndarray, " cells"]) -> Bool[np.ndarray, " cells"]:
    """Which of these cells the RNA recipe's filter keeps; those without RNA pass."""
    passes = np.ones(len(cells), bool)
    if isinstance(rna, RnaInput) and "rna" in study.measured:
        rows = study.rows["rna"][cells]
        passes[rows >= 0] = rna.keeps(study.measured["rna"])[rows[rows >= 0]]
    return passes


def _take_weights(network: System, start: Translator) -> None:
    own = network.state_dict()
    taken = start.system.state_dict()
    if wrong := [name for name, value in taken.items() if name not in own or own[name].shape != value.shape]:
        raise InputError(
            f"fit: {len(wrong)} weights of the model to start from do not fit ({', '.join(wrong[:3])}). It must be the same "
            "system with the same configuration."
        )
    network.load_state_dict(own | taken)
    share_cells(network, set(taken))


def _taken_before(start: Translator) -> dict[str, Any]:
    """What the model to start from took from a pretrained one; layers that it did not have start fresh."""
    found: dict[str, Any] = {key: start.run[key] for key in ("pretrained", "taken") if key in start.run}
    if "taken" in found:
        ways = [f"{way} (by the model that this one starts from)" for way in found["taken"]["ways"]]
        found["taken"] = found["taken"] | {"ways": ways}
    return found


def fingerprint(study: Study, split: Split) -> str:
    """A hash of the cells' names, features and counts (of a corpus: its id), and of the split: the same data give the same."""
    digest = hashlib.sha256()
    for modality in study.modalities:
        part = study.measured[modality]
        digest.update(f"{modality} {part.n_cells} {part.n_features} {part.matrix.nnz}".encode())
        digest.update("\n".join([*part.obs.index, *part.var.index]).encode())
        if isinstance(part.matrix, StoredMatrix):
            digest.update(part.matrix.corpus.corpus_id.encode() + part.matrix.rows.tobytes())
        else:
            for array, kind in (
                (part.matrix.indptr, np.int64),
                (part.matrix.indices, np.int32),
                (part.matrix.data, np.float32),
            ):
                digest.update(np.ascontiguousarray(array).astype(kind, copy=False).data)
        digest.update(np.ascontiguousarray(study.rows[modality], np.int64).tobytes())
    for cells in (split.train, split.valid, split.test):
        digest.update(f"{len(cells)} ".encode())
        digest.update(np.ascontiguousarray(cells, np.int64).tobytes())
    return digest.hexdigest()


def _mix(feed: Feed, train: Int64[np.ndarray, " train"]) -> dict[str, int]:
    """How many training cells have each modality of the model, and how many have all."""
    has = {modality: feed.has(modality)[train] for modality in feed.inputs}
    paired = int(np.logical_and.reduce(list(has.values())).sum())
    return {"paired": paired, **{modality: int(of.sum()) for modality, of in has.items()}}


def _write_split(path: Path, study: Study, split: Split, passes: np.ndarray) -> None:
    part = np.full(study.n_cells, "unused", object)
    for name, cells in (("train", split.train), ("valid", split.valid), ("test", split.test)):
        part[cells] = name
    part[~passes] = "filtered"
    write_text(path, "cell\tpart\n" + "".join(f"{c}\t{p}\n" for c, p in zip(study.obs.index, part)))


def _summary(log: list[dict[str, Any]], record: Mapping[str, Any]) -> dict[str, Any]:
    phases: dict[str, Any] = {}
    for entry in log:
        here = phases.setdefault(entry["phase"], {"cells": entry["cells"], "epochs": 0, "seconds": 0.0})
        here["epochs"] += 1
        here["seconds"] += entry["seconds"]
        if entry["best"] or "valid" not in here:
            here |= {"valid": entry["valid"], "best_epoch": entry["epoch"]}
    return {"system": record["system"], "cells": record["cells"], "features": record["features"], "phases": phases}


def is_main_process() -> bool:
    """Whether this process writes."""
    return bool(this_process().is_main_process)
