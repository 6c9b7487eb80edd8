"""Read a corpus that lies elsewhere and is larger than this disk: whole shards in order, through a bounded cache."""

import hashlib
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from jaxtyping import Integer

from expresser.atomic import replaced
from expresser.corpus.mirror import Counter, fetch_file, fetch_manifest, parse_manifest
from expresser.corpus.obs import read_obs
from expresser.corpus.places import Place, open_place
from expresser.corpus.shards import CountBatch, concatenate, from_arrow, prove_plain
from expresser.corpus.staging import bytes_text
from expresser.errors import InputError
from expresser.genes import GeneVocab

log = logging.getLogger(__name__)

_OPEN = 2  # shards mapped at once: one being read, one over whose end a batch reaches


def open_remote(url: str, cache: str | Path, cache_bytes: int = 10_000_000_000) -> "RemoteCorpus":
    """Open the corpus at `url` (see `places.open_place`) for reading in its order on disk.

    At most `cache_bytes` of shards stay in the folder `cache`, those used last; obs and vocabulary come on top. What is
    in the cache is read without the network, and where the place cannot be reached at all, the manifest that was seen
    last serves. A cache is for one process: processes on one machine read other shards anyway and have one each.

    InputError: nothing at `url`, no room in the cache for the largest shard.
    """
    place, cache = open_place(url), Path(cache).expanduser().resolve()
    cache.mkdir(parents=True, exist_ok=True)
    remembered = cache / f"manifest-{hashlib.sha256(place.url.encode()).hexdigest()[:16]}.json"
    try:
        text = fetch_manifest(place)
    except InputError as error:
        if not remembered.is_file():
            raise
        log.warning("%s: cannot be reached (%s); going on with the manifest seen last", url, error)
        text = remembered.read_bytes()
    manifest = parse_manifest(text, place.url)
    with replaced(remembered) as part:
        part.write_bytes(text)
    largest = max(entry["bytes"] for entry in manifest["shards"])
    if cache_bytes < largest:
        raise InputError(
            f"{url}: its largest shard has {bytes_text(largest)}, the cache may hold {bytes_text(cache_bytes)}. "
            f"Allow {bytes_text(2 * largest)}, so that one is read while the next one comes."
        )
    folder = cache / manifest["corpus_id"][:16]
    folder.mkdir(exist_ok=True)
    return RemoteCorpus(place, manifest, folder, cache_bytes)


