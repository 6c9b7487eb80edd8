"""Gene tasks: planted signals come back, chance stays chance, runs go on where they stopped, heads apply to new genes."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.metrics.intervals import Paired
from finetune.embeddings.built_in import random_table
from finetune.embeddings.table import GeneTable, gene_table_of
from finetune.heads.fitting import fit_head
from finetune.labels import GeneLabels
from finetune.splits.rules import Split
from finetune.tasks.apply import apply_head
from finetune.tasks.covariates import partial_correlation
from finetune.tasks.genes import run_gene_task
from finetune.tasks.judging import LEAD, PAR, judge, verdict
from finetune.tasks.report import write_task_page
from finetune.tasks.runs import Fitted, TaskResult
from finetune.tasks.words import sentences, text_table

N, LABELLED = 240, 200
GENES = [f"ENSG{i:011d}" for i in range(N)]
Z = np.random.default_rng(0).normal(size=(N, 6))
LENGTH = np.random.default_rng(1).lognormal(7, 0.6, N)
DIRECTION = np.array([1.0, -1.0, 0.5, 0.0, 0.0, 0.0])


def table(name: str = "model", noise: float = 0.0, kind: str = "checkpoint", genes: list[str] = GENES) -> GeneTable:
    values = Z + noise * np.random.default_rng(2).normal(size=Z.shape)
    at = [GENES.index(gene) for gene in genes]
    return gene_table_of(name, genes, values[at].astype(np.float32), {"kind": kind, "rows": len(genes), "source": name})


def labels(kind: str = "binary", name: str = "planted", covariates: bool = False) -> GeneLabels:
    index = pd.Index(GENES[:LABELLED], name="gene_id")
    value = pd.Series(Z[:LABELLED] @ DIRECTION + 0.3 * np.random.default_rng(3).normal(size=LABELLED), index=index)
    extra, more = pd.DataFrame(index=index), pd.DataFrame(index=index)
    if covariates:
        value = value + 2 * np.log(LENGTH[:LABELLED])
        extra = pd.DataFrame(
            {"cds_length": LENGTH[:LABELLED], "log_cds_length": np.log10(LENGTH[:LABELLED])}, index=index
        )
        more = pd.DataFrame({"loeuf": -value.where(value > value.quantile(0.1)), "pli": 0.5}, index=index)
    if kind == "binary":
        value = (value > value.median()).astype(np.int8)
    if kind == "multiclass":
        value = pd.Series(np.array(["low", "mid", "top"], dtype=object)[pd.qcut(value, 3, labels=False)], index=index)
    return GeneLabels(name, kind, value, extra, more, {"rows_read": LABELLED, "kept": LABELLED})  # type: ignore[arg-type]


def tables() -> list[GeneTable]:
    return [table(), random_table(GENES, 6, seed=0)]


def steady(metrics: dict) -> dict:
    """What must not depend on the machine."""
    plain = json.loads(json.dumps(metrics))
    plain.pop("peak_mb")
    for part in [plain, *plain["companions"].values()]:
        for entry in part["embeddings"].values():
            entry.pop("seconds")
    return plain


def test_a_planted_signal_is_found_and_random_vectors_stay_at_chance(tmp_path):
    result = run_gene_task(labels(), tables(), preset="linear", repeats=2, folds=4, out=tmp_path / "out")
    entry = result.metrics["embeddings"]
    assert entry["model"]["auroc"] > 0.95
    assert entry["random"]["auroc_lo"] < 0.5 < entry["random"]["auroc_hi"]
    assert abs(entry["random"]["auroc"] - 0.5) < 0.12
    assert result.scores.index.tolist() == ["model", "random"]
    against = result.metrics["comparisons"]["model"]["random"]
    assert against["verdict"] == "better"
    assert against["difference"] == pytest.approx(entry["model"]["auroc"] - entry["random"]["auroc"])
    assert "model (AUROC" in sentences(result.metrics)[0]
    assert "is better than each" in sentences(result.metrics)[0]

    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(written) >= {
        "task",
        "embeddings",
        "comparisons",
        "n_genes",
        "n_pairs",
        "split",
        "lost",
        "labels",
        "peak_mb",
    }
    for row in written["embeddings"].values():
        assert {"auroc", "auroc_lo", "auroc_hi", "auprc", "accuracy", "seconds", "dim"} <= set(row)
    assert written["n_genes"] == LABELLED
    assert not (tmp_path / "out" / "state").exists()

    # Each gene is tested once a repeat, and the scores are those of the predictions.
    frame = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert len(frame) == 2 * LABELLED
    assert frame.groupby("repeat")["gene_id"].nunique().tolist() == [LABELLED, LABELLED]
    folds = frame.groupby(["repeat", "fold"])
    by_fold = [(part["label"] == (part["model"] >= 0.5)).mean() for _, part in folds]
    assert np.mean(by_fold) == pytest.approx(entry["model"]["accuracy"])


def test_only_genes_of_all_tables_are_compared_and_the_lost_are_counted():
    few = table("few", genes=GENES[50:])
    result = run_gene_task(labels("regression"), [table(), few], repeats=1)
    assert result.metrics["n_genes"] == LABELLED - 50
    assert result.metrics["lost"]["few"]["labelled_lacking"] == 50
    assert result.metrics["lost"]["model"]["labelled_lacking"] == 0
    assert set(result.predictions.index) == set(GENES[50:LABELLED])
    # The same vectors under two names say the same, and one is on a par with the other.
    assert result.metrics["comparisons"]["model"]["few"]["verdict"] == "on a par"
    assert "model is on a par with few: +0.000 r, +0.000 to +0.000" in "\n".join(sentences(result.metrics))


def test_the_order_of_tables_and_of_their_rows_changes_no_score():
    one = run_gene_task(labels("regression"), tables(), repeats=1)
    shuffled = np.random.default_rng(5).permutation(N).tolist()
    other = run_gene_task(labels("regression"), [tables()[1], table(genes=[GENES[i] for i in shuffled])], repeats=1)
    for name in ("model", "random"):
        mine, theirs = one.metrics["embeddings"][name], other.metrics["embeddings"][name]
        assert {k: v for k, v in mine.items() if k != "seconds"} == {k: v for k, v in theirs.items() if k != "seconds"}


def test_covariates_stand_among_the_tables_and_are_held_constant():
    result = run_gene_task(labels("regression", covariates=True), tables(), repeats=1)
    entry = result.metrics["embeddings"]
    assert set(entry) == {"model", "random", "length", "length+model", "length+random"}
    assert entry["length"]["pearson"] > 0.4
    assert entry["length+model"]["pearson"] > max(entry["model"]["pearson"], entry["length"]["pearson"])
    # Given length, what the vectors know is all that is left but the noise.
    assert entry["model"]["pearson_given_length"] > entry["model"]["pearson"] + 0.05
    assert abs(entry["random"]["pearson_given_length"]) < 0.25
    assert np.isnan(entry["length"]["pearson_given_length"])
    assert set(result.metrics["comparisons"]["model"]) == {"random", "length"}
    assert set(result.metrics["comparisons"]["length+model"]) == {"length"}
    said = "\n".join(sentences(result.metrics))
    assert "model adds to what length alone tells: +" in said
    # The companion has its own genes, since some lack it; others are left alone.
    assert set(result.metrics["companions"]) == {"loeuf"}
    assert result.metrics["companions"]["loeuf"]["n_genes"] == LABELLED - 20
    assert result.metrics["companions"]["loeuf"]["embeddings"]["model"]["pearson"] > 0.5


def test_genes_without_a_covariate_are_left_out_and_counted():
    given = labels("regression", covariates=True)
    given.covariates.iloc[:7, 0] = np.nan
    result = run_gene_task(given, [table()], repeats=1, companions=())
    assert result.metrics["without_covariates"] == 7
    assert result.metrics["n_genes"] == LABELLED - 7


def test_partial_correlation_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(3, 500)) + rng.normal(size=500)
    r = np.corrcoef([x, y, z])
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert partial_correlation(x, y, z[:, None]) == pytest.approx(expected)
    assert np.isnan(partial_correlation(x, 3 * z + 1, z[:, None]))


def test_classes_are_told_apart_too(tmp_path):
    result = run_gene_task(labels("multiclass"), tables(), preset="linear", repeats=1, folds=3, out=tmp_path / "out")
    assert result.metrics["embeddings"]["model"]["balanced_accuracy"] > 0.75
    assert result.metrics["embeddings"]["random"]["balanced_accuracy"] < 0.5
    assert set(result.predictions["model"]) <= {"low", "mid", "top"}
    answer = apply_head(tmp_path / "out" / "heads" / "model")
    assert answer[["p_low", "p_mid", "p_top"]].sum(axis=1).to_numpy() == pytest.approx(1)
    best = answer[["p_low", "p_mid", "p_top"]].to_numpy().argmax(axis=1)
    assert answer["prediction"].tolist() == [["low", "mid", "top"][i] for i in best]


def test_the_published_protocol_is_one_random_fifth():
    result = run_gene_task(labels(), tables(), preset="paper")
    assert result.metrics["split"] == "holdout"
    assert len(result.predictions) == LABELLED // 5
    entry = result.metrics["embeddings"]["model"]
    assert entry["auroc_lo"] < entry["auroc"] <= entry["auroc_hi"] <= 1
    one, other = (result.metrics["comparisons"][a][b] for a, b in (("model", "random"), ("random", "model")))
    assert one["difference"] == pytest.approx(-other["difference"])
    assert one["p"] == pytest.approx(other["p"])
    assert one["p"] < 0.05


class Stop(Exception):
    """An interruption."""


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path):
    def interrupt(done: int, total: int, what: str) -> None:
        if done == 7:
            raise Stop

    given, out = labels("regression", covariates=True), tmp_path / "out"
    with pytest.raises(Stop):
        run_gene_task(given, tables(), repeats=1, out=out, progress=interrupt)
    assert (out / "state").is_dir()
    assert not (out / "metrics.json").exists()
    calls: list[tuple[int, int]] = []
    shutil.copytree(out / "state", tmp_path / "state")
    resumed = run_gene_task(
        given, tables(), repeats=1, out=out, progress=lambda done, total, _: calls.append((done, total))
    )
    assert not (out / "state").exists()
    assert resumed.resumed == 7
    assert calls[-1][0] == calls[-1][1] == len(calls)
    whole = run_gene_task(given, tables(), repeats=1)
    assert steady(resumed.metrics) == steady(whole.metrics)
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)

    # A complete run is read back, and what it left where it was killed at its very end goes; another one finds the folder taken.
    shutil.copytree(tmp_path / "state", out / "state")
    again = run_gene_task(given, tables(), repeats=1, out=out, progress=lambda *_: pytest.fail("computed anew"))
    assert again.finished
    assert not (out / "state").exists()
    assert steady(again.metrics) == steady(json.loads((out / "metrics.json").read_text()))
    assert again.scores.index.tolist() == whole.scores.index.tolist()
    with pytest.raises(InputError, match="repeats was 1, is 2"):
        run_gene_task(given, tables(), repeats=2, out=out)
    with pytest.raises(InputError, match="embeddings"):
        run_gene_task(given, [table(noise=0.1), tables()[1]], repeats=1, out=out)
    with pytest.raises(InputError, match="labels_sha256"):
        run_gene_task(labels("regression"), tables(), repeats=1, out=out)


def test_a_damaged_result_of_an_interrupted_run_is_made_again(tmp_path):
    def interrupt(done: int, total: int, what: str) -> None:
        if done == 3:
            raise Stop

    out = tmp_path / "out"
    with pytest.raises(Stop):
        run_gene_task(labels("regression"), tables(), repeats=1, out=out, progress=interrupt)
    first = sorted((out / "state").rglob("*.safetensors"))[0]
    first.write_bytes(first.read_bytes()[:20])
    resumed = run_gene_task(labels("regression"), tables(), repeats=1, out=out)
    assert resumed.resumed == 2
    assert steady(resumed.metrics) == steady(run_gene_task(labels("regression"), tables(), repeats=1).metrics)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[TaskResult, object]:
    out = tmp_path_factory.mktemp("run") / "out"
    vocab = GeneVocab.from_names(np.array(GENES, dtype=object), np.array([f"SYM{i}" for i in range(N)], dtype=object))
    return run_gene_task(labels("regression"), tables(), repeats=1, out=out, vocab=vocab), out


def test_a_saved_head_predicts_genes_that_have_no_label(run):
    _, out = run
    folder = out / "heads" / "model"
    assert not (out / "heads" / "random").exists()
    given = labels("regression")
    head = fit_head(table().rows(GENES[:LABELLED]), given.values.to_numpy(), kind="regression", seed=0)
    every = apply_head(folder)
    assert every.index.tolist() == GENES
    np.testing.assert_array_equal(every["prediction"], head.predict(table().rows(GENES)))
    assert every["in_training"].tolist() == [i < LABELLED for i in range(N)]
    assert np.corrcoef(every["prediction"][LABELLED:], Z[LABELLED:] @ DIRECTION)[0, 1] > 0.8

    # Symbols, ids with versions, repeats and unknown names, in the order asked.
    asked = apply_head(folder, genes=["SYM230", f"{GENES[3]}.7", "SYM230", "NOSUCH", "SYM3"])
    assert asked.index.tolist() == [GENES[230], GENES[3]]
    assert asked["symbol"].tolist() == ["SYM230", "SYM3"]
    assert asked["prediction"].tolist() == every["prediction"].loc[[GENES[230], GENES[3]]].tolist()
    assert asked.attrs["unknown"] == ["NOSUCH"]


def test_a_head_takes_another_table_of_its_own_width_only(run, tmp_path):
    _, out = run
    folder = out / "heads" / "model"
    more = pd.DataFrame(np.vstack([Z, Z[:1]]).astype(np.float32), columns=[str(i) for i in range(6)])
    more.index = pd.Index([*GENES, "ENSG99999999999"], name="gene_id")
    more.to_csv(tmp_path / "more.csv")
    shutil.copytree(folder, tmp_path / "head")
    (tmp_path / "head" / "genes.tsv").unlink()
    answer = apply_head(tmp_path / "head", genes=["ENSG99999999999", GENES[0]], embeddings=str(tmp_path / "more.csv"))
    assert answer["prediction"].iloc[0] == pytest.approx(answer["prediction"].iloc[1])
    assert answer["in_training"].tolist() == [False, True]
    more.iloc[:, :4].to_csv(tmp_path / "narrow.csv")
    with pytest.raises(InputError, match=r"have 4 numbers, but the head .* was fitted on 6"):
        apply_head(folder, embeddings=str(tmp_path / "narrow.csv"))


def test_a_head_says_what_it_cannot_be_asked(run, tmp_path):
    _, out = run
    with pytest.raises(InputError, match="none of the genes asked for has a vector \\('NOSUCH'"):
        apply_head(out / "heads" / "model", genes=["NOSUCH"])
    with pytest.raises(InputError, match="this head is of genes"):
        apply_head(out / "heads" / "model", pairs=[("SYM1", "SYM2")])
    with pytest.raises(InputError, match="holds no head"):
        apply_head(tmp_path)
    with pytest.raises(InputError, match=r"Its heads are .*heads/model"):
        apply_head(out)


def test_hostile_names_are_text_on_the_page(tmp_path):
    evil = "<script>alert('x')</script>"
    result = run_gene_task(labels(name=evil), [table("a&b$x$"), table("plain", 3.0)], repeats=1, folds=2)
    given = {**result.metrics, "labels": {"source": evil, "unmatched_examples": [evil]}, "target": evil}
    run_json = {"provenance": {"seed": 0}, "labels_sha256": evil, "config": {}, "embeddings": {}}
    (tmp_path / "run.json").write_text(json.dumps(run_json))
    page = write_task_page(tmp_path / "report.html", given, result.predictions, run=tmp_path / "run.json").read_text()
    assert evil not in page
    assert "&lt;script&gt;alert" in page
    assert "a&amp;b$x$" in page


def test_bad_input_is_refused_with_the_way_out(tmp_path):
    with pytest.raises(InputError, match="two embeddings are called 'model'"):
        run_gene_task(labels(), [table(), table()])
    with pytest.raises(InputError, match=r"called 'label', which the result uses .* NAME=label"):
        run_gene_task(labels(), [table("label")])
    with pytest.raises(InputError, match="'length'"):
        run_gene_task(labels("regression", covariates=True), [table("length")])
    foreign = gene_table_of("foreign", ["A", "B", "C"], np.eye(3, dtype=np.float32), {})
    with pytest.raises(InputError, match="no gene is in all tables"):
        run_gene_task(labels(), [table(), foreign])
    with pytest.raises(InputError, match=r"of 200 labelled genes .* only 0 are among the 3 .* --genes"):
        run_gene_task(labels(), [foreign])
    given = labels()
    one = table("one", genes=given.values.index[given.values == 1].tolist())
    with pytest.raises(InputError, match="two values or more"):
        run_gene_task(given, [one], out=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a run of finetune gene"):
        run_gene_task(labels(), [table()], out=tmp_path / "other")


def test_words_follow_the_interval_and_the_adjusted_p():
    assert verdict(Paired(0.1, 0.05, 0.15, 0.001), 0.01) == "better"
    assert verdict(Paired(-0.1, -0.15, -0.05, 0.001), 0.01) == "worse"
    assert verdict(Paired(0.003, -0.010, 0.016, 0.6), 1.0) == "on a par"
    assert verdict(Paired(0.003, -0.010, PAR + 0.001, 0.6), 1.0) == "undecided"
    assert verdict(Paired(0.1, 0.001, 0.199, 0.048), 0.3) == "undecided"
    assert verdict(Paired(np.nan, np.nan, np.nan, np.nan), np.nan) == "undecided"


def test_without_a_model_the_best_table_is_spoken_of():
    given = [table("svd", 0.5, kind="built-in"), random_table(GENES, 6, seed=0)]
    result = run_gene_task(labels("regression"), given, repeats=1)
    assert result.metrics["models"] == []
    assert sentences(result.metrics)[0].startswith("svd (r ")
    assert text_table(result.metrics).splitlines()[0].endswith("svd is")
    assert set(LEAD) == {"binary", "regression", "multiclass"}


def test_a_test_set_of_fewer_genes_than_groups_leaves_out_each_gene_once():
    """An empty group would leave nothing out, and make the interval too narrow: MAE is a mean, its interval is known."""
    truth = np.random.default_rng(0).normal(size=10)
    rows = np.arange(10)
    split = Split("genes", 0, 0, np.arange(0), rows, rows[:, None])
    guess = np.random.default_rng(1).normal(size=10)
    found = judge("regression", truth, [split], {"a": [Fitted(guess, 0.0)]})["embeddings"]["a"]
    error = np.abs(truth - guess)
    wide = stats.t.ppf(0.975, 9) * error.std(ddof=1) / np.sqrt(10)
    assert found["mae_hi"] == pytest.approx(error.mean() + wide)
