"""Laws about what is set and what runs leave: recipes, weights of sources, shares, and the files that reports are made of."""

import json
import math
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import strategies as some
from fuzzing import refusal, target
from hypothesis import strategies as st

from expresser.comparison.checks import judged_by
from expresser.comparison.groups import grouped
from expresser.comparison.reading import read_runs
from expresser.comparison.tables import comparisons
from expresser.corpus.dealing import parse_shares
from expresser.corpus.manifest import corpus_id, read_manifest
from expresser.corpus.mixing import weigh
from expresser.run_files import page_provenance, read_log, read_mapping
from pretrain.config import Recipe
from pretrain.recipes import RECIPES
from translate.fitting import configuration
from translate.registry import SYSTEMS

_whole = st.one_of(st.integers(-2, 12), st.integers(), st.sampled_from([0, 1, 2**31, 10**9, -1]))
_real = st.one_of(
    st.floats(-1, 2), st.floats(), st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf, -math.inf, 1e-300, 1e300])
)
_KINDS = {
    "int": _whole,
    "float": _real,
    "int | None": st.one_of(st.none(), _whole),
    "float | None": st.one_of(st.none(), _real),
}


def _fields(part: Any) -> dict[str, str]:
    return {name: str(kind) for name, kind in type(part).__annotations__.items()}


def _numbers() -> list[tuple[str | None, str, Any]]:
    """(part, field, what it may be told) of every number of a recipe."""
    recipe = Recipe()
    found = []
    for part in (None, "model", "objective", "optim", "data"):
        for name, kind in _fields(recipe if part is None else getattr(recipe, part)).items():
            bare = kind.removeprefix("<class '").removesuffix("'>")
            if bare in _KINDS:
                found.append((part, name, _KINDS[bare]))
    return found


NUMBERS = _numbers()
# What no run can have, whatever else it is set to.
_POSITIVE = {
    "lr",
    "target_sum",
    "epochs",
    "d_model",
    "n_heads",
    "n_bins",
    "global_batch",
    "max_tokens",
    "max_steps",
    "minutes",
}


@st.composite
def recipes(draw: Any) -> tuple[Recipe, dict[str, Any]]:
    recipe = RECIPES[draw(st.sampled_from(sorted(RECIPES)))]()
    told: dict[str, Any] = {}
    for part, name, kind in draw(
        st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=2, unique_by=lambda item: item[1])
    ):
        told[name] = draw(kind)
        if part is None:
            recipe = replace(recipe, **{name: told[name]})
        else:
            recipe = replace(recipe, **{part: replace(getattr(recipe, part), **{name: told[name]})})
    return recipe, told


@target("recipes", drawn=recipes())
def recipe_numbers(folder: Path, drawn: tuple[Recipe, dict[str, Any]]) -> bool:
    """Nonsense is refused before a run begins, and the message says which option it was."""
    recipe, told = drawn
    with refusal() as refused:
        recipe.check()
    if refused:
        assert any(name in str(refused[0]) for name in told) or "gene_tokens" in str(refused[0])
        return False
    for name, value in told.items():
        assert value is None or not isinstance(value, float) or not math.isnan(value), (name, value)
        assert value is None or value >= 0, (name, value)
        assert name not in _POSITIVE or value is None or value > 0, (name, value)
    assert 0 < recipe.objective.masked_share < 1
    assert 0 < recipe.data.valid_share < 1
    assert recipe.model.d_model % recipe.model.n_heads == 0
    return True


def _config_numbers() -> list[tuple[str, tuple[str, ...], Any]]:
    """(system, path of the field, what it may be told) of every number of every system."""
    found = []
    for system, kind in sorted(SYSTEMS.items()):
        config = kind.config_class()
        for each in fields(config):
            part = getattr(config, each.name)
            inner = [(each.name, f.name) for f in fields(part)] if is_dataclass(part) else [(each.name,)]
            for path in inner:
                value = getattr(part, path[-1]) if len(path) == 2 else part
                if isinstance(value, int | float) and not isinstance(value, bool):
                    found.append((system, path, _whole if isinstance(value, int) else _real))
    return found


_numbers_of_systems = st.sampled_from(_config_numbers()).flatmap(
    lambda item: st.tuples(*map(st.just, item[:2]), item[2])
)


