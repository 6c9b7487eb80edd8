"""What the figures of an evaluation need, of every method and direction: arrays and small tables, and nothing that computes."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from jaxtyping import Float32, Float64, Shaped

from translate.markers import DifferentialScores


@dataclass(frozen=True, eq=False)
class Picture:
    """What figures need of one method in one direction."""

    # One value a feature, NaN where undefined. rna, protein: "pearson"; atac: "auroc", "auprnorm", "spread" (sd over cells)
    by_feature: Mapping[str, Float32[np.ndarray, " features"]]
    # Means over the test cells of each feature: truth, prediction
    pseudobulk: Float32[np.ndarray, "2 features"]
    # Truth and prediction of at most 100,000 random entries, the same for every method (rna, protein); None for atac
    points: Float32[np.ndarray, "2 points"] | None = None
    # atac: "roc" (false positive rate, true positive rate), "pr" (recall, precision); at most 500 points each
    curves: Mapping[str, Float64[np.ndarray, "2 points"]] | None = None
    # atac, where scores are probabilities: columns n, predicted (mean), observed (share open); a row a bin of equal n
    calibration: pd.DataFrame | None = None
    # Mean over features of the deciding scores ("pearson"; "auroc", "auprnorm") without each group of test cells
    # (`translate.leaving_out`), from which verdicts have their intervals
    without: Mapping[str, Float64[np.ndarray, " groups"]] = field(default_factory=dict)
    # rna, where labels were given: columns label, gene, auroc (of the prediction, that type against the rest), auroc_truth
    markers: pd.DataFrame | None = None
    # rna, where labels were given: precision-recall of differential expression of each type
    differential: DifferentialScores | None = None


@dataclass(frozen=True, eq=False)
class Joint:
    """Cells of RNA, then cells of ATAC, in one space."""

    points: Float32[np.ndarray, "cells latent"]
    modality: Shaped[np.ndarray, " cells"]  # "rna" or "atac"
    labels: pd.Series | None  # a row a cell, its name the column's


@dataclass(frozen=True, eq=False)
class Drawings:
    """What the figures of a report need; all of the test cells, in the order of `obs`."""

    obs: pd.DataFrame  # the test cells: cell types and the like to colour by
    features: Mapping[str, pd.Index]  # direction ("atac_to_rna") -> names of what was predicted
    pictures: Mapping[str, Mapping[str, Picture]]  # method -> direction -> its picture
    # method -> space (the modality whose latent it is) -> cells of both modalities in it
    joint: Mapping[str, Mapping[str, Joint]] = field(default_factory=dict)
    # method -> space -> share of closer cells, either direction, of each cell
    foscttm: Mapping[str, Mapping[str, Float64[np.ndarray, "2 cells"]]] = field(default_factory=dict)
