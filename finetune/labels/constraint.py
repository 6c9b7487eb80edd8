"""How strongly selection removes variants of a gene: gnomAD's constraint tables (v2.1.1, v4) and ExAC's.

A z score of loss-of-function variants grows with the number expected, and that with the length of the coding sequence:
both are kept as covariates, and LOEUF, which is less bound to them, as companion.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64, Shaped

from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.labels.delimited import Delimited, is_missing, read_delimited
from finetune.labels.gene_labels import GeneLabels, counts_of, one_a_gene, require_variety
from finetune.labels.generic import numbers_of, with_logs
from finetune.labels.naming import MIN_RESOLVED, is_known, name_genes

# What each is called in gnomAD v2.1.1, gnomAD v4 and ExAC.
TARGETS = {
    "lof_z": ("lof_z", "lof.z_score"),
    "loeuf": ("loeuf", "oe_lof_upper", "lof.oe_ci.upper"),
    "pli": ("pLI", "lof.pLI"),
    "mis_z": ("mis_z", "mis.z_score"),
}
_COVARIATES = {"cds_length": ("cds_length", "bp"), "exp_lof": ("exp_lof", "lof.exp")}
_IDS = ("gene_id", "gene", "transcript", "canonical", "mane_select")


def read_constraint(
    path: str | Path, *, vocab: GeneVocab | None, target: str = "lof_z", min_resolved: float = MIN_RESOLVED
) -> GeneLabels:
    """One row a gene: `target` is lof_z, loeuf, pli, mis_z, or the table's own name of a column of numbers.

    A gene is known by its Ensembl id, else by its symbol. Rows of RefSeq transcripts are set aside. Of several rows of
    a gene the MANE Select transcript is kept, else the canonical one; of equals one found by id before one found by
    symbol, then the longest coding sequence. Covariates: cds_length (bases), exp_lof (expected variants), log_cds_length
    (log10), log_expected_lof (log10 of 1 + expected). Companions: the other three of the four targets.
    """
    path = Path(path)
    every = [*_IDS, target, *(n for names in [*TARGETS.values(), *_COVARIATES.values()] for n in names)]
    table = read_delimited(path, keep=every)
    if table.find("gene_id", "gene") is None:
        raise InputError(
            f"{path}: neither gene_id nor gene is a column; there are {list(read_delimited(path, header=True).columns)[:8]}. "
            "Give gnomAD's or ExAC's table of constraint by gene."
        )
    place = table.find(target, *TARGETS.get(target.lower(), ()))
    if place is None:
        there = [name for name, names in TARGETS.items() if table.find(*names) is not None]
        raise InputError(
            f"{path}: there is no column for the target {target!r}. This table has {there or 'none of ' + str(list(TARGETS))}: "
            "name one of these, or a column of numbers."
        )
    numbers = pd.DataFrame({"value": numbers_of(table, table.text(place), target)})
    for name, names in [*TARGETS.items(), *_COVARIATES.items()]:
        column = table.find(*names)
        if column is not None and (column != place or name in _COVARIATES):
            numbers[name] = numbers_of(table, table.text(column), name)

    transcript = table.find("transcript")
    refseq = np.zeros(len(table), dtype=bool)
    if transcript is not None:
        refseq = np.array([t.startswith(("NM_", "XM_", "NR_", "XR_")) for t in table.text(transcript)], dtype=bool)
    use = ~refseq
    by_id, ids, account = _names(table, use, vocab, min_resolved)
    known = is_known(ids)
    at = np.flatnonzero(use & known)
    values = numbers["value"].iloc[at].reset_index(drop=True)
    length = numbers["cds_length"].to_numpy() if "cds_length" in numbers else np.zeros(len(table))
    chosen, lost = one_a_gene(ids[at], values, rank=_rank(table, by_id, length)[at])
    # Last, so that another transcript's value never stands in for one that the chosen transcript lacks.
    nothing = numbers["value"].isna().to_numpy()[at[chosen]]
    at = at[chosen][~nothing]
    index = pd.Index(ids[at], name="gene_id")
    name = next((n for n, names in TARGETS.items() if target.lower() in (n, *map(str.lower, names))), target)
    kept = pd.Series(numbers["value"].to_numpy()[at], index=index, name=name)
    require_variety(kept, f"{path}: {len(kept)} genes with a known name and a value of {target} are left")
    rest = numbers.iloc[at].set_axis(index)
    return GeneLabels(
        name=name,
        kind="regression",
        values=kept,
        covariates=with_logs(rest[[n for n in _COVARIATES if n in rest]]),
        companions=rest[[n for n in TARGETS if n in rest and n != name]],
        account={
            "source": path.name,
            "target": table.columns[place],
            "rows_read": len(table),
            "refseq": int(refseq.sum()),
            "missing": int(nothing.sum()),
            "unknown_genes": int((use & ~known).sum()),
            **account,
            **lost,
            "set_aside": lost["set_aside"] + int(refseq.sum()),
            "rare": 0,
            **counts_of("regression", kept),
        },
    )


def _names(
    table: Delimited, use: Shaped[np.ndarray, " rows"], vocab: GeneVocab | None, min_resolved: float
) -> tuple[Shaped[np.ndarray, " rows"], Shaped[np.ndarray, " rows"], dict]:
    """Where the id was known, the gene of each row (None: unknown), and the account of names."""
    id_place, symbol_place = table.find("gene_id"), table.find("gene")
    first = id_place if id_place is not None else symbol_place
    if first is None:
        raise ValueError("a table of constraint needs gene_id or gene")
    name = table.text(first).copy()
    by_id = np.full(len(table), id_place is not None)
    if id_place is not None and symbol_place is not None:
        symbol = table.text(symbol_place)
        unknown = is_missing(name) if vocab is None else vocab.resolve(name).tokens < 0
        by_id = ~unknown
        better = unknown & ~is_missing(symbol)
        if vocab is not None:  # an unknown id says more of a gene than an unknown symbol
            better &= vocab.resolve(symbol).tokens >= 0
        name[better] = symbol[better]
    named = name_genes(name[use], vocab, where=str(table.path), min_resolved=min_resolved)
    ids = np.full(len(table), None, dtype=object)
    ids[use] = named.ids
    return by_id, ids, {**named.account, "by_symbol": int((use & ~by_id & is_known(ids)).sum())}


def _rank(
    table: Delimited, by_id: Shaped[np.ndarray, " rows"], length: Shaped[np.ndarray, " rows"]
) -> Int64[np.ndarray, " rows"]:
    """The order of preference among rows, the lower the better; equal only where all marks are."""
    marks = []
    for column in ("mane_select", "canonical"):
        place = table.find(column)
        if place is not None:
            marks.append(~np.array([field.lower() in ("true", "1", "yes") for field in table.text(place)], dtype=bool))
    marks += [~by_id, -np.nan_to_num(length)]
    order = pd.DataFrame(dict(enumerate(marks)))
    return order.groupby(list(order.columns), sort=True).ngroup().to_numpy(np.int64)
