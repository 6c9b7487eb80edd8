"""scACT learns from cells that are never paired: autoencoders that stay as they are while maps between them learn to undo each
other, discriminators that judge a cell under its own label, or transport by the activity of genes where there are no labels."""

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from test_translate_engine import log_of
from torch.nn.functional import binary_cross_entropy_with_logits
from translate_toys import ATAC, RNA, SCACT, toy_anndata, toy_measured

from expresser.errors import InputError
from expresser.metrics.alignment import foscttm
from expresser.simulate import simulate_multiome
from translate.autoencoders import ExpressionHead, balanced_block
from translate.batches import sparse_rows
from translate.covariates import BatchColumn, LabelColumn
from translate.cyclic import AffineMixture, Discriminators, LatentMap, apart, judged_as
from translate.data import read_study
from translate.feed import Feed
from translate.fitting import _inputs, build, fit
from translate.label_free import Coupling, affine, discrepancy
from translate.phases import Turn
from translate.preprocess import AtacInput, AtacRecipe, RnaInput, RnaRecipe
from translate.preprocess.rna import variable_genes
from translate.sampled import Sampled
from translate.scact import Scact, ScactConfig
from translate.splits import Split, split_by_column, split_random
from translate.study import DataWarning, Measured
from translate.translator import Translator

TOY = replace(SCACT, batch_size=16, epochs=2, joint_epochs=2)
N = 60


def alone(n: int = N, *, shift: int = 0, prefix: str = "a"):
    """RNA of n cells, and ATAC of n others. shift: cells that the two have in common fewer; prefix: of ATAC's names."""
    made = toy_anndata(n + shift)
    rna, atac = made["rna"][:n].copy(), made["atac"][shift:].copy()
    atac.obs_names = [prefix + name for name in atac.obs_names]
    return rna, atac


def unpaired(n: int = N, **options):
    rna, atac = alone(n, **options)
    return read_study(rna_only=rna, atac_only=atac, check_pairing=False)


def halves(n: int = N, valid: int = 16) -> Split:
    """RNA cells, then ATAC cells: the last of each validate."""
    part = np.arange(n - valid), np.arange(n - valid, n)
    train, held = (np.concatenate([cells, n + cells]).astype(np.int64) for cells in part)
    return Split("halves", train, held, np.zeros(0, np.int64))


def fitted(out, study=None, config=TOY, **options) -> Translator:
    study = unpaired() if study is None else study
    found = fit("scact", study, split=halves(), out=out, config=config, seed=0, **options)
    assert found is not None
    return found


def made(study=None, config=TOY, train=None):
    """A network and the feed it is trained on, not trained."""
    study = unpaired() if study is None else study
    train = halves().train if train is None else train
    config = replace(config, label=config.label.settled(study.obs, train), batch=config.batch.settled(study.obs, train))
    inputs = _inputs(study, Split("all", train, np.zeros(0, np.int64), np.zeros(0, np.int64)), config, None, None)
    network = build("scact", config, inputs, 0)
    feed = Feed.of(study, inputs, labels=config.label, batches=config.batch)
    network.prepare(feed, train)
    return network, feed


def step(feed: Feed, network: Scact, n: int = 8, shift: int = 0):
    """A batch of the joint phase."""
    phase = network.phases()[-1]
    rna, atac = np.arange(n), N + shift + np.arange(n)
    batch = feed.batch(rna, phase.modalities, share=n)
    return replace(batch, beside=(feed.batch(atac, phase.beside[0].modalities, share=n),))


def same(a: Translator, b: Translator) -> bool:
    one, two = a.system.state_dict(), b.system.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# ---- maps and discriminators -----------------------------------------------------------------------------------------


def test_a_mixture_is_three_affine_maps_of_weighed_matrices():
    torch.manual_seed(0)
    mixture, x = AffineMixture(4, 3, scaled=False), torch.randn(5, 4)
    share = mixture.gate(x).softmax(dim=1)
    out = x
    for layer in range(3):
        matrix = torch.einsum("ck,kij->cij", share, mixture.weight[layer])
        out = (matrix @ out[..., None]).squeeze(-1) + share @ mixture.bias[layer]
        out = torch.nn.functional.prelu(out, mixture.activation.weight) if layer < 2 else out
    torch.testing.assert_close(mixture(x), out, rtol=1e-4, atol=1e-4)
    # Three layers of K matrices and shifts, the weighing network, one slope; each discriminator as in the paper's release.
    counted = sum(p.numel() for p in AffineMixture(20, 10, scaled=False).parameters())
    assert counted == 1260 * 10 + 1344 + 65 * 10 + 1
    assert sum(p.numel() for p in Discriminators(20, 10, dropout=0.1).parameters()) == 632 + 11 * 10


