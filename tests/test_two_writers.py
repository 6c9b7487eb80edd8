"""Two writers of one output: the first goes on, the second is told which process has it before it has read anything."""

import inspect
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from killing import every_step, forked, hidden, wait

from expresser import cli
from expresser.completion import forms
from expresser.errors import InputError
from expresser.one_writer import one_writer, one_writer_of_out

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# {out} is held by another process. The inputs are not there: who is told of them has not looked at the lock first.
COMMANDS = {
    "genes build": "genes build --hgnc {none} --out {out}",
    "genes export": "genes export {none} --out {out}",
    "embed": "embed {none} {none}.h5ad --out {out}",
    "impute": "impute {none} {none}.h5ad --out {out}",
    "demo": "demo --out {out}",
    "report": "report {none} --out {out}",
    "simulate rna": "simulate rna --out {out}",
    "simulate multiome": "simulate multiome --out {out}",
    "simulate cite": "simulate cite --out {out}",
    "simulate atac": "simulate atac --out {out}",
    "corpus build": "corpus build {none}.h5ad --out {out}",
    "corpus append": "corpus append {out} {none}.h5ad",
    "corpus pull": "corpus pull {none} --out {out}",
    "data get": "data get pbmc3k --out {parent}",
    "finetune annotation": "finetune annotation --data {none}.h5ad --label t --out {out}",
    "finetune annotate": "finetune annotate {none} {none}.h5ad --out {out}",
    "finetune imputation": "finetune imputation --data {none}.h5ad --out {out}",
    "finetune apply": "finetune apply {none} --out {out}",
    "finetune export": "finetune export --labels {none} --out {out}",
    "translate fit": "translate fit babel --rna {none}.h5ad --atac {none}.h5ad --out {out}",
    "translate tune": "translate tune babel --rna {none}.h5ad --atac {none}.h5ad --grid lr=1,2 --out {out}",
    "translate predict": "translate predict {none} --input {none}.h5ad --to rna --out {out}",
    "translate embed": "translate embed {none} --input {none}.h5ad --out {out}",
    "translate evaluate": "translate evaluate {none} --rna {none}.h5ad --atac {none}.h5ad --out {out}",
    "translate perturb": "translate perturb {none} --input {none}.h5ad --gene A --out {out}",
    "translate label": "translate label --rna {none}.h5ad --atac {none}.h5ad --labels t --out {out}",
    "translate count": "translate count --fragments {none} --peaks {none} --out {out}",
    "translate match": "translate match {none} --rna {none}.h5ad --atac {none}.h5ad --out {out}",
}
# Those that read before they lock are here with a reason, or not at all.
OTHERS = {
    "corpus split": "opens the corpus that it reads, then holds --out (test_what_reads_first_is_held_before_it_works)",
    "corpus subset": "as corpus split",
    "pretrain": "holds --out before it opens the corpus (test_a_pretraining_run_is_held)",
    "finetune interactions": "reads labels and tables, then holds --out (test_what_reads_first_is_held_before_it_works)",
    "finetune lof": "as finetune interactions",
    "finetune dosage": "as finetune interactions",
    "finetune gene": "as finetune interactions",
    "translate openproblems": "holds --out, which it needs not have",
    "repeat": "runs another command, which holds its own output",
}


@contextmanager
def held(out: Path) -> Iterator[int]:
    """Another process holds `out`; its id."""
    reading, writing = os.pipe()

    def hold() -> None:
        with one_writer(out):
            os.write(writing, b".")
            time.sleep(600)

    child = forked(hold, root=out)
    os.read(reading, 1)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        wait(child)
        os.close(reading), os.close(writing)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_second_is_told_who_is_at_work(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parent = tmp_path / "at"
    out = parent / ("pbmc3k" if name == "data get" else "out.h5ad")
    if name == "corpus append":
        out.mkdir(parents=True)
    words = [word.format(none=tmp_path / "none", out=out, parent=parent) for word in COMMANDS[name].split()]
    with held(out) as holder:
        with pytest.raises(SystemExit) as left:
            cli.main(words)
        told = capsys.readouterr().err
    assert left.value.code == 2, told
    message = next(line for line in told.splitlines() if line.startswith("error: "))
    assert f"error: {out}: process {holder} on {socket.gethostname()}" in message
    assert "is at work on it (lock: " in message


def test_a_pretraining_run_is_held(tiny_recipe, tiny_corpus, tmp_path: Path) -> None:
    from pretrain.loop import pretrain

    with held(tmp_path / "run") as holder, pytest.raises(InputError, match=f"process {holder} on .* is at work on it"):
        pretrain(tiny_recipe, tiny_corpus, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "module", ["finetune.tasks.genes", "finetune.tasks.interactions", "expresser.corpus.splitting"]
)
def test_what_reads_first_is_held_before_it_works(module: str) -> None:
    functions = {"run_gene_task", "run_pair_task", "split_corpus"}
    found = [value for name, value in inspect.getmembers(__import__(module, fromlist=["x"])) if name in functions]
    assert found
    assert all(hasattr(function, "__wrapped__") for function in found)


def test_who_was_killed_holds_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    with held(out) as holder:
        lock = tmp_path / "deep" / ".out.lock"
        assert f"process {holder} on {socket.gethostname()}" in lock.read_text()
    assert lock.exists()  # nobody could remove it
    with one_writer(out):
        assert f"process {os.getpid()} on" in lock.read_text()
    assert list((tmp_path / "deep").iterdir()) == []


def test_killed_at_any_step_a_lock_is_free(tmp_path: Path) -> None:
    def work() -> None:
        with one_writer(tmp_path / "out"):
            (tmp_path / "out").write_text("x")

    for _ in every_step(work, tmp_path, lambda: None):
        with one_writer(tmp_path / "out"):
            pass
        assert hidden(tmp_path) == []


def test_what_a_writer_calls_may_hold_it_again_and_another_thread_may_not(tmp_path: Path) -> None:
    with one_writer(tmp_path / "out"):
        with one_writer(tmp_path / "." / "out"):
            pass
        with ThreadPoolExecutor(1) as other, pytest.raises(InputError, match=f"process {os.getpid()} on"):
            other.submit(lambda: one_writer(tmp_path / "out").__enter__()).result()
    with ThreadPoolExecutor(1) as other:

        def hold() -> None:
            with one_writer(tmp_path / "out"):
                pass

        other.submit(hold).result()


def test_what_a_killed_holder_forked_holds_nothing(tmp_path: Path) -> None:
    reading, writing = os.pipe()

    def hold() -> None:
        with one_writer(tmp_path / "out"):
            worker = os.fork()
            if worker == 0:
                time.sleep(600)
            os.write(writing, worker.to_bytes(8, "little"))
            time.sleep(600)

    holder = forked(hold, root=tmp_path)
    worker = int.from_bytes(os.read(reading, 8), "little")
    try:
        os.kill(holder, signal.SIGKILL)
        wait(holder)
        with one_writer(tmp_path / "out"):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reading), os.close(writing)


