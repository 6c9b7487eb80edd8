"""What is known of genes and pairs of genes, read from the files it comes in, with an account of all that is lost."""

from finetune.labels.constraint import read_constraint
from finetune.labels.dosage import read_dosage
from finetune.labels.gene_labels import GeneLabels
from finetune.labels.generic import read_gene_labels
from finetune.labels.pair_labels import PairLabels
from finetune.labels.pairs import read_pairs

__all__ = ["GeneLabels", "PairLabels", "read_constraint", "read_dosage", "read_gene_labels", "read_pairs"]
