"""The core: genes, corpora, the Expression Transformer, checkpoints, embedding, imputation, reports."""

__version__ = "0.1.0"
