"""The pages say in words what the numbers say, hold every figure's numbers, and the figures draw what they were given."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from scipy import linalg

from expresser import plots, plots_curves
from expresser.errors import InputError
from expresser.record import write_metrics
from translate import maps, page_figures
from translate.drawings import Drawings, Joint, Picture
from translate.leaving_out import GROUPS, Interval
from translate.page_figures import map_size, spread_share
from translate.pages import evaluation_page, fit_page
from translate.score_table import score_table
from translate.verdicts import differences, direction_name, heading, interval_text, summary_sentences, verdicts

CELLS, GENES, PEAKS = 80, 40, 60
ORIGIN = {"command": "expresser translate evaluate", "seed": 1, "versions": {"torch": "2.10"}}


def expression(rng: np.random.Generator, skill: float) -> Picture:
    truth = rng.gamma(1.0, 1.0, 500).astype(np.float32)
    return Picture(
        by_feature={"pearson": np.clip(rng.normal(skill, 0.05, GENES), -1, 1).astype(np.float32)},
        pseudobulk=rng.gamma(1.0, 1.0, (2, GENES)).astype(np.float32),
        points=np.stack([truth, truth + rng.normal(0, 1 - skill, 500).astype(np.float32)]),
        without={"pearson": skill + rng.normal(0, 0.002, GROUPS)},
    )


def openness(rng: np.random.Generator, skill: float, *, probability: bool = True) -> Picture:
    rate = np.linspace(0, 1, 30)
    share = rng.uniform(0.02, 0.4, PEAKS).astype(np.float32)
    share[0] = 0
    bins = pd.DataFrame({"n": 240, "predicted": np.linspace(0.01, 0.6, 20), "observed": np.linspace(0, 0.5, 20)})
    return Picture(
        by_feature={
            "auroc": np.clip(rng.normal(0.5 + skill / 2, 0.03, PEAKS), 0, 1).astype(np.float32),
            "auprnorm": rng.normal(skill / 3, 0.01, PEAKS).astype(np.float32),
            "spread": (skill * np.sqrt(share * (1 - share))).astype(np.float32),
        },
        pseudobulk=np.stack([share, share]),
        curves={"roc": np.stack([rate, rate ** (1 - skill)]), "pr": np.stack([rate, 1 - rate * 0.8])},
        calibration=bins if probability else None,
        without={
            "auroc": 0.5 + skill / 2 + rng.normal(0, 0.002, GROUPS),
            "auprnorm": skill / 3 + rng.normal(0, 0.002, GROUPS),
        },
    )


def evaluated(
    skills: dict[str, float], *, directions: tuple[str, ...] = ("atac_to_rna", "rna_to_atac")
) -> tuple[Any, Any]:
    """metrics and drawings in which each method has this skill; "babel" is the model."""
    rng = np.random.default_rng(3)
    pictures: dict[str, dict[str, Picture]] = {}
    methods: dict[str, Any] = {}
    for name, skill in skills.items():
        rna, atac = expression(rng, skill), openness(rng, skill, probability=name != "ridge")
        scores = {
            "atac_to_rna": {
                "pearson_gene": float(np.nanmean(rna.by_feature["pearson"])),
                "pearson_flat": 0.5 + skill / 2,
                "mae": 1 - skill,
                "n_cells": CELLS,
                "n_genes": GENES,
                "genes_undefined": 2,
                "seconds": 0.5,
            },
            "rna_to_atac": {
                "auroc_peak": float(atac.by_feature["auroc"].mean()),
                "auprnorm_peak": float(atac.by_feature["auprnorm"].mean()),
                "ece": 0.01 if name != "ridge" else None,
                "mean_ratio": 0.9 if name != "ridge" else None,
                "auroc_peak_fifth_1": 0.5,
                "auroc_peak_fifth_5": 0.5 + skill / 2,
                "spread": skill,
                "n_cells": CELLS,
                "n_peaks": PEAKS,
                "peaks_undefined": 1,
            },
        }
        methods[name] = {d: scores[d] for d in directions}
        pictures[name] = {d: {"atac_to_rna": rna, "rna_to_atac": atac}[d] for d in directions}
    if "babel" in methods:
        methods["babel"] |= {"foscttm": 0.04, "closest_jaccard": 0.21}
    obs = pd.DataFrame({"cell_type": np.array(["T", "B"])[np.arange(CELLS) % 2]}, index=[f"c{i}" for i in range(CELLS)])
    points = rng.normal(size=(CELLS, 4)).astype(np.float32)
    drawings = Drawings(
        obs=obs,
        features={
            "atac_to_rna": pd.Index([f"G{i}" for i in range(GENES)]),
            "rna_to_atac": pd.Index([f"chr1:{i}-{i + 1}" for i in range(PEAKS)]),
        },
        pictures=pictures,
        joint={"babel": {"rna": joint(points, points + 0.1, obs["cell_type"])}},
    )
    baselines = [name for name in skills if name not in ("babel", "oracle")]
    metrics = {
        "methods": methods,
        "directions": list(directions),
        "baselines": baselines,
        "skipped": {"gene_activity": "no gene has a place"},
        "labels": "cell_type",
        "split": "random",
        "cells": {"train": 400, "valid": 80, "test": CELLS},
        "closest": {"n": 4, "chance": 0.026},
        "alignment": alignment("babel" in methods),
    }
    return metrics, drawings


def joint(rna: np.ndarray, atac: np.ndarray, labels: pd.Series | None) -> Joint:
    both = None if labels is None else pd.concat([labels, labels], ignore_index=True)
    return Joint(np.concatenate([rna, atac]), np.repeat(["rna", "atac"], [len(rna), len(atac)]), both)


def alignment(there: bool) -> dict[str, Any] | None:
    """As `translate.alignment_judging.judge_alignment` has it, of "babel" and of chance."""
    scores = {
        "foscttm": 0.04,
        "foscttm_from_rna": 0.03,
        "foscttm_from_atac": 0.05,
        "closest_jaccard": 0.21,
        "mixing": 0.93,
        "mixing_best": 0.96,
        "mixing_neighbours": 10,
        "ari": 0.71,
        "ami": 0.72,
        "silhouette": 0.33,
        "cosine_within": 0.2,
        "cosine_between": 1.1,
        "transfer_rna_to_atac": 0.88,
        "transfer_atac_to_rna": 0.86,
        "transfer_by_chance": 0.5,
    }
    chance = dict.fromkeys(scores, 0.5) | {"closest_jaccard": 0.026, "mixing": 0.959, "mixing_best": 0.96, "ari": 0.0}
    chance |= {"ami": 0.0, "silhouette": 0.0, "cosine_within": 1.0, "cosine_between": 1.0, "mixing_neighbours": 10}
    return {
        "cells": {"rna": CELLS, "atac": CELLS, "paired": CELLS},
        "methods": {"babel": {"rna": scores}, "chance": {"rna": chance}} if there else {},
        "baselines": ["chance"],
        "skipped": {"gene_activity_pca": "no gene has a place"},
        "closest": {"n": 4, "chance": 0.026},
    }


def drawn(draw: Callable[[Axes], object]) -> Axes:
    return plots.figure(draw).axes[0]


def words(path: Path) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", path.read_text(encoding="utf-8")))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages whose words alone matter: figures are empty, which saves most of the time."""
    monkeypatch.setattr(page_figures, "svg", lambda *_: '<svg xmlns="http://www.w3.org/2000/svg" width="9pt"/>')


