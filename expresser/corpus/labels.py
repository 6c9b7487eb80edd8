"""Labels of cells, one obs column at a time: a corpus of millions has more barcodes than a question about donors needs."""

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from expresser.corpus.store import Corpus
from expresser.errors import InputError


def obs_path(corpus: Corpus) -> Path:
    """The corpus's obs table."""
    return corpus.path / corpus.manifest["obs"]["file"]


def read_labels(corpus: Corpus, column: str) -> pd.Series:
    """One column of obs, row i is cell id i; text is categorical. InputError where there is no such column."""
    path = obs_path(corpus)
    schema = pq.read_schema(path)
    if column not in schema.names:
        raise InputError(
            f"{corpus.path}: no obs column {column!r}; the corpus has {', '.join(schema.names)}. "
            f"Name one of those, or build the corpus with --obs {column}."
        )
    as_codes = [column] if schema.field(column).type == pa.string() else []
    values = pq.read_table(path, columns=[column], read_dictionary=as_codes).column(0)
    return values.unify_dictionaries().to_pandas().rename(column)


def commonest(labels: pd.Series, most: int = 10) -> list[tuple[str, int]]:
    """(value as text, cells) of the commonest values, missing ones left out."""
    counts = labels.value_counts()
    return [(str(value), int(cells)) for value, cells in counts[counts > 0].head(most).items()]
