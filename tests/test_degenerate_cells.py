"""Pretraining, embedding, imputation and annotation on cells at the edge: finite or null, or one message before work begins."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import anndata
import numpy as np
import pytest
from scipy import sparse

from expresser import checkpoint, cli
from expresser.corpus.build import build_corpus
from expresser.embed import embed
from expresser.errors import InputError
from expresser.factors import gene_factors, varies
from expresser.impute import impute
from expresser.metrics.mutual_information import batch_information
from finetune.annotation.task import run_annotation
from finetune.imputation.task import run_imputation
from pretrain.loop import pretrain


def one_gene_a_cell(x: np.ndarray) -> None:
    x[::4] = 0
    x[np.arange(0, len(x), 4), np.arange(0, len(x), 4) % x.shape[1]] = 3


def genes_in_one_cell(x: np.ndarray) -> None:
    x[:, 40:] = 0
    x[np.arange(40), np.arange(40, 80)] = 1


def a_million_counts(x: np.ndarray) -> None:
    x[3:9, 0] = 1e6


def depth_of_a_thousand(x: np.ndarray) -> None:
    x[:] = np.round(x * np.geomspace(1, 1000, len(x))[:, None])


def empty_cells(x: np.ndarray) -> None:
    x[::3] = 0


def identical_cells(x: np.ndarray) -> None:
    x[:] = x[0]


def ones(x: np.ndarray) -> None:
    x[:] = 1


def two_genes(x: np.ndarray) -> None:
    x[:] = 0
    x[:, :2] = 1 + np.arange(len(x))[:, None] % 3


SETS: dict[str, Callable[[np.ndarray], None]] = {
    of.__name__: of
    for of in (
        one_gene_a_cell,
        genes_in_one_cell,
        a_million_counts,
        depth_of_a_thousand,
        empty_cells,
        identical_cells,
        ones,
        two_genes,
    )
}


def cells_of(name: str, tiny_data: Any, n: int = 90) -> anndata.AnnData:
    x = tiny_data.X[:n].toarray().astype(np.float32)
    SETS[name](x)
    return anndata.AnnData(sparse.csr_matrix(x), obs=tiny_data.obs[:n].copy(), var=tiny_data.var.copy())


def strict(text: str) -> Any:
    """JSON without what is no JSON: NaN, Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} in {text[:200]}")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "ones" else pytest.mark.slow) for n in SETS])
def test_a_pretrained_model_is_finite_and_its_log_is_json(name, tiny_data, tiny_recipe, tmp_path):
    build_corpus([cells_of(name, tiny_data)], tmp_path / "corpus", min_genes=1)
    recipe = replace(tiny_recipe, data=replace(tiny_recipe.data, max_steps=4))
    pretrain(recipe, tmp_path / "corpus", tmp_path / "run", quiet=True)
    for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines():
        strict(line)
    strict((tmp_path / "run" / "metrics.json").read_text())
    for weight in checkpoint.load(tmp_path / "run").model.parameters():
        assert bool(weight.isfinite().all())


@pytest.mark.parametrize("name", SETS)
def test_embeddings_and_imputed_values_are_finite_but_of_cells_that_say_nothing(name, tiny_data, tiny_run):
    model, cells = checkpoint.load(tiny_run), cells_of(name, tiny_data, 40 if name != "genes_in_one_cell" else 90)
    expressed = np.diff(cells.X.indptr)
    embed(cells, model)
    assert (np.isfinite(cells.obsm["X_expresser"]).all(axis=1) == (expressed >= 2)).all()
    impute(cells, model, genes=list(cells.var_names[:3]))
    values = np.asarray(cells.layers["expresser"])[:, :3]
    assert (np.isfinite(values).all(axis=1) == (expressed >= 1)).all()
    assert np.nanmax(values) < 15


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "ones" else pytest.mark.slow) for n in SETS])
def test_imputation_is_judged_by_numbers_or_null(name, tiny_data, tmp_path):
    methods = ["gene_mean", "gene_rate", "additive", "additive_svd", "knn", "knn_raw"]
    run_imputation(
        model=None,
        data=cells_of(name, tiny_data),
        label="cell_type",
        seeds=1,
        methods=methods,
        min_genes=1,
        out=tmp_path / "out",
    )
    found = strict((tmp_path / "out" / "metrics.json").read_text())
    assert set(methods) <= set(found["methods"])
    assert all(np.isfinite(row["mae"]) for row in found["methods"].values())


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "identical_cells" else pytest.mark.slow) for n in SETS]
)
def test_cell_types_are_named_or_the_task_refused(name, tiny_data, tmp_path):
    run_annotation(cells_of(name, tiny_data), label="cell_type", folds=3, min_genes=1, out=tmp_path / "out")
    strict((tmp_path / "out" / "metrics.json").read_text())


def test_two_cells_are_too_few_for_a_graph_of_five_neighbours(tiny_data):
    with pytest.raises(InputError, match="MAGIC draws a graph"):
        run_imputation(model=None, data=tiny_data[:2].copy(), methods=["magic"], seeds=1, min_genes=1)


def test_cells_that_are_all_alike_have_no_gene_factors(tiny_data):
    counts = cells_of("identical_cells", tiny_data).X
    assert not varies(counts)
    assert not varies(counts.toarray())
    assert varies(tiny_data.X)
    assert not gene_factors(counts, 8).any()


def test_batches_of_one_cell_each_are_no_information():
    z = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    assert not batch_information(z, np.arange(60).astype(str)).any()
    half = np.where(np.arange(60) < 40, np.arange(60) % 2, np.arange(60)).astype(str)
    z[:40, 0] += 6 * (np.arange(40) % 2)
    assert batch_information(z, half)[0] > 0.5


def test_a_loss_that_is_no_number_is_one_message(monkeypatch, capsys):
    class Entry:
        def load(self) -> Any:
            return self

        def run(self, argv: list[str]) -> None:
            raise FloatingPointError("loss became nan in epoch 3 of phase 'rna'. Fit anew with a lower learning rate.")

    monkeypatch.setattr(cli, "commands", lambda: {"translate": Entry()})
    with pytest.raises(SystemExit) as left:
        cli.main(["translate"])
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("error: loss became nan in epoch 3")
