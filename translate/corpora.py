"""A study read from a corpus of ATAC: cells and peaks in memory, which peaks are open on disk."""

from pathlib import Path

import numpy as np
import pandas as pd

from expresser.corpus.store import Corpus
from expresser.errors import InputError
from expresser.region_vocab import RegionVocab
from translate.stored import StoredMatrix
from translate.study import Measured, Study


def study_of_corpus(path: str | Path) -> Study:
    """All cells of a corpus of regions, in the order of its obs (that of its input files), measured in ATAC alone.

    `obs` has the corpus's columns and `source`. Cells have their barcodes as names, where these are unique over all sources, else
    "source:barcode". Raises InputError for a corpus of genes.
    """
    measured = measured_of_corpus(path)
    return Study(measured.obs, {"atac": measured}, {"atac": np.arange(measured.n_cells)})


def measured_of_corpus(path: str | Path) -> Measured:
    """The same as `Measured`."""
    corpus = Corpus.open(path)
    vocab = corpus.vocab
    if not isinstance(vocab, RegionVocab):
        raise InputError(
            f"{path}: is a corpus of genes ({', '.join(map(str, vocab.ids[:2]))}, …), not of ATAC. Give one that was built from "
            "files of peaks: expresser corpus build a_atac.h5ad --regions peaks.bed --out atac_corpus."
        )
    rows = np.empty(corpus.n_cells, np.int64)
    rows[corpus.cell_ids] = np.arange(corpus.n_cells)
    return Measured(StoredMatrix(corpus, rows), vocab.regions.to_frame(), _obs(corpus), str(path))


def _obs(corpus: Corpus) -> pd.DataFrame:
    """Named cells; text as str objects, missing text as None (as `translate.reading.plain_obs`)."""
    held = corpus.obs
    barcodes = held["barcode"].astype(object)
    index = pd.Index(barcodes, dtype=object)
    if not index.is_unique:
        index = pd.Index(held["source"].astype(str).str.cat(barcodes.astype(str), sep=":"), dtype=object)
    if not index.is_unique:
        again = index[index.duplicated()]
        raise InputError(
            f"{corpus.path}: {len(again):,} cells have the name of another cell of the same source (first: {again[0]!r}), but a "
            "cell needs a name of its own. Build the corpus of files whose barcodes are unique, or with --deduplicate."
        )
    columns = {
        key: held[key].astype(object).where(held[key].notna(), None)
        if isinstance(held[key].dtype, pd.CategoricalDtype)
        else held[key]
        for key in held.columns.drop("barcode")
    }
    return pd.DataFrame(columns).set_axis(index, axis=0)
