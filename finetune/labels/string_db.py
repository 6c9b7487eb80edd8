"""Protein interactions of STRING: pairs of genes by the strength of one kind of evidence.

`protein.links.detailed` has one row for each ordered pair of proteins and a score of 0 to 1,000 for each kind of
evidence. A pair above the cut is positive. The rest is no proof of absence: by default negatives are drawn among pairs
that are below evidence of this kind altogether, matched in degree; "low-evidence" takes pairs that the file lists at
or below the cut, as many as there are positives, which tells well studied pairs of one kind from those of another.
"""

import re
from csv import QUOTE_NONE
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int16, Int32, Shaped

from expresser.errors import InputError
from expresser.gene_names import is_ensembl_id
from expresser.gene_tables import open_text
from expresser.genes import GeneVocab
from finetune.labels.pair_labels import Negatives, PairLabels, PairRows, collect_pairs

_PROTEINS = ("protein1", "protein2")
CHUNK = 500_000  # rows held as text at a time
_SPECIES = {
    "9606": "human",
    "10090": "mouse",
    "10116": "rat",
    "7955": "zebrafish",
    "7227": "fruit fly",
    "4932": "yeast",
}


def read_string(
    path: Path,
    *,
    vocab: GeneVocab | None,
    aliases: Path | None,
    cut: int,
    negatives: Negatives,
    channel: str,
    seed: int,
    min_resolved: float,
) -> PairLabels:
    """Pairs of a `protein.links.detailed` file, read in chunks: at the peak some 120 bytes a kept row are in memory.

    Both orders of a pair, and pairs of proteins of one gene, are one pair with the highest score. Rows that may be
    needed are kept: those with evidence, and for "low-evidence" all.
    """
    if not 0 <= cut < 1000:
        raise InputError(f"{path}: cut is {cut}; scores of STRING go from 0 to 1,000. Give a cut from 0 to 999.")
    if negatives == "given":
        raise InputError(
            f"{path}: STRING lists evidence for pairs, no negatives, and negatives 'given' asks for them. Use "
            "'degree-matched', 'uniform', or 'low-evidence' (listed pairs at or below the cut)."
        )
    proteins, one, two, score, passed = _stream(path, channel, every=negatives == "low-evidence")
    label = (score > cut).astype(np.int8)
    if not len(label) and not passed:
        raise InputError(f"{path}: the file holds no rows below its header. Give STRING's protein.links.detailed.")
    if not label.any():
        raise InputError(
            f"{path}: no row has {channel} > {cut} (highest: {int(score.max(initial=0))}). Lower the cut, or name "
            "another channel."
        )
    labels = collect_pairs(
        PairRows(_gene_names(path, proteins, aliases, vocab), one, two, label, score=score),
        name="string",
        where=path,
        vocab=vocab,
        negatives="degree-matched" if negatives == "auto" else negatives,
        seed=seed,
        min_resolved=min_resolved,
        account={"source": path.name, "format": "string", "channel": channel, "cut": cut},
    )
    for count in ("pairs_read", "set_aside"):
        labels.account[count] += passed
    return labels


def _stream(
    path: Path, channel: str, *, every: bool
) -> tuple[
    Shaped[np.ndarray, " proteins"],
    Int32[np.ndarray, " rows"],
    Int32[np.ndarray, " rows"],
    Int16[np.ndarray, " rows"],
    int,
]:
    """Proteins, the places of each row's two, its score, and how many rows without evidence were passed over."""
    with open_text(path) as lines:
        first = next(lines, "")
    header = first.split()
    missing = [column for column in (*_PROTEINS, channel) if column not in header]
    if missing:
        raise InputError(
            f"{path}: the columns {missing} are missing (the first line has {header[:12]}). Needed is STRING's "
            "protein.links.detailed, which has a column for each kind of evidence; name one of its columns."
        )
    places: dict[str, int] = {}
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    passed = 0
    delimiter = next((mark for mark in "\t," if mark in first), " ")
    kinds: dict[Any, Any] = {_PROTEINS[0]: str, _PROTEINS[1]: str, channel: np.float64}
    with open_text(path) as lines:
        try:
            chunks = pd.read_csv(
                lines,
                sep=delimiter,
                usecols=list(kinds),
                dtype=kinds,
                chunksize=CHUNK,
                keep_default_na=False,  # a protein called NA is no missing one, which would take another's place
                quoting=QUOTE_NONE,
            )
            for chunk in chunks:
                score = chunk[channel].to_numpy()
                if not ((score >= 0) & (score <= 1000) & (score == np.floor(score))).all():
                    raise InputError(
                        f"{path}: {channel} goes from {score.min():g} to {score.max():g}; scores of STRING are whole and go from 0 "
                        "to 1,000. Give the file as STRING publishes it."
                    )
                kept = slice(None) if every else score > 0
                ends = [_places(chunk.loc[:, column].to_numpy()[kept], places) for column in _PROTEINS]
                parts.append((*ends, score[kept].astype(np.int16)))
                passed += len(score) - len(ends[0])
        except (ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path}: not a table of scores ({error}). Download the file again.") from error
    one, two, score = (np.concatenate(column) for column in zip(*parts))
    return np.array(list(places), dtype=object), one, two, score, passed


