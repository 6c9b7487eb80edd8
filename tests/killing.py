"""Jobs in a child process that is killed: before a given step of the file system, or at a moment; and what a folder holds then."""

import hashlib
import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_STEPS = {
    "open",
    "os.rename",
    "os.remove",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.link",
    "fcntl.flock",
    "ctypes.dlsym",
}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def every_step(job: Callable[[], Any], root: Path, fresh: Callable[[], Any]) -> Iterator[int]:
    """Kill `job` before its first step of the file system below `root`, then anew before its second, and so on to its end.

    `fresh` makes what the job begins with, each time. Yields the number of the step when the job is dead. A step is what Python
    tells its audit hooks: a file opened to be written, a rename, a removal, a lock, a library's function looked up.
    """
    for number in itertools.count(1):
        fresh()
        ended = wait(forked(job, root=root, before=number))
        if ended == 0:
            assert number > 1, "the job takes no step"
            return
        assert ended == -signal.SIGKILL, f"the job ended by itself, with {ended}, before step {number}"
        yield number


def count_steps(job: Callable[[], Any], root: Path) -> int:
    """Runs the job to its end, and says how many steps it took."""
    reading, writing = os.pipe()
    ended = wait(forked(job, root=root, told=writing))
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    assert ended == 0, f"the job ended with {ended}"
    return int(said)


def forked(
    job: Callable[[], Any],
    *,
    root: Path,
    before: int | None = None,
    by: signal.Signals = signal.SIGKILL,
    told: int | None = None,
    output: Path | None = None,
) -> int:
    """A child that does the job; its process id. before: it kills itself before this step, by this signal."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sink = os.open(output or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(sink, 1), os.dup2(sink, 2)
        steps = _count(root, before, by)
        job()
        code = 0
        if told is not None:
            os.write(told, str(steps[0]).encode())
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def _count(root: Path, before: int | None, by: signal.Signals) -> list[int]:
    steps, below = [0], str(root)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in _STEPS:
            return
        if event == "open" and not (isinstance(args[2], int) and args[2] & _WRITES):
            return
        if event not in ("fcntl.flock", "ctypes.dlsym"):
            relative = event in ("os.remove", "os.rmdir") and args[-1] != -1  # of a folder that is open
            if not relative and not any(isinstance(a, str | os.PathLike) and str(a).startswith(below) for a in args):
                return
        steps[0] += 1
        if steps[0] == before:
            os.kill(os.getpid(), by)

    sys.addaudithook(hook)
    return steps


def wait(child: int, *, seconds: float = 120.0) -> int:
    """How a child ended: its exit code, or the signal as a negative number."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        gone, status = os.waitpid(child, os.WNOHANG)
        if gone:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"process {child} did not end in {seconds:g} s")


def seen(folder: Path) -> dict[str, str]:
    """What a user sees in a folder: sha256 by path. Hidden files, and what is in hidden folders, are left out."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def hidden(folder: Path) -> list[str]:
    """Hidden files and folders, which only killed processes leave."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob(".*"))
