"""Matching of cells across modalities: nearest, mutual and one-to-one matches against plain definitions, and the command."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from expresser.cli import main
from expresser.errors import InputError
from tests.test_polarbear import made_of, network_of
from tests.translate_toys import toy_anndata, toy_fit
from translate import matching
from translate.matching import match_cells, nearest, one_to_one, paired_by_name
from translate.translator import Translator


def greedy(distance: np.ndarray) -> list[tuple[int, int]]:
    """The two nearest of all that are free, again and again."""
    left, found = distance.copy(), []
    while np.isfinite(left).any():
        i, j = np.unravel_index(np.argmin(left), left.shape)
        left[i], left[:, j] = np.inf, np.inf
        found.append((int(i), int(j)))
    return sorted(found)


def test_nearest_and_mutual_of_three_cells_by_hand():
    rna, atac = np.array([[0.0], [1.0], [9.0]]), np.array([[0.9], [5.0]])
    found = nearest(rna, atac, k=2)
    assert found.frame(pd.Index(list("abc")), pd.Index(list("xy"))).to_dict("list") == {
        "rna": ["a", "a", "b", "b", "c", "c"],
        "atac": ["x", "y", "x", "y", "y", "x"],
        "distance": pytest.approx([0.81, 25, 0.01, 16, 16, 65.61]),
        "rank": [1, 2, 1, 2, 1, 2],
        # x's two nearest are b and a, y's are b and c.
        "mutual": [True, False, True, True, True, False],
    }
    only, how = match_cells(rna, atac, mutual=True)
    assert list(zip(only.rna, only.atac)) == [(1, 0)]  # y's nearest, b, has x: as near as c, but first
    assert how == "mutually nearest"


@pytest.mark.parametrize("budget_mb", [256.0, 0.001])
def test_nearest_are_those_of_all_distances(budget_mb):
    rng = np.random.default_rng(0)
    rna, atac = rng.normal(size=(90, 6)).astype(np.float32) + 30, rng.normal(size=(70, 6)).astype(np.float32) + 30
    distance = cdist(rna.astype(float), atac.astype(float), "sqeuclidean")
    found = nearest(rna, atac, k=4, budget_mb=budget_mb)
    np.testing.assert_array_equal(found.atac.reshape(90, 4), np.argsort(distance, axis=1)[:, :4])
    np.testing.assert_allclose(found.distance, np.sort(distance, axis=1)[:, :4].ravel(), rtol=1e-9)
    back = np.argsort(distance, axis=0)[:4]
    np.testing.assert_array_equal(found.mutual, [i in back[:, j] for i, j in zip(found.rna, found.atac)])


@pytest.mark.parametrize(("rows", "columns"), [(60, 60), (80, 30), (30, 80)])
def test_one_to_one_is_the_best_of_few_and_the_nearest_first_of_many(rows, columns, monkeypatch):
    rng = np.random.default_rng(1)
    rna, atac = rng.normal(size=(rows, 3)), rng.normal(size=(columns, 3))
    distance = cdist(rna, atac, "sqeuclidean")
    best, optimal = one_to_one(rna, atac)
    assert optimal
    np.testing.assert_array_equal([best.rna, best.atac], linear_sum_assignment(distance))
    monkeypatch.setattr(matching, "OPTIMAL", 0)
    monkeypatch.setattr(matching, "_CANDIDATES", 3)  # so that cells run out of those they know
    for budget in (256.0, 0.001):
        found, optimal = one_to_one(rna, atac, budget_mb=budget)
        assert not optimal
        assert list(zip(found.rna.tolist(), found.atac.tolist())) == greedy(distance)
        assert len(found.rna) == min(rows, columns)
        np.testing.assert_allclose(found.distance, distance[found.rna, found.atac])
        rank = 1 + (distance[found.rna] < found.distance[:, None] - 1e-9).sum(axis=1)
        np.testing.assert_array_equal(found.rank, rank)
        column = 1 + (distance[:, found.atac] < found.distance - 1e-9).sum(axis=0)
        np.testing.assert_array_equal(found.mutual, (rank == 1) & (column == 1))


def test_the_same_cells_are_matched_to_themselves_in_any_order():
    rng = np.random.default_rng(2)
    rna = rng.normal(size=(50, 4)).astype(np.float32)
    names = pd.Index([f"c{i}" for i in range(50)])
    order = rng.permutation(50)
    found, _ = match_cells(rna, rna[order])
    assert found.mutual.all()
    assert (found.distance == 0).all()
    frame = found.frame(names, names[order])
    assert (frame.rna == frame.atac).all()
    said = paired_by_name(rna, rna[order], names, names[order], found)
    assert "50 cells are in both by name. FOSCTTM from RNA 0.0000, from ATAC 0.0000" in said
    assert "50 of them are matched to themselves" in said
    assert paired_by_name(rna, rna, names, names + "x", found) is None


def test_what_cannot_be_matched_is_refused():
    with pytest.raises(InputError, match="in one space"):
        nearest(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(InputError, match="--k 4 of 3 ATAC cells"):
        nearest(np.zeros((5, 2)), np.zeros((3, 2)), k=4)
    with pytest.raises(InputError, match="ATAC are not finite"):
        one_to_one(np.zeros((5, 2)), np.full((3, 2), np.nan))


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit with one latent for both, one with none, and files of the cells they were fitted to."""
    folder = tmp_path_factory.mktemp("match")
    toy_fit("babel", folder / "babel", epochs=1)
    toy_fit("babel", folder / "four", epochs=1, shared=False)
    made = toy_anndata()
    for modality in ("rna", "atac"):
        made[modality].write_h5ad(folder / f"{modality}.h5ad")
    return folder


