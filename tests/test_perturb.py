"""Perturbation: known changes of linear systems, a null that is one, links by correlation, and the command."""

import json
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats
from test_attribution import linear
from translate_toys import ATAC, RNA, toy_anndata, toy_fit, toy_measured, toy_study

from expresser.errors import InputError
from expresser.regions import Regions
from translate import perturb as perturbing
from translate.attribution import Attribution
from translate.cli_perturb import perturb as command
from translate.feed import Feed
from translate.fitting import build
from translate.peak_links import agreement, correlate, of_matrix, pairs_near
from translate.perturb import Change, perturb
from translate.perturb_names import target_label
from translate.perturb_page import perturb_page
from translate.perturb_run import Asked, examine, top_effects
from translate.polarbear import PolarbearConfig
from translate.preprocess import AtacInput, RnaInput
from translate.translator import Translator


@pytest.fixture(scope="module")
def made():
    return toy_anndata(seed=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tmp_path_factory.mktemp("babel") / "run"


@pytest.fixture(scope="module")
def babel(model) -> Translator:
    return toy_fit("babel", model, toy_study(seed=1))


@pytest.fixture(scope="module")
def fits(tmp_path_factory, babel):
    """Of a system's name: a small fit, made when it is first asked for."""
    made = {"babel": babel}

    def of(system: str) -> Translator:
        if system not in made:
            made[system] = toy_fit(system, tmp_path_factory.mktemp(system) / "run", toy_study(seed=1))
        return made[system]

    return of


# ---- changes ------------------------------------------------------------------------------------------------------------


def test_peaks_are_opened_and_closed():
    matrix = sparse.csr_matrix(np.array([[1, 0, 1, 0], [0, 0, 1, 1]], np.float32))
    new = Change("atac", np.array([0, 1]), np.array([0.0, 1.0])).on(matrix)
    np.testing.assert_array_equal(new.toarray(), [[0, 1, 1, 0], [0, 1, 1, 1]])
    assert new.nnz == 5
    assert new.dtype == np.float32


def test_genes_are_knocked_down_and_raised():
    counts = sparse.csr_matrix(np.array([[4, 0, 6], [0, 10, 10], [2, 2, 0]], np.float32))
    down = Change("rna", np.array([0, 2]), np.array([0.25, 0.0])).on(counts, 10.0).toarray()
    np.testing.assert_allclose(down, [[1, 0, 0], [0, 10, 0], [0.5, 2, 0]], atol=1e-6)
    # Gene 0 is 4 and 5 of 10 where it is expressed: 4.5 on average, and 9 in a cell twice as deep, doubled.
    up = Change("rna", np.array([0]), np.array([2.0])).on(counts, 10.0).toarray()
    np.testing.assert_allclose(up, [[8, 0, 6], [18, 10, 10], [4, 2, 0]], rtol=1e-6)


def test_random_features_are_as_many_others_that_are_alike():
    level = np.linspace(0, 1, 1000)
    change = Change("atac", np.array([100, 101, 500, 999]), np.array([0.0, 0.0, 1.0, 0.0]))
    drawn = [change.drawn(level, np.random.default_rng(seed)) for seed in range(50)]
    for one in drawn:
        assert len(np.unique(one.features)) == 4
        assert not set(one.features) & set(change.features)
        assert (np.abs(one.features - change.features) <= perturbing.NEIGHBOURS + 4).all()
        np.testing.assert_array_equal(one.factor, change.factor)
    middle = np.array([one.features[2] for one in drawn])
    assert (middle < 500).any()
    assert (middle > 500).any()
    again = change.drawn(level, np.random.default_rng(7))
    np.testing.assert_array_equal(again.features, drawn[7].features)


def test_random_features_of_one_level_are_all_drawn_and_each_once():
    level = np.repeat([0.0, 0.5, 1.0], 300)
    change = Change("atac", np.arange(310, 560), np.zeros(250))
    drawn = [change.drawn(level, np.random.default_rng(seed)).features for seed in range(20)]
    for one in drawn:
        assert len(np.unique(one)) == 250
        assert not set(one) & set(change.features)
    often = np.bincount(np.concatenate(drawn), minlength=900)
    assert often[300:310].all()  # every other of their level
    assert often[560:600].all()
    single = [Change("atac", np.array([450]), np.zeros(1)).drawn(level, np.random.default_rng(s)) for s in range(200)]
    at = np.array([one.features[0] for one in single])
    assert ((at >= 400) & (at < 500)).any()
    assert ((at < 330) & (at >= 200)).any()


def test_many_draws_of_many_features_take_about_a_second():
    rng = np.random.default_rng(0)
    level = np.round(rng.beta(0.5, 5, 20_000), 3)  # shares of open cells: many are the same
    change = Change("atac", rng.choice(20_000, 2000, replace=False), np.zeros(2000))
    began = time.process_time()
    for _ in range(100):
        drawn = change.drawn(level, rng)
    assert time.process_time() - began < 4
    assert len(np.unique(np.r_[drawn.features, change.features])) == 4000
    assert np.abs(np.sort(level[drawn.features]) - np.sort(level[change.features])).mean() < 0.01


# ---- effects ------------------------------------------------------------------------------------------------------------


def test_of_a_linear_system_a_closed_peak_takes_its_weight_away(babel, made):
    ours = linear(babel)
    change = Change.of(ours, close=["chr1:1000-1500", "chr2:35000-36000"])
    effects = perturb(ours, made["atac"], change, labels="kind", n_null=3)
    weight = (ours.system.read["atac"].weight @ ours.system.out["rna"].weight.T).detach().numpy()[change.features]
    opened = babel.inputs["atac"].align(toy_measured(made["atac"], "atac")).toarray()[:, change.features]
    kind = made["atac"].obs["kind"].to_numpy()
    for group, rows in effects.table.groupby("group", sort=False):
        theirs = -(opened if group == "all" else opened[kind == group]) @ weight
        np.testing.assert_allclose(rows["change"], theirs.mean(axis=0), atol=1e-5)
        np.testing.assert_allclose(rows["sd"], theirs.std(axis=0, ddof=1), atol=1e-5)
        np.testing.assert_allclose(rows["sem"], theirs.std(axis=0, ddof=1) / np.sqrt(len(theirs)), atol=1e-5)
        np.testing.assert_allclose(rows["effect"], rows["change"] / rows["sd"])
        assert (rows["cells"] == len(theirs)).all()
    assert effects.n_changed == (opened.sum(axis=1) > 0).sum()


@pytest.mark.parametrize("source", ["atac", "rna"])
def test_effects_are_differences_of_what_is_predicted_for_changed_files(babel, made, source, monkeypatch):
    monkeypatch.setattr(perturbing, "_ENTRIES", 1200)  # ten features at a time
    given = made[source]
    if source == "atac":
        change, to = Change.of(babel, opened=["chr1:1000-3500"], close=["chr21:115000-116000"]), "rna"
        names = babel.var("atac").index[change.features]
        new = given.copy()
        dense = (new.X.toarray() > 0).astype(np.float32)
        dense[:, given.var_names.get_indexer(names)] = change.factor
        new.X = sparse.csr_matrix(dense)
    else:
        change, to = Change.of(babel, knock_down=["GENE004"]), "atac"
        new = given.copy()
        dense = new.X.toarray()
        dense[:, given.var_names.get_loc("GENE004")] = 0
        new.X = sparse.csr_matrix(dense)
    effects = perturb(babel, given, change, n_null=0)
    delta = babel.translate(new, to, source=source).X - babel.translate(given, to, source=source).X
    np.testing.assert_allclose(effects.table["change"], delta.mean(axis=0), atol=1e-6)
    assert "p" not in effects.table


def test_closing_closed_peaks_and_silencing_silent_genes_change_nothing(babel, made):
    number = int(np.flatnonzero(babel.var("atac").index == "chr1:1000-1500")[0])
    closed = made["atac"][made["atac"][:, "chr1:1000-1500"].X.toarray().ravel() == 0].copy()
    effects = perturb(babel, closed, Change("atac", np.array([number]), np.array([0.0])), n_null=9)
    assert effects.n_changed == 0
    assert (effects.table["change"] == 0).all()
    assert (effects.table["p"] == 1).all()
    assert not len(top_effects(effects.table, 5))
    silent = made["rna"][made["rna"][:, "GENE000"].X.toarray().ravel() == 0].copy()
    if silent.n_obs:
        effects = perturb(babel, silent, Change.of(babel, knock_down=["GENE000"]), n_null=2)
        assert (effects.table["change"] == 0).all()


@pytest.mark.parametrize(
    ("n_changes", "n_null", "slack"), [(10, 19, 0.2), pytest.param(40, 39, 0.06, marks=pytest.mark.slow)]
)
def test_the_null_is_one_where_the_change_is_no_other_than_random_ones(babel, made, n_changes, n_null, slack):
    ours = linear(babel)  # every peak has a random weight for every gene
    cells = made["atac"][:60].copy()
    rng = np.random.default_rng(0)
    level = np.asarray(babel.inputs["atac"].align(toy_measured(cells, "atac")).mean(axis=0), np.float64).ravel()
    p = []
    for seed in range(n_changes):
        start = Change("atac", rng.choice(len(level), 3, replace=False), np.zeros(3))
        table = perturb(ours, cells, start.drawn(level, rng), n_null=n_null, seed=seed).table
        p.append(table["p"].to_numpy())
        assert table["p"].min() >= 1 / (n_null + 1)
    p = np.array(p)
    assert np.mean(p) == pytest.approx((n_null + 2) / (2 * n_null + 2), abs=slack)
    assert np.mean(p <= 0.1) == pytest.approx(0.1, abs=slack)
    # Genes that share a latent go together, so it is one gene's draws that can be tested.
    assert stats.kstest(p[:, 0], "uniform").pvalue > 0.01


def test_the_seed_decides_the_null_and_nothing_else(babel, made):
    change = Change.of(babel, close=["chr1:1000-1500"])
    one, again, other = (perturb(babel, made["atac"], change, n_null=5, seed=s).table for s in (1, 1, 2))
    pd.testing.assert_frame_equal(one, again)
    np.testing.assert_array_equal(one["change"], other["change"])
    assert not np.allclose(one["null_mean"], other["null_mean"])


@pytest.fixture(scope="module")
def deep(made) -> Translator:
    """A Polarbear whose peaks answer nothing but the depth that it predicts from the RNA's total count."""
    study = toy_study(seed=1)
    cells = np.arange(study.n_cells)
    config = PolarbearConfig(rna=RNA, atac=ATAC, latent=3, atac_hidden=6, rna_hidden=10)
    inputs = {
        "rna": RnaInput.fit(study.measured["rna"], cells, RNA),
        "atac": AtacInput.fit(study.measured["atac"], cells, ATAC),
    }
    network = build("polarbear", config, inputs, 0)
    network.prepare(Feed.of(study, inputs, counts=True), cells)
    with torch.no_grad():
        for parameter in network.rna_to_atac.parameters():
            parameter.zero_()
        network.depth_weight.zero_()[network.config.latent] = 1.0
        network.depth_bias.fill_(
            float(network.depth.log()) - float(np.log(study.measured["rna"].matrix.sum(axis=1)).mean())
        )
        network.depth_range.copy_(torch.tensor([-9.0, 9.0]))
    return Translator("polarbear", network.eval(), inputs, {})


def test_a_change_is_measured_at_the_depth_of_the_unchanged_cell(deep, made):
    deeper = made["rna"].copy()
    deeper.X = deeper.X.multiply(2).tocsr()
    whole, twice = (deep.predict(toy_measured(m, "rna"), source="rna", to="atac") for m in (made["rna"], deeper))
    cells, peaks = slice(0, 120), slice(0, 50)
    assert (twice.block(cells, peaks) > whole.block(cells, peaks)).mean() > 0.9  # it predicts at the depth it tells
    effects = perturb(deep, made["rna"], Change.of(deep, knock_down=["GENE004"]), n_null=3)
    assert effects.n_changed > 50
    np.testing.assert_allclose(effects.table["change"], 0, atol=1e-7)
    back = perturb(deep, made["atac"], Change.of(deep, close=["chr1:1000-1500"]), to="atac", n_null=0)
    taken = deep.predict(toy_measured(made["atac"], "atac"), source="atac", to="atac")
    np.testing.assert_allclose(back.table["before"], taken.block(slice(0, 120), slice(0, 120)).mean(axis=0), rtol=1e-5)


def test_links_are_of_peaks_at_one_depth(deep, made):
    measured = toy_measured(made["rna"], "rna")
    found = examine(deep, measured, "rna", Asked(targets=("chr1:4000-4400",), n_steps=2, cells=10))
    assert (
        found.links["r_to_atac"].abs().fillna(0).mean() < 0.02
    )  # its peaks do not differ between cells, but for depth
    both = examine(
        deep,
        toy_measured(made["atac"], "atac"),
        "atac",
        Asked(targets=("GENE004",), n_steps=2, cells=10),
        paired=measured,
    )
    assert both.links["r_to_atac"].abs().fillna(0).mean() < 0.02
    assert both.links["r_to_rna"].notna().any()


@pytest.mark.parametrize("system", ["babel", "scmog", "polarbear", "scact"])
@pytest.mark.parametrize("source", ["atac", "rna"])
def test_of_every_system_a_change_is_what_is_predicted_after_it_less_before(system, source, made, fits):
    """Done by hand in the counts; what a system is told beside the latent (batch, depth) is that of the unchanged cell."""
    ours, to = fits(system), "rna" if source == "atac" else "atac"
    asked = {"close": ["chr1:1000-1500", "chr2:35000-36000"]} if source == "atac" else {"knock_down": ["GENE004"]}
    change = Change.of(ours, **asked)
    effects = perturb(ours, made[source], change, labels="kind", n_null=4)
    names = ours.var(source).index[change.features]
    adata = made[source].copy()
    kept = ~adata.var_names.isin(names)
    assert (~kept).sum() == len(names)
    adata.X = sparse.csr_matrix(adata.X.multiply(kept))
    before, after = (ours.predict(toy_measured(of, source), source=source, to=to) for of in (made[source], adata))
    assert effects.n_changed == int((made[source][:, ~kept].X.toarray() > 0).any(axis=1).sum())
    if before.context is not None:
        after = replace(after, context=before.context)
    everything = slice(0, 120), slice(0, len(ours.var(to)))
    difference = after.block(*everything) - before.block(*everything)
    kind = made[source].obs["kind"].to_numpy()
    for group, rows in effects.table.groupby("group", sort=False):
        part = difference if group == "all" else difference[kind == group]
        np.testing.assert_allclose(rows["change"], part.mean(axis=0), atol=2e-6)
        assert rows["p"].between(0.2, 1).all()  # of four draws none is rarer than one of five
    assert np.abs(effects.table["change"]).max() > 1e-5


# ---- links --------------------------------------------------------------------------------------------------------------


def test_pairs_are_those_within_the_window():
    rng = np.random.default_rng(0)
    start = np.sort(rng.integers(0, 50_000, 80))
    regions = Regions.of(np.repeat(["chr1", "chr2"], 40), start, start + rng.integers(1, 900, 80))
    genes = pd.DataFrame({"chrom": ["chr1", "chr2", "chr2", "", "chr3"], "tss": [20_000, 30_000, 100, 5, 7]})
    for window in (0, 3000):
        found = pairs_near(regions, genes, window=window)
        theirs = {}
        for g, gene in genes.iterrows():
            for p in range(80):
                if regions.chroms[regions.chrom[p]] == gene["chrom"]:
                    bases = np.arange(regions.start[p], regions.end[p]) - gene["tss"]
                    nearest = int(bases[np.argmin(np.abs(bases))])
                    if abs(nearest) <= window:
                        theirs[(g, p)] = nearest
        assert dict(zip(zip(found["gene"], found["peak"]), found["distance"])) == theirs
    some = pairs_near(regions, genes, window=3000, only_genes=np.array([1]))
    pd.testing.assert_frame_equal(some, found[found["gene"] == 1].reset_index(drop=True))
    peak = int(found["peak"].iloc[0])
    assert set(pairs_near(regions, genes, window=3000, only_peaks=np.array([peak]))["peak"]) == {peak}


def test_correlations_are_pearsons_with_p_and_benjamini_hochberg():
    rng = np.random.default_rng(1)
    drawn = (rng.random((50, 6)) < 0.4).astype(np.float32)
    drawn[:, 5] = 0
    opened = sparse.csr_matrix(drawn)
    counts = sparse.csr_matrix(rng.poisson(opened.toarray()[:, :4] * 3 + 0.5).astype(np.float32))
    pairs = pd.DataFrame({"gene": [0, 0, 1, 2, 3], "peak": [0, 1, 1, 5, 2]})
    found = correlate(pairs, of_matrix(opened), of_matrix(counts, log=True), 50)
    p = []
    for i, (gene, peak) in enumerate(zip(pairs["gene"], pairs["peak"])):
        if peak == 5:
            assert np.isnan(found.iloc[i]).all()
            continue
        one = stats.pearsonr(opened[:, [peak]].toarray().ravel(), np.log1p(counts[:, [gene]].toarray().ravel()))
        assert found["r"][i] == pytest.approx(one.statistic, abs=1e-6)
        assert found["p"][i] == pytest.approx(one.pvalue, rel=1e-5)
        p.append(one.pvalue)
    np.testing.assert_allclose(found["q"].dropna(), stats.false_discovery_control(p), rtol=1e-5)


def test_attribution_agrees_with_correlation_where_the_order_is_the_same():
    values = sparse.csr_matrix(np.array([[0.1, 0.5, -0.2, 9.0], [0.3, 0.7, -0.2, 9.0]], np.float32))
    ends = np.zeros(2)
    found = Attribution("atac", "rna", "g", 4, values, ends, ends, ends)
    pairs = pd.DataFrame({"gene": [4, 4, 4, 5], "peak": [0, 1, 2, 3]})
    assert agreement(found, pairs, np.array([0.2, 0.4, 0.1, -1.0])) == {"spearman": pytest.approx(1.0), "n": 3}
    assert agreement(found, pairs, np.array([0.2, 0.1, 0.4, -1.0]))["spearman"] == pytest.approx(-1.0)
    assert np.isnan(agreement(found, pairs, np.array([0.2, np.nan, 0.4, 1.0]))["spearman"])


# ---- bad input ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "neither peaks nor genes"),
        ({"close": ["chr1:1000-1500"], "knock_down": ["GENE004"]}, "both peaks and genes"),
        ({"close": ["chr1:1000-1500"], "opened": ["chr1:1000-1500"]}, "changed twice"),
        ({"close": ["missing.bed"]}, "is no file, nor a peak"),
        ({"close": ["chr1:1-a"]}, "cannot be read"),
        ({"knock_down": ["gene004"]}, "Near it: GENE004"),
        ({"knock_down": ["GENE004=2"]}, r"from 0 \(off\) to below 1"),
        ({"knock_down": ["GENE004=low"]}, "not GENE or GENE=factor"),
        ({"over_express": ["GENE004=0.5"]}, "must be above 1"),
        ({"over_express": ["GENE004=nan"]}, "must be above 1"),
    ],
)
def test_changes_that_make_no_sense_are_refused(babel, asked, message):
    with pytest.raises(InputError, match=message):
        Change.of(babel, **asked)


