"""Pictures of a report to look at: on a desktop, on a phone, in the dark, and its printed sheets.

    python scripts/shots.py run/report.html --out shots
    python scripts/shots.py run/report.html --out shots --tabs        # each tab on its own

Needs Chromium and Playwright; the printed sheets as pictures need pypdfium2 (else only the PDF is written).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import DESKTOP, PHONE, chromium

WAYS = {"desktop": (DESKTOP, False), "phone": (PHONE, False), "dark": (DESKTOP, True), "phone_dark": (PHONE, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("shots"))
    parser.add_argument("--tabs", action="store_true", help="a picture a tab, not only of the first")
    parser.add_argument("--ways", nargs="*", default=[*WAYS, "print"], choices=[*WAYS, "print"])
    parser.add_argument("--scale", type=float, default=1, help="pixels of the picture per CSS pixel")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with chromium() as browser:
        for way in given.ways:
            size, dark = WAYS.get(way, (DESKTOP, False))
            with browser.visit(given.page, size=size, dark=dark, scale=given.scale) as visit:
                for complaint in [*visit.complaints, *visit.strangers()]:
                    print(f"{way}: {complaint}", file=sys.stderr)
                if way == "print":
                    _sheets(
                        visit.page.pdf(path=given.out / "print.pdf", format="A4", prefer_css_page_size=True), given.out
                    )
                    continue
                tabs = visit.page.get_by_role("tab").all() if given.tabs else []
                for number, tab in enumerate(tabs or [None], 1):
                    if tab is not None:
                        tab.click()
                    name = f"{way}-{number}.png" if tabs else f"{way}.png"
                    visit.page.screenshot(path=given.out / name, full_page=True)
                    print(given.out / name)


def _sheets(pdf: bytes, out: Path) -> None:
    """A picture of each printed sheet."""
    print(out / "print.pdf")
    try:
        import pypdfium2
    except ImportError:
        return
    with pypdfium2.PdfDocument(pdf) as document:
        for number, sheet in enumerate(document, 1):
            sheet.render(scale=1.2).to_pil().save(out / f"print-{number}.png")
            print(out / f"print-{number}.png")


if __name__ == "__main__":
    main()
