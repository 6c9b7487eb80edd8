"""What the genes of an RNA file are: their Ensembl ids, symbols and places, from the file's own columns or a table."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Int64, Shaped

from expresser.errors import InputError
from expresser.gene_names import clean_name, is_ensembl_id
from expresser.gene_tables import open_text
from expresser.genes import GeneVocab
from expresser.peak_names import MOST, chrom_name, natural

_IDS = ("ensembl_id", "gene_ids", "gene_id", "ensembl", "feature_id", "accession")
_SYMBOLS = ("symbol", "gene_symbols", "gene_symbol", "gene_name", "gene_names", "feature_name", "name")
_CHROMS = ("chrom", "chromosome", "chr", "seqname", "seqnames")
_STARTS = ("start", "gene_start", "chromstart", "start_position")
_ENDS = ("end", "gene_end", "chromend", "end_position")
_INTERVAL = re.compile(r"(.+):(\d{1,12})-(\d{1,12})", re.ASCII)

Texts = Shaped[np.ndarray, " genes"]


class GenePlaces:
    """Chromosome and transcription start of genes by Ensembl id or symbol; starts count as the table counts them."""

    def __init__(self, vocab: GeneVocab, tss: Int64[np.ndarray, " genes"]) -> None:
        self._vocab = vocab
        self._tss = tss
        self._chrom = _chroms(vocab.table["chrom"])

    @classmethod
    def read(cls, genes: str | Path | pd.DataFrame) -> "GenePlaces":
        """From a table with an id and a symbol, chrom and tss, or from any file of a `GeneVocab` (genes.tsv, GTF, HGNC).

        Of a GTF or genes.tsv the start of transcription is the gene's first base on its own strand, counted from 1.
        HGNC's table knows chromosomes only. A symbol of several genes means the one on an assembled chromosome, X
        before Y; where that leaves two, it means none.
        """
        if isinstance(genes, pd.DataFrame):
            return cls._of_table(genes, "genes")
        with open_text(genes) as lines:
            header = next(lines, "").rstrip("\r\n").lower().split("\t")
        if "tss" in header:
            with open_text(genes) as lines:
                try:
                    table = pd.read_csv(lines, sep="\t", dtype=str, keep_default_na=False)
                except ValueError as error:  # pandas' ParserError is one
                    raise InputError(f"{genes}: is no tab-separated table: {error}. Write it again.") from error
            return cls._of_table(table, str(genes))
        vocab = GeneVocab.read(genes)
        table = vocab.table
        return cls(vocab, _starts(table["start"], table["end"], table["strand"]))

    @classmethod
    def _of_table(cls, table: pd.DataFrame, where: str) -> "GenePlaces":
        lower = {str(c).lower(): c for c in reversed(table.columns)}
        found = {key: _first(lower, names) for key, names in (("id", _IDS), ("symbol", _SYMBOLS), ("chrom", _CHROMS))}
        if "tss" not in lower or found["chrom"] is None or found["id"] is found["symbol"] is None:
            raise InputError(
                f"{where}: places of genes need the columns ensembl_id or symbol (or both), chrom and tss; it has "
                f"{[str(c) for c in table.columns][:10]}."
            )
        key = found["id"] if found["id"] is not None else found["symbol"]
        frame = pd.DataFrame(
            {
                "gene_id": [clean_name(v) for v in table[key]],
                "symbol": [clean_name(v) for v in table[found["symbol"] if found["symbol"] is not None else key]],
                "chrom": _chroms(table[found["chrom"]]),
                "tss": _bases(table[lower["tss"]]),
            }
        )
        frame = frame[frame["gene_id"] != ""]
        # The gene that a shared symbol or a repeated row means stands first: assembled chromosomes, X before Y.
        standing = frame["chrom"].map(lambda name: natural(name)[:2] if name else (3, 0))
        rank = standing.map(lambda pair: 1 if pair == (1, 1) else 0 if pair[0] < 2 else pair[0])
        frame = frame.assign(rank=rank).sort_values(["gene_id", "rank"], kind="stable").drop_duplicates("gene_id")
        best = frame.groupby("symbol")["rank"].transform("min")
        frame.loc[(frame["symbol"] == "") | (frame["rank"] > best), "symbol"] = frame["gene_id"]
        vocab = GeneVocab(frame.drop(columns=["tss", "rank"]), where=where)
        return cls(vocab, frame["tss"].to_numpy(dtype=np.int64))

    def find(self, ids: Texts, symbols: Texts) -> tuple[Texts, Int64[np.ndarray, " genes"]]:
        """(chromosome or "", start or -1) of each gene, by its id, else by its symbol."""
        by_id, by_symbol = (self._vocab.resolve(names).tokens for names in (ids, symbols))
        token = np.where(by_id >= 0, by_id, by_symbol)
        return (
            np.where(token >= 0, self._chrom[token], "").astype(object),
            np.where(token >= 0, self._tss[token], -1).astype(np.int64),
        )


def gene_table(var: pd.DataFrame, places: GenePlaces | None = None) -> pd.DataFrame:
    """The rows of an RNA `var` as columns ensembl_id, symbol, chrom ("" unknown) and tss (-1 unknown), in its order.

    Index: the names cleaned of outer blanks, genome prefixes and Ensembl versions; names that several genes share give
    way to the genes' Ensembl ids, where each has one of its own. `places` goes before what the file says of places.
    """
    lower = {str(c).lower(): c for c in reversed(var.columns)}
    names = np.array([clean_name(name) for name in var.index], dtype=object)
    ids = _ensembl_ids(var, names)
    symbol_column = _first(lower, _SYMBOLS)
    symbols = names if symbol_column is None else np.array([clean_name(v) for v in var[symbol_column]], dtype=object)
    symbols = np.where(symbols == "", names, symbols).astype(object)
    chrom, tss = _own_places(var, lower)
    if places is not None:
        its_chrom, its_tss = places.find(ids, symbols)
        known = its_chrom != ""
        chrom, tss = np.where(known, its_chrom, chrom).astype(object), np.where(known, its_tss, tss).astype(np.int64)
    shared = pd.Series(names).duplicated(keep=False).to_numpy()
    if shared.any() and (ids[shared] != "").all() and not pd.Series(ids[shared]).duplicated().any():
        names = np.where(shared, ids, names).astype(object)
    columns = {"ensembl_id": ids, "symbol": symbols, "chrom": chrom, "tss": tss}
    return pd.DataFrame(columns, index=pd.Index(names, dtype=object))


def _ensembl_ids(var: pd.DataFrame, names: Texts) -> Texts:
    """Ids from a column called so that has any, else from the index or a text column that is mostly ids; "" for none."""
    lower = {str(c).lower(): c for c in reversed(var.columns)}
    called = [(var[lower[name]].to_numpy(), 0.0) for name in _IDS if name in lower]
    others = [(var.iloc[:, i].to_numpy(), 0.5) for i in range(var.shape[1]) if _is_text(var.iloc[:, i])]
    for column, least in (*called, (names, 0.5), *others):
        texts = [clean_name(v) for v in column]
        is_id = np.array([is_ensembl_id(text) for text in texts], dtype=bool)
        if is_id.any() and is_id.mean() >= least:
            return np.where(is_id, np.array(texts, dtype=object), "").astype(object)
    return np.full(len(var), "", dtype=object)


def _is_text(column: pd.Series) -> bool:
    return not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_datetime64_any_dtype(column))


def _own_places(var: pd.DataFrame, lower: dict[str, str]) -> tuple[Texts, Int64[np.ndarray, " genes"]]:
    """Places from the columns of the file itself: chrom with tss or start, end and strand; else 10x's interval.

    10x's interval of a gene spans the starts of its transcripts, so its middle is taken.
    """
    chrom, tss = np.full(len(var), "", dtype=object), np.full(len(var), -1, dtype=np.int64)
    chrom_column, start, end = (_first(lower, names) for names in (_CHROMS, _STARTS, _ENDS))
    if chrom_column is not None:
        chrom = _chroms(var[chrom_column])
        if "tss" in lower:
            tss = _bases(var[lower["tss"]])
        elif start is not None and end is not None and "strand" in lower:
            tss = _starts(var[start], var[end], var[lower["strand"]])
    elif "interval" in lower:
        for i, text in enumerate(var[lower["interval"]].astype(str)):
            if match := _INTERVAL.fullmatch(text.strip()[:200]):
                chrom[i], tss[i] = chrom_name(match[1]), (int(match[2]) + int(match[3])) // 2
    return chrom, tss


def _starts(start: pd.Series, end: pd.Series, strand: pd.Series) -> Int64[np.ndarray, " genes"]:
    """The end of a gene that transcription starts from; -1 where its place or its strand is unknown."""
    first, last = _bases(start), _bases(end)
    signs = strand.astype(str).to_numpy()
    forward, reverse = np.isin(signs, ("+", "1", "1.0")), np.isin(signs, ("-", "-1", "-1.0"))
    return np.where(forward, first, np.where(reverse, last, -1)).astype(np.int64)


def _bases(column: pd.Series) -> Int64[np.ndarray, " genes"]:
    """Whole numbers from 0 that a chromosome has room for; -1 for all else, missing ones among them."""
    numbers = pd.to_numeric(column.astype(object), errors="coerce").to_numpy(dtype=np.float64, na_value=np.nan)
    return np.where((numbers >= 0) & (numbers < MOST) & (numbers == np.floor(numbers)), numbers, -1).astype(np.int64)


def _chroms(names: pd.Series) -> Texts:
    """UCSC names; "" for what is missing."""
    code, given = pd.factorize(names.astype(object), use_na_sentinel=False)
    texts = [clean_name(name) for name in given]
    return np.array([chrom_name(t) if t and t.lower() != "nan" else "" for t in texts], dtype=object)[code]


def _first(lower: dict[str, str], names: tuple[str, ...]) -> str | None:
    return next((lower[name] for name in names if name in lower), None)
