"""Proof that all processes of a run begin with the same data at the same place: else cells are lost or seen twice, unnoticed."""

import hashlib
from collections.abc import Callable, Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from expresser.errors import InputError


def agree(accelerator: Accelerator, facts: Mapping[str, object]) -> None:
    """Compare facts about how the run begins over all processes; every process must call this, with the same names.

    Raises
    ------
    InputError
        On every process, if one differs. It names the facts, the processes that differ from process 0, and this process's own values.
    """
    digests = [hashlib.sha256(repr(fact).encode()).digest()[:8] for fact in facts.values()]
    mine = torch.tensor([[int.from_bytes(digest, "little", signed=True) for digest in digests]])
    everyone = accelerator.gather(mine.to(accelerator.device)).cpu()
    differs = everyone != everyone[0]
    if not differs.any():
        return
    names = [name for name, differ in zip(facts, differs.any(0).tolist()) if differ]
    others = ", ".join(str(rank) for rank in torch.nonzero(differs.any(1)).flatten().tolist())
    own = ", ".join(f"{name} {facts[name]}" for name in names)
    raise InputError(
        f"the {len(everyone)} processes do not begin alike: {', '.join(names)} of process {others} is not that of process 0 "
        f"(process {accelerator.process_index} has {own}). Give all nodes the same corpus, options and version of expresser, and an "
        "--out that all of them see, with the same checkpoints."
    )


def by_main(accelerator: Accelerator, action: Callable[[], object]) -> None:
    """Do something in the main process alone; what it refuses, every process refuses. All processes must call this.

    Raises
    ------
    InputError
        In every process, if the action raised one: else the others would wait for a process that has gone.
    """
    fault: list[str | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except InputError as error:
            fault = [str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(fault)
    if fault[0] is not None:
        raise InputError(fault[0])
