"""Splits of genes and of pairs: what their names promise, for any list of pairs."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from expresser.errors import InputError
from expresser.metrics.intervals import resampled_interval
from finetune.splits.dealing import numbered
from finetune.splits.degree import degree_scores
from finetune.splits.making import Split, audit, gene_folds, gene_holdout, inner_pairs, pair_splits

KINDS = ("gene-disjoint", "semi-disjoint", "random")


def pairs(seed: int, genes: int = 120, count: int = 1500) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distinct unordered pairs, in either order, some genes with many."""
    rng = np.random.default_rng(seed)
    weight = rng.gamma(1.0, size=genes)
    ends = np.sort(rng.choice(genes, (2, 2 * count), p=weight / weight.sum()), axis=0)
    ends = np.unique(ends[:, ends[0] != ends[1]], axis=1)
    ends = rng.permuted(ends[:, rng.permutation(ends.shape[1])[:count]], axis=0)
    a, b = (np.array([f"ENSG{gene:011d}" for gene in side], dtype=object) for side in ends)
    return a, b, rng.integers(0, 2, len(a)).astype(np.int8)


def names_of(a, b, rows) -> set[str]:
    return set(a[rows]) | set(b[rows])


def units_of(a, b, rows) -> set[frozenset]:
    return {frozenset(pair) for pair in zip(a[rows], b[rows])}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), folds=st.integers(2, 4), kind=st.sampled_from(KINDS))
def test_no_gene_and_no_pair_is_where_its_split_forbids_it(seed, folds, kind):
    a, b, y = pairs(seed)
    tested = np.zeros(len(a), dtype=int)
    for split in pair_splits(a, b, y, kind=kind, folds=folds, seed=seed):
        known = names_of(a, b, split.train)
        seen = [(one in known) + (other in known) for one, other in zip(a[split.test], b[split.test])]
        assert not units_of(a, b, split.train) & units_of(a, b, split.test)
        if kind != "random":
            assert set(seen) == {0 if kind == "gene-disjoint" else 1}
            assert split.strictest == kind
        assert split.unused == len(a) - len(split.train) - len(split.test)
        tested[split.test] += 1
    if kind == "random":
        assert (tested == 1).all()
    else:
        assert tested.max() <= (1 if kind == "gene-disjoint" else 2)  # either gene of a pair can be the new one


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_rows_and_of_genes_in_a_pair_does_not_matter(kind):
    a, b, y = pairs(1)
    turn = np.random.default_rng(2).permutation(len(a))
    whole = pair_splits(a, b, y, kind=kind, seed=5)
    turned = pair_splits(b[turn], a[turn], y[turn], kind=kind, seed=5)
    for one, other in zip(whole, turned, strict=True):
        assert set(one.train) == set(turn[other.train])
        assert set(one.test) == set(turn[other.test])
    again = pair_splits(a, b, y, kind=kind, seed=6)
    assert any(set(one.test) != set(other.test) for one, other in zip(whole, again))
    twice = pair_splits(a, b, y, kind=kind, seed=5, repeats=2)
    assert [split.repeat for split in twice] == [0] * 5 + [1] * 5
    assert set(twice[0].test) == set(whole[0].test) != set(twice[5].test)


def test_folds_are_of_like_size_though_degrees_are_not():
    a, b, y = pairs(3, genes=400, count=8000)
    sizes = [len(split.test) for split in pair_splits(a, b, y, kind="gene-disjoint", folds=5)]
    assert min(sizes) > 0.6 * len(a) / 25
    assert max(sizes) < 1.4 * len(a) / 25
    for split in pair_splits(a, b, y, kind="random", folds=5):
        assert abs(y[split.test].mean() - y.mean()) < 0.002


def test_a_pair_in_both_directions_stays_on_one_side():
    a, b, y = pairs(4)
    a2, b2, y2 = np.concatenate([a, b]), np.concatenate([b, a]), np.concatenate([y, y])
    for split in pair_splits(a2, b2, y2, kind="random"):
        assert set(split.test[split.test < len(a)] + len(a)) == set(split.test[split.test >= len(a)])


