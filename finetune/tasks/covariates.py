"""What may explain a property of genes trivially, such as their length: as tables to beat, and held constant."""

from dataclasses import replace

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64

from finetune.labels import GeneLabels

# What a covariate is called where it stands in the result as a table of its own.
COVARIATES = {"cds_length": "length", "exp_lof": "expected"}


def plain_covariates(labels: GeneLabels) -> GeneLabels:
    """Covariates under the names of the result; logarithms are left to `covariate_features`."""
    plain = [name for name in labels.covariates.columns if not str(name).startswith("log_")]
    return replace(labels, covariates=labels.covariates[plain].rename(columns=COVARIATES))


def partial_correlation(
    truth: Float64[np.ndarray, " genes"],
    prediction: Float64[np.ndarray, " genes"],
    given: Float64[np.ndarray, "genes covariates"],
) -> float:
    """Pearson r of what least squares on the covariates leaves of both; NaN where that leaves nothing of either."""
    design = np.column_stack([np.ones(len(truth)), given])
    left = []
    for values in (truth, prediction):
        rest = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
        if np.linalg.norm(rest) <= 1e-6 * np.linalg.norm(values - values.mean()):
            return float("nan")
        left.append(rest)
    a, b = left
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def covariate_features(values: pd.Series) -> Float32[np.ndarray, "genes 3"]:
    """A covariate as it is, its root and its logarithm: for a linear head not to lose by the scale alone."""
    x = values.to_numpy(dtype=np.float64)
    return np.column_stack([x, np.sqrt(np.maximum(x, 0)), np.log1p(np.maximum(x, 0))]).astype(np.float32)


def given_covariates(truth: np.ndarray, prediction: np.ndarray, rows: np.ndarray, *, covariates: np.ndarray) -> float:
    """`partial_correlation` as a score of some rows, with covariates of all rows."""
    return partial_correlation(
        truth.astype(np.float64), prediction.astype(np.float64), covariates[rows].astype(np.float64)
    )
