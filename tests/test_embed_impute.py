"""Laws of embedding and imputation: a result is a function of the cell, hidden counts stay hidden, measured ones stay as they are."""

import dataclasses

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from expresser import checkpoint
from expresser.checkpoint import Checkpoint
from expresser.embed import embed, gene_table
from expresser.errors import InputError
from expresser.impute import impute, predict_entries
from expresser.model.cells import Cells, Views
from expresser.tables import write_gene_table

TOLERANCE = {"atol": 2e-5, "rtol": 2e-5}


@pytest.fixture(scope="module")
def model(tiny_run) -> Checkpoint:
    """A trained model with all weights moved off their start, so that laws that hold only there fail; cells show 40 genes."""
    loaded = checkpoint.load(tiny_run)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in loaded.model.named_parameters():
            if "gene_level" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return loaded


@pytest.fixture
def data(tiny_data) -> anndata.AnnData:
    """30 cells, their own copy. Two genes that the model does not know come first."""
    cells = tiny_data[:30].copy()
    strange = sparse.csr_matrix(np.ones((30, 2), np.float32))
    var = pd.DataFrame(index=["ENSG90099999998", "ENSG90099999999", *cells.var_names])
    return anndata.AnnData(sparse.hstack([strange, cells.X]).tocsr(), obs=cells.obs.copy(), var=var)


@pytest.fixture
def counts(model, tiny_data) -> sparse.csr_matrix:
    """30 cells over the vocabulary."""
    return sparse.csr_matrix(tiny_data[:30, model.vocab.ids].X.astype(np.int64))


def pattern(shape: tuple[int, int], wanted: list[tuple[int, int]]) -> sparse.csr_matrix:
    rows, columns = zip(*wanted) if wanted else ((), ())
    return sparse.csr_matrix((np.ones(len(rows), bool), (rows, columns)), shape=shape)


def zeros_of(counts: sparse.csr_matrix, n: int = 3) -> list[tuple[int, int]]:
    return [(i, int(j)) for i in range(counts.shape[0]) for j in np.flatnonzero(counts[i].toarray()[0] == 0)[:n]]


def sparse_cells(counts: sparse.csr_matrix, n: int) -> sparse.csr_matrix:
    """Each cell cut to n genes, so that none is ever subset."""
    dense = counts.toarray()
    for row in dense:
        row[np.flatnonzero(row)[n:]] = 0
    return sparse.csr_matrix(dense)


# Entries


def test_a_prediction_is_the_model_called_by_hand(model, counts):
    counts = sparse_cells(counts, 25)
    wanted = [(i, j) for i, j in zeros_of(counts)] + [(i, int(counts[i].indices[4])) for i in range(0, 30, 2)]
    queries = pattern(counts.shape, wanted)
    found = predict_entries(model, counts, queries)
    at = 0
    for i in range(30):
        asked = queries[i].indices
        cell = counts[i].toarray()[0]
        total = cell.sum()
        shown = np.setdiff1d(np.flatnonzero(cell), asked)
        genes = torch.from_numpy(np.concatenate([asked, shown]).astype(np.int64))
        values = torch.log1p(1e4 * torch.from_numpy(cell[genes.numpy()]).float() / float(total))
        one = Cells.from_counts(
            genes,
            torch.ones_like(genes),
            torch.tensor([genes.numel()]),
            torch.tensor([int(total)]),
            torch.zeros(1).long(),
        )
        cells = dataclasses.replace(one, values=values)
        with torch.no_grad():
            views = Views.single(cells.rows, torch.arange(genes.numel()) < asked.size)
            expected = model.model(cells, views).prediction.numpy()
        np.testing.assert_allclose(found[at : at + asked.size], expected, **TOLERANCE)
        at += asked.size
    assert at == found.size


