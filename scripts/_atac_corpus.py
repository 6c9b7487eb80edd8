"""A large simulated corpus of ATAC in seconds; for bench_stream_atac.py alone.

Cells are drawn once, of eight kinds and with log-normal numbers of open bins, and built as any corpus. Their record batch is then
written again and again under new cell ids: a reader cannot tell, since every repeat lies in another place of the files.
"""

import itertools
import shutil
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from expresser.corpus.build import build_corpus
from expresser.corpus.manifest import corpus_id, shard_name, write_manifest
from expresser.corpus.store import Corpus

POOL, SHARD, WIDTH, KINDS = 5_000, 100_000, 5_000, 8
# Megabases of the autosomes of hg38, which the bins are dealt to.
CHROMS = (248, 242, 198, 190, 181, 170, 159, 145, 138, 133, 135, 133, 114, 107, 101, 90, 83, 80, 58, 64, 46, 50)


def bins(regions: int) -> list[str]:
    """Names of so many bins over the autosomes, in canonical order."""
    edges = np.round(np.cumsum([0, *CHROMS]) / sum(CHROMS) * regions).astype(int)
    return [
        f"chr{chrom}:{i * WIDTH}-{(i + 1) * WIDTH}"
        for chrom, (first, last) in enumerate(itertools.pairwise(edges), start=1)
        for i in range(last - first)
    ]


def pool(regions: int, a_cell: int, seed: int = 0) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Cells x bins of 0/1 and the kind of each cell: bins differ in how often they are open, a tenth of them between kinds."""
    rng = np.random.default_rng(seed)
    base = np.exp(rng.normal(0, 1, regions))
    rates = np.stack(
        [base * np.where(rng.random(regions) < 0.1, np.exp(rng.normal(0, 1.5, regions)), 1) for _ in range(KINDS)]
    )
    ends = np.cumsum(rates, axis=1) / rates.sum(axis=1, keepdims=True)
    kinds = rng.integers(0, KINDS, POOL)
    depth = np.clip(np.exp(rng.normal(np.log(a_cell), 0.5, POOL)), 200, regions // 4).astype(int)
    rows = [np.unique(np.searchsorted(ends[k], rng.random(n))) for k, n in zip(kinds, depth)]
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    indices = np.concatenate(rows).astype(np.int32)
    return sparse.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(POOL, regions)), kinds


def make(folder: Path, cells: int, regions: int, a_cell: int) -> Corpus:
    """The corpus of `cells` cells in `folder`, built if it is not there."""
    if (folder / "manifest.json").is_file():
        return Corpus.open(folder)
    if cells % POOL:
        raise SystemExit(f"--cells {cells}: must be a multiple of {POOL:,}")
    folder.mkdir(parents=True, exist_ok=True)
    matrix, kinds = pool(regions, a_cell)
    adata = anndata.AnnData(matrix, var=pd.DataFrame(index=bins(regions)))
    adata.obs_names = [f"c{i}" for i in range(POOL)]
    small = build_corpus([adata], folder / "pool", batch_rows=POOL, min_genes=1)
    manifest = small.manifest
    with pa.memory_map(str(folder / "pool" / shard_name(0))) as file:
        record = pa.ipc.open_stream(file).read_next_batch()
        order = np.asarray(record.column("cell_id"))
        manifest["shards"] = [
            _shard(folder, number, first, min(SHARD, cells - first), record)
            for number, first in enumerate(range(0, cells, SHARD))
        ]
    manifest["cells"] = cells
    manifest["nnz"] = sum(shard["nnz"] for shard in manifest["shards"])
    manifest["content"] = f"{cells:064d}"  # verify would say that the digests are none; nothing else looks at them
    # Cell ids count up along the file, so that the kinds follow the record batch.
    columns = {
        "source": pa.DictionaryArray.from_arrays(np.zeros(cells, np.int32), ["simulated"]).cast(pa.string()),
        "barcode": pa.array(np.arange(cells)).cast(pa.string()),
        "kind": pa.array(np.tile(kinds[order].astype(str).astype(object), cells // POOL), pa.string()),
        "donor": pa.array(np.tile(np.array(["d0", "d1"], object), cells // 2), pa.string()),
    }
    path = folder / manifest["obs"]["file"]
    pq.write_table(pa.table(columns), path)
    manifest["obs"] |= {"bytes": path.stat().st_size, "columns": ["kind", "donor"]}
    shutil.copy(small.path / manifest["genes"]["file"], folder)
    shutil.rmtree(folder / "pool")
    manifest["corpus_id"] = corpus_id(manifest)
    write_manifest(folder, manifest)
    return Corpus.open(folder)


def _shard(folder: Path, number: int, first: int, here: int, record: pa.RecordBatch) -> dict[str, object]:
    path = folder / shard_name(number)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, record.schema) as writer:
        for start in range(first, first + here, POOL):
            writer.write_batch(
                record.set_column(0, "cell_id", pa.array(np.arange(start, start + POOL, dtype=np.uint32)))
            )
    nnz = len(record.column("genes").values) * here // POOL
    found = {"file": path.name, "rows": here, "nnz": nnz, "bytes": path.stat().st_size}
    return found | {"sha256": "0" * 64, "first_cell_id": first}
