"""The running mean of weights while they move: what is watched and kept where a phase asks for it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from translate.pretrained_cells import PretrainedCells


class RunningMean:
    """The exponential mean of the weights and batch statistics of some parts; `share` of it stays at each step.

    Costs one copy of these parts.
    """

    def __init__(self, system: nn.Module, parts: Sequence[str], share: float) -> None:
        self.share = share
        pretrained = [(n, m) for n, m in system.named_modules() if isinstance(m, PretrainedCells)]
        frozen = {f"{name}.{key}" for name, module in pretrained for key, _ in module.named_buffers()}
        self.moving = {
            n: t
            for n, t in system.state_dict(keep_vars=True).items()
            if n.split(".")[0] in parts and t.is_floating_point() and n not in frozen
        }
        self.mean = {name: tensor.detach().clone() for name, tensor in self.moving.items()}

    @torch.no_grad()
    def update(self) -> None:
        """After a step."""
        for name, tensor in self.moving.items():
            self.mean[name].lerp_(tensor, 1 - self.share)

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """The mean in place of the weights; nothing is copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on from a `mean` that was saved."""
        for name, tensor in self.mean.items():
            tensor.copy_(saved[name])

    def _swap(self) -> None:
        for name, tensor in self.moving.items():
            tensor.data, self.mean[name] = self.mean[name], tensor.data
