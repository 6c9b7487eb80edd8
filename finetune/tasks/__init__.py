"""Tasks on genes and pairs of genes: runs, what they say, their pages, and heads for new genes."""

from finetune.tasks.apply import apply_head
from finetune.tasks.genes import GeneTaskResult, run_gene_task
from finetune.tasks.interactions import PairTaskResult, run_pair_task

__all__ = ["GeneTaskResult", "PairTaskResult", "apply_head", "run_gene_task", "run_pair_task"]
