"""A matrix file that is filled block by block: an AnnData in HDF5 or zarr, its X dense or CSR, whole or not there at all."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias

import h5py
import numpy as np
import zarr
import zarr.codecs
from anndata import AnnData, settings
from anndata.io import sparse_dataset, write_elem
from jaxtyping import Float32
from numcodecs import GZip
from scipy import sparse

from expresser.atomic import replaced, replaced_folder

Compression = Literal["gzip", "lzf"]
Group: TypeAlias = Any  # an h5py.Group or a zarr.Group: no type describes what they share
Sink = Callable[[slice, Float32[np.ndarray, "cells features"]], None]
Keep = Callable[[slice, Float32[np.ndarray, "cells features"]], sparse.csr_matrix]  # the cells are those of the block

# Of a dense matrix on disk: 1 MB. A cell of 224,000 peaks lies in 28 of them, a peak of 10,000 cells in 313.
TILE = (32, 8192)
_RUN = 2**18  # entries of a sparse matrix that are stored, and compressed, together
_INT32 = 2**31 - 1


@contextmanager
def store(out: Path) -> Iterator[Group]:
    """The root group of a new file or folder that takes its name when the block ends well."""
    if out.suffix == ".h5ad":
        with replaced(out) as part, h5py.File(part, "w") as root:
            yield root
    else:
        with replaced_folder(out) as folder:
            yield zarr.open_group(folder, mode="w", zarr_format=settings.zarr_write_format)


def write_around(root: Group, shell: AnnData) -> None:
    """Everything of an AnnData but its matrix."""
    root.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
    for name, value in (("obs", shell.obs), ("var", shell.var), ("uns", dict(shell.uns))):
        write_elem(root, name, value)
    for name in ("layers", "obsm", "obsp", "varm", "varp"):
        write_elem(root, name, {})


def _new(
    root: Group, name: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], compression: str | None
) -> Any:
    """An array of zeros in the file, to be filled."""
    chunks = tuple(min(c, max(n, 1)) for c, n in zip(chunks, shape))
    if isinstance(root, h5py.Group):
        return root.create_dataset(name, shape, dtype, chunks=chunks, **_h5_options(compression))
    return root.create_array(name, shape=shape, dtype=dtype, chunks=chunks, **_zarr_options(compression))


@contextmanager
def dense_sink(root: Group, shape: tuple[int, int], dtype: np.dtype, compression: str | None) -> Iterator[Sink]:
    """X as a dense matrix; the sink takes cells in any order."""
    # In zarr each tile is a file of its own: fewer, larger ones.
    tile = TILE if isinstance(root, h5py.Group) else (8 * TILE[0], TILE[1])
    matrix = _new(root, "X", shape, dtype, tile, compression)
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def write(cells: slice, block: np.ndarray) -> None:
        matrix[cells] = block.astype(dtype, copy=False)

    yield write


@contextmanager
def sparse_sink(root: Group, n_features: int, compression: str | None, keep: Keep) -> Iterator[Sink]:
    """X as CSR of what `keep` leaves, for blocks in order; row starts are int64 until it is known that int32 holds them."""
    empty = sparse.csr_matrix((0, n_features), dtype=np.float32)
    empty.indptr = empty.indptr.astype(np.int64)
    options = _h5_options(compression) if isinstance(root, h5py.Group) else _zarr_options(compression)
    write_elem(root, "X", empty, dataset_kwargs={"chunks": (_RUN,), **options})
    matrix = sparse_dataset(root["X"])

    def write(cells: slice, block: np.ndarray) -> None:
        matrix.append(keep(cells, block))

    yield write
    # scipy's routines fail where row starts and column numbers differ in type.
    stored = root["X"]["indices"].shape[0]
    name, dtype = ("indptr", np.int32) if stored <= _INT32 else ("indices", np.int64)
    _retyped(root["X"], name, np.dtype(dtype), compression)


def _retyped(group: Group, name: str, dtype: np.dtype, compression: str | None) -> None:
    """Replace an array of the group by one of another type, a piece at a time."""
    aside = f"{name}_retyped"
    for source, target in ((name, aside), (aside, name)):  # no format can both rename and resize: copied there and back
        old = group[source]
        new = _new(group, target, old.shape, dtype, (_RUN,), compression)
        for first in range(0, old.shape[0], 16 * _RUN):
            piece = slice(first, min(first + 16 * _RUN, old.shape[0]))
            new[piece] = old[piece].astype(dtype)
        del group[source]


def _h5_options(compression: str | None) -> dict[str, Any]:
    return {"compression": compression, "shuffle": True} if compression else {}


def _zarr_options(compression: str | None) -> dict[str, Any]:
    if compression is None:
        return {"compressors": None}
    if settings.zarr_write_format == 2:
        return {"compressors": [GZip(level=4)]}
    return {"compressors": [zarr.codecs.GzipCodec(level=4)]}
