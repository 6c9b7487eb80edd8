"""The benchmark's files go in and come out as its contract says; other files are refused; the line to its scale is found."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from expresser.errors import InputError
from translate import openproblems
from translate.affine import Affine, shrunk_slopes
from translate.baselines import LowRank
from translate.openproblems import matching, run
from translate.openproblems_files import UnsupportedPair, read_task
from translate.splits import Split
from translate.study import Measured, Study

TRAIN, TEST, GENES, PEAKS = 90, 12, 30, 50


def toy(seed: int = 0) -> dict[str, ad.AnnData]:
    """The three files of both directions' material: cells of two types, counts, and a normalised layer of log CP10k."""
    rng = np.random.default_rng(seed)
    n = TRAIN + TEST
    kind = rng.integers(0, 2, n)
    genes = rng.poisson(np.exp(rng.normal(size=(2, GENES)))[kind] * 3).astype(np.float32)
    peaks = rng.binomial(2, np.array([[0.1], [0.5]])[kind] * rng.random(PEAKS)).astype(np.float32)
    genes[:, 0], peaks[:, 0] = 5, 1
    names = {
        "GEX": [f"ENSG{i:011d}" for i in range(GENES)],
        "ATAC": [f"chr{1 + i % 3}-{1000 * i}-{1000 * i + 500}" for i in range(PEAKS)],
    }
    found = {}
    for modality, counts in (("GEX", genes), ("ATAC", peaks)):
        normalized = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
        found[modality] = ad.AnnData(
            obs=pd.DataFrame(
                {"batch": [f"s{i % 4}d1" for i in range(n)], "size_factors": 1.0}, index=[f"c{i}" for i in range(n)]
            ),
            var=pd.DataFrame({"hvg": True, "hvg_score": 0.5}, index=names[modality]),
            layers={"counts": sparse.csc_matrix(counts), "normalized": sparse.csc_matrix(normalized)},
            uns={"dataset_id": "toy/swap", "modality": modality, "normalization_id": "log_cp10k"},
        )
    return found


def written(
    folder: Path, mod1: str, mod2: str, change: Callable[[dict[str, ad.AnnData]], None] | None = None
) -> list[Path]:
    data = toy()
    files = {
        "train_mod1": data[mod1][:TRAIN].copy(),
        "train_mod2": data[mod2][:TRAIN].copy(),
        "test_mod1": data[mod1][TRAIN:].copy(),
    }
    if change is not None:
        change(files)
    folder.mkdir(exist_ok=True)
    for name, adata in files.items():
        adata.write_h5ad(folder / f"{name}.h5ad", compression="gzip")
    return [folder / f"{name}.h5ad" for name in files]


@dataclass
class Model:
    """Predicts each feature from the cell's total: enough to have something to put on another scale."""

    to: str
    var: pd.DataFrame
    asked: list[Measured] = field(default_factory=list)

    @property
    def inputs(self) -> dict[str, Any]:
        return {self.to: self}

    def predict(self, measured: Measured, *, source: str, to: str) -> LowRank:
        self.asked.append(measured)
        totals = np.asarray(measured.matrix.sum(axis=1), np.float32)
        rng = np.random.default_rng(1)
        weights = rng.normal(size=(1, len(self.var))).astype(np.float32)
        return LowRank(to, np.log1p(totals), weights, np.full(len(self.var), 7, np.float32))


class Fit:
    """Stands in for a fit: keeps what it was given."""

    def __init__(self, keep: Callable[[pd.DataFrame], pd.DataFrame] = lambda var: var) -> None:
        self.keep = keep

    def __call__(
        self, system: str, study: Study, *, split: Split, out: Path, config: Any, seed: int, **more: Any
    ) -> Model:
        self.system, self.study, self.split, self.out, self.more = system, study, split, out, more
        to = next(m for m in study.modalities if m not in self.source(study))
        self.model = Model(to, self.keep(study.measured[to].var))
        return self.model

    source: Callable[[Study], tuple[str, ...]]


def fit_from(source: str, **options: Any) -> Fit:
    found = Fit(**options)
    found.source = lambda study: (source,)
    return found


