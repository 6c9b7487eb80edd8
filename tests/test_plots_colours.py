"""Data colours stand out from either page and from each other, for every common form of colour vision: in numbers."""

import re
from importlib import resources
from itertools import combinations

import numpy as np
import pytest
from colour_vision import EYES, contrast, difference, seen
from matplotlib.colors import to_hex

from expresser import plots

STYLE = resources.files("expresser").joinpath("report.css").read_text()
LIGHT, DARK, PAPER = (
    dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{[^}]*--page[^}]*\}", STYLE)
)
CARDS = [LIGHT["card"], DARK["card"]]


@pytest.mark.parametrize(  # Sharma, Wu and Dalal (2005), table 1
    ("one", "other", "expected"),
    [
        ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
        ((50, 2.5, 0), (50, 0, -2.5), 4.3065),
        ((50, 2.5, 0), (73, 25, -18), 27.1492),
        ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
        ((90.8027, -2.0831, 1.4410), (91.1528, -1.6435, 0.0447), 1.4441),
        ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
    ],
)
def test_the_difference_is_that_of_published_pairs(one: tuple, other: tuple, expected: float) -> None:
    assert difference(np.array(one), np.array(other)) == pytest.approx(expected, abs=1e-4)


def test_the_contrast_is_that_of_known_pairs() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize("eyes", EYES)
def test_data_colours_are_told_apart(eyes: str) -> None:
    shown = [seen(colour, eyes) for colour in plots.COLOURS]
    assert min(difference(a, b) for a, b in combinations(shown, 2)) > 11.5
    assert min(difference(a, seen(plots.GREY, eyes)) for a in shown) > 9.5


def test_marks_stand_out_from_light_and_dark_cards() -> None:
    assert min(contrast(colour, card) for colour in (*plots.COLOURS, plots.GREY) for card in CARDS) >= 3
    ends = [to_hex(plots.SEQUENTIAL(end)) for end in (0.0, 1.0)]
    assert (
        min(contrast(end, card) for end in ends for card in CARDS) > 1.5
    )  # of a scale from dark to light no more can be had
    steps = [seen(to_hex(plots.SEQUENTIAL(x)), "normal")[0] for x in np.linspace(0, 1, 20)]
    assert (np.diff(steps) > 1).all()  # a step up is a step lighter: it survives grey print


def test_numbers_on_a_heatmap_stand_out() -> None:
    for cmap in (plots.SEQUENTIAL, plots.mpl.colormaps[plots.DIVERGING]):
        for rgb in cmap(np.linspace(0, 1, 64))[:, :3]:
            text = "#000000" if plots._luminance(rgb) > 0.179 else "#ffffff"
            assert contrast(text, to_hex(rgb)) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK, PAPER], ids=["light", "dark", "paper"])
def test_text_stands_out_on_every_page(theme: dict[str, str]) -> None:
    pairs = [
        ("ink", "page"),
        ("ink", "card"),
        ("soft", "page"),
        ("soft", "card"),
        ("accent", "page"),
        ("accent", "card"),
    ]
    for text, ground in [*pairs, ("best-ink", "best")]:
        assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
