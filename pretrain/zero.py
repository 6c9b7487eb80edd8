"""ZeRO: gradients and moments, or weights too, in shares over the processes of a run, by DeepSpeed."""

import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from expresser.errors import InputError
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.optimizer_state import restore_optimizer
from pretrain.config import Recipe
from pretrain.strategy import Strategy

_LAUNCHER = "ACCELERATE_USE_DEEPSPEED"


class Zero(Strategy):
    """DeepSpeed's ZeRO-2 (gradients and moments in shares) and ZeRO-3 (weights too), Rajbhandari et al., SC 2020.

    Checkpoints are put together from the shares and are the files of any other run: another strategy, or another number of processes,
    can go on from them. Nothing of DeepSpeed's own (pickled) format is written or read.
    """

    shared_forward = True

    def __init__(self, recipe: Recipe, out: Path, stage: int | None) -> None:
        if "LOCAL_RANK" not in os.environ:
            raise InputError(
                "ZeRO shares a model between processes, and this one was started alone. Start it with "
                "`torchrun --nproc_per_node N -m pretrain …` or `accelerate launch`, or say --strategy ddp."
            )
        self._asked_here = _LAUNCHER not in os.environ
        plugin = _plugin(stage, recipe.optim.grad_clip)
        super().__init__(recipe, out, plugin)
        if self.accelerator.distributed_type != DistributedType.DEEPSPEED:
            raise InputError(
                "accelerate left DeepSpeed out: ACCELERATE_USE_CPU makes it do so. Unset it (DeepSpeed is told of the CPU by "
                "DS_ACCELERATOR=cpu), or say --strategy ddp."
            )
        # Accelerate told transformers of ZeRO-3, which would cut every model that is loaded, such as a checkpoint's, into shares.
        unset_hf_deepspeed_config()
        self.stage = int(plugin.zero_stage)
        self.name = f"zero{self.stage}"

    @property
    def _shares(self) -> list[Tensor]:
        """This process's flat shares of the weights, by which the inner optimiser keeps its state."""
        zero = self.model.optimizer
        return list(zero.fp32_partitioned_groups_flat if self.stage == 3 else zero.single_partition_of_fp32_groups)

    def _restore(self, moments: Mapping[str, Tensor], where: str) -> None:
        # Checked, and brought to one form, as for any other run; then cut into shares.
        plain = torch.optim.AdamW([torch.nn.Parameter(torch.empty(s)) for s in self._shapes().values()])
        stand_ins = dict(zip(self._shapes(), plain.param_groups[0]["params"]))
        restore_optimizer(plain, stand_ins, moments, where=where)
        state = {name: plain.state[parameter] for name, parameter in stand_ins.items() if parameter in plain.state}
        steps = max(float(of_one["step"]) for of_one in state.values())
        zero = self.model.optimizer
        for share in self._shares:
            count = torch.tensor(steps, dtype=torch.float32, device=share.device)
            moved = {key: torch.zeros_like(share) for key in ("exp_avg", "exp_avg_sq")}
            zero.optimizer.state[share] = {"step": count} | moved
        self._link()
        for name, parameter in self.network.named_parameters():
            for key in ("exp_avg", "exp_avg_sq") if name in state else ():
                self._set(parameter, key, state[name][key])

    def _link(self) -> None:
        """Tell each weight of ZeRO-2 where its moments lie. DeepSpeed does so once, after the first group of weights has moved, when
        the other groups have no moments yet."""
        if self.stage != 3:
            self.model.optimizer._hp_optimizer_states_linked = False
            self.model.optimizer._lazy_init_hp_params_optimizer_state()

    def _set(self, parameter: nn.Parameter, key: str, value: Tensor) -> None:
        if self.stage != 3:
            parameter.set_full_hp_param(value.to(parameter.device), key)  # type: ignore[attr-defined]
            return
        mine = self.model.optimizer.get_local_fp32_param(parameter, key)
        start = mine.numel() * self.rank  # the last share may reach beyond the weight
        part = value.flatten()[start : start + mine.numel()]
        mine[: part.numel()].copy_(part)

    def _shapes(self) -> dict[str, torch.Size]:
        return {
            name: torch.Size(getattr(parameter, "ds_shape", parameter.shape))
            for name, parameter in self.network.named_parameters()
        }

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        """DeepSpeed exchanges gradients with every micro-batch; the last one may be followed by a step."""
        self.model.set_gradient_accumulation_boundary(is_boundary=last)
        yield

    def backward(self, loss: Tensor) -> None:
        """Gradients of this micro-batch's share of the step's loss."""
        self.model.backward(loss * self.world, scale_wrt_gas=False)

    def step(self) -> Tensor:
        """See `Strategy.step`; here the norm is known when the weights have moved, so that a run must stop without saving."""
        self.model.step()
        return torch.as_tensor(float(self.model.get_global_grad_norm()))

    def whole(self) -> ExpresserPreTrainedModel:
        """Weights gathered one at a time: ZeRO-3 holds none of them whole."""
        if self.stage != 3:
            return self.network
        import deepspeed

        weights = {}
        for name, parameter in self.network.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter]):
                if self.is_main:
                    weights[name] = parameter.detach().to("cpu", copy=True)
        if not self.is_main:
            return self.network
        with torch.device("meta"):
            model = type(self.network)(self.network.config)
        model.load_state_dict(weights | dict(self.network.named_buffers()), assign=True)
        return model

    def optimizer_state(self) -> dict[str, Tensor]:
        """The shares put together, by name of weight."""
        from deepspeed.utils import safe_get_full_optimizer_state

        self._link()
        steps = float(self.model.optimizer.optimizer.state[self._shares[0]]["step"])
        found: dict[str, Tensor] = {}
        for name, parameter in self.network.named_parameters():
            found[f"{name}.step"] = torch.tensor(steps)
            for key in ("exp_avg", "exp_avg_sq"):
                whole = safe_get_full_optimizer_state(parameter, key)
                if self.is_main:
                    found[f"{name}.{key}"] = whole.cpu().contiguous()
        return found

    def end(self) -> None:
        """Also forget that this process used DeepSpeed, where the launcher did not ask for it."""
        super().end()
        if self._asked_here:
            os.environ.pop(_LAUNCHER, None)


