"""Laws of survival: what is asked to leave saves first, a full disk costs a checkpoint and no more, the best checkpoint stays."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from test_pretrain import _arguments, _environment, equal, log_of, losses, vary, weights

from expresser import checkpoint, pages
from expresser.cli import main
from expresser.errors import InputError
from expresser.run_folder import Log
from pretrain import loop, packing
from pretrain.loop import pretrain
from pretrain.run import Run
from pretrain.survival import NotFinite, Signals


def at_step(step: int, then, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something when the loss of this step (from 1) is computed."""
    honest, calls = loop.squared_error, 0

    def computed(prediction, *, truth):
        nonlocal calls
        calls += 1
        if calls == step:
            then()
        return honest(prediction, truth=truth)

    monkeypatch.setattr(loop, "squared_error", computed)


# Signals


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "SIGINT")])
def test_a_signal_saves_the_step_and_the_resumed_run_is_the_whole_one(
    tiny_recipe, tiny_corpus, tiny_run, tmp_path, monkeypatch, number, name
):
    at_step(6, lambda: os.kill(os.getpid(), number), monkeypatch)
    before = signal.getsignal(number)
    left = pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    assert left == {"step": 6, "cells_seen": 48, "stopped": name}
    assert signal.getsignal(number) is before
    assert checkpoint.list_checkpoints(tmp_path / "run")[-1].name == "step-00000006"
    assert not (tmp_path / "run" / "model").exists()
    monkeypatch.undo()
    pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", resume=True, quiet=True)
    assert losses(tmp_path / "run") == losses(tiny_run)
    assert equal(weights(tmp_path / "run"), weights(tiny_run))


def test_a_signal_in_the_last_step_leaves_a_finished_run(tiny_recipe, tiny_corpus, tmp_path, monkeypatch):
    at_step(12, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    metrics = pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    assert "stopped" not in metrics
    assert (tmp_path / "run" / "model").is_dir()


def interrupted_twice(seconds: float) -> None:
    with Signals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.flags == (0.0, 1.0)
        signals._when -= seconds
        os.kill(os.getpid(), signal.SIGINT)


def test_a_second_wish_ends_at_once_and_an_echo_of_the_first_does_not():
    """A launcher passes on what the scheduler sent to all processes: each gets the signal twice."""
    # A job in the background begins with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupted_twice(0.5)
        with pytest.raises(KeyboardInterrupt):
            interrupted_twice(6.0)
    finally:
        signal.signal(signal.SIGINT, before)


def test_any_process_told_to_leave_takes_all_along():
    assert Signals.name(0.0, 0.0) is None
    assert Signals.name(3.0, 0.0) == "SIGTERM"
    assert Signals.name(1.0, 2.0) == "SIGTERM"
    assert Signals.name(0.0, 2.0) == "SIGINT"


def test_beside_the_main_thread_no_signal_is_caught(tiny_recipe, tiny_corpus, tmp_path):
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(
            pretrain(vary(tiny_recipe, data={"max_steps": 1}), tiny_corpus, tmp_path / "r", quiet=True)
        )
    )
    thread.start()
    thread.join()
    assert found


