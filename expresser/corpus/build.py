"""Build a corpus: count matrices with different genes become one folder of shuffled, memory-mapped Arrow shards."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from anndata import AnnData

from expresser.corpus.align import Alignment
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
from expresser.corpus.onepass import UINT32_MAX, SourcePass
from expresser.corpus.shards import ContentDigest, CountBatch, schema, write_shards
from expresser.corpus.shuffle import Scatter, bucket_count
from expresser.corpus.source import Source, open_source
from expresser.corpus.staging import Staging, staged
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab

log = logging.getLogger(__name__)

UINT16_MAX = 2**16 - 1

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Arguments:
    """What decides a corpus, beside the inputs. `genes` is the vocabulary's sha256, None for the inputs' union."""

    genes: str | None
    layer: str | None
    obs_columns: list[str]
    min_genes: int
    min_counts_kept: float
    seed: int
    shard_rows: int
    batch_rows: int

    def check(self) -> None:
        """Raises InputError for a value out of range."""
        for name, least, most in (
            ("min_genes", 0, UINT32_MAX),
            ("min_counts_kept", 0, 1),
            ("seed", 0, 2**64 - 1),
            ("shard_rows", 1, UINT32_MAX),
            ("batch_rows", 1, UINT32_MAX),
        ):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"{name} is {getattr(self, name)}; it must lie in {least} … {most}.")


def build_corpus(
    inputs: Sequence[str | Path | AnnData],
    out: str | Path,
    *,
    genes: GeneVocab | None = None,
    layer: str | None = None,
    obs_columns: Sequence[str] = (),
    min_genes: int = 20,
    min_counts_kept: float = 0.6,
    seed: int = 0,
    shard_rows: int = 250_000,
    batch_rows: int = 10_000,
    progress: Progress | None = None,
) -> Corpus:
    """Build the corpus of `inputs` in the folder `out` and open it.

    Parameters
    ----------
    inputs
        Files, folders or AnnData of raw counts; see `open_source` for the formats. Their genes may differ.
    out
        A folder that does not exist yet, or is empty. It appears when complete; after any failure nothing is there. If
        it holds the finished corpus of the same inputs and arguments, that is returned and nothing is written.
    genes
        The vocabulary, in token order; None for the union of the inputs' own genes. Genes missing from a file are
        zeros, columns that resolve to one gene are summed, other columns are dropped.
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
    progress
        Called with ("read" | "write" | "already built", cells done, cells in all).

    Memory: a chunk of 4,096 cells and one bucket of the shuffle (32,768 cells, or a 128th of all cells where that is
    more; 0.5 GB were measured at 800 genes a cell), plus the names and obs tables of all inputs. Disk: while building,
    1.5 times the finished corpus, up to 2.5 times below 100,000 cells.

    Raises InputError, with nothing left behind: unreadable or unnormalised input, an input given twice, no known gene,
    no cell left, an obs column that no input has, `out` taken, disk full.
    """
    inputs = [inputs] if isinstance(inputs, str | Path | AnnData) else list(inputs)
    arguments = Arguments(
        genes=genes.sha256 if genes is not None else None,
        layer=layer,
        obs_columns=list(dict.fromkeys([obs_columns] if isinstance(obs_columns, str) else obs_columns)),
        min_genes=int(min_genes),
        min_counts_kept=float(min_counts_kept),
        seed=int(seed),
        shard_rows=int(shard_rows),
        batch_rows=int(batch_rows),
    )
    arguments.check()
    if not inputs:
        raise InputError("no inputs: name at least one file of raw counts.")
    out = Path(out).expanduser().resolve()
    existing = _manifest_there(out)
    sources = [open_source(data, layer=layer) for data in inputs]
    check_obs_columns(sources, arguments.obs_columns)
    shas = [_sha256(source, arguments.obs_columns) for source in sources]
    if existing is not None:
        _check_same(out, existing, arguments, shas)
        log.info("%s: this corpus is already built (%s cells), nothing to do", out, f"{existing['cells']:,}")
        if progress is not None:
            progress("already built", existing["cells"], existing["cells"])
        return Corpus.open(out)
    _check_distinct(sources, shas)

    vocab = genes if genes is not None else GeneVocab.union([source.guess_vocab() for source in sources])
    alignments = [Alignment.of(source, vocab) for source in sources]
    for source, alignment in zip(sources, alignments):
        # Before a count is read: a wrong fortieth file must not cost the hours of the first thirty-nine.
        report = alignment.resolution.report()
        if not report.genes:
            report.check(source.label, min_counts_kept)
    with staged(out) as stage:
        _fill(stage, sources, shas, alignments, vocab, arguments, progress or _silent)
    return Corpus.open(out)


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is shown."""


def _manifest_there(out: Path) -> dict[str, Any] | None:
    """The manifest of the corpus in `out`, None where `out` is free; InputError where anything else is in the way."""
    if not out.exists():
        return None
    if not out.is_dir():
        raise InputError(f"{out}: is a file; a corpus is a folder. Name one that does not exist yet.")
    names = sorted(entry.name for entry in out.iterdir())
    if not names:
        return None
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