def test_a_prediction_depends_on_its_own_cell_alone(model, counts):
    queries = pattern(counts.shape, zeros_of(counts) + [(i, int(counts[i].indices[0])) for i in range(30)])
    together = queries.astype(np.float32)
    together.data = predict_entries(model, counts, queries)
    for max_tokens in (1, 100, 100_000):
        np.testing.assert_allclose(
            predict_entries(model, counts, queries, max_tokens=max_tokens), together.data, **TOLERANCE
        )
    order = np.random.default_rng(0).permutation(30)
    moved = predict_entries(model, counts[order], queries[order])
    np.testing.assert_allclose(moved, together[order].data, **TOLERANCE)
    for i in (0, 7, 29):
        alone = predict_entries(model, counts[[i]], queries[[i]])
        np.testing.assert_allclose(alone, together[i].data, **TOLERANCE)


def test_a_hidden_count_does_not_leak(model, counts):
    for n_shown in (25, 70):  # with and without a subset of the context
        cells = sparse_cells(counts, n_shown).toarray()
        changed = cells.copy()
        wanted = []
        for i in range(30):
            a, b = np.flatnonzero(cells[i])[:2]
            wanted += [(i, int(a)), (i, int(b))]
            changed[i, [a, b]] = cells[i, a] + cells[i, b] - 1, 1  # the same total, the same genes
        queries = pattern(counts.shape, wanted)
        first, second = (predict_entries(model, sparse.csr_matrix(c), queries) for c in (cells, changed))
        np.testing.assert_array_equal(first, second)
        # Nor whether they were expressed at all: the total goes to another wanted gene.
        gone = cells.copy()
        for i in range(30):
            a, b = np.flatnonzero(cells[i])[:2]
            gone[i, [a, b]] = cells[i, a] + cells[i, b], 0
        np.testing.assert_array_equal(predict_entries(model, sparse.csr_matrix(gone), queries), first)


def test_a_stored_zero_in_the_queries_is_wanted_like_any_other(model, counts):
    wanted = [(i, int(counts[i].indices[1])) for i in range(30)]
    ones = pattern(counts.shape, wanted)
    zeros = ones.astype(np.float32)
    zeros.data[:] = 0
    np.testing.assert_array_equal(predict_entries(model, counts, zeros), predict_entries(model, counts, ones))


def test_the_context_matters(model, counts):
    queries = pattern(counts.shape, zeros_of(counts))
    doubled = counts.copy()
    doubled.data = doubled.data * np.random.default_rng(0).integers(1, 9, doubled.nnz)
    assert not np.allclose(predict_entries(model, counts, queries), predict_entries(model, doubled, queries))


@pytest.mark.parametrize("n_shown", [1, 2, 6, 30, 70])
def test_many_queries_are_all_answered_the_same_way_each_time(model, counts, n_shown):
    counts = sparse_cells(counts, n_shown)
    everything = sparse.csr_matrix(np.ones(counts.shape, bool))
    everything = sparse.csr_matrix(everything - everything.multiply(counts.astype(bool)))  # every zero: many a turn
    everything.eliminate_zeros()
    first = predict_entries(model, counts, everything)
    assert first.size == everything.nnz
    assert np.isfinite(first).all()
    np.testing.assert_array_equal(first, predict_entries(model, counts, everything))
    np.testing.assert_allclose(first, predict_entries(model, counts, everything, max_tokens=50), **TOLERANCE)


def test_a_cell_without_an_observed_gene_gives_nan_and_harms_no_other(model, counts):
    dense = counts.toarray()
    dense[3] = 0
    dense[5] = 0
    dense[5, 2] = 4  # its only gene is the one asked for
    queries = pattern(counts.shape, [(i, j) for i in (2, 3, 4, 5) for j in (2, 9)])
    found = predict_entries(model, sparse.csr_matrix(dense), queries).reshape(4, 2)
    assert np.isnan(found[[1, 3]]).all()
    assert np.isfinite(found[[0, 2]]).all()
    assert predict_entries(model, counts, pattern(counts.shape, [])).size == 0


def test_predictions_are_of_the_models_vocabulary(model, counts):
    with pytest.raises(ValueError, match="80 genes"):
        predict_entries(model, counts[:, :79], counts[:, :79])


