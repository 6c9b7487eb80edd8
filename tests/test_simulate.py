"""The simulator gives back the truth it drew, obeys its own law of counts, and looks like 10x data."""

from pathlib import Path

import anndata
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse, stats
from sklearn.metrics import roc_auc_score

from expresser.errors import InputError
from expresser.simulate import CELLS_PER_BLOCK, simulate_rna
from expresser.simulate.draws import draw_counts


@pytest.fixture(scope="module")
def sample() -> AnnData:
    return simulate_rna(n_cells=1500, n_genes=1000, n_types=5, n_modules=8, keep_expected=True, seed=3)


def log_normalised(counts: sparse.csr_matrix) -> np.ndarray:
    return np.log1p(1e4 * counts.toarray() / np.asarray(counts.sum(axis=1)))


def pairs_within(adata: AnnData) -> tuple[np.ndarray, np.ndarray]:
    """Genes in a module, and for each pair of them (upper triangle) whether it is the same one."""
    module = adata.var["module"].astype(str).to_numpy()
    inside = np.flatnonzero(module != "none")
    a, b = np.triu_indices(len(inside), 1)
    return inside, module[inside[a]] == module[inside[b]]


def upper(matrix: np.ndarray) -> np.ndarray:
    return matrix[np.triu_indices(len(matrix), 1)]


def test_layout_and_names(sample: AnnData) -> None:
    assert sample.shape == (1500, 1000)
    assert isinstance(sample.X, sparse.csr_matrix)
    assert sample.X.dtype == np.float32
    assert sample.X.has_sorted_indices
    assert (sample.X.data >= 1).all()
    np.testing.assert_array_equal(sample.X.data % 1, 0)
    assert sample.var_names.str.fullmatch(r"ENSG9\d{10}").all()
    assert sample.var_names.is_unique
    assert sample.obs_names.is_unique
    assert list(sample.var["symbol"][:2]) == ["SIM0001", "SIM0002"]
    assert list(sample.var["gene_ids"]) == list(sample.var_names)
    assert sample.obs["cell_type"].nunique() == 5
    assert sample.obs.groupby("donor", observed=True)["batch"].nunique().eq(1).all()  # nested
    assert sample.obs.groupby("batch", observed=True)["donor"].nunique().eq(2).all()
    assert list(sample.uns["modules"].index) == list(sample.var["module"].cat.categories[1:])
    assert sample.uns["simulation"]["seed"] == 3


def test_survives_a_file(sample: AnnData, tmp_path: Path) -> None:
    for number, adata in enumerate((sample, simulate_rna(n_cells=20, n_genes=50, n_modules=0))):
        path = tmp_path / f"{number}.h5ad"
        adata.write_h5ad(path)
        back = anndata.read_h5ad(path)
        assert (back.X != adata.X).nnz == 0
        np.testing.assert_array_equal(back.obsm["program_activity"], adata.obsm["program_activity"])
        assert back.uns["simulation"] == adata.uns["simulation"]
        assert list(back.var["module"]) == list(adata.var["module"])


def test_one_seed_one_answer() -> None:
    arguments = {"n_cells": 300, "n_genes": 200, "n_modules": 4}
    one, same, other = (simulate_rna(**arguments, seed=seed) for seed in (7, 7, 8))
    assert (one.X != same.X).nnz == 0
    assert one.obs.equals(same.obs)
    np.testing.assert_array_equal(one.varm["program_loading"], same.varm["program_loading"])
    assert (one.X != other.X).nnz > 0.1 * one.X.nnz
    assert not one.var["mean"].equals(other.var["mean"])


def test_global_generator_is_left_alone() -> None:
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_rna(n_cells=10, n_genes=60, n_modules=2)
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


@pytest.mark.parametrize("fewer", [1, CELLS_PER_BLOCK - 1, CELLS_PER_BLOCK, CELLS_PER_BLOCK + 44])
def test_a_cell_does_not_depend_on_how_many_follow(fewer: int) -> None:
    arguments = {"n_genes": 150, "n_modules": 4, "seed": 1, "keep_expected": True}
    long = simulate_rna(n_cells=2 * CELLS_PER_BLOCK + 10, **arguments)
    short = simulate_rna(n_cells=fewer, **arguments)
    assert (long.X[:fewer] != short.X).nnz == 0
    assert long.obs.iloc[:fewer].equals(short.obs)
    np.testing.assert_array_equal(long.layers["expected"][:fewer], short.layers["expected"])
    assert long.var.equals(short.var)


