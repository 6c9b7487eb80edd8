"""Inputs equal the dense formula, each cell by itself and whatever the order of a file; saved inputs are the same bits."""

import json
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from expresser.simulate import simulate_multiome
from translate import peaks as peak_module
from translate.preprocess import AtacInput, AtacRecipe, ProteinInput, RnaInput, RnaRecipe
from translate.preprocess.atac import EmptyChromosomeWarning
from translate.preprocess.quantiles import quantiles
from translate.study import Measured

ALL = RnaRecipe(min_genes=0, max_genes=None)


def measured(counts: np.ndarray, var: pd.DataFrame | None = None, name: str = "toy") -> Measured:
    n, m = counts.shape
    if var is None:
        var = pd.DataFrame(
            {"ensembl_id": "", "symbol": "", "chrom": "chr1", "tss": 5}, index=[f"g{j:03d}" for j in range(m)]
        )
    obs = pd.DataFrame(index=[f"c{i:04d}" for i in range(n)])
    return Measured(sparse.csr_matrix(counts.astype(np.float32)), var, obs, name)


def toy(n: int = 60, m: int = 25, seed: int = 0) -> Measured:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(1.0, 2.0, m) * rng.lognormal(0, 0.4, (n, 1)))
    counts[:, 3], counts[7] = 0, 0  # an unseen gene, an empty cell
    return measured(counts)


def permuted(data: Measured, seed: int) -> Measured:
    """The same file with cells and features in another order."""
    rng = np.random.default_rng(seed)
    cells, features = rng.permutation(data.n_cells), rng.permutation(data.n_features)
    matrix = sparse.csr_matrix(data.matrix.toarray()[cells][:, features])
    return Measured(matrix, data.var.iloc[features], data.obs.iloc[cells], data.name)


def peaks(counts: np.ndarray, names: list[str]) -> Measured:
    return measured(counts, Regions.parse(names).to_frame(), "peaks")


def dense_formula(x: np.ndarray, train: np.ndarray, recipe: RnaRecipe) -> tuple[np.ndarray, np.ndarray]:
    """(x of all cells, size-normalised counts of all cells) by the words of the paper, in float64."""
    library = x.sum(axis=1)
    median = np.median(library[train][library[train] > 0]) if library[train].any() else 1.0
    linear = x * median / np.where(library > 0, library, 1)[:, None]
    values = np.log1p(linear) if recipe.log else linear
    if recipe.scale:
        sd = values[train].std(axis=0, ddof=1)
        values = (values - values[train].mean(axis=0)) / np.where(sd > 0, sd, 1)
    if recipe.clip:
        low, high = np.percentile(values[train], [100 * recipe.clip, 100 * (1 - recipe.clip)])
        if (low, high) != (0, 0):
            values = values.clip(low, high)
    return values, linear


# ---- RNA -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("scale", [True, False])
@pytest.mark.parametrize("clip", [0.0, 0.005, 0.2])
def test_sparse_inputs_and_rest_are_the_dense_formula(log: bool, scale: bool, clip: float):
    data, train = toy(), np.arange(0, 60, 2)
    recipe = replace(ALL, log=log, scale=scale, clip=clip)
    rna = RnaInput.fit(data, train, recipe)
    counts = rna.align(data)
    x, linear = dense_formula(data.matrix.toarray().astype(np.float64), train, recipe)
    np.testing.assert_allclose(rna.rest + rna.inputs(counts).toarray(), x, atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(rna.targets(counts).toarray(), linear, rtol=1e-6)
    assert rna.inputs(counts).dtype == rna.rest.dtype == np.float32
    assert np.array_equal(rna.inputs(counts).indices, counts.indices)
    if not scale and not clip:
        assert not rna.rest.any()
        assert np.isinf([rna.low, rna.high]).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12), st.integers(1, 8), st.sampled_from([0.0, 0.005, 0.1]))
