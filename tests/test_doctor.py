"""The doctor: what is broken is found and ends with 1, what is only missing does not; laws of reading limits, and a hub of our own."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from local_server import Handler, Server, running
from packaging.requirements import Requirement

from expresser.cli import main
from expresser.doctor import accelerator, hub, in_words, machine, packages
from expresser.doctor.finding import Finding


@dataclass
class Hub(Server):
    """A hub that lists models, with this status, and knows one token."""

    status: int = 200


class HubHandler(Handler):
    def do_GET(self) -> None:
        if self.path.startswith("/api/models?"):
            return self.answer(self.server_state.status, b"[]")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        known = {"hf_ada": (200, b'{"name": "ada"}'), "hf_old": (401, b"{}")}
        return self.answer(*known.get(token, (404, b"{}")))


@pytest.fixture
def endpoint() -> Iterator[Hub]:
    """A hub on the loopback."""
    yield from running(HubHandler, Hub())


def by_name(found) -> dict[str, Finding]:
    return {each.name: each for each in found}


@pytest.fixture
def own_hub(monkeypatch):
    """The client's constants as HF_ENDPOINT would set them in a new process."""
    from huggingface_hub import constants

    def point(where: str, offline: bool = False) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", where)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.delenv("HF_TOKEN", raising=False)

    return point


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


# The command


@pytest.mark.slow
def test_the_whole_examination_as_json(tmp_path):
    """In a process of its own: HF_ENDPOINT is read when the hub's client is imported."""
    env = {
        **os.environ,
        "HF_ENDPOINT": f"http://127.0.0.1:{free_port()}",
        "HF_TOKEN": "hf_secret",
        "OMP_NUM_THREADS": "1",
    }
    env.pop("HF_HUB_OFFLINE", None)
    code = "from expresser.commands_doctor import DOCTOR; DOCTOR.run(['--json', '--timeout', '3'])"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env, cwd=tmp_path, check=False
    )
    said = json.loads(ran.stdout)
    assert ran.returncode == (0 if said["ok"] else 1)
    found = {each["name"]: each for each in said["findings"]}
    assert said["ok"] == all(each["state"] != "broken" for each in said["findings"])
    import torch

    assert found["torch"]["state"] == "ok"
    assert found["torch"]["found"] == torch.__version__
    assert found["settings"]["found"].startswith("torch uses 1")
    assert "OMP_NUM_THREADS=1" in found["settings"]["found"]
    assert found["access"]["state"] == "warning"
    assert env["HF_ENDPOINT"] in found["access"]["found"]
    assert "hf_secret" not in ran.stdout + ran.stderr
    assert str(tmp_path) in found["working folder"]["found"]
    assert not list(tmp_path.iterdir())


def test_what_is_broken_ends_with_1_and_what_is_missing_does_not(capsys, monkeypatch):
    from expresser.commands_doctor import DOCTOR

    fine = [
        Finding("packages", "torch", "ok", "2.13"),
        Finding("extras", "wandb", "note", "wandb missing", "pip install …"),
    ]
    bad = Finding(
        "packages", "numba", "broken", "0.65 is installed and does not load: ImportError", "pip install numba"
    )
    monkeypatch.setattr("expresser.doctor.examine", lambda **_: fine)
    DOCTOR.run([])
    assert "Everything that is needed works." in capsys.readouterr().out
    monkeypatch.setattr("expresser.doctor.examine", lambda **_: [*fine, bad])
    with pytest.raises(SystemExit) as caught:
        DOCTOR.run([])
    assert caught.value.code == 1
    text = capsys.readouterr().out
    assert "✗ numba" in text
    assert "→ pip install numba" in text
    assert text.rstrip().endswith("Broken: numba.")


def test_a_time_that_is_none_is_refused():
    from expresser.commands_doctor import DOCTOR
    from expresser.errors import InputError

    with pytest.raises(InputError, match="--timeout"):
        DOCTOR.run(["--timeout", "0"])


def test_findings_stand_under_their_headings_once():
    text = in_words(
        [Finding("a", "one", "ok", "1"), Finding("a", "three", "note", "3"), Finding("b", "two", "warning", "2", "do")]
    )
    assert text.splitlines() == ["a", "  ✓ one    1", "  · three  3", "", "b", "  ! two    2", f"    {'':5}  → do", "",
                                 "Everything that is needed works. Look at: two."]  # fmt: skip


# Packages


def distribution(folder: Path, name: str, version: str, body: str | None) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "RECORD").write_text(f"{name}/__init__.py,,\n{info.name}/METADATA,,\n")
    if body is not None:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(body)


