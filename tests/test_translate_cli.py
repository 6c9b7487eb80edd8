"""The translate command end to end on toys: every verb, what it leaves, and one clear message for bad input."""

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from expresser.cli import main
from expresser.errors import InputError
from expresser.regions import Regions
from expresser.simulate import simulate_multiome
from tests.test_cli import refused, tree
from tests.translate_toys import toy_anndata
from translate import asking, cli_fit, fitting, judging
from translate.asking import lifted, matched, wanted_features
from translate.babel import BabelConfig
from translate.cli_options import Arguments, choose_split
from translate.data import read_study
from translate.held import split_of
from translate.origin import Origin, layers
from translate.reading import guess_modality, read_measured
from translate.splits import split_by_column, validate_at_random
from translate.study import DataWarning, Modality, Study
from translate.trainer import Trainer
from translate.translator import Translator

SMALL = "--config.rna.min-genes 0 --config.rna.max-genes None --config.atac.min-cells 1 --config.atac.max-share 1.0"
QUICK = f"{SMALL} --config.epochs 2 --config.batch-size 32 --config.latent 4".split()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """rna.h5ad, atac.h5ad, protein.h5ad of 120 cells of four donors, half of them of either type."""
    folder = tmp_path_factory.mktemp("files")
    for modality, adata in toy_anndata().items():
        adata.obs["donor"] = [f"d{i % 4}" for i in range(adata.n_obs)]
        adata.obs["cell_type"] = adata.obs["kind"]
        adata.write_h5ad(folder / f"{modality}.h5ad")
    return folder


def paired(files: Path) -> list[str]:
    return ["--rna", f"{files / 'rna.h5ad'}", "--atac", f"{files / 'atac.h5ad'}"]


def run(*argv: object) -> None:
    main(["translate", *map(str, argv)])


def scores(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages, which take a second each, are not drawn."""
    for name in ("fit_page", "evaluation_page"):
        monkeypatch.setattr(judging, name, lambda path, *args, **more: path.touch() or path)
    monkeypatch.setattr(judging, "evaluation_sections", lambda *args, **more: ((), ()))


def timeless(scored: dict[str, Any]) -> dict[str, Any]:
    """Scores of a method by direction, without the seconds they took."""
    return {
        d: {k: v for k, v in found.items() if k != "seconds"} if isinstance(found, dict) else found
        for d, found in scored.items()
    }


@pytest.fixture(scope="module")
def fitted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit of babel from the command line, evaluated, without maps."""
    out = tmp_path_factory.mktemp("fits") / "babel"
    run("fit", "babel", *paired(files), "--split", "donor", "--out", out, "--no-maps", *QUICK)
    return out


# Fit


def test_a_fit_leaves_model_scores_report_and_what_repeats_it(fitted: Path, files: Path, capsys) -> None:
    metrics = scores(fitted)
    assert set(metrics["methods"]) == {"babel", "mean", "knn", "ridge", "gene_activity", "gene_activity_raw"}
    assert {"pearson_flat", "pearson_gene"} <= set(metrics["methods"]["babel"]["atac_to_rna"])
    assert {"auroc_flat", "auroc_peak", "auprnorm_peak"} <= set(metrics["methods"]["ridge"]["rna_to_atac"])
    assert 0 <= metrics["methods"]["babel"]["foscttm"] <= 1
    assert metrics["verdicts"]["rna_to_atac"].keys() == {"mean", "knn", "ridge"}
    for name, gaps in metrics["differences"]["atac_to_rna"].items():
        gap = gaps["pearson_gene"]
        said = "beats" if gap["low"] > 0 else "behind" if gap["high"] < 0 else "on a par"
        assert metrics["verdicts"]["atac_to_rna"][name] == said
    assert metrics["cells"] == {"train": 60, "valid": 30, "test": 30}
    assert metrics["fit"]["phases"]["translate"]["epochs"] == 2
    assert metrics["labels"] == "cell_type"
    record = json.loads((fitted / "run.json").read_text())
    assert record["origin"]["read"] == {m: str(files / f"{m}.h5ad") for m in ("rna", "atac")}
    assert all(len(digest) == 64 for digest in record["origin"]["sha256"].values())
    assert record["config"]["epochs"] == 2
    page = (fitted / "report.html").read_text()
    for words in ("Phase: translate", "RNA from ATAC", "ATAC from RNA", "Where it departs from the paper", "rna.h5ad"):
        assert words in page
    # Again, with --resume: nothing is computed, the same is said.
    before = tree(fitted)
    capsys.readouterr()
    run("fit", "babel", *paired(files), "--split", "donor", "--out", fitted, "--no-maps", "--resume", *QUICK)
    said = capsys.readouterr().out
    assert "pearson_gene" in said
    assert f"report: {fitted / 'report.html'}" in said
    assert tree(fitted) == before


def test_a_killed_fit_goes_on_and_ends_as_if_it_had_not_been(
    fitted: Path, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_page: None, capsys
) -> None:
    argv = ["fit", "babel", *paired(files), "--split", "donor", "--out", tmp_path / "run", "--no-maps", *QUICK]

    class Killed(Trainer):
        def _run_phase(self, *args: Any) -> bool:
            self.stop_after = 1
            assert not super()._run_phase(*args)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "Trainer", Killed)
        with pytest.raises(SystemExit) as caught:
            run(*argv)
    assert caught.value.code == 130
    assert not (tmp_path / "run/model").exists()
    run(*argv, "--resume")
    for name in ("model.safetensors", "inputs.safetensors"):
        assert (tmp_path / "run/model" / name).read_bytes() == (fitted / "model" / name).read_bytes()
    found, before = (scores(folder)["methods"] for folder in (tmp_path / "run", fitted))
    assert {name: timeless(of) for name, of in found.items()} == {name: timeless(of) for name, of in before.items()}


