"""A corpus on disk, opened: memory-mapped shards read by row, with its vocabulary, obs and per-cell columns."""

import mmap
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Int32, Int64, Integer, UInt16, UInt32

from expresser.corpus.labels import coded_labels
from expresser.corpus.manifest import features_of, read_manifest
from expresser.corpus.mapped import AddressView
from expresser.corpus.obs import read_obs
from expresser.corpus.readahead import read_at_random, will_need
from expresser.corpus.shards import CountBatch, prove_plain, schema
from expresser.corpus.source import Features
from expresser.errors import InputError
from expresser.foreign import LARGE, file_in
from expresser.genes import GeneVocab
from expresser.notebook import card
from expresser.readable import counted
from expresser.region_vocab import RegionVocab

__all__ = ["Corpus", "CountBatch"]


class Corpus:
    """Cells of a corpus by row: rows lie in a seeded random order over all sources, `cell_ids` is their row in obs.

    Nothing but the manifest, the vocabulary and the shards' headers is read on opening. Safe to pickle and to fork: the
    shards are mapped read-only and a copy maps them anew. They are plain files of Hugging Face `datasets`
    (`Dataset.from_file(corpus.path / "cells-00000.arrow")`), read here by address, which takes a quarter of the time.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], vocab: GeneVocab, batches: list[pa.RecordBatch]) -> None:
        self.path = path
        self.manifest = manifest
        self.vocab = vocab
        self.n_cells: int = manifest["cells"]
        self.corpus_id: str = manifest["corpus_id"]
        self._batches = batches
        self._view = AddressView(batches, path)
        self._columns_announced = False

    def __reduce__(self) -> tuple[Any, ...]:
        return Corpus.open, (self.path.absolute(),)

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True) -> "Corpus":
        """Open the corpus in `folder`.

        `check` compares the size and the row count of each file with the manifest (free: no data are read; what has
        been altered inside a file is `verify_corpus`'s to find). Raises InputError where the folder is missing, is no
        corpus, has another format version, or lacks or has truncated a file.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if check:
            check_sizes(folder, manifest)
        features = features_of(manifest)
        kind = RegionVocab if features == "regions" else GeneVocab
        vocab = kind.load(file_in(folder, manifest["genes"]["file"], most=LARGE), most=manifest["genes"]["n"])
        if (vocab.sha256, len(vocab)) != (manifest["genes"]["vocab_sha256"], manifest["genes"]["n"]):
            raise InputError(
                f"{folder / manifest['genes']['file']}: not the vocabulary this corpus was built with (sha256 "
                f"{vocab.sha256[:12]}…, the manifest has {manifest['genes']['vocab_sha256'][:12]}…). "
                f"Token ids would name other {features}: build or copy the corpus again."
            )
        batches = [batch for entry in manifest["shards"] for batch in _map_shard(folder, manifest, entry, check=check)]
        return cls(folder, manifest, vocab, batches)

    @property
    def features(self) -> Features:
        """What the tokens are: genes, or regions of the genome (then `vocab` is a `RegionVocab`)."""
        return features_of(self.manifest)

    def __len__(self) -> int:
        return self.n_cells

    def __repr__(self) -> str:
        return (
            f"Corpus({str(self.path)!r}: {counted(self.n_cells, 'cells')} of {counted(len(self.manifest['sources']), 'sources')}, "
            f"{len(self.vocab):,} {self.features}, {self.manifest['nnz']:,} non-zero counts, id {self.corpus_id[:12]})"
        )

    def _repr_html_(self) -> str:
        sources = self.manifest["sources"]
        facts = {
            "cells": self.n_cells,
            str(self.features): len(self.vocab),
            "sources": len(sources),
            "non-zero counts": self.manifest["nnz"],
            "a cell (mean)": self.manifest["nnz"] / max(self.n_cells, 1),
            "obs": ", ".join(self.manifest["obs"].get("columns", ())) or None,
            "id": self.corpus_id[:12],
        }
        rows = pd.DataFrame({"cells": [s["cells"] for s in sources]}, index=[str(s["name"]) for s in sources])
        return card(f"Corpus {self.path}", facts, {"sources": rows})

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Row i is cell id i: `source`, `barcode` and the chosen columns. Read on first use."""
        return read_obs(self.path / self.manifest["obs"]["file"], n_cells=self.n_cells)

    def labels(self, column: str) -> tuple[list[str], Int32[np.ndarray, " cells"]]:
        """Values of an obs column as text, sorted, and the number of its value for the cell in each *row*; missing is "nan".

        Reads that column alone: the whole table of millions of cells would be gigabytes of barcodes. Raises InputError where the
        corpus has no such column.
        """
        names, numbers = coded_labels(self, column)
        return names, numbers[self.cell_ids].astype(np.int32)

    @cached_property
    def lengths(self) -> Int32[np.ndarray, " cells"]:
        """Non-zero genes of the cell in each row: from the list offsets, no count is touched."""
        return np.concatenate([np.diff(offsets) for offsets in self._buffers("genes", np.int32)])

    @cached_property
    def totals(self) -> UInt32[np.ndarray, " cells"]:
        """Sum of raw counts over the vocabulary of the cell in each row."""
        return np.concatenate(self._buffers("total", np.uint32))

    @cached_property
    def cell_ids(self) -> UInt32[np.ndarray, " cells"]:
        """Obs row of the cell in each row."""
        ids = np.concatenate(self._buffers("cell_id", np.uint32))
        self._prove(ids, self.n_cells, "cell ids")
        return ids

    @cached_property
    def source_ids(self) -> UInt16[np.ndarray, " cells"]:
        """Number of the input (position in manifest["sources"]) of the cell in each row."""
        sources = np.concatenate(self._buffers("source", np.uint16))
        self._prove(sources, len(self.manifest["sources"]), "numbers of sources")
        return sources

    def lengths_of(self, rows: Integer[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        """Non-zero genes of the cells in `rows`. Unlike `lengths`, which holds four bytes for every cell, keeps nothing."""
        return self._view.entries(self._checked(rows))[3]

    def read(self, rows: Integer[np.ndarray, " rows"]) -> CountBatch:
        """The cells in `rows`, in that order, packed; rows may repeat.

        Raises IndexError for a row outside 0 … n_cells - 1, InputError for a cell that is damaged beyond reading.
        """
        batch = self._view.read(self._checked(rows))
        self._prove(batch.genes, len(self.vocab), str(self.features))
        return batch

    def read_genes(
        self, rows: Integer[np.ndarray, " rows"]
    ) -> tuple[Int64[np.ndarray, " rows"], UInt16[np.ndarray, " entries"] | UInt32[np.ndarray, " entries"]]:
        """How many non-zero genes (or regions) each of the cells in `rows` has, and which: `read` without the counts."""
        lengths, genes = self._view.genes(self._checked(rows))
        self._prove(genes, len(self.vocab), str(self.features))
        return lengths, genes

    def announce(self, rows: Integer[np.ndarray, " rows"], *, counts: bool = True) -> None:
        """These rows will be read soon: the system starts to fetch them and the call returns. On Linux; elsewhere nothing.

        With the first rows the columns of one number a cell (14 bytes of each) are fetched whole: every row is looked up in them,
        and in a corpus larger than memory each look would wait for the disk.
        """
        if not self._columns_announced:
            self._columns_announced = True
            for column, kind in (
                ("genes", np.int32),
                ("cell_id", np.uint32),
                ("source", np.uint16),
                ("total", np.uint32),
            ):
                self._buffers(column, kind)
        will_need(*self._view.addresses(self._checked(rows), counts=counts))

    def _checked(self, rows: Integer[np.ndarray, " rows"]) -> Int64[np.ndarray, " rows"]:
        if rows.dtype.kind not in "iu":
            raise TypeError(f"rows must be integers, not {rows.dtype}")
        if len(rows) and (rows.min() < 0 or rows.max() >= self.n_cells):
            raise IndexError(f"rows {rows.min()} … {rows.max()} asked of a corpus with rows 0 … {self.n_cells - 1}")
        return rows.astype(np.int64, copy=False)

    def _prove(self, numbers: np.ndarray, below: int, what: str) -> None:
        """InputError where one of the numbers of a shard points outside of what it numbers."""
        if len(numbers) and (most := int(numbers.max())) >= below:
            raise InputError(
                f"{self.path}: the shards hold {what} up to {most:,}, and there are {below:,}. `expresser corpus verify --deep` names "
                "the file: copy the corpus again, or build it again."
            )

    def _buffers(self, column: str, kind: type[np.generic]) -> list[np.ndarray]:
        """Each record batch's values of a column (offsets of a list) as views, announced: they are about to be read whole."""
        buffers = [batch.column(column).buffers()[1] for batch in self._batches]
        will_need(np.array([b.address for b in buffers], np.int64), np.array([b.size for b in buffers], np.int64))
        more = 1 if column in ("genes", "counts") else 0  # a list has one offset more than rows
        return [np.frombuffer(b, kind)[: len(batch) + more] for b, batch in zip(buffers, self._batches)]


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Every file that the manifest names is there with the bytes it had; else InputError that names it."""
    for entry in (manifest["genes"], manifest["obs"], *manifest["shards"]):
        path = folder / entry["file"]
        if not path.exists():
            raise InputError(f"{path}: missing. The corpus is incomplete: build or copy it again.")
        file_in(folder, entry["file"])
        if (size := path.stat().st_size) != entry["bytes"]:
            raise InputError(
                f"{path}: {size:,} bytes, the manifest says {entry['bytes']:,}: the file was cut short or altered. "
                "Copy it again, or build the corpus again."
            )


def _map_shard(folder: Path, manifest: dict[str, Any], entry: dict[str, Any], *, check: bool) -> list[pa.RecordBatch]:
    path = folder / entry["file"]
    try:
        with open(path, "rb") as file:
            mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        read_at_random(mapping)  # before the headers are touched: each would fetch a megabyte around it
        stream = pa.ipc.open_stream(pa.py_buffer(mapping))  # the buffer, and so each record batch, keeps the mapping
        wanted = schema(manifest["dtypes"]["genes"], manifest["dtypes"]["counts"])
        if not stream.schema.equals(wanted):
            raise ValueError(f"columns of {stream.schema.types}, the manifest says {wanted.types}")
        prove_plain(pa.py_buffer(mapping))
        batches = list(_sound(stream))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise InputError(
            f"{path}: not readable as an Arrow stream ({error}). Copy it again, or build the corpus again."
        ) from error
    rows = sum(map(len, batches))
    if check and rows != entry["rows"]:
        raise InputError(
            f"{path}: {rows:,} rows, the manifest says {entry['rows']:,}. Copy it again, or build the corpus again."
        )
    return batches


def _sound(stream: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
    for batch in filter(len, stream):
        # Free (no data are read but the last offset): buffers are as long as their headers say, so that no address leads out.
        batch.validate()
        if batch.column("genes").offset or len(batch.column("genes").values) != len(batch.column("counts").values):
            raise ValueError("genes and counts of a record batch differ in number")
        yield batch
