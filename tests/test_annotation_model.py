"""The annotation task with a model: frozen and trained rows, the zero-epoch law, the classifier as a folder, annotated cells."""

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from expresser import checkpoint as checkpoints
from expresser.checkpoint import Checkpoint, random_checkpoint
from expresser.embed import embed, embed_counts, pool_cells
from expresser.errors import InputError
from expresser.model.last_blocks import block_parameters
from finetune.annotation.apply import FittedClassifier, annotate
from finetune.annotation.classifier import CellClassifier, FineTuning, batches, fine_tune, to_cells
from finetune.annotation.folds import inner_folds
from finetune.annotation.head import LinearHead, fit_head
from finetune.annotation.models import load_models
from finetune.annotation.task import run_annotation
from finetune.annotation.training import train_blocks

QUICK = FineTuning(epochs=2, lr=1e-2, batch_cells=16, train_genes=30)


@pytest.fixture(scope="module")
def model(tiny_run: Path) -> Checkpoint:
    return checkpoints.load(tiny_run)


@pytest.fixture(scope="module")
def counts(model: Checkpoint, tiny_data: anndata.AnnData) -> sparse.csr_matrix:
    return sparse.csr_matrix(tiny_data[:, model.vocab.ids].X.astype(np.int64))


@pytest.fixture(scope="module")
def labels(tiny_data: anndata.AnnData) -> np.ndarray:
    return tiny_data.obs["cell_type"].astype(str).to_numpy(dtype=object)


@pytest.fixture(scope="module")
def x(model: Checkpoint, counts: sparse.csr_matrix) -> np.ndarray:
    return embed_counts(model, counts)


@pytest.fixture(scope="module")
def head(x: np.ndarray, labels: np.ndarray) -> LinearHead:
    return fit_head(x, labels, c=0.1)


@pytest.fixture(scope="module")
def fitted(model: Checkpoint, head: LinearHead) -> FittedClassifier:
    return FittedClassifier(
        model, head, {"label": "cell_type", "split": "random", "scores": {"accuracy": 0.5}, "trained": {"cells": 120}}
    )


@pytest.fixture(scope="module")
def run(tiny_run, tiny_data, tmp_path_factory):
    """A finished run with training, and its folder."""
    out = tmp_path_factory.mktemp("annotation") / "run"
    result = run_annotation(
        tiny_data,
        label="cell_type",
        group="donor",
        models=[f"mine={tiny_run}"],
        folds=2,
        finetune_blocks=1,
        tuning=QUICK,
        out=out,
    )
    return result, out


def annotated(cells: anndata.AnnData, classifier: Any, **options: Any) -> anndata.AnnData:
    """An annotated copy."""
    found = annotate(cells, classifier, copy=True, **options)
    assert found is not None
    return found


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes(labels: np.ndarray, head: LinearHead) -> np.ndarray:
    return np.array([head.classes.index(name) for name in labels])


# --- embeddings and the network


def test_embeddings_of_counts_are_those_of_the_cells(model, tiny_data, x):
    cells = tiny_data.copy()
    embed(cells, model)
    np.testing.assert_allclose(x, cells.obsm["X_expresser"], atol=2e-5, rtol=2e-5)
    with pytest.raises(ValueError, match="80 genes"):
        embed_counts(model, sparse.csr_matrix((3, 79), dtype=np.int64))


def test_the_network_starts_as_the_logistic_regression(model, head, counts, x):
    network = CellClassifier(model.model, head).eval()
    cells = to_cells(
        counts, np.arange(40), model.model, torch.zeros(40, dtype=torch.long), model.model.config.max_genes
    )
    with torch.no_grad():
        found = network(cells).log_softmax(1).numpy()
        pooled, _ = pool_cells(model.model, cells)
    np.testing.assert_allclose(pooled.numpy(), x[:40], atol=2e-5, rtol=2e-5)
    np.testing.assert_allclose(found, head.log_probabilities(x[:40]), atol=1e-3)


def test_the_pooled_embedding_has_gradients_in_every_layer(model, head, counts):
    network = CellClassifier(checkpoints.load(model.source).model, head)
    cells = to_cells(counts, np.arange(10), network.backbone, torch.zeros(10, dtype=torch.long), 40)
    network(cells).square().sum().backward()
    for name in block_parameters(network.backbone, 2):
        gradient = network.backbone.get_parameter(name).grad
        # The query of the paper's decoder sees gene identities alone, but its weights matter; biases of keys do not.
        assert gradient is not None, name
    moved = [n for n in block_parameters(network.backbone, 2) if network.backbone.get_parameter(n).grad.abs().max() > 0]
    assert any(n.startswith("encoder.") for n in moved)
    assert any(n.startswith("decoder.") for n in moved)


