"""Pairs of genes: what leaks is shown to leak, what is planted is found, and a pair has no direction."""

import json
import re

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest

from expresser.errors import InputError
from expresser.plots import figure
from expresser.plots_curves import roc_axes
from finetune.embeddings.built_in import random_table
from finetune.embeddings.table import GeneTable, gene_table_of
from finetune.labels import PairLabels
from finetune.tasks.apply import apply_head
from finetune.tasks.curves import precision_recall, roc
from finetune.tasks.interactions import DEGREE, run_pair_task
from finetune.tasks.words import sentences, text_table

N = 90
GENES = np.array([f"ENSG{i:011d}" for i in range(N)], dtype=object)
SIDE = np.random.default_rng(0).integers(0, 2, N) * 2 - 1


def pairs(seed: int = 1, *, hubs: bool = False, shipped: bool = False, n: int = 1500) -> PairLabels:
    """Positive within a side; with hubs, by how often each gene interacts at all, whatever it is."""
    rng = np.random.default_rng(seed)
    a, b = np.triu_indices(N, 1)
    chosen = np.sort(rng.choice(len(a), n, replace=False))
    a, b = a[chosen], b[chosen]
    score = SIDE[a] * SIDE[b] + 0.3 * rng.normal(size=n)
    if hubs:
        activity = 2 * rng.normal(size=N)
        score = activity[a] + activity[b] + 0.3 * rng.normal(size=n)
    label = (score > np.median(score)).astype(np.int8)
    part = None
    if shipped:
        seen, new = (a < 60) & (b < 60), (a >= 60) & (b >= 60)
        keep = seen | new
        a, b, label = a[keep], b[keep], label[keep]
        part = np.where(a >= 60, "test", np.where(np.arange(len(a)) % 8 == 0, "valid", "train")).astype(object)
    return PairLabels(
        "planted", GENES[a], GENES[b], label, part, {"pairs_read": n, "kept": len(a), "outside_tables": 0}
    )


def model() -> GeneTable:
    values = np.column_stack([SIDE, np.random.default_rng(2).normal(size=(N, 2))]).astype(np.float32)
    return gene_table_of("model", GENES.tolist(), values, {"kind": "checkpoint", "rows": N})


def chance(dim: int = 3) -> GeneTable:
    return random_table(GENES.tolist(), dim, seed=0)


def steady(metrics: dict) -> dict:
    """What must not depend on the machine."""
    plain = json.loads(json.dumps(metrics))
    plain.pop("peak_mb")
    for part in [plain, *plain["splits"].values()]:
        for entry in part["embeddings"].values():
            entry.pop("seconds")
    return plain


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("pairs") / "out"
    return run_pair_task(pairs(), [model(), chance()], split="all", preset="linear", folds=3, repeats=1, out=out), out


def test_a_planted_interaction_is_found_among_genes_never_seen(run):
    result, out = run
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["split"] == "gene-disjoint"
    entry = metrics["embeddings"]
    assert entry["model"]["auroc"] > 0.95
    assert abs(entry["random"]["auroc"] - 0.5) < 0.12
    assert entry[DEGREE]["auroc"] == 0.5
    assert metrics["comparisons"]["model"]["degree"]["verdict"] == "better"
    assert result.scores.index[0] == "model"
    assert set(metrics) >= {
        "task",
        "embeddings",
        "splits",
        "comparisons",
        "audit",
        "n_genes",
        "n_pairs",
        "split",
        "lost",
    }
    assert metrics["n_pairs"] == 1500
    for row in entry.values():
        assert {"auroc", "auroc_lo", "auroc_hi", "auprc", "accuracy", "seconds", "dim"} <= set(row)


def test_every_split_is_audited_by_its_own_rule(run):
    result, _ = run
    splits = result.metrics["splits"]
    assert list(splits) == ["gene-disjoint", "semi-disjoint", "random"]
    assert [entry["audit"]["strictest"] for entry in splits.values()] == list(splits)
    for kind, known in (("gene-disjoint", 0), ("semi-disjoint", 1)):
        assert splits[kind]["audit"][f"share_{known}_genes_in_training"] == 1
    assert splits["random"]["audit"]["share_2_genes_in_training"] > 0.9
    frame = result.predictions
    for kind, entry in splits.items():
        assert int((frame["split"] == kind).sum()) == pytest.approx(3 * entry["n_test"], abs=3)
    assert {"gene_a", "gene_b", "label", "model", "random", DEGREE, "repeat", "fold"} <= set(frame.columns)


def test_hubs_make_a_random_split_easy_and_the_result_says_so():
    given = pairs(hubs=True)
    result = run_pair_task(given, [chance(40)], split="all", preset="linear", folds=3, repeats=1)
    splits = result.metrics["splits"]
    assert splits["random"]["embeddings"][DEGREE]["auroc"] > 0.9
    assert splits["random"]["embeddings"]["random"]["auroc"] > 0.75  # vectors that know nothing
    assert splits["gene-disjoint"]["embeddings"][DEGREE]["auroc"] == 0.5
    assert abs(splits["gene-disjoint"]["embeddings"]["random"]["auroc"] - 0.5) < 0.15
    headline = {**result.metrics, **splits["random"]}
    assert re.search(r"random split a predictor that knows only how often .* diagnostic", sentences(headline)[0])
    assert "diagnostic" in text_table(headline)
    assert "diagnostic" not in text_table(result.metrics)


