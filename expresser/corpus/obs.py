"""The obs table of a corpus: source, barcode and chosen columns of all kept cells, one type a column over all files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool

from expresser.corpus.blocks import readable
from expresser.corpus.source import Source
from expresser.errors import InputError

OWN_COLUMNS = ("source", "barcode")
# What pandas and R write for a missing label into a text column.
_MISSING = {"", "nan", "NaN", "NA", "<NA>"}


def check_obs_columns(sources: Sequence[Source], columns: Sequence[str]) -> None:
    """Each column must be in at least one file; cells of files without it get a missing value.

    Raises InputError that names the files, the column and the columns each file has.
    """
    taken = [column for column in columns if column in OWN_COLUMNS]
    if taken:
        raise InputError(
            f"obs column {taken[0]!r}: the corpus has a column of its own by this name ({', '.join(OWN_COLUMNS)} are "
            "always there: the input file and the cell's name in it). Rename the column in the input."
        )
    for column in columns:
        if not any(column in source.obs.columns for source in sources):
            has = "; ".join(f"{source.path or source.name} has {_columns(source)}" for source in sources[:5])
            more = f"; {len(sources) - 5} more files lack it too" if len(sources) > 5 else ""
            raise InputError(
                f"obs column {column!r} is in none of the inputs: {has}{more}. "
                "Name a column that at least one file has (files without it get missing values)."
            )


def _columns(source: Source, most: int = 30) -> str:
    names = [repr(str(name)) for name in source.obs.columns]
    return (", ".join(names[:most]) + (", …" if len(names) > most else "")) or "no obs columns"


class ObsWriter:
    """Writes obs.parquet source by source, so that only one file's table is in memory.

    Whole numbers stay int64, numbers float64, booleans bool, where all files that have the column agree; anything else
    becomes text, with "", "nan" and "NA" as missing. `old` are the types of a table whose rows come first, by `copy`.
    """

    def __init__(
        self,
        path: Path,
        sources: Sequence[Source],
        columns: Sequence[str],
        *,
        old: Mapping[str, pa.DataType] | None = None,
    ) -> None:
        types = {
            column: _common_type(
                [source.obs[column] for source in sources if column in source.obs.columns], (old or {}).get(column)
            )
            for column in columns
        }
        self._schema = pa.schema([(name, pa.string()) for name in OWN_COLUMNS] + list(types.items()))
        self._writer = pq.ParquetWriter(str(path), self._schema, compression="zstd")

    def __enter__(self) -> "ObsWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._writer.close()

    def copy(self, table: pa.Table) -> None:
        """Append rows that an ObsWriter wrote."""
        arrays = []
        for field in self._schema:
            column = table[field.name]
            arrays.append(column if column.type == field.type else _to_arrow(column.to_pandas(), field.type))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))

    def write(self, source: Source, name: str, kept: Bool[np.ndarray, " cells"]) -> None:
        """Append the kept cells of one source."""
        obs = source.obs[kept]
        barcodes = [str(barcode) for barcode in obs.index]
        arrays = [pa.array([name] * len(obs), pa.string()), pa.array(barcodes, pa.string())]
        for field in list(self._schema)[len(OWN_COLUMNS) :]:
            column = obs[field.name] if field.name in obs.columns else None
            arrays.append(pa.nulls(len(obs), field.type) if column is None else _to_arrow(column, field.type))
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def obs_columns(path: Path, *, n_cells: int | None) -> pa.Schema:
    """Columns of the table `ObsWriter` wrote, from its footer alone.

    InputError where it is none, or has not `n_cells` rows: a file of a few bytes can claim any number of them.
    """
    with readable(path, "the obs table of a corpus"):
        about = pq.ParquetFile(path)
        rows, schema = about.metadata.num_rows, about.schema_arrow
    if n_cells is not None and rows != n_cells:
        raise InputError(f"{path}: {rows:,} rows for {n_cells:,} cells. Build or copy the corpus again.")
    return schema


def read_obs_columns(path: Path, columns: Sequence[str] | None, as_codes: Sequence[str]) -> pa.Table:
    """These columns, all for None; InputError where they cannot be read."""
    with readable(path, "the obs table of a corpus"):
        table = pq.read_table(path, columns=None if columns is None else [*columns], read_dictionary=[*as_codes])
        table.validate(full=True)  # text that is no UTF-8 is met here, not where it is used
        return table


def read_obs(path: Path, *, n_cells: int | None = None) -> pd.DataFrame:
    """The table `ObsWriter` wrote: row i is cell id i; text columns but the barcode are categorical, sorted.

    n_cells: rows that it must have.
    """
    schema = obs_columns(path, n_cells=n_cells)
    labels = [field.name for field in schema if field.type == pa.string() and field.name != "barcode"]
    frame = read_obs_columns(path, None, labels).to_pandas()
    for label in labels:
        column = frame[label].astype("category")
        frame[label] = column.cat.set_categories(sorted(column.cat.categories))
    frame.index.name = "cell_id"
    return frame


def _common_type(columns: list[pd.Series], old: pa.DataType | None = None) -> pa.DataType:
    # A column without a single value has no say: a file of NaN must not turn labels or numbers into something else.
    types = {_type(column) for column in columns if column.notna().any()} | ({old} if old is not None else set())
    if types == {pa.int64(), pa.float64()}:
        return pa.float64()
    return types.pop() if len(types) == 1 else pa.string()


def _type(column: pd.Series) -> pa.DataType:
    kind = column.infer_objects().dtype
    if isinstance(kind, pd.CategoricalDtype):
        return pa.string()
    if pd.api.types.is_bool_dtype(kind):
        return pa.bool_()
    if pd.api.types.is_integer_dtype(kind):
        beyond = pd.api.types.is_unsigned_integer_dtype(kind) and int(column.max()) >= 2**63
        return pa.string() if beyond else pa.int64()
    return pa.float64() if pd.api.types.is_float_dtype(kind) else pa.string()


def _to_arrow(column: pd.Series, kind: pa.DataType) -> pa.Array:
    if kind == pa.string():
        codes, values = pd.factorize(column)
        texts = [str(value) for value in values]
        texts_or_missing = pa.array([None if text.strip() in _MISSING else text for text in texts], pa.string())
        return texts_or_missing.take(pa.array(codes, mask=codes < 0))
    as_pandas = {pa.int64(): "Int64", pa.float64(): "Float64", pa.bool_(): "boolean"}[kind]
    return pa.array(column.infer_objects().astype(as_pandas), kind)