# Layers


def normalised(data: anndata.AnnData) -> np.ndarray:
    known = data.X.toarray()[:, 2:]
    return np.log1p(1e4 * known / known.sum(1, keepdims=True))


def test_measured_entries_stay_and_zeros_are_predicted(model, data):
    before = data.X.copy()
    assert impute(data, model) is None
    layer = data.layers["expresser"]
    measured = data.X.toarray()[:, 2:] > 0
    assert layer.dtype == np.float32
    assert np.isnan(layer[:, :2]).all()
    np.testing.assert_allclose(layer[:, 2:][measured], normalised(data)[measured], rtol=1e-5)
    assert np.isfinite(layer[:, 2:]).all()
    assert (layer[:, 2:] > 0).all()
    assert (abs(data.X - before)).nnz == 0

    counts = sparse.csr_matrix(data.X[:, 2:].astype(np.int64))[:, np.argsort(data.var_names[2:])]
    assert model.vocab.ids.tolist() == sorted(data.var_names[2:])
    i, j = (int(v[0]) for v in np.nonzero(~measured[:, np.argsort(data.var_names[2:])]))
    zeros = np.flatnonzero(counts[i].toarray()[0] == 0)
    alone = predict_entries(model, counts[[i]], pattern((1, 80), [(0, int(z)) for z in zeros]))
    column = data.var_names.get_loc(model.vocab.ids[j])
    assert layer[i, column] == pytest.approx(alone[zeros.tolist().index(j)], rel=1e-4)


def test_measured_entries_are_predicted_where_asked(model, data):
    impute(data, model, key_added="kept")
    impute(data, model, key_added="all", overwrite_measured=True)
    measured = data.X.toarray()[:, 2:] > 0
    kept, all_ = data.layers["kept"][:, 2:], data.layers["all"][:, 2:]
    assert np.isfinite(all_).all()
    assert (abs(kept - all_)[measured] > 1e-4).mean() > 0.9


def test_only_chosen_genes_are_filled(model, data, tiny_data):
    symbol = str(tiny_data.var["symbol"].iloc[5])
    by_id = str(tiny_data.var_names[7])
    impute(data, model, genes=[by_id, f"{tiny_data.var_names[9]}.3", "NOSUCHGENE"])
    filled = np.isfinite(data.layers["expresser"]).all(0)
    assert data.var_names[filled].tolist() == [by_id, tiny_data.var_names[9]]
    with pytest.raises(InputError, match="none of the genes asked for"):
        impute(data, model, genes=["NOSUCHGENE", "ENSG90099999999"])
    assert symbol  # the model was built from ids and symbols
    impute(data, model, genes=[symbol], key_added="by_symbol")
    assert data.var_names[np.isfinite(data.layers["by_symbol"]).all(0)].tolist() == [tiny_data.var_names[5]]


def test_a_copy_leaves_the_original_alone(model, data):
    out = impute(data, model, genes=[data.var_names[4]], copy=True)
    assert "expresser" in out.layers
    assert "expresser" not in data.layers
    assert "expresser" not in data.uns
    embedded = embed(data, model, copy=True)
    assert "X_expresser" in embedded.obsm
    assert not len(data.obsm)
    assert not len(data.uns)


def test_uns_says_which_model_made_a_result_and_keeps_what_was_there(model, data, tmp_path):
    data.uns["expresser"] = {"note": "mine"}
    impute(data, model, genes=[data.var_names[4]])
    embed(data, model)
    trace = data.uns["expresser"]
    assert trace["note"] == "mine"
    made_by = {"model": model.source, "corpus_id": model.run["corpus_id"]}
    for name, more in (("impute", {"n_genes": 1}), ("embed", {"dimensions": 16})):
        assert trace[name].pop("provenance")["versions"]["expresser"]
        assert trace[name] == made_by | more
    data.write_h5ad(tmp_path / "a.h5ad")
    again = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert again.uns["expresser"]["embed"]["model"] == model.source
    np.testing.assert_array_equal(again.layers["expresser"], data.layers["expresser"])