def test_without_evaluation_the_report_shows_training_and_resume_evaluates(files: Path, tmp_path: Path, capsys) -> None:
    argv = ["fit", "babel", *paired(files), "--out", tmp_path / "run", "--no-maps", "--no-baselines", *QUICK]
    run(*argv, "--no-evaluate")
    assert "Phase: translate" in (tmp_path / "run/report.html").read_text()
    assert not (tmp_path / "run/metrics.json").exists()
    run(*argv, "--resume")
    assert set(scores(tmp_path / "run")["methods"]) == {"babel"}


def test_proteins_are_added_to_a_fit(fitted: Path, files: Path, tmp_path: Path, no_page: None, capsys) -> None:
    out = tmp_path / "protein"
    cite = ["--rna", files / "rna.h5ad", "--protein", files / "protein.h5ad", "--start", fitted]
    run("fit", "babel", *cite, "--out", out, "--no-maps", "--config.protein-epochs", "2")
    assert scores(out)["directions"] == ["rna_to_protein"]
    assert set(scores(out)["methods"]) == {"babel", "mean", "knn", "ridge"}
    assert json.loads((out / "run.json").read_text())["origin"]["start"] == str(fitted)
    run("predict", out, "--input", files / "atac.h5ad", "--to", "protein", "--out", tmp_path / "p.h5ad")
    assert ad.read_h5ad(tmp_path / "p.h5ad").var_names.tolist() == [f"CD{i}" for i in range(7)]


def test_a_fit_from_several_files_of_each_modality_is_that_of_their_cells(
    files: Path, tmp_path: Path, no_page: None, capsys
) -> None:
    given: dict[str, list[str]] = {"rna": [], "atac": []}
    for m, paths in given.items():
        adata = ad.read_h5ad(files / f"{m}.h5ad")
        for name, part in (("one", adata[:70]), ("two", adata[70:])):
            part.copy().write_h5ad(tmp_path / f"{m}_{name}.h5ad")
            paths.append(str(tmp_path / f"{m}_{name}.h5ad"))
    inputs = ["--rna", *given["rna"], "--atac", *given["atac"]]
    run("fit", "babel", *inputs, "--split", "donor", "--out", tmp_path / "run", "--no-maps", *QUICK)
    record = json.loads((tmp_path / "run/run.json").read_text())
    assert record["origin"]["read"] == given
    assert record["origin"]["sha256"].keys() == {path for paths in given.values() for path in paths}
    assert record["cells"]["train"] == 60
    again = Origin.restored(record["origin"]).read()
    once = read_study(rna=files / "rna.h5ad", atac=files / "atac.h5ad", check_pairing=False)
    assert again.obs.index.tolist() == once.obs.index.tolist()
    for m, part in once.measured.items():
        assert (again.measured[m].matrix != part.matrix).nnz == 0
    assert Origin(rna=("a",), atac=()) == Origin(rna="a")
    assert Origin(rna=("a", "b"), atac="c").files == {"atac": Path("c")}