def _plugin(stage: int | None, clip: float) -> Any:
    """Accelerate's DeepSpeed plugin: this stage, or what the launcher's configuration says."""
    try:
        import deepspeed
        from accelerate.utils import DeepSpeedPlugin
    except ImportError:
        raise InputError("ZeRO needs DeepSpeed, which is not installed: pip install 'expresser[deepspeed]'.") from None
    deepspeed.utils.logging.logger.setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has since changed, at each of which torch would say so.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    plugin = DeepSpeedPlugin(
        zero_stage=stage, gradient_accumulation_steps=1, gradient_clipping=clip, zero3_init_flag=False
    )
    config = plugin.deepspeed_config
    for half in ("bf16", "fp16"):
        if config.get(half, {}).get("enabled") is True:
            raise InputError(
                f"the DeepSpeed configuration turns {half} on, which keeps weights in {half}. Expresser keeps float32 weights and "
                "computes in bf16 autocast: take that section out and choose with --precision."
            )
    if (stage := config["zero_optimization"]["stage"]) not in (2, 3):
        raise InputError(
            f"the DeepSpeed configuration asks for ZeRO stage {stage}: it must be 2 or 3, or use --strategy ddp."
        )
    # A step's micro-batches differ in number, and the loss is divided by its targets: neither is left to DeepSpeed.
    config["train_micro_batch_size_per_gpu"] = config["gradient_accumulation_steps"] = 1
    config["gradient_clipping"] = clip
    return plugin


def begin(recipe: Recipe, out: Path) -> Strategy:
    """The strategy of a recipe; ``auto`` is what the launcher asked for: ZeRO where it set up DeepSpeed, else DDP.

    Raises
    ------
    InputError
        If ZeRO is asked for without a launcher or without DeepSpeed, or the launcher's configuration is not one that a run can have.
    """
    if recipe.strategy in ("zero2", "zero3"):
        return Zero(recipe, out, int(recipe.strategy[-1]))
    if recipe.strategy == "auto" and os.environ.get(_LAUNCHER, "false").lower() == "true":
        return Zero(recipe, out, None)
    os.environ.pop(_LAUNCHER, None)  # `--strategy ddp` under a launcher that set up DeepSpeed
    return Strategy(recipe, out)