@pytest.mark.parametrize(("mod1", "mod2", "source"), [("GEX", "ATAC", "rna"), ("ATAC", "GEX", "atac")])
def test_the_prediction_is_what_the_benchmark_reads(tmp_path: Path, mod1: str, mod2: str, source: str) -> None:
    files = written(tmp_path / "in", mod1, mod2)
    fit = fit_from(source)
    path = run(*files, tmp_path / "out" / "prediction.h5ad", system="toy", seed=4, fit=fit, preset=None, quick=True)
    found, mod1_test, mod2_train = ad.read_h5ad(path), ad.read_h5ad(files[2]), ad.read_h5ad(files[1])
    assert found.shape == (TEST, mod2_train.n_vars)
    assert list(found.obs_names) == list(mod1_test.obs_names)
    pd.testing.assert_frame_equal(found.var, mod2_train.var)
    pd.testing.assert_frame_equal(found.obs, mod1_test.obs)
    assert dict(found.uns) == {"dataset_id": "toy/swap", "method_id": "toy"}
    layer = found.layers["normalized"]
    assert layer.format == "csc"
    assert np.isfinite(layer.data).all()
    target = mod2_train.layers["normalized"].toarray()
    assert (layer.toarray() <= target.max(axis=0) + 1e-5).all()
    assert (layer.toarray() >= target.min(axis=0) - 1e-5).all()
    assert [p.name for p in path.parent.iterdir()] == ["prediction.h5ad"]
    assert fit.more == {"quick": True}
    assert not fit.out.exists()
    assert fit.model.asked[1].matrix.shape == (TEST, mod1_test.n_vars)
    np.testing.assert_array_equal(fit.model.asked[1].matrix.toarray(), mod1_test.layers["counts"].toarray())


def test_whole_batches_are_held_out_and_no_training_cell_is_wasted(tmp_path: Path) -> None:
    fit = fit_from("rna")
    run(*written(tmp_path, "GEX", "ATAC"), tmp_path / "p.h5ad", fit=fit)
    batch = fit.study.obs["batch"].to_numpy()
    assert not set(batch[fit.split.train]) & set(batch[fit.split.valid])
    assert len(fit.split.train) + len(fit.split.valid) == TRAIN
    assert not len(fit.split.test)

    def one_batch(files: dict[str, ad.AnnData]) -> None:
        for adata in files.values():
            adata.obs["batch"] = "only"

    run(*written(tmp_path, "GEX", "ATAC", one_batch), tmp_path / "p.h5ad", fit=fit)
    assert 0 < len(fit.split.valid) < TRAIN / 4


def test_features_that_are_not_modelled_get_their_training_mean(tmp_path: Path) -> None:
    files = written(tmp_path, "ATAC", "GEX")
    fit = fit_from("atac", keep=lambda var: var.iloc[::-1][: GENES - 5])
    found = ad.read_h5ad(run(*files, tmp_path / "p.h5ad", fit=fit)).layers["normalized"].toarray()
    means = ad.read_h5ad(files[1]).layers["normalized"].toarray().mean(axis=0)
    np.testing.assert_allclose(found[:, :5], np.tile(means[:5], (TEST, 1)), rtol=1e-5)
    assert np.ptp(found[:, 5:], axis=0).max() > 0


def test_peaks_go_with_the_merged_peak_they_lie_in() -> None:
    def peaks(*names: str) -> pd.DataFrame:
        parts = [name.replace(":", "-").split("-") for name in names]
        columns = {
            "chrom": [p[0] for p in parts],
            "start": [int(p[1]) for p in parts],
            "end": [int(p[2]) for p in parts],
        }
        return pd.DataFrame(columns, index=pd.Index(names, dtype=object))

    target = peaks("chr2:5-9", "chr1:100-200", "chr1:150-300", "chr1:900-950", "chr1:400-500")
    obs = pd.DataFrame(index=["c"])
    measured = Measured(sparse.csr_matrix((1, 5), dtype=np.float32), target, obs, "file")
    model = peaks("chr1:100-300", "chr1:400-500", "chr2:5-9")
    np.testing.assert_array_equal(matching(measured, model, "atac"), [2, 0, 0, -1, 1])


def older(files: dict[str, ad.AnnData]) -> None:
    """As the first version of the task had it: the modality is in var."""
    for adata in files.values():
        adata.var["feature_types"] = adata.uns.pop("modality")


def test_older_files_say_their_modality_in_var(tmp_path: Path) -> None:
    task = read_task(*written(tmp_path, "ATAC", "GEX", older))
    assert (task.source, task.to, task.dataset_id, task.normalization_id) == ("atac", "rna", "toy/swap", "log_cp10k")


def test_silent_files_are_told_their_modality(tmp_path: Path) -> None:
    def silent(files: dict[str, ad.AnnData]) -> None:
        for adata in files.values():
            del adata.uns["modality"]

    files = written(tmp_path, "ATAC", "GEX", silent)
    with pytest.raises(InputError, match=r"says what it holds.*modalities="):
        read_task(*files)
    assert read_task(*files, modalities=("atac", "gex")).to == "rna"
    with pytest.raises(InputError, match="of mod1 and of mod2"):
        read_task(*files, modalities=("GEX",))


