"""Embeddings at the command line: fitted to ATAC alone, judged on all cells beside baselines, applied, and refused in words."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from expresser.cli import main
from expresser.errors import InputError
from expresser.simulate.scan_designs import simulate_scan_atac
from tests.test_cli import refused, tree
from tests.translate_toys import toy_anndata
from translate import cli_fit, elbow, embedding_figures, embedding_judging, embedding_scores, fitting
from translate.data import read_study
from translate.embedding_cells import judged_cells
from translate.embedding_imputation import bulk_dice
from translate.embedding_verdicts import confounder_sentences, verdict
from translate.splits import split_all
from translate.trainer import Trainer
from translate.translator import Translator

SMALL = "--config.atac.min-share 0 --config.hidden 16 8 --config.latent 4"
QUICK = f"{SMALL} --config.warmup 1 --config.epochs 2 --config.batch-size 32".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """atac.h5ad: sim3 with 160 cells of 400 regions; three cells have no label."""
    folder = tmp_path_factory.mktemp("files")
    made = simulate_scan_atac("sim3", n_cells=160, n_regions=400, sigma=0.3, depth=0.01, flips=0.4, seed=1)
    made.obs["cell_type"] = made.obs["cell_type"].astype(str)
    made.obs["type"] = made.obs["cell_type"]
    made.obs.iloc[:3, made.obs.columns.get_loc("type")] = ["nan", "", None]
    made.obs["one"], made.obs["half"] = "same", ["x"] * 80 + [None] * 80
    made.write_h5ad(folder / "atac.h5ad")
    return folder


def run(*argv: object) -> None:
    main(["translate", *map(str, argv)])


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Few subsamples, and maps that are the first two dimensions: a UMAP takes seconds, and has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedding_scores, "DRAWS", 3)
        patch.setattr(embedding_figures, "umap", lambda points, seed: points[:, :2])
        yield


@pytest.fixture(scope="module")
def fitted(quick: None, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sailer from the command line, judged, with maps."""
    out = tmp_path_factory.mktemp("fits") / "sailer"
    run("fit", "sailer", "--atac", files / "atac.h5ad", "--batch", "batch", "--labels", "type", "--out", out, *QUICK)
    return out


def timeless(metrics: dict[str, Any]) -> dict[str, Any]:
    """Scores by method, without the seconds they took."""
    return {m: {k: v for k, v in of.items() if k != "seconds"} for m, of in metrics["embeddings"].items()}


# Fit


def test_atac_alone_is_fitted_and_judged_on_all_cells(fitted: Path, files: Path, capsys) -> None:
    metrics, record = scores(fitted), json.loads((fitted / "run.json").read_text())
    assert record["cells"] == {"train": 152, "valid": 8, "test": 0, "filtered": 0}
    assert record["config"]["batch"] == {"key": "batch", "names": ["batch0", "batch1"]}
    n = metrics["cells"]
    assert (n["judged"], n["trained"], n["labelled"], n["unlabelled"]) == (160, 160, 157, 3)
    assert {"lsi", "lsi_regressed", "pca"} <= set(metrics["baselines"])
    assert {"peakvi", "spectral"} <= set(metrics["skipped"])
    for name in ("sailer", "lsi"):
        of = metrics["embeddings"][name]
        assert -1 <= of["ari"] <= of["ari_best"] <= 1
        assert {"nmi", "silhouette", "n_clusters", "mi_depth", "mi_batch", "mixing"} <= of.keys()
    assert len(metrics["information"]["sailer"]["depth"]) == 4
    of = metrics["embeddings"]["sailer"]
    assert of["mi_depth"] == pytest.approx(np.mean(metrics["information"]["sailer"]["depth"]))
    types = metrics["types"]["sailer"]
    assert sum(of["cells"] for of in types.values()) == 157
    assert all(0 <= of["f1"] <= 1 for of in types.values())
    assert len(metrics["curves"]["sailer"]["ari"]) == len(metrics["resolutions"])
    assert metrics["imputation"]["dice"].keys() == {
        "measured",
        "imputed by sailer",
        "one answer for all cells",
    }
    assert metrics["imputation"]["cells"] == 157
    assert metrics["verdict"]["baseline"] in metrics["baselines"]
    assert metrics["doubts"] == record["origin"]["doubts"]


