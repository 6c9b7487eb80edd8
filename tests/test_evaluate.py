"""Scores of translators: independent figures, blocks of any size, markers, and a whole evaluation with known truth."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats
from sklearn.metrics import average_precision_score, roc_auc_score

from expresser.errors import InputError
from expresser.metrics.expression import ExpressionScores
from expresser.record import write_metrics
from expresser.simulate import simulate_cite, simulate_multiome
from translate.baselines import LowRank
from translate.data import read_study
from translate.drawings import Drawings
from translate.evaluate import Cells, evaluate
from translate.markers import CellTypes, find_markers, rank_sums
from translate.oracle import oracle
from translate.predicted import Predicted
from translate.preprocess import AtacInput, AtacRecipe, ProteinInput, RnaInput, RnaRecipe
from translate.scales import ends
from translate.scoring import score, score_atac, score_protein, score_rna
from translate.splits import Split, split_random
from translate.truth import Truth

LABELS = np.array(["a", "b", "c", ""], dtype=object)


def expression(cells: int = 120, genes: int = 30, seed: int = 0):
    """Values, and a prediction that knows something of them; genes 0 to 4 are high in type a."""
    rng = np.random.default_rng(seed)
    labels = LABELS[rng.integers(0, 4, cells)]
    state = rng.normal(size=(cells, 3)) @ rng.normal(size=(3, genes)) - 1
    state[:, :5] += 2.0 * (labels == "a")[:, None]
    values = np.log1p(rng.poisson(np.exp(state))).astype(np.float32)
    values[:, 7] = 0  # never seen
    return values, (0.5 * state + 0.3 * rng.normal(size=state.shape)).astype(np.float32), labels


def truth_of(values: np.ndarray, to: str, labels: np.ndarray | None = None) -> Truth:
    stored = values if to == "protein" else sparse.csr_matrix(values)
    types = None if labels is None else CellTypes.of(labels)
    return Truth(to, stored, pd.Index([f"f{i}" for i in range(values.shape[1])]), types)


def dense(values: np.ndarray, to: str) -> Truth:
    """Any array as a prediction."""
    return Truth(to, values, pd.RangeIndex(values.shape[1]))


def same(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    np.testing.assert_allclose(list(one.values()), list(other.values()), rtol=1e-6, atol=1e-9, equal_nan=True)


def test_expression_scores_are_the_plain_ones():
    values, guess, _ = expression()
    found, picture = score_rna(dense(guess, "rna"), truth_of(values, "rna"))
    with np.errstate(invalid="ignore"):
        r = [stats.pearsonr(t, p).statistic if np.ptp(t) else np.nan for t, p in zip(values.T, guess.T)]
    assert found["pearson_flat"] == pytest.approx(stats.pearsonr(values.ravel(), guess.ravel()).statistic, abs=1e-6)
    assert found["pearson_gene"] == pytest.approx(np.nanmean(r), abs=1e-6)
    assert found["pearson_gene_median"] == pytest.approx(np.nanmedian(r), abs=1e-6)
    assert found["pearson_cell"] == pytest.approx(
        np.mean([stats.pearsonr(*x)[0] for x in zip(values, guess)]), abs=1e-6
    )
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((values - guess) ** 2)), rel=1e-5)
    assert found["mae"] == pytest.approx(np.mean(np.abs(values - guess)), rel=1e-5)
    assert found["pseudobulk_pearson"] == pytest.approx(stats.pearsonr(values.mean(0), guess.mean(0))[0], abs=1e-5)
    assert (found["n_cells"], found["n_genes"], found["genes_undefined"], found["genes_constant"]) == (120, 30, 1, 0)
    np.testing.assert_allclose(picture.by_feature["pearson"], r, atol=1e-5)
    np.testing.assert_allclose(picture.pseudobulk, [values.mean(0), guess.mean(0)], rtol=1e-5, atol=1e-7)
    protein, _ = score_protein(dense(guess, "protein"), truth_of(values, "protein"))
    assert protein["pearson_protein"] == found["pearson_gene"]
    assert protein["proteins_undefined"] == 1


def test_accessibility_scores_are_those_of_sklearn():
    rng = np.random.default_rng(1)
    chance = (rng.random((80, 50)) * rng.random(50) * 0.9).astype(np.float32)
    opened = (rng.random(chance.shape) < chance).astype(np.float32)
    opened[:, 3], opened[:, 4] = 0, 1
    found, picture = score_atac(dense(chance, "atac"), truth_of(opened, "atac"))
    area = [roc_auc_score(y, p) if 0 < y.sum() < 80 else np.nan for y, p in zip(opened.T, chance.T)]
    precision = [average_precision_score(y, p) if 0 < y.sum() < 80 else np.nan for y, p in zip(opened.T, chance.T)]
    prevalence = opened.mean(axis=0, dtype=float)
    assert found["auroc_flat"] == pytest.approx(roc_auc_score(opened.ravel(), chance.ravel()), abs=1e-4)
    assert found["auprc_flat"] == pytest.approx(average_precision_score(opened.ravel(), chance.ravel()), abs=1e-3)
    assert found["auroc_peak"] == pytest.approx(np.nanmean(area), abs=1e-9)
    assert found["auprnorm_peak"] == pytest.approx(np.nanmean((precision - prevalence) / (1 - prevalence)), abs=1e-9)
    assert found["auroc_cell"] == pytest.approx(np.mean([roc_auc_score(*x) for x in zip(opened, chance)]), abs=1e-9)
    assert found["spread"] == pytest.approx(chance.std(axis=0).mean(), rel=1e-5)
    assert found["peaks_undefined"] == np.isnan(area).sum() >= 1
    assert found["ece"] < 0.05
    assert picture.calibration is not None
    assert picture.calibration.n.sum() == chance.size
    logits, _ = score_atac(dense(np.log(chance / (1 - chance)), "atac"), truth_of(opened, "atac"))
    assert found["mean_ratio"] == pytest.approx(chance.mean() / opened.mean(), rel=1e-5)
    assert picture.without["auroc"].mean() == pytest.approx(found["auroc_peak"], abs=0.01)
    assert np.isnan(logits["ece"])  # not a probability; ranks are the same
    assert np.isnan(logits["mean_ratio"])
    assert logits["auroc_peak"] == pytest.approx(found["auroc_peak"], abs=1e-9)


def test_probabilities_that_are_too_high_by_a_factor_show_in_the_mean():
    opened = (np.random.default_rng(2).random((60, 40)) < 0.2).astype(np.float32)
    mean = np.tile(opened.mean(axis=0), (60, 1))
    for factor in (0.5, 1.0, 2.0):
        found, _ = score_atac(dense(factor * mean, "atac"), truth_of(opened, "atac"))
        assert found["mean_ratio"] == pytest.approx(factor, rel=1e-5)
    none = score_atac(dense(mean, "atac"), truth_of(np.zeros_like(opened), "atac"))[0]
    assert np.isnan(none["mean_ratio"])  # nothing is open


def test_a_model_that_knows_common_peaks_only_shows_in_the_fifths():
    rng = np.random.default_rng(3)
    rate = np.linspace(0.05, 0.5, 100)
    state = rng.random((150, 1))
    chance = (rate * 2 * (state > 0.5)).astype(np.float32)
    opened = (rng.random(chance.shape) < chance).astype(np.float32)
    guess = np.where(rate > 0.41, chance, rate).astype(np.float32)  # the others: one answer for every cell
    found, _ = score_atac(dense(guess, "atac"), truth_of(opened, "atac"))
    assert [found[f"auroc_peak_fifth_{i}"] for i in (1, 2, 3)] == [0.5] * 3
    assert found["auroc_peak_fifth_5"] > 0.7
    same_rate = score_atac(dense(guess, "atac"), truth_of(np.tile(state > 0.5, (1, 100)).astype(np.float32), "atac"))[0]
    assert np.isnan(same_rate["auroc_peak_fifth_1"])  # ties: all peaks are in the middle fifth
    assert same_rate["auroc_peak_fifth_3"] == 0.5


@pytest.mark.parametrize("to", ["rna", "atac", "protein"])
def test_blocks_of_any_size_give_the_same_scores_and_points(to):
    values, guess, labels = expression(cells=150)
    values = (values > 0).astype(np.float32) if to == "atac" else values
    whole, picture = score(dense(guess, to), truth_of(values, to, labels))
    for budget in (0.002, 0.0001):  # blocks of 3 features, of 1
        cut, again = score(dense(guess, to), truth_of(values, to, labels), budget_mb=budget)
        same(cut, whole)
        if picture.points is not None:
            np.testing.assert_array_equal(again.points, picture.points)
            assert again.points.shape == (2, values.size)  # few entries: all of them
            np.testing.assert_array_equal(np.sort(again.points[0]), np.sort(values.ravel()))


def test_the_measured_values_themselves_are_perfect_and_one_number_a_feature_knows_nothing():
    values, _, labels = expression()
    opened = (values > 0.5).astype(np.float32)
    rna, atac = truth_of(values, "rna", labels), truth_of(opened, "atac", labels)
    assert isinstance(rna, Predicted)
    perfect, best = score(rna, rna)[0], score(atac, atac)[0]
    for name in ("pearson_flat", "pearson_gene", "pearson_cell", "pseudobulk_pearson", "pseudobulk_type_pearson"):
        assert perfect[name] == pytest.approx(1)
    assert perfect["marker_auroc"] == pytest.approx(perfect["marker_auroc_truth"])
    assert (best["auroc_flat"], best["auroc_peak"], best["auprnorm_peak"], best["auroc_cell"], best["ece"]) == (
        1,
        1,
        1,
        1,
        0,
    )
    mean = [np.tile(x.mean(axis=0), (len(x), 1)) for x in (values, opened)]
    blind, closed = score(dense(mean[0], "rna"), rna)[0], score(dense(mean[1], "atac"), atac)[0]
    # Not undefined: leaving such genes out would flatter a model that knows nothing of most of them.
    assert (blind["pearson_gene"], blind["genes_constant"], blind["marker_auroc"]) == (0, 29, 0.5)
    assert blind["pseudobulk_type_pearson"] == 0
    assert (closed["auroc_peak"], closed["auprnorm_peak"], closed["spread"]) == (0.5, pytest.approx(0, abs=1e-12), 0)
    assert closed["peaks_constant"] == 30
    assert closed["auroc_flat"] > 0.55  # which is why it is not the figure to look at


def test_a_constant_gene_counts_as_zero_in_the_mean():
    values, guess, _ = expression()
    both = score_rna(dense(guess, "rna"), truth_of(values, "rna"))[0]
    guess[:, 1] = 0.25
    one = score_rna(dense(guess, "rna"), truth_of(values, "rna"))
    assert one[0]["genes_constant"] == 1
    assert np.isnan(one[1].by_feature["pearson"][1])
    assert one[0]["pearson_gene"] < both["pearson_gene"]


def test_block_sums_are_those_of_single_entries():
    values, guess, _ = expression(cells=40, genes=25)
    blocks, entries = ExpressionScores(25, 40), ExpressionScores(25, 40)
    for rows in (slice(0, 13), slice(13, 40)):
        for columns in (slice(0, 1), slice(1, 25)):
            blocks.update_block(
                truth=values[rows, columns],
                prediction=guess[rows, columns],
                first_cell=rows.start,
                first_gene=columns.start,
            )
    cell, gene = np.indices(values.shape)
    entries.update(truth=values.ravel(), prediction=guess.ravel(), gene=gene.ravel(), cell=cell.ravel())
    same(blocks.compute(), entries.compute())
    np.testing.assert_allclose(blocks.per_gene(), entries.per_gene(), atol=1e-12)
    np.testing.assert_allclose(blocks.per_cell(), entries.per_cell(), atol=1e-12)
    np.testing.assert_array_equal(np.flatnonzero(blocks.constant_genes()[0]), [7])
    with pytest.raises(InputError, match="a block of genes 1 to 25"):
        blocks.update_block(truth=values, prediction=guess, first_gene=1)
    guess[3, 2] = np.inf
    with pytest.raises(InputError, match="prediction of cell 3, gene 2"):
        blocks.update_block(truth=values, prediction=guess)


def test_markers_are_those_of_a_rank_sum_test():
    values, _, labels = expression(cells=200)
    types = CellTypes.of(labels)
    sums = rank_sums(sparse.csc_matrix(values), types)
    found = find_markers(sums, types)
    assert types.names == ("a", "b", "c")
    assert set(found.gene[found.label == "a"]) >= {0, 1, 2, 3}
    known = labels != ""
    for name in types.names:
        inside, outside = values[labels == name], values[known & (labels != name)]
        test = stats.mannwhitneyu(inside, outside, alternative="greater", method="asymptotic", use_continuity=False)
        p = np.where(np.isnan(test.pvalue), 0.5, test.pvalue)
        expected = np.flatnonzero(stats.false_discovery_control(p) < 0.01)
        here = found[found.label == name]
        assert sorted(here.gene) == expected.tolist()
        np.testing.assert_allclose(here.auroc_truth, (test.statistic / len(inside) / len(outside))[here.gene])
        assert (np.diff(here.auroc_truth) <= 0).all()
    assert len(find_markers(sums, types, at_most=1)) == found.label.nunique()
    empty = rank_sums(sparse.csc_matrix(values.shape, dtype=np.float32), types)
    assert len(find_markers(empty, types)) == 0
    with pytest.raises(InputError, match="1 of 2 labels have 10 cells or more"):
        CellTypes.of(np.array(["a"] * 20 + ["b"] * 9 + [None], dtype=object))


def test_what_does_not_fit_is_refused_by_name():
    values, guess, _ = expression()
    truth = truth_of(values, "rna")
    with pytest.raises(InputError, match="predicted is rna of 119 cells x 30"):
        score(dense(guess[1:], "rna"), truth)
    with pytest.raises(InputError, match="predicted is atac"):
        score(dense(guess, "atac"), truth)
    with pytest.raises(InputError, match="30 columns but 2 feature names"):
        Truth("rna", sparse.csr_matrix(values), pd.Index(["a", "b"]))
    with pytest.raises(InputError, match="no type has markers"):
        _ = truth.markers
    for wrong in ("rna", "rna_to_rna", "rna_to_atac_to_rna", "rna_to_dna"):
        with pytest.raises(InputError, match="source_to_target"):
            ends(wrong)


@pytest.fixture(scope="module")
def simulated():
    """Multiome, study, split and inputs; a minute of a real set, in a second."""
    made = simulate_multiome(n_cells=600, n_genes=150, n_peaks=600, n_types=4, rna_depth=600, atac_depth=60, seed=3)
    study = read_study(rna=made.rna, atac=made.atac)
    split = split_random(study, seed=1)
    rows = study.rows["rna"][split.train]
    inputs = {
        "rna": RnaInput.fit(study.measured["rna"], rows, RnaRecipe(min_genes=0)),
        "atac": AtacInput.fit(study.measured["atac"], rows, AtacRecipe(merge=False, max_share=1.0)),
    }
    return made, study, split, inputs


def test_an_evaluation_with_known_truth(simulated, tmp_path):
    made, study, split, inputs = simulated
    rng = np.random.default_rng(0)
    placed = {"rna": lambda m: rng.normal(size=(m.n_cells, 4)).astype(np.float32)}
    placed["atac"] = placed["rna"]
    said: list[str] = []
    metrics, drawings = evaluate(
        {"oracle": oracle(made, inputs), "deep": oracle(made, inputs, own_depth=True)},
        study,
        split,
        inputs,
        latents={"oracle": {"rna": placed}},
        label="cell_type",
        progress=said.append,
    )
    methods = metrics["methods"]
    assert metrics["baselines"] == ["mean", "knn", "ridge", "gene_activity", "gene_activity_raw"]
    assert set(methods) == {"oracle", "deep", *metrics["baselines"]}
    assert "gene_activity, atac to rna" in said
    # The truth is best, and knowing something of the cell beats knowing nothing.
    r = {name: m["atac_to_rna"]["pearson_gene"] for name, m in methods.items()}
    assert r["oracle"] > r["ridge"] > r["mean"] == 0
    assert r["oracle"] > r["knn"] > 0.05
    area = {name: m["rna_to_atac"]["auroc_peak"] for name, m in methods.items() if "rna_to_atac" in m}
    assert area["deep"] > area["oracle"] > area["ridge"] > area["mean"] == 0.5
    assert methods["deep"]["rna_to_atac"]["ece"] < 0.01
    assert methods["oracle"]["foscttm"] == pytest.approx(0.5, abs=0.05)
    assert metrics["closest"]["n"] == 4  # a twentieth of 90 cells
    assert methods["oracle"]["closest_jaccard"] == pytest.approx(metrics["closest"]["chance"], abs=0.03)
    assert not {"foscttm", "closest_jaccard"} & set(methods["ridge"])
    assert methods["ridge"]["atac_to_rna"]["marker_auroc"] > 0.6
    # On file, and ready to be drawn.
    stored = json.loads(write_metrics(tmp_path / "metrics.json", metrics).read_text())
    assert stored["methods"]["ridge"]["rna_to_atac"]["ece"] is None
    assert stored["methods"]["ridge"]["rna_to_atac"]["mean_ratio"] is None
    assert stored["methods"]["mean"]["rna_to_atac"]["mean_ratio"] == pytest.approx(1, abs=0.1)
    assert stored["cells"] == {"train": 420, "valid": 90, "test": 90}
    assert isinstance(drawings, Drawings)
    assert len(drawings.obs) == 90
    assert drawings.foscttm["oracle"]["rna"].shape == (2, 90)
    for direction, names in drawings.features.items():
        for method in methods:
            if direction in methods[method]:
                assert all(len(v) == len(names) for v in drawings.pictures[method][direction].by_feature.values())
    points = [pictures["atac_to_rna"].points[0] for pictures in drawings.pictures.values()]
    assert all((p == points[0]).all() for p in points)


def test_the_oracle_does_not_depend_on_blocks_and_its_shares_sum_to_the_library(simulated):
    made, study, split, inputs = simulated
    predicted = oracle(made, inputs)["atac_to_rna"](study.of("atac", split.test))
    assert isinstance(predicted, Predicted)
    whole = predicted.block(slice(0, predicted.n_cells), slice(0, predicted.n_features))
    np.testing.assert_allclose(np.expm1(whole).sum(axis=1), inputs["rna"].median_library, rtol=1e-4)
    np.testing.assert_allclose(predicted.block(slice(3, 5), slice(10, 20)), whole[3:5, 10:20], rtol=1e-5)
    with pytest.raises(InputError, match="not in the simulation"):
        oracle(simulate_multiome(n_cells=5, n_genes=20, n_peaks=50, seed=9), inputs)["atac_to_rna"](
            study.of("atac", split.test)
        )


def test_scores_do_not_depend_on_the_order_of_cells(simulated):
    made, study, split, inputs = simulated
    shuffled = np.random.default_rng(0).permutation(study.n_cells).astype(np.int64)
    place = np.argsort(shuffled)
    moved = Split(split.name, *(np.sort(place[part]) for part in (split.train, split.valid, split.test)))
    first, second = (
        evaluate({"oracle": oracle(made, inputs)}, s, p, inputs, baselines=False, label="cell_type")[0]["methods"][
            "oracle"
        ]
        for s, p in ((study, split), (study.select(shuffled), moved))
    )
    for direction in first:
        same(*({k: v for k, v in m[direction].items() if k != "seconds"} for m in (first, second)))


def test_a_baseline_that_cannot_be_fitted_is_named_and_the_others_go_on(simulated):
    _, study, split, inputs = simulated
    nowhere = replace(inputs["rna"], var=inputs["rna"].var.assign(tss=-1))
    metrics, _ = evaluate({}, study, split, {**inputs, "rna": nowhere}, directions=["atac_to_rna"])
    assert "lies within 100,000 bases" in metrics["skipped"]["gene_activity"]
    assert list(metrics["methods"]) == ["mean", "knn", "ridge"]


def test_one_type_held_out_has_no_markers_but_scores(simulated):
    _, study, split, inputs = simulated
    one = study.obs["cell_type"].to_numpy()
    test = np.flatnonzero(one == one[0]).astype(np.int64)
    held = Split("held out", np.setdiff1d(split.train, test), np.setdiff1d(split.valid, test), test)
    metrics, _ = evaluate({}, study, held, inputs, directions=["rna_to_atac", "atac_to_rna"], label="cell_type")
    assert metrics["labels"] is None
    # Its differential genes are known all the same, against training cells of other types.
    mean, ridge = (metrics["methods"][name]["atac_to_rna"] for name in ("mean", "ridge"))
    assert mean["de_auprc"] == pytest.approx(mean["de_auprc_chance"])
    assert ridge["de_auprc"] > 1.5 * ridge["de_auprc_chance"]
    assert "1 of 1 labels" in metrics["labels_skipped"]
    assert "pseudobulk_type_pearson" not in metrics["methods"]["ridge"]["rna_to_atac"]
    with pytest.raises(InputError, match="no column 'celltype'"):
        evaluate({}, study, split, inputs, directions=["rna_to_atac"], label="celltype")
    with pytest.raises(InputError, match="inputs are of rna, atac"):
        evaluate({}, study, split, inputs, directions=["rna_to_protein"])
    with pytest.raises(InputError, match="none of the 0 test cells"):
        evaluate({}, study, Split("none", split.train, split.valid, test[:0]), inputs, directions=["rna_to_atac"])


def test_cells_that_lack_a_modality_are_left_out(simulated):
    made, _, _, inputs = simulated
    study = read_study(rna=made.rna, atac=made.atac[:500])
    cells = Cells.of(study, np.arange(study.n_cells, dtype=np.int64), inputs)
    assert len(cells) == 500
    assert (cells.measured["rna"].obs.index == cells.measured["atac"].obs.index).all()


def test_proteins_from_rna():
    made = simulate_cite(n_cells=500, n_genes=200, n_proteins=12, n_types=4, rna_depth=800, seed=2)
    study = read_study(rna=made.rna, protein=made.protein)
    split = split_random(study)
    rows = study.rows["rna"][split.train]
    inputs = {
        "rna": RnaInput.fit(study.measured["rna"], rows, RnaRecipe(min_genes=0, autosomes=False)),
        "protein": ProteinInput.fit(study.measured["protein"], rows),
    }
    metrics, _ = evaluate({"oracle": oracle(made, inputs, own_depth=True)}, study, split, inputs)
    r = {name: m["rna_to_protein"]["pearson_protein"] for name, m in metrics["methods"].items()}
    assert r["oracle"] > max(r["ridge"], r["knn"]) > r["mean"] == 0
    assert metrics["methods"]["ridge"]["protein_to_rna"]["pearson_gene"] > 0


def test_nothing_of_cells_times_features_is_ever_dense():
    """Blocks asked of a prediction keep to the budget, in either direction."""
    asked = []

    class Watched(LowRank):
        def block(self, cells, features):
            asked.append(len(range(*cells.indices(self.n_cells))) * len(range(*features.indices(self.n_features))))
            return super().block(cells, features)

    rng = np.random.default_rng(0)
    opened = sparse.random(300, 1000, 0.02, format="csr", random_state=0, dtype=np.float32)
    predicted = Watched("atac", *(rng.normal(size=s).astype(np.float32) for s in ((300, 2), (2, 1000), (1000,))))
    score_atac(predicted, Truth("atac", opened, pd.RangeIndex(1000)), budget_mb=0.1)
    assert max(asked) <= 0.1 * 2**20 / 4
    assert sum(asked) == 2 * opened.shape[0] * opened.shape[1]


@pytest.mark.realdata
def test_baselines_of_real_bone_marrow(realdata):
    folder = realdata / "multiome"
    study = read_study(rna=folder / "bmmc_setA_rna.h5ad", atac=folder / "bmmc_setA_atac.h5ad")
    split = split_random(study, shares=(0.5, 0.2, 0.3))
    rows = study.rows["rna"][split.train]
    inputs = {
        "rna": RnaInput.fit(study.measured["rna"], rows, RnaRecipe(min_genes=0)),
        "atac": AtacInput.fit(study.measured["atac"], rows, AtacRecipe(max_share=1.0)),
    }
    metrics, _ = evaluate({}, study, split, inputs, directions=["rna_to_atac", "atac_to_rna"], label="cell_type")
    assert metrics["methods"]["ridge"]["rna_to_atac"]["auroc_peak"] > 0.52  # weak data: 0.55 here
    assert metrics["methods"]["ridge"]["atac_to_rna"]["pearson_gene"] > 0.01
