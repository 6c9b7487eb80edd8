"""What ``expresser translate fit SYSTEM`` can be told, and what is made of it before anything is read."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

import tyro

from expresser.errors import InputError
from translate.bridge import Bridge
from translate.cli_bridge import with_bridge
from translate.config_rules import prove_config

Config = TypeVar("Config")
Modality = Literal["rna", "atac", "protein"]  # not translate.study's: --help would wait for torch


@dataclass(frozen=True)
class Arguments(Generic[Config]):
    """All options of `fit`; those under config are the system's own."""

    out: Path
    """Folder of the run: model, log, split, metrics.json, report.html."""
    config: Config
    """Options of the system; --preset says where they begin."""
    rna: tuple[str, ...] = ()
    """Raw counts of RNA: .h5ad, .zarr, 10x .h5 or a 10x folder, one or several (--rna a.h5ad b.h5ad), whose shared genes are
    kept; if they hold other modalities too, these are read."""
    atac: tuple[str, ...] = ()
    """Counts or 0/1 of peaks, the same kinds of file; cells are paired by name, peaks of several files merged."""
    protein: tuple[str, ...] = ()
    """Antibody counts, or obsm:KEY for a table inside the RNA's files."""
    mudata: str | None = None
    """A file with all modalities, in place of --rna and --atac: .h5mu, or .h5ad or 10x .h5 whose feature_types tell them apart."""
    rna_only: tuple[str, ...] = ()
    """More cells, measured in RNA only."""
    atac_only: tuple[str, ...] = ()
    """More cells, measured in ATAC only."""
    corpus: str | None = None
    """A folder that expresser corpus build made of ATAC, in place of all files: cells are read from disk as they are needed."""
    verify: bool = True
    """Compare every file of --corpus with its checksum before anything is read: reads all of it once."""
    layer: str | None = None
    """Where the raw counts are: a layer's name or "raw", of all files, or of some: rna=counts. Without it, X."""
    genes: str | None = None
    """Places of genes where the files have none: genes.tsv, a GTF, or a table of ids, chrom and tss."""
    genome: str | None = None
    """Build of the peaks (hg38, hg19, mm10): they are checked against it, in queries too."""
    batch: str | None = None
    """Column of obs that says which batch (donor, sample) a cell is of, for systems that free their latent of it."""
    split: str | None = None
    """random (70/15/15), cluster (whole clusters of RNA held out), a column of obs whose groups stay whole, or all: every cell
    trains but for a few that are only watched. Without it: all where the system embeds, else random."""
    valid: tuple[str, ...] = ()
    """Groups of the column that validate, or random: cells of the groups that train. Without it, groups are drawn."""
    test: tuple[str, ...] = ()
    """Groups of the column that are held out to the end. Without it, groups are drawn."""
    shares: tuple[float, float, float] | None = None
    """Of the random split, or of groups that are drawn: cells that train, validate and test. Without it, 0.7 0.15 0.15."""
    rotation: int = 0
    """Of the cluster split: which of the five."""
    split_seed: int = 0
    """Of the split; --seed is of the fit, so that several fits can share one split."""
    preset: str | None = None
    """A named configuration: translate list shows them."""
    start: str | None = None
    """A fitted model of the same system (folder or hub id) whose weights are kept: only what it lacks is fitted, such as
    proteins. Not of systems that embed, which lack nothing."""
    bridge: Annotated[Bridge, tyro.conf.arg(name="")] = field(default_factory=Bridge)
    """What is taken from a pretrained model."""
    seed: int = 0
    """Of first weights and batches."""
    precision: Literal["no", "bf16"] = "no"
    """bf16: mixed precision, for a GPU."""
    resume: bool = False
    """Go on with an interrupted fit in --out."""
    evaluate: bool = True
    """Judge the test cells at the end (embeddings: all cells, where none are held out), beside baselines."""
    baselines: bool = True
    """Fit the baselines too: mean, knn, ridge, gene activity; of embeddings LSI and PCA."""
    baselines_all: bool = False
    """Of embeddings, the slow baselines as well, where they are installed: PeakVI, spectral."""
    labels: str | None = None
    """Column of obs with cell types, for scores of types and markers (without it, cell_type where there is one), and for training
    where the system learns from them."""
    maps: bool = True
    """Draw UMAPs into the report."""


