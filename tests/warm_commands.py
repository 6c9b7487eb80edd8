"""A process that has imported what is heavy and is forked for each command: pages of many commands take a fraction of the time.

A command has its own folder, environment, arguments and streams, as if it had been started anew; only imports are shared.
"""

import atexit
import functools
import gc
import inspect
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What commands import when they run: seconds, the same each time.
_HEAVY = (
    "torch", "transformers", "scanpy", "anndata", "mudata", "sklearn.linear_model", "sklearn.neighbors", "matplotlib.pyplot",
    "expresser.cli", "expresser.checkpoint", "expresser.embed", "expresser.impute", "expresser.pages", "expresser.hub",
    "pretrain.loop", "finetune.tasks", "finetune.imputation.task", "finetune.annotation.task",
    "translate.fitting", "translate.judging", "translate.translator", "translate.registry", "translate.cli", "umap",
    "typeguard", "matplotlib.backends.backend_svg", "expresser.simulate", "translate.embedding_page",
)  # fmt: skip

_CALL = """#!{python} -SE
import json, os, signal, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect({address!r})
asked = {{"kind": {kind!r}, "argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(peer, [json.dumps(asked).encode()], [0, 1, 2])
answers = peer.makefile()
running = int(answers.readline())
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, frame: os.kill(running, number))
code = int(answers.readline())
sys.exit(code if code >= 0 else 128 - code)
"""


@contextmanager
def warm_commands(environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for PATH with `expresser`, `expresser-parse` (checks the options and stops) and `python-session`."""
    with tempfile.TemporaryDirectory() as folder:
        address = f"{folder}/socket"
        for name, kind in (("expresser", "run"), ("expresser-parse", "parse"), ("python-session", "session")):
            script = Path(folder) / name
            script.write_text(_CALL.format(python=sys.executable, address=address, kind=kind))
            script.chmod(script.stat().st_mode | stat.S_IXUSR)
        words = [sys.executable, __file__, address]
        server = subprocess.Popen(words, env=dict(environment), stdin=subprocess.DEVNULL)
        try:
            patience = time.monotonic() + 1200
            while not Path(address).exists():
                if server.poll() is not None or time.monotonic() > patience:
                    raise RuntimeError(f"the process of commands did not start (exit code {server.poll()})")
                time.sleep(0.05)
            yield Path(folder)
        finally:
            server.kill()
            server.wait()


def seconds_used(bin: Path) -> float:
    """CPU seconds of all commands that have ended."""
    file = bin / "socket.seconds"
    return sum(map(float, file.read_text().split())) if file.exists() else 0.0


def _serve(address: str) -> None:
    """Forks for each request; returns in the child alone, and does there what was asked."""
    import importlib

    os.environ["MPLBACKEND"] = "Agg"
    for name in _HEAVY:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue  # an extra, or renamed since: the command pays for its own import
    gc.collect()
    gc.freeze()  # what is here is not gone through again by those who are forked
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(8)
    os.rename(address + ".new", address)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who answer
    parent = os.getppid()
    listener.settimeout(5)
    while True:
        try:
            peer, _ = listener.accept()
        except TimeoutError:
            if os.getppid() != parent:  # killed, with no time to say so
                raise SystemExit(0) from None
            continue
        if os.fork() == 0:
            break
        peer.close()
    listener.close()
    peer.settimeout(None)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    words, files, *_ = socket.recv_fds(peer, 1 << 20, 3)
    child = os.fork()
    if child:  # says how the command ended, whatever became of it
        for file in files:
            os.close(file)
        peer.sendall(f"{child}\n".encode())
        _, status, used = os.wait4(child, 0)
        with open(f"{address}.seconds", "a") as file:
            print(used.ru_utime + used.ru_stime, file=file)
        peer.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    peer.close()
    asked = json.loads(words)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["argv"]
    # New files over the new descriptors, buffered by what these are; an interpreter would do the same at its start.
    sys.stdin, sys.stdout = open(0), open(1, "w", buffering=1 if os.isatty(1) else -1)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
    _leave(_ended({"run": _run, "parse": _parse, "session": _session}[asked["kind"]]))


def _ended(function: Callable[[], None]) -> int:
    """The exit code that an interpreter would end with."""
    try:
        function()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        print(error.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _leave(code: int) -> None:
    """As an interpreter ends, but for taking apart what was imported: that would copy the parent's memory, for seconds."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _run() -> None:
    from expresser.cli import main

    main()


def _parse() -> None:
    """The command up to where its options are known; an option that is not there ends it with exit code 2, as ever."""
    import tyro

    def stub(function: Any) -> Any:
        if not inspect.isfunction(function):
            return function  # a class of options: `stopping` stops once it is filled

        @functools.wraps(function)
        def stop(*_: object, **__: object) -> None:
            raise SystemExit(0)

        return stop

    def stopping(real: Any, *, verbs: bool = False) -> Any:
        def parse(first: Any, *rest: Any, **named: Any) -> None:
            real({k: stub(v) for k, v in first.items()} if verbs else stub(first), *rest, **named)
            raise SystemExit(0)

        return parse

    tyro.cli = stopping(tyro.cli)
    tyro.extras.subcommand_cli_from_dict = stopping(tyro.extras.subcommand_cli_from_dict, verbs=True)
    tyro.extras.overridable_config_cli = stopping(tyro.extras.overridable_config_cli)
    _run()


def _session() -> None:
    """Python as in a notebook: each line of the input is a cell as JSON; the value of its last expression is shown."""
    import ast

    space: dict[str, Any] = {"__name__": "__main__"}
    cells, sys.stdin = sys.stdin, open(os.devnull)  # noqa: SIM115
    for line in cells:
        try:
            tree = ast.parse(json.loads(line))
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, "<cell>", "exec"), space)
            if last is not None:
                cell = compile(ast.Interactive([last]), "<cell>", "single")
                exec(cell, space)  # prints the value, as Python's prompt does
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None
        print(END, flush=True)


END = "\x1e end of a cell"

if __name__ == "__main__":
    _serve(sys.argv[1])
