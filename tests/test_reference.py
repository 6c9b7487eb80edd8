"""The reference says where RNA lies, of the right cells, with batches out of it; and weights follow the paper's formula."""

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from sklearn.metrics.pairwise import cosine_similarity
from translate_toys import toy_anndata, toy_study

from expresser.errors import InputError
from translate.covariates import BatchColumn
from translate.data import read_study
from translate.reference import depth_weights, reference_embedding


def cells(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)


def with_batches(study, names):
    study.obs["batch"] = names
    return BatchColumn("batch").settled(study.obs, cells(study.n_cells))


def test_weights_by_depth_are_the_papers_formula():
    made = toy_anndata(50)
    study = read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    rna = made["rna"].X.toarray().sum(axis=1)
    atac = (made["atac"].X.toarray() > 0).sum(axis=1)
    ratio = np.log((rna / rna.max()) / (atac / atac.max()))
    expected = (ratio - ratio.min()) / (ratio.max() - ratio.min())
    np.testing.assert_allclose(depth_weights(study, cells(50)), expected, rtol=1e-5, atol=1e-6)
    # The shallower ATAC is, the more is taken from RNA.
    assert np.corrcoef(depth_weights(study, cells(50)), np.log(atac) - np.log(rna))[0, 1] < -0.999


def test_the_ends_of_the_scale_are_those_of_training_cells_and_hold_the_others():
    study = toy_study(60)
    some = depth_weights(study, cells(20))
    assert (some[:20].min(), some[:20].max()) == (0, 1)
    assert (some >= 0).all()
    assert (some <= 1).all()
    np.testing.assert_allclose(some[:20], depth_weights(study.select(cells(20)), cells(20)), rtol=1e-6)


def test_cells_without_rna_or_atac_have_no_weight_and_no_place():
    made = toy_anndata(60)
    study = read_study(
        rna=made["rna"][:40].copy(), atac=made["atac"][10:].copy(), check_pairing=False
    )  # 30 with both, 10 of RNA, 20 of ATAC
    found = reference_embedding("pca", study, cells(60), dims=5)
    both = study.has("rna") & study.has("atac")
    assert both.sum() == 30
    assert (found.weight[~both] == 0).all()
    assert (found.weight[both] > 0).sum() == 29
    assert (found.values[~study.has("rna")] == 0).all()
    even = reference_embedding("pca", study, cells(60), dims=5, weights="even")
    np.testing.assert_array_equal(even.weight, both.astype(np.float32))


def test_components_are_scanpys():
    study = toy_study(80)
    adata = AnnData(study.measured["rna"].matrix.copy())
    sc.pp.normalize_total(adata, target_sum=1e4)
    sc.pp.log1p(adata)
    sc.pp.pca(adata, n_comps=10, svd_solver="arpack", mask_var=adata.X.getnnz(axis=0) >= 3)
    found = reference_embedding("pca", study, cells(80), dims=10)
    np.testing.assert_allclose(
        cosine_similarity(found.values), cosine_similarity(adata.obsm["X_pca"]), rtol=0, atol=1e-3
    )


def test_components_are_learnt_from_training_cells_alone():
    study = toy_study(80)
    one = reference_embedding("pca", study, cells(50), dims=5)
    two = reference_embedding("pca", study.select(cells(50)), cells(50), dims=5)
    np.testing.assert_allclose(np.abs(one.values[:50]), np.abs(two.values), rtol=1e-3, atol=1e-3)


def test_a_table_is_read_by_cell_names_from_objects_files_and_several_files(tmp_path):
    made = toy_anndata(60)
    rna = made["rna"]
    rna.obsm["X_own"] = np.arange(180, dtype=np.float32).reshape(60, 3)
    mixed = made["atac"][np.random.default_rng(0).permutation(60)].copy()
    rna.write_h5ad(tmp_path / "rna.h5ad")
    halves = [rna[:25].copy(), rna[25:].copy()]
    for given in (rna, tmp_path / "rna.h5ad", halves):
        study = read_study(rna=given, atac=mixed, check_pairing=False)
        found = reference_embedding("obsm:X_own", study, cells(60), clean="none")
        expected = pd.DataFrame(rna.obsm["X_own"], index=rna.obs_names).loc[study.obs.index]
        np.testing.assert_array_equal(found.values, expected.to_numpy())
        some = study.select(np.array([7, 3, 50]))
        np.testing.assert_array_equal(
            reference_embedding("obsm:X_own", some, cells(3), clean="none").values, found.values[[7, 3, 50]]
        )


