"""Polarbear's likelihoods against formulas written out, what is frozen when, and what queries of other batches are told."""

import math
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.linear_model import Ridge
from test_translate_engine import log_of
from torch.distributions import Bernoulli, NegativeBinomial
from torch.nn import functional
from translate_toys import POLARBEAR, toy_anndata, toy_measured, toy_split

from expresser.errors import InputError
from expresser.likelihoods import zinb_log_prob
from translate.batches import sparse_rows
from translate.beta_vae import AtacDecoder, AtacEncoder, Dropout, LatentMap, RateHead, RnaDecoder, RnaEncoder, width
from translate.blocks import SparseLinear
from translate.covariates import BatchColumn
from translate.data import read_study
from translate.feed import Feed
from translate.fitting import build, fit
from translate.heads import blockwise, depth_block, log_expm1, product_block
from translate.phases import Turn
from translate.polarbear import PENALTIES, Polarbear, PolarbearConfig, ridge
from translate.preprocess import AtacInput, RnaInput
from translate.splits import Split
from translate.study import Study
from translate.trainer import Trainer
from translate.translator import Translator
from translate.zinb_head import ZinbHead

SMALL = replace(POLARBEAR, batch=BatchColumn("donor"), latent=3, patience=3)


def made_of(n_cells: int = 120, donors: int = 2, **sizes: Any) -> dict[str, Any]:
    """Toy cells of a donor each; the second donor has half as many open peaks."""
    made = toy_anndata(n_cells, **sizes)
    donor = np.arange(n_cells) % donors
    kept = (np.random.default_rng(0).random(made["atac"].shape) < 0.5) | (donor != 1)[:, None]
    made["atac"].X = made["atac"].X.multiply(kept).tocsr()
    for one in made.values():
        one.obs["donor"] = [f"d{i}" for i in donor]
    return made


def study_of(n_cells: int = 120, alone: int = 0, donors: int = 2) -> Study:
    """Paired cells, and behind them so many of RNA and of ATAC alone."""
    made = made_of(n_cells + 2 * alone, donors)
    first, rna, atac = slice(0, n_cells), slice(n_cells, n_cells + alone), slice(n_cells + alone, None)
    more: dict[str, Any] = (
        {"rna_only": made["rna"][rna].copy(), "atac_only": made["atac"][atac].copy()} if alone else {}
    )
    both = {m: made[m][first].copy() for m in ("rna", "atac")}
    return read_study(**both, **more, check_pairing=False)


def split_of(study: Study, valid: int = 30, test: int = 10) -> Split:
    """The last of the paired cells test, those before validate, all others train."""
    held = study.paired[-valid - test :]
    return Split("toy", np.setdiff1d(np.arange(study.n_cells), held), held[:valid], held[valid:])


def fitted(out: Path, config: PolarbearConfig = SMALL, study: Study | None = None, **options: Any) -> Translator:
    study = study_of() if study is None else study
    found = fit("polarbear", study, out=out, config=config, **({"split": split_of(study)} | options))
    assert found is not None
    return found


def network_of(config: PolarbearConfig = SMALL, study: Study | None = None) -> tuple[Polarbear, Feed]:
    """Untrained but prepared, and all cells."""
    study = study_of() if study is None else study
    cells = np.arange(study.n_cells)
    config = replace(config, batch=config.batch.settled(study.obs, cells))
    inputs = {
        "rna": RnaInput.fit(study.measured["rna"], np.arange(study.measured["rna"].n_cells), config.rna),
        "atac": AtacInput.fit(study.measured["atac"], np.arange(study.measured["atac"].n_cells), config.atac),
    }
    network = build("polarbear", config, inputs, 0)
    feed = replace(Feed.of(study, inputs, batches=config.batch, counts=True), raw_inputs=network.raw_inputs)
    network.prepare(feed, cells)
    assert isinstance(network, Polarbear)
    return network.eval(), feed


def same(one: Translator, two: Translator) -> bool:
    a, b = one.system.state_dict(), two.system.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Translator:
    """Two donors; with cells of one assay."""
    return fitted(tmp_path_factory.mktemp("polarbear") / "fit", study=study_of(alone=40))


# ---- likelihoods -----------------------------------------------------------------------------------------------------


