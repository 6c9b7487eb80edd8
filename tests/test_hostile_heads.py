"""Heads and classifiers from a stranger: numbers that are proven, trees whose types are on a list, nothing that is unpickled."""

import hashlib
import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hostile import JSON_FILES, TENSOR_FILES, Trap, bounded, edit, refused, set_to
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.preprocessing import StandardScaler

from finetune.annotation.head import LinearHead
from finetune.annotation.head import fit_head as fit_classifier
from finetune.heads.fitting import Head, fit_head

X = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A linear head, one of trees, and a classifier of cells."""
    folder = tmp_path_factory.mktemp("hostile")
    for preset in ("linear", "boosting"):
        fit_head(X, (X[:, 0] > 0).astype(int), kind="binary", preset=preset).save(folder / preset)
    (folder / "classifier").mkdir()
    fit_classifier(X, np.array(["a", "b", "c"] * 20, dtype=object), c=1.0).save(
        folder / "classifier", {"split": "donor"}
    )
    return folder


@pytest.fixture
def heads(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "heads"))


def agree(folder: Path) -> None:
    """The checksum of head.json made that of the weights, as a stranger who knows of it would."""
    weights = next(path for path in folder.iterdir() if path.name in ("head.safetensors", "head.skops"))
    if weights.is_file() and not weights.is_symlink():
        edit(folder / "head.json", set_to("sha256", hashlib.sha256(weights.read_bytes()).hexdigest()))


def test_what_was_saved_loads_within_the_bounds_that_refusals_keep(whole: Path) -> None:
    with bounded():
        Head.load(whole / "linear").predict(X)
        Head.load(whole / "boosting").predict(X)
        LinearHead.load(whole / "classifier")


@pytest.mark.parametrize("case", TENSOR_FILES)
def test_tensors_that_lie_about_themselves_are_refused(heads: Path, case: str) -> None:
    damage, _ = TENSOR_FILES[case]
    for name, load in (("linear", Head.load), ("classifier", LinearHead.load)):
        damage(heads / name / "head.safetensors")
        agree(heads / name)
        refused(lambda: load(heads / name), r"head\.safetensors")  # noqa: B023 (called at once)
        assert not (heads / name / "trace").exists()


@pytest.mark.parametrize("name", ["linear", "boosting", "classifier"])
@pytest.mark.parametrize("case", JSON_FILES)
def test_records_that_are_no_plain_json_are_refused(heads: Path, name: str, case: str) -> None:
    damage, words = JSON_FILES[case]
    damage(heads / name / "head.json")
    refused(lambda: (LinearHead if name == "classifier" else Head).load(heads / name), words)


ARRAYS: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
    ("coef", lambda x: x[:-1]),
    ("coef", lambda x: x.astype(np.float32)),
    ("coef", lambda x: np.full_like(x, np.nan)),
    ("mean", lambda x: x[None]),
    ("mean", lambda x: np.float64(1.0)),
    ("scale", lambda x: np.zeros_like(x)),
    ("scale", lambda x: np.full_like(x, np.inf)),
    ("intercept", lambda x: np.concatenate([x, x])),
]


@pytest.mark.parametrize(("array", "change"), ARRAYS)
def test_arrays_that_no_fit_can_have_made_are_refused(
    heads: Path, array: str, change: Callable[[np.ndarray], np.ndarray]
) -> None:
    for name, load in (("linear", Head.load), ("classifier", LinearHead.load)):
        path = heads / name / "head.safetensors"
        found = {key: value.copy() for key, value in safetensors.numpy.load_file(path).items()}
        found[array] = np.ascontiguousarray(change(found[array]))
        safetensors.numpy.save_file(found, path)
        agree(heads / name)
        refused(lambda: load(heads / name), r"head\.safetensors")  # noqa: B023 (called at once)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("classes", value) for value in ([1, 2], ["a", "a"], ["a", "\x1b[2J"], [["a"], "b"], "ab", {}, [])),
        ("features", 10**9),
        ("features", "4"),
        ("kind", ["binary"]),
        ("form", "os.system"),
        ("sha256", 5),
        ("format", [1]),
    ],
)
def test_a_head_json_of_other_kinds_is_refused(heads: Path, key: str, value: object) -> None:
    edit(heads / "linear" / "head.json", set_to(key, value))
    refused(lambda: Head.load(heads / "linear"), "head")
    if key == "classes":
        edit(heads / "classifier" / "head.json", set_to(key, value))
        refused(lambda: LinearHead.load(heads / "classifier"), "classes")


def test_trees_that_are_a_pickle_or_hold_one_are_refused_unopened(heads: Path, tmp_path: Path) -> None:
    path, trap = heads / "boosting" / "head.skops", pickle.dumps(Trap(tmp_path / "trace"))
    whole = path.read_bytes()
    array = io.BytesIO()
    np.save(array, np.array([Trap(tmp_path / "trace")], dtype=object), allow_pickle=True)
    contents = [trap]
    for held in (trap, array.getvalue()):  # in place of the arrays in the archive
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(whole)) as old, zipfile.ZipFile(made, "w") as new:
            for entry in old.namelist():
                new.writestr(entry, held if entry.endswith(".npy") else old.read(entry))
        contents.append(made.getvalue())
    for content in contents:
        path.write_bytes(content)
        agree(heads / "boosting")
        refused(lambda: Head.load(heads / "boosting"), "not the trees of a head")
    assert not (tmp_path / "trace").exists()


def test_trees_that_unpack_to_gigabytes_are_refused(heads: Path) -> None:
    path = heads / "boosting" / "head.skops"
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("more.npy", "w", force_zip64=True) as file,
    ):
        for _ in range(72):
            file.write(b"\0" * (16 << 20))
    agree(heads / "boosting")
    refused(lambda: Head.load(heads / "boosting"), "unpacked it takes 1,2")


@pytest.mark.parametrize("name", ["linear", "boosting", "classifier"])
def test_a_link_out_of_the_folder_is_refused(heads: Path, tmp_path: Path, name: str) -> None:
    for path in sorted((heads / name).iterdir()):
        held = path.read_bytes()
        path.rename(tmp_path / f"secret-{path.name}")
        path.symlink_to(tmp_path / f"secret-{path.name}")
        refused(lambda: (LinearHead if name == "classifier" else Head).load(heads / name), "outside of its folder")
        path.unlink()
        path.write_bytes(held)


def _walking(model: GradientBoostingClassifier, left: int, right: int) -> GradientBoostingClassifier:
    for one in model.estimators_.flat:
        state = one.tree_.__getstate__()
        state["nodes"] = state["nodes"].copy()
        state["nodes"][0]["left_child"], state["nodes"][0]["right_child"] = left, right
        one.tree_.__setstate__(state)
    return model


def _begun_by_another(model: Any) -> None:
    model.init_ = _walking(GradientBoostingClassifier(n_estimators=1).fit(X, X[:, 0] > 0), 10**9, 10**9)


def _hidden_by_other_trees(model: Any) -> None:
    _walking(model, 10**9, 10**9)._predictors = []


def _two_trees_a_step(model: Any) -> None:
    model.estimators_ = np.repeat(model.estimators_, 2, axis=1)


def _features_taken_away(model: Any) -> None:
    model._preprocessor = StandardScaler().fit(X)


def _no_trees(model: Any) -> None:
    del model.estimators_


@pytest.mark.parametrize(
    ("preset", "damage"),
    [
        # -2 is no mark of a leaf to the library, and was taken for one here.
        ("paper", lambda model: _walking(model, -2, 2)),
        ("paper", _hidden_by_other_trees),
        ("paper", _begun_by_another),
        ("paper", _two_trees_a_step),
        ("paper", _no_trees),
        ("boosting", _features_taken_away),
    ],
)
def test_trees_that_would_lead_into_foreign_memory_are_refused(
    tmp_path: Path, preset: Any, damage: Callable[[Any], object]
) -> None:
    head = fit_head(X, (X[:, 0] > 0).astype(int), kind="binary", preset=preset)
    Head.load(head.save(tmp_path / "sound")).predict(X)
    damage(head.estimator.models[0])  # type: ignore[union-attr]
    head.save(tmp_path / "head")
    refused(lambda: Head.load(tmp_path / "head"), r"head\.skops: not the trees of a head")
