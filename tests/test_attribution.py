"""Integrated gradients of translators: they add up, are w x of a linear system, and agree with an integral done by hand."""

import sys
import weakref
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import nn
from translate_toys import toy_anndata, toy_fit, toy_measured, toy_study

from expresser.errors import InputError
from translate import attribution, attribution_path
from translate.attribution import attribute, attribution_table, integrated_gradients
from translate.batches import SparseRows, sparse_rows
from translate.blocks import SparseLinear
from translate.perturb_names import cell_groups
from translate.system import System
from translate.translator import Translator

WAYS = [("atac", "rna", ["GENE004", "GENE017"]), ("rna", "atac", ["chr1:1000-1500"])]


@pytest.fixture(scope="module")
def made():
    return toy_anndata(seed=1)


@pytest.fixture(scope="module")
def babel(tmp_path_factory) -> Translator:
    return toy_fit("babel", tmp_path_factory.mktemp("babel") / "run", toy_study(seed=1))


@pytest.fixture(scope="module")
def scmog(tmp_path_factory) -> Translator:
    return toy_fit("scmog", tmp_path_factory.mktemp("scmog") / "run", toy_study(seed=1))


@pytest.fixture(scope="module")
def polarbear(tmp_path_factory) -> Translator:
    """It is told batches, and predicts at the depth that it tells from RNA."""
    return toy_fit("polarbear", tmp_path_factory.mktemp("polarbear") / "run", toy_study(seed=1))


@pytest.fixture(scope="module")
def scact(tmp_path_factory) -> Translator:
    return toy_fit("scact", tmp_path_factory.mktemp("scact") / "run", toy_study(seed=1))


class Linear(System):
    """Features → latent → features, nothing but products. ATAC is decoded as a probability whose log-odds are linear."""

    def __init__(self, inputs, *, scaled=False):
        super().__init__(None, inputs)
        n = {m: len(found.var) for m, found in inputs.items()}
        self.read = nn.ModuleDict(
            {
                "atac": SparseLinear((0, n["atac"]), 5, joint=True, scaled=scaled),
                "rna": SparseLinear((0, n["rna"]), 5, joint=True, rest=inputs["rna"].rest),
            }
        )
        if scaled:
            self.read["atac"].typical.fill_(30.0)
        self.out = nn.ModuleDict({m: nn.Linear(5, n[m]) for m in ("rna", "atac")})

    def directions(self):
        return (("rna", "atac"), ("atac", "rna"))

    def encode(self, batch, *, source, to):
        return self.read[source](batch.rna.inputs if source == "rna" else batch.atac)[:, 0]

    def decode(self, latent, *, source, to, features, **_):
        out = self.out[to](latent)[:, features]
        return torch.sigmoid(out) if to == "atac" else out


def linear(like: Translator, **options) -> Translator:
    torch.manual_seed(3)
    return Translator("linear", Linear(like.inputs, **options).eval(), like.inputs, {})


# ---- the first layer's gradient for values ------------------------------------------------------------------------------


