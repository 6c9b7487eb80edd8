"""Buckets into shards, one recorded step a shard: an interrupted writing goes on behind the last that was finished."""

from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from expresser.atomic import flush
from expresser.corpus.manifest import shard_name
from expresser.corpus.shards import ContentDigest, CountBatch, from_arrow, write_shards
from expresser.corpus.shuffle import Scatter
from expresser.corpus.workshop import Workshop
from expresser.errors import InputError


def write_rows(
    shop: Workshop,
    scatter: Scatter,
    *,
    columns: pa.Schema,
    n_cells: int,
    shard_rows: int,
    batch_rows: int,
    first_shard: int,
    content: ContentDigest,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """All cells as shards in the product, numbered from `first_shard`; a bucket is deleted once its last cell is in a finished shard.

    Shards that an earlier process finished are read for `content`, which no process can hand to another, and kept.
    """
    shards: list[dict[str, Any]] = []
    done = 0
    while (entry := shop.recorded(f"shard-{len(shards):05d}")) is not None:
        path = shop.product / entry["file"]
        if not path.is_file() or path.stat().st_size != entry["bytes"]:
            raise InputError(
                f"{path}: missing or altered since it was written. Nothing can be kept: run the same command again."
            )
        for batch in read_shard(path):
            content.update(batch)
        done += entry["rows"]
        shards.append(entry)
        progress("write", done, n_cells)
    scatter.forget(done)
    rows = _Rows(scatter.shuffled(skip=done), done, lambda so_far: progress("write", so_far, n_cells))
    part = shop.folder / "part"
    part.mkdir(exist_ok=True)
    while done < n_cells:
        here = min(shard_rows, n_cells - done)
        (entry,) = write_shards(
            part,
            rows.next(here),
            columns=columns,
            n_cells=here,
            shard_rows=here,
            batch_rows=batch_rows,
            written=content.update,
        )
        flush(part / entry["file"])
        name = shard_name(first_shard + len(shards))
        (part / entry["file"]).replace(shop.product / name)
        entry |= {"file": name}
        shop.record(f"shard-{len(shards):05d}", entry)
        shards.append(entry)
        done += here
        scatter.forget(done)
    return shards


def read_shard(path: Any) -> Iterator[CountBatch]:
    """Record batch after record batch, from start to end."""
    with pa.memory_map(str(path)) as file:
        for record in pa.ipc.open_stream(file):
            yield from_arrow(pa.Table.from_batches([record]))


class _Rows:
    """One iterator of batches handed out as several, each of so many rows."""

    def __init__(self, batches: Iterator[CountBatch], done: int, told: Callable[[int], None]) -> None:
        self._batches, self._done, self._told = batches, done, told
        self._rest: CountBatch | None = None

    def next(self, rows: int) -> Iterator[CountBatch]:
        """The next `rows` rows."""
        while rows:
            batch = self._rest if self._rest is not None else next(self._batches)
            used = min(rows, len(batch))
            self._rest = batch.slice(used, len(batch)) if used < len(batch) else None
            rows -= used
            yield batch.slice(0, used)
            self._done += used
            self._told(self._done)