def test_parts_of_a_batch_are_all_its_cells_within_the_budget(counts):
    rows = np.arange(120)[::3]
    parts = list(batches(counts, rows, 40, 200))
    assert sorted(np.concatenate(parts)) == rows.tolist()
    lengths = np.minimum(np.diff(counts.indptr), 40)
    assert all(len(part) * lengths[part].max() <= 200 for part in parts)


def test_only_the_last_blocks_are_named(model):
    assert block_parameters(model.model, 0) == []
    one, two = block_parameters(model.model, 1), block_parameters(model.model, 2)
    assert all(name.startswith(("decoder.0.", "head.", "expression_tokens.", "residual_direction")) for name in one)
    assert any(name.startswith("encoder.layers.0.") for name in two)
    assert "encoder.norm.weight" in two
    assert not any("gene_" in name for name in two)
    with pytest.raises(InputError, match="this model has 2 blocks"):
        block_parameters(model.model, 3)


# --- training


def test_zero_epochs_or_blocks_are_the_logistic_regression_itself(model, head, x, counts, labels):
    for options in (FineTuning(epochs=0), FineTuning(blocks=0)):
        tuned = train_blocks(model, head, x, counts, labels, None, np.arange(120), options=options, key=(0,))
        assert tuned.head is head
        assert tuned.checkpoint is model
        assert tuned.epoch == 0


def test_training_that_does_not_help_is_undone(model, head, x, counts, labels):
    wild = FineTuning(epochs=2, lr=3.0, batch_cells=16)
    tuned = train_blocks(model, head, x, counts, labels, None, np.arange(120), options=wild, key=(0,))
    assert tuned.head is head
    assert tuned.checkpoint is model
    assert tuned.valid[0] == min(tuned.valid)