def test_a_shipped_split_is_the_headline_and_is_tested_once():
    given = pairs(shipped=True)
    result = run_pair_task(given, [model(), chance()], preset="linear")
    assert result.metrics["split"] == "shipped"
    assert result.metrics["audit"]["strictest"] == "gene-disjoint"
    assert len(result.predictions) == int((given.part == "test").sum())
    entry = result.metrics["embeddings"]["model"]
    assert entry["auroc_lo"] < entry["auroc"] <= entry["auroc_hi"] <= 1
    assert entry["auroc"] > 0.95
    one, other = (result.metrics["comparisons"][a][b] for a, b in (("model", "random"), ("random", "model")))
    assert (one["difference"], one["p"]) == pytest.approx((-other["difference"], other["p"]))
    assert one["verdict"] == "better"


def test_the_published_protocol_is_one_random_fifth_side_by_side():
    result = run_pair_task(pairs(n=600), [model()], preset="paper")
    assert result.metrics["split"] == "random"
    assert result.metrics["form"] == "concatenated"
    assert len(result.predictions) == 120


def test_a_head_knows_no_direction_and_says_what_it_learnt_from(run):
    _, out = run
    folder = out / "heads" / "model"
    given = pairs()
    trained = (given.a[0], given.b[0])
    known = set(zip(given.a, given.b, strict=True))
    new = next((a, b) for i, a in enumerate(GENES) for b in GENES[i + 1 :] if (a, b) not in known)
    there = apply_head(folder, pairs=[trained, new, ("NOSUCH", GENES[0]), (GENES[1], GENES[1])])
    back = apply_head(folder, pairs=[trained[::-1], new[::-1]])
    assert there.index.tolist() == [trained, new]
    np.testing.assert_array_equal(there["prediction"], back["prediction"])
    assert there["in_training"].tolist() == back["in_training"].tolist() == [True, False]
    assert there["genes_in_training"].tolist() == [2, 2]
    assert there.attrs["unknown"] == ["NOSUCH"]
    with pytest.raises(InputError, match="this head is of pairs"):
        apply_head(folder, genes=[GENES[0]])


class Stop(Exception):
    """An interruption."""


def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path):
    def interrupt(done: int, total: int, what: str) -> None:
        if done == 5:
            raise Stop

    options = {"split": "random", "preset": "linear", "folds": 3, "repeats": 1}
    given, tables, out = pairs(n=400), [model(), chance()], tmp_path / "out"
    with pytest.raises(Stop):
        run_pair_task(given, tables, out=out, progress=interrupt, **options)
    resumed = run_pair_task(given, tables, out=out, **options)
    assert resumed.resumed == 5
    whole = run_pair_task(given, tables, **options)
    assert steady(resumed.metrics) == steady(whole.metrics)
    pd.testing.assert_frame_equal(resumed.predictions, whole.predictions)
    again = run_pair_task(given, tables, out=out, **options)
    assert again.finished
    assert steady(again.metrics) == steady(json.loads((out / "metrics.json").read_text()))
    with pytest.raises(InputError, match="split was 'random', is 'all'"):
        run_pair_task(given, tables, out=out, **options | {"split": "all"})


def test_bad_input_is_refused_with_the_way_out(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="ship no split"):
        run_pair_task(pairs(), [model()], split="shipped", out=out)
    with pytest.raises(InputError, match=r"'degree', which the result uses .* NAME=degree"):
        run_pair_task(pairs(), [gene_table_of("degree", list(GENES), np.eye(N, dtype=np.float32), {})], out=out)
    foreign = gene_table_of("foreign", ["A", "B", "C"], np.eye(3, dtype=np.float32), {})
    with pytest.raises(InputError, match=r"of 1,500 pairs .* 0 have both genes among the 3 .* --genes"):
        run_pair_task(pairs(), [foreign], out=out)
    assert not out.exists()


def test_the_mean_curve_goes_through_its_corners_and_its_band_holds_it():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"label": rng.integers(0, 2, 600), "repeat": 0, "fold": np.arange(600) % 5})
    frame["good"] = frame["label"] + 0.5 * rng.normal(size=600)
    frame["perfect"] = frame["label"].astype(float)
    curve, band = roc(frame, "good")
    assert band is not None
    assert curve[:, 0].tolist() == [0, 0]
    assert curve[:, -1].tolist() == [1, 1]
    assert (np.diff(curve[1]) >= -1e-12).all()
    assert ((band[1] <= curve[1] + 0.02) & (curve[1] <= band[2] + 0.02)).all()
    perfect, _ = roc(frame, "perfect")
    assert (perfect[1, 1:] == 1).all()
    precise, _ = precision_recall(frame, "perfect")
    assert (precise[1] == 1).all()
    one, none = roc(frame[frame["fold"] == 0], "good")
    assert none is None
    assert np.trapezoid(one[1], one[0]) > 0.8


def test_a_band_is_drawn_in_the_colour_of_its_curve():
    x = np.linspace(0, 1, 5)
    curves, bands = {"one": np.stack([x, x]), "two": np.stack([x, x**0.5])}, {"two": np.stack([x, x, x**0.3])}
    ax = figure(lambda ax: roc_axes(ax, curves, bands=bands)).axes[0]
    (band,) = ax.collections
    np.testing.assert_allclose(band.get_facecolor()[0][:3], matplotlib.colors.to_rgb(ax.lines[1].get_color()))
    with pytest.raises(InputError, match="a band of 'three', which has no curve"):
        figure(lambda ax: roc_axes(ax, curves, bands={"three": bands["two"]}))
