"""SAILERX pulls latents towards how RNA arranges the same cells: of the cells that have it, inside a group, by their weights;
and is otherwise the invariant autoencoder it is built on."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from translate_toys import toy_anndata, toy_split, toy_study

from expresser.errors import InputError
from translate import fitting
from translate.batches import ReferenceCells
from translate.covariates import BatchColumn
from translate.data import read_study
from translate.elbow import choose_alignment, elbow, elbow_axes, elbow_figure
from translate.feed import Feed
from translate.fitting import build, fit
from translate.losses import comparable_pairs, similarity_loss
from translate.phases import Turn
from translate.preprocess import AtacInput, AtacRecipe
from translate.reference import reference_embedding
from translate.sailerx import Sailerx, SailerxConfig
from translate.splits import Split
from translate.translator import Translator

TOY = SailerxConfig(
    atac=AtacRecipe(min_cells=1, max_share=1.0),
    hidden=(8, 4),
    latent=6,
    reference_dims=8,
    warmup=1,
    epochs=2,
    cycle=4,
    batch_size=32,
    alignment=1e3,
    positive_weight=3.0,
    weights="depth",
)


def cells(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.int64)


def made(study, config=TOY, train=None):
    """A network and the feed it is trained on."""
    train = cells(study.n_cells) if train is None else train
    inputs = {"atac": AtacInput.fit(study.measured["atac"], study.rows["atac"][train], config.atac, None)}
    network = build("sailerx", config, inputs, 0)
    feed = Feed.of(study, inputs, batches=config.batch)
    feed = replace(feed, reference=network.reference(study, train))
    network.prepare(feed, train)
    return network, feed


def hybrid(n: int = 90, paired: int = 60):
    """The last cells have ATAC alone."""
    given = toy_anndata(n)
    return read_study(rna=given["rna"][:paired].copy(), atac=given["atac"], check_pairing=False)


# ---- the alignment ---------------------------------------------------------------------------------------------------


def numpys(z, r, w, group) -> float:
    """Summed over ordered pairs, one by one."""
    total = 0.0
    for i in range(len(z)):
        for j in range(len(z)):
            if group[i] == group[j] and w[i] > 0 and w[j] > 0:
                s = z[i] @ z[j] / np.linalg.norm(z[i]) / np.linalg.norm(z[j])
                t = r[i] @ r[j] / np.linalg.norm(r[i]) / np.linalg.norm(r[j])
                total += w[i] * w[j] * (s - t) ** 2
    return total


def test_the_alignment_is_the_sum_over_pairs_of_a_group():
    rng = np.random.default_rng(0)
    z, r = rng.normal(size=(12, 5)), rng.normal(size=(12, 7))
    w, group = np.where(rng.random(12) < 0.3, 0, rng.random(12)), rng.integers(0, 3, 12)
    r[w == 0] = np.nan
    f = {"weight": torch.tensor(w).float(), "group": torch.tensor(group)}
    ours = similarity_loss(torch.tensor(z).float(), torch.tensor(r).float(), **f)
    assert float(ours.sum()) == pytest.approx(numpys(z, r, w, group), rel=1e-5)
    apart = similarity_loss(torch.tensor(z).float(), torch.tensor(r).float(), **f | {"group": torch.arange(12)})
    assert float(apart.sum()) == pytest.approx(0, abs=1e-8)
    weighed = torch.tensor([0.0, 0.5, 1.0, 1.0, 0.0])
    assert comparable_pairs(weighed, torch.tensor([0, 0, 0, 1, 1])) == 2**2 + 1
    assert comparable_pairs(torch.zeros(5), torch.zeros(5, dtype=torch.int64)) == 1


def test_the_term_of_a_batch_is_a_mean_over_pairs_times_the_factor():
    study = toy_study(60)
    network, feed = made(study)
    batch = feed.batch(cells(20), ("atac",), share=20)
    network.train()
    for turn in (Turn("warmup", "all", 0, 1), Turn("anneal", "all", 3, 1, 3.0)):
        mean, _ = network.encoder(batch.atac)
        r = batch.reference
        expected = numpys(mean.detach().numpy(), r.values.numpy(), r.weight.numpy(), r.group.numpy())
        terms = {name: value.detach() for name, value in network.losses(batch, turn).items()}
        assert float(terms["alignment"]) == pytest.approx(
            1e3 * expected / comparable_pairs(r.weight, r.group), rel=1e-4
        )
        assert ("marginal_kl" in terms) == (turn.phase == "anneal")
    summed = Sailerx(replace(TOY, summed=True), network.inputs)
    summed.load_state_dict(network.state_dict())
    summed.train()
    assert float(summed.losses(batch, turn)["alignment"].detach()) == pytest.approx(1e3 * expected, rel=1e-3)


def test_cells_of_atac_alone_give_no_gradient_and_move_no_other():
    network, feed = made(hybrid())
    network.eval()
    batch = feed.batch(np.array([0, 1, 2, 70, 71, 80]), ("atac",), share=6)
    assert (batch.reference.weight[:3] > 0).any()
    mean = network.encoder(batch.atac)[0].detach().requires_grad_(True)
    network.more(batch, mean, Turn("anneal", "all", 0, 1))["alignment"].backward()
    assert (mean.grad[3:] == 0).all()
    assert (mean.grad[:3].abs().sum(dim=1) > 0).any()
    alone = feed.batch(np.array([0, 1, 2]), ("atac",), share=6)
    own = mean.detach()[:3].clone().requires_grad_(True)
    network.more(alone, own, Turn("anneal", "all", 0, 1))["alignment"].backward()
    torch.testing.assert_close(own.grad, mean.grad[:3])
    only = feed.batch(np.array([70, 71, 80]), ("atac",), share=3)
    terms = {name: float(value.detach()) for name, value in network.losses(only, Turn("anneal", "all", 0, 1)).items()}
    assert terms["alignment"] == 0
    assert all(map(np.isfinite, terms.values()))


def test_groups_are_never_compared():
    study = toy_study(40)
    study.obs["study"] = ["a", "b"] * 20
    network, feed = made(study, replace(TOY, within="study"))
    batch = feed.batch(cells(40), ("atac",), share=40)
    known = batch.reference
    mean = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    both = float(network.more(batch, mean, Turn("anneal", "all", 0, 1))["alignment"])
    parts = 0.0
    for name in (0, 1):
        at = known.group == name
        parts += float(
            similarity_loss(mean[at], known.values[at], weight=known.weight[at], group=known.group[at]).sum()
        )
    assert both == pytest.approx(1e3 * parts / comparable_pairs(known.weight, known.group), rel=1e-5)
    # Whatever one group's reference says, the other's term does not change.
    values = torch.where((known.group == 0)[:, None], known.values, torch.randn(40, known.values.shape[1]))
    moved = replace(batch, reference_cells=ReferenceCells(values, known.weight, known.group))
    own = (known.group == 0).numpy()
    rows = [
        similarity_loss(mean, b.reference.values, weight=b.reference.weight, group=b.reference.group)[own]
        for b in (batch, moved)
    ]
    torch.testing.assert_close(*rows)


def similarity(x):
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return (x @ x.T)[np.triu_indices(len(x), 1)]


def test_the_structure_of_the_reference_is_taken_over_and_atac_alone_embeds(tmp_path):
    """Batches are the toy's two kinds of cells: what is left to RNA is what its latent does not have by itself."""
    given = toy_anndata(240, n_peaks=200, seed=3)
    study = read_study(rna=given["rna"], atac=given["atac"], check_pairing=False)
    split = Split("toy", cells(200), np.arange(200, 240), np.zeros(0, np.int64))
    kinds = BatchColumn("kind")
    config = replace(TOY, warmup=4, epochs=16, cycle=16, weights="even", lr=5e-3, clean="centre", batch=kinds)
    kinds = kinds.settled(study.obs, split.train)
    target = similarity(reference_embedding("pca", study, split.train, dims=8, batches=kinds, clean="centre").values)
    alike, apart = [], []
    for alignment in (0.0, 1e5):
        fitted = fit(
            "sailerx", study, split=split, out=tmp_path / str(alignment), config=replace(config, alignment=alignment)
        )
        assert fitted is not None
        assert list(fitted.inputs) == ["atac"]
        query = given["atac"].copy()
        fitted.embed(query)
        found = similarity(query.obsm["X_sailerx"])
        alike.append(np.corrcoef(found, target)[0, 1])
        apart.append(np.square(found - target).mean())
    assert alike[1] > alike[0] + 0.04, alike
    assert apart[1] < 0.5 * apart[0], apart


