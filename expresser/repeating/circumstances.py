"""What is other here than where a run was made: versions, threads, device. Reasons why its numbers may not come again."""

import importlib.metadata
import os
import platform
from collections.abc import Mapping

from expresser import __version__
from expresser.foreign import printable, shortened
from expresser.record import VERSIONED
from expresser.repeating.recorded import Recorded


def doubts(recorded: Recorded) -> list[str]:
    """A line for each difference between then and now, with the way out; none where nothing is known to differ."""
    import torch

    found = [
        f"{name} {now or 'is not installed'}, then {_said(then, 'not installed')}"
        for name, then in recorded.versions.items()
        if name in VERSIONED and (now := _version(name)) != then
    ]
    told = [f"versions differ ({'; '.join(found)}): install those of then for the same bits"] if found else []
    machine: Mapping[str, object] = recorded.machine
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if "accelerator" in machine and machine["accelerator"] != device:
        told.append(f"the device is {device or 'the CPU'}, then {_said(machine['accelerator'], 'the CPU')}")
    if not recorded.environment and "cpus" in machine and machine["cpus"] != os.cpu_count():
        told.append(
            f"{os.cpu_count()} CPUs, then {_said(machine['cpus'])}, with as many threads: sums may be rounded in another order. "
            f"OMP_NUM_THREADS={_said(machine.get('torch_threads'))} gives torch as many as then"
        )
    if "platform" in machine and machine["platform"] != platform.platform():
        told.append(f"the machine is {platform.platform()}, then {_said(machine['platform'])}")
    return told


def _said(value: object, absent: str = "not known") -> str:
    return absent if value is None else printable(shortened(value, 200).strip("'"))


def _version(name: str) -> str | None:
    if name == "expresser":
        return __version__
    if name == "python":
        return platform.python_version()
    try:
        return importlib.metadata.version(name)
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return None
