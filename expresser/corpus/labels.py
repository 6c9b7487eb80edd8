"""Labels of cells, one obs column at a time: a corpus of millions has more barcodes than a question about donors needs."""

import hashlib
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int64

from expresser.corpus.manifest import canonical_json
from expresser.corpus.obs import obs_columns, read_obs_columns
from expresser.errors import InputError

_DIGEST_ROWS = 65_536


@runtime_checkable
class Labelled(Protocol):
    """A corpus, as much of it as labels take."""

    path: Path
    manifest: dict[str, Any]


def obs_path(corpus: Labelled) -> Path:
    """The corpus's obs table."""
    return corpus.path / corpus.manifest["obs"]["file"]


def read_labels(corpus: Labelled, column: str) -> pd.Series:
    """One column of obs, row i is cell id i; text is categorical. InputError where there is no such column."""
    path = obs_path(corpus)
    schema = obs_columns(path, n_cells=corpus.manifest["cells"])
    if column not in schema.names:
        raise InputError(
            f"{corpus.path}: no obs column {column!r}; the corpus has {', '.join(schema.names)}. "
            f"Name one of those, or build the corpus with --obs {column}."
        )
    as_codes = [column] if schema.field(column).type == pa.string() else []
    values = read_obs_columns(path, [column], as_codes).column(0)
    return values.unify_dictionaries().to_pandas().rename(column)


def coded_labels(corpus: Labelled, column: str) -> tuple[list[str], Int64[np.ndarray, " cells"]]:
    """Values of an obs column as text, sorted, and the number of each cell id's value; missing is "nan". See `read_labels`."""
    kinds = pd.Categorical(read_labels(corpus, column))
    found = np.array([*map(str, kinds.categories), "nan"])
    names, numbers = np.unique(found if (kinds.codes < 0).any() else found[:-1], return_inverse=True)
    return names.tolist(), numbers[kinds.codes].astype(np.int64)  # a missing value has code -1: the last of `found`


def commonest(labels: pd.Series, most: int = 10) -> list[tuple[str, int]]:
    """(value as text, cells) of the commonest values, missing ones left out."""
    counts = labels.value_counts()
    return [(str(value), int(cells)) for value, cells in counts[counts > 0].head(most).items()]


class LabelsDigest:
    """sha256 of the values of an obs table but `source` (the rows' source numbers say that, and a file's name is no label).

    The same however the table is stored: row groups, compression and version of the format do not count.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._columns = [(field.name, str(field.type)) for field in schema if field.name != "source"]
        self._parts = [[hashlib.sha256() for _ in range(3)] for _ in self._columns]  # given, lengths of text, values

    def update(self, table: pa.Table) -> None:
        """Rows that follow those before."""
        for batch in table.to_batches(max_chunksize=_DIGEST_ROWS):
            for (name, kind), (given, lengths, values) in zip(self._columns, self._parts):
                column = batch.column(name)
                given.update(column.is_valid().to_numpy(zero_copy_only=False).astype("u1").tobytes())
                if kind == "string":
                    texts = column.fill_null("")
                    lengths.update(pc.binary_length(texts).to_numpy().astype("<i4").tobytes())
                    values.update("".join(texts.to_pylist()).encode())
                else:
                    spelled = {"int64": "<i8", "double": "<f8", "bool": "u1"}[kind]
                    filled = column.fill_null(False if kind == "bool" else 0)
                    values.update(filled.to_numpy(zero_copy_only=False).astype(spelled).tobytes())

    def hexdigest(self) -> str:
        """Of all rows so far."""
        parts = [[*column, *(part.hexdigest() for part in of)] for column, of in zip(self._columns, self._parts)]
        return hashlib.sha256(canonical_json(parts)).hexdigest()


def labels_sha256(path: Path) -> str:
    """The `LabelsDigest` of a whole obs table."""
    file = pq.ParquetFile(path)
    digest = LabelsDigest(file.schema_arrow)
    for number in range(file.num_row_groups):
        digest.update(file.read_row_group(number))
    return digest.hexdigest()