# ---- laws of the engine ----------------------------------------------------------------------------------------------


def test_a_step_is_the_same_however_its_cells_are_ordered():
    network, feed = made(hybrid())
    network.eval()
    order = np.random.default_rng(0).permutation(90)
    for turn in (Turn("anneal", "all", 0, 5, 0.3), Turn("anneal", None, 0, 0)):
        one, two = (network.losses(feed.batch(rows, ("atac",), share=90), turn) for rows in (cells(90), order))
        for name, value in one.items():
            torch.testing.assert_close(two[name], value, rtol=2e-5, atol=1e-5)


def test_alternating_steps_on_cells_of_atac_alone_use_the_other_batchs_label(tmp_path):
    study = hybrid()
    study.obs["batch"] = np.where(np.arange(90) % 2, "x", "y")
    config = replace(TOY, alternating=True, batch=BatchColumn("batch").settled(study.obs, cells(90)))
    network, feed = made(study, config)
    assert [[p.name for p in phase.players] for phase in network.phases()] == [["all", "alone"]] * 2
    paired, alone = feed.batch(cells(8), ("atac",), share=8), feed.batch(cells(90)[-8:], ("atac",), share=8)
    turn = Turn("anneal", "alone", 1, key=5, passed=1.0)
    network.eval()  # so that norms do not depend on the step
    terms = network.losses(replace(paired, beside=(alone,)), turn)
    together = feed.batch(np.concatenate([cells(90)[-8:], cells(8)]), ("atac",), share=16)
    codes = torch.cat([alone.sources, 1 - paired.sources])
    usual = network.losses(replace(together, batch_codes=codes), replace(turn, player="all"))
    assert set(usual) - set(terms) == {"alignment"}
    for name in ("reconstruction", "prior_kl", "marginal_kl"):
        assert terms[name].item() == pytest.approx(usual[name].item(), rel=1e-4)
    warm = network.losses(replace(paired, beside=(alone,)), replace(turn, phase="warmup"))
    assert set(warm) == {"reconstruction"}
    fitted = fit("sailerx", study, split=toy_split(60, valid=10), out=tmp_path / "paired", config=config)
    assert [len(phase.players) for phase in fitted.system.phases()] == [1, 1]  # no cell of ATAC alone trains
    split = Split("own", train=np.setdiff1d(cells(90), cells(10)), valid=cells(10), test=cells(0))
    fit("sailerx", study, split=split, out=tmp_path / "run", config=config)
    entry = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[-1])
    assert {"all.alignment", "alone.marginal_kl"} <= set(entry["train"])
    assert "alone.alignment" not in entry["train"]
    assert entry["cells"] == 50  # the pairs; those of ATAC alone go beside them


