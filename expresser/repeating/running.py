"""A command in a process of its own: no shell, this interpreter, the threads of its record."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from types import FrameType

from expresser.invocation import THREADS

# -P: nothing is imported from the folder in which this is called.
COMMAND = (sys.executable, "-P", "-m", "expresser.cli")


def run_again(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run a command of this program and return its exit status; what ends this process is passed on to it."""
    kept = {name: value for name, value in os.environ.items() if name not in THREADS}
    child = subprocess.Popen([*COMMAND, *arguments], env=kept | dict(environment))

    def stop(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        while True:
            try:
                return child.wait()
            except KeyboardInterrupt:  # the terminal told the child as well: it saves, and ends
                continue
    finally:
        signal.signal(signal.SIGTERM, before)