@pytest.mark.parametrize("kind", ["Gene Expression", "GEX"])
def test_features_that_are_no_genes_get_no_prediction(model, data, tiny_data, kind):
    data.var["feature_types"] = ["Peaks", "Peaks", *[kind] * 80]
    impute(data, model)
    plain = tiny_data[:30].copy()
    impute(plain, model)
    np.testing.assert_array_equal(data.layers["expresser"][:, 2:], plain.layers["expresser"])
    assert np.isnan(data.layers["expresser"][:, :2]).all()


def test_raw_counts_of_more_genes_than_x_are_imputed_into_the_columns_of_x(model, tiny_data):
    full = tiny_data[:30].copy()
    some = full.var_names[[60, 3, 41]]
    small = full[:, some].copy()
    small.X = np.log1p(small.X.toarray()) - 0.5
    small.raw = full
    impute(small, model, layer="raw")
    impute(full, model, genes=list(some))
    expected = pd.DataFrame(full.layers["expresser"], columns=full.var_names)[some].to_numpy()
    np.testing.assert_array_equal(small.layers["expresser"], expected)
    embed(small, model, layer="raw")
    embed(full, model)
    np.testing.assert_array_equal(small.obsm["X_expresser"], full.obsm["X_expresser"])


def test_counts_in_a_layer_are_found(model, data):
    impute(data, model)
    other = data.copy()
    other.layers["counts"] = data.X.copy()
    other.X = np.log1p(data.X.toarray()) * 0.37
    impute(other, model, layer="counts")
    np.testing.assert_array_equal(other.layers["expresser"], data.layers["expresser"])


@pytest.mark.parametrize("function", [embed, impute])
def test_what_is_no_count_is_refused_before_anything_is_written(model, data, function):
    data.X = np.log1p(1e4 * data.X.toarray() / data.X.toarray().sum(1, keepdims=True))
    with pytest.raises(InputError, match="raw counts"):
        function(data, model)
    mouse = data.copy()
    mouse.X = np.ones(data.shape, np.float32)
    mouse.var_names = [f"Gene{i}" for i in range(data.n_vars)]
    with pytest.raises(InputError, match="Gene"):
        function(mouse, model)
    for one in (data, mouse):
        assert not len(one.obsm)
        assert not [name for name in one.layers if name is not None]  # None: X itself, since anndata 0.13
        assert not len(one.uns)


# Embedding


def test_an_embedding_is_a_function_of_the_cell(model, data):
    assert embed(data, model) is None
    whole = data.obsm["X_expresser"]
    assert whole.shape == (30, 16)
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    assert len(np.unique(whole.round(4), axis=0)) == 30
    for max_tokens in (1, 90, 10**6):
        other = embed(data, model, copy=True, max_tokens=max_tokens)
        np.testing.assert_allclose(other.obsm["X_expresser"], whole, **TOLERANCE)
    order = np.random.default_rng(1).permutation(30)
    moved = data[order].copy()
    embed(moved, model)
    np.testing.assert_allclose(moved.obsm["X_expresser"], whole[order], **TOLERANCE)
    genes = np.random.default_rng(2).permutation(data.n_vars)
    turned = data[:, genes].copy()
    embed(turned, model)
    np.testing.assert_allclose(turned.obsm["X_expresser"], whole, **TOLERANCE)
    alone = data[[11]].copy()
    embed(alone, model)
    np.testing.assert_allclose(alone.obsm["X_expresser"][0], whole[11], **TOLERANCE)


def test_an_embedding_sees_expression_not_only_which_genes_there_are(model, data):
    embed(data, model)
    other = data.copy()
    other.X.data = other.X.data * np.random.default_rng(0).integers(1, 9, other.X.nnz).astype(np.float32)
    embed(other, model)
    assert (abs(other.obsm["X_expresser"] - data.obsm["X_expresser"]).max(1) > 1e-4).all()


