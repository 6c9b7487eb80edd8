"""Tasks on genes and pairs of genes: runs, what they say, their pages, and heads for new genes."""

from finetune.tasks.apply import apply_head
from finetune.tasks.genes import run_gene_task
from finetune.tasks.interactions import run_pair_task
from finetune.tasks.runs import TaskResult

__all__ = ["TaskResult", "apply_head", "run_gene_task", "run_pair_task"]