def test_a_forked_process_that_leaves_the_block_leaves_the_lock(tmp_path: Path) -> None:
    child = None
    with suppress(ZeroDivisionError), one_writer(tmp_path / "out"):
        child = os.fork()
        if child == 0:
            raise ZeroDivisionError
        assert wait(child) == 0
        assert (tmp_path / ".out.lock").is_file()
    if child == 0:
        os._exit(0)


def test_what_is_no_lock_is_left_as_it_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A link under the lock's name, which may lead to anything, or a file that somebody wrote."""
    kept = tmp_path / "kept"
    kept.write_text("a year of bench work")
    (tmp_path / ".linked.lock").symlink_to(kept)
    (tmp_path / ".written.lock").write_text("mine")
    for name in ("linked", "written"):
        (tmp_path / name).write_text("old")
        with one_writer(tmp_path / name):
            pass
        assert f"{tmp_path / name}: cannot be locked" in caplog.text
    assert kept.read_text() == "a year of bench work"
    assert (tmp_path / ".linked.lock").is_symlink()
    assert (tmp_path / ".written.lock").read_text() == "mine"


def test_an_output_of_the_longest_name_is_held(tmp_path: Path) -> None:
    out = tmp_path / ("n" * 255)
    with held(out), pytest.raises(InputError, match="is at work on it"), one_writer(out):
        pass


def test_a_link_and_its_folder_are_one_output(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with held(tmp_path / "disk"), pytest.raises(InputError, match="is at work on it"), one_writer(tmp_path / "link"):
        pass


def test_of_many_at_once_one_is_in(tmp_path: Path) -> None:
    """A counter that is read and written without care, by six processes that try until they may."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def add() -> None:
        for _ in range(20):
            while True:
                try:
                    with one_writer(counter):
                        counter.write_text(str(int(counter.read_text()) + 1))
                    break
                except InputError:
                    time.sleep(0.0005)

    children = [forked(add, root=tmp_path) for _ in range(6)]
    assert [wait(child) for child in children] == [0] * 6
    assert counter.read_text() == "120"
    assert hidden(tmp_path) == []


def test_a_file_system_without_locks_is_warned_of_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import fcntl

    def refused(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refused)
    with one_writer(tmp_path / "out"):
        (tmp_path / "out").write_text("x")
    assert "cannot be locked" in caplog.text
    assert (tmp_path / "out").read_text() == "x"


def test_a_folder_that_nothing_can_be_written_beside_is_locked_inside(tmp_path: Path) -> None:
    """A mount point, say."""
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / ".out.lock").mkdir()  # no file can be opened there
    with held(out), pytest.raises(InputError, match=r"lock: .*/out/\.lock"), one_writer(out):
        pass
    with one_writer(out):
        assert (out / ".lock").is_file()
    assert list(out.iterdir()) == []


def test_a_fit_into_an_empty_mount_point_is_not_taken_for_one_begun_before(tmp_path: Path) -> None:
    from tests.translate_toys import toy_fit

    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / ".out.lock").mkdir()
    toy_fit("babel", out)
    assert (out / "fit.json").is_file()


def test_an_empty_mount_point_is_a_new_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / ".out.lock").mkdir()
    with pytest.raises(SystemExit):
        cli.main(
            ["translate", "evaluate", str(tmp_path / "none"), "--rna", "a.h5ad", "--atac", "b.h5ad", "--out", str(out)]
        )
    assert str(tmp_path / "none") in capsys.readouterr().err


def test_no_output_no_lock(tmp_path: Path) -> None:
    @one_writer_of_out
    def work(x: int, *, out: Path | None = None) -> int:
        return x + len(list(tmp_path.iterdir()))

    assert work(1) == 1
    assert work(1, out=tmp_path / "x") == 2


def test_every_command_that_writes_is_listed_here() -> None:
    """A new command with --out comes into COMMANDS, or into OTHERS with a reason."""
    with_out = {form.words[:2] for form in forms() if any("--out" in option.flags for option in form.options)}
    assert len(with_out) > 20
    names = {words[0] if words[0] == "pretrain" else " ".join(words) for words in with_out}
    assert names <= COMMANDS.keys() | OTHERS.keys()


@pytest.mark.slow
def test_two_real_processes_one_wins(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "expresser.cli",
        "simulate",
        "multiome",
        "--cells",
        "3000",
        "--out",
        str(tmp_path / "out"),
    ]
    both = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=300)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], told
    assert "is at work on it" in "".join(told)
