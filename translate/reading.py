"""One modality of one input as a `Measured`: names clean and unique, counts proven."""

import re

import numpy as np
import pandas as pd
from jaxtyping import Int, Shaped
from scipy import sparse

from expresser.corpus.blocks import Matrix, readable
from expresser.corpus.rawcounts import is_raw, prove_raw
from expresser.errors import InputError
from expresser.gene_names import likely_cause
from expresser.regions import Regions
from translate.genenames import GenePlaces, gene_table
from translate.large import Growing
from translate.opening import Data, kinds_of, modalities_in, name_of, open_matrix, read_table
from translate.study import Measured, Modality

_FEATURES: dict[Modality, str] = {"rna": "gene", "atac": "peak", "protein": "protein"}
_PEAK = re.compile(r"\S+[:_-]\d+(?:[-_]|\.\.)\d+")
_ROWS = 4096  # read and proven at a time
_EXACT = 2**24  # whole numbers up to here are float32's too


def read_measured(
    data: Data, modality: Modality, *, layer: str | None = None, places: GenePlaces | None = None, of: int = 1
) -> Measured:
    """One modality of an input; of one with `feature_types` those features alone.

    of: inputs that are read and held together. Memory: the matrix twice while its blocks are joined; one that is large, as one of
    so many, lies in files (`translate.large`). Raises InputError for what is no such modality, not raw
    counts (ATAC: counts or 0/1), empty, or named twice.
    """
    name = name_of(data)
    where = f"{modality} of {name}"
    matrix = open_matrix(data, layer)
    columns = _columns(matrix.var, modality, where)
    var = matrix.var if columns is None else matrix.var.iloc[columns]
    if not len(matrix.obs) or not len(var):
        raise InputError(f"{where}: is empty: {len(matrix.obs)} cells x {len(var)} {_FEATURES[modality]}s.")
    obs = plain_obs(matrix.obs, where)
    var = _features(var, modality, where, places)
    counts = _counts(matrix, columns, modality, obs.index.to_numpy(), var.index.to_numpy(), name, of)
    return Measured(counts, var, obs, name, (data,))


def peaks_of(data: Data) -> Regions:
    """The peaks of an input, in its order; of one with `feature_types` those features alone. No count is read."""
    where = f"atac of {name_of(data)}"
    var = open_matrix(data, None).var
    columns = _columns(var, "atac", where)
    return Regions.from_var(_features(var if columns is None else var.iloc[columns], "atac", where, None), where=where)


def guess_modality(data: Data) -> Modality:
    """What an input holds: as `feature_types` says, else peaks or genes, by the names of its features.

    Raises InputError where `feature_types` says that it holds several: ask for one of them.
    """
    said = modalities_in(data)
    if len(said) > 1:
        raise InputError(f"{name_of(data)} holds {', '.join(sorted(said))}. Say which is meant: source (--source).")
    if said:
        return said.pop()
    var = open_matrix(data, None).var
    return "atac" if _like_peaks(var) else "rna"