def test_blocks_are_not_copies_of_each_other() -> None:
    counts = simulate_rna(n_cells=2 * CELLS_PER_BLOCK, n_genes=60, n_modules=2).X
    assert (counts[:CELLS_PER_BLOCK] != counts[CELLS_PER_BLOCK:]).nnz > 1000


def test_keeping_the_expected_layer_changes_nothing_else(sample: AnnData) -> None:
    without = simulate_rna(n_cells=1500, n_genes=1000, n_types=5, n_modules=8, seed=3)
    assert not without.layers
    assert (without.X != sample.X).nnz == 0


@pytest.mark.parametrize(("mean", "phi"), [(0.02, 0.5), (0.4, 2.0), (3.0, 0.3), (40.0, 0.1), (2.5, 0.0)])
def test_counts_are_negative_binomial(mean: float, phi: float) -> None:
    n = 100_000
    row, gene, counts = draw_counts(
        np.full((n, 1), mean, np.float32), np.full(1, phi, np.float32), np.random.default_rng(0)
    )
    assert (gene == 0).all()
    drawn = np.zeros(n)
    drawn[row] = counts
    law = stats.nbinom(1 / phi, 1 / (1 + phi * mean)) if phi else stats.poisson(mean)
    edges = np.unique(law.ppf([0.001, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999]))
    observed = np.diff(np.searchsorted(np.sort(drawn), [-0.5, *edges + 0.5, np.inf]))
    expected = n * np.diff([0, *law.cdf(edges), 1])
    few = expected < 5
    chi2 = ((observed[~few] - expected[~few]) ** 2 / expected[~few]).sum()
    assert stats.chi2.sf(chi2, max(1, (~few).sum() - 1)) > 1e-3


def test_expected_is_a_distribution_and_the_mean_of_the_counts(sample: AnnData) -> None:
    expected = sample.layers["expected"]
    np.testing.assert_allclose(expected.sum(axis=1), 1, atol=1e-5)
    assert (expected > 0).all()
    mean = expected * sample.obs["depth"].to_numpy()[:, None]
    # Totals over cells, gene by gene: Poisson error plus phi (phi is below 2 for all but freak genes).
    error = np.asarray(sample.X.sum(axis=0)).ravel() - mean.sum(axis=0)
    z = error / np.sqrt(mean.sum(axis=0) + 0.5 * (mean**2).sum(axis=0))
    assert np.abs(z).max() < 6
    assert abs(z.mean()) < 4 / np.sqrt(len(z))


def test_depth_is_the_expected_total() -> None:
    poisson = simulate_rna(n_cells=1000, n_genes=500, n_modules=4, dispersion=0.0)
    total = np.asarray(poisson.X.sum(axis=1)).ravel()
    z = (total - poisson.obs["depth"]) / np.sqrt(poisson.obs["depth"])
    assert stats.kstest(z, "norm").pvalue > 1e-3
    assert abs(z.std() - 1) < 0.1


@pytest.mark.parametrize("n_types", [1, 6])
def test_depth_has_the_median_spread_and_skew_asked_for(n_types: int) -> None:
    adata = simulate_rna(
        n_cells=20_000, n_genes=4, n_types=n_types, n_modules=0, median_depth=900, depth_sd=0.5, depth_skew=-0.4
    )
    log_depth = np.log(adata.obs["depth"])
    assert abs(log_depth.median() - np.log(900)) < 0.06
    assert abs(log_depth.std() - 0.5) < 0.04
    assert abs(stats.skew(log_depth) + 0.4) < (0.1 if n_types == 1 else 0.25)  # the types' own spread adds some


def test_mean_column_is_the_mean_over_cells(sample: AnnData) -> None:
    truth = sample.layers["expected"].mean(axis=0) * sample.uns["simulation"]["median_depth"]
    ratio = np.log(truth / sample.var["mean"].to_numpy())
    assert abs(np.median(ratio)) < 0.1
    assert np.quantile(np.abs(ratio), 0.9) < 0.5
    assert stats.spearmanr(truth, sample.var["mean"]).statistic > 0.97


def test_modules_partition_their_genes(sample: AnnData) -> None:
    loading = sample.varm["program_loading"]
    module = sample.var["module"].cat.codes.to_numpy() - 1
    assert (loading >= 0).all()
    np.testing.assert_array_equal(loading.any(axis=1), module >= 0)
    np.testing.assert_array_equal(loading.argmax(axis=1)[module >= 0], module[module >= 0])
    assert (np.bincount(module[module >= 0]) == 50).all()  # 1,000 genes x 0.4 / 8


