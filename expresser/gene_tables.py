"""Protein-coding genes out of the files that define them: HGNC's complete set, GENCODE's and Ensembl's GTF."""

import gzip
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from expresser.errors import InputError
from expresser.gene_names import clean_name, is_ensembl_id, split_names

_HGNC = ("symbol", "locus_group", "status", "ensembl_gene_id", "prev_symbol", "alias_symbol", "location")


def read_hgnc(path: str | Path) -> pd.DataFrame:
    """Approved protein-coding genes of an HGNC complete-set table, in its order; positions other than chrom unknown.

    Left out: genes without an Ensembl id (alternate loci, immunoglobulin clusters) and ids that two symbols share. A
    previous symbol or alias that a gene outside the result owns with equal or better right is not kept: an approved
    symbol of a non-coding gene is no alias of a coding one.
    """
    rows = _hgnc_rows(path)
    approved = [row for row in rows if row["status"] == "Approved"]
    coding = [
        row
        for row in approved
        if row["locus_group"] == "protein-coding gene" and is_ensembl_id(row["ensembl_gene_id"]) and row["symbol"]
    ]
    ids, symbols = (Counter(row[column] for row in coding) for column in ("ensembl_gene_id", "symbol"))
    inside = [row for row in coding if ids[row["ensembl_gene_id"]] == 1 and symbols[row["symbol"]] == 1]
    if not inside:
        raise InputError(
            f"{path}: none of {len(rows)} rows is an approved protein-coding gene with an Ensembl id. Give HGNC's "
            "complete set (hgnc_complete_set.txt)."
        )
    kept = {row["symbol"] for row in inside}
    outside = [row for row in approved if row["symbol"] not in kept]
    taken = {row["symbol"] for row in outside} | {n for row in outside for n in split_names(row["prev_symbol"])}
    taken_alias = taken | {n for row in outside for n in split_names(row["alias_symbol"])}
    return pd.DataFrame(
        {
            "gene_id": [clean_name(row["ensembl_gene_id"]) for row in inside],
            "symbol": [row["symbol"] for row in inside],
            "previous": ["|".join(n for n in split_names(row["prev_symbol"]) if n not in taken) for row in inside],
            "alias": ["|".join(n for n in split_names(row["alias_symbol"]) if n not in taken_alias) for row in inside],
            "chrom": [_band_chrom(row["location"]) for row in inside],
        }
    )


def _hgnc_rows(path: str | Path) -> list[dict[str, str]]:
    with open_text(path) as lines:
        header = next(lines, "").rstrip("\r\n").split("\t")
        missing = [column for column in _HGNC if column not in header]
        if missing:
            raise InputError(
                f"{path}: not an HGNC complete-set table, the columns {missing} are missing (the first line begins "
                f"{header[:4]}). Give HGNC's hgnc_complete_set.txt, or a GTF to from_gtf."
            )
        places = [header.index(column) for column in _HGNC]
        rows = []
        for number, line in enumerate(lines, start=2):
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != len(header):
                raise InputError(
                    f"{path}: line {number} has {len(fields)} fields, the header {len(header)}. The file is damaged: "
                    "download it again."
                )
            # Multi-valued fields come in double quotes; no field of these holds a quote of its own.
            rows.append(dict(zip(_HGNC, (fields[place].strip('" ') for place in places))))
    return rows


def read_gtf(path: str | Path) -> pd.DataFrame:
    """Named protein-coding genes of a GENCODE or Ensembl GTF, in its order; start and end from 1, both included.

    A symbol carried by several genes means the one on an assembled chromosome (not a patch or haplotype), X before Y
    (pseudo-autosomal genes have ids of their own on Y in newer releases); where that leaves two, neither is kept.
    """
    genes: dict[str, dict[str, Any]] = {}
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if "\tgene\t" not in line or line.startswith("#"):
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != 9 or not all(text.isdecimal() and len(text) <= 12 for text in fields[3:5]):
                raise InputError(
                    f"{path}: line {number} is not GTF: {line[:80]!r}. Needed are nine tab-separated fields with "
                    "whole-number start and end: give a GENCODE or Ensembl GTF."
                )
            about = dict(re.findall(r'(\w+) "([^"]*)"', fields[8]))
            kind = about.get("gene_type", about.get("gene_biotype"))
            gene, symbol = clean_name(about.get("gene_id")), clean_name(about.get("gene_name"))
            unnamed = not symbol or is_ensembl_id(symbol)
            if kind != "protein_coding" or unnamed or not is_ensembl_id(gene) or about["gene_id"].endswith("_PAR_Y"):
                continue
            place = {"start": int(fields[3]), "end": int(fields[4]), "strand": fields[6]}
            genes.setdefault(gene, {"gene_id": gene, "symbol": symbol, "chrom": _ucsc_chrom(fields[0]), **place})
    rivals: dict[str, list[int]] = {}
    for record in genes.values():
        rivals.setdefault(record["symbol"], []).append(_standing(record["chrom"]))
    kept = []
    for record in genes.values():
        ranks = rivals[record["symbol"]]
        if _standing(record["chrom"]) == min(ranks) and ranks.count(min(ranks)) == 1:
            kept.append(record)
    if not kept:
        raise InputError(
            f"{path}: no `gene` line has gene_type or gene_biotype protein_coding, an Ensembl gene_id and a gene_name "
            "of its own. Give a GENCODE or Ensembl GTF (not GFF3, not RefSeq)."
        )
    return pd.DataFrame(kept)


def _ucsc_chrom(name: str) -> str:
    """Ensembl's `1`, `MT` as `chr1`, `chrM`; others as they are."""
    return f"chr{name.replace('MT', 'M')}" if re.fullmatch(r"\d{1,2}|X|Y|MT?", name) else name


def _band_chrom(location: str) -> str:
    """The chromosome of a cytogenetic band (`19q13.43`); empty where the gene has no place."""
    band = re.match(r"(\d{1,2}|X|Y)(?:[pqct]|$| )", location)
    return f"chr{band[1]}" if band else "chrM" if location == "mitochondria" else ""


def _standing(chrom: str) -> int:
    """0 for an assembled chromosome, 1 for Y, 2 for patches, haplotypes and scaffolds."""
    return 1 if chrom == "chrY" else 0 if re.fullmatch(r"chr(?:\d{1,2}|X|M)", chrom) else 2


@contextmanager
def open_text(path: str | Path, newline: str | None = None) -> Iterator[TextIO]:
    """The text of a plain or gzipped file, told apart by content; what cannot be read becomes an InputError."""
    try:
        with open(path, "rb") as file:
            gzipped = file.read(2) == b"\x1f\x8b"
        opener: Any = gzip.open if gzipped else open
        with opener(path, "rt", encoding="utf-8-sig", newline=newline) as text:
            yield text
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}). Give a whole text file, plain or gzipped.") from error
