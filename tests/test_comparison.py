"""Runs side by side: the numbers of their files, seeds put together, only what differs, and no silent comparison of unlike things."""

import base64
import io
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from expresser.cli import main
from expresser.commands_report import REPORT
from expresser.comparison.groups import grouped
from expresser.comparison.page import compare
from expresser.comparison.reading import read_runs
from expresser.errors import InputError
from expresser.report import write_report
from tests.test_finetune_cli import data as gene_data  # noqa: F401
from tests.test_finetune_cli import given as gene_task
from tests.test_translate_cli import QUICK, files, paired  # noqa: F401

pytestmark = pytest.mark.usefixtures("undrawn")

ADDITIVE = "gene + cell additive"


def written(path: Path, **values: Any) -> None:
    """A JSON file with these values in place of its own."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(before | values))


def table(page: Path, title: str) -> pd.DataFrame:
    """The numbers behind a figure or table of the page, as its link saves them."""
    text = page.read_text()
    card = text[text.index(f"</span>{title}</p>") :]
    found = re.search(r'href="data:text/csv[^,]*,([A-Za-z0-9+/=]+)"', card)
    assert found
    return pd.read_csv(io.BytesIO(base64.b64decode(found[1])))


def rows(numbers: dict[str, Any], title: str, group: int = 0) -> dict[str, dict[str, Any]]:
    """Spreads of a table of comparison.json by the row's label."""
    return {row["label"]: row["values"] for row in numbers["groups"][group]["tables"][title]["rows"]}


# Pretraining