def _like_peaks(var: pd.DataFrame) -> bool:
    """Whether most names are intervals, or columns give intervals and none speaks of genes."""
    some = [str(name).strip() for name in var.index[:: max(1, len(var) // 2000)]]
    columns = {str(c).lower() for c in var.columns}
    genes = any(c.startswith(("gene", "ensembl", "symbol", "strand")) for c in columns)
    named = 2 * sum(bool(_PEAK.fullmatch(name)) for name in some) >= max(len(some), 1)
    return named or ({"start", "end"} <= columns and not genes)


def read_obsm(data: Data, key: str) -> Measured:
    """Protein counts that an RNA AnnData keeps in `obsm[key]`: names from its columns or `uns`."""
    name = name_of(data)
    where = f"protein of {name}: obsm[{key!r}]"
    values, names = read_table(data, key, where)
    block = sparse.csr_matrix(values)
    if names is None or len(names) != block.shape[1]:
        raise InputError(
            f"{where} has {block.shape[1]} columns and {'no' if names is None else len(names)} names. Name them: a "
            f"DataFrame in obsm, or uns['{key}_names'] with one name a column."
        )
    obs = plain_obs(open_matrix(data, None).obs, where)
    var = _features(pd.DataFrame(index=pd.Index(names, dtype=object)), "protein", where, None)
    matrix = Matrix(f"obsm[{key!r}]", obs, var, blocks=lambda rows: iter([block]))
    counts = _counts(matrix, None, "protein", obs.index.to_numpy(), var.index.to_numpy(), name)
    return Measured(counts, var, obs[[]], name)


def _columns(var: pd.DataFrame, modality: Modality, where: str) -> Int[np.ndarray, " features"] | None:
    """Columns that are of this modality; None where all are, or where nothing is said."""
    if "feature_types" not in var or not len(var):
        return None
    kinds = np.array(kinds_of(var), dtype=object)
    mine = kinds == modality
    if mine.all() or not any(kinds):
        return None
    if not mine.any():
        types = sorted({str(v) for v in var["feature_types"]})[:5]
        raise InputError(f"{where}: no feature is of this modality: feature_types has only {types}.")
    return np.flatnonzero(mine)


def plain_obs(obs: pd.DataFrame, where: str) -> pd.DataFrame:
    """obs with clean unique names, text and categories as str objects; missing text, and the text 'nan', is None."""
    index = pd.Index([str(name).strip() for name in obs.index], dtype=object)
    _refuse_repeats(index, where, "cell", "adata.obs_names_make_unique(), in all files of the same cells alike")
    columns = {}
    for i, key in enumerate(obs.columns):
        column = obs.iloc[:, i].reset_index(drop=True)
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column)):
            texts = [None if absent or str(v) == "nan" else str(v) for v, absent in zip(column, column.isna())]
            column = pd.Series(texts, dtype=object)
        columns[str(key)] = column
    return pd.DataFrame(columns, index=range(len(obs))).set_axis(index, axis=0)


def _refuse_repeats(index: pd.Index, where: str, what: str, way_out: str) -> None:
    if (index == "").any():
        raise InputError(f"{where}: {int((index == '').sum())} of {len(index)} {what}s have no name. Name them.")
    repeated = index[index.duplicated()].unique()
    if len(repeated):
        shown = ", ".join(repr(name) for name in repeated[:5])
        raise InputError(
            f"{where}: {len(repeated)} {what} names occur more than once ({shown}{', …' if len(repeated) > 5 else ''}). "
            f"A {what} needs a name of its own: {way_out}."
        )


def _features(var: pd.DataFrame, modality: Modality, where: str, places: GenePlaces | None) -> pd.DataFrame:
    if modality == "protein":
        index = pd.Index([str(name).strip() for name in var.index], dtype=object)
        _refuse_repeats(index, where, "protein", "rename them (mouse and human antibodies often share one)")
        return pd.DataFrame(index=index)
    some = [str(name) for name in var.index[:: max(1, len(var) // 2000)]]
    shown = ", ".join(repr(name) for name in some[:2])
    if modality == "rna":
        table = gene_table(var, places)
        cause = likely_cause([name for name, known in zip(table.index, table["ensembl_id"]) if not known][:2000])
        if cause is not None and cause.startswith(("genomic intervals", "cell barcodes")):
            swapped = "Are rna and atac swapped?" if cause.startswith("genomic") else "Transpose it: adata.T."
            raise InputError(f"{where}: the names of its genes ({shown}) look like {cause}. {swapped}")
        _refuse_repeats(
            table.index,
            where,
            "gene",
            "a column ensembl_id or gene_ids that tells them apart, or var_names_make_unique()",
        )
        return table
    by_columns = {"start", "end"} <= {str(c).lower() for c in var.columns}
    if not by_columns and 2 * sum(bool(_PEAK.fullmatch(name.strip())) for name in some) < len(some):
        raise InputError(
            f"{where}: its names ({shown}) are no peaks such as chr1:100-200, and there are no columns chrom, start, "
            "end. Are rna and atac swapped?"
        )
    frame = Regions.from_var(var, where=where).to_frame()
    _refuse_repeats(frame.index, where, "peak", "keep one of each, with their counts summed")
    return frame


def _counts(
    matrix: Matrix,
    columns: Int[np.ndarray, " features"] | None,
    modality: Modality,
    cells: Shaped[np.ndarray, " cells"],
    names: Shaped[np.ndarray, " features"],
    name: str,
    of: int = 1,
) -> sparse.csr_matrix:
    """The whole matrix as float32 CSR, proven block by block."""
    where = f"{name}: {matrix.where}"
    found = Growing(len(names), of=of)
    first = 0
    with readable(name, modality):
        for block in matrix.blocks(_ROWS):
            if columns is not None:
                block = block[:, columns]
            if modality == "rna":
                block = prove_raw(
                    block, first_row=first, cells=cells, genes=names, where=where, elsewhere=matrix.elsewhere
                )
            else:
                _prove_counts(block, modality, cells[first:], names, where, matrix)
            part = sparse.csr_matrix(
                (block.data.astype(np.float64), block.indices, block.indptr), shape=block.shape, copy=True
            )
            part.sum_duplicates()
            part.eliminate_zeros()
            _prove_exact(part, modality, cells[first:], names, where)
            part.data = part.data.astype(np.float32)
            found.add(part)
            first += block.shape[0]
    if first != len(cells):
        raise InputError(f"{where} has {first} rows, but {len(cells)} cells are named.")
    whole = found.whole()
    if whole.nnz == 0:
        raise InputError(
            f"{where} is empty: {whole.shape[0]} cells x {whole.shape[1]} {_FEATURES[modality]}s, all zero."
        )
    return whole


def _prove_exact(
    counts: sparse.csr_matrix,
    modality: Modality,
    cells: Shaped[np.ndarray, " block_and_rest"],
    names: Shaped[np.ndarray, " features"],
    where: str,
) -> None:
    """InputError where float32 would round a count: what is fitted would not be what was measured."""
    if counts.nnz and counts.data.max() > _EXACT:
        at = int(counts.data.argmax())
        row = int(np.searchsorted(counts.indptr, at, side="right")) - 1
        raise InputError(
            f"{where}: {modality} has a count of {int(counts.data[at]):,} (cell {str(cells[row])!r}, {_FEATURES[modality]} "
            f"{str(names[counts.indices[at]])!r}); translators keep counts up to {_EXACT:,} exactly. No cell has as many molecules: "
            "look for a column or row of totals."
        )


def _prove_counts(
    block: sparse.csr_matrix,
    modality: Modality,
    cells: Shaped[np.ndarray, " block_and_rest"],
    names: Shaped[np.ndarray, " features"],
    where: str,
    matrix: Matrix,
) -> None:
    ok = is_raw(block.data)
    if ok.all():
        return
    at = int(np.argmin(ok))
    row = int(np.searchsorted(block.indptr, at, side="right")) - 1
    rule, cause = {
        "atac": ("counts or 0/1", "It looks like TF-IDF, gene activity or a model's output."),
        "protein": ("raw antibody counts", "It looks normalised (CLR, DSB)."),
    }[modality]
    raise InputError(
        f"{where}: {modality} needs {rule}: whole, finite numbers, none negative (first other: cell "
        f"{str(cells[row])!r}, {_FEATURES[modality]} {str(names[block.indices[at]])!r}, value {block.data[at]:.6g}; "
        f"{int((~ok).sum()):,} of the first {len(ok):,} stored values). {cause} "
        + (" ".join(matrix.elsewhere()) or "Give the counts from before normalisation, or their layer.")
    )
