"""Dosage sensitivity: genes of which one copy too few or too many does harm, and genes of which it does not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Shaped

from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.labels.delimited import Delimited, is_missing, read_delimited
from finetune.labels.gene_labels import GeneLabels
from finetune.labels.generic import label_genes, read_gene_labels
from finetune.labels.naming import MIN_RESOLVED

_NAME = "dosage_sensitivity"
_CLASSES = {"0": "insensitive", "1": "sensitive"}


def read_dosage(
    path: str | Path,
    *,
    vocab: GeneVocab | None,
    insensitive: Path | None = None,
    min_resolved: float = MIN_RESOLVED,
) -> GeneLabels:
    """Sensitive genes 1, insensitive 0; a gene that is called both is left out and counted.

    Args:
        path: two lists side by side (columns such as dosage_sensitive and dosage_insensitive, of any lengths), the list
            of sensitive genes with `insensitive` the other list, or a table of genes and labels.
        vocab: the genes names are resolved to; None takes names as they are.
        insensitive: a file with one gene a line.
        min_resolved: the share of distinct names that must be genes of the vocabulary.
    """
    path = Path(path)
    table = read_delimited(path, vocab=vocab)
    if insensitive is not None:
        lists = _gene_list(table), _gene_list(read_delimited(insensitive, vocab=vocab))
        source = f"{path.name}, {Path(insensitive).name}"
    else:
        columns = [name.lower() for name in table.columns]
        no = [k for k, name in enumerate(columns) if "insens" in name or "non_sens" in name or "tolerant" in name]
        yes = [k for k, name in enumerate(columns) if "sens" in name and k not in no]
        if not (len(columns) == 2 and len(yes) == len(no) == 1):
            if len(columns) < 2:
                raise InputError(
                    f"{path}: one list of {len(table)} genes, and the other is missing. Pass the file of insensitive "
                    "genes too, or give both lists side by side with the columns dosage_sensitive, dosage_insensitive."
                )
            labels = read_gene_labels(path, vocab=vocab, kind="binary", min_resolved=min_resolved)
            return replace(labels, name=_NAME, values=labels.values.rename(_NAME))
        lists = table.text(yes[0]), table.text(no[0])
        source = path.name
    sensitive, other = (names[~is_missing(names)] for names in lists)
    genes = np.concatenate([sensitive, other])
    text = np.repeat(np.array(["1", "0"], dtype=object), [len(sensitive), len(other)])
    # One row a list entry: the fields left empty below the shorter list are no rows.
    rows = Delimited(path, table.header, np.stack([genes, text], axis=1), np.arange(1, len(genes) + 1))
    account = {"source": source, "sensitive_read": len(sensitive), "insensitive_read": len(other), "set_aside": 0}
    labels = label_genes(
        rows, genes, text, name=_NAME, kind="binary", vocab=vocab, min_resolved=min_resolved,
        covariates=pd.DataFrame(index=range(len(genes))), account=account,
    )  # fmt: skip
    labels.account["classes"] = dict(_CLASSES)
    return labels


def _gene_list(table: Delimited) -> Shaped[np.ndarray, " rows"]:
    if len(table.columns) != 1:
        raise InputError(
            f"{table.path}: a list of genes has one column, this file has {list(table.columns)[:5]}. Give one gene a "
            "line, or both lists side by side in one file."
        )
    return table.text(0)
