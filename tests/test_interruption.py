"""Killed before any of its steps of the file system, a writer leaves the old state or the new one; the next one makes it whole."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from killing import every_step, forked, hidden, seen, wait

from expresser import atomic, cli
from expresser.atomic import is_empty, remove_folder, replaced, replaced_folder, replaced_together, sweep, write_text
from expresser.corpus.staging import staged
from expresser.corpus.workshop import clear, recorded, workshop
from expresser.errors import InputError
from expresser.run_folder import Log, claim
from finetune.state import Result, Store
from translate.state import load_state, save_state

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

RECORD = {"config": {"seed": 0}, "data": "d"}


def fill(folder: Path, words: str) -> None:
    """Three files, one of them in a folder of the folder."""
    for name in ("a", "b", "c/d"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"{words} {name}")


def put_folder(folder: Path, words: str) -> None:
    with replaced_folder(folder) as part:
        fill(part, words)


def without_exchange(folder: Path, words: str) -> None:
    atomic._exchanged = lambda a, b: False  # type: ignore[assignment]  # in the child alone
    put_folder(folder, words)


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("put", [put_folder, without_exchange])
def test_a_folder_is_the_old_one_or_the_new_one(
    tmp_path: Path, put: Callable[[Path, str], None], old: str | None
) -> None:
    root, folder = tmp_path / "at", tmp_path / "at" / "model"
    fill(tmp_path, "new")
    new = seen(tmp_path)
    shutil.rmtree(tmp_path)

    def fresh() -> None:
        shutil.rmtree(tmp_path, ignore_errors=True)
        root.mkdir(parents=True)
        if old is not None:
            folder.mkdir()
            fill(folder, old)

    fresh()
    before = seen(root)
    after = {f"model/{name}": value for name, value in new.items()}
    left = []
    for _ in every_step(lambda: put(folder, "new"), root, fresh):
        if put is without_exchange:
            sweep(root)  # the one moment at which there is neither ends with the next writer or reader that sweeps
        assert seen(root) in (before, after)
        left += hidden(root)
        put_folder(folder, "new")
        assert seen(root) == after
        assert hidden(root) == []
    assert left or put is without_exchange, "no kill fell into the writing"


def test_a_file_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    states = set()
    for _ in every_step(lambda: write_text(path, "new"), tmp_path, lambda: path.write_text("old")):
        states.add(path.read_text())
        write_text(path, "newest")
        assert path.read_text() == "newest"
        assert hidden(tmp_path) == []
    assert states == {"old", "new"}


def test_files_that_belong_together_are_never_mixed(tmp_path: Path) -> None:
    """Where the last one is, the others are of its kind."""

    def put(words: str) -> None:
        with replaced_together(tmp_path, last="metrics.json") as part:
            for name in ("report.html", "metrics.json", "predictions.parquet"):
                (part / name).write_text(words)

    states = set()
    for _ in every_step(lambda: put("new"), tmp_path, lambda: put("old")):
        there = {path.name: path.read_text() for path in tmp_path.iterdir() if path.is_file()}
        states.add(there.get("metrics.json"))
        assert "metrics.json" not in there or len(set(there.values())) == 1
        put("newest")
        assert {path.read_text() for path in tmp_path.iterdir()} == {"newest"}
    assert states == {"old", None, "new"}


def test_a_folder_that_is_removed_is_never_seen_in_half(tmp_path: Path) -> None:
    root, folder = tmp_path / "at", tmp_path / "at" / "step-1"

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        folder.mkdir(parents=True)
        fill(folder, "old")

    fresh()
    whole = seen(root)
    for _ in every_step(lambda: remove_folder(folder), root, fresh):
        assert seen(root) in (whole, {})
        sweep(root)
        assert hidden(root) == []


def test_what_a_living_writer_fills_is_not_swept_and_what_a_dead_one_left_is(tmp_path: Path) -> None:
    def write() -> None:
        with replaced(tmp_path / "x") as part:
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    assert wait(forked(write, root=tmp_path)) == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with replaced(tmp_path / "y") as part:
        part.write_text("whole")
        sweep(tmp_path)
        assert part.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert seen(tmp_path).keys() == {"y"}
    assert not is_empty(tmp_path)


def test_what_others_made_is_neither_swept_nor_overlooked(tmp_path: Path) -> None:
    (tmp_path / ".mine.part").mkdir()
    (tmp_path / ".mine.part" / "notes").write_text("a year of bench work")
    sweep(tmp_path)
    assert (tmp_path / ".mine.part" / "notes").is_file()
    assert not is_empty(tmp_path)
    (tmp_path / "downloads").mkdir()
    (tmp_path / "downloads" / "genome.fa.gz.part").write_text("half")
    assert not is_empty(tmp_path / "downloads")


@pytest.mark.parametrize(("mask", "folder", "file"), [(0o077, 0o700, 0o600), (0o022, 0o755, 0o644)])
def test_who_may_read_a_folder_is_what_the_umask_says(tmp_path: Path, mask: int, folder: int, file: int) -> None:
    (tmp_path / "elsewhere").write_text("theirs")
    (tmp_path / "elsewhere").chmod(0o640)
    before = os.umask(mask)
    try:
        with replaced_folder(tmp_path / "model") as part:
            (part / "weights").write_text("x")
            (part / "weights").chmod(0o600)  # as some libraries do
            (part / "link").symlink_to(tmp_path / "elsewhere")
    finally:
        os.umask(before)
    found = [(tmp_path / name).stat().st_mode & 0o777 for name in ("model", "model/weights", "elsewhere")]
    assert found == [folder, file, 0o640]


def test_links_to_a_folder_stay_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "model").mkdir(parents=True)
    (tmp_path / "model").symlink_to(tmp_path / "disk" / "model")
    put_folder(tmp_path / "model", "new")
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "disk" / "model" / "a").read_text() == "new a"


def test_a_run_s_folder_is_claimed_or_free(tmp_path: Path) -> None:
    out = tmp_path / "run"

    def take(resume: bool = False) -> None:
        claim(out, RECORD, resume=resume, what="a run", data="data")

    for _ in every_step(take, tmp_path, lambda: shutil.rmtree(out, ignore_errors=True)):
        take(resume=(out / "run.json").is_file())
        assert json.loads((out / "run.json").read_text()) == RECORD
        assert hidden(tmp_path) == []


def test_a_log_goes_on_with_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"

    def go_on(keep: int, upto: int) -> None:
        log = Log(path, position="n", keep_until=keep, active=True)
        for n in range(keep + 1, upto + 1):
            log.write({"n": n})

    for _ in every_step(lambda: go_on(2, 5), tmp_path, lambda: go_on(0, 4)):
        go_on(2, 5)
        assert [json.loads(line)["n"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5]
        assert hidden(tmp_path) == []


def test_a_damaged_line_of_a_log_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"n": 1}\n{"n"\n')
    with pytest.raises(InputError, match=r"log\.jsonl: line 2: not readable as JSON"):
        Log(tmp_path / "log.jsonl", position="n", keep_until=3, active=True)


def test_the_state_of_a_fit_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    folder = tmp_path / "state"

    def save(epochs: int) -> None:
        counters = {"phase": 0, "epoch": epochs, "epochs": epochs, "watch": {}}
        weights = {"w": torch.full((3,), float(epochs))}
        save_state(folder, system=weights, best=weights, mean=None, optimizers={}, counters=counters)

    states = set()
    for _ in every_step(lambda: save(2), tmp_path, lambda: save(1)):
        saved = load_state(folder)
        assert saved is not None
        assert saved.best is not None
        assert {saved.epochs} == set(saved.system["w"].tolist()) == set(saved.best["w"].tolist())
        states.add(saved.epochs)
        assert hidden(tmp_path) == []
    assert states == {1, 2}


def test_a_store_has_a_part_or_finds_it_anew(tmp_path: Path) -> None:
    def task(out: Path = tmp_path / "run") -> None:
        store = Store(out, {"of": "this"})
        for name in ("a", "b"):
            assert store.result(name, lambda name=name: {"row": Result({"is": name})})["row"].facts == {"is": name}
        store.clear()

    for _ in every_step(task, tmp_path, lambda: shutil.rmtree(tmp_path / "run", ignore_errors=True)):
        task()
        assert list((tmp_path / "run").iterdir()) == []


def test_a_workshop_is_believed_only_where_it_is_whole(tmp_path: Path) -> None:
    """Another job's leavings go in one step: half of them beside their journal would be taken for finished work."""
    out = tmp_path / "corpus"
    theirs, ours = {"job": "theirs"}, {"job": "ours"}

    def fresh() -> None:
        shutil.rmtree(tmp_path)
        (tmp_path / ".corpus.building").mkdir(parents=True)
        with workshop(out) as shop:
            shop.begin(theirs)
            for name in ("source-00000", "shard-00000"):
                shop.record(name, {"of": "theirs"})
            shutil.copytree(shop.folder, tmp_path / "left")
        (tmp_path / "left").rename(tmp_path / ".corpus.building")

    def build() -> None:
        with workshop(out) as shop:
            shop.begin(ours)
            shop.record("source-00000", {"of": "ours"})
            (shop.product / "file").write_text("ours")
            shop.deliver(out)

    for _ in every_step(build, tmp_path, fresh):
        folder = tmp_path / ".corpus.building"
        if (whose := recorded(folder, "journal")) is not None:
            found = {name: recorded(folder, name) for name in ("source-00000", "shard-00000")}
            if whose == theirs:
                assert found == {name: {"of": "theirs"} for name in found}
            else:
                assert found["shard-00000"] is None
        assert seen(out) in ({}, {"file": seen(out).get("file")})
        if out.exists():
            clear(out)
        else:
            build()
        assert (out / "file").read_text() == "ours"
        assert set(hidden(tmp_path)) <= {".corpus.lock"}


