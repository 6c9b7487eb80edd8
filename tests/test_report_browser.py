"""A report in a real browser: tabs, sorting, downloads, phone, dark, paper, keyboard; nothing leaves the page, nothing complains."""

import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from xml.dom import minidom

import numpy as np
import pandas as pd
import pytest
from browser import DESKTOP, PHONE, Chromium, Visit, chromium
from PIL import Image

from expresser import plots
from expresser.report import Figure, Section, Table, write_report

SCORES = pd.DataFrame(
    {
        "MAE": [0.5, 0.25, np.nan, 10.0, np.inf],
        "r": [0.1, 0.9, 0.5, np.nan, -0.2],
        "note": ["b10", "b2", "", "a", "c"],
    },
    index=pd.Index(["ours", "mean", "knn", "ridge", "odd"], name="method"),
)
WIDE = pd.DataFrame(np.arange(32.0).reshape(2, 16), columns=[f"a_rather_long_name_{i}" for i in range(16)])
LOG = pd.DataFrame({"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0], "valid": [3.5, 2.5, 1.75]})
NARROW = pd.DataFrame(
    {f"averages_of_{name}": [1234.5] for name in ("predictions", "measurements", "baselines", "rest")}
)
TITLES = ["Result", "RNA → ATAC <maps>", "Training", "Long"]


def cells() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(2000, 2)), rng.choice(["T", "B", "NK"], 2000)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of four sections: tables small, wide and tall, a figure of lines, and a cloud stored as an image."""
    points, types = cells()
    curve = plots.svg(partial(plots.curve_axes, frame=LOG, x="step", y=["loss", "valid"]))
    cloud = plots.svg(partial(plots.scatter_axes, xy=points, by=types, label="cell type"))
    tall = pd.DataFrame({"gene": [f"G{i:03d}N" for i in range(200)], "p": np.linspace(1, 0, 200)})
    return write_report(
        tmp_path_factory.mktemp("page") / "r.html",
        title="A report of averagely-long-names_without_any_place_to_break_them_at_all",
        summary=[("cells", 3000), ("MAE", 0.00014512), ("the best of all", "a sentence of several words")],
        sections=[
            Section(
                TITLES[0],
                "First.",
                (Table("Scores", SCORES, "", {"MAE": "min", "r": "max"}), Table("Wide", WIDE), Table("Narrow", NARROW)),
            ),
            Section(TITLES[1], "Second: a needle.", (Figure("Cells by type", cloud, "UMAP."),)),
            Section(TITLES[2], "Third.", (Figure("Loss", curve, "By step.", LOG),)),
            Section(TITLES[3], "Fourth.", (Table("Genes", tall),)),
        ],
        provenance={"command": "expresser " + "x" * 200, "data": {"a/long/path/" * 20: {"sha256": "0f" * 32}}},
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with chromium() as running:
        yield running


@pytest.fixture
def visit(browser: Chromium, report: Path) -> Iterator[Visit]:
    """The page on a desktop; after the test, it must have been quiet and have asked for nothing."""
    with browser.visit(report) as visit:
        yield visit
        assert visit.complaints == []
        assert visit.strangers() == []
        assert visit.requests[0].endswith("r.html")


def shown(page: Any) -> list[str]:
    """Headings of the sections that can be seen."""
    return page.eval_on_selector_all("h2", "all => all.filter(h => h.checkVisibility()).map(h => h.textContent)")


def selected(page: Any) -> str:
    (name,) = page.eval_on_selector_all("[role=tab][aria-selected=true]", "all => all.map(t => t.textContent)")
    return name


def column(page: Any, table: str, number: int) -> list[str]:
    """The column's texts, in the order they stand in now, without the words for screen readers."""
    rows = page.eval_on_selector_all(
        f"#{table} tbody tr", "(all, i) => all.map(r => r.cells[i].firstChild?.textContent ?? '')", number
    )
    assert isinstance(rows, list)
    return rows


# Tabs


def test_a_click_on_a_tab_shows_its_section_alone(visit: Visit) -> None:
    page = visit.page
    tabs = page.get_by_role("tab")
    assert tabs.all_text_contents() == [*TITLES, "Provenance"]
    assert shown(page) == ["Result"]
    for i, title in enumerate([*TITLES, "Provenance"]):
        tabs.nth(i).click()
        assert shown(page) == [title]
        assert selected(page) == title
        panel = page.get_by_role("tabpanel")
        assert panel.get_attribute("id") == tabs.nth(i).get_attribute("aria-controls")
        assert panel.get_attribute("aria-labelledby") == tabs.nth(i).get_attribute("id")
        assert page.url.endswith(f"#{panel.get_attribute('id')}")


def test_arrows_move_between_tabs_and_the_bar_is_one_stop(visit: Visit) -> None:
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Result"
    for key, title in (
        ("ArrowRight", TITLES[1]),
        ("End", "Provenance"),
        ("ArrowRight", "Result"),
        ("ArrowLeft", "Provenance"),
        ("Home", "Result"),
        ("ArrowRight", TITLES[1]),
    ):
        page.keyboard.press(key)
        assert selected(page) == title
        assert page.evaluate("document.activeElement.textContent") == title
        assert shown(page) == [title]
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Show all"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "section-2"


def test_show_all_is_one_long_page_and_back(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("tab", name="Training").click()
    button = page.get_by_role("button", name="Show all")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    assert shown(page) == [*TITLES, "Provenance"]
    assert page.get_by_role("tab").count() == page.get_by_role("tabpanel").count() == 0
    page.get_by_role("link", name="Long").click()
    assert page.evaluate("scrollY") > 500
    button.click()
    assert shown(page) == ["Long"]
    assert button.get_attribute("aria-pressed") == "false"


@pytest.mark.parametrize(
    ("anchor", "title"),
    [
        ("#section-3", "Training"),
        ("#figure-2", "Training"),
        ("#table-4", "Long"),
        ("#nothing", "Result"),
        ("#%", "Result"),
    ],
)
def test_an_address_opens_the_tab_of_what_it_names(browser: Chromium, report: Path, anchor: str, title: str) -> None:
    with browser.visit(report, anchor=anchor) as visit:
        assert shown(visit.page) == [title]
        if anchor == "#figure-2":
            assert visit.page.locator("#figure-2").bounding_box()["y"] < DESKTOP[1]
            visit.page.evaluate("location.hash = 'table-1'")
            visit.page.wait_for_function("document.querySelector('#section-1').checkVisibility()")
            assert shown(visit.page) == ["Result"]
        assert visit.complaints == []


def test_the_browser_s_search_finds_what_a_tab_hides(visit: Visit) -> None:
    page = visit.page
    assert page.eval_on_selector_all("[hidden]", "all => all.map(s => s.getAttribute('hidden'))") == ["until-found"] * 4
    page.eval_on_selector("#section-2", "s => s.dispatchEvent(new Event('beforematch'))")  # what a find sends
    assert shown(page) == [TITLES[1]]
    assert selected(page) == TITLES[1]


def test_a_tab_chosen_far_down_begins_at_its_top(visit: Visit) -> None:
    page = visit.page
    page.set_viewport_size({"width": 800, "height": 560})
    page.get_by_role("tab", name="Long").click()
    page.evaluate("scrollTo(0, document.body.scrollHeight)")
    page.get_by_role("tab", name="Result").click()
    assert 0 < page.locator("#section-1-title").bounding_box()["y"] < 200


def test_without_scripts_the_page_is_whole(browser: Chromium, report: Path) -> None:
    with browser.visit(report, scripts=False) as visit:
        assert visit.page.locator("h2").all_text_contents() == [*TITLES, "Provenance"]
        assert all(heading.is_visible() for heading in visit.page.locator("h2").all())
        visit.page.locator("nav a", has_text="Training").click()
        assert visit.page.url.endswith("#section-3")


# Tables


def test_a_heading_sorts_by_its_numbers_and_missing_ones_stay_last(visit: Visit) -> None:
    page = visit.page
    head = page.locator("#table-1 th", has_text="MAE")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "ascending"
    assert column(page, "table-1", 1) == ["0.25", "0.50", "10.00", "∞", "—"]
    assert page.get_by_role("status").text_content() == "Sorted by MAE\u00a0↓ lower is better, ascending."
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "table-1", 1) == ["∞", "10.00", "0.50", "0.25", "—"]
    assert column(page, "table-1", 0) == ["odd", "ridge", "ours", "mean", "knn"]


def test_where_more_is_better_the_first_click_puts_the_best_on_top(visit: Visit) -> None:
    page = visit.page
    head = page.locator("#table-1 th", has_text="higher is better")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert column(page, "table-1", 0) == ["mean", "knn", "ours", "odd", "ridge"]
    assert page.locator("#table-1 [aria-sort]").count() == 1


def test_words_sort_with_their_digits_as_numbers_by_keyboard_too(visit: Visit) -> None:
    page = visit.page
    page.locator("#table-1 th", has_text="note").get_by_role("button").focus()
    page.keyboard.press("Enter")
    assert column(page, "table-1", 3) == ["a", "b2", "b10", "c", ""]


# Downloads


def test_csv_holds_the_table_and_the_figure_s_numbers(visit: Visit, tmp_path: Path) -> None:
    saved = visit.saved("#table-1 a", tmp_path)
    assert saved.name == "table-1-scores.csv"
    pd.testing.assert_frame_equal(
        pd.read_csv(saved, index_col="method", keep_default_na=False, na_values=[""]), SCORES.replace("", np.nan)
    )
    visit.page.get_by_role("tab", name="Training").click()
    pd.testing.assert_frame_equal(pd.read_csv(visit.saved("#figure-2 .links a", tmp_path)), LOG, check_dtype=False)


def test_png_is_the_figure_twice_as_large_on_white(browser: Chromium, report: Path, tmp_path: Path) -> None:
    pictures = {}
    for dark in (False, True):
        with browser.visit(report, dark=dark, anchor="#figure-2") as visit:
            drawn = visit.page.eval_on_selector("#figure-2 svg", "s => [s.width.baseVal.value, s.height.baseVal.value]")
            saved = visit.saved("#figure-2 button:text('PNG')", tmp_path)
            assert saved.name == "figure-2-loss.png"
            pictures[dark] = np.asarray(Image.open(saved).convert("RGBA")).astype(int)
            assert visit.complaints == []
    height, width = pictures[False].shape[:2]
    assert (width, height) == tuple(np.ceil(np.array(drawn) * 2))
    np.testing.assert_array_equal(
        pictures[False], pictures[True]
    )  # the page's colours are the reader's, not the figure's
    pixels = pictures[False].reshape(-1, 4)
    assert (pixels[:, 3] == 255).all()
    assert (pixels[:, :3] == 255).all(axis=1).mean() > 0.7
    for colour in (*plots.COLOURS[:2], "#1a1f24"):  # both lines, and ink
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels[:, :3] - wanted).max(axis=1) < 8).sum() > 100, colour


