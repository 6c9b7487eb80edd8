"""Alignment of two modalities' cells, differential genes, and test cells measured in one modality each: known answers and laws."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.metrics import average_precision_score

from expresser.errors import InputError
from tests.translate_toys import toy_anndata, toy_fit
from translate import judging
from translate.activity_embedding import ActivityPca
from translate.alignment_judging import JointCells, alignment_baselines, judge_alignment
from translate.babel import Babel
from translate.baselines import LowRank
from translate.data import read_study
from translate.evaluate import over_spaces
from translate.held import Held
from translate.judging import evaluate_model
from translate.markers import CellTypes, differential_scores, rank_sums
from translate.origin import Origin
from translate.score_table import score_table
from translate.splits import Split
from translate.study import Measured, Study
from translate.translator import Translator
from translate.truth import Truth
from translate.unpaired import BEST, evaluate_unpaired, profile_scores
from translate.unseen_type import AgainstOthers, only_type, others_of


def values(cells: int = 90, genes: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Expression of three types; genes 0 to 4 are high in the first, 5 to 9 in the second."""
    rng = np.random.default_rng(seed)
    labels = np.array(["a", "b", "c"])[np.arange(cells) % 3]
    state = rng.normal(-0.5, 0.3, size=(cells, genes))
    state[:, :5] += 2.0 * (labels == "a")[:, None]
    state[:, 5:10] += 2.0 * (labels == "b")[:, None]
    return np.log1p(rng.poisson(np.exp(state))).astype(np.float32), labels


# Differential genes


def test_rank_sums_of_dense_and_sparse_values_are_those_of_scipy():
    x, labels = values()
    x[:, 3] = 0
    labels = labels.astype(object)
    labels[:7] = None
    types = CellTypes.of(labels)
    shifted = (x * 2 - 3).astype(np.float32)  # negative values, the same ties
    found, dense = rank_sums(sparse.csc_matrix(x), types), rank_sums(shifted, types)
    np.testing.assert_allclose(dense.auroc, found.auroc, atol=1e-12)
    np.testing.assert_allclose(dense.z, found.z, atol=1e-9)
    assert (found.z[:, 3] == 0).all()
    for i, name in enumerate(types.names):
        inside, outside = x[labels == name], x[7:][labels[7:] != name]
        test = stats.mannwhitneyu(inside, outside, alternative="greater", method="asymptotic", use_continuity=False)
        p = np.where(np.isnan(test.pvalue), 0.5, test.pvalue)
        np.testing.assert_allclose(stats.norm.sf(found.z[i]), p, rtol=1e-5)
        np.testing.assert_array_equal(found.differential()[i], stats.false_discovery_control(p) <= 0.01)


def test_differential_precision_recall_is_that_of_sklearn_one_of_the_truth_and_chance_of_one_number():
    x, labels = values()
    types = CellTypes.of(labels)
    measured = rank_sums(sparse.csc_matrix(x), types)
    guess = x + np.random.default_rng(1).normal(0, 1.5, x.shape).astype(np.float32)
    z = rank_sums(guess, types).z
    found = differential_scores(measured, z)
    positive = measured.differential()
    assert positive[0, :5].all()
    assert positive[1, 5:10].all()
    for i in range(2):
        assert found.aupr[i] == pytest.approx(average_precision_score(positive[i], z[i].astype(np.float32)))
        assert found.chance[i] == positive[i].mean()
    scores = found.scores()
    assert scores["de_auprc_chance"] < scores["de_auprc"] < 1
    assert differential_scores(measured, measured.z).scores()["de_auprc"] == pytest.approx(1)
    blind = differential_scores(measured, rank_sums(np.ones_like(x), types).z).scores()
    assert blind["de_auprc"] == pytest.approx(blind["de_auprc_chance"])
    # A type of which nothing is known to differ has no curve.
    none = differential_scores(rank_sums(np.ones_like(x), types), z)
    assert np.isnan(none.aupr).all()
    assert np.isnan(none.scores()["de_auprc"])


