"""A streamed file holds what the whole prediction holds, opens like any AnnData, and is there whole or not at all."""

import itertools
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.errors import InputError
from translate import matrix_files, predicted, writing
from translate.peaks import binarise_predictions
from translate.predicted import Chosen
from translate.writing import write_predictions

CELLS, PEAKS = 70, 2100


class Fake:
    """Low-rank probabilities; remembers what was asked of it."""

    def __init__(self, n_cells: int = CELLS, n_features: int = PEAKS, to: str = "atac", seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        logits = random.normal(size=(n_cells, 3)) @ random.normal(size=(3, n_features)) - 1
        self.values = (1 / (1 + np.exp(-logits))).astype(np.float32)
        self.to = to
        self.asked: list[tuple[slice, slice]] = []

    @property
    def n_cells(self) -> int:
        return self.values.shape[0]

    @property
    def n_features(self) -> int:
        return self.values.shape[1]

    def block(self, cells: slice, features: slice) -> np.ndarray:
        self.asked.append((cells, features))
        return self.values[cells, features].copy()


@pytest.fixture
def fake() -> Fake:
    return Fake()


def frames(predicted: Fake) -> dict[str, Any]:
    types = np.array(["T", "B", "NK"])[np.arange(predicted.n_cells) % 3]
    return {
        "obs": pd.DataFrame({"cell_type": types, "depth": 1.5}, index=[f"c{i}" for i in range(predicted.n_cells)]),
        "var": pd.DataFrame(
            {"start": np.arange(predicted.n_features)}, index=[f"chr1:{i}-{i + 1}" for i in range(predicted.n_features)]
        ),
        "uns": {"expresser": {"system": "babel", "seed": 3, "shares": np.array([0.1, 0.9])}},
    }


def read(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)


def expected(values: np.ndarray, form: str, k: int, threshold: float) -> np.ndarray:
    """The answer with everything in memory."""
    if form == "topk":
        first = np.argsort(-values, axis=1, kind="stable")[:, :k]
        out = np.zeros_like(values)
        np.put_along_axis(out, first, np.take_along_axis(values, first, axis=1), axis=1)
        return out
    return (values > threshold).astype(np.float32) if form == "binary" else values.astype(form)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("form", ["float32", "float16", "topk", "binary"])
@pytest.mark.parametrize("compression", [None, "gzip"])
def test_a_streamed_file_is_the_whole_prediction(
    fake: Fake, tmp_path: Path, suffix: str, form: str, compression: str | None
) -> None:
    told: list[tuple[int, int]] = []
    out = write_predictions(
        fake,
        tmp_path / f"p{suffix}",
        **frames(fake),
        form=form,
        top_k=100,
        threshold=0.4,
        cells_per_chunk=32,
        compression=compression,
        progress=lambda done, n: told.append((done, n)),
    )
    adata = read(out)
    np.testing.assert_array_equal(dense(adata), expected(fake.values, form, 100, 0.4))
    assert adata.X.dtype == (np.float16 if form == "float16" else np.float32)
    assert sparse.issparse(adata.X) == (form in ("topk", "binary"))
    if sparse.issparse(adata.X):
        assert adata.X.has_canonical_format
        assert adata.X.nnz == (dense(adata) != 0).sum()
    assert told == [(32, 70), (64, 70), (70, 70)]
    assert list(adata.obs_names) == [f"c{i}" for i in range(CELLS)]
    assert list(adata.var["start"]) == list(range(PEAKS))
    assert adata.obs["cell_type"].cat.categories.tolist() == ["B", "NK", "T"]
    assert adata.uns["expresser"]["system"] == "babel"
    np.testing.assert_array_equal(adata.uns["expresser"]["shares"], [0.1, 0.9])
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_the_size_of_the_blocks_changes_nothing(fake: Fake, tmp_path: Path) -> None:
    for form in ("float32", "topk"):
        found = [
            dense(
                read(
                    write_predictions(
                        fake, tmp_path / f"{n}.h5ad", **frames(fake), form=form, top_k=7, cells_per_chunk=n
                    )
                )
            )
            for n in (1, 33, 1000)
        ]
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])


@given(
    values=st.lists(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0]), min_size=6, max_size=6), min_size=1, max_size=4),
    k=st.integers(1, 8),
)
def test_top_k_keeps_the_first_of_equal_values(values: list[list[float]], k: int) -> None:
    block = np.array(values, np.float32)
    kept = writing._top(k)(slice(0, len(block)), block)
    np.testing.assert_array_equal(kept.toarray(), expected(block, "topk", min(k, 6), 0.0))
    assert (kept.data != 0).all()


