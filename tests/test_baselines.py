"""Baselines: what they must recover where the truth is linear, and what each of them is by definition."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.linear_model import Ridge as SklearnRidge

from expresser.errors import InputError
from expresser.regions import Regions
from translate.baselines import LowRank, NearestNeighbours, Pairs, Ridge, TrainingMean
from translate.components import Components
from translate.gene_activity import GeneActivity, peak_gene_weights
from translate.predicted import Predicted

CELLS, GENES, PEAKS = 360, 50, 300


def world(seed: int = 0, cells: int = CELLS):
    """Expression and open peaks of cells that share four factors, and the factors: counts are noisy."""
    rng = np.random.default_rng(seed)
    factors = np.random.default_rng(100 + seed).normal(size=(cells, 4))
    rates = np.exp(0.6 * factors @ rng.normal(size=(4, GENES)))
    rna = np.log1p(rng.poisson(rates)).astype(np.float32)
    chance = 1 / (1 + np.exp(1.5 - factors @ rng.normal(size=(4, PEAKS))))
    atac = (rng.random(chance.shape) < chance).astype(np.float32)
    return sparse.csr_matrix(rna), sparse.csr_matrix(atac), factors


@pytest.fixture(scope="module")
def cells():
    rna, atac, _ = world()
    return {"rna": rna, "atac": atac, "protein": np.asarray(rna[:, :9].toarray() - 1, np.float32)}


def parts(cells, source, to, start, stop):
    return Pairs(source, to, cells[source][start:stop], cells[to][start:stop])


def whole(predicted: Predicted) -> np.ndarray:
    return predicted.block(slice(0, predicted.n_cells), slice(0, predicted.n_features))


def r_by_feature(truth, prediction) -> float:
    truth = truth.toarray() if sparse.issparse(truth) else truth
    return float(np.nanmean([np.corrcoef(t, p)[0, 1] for t, p in zip(truth.T, prediction.T)]))


@pytest.mark.parametrize(("source", "to"), [("rna", "atac"), ("atac", "rna"), ("rna", "protein"), ("protein", "rna")])
def test_blocks_are_parts_of_the_whole_and_predictions_know_the_cells(cells, source, to):
    train, test = parts(cells, source, to, 0, 300), parts(cells, source, to, 300, 360)
    components = Components.fit(train.x, source)
    fitted = {
        "mean": TrainingMean.fit(train),
        "knn": NearestNeighbours.fit(train, components),
        "ridge": Ridge.fit(train, components),
    }
    for name, model in fitted.items():
        predicted = model.predict(test.x)
        assert isinstance(predicted, Predicted)
        assert (predicted.to, predicted.n_cells, predicted.n_features) == (to, 60, cells[to].shape[1])
        values = whole(predicted)
        assert values.dtype == np.float32
        for part in (
            (slice(3, 20), slice(2, 7)),
            (slice(0, 60), slice(1, 5)),
            (slice(10, 11), slice(0, values.shape[1])),
        ):
            np.testing.assert_allclose(predicted.block(*part), values[part], rtol=1e-5, atol=1e-6)
        # Cells one by one, or all at once: the same.
        np.testing.assert_allclose(whole(model.predict(test.x[5:6]))[0], values[5], rtol=1e-3, atol=1e-4)
        assert name == "mean" or r_by_feature(test.y, values) > 0.15


def test_the_mean_is_the_mean(cells):
    train = parts(cells, "rna", "atac", 0, 300)
    values = whole(TrainingMean.fit(train).predict(cells["rna"][300:]))
    np.testing.assert_allclose(values, np.tile(np.asarray(train.y.mean(axis=0)), (60, 1)), rtol=1e-6)


def test_neighbours_are_averaged_in_the_target(cells):
    train = parts(cells, "rna", "protein", 0, 300)
    components = Components.fit(train.x, "rna")
    model = NearestNeighbours.fit(train, components, neighbours=7)
    predicted = model.predict(cells["rna"][300:])
    np.testing.assert_allclose(np.asarray(predicted.weights.sum(axis=1)), 1.0, rtol=1e-6)
    scores, query = components.of(train.x)[:, :30], components.of(cells["rna"][300:301])[:, :30]
    nearest = np.argsort(((scores - query) ** 2).sum(axis=1))[:7]
    np.testing.assert_allclose(whole(predicted)[0], train.y[nearest].mean(axis=0), rtol=1e-5, atol=1e-6)
    # A training cell's single neighbour is itself.
    one = NearestNeighbours.fit(train, components, neighbours=1).predict(train.x)
    np.testing.assert_allclose(whole(one), train.y, rtol=1e-6)
    few = NearestNeighbours.fit(train.take(np.arange(5)), Components.fit(train.x[:5], "rna"))
    np.testing.assert_allclose(whole(few.predict(train.x[:2]))[0], train.y[:5].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize(("source", "to"), [("rna", "protein"), ("atac", "rna")])
def test_ridge_is_ridge_and_chooses_what_predicts_the_validation_cells_best(cells, source, to):
    train, valid = parts(cells, source, to, 0, 250), parts(cells, source, to, 250, 330)
    components = Components.fit(train.x, source)
    model = Ridge.fit(train, components, valid)
    rank = len(model.centre)
    dense = [y.toarray() if sparse.issparse(y) else y for y in (train.y, valid.y)]
    scores = [components.of(x) for x in (train.x, valid.x)]
    scatter = scores[0][:, :rank] - scores[0][:, :rank].mean(axis=0)

    def error(rank: int, alpha: float) -> tuple[float, np.ndarray]:
        centred = scores[0][:, :rank].astype(np.float64) - scores[0][:, :rank].mean(axis=0)
        fit = SklearnRidge(alpha=alpha * np.linalg.norm(centred.T @ centred, 2)).fit(scores[0][:, :rank], dense[0])
        prediction = fit.predict(scores[1][:, :rank])
        return float(((prediction - dense[1]) ** 2).sum()), prediction

    assert np.linalg.norm(scatter) > 0
    best, prediction = error(rank, model.alpha)
    np.testing.assert_allclose(whole(model.predict(valid.x)), prediction, atol=2e-3)
    for other in (5, 15, 30, 50):
        for alpha in np.logspace(-6, 2, 33)[::5]:
            assert best <= error(min(other, scores[0].shape[1]), alpha)[0] * (1 + 1e-5)


def test_ridge_recovers_a_linear_map_and_shrinks_noise_to_the_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 12)).astype(np.float32)
    y = (x @ rng.normal(size=(12, 5)) + 3).astype(np.float32)
    components = Components.fit(x[:200], "protein")
    exact = Ridge.fit(Pairs("protein", "rna", x[:200], y[:200]), components)
    np.testing.assert_allclose(whole(exact.predict(x[200:])), y[200:], atol=0.01)
    noise = rng.normal(size=(300, 40)).astype(np.float32)
    pairs = Pairs("protein", "rna", x[:200], noise[:200])
    blind = whole(Ridge.fit(pairs, components, Pairs("protein", "rna", x[200:], noise[200:])).predict(x[200:]))
    assert blind.std(axis=0).mean() < 0.15


def test_components_are_those_of_centred_values_and_do_not_depend_on_other_cells(cells):
    fitted = Components.fit(cells["rna"], "rna", n=8)
    dense = cells["rna"].toarray()
    singular = np.linalg.svd(dense - dense.mean(axis=0), compute_uv=False)[:8]
    np.testing.assert_allclose(np.linalg.norm(fitted.of(cells["rna"]), axis=0), singular, rtol=1e-4)
    index = Components.fit(cells["atac"], "atac", n=8)
    np.testing.assert_allclose(index.of(cells["atac"][7:8]), index.of(cells["atac"])[7:8], atol=1e-6)
    assert np.isfinite(index.of(sparse.csr_matrix((2, PEAKS), dtype=np.float32))).all()  # cells without an open peak
    assert Components.fit(cells["rna"][:4], "rna").of(cells["rna"]).shape[1] == 3
    with pytest.raises(InputError, match="at least 2 x 2"):
        Components.fit(cells["rna"][:1], "rna")


GENE_TABLE = pd.DataFrame(
    {"chrom": ["chr1", "chr1", "chr2", "", "chr2"], "tss": [100_000, 150_000, 50_000, -1, 5_000_000]},
    index=["a", "b", "c", "d", "e"],
)


def test_weights_of_peaks_around_genes_by_hand():
    names = [
        "chr1:99900-100101",  # covers a; 49,900 - 1 bases from b
        "chr1:105000-105500",  # 5,000 after a
        "chr1:94500-95001",  # last base is 5,000 before a
        "chr1:200000-200001",  # exactly 100 kb after a
        "chr1:200001-200500",  # a base too far from a, 50,001 from b
        "chr2:50000-50001",  # c itself; the same place on chr1 is another
        "chr3:1-1000",
    ]
    order = np.random.default_rng(0).permutation(len(names))
    weights = peak_gene_weights(Regions.parse([names[i] for i in order]), GENE_TABLE).toarray()[np.argsort(order)]
    e = np.exp(1.0)
    np.testing.assert_allclose(weights[:, 0], [2, 1 / e, 1 / e, np.exp(-20), 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(weights[[0, 4], 1], np.exp([-49_900 / 5000, -50_001 / 5000]), rtol=1e-6)
    np.testing.assert_allclose(weights[:, 2], [0, 0, 0, 0, 0, 2, 0])
    assert not weights[:, 3:].any()


def test_gene_activity_is_on_the_scale_of_training_expression_and_asks_no_test_cell():
    rng = np.random.default_rng(0)
    regions = Regions.parse([f"chr1:{1000 * i + 1}-{1000 * i + 500}" for i in range(300)])
    opened = sparse.csr_matrix((rng.random((200, 300)) < 0.3).astype(np.float32))
    raw = GeneActivity.fit(
        Pairs("atac", "rna", opened, sparse.csr_matrix((200, 5), dtype=np.float32)),
        regions,
        GENE_TABLE,
        calibrate=False,
    )
    activity = whole(raw.predict(opened))
    assert (activity[:, 2:] == 0).all()
    plain = opened @ raw.weights.toarray()
    np.testing.assert_allclose(
        activity, np.log1p(plain * np.median(plain.sum(1)) / plain.sum(1, keepdims=True)), rtol=1e-5
    )
    # Expression that is a line through the activity is found again; genes without peaks have their mean.
    expression = np.float32([2, 0.5, 0, 0, 0]) * activity + np.float32([0.1, 1, 2, 3, 4])
    train = Pairs("atac", "rna", opened[:150], sparse.csr_matrix(expression[:150]))
    found = GeneActivity.fit(train, regions, GENE_TABLE).predict(opened)
    np.testing.assert_allclose(whole(found), expression, atol=1e-3)
    np.testing.assert_array_equal(found.block(slice(20, 30), slice(1, 3)), whole(found)[20:30, 1:3])
    assert isinstance(found, Predicted)
    # A falling line is a fit too; nothing but the training cells enters.
    train = Pairs("atac", "rna", opened[:150], sparse.csr_matrix(np.maximum(3 - expression[:150], 0)))
    assert GeneActivity.fit(train, regions, GENE_TABLE).slope[0] < 0
    empty = raw.predict(sparse.csr_matrix((2, 300), dtype=np.float32))
    assert not whole(empty).any()


def test_baselines_refuse_what_they_cannot_use(cells):
    with pytest.raises(InputError, match="row i of both"):
        Pairs("rna", "atac", cells["rna"][:3], cells["atac"][:2])
    regions = Regions.parse(["chr9:1-100"])
    pairs = Pairs("atac", "rna", sparse.csr_matrix(np.ones((3, 1), np.float32)), cells["rna"][:3, :5])
    with pytest.raises(InputError, match="none of 1 peaks lies within 100,000"):
        GeneActivity.fit(pairs, regions, GENE_TABLE)
    with pytest.raises(InputError, match="predicts rna from atac"):
        GeneActivity.fit(parts(cells, "rna", "atac", 0, 5), regions, GENE_TABLE)


def test_low_rank_without_rank_is_its_offset():
    none = LowRank("rna", np.zeros((3, 0), np.float32), np.zeros((0, 2), np.float32), np.float32([1, 2]))
    np.testing.assert_array_equal(whole(none), [[1, 2]] * 3)