@pytest.fixture
def pretrained(tiny_run: Path, tmp_path: Path) -> Any:
    """Makes folders of runs like `tiny_run` with another seed, score, and whatever else is said."""

    def make(name: str, seed: int, mae: float, additive: float = 0.5, lr: float = 5e-3, **record: Any) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        for file in ("run.json", "metrics.json", "log.jsonl"):
            shutil.copy(tiny_run / file, folder)
        config = json.loads((folder / "run.json").read_text())["config"]
        config |= {"seed": seed, "optim": config["optim"] | {"lr": lr}}
        config |= record.pop("config", {})
        written(folder / "run.json", seed=seed, config=config, **record)
        score = json.loads((folder / "metrics.json").read_text())["valid"]
        valid, base = score | {"mae": mae, "mse": mae**2}, score | {"mae": additive, "n": 100 + seed}
        written(folder / "metrics.json", valid=valid, additive=base)
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        for line in log:
            line |= {"additive": base} if "additive" in line else {}
            line |= {"valid": line["valid"] | {"mae": mae}} if "valid" in line else {}
        (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        return folder

    return make


def test_a_pretraining_run_alone_gets_the_very_page_it_wrote_itself(tiny_run, tmp_path):
    out = tmp_path / "one.html"
    compare([tiny_run], out)
    assert out.read_bytes() == (tiny_run / "report.html").read_bytes()
    assert json.loads(out.with_suffix(".json").read_text())["groups"][0]["runs"]["run"]["finished"]


def test_seeds_are_one_configuration_whose_median_and_range_are_those_of_the_files(pretrained, drawn, tmp_path):
    slow = {1: 0.40, 2: 0.30, 3: 0.37}
    fast = {1: 0.31, 2: 0.28, 3: 0.33}
    folders = [pretrained(f"slow-seed{s}", s, mae) for s, mae in slow.items()]
    folders += [pretrained(f"fast-{s}", s, mae, lr=2e-2) for s, mae in fast.items()]
    out = tmp_path / "page.html"
    numbers, _ = compare(folders, out)
    assert json.loads(out.with_suffix(".json").read_text()) == json.loads(json.dumps(numbers))
    found = rows(numbers, "Held-out cells")
    assert list(found) == ["slow", "fast", ADDITIVE]
    assert found["slow"]["mae"] == {"median": 0.37, "low": 0.30, "high": 0.40, "n": 3}
    assert found["fast"]["mae"] == {"median": 0.31, "low": 0.28, "high": 0.33, "n": 3}
    assert numbers["groups"][0]["settings_that_differ"] == {"optim.lr": {"slow": "0.005", "fast": "0.02"}}
    assert numbers["warnings"] == []

    shown = table(out, "Held-out cells").set_index("method")
    assert shown.loc["fast", ["runs", "MAE", "MAE: range"]].tolist() == [3, 0.31, "0.280 to 0.330"]
    differ = table(out, "Settings that differ").set_index("configuration")
    assert differ["optim.lr"].to_dict() == {"slow": 0.005, "fast": 0.02}
    assert differ.columns.tolist() == ["optim.lr"]
    # On the same held-out cells the better configuration is better by 0.09, 0.02 and 0.04.
    against = table(out, "Held-out cells: fast against the others, seed by seed").set_index("less").loc["slow"]
    assert against["pairs"] == 3
    assert against["MAE: difference"] == pytest.approx(-0.04)
    assert against["MAE: better in"] == "3 of 3"
    assert against["MAE: range"] == "−0.0900 to −0.0200"
    curve = table(out, "Validation MAE, by step")
    assert len(curve) == 6 * 4
    assert curve.groupby("run")["MAE"].first().to_dict() == {
        f.name: m for f, m in zip(folders, [*slow.values(), *fast.values()])
    }

    svg = out.read_text()[out.read_text().index("</span>Validation MAE, by step</p>") :].partition("</svg>")[0]
    assert {"slow", "fast", "step", "MAE"} <= set(re.findall(r">([\w +]+)</text>", svg))

    random.Random(0).shuffle(folders)
    again, _ = compare(folders, tmp_path / "again.html")
    assert rows(again, "Held-out cells") == found


def test_a_baseline_stands_once_and_twice_where_it_says_something_else(pretrained, tmp_path):
    a, b = pretrained("first", 0, 0.4), pretrained("second", 0, 0.3, lr=1e-3)
    numbers, _ = compare([a, b], tmp_path / "page.html")
    assert list(rows(numbers, "Held-out cells")) == ["first", "second", ADDITIVE]
    c = pretrained("third", 0, 0.3, lr=1e-4, additive=0.51)
    numbers, _ = compare([a, b, c], tmp_path / "page.html")
    found = rows(numbers, "Held-out cells")
    assert found[f"{ADDITIVE}, of first, second"]["mae"]["median"] == 0.5
    assert found[f"{ADDITIVE}, of third"]["mae"]["median"] == 0.51
    (warning,) = numbers["warnings"]
    assert ADDITIVE in warning
    assert "stand more than once" in warning


def test_other_data_go_into_another_table_and_other_held_out_cells_are_told(pretrained, tmp_path):
    a, b = pretrained("a", 0, 0.4), pretrained("b", 0, 0.3, lr=1e-3, corpus_id="f" * 64)
    numbers, _ = compare([a, b], tmp_path / "page.html")
    assert [list(group["runs"]) for group in numbers["groups"]] == [["a"], ["b"]]
    (warning,) = numbers["warnings"]
    assert "different data" in warning
    assert "corpus ffffffff: b" in warning
    assert warning in (tmp_path / "page.html").read_text()

    c = pretrained("c", 7, 0.3, lr=1e-3)  # another seed holds other cells out
    numbers, _ = compare([a, c], tmp_path / "page.html")
    (warning,) = numbers["warnings"]
    assert "not of the same cells" in warning
    assert "Seed that held cells out: 0 (a); 7 (c)" in warning
    assert f"{ADDITIVE}, of c" in rows(numbers, "Held-out cells")


def test_what_changes_no_result_makes_no_configuration_and_one_seed_twice_is_told(pretrained, tmp_path):
    a, b = pretrained("run1", 0, 0.4), pretrained("run2", 0, 0.3, config={"log_every": 7, "tracker": "tensorboard"})
    numbers, _ = compare([a, b, a], tmp_path / "page.html")
    (configuration,) = numbers["groups"][0]["configurations"].items()
    assert configuration[0] == "run"
    assert configuration[1]["seeds"] == [0, 0]
    assert any("seed 0 more than once" in remark for remark in numbers["remarks"])


def test_an_unfinished_run_speaks_by_its_log(pretrained, tmp_path):
    a, b = pretrained("done", 0, 0.4), pretrained("going", 0, 0.3, lr=1e-3)
    (b / "metrics.json").unlink()
    lines = (b / "log.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= 9]
    (b / "log.jsonl").write_text("".join(kept) + lines[-1][:40])  # it was killed while it wrote
    numbers, _ = compare([a, b], tmp_path / "page.html")
    run = numbers["groups"][0]["runs"]["going"]
    assert not run["finished"]
    assert run["facts"]["steps"] == 9
    assert "going is not finished: its log ends at step 9." in numbers["remarks"]
    assert table(tmp_path / "page.html", "Validation MAE, by step").query("run == 'going'")["step"].tolist() == [
        0,
        4,
        8,
    ]

    compare([b], tmp_path / "alone.html")  # its own page, so far
    page = (tmp_path / "alone.html").read_text()
    assert "not finished at step 9" in page
    (b / "log.jsonl").write_text("")
    with pytest.raises(InputError, match=r"there is no line in log\.jsonl yet"):
        compare([b], tmp_path / "alone.html")


# Folders that cannot be compared


def test_what_cannot_be_compared_is_left_out_and_told_unless_nothing_is_left(pretrained, tiny_run, tmp_path):
    good = pretrained("good", 0, 0.4)
    made = {name: tmp_path / name for name in ("empty", "damaged", "perturb", "waiting", "foreign")}
    for folder in made.values():
        folder.mkdir()
    (made["damaged"] / "metrics.json").write_text('{"methods": ')
    written(made["perturb"] / "metrics.json", perturbation={}, source="rna", to="atac")
    (made["waiting"] / "state").mkdir()
    written(made["foreign"] / "metrics.json", accuracy=1.0)
    file = tmp_path / "cells.h5ad"
    file.touch()
    expected = {
        "empty": "neither run.json nor metrics.json",
        "damaged": "not readable as JSON",
        "perturb": "is a perturbation",
        "waiting": "is not finished",
        "foreign": "not that of a run known here",
    }
    bad = {**{str(made[name]): why for name, why in expected.items()}, str(file): "is a file"}
    bad |= {str(tiny_run / "model"): "is a model by itself", str(good.parent): "there are runs in it (good)"}
    numbers, _ = compare([*bad, good], tmp_path / "page.html")
    assert numbers["left_out"].keys() == bad.keys()
    for path, why in bad.items():
        assert why in numbers["left_out"][path]
        with pytest.raises(InputError, match=f"^nothing to report on. {re.escape(path)}: .*{re.escape(why)}"):
            compare([path], tmp_path / "page.html")
    with pytest.raises(InputError, match="there is no such folder"):
        compare([good, tmp_path / "typo"], tmp_path / "page.html")


def test_no_other_file_is_overwritten(pretrained, tmp_path):
    a, b = pretrained("a", 0, 0.4), pretrained("b", 0, 0.3, lr=1e-3)
    before = (a / "metrics.json").read_bytes()
    with pytest.raises(InputError, match="but is another file"):
        compare([a, b], a / "metrics.html")
    with pytest.raises(InputError, match="is the page of the run in"):
        compare([a, b], a / "report.html")
    with pytest.raises(InputError, match=r"name it \*\.html"):
        compare([a, b], tmp_path)
    assert (a / "metrics.json").read_bytes() == before
    assert sorted(path.name for path in a.iterdir()) == ["log.jsonl", "metrics.json", "run.json"]
    for _ in range(2):  # its own file it may write again
        compare([a, b], tmp_path / "page.html")
    foreign = tmp_path / "mine.html"
    foreign.write_text("<p>kept</p>")
    with pytest.raises(InputError, match="is no page of expresser"):
        compare([a, b], foreign)
    assert foreign.read_text() == "<p>kept</p>"
    (b / "report.html").write_bytes((tmp_path / "page.html").read_bytes())
    with pytest.raises(InputError, match="is the page of the run in"):  # one run's page is not another's
        compare([a], b / "report.html")


def test_runs_without_a_seed_are_never_taken_for_one_and_damaged_ones_are_left_out(tmp_path):
    for name, mae in (("a", 0.1), ("b", 0.3)):
        methods = {"expresser": {"mae": mae, "pearson": 0.5}, "knn": {"mae": 0.35, "pearson": 0.5}}
        (tmp_path / name / "imp").mkdir(parents=True)
        written(
            tmp_path / name / "imp" / "metrics.json",
            protocol="dropout", methods=methods, drops={"0.1": {"methods": methods}}, drop=0.1, seeds=2, n_cells=9, n_genes=5,
            n_entries=40, model="runs/small", reference=None, vocab_sha256="v" * 64,
        )  # fmt: skip
    (tmp_path / "cut").mkdir()
    written(tmp_path / "cut" / "metrics.json", protocol="dropout", methods={}, drops={})
    numbers, _ = compare([tmp_path / "a" / "imp", tmp_path / "b" / "imp", tmp_path / "cut"], tmp_path / "page.html")
    found = {label: of["mae"]["median"] for label, of in rows(numbers, "10% of the counts hidden").items()}
    assert found == {"a/imp": 0.1, "b/imp": 0.3, "knn": 0.35}
    assert "not as a run of this version leaves them" in str(numbers["left_out"])


# Translators and embedders: folders as the commands write them, with known numbers

FILES = {"/data/rna.h5ad": "a" * 64, "/data/atac.h5ad": "b" * 64, "/data/more.h5ad": "c" * 64}


def fit_folder(
    folder: Path, system: str, *, seed: int, auroc: float, knn: float = 0.6, test: list[str] | None = None, **more: Any
) -> Path:
    """A judged fit of a paired translator."""
    folder.mkdir(parents=True)
    read = {"rna": "/data/rna.h5ad", "atac": "/data/atac.h5ad"} | more.pop("read", {})
    config = {"latent": 16, "rna": {"min_genes": 0}} | more.pop("config", {})
    names = [name for of in read.values() for name in (of if isinstance(of, list) else [of])]
    hashes = {name: FILES[name] for name in names} | more.pop("hashes", {})
    written(
        folder / "run.json",
        system=system, study="e" * 64, seed=seed, config=config, preset=None, genome=None, precision="no",
        split=f"random, seed {seed}", features={"rna": 50, "atac": 80}, cells={"train": 90, "valid": 5, "test": 2},
        origin={"read": read, "sha256": hashes},
        provenance={"command": f"expresser translate fit {system}", "time_utc": f"2026-01-0{seed + 1}T00:00:00+00:00"},
    )  # fmt: skip
    written(folder / "fit.json", system=system)
    cells = ["c1\ttest", "c2\ttest"] if test is None else [f"{name}\ttest" for name in test]
    (folder / "split.tsv").write_text("\n".join(["cell\tpart", "c0\ttrain", *cells]) + "\n")
    log = [
        {
            "phase": "fit",
            "epoch": i,
            "epochs": i + 1,
            "train": {"loss": 9.0 - i},
            "valid": {"loss": 5.0 - i},
            "seconds": 30.0,
        }
        for i in range(4)
    ]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    evaluation(folder, system, auroc, knn, **more)
    return folder


def evaluation(folder: Path, system: str, auroc: float, knn: float = 0.6, **more: Any) -> None:
    def to_atac(value: float) -> dict[str, Any]:
        return {"rna_to_atac": {"auroc_peak": value, "ece": None, "n_peaks": 80, "n_cells": 2, "seconds": 0.1}}

    written(
        folder / "metrics.json",
        methods={system: to_atac(auroc), "knn": to_atac(knn), "oracle": to_atac(0.9)},
        directions=["rna_to_atac"], baselines=["knn"], system=system, cells={"test": 2}, in_training=0,
        split="random", **more,
    )  # fmt: skip


def test_systems_stand_beside_baselines_and_share_only_settings_that_both_have(tmp_path):
    a = fit_folder(tmp_path / "babel", "babel", seed=0, auroc=0.7)
    b = fit_folder(
        tmp_path / "scmog", "scmog", seed=0, auroc=0.65, config={"latent": 8, "critic": 3}, test=["c2", "c1"]
    )
    out = tmp_path / "page.html"
    numbers, _ = compare([a, b], out)
    found = rows(numbers, "RNA to ATAC")
    assert {label: of["auroc_peak"]["median"] for label, of in found.items()} == {
        "babel": 0.7, "scmog": 0.65, "knn": 0.6, "oracle": 0.9,
    }  # fmt: skip
    assert numbers["groups"][0]["tables"]["RNA to ATAC"]["scores"] == ["auroc_peak"]  # no column of nothing
    assert numbers["groups"][0]["settings_that_differ"].keys() == {"system", "latent"}
    assert numbers["warnings"] == []  # the same test cells, in whatever order
    assert "best baseline, knn" in out.read_text()  # the simulation's truth is none
    losses = table(out, "babel, phase fit: validation loss")
    assert losses["validation loss"].tolist() == [5, 4, 3, 2]
    assert table(out, "Cost and size").set_index("configuration").loc["scmog", "minutes"] == 2


def test_other_test_cells_of_the_same_files_are_told(tmp_path):
    a = fit_folder(tmp_path / "a", "babel", seed=0, auroc=0.7)
    b = fit_folder(tmp_path / "b", "babel", seed=0, auroc=0.7, config={"latent": 8}, test=["c1", "c9"])
    (warning,) = compare([a, b], tmp_path / "page.html")[0]["warnings"]
    assert "their names: " in warning.lower()
    c = fit_folder(tmp_path / "c", "babel", seed=0, auroc=0.7, hashes={"/data/rna.h5ad": "d" * 64})
    numbers, _ = compare([a, c], tmp_path / "page.html")
    assert len(numbers["groups"]) == 2
    assert "different data" in numbers["warnings"][0]


def test_more_training_cells_are_a_setting_and_seeds_of_the_split_are_not(tmp_path):
    a = [fit_folder(tmp_path / f"plain-{s}", "polarbear", seed=s, auroc=0.6 + s / 10) for s in range(2)]
    b = fit_folder(tmp_path / "more", "polarbear", seed=0, auroc=0.8, read={"rna_only": ["/data/more.h5ad"]})
    numbers, _ = compare([*a, b], tmp_path / "page.html")
    (group,) = numbers["groups"]
    assert list(group["configurations"]) == ["plain", "more"]
    assert group["settings_that_differ"] == {"rna_only": {"plain": None, "more": "c" * 12}}


def test_cells_that_trained_the_model_and_a_search_are_told(tmp_path):
    a = fit_folder(tmp_path / "a", "babel", seed=0, auroc=0.7, trials=[{}, {}, {}])
    written(a / "metrics.json", in_training=1)
    remarks = compare([a], tmp_path / "page.html")[0]["remarks"]
    assert any("fitted to 1 of its 2 test cells" in line for line in remarks)
    assert any("best of 3 trials" in line for line in remarks)


def test_an_evaluation_is_known_by_its_page_and_its_model_by_when_it_was_fitted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit = fit_folder(tmp_path / "fit", "babel", seed=1, auroc=0.7)
    run = json.loads((fit / "run.json").read_text())
    for name, began in (("later", run["provenance"]["time_utc"]), ("stranger", "2020-01-01T00:00:00+00:00")):
        folder = tmp_path / name
        folder.mkdir()
        evaluation(folder, "babel", 0.62, model="fit")
        origin = {"data": run["origin"], "trained": {"time_utc": began, "seed": 1}}
        write_report(folder / "report.html", title="x", summary=[], sections=[], provenance=origin)
    numbers, _ = compare([fit, tmp_path / "later", tmp_path / "stranger"], tmp_path / "page.html")
    (group,) = numbers["groups"]  # on the same data
    assert group["configurations"]["later"]["settings"]["latent"] == 16
    assert group["configurations"]["later"]["seeds"] == [1]
    assert group["configurations"]["stranger"]["settings"] == {"model": "fit", "judged by": "translate evaluate"}
    (tmp_path / "later" / "report.html").unlink()
    numbers, _ = compare([fit, tmp_path / "later"], tmp_path / "page.html")
    assert any("later does not say on which data" in line for line in numbers["warnings"])


def test_embedders_are_a_section_of_their_own(tmp_path):
    a = fit_folder(tmp_path / "babel", "babel", seed=0, auroc=0.7)
    b = fit_folder(tmp_path / "sailer", "sailer", seed=0, auroc=0.7)
    (b / "metrics.json").unlink()
    scores = {"sailer": {"ari": 0.8, "mi_depth": 0.01}, "lsi": {"ari": 0.7, "mi_depth": 0.2}}
    written(
        b / "metrics.json", embeddings=scores, system="sailer", baselines=["lsi"], cells={"judged": 2}, labels="type"
    )
    numbers, _ = compare([a, b], tmp_path / "page.html")
    assert [group["title"] for group in numbers["groups"]] == ["Translation", "Embedding"]
    assert rows(numbers, "Cell types and confounders", 1)["lsi"]["mi_depth"]["median"] == 0.2
    leading = table(tmp_path / "page.html", "Leading scores").set_index("of")
    assert leading.loc["Embedding", ["score", "best run", "run: median", "baseline: median"]].tolist() == [
        "ARI",
        "sailer",
        0.8,
        0.7,
    ]


# Tasks


def test_annotation_and_imputation_know_which_rows_are_theirs(tmp_path):
    for name, f1 in (("small", 0.8), ("large", 0.9)):
        folder = tmp_path / name
        folder.mkdir()
        written(
            folder / "metrics.json",
            task="annotation", label="cell_type", n_cells=50, n_types=3, split="random", folds=3, repeats=1, seed=0,
            embeddings={
                name: {"kind": "model", "macro_f1": f1}, "pca": {"kind": "baseline", "macro_f1": 0.7},
                "random": {"kind": "control", "macro_f1": 0.2},
            },
        )  # fmt: skip
        written(
            folder / "run.json",
            cells_sha256="a" * 64,
            config={"folds": 3, "seed": 0},
            weights_sha256={name: name[0] * 64},
        )
    numbers, _ = compare([tmp_path / "small", tmp_path / "large"], tmp_path / "page.html")
    found = {label: of["macro_f1"]["median"] for label, of in rows(numbers, "Scores").items()}
    assert found == {"small": 0.8, "large": 0.9, "pca": 0.7, "random": 0.2}
    assert numbers["warnings"] == []

    imputed = []
    for name, cells in (("one", "a"), ("two", "a"), ("three", "b")):
        folder = tmp_path / name
        folder.mkdir()
        methods = {"expresser": {"mae": 0.3, "pearson": None}, "knn": {"mae": 0.35, "pearson": 0.5}}
        written(
            folder / "metrics.json",
            protocol="dropout", methods=methods, drops={"0.1": {"methods": methods}}, drop=0.1, seeds=2, n_cells=9, n_genes=5,
            n_entries=40, model=name, reference=None, vocab_sha256="v" * 64,
        )  # fmt: skip
        write_report(folder / "report.html", title="x", summary=[], sections=[], provenance={"data_sha256": cells * 64})
        imputed.append(folder)
    numbers, _ = compare(imputed, tmp_path / "page.html")
    assert [list(group["runs"]) for group in numbers["groups"]] == [["one", "two"], ["three"]]
    assert list(rows(numbers, "10% of the counts hidden")) == ["one", "two", "knn"]


def test_names_are_told_apart_by_the_folders_above(pretrained, tmp_path):
    for parent in ("x", "y"):
        shutil.copytree(pretrained(f"{parent}0", 0, 0.4), tmp_path / parent / "run")
    runs, left = read_runs([tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "y" / ".." / "y" / "run"])
    assert [run.name for run in runs] == ["x/run", "y/run"]
    assert left == {}
    (configuration,) = grouped(runs)[0].configurations
    assert configuration.name == "x/run and 1 more"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("babel-0", "babel-1"), "babel"),
        (("run-10", "run-11"), "run"),
        (("small.seed1", "small.seed2"), "small"),
        (("a1", "a2"), "a1 and 1 more"),
    ],
)
def test_a_configuration_is_called_by_what_the_names_of_its_runs_share(pretrained, names, expected):
    runs, _ = read_runs([pretrained(name, seed, 0.4) for seed, name in enumerate(names)])
    (configuration,) = grouped(runs)[0].configurations
    assert configuration.name == expected