@given(st.data())
@settings(max_examples=40)
def test_any_features_in_any_order_come_from_few_slices(data: st.DataObject) -> None:
    columns = np.array(data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=20, unique=True)), np.int64)
    spans = Chosen(Fake(1, 5001), columns).spans
    found = np.full(len(columns), -1)
    for features, which, where in spans:
        found[where] = np.arange(5001)[features][which]
    np.testing.assert_array_equal(found, columns)
    edges = [features for features, _, _ in spans]
    assert all(b.start - a.stop >= predicted._GAP for a, b in itertools.pairwise(edges))


def test_only_the_features_wanted_are_computed_and_written(fake: Fake, tmp_path: Path) -> None:
    names = ["chr1:2000-2001", "chr1:5-6", "chr1:7-8"]
    out = write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), features=names)
    adata = read(out)
    assert list(adata.var_names) == names
    np.testing.assert_array_equal(dense(adata), fake.values[:, [2000, 5, 7]])
    assert sum(f.stop - f.start for _, f in fake.asked) == 4
    by_number = write_predictions(fake, tmp_path / "n.h5ad", **frames(fake), features=np.array([2000, 5, 7]))
    np.testing.assert_array_equal(dense(read(by_number)), dense(adata))


def test_a_few_features_far_apart_do_not_make_large_blocks(
    fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predicted, "_BLOCK_BYTES", 4 * 20_000)
    columns = np.arange(0, PEAKS, 400)
    out = write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), features=columns)
    np.testing.assert_array_equal(dense(read(out)), fake.values[:, columns])
    assert max((c.stop - c.start) * (f.stop - f.start) for c, f in fake.asked) <= 20_000


def test_a_threshold_for_each_feature_goes_with_the_feature(fake: Fake, tmp_path: Path) -> None:
    limits = np.linspace(0, 1, PEAKS)
    chosen = np.array([1500, 3, 700])
    out = write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), form="binary", threshold=limits, features=chosen)
    np.testing.assert_array_equal(dense(read(out)), fake.values[:, chosen] > limits[chosen].astype(np.float32))


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_scale_compares_with_the_means_of_cell_and_peak(fake: Fake, tmp_path: Path, suffix: str) -> None:
    told: list[tuple[int, int]] = []
    arguments = frames(fake) | {"form": "scale", "cells_per_chunk": 32}
    out = write_predictions(fake, tmp_path / f"p{suffix}", **arguments, progress=lambda done, n: told.append((done, n)))
    found = read(out).X
    x = fake.values
    of_cell, of_peak = (x.mean(axis=axis, dtype=np.float64, keepdims=True).astype(np.float32) for axis in (1, 0))
    expected = (x > of_cell) & (x > of_peak)
    np.testing.assert_array_equal(found.toarray(), expected)
    assert (found != binarise_predictions(fake)).nnz == 0
    assert found.dtype == np.float32
    assert told == [(n, 140) for n in (32, 64, 70, 102, 134, 140)]
    # What is called open does not depend on which peaks are written.
    some = write_predictions(fake, tmp_path / f"s{suffix}", **arguments, features=np.array([1500, 3]))
    np.testing.assert_array_equal(dense(read(some)), expected[:, [1500, 3]])


def test_scale_needs_peaks_of_several_cells_and_finite_predictions(fake: Fake, tmp_path: Path) -> None:
    for other, words in ((Fake(5, 6, to="rna"), "but rna is predicted"), (Fake(1, 6), "there is one cell")):
        with pytest.raises(InputError, match=words):
            write_predictions(other, tmp_path / "p.h5ad", **frames(other), form="scale")
    fake.values[3, 8] = np.nan
    with pytest.raises(InputError, match="predictions of feature 'chr1:8-9' are not all finite"):
        write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), form="scale", features=np.array([1500]))
    assert not list(tmp_path.iterdir())


def test_chosen_values_are_those_columns_even_where_one_is_asked_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predicted, "_BLOCK_BYTES", 4 * 30)
    few = Fake(7, 20)
    for columns in ([0, 0, 2], [5], [19, 0], list(range(20)), [1, 2, 3]):
        np.testing.assert_array_equal(Chosen(few, np.array(columns)).values(), few.values[:, columns])


