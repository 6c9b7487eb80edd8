"""Cells of known depth for bench_step.py: three real data sets from EXPRESSER_DATA, or simulated ones of like lengths without it."""

import os
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from jaxtyping import Int64
from scipy import sparse

from expresser.corpus.build import build_corpus
from expresser.corpus.store import Corpus
from expresser.genes import GeneVocab

GENES = 18_483  # the paper's vocabulary
PAPER_LENGTH = 1_100  # genes of a cell that the paper's model takes
SIMULATED_CELLS = 400


@dataclass(frozen=True)
class Lengths:
    """Cells whose numbers of non-zero genes stand for a kind of experiment.

    Attributes
    ----------
    path
        Below EXPRESSER_DATA.
    what
        Protocol and tissue of the real cells.
    median, spread
        Of the log-normal numbers of genes that simulated cells have instead: the real ones' median, sd of the natural log.
    """

    path: str
    what: str
    median: float
    spread: float


LENGTHS = {
    "deep": Lengths("cite/pbmc_5k_protein_v3.h5ad", "10x v3 PBMC", 1_650, 0.35),
    "middle": Lengths("rna/pbmc3k.h5ad", "10x v1 PBMC", 800, 0.3),
    "shallow": Lengths("rna/snare_cellline_rna.h5ad", "SNARE-seq cell lines", 390, 0.45),
}


def corpus(name: str, folder: Path) -> Corpus:
    """The cells `name` as a corpus of the paper's vocabulary in `folder`, built if it is not there."""
    if (folder / "manifest.json").is_file():
        return Corpus.open(folder)
    data = os.environ.get("EXPRESSER_DATA")
    if data is None:
        return build_corpus([simulated(LENGTHS[name])], folder)
    return build_corpus([Path(data) / LENGTHS[name].path], folder, genes=vocabulary(Path(data)))


def vocabulary(data: Path) -> GeneVocab:
    """The 18,483 protein-coding genes that most cells of the three data sets show; HGNC knows more by now than the paper used."""
    every = GeneVocab.from_hgnc(data / "annotation" / "hgnc_complete_set.txt.gz")
    shown = np.zeros(len(every), dtype=np.int64)
    for lengths in LENGTHS.values():
        cells = anndata.read_h5ad(data / lengths.path)
        tokens = every.resolve(list(cells.var_names)).tokens
        n_cells = np.asarray((cells.X != 0).sum(0)).ravel()
        np.add.at(shown, tokens[tokens >= 0], n_cells[tokens >= 0])
    return every.take(np.sort(np.argsort(-shown, kind="stable")[:GENES]))


def simulated(lengths: Lengths, seed: int = 0) -> anndata.AnnData:
    """Cells with log-normal numbers of genes, drawn so that some genes are in most cells; counts geometric."""
    rng = np.random.default_rng(seed)
    per_cell = np.exp(rng.normal(np.log(lengths.median), lengths.spread, SIMULATED_CELLS))
    often = rng.lognormal(sigma=1.5, size=GENES)
    rows = []
    for n in np.clip(per_cell, 50, GENES // 3).astype(np.int64):
        chosen = np.sort(rng.choice(GENES, n, replace=False, p=often / often.sum()))
        rows.append(sparse.csr_matrix((rng.geometric(0.5, n).astype(np.float32), chosen, [0, n]), shape=(1, GENES)))
    names = [f"ENSG{i:011d}" for i in range(GENES)]
    return anndata.AnnData(sparse.vstack(rows, format="csr"), var=pd.DataFrame(index=names))


def described(name: str, cells: Corpus) -> dict[str, object]:
    """Where the cells are from and how many genes they show, for a result's line."""
    lengths: Int64[np.ndarray, " cells"] = np.asarray(cells.lengths, dtype=np.int64)
    low, middle, high = np.percentile(lengths, [5, 50, 95])
    real = "EXPRESSER_DATA" in os.environ
    return {
        "lengths": name,
        "cells_from": LENGTHS[name].what if real else f"simulated like {LENGTHS[name].what}",
        "cells_there": int(lengths.size),
        "genes_5_50_95": [round(low), round(middle), round(high)],
        "share_over_1100": round(float((lengths > PAPER_LENGTH).mean()), 3),
    }
