"""Gene names of a label file as gene ids, with an account of those that found none."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Shaped

from expresser.errors import InputError
from expresser.gene_names import clean_name
from expresser.genes import GeneVocab
from finetune.labels.delimited import is_missing

MIN_RESOLVED = 0.5  # of the distinct names; below, the file is of another species or another kind


@dataclass(frozen=True, eq=False)
class Named:
    """Gene ids for names, None where unknown; `missing` where there is no name at all."""

    ids: Shaped[np.ndarray, " names"]
    missing: Bool[np.ndarray, " names"]
    account: dict[str, Any]

    @property
    def known(self) -> Bool[np.ndarray, " names"]:
        """Where a gene was found."""
        return is_known(self.ids)


def is_known(ids: Shaped[np.ndarray, " names"]) -> Bool[np.ndarray, " names"]:
    """Where there is an id, not None."""
    return np.array([one is not None for one in ids.tolist()], dtype=bool)


def name_genes(
    names: Shaped[np.ndarray, " names"], vocab: GeneVocab | None, *, where: str, min_resolved: float = MIN_RESOLVED
) -> Named:
    """Ids of genes by id, approved symbol, previous symbol, alias; names as they are where there is no vocabulary.

    Each distinct name counts once, so that a hub of many pairs cannot hide that most names are unknown.
    """
    missing = is_missing(names)
    codes, distinct = pd.factorize(names)
    there = np.unique(codes[~missing])
    if not len(there):
        raise InputError(f"{where}: none of {len(names)} rows has a gene name. Give the column that holds genes.")
    ids = np.full(len(distinct), None, dtype=object)
    account: dict[str, Any] = {"unknown_names": 0, "ambiguous_names": 0, "unmatched_examples": []}
    if vocab is None:
        ids[there] = [clean_name(name) for name in distinct[there]]
    else:
        resolution = vocab.resolve(distinct[there])
        report = resolution.report()
        report.check(where, min_resolved)
        found = resolution.tokens >= 0
        ids[there[found]] = vocab.ids[resolution.tokens[found]]
        account = {
            "unknown_names": report.unknown + report.ambiguous,
            "ambiguous_names": report.ambiguous,
            "unmatched_examples": list(report.unmatched_examples),
        }
    return Named(ids[codes], missing, account)