def test_a_change_of_nearly_everything_leaves_nothing_to_compare_with(babel, made):
    n = len(babel.var("atac"))
    change = Change("atac", np.arange(n - 1), np.zeros(n - 1))
    with pytest.raises(InputError, match="too few to compare with"):
        perturb(babel, made["atac"], change)
    assert len(perturb(babel, made["atac"], change, n_null=0).table) == 60
    with pytest.raises(InputError, match="-1 null draws"):
        perturb(babel, made["atac"], change, n_null=-1)


# ---- the command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for modality in ("rna", "atac"):
        made[modality].write_h5ad(folder / f"{modality}.h5ad")
    (folder / "some.bed").write_text("chr1\t900\t3200\nchr2\t35000\t35100\n")
    return folder


def test_the_command_leaves_tables_figures_and_a_page(babel, model, files, tmp_path, capsys):
    out = tmp_path / "atac"
    command(
        str(model),
        input=files / "atac.h5ad",
        paired=files / "rna.h5ad",
        out=out,
        gene=("GENE004", "GENE008"),
        close=(str(files / "some.bed"),),
        labels="kind",
        cells=40,
        steps=4,
        null=3,
        top=5,
        window=10_000,
    )
    metrics, run = (json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "run"))
    assert metrics["cells"] == {"given": 120, "examined": 40}
    assert set(metrics["links"]["agreement"]) == {"measured", "to_rna", "to_atac"}
    assert metrics["perturbation"]["changed_features"] == 4
    assert metrics["perturbation"]["smallest_p"] == 0.25
    assert set(run["change"].values()) == {0.0}
    assert run["provenance"]["seed"] == 0
    top = pd.read_csv(out / "top.tsv", sep="\t")
    assert top.groupby(["target", "group"]).size().tolist() == [5] * 6
    links = pd.read_csv(out / "links.tsv", sep="\t")
    assert (links["distance"].abs() <= 10_000).all()
    assert set(links["gene"]) == {"GENE004", "GENE008"}
    table = pd.read_parquet(out / "effects.parquet")
    assert table.groupby("group").size().to_dict() == {"all": 60, "a": 60, "b": 60}
    page = (out / "report.html").read_text()
    assert "GENE004: peaks within 10 kb" in page
    assert "Perturb and translate" in page
    assert "relative convergence delta" in capsys.readouterr().out


