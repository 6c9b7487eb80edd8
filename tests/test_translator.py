"""What a fitted translator promises: the same answer for a cell alone, in company, and with its features in any order;
probabilities that are probabilities; and weights that decay where they should."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from translate_toys import toy_anndata, toy_fit, toy_split

from expresser.errors import InputError
from translate import predicted
from translate.averages import RunningMean
from translate.calibration import platt
from translate.data import read_study
from translate.heads import shrinkage
from translate.predicted import Decoded
from translate.preprocess.atac import EmptyChromosomeWarning
from translate.translator import Translator


def study_of(made, order=None):
    """RNA and ATAC, their features in another order."""
    if order is None:
        return read_study(rna=made["rna"], atac=made["atac"], check_pairing=False)
    rng = np.random.default_rng(order)
    genes, peaks = rng.permutation(made["rna"].n_vars), rng.permutation(made["atac"].n_vars)
    return read_study(rna=made["rna"][:, genes].copy(), atac=made["atac"][:, peaks].copy(), check_pairing=False)


@pytest.fixture(scope="module", params=["babel", "scmog"])
def fitted(request, tmp_path_factory) -> Translator:
    made = toy_anndata(seed=1)
    return toy_fit(request.param, tmp_path_factory.mktemp("fit") / "run", study_of(made))


@pytest.mark.parametrize("system", ["babel", "scmog"])
def test_the_order_of_genes_peaks_and_chromosomes_does_not_matter_to_a_fit(tmp_path, system):
    made = toy_anndata(seed=1)
    one, other = (toy_fit(system, tmp_path / str(order), study_of(made, order)) for order in (None, 7))
    ours = other.system.state_dict()
    assert one.var("atac").equals(other.var("atac"))
    for name, value in one.system.state_dict().items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


@given(seed=st.integers(0, 10**6), source=st.sampled_from(["rna", "atac"]))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_order_of_a_querys_features_does_not_matter(fitted, seed, source):
    made = toy_anndata(n_cells=9, seed=2)[source]
    order = np.random.default_rng(seed).permutation(made.n_vars)
    to = "atac" if source == "rna" else "rna"
    np.testing.assert_allclose(
        fitted.translate(made[:, order].copy(), to).X, fitted.translate(made, to).X, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("source", "to"), [("rna", "atac"), ("atac", "rna")])
def test_one_cell_alone_is_the_same_cell_among_many(fitted, source, to):
    made = toy_anndata(n_cells=700, seed=3)[source]
    whole = fitted.translate(made, to).X
    for cell in (0, 13, 511, 699):
        np.testing.assert_allclose(fitted.translate(made[[cell]].copy(), to).X[0], whole[cell], rtol=0, atol=1e-6)
    fitted.embed(made)
    alone = made[[13]].copy()
    fitted.embed(alone)
    key = f"X_{fitted.name}"
    np.testing.assert_allclose(alone.obsm[key][0], made.obsm[key][13], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("source", "to"), [("rna", "atac"), ("atac", "rna")])
def test_no_cells_are_refused_by_name(fitted, source, to):
    none = toy_anndata(n_cells=20, seed=3)[source][:0].copy()
    for use in (lambda: fitted.translate(none, to), lambda: fitted.embed(none)):
        with pytest.raises(InputError, match=r"no cells|empty"):
            use()


def test_only_the_features_asked_for_are_computed(fitted, monkeypatch):
    cells = toy_anndata(n_cells=20, seed=2)["rna"]
    whole = fitted.translate(cells, "atac")
    asked = []
    block = Decoded.block
    monkeypatch.setattr(predicted, "_GAP", 1)
    monkeypatch.setattr(
        Decoded, "block", lambda self, cells, features: asked.append(features) or block(self, cells, features)
    )
    names = [whole.var_names[i] for i in (90, 3, 4)]
    some = fitted.translate(cells, "atac", features=names)
    assert some.var_names.tolist() == names
    np.testing.assert_allclose(some.X, whole[:, names].X, rtol=1e-5)
    assert sorted((f.start, f.stop) for f in asked) == [(3, 5), (90, 91)]


def test_an_empty_chromosome_is_named(tmp_path):
    made = toy_anndata(seed=1)
    there = made["atac"].var_names.str.startswith("chr2:")
    made["atac"].X = sparse.csr_matrix(made["atac"].X.toarray() * ~there)
    with pytest.warns(EmptyChromosomeWarning, match=r"no peak is kept of chr2 \(30 peaks\)"):
        fitted = toy_fit("babel", tmp_path / "run", study_of(made))
    assert not (fitted.var("atac")["chrom"] == "chr2").any()
    query = toy_anndata(5, seed=2)["atac"]
    with pytest.warns(EmptyChromosomeWarning, match=r"has no peak on chr10, where 30 of the model's 89 lie"):
        fitted.translate(query[:, ~query.var_names.str.startswith("chr10:")].copy(), "rna")
    every = toy_anndata(seed=1)
    every["atac"].X = sparse.csr_matrix(every["atac"].X.shape, dtype=np.float32)
    with pytest.raises(InputError, match="peak"):
        toy_fit("babel", tmp_path / "none", study_of(every))


# ---- probabilities ---------------------------------------------------------------------------------------------------


def test_platt_is_logistic_regression():
    rng = np.random.default_rng(0)
    logits = np.repeat(np.linspace(-4, 2, 40), 50)
    truth = rng.random(len(logits)) < 1 / (1 + np.exp(-(0.7 * logits - 0.4)))
    centres = np.unique(logits)
    opened = np.array([truth[logits == c].sum() for c in centres], float)
    total = np.array([(logits == c).sum() for c in centres], float)
    theirs = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(logits[:, None], truth)
    np.testing.assert_allclose(platt(opened, total, centres), (theirs.coef_[0, 0], theirs.intercept_[0]), rtol=1e-4)


@pytest.mark.parametrize(
    ("system", "changes"),
    [("babel", {}), ("babel", {"shared": False}), ("scmog", {}), ("scmog", {"loss": "focal", "adversarial": False})],
)
def test_as_many_peaks_are_predicted_as_are_open(tmp_path, system, changes):
    made = toy_anndata(200, seed=4)
    hidden = {"epochs": 20} if system == "babel" else {"to_atac_epochs": 20, "to_atac_dropout": 0.5}
    changes = changes | hidden
    split = toy_split(200, valid=60, test=20)
    fitted = toy_fit(system, tmp_path / "run", study_of(made), split=split, **changes)
    for source, to in fitted.directions:
        if to == "atac":
            ratio = (
                fitted.translate(made[source][split.valid].copy(), "atac", source=source).X.sum()
                / (made["atac"][split.valid].X > 0).sum()
            )
            assert ratio == pytest.approx(1, abs=0.02), (source, fitted.system.get_buffer(f"calibration_{source}"))


def test_proteins_learnt_later_leave_probabilities_alone(tmp_path):
    made = toy_anndata(seed=1)
    first = toy_fit("scmog", tmp_path / "first", study_of(made), loss="focal", adversarial=False)
    before = first.system.get_buffer("calibration_rna").clone()
    assert not torch.equal(before, torch.tensor([1.0, 0.0]))
    later = read_study(rna=made["rna"], protein=made["protein"], check_pairing=False)
    second = toy_fit("scmog", tmp_path / "second", later, start=first, loss="focal", adversarial=False)
    torch.testing.assert_close(second.system.get_buffer("calibration_rna"), before, rtol=0, atol=0)
    assert ("rna", "protein") in second.directions


def test_four_networks_have_no_way_from_atac_to_proteins(tmp_path):
    made = toy_anndata(seed=1)
    study = read_study(rna=made["rna"], atac=made["atac"], protein=made["protein"], check_pairing=False)
    shared, four = (toy_fit("babel", tmp_path / str(s), study, shared=s, epochs=1) for s in (True, False))
    assert ("atac", "protein") in shared.directions
    assert ("rna", "protein") in four.directions
    assert ("atac", "protein") not in four.directions


# ---- the prior, precision ---------------------------------------------------------------------------------------------


def test_the_prior_is_the_gaussian_density_and_draws_outputs_to_their_means(tmp_path):
    weight = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    normal = torch.distributions.Normal(0.0, 0.7 / 4)
    theirs = -(normal.log_prob(weight) - normal.log_prob(torch.zeros(()))).sum()
    torch.testing.assert_close(shrinkage(weight, 0.7), theirs)
    made = toy_anndata(seed=1)
    for system, epochs in (("babel", {"epochs": 15}), ("scmog", {"to_atac_epochs": 15, "adversarial": False})):
        spread = []
        for prior in (None, 0.02):
            fitted = toy_fit(
                system, tmp_path / f"{system}{prior}", study_of(made), prior=prior, calibrated=False, **epochs
            )
            spread.append(fitted.translate(made["rna"], "atac").X.std(axis=0).mean())
        assert spread[0] > 2 * spread[1], (system, spread)


@pytest.mark.parametrize("system", ["babel", "scmog"])
def test_mixed_precision_fits_about_the_same(tmp_path, system):
    made = toy_anndata(seed=1)
    whole, mixed = (toy_fit(system, tmp_path / p, study_of(made), precision=p) for p in ("no", "bf16"))
    for source, to in (("rna", "atac"), ("atac", "rna")):
        a, b = (t.translate(made[source], to).X for t in (whole, mixed))
        assert np.abs(a - b).mean() < 0.02
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


def test_the_running_mean_stands_in_for_the_weights_and_gives_them_back():
    system = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 1), "two": torch.nn.Linear(2, 1)})
    mean = RunningMean(system, ("one",), 0.75)
    start, other = system["one"].weight.detach().clone(), system["two"].weight.detach().clone()
    with torch.no_grad():
        system["one"].weight.add_(4.0)
        system["two"].weight.add_(4.0)
    mean.update()
    mean.update()
    with mean.standing_in():
        torch.testing.assert_close(system["one"].weight, start + 4.0 * (1 - 0.75**2))
        torch.testing.assert_close(system["two"].weight, other + 4.0)
    torch.testing.assert_close(system["one"].weight, start + 4.0)
    again = RunningMean(system, ("one",), 0.75)
    again.restore(mean.mean)
    torch.testing.assert_close(again.mean["one.weight"], start + 4.0 * (1 - 0.75**2))
