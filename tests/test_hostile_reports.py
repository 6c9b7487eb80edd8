"""Runs from strangers on a page of ours: every word of theirs is text, and what is no run is told in one message."""

import json
import random
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hostile import JSON_FILES, bounded, refused

from expresser.cli import main
from expresser.comparison.page import compare
from expresser.errors import InputError
from expresser.foreign import printable
from expresser.model_card import model_card
from expresser.pages import pretraining_page
from expresser.run_files import read_log
from tests.test_comparison import evaluation, fit_folder

pytestmark = pytest.mark.usefixtures("undrawn")

EVIL = "</script></title><script>alert(1)</script><img src=x onerror=alert(2)><a href='javascript:alert(3)'>"
EVIL += "$\\frac{$ \x1b[2J\x00\u202e\n=1+1"
FILES = ("run.json", "metrics.json", "log.jsonl")


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path) -> list[Path]:
    """A pretraining run twice, a translator's fit and an evaluation."""
    made = [tmp_path / name for name in ("one", "two")]
    for folder in made:
        folder.mkdir()
        for name in FILES:
            shutil.copy(tiny_run / name, folder)
    fit = fit_folder(tmp_path / "fit", "babel", seed=0, auroc=0.7)
    (tmp_path / "judged").mkdir()
    evaluation(tmp_path / "judged", "babel", 0.7)
    return [*made, fit, tmp_path / "judged"]


