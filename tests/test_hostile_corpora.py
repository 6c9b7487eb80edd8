"""A corpus from a stranger: its manifest chooses no file outside of it, and no number in its shards leads out of what it numbers."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import JSON_FILES, bounded, edit, refused, set_to

from expresser.corpus import manifest as manifests
from expresser.corpus.mirror import parse_manifest, pull_corpus
from expresser.corpus.store import Corpus
from expresser.corpus.verify import verify_corpus

SHARD = "cells-00000.arrow"


@pytest.fixture
def corpus(tiny_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_corpus, tmp_path / "corpus"))


def opened(folder: Path) -> Corpus:
    """A corpus with everything of it touched once."""
    found = Corpus.open(folder)
    rows = np.arange(found.n_cells)
    found.read(rows).to_csr(len(found.vocab))
    found.read_genes(rows)
    found.labels("cell_type")
    assert len(found.obs) == found.n_cells
    assert len(found.source_ids) == len(found.lengths) == len(found.totals) == found.n_cells
    return found


def settle(folder: Path) -> None:
    """Make the manifest agree with the files and with itself again, as a stranger who knows how would."""

    def agree(manifest: Any) -> None:
        for entry in (manifest["genes"], manifest["obs"], *manifest["shards"]):
            entry |= manifests.file_entry(folder / entry["file"])
        manifest["corpus_id"] = manifests.corpus_id(manifest)

    edit(folder / "manifest.json", agree)


def rewritten(folder: Path, change: Callable[[pa.RecordBatch], pa.RecordBatch], **options: Any) -> None:
    """The first shard with its record batches changed."""
    path = folder / SHARD
    with pa.memory_map(str(path)) as file:
        batches = [change(batch) for batch in pa.ipc.open_stream(file)]
    with pa.OSFile(str(folder / "new"), "wb") as sink, pa.ipc.new_stream(sink, batches[0].schema, **options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    os.replace(folder / "new", path)
    settle(folder)


def column(batch: pa.RecordBatch, name: str, values: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, values)


def test_what_was_built_opens_within_the_bounds_that_refusals_keep(corpus: Path) -> None:
    with bounded():
        opened(corpus)


@pytest.mark.parametrize("case", JSON_FILES)
def test_a_manifest_that_is_no_plain_json_is_refused(corpus: Path, case: str) -> None:
    damage, words = JSON_FILES[case]
    damage(corpus / "manifest.json")
    refused(lambda: Corpus.open(corpus), f"{words}|no manifest.json in it|not the manifest")


@pytest.mark.parametrize("part", ["genes.file", "obs.file", "shards.0.file"])
@pytest.mark.parametrize(
    "name", ["../secret", "/etc/passwd", "a/b", "..", ".hidden", "", "C:x", "a\\b", "a\x00b", "manifest.json", 5, None]
)
def test_no_manifest_chooses_a_file_outside_of_its_folder(corpus: Path, part: str, name: object) -> None:
    edit(corpus / "manifest.json", set_to(part, name))
    refused(lambda: Corpus.open(corpus), "names a file|names one file|file is|lacks file")
    text = (corpus / "manifest.json").read_bytes()
    refused(lambda: parse_manifest(text, "https://stranger"), "https://stranger")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cells", 10**15),
        ("cells", -1),
        ("cells", "120"),
        ("cells", True),
        ("cells", 2**63),
        ("nnz", 0),
        ("nnz", None),
        ("dtypes", []),
        ("dtypes.genes", "object"),
        ("dtypes.counts", ["uint16"]),
        ("genes", "genes.tsv"),
        ("genes.n", -1),
        ("genes.n", 10**12),
        ("genes.n", 3),
        ("genes.bytes", 1.5),
        ("genes.sha256", 5),
        ("obs.bytes", 10**15),
        ("obs.columns", "cell_type"),
        ("sources", {}),
        ("sources", []),
        ("sources.0", "x"),
        ("sources.0.name", 5),
        ("sources.0.cells", "x"),
        ("build", []),
        ("shards", []),
        ("shards", 5),
        ("shards.0.rows", 10**15),
        ("shards.0.rows", -5),
        ("shards.0.nnz", "x"),
        ("content", ["x"]),
        ("format", ["expresser-corpus"]),
        ("format_version", {"a": 1}),
        ("corpus_id", 5),
        ("features", "regions"),
    ],
)
def test_a_manifest_of_other_kinds_or_lying_sums_is_refused(corpus: Path, key: str, value: object) -> None:
    edit(corpus / "manifest.json", set_to(key, value))
    manifest = json.loads((corpus / "manifest.json").read_text())
    if key not in ("format", "format_version", "corpus_id"):
        try:  # believable where it can be: the id says nothing of sums
            manifest["corpus_id"] = manifests.corpus_id(manifest)
            (corpus / "manifest.json").write_text(json.dumps(manifest))
        except (KeyError, TypeError):
            pass
    refused(lambda: opened(corpus), r"corpus")


def test_sums_that_agree_with_each_other_and_not_with_the_files_are_refused(corpus: Path) -> None:
    def more(manifest: Any) -> None:
        manifest["cells"] += 1000
        manifest["shards"][0]["rows"] += 1000

    edit(corpus / "manifest.json", more)
    refused(lambda: Corpus.open(corpus), r"\.arrow: 120 rows, the manifest says 1,120")


@pytest.mark.parametrize("name", ["genes.tsv", "obs.parquet", SHARD, "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(corpus: Path, tmp_path: Path, name: str) -> None:
    (corpus / name).rename(tmp_path / "secret")
    (corpus / name).symlink_to(tmp_path / "secret")
    refused(lambda: Corpus.open(corpus), "outside of its folder")
    refused(lambda: verify_corpus(corpus), "outside of its folder")


# Shards whose checksums were made to agree


def test_genes_beyond_the_vocabulary_are_refused_when_they_are_read(corpus: Path) -> None:
    def beyond(batch: pa.RecordBatch) -> pa.RecordBatch:
        genes = batch.column("genes")
        values = genes.values.to_numpy().copy()
        values[-1] = 60_000
        return column(batch, "genes", pa.ListArray.from_arrays(genes.offsets, pa.array(values)))

    rewritten(corpus, beyond)
    refused(lambda: opened(corpus), "hold genes up to 60,000, and there are 80")


@pytest.mark.parametrize(("name", "kind"), [("cell_id", np.uint32), ("source", np.uint16)])
def test_cells_and_sources_beyond_the_corpus_are_refused(corpus: Path, name: str, kind: type) -> None:
    rewritten(corpus, lambda batch: column(batch, name, pa.array(np.full(len(batch), 60_000, kind))))
    refused(lambda: opened(corpus), r"up to 60,000, and there are (120|1)\.")


def test_a_shard_of_other_columns_is_refused_before_it_is_read(corpus: Path) -> None:
    def words(batch: pa.RecordBatch) -> pa.RecordBatch:
        return column(batch, "total", pa.array(["x"] * len(batch)).dictionary_encode())

    rewritten(corpus, words)
    refused(lambda: Corpus.open(corpus), r"cells-00000\.arrow: not readable as an Arrow stream \(columns of")


def test_a_shard_that_unpacks_to_more_than_it_weighs_is_refused(corpus: Path) -> None:
    rewritten(corpus, lambda batch: batch, options=pa.ipc.IpcWriteOptions(compression="zstd"))
    refused(lambda: Corpus.open(corpus), "compressed")


def test_a_table_of_labels_that_claims_more_rows_than_cells_is_refused_before_it_is_read(corpus: Path) -> None:
    schema = pq.read_schema(corpus / "obs.parquet")
    with pq.ParquetWriter(corpus / "obs.parquet", schema, compression="zstd") as writer:
        block = pa.table({field.name: pa.array(["x"] * 1_000_000, field.type) for field in schema})
        for _ in range(20):
            writer.write_table(block)
    settle(corpus)
    found = Corpus.open(corpus)
    refused(lambda: found.obs, "20,000,000 rows for 120 cells")
    refused(lambda: found.labels("cell_type"), "20,000,000 rows for 120 cells")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"\x80\x04K\x01."])
def test_labels_that_are_no_table_are_refused(corpus: Path, content: bytes) -> None:
    (corpus / "obs.parquet").write_bytes(content)
    settle(corpus)
    refused(lambda: opened(corpus), r"obs\.parquet")


def test_labels_that_are_no_text_are_refused(corpus: Path) -> None:
    table = pq.read_table(corpus / "obs.parquet", read_dictionary=[])
    column = table["cell_type"].combine_chunks()
    _, ends, letters = column.buffers()
    torn = pa.Array.from_buffers(pa.string(), len(column), [None, ends, pa.py_buffer(b"\xff" * letters.size)])
    pq.write_table(
        table.set_column(table.schema.get_field_index("cell_type"), "cell_type", torn), corpus / "obs.parquet"
    )
    settle(corpus)
    found = Corpus.open(corpus)
    for use in (lambda: found.obs, lambda: found.labels("cell_type")):
        refused(use, r"obs\.parquet")


def test_a_pull_writes_nothing_where_the_manifest_leads_elsewhere(corpus: Path, tmp_path: Path) -> None:
    edit(corpus / "manifest.json", set_to("shards.0.file", "../escaped.arrow"))
    refused(lambda: pull_corpus(f"file://{corpus}", tmp_path / "out"), "names a file")
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "escaped.arrow").exists()
