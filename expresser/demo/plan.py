"""What the demo does: sizes, stages, and the commands that a user would type for each."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Again = Literal["same", "resume", "anew"]


@dataclass(frozen=True)
class Size:
    """How much the demo makes of everything. As it stands: about five minutes of one core in all, two at most in one stage."""

    genes: int = 1500
    cells: int = 2200  # of RNA that pretrain
    unseen: int = 300  # of RNA, kept from the model
    depth: int = 1200  # median counts a cell
    pairs: int = 700  # cells with RNA and ATAC, to fit
    unseen_pairs: int = 200  # and to judge by
    alone: int = 500  # more with RNA alone, and as many with ATAC alone
    peaks: int = 8000
    atac_cells: int = 2500
    regions: int = 4000
    imputed: int = 100  # genes whose measured and predicted values are compared in a figure
    pretrain: str = "--data.epochs 3 --eval-every 100"
    babel: str = ""
    polarbear: str = ""
    sailer: str = ""


FULL = Size()

# For tests: every stage and every figure, and nothing is learnt.
SMALL = Size(
    genes=400,
    cells=240,
    unseen=80,
    depth=600,
    pairs=160,
    unseen_pairs=60,
    alone=60,
    peaks=1200,
    atac_cells=300,
    regions=400,
    imputed=40,
    pretrain="--data.max-steps 10 --eval-every 5 --model.d-model 16 --data.valid-cells 16 --data.max-genes 64",
    babel="--config.epochs 3 --config.rna.min-genes 20",
    polarbear="--config.epochs 3 --config.map-epochs 3 --config.rna.min-genes 20",
    sailer="--config.epochs 3",
)


@dataclass(frozen=True)
class Command:
    """One command line (without the word expresser) and the file that is there when it has ended well.

    again: what repeating it after an interruption takes. same: nothing; resume: ``--resume``, where its folder holds a run; anew:
    what it left, a folder that is not complete, is removed first.
    """

    words: tuple[str, ...]
    makes: Path
    again: Again = "same"

    @property
    def line(self) -> str:
        """As a user would type it."""
        return "expresser " + shlex.join(self.words)


@dataclass(frozen=True)
class Held:
    """The last cells of files of the same cells are kept from every model: ``seen_*.h5ad`` and ``unseen_*.h5ad`` beside them."""

    files: tuple[Path, ...]
    cells: int

    @property
    def line(self) -> str:
        """In words: no command does this."""
        return f"the last {self.cells:,} cells of {' and '.join(path.name for path in self.files)} are kept from every model"


@dataclass(frozen=True)
class Stage:
    """What stands under one heading."""

    name: str
    steps: tuple[Command | Held, ...]


@dataclass(frozen=True)
class Places:
    """Where everything lies in the demo's folder; called, a path as a shell wants it."""

    out: Path

    def __truediv__(self, path: str) -> Path:
        return self.out / path

    def __call__(self, path: str) -> str:
        return shlex.quote(str(self.out / path))

    def command(self, line: str, makes: str, again: Again = "same") -> Command:
        """From a line of a shell."""
        return Command(tuple(shlex.split(line)), self.out / makes, again)


def stages(out: Path, size: Size, seed: int) -> tuple[Stage, ...]:
    """All stages, in their order."""
    at = Places(out)
    return (
        _data(at, size, seed),
        _pretraining(at, size, seed),
        _cells(at, size, seed),
        _genes(at, seed),
        _translator(at, "babel", f"--rna {at(_RNA)} --atac {at(_ATAC)} {size.babel}", seed),
        _translator(
            at,
            "polarbear",
            f"--rna {at(_RNA)} --atac {at(_ATAC)} --rna-only {at('data/multiome/rna_only.h5ad')} "
            f"--atac-only {at('data/multiome/atac_only.h5ad')} {size.polarbear}",
            seed,
        ),
        _embedder(at, size, seed),
    )


_RNA, _ATAC = "data/multiome/seen_rna.h5ad", "data/multiome/seen_atac.h5ad"
_NEW_RNA, _NEW_ATAC = "data/multiome/unseen_rna.h5ad", "data/multiome/unseen_atac.h5ad"


def _data(at: Places, size: Size, seed: int) -> Stage:
    rna, pairs, atac = "data/rna", "data/multiome", "data/atac"
    return Stage(
        "Data",
        (
            at.command(
                f"simulate rna --cells {size.cells + size.unseen} --genes {size.genes} --median-depth {size.depth} "
                f"--seed {seed} --out {at(rna)}",
                f"{rna}/properties.tsv",
            ),
            Held((at / f"{rna}/rna.h5ad",), size.unseen),
            at.command(
                f"simulate multiome --cells {size.pairs + size.unseen_pairs} --alone {size.alone} --genes {size.genes} "
                f"--rna-depth {size.depth} --peaks {size.peaks} --types 6 --batches 2 --seed {seed} --out {at(pairs)}",
                f"{pairs}/atac_only.h5ad",
            ),
            Held((at / f"{pairs}/rna.h5ad", at / f"{pairs}/atac.h5ad"), size.unseen_pairs),
            at.command(
                f"simulate atac --design sim3 --cells {size.atac_cells} --regions {size.regions} --seed {seed} --out {at(atac)}",
                f"{atac}/atac.h5ad",
            ),
        ),
    )