def started(words: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", *words], env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_lines(log: Path, count: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 180
    while not (log.exists() and log.read_text().count("\n") > count):
        assert process.poll() is None, f"the run ended before its time: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_sigterm_on_the_command_line_exits_0_and_resume_goes_on(tiny_corpus, tmp_path):
    whole, left = tmp_path / "whole", tmp_path / "left"
    process = started(_arguments(tiny_corpus, left, "--save_every", "1000"))
    wait_for_lines(left / "log.jsonl", 20, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert time.monotonic() - began < 30  # a scheduler's grace
    assert "SIGTERM: step" in told
    assert "--resume" in told
    main(_arguments(tiny_corpus, left, "--save_every", "1000", "--resume"))
    main(_arguments(tiny_corpus, whole, "--save_every", "1000"))
    assert log_of(left) == log_of(whole)
    assert equal(weights(left), weights(whole))


@pytest.mark.slow
def test_killed_at_random_moments_with_a_save_in_every_step(tiny_corpus, tmp_path):
    """Most of such a run is saving: kills fall into saves as well as between them."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    few = ("--data.max_steps", "60", "--save_every", "1", "--eval_every", "1000")
    draw = random.Random(0)
    kills = in_save = 0
    for _ in range(6):
        process = started(_arguments(tiny_corpus, killed, *few, *(["--resume"] if killed.exists() else [])))
        log = killed / "log.jsonl"
        wait_for_lines(log, log.read_text().count("\n") + 2 if log.exists() else 2, process)
        time.sleep(draw.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        process.communicate()
        in_save += any((killed / "checkpoints").glob(".step-*.part"))
        for folder in checkpoint.list_checkpoints(killed):
            assert all(torch.isfinite(w).all() for w in checkpoint.load(folder).model.state_dict().values())
    assert kills == 6
    main(_arguments(tiny_corpus, killed, *few, "--resume"))
    main(_arguments(tiny_corpus, whole, *few))
    assert losses(killed) == losses(whole)
    assert equal(weights(killed), weights(whole))
    assert not list((killed / "checkpoints").glob(".step-*")), f"{in_save} kills fell into a save, and left something"


# A disk that takes no more


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_save_that_fails_costs_a_checkpoint_not_the_run(
    tiny_recipe, tiny_corpus, tiny_run, tmp_path, monkeypatch, capsys, error
):
    honest = checkpoint.save

    def full(folder, *args, **kwargs):
        if folder.name == "step-00000008":
            raise error
        return honest(folder, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", full)
    pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    told = capsys.readouterr().err
    assert "no checkpoint of step 8" in told
    assert "No space left" in told
    assert "step-00000004 is kept" in told
    assert [p.name for p in checkpoint.list_checkpoints(tmp_path / "run")] == ["step-00000004", "step-00000012"]
    assert equal(weights(tmp_path / "run"), weights(tiny_run))


def test_a_final_model_that_cannot_be_written_is_written_by_resuming(
    tiny_recipe, tiny_corpus, tiny_run, tmp_path, monkeypatch
):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Run, "finish", full)
    with pytest.raises(InputError, match=r"No space left.*--resume: it goes on from .*step-00000012"):
        pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    metrics = pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", resume=True, quiet=True)
    assert metrics["step"] == 12
    assert equal(weights(tmp_path / "run"), weights(tiny_run))
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 kB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if made.returncode:
        pytest.skip(f"mounting a small file system is not allowed here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_disk_that_is_really_full_the_newest_whole_checkpoint_stays(
    tiny_recipe, tiny_corpus, tiny_run, small_disk, monkeypatch, capsys
):
    hog = small_disk / "somebody else's data"

    def fill() -> None:
        with hog.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"x" * 4096)
            except OSError:
                pass

    at_step(6, fill, monkeypatch)
    with pytest.raises(InputError, match="trained to the end, but the model or its report could not be written"):
        pretrain(tiny_recipe, tiny_corpus, small_disk / "run", quiet=True)
    told = capsys.readouterr().err
    assert "no checkpoint of step 8" in told
    assert "no checkpoint of step 12" in told
    (kept,) = checkpoint.list_checkpoints(small_disk / "run")
    assert kept.name == "step-00000004"
    assert all(torch.isfinite(w).all() for w in checkpoint.load(kept).model.state_dict().values())
    hog.unlink()
    monkeypatch.undo()
    pretrain(tiny_recipe, tiny_corpus, small_disk / "run", resume=True, quiet=True)
    assert losses(small_disk / "run") == losses(tiny_run)
    assert equal(weights(small_disk / "run"), weights(tiny_run))


def test_log_lines_that_find_no_room_are_written_when_there_is(tmp_path, monkeypatch):
    log = Log(tmp_path / "log.jsonl", position="n", keep_until=0, active=True)
    assert log.write({"n": 1}) is None
    honest, full = Path.open, True

    def opened(self, *args, **kwargs):
        if full and self.name == "log.jsonl":
            with honest(self, "ab") as file:
                file.write(b'{"n": ')  # as much as there was room for
            raise OSError(errno.ENOSPC, "No space left on device")
        return honest(self, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    assert "No space left" in (log.write({"n": 2}) or "")
    full = False
    assert log.write({"n": 3}) is None
    assert [json.loads(line)["n"] for line in (tmp_path / "log.jsonl").read_text().splitlines()] == [1, 2, 3]


# Numbers that are none


def test_the_cells_of_a_loss_that_is_no_number_are_written_down(tiny_recipe, tiny_corpus, tmp_path, monkeypatch):
    honest = packing.to_cells
    calls, guilty = 0, []

    def breaks(batch, *args, **kwargs):
        nonlocal calls
        calls += 1
        cells = honest(batch, *args, **kwargs)
        if calls == 7:
            guilty.extend(int(i) for i in batch.cell_id)
            cells.values[0] = float("inf")
        return cells

    monkeypatch.setattr(packing, "to_cells", breaks)
    with pytest.raises(NotFinite, match="loss became nan at step"):
        pretrain(vary(tiny_recipe, data={"max_tokens": 100}), tiny_corpus, tmp_path / "run", quiet=True)
    written = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert written["what"] == "loss"
    assert sorted(written["cells"]) == sorted(guilty)  # that micro-batch, not the whole step


@pytest.mark.parametrize("grad_clip", [1.0, 0.0])
def test_gradients_that_are_no_number_move_no_weight(tiny_recipe, tiny_corpus, tmp_path, monkeypatch, grad_clip):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * float("nan")

    honest, calls = loop.squared_error, 0

    def breaks(prediction, *, truth):
        nonlocal calls
        calls += 1
        return honest(Broken.apply(prediction) if calls == 6 else prediction, truth=truth)

    monkeypatch.setattr(loop, "squared_error", breaks)
    recipe = vary(tiny_recipe, save_every=1, optim={"grad_clip": grad_clip})
    with pytest.raises(NotFinite, match=r"gradient norm became nan at step 6.*--start .*step-00000005"):
        pretrain(recipe, tiny_corpus, tmp_path / "run", quiet=True)
    assert checkpoint.list_checkpoints(tmp_path / "run")[-1].name == "step-00000005"
    assert all(torch.isfinite(w).all() for w in weights(tmp_path / "run").values())


def test_on_the_command_line_it_is_one_message(tiny_corpus, tmp_path, monkeypatch, capsys):
    honest = loop.squared_error
    monkeypatch.setattr(loop, "squared_error", lambda p, *, truth: honest(p, truth=truth) * float("nan"))
    with pytest.raises(SystemExit) as left:
        main(_arguments(tiny_corpus, tmp_path / "run"))
    assert left.value.code == 2
    told = capsys.readouterr().err
    assert "error: the loss became nan at step 1" in told
    assert "there is no checkpoint yet" in told
    assert "Traceback" not in told


# What is left undone


def test_a_signal_before_the_first_step_leaves_what_resume_begins_with(
    tiny_recipe, tiny_corpus, tiny_run, tmp_path, monkeypatch
):
    honest = loop.evaluate

    def told(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        return honest(*args, **kwargs)

    monkeypatch.setattr(loop, "evaluate", told)
    left = pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    assert left == {"step": 0, "cells_seen": 0, "stopped": "SIGTERM"}
    monkeypatch.undo()
    pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", resume=True, quiet=True)
    assert losses(tmp_path / "run") == losses(tiny_run)


def test_a_report_that_was_not_drawn_is_drawn_by_resuming(tiny_recipe, tiny_corpus, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pages, "pretraining_page", full)
    with pytest.raises(InputError, match="No space left"):
        pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    monkeypatch.undo()
    assert not (tmp_path / "run" / "report.html").exists()
    pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", resume=True, quiet=True)
    assert (tmp_path / "run" / "report.html").is_file()


def test_a_tracker_that_cannot_write_is_given_up_and_the_run_goes_on(
    tiny_recipe, tiny_corpus, tiny_run, tmp_path, monkeypatch, capsys
):
    calls = 0

    def full(self, values, step=None, log_kwargs=None):
        nonlocal calls
        calls += 1
        if calls > 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Accelerator, "log", full)
    pretrain(vary(tiny_recipe, tracker="tensorboard"), tiny_corpus, tmp_path / "run", quiet=True)
    assert calls == 4
    assert capsys.readouterr().err.count("the tracker is given up") == 1
    assert losses(tmp_path / "run") == losses(tiny_run)


# What is kept


def test_the_best_checkpoint_stays_beside_the_newest(tiny_recipe, tiny_corpus, tmp_path, monkeypatch):
    worth = iter(
        [9.0, 9.0, 5.0, 2.0, 4.0, 6.0, 7.0, 8.0]
    )  # at step 0 of the model and the baseline, then at steps 2, 4 …
    honest = loop.scores
    monkeypatch.setattr(loop, "scores", lambda total: honest(total) | {"mse": next(worth, 9.0)})
    recipe = vary(tiny_recipe, eval_every=2, save_every=1, keep_last=2)
    metrics = pretrain(recipe, tiny_corpus, tmp_path / "run", quiet=True)
    kept = [p.name for p in checkpoint.list_checkpoints(tmp_path / "run")]
    assert kept == ["step-00000004", "step-00000011", "step-00000012"]
    assert metrics["best"] == {"step": 4, "mse": 2.0}
    assert np.isfinite(metrics["valid"]["mae"])