def test_cells_with_nothing_to_embed_are_nan_and_harm_no_other(model, data):
    embed(data, model)
    dense = data.X.toarray()
    dense[4] = 0  # empty
    dense[9, 2:] = 0  # only unknown genes
    dense[12, 2:] = 0
    dense[12, 7] = 3  # a single gene
    poor = anndata.AnnData(sparse.csr_matrix(dense), obs=data.obs, var=data.var)
    embed(poor, model)
    lost = [4, 9, 12]
    assert np.isnan(poor.obsm["X_expresser"][lost]).all()
    rest = np.setdiff1d(np.arange(30), lost)
    np.testing.assert_allclose(poor.obsm["X_expresser"][rest], data.obsm["X_expresser"][rest], **TOLERANCE)


def test_contextual_embeddings_are_the_encoders_and_nan_where_the_gene_is_not(model, data, tiny_data):
    data.X = sparse.csr_matrix(np.hstack([data.X.toarray()[:, :2], sparse_cells(data.X[:, 2:], 30).toarray()]))
    gene = str(tiny_data.var_names[6])
    symbol = str(tiny_data.var["symbol"].iloc[6])
    embed(data, model, contextual=[gene])
    found = data.obsm[f"X_expresser_{symbol}"]
    expressed = data[:, gene].X.toarray()[:, 0] > 0
    assert 0 < expressed.sum() <= 30
    assert np.isnan(found[~expressed]).all()
    token = int(model.vocab.resolve([gene]).tokens[0])
    for i in np.flatnonzero(expressed)[:5]:
        names = data.var_names[data[i].X.toarray()[0] > 0]
        tokens = torch.from_numpy(model.vocab.resolve([n for n in names if n in model.vocab.ids]).tokens)
        one = torch.ones_like(tokens)
        cell = Cells.from_counts(
            tokens, one, torch.tensor([tokens.numel()]), torch.tensor([100]), torch.zeros(1).long()
        )
        with torch.no_grad():
            expected = model.model.encode(cell.genes, cell.rows)[int(torch.nonzero(tokens == token))]
        np.testing.assert_allclose(found[i], expected.numpy(), **TOLERANCE)
    plain = embed(data, model, copy=True)
    np.testing.assert_array_equal(plain.obsm["X_expresser"], data.obsm["X_expresser"])


def test_an_unknown_contextual_gene_is_refused(model, data):
    with pytest.raises(InputError, match="NOSUCHGENE"):
        embed(data, model, contextual=[data.var_names[5], "NOSUCHGENE"])
    assert not len(data.obsm)


# Gene tables


def test_the_gene_table_is_the_token_table(model, tiny_data):
    frame = gene_table(model)
    assert frame.index.name == "gene_id"
    assert frame.index.tolist() == model.vocab.ids.tolist()
    assert frame.columns.tolist() == ["symbol", *map(str, range(16))]
    symbol_of = dict(zip(tiny_data.var_names, tiny_data.var["symbol"]))
    assert frame["symbol"].tolist() == [symbol_of[gene] for gene in frame.index]
    np.testing.assert_array_equal(frame.drop(columns="symbol"), model.model.gene_tokens.weight.detach())


def test_gene_tables_are_read_back_bit_by_bit(model, tmp_path):
    frame = gene_table(model)
    path = write_gene_table(frame, tmp_path / "genes.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(path), frame)
    numbers = frame.drop(columns="symbol").to_numpy(np.float32)
    for suffix in ("txt", "vec", "w2v"):
        lines = write_gene_table(frame, tmp_path / f"genes.{suffix}").read_text().splitlines()
        assert lines[0] == "80 16"
        words = [line.split(" ") for line in lines[1:]]
        assert [w[0] for w in words] == frame.index.tolist()
        np.testing.assert_array_equal(np.array([w[1:] for w in words], dtype=np.float32), numbers)
    with pytest.raises(InputError, match="parquet"):
        write_gene_table(frame, tmp_path / "genes.csv")
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".parquet", ".txt", ".vec", ".w2v"]