# Verdicts


def test_a_model_above_all_baselines_beats_them_and_one_below_does_not() -> None:
    metrics, drawings = evaluated({"babel": 0.4, "mean": 0.0, "ridge": 0.2, "oracle": 0.9})
    found = verdicts(metrics, drawings.pictures, "rna_to_atac", "babel")
    assert [(v.baseline, v.said) for v in found] == [("ridge", "beats"), ("mean", "beats")]
    assert re.search(
        r"babel beats ridge at ATAC from RNA: AUROC by peak 0\.7\d+ against 0\.6\d+ \(difference \+0\.\d{3} to \+0\.\d{3}\)",
        found[0].sentence(),
    )
    assert f"of {PEAKS:,} peaks" in found[0].sentence()
    (line,) = summary_sentences({"rna_to_atac": found}, "babel")
    assert line == "ATAC from RNA: babel beats every one of the 2 baselines."
    metrics, drawings = evaluated({"babel": 0.1, "mean": 0.0, "ridge": 0.3})
    found = verdicts(metrics, drawings.pictures, "atac_to_rna", "babel")
    assert [(v.baseline, v.said) for v in found] == [("ridge", "behind"), ("mean", "beats")]
    (line,) = summary_sentences({"atac_to_rna": found}, "babel")
    assert line == "RNA from ATAC: babel does not beat all baselines: it beats 1 of 2, and is behind ridge."