def drawn(rows: int = 9, columns: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """A hidden layer and counts."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.rand(rows, columns, generator=generator) * 2, generator=generator)
    return torch.randn(rows, 6, generator=generator, requires_grad=True), counts


def test_zero_inflation_is_a_mixture():
    x = torch.tensor([0.0, 0.0, 1.0, 5.0, 40.0])
    mean, dispersion, logits = torch.tensor([0.1, 8.0, 2.0, 3.0, 9.0]), torch.tensor([0.5, 3.0, 1.0, 9.0, 0.2]), 0.3
    kept = NegativeBinomial(dispersion, probs=mean / (mean + dispersion)).log_prob(x).exp()
    lost = torch.tensor(logits).sigmoid()
    expected = (lost * (x == 0) + (1 - lost) * kept).log()
    found = zinb_log_prob(x, mean=mean, dispersion=dispersion, dropout_logits=torch.full((5,), logits))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batches", [0, 3])
def test_the_count_head_is_the_dense_likelihood_with_its_gradients(batches: int):
    hidden, counts = drawn()
    target = sparse_rows(sparse.csr_matrix(counts.numpy()), (0, 15, 40))
    torch.manual_seed(0)
    head = ZinbHead(6, 40, batches)
    torch.nn.init.normal_(head.dispersion)
    head.dispersion.data[0, 3] = 20.0  # held
    codes = torch.arange(9) % max(batches, 1)
    library = counts.sum(dim=1)
    among = [hidden, *head.parameters()]
    found = head.loss(hidden, target, library=library, codes=codes)
    mean = head.scale(hidden).softmax(dim=1) * library[:, None]
    dispersion = head.dispersion.clamp_max(math.log(1000.0))[codes].exp()
    dense = -zinb_log_prob(counts, mean=mean, dispersion=dispersion, dropout_logits=head.dropout(hidden)).sum()
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-3)
    for one, two in zip(torch.autograd.grad(found, among), torch.autograd.grad(dense, among)):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=2e-5)
    with torch.no_grad():
        assert float(head.loss(hidden, target, library=library, codes=codes)) == float(found)
    shares = head.predict(hidden, slice(0, 40), library=1.0, inflated=False)
    torch.testing.assert_close(shares.sum(dim=1), torch.ones(9))
    torch.testing.assert_close(head.predict(hidden, slice(3, 9), library=1.0, inflated=False), shares[:, 3:9])
    lost = head.dropout(hidden).sigmoid()
    torch.testing.assert_close(
        head.predict(hidden, slice(3, 9), library=2.0, inflated=True), (2 * shares * (1 - lost))[:, 3:9]
    )


def test_shares_are_worked_out_for_some_cells_at_a_time():
    torch.manual_seed(0)
    head, hidden = ZinbHead(6, 40, 0), torch.randn(1300, 6)
    with torch.no_grad():
        expected = head.scale(hidden).softmax(dim=1)[:, 5:9] * 3.0
        seen: list[int] = []
        head.scale.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
        found = head.predict(hidden, slice(5, 9), library=3.0, inflated=False)
        assert head.predict(hidden[:0], slice(5, 9), library=3.0, inflated=False).shape == (0, 4)
    torch.testing.assert_close(found, expected)
    assert max(seen) <= 512
    assert sum(seen) == 1300


@pytest.mark.parametrize("link", ["rate", "product"])
def test_links_of_depth_are_the_dense_likelihood_with_its_gradients(link: str):
    hidden, counts = drawn()
    opened = (counts > 1).float()
    target = sparse_rows(sparse.csr_matrix(opened.numpy()), (0, 15, 40), binary=True)
    generator = torch.Generator().manual_seed(1)
    weight, bias = (torch.randn(*size, generator=generator).mul(0.15).requires_grad_() for size in ((40, 6), (40,)))
    log_depth = torch.linspace(-1.0, 1.0, 9)
    z = hidden @ weight.T + bias
    if link == "rate":
        loss, p = partial(depth_block, log_depth=log_depth), -torch.expm1(-(z + log_depth[:, None]).exp())
    else:
        depth = log_depth.exp() / 2  # some products are above 1
        loss, p = partial(product_block, depth=depth), (z.sigmoid() * depth[:, None]).clamp(1e-7, 1 - 1e-7)
    found, dense = blockwise(loss, target, hidden, weight, bias), -Bernoulli(p).log_prob(opened).sum()
    torch.testing.assert_close(found, dense, rtol=1e-4, atol=1e-3)
    among = [hidden, weight, bias]
    for one, two in zip(torch.autograd.grad(found, among), torch.autograd.grad(dense, among)):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-3)


def test_a_frozen_output_layer_passes_the_same_gradient_down():
    hidden, counts = drawn()
    target = sparse_rows(sparse.csr_matrix((counts > 1).float().numpy()), (0, 15, 40), binary=True)
    head = RateHead((0, 40), 6, per_block=False)
    loss = partial(depth_block, log_depth=torch.zeros(9))
    (free,) = torch.autograd.grad(head.loss(hidden, target, block_loss=loss), [hidden])
    head.requires_grad_(False)
    (frozen,) = torch.autograd.grad(head.loss(hidden, target, block_loss=loss), [hidden])
    assert torch.equal(free, frozen)


def test_extreme_rates_have_finite_losses_and_no_slope():
    target = sparse_rows(sparse.csr_matrix(np.array([[1.0, 0.0, 1.0]], np.float32)), (0, 3), binary=True)
    bias = torch.tensor([-200.0, -200.0, 200.0], requires_grad=True)
    loss = blockwise(partial(depth_block, log_depth=torch.zeros(1)), target, torch.zeros(1, 1), torch.zeros(3, 1), bias)
    assert torch.isfinite(loss)
    assert torch.autograd.grad(loss, [bias])[0].tolist() == [0.0, 0.0, 0.0]


def test_a_head_starts_at_the_shares_of_open_cells():
    head, share = RateHead((0, 4), 2, per_block=False), torch.tensor([0.01, 0.3, 0.7, 0.95])
    head.start_at(share)
    odds = log_expm1(head.logits(torch.zeros(1, 2), slice(0, 4)).exp())
    torch.testing.assert_close(odds.sigmoid()[0], share, rtol=1e-4, atol=1e-5)


# ---- networks --------------------------------------------------------------------------------------------------------


def test_the_papers_networks_have_the_papers_sizes():
    """17,271 genes and 220,526 peaks of 20 chromosomes, 25 latents, five batches; padding is not counted."""
    genes, batches, d = 17_271, 5, 25
    bounds = tuple(np.linspace(0, 220_526, 21).astype(int).tolist())
    widths = [width(b - a, batches, d) for a, b in pairwise(bounds)]
    h = width(genes, batches, d)
    assert (h, set(widths)) == (328, {262})
    with torch.device("meta"):
        rna = [RnaEncoder(SparseLinear((0, genes), h, joint=True), batches, 2, d), RnaDecoder(genes, batches, h, 2, d)]
        atac = [
            AtacEncoder(bounds, batches, widths, 2, d, scaled=False),
            AtacDecoder(bounds, batches, widths, 2, d),
        ]
    n = [sum(p.numel() for part in parts for p in part.parameters()) for parts in (rna, atac)]
    assert n[0] == (genes + batches + 3) * h + h * (h + 3) + 2 * (h + 1) * d + (d + batches + 3) * h + h * (h + 3) + (
        h * (h + 1) + 2 * genes * (h + 1) + batches * genes
    )
    w = widths[0]
    encoder = 220_526 * w + 20 * ((batches + 3) * w + w * (w + 3) + (w + 3) * d) + 2 * (20 * d + 1) * d
    decoder = (d + batches + 3) * 20 * d + 20 * ((20 * d + 3) * w + w * (w + 3)) + 220_526 * (w + 1)
    assert n[1] == encoder + decoder


def test_a_chromosome_as_wide_as_it_should_be_is_what_it_would_be_by_itself():
    torch.manual_seed(0)
    wide, alone = (
        AtacEncoder((0, 30, 50), 2, [3, 7], 2, 4, scaled=False),
        AtacEncoder((0, 30), 2, [3], 2, 4, scaled=False),
    )
    with torch.no_grad():
        alone.first.weight.copy_(wide.first.weight[:30, :3])
        alone.batch.weight.copy_(wide.batch.weight[:3])
        alone.layers[0].weight.copy_(wide.layers[0].weight[:1, :3, :3])
        alone.narrow.weight.copy_(wide.narrow.weight[:1, :3])
    rows = sparse.random(5, 50, 0.3, "csr", random_state=0, dtype=np.float32)
    codes = functional.one_hot(torch.arange(5) % 2, 2).float()

    def read(part: AtacEncoder, matrix: sparse.csr_matrix, bounds: tuple[int, ...]) -> torch.Tensor:
        seen: list[torch.Tensor] = []
        handle = part.narrow_norm.register_forward_hook(lambda _, __, out: seen.append(out))
        part(sparse_rows(matrix, bounds), codes, None)
        handle.remove()
        return seen[0][:, 0]

    torch.testing.assert_close(read(wide, rows, (0, 30, 50)), read(alone, rows[:, :30], (0, 30)), rtol=1e-4, atol=1e-5)


def test_units_are_lost_by_cell_not_by_place_in_the_batch():
    x = torch.ones(6, 4, 50)
    lost = Dropout(0.3, torch.arange(6), 7).of(x, 0)
    assert 0.2 < float((lost == 0).float().mean()) < 0.4
    assert lost.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
    torch.testing.assert_close(Dropout(0.3, torch.arange(6).flip(0), 7).of(x, 0), lost.flip(0))
    assert not torch.equal(Dropout(0.3, torch.arange(6), 8).of(x, 0), lost)
    assert not torch.equal(Dropout(0.3, torch.arange(6), 7).of(x, 1), lost)


@pytest.mark.parametrize("kind", ["linear", "1l", "2l"])
def test_every_map_starts_at_the_line_it_is_given(kind: Any):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(4, 4)), rng.normal(size=4)
    found = LatentMap(4, kind)
    found.start_at(weight, bias)
    x = rng.normal(size=(6, 4))
    np.testing.assert_allclose(found(torch.from_numpy(x).float()).detach(), x @ weight.T + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_both_encoders_and_decoders_are_told_the_batch(modality: Any):
    network, feed = network_of()
    batch = feed.batch(np.arange(12), ("rna", "atac"), share=12)
    other = replace(batch, batch_codes=1 - batch.sources)
    one, two = (network.encode(b, source=modality, to=modality) for b in (batch, other))
    assert not torch.allclose(one, two)
    contexts = [network.context(b, source=modality, to=modality, depth=None) for b in (batch, other)]
    values = [network.decode(one, source=modality, to=modality, features=slice(0, 9), context=c) for c in contexts]
    assert not torch.allclose(*values)


def test_a_batch_that_trained_one_modality_is_the_largest_of_the_other():
    """Donor d2 has RNA cells alone, and the most of them; d3 ATAC cells alone: no weight of theirs elsewhere is looked at."""
    study = study_of(60, alone=45)
    pairs, rna, atac = study.has("rna") & study.has("atac"), ~study.has("atac"), ~study.has("rna")
    study.obs["donor"] = np.select([rna, atac, np.cumsum(pairs) <= 40], ["d2", "d3", "d1"], "d0")
    network, feed = network_of(study=study)
    assert network.batch_cells.tolist() == [[20, 40, 45, 0], [20, 40, 0, 45]]
    assert network.reference_batch.tolist() == [2, 3]
    cells: dict[Any, np.ndarray] = {"rna": np.flatnonzero(pairs | rna), "atac": np.flatnonzero(pairs | atac)}

    def told() -> list[torch.Tensor]:
        found = []
        for source, to in network.directions():
            batch = feed.batch(cells[source], (source,), share=len(cells[source]))
            strange = replace(
                batch, batch_codes=torch.where(batch.sources == 1, 3 if source == "rna" else 2, batch.sources)
            )
            for one in (batch, strange):
                latent, context = network.encode(one, source=source, to=to), network.context(one, source=source, to=to)
                every = {"source": source, "to": to, "features": slice(0, 20)}
                found += [network.decode(latent, **every, context=c) for c in (context, None)]
        return found

    with torch.no_grad():
        before = told()
        for number, coders in ((2, "atac"), (3, "rna")):
            network.get_submodule(f"{coders}_encoder.batch").weight[:, number] += 100.0
            first = "atac_decoder.latent" if coders == "atac" else "rna_decoder.hidden.layers.0"
            network.get_submodule(first).weight[:, network.config.latent + number] += 100.0
        for one, two in zip(before, told()):
            torch.testing.assert_close(one, two)
    # Only cells that an autoencoder learns from count.
    alone = network_of(replace(SMALL, coassay_only=True), study)[0]
    assert (alone.batch_cells.tolist(), alone.reference_batch.tolist()) == ([[20, 40, 0, 0]] * 2, [1, 1])


def test_where_counts_are_read_they_are_what_is_hidden_and_attributed_to(tmp_path: Path):
    config = replace(SMALL, counts_in=True, epochs=1, map_epochs=1)
    network, feed = network_of(config)
    batch = feed.batch(np.arange(12), ("rna",), share=12)
    assert torch.equal(batch.rna.inputs.dense(), batch.rna.targets.dense())
    assert network.rna_encoder.first.rest is None
    with torch.no_grad():
        hidden = network.encode(batch.with_dropout(0.5, 7), source="rna", to="rna")
        assert not torch.allclose(hidden, network.encode(batch, source="rna", to="rna"))
    found = fitted(tmp_path / "fit", config)
    cells = toy_measured(made_of(12)["rna"], "rna")
    of_query = found.feed_of(cells, "rna").batch(np.arange(12), ("rna",), share=12)
    assert torch.equal(of_query.rna.inputs.dense().sum(dim=1), of_query.rna.library)
    pytest.importorskip("captum")
    from translate.attribution import integrated_gradients

    (given,) = integrated_gradients(found, cells, [found.var("atac").index[0]], to="atac")
    assert given.values.count_nonzero() > 100


def test_more_depth_opens_every_peak_more_and_none_beyond_certainty():
    network, feed = network_of(replace(SMALL, prior=None))
    network.requires_grad_(False).atac_decoder.head.weight.mul_(30)
    batch = feed.batch(np.arange(12), ("atac",), share=12)
    latent = network.encode(batch, source="atac", to="atac")
    p = [
        network.decode(
            latent,
            source="atac",
            to="atac",
            features=slice(0, 100),
            context=network.context(batch, source="atac", to="atac", depth=depth),
        )
        for depth in (2.0, 5.0, "median", 119.0)
    ]
    assert all(bool((b >= a).all()) and bool((b > a).any()) for a, b in pairwise(p))
    assert 0 < float(p[0].min()) <= float(p[-1].max()) <= 1
    told = network.context(batch, source="atac", to="atac", depth="predicted")[:, 1]
    torch.testing.assert_close(told, (batch.atac.totals() / network.depth).log())


# ---- objective -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modality", ["rna", "atac"])
def test_the_bound_is_likelihood_and_divergence(modality: Any):
    network, feed = network_of()
    batch = feed.batch(np.arange(12), (modality,), share=12)
    terms = network.losses(batch, Turn(modality, None, 0, 0))
    mean, log_var = network._posterior(batch, modality, None)
    q, p = torch.distributions.Normal(mean, (log_var / 2).exp()), torch.distributions.Normal(0.0, 1.0)
    divergence = torch.distributions.kl_divergence(q, p).sum() / 12
    torch.testing.assert_close(terms["kl"], network.config.beta * divergence, rtol=1e-4, atol=1e-5)
    assert set(terms) == {"reconstruction", "kl"}
    early, late = (network.losses(batch, Turn(modality, "all", 0, 5, passed))["kl"] for passed in (0.0, 2.0))
    assert float(early.detach()) == 0.0 < float(late.detach())


def test_the_prior_counts_once_for_the_cells_of_its_autoencoder():
    study = study_of(60, alone=30)
    network, feed = network_of(study=study)
    assert network.cells_of == {"rna": 90, "atac": 90}
    batch = feed.batch(np.arange(10), ("rna",), share=10)
    prior = network.losses(batch, Turn("rna", "all", 0, 5))["prior"]
    torch.testing.assert_close(prior * 90, network.rna_decoder.head.prior(network.config.prior), rtol=1e-4, atol=1e-3)
    alone, _ = network_of(replace(SMALL, coassay_only=True), study)
    assert alone.cells_of == {"rna": 60, "atac": 60}


def test_output_layers_start_at_base_rates():
    network, feed = network_of(replace(SMALL, batch=BatchColumn()))
    batch = feed.batch(np.arange(120), ("atac", "rna"), share=120)
    latent = torch.zeros(1, 3)
    opened = network.decode(latent, source="atac", to="atac", features=slice(None, None)).detach()[0]
    share = batch.atac.dense().mean(dim=0)
    assert float(torch.corrcoef(torch.stack([opened, share]))[0, 1]) > 0.9
    expressed = network.decode(latent, source="rna", to="rna", features=slice(None, None)).detach()[0].expm1()
    mean = torch.from_numpy(feed.mean_expression(np.arange(120)))
    assert float(torch.corrcoef(torch.stack([expressed, mean]))[0, 1]) > 0.9


# ---- closed forms ----------------------------------------------------------------------------------------------------


def test_ridge_is_the_normal_equations_with_a_penalty_of_the_grid():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) * [1, 5, 0.1, 2] + 3
    y = x @ rng.normal(size=(4, 3)) + rng.normal(size=(50, 3))
    weight, bias = ridge(x, y)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    fits = []
    for penalty in PENALTIES:
        solved = np.linalg.solve(z.T @ z + penalty * np.eye(4), z.T @ (y - y.mean(axis=0)))
        fits.append(z @ solved + y.mean(axis=0))
    found = x @ weight.T + bias
    best = int(np.argmin([np.abs(f - found).max() for f in fits]))
    np.testing.assert_allclose(found, fits[best], atol=1e-8)
    # Of all penalties, that one has the least squared error leaving out a cell.
    errors = []
    for penalty in PENALTIES:
        kept = [np.arange(50) != i for i in range(50)]
        left = [Ridge(penalty).fit(z[k], y[k]).predict(z[~k])[0] for k in kept]
        errors.append(((np.array(left) - y) ** 2).sum())
    assert best == int(np.argmin(errors))


def test_maps_start_at_the_regression_of_latent_means_and_depth_at_that_of_rna():
    network, feed = network_of()
    train = np.arange(80)
    phases = {phase.name: phase for phase in network.phases()}
    with torch.no_grad():
        network.begin(phases["rna_to_atac"], feed, train, fresh=True)
        batch = feed.batch(np.arange(120), ("rna", "atac"), share=120)
        x, y = (network.encode(batch, source=m, to=m).double().numpy() for m in ("rna", "atac"))
        found = network.encode(batch, source="rna", to="atac").numpy()
    weight, bias = ridge(x[:80], y[:80])
    np.testing.assert_allclose(found, x @ weight.T + bias, rtol=1e-3, atol=1e-4)
    told = network.context(batch, source="rna", to="atac", depth="predicted")[:, 1].detach().numpy()
    own = (batch.atac.totals() / network.depth).log().numpy()
    assert np.corrcoef(told[80:], own[80:])[0, 1] > 0.5  # the second donor has half the depth
    assert network.context(batch, source="rna", to="atac", depth="median")[:, 1].abs().max() == 0
    weights = network.rna_to_atac.line.weight.clone()
    network.begin(phases["rna_to_atac"], feed, train[:40], fresh=False)
    assert torch.equal(network.rna_to_atac.line.weight, weights)


# ---- phases ----------------------------------------------------------------------------------------------------------


def test_while_maps_learn_the_autoencoders_are_bit_identical(tmp_path: Path):
    study = study_of(alone=20)
    network, feed = network_of(study=study)
    split = split_of(study)
    trainer = Trainer(network, feed, split.train, split.valid, seed=0, folder=tmp_path)
    atac, rna, *maps = network.phases()
    trainer.run([replace(phase, epochs=1) for phase in (atac, rna)])
    before = {name: value.clone() for name, value in network.state_dict().items()}
    (tmp_path / "maps").mkdir()
    trainer = Trainer(network, feed, split.train, split.valid, seed=0, folder=tmp_path / "maps")
    trainer.run(maps)
    after = network.state_dict()
    moved = {name.split(".")[0] for name in after if not torch.equal(after[name], before[name])}
    assert moved == {"atac_to_rna", "rna_to_atac", "depth_weight", "depth_bias", "depth_range"}


def test_few_cells_are_taken_in_smaller_steps():
    network, _ = network_of(replace(SMALL, batch_size=256))
    sizes = []
    for n in (100, 1000, 100_000):
        network.cells_of = {"rna": n, "atac": n}
        sizes.append([phase.batch_size for phase in network.phases()[:2]])
    assert sizes == [[32, 32], [62, 62], [256, 256]]
    network.config = replace(network.config, batch_size=16)
    assert network.phases()[0].batch_size == 16


def test_a_map_does_not_read_its_source():
    atac, rna, to_rna, to_atac = network_of()[0].phases()
    assert (atac.modalities, rna.modalities) == (("atac",), ("rna",))
    assert (to_rna.modalities, to_rna.among) == (("rna",), ("atac",))
    assert (to_atac.modalities, to_atac.among) == (("atac",), ("rna",))
    alone = network_of(replace(SMALL, coassay_only=True))[0].phases()
    assert [phase.among for phase in alone[:2]] == [("rna",), ("atac",)]


def test_cells_of_one_assay_change_the_autoencoders_unless_only_pairs_are_wanted(tmp_path: Path):
    """The same inputs, and the same paired cells; what cells of one assay hold differs."""
    study = study_of(alone=40)
    rng = np.random.default_rng(0)
    turned = study.rows["rna"].copy()
    lone = np.flatnonzero(~study.has("atac"))
    turned[lone] = turned[rng.permutation(lone)[: len(lone) // 2].repeat(2)]  # some twice, others not at all
    other = Study(study.obs, study.measured, dict(study.rows) | {"rna": turned})
    parts = {}
    for name, config in (("all", SMALL), ("pairs", replace(SMALL, coassay_only=True))):
        for number, data in enumerate((study, other)):
            network, feed = network_of(config, study)
            feed = replace(feed, rows=data.rows)
            split = split_of(study)
            phase = replace(network.phases()[1], epochs=1)
            (folder := tmp_path / f"{name}{number}").mkdir()
            Trainer(network, feed, split.train, split.valid, seed=0, folder=folder).run([phase])
            parts[name, number] = network.rna_encoder.first.weight.detach().clone()
    assert not torch.equal(parts["all", 0], parts["all", 1])
    assert torch.equal(parts["pairs", 0], parts["pairs", 1])


def test_released_map_to_rna_has_a_dispersion_of_its_own(tmp_path: Path):
    released = Polarbear.presets["as_released"]
    assert (released.link, released.monitor, released.relearns_dispersion) == ("product", "reconstruction", True)
    network, feed = network_of(replace(SMALL, relearns_dispersion=True, link="product", sampled_maps=True))
    split = split_of(study_of())
    trainer = Trainer(network, feed, split.train, split.valid, seed=0, folder=tmp_path)
    before = network.rna_decoder.head.dispersion.clone()
    trainer.run([replace(network.phases()[2], epochs=1)])
    assert float(network.other_dispersion[0].abs().max()) > 0
    assert torch.equal(network.rna_decoder.head.dispersion, before)


# ---- fits ------------------------------------------------------------------------------------------------------------


def test_trained_twice_with_one_seed_it_is_the_same_and_a_killed_fit_goes_on(tmp_path: Path):
    study = study_of(alone=20)
    one, two = (fitted(tmp_path / name, study=study) for name in ("one", "two"))
    assert same(one, two)
    assert not same(one, fitted(tmp_path / "three", study=study, seed=1))
    for stop in (2, 8):  # within an autoencoder, and within a map
        out = tmp_path / f"stopped{stop}"
        assert fit("polarbear", study, split=split_of(study), out=out, config=SMALL, stop_after=stop) is None
        assert same(one, fitted(out, study=study, resume=True))


@pytest.mark.parametrize("link", ["rate", "product"])
def test_in_bf16_it_learns_what_it_learns_in_float32(tmp_path: Path, link: Any):
    config = replace(SMALL, link=link)
    whole, mixed = (fitted(tmp_path / p, config, precision=p) for p in ("no", "bf16"))
    assert not same(whole, mixed)
    assert {v.dtype for v in mixed.system.state_dict().values() if v.is_floating_point()} == {torch.float32}
    one, two = (log_of(tmp_path / p) for p in ("no", "bf16"))
    for a, b in zip(one, two):
        assert b["valid"]["loss"] == pytest.approx(a["valid"]["loss"], rel=0.02)
    cells = toy_measured(made_of()["rna"], "rna")
    for to in ("rna", "atac"):
        a, b = (of.predict(cells, source="rna", to=to).block(slice(0, 120), slice(0, 60)) for of in (whole, mixed))
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_saved_and_loaded_it_is_the_same(model: Translator, tmp_path: Path):
    model.save(tmp_path / "model")
    again = Translator.load(tmp_path / "model")
    assert same(model, again)
    assert again.system.config == model.system.config
    cells = toy_measured(made_of()["rna"], "rna")
    one, two = (m.predict(cells, source="rna", to="atac").block(slice(0, 9), slice(0, 20)) for m in (model, again))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(("source", "to"), [("rna", "atac"), ("atac", "rna"), ("rna", "rna"), ("atac", "atac")])
def test_one_cell_gives_what_it_gives_among_many(model: Translator, source: Any, to: Any):
    cells = toy_measured(made_of()[source], source)
    n = len(model.var(to))
    many = model.predict(cells, source=source, to=to).block(slice(0, 120), slice(0, n))
    again = model.predict(cells, source=source, to=to).block(slice(0, 120), slice(0, n))
    np.testing.assert_array_equal(many, again)
    one = model.predict(cells.take(np.array([7])), source=source, to=to).block(slice(0, 1), slice(0, n))
    np.testing.assert_allclose(one[0], many[7], rtol=2e-4, atol=1e-5)
    some = model.predict(cells, source=source, to=to).block(slice(5, 9), slice(2, 7))
    np.testing.assert_allclose(some, many[5:9, 2:7], rtol=1e-4, atol=1e-6)
    assert np.isfinite(many).all()
    assert to == "rna" or (many.min() >= 0 and many.max() <= 1)


def test_latents_are_in_the_space_of_the_target(model: Translator):
    made = made_of()
    cells = {m: toy_measured(made[m], m) for m in ("rna", "atac")}
    own = model.latents(cells["atac"], source="atac", to="atac")
    moved = model.latents(cells["rna"], source="rna", to="atac")
    line = model.system.rna_to_atac
    expected = line(torch.from_numpy(model.latents(cells["rna"], source="rna", to="rna"))).detach().numpy()
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-6)
    assert own.shape == moved.shape == (120, 3)
    assert model.system.spaces() == ("rna", "atac")


def test_probabilities_are_calibrated_each_way(model: Translator):
    for source in ("rna", "atac"):
        slope, shift = model.system.get_buffer(f"calibration_{source}").tolist()
        assert (slope, shift) != (1.0, 0.0)


# ---- depth and batch of queries --------------------------------------------------------------------------------------


def test_a_prediction_is_at_the_depth_asked_for(model: Translator):
    cells = toy_measured(made_of()["rna"], "rna")

    def at(depth: Any) -> np.ndarray:
        return model.predict(cells, source="rna", to="atac", depth=depth).block(slice(0, 120), slice(0, 100))

    np.testing.assert_array_equal(at(None), at("predicted"))
    assert not np.allclose(at("predicted"), at("median"))
    assert (at(40.0) > at(10.0)).all()
    assert at("predicted").sum(axis=1).std() > at("median").sum(axis=1).std()
    np.testing.assert_allclose(at(float(model.system.depth)), at("median"), rtol=1e-5)
    with pytest.raises(InputError, match="expression is predicted at the median library"):
        model.predict(cells.take(np.arange(3)), source="rna", to="rna", depth=10.0)
    for depth in (-1.0, 0.0, 120.0):
        with pytest.raises(InputError, match="how many of the model's 120 peaks are open"):
            at(depth)
    with pytest.raises(InputError, match='"median" or "predicted"'):
        at("deep")


def test_a_batch_that_training_did_not_have_is_refused_or_taken_for_one_that_is_named(model: Translator):
    adata = made_of(20)["rna"]
    adata.obs["donor"] = ["d0"] * 8 + ["x1"] * 7 + ["x2"] * 5
    cells = toy_measured(adata, "rna")
    said = "12 of 20 cells are of a batch that the model was not trained on (of 'x1', 'x2'); it knows 'd0', 'd1'."
    for asked in (
        lambda: model.latents(cells, source="rna"),
        lambda: model.predict(cells, source="rna", to="atac"),
        lambda: model.translate(adata, "atac"),
        lambda: model.embed(adata),
    ):
        with pytest.raises(InputError, match=re.escape(said)):
            asked()
    known = toy_measured(made_of(20)["rna"], "rna")
    known.obs["donor"] = ["d0"] * 8 + ["d1"] * 12
    expected = model.latents(known, source="rna")
    np.testing.assert_array_equal(model.latents(cells, source="rna", unknown_batch="d1"), expected)
    largest = model.system.config.batch.names[int(model.system.reference_batch[0])]
    reference = model.latents(cells, source="rna", unknown_batch="reference")
    np.testing.assert_array_equal(reference, model.latents(cells, source="rna", unknown_batch=largest))
    assert not np.allclose(model.latents(cells, source="rna", unknown_batch="d0"), expected)
    with pytest.raises(
        InputError, match=r"--batch .*: no training cell is of batch 'd7'; there are 'd0', 'd1', and 'reference'"
    ):
        model.latents(cells, source="rna", unknown_batch="d7")
    del adata.obs["donor"]
    bare = toy_measured(adata, "rna")
    with pytest.raises(InputError, match=r"20 of 20 cells .* obs has no column 'donor'"):
        model.predict(bare, source="rna", to="atac")
    shape = (
        model.predict(bare, source="rna", to="atac", unknown_batch="reference").block(slice(0, 20), slice(0, 4)).shape
    )
    assert shape == (20, 4)


def test_batches_that_only_validate_are_refused_before_training(tmp_path: Path):
    study = study_of()
    study.obs["donor"] = ["d0"] * 40 + ["d1"] * 40 + ["d2"] * 40
    with pytest.raises(InputError, match=r"40 of 120 cells of the study, none of which trains, .* 'd0', 'd1'"):
        fitted(tmp_path / "refused", study=study, split=toy_split(valid=30, test=10))
    config = replace(SMALL, unknown_batch="reference", epochs=1, map_epochs=1)
    found = fitted(tmp_path / "taken", config, study, split=toy_split(valid=30, test=10))
    assert found.latents(study.of("rna", np.arange(100, 120)), source="rna").shape == (20, 3)


def test_without_batches_nothing_is_asked_of_queries(tmp_path: Path):
    found = fitted(tmp_path / "fit", replace(SMALL, batch=BatchColumn(), epochs=1, map_epochs=1))
    adata = made_of(20)["rna"]
    del adata.obs["donor"]
    cells = toy_measured(adata, "rna")
    assert found.latents(cells, source="rna").shape == (20, 3)
    with pytest.raises(InputError, match="fitted without batches"):
        found.latents(cells, source="rna", unknown_batch="reference")


def test_other_systems_know_neither_depth_nor_batch(tmp_path: Path):
    from translate_toys import toy_fit

    found = toy_fit("babel", tmp_path / "fit", epochs=1)
    cells = toy_measured(toy_anndata(20)["rna"], "rna")
    with pytest.raises(InputError, match="at no depth of its own"):
        found.predict(cells, source="rna", to="atac", depth="median")
    with pytest.raises(InputError, match="without regard to their batch"):
        found.latents(cells, source="rna", unknown_batch="reference")
    assert found.predict(cells, source="rna", to="atac").context is None


def test_commands_take_depth_and_batch(model: Translator, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    import anndata

    from translate.cli_use import embed, predict

    model.save(tmp_path / "model")
    adata = made_of(20)["rna"]
    adata.obs["donor"] = ["x1"] * 20
    adata.write_h5ad(tmp_path / "rna.h5ad")
    asked: Any = partial(predict, str(tmp_path / "model"), input=tmp_path / "rna.h5ad", to="atac")
    with pytest.raises(InputError, match="it knows 'd0', 'd1'"):
        asked(out=tmp_path / "none.h5ad")
    assert not (tmp_path / "none.h5ad").exists()
    asked(out=tmp_path / "median.h5ad", batch="reference", depth="median")
    asked(out=tmp_path / "deep.h5ad", batch="reference", depth=90.0)
    median, deep = (anndata.read_h5ad(tmp_path / f"{name}.h5ad").X for name in ("median", "deep"))
    assert (deep > median).all()
    with pytest.raises(InputError, match="it knows 'd0', 'd1'"):
        embed(str(tmp_path / "model"), input=tmp_path / "rna.h5ad", out=tmp_path / "embedded.h5ad")
    embed(str(tmp_path / "model"), input=tmp_path / "rna.h5ad", out=tmp_path / "embedded.h5ad", batch="d1")
    assert anndata.read_h5ad(tmp_path / "embedded.h5ad").obsm["X_polarbear"].shape == (20, 3)
