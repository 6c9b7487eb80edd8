"""Any property of genes: a table with a column of genes and a column of values."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from expresser.errors import InputError
from expresser.genes import GeneVocab
from finetune.labels.delimited import Delimited, is_missing, read_delimited, to_numbers
from finetune.labels.gene_labels import GeneLabels, Kind, counts_of, one_a_gene, require_variety
from finetune.labels.naming import MIN_RESOLVED, name_genes

MIN_CLASS = 10  # genes; five folds of a smaller class hold one or two
_GENE = (
    "gene_id",
    "ensembl_gene_id",
    "ensembl_id",
    "ensembl",
    "gene",
    "symbol",
    "gene_symbol",
    "gene_name",
    "gene_ids",
)
_TARGET = ("label", "labels", "target", "value", "class", "y")
_TRUTH = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1, "no": 0, "yes": 1, "f": 0, "t": 1, "n": 0, "y": 1}


def read_gene_labels(
    path: str | Path,
    *,
    vocab: GeneVocab | None,
    gene: str | None = None,
    target: str | None = None,
    kind: Kind | Literal["auto"] = "auto",
    min_resolved: float = MIN_RESOLVED,
) -> GeneLabels:
    """One property from a table: `gene` and `target` are its columns.

    Without `gene`, the first column of which enough is genes; without `target`, the only other one. `kind` "auto": two
    values are binary, other numbers regression, other text multiclass. Of two words, the alphabetically later one is 1
    (account["classes"] says so), except that true, yes and 1 always are. Classes of fewer than ten genes are left out.
    A column `cds_length` is kept as covariate.
    """
    path = Path(path)
    table = read_delimited(path, vocab=vocab, header=True if gene or target else None)
    place = _gene_column(table, vocab, min_resolved) if gene is None else table.need(gene, "the genes")
    value = _target_column(table, place, vocab, min_resolved) if target is None else table.need(target, "the target")
    if place == value:
        raise InputError(
            f"{path}: the column {table.columns[place]!r} cannot be both gene and target. Name two columns."
        )
    text = table.text(value)
    length = table.find("cds_length")
    covariates = pd.DataFrame(index=range(len(table)))
    if length is not None and length != value:
        covariates = with_logs(pd.DataFrame({"cds_length": to_numbers(table.text(length))[0]}))
    name = table.columns[value] if table.header else path.name.split(".")[0]
    account = {"source": path.name, "columns": [table.columns[place], table.columns[value]]}
    return label_genes(
        table, table.text(place), text, name=name, kind=kind, vocab=vocab, min_resolved=min_resolved,
        covariates=covariates, account=account,
    )  # fmt: skip


def label_genes(
    table: Delimited,
    genes: Shaped[np.ndarray, " rows"],
    text: Shaped[np.ndarray, " rows"],
    *,
    name: str,
    kind: Kind | Literal["auto"],
    vocab: GeneVocab | None,
    min_resolved: float,
    covariates: pd.DataFrame,
    account: dict[str, Any],
) -> GeneLabels:
    """Rows of genes and values as labels: what is missing, unknown, repeated or contradictory is left out and counted."""
    path = table.path
    kind, values, more = _values(table, text, kind)
    named = name_genes(genes, vocab, where=str(path), min_resolved=min_resolved)
    missing = named.missing | values.isna().to_numpy(dtype=bool)
    at = np.flatnonzero(~missing & named.known)
    chosen, lost = one_a_gene(named.ids[at], values.iloc[at].reset_index(drop=True))
    at = at[chosen]
    kept = pd.Series(values.to_numpy()[at], index=pd.Index(named.ids[at], name="gene_id"), name=name)
    rare = 0
    if kind == "multiclass":
        sizes = kept.value_counts()
        small = sizes[sizes < MIN_CLASS]
        more["rare_classes"] = {str(k): int(n) for k, n in small.sort_index().items()}
        inside = ~kept.isin(small.index).to_numpy()
        kept, at, rare = kept[inside], at[inside], int((~inside).sum())
        if kept.nunique() < 2:
            raise InputError(
                f"{path}: {kept.nunique()} of {len(sizes)} classes of {name!r} have {MIN_CLASS} genes or more, and two are "
                f"needed (the largest: {sizes.head(5).to_dict()}). Give a column of classes, or merge small ones."
            )
    kept = kept.astype({"regression": np.float64, "binary": np.int8, "multiclass": object}[kind])
    require_variety(kept, f"{path}: {len(kept)} genes with a known name and a value of {name!r} are left")
    account = account | {
        "header": None if table.header is None else list(table.header),
        "rows_read": len(table),
        "missing": int(missing.sum()),
        "unknown_genes": int((~missing & ~named.known).sum()),
        **named.account,
        **lost,
        "rare": rare,
        **more,
        **counts_of(kind, kept),
    }
    extra = covariates.iloc[at].set_axis(kept.index)
    return GeneLabels(name, kind, kept, extra, pd.DataFrame(index=kept.index), account)


def with_logs(covariates: pd.DataFrame) -> pd.DataFrame:
    """Adds log10 of the length of the coding sequence, and log10 of 1 + the expected number of variants."""
    covariates = covariates.copy()
    with np.errstate(divide="ignore", invalid="ignore"):
        if "cds_length" in covariates:
            length = covariates["cds_length"].where(covariates["cds_length"] > 0)
            covariates["log_cds_length"] = np.log10(length)
        if "exp_lof" in covariates:
            covariates["log_expected_lof"] = np.log10(1 + covariates["exp_lof"].where(covariates["exp_lof"] >= 0))
    return covariates


def numbers_of(table: Delimited, text: Shaped[np.ndarray, " rows"], name: str) -> Float64[np.ndarray, " rows"]:
    """A column of numbers, NaN where missing; a text among them is refused."""
    numbers, strange = to_numbers(text)
    if strange.any():
        row = int(np.flatnonzero(strange)[0])
        raise InputError(
            f"{table.path}: line {table.lines[row]}: {name} is {text[row][:40]!r}, not a number ({int(strange.sum())} of "
            f"{len(text)} rows). Name the column of numbers, leave the field empty where there is none, or pass kind "
            "'multiclass'."
        )
    return numbers


def _values(
    table: Delimited, text: Shaped[np.ndarray, " rows"], kind: Kind | Literal["auto"]
) -> tuple[Kind, pd.Series, dict[str, Any]]:
    """The kind, the values with missing ones as NaN or None, and the classes."""
    missing = is_missing(text)
    numbers, strange = to_numbers(text)
    words = sorted(set(text[~missing].tolist()))
    truths = {_TRUTH.get(word.lower()) for word in words}
    distinct = np.unique(numbers[~np.isnan(numbers)])
    numeric = not strange.any()
    if kind == "auto":
        if (
            (numeric and len(distinct) == 2)
            or (not numeric and len(words) == 2)
            or (None not in truths and len(truths) == 2)
        ):
            kind = "binary"
        else:
            kind = "regression" if strange.mean() < 0.5 * (~missing).mean() else "multiclass"
    if kind == "regression":
        return kind, pd.Series(numbers_of(table, text, "the target")), {"distinct_values": len(distinct)}
    if kind == "multiclass":
        return kind, pd.Series(text, dtype=object).mask(missing), {}
    if None not in truths and len(truths) == 2:
        code: dict[str, int] = {word: _TRUTH[word.lower()] for word in words}
        classes = {str(k): "/".join(word for word in words if code[word] == k) for k in (0, 1)}
    elif numeric and len(distinct) == 2:
        # Missing, too, is what is infinite: it is neither of the two.
        missing = np.isnan(numbers)
        code = {word: int(float(word) == distinct[1]) for word in words}
        classes = {str(k): f"{distinct[k]:g}" for k in (0, 1)}
    elif len(words) == 2 and not numeric:
        code, classes = {words[0]: 0, words[1]: 1}, {"0": words[0], "1": words[1]}
    else:
        raise InputError(
            f"{table.path}: a binary target has two values, this column has {len(words)}: {words[:6]}"
            f"{' and more' if len(words) > 6 else ''}. Name another column, or pass kind 'regression' or 'multiclass'."
        )
    values = [None if gone else code[word] for word, gone in zip(text.tolist(), missing)]
    return "binary", pd.Series(pd.array(values, dtype="Int8")), {"classes": classes}


def _gene_column(table: Delimited, vocab: GeneVocab | None, min_resolved: float) -> int:
    shares = [_gene_share(table.text(k), vocab) for k in range(len(table.columns))]
    named = [k for name in _GENE if (k := table.find(name)) is not None]
    if vocab is None:
        return named[0] if named else next((k for k, share in enumerate(shares) if share == 1), 0)
    good = [k for k, share in enumerate(shares) if share >= min_resolved]
    # None is good: the best guess goes on, and its names are refused with the reason.
    return good[0] if good else named[0] if named else int(np.argmax(shares))


def _gene_share(text: Shaped[np.ndarray, " rows"], vocab: GeneVocab | None) -> float:
    names = pd.unique(text[~is_missing(text)])
    if not len(names):
        return 0.0
    if vocab is None:
        return float(to_numbers(names)[1].mean())
    return float((vocab.resolve(names).tokens >= 0).mean())


def _target_column(table: Delimited, gene: int, vocab: GeneVocab | None, min_resolved: float) -> int:
    """The only column that does not name genes; else the only one called a label, a target, a value or a class."""
    columns = [k for k in range(len(table.columns)) if k != gene]
    others = [k for k in columns if (table.header is None or table.columns[k].lower() not in _GENE)]
    if vocab is not None:
        others = [k for k in others if _gene_share(table.text(k), vocab) < min_resolved]
    if len(others) == 1:
        return others[0]
    called = [k for k in others if table.columns[k].lower() in _TARGET]
    if len(called) == 1:
        return called[0]
    raise InputError(
        f"{table.path}: which column is the target? Besides the genes ({table.columns[gene]!r}) there are "
        f"{[table.columns[k] for k in columns] or 'none'}. Name one as the target."
    )
