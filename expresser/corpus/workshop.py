"""The folder a corpus is made in: it outlives a killed process, belongs to one at a time, and is gone when the work is done."""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from expresser.atomic import remove_folder, sweep
from expresser.corpus.manifest import canonical_json
from expresser.corpus.staging import NO_ROOM, Staging, deliver, make_beside, no_room
from expresser.errors import InputError
from expresser.one_writer import one_writer

log = logging.getLogger(__name__)

_PRODUCT = "corpus"


class Unfinished(InputError):
    """Work that stopped for a reason outside of its input: what is done is kept, and the same command goes on."""


@dataclass
class Workshop(Staging):
    """`folder` holds what is in work and the records of what is done; `product` becomes the corpus, or files of it.

    A record is written when what it describes is complete, by a rename, so that one that can be read can be believed. That holds
    for a killed process, not for a machine that lost power with writes in its cache.
    """

    @property
    def product(self) -> Path:
        return self.folder / _PRODUCT

    def record(self, name: str, values: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
        """Note that `name` is done: plain values, and arrays beside them."""
        record(self.folder, name, values, arrays)

    def recorded(self, name: str) -> dict[str, Any] | None:
        """The values noted under `name`; None where nothing was."""
        return recorded(self.folder, name)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The arrays noted under `name`."""
        with np.load(self.folder / f"{name}.npz", allow_pickle=False) as held:  # noqa: TID251 (our own, of this machine)
            return {key: held[key] for key in held}

    def begin(self, job: dict[str, Any]) -> None:
        """Make room for `job` (plain values: the inputs and all that decides the result): another one's leavings go."""
        there = self.recorded("journal")
        if there is not None and canonical_json(there) == canonical_json(job):
            log.info("%s: going on with what an earlier process began", self.folder)
        else:
            if there is not None:
                log.warning("%s: left by a build of other inputs or arguments; its work is discarded", self.folder)
            self.begin_anew(job)
        self.product.mkdir(exist_ok=True)

    def begin_anew(self, job: dict[str, Any]) -> None:
        """Forget what was done."""
        remove_folder(self.folder)  # in one step: a journal beside half of its records would be believed
        self.folder.mkdir()
        self.record("journal", job)
        self.product.mkdir()

    def deliver(self, out: Path) -> None:
        """The product takes the place `out`, which is absent or an empty folder."""
        sweep(self.product)  # what a killed process was still writing
        deliver(self.product, out)


def record(folder: Path, name: str, values: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> None:
    """See `Workshop.record`; workers have the folder alone."""
    if arrays is not None:
        part = folder / f"{name}.{os.getpid()}.npz"
        np.savez(part, **arrays)  # type: ignore[arg-type]
        part.replace(folder / f"{name}.npz")
    part = folder / f"{name}.{os.getpid()}.json"
    part.write_bytes(canonical_json(values))
    part.replace(folder / f"{name}.json")


def recorded(folder: Path, name: str) -> dict[str, Any] | None:
    """See `Workshop.recorded`."""
    try:
        return json.loads((folder / f"{name}.json").read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return None


def workshop_of(out: Path, verb: str) -> Path:
    """Where the corpus `out` is in work."""
    return out.parent / f".{out.name}.{verb}"


@contextmanager
def workshop(out: Path, verb: str = "building") -> Iterator[Workshop]:
    """The folder `.NAME.building` beside `out`, made with missing parents or found as an earlier process left it.

    It is gone when the block ends well, and after an exception that says that going on is of no use: bad input, a full disk (raised
    as InputError with what was written, needed and is free), an error in the program; so are the parents made for it. It stays,
    where anything was recorded, after KeyboardInterrupt, SystemExit and `Unfinished`, and of course after SIGKILL.
    A second process that asks for it is refused with InputError while the first lives.
    """
    with one_writer(out):
        shop = Workshop(make_beside(out, verb, anew=False))
        try:
            try:
                yield shop
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise InputError(no_room(out, error, shop)) from error
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt | SystemExit | Unfinished)
            if interrupted and any(any(shop.folder.glob(f"{done}-*.json")) for done in ("packed", "source")):
                log.warning("%s: what is done is kept in %s: the same command goes on from there", out, shop.folder)
            else:
                with suppress(OSError):
                    remove_folder(shop.folder)
            raise
        remove_folder(shop.folder)


def clear(out: Path, verb: str = "building") -> None:
    """Remove the workshop of a corpus that is complete: its maker was killed between the last two steps."""
    folder = workshop_of(out, verb)
    if folder.exists():
        with one_writer(out):
            remove_folder(folder)
    sweep(folder.parent, folder.name)
