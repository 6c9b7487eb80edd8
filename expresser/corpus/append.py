"""Add inputs to a finished corpus: new shards behind the old ones, which are not touched, and the manifest replaced last."""

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from anndata import AnnData

from expresser.atomic import flush
from expresser.corpus.assembling import Intake, Scattered
from expresser.corpus.build import Progress, silent
from expresser.corpus.duplicates import Seen, cell_keys, name_keys
from expresser.corpus.history import appended, leftovers
from expresser.corpus.manifest import corpus_id, file_entry, read_manifest, tool_versions, write_manifest
from expresser.corpus.obs import OWN_COLUMNS, ObsWriter
from expresser.corpus.preparing import (
    UINT16_MAX,
    Arguments,
    check_distinct,
    check_numbers,
    description,
    distinct_names,
    make_jobs,
    no_cells,
    sha256_of,
)
from expresser.corpus.shards import ContentDigest, schema
from expresser.corpus.shardsteps import read_shard, write_rows
from expresser.corpus.shuffle import Scatter, bucket_count
from expresser.corpus.source import Source, open_source
from expresser.corpus.store import Corpus
from expresser.corpus.workshop import Workshop, recorded, workshop, workshop_of
from expresser.errors import InputError
from expresser.one_writer import one_writer

MANY_LOST = 0.1  # share of an input's counts outside the vocabulary from which a rebuild is advised


