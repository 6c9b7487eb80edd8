"""Cores and threads, memory, disk and compilers, as far as this process may use them: a container may give less than there is."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from expresser.doctor.finding import Finding

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup")
THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "NUMBA_NUM_THREADS",
    "SLURM_CPUS_PER_TASK",
)


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Cores that this process may use at once: those it is bound to, and no more than a container's quota."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = [_share(text) for text in _limits(cgroup, "cpu.max")]
    return max(1, min([bound, *(int(cores) for cores in quota if cores is not None)]))


def threads(torch_threads: int | None, cores: int | None = None, env: Mapping[str, str] | None = None) -> list[Finding]:
    """Cores against torch's threads. torch_threads None: torch could not be asked."""
    env = os.environ if env is None else env
    cores = usable_cores() if cores is None else cores
    there = os.cpu_count() or 1
    said = f"{cores} usable" + (f" of {there}: bound to some, or a container's quota" if cores < there else "")
    found = [Finding("threads", "cores", "ok", said)]
    given = {name: env[name] for name in THREAD_VARIABLES if name in env}
    settings = ", ".join(f"{name}={value}" for name, value in given.items()) or "no variable sets them"
    if torch_threads is None:
        found.append(Finding("threads", "settings", "note", settings))
    elif torch_threads > cores:
        what = f"torch would use {torch_threads} on {cores}: they wait for one another ({settings})"
        found.append(Finding("threads", "settings", "warning", what, f"export OMP_NUM_THREADS={cores}"))
    elif torch_threads < cores:
        what = f"torch uses {torch_threads} of {cores} cores ({settings})"
        found.append(
            Finding("threads", "settings", "note", what, f"for one process alone: export OMP_NUM_THREADS={cores}")
        )
    else:
        found.append(Finding("threads", "settings", "ok", f"torch uses {torch_threads} ({settings})"))
    return found


def memory(cgroup: Path = _CGROUP) -> Finding:
    """What is there and what is free, of the machine or of the container if that has less."""
    import psutil

    machine = psutil.virtual_memory()
    total, free, whose = machine.total, machine.available, ""
    for limit, used in zip(_limits(cgroup, "memory.max"), _limits(cgroup, "memory.current"), strict=False):
        if limit.isdigit() and int(limit) < total:
            total, whose = int(limit), " (this container's limit)"
            free = min(free, total - int(used))
    found = f"{free / _GIB:.1f} GiB free of {total / _GIB:.1f}{whose}"
    if free < 4 * _GIB:
        return Finding(
            "memory and disk",
            "memory",
            "warning",
            found,
            "the demo takes 2 GiB, a real data set more: free some, or ask for more",
        )
    return Finding("memory and disk", "memory", "ok", found)


def disk() -> Iterator[Finding]:
    """Folders that are written to: room and permission."""
    yield _folder("working folder", Path.cwd(), "go to a folder where you may write")
    try:
        yield _folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to a folder with room")
    except FileNotFoundError as error:
        yield Finding(
            "memory and disk", "temporary files", "broken", str(error), "set TMPDIR to a folder that can be written"
        )
    yield _folder("hub cache", hub_cache(), "set HF_HOME to a folder with room, where you may write")


def hub_cache(env: Mapping[str, str] | None = None) -> Path:
    """Where the hub's client keeps what it downloads, by its own variables."""
    env = os.environ if env is None else env
    if "HF_HUB_CACHE" in env:
        return Path(env["HF_HUB_CACHE"]).expanduser()
    home = env.get("HF_HOME") or str(Path(env.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(home).expanduser() / "hub"


def compilers(env: Mapping[str, str] | None = None) -> Finding:
    """A C++ compiler, which --compile needs, on the CPU as on GPUs."""
    named = (os.environ if env is None else env).get("CXX")
    there = shutil.which(named) if named else next(filter(None, map(shutil.which, ("g++", "clang++", "c++"))), None)
    if there is None:
        lacking = f"CXX={named} is not there" if named else "no g++, clang++ or c++ on PATH"
        return Finding(
            "many GPUs",
            "C++ compiler",
            "note",
            lacking,
            "only pretrain --compile needs one: install g++ (build-essential)",
        )
    return Finding("many GPUs", "C++ compiler", "ok", there)


def deepspeed(version: str | None, error: str | None) -> Finding:
    """DeepSpeed, for ZeRO. It is never needed on one device."""
    if version is None:
        advice = "only --strategy zero2 and zero3 need it: pip install 'expresser[deepspeed]'"
        return Finding("many GPUs", "DeepSpeed", "note", "not installed", advice)
    if error:
        advice = (
            "ZeRO cannot be used: pip install --force-reinstall --no-deps deepspeed, or set CUDA_HOME if it asks for it"
        )
        return Finding(
            "many GPUs", "DeepSpeed", "warning", f"{version} is installed and does not load: {error}", advice
        )
    return Finding("many GPUs", "DeepSpeed", "ok", version)


def _folder(name: str, folder: Path, advice: str) -> Finding:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free / _GIB
    found = f"{free:.0f} GiB free in {folder}"
    if not os.access(there, os.W_OK):
        return Finding("memory and disk", name, "warning", f"{folder} cannot be written", advice)
    return Finding("memory and disk", name, "ok" if free >= 5 else "warning", found, None if free >= 5 else advice)


def _limits(root: Path, file: str) -> list[str]:
    """A file of this process's control group and of those above it, the innermost first; none where there are no groups (v2)."""
    try:
        own = next(line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    inner = root / own.removeprefix("0::").lstrip("/")
    found = []
    for folder in (inner, *inner.parents):
        if folder == root.parent:
            break
        if (folder / file).is_file():
            found.append((folder / file).read_text().strip())
    return found


def _share(text: str) -> float | None:
    """Cores of a quota, "150000 100000": one and a half; None where it is "max"."""
    quota, _, period = text.partition(" ")
    return float(quota) / float(period or 100_000) if quota.isdigit() else None
