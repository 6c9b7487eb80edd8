"""The systems' pages: what the code knows of a system stands on its page as it is, and what docstrings say can be typeset."""

import ast
import dataclasses
import importlib.util
import logging
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from translate import cli_fit
from translate.babel import Babel
from translate.registry import SYSTEMS

ROOT = Path(__file__).parent.parent
PACKAGES = ("expresser", "pretrain", "finetune", "translate")


def loaded(path: Path) -> ModuleType:
    """A file that is no part of a package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pages() -> ModuleType:
    return loaded(ROOT / "scripts" / "system_pages.py")


@pytest.mark.parametrize("name", [*SYSTEMS, "expression_transformer", "index"])
def test_a_page_says_what_the_code_says(pages, name):
    page = pages.PAGES / f"{name}.md"
    assert pages.with_facts(page.read_text(), name) == page.read_text(), "run: python scripts/system_pages.py"


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_page_has_every_kind_of_fact(pages, name):
    there = {found[2] for found in pages.BLOCK.finditer((pages.PAGES / f"{name}.md").read_text())}
    assert there == set(pages.facts(name)), "a block is missing, or one without an end"


def test_a_changed_record_changes_the_page(pages, monkeypatch):
    text = (pages.PAGES / "babel.md").read_text()
    published = dataclasses.replace(Babel.published, doi="10.1000/other", deviations=("Nothing | at all.",))
    monkeypatch.setattr(Babel, "published", published)
    fresh = pages.with_facts(text, "babel")
    assert "[doi:10.1000/other](https://doi.org/10.1000/other)" in fresh
    departures = fresh.split("<!-- facts: departures -->")[1].split("<!-- end of facts -->")[0]
    assert departures.strip() == "- Nothing | at all."
    assert pages.with_facts(fresh, "babel") == fresh


@pytest.mark.parametrize("name", SYSTEMS)
def test_options_are_those_of_the_command_line(pages, name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")  # no name is broken over two lines
    with pytest.raises(SystemExit):
        cli_fit.run([name, "--help"])
    taken = set(re.findall(r"(?<!\S)--config\.[\w.-]+", capsys.readouterr().out))
    described = {f"--config.{path}": text for path, _, text in pages.described(SYSTEMS[name].config_class())}
    negated = {option for option in taken if option.replace(".no-", ".") in described}
    assert set(described) == taken - (negated - set(described))
    assert not [option for option, text in described.items() if not text], "an option without a word of what it is"


def test_presets_are_compared_by_what_differs(pages):
    @dataclasses.dataclass(frozen=True)
    class Inner:
        clip: float | None = 0.5
        same: int = 1

    @dataclasses.dataclass(frozen=True)
    class Toy:
        inner: Inner = dataclasses.field(default_factory=Inner)
        sizes: tuple[int, ...] = (64, 32)
        on: bool = True
        steps: int = 1000

    table = pages.differences({"default": Toy(), "paper": Toy(Inner(None), (1000,), False)})
    assert table.splitlines() == [
        "| setting | `default` | `paper` |",
        "|---|---|---|",
        "| `inner.clip` | 0.5 | none |",
        "| `sizes` | 64 32 | 1,000 |",
        "| `on` | yes | no |",
    ]


MEASURED = """# All
## Some (few) pairs, again
| | r |
|---|---|
| true rates | 0.9 |
| **SAILER** | 0.5 |
| SAILERX | 0.6 |
| BABEL, shared | 0.7 |

| pairs | **BABEL** | ridge |
|---|---|---|
| 50 | 0.1 | 0.2 |