def drop(name: str, slot: str, key: str) -> Callable[[dict[str, ad.AnnData]], None]:
    def change(files: dict[str, ad.AnnData]) -> None:
        for which in files if name == "all" else [name]:
            del getattr(files[which], slot)[key]

    return change


def set_uns(name: str, **values: str) -> Callable[[dict[str, ad.AnnData]], None]:
    def change(files: dict[str, ad.AnnData]) -> None:
        files[name].uns.update(values)

    return change


def cut(name: str, rows: slice, columns: slice) -> Callable[[dict[str, ad.AnnData]], None]:
    def change(files: dict[str, ad.AnnData]) -> None:
        files[name] = files[name][rows, columns].copy()

    return change


def infinite(files: dict[str, ad.AnnData]) -> None:
    files["train_mod2"].layers["normalized"].data[3] = np.inf


ALL = slice(None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            drop("train_mod1", "layers", "counts"),
            r"train_mod1.h5ad: layers\['counts'\] .raw counts. is missing; it has \['norm",
        ),
        (
            drop("train_mod2", "layers", "normalized"),
            r"train_mod2.h5ad: layers\['normalized'\] .the values to predict. is missing",
        ),
        (drop("all", "uns", "dataset_id"), r"uns\['dataset_id'\] is missing"),
        (set_uns("test_mod1", dataset_id="other"), "different data sets.*'test_mod1': 'other'"),
        (set_uns("test_mod1", modality="ADT"), "test_mod1.h5ad holds ADT, .*train_mod1.h5ad GEX"),
        (set_uns("train_mod2", modality="CpG"), "modality 'CpG' is none of GEX, ATAC, ADT"),
        (cut("train_mod2", slice(1, None), ALL), "the same cells: 90 against 89, 89 in common"),
        (cut("train_mod2", slice(None, None, -1), ALL), "the same cells in different orders"),
        (cut("test_mod1", ALL, slice(3, None)), "the same features: 30 against 27, 27 in common"),
        (cut("test_mod1", slice(0, 0), ALL), "test_mod1.h5ad is empty: 0 cells"),
        (infinite, r"layers\['normalized'\] holds values that are not finite"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: Callable[[dict[str, ad.AnnData]], None], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(*written(tmp_path, "GEX", "ATAC", change), tmp_path / "p.h5ad", fit=fit_from("rna"))
    assert not (tmp_path / "p.h5ad").exists()


def test_no_file_and_no_h5ad_are_refused(tmp_path: Path) -> None:
    files = written(tmp_path, "GEX", "ATAC")
    with pytest.raises(InputError, match="there is no such file"):
        run(files[0], files[1], tmp_path / "none.h5ad", tmp_path / "p.h5ad", fit=fit_from("rna"))
    files[2].write_text("not hdf5")
    with pytest.raises(InputError, match=r"test_mod1\.h5ad: cannot be read as \.h5ad"):
        run(*files, tmp_path / "p.h5ad", fit=fit_from("rna"))


def test_pairs_that_no_system_knows_are_told_apart_from_bad_files(tmp_path: Path) -> None:
    files = written(tmp_path, "GEX", "GEX")
    with pytest.raises(UnsupportedPair, match="mod1 is GEX and mod2 GEX; exactly one"):
        run(*files, tmp_path / "p.h5ad", fit=fit_from("rna"))

    def protein(found: dict[str, ad.AnnData]) -> None:
        for name in ("train_mod1", "test_mod1"):
            found[name].uns["modality"] = "ADT"
            found[name].var_names = [f"CD{i}" for i in range(PEAKS)]

    with pytest.raises(UnsupportedPair, match="babel does not predict rna from protein; it goes rna to atac"):
        run(*written(tmp_path, "ATAC", "GEX", protein), tmp_path / "p.h5ad", system="babel")


def test_the_filters_of_cells_and_features_are_off(tmp_path: Path) -> None:
    task = read_task(*written(tmp_path, "GEX", "ATAC"))
    config = openproblems._whole("babel", None, None, task)
    assert (config.rna.min_genes, config.rna.autosomes, config.atac.max_share, config.atac.merge) == (
        0,
        False,
        1.0,
        False,
    )
    own = type(config)(lr=0.5)
    assert openproblems._whole("babel", None, own, task) is own


# The line to the benchmark's scale


def test_a_known_line_is_found_and_ranks_stay() -> None:
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(400, 3)).astype(np.float32)
    predicted = LowRank(
        "rna", scores, rng.normal(size=(3, 20)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    )
    x = predicted.block(slice(0, 400), slice(0, 20))
    slope, offset = rng.uniform(0.5, 2, 20), rng.normal(size=20)
    y = (offset + slope * x + rng.normal(0, 1e-3, x.shape)).astype(np.float32)
    order = rng.permutation(20)
    line = Affine.fit(predicted, sparse.csc_matrix(y[:, order]), order, np.arange(100))
    np.testing.assert_allclose(line.slope, slope[order], rtol=2e-3)
    np.testing.assert_allclose(line.offset, offset[order], atol=5e-3)
    np.testing.assert_allclose(line.apply(predicted).toarray(), y[:, order], atol=2e-2)


def test_slopes_are_drawn_together_as_far_as_noise_says() -> None:
    rng = np.random.default_rng(0)
    n, k = 50, 2000
    x = rng.normal(size=(n, k))
    x -= x.mean(axis=0)
    true = rng.normal(1.0, 0.1, k)
    y = true * x + rng.normal(0, 3, (n, k))
    y -= y.mean(axis=0)
    sxx, sxy, syy = (x * x).sum(axis=0), (x * y).sum(axis=0), (y * y).sum(axis=0)
    found = shrunk_slopes(sxx, sxy, syy, n)
    own = sxy / sxx
    assert np.square(found - true).mean() < 0.1 * np.square(own - true).mean()
    assert abs(found.mean() - 1) < 0.03
    exact = shrunk_slopes(sxx, true * sxx, true**2 * sxx * (1 + 1e-6), n)  # next to no noise: each keeps its own
    np.testing.assert_allclose(exact, true, atol=1e-3)


def test_no_slope_turns_a_feature_round() -> None:
    rng = np.random.default_rng(1)
    sxx, syy = np.ones(300), np.full(300, 40.0)
    sxy = rng.normal(0.3, 0.8, 300)
    found = shrunk_slopes(sxx, sxy, syy, 50)
    assert (sxy < 0).sum() > 50
    assert (found > 0).all()
    order = np.argsort(sxy)
    assert (np.diff(found[order]) >= -1e-12).all()
    assert (shrunk_slopes(sxx, -np.abs(sxy), syy, 50) >= 0).all()


def test_what_does_not_vary_has_no_slope_of_its_own() -> None:
    scores = np.arange(5, dtype=np.float32)[:, None]
    predicted = LowRank("rna", scores, np.array([[0, 1, 1]], np.float32), np.ones(3, np.float32))
    y = np.stack([np.arange(5.0), np.full(5, 3.0), 2 * np.arange(5.0)], axis=1).astype(np.float32)
    line = Affine.fit(predicted, sparse.csc_matrix(y), np.arange(3), np.arange(5))
    np.testing.assert_allclose(line.slope, [0, 2, 2], rtol=1e-4)  # nothing is predicted; nothing varies; known
    constant = np.tile([2.0, 3.0], (5, 1))
    np.testing.assert_allclose(
        line.apply(predicted).toarray(), np.column_stack([constant, y[:, 2]]), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(InputError, match="three or more cells held out"):
        Affine.fit(predicted, sparse.csc_matrix(y), np.arange(3), np.arange(2))


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    predicted = LowRank(
        "atac",
        rng.normal(size=(40, 2)).astype(np.float32),
        rng.normal(size=(2, 30)).astype(np.float32),
        np.zeros(30, np.float32),
    )
    target = sparse.csc_matrix(rng.poisson(1.0, (40, 25)).astype(np.float32))
    columns = rng.permutation(30)[:25]
    columns[[3, 9]] = -1
    whole = Affine.fit(predicted, target, columns, np.arange(10)).apply(predicted).toarray()
    monkeypatch.setattr("translate.affine._BUDGET_MB", 40 * 4 * 4 / 2**20)
    np.testing.assert_allclose(
        Affine.fit(predicted, target, columns, np.arange(10)).apply(predicted).toarray(), whole, atol=1e-6
    )


@pytest.mark.slow
def test_babel_runs_both_ways(tmp_path: Path) -> None:
    from translate.babel import BabelConfig
    from translate.preprocess import AtacRecipe, RnaRecipe

    config = BabelConfig(
        rna=RnaRecipe(min_genes=0, max_genes=None, autosomes=False),
        atac=AtacRecipe(autosomes=False, min_cells=1, max_share=1.0, merge=False),
        epochs=15,
        batch_size=32,
    )
    for mod1, mod2 in (("GEX", "ATAC"), ("ATAC", "GEX")):
        files = written(tmp_path / mod1, mod1, mod2)
        found = ad.read_h5ad(run(*files, tmp_path / f"{mod1}.h5ad", config=config)).layers["normalized"].toarray()
        truth = toy()[mod2][TRAIN:].layers["normalized"].toarray()
        mean = ad.read_h5ad(files[1]).layers["normalized"].toarray().mean(axis=0)
        assert np.square(found - truth).mean() < np.square(mean - truth).mean()
