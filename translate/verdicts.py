"""Whether a model beats the baselines at a direction of translation, by scores inside features, and the same in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from translate.drawings import Picture

Said = Literal["beaten", "mixed", "not beaten"]

# Target modality -> (score of metrics.json, values of Picture.by_feature, value of chance), the first leading.
DECIDING: Mapping[str, tuple[tuple[str, str, float], ...]] = {
    "rna": (("pearson_gene", "pearson", 0.0),),
    "atac": (("auroc_peak", "auroc", 0.5), ("auprnorm_peak", "auprnorm", 0.0)),
    "protein": (("pearson_protein", "pearson", 0.0),),
}
_SCORES = {
    "pearson_flat": "r, all entries",
    "pearson_gene": "r by gene",
    "pearson_gene_median": "median r by gene",
    "pearson_protein": "r by protein",
    "pearson_protein_median": "median r by protein",
    "pearson_cell": "r by cell",
    "auroc_flat": "AUROC, all entries",
    "auprc_flat": "AUPR, all entries",
    "auroc_peak": "AUROC by peak",
    "auprnorm_peak": "AUPRnorm by peak",
    "auroc_cell": "AUROC by cell",
    "ece": "calibration error",
    "spread": "spread",
    "mae": "MAE",
    "rmse": "RMSE",
    "marker_auroc": "AUROC of markers",
    "pseudobulk_pearson": "r of pseudobulk",
    "pseudobulk_type_pearson": "r of type profiles",
    "foscttm": "FOSCTTM",
    "seconds": "seconds",
}
MODALITIES = {"rna": "RNA", "atac": "ATAC", "protein": "protein"}
FEATURES = {"rna": "genes", "atac": "peaks", "protein": "proteins"}


@dataclass(frozen=True)
class Verdict:
    """One model against one baseline in one direction."""

    direction: str
    model: str
    baseline: str
    said: Said
    scores: tuple[tuple[str, float, float], ...]  # (deciding score, the model's, the baseline's)
    share: (
        float | None
    )  # of the features in which the two differ, those where the model's first deciding score is higher
    n: int  # features compared

    def sentence(self) -> str:
        """In words and numbers."""
        verb = {"beaten": "beats", "mixed": "neither clearly beats nor loses to", "not beaten": "does not beat"}
        pairs = ", ".join(f"{score_name(s)} {_digits(a)} against {_digits(b)}" for s, a, b in self.scores)
        of = FEATURES[target(self.direction)]
        more = "" if self.share is None else f"; higher in {self.share:.0%} of {self.n:,} {of}"
        return f"{self.model} {verb[self.said]} {self.baseline} at {direction_name(self.direction)}: {pairs}{more}."


def verdicts(
    metrics: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Picture]], direction: str, model: str
) -> list[Verdict]:
    """The model against each baseline that has scores in this direction, the strongest first.

    beaten: every deciding score is higher on average over features, and the first is higher in more than half of them.
    not beaten: no deciding score is higher on average. Else mixed. A score that is undefined decides nothing, and where
    none is defined the two are mixed.
    """
    methods = metrics["methods"]
    if direction not in methods[model]:
        return []
    there = [name for name in metrics["baselines"] if name != model and direction in methods[name]]
    lead = DECIDING[target(direction)][0][0]
    there.sort(key=lambda name: -value(methods[name][direction], lead, missing=-np.inf))
    return [_verdict(methods, pictures, direction, model, name) for name in there]


def _verdict(
    methods: Mapping[str, Any],
    pictures: Mapping[str, Mapping[str, Picture]],
    direction: str,
    model: str,
    baseline: str,
) -> Verdict:
    deciding = DECIDING[target(direction)]
    scores = tuple(
        (s, value(methods[model][direction], s), value(methods[baseline][direction], s)) for s, _, _ in deciding
    )
    better = [a > b for _, a, b in scores if not np.isnan([a, b]).any()]
    share, n = _share(pictures, direction, model, baseline)
    said: Said = "mixed"
    if better and all(better) and (share is None or share > 0.5):
        said = "beaten"
    elif better and not any(better):
        said = "not beaten"
    return Verdict(direction, model, baseline, said, scores, share, n)


def _share(
    pictures: Mapping[str, Mapping[str, Picture]], direction: str, model: str, baseline: str
) -> tuple[float | None, int]:
    """Share of the features that differ where the model is higher, and how many features were compared."""
    _, key, chance = DECIDING[target(direction)][0]
    both = [pictures.get(name, {}).get(direction) for name in (model, baseline)]
    if both[0] is None or both[1] is None:
        return None, 0
    a, b = (picture.by_feature[key].astype(float) for picture in both if picture is not None)
    compared = ~(np.isnan(a) & np.isnan(b))
    # Undefined for one of the two only: it gives every cell the same value, which is what chance is.
    a, b = (np.where(np.isnan(x), chance, x)[compared] for x in (a, b))
    differ = a != b
    return (float((a > b)[differ].mean()) if differ.any() else None), int(compared.sum())


def summary_sentences(found: Mapping[str, list[Verdict]], model: str) -> list[str]:
    """For each direction, in words: whether the model beats the baselines at large. `found`: direction -> verdicts."""
    lines = []
    for direction, of in found.items():
        name = heading(direction)
        beaten = [v.baseline for v in of if v.said == "beaten"]
        others = [v.baseline for v in of if v.said != "beaten"]
        if not of:
            lines.append(f"{name}: no baseline was run, so nothing can be said of {model}.")
        elif not others:
            count = "the one baseline" if len(of) == 1 else f"every one of the {len(of)} baselines"
            lines.append(f"{name}: {model} beats {count}.")
        else:
            lines.append(
                f"{name}: {model} does not beat all baselines: it beats {len(beaten)} of {len(of)}, but not "
                f"{', '.join(others)}."
            )
    return lines


def target(direction: str) -> str:
    """The modality predicted: "rna" of "atac_to_rna"."""
    return direction.rpartition("_to_")[2]


def direction_name(direction: str) -> str:
    """ "RNA from ATAC", "protein from RNA": inside a sentence."""
    source, _, to = direction.rpartition("_to_")
    return f"{MODALITIES.get(to, to)} from {MODALITIES.get(source, source)}"


def heading(direction: str) -> str:
    """ "RNA from ATAC", "Protein from RNA": where it begins a heading or a sentence."""
    name = direction_name(direction)
    return name[:1].upper() + name[1:]


def score_name(score: str) -> str:
    """A score as a page calls it."""
    return _SCORES.get(score, score.replace("_", " "))


def value(scores: Mapping[str, Any], name: str, *, missing: float = float("nan")) -> float:
    """A score; what is absent, None or NaN is `missing`, and what is zero but for rounding is zero."""
    found = scores.get(name)
    if found is None or np.isnan(found):
        return missing
    return float(found) if abs(found) > 1e-12 else 0.0


def _digits(number: float) -> str:
    return "undefined" if np.isnan(number) else f"{number:.3f}"
