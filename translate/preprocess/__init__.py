"""What the networks see of each modality: fitted once on training cells, then the same for any cell, one by one."""

from translate.preprocess.atac import AtacInput, AtacRecipe
from translate.preprocess.protein import ProteinInput
from translate.preprocess.rna import RnaInput, RnaRecipe

__all__ = ["AtacInput", "AtacRecipe", "ProteinInput", "RnaInput", "RnaRecipe"]
