"""The commands on gene embeddings: what they print, what they leave, and how they refuse."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from expresser.cli import main
from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.cli_genes import COMMANDS, Tables, specs_of
from finetune.cli_heads import COMMANDS as HEADS
from finetune.tasks.apply import apply_head

N = 120
IDS = [f"ENSG{i:011d}" for i in range(N)]
SYMBOLS = [f"SYM{i}" for i in range(N)]
Z = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
VALUE = Z @ np.array([1.0, -1.0, 0.5, 0.0]) + 0.2 * np.random.default_rng(1).normal(size=N)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A table by symbol, a vocabulary, and labels of every kind."""
    folder = tmp_path_factory.mktemp("data")
    pd.DataFrame(Z, index=pd.Index(SYMBOLS, name="symbol")).to_csv(folder / "vectors.csv")
    GeneVocab.from_names(np.array(IDS, dtype=object), np.array(SYMBOLS, dtype=object)).save(folder / "genes.tsv")
    pd.DataFrame({"gene": SYMBOLS[:100], "score": VALUE[:100]}).to_csv(folder / "labels.tsv", sep="\t", index=False)
    high = [gene for gene, value in zip(IDS, VALUE, strict=True) if value > 0]
    low = [gene for gene in IDS if gene not in high]
    lists = pd.DataFrame({"dosage_sensitive": pd.Series(high), "dosage_insensitive": pd.Series(low)})
    lists.to_csv(folder / "dosage.csv", index=False)
    length = np.random.default_rng(2).integers(300, 5000, N)
    constraint = {"gene": SYMBOLS, "gene_id": IDS, "lof_z": VALUE, "oe_lof_upper": -VALUE, "exp_lof": length / 100}
    pd.DataFrame(constraint | {"cds_length": length}).to_csv(folder / "constraint.tsv", sep="\t", index=False)
    a, b = np.triu_indices(60, 1)
    alike = (np.sign(Z[a, 0]) == np.sign(Z[b, 0])).astype(int)
    rows = pd.DataFrame({"gene1": np.array(SYMBOLS)[a], "gene2": np.array(SYMBOLS)[b], "label": alike})
    rows.sample(700, random_state=0).to_csv(folder / "pairs.csv", index=False)
    return folder


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    main(["finetune", *map(str, argv)])
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(["finetune", *map(str, argv)])
    assert caught.value.code == 2
    return capsys.readouterr().err


def given(data: Path, task: str, labels: str, out: Path) -> list[object]:
    found = [task, "--embeddings", f"model={data / 'vectors.csv'}", "--genes", data / "genes.tsv"]
    return [*found, "--labels", data / labels, "--out", out]


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory) -> Path:
    """A finished run of `finetune gene`."""
    out = tmp_path_factory.mktemp("trained") / "out"
    main(list(map(str, ["finetune", *given(data, "gene", "labels.tsv", out), "--repeats", 1, "--folds", 3])))
    return out


def test_gene_prints_the_table_and_reads_a_complete_run_back(data, trained, capsys):
    said = call(capsys, *given(data, "gene", "labels.tsv", trained), "--repeats", 1, "--folds", 3)
    assert "holds this run already" in said
    lines = said.splitlines()
    assert lines[1].startswith("100 labelled genes compared, of 100 rows read")
    assert any(line.startswith("model: 120 genes of 120 rows, 120 shared by all tables; 0 labelled") for line in lines)
    assert [line.split()[0] for line in lines if line.startswith(("model  ", "random  "))] == ["model", "random"]
    assert lines[-1] == f"report: {trained / 'report.html'}"
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["embeddings"]["model"]["pearson"] > 0.9
    assert "SYM3" in pd.read_parquet(trained / "predictions.parquet")["symbol"].tolist()


@pytest.mark.parametrize(
    ("task", "labels", "lead", "rows"),
    [
        ("dosage", "dosage.csv", "auroc", {"model", "random"}),
        (
            "lof",
            "constraint.tsv",
            "pearson",
            {"model", "random", "length", "expected", "length+model", "length+random"},
        ),
        ("interactions", "pairs.csv", "auroc", {"model", "random", "degree"}),
    ],
)
def test_each_task_runs_from_its_own_file(data, tmp_path, capsys, task, labels, lead, rows):
    more = ["--preset", "linear"] if task == "interactions" else []
    said = call(capsys, *given(data, task, labels, tmp_path), "--repeats", 1, "--folds", 2, *more)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["task"] == task
    assert set(metrics["embeddings"]) == rows
    assert metrics["embeddings"]["model"][lead] > 0.8
    assert said.splitlines()[-1] == f"report: {tmp_path / 'report.html'}"
    assert "model" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "heads" / "model" / "task.json").is_file()
    assert not (tmp_path / "heads" / "random").exists()


