"""Scores that add, and the module AUC: known answers and laws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

from expresser.errors import InputError
from expresser.metrics.expression import ExpressionScores
from expresser.metrics.modules import module_auc


def entries(n: int, genes: int, cells: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.gamma(2.0, 1.0, n)
    return {
        "truth": truth,
        "prediction": truth + rng.normal(0, 0.5, n),
        "gene": rng.integers(0, genes, n),
        "cell": rng.integers(0, cells, n),
    }


def part(values: dict[str, np.ndarray], where: np.ndarray) -> dict[str, np.ndarray]:
    return {name: v[where] for name, v in values.items()}


def test_scores_of_four_entries_by_hand():
    scores = ExpressionScores(2, 2, min_obs=2)
    scores.update(
        truth=np.array([1.0, 2.0, 3.0, 4.0]),
        prediction=np.array([1.0, 3.0, 3.0, 2.0]),
        gene=np.array([0, 0, 1, 1]),
        cell=np.array([0, 1, 0, 1]),
    )
    found = scores.compute()
    assert found["mae"] == pytest.approx(3 / 4)
    assert found["rmse"] == pytest.approx(np.sqrt(5 / 4))
    assert found["pearson"] == pytest.approx(1.5 / np.sqrt(5 * 2.75))
    # Gene 0 rises with the truth (r = 1), gene 1 falls (r = -1); cell 0 rises, cell 1 falls.
    np.testing.assert_allclose(scores.per_gene(), [1.0, -1.0])
    np.testing.assert_allclose(scores.per_cell(), [1.0, -1.0])
    assert found["pearson_gene"] == pytest.approx(0.0)
    assert found["mae_gene"] == pytest.approx((0.5 + 1.0) / 2)
    assert (found["n"], found["genes"], found["cells"]) == (4, 2, 2)


def test_scores_agree_with_scipy_gene_by_gene():
    values = entries(3000, 20, 15)
    scores = ExpressionScores(20, 15)
    scores.update(**values)
    for gene in range(20):
        at = values["gene"] == gene
        assert scores.per_gene()[gene] == pytest.approx(
            stats.pearsonr(values["truth"][at], values["prediction"][at]).statistic, abs=1e-10
        )
    found = scores.compute()
    assert found["pearson"] == pytest.approx(stats.pearsonr(values["truth"], values["prediction"]).statistic, abs=1e-12)
    assert found["pearson_cell"] == pytest.approx(
        np.mean(
            [stats.pearsonr(*(values[k][values["cell"] == c] for k in ("truth", "prediction")))[0] for c in range(15)]
        )
    )


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 400), max_size=6), st.integers(0, 5))
def test_any_batching_and_merging_gives_the_scores_of_one_go(cuts, seed):
    values = entries(400, 7, 9, seed)
    whole = ExpressionScores(7, 9)
    whole.update(**values)
    merged = ExpressionScores(7, 9)
    for where in np.split(np.random.default_rng(seed).permutation(400), sorted(cuts)):
        process = ExpressionScores(7, 9)
        process.update(**part(values, where))
        merged.merge(process)
    np.testing.assert_allclose(
        list(merged.compute().values()), list(whole.compute().values()), rtol=1e-12, atol=0, equal_nan=True
    )


def test_a_constant_prediction_has_no_correlation_and_is_counted():
    values = entries(1000, 10, 8)
    # One number a gene, as the gene mean predicts: rounding must not turn it into a correlation.
    values["prediction"] = (np.arange(10) * np.pi / 7)[values["gene"]]
    scores = ExpressionScores(10, 8)
    scores.update(**values)
    found = scores.compute()
    assert np.isnan(found["pearson_gene"])
    assert found["genes_undefined"] == 10
    assert found["cells_undefined"] == 0
    assert np.isfinite(found["pearson_cell"])


def test_genes_with_few_entries_are_left_out_of_the_mean():
    values = entries(200, 2, 5)
    rare = {"truth": np.arange(9.0), "prediction": -np.arange(9.0), "gene": np.full(9, 2), "cell": np.zeros(9, int)}
    scores = ExpressionScores(4, 5)
    scores.update(**values)
    before = scores.compute()
    scores.update(**rare)
    after = scores.compute()
    assert after["pearson_gene"] == before["pearson_gene"]
    assert after["genes_undefined"] == 1  # gene 3 has no entry at all and is no one's failure
    assert ExpressionScores(4, 5).compute()["n"] == 0
    assert np.isnan(ExpressionScores(4, 5).compute()["mae"])


def test_scores_do_not_depend_on_the_scale_of_correlated_values():
    values = entries(500, 5, 5)
    one, other = ExpressionScores(5, 5), ExpressionScores(5, 5)
    one.update(**values)
    other.update(**(values | {"prediction": 3 * values["prediction"] + 2}))
    assert one.compute()["pearson_gene"] == pytest.approx(other.compute()["pearson_gene"], abs=1e-12)


def test_bad_entries_are_refused_by_name():
    values = entries(20, 3, 3)
    values["prediction"][4] = np.nan
    with pytest.raises(InputError, match="prediction of entry 4"):
        ExpressionScores(3, 3).update(**values)
    with pytest.raises(InputError, match="gene numbers"):
        ExpressionScores(2, 3).update(**entries(20, 3, 3))
    with pytest.raises(InputError, match="cannot be merged"):
        ExpressionScores(2, 3).merge(ExpressionScores(3, 3))


def test_module_auc_by_hand():
    # Centred, genes 0 and 1 point one way, 2 and 3 the other; pair (0, 1) is most similar, the four across least.
    embedding = np.array([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.4], [-1.0, -0.4]])
    assert module_auc(embedding, ["a", "a", "b", "b"]) == 1.0
    assert module_auc(embedding, ["a", "b", "a", "b"]) == pytest.approx(
        roc_auc_score([0, 1, 0, 0, 1, 0], cosines(embedding))
    )
    # The one module pair is more similar than four pairs and less than one: AUC 4/5.
    assert module_auc(embedding, ["none", "none", "b", "b"]) == pytest.approx(0.8)


def cosines(embedding: np.ndarray) -> np.ndarray:
    centred = embedding - embedding.mean(axis=0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    return (unit @ unit.T)[np.triu_indices(len(unit), 1)]


def modular(genes: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    module = rng.integers(0, 6, genes)
    embedding = rng.normal(size=(6, 16))[module] + 1.5 * rng.normal(size=(genes, 16))
    return embedding, np.where(module == 5, "none", np.char.add("m", module.astype(str)))


def test_module_auc_ignores_a_common_direction_and_length():
    embedding, module = modular()
    found = module_auc(embedding, module)
    assert found == pytest.approx(module_auc(embedding * 4 + 100.0, module), abs=1e-9)
    assert 0.6 < found < 0.95


def test_random_embeddings_are_at_chance():
    _, module = modular(600)
    assert module_auc(np.random.default_rng(1).normal(size=(600, 50)), module) == pytest.approx(0.5, abs=0.01)


def test_sampled_pairs_agree_with_all_pairs_and_follow_the_seed():
    embedding, module = modular()
    exact = module_auc(embedding, module)
    sampled = [module_auc(embedding, module, max_pairs=20_000, seed=seed) for seed in (0, 0, 1)]
    assert sampled[0] == sampled[1] != sampled[2]
    assert sampled == pytest.approx([exact] * 3, abs=0.015)


def test_module_auc_needs_both_kinds_of_pairs():
    embedding = np.eye(4)
    for modules in (["a", "b", "c", "none"], ["a"] * 4):
        with pytest.raises(InputError, match="share a module"):
            module_auc(embedding, modules)
    with pytest.raises(InputError, match="module labels"):
        module_auc(embedding, ["a", "a"])