def _sha256(source: Source, obs_columns: Sequence[str]) -> str:
    """The source's own; of an AnnData in memory, whose sha256 leaves out the tables, with the names and labels used."""
    digest = source.sha256()
    if source.path is not None:
        return digest
    tables = [[column, names.tolist()] for column, names in source.gene_columns.items()]
    tables += [[column, source.obs[column].tolist()] for column in obs_columns if column in source.obs.columns]
    return hashlib.sha256(f"{digest}{tables!r}".encode()).hexdigest()


def _check_distinct(sources: Sequence[Source], shas: list[str]) -> None:
    first: dict[str, Source] = {}
    for source, sha in zip(sources, shas):
        if sha in first:
            raise InputError(
                f"{source.path or source.name} and {first[sha].path or first[sha].name} are the same data "
                f"(sha256 {sha[:12]}…): their cells would count twice. Name each input once."
            )
        first[sha] = source


def distinct_names(sources: Sequence[Source]) -> list[str]:
    """One name a source: its own, with as many parent folders as tell it from others (cellranger names all alike)."""
    names = [source.name for source in sources]
    depth = 0
    while len(set(names)) < len(names) and depth < max(len(s.path.resolve().parts) if s.path else 0 for s in sources):
        depth += 1
        names = [
            "/".join((*source.path.resolve().parent.parts[1:][-depth:], source.name))
            if source.path is not None and names.count(name) > 1
            else name
            for source, name in zip(sources, names)
        ]
    return [f"{name} ({names[:i].count(name) + 1})" if name in names[:i] else name for i, name in enumerate(names)]


def _fill(
    stage: Staging,
    sources: Sequence[Source],
    shas: list[str],
    alignments: Sequence[Alignment],
    vocab: GeneVocab,
    arguments: Arguments,
    progress: Progress,
) -> None:
    """Write all files of the corpus into the staging folder, the manifest last."""
    folder = stage.folder
    n_read = sum(source.n_cells for source in sources)
    if n_read > UINT32_MAX or len(sources) > UINT16_MAX:
        raise InputError(
            f"{n_read:,} cells of {len(sources):,} inputs: a corpus holds at most {UINT32_MAX:,} cells of "
            f"{UINT16_MAX:,} inputs. Build several."
        )
    vocab.save(folder / GENES)
    genes = "uint16" if len(vocab) <= UINT16_MAX else "uint32"
    entries: list[dict[str, Any]] = []
    most, kept_before, read_before, nnz = 0, 0, 0, 0
    with (
        Scatter(folder, seed=arguments.seed, n_buckets=bucket_count(n_read), genes=genes) as scatter,
        ObsWriter(folder / OBS, sources, arguments.obs_columns) as obs,
    ):
        for number, (source, name, alignment) in enumerate(zip(sources, distinct_names(sources), alignments)):
            reading = SourcePass(source, number, alignment, arguments.min_genes, kept_before)
            for batch, done in reading.batches(np.dtype(genes)):
                most = max(most, int(batch.counts.max(initial=0)))
                nnz += len(batch.genes)
                # Both copies of one bucket, one copy of all others, in proportion to the cells still to come.
                written = nnz * (scatter.entry_bytes + scatter.entry_bytes / scatter.n_buckets)
                stage.needed = int(written * n_read / (read_before + done))
                scatter.add(batch)
                progress("read", read_before + done, n_read)
            entries.append({"name": name, "sha256": shas[number]} | reading.entry(arguments.min_counts_kept))
            obs.write(source, name, reading.kept)
            kept_before += int(reading.kept.sum())
            read_before += source.n_cells
        if not kept_before:
            raise InputError(_no_cells(entries, arguments.min_genes))
        counts = "uint16" if most <= UINT16_MAX else "uint32"
        content = ContentDigest()
        shards = write_shards(
            folder,
            _told(scatter.shuffled(), progress, kept_before),
            columns=schema(genes, counts),
            n_cells=kept_before,
            shard_rows=arguments.shard_rows,
            batch_rows=arguments.batch_rows,
            written=content.update,
        )
    manifest = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "values": "raw counts",
        "cells": kept_before,
        "nnz": nnz,
        "dtypes": {"cell_id": "uint32", "source": "uint16", "total": "uint32", "genes": genes, "counts": counts},
        "genes": {"n": len(vocab), "vocab_sha256": vocab.sha256} | file_entry(folder / GENES),
        "obs": {"columns": arguments.obs_columns} | file_entry(folder / OBS),
        "build": asdict(arguments),
        "sources": entries,
        "content": content.hexdigest(),
        "shards": shards,
        "versions": tool_versions(),
    }
    write_manifest(folder, manifest | {"corpus_id": corpus_id(manifest)})


def _told(batches: Iterator[CountBatch], progress: Progress, n_cells: int) -> Iterator[CountBatch]:
    done = 0
    for batch in batches:
        yield batch
        done += len(batch)
        progress("write", done, n_cells)


def _no_cells(entries: list[dict[str, Any]], min_genes: int) -> str:
    account = "; ".join(
        f"{entry['name']}: {entry['dropped']['empty']:,} of {entry['cells_read']:,} cells empty, "
        f"{entry['dropped']['few genes']:,} with fewer than {min_genes} genes of the vocabulary"
        for entry in entries[:5]
    )
    return f"no cell is left ({account}). Lower min_genes, or give cells with counts in genes of the vocabulary."
