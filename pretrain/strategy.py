"""How the work of a run is shared: one process, several with the same weights (DDP), or weights and moments in shares (ZeRO)."""

import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from expresser.errors import InputError
from expresser.model.cells import Cells, Views
from expresser.model.modeling import ExpresserPreTrainedModel
from expresser.optimizer_state import optimizer_tensors, restore_optimizer
from pretrain.config import Recipe

_LAUNCHER = "ACCELERATE_USE_DEEPSPEED"


class Strategy:
    """One process, or DDP: every process holds all weights and moments, gradients are averaged with a step's last micro-batch.

    Losses are those of one process: the caller divides each micro-batch's sum by the targets of the *global* batch, and `backward`
    undoes the division by the number of processes that averaging brings.
    """

    name = "ddp"
    shared_forward = False
    """Whether all processes must do as many forward passes as one another."""

    def __init__(self, recipe: Recipe, out: Path, plugin: Any = None) -> None:
        self.clip = recipe.optim.grad_clip
        self.bf16 = recipe.precision == "bf16"
        if not torch.accelerator.is_available():
            os.environ.setdefault(
                "DS_ACCELERATOR", "cpu"
            )  # accelerate imports DeepSpeed where it is installed, which guesses aloud
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

    def step(self) -> Tensor | None:
        """Move the weights, forget the gradients; returns the norm of the gradients before clipping, or None where they are not
        clipped. A norm that is no number moves nothing."""
        norm = None
        if self.clip > 0:
            norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.clip)
            if not torch.isfinite(norm):
                return norm
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
        return self.accelerator.reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device), "sum").tolist()

    def end(self) -> None:
        """Close trackers and the process group: nothing can be waited for after it."""
        self.accelerator.end_training()


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

    def step(self) -> Tensor | None:
        """See `Strategy.step`; here the norm is known when the weights have moved, so that a run must stop without saving."""
        self.model.step()
        norm = self.model.get_global_grad_norm()
        return None if norm is None else torch.as_tensor(float(norm))

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
    import logging

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
