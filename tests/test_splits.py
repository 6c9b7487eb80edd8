"""Splits are exact, keyed by cell name, whole in their groups, and by cluster as the paper has it."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from expresser.errors import InputError
from translate.splits import Split, split_by_cluster, split_by_column, split_random
from translate.study import Measured, Study

PARTS = ("train", "valid", "test")


def named(split: Split, names: pd.Index) -> dict[str, set[str]]:
    return {part: set(names[getattr(split, part)]) for part in PARTS}


def clustered(sizes: list[int], seed: int = 0) -> Study:
    """RNA of clusters that nothing could confuse, the cells of all of them mixed."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    rates = np.full((len(sizes), 120), 0.3)
    for k in range(len(sizes)):
        rates[k, 15 * k : 15 * (k + 1)] = 12.0
    counts = rng.poisson(rates[labels]).astype(np.float32)
    obs = pd.DataFrame({"cluster": [f"k{v}" for v in labels]}, index=[f"c{i:04d}" for i in range(len(labels))])
    var = pd.DataFrame(
        {"ensembl_id": "", "symbol": "", "chrom": "", "tss": -1}, index=[f"g{j:03d}" for j in range(120)]
    )
    return Study(
        obs, {"rna": Measured(sparse.csr_matrix(counts), var, obs, "toy")}, {"rna": np.arange(len(obs), dtype=np.int64)}
    )


def half_paired() -> Study:
    """60 cells with RNA and ATAC, then 20 with RNA, then 20 with ATAC."""
    obs = pd.DataFrame({"donor": [f"d{i % 7}" for i in range(100)]}, index=[f"c{i}" for i in range(100)])

    def part(rows: np.ndarray) -> tuple[Measured, np.ndarray]:
        matrix = sparse.csr_matrix(np.ones((len(rows), 2), dtype=np.float32))
        places = np.full(100, -1)
        places[rows] = np.arange(len(rows))
        return Measured(matrix, pd.DataFrame(index=["a", "b"]), obs.iloc[rows], "toy"), places

    rna, rna_rows = part(np.arange(80))
    atac, atac_rows = part(np.r_[np.arange(60), np.arange(80, 100)])
    return Study(obs, {"rna": rna, "atac": atac}, {"rna": rna_rows, "atac": atac_rows})


# ---- random ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 300), st.integers(0, 1000), st.integers(0, 2**32))
def test_shares_are_exact_and_the_order_of_names_does_not_matter(n: int, seed: int, shuffle: int):
    names = pd.Index([f"cell {i}" for i in range(n)])
    split = split_random(names, seed=seed)
    assert (len(split.valid), len(split.test)) == (max(round(0.15 * n), 1),) * 2
    assert sorted(np.concatenate([split.train, split.valid, split.test])) == list(range(n))
    other = names[np.random.default_rng(shuffle).permutation(n)]
    assert named(split_random(other, seed=seed), other) == named(split, names)


def test_seeds_give_other_splits_and_numbers_stand_for_names():
    a, b = (split_random(200, seed=seed) for seed in (0, 1))
    assert not np.array_equal(a.test, b.test)
    assert np.array_equal(split_random([str(i) for i in range(200)]).test, a.test)
    assert repr(a) == "Split(random, seed 0: 140 train, 30 valid, 30 test)"
    assert len(split_random(10, shares=(0.8, 0.0, 0.2)).valid) == 0


def test_only_paired_cells_are_held_out_unless_all_are_asked_for():
    study = half_paired()
    split = split_random(study)
    assert (len(split.valid), len(split.test), len(split.train)) == (9, 9, 82)
    assert max(split.valid.max(), split.test.max()) < 60
    assert len(split_random(study, paired_only=False).test) == 15
    alone = Study(study.obs, study.measured, {"rna": study.rows["rna"], "atac": np.where(np.arange(100) < 80, -1, 0)})
    assert not len(alone.paired)
    parts = split_random(alone)  # then shares of the cells of each modality
    for modality in ("rna", "atac"):
        n = int(alone.has(modality).sum())
        assert int(alone.has(modality)[parts.test].sum()) == round(0.15 * n)


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.5), (1.2, -0.2, 0.0), (0.0, 0.5, 0.5)])
def test_shares_must_be_shares(shares: tuple[float, float, float]):
    with pytest.raises(InputError, match="must sum to 1"):
        split_random(10, shares=shares)


def test_a_cell_belongs_to_one_part():
    with pytest.raises(InputError, match="2 training, 1 validation and 1 test cells, 1 of them in two parts"):
        Split("x", np.arange(2), np.array([1]), np.array([3]))


# ---- by column -------------------------------------------------------------------------------------------------------


def test_a_column_of_parts_is_taken_at_its_word():
    obs = pd.DataFrame({"part": ["train", "Valid", "test", "train", "val", "validation"]})
    split = split_by_column(obs, "part")
    assert (list(split.train), list(split.valid), list(split.test)) == ([0, 3], [1, 4, 5], [2])


