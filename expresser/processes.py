"""This process among those of one launch (torchrun, accelerate launch)."""

import atexit
import sys

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed


def this_process() -> PartialState:
    """What accelerate knows of this process and the others; makes the process group where a launcher wants one.

    The first to ask settles whether processes on CPUs know of each other. The group is left at exit.
    """
    atexit.register(_leave)
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def _leave() -> None:
    """Leave the group, or its threads, still running when the interpreter is gone, can abort a process that has done all its work."""
    failed = hasattr(
        sys, "last_value"
    )  # an exception nobody caught: others may wait for this process, which must not wait for them
    if not failed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
