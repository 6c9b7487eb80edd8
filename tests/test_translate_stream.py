"""Translators that learn from a corpus on disk: the same to the last bit as from memory, in memory that does not grow with cells."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.cli import main
from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from translate.batches import BlockedMatrix, SparseRows
from translate.corpora import study_of_corpus
from translate.covariates import BatchColumn
from translate.data import read_study
from translate.feed import Feed
from translate.fitting import fingerprint, fit
from translate.origin import Origin
from translate.preprocess import AtacInput, AtacRecipe
from translate.sailer import SailerConfig
from translate.splits import Split
from translate.stored import StoredBlocks, StoredMatrix
from translate.study import Study

RECIPE = AtacRecipe(autosomes=False, min_cells=3, max_share=0.9)
CONFIG = SailerConfig(
    atac=RECIPE, batch=BatchColumn("donor"), hidden=(8, 6), latent=3, warmup=1, epochs=2, cycle=2, batch_size=16
)


def peaks_of(n: int) -> pd.DataFrame:
    """Peaks of three chromosomes; every seventh overlaps the one before it."""
    place = np.arange(n)
    start = place % 50 * 1000 - np.where(place % 7 == 3, 900, 0) * (place % 50 > 0)
    chrom = [f"chr{i}" for i in place // 50 + 1]
    return pd.DataFrame(index=[f"{c}:{s}-{s + 400}" for c, s in zip(chrom, start)])


def atac(n_cells: int = 90, n_peaks: int = 150) -> ad.AnnData:
    """Open peaks of two kinds of cells, in two donors."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 2, n_cells)
    rates = rng.beta(0.6, 2.0, (2, n_peaks))[kind]
    adata = ad.AnnData(sparse.csr_matrix(((rng.random(rates.shape) < rates) * 2.0).astype(np.float32)))
    adata.var = peaks_of(n_peaks)
    adata.obs = pd.DataFrame(
        {"donor": [f"d{i % 2}" for i in range(n_cells)], "kind": kind.astype(str)},
        index=[f"cell{i:03}" for i in range(n_cells)],
    )
    return adata


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files of cells with the same peaks, and the corpus of them."""
    folder = tmp_path_factory.mktemp("atac")
    whole = atac()
    for name, part in (("a", whole[:50]), ("b", whole[50:])):
        part.copy().write_h5ad(folder / f"{name}.h5ad")
    build_corpus([folder / "a.h5ad", folder / "b.h5ad"], folder / "corpus", obs_columns=["donor", "kind"], min_genes=1)
    return folder


@pytest.fixture(scope="module")
def in_memory(folder: Path) -> Study:
    return read_study(atac=[folder / "a.h5ad", folder / "b.h5ad"])


@pytest.fixture(scope="module")
def on_disk(folder: Path) -> Study:
    return study_of_corpus(folder / "corpus")


def same(a: SparseRows, b: SparseRows) -> None:
    assert (a.n_cells, a.bounds) == (b.n_cells, b.bounds)
    assert a.values is None
    assert torch.equal(a.indices, b.indices)
    assert torch.equal(a.offsets, b.offsets)
    assert a.indices.dtype == b.indices.dtype
    assert a.offsets.dtype == b.offsets.dtype


def halves(study: Study) -> Split:
    cells = np.random.default_rng(1).permutation(study.n_cells)
    return Split("halves", np.sort(cells[:60]), np.sort(cells[60:75]), np.sort(cells[75:]))


def test_a_corpus_is_the_study_of_its_files(in_memory: Study, on_disk: Study) -> None:
    """Cells in the order of the files, their labels, their peaks (in canonical order) and counts."""
    assert on_disk.modalities == ("atac",)
    assert on_disk.obs.index.tolist() == in_memory.obs.index.tolist()
    assert on_disk.obs["kind"].tolist() == in_memory.obs["kind"].tolist()
    assert set(on_disk.obs["source"]) == {"a", "b"}
    measured, loaded = on_disk.measured["atac"], on_disk.measured["atac"].loaded()
    assert isinstance(measured.matrix, StoredMatrix)
    of_file = in_memory.measured["atac"]
    columns = of_file.var.index.get_indexer(measured.var.index)
    assert (loaded.matrix != of_file.matrix[:, columns]).nnz == 0
    assert loaded.matrix.dtype == np.float32
    np.testing.assert_array_equal(measured.lengths(), of_file.lengths())
    some = np.array([70, 3, 3, 12])
    assert (measured.take(some).loaded().matrix != loaded.matrix[some]).nnz == 0


def test_peaks_and_batches_are_those_of_memory(in_memory: Study, on_disk: Study) -> None:
    train = halves(in_memory).train
    inputs = [AtacInput.fit(study.measured["atac"], train, RECIPE) for study in (in_memory, on_disk)]
    assert inputs[0].regions.equals(inputs[1].regions)
    assert inputs[0].left_out == inputs[1].left_out
    assert inputs[0].left_out["merged"] > 0
    feeds = [Feed.of(study, {"atac": inputs[0]}) for study in (in_memory, on_disk)]
    assert isinstance(feeds[1].atac_open, StoredBlocks)
    cuts = [np.array([5, 2, 88]), np.arange(0), np.arange(90), *np.array_split(train, 13)]
    read = [list(feed.batches(cuts, ("atac",), shares=[len(cut) for cut in cuts])) for feed in feeds]
    for one, other in zip(*read, strict=True):
        same(one.atac, other.atac)
    np.testing.assert_array_equal(*(feed.open_share(train) for feed in feeds))
    assert feeds[0].median_open(train) == feeds[1].median_open(train)
    np.testing.assert_array_equal(*(feed.atac_open.lengths() for feed in feeds if feed.atac_open is not None))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_peaks_are_carried_over_as_in_memory(folder: Path, data: st.DataObject) -> None:
    """A peak may open none, one or several of the model's, several may open one, and the model's may overlap one another."""
    stored = study_of_corpus(folder / "corpus").measured["atac"].matrix
    assert isinstance(stored, StoredMatrix)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    n = data.draw(st.integers(1, 60))
    onto = sparse.random(stored.shape[1], n, density=data.draw(st.floats(0, 0.2)), random_state=rng, format="csr")
    onto.data[:] = 1
    cuts = np.sort(rng.integers(0, n + 1, data.draw(st.integers(0, 4))))
    bounds = (0, *cuts.tolist(), n)
    opened = sparse.csr_matrix(stored.loaded() @ onto)
    opened.sort_indices()
    opened.data[:] = 1
    blocks, held = StoredBlocks(stored, onto, bounds), BlockedMatrix(opened.astype(np.float32), bounds, binary=True)
    cells = rng.integers(0, 90, data.draw(st.integers(0, 20)))
    same(blocks.rows(cells), held.rows(cells))
    np.testing.assert_array_equal(blocks.shares(cells), held.shares(cells))
    np.testing.assert_array_equal(blocks.lengths(), held.lengths())


def logged(out: Path) -> list[dict]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "cells_per_s")} for line in lines]


def test_a_fit_is_the_fit_from_memory(in_memory: Study, on_disk: Study, tmp_path: Path) -> None:
    """Every weight, every loss and every latent, to the last bit."""
    fitted = []
    for name, study in (("memory", in_memory), ("disk", on_disk)):
        found = fit("sailer", study, split=halves(study), out=tmp_path / name, config=CONFIG)
        assert found is not None
        fitted.append(found)
    weights = [model.system.state_dict() for model in fitted]
    assert weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        assert torch.equal(value, weights[1][key]), key
    assert logged(tmp_path / "memory") == logged(tmp_path / "disk")
    of_memory, of_disk = (
        model.latents(study.measured["atac"], source="atac") for model, study in zip(fitted, (in_memory, on_disk))
    )
    np.testing.assert_array_equal(of_memory, of_disk)


def test_a_killed_fit_goes_on(on_disk: Study, tmp_path: Path) -> None:
    split = halves(on_disk)
    whole = fit("sailer", on_disk, split=split, out=tmp_path / "whole", config=CONFIG)
    assert fit("sailer", on_disk, split=split, out=tmp_path / "part", config=CONFIG, stop_after=2) is None
    again = fit("sailer", on_disk, split=split, out=tmp_path / "part", config=CONFIG, resume=True)
    assert whole is not None
    assert again is not None
    for key, value in whole.system.state_dict().items():
        assert torch.equal(value, again.system.state_dict()[key]), key


def test_a_damaged_corpus_is_refused_before_training(folder: Path, tmp_path: Path, capsys) -> None:
    """One count too many, which no reader could know and no loss would show."""
    corpus, run = Path(shutil.copytree(folder / "corpus", tmp_path / "corpus")), tmp_path / "run"
    shard = corpus / "cells-00000.arrow"
    data = bytearray(shard.read_bytes())
    data[data.index(b"\x02\x00" * 20)] ^= 1
    shard.write_bytes(data)
    quick = (
        "--batch donor --no-evaluate --config.atac.min-cells 3 --config.hidden 8 6 --config.warmup 1 --config.epochs 1"
    )
    argv = ["translate", "fit", "sailer", "--corpus", str(corpus), "--out", str(run), *quick.split()]
    with pytest.raises(SystemExit):
        main(argv)
    said = capsys.readouterr().err
    assert "1 of 3 files are not what was written: cells-00000.arrow: sha256 is" in said
    assert "Traceback" not in said
    assert not run.exists()
    main([*argv, "--no-verify"])
    assert (run / "model").is_dir()


def test_the_fingerprint_is_of_corpus_and_cells(folder: Path, on_disk: Study, tmp_path: Path) -> None:
    split = halves(on_disk)
    assert fingerprint(on_disk, split) == fingerprint(study_of_corpus(folder / "corpus"), split)
    fewer = on_disk.select(np.arange(80))
    assert fingerprint(fewer, Split("s", np.arange(3), np.arange(3, 5), np.arange(0))) != fingerprint(
        on_disk.select(np.arange(1, 81)), Split("s", np.arange(3), np.arange(3, 5), np.arange(0))
    )


def test_origin_names_a_corpus_by_its_id(folder: Path) -> None:
    origin = Origin(corpus=str(folder / "corpus"))
    plain = json.loads(json.dumps(origin.plain()))
    assert list(plain["sha256"].values()) == [Corpus.open(folder / "corpus").corpus_id]
    assert Origin.restored(plain).read().n_cells == 90
    with pytest.raises(InputError, match="Leave one away"):
        Origin(corpus="c", atac="a.h5ad")


def test_readers_end_with_who_stops_reading(on_disk: Study) -> None:
    """A training that fails in its third step does not leave a thread behind, and what fails in the thread is raised."""
    import threading

    inputs = {"atac": AtacInput.fit(on_disk.measured["atac"], np.arange(90), RECIPE)}
    feed = Feed.of(on_disk, inputs)
    before = threading.active_count()
    read = feed.batches([np.arange(5)] * 40, ("atac",), shares=[5] * 40)
    next(read)
    read.close()
    assert threading.active_count() == before
    with pytest.raises(IndexError):
        list(feed.batches([np.arange(5), np.array([10_000])], ("atac",), shares=[5, 1]))
    assert threading.active_count() == before


def test_what_a_corpus_cannot_do(folder: Path, on_disk: Study, tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"corpus of genes.*--regions"):
        study_of_corpus(tiny_corpus)
    with pytest.raises(InputError, match=r"needs the matrix in memory.*files"):
        on_disk.measured["atac"].matrix[:, :5]
    with pytest.raises(InputError, match="needs the matrix in memory"):
        _ = on_disk.measured["atac"].matrix.indptr
    with pytest.raises(InputError, match="sailerx needs rna"):
        fit("sailerx", on_disk, split=halves(on_disk), out=tmp_path / "x")


def test_barcodes_of_two_sources_are_told_apart(tmp_path: Path) -> None:
    one, other = atac(20), atac(20)
    other.X = other.X * 2
    for name, part in (("s1", one), ("s2", other)):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    build_corpus([tmp_path / "s1.h5ad", tmp_path / "s2.h5ad"], tmp_path / "c", min_genes=1)
    names = study_of_corpus(tmp_path / "c").obs.index
    assert names[0] == "s1:cell000"
    assert names[20] == "s2:cell000"


MEASURED = """
import json, sys, threading
import numpy as np

