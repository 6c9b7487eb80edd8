"""Tables of gene embeddings read from a model or a file, their names resolved to Ensembl ids."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from expresser.errors import InputError
from expresser.gene_names import clean_name
from expresser.genes import GeneVocab
from expresser.tables import READ, GeneRows, read_gene_table, table_suffix
from finetune.embeddings.table import GeneTable, check_name, gene_table_of

BUILT_IN = ("random", "expression", "svd", "ppmi")

# A table of another species shares a few per cent of its names with a human vocabulary; one of all GENCODE genes has a
# third in a vocabulary of coding genes. A small vocabulary that a table covers is no fault of the table.
_MIN_NAMES, _MIN_VOCAB = 0.2, 0.5
_RANK = {"id": 0, "symbol": 1, "previous": 2, "alias": 3}


def split_spec(spec: str) -> tuple[str | None, str]:
    """``NAME=PATH`` as (NAME, PATH), ``PATH`` as (None, PATH). A path that exists stays whole whatever it contains."""
    if not spec:
        raise InputError("an empty text names no table. Give NAME=PATH, or PATH alone.")
    name, equals, path = spec.partition("=")
    if not equals or Path(spec).exists() or "/" in name or "\\" in name:
        return None, spec
    check_name(name)
    if not path:
        raise InputError(f"{spec!r}: nothing follows the '='. Give NAME=PATH, or PATH alone.")
    return name, path


def read_table(spec: str, vocab: GeneVocab | None) -> GeneTable:
    """The table that ``[NAME=]PATH`` names: a model (checkpoint, run folder or hub id) or a file (`read_gene_table`).

    With a vocabulary, rows go by its ids and a name it does not know is left out; without one, names are taken as they are.
    Rows with missing or infinite values are left out. Of several rows of a gene, the one named best stays (id, approved symbol,
    previous symbol, alias), among equals the first. Genes are in the order of their ids, so that a file's order changes nothing.

    Raises InputError for a file that is unreadable, of another species, mostly not finite, or the same for all genes.
    """
    name, where = split_spec(spec)
    path = Path(where)
    if path.is_file():
        rows = read_gene_table(path)
        about = {"source": where, "kind": rows.kind, "sha256": _sha256(path)}
        own = path.name.removesuffix(".gz").removesuffix(".GZ")
        name = name or Path(own).stem
    elif table_suffix(path) is not None:
        raise InputError(f"{where}: there is no such file.")
    elif where in BUILT_IN:
        raise InputError(f"{where}: a built-in table is computed from counts, not read. Open it with open_tables.")
    else:
        rows, about = _read_model(where)
        name = name or model_name(where)
    return _resolved(name, rows, vocab, about)


def is_model(where: str) -> bool:
    """Whether a path without its NAME= can only be a model: a folder, or what could be a hub id."""
    return not Path(where).is_file() and table_suffix(where) is None and where not in BUILT_IN


def choose_vocab(genes: Path | None, specs: Sequence[str], corpus: Path | None) -> GeneVocab | None:
    """The vocabulary that names are resolved with: the file `genes`, else the first model's, else the corpus's, else None.

    None takes names as they are, so that tables and labels must all use one kind of name.
    """
    if genes is not None:
        return GeneVocab.read(genes)
    for where in (split_spec(spec)[1] for spec in specs):
        if is_model(where):
            from expresser.checkpoint import locate

            _known_or_hub(where)
            return GeneVocab.load(locate(where) / "genes.tsv")
    if corpus is None:
        return None
    if (corpus / "manifest.json").is_file():
        from expresser.corpus.store import Corpus

        return Corpus.open(corpus).vocab
    from expresser.corpus.source import open_source

    return open_source(corpus).guess_vocab()


def _read_model(where: str) -> tuple[GeneRows, dict[str, Any]]:
    _known_or_hub(where)
    # Importing torch and transformers takes seconds, and tables in files do without.
    from expresser.checkpoint import load, locate
    from expresser.embed import gene_table

    folder = locate(where)
    frame = gene_table(load(folder))
    values = frame.drop(columns="symbol").to_numpy(np.float32)
    rows = GeneRows(frame.index.to_numpy(dtype=object), values, "checkpoint")
    return rows, {"source": where, "kind": "checkpoint", "sha256": _sha256(folder / "model.safetensors")}


def _known_or_hub(where: str) -> None:
    """Raise InputError for what is neither a folder nor could be a hub id, with all that it might have been."""
    if Path(where).is_dir() or (where.count("/") == 1 and not Path(where).exists() and where[0] not in "./~"):
        return
    raise InputError(
        f"{where}: no gene embeddings are there. Give the folder of a model or a run, a hub id (org/name), a file "
        f"({', '.join(READ)}) or one of {', '.join(BUILT_IN)}."
    )


def model_name(where: str) -> str:
    """What a model is called: the folder's name, the run's where it is its last model or a checkpoint, the last part of a hub id."""
    if not Path(where).is_dir():
        return where.rpartition("/")[2].partition("@")[0]
    folder = Path(where).resolve()
    if folder.parent.name == "checkpoints":
        return folder.parent.parent.name
    return folder.parent.name if folder.name == "model" else folder.name  # every run calls its last model "model"


def _resolved(name: str, rows: GeneRows, vocab: GeneVocab | None, about: dict[str, Any]) -> GeneTable:
    source, n = about["source"], len(rows.names)
    finite = np.isfinite(rows.values).all(axis=1)
    if 2 * int(finite.sum()) < n:
        first = int(np.argmin(finite))
        raise InputError(
            f"{source}: {n - int(finite.sum())} of {n} rows have missing or infinite numbers (the first: "
            f"{rows.names[first]!r}). At least half must be whole: the table was written or joined wrongly."
        )
    if vocab is None:
        ids = np.array([clean_name(gene) for gene in rows.names], dtype=object)
        known, rank = ids != "", np.zeros(n, dtype=np.int64)
        unmatched: list[str] = []
    else:
        resolution = vocab.resolve(rows.names)
        known, report = resolution.tokens >= 0, resolution.report()
        if report.genes < _MIN_VOCAB * len(vocab):
            report.check(source, _MIN_NAMES)
        ids = vocab.ids[resolution.tokens]
        rank = np.array([_RANK.get(how, len(_RANK)) for how in resolution.how], dtype=np.int64)
        unmatched = list(report.unmatched_examples)
    kept, differing = _one_row_a_gene(ids, rows.values, rank, np.flatnonzero(finite & known))
    order = kept[np.argsort(ids[kept])]
    values = rows.values[order]
    if len(order) < 2 or (values == values[0]).all():
        fault = f"has {len(order)} genes" if len(order) < 2 else f"has the same numbers for all {len(order)} genes"
        raise InputError(f"{source}: {fault} once names are resolved. A table tells at least two genes apart.")
    account = {
        "rows": n,
        "not_finite": int((~finite).sum()),
        "unresolved": int((finite & ~known).sum()),
        "duplicates": int((finite & known).sum()) - len(kept),
        "differing": len(differing),
        "unmatched_examples": unmatched,
        "duplicate_examples": [str(rows.names[i]) for i in differing[:10]],
    }
    return gene_table_of(name, [str(gene) for gene in ids[order]], values, about | account)


def _one_row_a_gene(
    ids: np.ndarray, values: Float32[np.ndarray, "genes dim"], rank: np.ndarray, usable: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """Rows that stay, best rank first and first of equals; and of those that go, the ones with other numbers."""
    best: dict[str, int] = {}
    differing = []
    for row in usable[np.argsort(rank[usable], kind="stable")].tolist():
        stays = best.setdefault(ids[row], row)
        if not np.array_equal(values[row], values[stays]):
            differing.append(row)
    return np.array(sorted(best.values()), dtype=np.int64), sorted(differing)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