def test_a_type_held_out_is_compared_with_training_cells_of_others():
    x, labels = values(300)
    held = labels == "a"
    judge = AgainstOthers(sparse.csr_matrix(x[held]), sparse.csr_matrix(x[~held]))

    def of(guess: np.ndarray) -> dict[str, float]:
        return judge.scores(*(Truth("rna", guess[side], pd.RangeIndex(40)) for side in (held, ~held)), budget_mb=0.01)

    perfect, blind, noise = (
        of(x),
        of(np.zeros_like(x)),
        of(np.random.default_rng(0).normal(size=x.shape).astype(np.float32)),
    )
    assert perfect["de_auprc"] == pytest.approx(1)
    assert blind["de_auprc"] == pytest.approx(blind["de_auprc_chance"])
    assert noise["de_auprc"] < 0.5
    inside = [
        stats.mannwhitneyu(a, b, alternative="greater", use_continuity=False).pvalue
        for a, b in zip(x[held].T, x[~held].T)
    ]
    assert perfect["de_auprc_chance"] == np.mean(stats.false_discovery_control(inside) <= 0.01)
    series = pd.Series(np.where(held, "a", labels).astype(object))
    assert only_type(series[held]) == "a"
    assert only_type(series) is None
    assert only_type(pd.Series(["a"] * 9 + [None] * 5)) is None
    series[series == "c"] = None
    np.testing.assert_array_equal(others_of(series, np.arange(300), "a"), np.flatnonzero(labels == "b"))


# Profiles of types, of other cells


def test_profiles_are_compared_with_other_cells_of_the_type():
    x, labels = values(90)
    y, others = values(120, seed=5)
    types, theirs = CellTypes.of(labels), CellTypes.of(others)
    predicted = Truth("rna", x, pd.RangeIndex(40))
    found = profile_scores(predicted, types, sparse.csr_matrix(y), theirs)
    means = [np.stack([v[t == name].mean(axis=0) for name in "abc"]) for v, t in ((y, others), (x, labels))]
    own = [m - m.mean(axis=0) for m in means]
    assert found["pseudobulk_type_pearson"] == pytest.approx(
        np.mean([stats.pearsonr(a, b)[0] for a, b in zip(*own)]), abs=1e-5
    )
    assert found["pseudobulk_pearson"] == pytest.approx(
        stats.pearsonr(means[0].mean(axis=0), means[1].mean(axis=0))[0], abs=1e-5
    )
    assert (found["n_cells"], found["n_measured"], found["types"], found["n_genes"]) == (90, 120, 3, 40)
    assert found["de_auprc"] > 0.9
    assert found["marker_auroc"] > 0.8
    # More cells of one type change nothing but noise: every type counts alike.
    many = np.r_[np.arange(120), np.repeat(np.flatnonzero(others == "a"), 5)]
    again = profile_scores(predicted, types, sparse.csr_matrix(y[many]), CellTypes.of(others[many]))
    assert again["pseudobulk_type_pearson"] == pytest.approx(found["pseudobulk_type_pearson"], abs=1e-5)
    for budget in (0.001, 0.0001):
        cut = profile_scores(predicted, types, sparse.csr_matrix(y), theirs, budget_mb=budget)
        assert cut == pytest.approx(found)
    flat = LowRank("rna", np.zeros((90, 0), np.float32), np.zeros((0, 40), np.float32), y.mean(axis=0))
    assert profile_scores(flat, types, sparse.csr_matrix(y), theirs)["pseudobulk_type_pearson"] == 0


def test_profiles_of_different_types_are_refused():
    x, labels = values()
    with pytest.raises(InputError, match="Give both the same"):
        profile_scores(
            Truth("rna", x, pd.RangeIndex(40)), CellTypes.of(labels), sparse.csr_matrix(x), CellTypes.of(labels + "x")
        )


# Alignment


def cells_of(n: int, kinds: np.ndarray, *, paired: bool) -> Study:
    """A study of `n` cells of each modality whose counts say nothing; latents are given by the test."""
    made = toy_anndata(n)
    for m in ("rna", "atac"):
        made[m].obs["kind"] = kinds
    if paired:
        return read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    made["atac"].obs_names = [f"other{i}" for i in range(n)]
    return read_study(rna_only=[made["rna"]], atac_only=[made["atac"]])


def at(points: np.ndarray):
    return lambda measured: points.astype(np.float32)


