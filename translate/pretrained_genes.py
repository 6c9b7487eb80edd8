"""The genes of a pretrained model, and which of them each gene of a translator is."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int64
from scipy import sparse

from expresser.errors import InputError
from expresser.genes import COLUMNS, GeneVocab
from expresser.model.configuration import configuration_of
from translate.large import by_rows
from translate.study import DataWarning, Measured

# Shares of the genes that a translator was fitted with: below the first a file gets a warning, below the second it is refused.
ENOUGH, TOO_FEW = 0.8, 0.2


@dataclass(frozen=True, eq=False)
class PretrainedGenes:
    """What the shapes of a translator's layers, and the reading of cells, need to know of a pretrained Expresser.

    tokens: row of the model's gene table for each gene of the translator, -1 for a gene that it does not know. vocab: all its genes,
    kept where whole cells are read (`translate.bridge.Bridge.reads_cells`). It is saved with the translator.
    """

    model: Mapping[str, Any]  # the configuration, as its config.json has it
    tokens: Int64[np.ndarray, " genes"] = field(repr=False)
    vocab: GeneVocab | None = field(default=None, repr=False)
    read: int = (
        0  # of the model's genes, those of the file that the translator was fitted to, where whole cells are read
    )

    @classmethod
    def of(
        cls, model: Mapping[str, Any], vocab: GeneVocab, var: pd.DataFrame, given: pd.DataFrame, *, reads_cells: bool
    ) -> "PretrainedGenes":
        """var: the translator's genes, given: those of the file, with columns ensembl_id and symbol."""
        if not reads_cells:
            return cls(model, tokens_of(vocab, var))
        return cls(model, tokens_of(vocab, var), vocab, _n_found(tokens_of(vocab, given)))

    @property
    def dims(self) -> int:
        """Numbers a gene, and a cell, is embedded in."""
        return int(self.model["d_model"])

    @property
    def known(self) -> Bool[np.ndarray, " genes"]:
        """Which genes of the translator the model knows."""
        return self.tokens >= 0

    def counts(self, measured: Measured) -> sparse.csr_matrix:
        """Raw counts over the model's genes, all those of the file and not the translator's alone: cells x vocabulary, float32.

        Raises InputError where the file has less than a fifth of those that the fit had, and warns at less than four fifths.
        """
        if self.vocab is None:
            raise ValueError("the vocabulary was not kept: this translator reads no whole cells.")
        tokens = tokens_of(self.vocab, measured.var)
        if (n := _n_found(tokens)) < ENOUGH * self.read:
            said = (
                f"{measured.name}: it has {n:,} of the pretrained model's genes, and the cells that the translator was fitted to had "
                f"{self.read:,}. Cell embeddings are of all of them: give all genes of the file, not a selection, with Ensembl ids."
            )
            if n < TOO_FEW * self.read:
                raise InputError(said)
            warnings.warn(said, DataWarning, stacklevel=2)
        known = tokens >= 0
        pointers = np.concatenate([[0], np.cumsum(known)])
        ones = np.ones(int(known.sum()), np.float32)
        onto = sparse.csr_matrix((ones, tokens[known], pointers), shape=(len(tokens), len(self.vocab)))

        def carried(rows: sparse.csr_matrix) -> sparse.csr_matrix:
            counts = (rows @ onto).tocsr().astype(np.float32, copy=False)
            counts.sort_indices()
            return counts

        return by_rows(measured.loaded().matrix, carried)

    def saved(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays, and settings for JSON."""
        settings: dict[str, Any] = {"model": dict(self.model)}
        if self.vocab is not None:
            table = self.vocab.table
            settings["read"] = self.read
            settings["vocab"] = {c: table[c].astype(object).where(table[c].notna(), None).tolist() for c in COLUMNS}
        return {"tokens": self.tokens}, settings

    @classmethod
    def restored(cls, arrays: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> "PretrainedGenes":
        """From what `saved` gave."""
        vocab = None
        if told := settings.get("vocab"):
            table = pd.DataFrame(
                {c: pd.array(told[c], dtype="Int64" if c in ("start", "end") else object) for c in COLUMNS}
            )
            vocab = GeneVocab(table, where="the pretrained model's genes")
        model = {key: value for key, value in settings["model"].items() if "attn_implementation" not in key}
        if lacking := {"d_model", "vocab_size"} - model.keys():
            raise ValueError(f"the pretrained model's record lacks {min(lacking)}")
        size, tokens = configuration_of(model, "the pretrained model").vocab_size, arrays["tokens"]
        if vocab is not None and len(vocab) != size:
            raise ValueError("the pretrained model's vocabulary is another model's")
        if (
            tokens.dtype != np.int64
            or tokens.ndim != 1
            or (len(tokens) and not -1 <= tokens.min() <= tokens.max() < size)
        ):
            raise ValueError(f"tokens are no rows of the pretrained model's table of {size:,}")
        return cls(model, tokens, vocab, int(settings.get("read", 0)))


def _n_found(tokens: Int64[np.ndarray, " genes"]) -> int:
    return len(np.unique(tokens[tokens >= 0]))


def tokens_of(vocab: GeneVocab, var: pd.DataFrame) -> Int64[np.ndarray, " genes"]:
    """Row in the vocabulary of each gene, -1 for none: by Ensembl id; by symbol, else name, only where a gene has no id."""
    ids, symbols = (var[column].astype(str).to_numpy(object) for column in ("ensembl_id", "symbol"))
    names = np.where(ids != "", ids, np.where(symbols != "", symbols, var.index.to_numpy(object)))
    return vocab.resolve(names).tokens
