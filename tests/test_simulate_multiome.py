"""Paired simulators: positions and links are lawful, counts follow the rates handed back, and there is something to learn."""

import shlex
import tracemalloc
from pathlib import Path

import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats

from expresser.commands_simulate import SIMULATE
from expresser.errors import InputError
from expresser.simulate import CELLS_PER_BLOCK, Cite, Multiome, simulate_cite, simulate_multiome
from expresser.simulate.genome import AUTOSOMES, ENHANCER, OTHER, PROMOTER, make_genome

ALL = slice(None)


@pytest.fixture(scope="module")
def made() -> Multiome:
    return simulate_multiome(n_cells=1200, n_genes=400, n_peaks=3000, n_batches=2, donors_per_batch=2, seed=3)


@pytest.fixture(scope="module")
def stained() -> Cite:
    return simulate_cite(n_cells=1200, n_genes=400, n_batches=2, donors_per_batch=2, seed=3)


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of the columns of one with those of the other; 0 where one is constant."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    norm = np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))
    return np.divide((a * b).sum(axis=0), norm, out=np.zeros(a.shape[1]), where=norm > 1e-9)


def log_odds(p: np.ndarray) -> np.ndarray:
    return np.log(p) - np.log1p(-p)


def same(one: Multiome, other: Multiome) -> bool:
    return (one.rna.X != other.rna.X).nnz == 0 and (one.atac.X != other.atac.X).nnz == 0


