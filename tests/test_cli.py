"""The command line: help everywhere, and for bad input one message, exit code 2 and nothing half-written."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from expresser import __version__, cli
from expresser.cli import commands, main
from expresser.corpus.build import build_corpus
from expresser.genes import GeneVocab

NAMES = [
    "completion",
    "corpus",
    "data",
    "demo",
    "doctor",
    "embed",
    "finetune",
    "genes",
    "impute",
    "pretrain",
    "push",
    "repeat",
    "report",
    "simulate",
    "translate",
]
# Sub-commands by command; none where a command has a single form.
VERBS = {
    "corpus": ["build", "append", "info", "verify", "split", "subset", "push", "pull"],
    "data": ["list", "info", "get", "check"],
    "genes": ["build", "export"],
    "simulate": ["cite", "multiome", "rna"],
    "finetune": [
        "interactions",
        "lof",
        "dosage",
        "gene",
        "apply",
        "export",
        "annotation",
        "annotate",
        "imputation",
    ],
    "translate": ["list", "fit", "predict", "embed", "evaluate", "openproblems"],
    "pretrain": ["demo", "small", "full", "paper", "paper_naive"],
}
EVERY = [(name,) for name in NAMES] + [(name, verb) for name, verbs in VERBS.items() for verb in verbs]


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refused(capsys: pytest.CaptureFixture[str], folder: Path, *argv: object) -> str:
    """Run bad input: exit code 2, one message, no traceback, no file touched. Returns the message."""
    before = tree(folder)
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("error: ") == 1
    assert "Traceback" not in said.err
    assert said.err.rstrip().count("\n") <= 12  # ten names may be listed, a page may not
    assert tree(folder) == before
    return said.err


def write(path: Path, x: np.ndarray, names: list[str] | None = None) -> Path:
    names = names or [f"ENSG{i:011d}" for i in range(x.shape[1])]
    obs = pd.DataFrame(index=[f"c{i}" for i in range(x.shape[0])])
    anndata.AnnData(sparse.csr_matrix(x.astype(np.float32)), obs=obs, var=pd.DataFrame(index=names)).write_h5ad(path)
    return path


def counts(n_cells: int = 30, n_genes: int = 40) -> np.ndarray:
    return np.random.default_rng(0).poisson(3, (n_cells, n_genes)).astype(np.float32)


# Help


def test_help_lists_every_command(capsys):
    for argv in ([], ["--help"], ["-h"]):
        main(argv)
        text = capsys.readouterr().out
        assert all(f"\n  {name} " in text for name in NAMES)
        assert "expresser demo" in text
    assert sorted(commands()) == NAMES
    main(["--version"])
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_has_help_with_an_example(capsys, here, words):
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out.replace("│", " ")
    calls = (f"expresser {words[0]} ", f"accelerate launch -m {words[0]} ")
    assert any(line.strip().removeprefix("Example: ").startswith(calls) for line in text.splitlines())
    for verb in VERBS.get(words[0], []) if len(words) == 1 else []:
        assert verb in text
    assert not list(here.iterdir())


def test_the_example_of_a_command_names_itself():
    for name, entry in commands().items():
        command = entry.load()
        assert command.name == name
        assert command.example.startswith(f"expresser {name}")
        assert command.summary.endswith(".")


@pytest.mark.parametrize(
    "argv", [["no-such-command"], ["corpus", "no-such-verb"], ["embed"], ["embed", "--no-such-option"]]
)
def test_what_is_not_understood_exits_with_2(capsys, here, argv):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err + said.out
    if len(argv) == 1 and argv != ["embed"]:
        assert said.err == f"error: no command 'no-such-command'; there are {', '.join(NAMES)}.\n"


def test_the_installed_command_is_this_one(here):
    script = Path(sys.executable).with_name("expresser")
    found = subprocess.run([script, "corpus", "info", "nowhere"], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stdout == ""
    assert found.stderr.startswith("error: nowhere")
    assert len(found.stderr.splitlines()) == 1


# Bad counts


def bad_counts() -> dict[str, tuple[np.ndarray, str]]:
    log, missing, negative = counts(), counts(), counts()
    log = np.log1p(1e4 * log / log.sum(1, keepdims=True))
    missing[3, 4] = np.nan
    negative[3, 4] = -1
    return {
        "log-normalised": (log, "raw counts"),
        "NaN": (missing, "nan|NaN|finite"),
        "negative": (negative, "-1"),
        "empty cells": (np.zeros((30, 40)), "cell|count"),
    }


@pytest.mark.parametrize("kind", bad_counts())
def test_what_is_no_count_never_becomes_a_corpus(capsys, here, kind):
    x, words = bad_counts()[kind]
    file = write(here / "bad.h5ad", x)
    message = refused(capsys, here, "corpus", "build", file, "--out", here / "corpus")
    assert "bad" in message
    assert any(word in message for word in words.split("|"))


@pytest.mark.parametrize("command", ["embed", "impute"])
@pytest.mark.parametrize("kind", ["log-normalised", "NaN", "negative"])
def test_what_is_no_count_is_never_embedded_or_imputed(capsys, here, tiny_run, tiny_data, kind, command):
    x, words = bad_counts()[kind]
    file = write(here / "bad.h5ad", x, tiny_data.var_names[:40].tolist())
    message = refused(capsys, here, command, tiny_run, file, "--out", here / "out.h5ad")
    assert any(word in message for word in words.split("|"))


@pytest.mark.parametrize("command", ["embed", "impute"])
def test_empty_cells_alone_are_refused(capsys, here, tiny_run, tiny_data, command):
    file = write(here / "empty.h5ad", np.zeros((5, 40)), tiny_data.var_names[:40].tolist())
    assert "empty" in refused(capsys, here, command, tiny_run, file, "--out", here / "out.h5ad")


@pytest.mark.parametrize("names", ["mouse", "numbers"])
def test_a_file_without_known_genes_is_refused(capsys, here, tiny_run, tiny_corpus, names):
    genes = [f"Actb{i}" if names == "mouse" else str(i) for i in range(40)]
    file = write(here / "strange.h5ad", counts(), genes)
    vocab = tiny_corpus / "genes.tsv"
    build = refused(capsys, here, "corpus", "build", file, "--genes", vocab, "--out", here / "corpus")
    assert "strange" in build
    assert genes[0] in build
    for command in ("embed", "impute"):
        message = refused(capsys, here, command, tiny_run, file, "--out", here / "out.h5ad")
        assert "strange.h5ad" in message
        assert genes[0][:4] in message


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_file_is_refused(capsys, here, tiny_run, share):
    file = write(here / "cut.h5ad", counts(200, 40))
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    assert "cut.h5ad" in refused(capsys, here, "corpus", "build", file, "--out", here / "corpus")
    assert "cut.h5ad" in refused(capsys, here, "embed", tiny_run, file, "--out", here / "out.h5ad")


@pytest.mark.parametrize("name", ["nothing.h5ad", "nothing.xyz", "nothing"])
def test_a_missing_file_is_refused(capsys, here, tiny_run, name):
    for words in (["corpus", "build", name], ["embed", tiny_run, name], ["impute", tiny_run, name]):
        assert name in refused(capsys, here, *words, "--out", here / ("corpus" if words[0] == "corpus" else "out.h5ad"))


# Corpora


def test_the_folder_of_another_corpus_is_left_alone(capsys, here):
    build_corpus([write(here / "a.h5ad", counts())], here / "corpus")
    other = write(here / "b.h5ad", counts(25, 40))
    assert "corpus" in refused(capsys, here, "corpus", "build", other, "--out", here / "corpus")
    main(["corpus", "verify", str(here / "corpus")])
    assert "whole" in capsys.readouterr().out


def test_a_flipped_byte_is_found(capsys, here):
    corpus = build_corpus([write(here / "a.h5ad", counts())], here / "corpus").path
    shard = next(corpus.glob("cells-*.arrow"))
    damaged = bytearray(shard.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    shard.write_bytes(damaged)
    assert shard.name in refused(capsys, here, "corpus", "verify", corpus)


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_no_corpus_is_said_to_be_none(capsys, here, verb):
    (here / "empty").mkdir()
    for folder in ("nowhere", "empty"):
        assert folder in refused(capsys, here, "corpus", verb, folder)


def test_a_vocabulary_that_is_none_is_refused(capsys, here):
    file = write(here / "a.h5ad", counts())
    (here / "genes.tsv").write_text("what\tis\nthis\t?\n")
    for name in ("genes.tsv", "missing.tsv"):
        assert name in refused(capsys, here, "corpus", "build", file, "--genes", name, "--out", here / "corpus")
    refused(capsys, here, "genes", "build", "--out", "out.tsv")
    for option in ("--hgnc", "--gtf"):
        assert "missing" in refused(capsys, here, "genes", "build", option, "missing.txt", "--out", "out.tsv")


# Models


def test_a_missing_or_foreign_model_is_refused(capsys, here, tiny_run):
    file = write(here / "a.h5ad", counts())
    (here / "empty").mkdir()
    shutil.copytree(tiny_run / "model", here / "foreign")
    ids = GeneVocab.load(here / "foreign" / "genes.tsv").ids.tolist()
    GeneVocab.from_names(ids[::-1]).save(here / "foreign" / "genes.tsv")
    shutil.copytree(tiny_run / "model", here / "cut")
    weights = here / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    for model, words in (
        ("./nowhere", "no such folder"),
        ("empty", "not a model folder"),
        ("foreign", "not the vocabulary"),
        ("cut", "cut short or altered"),
    ):
        assert words in refused(capsys, here, "embed", model, file, "--out", "out.h5ad")
        assert words in refused(capsys, here, "impute", model, file, "--out", "out.h5ad")
        assert words in refused(capsys, here, "genes", "export", model, "--out", "genes.parquet")


def test_a_result_with_an_impossible_name_is_refused_at_once(capsys, here, tiny_run):
    # Before anything is read: neither the model nor the input of this test exists.
    assert "h5ad" in refused(capsys, here, "embed", "./nowhere", "nothing.h5ad", "--out", "out.csv")
    assert "h5ad" in refused(capsys, here, "impute", "./nowhere", "nothing.h5ad", "--out", "out.csv")
    assert "parquet" in refused(capsys, here, "genes", "export", tiny_run, "--out", "genes.csv")


def test_unknown_genes_are_refused(capsys, here, tiny_run, tiny_data):
    tiny_data[:5].write_h5ad(here / "a.h5ad")
    arguments = (tiny_run, "a.h5ad", "--out", "out.h5ad")
    assert "NOSUCH" in refused(capsys, here, "embed", *arguments, "--contextual", "NOSUCH")
    assert "NOSUCH" in refused(capsys, here, "impute", *arguments, "--genes", "NOSUCH")


# Pretraining


def test_pretraining_that_cannot_begin_is_refused(capsys, here, tiny_corpus, tiny_run):
    run = ("pretrain", "small", "--corpus", tiny_corpus)
    assert "--out" in refused(capsys, here, *run)
    assert "nowhere" in refused(capsys, here, "pretrain", "small", "--corpus", "nowhere", "--out", "run")
    assert "tissue" in refused(capsys, here, *run, "--out", "run", "--data.valid-by", "tissue")
    assert "n_heads" in refused(capsys, here, *run, "--out", "run", "--model.n-heads", "3")
    before = tree(tiny_run)
    assert "holds a run already" in refused(capsys, here, *run, "--out", tiny_run)
    assert "another configuration" in refused(capsys, here, *run, "--out", tiny_run, "--resume")
    assert tree(tiny_run) == before


# The whole way


def test_from_counts_to_results_by_commands_alone(capsys, here):
    def expresser(line: str) -> None:
        main(shlex.split(line))

    expresser("simulate rna --cells 60 --genes 50 --types 2 --modules 2 --median-depth 300 --out sim")
    expresser("corpus build sim/rna.h5ad --obs cell_type --out corpus")
    expresser("corpus verify corpus")
    expresser("corpus info corpus --json")
    assert '"cells": 60' in capsys.readouterr().out
    tiny = "--model.d-model 16 --model.n-layers 1 --data.max-steps 3 --data.valid-cells 8 --precision no"
    expresser(f"pretrain small --corpus corpus --out run {tiny}")
    expresser("genes export run --out genes.parquet")
    expresser("genes export run --out genes.vec")
    expresser("embed run sim/rna.h5ad --out embedded.h5ad")
    expresser("impute run sim/rna.h5ad --genes SIM0003 SIM0007 --out imputed.h5ad")
    embedded, imputed = anndata.read_h5ad("embedded.h5ad"), anndata.read_h5ad("imputed.h5ad")
    assert embedded.obsm["X_expresser"].shape == (60, 16)
    filled = np.isfinite(imputed.layers["expresser"]).all(0)
    assert imputed.var["symbol"][filled].tolist() == ["SIM0003", "SIM0007"]
    assert pd.read_parquet("genes.parquet").shape == (50, 17)
    assert Path("genes.vec").read_text().startswith("50 16\n")
    assert "report" in capsys.readouterr().out


def test_what_the_system_refuses_is_one_message(capsys, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(argv: object) -> None:
        raise PermissionError(13, "Permission denied", "/data/new.h5ad")

    monkeypatch.setattr(cli, "commands", lambda: {"demo": Mock(load=lambda: Mock(run=refuse))})
    assert refused(capsys, here, "demo") == "error: /data/new.h5ad: permission denied. EXPRESSER_DEBUG=1 shows where.\n"
    monkeypatch.setenv("EXPRESSER_DEBUG", "1")
    with pytest.raises(PermissionError):
        main(["demo"])
