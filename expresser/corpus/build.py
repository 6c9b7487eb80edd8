"""Build a corpus: count matrices with different genes, or peaks, become one folder of shuffled, memory-mapped Arrow shards."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from anndata import AnnData

from expresser.atomic import is_empty
from expresser.corpus.assembling import Intake
from expresser.corpus.duplicates import Seen
from expresser.corpus.features import given, open_all, union
from expresser.corpus.manifest import (
    FORMAT,
    FORMAT_VERSION,
    GENES,
    MANIFEST,
    OBS,
    corpus_id,
    file_entry,
    read_manifest,
    tool_versions,
    write_manifest,
)
from expresser.corpus.obs import ObsWriter, check_obs_columns
from expresser.corpus.preparing import (
    UINT16_MAX,
    Arguments,
    check_distinct,
    check_numbers,
    description,
    distinct_names,
    known_shas,
    make_jobs,
    no_cells,
    sha256_of,
)
from expresser.corpus.shards import ContentDigest, schema
from expresser.corpus.shardsteps import write_rows
from expresser.corpus.shuffle import Scatter, bucket_count
from expresser.corpus.source import Features, Source
from expresser.corpus.store import Corpus
from expresser.corpus.workers import Job
from expresser.corpus.workshop import Workshop, clear, workshop
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.one_writer import one_writer_of_out
from expresser.region_vocab import RegionVocab
from expresser.regions import Regions

log = logging.getLogger(__name__)


Progress = Callable[[str, int, int], None]


@one_writer_of_out
def build_corpus(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    genes: GeneVocab | None = None,
    regions: Regions | str | Path | None = None,
    layer: str | None = None,
    obs_columns: Sequence[str] = (),
    min_genes: int = 20,
    min_counts_kept: float = 0.6,
    seed: int = 0,
    shard_rows: int = 250_000,
    batch_rows: int = 10_000,
    deduplicate: str | None = None,
    source_column: str | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Corpus:
    """Build the corpus of `inputs` in the folder `out` and open it.

    Parameters
    ----------
    inputs
        Files, folders or AnnData of raw counts; see `open_source` for the formats. Their genes may differ.
    out
        A folder that does not exist yet, or is empty. It appears when complete. If it holds the finished corpus of the same inputs
        and arguments, that is returned and nothing is written.
    genes
        The vocabulary, in token order; None for the union of the inputs' own genes. Genes missing from a file are
        zeros, columns that resolve to one gene are summed, other columns are dropped.
    regions
        For a corpus of ATAC, whose features are regions of the genome: these, or those of a BED file or of a data file. A peak
        goes to the region it shares most bases with (sums where several do), one without overlap is dropped and counted. None:
        the inputs' own peaks where they are files of peaks, which must then be the same in all.
    layer
        Where the raw counts are: None for X, "raw", or a layer's name.
    obs_columns
        Columns of obs to keep. Each must be in at least one input; cells of inputs without it get a missing value.
    min_genes
        Cells with fewer non-zero genes of the vocabulary are dropped and counted; cells with none always are.
    min_counts_kept
        Least share of an input's counts that must lie in genes of the vocabulary: below it the species or the name
        column is wrong.
    seed
        Of the order of the rows. Cell ids number the kept cells in input order, whatever the seed.
    shard_rows, batch_rows
        Cells per shard file and per Arrow record batch.
    deduplicate
        Which cells are the same, the first in input order being kept: "barcode", those with one barcode and the same counts over the
        vocabulary (a raw and a filtered file of one sample); "source", those with one source and barcode, whatever the counts;
        "counts", those with the same counts, whatever their names (an atlas that renamed its cells). None: no cell is dropped. A
        barcode alone says nothing: samples share them by chance. Two cells are confused with odds of cells^2 / 2^65.
    source_column
        With "source": the obs column that names the study or sample (`dataset_id`), which the corpus then keeps. Cells without, and
        all cells where it is None, have the input's name.
    workers
        Processes that read files at once, each one file; the corpus is the same, to the byte, for any number. More than one needs
        `if __name__ == "__main__":` in the script that calls.
    progress
        Called with ("read" | "write" | "already built", cells done, cells in all).

    Raises
    ------
    InputError
        With nothing left behind: unreadable or unnormalised input, an input given twice, no known gene, no cell left, an obs column
        that no input has, `out` taken or in work elsewhere, disk full.

    Notes
    -----
    Memory: a chunk of 4,096 cells for each worker, or of as many as have 8 million non-zeros; in this process 3 million non-zeros,
    or one bucket of the shuffle (32,768 cells, or a 128th of all where that is more; at most 64 million
    non-zeros), the names and obs tables of all inputs, and 8 bytes a cell to deduplicate.
    Disk: while building, 1.5 times the finished corpus and one shard more; with workers up to twice as much.

    Interruptions: everything is made in `.NAME.building` beside `out`. A build that was killed, or ended by Ctrl-C or by the death of
    a worker, goes on when the same call is made again: finished inputs and finished shards are not made again, the corpus is the same.
    An input that changed meanwhile (size or time) begins anew.
    """
    inputs = [inputs] if isinstance(inputs, str | Path | AnnData) else list(inputs)
    wanted = given(genes, regions)
    arguments = Arguments(
        genes=wanted.sha256 if wanted is not None else None,
        layer=layer,
        obs_columns=list(dict.fromkeys([obs_columns] if isinstance(obs_columns, str) else obs_columns)),
        min_genes=int(min_genes),
        min_counts_kept=float(min_counts_kept),
        seed=int(seed),
        shard_rows=int(shard_rows),
        batch_rows=int(batch_rows),
        deduplicate=deduplicate,
        source_column=source_column,
    )
    arguments.check()
    if source_column is not None and source_column not in arguments.obs_columns:
        arguments.obs_columns.append(source_column)
    if not inputs:
        raise InputError("no inputs: name at least one file of raw counts.")
    out = Path(out).expanduser().resolve()
    existing = _manifest_there(out)
    features: Features | None = None if wanted is None else "genes" if regions is None else "regions"
    sources = open_all(inputs, layer=layer, features=features)
    check_obs_columns(sources, arguments.obs_columns)
    if existing is not None:
        _check_same(out, existing, arguments, [sha256_of(source, arguments.obs_columns) for source in sources])
        clear(out)
        log.info("%s: this corpus is already built (%s cells), nothing to do", out, f"{existing['cells']:,}")
        if progress is not None:
            progress("already built", existing["cells"], existing["cells"])
        return Corpus.open(out)
    shas = known_shas(sources, arguments.obs_columns)
    check_distinct(sources, shas)

    vocab = wanted if wanted is not None else union(sources)
    names = distinct_names(sources)
    kind = "uint16" if len(vocab) <= UINT16_MAX else "uint32"
    jobs = make_jobs(sources, names, shas, vocab, arguments, kind)
    with workshop(out) as shop:
        shop.begin(description(sources, names, shas, vocab, arguments))
        _fill(shop, sources, jobs, vocab, arguments, kind, workers, progress or silent)
        shop.deliver(out)
    return Corpus.open(out)


def silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def _manifest_there(out: Path) -> dict[str, Any] | None:
    """The manifest of the corpus in `out`, None where `out` is free; InputError where anything else is in the way."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out}: is a file; a corpus is a folder. Name one that does not exist yet.")
    if is_empty(out):
        return None
    names = sorted(entry.name for entry in out.iterdir())
    if MANIFEST not in names:
        raise InputError(
            f"{out}: is not empty (it holds {', '.join(names[:5])}{', …' if len(names) > 5 else ''}) and is no corpus. "
            "Nothing was changed: name a folder that does not exist yet."
        )
    return read_manifest(out)


