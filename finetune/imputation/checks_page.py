"""Page sections about what imputation does beyond hidden values: to clusters of cells, and to ties between genes."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import pandas as pd

from expresser.plots import bar_axes, svg
from expresser.report import Figure, Section, Table
from finetune.imputation.checks import BEFORE, UNDROPPED
from finetune.imputation.coexpression import sentence

_CLUSTERS = """
{cells:,} cells with one of {types} labels in "{label}": log-normalised values of the (at most 2,000) most variable genes,
30 principal components, the graph of the 15 nearest cells, Leiden clusters. Of a fixed series of resolutions the one
counts whose number of clusters is nearest to the number of labels; agreement with the labels has no say in that. ARI and
NMI are 1 for equal partitions; ARI is 0 for chance.

"Hidden filled in" is the count matrix with only the hidden entries predicted: whoever fills them in also says that
they are not zero, which no user knows, so every method gains from that alone. "As used" is what a user has afterwards:
smoothers replace every value, predictors of non-zero values (the model too) fill every zero of these genes.
"""

_COEXPRESSION = """
In {cells:,} cells, {shuffled} of {genes} random genes had their counts exchanged at random between cells of like depth,
each gene for itself: what ties them to any other gene is chance, and the depth of the cell. Each method then imputed
these genes as its users would (smoothers every value, the others the zeros), and the {pairs:,} pairs with a shuffled
gene were correlated. "Strong" is the share of pairs with |r| above {strong}. "Given depth" is the same after a cubic in
the logarithm of the cell's molecules has been taken out of each gene. A method "invents" where strong pairs given depth
become more by {rise:.0%} of all pairs, "through depth" where they only do without it.
"""


def check_sections(metrics: Mapping[str, Any], model: str) -> list[Section]:
    """One section a check that was made."""
    sections = []
    if metrics["clusters"] is not None:
        sections.append(_clusters(metrics["clusters"], metrics["seeds"], model))
    if metrics["coexpression"] is not None:
        sections.append(_coexpression(metrics["coexpression"], metrics["seeds"], model))
    return sections


def cluster_sentence(found: Mapping[str, Any]) -> str:
    """Which methods, as they are used, help or hurt to find the labels."""
    by = {
        word: [name for name, said in found["said"].items() if said.get("whole") == word] for word in ("helps", "hurts")
    }
    parts = [f"finding cell types is {done} by {', '.join(by[word])}" for word, done in _DONE.items() if by[word]]
    if not parts:
        return "In no method do ARI and NMI both rise, or both fall, in every draw, against no imputation."
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]} (ARI and NMI both, in every draw, against no imputation)."


_DONE = {"helps": "helped", "hurts": "hurt"}


def _clusters(found: Mapping[str, Any], seeds: int, model: str) -> Section:
    methods, said = found["methods"], found["said"]
    columns = {
        "ARI": "ari_whole",
        "sd": "ari_whole_sd",
        "NMI": "nmi_whole",
        "clusters": "clusters_whole",
        "ARI, hidden filled in": "ari",
        "sd ": "ari_sd",
        "NMI, hidden filled in": "nmi",
    }
    frame = pd.DataFrame(
        {title: [_number(of, score) for of in methods.values()] for title, score in columns.items()},
        index=pd.Index(list(map(_row, methods)), name="method"),
    )
    for name in (UNDROPPED, BEFORE):
        for title, score in list(columns.items())[:4]:
            frame.loc[_row(name), title] = methods[name][score.replace("_whole", "")]
        frame.loc[_row(name), list(columns)[4:]] = float("nan")
    frame.insert(0, "as used", [said.get(name, {}).get("whole", "") for name in methods])
    caption = (
        f"Means over {seeds} draws at the first share; sd: standard deviation over them. As used, then with only the "
        "hidden entries filled in. Helps, hurts: ARI and NMI both, in every draw, against no imputation."
    )
    whole = pd.Series(
        {_row(name): of.get("ari_whole", of["ari"]) for name, of in methods.items() if _used(name, of)},
        name="ARI, as used",
    )
    spread = pd.Series(
        {_row(n): of.get("ari_whole_sd", of["ari_sd"]) for n, of in methods.items() if _used(n, of)}, dtype=float
    )
    references = {"no imputation": methods[BEFORE]["ari"]}
    highlight = model if model in methods else None
    bars = partial(
        bar_axes, values=whole, low=whole - spread, high=whole + spread, highlight=highlight, references=references
    )
    drawing = svg(bars, (5.2, 1.2 + 0.3 * len(whole)))
    text = f"{cluster_sentence(found)}\n\n{_CLUSTERS.format(**found)}"
    items = (
        Figure(
            "Agreement of clusters with labels", drawing, "Lines: one standard deviation over draws.", whole.to_frame()
        ),
        Table("Clusters against labels", frame, caption),
    )
    return Section("Does it help to find cell types?", text, items)


def _coexpression(found: Mapping[str, Any], seeds: int, model: str) -> Section:
    methods, said = found["methods"], found["said"]
    columns = {
        "mean |r|": "r",
        "strong": "strong",
        "sd": "strong_sd",
        "mean |r| given depth": "r_given_depth",
        "strong given depth": "strong_given_depth",
        "sd ": "strong_given_depth_sd",
    }
    frame = pd.DataFrame(
        {title: [_number(of, score) for of in methods.values()] for title, score in columns.items()},
        index=pd.Index(list(map(_row, methods)), name="method"),
    )
    frame["says"] = [said.get(name, "") for name in methods]
    caption = f"Means over {seeds} shuffles; sd: standard deviation over them. The less, the better; none is right."
    text = f"{sentence(said)}\n\n{_COEXPRESSION.format(**found)}"
    return Section("Does it invent co-expression?", text, (Table("Pairs of unrelated genes", frame, caption),))


def _used(name: str, of: Mapping[str, float]) -> bool:
    """Rows of the figure: of the corrected values of smoothers there is no matrix that anyone would use."""
    return name in (UNDROPPED, BEFORE) or "ari_whole" in of


def _row(name: str) -> str:
    return {UNDROPPED: "all counts", BEFORE: "no imputation"}.get(name, name)


def _number(of: Mapping[str, float], score: str) -> float:
    return float(of.get(score, float("nan")))
