"""The page holds exactly what it was given, escaped, in one file; the figures draw the numbers they were given."""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal
from unittest.mock import Mock
from xml.dom import minidom

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from expresser import plots, plots_curves, plots_numbers, report
from expresser.errors import InputError
from expresser.readable import counted, format_column
from expresser.report import (
    Figure,
    Section,
    Table,
    format_number,
    frame_from_metrics,
    provenance,
    write_metrics,
    write_report,
)

EVIL = "<script>alert(1)</script> \"><img src=x onerror=alert(2)> $x$ & 'q' \\"
ORIGIN = {"command": "expresser demo", "seed": 7, "versions": {"torch": "2.10"}}
VOID = {"meta", "br", "img", "link", "input", "hr"}
SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="100pt" height="50pt" viewBox="0 0 100 50">{}</svg>'


class Page(HTMLParser):
    """Every element of a page with its attributes and text; refuses elements that are left open or closed twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.raw, self.text = text, ""
        self.elements: list[dict[str, Any]] = []
        self.open: list[dict[str, Any]] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = {"tag": tag, "attrs": dict(attrs), "text": "", "inside": [e["tag"] for e in self.open]}
        assert len(element["attrs"]) == len(attrs), f"an attribute twice in {attrs}"
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append({"tag": tag, "attrs": dict(attrs), "text": "", "inside": [e["tag"] for e in self.open]})

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1]["tag"] == tag, f"</{tag}> closes {self.open[-1]['tag']}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        for element in self.open:
            element["text"] += data
        self.text += data

    def all(self, *tags: str) -> list[dict[str, Any]]:
        return [e for e in self.elements if e["tag"] in tags]

    def rows(self) -> list[list[dict[str, Any]]]:
        """The cells of each table row, headings first."""
        rows: list[list[dict[str, Any]]] = []
        for e in self.elements:
            if e["tag"] == "tr":
                rows.append([])
            elif e["tag"] in ("td", "th"):
                rows[-1].append(e)
        return rows


def page_of(path: Path, *items: Figure | Table, **changes: Any) -> Page:
    arguments = {"title": "T", "summary": [("cells", 3)], "provenance": ORIGIN} | changes
    arguments.setdefault("sections", [Section("S", "one\n\ntwo", tuple(items))])
    assert write_report(path, **arguments) == path
    return Page(path.read_text(encoding="utf-8"))


def lines() -> str:
    frame = pd.DataFrame({"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]})
    return plots.svg(lambda ax: plots.curve_axes(ax, frame, "step", "loss", references={"baseline": 1.5}))


def decoded(uri: str | None) -> bytes:
    assert uri is not None
    assert uri.startswith("data:")
    return base64.b64decode(uri.split(";base64,")[1], validate=True)


# The page


def test_page_parses_and_asks_nothing_of_the_network(tmp_path: Path) -> None:
    page = page_of(tmp_path / "r.html", Figure("f", lines(), "c"), Table("t", pd.DataFrame({"a": [1.5]})))
    once = ["html", "head", "title", "body", "header", "h1", "main", "footer"]
    assert [e["tag"] for e in page.all(*once)] == once
    for element in page.elements:
        for name, value in element["attrs"].items():
            if name.startswith("xmlns"):
                continue
            assert not re.search("https?://", value or "")
            if name.split(":")[-1] in ("href", "src", "action", "srcset", "poster", "data"):
                assert (value or "").startswith(("#", "data:"))
    without_namespaces = re.sub(r' xmlns(:\w+)?="[^"]*"', "", page.raw)
    assert "http://" not in without_namespaces
    assert "https://" not in without_namespaces
    assert not re.search(r"@import|url\((?!#)", page.raw)
    assert not page.all("link", "iframe", "object", "embed", "base", "form")


def test_policy_lets_only_the_page_s_own_script_run(tmp_path: Path) -> None:
    page = page_of(tmp_path / "r.html")
    (script,) = page.all("script")
    digest = base64.b64encode(hashlib.sha256(script["text"].encode()).digest()).decode()
    policy = next(e["attrs"]["content"] for e in page.all("meta") if "http-equiv" in e["attrs"])
    assert policy.startswith("default-src 'none';")
    assert f"script-src 'sha256-{digest}';" in policy


def test_all_text_is_escaped(tmp_path: Path) -> None:
    frame = pd.DataFrame({EVIL: [EVIL], "n": [1.0]}, index=pd.Index([EVIL], name=EVIL))
    drawing = plots.svg(
        lambda ax: plots.curve_axes(
            ax, frame.reset_index(drop=True), "n", ["n"], references={EVIL: 1.0}, xlabel=EVIL, ylabel=EVIL
        )
    )
    page = page_of(
        tmp_path / "r.html",
        title=EVIL,
        summary=[(EVIL, EVIL)],
        sections=[
            Section(EVIL, EVIL, (Figure(EVIL, drawing, EVIL, frame), Table(EVIL, frame, EVIL, {EVIL: "max"}))),
            Section("other"),
        ],
        provenance={EVIL: EVIL, "group": {EVIL: [EVIL]}},
    )
    assert len(page.all("script")) == 1
    assert not page.all("img")
    assert not [e for e in page.elements for name in e["attrs"] if name.startswith("on")]
    for tag in ("title", "h1", "h2", "dt", "dd", "p", "figcaption", "th", "td", "a"):
        assert any(EVIL in e["text"] for e in page.all(tag)), f"{tag} lost its text"
    axis = [e["text"] for e in page.all("text")]
    assert axis.count(EVIL) == 2  # both labels, as text: no markup, no TeX
    assert page.all("svg")[0]["attrs"]["aria-label"] == EVIL


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    same = Figure("same", lines())
    page = page_of(tmp_path / "r.html", sections=[Section("a", "", (same, same)), Section("b", "", (same,))])
    ids = Counter(e["attrs"]["id"] for e in page.elements if "id" in e["attrs"])
    assert ids
    assert set(ids.values()) == {1}
    used = re.findall(r'(?:href="|url\()#([^")]+)', page.raw)
    used += [i for e in page.elements for i in (e["attrs"].get("aria-labelledby") or "").split()]
    assert any(name.startswith("figure-3-") for name in used)
    assert set(used) <= set(ids)


def test_links_give_back_the_data(tmp_path: Path) -> None:
    frame = pd.DataFrame({"gene": ['A,"B"', "ü\nx"], "value": [0.123456789, np.nan]}, index=pd.Index([3, 4], name="k"))
    figure = Figure("Loss über time", lines(), data=frame)
    page = page_of(tmp_path / "r.html", figure, Table("t", frame), Table("u", frame.reset_index(drop=True)))
    saved = {e["attrs"]["download"]: decoded(e["attrs"]["href"]) for e in page.all("a") if "download" in e["attrs"]}
    assert list(saved) == [
        "figure-1-loss-ber-time.csv",
        "table-1-t.csv",
        "table-2-u.csv",
        "provenance.json",
    ]
    for name in ("figure-1-loss-ber-time.csv", "table-1-t.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(saved[name]), index_col="k"), frame, rtol=1e-5)
    assert saved["table-2-u.csv"].startswith(b"gene,value\n")
    assert json.loads(saved["provenance.json"]) == ORIGIN


@pytest.mark.parametrize(("sections", "tabs"), [(1, None), (2, False), (3, True)])
def test_only_long_pages_have_tabs_and_the_bar_names_every_section(
    tmp_path: Path, sections: int, tabs: bool | None
) -> None:
    page = page_of(tmp_path / "r.html", sections=[Section(f"part {i}") for i in range(sections)])
    bar = page.all("nav")
    assert [("data-tabs" in nav["attrs"]) for nav in bar] == ([] if tabs is None else [tabs])
    links = [(e["text"], e["attrs"]["href"]) for e in page.all("a") if "nav" in e["inside"]]
    titles = [(e["text"], f"#{e['attrs']['id'].removesuffix('-title')}") for e in page.all("h2")]
    assert links == (titles if bar else [])
    assert not [e for e in page.elements if "hidden" in e["attrs"]]  # without scripts all is there to read


def test_large_data_is_compressed_then_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = pd.DataFrame({"a": [1.0] * 5000})
    whole = frame.to_csv(index=False, float_format="%.6g").encode()
    monkeypatch.setattr(report, "_EMBED_LIMIT", len(whole) - 1)
    link = page_of(tmp_path / "r.html", Table("t", frame)).all("a")[0]["attrs"]
    assert link["download"] == "table-1-t.csv.gz"
    assert gzip.decompress(decoded(link["href"])) == whole
    monkeypatch.setattr(report, "_EMBED_LIMIT", 10)
    page = page_of(tmp_path / "r.html", Table("t", frame))
    assert [e["attrs"]["download"] for e in page.all("a")] == ["provenance.json"]
    assert "data too large to embed" in page.text


def test_equal_arguments_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        page_of(tmp_path / name, Figure("f", lines()), Table("t", pd.DataFrame({"a": [2.0]}), "", {"a": "min"}))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "deep" / "r.html"
    page_of(path)
    old = path.read_bytes()
    with pytest.raises(InputError, match=r"column 'mea'.*its columns are mae"):
        page_of(path, Table("t", pd.DataFrame({"mae": [1.0]}), "", {"mea": "min"}))
    assert path.read_bytes() == old

    def no_room(_self: Path, _target: Path) -> Path:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", no_room)
        with pytest.raises(OSError, match="disk full"):
            page_of(path, title="new")
    assert path.read_bytes() == old
    assert [p.name for p in path.parent.iterdir()] == ["r.html"]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("<script>1</script>", "<script>"),
        ("<foreignObject/>", "<foreignObject>"),
        ('<x:script xmlns:x="http://www.w3.org/2000/svg">1</x:script>', "<x:script>"),
        ('<path onload="1"/>', "onload"),
        ('<a href="#x"/>', "<a>"),
        ('<image href="http://example.org/x.png"/>', "example.org"),
        ('<use xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="other.svg#a"/>', "other.svg"),
        ('<path style="fill: url( &quot;http://example.org/x&quot;)"/>', "example.org"),
        (r'<path style="fill: u\72l(//example.org)"/>', "example.org"),
        ("<style>@import 'x.css';</style>", "x.css"),
        ("<path>", "not well-formed"),
    ],
)
def test_figures_that_run_or_fetch_are_refused(tmp_path: Path, content: str, why: str) -> None:
    with pytest.raises(InputError, match=re.escape(why)):
        page_of(tmp_path / "r.html", Figure("f", SVG.format(content)))
    assert not list(tmp_path.iterdir())


def test_markup_hidden_from_xml_stays_text_in_html(tmp_path: Path) -> None:
    content = "<desc><![CDATA[<img src=x onerror=alert(1)>]]><!-- <img src=y> --></desc><?pi <img src=z>?>"
    page = page_of(tmp_path / "r.html", Figure("f", SVG.format(content)))
    assert not page.all("img")
    assert page.all("desc")[0]["text"] == "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize("text", ["", "<p>no</p>", "plain"])
def test_only_svg_is_a_figure(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="figure 'f'"):
        page_of(tmp_path / "r.html", Figure("f", text))


# Tables


def test_table_keeps_all_rows_in_order(tmp_path: Path) -> None:
    frame = pd.DataFrame({"name": [f"cell {i}" for i in range(300)], "n": np.arange(300) * 1000})
    head, *rows = page_of(tmp_path / "r.html", Table("t", frame)).rows()
    assert [c["text"] for c in head] == ["name", "n"]
    assert [r[0]["text"] for r in rows] == frame["name"].tolist()
    assert [float(r[1]["attrs"]["data-key"]) for r in rows] == frame["n"].tolist()
    assert rows[299][1]["text"] == "299,000"


def test_index_levels_come_first_as_row_headings(tmp_path: Path) -> None:
    index = pd.MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["method", "seed"])
    frame = pd.DataFrame(
        [[1.0, 2.0]] * 2, index=index, columns=pd.MultiIndex.from_tuples([("rna", "r"), ("atac", "r")])
    )
    head, *rows = page_of(tmp_path / "r.html", Table("t", frame, "", {"rna · r": "max"})).rows()
    assert [c["text"].split("\u00a0↑")[0] for c in head] == ["method", "seed", "rna · r", "atac · r"]
    assert [[c["tag"] for c in row] for row in rows] == [["th", "th", "td", "td"]] * 2


Values = st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6), st.floats(0, 1), st.just(float("nan"))), max_size=8)


@given(values=Values, best=st.sampled_from(["min", "max"]))
@settings(max_examples=60, deadline=None)
def test_best_cells_show_the_best_number(
    tmp_path_factory: pytest.TempPathFactory, values: list[float | None], best: Literal["min", "max"]
) -> None:
    path = tmp_path_factory.mktemp("best") / "r.html"
    rows = page_of(path, Table("t", pd.DataFrame({"v": pd.Series(values, dtype=float)}), "", {"v": best})).rows()[1:]
    marked = [i for i, row in enumerate(rows) if "best" in row[0]["attrs"].get("class", "").split()]
    numbers = np.array(values, dtype=float)
    texts = [row[0]["text"].removesuffix(" (best)") for row in rows]
    if np.isnan(numbers).all():
        assert marked == []
    else:
        winner = int(np.nanargmin(numbers) if best == "min" else np.nanargmax(numbers))
        # Equal as printed is equal: no reader could tell why only one of them is marked.
        assert marked == [i for i, text in enumerate(texts) if text == texts[winner]]
        assert not np.isnan(numbers[marked]).any()
    assert [text == "—" for text in texts] == np.isnan(numbers).tolist()


def test_what_is_known_to_be_true_is_never_the_best(tmp_path: Path) -> None:
    frame = pd.DataFrame({"r": [0.9, 0.5, 0.5, 0.1]}, index=["oracle", "a", "b", "c"])
    table = Table("t", frame, "", {"r": "max"}, frozenset({"oracle"}))
    rows = page_of(tmp_path / "r.html", table).rows()[1:]
    assert ["best" in row[1]["attrs"].get("class", "") for row in rows] == [False, True, True, False]


def test_best_in_known_table(tmp_path: Path) -> None:
    frame = frame_from_metrics(
        {"a": {"mae": 0.3, "r": None}, "b": {"mae": 0.2, "r": 0.5}, "c": {"mae": None, "r": 0.9}}
    )
    rows = page_of(tmp_path / "r.html", Table("t", frame, "", {"mae": "min", "r": "max"})).rows()[1:]
    cells = [(c["text"], "best" in c["attrs"].get("class", "")) for row in rows for c in row[1:]]
    assert cells == [
        ("0.300", False),
        ("—", False),
        ("0.200 (best)", True),
        ("0.500", False),
        ("—", False),
        ("0.900 (best)", True),
    ]


# Numbers and records


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (float("nan"), "—"),
        (0, "0"),
        (0.0, "0"),
        (1204331, "1,204,331"),
        (np.uint16(65535), "65,535"),
        (0.31724, "0.317"),
        (0.53, "0.53"),
        (1.0793, "1.079"),
        (12.345, "12.35"),
        (12345.6, "12,346"),
        (-0.5, "−0.5"),
        (np.float32(0.25), "0.25"),
        (0.000012, "1.20e−5"),
        (3.2e12, "3.20e12"),
        (float("inf"), "∞"),
    ],
)
def test_format_number(value: Any, text: str) -> None:
    assert format_number(value) == text


def test_one_thing_is_in_the_singular() -> None:
    assert [counted(n, "shards") for n in (0, 1, 2000)] == ["0 shards", "1 shard", "2,000 shards"]


def test_format_column_shares_decimals_where_all_stay_readable() -> None:
    assert format_column([1.079, 0.53, None]) == ["1.079", "0.530", "—"]
    assert format_column([41.2, 0.02]) == ["41.2", "0.02"]
    assert format_column([3.0, float("nan"), 12000.0]) == ["3", "—", "12,000"]


def test_metrics_json_is_canonical(tmp_path: Path) -> None:
    metrics = {
        "methods": {"b": {"mae": np.float32(0.5), "r": float("nan")}, "a": {"mae": float("inf"), "r": None}},
        "n": np.int64(3),
        "ok": np.bool_(True),
        "curve": np.array([1.0, np.nan]),
        "seeds": (1, 2),
        "path": Path("x") / "y",
    }
    text = write_metrics(tmp_path / "m.json", metrics).read_text(encoding="utf-8")

    def no_constant(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    assert json.loads(text, parse_constant=no_constant) == {
        "methods": {"b": {"mae": 0.5, "r": None}, "a": {"mae": None, "r": None}},
        "n": 3,
        "ok": True,
        "curve": [1.0, None],
        "seeds": [1, 2],
        "path": "x/y",
    }
    reordered = dict(reversed(metrics.items()))
    assert write_metrics(tmp_path / "n.json", reordered).read_text(encoding="utf-8") == text


def test_metrics_json_names_what_it_cannot_hold_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = write_metrics(tmp_path / "m.json", {"a": 1})
    for bad, where in (({"a": {"b": [0, object()]}}, r"a\.b\[1\] is a object"), ({"a": {1: 2}}, "a has the key 1")):
        with pytest.raises(InputError, match=where):
            write_metrics(path, bad)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_frame_from_metrics_keeps_order_and_absence() -> None:
    frame = frame_from_metrics(
        {"z": {"mae": 0.5, "n": 3}, "a": {"r": np.float32(0.25), "mae": None, "n": 4}, "e": {"n": 5}}
    )
    assert frame.index.tolist() == ["z", "a", "e"]
    assert frame.index.name == "method"
    assert frame.columns.tolist() == ["mae", "n", "r"]
    assert frame["n"].tolist() == [3, 4, 5]
    assert frame["n"].dtype == np.int64
    np.testing.assert_array_equal(frame[["mae", "r"]], [[0.5, np.nan], [np.nan, 0.25], [np.nan, np.nan]])
    assert frame_from_metrics({}).shape == (0, 0)


def test_provenance_says_what_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/expresser", "demo", "--out", "my runs"])
    found = provenance(seed=5, corpus={"sha256": "ab"})
    assert found["command"] == "expresser demo --out 'my runs'"
    assert found["seed"] == 5
    assert found["corpus"] == {"sha256": "ab"}
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) >= {"expresser", "python", "torch", "transformers", "anndata", "scikit-learn"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", found["time_utc"])
    assert found["machine"]["cpus"] >= 1
    assert found["machine"]["torch_threads"] >= 1
    json.dumps(found, allow_nan=False)


# Figures


def drawn(draw: Callable[[Any], Any]) -> Any:
    """The Axes that `draw` has drawn on; that it returns them is part of every drawing's contract."""
    result: list[Any] = []
    fig = plots.figure(lambda ax: result.append(draw(ax)))
    assert result[0] is fig.axes[0]
    plots.to_svg(fig)
    return result[0]


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as production runs it, where no import hook has looked at shapes before it does."""
    return getattr(function, "__wrapped__", function)


def test_svg_is_one_standalone_deterministic_element() -> None:
    text = lines()
    assert text == lines()
    assert text.startswith("<svg ")
    assert [node.nodeName for node in minidom.parseString(text.encode()).childNodes] == ["svg"]
    assert not re.search(r"<metadata|<style|<!--|matplotlib\.org|20\d\d-\d\d-\d\d", text)
    assert "currentColor" in text
    assert plots._INK not in text


def test_no_global_state_is_touched() -> None:
    before = dict(mpl.rcParams)
    lines()
    assert dict(mpl.rcParams) == before
    code = "import sys, expresser.plots as p; p.svg(lambda ax: ax); assert 'matplotlib.pyplot' not in sys.modules"
    root = str(Path(plots.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, env=os.environ | {"MPLBACKEND": "tkagg"})


def test_curve_draws_each_series_where_it_has_values() -> None:
    frame = pd.DataFrame({"step": [0, 1, 2, 3], "train": [4.0, 3, 2, 1], "_valid$": [4.5, np.nan, np.nan, 1.5]})
    refs = {"gene mean": 2.0, "additive": 1.95}
    ax = drawn(lambda ax: plots.curve_axes(ax, frame, "step", ["train", "_valid$"], references=refs))
    series = [line.get_xydata().tolist() for line in ax.lines]
    assert series[0] == [[0, 4], [1, 3], [2, 2], [3, 1]]
    assert series[1] == [[0, 4.5], [3, 1.5]]
    assert [set(line.get_ydata()) for line in ax.lines[2:]] == [{2.0}, {1.95}]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["train", "_valid$"]
    heights = {t.get_text(): t.get_position()[1] for t in ax.texts}
    assert heights["gene mean"] - heights["additive"] >= 0.06  # names of close lines do not overlap
    with pytest.raises(InputError, match="no column 'lr'; it has step, train"):
        drawn(lambda ax: plots.curve_axes(ax, frame, "step", "lr"))


@pytest.mark.parametrize("width", [3.4, 4.6, 7.0])
@pytest.mark.parametrize("name", ["m", "a method", "a method with a name of many words, and then a few more"])
def test_a_legend_above_stays_inside_its_figure(width: float, name: str) -> None:
    curves = {f"{name} {i}": np.array([[0.0, 0.5, 1.0], [0.0, 0.8, 1.0]]) for i in range(7 if len(name) < 10 else 3)}
    fig = plots.figure(lambda ax: plots_curves.roc_axes(ax, curves), (width, 5.0))
    fig.draw_without_rendering()
    box = fig.axes[0].get_legend().get_window_extent()
    assert box.x1 <= fig.bbox.x1
    assert fig.axes[0].get_window_extent().height > 0.4 * fig.bbox.height


def test_log_axes_show_plain_numbers() -> None:
    frame = pd.DataFrame({"tokens": [1e3, 1e6, 2e9], "loss": [1.0, 0.5, 0.3]})
    text = plots.svg(lambda ax: plots.curve_axes(ax, frame, "tokens", "loss", logx=True, logy=True))
    shown = re.findall(r"<text [^>]*>([^<]*)</text>", text)
    assert {"1k", "1M", "0.5", "1"} <= set(shown)
    assert not [label for label in shown if "$" in label or "math" in label]


def test_density_scatter_counts_every_finite_pair() -> None:
    rng = np.random.default_rng(0)
    truth = rng.gamma(2.0, 1.0, 2000)
    prediction = truth + rng.normal(0, 0.1, 2000)
    prediction[:3] = [np.nan, np.inf, -np.inf]
    ax = drawn(lambda ax: plots.density_scatter_axes(ax, truth, prediction, note="r = 0.9"))
    assert ax.collections[0].get_array().sum() == 1997
    assert ax.get_xlim() == ax.get_ylim()
    np.testing.assert_allclose(*ax.lines[0].get_data())
    assert ax.texts[0].get_text() == "r = 0.9"
    with pytest.raises(InputError, match="2,000 values against 5"):
        unchecked(plots.density_scatter_axes)(Mock(), truth, prediction[:5])


def test_bars_have_the_lengths_of_their_values() -> None:
    values = pd.Series({"ours": 0.75, "mean": 0.5, "absent": np.nan}, name="auroc")
    low, high = values - 0.05, pd.Series({"ours": 0.85, "mean": np.nan})
    ax = drawn(lambda ax: plots.bar_axes(ax, values, low=low, high=high, highlight="ours", base=0.5))
    assert [(p.get_x(), p.get_x() + p.get_width()) for p in ax.patches] == [(0.5, 0.75), (0.5, 0.5), (0.5, 0.5)]
    np.testing.assert_allclose(ax.collections[0].get_segments(), [[[0.7, 0], [0.85, 0]]])
    assert [t.get_text() for t in ax.texts] == ["0.750", "0.500", "—"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["ours", "mean", "absent"]
    assert ax.yaxis_inverted()
    with pytest.raises(InputError, match="two ends"):
        drawn(lambda ax: plots.bar_axes(ax, values, low=low))


def test_scatter_draws_each_cell_once_and_names_each_category() -> None:
    xy = np.random.default_rng(1).normal(size=(60, 2)).astype(np.float32)
    by = pd.Series(np.resize(["10", "2", "_hidden", None], 60))
    ax = drawn(lambda ax: plots.scatter_axes(ax, xy, by, label="cluster"))
    cells = np.concatenate([c.get_offsets() for c in ax.collections])
    np.testing.assert_allclose(np.sort(cells, axis=0), np.sort(xy, axis=0))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["2", "10", "_hidden", "missing"]
    np.testing.assert_allclose(np.sort(ax.collections[0].get_offsets(), 0), np.sort(xy[by.isna()], 0))
    ordered = pd.Series(pd.Categorical(np.resize(["a", "b"], 60), categories=["b", "unused", "a"]))
    ax = drawn(lambda ax: plots.scatter_axes(ax, xy, ordered))
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["b", "a"]


def test_scatter_with_too_many_categories_pools_the_rarest() -> None:
    sizes = np.arange(1, 41)  # forty categories; the four rarest have 1..4 cells
    by = np.repeat([f"c{i}" for i in range(40)], sizes)
    xy = np.zeros((by.size, 2))
    ax = drawn(lambda ax: plots.scatter_axes(ax, xy, by))
    names = [t.get_text() for t in ax.get_legend().get_texts()]
    assert names == [f"c{i}" for i in range(4, 40)] + ["4 others"]
    assert len(ax.collections[0].get_offsets()) == 1 + 2 + 3 + 4
    looks = {(h.get_color(), h.get_marker()) for h in ax.get_legend().legend_handles}
    assert len(looks) == 37


def test_scatter_by_number_has_a_colour_bar() -> None:
    xy, by = np.zeros((5, 2)), np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    ax = drawn(lambda ax: plots.scatter_axes(ax, xy, by, label="depth"))
    assert sorted(ax.collections[1].get_array()) == [1, 2, 4, 5]
    assert [a.get_ylabel() for a in ax.figure.axes[1:]] == ["depth"]
    assert ax.get_legend() is None
    ax = drawn(lambda ax: plots.scatter_axes(ax, xy, np.arange(5), categorical=True))
    assert len(ax.get_legend().get_texts()) == 5
    with pytest.raises(InputError, match="5 cells have 4 values"):
        drawn(lambda ax: plots.scatter_axes(ax, xy, by[:4]))


def test_ten_thousand_points_stay_small() -> None:
    rng = np.random.default_rng(0)
    xy, by = rng.normal(size=(10_000, 2)), rng.choice([f"type {i}" for i in range(20)], 10_000)
    for values in (by, rng.normal(size=10_000)):
        fig = plots.figure(partial(plots.scatter_axes, xy=xy, by=values))
        assert len(plots.to_svg(fig)) < 400_000


def test_histograms_share_bins_and_lose_nothing() -> None:
    rng = np.random.default_rng(0)
    groups = {"a": rng.lognormal(3, 1, 500), "b": rng.lognormal(4, 1, 200)}
    ax = drawn(lambda ax: plots.hist_axes(ax, groups, logx=True, xlabel="counts"))
    heights = [p.get_data() for p in ax.patches[1::2]]
    assert [h.values.sum() for h in heights] == [500, 200]
    np.testing.assert_array_equal(heights[0].edges, heights[1].edges)
    ax = drawn(lambda ax: plots.hist_axes(ax, groups, density=True))
    areas = [(p.get_data().values * np.diff(p.get_data().edges)).sum() for p in ax.patches]
    np.testing.assert_allclose(areas, 1.0)
    with pytest.raises(InputError, match="1 of 3 are not"):
        drawn(lambda ax: plots.hist_axes(ax, {"a": np.array([0, 1, 2])}, logx=True))


def test_the_numbers_behind_a_drawing_are_what_it_draws() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = rng.gamma(2.0, 1.0, 500), np.append(rng.gamma(2.0, 1.0, 499), np.nan)
    cloud = drawn(lambda ax: plots.density_scatter_axes(ax, truth, prediction)).collections[0]
    found = plots_numbers.hexagons(truth, prediction, xlabel="hidden")
    assert found.columns.tolist() == ["hidden", "predicted", "entries"]
    np.testing.assert_array_equal(found["entries"], cloud.get_array())
    assert found["entries"].sum() == 499
    np.testing.assert_allclose(found[["hidden", "predicted"]], cloud.get_offsets())
    assert len(plots_numbers.hexagons(np.empty(0), np.empty(0))) == 0

    groups = {"a": truth, "b": prediction}
    bars = [p.get_data() for p in drawn(lambda ax: plots.hist_axes(ax, groups, bins=7)).patches[1::2]]
    found = plots_numbers.histogram(groups, bins=7)
    assert found.columns.tolist() == ["from", "to", "a", "b"]
    np.testing.assert_array_equal(found[["a", "b"]], np.stack([bar.values for bar in bars], axis=1))
    np.testing.assert_array_equal([*found["from"], found["to"].iloc[-1]], bars[0].edges)


def test_heatmap_shows_the_matrix_from_the_top() -> None:
    frame = pd.DataFrame([[1.0, -0.5], [np.nan, 0.25]], index=["r1", "r2"], columns=["c1", "c2"])
    ax = drawn(lambda ax: plots.heatmap_axes(ax, frame, center=0, label="r"))
    mesh = ax.collections[0]
    np.testing.assert_array_equal(np.ma.filled(mesh.get_array().reshape(2, 2), np.nan), frame)
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-1, 1)
    assert [t.get_text() for t in ax.texts] == ["1.0", "−0.5", "0.2"]
    assert ax.yaxis_inverted()
    near = pd.DataFrame([[0.351, 0.349]])  # their difference is what the map shows, and the numbers too
    assert [t.get_text() for t in drawn(lambda ax: plots.heatmap_axes(ax, near)).texts] == ["0.3510", "0.3490"]


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.curve_axes(ax, pd.DataFrame({"x": [], "y": []}), "x", "y", references={"b": 1.0}),
        lambda ax: plots.density_scatter_axes(ax, np.empty(0), np.empty(0)),
        lambda ax: plots.density_scatter_axes(ax, np.ones(3), np.ones(3)),
        lambda ax: plots.bar_axes(ax, pd.Series(dtype=float)),
        lambda ax: plots.scatter_axes(ax, np.empty((0, 2)), np.array([], dtype=object)),
        lambda ax: plots.scatter_axes(ax, np.empty((0, 2)), np.empty(0)),
        lambda ax: plots.scatter_axes(ax, np.zeros((2, 2)), [None, None]),
        lambda ax: plots.hist_axes(ax, {"a": np.empty(0), "b": np.array([2.0])}, logx=True, density=True),
        lambda ax: plots.hist_axes(ax, {}),
        lambda ax: plots.heatmap_axes(ax, pd.DataFrame([[np.nan]])),
        lambda ax: plots.heatmap_axes(ax, pd.DataFrame(np.zeros((2, 2))), center=0.0),
        lambda ax: plots.heatmap_axes(ax, pd.DataFrame(np.ones((50, 60)))),
    ],
)
def test_little_or_no_data_still_draws(draw: Callable[[Any], Any]) -> None:
    drawn(draw)


def test_names_outside_the_font_and_outside_xml_still_draw() -> None:
    frame = pd.DataFrame({"x": [0.0, 1.0], "y": [0.0, 1.0]})
    text = plots.svg(lambda ax: plots.curve_axes(ax, frame, "x", "y", xlabel="T细胞 🧬", ylabel="bad\x00byte"))
    assert "T细胞 🧬" in text
    assert "bad\ufffdbyte" in text


def test_short_words_stay_on_one_line_and_hidden_ones_inside_their_table(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"note": ["not beaten", ""], "remark": ["a long remark that is to be wrapped", ""], "x": [1, 2]}
    )
    page = write_report(
        tmp_path / "p.html", title="t", summary=[], sections=[Section("s", "", (Table("t", frame),))], provenance={}
    ).read_text()
    assert '<td data-key="not beaten" class="brief">' in page
    assert '<td data-key="a long remark that is to be wrapped">' in page
    assert re.search(r"\.scroll \{[^}]*position: relative", page)
