"""A fitted cell-type classifier as a folder, and its use: AnnData in, AnnData out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from expresser import checkpoint as checkpoints
from expresser.checkpoint import Checkpoint
from expresser.embed import embed_counts
from expresser.errors import InputError
from expresser.impute import Progress, aligned_chunks, trace
from finetune.annotation.head import HEAD_FILES, LinearHead


@dataclass(frozen=True, eq=False)
class FittedClassifier:
    """A model, the linear head on its cell embeddings, and where both come from (`head.json`)."""

    checkpoint: Checkpoint
    head: LinearHead
    about: dict[str, Any]

    def save(self, folder: str | Path) -> Path:
        """Write a model folder that is whole without the original: weights, genes, and the head's two files; no pickle."""
        return checkpoints.save(
            folder, self.checkpoint.model, self.checkpoint.vocab, self.checkpoint.run, extra=self._write_head
        )

    def _write_head(self, folder: Path) -> None:
        self.head.save(folder, self.about)
        with (folder / "README.md").open("a", encoding="utf-8") as file:
            file.write(_card(self.head, self.about))

    @classmethod
    def load(cls, classifier: str | Path) -> "FittedClassifier":
        """Read a classifier's folder, or the run's folder that holds one, or a hub id.

        Raises
        ------
        InputError
            Where it is a model without a head, or a part is missing or does not fit.
        """
        path = Path(classifier)
        if (path / "classifier").is_dir() and not (path / "config.json").exists():
            path = path / "classifier"
        if path.is_dir() and not (path / HEAD_FILES[0]).is_file():
            raise InputError(
                f"{classifier}: no {HEAD_FILES[0]} there, so it is no cell-type classifier. Give the `classifier` folder "
                "of `expresser finetune annotation`."
            )
        spec = path if path.is_dir() else classifier
        folder = checkpoints.locate(spec, (*HEAD_FILES, *checkpoints.FILES))
        head, about = LinearHead.load(folder)
        loaded = checkpoints.load(folder)
        if head.mean.size != loaded.model.config.d_model:
            raise InputError(
                f"{folder}: the head takes {head.mean.size} features, the model gives {loaded.model.config.d_model}. "
                "Restore the head.json and head.safetensors that were saved with this model."
            )
        return cls(Checkpoint(loaded.model, loaded.vocab, loaded.run, str(classifier)), head, about)


def annotate(
    adata: AnnData,
    classifier: str | Path | FittedClassifier,
    *,
    key_added: str = "expresser_cell_type",
    probabilities: bool = False,
    layer: str | None = None,
    copy: bool = False,
    max_tokens: int = 16384,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
) -> AnnData | None:
    """Write the most probable type of each cell into ``obs[key_added]`` and its probability into ``obs[key_added + "_probability"]``.

    A cell gets one of the types that the classifier was trained on, whatever it is: a low probability is a hint, a high one no proof.
    Missing for a cell with fewer than two genes of the model. It depends on the cell alone, beyond rounding.

    Parameters
    ----------
    adata
        Raw counts in X (or ``layer``: a layer's name or "raw").
    probabilities
        Write those of all types too: ``obsm[key_added + "_probabilities"]``, a frame.
    copy
        Return a changed copy instead of changing ``adata``.
    """
    fitted = classifier if isinstance(classifier, FittedClassifier) else FittedClassifier.load(classifier)
    x = np.full((adata.n_obs, fitted.head.mean.size), np.nan, dtype=np.float32)
    for first, counts in aligned_chunks(adata, fitted.checkpoint.vocab, layer):
        stop = first + counts.shape[0]
        x[first:stop] = embed_counts(fitted.checkpoint, counts, max_tokens=max_tokens, device=device)
        if progress is not None:
            progress(stop, adata.n_obs)
    known = np.isfinite(x).all(1)
    p = np.full((adata.n_obs, len(fitted.head.classes)), np.nan)
    p[known] = np.exp(fitted.head.log_probabilities(x[known]))
    code = np.full(adata.n_obs, -1, dtype=np.int64)
    code[known] = p[known].argmax(1)
    adata = adata.copy() if copy else adata
    adata.obs[key_added] = pd.Categorical.from_codes(code, categories=list(fitted.head.classes))
    best = np.full(adata.n_obs, np.nan)
    best[known] = p[known].max(1)
    adata.obs[f"{key_added}_probability"] = best
    if probabilities:
        frame = pd.DataFrame(p, index=adata.obs_names, columns=list(fitted.head.classes))
        adata.obsm[f"{key_added}_probabilities"] = frame
    record = trace(fitted.checkpoint, key=key_added, types=len(fitted.head.classes))
    adata.uns["expresser"] = {**adata.uns.get("expresser", {}), "annotate": record}
    return adata if copy else None


def _card(head: LinearHead, about: Mapping[str, Any]) -> str:
    """What a reader of the folder's README.md should know of the head."""
    trained = about.get("trained", {})
    scores = about.get("scores", {})
    said = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items())
    return (
        "\n## Cell types\n"
        f"This folder also holds a classifier of {len(head.classes)} cell types (`head.json`, `head.safetensors`), fitted on "
        f"{trained.get('cells', '?')} labelled cells; {trained.get('blocks', 0)} blocks of the model were trained with it. "
        + (f"On held-out cells ({about.get('split', '?')}): {said}. " if said else "")
        + "Every cell gets one of these types, also a cell of none of them.\n"
        "```\nexpresser finetune annotate THIS_FOLDER cells.h5ad --out annotated.h5ad\n```\n"
    )