def append_corpus(
    folder: str | Path,
    inputs: Sequence[str | Path | AnnData],
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> Corpus:
    """Add the cells of `inputs` to the corpus in `folder` by the rules it was built with, and open it.

    The vocabulary stays: other genes of the inputs are dropped and counted in their entry of the manifest; above MANY_LOST of their
    counts a rebuild is worth its time. Labels keep their columns (an input without one has missing values); a column whose type no
    longer fits becomes text, as in a build of all inputs. Cell ids go on where they ended, so that what refers to old cells still
    does. New cells are in random order among themselves and lie behind all old ones: the stream's order is global and does not mind,
    but consecutive rows on disk are a fair sample of their part alone. `manifest["appended"]` lists the parts.

    The old shards are read once, for the digest of all rows that `corpus_id` needs, and never written. The new manifest takes the
    place of the old one in one step: a process killed before leaves the old corpus, and the same call goes on (see `build_corpus`).
    One killed between that step and the last leaves the old table of labels, which the next append removes. A run that has the
    corpus open goes on reading the rows it knew; labels are another file afterwards.

    Raises InputError, with the corpus as it was: a subset or a side of a split (append to the corpus it comes from), an input that is
    in it, counts wider than its type, and as `build_corpus`.
    """
    inputs = [inputs] if isinstance(inputs, str | Path | AnnData) else list(inputs)
    if not inputs:
        raise InputError("no inputs: name at least one file of raw counts.")
    folder = Path(folder).expanduser().resolve()
    if not folder.is_dir():
        Corpus.open(folder)  # says that it is none
    with one_writer(folder):
        return _append(Corpus.open(folder), inputs, workers=workers, progress=progress)


def _append(
    corpus: Corpus, inputs: Sequence[str | Path | AnnData], *, workers: int, progress: Progress | None
) -> Corpus:
    old = corpus.manifest
    arguments = _arguments(corpus)
    sources = [open_source(data, layer=arguments.layer, features=corpus.features) for data in inputs]
    shas = [sha256_of(source, arguments.obs_columns) for source in sources]
    check_distinct(sources, shas)
    contained = {entry["sha256"]: entry["name"] for entry in old["sources"]}
    for source, sha in zip(sources, shas):
        if sha in contained:
            # Its maker may have been killed between the last steps. Another append's work, which can go on, is left alone.
            begun = recorded(workshop_of(corpus.path, "appending"), "journal")
            if begun is None or begun.get("corpus") != corpus.corpus_id:
                with workshop(corpus.path, "appending"):
                    _clean(corpus.path)
            raise InputError(
                f"{source.path or source.name}: is in {corpus.path} already, as {contained[sha]!r} (sha256 {sha[:12]}…): its cells "
                "would count twice. Nothing was changed: leave it out."
            )
    check_numbers(corpus.n_cells + sum(source.n_cells for source in sources), len(old["sources"]) + len(sources))
    names = _new_names(distinct_names(sources), [entry["name"] for entry in old["sources"]])
    jobs = make_jobs(sources, names, shas, corpus.vocab, arguments, old["dtypes"]["genes"], first=len(old["sources"]))
    with workshop(corpus.path, "appending") as shop:
        if read_manifest(corpus.path)["corpus_id"] != old["corpus_id"]:
            raise InputError(
                f"{corpus.path}: another process appended to it meanwhile. Nothing was changed: try again."
            )
        job = description(sources, names, shas, corpus.vocab, arguments)
        shop.begin(job | {"corpus": old["corpus_id"]})
        progress = progress or silent
        n_read = sum(source.n_cells for source in sources)
        with Scatter(
            shop.folder, seed=arguments.seed, n_buckets=bucket_count(n_read), genes=old["dtypes"]["genes"]
        ) as scatter:
            intake = Intake(shop, scatter, sources, jobs, first_cell=corpus.n_cells)
            content = ContentDigest()
            seen = _read_old(corpus, content, arguments)
            done = intake.run(workers=workers, seen=seen, progress=progress)
            _check(corpus, done, arguments)
            _take_back(corpus, shop)
            _clean(corpus.path)
            shards = write_rows(
                shop,
                scatter,
                columns=schema(old["dtypes"]["genes"], old["dtypes"]["counts"]),
                n_cells=done.cells,
                shard_rows=arguments.shard_rows,
                batch_rows=arguments.batch_rows,
                first_shard=len(old["shards"]),
                content=content,
                progress=progress,
            )
        obs = _write_obs(corpus, shop, sources, names, done, arguments)
        _deliver(corpus, shop, done, shards, obs, content.hexdigest())
    return Corpus.open(corpus.path)


def lost_counts(corpus: Corpus) -> list[tuple[str, float]]:
    """(name, share of counts outside the vocabulary) of appended inputs that lost more than MANY_LOST."""
    new = {name for part in appended(corpus.manifest) for name in part["inputs"]}
    shares = [(e["name"], e["genes"]["counts_kept"]) for e in corpus.manifest["sources"] if e["name"] in new]
    return [(name, 1 - kept) for name, kept in shares if kept is not None and 1 - kept > MANY_LOST]


def _arguments(corpus: Corpus) -> Arguments:
    """Those of the build; InputError where the corpus was not built, or by a version that knew more."""
    if "derived_from" in corpus.manifest:
        raise InputError(
            f"{corpus.path}: was made from corpus {corpus.manifest['derived_from']['corpus_id'][:12]}… by a split or a subset, and "
            "what is appended would not have gone through its rule. Append to that corpus, and split or choose anew."
        )
    known = {field.name for field in fields(Arguments)}
    build = {name: value for name, value in corpus.manifest["build"].items() if name in known}
    try:
        return Arguments(**build)
    except TypeError as error:
        raise InputError(
            f"{corpus.path}: its manifest does not say how it was built ({error}). Build it again with all inputs."
        ) from error


def _new_names(names: list[str], taken: list[str]) -> list[str]:
    """Names that no source of the corpus has."""
    found: list[str] = []
    for name in names:
        number, free, base = 2, name, re.sub(r" \(\d+\)$", "", name)
        while free in taken or free in found:
            number, free = number + 1, f"{base} ({number})"
        found.append(free)
    return found


def _read_old(corpus: Corpus, content: ContentDigest, arguments: Arguments) -> Seen:
    """One pass over the old rows, from start to end: their digest, and their keys where duplicates are to be found."""
    seen, names = Seen(), None
    rule = arguments.deduplicate
    if rule is not None:
        path = corpus.path / corpus.manifest["obs"]["file"]
        columns = ["source", "barcode"] + ([arguments.source_column] if arguments.source_column else [])
        table = pq.read_table(path, columns=columns)
        own, barcodes = table["source"].to_pylist(), table["barcode"].to_pylist()
        labels = table[arguments.source_column].to_pylist() if arguments.source_column else [None] * len(own)
        sources = [name if label is None else str(label) for name, label in zip(own, labels)]
        names = name_keys(rule, barcodes, sources, "")
    for entry in corpus.manifest["shards"]:
        for batch in read_shard(corpus.path / entry["file"]):
            content.update(batch)
            if rule is not None and names is not None:
                seen.add(cell_keys(rule, names[batch.cell_id], batch))
    return seen


def _take_back(corpus: Corpus, shop: Workshop) -> None:
    """Shards that an append moved into the corpus before it was killed, and that no manifest names yet."""
    number = 0
    while (entry := shop.recorded(f"shard-{number:05d}")) is not None:
        moved, here = corpus.path / entry["file"], shop.product / entry["file"]
        if moved.is_file() and not here.exists():
            os.replace(moved, here)
        number += 1


def _clean(folder: Path) -> None:
    """Remove what killed appends left in the corpus and its manifest does not name; only under the lock of the workshop."""
    for name in leftovers(folder, read_manifest(folder)):
        (folder / name).unlink(missing_ok=True)


def _check(corpus: Corpus, done: Scattered, arguments: Arguments) -> None:
    if not done.cells:
        raise InputError(no_cells(done, arguments.min_genes, corpus.features))
    if corpus.manifest["dtypes"]["counts"] == "uint16" and done.most > UINT16_MAX:
        raise InputError(
            f"the largest count of the inputs is {done.most:,}, and {corpus.path} stores counts as uint16 (at most {UINT16_MAX:,}). "
            "A corpus has one type and nothing is clipped: build it again with all inputs."
        )


def _write_obs(
    corpus: Corpus, shop: Workshop, sources: Sequence[Source], names: list[str], done: Scattered, arguments: Arguments
) -> dict[str, Any]:
    """The whole obs table under a new name: the old one is the old manifest's until the last step."""
    old = corpus.path / corpus.manifest["obs"]["file"]
    path = shop.product / f"obs-{len(corpus.manifest['sources']) + len(sources):05d}.parquet"
    types = {field.name: field.type for field in pq.read_schema(old) if field.name not in OWN_COLUMNS}
    with ObsWriter(path, sources, arguments.obs_columns, old=types) as obs:
        file = pq.ParquetFile(old)
        for number in range(file.num_row_groups):
            obs.copy(file.read_row_group(number))
        for source, name, kept in zip(sources, names, done.kept):
            obs.write(source, name, kept)
    return {"columns": arguments.obs_columns} | file_entry(path)


def _deliver(
    corpus: Corpus,
    shop: Workshop,
    done: Scattered,
    shards: list[dict[str, Any]],
    obs: dict[str, Any],
    content: str,
) -> None:
    """Files first, under names the old manifest does not know; then the manifest, in one step; then what it no longer names."""
    old = corpus.manifest
    part = {"sources": len(done.entries), "cells": done.cells, "shards": len(shards), "to": old["corpus_id"]}
    manifest = {key: value for key, value in old.items() if key != "corpus_id"} | {
        "cells": old["cells"] + done.cells,
        "nnz": old["nnz"] + done.nnz,
        "obs": obs,
        "sources": [*old["sources"], *done.entries],
        "content": content,
        "shards": [*old["shards"], *shards],
        "appended": [*old.get("appended", ()), part | {"versions": tool_versions()}],
    }
    manifest |= {"corpus_id": corpus_id(manifest)}
    for entry in (*shards, obs):
        flush(shop.product / entry["file"])
        os.replace(shop.product / entry["file"], corpus.path / entry["file"])
    flush(corpus.path)  # on the disk before the manifest names them
    write_manifest(corpus.path, manifest)
    _clean(corpus.path)
