"""Laws of shared work: DDP, ZeRO-2 and ZeRO-3 compute what one process does, and go on from one another's checkpoints."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_pretrain import _arguments, _environment, log_of, losses, vary, weights

from expresser import checkpoint
from expresser.cli import main
from expresser.corpus.store import Corpus
from expresser.corpus.stream import Stream, cut, most_micro_batches
from expresser.errors import InputError
from pretrain.evaluate import Held
from pretrain.loop import pretrain
from pretrain.zero import begin

SHORT = (
    "--data.max_steps", "12", "--model.dropout", "0", "--data.max_tokens", "100", "--save_every", "6",
    "--data.valid_cells", "7",
)  # fmt: skip


def launched(corpus: Path, out: Path, strategy: str, *more: str) -> subprocess.Popen:
    """Two processes of a run under torchrun."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    environment = _environment() | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    del environment["ACCELERATE_USE_CPU"]  # as a user would start it
    words = _arguments(corpus, out, "--strategy", strategy, *more)
    return subprocess.Popen(
        [*launch, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finished(process: subprocess.Popen) -> str:
    out, told = process.communicate(timeout=300)
    assert process.returncode == 0, told[-3000:]
    return out + told


def same_run(one: Path, two: Path, rel: float = 2e-4) -> None:
    np.testing.assert_allclose(losses(two), losses(one), rtol=rel)
    for a, b in zip(log_of(one), log_of(two), strict=True):
        assert a["step"] == b["step"]
        if a.get("grad_norm"):
            assert b["grad_norm"] == pytest.approx(a["grad_norm"], rel=1e-2)
        for key in a.keys() & {"valid", "additive"}:
            assert b[key] == pytest.approx(a[key], rel=2e-3)
    for name, weight in weights(one).items():
        torch.testing.assert_close(weights(two)[name], weight, rtol=2e-2, atol=2e-4)


@pytest.fixture(scope="module")
def alone(tiny_corpus, tmp_path_factory) -> Path:
    """The run of one process."""
    out = tmp_path_factory.mktemp("strategy") / "alone"
    main(_arguments(tiny_corpus, out, *SHORT))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
def test_zero_has_the_losses_and_weights_of_one_process_and_one_process_goes_on_from_it(
    tiny_corpus, alone, tmp_path, strategy
):
    pytest.importorskip("deepspeed")
    out = tmp_path / strategy
    told = finished(launched(tiny_corpus, out, strategy, *SHORT))
    assert "FutureWarning" not in told
    same_run(alone, out)
    # The checkpoint is that of any other run: whole weights, moments by the weights' names, no file of DeepSpeed's.
    mine, theirs = (run / "checkpoints" / "step-00000006" for run in (out, alone))
    assert {p.name for p in mine.rglob("*")} == {p.name for p in theirs.rglob("*")}
    a, b = (load_file(folder / "state" / "optimizer.safetensors") for folder in (mine, theirs))
    assert a.keys() == b.keys()
    for name in b:
        torch.testing.assert_close(a[name], b[name], rtol=5e-2, atol=1e-4)
    # Killed after step 6, gone on with by one process.
    (out / "metrics.json").unlink()
    for folder in checkpoint.list_checkpoints(out)[1:]:
        for path in sorted(folder.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        folder.rmdir()
    main(_arguments(tiny_corpus, out, *SHORT, "--resume"))
    same_run(alone, out)


@pytest.mark.slow
def test_a_scheduler_takes_ddp_back_and_zero3_goes_on(tiny_corpus, tmp_path):
    """SIGTERM to torchrun reaches its processes, which save and leave within its grace; the run goes on with the other strategy."""
    pytest.importorskip("deepspeed")
    out, whole = tmp_path / "run", tmp_path / "whole"
    # Without dropout, whose draws belong to a process.
    many = ("--data.max_steps", "60", "--model.dropout", "0", "--save_every", "1000")
    process = launched(tiny_corpus, out, "ddp", *many)
    log = out / "log.jsonl"
    deadline = time.monotonic() + 240
    while not (log.exists() and log.read_text().count("\n") > 5):
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    (left,) = checkpoint.list_checkpoints(out)
    step = json.loads((left / "state" / "loop.json").read_text())["step"]
    assert 5 <= step < 60
    finished(launched(tiny_corpus, out, "zero3", *many, "--resume"))
    main(_arguments(tiny_corpus, whole, *many))
    same_run(whole, out, rel=2e-3)


@pytest.mark.slow
def test_what_one_process_refuses_all_refuse_and_other_options_are_found_out(tiny_corpus, tmp_path):
    holds, fresh = tmp_path / "holds", tmp_path / "fresh"
    main(_arguments(tiny_corpus, holds, *SHORT))
    process = launched(tiny_corpus, holds, "ddp", *SHORT)
    told = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert told.count("holds a run already") == 2  # the main process alone looked
    words = " ".join(
        ["exec", sys.executable, "-m", *_arguments(tiny_corpus, fresh, *SHORT), "--optim.lr 1e-$((RANK+1))"]
    )
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--no-python"]
    done = subprocess.run(
        [*launch, "bash", "-c", words], env=_environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert "the 2 processes do not begin alike: optim.lr of process 1 is not that of process 0" in done.stderr
    assert not fresh.exists()


def test_zero_without_a_launcher_is_refused(tiny_recipe, tiny_corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for strategy in ("zero2", "zero3"):
        with pytest.raises(InputError, match="torchrun --nproc_per_node"):
            pretrain(vary(tiny_recipe, strategy=strategy), tiny_corpus, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("half", ["bf16", "fp16"])
def test_a_launcher_whose_deepspeed_would_keep_half_weights_is_refused(tiny_recipe, tmp_path, monkeypatch, half):
    pytest.importorskip("deepspeed")
    config = tmp_path / "ds.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2}, half: {"enabled": True}}))
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(config))
    with pytest.raises(InputError, match=f"turns {half} on"):
        begin(tiny_recipe, tmp_path)


@pytest.mark.parametrize("stage", [0, 1])
def test_a_launcher_that_asks_for_another_stage_is_refused(tiny_recipe, tmp_path, monkeypatch, stage):
    pytest.importorskip("deepspeed")
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", str(stage))
    with pytest.raises(InputError, match=f"stage {stage}: it must be 2 or 3"):
        begin(tiny_recipe, tmp_path)


def test_zero_without_deepspeed_says_what_to_install(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(InputError, match=r"pip install 'expresser\[deepspeed\]'"):
        begin(vary(tiny_recipe, strategy="zero2"), tmp_path)


def test_ddp_under_a_launcher_that_set_up_deepspeed_is_ddp(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    strategy = begin(vary(tiny_recipe, strategy="ddp"), tmp_path)
    assert strategy.name == "ddp"
    assert os.environ.get("ACCELERATE_USE_DEEPSPEED") is None


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("max_tokens", [1, 60, 100, 10_000])
def test_every_process_knows_the_largest_number_of_micro_batches(tiny_corpus, world, max_tokens):
    corpus = Corpus.open(tiny_corpus)
    shares = [
        Stream(
            corpus,
            np.arange(120),
            seed=0,
            global_batch=7,
            max_tokens=max_tokens,
            max_genes=40,
            rank=rank,
            world=world,
        )
        for rank in range(world)
    ]

    for cells_seen in range(0, 140, 7):
        steps = [share.step(cells_seen) for share in shares]
        most = max(len(step.micro) for step in steps)
        assert {most_micro_batches(step.lengths, world, shares[0].budget) for step in steps} == {most}


@pytest.mark.parametrize("n_cells", [1, 2, 7])
def test_in_validation_every_process_makes_as_many_passes_and_counts_its_own(tiny_corpus, n_cells):
    corpus = Corpus.open(tiny_corpus)
    parts = [Held.of(corpus, np.arange(n_cells), max_tokens=70, max_genes=40, rank=rank, world=3) for rank in range(3)]
    assert len({len(part.micro) + len(part.idle) for part in parts}) == 1
    counted = np.concatenate([batch.rows for part in parts for batch in part.micro])
    assert sorted(counted.tolist()) == list(range(n_cells))
    assert cut(np.arange(0), np.arange(0), np.arange(0), 70) == []
