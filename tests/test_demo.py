"""The demo: every stage runs and its page holds the numbers of the files; interrupted, it goes on; what is not a demo's is refused."""

import hashlib
import json
import re
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from rich.console import Console

from expresser import cli
from expresser.demo import FULL, SMALL, demo, page, page_models, page_translate
from expresser.demo.plan import Command, Held, Stage, stages
from expresser.demo.running import Record, brief, run_stages
from expresser.errors import InputError
from expresser.report import Figure, Section, Table, write_report

QUIET = Console(quiet=True)


class Commands:
    """Stands for the command line: each command writes the words it was called with into its file, or does what it was told."""

    def __init__(self) -> None:
        self.called: list[list[str]] = []
        self.instead = {}

    def main(self, words: list[str]) -> None:
        self.called.append(list(words))
        out = Path(words[words.index("--out") + 1])
        out.parent.mkdir(parents=True, exist_ok=True)
        if words[0] in self.instead:
            self.instead.pop(words[0])(out)
            return
        out.write_text(" ".join(words))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(cli, "main", found.main)
    return found


def plan(out: Path) -> tuple[Stage, ...]:
    """Two stages of three commands in all."""
    made = {name: out / name / "report.html" for name in ("first", "second", "third")}
    again = {"first": "same", "second": "resume", "third": "anew"}
    steps = [Command((name, "--out", str(path)), path, again[name]) for name, path in made.items()]
    return Stage("one", (steps[0],)), Stage("two", (steps[1], steps[2]))


def run(out: Path) -> Record:
    record = Record(out, SMALL, 0)
    run_stages(plan(out), record, QUIET)
    return record


def names(commands: Commands) -> list[str]:
    return [words[0] for words in commands.called]


def test_what_is_done_is_not_done_again(tmp_path, commands):
    run(tmp_path / "demo")
    assert names(commands) == ["first", "second", "third"]
    record = run(tmp_path / "demo")
    assert len(commands.called) == 3
    assert [record.of(step)["attempts"] for stage in plan(tmp_path / "demo") for step in stage.steps] == [1, 1, 1]
    (tmp_path / "demo/second/report.html").unlink()  # what was made is gone: it is made again
    run(tmp_path / "demo")
    assert names(commands)[3:] == ["second"]


def test_called_by_another_path_it_is_the_same_demo(tmp_path, commands, monkeypatch):
    run(tmp_path / "demo")
    monkeypatch.chdir(tmp_path)
    run(Path("demo"))
    assert len(commands.called) == 3


def test_interrupted_it_goes_on_with_the_run_that_was_begun(tmp_path, commands):
    out = tmp_path / "demo"

    def interrupted(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "run.json").write_text("{}")
        raise KeyboardInterrupt

    commands.instead["second"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        run(out)
    assert not (out / "third").exists()
    before = Record(out, SMALL, 0).of(plan(out)[1].steps[0])
    record = run(out)
    assert names(commands) == ["first", "second", "second", "third"]
    assert commands.called[2][-1] == "--resume"
    assert "--resume" not in commands.called[1]
    after = record.of(plan(out)[1].steps[0])
    assert (before["done"], after["done"], after["attempts"]) == (False, True, 2)
    assert after["seconds"] > before["seconds"] > 0


def test_what_an_interrupted_step_left_is_removed_where_it_cannot_go_on(tmp_path, commands):
    out = tmp_path / "demo"

    def refused(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "metrics.json").write_text("half")
        raise SystemExit(2)

    commands.instead["third"] = refused
    with pytest.raises(SystemExit) as caught:
        run(out)
    assert caught.value.code == 2
    run(out)
    assert [path.name for path in (out / "third").iterdir()] == ["report.html"]
    assert names(commands)[-1] == "third"
    assert "--resume" not in commands.called[-1]


def test_a_training_that_was_told_to_stop_stops_the_demo(tmp_path, commands):
    def stopped(path: Path) -> None:
        raise SystemExit(0)  # what `expresser pretrain` does after SIGTERM

    commands.instead["second"] = stopped
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "demo")
    assert caught.value.code == 1
    assert names(commands) == ["first", "second"]


def test_a_command_that_leaves_nothing_is_an_error(tmp_path, commands):
    commands.instead["first"] = lambda path: None
    with pytest.raises(InputError, match=r"first .* ended without .*report\.html"):
        run(tmp_path / "demo")