def test_a_cell_alone_is_embedded_as_among_many(tmp_path):
    fitted = fit("sailerx", hybrid(), split=toy_split(90, valid=20), out=tmp_path / "run", config=TOY)
    assert fitted is not None
    query = toy_anndata(30, seed=9)["atac"]
    one = query[[4]].copy()
    fitted.embed(query)
    fitted.embed(one)
    np.testing.assert_allclose(one.obsm["X_sailerx"][0], query.obsm["X_sailerx"][4], rtol=1e-4, atol=1e-5)


def test_killed_and_resumed_is_the_run_undisturbed_and_a_saved_model_the_same(tmp_path):
    study, split = hybrid(), toy_split(90, valid=20)
    study.obs["batch"] = np.repeat(["paired", "alone"], [60, 30])
    config = replace(TOY, batch=BatchColumn("batch"))
    whole = fit("sailerx", study, split=split, out=tmp_path / "whole", config=config)
    parts = None
    for epochs in (1, 2, 3, 4):
        parts = fit(
            "sailerx", study, split=split, out=tmp_path / "cut", config=config, resume=epochs > 1, stop_after=epochs
        )
    loaded = Translator.load(tmp_path / "cut")
    assert loaded.system.config == whole.system.config
    for name, value in whole.system.state_dict().items():
        torch.testing.assert_close(parts.system.state_dict()[name], value, rtol=0, atol=0)
        torch.testing.assert_close(loaded.system.state_dict()[name], value, rtol=0, atol=0)
    atac = study.measured["atac"]
    np.testing.assert_array_equal(loaded.latents(atac, source="atac"), whole.latents(atac, source="atac"))


def test_five_steps_are_as_they_were():
    """Golden: made by this test on 2026-11-22, torch 2.13 on a CPU, one thread; the study is `hybrid()`."""
    network, feed = made(hybrid())
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], 1e-2)
    network.train()
    curve = []
    for step in range(5):
        batch = feed.batch(np.arange(step * 7, step * 7 + 60) % 90, ("atac",), share=60)
        terms = network.losses(batch, Turn("anneal", "all", step, 7, step / 2))
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimizer.step()
        curve.append([float(terms[name].detach()) for name in ("reconstruction", "marginal_kl", "alignment")])
    np.testing.assert_allclose(curve, GOLDEN, rtol=1e-3, atol=1e-3)


GOLDEN = [
    [251.118, 0.0, 18.364],
    [248.978, 1.664, 11.377],
    [248.181, 3.339, 7.348],
    [246.944, 4.87, 5.51],
    [243.249, 6.035, 3.582],
]


