"""Cells read by address are those that `datasets` reads from the same files, bit for bit."""

import ctypes
import mmap
import os
import shutil
import sys
import time
from functools import cache
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from datasets import Dataset, concatenate_datasets
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.corpus.build import build_corpus
from expresser.corpus.readahead import read_at_random, will_need
from expresser.corpus.shards import CountBatch, from_arrow
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab

N_CELLS, N_GENES, SHARD, RECORD = 131, 40, 40, 7
FIELDS = ("cell_id", "source", "total", "lengths", "genes", "counts")


def build(folder: Path, largest: int) -> Corpus:
    rng = np.random.default_rng(5)
    counts = np.zeros((N_CELLS, N_GENES), np.float32)
    for i, n in enumerate(rng.integers(1, N_GENES + 1, N_CELLS)):
        counts[i, rng.permutation(N_GENES)[:n]] = rng.integers(1, 9, n)
    counts[17, 3] = largest
    ids = [f"ENSG{i:011d}" for i in range(N_GENES)]
    var, half = pd.DataFrame(index=ids), N_CELLS // 2
    parts = [
        anndata.AnnData(sparse.csr_matrix(x), obs=pd.DataFrame(index=[f"{name}{i}" for i in range(len(x))]), var=var)
        for name, x in (("a", counts[:half]), ("b", counts[half:]))
    ]
    vocab = GeneVocab.from_names(ids)
    return build_corpus(parts, folder, genes=vocab, min_genes=1, shard_rows=SHARD, batch_rows=RECORD)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Four shards of record batches of seven rows, uint16 throughout."""
    return build(tmp_path_factory.mktemp("read") / "corpus", 9)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """One count beyond uint16."""
    return build(tmp_path_factory.mktemp("wide") / "corpus", 70_000)


@cache
def dataset(corpus: Corpus) -> Dataset:
    """The same files opened by `datasets`."""
    parts = [Dataset.from_file(str(corpus.path / entry["file"])) for entry in corpus.manifest["shards"]]
    return concatenate_datasets(parts).with_format("arrow")


def reference(corpus: Corpus, rows: np.ndarray) -> CountBatch:
    """The documented way: one call of `datasets` in arrow format."""
    data = dataset(corpus)
    return from_arrow(data[rows.tolist()] if len(rows) else data.data.table.slice(0, 0))


def same(a: CountBatch, b: CountBatch) -> None:
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x, y, err_msg=name)


@settings(max_examples=80, deadline=None)
@given(rows=st.lists(st.integers(0, N_CELLS - 1), max_size=60), kind=st.sampled_from(["i8", "i4", "u4", "u1", "u8"]))
def test_any_rows_are_what_datasets_reads(corpus: Corpus, wide: Corpus, rows: list[int], kind: str) -> None:
    for one in (corpus, wide):
        same(one.read(np.array(rows, dtype=kind)), reference(one, np.array(rows, dtype=np.int64)))


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [5, 5, 5],
        [RECORD - 1, RECORD],  # over the end of a record batch
        [RECORD, RECORD - 1],
        [SHARD - 1, SHARD],  # over the end of a shard, whose last record batch is short
        [N_CELLS - 1, 0, N_CELLS - 1],
        list(range(N_CELLS)),
        list(range(N_CELLS))[::-1],
    ],
)
def test_rows_over_every_boundary(corpus: Corpus, wide: Corpus, rows: list[int]) -> None:
    for one in (corpus, wide):
        same(one.read(np.array(rows, np.int64)), reference(one, np.array(rows, np.int64)))
    assert wide.read(np.array([0])).counts.dtype == np.uint32


def test_columns_are_those_of_all_rows(corpus: Corpus) -> None:
    whole = reference(corpus, np.arange(N_CELLS))
    for name, column in (("cell_id", "cell_ids"), ("source", "source_ids"), ("total", "totals")):
        np.testing.assert_array_equal(getattr(corpus, column), getattr(whole, name))
    np.testing.assert_array_equal(corpus.lengths, whole.lengths)
    some = np.array([130, 3, 3, 39, 40])
    np.testing.assert_array_equal(corpus.lengths_of(some), whole.lengths[some])


def test_a_batch_is_a_copy(corpus: Corpus) -> None:
    before = reference(corpus, np.arange(9))
    batch = corpus.read(np.arange(9))
    for name in FIELDS:
        getattr(batch, name)[:] = 1
    same(corpus.read(np.arange(9)), before)


def test_what_is_no_row_is_refused(corpus: Corpus) -> None:
    for rows in ([N_CELLS], [-1, 3]):
        for ask in (corpus.read, corpus.lengths_of, corpus.announce):
            with pytest.raises(IndexError, match="asked of a corpus with rows 0 … 130"):
                ask(np.array(rows))


@pytest.mark.parametrize("value", [2**31 - 1, -5, 0])
def test_a_damaged_offset_is_an_error_and_no_crash(corpus: Corpus, tmp_path: Path, value: int) -> None:
    folder = shutil.copytree(corpus.path, tmp_path / "damaged")
    file = folder / "cells-00001.arrow"
    content, offsets = file.read_bytes(), np.cumsum([0, *corpus.lengths[SHARD : SHARD + RECORD]]).astype("<i4")
    at = content.index(offsets.tobytes()) + 4 * 3
    file.write_bytes(content[:at] + np.int32(value).tobytes() + content[at + 4 :])
    damaged = Corpus.open(folder)
    same(damaged.read(np.array([0, SHARD, SHARD + 5])), corpus.read(np.array([0, SHARD, SHARD + 5])))
    with pytest.raises(InputError, match=r"damaged: a cell's entries lie outside its record batch.*corpus verify"):
        damaged.read(np.array([SHARD + 2, SHARD + 3]))


def test_shards_whose_buffers_end_early_are_refused_on_opening(corpus: Corpus, tmp_path: Path) -> None:
    folder = shutil.copytree(corpus.path, tmp_path / "damaged")
    file = folder / "cells-00001.arrow"
    content, offsets = file.read_bytes(), np.cumsum([0, *corpus.lengths[SHARD : SHARD + RECORD]]).astype("<i4")
    at = content.index(offsets.tobytes()) + 4 * RECORD  # the last offset: more entries than the buffer holds
    file.write_bytes(content[:at] + np.int32(10**6).tobytes() + content[at + 4 :])
    with pytest.raises(InputError, match=r"cells-00001.arrow: not readable as an Arrow stream"):
        Corpus.open(folder)


# What the system is told


def test_announcing_rows_changes_nothing(corpus: Corpus) -> None:
    rows = np.array([0, 130, 5, 5, 77])
    before = corpus.read(rows)
    corpus.announce(rows)
    corpus.announce(np.array([], np.int64))
    same(corpus.read(rows), before)


def resident(mapping: mmap.mmap, address: int) -> np.ndarray:
    found = np.zeros(len(mapping) // mmap.PAGESIZE, np.uint8)
    told = ctypes.CDLL(None, use_errno=True).mincore(
        ctypes.c_void_p(address), ctypes.c_size_t(len(mapping)), ctypes.c_void_p(found.ctypes.data)
    )
    assert told == 0
    return found & 1


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only: elsewhere nothing is told")
def test_announced_pages_come_and_others_do_not(tmp_path: Path) -> None:
    path, pages = tmp_path / "file", 4096
    with open(path, "wb") as file:
        file.write(os.urandom(pages * mmap.PAGESIZE))
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    view = np.frombuffer(mapping, np.uint8)
    address = view.__array_interface__["data"][0]
    if resident(mapping, address).mean() > 0.1:
        pytest.skip("this file system keeps its pages in memory")
    read_at_random(mapping)
    wanted = [1000, 1001, 3000]
    start = address + np.array([1000 * mmap.PAGESIZE + 4000, 3000 * mmap.PAGESIZE], np.int64)
    will_need(start, np.array([200, 1], np.int64))  # the first range lies in two pages
    for _ in range(200):
        if (found := resident(mapping, address))[wanted].all():
            break
        time.sleep(0.01)
    assert found[wanted].all()
    assert found.mean() < 0.1
