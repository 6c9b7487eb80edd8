"""The card of a model: valid metadata, every name shown as it is, nothing that is not known."""

import json

import local_hub
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from expresser import checkpoint
from expresser.hub import push
from expresser.markdown import plain
from expresser.model_card import model_card

hub = local_hub.hub
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # the client's own

RUN = {
    "recipe": "small",
    "genes": 18_483,
    "cells": 1_239,
    "corpus_id": "ab" * 32,
    "sources": ["a.h5ad", "b.h5ad"],
    "manifest": [
        {"name": "a.h5ad", "cells": 1_234, "sha256": "cd" * 32},
        {"name": "b.h5ad", "cells": 5, "sha256": "ef" * 32},
    ],
    "valid": {"mse": 0.12, "mae": 0.25, "pearson": 0.81, "n": 12_345.0},
    "additive": {"mse": 0.15, "mae": 0.28, "pearson": 0.79, "n": 12_345.0},
    "best": {"step": 900, "mse": 0.11},
    "cells_per_s": 123.4,
    "step": 1_000,
    "cells_seen": 256_000,
    "seed": 7,
    "config": {"data": {"valid_share": 0.05, "valid_by": "donor"}, "objective": {"masked_share": 0.25}},
    "provenance": {
        "time_utc": "2026-01-02T03:04:05+00:00",
        "versions": {"expresser": "0.1.0", "torch": "2.13.0", "scvi-tools": None},
        "machine": {"platform": "Linux", "accelerator": None},
    },
}


def metadata(card: str) -> dict:
    """What is between the --- at the head, read without help."""
    return yaml.safe_load(card.split("---\n")[1])


