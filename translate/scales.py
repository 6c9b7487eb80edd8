"""The scale that predictions are on: measured cells brought to it, names of features, directions by name."""

import pandas as pd
from scipy import sparse

from expresser.errors import InputError
from translate.components import Values
from translate.feed import Input
from translate.preprocess import AtacInput, RnaInput
from translate.study import Measured, Modality


def ends(direction: str) -> tuple[Modality, Modality]:
    """Source and target modality of a direction such as "atac_to_rna"."""
    match direction.split("_to_"):
        case ["rna" | "atac" | "protein" as source, "rna" | "atac" | "protein" as to] if source != to:
            return source, to
    raise InputError(f"direction {direction!r}: write source_to_target, of rna, atac and protein, such as atac_to_rna.")


def values_of(inputs: Input, measured: Measured) -> Values:
    """Measured cells on the scale predictions are on: rna ``ln(1 + count * median / library)``, atac 0/1, protein CLR."""
    aligned = inputs.align(measured)
    return sparse.csr_matrix(inputs.targets(aligned).log1p()) if isinstance(inputs, RnaInput) else aligned


def feature_names(inputs: Input) -> pd.Index:
    """Names of a model's features, in their order."""
    return pd.Index(inputs.regions.names()) if isinstance(inputs, AtacInput) else inputs.var.index