def test_the_command_writes_a_table_and_says_how_well_names_are_found_again(fits: Path, tmp_path: Path, capsys):
    files = ["--rna", str(fits / "rna.h5ad"), "--atac", str(fits / "atac.h5ad")]
    out = tmp_path / "matches.tsv"
    assert main(["translate", "match", str(fits / "babel"), *files, "--k", "2", "--out", str(out)]) in (None, 0)
    table = pd.read_csv(out, sep="\t")
    assert list(table) == ["rna", "atac", "distance", "rank", "mutual"]
    assert len(table) == 240
    assert (table.groupby("rna").distance.diff().dropna() >= 0).all()
    said = capsys.readouterr().out
    assert "240 matches of 120 RNA and 120 ATAC cells" in said
    assert "120 cells are in both by name. FOSCTTM from RNA" in said
    main(["translate", "match", str(fits / "babel"), *files, "--one-to-one", "--space", "rna", "--out", str(out)])
    table = pd.read_csv(out, sep="\t")
    assert len(table) == table.rna.nunique() == table.atac.nunique() == 120
    assert "one to one, the least sum of distances; latent of rna" in capsys.readouterr().out


def test_cells_of_an_unknown_batch_are_taken_for_one_that_is_named(tmp_path: Path, capsys):
    network, _ = network_of()
    Translator("polarbear", network, network.inputs, {}).save(tmp_path / "model")
    made = made_of()
    for modality in ("rna", "atac"):
        made[modality].obs["donor"] = "strange"
        made[modality].write_h5ad(tmp_path / f"{modality}.h5ad")
    files = ["--rna", str(tmp_path / "rna.h5ad"), "--atac", str(tmp_path / "atac.h5ad")]
    quick = ["--no-baselines", "--no-maps"]
    for command, more, out in (("match", [], "m.tsv"), ("evaluate", quick, "judged")):
        asked = ["translate", command, str(tmp_path / "model"), *files, *more, "--out", str(tmp_path / out)]
        with pytest.raises(SystemExit):
            raise SystemExit(main(asked))
        assert "--batch NAME" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / out).exists()
        assert main([*asked, "--batch", "reference"]) in (None, 0)
    assert len(pd.read_csv(tmp_path / "m.tsv", sep="\t")) == 120
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text())["unknown_batch"] == "reference"


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        ("four", "", "babel has no latent in which cells of RNA and of ATAC can be compared"),
        ("babel", "--space atac", "babel compares cells in the latent of rna"),
        ("babel", "--one-to-one --k 3", "leave --k and --mutual out"),
        ("babel", "--budget-mb 0", "give some memory"),
        ("babel", "--k 121", "--k 121 of 120 ATAC cells"),
    ],
)
def test_bad_options_are_one_message(fits: Path, tmp_path: Path, capsys, model: str, options: str, words: str):
    argv = ["translate", "match", str(fits / model), "--rna", str(fits / "rna.h5ad"), "--atac", str(fits / "atac.h5ad")]
    with pytest.raises(SystemExit) as stopped:
        raise SystemExit(main([*argv, *options.split(), "--out", str(tmp_path / "x.tsv")]))
    assert stopped.value.code not in (None, 0)
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "x.tsv").exists()