def test_backed_and_scanpy_read_it_like_any_other(fake: Fake, tmp_path: Path) -> None:
    for form in ("float32", "topk"):
        out = write_predictions(fake, tmp_path / f"{form}.h5ad", **frames(fake), form=form, top_k=200)
        backed = ad.read_h5ad(out, backed="r")
        rows = backed[10:20].to_memory()
        np.testing.assert_array_equal(dense(rows), expected(fake.values, form, 200, 0)[10:20])
        backed.file.close()
        adata = ad.read_h5ad(out)
        sc.pp.calculate_qc_metrics(adata, percent_top=None, inplace=True)
        sc.pp.pca(adata, n_comps=3)
        sc.tl.rank_genes_groups(adata, "cell_type", method="wilcoxon")
        assert np.isfinite(adata.obsm["X_pca"]).all()


def test_half_precision_keeps_three_digits(fake: Fake, tmp_path: Path) -> None:
    found = dense(read(write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), form="float16")))
    np.testing.assert_allclose(found.astype(np.float32), fake.values, rtol=5e-4, atol=6e-8)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_row_starts_and_column_numbers_share_a_type(
    fake: Fake, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, dtype in ((2**31 - 1, np.int32), (100, np.int64)):
        monkeypatch.setattr(matrix_files, "_INT32", limit)
        out = write_predictions(fake, tmp_path / f"p{suffix}", **frames(fake), form="topk", top_k=9)
        found = read(out).X
        assert found.indices.dtype == found.indptr.dtype == dtype
        np.testing.assert_array_equal(found.toarray(), expected(fake.values, "topk", 9, 0))
        found.eliminate_zeros()  # scipy refuses where the types differ


def test_a_block_keeps_within_its_bytes() -> None:
    for n_features in (1, 30, 20_000, 224_000, 10**9):
        cells = Chosen(Fake(1, 1), np.array([n_features - 1, 0])).cells_at_once
        near = n_features <= predicted._GAP  # then what lies between the two is computed too
        assert cells >= 1
        assert cells == 1 or cells * (n_features if near else 2) * 4 <= 2**27
        cells = writing._whole_tiles(cells)
        assert cells < 32 or cells % 32 == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": "p.csv"}, r"\.h5ad or \.zarr, and the name ends in '\.csv'"),
        ({"out": "p.zarr", "compression": "lzf"}, "lzf is a compression of HDF5"),
        ({"obs": pd.DataFrame(index=["a"])}, "70 cells are predicted, but obs has 1 rows"),
        ({"var": pd.DataFrame(index=["a"])}, "2,100 features are predicted, but var has 1 rows"),
        ({"features": ["chr1:5-6", "GATA1"]}, "1 of 2 are not predicted .first: 'GATA1'.; names look like 'chr1:0-1'"),
        ({"features": ["chr1:5-6"] * 2}, "2 are asked for, 1 different"),
        ({"features": np.array([3, 2100])}, r"number 2100 is asked for, but there are 2,100"),
        ({"form": "topk", "top_k": 0}, "top_k is 0"),
        ({"form": "binary", "threshold": np.zeros(3)}, "3 values for 2,100 features"),
        ({"cells_per_chunk": 0}, "cells_per_chunk is 0"),
    ],
)
def test_what_does_not_fit_is_refused(fake: Fake, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    arguments = {"out": "p.h5ad", **frames(fake)} | change
    out = tmp_path / arguments.pop("out")
    with pytest.raises(InputError, match=message):
        write_predictions(fake, out, **arguments)
    assert not list(tmp_path.iterdir())


def test_protein_is_not_thinned_out(tmp_path: Path) -> None:
    fake = Fake(5, 6, to="protein")
    with pytest.raises(InputError, match="both sides of zero"):
        write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), form="topk")
    fake.values -= 0.5
    assert dense(read(write_predictions(fake, tmp_path / "p.h5ad", **frames(fake)))).min() < 0


def test_scores_below_zero_are_not_thinned_out(tmp_path: Path) -> None:
    fake = Fake(5, 6)
    fake.values -= 2
    with pytest.raises(InputError, match="below zero"):
        write_predictions(fake, tmp_path / "p.h5ad", **frames(fake), form="topk", top_k=2)


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_diverged_model_leaves_the_old_file(
    fake: Fake, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = write_predictions(fake, tmp_path / f"p{suffix}", **frames(fake))
    before = dense(read(out))
    fake.values[65, 9] = np.nan
    with pytest.raises(InputError, match=r"cell 65, feature 'chr1:9-10' is nan.*diverged"):
        write_predictions(fake, out, **frames(fake), cells_per_chunk=10)
    np.testing.assert_array_equal(dense(read(out)), before)
    assert [p.name for p in tmp_path.iterdir()] == [out.name]
