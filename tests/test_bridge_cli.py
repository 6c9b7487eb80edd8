"""The pretrained model on the command line: its options, what is refused, and a fit that no longer needs it."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import anndata as ad
import local_hub
import numpy as np
import pandas as pd
import pytest
from pretrained_toys import toy_checkpoint
from scipy import sparse
from translate_toys import toy_anndata

from expresser.cli import main
from expresser.errors import InputError
from tests.test_cli import refused
from translate.attribution import attribute
from translate.babel import BabelConfig
from translate.bridge import Bridge
from translate.bridge_words import taken_words
from translate.cli_options import Arguments, settled
from translate.grids import parse_grid, trials
from translate.pages import fit_page
from translate.perturb import Change, on_own_features, perturb
from translate.reading import read_measured
from translate.registry import SYSTEMS
from translate.translator import Translator

hub = local_hub.hub

SMALL = "--config.rna.min-genes 0 --config.rna.max-genes None --config.atac.min-cells 1 --config.atac.max-share 1.0"
QUICK = f"{SMALL} --config.epochs 2 --config.batch-size 32 --config.latent 4 --no-maps --no-baselines".split()
OPTIONS = ("encoder", "start", "cells", "blocks", "blocks-lr", "output")


def run(*argv: object) -> None:
    main(["translate", *map(str, argv)])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rna.h5ad and atac.h5ad of 120 cells; 12 more genes of RNA are on chrX, where the translator leaves and the model reads them."""
    folder = tmp_path_factory.mktemp("files")
    made = toy_anndata()
    rng = np.random.default_rng(1)
    var = pd.DataFrame({"gene_ids": [f"ENSG{90_000 + i:011}" for i in range(12)], "chrom": "chrX", "tss": 1000})
    more = ad.AnnData(
        sparse.csr_matrix(rng.poisson(3, (120, 12)).astype(np.float32)),
        obs=made["rna"].obs,
        var=var.set_index(pd.Index([f"X{i}" for i in range(12)])),
    )
    ad.concat([made["rna"], more], axis=1, merge="first").write_h5ad(folder / "rna.h5ad")
    made["atac"].write_h5ad(folder / "atac.h5ad")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained") / "model"
    toy_checkpoint(folder)
    return folder


def paired(files: Path) -> list[str]:
    return ["--rna", f"{files / 'rna.h5ad'}", "--atac", f"{files / 'atac.h5ad'}"]


