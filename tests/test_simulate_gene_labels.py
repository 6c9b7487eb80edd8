"""Simulated labels of genes keep the promises of their formulas, and the readers read them."""

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from sklearn.metrics import roc_auc_score

from expresser.cli import main
from expresser.errors import InputError
from expresser.genes import GeneVocab
from expresser.simulate import SimulatedLabels, simulate_gene_labels, simulate_rna
from finetune.labels import read_gene_labels, read_pairs


@pytest.fixture(scope="module")
def cells() -> AnnData:
    return simulate_rna(n_cells=20, n_genes=4000, n_types=3, n_modules=20, seed=5)


@pytest.fixture(scope="module")
def labels(cells: AnnData) -> SimulatedLabels:
    return simulate_gene_labels(cells, seed=2)


def module_of(cells: AnnData, genes: pd.Series) -> np.ndarray:
    return cells.var["module"].astype(str)[genes].to_numpy()


def degree_auroc(train: pd.DataFrame, test: pd.DataFrame) -> float:
    """Of the positive rate of both genes in training, smoothed to the overall one."""
    long = train.melt("label", value_name="gene")
    counts = long.groupby("gene")["label"].agg(["sum", "count"])
    mean = train["label"].mean()
    rate = (counts["sum"] + 2 * mean) / (counts["count"] + 2)
    scores = sum(test[column].map(rate).fillna(mean) for column in ("gene1", "gene2"))
    return float(roc_auc_score(test["label"], scores))


