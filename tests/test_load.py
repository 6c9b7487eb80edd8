"""Inputs larger than memory: matrices in files are the same matrices, and no step of the command line holds cells x features."""

import errno
import json
import mmap
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.cli import main
from expresser.corpus import blocks, shuffle
from expresser.corpus.blocks import csr_blocks
from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.regions import Regions
from tests.translate_toys import ATAC, RNA, toy_anndata, toy_fit, toy_study
from translate import align, asking, large, peaks, reading, stored
from translate.align import take_columns
from translate.data import read_study
from translate.feed import Feed
from translate.fitting import fingerprint
from translate.held import Held
from translate.large import Growing, by_rows, most, stacked, take_rows
from translate.liftover import LiftReport
from translate.opening import is_self_contained
from translate.peaks import binarise
from translate.preprocess import AtacInput, RnaInput
from translate.splits import Split, split_random, thinned_split
from translate.stored import LargeMatrix, StoredBlocks
from translate.study import Measured
from translate.translator import Translator

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_load.py"


@contextmanager
def in_files(entries: int = 100, step: int = 30) -> Iterator[None]:
    """What has more entries than so many lies in files, and so many are moved at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(large.VARIABLE, f"{entries * 8 / 1e9:.12f}")
        patch.setattr(large, "_ENTRIES", step)
        yield


def lies_in_a_file(array: np.ndarray) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def counts(rows: int, columns: int, *, seed: int = 0, density: float = 0.2) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    dense = rng.poisson(2.0, (rows, columns)) * (rng.random((rows, columns)) < density)
    return sparse.csr_matrix(dense.astype(np.float32))


def same(one: sparse.csr_matrix, other: sparse.csr_matrix) -> bool:
    """To the bit, stored entry by stored entry."""
    parts = ("data", "indices", "indptr")
    return one.shape == other.shape and all(np.array_equal(getattr(one, p), getattr(other, p)) for p in parts)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 30), st.integers(1, 60))
def test_what_is_made_of_a_matrix_is_the_same_whether_it_lies_in_memory_or_in_files(
    seed: int, rows: int, columns: int, entries: int
) -> None:
    matrix, rng = counts(rows, columns, seed=seed), np.random.default_rng(seed)
    some = rng.integers(0, rows, rows)
    wanted = rng.permutation(columns).astype(np.int64)
    wanted[rng.random(columns) < 0.2] = -1

    def made() -> list[sparse.csr_matrix]:
        return [
            take_rows(matrix, some),
            take_columns(matrix, wanted, some),
            stacked([matrix, take_rows(matrix, some)]),
            by_rows(matrix, lambda part: sparse.csr_matrix(part * 2)),
            binarise(matrix),
        ]

    here = made()
    with in_files(entries, step=7):
        there = made()
    assert all(same(*pair) for pair in zip(here, there))


def test_a_growing_matrix_moves_to_files_when_it_is_large_and_sooner_where_it_shares_the_memory() -> None:
    matrix = counts(40, 30)
    with in_files(matrix.nnz):
        found = []
        for of in (1, 2):
            growing = Growing(30, of=of)
            for first in range(0, 40, 9):
                growing.add(matrix[first : first + 9])
            found.append(growing.whole())
    assert all(same(one, matrix) for one in found)
    assert [lies_in_a_file(one.indices) for one in found] == [False, True]


def test_a_matrix_without_entries_and_one_without_rows_are_matrices_too() -> None:
    with in_files(0):
        assert Growing(7).whole().shape == (0, 7)
        assert take_rows(sparse.csr_matrix((5, 3), dtype=np.float32), np.array([4, 0])).shape == (2, 3)


def test_files_read_into_files_give_the_same_study_and_the_same_fit_to_the_bit(tmp_path: Path) -> None:
    made = toy_anndata()
    for modality in ("rna", "atac"):
        made[modality].write_h5ad(tmp_path / f"{modality}.h5ad")
    read = {m: tmp_path / f"{m}.h5ad" for m in ("rna", "atac")}
    study = read_study(rna=read["rna"], atac=read["atac"], check_pairing=False)
    fitted = toy_fit("babel", tmp_path / "here", study)
    with in_files(200):
        there = read_study(rna=read["rna"], atac=read["atac"], check_pairing=False)
        assert all(
            lies_in_a_file(of.matrix.indices) and lies_in_a_file(of.matrix.data) for of in there.measured.values()
        )
        split = split_random(study)
        assert fingerprint(there, split) == fingerprint(study, split)
        again = toy_fit("babel", tmp_path / "there", there)
        latent = again.latents(there.measured["atac"], source="atac")
    mine, its = fitted.system.state_dict(), again.system.state_dict()
    assert all(torch.equal(mine[name], its[name]) for name in mine)
    assert np.array_equal(latent, fitted.latents(study.measured["atac"], source="atac"))


def test_reading_fitting_and_feeding_take_no_memory_of_the_size_of_the_matrices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = 20_000
    made = {
        "rna": ad.AnnData(counts(cells, 200, density=0.6), var=toy_anndata(2, n_genes=200)["rna"].var),
        "atac": ad.AnnData(counts(cells, 200, seed=1, density=0.6), var=toy_anndata(2, n_peaks=200)["atac"].var),
    }
    size = 8 * min(of.X.nnz for of in made.values())
    for module in (align, peaks, stored):
        monkeypatch.setattr(module, "_ENTRIES", 20_000)
    monkeypatch.setattr(reading, "_ROWS", 50)
    everyone = np.arange(cells)
    LargeMatrix(made["atac"].X).open_in(everyone[:2])  # compiled before memory is counted
    with in_files(20_000, step=20_000):
        tracemalloc.start()
        try:
            study = read_study(**made, check_pairing=False)
            fingerprint(study, split_random(study))
            inputs = {
                "rna": RnaInput.fit(study.measured["rna"], everyone, RNA),
                "atac": AtacInput.fit(study.measured["atac"], everyone, ATAC),
            }
            feed = Feed.of(study, inputs)
            feed.mean_expression(everyone)
            feed.open_share(everyone)
            feed.median_open(everyone)
            inputs["rna"].keeps(study.measured["rna"])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 0.5 * size, f"{peak / 1e6:.1f} MB at once, for two matrices of {size / 1e6:.1f} MB or more"


def test_several_files_with_peaks_of_their_own_join_alike_in_memory_and_in_files(tmp_path: Path) -> None:
    made = toy_anndata()["atac"]
    parts = [made[:50, :80].copy(), made[50:, 30:].copy()]

    def joined() -> sparse.csr_matrix:
        with pytest.warns(match="are merged into"):
            return read_study(atac=parts).measured["atac"].matrix

    here = joined()
    with in_files(200):
        there = joined()
    assert same(here, there)
    assert lies_in_a_file(there.indices)


def test_what_is_open_in_cells_is_read_without_their_counts() -> None:
    matrix = counts(20, 15)
    cells = np.array([7, 0, 7, 19])
    lengths, found = LargeMatrix(matrix).open_in(cells)
    taken = matrix[cells]
    assert np.array_equal(lengths, np.diff(taken.indptr))
    assert np.array_equal(found, taken.indices)


def test_peaks_that_are_lifted_onto_one_place_are_open_alike_in_memory_and_in_files(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 24
    onto = np.random.default_rng(1).permutation(n) // 2 * 1_000
    places = Regions.of(np.full(n, "chr1", dtype=object), onto, onto + 500)
    before = Regions.of(np.full(n, "chr1", dtype=object), np.arange(n) * 2_000, np.arange(n) * 2_000 + 500)
    matrix = counts(30, n)
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(30)])
    measured = Measured(matrix, before.to_frame(), obs, "file")
    report = LiftReport(n, n, 0, 0, 0, 0, 0)
    monkeypatch.setattr(asking, "lift", lambda *_: (places, np.arange(n), report))
    with in_files(10):
        found = asking.lifted(measured, "chain")[0]
        blocks = StoredBlocks(LargeMatrix(found.matrix), sparse.identity(n // 2, np.float32, "csr"), [0, n // 2])
        opened = blocks.opened(np.arange(30))
    expected = np.zeros((30, n // 2))
    order = {name: i for i, name in enumerate(found.var.index)}
    for i, name in enumerate(places.names()):
        expected[:, order[name]] += matrix.toarray()[:, i]
    assert np.array_equal(opened, (expected > 0).sum(axis=0))
    assert np.array_equal(found.matrix.toarray(), expected)


def test_a_full_disk_is_told_with_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(large.os, "posix_fallocate", full, raising=False)
    with in_files(10), pytest.raises(InputError, match=r"No space left.*Set TMPDIR.*EXPRESSER_MATRIX_GB"):
        take_columns(counts(20, 10), np.arange(10))


def test_the_limit_of_a_matrix_is_a_number_of_gigabytes_or_a_share_of_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(large.VARIABLE, raising=False)
    assert 2**20 < most() < 2**40
    for no_number in ("much", "nan", "inf", "-1"):
        monkeypatch.setenv(large.VARIABLE, no_number)
        with pytest.raises(InputError, match=f"'{no_number}'; it is a number of gigabytes"):
            most()


def test_a_block_of_rows_has_no_more_entries_than_fit_whatever_rows_were_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = counts(50, 40)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 100)
    cut = list(csr_blocks(matrix.data, matrix.indices, matrix.indptr, matrix.shape, 4096))
    assert max(block.nnz for block in cut) <= 100
    assert len(cut) > 1
    assert same(sparse.vstack(cut, format="csr", dtype=np.float32), matrix)
    monkeypatch.setattr(blocks, "BLOCK_ENTRIES", 1)  # a row of more entries comes by itself
    cut = list(csr_blocks(matrix.data, matrix.indices, matrix.indptr, matrix.shape, 4096))
    assert sum(block.shape[0] for block in cut) == 50


def test_a_bucket_of_the_shuffle_that_is_too_large_is_sorted_in_parts_and_the_corpus_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ad.AnnData(counts(200, 40))
    made.var_names = [f"ENSG{i:011d}" for i in range(40)]
    whole = build_corpus([made], tmp_path / "whole", min_genes=1, batch_rows=60)
    taken: list[int] = []
    original = shuffle._taken

    def watched(table: pa.Table, rows: np.ndarray) -> Any:
        found = original(table, rows)
        taken.append(len(found.genes))
        return found

    monkeypatch.setattr(shuffle, "_taken", watched)
    monkeypatch.setattr(shuffle, "BUCKET_ENTRIES", 300)
    monkeypatch.setattr(shuffle, "HELD_ENTRIES", 200)
    parts = build_corpus([made], tmp_path / "parts", min_genes=1, batch_rows=60)
    assert len(taken) > 3
    assert max(taken) < 600
    assert parts.corpus_id == whole.corpus_id
    assert np.array_equal(Corpus.open(tmp_path / "parts").read(np.arange(200)).genes, whole.read(np.arange(200)).genes)


def test_more_cells_than_fit_are_judged_by_some_drawn_by_name_and_the_split_says_so() -> None:
    study = read_study(rna=toy_anndata()["rna"])
    split = Split("mine", np.arange(60), np.arange(60, 70), np.arange(70, 120))
    held = Held(study, split, seen=0).thinned(20)
    assert [len(part) for part in (held.split.train, held.split.valid, held.split.test)] == [20, 10, 20]
    assert held.split.name == "mine; 20 of 60 training cells; 20 of 50 test cells"
    assert held.seen == 0
    turned = study.select(np.arange(120)[::-1])
    other = thinned_split(
        Split("mine", *(np.sort(119 - p) for p in (split.train, split.valid, split.test))), turned, 20
    )
    assert set(turned.obs.index[other.test]) == set(study.obs.index[held.split.test])
    assert Held(study, split).thinned(1000).split.name == "mine"


def test_evaluate_judges_by_no_more_cells_than_asked_and_says_how_many_there_were(tmp_path: Path) -> None:
    made, files = toy_anndata(), []
    for modality in ("rna", "atac"):
        made[modality].write_h5ad(tmp_path / f"{modality}.h5ad")
        files += [f"--{modality}", str(tmp_path / f"{modality}.h5ad")]
    toy_fit("babel", tmp_path / "fit", epochs=1)
    asked = ["--cells", "30", "--no-baselines", "--no-maps", "--out", str(tmp_path / "judged")]
    main(["translate", "evaluate", str(tmp_path / "fit" / "model"), *files, *asked])
    metrics = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    assert metrics["cells"]["test"] == 30
    assert metrics["split"] == "all cells; 30 of 120 test cells"


def test_embed_leaves_the_file_as_it_is_and_adds_the_latents(tmp_path: Path) -> None:
    made = toy_anndata()
    fitted = toy_fit("babel", tmp_path / "fit")
    atac = made["atac"].copy()
    atac.uns["expresser"] = {"before": "kept"}
    path, out = tmp_path / "atac.h5ad", tmp_path / "out.h5ad"
    atac.write_h5ad(path, compression="gzip")
    assert is_self_contained(path)
    main(["translate", "embed", str(tmp_path / "fit"), "--input", str(path), "--out", str(out)])
    found = ad.read_h5ad(out)
    assert np.array_equal(found.obsm["X_babel"], fitted.latents(fitted.read(atac), source="atac"))
    assert found.uns["expresser"]["before"] == "kept"
    assert found.uns["expresser"]["X_babel"]["source"] == "atac"
    assert same(found.X, sparse.csr_matrix(atac.X))
    with h5py.File(out) as file:
        assert file["X/data"].compression == "gzip"


def test_embed_of_a_file_whose_counts_lie_in_another_writes_them_out(tmp_path: Path) -> None:
    """A copy in another folder would look for them beside it, and read zeros."""
    made = toy_anndata()["atac"]
    toy_fit("babel", tmp_path / "fit")
    path, out = tmp_path / "in" / "atac.h5ad", tmp_path / "out" / "atac.h5ad"
    for folder in (path.parent, out.parent):
        folder.mkdir()
    made.write_h5ad(path)
    with h5py.File(path, "r+") as file, h5py.File(path.with_name("counts.h5"), "w") as other:
        values = file["X/data"][:]
        other["data"] = values
        del file["X/data"]
        layout = h5py.VirtualLayout(values.shape, values.dtype)
        layout[:] = h5py.VirtualSource("counts.h5", "data", values.shape, values.dtype)
        file["X"].create_virtual_dataset("data", layout)
    assert not is_self_contained(path)
    main(["translate", "embed", str(tmp_path / "fit"), "--input", str(path), "--out", str(out)])
    found = ad.read_h5ad(out)
    assert found.X.sum() == made.X.sum()
    assert "X_babel" in found.obsm


def test_a_model_of_all_chromosomes_of_a_genome_is_loaded_again(tmp_path: Path) -> None:
    """What a layer makes for its first weights alone, a part for each chromosome, is no weight that the file lacks."""
    autosomes = [f"chr{number}" for number in range(1, 23)]
    fitted = toy_fit("babel", tmp_path / "fit", toy_study(chroms=autosomes, n_peaks=132), epochs=1)
    again = Translator.load(tmp_path / "fit").system.state_dict()
    assert all(torch.equal(again[name], value) for name, value in fitted.system.state_dict().items())


def test_the_benchmark_deletes_no_folder_that_is_not_its_own(tmp_path: Path) -> None:
    (tmp_path / "work.h5ad").write_text("a year of bench work")
    command = [
        sys.executable,
        str(SCRIPT),
        "--folder",
        str(tmp_path),
        "--cells",
        "64",
        "--peaks",
        "60",
        "--genes",
        "30",
    ]
    done = subprocess.run([*command, "--a-cell", "9", "9", "--steps", "files"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "holds other files" in done.stderr
    assert (tmp_path / "work.h5ad").read_text() == "a year of bench work"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the bound is a limit that Linux keeps to")
def test_every_step_of_the_command_line_keeps_to_a_bound_that_one_dense_matrix_breaks(tmp_path: Path) -> None:
    cells, peaks, bound = 3_000, 150_000, 1.5
    assert 4 * cells * peaks / 1e9 > bound
    command = [sys.executable, str(SCRIPT), "--folder", str(tmp_path / "load"), "--cells", str(cells)]
    command += ["--peaks", str(peaks), "--genes", "300", "--a-cell", "60", "300", "--files", "2", "--train", "256"]
    command += ["--memory-gb", str(bound), "--out", str(tmp_path / "load.jsonl")]
    command += [
        "--steps",
        "files",
        "build",
        "fit",
        "atac_to_rna",
        "rna_to_atac",
        "embed",
    ]  # judging so many takes minutes
    environment = os.environ | {large.VARIABLE: "0.002", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = pd.read_json(tmp_path / "load.jsonl", lines=True).set_index("name")
    assert len(lines) == 6
    assert "failed" not in lines
    assert (lines["anonymous_mb"].dropna() < 1000 * bound).all()
