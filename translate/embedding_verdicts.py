"""Whether an embedding is ahead of the best baseline, in numbers and in words."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

Said = Literal["ahead", "level", "behind", "undecided"]  # the model, to the baseline

# Higher is better, and what it is called in a sentence.
BETTER = {
    "ari": True,
    "nmi": True,
    "silhouette": True,
    "ari_best": True,
    "nmi_best": True,
    "f1": True,
    "rarest_f1": True,
    "dice": True,
    "mi_depth": False,
    "mi_batch": False,
    "mixing": False,
}
NAMES = {
    "ari": "ARI",
    "nmi": "NMI",
    "silhouette": "silhouette",
    "ari_best": "best ARI",
    "nmi_best": "best NMI",
    "n_clusters": "clusters",
    "f1": "mean F1 of types",
    "rarest_f1": "F1, rarest type",
    "mi_depth": "I(z, depth)",
    "mi_batch": "I(z, batch)",
    "mixing": "batches, off even",
    "mixing_by_chance": "the same, shuffled",
    "dimensions": "dimensions",
    "seconds": "seconds",
}


@dataclass(frozen=True)
class EmbeddingVerdict:
    """The model against the baseline that is best at recovering cell types (without types: that knows depth least)."""

    model: str
    baseline: str
    score: str
    said: Said
    values: tuple[float, float]  # the model's, the baseline's
    difference: tuple[float, float, float] | None  # over subsamples: mean, least and greatest

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def sentence(self) -> str:
        """In words."""
        name, (mine, its) = NAMES[self.score], self.values
        numbers = f"{name} {mine:.3f} against {its:.3f}"
        if self.difference is not None:
            numbers += f" (difference in subsamples of 90 % of the cells {self.difference[1]:+.3f} to {self.difference[2]:+.3f})"
        what = "recovering cell types" if self.score == "ari" else "not knowing the depth of a cell"
        words = {
            "ahead": f"{self.model} is ahead of the best baseline, {self.baseline}, at {what}: {numbers}.",
            "level": f"{self.model} is level with the best baseline, {self.baseline}, at {what}: {numbers}.",
            "behind": f"{self.model} is behind the best baseline, {self.baseline}, at {what}: {numbers}.",
            "undecided": f"At {what}, {self.model} has {numbers} of the best baseline, {self.baseline}.",
        }
        return words[self.said]


def best_baseline(metrics: Mapping[str, Any]) -> list[str]:
    """The baseline with the highest ARI, or, where there are no types, with the lowest I(z, depth), in a list; or none."""
    score = _deciding(metrics)
    there = {n: v for n in metrics["baselines"] if (v := _value(metrics["embeddings"][n], score)) is not None}
    sign = 1 if BETTER[score] else -1
    return [max(there, key=lambda n: sign * there[n])] if there else []


def verdict(metrics: Mapping[str, Any]) -> EmbeddingVerdict | None:
    """Of the model in `metrics`, by ARI where there are types, else by I(z, depth); None where no baseline was run.

    The model is ahead where its ARI is higher in every subsample (``metrics["draws"]``, the same cells for both), behind
    where it is lower in every one. That is about these cells and this clustering, not about another sample.
    """
    scores, model, score = metrics["embeddings"], metrics["system"], _deciding(metrics)
    mine, best = _value(scores[model], score), best_baseline(metrics)
    if not best or mine is None:
        return None
    pairs = (mine, float(scores[best[0]][score]))
    draws = [metrics["draws"].get(name, {}).get(score) for name in (model, best[0])]
    if draws[0] is None or draws[1] is None:
        return EmbeddingVerdict(model, best[0], score, "undecided", pairs, None)
    gaps = np.subtract(draws[0], draws[1])
    low, high = float(gaps.min()), float(gaps.max())
    said: Said = "ahead" if low > 0 else "behind" if high < 0 else "level"
    return EmbeddingVerdict(model, best[0], score, said, pairs, (float(gaps.mean()), low, high))


def _deciding(metrics: Mapping[str, Any]) -> str:
    return "ari" if _value(metrics["embeddings"][metrics["system"]], "ari") is not None else "mi_depth"


def confounder_sentences(metrics: Mapping[str, Any]) -> list[str]:
    """What the model's dimensions still tell of depth and batch, beside the baselines."""
    scores, model = metrics["embeddings"], metrics["system"]
    lines = []
    for score, what in (("mi_depth", "depth"), ("mi_batch", "batch")):
        mine = _value(scores[model], score)
        if mine is None:
            continue
        line = f"A latent dimension of {model} tells {mine:.3f} nats of a cell's {what} on average"
        others = {n: v for n in metrics["baselines"] if (v := _value(scores[n], score)) is not None}
        if others:
            least = min(others, key=lambda n: others[n])
            how = "less than" if mine < others[least] else "as much as" if mine == others[least] else "more than"
            line += f", {how} the baseline with the least, {least} ({others[least]:.3f})"
        lines.append(f"{line}.")
    return lines


def _value(scores: Mapping[str, Any], name: str) -> float | None:
    found = scores.get(name)
    return None if found is None or np.isnan(found) else float(found)
