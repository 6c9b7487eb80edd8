"""The ``expresser corpus`` commands. Heavy imports wait until a command runs."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import tyro

from expresser.cli import Command
from expresser.commands import group
from expresser.errors import InputError
from expresser.progress import progress_bar

Positional = tyro.conf.Positional
Inputs = Annotated[tuple[Path, ...], Positional]
Folder = Annotated[Path, Positional]


def corpus_build(
    inputs: Inputs,
    *,
    out: Path,
    genes: Path | None = None,
    regions: Path | None = None,
    layer: str | None = None,
    obs: tuple[str, ...] = (),
    min_genes: int = 20,
    min_counts_kept: float = 0.6,
    seed: int = 0,
    deduplicate: Literal["barcode", "source", "counts"] | None = None,
    source_column: str | None = None,
    workers: int | None = None,
) -> None:
    """Turn raw-count files into one memory-mapped corpus; after a kill or Ctrl-C the same command goes on.

    Example: expresser corpus build a.h5ad b.h5 c_mtx/ --genes genes.tsv --obs cell_type donor --workers 8 --out corpus

    Args:
        inputs: .h5ad, 10x .h5, 10x mtx folders, .csv/.tsv(.gz), .loom, .zarr; raw counts, any gene sets.
        out: The corpus: a folder that does not exist yet.
        genes: Vocabulary: genes.tsv, an HGNC table or a GTF. Without it, the union of the inputs' genes.
        regions: For ATAC: the regions (BED, or a file whose peaks they are). Without it, the inputs' peaks if all have the same.
        layer: Where the raw counts are: a layer's name or "raw". Without it, X.
        obs: Columns of obs to keep.
        min_genes: Cells with fewer non-zero genes are dropped and counted.
        min_counts_kept: Least share of a file's counts that must belong to genes of the vocabulary.
        seed: Of the order of cells on disk.
        deduplicate: Keep the first of cells with barcode and counts alike (barcode), source and barcode (source), counts (counts).
        source_column: With --deduplicate source: the obs column that names the study or sample. Without it, the file.
        workers: Processes that read files at once; the corpus is the same. Without it, one a core, or one for less than 200 MB.
    """
    from expresser.contents import note_sha256
    from expresser.corpus.build import build_corpus
    from expresser.corpus.info import corpus_info, info_text
    from expresser.genes import GeneVocab
    from expresser.record import leave_record

    vocab = None if genes is None else GeneVocab.read(genes)
    with progress_bar("corpus") as report:
        corpus = build_corpus(
            inputs,
            out,
            genes=vocab,
            regions=regions,
            layer=layer,
            obs_columns=obs,
            min_genes=min_genes,
            min_counts_kept=min_counts_kept,
            seed=seed,
            deduplicate=deduplicate,
            source_column=source_column,
            workers=_workers(workers, inputs),
            progress=lambda stage, done, total: report(done, total, stage),
        )
    for path, source in zip(inputs, corpus.manifest["sources"]):
        if path.suffix in (".h5ad", ".h5", ".loom"):  # one file each, which the build has hashed
            note_sha256(path, source["sha256"])
    if not (out / "run.json").is_file():
        leave_record(out, "corpus build", seed=seed, corpus_id=corpus.corpus_id)
    print(info_text(corpus_info(corpus.path)))


def corpus_append(folder: Folder, inputs: Inputs, *, workers: int | None = None) -> None:
    """Add raw-count files to a corpus by the rules it was built with, without writing its shards anew.

    Example: expresser corpus append corpus new.h5ad

    Args:
        folder: A corpus that was built, not a split or subset of one.
        inputs: Files that are not in it yet. Genes it does not know are dropped and counted.
        workers: Processes that read files at once. Without it, one a core, or one alone for less than 200 MB.
    """
    from expresser.corpus.append import append_corpus, lost_counts
    from expresser.corpus.info import corpus_info, info_text

    with progress_bar("append") as report:
        corpus = append_corpus(
            folder,
            inputs,
            workers=_workers(workers, inputs),
            progress=lambda stage, done, total: report(done, total, stage),
        )
    print(info_text(corpus_info(corpus.path)))
    for name, share in lost_counts(corpus):
        print(
            f"{name}: {share:.0%} of the counts are of {corpus.features} that the corpus does not know. A build of all inputs would "
            "keep them."
        )


def _workers(asked: int | None, inputs: tuple[Path, ...]) -> int:
    """As asked; else a process a core, which each take seconds to start."""
    if asked is not None:
        if asked < 1:
            raise InputError(f"--workers is {asked}; at least one is needed.")
        return asked
    size = sum(path.stat().st_size for path in inputs if path.is_file())
    return 1 if size < 200_000_000 else os.cpu_count() or 1


def corpus_info_command(
    folder: Folder,
    *,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
    html: Path | None = None,
) -> None:
    """Say what is in a corpus: cells, genes, sources, histograms of depth and of genes a cell.

    Example: expresser corpus info corpus --html corpus.html

    Args:
        folder: A corpus.
        as_json: Print JSON.
        html: Write the answer as a page too: histograms, sources, labels, where the corpus came from.
    """
    from expresser.corpus.info import corpus_info, info_text

    info = corpus_info(folder)
    if html is not None:
        from expresser.corpus.info_page import info_page

        info_page(info, html)
    print(json.dumps(info, indent=1) if as_json else info_text(info))


def corpus_verify(folder: Folder, *, deep: bool = False) -> None:
    """Check every file of a corpus against the manifest's checksums and list all that is wrong.

    Example: expresser corpus verify corpus --deep

    Args:
        folder: A corpus.
        deep: Read the rows too: genes rise, no zeros, totals are sums, each cell id once, obs agrees.
    """
    from expresser.corpus.verify import verify_corpus

    with progress_bar("verify") as report:
        left = verify_corpus(folder, deep=deep, progress=lambda stage, done, total: report(done, total, stage))
    print(f"{folder}: whole, every checksum fits{' and every row obeys the laws' if deep else ''}.")
    if left:
        print(
            f"{', '.join(left)}: no part of it; left by an append that was killed. The next append uses or removes them."
        )


def corpus_split(
    folder: Folder,
    *,
    by: str,
    out: Path,
    shares: tuple[str, ...] = ("train=0.8", "valid=0.1", "test=0.1"),
    missing: Literal["refuse", "train", "drop", "own-group"] = "refuse",
    seed: int = 0,
) -> None:
    """Cut a corpus into a corpus for each side, whole donors (sources, studies) only, and count what leaks all the same.

    Example: expresser corpus split corpus --by donor --shares train=0.8 valid=0.1 test=0.1 --out parts

    Args:
        folder: A corpus.
        by: "source" or an obs column: cells that share its value stay together.
        out: A new folder; each side becomes a corpus in it.
        shares: SIDE=SHARE of the cells, summing to 1; met as nearly as whole groups allow.
        missing: Cells without a label: refuse, put into train, drop, or deal as one own-group.
        seed: Of the dealing.
    """
    from expresser.corpus.dealing import parse_shares
    from expresser.corpus.splitting import report_text, split_corpus
    from expresser.corpus.store import Corpus
    from expresser.record import leave_record

    wanted = parse_shares(shares)
    with progress_bar("split") as report:
        found = split_corpus(
            Corpus.open(folder),
            out,
            by=by,
            shares=wanted,
            seed=seed,
            missing=missing,
            progress=lambda side, done, total: report(done, total, side),
            also=lambda part: leave_record(out, "corpus split", seed=seed, part=part),
        )
    print(report_text(found, out))


def corpus_subset(
    folder: Folder,
    *,
    out: Path,
    where: tuple[str, ...] = (),
    without: Annotated[tuple[str, ...], tyro.conf.arg(name="not")] = (),
    source: tuple[str, ...] = (),
    cells: int | None = None,
    genes: Path | None = None,
    min_genes: int = 1,
    seed: int = 0,
) -> None:
    """Write chosen cells of a corpus, or fewer of its genes, as a corpus of its own.

    Example: expresser corpus subset corpus --where "cell_type=B cell" "cell_type=T cell" --cells 10000 --out lymphocytes

    Args:
        folder: A corpus.
        out: The new corpus: a folder that does not exist yet.
        where: COLUMN=VALUE: several of one column are alternatives, several columns must all hold. "COLUMN=": no label.
        without: COLUMN=VALUE: cells that have it are left out.
        source: Names of inputs, as `corpus info` lists them.
        cells: So many of the cells that fit, at random by the seed.
        genes: Keep these genes alone (a list of names, genes.tsv, HGNC table or GTF; of ATAC these regions, a list or BED);
            totals become sums over them.
        min_genes: Cells with fewer non-zero genes, of those kept, are left out.
        seed: Of --cells.
    """
    from expresser.corpus.info import origin_text
    from expresser.corpus.manifest import read_manifest
    from expresser.corpus.selection import subset_corpus
    from expresser.corpus.store import Corpus
    from expresser.record import leave_record

    with progress_bar("subset") as report:
        corpus = subset_corpus(
            Corpus.open(folder),
            out,
            where=where,
            without=without,
            sources=source,
            cells=cells,
            genes=genes,
            min_genes=min_genes,
            seed=seed,
            progress=report,
            also=lambda part: leave_record(
                out, "corpus subset", seed=seed, part=part, corpus_id=read_manifest(part)["corpus_id"]
            ),
        )
    origin = origin_text(corpus.manifest["derived_from"])
    print(
        f"{out}: {corpus.n_cells:,} cells x {len(corpus.vocab):,} {corpus.features}, id {corpus.corpus_id[:12]}, from {origin}"
    )


def corpus_push(
    folder: Folder, repo: Annotated[str, Positional], *, revision: str | None = None, private: bool = False
) -> None:
    """Put a corpus on the Hugging Face hub as a data set, the manifest last.

    Example: expresser corpus push corpus lab/atlas --private

    Args:
        folder: A corpus; its checksums are checked first.
        repo: org/name; made where it does not exist.
        revision: A branch, made where it does not exist. Without it, main.
        private: Make a new data set private.
    """
    from expresser.corpus.publish import push_corpus
    from expresser.corpus.verify import verify_corpus

    with progress_bar("push") as report:
        verify_corpus(folder, deep=False, progress=lambda stage, done, total: report(done, total, stage))
        where = push_corpus(folder, repo, revision=revision, private=private)
    print(f"{folder} is at {where}: expresser corpus pull {repo}{f'@{revision}' if revision else ''} --out corpus")


def corpus_pull(url: Annotated[str, Positional], *, out: Path, threads: int = 8) -> None:
    """Mirror a corpus from a hub, an object store or a web server; an interrupted pull goes on where it was.

    Example: expresser corpus pull lab/atlas@main --out corpus

    Args:
        url: org/name@revision, hf://datasets/org/name, s3://bucket/folder, https://host/folder.
        out: The corpus: a folder that does not exist yet, or that an earlier pull began.
        threads: Files downloaded at once.
    """
    from expresser.corpus.mirror import pull_corpus

    if threads < 1:
        raise InputError(f"--threads is {threads}; at least one is needed.")
    with progress_bar("pull") as report:
        corpus = pull_corpus(url, out, threads=threads, progress=report)
    size = f"{corpus.n_cells:,} cells x {len(corpus.vocab):,} {corpus.features}"
    print(f"{out}: {size}, every checksum fits, id {corpus.corpus_id}")


_VERBS: dict[str, Callable[..., None]] = {
    "build": corpus_build,
    "append": corpus_append,
    "info": corpus_info_command,
    "verify": corpus_verify,
    "split": corpus_split,
    "subset": corpus_subset,
    "push": corpus_push,
    "pull": corpus_pull,
}
CORPUS: Command = Command(
    name="corpus",
    summary="Build, extend, describe, verify, split and share a corpus of raw counts.",
    example="expresser corpus build a.h5ad b.h5ad --out corpus",
    run=group(lambda: CORPUS, _VERBS),
)
