"""Labels of ATAC cells from RNA of other cells: recovered where the truth is known, doubted where modalities do not match."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from expresser.cli import main
from expresser.errors import InputError
from expresser.simulate import Multiome, simulate_multiome
from translate import label_transfer
from translate.genenames import GenePlaces
from translate.label_scores import label_scores
from translate.label_transfer import (
    Transfer,
    _canonical,
    _standardised,
    _to_composition,
    transfer,
    transfer_labels,
)
from translate.reading import read_measured
from translate.study import Measured


@pytest.fixture(scope="module")
def made() -> Multiome:
    return simulate_multiome(n_cells=800, n_genes=600, n_peaks=6000, n_types=5, rna_depth=1500, atac_depth=900, seed=3)


@pytest.fixture(scope="module")
def halves(made: Multiome) -> tuple[Measured, Measured]:
    """RNA of some cells, ATAC of others."""
    order = np.random.default_rng(0).permutation(800)
    return read_measured(made.rna, "rna").take(order[:400]), read_measured(made.atac, "atac").take(order[400:])


@pytest.fixture(scope="module")
def found(halves: tuple[Measured, Measured]) -> Transfer:
    return transfer(*halves, "cell_type")


def test_types_of_simulated_cells_are_found(halves: tuple[Measured, Measured], found: Transfer) -> None:
    scores = label_scores(found, halves[1].obs["cell_type"])
    assert scores.accuracy > 0.9
    assert scores.balanced > 0.85
    assert scores.most_frequent < 0.5
    assert scores.accuracy_of_labelled >= scores.accuracy
    assert found.doubt() is None
    assert list(found.cells.columns) == ["label", "confidence", "guess"]
    assert list(found.cells.index) == list(halves[1].obs.index)
    np.testing.assert_allclose(found.probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(found.cells["confidence"], found.probabilities.max(axis=1))


def test_genes_in_wrong_places_are_doubted(halves: tuple[Measured, Measured]) -> None:
    rna, atac = halves
    places = rna.var[["chrom", "tss"]].sample(frac=1, random_state=0).to_numpy()
    wrong = rna.var.assign(chrom=places[:, 0], tss=places[:, 1].astype(np.int64))
    doubtful = transfer(replace(rna, var=wrong), atac, "cell_type")
    assert doubtful.doubt() is not None
    assert "do not seem to match" in str(doubtful.doubt())
    assert label_scores(doubtful, atac.obs["cell_type"]).accuracy < 0.5


def test_the_order_of_cells_and_names_of_types_do_not_matter(
    halves: tuple[Measured, Measured], found: Transfer
) -> None:
    rna, atac = halves
    rng = np.random.default_rng(1)
    renamed = {f"type{i}": f"{(7 - i) % 5} kind" for i in range(5)}
    mixed = rna.take(rng.permutation(400))
    mixed = replace(mixed, obs=mixed.obs.assign(kind=mixed.obs["cell_type"].map(renamed)))
    again = transfer_labels(mixed, atac.take(rng.permutation(400)), "kind").loc[found.cells.index]
    same = again["guess"] == found.cells["guess"].map(renamed)
    assert same.mean() > 0.99
    np.testing.assert_allclose(again["confidence"], found.cells["confidence"], atol=0.02)


@pytest.mark.parametrize("smooth", ["none", "neighbours", "clusters"])
def test_confidence_decides_who_has_a_label(halves: tuple[Measured, Measured], smooth: str) -> None:
    rna, atac = halves
    counts = atac.matrix.tolil()
    counts[7] = 0
    empty = replace(atac, matrix=sparse.csr_matrix(counts))
    some, none = (transfer_labels(rna, empty, "cell_type", smooth=smooth, min_confidence=c) for c in (0.5, 1.0))
    assert some["label"].iloc[7] is None  # nothing is known of a cell without an open peak
    assert some["confidence"].iloc[7] == pytest.approx(1 / 5)
    sure = some["confidence"] >= 0.5
    assert sure.mean() > 0.8
    assert some["label"][sure].equals(some["guess"][sure])
    assert some["label"][~sure].isna().all()
    assert none["label"].notna().mean() < 0.2


def test_composition_is_brought_to_that_of_the_other_cells() -> None:
    y = np.array([0] * 90 + [1] * 10)
    guess = np.array([0] * 50 + [1] * 50)
    weights = _to_composition(y, guess, 2)
    assert weights.mean() == pytest.approx(1)
    assert weights[y == 1].sum() / weights.sum() == pytest.approx(0.5, abs=0.01)
    assert _to_composition(y, np.zeros(50, np.int64), 2)[y == 1].min() > 0  # none is silenced


def test_canonical_vectors_are_singular_vectors_of_the_product() -> None:
    rng = np.random.default_rng(0)
    rna, atac = (rng.normal(size=(n, 12)).astype(np.float32) for n in (40, 35))
    s, v = _canonical(rna, atac)
    np.testing.assert_allclose(np.sort(s)[::-1], np.linalg.svd(rna @ atac.T)[1][: len(s)], rtol=1e-3)
    np.testing.assert_allclose(v.T @ v, np.eye(len(s)), atol=1e-4)


def test_standardised_by_weights_is_as_by_repeated_cells() -> None:
    x = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    x[:, 2] = 4.0
    weights = np.array([1.0, 2, 3, 1, 1, 2])
    repeated = _standardised(np.repeat(x, weights.astype(int), axis=0))
    np.testing.assert_allclose(_standardised(x, weights), repeated[np.cumsum(weights.astype(int)) - 1], atol=1e-5)
    assert (repeated[:, 2] == 0).all()


def test_weights_of_cells_are_rows_times_their_roots() -> None:
    rng = np.random.default_rng(0)
    rna, atac = (rng.normal(size=(n, 12)).astype(np.float32) for n in (40, 35))
    weights = rng.uniform(0.2, 4, 40)
    s, v = _canonical(rna, atac, weights)
    theirs, w = _canonical((rna * np.sqrt(weights)[:, None]).astype(np.float32), atac)
    np.testing.assert_allclose(np.sort(s), np.sort(theirs), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(v * w, axis=0)), 1, atol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_standardising_takes_no_second_array(weighted: bool) -> None:
    rng = np.random.default_rng(0)
    x = rng.exponential(size=(6000, 300)).astype(np.float32)
    weights = rng.uniform(0.1, 10, 6000) if weighted else None
    expected = (x - np.average(x, axis=0, weights=weights)).astype(np.float64)
    expected = np.clip(expected / np.sqrt(np.average(expected**2, axis=0, weights=weights)), -10, 10)
    tracemalloc.start()
    found = _standardised(x, weights)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 0.8 * x.nbytes
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_memory_is_one_dense_array_of_each_modality() -> None:
    rng = np.random.default_rng(0)
    x = sparse.random(5000, 500, 0.1, format="csr", dtype=np.float32, random_state=rng)
    y, atac = rng.integers(0, 3, 5000), rng.normal(size=(300, 500)).astype(np.float32)
    profiles = label_transfer._profiles(x, y, 3)
    tracemalloc.start()
    label_transfer._probabilities(x, profiles, atac, y)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 4 * x.shape[0] * x.shape[1]  # RNA once, what is of a block, and canonical vectors


def test_scores_of_labels() -> None:
    cells = pd.DataFrame(
        {
            "label": ["a", None, "b", "b", "a"],
            "confidence": [0.9, 0.4, 0.8, 0.7, 0.9],
            "guess": ["a", "b", "b", "b", "a"],
        },
        index=list("vwxyz"),
    )
    found = Transfer(cells, np.zeros((5, 2)), ("a", "b"), 10, 0.5, 0.1, {})
    scores = label_scores(found, pd.Series(["a", "a", "b", "a", "else"], dtype="category"))
    assert (scores.compared, scores.unknown) == (4, 1)
    assert scores.accuracy == pytest.approx(2 / 4)
    assert scores.balanced == pytest.approx((1 / 3 + 1) / 2)
    assert scores.most_frequent == pytest.approx(3 / 4)
    assert scores.accuracy_of_labelled == pytest.approx(2 / 3)
    assert scores.confusion.loc["a", "b"] == 2
    assert "1 more are of types" in scores.text("truth")
    assert "no cell is of a type" in label_scores(found, pd.Series([None] * 5, dtype=object)).text("truth")


def test_what_cannot_be_transferred(halves: tuple[Measured, Measured]) -> None:
    rna, atac = halves
    with pytest.raises(InputError, match="no column 'kind'"):
        transfer(rna, atac, "kind")
    with pytest.raises(InputError, match="two types at least"):
        transfer(replace(rna, obs=rna.obs.assign(kind="one")), atac, "kind")
    with pytest.raises(InputError, match="no types of cells"):
        transfer(replace(rna, obs=rna.obs.assign(kind=rna.obs.index)), atac, "kind")
    with pytest.raises(InputError, match="places of its genes are not known"):
        transfer(replace(rna, var=rna.var.assign(chrom="", tss=-1)), atac, "cell_type")
    with pytest.raises(InputError, match="genes are expressed"):
        transfer(replace(rna, var=rna.var.assign(tss=np.r_[rna.var["tss"][:5], np.full(595, -1)])), atac, "cell_type")
    with pytest.raises(InputError, match="5 cells to compare"):
        transfer(rna, atac.take(np.arange(5)), "cell_type")
    with pytest.raises(InputError, match="from 0 to 1"):
        transfer(rna, atac, "cell_type", min_confidence=50.0)


def test_the_command(made: Multiome, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made.write(tmp_path)
    rna, atac = tmp_path / "rna.h5ad", tmp_path / "atac.h5ad"
    out = tmp_path / "out.h5ad"
    main(f"translate label --rna {rna} --atac {atac} --labels cell_type --out {out}".split())
    said = capsys.readouterr().out
    assert "of 800 cells labelled" in said
    assert "accuracy 0.9" in said
    assert "known" in said
    adata = ad.read_h5ad(out)
    assert adata.obs["cell_type"].dtype == "category"
    assert (adata.obs["cell_type_before"].astype(str) == made.atac.obs["cell_type"].astype(str)).all()
    assert adata.obs["cell_type_confidence"].between(0.2, 1).all()
    assert (adata.X != made.atac.X).nnz == 0
    assert adata.uns["expresser"]["labels_cell_type"]["rna_cells"] == 800
    for more, about in (("--truth nosuch", "no column 'nosuch'"), ("--labels nosuch", "no column 'nosuch'")):
        with pytest.raises(SystemExit):
            main(f"translate label --rna {rna} --atac {atac} --labels cell_type --out {out} {more}".split())
        assert about in capsys.readouterr().err


@pytest.mark.realdata
def test_two_hundred_peaks_near_genes_are_too_few_and_it_is_said(realdata: Path) -> None:
    parts = (str(realdata / "multiome" / f"bmmc_setA_{m}.h5ad") for m in ("rna", "atac"))
    found = transfer(*parts, "cell_type", genes=realdata / "annotation" / "gene_tss_hg38.tsv.gz")
    assert found.doubt() is not None
    assert found.cells["label"].notna().mean() < 0.2


@pytest.mark.slow
@pytest.mark.realdata
def test_lineages_of_bone_marrow_from_blood(realdata: Path) -> None:
    """Measured on all 11,120 cells: accuracy 0.942, balanced 0.902 (the most frequent label for all: 0.55)."""
    pytest.importorskip("pyliftover")
    from translate.asking import lifted

    places = GenePlaces.read(realdata / "annotation" / "gene_tss_hg38.tsv.gz")
    rna = read_measured(realdata / "rna" / "pbmc3k.h5ad", "rna", places=places)
    hg19 = read_measured(realdata / "atac" / "granja_hemato_atac.h5ad", "atac")
    atac, _ = lifted(hg19, str(realdata / "annotation" / "hg19ToHg38.over.chain.gz"))
    blood = {"B": "B", "CD14+ Mono": "Mono", "CD8 T": "T", "FCGR3A+ Mono": "Mono", "Memory CD4 T": "T", "NK": "NK"}
    marrow = {"11": "Mono", "12": "Mono", "17": "B", "25": "NK"} | dict.fromkeys(
        ("19", "20", "21", "22", "23", "24"), "T"
    )
    rna = replace(rna, obs=rna.obs.assign(lineage=rna.obs["cell_type"].map(blood | {"Naive CD4 T": "T", "DC": "DC"})))
    atac = replace(atac, obs=atac.obs.assign(lineage=atac.obs["BioClassification"].str[:2].map(marrow)))
    some = np.flatnonzero(atac.obs["lineage"].notna())[::4]
    found = transfer(rna, atac.take(some), "lineage")
    scores = label_scores(found, atac.obs["lineage"].iloc[some])
    assert found.doubt() is None
    assert scores.most_frequent < 0.6
    assert scores.accuracy > 0.85
    assert scores.balanced > 0.8