def test_a_difference_that_other_cells_might_not_show_is_on_a_par() -> None:
    metrics, drawings = evaluated({"babel": 0.006, "mean": 0.0}, directions=("atac_to_rna",))
    metrics["methods"]["babel"]["atac_to_rna"]["pearson_gene"] = 0.006
    metrics["methods"]["mean"]["atac_to_rna"]["pearson_gene"] = 0.0
    for jump, said in ((0.001, "on a par"), (0.0001, "beats")):  # between scores without one group and without another
        for name, middle in (("babel", 0.006), ("mean", 0.0)):
            without = {"pearson": middle + (name == "babel") * jump * np.resize([1.0, -1.0], GROUPS)}
            drawings.pictures[name]["atac_to_rna"] = replace(drawings.pictures[name]["atac_to_rna"], without=without)
        (found,) = verdicts(metrics, drawings.pictures, "atac_to_rna", "babel")
        assert found.said == said
        (span,) = found.intervals
        assert span is not None
        assert (span.low + span.high) / 2 == pytest.approx(0.006)
    assert differences([found])["mean"]["pearson_gene"] == {"difference": 0.006, "low": span.low, "high": span.high}


def test_scores_that_contradict_each_other_are_on_a_par() -> None:
    metrics, drawings = evaluated({"babel": 0.4, "ridge": 0.2})
    metrics["methods"]["babel"]["rna_to_atac"]["auprnorm_peak"] = 0.0
    (found,) = verdicts(metrics, drawings.pictures, "rna_to_atac", "babel")
    assert found.said == "on a par"
    assert "is on a par with ridge" in found.sentence()
    metrics["methods"]["babel"]["rna_to_atac"]["auprnorm_peak"] = None  # says nothing, so it contradicts nothing
    assert verdicts(metrics, drawings.pictures, "rna_to_atac", "babel")[0].said == "beats"


def test_undefined_for_one_is_chance_and_for_both_is_left_out() -> None:
    metrics, drawings = evaluated({"babel": 0.2, "mean": 0.0}, directions=("atac_to_rna",))
    a, b = (drawings.pictures[name]["atac_to_rna"].by_feature["pearson"] for name in ("babel", "mean"))
    a[:], b[:] = 0.1, np.nan  # a constant has no correlation
    a[:4] = np.nan
    a[4:8] = -0.1
    (found,) = verdicts(metrics, drawings.pictures, "atac_to_rna", "babel")
    assert (found.n, found.share) == (GENES - 4, 1 - 4 / 36)


def test_nothing_is_said_where_nothing_is_defined() -> None:
    metrics, drawings = evaluated({"babel": 0.2, "mean": 0.0}, directions=("atac_to_rna",))
    (blind,) = verdicts(metrics, {}, "atac_to_rna", "babel")
    assert (blind.said, blind.share, blind.intervals) == ("undecided", None, (None,))
    metrics["methods"]["mean"]["atac_to_rna"]["pearson_gene"] = None
    (found,) = verdicts(metrics, drawings.pictures, "atac_to_rna", "babel")
    assert found.said == "undecided"
    assert "babel cannot be compared with mean at RNA from ATAC: r by gene 0.2" in found.sentence()
    assert "against undefined" in found.sentence()
    assert differences([found]) == {"mean": {"pearson_gene": None}}
    (line,) = summary_sentences({"atac_to_rna": [found]}, "babel")
    assert line.endswith("it beats 0 of 1, and is not comparable with mean.")