def test_a_package_is_missing_too_old_broken_or_fine(tmp_path, monkeypatch):
    distribution(tmp_path, "doc_fine", "2.0", "print('good doc_bad')")  # a package that talks
    distribution(tmp_path, "doc_old", "0.9", "")
    distribution(tmp_path, "doc_bad", "1.0", "raise RuntimeError('no such symbol')")
    distribution(tmp_path, "doc_dead", "1.0", "import os; os._exit(139)")
    distribution(tmp_path, "doc_next", "1.0", "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    needs = [Requirement(t) for t in ("doc_fine>=1", "doc_old>=1", "doc_bad", "doc_dead", "doc_next", "doc_missing>=3")]
    monkeypatch.setattr(packages, "_requirements", lambda extra: needs)
    found = by_name(packages.required())
    assert {name: each.state for name, each in found.items()} == {
        "doc_fine": "ok", "doc_next": "ok", "doc_old": "broken", "doc_bad": "broken", "doc_dead": "broken", "doc_missing": "broken",
    }  # fmt: skip
    assert "RuntimeError no such symbol" in found["doc_bad"].found
    assert "ended the interpreter (exit status 139)" in found["doc_dead"].found
    assert found["doc_missing"].advice == "pip install 'doc_missing>=3'"
    assert found["doc_old"].found == "0.9, >=1 is needed"


def test_a_package_that_never_finishes_to_load_is_given_up():
    assert dict(packages.importing(["json", "time"], timeout=60.0)) == {"json": None, "time": None}
    (slow,) = packages.importing(["expresser.doctor.hub"], timeout=0.001)
    assert slow == ("expresser.doctor.hub", "not done after 0 s")


def test_extras_name_what_they_lack(monkeypatch):
    installed = packages.installed
    monkeypatch.setattr(
        packages, "installed", lambda name: {"wandb": None, "pyliftover": "0.1"}.get(name, installed(name))
    )
    found = by_name(packages.extras())
    assert found["wandb"].found == "wandb missing"
    assert found["wandb"].advice == "pip install 'expresser[wandb]'"
    assert found["liftover"].found.startswith("pyliftover 0.1, >=")
    assert found["liftover"].state == "note"


def test_modules_are_found_by_their_distributions():
    names = ("scikit-learn", "pyyaml", "igraph", "huggingface-hub", "torch", "jinja2")
    assert [packages.module(n) for n in names] == ["sklearn", "yaml", "igraph", "huggingface_hub", "torch", "jinja2"]


def test_a_command_that_does_not_load_is_named(capsys, monkeypatch):
    missing = EntryPoint("translate", "no_such_module:main", "expresser.commands")
    monkeypatch.setattr("expresser.cli.commands", lambda: {"translate": missing})
    found = packages.ours()
    assert found.state == "broken"
    assert "translate (ModuleNotFoundError: No module named 'no_such_module')" in found.found
    main(["--help"])
    assert "translate  (cannot be loaded: No module named 'no_such_module')" in capsys.readouterr().out


# Machine


def test_limits_of_nested_groups_are_the_least_of_them(tmp_path, monkeypatch):
    own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    inner = tmp_path / own.removeprefix("0::").lstrip("/")
    (inner / "deeper").mkdir(parents=True)
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    assert machine.usable_cores(tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert machine.usable_cores(tmp_path) == len(os.sched_getaffinity(0))
    (inner / "memory.max").write_text(str(3 * 2**30))
    (inner / "memory.current").write_text(str(2 * 2**30))
    found = machine.memory(tmp_path)
    assert found.state == "warning"
    assert "of 3.0 (this container's limit)" in found.found
    assert float(found.found.split()[0]) <= 1.0


@pytest.mark.parametrize(("n", "state"), [(8, "warning"), (4, "ok"), (1, "note"), (None, "note")])
def test_more_threads_than_cores_are_warned_of(n, state):
    found = by_name(machine.threads(n, cores=4, env={"OMP_NUM_THREADS": "9"}))["settings"]
    assert found.state == state
    assert "OMP_NUM_THREADS=9" in found.found
    if state == "warning":
        assert found.advice == "export OMP_NUM_THREADS=4"


def test_the_hub_cache_is_where_the_client_keeps_it():
    from huggingface_hub import constants

    assert machine.hub_cache() == Path(constants.HF_HUB_CACHE)
    assert machine.hub_cache({"HF_HOME": "/data/hf"}) == Path("/data/hf/hub")
    assert machine.hub_cache({"HF_HUB_CACHE": "/data/c", "HF_HOME": "/data/hf"}) == Path("/data/c")


def test_a_compiler_is_the_one_named():
    assert machine.compilers({"CXX": "no-such-compiler"}).state == "note"


@pytest.mark.parametrize(
    ("version", "error", "state"), [(None, None, "note"), ("0.18", None, "ok"), ("0.18", "no nvcc", "warning")]
)
def test_deepspeed_is_never_needed(version, error, state):
    assert machine.deepspeed(version, error).state == state


# Accelerator


def seen(**more) -> dict:
    return {"torch": "2.13.0", "built_for": "CUDA 13.0", "threads": 2, "devices": [], **more}


DEVICE = {"name": "H100", "gib": 79.1, "capability": "9.0", "works": True, "bf16": True}


@pytest.mark.parametrize(
    ("said", "driver", "state", "words"),
    [
        (None, None, "broken", "did not load"),
        (seen(built_for=None), None, "note", "computes on the CPU"),
        (seen(built_for=None), "GPU 0: H100", "warning", "built for the CPU only"),
        (seen(), "GPU 0: H100", "broken", "sees none"),
        (seen(devices=[DEVICE]), None, "ok", "H100, 79 GiB, capability 9.0"),
        (seen(devices=[DEVICE | {"works": "no kernel image"}]), None, "broken", "no kernel image"),
        (seen(devices=[DEVICE | {"works": False}]), None, "broken", "came out wrong"),
        (seen(devices=[DEVICE | {"bf16": False}]), None, "note", "no bfloat16"),
    ],
)
def test_devices_work_or_it_is_said_why_not(monkeypatch, said, driver, state, words):
    monkeypatch.setattr(accelerator, "_driver", lambda: driver)
    (found,) = accelerator.accelerator(said)
    assert found.state == state
    assert words in found.found


def test_torch_is_asked_in_a_process_of_its_own():
    import torch

    said = accelerator.look()
    assert said is not None
    assert said["torch"] == torch.__version__
    assert len(said["devices"]) == torch.cuda.device_count()
    assert accelerator.look(timeout=0.001) is None


# Hub


def test_a_hub_that_answers(endpoint, own_hub):
    own_hub(endpoint.url)
    found = by_name(hub.hub(5.0))
    assert found["access"].state == "ok"
    assert endpoint.url in found["access"].found


@pytest.mark.parametrize(
    ("token", "state", "words"),
    [("hf_ada", "ok", "logged in as ada"), ("hf_old", "warning", "does not know it"), ("hf_odd", "note", "404")],
)
def test_who_is_logged_in_is_said_and_the_token_is_not(endpoint, own_hub, monkeypatch, token, state, words):
    own_hub(endpoint.url)
    monkeypatch.setenv("HF_TOKEN", token)
    login = by_name(hub.hub(5.0))["login"]
    assert login.state == state
    assert words in login.found
    assert token not in f"{login}"


@pytest.mark.parametrize("status", [403, 407, 500, 503])
def test_a_hub_that_refuses(endpoint, own_hub, status):
    own_hub(endpoint.url)
    endpoint.status = status
    (found,) = hub.hub(5.0)
    assert found.state == "warning"
    assert f"answers {status}" in found.found


def test_a_hub_that_is_not_there_or_never_answers(own_hub, monkeypatch):
    own_hub(f"http://127.0.0.1:{free_port()}")
    (found,) = hub.hub(5.0, env={"HTTPS_PROXY": "http://me:password@proxy:3128"})
    assert found.state == "warning"
    assert "no answer" in found.found
    assert "proxy:3128" in (found.advice or "")
    assert "password" not in (found.advice or "")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        own_hub(f"http://127.0.0.1:{silent.getsockname()[1]}")
        (found,) = hub.hub(0.5)
        assert "Timeout" in found.found
    import time

    monkeypatch.setattr(hub, "_status", lambda url, timeout: time.sleep(60))  # as looking up a name may take
    (found,) = hub.hub(0.1)
    assert "nothing within 0.1 s" in found.found


def test_a_machine_told_to_be_offline_asks_nobody(own_hub, monkeypatch):
    own_hub("http://127.0.0.1:9", offline=True)
    monkeypatch.setattr(hub, "_status", lambda url, timeout: pytest.fail("asked"))
    (found,) = hub.hub(1.0)
    assert found.state == "note"
    assert "HF_HUB_OFFLINE" in found.found