class Page(HTMLParser):
    """The elements of a page with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def harmless(page: Path) -> None:
    """One script, ours; no handler; no address but within the page or its own data."""
    text = page.read_text(encoding="utf-8")
    elements = Page(text).elements
    assert [tag for tag, _ in elements].count("script") == 1
    assert "default-src 'none'" in text
    for tag, attrs in elements:
        assert tag not in ("iframe", "object", "embed", "base", "form", "link"), tag
        for name, value in attrs.items():
            assert not name.startswith("on"), (tag, name)
            if name.rpartition(":")[2] in ("href", "src"):
                assert re.match(r"#|data:(application/(json|gzip)|text/csv|image/)", value or ""), (tag, value)
    assert "<script>alert" not in text
    assert "<img src=x" not in text


def poisoned(value: Any, key: str = "") -> Any:
    """The value with all text that names something made evil; what tells kinds of runs apart stays."""
    if isinstance(value, dict):
        return {k: poisoned(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(v, key) for v in value]
    return value + EVIL if isinstance(value, str) and key not in ("system", "task", "written_by") else value


def lines_of(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def poison(folder: Path) -> None:
    for name in FILES:
        path = folder / name
        if path.is_file():
            found = (
                [poisoned(one) for one in lines_of(path)]
                if name == "log.jsonl"
                else [poisoned(json.loads(path.read_text()))]
            )
            path.write_text("".join(json.dumps(one) + "\n" for one in found))


def test_every_word_of_a_run_is_text_on_the_page(runs: list[Path], tmp_path: Path, drawn: None) -> None:
    for folder in runs:
        poison(folder)
    compare(runs, tmp_path / "page.html")
    harmless(tmp_path / "page.html")
    pretraining_page(runs[0], tmp_path / "one.html")
    harmless(tmp_path / "one.html")


def test_names_of_methods_columns_and_folders_are_text_too(runs: list[Path], tmp_path: Path) -> None:
    judged = runs[-1]
    metrics = json.loads((judged / "metrics.json").read_text())
    metrics["methods"] = {f"{name}{EVIL}": scores for name, scores in metrics["methods"].items()} | metrics["methods"]
    (judged / "metrics.json").write_text(json.dumps(metrics))
    named = judged.rename(tmp_path / "<script>alert(1)<script>")
    compare([named, *runs[:-1]], tmp_path / "page.html")
    harmless(tmp_path / "page.html")


def test_what_the_terminal_shows_does_not_steer_it(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in runs[:2]:
        poison(folder)
    main(["report", *map(str, runs), "--out", str(tmp_path / "page.html")])
    (runs[0] / "run.json").write_text('{"\x1b[2J": ')
    with pytest.raises(SystemExit) as end:
        main(["report", str(runs[0]), "--out", str(tmp_path / "\x1b[2J.html")])
    assert end.value.code == 2
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set("\x1b\x00\u202e")
    assert said.err.count("error: ") == 1


def test_printable_text_stays_as_it_is() -> None:
    assert printable("Ärger: α → β, 10 µm\n\tx") == "Ärger: α → β, 10 µm\n\tx"
    assert printable("a\x1b[2J\x00\u202eb\x9b") == "a\\x1b[2J\\x00\\u202eb\\x9b"


@pytest.mark.parametrize("name", ["run.json", "metrics.json"])
@pytest.mark.parametrize("case", JSON_FILES)
def test_files_that_are_no_plain_json_are_told_and_the_others_shown(
    runs: list[Path], tmp_path: Path, name: str, case: str
) -> None:
    damage, _ = JSON_FILES[case]
    damage(runs[0] / name)
    with bounded(seconds=60):
        numbers, _ = compare(runs[:2], tmp_path / "page.html")
    assert "one" in json.dumps(numbers.get("left_out", numbers))
    harmless(tmp_path / "page.html")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"{\n", "not readable as JSON"),
        (b"1\n", "line 1 holds a int"),
        (b"{}\n{}, {}\n", "line 2: not readable as JSON"),
        (b"[]\n", "holds a list"),
        (b"[" * 100_000 + b"\n", "levels|not readable"),
        (b"\xff\n", "not readable as JSON"),
        (b"{}\n" * 6_000_000, "more than 1,000,000 lines"),
    ],
)
def test_a_log_that_is_none_is_refused(tmp_path: Path, text: bytes, words: str) -> None:
    (tmp_path / "log.jsonl").write_bytes(text)
    refused(lambda: read_log(tmp_path / "log.jsonl"), words)


def test_a_log_keeps_its_whole_lines(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"a": 1}\n\n{"a": NaN, "b": "x,[{"}\n{"cut')
    assert [line.get("b") for line in read_log(tmp_path / "log.jsonl")] == [None, "x,[{"]


STRANGE = ["x", "", None, [], {}, [1], {"a": 1}, True, -1, 0, 1e300, 10**60, float("nan"), float("inf"), EVIL]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    yield path
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*path, key))


def changed(value: Any, path: tuple[Any, ...], made: Any) -> Any:
    if not path:
        return made
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], made)
    return copy


@pytest.mark.parametrize(("seed", "cases"), [(0, 6), pytest.param(1, 60, marks=pytest.mark.slow)])
def test_a_value_of_any_other_kind_is_shown_or_told_never_a_traceback(
    runs: list[Path], tmp_path: Path, seed: int, cases: int
) -> None:
    draw = random.Random(seed)
    for _ in range(cases):
        folder = draw.choice(runs)
        name = draw.choice([name for name in FILES if (folder / name).is_file()])
        before = (folder / name).read_text()
        value = lines_of(folder / name) if name == "log.jsonl" else json.loads(before)
        made = changed(value, draw.choice(list(places(value))), draw.choice(STRANGE))
        logged = name == "log.jsonl" and isinstance(made, list)
        (folder / name).write_text(
            "".join(json.dumps(line) + "\n" for line in made) if logged else json.dumps(made) + "\n"
        )
        for asked in ([folder], runs):
            try:
                compare(asked, tmp_path / "page.html")
            except InputError as error:
                said = str(error)
            else:
                said = ""
                harmless(tmp_path / "page.html")
            assert len(said) < 20_000
        (folder / name).write_text(before)


def test_a_card_shows_a_strangers_words_and_runs_none_of_them(tiny_run: Path) -> None:
    run = poisoned(json.loads((tiny_run / "run.json").read_text()))
    text = model_card(run)
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    fenced = "\n".join(re.sub(r"```.*?\n```", "", body, flags=re.S).splitlines())
    assert "<script>" not in fenced
    assert "<img" not in fenced
    assert "](javascript:" not in fenced
    assert "alert(1)" not in head or "'" in head  # quoted, as YAML needs it