def test_a_residual_map_starts_as_the_identity_or_where_it_is_told():
    x = torch.randn(7, 5, generator=torch.Generator().manual_seed(1))
    mapped = LatentMap(5, 3, residual=True)
    torch.testing.assert_close(mapped(x), x)
    weight, bias = torch.randn(5, 5), torch.randn(5)
    mapped.start_at(weight, bias)
    torch.testing.assert_close(mapped(x), x @ weight + bias)
    with pytest.raises(ValueError, match="no linear part"):
        LatentMap(5, 3, residual=False).start_at(weight, bias)


def test_inverse_maps_cost_no_cycle():
    network, feed = made()
    matrix = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0] + 0.1 * torch.eye(6)
    shift = torch.randn(6)
    network.eval()
    with torch.no_grad():
        network.begin(network.phases()[-1], feed, halves().train, fresh=True)
        network.to_atac.start_at(matrix, shift)
        network.to_rna.start_at(torch.linalg.inv(matrix), -shift @ torch.linalg.inv(matrix))
        terms = network.losses(step(feed, network), Turn("joint", "maps", 0, 1))
        assert float(terms["cycle_rna"]) == pytest.approx(0, abs=1e-5)
        assert float(terms["cycle_atac"]) == pytest.approx(0, abs=1e-5)
        network.to_rna.start_at(torch.zeros(6, 6), torch.zeros(6))
        # All come back to the origin: what is lost is where they were.
        terms = network.losses(step(feed, network), Turn("joint", "maps", 0, 1))
    assert float(terms["cycle_rna"]) == pytest.approx(float(network.at["rna"][:8].abs().mean()), rel=1e-5)
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]])
    assert (float(apart(a, b)), float(apart(a, b, squared=True))) == (1.5, 2.5)


def test_a_cell_is_judged_by_the_discriminator_of_its_own_label_if_both_sides_have_it():
    odds = torch.tensor([[1.0, -2.0, 3.0], [0.5, 2.0, -1.0], [0.5, 2.0, -1.0], [0.5, 2.0, -1.0]])
    label, known = torch.tensor([1, 0, -1, 2]), torch.tensor([True, True, False])
    expected = [math.log1p(math.exp(2)), math.log1p(math.exp(-0.5)), 0.0, 0.0]
    torch.testing.assert_close(judged_as(odds, label, known, real=True), torch.tensor(expected))
    expected = [math.log1p(math.exp(-2)), math.log1p(math.exp(0.5)), 0.0, 0.0]
    torch.testing.assert_close(judged_as(odds, label, known, real=False), torch.tensor(expected))


@pytest.mark.parametrize("foreign", [False, True])
def test_what_is_translated_is_judged_under_its_own_cells_labels(foreign):
    network, feed = made(config=replace(TOY, adversarial=1.0, foreign_labels=foreign))
    network.eval()
    with torch.no_grad():
        network.begin(network.phases()[-1], feed, halves().train, fresh=True)
        batch = step(feed, network, shift=3)
        terms = network.losses(batch, Turn("joint", "discriminators", 0, 1))
        labels = {"rna": batch.labels, "atac": batch.beside[0].labels}
        assert not torch.equal(labels["rna"], labels["atac"])
        z = {"rna": network.at["rna"][:8], "atac": network.at["atac"][N + 3 : N + 11]}
        crossed = {"atac": network.to_atac(z["rna"]), "rna": network.to_rna(z["atac"])}
        for side, other in (("rna", "atac"), ("atac", "rna")):
            judges = network.get_submodule(f"{side}_judges")
            keys = torch.zeros(8, dtype=torch.int64)
            for name, latent, label, real in (
                ("real", z[side], labels[side], 1.0),
                ("translated", crossed[side], labels[side if foreign else other], 0.0),
            ):
                own = judges(latent, keys)[torch.arange(8), label]
                expected = binary_cross_entropy_with_logits(own, torch.full((8,), real))
                assert float(terms[f"{name}_{side}"]) == pytest.approx(float(expected), rel=1e-5)
        fooled = network.losses(batch, Turn("joint", "maps", 0, 1))
    back = network.to_rna(crossed["atac"])
    expected = [
        binary_cross_entropy_with_logits(judge(x, keys)[torch.arange(8), labels["rna"]], torch.ones(8))
        for judge, x in ((network.atac_judges, crossed["atac"]), (network.rna_judges, back))
    ]
    assert float(fooled["adversarial_rna"]) == pytest.approx(float(sum(expected).detach()), rel=1e-5)