def test_genes_that_are_named_by_ensembl_are_shown_by_symbol(babel, made, tmp_path):
    genes = pd.DataFrame({"symbol": ["SATB2", "", "ACTB", None]}, index=["ENSG1", "ENSG2", "ACTB", "ENSG4"])
    assert [target_label(genes, i) for i in range(4)] == ["SATB2 (ENSG1)", "ENSG2", "ACTB", "ENSG4"]
    assert target_label(babel.var("atac"), 0) == babel.var("atac").index[0]
    asked = Asked(targets=("GENE004",), n_steps=2, cells=10, labels="kind")
    found = examine(babel, toy_measured(made["atac"], "atac"), "atac", asked)
    assert found.shown == {"GENE004": "GENE004"}
    found = replace(found, shown={"GENE004": "SATB2 (ENSG1)"})
    page = perturb_page(tmp_path / "page.html", found, asked, title="toy", record={"provenance": {}}).read_text()
    for title in ("peaks within 100 kb", "the strongest peaks", "by cell type"):
        assert f"SATB2 (ENSG1): {title}" in page
        assert f"GENE004: {title}" not in page


def test_the_command_explains_peaks_by_genes(babel, model, files, tmp_path):
    out = tmp_path / "rna"
    command(
        str(model),
        input=files / "rna.h5ad",
        out=out,
        peak=("chr1:4000-4400",),
        over_express=("GENE004=3",),
        cell_type="kind=a",
        steps=3,
        null=2,
    )
    links = pd.read_csv(out / "links.tsv", sep="\t")
    assert set(links["peak"]) == {"chr1:4000-4500"}
    assert "r_to_atac" in links
    assert json.loads((out / "metrics.json").read_text())["cells"]["given"] < 120