# --- positions -----------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    n_genes=st.integers(1, 300),
    n_peaks=st.integers(1, 2000),
    links=st.sampled_from([0.0, 0.5, 3.0, 20.0]),
    seed=st.integers(0, 99),
)
def test_positions_are_lawful_whatever_the_numbers(n_genes: int, n_peaks: int, links: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    g = make_genome(rng, genome="hg38", n_genes=n_genes, n_peaks=n_peaks, links_per_gene=links)
    length = np.array(list(AUTOSOMES["hg38"].values()))
    assert len(g.tss) == n_genes
    assert len(g.start) == n_peaks
    assert ((g.tss >= 0) & (g.tss < length[g.gene_chrom])).all()
    assert ((g.start >= 0) & (g.end <= length[g.peak_chrom])).all()
    width = g.end - g.start
    assert width.min() >= 300
    assert width.max() <= 1000
    # In canonical order, and never overlapping.
    assert (np.lexsort((g.start, g.peak_chrom)) == np.arange(n_peaks)).all()
    assert (np.lexsort((g.tss, g.gene_chrom)) == np.arange(n_genes)).all()
    assert (g.start[1:] >= g.end[:-1])[g.peak_chrom[1:] == g.peak_chrom[:-1]].all()
    # Links.
    linked = g.gene_of >= 0
    np.testing.assert_array_equal(linked, g.kind != OTHER)
    assert (g.gene_chrom[g.gene_of[linked]] == g.peak_chrom[linked]).all()
    assert (np.abs(g.distance()) < 100_000).all()
    promoter = g.kind == PROMOTER
    tss = g.tss[g.gene_of[promoter]]
    assert ((g.start[promoter] <= tss) & (tss < g.end[promoter])).all()
    assert len(np.unique(g.gene_of[promoter])) == promoter.sum()
    assert np.isin(g.gene_of[g.kind == ENHANCER], g.gene_of[promoter]).all()


def test_every_gene_has_its_promoter_and_a_few_enhancers_where_there_are_peaks_enough() -> None:
    g = make_genome(np.random.default_rng(0), genome="hg38", n_genes=3000, n_peaks=20_000, links_per_gene=3.0)
    assert (g.kind == PROMOTER).sum() == 3000
    assert (g.kind == ENHANCER).sum() == pytest.approx(9000, rel=0.03)
    assert np.median(np.abs(g.distance()[g.kind == ENHANCER])) < 30_000  # nearer is commoner
    length = np.array(list(AUTOSOMES["hg38"].values()))
    expected = length / length.sum() * 20_000
    assert (np.abs(np.bincount(g.peak_chrom, minlength=22) - expected) < 8 * np.sqrt(expected)).all()


def test_layout_and_names(made: Multiome) -> None:
    for adata, features in ((made.rna, 400), (made.atac, 3000)):
        assert adata.shape == (1200, features)
        assert isinstance(adata.X, sparse.csr_matrix)
        assert adata.X.dtype == np.float32
        assert adata.X.has_sorted_indices
        assert (adata.X.data >= 1).all()
        np.testing.assert_array_equal(adata.X.data % 1, 0)
        assert adata.var_names.is_unique
        assert list(adata.obs_names) == list(made.rna.obs_names)
        assert adata.obs["cell_type"].nunique() == 10
        assert adata.obs["donor"].nunique() == 4
        assert adata.uns["simulation"]["seed"] == 3
        assert len(adata.uns["simulation"]["factors"]) == adata.obsm["truth_factors"].shape[1]
    assert made.rna.var_names.str.fullmatch(r"ENSG9\d{10}").all()
    assert set(made.rna.var["chrom"]) <= set(AUTOSOMES["hg38"])
    var = made.atac.var
    assert list(made.atac.var_names) == [f"{c}:{s}-{e}" for c, s, e in zip(var["chrom"], var["start"], var["end"])]
    frequency = made.rna.obs["cell_type"].value_counts(normalize=True)
    assert frequency.max() > 3 * frequency.min()


# --- the seed ------------------------------------------------------------------------------------------------------------------


def test_one_seed_one_answer_and_the_global_generator_is_left_alone() -> None:
    sizes = {"n_cells": 300, "n_genes": 100, "n_peaks": 600}
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    one, again, other = (simulate_multiome(**sizes, seed=seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002
    assert same(one, again)
    assert one.links.equals(again.links)
    assert one.atac.obs.equals(again.atac.obs)
    np.testing.assert_array_equal(one.atac.varm["truth_loadings"], again.atac.varm["truth_loadings"])
    assert not same(one, other)
    assert list(one.atac.var_names) != list(other.atac.var_names)


@pytest.mark.parametrize("fewer", [1, CELLS_PER_BLOCK, CELLS_PER_BLOCK + 44])
def test_a_cell_does_not_depend_on_how_many_follow(fewer: int) -> None:
    sizes = {"n_genes": 100, "n_peaks": 600, "seed": 1}
    long = simulate_multiome(n_cells=2 * CELLS_PER_BLOCK + 10, **sizes)
    short = simulate_multiome(n_cells=fewer, **sizes)
    assert same(Multiome(long.rna[:fewer], long.atac[:fewer]), short)
    assert long.atac.obs.iloc[:fewer].equals(short.atac.obs)
    assert long.rna.var.equals(short.rna.var)
    assert long.links.equals(short.links)


def test_blocks_are_not_copies_of_each_other() -> None:
    one = simulate_multiome(n_cells=2 * CELLS_PER_BLOCK, n_genes=100, n_peaks=600)
    for counts in (one.rna.X, one.atac.X):
        assert (counts[:CELLS_PER_BLOCK] != counts[CELLS_PER_BLOCK:]).nnz > 1000


def test_binary_is_the_same_with_ones() -> None:
    sizes = {"n_cells": 100, "n_genes": 50, "n_peaks": 40_000}  # more than two chunks of peaks
    counts, ones = simulate_multiome(**sizes), simulate_multiome(**sizes, binary=True)
    assert (ones.atac.X.data == 1).all()
    assert ((counts.atac.X > 0) != (ones.atac.X > 0)).nnz == 0
    assert (counts.rna.X != ones.rna.X).nnz == 0
    assert 0.6 < (counts.atac.X.data == 2).mean() < 0.9  # both ends of a fragment


def test_proteins_and_peaks_of_one_seed_are_of_the_same_cells(made: Multiome, stained: Cite) -> None:
    assert (made.rna.X != stained.rna.X).nnz == 0
    assert made.rna.obs.equals(stained.rna.obs)
    np.testing.assert_array_equal(made.atac.obsm["truth_factors"], stained.protein.obsm["truth_factors"])


# --- counts follow the truth ---------------------------------------------------------------------------------------------------


def test_expression_is_a_distribution_and_the_mean_of_the_counts(made: Multiome) -> None:
    p = made.true_rna(ALL, ALL)
    assert p.dtype == np.float32
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    assert (p > 0).all()
    mean = p * made.rna.obs["depth"].to_numpy()[:, None]
    error = np.asarray(made.rna.X.sum(axis=0)).ravel() - mean.sum(axis=0)
    z = error / np.sqrt(mean.sum(axis=0) + 0.5 * (mean**2).sum(axis=0))  # phi is below 0.5 for all but freak genes
    assert np.abs(z).max() < 6
    assert abs(z.mean()) < 4 / np.sqrt(len(z))


def test_open_probabilities_are_calibrated(made: Multiome) -> None:
    p = made.true_atac(ALL, ALL, own_depth=True).astype(np.float64)
    y = (made.atac.X > 0).toarray()
    for axis in (0, 1):  # peak by peak, cell by cell
        z = (y - p).sum(axis=axis) / np.sqrt((p * (1 - p)).sum(axis=axis))
        assert np.abs(z).max() < 6
        assert abs(z.std() - 1) < 0.1
    edges = np.quantile(p, np.linspace(0, 1, 21))
    bin_of = np.searchsorted(edges[1:-1], p.ravel())
    n, seen, wanted, variance = (np.bincount(bin_of, w) for w in (None, y.ravel(), p.ravel(), (p * (1 - p)).ravel()))
    assert (n > 1000).all()
    assert (np.abs(seen - wanted) < 5 * np.sqrt(variance)).all()


def test_median_depth_is_own_depth_where_depths_are_equal() -> None:
    one = simulate_multiome(n_cells=50, n_genes=50, n_peaks=300, atac_depth_sd=0)
    np.testing.assert_allclose(one.true_atac(ALL, ALL), one.true_atac(ALL, ALL, own_depth=True), rtol=1e-5)


def test_mean_columns_are_means_over_cells() -> None:
    one = simulate_multiome(n_cells=2000, n_genes=300, n_peaks=1500, donor_sd=0, batch_sd=0)
    fragments = -np.log1p(-one.true_atac(ALL, ALL).astype(np.float64)).mean(axis=0)
    ratio = np.log(fragments / one.atac.var["mean"])
    assert abs(ratio.median()) < 0.05
    assert ratio.abs().quantile(0.9) < 0.25  # saturation, and rare types where they have a peak of their own
    share = one.true_rna(ALL, ALL).mean(axis=0) * one.rna.uns["simulation"]["rna_depth"]
    assert np.log(share / one.rna.var["mean"]).abs().quantile(0.9) < 0.25


def test_depths_have_the_spread_asked_for_and_go_together() -> None:
    one = simulate_multiome(n_cells=8000, n_genes=10, n_peaks=10, rna_depth=900, atac_depth=5, n_batches=1)
    rna, atac = np.log(one.rna.obs["depth"]), np.log(one.atac.obs["depth"])
    assert abs(rna.median() - np.log(900)) < 0.1
    assert abs(atac.median() - np.log(5)) < 0.1
    assert rna.std() == pytest.approx(0.5, rel=0.1)
    assert atac.std() == pytest.approx(0.6, rel=0.1)
    assert np.corrcoef(rna, atac)[0, 1] == pytest.approx(0.4, abs=0.05)


def test_batches_differ_in_depth_as_asked() -> None:
    def between(sd: float) -> float:
        one = simulate_multiome(n_cells=2000, n_genes=10, n_peaks=10, n_batches=12, batch_depth_sd=sd)
        return float(np.log(one.atac.obs["depth"]).groupby(one.atac.obs["batch"], observed=True).mean().std())

    assert between(0.0) < 0.1
    assert 0.3 < between(0.5) < 0.8


def test_default_size_has_the_density_of_real_data() -> None:
    one = simulate_multiome(n_cells=600)
    opened = np.diff(one.atac.X.indptr)
    assert 0.03 < one.atac.X.nnz / np.prod(one.atac.shape) < 0.05
    assert 0.45 < np.log(opened).std() < 0.7
    assert 0.12 < one.rna.X.nnz / np.prod(one.rna.shape) < 0.22


def test_dropout_loses_the_share_asked_for_and_nothing_else() -> None:
    sizes = {"n_cells": 500, "n_genes": 200, "n_peaks": 300}
    whole, thinned = simulate_multiome(**sizes), simulate_multiome(**sizes, dropout=0.4)
    first = slice(CELLS_PER_BLOCK)  # the same draws
    assert thinned.rna.X.nnz / whole.rna.X.nnz == pytest.approx(0.6, abs=0.02)
    kept = thinned.rna.X[first]
    assert (kept.multiply(kept > 0) != whole.rna.X[first].multiply(kept > 0)).nnz == 0
    np.testing.assert_array_equal(whole.true_rna(ALL, ALL), thinned.true_rna(ALL, ALL))
    assert (whole.atac.X != thinned.atac.X).nnz == 0


# --- what the truth is like ----------------------------------------------------------------------------------------------------


def test_linked_peaks_follow_their_genes_with_the_sign_of_the_effect(made: Multiome) -> None:
    links = made.links
    assert (links["distance"].abs() < 100_000).all()
    peak, gene = made.atac.var_names.get_indexer(links["peak"]), made.rna.var_names.get_indexer(links["gene"])
    assert (peak >= 0).all()
    assert (gene >= 0).all()
    distance = (made.atac.var["start"] + made.atac.var["end"]).to_numpy()[peak] // 2 - made.rna.var["tss"].to_numpy()[
        gene
    ]
    np.testing.assert_array_equal(distance, links["distance"])
    rna, atac = np.log(made.true_rna(ALL, ALL)), log_odds(made.true_atac(ALL, ALL))
    strong = links["effect"].abs().to_numpy() > 0.3
    r = correlations(rna[:, gene[strong]], atac[:, peak[strong]])
    effect = links["effect"].to_numpy()[strong]
    assert (np.sign(r) == np.sign(effect)).mean() > 0.98
    assert np.abs(r).mean() > 0.7
    assert 0.02 < (effect < 0).mean() < 0.12
    other = np.random.default_rng(0).permutation(gene[strong])
    assert abs(correlations(rna[:, other], atac[:, peak[strong]]).mean()) < 0.05


def test_peaks_without_a_gene_vary_too_but_for_a_constant_share(made: Multiome) -> None:
    var, args = made.atac.var, made.atac.uns["simulation"]
    other = (var["kind"] == "other").to_numpy()
    assert (var["constant"][other]).mean() == pytest.approx(args["constant_share"], abs=0.04)
    assert not var["constant"][~other].any()
    donor = made.atac.obs["donor"] == "donor0_0"
    spread = np.log(made.true_atac(donor.to_numpy(), ALL)).std(axis=0)
    constant = var["constant"].to_numpy()
    assert spread[constant].max() < 1e-4
    assert np.median(spread[other & ~constant]) > 0.3


def test_zero_strengths_leave_donors_alone() -> None:
    one = simulate_multiome(n_cells=60, n_genes=50, n_peaks=300, type_strength=0, program_strength=0)
    for truth in (one.true_rna(ALL, ALL), one.true_atac(ALL, ALL)):
        np.testing.assert_allclose(truth, np.broadcast_to(truth[:1], truth.shape), rtol=1e-4)


@pytest.mark.parametrize("nonlinearity", [0.0, 0.5])
def test_zero_nonlinearity_is_log_linear_in_types_and_activities(nonlinearity: float) -> None:
    one = simulate_multiome(
        n_cells=600, n_genes=200, n_peaks=800, n_types=4, atac_depth=4, ambient=0, nonlinearity=nonlinearity
    )
    types = np.eye(4)[one.rna.obs["cell_type"].cat.codes]
    state = np.concatenate([types, one.rna.obsm["program_activity"]], axis=1)
    rates = np.log(-np.log1p(-one.true_atac(ALL, ALL).astype(np.float64)))
    left = rates - state @ np.linalg.lstsq(state, rates, rcond=None)[0]
    unexplained = (left**2).sum() / ((rates - rates.mean(axis=0)) ** 2).sum()
    assert unexplained < 1e-6 if nonlinearity == 0 else unexplained > 0.1


def test_ambient_pulls_cells_together() -> None:
    def spread(ambient: float) -> tuple[float, float]:
        one = simulate_multiome(n_cells=200, n_genes=200, n_peaks=500, ambient=ambient)
        return np.log(one.true_rna(ALL, ALL)).std(axis=0).mean(), np.log(one.true_atac(ALL, ALL)).std(axis=0).mean()

    assert all(half < 0.7 * clean for half, clean in zip(spread(0.5), spread(0.0)))


def auroc(y: np.ndarray, score: np.ndarray) -> float:
    """Mean over the columns that hold both kinds."""
    positives = y.sum(axis=0)
    u = (stats.rankdata(score, axis=0) * y).sum(axis=0) - positives * (positives + 1) / 2
    both = (positives > 0) & (positives < len(y))
    return float((u[both] / (positives * (len(y) - positives))[both]).mean())


def test_the_truth_predicts_cells_better_than_their_type_and_far_from_perfectly(made: Multiome) -> None:
    rna = np.log1p(400 * made.rna.X.toarray() / made.rna.X.sum(axis=1).A1[:, None])
    y = (made.atac.X > 0).toarray()
    codes = made.rna.obs["cell_type"].cat.codes.to_numpy()
    seen, new = slice(700), slice(700, None)
    rna_type, atac_type = (
        np.stack([x[seen][codes[seen] == t].mean(axis=0) for t in range(10)])[codes[new]] for x in (rna, y)
    )
    r_type, r_truth = (correlations(rna[new], p).mean() for p in (rna_type, np.log1p(400 * made.true_rna(new, ALL))))
    auc_type, auc_truth = (auroc(y[new], p) for p in (atac_type, made.true_atac(new, ALL)))
    assert r_type > 0.1
    assert r_type + 0.08 < r_truth < 0.6
    assert auc_type > 0.53
    assert auc_type + 0.05 < auc_truth < 0.8
    assert auc_truth < auroc(y[new], made.true_atac(new, ALL, own_depth=True))


def test_the_strongest_effects_stay_finite() -> None:
    for nonlinearity in (0.0, 1.0):
        strong = {"type_strength": 3, "program_strength": 3, "batch_sd": 2, "nonlinearity": nonlinearity, "seed": 2}
        one = simulate_multiome(n_cells=300, n_genes=300, n_peaks=2000, dispersion=10, **strong)
        two = simulate_cite(n_cells=300, n_genes=300, **strong)
        for truth in (one.true_rna(ALL, ALL), one.true_atac(ALL, ALL), two.true_protein(ALL, ALL)):
            assert np.isfinite(truth).all()
        assert np.isfinite(one.atac.X.data).all()
        assert np.isfinite(two.protein.X.data).all()


def test_the_smallest_samples() -> None:
    small = {"n_cells": 1, "n_genes": 2, "n_types": 1, "n_programs": 0}
    one, two = simulate_multiome(**small, n_peaks=1), simulate_cite(**small, n_proteins=1)
    assert one.true_atac(ALL, ALL).shape == (1, 1)
    assert two.true_protein(ALL, ALL).shape == (1, 1)
    assert len(one.links) == 0


# --- the truth is worked out from what the files hold --------------------------------------------------------------------------


def test_blocks_of_the_truth_are_parts_of_the_whole(made: Multiome) -> None:
    cells, features = np.array([700, 3, 3]), np.array([20, 399, 0])
    mask = np.zeros(1200, bool)
    mask[[3, 700]] = True
    for truth in (made.true_rna, made.true_atac, lambda c, f: made.true_atac(c, f, own_depth=True)):
        whole = truth(ALL, ALL)
        np.testing.assert_allclose(truth(cells, features), whole[np.ix_(cells, features)], rtol=2e-5)
        np.testing.assert_allclose(truth(slice(256, 300), slice(5, 90)), whole[256:300, 5:90], rtol=2e-5)
        np.testing.assert_allclose(truth(mask, ALL), whole[mask], rtol=2e-5)


def test_truth_survives_files_and_subsets(made: Multiome, tmp_path: Path) -> None:
    made.write(tmp_path)
    back = Multiome.from_files(tmp_path / "rna.h5ad", tmp_path / "atac.h5ad")
    assert same(made, back)
    assert list(back.links["gene"]) == list(made.links["gene"])
    np.testing.assert_array_equal(back.true_atac(ALL, ALL), made.true_atac(ALL, ALL))
    rng = np.random.default_rng(0)
    donor = np.flatnonzero(made.rna.obs["donor"] == "donor1_0")  # categories that are no longer used go
    cells, genes, peaks = rng.permutation(donor), rng.permutation(400)[:50], rng.permutation(3000)[:70]
    part = Multiome.from_anndata(back.rna[cells, genes].copy(), back.atac[cells, peaks].copy())
    np.testing.assert_allclose(part.true_rna(ALL, ALL), made.true_rna(cells, genes), rtol=2e-5)
    np.testing.assert_allclose(
        part.true_atac(ALL, ALL, own_depth=True), made.true_atac(cells, peaks, own_depth=True), rtol=2e-5
    )


def test_nothing_of_size_cells_by_features_is_ever_dense() -> None:
    simulate_multiome(n_cells=10, n_genes=20, n_peaks=50)  # imports and caches
    tracemalloc.start()
    simulate_multiome(n_cells=512, n_genes=100, n_peaks=120_000, atac_depth=1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.7 * 4 * 512 * 120_000


@pytest.mark.parametrize("part", ["rna", "atac"])
def test_data_without_truth_is_refused(made: Multiome, part: str) -> None:
    bare = {"rna": made.rna, "atac": made.atac}
    bare[part] = anndata.AnnData(X=bare[part].X, obs=bare[part].obs[["cell_type"]])
    with pytest.raises(InputError, match=rf"{part.upper()}: obsm\['truth_factors'\].*missing"):
        Multiome.from_anndata(**bare)


def test_other_cells_are_refused(made: Multiome, stained: Cite) -> None:
    with pytest.raises(InputError, match=r"same order.*1,200 and 100 cells"):
        Multiome.from_anndata(made.rna, made.atac[:100])
    with pytest.raises(InputError, match="same cells"):
        Cite.from_anndata(stained.rna[::-1], stained.protein)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_cells", 0), ("n_genes", 50_000), ("n_peaks", 0), ("n_peaks", 999_000), ("n_programs", -1), ("seed", -1),
        ("rna_depth", 0), ("atac_depth", 1e9), ("atac_depth", float("nan")), ("atac_depth_sd", -1), ("dropout", 1),
        ("links_per_gene", -0.1), ("nonlinearity", 1.5), ("constant_share", 2), ("ambient", 1.0), ("batch_depth_sd", 9),
    ],
)  # fmt: skip
def test_a_number_outside_its_range_is_named(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"simulate_multiome: {name} is {value}.*must lie from"):
        simulate_multiome(**{name: value})


def test_an_unknown_genome_is_named() -> None:
    with pytest.raises(InputError, match="genome is 'mm10'; there is hg38"):
        simulate_multiome(genome="mm10")


def test_more_proteins_than_genes_are_refused() -> None:
    with pytest.raises(InputError, match="n_proteins is 30; it must lie from 1 to 20"):
        simulate_cite(n_genes=20, n_proteins=30)


# --- proteins ------------------------------------------------------------------------------------------------------------------


def test_protein_layout(stained: Cite) -> None:
    protein = stained.protein
    assert protein.shape == (1200, 25)
    assert isinstance(protein.X, sparse.csr_matrix)
    assert protein.var["gene"].is_unique
    assert protein.var["gene"].isin(stained.rna.var_names).all()
    assert list(protein.var["symbol"]) == list(stained.rna.var.loc[protein.var["gene"], "symbol"])
    assert list(protein.obs_names) == list(stained.rna.obs_names)


def test_protein_counts_follow_the_truth(stained: Cite) -> None:
    mean = stained.true_protein(ALL, ALL, own_depth=True).astype(np.float64)
    counts = stained.protein.X.toarray()
    z = (counts - mean).sum(axis=0) / np.sqrt(mean.sum(axis=0) + 0.5 * (mean**2).sum(axis=0))
    assert np.abs(z).max() < 5
    median = mean.sum(axis=1) / stained.protein.obs["depth"] * 3000
    assert median.mean() == pytest.approx(3000, rel=0.2)


def test_proteins_follow_their_genes_over_a_background(stained: Cite) -> None:
    gene = stained.rna.var_names.get_indexer(stained.protein.var["gene"])
    log_rna, truth = np.log(stained.true_rna(ALL, gene)), stained.true_protein(ALL, ALL)
    own = correlations(log_rna, np.log(truth))
    assert own.mean() > 0.6
    assert own.mean() < 0.95  # not all that moves a protein is seen in RNA
    background = stained.protein.var["background"].to_numpy()
    assert (truth >= background).all()
    # A mode near the background and cells far above it.
    assert np.median(np.quantile(truth, 0.05, axis=0) / background) < 3
    assert np.median(np.quantile(truth, 0.99, axis=0) / background) > 15


def test_proteins_survive_files(stained: Cite, tmp_path: Path) -> None:
    stained.write(tmp_path)
    back = Cite.from_files(tmp_path / "rna.h5ad", tmp_path / "protein.h5ad")
    assert (back.protein.X != stained.protein.X).nnz == 0
    np.testing.assert_array_equal(back.true_protein(ALL, ALL), stained.true_protein(ALL, ALL))
    np.testing.assert_array_equal(back.true_rna(ALL, ALL), stained.true_rna(ALL, ALL))


def test_a_protein_does_not_depend_on_how_many_cells_follow() -> None:
    long, short = (simulate_cite(n_cells=n, n_genes=60, n_proteins=5) for n in (300, 40))
    assert (long.protein.X[:40] != short.protein.X).nnz == 0


# --- the command ---------------------------------------------------------------------------------------------------------------


def test_commands_write_what_the_functions_make(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    SIMULATE.run(shlex.split("multiome --out m --cells 30 --genes 40 --peaks 90 --types 2 --programs 1 --seed 5"))
    SIMULATE.run(shlex.split("cite --out c --cells 30 --genes 40 --proteins 4 --types 2 --programs 1 --seed 5"))
    assert "30 cells x 40 genes in m/rna.h5ad, x 90 peaks in m/atac.h5ad" in capsys.readouterr().out
    made, stained = (
        Multiome.from_files(Path("m/rna.h5ad"), Path("m/atac.h5ad")),
        Cite.from_files(Path("c/rna.h5ad"), Path("c/protein.h5ad")),
    )
    assert same(made, simulate_multiome(n_cells=30, n_genes=40, n_peaks=90, n_types=2, n_programs=1, seed=5))
    assert (made.rna.X != stained.rna.X).nnz == 0


@pytest.mark.slow
def test_a_whole_annotation_fits() -> None:
    one = simulate_multiome(n_cells=500, n_genes=34_861, n_peaks=223_897)
    assert len(one.links) > 130_000
    assert 0.03 < one.atac.X.nnz / np.prod(one.atac.shape) < 0.05


def test_cells_of_one_modality_are_others_of_the_same_simulation(tmp_path: Path, capsys) -> None:
    size = ["--genes", "60", "--peaks", "400", "--types", "3", "--seed", "5"]
    SIMULATE.run(["multiome", "--cells", "30", "--alone", "20", "--out", str(tmp_path / "some"), *size])
    SIMULATE.run(["multiome", "--cells", "70", "--out", str(tmp_path / "all"), *size])
    assert "20 cells more in" in capsys.readouterr().out
    for modality, first in (("rna", 30), ("atac", 50)):
        whole = anndata.read_h5ad(tmp_path / "all" / f"{modality}.h5ad")
        for name, cells in ((modality, slice(0, 30)), (f"{modality}_only", slice(first, first + 20))):
            part = anndata.read_h5ad(tmp_path / "some" / f"{name}.h5ad")
            assert part.obs_names.tolist() == whole.obs_names[cells].tolist()
            assert (part.X != whole[cells].X).nnz == 0
    assert not (tmp_path / "all" / "rna_only.h5ad").exists()
