"""A real Chromium for tests: opens pages of this machine, and keeps what they ask for and what they complain about."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Headless, and silent: nothing of its own may reach for the network while a page is watched.
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
DESKTOP, PHONE = (1200, 900), (375, 812)  # CSS pixels


@dataclass
class Visit:
    """A page that is open. `requests`: addresses it asked for; `complaints`: errors and warnings of its console and scripts."""

    page: Any  # playwright.sync_api.Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def strangers(self) -> list[str]:
        """Requests for anything but files of this machine and what is inside the page."""
        return [url for url in self.requests if url.split(":")[0] not in ("file", "data", "blob")]

    def saved(self, selector: str, folder: Path) -> Path:
        """The file that a click on `selector` downloads, in `folder` under the name the page gave it."""
        with self.page.expect_download() as waiting:
            self.page.locator(selector).click()
        path = folder / waiting.value.suggested_filename
        waiting.value.save_as(path)
        return path


@dataclass
class Chromium:
    """A running browser; `visit` opens a page in a fresh profile without a network."""

    browser: Any  # playwright.sync_api.Browser

    @contextmanager
    def visit(
        self,
        path: Path,
        *,
        size: tuple[int, int] = DESKTOP,
        dark: bool = False,
        scripts: bool = True,
        media: Literal["screen", "print"] = "screen",
        anchor: str = "",
        scale: float = 1,
    ) -> Iterator[Visit]:
        """The file `path` in a window of `size` CSS pixels, each `scale` pixels wide. anchor: what the address names after its #."""
        context = self.browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            java_script_enabled=scripts,
            has_touch=size[0] < 600,
            device_scale_factor=scale,
            reduced_motion="reduce",
            accept_downloads=True,
            offline=True,
        )
        context.set_default_timeout(60_000)  # a busy machine is no failure
        try:
            visit = Visit(context.new_page())
            visit.page.on("request", lambda request: visit.requests.append(request.url))
            visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
            visit.page.on(
                "console",
                lambda said: visit.complaints.append(said.text) if said.type in ("error", "warning") else None,
            )
            if media == "print":  # told to be a screen, a page would stay one in its PDF
                visit.page.emulate_media(media=media)
            visit.page.goto(path.resolve().as_uri() + anchor)
            yield visit
        finally:
            context.close()


@contextmanager
def chromium() -> Iterator[Chromium]:
    """Chromium for as long as the block lasts; the test is skipped where Playwright or a browser is missing.

    Playwright holds an event loop open meanwhile: use this in a fixture of one module, not of the session.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="no Playwright: pip install playwright")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} on the path (apt-get install chromium)")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, headless=True, args=list(FLAGS))
        try:
            yield Chromium(browser)
        finally:
            browser.close()