def test_expected_values_covary_within_modules_across_and_within_types(sample: AnnData) -> None:
    inside, same = pairs_within(sample)
    log_expected = np.log(sample.layers["expected"][:, inside])
    across = upper(np.corrcoef(log_expected.T))
    assert across[same].mean() > across[~same].mean() + 0.2
    assert roc_auc_score(same, across) > 0.75
    # A shared program makes its genes move together inside every single type.
    shared = sample.var["module"].isin(sample.uns["modules"].index[sample.uns["modules"]["kind"] == "shared"])
    part = sample[:, shared.to_numpy()]
    _, same_shared = pairs_within(part)
    for cell_type in part.obs["cell_type"].cat.categories:
        cells = (part.obs["cell_type"] == cell_type).to_numpy()
        r = upper(np.corrcoef(np.log(part.layers["expected"][cells]).T))
        assert r[same_shared].mean() > r[~same_shared].mean() + 0.3, cell_type


def test_program_activity_is_recovered_from_expected_values(sample: AnnData) -> None:
    """Cells' log expected values averaged over a module's leading genes are that program's activity, up to scale."""
    log_expected = np.log(sample.layers["expected"])
    loading = sample.varm["program_loading"]
    one_type = (sample.obs["cell_type"] == "type0").to_numpy()
    for k in np.flatnonzero(sample.uns["modules"]["kind"] == "shared"):
        score = log_expected[one_type] @ loading[:, k]
        assert np.corrcoef(score, sample.obsm["program_activity"][one_type, k])[0, 1] > 0.9


def test_type_programs_are_on_and_moving_only_in_some_types() -> None:
    adata = simulate_rna(n_cells=2000, n_genes=400, n_types=8, n_modules=16)
    of_types = (adata.uns["modules"]["kind"] == "types").to_numpy()
    assert of_types.sum() == 8
    codes = adata.obs["cell_type"].cat.codes.to_numpy()
    spread = np.stack([adata.obsm["program_activity"][codes == t].std(axis=0) for t in range(8)])
    on = spread[:, of_types] > 0.35
    assert (on.sum(axis=0) >= 1).all()
    assert (on.sum(axis=0) <= 2).all()
    assert on.any(axis=1).all()  # every type has one
    assert (spread[:, ~of_types] > 0.5).all()


def test_modules_are_found_in_the_counts_but_not_for_free() -> None:
    """Something to learn: clear in the raw correlations, neither absent nor given away; absent where none was put."""
    adata = simulate_rna(n_cells=2000, n_genes=800)
    inside, same = pairs_within(adata)
    assert 0.65 < roc_auc_score(same, upper(np.corrcoef(log_normalised(adata.X)[:, inside].T))) < 0.97
    null = simulate_rna(n_cells=2000, n_genes=800, module_strength=0)
    inside, same = pairs_within(null)
    assert abs(roc_auc_score(same, upper(np.corrcoef(log_normalised(null.X)[:, inside].T))) - 0.5) < 0.03


def test_types_differ_and_strength_zero_makes_them_alike() -> None:
    def between(strength: float) -> float:
        adata = simulate_rna(
            n_cells=600, n_genes=300, n_modules=0, type_strength=strength, batch_sd=0, donor_sd=0, keep_expected=True
        )
        log_expected = np.log(adata.layers["expected"])
        codes = adata.obs["cell_type"].cat.codes.to_numpy()
        return float(np.stack([log_expected[codes == t].mean(axis=0) for t in range(8)]).std(axis=0).mean())

    assert between(0.0) < 1e-5
    assert 0.1 < between(1.0) < between(2.0)


def test_batches_shift_genes_by_the_sd_asked_for() -> None:
    def shift(batch_sd: float) -> float:
        adata = simulate_rna(
            n_cells=400,
            n_genes=600,
            n_types=1,
            n_modules=0,
            batch_sd=batch_sd,
            donor_sd=0,
            ambient=0,
            keep_expected=True,
        )
        log_expected = np.log(adata.layers["expected"])
        first = (adata.obs["batch"] == "batch0").to_numpy()
        return float((log_expected[first].mean(axis=0) - log_expected[~first].mean(axis=0)).std())

    assert shift(0.0) < 1e-5
    assert shift(0.3) == pytest.approx(0.3 * np.sqrt(2), rel=0.1)  # difference of two normals


