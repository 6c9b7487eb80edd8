"""How well held-out cells are predicted: expression, open chromatin or protein, streamed block by block."""

from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
from jaxtyping import Float
from scipy import sparse

from expresser.errors import InputError
from expresser.metrics.accessibility import ScoreHistogram, auroc_by_prevalence, cell_scores, peak_scores
from expresser.metrics.expression import ExpressionScores
from translate.drawings import Picture
from translate.leaving_out import LeaveOut
from translate.markers import differential_scores, rank_sums
from translate.predicted import Predicted
from translate.truth import Points, Profiles, Truth

Score: TypeAlias = float | int
FIFTHS = 5  # of the peaks, by how often they are open
BUDGET_MB = 64.0  # of a block of predictions; three to five times as much is in use while it is scored


Scored: TypeAlias = tuple[dict[str, Score], Picture]


def score_rna(predicted: Predicted, truth: Truth, *, budget_mb: float = BUDGET_MB, seed: int = 0) -> Scored:
    """Scores of predicted expression, both on the scale ``ln(1 + size-normalised count)``, and what figures need.

    pearson_flat    over all entries: mostly that some genes are high everywhere; a training mean gets most of it
    pearson_gene    mean over genes of r inside the gene, over cells: the figure to look at. A gene whose truth varies and
                    whose prediction does not counts as 0 (`genes_constant` of them): it says nothing of the cells, and
                    leaving it out would flatter a collapsed model. Genes whose truth is constant in the test cells have no
                    r (`genes_undefined`). pearson_gene_median is the median of the same genes.
    pearson_cell    mean over cells of r inside the cell, over genes
    mae, rmse       over all entries
    pseudobulk_pearson       r over genes of the means over all test cells
    pseudobulk_type_pearson  mean over cell types of the r over genes of the type's mean less that of all test cells
    marker_auroc    mean over cell types of the AUROC with which predicted expression of the type's markers (by the measured
                    values, `find_markers`) tells its cells; marker_auroc_truth is that of measured expression, which noise
                    lowers: smooth predictions that know the type exceed it
    de_auprc        mean over cell types of the average precision with which genes that are higher in the type (measured
                    values, one-sided rank sum, FDR 0.01) come first when genes are ranked by the same statistic of the
                    predicted values (Polarbear's); de_auprc_chance is what any order of the genes gets
    pseudobulk_type_pearson, marker_auroc and de_auprc need `truth.types`.
    """
    scores, picture = _score_values(predicted, truth, "gene", budget_mb, seed)
    if picture.differential is not None:
        scores |= picture.differential.scores()
    if picture.markers is not None:
        means = picture.markers.groupby("label")[["auroc", "auroc_truth"]].mean().mean()
        scores |= {"marker_auroc": float(means["auroc"]), "marker_auroc_truth": float(means["auroc_truth"])}
        scores["markers"] = len(picture.markers)
    return scores, picture


def score_protein(predicted: Predicted, truth: Truth, *, budget_mb: float = BUDGET_MB, seed: int = 0) -> Scored:
    """Scores of predicted protein, both CLR: as `score_rna`, with pearson_protein for pearson_gene, without markers."""
    return _score_values(predicted, truth, "protein", budget_mb, seed)


def score_atac(predicted: Predicted, truth: Truth, *, budget_mb: float = BUDGET_MB, seed: int = 0) -> Scored:
    """Scores of predicted accessibility, any score that is higher for more open, and what figures need.

    auroc_flat, auprc_flat   over all entries (`ScoreHistogram`): mostly that some peaks are open everywhere
    auroc_peak, auprnorm_peak   means over the peaks that are open in some test cell and closed in another, of AUROC and
                    (average precision - prevalence) / (1 - prevalence) inside the peak: the figures to look at; 0.5 and 0
                    are chance. `peaks_undefined` of `n_peaks` have no scores.
    auroc_peak_fifth_1 … _5   median AUROC of the fifth of those peaks that is open in the fewest test cells, … in the most;
                    NaN for a fifth that ties leave empty. A model that is good at common peaks only shows here.
    auroc_cell      mean over cells of the AUROC inside the cell, over peaks
    ece             expected calibration error in 20 bins of equal size; NaN where scores are not probabilities
    mean_ratio      mean predicted / mean observed, over all entries: 1 where probabilities are right in the large (not above
                    or below by a factor); NaN where scores are not probabilities, or where nothing is open
    spread          mean over peaks of the standard deviation over cells of the score, in its own unit: near 0 where a model
                    gives every cell the same answer; peaks_constant counts peaks with one score throughout
    pseudobulk_pearson, pseudobulk_type_pearson   as in `score_rna`

    Predictions are asked for twice: by blocks of peaks over all cells, and of cells over all peaks.
    """
    _check(predicted, truth)
    histogram, profiles, without = ScoreHistogram(), Profiles(truth), LeaveOut.of(truth, seed=seed)
    auroc, norm, spread, constant = (np.full(truth.n_features, np.nan) for _ in range(4))
    for peaks in cuts(truth.n_features, truth.n_cells, budget_mb):
        score, opened = predicted.block(slice(0, truth.n_cells), peaks), truth.by_feature[:, peaks]
        histogram.update(opened, score)
        ranks = peak_scores(opened, score)
        auroc[peaks], norm[peaks] = ranks.auroc, ranks.auprnorm
        spread[peaks] = score.std(axis=0, dtype=np.float64)
        constant[peaks] = np.ptp(score, axis=0) <= 1e-6 * np.abs(score).max(axis=0)
        profiles.add(peaks, opened, score)
        without.add_opened(peaks, opened, score)
    by_cell, values = np.full(truth.n_cells, np.nan), sparse.csr_matrix(truth.values)
    for cells in cuts(truth.n_cells, truth.n_features, budget_mb):
        score = predicted.block(cells, slice(0, truth.n_features))
        by_cell[cells] = cell_scores(values[cells], score).auroc
    probability = histogram.is_probability()
    observed, guessed = profiles.whole.mean(axis=1, dtype=np.float64)
    by_rate = auroc_by_prevalence(auroc, profiles.whole[0], FIFTHS).set_index("bin")["median"]
    scores: dict[str, Score] = {
        "auroc_flat": histogram.auroc(),
        "auprc_flat": histogram.auprc(),
        "auroc_peak": _mean(auroc),
        "auprnorm_peak": _mean(norm),
        **{f"auroc_peak_fifth_{i}": float(by_rate.get(i, np.nan)) for i in range(1, FIFTHS + 1)},
        "auroc_cell": _mean(by_cell),
        "ece": histogram.ece() if probability else float("nan"),
        "mean_ratio": float(guessed / observed) if probability and observed > 0 else float("nan"),
        "spread": _mean(spread),
        **profiles.scores(),
        "n_cells": truth.n_cells,
        "n_peaks": truth.n_features,
        "peaks_undefined": int(np.isnan(auroc).sum()),
        "peaks_constant": int(constant.sum()),
    }
    return scores, Picture(
        by_feature={k: v.astype(np.float32) for k, v in (("auroc", auroc), ("auprnorm", norm), ("spread", spread))},
        pseudobulk=profiles.whole,
        curves={"roc": histogram.roc(), "pr": histogram.precision_recall()},
        calibration=histogram.calibration() if probability else None,
        without=without.means(),
    )