def test_png_holds_clouds_that_are_images_inside_the_drawing(browser: Chromium, report: Path, tmp_path: Path) -> None:
    with browser.visit(report, anchor="#figure-1") as visit:
        pixels = np.asarray(Image.open(visit.saved("#figure-1 button:text('PNG')", tmp_path)).convert("RGB")).astype(
            int
        )
    for colour in plots.COLOURS[:3]:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(pixels - wanted).max(axis=2) < 8).sum() > 2000, colour


def test_svg_stands_alone_and_draws_what_the_page_draws(browser: Chromium, report: Path, tmp_path: Path) -> None:
    with browser.visit(report, dark=True, anchor="#figure-2") as visit:
        saved = visit.saved("#figure-2 button:text('SVG')", tmp_path)
        text = saved.read_text(encoding="utf-8")
        root = minidom.parseString(text.encode()).documentElement
        assert root is not None
        assert root.tagName == "svg"
        assert "currentColor" not in text  # few programs but browsers know it
        for colour in (*plots.COLOURS[:2], "#1a1f24"):
            assert colour.lower() in text.lower()
        used = {node.getAttribute("xlink:href")[1:] for node in root.getElementsByTagName("use")}
        assert used <= {node.getAttribute("id") for node in root.getElementsByTagName("*")}
        assert {"step", "loss", "valid"} <= {t.firstChild.data for t in root.getElementsByTagName("text")}
        png = visit.saved("#figure-2 button:text('PNG')", tmp_path)
    with browser.visit(saved, scale=2) as alone:  # the file, opened: the picture that the page made of it
        size = root.getAttribute("viewBox").split()[2:]
        alone.page.set_viewport_size(
            {"width": int(float(size[0]) * 4 / 3) + 1, "height": int(float(size[1]) * 4 / 3) + 1}
        )
        seen = np.asarray(Image.open(io.BytesIO(alone.page.screenshot())).convert("L")).astype(int)
    drawn = np.asarray(Image.open(png).convert("L")).astype(int)
    rows, columns = (min(a, b) for a, b in zip(seen.shape, drawn.shape, strict=True))
    assert np.abs(seen[:rows, :columns] - drawn[:rows, :columns]).mean() < 3


