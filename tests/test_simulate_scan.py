"""Cells drawn from bulk profiles: without replacement, with the right probabilities and totals, in the designs asked for."""

import itertools
import shlex
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import stats

from expresser.cli import main
from expresser.commands_simulate import SIMULATE
from expresser.errors import InputError
from expresser.simulate import simulate_scan_atac
from expresser.simulate.genome import AUTOSOMES
from expresser.simulate.scan_atac import ScanCells, Urn, draw_depths, draw_fragments
from expresser.simulate.scan_bulk import read_bulk
from expresser.simulate.scan_designs import DESIGNS

SMALL = {"n_cells": 600, "n_regions": 3000, "depth": 0.1}


@pytest.fixture(scope="module")
def sim3() -> AnnData:
    return simulate_scan_atac("sim3", **SMALL, seed=1)


def inclusion(weight: np.ndarray, n: int) -> np.ndarray:
    """Probability of each region to be among the first n of successive draws without replacement, by enumeration."""
    out = np.zeros(len(weight))
    for order in itertools.permutations(range(len(weight)), n):
        left, chance = weight.sum(), 1.0
        for i in order:
            chance *= weight[i] / left
            left -= weight[i]
        out[list(order)] += chance
    return out


# --- the race ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 3, 5])
def test_regions_are_drawn_with_the_probabilities_of_successive_draws(n: int) -> None:
    weight = np.array([8.0, 4, 2, 1, 1, 0.5, 0])
    urn, rng, times = Urn.of(weight), np.random.default_rng(0), 8000
    seen = np.bincount(np.concatenate([urn.draw(rng, n) for _ in range(times)]), minlength=7) / times
    expected = np.r_[inclusion(weight[:6], n), 0]
    error = np.sqrt(expected * (1 - expected) / times)
    assert (np.abs(seen - expected) <= 4 * error + 1e-12).all()


def test_the_shortcut_of_the_race_is_as_good_as_sorting_everybody() -> None:
    rng = np.random.default_rng(1)
    weight = np.exp(rng.normal(0, 1.5, 4000))
    urn = Urn.of(weight)
    for n in (1, 40, 1000, 3900, 4000):
        drawn = urn.draw(np.random.default_rng(7), n)
        waits = np.random.default_rng(7).standard_exponential(4000, dtype=np.float32) / urn.weight
        np.testing.assert_array_equal(np.sort(drawn), np.sort(np.argsort(waits)[:n]))


def test_brute_force_with_many_regions_agrees() -> None:
    weight = np.exp(np.random.default_rng(2).normal(0, 1, 60))
    urn, rng = Urn.of(weight), np.random.default_rng(3)
    race = np.bincount(np.concatenate([urn.draw(rng, 20) for _ in range(2000)]), minlength=60)
    brute = np.bincount(
        np.concatenate([rng.choice(60, 20, replace=False, p=weight / weight.sum()) for _ in range(2000)]), minlength=60
    )
    z = (race - brute) / np.sqrt((race + brute) * (1 - (race + brute) / 4000))
    assert np.abs(z).max() < 4.5
    assert stats.kstest(z, "norm").pvalue > 1e-3


def test_more_than_there_is_cannot_be_drawn() -> None:
    urn = Urn.of(np.array([1.0, 0.0, 2.0]))
    assert sorted(urn.draw(np.random.default_rng(0), 2)) == [0, 2]
    assert len(urn.draw(np.random.default_rng(0), 0)) == 0
    with pytest.raises(InputError, match="3 of 2 regions"):
        urn.draw(np.random.default_rng(0), 3)


# --- cells ---------------------------------------------------------------------------------------------------------------------


def test_each_part_gives_its_exact_number_and_no_region_more_than_twice() -> None:
    rng = np.random.default_rng(0)
    fragments = np.array([1, 2, 3, 60, 101, 0])
    cells = ScanCells(np.array([0, 1, 0, 1, 0, 1]), fragments, np.array([0.4, 0.4, 0.5, 0.4, 0.5, 0.5]))
    peaks = np.zeros((200, 2))
    peaks[:60, 0], peaks[30:90, 1] = rng.random(60) + 0.1, 1
    background = np.zeros(200)
    background[100:] = 1  # apart, so that the parts can be told from one another
    urns = [Urn.of(peaks[:, 0]), Urn.of(peaks[:, 1])]
    x = draw_fragments({"seed": 5}, cells, urns, Urn.of(background), 200, slice(None)).toarray()
    np.testing.assert_array_equal(x.sum(axis=1), fragments)
    np.testing.assert_array_equal(x[:, :100].sum(axis=1), np.rint(fragments * cells.signal))
    assert x.max() == 2
    assert (x[cells.cell_type == 0][:, 60:100] == 0).all()
    assert (x[cells.cell_type == 1][:, :30] == 0).all()


