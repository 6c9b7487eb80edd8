"""The engine moves who plays and nobody else, stops and slows down by the rules, and can be killed anywhere."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from translate_toys import BABEL, CONFIGS, SCMOG, toy_fit, toy_split, toy_study

from expresser.errors import InputError
from translate import fitting
from translate.feed import Feed
from translate.fitting import build, fit
from translate.phases import (
    Beside,
    Optimizer,
    Phase,
    Player,
    cuts,
    going_round,
    named_parameters,
    playing,
)
from translate.schedules import Plateau, Watch
from translate.splits import Split
from translate.study import Study
from translate.trainer import Trainer
from translate.translator import Translator

# ---- batches of an epoch ---------------------------------------------------------------------------------------------


@given(n=st.integers(0, 60), size=st.integers(1, 20))
@settings(max_examples=200, deadline=None)
def test_cuts_take_every_cell_once_and_leave_none_alone(n: int, size: int):
    cells = np.arange(n, dtype=np.int64)[::-1].copy()
    parts = list(cuts(cells, size))
    np.testing.assert_array_equal(np.concatenate([*parts, np.zeros(0, np.int64)]), cells)
    assert all(len(part) <= size + 1 for part in parts)
    if size > 1 < n:
        assert min(len(part) for part in parts) > 1


# ---- schedules -------------------------------------------------------------------------------------------------------


@given(losses=st.lists(st.integers(1, 40), min_size=1, max_size=60), patience=st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_the_plateau_is_torchs(losses: list[int], patience: int):
    plateau = Plateau(factor=0.5, patience=patience, threshold=1e-2, floor=1e-3)
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=1e-2, min_lr=1e-3, eps=0
    )
    watch = Watch(None, 1e-4, plateau)
    for epoch, loss in enumerate(losses):
        watch.see(epoch, float(loss), math.nan)
        theirs.step(float(loss))
        assert watch.rate(0.1) == pytest.approx(optimizer.param_groups[0]["lr"])


def test_a_plateau_of_the_training_loss_does_not_look_at_validation():
    watch = Watch(None, 1e-4, Plateau(patience=0, watches="train", floor=0.0))
    for epoch, trained in enumerate([3.0, 2.0, 1.0, 1.0, 1.0]):
        watch.see(epoch, 5.0, trained)
    assert watch.rate(1.0) == pytest.approx(0.01)
    other = Watch(None, 1e-4, Plateau(patience=0, floor=0.0))
    for epoch in range(3):
        other.see(epoch, 3.0 - epoch, 5.0)
    assert other.rate(1.0) == 1.0


def test_patience_counts_epochs_without_a_better_loss_by_the_threshold():
    watch = Watch(patience=2, threshold=0.1, plateau=None)
    assert [watch.see(i, loss, math.nan) for i, loss in enumerate([10.0, 9.5, 8.9])] == [True, False, True]
    assert not watch.over
    assert [watch.see(i, loss, math.nan) for i, loss in enumerate([math.nan, 8.5], 3)] == [False, False]
    assert watch.over
    assert (watch.best, watch.best_epoch) == (8.9, 2)
    negative = Watch(patience=1, threshold=0.1, plateau=None)
    assert [negative.see(i, loss, math.nan) for i, loss in enumerate([-10.0, -10.5, -12.0])] == [True, False, True]


def test_a_watch_goes_on_where_it_was():
    one = Watch(3, 1e-4, Plateau(patience=1))
    for epoch, loss in enumerate([3.0, 2.0, 2.5, 2.5]):
        one.see(epoch, loss, loss)
    two = Watch(3, 1e-4, Plateau(patience=1))
    two.restore(json.loads(json.dumps(one.saved())))
    assert two == one
    fresh = Watch(3, 1e-4, None)
    fresh.restore(json.loads(json.dumps(fresh.saved())))  # an infinity goes through JSON
    assert fresh.best == math.inf


# ---- a system whose losses are written down --------------------------------------------------------------------------


class Scripted(nn.Module):
    """One weight that moves by the learning rate a step; validation losses of each phase and epoch are given."""

    def __init__(self, **valid: list[float]) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        self.script, self.seen, self.turns, self.begun, self.beside = valid, {}, [], [], []

    def begin(self, phase, feed, train, *, fresh):
        self.begun.append((phase.name, fresh))

    def losses(self, batch, turn):
        self.turns.append((turn.phase, turn.player, turn.epoch, len(batch), batch.share))
        self.beside.append(
            (turn.player, turn.epoch, [part.rows.tolist() for part in batch.beside], batch.rows.tolist())
        )
        if turn.player is None:
            self.seen[turn.phase, turn.epoch] = self.one.weight.detach().clone()
            return {"watched": torch.tensor(self.script[turn.phase][turn.epoch]), "other": torch.tensor(1.0)}
        part = self.one if turn.player == "one" else self.two
        return {"moving": part.weight.sum(), "still": torch.tensor(float(turn.epoch))}


def run_scripted(
    system: Scripted, phases: list[Phase], folder: Path, *, n_train: int = 10, n_valid: int = 4, **options
) -> Trainer:
    folder.mkdir(exist_ok=True)
    n = n_train + n_valid
    feed = Feed(inputs={}, rows={"protein": np.arange(n)}, protein_values=np.zeros((n, 2), np.float32))
    cells = np.arange(n, dtype=np.int64)
    trainer = Trainer(system, feed, cells[:n_train], cells[n_train:], seed=0, folder=folder, **options)
    trainer.run(phases)
    return trainer


def phase_of(name: str = "only", *, players: tuple[str, ...] = ("one",), epochs: int = 9, **options) -> Phase:
    options = {"batch_size": 5, "monitor": "watched"} | options
    moved = tuple(Player(player, (player,), Optimizer("rmsprop", lr=0.1)) for player in players)
    return Phase(name, moved, ("protein",), epochs, **options)


def test_the_best_weights_come_back_when_patience_runs_out(tmp_path):
    system = Scripted(only=[5.0, 4.0, 3.0, 3.5, 3.2, 1.0])
    trainer = run_scripted(system, [phase_of(patience=2)], tmp_path)
    assert [entry["valid"]["watched"] for entry in trainer.log.entries] == [5.0, 4.0, 3.0, 3.5, pytest.approx(3.2)]
    assert [entry["best"] for entry in trainer.log.entries] == [True, True, True, False, False]
    torch.testing.assert_close(system.one.weight.detach(), system.seen["only", 2], rtol=0, atol=0)
    assert not torch.equal(system.seen["only", 2], system.seen["only", 4])
    assert trainer.finished
    assert not any(p.requires_grad for p in system.parameters())
    assert not any(part.training for part in system.children())


def test_without_patience_all_epochs_run_and_the_last_weights_stay(tmp_path):
    system = Scripted(only=[1.0, 5.0, 6.0, 7.0])
    trainer = run_scripted(system, [phase_of(epochs=4)], tmp_path)
    assert len(trainer.log.entries) == 4
    torch.testing.assert_close(system.one.weight.detach(), system.seen["only", 3], rtol=0, atol=0)


def test_the_sum_of_the_terms_is_watched_where_no_term_is_named(tmp_path):
    system = Scripted(only=[1.0, 0.5])
    entry = run_scripted(system, [phase_of(epochs=2, monitor="loss")], tmp_path).log.entries[-1]
    assert entry["valid"] == {"watched": 0.5, "other": 1.0, "loss": 1.5}
    with pytest.raises(ValueError, match="phase 'only' watches 'nothing'; there are watched, other, loss"):
        run_scripted(Scripted(only=[1.0]), [phase_of(monitor="nothing")], tmp_path / "other")


def test_every_cell_is_taken_once_an_epoch_and_the_log_says_what_was(tmp_path):
    system = Scripted(only=[1.0, 1.0])
    trainer = run_scripted(system, [phase_of(epochs=2, batch_size=4)], tmp_path, n_train=9)
    assert [t[3:] for t in system.turns if t[1] is not None] == [(4, 4), (5, 5)] * 2  # the ninth is not left alone
    assert [(e["phase"], e["epoch"], e["epochs"]) for e in trainer.log.entries] == [("only", 0, 1), ("only", 1, 2)]
    assert [e["train"]["still"] for e in trainer.log.entries] == [0.0, 1.0]
    assert set(trainer.log.entries[0]["train"]) == {"moving", "still", "loss"}
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == trainer.log.entries
    with_two = run_scripted(Scripted(only=[1.0]), [phase_of(players=("one", "two"), epochs=1)], tmp_path / "two")
    assert {"one.moving", "two.moving", "one.loss"} <= set(with_two.log.entries[0]["train"])


def test_a_slower_rate_is_used_and_logged(tmp_path):
    plateau = Plateau(factor=0.1, patience=0, floor=0.0)
    system = Scripted(only=[1.0, 2.0, 3.0, 4.0])
    trainer = run_scripted(system, [phase_of(epochs=4, plateau=plateau, batch_size=10)], tmp_path)
    assert [e["lr"]["one"] for e in trainer.log.entries] == pytest.approx([0.1, 0.01, 0.001, 0.0001])
    weights = torch.cat([system.seen["only", i].flatten() for i in range(4)])
    moved = weights.diff().abs()
    # RMSprop of a constant gradient of 1: step i is the rate over the root of 1 - 0.99^i.
    rates = [0.1, 0.01, 0.001]
    assert moved.tolist() == pytest.approx([r / math.sqrt(1 - 0.99 ** (i + 2)) for i, r in enumerate(rates)], rel=0.01)


def test_a_turn_every_so_many_batches_begins_with_the_first(tmp_path):
    players = (Player("one", ("one",), Optimizer()), Player("two", ("two",), Optimizer(), every=3))
    system = Scripted(only=[1.0])
    run_scripted(system, [Phase("only", players, ("protein",), 1, 2)], tmp_path, n_train=10)
    assert [t[1] for t in system.turns if t[1]] == ["one", "two", "one", "one", "one", "two", "one"]


def test_weights_and_gradients_are_clipped(tmp_path):
    system = Scripted(only=[1.0])
    system.one.weight.data.fill_(0.7)
    player = Player("one", ("one",), Optimizer("rmsprop", lr=0.5), clip_weights=0.01)
    run_scripted(system, [Phase("only", (player,), ("protein",), 1, 5)], tmp_path)
    assert abs(float(system.one.weight)) == pytest.approx(0.01)
    norms = []
    slope = torch.tensor(100.0)
    steep = Scripted(only=[1.0])
    steep.losses = lambda batch, turn: (
        {"watched": torch.tensor(1.0)} if turn.player is None else {"m": slope * steep.one.weight.sum()}
    )
    original = torch.optim.Adam.step

    def spy(self, *args, **more):
        norms.append(float(steep.one.weight.grad.norm()))
        return original(self, *args, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        player = Player("one", ("one",), Optimizer(), clip_norm=5.0)
        run_scripted(steep, [Phase("only", (player,), ("protein",), 1, 5)], tmp_path / "steep")
    assert norms == pytest.approx([5.0, 5.0])


@pytest.mark.parametrize("where", ["train", "valid"])
def test_a_loss_that_is_not_a_number_ends_the_fit_with_the_phase_named(tmp_path, where):
    system = Scripted(first=[1.0], second=[math.nan if where == "valid" else 1.0])
    if where == "train":
        usual = system.losses

        def broken(batch, turn):
            terms = usual(batch, turn)
            return {k: v * math.nan for k, v in terms.items()} if turn.phase == "second" and turn.player else terms

        system.losses = broken
    phases = [phase_of("first", epochs=1), phase_of("second", epochs=1)]
    with pytest.raises(FloatingPointError, match="became nan in epoch 0 of phase 'second'"):
        run_scripted(system, phases, tmp_path)


def test_a_phase_without_cells_is_refused_before_the_first_is_run(tmp_path):
    system = Scripted(first=[1.0], second=[1.0])
    n = 14
    rows = {"protein": np.arange(n), "rna": np.where(np.arange(n) < 11, np.arange(n), -1)}
    feed = Feed(inputs={}, rows=rows, protein_values=np.zeros((n, 2), np.float32))
    cells = np.arange(n, dtype=np.int64)
    trainer = Trainer(system, feed, cells[:10], cells[10:], seed=0, folder=tmp_path)
    phases = [phase_of("first"), replace(phase_of("second"), modalities=("rna", "protein"))]
    with pytest.raises(InputError, match="phase 'second' needs cells measured in rna and protein; of 4 there are 1"):
        trainer.run(phases)
    assert not system.turns


@given(
    n=st.integers(1, 9),
    start=st.integers(0, 30),
    sizes=st.lists(st.integers(1, 25), min_size=1, max_size=6),
)
def test_an_endless_list_goes_on_wherever_it_is_cut(n, start, sizes):
    cells = np.arange(100, 100 + n, dtype=np.int64)
    taken = list(going_round(cells, start, sizes, 3, 1))
    assert [len(part) for part in taken] == sizes
    rounds = -(-(start + sum(sizes)) // n)
    (whole,) = going_round(cells, 0, [rounds * n], 3, 1)
    np.testing.assert_array_equal(np.concatenate(taken), whole[start : start + sum(sizes)])
    assert all(sorted(whole[i * n : (i + 1) * n]) == cells.tolist() for i in range(rounds))  # each cell once a round


def test_cells_beside_go_round_while_the_phases_own_are_passed_once(tmp_path):
    n, own = 14, np.arange(14) < 9  # 9 with protein; 5 with RNA alone, which nobody reads here
    rows = {"protein": np.where(own, np.arange(n), -1), "rna": np.where(own, -1, np.arange(n))}
    feed = Feed(inputs={}, rows=rows, protein_values=np.zeros((n, 2), np.float32))
    system = Scripted(only=[1.0, 1.0, 1.0])
    cells = np.arange(n, dtype=np.int64)
    beside = Beside((), lacks=("protein",), watched=False)
    phase = replace(phase_of(epochs=3, batch_size=3), beside=(beside,))
    valid = cells[[7, 8]]  # none of them lacks protein: what is not watched is not asked for
    Trainer(system, feed, np.setdiff1d(cells, valid), valid, seed=0, folder=tmp_path).run([phase])
    trained = [(epoch, others[0], rows) for player, epoch, others, rows in system.beside if player]
    assert all(len(others) == len(rows) for _, others, rows in trained)
    for epoch in range(3):
        assert sorted(cell for e, _, rows in trained if e == epoch for cell in rows) == list(range(7))
    taken = [cell for _, others, _ in trained for cell in others]
    assert len(taken) == 21
    assert all(sorted(taken[i : i + 5]) == list(range(9, 14)) for i in range(0, 20, 5))
    assert all(others == [] for player, _, others, _ in system.beside if player is None)
    rows["rna"][:6] = 0
    trainer = Trainer(system, feed, np.arange(7), valid, seed=0, folder=tmp_path / "b")
    with pytest.raises(InputError, match="needs cells measured in protein and not in rna; of 7 there are 1"):
        trainer.run([replace(phase, beside=(Beside(("protein",), lacks=("rna",)),))])


def test_cells_of_a_phase_may_need_what_is_not_read(tmp_path):
    n = 14
    rows = {"protein": np.arange(n), "rna": np.where(np.arange(n) % 2, -1, np.arange(n))}
    feed = Feed(inputs={}, rows=rows, protein_values=np.zeros((n, 2), np.float32))
    system = Scripted(only=[1.0])
    cells = np.arange(n, dtype=np.int64)
    phase = replace(phase_of(epochs=1), among=("rna",))
    Trainer(system, feed, cells[:9], cells[9:], seed=0, folder=tmp_path).run([phase])
    assert sorted(cell for player, _, _, rows in system.beside if player for cell in rows) == [0, 2, 4, 6, 8]


def test_a_system_is_told_when_a_phase_begins_and_whether_it_was_begun_before(tmp_path):
    phases = [phase_of("first", epochs=2), phase_of("second", epochs=3)]
    script = {"first": [1.0] * 2, "second": [1.0] * 3}
    system = Scripted(**script)
    run_scripted(system, phases, tmp_path, stop_after=3)
    assert system.begun == [("first", True), ("second", True)]
    system = Scripted(**script)
    run_scripted(system, phases, tmp_path)
    assert system.begun == [("second", False)]


def test_a_phase_that_was_not_begun_when_the_fit_was_killed_is_begun_afresh(tmp_path, monkeypatch):
    phases = [phase_of("first", epochs=2), phase_of("second", epochs=2)]
    script = {"first": [1.0] * 2, "second": [1.0] * 2}
    usual = Trainer._save

    def killed(self, number, epoch, phase, *rest):
        usual(self, number, epoch, phase, *rest)
        if phase is None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", killed)
        with pytest.raises(KeyboardInterrupt):
            run_scripted(Scripted(**script), phases, tmp_path)
    system = Scripted(**script)
    trainer = run_scripted(system, phases, tmp_path)
    assert system.begun == [("second", True)]
    assert [(e["phase"], e["epoch"]) for e in trainer.log.entries] == [(p.name, i) for p in phases for i in range(2)]


def test_a_part_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"moves \['three'\], but the parts are \['one', 'two'\]"):
        named_parameters(Scripted(), Player("p", ("three",), Optimizer()))


# ---- only who plays moves --------------------------------------------------------------------------------------------


def trained(system: str, folder: Path, study: Study | None = None, *, config=None, **options) -> tuple[nn.Module, list]:
    """A run of the engine alone; the state before each turn and after the last."""
    study = toy_study() if study is None else study
    config, split = config or CONFIGS[system], toy_split(study.n_cells)
    inputs = fitting._inputs(study, split, config, None, None)
    network = build(system, config, inputs, 0)
    states = []
    usual = type(network).losses

    def spy(self, batch, turn):  # also of the copy whose weights are the running mean
        states.append((turn, {name: value.clone() for name, value in network.state_dict().items()}))
        return usual(self, batch, turn)

    folder.mkdir(exist_ok=True)
    trainer = Trainer(network, Feed.of(study, inputs), split.train, split.valid, seed=0, folder=folder, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network), "losses", spy)
        trainer.run(network.phases())
    return network, states


@pytest.mark.parametrize("system", ["babel", "scmog"])
def test_only_the_players_move_batch_statistics_included(tmp_path, system):
    modalities = ("rna", "atac", "protein")
    config = replace(CONFIGS[system], **({"critic_turns": 2, "average": None} if system == "scmog" else {}))
    network, states = trained(system, tmp_path, toy_study(modalities=modalities), config=config)
    parts = {(phase.name, player.name): player.parts for phase in network.phases() for player in phase.players}
    buffers = [name for name, _ in network.named_buffers()]
    moved_ever = set()
    for (turn, before), (after_turn, after) in pairwise(states):
        if turn.phase != after_turn.phase:
            continue  # the best weights came back between
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        playing_now = parts.get((turn.phase, turn.player), ())
        assert {name.split(".")[0] for name in moved} == set(playing_now)
        assert not any(name.endswith(".rest") for name in moved)
        moved_ever |= moved
    assert all(n in moved_ever for n in buffers if n.endswith((".mean", ".variance")))
    assert all(name in moved_ever for name, _ in network.named_parameters())


def test_the_critic_plays_on_every_batch_and_its_weights_stay_small(tmp_path):
    config = replace(SCMOG, critic_turns=2, to_atac_batch_size=20, adversarial_epochs=1)
    _, states = trained("scmog", tmp_path, config=config)
    here = [(turn, state) for turn, state in states if turn.phase == "please_critic_rna_to_atac" and turn.player]
    assert [turn.player for turn, _ in here] == ["critic", "generator", "critic", "critic", "generator", "critic"]
    for _, state in here[1:]:
        assert all(float(v.abs().max()) <= 0.01 for name, v in state.items() if name.startswith("atac_critic"))


def test_playing_sets_the_mode_of_every_part():
    system = Scripted()
    playing(system, ("two",))
    assert (system.one.training, system.two.training) == (False, True)
    assert (system.one.weight.requires_grad, system.two.weight.requires_grad) == (False, True)


# ---- fits that are killed --------------------------------------------------------------------------------------------


def log_of(out: Path) -> list[dict]:
    """The log less its times."""
    entries = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in entry.items() if k not in ("seconds", "cells_per_s")} for entry in entries]


def same(one: Translator, two: Translator) -> bool:
    a, b = one.system.state_dict(), two.system.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


CHAINS = {
    "babel": ("babel", ("rna", "atac", "protein"), {"patience": 1, "epochs": 4, "lr": 0.1}),
    "babel_four_networks": ("babel", ("rna", "atac"), {"shared": False, "epochs": 2}),
    "scmog": ("scmog", ("rna", "atac"), {"adversarial_epochs": 2, "to_rna_epochs": 2, "to_atac_epochs": 2}),
    "scmog_focal": ("scmog", ("rna", "atac", "protein"), {"adversarial": False, "to_atac_epochs": 2, "loss": "focal"}),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_killed_after_every_epoch_and_resumed_is_the_run_undisturbed(tmp_path, chain):
    system, modalities, changes = CHAINS[chain]
    study = toy_study(modalities=modalities)
    whole = toy_fit(system, tmp_path / "whole", study, **changes)
    config = replace(CONFIGS[system], **changes)
    split, out = toy_split(study.n_cells), tmp_path / "killed"
    fitted, epochs = None, 0
    while fitted is None:
        epochs += 1
        fitted = fit(system, study, split=split, out=out, config=config, resume=epochs > 1, stop_after=epochs)
        assert epochs <= len(log_of(tmp_path / "whole")) + 1
    assert log_of(out) == log_of(tmp_path / "whole")
    assert epochs == len(log_of(out)) + 1
    assert same(fitted, whole)
    assert same(Translator.load(out), whole)


def test_what_was_done_after_the_last_save_is_done_again(tmp_path):
    """Killed by an exception in the middle: the log has an epoch more than the saved state."""

    class Killed(Exception):
        pass

    def kill(done: int, most: int, note: str) -> None:
        assert most == 6
        if done == 5:
            raise Killed

    phases = [phase_of("first", epochs=3), phase_of("second", epochs=3)]
    scripts = {"first": [3.0, 2.0, 1.0], "second": [3.0, 2.0, 1.0]}
    torch.manual_seed(0)
    system = Scripted(**scripts)
    first = {name: value.clone() for name, value in system.state_dict().items()}
    for name in ("whole", "killed"):
        system.load_state_dict(first)
        if name == "killed":
            with pytest.raises(Killed):
                run_scripted(system, phases, tmp_path / name, save_seconds=0.0, report=kill)
            assert len(log_of(tmp_path / name)) == 5
            with (tmp_path / name / "log.jsonl").open("a") as file:
                file.write('{"phase": "second", "epo')  # and a line that was cut short
            nn.init.constant_(system.one.weight, 9.0)
        run_scripted(system, phases, tmp_path / name)
        if name == "whole":
            last = system.one.weight.detach().clone()
    assert log_of(tmp_path / "killed") == log_of(tmp_path / "whole")
    torch.testing.assert_close(system.one.weight.detach(), last, rtol=0, atol=0)


def test_a_damaged_state_is_refused(tmp_path):
    phases, scripts = [phase_of("first", epochs=3)], {"first": [3.0, 2.0, 1.0]}
    run_scripted(Scripted(**scripts), phases, tmp_path, stop_after=1)
    path = tmp_path / "state" / "optimizers.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match=r"state: the saved state is damaged.*Remove it"):
        run_scripted(Scripted(**scripts), phases, tmp_path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """The folder of a finished fit of BABEL; read only."""
    out = tmp_path_factory.mktemp("babel") / "fit"
    toy_fit("babel", out, epochs=1)
    return out


def test_a_folder_is_one_fit(finished, tmp_path):
    with pytest.raises(InputError, match="holds a run already"):
        toy_fit("babel", finished, epochs=1)
    other = [
        ({"epochs": 2}, "another configuration.*epochs was 1, is 2"),
        ({"epochs": 1, "seed": 1}, "seed was 0, is 1"),
        ({"epochs": 1, "precision": "bf16"}, "precision was 'no', is 'bf16'"),
        ({"epochs": 1, "study": toy_study(seed=5)}, "this run began on study"),
        ({"epochs": 1, "split": toy_split(valid=29)}, "this run began on study"),
    ]
    for changes, words in other:
        study = changes.pop("study", None)
        with pytest.raises(InputError, match=words):
            toy_fit("babel", finished, study, resume=True, **changes)
    with pytest.raises(InputError, match="another configuration"):
        toy_fit("scmog", finished, resume=True)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is not a fit of babel"):
        toy_fit("babel", tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes.txt"]


def test_a_finished_fit_is_returned_at_once(finished, monkeypatch):
    def never(*args, **more):
        raise AssertionError("a finished fit was begun again")

    for name in ("_inputs", "build", "Feed", "Trainer"):
        monkeypatch.setattr(fitting, name, never)
    before = {path: path.stat().st_mtime_ns for path in sorted(finished.rglob("*"))}
    assert same(toy_fit("babel", finished, epochs=1, resume=True), Translator.load(finished))
    assert {path: path.stat().st_mtime_ns for path in sorted(finished.rglob("*"))} == before


def test_a_fit_that_cannot_begin_leaves_nothing(tmp_path):
    study = toy_study()
    few = Split("few", np.arange(50), np.arange(50, 51), np.arange(51, 60))
    with pytest.raises(InputError, match="50 training and 1 validation cells are left of 50 and 1"):
        toy_fit("babel", tmp_path / "out", study, split=few)
    with pytest.raises(InputError, match="scmog has nothing to train"):
        toy_fit("scmog", tmp_path / "out", toy_study(modalities=("rna",)))
    with pytest.raises(InputError, match="babel needs rna"):
        toy_fit("babel", tmp_path / "out", toy_study(modalities=("atac", "protein")))
    for arguments, words in (
        (("nobody", None, None), "no system 'nobody'; there are babel, scmog"),
        (("babel", "best", None), "no preset 'best'; there are default, paper"),
        (("babel", None, SCMOG), "takes a BabelConfig, not a ScmogConfig"),
    ):
        system, preset, config = arguments
        with pytest.raises(InputError, match=words):
            fit(system, study, split=toy_split(), out=tmp_path / "out", preset=preset, config=config)
    assert not (tmp_path / "out").exists()


def test_a_fit_leaves_its_split_its_numbers_and_its_model(finished):
    names = {p.name for p in finished.iterdir()}
    assert {"run.json", "log.jsonl", "split.tsv", "fit.json", "model"} <= names
    lines = [line.split("\t") for line in (finished / "split.tsv").read_text().splitlines()]
    assert lines[0] == ["cell", "part"]
    parts = [part for _, part in lines[1:]]
    assert parts == ["train"] * 80 + ["valid"] * 30 + ["test"] * 10
    metrics = json.loads((finished / "fit.json").read_text())
    (entry,) = log_of(finished)
    assert metrics["phases"]["translate"]["valid"] == entry["valid"]
    assert metrics["cells"] == {"train": 80, "valid": 30, "test": 10, "filtered": 0}
    assert metrics["features"] == {"rna": 60, "atac": 120}


def test_cells_with_too_few_genes_teach_nothing(tmp_path):
    """A cell dropped for its RNA trains, stops and tests nothing, and no peak is chosen by it."""
    study = toy_study()
    shallow = study.measured["rna"].matrix
    rows = np.array([3, 85, 115])
    for row in rows:
        shallow.data[shallow.indptr[row] + 2 : shallow.indptr[row + 1]] = 0
    shallow.eliminate_zeros()
    rna = replace(BABEL.rna, min_genes=5)
    atac = replace(BABEL.atac, min_cells=10)
    fitted = toy_fit("babel", tmp_path / "a", study, rna=rna, atac=atac, epochs=1)
    assert fitted.run["cells"] == {"train": 79, "valid": 29, "test": 9, "filtered": 3}
    split = toy_split()
    kept = [np.setdiff1d(part, rows) for part in (split.train, split.valid, split.test)]
    clean = toy_fit("babel", tmp_path / "b", study, rna=rna, atac=atac, epochs=1, split=Split("kept", *kept))
    assert same(fitted, clean)


# ---- several processes -----------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from translate_toys import toy_fit, toy_split, toy_study
modalities = ("rna", "atac", "protein")
for system, more in (("babel", {{"protein_lr": 1e-3}}), ("scmog", {{"critic_turns": 2}})):
    # 85 cells in batches of 32 and 48, the last ones odd; 34 validate, the last two in a batch of their own.
    study = toy_study(129, modalities)
    more |= {{"split": toy_split(129, valid=34)}}
    toy_fit(system, Path({out!r}) / system, study, **more)
"""


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_are_one(tmp_path, processes):
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONWARNINGS": "error::FutureWarning",
    }
    for number in (1, processes):
        script = tmp_path / f"fit{number}.py"
        script.write_text(SCRIPT.format(tests=str(Path(__file__).parent), out=str(tmp_path / str(number))))
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(number)] if number > 1 else []
        command = [sys.executable, *launch, str(script)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[:6000]
    # A bias before a batch norm does nothing, so its gradient is rounding, which Adam makes steps of. Running means hold it.
    idle = re.compile(
        r"((?<!critic)\.(first|second|(latent|others|hidden)\.[03])|protein_decoder\.0\.0)\.bias$|\.mean$"
    )
    for system in ("babel", "scmog"):
        one, several = (Translator.load(tmp_path / str(number) / system) for number in (1, processes))
        for name, value in one.system.state_dict().items():
            if not idle.search(name):
                # BABEL's proteins are read off a frozen encoder: what its running means are off by, they learn.
                atol = 1e-3 if name.startswith("protein_decoder") else 2e-5
                torch.testing.assert_close(several.system.state_dict()[name], value, rtol=1e-4, atol=atol)
        logs = [log_of(tmp_path / str(number) / system) for number in (1, processes)]
        assert len(logs[0]) == len(logs[1]) > 5
        for a, b in zip(*logs):
            assert (a["phase"], a["epoch"], a["best"]) == (b["phase"], b["epoch"], b["best"])
            assert b["train"] == pytest.approx(a["train"], rel=2e-5, abs=1e-5)
            assert b["valid"] == pytest.approx(a["valid"], rel=1e-3)
