"""What torch computes on: the devices it sees, and whether a small product on each comes out right."""

import json
import shutil
import subprocess
import sys
from typing import Any

from expresser.doctor.finding import Finding

# In another process, since a driver that does not fit may end it.
_LOOK = """
import json, torch
def right(device):
    x = torch.arange(16.0, device=device).reshape(4, 4)
    return bool(torch.equal((x @ x).cpu(), x.cpu() @ x.cpu()))
built = torch.version.cuda and f"CUDA {torch.version.cuda}" or torch.version.hip and f"ROCm {torch.version.hip}"
said = {"torch": torch.__version__, "built_for": built, "threads": torch.get_num_threads(), "devices": []}
for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
    p = torch.cuda.get_device_properties(i)
    try:
        works = right(f"cuda:{i}") or "a product of two matrices came out wrong"
    except Exception as error:
        works = " ".join(str(error).split())[:300]
    said["devices"].append({"name": p.name, "gib": p.total_memory / 2**30, "capability": f"{p.major}.{p.minor}", "works": works,
                            "bf16": p.major >= 8 or torch.version.hip is not None})
if torch.backends.mps.is_available():
    said["devices"].append({"name": "Apple GPU (MPS)", "gib": None, "capability": None, "works": right("mps"), "bf16": False})
print("FOUND " + json.dumps(said))
"""


def look(timeout: float = 120.0) -> dict[str, Any] | None:
    """What torch says of itself and its devices; None where it does not load, which the packages' findings say."""
    try:
        ran = subprocess.run(
            [sys.executable, "-c", _LOOK], capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return None
    lines = [line for line in ran.stdout.splitlines() if line.startswith("FOUND ")]
    return json.loads(lines[-1].removeprefix("FOUND ")) if lines else None


def accelerator(seen: dict[str, Any] | None) -> list[Finding]:
    """The devices, or why there are none."""
    if seen is None:
        return [
            Finding(
                "accelerator",
                "torch",
                "broken",
                "torch did not load, or did not answer",
                "pip install --force-reinstall torch",
            )
        ]
    build = seen["built_for"] or "CPU only"
    if seen["devices"]:
        return [_device(i, device, build) for i, device in enumerate(seen["devices"])]
    driver = _driver()
    if driver is None:
        return [Finding("accelerator", "GPU", "note", f"none; torch ({build}) computes on the CPU")]
    if seen["built_for"] is None:
        advice = "install a build of torch with CUDA (pytorch.org, Get started)"
        return [
            Finding(
                "accelerator",
                "GPU",
                "warning",
                f"{driver}, but torch {seen['torch']} is built for the CPU only",
                advice,
            )
        ]
    advice = "compare the driver (nvidia-smi) with the CUDA version of torch, and look at CUDA_VISIBLE_DEVICES"
    return [Finding("accelerator", "GPU", "broken", f"{driver}, but torch ({build}) sees none", advice)]


def _device(i: int, device: dict[str, Any], build: str) -> Finding:
    memory = f", {device['gib']:.0f} GiB" if device["gib"] else ""
    kind = f", capability {device['capability']}" if device["capability"] else ""
    found = f"{device['name']}{memory}{kind}, torch for {build}"
    if device["works"] is not True:
        why = device["works"] or "a product of two matrices came out wrong"
        advice = "install a build of torch for this device and driver, or set CUDA_VISIBLE_DEVICES= to use the CPU"
        return Finding("accelerator", f"GPU {i}", "broken", f"{found}; it does not compute: {why}", advice)
    if not device["bf16"]:
        return Finding("accelerator", f"GPU {i}", "note", f"{found}; no bfloat16", "--precision no")
    return Finding("accelerator", f"GPU {i}", "ok", found)


def _driver() -> str | None:
    """What NVIDIA's own tool lists, None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    try:
        ran = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return None
    lines = ran.stdout.strip().splitlines()
    return lines[0].split(" (UUID")[0] if ran.returncode == 0 and lines else None
