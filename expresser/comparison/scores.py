"""The scores that a comparison shows of each kind of run: their keys in metrics.json, their names, which way is better."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from expresser.report import Best


@dataclass(frozen=True)
class Score:
    """A score by its key in metrics.json; best None: neither way is better."""

    key: str
    name: str
    best: Best | None = "max"


_REGRESSION = (
    Score("pearson", "r"),
    Score("spearman", "rho"),
    Score("r2", "R²"),
    Score("mae", "MAE", "min"),
)

HELD_OUT = (Score("mae", "MAE", "min"), Score("mse", "MSE", "min"), Score("pearson", "r"))

# Of a direction of translation, by the modality it goes to.
TRANSLATION: Mapping[str, tuple[Score, ...]] = {
    "rna": (
        Score("pearson_gene", "r by gene"),
        Score("pearson_flat", "r, all entries"),
        Score("pearson_cell", "r by cell"),
        Score("mae", "MAE", "min"),
        Score("rmse", "RMSE", "min"),
        Score("marker_auroc", "AUROC of markers"),
        Score("de_auprc", "AUPR of differential genes"),
        Score("pseudobulk_type_pearson", "r of type profiles"),
    ),
    "atac": (
        Score("auroc_peak", "AUROC by peak"),
        Score("auprnorm_peak", "AUPRnorm by peak"),
        Score("auroc_flat", "AUROC, all entries"),
        Score("auroc_cell", "AUROC by cell"),
        Score("ece", "calibration error", "min"),
        Score("pseudobulk_type_pearson", "r of type profiles"),
    ),
    "protein": (
        Score("pearson_protein", "r by protein"),
        Score("pearson_flat", "r, all entries"),
        Score("pearson_cell", "r by cell"),
        Score("mae", "MAE", "min"),
        Score("rmse", "RMSE", "min"),
        Score("pseudobulk_type_pearson", "r of type profiles"),
    ),
}
ALIGNMENT = (
    Score("foscttm", "FOSCTTM", "min"),
    Score("closest_jaccard", "closest cells shared"),
    Score("mixing", "mixing"),
    Score("transfer_rna_to_atac", "labels, RNA to ATAC"),
    Score("transfer_atac_to_rna", "labels, ATAC to RNA"),
    Score("ari", "ARI"),
    Score("ami", "AMI"),
    Score("silhouette", "silhouette of types"),
)
EMBEDDING = (
    Score("ari", "ARI"),
    Score("nmi", "NMI"),
    Score("silhouette", "silhouette"),
    Score("ari_best", "best ARI"),
    Score("f1", "mean F1 of types"),
    Score("rarest_f1", "F1, rarest type"),
    Score("mi_depth", "I(z, depth)", "min"),
    Score("mi_batch", "I(z, batch)", "min"),
    Score("mixing", "batches, off even", "min"),
    Score("n_clusters", "clusters", None),
)
GENES: Mapping[str, tuple[Score, ...]] = {
    "binary": (
        Score("auroc", "AUROC"),
        Score("auprc", "AUPRC"),
        Score("balanced_accuracy", "balanced accuracy"),
        Score("accuracy", "accuracy"),
        Score("brier", "Brier score", "min"),
    ),
    "multiclass": (
        Score("balanced_accuracy", "balanced accuracy"),
        Score("macro_f1", "macro F1"),
        Score("accuracy", "accuracy"),
    ),
    "regression": _REGRESSION,
}
ANNOTATION = (
    Score("macro_f1", "macro F1"),
    Score("balanced_accuracy", "balanced accuracy"),
    Score("accuracy", "accuracy"),
)
IMPUTATION: Mapping[str, tuple[Score, ...]] = {
    "dropout": (
        Score("mae", "MAE", "min"),
        Score("rmse", "RMSE", "min"),
        Score("pearson", "r"),
        Score("pearson_gene", "r by gene"),
        Score("pearson_cell", "r by cell"),
    ),
    "mcv": (
        Score("poisson", "Poisson loss", "min"),
        Score("mse", "MSE", "min"),
        Score("mse_plain", "MSE plain", "min"),
        Score("pearson", "r"),
        Score("pearson_gene", "r by gene"),
    ),
}
# Of all tables: what is a number in every run that has it.
KEYS = frozenset(
    score.key
    for table in (
        HELD_OUT,
        ALIGNMENT,
        EMBEDDING,
        ANNOTATION,
        *TRANSLATION.values(),
        *GENES.values(),
        *IMPUTATION.values(),
    )
    for score in table
)


def known(columns: Iterable[Score], of: Mapping[str, Mapping[str, Any]]) -> tuple[Score, ...]:
    """Those of the columns that any method has a number for."""
    return tuple(c for c in columns if any(isinstance(scores.get(c.key), int | float) for scores in of.values()))