def rows(card: str) -> list[list[str]]:
    """The cells of all tables, as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(card)
    found: list[list[str]] = []
    for place, token in enumerate(tokens):
        if token.type == "tr_open":
            found.append([])
        elif token.type in ("td_open", "th_open"):
            inside = tokens[place + 1].children or []
            assert {child.type for child in inside} <= {"text", "text_special"}
            found[-1].append("".join(child.content for child in inside))
    return found


def test_scores_stand_beside_the_baselines_and_in_the_metadata():
    card = model_card(RUN)
    table = rows(card)
    assert ["this model", "0.120", "0.250", "0.810"] in table
    assert ["gene + cell additive", "0.150", "0.280", "0.790"] in table
    assert "mean squared error is 20 % below that of the baseline" in card
    assert "whole groups of donor" in card
    assert "25 % of the genes" in card
    assert "(12,345 values)" in card
    found = ModelCard(card).data.eval_results
    assert {result.metric_type: result.metric_value for result in found} == {
        "mse": 0.12,
        "mae": 0.25,
        "pearsonr": 0.81,
    }
    assert {result.dataset_args["corpus_id"] for result in found} == {RUN["corpus_id"]}


def test_a_model_worse_than_the_baseline_is_called_so():
    card = model_card(RUN | {"valid": {"mse": 0.18, "mae": 0.3, "pearson": 0.7, "n": 10.0}})
    assert "**It does not beat the baseline**: its mean squared error is 20 % above." in card
    assert "below" not in card


def test_it_says_from_what_and_how():
    card = model_card(RUN, parameters=9_876_543)
    table = rows(card)
    assert ["a.h5ad", "1,234", "cd" * 6] in table
    assert ["b.h5ad", "5", "ef" * 6] in table
    for name, value in (
        ("parameters", "9,876,543"),
        ("steps", "1,000"),
        ("cells seen", "256,000"),
        ("seed", "7"),
        ("lowest validation MSE", "0.11, at step 900"),
        ("cells a second", "123.4"),
        ("machine", "Linux"),
    ):
        assert [name, value] in table
    assert f"`{RUN['corpus_id']}`" in card
    assert "Versions: expresser 0.1.0, torch 2.13.0." in card
    written = card.split("```json\n")[1].split("```")[0]
    assert json.loads(written) == RUN["config"]
    assert "@phdthesis{" in card


def test_the_licence_is_who_publishes_its_to_state():
    assert metadata(model_card(RUN))["license"] == "unknown"
    assert metadata(model_card(RUN, license="cc-by-4.0"))["license"] == "cc-by-4.0"
    assert "apache" not in model_card(RUN).split("---\n")[1]


@pytest.mark.parametrize("missing", [*RUN, None])
def test_what_is_not_known_is_not_in_it(missing):
    """None: nothing is known. A key: it is absent, or there and null."""
    for run in [{}] if missing is None else [{k: v for k, v in RUN.items() if k != missing}, RUN | {missing: None}]:
        card = model_card(run)
        assert "None" not in card
        assert "nan" not in card
        assert metadata(card)["library_name"] == "expresser"
        assert ModelCard(card).data.license == "unknown"
        for row in rows(card):
            assert row[0] or row[1:] in (["MSE", "MAE", "Pearson r"], [""])
            assert "" not in row[1:] or row == ["", ""]


def test_a_score_that_is_undefined_is_a_dash_and_no_metadata():
    card = model_card(RUN | {"valid": {"mse": 0.12, "mae": 0.25, "pearson": float("nan"), "n": 2.0}})
    assert ["this model", "0.120", "0.250", "—"] in rows(card)
    assert [result.metric_type for result in ModelCard(card).data.eval_results] == ["mse", "mae"]
    card = model_card(RUN | {"valid": {"mse": float("nan"), "mae": float("nan"), "pearson": float("nan"), "n": 0.0}})
    assert "Validation" not in card
    assert ModelCard(card).data.eval_results is None


def test_a_run_of_before_cells_were_recorded_lists_its_sources():
    card = model_card({k: v for k, v in RUN.items() if k != "manifest"})
    table = rows(card)
    assert ["source"] in table
    assert ["a.h5ad"] in table


def test_many_sources_are_counted():
    many = [{"name": f"s{i}", "cells": 1, "sha256": "00"} for i in range(1000)]
    card = model_card(RUN | {"manifest": many})
    assert "from 1,000 sources" in card
    assert "And 800 more" in card
    assert sum(row[0].startswith("s") and row[1:2] == ["1"] for row in rows(card)) == 200


_NASTY = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="|\\`*_[]()<>&#~$!-+ \n\r\t:{}\"'a1", max_size=40),
    st.sampled_from(
        ["a|b", "x\n# y", "<script>x</script>", "[a](b)", "---", "&lt;", "{{ 7 * 7 }}", "{% raw %}", "~~a~~"]
    ),
)


@given(name=_NASTY, recipe=_NASTY)
def test_a_name_is_shown_as_it_is_whatever_it_holds(name, recipe):
    shown = " ".join("".join(c if c.isprintable() else " " for c in name).split())
    source = {"name": name, "cells": 3, "sha256": "ab" * 32}
    card = model_card(RUN | {"manifest": [source], "recipe": recipe})
    assert [shown, "3", "ab" * 6] in rows(card)
    assert metadata(card)["library_name"] == "expresser"
    title = next(line for line in card.split("\n") if line.startswith("# "))
    assert title.startswith("# Expression Transformer")
    assert plain(recipe) in title


def test_a_saved_model_has_its_card(tiny_run):
    card = (tiny_run / "model" / "README.md").read_text(encoding="utf-8")
    run = json.loads((tiny_run / "model" / "run.json").read_text())
    found = {result.metric_type: result.metric_value for result in ModelCard(card).data.eval_results}
    assert found["mse"] == run["valid"]["mse"]
    parameters = sum(w.numel() for w in checkpoint.load(tiny_run).model.parameters())
    assert ["parameters", f"{parameters:,}"] in rows(card)
    assert "expresser embed THIS_FOLDER cells.h5ad" in card
    assert all(name in card for name in run["sources"])


def test_a_push_names_the_model_in_the_card_and_keeps_what_people_wrote(hub, tiny_run, tmp_path):
    folder = tmp_path / "model"
    checkpoint.save(folder, *(getattr(checkpoint.load(tiny_run), part) for part in ("model", "vocab", "run")))
    written = (folder / "README.md").read_text(encoding="utf-8") + "\n## Notes\nMind the batch. Gr\u00fc\u00dfe.\n"
    (folder / "README.md").write_text(written, encoding="utf-8")
    push(folder, "lab/tiny", revision="v1")
    there = hub.model("lab/tiny").files("v1")["README.md"].decode()
    assert there == written.replace("THIS_FOLDER", "lab/tiny@v1")
    assert (folder / "README.md").read_text(encoding="utf-8") == written
    push(folder, "lab/tiny", license="cc-by-4.0")
    there = hub.model("lab/tiny").files()["README.md"].decode()
    old, new = ModelCard(written), ModelCard(there)
    assert new.text == old.text.replace("THIS_FOLDER", "lab/tiny")
    assert new.data.to_dict() == old.data.to_dict() | {"license": "cc-by-4.0"}
    (folder / "README.md").unlink()
    push(folder, "lab/fresh")
    assert "expresser embed lab/fresh cells.h5ad" in hub.model("lab/fresh").files()["README.md"].decode()
