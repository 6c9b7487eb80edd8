"""Verdicts by interval, several shares in one run, going on after an interruption, and the two checks: laws and known answers."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from expresser.cli import main
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.metrics.expression import ExpressionScores
from finetune.counts import cells_of, log_normalise, totals
from finetune.imputation import molecular_cv, run_imputation
from finetune.imputation.baselines import BASELINES
from finetune.imputation.checks import BEFORE, UNDROPPED, wanted
from finetune.imputation.clusters import ClusterCheck, Labels, agreement, variable_genes
from finetune.imputation.coexpression import CoexpressionCheck, correlations, impossible, said, sentence
from finetune.imputation.fill import completed, dense, filled
from finetune.imputation.parts import MODEL
from finetune.imputation.protocols import drop_entries, split_molecules
from finetune.imputation.verdicts import DECIDING, GroupSums, deal, entry_sums, interval, verdicts
from finetune.state import Result, Store


def typed(n: int = 120, genes: int = 60, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Counts of three cell types that differ in a third of their genes, with varying depth; and the types."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 3, n)
    level = rng.gamma(1.0, 1.0, genes)
    programme = np.where(np.arange(genes) % 3 == kind[:, None], 4.0, 0.6)
    depth = rng.lognormal(0, 0.4, (n, 1)) * 4
    counts = sparse.csr_matrix(rng.poisson(depth * level * programme).astype(np.int64))
    return counts, np.array(["B", "NK", "T"], dtype=object)[kind]


def independent(n: int = 300, genes: int = 40, seed: int = 0) -> sparse.csr_matrix:
    """Genes that vary, each for itself, in cells of like depth."""
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(rng.gamma(2.0, 0.7, (n, genes)) + 0.1).astype(np.int64))


def adata(counts: sparse.csr_matrix, types: np.ndarray | None = None) -> AnnData:
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(counts.shape[0])])
    if types is not None:
        obs["cell_type"] = types
    var = pd.DataFrame(index=[f"GENE{j}" for j in range(counts.shape[1])])
    return AnnData(counts.astype(np.float32), obs=obs, var=var)


def labels(types: np.ndarray) -> Labels:
    return Labels("cell_type", np.arange(len(types)), types)


def run(counts: sparse.csr_matrix, types: np.ndarray | None = None, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"model": None, "methods": ("gene_mean", "knn_raw"), "seeds": 2, "min_genes": 2}
    return run_imputation(data=adata(counts, types), **(given | more))


def noisy(counts: sparse.csr_matrix, error: float) -> dict[str, Any]:
    """A model that knows the counts up to an error, as arguments of `run_imputation`."""
    vocab = GeneVocab.from_names([f"GENE{j}" for j in range(counts.shape[1])])

    def predict(checkpoint, observed, queries, *, max_tokens, device):  # type: ignore[no-untyped-def]
        cell = cells_of(queries)
        true = np.asarray(counts[cell, queries.indices]).ravel()
        return (np.log1p(1e4 * true / totals(observed)[cell]) + error).astype(np.float32)

    return {"model": SimpleNamespace(vocab=vocab, source="fake"), "predict": predict}


# --- verdicts


def entries(seed: int = 0, n: int = 2000, cells: int = 60) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth, cell = rng.normal(3, 1, n), rng.integers(0, cells, n)
    return truth, truth + rng.normal(0, 0.5, n) + 0.3 * rng.normal(size=cells)[cell], cell


def sums(truth: np.ndarray, prediction: np.ndarray, cell: np.ndarray, cells: int = 60) -> GroupSums:
    return GroupSums.of_cells(entry_sums(truth, prediction, None, cell, cells), deal(cells))


def test_scores_without_a_group_are_those_of_the_other_cells():
    truth, prediction, cell = entries()
    group = deal(60)
    found = sums(truth, prediction, cell)
    for number in range(20):
        kept = group[cell] != number
        scores = ExpressionScores(1, 60)
        scores.update(
            truth=truth[kept], prediction=prediction[kept], gene=np.zeros(kept.sum(), np.int64), cell=cell[kept]
        )
        expected = scores.compute()
        assert found.without("mae")[number] == pytest.approx(expected["mae"], rel=1e-12)
        assert found.without("mse")[number] == pytest.approx(expected["rmse"] ** 2, rel=1e-12)
        assert found.without("pearson")[number] == pytest.approx(expected["pearson"], rel=1e-9)


def test_the_interval_of_mae_is_the_textbook_one_where_cells_are_alike():
    # One entry a cell, as many cells as groups: the jackknife's error of a mean is s / sqrt(n), in closed form.
    rng = np.random.default_rng(1)
    truth, cell = rng.normal(size=20), np.arange(20)
    a, b = truth + rng.normal(size=20), truth + rng.normal(size=20)
    apart = np.abs(a - truth) - np.abs(b - truth)
    found = interval([sums(truth, a, cell, 20)], [sums(truth, b, cell, 20)], "mae")
    assert found is not None
    assert found.value == pytest.approx(apart.mean())
    wide = 2.093024 * apart.std(ddof=1) / np.sqrt(20)  # Student's t, 19 degrees of freedom
    np.testing.assert_allclose([found.low, found.high], [apart.mean() - wide, apart.mean() + wide], rtol=1e-6)


def test_a_method_against_itself_is_on_a_par_at_zero():
    truth, prediction, cell = entries()
    of = sums(truth, prediction, cell)
    (said_,) = verdicts({MODEL: [of, of], "twin": [of, of]}, DECIDING["dropout"], MODEL).values()
    assert said_.said == "on a par"
    for found in said_.facts().values():
        assert found == {"difference": 0, "low": 0, "high": 0}


def test_the_interval_covers_what_other_cells_give():
    # The truth of the difference is known by simulation; 95 % intervals miss it now and then, not often.
    rng = np.random.default_rng(0)
    misses = 0
    for _ in range(200):
        cell = np.repeat(np.arange(60), 5)
        shared = rng.normal(size=60)[cell]  # an accident of the cell that moves all its entries
        truth = np.zeros(300)
        a, b = np.abs(1 + 0.3 * shared), np.full(300, 1.0)
        found = interval([sums(truth, a, cell)], [sums(truth, b, cell)], "mae")
        assert found is not None
        misses += not found.low < 0 < found.high
    assert 2 <= misses <= 22


def test_more_noise_in_the_predictions_is_behind_and_less_beats():
    truth, prediction, cell = entries()
    better, worse = (truth + scale * (prediction - truth) for scale in (0.5, 2.0))
    of = {name: [sums(truth, p, cell)] for name, p in (("a", better), (MODEL, prediction), ("c", worse))}
    found = verdicts(of, DECIDING["dropout"], MODEL)
    assert {name: v.said for name, v in found.items()} == {"a": "behind", "c": "beats"}
    assert verdicts({"a": of["a"]}, DECIDING["dropout"], MODEL) == {}


def test_a_missing_score_never_speaks_for_the_model():
    truth, prediction, cell = entries()
    constant = [sums(truth, np.full_like(truth, truth.mean()), cell)]
    poor, good = [sums(truth, prediction + 9, cell)], [sums(truth, prediction, cell)]
    deciding = DECIDING["dropout"]
    assert verdicts({MODEL: constant, "other": poor}, deciding, MODEL)["other"].said == "on a par"
    assert verdicts({MODEL: good, "constant": constant}, deciding, MODEL)["constant"].said == "beats"
    assert verdicts({MODEL: constant, "other": good}, deciding, MODEL)["other"].said == "behind"


def test_two_cells_allow_no_verdict():
    truth, cell = np.arange(4.0), np.array([0, 0, 1, 1])
    of = [sums(truth, truth + 1, cell, 2)]
    assert verdicts({MODEL: of, "other": of}, DECIDING["dropout"], MODEL)["other"].said == "undecided"


def test_intervals_of_molecular_losses_add_up_to_the_losses():
    counts, _ = typed()
    split = split_molecules(counts, seed=0)
    wanted_ = molecular_cv.wanted_entries(split.train, 30)
    losses, scores = molecular_cv.score_share(
        molecular_cv.gene_mean(split.train, wanted_), train=split.train, test=split.test, wanted=wanted_, reference=None
    )
    assert scores.by_cell[-1].sum() / losses["n"] == pytest.approx(losses["poisson"])
    assert scores.by_cell[2].sum() / losses["n"] == pytest.approx(losses["mse"])


# --- several shares, and interruptions


def plain(metrics: dict[str, Any]) -> Any:
    """Without seconds, which no two runs share; NaN as None, so that equal is equal."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: walk(v) for k, v in value.items() if k != "seconds"}
        return None if isinstance(value, float) and np.isnan(value) else value

    return walk(metrics)