# Phone, dark, paper, and those who do not see the page


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_tab_is_wider_than_a_phone(browser: Chromium, report: Path, dark: bool) -> None:
    with browser.visit(report, size=PHONE, dark=dark) as visit:
        page = visit.page
        for tab in page.get_by_role("tab").all():
            tab.tap()
            assert page.evaluate("document.documentElement.scrollWidth") == PHONE[0]
            box = tab.bounding_box()
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= PHONE[0]
            assert box["height"] >= 40  # a thumb's
        page.get_by_role("tab", name="Result").tap()
        wide = page.locator("#table-2 .scroll")
        assert wide.evaluate("box => box.scrollWidth > box.clientWidth")
        page.wait_for_function("document.querySelector('#table-2 .scroll').tabIndex === 0")  # scrolls by keyboard
        assert visit.complaints == []


def test_the_page_is_light_or_dark_as_the_reader_s_screen(browser: Chromium, report: Path) -> None:
    found = {}
    for dark in (False, True):
        with browser.visit(report, dark=dark, anchor="#figure-2") as visit:
            page = visit.page
            found[dark] = [
                page.evaluate("getComputedStyle(document.body).backgroundColor"),
                page.evaluate("getComputedStyle(document.querySelector('#figure-2 svg text')).fill"),
            ]
    assert found == {
        False: ["rgb(246, 247, 248)", "rgb(26, 31, 36)"],
        True: ["rgb(18, 22, 26)", "rgb(232, 235, 238)"],
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_tab_is_printed_in_dark_ink(browser: Chromium, report: Path, dark: bool) -> None:
    with browser.visit(report, dark=dark, media="print", size=(794, 1123)) as visit:
        page = visit.page
        assert shown(page) == [*TITLES, "Provenance"]
        assert not page.locator("nav").is_visible()
        assert page.locator(".links").count() > 0
        assert not any(links.is_visible() for links in page.locator(".links").all())
        assert page.evaluate("document.documentElement.scrollWidth") <= 794
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('svg text')).fill") == "rgb(0, 0, 0)"
        for box in page.locator(".scroll").all():  # no row, and no column, is left behind a scroll bar
            assert box.evaluate("b => b.scrollHeight <= b.clientHeight + 1 && b.scrollWidth <= b.clientWidth + 1")