def test_apply_writes_what_the_head_says(trained, tmp_path, capsys):
    head = trained / "heads" / "model"
    said = call(capsys, "apply", head, "--genes", "SYM110", IDS[0], "NOSUCH", "--out", tmp_path / "few.csv")
    assert "2 genes in" in said
    assert "fitted on 1 of them" in said
    assert "1 name has no vector: NOSUCH" in said
    few = pd.read_csv(tmp_path / "few.csv")
    assert few["gene_id"].tolist() == [IDS[110], IDS[0]]
    assert few["symbol"].tolist() == ["SYM110", "SYM0"]
    call(capsys, "apply", head, "--out", tmp_path / "all.parquet")
    every = pd.read_parquet(tmp_path / "all.parquet")
    pd.testing.assert_frame_equal(every, apply_head(head), check_flags=False)
    assert every.loc[few["gene_id"], "prediction"].to_numpy() == pytest.approx(few["prediction"])
    (tmp_path / "asked.txt").write_text("SYM5\nSYM6\n")
    call(capsys, "apply", head, "--genes-file", tmp_path / "asked.txt", "--out", tmp_path / "file.tsv")
    assert pd.read_csv(tmp_path / "file.tsv", sep="\t")["symbol"].tolist() == ["SYM5", "SYM6"]


def test_export_writes_tables_and_tasks_by_symbol(data, tmp_path, capsys):
    tables = ["--embeddings", f"model={data / 'vectors.csv'}", "--genes", data / "genes.tsv"]
    said = call(
        capsys, "export", *tables, "--labels", data / "pairs.csv", "--task", "interactions", "--out", tmp_path / "bench"
    )
    assert "120 written" in said
    frame = pd.read_csv(tmp_path / "bench" / "embeddings" / "model.csv", index_col="symbol")
    np.testing.assert_array_equal(frame.loc[SYMBOLS].to_numpy(np.float32), Z)
    outcomes = pd.read_csv(tmp_path / "bench" / "tasks" / "pairs" / "outcomes.csv")
    assert len(outcomes) == 700


def test_baselines_are_added_where_none_is_named():
    corpus = Path("corpus")
    assert specs_of(Tables(("a.csv",))) == ["a.csv", "random"]
    assert specs_of(Tables(("a.csv",), corpus=corpus)) == ["a.csv", "random", "expression", "svd", "ppmi"]
    assert specs_of(Tables(("a.csv", "chance=random"), corpus=corpus)) == ["a.csv", "chance=random"]
    assert specs_of(Tables(("a.csv",), corpus=corpus, baselines=False)) == ["a.csv"]
    assert specs_of(Tables()) == ["random"]
    with pytest.raises(InputError, match="no embeddings were given"):
        specs_of(Tables(baselines=False))


def test_bad_input_is_one_message_and_leaves_nothing(data, trained, tmp_path, capsys):
    out = tmp_path / "out"
    assert "no such file" in refused(capsys, *given(data, "gene", "labels.tsv", out)[:1], "--embeddings", "no.csv",
                                     "--labels", data / "labels.tsv", "--out", out).lower()  # fmt: skip
    assert "holds no head" in refused(capsys, "apply", data, "--out", tmp_path / "x.csv")
    assert ".parquet, .csv or .tsv" in refused(
        capsys, "apply", trained / "heads" / "model", "--out", tmp_path / "x.txt"
    )
    both = ["--genes", "SYM1", "--pairs", data / "pairs.csv", "--out", tmp_path / "x.csv"]
    assert "both given" in refused(capsys, "apply", trained / "heads" / "model", *both)
    said = refused(capsys, *given(data, "gene", "labels.tsv", trained), "--repeats", 2, "--folds", 3)
    assert "choose another --out" in said
    said = refused(capsys, *given(data, "interactions", "pairs.csv", out), "--split", "shipped")
    assert "ship no split" in said
    assert "nothing to write" in refused(capsys, "export", "--out", out)
    assert not out.exists()
    assert list(tmp_path.iterdir()) == []


def test_what_was_read_and_not_compared_is_said(data, tmp_path, capsys):
    """Every row read is compared or accounted for, and what is not a label of the file is named too."""
    frame = pd.read_csv(data / "pairs.csv").query("label == 1")
    more = pd.DataFrame({"gene1": ["SYM1", "SYM2"], "gene2": ["SYM1", "NOSUCH"], "label": 1})
    pd.concat([frame, more]).to_csv(tmp_path / "positives.csv", index=False)
    said = call(
        capsys, "interactions", "--embeddings", "random", "--genes", data / "genes.tsv", "--labels",
        tmp_path / "positives.csv", "--out", tmp_path / "out", "--repeats", 1, "--folds", 2, "--preset", "linear",
    )  # fmt: skip
    assert f"of {len(frame) + 2:,} rows read; 1 with unknown genes; 1 of a gene with itself" in said
    assert f"{len(frame):,} drawn as negatives" in said
    labels = pd.DataFrame({"gene": SYMBOLS, "score": [""] * 5 + VALUE[5:].tolist()})
    labels.to_csv(tmp_path / "gaps.csv", index=False)
    alone = ["gene", "--embeddings", "random", "--genes", data / "genes.tsv", "--labels", tmp_path / "gaps.csv"]
    said = call(capsys, *alone, "--out", tmp_path / "alone", "--repeats", 1, "--folds", 2)
    assert "of 120 rows read; 5 without a value" in said
    assert "random is" not in said  # there is nothing that it could be better than


def test_numbers_that_make_no_run_are_refused(data, tmp_path, capsys):
    run = given(data, "gene", "labels.tsv", tmp_path / "out")
    assert "0 repeats" in refused(capsys, *run, "--repeats", 0)
    assert "seed is -1" in refused(capsys, *run, "--seed", -1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", [*COMMANDS, *HEADS])
def test_each_command_says_what_it_does_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["finetune", name, "--help"])
    assert caught.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: expresser finetune {name} " in said