@target("configurations of systems", drawn=_numbers_of_systems)
def system_numbers(folder: Path, drawn: tuple[str, tuple[str, ...], Any]) -> bool:
    """What no fit can have is refused, and the message says which option it was."""
    system, path, value = drawn
    config = SYSTEMS[system].config_class()
    with refusal() as refused:
        part = value if len(path) == 1 else replace(getattr(config, path[0]), **{path[1]: value})
        configuration(system, None, replace(config, **{path[0]: part}))
    if refused:
        assert path[-1].replace("_", "-") in str(refused[0]).replace("_", "-") or path[0] == "bridge"
        return False
    assert 0 <= value < math.inf
    return True


_GROUPS = {"atlas": 100, "study": 5, "a,b": 3, "x=1": 2}
_weight = st.one_of(st.integers(1, 9).map(str), some.numbers)
_whole_rule = st.permutations(list(_GROUPS)).flatmap(
    lambda of: st.tuples(*(st.tuples(st.just(name), _weight) for name in of)).map(list)
)
_weights = st.one_of(
    _whole_rule, st.lists(st.tuples(st.one_of(st.sampled_from([*_GROUPS, "*"]), some.names), _weight), max_size=5)
)


@target("weights of sources", parts=_weights, rule=st.one_of(st.none(), some.names, st.sampled_from(["equal", "sqrt"])))
def weights_of_sources(folder: Path, parts: list[tuple[str, str]], rule: str | None) -> bool:
    text = ",".join(f"{name}={weight}" for name, weight in parts) if rule is None else rule
    with refusal() as refused:
        found = weigh(text, _GROUPS, where="source")
        assert len(found) == len(_GROUPS)
        assert all(0 < weight < math.inf for weight in found)
    return not refused


_share = st.one_of(st.sampled_from(["train=0.8", "test=0.2", "valid=0.1", "train=0.9", "a=0.5", "b=0.5"]), some.names)
_sound = st.integers(1, 99).map(lambda part: [f"train={part / 100}", f"test={1 - part / 100:.2f}"])


_any_words = st.lists(st.one_of(_share, st.builds("{}={}".format, some.plain_names, some.numbers)), max_size=4)


@target("shares", words=st.one_of(_sound, _any_words))
def shares(folder: Path, words: list[str]) -> bool:
    with refusal() as refused:
        found = parse_shares(words)
        assert len(found) >= 2
        assert abs(sum(found.values()) - 1) <= 2e-3
        assert all(name.isidentifier() and 0 < share < 1 for name, share in found.items())
    return not refused


_text = st.one_of(
    some.json_values.map(json.dumps),
    st.dictionaries(some.names, some.json_values, max_size=3).map(json.dumps),
    st.text(max_size=30),
    st.sampled_from(
        ["", "{}", "[]", "1" * 5000, "[" * 100_000, '{"a":' * 100_000, '{"a": NaN}', "\ufeff{}", '{"a": 1, "a": 2}']
    ),
)


@target("JSON of a run", text=_text, log=st.lists(_text, max_size=4))
def json_of_a_run(folder: Path, text: str, log: list[str]) -> bool:
    run, lines, page = folder / "run.json", folder / "log.jsonl", folder / "report.html"
    run.write_text(text, encoding="utf-8")
    lines.write_text("\n".join(log) + "\n", encoding="utf-8")
    page.write_text(f'<a href="data:application/json;base64,{text}"></a>', encoding="utf-8")
    assert isinstance(page_provenance(page), dict)
    with refusal(run) as refused:
        found = read_mapping(run)
        assert found == json.loads(text) or "NaN" in text
    with refusal(lines):
        read_log(lines)
    return not refused