def test_how_cells_are_parted_does_not_matter(sim3: AnnData) -> None:
    again = simulate_scan_atac("sim3", **SMALL, seed=1)
    assert (again.X != sim3.X).nnz == 0
    pd.testing.assert_frame_equal(again.obs, sim3.obs)
    assert (simulate_scan_atac("sim3", **SMALL, seed=2).X != sim3.X).nnz > 0
    weight = sim3.varm["bulk"]
    urns, background = [Urn.of(weight[name].to_numpy()) for name in weight], Urn.of(sim3.var["background"].to_numpy())
    signal = sim3.obs["batch"].map({"batch0": 0.4, "batch1": 0.5}).to_numpy(np.float64)
    cells = ScanCells(sim3.obs["cell_type"].cat.codes.to_numpy(np.int64), sim3.obs["depth"].to_numpy(np.int64), signal)
    for part in (slice(0, 1), slice(17, 40), slice(550, 600)):
        drawn = draw_fragments({"seed": 1}, cells, urns, background, sim3.n_vars, part)
        assert (drawn != sim3.X[part]).nnz == 0


def test_depth_is_log_normal_between_its_limits() -> None:
    rng = np.random.default_rng(0)
    n = draw_depths(rng, 50_000, median=5000, sigma=1.5, fewest=1000, most=20_000)
    assert np.median(n) == pytest.approx(5000, rel=0.03)
    assert (n == 1000).mean() == pytest.approx(stats.norm.cdf(np.log(1 / 5) / 1.5), abs=0.01)
    assert (n == 20_000).mean() == pytest.approx(stats.norm.sf(np.log(4) / 1.5), abs=0.01)
    inside = np.log(n[(n > 1000) & (n < 20_000)] / 5000)
    cut = stats.truncnorm(np.log(1 / 5) / 1.5, np.log(4) / 1.5, scale=1.5)
    assert stats.kstest(inside, cut.cdf).pvalue > 1e-3
    assert (draw_depths(rng, 5, median=700.0, sigma=0, fewest=1, most=1e6) == 700).all()


# --- designs -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("design", list(DESIGNS))
def test_the_designs_have_the_cells_they_name(design: str) -> None:
    """At full size, of which only the table is made."""
    from expresser.simulate.scan_designs import _cells

    plan = DESIGNS[design]
    args = {"design": design, "n_cells": 10_000, "sigma": 1.5, "depth": 1.0, "fewest": 1000, "most": 20_000, "seed": 0}
    cells, batch = _cells(args, plan, len(plan.types))
    numbers = dict(zip(plan.types, np.bincount(cells.cell_type)))
    assert sum(numbers.values()) == 10_000
    if design == "sim1":
        assert numbers == {"type0": 2475, "type1": 2475, "type2": 2475, "type3": 2475, "rare": 100}
    elif design == "sim2":
        assert len(numbers) == 9
        assert set(numbers.values()) == {1111, 1112}
    else:
        assert numbers["rare0"] == numbers["rare1"] == 100
        assert np.bincount(batch).tolist() == [5000, 5000]
        for rare, own in ((4, 0), (5, 1)):
            assert (batch[cells.cell_type == rare] == own).all()
        for common in range(4):
            assert np.bincount(batch[cells.cell_type == common]).tolist() == [1225, 1225]
    expected = {"sim1": [(5000, 0.4)], "sim2": [(3000, 0.4)], "sim3": [(2500, 0.4), (5000, 0.5)]}[design]
    for number, (median, signal) in enumerate(expected):
        here = batch == number
        assert np.median(cells.fragments[here]) == pytest.approx(median, rel=0.08)
        assert (cells.signal[here] == signal).all()


def test_layout(sim3: AnnData, tmp_path: Path) -> None:
    assert sim3.shape == (600, 3000)
    assert sim3.X.has_sorted_indices
    assert sim3.X.dtype == np.float32
    assert sim3.X.data.min() >= 1
    assert sim3.X.data.max() <= 4
    np.testing.assert_array_equal(np.asarray(sim3.X.sum(axis=1)).ravel(), sim3.obs["depth"])
    assert set(sim3.var["chrom"]) <= set(AUTOSOMES["hg38"])
    names = [f"{c}:{s}-{e}" for c, s, e in zip(sim3.var["chrom"], sim3.var["start"], sim3.var["end"])]
    assert list(sim3.var_names) == names
    assert list(sim3.varm["bulk"].columns) == list(sim3.obs["cell_type"].cat.categories)
    sim3.write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(back.varm["bulk"].to_numpy(), sim3.varm["bulk"].to_numpy())
    assert back.uns["simulation"]["batches"]["batch1"]["signal"] == 0.5
    assert list(back.uns["simulation"]["twins"]) == ["rare0", "rare1"]


