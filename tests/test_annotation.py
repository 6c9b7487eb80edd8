"""The annotation task without training: planted types, folds that leak nothing, bad input, what is fitted to what."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import balanced_accuracy_score, f1_score

from expresser.errors import InputError
from finetune.annotation.data import read_labelled
from finetune.annotation.folds import deal, inner_folds, outer_folds
from finetune.annotation.head import HEAD_FILES, LinearHead, fit_head
from finetune.annotation.report import sentences
from finetune.annotation.rows import Expression, baseline_rows
from finetune.annotation.scores import class_f1, confusion, fold_scores
from finetune.annotation.task import run_annotation


def planted(n: int = 90, genes: int = 60, donors: int = 6, seed: int = 0) -> anndata.AnnData:
    """Three types, each with a third of the genes at four times their level; donors differ in depth alone."""
    rng = np.random.default_rng(seed)
    kind, donor = np.arange(n) % 3, rng.permutation(n) % donors
    rate = rng.gamma(2.0, 1.0, genes) * np.where(np.arange(genes) % 3 == kind[:, None], 4.0, 1.0)
    counts = rng.poisson(rate * (1 + donor[:, None] / donors)).astype(np.float32)
    obs = pd.DataFrame(
        {"cell_type": [f"type {k}" for k in kind], "donor": [f"d{k}" for k in donor]},
        index=[f"cell{i}" for i in rng.permutation(n)],
    )
    return anndata.AnnData(
        sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"GENE{j}" for j in range(genes)])
    )


@pytest.fixture
def cells() -> anndata.AnnData:
    return planted()


# --- what is found


def test_planted_types_are_found_in_donors_that_were_held_out(cells):
    found = run_annotation(cells, label="cell_type", group="donor", folds=3)
    assert found.scores.loc[["pca", "log_counts"], "macro_f1"].min() > 0.95
    assert found.scores.loc["knn", "macro_f1"] > 0.9
    assert found.scores.loc["majority", "accuracy"] < 0.5
    assert found.scores["macro_f1"].is_monotonic_decreasing
    assert sorted(found.predictions.index) == sorted(cells.obs_names)
    truth = cells.obs.loc[found.predictions.index, "cell_type"]
    assert (found.predictions["label"] == truth).all()
    assert (found.predictions["pca"] == truth).mean() > 0.95


def test_labels_at_random_are_named_at_chance(cells):
    cells.obs["cell_type"] = np.random.default_rng(1).permutation(cells.obs["cell_type"].to_numpy())
    found = run_annotation(cells, label="cell_type", folds=3)
    assert found.scores["balanced_accuracy"].drop("majority").between(0.1, 0.55).all()


def test_the_order_of_cells_changes_nothing(cells):
    first = run_annotation(cells, label="cell_type", group="donor", folds=2, max_cells=60)
    order = np.random.default_rng(3).permutation(cells.n_obs)
    second = run_annotation(cells[order].copy(), label="cell_type", group="donor", folds=2, max_cells=60)
    pd.testing.assert_frame_equal(first.scores, second.scores, check_exact=True)
    pd.testing.assert_frame_equal(first.predictions, second.predictions, check_exact=True)


def test_a_seed_deals_other_folds(cells):
    labels = cells.obs["cell_type"].to_numpy(dtype=object)
    first, second, again = (deal(labels, None, folds=3, key=(seed,)) for seed in (0, 1, 0))
    assert (first != second).any()
    assert (first == again).all()


# --- folds


def test_no_donor_is_on_both_sides_and_every_cell_is_judged_once_a_repeat(cells):
    labels, donors = (cells.obs[c].to_numpy(dtype=object) for c in ("cell_type", "donor"))
    parts = outer_folds(labels, donors, folds=3, repeats=4, seed=0)
    for fold in parts:
        assert not set(donors[fold.train]) & set(donors[fold.test])
        assert set(labels[fold.test]) <= set(labels[fold.train])
        for learn, check in inner_folds(labels, donors, fold.train, folds=3, key=(0, 1)):
            assert not set(donors[fold.train][learn]) & set(donors[fold.train][check])
    for repeat in range(4):
        judged = np.concatenate([np.r_[f.test, f.unseen] for f in parts if f.repeat == repeat])
        assert sorted(judged) == list(range(cells.n_obs))


def test_random_folds_have_the_types_in_equal_parts():
    labels = np.array(["a"] * 40 + ["b"] * 7 + ["c"] * 11, dtype=object)
    part = deal(labels, None, folds=5, key=(0,))
    sizes = np.bincount(part)
    assert sizes.max() - sizes.min() <= 1
    for name in "abc":
        of_type = np.bincount(part[labels == name], minlength=5)
        assert of_type.max() - of_type.min() <= 1


def test_a_rare_type_of_two_donors_is_parted_so_that_it_can_be_learnt():
    rng = np.random.default_rng(0)
    donors = np.array([f"d{i}" for i in rng.integers(0, 12, 400)], dtype=object)
    labels = np.where(rng.random(400) < 0.5, "a", "b").astype(object)
    for i in range(10):  # ten rare types, each in two donors
        pair = rng.choice(12, 2, replace=False)
        for d in pair:
            at = np.flatnonzero((donors == f"d{d}") & np.isin(labels, ["a", "b"]))[:3]
            labels[at] = f"rare {i}"
    for repeat in range(5):
        for fold in outer_folds(labels, donors, folds=4, repeats=1, seed=repeat):
            assert len(fold.unseen) == 0


def test_a_type_whose_donors_cannot_be_parted_is_not_asked():
    # Two donors of three have x, and a fold that holds out both is the only alternative to an empty one.
    labels = np.array(["x", "x", "a", "a", "a", "b", "b", "b"], dtype=object)
    donors = np.array(["d0", "d0", "d0", "d1", "d2", "d0", "d1", "d2"], dtype=object)
    parts = outer_folds(labels, donors, folds=3, repeats=1, seed=0)
    unseen = np.concatenate([fold.unseen for fold in parts])
    assert sorted(unseen) == [0, 1]
    assert all(0 not in fold.test and 1 not in fold.test for fold in parts)


def test_fewer_donors_than_folds_are_a_fold_each(cells):
    found = run_annotation(planted(donors=3), label="cell_type", group="donor", folds=5)
    assert (found.metrics["folds"], found.metrics["folds_asked"], found.metrics["groups"]) == (3, 5, 3)
    assert found.predictions.groupby("group")["fold"].nunique().eq(1).all()


# --- what is left out


def test_cells_and_types_that_cannot_be_judged_are_left_out_and_counted(cells):
    obs = cells.obs
    obs["cell_type"] = obs["cell_type"].astype(object)
    obs.iloc[:6, 0] = [None, "nan", "NA", "", np.nan, " "]
    obs.iloc[6:10, 0] = "rare"
    alone = obs.index[(obs["donor"] == "d0") & (np.arange(len(obs)) > 10)]
    obs.loc[alone, "cell_type"] = "of one donor"
    obs["donor"] = obs["donor"].astype(object)
    obs.iloc[10, 1] = None
    poor = int(np.flatnonzero((obs["donor"] == "d1") & obs["cell_type"].isin(["type 1"]))[-1])
    counts = cells.X.toarray()
    counts[poor, 5:] = 0
    cells.X = sparse.csr_matrix(counts)
    found = read_labelled(cells, label="cell_type", group="donor", min_cells=5)
    assert found.left_out == {
        "no_label": 6,
        "no_group": 1,
        "not_sampled": 0,
        "few_genes": 1,
        "few_cells": {"rare": 4},
        "one_group": {"of one donor": len(alone)},
    }
    assert found.types == ("type 0", "type 1", "type 2")
    assert len(found.labels) == 90 - 6 - 1 - 1 - 4 - len(alone)
    assert list(found.names) == sorted(found.names)
    metrics = run_annotation(cells, label="cell_type", group="donor", min_cells=5, folds=3).metrics
    assert metrics["left_out"] == found.left_out


def test_counts_follow_their_cells(cells):
    found = read_labelled(cells, label="cell_type", group="donor", max_cells=40)
    assert found.left_out["not_sampled"] == 50
    expected = cells[list(found.names)]
    np.testing.assert_array_equal(found.counts.toarray(), expected.X.toarray())
    assert list(found.labels) == expected.obs["cell_type"].tolist()
    assert found.groups is not None
    assert list(found.groups) == expected.obs["donor"].tolist()


def test_cluster_codes_are_types(cells):
    cells.obs["leiden"] = (np.arange(cells.n_obs) % 3).astype(float)
    cells.obs.iloc[0, cells.obs.columns.get_loc("leiden")] = np.nan
    assert read_labelled(cells, label="leiden", group=None).types == ("0", "1", "2")


# --- bad input


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("absent", None, "no obs column 'bad'.*'cell_type', 'donor'"),
        ("one type", "T", "all 90 labelled cells are 'T'"),
        ("nothing", np.nan, "empty in all cells"),
        ("measurement", 0.5, "measurements"),
        ("barcodes", [f"AAC{i}" for i in range(90)], "look like barcodes"),
    ],
)
def test_a_column_that_holds_no_types_is_refused(cells, column, values, message):
    if column != "absent":
        cells.obs["bad"] = values
    with pytest.raises(InputError, match=message):
        run_annotation(cells, label="bad")


def test_five_hundred_types_are_none():
    many = planted(1200)
    many.obs["bad"] = [f"c{i % 500}" for i in range(1200)]
    with pytest.raises(InputError, match=r"500 distinct values.*barcodes"):
        run_annotation(many, label="bad")


def test_one_donor_is_refused(cells):
    cells.obs["donor"] = "me"
    with pytest.raises(InputError, match=r"0 cell types left.*one group only.*two donors"):
        run_annotation(cells, label="cell_type", group="donor")


def test_other_bad_input_is_refused(cells):
    with pytest.raises(InputError, match="no obs column 'nobody' for group"):
        run_annotation(cells, label="cell_type", group="nobody")
    with pytest.raises(InputError, match="label and group are both"):
        run_annotation(cells, label="cell_type", group="cell_type")
    with pytest.raises(InputError, match="at least 2 folds"):
        run_annotation(cells, label="cell_type", folds=1)
    with pytest.raises(InputError, match="no model to train"):
        run_annotation(cells, label="cell_type", finetune_blocks=1)
    with pytest.raises(InputError, match=r"0 cell types left.*fewer than 31 cells"):
        run_annotation(cells, label="cell_type", min_cells=31)
    with pytest.raises(InputError, match="no such file"):
        run_annotation("nothing.h5ad", label="cell_type")
    twice = cells.copy()
    twice.obs_names = [f"c{i // 2}" for i in range(90)]
    with pytest.raises(InputError, match="obs_names_make_unique"):
        run_annotation(twice, label="cell_type")
    cells.X = np.log1p(cells.X.toarray())
    with pytest.raises(InputError, match="raw counts"):
        run_annotation(cells, label="cell_type")


# --- what is fitted to what


def test_principal_components_and_genes_are_those_of_the_training_cells(cells):
    counts = sparse.csr_matrix(cells.X.astype(np.int64))
    train, test = np.arange(60), np.arange(60, 90)
    changed = counts.toarray()
    changed[60:] = np.random.default_rng(0).poisson(30, (30, counts.shape[1]))
    first, second = (Expression(x, seed=0) for x in (counts, sparse.csr_matrix(changed)))
    np.testing.assert_array_equal(first.genes(train), second.genes(train))
    np.testing.assert_array_equal(first.components(train)(train), second.components(train)(train))
    assert not np.allclose(first.components(train)(test), second.components(train)(test))


def test_labels_of_test_cells_change_no_prediction(cells):
    counts, labels = sparse.csr_matrix(cells.X.astype(np.int64)), cells.obs["cell_type"].to_numpy(dtype=object)
    fold = outer_folds(labels, None, folds=3, repeats=1, seed=0)[0]
    inner = inner_folds(labels, None, fold.train, folds=3, key=(0,))
    other = labels.copy()
    other[fold.test] = "type 0"
    for mine, theirs in zip(baseline_rows(counts, labels, seed=0), baseline_rows(counts, other, seed=0)):
        np.testing.assert_array_equal(mine.answer(fold, inner).predicted, theirs.answer(fold, inner).predicted)


def test_the_nearest_neighbours_and_the_majority_are_what_they_say(cells):
    counts, labels = sparse.csr_matrix(cells.X.astype(np.int64)), cells.obs["cell_type"].to_numpy(dtype=object)
    labels[:] = np.where(np.arange(90) < 50, "many", labels)
    fold = outer_folds(labels, None, folds=3, repeats=1, seed=0)[0]
    rows = {row.name: row for row in baseline_rows(counts, labels, seed=0)}
    assert set(rows["majority"].answer(fold, []).predicted) == {"many"}
    assert set(rows) == {"pca", "log_counts", "knn", "majority"}


# --- the head


def test_the_head_is_scikit_learns_logistic_regression():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(0)
    for n_classes in (2, 4):
        y = rng.integers(0, n_classes, 200)
        x = rng.normal(size=(200, 5)) * [1, 10, 0.1, 1, 3] + y[:, None]
        head = fit_head(x, y.astype(str).astype(object), c=0.1)
        z = (x - x.mean(0)) / x.std(0)
        expected = LogisticRegression(C=0.1, tol=1e-8, max_iter=1000).fit(z, y).predict_proba(z)
        np.testing.assert_allclose(np.exp(head.log_probabilities(x)), expected, atol=2e-3)


def test_more_features_than_cells_give_the_same_head():
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b", "c"], 20).astype(object)
    x = rng.normal(size=(60, 40)) + (y == "b")[:, None]
    wide = np.hstack([x, np.zeros((60, 100))])  # features without spread weigh nothing
    narrow, padded = fit_head(x, y, c=0.01), fit_head(wide, y, c=0.01)
    np.testing.assert_allclose(padded.log_probabilities(wide), narrow.log_probabilities(x), atol=1e-3)
    np.testing.assert_array_equal(padded.coef[:, 40:], 0)


def test_the_penalty_is_chosen_inside():
    rng = np.random.default_rng(0)
    y = np.repeat(["a", "b"], 60).astype(object)
    rng.shuffle(y)
    inner = inner_folds(y, None, np.arange(120), folds=3, key=(0,))
    noise = fit_head(rng.normal(size=(120, 50)), y, inner=inner)
    signal = fit_head((y == "a")[:, None] * 4.0 + rng.normal(size=(120, 3)), y, inner=inner)
    assert noise.c <= 1e-2
    assert signal.c > noise.c


def test_a_cell_s_answer_does_not_depend_on_its_company():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 30)).astype(np.float32)
    head = fit_head(x, np.array(list("abcde") * 10, dtype=object), c=1.0)
    whole = head.log_probabilities(x)
    for i in (0, 17, 49):
        np.testing.assert_array_equal(head.log_probabilities(x[[i]])[0], whole[i])


def test_a_head_is_read_back_bit_by_bit(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 7))
    head = fit_head(x, np.array(["ä", "b"] * 20, dtype=object), c=1.0)
    head.save(tmp_path, {"label": "cell_type"})
    again, about = LinearHead.load(tmp_path)
    assert again.classes == head.classes
    assert about == {"label": "cell_type", "format": 1}
    np.testing.assert_array_equal(again.log_probabilities(x), head.log_probabilities(x))
    assert {p.name for p in tmp_path.iterdir()} == set(HEAD_FILES)
    said = json.loads((tmp_path / HEAD_FILES[0]).read_text())
    said["classes"].append("c")
    (tmp_path / HEAD_FILES[0]).write_text(json.dumps(said))
    with pytest.raises(InputError, match="2 classes x 7 features"):
        LinearHead.load(tmp_path)
    (tmp_path / HEAD_FILES[1]).write_bytes(b"x" * 30)
    with pytest.raises(InputError, match=r"head\.safetensors: its head claims"):
        LinearHead.load(tmp_path)


# --- scores and words


def test_scores_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    types = ["a", "b", "c", "d"]
    truth, said = (np.array(types, dtype=object)[rng.integers(0, 4, 60)] for _ in range(2))
    table = confusion(truth, said, types)
    found = fold_scores(table)
    assert found["accuracy"] == pytest.approx((truth == said).mean())
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth.astype(str), said.astype(str)))
    assert found["macro_f1"] == pytest.approx(f1_score(truth.astype(str), said.astype(str), average="macro"))
    np.testing.assert_allclose(class_f1(table), f1_score(truth.astype(str), said.astype(str), average=None))


def test_types_that_are_only_predicted_or_absent_have_no_say():
    found = fold_scores(
        confusion(np.array(["a", "a", "b"], dtype=object), np.array(["a", "c", "b"], dtype=object), list("abcd"))
    )
    assert found == pytest.approx({"accuracy": 2 / 3, "balanced_accuracy": 0.75, "macro_f1": (2 / 3 + 1) / 2})
    assert np.isnan(class_f1(confusion(np.array(["a"], dtype=object), np.array(["a"], dtype=object), list("ab")))[1])


def test_the_page_and_the_metrics_say_what_was_done(cells, tmp_path):
    found = run_annotation(cells, label="cell_type", folds=3, out=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "metrics.json",
        "predictions.parquet",
        "report.html",
        "run.json",
    ]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert (metrics["task"], metrics["split"], metrics["n_types"], metrics["n_cells"]) == (
        "annotation",
        "random",
        3,
        90,
    )
    assert set(metrics["embeddings"]) == {"pca", "log_counts", "knn", "majority"}
    for entry in metrics["embeddings"].values():
        for score in ("accuracy", "balanced_accuracy", "macro_f1"):
            assert 0 <= entry[f"{score}_lo"] <= entry[score] <= entry[f"{score}_hi"] <= 1
    page = (tmp_path / "report.html").read_text()
    assert "cells of a donor are on both sides" in page
    assert any("No model was examined" in line for line in sentences(found.metrics))
    kept = pd.read_parquet(tmp_path / "predictions.parquet")
    pd.testing.assert_frame_equal(kept, found.predictions)
    assert not any("both sides" in line for line in sentences(found.metrics | {"split": "donor"}))


def test_a_folder_of_another_task_is_left_alone(cells, tmp_path):
    (tmp_path / "metrics.json").write_text('{"task": "dosage"}')
    with pytest.raises(InputError, match="is not a run of finetune annotation"):
        run_annotation(cells, label="cell_type", out=tmp_path)


def test_an_interrupted_run_goes_on_and_says_the_same(cells, tmp_path):
    class Interrupt(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Interrupt

    with pytest.raises(Interrupt):
        run_annotation(cells, label="cell_type", group="donor", folds=3, out=tmp_path, progress=stop)
    assert not (tmp_path / "metrics.json").exists()
    kept = list(tmp_path.rglob("state/*/*"))
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 5
    seen: list[Path] = []
    resumed = run_annotation(
        cells,
        label="cell_type",
        group="donor",
        folds=3,
        out=tmp_path,
        progress=lambda *_: seen.extend(p for p in kept if p.stat().st_mtime_ns != before[p]),
    )
    assert not seen
    assert not (tmp_path / "state").exists()
    straight = run_annotation(cells, label="cell_type", group="donor", folds=3)
    pd.testing.assert_frame_equal(resumed.scores, straight.scores, check_exact=True)
    pd.testing.assert_frame_equal(resumed.predictions, straight.predictions, check_exact=True)


# --- real cells


@pytest.mark.realdata
@pytest.mark.slow
def test_real_blood_cells_are_told_apart_without_a_model(realdata):
    found = run_annotation(realdata / "rna" / "pbmc3k.h5ad", label="cell_type", max_cells=500, folds=3)
    assert found.metrics["left_out"]["no_label"] == 62
    assert found.scores.loc["pca", "accuracy"] > 0.8
    assert found.scores.loc["log_counts", "accuracy"] > 0.8
    assert found.scores.loc["majority", "accuracy"] < 0.35