@pytest.mark.parametrize(
    ("file", "asked", "message"),
    [
        ("rna", {"gene": ("GENE004",)}, "--gene explains genes by open peaks"),
        ("atac", {"peak": ("chr1:4000-4400",)}, "--peak explains peaks by genes"),
        ("atac", {"gene": ("GENE004",), "peak": ("chr1:4000-4400",)}, "run them apart"),
        ("atac", {}, "nothing is asked"),
        ("rna", {"close": ("chr1:4000-4400",)}, "peaks are opened and closed in ATAC"),
        ("atac", {"gene": ("GENE004",), "cell_type": "kind"}, "not COLUMN=VALUE"),
        ("atac", {"gene": ("GENE004",), "cell_type": "kind=c"}, "no cell has kind 'c'; kind is a, b"),
        ("atac", {"gene": ("GENE004",), "labels": "type"}, "--labels: obs has no column 'type'"),
        ("atac", {"gene": ("GENE004",), "cell_type": "type=a"}, "--cell-type: obs has no column 'type'"),
        ("atac", {"gene": ("GENE004",), "top": 0}, "--top is 0"),
        ("atac", {"gene": ("GENE004",), "steps": 0}, "--steps is 0"),
        ("rna", {"knock_down": ("GENE004",), "null": -1}, "--null is -1"),
    ],
)
def test_what_the_command_cannot_do_is_said(babel, model, files, tmp_path, file, asked, message):
    with pytest.raises(InputError, match=message):
        command(str(model), input=files / f"{file}.h5ad", out=tmp_path / "out", **asked)
    assert not (tmp_path / "out").exists()
