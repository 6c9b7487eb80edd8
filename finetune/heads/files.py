"""A head on disk: head.json, and weights as safetensors (linear) or skops (trees). Nothing is unpickled."""

import hashlib
import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import safetensors.numpy
import sklearn
from safetensors import SafetensorError
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.tree._tree import Tree

from expresser.atomic import replaced_folder
from expresser.errors import InputError
from expresser.foreign import file_in, read_json, shortened
from finetune.heads.archive import settled
from finetune.heads.fitting import Form, Head, Kind
from finetune.heads.linear import Linear
from finetune.heads.trees import Trees

FORMAT = 1
LINEAR, TREES = "head.safetensors", "head.skops"
_FEATURES = 1 << 20  # of a head of trees; pairs of vectors of 1,000 have 3,000
MOST = 1 << 30  # bytes of weights; the largest heads that tasks have fitted take some ten million

# What a file may hold beside what skops trusts by itself (numpy arrays, scikit-learn estimators and losses).
TRUSTED = ("sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor", "sklearn.tree._tree.Tree")
ESTIMATORS = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor", "GradientBoostingClassifier")


def save_head(head: Head, folder: Path) -> Path:
    """Write head.json and the weights; the folder is either whole or absent."""
    import skops.io

    with replaced_folder(folder) as part:
        if isinstance(head.estimator, Linear):
            name, of = LINEAR, "Linear"
            safetensors.numpy.save_file(
                {key: np.ascontiguousarray(value) for key, value in vars(head.estimator).items()}, part / name
            )
        else:
            name, of = TREES, type(head.estimator.models[0]).__name__
            (part / name).write_bytes(settled(skops.io.dumps(list(head.estimator.models))))
        about = {
            "format": FORMAT,
            "kind": head.kind,
            "preset": head.preset,
            "classes": list(head.classes),
            "features": head.features,
            "form": head.form,
            "estimator": of,
            "about": head.about,
            "versions": {"scikit-learn": sklearn.__version__, "numpy": np.__version__},
            "weights": name,
            "sha256": hashlib.sha256((part / name).read_bytes()).hexdigest(),
        }
        (part / "head.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder


def load_head(folder: Path) -> Head:
    """Read a head, checked: format, checksum, types, shapes."""
    about = _read_json(folder)
    name = LINEAR if about["estimator"] == "Linear" else TREES
    if not (folder / name).exists():
        raise InputError(f"{folder}: {name} is missing. Copy the whole folder of the head.")
    content = file_in(folder, name, most=MOST).read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != about["sha256"]:
        raise InputError(
            f"{folder / name}: altered or cut short (sha256 {found[:12]}…, head.json has {str(about['sha256'])[:12]}…). "
            "Copy the folder again."
        )
    estimator = _linear(content, folder / name) if name == LINEAR else _trees(content, folder / name, about)
    if isinstance(estimator, Linear):
        width, outputs = len(estimator.mean), len(estimator.intercept)
    else:
        width = int(estimator.models[0].n_features_in_)
        outputs = len(getattr(estimator.models[0], "classes_", ()))
    if width != about["features"]:
        raise InputError(f"{folder}: head.json says {about['features']} features, {name} has {width}. Copy it again.")
    classes = len(about["classes"])
    count_fits = {"regression": classes == 0, "binary": classes == 2, "multiclass": classes > 1}[about["kind"]]
    wanted = 1 if isinstance(estimator, Linear) and about["kind"] != "multiclass" else classes
    if not count_fits or outputs != wanted:
        raise InputError(
            f"{folder}: head.json names {classes} classes for a {about['kind']} head, {name} has {outputs} outputs. "
            "Copy the folder again."
        )
    return Head(
        about["kind"],
        about["preset"],
        tuple(about["classes"]),
        estimator,
        about["features"],
        about["form"],
        about["about"],
    )


def _read_json(folder: Path) -> dict[str, Any]:
    path = folder / "head.json"
    if not path.exists():
        raise InputError(f"{folder}: not the folder of a head, head.json is missing.")
    about = read_json(path)
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        met = about.get("format") if isinstance(about, dict) else None
        raise InputError(f"{path}: format {shortened(met)}; this version reads format {FORMAT}. Fit the head again.")
    wanted = {
        "kind": str,
        "preset": str,
        "classes": list,
        "features": int,
        "estimator": str,
        "sha256": str,
        "about": dict,
    }
    if broken := [key for key, of in wanted.items() if not isinstance(about.get(key), of)]:
        raise InputError(f"{path}: {broken[0]} is {shortened(about.get(broken[0]))}. Copy the folder again.")
    names = about["classes"]
    if not all(isinstance(name, str) and name.isprintable() for name in names) or len(set(names)) < len(names):
        raise InputError(
            f"{path}: classes are no names, each once and without control characters. Copy the folder again."
        )
    if about.get("form") not in (None, *get_args(Form)):
        raise InputError(f"{path}: form is {shortened(about['form'])}. Copy the folder again.")
    if about["kind"] not in get_args(Kind):
        raise InputError(f"{path}: kind is {shortened(about['kind'])}. Copy the folder again.")
    return about


def _linear(content: bytes, path: Path) -> Linear:
    try:
        arrays = safetensors.numpy.load(content)
    except (SafetensorError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: not the weights of a linear head ({error}). Copy the folder again.") from error
    if set(arrays) != {"coef", "intercept", "mean", "scale"}:
        raise InputError(
            f"{path}: not the weights of a linear head (it holds {shortened(sorted(arrays))}). Copy the folder again."
        )
    features, outputs = arrays["mean"].size, arrays["intercept"].size
    wanted = {"coef": (features, outputs), "intercept": (outputs,), "mean": (features,), "scale": (features,)}
    for name, shape in wanted.items():
        values = arrays[name]
        if values.shape != shape or values.dtype != np.float64:
            raise InputError(
                f"{path}: {name} is {values.dtype} of shape {values.shape}; a head's is float64 of {shape}."
            )
        if not np.isfinite(values).all():
            raise InputError(f"{path}: {name} holds numbers that are not finite. Fit the head again.")
    if not arrays["scale"].all():
        raise InputError(f"{path}: scale holds a zero, by which features cannot be divided. Fit the head again.")
    return Linear(**arrays)


def _trees(content: bytes, path: Path, about: dict[str, Any]) -> Trees:
    import skops.io

    versions = about.get("versions")
    made = str(versions.get("scikit-learn") if isinstance(versions, dict) else None)
    if made.split(".")[:2] != sklearn.__version__.split(".")[:2]:
        # Trees of another release may load and answer something else; scikit-learn promises nothing across releases.
        raise InputError(
            f"{path}: trees made with scikit-learn {shortened(made)[1:-1]}, this is {sklearn.__version__}. "
            f"Install that one, or fit the head again."
        )
    _prove_unpacked(content, path)
    try:
        strange = set(skops.io.get_untrusted_types(data=content)) - set(TRUSTED)
        if strange:
            raise InputError(f"{path}: holds {min(strange)}, which no head holds. Do not use a file of unknown origin.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InconsistentVersionWarning)
            models = skops.io.loads(content, trusted=list(TRUSTED))
        models = models if isinstance(models, list) and models else [models]
        for model in models:
            if (met := type(model).__name__) not in ESTIMATORS or met != about["estimator"]:
                raise InputError(f"{path}: holds a {met}, head.json says {shortened(about['estimator'])}.")
            _prove_walks(model)
        if len({(model.n_features_in_, len(getattr(model, "classes_", ()))) for model in models}) > 1:
            raise ValueError("models of different features or classes")
    except InputError:
        raise
    except Exception as error:  # skops, and a model that lacks a part, raise what the part they stumbled over raises
        raise InputError(
            f"{path}: not the trees of a head ({type(error).__name__}: {shortened(str(error), 300)}). Copy the folder again."
        ) from error
    return Trees(tuple(models))


def _prove_unpacked(content: bytes, path: Path) -> None:
    """A zip archive may hold a thousand times what it weighs: what its entries claim is what is read of them at most."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not the trees of a head ({error}).") from error
    if total > MOST:
        raise InputError(
            f"{path}: unpacked it takes {total:,} bytes; trees of a head take at most {MOST:,}. It is not read."
        )


def _prove_walks(model: Any) -> None:
    """ValueError unless every walk through the trees stays in them, and then an answer of zeros has its shape.

    The library follows child and feature numbers without looking: wrong ones would read, or write, foreign memory. What else a
    model of its kind may hold and use (other models that begin, or prepare) is none that a fit here makes.
    """
    features = model.n_features_in_
    if type(features) is not int or not 0 < features <= _FEATURES:
        raise ValueError(f"{features!r} features")
    if isinstance(model, GradientBoostingClassifier):
        trees = [one.tree_ for one in model.estimators_.flat]
        whole = all(type(one) is Tree and one.node_count == one.capacity for one in trees)  # before a node is read
        if not whole or {(one.n_outputs, one.max_n_classes) for one in trees} != {(1, 1)}:
            raise ValueError("trees of another size than their nodes")
        if type(model.init_) is not DummyClassifier:
            raise ValueError(f"it begins with a {type(model.init_).__name__}")
        # The mark of a leaf is -1 alone: with any other number a walk goes on.
        parts = [(one.children_left, one.children_right, one.feature, one.children_left == -1) for one in trees]
    else:
        nodes = [tree.nodes for step in model._predictors for tree in step]
        if model._preprocessor is not None:
            raise ValueError(f"features go through a {type(model._preprocessor).__name__}")
        if any(t["is_categorical"].any() for t in nodes):  # those have tables of their own; heads have none
            raise ValueError("a branch of categories")
        parts = [(t["left"], t["right"], t["feature_idx"], t["is_leaf"].astype(bool)) for t in nodes]
    for left, right, feature, leaf in parts:
        here = np.arange(len(left))[~leaf]
        children = np.concatenate([left[~leaf], right[~leaf]]).astype(np.int64)
        # A child stands after its parent, so a walk ends.
        inside = (children > np.tile(here, 2)).all() and (children < len(left)).all()
        known = (feature[~leaf] >= 0).all() and (feature[~leaf] < features).all()
        if not len(left) or not inside or not known:
            raise ValueError("a branch of a tree leads outside it")
    zeros = np.zeros((1, features), dtype=np.float32)
    if isinstance(model, GradientBoostingClassifier):
        begun = model._raw_predict_init(zeros)
        if model.estimators_.ndim != 2 or begun.shape != (1, model.estimators_.shape[1]):
            raise ValueError("another number of trees a step than of values")
    model.predict(zeros)
