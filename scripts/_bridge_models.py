"""Models that a bridge starts from: pretrained on simulated RNA, and their controls of the same shape with random weights."""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from anndata import AnnData

from expresser import checkpoint
from expresser.corpus.build import build_corpus
from expresser.record import provenance
from pretrain.config import Recipe
from pretrain.loop import pretrain
from pretrain.recipes import small


@dataclass(frozen=True)
class Pretraining:
    """How a model is made from cells of RNA; everything else is the recipe `small`."""

    cells: int = 8000
    epochs: float = 3.0
    global_batch: int = 16
    lr: float = 2e-3

    def recipe(self, seed: int) -> Recipe:
        """Fewer steps than `small`: some three minutes of one core for a thousand genes, which float32 spares half of."""
        base = small()
        data = replace(base.data, epochs=self.epochs, global_batch=self.global_batch)
        optim = replace(base.optim, lr=self.lr)
        return replace(base, data=data, optim=optim, precision="no", save_every=200, seed=seed)


def pretrained(rna: AnnData, made_by: dict[str, Any], how: Pretraining, seed: int, folder: Path) -> Path:
    """The model of these cells, found in `folder` where the same was made before.

    made_by: what fixes the cells (sizes and seed of the simulation); it names the model.
    """
    recipe = how.recipe(seed)
    name = hashlib.sha256(json.dumps([made_by, asdict(recipe)], sort_keys=True).encode()).hexdigest()[:12]
    home = folder / f"simulated-{name}"
    if not (home / "run" / "model" / "run.json").is_file():
        # Cells of few genes: shallow ones are dropped from the corpus as from any.
        build_corpus([rna], home / "corpus", min_genes=min(20, rna.n_vars // 10))
        told = pretrain(recipe, home / "corpus", home / "run", resume=True, verify=False, quiet=True)
        if stopped := told.get("stopped"):  # by a signal, which it has answered with a checkpoint
            raise SystemExit(f"{stopped} at step {told['step']:,} of pretraining; the same command goes on from there")
    return home / "run" / "model"


def random_twin(model: Path, seed: int, folder: Path) -> Path:
    """A checkpoint of the same configuration and genes whose weights are drawn anew: what learning adds is the difference.

    So are those that training starts at zero (the head's last layer): with them at zero all cells have one embedding, and the
    control would be none. Drawn, it is a random projection of the cell that depends on expression.
    """
    twin = folder / f"drawn-{digest(model)}-{seed}"
    if (twin / "run.json").is_file():
        return twin
    learned = checkpoint.load(model)
    drawn = checkpoint.random_checkpoint(learned, seed=seed).model
    run = {
        "recipe": "random",
        "seed": seed,
        "cells": 0,
        "genes": len(learned.vocab),
        "genes_sha256": learned.vocab.sha256,
        "step": 0,
        "note": "weights drawn at random, nothing learned; shape and genes of another model, a control for it",
        "shape_of": digest(model),
        "provenance": provenance(seed=seed),
    }
    return checkpoint.save(twin, drawn, learned.vocab, run)


def digest(model: Path) -> str:
    """What a model is known by in lines and keys: of its weights, not of where they lie."""
    return hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()[:12]


def quality(model: Path) -> dict[str, Any]:
    """What the model's own validation says, beside the gene + cell additive baseline where the run recorded it."""
    run = json.loads((model / "run.json").read_text())
    found = {key: run.get(key) for key in ("recipe", "cells", "genes", "step", "seconds")}
    for part in ("valid", "additive"):
        found[part] = {key: (run.get(part) or {}).get(key) for key in ("pearson", "mse")}
    return found
