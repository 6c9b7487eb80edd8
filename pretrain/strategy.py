"""How the work of a run is shared: one process, or several with the same weights (DDP)."""

import math
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor

from expresser.model.cells import Cells, Views
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.optimizer_state import optimizer_tensors, restore_optimizer
from pretrain.config import Recipe


class Strategy:
    """One process, or DDP: every process holds all weights and moments, gradients are averaged with a step's last micro-batch.

    Losses are those of one process: the caller divides each micro-batch's sum by the targets of the *global* batch, and `backward`
    undoes the division by the number of processes that averaging brings.

    Relations
    ---------
    :class:`pretrain.zero.Zero` shares weights and moments out too; :func:`pretrain.zero.begin` chooses.
    """

    name = "ddp"
    shared_forward = False
    """Whether all processes must do as many forward passes as one another."""

    def __init__(self, recipe: Recipe, out: Path, plugin: Any = None) -> None:
        self.clip = recipe.optim.grad_clip
        self.bf16 = recipe.precision == "bf16"
        if not torch.accelerator.is_available():
            # Accelerate imports DeepSpeed where it is installed, which would guess, aloud.
            os.environ.setdefault("DS_ACCELERATOR", "cpu")
        AcceleratorState._reset_state()  # a second run in this process may share its work otherwise
        group: dict[str, Any] = {"timeout": timedelta(minutes=recipe.timeout_minutes)}
        if plugin is not None and not torch.cuda.is_available():
            group["backend"] = "gloo"
        alone = plugin is None and not torch.accelerator.is_available()
        self.accelerator = Accelerator(
            cpu=alone,  # said to be so: else processes without an accelerator would each believe that they are the only one
            mixed_precision="no",  # autocast is ours, the same for all strategies
            log_with=None if recipe.tracker == "none" else recipe.tracker,
            project_config=ProjectConfiguration(project_dir=str(out), logging_dir=str(out / "tracker")),
            kwargs_handlers=[InitProcessGroupKwargs(**group)],
            deepspeed_plugin=plugin,
        )
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.device = self.accelerator.device
        self.is_main = self.accelerator.is_main_process

    def prepare(
        self,
        model: ExpresserPreTrainedModel,
        optimizer: torch.optim.Optimizer,
        moments: Mapping[str, Tensor] | None,
        where: str = "",
    ) -> None:
        """Take over the model and its optimiser, with the optimiser's state of a checkpoint (as `optimizer_state` gave it)."""
        self.network = model
        if self.bf16:
            # Weights, moments and the loss stay float32; products inside the model are bf16.
            model.forward = torch.autocast(self.device.type, torch.bfloat16)(model.forward)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.model.train()
        if moments is not None:
            self._restore(moments, where)

    def _restore(self, moments: Mapping[str, Tensor], where: str) -> None:
        restore_optimizer(self.optimizer.optimizer, dict(self.network.named_parameters()), moments, where=where)

    def __call__(self, cells: Cells, views: Views) -> Tensor:
        """The model's prediction of each query, float32."""
        return self.model(cells, views).prediction

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """Around forward and backward of a micro-batch: gradients are exchanged with the last one of a step only."""
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.model):
                yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of this micro-batch's share of the step's loss."""
        (loss * self.world).backward()

    def step(self) -> Tensor:
        """Move the weights and forget the gradients; returns their norm before clipping. One that is no number moves nothing."""
        norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip or math.inf)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.optimizer.zero_grad()
        return norm

    def whole(self) -> ExpresserPreTrainedModel:
        """The model with all its weights, in the main process. All processes must ask."""
        return self.network

    def optimizer_state(self) -> dict[str, Tensor]:
        """The optimiser's state by name of weight, the same whatever the strategy, in the main process. All processes must ask."""
        return optimizer_tensors(self.optimizer.optimizer, dict(self.network.named_parameters()))

    def sum(self, *numbers: float) -> list[float]:
        """Sums over all processes, float64."""
        if self.world == 1:  # not every accelerator has float64
            return [float(number) for number in numbers]
        return self.accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device), "sum").tolist()

    def end(self) -> None:
        """Close trackers and the process group: nothing can be waited for after it."""
        try:
            self.accelerator.end_training()
        except OSError as error:  # a tracker that could not write its last lines
            print(f"warning: the tracker did not close: {error}", file=sys.stderr)
            self.accelerator.trackers = []
            self.accelerator.end_training()