def test_a_leaking_split_cannot_be_made():
    genes = np.array([[0, 1], [2, 3], [1, 2], [1, 0]])
    rows = np.array
    assert Split("gene-disjoint", 0, 0, rows([0]), rows([1]), genes).unused == 2
    assert Split("semi-disjoint", 0, 0, rows([0]), rows([2]), genes).strictest == "semi-disjoint"
    with pytest.raises(
        InputError, match=r"1 of 1 test items break its rule, no gene of a test pair .* \(first: row 2\)"
    ):
        Split("gene-disjoint", 0, 0, rows([0]), rows([2]), genes)
    with pytest.raises(InputError, match="exactly one"):
        Split("semi-disjoint", 0, 0, rows([0]), rows([1]), genes)
    for kind in ("random", "shipped"):
        with pytest.raises(InputError, match="in either order"):
            Split(kind, 0, 0, rows([0, 1]), rows([3]), genes)
    with pytest.raises(
        InputError, match="no gene of a test pair"
    ):  # what is kept for the choice of a model is seen, too
        Split("gene-disjoint", 0, 0, rows([0]), rows([1]), genes, rows([2]))
    with pytest.raises(InputError, match="used 2 times"):
        Split("random", 0, 0, rows([0, 1]), rows([1]), genes)
    with pytest.raises(InputError, match="'clever'"):
        Split("clever", 0, 0, rows([0]), rows([1]), genes)


def test_a_shipped_split_is_kept_and_measured():
    a, b = np.array([list("abcdwxyz"), list("bcdawyzx")], dtype=object)
    b[4] = "x"
    y = np.array([0, 1, 0, 1, 0, 1, 0, 1], dtype=np.int8)
    part = np.array(["train", "train", "valid", "valid", "test", "test", "test", "test"], dtype=object)
    (split,) = pair_splits(a, b, y, kind="shipped", part=part)
    assert (split.kind, split.strictest) == ("shipped", "gene-disjoint")
    assert split.rows.tolist() == [0, 1, 2, 3]
    assert split.inner is not None
    train, valid = split.inner[0]
    assert (split.rows[train].tolist(), split.rows[valid].tolist()) == ([0, 1], [2, 3])
    assert split.test_share == 0.5
    leaking = np.where(np.arange(8) == 3, "test", part.astype(str)).astype(object)
    (split,) = pair_splits(a, b, y, kind="shipped", part=leaking)
    assert split.strictest == "random"
    assert audit(a, b, y, split)["share_2_genes_in_training"] == pytest.approx(0.2)
    with pytest.raises(InputError, match="ship no split"):
        pair_splits(a, b, y, kind="shipped")
    with pytest.raises(InputError, match="'dev'"):
        pair_splits(a, b, y, kind="shipped", part=np.full(8, "dev", dtype=object))