def test_the_report_says_and_shows_it(fitted: Path) -> None:
    page = (fitted / "report.html").read_text()
    for words in (
        "SAILER: an embedding of ATAC",
        "labels are never used in training",
        "3 have none and are left out",
        scores(fitted)["verdict"]["sentence"].split(":")[0],
        "Phase: anneal",
        "sailer: cells by type",
        "sailer: cells by batch",
        "sailer: cells by log10 open peaks",
        "sailer: depth in each latent dimension",
        "sailer: batch in each latent dimension",
        "Batches among neighbours",
        "ARI at each resolution",
        "Cell types, the rarest first",
        "Open peaks called, against bulk",
        "Batches, of column &#39;batch&#39;: batch0, batch1",
        "atac.h5ad",
    ):
        assert words in page, words
    best = scores(fitted)["verdict"]["baseline"]
    assert f"{best}: cells by type" in page
    card = (fitted / "model/README.md").read_text()
    assert "# SAILER: embedding of atac" in card
    assert card.index("translate embed") < card.index("--to atac --out imputed.h5ad")
    assert 'use_rep="X_sailer"' in card


def test_again_with_resume_nothing_is_computed_and_the_same_is_said(fitted: Path, files: Path, capsys) -> None:
    before = tree(fitted)
    argv = ["--atac", files / "atac.h5ad", "--batch", "batch", "--labels", "type", "--out", fitted]
    run("fit", "sailer", *argv, "--resume", *QUICK)
    said = capsys.readouterr().out
    assert scores(fitted)["verdict"]["sentence"] in said
    assert "152 cells train, 8 validate, 0 test" in said
    assert tree(fitted) == before


