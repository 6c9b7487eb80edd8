"""What the build adds to the site: files that lie elsewhere in the repository, and why the tests do not run a block of code."""

import html
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

HERE = Path(__file__).parent
_OPENING = re.compile(r'^( *)```(\w+)((?: +[\w-]+="[^"]*")+) *$', re.MULTILINE)
_WHY = re.compile(r'not-run="([^"]*)"')


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds log.md, changelog.md and security.md as if they lay among the pages."""
    root = HERE.parent
    elsewhere = {"log.md": HERE / "log.md", "changelog.md": root / "CHANGELOG.md", "security.md": root / "SECURITY.md"}
    for name, path in elsewhere.items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Takes options for the tests off the first lines of blocks; a reason for not running stands above its block."""
    for there, here in (
        ("../log.md", "log.md"),
        ("../../SECURITY.md", "security.md"),
    ):  # in the repository, and in the site
        markdown = markdown.replace(f"]({there})", f"]({here})")
    return _OPENING.sub(_plain, markdown)


def _plain(opening: re.Match[str]) -> str:
    indent, language, options = opening.groups()
    why = _WHY.search(options)
    if why is None:
        return f"{indent}```{language}"
    said = "Not compared with a run of this page" if language == "text" else "Not run by the tests of this page"
    return f'{indent}<p class="not-run">{said}: {html.escape(why[1])}.</p>\n\n{indent}```{language}'
