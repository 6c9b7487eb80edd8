"""Peaks carried over, merged, filtered and binarised as loops over single peaks and cells say, in any order."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from scipy import sparse

from expresser.errors import InputError
from expresser.regions import Regions
from translate import peaks as peak_module
from translate.peaks import (
    binarise,
    binarise_predictions,
    coverage,
    merge_sets,
    open_cells,
    peak_filter,
    repool,
)

CELLS = 5
# Rows, not Regions: beartype draws from `random`, which a strategy must not.
row = st.tuples(st.sampled_from(["chr1", "chr2", "chrX"]), st.integers(0, 60), st.integers(1, 25))
peaks = st.lists(row, max_size=12)


def build(rows: list[tuple[str, int, int]]) -> Regions:
    chrom, start, length = zip(*rows) if rows else ((), (), ())
    starts = np.array(start, dtype=np.int64)
    return Regions.of(list(chrom), starts, starts + np.array(length, dtype=np.int64))


def counts(n_peaks: int, seed: int, cells: int = CELLS) -> sparse.csr_matrix:
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(0.5, (cells, n_peaks)).astype(np.float32))


def share_a_base(a: Regions, b: Regions) -> np.ndarray:
    one, two = (np.array(r.chroms, dtype=object)[r.chrom] for r in (a, b))
    same = one[:, None] == two[None, :]
    return same & (a.start[:, None] < b.end) & (b.start < a.end[:, None])


def by_or(matrix: sparse.csr_matrix, source: Regions, target: Regions) -> np.ndarray:
    """The straightforward loop over target peaks."""
    pairs, dense = share_a_base(source, target), matrix.toarray() > 0
    opened_by = [dense[:, pairs[:, j]].any(axis=1) for j in range(len(target))]
    return np.array(opened_by, dtype=bool).reshape(len(target), CELLS).T


def is_plain(matrix: sparse.csr_matrix) -> bool:
    """Sorted indices, no repeats, float32 ones alone."""
    return matrix.has_canonical_format and matrix.dtype == np.float32 and bool((matrix.data == 1).all())


def permutation(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(n)


# --- re-pooling ---


@given(source=peaks, target=peaks, seed=st.integers(0, 99))
def test_repooling_onto_disjoint_peaks_is_a_logical_or(source, target, seed):
    source, target = build(source), build(target).merged()
    matrix = counts(len(source), seed)
    pooled = repool(matrix, source, target)
    assert is_plain(pooled)
    assert np.array_equal(pooled.toarray() > 0, by_or(matrix, source, target))


@given(source=peaks, target=peaks, seed=st.integers(0, 99))
def test_repooling_follows_permutations_of_either_list(source, target, seed):
    source, target = build(source), build(target)
    matrix = counts(len(source), seed)
    pooled = repool(matrix, source, target).toarray()
    p, q = permutation(len(source), seed), permutation(len(target), seed + 1)
    assert np.array_equal(repool(matrix[:, p], source.take(p), target.take(q)).toarray(), pooled[:, q])


@given(source=peaks, seed=st.integers(0, 99))
def test_peaks_repooled_onto_themselves_stay_even_where_they_overlap(source, seed):
    regions = build(source)
    regions = regions.take(~regions.duplicated())
    matrix = counts(len(regions), seed)
    p = permutation(len(regions), seed)
    assert np.array_equal(repool(matrix, regions, regions).toarray(), matrix.toarray() > 0)
    assert np.array_equal(repool(matrix, regions, regions.take(p)).toarray(), matrix.toarray()[:, p] > 0)


def test_the_example_of_the_paper():
    source = Regions.parse(["chr1:950-1150", "chr1:1190-2090", "chr2:1000-2000"])
    target = Regions.parse(["chr1:1000-2000"])
    matrix = sparse.csr_matrix(np.array([[0, 3, 0], [1, 0, 0], [2, 2, 0], [0, 0, 5]], dtype=np.float32))
    assert repool(matrix, source, target).toarray().ravel().tolist() == [1, 1, 1, 0]


def test_a_peak_that_both_lists_hold_fills_that_peak_alone():
    target = Regions.parse(["chr1:100-200", "chr1:150-250"])
    source = Regions.parse(["chr1:100-200", "chr1:160-170"])
    pooled = repool(sparse.csr_matrix(np.eye(2, dtype=np.float32)), source, target)
    assert pooled.toarray().tolist() == [[1, 0], [1, 1]]


def test_the_matrix_must_be_of_the_regions():
    regions = Regions.parse(["chr1:1-2"])
    for use in (lambda m: repool(m, regions, regions), lambda m: open_cells(m, regions)):
        with pytest.raises(InputError, match="2 columns and there are 1 regions"):
            use(counts(2, 0))


def test_repooling_is_one_fast_product():
    rng = np.random.default_rng(0)
    start = np.sort(rng.choice(4_000_000, 20_000, replace=False)) * 10
    source = Regions.of([f"chr{c}" for c in np.repeat(np.arange(1, 21), 1_000)], start, start + 600)
    shifted = start + rng.integers(0, 300, start.size)
    target = Regions.of([f"chr{c}" for c in np.repeat(np.arange(1, 21), 1_000)], shifted, shifted + 500).merged()
    matrix = sparse.random(2_000, 20_000, 0.03, format="csr", dtype=np.float32, rng=rng)
    repool(matrix[:10], source, target)
    begun = time.process_time()
    repool(matrix, source, target)
    assert time.process_time() - begun < 0.5  # 0.03 s alone on one thread


# --- merging ---


@settings(max_examples=50)
@given(first=peaks, second=peaks, seed=st.integers(0, 99))
def test_sets_merge_to_the_union_whatever_their_order(first, second, seed):
    sets = [(counts(len(r), seed + i), r) for i, r in enumerate([build(first), build(second)])]
    merged, union = merge_sets(sets)
    assert union.equals(Regions.concat([r for _, r in sets]).merged())
    for (matrix, regions), pooled in zip(sets, merged):
        assert np.array_equal(pooled.toarray() > 0, by_or(matrix, regions, union))
    again, same = merge_sets(sets[::-1])
    assert same.equals(union)
    assert all((a != b).nnz == 0 for a, b in zip(again[::-1], merged))
    (alone,), own = merge_sets(sets[:1])
    assert np.array_equal(alone.toarray() > 0, by_or(*sets[0], own))
    assert merge_sets([(alone, own)])[1].equals(own)


# --- binarising, filtering ---


def test_binarise_makes_ones_of_counts_and_leaves_its_input_alone():
    given_counts = sparse.csr_matrix(
        (np.array([2.0, 0.0, 1.0, 1.0]), np.array([1, 0, 2, 2]), np.array([0, 2, 4])), shape=(2, 3)
    )
    made = binarise(given_counts)
    assert is_plain(made)
    assert made.toarray().tolist() == [[0, 1, 0], [0, 0, 1]]
    assert given_counts.nnz == 4
    for bad in (-1.0, np.nan):
        given_counts.data[2] = bad
        with pytest.raises(InputError, match=r"1 of 4 stored values are negative or NaN .* cell 1, peak 2"):
            binarise(given_counts)


@given(source=peaks, target=peaks, seed=st.integers(0, 99), step=st.sampled_from([1, 7, 10**6]))
def test_cells_of_a_peak_are_counted_as_repooling_opens_it(source, target, seed, step):
    one, other = build(source), build(target)
    matrix = counts(len(one), seed, cells=20)
    matrix = (
        sparse.csr_matrix(  # with a stored zero, and an entry in two parts
            (
                np.r_[matrix.data, 0, matrix.data[-1:]],
                np.r_[matrix.indices, matrix.indices[-1:], matrix.indices[-1:]],
                np.r_[matrix.indptr[:-1], matrix.nnz + 2],
            ),
            shape=matrix.shape,
        )
        if matrix.indptr[-1] > matrix.indptr[-2]
        else matrix
    )
    chosen = permutation(20, seed)[:13]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peak_module, "_ENTRIES", step)
        found = open_cells(matrix, one, other, chosen)
        assert found.tolist() == repool(matrix[chosen], one, other).getnnz(axis=0).tolist()
        if not one.duplicated().any():
            assert open_cells(matrix, one).tolist() == (matrix.toarray() > 0).sum(axis=0).tolist()


def filtered(matrix: sparse.csr_matrix, regions: Regions, **options):
    return peak_filter(open_cells(matrix, regions), regions, n_cells=matrix.shape[0], **options)


def opened(cells_open: list[int], n_cells: int) -> sparse.csr_matrix:
    return sparse.csr_matrix(np.arange(n_cells)[:, None] < np.array(cells_open), dtype=np.float32) * 3


def test_filters_are_fractions_of_cells_or_the_released_rule():
    regions = Regions.parse(["chr1:1-2", "chr1:3-4", "chr1:5-6", "chr2:1-2", "chr2:5-6", "chrX:1-2", "GL1.1:1-2"])
    matrix = opened([4, 5, 29, 30, 80, 20, 20], 100)
    keep, reasons = filtered(matrix, regions, max_share=0.29)
    assert keep.tolist() == [False, True, True, False, False, False, False]
    assert reasons == {"not_autosomal": 2, "rare": 1, "common": 2, "kept": 2}
    # round(0.29 x 80) = 23 cells
    keep, reasons = filtered(matrix, regions, max_share=0.29, share_of="commonest_peak")
    assert keep.tolist() == [False, True, False, False, False, False, False]
    keep, _ = filtered(matrix, regions, autosomes=False, min_cells=0, max_share=1.0)
    assert keep.all()
    with pytest.raises(InputError, match=r"no peak of 7 .* 2 are on no autosome, 5 open in fewer than 81 cells"):
        filtered(matrix, regions, min_cells=81)
    with pytest.raises(TypeCheckError):
        filtered(matrix, regions, share_of="genes")


@given(seed=st.integers(0, 999), share=st.floats(0.05, 1), least=st.integers(0, 4))
def test_filters_count_cells_and_follow_permutations(seed, share, least):
    rng = np.random.default_rng(seed)
    regions = build([(str(c), 100 * i, 50) for i, c in enumerate(rng.choice(["chr1", "chr7", "chrY"], 12))])
    matrix = counts(12, seed, cells=20)
    cells = (matrix.toarray() > 0).sum(axis=0)
    expected = regions.is_autosome() & (cells >= least) & (cells <= np.floor(share * 20 + 1e-9))
    if not expected.any():
        with pytest.raises(InputError, match="no peak of 12"):
            filtered(matrix, regions, min_cells=least, max_share=share)
        return
    keep, reasons = filtered(matrix, regions, min_cells=least, max_share=share)
    assert keep.tolist() == expected.tolist()
    assert sum(reasons.values()) == 12
    p = permutation(12, seed)
    q = permutation(20, seed)
    assert np.array_equal(filtered(matrix[q][:, p], regions.take(p), min_cells=least, max_share=share)[0], keep[p])


# --- coverage ---


def scattered(n: int, seed: int) -> Regions:
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 48_000_000, n)
    return Regions.of([f"chr{c}" for c in rng.integers(1, 20, n)], start, start + 500)


def test_coverage_counts_both_sides_and_refuses_chance():
    model = scattered(20_000, 0)
    report = coverage(model.take(np.arange(5_000)), model)
    assert (report.model, report.given, report.used) == (20_000, 5_000, 5_000)
    assert report.covered >= 5_000
    report.check()
    coverage(model.take(np.arange(30)), model).check()  # few peaks, but real ones

    other = coverage(scattered(20_000, 1), model, where="query.h5ad")
    assert other.by_chance == pytest.approx(other.used, rel=0.15)
    with pytest.raises(InputError, match=r"query.h5ad: .* of the model's 20,000 peaks overlap .* would by chance"):
        other.check()
    with pytest.raises(InputError, match="3 of the model's 20,000 peaks"):
        coverage(model.take(np.array([0, 1000, 19_000])), model).check()
    with pytest.raises(InputError, match=r"0 of .* No chromosome is in both: chrKI1.1 .* against chr1, chr2, chr3"):
        coverage(Regions.parse(["chrKI1.1:5-9"]), model).check()
    sparse_model = model.take(np.arange(1_000))
    stray = Regions.concat([sparse_model.take(np.arange(3)), scattered(900, 7)])
    with pytest.raises(InputError, match="of the model's 1,000 peaks overlap"):  # a few of both: chance
        coverage(stray, sparse_model).check()
    tiles = np.arange(0, 48_000_000, 5_000)
    tiled = Regions.of(
        np.repeat([f"chr{c}" for c in range(1, 20)], len(tiles)), *(np.tile(tiles + k, 19) for k in (0, 5_000))
    )
    coverage(tiled, model).check()  # overlaps by chance whatever the build, yet covers all


def test_coverage_names_the_builds_where_they_differ():
    human, mouse = Regions.parse(["chr22:100-200"]), Regions.parse(["chr19:61000000-61000500"])
    at_the_end = Regions.parse(["chr1:248956000-248956400", "chr17:83000000-83000100"])  # hg38: past hg19's chr17
    assert "another build" in coverage(human, mouse).hint or "No chromosome" in coverage(human, mouse).hint
    hg19 = Regions.parse(["chr1:249240000-249240100", "chr17:5-9"])
    assert coverage(hg19, at_the_end).hint == "The peaks given fit hg19 and the model's hg38: lift them over first."


# --- predictions ---


class Dense:
    """Predictions in memory, and how large a block was ever asked for."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.largest = values.astype(np.float32), 0

    @property
    def n_cells(self) -> int:
        return len(self.values)

    @property
    def n_features(self) -> int:
        return self.values.shape[1]

    def block(self, cells: slice, features: slice) -> np.ndarray:
        part = self.values[cells, features]
        self.largest = max(self.largest, part.size)
        return part


@given(
    cells=st.integers(0, 9),
    features=st.integers(0, 12),
    seed=st.integers(0, 99),
    block=st.tuples(*[st.integers(1, 6)] * 2),
)
def test_predictions_above_both_means(cells, features, seed, block):
    values = np.random.default_rng(seed).random((cells, features), dtype=np.float32)
    predicted = Dense(values)
    made = binarise_predictions(predicted, block=block)
    assert is_plain(made)
    assert made.shape == values.shape
    assert predicted.largest <= block[0] * block[1]
    if values.size:
        expected = (values > values.mean(axis=1, keepdims=True)) & (values > values.mean(axis=0))
        assert np.array_equal(made.toarray() > 0, expected)
    fixed = binarise_predictions(predicted, threshold=0.4, block=block)
    assert np.array_equal(fixed.toarray() > 0, values > np.float32(0.4))


@pytest.mark.parametrize("value", [0.1, 0.3, 1 / 3, 0.7])
def test_constant_predictions_exceed_no_mean(value):
    assert binarise_predictions(Dense(np.full((7, 1001), value)), block=(3, 100)).nnz == 0
