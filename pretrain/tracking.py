"""Curves of a run in TensorBoard or Weights & Biases, through accelerate, beside the log that every run keeps."""

import importlib.util
import math
import netrc
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from accelerate import Accelerator

from expresser.atomic import write_text
from expresser.errors import InputError
from expresser.run_folder import flat
from pretrain.config import Recipe

PROJECT = "expresser"
_GROUPS = {
    "loss": "train",
    "lr": "train",
    "grad_norm": "train",
    "cells_seen": "progress",
    "seconds": "progress",
}


def check_tracker(name: str) -> None:
    """Raise InputError if the package of this tracker is missing: a run would otherwise end, or begin, without its curves."""
    if name != "none" and importlib.util.find_spec(name) is None:
        raise InputError(
            f"tracker is {name}, and the package {name} is not installed: pip install 'expresser[{name}]'. Without a tracker the "
            "curves are in log.jsonl and report.html."
        )


def start_tracker(accelerator: Accelerator, recipe: Recipe, out: Path, *, step: int) -> None:
    """Open the recipe's tracker; all processes must call this, the main one writes.

    Files go to ``out/tracker``. A resumed run (``step``: where it goes on) appends to its curves: TensorBoard is told to forget
    events after that step, and Weights & Biases is given the run's id again. Its project is "expresser", its run named as ``out``.
    Weights & Biases is offline unless this machine is logged in or ``WANDB_MODE`` says otherwise, and never asks for a key;
    ``wandb sync out/tracker/wandb/offline-run-*`` uploads what an offline run left.

    Raises
    ------
    InputError
        If Weights & Biases was to be online and cannot be reached.
    """
    if recipe.tracker == "none":
        return
    folder = out / "tracker"
    if recipe.tracker == "tensorboard":
        # Accelerate writes hyper-parameters as a run of their own for each call: a resumed run has them already.
        config = None if any(folder.glob("*/*/hparams.yml")) else hyper_parameters(recipe)
        options: dict[str, Any] = {"tensorboard": {"purge_step": step + 1}} if step > 0 else {}
        accelerator.init_trackers(PROJECT, config=config, init_kwargs=options)
        return
    options = _wandb_options(folder, name=out.resolve().name) if accelerator.is_main_process else {}
    try:
        accelerator.init_trackers(PROJECT, config=hyper_parameters(recipe), init_kwargs={"wandb": options})
    except Exception as error:
        if not type(error).__module__.startswith("wandb"):
            raise
        raise InputError(
            f"Weights & Biases did not start ({error}). Set WANDB_MODE=offline to keep its files in {folder}, and upload them later."
        ) from error


class Tracker:
    """A recipe's tracker, or none. One that can no longer write is given up: the log and the report have the same curves."""

    def __init__(self, accelerator: Accelerator, recipe: Recipe, out: Path, *, step: int) -> None:
        self._accelerator = accelerator
        self._on = recipe.tracker != "none"
        self._try(lambda: start_tracker(accelerator, recipe, out, step=step))

    def log(self, entry: Mapping[str, Any], *, step: int) -> None:
        """A log line's curves."""
        self._try(lambda: self._accelerator.log(curves(entry), step=step))

    def _try(self, action: Callable[[], None]) -> None:
        if not self._on:
            return
        try:
            action()
        except OSError as error:
            self._on, self._accelerator.trackers = False, []
            print(f"warning: the tracker is given up: {error}. log.jsonl goes on.", file=sys.stderr, flush=True)


def hyper_parameters(recipe: Recipe) -> dict[str, bool | int | float | str]:
    """The recipe with dotted keys, in the types that every tracker takes."""
    found = flat(asdict(recipe))
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in found.items()}


def curves(entry: Mapping[str, Any]) -> dict[str, float]:
    """A log line as scalars in groups: ``train/loss``, ``valid/mse``, ``additive/mse``, ``speed/cells_per_s`` … What is undefined is
    left out: it has no place on a curve."""
    found = {}
    for name, value in flat(entry).items():
        if name != "step" and isinstance(value, int | float) and math.isfinite(value):
            group, _, rest = name.rpartition(".")
            found[f"{group}/{rest}" if group else f"{_GROUPS.get(name, 'speed')}/{name}"] = float(value)
    return found


def _wandb_options(folder: Path, *, name: str) -> dict[str, Any]:
    """Arguments of ``wandb.init``: where files go, the run's name, and the id that it keeps when it is resumed."""
    folder.mkdir(parents=True, exist_ok=True)
    known = folder / "wandb_id"
    if not known.exists():
        write_text(known, secrets.token_hex(8) + "\n")
    if not os.environ.get("WANDB_MODE") and not _logged_in():
        # In the environment, not as an argument: told by argument, wandb 0.31 still sends its own telemetry out.
        os.environ["WANDB_MODE"] = "offline"
    # Offline, a resumed run leaves a second folder with the same id: uploading joins them.
    options = {"dir": str(folder), "name": name, "id": known.read_text().strip(), "resume": "allow"}
    # Terminal output is not captured: a progress bar would fill the run's log with itself.
    return options | {"settings": {"console": "off"}}


def _logged_in() -> bool:
    """Whether `wandb login` was done here, or a key is in the environment: else `wandb.init` would ask for one."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    path = os.environ.get("NETRC") or "~/.netrc"
    try:
        return netrc.netrc(Path(path).expanduser()).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
