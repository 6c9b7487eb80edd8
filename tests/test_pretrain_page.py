"""The page of a pretraining run shows what the run logged, older runs' logs included, and where its first weights came from."""

import base64
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from expresser import plots
from expresser.pages import pretraining_page, pretraining_sections
from expresser.plots_curves import trace_axes

NEW = {"tokens_per_s": 5000.0, "flops_per_s": 6e11, "mfu": 0.3, "wait_share": 0.02}
OLD = ("step", "cells_seen", "seconds", "loss", "lr", "grad_norm", "cells_per_s", "targets_per_s", "valid", "additive")


def lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def files(folder: Path, log: list[dict], **record) -> Path:
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    (folder / "run.json").write_text(json.dumps(json.loads((folder / "run.json").read_text()) | record))
    return folder


@pytest.fixture
def run(tiny_run: Path, tmp_path: Path) -> Path:
    """A run as the first version left it: its log knows cells/s and targets/s only."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("run.json", "metrics.json"):
        shutil.copy(tiny_run / name, folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    kept = ("step", "cells_seen", "seconds", "loss", "valid", "additive", "start", "cells_per_s", "targets_per_s")
    (folder / "metrics.json").write_text(json.dumps({key: metrics[key] for key in kept}))
    return files(folder, [{k: line[k] for k in OLD if k in line} for line in lines(tiny_run)])


def timed(run: Path, **more) -> list[dict]:
    """The log of a run that knows all its rates."""
    return [line | NEW | more if "loss" in line else line for line in lines(run)]


def data(page: str, title: str) -> pd.DataFrame:
    """The numbers behind a figure or table, as the page's link saves them."""
    card = page[page.index(f"</span>{title}</p>") :]
    found = re.search(r'href="data:text/csv[^,]*,([A-Za-z0-9+/=]+)"', card)
    assert found
    return pd.read_csv(io.BytesIO(base64.b64decode(found[1])))


def tile(page: str, label: str) -> str:
    found = re.search(rf"<dt>{re.escape(label)}</dt>\s*<dd>([^<]*)</dd>", page)
    assert found, label
    return found[1]


def test_every_curve_holds_the_numbers_of_the_log(run):
    log = timed(run)
    page = pretraining_page(files(run, log)).read_text()
    logged = [line for line in log if "loss" in line]
    for title, key, unit in (
        ("Training loss", "loss", 1),
        ("Gradient norm", "grad_norm", 1),
        ("Learning rate", "lr", 1),
        ("Cells/s", "cells_per_s", 1),
        ("Targets/s", "targets_per_s", 1),
        ("MFU (%)", "mfu", 100),
        ("Waiting for data (%)", "wait_share", 100),
    ):
        frame = data(page, title)
        assert frame["step"].tolist() == [line["step"] for line in logged]
        np.testing.assert_allclose(frame.iloc[:, -1], [unit * line[key] for line in logged], rtol=1e-5)
    valid = [line for line in log if "valid" in line]
    for name, key in (("MSE", "mse"), ("MAE", "mae"), ("Pearson r", "pearson")):
        frame = data(page, f"Validation {name}")
        assert frame["step"].tolist() == [0, 4, 8, 12]
        np.testing.assert_allclose(frame[name], [line["valid"][key] for line in valid], rtol=1e-5)
    medians = data(page, "Between lines of the log").set_index("rate")["median"]
    assert medians["tokens/s"] == 5000
    assert medians["TFLOP/s"] == pytest.approx(0.6)
    assert tile(page, "MFU (%)") == "30"
    assert "their share of 2 TFLOP/s" in page  # 0.6 TFLOP/s are 30 % of it


def test_an_older_log_still_draws_and_claims_nothing_it_does_not_know(run):
    page = pretraining_page(run).read_text()
    assert data(page, "Between lines of the log")["rate"].tolist() == ["cells/s", "targets/s"]
    assert not [word for word in ("MFU", "TFLOP", "Waiting for data", "Warm start", "tokens/s") if word in page]
    bare = [{k: v for k, v in line.items() if k not in ("cells_per_s", "targets_per_s", "lr")} for line in lines(run)]
    page = pretraining_page(files(run, bare)).read_text()
    assert "Throughput" not in page
    assert "Training loss" in page


def test_what_a_run_does_not_know_is_left_out(run):
    page = pretraining_page(files(run, timed(run, mfu=None, grad_norm=None))).read_text()
    assert "MFU" not in page
    assert "Gradient norm" not in page
    assert data(page, "Between lines of the log")["rate"].tolist()[-2:] == ["TFLOP/s", "waiting for data (%)"]


