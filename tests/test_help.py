"""--help: every command and sub-command has an example, and every example is a line that the command line takes."""

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import tyro

from expresser.cli import commands, main
from expresser.completion import Form, forms, printed

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / package) for package in ("expresser", "pretrain", "finetune", "translate"))
PARSER = str(Path(tyro.__file__).parent)
EXAMPLE = re.compile(r"Example:\s*((?:expresser|accelerate launch -m) .*?)(?= Example: |[ │]*$)", re.M)
ALL = forms()


class Understood(Exception):
    """Raised in place of the command, once its line has been parsed."""


@functools.cache
def examples(form: Form) -> list[str]:
    """The examples that a form's --help shows, without those of the verbs that it lists."""
    text = printed(commands()[form.words[0]].load(), [*form.words[1:], "--help"])
    return EXAMPLE.findall(text.split("╭─ subcommands")[0])


def words_of(example: str) -> list[str]:
    """What the command line is given: no launcher, and nothing that is the shell's."""
    words = shlex.split(example.removeprefix("accelerate launch -m "))
    words = words[1:] if words[0] == "expresser" else words
    return words[: words.index(">")] if ">" in words else words


def stop_at_the_command(frame: FrameType, event: str, _: Any) -> None:
    """A profile hook: raises where tyro calls a function of ours, whatever checks of types stand between them."""
    if event != "call" or not frame.f_code.co_filename.startswith(OURS):
        return
    caller = frame.f_back
    while caller is not None and not caller.f_code.co_filename.startswith((*OURS, str(ROOT / "tests"), PARSER)):
        caller = caller.f_back
    if caller is not None and Path(caller.f_code.co_filename).name in ("_calling.py", "_cli.py"):
        raise Understood


@pytest.fixture
def parsing_only(monkeypatch, tmp_path) -> Iterator[None]:
    """Commands raise Understood where they would begin, in an empty folder."""
    import pretrain.arguments
    from translate import cli_fit, cli_tune

    parse = pretrain.arguments.parse

    def parse_alone(*given: Any) -> None:
        parse(*given)
        raise Understood

    def begin(*_: Any) -> None:
        raise Understood

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain.arguments, "parse", parse_alone)
    monkeypatch.setattr(cli_fit, "fit", begin)
    monkeypatch.setattr(cli_tune, "tune", begin)
    before = sys.getprofile()
    sys.setprofile(stop_at_the_command)
    yield
    sys.setprofile(before)
    assert not list(tmp_path.iterdir())


def test_the_walk_reaches_what_lies_deepest():
    found = {form.words for form in ALL}
    assert {(name,) for name in commands()} < found
    from translate.registry import SYSTEMS

    assert {("translate", "fit", system) for system in SYSTEMS} < found
    assert {("corpus", "build"), ("finetune", "lof"), ("pretrain", "paper_naive"), ("completion", "zsh")} < found


@pytest.mark.parametrize("form", ALL[1:], ids=lambda form: " ".join(form.words))
def test_help_has_a_summary_and_an_example_of_its_own(form):
    assert form.summary
    own = [" ".join(words_of(example)) for example in examples(form)]
    assert own, f"expresser {' '.join(form.words)} --help shows no example"
    assert any(f"{line} ".startswith(f"{' '.join(form.words)} ") for line in own), own


@pytest.mark.parametrize("form", ALL[1:], ids=lambda form: " ".join(form.words))
def test_every_example_is_understood(form, capsys, parsing_only):
    for example in examples(form):
        with pytest.raises(Understood):
            main(words_of(example))
        sys.setprofile(stop_at_the_command)  # an exception takes it away


@pytest.mark.parametrize(
    "words", ["corpus build a.h5ad --outt x", "embed m", "pretrain small --model.head none", "demo --out"]
)
def test_what_is_not_understood_is_not_taken_for_an_example(words, capsys, parsing_only):
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert caught.value.code == 2


@pytest.mark.parametrize("form", [form for form in ALL if form.options], ids=lambda form: " ".join(form.words))
def test_every_option_says_what_it_is(form):
    assert [option.flags for option in form.options if not option.summary] == []


def test_the_start_of_the_help_needs_none_of_the_heavy_packages():
    code = "import sys; from expresser.cli import main; main(['--help']); print({'torch', 'numpy', 'anndata'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "set()"
    assert all(f"\n  {name} " in ran.stdout for name in commands())