def test_several_shares_in_one_run_equal_separate_runs():
    counts, _ = typed()
    model = noisy(counts, 0.1)
    together = plain(run(counts, drop=(0.2, 0.1, 0.4), checks=(), **model))
    assert list(together["drops"]) == ["0.2", "0.1", "0.4"]
    for share in (0.1, 0.2, 0.4):
        alone = plain(run(counts, drop=share, checks=(), **model))
        for key in ("methods", "verdict", "differences", "n_entries"):
            assert together["drops"][f"{share:g}"][key] == alone[key]
            if share == 0.2:
                assert together[key] == alone[key]
    assert together["drop"] == 0.2
    assert set(together["verdict"].values()) == {"beats"}
    assert {"difference", "low", "high"} == set(together["differences"]["gene_mean"]["mae"])


class _Stop(Exception):
    pass


def stopping(at: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == at:
            raise _Stop

    return progress


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the baselines in the order in which they are run."""
    ran: list[str] = []
    for name in ("gene_mean", "knn_raw"):

        def spy(*args: Any, name: str = name, run: Any = BASELINES[name].run, **more: Any) -> Any:
            ran.append(name)
            return run(*args, **more)

        entry = BASELINES[name]
        monkeypatch.setitem(BASELINES, name, type(entry)(spy, entry.about))
    return ran


def test_an_interrupted_run_goes_on_where_it_stopped(tmp_path, monkeypatch):
    counts, types = typed(40, 30)
    given = {"drop": (0.1, 0.3), "label": "cell_type", "out": tmp_path}
    ran = counted(monkeypatch)
    whole = plain(run(counts, types, **(given | {"out": None})))
    runs = [len(ran)]
    for more in (5, 17):  # in the draws, and in the checks
        with pytest.raises(_Stop):
            run(counts, types, progress=stopping(more), **given)
        runs.append(len(ran))
        assert len(list(tmp_path.glob("state/*/*.safetensors"))) == more
        assert not (tmp_path / "metrics.json").exists()
    steps: list[tuple[int, int]] = []
    again = plain(run(counts, types, progress=lambda *step: steps.append(step), **given))
    assert again == whole
    assert len(ran) == 2 * runs[0]  # each method run twice in all: once for `whole`, once in three attempts
    assert runs[0] < runs[1] < runs[2] < len(ran)
    assert steps == [(i, len(steps)) for i in range(1, len(steps) + 1)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "report.html", "run.json"]


def test_finished_parts_are_only_taken_for_the_same_question(tmp_path, monkeypatch):
    counts, _ = typed(60)
    for changed in (typed(60, seed=1)[0], counts):
        with pytest.raises(_Stop):
            run(changed, out=tmp_path, progress=stopping(2), checks=())
    ran = counted(monkeypatch)
    assert plain(run(counts, out=tmp_path, checks=())) == plain(run(counts, checks=()))
    assert len(ran) == 2 + 4
    assert len(list((tmp_path / "state").iterdir())) == 1  # of the other counts, still unfinished


def test_a_damaged_part_is_found_anew(tmp_path):
    store = Store(tmp_path, {"a": 1})
    result = {"row": Result({"x": 1.5, "y": float("nan")}, {"v": np.arange(3.0)})}
    store.result("part", lambda: result)
    kept = store.result("part", lambda: pytest.fail("computed twice"))
    assert kept["row"].facts["x"] == 1.5
    assert np.isnan(kept["row"].facts["y"])
    np.testing.assert_array_equal(kept["row"].arrays["v"], np.arange(3.0))
    (path,) = tmp_path.glob("state/*/*")
    path.write_bytes(path.read_bytes()[:-9])
    assert store.result("part", lambda: {"row": Result({"x": 2.0})})["row"].facts == {"x": 2.0}
    store.clear()
    assert not list(tmp_path.iterdir())


# --- completed and filled matrices


def test_the_true_values_complete_the_matrix():
    counts, _ = typed()
    draw = drop_entries(counts, drop=0.3, seed=0)
    cells, genes = np.arange(5, 40), np.arange(0, 60, 2)
    whole = completed(draw.observed, draw.queries, draw.truth, cells, genes)
    np.testing.assert_allclose(whole, log_normalise(counts).toarray()[cells][:, genes], rtol=1e-5)


def test_predictors_fill_zeros_and_smoothers_replace():
    counts, _ = typed()
    cells, genes = np.array([3, 4, 50, 90]), np.arange(1, 60, 3)
    measured = dense(log_normalise(counts), cells, genes)
    zero = measured == 0
    block = filled("gene_mean", counts, cells, genes, seed=0)
    np.testing.assert_array_equal(block[~zero], measured[~zero])
    for j in range(len(genes)):
        assert len(np.unique(block[zero[:, j], j])) <= 1
    assert (block[zero] > 0).all()
    smooth = filled("knn_raw", counts, cells, genes, seed=0)
    assert not np.isclose(smooth, measured)[~zero].any()
    asked = filled(lambda observed, queries: np.arange(queries.nnz) + 10.0, counts, cells, genes, seed=0)
    np.testing.assert_array_equal(asked[zero], np.arange(zero.sum()) + 10)


def test_magic_is_corrected_where_non_zeros_are_asked_and_a_rate_where_molecules_are():
    pytest.importorskip("magic")
    name = "magic"
    counts, _ = typed(200)
    draw = drop_entries(counts, drop=0.2, seed=0)
    rows = BASELINES[name].run(draw.observed, draw.queries)
    assert set(rows) == {name, f"{name}_corrected"}  # MCV asks for the rate itself: there is nothing to correct
    split = split_molecules(counts, seed=0)
    asked = molecular_cv.wanted_entries(split.train, 60)
    losses = {
        of: molecular_cv.score_share(
            molecular_cv.METHODS[of](split.train, asked),
            train=split.train,
            test=split.test,
            wanted=asked,
            reference=None,
        )[0]["poisson"]
        for of in (name, "gene_mean", "no_denoising")
    }
    assert losses[name] < min(losses["gene_mean"], losses["no_denoising"])


# --- clusters


def test_perfect_completion_clusters_like_the_undropped_counts():
    counts, types = typed()
    draw = drop_entries(counts, drop=0.5, seed=0)
    check = ClusterCheck(counts, draw, labels(types), seed=0, n_genes=40)
    before, after = check.undropped(), check.completed(draw.truth)
    assert after == before
    assert before["ari"] > check.observed()["ari"]
    # Filled in with nothing, the matrix is what was left.
    assert check.completed(np.zeros(draw.queries.nnz)) == check.observed()


def test_clusters_of_apart_types_are_the_types_and_of_noise_are_not():
    rng = np.random.default_rng(0)
    types = np.array(list("abcd"), dtype=object)[np.arange(120) % 4]
    values = (np.eye(4).repeat(10, axis=1)[np.arange(120) % 4] * 5 + rng.normal(size=(120, 40))).astype(np.float32)
    found = agreement(values, types, seed=0)
    assert found == {"ari": 1.0, "nmi": pytest.approx(1.0), "clusters": 4.0}
    assert agreement(rng.normal(size=(120, 40)).astype(np.float32), types, seed=0)["ari"] < 0.1
    assert agreement(values, types, seed=0) == found


def test_variable_genes_are_those_that_vary_beyond_their_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 0.3, (200, 100))
    x[:, ::10] += np.where(rng.random((200, 10)) < 0.5, 1.5, -1.5)
    np.testing.assert_array_equal(variable_genes(sparse.csr_matrix(x), 10), np.arange(0, 100, 10))
    x[:, 3] = 0
    assert 3 not in variable_genes(sparse.csr_matrix(x), 100)


def test_cells_without_a_label_are_not_judged_and_a_wrong_column_is_named():
    obs = pd.DataFrame({"cell_type": ["T", None, "B", "nan", "T", ""], "batch": ["1"] * 6})
    found = Labels.read(obs, "cell_type", np.array([0, 1, 2, 3, 5]), where="x.h5ad")
    assert found.rows.tolist() == [0, 2]
    assert found.types.tolist() == ["T", "B"]
    with pytest.raises(InputError, match=r"no column 'type'; it has cell_type, batch"):
        Labels.read(obs, "type", np.arange(6), where="x.h5ad")
    with pytest.raises(InputError, match="names 1 type of 6 cells"):
        Labels.read(obs, "batch", np.arange(6), where="x.h5ad")


# --- co-expression


def test_shuffling_keeps_each_gene_and_cuts_its_ties():
    counts, _ = typed(400)
    check = CoexpressionCheck.of(counts, seed=0, max_genes=40)
    some, changed = counts.toarray(), check.counts.toarray()
    np.testing.assert_array_equal(np.sort(some, axis=0), np.sort(changed, axis=0))
    still = np.setdiff1d(np.arange(60), check.genes[check.shuffled])
    np.testing.assert_array_equal(some[:, still], changed[:, still])
    assert check.about().tolist() == [400, 40, 20, 20 * 20 + 190]
    real = correlations(dense(log_normalise(counts), np.arange(400), check.genes).astype(np.float64))
    real = np.abs(real[np.triu_indices(40, 1)])
    assert check.observed()["r_given_depth"] < 0.06 < 0.2 < real.mean()
    other = CoexpressionCheck.of(counts, seed=1, max_genes=40)
    assert not np.array_equal(other.counts.toarray(), changed)


def test_what_is_measured_stays_at_the_level_of_chance_and_smoothing_does_not():
    check = CoexpressionCheck.of(independent(), seed=0)
    chance = np.sqrt(2 / (np.pi * 300))  # the mean |r| of independent normal values
    before = check.observed()
    assert before["r_given_depth"] == pytest.approx(chance, rel=0.2)
    assert before["strong"] == 0
    after = {name: check.filled(name) for name in ("gene_mean", "knn_raw", "additive")}
    assert after["gene_mean"]["strong"] == 0
    assert after["gene_mean"]["r"] < 1.5 * chance
    assert after["knn_raw"]["r"] > 2 * chance
    words = said({BEFORE: before} | after, BEFORE)
    assert words["gene_mean"] == "keeps"


def test_what_ties_genes_to_depth_alone_is_told_from_invention():
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(0.3 * rng.lognormal(0, 0.6, (300, 1)) * np.ones(200)).astype(np.int64))
    check = CoexpressionCheck.of(counts, seed=0)

    def by_depth(observed: sparse.csr_matrix, queries: sparse.csr_matrix) -> np.ndarray:
        return 10 - np.log(totals(observed))[cells_of(queries)]

    def by_factor(observed: sparse.csr_matrix, queries: sparse.csr_matrix) -> np.ndarray:
        return 3 + 5 * np.random.default_rng(0).random(300)[cells_of(queries)]

    methods = {BEFORE: check.observed(), "depth": check.filled(by_depth), "factor": check.filled(by_factor)}
    words = said(methods, BEFORE)
    assert words == {"depth": "through depth", "factor": "invents"}
    told = sentence(words | {"a": "keeps", "b": "keeps"})
    assert "is invented by factor." in told
    assert "depth ties genes to the depth" in told
    assert "a and b invent none" in told


def test_too_little_data_is_said():
    few = independent(10)
    assert "10 cells are too few" in str(impossible(few))
    assert "3 genes" in str(impossible(independent(40, 3)))
    assert impossible(independent(40, 10)) is None
    with pytest.raises(InputError, match="no check of co-expression: 10 cells"):
        run(few, checks=("coexpression",))
    assert run(few)["checks_left_out"] == {"coexpression": "10 cells are too few: it takes 20"}


# --- the run


def test_both_checks_of_all_methods_stand_in_metrics_and_page(tmp_path):
    counts, types = typed(90)
    found = run(counts, types, label="cell_type", out=tmp_path, **noisy(counts, 0.0))
    clusters, ties = found["clusters"], found["coexpression"]
    assert (clusters["types"], clusters["cells"], clusters["label"]) == (3, 90, "cell_type")
    assert set(clusters["methods"]) == {UNDROPPED, BEFORE, "gene_mean", "knn_raw", "knn_raw_corrected", MODEL}
    # The fake model knows the hidden counts, so its completion is the undropped data.
    assert clusters["methods"][MODEL]["ari"] == pytest.approx(clusters["methods"][UNDROPPED]["ari"], abs=0.1)
    assert {"ari_whole", "ari_whole_sd", "nmi_whole"} <= set(clusters["methods"]["knn_raw"])
    assert "ari_whole" not in clusters["methods"]["knn_raw_corrected"]
    assert set(ties["said"]) == {"gene_mean", "knn_raw", MODEL}
    assert json.loads((tmp_path / "metrics.json").read_text())["coexpression"]["pairs"] == ties["pairs"]
    page = (tmp_path / "report.html").read_text()
    for words in ("Does it help to find cell types?", "Does it invent co-expression?", "ARI, as used", "given depth"):
        assert words in page


def test_clusters_cost_no_second_run_of_a_method(monkeypatch):
    # The completed matrix comes of the same answers as the scores: three runs for hidden values, ties and zeros as used.
    counts, types = typed(60)
    ran = counted(monkeypatch)
    run(counts, types, label="cell_type", seeds=1, methods=("gene_mean",))
    assert ran == ["gene_mean"] * 3
    ran.clear()
    run(counts, types, seeds=1, methods=("gene_mean",), checks=())
    assert ran == ["gene_mean"]


def test_checks_that_do_not_fit_are_refused():
    assert wanted(None, "dropout", None) == ("coexpression",)
    assert wanted(None, "dropout", "cell_type") == ("clusters", "coexpression")
    assert wanted(None, "mcv", None) == ()
    for checks, protocol, label, rule in (
        (("colour",), "dropout", None, "no check 'colour'"),
        (("clusters",), "dropout", None, "--label"),
        (("coexpression",), "mcv", None, "protocol 'mcv' has no checks"),
        (None, "mcv", "cell_type", "protocol 'mcv' has no checks"),
    ):
        with pytest.raises(InputError, match=rule):
            wanted(checks, protocol, label)
    counts, _ = typed(30)
    with pytest.raises(InputError, match="drop is empty"):
        run(counts, drop=())
    with pytest.raises(InputError, match=r"drop is 1\.5"):
        run(counts, drop=(0.1, 1.5))


def test_the_command_takes_shares_and_checks(tmp_path: Path, capsys):
    counts, types = typed(60)
    adata(counts, types).write_h5ad(tmp_path / "cells.h5ad")
    words = ["finetune", "imputation", "--data", tmp_path / "cells.h5ad", "--out", tmp_path / "out", "--seeds", "1"]
    main(
        [str(w) for w in [*words, "--drop", "0.1", "0.3", "--methods", "gene_mean", "knn", "--checks", "coexpression"]]
    )
    said_ = capsys.readouterr().out
    assert "0.1 of the non-zero counts hidden" in said_
    assert "0.3 of the non-zero counts hidden" in said_
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(metrics["drops"]) == {"0.1", "0.3"}
    assert metrics["clusters"] is None
    assert "gene_mean" in metrics["coexpression"]["said"]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "MAE by share hidden" in page
    assert "r by share hidden" in page