def _places(names: np.ndarray, places: dict[str, int]) -> Int32[np.ndarray, " rows"]:
    codes, distinct = pd.factorize(names)
    return np.array([places.setdefault(name, len(places)) for name in distinct], dtype=np.int32)[codes]


def _gene_names(
    path: Path, proteins: Shaped[np.ndarray, " proteins"], aliases: Path | None, vocab: GeneVocab | None
) -> Shaped[np.ndarray, " proteins"]:
    """A gene name for each protein: what the aliases file says, else its own id without the number of the species."""
    own = np.array([re.sub(r"^\d+\.", "", protein) for protein in proteins], dtype=object)
    if aliases is None:
        known = vocab is None or (vocab.resolve(own).tokens >= 0).mean() >= 0.5
        if not known or any(re.fullmatch(r"ENS[A-Z]*P\d{11}", name) for name in own[:100]):
            taxa = sorted({match[1] for protein in proteins if (match := re.match(r"(\d+)\.", protein))})
            species = ", ".join(f"{taxon} ({_SPECIES.get(taxon, 'another species')})" for taxon in taxa[:3])
            raise InputError(
                f"{path}: proteins such as {proteins[0]!r} are not genes{f'; species {species}' if taxa else ''}. Pass "
                "the aliases file of the same species and version (protein.aliases or protein.info)."
            )
        return own
    found = read_aliases(aliases, proteins, vocab)
    return np.array([found.get(protein, name) for protein, name in zip(proteins, own)], dtype=object)


def read_aliases(path: Path, proteins: Shaped[np.ndarray, " proteins"], vocab: GeneVocab | None) -> dict[str, str]:
    """Gene names of proteins, from `protein.info` (preferred name) or `protein.aliases`.

    Of the aliases, an Ensembl gene id counts more than an approved symbol, HGNC's word more than others'; where the best
    that a protein has are two genes, it has none.
    """
    with open_text(path) as lines:
        header = next(lines, "").rstrip("\r\n").lstrip("#").split("\t")
        if header[0] not in ("string_protein_id", "protein_external_id", "string_protein"):
            raise InputError(
                f"{path}: the first column is {header[0][:40]!r}, not string_protein_id. Give protein.aliases or "
                "protein.info of STRING."
            )
        wanted = set(proteins.tolist())
        rows = (fields for line in lines if (fields := line.rstrip("\r\n").split("\t"))[0] in wanted)
        if "preferred_name" in header:
            at = header.index("preferred_name")
            return {fields[0]: fields[at] for fields in rows if len(fields) > at}
        if header[1:3] != ["alias", "source"]:
            raise InputError(
                f"{path}: the columns are {header[:4]}; needed are string_protein_id and either preferred_name "
                "(protein.info) or alias and source (protein.aliases)."
            )
        best: dict[str, tuple[int, set[str]]] = {}
        for fields in rows:
            if len(fields) < 3 or (rank := _rank(fields[1], fields[2])) is None:
                continue
            gene = fields[1]
            if vocab is not None:
                resolution = vocab.resolve([gene])
                if resolution.how[0] not in ("id", "symbol"):
                    continue
                gene = str(vocab.ids[resolution.tokens[0]])
            standing, genes = best.get(fields[0], (rank, set()))
            if rank < standing:
                best[fields[0]] = (rank, {gene})
            elif rank == standing:
                best[fields[0]] = (rank, genes | {gene})
    return {protein: next(iter(genes)) for protein, (_, genes) in best.items() if len(genes) == 1}


def _rank(alias: str, source: str) -> int | None:
    """How far an alias speaks for a gene, the lower the more; None where it is no name of a gene."""
    official = "HGNC" in source or "HUGO" in source
    if is_ensembl_id(alias):
        return 0 if official else 1
    if not official or re.search(r"alias|prev|synonym|name\b|entrez|accession|_ID", source, re.IGNORECASE):
        return None
    return 2