# ---- losses of the autoencoders --------------------------------------------------------------------------------------


def test_the_balanced_loss_is_that_of_all_open_peaks_and_a_share_of_the_closed():
    rng = np.random.default_rng(0)
    y = (rng.random((400, 60)) < 0.1).astype(np.float32)
    rows, keys = sparse_rows(sparse.csr_matrix(y), (0, 60)), torch.arange(400)
    p = 0.3
    logits = torch.full((400, 60), math.log(p / (1 - p)))
    n_open, n_closed = y.sum(), (1 - y).sum()
    all_of_them, _ = balanced_block([logits.clone()], rows.block(0), False, keys=keys, share=1.0)
    every = n_open * -(1 - p) * math.log(p) + n_closed * -p * math.log(1 - p)
    assert float(all_of_them) == pytest.approx(every, rel=1e-4)
    none, _ = balanced_block([logits.clone()], rows.block(0), False, keys=keys, share=0.0)
    assert float(none) == pytest.approx(n_open * -(1 - p) * math.log(p), rel=1e-4)
    half, (slope,) = balanced_block([logits.clone()], rows.block(0), True, keys=keys, share=0.5)
    drawn = (float(half) - float(none)) / (-p * math.log(1 - p))
    assert drawn == pytest.approx(n_closed / 2, rel=0.03)
    assert int((slope != 0).sum()) == int(n_open) + round(drawn)
    parts = 0.0  # a cell's entries are drawn the same in any company
    for some in (slice(0, 100), slice(100, 400)):
        block = sparse_rows(sparse.csr_matrix(y[some]), (0, 60)).block(0)
        parts += float(balanced_block([logits[some].clone()], block, False, keys=keys[some], share=0.5)[0])
    assert parts == pytest.approx(float(half), rel=1e-5)


def test_the_balanced_loss_does_not_depend_on_how_many_processes_share_the_step(monkeypatch):
    network, feed = made(config=replace(TOY, masked=True))
    network.eval()
    parts = [N + np.arange(3), N + np.arange(3, 8)]
    batches = [feed.batch(cells, ("atac",), share=8) for cells in parts]

    def loss(batch):
        return float(network.losses(batch, Turn("atac", None, 0, 1))["reconstruction"].detach())

    whole = loss(feed.batch(np.concatenate(parts), ("atac",), share=8))
    # What both processes would have gathered.
    counts = torch.tensor([[len(b.atac.indices), b.atac.n_cells * b.atac.n_features] for b in batches])
    monkeypatch.setattr("translate.scact.gathered", lambda _: counts, raising=False)
    assert sum(map(loss, batches)) == pytest.approx(whole, rel=1e-5)