@pytest.mark.parametrize("paired", [True, False])
def test_two_spaces_are_scored_each_by_itself(paired: bool):
    rng = np.random.default_rng(0)
    kinds = np.array(["a", "b", "c", "d"])[np.arange(200) % 4]
    study = cells_of(200, kinds, paired=paired)
    cells = JointCells.of(study, np.arange(study.n_cells, dtype=np.int64), "kind")
    assert cells is not None
    assert cells.sizes == {"rna": 200, "atac": 200, "paired": 200 if paired else 0}
    centre = 20 * np.eye(4)[np.arange(200) % 4]
    good = centre + rng.normal(size=(200, 4))
    apart = good + np.array([100.0, 0, 0, 0])
    spaces = {
        "rna": {"rna": at(good), "atac": at(good + 0.01)},
        "atac": {"rna": at(good), "atac": at(apart)},
    }
    found = judge_alignment(cells, {"fake": spaces}, near=5)
    one, two = (found.metrics["methods"]["fake"][space] for space in ("rna", "atac"))
    assert one["mixing"] > 0.9
    assert two["mixing"] == 0.5
    assert one["mixing_best"] == pytest.approx(two["mixing_best"], abs=0.02)
    assert one["ari"] == one["ami"] == one["transfer_rna_to_atac"] == one["transfer_atac_to_rna"] == 1
    assert one["transfer_by_chance"] == 0.25
    assert two["transfer_rna_to_atac"] < 0.5
    assert one["silhouette"] > 0.8 > two["silhouette"]
    assert one["cosine_within"] < 0.05 < 0.8 < one["cosine_between"]
    assert (found.joint["fake"]["rna"].modality == np.repeat(["rna", "atac"], 200)).all()
    if paired:
        assert one["foscttm"] < 0.01
        assert two["foscttm"] > 0.1
        assert found.foscttm["fake"]["atac"].shape == (2, 200)
        assert one["foscttm"] == pytest.approx((one["foscttm_from_rna"] + one["foscttm_from_atac"]) / 2)
        means = over_spaces(found.metrics["methods"]["fake"])
        assert means["foscttm"] == pytest.approx((one["foscttm"] + two["foscttm"]) / 2)
        assert (means["foscttm_rna"], means["foscttm_atac"]) == (one["foscttm"], two["foscttm"])
        assert found.metrics["closest"]["n"] == 5
    else:
        assert "foscttm" not in one
        assert found.metrics["closest"] is None
        assert over_spaces(found.metrics["methods"]["fake"]) == {}


def test_one_type_has_mixing_alone_and_it_is_said_why():
    study = cells_of(60, np.full(60, "a"), paired=False)
    cells = JointCells.of(study, np.arange(120), "kind")
    found = judge_alignment(
        cells, {"fake": {"rna": {m: at(np.random.default_rng(0).normal(size=(60, 3))) for m in ("rna", "atac")}}}
    )
    assert set(found.metrics["methods"]["fake"]["rna"]) == {"mixing", "mixing_best", "mixing_neighbours"}
    assert "two types or more" in found.metrics["skipped"]["alignment of types"]
    assert JointCells.of(study, np.arange(61), "kind") is None  # one cell of ATAC


def test_baselines_of_alignment_need_no_pairs(paired_fit: tuple[Path, Translator]):
    _, model = paired_fit
    kinds = toy_anndata(300)["rna"].obs["kind"].to_numpy()
    study = cells_of(300, kinds, paired=False)
    found, why = alignment_baselines(study, np.arange(study.n_cells, dtype=np.int64), model.inputs)
    assert set(found) == {"gene_activity_pca", "chance"}
    assert why == {}
    sides = found["gene_activity_pca"]["rna"]
    rna, atac = (sides[m](study.measured[m]) for m in ("rna", "atac"))
    assert rna.shape == atac.shape
    assert np.abs(rna.mean(axis=0)).max() < 0.3  # standardised by their own training cells
    one = sides["rna"](study.measured["rna"].take(np.array([7])))
    np.testing.assert_allclose(one, rna[7:8], rtol=1e-4, atol=1e-4)  # a cell is what it is among others
    nowhere = model.inputs["rna"].var.assign(tss=-1)
    with pytest.raises(InputError, match="none of"):
        ActivityPca.fit(
            sparse.csr_matrix(np.eye(5, len(nowhere))),
            sparse.csr_matrix((5, 120)),
            model.inputs["atac"].regions,
            nowhere,
        )


# A whole evaluation


@pytest.fixture(scope="module")
def paired_fit(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Translator]:
    out = tmp_path_factory.mktemp("alignment") / "babel"
    return out, toy_fit("babel", out, epochs=12, lr=1e-2)


def unpaired(n: int = 160) -> tuple[Study, Split]:
    """Cells of RNA alone and other cells of ATAC alone, a quarter of either held out."""
    made = toy_anndata(n)
    first, second = np.arange(n) < n // 2, np.arange(n) >= n // 2
    study = read_study(rna_only=[made["rna"][first].copy()], atac_only=[made["atac"][second].copy()])
    cells = np.arange(study.n_cells, dtype=np.int64)
    return study, Split("toy", cells[cells % 2 == 0], cells[:0], cells[cells % 2 == 1])


