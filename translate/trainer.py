"""The one training engine: players take turns on the same batches, watched on cells that nobody trains on."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from jaxtyping import Int64
from torch import Tensor, nn

from expresser.corpus.stream import permutation
from expresser.errors import InputError
from expresser.run_folder import Log
from translate.averages import RunningMean
from translate.batches import Batch
from translate.feed import Feed
from translate.phases import Beside, Phase, Turn, cuts, going_round, named_parameters, noise_key, playing
from translate.schedules import Watch
from translate.state import Saved, load_state, save_state
from translate.study import Modality


@dataclass
class Trainer:
    """Trains a system phase by phase; with `folder` it can be killed at any moment and resumed.

    Results depend on the seed and the cells, not on the number of processes (up to rounding).
    """

    system: Any  # translate.system.System, which imports translate.phases
    feed: Feed
    train: Int64[np.ndarray, " train"]
    valid: Int64[np.ndarray, " valid"]
    seed: int
    folder: Path
    precision: Literal["no", "bf16"] = "no"
    save_seconds: float = 30.0
    report: Callable[[int, int, str], None] | None = None  # epochs done, epochs at most, a note
    stop_after: int | None = None  # epochs; for tests: leave as if killed
    device: torch.device = field(init=False)
    finished: bool = field(init=False, default=False)

    def run(self, phases: Sequence[Phase]) -> list[dict[str, Any]]:
        """Run the phases in order and return the log, one entry an epoch.

        Raises InputError where a phase lacks cells, before any is run; FloatingPointError where a loss is not finite.
        """
        self.prove(phases)
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(mixed_precision=self.precision)
        self.device = self.accelerator.device
        self.system.to(self.device)
        saved = load_state(self.folder / "state")
        if saved is not None:
            self.system.load_state_dict(saved.system)
        self.log = Log(
            self.folder / "log.jsonl",
            position="epochs",
            keep_until=saved.epochs if saved else 0,
            active=self.accelerator.is_main_process,
        )
        self.epochs = saved.epochs if saved else 0
        self.most = sum(phase.epochs for phase in phases)
        self.finished = True
        for number, phase in enumerate(phases):
            if saved is not None and number < saved.phase:
                continue
            # At epoch 0 of a phase nothing of it is done: what was saved is the end of the phase before.
            begun = saved is not None and number == saved.phase and saved.epoch > 0
            here = saved if begun else None
            if not self._run_phase(number, phase, here):
                self.finished = False
                break
        self.system.eval().requires_grad_(False)
        return self.log.entries

    def prove(self, phases: Sequence[Phase]) -> None:
        """InputError where a phase lacks cells; nothing is run or written."""
        for phase in phases:
            for some in (self.train, self.valid):
                self._cells(some, phase), self._beside(some, phase, watched=some is self.valid)
            if phase.batch_size < 2:
                raise InputError(
                    f"phase {phase.name!r}: one cell a batch has no variance to be normalised by; give two or more."
                )

    def _run_phase(self, number: int, phase: Phase, saved: Saved | None) -> bool:
        """Whether the phase came to its end."""
        watch = Watch(phase.patience, phase.threshold, phase.plateau)
        optimizers = {p.name: p.optimizer.build(named_parameters(self.system, p).values()) for p in phase.players}
        parts = [part for player in phase.players for part in player.parts]
        best: Mapping[str, Tensor] | None = None
        start = 0
        if saved is not None:
            start, best = saved.epoch, saved.best
            watch.restore(saved.watch)
            saved.restore_optimizers(self.system, optimizers, phase)
        self.system.eval()
        with torch.no_grad():
            self.system.begin(phase, self.feed, self.train, fresh=saved is None)
            self._agree()
        # Of the weights that the phase begins with, which `begin` may have set.
        mean = RunningMean(self.system, parts, phase.average) if phase.average is not None else None
        if mean is not None and saved is not None and saved.mean is not None:
            mean.restore(saved.mean)
        wrote = time.monotonic()
        for epoch in range(start, phase.epochs):
            if watch.over:
                break
            began = time.perf_counter()
            trained = self._train_epoch(number, phase, epoch, optimizers, watch, mean)
            middle = time.perf_counter()
            with mean.standing_in() if mean is not None else nullcontext():
                judged = self._judge(phase, epoch)
            if phase.monitor not in judged:
                raise ValueError(f"phase {phase.name!r} watches {phase.monitor!r}; there are {', '.join(judged)}.")
            better = watch.see(epoch, judged[phase.monitor], trained.get("loss", math.nan))
            if better and phase.patience is not None:
                with mean.standing_in() if mean is not None else nullcontext():
                    best = {name: value.detach().clone() for name, value in self.system.state_dict().items()}
            self.epochs += 1
            entry = {
                "phase": phase.name,
                "epoch": epoch,
                "epochs": self.epochs,
                "cells": len(self._cells(self.train, phase)),
                "train": trained,
                "valid": judged,
                "best": watch.best_epoch == epoch,
                "lr": {p.name: watch.rate(p.optimizer.lr) * phase.decay**epoch for p in phase.players},
                "seconds": time.perf_counter() - began,
                "cells_per_s": len(self._cells(self.train, phase)) / max(middle - began, 1e-9),
            }
            self.log.write(entry)
            if self.report is not None:
                note = f"{phase.name}: {phase.monitor} {judged[phase.monitor]:.4f} (best {watch.best:.4f})"
                self.report(self.epochs, self.most, note)
            stop = self.stop_after is not None and self.epochs >= self.stop_after
            if stop or time.monotonic() - wrote > self.save_seconds:
                self._save(number, epoch + 1, phase, watch, best, optimizers, mean)
                wrote = time.monotonic()
            if stop:
                return False
        if best is None and mean is not None:
            best = mean.mean
        if best is not None:
            self.system.load_state_dict(self.system.state_dict() | dict(best))
        self._save(number + 1, 0, None, None, None, {})
        return True

    def _train_epoch(
        self,
        number: int,
        phase: Phase,
        epoch: int,
        optimizers: Mapping[str, torch.optim.Optimizer],
        watch: Watch,
        mean: RunningMean | None,
    ) -> dict[str, float]:
        """One pass over the training cells; mean losses by player and term."""
        order = self._cells(self.train, phase)
        order = order[permutation(len(order), self.seed, number, epoch)]
        sums: dict[str, Tensor] = {}
        weights: dict[str, float] = {}
        noise, done = noise_key(self.seed, number, epoch), 0
        beside = self._beside(self.train, phase)
        batches = self._batches(order, phase, beside, start=epoch * len(order), key=(self.seed, number))
        for index, (cells, batch) in enumerate(batches):
            passed = epoch + done / len(order)
            done += len(cells)
            for player in phase.players:
                if index % player.every:
                    continue
                playing(self.system, player.parts)
                optimizer = optimizers[player.name]
                for group in optimizer.param_groups:
                    group["lr"] = watch.rate(player.optimizer.lr) * phase.decay**epoch * group["share"]
                with self.accelerator.autocast():
                    terms = self.system.losses(batch, Turn(phase.name, player.name, epoch, noise, passed))
                loss = torch.stack(list(terms.values())).sum()
                loss.backward()
                moved = list(named_parameters(self.system, player).values())
                self._add_up([p.grad for p in moved if p.grad is not None])
                if player.clip_norm is not None:
                    nn.utils.clip_grad_norm_(moved, player.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                if player.clip_weights is not None:
                    with torch.no_grad():
                        for parameter in moved:
                            parameter.clamp_(-player.clip_weights, player.clip_weights)
                if mean is not None:
                    mean.update()
                for name, value in (terms | {"loss": loss}).items():
                    key = name if len(phase.players) == 1 else f"{player.name}.{name}"
                    sums[key] = sums.get(key, torch.zeros((), device=self.device)) + value.detach() * len(cells)
                    weights[key] = weights.get(key, 0.0) + len(cells)
            if index % 20 == 0:
                self._finite(sums, phase, epoch)
        self._finite(sums, phase, epoch)
        return {key: float(self._total(value)) / weights[key] for key, value in sums.items()}

    def _judge(self, phase: Phase, epoch: int) -> dict[str, float]:
        """Mean losses over the validation cells, every part in eval mode."""
        self.system.eval()
        sums: dict[str, Tensor] = {}
        with torch.no_grad(), self.accelerator.autocast():
            valid = self._cells(self.valid, phase)
            beside = self._beside(self.valid, phase, watched=True)
            for cells, batch in self._batches(valid, phase, beside, start=0, key=(self.seed,)):
                terms = self.system.losses(batch, Turn(phase.name, None, epoch, 0, float(epoch)))
                for name, value in terms.items():
                    sums[name] = sums.get(name, torch.zeros((), device=self.device)) + value * len(cells)
        self._finite(sums, phase, epoch)
        judged = {name: float(self._total(value)) / len(valid) for name, value in sums.items()}
        return judged | {"loss": sum(judged.values())}

    def _cells(self, cells: Int64[np.ndarray, " cells"], phase: Phase) -> Int64[np.ndarray, " measured"]:
        """Those measured in every modality of the phase."""
        return self._some(cells, phase.name, (*phase.modalities, *phase.among), ())

    def _beside(
        self, cells: Int64[np.ndarray, " cells"], phase: Phase, *, watched: bool = False
    ) -> list[tuple[Beside, Int64[np.ndarray, " _"]]]:
        """Those that go along with the phase's own; watched: those that the watched loss needs."""
        kinds = [kind for kind in phase.beside if kind.watched or not watched]
        return [(kind, self._some(cells, phase.name, (*kind.modalities, *kind.among), kind.lacks)) for kind in kinds]

    def _some(
        self,
        cells: Int64[np.ndarray, " cells"],
        phase: str,
        having: Sequence[Modality],
        lacking: Sequence[Modality],
    ) -> Int64[np.ndarray, " some"]:
        wanted = [self.feed.has(modality)[cells] for modality in having]
        wanted += [~self.feed.has(modality)[cells] for modality in lacking]
        has = np.logical_and.reduce(wanted)
        if has.sum() < 2:
            alone = f" and not in {' or '.join(lacking)}" if lacking else ""
            raise InputError(
                f"phase {phase!r} needs cells measured in {' and '.join(having)}{alone}; of {len(cells):,} there are "
                f"{int(has.sum())}. Give more cells, or another split."
            )
        return cells[has]

    def _batches(
        self,
        cells: Int64[np.ndarray, " cells"],
        phase: Phase,
        beside: Sequence[tuple[Beside, Int64[np.ndarray, " _"]]],
        *,
        start: int,
        key: tuple[int, ...],
    ) -> Iterator[tuple[Int64[np.ndarray, " _"], Batch]]:
        """The cells of each step, over all processes, and this process's part of them, with as many of those beside.

        start: how many of those beside have been taken before; key: of their order.
        """
        steps = list(cuts(cells, phase.batch_size))
        streams = [self._read(steps, phase.modalities)]
        for number, (kind, others) in enumerate(beside):
            taken = going_round(others, start, [len(step) for step in steps], *key, number)
            streams.append(self._read(list(taken), kind.modalities))
        for step, (batch, *rest) in zip(steps, zip(*streams)):
            yield step, replace(batch, beside=tuple(rest)) if rest else batch

    def _read(self, steps: Sequence[Int64[np.ndarray, " _"]], modalities: Sequence[Modality]) -> Iterator[Batch]:
        """This process's part of each step."""
        mine = [step[self.accelerator.process_index :: self.accelerator.num_processes] for step in steps]
        for batch in self.feed.batches(mine, modalities, shares=[len(step) for step in steps]):
            yield batch.to(self.device)

    def _add_up(self, gradients: Sequence[Tensor]) -> None:
        """Gradients of parts of one mean: their sum over processes is the gradient of the step."""
        if self.accelerator.num_processes > 1:
            for gradient in gradients:
                torch.distributed.all_reduce(gradient)

    def _agree(self) -> None:
        """All processes go on with the weights of the first: what each worked out may differ by rounding."""
        if self.accelerator.num_processes > 1:
            for value in self.system.state_dict().values():
                torch.distributed.broadcast(value, src=0)

    def _total(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, "sum") if self.accelerator.num_processes > 1 else value

    def _finite(self, sums: Mapping[str, Tensor], phase: Phase, epoch: int) -> None:
        totals = self._total(torch.stack(list(sums.values())))  # of all processes: all stop or none
        for name, value in zip(sums, totals.tolist()):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} became {value} in epoch {epoch} of phase {phase.name!r} in {self.folder}. Fit anew with a "
                    "lower learning rate, or without bf16."
                )

    def _save(
        self,
        number: int,
        epoch: int,
        phase: Phase | None,
        watch: Watch | None,
        best: Mapping[str, Tensor] | None,
        optimizers: Mapping[str, torch.optim.Optimizer],
        mean: RunningMean | None = None,
    ) -> None:
        if self.accelerator.is_main_process:
            self.log.flush()
            moved = {p.name: named_parameters(self.system, p) for p in phase.players} if phase is not None else {}
            save_state(
                self.folder / "state",
                system=self.system.state_dict(),
                best=best,
                mean=mean.mean if mean is not None else None,
                optimizers={name: (optimizers[name], moved[name]) for name in optimizers},
                counters={
                    "phase": number,
                    "epoch": epoch,
                    "epochs": self.epochs,
                    "watch": watch.saved() if watch else {},
                },
            )