def test_chosen_groups_are_held_out_whole():
    obs = pd.DataFrame({"donor": ["a", "b", "c", "d", "a", "c"]})
    split = split_by_column(obs, "donor", valid="a", test=["b", "d"])
    assert (list(split.train), list(split.valid), list(split.test)) == ([2, 5], [0, 4], [1, 3])
    assert split.name == "by donor: valid a; test b, d"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=3, max_size=15), st.integers(0, 100))
def test_groups_are_dealt_out_whole_whatever_the_order(sizes: list[int], seed: int):
    values = np.repeat([f"d{i}" for i in range(len(sizes))], sizes)
    obs = pd.DataFrame({"donor": values}, index=[f"c{i}" for i in range(len(values))])
    split = split_by_column(obs, "donor", seed=seed)
    groups = [set(values[getattr(split, part)]) for part in PARTS]
    assert sum(map(len, groups)) == len(sizes)
    assert all(groups)
    other = obs.iloc[np.random.default_rng(seed).permutation(len(obs))]
    assert named(split_by_column(other, "donor", seed=seed), other.index) == named(split, obs.index)


def test_groups_come_near_their_shares_and_vary_with_the_seed():
    obs = pd.DataFrame({"donor": np.repeat([f"d{i}" for i in range(40)], 25)})
    splits = [split_by_column(obs, "donor", seed=seed) for seed in range(4)]
    for split in splits:
        assert len(split.test) == len(split.valid) == 150
    assert len({tuple(split.test) for split in splits}) == 4


def test_unpaired_cells_train_and_need_no_group():
    study = half_paired()
    study.obs.loc["c70", "donor"] = None
    split = split_by_column(study, "donor", test="d3", valid="d1")
    assert set(split.test) == {i for i in range(60) if i % 7 == 3}
    assert set(range(60, 100)) <= set(split.train)


def test_bad_columns_say_what_there_is():
    obs = pd.DataFrame({"donor": ["a", "b", None, "a"], "two": ["x", "y", "x", "y"]}, index=list("wxyz"))
    with pytest.raises(InputError, match=r"no column 'donr'; it has \['donor', 'two'\]"):
        split_by_column(obs, "donr")
    with pytest.raises(InputError, match=r"1 of 4 cells have no 'donor' \(first: 'y'\)"):
        split_by_column(obs, "donor")
    with pytest.raises(InputError, match=r"'two' has 2 groups \(x, y\), too few for valid and test"):
        split_by_column(obs, "two")
    with pytest.raises(InputError, match=r"'two' has no \['q'\]; its groups are \['x', 'y'\]"):
        split_by_column(obs, "two", test="q")
    with pytest.raises(InputError, match=r"\['x'\] are in both"):
        split_by_column(obs, "two", test="x", valid="x")
    depths = pd.DataFrame({"depth": np.arange(20.0)}, index=[f"c{i}" for i in range(20)])
    with pytest.raises(InputError, match=r"'depth' has 20 values for 20 cells \(first: 0.0, 1.0, 10.0\): no groups"):
        split_by_column(depths, "depth")


# ---- by cluster ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def study() -> Study:
    return clustered([90, 75, 60, 50, 40, 30])


def test_the_largest_cluster_validates_the_second_tests_and_rotations_repeat_none(study: Study):
    held = []
    for rotation in range(5):
        split = split_by_cluster(study, rotation=rotation, resolution=0.5)
        labels = [set(study.obs["cluster"].iloc[getattr(split, part)]) for part in PARTS]
        assert labels[1] == {f"k{rotation}"}
        assert labels[2] == {f"k{(rotation + 1) % 5}"}
        assert not labels[0] & (labels[1] | labels[2])
        assert sum(len(getattr(split, part)) for part in PARTS) == study.n_cells
        held.append(labels)


def test_the_order_of_a_file_does_not_change_its_clusters(study: Study):
    order = np.random.default_rng(1).permutation(study.n_cells)
    other = study.select(order)
    genes = np.random.default_rng(2).permutation(120)
    rna = other.measured["rna"]
    moved = Measured(sparse.csr_matrix(rna.matrix.toarray()[:, genes]), rna.var.iloc[genes], rna.obs, "moved")
    other = Study(other.obs, {"rna": moved}, other.rows)
    a, b = split_by_cluster(study), split_by_cluster(other)
    assert named(a, study.obs.index) == named(b, other.obs.index)


def test_too_few_clusters_or_cells_say_what_to_do(study: Study):
    with pytest.raises(InputError, match=r"fall into 2 clusters at resolution 0.1; rotation 0 needs 3"):
        split_by_cluster(clustered([60, 50]), resolution=0.1)
    with pytest.raises(InputError, match=r"fall into 4 clusters .*; rotation 1 needs 5"):
        split_by_cluster(clustered([60, 50, 40, 30]), resolution=0.3, rotation=1)
    with pytest.raises(InputError, match="rotation 5; there are 5, numbered 0 to 4"):
        split_by_cluster(study, rotation=5)
    with pytest.raises(InputError, match="10 cells take part, at least 16"):
        split_by_cluster(study.select(np.arange(10)))