def test_cells_without_pairs_are_judged_by_types_and_alignment(
    paired_fit: tuple[Path, Translator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, model = paired_fit
    monkeypatch.setattr(Babel, "spaces", lambda self: ("rna", "atac"))
    study, split = unpaired()
    assert not len(study.paired)
    evaluate_model(tmp_path / "out", "somewhere", model, Held(study, split), Origin(), label="kind", maps=False)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "No test cell was measured in both modalities" in stored["unpaired"]
    methods = stored["methods"]
    assert set(methods) == {"babel", "mean", BEST, "gene_activity_raw"}
    assert methods["mean"]["atac_to_rna"]["pseudobulk_type_pearson"] == 0
    assert methods[BEST]["atac_to_rna"]["pseudobulk_type_pearson"] > 0.8
    assert methods["babel"]["atac_to_rna"]["pseudobulk_type_pearson"] > 0.1
    assert {"marker_auroc", "de_auprc", "de_auprc_chance"} <= set(methods["babel"]["atac_to_rna"])
    assert "pearson_gene" not in methods["babel"]["atac_to_rna"]
    assert stored["cells"] == {"test": 80, "train": 80, "valid": 0, "test_rna": 40, "test_atac": 40}
    assert set(stored["alignment"]["methods"]) == {"babel", "gene_activity_pca", "chance"}
    assert set(stored["alignment"]["methods"]["babel"]) == {"rna", "atac"}
    assert stored["baselines"] == ["mean", "gene_activity_raw"]
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (tmp_path / "out" / "report.html").read_text()))
    assert "no prediction can be compared with the same cell" in text
    assert "RNA from ATAC: profiles of types" in text
    assert "babel, latent of ATAC" in text
    table = score_table(stored)
    assert "pseudobulk_type_pearson" in table
    assert "babel (atac)" in table
    assert "scores of single cells not run: No test cell" in table


def test_without_labels_unpaired_cells_have_mixing_and_words(paired_fit: tuple[Path, Translator], tmp_path: Path):
    _, model = paired_fit
    study, split = unpaired()
    evaluate_model(tmp_path / "out", "somewhere", model, Held(study, split), Origin(), maps=False)
    stored = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert stored["methods"] == {"babel": {}}
    assert "Name a column of cell types" in stored["skipped"]["profiles of types, atac to rna"]
    assert set(stored["alignment"]["methods"]["babel"]["rna"]) == {"mixing", "mixing_best", "mixing_neighbours"}
    page = (tmp_path / "out" / "report.html").read_text()
    assert re.search(
        "were not compared, (RNA from ATAC and ATAC from RNA|ATAC from RNA and RNA from ATAC): see Not run", page
    )
    assert "Nothing was scored" not in page
    assert "<h2>RNA from ATAC" not in page


def test_cells_of_one_modality_cannot_judge_a_translation(paired_fit: tuple[Path, Translator]):
    _, model = paired_fit
    study, split = unpaired()
    alone = split.test[study.has("rna")[split.test]]
    with pytest.raises(InputError, match="40 with rna, 0 with atac"):
        evaluate_unpaired(
            {}, study, Split("rna alone", split.train, alone[:0], alone), model.inputs, directions=["atac_to_rna"]
        )


def test_paired_cells_are_aligned_with_those_beside_them(paired_fit: tuple[Path, Translator]):
    _, model = paired_fit
    made = toy_anndata(140)
    study = read_study(rna=made["rna"][:120].copy(), atac=made["atac"].copy(), check_pairing=False)
    cells = np.arange(140, dtype=np.int64)
    said: list[str] = []
    metrics, _, _ = judging.judge(
        model,
        Held(study, Split("toy", cells[:60], cells[60:70], cells[70:])),
        label="kind",
        maps=False,
        say=said.append,
    )
    assert metrics["alignment"]["cells"] == {"rna": 50, "atac": 70, "paired": 50}
    assert metrics["cells"]["test"] == 50
    own = metrics["alignment"]["methods"]["babel"]["rna"]
    assert metrics["methods"]["babel"]["foscttm"] == own["foscttm"]
    assert "foscttm_rna" not in metrics["methods"]["babel"]  # one space
    assert metrics["alignment"]["methods"]["chance"]["rna"]["foscttm"] == pytest.approx(0.5, abs=0.1)
    assert "babel, alignment in the latent of rna" in said


def test_latents_are_asked_of_what_was_measured():
    study = cells_of(60, np.array(["a", "b"])[np.arange(60) % 2], paired=True)
    cells = JointCells.of(study, np.arange(10, 50), "kind")
    seen: list[Measured] = []

    def side(measured: Measured) -> np.ndarray:
        seen.append(measured)
        return np.random.default_rng(0).normal(size=(measured.n_cells, 3)).astype(np.float32)

    judge_alignment(cells, {"fake": {"rna": {"rna": side, "atac": side}}})
    assert [m.n_cells for m in seen] == [40, 40]
    assert seen[0].n_features == 60
    assert seen[1].n_features == 120
