"""The gene vocabulary: which gene a name means, which token it has, and an account of every name that found none."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Int64, Num, Shaped

from expresser.atomic import replaced
from expresser.errors import InputError
from expresser.foreign import LARGE, shortened
from expresser.gene_names import OPEN_READING_FRAME, clean_name, is_ensembl_id, likely_cause, split_names
from expresser.gene_tables import open_text, read_gtf, read_hgnc
from expresser.notebook import card

# Text is meant; numbers and blanks are met too, and reported.
Names: TypeAlias = Sequence[Any] | np.ndarray | pd.Index | pd.Series

COLUMNS = ("gene_id", "symbol", "previous", "alias", "chrom", "start", "end", "strand")
MOST_GENES = 5_000_000  # in a file; all of GENCODE are 79,000
_GENE_LETTERS = 4096  # of a line, many times over what the longest list of aliases takes
_TEXT = ("gene_id", "symbol", "previous", "alias", "chrom", "strand")


@dataclass(frozen=True)
class GeneReport:
    """What became of a file's gene names: counts of names, and the share of counts that went with the genes kept.

    `duplicates` are names that share a token with an earlier one (their counts are summed), `genes` the distinct
    tokens, `counts_kept` None where counts were not given, `unmatched_examples` at most ten, the most counted first.
    """

    n_names: int
    by_id: int
    by_symbol: int
    by_previous: int
    by_alias: int
    ambiguous: int
    unknown: int
    duplicates: int
    genes: int
    counts_kept: float | None
    unmatched_examples: tuple[str, ...]
    likely_cause: str | None

    @property
    def resolved(self) -> int:
        """Names that found a gene."""
        return self.by_id + self.by_symbol + self.by_previous + self.by_alias

    def _repr_html_(self) -> str:
        return card(
            type(self).__name__, self.to_dict() | {"unmatched_examples": ", ".join(self.unmatched_examples) or None}
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a manifest."""
        return asdict(self) | {"unmatched_examples": list(self.unmatched_examples)}

    def check(self, where: str, min_counts: float = 0.6) -> None:
        """Raise InputError where less than `min_counts` of the counts (of the names, counts unknown) found a gene."""
        share = self.counts_kept if self.counts_kept is not None else self.resolved / max(self.n_names, 1)
        if self.resolved > 0 and share >= min_counts:
            return
        examples = ", ".join(repr(name) for name in self.unmatched_examples) or "none"
        peaks = (self.likely_cause or "").startswith("genomic intervals")
        raise InputError(
            f"{where}: {share:.1%} of the {'names' if self.counts_kept is None else 'counts'} belong to genes of the "
            f"vocabulary, at least {min_counts:.0%} must ({self.resolved} of {self.n_names} names resolved, "
            f"{self.ambiguous} ambiguous, {self.unknown} unknown). Unmatched, for example: {examples}. "
            f"Likely cause: {self.likely_cause or 'not recognised'}. Give the column that holds human Ensembl gene ids "
            "or symbols, a vocabulary of the same species, or a lower threshold where the loss is meant."
            + (" A corpus of peaks is built with --regions in place of --genes." if peaks else "")
        )


@dataclass(frozen=True, repr=False)
class Resolution:
    """Names and their tokens: -1 where a name found no gene; `how` says by what (see `GeneVocab.resolve`)."""

    tokens: Int64[np.ndarray, " names"]
    how: Shaped[np.ndarray, " names"]
    names: Shaped[np.ndarray, " names"]

    def __repr__(self) -> str:
        found = ", ".join(f"{n:,} {how}" for how, n in Counter(self.how.tolist()).most_common())
        return f"{type(self).__name__}({len(self.names):,} names: {found})"

    def report(self, counts_per_name: Num[np.ndarray, " names"] | None = None) -> GeneReport:
        """The account of this resolution; `counts_per_name` are the column sums of raw counts, where known."""
        found = self.tokens >= 0
        order, kept = np.arange(len(self.names)), None
        if counts_per_name is not None:
            counts = np.asarray(counts_per_name, dtype=np.float64)
            if counts.shape != found.shape or not np.all(np.isfinite(counts) & (counts >= 0)):
                raise ValueError(f"counts_per_name: one finite count >= 0 for each of {len(found)} names is needed")
            order = np.argsort(-counts, kind="stable")
            total = counts.sum()
            kept = float(counts[found].sum() / total) if total > 0 else None
        unmatched = [str(name) for name in self.names[order[~found[order]]]]
        tally = Counter(self.how.tolist())
        genes = len(np.unique(self.tokens[found]))
        return GeneReport(
            n_names=len(found),
            by_id=tally["id"],
            by_symbol=tally["symbol"],
            by_previous=tally["previous"],
            by_alias=tally["alias"],
            ambiguous=tally["ambiguous"],
            unknown=tally["unknown"],
            duplicates=int(found.sum()) - genes,
            genes=genes,
            counts_kept=kept,
            unmatched_examples=tuple(dict.fromkeys(unmatched))[:10],
            likely_cause=likely_cause(unmatched),
        )


