"""Fitted heads as folders: saved with the vectors they were fitted on, and applied to genes or pairs nobody labelled."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from expresser.atomic import replaced_folder
from expresser.errors import InputError
from expresser.foreign import file_in, prove_fields, read_mapping, shortened
from expresser.gene_names import clean_name
from expresser.genes import GeneVocab
from expresser.record import write_metrics
from finetune.embeddings.reading import read_table
from finetune.embeddings.table import GeneTable
from finetune.heads.fitting import Head
from finetune.heads.pair_features import Form, pair_features

Items = Literal["genes", "pairs"]

_MOST_ITEMS = 100_000_000
_PAIRS_AT_ONCE = 50_000  # features of this many pairs of 200 numbers are 120 MB


def save_head(
    folder: Path,
    head: Head,
    *,
    table: GeneTable,
    items: Items,
    training: pd.DataFrame,
    about: Mapping[str, Any],
    vocab: GeneVocab | None = None,
) -> None:
    """Write a head with all that it needs to be used alone: vectors, the items it learnt from, and names of genes.

    training: columns gene_id, or gene_a and gene_b, and label. about: plain JSON, such as task, form and labels.
    """
    with replaced_folder(folder) as part:
        head.save(part)
        frame = table.values.copy()
        names = dict(zip(vocab.ids, vocab.symbols, strict=True)) if vocab is not None else {}
        frame.insert(0, "symbol", [names.get(gene, gene) for gene in frame.index])
        frame.to_parquet(part / "embeddings.parquet")
        training.to_parquet(part / "training.parquet", index=False)
        if vocab is not None:
            vocab.save(part / "genes.tsv")
        write_metrics(part / "task.json", {"items": items, "table": table.name, "dim": table.dim, **about})


def apply_head(
    folder: str | Path,
    *,
    genes: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    embeddings: str | None = None,
) -> pd.DataFrame:
    """Predict genes or pairs with a head that a task left in ``OUT/heads/NAME``.

    Parameters
    ----------
    genes
        Ids or symbols; None for all genes of the table.
    pairs
        Of genes, for a head of pairs; in either order, the prediction is the same unless the head was fitted with
        preset "paper".
    embeddings
        Another table with the same meaning of its columns, such as an export of the same model that has more genes;
        None takes the table that the head was fitted on. That the width fits is checked; that the space is the same
        cannot be.

    Returns
    -------
    Index gene_id (pairs: gene_a, gene_b), in the order asked, each once: columns symbol (symbol_a, symbol_b),
    prediction (probability of 1, value, or class with its probabilities as p_CLASS) and in_training, whether the head
    was fitted on this item, so that its prediction is no forecast. Pairs also say in genes_in_training how many of
    their genes it was fitted on. `attrs["unknown"]` lists the names that have no vector, once each.

    Raises
    ------
    InputError
        For a folder that is no head, what the head cannot be asked, a table of another width, no known gene at all.
    """
    folder = Path(folder)
    about = _about(folder)
    head = Head.load(folder)
    vocab = GeneVocab.load(folder / "genes.tsv") if (folder / "genes.tsv").is_file() else None
    table = read_table(str(folder / "embeddings.parquet") if embeddings is None else embeddings, vocab)
    if table.dim != about["dim"]:
        raise InputError(
            f"{embeddings}: its vectors have {table.dim} numbers, but the head in {folder} was fitted on {about['dim']}. "
            "Give another version of the same table, or leave --embeddings out."
        )
    training = _training(folder, about["items"])
    if about["items"] == "genes":
        if pairs is not None:
            raise InputError(f"{folder}: this head is of genes, and pairs were given. Give genes.")
        return _apply_genes(folder, head, table, vocab, training, genes)
    if pairs is None:
        raise InputError(f"{folder}: this head is of pairs of genes. Give the pairs to predict: --pairs FILE.")
    return _apply_pairs(folder, head, table, vocab, training, pairs, about["form"])


def _about(folder: Path) -> dict[str, Any]:
    path = folder / "task.json"
    if not path.exists():
        there = sorted(p.parent.name for p in folder.glob("heads/*/task.json"))
        hint = f"Its heads are {', '.join(str(folder / 'heads' / name) for name in there)}." if there else ""
        raise InputError(
            f"{folder}: holds no head of a gene task (task.json is missing). "
            + (hint or "Give a folder OUT/heads/NAME that `expresser finetune` has written.")
        )
    about = read_mapping(path)
    prove_fields(about, {"dim": int, "items": str}, str(path))
    if about["items"] not in get_args(Items) or (about["items"] == "pairs" and about.get("form") not in get_args(Form)):
        raise InputError(
            f"{path}: items is {shortened(about['items'])}, form {shortened(about.get('form'))}. Copy the head again."
        )
    for name in ("genes.tsv", "embeddings.parquet", "training.parquet"):
        if (folder / name).exists():
            file_in(folder, name)
    return about


def _training(folder: Path, items: Items) -> pd.DataFrame:
    """The items that the head was fitted on, as text."""
    path, columns = folder / "training.parquet", ["gene_id"] if items == "genes" else ["gene_a", "gene_b"]
    try:
        if (rows := pq.ParquetFile(path).metadata.num_rows) > _MOST_ITEMS:
            raise InputError(f"{path}: claims {rows:,} items; at most {_MOST_ITEMS:,} are read.")
        return pd.read_parquet(path, columns=columns).astype(str)
    except (OSError, pa.ArrowException, ValueError, LookupError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not readable as the items of a head ({error}). Copy the head again.") from error


def _apply_genes(
    folder: Path,
    head: Head,
    table: GeneTable,
    vocab: GeneVocab | None,
    training: pd.DataFrame,
    genes: Sequence[str] | None,
) -> pd.DataFrame:
    names = list(table.values.index) if genes is None else list(genes)
    keys = _keys(names, table, vocab)
    ids = list(dict.fromkeys(key for key in keys if key is not None))
    unknown = list(dict.fromkeys(name for name, key in zip(names, keys, strict=True) if key is None))
    if not ids:
        raise _nothing_known(folder, unknown, table)
    frame = pd.DataFrame(index=pd.Index(ids, name="gene_id"))
    frame["symbol"] = _symbols(ids, vocab)
    _predict(frame, head, head.predict(table.rows(ids)))
    frame["in_training"] = frame.index.isin(training["gene_id"])
    frame.attrs["unknown"] = unknown
    return frame


def _apply_pairs(
    folder: Path,
    head: Head,
    table: GeneTable,
    vocab: GeneVocab | None,
    training: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    form: Literal["symmetric", "concatenated"],
) -> pd.DataFrame:
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    known = dict(zip(names, _keys(names, table, vocab), strict=True))
    unknown = [name for name, key in known.items() if key is None]
    asked = [(known[a], known[b]) for a, b in pairs]
    kept = list(dict.fromkeys((a, b) for a, b in asked if a is not None and b is not None and a != b))
    if not kept:
        raise _nothing_known(folder, unknown, table)
    index = pd.MultiIndex.from_tuples(kept, names=["gene_a", "gene_b"])
    first, second = ([pair[side] for pair in kept] for side in (0, 1))
    genes = sorted({*first, *second})
    rows = table.rows(genes)
    where = pd.Index(genes)
    a, b = where.get_indexer(first).astype(np.int64), where.get_indexer(second).astype(np.int64)
    answers = [
        head.predict(pair_features(rows, a[i : i + _PAIRS_AT_ONCE], b[i : i + _PAIRS_AT_ONCE], form=form))
        for i in range(0, len(kept), _PAIRS_AT_ONCE)
    ]
    frame = pd.DataFrame(index=index)
    frame["symbol_a"], frame["symbol_b"] = _symbols(first, vocab), _symbols(second, vocab)
    _predict(frame, head, np.concatenate(answers))
    learnt = {frozenset(pair) for pair in zip(training["gene_a"], training["gene_b"], strict=True)}
    seen = {gene for pair in learnt for gene in pair}
    frame["in_training"] = [frozenset(pair) in learnt for pair in kept]
    frame["genes_in_training"] = [(x in seen) + (y in seen) for x, y in kept]
    frame.attrs["unknown"] = unknown
    return frame


def _keys(names: Sequence[str], table: GeneTable, vocab: GeneVocab | None) -> list[str | None]:
    """The table's key of each name: the name itself, or the id that the vocabulary resolves it to."""
    held = set(table.values.index)
    clean = [clean_name(name) for name in names]
    found: list[str | None] = [name if name in held else None for name in clean]
    if vocab is not None:
        tokens = vocab.resolve(np.array(clean, dtype=object)).tokens
        ids = [vocab.ids[token] if token >= 0 else None for token in tokens]
        found = [key or (known if known in held else None) for key, known in zip(found, ids, strict=True)]
    return found


def _symbols(ids: Sequence[str], vocab: GeneVocab | None) -> list[str]:
    names = dict(zip(vocab.ids, vocab.symbols, strict=True)) if vocab is not None else {}
    return [names.get(gene, gene) for gene in ids]


def _predict(frame: pd.DataFrame, head: Head, answer: np.ndarray) -> None:
    if answer.ndim == 1:
        frame["prediction"] = answer
        return
    frame["prediction"] = [str(head.classes[i]) for i in answer.argmax(axis=1)]
    for i, name in enumerate(head.classes):
        frame[f"p_{name}"] = answer[:, i]


def _nothing_known(folder: Path, unknown: Sequence[str], table: GeneTable) -> InputError:
    shown = ", ".join(repr(name) for name in unknown[:5]) or "no name"
    return InputError(
        f"{folder}: none of the genes asked for has a vector ({shown}{', …' if len(unknown) > 5 else ''}); the table "
        f"{table.name} holds {len(table.values):,}, such as {', '.join(table.values.index[:3])}. "
        "Give Ensembl ids, or symbols of the vocabulary that the run was made with."
    )