def test_training_moves_the_last_blocks_alone_and_lowers_the_loss(model, head, counts, labels):
    before = {name: p.detach().clone() for name, p in model.model.named_parameters()}
    code = codes(labels, head)
    options = FineTuning(epochs=5, patience=5, lr=1e-3, batch_cells=16)
    tuned = fine_tune(
        model, head, counts, code, train=np.arange(120), valid=np.arange(120), options=options, generator=generator()
    )
    assert tuned.epoch > 0
    assert min(tuned.valid) < tuned.valid[0]
    moved = {n for n, p in tuned.checkpoint.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved
    assert moved <= set(block_parameters(model.model, 1))
    for name, parameter in model.model.named_parameters():
        assert torch.equal(parameter, before[name]), name  # the model given stays as it was
    again = fine_tune(
        model, head, counts, code, train=np.arange(120), valid=np.arange(120), options=options, generator=generator()
    )
    np.testing.assert_array_equal(again.head.coef, tuned.head.coef)
    assert not tuned.checkpoint.model.training


def test_the_token_budget_does_not_change_training_beyond_rounding(model, head, counts, labels):
    found = [
        fine_tune(
            model,
            head,
            counts,
            codes(labels, head),
            train=np.arange(48),
            valid=None,
            options=FineTuning(epochs=1, lr=1e-3, batch_cells=16, max_tokens=max_tokens),
            generator=generator(),
        ).head.coef
        for max_tokens in (50, 100_000)
    ]
    # AdamW's first steps are signs: what rounding turns is a step of the rate at most.
    assert np.median(np.abs(found[0] - found[1])) < 1e-5


def test_the_global_generator_is_left_alone(model, head, counts, labels):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    fine_tune(
        model,
        head,
        counts,
        codes(labels, head),
        train=np.arange(20),
        valid=None,
        epochs=1,
        options=QUICK,
        generator=generator(),
    )
    random_checkpoint(model, seed=0)
    assert torch.equal(torch.rand(3), expected)


def test_cells_held_out_for_choosing_are_of_other_donors(tiny_data, labels):
    donors = tiny_data.obs["donor"].astype(str).to_numpy(dtype=object)
    train = np.flatnonzero(donors != donors[0])
    for learn, check in inner_folds(labels, donors, train, folds=3, key=(0,)):
        assert not set(donors[train][learn]) & set(donors[train][check])


# --- the run


def test_models_controls_and_baselines_are_in_one_table(run):
    result, out = run
    names = ["mine", "mine, last block trained", "random", "pca", "log_counts", "knn", "majority"]
    assert sorted(result.scores.index) == sorted(names)
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["split"] == "donor"
    assert set(metrics["embeddings"]) == set(names)
    assert metrics["embeddings"]["mine"]["dim"] == 16
    pairs = {(entry["model"], entry["baseline"]) for entry in metrics["comparisons"]}
    assert pairs == {(m, b) for m in names[:2] for b in names[2:]}
    assert [e["model"] for e in metrics["trained_against_frozen"]] == [names[1]]
    assert {e["verdict"] for e in metrics["comparisons"]} <= {"better", "worse", "no difference shown"}
    assert all(len(entry["folds"]) == metrics["folds"] for entry in metrics["embeddings"].values())
    page = (out / "report.html").read_text()
    assert "mine, last block trained" in page
    assert not (out / "state").exists()


def test_a_random_model_is_no_column_of_zeros(model, counts):
    control = random_checkpoint(model, seed=0)
    found = embed_counts(control, counts)
    assert (found.std(0) > 0).all()
    np.testing.assert_array_equal(found, embed_counts(random_checkpoint(model, seed=0), counts))
    assert not np.allclose(found, embed_counts(random_checkpoint(model, seed=1), counts))


def test_an_interrupted_run_with_training_goes_on_and_says_the_same(run, tiny_run, tiny_data, tmp_path):
    class Interrupt(Exception):
        pass

    def stop(done: int, total: int) -> None:
        if done == 5:
            raise Interrupt

    arguments: dict[str, Any] = {
        "label": "cell_type", "group": "donor", "models": [f"mine={tiny_run}"], "folds": 2, "finetune_blocks": 1, "tuning": QUICK,
    }  # fmt: skip
    with pytest.raises(Interrupt):
        run_annotation(tiny_data, **arguments, out=tmp_path, progress=stop)
    resumed = run_annotation(tiny_data, **arguments, out=tmp_path)
    pd.testing.assert_frame_equal(resumed.scores, run[0].scores, check_exact=True)
    pd.testing.assert_frame_equal(resumed.predictions, run[0].predictions, check_exact=True)
    mine, straight = (FittedClassifier.load(folder).head for folder in (tmp_path, run[1]))
    np.testing.assert_array_equal(mine.coef, straight.coef)


def test_names_of_models_are_said_or_those_of_their_folders(tiny_run):
    assert list(load_models([str(tiny_run), f"other={tiny_run}"])) == ["run", "other"]
    assert list(load_models([str(tiny_run / "model")])) == ["run"]
    for models in ([str(tiny_run), str(tiny_run)], [f"pca={tiny_run}"], [f"random={tiny_run}"]):
        with pytest.raises(InputError, match="Give another: NAME="):
            load_models(models)


def test_cells_of_another_species_are_refused(tiny_run, tiny_data):
    mouse = tiny_data.copy()
    mouse.var = pd.DataFrame(index=[f"Gene{i}" for i in range(mouse.n_vars)])
    with pytest.raises(InputError, match="Gene"):
        run_annotation(mouse, label="cell_type", models=[str(tiny_run)])
    with pytest.raises(InputError, match="this model has 2 blocks"):
        run_annotation(tiny_data, label="cell_type", models=[str(tiny_run)], finetune_blocks=7)


# --- the classifier


def test_a_classifier_is_read_back_bit_by_bit_without_its_model(fitted, tiny_data, counts, tmp_path):
    fitted.save(tmp_path / "classifier")
    assert not [p for p in (tmp_path / "classifier").iterdir() if p.suffix in (".pkl", ".bin", ".pt", ".joblib")]
    again = FittedClassifier.load(tmp_path)  # the run's folder will do
    for mine, theirs in zip(fitted.checkpoint.model.parameters(), again.checkpoint.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    first, second = (annotated(tiny_data, one, probabilities=True) for one in (fitted, again))
    key = "expresser_cell_type_probabilities"
    pd.testing.assert_frame_equal(first.obsm[key], second.obsm[key], check_exact=True)
    assert "Cell types" in (tmp_path / "classifier" / "README.md").read_text()
    assert checkpoints.load(tmp_path / "classifier").vocab == fitted.checkpoint.vocab  # and is a model like any other


def test_the_runs_classifier_names_cells(run, tiny_data):
    cells = tiny_data.copy()
    assert annotate(cells, run[1]) is None
    agreed = (cells.obs["expresser_cell_type"].astype(str) == cells.obs["cell_type"].astype(str)).mean()
    assert agreed > 0.5
    about = FittedClassifier.load(run[1]).about
    assert about["trained"]["cells"] == 120
    assert run[0].metrics["classifier"]["row"] == about["row"]


def test_annotation_is_a_function_of_the_cell(fitted, tiny_data):
    whole = annotated(tiny_data, fitted, probabilities=True)
    p = whole.obsm["expresser_cell_type_probabilities"].to_numpy()
    np.testing.assert_allclose(p.sum(1), 1)
    np.testing.assert_array_equal(whole.obs["expresser_cell_type_probability"], p.max(1))
    best = np.array(fitted.head.classes)[p.argmax(1)]
    assert (whole.obs["expresser_cell_type"].astype(str) == best).all()
    for max_tokens in (1, 10**6):
        other = annotated(tiny_data, fitted, max_tokens=max_tokens)
        np.testing.assert_allclose(
            other.obs["expresser_cell_type_probability"], whole.obs["expresser_cell_type_probability"], atol=1e-4
        )
    order = np.random.default_rng(0).permutation(120)
    moved = annotated(tiny_data[order].copy(), fitted, probabilities=True)
    np.testing.assert_allclose(moved.obsm["expresser_cell_type_probabilities"].to_numpy(), p[order], atol=1e-4)


def test_cells_without_genes_are_not_named_and_the_rest_of_the_file_stays(fitted, tiny_data, tmp_path):
    cells = tiny_data[:12].copy()
    dense = cells.X.toarray()
    dense[3] = 0
    cells.X = sparse.csr_matrix(dense)
    cells.layers["counts"] = cells.X.copy()
    before = cells.copy()
    annotate(cells, fitted, key_added="kind")
    assert cells.obs["kind"].isna().tolist() == [i == 3 for i in range(12)]
    assert np.isnan(cells.obs["kind_probability"].iloc[3])
    assert isinstance(cells.obs["kind"].dtype, pd.CategoricalDtype)
    assert set(cells.obsm) == set(before.obsm)
    assert abs(cells.X - before.X).nnz == 0
    assert cells.uns["expresser"]["annotate"]["types"] == 3
    cells.write_h5ad(tmp_path / "a.h5ad")
    assert anndata.read_h5ad(tmp_path / "a.h5ad").obs["kind"].isna().sum() == 1
    cells.X = np.log1p(dense) * 0.3
    with pytest.raises(InputError, match="raw counts"):
        annotate(cells, fitted, key_added="other")
    assert "other" not in cells.obs
    annotate(cells, fitted, key_added="other", layer="counts")
    assert cells.obs["other"].astype(str).tolist() == cells.obs["kind"].astype(str).tolist()


def test_a_model_without_a_head_or_with_another_is_refused(fitted, tiny_run, tiny_data, tmp_path):
    with pytest.raises(InputError, match="no cell-type classifier"):
        annotate(tiny_data, tiny_run / "model")
    with pytest.raises(InputError, match="no such folder"):
        annotate(tiny_data, tmp_path / "nowhere")
    folder = fitted.save(tmp_path / "classifier")
    narrow = fit_head(np.random.default_rng(0).normal(size=(20, 5)), np.array(list("ab") * 10, dtype=object), c=1.0)
    narrow.save(folder, {})
    with pytest.raises(InputError, match="the head takes 5 features, the model gives 16"):
        annotate(tiny_data, folder)


# --- the command line


def test_the_commands_fit_and_annotate(tiny_run, tiny_data, tmp_path, capsys):
    from finetune.cli_annotation import annotate as annotate_command
    from finetune.cli_annotation import annotation as annotation_command

    tiny_data.write_h5ad(tmp_path / "cells.h5ad")
    annotation_command(
        data=tmp_path / "cells.h5ad",
        label="cell_type",
        out=tmp_path / "run",
        models=(str(tiny_run),),
        folds=2,
        max_cells=80,
    )
    said = capsys.readouterr().out
    assert "majority" in said
    assert "folds of random cells held out" in said
    annotate_command(str(tmp_path / "run" / "classifier"), tmp_path / "cells.h5ad", out=tmp_path / "out.h5ad")
    assert "120 cells in" in capsys.readouterr().out
    assert "expresser_cell_type" in anndata.read_h5ad(tmp_path / "out.h5ad").obs
    with pytest.raises(InputError, match=r"name it \*\.h5ad"):
        annotate_command(str(tmp_path / "run"), tmp_path / "cells.h5ad", out=tmp_path / "out.csv")
