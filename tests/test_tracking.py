"""Trackers get a run's curves once, under one name and id however often it is resumed, and nobody is asked for a key."""

import dataclasses
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate import Accelerator

from expresser.errors import InputError
from pretrain import tracking
from pretrain.config import Recipe
from pretrain.recipes import RECIPES


def recipe(tracker: str) -> Recipe:
    return dataclasses.replace(Recipe(), tracker=tracker)  # type: ignore[arg-type]


def test_a_missing_package_is_said_before_the_run(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'expresser\[wandb\]'"):
        tracking.check_tracker("wandb")
    tracking.check_tracker("none")


@pytest.mark.parametrize("name", RECIPES)
def test_hyper_parameters_are_the_recipe_in_the_types_that_trackers_take(name):
    found = tracking.hyper_parameters(RECIPES[name]())
    assert all(isinstance(value, bool | int | float | str) for value in found.values())
    assert found["optim.lr"] == RECIPES[name]().optim.lr
    assert found["model.norm_first"] is RECIPES[name]().model.norm_first
    assert found["data.max_steps"] == "None"


def test_curves_are_grouped_and_what_is_undefined_is_left_out():
    entry = {
        "step": 4, "cells_seen": 32, "seconds": 2.5, "loss": 0.5, "lr": 1e-3, "grad_norm": None, "cells_per_s": 12,
        "mfu": None, "valid": {"mse": 0.25, "pearson": float("nan")}, "additive": {"mse": 0.5},
    }  # fmt: skip
    assert tracking.curves(entry) == {
        "progress/cells_seen": 32.0,
        "progress/seconds": 2.5,
        "train/loss": 0.5,
        "train/lr": 1e-3,
        "speed/cells_per_s": 12.0,
        "valid/mse": 0.25,
        "additive/mse": 0.5,
    }


def test_tensorboard_has_one_line_a_curve_after_a_resumed_run(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, loss in ((0, 6, 1.0), (3, 8, 2.0)):  # killed after step 6, resumed from a checkpoint at 3
        accelerator = Accelerator(cpu=True, log_with="tensorboard", project_dir=str(tmp_path / "tracker"))
        tracking.start_tracker(accelerator, recipe("tensorboard"), tmp_path, step=first)
        for step in range(first + 1, last + 1):
            accelerator.log(tracking.curves({"step": step, "loss": loss}), step=step)
        accelerator.end_training()
    events = EventAccumulator(str(tmp_path / "tracker" / "expresser"))
    events.Reload()
    assert events.Tags()["scalars"] == ["train/loss"]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        *((step, 1.0) for step in (1, 2, 3)),
        *((step, 2.0) for step in (4, 5, 6, 7, 8)),
    ]
    (hyper,) = tmp_path.glob("tracker/expresser/*/hparams.yml")
    assert "optim.lr: 0.001" in hyper.read_text()


def test_a_run_without_tracker_opens_none(tmp_path):
    tracking.start_tracker(Accelerator(cpu=True), recipe("none"), tmp_path, step=0)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No W&B settings but the test's own; what the code sets is undone."""
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")  # so that it is restored
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return monkeypatch


def mode_of(folder: Path) -> str:
    tracking._wandb_options(folder, name="run")
    return os.environ["WANDB_MODE"]


def test_wandb_is_offline_unless_someone_is_logged_in_or_says_otherwise(alone, tmp_path):
    assert mode_of(tmp_path) == "offline"
    alone.setenv("WANDB_MODE", "disabled")
    assert mode_of(tmp_path) == "disabled"
    for name, value in (("WANDB_API_KEY", "secret"), ("WANDB_API_KEY", "")):
        alone.setenv("WANDB_MODE", "")
        alone.setenv(name, value)
        assert mode_of(tmp_path) == ("" if value else "offline")
    (tmp_path / "netrc").write_text("machine wandb.lab.example login user password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    alone.setenv("WANDB_MODE", "")
    assert mode_of(tmp_path) == "offline"  # that is another server
    alone.setenv("WANDB_MODE", "")
    alone.setenv("WANDB_BASE_URL", "https://wandb.lab.example")
    assert mode_of(tmp_path) == ""
    (tmp_path / "netrc").write_text("not a netrc\n")
    assert mode_of(tmp_path) == "offline"


def test_a_resumed_run_has_its_id_again_and_another_run_another(alone, tmp_path):
    a, again = (tracking._wandb_options(tmp_path / "a", name="run") for _ in range(2))
    b = tracking._wandb_options(tmp_path / "b", name="run")
    assert a == again
    assert a["id"] != b["id"]
    assert a["dir"] == str(tmp_path / "a")


def test_a_server_that_does_not_answer_is_an_input_error_with_the_way_out(alone, tmp_path):
    unreachable = type("CommError", (Exception,), {"__module__": "wandb.errors"})

    def refuse(self, *args, **kwargs):
        raise unreachable("timed out")

    alone.setattr(Accelerator, "init_trackers", refuse)
    with pytest.raises(InputError, match=r"timed out.*WANDB_MODE=offline"):
        tracking.start_tracker(Accelerator(cpu=True), recipe("wandb"), tmp_path, step=0)


@pytest.mark.slow
def test_wandb_offline_keeps_curves_and_configuration_under_one_id(tmp_path):
    pytest.importorskip("wandb", reason="wandb is 60 MB and no development dependency: pip install 'expresser[wandb]'")
    script = """
import dataclasses, sys
from pathlib import Path
from accelerate import Accelerator
from pretrain import tracking
from pretrain.config import Recipe
first = int(sys.argv[2])
accelerator = Accelerator(cpu=True, log_with="wandb")
tracking.start_tracker(accelerator, dataclasses.replace(Recipe(), tracker="wandb"), Path(sys.argv[1]), step=first)
for step in range(first + 1, first + 4):
    accelerator.log(tracking.curves({"step": step, "loss": 0.5}), step=step)
accelerator.end_training()
"""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    for first in ("0", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / "run"), first],
            env=clean | {"HOME": str(tmp_path / "home"), "NETRC": str(tmp_path / "none")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    known = (tmp_path / "run" / "tracker" / "wandb_id").read_text().strip()
    kept = sorted((tmp_path / "run" / "tracker" / "wandb").glob("offline-run-*/*.wandb"))
    assert [path.name for path in kept] == [f"run-{known}.wandb"] * 2
    for path in kept:
        assert b"train/loss" in path.read_bytes()
        assert b"optim.lr" in path.read_bytes()