def test_presets_begin_what_options_change(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(cli_fit, "fit", lambda system, given, start: seen.update(given=given))
    run("fit", "scmog", "--preset=paper", "--out", "x", "--config.lr", "0.5", "--rna-only", "a", "b")
    config = seen["given"].config
    assert (config.loss, config.to_rna_batch_size, config.lr) == ("focal", 256, 0.5)
    assert (seen["given"].preset, seen["given"].rna_only) == ("paper", ("a", "b"))


def test_a_simulation_brings_its_oracle(tmp_path: Path, no_page: None, capsys) -> None:
    made = simulate_multiome(n_cells=80, n_genes=60, n_peaks=90, n_types=2, n_programs=1, rna_depth=400, atac_depth=40)
    made.write(tmp_path)
    run("fit", "babel", *paired(tmp_path), "--out", tmp_path / "run", "--no-maps", "--no-baselines", *QUICK)
    assert scores(tmp_path / "run")["methods"]["oracle"].keys() == {"atac_to_rna", "rna_to_atac"}
    assert "oracle" in capsys.readouterr().out
    # Files of two simulations have none, and that stops nothing.
    made.rna[:60].write_h5ad(tmp_path / "fewer.h5ad")
    pair = ["--rna", tmp_path / "fewer.h5ad", "--atac", tmp_path / "atac.h5ad"]
    run("evaluate", tmp_path / "run", *pair, "--no-maps", "--no-baselines", "--out", tmp_path / "again")
    found = scores(tmp_path / "again")
    assert (set(found["methods"]), found["cells"]["test"]) == ({"babel"}, 60)
    assert "do not hold the same cells" in found["skipped"]["oracle"]


def test_false_pairs_are_doubted_in_one_line(files: Path, tmp_path: Path, capsys) -> None:
    turned = ad.read_h5ad(files / "atac.h5ad")
    turned.obs_names = np.random.default_rng(0).permutation(turned.obs_names)
    turned.write_h5ad(tmp_path / "atac.h5ad")
    inputs = ["--rna", files / "rna.h5ad", "--atac", tmp_path / "atac.h5ad"]
    run("fit", "babel", *inputs, "--out", tmp_path / "run", "--no-evaluate", *QUICK)
    said = capsys.readouterr().err
    assert said.startswith("warning: RNA and ATAC of 120 cells of one name")
    assert len(said.splitlines()) == 1


# Predict, embed


def test_predictions_are_the_models_own(fitted: Path, files: Path, tmp_path: Path, capsys) -> None:
    model = Translator.load(fitted)
    run("predict", fitted, "--input", files / "atac.h5ad", "--to", "rna", "--out", tmp_path / "rna.h5ad")
    assert "120 cells x 60 features (rna from atac)" in capsys.readouterr().out
    found = ad.read_h5ad(tmp_path / "rna.h5ad")
    expected = model.translate(ad.read_h5ad(files / "atac.h5ad"), "rna")
    np.testing.assert_allclose(found.X, expected.X, rtol=1e-5, atol=1e-6)
    assert found.obs_names.tolist() == expected.obs_names.tolist()
    assert (found.obs["donor"] == expected.obs["donor"].astype(str)).all()
    assert found.uns["expresser"]["system"] == "babel"
    assert found.var["ensembl_id"].tolist() == expected.var["ensembl_id"].tolist()


def test_features_and_regions_and_forms(fitted: Path, files: Path, tmp_path: Path) -> None:
    def predicted(*argv: object) -> ad.AnnData:
        run("predict", fitted, "--input", files / "rna.h5ad", "--out", tmp_path / "x.h5ad", *argv)
        return ad.read_h5ad(tmp_path / "x.h5ad")

    assert predicted("--to", "atac", "--regions", "chr1:400-1100", "chr2:1-2").var_names.tolist() == [
        "chr1:0-500",
        "chr1:1000-1500",
    ]
    assert set(predicted("--to", "atac", "--features", "chr21").var["chrom"]) == {"chr21"}
    top = predicted("--to", "atac", "--form", "topk", "--top-k", 3).X
    assert sparse.issparse(top)
    assert (np.diff(top.indptr) == 3).all()
    assert predicted("--to", "atac", "--form", "float16").X.dtype == np.float16
    x, scaled = predicted("--to", "atac").X, predicted("--to", "atac", "--form", "scale").X
    assert sparse.issparse(scaled)
    of_cell, of_peak = (x.mean(axis=axis, dtype=np.float64, keepdims=True).astype(np.float32) for axis in (1, 0))
    assert np.array_equal(scaled.toarray() > 0, (x > of_cell) & (x > of_peak))
    model = Translator.load(fitted)
    genes = wanted_features(model, "rna", regions=["chr1:3500-8500"])
    assert genes is not None
    assert model.var("rna").iloc[genes][["chrom", "tss"]].to_numpy().tolist() == [["chr1", 4000], ["chr1", 8000]]
    assert wanted_features(model, "rna") is None
    with pytest.raises(InputError, match=r"none of the model's 120 peaks share a base with chr5:1-9"):
        wanted_features(model, "atac", regions=["chr5:1-9"])
    with pytest.raises(InputError, match=r"by name .* or by place"):
        wanted_features(model, "atac", names=["chr1"], regions=["chr5:1-9"])


def test_embeddings_join_the_input(fitted: Path, files: Path, tmp_path: Path, capsys) -> None:
    run("embed", fitted, "--input", files / "atac.h5ad", "--out", tmp_path / "e.h5ad")
    found, given = ad.read_h5ad(tmp_path / "e.h5ad"), ad.read_h5ad(files / "atac.h5ad")
    expected = Translator.load(fitted).latents(read_measured(given, "atac"), source="atac")
    np.testing.assert_array_equal(found.obsm["X_babel"], expected)
    assert (found.X != given.X).nnz == 0
    assert found.obs.columns.tolist() == given.obs.columns.tolist()


def test_peaks_are_lifted_and_those_of_one_place_added_up(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pyliftover")
    chain = tmp_path / "chain"
    chain.write_text("chain 100 chr1 1000000 + 0 900000 chr1 1000000 + 500 900500 1\n900000\n\n")
    adata = ad.read_h5ad(files / "atac.h5ad")[:, :3].copy()
    adata.var_names = ["chr1:100-200", "chr1:1000-1500", "chr9:1-20"]
    found, report = lifted(read_measured(adata, "atac"), str(chain))
    assert found.var.index.tolist() == ["chr1:600-700", "chr1:1500-2000"]
    assert (found.matrix != adata.X[:, :2]).nnz == 0
    assert (report.lifted, report.unmapped) == (2, 1)
    place = Regions.parse(["chr2:5-9", "chr1:1-3", "chr2:5-9"])
    monkeypatch.setattr(asking, "lift", lambda regions, chain: (place, np.arange(3), report))
    found, _ = lifted(read_measured(adata, "atac"), "")
    x = adata.X.toarray()
    assert found.var.index.tolist() == ["chr2:5-9", "chr1:1-3"]
    np.testing.assert_array_equal(found.matrix.toarray(), np.c_[x[:, 0] + x[:, 2], x[:, 1]])


# Evaluate


def test_an_evaluation_of_the_fits_own_test_cells_gives_its_scores(
    fitted: Path, files: Path, tmp_path: Path, capsys
) -> None:
    run("evaluate", fitted, *paired(files), "--split-of", fitted, "--out", tmp_path / "e", "--no-maps")
    found, before = scores(tmp_path / "e"), scores(fitted)
    assert found["in_training"] == 0
    assert {m: timeless(of) for m, of in found["methods"].items()} == {
        m: timeless(of) for m, of in before["methods"].items()
    }
    assert "report: " in capsys.readouterr().out


def test_baselines_of_an_evaluation_learn_from_the_fits_cells_or_others(
    fitted: Path, files: Path, tmp_path: Path, no_page: None, capsys
) -> None:
    new = Path(tmp_path / "new")
    new.mkdir()
    for modality, adata in toy_anndata(60).items():
        adata.obs_names = [f"new{i}" for i in range(60)]
        adata.write_h5ad(new / f"{modality}.h5ad")
    run("evaluate", fitted, *paired(new), "--out", tmp_path / "a", "--no-maps")
    found = scores(tmp_path / "a")
    assert (found["cells"], found["split"], found["in_training"]) == (
        {"train": 60, "valid": 30, "test": 60},
        "all cells",
        0,
    )
    assert {"mean", "knn", "ridge"} <= set(found["baselines"])
    # The model alone: nobody knows what it was trained on.
    other = ["--train-rna", files / "rna.h5ad", "--train-atac", files / "atac.h5ad"]
    Translator.load(fitted).save(tmp_path / "alone")
    run("evaluate", tmp_path / "alone", *paired(new), "--out", tmp_path / "b", "--no-maps")
    assert "Give --train-rna" in scores(tmp_path / "b")["skipped"]["baselines"]
    assert "Give --train-rna" in capsys.readouterr().out
    run("evaluate", tmp_path / "alone", *paired(new), *other, "--out", tmp_path / "c", "--no-maps")
    assert scores(tmp_path / "c")["cells"] == {"train": 120, "valid": 0, "test": 60}
    # Cells that the model knows flatter it, and that is said.
    run("evaluate", fitted, *paired(files), "--out", tmp_path / "d", "--no-maps", "--no-baselines")
    assert scores(tmp_path / "d")["in_training"] == 90
    assert "90 of the 120 test cells have the names of cells that the model was fitted to" in capsys.readouterr().out
    # Baselines need what they translate between.
    argv = ["evaluate", tmp_path / "alone", *paired(new), *other[:2], "--out", tmp_path / "f"]
    assert "the cells they are to learn from have no atac" in refused(capsys, tmp_path, "translate", *argv)


def test_doubts_about_the_data_are_on_record(
    fitted: Path, files: Path, tmp_path: Path, no_page: None, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    assert scores(fitted)["doubts"] == json.loads((fitted / "run.json").read_text())["origin"]["doubts"]
    changed = tmp_path / "files"
    changed.mkdir()
    for modality in ("rna", "atac"):
        adata = ad.read_h5ad(files / f"{modality}.h5ad")
        adata.obs["more"] = 1
        adata.write_h5ad(changed / f"{modality}.h5ad")
    given = [*paired(changed), "--split-of", fitted, "--no-maps", "--no-baselines"]
    run("evaluate", fitted, *given, "--out", tmp_path / "a")
    (doubt,) = [said for said in scores(tmp_path / "a")["doubts"] if "files of other content" in said]
    assert f"warning: {doubt}" in capsys.readouterr().err
    run("evaluate", fitted, *paired(files), *given[4:], "--out", tmp_path / "b")
    assert not any("files of other content" in said for said in scores(tmp_path / "b")["doubts"])

    # One that comes up only when cells are predicted, several times: said once in what is kept.
    def doubting(*args: Any, **more: Any) -> Any:
        warnings.warn("few peaks", DataWarning, stacklevel=1)
        return predict(*args, **more)

    predict = Translator.predict
    monkeypatch.setattr(Translator, "predict", doubting)
    run("evaluate", fitted, *paired(files), *given[4:], "--out", tmp_path / "c")
    assert scores(tmp_path / "c")["doubts"].count("few peaks") == 1


def test_files_that_changed_are_not_learnt_from(files: Path, tmp_path: Path) -> None:
    path = tmp_path / "rna.h5ad"
    path.write_bytes((files / "rna.h5ad").read_bytes())
    plain = Origin(rna=str(path)).plain()
    assert Origin.restored(plain).read().n_cells == 120
    path.write_bytes((files / "atac.h5ad").read_bytes())
    with pytest.raises(InputError, match="has changed since"):
        Origin.restored(plain)
    path.unlink()
    with pytest.raises(InputError, match="is no longer there"):
        Origin.restored(plain)
    with pytest.raises(InputError, match="does not say"):
        Origin.restored({})


# Open Problems, list, help


def test_openproblems_predicts_and_refuses_with_99(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    names = {"mod1": "atac", "mod2": "rna"}
    for name, modality in names.items():
        adata = ad.read_h5ad(files / f"{modality}.h5ad")
        adata.layers["counts"] = adata.X
        adata.layers["normalized"] = adata.X.log1p()
        adata.uns |= {"modality": {"rna": "GEX", "atac": "ATAC"}[modality], "dataset_id": "toy"}
        adata[:100].write_h5ad(tmp_path / f"train_{name}.h5ad")
        adata[100:].write_h5ad(tmp_path / f"test_{name}.h5ad")
    task = [f"--train-mod1={tmp_path}/train_mod1.h5ad", f"--train-mod2={tmp_path}/train_mod2.h5ad"]
    asked = ["openproblems", *task, f"--test-mod1={tmp_path}/test_mod1.h5ad", f"--output={tmp_path}/out.h5ad"]
    monkeypatch.setitem(fitting.SYSTEMS["babel"].presets, "quick", BabelConfig(epochs=2, latent=4))
    run(*asked, "--preset", "quick")
    assert ad.read_h5ad(tmp_path / "out.h5ad").layers["normalized"].shape == (20, 60)
    (tmp_path / "before").mkdir()
    (tmp_path / "before/run.json").touch()
    said = refused(capsys, tmp_path, "translate", *asked, "--out", tmp_path / "before")
    assert "before: exists. Choose a new folder" in said
    with pytest.raises(SystemExit) as caught:
        run(*asked, "--modalities", "ATAC", "ADT")
    assert caught.value.code == 99
    assert "error: " in capsys.readouterr().err


def test_the_list_says_what_there_is(capsys) -> None:
    run("list")
    said = capsys.readouterr().out
    for words in ("babel", "scmog", "rna to atac", "paired cells", "presets", "as_released", "10.1073/pnas.2023070118"):
        assert words in said


@pytest.mark.parametrize(
    "verb", ["", "list", "count", "predict", "embed", "evaluate", "match", "openproblems", "fit", "fit babel"]
)
def test_help_has_an_example(verb: str, capsys) -> None:
    with contextlib.suppress(SystemExit):
        run(*verb.split(), "--help")
    said = capsys.readouterr().out
    assert "Example:" in said
    assert "expresser translate" in said
    if verb == "fit babel":
        assert "--config.rna.min-genes" in said


# Bad input


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("fit", "name a system; there are babel"),
        ("fit nothing --out x", "'nothing' is no system; there are babel, scmog"),
        ("fit --rna a.h5ad babel --out x", "the system comes first, before --rna"),
        ("fit babel --preset nothing --out x", "babel has no preset 'nothing'; there are "),
        ("fit babel --out x", "nothing to read"),
        ("fit babel --rna nowhere.h5ad --out x", "nowhere.h5ad"),
        ("fit babel --rna {rna} --atac {other} --out x", "no cell is in both rna"),
        ("fit babel --rna {rna} --out x", "only rna was given (120 cells)"),
        ("fit babel --rna {rna} --atac {atac} --out {rna}/x", "cannot be written to"),
        ("fit babel --rna {rna} --atac {atac} --layer rna=nothing --out x", "rna.h5ad: there is no layer 'nothing'"),
        ("fit babel --rna {rna} --atac {atac} --layer rna=a,peaks=b --out x", "'peaks=b' is no MODALITY=LAYER"),
        ("fit babel --rna {log} --atac {atac} --out x", "Raw counts are needed. layer 'counts' holds"),
        ("predict {half} --input {rna} --to atac --out x.h5ad", "the fit here is not finished"),
        ("predict {fit} --input {protein} --source protein --to rna --out x.h5ad", "does not go from protein to rna"),
        ("predict {fit} --input {rna} --to atac --out {rna}", "is also read"),
        ("predict {fit} --input {rna} --to atac --out {rna}/x.h5ad", "rna.h5ad is no folder. Choose another place."),
        ("fit babel --rna {rna} --atac {atac} --split batch --out x", "obs has no column 'batch'"),
        ("fit babel --rna {rna} --atac {atac} --test d1 --out x", "--split is random, not a column"),
        ("fit babel --rna {rna} --atac {atac} --rotation 1 --out x", "--split is random"),
        ("fit babel --rna {rna} --atac {atac} --shares 0.6 0.2 0.3 --out x", "must not be negative and must sum to 1"),
        (
            "fit babel --rna {rna} --atac {atac} --split cluster --shares 0.6 0.2 0.2 --out x",
            "--shares is of the random",
        ),
        ("fit babel --rna {rna} --atac {atac} --out {fit}", "holds a run already. Add --resume"),
        ("fit babel --rna {rna} --atac {atac} --out {fit} --split donor --resume", "another configuration"),
        ("fit scmog --rna {rna} --start {fit} --out x", "the model is a babel"),
        ("predict {fit} --input {rna} --to protein --out x.h5ad", "does not go from rna to protein"),
        ("predict {fit} --input {rna} --to atac --out x.csv", "written as .h5ad or .zarr"),
        ("predict {fit} --input {rna} --to atac --features zzz --out x.h5ad", "'zzz'"),
        ("predict {fit} --input {rna} --to atac --regions chr1 --out x.h5ad", "write chr1:0-1000000000"),
        ("predict {fit} --input {rna} --to atac --lift hg19ToHg38 --out x.h5ad", "read as rna"),
        ("predict {files} --input {rna} --to atac --out x.h5ad", "not a model folder"),
        ("predict {damaged} --input {rna} --to atac --out x.h5ad", "model.safetensors"),
        ("embed {fit} --input {rna} --out {rna}/x.h5ad", "is no folder"),
        ("openproblems --train-mod1 {rna} --train-mod2 {atac} --test-mod1 {rna} --output {atac}", "would be lost"),
        ("embed {fit} --input {rna} --out x.csv", "writes one"),
        ("evaluate {fit} --rna {rna} --out x", "measured in rna, but this babel goes"),
        ("evaluate {fit} --rna {rna} --atac {atac} --out {fit}", "Choose a new folder"),
        ("evaluate {fit} --rna {rna} --atac {atac} --split-of {files} --out x", "no folder of a fit"),
    ],
)
def test_bad_input_is_one_message(
    argv: str, words: str, files: Path, fitted: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    damaged = tmp_path / "damaged"
    Translator.load(fitted).save(damaged)
    with open(damaged / "model.safetensors", "r+b") as file:
        file.truncate(500)
    other = ad.read_h5ad(files / "atac.h5ad")
    other.obs_names = [f"else{i}" for i in range(other.n_obs)]
    other.write_h5ad(tmp_path / "other.h5ad")
    log = ad.read_h5ad(files / "rna.h5ad")
    log.layers["counts"] = log.X.copy()
    log.X = log.X.astype(np.float32) / 3
    log.write_h5ad(tmp_path / "log.h5ad")
    half = tmp_path / "half"
    half.mkdir()
    (half / "split.tsv").touch()
    places = {"files": files, "fit": fitted, "damaged": damaged, "half": half}
    places |= {name: tmp_path / f"{name}.h5ad" for name in ("other", "log")}
    places |= {m: files / f"{m}.h5ad" for m in ("rna", "atac", "protein")}
    more = QUICK if argv.startswith("fit babel") and "--resume" not in argv else []
    said = refused(capsys, here, "translate", *argv.format(**places).split(), *more)
    assert words in said


# Parts


def test_a_layer_is_of_all_modalities_or_of_those_named(files: Path, tmp_path: Path) -> None:
    rna = ad.read_h5ad(files / "rna.h5ad")
    rna.layers["counts"] = rna.X.copy()
    rna.X = np.log1p(rna.X.astype(np.float32))
    rna.write_h5ad(tmp_path / "rna.h5ad")
    plain = Origin(rna=f"{files / 'rna.h5ad'}", atac=f"{files / 'atac.h5ad'}").read()
    study = Origin(rna=f"{tmp_path / 'rna.h5ad'}", atac=f"{files / 'atac.h5ad'}", layer="rna=counts").read()
    assert (study.measured["rna"].matrix != plain.measured["rna"].matrix).nnz == 0
    assert (study.measured["atac"].matrix != plain.measured["atac"].matrix).nnz == 0
    assert [layers(given) for given in (None, "counts", "a=b")] == [None, "counts", "a=b"]
    assert layers("rna=x,atac=raw") == {"rna": "x", "atac": "raw"}


def test_what_a_model_can_read_of_a_file_is_said(fitted: Path, files: Path) -> None:
    translator = Translator.load(fitted)
    rna = ad.read_h5ad(files / "rna.h5ad")[:4, 10:].copy()
    rna.X = sparse.csr_matrix(rna.X.toarray() * np.array([[1], [1], [0], [1]]))
    said = matched(translator, translator.read(rna, source="rna"), "rna")
    n, known = len(translator.var("rna")), translator.var("rna").index.isin(rna.var_names).sum()
    assert said.startswith(
        f"AnnData in memory: has {known} of the {n} genes that the model reads; 1 of 4 cells have no"
    )
    assert f"(first: {rna.obs_names[2]!r})" in said
    atac = ad.read_h5ad(files / "atac.h5ad")
    said = matched(translator, translator.read(atac, source="atac"), "atac")
    n = len(translator.var("atac"))
    assert f"has {n} of the {n} peaks that the model reads" in said


def test_one_cell_is_said_to_be_one(fitted: Path, files: Path, tmp_path: Path, capsys) -> None:
    ad.read_h5ad(files / "rna.h5ad")[:1].copy().write_h5ad(tmp_path / "one.h5ad")
    run("predict", fitted, "--input", tmp_path / "one.h5ad", "--to", "atac", "--out", tmp_path / "out.h5ad")
    assert capsys.readouterr().out.startswith("1 cell x ")


def test_what_a_file_holds_is_told_by_its_features(files: Path) -> None:
    for modality in ("rna", "atac"):
        assert guess_modality(files / f"{modality}.h5ad") == modality
    genes = ad.read_h5ad(files / "rna.h5ad")
    genes.var["start"], genes.var["end"] = 1, 2
    assert guess_modality(genes) == "rna"
    peaks = ad.read_h5ad(files / "atac.h5ad")
    peaks.var = pd.DataFrame({"chrom": "chr1", "start": 1, "end": 2}, index=[f"peak{i}" for i in range(120)])
    assert guess_modality(peaks) == "atac"
    genes.var["feature_types"] = ["Gene Expression"] * 30 + ["Peaks"] * 30
    with pytest.raises(InputError, match="holds atac, rna"):
        guess_modality(genes)


def test_some_training_cells_validate_where_groups_are_too_few(files: Path) -> None:
    study: Study = read_study(rna=files / "rna.h5ad", atac=files / "atac.h5ad", check_pairing=False)
    split = validate_at_random(study, split_by_column(study, "kind", valid=[], test="a"), seed=1)
    assert set(study.obs["kind"].iloc[split.test]) == {"a"}
    assert set(study.obs["kind"].iloc[np.r_[split.train, split.valid]]) == {"b"}
    n = len(split.train) + len(split.valid)
    assert len(split.valid) == round(0.15 * n)
    assert split.name == "by kind: test a; 15% of training cells validate, seed 1"


def test_shares_are_those_asked_for(files: Path) -> None:
    study = Origin(rna=str(files / "rna.h5ad"), atac=str(files / "atac.h5ad")).read()
    given = Arguments(out=Path("x"), config=BabelConfig(), split="random", shares=(0.6, 0.2, 0.2))
    split = choose_split(study, given)
    assert [len(split.train), len(split.valid), len(split.test)] == [72, 24, 24]
    usual = choose_split(study, Arguments(out=Path("x"), config=BabelConfig(), split="random"))
    assert [len(usual.train), len(usual.valid), len(usual.test)] == [84, 18, 18]
    # An unseen type, and a tenth of the others to watch.
    group = str(study.obs["donor"].iloc[0])
    held = Arguments(
        out=Path("x"), config=BabelConfig(), split="donor", valid=("random",), test=(group,), shares=(0.7, 0.1, 0.2)
    )
    split = choose_split(study, held)
    assert set(study.obs["donor"].iloc[split.test]) == {group}
    assert len(split.valid) == round(0.1 * (120 - len(split.test)))


def test_the_split_of_a_fit_finds_cells_by_name(fitted: Path, files: Path) -> None:
    study = read_study(rna=files / "rna.h5ad", atac=files / "atac.h5ad", check_pairing=False)
    split = split_of(fitted, study)
    turned = study.select(np.arange(study.n_cells)[::-1].copy())
    again = split_of(fitted, turned)
    for one, other in ((split.test, again.test), (split.train, again.train)):
        assert set(study.obs.index[one]) == set(turned.obs.index[other])
    source: dict[Modality, ad.AnnData] = {"rna": ad.read_h5ad(files / "rna.h5ad")}
    source["rna"].obs_names = [f"x{i}" for i in range(120)]
    with pytest.raises(InputError, match="none of its 120 cells"):
        split_of(fitted, read_study(**source))
