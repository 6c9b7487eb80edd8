"""Laws of a run on two machines: the losses of one machine's; what happens when the other is gone; going on, with both or with one.

The machines are two network namespaces with a cable between them: they share a folder, as nodes of a cluster do, and nothing else.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

import pytest
from launch_jobs import LAUNCH, ZERO_ON_CPU, close, job, log_of, said, start, until

from expresser.cli import main

pytestmark = pytest.mark.slow

STEPS = 80
TIMEOUT = 0.25  # minutes


class Nodes:
    """Two network namespaces joined by a pair of virtual network cards, and the processes in them."""

    def __init__(self) -> None:
        token = secrets.token_hex(4)  # several test runs on one machine do not meet
        self.names = [f"expresser-{token}-{number}" for number in range(2)]
        self.cards = [f"ex{token}{number}" for number in range(2)]
        self.addresses = ["10.213.0.1", "10.213.0.2"]

    def make(self) -> None:
        for name in self.names:
            _ip("netns", "add", name)
        a, b = self.names
        _ip("link", "add", self.cards[0], "netns", a, "type", "veth", "peer", "name", self.cards[1], "netns", b)
        for name, card, address in zip(self.names, self.cards, self.addresses):
            _ip("-n", name, "address", "add", f"{address}/30", "dev", card)
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", card, "up")

    def remove(self) -> None:
        """End what runs in the namespaces; the cards go with them."""
        there = {line.split()[0] for line in _ip("netns", "list").splitlines() if line}
        for number in (number for number, name in enumerate(self.names) if name in there):
            self.kill(number)
            _ip("netns", "delete", self.names[number])

    def kill(self, number: int) -> None:
        """SIGKILL everything on a node: its launcher and its workers, which are no children of one another's process group."""
        while pids := _ip("netns", "pids", self.names[number]).split():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.05)

    def cable(self, state: str) -> None:
        """`down`: no packet passes any more, and nobody is told."""
        _ip("-n", self.names[1], "link", "set", self.cards[1], state)

    def begin(
        self, launcher: Sequence[str], words: Sequence[str], logs: Sequence[Path], **more: str
    ) -> list[subprocess.Popen[bytes]]:
        """The same job on both nodes. {node} and {head} in the launcher's options: the node's number, the first one's address."""
        running = []
        for node, (name, card, log) in enumerate(zip(self.names, self.cards, logs)):
            options = [word.format(node=node, head=self.addresses[0]) for word in launcher]
            command = ["ip", "netns", "exec", name, sys.executable, "-m", *options, "-m", "pretrain", *words]
            running.append(start(command, log, GLOO_SOCKET_IFNAME=card, **more))
        return running

    def finish(self, launcher: Sequence[str], words: Sequence[str], logs: Sequence[Path], **more: str) -> None:
        """A job from its beginning to its end."""
        running = self.begin(launcher, words, logs, **more)
        until(lambda: all(node.poll() is not None for node in running), "both nodes to end", running, logs)
        assert [node.returncode for node in running] == [0, 0], said(logs)


TORCHRUN = (
    "torch.distributed.run", "--nnodes", "2", "--node_rank", "{node}", "--nproc_per_node", "1",
    "--master_addr", "{head}", "--master_port", "29500",
)  # fmt: skip


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    made = Nodes()
    try:
        try:
            made.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("nodes")
    return [folder / f"node-{number}.log" for number in range(2)]


@pytest.fixture(scope="module")
def undisturbed(nodes, logs, tiny_corpus, tmp_path_factory) -> Path:
    """A run on both nodes that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    nodes.finish(TORCHRUN, job(tiny_corpus, out, steps=STEPS), logs)
    return out


def test_two_nodes_have_the_losses_of_one(undisturbed, tiny_corpus, tmp_path):
    main(["pretrain", *job(tiny_corpus, tmp_path / "one", steps=STEPS)])
    close(tmp_path / "one", undisturbed)


def test_a_run_goes_on_after_a_node_was_killed_and_after_a_cable_was_pulled(
    nodes, logs, undisturbed, tiny_corpus, tmp_path
):
    out, alone = tmp_path / "run", tmp_path / "alone"
    words = job(tiny_corpus, out, "--timeout-minutes", str(TIMEOUT), steps=STEPS)

    first, second = nodes.begin(TORCHRUN, words, logs)
    until(lambda: len(log_of(out)) > 25 or first.poll() is not None, "step 25", [first, second], logs)
    nodes.kill(1)
    assert second.wait() == -signal.SIGKILL
    # The dead processes' connections are closed by their system: the first node hears of it, and waits for no timeout.
    until(lambda: first.poll() is not None, "the first node to end", [first], logs)
    assert first.returncode == 1
    assert 25 <= log_of(out)[-1]["step"] < STEPS, said(logs)
    shutil.copytree(out, alone)

    running = nodes.begin(TORCHRUN, [*words, "--resume"], logs)
    until(lambda: log_of(out)[-1]["step"] >= 45 or running[0].poll() is not None, "step 45", running, logs)
    nodes.cable("down")
    began = time.monotonic()
    # No connection is closed, no packet comes back: what ends the waiting is the timeout, then the launchers.
    until(lambda: all(node.poll() is not None for node in running), "both nodes to give up", running, logs)
    assert [node.returncode for node in running] == [1, 1]
    assert time.monotonic() - began > 30 * TIMEOUT, said(logs)
    assert 45 <= log_of(out)[-1]["step"] < STEPS, said(logs)
    nodes.cable("up")

    nodes.finish(TORCHRUN, [*words, "--resume"], logs)
    assert log_of(out) == log_of(undisturbed)

    # One machine goes on where two stopped: another number of processes adds up sums in another order, and that is all.
    words[words.index(str(out))] = str(alone)
    main(["pretrain", *words, "--resume"])
    close(alone, undisturbed)


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
def test_zero_on_two_nodes_has_the_losses_of_one_process(nodes, logs, tiny_corpus, tmp_path):
    accelerate = (
        "accelerate.commands.launch", "--config_file", str(LAUNCH / "zero2.yaml"), "--num_machines", "2", "--num_processes", "2",
        "--machine_rank", "{node}", "--main_process_ip", "{head}", "--main_process_port", "29500",
    )  # fmt: skip
    nodes.finish(accelerate, job(tiny_corpus, tmp_path / "two"), logs, **ZERO_ON_CPU)
    main(["pretrain", *job(tiny_corpus, tmp_path / "one")])
    close(tmp_path / "one", tmp_path / "two")