def test_the_formula_holds_for_any_counts(seed: int, n: int, m: int, clip: float):
    rng = np.random.default_rng(seed)
    data = measured(rng.poisson(rng.gamma(0.5, 3.0, (n, m))))
    recipe = replace(ALL, clip=clip)
    rna = RnaInput.fit(data, np.arange(n), recipe)
    x, _ = dense_formula(data.matrix.toarray().astype(np.float64), np.arange(n), recipe)
    constant = np.ptp(x, axis=0) < 1e-6  # rounding alone says whether a deviation is 0
    got = rna.rest + rna.inputs(rna.align(data)).toarray()
    np.testing.assert_allclose(got[:, ~constant], x[:, ~constant], atol=1e-4, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_the_order_of_a_file_changes_no_bit(seed: int):
    data, other = toy(), permuted(toy(), seed)
    train = np.arange(0, 60, 2)
    where = other.obs.index.get_indexer(data.obs.index)
    a, b = RnaInput.fit(data, train, ALL), RnaInput.fit(other, where[train], ALL)
    pd.testing.assert_frame_equal(a.var, b.var)
    assert (a.median_library, a.low, a.high) == (b.median_library, b.low, b.high)
    for key in ("mean", "sd", "rest"):
        assert np.array_equal(getattr(a, key), getattr(b, key))
    x, y = a.inputs(a.align(data)), b.inputs(b.align(other))
    assert np.array_equal(x.toarray(), y.toarray()[where])
    assert np.array_equal(x.indices, y[where].indices)


def test_a_cell_is_the_same_alone_and_in_company():
    data = toy(200, 40)
    rna = RnaInput.fit(data, np.arange(100), ALL)
    counts = rna.align(data)
    together, targets = rna.inputs(counts), rna.targets(counts)
    for i in range(0, 200, 7):
        assert np.array_equal(rna.inputs(counts[i]).toarray(), together[i].toarray())
        assert np.array_equal(rna.targets(counts[i]).toarray(), targets[i].toarray())


def test_statistics_are_of_the_training_cells_alone():
    data = toy()
    other = data.matrix.toarray()
    other[30:] = 99
    a, b = (RnaInput.fit(d, np.arange(30), ALL) for d in (data, measured(other)))
    assert np.array_equal(a.mean, b.mean)
    assert (a.low, a.high, a.median_library) == (b.low, b.high, b.median_library)


def test_nothing_is_clipped_where_both_bounds_are_zero():
    counts = np.zeros((50, 20))
    counts[:, 0] = 1  # one gene of twenty: both percentiles of the linear values are 0 at 10 %
    rna = RnaInput.fit(measured(counts), np.arange(50), replace(ALL, log=False, scale=False, clip=0.1))
    assert (rna.low, rna.high) == (-np.inf, np.inf)


def test_a_constant_gene_has_deviation_one():
    counts = np.full((10, 3), 5)
    rna = RnaInput.fit(measured(counts), np.arange(10), ALL)
    assert (rna.sd == 1).all()
    np.testing.assert_allclose(rna.rest + rna.inputs(rna.align(measured(counts))).toarray(), 0, atol=1e-6)


def test_genes_are_autosomal_where_places_are_known():
    data = toy(m=6)
    chroms = ["chr1", "chrX", "chr22", "", "chrM", "KI270728.1"]

    def genes(chrom: list[str], autosomes: bool = True) -> RnaInput:
        moved = Measured(data.matrix, data.var.assign(chrom=chrom), data.obs, data.name)
        return RnaInput.fit(moved, np.arange(60), replace(ALL, autosomes=autosomes))

    most = genes(chroms)
    assert list(most.var.index) == ["g000", "g002"]
    assert most.left_out == {"genes_not_autosomal": 3, "genes_of_unknown_place": 1, "cells_by_genes": 0}
    assert len(genes(chroms, autosomes=False).var) == 6
    assert len(genes([""] * 6).var) == 6
    few = genes(["chr1", "chrX", "", "", "", ""])
    assert list(few.var.index) == ["g000", "g002", "g003", "g004", "g005"]
    with pytest.raises(InputError, match=r"none of 6 genes lies on an autosome \(6 have a known place: chrX\)"):
        genes(["chrX"] * 6)


def test_cells_are_filtered_by_the_genes_of_the_model():
    data = toy(m=25)
    data = Measured(data.matrix, data.var.assign(chrom=["chrX"] * 10 + ["chr2"] * 15), data.obs, data.name)
    recipe = RnaRecipe(min_genes=8, max_genes=12)
    rna = RnaInput.fit(data, np.arange(60), recipe)
    expressed = (data.matrix.toarray()[:, 10:] > 0).sum(axis=1)
    keep = (expressed >= 8) & (expressed <= 12)
    assert np.array_equal(rna.keeps(data), keep)
    assert 0 < keep.sum() < 60
    assert rna.left_out["cells_by_genes"] == 60 - keep.sum()
    alone = RnaInput.fit(data, np.flatnonzero(keep), recipe)
    assert np.array_equal(alone.mean, rna.mean)
    assert RnaInput.fit(data, np.arange(60), ALL).keeps(data).all()
    with pytest.raises(
        InputError, match=r"0 of 60 training cells express 200 to 7000 of the 15 genes.*median \d+ genes"
    ):
        RnaInput.fit(data, np.arange(60), RnaRecipe())


def test_variable_genes_do_not_change_which_cells_pass():
    """Genes are counted before any is chosen, in later files too, and chosen among cells that pass."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(2.0, (60, 400))
    counts[:20, 20:] = 0  # few genes, of which some are wild in these cells alone
    counts[:20, :5] = rng.choice([0, 60], (20, 5))
    counts[20:, 395:] = rng.choice([0, 20], (40, 5))
    data = measured(counts)
    recipe = RnaRecipe(min_genes=100, max_genes=390, n_top_genes=5)
    found, cells = RnaInput.fit(data, np.arange(60), recipe), np.arange(20, 60)
    assert found.left_out["cells_by_genes"] == 20
    alone = RnaInput.fit(data, cells, recipe)
    assert list(found.var.index) == list(alone.var.index)
    assert list(found.var.index) != list(RnaInput.fit(data, np.arange(60), replace(recipe, min_genes=0)).var.index)
    assert np.array_equal(found.mean, alone.mean)
    assert found.median_library == alone.median_library
    arrays, told = found.saved()
    again = RnaInput.restored(arrays, json.loads(json.dumps(told, allow_nan=False)))
    for one in (found, again):
        assert np.array_equal(np.flatnonzero(one.keeps(permuted_genes(data))), cells)
        assert len(one.filter_genes) == 400
    every = RnaInput.fit(data, np.arange(60), replace(recipe, n_top_genes=None))
    assert np.array_equal(every.keeps(data), found.keeps(data))
    unfiltered = RnaInput.fit(data, np.arange(60), replace(ALL, n_top_genes=5))
    assert unfiltered.counted is None
    assert unfiltered.keeps(data).all()


def permuted_genes(data: Measured) -> Measured:
    """The same cells in the same order, genes in another."""
    order = np.random.default_rng(1).permutation(data.n_features)
    return Measured(sparse.csr_matrix(data.matrix.toarray()[:, order]), data.var.iloc[order], data.obs, data.name)


def test_a_query_is_aligned_by_id_then_symbol_and_lacking_genes_are_zero():
    data = toy(m=10)
    var = data.var.assign(ensembl_id=[f"ENSG{j:011d}" for j in range(10)])
    rna = RnaInput.fit(Measured(data.matrix, var, data.obs, "model"), np.arange(60), ALL)
    query = permuted(Measured(data.matrix, var, data.obs, "query"), 1)
    renamed = query.var.set_axis([f"other{j}" for j in range(10)], axis=0)
    query = Measured(query.matrix, renamed, query.obs, "query")
    rows = query.obs.index.get_indexer(data.obs.index)
    assert np.array_equal(rna.align(query).toarray()[rows], rna.align(data).toarray())
    five = Measured(query.matrix[:, :5], renamed.iloc[:5], query.obs, "query")
    got = rna.align(five).toarray()[rows]
    present = np.isin(var["ensembl_id"], renamed["ensembl_id"].iloc[:5])
    assert np.array_equal(got, np.where(present, data.matrix.toarray(), 0))
    with pytest.raises(InputError, match=r"query: 1 of 10 genes of the model are among its 1; at least 20% must be"):
        rna.align(Measured(query.matrix[:, :1], renamed.iloc[:1], query.obs, "query"))
    with pytest.raises(InputError, match=r"counts of 5 genes, but the model has 10"):
        rna.inputs(five.matrix)


@pytest.mark.parametrize("clip", [0.0, 0.005])
def test_a_restored_rna_input_is_the_same_bits(clip: float):
    data = toy()
    rna = RnaInput.fit(data, np.arange(40), replace(ALL, clip=clip))
    arrays, told = rna.saved()
    again = RnaInput.restored(arrays, json.loads(json.dumps(told, allow_nan=False)))
    assert again.recipe == rna.recipe
    assert again.left_out == rna.left_out
    pd.testing.assert_frame_equal(again.var, rna.var)
    a, b = rna.inputs(rna.align(data)), again.inputs(again.align(data))
    assert np.array_equal(a.toarray(), b.toarray())
    assert np.array_equal(again.rest, rna.rest)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 200), st.floats(0, 1), st.booleans())
def test_quantiles_are_numpys(seed: int, n: int, share: float, negative: bool):
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(0, 10.0 ** rng.integers(-3, 4), n), 1).astype(np.float32)
    values = values if negative else np.abs(values)
    times = rng.integers(0, 5, n)
    times[0] += 1
    whole = np.repeat(values, times).astype(np.float64)
    half = n // 2

    def passes():
        yield values[half:], times[half:]
        yield values[:half], times[:half]

    np.testing.assert_allclose(quantiles(passes, [share]), np.quantile(whole, [share]), rtol=1e-9, atol=1e-9)
    once = quantiles(lambda: [(values, None)], [share])
    np.testing.assert_allclose(once, np.quantile(values.astype(np.float64), [share]), rtol=1e-9, atol=1e-9)


# ---- ATAC ------------------------------------------------------------------------------------------------------------


def test_peaks_are_merged_filtered_and_ordered_by_known_answer():
    counts = np.zeros((40, 7))
    for column, cells in enumerate([[0, 1, 2], [2, 3, 4], range(5), range(4), range(6), range(5), range(5)]):
        counts[list(cells), column] = 2
    names = ["chr2:100-200", "chr2:150-300", "chr10:5-9", "chr1:5-9", "chr1:50-90", "chrX:1-9", "chr2:300-310"]
    with pytest.warns(EmptyChromosomeWarning, match=r"no peak is kept of chr1 \(2 peaks\)"):
        atac = AtacInput.fit(peaks(counts, names), np.arange(40), AtacRecipe(max_share=0.125))
    # the two of chr2 are open in 0-4 together; chr1:5-9 in four cells, chr1:50-90 in more than 5 of 40
    assert list(atac.regions.names()) == ["chr2:100-300", "chr2:300-310", "chr10:5-9"]
    assert atac.left_out == {"merged": 1, "not_autosomal": 1, "rare": 1, "common": 1}
    aligned = atac.align(peaks(counts, names)).toarray()
    assert np.array_equal(aligned, np.repeat((np.arange(40) < 5)[:, None], 3, axis=1))
    apart = AtacInput.fit(peaks(counts, names), np.arange(40), AtacRecipe(max_share=1.0, min_cells=1, merge=False))
    assert list(apart.regions.names()[:4]) == ["chr1:5-9", "chr1:50-90", "chr2:100-200", "chr2:150-300"]
    assert np.array_equal(apart.align(peaks(counts, names)).toarray()[:, 2:4], counts[:, :2] > 0)
    with pytest.raises(InputError, match="no peak of 6 in 10 cells"):
        AtacInput.fit(peaks(counts, names), np.arange(40, dtype=np.int64)[30:], AtacRecipe())


@pytest.mark.parametrize("width", [500, 1500])  # apart, or each overlapping the next
def test_choosing_peaks_takes_a_fraction_of_the_matrix(width: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(peak_module, "_ENTRIES", 50_000)
    matrix = sparse.random(2_000, 3_000, 0.25, format="csr", dtype=np.float32, rng=np.random.default_rng(0))
    start = np.arange(3_000)[::-1] // 3 * 4000 + np.arange(3_000)[::-1] % 3 * 1000
    given_peaks = Regions.of(["chr1"] * 3_000, start, start + width)
    data = Measured(matrix, given_peaks.to_frame(), pd.DataFrame(index=[str(i) for i in range(2_000)]), "made")
    size = matrix.data.nbytes + matrix.indices.nbytes
    tracemalloc.start()
    found = AtacInput.fit(data, np.arange(1_500), AtacRecipe(max_share=1.0))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found.regions) == (3_000 if width == 500 else 1_000)
    assert peak < 0.4 * size, f"{peak / size:.2f} times the matrix"


@pytest.fixture(scope="module")
def opened() -> Measured:
    made = simulate_multiome(n_cells=150, n_genes=60, n_peaks=400, n_types=3, n_programs=3, atac_depth=60, seed=4).atac
    regions = Regions.parse(made.var_names)
    obs = pd.DataFrame(index=made.obs_names)
    return Measured(sparse.csr_matrix(made.X, dtype=np.float32), regions.to_frame(), obs, "made")


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_order_of_peaks_and_cells_changes_no_bit(seed: int, opened: Measured):
    other = permuted(opened, seed)
    where = other.obs.index.get_indexer(opened.obs.index)
    recipe = AtacRecipe(min_cells=2, max_share=0.6)
    a, b = AtacInput.fit(opened, np.arange(100), recipe), AtacInput.fit(other, where[:100], recipe)
    assert a.regions.equals(b.regions)
    assert a.left_out == b.left_out
    x, y = a.align(opened), a.align(other)[where]
    assert np.array_equal(x.indptr, y.indptr)
    assert np.array_equal(x.indices, y.indices)
    assert set(x.data) == {1.0}


def test_other_peaks_are_pooled_and_few_or_foreign_ones_refused(opened: Measured):
    atac = AtacInput.fit(opened, np.arange(100), AtacRecipe(min_cells=2, max_share=0.6), genome="hg38")
    assert atac.genome == "hg38"
    regions = Regions.from_var(opened.var)
    mid = (regions.start + regions.end) // 2
    chrom = np.array(regions.chroms, dtype=object)[regions.chrom]
    halves = [Regions.of(chrom, a, b) for a, b in ((regions.start, mid), (mid, regions.end))]
    left = np.random.default_rng(0).random(opened.matrix.shape) < 0.5
    x = opened.matrix.toarray()
    both = sparse.csr_matrix(np.hstack([x * left, x * ~left]))
    cut = Measured(both, Regions.concat(halves).to_frame(), opened.obs, "cut")
    assert np.array_equal(atac.align(cut).toarray(), atac.align(opened).toarray())
    far = Regions.of(["chr1"] * 3, np.array([3, 50, 90]), np.array([4, 51, 91]))
    query = Measured(opened.matrix[:, :3], far.to_frame(), opened.obs, "query")
    with pytest.raises(InputError, match=r"query: 0 of the model's \d+ peaks overlap one of the 3 given"):
        atac.align(query)
    beyond = Regions.of(["chr21"] * 3, np.array([46_709_990] * 3) + np.arange(3), np.array([48_000_000] * 3))
    with pytest.raises(InputError, match=r"3 of 3 .*beyond .* chromosome in hg38.*hg19"):
        atac.align(Measured(opened.matrix[:, :3], beyond.to_frame(), opened.obs, "query"))


def test_a_restored_atac_input_is_the_same(opened: Measured):
    atac = AtacInput.fit(opened, np.arange(100), AtacRecipe(min_cells=2, max_share=0.6), genome="GRCh38")
    arrays, told = atac.saved()
    again = AtacInput.restored(arrays, json.loads(json.dumps(told, allow_nan=False)))
    assert again.regions.equals(atac.regions)
    assert (again.recipe, again.genome, again.left_out) == (atac.recipe, "hg38", atac.left_out)
    assert (again.align(opened) != atac.align(opened)).nnz == 0


# ---- protein ---------------------------------------------------------------------------------------------------------


def test_centred_log_ratios_by_known_answer_and_in_any_order():
    data = measured(np.array([[0, 1, 3], [5, 5, 5], [0, 0, 0]]), pd.DataFrame(index=["CD8", "CD3", "CD4"]), "adt")
    protein = ProteinInput.fit(data, np.arange(2))
    assert list(protein.var.index) == ["CD3", "CD4", "CD8"]
    x = protein.align(data)
    mean = np.log(8) / 3
    np.testing.assert_allclose(x[0], np.log([2, 4, 1]) - mean, atol=1e-6)
    np.testing.assert_allclose(x[1:], 0, atol=1e-6)
    assert np.array_equal(protein.align(permuted(data, 3))[permuted(data, 3).obs.index.get_indexer(data.obs.index)], x)
    again = ProteinInput.restored({}, json.loads(json.dumps(protein.saved()[1])))
    assert np.array_equal(again.align(data), x)
    lacking = Measured(data.matrix[:, :2], data.var.iloc[:2], data.obs, "query")
    with pytest.raises(InputError, match=r"query: 1 of the model's 3 proteins .*lacking: 'CD4'; it has: 'CD8', 'CD3'"):
        protein.align(lacking)


# ---- real files ------------------------------------------------------------------------------------------------------


@pytest.mark.realdata
def test_real_multiome_inputs_are_the_formula(realdata: Path):
    from translate.data import read_study

    folder = realdata / "multiome"
    study = read_study(rna=folder / "snare_h1_rna.h5ad", atac=folder / "snare_h1_atac.h5ad", check_pairing=False)
    train = np.arange(300)
    recipe = RnaRecipe(min_genes=0, max_genes=None)
    rna = RnaInput.fit(study.measured["rna"], train, recipe)
    counts = rna.align(study.measured["rna"])
    order = np.argsort(study.measured["rna"].var.index.to_numpy(dtype=object), kind="stable")
    x, _ = dense_formula(study.measured["rna"].matrix.toarray()[:, order].astype(np.float64), train, recipe)
    np.testing.assert_allclose(rna.rest + rna.inputs(counts).toarray(), x, atol=1e-4)
    atac = AtacInput.fit(study.measured["atac"], train, AtacRecipe(), genome="hg38")
    aligned = atac.align(study.measured["atac"])[:300]
    cells = aligned.getnnz(axis=0)
    assert cells.min() >= 5
    assert cells.max() <= 30


def test_a_peak_nested_in_another_counts_towards_it_in_every_file():
    """Peaks merged when the model's peaks were chosen are merged in queries too, the training file's own included."""
    counts = np.array([[0, 1, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0]], np.float32)
    measured = peaks(counts, ["chr1:100-900", "chr1:200-300", "chr2:100-200"])
    found = AtacInput.fit(measured, np.arange(4), AtacRecipe(min_cells=1, max_share=1.0))
    assert list(found.var.index) == ["chr1:100-900", "chr2:100-200"]
    np.testing.assert_array_equal(found.align(measured).toarray(), [[1, 1], [1, 0], [0, 1], [1, 0]])