def test_an_interval_shows_on_which_side_of_zero_its_ends_lie() -> None:
    assert interval_text(Interval(0.02, 0.012, 0.0341)) == "+0.012 to +0.034"
    assert interval_text(Interval(0.01, 0.0002, 0.02)) == "+0.0002 to +0.0200"
    assert interval_text(Interval(0.0, 0.0, 0.0)) == "+0.000 to +0.000"


# Pages


def test_the_page_says_who_wins_and_shows_every_method(tmp_path: Path) -> None:
    metrics, drawings = evaluated({"babel": 0.3, "mean": 0.0, "ridge": 0.35, "oracle": 0.8})
    metrics["labels_skipped"] = "one type only"
    markers = pd.DataFrame({"label": ["T", "T", "B"], "gene": [1, 2, 3], "auroc": [0.5, 0.7, 0.9], "auroc_truth": 1.0})
    drawings.pictures["babel"]["atac_to_rna"] = replace(drawings.pictures["babel"]["atac_to_rna"], markers=markers)
    page = evaluation_page(tmp_path / "report.html", metrics, drawings, ORIGIN, maps=False)
    text = words(page)
    assert "it beats 1 of 2, and is behind ridge" in text
    assert "babel is behind ridge at RNA from ATAC" in text
    assert "babel beats mean at ATAC from RNA" in text
    assert "ATAC: AUROC by peak, unless AUPRnorm by peak says the opposite" in text
    assert re.search(r"ridge behind -0\.\d{3} to -0\.\d{3} 0\.", text)
    assert "0.500 and 0.650 for babel, 0.500 and 0.675 for ridge" in text
    assert "Alignment: pairs method FOSCTTM from RNA" in text
    assert re.search(r"babel 0\.030* \(best\) 0\.050* \(best\) 0\.210* \(best\) chance 0\.50* 0\.50* 0\.0260*", text)
    assert re.search(r"mixing, at most babel 0\.930 0\.960 chance 0\.959 0\.960", text)
    assert re.search(r"labels by chance babel 0\.710 \(best\) 0\.720 \(best\) 0\.330 \(best\) 0\.200 \(best\)", text)
    assert "a cell&#39;s 10 nearest neighbours half RNA and half ATAC" in text
    assert "chance is points drawn at random." in text
    assert "those in both over those in any, 1 at best; 0.026 is chance" in text
    # What is said of probabilities stands under tables of probabilities alone.
    tables = {m[1]: m[0] for m in re.finditer(r"(RNA from ATAC|ATAC from RNA): all methods.*?data \(CSV\)", text)}
    assert "or not a probability" in tables["ATAC from RNA"]
    assert "predicted / observed" in tables["ATAC from RNA"]
    assert "A dash: undefined." in tables["RNA from ATAC"]
    assert "probability" not in tables["RNA from ATAC"]
    assert "baselines beaten" in text
    assert "2 of 4" in text
    assert "80 test cells, 60 peaks, 1 of them without a score of their own" in text
    assert "What the truth itself would score" in text
    assert "no gene has a place" in text
    assert "one type only" in text
    assert "AUROC, measured B 1 0.900 1 T 2 0.600 1" in text
    assert "vary between cells by this share of how much open and closed calls vary: 30.0% for babel" in text
    for figure in ("ROC", "Precision and recall", "Calibration", "Spread of predictions", "babel: predicted against"):
        assert figure in text
    assert re.search(r"AUROC of rare and of common peaks .{0,600}data \(CSV\)", text)
    table = re.search(r"RNA from ATAC: all methods.*?</table>", page.read_text(), re.DOTALL)
    assert table is not None
    found = re.findall(r"<th[^>]*>\s*(babel|mean|ridge|oracle)", table[0])
    assert found == ["babel", "ridge", "mean"]
    again = evaluation_page(tmp_path / "again.html", metrics, drawings, ORIGIN, maps=False)
    assert again.read_bytes() == page.read_bytes()


