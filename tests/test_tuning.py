"""Search of configurations: values parsed by type, resumable trials, ranks by validation cells, the best one judged once."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from accelerate import PartialState
from hypothesis import given
from hypothesis import strategies as st
from translate_toys import BABEL, toy_anndata, toy_split, toy_study

from expresser.cli import main
from expresser.errors import InputError
from translate import fitting, tuning
from translate.babel import BabelConfig
from translate.cli_tune import behind
from translate.grids import fields_of, parse_grid, shown, trial_name, trials, with_values
from translate.scmog import ScmogConfig
from translate.translator import Translator
from translate.tuning import ranked, scores_for_ranking, tune

CONFIG = replace(BABEL, epochs=2)


# --- grids ---------------------------------------------------------------------------------------------------------------------


def test_values_have_the_types_of_their_fields() -> None:
    words = ["latent=10,25", "beta=0,0.5", "prior=none,1", "shared=true,false", "rna.min_genes=0", "plateau.patience=3"]
    grid = parse_grid(BabelConfig(), words)
    assert grid == {
        "latent": (10, 25),
        "beta": (0.0, 0.5),
        "prior": (None, 1.0),
        "shared": (True, False),
        "rna.min_genes": (0,),
        "plateau.patience": (3,),
    }
    types = {name: [type(v) for v in values] for name, values in grid.items()}
    assert types["beta"] == [float, float]
    assert types["latent"] == [int, int]
    assert parse_grid(ScmogConfig(), ["loss=bce,focal"]) == {"loss": ("bce", "focal")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["laten=1"], "near are latent"),
        (["rna.min_gene=1"], "rna.min_genes"),
        (["latent=1.5"], "a whole number"),
        (["latent=none"], "a whole number"),
        (["shared=1"], "true or false"),
        (["beta=inf"], "a number"),
        (["latent"], "NAME=VALUE"),
        (["latent="], "NAME=VALUE"),
        (["latent=1,,2"], "NAME=VALUE"),
        (["latent=1", "latent=2"], "twice"),
        ([], "name what is to be varied"),
    ],
)
def test_what_cannot_be_a_grid(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("…", ".")):
        parse_grid(BabelConfig(), words)


def test_every_combination_once_the_last_name_varying_fastest() -> None:
    grid = parse_grid(BabelConfig(), ["latent=4,8,4", "rna.min_genes=0,1,2"])
    made = trials(BabelConfig(), grid)
    assert [(t.config.latent, t.config.rna.min_genes) for t in made] == [(a, b) for a in (4, 8) for b in (0, 1, 2)]
    assert len({t.name for t in made}) == 6
    assert made[0].config == replace(BabelConfig(), latent=4, rna=replace(BabelConfig().rna, min_genes=0))


def test_a_draw_is_a_part_of_all_and_follows_the_seed() -> None:
    grid = parse_grid(BabelConfig(), ["latent=1,2,3,4,5,6", "beta=1,2,3,4,5,6"])
    names = [t.name for t in trials(BabelConfig(), grid)]
    drawn = [[t.name for t in trials(BabelConfig(), grid, random=7, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 7
    assert drawn[0] == [name for name in names if name in drawn[0]]
    assert [t.name for t in trials(BabelConfig(), grid, random=99)] == names
    with pytest.raises(InputError, match="one combination"):
        trials(BabelConfig(), grid, random=0)


def test_a_draw_does_not_make_all_combinations() -> None:
    names = [n for n, kind in fields_of(BabelConfig()) if kind is int and n != "bridge.rna_blocks"]  # needs rna_cells
    grid = parse_grid(BabelConfig(), [f"{n}={','.join(map(str, range(1, 100)))}" for n in names])
    assert len(names) > 3
    assert len(trials(BabelConfig(), grid, random=5)) == 5


@given(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)))
def test_a_value_reads_back_as_it_is_shown(value: float | None) -> None:
    assert parse_grid(BabelConfig(), [f"prior={shown(value)}"]) == {"prior": (value,)}


@given(st.permutations([("latent", 3), ("beta", 0.25), ("rna.min_genes", 7), ("prior", None)]))
def test_a_trial_has_one_name_whatever_the_order(values: list[tuple[str, Any]]) -> None:
    assert trial_name(dict(values)) == "beta=0.25_latent=3_prior=none_rna.min_genes=7"


def test_names_of_strange_values_are_folders_and_differ() -> None:
    names = {trial_name({"loss": text}) for text in ("a/b", "a b", "a_b", "x" * 300, "x" * 301)}
    assert len(names) == 5
    assert all("/" not in name and len(name) < 200 for name in names)


def test_setting_a_value_leaves_all_others() -> None:
    changed = with_values(BabelConfig(), {"plateau.patience": 77})
    assert changed.plateau.patience == 77
    assert replace(changed, plateau=BabelConfig().plateau) == BabelConfig()


# --- ranks ---------------------------------------------------------------------------------------------------------------------


def _row(name: str, state: str = "finished", **scores: float) -> dict[str, Any]:
    return {"name": name, "values": {"latent": 1}, "state": state, **scores}


def test_ranks_follow_the_score_and_its_direction() -> None:
    rows = [
        _row("a", translation=0.2, foscttm=0.1),
        _row("b", translation=0.3, foscttm=0.3),
        {"name": "c", "values": {"latent": 2}, "state": "failed", "reason": "no"},
        _row("d", translation=0.3, foscttm=0.2),
    ]
    high, low = ranked(rows, "translation"), ranked(rows, "foscttm")
    assert (high.best, low.best) == ("b", "a")
    assert [row.get("rank") for row in high.rows] == [3, 1, None, 1]
    assert [row.get("rank") for row in low.rows] == [1, 3, None, 2]
    assert list(high.table().columns[:5]) == ["rank", "name", "latent", "translation", "state"]


def test_without_pairs_alignment_decides_and_the_page_says_so() -> None:
    tuned = ranked([_row("a", transfer=0.9, mixing=0.5), _row("b", transfer=0.7, mixing=0.9)], "translation")
    assert (tuned.best, tuned.score) == ("a", "transfer")
    assert "No validation cell was measured in both" in tuned.notes[0]
    alone = ranked([_row("a", mixing=0.5), _row("b", mixing=0.9)], "translation")
    assert (alone.best, alone.score) == ("b", "mixing")
    assert "--labels" in alone.notes[1]


def test_scores_over_different_features_are_said_to_be() -> None:
    tuned = ranked(
        [_row("a", translation=0.2, genes=10, peaks=5), _row("b", translation=0.3, genes=9, peaks=5)], "translation"
    )
    assert tuned.notes == ("Trials differ in genes: their scores are means over different ones.",)


def test_nothing_to_rank() -> None:
    with pytest.raises(InputError, match="none of 1 trials could be fitted: broken"):
        ranked([{"name": "a", "values": {}, "state": "failed", "reason": "broken"}], "translation")
    with pytest.raises(InputError, match="there is auroc_peak"):
        ranked([_row("a", auroc_peak=0.5)], "foscttm")


def test_scores_are_means_over_directions_and_spaces() -> None:
    metrics = {
        "directions": ["rna_to_atac", "atac_to_rna"],
        "methods": {"babel": {"rna_to_atac": {"auroc_peak": 0.7}, "atac_to_rna": {"pearson_gene": 0.3}}},
        "alignment": {
            "methods": {
                "babel": {
                    "rna": {"foscttm": 0.1, "transfer_rna_to_atac": 0.4, "transfer_atac_to_rna": 0.6},
                    "atac": {"foscttm": 0.3, "transfer_rna_to_atac": 0.8, "transfer_atac_to_rna": 1.0},
                }
            }
        },
    }
    found = scores_for_ranking(metrics, "babel")
    assert found["translation"] == pytest.approx(0.5)
    assert found["foscttm"] == pytest.approx(0.2)
    assert found["transfer"] == pytest.approx(0.7)
    assert "mixing" not in found


# --- the search ----------------------------------------------------------------------------------------------------------------


def _search(out: Path, words: list[str], **options: Any) -> dict[str, Any]:
    study = toy_study()
    options = {"config": CONFIG, "baselines": False, "maps": False} | options
    grid = parse_grid(options["config"], words)
    return tune("babel", study, split=toy_split(study.n_cells), out=out, grid=grid, **options)


def test_what_learns_wins_a_failure_stops_nothing_and_the_folder_is_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    judge = tuning.judge

    def spied(translator: Any, held: Any, **options: Any) -> Any:
        looked_at.append(held.split.test.tolist())
        return judge(translator, held, **options)

    monkeypatch.setattr(tuning, "judge", spied)
    metrics = _search(tmp_path / "grid", ["latent=-1,8", "lr=1e-9,1e-2"], config=replace(CONFIG, epochs=10))
    assert metrics["best"]["values"] == {"latent": 8, "lr": 0.01}
    assert [row["state"] for row in metrics["trials"]] == ["failed", "failed", "finished", "finished"]
    assert "it must be a finite number from 0" in metrics["trials"][0]["reason"]
    assert "latent=-1_lr=0.01 failed" in capsys.readouterr().err
    assert metrics == json.loads((tmp_path / "grid" / "metrics.json").read_text())
    # Trials are ranked by validation cells; the scores of test cells are the best trial's alone.
    split = toy_split()
    assert looked_at == [split.valid.tolist()] * 2
    assert metrics["cells"]["test"] == len(split.test)
    assert list(metrics["methods"]) == ["babel"]
    own, trial = (Translator.load(path) for path in (tmp_path / "grid", tmp_path / "grid/trials/latent=8_lr=0.01"))
    rna = toy_anndata()["rna"]
    np.testing.assert_array_equal(own.translate(rna, "atac").X, trial.translate(rna, "atac").X)
    table = pd.read_csv(tmp_path / "grid" / "trials.tsv", sep="\t")
    assert table["rank"].tolist()[2:] == [2, 1]
    page = (tmp_path / "grid" / "report.html").read_text()
    assert "<h1>Search of configurations of BABEL" in page
    first = page.index("ranked by translation of validation cells")
    assert first < page.index("RNA from ATAC: all methods") < page.rindex("Phase: ")
    assert "translation by lr" in page


def test_killed_and_resumed_is_as_never_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _search(tmp_path / "whole", ["latent=4,8"], test=False)
    fitted, fit = [], fitting.fit

    def killed(*given: Any, **options: Any) -> Any:
        fitted.append(options["out"].name)
        if len(fitted) == 2:
            fit(*given, **options, stop_after=1)
            raise KeyboardInterrupt
        return fit(*given, **options)

    monkeypatch.setattr(fitting, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        _search(tmp_path / "cut", ["latent=4,8"], test=False)
    assert (tmp_path / "cut/trials/latent=8/state").is_dir()
    resumed = _search(tmp_path / "cut", ["latent=4,8"], test=False)
    assert fitted == ["latent=4", "latent=8", "latent=8"]
    for a, b in zip(whole["trials"], resumed["trials"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}
    # All done: nothing is fitted and nothing written again. More values: only those.
    before = (tmp_path / "cut/report.html").stat().st_mtime_ns
    assert _search(tmp_path / "cut", ["latent=4,8"], test=False) == resumed
    assert (tmp_path / "cut/report.html").stat().st_mtime_ns == before
    more = _search(tmp_path / "cut", ["latent=4,8,2"], test=False)
    assert fitted[3:] == ["latent=2"]
    assert len(more["trials"]) == 3


def test_another_search_is_refused(tmp_path: Path) -> None:
    _search(tmp_path / "grid", ["latent=4"], test=False)
    with pytest.raises(InputError, match="another seed"):
        _search(tmp_path / "grid", ["latent=4"], seed=1)
    with pytest.raises(InputError, match=r"another config\.lr"):
        _search(tmp_path / "grid", ["latent=4"], config=replace(CONFIG, lr=0.5))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="is not a search"):
        _search(tmp_path / "other", ["latent=4"])


def test_a_trial_is_never_that_of_another_configuration(tmp_path: Path) -> None:
    out = tmp_path / "grid"
    _search(out, ["latent=3,4"], test=False)  # what this varies is not fixed for the folder
    for latent in (5, 2):
        found = _search(out, ["beta=0"], config=replace(CONFIG, latent=latent), test=False)
        assert found["best"]["name"] == f"beta=0.0_latent={latent}".replace("0.0", "0")
        run = json.loads((out / "run.json").read_text())["config"]
        assert (run["latent"], run["beta"]) == (latent, 0)
        assert Translator.load(out).system.config.latent == latent
    again = _search(out, ["latent=3,4"], test=False)
    assert [row["name"] for row in again["trials"]] == ["latent=3", "latent=4"]


def test_a_search_runs_on_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitting.is_main_process()
    monkeypatch.setitem(PartialState._shared_state, "num_processes", 2)
    with pytest.raises(InputError, match="started on 2 processes, and a search runs on one"):
        _search(tmp_path / "grid", ["latent=4"], test=False)
    assert not (tmp_path / "grid").exists()


def test_what_cannot_be_searched(tmp_path: Path) -> None:
    study = toy_study()
    with pytest.raises(InputError, match="sailer embeds"):
        tune("sailer", study, split=toy_split(), out=tmp_path / "x", config=CONFIG, grid={"latent": (1,)})
    with pytest.raises(InputError, match="0 validation cells"):
        tune("babel", study, split=toy_split(valid=0), out=tmp_path / "x", config=CONFIG, grid={"latent": (1,)})


def test_a_baseline_that_does_better_than_the_best_is_named() -> None:
    said = {"rna_to_atac": {"ridge": "behind", "knn": "beats"}, "atac_to_rna": {"ridge": "behind", "mean": "on a par"}}
    warning = behind({"verdicts": said})
    assert warning is not None
    assert "is behind ridge (rna to atac), ridge (atac to rna) on test cells" in warning
    assert behind({"verdicts": {"rna_to_atac": {"ridge": "on a par"}}}) is None
    assert behind({}) is None


# --- the command ---------------------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = toy_anndata()
    for m in ("rna", "atac"):
        made[m].write_h5ad(tmp_path / f"{m}.h5ad")
    small = "--config.epochs 1 --config.batch-size 32 --config.rna.min-genes 0 --config.atac.min-cells 1 --config.atac.max-share 1"
    files = f"--rna {tmp_path}/rna.h5ad --atac {tmp_path}/atac.h5ad --out {tmp_path}/grid"
    command = f"translate tune babel {files} {small} --grid latent=4,8 beta=1,2 --random 2 --no-baselines --no-maps"
    main(command.split())
    said = capsys.readouterr().out
    assert "2 trials, in" in said
    assert "best: " in said
    with pytest.raises(SystemExit):
        main(command.replace("latent=", "latnt=").split())
    assert "near are latent" in capsys.readouterr().err
    for words, about in (
        ("--help", "Example:"),
        ("babel --help", "--grid"),
        ("nosuch", "is no system"),
        ("", "name a system"),
    ):
        with pytest.raises(SystemExit):
            main(["translate", "tune", *words.split()])
        said = capsys.readouterr()
        assert about in said.out + said.err
