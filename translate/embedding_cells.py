"""The cells that embeddings are judged on: their open peaks, depths, batches and cell types."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float64, Int64
from scipy import sparse

from expresser.errors import InputError
from translate.covariates import BatchColumn
from translate.maps import sampled
from translate.stored import StoredMatrix
from translate.study import Measured, Study
from translate.translator import Translator

MOST = 100_000  # cells judged: clusters at ten resolutions of more take hours and tell no more
MOST_STORED = 25_000  # of a corpus on disk, since baselines need them in memory
FEWEST = 20
_UNLABELLED = ("", "nan", "na", "n/a", "none", "<na>", "null")


@dataclass(frozen=True, eq=False)
class JudgedCells:
    """Cells that have an open peak which the model knows."""

    obs: pd.DataFrame = field(repr=False)
    measured: Measured = field(repr=False)  # ATAC, as it was read
    opened: sparse.csr_matrix = field(repr=False)  # 0/1, over the model's peaks: what baselines are given
    depth: Int64[np.ndarray, " cells"] = field(repr=False)  # open peaks, of all that were measured
    types: pd.Series | None = field(repr=False)  # missing: unlabelled
    batch: pd.Series | None = field(repr=False)
    label: str | None  # columns of obs
    batch_key: str | None
    counts: dict[str, int]  # given, judged, empty, sampled_out, labelled, unlabelled
    why_not: dict[str, str]  # what cannot be scored, and why

    def __len__(self) -> int:
        return len(self.obs)

    @property
    def log_depth(self) -> Float64[np.ndarray, " cells"]:
        """Natural logarithm of the number of open peaks."""
        return np.log(self.depth.astype(np.float64))

    @property
    def batch_codes(self) -> Int64[np.ndarray, " cells"]:
        """A number for each cell's batch; 0 where batches are not known."""
        return (
            np.zeros(len(self), np.int64)
            if self.batch is None
            else pd.factorize(self.batch, sort=True)[0].astype(np.int64)
        )


def judged_cells(
    translator: Translator,
    study: Study,
    cells: Int64[np.ndarray, " cells"],
    *,
    label: str | None,
    batch: str | None,
    most: int | None = None,
    seed: int = 0,
) -> JudgedCells:
    """Those of `cells` that have ATAC, at most `most` drawn at random (by default `MOST`, of a corpus `MOST_STORED`).

    label: column with cell types; those without one are left out of what is scored by type, and counted. batch: column of
    batches. InputError where a column is not there, or next to no cells are left.
    """
    prove_labels(study.obs, label)
    if "atac" not in study.modalities:
        raise InputError(
            f"evaluation: {translator.name} embeds ATAC, and the cells have {', '.join(study.modalities)}."
        )
    chosen = cells[study.has("atac")[cells]]
    given = len(chosen)
    if most is None:
        most = MOST_STORED if isinstance(study.measured["atac"].matrix, StoredMatrix) else MOST
    chosen = chosen[sampled(given, most, seed=seed)]
    measured = study.of("atac", chosen).loaded()
    opened = sparse.csr_matrix(translator.inputs["atac"].align(measured))
    kept = np.flatnonzero(np.diff(opened.indptr) > 0).astype(np.int64)
    if len(kept) < FEWEST:
        raise InputError(
            f"evaluation: {len(kept):,} of {given:,} cells have an open peak that the model knows; an embedding is judged on "
            f"{FEWEST} or more. Give more cells, or cells of the same genome build."
        )
    measured, opened, obs = measured.take(kept), opened[kept], study.obs.iloc[chosen[kept]]
    why_not: dict[str, str] = {}
    types = None if label is None else _types(obs[label], why_not)
    codes = None if batch is None else _batches(obs, batch, why_not)
    if label is None:
        why_not["cell types"] = "no column of cell types: --labels names one."
    if batch is None:
        why_not["batches"] = "no column of batches: --batch names one."
    labelled = len(obs) if types is None else int(types.notna().sum())
    counts = {
        "given": given,
        "judged": len(obs),
        "empty": len(chosen) - len(kept),
        "sampled_out": given - len(chosen),
        "labelled": 0 if label is None else labelled,
        "unlabelled": 0 if label is None else len(obs) - labelled,
    }
    return JudgedCells(obs, measured, opened, measured.lengths(), types, codes, label, batch, counts, why_not)


def prove_labels(obs: pd.DataFrame, label: str | None) -> None:
    """InputError where there is no such column."""
    if label is not None and label not in obs:
        raise InputError(
            f"evaluation: obs has no column {label!r}. It has {', '.join(map(str, obs.columns)) or 'none'}: name one of these "
            "with --labels, or none."
        )


def label_of(obs: pd.DataFrame, label: str | None) -> str | None:
    """The column asked for, else the usual one where there is one."""
    return label or ("cell_type" if "cell_type" in obs else None)


def batch_of(config: object, obs: pd.DataFrame, asked: str | None = None) -> str | None:
    """The column of batches: asked for, else that of the model where these cells have it."""
    own: BatchColumn | None = getattr(config, "batch", None)
    key = asked or (own.key if own is not None else None)
    if asked is not None and asked not in obs:
        raise InputError(f"batch: obs has no column {asked!r}; it has {', '.join(map(repr, obs.columns)) or 'none'}.")
    return key if key in obs else None


def known_labels(column: pd.Series) -> pd.Series:
    """Labels as text, missing where the column has none, or a word for none."""
    words = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    return words.where(~words.str.lower().isin(_UNLABELLED))


def _types(column: pd.Series, why_not: dict[str, str]) -> pd.Series | None:
    """Cell types as text, missing where unlabelled; None, and why, where they cannot be compared."""
    types = known_labels(column)
    names = types.dropna().unique()
    if 2 * len(names) > max(types.notna().sum(), 1) and len(names) > 2:
        why_not["cell types"] = f"column {column.name!r} has {len(names):,} values for {len(types):,} cells: no types."
    elif len(names) == 1:
        why_not["cell types"] = f"all labelled cells are {names[0]!r} in column {column.name!r}: nothing to tell apart."
    elif not len(names):
        why_not["cell types"] = f"no cell has a label in column {column.name!r}."
    else:
        return types
    return None


def _batches(obs: pd.DataFrame, key: str, why_not: dict[str, str]) -> pd.Series | None:
    column = obs[key]
    if column.isna().any():
        why_not["batches"] = f"{int(column.isna().sum()):,} of {len(obs):,} cells have no {key!r}."
    elif column.nunique() < 2:
        why_not["batches"] = f"all cells are of one batch in column {key!r}."
    else:
        return column.astype(str)
    return None
