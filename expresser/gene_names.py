"""What gene names look like: the form they are compared in, Ensembl ids, and why names were not found."""

import re
from collections import Counter
from collections.abc import Sequence

import pandas as pd

# A gene id of Ensembl, with what may follow it: version, GENCODE's lift-over count, the pseudo-autosomal copy on Y.
# Eleven digits are asked for because ENSA is a symbol; a G because ENST and ENSP are transcripts and proteins.
_ENSEMBL = re.compile(r"(ENS[A-Z]{0,4}G\d{11})(?:\.\d+)?(?:_\d+)?(?:_PAR_Y)?", re.ASCII)
_GENOME = re.compile(r"\A(?:(?:hg|GRCh)\d{2}(?:[.-]?p\d+)?_+)+(?=[^_\s])", re.IGNORECASE | re.ASCII)
OPEN_READING_FRAME = re.compile(r"C(?:\d+|[XY])orf\d+")

_MOUSE = "wrong species: mouse or rat genes, map them to human ones first"
_BARCODES = "cell barcodes: the names were taken from the wrong axis, or the matrix is transposed"
# What unmatched names look like -> what went wrong. The first pattern that fits the whole name counts for it.
_CAUSES = tuple(
    (re.compile(pattern), cause)
    for pattern, cause in (
        (r"\s*|nan|NaN|None|NA", "empty names: another column holds the genes"),
        (r"(?:mm|rn|GRCm|mRatBN)\d+_.*|ENS(?:MUS|RNO)[GTP]\d{11}.*", _MOUSE),
        (r"ENS[A-Z]{3,4}G\d{11}.*", "wrong species: Ensembl ids that are not human (human ones begin with ENSG)"),
        (r"ENS[A-Z]{0,4}T\d{11}.*", "Ensembl transcript ids (ENST): sum the counts of each gene's transcripts first"),
        (r"ENS[A-Z]{0,4}P\d{11}.*", "Ensembl protein ids (ENSP): map them to gene ids (ENSG) first"),
        (r"ENSG\d{11}[\d.]*[|:;, _-].+|.+[|:;, _-]ENSG\d{11}[\d.]*", "id and symbol joined in one name: keep the id"),
        (r"ENSG\d{11}.*", "Ensembl ids outside the vocabulary: mostly non-coding genes, or another gene table"),
        (r"[NX][MRP]_\d+.*", "RefSeq transcript or protein ids: map them to genes first"),
        (r"\d+(?:_[a-z])?_at", "microarray probe sets, not genes"),
        (r"(?:chr)?(?:\d{1,2}|[XYM]|MT)[:_-]\d+[_-]\d+", "genomic intervals: peaks of an ATAC assay, not genes"),
        (r"(?:.*[_:#.-])?[ACGTN]{10,}(?:[-_.].*)?|(?i:cell)[_-]?\d+", _BARCODES),
        (r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", "numbers: row numbers or Entrez ids; another column holds the names"),
        (r"(?i:gene|feature|var|v|x)[_. -]?\d+", "placeholder names: the file was written without its gene names"),
        (r"mt-[A-Z]\w*|H2-\w+|\d{7}[A-Z]\d{2}Rik.*|[A-Z](?=[a-z0-9]*[a-z])[a-z0-9]+(?:[-.]\w+)*", _MOUSE),
        (r"[a-z0-9.-]*[a-z][a-z0-9.-]*", "lower-case names: symbols that were lower-cased, or another species"),
    )
)


def clean_name(name: object) -> str:
    """The form in which names are compared: no outer blanks, no human genome prefix (`hg19_`), no Ensembl version."""
    if isinstance(name, bytes):
        text = name.decode(errors="replace")
    else:
        text = "" if name is None or name is pd.NA or name != name else str(name)
    text = _GENOME.sub("", text.strip(), count=1) if "_" in text else text.strip()
    ensembl = _ENSEMBL.fullmatch(text) if text.startswith("ENS") else None
    return ensembl[1] if ensembl else text


def is_ensembl_id(name: str) -> bool:
    """Whether a name is an Ensembl gene id of any species (version allowed): `ENSA` and `ENST…` are not."""
    return _ENSEMBL.fullmatch(name) is not None


def likely_cause(unmatched: Sequence[str]) -> str | None:
    """What at least half of the unmatched names look like; None where they have no one look."""
    looks = [next((cause for look, cause in _CAUSES if look.fullmatch(name[:100])), None) for name in unmatched]
    cause, times = Counter(looks).most_common(1)[0] if looks else (None, 0)
    return cause if 2 * times >= len(looks) else None


def split_names(names: str) -> list[str]:
    """The names in a `|`-joined field; blanks between bars are none."""
    return [name for part in names.split("|") if (name := part.strip())] if names else []
