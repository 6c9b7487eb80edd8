"""The loaders that bench_loader.py compares: each opens a folder and yields batches as (cells, non-zero counts)."""

import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

Batches = Iterator[tuple[int, int]]
_ROUNDS = 100_000  # more batches than a round lasts


def _rows(n: int, size: int, blocks: bool, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Rows of batch after batch: at random, or runs of neighbouring rows that begin at random."""
    for _ in range(_ROUNDS):
        if blocks:
            first = int(rng.integers(0, n - size + 1))
            yield np.arange(first, first + size)
        else:
            yield rng.integers(0, n, size)


class Engine(ABC):
    """One loader. `files`: patterns of what it reads, for --cold; `needs`: packages whose versions are reported."""

    name: ClassVar[str]
    files: ClassVar[tuple[str, ...]] = ("cells-*.arrow",)
    needs: ClassVar[tuple[str, ...]] = ()
    how: ClassVar[tuple[str, ...]] = ("random", "blocks")

    @abstractmethod
    def __init__(self, folder: Path) -> None:
        """Open the corpus in `folder`."""

    @classmethod
    def missing(cls) -> str | None:
        """Why it cannot run here; None where it can."""
        absent = [name for name in cls.needs if find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None

    @classmethod
    def versions(cls) -> dict[str, str]:
        return {name: metadata.version(name) for name in cls.needs if find_spec(name) is not None}

    @abstractmethod
    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        """Endless batches of `size` cells, of random rows or of neighbouring ones."""


class Limit(Engine):
    """numpy CSR memmap and one compiled loop that copies rows out: as little work as there can be."""

    name, files, needs = "memmap", ("*.u16", "indptr.npy"), ("numpy", "numba")

    def __init__(self, folder: Path) -> None:
        import numba

        self.indptr = np.load(folder / "indptr.npy", allow_pickle=False)  # noqa: TID251 (made by this script)
        self.genes, self.counts = (np.memmap(folder / f"{name}.u16", np.uint16, "r") for name in ("genes", "counts"))

        @numba.njit(nogil=True)
        def gather(rows, indptr, genes, counts):
            lengths, total = np.empty(rows.size, np.int64), 0
            for i in range(rows.size):
                lengths[i] = indptr[rows[i] + 1] - indptr[rows[i]]
                total += lengths[i]
            to_genes, to_counts, to = np.empty(total, genes.dtype), np.empty(total, counts.dtype), 0
            for i in range(rows.size):
                start, n = indptr[rows[i]], lengths[i]
                a, b, x, y = (
                    genes[start : start + n],
                    counts[start : start + n],
                    to_genes[to : to + n],
                    to_counts[to : to + n],
                )
                for j in range(n):
                    x[j] = a[j]
                for j in range(n):
                    y[j] = b[j]
                to += n
            return lengths, to_genes, to_counts

        self.gather = gather

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        for rows in _rows(len(self.indptr) - 1, size, blocks, rng):
            _, genes, _ = self.gather(rows, self.indptr, self.genes, self.counts)
            yield size, len(genes)


class Read(Engine):
    """`Corpus.read`: this project, one thread, nothing ahead."""

    name, needs = "expresser", ("expresser", "numpy", "pyarrow", "numba")

    def __init__(self, folder: Path) -> None:
        from expresser.corpus.store import Corpus

        self.corpus = Corpus.open(folder)

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        for rows in _rows(self.corpus.n_cells, size, blocks, rng):
            yield size, len(self.corpus.read(rows).genes)


class Streamed(Read):
    """`Stream.steps`: what pretraining reads with: seeded order, micro-batches by length, pages announced, a thread ahead."""

    name, how = "expresser_stream", ("random",)

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        from expresser.corpus.stream import Stream

        n = self.corpus.n_cells
        stream = Stream(
            self.corpus, np.arange(n, dtype=np.uint32), seed=int(rng.integers(2**31)),
            global_batch=size, max_tokens=2**40, max_genes=2**20,
        )  # fmt: skip
        for _, cells in stream.steps(0, size * _ROUNDS):
            yield size, sum(len(part.genes) for part in cells)


class Datasets(Engine):
    """The same files by Hugging Face `datasets`, one call a batch, packed by Arrow's kernels: the documented way at its fastest."""

    name, needs, format = "datasets_arrow", ("datasets", "pyarrow"), "arrow"

    def __init__(self, folder: Path) -> None:
        from datasets import Dataset, concatenate_datasets

        parts = [Dataset.from_file(str(path)) for path in sorted(folder.glob("cells-*.arrow"))]
        self.data = concatenate_datasets(parts).with_format(self.format)

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        from expresser.corpus.shards import from_arrow

        for rows in _rows(len(self.data), size, blocks, rng):
            yield size, len(from_arrow(self.data[rows.tolist()]).genes)


class DatasetsNumpy(Datasets):
    """The same with `with_format("numpy")`, as its guide shows."""

    name, format = "datasets_numpy", "numpy"

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        for rows in _rows(len(self.data), size, blocks, rng):
            batch: Any = self.data[rows.tolist()]
            yield size, len(np.concatenate(batch["genes"])) + 0 * len(np.concatenate(batch["counts"]))


class AnnLoader(Engine):
    """anndata's AnnLoader over a backed h5ad file, left sparse; blocks are its unshuffled order."""

    name, files, needs = "annloader", ("cells.h5ad",), ("anndata", "h5py", "torch")

    def __init__(self, folder: Path) -> None:
        import anndata

        self.adata = anndata.read_h5ad(folder / "cells.h5ad", backed="r")

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is deprecated, and what many still use
            from anndata.experimental import AnnLoader as Loader

            loader = Loader(self.adata, batch_size=size, shuffle=not blocks, use_default_converter=False)
            for batch in loader:
                yield size, batch.X.nnz


class ScDataset(Engine):
    """scDataset over the backed h5ad file: blocks of 4 cells at random (its guide), or of whole batches; 16 batches a fetch."""

    name, files, needs = "scdataset", ("cells.h5ad",), ("scdataset", "anndata", "h5py", "torch")

    def __init__(self, folder: Path) -> None:
        import anndata

        self.matrix = anndata.io.sparse_dataset(anndata.read_h5ad(folder / "cells.h5ad", backed="r").file["X"])

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        from scdataset import BlockShuffling, scDataset

        class Rows:
            def __init__(self, matrix: Any) -> None:
                self.matrix, self.shape = matrix, matrix.shape

            def __len__(self) -> int:
                return self.shape[0]

            def __getitem__(self, rows: Any) -> Any:
                return self.matrix[rows]

        strategy = BlockShuffling(block_size=size if blocks else 1)
        loader = scDataset(Rows(self.matrix), strategy, batch_size=size, fetch_factor=16, seed=int(rng.integers(2**31)))
        for batch in loader:
            yield batch.shape[0], batch.nnz


class AnnBatch(Engine):
    """annbatch over sharded zarr written from the h5ad file; random chunks, shuffled in memory."""

    name, files, needs = "annbatch", ("annbatch.zarr/**/*",), ("annbatch", "zarr", "anndata")

    @classmethod
    def missing(cls) -> str | None:
        if sys.version_info < (3, 12):
            return f"needs Python 3.12, this is {sys.version_info.major}.{sys.version_info.minor}"
        return super().missing()

    def __init__(self, folder: Path) -> None:
        from annbatch import DatasetCollection

        path = folder / "annbatch.zarr"
        self.data = DatasetCollection(path)
        if self.data.is_empty:
            self.data.add_adatas([folder / "cells.h5ad"], dataset_size="3GB")  # in memory at once; its default is 20

    def batches(self, size: int, blocks: bool, rng: np.random.Generator) -> Batches:
        from annbatch import Loader

        # Chunks of one cell are its way to a global shuffle; its own way is chunks, shuffled among those in memory.
        chunk, held = (size, 16) if blocks else (1, 16 * size)
        loader = Loader(batch_size=size, chunk_size=chunk, preload_nchunks=held, shuffle=True, rng=rng)
        for batch in loader.use_collection(self.data):
            yield batch["X"].shape[0], batch["X"].nnz


ENGINES: dict[str, type[Engine]] = {
    engine.name: engine for engine in (Limit, Read, Streamed, Datasets, DatasetsNumpy, AnnLoader, ScDataset, AnnBatch)
}