def test_one_direction_and_no_model_make_a_page(tmp_path: Path, undrawn: None) -> None:
    metrics, drawings = evaluated({"mean": 0.0, "ridge": 0.35}, directions=("rna_to_atac",))
    text = words(evaluation_page(tmp_path / "report.html", metrics, drawings, ORIGIN, maps=False))
    assert "No model was examined." in text
    assert "RNA from ATAC" not in text


def test_doubts_and_cells_of_the_training_are_said(tmp_path: Path, undrawn: None) -> None:
    metrics, drawings = evaluated({"babel": 0.3, "mean": 0.0}, directions=("rna_to_atac",))
    text = words(evaluation_page(tmp_path / "r.html", metrics, drawings, ORIGIN, maps=False))
    assert "Doubts" not in text
    assert "flatter" not in text
    more = {"doubts": ["equal names but different cells?"], "in_training": 7}
    text = words(evaluation_page(tmp_path / "r.html", metrics | more, drawings, ORIGIN, maps=False))
    assert "Doubts about the data equal names but different cells?" in text
    assert "7 of the 80 test cells have the names of cells that the model was fitted to" in text
    text = words(fit_page(tmp_path / "f.html", title="F", log=[], facts={}, provenance=ORIGIN, doubts=["shallow"]))
    assert "Doubts about the data shallow" in text


def test_the_figure_of_base_rates_draws_what_is_in_its_table() -> None:
    _, drawings = evaluated({"babel": 0.4, "ridge": 0.2})
    pictures = {name: by["rna_to_atac"] for name, by in drawings.pictures.items()}
    (figure,) = page_figures.by_base_rate(pictures)
    assert figure.data is not None
    assert figure.data.columns[:2].tolist() == ["method", "bin"]
    assert figure.data.groupby("method")["n"].sum().tolist() == [PEAKS, PEAKS]
    bands = {"a": pd.DataFrame({"x": [0.01, 0.1], "low": [0.5, 0.5], "middle": [0.6, 0.7], "high": [0.7, 0.9]})}
    ax = drawn(lambda ax: plots_curves.band_axes(ax, bands, xlabel="x", ylabel="y", log=True, reference=0.5))
    np.testing.assert_array_equal(ax.lines[1].get_xydata(), bands["a"][["x", "middle"]])
    assert ax.collections[0].get_paths()[0].vertices[:, 1].max() == 0.9
    assert page_figures.by_base_rate({"none": replace(pictures["babel"], by_feature={})}) == []


def test_maps_show_the_same_cells_from_each_modality(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None
) -> None:
    seen: list[int] = []

    def flat(points: np.ndarray, *, seed: int = 0) -> np.ndarray:
        seen.append(len(points))
        return points[:, :2].astype(np.float32)

    monkeypatch.setattr(page_figures, "umap", flat)
    metrics, drawings = evaluated({"babel": 0.3, "mean": 0.0})
    components = {
        "atac_to_rna": {"measured": np.zeros((CELLS, 3), np.float32), "babel": np.ones((CELLS, 3), np.float32)}
    }
    page = evaluation_page(tmp_path / "r.html", metrics, drawings, ORIGIN, components=components, most_cells=120)
    text = words(page)
    assert seen == [80, 80, 120]
    assert "RNA from ATAC: measured" in text
    assert "babel: latents by modality" in text
    assert "babel: latents by cell_type" in text
    few = Drawings(
        drawings.obs[:20],
        drawings.features,
        drawings.pictures,
        {"babel": {"rna": joint(np.zeros((20, 3), np.float32), np.zeros((20, 3), np.float32), None)}},
    )
    components = {"atac_to_rna": {"measured": np.zeros((20, 3), np.float32)}}
    text = words(evaluation_page(tmp_path / "r.html", metrics, few, ORIGIN, components=components))
    assert text.count("No map is drawn: 20 test cells are fewer than the 50 that a UMAP needs.") == 1
    assert "No map is drawn of 40 test cells, both modalities counted: a UMAP needs 100." in text


