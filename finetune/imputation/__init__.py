"""The imputation task: hidden expression restored by a model and by the baselines that must be beaten."""

from finetune.imputation.task import run_imputation

__all__ = ["run_imputation"]