# The command


def test_the_command_prints_medians_and_warnings_and_where_the_page_is(pretrained, tmp_path, capsys):
    a, b = pretrained("a", 0, 0.4), pretrained("b", 0, 0.3, corpus_id="f" * 64)
    out = tmp_path / "page.html"
    REPORT.run([str(a), str(b), "--out", str(out)])
    said = capsys.readouterr()
    assert re.search(r"^a +0\.400", said.out, re.MULTILINE)
    assert said.out.endswith(f"report: {out}\nnumbers: {out.with_suffix('.json')}\n")
    assert said.err.startswith("warning: Pretraining: these runs are on different data")
    with pytest.raises(InputError, match="name the folders"):
        REPORT.run(["--out", str(out)])
    for text in (REPORT.example, "report"):
        with pytest.raises(SystemExit) as caught:
            REPORT.run(["--help"])
        assert caught.value.code == 0
        assert text in capsys.readouterr().out


@pytest.mark.slow  # fits, and what judges them
def test_what_the_commands_write_is_what_the_report_reads(files, gene_data, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    main(["translate", "fit", "babel", *paired(files), *QUICK, "--no-maps", "--out", "runs/babel"])
    main(
        [
            "translate",
            "evaluate",
            "runs/babel",
            *paired(files),
            "--split-of",
            "runs/babel",
            "--no-maps",
            "--out",
            "runs/again",
        ]
    )
    main(list(map(str, ["finetune", *gene_task(gene_data, "gene", "labels.tsv", Path("runs/gene")), "--folds", 3])))
    numbers, _ = compare(sorted(Path("runs").iterdir()), Path("page.html"))
    assert numbers["left_out"] == {}
    found = {group["section"].partition(" ")[0]: group for group in numbers["groups"]}
    assert list(found) == ["Translation", "Gene"]
    translation = found["Translation"]  # the evaluation is of the files that the fit read
    assert translation["configurations"]["babel"]["seeds"] == [0]
    assert translation["configurations"]["again"]["settings"]["judged by"] == "translate evaluate"
    for name in ("babel", "again", "gene"):
        metrics = json.loads(Path("runs", name, "metrics.json").read_text())
        group = found["Gene" if name == "gene" else "Translation"]
        for title, scores in group["runs"][name]["scores"].items():
            own = next(iter(scores["own"].values()))
            if name == "gene":
                assert own == {key: metrics["embeddings"]["model"][key] for key in own}
            elif title == "RNA to ATAC":
                assert own == {key: metrics["methods"]["babel"]["rna_to_atac"][key] for key in own}
    scored = [translation["runs"][name]["scores"]["RNA to ATAC"]["own"]["babel"] for name in ("babel", "again")]
    np.testing.assert_allclose(*(list(one.values()) for one in scored), rtol=1e-5)