def test_a_pretrained_expresser_is_a_reference(tiny_run):
    from expresser.simulate import simulate_rna

    rna = simulate_rna(n_cells=30, n_genes=80, n_types=3, n_modules=4, median_depth=300, seed=1)
    atac = toy_anndata(30)["atac"]
    atac.obs_names = rna.obs_names
    study = read_study(rna=rna, atac=atac, check_pairing=False)
    found = reference_embedding(f"expresser:{tiny_run / 'model'}", study, cells(30), clean="none")
    from expresser.checkpoint import load
    from expresser.embed import embed

    embed(rna, load(tiny_run / "model"))
    np.testing.assert_allclose(found.values, rna.obsm["X_expresser"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("clean", ["centre", "matched"])
def test_a_shift_between_batches_is_taken_out(clean):
    rng = np.random.default_rng(0)
    made = toy_anndata(200)
    kinds = rng.integers(0, 3, 200)
    batch = rng.integers(0, 2, 200)
    values = 4 * np.eye(3)[kinds] @ rng.normal(size=(3, 6)) + rng.normal(0, 0.3, (200, 6))
    made["rna"].obsm["X_own"] = (values + 7 * batch[:, None]).astype(np.float32)
    study = read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    column = with_batches(study, np.array(["one", "two"])[batch])
    true = cosine_similarity(values - values.mean(axis=0))
    found = reference_embedding("obsm:X_own", study, cells(200), batches=column, clean=clean)
    raw = reference_embedding("obsm:X_own", study, cells(200), batches=column, clean="none")
    assert np.abs(cosine_similarity(found.values) - true).mean() < 0.1
    assert np.abs(cosine_similarity(raw.values) - true).mean() > 0.5


def test_matching_does_not_take_types_that_a_batch_lacks_for_a_shift():
    """A third of one batch is a type that the other lacks: means are far apart, neighbours are not."""
    rng = np.random.default_rng(1)
    made = toy_anndata(300)
    batch = np.repeat([0, 1], 150)
    kinds = np.where(batch == 0, rng.integers(0, 3, 300), rng.integers(1, 3, 300))
    centres = 8 * np.eye(5)[:3]
    values = centres[kinds] + rng.normal(0, 0.5, (300, 5))
    made["rna"].obsm["X_own"] = (values + 2.0 * batch[:, None]).astype(np.float32)
    study = read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    column = with_batches(study, batch.astype(str))
    gaps = {}
    for clean in ("centre", "matched"):
        found = reference_embedding("obsm:X_own", study, cells(300), batches=column, clean=clean).values
        shared = kinds > 0
        gaps[clean] = np.linalg.norm(
            found[shared & (batch == 0)].mean(axis=0) - found[shared & (batch == 1)].mean(axis=0)
        )
    assert gaps["matched"] < 1.0 < gaps["centre"]


def test_cells_of_a_batch_that_training_does_not_know_have_no_weight():
    study = toy_study(60)
    column = with_batches(study, ["a"] * 30 + ["b"] * 20 + ["c"] * 10)
    column = column.settled(study.obs, cells(50))
    found = reference_embedding("pca", study, cells(50), dims=5, batches=column)
    assert (found.weight[50:] == 0).all()
    assert (found.weight[:50] > 0).sum() == 49
    assert (reference_embedding("pca", study, cells(50), dims=5, batches=column, clean="none").weight[50:] > 0).any()


def test_groups_are_those_of_the_column():
    study = toy_study(30)
    study.obs["study"] = ["x", "y", "z"] * 10
    assert reference_embedding("pca", study, cells(30), dims=3, within="study").group.tolist() == [0, 1, 2] * 10
    assert (reference_embedding("pca", study, cells(30), dims=3).group == 0).all()


def test_what_cannot_be_is_refused():
    made = toy_anndata(30)
    study = read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    for spec in ("umap", "obsm:", "pca:3", "expresser"):
        with pytest.raises(InputError, match="it is pca, obsm:KEY or expresser:MODEL"):
            reference_embedding(spec, study, cells(30))
    with pytest.raises(InputError, match=r"obsm\['X_none'\] of AnnData in memory is not there; obsm has nothing"):
        reference_embedding("obsm:X_none", study, cells(30))
    with pytest.raises(InputError, match="no column 'study'"):
        reference_embedding("pca", study, cells(30), dims=3, within="study")
    with pytest.raises(InputError, match="the study has no RNA; it has atac"):
        reference_embedding("pca", toy_study(30, ("atac",)), cells(30))


def test_sparse_tables_are_read():
    made = toy_anndata(20)
    made["rna"].obsm["X_sparse"] = sparse.csr_matrix(np.eye(20, 4, dtype=np.float32))
    study = read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    found = reference_embedding("obsm:X_sparse", study, cells(20), clean="none")
    np.testing.assert_array_equal(found.values, np.eye(20, 4, dtype=np.float32))
