"""Sources packed in processes of their own: each becomes one file of kept cells that the parent numbers and scatters."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64

from expresser.corpus.align import Alignment
from expresser.corpus.onepass import Hashing, SourcePass
from expresser.corpus.shards import CountBatch, from_arrow, schema, to_arrow
from expresser.corpus.source import Features, Source, open_source
from expresser.corpus.workshop import Unfinished, record, recorded

POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Job:
    """One source, and all that decides what its kept cells are. `path` is None for an AnnData, which no other process has."""

    number: int
    path: Path | None
    name: str
    layer: str | None
    alignment: Alignment
    min_genes: int
    min_counts_kept: float
    genes: str
    deduplicate: str | None
    source_column: str | None
    sha256: str | None  # where it is known already
    features: Features = "genes"

    def reading(self, source: Source) -> SourcePass:
        """The pass over the job's source."""
        return SourcePass(
            source,
            self.number,
            self.alignment,
            self.min_genes,
            deduplicate=self.deduplicate,
            source_column=self.source_column,
            name=self.name,
        )


def packed_name(number: int) -> str:
    """What the workshop calls the packed cells of a source."""
    return f"packed-{number:05d}"


def pack_source(job: Job, folder: Path, told: Callable[[int], None]) -> None:
    """Write the kept cells of one file, numbered from 0, and then the record that says so."""
    assert job.path is not None
    source = open_source(job.path, layer=job.layer, features=job.features)
    hashing = Hashing(source, job.sha256)
    reading = job.reading(source)
    columns = schema(job.genes, "uint32")
    part = folder / f"{packed_name(job.number)}.{os.getpid()}.part"
    keys_of = []
    with open(part, "wb") as sink, pa.ipc.new_stream(sink, columns) as writer:
        for batch, keys, done in reading.batches(np.dtype(job.genes)):
            if len(batch):
                writer.write_batch(to_arrow(batch, columns))
            if keys is not None:
                keys_of.append(keys)
            told(done)
    entry = {"name": job.name, "sha256": hashing.result()} | reading.entry(job.min_counts_kept)
    size = part.stat().st_size
    part.replace(folder / f"{packed_name(job.number)}.arrow")
    arrays = {"kept": np.packbits(reading.kept)}
    if job.deduplicate is not None:
        arrays["keys"] = np.concatenate([np.zeros(0, np.uint64), *keys_of])
    record(folder, packed_name(job.number), {"entry": entry, "bytes": size}, arrays)


def is_packed(folder: Path, number: int) -> bool:
    """Whether a worker finished this source, and its file is as long as it was then."""
    there, path = recorded(folder, packed_name(number)), folder / f"{packed_name(number)}.arrow"
    return there is not None and path.is_file() and path.stat().st_size == there["bytes"]


def read_packed(
    folder: Path, number: int, keys: UInt64[np.ndarray, " cells"] | None
) -> Iterator[tuple[CountBatch, UInt64[np.ndarray, " cells"] | None]]:
    """The cells of a packed source and their keys."""
    done = 0
    with pa.memory_map(str(folder / f"{packed_name(number)}.arrow")) as file:
        for batch in pa.ipc.open_stream(file):
            cells = from_arrow(pa.Table.from_batches([batch]))
            yield cells, None if keys is None else keys[done : done + len(cells)]
            done += len(cells)


def forget_packed(folder: Path, number: int) -> None:
    """Delete the file and the record of a source that was scattered."""
    for suffix in ("json", "npz", "arrow"):
        (folder / f"{packed_name(number)}.{suffix}").unlink(missing_ok=True)


class _Stopped(Exception):
    """The parent wants no more of this."""


class Packing:
    """Jobs under way in worker processes."""

    def __init__(self, futures: dict[int, Future[None]], done: Any) -> None:
        self._futures = futures
        self._done = done

    def cells_read(self) -> dict[int, int]:
        """Cells read so far, by number of the source."""
        return {number: self._done[place] for place, number in enumerate(self._futures)}

    def wait_for(self, number: int, told: Callable[[], None]) -> None:
        """Until this source is packed. What goes wrong in any other is raised at once, not after hours of this one."""
        try:
            while not self._futures[number].done():
                pending = [future for future in self._futures.values() if not future.done()]
                for future in wait(pending, POLL_SECONDS, return_when=FIRST_COMPLETED).done:
                    future.result()
                told()
            self._futures[number].result()
        except BrokenProcessPool as error:
            raise Unfinished(
                "a worker process ended without a word: killed by hand, or by the system for want of memory. The sources that were "
                "finished are kept: run the same command again, with fewer --workers where memory was short."
            ) from error


@contextmanager
def packing(jobs: list[Job], folder: Path, workers: int) -> Iterator[Packing]:
    """Pack `jobs` in at most `workers` processes, in order. Leaving the block stops those that are still at it."""
    context = multiprocessing.get_context("spawn")  # a fork would copy HDF5's and Arrow's threads and locks
    done, stop = context.Array("q", len(jobs), lock=False), context.Event()
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), mp_context=context, initializer=_begin, initargs=(done, stop, os.getpid())
    )
    try:
        yield Packing({job.number: pool.submit(_work, place, job, folder) for place, job in enumerate(jobs)}, done)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


_shared: dict[str, Any] = {}


def _begin(done: Any, stop: Any, parent: int) -> None:
    """First in each worker: Ctrl-C is the parent's to handle, and a worker does not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _shared.update(done=done, stop=stop)

    def watch() -> None:
        process = multiprocessing.parent_process()
        if process is not None:
            wait_for([process.sentinel])
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _work(place: int, job: Job, folder: Path) -> None:
    def told(cells: int) -> None:
        _shared["done"][place] = cells
        if _shared["stop"].is_set():
            raise _Stopped

    pack_source(job, folder, told)