class GeneVocab:
    """An immutable list of genes; a gene's row number is its token.

    The key `gene_id` is the Ensembl id without version, or the symbol where the input has no Ensembl id. `start` and
    `end` count from 1, both included, as in GTF. Two vocabularies are equal when `sha256`, taken over the keys in
    order, is: names and positions may differ, tokens may not.
    """

    def __init__(self, table: pd.DataFrame, where: str = "gene vocabulary") -> None:
        missing = [column for column in COLUMNS[:2] if column not in table.columns]
        if missing or table.empty:
            fault = f"lacks the columns {missing}" if missing else "holds no genes"
            raise InputError(f"{where}: {fault}. A vocabulary needs at least one gene with gene_id and symbol.")
        table = _complete(table)
        for column in _TEXT:
            for row, text in enumerate(table[column].tolist()):
                unclean = column in COLUMNS[:2] and (not text or clean_name(text) != text)
                if unclean or not text.isprintable():
                    raise InputError(
                        f"{where}: gene {row}: {column} is {text!r}. No field may hold control characters; gene_id and "
                        "symbol may not be empty nor carry outer blanks, a genome prefix or an Ensembl version."
                    )
        twice = table["gene_id"].duplicated()
        if twice.any():
            raise InputError(
                f"{where}: gene_id {table['gene_id'][twice].iloc[0]!r} occurs more than once ({int(twice.sum())} such "
                "rows). A gene has one token: remove the repeated rows."
            )
        self._table = table
        self.ids: np.ndarray = table["gene_id"].to_numpy(dtype=object, copy=True)
        self.symbols: np.ndarray = table["symbol"].to_numpy(dtype=object, copy=True)
        self.ids.flags.writeable = self.symbols.flags.writeable = False
        self.sha256: str = hashlib.sha256("\n".join(self.ids).encode()).hexdigest()

    @property
    def table(self) -> pd.DataFrame:
        """One row a gene, row number = token: gene_id, symbol, previous, alias, chrom, start, end, strand (a copy)."""
        return self._table.copy()

    def __len__(self) -> int:
        return len(self.ids)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneVocab) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        known = f", {n:,} with Ensembl ids" if (n := sum(map(is_ensembl_id, self.ids))) else ""
        first = ", ".join(f"{i} {s}" if i != s else i for i, s in zip(self.ids[:2], self.symbols[:2]))
        return f"{type(self).__name__}({len(self):,} {self._things}{known}: {first}, …; sha256 {self.sha256[:12]})"

    @property
    def _things(self) -> str:
        """What the tokens are, of this class and of those made from it: genes, regions."""
        return f"{type(self).__name__.removesuffix('Vocab').lower()}s"

    def _repr_html_(self) -> str:
        placed = int((self._table["chrom"] != "").sum())
        facts = {
            self._things: len(self),
            "with Ensembl ids": sum(map(is_ensembl_id, self.ids)) or None,
            "with a place": placed,
            "sha256": self.sha256[:12],
        }
        return card(
            type(self).__name__, facts, {"first": self._table.head(5).astype(object).where(lambda t: t.notna(), "")}
        )

    def take(self, tokens: Int64[np.ndarray, " kept"]) -> "GeneVocab":
        """The genes with these tokens, in this order."""
        return GeneVocab(self._table.iloc[tokens].reset_index(drop=True))

    @cached_property
    def _index(self) -> dict[str, tuple[int, str]]:
        """Every known name -> (token, how); built once, so that resolving is one look-up a name."""
        rows = list(enumerate(zip(*(self._table[column].tolist() for column in COLUMNS[:4]))))
        levels: list[list[tuple[str, int, str]]] = [
            [(g, t, "id" if is_ensembl_id(g) else "symbol") for t, (g, _, _, _) in rows],
            [(s, t, "symbol") for t, (_, s, _, _) in rows],
            [(name, t, "previous") for t, (_, _, previous, _) in rows for name in split_names(previous)],
            [(name, t, "alias") for t, (_, _, _, alias) in rows for name in split_names(alias)],
        ]
        # Upper-casing at large would let a mouse file pass for a human one with upper-case aliases, and the reverse.
        # C1orf112 is the one human form that pipelines do upper-case, and no other species has C1ORF112.
        levels.append([(n.upper(), t, how) for n, t, how in levels[1] + levels[2] if OPEN_READING_FRAME.fullmatch(n)])
        index: dict[str, tuple[int, str]] = {}
        for level in levels:
            here: dict[str, tuple[int, str]] = {}
            for name, token, how in level:
                if name not in index:
                    here[name] = (token, how) if here.get(name, (token,))[0] == token else (-1, "ambiguous")
            index.update(here)
        return index

    def resolve(self, names: Names) -> Resolution:
        """Tokens of gene names: by id, else approved symbol, else previous symbol, else alias; case matters.

        At the first of these four that knows the name, one gene is an answer and two are none (`ambiguous`), so an
        approved symbol beats another gene's alias. Names are compared as `clean_name` leaves them.
        """
        raw = np.array(names, dtype=object)
        if raw.ndim != 1:
            raise ValueError(f"names: one axis of names is needed, got shape {raw.shape}")
        index, unknown = self._index, (-1, "unknown")
        hits = [(index.get(n) if type(n) is str else None) or index.get(clean_name(n), unknown) for n in raw.tolist()]
        tokens = np.fromiter((token for token, _ in hits), dtype=np.int64, count=len(hits))
        return Resolution(tokens, np.array([how for _, how in hits], dtype=object), raw)

    @classmethod
    def read(cls, path: str | Path) -> "GeneVocab":
        """A vocabulary from any file that can give one, told apart by its first line: genes.tsv, HGNC table or GTF."""
        with open_text(path) as lines:
            header = next(lines, "").rstrip("\r\n").split("\t")
        if header == list(COLUMNS):
            return cls.load(path)
        return cls.from_hgnc(path) if "hgnc_id" in header or "locus_group" in header else cls.from_gtf(path)

    @classmethod
    def from_hgnc(cls, path: str | Path) -> "GeneVocab":
        """Approved protein-coding genes of an HGNC complete-set table, plain or .gz (see `gene_tables.read_hgnc`)."""
        return cls(read_hgnc(path), where=f"{path}: approved protein-coding genes")

    @classmethod
    def from_gtf(cls, path: str | Path) -> "GeneVocab":
        """Named protein-coding genes of a GENCODE or Ensembl GTF, plain or .gz (see `gene_tables.read_gtf`)."""
        return cls(read_gtf(path), where=f"{path}: protein-coding genes")

    @classmethod
    def from_names(cls, ids: Names, symbols: Names | None = None) -> "GeneVocab":
        """The vocabulary of an input: key is the Ensembl gene id, else the symbol, else what `ids` holds.

        Rows with one key are one gene: the first symbol stays, others become aliases. A symbol may belong to several
        ids, and then resolves to none of them.
        """
        keys = [clean_name(name) for name in ids]
        names = keys if symbols is None else [clean_name(name) for name in symbols]
        if len(keys) != len(names):
            raise ValueError(f"from_names: {len(keys)} ids and {len(names)} symbols; one symbol for each id is needed")
        pairs = ((k, s or k) if is_ensembl_id(k) else (s or k, s or k) for k, s in zip(keys, names))
        table = pd.DataFrame(list(pairs), columns=list(COLUMNS[:2])).drop_duplicates()
        return cls(_merge(_complete(table)), where="gene names of the input")

    @classmethod
    def union(cls, vocabs: Sequence["GeneVocab"]) -> "GeneVocab":
        """All genes of several vocabularies, in order of first appearance.

        Genes with one key are one: the first symbol stays, other symbols become aliases, what the first left blank is
        filled in. A gene known by symbol alone is the Ensembl gene that this name resolves to, where there is one.
        """
        if not vocabs:
            raise InputError("GeneVocab.union: no vocabularies were given; give at least one.")
        # Files of one reference bring the same table over and over: each is merged once.
        distinct = {pd.util.hash_pandas_object(v._table, index=False).to_numpy().tobytes(): v for v in vocabs}
        rows = pd.concat([v._table for v in distinct.values()]).drop_duplicates(ignore_index=True)
        ensembl = rows["gene_id"].map(is_ensembl_id).to_numpy(dtype=bool)
        parts, keys = [rows[~ensembl]], rows["gene_id"].to_numpy(dtype=object, copy=True)
        if ensembl.any():
            known = cls(_merge(rows[ensembl]))
            tokens = known.resolve(keys).tokens
            keys[tokens >= 0] = known.ids[tokens[tokens >= 0]]
            parts = [known._table, rows[tokens < 0]]
        merged = _merge(pd.concat(parts)).set_index("gene_id")
        return cls(merged.loc[pd.unique(keys)].reset_index(), where="union of gene vocabularies")

    @classmethod
    def load(cls, path: str | Path, *, most: int = MOST_GENES) -> "GeneVocab":
        """Read what `save` wrote (genes.tsv, plain or .gz).

        Raises InputError for what is none, and without reading on for more than `most` genes: a gzipped file may hold a thousand
        times what it weighs.
        """
        with open_text(path, newline="") as file:
            text = file.read(min(_GENE_LETTERS * (most + 1), LARGE))
            more = bool(file.read(1))
        text = text.replace("\r\n", "\n").removesuffix("\n")
        if more or text.count("\n") > most:
            raise InputError(
                f"{path}: more than {most:,} genes, or lines far longer than genes have. It is not the vocabulary that belongs here: "
                "restore the one that was saved with it."
            )
        lines = text.split("\n")
        if lines[0].split("\t") != list(COLUMNS):
            raise InputError(f"{path}: first line is {lines[0][:80]!r}, a gene vocabulary begins with {list(COLUMNS)}.")
        rows = [line.split("\t") for line in lines[1:]]
        for number, row in enumerate(rows, start=2):
            if len(row) != len(COLUMNS) or not all(text == "" or _is_position(text) for text in row[5:7]):
                raise InputError(
                    f"{path}: line {number}: {shortened(chr(9).join(row), 200)}. Needed are {len(COLUMNS)} tab-separated "
                    "fields, start and end whole numbers or empty. Write the file again with GeneVocab.save."
                )
        table = pd.DataFrame(rows, columns=list(COLUMNS))
        for column in ("start", "end"):
            table[column] = pd.array([int(text) if text else pd.NA for text in table[column]], dtype="Int64")
        return cls(table, where=str(path))

    def save(self, path: str | Path) -> None:
        """Write genes.tsv: plain text with a header, empty where unknown. A failure leaves nothing half-written."""
        rows = self._table.astype(object).where(self._table.notna(), "").itertuples(index=False)
        with replaced(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
            file.write("\t".join(COLUMNS) + "\n")
            file.writelines("\t".join(map(str, row)) + "\n" for row in rows)


def _is_position(text: str) -> bool:
    """Whether it is a whole number that no chromosome is too short for by orders of magnitude."""
    return text.isdecimal() and len(text) <= 12


def _complete(table: pd.DataFrame) -> pd.DataFrame:
    """All columns in order: text with '' where unknown, positions as Int64 with NA."""
    table = table.reindex(columns=list(COLUMNS)).reset_index(drop=True)
    table[list(_TEXT)] = table[list(_TEXT)].astype(object).fillna("").map(str)
    return table.astype({"start": "Int64", "end": "Int64"})


def _merge(rows: pd.DataFrame) -> pd.DataFrame:
    """One row a gene_id, in order of first appearance: names joined, blanks filled from later rows."""
    repeated = rows["gene_id"].duplicated(keep=False)
    genes: dict[str, dict[str, Any]] = {}
    for record in rows[repeated].to_dict("records"):
        gene = genes.setdefault(record["gene_id"], dict(record))
        if gene["symbol"] == gene["gene_id"]:  # an id that stood in for an unknown symbol gives way to one
            gene["symbol"] = record["symbol"]
        other = "" if "|" in record["symbol"] or record["symbol"] == record["gene_id"] else record["symbol"]
        met = {gene["symbol"]}
        for column, more in (("previous", record["previous"]), ("alias", f"{record['alias']}|{other}")):
            names = dict.fromkeys(split_names(f"{gene[column]}|{more}"))
            gene[column] = "|".join(name for name in names if name not in met)
            met |= names.keys()
        for column in ("chrom", "start", "end", "strand"):
            if pd.isna(gene[column]) or gene[column] == "":
                gene[column] = record[column]
    if not genes:
        return rows
    merged = pd.concat([rows[~repeated], _complete(pd.DataFrame(list(genes.values())))]).set_index("gene_id")
    return merged.loc[pd.unique(rows["gene_id"])].reset_index()