def score(predicted: Predicted, truth: Truth, *, budget_mb: float = BUDGET_MB, seed: int = 0) -> Scored:
    """`score_rna`, `score_atac` or `score_protein`, by what was predicted."""
    scorer = {"rna": score_rna, "atac": score_atac, "protein": score_protein}[truth.to]
    return scorer(predicted, truth, budget_mb=budget_mb, seed=seed)


def _score_values(predicted: Predicted, truth: Truth, feature: str, budget_mb: float, seed: int) -> Scored:
    _check(predicted, truth)
    sums = ExpressionScores(truth.n_features, truth.n_cells)
    profiles, points, markers = Profiles(truth), Points.of(truth, seed=seed), None
    without = LeaveOut.of(truth, seed=seed)
    if feature == "gene" and truth.types is not None:
        markers = truth.markers.assign(auroc=np.nan)
        z = np.zeros(truth.differences.z.shape, np.float32)
    for features in cuts(truth.n_features, truth.n_cells, budget_mb):
        measured = truth.block(slice(0, truth.n_cells), features)
        guess = predicted.block(slice(0, truth.n_cells), features)
        sums.update_block(truth=measured, prediction=guess, first_gene=features.start)
        profiles.add(features, measured, guess)
        points.add(features, measured, guess)
        without.add_values(features, measured, guess)
        if markers is not None and truth.types is not None:
            here = markers[(markers.gene >= features.start) & (markers.gene < features.stop)]
            found = rank_sums(guess, truth.types)
            z[:, features] = found.z
            row = [truth.types.names.index(name) for name in here.label]
            markers.loc[here.index, "auroc"] = found.auroc[row, here.gene - features.start]
    whole, by_feature = sums.compute(), sums.per_gene()
    flat, guessed_flat = sums.constant_genes()
    # A gene that varies, predicted by one number: no correlation of its own, but no knowledge of the cells either.
    counted = np.where(guessed_flat & ~flat, 0.0, by_feature)
    counted = counted[~np.isnan(counted)]
    scores: dict[str, Score] = {
        "pearson_flat": whole["pearson"],
        f"pearson_{feature}": _mean(counted),
        f"pearson_{feature}_median": float(np.median(counted)) if counted.size else float("nan"),
        "pearson_cell": whole["pearson_cell"],
        "mae": whole["mae"],
        "rmse": whole["rmse"],
        **profiles.scores(),
        "n_cells": truth.n_cells,
        f"n_{feature}s": truth.n_features,
        f"{feature}s_undefined": truth.n_features - counted.size,
        f"{feature}s_constant": int((guessed_flat & ~flat).sum()),
    }
    return scores, Picture(
        by_feature={"pearson": by_feature.astype(np.float32)},
        pseudobulk=profiles.whole,
        points=points.pairs,
        without=without.means(),
        markers=markers,
        differential=None if markers is None else differential_scores(truth.differences, z),
    )


def _check(predicted: Predicted, truth: Truth) -> None:
    its, wanted = (
        (predicted.to, predicted.n_cells, predicted.n_features),
        (truth.to, truth.n_cells, truth.n_features),
    )
    if its != wanted:
        raise InputError(
            f"scores: predicted is {its[0]} of {its[1]:,} cells x {its[2]:,} features, the truth {wanted[0]} of "
            f"{wanted[1]:,} x {wanted[2]:,}. Predict the cells and features of the truth."
        )
    if not truth.n_cells or not truth.n_features:
        raise InputError(
            f"scores: there are {truth.n_cells} cells and {truth.n_features} features. Score at least one."
        )


def cuts(size: int, across: int, budget_mb: float) -> Iterator[slice]:
    """Slices of `size`, so wide that float32 blocks with `across` entries the other way keep to the budget."""
    width = max(1, int(budget_mb * 2**20 / (4 * max(across, 1))))
    return (slice(first, min(first + width, size)) for first in range(0, size, width))


def _mean(values: Float[np.ndarray, " values"]) -> float:
    """Mean of what is defined; NaN, silently, of nothing."""
    defined = values[~np.isnan(values)]
    return float(defined.mean(dtype=np.float64)) if defined.size else float("nan")