def test_the_lowest_validation_error_is_named_where_it_is_not_the_last(run):
    log = lines(run)
    for line in log:
        if "valid" in line:
            line["valid"]["mse"] = {0: 2.0, 4: 0.5, 8: 0.7, 12: 0.9}[line["step"]]
    page = pretraining_page(files(run, log)).read_text()
    assert tile(page, "step of the lowest MSE") == "4"
    scores = data(page, "Scores").set_index("method")
    assert scores.index.tolist() == ["model", "lowest MSE, at step 4", "at the start", "gene + cell additive"]
    assert scores.loc["lowest MSE, at step 4", "MSE"] == 0.5
    log[-1]["valid"]["mse"] = 0.1
    assert "lowest MSE, at" not in pretraining_page(files(run, log)).read_text()


def test_a_warm_start_is_told_back_to_the_model_that_began_at_random(run):
    first = {
        "source": "lab/<b>base</b>", "weights_sha256": "e" * 64, "corpus_id": None, "step": None, "cells_seen": None,
        "genes_kept": 70, "genes_new": 8, "genes_dropped": 0, "before": None,
    }  # fmt: skip
    second = first | {"source": "runs/atlas", "weights_sha256": "a" * 64, "corpus_id": "c" * 64, "step": 9000}
    second |= {"genes_kept": 78, "genes_new": 2, "genes_dropped": 3, "before": first}
    page = pretraining_page(files(run, lines(run), warm_start=second)).read_text()
    table = data(page, "Weights this run began with")
    assert table["source"].tolist() == ["runs/atlas", "lab/<b>base</b>"]
    assert table["its step"].tolist()[0] == 9000
    assert (table["genes kept"].tolist(), table["new"].tolist(), table["dropped"].tolist()) == (
        [78, 70],
        [2, 8],
        [3, 0],
    )
    assert "<b>base" not in page
    assert "a" * 64 in page  # whole, in the provenance
    assert "Of its genes, 78 were known there" in page
    assert "Warm start" not in pretraining_page(files(run, lines(run), warm_start=None)).read_text()


def test_a_run_is_one_section_of_another_page(run):
    (section,) = pretraining_sections(run)
    titles = ["Validation MAE", "Validation Pearson r", "Training loss", "Scores"]
    assert [item.title for item in section.items] == titles


def test_a_long_log_makes_no_larger_drawing(run):
    log = timed(run)
    sizes = []
    for n in (300, 6000):
        rng = np.random.default_rng(0)
        steps = [log[1] | {"step": i, "seconds": float(i), "loss": float(rng.lognormal())} for i in range(1, n)]
        (section,) = pretraining_sections(files(run, [log[0], *steps, log[-1]]))
        sizes.append(len(section.items[2].svg))
    assert sizes[1] < 3 * sizes[0]
    assert sizes[1] < 60_000


# The figure


def drawn(*values, **more):
    axes = []
    plots.svg(lambda ax: axes.append(trace_axes(ax, *values, xlabel="x", ylabel="y", **more)))
    return axes[0]


def test_a_short_trace_is_its_values_and_a_long_one_its_medians_and_percentiles():
    x = np.arange(60.0)
    y = np.where(x == 7, np.nan, x**2)
    at, shown = drawn(x, y).lines[0].get_data()
    assert at.tolist() == [v for v in x if v != 7]
    assert shown.tolist() == [v**2 for v in at]

    y = np.tile(np.arange(101.0), 40)  # 4,040 values; each quarter of the log holds 0 … 100 ten times
    ax = drawn(np.arange(y.size), y)
    at, middle = ax.lines[0].get_data()
    assert len(at) == 120
    assert at[0] == np.arange(34).mean()  # 4,040 in 120 stretches: the first 80 hold 34
    assert middle[0] == np.median(y[:34])
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() >= 0
    assert np.isin(np.quantile(y[:34], [0.05, 0.95]).round(9), band[:, 1].round(9)).all()


@pytest.mark.parametrize("n", [0, 1, 61])
def test_a_trace_of_nothing_or_of_one_value_still_draws(n):
    ax = drawn(np.arange(float(n)), np.full(n, 3.0), logy=n > 1, references={"limit": 4.0})
    assert [text.get_text() for text in ax.texts] == ["limit"]
    drawn(np.arange(3.0), np.full(3, np.nan))
