"""The documentation: all code on its pages is run, the site builds without a warning, and the engine that runs it sees faults."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import doc_pages
import pytest
from doc_blocks import Block, blocks, commands, missing
from doc_pages import Failed, Folders, Runner, refresh, run_page

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = REPOSITORY / "docs" / "pages"
README = REPOSITORY / "README.md"


def pages() -> list[Path]:
    """All of them, and the README once it says that it is tested."""
    tested = [README] if "<!-- tested" in README.read_text(encoding="utf-8") else []
    return sorted(PAGES.rglob("*.md")) + tested


def named(page: Path) -> str:
    return page.relative_to(REPOSITORY if page == README else PAGES).as_posix()


def runs(block: Block) -> bool:
    return block.language in ("bash", "python") and block.not_run is None


RUNNING = [page for page in pages() if any(map(runs, blocks(page)))]
NOT_RUN = [block for page in pages() for block in blocks(page) if block.not_run is not None]
QUICKSTART = PAGES / "index.md"


@pytest.fixture(scope="session")
def runner_for(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Folders]:
    with doc_pages.runners(tmp_path_factory.mktemp("docs")) as made:
        yield made


@pytest.mark.parametrize(
    "page", [pytest.param(p, id=named(p), marks=() if p == QUICKSTART else pytest.mark.slow) for p in RUNNING]
)
def test_page_does_what_it_says(page: Path, runner_for: Folders) -> None:
    assert runner_for.run(page)[1] == sum(map(runs, blocks(page)))


@pytest.mark.slow
@pytest.mark.parametrize("block", [pytest.param(b, id=f"{named(b.page)}:{b.line}") for b in NOT_RUN])
def test_block_that_is_not_run_says_why_and_could_be(block: Block, runner_for: Folders) -> None:
    """Each is listed, with its reason, among the skipped tests."""
    assert block.not_run
    if block.language in ("bash", "python"):
        with runner_for(QUICKSTART) as runner:
            runner.parse(block)
    pytest.skip(f"{block.language}: {block.not_run}")


# The engine


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Runner]:
    """Without the process of commands: for pages of bash alone."""
    with Runner(tmp_path, tmp_path, os.environ) as runner:
        yield runner


def page_of(tmp_path: Path, *parts: str) -> Path:
    path = tmp_path / "page.md"
    path.write_text("\n\n".join(f"```{part}\n```" for part in parts), encoding="utf-8")
    return path


def test_blocks_are_found_with_their_options_and_lines(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        'one\n\n```bash exit="2" not-run="a reason: two words"\nls\n```\n\n- item\n\n    ```python\n    if x:\n        y\n    ```\n'
    )
    first, second = blocks(page)
    assert (first.language, first.line, first.text, first.not_run) == ("bash", 3, "ls\n", "a reason: two words")
    assert first.options["exit"] == "2"
    assert (second.language, second.line, second.text) == ("python", 9, "if x:\n    y\n")


@pytest.mark.parametrize(("text", "said"), [("```bash\nls\n", "has no end"), ("```bash no-run\nls\n```\n", "no-run")])
def test_a_block_that_cannot_be_read_is_refused(text: str, said: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=said):
        blocks(page)


def test_numbers_hashes_and_verdicts_may_differ_and_words_may_not() -> None:
    printed = (
        "\x1b[1m  400 cells x 32 dimensions\x1b[0m\nid 83e0edd56375\n knn  0.51 beats, +0.01 to +0.05\nlast █▏ 3\n"
    )
    assert (
        missing("350 cells x 8 dimensions\nid 0123456abcde\nknn -1e-3 on a par, -0.1 to 0.2\nlast ███ 12", printed)
        == []
    )
    assert missing("400 genes x 32 dimensions", printed) == ["400 genes x 32 dimensions"]
    assert missing("400 … dimensions\n…\nlast 1", printed) == []
    assert missing("400 cells", printed) == ["400 cells"]
    assert missing("id 1\nid 2", printed) == ["id 2"]  # a line that was printed once answers once
    assert missing("babel2 x", "babel3 x") == ["babel2 x"]  # a digit of a name is no number


def test_a_page_that_is_true_runs_in_order_in_one_folder(tmp_path: Path, bare: Runner) -> None:
    page = page_of(
        tmp_path, "bash\necho hello 1 > a", "bash\ncat a", "text\nhello 2", 'bash not-run="no"\nfalse', "text\nof that"
    )
    assert run_page(page, bare) == 2


@pytest.mark.parametrize(
    "parts",
    [
        ("bash\necho one", "text\ntwo"),
        ("bash\nfalse",),
        ("bash\nfalse\ntrue",),
        ("bash\ntrue | false | true",),
        ('bash exit="2"\ntrue',),
        ("text\nof nothing",),
    ],
)
def test_a_page_that_is_false_fails(parts: tuple[str, ...], tmp_path: Path, bare: Runner) -> None:
    with pytest.raises(Failed):
        run_page(page_of(tmp_path, *parts), bare)


def test_refreshing_keeps_the_choice_of_lines_and_takes_the_new_numbers(tmp_path: Path, bare: Runner) -> None:
    parts = ("bash\nprintf 'a 1\\nb 2\\nc 3\\n'", "text\nc 9\n…\na 9")
    page = page_of(tmp_path, *parts)
    before = page.read_text()
    refresh(page, bare)
    assert page.read_text().rstrip() == before.replace("c 9", "c 3").replace("a 9", "a 1")
    page = page_of(tmp_path, parts[0], "text\n<<2>>")
    refresh(page, bare)
    assert "```text\nb 2\nc 3\n```" in page.read_text()


def test_commands_of_a_block_are_found_under_launchers_too(tmp_path: Path) -> None:
    text = "expresser embed a \\\n  b.h5ad | head -3  # expresser no\nX=1 torchrun -m pretrain full --out 'a b' && "
    text += "expresser push a b > c\n"
    block = Block(
        page=tmp_path, line=1, language="bash", options={}, text=text + "sbatch scripts/launch/slurm.sh full --out d\n"
    )
    assert list(commands(block)) == [
        ["expresser", "embed", "a", "b.h5ad"],
        ["expresser", "pretrain", "full", "--out", "a b"],
        ["expresser", "push", "a", "b"],
        ["expresser", "pretrain", "full", "--out", "d"],
    ]


@pytest.mark.slow
def test_a_command_that_does_not_exist_is_seen_where_it_is_not_run(tmp_path: Path, runner_for: Folders) -> None:
    command = "expresser translate fit babel --rna a.h5ad --atac b.h5ad --out c"
    with runner_for(QUICKSTART) as runner:
        runner.parse(Block(page=tmp_path, line=1, language="bash", options={}, text=command))
        for wrong in (
            command + " --config.no-such 3",
            command.replace("babel", "babble"),
            command.removesuffix(" --out c"),
        ):
            with pytest.raises(Failed):
                runner.parse(Block(page=tmp_path, line=1, language="bash", options={}, text=wrong))


# The site


class _Loaded(HTMLParser):
    """What a browser fetches for a page by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.found.append(values.get("src") or "")
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next", "edit"):
            self.found.append(values.get("href") or "")


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; building ends with an error where there is a warning."""
    for module in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("site")
    words = ["bash", str(REPOSITORY / "scripts" / "docs.sh"), "--site-dir", str(folder)]
    bin = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"PATH": bin, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_site_builds_with_warnings_as_errors_and_holds_every_page(site: Path) -> None:
    """`omitted_files: warn` makes a page that the navigation lacks a warning, a link that leads nowhere likewise."""
    assert {p.relative_to(PAGES).with_suffix(".html") for p in PAGES.rglob("*.md")} <= {
        p.relative_to(site) for p in site.rglob("*.html")
    }
    assert "2026" in (site / "log.html").read_text()
    reasons = [page.read_text().count('class="not-run"') for page in sorted(site.rglob("*.html"))]
    assert sum(reasons) == sum(block.page != README for block in NOT_RUN)
    assert not any("not-run=&quot;" in page.read_text() for page in site.rglob("*.html"))


@pytest.mark.slow
def test_site_fetches_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        reader = _Loaded()
        reader.feed(page.read_text(encoding="utf-8"))
        assert not [a for a in reader.found if re.match(r"(https?:)?//", a)], page
    for sheet in site.rglob("*.css"):
        assert not re.search(r"@import|url\(['\"]?https?:", sheet.read_text(encoding="utf-8")), sheet


def test_links_between_files_lead_somewhere() -> None:
    """As they lie in the repository, where most people read them."""
    link = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
    for page in [README, *PAGES.rglob("*.md")]:
        prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        dead = [to for to in link.findall(prose) if not (page.parent / to).exists()]
        assert not dead, f"{named(page)}: {dead}"