def test_the_printed_sheets_hold_every_row(browser: Chromium, report: Path) -> None:
    pdfium = pytest.importorskip("pypdfium2", reason="pypdfium2 reads the printed sheets")
    with browser.visit(report) as visit:
        printed = visit.page.pdf(format="A4")
    with pdfium.PdfDocument(printed) as sheets:
        texts = ["".join(sheet.get_textpage().get_text_bounded().split()) for sheet in sheets]
    text = "".join(texts)
    assert all("".join(title.split()) in text for title in (*TITLES, "Provenance"))
    assert all(f"G{i:03d}N" in text for i in range(200))
    assert all("genep" in sheet for sheet in texts if "99N" in sheet)  # the heading stands on each sheet of the table
    assert "293031" in text  # the last numbers of the widest table


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_to_object_to(browser: Chromium, report: Path, dark: bool) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python: WCAG rules")
    with browser.visit(report, dark=dark) as visit:
        for _ in ("tabs", "all on one page"):
            found = axe.Axe().run(visit.page)
            assert found.violations_count == 0, found.generate_report()
            visit.page.get_by_role("button", name="Show all").click()


def test_names_for_screen_readers(visit: Visit) -> None:
    page = visit.page
    page.get_by_role("tab", name="Training").click()
    assert page.get_by_role("img", name="Loss").count() == 1
    names = [page.locator("#figure-2 .links > *").nth(i).aria_snapshot() for i in range(3)]
    assert names[:2] == ['- button "PNG of figure 2": PNG', '- button "SVG of figure 2": SVG']
    assert names[2].startswith('- link "data (CSV) of figure 2"')
    assert page.get_by_role("table", name="Scores").count() == 0  # in a tab that is not open
    page.get_by_role("tab", name="Result").click()
    assert page.get_by_role("table", name="Scores").count() == 1