def settled(given: Arguments[Any], system: str, kind: Any) -> Arguments[Any]:
    """With --split, --batch, --labels and --rna-encoder filled in for this system; InputError where options contradict each other."""
    prove_config(given.config)
    split = given.split or ("all" if kind.embeds else "random")
    if split in ("random", "cluster", "all") and (given.valid or given.test):
        raise InputError(f"--valid and --test name groups of a column: --split is {split}, not a column of obs.")
    if given.shares is not None and (
        split in ("cluster", "all") or (given.valid and given.valid != ("random",) and given.test)
    ):
        raise InputError(
            "--shares is of the random split and of groups that are drawn: leave it out, or --valid and --test."
        )
    if given.rotation and split != "cluster":
        raise InputError(f"--rotation is of the cluster split: --split is {split}.")
    if split == "all" and not kind.embeds:
        raise InputError(
            f"--split all leaves no cell to judge a translation by, and {system} translates. Choose random, cluster, or a column "
            "of obs."
        )
    config = with_bridge(_with_labels(_with_batch(given, system), given), given.bridge, system, kind, given.start)
    return replace(given, split=split, config=config)


def origin_of(given: Arguments[Any]) -> Any:
    """What the options say is to be read."""
    from translate.origin import Origin

    return Origin(**{each.name: getattr(given, each.name) for each in fields(Origin)})


def given_pair(rna: Any, atac: Any, mudata: Any, verb: str) -> dict[Modality, Any]:
    """What RNA and what ATAC are read from: files of their own, or one with both; InputError where neither or both are named."""
    if mudata is None and (rna is None or atac is None):
        raise InputError(f"{verb}: give --rna and --atac, or one file that holds both: --mudata.")
    if mudata is not None and not (rna is None and atac is None):
        raise InputError(f"{verb}: --mudata holds RNA and ATAC: give it, or --rna and --atac, not both.")
    return {"rna": rna or mudata, "atac": atac or mudata}


def doubt_labels(study: Any, given: Arguments[Any]) -> None:
    """A warning where labels of ATAC cells come from `translate label`: what is then said of types is no test of it."""
    import warnings

    from translate.study import DataWarning

    column = given.labels or "cell_type"
    if f"{column}_confidence" in study.obs and column in study.obs:
        warnings.warn(
            f"{column!r} of some cells was brought from RNA by gene activity (expresser translate label): scores of types, and "
            "of label transfer, are against those labels, not against independent ones.",
            DataWarning,
            stacklevel=2,
        )


def choose_split(study: Any, given: Arguments[Any], needs: tuple[Any, ...] = ()) -> Any:
    """The split that the options ask for; `needs`: modalities that cells have which are only watched."""
    from translate.splits import SHARES, split_all, split_by_cluster, split_by_column, split_random, validate_at_random

    shares = given.shares or SHARES
    if given.split == "all":
        return split_all(study, needs, seed=given.split_seed)
    if given.split in (None, "random"):
        return split_random(study, shares=shares, seed=given.split_seed)
    if given.split == "cluster":
        return split_by_cluster(study, rotation=given.rotation, seed=given.split_seed)
    seed, test = given.split_seed, given.test or None
    if given.valid == ("random",):
        held = split_by_column(study, given.split, valid=[], test=test, shares=shares, seed=seed)
        return validate_at_random(study, held, share=shares[1], seed=seed)
    return split_by_column(study, given.split, valid=given.valid or None, test=test, shares=shares, seed=seed)


def prove_modalities(study: Any, system: str, kind: Any) -> None:
    """InputError where the files lack what the system needs; a translator needs two modalities, whichever."""
    if lacking := [m for m in kind.needs if m not in study.modalities]:
        raise InputError(
            f"translate fit: {system} needs {' and '.join(kind.needs)}, and the files hold {', '.join(study.modalities)}. Add "
            f"{' and '.join(f'--{m}' for m in lacking)}."
        )
    if not kind.embeds and len(study.modalities) < 2:
        raise InputError(
            f"translate fit: only {study.modalities[0]} was given ({study.n_cells:,} cells), and there is nothing to "
            "translate it to. Add another modality of the same cells: --rna, --atac or --protein."
        )


def _with_batch(given: Arguments[Any], system: str) -> Any:
    """The configuration, --batch in it."""
    if given.batch is None:
        return given.config
    own = getattr(given.config, "batch", None)
    if own is None:
        raise InputError(f"--batch: {system} does not know batches. Leave it out, or fit a system that does (sailer).")
    if own.key not in (None, given.batch):
        raise InputError(f"--batch {given.batch} and --config.batch.key {own.key} differ: give one of them.")
    return replace(given.config, batch=replace(own, key=given.batch))


def _with_labels(config: Any, given: Arguments[Any]) -> Any:
    """The configuration, --labels in it where the system learns from labels; the others are judged by them alone."""
    own = getattr(config, "label", None)
    if own is None or given.labels is None:
        return config
    if own.key not in (None, given.labels):
        raise InputError(f"--labels {given.labels} and --config.label.key {own.key} differ: give one of them.")
    return replace(config, label=replace(own, key=given.labels))