def test_what_types_share_and_where_the_twins_differ(sim3: AnnData) -> None:
    opened = (sim3.varm["bulk"] > 0).to_numpy()
    assert (opened.sum(axis=0) == 900).all()
    differ = np.array([[(a != b).sum() / 1800 for b in opened.T] for a in opened.T])
    assert differ[4, 5] == 0.05
    others = differ[np.triu_indices(6, 1)]
    assert others[others != 0.05].min() > 0.14  # of two types that each replace a tenth, at random, 0.19
    signal = sim3.varm["bulk"].to_numpy()
    strength = signal.max(axis=1, keepdims=True)
    assert ((signal == 0) | (signal == strength)).all()


def test_pseudobulk_recovers_the_profiles_and_the_background() -> None:
    # Shallow, so that a region's fragments are in proportion to its weight.
    made = simulate_scan_atac("sim2", n_cells=2700, n_regions=1000, depth=0.02, sigma=0.5, seed=4)
    rho, weight = 0.4, made.varm["bulk"] / made.varm["bulk"].sum()
    for name in weight:
        sums = np.asarray(made.X[(made.obs["cell_type"] == name).to_numpy()].sum(axis=0)).ravel()
        expected = rho * weight[name].to_numpy() + (1 - rho) * made.var["background"].to_numpy()
        assert np.corrcoef(sums / sums.sum(), expected)[0, 1] > 0.93
        shares = {other: np.corrcoef(sums, weight[other])[0, 1] for other in weight}
        if name not in ("type7", "type8"):
            assert max(shares, key=lambda other: shares[other]) == name
        closed = weight[name].to_numpy() == 0
        assert sums[closed].sum() / sums.sum() == pytest.approx(expected[closed].sum(), rel=0.05)


def test_the_twins_are_the_hard_pair_yet_a_reader_of_the_profiles_tells_them_apart() -> None:
    made = simulate_scan_atac("sim2", n_cells=900, n_regions=6000, depth=0.2, seed=2)
    names = made.varm["bulk"].columns.to_numpy()
    chance = 0.4 * (made.varm["bulk"] / made.varm["bulk"].sum()).to_numpy() + 0.6 * made.var[["background"]].to_numpy()
    best = names[np.asarray(made.X @ np.log(chance)).argmax(axis=1)]
    true = made.obs["cell_type"].astype(str).to_numpy()
    twins = np.isin(true, ["type7", "type8"])
    assert (best == true)[~twins].mean() > 0.999
    assert 0.8 < (best == true)[twins].mean() < 1.0  # shallow cells are the hard ones
    deep = twins & (made.obs["depth"].to_numpy() >= 600)
    assert (best == true)[deep].mean() > 0.97


# --- bulk files ----------------------------------------------------------------------------------------------------------------


def bulk_table(n: int = 400, types: int = 6) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    index = pd.Index([f"chr{1 + i // 100}:{1000 * i}-{1000 * i + 500}" for i in range(n)], name="region")
    values = rng.gamma(1, 1, (n, types)).round(3) * (rng.random((n, types)) < 0.6)
    return pd.DataFrame(values, index=index, columns=[f"T{i}" for i in range(types)])


@pytest.mark.parametrize("suffix", ["tsv", "csv", "csv.gz", "parquet"])
def test_profiles_come_from_a_file(tmp_path: Path, suffix: str) -> None:
    table, path = bulk_table(), tmp_path / f"bulk.{suffix}"
    if suffix == "parquet":
        table.to_parquet(path)
    else:
        table.to_csv(path, sep="\t" if suffix == "tsv" else ",")
    made = simulate_scan_atac("sim1", n_cells=100, bulk=path, depth=0.02, types=("T5", "T0", "T1", "T2", "T3"))
    assert list(made.obs["cell_type"].cat.categories) == ["T5", "T0", "T1", "T2", "T3"]
    assert (made.obs["cell_type"] == "T3").sum() == 1
    np.testing.assert_allclose(made.varm["bulk"]["T5"], table["T5"])
    assert list(made.var_names) == list(table.index)
    assert made.uns["simulation"]["n_regions"] == 400
    first = simulate_scan_atac("sim1", n_cells=100, bulk=path, depth=0.02)
    assert list(first.varm["bulk"].columns) == ["T0", "T1", "T2", "T3", "T4"]