@pytest.mark.slow
def test_a_killed_fit_or_evaluation_goes_on_and_ends_as_if_it_had_not_been(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["fit", "sailer", "--atac", files / "atac.h5ad", "--batch", "batch", "--no-maps", "--no-baselines", *QUICK]
    run(*argv, "--out", tmp_path / "whole")
    argv += ["--out", tmp_path / "run"]

    class Killed(Trainer):
        def _run_phase(self, *args: Any) -> bool:
            self.stop_after = 2
            if super()._run_phase(*args):
                return True
            raise KeyboardInterrupt

    def killed(*args: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    for where, name, by in ((fitting, "Trainer", Killed), (embedding_judging, "score_embedding", killed)):
        with monkeypatch.context() as patch:
            patch.setattr(where, name, by)
            with pytest.raises(SystemExit) as caught:
                run(*argv, *(["--resume"] if (tmp_path / "run").exists() else []))
        assert caught.value.code == 130
        assert not (tmp_path / "run/metrics.json").exists()
    run(*argv, "--resume")
    for name in ("model.safetensors", "inputs.safetensors"):
        assert (tmp_path / "run/model" / name).read_bytes() == (tmp_path / "whole/model" / name).read_bytes()
    assert timeless(scores(tmp_path / "run")) == timeless(scores(tmp_path / "whole"))


def test_the_scaling_factor_is_chosen_and_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    for m, adata in toy_anndata(80).items():
        adata.write_h5ad(tmp_path / f"{m}.h5ad")
    table = pd.DataFrame({"factor": [1.0, 10.0], "train": [2.0, 1.0], "valid": [2.0, 1.0], "chosen": [False, True]})
    asked: dict[str, Any] = {}

    def choose(study: Any, split: Any, config: Any, out: Path, seed: int, progress: Any, **more: Any) -> Any:
        asked.update(out=out, cells=len(split.train))
        return replace(config, alignment=10.0), table

    monkeypatch.setattr(elbow, "choose_alignment", choose)
    both = [
        "--rna",
        tmp_path / "rna.h5ad",
        "--atac",
        tmp_path / "atac.h5ad",
        "--labels",
        "kind",
        "--no-maps",
        "--no-baselines",
    ]
    run("fit", "sailerx", *both, "--out", tmp_path / "run", "--config.alignment", "elbow", *QUICK)
    assert asked == {"out": Path(f"{tmp_path}/run.elbow"), "cells": 76}
    assert json.loads((tmp_path / "run/run.json").read_text())["config"]["alignment"] == 10.0
    page = (tmp_path / "run/report.html").read_text()
    assert "The alignment weighs 10, chosen by short fits" in page
    assert "SAILERX: an embedding of ATAC" in page
    assert scores(tmp_path / "run")["labels"] == "kind"
    run("embed", tmp_path / "run", "--input", tmp_path / "atac.h5ad", "--out", tmp_path / "e.h5ad")
    assert ad.read_h5ad(tmp_path / "e.h5ad").obsm["X_sailerx"].shape == (80, 4)


def test_rna_from_a_table_guides_pairs_and_cells_of_atac_alone_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The way the README shows; then again with the scaling factor chosen by real, short fits."""
    made = toy_anndata(90)
    rna, atac, more = made["rna"][:60].copy(), made["atac"][:60].copy(), made["atac"][60:].copy()
    rna.obsm["X_scvi"] = np.log1p(rna.X.toarray())[:, :10]
    for name, adata in (("rna", rna), ("atac", atac), ("more", more)):
        adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 3, "d0", "d1")
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    argv = ["fit", "sailerx", "--rna", tmp_path / "rna.h5ad", "--atac", tmp_path / "atac.h5ad"]
    argv += ["--atac-only", tmp_path / "more.h5ad", "--batch", "donor", "--labels", "kind", "--no-maps", *QUICK]
    of_table = ["--config.reference", "obsm:X_scvi"]
    run(*argv, *of_table, "--no-baselines", "--out", tmp_path / "run")
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert (record["config"]["reference"], record["config"]["batch"]["key"]) == ("obsm:X_scvi", "donor")
    assert record["cells"] == {"train": 87, "valid": 3, "test": 0, "filtered": 0}
    assert record["origin"]["read"]["atac_only"] == [str(tmp_path / "more.h5ad")]
    parts = pd.read_csv(tmp_path / "run/split.tsv", sep="\t", index_col="cell")["part"]
    assert (parts[more.obs_names] == "train").all()  # only pairs are watched
    last = json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[-1])
    assert last["train"]["alignment"] > 0
    metrics = scores(tmp_path / "run")
    assert (metrics["cells"]["judged"], metrics["cells"]["labelled"], metrics["batch"]) == (90, 90, "donor")
    run("embed", tmp_path / "run", "--input", tmp_path / "more.h5ad", "--out", tmp_path / "e.h5ad")  # of ATAC alone
    assert ad.read_h5ad(tmp_path / "e.h5ad").obsm["X_sailerx"].shape == (30, 4)

    two = partial(elbow.choose_alignment, factors=(1e2, 1e5), epochs=1)
    monkeypatch.setattr(elbow, "choose_alignment", two)
    run(*argv, *of_table, "--config.alignment", "elbow", "--no-evaluate", "--out", tmp_path / "chosen")
    table = pd.read_csv(tmp_path / "chosen.elbow/elbow.tsv", sep="\t")
    assert table["factor"].tolist() == [1e2, 1e5]
    record = json.loads((tmp_path / "chosen/run.json").read_text())
    assert record["config"]["alignment"] == table.loc[table["chosen"], "factor"].item()
    assert "Scaling factor of the alignment" in (tmp_path / "chosen/report.html").read_text()
    with pytest.raises(SystemExit):
        run(*argv, "--config.reference", "obsm:X_none", "--no-evaluate", "--out", tmp_path / "x")
    assert "X_none" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_column_splits_and_then_its_test_cells_are_judged(files: Path, tmp_path: Path, capsys) -> None:
    argv = ["--atac", files / "atac.h5ad", "--split", "batch", "--test", "batch1", "--valid", "random"]
    run("fit", "sailer", *argv, "--out", tmp_path / "run", "--no-maps", "--no-baselines", *QUICK)
    metrics = scores(tmp_path / "run")
    assert (metrics["cells"]["judged"], metrics["cells"]["trained"]) == (80, 0)
    assert metrics["baselines"] == []
    assert metrics["verdict"] is None
    assert metrics["labels"] == "cell_type"
    assert metrics["batch"] is None
    said = capsys.readouterr().out
    assert "batches not run: no column of batches: --batch names one." in said
    assert "80 cells are judged" in said


@pytest.mark.slow
def test_without_labels_depth_decides(files: Path, tmp_path: Path) -> None:
    adata = ad.read_h5ad(files / "atac.h5ad")
    adata.obs = adata.obs[["batch"]]
    adata.write_h5ad(tmp_path / "atac.h5ad")
    argv = ["--atac", tmp_path / "atac.h5ad", "--batch", "batch", "--out", tmp_path / "run", "--no-maps"]
    run("fit", "sailer", *argv, *QUICK)
    metrics = scores(tmp_path / "run")
    of = metrics["embeddings"]["sailer"]
    assert "ari" not in of
    assert {"mi_depth", "mi_batch", "mixing"} <= of.keys()
    assert (metrics["labels"], metrics["types"], metrics["verdict"]["score"]) == (None, {}, "mi_depth")
    assert "cell types" in metrics["skipped"]
    assert "no column that says which is theirs: --labels names one" in metrics["skipped"]["imputation"]


# Apply


def test_an_embedding_joins_the_input_and_scanpy_takes_it(fitted: Path, files: Path, tmp_path: Path, capsys) -> None:
    run("embed", fitted, "--input", files / "atac.h5ad", "--out", tmp_path / "e.h5ad")
    found = ad.read_h5ad(tmp_path / "e.h5ad")
    assert found.obsm["X_sailer"].shape == (160, 4)
    given = ad.read_h5ad(files / "atac.h5ad")
    Translator.load(fitted).embed(given)
    np.testing.assert_array_equal(found.obsm["X_sailer"], given.obsm["X_sailer"])
    one = given[3:4].copy()
    Translator.load(fitted).embed(one)
    np.testing.assert_allclose(one.obsm["X_sailer"], given.obsm["X_sailer"][3:4], rtol=1e-4, atol=1e-5)
    import scanpy as sc

    sc.pp.neighbors(given, use_rep="X_sailer", n_neighbors=5)
    assert given.obsp["connectivities"].shape == (160, 160)


def test_imputation_is_at_one_depth_and_batch(fitted: Path, files: Path, tmp_path: Path, capsys) -> None:
    model, given = Translator.load(fitted), ad.read_h5ad(files / "atac.h5ad")

    def imputed(*argv: object) -> np.ndarray:
        run("predict", fitted, "--input", files / "atac.h5ad", "--to", "atac", "--out", tmp_path / "i.h5ad", *argv)
        assert "(atac imputed)" in capsys.readouterr().out
        return ad.read_h5ad(tmp_path / "i.h5ad").X

    plain = imputed()
    np.testing.assert_allclose(plain, model.translate(given, "atac").X, rtol=1e-5, atol=1e-7)
    depth = float(np.exp(float(model.system.get_buffer("depth_mean"))))
    best = model.system.config.batch.names[int(model.system.get_buffer("best"))]
    np.testing.assert_allclose(imputed("--depth", depth, "--batch-of", best), plain, rtol=1e-4, atol=1e-6)
    assert imputed("--depth", 10 * depth).mean() > plain.mean() > imputed("--depth", depth / 10).mean()
    assert ad.read_h5ad(tmp_path / "i.h5ad").uns["expresser"]["depth"] == pytest.approx(depth / 10)
    other = next(name for name in model.system.config.batch.names if name != best)
    assert not np.allclose(imputed("--batch-of", other), plain)


@pytest.mark.slow
def test_a_model_is_judged_on_any_file(fitted: Path, files: Path, tmp_path: Path, capsys) -> None:
    given = ["--atac", files / "atac.h5ad", "--labels", "type"]
    run("evaluate", fitted, *given, "--out", tmp_path / "a", "--no-maps")
    found = scores(tmp_path / "a")
    assert found["cells"]["trained"] == 160
    assert timeless(found) == timeless(scores(fitted))
    assert "SAILER: an embedding judged" in (tmp_path / "a/report.html").read_text()
    adata = ad.read_h5ad(files / "atac.h5ad")[:90].copy()
    adata.obs_names = [f"new{i}" for i in range(90)]
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(90) > 1)[:, None])
    adata.write_h5ad(tmp_path / "new.h5ad")
    argv = ["--atac", tmp_path / "new.h5ad", "--no-maps", "--no-baselines", "--batch", "one"]
    run("evaluate", fitted, *argv, "--out", tmp_path / "b")
    found = scores(tmp_path / "b")
    assert (found["cells"]["judged"], found["cells"]["empty"], found["cells"]["trained"]) == (88, 2, 0)
    assert "all cells are of one batch" in found["skipped"]["batches"]
    assert "2 cells without an open peak" in capsys.readouterr().out


# Bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("fit sailer --atac {atac} --labels nothing --out x", "obs has no column 'nothing'"),
        ("fit sailer --atac {atac} --batch nothing --out x", "obs has no column 'nothing'"),
        ("fit sailer --atac {atac} --batch half --out x", "80 of 160 cells have no 'half'"),
        ("fit sailer --atac {few} --out x", "15 cells were measured in atac; an embedding needs 20"),
        ("fit sailer --rna {rna} --out x", "sailer needs atac, and the files hold rna. Add --atac."),
        (
            "fit sailer --atac {atac} --batch batch --config.batch.key one --out x",
            "--batch batch and --config.batch.key one differ",
        ),
        ("fit sailer --atac {atac} --test d --out x", "--split is all, not a column of obs"),
        ("fit babel --atac {atac} --rna {rna} --batch batch --out x", "babel does not know batches"),
        ("fit babel --atac {atac} --rna {rna} --split all --out x", "leaves no cell to judge a translation by"),
        ("fit sailer --atac {atac} --start {fit} --out x", "sailer embeds, and takes no model to start from (--start)"),
        ("fit babel --atac {atac} --out x", "babel needs rna, and the files hold atac. Add --rna."),
        ("fit sailer --atac {atac} --out {fit}", "holds a run already. Add --resume"),
        ("predict {fit} --input {atac} --to rna --out x.h5ad", "does not go from atac to rna"),
        (
            "predict {fit} --input {atac} --to atac --batch-of b --out x.h5ad",
            "no batch 'b'; the model knows 'batch0', 'batch1'",
        ),
        ("predict {fit} --input {atac} --to atac --depth 0 --out x.h5ad", "depth 0: a cell has some open peaks"),
        ("evaluate {fit} --atac {atac} --labels nothing --out x", "obs has no column 'nothing'"),
        ("evaluate {fit} --atac {atac} --batch nothing --out x", "obs has no column 'nothing'"),
        ("evaluate {fit} --rna {rna} --out x", "embeds ATAC, and the cells have rna"),
        ("evaluate {fit} --atac {few} --out x", "15 of 15 cells have an open peak that the model knows"),
        ("evaluate {fit} --atac {atac} --train-atac {atac} --out x", "its baselines learn from the cells judged"),
    ],
)
def test_bad_input_is_one_message(
    argv: str, words: str, files: Path, fitted: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    atac = ad.read_h5ad(files / "atac.h5ad")
    atac[:15].copy().write_h5ad(tmp_path / "few.h5ad")
    counts = sparse.csr_matrix(np.random.default_rng(0).poisson(2.0, (160, 30)).astype(np.float32))
    genes = pd.DataFrame(index=[f"ENSG{i:011}" for i in range(30)])
    ad.AnnData(counts, obs=atac.obs[["batch"]], var=genes).write_h5ad(tmp_path / "rna.h5ad")
    places = {"atac": files / "atac.h5ad", "fit": fitted, "few": tmp_path / "few.h5ad", "rna": tmp_path / "rna.h5ad"}
    said = refused(capsys, here, "translate", *argv.format(**places).split())
    assert words in said


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("one", "all labelled cells are 'same'"),
        ("name", "has 160 values for 160 cells: no types"),
        ("none", "no cell has a label in column 'none'"),
    ],
)
def test_columns_that_are_no_types_are_said_and_stop_nothing(
    column: str, words: str, fitted: Path, files: Path
) -> None:
    adata = ad.read_h5ad(files / "atac.h5ad")
    adata.obs["name"], adata.obs["none"] = adata.obs_names.to_numpy(), "nan"
    study = read_study(atac=adata)
    cells = judged_cells(Translator.load(fitted), study, np.arange(160), label=column, batch=None)
    assert cells.types is None
    assert words in cells.why_not["cell types"]


def test_imputation_is_judged_by_the_labels_asked_for(fitted: Path, files: Path) -> None:
    adata, path = ad.read_h5ad(files / "atac.h5ad"), files / "atac.h5ad"
    adata.obs["mixed"] = np.random.default_rng(0).permutation(adata.obs["cell_type"])
    adata.obs["none"] = "nan"
    model, study = Translator.load(fitted), read_study(atac=adata)

    def found(label: str | None, cells: np.ndarray) -> dict[str, Any]:
        return bulk_dice(model, judged_cells(model, study, cells, label=label, batch=None), path)

    everybody = np.arange(160)
    mine, mixed = found("cell_type", everybody), found("mixed", everybody)
    assert mine["dice"]["measured"] > mixed["dice"]["measured"] + 0.01
    some, same = found("type", everybody), found("cell_type", everybody[3:])  # the first three have no label there
    assert some["cells"] == same["cells"] == 157
    for of in ("measured", "imputed by sailer"):
        assert some["dice"][of] == pytest.approx(same["dice"][of])
    for label, words in (
        (None, "no column that says which is theirs: --labels names one"),
        ("batch", r"no bulk profile of 'batch0', a type of column 'batch'; there are .*--labels"),
        ("none", "no cell has a type in column 'none'"),
    ):
        with pytest.raises(InputError, match=words):
            found(label, everybody)


# Parts


def test_all_cells_train_but_a_few_whatever_their_order(files: Path) -> None:
    study = read_study(atac=files / "atac.h5ad")
    split = split_all(study, ("atac",))
    assert (len(split.train), len(split.valid), len(split.test)) == (152, 8, 0)
    turned = study.select(np.arange(160)[::-1].copy())
    again = split_all(turned, ("atac",))
    assert set(study.obs.index[split.valid]) == set(turned.obs.index[again.valid])
    assert len(split_all(study.select(np.arange(22)), ("atac",)).valid) == 2
    with pytest.raises(InputError, match="0 cells were measured in rna and atac"):
        split_all(study, ("rna", "atac"))


@pytest.mark.parametrize(
    ("gaps", "said"), [((0.02, 0.03, 0.04), "ahead"), ((-0.02, 0.01, 0.0), "level"), ((-0.3, -0.2, -0.1), "behind")]
)
def test_the_verdict_is_against_the_best_baseline(gaps: tuple[float, ...], said: str) -> None:
    base = np.array([0.70, 0.71, 0.72])
    metrics = {
        "system": "sailer",
        "baselines": ["pca", "lsi"],
        "embeddings": {
            "sailer": {"ari": 0.71 + gaps[1], "mi_depth": 0.05},
            "pca": {"ari": 0.2, "mi_depth": 0.4},
            "lsi": {"ari": 0.71, "mi_depth": 0.3},
        },
        "draws": {"sailer": {"ari": list(base + gaps)}, "lsi": {"ari": list(base)}},
    }
    found = verdict(metrics)
    assert found is not None
    assert (found.baseline, found.said) == ("lsi", said)
    words = {"ahead": "is ahead of", "level": "is level with", "behind": "is behind"}
    assert found.sentence().startswith(f"sailer {words[said]} the best baseline, lsi, at recovering cell types")
    (line,) = confounder_sentences(metrics)
    assert "0.050 nats of a cell's depth on average, less than the baseline with the least, lsi (0.300)" in line


def test_the_list_and_the_help_know_embedders(capsys) -> None:
    run("list")
    assert "an embedding of atac, and atac imputed" in capsys.readouterr().out
    with contextlib.suppress(SystemExit):
        run("fit", "sailer", "--help")
    said = capsys.readouterr().out
    assert "fit sailer --atac atac.h5ad --batch donor --out runs/sailer" in said
    assert "--batch" in said
    with contextlib.suppress(SystemExit):
        run("predict", "--help")
    assert "imputed" in capsys.readouterr().out
    assert cli_fit.usage().count("sailer")
