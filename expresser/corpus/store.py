"""A corpus on disk, opened: memory-mapped shards read by row, with its vocabulary, obs and per-cell columns."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int32, Integer, UInt16, UInt32

from expresser.corpus.manifest import read_manifest
from expresser.corpus.obs import read_obs
from expresser.corpus.shards import CountBatch, from_arrow, schema
from expresser.errors import InputError
from expresser.genes import GeneVocab

if TYPE_CHECKING:
    from datasets import Dataset

__all__ = ["Corpus", "CountBatch"]


class Corpus:
    """Cells of a corpus by row: rows lie in a seeded random order over all sources, `cell_ids` is their row in obs.

    Nothing but the manifest, the vocabulary and the shards' headers is read on opening. Safe to pickle and to fork: the
    shards are mapped read-only and a copy maps them anew.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], vocab: GeneVocab, dataset: "Dataset") -> None:
        self.path = path
        self.manifest = manifest
        self.vocab = vocab
        self.n_cells: int = manifest["cells"]
        self.corpus_id: str = manifest["corpus_id"]
        self._dataset = dataset

    @classmethod
    def open(cls, folder: str | Path, *, check: bool = True) -> "Corpus":
        """Open the corpus in `folder`.

        `check` compares the size and the row count of each file with the manifest (free: no data are read; what has
        been altered inside a file is `verify_corpus`'s to find). Raises InputError where the folder is missing, is no
        corpus, has another format version, or lacks or has truncated a file.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if check:
            check_sizes(folder, manifest)
        vocab = GeneVocab.load(folder / manifest["genes"]["file"])
        if vocab.sha256 != manifest["genes"]["vocab_sha256"]:
            raise InputError(
                f"{folder / manifest['genes']['file']}: not the vocabulary this corpus was built with (sha256 "
                f"{vocab.sha256[:12]}…, the manifest has {manifest['genes']['vocab_sha256'][:12]}…). "
                "Token ids would name other genes: build or copy the corpus again."
            )
        return cls(folder, manifest, vocab, _map_shards(folder, manifest, check=check))

    def __len__(self) -> int:
        return self.n_cells

    def __repr__(self) -> str:
        return (
            f"Corpus({str(self.path)!r}: {self.n_cells:,} cells of {len(self.manifest['sources'])} sources, "
            f"{len(self.vocab):,} genes, {self.manifest['nnz']:,} non-zero counts, id {self.corpus_id[:12]})"
        )

    @cached_property
    def obs(self) -> pd.DataFrame:
        """Row i is cell id i: `source`, `barcode` and the chosen columns. Read on first use."""
        obs = read_obs(self.path / self.manifest["obs"]["file"])
        if len(obs) != self.n_cells:
            raise InputError(
                f"{self.path / self.manifest['obs']['file']}: {len(obs):,} rows for {self.n_cells:,} cells. "
                "Build or copy the corpus again."
            )
        return obs

    @cached_property
    def lengths(self) -> Int32[np.ndarray, " cells"]:
        """Non-zero genes of the cell in each row: from the list offsets, no count is touched."""
        return pc.list_value_length(self._dataset.data.column("genes")).to_numpy()

    @cached_property
    def totals(self) -> UInt32[np.ndarray, " cells"]:
        """Sum of raw counts over the vocabulary of the cell in each row."""
        return self._dataset.data.column("total").to_numpy()

    @cached_property
    def cell_ids(self) -> UInt32[np.ndarray, " cells"]:
        """Obs row of the cell in each row."""
        return self._dataset.data.column("cell_id").to_numpy()

    @cached_property
    def source_ids(self) -> UInt16[np.ndarray, " cells"]:
        """Number of the input (position in manifest["sources"]) of the cell in each row."""
        return self._dataset.data.column("source").to_numpy()

    def read(self, rows: Integer[np.ndarray, " rows"]) -> CountBatch:
        """The cells in `rows`, in that order, packed; rows may repeat. One call of `datasets` in arrow format.

        Neighbouring rising rows are read as one slice. Raises IndexError for a row outside 0 … n_cells - 1.
        """
        if rows.dtype.kind not in "iu":
            raise TypeError(f"rows must be integers, not {rows.dtype}")
        if not len(rows):
            return from_arrow(self._dataset.data.table.slice(0, 0))
        first, last = int(rows.min()), int(rows.max())
        if first < 0 or last >= self.n_cells:
            raise IndexError(f"rows {first} … {last} asked of a corpus with rows 0 … {self.n_cells - 1}")
        if last - first == len(rows) - 1 and (np.diff(rows.astype(np.int64)) == 1).all():
            return from_arrow(self._dataset[first : last + 1])
        return from_arrow(self._dataset[rows.tolist()])


def check_sizes(folder: Path, manifest: dict[str, Any]) -> None:
    """Every file that the manifest names is there with the bytes it had; else InputError that names it."""
    for entry in (manifest["genes"], manifest["obs"], *manifest["shards"]):
        path = folder / entry["file"]
        if not path.is_file():
            raise InputError(f"{path}: missing. The corpus is incomplete: build or copy it again.")
        if (size := path.stat().st_size) != entry["bytes"]:
            raise InputError(
                f"{path}: {size:,} bytes, the manifest says {entry['bytes']:,}: the file was cut short or altered. "
                "Copy it again, or build the corpus again."
            )


def _map_shards(folder: Path, manifest: dict[str, Any], *, check: bool) -> "Dataset":
    # Half a second to import, and `expresser --help` must not wait for it.
    from datasets import Dataset, concatenate_datasets

    wanted = schema(manifest["dtypes"]["genes"], manifest["dtypes"]["counts"])
    parts = []
    for entry in manifest["shards"]:
        path = folder / entry["file"]
        try:
            part = Dataset.from_file(str(path))
        except (OSError, pa.ArrowException) as error:
            raise InputError(
                f"{path}: not readable as an Arrow stream ({error}). Copy it again, or build the corpus again."
            ) from error
        if check and (part.num_rows != entry["rows"] or not part.data.schema.equals(wanted)):
            raise InputError(
                f"{path}: {part.num_rows:,} rows of {part.data.schema.types}, the manifest says {entry['rows']:,} of "
                f"{wanted.types}. Copy it again, or build the corpus again."
            )
        parts.append(part)
    return concatenate_datasets(parts).with_format("arrow")