def hubs(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Whether a pair interacts is a matter of its genes alone."""
    a, b, _ = pairs(seed, genes=300, count=6000)
    eager = dict(zip(sorted({*a, *b}), np.random.default_rng(seed).normal(size=300) * 2))
    logit = np.array([eager[one] + eager[other] for one, other in zip(a, b)])
    return a, b, (np.random.default_rng(1).random(len(a)) < 1 / (1 + np.exp(-logit))).astype(np.int8)


def test_degree_says_much_of_random_splits_and_nothing_of_disjoint_ones():
    a, b, y = hubs()
    found = {kind: audit(a, b, y, pair_splits(a, b, y, kind=kind)[0]) for kind in KINDS}
    assert found["gene-disjoint"]["degree_auroc"] == 0.5
    assert found["gene-disjoint"]["share_0_genes_in_training"] == 1.0
    assert found["random"]["degree_auroc"] > 0.85
    assert 0.6 < found["semi-disjoint"]["degree_auroc"] < found["random"]["degree_auroc"]
    assert found["semi-disjoint"]["share_1_genes_in_training"] == 1.0
    assert all(kept["reversed_across"] == kept["repeated_across"] == 0 for kept in found.values())


def test_degree_scores_by_hand():
    a, b = np.array([0, 0, 1, 4, 0]), np.array([1, 2, 2, 5, 3])
    y, train = np.array([1, 1, 0, 0, 0]), np.arange(3)
    found = degree_scores(a, b, y, train, np.array([3, 4]), smoothing=1.0)
    # Of 3 training pairs 2 are positive; gene 0 has 2 of 2: (2 + 2/3) / 3. Genes 3, 4 and 5 are new.
    assert found[0] == pytest.approx(2 / 3)
    assert found[1] == pytest.approx(8 / 9)
    np.testing.assert_array_equal(found, degree_scores(b, a, y, train, np.array([3, 4]), smoothing=1.0))
    assert roc_auc_score([0, 1, 1], np.repeat(found[:1], 3)) == 0.5


def test_a_split_that_lacks_a_class_says_what_to_do():
    a, b, y = pairs(5, genes=30, count=60)
    y[:] = 0
    y[:2] = 1
    with pytest.raises(InputError, match=r"both classes are needed. Give fewer folds"):
        pair_splits(a, b, y, kind="gene-disjoint")
    with pytest.raises(InputError, match="labels of pairs are 0 and 1"):
        pair_splits(a, b, np.full(len(a), 2), kind="random")
    with pytest.raises(InputError, match="2 folds or more"):
        pair_splits(a, b, y, kind="random", folds=1)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_splits_keep_the_rule_inside_the_training_rows(kind):
    a, b, y = pairs(6)
    split = pair_splits(a, b, y, kind=kind)[0]
    inner = inner_pairs(a, b, split.train, kind=kind)
    assert len(inner) == 3
    for train, valid in inner:
        train, valid = split.train[train], split.train[valid]
        assert not units_of(a, b, train) & units_of(a, b, valid)
        if kind == "gene-disjoint":
            assert not names_of(a, b, train) & names_of(a, b, valid)
            assert not names_of(a, b, valid) & names_of(a, b, split.test)


def labels(n: int, kind: str, seed: int = 0) -> pd.Series:
    rng = np.random.default_rng(seed)
    ids = [f"ENSG{gene:011d}" for gene in rng.permutation(n)]
    if kind == "regression":
        return pd.Series(rng.gamma(1.0, size=n), index=ids)
    return pd.Series((rng.random(n) < 0.25).astype(np.int8), index=ids)


@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_each_gene_is_tested_once_a_repeat_in_folds_that_look_alike(kind):
    y = labels(203, kind)
    splits = gene_folds(y, kind=kind, folds=5, repeats=3, seed=1)
    assert len(splits) == 15
    for repeat in range(3):
        mine = [split for split in splits if split.repeat == repeat]
        np.testing.assert_array_equal(np.sort(np.concatenate([split.test for split in mine])), np.arange(203))
        middle = [y.iloc[split.test].median() if kind == "regression" else y.iloc[split.test].mean() for split in mine]
        assert np.ptp(middle) < (0.12 if kind == "regression" else 0.03)
        assert {len(split.test) for split in mine} <= {40, 41}
        assert all(split.unused == 0 for split in mine)
    turned = gene_folds(y.iloc[::-1], kind=kind, folds=5, repeats=1, seed=1)
    assert [set(y.index[s.test]) for s in splits[:5]] == [set(y.index[::-1][s.test]) for s in turned]


def test_a_held_out_fifth_is_a_fifth_and_the_seeds():
    y = labels(490, "binary")
    (split,) = gene_holdout(y, kind="binary", seed=3)
    assert (len(split.test), len(split.train)) == (98, 392)
    assert set(gene_holdout(y, kind="binary", seed=4)[0].test) != set(split.test)
    (turned,) = gene_holdout(y.iloc[::-1], kind="binary", seed=3)
    assert set(y.index[split.test]) == set(y.index[::-1][turned.test])


def test_too_few_genes_say_so():
    y = pd.Series([0] * 20 + [1] * 3, index=[f"g{n}" for n in range(23)])
    with pytest.raises(InputError, match="class '1' has 3 genes for 5 folds"):
        gene_folds(y, kind="binary")
    with pytest.raises(InputError, match="nothing to tell apart"):
        gene_folds(y.iloc[:20], kind="binary")
    with pytest.raises(InputError, match="two labels"):
        gene_folds(pd.concat([y, y]), kind="binary")
    with pytest.raises(InputError, match="at least 2 genes"):
        gene_folds(y.iloc[:5], kind="regression")
    with pytest.raises(InputError, match="leaves one side empty"):
        gene_holdout(y, kind="binary", share=1.0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_tested_share_counts_genes_where_genes_are_held_out(kind):
    """Pairs of one gene are not independent: by pairs, a fifth of the genes would count as a seventeenth."""
    a, b, y = pairs(5)
    shares = [split.test_share for split in pair_splits(a, b, y, kind=kind, folds=5)]
    assert shares == pytest.approx([0.2] * 5, abs=0.03)


@pytest.mark.slow
def test_intervals_over_repeated_folds_of_genes_hold_the_truth():
    """Scores with gene effects: of 60 draws some 57 should have the true AUROC inside; by share of pairs 50 had."""

    def draw(genes: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        code = np.unique(np.sort(rng.integers(0, genes, (count, 2)), axis=1) @ [genes, 1])
        a, b = (side[code // genes != code % genes] for side in (code // genes, code % genes))
        y = rng.integers(0, 2, len(a)).astype(np.int8)
        level, signal = rng.normal(0, 0.5, (2, genes))
        return a, b, y, y * (0.8 + signal[a] + signal[b]) + level[a] + level[b] + rng.normal(size=len(a))

    rng = np.random.default_rng(1)
    _, _, y, score = draw(3000, 100_000, rng)
    truth, held = roc_auc_score(y, score), 0
    for number in range(60):
        a, b, y, score = draw(150, 3000, rng)
        names = [np.array([f"{number}/{gene}" for gene in side], dtype=object) for side in (a, b)]
        splits = pair_splits(*names, y, kind="gene-disjoint", folds=5, repeats=3)
        scores = [roc_auc_score(y[split.test], score[split.test]) for split in splits]
        found = resampled_interval(scores, test_share=splits[0].test_share)
        held += found.low <= truth <= found.high
    assert held >= 55


def test_genes_are_numbered_by_name():
    names, genes = numbered(["b", "c"], ["a", "b"])
    assert names.tolist() == ["a", "b", "c"]
    assert genes.tolist() == [[1, 0], [2, 1]]


@pytest.mark.realdata
def test_gene2vecs_shipped_split_is_gene_disjoint_and_a_random_one_leaks(realdata):
    folder = realdata / "genes" / "gene2vec_ggi"
    parts = []
    for part in ("train", "valid", "test"):
        found = pd.read_csv(folder / f"{part}_text.txt", sep=" ", names=["a", "b"], keep_default_na=False)
        found["y"] = np.loadtxt(folder / f"{part}_label.txt", dtype=np.int8)
        parts.append(found.assign(part=part))
    table = pd.concat(parts)
    one, other = (table[name].to_numpy(dtype=str) for name in ("a", "b"))
    table = table.assign(a=np.where(one < other, one, other), b=np.where(one < other, other, one))
    table = table[one != other].drop_duplicates(["a", "b"])
    a, b, part = (table[name].to_numpy(dtype=object) for name in ("a", "b", "part"))
    y = table["y"].to_numpy()
    (shipped,) = pair_splits(a, b, y, kind="shipped", part=part)
    assert shipped.strictest == "gene-disjoint"
    assert audit(a, b, y, shipped)["degree_auroc"] == 0.5
    random = pair_splits(a, b, y, kind="random")[0]
    assert audit(a, b, y, random)["degree_auroc"] == pytest.approx(0.98, abs=0.01)