def _check_same(out: Path, manifest: dict[str, Any], arguments: Arguments, shas: list[str]) -> None:
    asked = asdict(arguments)
    different = [
        f"{name} is {manifest['build'].get(name)!r} there, {value!r} was asked"
        for name, value in asked.items()
        if manifest["build"].get(name) != value
    ]
    there = [source["sha256"] for source in manifest["sources"]]
    if there == shas and manifest.get("appended"):
        different.append("some of these inputs were appended to it, so that its rows lie in another order")
    if there != shas:
        different.append(
            "the same inputs in another order"
            if sorted(there) == sorted(shas)
            else f"other inputs (it has {len(there)}, {len(set(there) & set(shas))} of the {len(shas)} asked are in it)"
        )
    if different:
        raise InputError(
            f"{out}: already holds another corpus ({manifest['cells']:,} cells): {'; '.join(different)}. "
            "Nothing was changed: name another folder, or delete this one."
        )


def _fill(
    shop: Workshop,
    sources: Sequence[Source],
    jobs: Sequence[Job],
    vocab: GeneVocab,
    arguments: Arguments,
    genes: str,
    workers: int,
    progress: Progress,
) -> None:
    """Write all files of the corpus into the product, the manifest last."""
    folder = shop.product
    n_read = sum(source.n_cells for source in sources)
    check_numbers(n_read, len(sources))
    vocab.save(folder / GENES)
    with Scatter(shop.folder, seed=arguments.seed, n_buckets=bucket_count(n_read), genes=genes) as scatter:
        done = Intake(shop, scatter, sources, jobs).run(workers=workers, seen=Seen(), progress=progress)
        if not done.cells:
            raise InputError(no_cells(done, arguments.min_genes, sources[0].features))
        with ObsWriter(folder / OBS, sources, arguments.obs_columns) as obs:
            for source, job, kept in zip(sources, jobs, done.kept):
                obs.write(source, job.name, kept)
        check_distinct(sources, [entry["sha256"] for entry in done.entries])
        counts = "uint16" if done.most <= UINT16_MAX else "uint32"
        content = ContentDigest()
        shards = write_rows(
            shop,
            scatter,
            columns=schema(genes, counts),
            n_cells=done.cells,
            shard_rows=arguments.shard_rows,
            batch_rows=arguments.batch_rows,
            first_shard=0,
            content=content,
            progress=progress,
        )
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "values": "raw counts",
        **({"features": "regions"} if isinstance(vocab, RegionVocab) else {}),
        "cells": done.cells,
        "nnz": done.nnz,
        "dtypes": {"cell_id": "uint32", "source": "uint16", "total": "uint32", "genes": genes, "counts": counts},
        "genes": {"n": len(vocab), "vocab_sha256": vocab.sha256} | file_entry(folder / GENES),
        "obs": {"columns": arguments.obs_columns} | file_entry(folder / OBS),
        "build": asdict(arguments),
        "sources": done.entries,
        "content": content.hexdigest(),
        "shards": shards,
        "versions": tool_versions(),
    }
    write_manifest(folder, manifest | {"corpus_id": corpus_id(manifest)})