_VALUES = {"pearson_flat": 0.5, "pearson_gene": 0.4, "n_genes": 12}
_ATAC = {"auroc_flat": 0.8, "auroc_peak": 0.7, "auprnorm_peak": 2.0, "n_peaks": 30}
_PROVENANCE = {
    "command": "expresser translate fit babel",
    "seed": 0,
    "time_utc": "2026-01-01T00:00:00+00:00",
    "versions": {"torch": "2"},
}
RUNS: dict[str, dict[str, Any]] = {
    "translator": {
        "run.json": {
            "system": "babel",
            "study": "x",
            "config": {"lr": 0.1, "net": {"width": 4}},
            "seed": 1,
            "split": "random, seed 0",
            "origin": {"read": {"rna": ["r.h5ad"], "atac": ["a.h5ad"]}, "sha256": {"r.h5ad": "aa", "a.h5ad": "bb"}},
            "features": {"rna": 12, "atac": 30},
            "cells": {"train": 70, "test": 15},
            "provenance": _PROVENANCE,
        },
        "metrics.json": {
            "system": "babel",
            "directions": ["rna_to_atac", "atac_to_rna"],
            "cells": {"test": 15},
            "split": "random",
            "methods": {
                "babel": {"rna_to_atac": _ATAC, "atac_to_rna": _VALUES, "foscttm": 0.1},
                "mean": {"rna_to_atac": _ATAC, "atac_to_rna": _VALUES},
            },
            "alignment": {"methods": {"babel": {"rna": {"foscttm": 0.1}}}},
        },
        "log.jsonl": [{"phase": "rna", "epoch": 0, "seconds": 1.0, "train": {"loss": 1.0}, "valid": {"loss": 1.1}}],
    },
    "imputation": {
        "metrics.json": {
            "protocol": "dropout",
            "n_cells": 40,
            "n_genes": 12,
            "n_entries": 99,
            "seeds": 3,
            "drop": 0.1,
            "methods": {
                "expresser": {"mae": 0.1, "rmse": 0.2, "pearson": 0.5},
                "gene_mean": {"mae": 0.2, "rmse": 0.3, "pearson": 0.1},
            },
        },
    },
    "gene task": {
        "metrics.json": {
            "task": "lof",
            "target": "lof_z",
            "kind": "regression",
            "split": "random",
            "n_genes": 50,
            "n_pairs": None,
            "seed": 0,
            "tables": {"mine": {"kind": "checkpoint", "sha256": "aa"}, "random": {"kind": "built-in"}},
            "embeddings": {
                "mine": {"pearson": 0.4, "spearman": 0.3, "r2": 0.1},
                "random": {"pearson": 0.0, "spearman": 0.1, "r2": 0},
            },
        },
    },
    "annotation": {
        "metrics.json": {
            "task": "annotation",
            "label": "cell_type",
            "n_cells": 40,
            "n_types": 3,
            "seed": 0,
            "split": "donor",
            "embeddings": {"expresser": {"kind": "model", "accuracy": 0.9, "f1_macro": 0.8}, "pca": {"accuracy": 0.8}},
        },
    },
}


@st.composite
def changed_runs(draw: Any) -> dict[str, Any]:
    kind = draw(st.sampled_from(sorted(RUNS)))
    files = dict(RUNS[kind])
    name = draw(st.sampled_from(sorted(files)))
    return files | {name: draw(some.changed_json(files[name]))}


@target("runs for a report", changed=changed_runs())
def runs_for_a_report(folder: Path, changed: dict[str, Any]) -> bool:
    """Beside a sound run, a damaged one is read or left out with the reason; it never stops the report of the others."""
    for name, files in (("sound", RUNS["translator"]), ("changed", changed)):
        for file, content in files.items():
            (folder / name).mkdir(exist_ok=True)
            rows = content if isinstance(content, list) and file.endswith("l") else [content]
            (folder / name / file).write_text("\n".join(json.dumps(row) for row in rows) + "\n", encoding="utf-8")
    found, left = read_runs([folder / "sound", folder / "changed"])
    assert len(found) + len(left) == 2
    assert str(folder / "sound") not in left
    for group in grouped(found):
        comparisons(group, judged_by(group))
    return len(found) == 2


def _sound_manifest() -> dict[str, Any]:
    file = {"file": "a", "bytes": 1, "sha256": "f"}
    found: dict[str, Any] = {"format": "expresser-corpus", "format_version": 1, "cells": 1, "nnz": 1, "content": "x"}
    found |= {
        "build": {"layer": None, "obs_columns": []},
        "dtypes": {"genes": "uint16", "counts": "uint16", "cell_id": "uint32", "source": "uint16", "total": "uint32"},
        "versions": {"expresser": "0"},
    }
    found |= {"genes": {**file, "n": 1, "vocab_sha256": "v"}, "obs": {**file, "file": "b", "columns": ["t"]}}
    found |= {
        "shards": [{**file, "file": "c", "rows": 1, "nnz": 1}],
        "sources": [{"name": "s", "sha256": "f", "cells": 1, "nnz": 1}],
    }
    return found | {"corpus_id": corpus_id(found)}


@target(
    "manifest of a corpus",
    text=_text,
    change=some.changed_json(_sound_manifest()),
    how=st.sampled_from(["text", "changed", "new id"]),
)
def manifest(folder: Path, text: str, change: Any, how: str) -> bool:
    """What was altered does not pass; what somebody altered with its id is a mapping of the parts that are asked for."""
    if how == "new id":
        try:
            change = change | {"corpus_id": corpus_id(change)}
        except (TypeError, KeyError, AttributeError, ValueError):
            return False
    (folder / "manifest.json").write_text(text if how == "text" else json.dumps(change), encoding="utf-8")
    with refusal(folder) as refused:
        read_manifest(folder)
    return not refused