def test_a_folder_made_in_stages_is_absent_or_whole(tmp_path: Path) -> None:
    """A split or a subset of a corpus, its record included."""
    out = tmp_path / "deep" / "parts"

    def make() -> None:
        with staged(out) as stage:
            fill(stage.folder, "new")

    make()
    whole = seen(out)
    for _ in every_step(make, tmp_path, lambda: shutil.rmtree(tmp_path / "deep")):
        assert not out.exists() or seen(out) == whole
        if not out.exists():
            make()
        assert seen(out) == whole
        assert set(hidden(tmp_path)) <= {"deep/.parts.lock"}
        (tmp_path / "deep").mkdir(exist_ok=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_command_that_is_told_to_leave_takes_its_half_written_file_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    def told(*_: object, **__: object) -> None:
        os.kill(os.getpid(), number)

    monkeypatch.setattr("expresser.simulate.gene_labels.SimulatedLabels.write", told)
    words = [
        "simulate",
        "rna",
        "--cells",
        "30",
        "--genes",
        "60",
        "--types",
        "2",
        "--modules",
        "3",
        "--out",
        str(tmp_path / "out"),
    ]
    ended = wait(forked(lambda: cli.main(words), root=tmp_path))
    assert ended == 128 + number
    assert seen(tmp_path) == {}
    assert hidden(tmp_path) == []


@pytest.mark.slow
def test_commands_killed_at_random_moments_leave_nothing_third_and_come_to_the_same(tmp_path: Path) -> None:
    """A few moments of the two commands that take the least time; scripts/kill_trials.py has all of them, and more moments."""
    script = Path(__file__).resolve().parents[1] / "scripts" / "kill_trials.py"
    words = [
        sys.executable,
        str(script),
        "--what",
        "corpus",
        "append",
        "--moments",
        "8",
        "--out",
        str(tmp_path / "lines"),
    ]
    subprocess.run(words, check=True, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["corpus", "append"]
    for line in lines:
        assert line["faults"] == []
        assert line["third"] == line["again_unequal"] == line["again_left_something"] == 0
        assert line["ended_by_the_signal"] >= 4


def test_a_command_run_beside_the_main_thread_catches_no_signal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def command() -> None:
        with suppress(SystemExit):
            cli.main(["corpus", "info", str(tmp_path / "none")])

    thread = threading.Thread(target=command)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert "no such folder" in capsys.readouterr().err
