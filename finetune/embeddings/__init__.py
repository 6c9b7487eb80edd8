"""The gene tables that are compared: files and models of any maker, and baselines made from counts."""

from finetune.embeddings.built_in import open_tables
from finetune.embeddings.reading import BUILT_IN, choose_vocab, read_table, split_spec
from finetune.embeddings.table import Common, GeneTable, common_genes

__all__ = [
    "BUILT_IN",
    "Common",
    "GeneTable",
    "choose_vocab",
    "common_genes",
    "open_tables",
    "read_table",
    "split_spec",
]