def test_a_decoder_is_told_only_batches_that_it_learnt():
    """Batch r is of RNA cells alone, a of ATAC cells alone."""
    first, second = alone()
    first.obs["batch"], second.obs["batch"] = ["r", "b", "c"] * (N // 3), ["a", "b", "b"] * (N // 3)
    study = read_study(rna_only=first, atac_only=second, check_pairing=False)
    network, feed = made(study, replace(TOY, batch=BatchColumn("batch")), train=np.arange(2 * N))
    shares = [network.get_buffer(f"batch_share_{side}").tolist() for side in ("rna", "atac")]
    np.testing.assert_allclose(shares, [[0, 1 / 3, 1 / 3, 1 / 3], [1 / 3, 2 / 3, 0, 0]], rtol=1e-6)
    for side, cells in (("rna", np.arange(3)), ("atac", N + np.arange(3))):
        batch = feed.batch(cells, (side,), share=3)
        own = network._batches(batch, 3, side)
        assert own.argmax(dim=1).tolist() == batch.sources.tolist()
        share = network.get_buffer(f"batch_share_{side}")
        assert torch.equal(network._batches(None, 3, side), share.expand(3, -1))
        lacking = replace(batch, batch_codes=torch.tensor([3 if side == "atac" else 0, -1, 1]))
        told = network._batches(lacking, 3, side)
        assert torch.equal(told[:2], share.expand(2, -1))
        assert told[2].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_expression_is_judged_by_squared_differences_of_logs():
    rng = np.random.default_rng(0)
    y = rng.poisson(0.7, (12, 30)).astype(np.float32)
    head, hidden = ExpressionHead(5, 30), torch.randn(12, 5, requires_grad=True)
    loss = head.loss(hidden, sparse_rows(sparse.csr_matrix(y), (0, 13, 30)))
    dense = (head(hidden) - torch.from_numpy(y).log1p()).square().sum()
    torch.testing.assert_close(loss, dense, rtol=1e-4, atol=1e-3)
    grads = [torch.autograd.grad(of, [hidden, head.weight, head.bias]) for of in (loss, dense)]
    for ours, theirs in zip(*grads):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_confounders_cost_what_latents_tell_of_cells(tmp_path):
    network, feed = made(config=replace(TOY, confounder=0.5))
    batch = feed.batch(np.arange(8), ("rna",), share=8)
    terms = network.losses(batch, Turn("rna", None, 0, 1))
    assert set(terms) == {"information", "reconstruction"}
    assert float(terms["information"].detach()) > 0
    plain, _ = made()
    assert set(plain.losses(batch, Turn("rna", None, 0, 1))) == {"reconstruction"}
    found = fitted(tmp_path / "a", config=replace(TOY, confounder=0.5, epochs=1, joint_epochs=1))
    one = found.latents(toy_measured(alone()[0], "rna"), source="rna", to="rna")
    np.testing.assert_array_equal(one, found.latents(toy_measured(alone()[0], "rna"), source="rna", to="rna"))


# ---- fits ------------------------------------------------------------------------------------------------------------


def test_a_fit_without_a_pair_is_the_same_twice_and_comes_back_from_its_folder(tmp_path):
    one, two = fitted(tmp_path / "one"), fitted(tmp_path / "two")
    assert same(one, two)
    loaded = Translator.load(tmp_path / "one" / "model")
    assert same(one, loaded)
    rna = toy_measured(alone()[0], "rna")
    for to in ("rna", "atac"):
        predicted = [of.predict(rna, source="rna", to=to).block(slice(0, 9), slice(3, 40)) for of in (one, loaded)]
        np.testing.assert_array_equal(*predicted)
        assert np.isfinite(predicted[0]).all()
    assert set(one.directions) == {("rna", "rna"), ("rna", "atac"), ("atac", "rna"), ("atac", "atac")}
    assert one.system.spaces() == ("rna", "atac")
    opened = one.predict(rna, source="rna", to="atac").block(slice(0, N - 16), slice(0, len(one.var("atac"))))
    atac = one.inputs["atac"].align(toy_measured(alone()[1], "atac"))[: N - 16]
    assert opened.mean() == pytest.approx(atac.mean(), rel=0.02)  # as many peaks are open as were measured


@pytest.mark.parametrize("changes", [{}, {"masked": True, "feature_cycle": 1.0, "confounder": 0.1}])
def test_in_bf16_it_learns_what_it_learns_in_float32(tmp_path, changes):
    config = replace(TOY, **changes)
    whole, mixed = (fitted(tmp_path / p, config=config, precision=p) for p in ("no", "bf16"))
    assert not same(whole, mixed)
    assert {v.dtype for v in mixed.system.state_dict().values() if v.is_floating_point()} == {torch.float32}
    one, two = (log_of(tmp_path / p) for p in ("no", "bf16"))
    for a, b in zip(one, two):
        assert b["valid"]["loss"] == pytest.approx(a["valid"]["loss"], rel=0.05)
    cells = toy_measured(alone()[0], "rna")
    for to in ("rna", "atac"):
        a, b = (of.predict(cells, source="rna", to=to).block(slice(0, N), slice(0, 50)) for of in (whole, mixed))
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.99


def test_autoencoders_stay_as_they_are_while_maps_learn(tmp_path):
    study = unpaired()
    before = fitted(tmp_path / "before", study, replace(TOY, joint_epochs=1))
    after = fitted(tmp_path / "after", study, replace(TOY, joint_epochs=3))
    one, two = before.system.state_dict(), after.system.state_dict()
    coders = [name for name in one if "coder" in name]
    assert any("mean" in name for name in coders)  # of batch norms
    assert all(torch.equal(one[name], two[name]) for name in coders)
    moved = [name for name in one if name.split(".")[0] in ("to_atac", "to_rna", "rna_judges", "atac_judges")]
    assert any(not torch.equal(one[name], two[name]) for name in moved)


def test_which_cells_were_measured_together_is_never_used(tmp_path):
    """Cells of one name in both modalities, and the same cells under other names, give the same fit."""
    rna, atac = alone(prefix="")
    paired = read_study(rna=rna, atac=atac, check_pairing=False)
    assert len(paired.paired) == N
    assert not len(unpaired().paired)
    config = replace(TOY, input_dropout=0.0, discriminator_dropout=0.0, calibrated=False)
    part = np.arange(N - 16), np.arange(N - 16, N)
    both = Split("both", *(cells.astype(np.int64) for cells in part), np.zeros(0, np.int64))
    together = fit("scact", paired, split=both, out=tmp_path / "paired", config=config, seed=0)
    assert same(together, fitted(tmp_path / "unpaired", config=config))


def test_the_order_of_one_modalitys_cells_moves_nothing_but_rounding():
    """Where the activity of genes sends cells does not know which ATAC cell stands beside which RNA cell."""
    rna, atac = alone()
    order = np.random.default_rng(0).permutation(N)
    one = read_study(rna_only=rna, atac_only=atac, check_pairing=False)
    two = read_study(rna_only=rna, atac_only=atac[order].copy(), check_pairing=False)
    found = []
    for study in (one, two):
        network, feed = made(study, train=np.arange(2 * N))
        network.eval()
        with torch.no_grad():
            network.begin(network.phases()[-1], feed, np.arange(2 * N), fresh=True)
        found.append(network)
    a, b = found
    torch.testing.assert_close(a.sent["rna"][:N], b.sent["rna"][:N], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.sent["atac"][N:][torch.from_numpy(order)], b.sent["atac"][N:], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(a.to_atac.linear.weight, b.to_atac.linear.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("changes", [{}, {"matching": "ot", "label": LabelColumn()}])
def test_killed_after_any_epoch_and_resumed_is_the_fit_undisturbed(tmp_path, changes):
    config = replace(TOY, **changes)
    whole = fitted(tmp_path / "whole", config=config)
    for epochs in (1, 3, 5, 6):
        found = fit(
            "scact",
            unpaired(),
            split=halves(),
            out=tmp_path / "parts",
            config=config,
            seed=0,
            resume=epochs > 1,
            stop_after=epochs,
        )
        assert found is None
    assert same(whole, fitted(tmp_path / "parts", config=config, resume=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"matching": "mmd", "label": LabelColumn()},
        {"matching": "mmd", "label": LabelColumn(), "anchor": 0.0},
        {"feature_cycle": 1.0, "masked": True, "raw_depth": True, "residual": False, "anchor": 0.0},
        {"batch": BatchColumn("kind"), "cycle_squared": True},
    ],
)
def test_other_ways_run(tmp_path, changes):
    """A smoke test."""
    found = fitted(tmp_path / "fit", config=replace(TOY, epochs=1, **changes))
    atac = found.predict(toy_measured(alone()[1], "atac"), source="atac", to="rna").block(slice(0, 5), slice(0, 9))
    assert np.isfinite(atac).all()
    assert (atac >= 0).all()


@pytest.mark.parametrize("preset", sorted(Scact.presets))
def test_presets_are_of_the_published_sizes(preset):
    study = unpaired()
    config = replace(Scact.presets[preset], rna=RNA, atac=ATAC, label=LabelColumn("kind", ("a", "b")))
    network, _ = made(study, config)
    genes = len(network.inputs["rna"].var)
    rna = sum(p.numel() for part in ("rna_encoder", "rna_decoder") for p in network.get_submodule(part).parameters())
    assert (rna - 1281 * genes) < 434_604  # of which 8,340 are never used in the release
    assert network.config.latent == 20


# ---- labels ----------------------------------------------------------------------------------------------------------


def relabelled(rna, atac):
    """A study whose cells have these labels."""
    a, b = alone()
    a.obs["kind"], b.obs["kind"] = rna, atac
    return read_study(rna_only=a, atac_only=b, check_pairing=False)


def test_labels_of_both_sides_are_needed_and_one_must_be_shared(tmp_path):
    with pytest.raises(InputError, match=r"none are given.*--labels.*translate label.*label_free"):
        fitted(tmp_path / "a", config=replace(TOY, label=LabelColumn()))
    nothing = np.full(N, None, object)
    with pytest.raises(InputError, match=r"none of 44 training cells with ATAC has a 'kind'.*translate label"):
        fitted(tmp_path / "a", relabelled(["x"] * N, nothing))
    with pytest.raises(InputError, match="share no 'kind': RNA has 'x'; ATAC has 'y'"):
        fitted(tmp_path / "a", relabelled(["x"] * N, ["y"] * N))
    with pytest.raises(InputError, match="no column 'type'"):
        fitted(tmp_path / "a", config=replace(TOY, label=LabelColumn("type")))
    assert not (tmp_path / "a").exists()


def test_a_type_of_one_side_is_said_and_not_judged():
    study = relabelled(["x", "y"] * (N // 2), ["x", "z"] * (N // 2))
    with pytest.warns(DataWarning) as said:
        network, _ = made(study)
    assert [str(w.message)[:40] for w in said] == [
        "scact: 'y' ('kind') are types of RNA cel",
        "scact: 'z' ('kind') are types of ATAC ce",
    ]
    assert network.shared.tolist() == [True, False, False]


def test_a_type_of_one_side_is_anchored_to_nothing():
    kinds = np.array(["x", "y", "x", "z"] * (N // 4))
    with pytest.warns(DataWarning, match="alone"):
        network, feed = made(relabelled(kinds, np.where(kinds == "y", "w", np.where(kinds == "z", None, "x"))))
    train = halves().train
    network.eval()
    with torch.no_grad():
        network.begin(network.phases()[-1], feed, train, fresh=True)
        terms = network.losses(step(feed, network, shift=1), Turn("joint", "maps", 0, 1))
    shared = {"rna": kinds[:8] == "x", "atac": kinds[1:9] != "y"}  # those without a label may lie anywhere
    for side, to, first in (("rna", "atac", 0), ("atac", "rna", N + 1)):
        moved = network.get_submodule(f"to_{to}")(network.at[side][first : first + 8])
        far = apart(moved, network.sent[side][first : first + 8], squared=True)
        expected = far[torch.from_numpy(shared[side])].sum() / 8
        assert float(terms[f"anchor_{side}"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    own = train[train < N][kinds[train[train < N]] == "x"]
    weight, shift = affine(*(t["rna"][torch.from_numpy(own)].numpy().astype(float) for t in (network.at, network.sent)))
    np.testing.assert_allclose(network.to_atac.linear.weight.detach().numpy().T, weight, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network.to_atac.linear.bias.detach().numpy(), shift, rtol=1e-4, atol=1e-5)


# ---- without labels --------------------------------------------------------------------------------------------------


def test_transport_finds_partners_that_a_rotation_keeps_near_and_places_other_cells():
    rng = np.random.default_rng(0)
    place = rng.normal(size=(60, 3)) * [3, 2, 1]
    latent = place @ rng.normal(size=(3, 3))
    order = rng.permutation(60)
    none = np.full(60, -1)
    coupling = Coupling.fit((place, place[order]), (none, none), (place, latent[order]))
    sent = coupling.sent(place, none, side=0)
    assert np.corrcoef(sent.ravel(), latent.ravel())[0, 1] > 0.97
    back = coupling.sent(place[order], none, side=1)
    assert np.corrcoef(back.ravel(), place[order].ravel())[0, 1] > 0.97
    other = coupling.sent(place[:5] + 1e-6, none[:5], side=0)
    np.testing.assert_allclose(other, sent[:5], atol=1e-3)


def test_transport_keeps_to_labels_and_to_mass_that_is_there():
    rng = np.random.default_rng(0)
    place = rng.normal(size=(40, 2))
    labels = np.repeat([0, 1], [30, 10]), np.repeat([0, 1], [10, 30])
    latent = np.repeat([[0.0], [1.0]], [10, 30], axis=0)
    coupling = Coupling.fit((place, place), labels, (place[:, :1], latent))
    np.testing.assert_allclose(coupling.sent(place, labels[0], side=0)[:, 0], labels[0], atol=1e-6)


def test_the_discrepancy_is_zero_for_one_set_and_grows_with_what_lies_between():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 4, generator=generator)
    value = [sum(float(part.mean()) for part in discrepancy(x, y)) for y in (x, x + 0.5, x + 2.0)]
    assert value[0] == pytest.approx(0, abs=1e-6)
    assert value[0] < value[1] < value[2]


def test_the_affine_map_is_least_squares():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) + 3
    weight, shift = rng.normal(size=(4, 3)), rng.normal(size=3)
    found, by = affine(x, x @ weight + shift, ridge=1e-9)
    np.testing.assert_allclose(found, weight, atol=1e-6)
    np.testing.assert_allclose(by, shift, atol=1e-5)


def test_without_places_of_genes_transport_is_refused_and_labels_go_on(tmp_path):
    rna, atac = alone()
    rna.var = rna.var.drop(columns=["chrom", "tss"])
    study = read_study(rna_only=rna, atac_only=atac, check_pairing=False)
    with pytest.raises(InputError, match=r"no peak lies near a gene of known place.*--genes"):
        fitted(tmp_path / "a", study, replace(TOY, matching="ot", label=LabelColumn()))
    with pytest.warns(DataWarning, match="fitted without"):
        found = fitted(tmp_path / "b", study)
    assert np.isfinite(found.latents(toy_measured(rna, "rna"), source="rna", to="atac")).all()


@pytest.mark.slow
def test_cells_that_were_never_paired_find_each_other(tmp_path):
    """Of simulated cells with no pair and no label, translated latents lie near the cell's own, far better than by chance."""
    given = simulate_multiome(
        n_cells=600, n_genes=1000, n_peaks=4000, n_types=4, rna_depth=1500, atac_depth=800, seed=0
    )
    rna, atac = given.rna.copy(), given.atac[given.atac.obs_names[::-1]].copy()
    atac.obs_names = [f"atac-{name}" for name in atac.obs_names]
    study = read_study(rna_only=rna, atac_only=atac, check_pairing=False)
    config = ScactConfig(
        matching="ot",
        rna=RNA,
        atac=ATAC,
        latent=8,
        rna_hidden=(64, 32),
        atac_hidden=(16, 8),
        epochs=30,
        joint_steps=200,
    )
    found = fit("scact", study, split=split_random(study, shares=(0.85, 0.15, 0.0)), out=tmp_path / "a", config=config)
    assert found is not None
    tested = [toy_measured(of, m) for of, m in ((given.rna, "rna"), (given.atac, "atac"))]
    crossed = found.latents(tested[0], source="rna", to="atac")
    assert foscttm(crossed, found.latents(tested[1], source="atac", to="atac")).mean() < 0.2  # 0.10 when written


# ---- what is made of the counts, and splits --------------------------------------------------------------------------


def test_variable_genes_are_those_of_the_training_cells():
    rng = np.random.default_rng(0)
    rna = toy_anndata(80, 400)["rna"]
    counts = rng.poisson(2.0, (80, 400)).astype(np.float32)
    for i in range(5):  # as much on average; the first vary among the first cells alone, the last among the others
        counts[:40, i], counts[40:, 399 - i] = 0, 0
        counts[i:40:10, i], counts[40 + i :: 10, 399 - i] = 20, 20
    rna.X = sparse.csr_matrix(counts)
    measured = toy_measured(rna, "rna")
    recipe = RnaRecipe(min_genes=0, max_genes=None, n_top_genes=5)
    train = np.arange(40)
    found = RnaInput.fit(measured, train, recipe)
    assert set(found.var.index) == {f"GENE{i:03}" for i in range(5)}
    assert found.left_out["genes_not_variable"] == 395
    other = rna.copy()
    other.X = sparse.csr_matrix(np.vstack([counts[:40], rng.poisson(9.0, (40, 400))]).astype(np.float32))
    again = RnaInput.fit(toy_measured(other, "rna"), train, recipe)
    assert list(again.var.index) == list(found.var.index)
    assert again.median_library == found.median_library
    assert len(RnaInput.fit(measured, train, replace(recipe, n_top_genes=999)).var) == 400
    with pytest.raises(InputError, match="n_top_genes is 0"):
        variable_genes(sparse.csr_matrix(counts), 0)
    arrays, settings = found.saved()
    del settings["recipe"]["n_top_genes"]  # a model saved before there was a choice
    assert RnaInput.restored(arrays, settings).recipe.n_top_genes is None


def test_the_most_telling_peaks_have_the_greatest_sum_of_tf_idf_over_training_cells():
    _, atac = alone(80)
    measured = toy_measured(atac, "atac")
    recipe, train = AtacRecipe(min_cells=1, max_share=1.0), np.arange(50)
    every, some = (AtacInput.fit(measured, train, replace(recipe, n_top_peaks=n)) for n in (None, 30))
    opened = every.align(measured)[:50].toarray()
    value = (opened / opened.sum(1, keepdims=True)).sum(0) * np.log1p(50 / np.maximum(opened.sum(0), 1))
    assert list(some.var.index) == list(every.var.index[np.sort(np.argsort(-value, kind="stable")[:30])])
    assert some.left_out["not_telling"] == len(every.var) - 30
    with pytest.raises(InputError, match="n_top_peaks is 0"):
        AtacInput.fit(measured, train, replace(recipe, n_top_peaks=0))


def test_where_no_cell_is_paired_each_modality_is_split_by_itself():
    study = unpaired()
    split = split_random(study, seed=1)
    for part, share in zip((split.train, split.valid, split.test), (0.7, 0.15, 0.15)):
        assert [int(study.has(m)[part].sum()) for m in ("rna", "atac")] == [round(share * N)] * 2
    assert "each modality by itself" in split.name
    study.obs["donor"] = pd.Categorical(np.tile(["d1", "d2", "d3", "d4"], N // 2))
    whole = split_by_column(study, "donor", valid=["d2"], test=["d3"])
    assert {len(whole.valid), len(whole.test)} == {N // 2}
    assert not len(np.setdiff1d(np.arange(2 * N), np.concatenate([whole.train, whole.valid, whole.test])))


def test_warnings_of_a_fit_are_none(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted(tmp_path / "fit", config=replace(TOY, epochs=1, joint_epochs=1))
    assert isinstance(toy_measured(alone()[0], "rna"), Measured)


# ---- draws of peaks --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """A prediction that is written down."""

    values: np.ndarray
    to: str = "atac"

    @property
    def n_cells(self) -> int:
        return len(self.values)

    @property
    def n_features(self) -> int:
        return self.values.shape[1]

    def block(self, cells: slice, features: slice) -> np.ndarray:
        return self.values[cells, features]


def test_draws_follow_the_probabilities_and_depend_on_seed_cell_and_peak_alone():
    p = np.tile(np.array([0.0, 0.1, 0.5, 0.9, 1.0], np.float32), (4000, 1))
    names = [f"cell{i}" for i in range(4000)]
    drawn = Sampled(Fixed(p), names, 3)
    whole = drawn.block(slice(0, 4000), slice(0, 5))
    np.testing.assert_allclose(whole.mean(axis=0), p[0], atol=0.03)
    assert set(np.unique(whole)) == {0.0, 1.0}
    assert (whole[:, [0, 4]] == [0, 1]).all()
    assert abs(np.corrcoef(whole[:, 1], whole[:, 2])[0, 1]) < 0.06
    np.testing.assert_array_equal(drawn.block(slice(100, 200), slice(1, 4)), whole[100:200, 1:4])
    turned = Sampled(Fixed(p), names[::-1], 3).block(slice(0, 4000), slice(0, 5))
    np.testing.assert_array_equal(turned[::-1], whole)
    other = Sampled(Fixed(p), names, 4).block(slice(0, 4000), slice(0, 5))
    assert (other[:, 2] != whole[:, 2]).mean() == pytest.approx(0.5, abs=0.03)
    with pytest.raises(InputError, match="Only peaks can be drawn"):
        Sampled(Fixed(p, "rna"), names)