class RemoteCorpus:
    """Cells of a corpus elsewhere, by consecutive rows.

    Not a `Corpus`: rows in any order would fetch a shard (1 GB) for each cell, so `pretrain`, which draws cells
    globally at random, wants a mirror (`corpus pull`). What is honest here is reading in order: rows were shuffled over
    all sources when the corpus was built. That order is the same in every epoch. `lengths`, `totals` and `cell_ids` of
    all rows would need all shards and are not offered.
    """

    def __init__(self, place: Place, manifest: dict[str, Any], folder: Path, cache_bytes: int) -> None:
        self.place, self.manifest, self.folder, self.cache_bytes = place, manifest, folder, cache_bytes
        self.n_cells: int = manifest["cells"]
        self.corpus_id: str = manifest["corpus_id"]
        self._shards: list[dict[str, Any]] = manifest["shards"]
        self._starts = np.concatenate([[0], np.cumsum([entry["rows"] for entry in self._shards])])
        self._tables: OrderedDict[int, pa.Table] = OrderedDict()
        self._proven: set[str] = set()
        self._announced = -1  # the shard that was last asked for ahead
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return self.n_cells

    @cached_property
    def vocab(self) -> GeneVocab:
        """The vocabulary, fetched on first use."""
        entry = self.manifest["genes"]
        return GeneVocab.load(fetch_file(self.place, entry, self.folder, Counter(entry["bytes"], None)))

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Row i is cell id i, fetched on first use: a whole table, for which the cache's bound does not count."""
        entry = self.manifest["obs"]
        return read_obs(fetch_file(self.place, entry, self.folder, Counter(entry["bytes"], None)))

    def read(self, rows: Integer[np.ndarray, " rows"]) -> CountBatch:
        """The cells in `rows`, which are consecutive and rise. ValueError otherwise, IndexError outside the corpus."""
        if not len(rows):
            raise ValueError("no rows: ask for at least one")
        first, last = int(rows[0]), int(rows[-1])
        if first < 0 or last >= self.n_cells:
            raise IndexError(f"rows {first} … {last} asked of a corpus with rows 0 … {self.n_cells - 1}")
        if last - first != len(rows) - 1 or not (np.diff(rows.astype(np.int64)) == 1).all():
            raise ValueError("rows of a remote corpus are read consecutively; mirror it (`corpus pull`) for any order")
        return self._span(first, last + 1)

    def stream(self, cells_seen: int, *, batch: int, rank: int = 0, world: int = 1) -> Iterator[CountBatch]:
        """An endless stream of batches of this process's part of the rows, the next shard fetched meanwhile.

        Process r of w has rows ``r n // w … (r + 1) n // w - 1``, in their order on disk and then from the start again;
        epochs run into each other, so all batches are full. `cells_seen`, counted over all processes, is the whole
        state: the stream goes on exactly where it was with the same `world`. It is not elastic: with another number of
        processes an epoch has to be begun anew, since each holds other shards.
        """
        low, high = rank * self.n_cells // world, (rank + 1) * self.n_cells // world
        if not 0 <= rank < world or low == high or batch < 1:
            raise InputError(f"process {rank} of {world} with batches of {batch}: no cells for it of {self.n_cells:,}.")
        if cells_seen % world:
            raise InputError(
                f"cells_seen is {cells_seen}, which {world} processes cannot have read in equal parts: a stream from "
                "elsewhere goes on with the number of processes it began with."
            )
        position = cells_seen // world
        counter = Counter(0, None)
        with ThreadPoolExecutor(max_workers=1) as ahead:
            try:
                while True:
                    parts, missing = [], batch
                    while missing:
                        first = low + position % (high - low)
                        last = min(first + missing, high)
                        parts.append(self._span(first, last))
                        following = self._following(last - 1, low, high)
                        if following is not None:
                            # A failure is met again, and told, when the shard is read.
                            ahead.submit(self._fetch, following, counter, keep=self._number(last - 1))
                        position += last - first
                        missing -= last - first
                    yield concatenate(parts)
            finally:
                counter.stop()  # whoever leaves the stream does not wait for a shard that is not wanted any more

    def _following(self, row: int, low: int, high: int) -> int | None:
        """The shard after that of `row`, where it is to be fetched ahead: once, and if the cache holds both."""
        here = self._number(row)
        following = here + 1 if self._starts[here + 1] < high else self._number(low)
        sizes = self._shards[here]["bytes"] + self._shards[following]["bytes"]
        if following in (here, self._announced) or sizes > self.cache_bytes:
            return None
        self._announced = following
        return following

    def _number(self, row: int) -> int:
        return int(np.searchsorted(self._starts, row, side="right")) - 1

    def _span(self, first: int, stop: int) -> CountBatch:
        parts = []
        while first < stop:
            number = self._number(first)
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            parts.append(from_arrow(self._table(number).slice(first - start, min(stop, end) - first)))
            first = min(stop, end)
        return concatenate(parts)

    def _table(self, number: int) -> pa.Table:
        if number not in self._tables:
            entry = self._shards[number]
            with self._lock, pa.memory_map(str(self._fetch(number, Counter(entry["bytes"], None)))) as file:
                # Mapped pages stay readable after the file is evicted; its disk space is free when the map is let go.
                try:
                    prove_plain(file.read_buffer())
                    file.seek(0)
                    self._tables[number] = pa.ipc.open_stream(file).read_all()
                except (OSError, ValueError, pa.ArrowException) as error:
                    raise InputError(
                        f"{self.place.url}/{entry['file']}: not readable as an Arrow stream ({error}). It was pushed so, or altered."
                    ) from error
            while len(self._tables) > _OPEN:
                self._tables.popitem(last=False)
        self._tables.move_to_end(number)
        return self._tables[number]

    def _fetch(self, number: int, counter: Counter, keep: int | None = None) -> Path:
        entry = self._shards[number]
        path = self.folder / entry["file"]
        with self._lock:  # one download at a time: the line is shared, and the bound is exact
            if entry["file"] not in self._proven or not path.is_file():
                self._make_room(entry, keep)
                fetch_file(self.place, entry, self.folder, counter)
                self._proven.add(entry["file"])
            os.utime(path)
        return path

    def _make_room(self, entry: dict[str, Any], keep: int | None) -> None:
        """Delete the shards used longest ago until `entry` fits."""
        kept = {entry["file"]} | ({self._shards[keep]["file"]} if keep is not None else set())
        # Parts of downloads that another run began count too; that of `entry` itself is gone on with.
        held = {path.name: path.stat() for path in self.folder.glob("*.arrow")}
        held |= {
            path.name: path.stat() for path in self.folder.glob(".*.part") if path.name != f".{entry['file']}.part"
        }
        used = sum(stat.st_size for name, stat in held.items() if name != entry["file"])
        for name, stat in sorted(held.items(), key=lambda item: item[1].st_mtime_ns):
            if used + entry["bytes"] <= self.cache_bytes:
                return
            if name not in kept:
                (self.folder / name).unlink(missing_ok=True)
                self._proven.discard(name)
                used -= stat.st_size