@pytest.mark.parametrize("joint", [True, False])
def test_a_sparse_layer_has_the_gradient_of_a_dense_one_for_its_input_values(joint):
    rng = np.random.default_rng(0)
    bounds = (0, 4, 9, 12)
    rows = sparse_rows(sparse.random(6, 12, 0.5, format="csr", dtype=np.float32, random_state=rng), bounds)
    layer = SparseLinear(bounds, 3, joint=joint).double()

    def out(values):
        return layer(SparseRows(rows.n_cells, rows.bounds, rows.indices, values, rows.offsets))

    assert torch.autograd.gradcheck(out, (rows.values.double().requires_grad_(),))
    values = rows.values.double().requires_grad_()
    weighed = torch.randn(6, len(layer.bias), 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    (out(values) * weighed).sum().backward()
    dense = rows.dense().double()
    theirs = torch.zeros_like(layer.weight)
    for block, (a, b) in enumerate(pairwise(layer.bounds)):
        theirs[a:b] = dense[:, a:b].T @ weighed[:, block]
    torch.testing.assert_close(layer.weight.grad, theirs)


# ---- known answers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scaled", [False, True])
def test_of_a_linear_system_it_is_weight_times_input(babel, made, scaled):
    ours = linear(babel, scaled=scaled)
    (found,) = integrated_gradients(ours, toy_measured(made["atac"], "atac"), ["GENE004"], to="rna", n_steps=3)
    weight = (ours.system.read["atac"].weight @ ours.system.out["rna"].weight[found.number]).detach().numpy()
    opened = babel.inputs["atac"].align(toy_measured(made["atac"], "atac")).toarray()
    scale = 30.0 / np.maximum(opened.sum(axis=1, keepdims=True), 1) if scaled else 1.0
    np.testing.assert_allclose(found.values.toarray(), opened * scale * weight, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.delta, 0, atol=1e-5)


def test_genes_of_a_linear_system_are_attributed_what_they_are_above_a_count_of_zero(babel, made):
    ours = linear(babel)
    (found,) = integrated_gradients(ours, toy_measured(made["rna"], "rna"), ["chr1:1000-1500"], to="atac", n_steps=50)
    weight = (ours.system.read["rna"].weight @ ours.system.out["atac"].weight[found.number]).detach().numpy()
    recipe = babel.inputs["rna"]
    above = recipe.inputs(recipe.align(toy_measured(made["rna"], "rna"))).toarray()
    np.testing.assert_allclose(found.values.toarray(), above * weight, rtol=1e-3, atol=1e-5)


def test_the_mean_baseline_of_a_linear_system_leaves_the_difference_from_the_mean(babel, made):
    ours = linear(babel)
    measured = toy_measured(made["rna"], "rna")
    (found,) = integrated_gradients(ours, measured, ["chr1:1000-1500"], to="atac", n_steps=20, baseline="mean")
    weight = (ours.system.read["rna"].weight @ ours.system.out["atac"].weight[found.number]).detach().numpy()
    recipe = babel.inputs["rna"]
    above = recipe.inputs(recipe.align(measured)).toarray()
    np.testing.assert_allclose(found.values.toarray(), (above - above.mean(axis=0)) * weight, rtol=1e-3, atol=1e-5)


def test_babel_agrees_with_an_integral_over_a_dense_network(babel, made):
    measured = toy_measured(made["atac"], "atac").take(np.arange(4))
    (found,) = integrated_gradients(babel, measured, ["GENE004"], to="rna", n_steps=300)
    encoder, decoder = babel.system.atac_encoder, babel.system.rna_decoder
    opened = torch.from_numpy(babel.inputs["atac"].align(measured).toarray())
    scale = encoder.first.typical / opened.sum(dim=1, keepdim=True)
    total = torch.zeros_like(opened)
    steps = 1000
    for step in range(steps):
        x = ((step + 0.5) / steps * opened * scale).requires_grad_()
        bounds = encoder.first.bounds
        blocks = [
            x[:, a:b] @ encoder.first.weight[a:b] + encoder.first.bias[i] for i, (a, b) in enumerate(pairwise(bounds))
        ]
        hidden = encoder.act1(encoder.norm1(torch.stack(blocks, dim=1)))
        latent = encoder.latent(encoder.act2(encoder.norm2(encoder.second(hidden))).flatten(1))
        gene = slice(found.number, found.number + 1)
        decoder.head.predict(decoder(latent), gene).log1p().sum().backward()
        total += x.grad / steps
    theirs = (total * opened * scale).numpy()
    np.testing.assert_allclose(found.values.toarray(), theirs, atol=0.01 * np.abs(theirs).max())


@pytest.mark.parametrize("system", ["babel", "scmog", "polarbear", "scact"])
@pytest.mark.parametrize(("source", "to", "targets"), WAYS)
@pytest.mark.parametrize("baseline", ["zero", "mean"])
def test_attributions_add_up_to_the_prediction_less_the_baseline(request, made, system, source, to, targets, baseline):
    ours = request.getfixturevalue(system)
    measured = toy_measured(made[source], source).take(np.arange(12))
    # Layer norms of six units turn sharply where all are nearly alike: at the usual sizes 50 steps leave 1 to 2 % over.
    n_steps = 1000 if system == "polarbear" else 200
    for found in integrated_gradients(ours, measured, targets, to=to, baseline=baseline, n_steps=n_steps):
        assert found.relative_delta < 0.02
        sums = np.asarray(found.values.sum(axis=1)).ravel()
        np.testing.assert_allclose(sums, found.predicted - found.baseline + found.delta, atol=1e-5)
        predicted = ours.predict(measured, source=source, to=to)
        own = predicted.block(slice(0, 12), slice(found.number, found.number + 1))[:, 0]
        own = np.log(own / (1 - own)) if to == "atac" else own
        np.testing.assert_allclose(found.predicted, own, atol=1e-4)
        if baseline == "zero":
            counts = ours.inputs[source].align(measured).toarray()
            assert not found.values.toarray()[counts == 0].any()
            # One cell without anything is like another that the decoder is told the same of.
            told = np.zeros((12, 1)) if predicted.context is None else predicted.context
            _, same = np.unique(told, axis=0, return_inverse=True)
            assert all(np.ptp(found.baseline[same.ravel() == one]) < 1e-5 for one in np.unique(same))


def test_more_steps_leave_less_over(babel, made):
    measured = toy_measured(made["atac"], "atac").take(np.arange(20))
    few, many = (integrated_gradients(babel, measured, ["GENE004"], to="rna", n_steps=n)[0] for n in (5, 200))
    assert many.relative_delta < few.relative_delta / 4


def test_neither_the_company_of_cells_nor_the_size_of_parts_matters(babel, made, monkeypatch):
    measured = toy_measured(made["atac"], "atac").take(np.arange(9))
    (whole,) = integrated_gradients(babel, measured, ["GENE004"], to="rna", n_steps=7)
    monkeypatch.setattr(attribution_path, "ENTRIES", 100)
    (parts,) = integrated_gradients(babel, measured, ["GENE004"], to="rna", n_steps=7)
    np.testing.assert_allclose(parts.values.toarray(), whole.values.toarray(), atol=1e-6)
    np.testing.assert_allclose(parts.delta, whole.delta, atol=1e-5)


def test_the_network_is_left_as_it_was(babel, made):
    before = [(p.requires_grad, p.clone()) for p in babel.system.parameters()]
    babel.system.rna_decoder.train()
    integrated_gradients(babel, toy_measured(made["atac"], "atac").take(np.arange(3)), ["GENE004"], to="rna", n_steps=2)
    assert babel.system.rna_decoder.training
    babel.system.eval()
    for (wanted, value), now in zip(before, babel.system.parameters()):
        assert now.requires_grad == wanted
        assert now.grad is None or not now.grad.any() or wanted
        torch.testing.assert_close(now, value, rtol=0, atol=0)


# ---- the table ----------------------------------------------------------------------------------------------------------


def test_the_table_has_means_spreads_and_shares_of_every_group(babel, made):
    table = attribute(babel, made["atac"], ["GENE004"], labels="kind", n_steps=5)
    (found,) = integrated_gradients(babel, toy_measured(made["atac"], "atac"), ["GENE004"], to="rna", n_steps=5)
    assert table["group"].unique().tolist() == ["all", "a", "b"]
    values, kind = found.values.toarray(), made["atac"].obs["kind"].to_numpy()
    peaks = babel.var("atac").index
    for group, rows in table.groupby("group"):
        part = values if group == "all" else values[kind == group]
        at = peaks.get_indexer(rows["feature"])
        np.testing.assert_allclose(rows["attribution"], part.mean(axis=0)[at], atol=1e-7)
        np.testing.assert_allclose(rows["sd"], part.std(axis=0, ddof=1)[at], atol=1e-6)
        np.testing.assert_allclose(rows["share"], (part != 0).mean(axis=0)[at])
        assert (rows["rank"].to_numpy() == np.arange(1, len(rows) + 1)).all()
        assert (np.diff(rows["attribution"].abs()) <= 0).all()
        assert (rows["cells"] == len(part)).all()


def test_of_many_targets_one_is_in_memory_at_a_time(babel, made, monkeypatch):
    alive, most = weakref.WeakSet(), []
    table_of = attribution.attribution_table

    def seen(translator, found, groups):
        alive.add(found)
        most.append(len(alive))
        return table_of(translator, found, groups)

    monkeypatch.setattr(attribution, "attribution_table", seen)
    targets = ["GENE004", "GENE017", "GENE008", "GENE020", "GENE004"]
    table = attribute(babel, made["atac"][:30].copy(), targets, n_steps=2)
    assert table["target"].unique().tolist() == targets[:4]
    assert max(most) <= 2  # the one before may not be gone yet
    assert len(most) == 4
    (alone,) = integrated_gradients(
        babel, toy_measured(made["atac"], "atac").take(np.arange(30)), ["GENE008"], to="rna", n_steps=2
    )
    whole = table[(table["target"] == "GENE008")]
    mean = alone.mean[babel.var("atac").index.get_indexer(whole["feature"])]
    np.testing.assert_allclose(whole["attribution"], mean, atol=1e-7)
    np.testing.assert_allclose(alone.without_cells().mean, alone.mean, rtol=1e-6)


def test_leaving_off_between_two_targets_leaves_the_network_as_it_was(babel, made):
    found = attribution.each_attribution(
        babel, toy_measured(made["atac"], "atac").take(np.arange(3)), ["GENE004", "GENE017"], to="rna", n_steps=2
    )
    babel.system.requires_grad_(True)
    next(found)
    assert all(p.requires_grad for p in babel.system.parameters())


def test_distances_are_to_the_nearest_base_and_only_on_the_same_chromosome(babel, made):
    # GENE004 starts at chr1:4000; the peaks of chr1 are 1000 i to 1000 i + 500.
    table = attribute(babel, made["atac"][:30].copy(), ["GENE004"], n_steps=2).set_index("feature")
    here = table["chrom"] == "chr1"
    assert table["distance"].isna().tolist() == (~here).tolist()
    distance = table["distance"]
    assert (distance["chr1:4000-4500"], distance["chr1:3000-3500"], distance["chr1:6000-6500"]) == (0, -501, 2000)
    back = attribute(babel, made["rna"][:30].copy(), ["chr1:4000-4500"], to="atac", n_steps=2).set_index("feature")
    assert back["distance"]["GENE004"] == 0
    assert back["distance"]["GENE008"] == 4499 - 8000


def test_a_group_of_one_cell_has_no_spread(babel, made):
    (found,) = integrated_gradients(
        babel, toy_measured(made["atac"], "atac").take(np.arange(1)), ["GENE004"], to="rna", n_steps=2
    )
    table = attribution_table(babel, found, cell_groups(made["atac"].obs.iloc[:1], None))
    assert table["sd"].isna().all()
    assert len(table) == found.values.nnz


# ---- bad input ----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_attributed_is_refused(babel, made, monkeypatch):
    few = made["atac"][:5].copy()
    with pytest.raises(InputError, match=r"gene 'GEN004' is not among the 60 genes.*Near it: GENE004"):
        attribute(babel, few, ["GEN004"])
    with pytest.raises(InputError, match=r"share no base with the .* Near it: chr1:"):
        attribute(babel, made["rna"][:5].copy(), ["chr1:900000-900010"], to="atac")
    with pytest.raises(InputError, match="none on chr7"):
        attribute(babel, made["rna"][:5].copy(), ["chr7:900000-900010"], to="atac")
    with pytest.raises(InputError, match="baseline is 'shuffled'"):
        attribution.prove("shuffled", 50, "atac")
    with pytest.raises(InputError, match="0 steps"):
        attribute(babel, few, ["GENE004"], n_steps=0)
    with pytest.raises(InputError, match="no column 'type'; it has kind"):
        attribute(babel, few, ["GENE004"], labels="type")
    with pytest.raises(InputError, match="knows rna, atac, not protein"):
        attribute(babel, few, ["GENE004"], to="protein", source="atac")
    closed = few.copy()
    closed.X = sparse.csr_matrix(closed.shape, dtype=np.float32)
    with pytest.raises(InputError, match=r"none of its 5 cells has any open peak|no count|all zero|empty"):
        attribute(babel, closed, ["GENE004"])
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(InputError, match=r"pip install 'expresser\[perturb\]'"):
        attribute(babel, few, ["GENE004"])
