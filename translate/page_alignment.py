"""The section on whether cells of RNA and of ATAC meet in the latent: what was scored, in words, tables and maps."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from expresser.report import Figure, Section, Table
from translate import page_figures as draw
from translate.drawings import Drawings
from translate.maps import FEWEST
from translate.verdicts import MODALITIES, score_name, value

_OF_PAIRS = ("foscttm_from_rna", "foscttm_from_atac", "closest_jaccard")
_OF_ALL = ("mixing", "mixing_best")
_OF_TYPES = (
    "ari",
    "ami",
    "silhouette",
    "cosine_within",
    "cosine_between",
    "transfer_rna_to_atac",
    "transfer_atac_to_rna",
    "transfer_by_chance",
)
_LEAST = ("foscttm_from_rna", "foscttm_from_atac", "cosine_within")
_NEITHER = ("mixing", "mixing_best", "transfer_by_chance")  # bounds, and what is good only beside another score
_BASELINES = {
    "gene_activity_pca": "gene_activity_pca places cells by gene activity among the principal components of expression, without "
    "a network",
    "chance": "chance is points drawn at random",
}

_PAIRS = """
The latents of one cell, from either modality, should be near each other. FOSCTTM is the mean share of other cells that are
closer than the cell itself, asked from its RNA and from its ATAC: 0 is perfect, 0.5 is chance.
"""
_MIXING = """
Mixing asks no pairs: are a cell's {k} nearest neighbours half RNA and half ATAC? It is 1 - |share of ATAC - 1/2|: 1 at best, 0.5
where all neighbours are of one modality. Next to it stands the most that these cells could reach with the modalities shuffled
inside each type. Points drawn at random mix perfectly, so mixing is worth something only where types stay apart.
"""
_TYPES = """
Cells of both modalities together: ARI and AMI say whether clusters of the latent are the known types (as many clusters as types;
1 best, 0 chance), silhouette whether types stay apart (1 best), the cosine distances how far apart two cells of one type are, and
two of different types. Label transfer: the share of cells that get their own type from their 15 nearest cells of the other
modality, and what always saying the most frequent type would give.
"""


def alignment_section(
    metrics: Mapping[str, Any], drawings: Drawings, models: Sequence[str], maps: bool, most: int, seed: int
) -> list[Section]:
    """Scores of every space of every method, and maps of the models' spaces; nothing where no method has any."""
    found = metrics.get("alignment")
    if not found or not found["methods"]:
        return []
    rows = {(name, space): scores for name, spaces in found["methods"].items() for space, scores in spaces.items()}
    spaces = {space for name, space in rows if name in models}
    names = {
        (name, space): f"{name}, latent of {MODALITIES[space]}" if name in models and len(spaces) > 1 else name
        for name, space in rows
    }
    text = [_words(found["cells"])]
    closest = found.get("closest")
    if closest:
        text.append(
            f"{_PAIRS.strip()} Closest cells shared: of a cell's {closest['n']} closest cells inside either modality, those in both "
            f"over those in any, 1 at best; {closest['chance']:.3f} is chance."
        )
    neighbours = {scores["mixing_neighbours"] for scores in rows.values() if "mixing_neighbours" in scores}
    if neighbours:
        text.append(_MIXING.format(k=f"{max(neighbours):,}"))
    typed = any("ari" in scores for scores in rows.values())
    text.append(
        _TYPES if typed else f"Nothing is said of types: {found['skipped'].get('alignment of types', 'no labels')}."
    )
    if beside := [_BASELINES[name] for name in found["baselines"] if name in _BASELINES]:
        text.append(f"{'; '.join(beside)}.")
    items: list[Figure | Table] = []
    for title, columns in (("Pairs", _OF_PAIRS), ("Mixing", _OF_ALL), ("Types", _OF_TYPES)):
        there = [c for c in columns if any(c in scores for scores in rows.values())]
        if not there:
            continue
        frame = pd.DataFrame(
            {score_name(c): [value(scores, c) for scores in rows.values()] for c in there},
            index=pd.Index([names[key] for key in rows], name="method"),
        )
        best: Any = {score_name(c): "min" if c in _LEAST else "max" for c in there if c not in _NEITHER}
        items.append(Table(f"Alignment: {title.lower()}", frame, best=best if len(rows) > 1 else {}))
    too_few = None
    if maps:
        for name, space in rows:
            if name in models and space in drawings.joint.get(name, {}):
                joint = drawings.joint[name][space]
                if (
                    min((joint.modality == m).sum() for m in ("rna", "atac")) < FEWEST // 2
                    or len(joint.modality) < 2 * FEWEST
                ):
                    too_few = len(joint.modality)
                items += draw.latent_maps(joint, names[name, space], most=most, seed=seed)
    if too_few is not None:
        text.append(f"No map is drawn of {too_few} test cells, both modalities counted: a UMAP needs {2 * FEWEST}.")
    return [Section("Alignment", "\n\n".join(text), tuple(items))]


def _words(cells: Mapping[str, int]) -> str:
    paired = f"{cells['paired']:,} of them the same cells" if cells["paired"] else "none of them the same cell"
    return f"{cells['rna']:,} test cells of RNA and {cells['atac']:,} of ATAC, {paired}."