def test_donors_differ_within_a_batch_less_than_batches_do() -> None:
    adata = simulate_rna(
        n_cells=400, n_genes=600, n_types=1, n_modules=0, batch_sd=0.3, donor_sd=0.1, ambient=0, keep_expected=True
    )
    log_expected = np.log(adata.layers["expected"])
    donor = {d: log_expected[(adata.obs["donor"] == d).to_numpy()].mean(axis=0) for d in adata.obs["donor"].unique()}
    assert (donor["donor0_0"] - donor["donor0_1"]).std() == pytest.approx(0.1 * np.sqrt(2), rel=0.15)
    assert (donor["donor0_0"] - donor["donor1_0"]).std() == pytest.approx(np.sqrt(2 * (0.3**2 + 0.1**2)), rel=0.15)


def test_ambient_pulls_cells_towards_the_soup() -> None:
    clean, half = (
        simulate_rna(
            n_cells=200, n_genes=300, n_modules=4, n_batches=1, donors_per_batch=1, ambient=a, keep_expected=True
        )
        for a in (0.0, 0.5)
    )
    soup = half.layers["expected"] - 0.5 * clean.layers["expected"]  # p = (1 - a) own + a soup
    np.testing.assert_allclose(soup, np.broadcast_to(soup[:1], soup.shape), atol=1e-6)
    assert soup[0].sum() == pytest.approx(0.5, abs=1e-4)


def test_looks_like_10x() -> None:
    """Ranges around two public 10x v1 PBMC samples (pbmc3k and a frozen donor): density .054-.062, and so on."""
    adata = simulate_rna(n_cells=1000, n_genes=13_700)
    total = np.asarray(adata.X.sum(axis=1)).ravel()
    genes = np.diff(adata.X.indptr)
    nonzero = np.log1p(1e4 * adata.X.data / np.repeat(total, genes))
    assert 1900 < np.median(total) < 2500
    assert 0.34 < np.log(total).std() < 0.48
    assert 0.05 < adata.X.nnz / np.prod(adata.shape) < 0.07
    assert 680 < np.median(genes) < 900
    assert 0.63 < (adata.X.data == 1).mean() < 0.73
    np.testing.assert_allclose(np.quantile(nonzero, [0.25, 0.5, 0.75, 0.95]), [1.57, 1.80, 2.31, 3.95], atol=0.2)


@pytest.mark.realdata
def test_detection_of_genes_follows_the_real_sample(realdata: Path) -> None:
    # The file keeps genes seen in three of its 2,700 cells: the same number of cells and the same cut on both sides.
    real = sparse.csr_matrix(anndata.read_h5ad(realdata / "rna" / "pbmc3k.h5ad").X)
    simulated = simulate_rna(n_cells=real.shape[0], n_genes=real.shape[1]).X
    cells = (np.bincount(x.indices, minlength=x.shape[1]) for x in (real, simulated))
    assert stats.ks_2samp(*(seen[seen >= 3] for seen in cells), method="asymp").statistic < 0.06


def test_the_smallest_sample() -> None:
    adata = simulate_rna(n_cells=1, n_genes=2, n_types=1, n_modules=0, n_batches=1, donors_per_batch=1)
    assert adata.shape == (1, 2)
    assert adata.X.sum() > 0


def test_the_strongest_effects_stay_finite() -> None:
    adata = simulate_rna(
        n_cells=300, n_genes=500, module_strength=3, type_strength=3, batch_sd=2, dispersion=10, median_depth=1e5,
        keep_expected=True,
    )  # fmt: skip
    assert np.isfinite(adata.layers["expected"]).all()
    assert np.isfinite(adata.X.data).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_cells", 0), ("n_genes", 1), ("n_genes", 50_000), ("n_types", 0), ("n_modules", -1), ("n_batches", 0),
        ("donors_per_batch", 0), ("median_depth", 0.0), ("depth_sd", -0.1), ("depth_skew", 0.9), ("module_share", 1.5),
        ("ambient", 1.0), ("dispersion", float("nan")), ("batch_sd", float("inf")), ("seed", -1),
    ],
)  # fmt: skip
def test_a_number_outside_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"{name} is {value}.*must lie from"):
        simulate_rna(**{name: value})


def test_modules_too_small_to_covary_are_refused() -> None:
    with pytest.raises(InputError, match=r"100 genes x module_share 0\.2 over 20 modules leave 1 each.*fewer modules"):
        simulate_rna(n_genes=100, module_share=0.2)