def test_a_background_column_is_no_type(tmp_path: Path) -> None:
    table = bulk_table().assign(background=np.r_[np.ones(200), np.zeros(200)])
    table.index = [name.replace(":", "-") for name in table.index]
    table.to_csv(tmp_path / "b.csv")
    found = read_bulk(tmp_path / "b.csv", np.random.default_rng(0))
    assert "background" not in found.signal
    assert found.signal.index[1] == "chr1:1000-1500"
    np.testing.assert_allclose(found.background, np.r_[np.full(200, 1 / 200), np.zeros(200)])


def spoiled(kind: str) -> pd.DataFrame:
    table = bulk_table().astype(object)
    if kind == "negative":
        table.iloc[3, 2] = -1.0
    elif kind == "text":
        table.iloc[3, 2] = "high"
    elif kind == "missing":
        table.iloc[3, 2] = None
    elif kind == "names":
        table = table.rename(index={table.index[7]: "geneA"})
    elif kind == "twice":
        table = table.rename(index={table.index[7]: table.index[6]})
    elif kind == "zero":
        table["T4"] = 0.0
    elif kind == "few":
        table = table[["T0", "T1"]]
    elif kind == "empty":
        table = table.iloc[:0]
    return table


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("negative", r"column 'T2' holds '-1\.0'.*numbers, 0 or more"),
        ("text", "column 'T2' holds 'high'"),
        ("missing", "column 'T2' holds 'nan'"),
        ("names", "1 of 400 .*geneA"),
        ("twice", "is there twice"),
        ("zero", "'T4' is 0 everywhere"),
        ("few", "2 types.*sim1 takes 5"),
        ("empty", "0 regions x 6 types"),
    ],
)
def test_a_bad_bulk_file_is_refused_and_said_why(tmp_path: Path, kind: str, said: str) -> None:
    spoiled(kind).to_csv(tmp_path / "bulk.tsv", sep="\t")
    with pytest.raises(InputError, match=said) as caught:
        simulate_scan_atac("sim1", n_cells=100, bulk=tmp_path / "bulk.tsv", depth=0.02)
    assert str(tmp_path / "bulk.tsv") in str(caught.value)


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("not parquet")
    (tmp_path / "a.bw").write_text("")
    (tmp_path / "a.csv").write_text("")
    for name, said in (
        ("a.parquet", "cannot be read"),
        ("a.bw", "does not say"),
        ("a.csv", "cannot be read"),
        ("b.csv", "b.csv"),
    ):
        with pytest.raises(InputError, match=said):
            simulate_scan_atac(n_cells=100, bulk=tmp_path / name)
    bulk_table().to_csv(tmp_path / "c.csv")
    with pytest.raises(InputError, match=r"no column 'T9'.*'T0', 'T1'"):
        simulate_scan_atac(n_cells=100, bulk=tmp_path / "c.csv", types=("T9",))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"design": "sim4"}, "'sim4'.*sim1, sim2, sim3"),
        ({"sigma": -1.0}, "sigma is -1"),
        ({"fewest": 30_000}, "at most 20000"),
        ({"n_cells": 20}, "of 20 cells of batch0 a type of sim1 would have none"),
        ({"n_regions": 300, "depth": 1.0}, "different peaks of its type in one round, and there are 90"),
        ({"types": ("a",)}, "bulk file"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_refused(given: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        simulate_scan_atac(**{"n_cells": 200, **given})


# --- the command ---------------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    SIMULATE.run(shlex.split(f"atac --design sim3 --out {tmp_path} --cells 200 --regions 1000 --depth 0.03 --seed 3"))
    assert "200 cells x 1,000 regions" in capsys.readouterr().out
    made = anndata.read_h5ad(tmp_path / "atac.h5ad")
    same = simulate_scan_atac("sim3", n_cells=200, n_regions=1000, depth=0.03, seed=3)
    assert (made.X != same.X).nnz == 0
    assert made.obs["batch"].nunique() == 2


def test_help_and_bad_input_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["simulate", "atac", "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("--design", "--bulk", "--sigma", "--twin-flips", "Example"))
    with pytest.raises(SystemExit) as left:
        main(["simulate", "atac", "--out", str(tmp_path), "--regions", "300", "--cells", "200", "--depth", "1"])
    assert left.value.code == 2
    assert "Ask for more regions" in capsys.readouterr().err
    assert not (tmp_path / "atac.h5ad").exists()
