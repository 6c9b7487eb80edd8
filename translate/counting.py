"""What fragments are counted over, as files give it: peaks of a BED file, an AnnData or a model, and a list of cells."""

import gzip
import re
from pathlib import Path

from expresser.bed import read_bed
from expresser.errors import InputError
from expresser.regions import Regions
from translate.opening import open_matrix
from translate.preprocess import AtacInput
from translate.reading import peaks_of
from translate.translator import Translator

_MATRIX = (".h5ad", ".zarr", ".h5")


def peaks_to_count(source: str) -> tuple[Regions, str | None]:
    """The peaks of a BED file, of the var of a matrix, or those of a model (folder or hub id); the build that a model knows."""
    path = Path(source)
    if path.suffix in _MATRIX:
        return peaks_of(path), None
    if path.is_file():
        return read_bed(path), None
    if path.suffixes and not path.exists() and re.search(r"\.(bed|narrowPeak|broadPeak|tsv|txt)(\.gz)?$", source):
        raise InputError(f"{path}: there is no such file of peaks.")
    inputs = Translator.load(source).inputs
    found = inputs.get("atac")
    if not isinstance(found, AtacInput):
        raise InputError(
            f"{source}: this model knows {', '.join(inputs)} and no peaks. Give a BED file, or another model."
        )
    return found.regions, found.genome


def cells_to_count(path: Path) -> list[str]:
    """Barcodes: the names of the cells of a matrix, or the first column of a text file, each once."""
    if path.suffix in _MATRIX:
        return open_matrix(path, None).obs.index.astype(str).tolist()
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as lines:
            names = [re.split(r"[\t,]", line.strip())[0].strip() for line in lines]
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: cannot be read as a list of barcodes ({error}). Give text, one a line, or an .h5ad."
        ) from error
    names = [name for name in names if name and not name.startswith("#")]
    if names[:1] and names[0].lower() in ("barcode", "barcodes", "cell", "cells"):
        del names[0]
    if not names:
        raise InputError(f"{path}: holds no barcode. Give text, one a line, or an .h5ad.")
    return list(dict.fromkeys(names))