def anonymous():
    return next(int(line.split()[1]) / 1e3 for line in open("/proc/self/status") if line.startswith("RssAnon"))

from translate.corpora import study_of_corpus
from translate.fitting import fit
from translate.preprocess import AtacRecipe
from translate.sailer import SailerConfig
from translate.splits import Split

peak, done = 0.0, threading.Event()

def watch():
    global peak
    while not done.wait(0.005):
        peak = max(peak, anonymous())

threading.Thread(target=watch, daemon=True).start()
study = study_of_corpus(sys.argv[1])
cells = np.arange(study.n_cells)
split = Split("s", cells[:-512], cells[-512:], cells[:0])
config = SailerConfig(
    atac=AtacRecipe(min_cells=1, min_share=0.02, max_share=0.9), hidden=(8, 6), latent=3, warmup=1, epochs=0, batch_size=1024
)
model = fit("sailer", study, split=split, out=sys.argv[2], config=config)
latents = model.latents(study.measured["atac"], source="atac")
done.set()
print(json.dumps({"peak": peak, "latents": list(latents.shape), "peaks": model.run["features"]["atac"]}))
"""


def large(folder: Path, cells: int, bins: int = 100_000, a_cell: int = 400) -> Path:
    """A corpus whose cells have `a_cell` open bins each, half of them among the first two thousand."""
    rng = np.random.default_rng(0)
    half = a_cell // 2
    common = (np.arange(half) * 2000 // half + rng.integers(0, 2000 // half, (cells, half))).astype(np.int32)
    rest = bins - 2000
    rare = (2000 + np.arange(half) * rest // half + rng.integers(0, rest // half, (cells, half))).astype(np.int32)
    indices = np.concatenate([common, rare], axis=1).ravel()
    x = sparse.csr_matrix(
        (np.ones(len(indices), np.float32), indices, np.arange(cells + 1) * a_cell), shape=(cells, bins)
    )
    names = [f"chr{i // 10_000 + 1}:{i % 10_000 * 500}-{i % 10_000 * 500 + 500}" for i in range(bins)]
    adata = ad.AnnData(x, var=pd.DataFrame(index=names), obs=pd.DataFrame(index=[f"c{i}" for i in range(cells)]))
    build_corpus([adata], folder)
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_cells(tmp_path: Path) -> None:
    """Reading, choosing peaks, training and embedding; 40,000 cells more would be 128 MB of matrix, and twice that in blocks."""
    found = {}
    for cells in (20_000, 60_000):
        corpus = large(tmp_path / f"c{cells}", cells)
        command = [sys.executable, "-c", MEASURED, str(corpus), str(tmp_path / f"f{cells}")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
        found[cells] = json.loads(done.stdout.splitlines()[-1])
        assert found[cells]["latents"] == [cells, 3]
        assert 1500 < found[cells]["peaks"] < 2500
    assert found[60_000]["peak"] - found[20_000]["peak"] < 40, found
