"""How objects show themselves, MuData wherever a pair is taken, and outputs in the hands of scanpy, muon and scib-metrics."""

import dataclasses
import inspect
import json
import re
import warnings
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from translate_toys import BABEL, toy_anndata, toy_split, toy_study

import translate
from expresser import checkpoint, plots, plots_curves
from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.notebook import card, lines
from expresser.progress import NotebookBar, shown
from expresser.region_vocab import RegionVocab
from expresser.regions import Regions
from translate.cli import COMMAND
from translate.data import read_study
from translate.model import Model
from translate.origin import Origin
from translate.translator import Translator

HOSTILE = "<script>alert(1)</script>&\"'"


class Tags(HTMLParser):
    """Which tags are open, which were ever met, and the text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.met: set[str] = set()
        self.words = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.met.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data


def prove_html(text: str, *words: str) -> None:
    """Well formed, no script, sheet or colour of its own, and these words in it."""
    tags = Tags(text)
    assert tags.open == []
    assert not tags.met & {"script", "style", "link", "img", "iframe"}
    assert not re.search(
        r"#[0-9a-fA-F]{3,8}\b|\brgba?\(|(?<!-)\bcolor: ?(?!inherit)", " ".join(re.findall('style="[^"]*"', text))
    )
    for word in words:
        assert word in tags.words, word


def joint_of(made: dict[Any, ad.AnnData]) -> ad.AnnData:
    """RNA and ATAC side by side in one AnnData, told apart by feature_types."""
    parts = []
    for m, kind in (("rna", "Gene Expression"), ("atac", "Peaks")):
        part = made[m].copy()
        part.var = pd.DataFrame({"feature_types": kind}, index=part.var_names)
        parts.append(part)
    both = ad.concat(parts, axis=1, merge="same")
    both.obs = made["rna"].obs.copy()
    return both


def mudata_of(made: dict[Any, ad.AnnData], **names: str) -> Any:
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata = mudata.MuData({names.get(m, m): made[m].copy() for m in ("rna", "atac")})
    mdata.obs["donor"] = [f"d{i % 4}" for i in range(mdata.n_obs)]
    return mdata


def write_h5mu(mdata: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata.write(path)
    return path


@pytest.fixture(scope="module")
def made() -> dict[Any, ad.AnnData]:
    return toy_anndata(seed=1)


@pytest.fixture(scope="module")
def model(made, tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("fit") / "babel"
    mdata = mudata_of(made)
    return translate.fit(
        "babel", mdata, config=BABEL, split=toy_split(), out=folder, check_pairing=False, progress=False, epochs=2
    )


# ---- how things show themselves --------------------------------------------------------------------------------------


def test_a_card_is_escaped_well_formed_html_without_colours_of_its_own():
    frame = pd.DataFrame({HOSTILE: [HOSTILE, "b"], "n": [1234567.0, np.nan]}, index=[HOSTILE, "row"])
    text = card(
        HOSTILE,
        {HOSTILE: HOSTILE, "absent": None, "n": 12345, "yes": True},
        {HOSTILE: frame, "x": HOSTILE, "y": [HOSTILE]},
    )
    prove_html(text, HOSTILE, "12,345", "1,234,567", "—", "True")
    assert "absent" not in text
    many = card("many", {}, {"rows": pd.DataFrame({"n": range(50)})})
    prove_html(many, "and 30 more")


def test_facts_as_text_are_a_line_each():
    assert lines("Thing", {"a": 1234, "longer": "x", "none": None}) == "Thing\n    a       1,234\n    longer  x"


def test_a_model_says_what_it_is_and_not_what_it_is_made_of(model):
    text = repr(model)
    assert text.splitlines()[0] == "Model babel"
    assert len(text.splitlines()) < 20
    for words in (
        "rna → atac, atac → rna",
        f"{len(model.var('rna'))} genes",
        f"{len(model.var('atac'))} peaks",
        "80 cells",
    ):
        assert words in text
    assert f"{sum(p.numel() for p in model.system.parameters()):,}" in text
    assert "Linear(" not in text
    prove_html(model._repr_html_(), "Model babel", "10.1073/pnas.2023070118", "rna → atac", '"latent": 8')
    prove_html(model.system._repr_html_(), "BABEL", "SparseLinear")
    assert repr(Translator.load(model.folder / "model")).splitlines()[0] == "Translator babel"


def test_studies_and_what_was_measured_say_their_sizes(made):
    study = read_study(rna=made["rna"], atac=made["atac"][:100].copy(), check_pairing=False)
    assert repr(study) == "Study(120 cells, 100 with everything; rna 120 x 60, atac 100 x 120)"
    prove_html(study._repr_html_(), "120", "100", "rna", "atac", "kind")
    nnz = study.measured["rna"].matrix.nnz
    assert repr(study.measured["rna"]) == f"Measured(AnnData in memory: 120 cells x 60 features, {nnz:,} non-zero)"


def test_a_checkpoint_a_corpus_and_a_vocabulary_say_what_they_are(tiny_run, tiny_corpus, tmp_path):
    found = checkpoint.load(tiny_run)
    text = repr(found)
    assert text.startswith(f"Checkpoint {tiny_run}\n")
    assert len(text.splitlines()) < 20
    for words in ("ExpresserModel", "80", "12 steps", "truncated", f"{found.run['valid']['mse']:.3f}"):
        assert words in text
    prove_html(found._repr_html_(), "ExpresserModel", '"recipe": "tiny"', "gene_tokens")
    prove_html(found.model._repr_html_(), "ExpresserModel", "gene_tokens", '"d_model": 16')
    bare = checkpoint.random_checkpoint(found, seed=0)
    assert "steps" not in repr(bare)
    prove_html(bare._repr_html_(), "random weights")
    corpus = Corpus.open(tiny_corpus)
    prove_html(corpus._repr_html_(), str(tiny_corpus), "120", "cell_type, donor", corpus.corpus_id[:12])
    prove_html(corpus.vocab._repr_html_(), "genes", "80", corpus.vocab.symbols[0])
    vocab = GeneVocab(pd.DataFrame({"gene_id": ["ENSG00000000001", "B"], "symbol": [HOSTILE, "B"]}))
    prove_html(vocab._repr_html_(), HOSTILE)
    regions = RegionVocab(Regions.parse(["chr1:100-200", "chr2:1-9"]))
    assert repr(regions).startswith("RegionVocab(2 regions: chr1:100-200, chr2:1-9, …;")
    prove_html(regions._repr_html_(), "regions", "chr2:1-9")


def test_how_names_were_resolved_is_told_in_one_line():
    vocab = GeneVocab(pd.DataFrame({"gene_id": ["ENSG00000000001", "B"], "symbol": ["A", "B"]}))
    found = vocab.resolve(["A", "B", "ENSG00000000001", HOSTILE])
    assert repr(found) == "Resolution(4 names: 2 symbol, 1 id, 1 unknown)"
    prove_html(found.report()._repr_html_(), HOSTILE)


# ---- progress --------------------------------------------------------------------------------------------------------


def test_a_notebooks_bar_says_how_far_and_how_it_ended(monkeypatch):
    drawn: list[tuple[str, str]] = []
    bar = NotebookBar("fit <b>")
    monkeypatch.setattr(bar, "_draw", lambda: drawn.append((repr(bar), bar._repr_html_())))
    bar.report(3, 12, "epoch 3")
    bar.report(5, None, "writing")
    bar.report(40, 12)
    bar.close("stopped")
    texts = [text for text, _ in drawn]
    assert texts[0] == "fit <b>: epoch 3  3 of 12"
    assert re.fullmatch(r"fit <b>  stopped after 0\.\d s, at 40 of 12", texts[-1])
    for _, html in drawn:
        prove_html(html, "fit <b>")
    assert 'max="12" value="3"' in drawn[0][1]
    assert "<progress" not in drawn[-1][1]


def test_progress_true_is_a_bar_false_is_none_and_a_function_is_itself():
    def report(done: int, total: int | None, what: str = "") -> None: ...

    for given, expected in ((None, None), (False, None), (report, report)):
        with shown(given, "x") as found:
            assert found is expected
    with shown(True, "x") as found:  # silent: stderr is no terminal here
        assert found is not None
        found(1, 2, "stage")


def run_notebook(cells: list[str], tmp_path: Path) -> tuple[list[Any], list[int]]:
    """Outputs of each cell in a real kernel, and how many messages about outputs each sent."""
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    import nbformat

    class Counting(nbclient.NotebookClient):  # type: ignore[name-defined, misc]
        sent: list[int] = []  # noqa: RUF012

        def process_message(self, msg: Any, cell: Any, cell_index: int) -> Any:
            self.sent[cell_index] += msg["msg_type"] in ("display_data", "update_display_data", "stream", "error")
            return super().process_message(msg, cell, cell_index)

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    client = Counting(notebook, timeout=300, kernel_name="python3", allow_errors=True)
    client.sent = [0] * len(cells)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.execute(cwd=str(tmp_path))
    return [cell.outputs for cell in notebook.cells], client.sent


def test_a_bar_in_a_real_kernel_is_one_output_redrawn_a_few_times_a_second(tmp_path):
    outputs, sent = run_notebook(
        [
            "import time\nfrom expresser.progress import progress_bar\nbegan = time.monotonic()\n"
            "with progress_bar('work') as report:\n    for i in range(3000):\n        report(i + 1, 3000, 'stage')\n"
            "        time.sleep(0.0002)\ntook = time.monotonic() - began",
            "with progress_bar('broken') as report:\n    report(7, 9)\n    raise KeyError('oh')",
            "print(took)",
        ],
        tmp_path,
    )
    took = float(outputs[2][0]["text"])
    assert [output.output_type for output in outputs[0]] == ["display_data"]
    assert outputs[0][0].data["text/plain"].startswith("work  done after")
    prove_html(outputs[0][0].data["text/html"], "work  done after")
    assert 2 <= sent[0] <= took / 0.2 + 3
    assert [output.output_type for output in outputs[1]] == ["display_data", "error"]
    assert re.match(r"broken  stopped after .*, at 7 of 9", outputs[1][0].data["text/plain"])


@pytest.mark.slow
def test_a_fit_a_judgement_and_a_pretrained_model_in_a_real_kernel(tmp_path, made, tiny_run, tiny_data, tiny_corpus):
    for m in ("rna", "atac"):
        made[m].write_h5ad(tmp_path / f"{m}.h5ad")
    tiny_data.write_h5ad(tmp_path / "cells.h5ad")
    fit = "config=BabelConfig(rna=RnaRecipe(min_genes=0), atac=AtacRecipe(min_cells=1, max_share=1.0), latent=8, epochs=40)"
    outputs, _ = run_notebook(
        [
            "import translate\nfrom translate.babel import BabelConfig\nfrom translate.preprocess import AtacRecipe, RnaRecipe\n"
            f"model = translate.fit('babel', rna='rna.h5ad', atac='atac.h5ad', out='run', check_pairing=False, {fit})\nmodel",
            "scores = model.evaluate()\nscores",
            "%matplotlib inline\nax = scores.plot()\nax.set_title('x');",
            "import anndata\nfrom expresser.checkpoint import load\nfrom expresser.embed import embed\n"
            f"found = load({str(tiny_run)!r})\ncells = anndata.read_h5ad('cells.h5ad')\n"
            "embed(cells, found, progress=True)\nfound",
            "from dataclasses import replace\nfrom pretrain.loop import pretrain\nfrom pretrain.recipes import RECIPES\n"
            "from pretrain.config import ModelConfig, DataConfig\n"
            "tiny = replace(RECIPES['small'](), model=ModelConfig(d_model=16, n_layers=1, n_heads=2), precision='no',\n"
            "    data=DataConfig(global_batch=8, max_steps=6, valid_cells=8))\n"
            f"pretrain(tiny, {str(tiny_corpus)!r}, 'pretrained')\nNone",
        ],
        tmp_path,
    )
    # Without ipywidgets, tqdm says on import that it will draw its own bars, of downloads, as text.
    outputs = [[o for o in of if "IProgress not found" not in o.get("text", "")] for of in outputs]
    kinds = [[o.output_type for o in of] for of in outputs]
    assert kinds[0] == ["display_data", "execute_result"], outputs[0]
    assert outputs[0][1].data["text/plain"].startswith("Model babel")
    prove_html(outputs[0][1].data["text/html"], "Model babel")
    assert kinds[1] == ["display_data", "execute_result"], outputs[1]
    prove_html(outputs[1][1].data["text/html"], "Scores of babel", "ridge")
    assert kinds[2] == ["display_data"]
    assert "image/png" in outputs[2][0].data
    assert kinds[3] == ["display_data", "execute_result"], outputs[3]
    assert outputs[3][0].data["text/plain"].startswith("embed  done after")
    assert "error" not in kinds[4], outputs[4]
    assert [o.data["text/plain"].split("  ")[0] for o in outputs[4] if o.output_type == "display_data"] == ["pretrain"]
    assert sum(len(of) for of in outputs) <= 12


# ---- MuData wherever a pair is ---------------------------------------------------------------------------------------


def test_a_fit_from_a_mudata_a_joint_anndata_and_files_is_the_same_fit(model, made, tmp_path):
    for m in ("rna", "atac"):
        made[m].write_h5ad(tmp_path / f"{m}.h5ad")
    other = {"rna": tmp_path / "rna.h5ad", "atac": str(tmp_path / "atac.h5ad")}
    again = translate.fit(
        "babel", config=BABEL, split=toy_split(), check_pairing=False, progress=None, epochs=2, **other
    )
    study = toy_study(seed=1)
    third = translate.fit("babel", study, config=BABEL, split=toy_split(), progress=None, epochs=2)
    for name, value in model.system.state_dict().items():
        assert value.equal(again.system.state_dict()[name]), name
        assert value.equal(third.system.state_dict()[name]), name
    assert again.folder is None
    assert model.run["study"] == again.run["study"] == third.run["study"]
    assert "memory" in model.run["origin"]
    assert Origin.restored(again.run["origin"]).files == {m: tmp_path / f"{m}.h5ad" for m in ("rna", "atac")}
    assert {p.name for p in model.folder.iterdir()} >= {"model", "log.jsonl", "split.tsv", "report.html"}


def test_options_that_are_none_and_data_given_twice_are_refused(made):
    with pytest.raises(InputError, match=r"babel has no option latents; it has atac, .*latent"):
        translate.fit("babel", mudata_of(made), latents=3, progress=None)
    with pytest.raises(InputError, match="no system 'bable'"):
        translate.fit("bable", mudata_of(made), progress=None)
    with pytest.raises(InputError, match="leave rna out"):
        translate.fit("babel", toy_study(), rna=made["rna"], progress=None)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        translate.fitt  # noqa: B018


@pytest.mark.parametrize("names", [{}, {"rna": "gex", "atac": "peaks"}])
def test_a_mudata_is_translated_as_its_modalities_are(model, made, names, tmp_path):
    mdata = mudata_of(made, **names)
    path = write_h5mu(mdata, tmp_path / "both.h5mu")
    for source, to in (("rna", "atac"), ("atac", "rna")):
        expected = model.translate(made[source], to)
        for given in (mdata, path, joint_of(made)):
            found = model.translate(given, to)
            np.testing.assert_array_equal(found.X, expected.X)
            assert found.obs_names.equals(made[source].obs_names)
            assert found.obs["kind"].tolist() == made[source].obs["kind"].tolist()
    assert model.translate(mdata, "atac").obs["donor"].tolist() == mdata.obs["donor"].tolist()
    np.testing.assert_array_equal(
        model.translate(mdata, "atac", source="atac").X, model.translate(made["atac"], "atac").X
    )
    with pytest.raises(InputError, match=r"holds .*atac, rna.*source"):
        model.read(mdata)
    with pytest.raises(InputError, match="does not go from rna to protein"):
        model.translate(mdata, "protein", source="rna")
    with pytest.raises(InputError, match="holds rna, atac, and no protein"):
        model.translate(mdata, "atac", source="protein")


def test_a_mudata_on_disk_as_zarr_is_read_too(made, tmp_path):
    mdata = mudata_of(made)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mdata.write_zarr(tmp_path / "both.zarr")
    study = read_study(tmp_path / "both.zarr", check_pairing=False)
    expected = read_study(mdata, check_pairing=False)
    assert study.obs["donor"].tolist() == expected.obs["donor"].tolist()
    for m in ("rna", "atac"):
        assert (study.measured[m].matrix != expected.measured[m].matrix).nnz == 0


def test_a_mudata_given_as_one_modality_is_refused_with_the_way_out(made):
    with pytest.raises(InputError, match=r"a MuData, of several modalities: give it as mudata"):
        read_study(rna=mudata_of(made))


def test_embedding_a_mudata_writes_into_its_modalities_and_none_before_all_are_known(model, made):
    mdata = mudata_of(made)
    model.embed(mdata)
    for m in ("rna", "atac"):
        alone = made[m].copy()
        model.embed(alone)
        np.testing.assert_array_equal(mdata[m].obsm["X_babel"], alone.obsm["X_babel"])
        assert mdata[m].uns["expresser"]["X_babel"]["source"] == m
    only = mudata_of(made)
    model.embed(only, source="atac")
    assert "X_babel" not in only["rna"].obsm
    bad = mudata_of(made)
    bad["atac"].X = bad["atac"].X * 0.3
    with pytest.raises(InputError, match="counts or 0/1"):
        model.embed(bad)
    assert "X_babel" not in bad["rna"].obsm
    with pytest.raises(InputError, match=r"reads rna, atac, .*protein was asked for"):
        model.embed(mdata, source="protein")


def test_its_own_test_cells_and_the_same_cells_given_again_have_the_same_scores(model, made):
    own = model.evaluate(progress=None)
    test = {m: made[m][toy_split().test].copy() for m in ("rna", "atac")}
    given = model.evaluate(mudata_of(test), check_pairing=False, progress=None)
    assert own.metrics["in_training"] == given.metrics["in_training"] == 0
    assert set(own.metrics["methods"]) == set(given.metrics["methods"])
    pd.testing.assert_frame_equal(
        own.frame.drop(columns="seconds"), given.frame.drop(columns="seconds"), check_like=True
    )
    everything = model.evaluate(mudata_of(made), check_pairing=False, baselines=False, progress=None)
    assert everything.metrics["in_training"] == 110
    assert set(everything.metrics["methods"]) == {"babel"}


def test_scores_show_a_table_and_draw_on_axes(model, tmp_path):
    scores = model.evaluate(out=tmp_path / "judged", progress=None)
    assert scores.report == tmp_path / "judged" / "report.html"
    assert scores.report.is_file()
    metrics = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    assert metrics["methods"].keys() == scores.metrics["methods"].keys()
    assert "ridge" in repr(scores)
    prove_html(scores._repr_html_(), "Scores of babel", "ridge", "rna to atac", "10", str(scores.report))
    ax = Figure().add_subplot()
    assert scores.plot(ax=ax) is ax
    shown_there = {label.get_text() for label in ax.get_yticklabels()}
    assert shown_there == {m for d, m in scores.frame.index if d == "rna_to_atac"}
    value = scores.frame.loc[("atac_to_rna", "babel"), "mae"]
    bars = scores.plot("mae", "atac_to_rna", ax=Figure().add_subplot())
    assert any(np.isclose(patch.get_width(), value) for patch in bars.patches)
    assert isinstance(scores.plot(), Axes)
    with pytest.raises(InputError, match="no score 'x'; there are"):
        scores.plot("x")
    with pytest.raises(InputError, match="no direction 'y'; there are rna_to_atac, atac_to_rna"):
        scores.plot(direction="y")
    with pytest.raises(InputError, match="exists"):
        model.evaluate(out=tmp_path / "judged", progress=None)


def test_scores_that_no_method_has_in_a_direction_are_left_out(model):
    scores = model.evaluate(baselines=False, progress=None)
    bare = {m: {d: {"mae": 0.1} if d == "atac_to_rna" else of for d, of in said.items() if isinstance(of, dict)}
            for m, said in scores.metrics["methods"].items()}  # fmt: skip
    shown = dataclasses.replace(scores, metrics=scores.metrics | {"methods": bare})
    prove_html(shown._repr_html_(), "atac to rna", "0.1")


def test_cells_that_the_fit_left_out_are_not_judged(made, tmp_path):
    few = {m: data.copy() for m, data in made.items() if m in ("rna", "atac")}
    last = toy_split().test[-1]
    poor = few["rna"].X.tolil()
    poor[last, 1:] = 0  # one gene
    few["rna"].X = poor.tocsr()
    config = replace(BABEL, rna=replace(BABEL.rna, min_genes=2))
    fitted = translate.fit(
        "babel",
        mudata_of(few),
        config=config,
        split=toy_split(),
        out=tmp_path / "fit",
        check_pairing=False,
        progress=False,
        epochs=1,
    )
    assert fitted.split is not None
    assert last not in fitted.split.test
    assert len(fitted.split.test) == len(toy_split().test) - 1


def test_a_loaded_model_knows_its_log_and_says_that_its_cells_were_in_memory(model, tmp_path):
    again = translate.load(model.folder)
    assert again.folder == model.folder
    assert again.log == model.log
    assert len(again.log) == 2
    ax = again.curves(ax=Figure().add_subplot())
    np.testing.assert_allclose(ax.lines[1].get_ydata(), [entry["valid"]["loss"] for entry in model.log])
    with pytest.raises(InputError, match=r"own are not at hand.*Give cells: evaluate\(mdata\)"):
        again.evaluate(progress=None)
    with pytest.raises(InputError, match="no phase 'x'; there are translate"):
        again.curves("x")
    moved = model.save(tmp_path / "moved")
    with pytest.raises(InputError, match="not at hand: load the folder of its fit"):
        translate.load(moved).curves()


# ---- --mudata wherever --rna and --atac are --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(made, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    found = {}
    for m in ("rna", "atac"):
        made[m].write_h5ad(folder / f"{m}.h5ad")
        found[m] = str(folder / f"{m}.h5ad")
    found["mudata"] = str(write_h5mu(mudata_of(made), folder / "both.h5mu"))
    return found


def test_predict_and_embed_take_a_mudata_file(model, files, tmp_path):
    name = str(model.folder)
    for given, out in ((files["rna"], "a.h5ad"), (files["mudata"], "b.h5ad")):
        COMMAND.run(["predict", name, "--input", given, "--to", "atac", "--out", str(tmp_path / out)])
    one, other = (ad.read_h5ad(tmp_path / out) for out in ("a.h5ad", "b.h5ad"))
    np.testing.assert_array_equal(one.X, other.X)
    assert "donor" in other.obs
    COMMAND.run(["embed", name, "--input", files["mudata"], "--out", str(tmp_path / "e.h5mu")])
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole, before = mudata.read_h5mu(tmp_path / "e.h5mu"), mudata.read_h5mu(files["mudata"])
    for m in ("rna", "atac"):
        COMMAND.run(["embed", name, "--input", files[m], "--out", str(tmp_path / f"{m}.h5ad")])
        np.testing.assert_array_equal(whole[m].obsm["X_babel"], ad.read_h5ad(tmp_path / f"{m}.h5ad").obsm["X_babel"])
        assert whole[m].uns["expresser"]["X_babel"]["source"] == m
        assert (whole[m].X != before[m].X).nnz == 0
    with pytest.raises(InputError, match=r"reads an \.h5ad file and writes one, or reads an \.h5mu"):
        COMMAND.run(["embed", name, "--input", files["mudata"], "--out", str(tmp_path / "e.h5ad")])
    with pytest.raises(InputError, match="holds atac, rna, and what is to be embedded is protein"):
        COMMAND.run(
            ["embed", name, "--input", files["mudata"], "--out", str(tmp_path / "f.h5mu"), "--source", "protein"]
        )
    assert not (tmp_path / "f.h5mu").exists()


def test_match_takes_a_mudata_file(model, files, tmp_path):
    name = str(model.folder)
    pair = ["--rna", files["rna"], "--atac", files["atac"]]
    COMMAND.run(["match", name, *pair, "--out", str(tmp_path / "a.tsv")])
    COMMAND.run(["match", name, "--mudata", files["mudata"], "--out", str(tmp_path / "b.tsv")])
    assert (tmp_path / "a.tsv").read_text() == (tmp_path / "b.tsv").read_text()
    for wrong, words in ((pair[:2], "one file that holds both"), ([*pair, "--mudata", files["mudata"]], "not both")):
        with pytest.raises(InputError, match=words):
            COMMAND.run(["match", name, *wrong, "--out", str(tmp_path / "c.tsv")])


def test_evaluate_takes_a_mudata_file_for_the_cells_and_for_what_baselines_learn_from(model, files, made, tmp_path):
    given = ["--mudata", files["mudata"], "--train-mudata", files["mudata"], "--no-maps", "--out", str(tmp_path / "e")]
    COMMAND.run(["evaluate", str(model.folder), *given])
    found = json.loads((tmp_path / "e" / "metrics.json").read_text())
    assert {"ridge", "gene_activity"} <= set(found["methods"])  # its training cells were in memory, and are not known
    expected = model.evaluate(mudata_of(made), check_pairing=False, baselines=False, progress=None).metrics
    for direction in ("rna_to_atac", "atac_to_rna"):
        ours, theirs = (metrics["methods"]["babel"][direction] for metrics in (expected, found))
        for score in ("pearson_gene", "auroc_peak", "mae"):
            assert ours.get(score) == pytest.approx(theirs.get(score), abs=1e-9)


def test_perturb_takes_a_mudata_file(model, files, made, tmp_path):
    peak = str(model.var("atac").index[3])
    more = ["--close", peak, "--cells", "30", "--null", "3"]
    for how, given in (
        ("files", ["--input", files["atac"], "--paired", files["rna"]]),
        ("mudata", ["--mudata", files["mudata"]]),
    ):
        COMMAND.run(["perturb", str(model.folder), *given, *more, "--out", str(tmp_path / how)])
    one, other = (pd.read_csv(tmp_path / how / "top_effects.tsv", sep="\t") for how in ("files", "mudata"))
    pd.testing.assert_frame_equal(one, other)
    for wrong in (
        [],
        ["--mudata", files["mudata"], "--input", files["atac"]],
        ["--mudata", files["mudata"], "--paired", files["rna"]],
    ):
        with pytest.raises(InputError, match="--mudata"):
            COMMAND.run(["perturb", str(model.folder), *wrong, *more, "--out", str(tmp_path / "no")])


@pytest.mark.slow
def test_label_takes_a_mudata_file(tmp_path):
    from expresser.simulate import simulate_multiome

    sim = simulate_multiome(n_cells=300, n_genes=300, n_peaks=1500, n_types=3, seed=0)
    parts = {"rna": sim.rna[:150].copy(), "atac": sim.atac[150:].copy()}
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_h5mu(mudata.MuData(parts), tmp_path / "both.h5mu")
    for m, part in parts.items():
        part.write_h5ad(tmp_path / f"{m}.h5ad")
    pair = ["--rna", str(tmp_path / "rna.h5ad"), "--atac", str(tmp_path / "atac.h5ad")]
    COMMAND.run(["label", *pair, "--labels", "cell_type", "--out", str(tmp_path / "a.h5ad")])
    both = ["--mudata", str(tmp_path / "both.h5mu")]
    COMMAND.run(["label", *both, "--labels", "cell_type", "--out", str(tmp_path / "b.h5ad")])
    one, other = (ad.read_h5ad(tmp_path / f"{x}.h5ad").obs for x in "ab")
    np.testing.assert_array_equal(one["cell_type_confidence"], other["cell_type_confidence"])
    assert one["cell_type"].astype(str).tolist() == other["cell_type"].astype(str).tolist()
    with pytest.raises(InputError, match=r"label reads the ATAC from \.h5mu"):
        COMMAND.run(
            ["label", "--mudata", str(tmp_path / "a.h5ad"), "--labels", "cell_type", "--out", str(tmp_path / "c.h5ad")]
        )


# ---- outputs in other packages' hands --------------------------------------------------------------------------------


def test_all_plotting_functions_return_the_axes_they_draw_on():
    found = [
        f
        for module in (plots, plots_curves)
        for name, f in vars(module).items()
        if name.endswith("_axes") and not name.startswith("_")
    ]
    assert len(found) >= 11
    for function in found:
        returned = str(inspect.signature(function).return_annotation)
        assert returned.endswith("Axes'>") or returned == "Axes", function.__name__


def test_scanpy_draws_predictions_and_embeddings_as_they_are(model, made):
    import matplotlib.pyplot as plt
    import scanpy as sc

    predicted = model.translate(made["atac"], "rna")
    cells = made["rna"].copy()
    model.embed(cells)
    genes = list(predicted.var_names[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scanpy's own, of seaborn and of categories
        ax = sc.pl.violin(predicted, genes[0], groupby="kind", show=False)
        assert isinstance(ax, Axes)
        axes = sc.pl.heatmap(predicted, genes, groupby="kind", show=False)
        assert isinstance(axes["heatmap_ax"], Axes)
        sc.tl.rank_genes_groups(predicted, "kind", method="wilcoxon")
        assert isinstance(sc.pl.rank_genes_groups(predicted, n_genes=2, show=False)[0], Axes)
        ax = sc.pl.embedding(cells, "X_babel", color=["kind"], show=False)
        assert isinstance(ax, Axes)
        sc.pp.neighbors(cells, use_rep="X_babel", n_neighbors=5, method="gauss", transformer="sklearn")
        sc.tl.diffmap(cells, n_comps=3)
        assert isinstance(sc.pl.diffmap(cells, color="kind", show=False), Axes)
    plt.close("all")


def test_muon_takes_predictions_as_a_modality_and_embeddings_as_they_are(model, made, tmp_path):
    mudata = pytest.importorskip("mudata")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mu = pytest.importorskip("muon")

        mdata = mudata_of(made)
        model.embed(mdata)
        predicted = model.translate(mdata, "atac", source="rna")
        whole = mu.MuData({"rna": mdata["rna"], "atac": predicted})
        mu.pp.intersect_obs(whole)
        assert whole.shape == (120, 60 + predicted.n_vars)
        mu.atac.pp.tfidf(whole["atac"], scale_factor=1e4)
        mu.atac.tl.lsi(whole["atac"], n_comps=5)
        assert whole["atac"].obsm["X_lsi"].shape == (120, 5)
        mu.pl.embedding(mdata, basis="rna:X_babel", color="rna:kind", show=False)
        mdata.write(tmp_path / "embedded.h5mu")
        whole.write(tmp_path / "predicted.h5mu")
        again = mudata.read_h5mu(tmp_path / "embedded.h5mu")
    np.testing.assert_array_equal(again["atac"].obsm["X_babel"], mdata["atac"].obsm["X_babel"])
    # What was written is a pair again, and can be evaluated or fitted.
    assert read_study(tmp_path / "embedded.h5mu", check_pairing=False).n_cells == 120


@pytest.mark.slow
def test_scib_metrics_scores_embeddings_as_they_are(model, made):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scib = pytest.importorskip("scib_metrics")  # not in the extra dev: it brings jax
        cells = made["rna"].copy()
        model.embed(cells)
        kind = cells.obs["kind"].to_numpy()
        latent = cells.obsm["X_babel"]
        there = scib.silhouette_label(latent, kind)
        assert there > scib.silhouette_label(latent, np.random.default_rng(0).permutation(kind))
        batch = np.array([f"b{i % 2}" for i in range(cells.n_obs)])
        assert 0 <= scib.silhouette_batch(latent, kind, batch) <= 1
        assert set(scib.nmi_ari_cluster_labels_kmeans(latent, kind)) == {"nmi", "ari"}
