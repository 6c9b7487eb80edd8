"""What is said of the pretrained model that a translator took from: in its report, on its card and in the terminal."""

from collections.abc import Mapping
from typing import Any

_LETTERS = 12  # of a hash


def taken_words(run: Mapping[str, Any]) -> list[str]:
    """Sentences out of the record of a fit; none where nothing was taken.

    Of the record: "pretrained" (model, sha256 of its weights) and "taken" (ways, genes of of_genes known, peaks of of_peaks with a
    start, those that there are), and a reference that names a model.
    """
    words: list[str] = []
    if found := dict(run.get("pretrained") or {}) | dict(run.get("taken") or {}):
        ways = ", ".join(found.get("ways", ()))
        words += [f"Taken from {found['model']} (sha256 of its weights {found['sha256'][:_LETTERS]}…): {ways}."]
    if "of_genes" in found:
        words += [f"It knows {found['genes']:,} of the {found['of_genes']:,} genes."]
    if "of_peaks" in found:
        words += [
            f"{found['peaks']:,} of {found['of_peaks']:,} peaks have a gene nearby that it knows, and started from it."
        ]
    if (model := reference_model(dict(run.get("config", {})).get("reference"))) is not None:
        words += [f"The reference is the cell embeddings of {model}."]
    return words


def reference_model(reference: str | None) -> str | None:
    """The model of "expresser:MODEL"; None of another reference, or none."""
    what, _, model = (reference or "").partition(":")
    return model if what == "expresser" and model else None