def test_folders_that_are_not_this_demos_are_refused(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("words")
    with pytest.raises(InputError, match="not empty, and not a demo's folder"):
        demo(tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    Record(tmp_path / "other", SMALL, 0)
    with pytest.raises(InputError, match="holds a demo of seed 0, and this one is of seed 1"):
        demo(tmp_path / "other", seed=1, size=SMALL)
    with pytest.raises(InputError, match="holds a demo of size"):
        demo(tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a demo's folder"):
        demo(tmp_path / "file")


def test_cells_that_are_held_out_are_the_last_ones_and_no_others(tmp_path, tiny_data):
    tiny_data.write_h5ad(tmp_path / "rna.h5ad")
    out = tmp_path / "demo"
    held = Held((tmp_path / "demo" / "rna.h5ad",), 30)
    record = Record(out, SMALL, 0)
    tiny_data.write_h5ad(out / "rna.h5ad")
    run_stages((Stage("data", (held,)),), record, QUIET)
    seen, unseen = (ad.read_h5ad(out / f"{part}_rna.h5ad") for part in ("seen", "unseen"))
    assert list(seen.obs_names) == list(tiny_data.obs_names[:-30])
    assert list(unseen.obs_names) == list(tiny_data.obs_names[-30:])
    assert (unseen.X != tiny_data[-30:].X).nnz == 0
    assert record.done(held)


def test_every_command_is_one_that_a_user_can_type(tmp_path):
    out = tmp_path / "my demo"  # a blank, which a shell must have quoted
    steps = [step for stage in stages(out, FULL, 7) for step in stage.steps]
    lines = [step.line for step in steps if isinstance(step, Command)]
    assert {line.split()[1] for line in lines} <= set(cli.commands())
    assert all(f"'{out}" in line for line in lines)
    # One seed for everything that draws.
    drawing = [
        line for line in lines if re.search(r"simulate|pretrain demo|finetune (gene|inter|anno)|translate fit", line)
    ]
    assert len(drawing) == 10
    assert all("--seed 7" in line for line in drawing)
    assert all(out in step.makes.parents for step in steps if isinstance(step, Command))


def test_a_long_list_of_genes_is_cut_where_a_person_reads_it():
    line = "expresser impute m a.h5ad --genes " + " ".join(f"SIM{i:04d}" for i in range(1, 31)) + " --out b.h5ad"
    assert brief(line) == "expresser impute m a.h5ad --genes SIM0001 SIM0002 … SIM0030 --out b.h5ad"
    assert brief("expresser corpus info SIM0001") == "expresser corpus info SIM0001"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Section], dict]:
    """A finished demo of every stage at a small size: its folder, the sections of its page by title, and its provenance."""
    out = tmp_path_factory.mktemp("small") / "demo"
    given: dict = {}

    def write(path: Path, **arguments) -> Path:
        given.update(arguments)
        return write_report(path, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "write_report", write)
        demo(out, size=SMALL)
    return out, {section.title: section for section in given["sections"]}, given


def metrics(out: Path, run: str) -> dict:
    return json.loads((out / "runs" / run / "metrics.json").read_text())


def item(section: Section, title: str) -> Figure | Table:
    return next(item for item in section.items if item.title == title)


@pytest.mark.slow
def test_tables_hold_the_numbers_that_the_commands_wrote(small):
    out, sections, _ = small
    found = item(sections["Imputation"], "Methods").frame
    wanted = metrics(out, "imputation")["methods"]
    assert set(found.index) == set(wanted)
    assert {"expresser", "additive", "gene_mean"} <= set(wanted)
    assert all(found.loc[name, "MAE"] == scores["mae"] for name, scores in wanted.items())

    for title, run in (("Interacting pairs", "interactions"), ("A property of genes", "property")):
        found = item(sections["Gene tasks"], title).frame
        wanted = metrics(out, run)["embeddings"]
        assert found["AUROC"].to_dict() == {name: scores["auroc"] for name, scores in wanted.items()}
        assert found["AUROC"].is_monotonic_decreasing
        assert {"expresser", "svd", "random"} <= set(found.index)

    for system, name in (("babel", "BABEL"), ("polarbear", "Polarbear")):
        of = metrics(out, f"{system}_unseen")
        assert of["cells"]["test"] == SMALL.unseen_pairs
        assert of["in_training"] == 0
        found = item(sections[f"Translation: {name}"], "RNA to ATAC").frame
        wanted = {m: s["rna_to_atac"]["auroc_peak"] for m, s in of["methods"].items() if "rna_to_atac" in s}
        assert found["AUROC by peak"].to_dict() == pytest.approx(wanted, abs=1e-9)
        assert {system, "oracle", "ridge", "mean"} <= set(wanted)
        assert found.loc["ridge", f"{system} …"] == of["verdicts"]["rna_to_atac"]["ridge"]

    wanted = metrics(out, "sailer")["embeddings"]
    found = item(sections["Embedding: SAILER"], "Embeddings").frame
    assert found["ARI"].to_dict() == {name: scores["ari"] for name, scores in wanted.items()}

    summary = json.loads((out / "metrics.json").read_text())
    assert summary["imputation"] == metrics(out, "imputation")["methods"]
    assert summary["translators"]["babel"] == metrics(out, "babel_unseen")["methods"]


@pytest.mark.slow
def test_figures_agree_with_the_scores_of_the_commands(small):
    """What the page draws from predictions is what `translate evaluate` scored: the same entries on the same scale."""
    out, sections, _ = small
    of = metrics(out, "babel_unseen")["methods"]
    section = sections["Translation: BABEL"]
    drawn = item(section, "BABEL: expression, measured and predicted from ATAC")
    everything = SMALL.unseen_pairs * json.loads((out / "runs/babel/run.json").read_text())["features"]["rna"]
    assert f"10,000 of {everything:,} entries" in drawn.caption
    assert f"r = {of['babel']['atac_to_rna']['pearson_flat']:.3f}" in drawn.svg
    # The grey curve is the baseline `mean`, the blue one the model: the areas under them are the flat scores of all entries.
    curves = item(section, "BABEL: open peaks, from RNA: ROC").data
    for method, name in (("babel", "babel"), ("share of training cells", "mean")):
        curve = curves[curves["method"] == method]
        area = np.trapezoid(curve["true positive rate"], curve["false positive rate"])
        assert area == pytest.approx(of[name]["rna_to_atac"]["auroc_flat"], abs=0.01)
    # And of gene tasks: one repeat, each pair once, so that the pooled area is near the mean over folds but need not be it.
    curves = item(sections["Gene tasks"], "Interacting pairs: ROC").data
    assert set(curves["method"]) >= {"expresser", "random", "degree"}


@pytest.mark.slow
def test_the_page_has_what_each_stage_shows(small):
    out, sections, given = small
    text = (out / "report.html").read_text()
    assert all(title in text for title in sections)
    titles = [item.title for section in sections.values() for item in section.items]
    for colour in ("cell type", "batch", "depth"):
        assert any(title.startswith(f"Unseen cells by {colour}") for title in titles)
        assert any(title.startswith(f"SAILER by {colour}") for title in titles)
    for wanted in (
        "Validation MAE",
        "Training loss",
        "precision and recall",
        "latents of unseen cells by side",
        "loss, phase",
    ):
        assert any(wanted in title for title in titles), wanted
    assert all(
        item.data is not None for section in sections.values() for item in section.items if isinstance(item, Figure)
    )
    origin = given["provenance"]
    assert origin["seed"] == 0
    assert origin["versions"]["expresser"]
    for name, digest in origin["data_sha256"].items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert len(origin["data_sha256"]) == 11
    assert len(origin["weights_sha256"]) == 4
    runtime = sections["Runtime and commands"]
    stages_of = item(runtime, "Stages").frame
    commands_of = item(runtime, "Commands").frame
    assert stages_of["seconds"].sum() == pytest.approx(commands_of["seconds"].sum())
    assert commands_of["command"][0].startswith("expresser simulate rna")
    assert (commands_of["tries"] == 1).all()


@pytest.mark.slow
def test_repeated_a_finished_demo_runs_nothing_and_writes_the_same_numbers(small, monkeypatch, capsys):
    out, _, _ = small
    before = (out / "metrics.json").read_text()
    monkeypatch.setattr(cli, "main", lambda words: pytest.fail(f"ran {words}"))
    for part in (page_models, page_translate):  # of the page's seconds, nearly all
        monkeypatch.setattr(part, "cell_maps", lambda *given: [])
    assert demo(out, size=SMALL) == out / "report.html"
    assert (out / "metrics.json").read_text() == before
    assert capsys.readouterr().out.splitlines()[-1] == f"report: {out / 'report.html'}"
