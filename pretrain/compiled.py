"""torch.compile of the forward pass of training, on batches of static shape."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from expresser.corpus.budgets import StaticShapes
from expresser.errors import InputError
from expresser.model.cells import Cells, Views
from expresser.model.fixed import FixedRagged, settle
from expresser.model.modeling import ExpresserOutput, ExpresserPreTrainedModel
from pretrain.config import Recipe

CompileMode = Literal["default", "reduce-overhead", "max-autotune-no-cudagraphs"]


def compiles(recipe: Recipe) -> bool:
    """Whether the recipe asks for a compiled model.

    Raises
    ------
    InputError
        If it does and cannot have it: dropout would draw other numbers than the plain model, the naive implementation pads to
        max_genes, and of weights that ZeRO-3 holds in shares a compiled region would see the shares.
    """
    if not recipe.compile:
        return False
    rules = (
        ("model.dropout", recipe.model.dropout, recipe.model.dropout == 0, "0"),
        ("implementation", recipe.implementation, recipe.implementation == "packed", "packed"),
        ("strategy", recipe.strategy, recipe.strategy != "zero3", "auto, ddp or zero2"),
    )
    for name, value, holds, rule in rules:
        if not holds:
            raise InputError(f"{name} is {value}: to compile the model it must be {rule}. Or leave --compile out.")
    return True


def compile_forward(
    model: ExpresserPreTrainedModel,
    shapes: StaticShapes,
    *,
    mode: CompileMode = "default",
    backend: str | Callable[..., Any] = "inductor",
) -> None:
    """Let the model send batches of static shape through a compiled forward pass, one graph a shape; others go as before.

    To be called before the model is wrapped (autocast, DDP, DeepSpeed): the compiled region is then the model alone, what the wrapper
    does with gradients stays outside, and autocast reaches in. Parameters keep their names, and checkpoints do not know of it.

    ``reduce-overhead`` replays CUDA graphs; ``max-autotune-no-cudagraphs`` tries kernels for minutes first. Both are for CUDA.
    """
    plain, parameters = model.forward, list(model.parameters())

    def prediction(cells: Cells, views: Views) -> Tensor:
        return plain(cells, views).prediction

    chosen: dict[str, Any] = {"backend": backend} if backend != "inductor" or mode == "default" else {"mode": mode}
    compiled = torch.compile(prediction, fullgraph=True, dynamic=False, **chosen)
    # Every shape is a graph. There must be room for all, of several runs in one process: beyond the limit is an error.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 8 * len(shapes.shapes))

    def forward(cells: Cells, views: Views) -> ExpresserOutput:
        if not isinstance(cells.rows, FixedRagged):
            return plain(cells, views)
        for rows in (cells.rows, views.query_rows, views.context_rows):
            settle(rows)
        if mode == "reduce-overhead":
            torch.compiler.cudagraph_mark_step_begin()
            for parameter in parameters:
                # Gradients are added to memory of their own: a graph's memory is written again by its next replay.
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        return ExpresserOutput(prediction=compiled(cells, views))

    model.forward = forward