def _pretraining(at: Places, size: Size, seed: int) -> Stage:
    return Stage(
        "Pretraining",
        (
            at.command(
                f"corpus build {at('data/rna/seen_rna.h5ad')} --obs cell_type batch --out {at('corpus')}",
                "corpus/manifest.json",
            ),
            at.command(
                f"pretrain demo --corpus {at('corpus')} {size.pretrain} --seed {seed} --out {at('runs/pretrained')}",
                "runs/pretrained/report.html",
                "resume",
            ),
        ),
    )


def _cells(at: Places, size: Size, seed: int) -> Stage:
    model, unseen = at("runs/pretrained"), at("data/rna/unseen_rna.h5ad")
    genes = " ".join(f"SIM{number:04d}" for number in range(1, size.imputed + 1))
    return Stage(
        "Imputation and cell embeddings",
        (
            at.command(
                f"impute {model} {unseen} --genes {genes} --overwrite-measured --out {at('cells/imputed.h5ad')}",
                "cells/imputed.h5ad",
            ),
            at.command(
                f"finetune imputation --model {model} --data {unseen} --reference {at('data/rna/seen_rna.h5ad')} --seeds 1 "
                f"--checks none --methods gene_mean gene_rate additive additive_svd knn --out {at('runs/imputation')}",
                "runs/imputation/report.html",
            ),
            at.command(f"embed {model} {unseen} --out {at('cells/embedded.h5ad')}", "cells/embedded.h5ad"),
            at.command(
                f"finetune annotation --models expresser={model} --data {unseen} --label cell_type --folds 3 --seed {seed} "
                f"--out {at('runs/annotation')}",
                "runs/annotation/report.html",
            ),
        ),
    )


def _genes(at: Places, seed: int) -> Stage:
    tables = f"--embeddings expresser={at('runs/pretrained')} svd expression random --corpus {at('corpus')} --no-heads"
    common = f"{tables} --folds 3 --seed {seed}"
    return Stage(
        "Gene tasks",
        (
            at.command(
                f"finetune interactions {common} --labels {at('data/rna/pairs.tsv')} --repeats 1 --out {at('runs/interactions')}",
                "runs/interactions/report.html",
            ),
            at.command(
                f"finetune gene {common} --labels {at('data/rna/properties.tsv')} --target binary --repeats 1 "
                f"--out {at('runs/property')}",
                "runs/property/report.html",
            ),
        ),
    )


def _translator(at: Places, system: str, options: str, seed: int) -> Stage:
    run, judged = f"runs/{system}", f"runs/{system}_unseen"
    # Cells are judged apart, so none of those here is needed as a test cell.
    fit = f"translate fit {system} {options} --shares 0.85 0.15 0 --no-evaluate --seed {seed} --out {at(run)}"
    evaluate = f"translate evaluate {at(run)} --rna {at(_NEW_RNA)} --atac {at(_NEW_ATAC)} --no-maps --out {at(judged)}"
    use = [
        (f"predict {at(run)} --input {at(source)} --to {to}", f"cells/{system}_{to}.h5ad")
        for source, to in ((_NEW_ATAC, "rna"), (_NEW_RNA, "atac"))
    ]
    use += [
        (f"embed {at(run)} --input {at(source)}", f"cells/{system}_from_{name}.h5ad")
        for source, name in ((_NEW_RNA, "rna"), (_NEW_ATAC, "atac"))
    ]
    return Stage(
        f"Translator {system}",
        (
            at.command(fit, f"{run}/report.html", "resume"),
            at.command(evaluate, f"{judged}/report.html", "anew"),
            *(at.command(f"translate {line} --out {at(made)}", made) for line, made in use),
        ),
    )


def _embedder(at: Places, size: Size, seed: int) -> Stage:
    cells = at("data/atac/atac.h5ad")
    return Stage(
        "Embedder sailer",
        (
            at.command(
                f"translate fit sailer --atac {cells} --batch batch --no-maps {size.sailer} --seed {seed} --out {at('runs/sailer')}",
                "runs/sailer/report.html",
                "resume",
            ),
            at.command(
                f"translate embed {at('runs/sailer')} --input {cells} --out {at('cells/sailer.h5ad')}",
                "cells/sailer.h5ad",
            ),
        ),
    )
