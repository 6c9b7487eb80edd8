"""The annotation task: cell types from cell embeddings, and the classifier it leaves behind."""

from finetune.annotation.apply import annotate
from finetune.annotation.task import AnnotationResult, run_annotation

__all__ = ["AnnotationResult", "annotate", "run_annotation"]
