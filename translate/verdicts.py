"""Whether a model beats the baselines at a direction of translation, with the interval that says so, and the same in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from translate.drawings import Picture
from translate.leaving_out import Interval, interval

Said = Literal["beats", "on a par", "behind", "undecided"]  # the model, to the baseline

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
    "mean_ratio": "predicted / observed",
    "spread": "spread",
    "mae": "MAE",
    "rmse": "RMSE",
    "marker_auroc": "AUROC of markers",
    "de_auprc": "AUPR of differential genes",
    "de_auprc_chance": "AUPR by chance",
    "pseudobulk_pearson": "r of pseudobulk",
    "pseudobulk_type_pearson": "r of type profiles",
    "foscttm": "FOSCTTM",
    "foscttm_from_rna": "FOSCTTM from RNA",
    "foscttm_from_atac": "FOSCTTM from ATAC",
    "closest_jaccard": "closest cells shared",
    "mixing": "mixing",
    "mixing_best": "mixing, at most",
    "ari": "ARI",
    "ami": "AMI",
    "silhouette": "silhouette of types",
    "cosine_within": "cosine distance in a type",
    "cosine_between": "cosine distance of types",
    "transfer_rna_to_atac": "labels, RNA to ATAC",
    "transfer_atac_to_rna": "labels, ATAC to RNA",
    "transfer_by_chance": "labels by chance",
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
    intervals: tuple[Interval | None, ...]  # of the difference in each of these scores, model - baseline
    # Of the features in which the two differ, those where the model's first deciding score is higher
    share: float | None
    n: int  # features compared

    def sentence(self) -> str:
        """In words and numbers."""
        verb = {
            "beats": "beats",
            "on a par": "is on a par with",
            "behind": "is behind",
            "undecided": "cannot be compared with",
        }
        pairs = ", ".join(
            f"{score_name(s)} {_digits(a)} against {_digits(b)}"
            + ("" if found is None else f" (difference {interval_text(found)})")
            for (s, a, b), found in zip(self.scores, self.intervals, strict=True)
        )
        of = FEATURES[target(self.direction)]
        more = "" if self.share is None else f"; higher in {self.share:.0%} of {self.n:,} {of}"
        return f"{self.model} {verb[self.said]} {self.baseline} at {direction_name(self.direction)}: {pairs}{more}."


def verdicts(
    metrics: Mapping[str, Any], pictures: Mapping[str, Mapping[str, Picture]], direction: str, model: str
) -> list[Verdict]:
    """The model against each baseline that has scores in this direction, the strongest first.

    Judged by the 95 % interval of the difference in each deciding score, a mean over features, with other test cells
    (`translate.leaving_out`). beats: the interval of the first score is above 0, and no other one below. behind: the first
    is below 0, and no other one above. on a par: neither, so a difference of this size may be an accident of these cells,
    or the scores contradict each other. undecided: the first score has no interval (too few cells, or undefined).
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
    mine, its = (pictures[name][direction].without if name in pictures else {} for name in (model, baseline))
    intervals = tuple(interval(a - b, mine, its, key) for (_, a, b), (_, key, _) in zip(scores, deciding, strict=True))
    share, n = _share(pictures, direction, model, baseline)
    return Verdict(direction, model, baseline, _said(intervals), scores, intervals, share, n)


def _said(intervals: tuple[Interval | None, ...]) -> Said:
    first = intervals[0]
    if first is None:
        return "undecided"
    there = [found for found in intervals if found is not None]
    above, below = any(found.low > 0 for found in there), any(found.high < 0 for found in there)
    if first.low > 0 and not below:
        return "beats"
    return "behind" if first.high < 0 and not above else "on a par"


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
        beaten = [v.baseline for v in of if v.said == "beats"]
        if not of:
            lines.append(f"{name}: no baseline was run, so nothing can be said of {model}.")
        elif len(beaten) == len(of):
            count = "the one baseline" if len(of) == 1 else f"every one of the {len(of)} baselines"
            lines.append(f"{name}: {model} beats {count}.")
        else:
            words = {"on a par": "on a par with", "behind": "behind", "undecided": "not comparable with"}
            parts = [
                f"{how} {', '.join(names)}"
                for said, how in words.items()
                if (names := [v.baseline for v in of if v.said == said])
            ]
            lines.append(
                f"{name}: {model} does not beat all baselines: it beats {len(beaten)} of {len(of)}, and is "
                f"{' and '.join(parts)}."
            )
    return lines


def in_training_sentence(metrics: Mapping[str, Any]) -> str:
    """That scores flatter the model, where test cells trained it."""
    return (
        f"{metrics['in_training']:,} of the {metrics['cells']['test']:,} test cells have the names of cells that the model "
        "was fitted to: if they are those cells, these scores flatter it. Give other cells, or --split-of with the folder "
        "of the fit."
    )


def differences(said: Sequence[Verdict]) -> dict[str, dict[str, dict[str, float] | None]]:
    """baseline -> deciding score -> difference, low and high, for metrics.json; None where there is no interval."""
    return {
        v.baseline: {
            score: None if found is None else {"difference": found.difference, "low": found.low, "high": found.high}
            for (score, _, _), found in zip(v.scores, v.intervals, strict=True)
        }
        for v in said
    }


def interval_text(found: Interval) -> str:
    """ "+0.012 to +0.034"; more digits where these would hide on which side of 0 an end lies."""
    ends = (found.low, found.high)
    digits = 4 if any(0 < abs(end) < 0.0005 for end in ends) else 3
    return " to ".join(f"{round(end, digits) + 0.0:+.{digits}f}" for end in ends)


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