@pytest.fixture(scope="module")
def fitted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit that read cells by a pretrained model whose folder is gone."""
    folder = tmp_path_factory.mktemp("bridged")
    toy_checkpoint(folder / "gone")
    bridge = ["--rna-encoder", folder / "gone", "--rna-cells", "join", "--peak-start", "encoder"]
    run("fit", "babel", *paired(files), "--out", folder / "babel", *bridge, *QUICK)
    shutil.rmtree(folder / "gone")
    return folder / "babel"


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["fit babel", "fit sailer", "fit sailerx", "tune scact"])
def test_help_shows_the_options_at_the_top_and_nowhere_else(verb: str, capsys, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "130")
    with contextlib.suppress(SystemExit):
        run(*verb.split(), "--help")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for option in (*(f"--rna-{name}" for name in OPTIONS), "--peak-start"):
        assert f" {option} " in said
    assert "A pretrained Expresser (folder or hub id)" in said
    assert "--config.bridge" not in said


def test_systems_that_read_rna_take_all_of_it() -> None:
    bridge = Bridge("m", rna_cells="join", rna_blocks=2, rna_blocks_lr=0.5, rna_output="table", peak_start="both")
    for name in ("babel", "scmog", "polarbear", "scact"):
        given = Arguments(out=Path("x"), config=SYSTEMS[name].config_class(), bridge=bridge)
        assert settled(given, name, SYSTEMS[name]).config.bridge == bridge


def test_without_the_options_a_configuration_stays_as_it_is() -> None:
    for name, kind in SYSTEMS.items():
        config = kind.config_class()
        assert settled(Arguments(out=Path("x"), config=config), name, kind).config == config
    begun = BabelConfig(bridge=Bridge("m", rna_cells="replace"))  # of a model to start from
    given = Arguments(out=Path("x"), config=begun, start="fit")
    assert settled(given, "babel", SYSTEMS["babel"]).config == begun


def test_systems_that_embed_take_peaks_and_a_reference() -> None:
    def taken(system: str, **options: Any) -> Any:
        kind = SYSTEMS[system]
        given = Arguments(out=Path("x"), config=kind.config_class(), bridge=Bridge("m", **options))
        return settled(given, system, kind).config

    assert taken("sailer", peak_start="both") == SYSTEMS["sailer"].config_class(bridge=Bridge("m", peak_start="both"))
    both = taken("sailerx", peak_start="encoder")
    assert (both.reference, both.bridge) == ("expresser:m", Bridge("m", peak_start="encoder"))
    alone = taken("sailerx")
    assert (alone.reference, alone.bridge) == ("expresser:m", Bridge())


# ---- what is refused -------------------------------------------------------------------------------------------------

NOWHERE = "--rna nowhere.h5ad --atac nowhere.h5ad"  # so that whatever is said is said before a file is opened


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("fit babel --rna-cells join", "rna_cells without a pretrained model. Name one"),
        ("fit babel --rna-encoder {model} --rna-blocks 1", "Set rna_cells to join or replace"),
        ("fit babel --rna-encoder {model} --rna-cells join --rna-blocks -1", "must not be negative"),
        ("fit babel --rna-encoder {model} --rna-blocks-lr 0.5", "Say how many (--rna-blocks)"),
        (
            "fit babel --rna-encoder {model} --rna-start fresh",
            "nothing of it would be used. Leave --rna-start fresh out",
        ),
        ("fit babel --rna-encoder nowhere", "nowhere: no such folder, and not a hub id"),
        ("fit babel --rna-encoder {files}", "not a model folder"),
        ("fit babel --rna-encoder {fit}", "genes.tsv missing"),
        ("fit babel --rna-encoder {model} --start {fit}", "fit anew without --start"),
        ("fit sailer --rna-encoder {model}", "Add --peak-start encoder (or both)"),
        ("fit sailer --rna-encoder nowhere --peak-start both", "nowhere: no such folder"),
        (
            "fit sailer --rna-encoder {model} --rna-cells join",
            "--rna-cells: sailer has no RNA in its network. Leave it out",
        ),
        (
            "fit sailerx --rna-encoder {model} --rna-cells join --rna-blocks 1 --rna-output table",
            "--rna-cells, --rna-blocks, --rna-output: sailerx has no RNA in its network. Leave them out",
        ),
        (
            "fit sailerx --rna-encoder {model} --config.reference obsm:X_pca",
            "--config.reference is obsm:X_pca: give one",
        ),
        ("fit sailerx --rna-encoder nowhere", "nowhere: no such folder"),
        ("fit sailerx --config.reference expresser:nowhere", "nowhere: no such folder"),
        ("tune babel --grid latent=4,8 --rna-encoder nowhere", "nowhere: no such folder"),
        ("tune babel --grid bridge.rna_encoder={model},nowhere", "nowhere: no such folder"),
        ("tune babel --grid bridge.rna_cells=none,some --rna-encoder {model}", "'some' is not none or join or replace"),
    ],
)
def test_what_cannot_be_is_one_message_before_a_file_is_opened(
    argv: str, words: str, files: Path, model: Path, fitted: Path, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = argv.format(files=files, model=model, fit=fitted)
    assert words in refused(capsys, tmp_path, "translate", *argv.split(), *NOWHERE.split(), "--out", "x")


def test_a_model_that_the_hub_lacks_is_known_before_a_file_is_opened(hub, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    argv = f"translate fit babel --rna-encoder lab/nothing {NOWHERE} --out x".split()
    assert "lab/nothing" in refused(capsys, tmp_path, *argv)


def test_peaks_do_not_start_where_there_are_none(files: Path, model: Path, tmp_path: Path, capsys) -> None:
    toy_anndata()["protein"].write_h5ad(tmp_path / "protein.h5ad")
    given = ["--rna", files / "rna.h5ad", "--protein", tmp_path / "protein.h5ad", "--out", tmp_path / "x"]
    bridge = ["--rna-encoder", model, "--peak-start", "encoder"]
    said = refused(capsys, tmp_path, "translate", "fit", "babel", *given, *bridge, *SMALL.split()[:4])
    assert "no ATAC" in said
    assert "peak_start" in said


# ---- a fit -----------------------------------------------------------------------------------------------------------


def test_a_fit_says_what_it_took(fitted: Path, files: Path, capsys) -> None:
    record = json.loads((fitted / "run.json").read_text())
    assert record["pretrained"]["model"].endswith("/gone")
    assert len(record["pretrained"]["sha256"]) == 64
    assert record["config"]["bridge"] == {
        "rna_encoder": record["pretrained"]["model"],
        "rna_start": "genes",
        "rna_cells": "join",
        "rna_blocks": 0,
        "rna_blocks_lr": 0.1,
        "rna_output": "own",
        "peak_start": "encoder",
    }
    (found, genes, peaks) = taken_words(record)
    assert found.startswith(f"Taken from {record['pretrained']['model']} (sha256 of its weights ")
    assert "cell embeddings that join expression" in found
    assert genes == "It knows 50 of the 60 genes."
    # A finished fit is shown again, though the model is gone.
    capsys.readouterr()
    bridge = ["--rna-encoder", record["pretrained"]["model"], "--rna-cells", "join", "--peak-start", "encoder"]
    run("fit", "babel", *paired(files), "--out", fitted, *bridge, *QUICK, "--resume")
    assert f"\n{found} {genes} {peaks}\n" in capsys.readouterr().out
    for page in ("report.html", "model/README.md"):
        text = (fitted / page).read_text()
        assert "Pretrained model" in text
        assert genes in text


def test_a_page_says_what_was_taken_and_nothing_where_nothing_was(tmp_path: Path) -> None:
    record = {
        "pretrained": {"model": "lab/small", "sha256": "0123456789abcdef"},
        "taken": {"ways": ["first weights of genes", "peaks that are read"], "peaks": 1500, "of_peaks": 2000},
    }
    words = taken_words(record)
    assert words == [
        "Taken from lab/small (sha256 of its weights 0123456789ab…): first weights of genes, peaks that are read.",
        "1,500 of 2,000 peaks have a gene nearby that it knows, and started from it.",
    ]
    for said, there in ((words, True), (taken_words({"config": {"reference": "pca"}}), False)):
        path = fit_page(tmp_path / "page.html", title="x", log=[], facts={}, provenance={}, pretrained=said)
        assert ("Pretrained model" in path.read_text()) is there
    assert taken_words({"config": {"reference": "expresser:lab/small"}}) == [
        "The reference is the cell embeddings of lab/small."
    ]


def test_predictions_and_embeddings_need_no_pretrained_model(fitted: Path, files: Path, tmp_path: Path) -> None:
    run("predict", fitted, "--input", files / "rna.h5ad", "--to", "atac", "--out", tmp_path / "p.h5ad")
    run("embed", fitted, "--input", files / "rna.h5ad", "--out", tmp_path / "e.h5ad")
    predicted, embedded = ad.read_h5ad(tmp_path / "p.h5ad"), ad.read_h5ad(tmp_path / "e.h5ad")
    assert predicted.shape == (120, 120)
    assert embedded.obsm["X_babel"].shape == (120, 4)
    # The cells were read as whole cells: without the genes that the pretrained model alone knows they are others.
    given = ad.read_h5ad(files / "rna.h5ad")
    fewer = given[:, given.var["chrom"] != "chrX"].copy()
    translator = Translator.load(fitted)
    translator.embed(fewer)
    assert np.abs(fewer.obsm["X_babel"] - embedded.obsm["X_babel"]).max() > 1e-3


def test_a_search_is_of_one_pretrained_model(files: Path, model: Path, tmp_path: Path, capsys) -> None:
    small = [word for word in QUICK if not word.startswith("--config.latent") and word != "4"]
    grid = ["--grid", "bridge.rna_cells=none,replace", "--no-evaluate", "--out", tmp_path / "grid"]
    run("tune", "babel", *paired(files), *grid, *small, "--rna-encoder", model)
    record = json.loads((tmp_path / "grid/tune.json").read_text())
    assert record["config"]["bridge.rna_encoder"] == str(model)
    for cells in ("none", "replace"):
        trial = json.loads((tmp_path / f"grid/trials/bridge.rna_cells={cells}/run.json").read_text())
        assert trial["config"]["bridge"]["rna_cells"] == cells
        assert len(trial["pretrained"]["sha256"]) == 64
    shutil.copytree(model, tmp_path / "other")
    with pytest.raises(SystemExit):
        run("tune", "babel", *paired(files), *grid, *small, "--rna-encoder", tmp_path / "other")
    assert "began with another config.bridge.rna_encoder" in capsys.readouterr().err


def test_a_grid_may_vary_what_is_taken() -> None:
    config = BabelConfig(bridge=Bridge("m"))
    grid = parse_grid(config, ["bridge.rna_cells=none,join", "bridge.peak_start=fresh,both"])
    assert [(t.config.bridge.rna_cells, t.config.bridge.peak_start) for t in trials(config, grid)] == [
        ("none", "fresh"),
        ("none", "both"),
        ("join", "fresh"),
        ("join", "both"),
    ]
    # Blocks need cells, whichever is named first.
    (trial,) = trials(config, parse_grid(config, ["bridge.rna_blocks=1", "bridge.rna_cells=join"]))
    assert trial.config.bridge == Bridge("m", rna_cells="join", rna_blocks=1)


# ---- perturbation ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def replaced(files: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Translator:
    """All that it knows of RNA is what the pretrained model says of whole cells."""
    out = tmp_path_factory.mktemp("replaced") / "babel"
    bridge = ["--rna-encoder", model, "--rna-cells", "replace", "--no-evaluate"]
    run("fit", "babel", *paired(files), "--out", out, *bridge, *QUICK)
    return Translator.load(out)


def test_a_knocked_down_gene_reaches_predictions_through_the_embedding(replaced: Translator, files: Path) -> None:
    given = ad.read_h5ad(files / "rna.h5ad")
    change = Change.of(replaced, knock_down=["GENE003=0.25", "GENE010"], over_express=["GENE020=3"])
    effects = perturb(replaced, given, change, n_null=2)
    changed = given.copy()
    names = replaced.var("rna").index
    own = read_measured(given, "rna")
    ours = replaced.inputs["rna"].align(own)
    new = change.on(ours, replaced.inputs["rna"].median_library).toarray()
    x = given.X.toarray()
    x[:, given.var_names.get_indexer(names[change.features])] = new[:, change.features]
    changed.X = sparse.csr_matrix(x)
    sides = []
    for adata in (given, changed):
        # As it is read, but for the check that counts are whole.
        measured = read_measured(given, "rna")
        whole = type(measured)(**vars(measured) | {"matrix": adata.X.astype(np.float32)})
        decoded = replaced.predict(whole, source="rna", to="atac")
        sides.append(decoded.block(slice(0, 120), slice(0, 120)))
    expected = (sides[1] - sides[0]).mean(axis=0)
    np.testing.assert_allclose(effects.table["change"], expected, rtol=1e-4, atol=1e-6)
    assert np.abs(expected).max() > 1e-5
    np.testing.assert_allclose(effects.table["before"], sides[0].mean(axis=0), rtol=1e-5)


def test_cells_keep_the_genes_that_the_pretrained_model_alone_reads(replaced: Translator, files: Path) -> None:
    measured = read_measured(ad.read_h5ad(files / "rna.h5ad"), "rna")
    assert on_own_features(replaced.inputs, measured, "rna").n_features == 72
    assert len(replaced.var("rna")) == 60


def test_what_flows_through_embeddings_is_not_attributed(
    replaced: Translator, fitted: Path, files: Path, tmp_path: Path, capsys
) -> None:
    pytest.importorskip("captum")
    with pytest.raises(InputError, match=r"rna_cells: replace.* Knock genes down"):
        attribute(replaced, ad.read_h5ad(files / "rna.h5ad"), ["chr1:0-500"], to="atac")
    argv = ["perturb", fitted, "--input", files / "rna.h5ad", "--peak", "chr1:0-500", "--out", tmp_path / "x"]
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    assert caught.value.code == 2
    assert "explain a fit without --rna-cells" in capsys.readouterr().err
    # From ATAC no embedding is read.
    found = attribute(replaced, ad.read_h5ad(files / "atac.h5ad"), ["GENE000"], n_steps=2)
    assert len(found)
