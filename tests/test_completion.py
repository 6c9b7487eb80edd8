"""Completion, by the shells themselves: what they offer after the words of a line, and that they start no Python for it."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from expresser import __version__
from expresser.cli import Command, main
from expresser.completion import Form, Option, forms
from expresser.completion_scripts import script
from expresser.errors import InputError

ALL = forms()
# A line of the fish's, and what must and must not be offered at its end.
LINES = [
    ("expresser ", {"corpus", "demo", "doctor", "translate"}, {"build", "--out"}),
    ("expresser co", {"corpus", "completion"}, {"demo"}),
    ("expresser corpus ", {"build", "verify"}, {"corpus", "rna"}),
    ("expresser corpus build --de", {"--deduplicate"}, {"--out"}),
    ("expresser corpus build cells.h5ad --deduplicate ", {"barcode", "source", "counts"}, {"None", "cells.h5ad"}),
    ("expresser corpus build ce", {"cells.h5ad"}, {"notes.txt"}),
    ("expresser corpus build --out no", {"notes.txt"}, {"cells.h5ad"}),
    ("expresser corpus build --seed 3 --genes no", {"notes.txt"}, {"cells.h5ad"}),
    ("expresser corpus verify corpus --", {"--deep", "--no-deep"}, {"--out"}),
    ("expresser translate fit s", {"sailer", "sailerx", "scact", "scmog"}, {"babel"}),
    ("expresser translate fit babel --config.bridge.rna-s", {"--config.bridge.rna-start"}, {"--rna"}),
    ("expresser translate predict runs --to ", {"rna", "atac", "protein"}, {"cells.h5ad"}),
    ("expresser pretrain small --model.head ", {"paper", "truncated"}, {"cells.h5ad"}),
    ("expresser completion ", {"bash", "zsh", "fish"}, {"cells.h5ad"}),
]


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with two files, and an expresser on PATH that must never be started."""
    (tmp_path / "cells.h5ad").touch()
    (tmp_path / "notes.txt").touch()
    tripwire = tmp_path / "bin" / "expresser"
    tripwire.parent.mkdir()
    tripwire.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    tripwire.chmod(0o755)
    for name in ("python", "python3"):
        shutil.copy(tripwire, tripwire.with_name(name))
    monkeypatch.setenv("PATH", f"{tripwire.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def saved(shell: str, folder: Path) -> Path:
    """The script of a shell, without the lines that start interactive shells slowly."""
    path = folder / ("_expresser" if shell == "zsh" else f"expresser.{shell}")
    path.write_text(script(shell, ALL))
    return path


def needed(shell: str) -> str:
    """The shell's path; without it the test is skipped."""
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


def by_function(line: str, path: Path) -> set[str]:
    """What bash's function puts into COMPREPLY, for the words that readline would hand it."""
    words = line.split(" ")
    listed = " ".join(f"'{word}'" for word in words)
    code = f"source {path}; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; _expresser; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    ran = subprocess.run([needed("bash"), "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert "command not found" not in ran.stderr
    return set(ran.stdout.split())


def by_fish(line: str, path: Path) -> set[str]:
    ran = subprocess.run(
        [needed("fish"), "--no-config", "-c", f"source {path}; complete -C '{line}'"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {offered.split("\t")[0] for offered in ran.stdout.splitlines()}


def typed(argv: Sequence[str], start: str, line: str, env: dict[str, str], until: str) -> str:
    """What a shell at a terminal shows after `line` and TAB TAB, up to `until` or for thirty seconds."""
    child, terminal = pty.fork()
    if child == 0:
        os.execvpe(argv[0], list(argv), {**os.environ, **env})
    shown = b""

    def wait(for_what: str, seconds: float) -> None:
        nonlocal shown
        end = time.monotonic() + seconds
        while time.monotonic() < end and not re.search(for_what, shown.decode(errors="replace")):
            if select.select([terminal], [], [], 0.2)[0]:
                try:
                    shown += os.read(terminal, 65536)
                except OSError:  # the shell has ended
                    return

    try:
        os.write(terminal, f"{start}; PS1='ready''> '\n".encode())
        wait("ready> ", 60)
        shown = b""
        os.write(terminal, line.encode() + b"\t\t")
        wait(until, 30)
    finally:
        os.kill(child, signal.SIGKILL)
        os.close(terminal)
        os.waitpid(child, 0)
    return shown.decode(errors="replace").replace(" \b", "")  # zsh takes back the blank it put after a word


@pytest.mark.parametrize(("line", "wanted", "unwanted"), LINES, ids=[line for line, *_ in LINES])
def test_bash_offers_what_fits(here, line, wanted, unwanted):
    offered = by_function(line, saved("bash", here))
    assert wanted <= offered
    assert not unwanted & offered
    assert not (here / "started").exists()


def test_bash_completes_after_an_equals_sign(here):
    path = saved("bash", here)
    assert by_function("expresser corpus build --deduplicate = ba", path) == {"barcode"}
    assert by_function("expresser corpus build --deduplicate =", path) == {"barcode", "counts", "source"}


def test_bash_says_nothing_where_it_knows_nothing(here):
    path = saved("bash", here)
    assert by_function("expresser nonsense ", path) == set()
    assert by_function("expresser corpus build --seed ", path) == set()


def test_bash_at_a_terminal_completes_words(here):
    env = {"HISTFILE": "/dev/null", "TERM": "dumb"}
    argv = [needed("bash"), "--norc", "--noprofile", "-i"]
    start = f"source {saved('bash', here)}"
    assert "expresser corpus build" in typed(argv, start, "expresser corp\tbu", env, "build")
    assert "notes.txt" in typed(argv, start, "expresser corpus build no", env, "notes")
    assert re.search(r"babel\s+polarbear\s+sailer", typed(argv, start, "expresser translate fit ", env, "scmog"))
    assert not (here / "started").exists()


def test_zsh_at_a_terminal_completes_words(here):
    env = {"HISTFILE": "/dev/null", "TERM": "dumb", "ZDOTDIR": str(here)}
    argv = [needed("zsh"), "-f", "-i"]
    path = saved("zsh", here)
    start = f"unsetopt zle_bracketed_paste; fpath=({path.parent} $fpath); autoload -Uz compinit; compinit -u -D"
    assert "expresser corpus build" in typed(argv, start, "expresser corp\tbu", env, "build")
    shown = typed(argv, start, "expresser translate fit ", env, "scmog")
    assert re.search(r"babel +-- Paired RNA and ATAC", shown)
    assert "polarbear" in shown
    assert "barcode" in typed(argv, start, "expresser corpus build --deduplicate b", env, "barcode")
    assert "--config.bridge.rna-start" in typed(
        argv, start, "expresser translate fit babel --config.bridge.rna-st", env, "rna-start"
    )
    assert "notes.txt" in typed(argv, start, "expresser corpus build --out no", env, "notes")
    assert not (here / "started").exists()


@pytest.mark.parametrize(("line", "wanted", "unwanted"), LINES, ids=[line for line, *_ in LINES])
def test_fish_offers_what_fits(here, line, wanted, unwanted):
    offered = by_fish(line, saved("fish", here))
    assert wanted <= offered
    assert not unwanted & offered
    assert not (here / "started").exists()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_holds_every_command_and_option_and_is_the_same_each_time(capsys, shell):
    main(["completion", shell])
    text = capsys.readouterr().out
    assert text == script(shell, ALL)
    assert __version__ in text
    for form in ALL:
        assert all(word in text for word in form.words)
        for option in form.options:
            assert all(flag.removeprefix("--") in text for flag in option.flags if flag != "-h")


def test_summaries_with_quotes_and_colons_are_text_in_every_shell(here):
    odd = (
        Form((), "", ("do",)),
        Form(
            ("do",),
            'it\'s $(touch started) `touch started` a:b \\ "c"',
            (),
            (Option(("--x",), "$(touch started)'", 1, ("a", "b")),),
        ),
    )
    for shell, check in (("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")):
        path = here / f"odd.{shell}"
        path.write_text(script(shell, odd))
        if shutil.which(shell):
            subprocess.run([shell, check, path], check=True)
    assert by_function("expresser do --x ", here / "odd.bash") == {"a", "b"}
    if shutil.which("fish"):
        assert "do" in by_fish("expresser ", here / "odd.fish")
    assert not (here / "started").exists()


def test_a_shell_that_is_none_is_refused():
    with pytest.raises(SystemExit) as caught:
        main(["completion", "tcsh"])
    assert caught.value.code == 2


def test_commands_that_tyro_does_not_parse_are_named(monkeypatch):
    class Entry:
        def load(self) -> Command:
            return Command(name="other", summary="Other.", example="expresser other", run=lambda argv: print("hello"))

    monkeypatch.setattr("expresser.completion.commands", lambda: {"other": Entry()})
    with pytest.raises(InputError, match="expresser other"):
        forms()
