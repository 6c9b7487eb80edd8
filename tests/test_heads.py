"""Heads on gene vectors: what they learn, that they are the same each time, and that a file is checked before it is used."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import skops.io
from scipy import stats
from sklearn import metrics
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression

from expresser.errors import InputError
from finetune.heads.fitting import Head, fit_head, form_of
from finetune.heads.linear import Linear, fit_ridge, standard
from finetune.heads.pair_features import pair_features
from finetune.heads.scores import scores

KINDS = ("regression", "binary", "multiclass")
PRESETS = ("default", "linear", "boosting", "paper")


def task(kind: str, n: int = 160, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of unlike scale, of which the first two matter."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    value = x[:, 0] + 0.5 * x[:, 1] + 0.2 * rng.normal(size=n)
    x = (x * [1, 0.01, 100, 1, 1, 1] + [0, 0, 5, 0, 0, 3]).astype(np.float32)
    if kind == "regression":
        return x, value.astype(np.float64)
    if kind == "binary":
        return x, (value > 0).astype(np.int8)
    return x, np.array(["low", "middle", "top"], dtype=object)[np.digitize(value, [-0.5, 0.5])]


@pytest.fixture(scope="module")
def fitted() -> dict[tuple[str, str], Head]:
    return {
        (kind, preset): fit_head(*task(kind), kind=kind, preset=preset, seed=3) for kind in KINDS for preset in PRESETS
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_head_learns_answers_probabilities_and_is_the_seeds(fitted, kind, preset):
    head, (x, y) = fitted[kind, preset], task(kind, seed=1)
    answer = head.predict(x)
    again = fit_head(*task(kind), kind=kind, preset=preset, seed=3)
    np.testing.assert_array_equal(answer, again.predict(x))
    found = scores(kind, y, answer, head.classes)
    assert found["pearson" if kind == "regression" else "auroc"] > 0.85
    if kind == "multiclass":
        assert head.classes == ("low", "middle", "top")
        np.testing.assert_allclose(answer.sum(axis=1), 1)
    elif kind == "binary":
        assert head.classes == ("0", "1")
        assert answer.shape == (len(x),)
        assert 0 <= answer.min() < answer.max() <= 1
    np.testing.assert_array_equal(head.predict(x[:0]), answer[:0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_a_loaded_head_answers_bit_for_bit_what_the_saved_one_did(fitted, kind, preset, tmp_path):
    head, (x, _) = fitted[kind, preset], task(kind, seed=1)
    head.save(tmp_path / "head")
    loaded = Head.load(tmp_path / "head")
    np.testing.assert_array_equal(loaded.predict(x), head.predict(x))
    for name in ("kind", "preset", "classes", "features", "form", "about"):
        assert getattr(loaded, name) == getattr(head, name)
    assert not [path for path in (tmp_path / "head").iterdir() if path.suffix in (".pkl", ".joblib", ".pickle")]


def test_published_heads_are_scikit_learns_own():
    x, y = task("binary")
    plain = GradientBoostingClassifier(random_state=3).fit(x, y)
    head = fit_head(x, y, kind="binary", preset="paper", seed=3)
    np.testing.assert_array_equal(head.predict(x), plain.predict_proba(x)[:, 1])
    x, y = task("regression")
    line = LinearRegression().fit(x.astype(np.float64), y)
    head = fit_head(x, y, kind="regression", preset="paper")
    np.testing.assert_allclose(head.predict(x), line.predict(x.astype(np.float64)))


def test_linear_heads_do_not_depend_on_units():
    x, y = task("binary")
    turned = (x * [2, 4, 8, 0.5, 0.25, 1]).astype(np.float32)
    one, other = (fit_head(values, y, kind="binary", preset="linear") for values in (x, turned))
    np.testing.assert_allclose(one.predict(x), other.predict(turned), atol=1e-4)


def test_a_logistic_head_is_scikit_learns_on_standardised_features_with_the_penalty_it_names():
    x, y = task("binary")
    head = fit_head(x, y, kind="binary", preset="linear")
    mean, scale = standard(x)
    np.testing.assert_allclose(scale, x.std(axis=0, dtype=np.float64))
    plain = LogisticRegression(C=head.about["C"], tol=1e-10, max_iter=1000).fit((x - mean) / scale, y)
    np.testing.assert_allclose(head.predict(x), plain.predict_proba((x - mean) / scale)[:, 1], atol=2e-3)


def test_of_noise_a_penalty_leaves_the_mean():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(200, 60)).astype(np.float32)
    y = rng.normal(3.0, 1.0, 200)
    linear, about = fit_ridge(x, y, None)
    assert about["alpha"] > 1000
    assert np.ptp(linear.values(x)) < 0.3 * np.ptp(LinearRegression().fit(x, y).predict(x))
    probability = fit_head(x, (y > 3).astype(np.int8), kind="binary", preset="linear").predict(x)
    assert np.ptp(probability) < 0.25


def test_a_feature_that_does_not_vary_is_no_harm():
    x, y = task("binary")
    x[:, 5] = 0.1
    assert np.isfinite(fit_head(x, y, kind="binary", preset="linear").predict(x)).all()


def test_inner_splits_that_are_given_are_used_and_those_of_one_class_left_out():
    x, y = task("binary")
    half = np.arange(80), np.arange(80, 160)
    single = np.arange(80), 80 + np.flatnonzero(y[80:] == 1)
    both = fit_head(x, y, kind="binary", preset="linear", inner=[half, single])
    one = fit_head(x, y, kind="binary", preset="linear", inner=[half])
    assert both.about == one.about
    assert one.about["inner_splits"] == 1
    own = fit_head(x, y, kind="binary", preset="linear", inner=[single])  # none of use: stratified folds
    assert own.about["inner_splits"] == 3


@pytest.mark.parametrize("preset", ["default", "linear", "boosting"])
def test_swapping_the_genes_of_pairs_changes_nothing(preset):
    rng = np.random.default_rng(6)
    table = rng.normal(size=(40, 4)).astype(np.float32)
    a, b = rng.integers(0, 40, (2, 300))
    y = (table[a, 0] * table[b, 0] > 0).astype(np.int8)
    form = form_of(preset)
    one, other = pair_features(table, a, b, form=form), pair_features(table, b, a, form=form)
    np.testing.assert_array_equal(one, other)
    head = fit_head(one, y, kind="binary", preset=preset, form=form)
    np.testing.assert_array_equal(head.predict(one), head.predict(other))
    assert scores("binary", y, head.predict(one))["auroc"] > 0.95


def test_pair_features_are_what_they_say():
    table = np.array([[1, 2], [3, -4]], dtype=np.float32)
    a, b = np.array([0, 1]), np.array([1, 1])
    both = pair_features(table, a, b, form="concatenated")
    assert both.tolist() == [[1, 2, 3, -4], [3, -4, 3, -4]]
    same = pair_features(table, a, b, form="symmetric")
    assert same.tolist() == [[4, -2, 2, 6, 3, -8], [6, -8, 0, 0, 9, 16]]
    assert same.dtype == np.float32
    assert form_of("paper") == "concatenated"


def test_what_does_not_fit_is_refused():
    x, y = task("binary")
    head = fit_head(x, y, kind="binary", preset="linear")
    with pytest.raises(InputError, match="6 features, x has 4"):
        head.predict(x[:, :4])
    broken = x.copy()
    broken[3, 2] = np.nan
    with pytest.raises(InputError, match="not finite"):
        head.predict(broken)
    with pytest.raises(InputError, match="not finite"):
        fit_head(broken, y, kind="binary")
    with pytest.raises(InputError, match="both are needed"):
        fit_head(x, np.zeros(160, dtype=np.int8), kind="binary")
    with pytest.raises(InputError, match="160 items have 3 labels"):
        fit_head(x, y[:3], kind="binary")
    lone = np.array(["a"] * 159 + ["b"], dtype=object)
    with pytest.raises(InputError, match="1 item to train on"):
        fit_head(x, lone, kind="multiclass")


def saved(folder: Path, preset: str) -> Path:
    fit_head(*task("binary"), kind="binary", preset=preset).save(folder)
    return folder


def rewrite(folder: Path, **changes: object) -> None:
    path = folder / "head.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("preset", ["linear", "boosting"])
def test_an_altered_or_truncated_head_is_refused(tmp_path, preset):
    folder = saved(tmp_path / "head", preset)
    weights = next(path for path in folder.iterdir() if path.name != "head.json")
    content = weights.read_bytes()
    for wrong in (content[:-10], content[:-1] + bytes([content[-1] ^ 1])):
        weights.write_bytes(wrong)
        with pytest.raises(InputError, match="altered or cut short"):
            Head.load(folder)
    # Cut short by someone who knows of the checksum.
    weights.write_bytes(content[: len(content) // 2])
    rewrite(folder, sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
    with pytest.raises(InputError, match="not the"):
        Head.load(folder)
    weights.unlink()
    with pytest.raises(InputError, match="is missing"):
        Head.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format 2; this version reads format 1"),
        ({"features": 7}, "says 7 features"),
        ({"classes": "01"}, "classes is '01'"),
        ({"kind": "ranking"}, "kind is 'ranking'"),
        ({"classes": ["0", "1", "2"]}, "3 classes"),
    ],
)
def test_a_head_json_of_another_kind_is_refused(tmp_path, change, message):
    for preset in ("linear", "boosting"):
        folder = saved(tmp_path / preset, preset)
        rewrite(folder, **change)
        with pytest.raises(InputError, match=message):
            Head.load(folder)


def test_what_is_no_head_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"head\.json is missing"):
        Head.load(tmp_path)
    (tmp_path / "head.json").write_text("{")
    with pytest.raises(InputError, match="cut short"):
        Head.load(tmp_path)
    (tmp_path / "head.json").write_text("[]")
    with pytest.raises(InputError, match="format None"):
        Head.load(tmp_path)


class Stranger:
    """What no head holds."""


@pytest.mark.parametrize("strange", [Stranger(), RandomForestClassifier(n_estimators=2).fit([[0.0], [1.0]], [0, 1])])
def test_a_file_with_another_type_is_refused_before_it_is_built(tmp_path, strange):
    folder = saved(tmp_path / "head", "boosting")
    skops.io.dump(strange, folder / "head.skops")
    rewrite(folder, sha256=hashlib.sha256((folder / "head.skops").read_bytes()).hexdigest())
    with pytest.raises(InputError, match=r"which no head holds|holds a RandomForestClassifier"):
        Head.load(folder)


def test_trees_whose_branches_lead_nowhere_are_refused(tmp_path):
    folder = saved(tmp_path / "head", "boosting")
    models = list(Head.load(folder).estimator.models)
    models[0]._predictors[0][0].nodes["left"][0] = 10_000
    skops.io.dump(models, folder / "head.skops")
    rewrite(folder, sha256=hashlib.sha256((folder / "head.skops").read_bytes()).hexdigest())
    with pytest.raises(InputError, match="leads outside"):
        Head.load(folder)


def test_trees_of_another_scikit_learn_are_refused_and_linear_heads_are_not(tmp_path):
    trees, linear = saved(tmp_path / "trees", "boosting"), saved(tmp_path / "linear", "linear")
    for folder in (trees, linear):
        rewrite(folder, versions={"scikit-learn": "0.24.2", "numpy": "1.0"})
    with pytest.raises(InputError, match=r"made with scikit-learn 0\.24\.2"):
        Head.load(trees)
    assert isinstance(Head.load(linear).estimator, Linear)


def test_scores_are_scikit_learns_and_scipys():
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 2, 100)
    p = np.clip(truth * 0.3 + rng.random(100) * 0.7, 0, 1)
    found = scores("binary", truth, p)
    assert found == pytest.approx(
        {
            "auroc": metrics.roc_auc_score(truth, p),
            "auprc": metrics.average_precision_score(truth, p),
            "accuracy": metrics.accuracy_score(truth, p >= 0.5),
            "balanced_accuracy": metrics.balanced_accuracy_score(truth, p >= 0.5),
            "brier": metrics.brier_score_loss(truth, p),
            "share": truth.mean(),
        }
    )
    y, guess = rng.normal(size=(2, 50))
    assert scores("regression", y, guess) == pytest.approx(
        {
            "pearson": stats.pearsonr(y, guess).statistic,
            "spearman": stats.spearmanr(y, guess).statistic,
            "r2": metrics.r2_score(y, guess),
            "mae": metrics.mean_absolute_error(y, guess),
        }
    )
    names = ("a", "b", "c")
    number = rng.integers(0, 3, 80)
    share = rng.dirichlet(np.ones(3), 80)
    said = share.argmax(axis=1)
    assert scores("multiclass", np.array(names, dtype=object)[number], share, names) == pytest.approx(
        {
            "accuracy": metrics.accuracy_score(number, said),
            "balanced_accuracy": metrics.balanced_accuracy_score(number, said),
            "macro_f1": metrics.f1_score(number, said, average="macro"),
            "auroc": metrics.roc_auc_score(number, share, multi_class="ovr"),
        }
    )


def test_what_is_undefined_is_nan():
    p = np.array([0.2, 0.6, 0.7])
    one_class = scores("binary", np.zeros(3, dtype=int), p)
    assert {name for name, value in one_class.items() if np.isnan(value)} == {"auroc", "auprc", "balanced_accuracy"}
    flat = scores("regression", np.array([1.0, 2.0, 3.0]), np.full(3, 0.1))
    assert {name for name, value in flat.items() if np.isnan(value)} == {"pearson", "spearman"}
    assert np.isnan(scores("regression", np.full(3, 0.1), p)["r2"])
    for kind in KINDS:
        nothing = np.empty((0, 3) if kind == "multiclass" else 0)
        assert all(np.isnan(value) for value in scores(kind, np.empty(0), nothing, ("a", "b", "c")).values())