def test_what_cannot_be_is_refused(tmp_path):
    study, split = toy_study(60), toy_split(60, valid=15)
    with pytest.raises(InputError, match="choose_alignment gives a configuration with a number"):
        fit("sailerx", study, split=split, out=tmp_path / "a", config=replace(TOY, alignment="elbow"))
    with pytest.raises(InputError, match="sailerx needs rna"):
        fit("sailerx", toy_study(60, ("atac",)), split=split, out=tmp_path / "b", config=TOY)
    with pytest.raises(InputError, match="it is pca, obsm:KEY or expresser:MODEL"):
        fit("sailerx", study, split=split, out=tmp_path / "c", config=replace(TOY, reference="mofa"))


def test_the_presets_are_the_papers():
    paper = Sailerx.presets["paper"]
    assert (paper.hidden, paper.latent, paper.network) == ((64, 32), 50, "chromosome")
    assert (paper.positive_weight, paper.lr, paper.batch_size, paper.reference) == (20, 1e-4, 200, "pca")
    assert (Sailerx.presets["as_released"].alignment, Sailerx.presets["as_released"].summed) == (6000, True)


# ---- the scaling factor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ([1.0, 0.6, 0.3, 0.29, 0.28], 3.0),  # flat from there
        ([1.0, 0.99, 0.5, 0.48, 0.47], 3.0),  # a step that does little is no end where more follows
        ([1.0, 0.8, 0.6, 0.4, 0.2], 5.0),  # falls to the end
        ([1.0, 1.2, 1.1, 1.3, 1.5], 1.0),  # never falls
        ([1.0, 0.5, 0.7, 0.5, 0.6], 2.0),  # noise
    ],
)
def test_the_elbow_is_where_no_fall_is_left(local, expected):
    factors = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert elbow(factors, np.array(local), share=0.1) == expected
    with pytest.raises(ValueError, match="must ascend"):
        elbow(factors[::-1].copy(), np.array(local))


def test_the_factor_is_chosen_again_from_what_is_there(tmp_path, monkeypatch):
    study, split = toy_study(80), toy_split(80, valid=20)
    told = []
    ask = {"factors": (1e5, 1e1), "epochs": 2}
    config = replace(TOY, alignment="elbow", epochs=50)
    chosen, table = choose_alignment(study, split, config, tmp_path / "grid", 0, lambda *said: told.append(said), **ask)
    assert chosen == replace(config, alignment=chosen.alignment)
    assert table["factor"].tolist() == [1e1, 1e5]
    assert table.loc[table["chosen"], "factor"].tolist() == [chosen.alignment]
    assert table["train"].iloc[1] < table["train"].iloc[0]
    assert [(done, most) for done, most, _ in told] == [(i + 1, 6) for i in range(6)]
    log = [json.loads(line) for line in (tmp_path / "grid" / "10" / "log.jsonl").read_text().splitlines()]
    assert table["valid"].iloc[0] == pytest.approx(log[-1]["valid"]["alignment"] / 10)
    monkeypatch.setattr(fitting, "Trainer", None)  # a second time nothing is trained
    again, same = choose_alignment(study, split, config, tmp_path / "grid", 0, **ask)
    assert again == chosen
    assert same.equals(table)
    assert (tmp_path / "grid" / "elbow.tsv").read_text().startswith("factor\ttrain\tvalid")
    assert "<svg" in elbow_figure(table).svg
    assert "less than 10% of its value" in elbow_figure(table).caption
    assert "less than 25% of its value" in elbow_figure(table, share=0.25).caption
    for summed, words in ((False, "mean over pairs"), (True, "sum over the pairs of a step")):
        assert elbow_axes(Figure().subplots(), table, summed=summed).get_ylabel() == f"L_local, {words}"
    with pytest.raises(InputError, match="factors must be above 0"):
        choose_alignment(study, split, config, tmp_path / "none", factors=(0.0, 1.0))


# ---- several processes -----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_sailerx import TOY, hybrid
from translate_toys import toy_split
from translate.fitting import fit
fit("sailerx", hybrid(), split=toy_split(90, valid=20), out={out!r}, config=TOY)
"""


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    logs = []
    for number in (1, 2):
        script = tmp_path / f"fit{number}.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / str(number))))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if number > 1 else []
        done = subprocess.run(
            [sys.executable, *launch, str(script)], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-6000:]
        logs.append([json.loads(line) for line in (tmp_path / str(number) / "log.jsonl").read_text().splitlines()])
    for a, b in zip(*logs, strict=True):
        assert b["train"] == pytest.approx(a["train"], rel=1e-4, abs=1e-4)
        assert b["valid"] == pytest.approx(a["valid"], rel=2e-3)