def test_modules_answer_pairs_and_degrees_only_where_they_leak(cells: AnnData, labels: SimulatedLabels) -> None:
    pairs = labels.pairs
    assert len(pairs) == 8000
    assert pairs["label"].mean() == 0.5
    one, two = module_of(cells, pairs["gene1"]), module_of(cells, pairs["gene2"])
    np.testing.assert_array_equal(one == two, pairs["label"] == 1)
    assert not {"none"} & {*one, *two}
    unordered = pd.DataFrame(np.sort(pairs[["gene1", "gene2"]].to_numpy(), axis=1))
    assert not unordered.duplicated().any()
    assert (unordered[0] != unordered[1]).all()
    rng = np.random.default_rng(0)
    held = rng.random(len(pairs)) < 0.2
    assert degree_auroc(pairs[~held], pairs[held]) > 0.8
    genes = labels.properties["gene"].to_numpy()
    out = set(rng.permutation(genes)[: len(genes) // 3])
    inside = pairs[["gene1", "gene2"]].isin(out).sum(axis=1)
    assert degree_auroc(pairs[inside == 0], pairs[inside == 2]) == 0.5
    degree = pd.concat([pairs["gene1"], pairs["gene2"]])[np.tile(pairs["label"] == 1, 2)].value_counts()
    assert degree.iloc[: len(genes) // 10].sum() > 0.4 * degree.sum()  # a tenth of the genes, two fifths of all ends


def test_properties_reach_their_ceilings_and_no_more(cells: AnnData, labels: SimulatedLabels) -> None:
    table, ceilings = labels.properties, labels.ceilings
    assert table.columns.tolist() == ["gene", "symbol", "binary", "value", "cds_length", "class"]
    assert len(table) == (cells.var["module"] != "none").sum() == 1600
    module = module_of(cells, table["gene"])
    groups = table.groupby(module)
    carries = groups["binary"].transform("mean") > 0.5
    assert carries.mean() == 0.5
    assert roc_auc_score(table["binary"], carries) == pytest.approx(ceilings["binary_auroc"], abs=0.03)
    assert ceilings["binary_auroc"] == pytest.approx(0.9)
    mean = groups["value"].transform("mean")
    length = np.log10(table["cds_length"])
    both = mean + np.polyfit(length, table["value"] - mean, 1)[0] * length
    for known, name in ((mean, "value_pearson"), (length, "length_pearson"), (both, "value_pearson_with_length")):
        assert np.corrcoef(known, table["value"])[0, 1] == pytest.approx(ceilings[name], abs=0.04)
    assert abs(pd.Series(length).groupby(module).mean().std()) < 0.06
    assert table["cds_length"].median() == pytest.approx(1290, rel=0.1)
    assert (table["cds_length"] % 3 == 0).all()
    group = groups["class"].transform(lambda classes: classes.mode()[0])
    assert (group == table["class"]).mean() == pytest.approx(ceilings["class_accuracy"], abs=0.03)
    assert table["class"].nunique() == 4


def test_without_noise_modules_answer_all(cells: AnnData) -> None:
    labels = simulate_gene_labels(cells, noise=0)
    module = module_of(cells, labels.properties["gene"])
    groups = labels.properties.groupby(module)
    assert (groups[["binary", "class"]].nunique() == 1).all(axis=None)
    assert labels.ceilings["binary_auroc"] == labels.ceilings["value_pearson_with_length"] == 1


def test_the_seed_alone_decides(cells: AnnData, labels: SimulatedLabels) -> None:
    same, other = (simulate_gene_labels(cells, seed=seed) for seed in (2, 3))
    pd.testing.assert_frame_equal(labels.pairs, same.pairs)
    pd.testing.assert_frame_equal(labels.properties, same.properties)
    assert not labels.pairs.equals(other.pairs)
    assert not labels.properties.equals(other.properties)
    assert len(simulate_gene_labels(cells, n_pairs=10).pairs) == 20


def test_bad_input_is_refused(cells: AnnData) -> None:
    for arguments, word in (
        ({"noise": 0.6}, "0.6"),
        ({"seed": -1}, "seed -1"),
        ({"n_pairs": 0}, "n_pairs is 0"),
        ({"n_pairs": 10**6}, "n_pairs is 1000000"),
    ):
        with pytest.raises(InputError, match=word):
            simulate_gene_labels(cells, **arguments)
    for n_modules in (0, 1):
        with pytest.raises(InputError, match=f"{n_modules} modules"):
            simulate_gene_labels(simulate_rna(n_cells=5, n_genes=60, n_modules=n_modules))
    with pytest.raises(InputError, match="simulate_rna"):
        simulate_gene_labels(AnnData(np.ones((2, 3))))


def test_the_command_writes_what_the_readers_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        ["simulate", "rna", "--cells", "30", "--genes", "400", "--modules", "8", "--seed", "4", "--out", str(tmp_path)]
    )
    said = capsys.readouterr().out
    assert str(tmp_path / "pairs.tsv") in said
    assert str(tmp_path / "properties.tsv") in said
    cells = anndata.read_h5ad(tmp_path / "rna.h5ad")
    labels = simulate_gene_labels(cells, seed=4)
    vocab = GeneVocab.from_names(cells.var_names, cells.var["symbol"])
    pairs = read_pairs(tmp_path / "pairs.tsv", vocab=vocab)
    assert pairs.account["kept"] == pairs.account["pairs_read"] == len(labels.pairs)
    assert pairs.account["negatives"] == "given"
    with pytest.raises(InputError, match="which column is the target"):
        read_gene_labels(tmp_path / "properties.tsv", vocab=vocab)
    table = labels.properties.set_index("gene").sort_index()
    for column, kind in (("binary", "binary"), ("value", "regression"), ("class", "multiclass")):
        for gene in (None, "symbol"):
            read = read_gene_labels(tmp_path / "properties.tsv", vocab=vocab, gene=gene, target=column)
            assert read.kind == kind
            assert read.values.tolist() == table[column].tolist()
            assert read.covariates["cds_length"].tolist() == table["cds_length"].tolist()
            assert read.account["kept"] == read.account["rows_read"]


def test_without_modules_the_command_writes_cells_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["simulate", "rna", "--cells", "20", "--genes", "40", "--modules", "1", "--out", str(tmp_path)])
    assert "no gene labels" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rna.h5ad", "run.json"]