def test_the_page_of_a_fit_shows_each_phase(tmp_path: Path) -> None:
    log = [
        {
            "phase": phase,
            "epochs": 3 * i + j + 1,
            "train": {"loss": 3.0 - j, "R->R": 2.0 - j / 2},
            "valid": {"loss": 3.5 - j, "R->R": 2.0, "A->R": 1.5 - j},
            "best": j < 2,
            "seconds": 30.0,
            "cells_per_s": 100.0 + j,
        }
        for i, phase in enumerate(("warm-up", "joint"))
        for j in range(3)
    ]
    facts = {"system": "babel", "cells": 400, "genes": GENES}
    page = fit_page(
        tmp_path / "fit.html", title="Fit: babel", log=log, facts=facts, provenance=ORIGIN, text="Differs: not at all."
    )
    text = words(page)
    assert "Phase: warm-up" in text
    assert "3 epochs in 1.5 minutes. The loss that is watched was lowest in epoch 5" in text
    assert "joint: validation terms" in text
    assert "Differs: not at all." in text
    assert "No epoch was run" in words(fit_page(tmp_path / "f.html", title="F", log=[], facts=facts, provenance=ORIGIN))


# Figures


def test_curves_are_drawn_as_given_and_scores_are_refused() -> None:
    curve = np.array([[0, 0.1, 1], [0, 0.8, 1]])
    ax = drawn(lambda ax: plots_curves.roc_axes(ax, {"a": curve, "b": curve}, references=frozenset({"b"})))
    np.testing.assert_array_equal(np.array(ax.lines[0].get_data()), curve)
    assert ax.lines[1].get_color() == plots.GREY
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["a", "b"]
    ax = drawn(lambda ax: plots_curves.precision_recall_axes(ax, {"a": curve}, prevalence=0.05))
    assert set(ax.lines[-1].get_ydata()) == {0.05}
    with pytest.raises(InputError, match=r"ROC curve of a: rates lie between 0 and 1.*to 3"):
        drawn(lambda ax: plots_curves.roc_axes(ax, {"a": np.array([[0, 3.0], [0, 1]])}))


def test_calibration_shows_every_bin_and_only_positive_ones_on_logarithms() -> None:
    bins = pd.DataFrame({"predicted": [0.001, 0.01, 0.1], "observed": [0.0, 0.02, 0.1], "n": [50, 100, 100]})
    ax = drawn(lambda ax: plots_curves.calibration_axes(ax, {"a": bins}))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), bins[["predicted", "observed"]])
    areas = ax.collections[0].get_sizes()
    assert areas[0] < areas[1] == areas[2]
    ax = drawn(lambda ax: plots_curves.calibration_axes(ax, {"a": bins, "b": bins}, log=True))
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), bins[["predicted", "observed"]][1:])
    assert ax.get_xlim() == ax.get_ylim()
    with pytest.raises(InputError, match="no column 'n'"):
        drawn(lambda ax: plots_curves.calibration_axes(ax, {"a": bins[["predicted", "observed"]]}))


def test_the_spread_of_a_certain_answer_is_one_and_of_a_constant_zero() -> None:
    share = np.array([0.25, 0.5, 0.0, 1.0], np.float32)
    calls = Picture({"spread": np.sqrt(share * (1 - share))}, np.stack([share, share]), calibration=pd.DataFrame())
    np.testing.assert_allclose(spread_share(calls), [1, 1], rtol=1e-6)
    same = Picture({"spread": np.zeros(4, np.float32)}, np.stack([share, share]), calibration=pd.DataFrame())
    np.testing.assert_array_equal(spread_share(same), [0, 0])
    assert spread_share(Picture({"spread": np.zeros(4, np.float32)}, np.stack([share, share]))).size == 0


# Maps


class Values:
    """A prediction from an array."""

    to = "rna"

    def __init__(self, values: np.ndarray) -> None:
        self.values = values
        self.n_cells, self.n_features = values.shape

    def block(self, cells: slice, features: slice) -> np.ndarray:
        return self.values[cells, features]