| | r |
|---|---|
| scMOG | 0.1 |
## Next
| | r |
|---|---|
| **BABEL** | 1 |
"""


def test_measured_tables_lose_the_rows_of_other_systems(pages):
    found = pages.measured(MEASURED, "some-few-pairs-again", "BABEL").split("\n\n")[1:]
    assert found == [
        "| | r |\n|---|---|\n| true rates | 0.9 |\n| BABEL, shared | 0.7 |",
        "| pairs | **BABEL** | ridge |\n|---|---|---|\n| 50 | 0.1 | 0.2 |",
    ]
    assert "SAILERX" not in pages.measured(MEASURED, "some-few-pairs-again", "SAILER")


def test_a_figure_that_is_not_there_is_an_error(pages):
    with pytest.raises(ValueError, match="no section 'elsewhere'; there are all, some-few-pairs-again, next"):
        pages.measured(MEASURED, "elsewhere", "BABEL")
    with pytest.raises(ValueError, match="no table of section 'next' names scACT"):
        pages.measured(MEASURED, "next", "scACT")


def test_check_names_the_pages_that_are_behind(pages, monkeypatch, tmp_path, capsys):
    (tmp_path / "babel.md").write_text("<!-- facts: record -->\nold\n<!-- end of facts -->\n")
    monkeypatch.setattr(pages, "PAGES", tmp_path)
    monkeypatch.setattr(sys, "argv", ["system_pages.py", "--check"])
    with pytest.raises(SystemExit, match=r"python scripts/system_pages\.py"):
        pages.main()
    assert capsys.readouterr().out == "behind: babel.md\n"
    assert "old" in (tmp_path / "babel.md").read_text()
    monkeypatch.setattr(sys, "argv", ["system_pages.py"])
    pages.main()
    assert capsys.readouterr().out == "written: babel.md\n"
    assert "10.1073/pnas.2023070118" in (tmp_path / "babel.md").read_text()
    pages.main()
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def formulas() -> ModuleType:
    for needed in ("griffe", "latex2mathml"):
        pytest.importorskip(needed, reason=f"{needed} is not installed: pip install 'expresser[docs]'")
    return loaded(ROOT / "docs" / "formulas.py")


def test_formulas_become_mathml(formulas):
    found = formulas.typeset("A mean.\n\n.. math:: z_i = 1\n    + z_j\n\nThen :math:`q^*` of *all*.")
    before, shown, after = found.split("\n\n")
    assert before == "A mean."
    assert re.fullmatch('<div class="formula" [^>]*><math.*</math></div>', shown)
    assert shown.count("<msub><mi>z</mi>") == 2
    assert re.fullmatch(r"Then <span><math.*</math></span> of \*all\*\.", after)
    assert after.count("*") == 2  # the star of q* is no emphasis
    assert formulas.typeset("Costs 3 $ and `a_b`.") == "Costs 3 $ and `a_b`."
    assert formulas.on_page_markdown("Text.\n\n$$x$$\n") == f"Text.\n\n{formulas.displayed('x')}\n"


def test_each_formula_of_a_docstring_can_be_typeset(formulas):
    kinds, typeset = (ast.Module, ast.ClassDef, ast.FunctionDef), 0
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            docstring = ast.get_docstring(node) if isinstance(node, kinds) else None
            if docstring and "math:" in docstring:
                assert "math:" not in formulas.typeset(docstring), f"{path}: a formula is left"
                typeset += 1
    assert typeset > 20


def test_docstrings_are_read_without_a_warning(formulas, caplog):
    import griffe

    def parse(thing: griffe.Object) -> int:
        """How many docstrings there are in it, each parsed."""
        inside = [member for member in thing.members.values() if not member.is_alias]
        here = int(thing.docstring is not None and thing.docstring.parsed is not None)
        return here + sum(parse(member) for member in inside)  # type: ignore[arg-type]

    with caplog.at_level(logging.WARNING, logger="griffe"):
        paths = [str(ROOT)]
        found = [parse(griffe.load(name, search_paths=paths, docstring_parser="auto")) for name in PACKAGES]  # type: ignore[arg-type]
    assert [record.getMessage() for record in caplog.records] == []
    assert min(found) > 50
