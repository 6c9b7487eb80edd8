"""A large simulated corpus in seconds, and the same cells in the formats other loaders read; for bench_loader.py alone.

10,000 cells are drawn once, with log-normal numbers of genes around 900, and built as any corpus. Their record batch is then written
again and again under new cell ids. A loader cannot tell: every repeat lies in another place of the file. `expresser simulate`
draws each count from a model of expression and would take days for six million cells.
"""

import shutil
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from expresser.corpus.build import build_corpus
from expresser.corpus.manifest import corpus_id, shard_name, write_manifest
from expresser.corpus.store import Corpus

POOL, GENES, SHARD = 10_000, 20_000, 250_000


def pool(seed: int = 0) -> sparse.csr_matrix:
    """Cells x genes: gene numbers strictly rising by strata, one gene in each; counts geometric."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(np.exp(rng.normal(np.log(900), 0.45, POOL)), 200, 4000).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    stratum = np.repeat(GENES / lengths, lengths)
    place = np.arange(indptr[-1]) - np.repeat(indptr[:-1], lengths)
    genes = np.floor(place * stratum) + np.floor(rng.random(len(place)) * np.floor(stratum))
    counts = rng.geometric(0.5, len(place)).astype(np.float32)
    return sparse.csr_matrix((counts, genes.astype(np.int32), indptr), shape=(POOL, GENES))


def make(folder: Path, cells: int) -> Corpus:
    """The corpus of `cells` cells in `folder`, built if it is not there."""
    if (folder / "manifest.json").is_file():
        return Corpus.open(folder)
    if cells % POOL:
        raise SystemExit(f"--cells {cells}: must be a multiple of {POOL:,}")
    folder.mkdir(parents=True, exist_ok=True)
    adata = anndata.AnnData(pool(), var=pd.DataFrame(index=[f"ENSG{i:011d}" for i in range(GENES)]))
    adata.obs_names = [f"c{i}" for i in range(POOL)]
    small = build_corpus([adata], folder / "pool", batch_rows=POOL)
    with pa.memory_map(str(folder / "pool" / shard_name(0))) as file:
        record = pa.ipc.open_stream(file).read_next_batch()
        shards = [_shard(folder, number, first, cells, record) for number, first in enumerate(range(0, cells, SHARD))]
    manifest = small.manifest
    entry = manifest["shards"][0]
    manifest |= {
        "cells": cells,
        "nnz": sum(shard["nnz"] for shard in shards),
        "shards": [entry | shard for shard in shards],
        "content": f"{cells:064d}",  # verify would say that the digests are none; nothing else looks at them
    }
    obs = pa.table(
        {
            "source": pa.DictionaryArray.from_arrays(np.zeros(cells, np.int32), ["simulated"]).cast(pa.string()),
            "barcode": pa.array(np.arange(cells)).cast(pa.string()),
        }
    )
    pq.write_table(obs, folder / manifest["obs"]["file"])
    manifest["obs"]["bytes"] = (folder / manifest["obs"]["file"]).stat().st_size
    shutil.copy(small.path / manifest["genes"]["file"], folder)
    shutil.rmtree(folder / "pool")
    manifest["corpus_id"] = corpus_id(manifest)
    write_manifest(folder, manifest)
    return Corpus.open(folder)


def _shard(folder: Path, number: int, first: int, cells: int, record: pa.RecordBatch) -> dict[str, Any]:
    path, here = folder / shard_name(number), min(SHARD, cells - first)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, record.schema) as writer:
        for start in range(first, first + here, POOL):
            ids = pa.array(np.arange(start, start + POOL, dtype=np.uint32))
            writer.write_batch(record.set_column(0, "cell_id", ids))
    nnz = len(record.column("genes").values) * here // POOL
    found = {"file": path.name, "rows": here, "nnz": nnz, "bytes": path.stat().st_size}
    return found | {"sha256": "0" * 64, "first_cell_id": first}


def make_memmap(folder: Path, corpus: Corpus) -> None:
    """The same cells as flat arrays: genes.u16, counts.u16, indptr.npy."""
    if (folder / "indptr.npy").is_file():
        return
    with open(folder / "genes.u16", "wb") as genes, open(folder / "counts.u16", "wb") as counts:
        for start in range(0, corpus.n_cells, POOL):
            batch = corpus.read(np.arange(start, start + POOL))
            genes.write(batch.genes.data)
            counts.write(batch.counts.data)
    np.save(folder / "indptr.npy", np.concatenate([[0], np.cumsum(corpus.lengths, dtype=np.int64)]))


def make_h5ad(folder: Path, corpus: Corpus) -> None:
    """The same cells as an uncompressed h5ad file, float32, chunks of a million values."""
    path = folder / "cells.h5ad"
    if path.is_file():
        return
    indptr = np.concatenate([[0], np.cumsum(corpus.lengths, dtype=np.int64)])
    part = path.with_suffix(".part")
    names = [f"c{i}" for i in range(corpus.n_cells)]
    anndata.AnnData(obs=pd.DataFrame(index=names), var=pd.DataFrame(index=corpus.vocab.ids)).write_h5ad(part)
    with h5py.File(part, "r+") as file:
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [corpus.n_cells, GENES]}
        )
        group["indptr"] = indptr
        data = group.create_dataset("data", (indptr[-1],), "f4", chunks=(1_000_000,))
        indices = group.create_dataset("indices", (indptr[-1],), "i4", chunks=(1_000_000,))
        for start in range(0, corpus.n_cells, POOL):
            batch = corpus.read(np.arange(start, start + POOL))
            data[indptr[start] : indptr[start + POOL]] = batch.counts
            indices[indptr[start] : indptr[start + POOL]] = batch.genes
    part.rename(path)