def test_streamed_components_are_those_of_the_whole_matrix() -> None:
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(30, 5)) @ rng.normal(size=(5, 200)) + rng.normal(size=200) * 5).astype(np.float32)
    found = maps.principal_scores(Values(values), n=10, budget_mb=30 * 4 * 7 / 2**20)
    u, s, _ = linalg.svd(values - values.mean(axis=0, dtype=np.float64), full_matrices=False)
    expected = (u * s)[:, :5]
    assert found.shape == (30, 5)  # the rank: what has no variance is left out
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=2e-4)
    assert (found[np.abs(found).argmax(axis=0), np.arange(5)] > 0).all()
    some = np.array([3, 1, 20, 7])
    np.testing.assert_allclose(
        maps.principal_scores(Values(values), cells=some), maps.principal_scores(Values(values[some])), atol=2e-4
    )
    with pytest.raises(InputError, match="1 cells have none"):
        maps.principal_scores(Values(values), cells=np.array([2]))


def test_samples_are_in_order_and_repeat() -> None:
    np.testing.assert_array_equal(maps.sampled(5, 10), np.arange(5))
    chosen = maps.sampled(1000, 10, seed=4)
    assert len(np.unique(chosen)) == 10
    assert (np.diff(chosen) > 0).all()
    np.testing.assert_array_equal(chosen, maps.sampled(1000, 10, seed=4))


@pytest.mark.slow
def test_umap_keeps_groups_apart_and_repeats() -> None:
    rng = np.random.default_rng(0)
    points = (rng.normal(size=(120, 5)) + np.repeat([[0], [20]], 60, axis=0)).astype(np.float32)
    xy = maps.umap(points, seed=1)
    np.testing.assert_array_equal(xy, maps.umap(points, seed=1))
    centres = xy[:60].mean(axis=0), xy[60:].mean(axis=0)
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * max(xy[:60].std(), xy[60:].std())
    with pytest.raises(InputError, match="49 cells are too few"):
        maps.umap(points[:49])


def test_headings_begin_with_a_capital_and_sentences_go_on_without() -> None:
    assert heading("rna_to_protein") == "Protein from RNA"
    assert heading("rna_to_atac") == direction_name("rna_to_atac") == "ATAC from RNA"
    assert direction_name("atac_to_protein") == "protein from ATAC"


def test_a_map_of_many_types_leaves_room_for_the_cells() -> None:
    for n in (5, 16, 21, 35):
        by = pd.Series([f"type number {i}" for i in range(n)] * 3)
        xy = np.random.default_rng(0).normal(size=(len(by), 2))
        drawn = plots.figure(partial(plots.scatter_axes, xy=xy, by=by, label="cell type"), map_size(n))
        drawn.canvas.draw()
        assert drawn.axes[0].get_position().width > 0.45, n


def test_the_score_table_is_aligned_whatever_the_names() -> None:
    scores = {"pearson_gene": 0.1, "pearson_flat": 0.2, "mae": 0.3}
    methods = {name: {"atac_to_rna": scores} for name in ("gene_activity_raw", "a_method_with_a_long_name", "knn")}
    metrics = {"methods": methods, "directions": ["atac_to_rna"], "verdicts": {}, "skipped": {}, "cells": {"test": 3}}
    rows = score_table(metrics | {"split": "random"}).splitlines()[:4]
    assert len({len(row) for row in rows}) == 1


def test_the_score_table_says_what_the_verdicts_rest_on_read_back_or_not(tmp_path: Path) -> None:
    metrics, drawings = evaluated({"babel": 0.4, "mean": 0.0, "ridge": 0.2}, directions=("rna_to_atac",))
    said = verdicts(metrics, drawings.pictures, "rna_to_atac", "babel")
    metrics["verdicts"] = {"rna_to_atac": {v.baseline: v.said for v in said}}
    metrics["differences"] = {"rna_to_atac": differences(said)}
    text = score_table(metrics)
    (ridge,) = [line for line in text.splitlines() if line.startswith("  ridge")]
    assert said[0].intervals[0] is not None
    assert ridge.endswith(f"—  beats, {interval_text(said[0].intervals[0])}")
    assert "by the 95 % interval of the difference in the first column" in text
    assert "closest 4 cells of babel, shared: 0.2100 (1 perfect, 0.0260 chance)" in text
    assert score_table(json.loads(write_metrics(tmp_path / "m.json", metrics).read_text())) == text


def test_a_map_leaves_torch_with_its_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        maps.umap(np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
